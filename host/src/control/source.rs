//! From what a deployment names to an app whose files are all on this machine.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::OnceCell;

use super::ControlError;
use crate::artifact::blobs::{BlobError, Blobs};
use crate::artifact::cache::Cache;
use crate::artifact::manifest::{Files, Manifest};
use crate::artifact::oci::{Digest, ImageManifest, MAX_MANIFEST_BYTES};
use crate::artifact::reference::Reference;

use crate::artifact::registry::{Options, Pulled, Registry, Report};
use crate::artifact::signature::policy::Policy;
use crate::artifact::signature::transfer::verified;
use crate::artifact::{modelpack, unpack};
use crate::background::background;
use crate::config::{self, Config};
use crate::deploy::Interface;

/// Where apps come from: registries, and the blobs that clients uploaded.
pub struct Sources {
    config: Arc<Config>,
    cache: Cache,
    registry: OnceCell<Registry>,
    again: Again,
}

/// How long is waited for what a registry is to bring back when the host starts, since all apps wait with it.
struct Again {
    /// For the first that does not come.
    first: Duration,
    /// For each further one, once something did not come.
    further: Duration,
    is_late: AtomicBool,
}

impl Again {
    const fn at_start() -> Again {
        Again {
            first: Duration::from_secs(600),
            further: Duration::from_secs(60),
            is_late: AtomicBool::new(false),
        }
    }

    async fn in_time<T>(
        &self,
        what: &str,
        work: impl Future<Output = Result<T, ControlError>>,
    ) -> Result<T, ControlError> {
        let bound = if self.is_late.load(Ordering::Relaxed) { self.further } else { self.first };
        tokio::time::timeout(bound, work).await.unwrap_or_else(|_| {
            self.is_late.store(true, Ordering::Relaxed);
            Err(ControlError::not_deployable(format_args!(
                "{what} was not brought back within {} s, and the other apps are not kept waiting; what has come is \
                 kept, and it is tried again: see whether its registry answers",
                bound.as_secs()
            )))
        })
    }
}

/// An image whose blobs are all here.
pub struct Image {
    pub digest: Digest,
    pub manifest: ImageManifest,
    /// The way to its blobs, which keeps in the cache what went through it.
    blobs: Blobs,
    /// The reference that it came from.
    pub reference: Option<Reference>,
}

/// An app, and what keeps its files.
pub struct App {
    pub manifest: Manifest,
    pub files: Files,
    /// By the component's id; nothing is said of those that are not here.
    pub interfaces: BTreeMap<String, Interface>,
    /// Everything that it is made of.
    pub digests: Vec<Digest>,
    pub blobs: Blobs,
    _models: Vec<Pulled>,
}

/// The bytes of a manifest that is to be judged before anything else of the image is fetched.
pub struct Named {
    reference: Reference,
    digest: Digest,
    bytes: Vec<u8>,
    blobs: Blobs,
}

impl Sources {
    pub fn new(config: &Arc<Config>, cache: &Cache) -> Sources {
        Sources {
            config: Arc::clone(config),
            cache: cache.clone(),
            registry: OnceCell::new(),
            again: Again::at_start(),
        }
    }

    async fn registry(&self) -> Result<&Registry, ControlError> {
        let make = async || Registry::new(Options::new(&self.config.registry, false));
        self.registry
            .get_or_try_init(make)
            .await
            .map_err(|error| ControlError::not_deployable(error.to_string()))
    }

    /// Finds out what a reference leads to. One that names a digest need not be asked for where it is here.
    ///
    /// # Errors
    /// Where it is no reference, or the registry does not have it.
    pub async fn find(&self, reference: &str) -> Result<Named, ControlError> {
        let reference: Reference =
            reference.parse().map_err(|error| ControlError::invalid(format!("`{reference}`: {error}")))?;
        let blobs = self.cache.blobs().afresh();
        if let Some(digest) = reference.digest().copied() {
            let store = blobs.clone();
            let kept = blocking(move || store.read(&digest, MAX_MANIFEST_BYTES)).await?;
            if let Some(bytes) = kept.map_err(unreadable)? {
                return Ok(Named { reference, digest, bytes, blobs });
            }
        }
        let found = self.registry().await?.manifest(&reference).await;
        let (digest, bytes) = found.map_err(|error| ControlError::not_deployable(error.to_string()))?;
        Ok(Named { reference, digest, bytes, blobs })
    }

