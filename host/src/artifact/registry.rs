//! A registry of artifacts, over the OCI distribution protocol: pull, push, and what signatures need.
//!
//! Everything that a registry says is checked: digests and sizes of what it sends, lengths of its answers, where it
//! redirects to. Blobs are streamed between files and sockets and never lie in memory whole. What breaks is tried again
//! a bounded number of times, from where it broke where the registry can.

mod authorization;
mod credentials;
mod download;
mod error;
mod http;
mod pace;
mod patience;
mod report;
mod upload;

use std::collections::BTreeSet;
use std::fmt;
use std::ops::AddAssign;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ::http::{Method, StatusCode, header};
use serde::Deserialize;
use tokio::task::JoinSet;

use self::authorization::Access;
use self::error::Failure;
use self::http::{Client, Request, is_page};
use self::patience::Patience;
use super::blobs::{Blobs, Hold};
use super::oci::{Descriptor, Digest, INDEX, ImageManifest, MANIFEST, MAX_MANIFEST_BYTES, ManifestError};
use super::reference::Reference;
use crate::config::{self, CredentialFiles};
pub use credentials::CredentialError;
pub use error::{RegistryError, is_harmless, printable};
pub(crate) use pace::SLOWEST;
pub use report::{Layer, Report, What};
pub(crate) use upload::FileBody;

/// The kinds of manifest that are asked for: those that are read, and those that can at least be told from them.
const ACCEPTED: [&str; 4] = [
    MANIFEST,
    "application/vnd.docker.distribution.manifest.v2+json",
    INDEX,
    "application/vnd.docker.distribution.manifest.list.v2+json",
];
/// The most tags that are listed, and the largest list in bytes.
const MAX_TAGS: usize = 1000;
const MAX_TAGS_BYTES: u64 = 1 << 20;
/// How long a manifest, or a list of tags, may take with all attempts.
const WHOLE: Duration = Duration::from_secs(600);
/// How many tags, or entries of an index, a message shows.
const SHOWN: usize = 8;
/// The header in which a registry says the digest of what it sent or took.
const CONTENT_DIGEST: &str = "docker-content-digest";

/// How registries are spoken to.
#[derive(Clone, Debug)]
pub struct Options {
    settings: config::Registry,
    credentials: CredentialFiles,
    plain_http: bool,
    /// The registries that a command itself names.
    named: Vec<String>,
    /// How far a transfer may fall behind the slowest that is waited for, beside a stall.
    grace: Duration,
    /// How long a manifest, or a list of tags, may take with all attempts, unless a stall is long.
    whole: Duration,
    /// The first wait before something is tried again; each further one is twice as long.
    backoff: Duration,
}

impl Options {
    /// As host.toml and the environment have it; over plain HTTP where that was asked for on the command line.
    pub fn new(settings: &config::Registry, plain_http: bool) -> Options {
        Options {
            settings: settings.clone(),
            credentials: CredentialFiles::find(),
            plain_http,
            named: Vec::new(),
            grace: pace::GRACE,
            whole: WHOLE,
            backoff: Duration::from_millis(500),
        }
    }

    /// Names a registry for which plain HTTP is meant where it was asked for. Registries of this machine need not be
    /// named; others, which only a manifest knows, are not to get credentials in the clear.
    pub fn name(&mut self, reference: &Reference) {
        self.named.push(reference.registry().to_owned());
    }

    fn stall(&self) -> Duration {
        Duration::from_millis(self.settings.stall_ms)
    }

    /// How long something small may take with all attempts: those who set a long stall mean to wait for it.
    fn whole(&self) -> Duration {
        self.whole.max(self.stall().saturating_mul(4))
    }
}

/// A client of registries. Clones share connections, tokens and credentials.
#[derive(Clone)]
pub struct Registry {
    client: Arc<Client>,
}

/// What a transfer moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// Bytes of blobs that went over the network.
    pub bytes: u64,
    /// Bytes that were there already.
    pub present: u64,
    /// Layers of which something went over the network, with the config.
    pub layers: usize,
}

impl AddAssign for Moved {
    fn add_assign(&mut self, other: Moved) {
        self.bytes += other.bytes;
        self.present += other.present;
        self.layers += other.layers;
    }
}

/// An artifact that was pulled: its manifest and all of its blobs are in the store.
#[derive(Debug)]
pub struct Pulled {
    pub digest: Digest,
    pub manifest: ImageManifest,
    pub moved: Moved,
    /// Keeps all of it from being removed.
    pub hold: Hold,
}

