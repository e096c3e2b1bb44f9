//! Where a component's bytes come from: a file, or a URL with a digest.

use std::io::Read;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use sha2::{Digest, Sha256};
use thiserror::Error;

use super::manifest::Source;
use crate::backend::vet::hex;

/// The largest component that is taken, in bytes.
pub const MAX_COMPONENT_BYTES: u64 = 256 << 20;

/// How long a download may take.
const DOWNLOAD: Duration = Duration::from_secs(120);

/// A component's bytes, and how people know it.
pub struct Fetched {
    pub wasm: Bytes,
    pub name: String,
}

/// Why there are no bytes.
#[derive(Debug, Error)]
pub enum FetchError {
    #[error("`{name}` cannot be read: {reason}")]
    Read { name: String, reason: String },
    #[error("the component has no code")]
    NoCode,
    #[error("`{name}` is larger than {} MiB", MAX_COMPONENT_BYTES >> 20)]
    TooLarge { name: String },
    #[error("`{name}` has the digest sha256:{actual}, not {expected}; correct one of the two")]
    Digest { name: String, expected: String, actual: String },
}

/// Reads a component, whole.
///
/// # Errors
/// Where it cannot be read, is too large, or is not what the digest says.
pub async fn component(source: &Source) -> Result<Fetched, FetchError> {
    let source = source.clone();
    let read = tokio::task::spawn_blocking(move || match &source {
        Source::Path(path) => file(path),
        Source::Url { url, digest } => download(url, digest),
        Source::Model => Err(FetchError::NoCode),
    });
    read.await.expect("reading does not panic")
}

fn file(path: &Path) -> Result<Fetched, FetchError> {
    let name = path.display().to_string();
    let failed = |error: std::io::Error| FetchError::Read { name: name.clone(), reason: error.to_string() };
    let file = std::fs::File::open(path).map_err(failed)?;
    let wasm = bounded(file, &name)?;
    Ok(Fetched { wasm, name })
}

fn download(url: &str, expected: &str) -> Result<Fetched, FetchError> {
    let failed = |error: ureq::Error| FetchError::Read { name: url.to_owned(), reason: error.to_string() };
    let agent: ureq::Agent = ureq::Agent::config_builder().timeout_global(Some(DOWNLOAD)).build().into();
    let mut response = agent.get(url).call().map_err(failed)?;
    let wasm = bounded(response.body_mut().as_reader(), url)?;
    let actual = hex(&Sha256::digest(&wasm));
    if expected.strip_prefix("sha256:") != Some(actual.as_str()) {
        return Err(FetchError::Digest { name: url.to_owned(), expected: expected.to_owned(), actual });
    }
    Ok(Fetched { wasm, name: url.to_owned() })
}

fn bounded(reader: impl Read, name: &str) -> Result<Bytes, FetchError> {
    let mut bytes = Vec::new();
    let read = reader.take(MAX_COMPONENT_BYTES + 1).read_to_end(&mut bytes);
    read.map_err(|error| FetchError::Read { name: name.to_owned(), reason: error.to_string() })?;
    if bytes.len() as u64 > MAX_COMPONENT_BYTES {
        return Err(FetchError::TooLarge { name: name.to_owned() });
    }
    Ok(bytes.into())
}