    /// Whether an image may be served: answers the name of the key that signed it, where one has to have.
    ///
    /// # Errors
    /// Where it is not signed as the operator demands.
    pub async fn verify(&self, named: &Named) -> Result<Option<String>, ControlError> {
        let policy = self.policy()?;
        let registry = self.registry().await?;
        let key = verified(Some(registry), &named.blobs, &named.reference, named.digest, &policy).await;
        let key = key.map_err(|error| ControlError::not_signed(error.to_string()))?;
        Ok(key.map(|key| key.name.clone()))
    }

    /// Fetches what is not here yet of an image that was verified.
    ///
    /// # Errors
    /// Where it cannot be fetched.
    pub async fn fetch(&self, named: Named) -> Result<Image, ControlError> {
        let Named { reference, digest, bytes, blobs } = named;
        let pulled = self.registry().await?.pull_manifest(&reference, &bytes, &blobs, &Report::none()).await;
        let pulled = pulled.map_err(|error| ControlError::not_deployable(error.to_string()))?;
        Ok(Image { digest, manifest: pulled.manifest, blobs, reference: Some(reference) })
    }

    /// An image that a client uploaded.
    ///
    /// # Errors
    /// Where the operator does not serve what comes from no registry, or a blob is missing.
    pub async fn uploaded(&self, digest: &str) -> Result<Image, ControlError> {
        let admitted = self.policy()?.admit_local("what is uploaded");
        admitted.map_err(|error| ControlError::not_signed(error.to_string()))?;
        let digest = digest.parse().map_err(|error| ControlError::invalid(format!("{error}")))?;
        self.kept(digest, None).await
    }

    /// An image whose blobs are here, as far as one knows.
    ///
    /// # Errors
    /// Where one of them is not.
    pub async fn kept(&self, digest: Digest, reference: Option<Reference>) -> Result<Image, ControlError> {
        let blobs = self.cache.blobs().afresh();
        let store = blobs.clone();
        let read = long(move || {
            let Some(bytes) = store.read(&digest, MAX_MANIFEST_BYTES).map_err(unreadable)? else {
                return Err(missing(&digest));
            };
            let manifest = ImageManifest::parse(&bytes).map_err(|error| {
                ControlError::invalid(format!("the manifest {digest} cannot be read: {error}"))
            })?;
            for blob in manifest.blobs() {
                if store.get(&blob.digest).map_err(unreadable)?.is_none() {
                    return Err(missing(&blob.digest));
                }
            }
            Ok(manifest)
        });
        let manifest = read.await??;
        Ok(Image { digest, manifest, blobs, reference })
    }

    /// Fetches an image that was deployed here before, and so was verified then.
    ///
    /// # Errors
    /// Where it cannot be had any more.
    pub async fn again(&self, reference: &str, digest: Digest) -> Result<Image, ControlError> {
        let reference: Reference = reference.parse().map_err(ControlError::internal)?;
        let name = reference.at(digest).to_string();
        let fetching = async { self.fetch(self.find(&name).await?).await };
        self.again.in_time(&format!("`{name}`"), fetching).await
    }

    /// As [`app`](Sources::app), of an image that was deployed here before: its models, too, must come in time.
    ///
    /// # Errors
    /// As [`app`](Sources::app).
    pub async fn app_again(
        &self,
        image: &Image,
        variables: &BTreeMap<String, String>,
    ) -> Result<App, ControlError> {
        self.app_of(image, variables, Some(&self.again)).await
    }

    /// The app that an image holds, with these values of its variables.
    ///
    /// # Errors
    /// Where the image is none that can be served, or a model that it names cannot be had.
    pub async fn app(
        &self,
        image: &Image,
        variables: &BTreeMap<String, String>,
    ) -> Result<App, ControlError> {
        self.app_of(image, variables, None).await
    }