impl Registry {
    /// A client.
    ///
    /// # Errors
    /// Where the operator's authorities cannot be read, or the system has no certificates.
    pub fn new(options: Options) -> Result<Registry, RegistryError> {
        Ok(Registry { client: Arc::new(Client::new(options)?) })
    }

    /// The bytes of a manifest and their digest, which is the reference's where that has one. What kind of manifest it
    /// is, is not looked at.
    ///
    /// # Errors
    /// Where there is none, it is too large, or it is not what the reference or the registry says.
    pub async fn manifest(&self, reference: &Reference) -> Result<(Digest, Vec<u8>), RegistryError> {
        self.patiently(reference, || self.manifest_once(reference)).await
    }

    /// Has something small answered, with further attempts where one fails, and within a bound on all of them.
    async fn patiently<T, F: Future<Output = Result<T, Failure>>>(
        &self,
        reference: &Reference,
        mut once: impl FnMut() -> F,
    ) -> Result<T, RegistryError> {
        let mut patience = Patience::new(&self.client);
        let asking = async {
            loop {
                match once().await {
                    Ok(found) => return Ok(found),
                    Err(failure) => patience.after(failure, |_, _| {}).await?,
                }
            }
        };
        let bound = self.client.options.whole();
        tokio::time::timeout(bound, asking).await.unwrap_or_else(|_| {
            let registry = reference.registry().to_owned();
            Err(RegistryError::Late { what: format!("what was asked of `{reference}`"), registry, bound })
        })
    }

