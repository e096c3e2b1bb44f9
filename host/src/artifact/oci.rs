//! What is the same in every OCI artifact: digests, descriptors, the image manifest, and the words in them.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use thiserror::Error;

/// The media type of an OCI image manifest.
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// The media type of an OCI image index.
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// The media type of an OCI image's config.
pub const IMAGE_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// The annotation of a layer that tells what file it is; `oras` writes layers under it.
pub const TITLE: &str = "org.opencontainers.image.title";

/// The largest manifest or config that is read, in bytes: registries take no larger manifests.
pub const MAX_MANIFEST_BYTES: u64 = 4 << 20;
/// The most layers of one artifact.
pub const MAX_LAYERS: usize = 4096;

/// A SHA-256 digest, shown as `sha256:` and 64 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

/// Why a text is no digest.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("`{0}` is not a digest; write `sha256:` and 64 lower-case hex digits")]
pub struct NotADigest(String);

impl Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Digest {
        Digest(Sha256::digest(bytes).into())
    }

    /// The digest that a hash came to.
    pub fn from_hash(hash: Sha256) -> Digest {
        Digest(hash.finalize().into())
    }

    /// The 32 bytes alone.
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The 64 hex digits alone, as they stand in file names.
    pub fn hex(&self) -> String {
        self.0.iter().fold(String::with_capacity(64), |mut hex, byte| {
            use fmt::Write as _;
            let _ = write!(hex, "{byte:02x}");
            hex
        })
    }
}

impl FromStr for Digest {
    type Err = NotADigest;

    fn from_str(text: &str) -> Result<Digest, NotADigest> {
        let wrong = || NotADigest(text.chars().take(100).collect());
        let hex = text.strip_prefix("sha256:").filter(|hex| hex.len() == 64).ok_or_else(wrong)?;
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
            let digit = |c: u8| match c {
                b'0'..=b'9' => Some(c - b'0'),
                b'a'..=b'f' => Some(c - b'a' + 10),
                _ => None,
            };
            let [high, low] = [digit(pair[0]), digit(pair[1])];
            *byte = high.zip(low).map(|(high, low)| high << 4 | low).ok_or_else(wrong)?;
        }
        Ok(Digest(bytes))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Digest, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// What points at one blob: a layer, a config, a manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    pub media_type: String,
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Descriptor {
    /// A descriptor without annotations.
    pub fn new(media_type: &str, digest: Digest, size: u64) -> Descriptor {
        let annotations = BTreeMap::new();
        Descriptor { media_type: media_type.to_owned(), digest, size, artifact_type: None, annotations }
    }

    /// The same, titled.
    #[must_use]
    pub fn titled(mut self, title: &str) -> Descriptor {
        self.annotations.insert(TITLE.to_owned(), title.to_owned());
        self
    }

    /// The file that it is, by its annotation.
    pub fn title(&self) -> Option<&str> {
        self.annotations.get(TITLE).map(String::as_str)
    }
}

/// An OCI image manifest. Its bytes are what has a digest: keep them beside this.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageManifest {
    pub schema_version: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    pub config: Descriptor,
    #[serde(default)]
    pub layers: Vec<Descriptor>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// Why bytes are no manifest that is taken.
#[derive(Debug, Error)]
pub enum ManifestError {
    #[error("it is not an OCI image manifest: {0}")]
    Json(#[from] serde_json::Error),
    #[error("it is an index of several images, not an image; name one of them by its digest")]
    Index,
    #[error("its schema version is {0}, not 2")]
    Version(u32),
    #[error("it has {0} layers, more than {MAX_LAYERS}")]
    Layers(usize),
    #[error("it has {0} bytes, more than {MAX_MANIFEST_BYTES}")]
    Large(usize),
}

impl ImageManifest {
    /// An OCI image manifest of these parts.
    pub fn new(config: Descriptor, layers: Vec<Descriptor>) -> ImageManifest {
        ImageManifest {
            schema_version: 2,
            media_type: Some(MANIFEST.to_owned()),
            artifact_type: None,
            config,
            layers,
            subject: None,
            annotations: BTreeMap::new(),
        }
    }

    /// Reads the bytes of a manifest.
    ///
    /// # Errors
    /// Where they are too many, not an image manifest of schema version 2, or it has too many layers.
    pub fn parse(bytes: &[u8]) -> Result<ImageManifest, ManifestError> {
        #[derive(Deserialize)]
        struct Outline {
            manifests: Option<serde::de::IgnoredAny>,
        }
        if bytes.len() as u64 > MAX_MANIFEST_BYTES {
            return Err(ManifestError::Large(bytes.len()));
        }
        if serde_json::from_slice::<Outline>(bytes)?.manifests.is_some() {
            return Err(ManifestError::Index);
        }
        let manifest: ImageManifest = serde_json::from_slice(bytes)?;
        if manifest.schema_version != 2 {
            return Err(ManifestError::Version(manifest.schema_version));
        }
        if manifest.layers.len() > MAX_LAYERS {
            return Err(ManifestError::Layers(manifest.layers.len()));
        }
        Ok(manifest)
    }

    /// The bytes of this manifest, the same every time.
    pub fn bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("strings and numbers are JSON")
    }

    /// The config and the layers, each blob once.
    pub fn blobs(&self) -> Vec<&Descriptor> {
        let mut seen = std::collections::BTreeSet::new();
        std::iter::once(&self.config).chain(&self.layers).filter(|blob| seen.insert(blob.digest)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_read_and_shown() {
        let empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Digest::of(b"").to_string(), empty);
        assert_eq!(empty.parse(), Ok(Digest::of(b"")));
        let check = |text: &str| assert!(text.parse::<Digest>().is_err(), "{text}");
        check("");
        check("sha256:");
        check("sha512:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        check(&empty.to_uppercase());
        check(&empty.replace('e', "é"));
        check(&empty[..70]);
    }

    #[test]
    fn a_manifest_is_read_and_written() {
        let layer = Descriptor::new("application/wasm", Digest::of(b"layer"), 5).titled("a.wasm");
        let config = Descriptor::new(IMAGE_CONFIG, Digest::of(b"{}"), 2);
        let manifest = ImageManifest::new(config, vec![layer.clone(), layer]);
        assert_eq!(ImageManifest::parse(&manifest.bytes()).unwrap(), manifest);
        assert_eq!(manifest.blobs().len(), 2);
        let check = |text: &str, expected: &str| {
            let error = ImageManifest::parse(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        };
        check("", "not an OCI image manifest");
        check(r#"{"schemaVersion": 2, "manifests": []}"#, "index of several images");
        let text = String::from_utf8(manifest.bytes()).unwrap();
        check(&text.replace(":2,", ":1,"), "schema version is 1");
        check(&text.replace("\"size\":5", "\"size\":-5"), "not an OCI image manifest");
        check(&text.replace("sha256:", "sha256:x"), "not a digest");
    }
}
