//! Signatures on their way: to a registry when an artifact is signed, and from it, by way of the cache, when one is to
//! be served.

use thiserror::Error;

use super::image::{self, Addition, Full};
use super::keys::{Key, KeyError, TrustedKey};
use super::policy::{Demand, Policy, PolicyError};
use super::{MAX_PAYLOAD_BYTES, SignatureError, Signed, sign, verify};
use crate::artifact::blobs::{BlobError, Blobs};
use crate::artifact::oci::{Descriptor, Digest, ImageManifest, MAX_MANIFEST_BYTES, ManifestError};
use crate::artifact::reference::Reference;
use crate::artifact::registry::{Registry, RegistryError, Report};

/// Why an artifact was not signed.
#[derive(Debug, Error)]
pub enum SignError {
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(transparent)]
    Registry(#[from] RegistryError),
    #[error(transparent)]
    Blobs(#[from] BlobError),
    #[error(transparent)]
    Full(#[from] Full),
    #[error(
        "what lies under `{reference}` is not an image of signatures: {error}; remove it from the registry"
    )]
    Image { reference: String, error: ManifestError },
}

/// Why an artifact may not be served.
#[derive(Debug, Error)]
pub enum VerifyError {
    #[error(transparent)]
    Policy(#[from] PolicyError),
    #[error("`{reference}` may not be served: {error}")]
    Signature { reference: String, error: SignatureError },
    #[error(
        "the signatures of `{reference}` cannot be had, and none that is trusted is in the cache: {error}"
    )]
    Registry { reference: String, error: Box<RegistryError> },
    #[error("the signatures of `{reference}` are not in the cache, and no registry is asked")]
    Offline { reference: String },
    #[error(transparent)]
    Blobs(#[from] BlobError),
}

/// Where an artifact's signatures lie.
pub fn reference(artifact: &Reference, digest: Digest) -> Reference {
    artifact.tagged(&image::tag(digest)).expect("hex digits make a tag")
}

/// A repository with its registry, as payloads and policies have it.
fn repository(artifact: &Reference) -> String {
    format!("{}/{}", artifact.registry(), artifact.repository())
}

/// Signs an artifact that the registry has, and puts the signature beside it. Answers where it lies, and whether it is
/// new: who has signed the artifact before does not do so again.
///
/// Two who sign one artifact at the same moment may undo each other's work, as with cosign: registries have no way
/// around it.
///
/// # Errors
/// Where the registry refuses, or the artifact has too many signatures.
pub async fn push(
    registry: &Registry,
    blobs: &Blobs,
    artifact: &Reference,
    digest: Digest,
    key: &Key,
) -> Result<(Reference, bool), SignError> {
    let place = reference(artifact, digest);
    let signed = sign(key, &repository(artifact), digest)?;
    let there = match registry.manifest(&place).await {
        Ok((_, bytes)) => {
            let failed = |error| SignError::Image { reference: place.to_string(), error };
            Some(ImageManifest::parse(&bytes).map_err(failed)?)
        }
        Err(RegistryError::NoManifest { .. }) => None,
        Err(error) => return Err(error.into()),
    };
    let Some(addition) = image::add(there.as_ref(), &key.public("signer"), &signed)? else {
        return Ok((place, false));
    };
    let Addition { manifest, config, payload } = addition;
    // A push looks for every blob in the store, also for those that the registry has.
    let others: Vec<_> = there.map(|image| image.layers).unwrap_or_default();
    let held = manifest.blobs().into_iter().map(|blob| blob.digest).collect::<Vec<_>>();
    let store = blobs.clone();
    let _hold = blocking(move || store.hold(held)).await?;
    registry.fetch(&place, &others, blobs, &Report::none()).await?;
    let store = blobs.clone();
    blocking(move || store.put(&config).and_then(|_| store.put(&payload))).await?;
    registry.push(&place, &manifest, blobs, &Report::none()).await?;
    Ok((place, true))
}

