//! Where the credentials for a registry are found: in the files that other tools keep them in, and with the programs
//! that those files name.
//!
//! In this order: the file that `REGISTRY_AUTH_FILE` names; Docker's `config.json`; Podman's `auth.json` of the session,
//! then of the user; Spin's `registry-auth.json`. The first that knows the registry decides. Within a file, the longest
//! key that is the repository or a part of its path from the left goes before a shorter one, as Podman has it; for one
//! key, a program under `credHelpers` goes before an entry under `auths`; `credsStore` comes last.

mod program;

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use docker_credential::{CredentialRetrievalError, DockerCredential};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::artifact::reference::Reference;
use crate::config::CredentialFiles;

/// The largest file of credentials that is read, in bytes.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// What to show a registry. It is shown nowhere else: `Debug` leaves the secret out.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Secret {
    Password {
        user: String,
        password: String,
    },
    /// What a token service takes in place of a password.
    IdentityToken(String),
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// A secret, and where it was found, as messages say it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) secret: Secret,
    pub(super) source: String,
}

/// Why there are no credentials where there should be.
#[derive(Debug, Error)]
pub enum CredentialError {
    #[error("the credentials in `{}` cannot be read: {reason}", path.display())]
    File { path: PathBuf, reason: String },
    #[error("`{}` names no program with `{name}`: it is letters, digits, `-`, `_` and `.`", path.display())]
    Name { path: PathBuf, name: String },
    #[error(
        "`{program}`, which `{}` names for the credentials of `{server}`, {reason}; try it with \
         `echo {server} | {program} get`, or take its name out of that file",
        path.display()
    )]
    Program { program: String, path: PathBuf, server: String, reason: String },
}

/// A file in the form that Docker and Podman share.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct DockerFile {
    auths: Option<BTreeMap<String, Entry>>,
    cred_helpers: Option<BTreeMap<String, String>>,
    creds_store: Option<String>,
}

#[derive(Deserialize, Serialize, Default)]
#[serde(default)]
struct Entry {
    #[serde(skip_serializing_if = "nothing")]
    auth: Option<String>,
    #[serde(skip_serializing_if = "nothing")]
    username: Option<String>,
    #[serde(skip_serializing_if = "nothing")]
    password: Option<String>,
    #[serde(skip_serializing_if = "nothing")]
    identitytoken: Option<String>,
}

/// Whether a member says nothing: Docker leaves entries behind whose secret a program keeps.
fn nothing(text: &Option<String>) -> bool {
    text.as_ref().is_none_or(String::is_empty)
}

/// A file in Spin's form: for each registry the user and the password in base64.
#[derive(Deserialize, Default)]
#[serde(default)]
struct SpinFile {
    auths: BTreeMap<String, String>,
}

/// Looks for the credentials of a repository. A program has `bound` to answer.
///
/// # Errors
/// Where a file or a program that should know them fails.
pub(super) async fn find(
    files: &CredentialFiles,
    reference: &Reference,
    bound: Duration,
) -> Result<Option<Found>, CredentialError> {
    let docker = files.chosen.iter().chain(&files.docker).chain(&files.podman);
    for path in docker {
        if let Some(text) = read(path).await? {
            let file = parse(path, &text)?;
            if let Some(found) = search(path, file, reference, bound).await? {
                return Ok(Some(found));
            }
        }
    }
    if let Some(path) = &files.spin
        && let Some(text) = read(path).await?
    {
        let file: SpinFile = parse(path, &text)?;
        let entry = |auth| Entry { auth: Some(auth), ..Entry::default() };
        let auths = file.auths.into_iter().map(|(key, auth)| (key, entry(auth))).collect();
        let file = DockerFile { auths: Some(auths), ..DockerFile::default() };
        return search(path, file, reference, bound).await;
    }
    Ok(None)
}

/// The bytes of a file, if it is there.
async fn read(path: &Path) -> Result<Option<Vec<u8>>, CredentialError> {
    let failed = |reason: String| CredentialError::File { path: path.to_owned(), reason };
    let opened = path.to_owned();
    let read = tokio::task::spawn_blocking(move || {
        let mut bytes = Vec::new();
        std::fs::File::open(opened)?.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
        Ok(bytes)
    });
    match read.await.expect("reading does not panic") {
        Ok(bytes) if bytes.len() as u64 > MAX_FILE_BYTES => {
            Err(failed(format!("it has more than {MAX_FILE_BYTES} bytes")))
        }
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) => {
            let error: std::io::Error = error;
            match error.kind() {
                std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory => Ok(None),
                _ => Err(failed(error.to_string())),
            }
        }
    }
}

fn parse<T: for<'de> Deserialize<'de>>(path: &Path, text: &[u8]) -> Result<T, CredentialError> {
    // What serde_json says of a wrong value may show it: only the place is told.
    serde_json::from_slice(text).map_err(|error| {
        let reason = format!("it is not JSON as `docker login` writes it (line {})", error.line());
        CredentialError::File { path: path.to_owned(), reason }
    })
}

async fn search(
    path: &Path,
    file: DockerFile,
    reference: &Reference,
    bound: Duration,
) -> Result<Option<Found>, CredentialError> {
    let mut auths = file.auths.unwrap_or_default();
    auths.retain(|_, entry| {
        !(nothing(&entry.auth) && nothing(&entry.username) && nothing(&entry.identitytoken))
    });
    // Its programs are left out: docker_credential would wait for them without a bound, and show what they print.
    let entries = serde_json::to_vec(&serde_json::json!({ "auths": auths })).expect("strings are JSON");
    let helpers = file.cred_helpers.unwrap_or_default();
    for key in keys(reference) {
        let helper = helpers.get(&key).or_else(|| helpers.get(server(&key)));
        if let Some(name) = helper.filter(|name| !name.is_empty()) {
            let found = program::ask(path, name, server(&key), bound).await?;
            if found.is_some() {
                return Ok(found);
            }
        }
        match docker_credential::get_credential_from_reader(entries.as_slice(), &key) {
            Ok(credential) => {
                let source = format!("`{}`", path.display());
                return Ok(Some(Found { secret: secret(credential), source }));
            }
            Err(CredentialRetrievalError::NoCredentialConfigured) => {}
            Err(error) => {
                let reason = format!("the entry of `{key}`: {error}; log in to it anew");
                return Err(CredentialError::File { path: path.to_owned(), reason });
            }
        }
    }
    match file.creds_store.filter(|name| !name.is_empty()) {
        Some(name) => program::ask(path, &name, server(reference.registry()), bound).await,
        None => Ok(None),
    }
}

fn secret(credential: DockerCredential) -> Secret {
    match credential {
        DockerCredential::IdentityToken(token) => Secret::IdentityToken(token),
        DockerCredential::UsernamePassword(user, password) => Secret::Password { user, password },
    }
}

/// The keys under which a file may have a repository's credentials, the most particular first.
fn keys(reference: &Reference) -> Vec<String> {
    let mut key = format!("{}/{}", reference.registry(), reference.repository());
    let mut keys = vec![key.clone()];
    while let Some(slash) = key.rfind('/') {
        key.truncate(slash);
        keys.push(key.clone());
    }
    keys
}

/// What programs know a registry by: Docker Hub's is the address of its first version.
fn server(key: &str) -> &str {
    match key {
        "docker.io" => "https://index.docker.io/v1/",
        key => key,
    }
}

#[cfg(test)]
mod tests;
