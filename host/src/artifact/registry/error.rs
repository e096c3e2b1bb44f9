//! What can go wrong between the host and a registry, in words that say what to do.

use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;

use super::credentials::CredentialError;
use super::pace::SLOWEST;
use crate::artifact::blobs::BlobError;
use crate::artifact::oci::{Digest, ManifestError};

/// Why an artifact could not be moved. No text holds a credential, or the query of an address: storage has its
/// tokens there.
#[derive(Debug, Error)]
pub enum RegistryError {
    #[error("`registry.ca` = `{}` cannot be used: {reason}; give a file of certificates in PEM", path.display())]
    Authorities { path: PathBuf, reason: String },
    #[error("there can be no client of registries: {0}")]
    Client(String),
    #[error("the registry `{registry}` cannot be reached: {reason}")]
    Unreachable { registry: String, reason: String },
    #[error(
        "the registry `{registry}` answers without TLS; if that is meant, give `--plain-http`, or name it under \
         `registry.insecure` in host.toml"
    )]
    Plain { registry: String },
    #[error(
        "the registry `{registry}` speaks TLS, not plain HTTP; leave out `--plain-http`, or take it from \
         `registry.insecure` in host.toml"
    )]
    NotPlain { registry: String },
    #[error(
        "the certificate of `{host}` is not trusted ({reason}); if it comes from an authority of your own, name that \
         under `registry.ca` in host.toml"
    )]
    Certificate { host: String, reason: String },
    #[error(transparent)]
    Credentials(#[from] CredentialError),
    #[error(
        "`{registry}` lets nobody {action} `{repository}` without a login{reason}; try `docker login {registry}` or `podman login {registry}`"
    )]
    Anonymous { registry: String, repository: String, action: &'static str, reason: String },
    #[error(
        "`{registry}` does not let the user of {source_of} {action} `{repository}`{reason}; log in anew with \
         `docker login {registry}` or `podman login {registry}`, or ask for the right to"
    )]
    Denied { registry: String, repository: String, action: &'static str, source_of: String, reason: String },
    #[error(
        "the registry `{registry}` sends its callers to `{realm}` with their credentials, without TLS; they stay here"
    )]
    Realm { registry: String, realm: String },
    #[error("there is no `{reference}`{advice}")]
    NoManifest { reference: String, advice: String },
    #[error(
        "`{host}` answered {what} with something else than a registry does ({found}); is `{registry}` the registry's name?"
    )]
    NotARegistry { host: String, registry: String, what: String, found: String },
    #[error("the registry `{registry}` answered {what} with {status}{message}")]
    Status { registry: String, what: String, status: u16, message: String },
    #[error("the registry `{registry}` is busy and asks to wait {} s; try again later", wait.as_secs())]
    Busy { registry: String, wait: Duration },
    #[error("the connection to `{registry}` broke during {what}: {reason}")]
    Broken { registry: String, what: String, reason: String },
    #[error(
        "{what} from `{registry}` comes with less than {} KiB/s altogether, too slowly to wait for; use a registry, or a \
         mirror of it, with a better connection, or raise `registry.stall_ms` in host.toml, which is how far it may fall \
         behind. What has come of a layer is kept, and the same command goes on from there",
        SLOWEST >> 10
    )]
    Slow { what: String, registry: String },
    #[error(
        "`{registry}` has not answered {what} within {} s, all attempts together; try again later, or lower \
         `registry.stall_ms` or `registry.retries` in host.toml to hear of it sooner",
        bound.as_secs()
    )]
    Late { what: String, registry: String, bound: Duration },
    #[error("{error}; tried {times} times{advice}")]
    GaveUp { error: Box<RegistryError>, times: u32, advice: &'static str },
    #[error(
        "`{reference}` is an index of several artifacts, not one; name one of them by its digest: {entries}"
    )]
    Index { reference: String, entries: String },
    #[error("`{reference}` cannot be read: {error}")]
    Manifest { reference: String, error: ManifestError },
    #[error(
        "`{reference}` came with the digest {actual}, not {expected}; the registry or something on the way changed it"
    )]
    ManifestDigest { reference: String, expected: Digest, actual: Digest },
    #[error("{what} from `{registry}` has more than {limit} bytes")]
    Large { what: String, registry: String, limit: u64 },
    #[error(
        "`{reference}` has {mib} MiB in its layers, more than the {limit_mib} that `registry.max_artifact_mib` in \
         host.toml allows"
    )]
    Artifact { reference: String, mib: u64, limit_mib: u64 },
    #[error(
        "{layer} has {actual} at the registry `{registry}`, and {expected} bytes in the manifest; push it again"
    )]
    Size { layer: String, registry: String, expected: u64, actual: String },
    #[error("{layer} is not at the registry `{registry}`, though the manifest names it; push it again")]
    NoLayer { layer: String, registry: String },
    #[error("{layer} from `{registry}`: {error}")]
    Layer { layer: String, registry: String, error: BlobError },
    #[error("{layer} is not in the cache; package or pull the artifact again")]
    NotHere { layer: String },
    #[error("{layer} cannot be read: {error}")]
    File { layer: String, error: std::io::Error },
    #[error(transparent)]
    Blob(#[from] BlobError),
}

impl RegistryError {
    /// Whether the registry could not be asked at all, or not answer: another time it may.
    pub fn is_unreachable(&self) -> bool {
        match self {
            RegistryError::Unreachable { .. }
            | RegistryError::Broken { .. }
            | RegistryError::Busy { .. }
            | RegistryError::Slow { .. }
            | RegistryError::Late { .. } => true,
            RegistryError::Status { status, .. } => *status >= 500,
            RegistryError::GaveUp { error, .. } => error.is_unreachable(),
            _ => false,
        }
    }
}

/// Why one attempt failed, and whether another may do better.
#[derive(Debug)]
pub(super) enum Failure {
    Fatal(Box<RegistryError>),
    /// It may pass, after the time that the registry asks for.
    Passing(Box<RegistryError>, Option<Duration>),
}

impl From<RegistryError> for Failure {
    fn from(error: RegistryError) -> Failure {
        Failure::Fatal(Box::new(error))
    }
}

impl Failure {
    /// One that may pass, after the time that the registry asks for.
    pub(super) fn passing(error: RegistryError, wait: Option<Duration>) -> Failure {
        Failure::Passing(Box::new(error), wait)
    }
}

/// Text of a registry's, as a terminal may show it: one line, bounded, nothing that moves the cursor.
pub fn printable(text: &str, limit: usize) -> String {
    let mut shown: String = text
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
        .chars()
        .map(|c| if is_harmless(c) { c } else { '?' })
        .take(limit)
        .collect();
    if text.chars().nth(limit).is_some() {
        shown.push('…');
    }
    shown
}

/// Neither a control character nor one that turns the direction of text.
pub fn is_harmless(c: char) -> bool {
    !c.is_control()
        && !matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_a_registry_moves_no_cursor() {
        let check = |text: &str, expected: &str| assert_eq!(printable(text, 10), expected);
        check("plain", "plain");
        check("a\nb\tc", "a b c");
        check("\u{1b}[2Jx", "?[2Jx");
        check("\u{202e}x", "?x");
        check("0123456789abc", "0123456789…");
    }
}
