//! Signatures of artifacts, as `cosign` makes them with a pair of keys: what is signed, by whom, and who is trusted.
//!
//! `image` says how signatures lie in a registry, `policy` who must have signed what, `transfer` moves them.

pub mod image;
pub mod keys;
mod pem;
pub mod policy;
#[cfg(test)]
mod tests;
pub mod transfer;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::oci::Digest;
use keys::{Key, TrustedKey};

/// The largest payload that is read, in bytes.
pub const MAX_PAYLOAD_BYTES: u64 = 64 << 10;
/// The largest signature that is read, in bytes; one of RSA with 8192 bits has 1024.
pub const MAX_SIGNATURE_BYTES: usize = 2048;

/// How many signatures an error tells about.
const LISTED: usize = 8;

/// What `critical.type` is in every payload that cosign makes.
const TYPE: &str = "cosign container image signature";

/// A signature, and what it was made over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signed {
    /// The simple-signing document, as it lies in the registry.
    pub payload: Vec<u8>,
    /// Over the payload: ASN.1 in DER for ECDSA, else the signature alone.
    pub signature: Vec<u8>,
}

/// Why an artifact counts as not signed.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum SignatureError {
    #[error(
        "{digest} has no signature; sign it with `tenon sign`, or with `cosign sign --key` and `--new-bundle-format=false`"
    )]
    None { digest: Digest },
    #[error(
        "{digest} is not signed by a key that is trusted for it ({trusted}): {}",
        reasons.join("; ")
    )]
    Untrusted { digest: Digest, trusted: String, reasons: Vec<String> },
}

/// The simple-signing document: what a signature is about.
#[derive(Serialize, Deserialize)]
struct Payload {
    critical: Critical,
    /// Whatever the signer adds; it decides nothing here.
    #[serde(default)]
    optional: serde_json::Value,
}

#[derive(Serialize, Deserialize)]
struct Critical {
    identity: Identity,
    image: Image,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Serialize, Deserialize)]
struct Identity {
    #[serde(rename = "docker-reference")]
    docker_reference: String,
}

#[derive(Serialize, Deserialize)]
struct Image {
    #[serde(rename = "docker-manifest-digest")]
    docker_manifest_digest: String,
}

/// Signs an artifact by its digest. `repository` is where it is pushed to, such as `registry.example/team/app`.
///
/// The payload is the same every time for the same artifact in the same repository, and byte for byte that of cosign.
///
/// # Errors
/// Where the system has no random numbers.
pub fn sign(key: &Key, repository: &str, digest: Digest) -> Result<Signed, keys::KeyError> {
    let identity = Identity { docker_reference: identity(repository) };
    let image = Image { docker_manifest_digest: digest.to_string() };
    let critical = Critical { identity, image, kind: TYPE.to_owned() };
    let payload = Payload { critical, optional: serde_json::Value::Null };
    let payload = serde_json::to_vec(&payload).expect("strings are JSON");
    let signature = key.sign(&payload)?;
    Ok(Signed { payload, signature })
}

/// The trusted key that signed the artifact: the first of `keys` of which a signature is.
///
/// With `repository`, the payload must name that repository too; cosign does not look at it, so a signed artifact
/// that somebody copied to another repository passes without.
///
/// # Errors
/// Where there is no such signature; says for each what is wrong with it.
pub fn verify<'k>(
    keys: &[&'k TrustedKey],
    digest: Digest,
    signatures: &[Signed],
    repository: Option<&str>,
) -> Result<&'k TrustedKey, SignatureError> {
    if signatures.is_empty() {
        return Err(SignatureError::None { digest });
    }
    let mut reasons = Vec::new();
    for (index, signed) in signatures.iter().enumerate() {
        // The bytes are looked into only after somebody who is trusted has signed them.
        let reason = match keys.iter().find(|key| key.signed(&signed.payload, &signed.signature)) {
            None => "is of another key".to_owned(),
            Some(key) => match about(&signed.payload, digest, repository) {
                Ok(()) => return Ok(key),
                Err(reason) => format!("of `{}` {reason}", key.name),
            },
        };
        reasons.push(format!("signature {} {reason}", index + 1));
    }
    if reasons.len() > LISTED {
        let more = reasons.len() - LISTED;
        reasons.truncate(LISTED);
        reasons.push(format!("{more} more do not count either"));
    }
    let trusted = keys.iter().map(|key| key.name.as_str()).collect::<Vec<_>>().join(", ");
    Err(SignatureError::Untrusted { digest, trusted, reasons })
}

/// Whether a payload is about this artifact; says why not.
fn about(payload: &[u8], digest: Digest, repository: Option<&str>) -> Result<(), String> {
    let payload: Payload = match serde_json::from_slice(payload) {
        Ok(payload) => payload,
        Err(error) => return Err(format!("is over something else than a simple-signing document: {error}")),
    };
    let Critical { identity: found, image, kind } = payload.critical;
    if kind != TYPE {
        return Err(format!("is a `{}`, not a `{TYPE}`", clipped(&kind)));
    }
    if image.docker_manifest_digest != digest.to_string() {
        return Err(format!("is for {}", clipped(&image.docker_manifest_digest)));
    }
    match repository {
        Some(repository) if canonical(&found.docker_reference) != canonical(repository) => {
            Err(format!("is for the repository `{}`", clipped(&found.docker_reference)))
        }
        _ => Ok(()),
    }
}

/// A text of somebody else's, fit for a message.
fn clipped(text: &str) -> String {
    text.chars().take(200).flat_map(char::escape_default).collect()
}

/// A repository as cosign writes it into a payload.
fn identity(repository: &str) -> String {
    match repository.strip_prefix("docker.io/") {
        Some(path) => format!("index.docker.io/{path}"),
        None => repository.to_owned(),
    }
}

/// The repository of a reference in the one form in which repositories are compared: without tag and digest, the host
/// in lower case and without the port that goes without saying.
pub fn canonical(reference: &str) -> String {
    let named = reference.split_once('@').map_or(reference, |(named, _)| named);
    let slash = named.rfind('/').unwrap_or(0);
    let repository = match named[slash..].find(':') {
        // A colon before the first slash is that of a port.
        Some(colon) if slash > 0 => &named[..slash + colon],
        _ => named,
    };
    let Some((host, path)) = repository.split_once('/') else { return repository.to_owned() };
    let host = host.to_ascii_lowercase();
    let host = host.strip_suffix(":443").unwrap_or(&host);
    let host = host.strip_suffix('.').unwrap_or(host);
    let host = match host {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        host => host,
    };
    format!("{host}/{path}")
}