    async fn app_of(
        &self,
        image: &Image,
        variables: &BTreeMap<String, String>,
        again: Option<&Again>,
    ) -> Result<App, ControlError> {
        let name = image.reference.as_ref().map_or_else(|| image.digest.to_string(), ToString::to_string);
        let (blobs, layers, variables) = (image.blobs.clone(), image.manifest.clone(), variables.clone());
        let max_unpacked_bytes = self.config.registry.max_artifact_mib << 20;
        let unpacked = long(move || {
            let environment = &config::variable;
            let options = unpack::Options {
                name: &name,
                variables: &variables,
                environment,
                values_required: true,
                max_unpacked_bytes,
            };
            unpack::unpack(&layers, &blobs, &options)
                .map_err(|error| ControlError::not_deployable(format!("`{name}` cannot be served: {error}")))
        });
        let mut unpacked = unpacked.await??;
        let models = self.models(&image.blobs, &mut unpacked.manifest, again).await?;
        let own = image.manifest.blobs().into_iter().map(|blob| blob.digest);
        let of_models = models.iter().flat_map(|model| {
            let blobs = model.manifest.blobs().into_iter().map(|blob| blob.digest);
            blobs.chain([model.digest]).collect::<Vec<_>>()
        });
        let digests: BTreeSet<Digest> = own.chain([image.digest]).chain(of_models).collect();
        let interfaces = unpacked.interfaces.into_iter();
        // What cannot be read says nothing.
        let interfaces = interfaces.filter_map(|(id, value)| Some((id, serde_json::from_value(value).ok()?)));
        Ok(App {
            manifest: unpacked.manifest,
            files: unpacked.files,
            interfaces: interfaces.collect(),
            digests: digests.into_iter().collect(),
            blobs: image.blobs.clone(),
            _models: models,
        })
    }

    /// Brings the models that an app names in registries.
    async fn models(
        &self,
        blobs: &Blobs,
        manifest: &mut Manifest,
        again: Option<&Again>,
    ) -> Result<Vec<Pulled>, ControlError> {
        let mut pulled = Vec::new();
        let mut files = BTreeMap::new();
        let failed = |text: &str, error: &dyn std::fmt::Display| {
            ControlError::not_deployable(format!("model `{text}`: {error}"))
        };
        for (text, encodings) in modelpack::references(manifest) {
            let pulling = async {
                let named = self.find(&text).await?;
                let registry = self.registry().await?;
                // Whoever signed the app signed the digest of its model.
                let (reference, quiet) = (&named.reference, Report::none());
                let image = registry.pull_manifest(reference, &named.bytes, blobs, &quiet).await;
                image.map_err(|error| failed(&text, &error))
            };
            let image = match again {
                Some(again) => again.in_time(&format!("model `{text}`"), pulling).await?,
                None => pulling.await?,
            };
            for encoding in encodings {
                let (blobs, layers) = (blobs.clone(), image.manifest.clone());
                let limit = self.config.registry.max_artifact_mib << 20;
                let found = blocking(move || modelpack::unpack(&layers, encoding, &blobs, limit)).await?;
                files.insert((text.clone(), encoding), found.map_err(|error| failed(&text, &error))?);
            }
            pulled.push(image);
        }
        modelpack::resolve(manifest, &files)
            .map_err(|error| ControlError::not_deployable(error.to_string()))?;
        Ok(pulled)
    }

    fn policy(&self) -> Result<Policy, ControlError> {
        Policy::load(&self.config.signatures).map_err(|error| ControlError::internal(error.to_string()))
    }
}

fn missing(digest: &Digest) -> ControlError {
    ControlError::invalid(format!(
        "the blob {digest} is not here; upload it first (`PUT /v1/blobs/{digest}`)"
    ))
}

fn unreadable(error: BlobError) -> ControlError {
    ControlError::internal(error.to_string())
}

/// Does what reads and writes files where it holds up nobody.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ControlError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| ControlError::internal("a task of the host failed; its log says more".to_owned()))
}

/// Does what reads or writes much of that.
pub async fn long<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, ControlError> {
    background(work).await.map_err(ControlError::internal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_slow_registry_keeps_apps_waiting_once_and_then_for_less() {
        let (first, further) = (Duration::from_millis(100), Duration::from_millis(1));
        let again = Again { first, further, is_late: AtomicBool::new(false) };
        let never = std::future::pending::<Result<(), ControlError>>;
        again.in_time("`a`", async { Ok(()) }).await.unwrap();
        let begun = std::time::Instant::now();
        let error = again.in_time("model `m`", never()).await.unwrap_err().to_string();
        assert!(
            error.contains("model `m` was not brought back") && error.contains("it is tried again"),
            "{error}"
        );
        assert!(begun.elapsed() >= first);
        let begun = std::time::Instant::now();
        again.in_time("`b`", never()).await.unwrap_err();
        assert!(begun.elapsed() < first);
        again.in_time("`c`", async { Ok(()) }).await.unwrap();
    }
}