/// Whether an artifact may be served, by the operator's policy: who signed it, or `None` where nobody needs to have.
/// To be asked before anything of the artifact is used.
///
/// The signatures come from the registry; where that cannot be asked, or there is none to ask, from the cache, which
/// keeps them from the last time that this succeeded.
///
/// # Errors
/// Where it may not be served.
pub async fn verified<'p>(
    registry: Option<&Registry>,
    blobs: &Blobs,
    artifact: &Reference,
    digest: Digest,
    policy: &'p Policy,
) -> Result<Option<&'p TrustedKey>, VerifyError> {
    let repository = repository(artifact);
    let Demand::Signed { keys, same_repository } = policy.demand(&repository)? else { return Ok(None) };
    let identity = same_repository.then_some(repository.as_str());
    let place = reference(artifact, digest);
    let judge = |signatures: &[Signed]| {
        verify(&keys, digest, signatures, identity)
            .map_err(|error| VerifyError::Signature { reference: artifact.to_string(), error })
    };
    let Some(registry) = registry else {
        let kept = kept(blobs, &place).await?;
        return judge(&kept.ok_or_else(|| VerifyError::Offline { reference: artifact.to_string() })?)
            .map(Some);
    };
    let error = match gather(registry, blobs, &place).await {
        Ok(gathered) => {
            let key = judge(&gathered.signatures)?;
            if let Some(manifest) = gathered.manifest {
                let (store, name) = (blobs.clone(), place.to_string());
                blocking(move || store.put(&manifest).and_then(|digest| store.remember(&name, &digest)))
                    .await?;
            }
            return Ok(Some(key));
        }
        Err(error) => error,
    };
    match kept(blobs, &place).await?.map(|signatures| judge(&signatures)) {
        Some(Ok(key)) => {
            tracing::warn!(%error, "the signatures of `{artifact}` were taken from the cache");
            Ok(Some(key))
        }
        _ => Err(VerifyError::Registry { reference: artifact.to_string(), error: Box::new(error) }),
    }
}

/// The signatures that a registry has under the reference of an artifact's signatures, whoever made them.
///
/// # Errors
/// Where the registry cannot be asked.
pub async fn signatures(
    registry: &Registry,
    blobs: &Blobs,
    place: &Reference,
) -> Result<Vec<Signed>, RegistryError> {
    Ok(gather(registry, blobs, place).await?.signatures)
}

/// What a registry has of signatures.
struct Gathered {
    /// The image's bytes, if there is one.
    manifest: Option<Vec<u8>>,
    signatures: Vec<Signed>,
}

async fn gather(registry: &Registry, blobs: &Blobs, place: &Reference) -> Result<Gathered, RegistryError> {
    let bytes = match registry.manifest(place).await {
        Ok((_, bytes)) => bytes,
        Err(RegistryError::NoManifest { .. }) => {
            return Ok(Gathered { manifest: None, signatures: Vec::new() });
        }
        Err(error) => return Err(error),
    };
    let parsed = ImageManifest::parse(&bytes);
    let image = parsed.map_err(|error| RegistryError::Manifest { reference: place.to_string(), error })?;
    let layers: Vec<_> = image::layers(&image).into_iter().cloned().collect();
    let digests: Vec<_> = layers.iter().map(|layer| layer.digest).collect();
    let store = blobs.clone();
    let _hold = blocking(move || store.hold(digests)).await?;
    let mut failure = None;
    for layer in &layers {
        // One that is broken does not make the others worth less.
        if let Err(error) = registry.fetch(place, std::slice::from_ref(layer), blobs, &Report::none()).await {
            failure = Some(error);
        }
    }
    let signatures = read(blobs, layers).await?;
    match failure {
        Some(error) if signatures.is_empty() => Err(error),
        _ => Ok(Gathered { manifest: Some(bytes), signatures }),
    }
}

/// The signatures that the cache has; `None` where it never had any.
async fn kept(blobs: &Blobs, place: &Reference) -> Result<Option<Vec<Signed>>, BlobError> {
    let (store, name) = (blobs.clone(), place.to_string());
    let image = blocking(move || {
        let Some(digest) = store.remembered(&name)? else { return Ok(None) };
        store.read(&digest, MAX_MANIFEST_BYTES)
    });
    let Some(bytes) = image.await? else { return Ok(None) };
    let Ok(image) = ImageManifest::parse(&bytes) else { return Ok(None) };
    let layers = image::layers(&image).into_iter().cloned().collect();
    read(blobs, layers).await.map(Some)
}

/// The signatures of the layers whose payloads are in the store.
async fn read(blobs: &Blobs, layers: Vec<Descriptor>) -> Result<Vec<Signed>, BlobError> {
    let store = blobs.clone();
    blocking(move || {
        let mut signatures = Vec::new();
        for layer in &layers {
            if let Some(payload) = store.read(&layer.digest, MAX_PAYLOAD_BYTES)? {
                signatures.extend(image::signed(layer, payload));
            }
        }
        Ok(signatures)
    })
    .await
}

/// Work on files, away from the async threads.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