    async fn manifest_once(&self, reference: &Reference) -> Result<(Digest, Vec<u8>), Failure> {
        let registry = reference.registry();
        let what = format!("the request for `{reference}`");
        let url = self.client.url(reference, &format!("manifests/{}", reference.selector()))?;
        let request = Request::new(Method::GET, url, &what).with(header::ACCEPT, ACCEPTED.join(", "));
        let answer = self.client.send(&request, &Access::pull(reference)).await?;
        match answer.response.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND if !is_page(answer.response.headers()) => {
                let advice = self.advice(reference).await;
                return Err(RegistryError::NoManifest { reference: reference.to_string(), advice }.into());
            }
            _ => return Err(self.client.unexpected(answer.response, registry, &what).await),
        }
        let host = answer.response.url().host_str().unwrap_or(registry).to_owned();
        let not_a_registry = |found: &str| RegistryError::NotARegistry {
            host: host.clone(),
            registry: registry.to_owned(),
            what: what.clone(),
            found: found.to_owned(),
        };
        if is_page(answer.response.headers()) {
            return Err(not_a_registry("a web page").into());
        }
        let said = answer.response.headers().get(CONTENT_DIGEST).and_then(|value| value.to_str().ok());
        // A digest of another kind cannot be compared, and is left to those who know it.
        let said: Option<Digest> = said.and_then(|digest| digest.parse().ok());
        let bytes = self.client.body(answer.response, MAX_MANIFEST_BYTES, registry, &what).await?;
        if bytes.iter().find(|byte| !byte.is_ascii_whitespace()) != Some(&b'{') {
            return Err(not_a_registry("what is no JSON").into());
        }
        let actual = Digest::of(&bytes);
        let mut expected = reference.digest().into_iter().chain(&said);
        match expected.find(|expected| **expected != actual) {
            Some(expected) => {
                let (reference, expected) = (reference.to_string(), *expected);
                Err(RegistryError::ManifestDigest { reference, expected, actual }.into())
            }
            None => Ok((actual, bytes)),
        }
    }

    /// The digest of what a reference leads to, if there is anything, without reading it.
    ///
    /// # Errors
    /// Where the registry cannot be asked.
    pub async fn exists(&self, reference: &Reference) -> Result<Option<Digest>, RegistryError> {
        self.patiently(reference, || self.exists_once(reference)).await
    }

    async fn exists_once(&self, reference: &Reference) -> Result<Option<Digest>, Failure> {
        let what = format!("the request for `{reference}`");
        let url = self.client.url(reference, &format!("manifests/{}", reference.selector()))?;
        let request = Request::new(Method::HEAD, url, &what).with(header::ACCEPT, ACCEPTED.join(", "));
        let answer = self.client.send(&request, &Access::pull(reference)).await?;
        let said = answer.response.headers().get(CONTENT_DIGEST).and_then(|value| value.to_str().ok());
        match (answer.response.status(), said.and_then(|digest| digest.parse().ok())) {
            (StatusCode::NOT_FOUND, _) => Ok(None),
            (StatusCode::OK, Some(digest)) => Ok(Some(digest)),
            // Not every registry says a digest here.
            (StatusCode::OK, None) => Ok(Some(self.manifest_once(reference).await?.0)),
            _ => Err(self.client.unexpected(answer.response, reference.registry(), &what).await),
        }
    }

    /// The tags of a repository, at most a thousand; none where there is no such repository.
    ///
    /// # Errors
    /// Where the registry cannot be asked.
    pub async fn tags(&self, reference: &Reference) -> Result<Vec<String>, RegistryError> {
        self.patiently(reference, || self.tags_once(reference)).await
    }

    async fn tags_once(&self, reference: &Reference) -> Result<Vec<String>, Failure> {
        #[derive(Deserialize)]
        struct Listed {
            tags: Option<Vec<String>>,
        }
        let registry = reference.registry();
        let what = format!("the request for the tags of `{}`", reference.repository());
        let url = self.client.url(reference, &format!("tags/list?n={MAX_TAGS}"))?;
        let answer =
            self.client.send(&Request::new(Method::GET, url, &what), &Access::pull(reference)).await?;
        match answer.response.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => return Ok(Vec::new()),
            _ => return Err(self.client.unexpected(answer.response, registry, &what).await),
        }
        let host = answer.response.url().host_str().unwrap_or(registry).to_owned();
        let body = self.client.body(answer.response, MAX_TAGS_BYTES, registry, &what).await?;
        let listed: Listed = serde_json::from_slice(&body).map_err(|_| {
            let (registry, found) = (registry.to_owned(), "no list of tags".to_owned());
            RegistryError::NotARegistry { host, registry, what, found }
        })?;
        let mut tags = listed.tags.unwrap_or_default();
        tags.retain(|tag| reference.tagged(tag).is_ok());
        tags.truncate(MAX_TAGS);
        Ok(tags)
    }

    /// What to do where there is no such manifest.
    async fn advice(&self, reference: &Reference) -> String {
        let repository = reference.repository();
        // Only advice: one attempt is enough, and why it fails does not matter.
        match self.tags_once(reference).await {
            Ok(tags) if tags.is_empty() => format!(
                "; there is no repository `{repository}` with tags at the registry, or it shows it only after a login"
            ),
            Ok(tags) => {
                let shown =
                    tags.iter().rev().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join("`, `");
                let more = if tags.len() > SHOWN { ", and more" } else { "" };
                format!("; the tags of `{repository}` are `{shown}`{more}")
            }
            Err(_) => String::new(),
        }
    }

    /// Fetches the blobs that are not there yet, several at once.
    ///
    /// # Errors
    /// Where one cannot be fetched or is not what its descriptor says. What has come stays, and the next fetch goes
    /// on from there.
    pub async fn fetch(
        &self,
        reference: &Reference,
        blobs: &[Descriptor],
        into: &Blobs,
        report: &Report,
    ) -> Result<Moved, RegistryError> {
        self.check_size(reference, blobs)?;
        let download = |blob: Descriptor| {
            let (client, reference) = (Arc::clone(&self.client), reference.clone());
            let (into, report) = (into.clone(), report.clone());
            async move { download::fetch(&client, &reference, &blob, &into, &report).await }
        };
        self.each(blobs, download).await
    }

    /// Pulls an artifact: manifest, config and layers, and remembers what the reference led to.
    ///
    /// # Errors
    /// As [`Registry::manifest`] and [`Registry::fetch`], and where it is an index of several artifacts.
    pub async fn pull(
        &self,
        reference: &Reference,
        into: &Blobs,
        report: &Report,
    ) -> Result<Pulled, RegistryError> {
        let (_, bytes) = self.manifest(reference).await?;
        self.pull_manifest(reference, &bytes, into, report).await
    }

    /// As [`Registry::pull`], of a manifest that was fetched before: whoever must judge it first does so between.
    ///
    /// # Errors
    /// As [`Registry::fetch`], and where it is an index of several artifacts.
    pub async fn pull_manifest(
        &self,
        reference: &Reference,
        bytes: &[u8],
        into: &Blobs,
        report: &Report,
    ) -> Result<Pulled, RegistryError> {
        let digest = Digest::of(bytes);
        let manifest = parse(reference, bytes)?;
        let blobs: Vec<Descriptor> = manifest.blobs().into_iter().cloned().collect();
        self.check_size(reference, &blobs)?;
        let mut held: BTreeSet<Digest> = blobs.iter().map(|blob| blob.digest).collect();
        held.insert(digest);
        let store = into.clone();
        let hold = blocking(move || store.hold(held)).await?;
        let moved = self.fetch(reference, &blobs, into, report).await?;
        let (store, bytes, name) = (into.clone(), bytes.to_owned(), reference.to_string());
        // Remembered last: a reference leads only to what is there whole.
        blocking(move || store.put(&bytes).and_then(|digest| store.remember(&name, &digest))).await?;
        Ok(Pulled { digest, manifest, moved, hold })
    }

    /// Pushes an artifact whose blobs are in `from`: those that the registry lacks, then the manifest.
    ///
    /// # Errors
    /// Where a blob is not there, the registry refuses, or it takes the manifest for another.
    pub async fn push(
        &self,
        reference: &Reference,
        manifest: &ImageManifest,
        from: &Blobs,
        report: &Report,
    ) -> Result<Moved, RegistryError> {
        self.push_mounting(reference, manifest, from, &[], report).await
    }

    /// As [`Registry::push`]; what the registry lacks in this repository and has in one of `sources`, it takes from
    /// there, if it can.
    ///
    /// # Errors
    /// As [`Registry::push`].
    pub async fn push_mounting(
        &self,
        reference: &Reference,
        manifest: &ImageManifest,
        from: &Blobs,
        sources: &[Reference],
        report: &Report,
    ) -> Result<Moved, RegistryError> {
        self.push_bytes(reference, manifest, &manifest.bytes(), from, sources, report).await
    }

    /// As [`Registry::push`], of the artifact whose manifest is in `from` under `digest`. It keeps that digest, whoever
    /// wrote the manifest.
    ///
    /// # Errors
    /// As [`Registry::push`], and where the manifest is not there or none that is taken.
    pub async fn push_stored(
        &self,
        reference: &Reference,
        digest: Digest,
        from: &Blobs,
        report: &Report,
    ) -> Result<Moved, RegistryError> {
        let store = from.clone();
        let bytes = blocking(move || store.read(&digest, MAX_MANIFEST_BYTES)).await?;
        let bytes =
            bytes.ok_or_else(|| RegistryError::NotHere { layer: format!("the manifest {digest}") })?;
        let manifest = parse(reference, &bytes)?;
        let held = manifest.blobs().into_iter().map(|blob| blob.digest).collect::<Vec<_>>();
        let store = from.clone();
        // The last of them is looked for only when the others are up.
        let _hold = blocking(move || store.hold(held)).await?;
        self.push_bytes(reference, &manifest, &bytes, from, &[], report).await
    }

    async fn push_bytes(
        &self,
        reference: &Reference,
        manifest: &ImageManifest,
        bytes: &[u8],
        from: &Blobs,
        sources: &[Reference],
        report: &Report,
    ) -> Result<Moved, RegistryError> {
        let blobs: Vec<Descriptor> = manifest.blobs().into_iter().cloned().collect();
        self.check_size(reference, &blobs)?;
        let is_source = |source: &&Reference| {
            source.registry() == reference.registry() && source.repository() != reference.repository()
        };
        let sources: BTreeSet<&str> = sources.iter().filter(is_source).map(Reference::repository).collect();
        let sources: Arc<[String]> = sources.into_iter().map(str::to_owned).collect();
        let upload = |blob: Descriptor| {
            let (client, reference) = (Arc::clone(&self.client), reference.clone());
            let (from, report, sources) = (from.clone(), report.clone(), Arc::clone(&sources));
            async move { upload::push(&client, &reference, &blob, &from, &sources, &report).await }
        };
        let moved = self.each(&blobs, upload).await?;
        let media_type = manifest.media_type.as_deref().unwrap_or(MANIFEST);
        self.put_manifest(reference, media_type, bytes).await?;
        Ok(moved)
    }

    /// Puts a manifest, all of whose blobs the registry has, under the reference's tag, or its digest where it has no
    /// tag. Answers its digest.
    ///
    /// # Errors
    /// Where the reference has another digest, the registry refuses, or it takes the manifest for another.
    pub async fn put_manifest(
        &self,
        reference: &Reference,
        media_type: &str,
        bytes: &[u8],
    ) -> Result<Digest, RegistryError> {
        let digest = Digest::of(bytes);
        if let Some(expected) = reference.digest().filter(|expected| **expected != digest) {
            let (reference, expected) = (reference.to_string(), *expected);
            return Err(RegistryError::ManifestDigest { reference, expected, actual: digest });
        }
        let mut patience = Patience::new(&self.client);
        loop {
            match self.put_once(reference, media_type, bytes, digest).await {
                Ok(()) => return Ok(digest),
                Err(failure) => patience.after(failure, |_, _| {}).await?,
            }
        }
    }

    async fn put_once(
        &self,
        reference: &Reference,
        media_type: &str,
        bytes: &[u8],
        digest: Digest,
    ) -> Result<(), Failure> {
        let what = format!("the push of `{reference}`");
        let name = reference.tag().map_or_else(|| digest.to_string(), str::to_owned);
        let url = self.client.url(reference, &format!("manifests/{name}"))?;
        let mut request = Request::new(Method::PUT, url, &what).with(header::CONTENT_TYPE, media_type);
        request.body = bytes.to_vec().into();
        let answer = self.client.send(&request, &Access::push(reference)).await?;
        if !answer.response.status().is_success() {
            return Err(self.client.unexpected(answer.response, reference.registry(), &what).await);
        }
        let said = answer.response.headers().get(CONTENT_DIGEST).and_then(|value| value.to_str().ok());
        match said.and_then(|said| said.parse::<Digest>().ok()) {
            Some(actual) if actual != digest => {
                let reference = reference.to_string();
                Err(RegistryError::ManifestDigest { reference, expected: digest, actual }.into())
            }
            _ => Ok(()),
        }
    }

    /// Fails where an artifact is larger than the operator allows, before anything is moved.
    fn check_size(&self, reference: &Reference, blobs: &[Descriptor]) -> Result<(), RegistryError> {
        let limit_mib = self.client.options.settings.max_artifact_mib;
        let bytes = blobs.iter().fold(0u64, |sum, blob| sum.saturating_add(blob.size));
        if bytes > limit_mib << 20 {
            let (reference, mib) = (reference.to_string(), bytes.div_ceil(1 << 20));
            return Err(RegistryError::Artifact { reference, mib, limit_mib });
        }
        Ok(())
    }

    /// Has `work` done for each blob, a bounded number at once. The first failure ends the others.
    async fn each<F>(
        &self,
        blobs: &[Descriptor],
        work: impl Fn(Descriptor) -> F,
    ) -> Result<Moved, RegistryError>
    where
        F: Future<Output = Result<Moved, RegistryError>> + Send + 'static,
    {
        let mut seen = BTreeSet::new();
        let mut waiting = blobs.iter().filter(|blob| seen.insert(blob.digest));
        let (mut running, mut moved) = (JoinSet::new(), Moved::default());
        loop {
            while running.len() < self.client.options.settings.transfers.max(1) {
                let Some(blob) = waiting.next() else { break };
                running.spawn(work(blob.clone()));
            }
            match running.join_next().await {
                None => return Ok(moved),
                Some(Ok(done)) => moved += done?,
                Some(Err(error)) => std::panic::resume_unwind(error.into_panic()),
            }
        }
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("options", &self.client.options).finish_non_exhaustive()
    }
}

