//! How signatures lie in a registry: as the layers of an image under a tag that is made of the artifact's digest.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use super::keys::TrustedKey;
use super::{MAX_PAYLOAD_BYTES, MAX_SIGNATURE_BYTES, Signed};
use crate::artifact::oci::{Descriptor, Digest, IMAGE_CONFIG, ImageManifest};

/// The media type of a payload.
pub const PAYLOAD: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
/// The annotation that holds a signature, in base64.
pub const SIGNATURE: &str = "dev.cosignproject.cosign/signature";
/// The most signatures of one artifact that are looked at, and that are kept together.
pub const MAX_SIGNATURES: usize = 64;

/// The tag under which the signatures of an artifact lie, in the artifact's own repository.
pub fn tag(digest: Digest) -> String {
    format!("sha256-{}.sig", digest.hex())
}

/// The layers of an image that may be signatures, at most [`MAX_SIGNATURES`]. The payload of each has yet to be got.
pub fn layers(image: &ImageManifest) -> Vec<&Descriptor> {
    let fits = |layer: &&Descriptor| {
        let signature = layer.annotations.get(SIGNATURE);
        layer.media_type == PAYLOAD
            && layer.size <= MAX_PAYLOAD_BYTES
            && signature.is_some_and(|text| text.len() <= MAX_SIGNATURE_BYTES * 4 / 3 + 4)
    };
    image.layers.iter().filter(fits).take(MAX_SIGNATURES).collect()
}

/// The signature of a layer whose payload was got; `None` where the layer holds none or the payload is another.
pub fn signed(layer: &Descriptor, payload: Vec<u8>) -> Option<Signed> {
    let signature = STANDARD.decode(layer.annotations.get(SIGNATURE)?).ok()?;
    (Digest::of(&payload) == layer.digest).then_some(Signed { payload, signature })
}

/// An image, and the blobs that must be in the registry before it.
#[derive(Debug)]
pub struct Addition {
    pub manifest: ImageManifest,
    pub config: Vec<u8>,
    pub payload: Vec<u8>,
}

/// The image with one more signature, made by `key`; `None` where that key has signed the same payload before.
///
/// # Errors
/// Where the image is full.
pub fn add(
    image: Option<&ImageManifest>,
    key: &TrustedKey,
    signed: &Signed,
) -> Result<Option<Addition>, Full> {
    let digest = Digest::of(&signed.payload);
    let mut kept = image.map(|image| image.layers.clone()).unwrap_or_default();
    let same = |layer: &Descriptor| {
        let signature = layer.annotations.get(SIGNATURE).and_then(|text| STANDARD.decode(text).ok());
        layer.digest == digest && signature.is_some_and(|signature| key.signed(&signed.payload, &signature))
    };
    if kept.iter().any(same) {
        return Ok(None);
    }
    if kept.len() >= MAX_SIGNATURES {
        return Err(Full(kept.len()));
    }
    let mut layer = Descriptor::new(PAYLOAD, digest, signed.payload.len() as u64);
    layer.annotations.insert(SIGNATURE.to_owned(), STANDARD.encode(&signed.signature));
    kept.push(layer);
    let config = config(&kept);
    let descriptor = Descriptor::new(IMAGE_CONFIG, Digest::of(&config), config.len() as u64);
    let mut manifest = ImageManifest::new(descriptor, kept);
    if let Some(image) = image {
        manifest.annotations.clone_from(&image.annotations);
    }
    Ok(Some(Addition { manifest, config, payload: signed.payload.clone() }))
}

/// No further signature has room.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "the artifact has {0} signatures, of which only {MAX_SIGNATURES} are looked at; remove the image under its `.sig` tag from the registry, and sign anew"
)]
pub struct Full(usize);

/// The config of an image of these layers, without a time, so that the same signatures are the same image.
fn config(layers: &[Descriptor]) -> Vec<u8> {
    let digests: Vec<_> = layers.iter().map(|layer| layer.digest).collect();
    let history: Vec<_> = layers.iter().map(|_| json!({ "created": "0001-01-01T00:00:00Z" })).collect();
    let config = json!({
        "architecture": "",
        "config": {},
        "created": "0001-01-01T00:00:00Z",
        "history": history,
        "os": "",
        "rootfs": { "type": "layers", "diff_ids": digests },
    });
    serde_json::to_vec(&config).expect("strings are JSON")
}