/// Reads a manifest; of an index, the message shows what could be named instead.
fn parse(reference: &Reference, bytes: &[u8]) -> Result<ImageManifest, RegistryError> {
    match ImageManifest::parse(bytes) {
        Ok(manifest) => Ok(manifest),
        Err(ManifestError::Index) => {
            Err(RegistryError::Index { reference: reference.to_string(), entries: entries(bytes) })
        }
        Err(error) => Err(RegistryError::Manifest { reference: reference.to_string(), error }),
    }
}

/// The first entries of an index, each with its platform.
fn entries(bytes: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Index {
        #[serde(default)]
        manifests: Vec<Entry>,
    }
    #[derive(Deserialize)]
    struct Entry {
        digest: Digest,
        platform: Option<Platform>,
    }
    #[derive(Deserialize)]
    struct Platform {
        #[serde(default)]
        os: String,
        #[serde(default)]
        architecture: String,
    }
    let index = serde_json::from_slice(bytes).unwrap_or(Index { manifests: Vec::new() });
    let shown = index.manifests.iter().take(SHOWN).map(|entry| match &entry.platform {
        Some(Platform { os, architecture }) => {
            format!("{} ({})", entry.digest, printable(&format!("{os}/{architecture}"), 40))
        }
        None => entry.digest.to_string(),
    });
    match index.manifests.len() {
        0 => "it has none".to_owned(),
        _ => shown.collect::<Vec<_>>().join(", "),
    }
}

/// Work on files, away from the async threads.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// Where a blob lies that is to be pushed.
async fn file_of(from: &Blobs, layer: &Layer) -> Result<PathBuf, RegistryError> {
    let (store, digest) = (from.clone(), layer.digest);
    let path = blocking(move || store.get(&digest)).await?;
    path.ok_or_else(|| RegistryError::NotHere { layer: layer.to_string() })
}

#[cfg(test)]
mod tests;
