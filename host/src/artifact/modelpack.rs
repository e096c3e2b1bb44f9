//! A model alone as a ModelPack artifact, and from one to the files of a model.
//!
//! The files are raw layers, so that they have the same digests as the models in an app's image: a registry and a host
//! keep the weights once.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::json;
use thiserror::Error;

use super::archive::{self, ArchiveError, Compression, Entry};
use super::blobs::{BlobError, Blobs};
use super::locked::shown;
use super::manifest::{Encoding, Manifest, Model};
use super::oci::{Descriptor, Digest, ImageManifest};
use super::package::{PackError, Packed, file_name, packed};
use super::settings;

/// The type of the artifact.
pub const ARTIFACT: &str = "application/vnd.cncf.model.manifest.v1+json";
/// The media type of its config.
pub const CONFIG: &str = "application/vnd.cncf.model.config.v1+json";
/// A file of weights as it is; ONNX files are that too.
const WEIGHT: &str = "application/vnd.cncf.model.weight.v1";
/// A file beside the weights, such as the graph of an OpenVINO model.
const WEIGHT_CONFIG: &str = "application/vnd.cncf.model.weight.config.v1";
/// The path of a layer's file.
const FILE_PATH: &str = "org.cncf.model.filepath";
/// What KitOps calls its own format.
const KITOPS: &str = "application/vnd.kitops.modelkit.";

/// The largest file of a model, in bytes.
const MAX_FILE_BYTES: u64 = 1 << 40;

/// The files of a model, which are blobs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelFiles {
    /// What the author called the file.
    pub name: String,
    pub path: PathBuf,
    /// The weights beside an OpenVINO IR.
    pub weights: Option<PathBuf>,
}

/// Why an artifact is not a model that can be served.
#[derive(Debug, Error)]
pub enum ModelPackError {
    #[error(transparent)]
    Blob(#[from] BlobError),
    #[error("it is not a model: its type is `{0}`, and a ModelPack's is `{ARTIFACT}`")]
    NotAModel(String),
    #[error("it is KitOps' own format; make a ModelPack with `kit pack --use-model-pack`")]
    KitOps,
    #[error("its layer {digest} is `{media_type}`, which is not supported; pack the files of a model raw")]
    Layer { digest: Digest, media_type: String },
    #[error("its layer {0} does not say which file it is (`{FILE_PATH}`)")]
    Nameless(Digest),
    #[error("its layer {digest} has {size} bytes, and {found} are there; pull it again")]
    Size { digest: Digest, size: u64, found: u64 },
    #[error("its layer {0} is not there; pull it again")]
    Missing(Digest),
    #[error("the archive {digest}: {source}")]
    Archive { digest: Digest, source: ArchiveError },
    #[error(
        "its files are {found}: none is `*{ending}`, and the model is to be `encoding = \"{encoding}\"`{advice}"
    )]
    None { found: String, ending: &'static str, encoding: &'static str, advice: &'static str },
    #[error("several of its files are models: {0}; pack one of them alone")]
    Several(String),
    #[error("`{0}` is a model without its weights, and there is no `.bin` of the same name beside it")]
    NoWeights(String),
    #[error("model `{name}` of component `{id}` is `{reference}`, which has not been pulled")]
    NotPulled { id: String, name: String, reference: String },
}

/// Packs the model in the file at `path`, with its `weights` if it is an OpenVINO IR.
///
/// # Errors
/// Where it cannot be read or kept.
pub fn pack(path: &Path, weights: Option<&Path>, blobs: &Blobs) -> Result<Packed, PackError> {
    let mut layers = Vec::new();
    let name = file_name(path)?;
    let media_type = if weights.is_some() { WEIGHT_CONFIG } else { WEIGHT };
    let stem = Path::new(&name).file_stem().and_then(|stem| stem.to_str()).unwrap_or(&name).to_owned();
    let files = std::iter::once((path, name, media_type));
    let weights = weights.map(|weights| (weights, format!("{stem}.bin"), WEIGHT));
    for (path, name, media_type) in files.chain(weights) {
        let kept = blobs.put_file(path, MAX_FILE_BYTES);
        let (digest, size) = kept.map_err(PackError::blob(format!("`{}`", path.display())))?;
        let mut layer = Descriptor::new(&format!("{media_type}.raw"), digest, size).titled(&name);
        layer.annotations.insert(FILE_PATH.to_owned(), name);
        layers.push(layer);
    }
    let format = if layers.len() > 1 { Encoding::Openvino } else { Encoding::Onnx };
    let digests: Vec<Digest> = layers.iter().map(|layer| layer.digest).collect();
    let config = json!({
        "descriptor": {"name": stem},
        "config": {"format": settings::encoding(format)},
        "modelfs": {"type": "layers", "diffIds": digests},
    });
    let config = config.to_string();
    let digest = blobs.put(config.as_bytes()).map_err(PackError::blob("the config"))?;
    let config = Descriptor::new(CONFIG, digest, config.len() as u64);
    let mut manifest = ImageManifest::new(config, layers);
    manifest.artifact_type = Some(ARTIFACT.to_owned());
    packed(manifest, Vec::new(), blobs)
}

/// Whether the artifact is a model alone.
pub fn is_model(manifest: &ImageManifest) -> bool {
    manifest.artifact_type.as_deref() == Some(ARTIFACT) || manifest.config.media_type == CONFIG
}

/// The layers of a model that are needed to serve it: documentation and code are not.
///
/// # Errors
/// Where the artifact is not a model.
pub fn layers(manifest: &ImageManifest) -> Result<Vec<&Descriptor>, ModelPackError> {
    if !is_model(manifest) {
        let media_type = manifest.artifact_type.as_deref().unwrap_or(&manifest.config.media_type);
        return Err(match manifest.config.media_type.starts_with(KITOPS) {
            true => ModelPackError::KitOps,
            false => ModelPackError::NotAModel(shown(media_type)),
        });
    }
    let is_needed = |layer: &&Descriptor| kind(&layer.media_type).is_some();
    Ok(manifest.layers.iter().filter(is_needed).collect())
}

/// How a layer of weights, or beside them, is packed.
fn kind(media_type: &str) -> Option<&str> {
    let rest = [WEIGHT_CONFIG, WEIGHT].iter().find_map(|prefix| media_type.strip_prefix(prefix));
    rest?.strip_prefix('.')
}

/// Finds the model of this encoding among the layers of `manifest`, which are there. Archives among them may
/// unpack to at most `max_unpacked_bytes` together.
///
/// # Errors
/// Where the artifact is not a model, not whole, or has no such model or several.
pub fn unpack(
    manifest: &ImageManifest,
    encoding: Encoding,
    blobs: &Blobs,
    max_unpacked_bytes: u64,
) -> Result<ModelFiles, ModelPackError> {
    let mut files: BTreeMap<String, Digest> = BTreeMap::new();
    let mut left = max_unpacked_bytes;
    for layer in layers(manifest)? {
        let path = blobs.get(&layer.digest)?.ok_or(ModelPackError::Missing(layer.digest))?;
        let found = path.metadata().map_or(0, |metadata| metadata.len());
        if found != layer.size {
            return Err(ModelPackError::Size { digest: layer.digest, size: layer.size, found });
        }
        let compression = match kind(&layer.media_type) {
            Some("raw") => {
                let name = layer.annotations.get(FILE_PATH).map(String::as_str).or(layer.title());
                let name = name.ok_or(ModelPackError::Nameless(layer.digest))?;
                files.insert(name.to_owned(), layer.digest);
                continue;
            }
            Some("tar") => Compression::None,
            Some("tar+gzip") => Compression::Gzip,
            _ => {
                let media_type = shown(&layer.media_type);
                return Err(ModelPackError::Layer { digest: layer.digest, media_type });
            }
        };
        let failed = |source| ModelPackError::Archive { digest: layer.digest, source };
        let entries = archive::list(&path, compression, left).map_err(failed)?;
        let is_model = |entry: &Entry| [".onnx", ".xml", ".bin"].iter().any(|end| entry.path.ends_with(end));
        archive::keep(&path, compression, left, &entries, &is_model, blobs).map_err(failed)?;
        left = left.saturating_sub(archive::size(&entries));
        files.extend(entries.into_iter().map(|entry| (entry.path, entry.digest)));
    }
    choose(&files, encoding, blobs)
}

fn choose(
    files: &BTreeMap<String, Digest>,
    encoding: Encoding,
    blobs: &Blobs,
) -> Result<ModelFiles, ModelPackError> {
    let (ending, other) = match encoding {
        Encoding::Onnx => (".onnx", ".xml"),
        Encoding::Openvino => (".xml", ".onnx"),
    };
    let models: Vec<_> = files.iter().filter(|(name, _)| name.ends_with(ending)).collect();
    let (name, digest) = match models.as_slice() {
        [model] => *model,
        [] => {
            let advice = match (encoding, files.keys().any(|name| name.ends_with(other))) {
                (Encoding::Onnx, true) => "; add `encoding = \"openvino\"`",
                (Encoding::Openvino, true) => "; write `encoding = \"onnx\"`",
                (_, false) => "",
            };
            let encoding = settings::encoding(encoding);
            return Err(ModelPackError::None { found: list(files.keys()), ending, encoding, advice });
        }
        several => return Err(ModelPackError::Several(list(several.iter().map(|(name, _)| *name)))),
    };
    let path = |digest: &Digest| blobs.get(digest)?.ok_or(ModelPackError::Missing(*digest));
    let weights = match encoding {
        Encoding::Onnx => None,
        Encoding::Openvino => {
            let weights = files.get(&format!("{}.bin", name.strip_suffix(ending).unwrap_or(name)));
            Some(path(weights.ok_or_else(|| ModelPackError::NoWeights(shown(name)))?)?)
        }
    };
    let own = name.rsplit('/').next().unwrap_or(name);
    Ok(ModelFiles { name: own.to_owned(), path: path(digest)?, weights })
}

fn list<'n>(names: impl Iterator<Item = &'n String>) -> String {
    let names: Vec<_> = names.take(16).map(|name| format!("`{}`", shown(name))).collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

/// The references of the models that `app` has in registries, each with the encodings in which it is wanted.
pub fn references(app: &Manifest) -> BTreeMap<String, BTreeSet<Encoding>> {
    let mut references: BTreeMap<String, BTreeSet<Encoding>> = BTreeMap::new();
    let models = app.components.iter().flat_map(|component| component.models.values());
    for model in models.filter(|model| is_elsewhere(model)) {
        let reference = model.reference.clone().unwrap_or_default();
        references.entry(reference).or_default().insert(model.encoding);
    }
    references
}

/// Whether a model is only named by its reference so far.
fn is_elsewhere(model: &Model) -> bool {
    model.reference.is_some() && model.path.as_os_str().is_empty()
}

/// Puts files in the place of references.
///
/// # Errors
/// The first reference that is not among `pulled`.
pub fn resolve(
    app: &mut Manifest,
    pulled: &BTreeMap<(String, Encoding), ModelFiles>,
) -> Result<(), ModelPackError> {
    for component in &mut app.components {
        for (name, model) in component.models.iter_mut().filter(|(_, model)| is_elsewhere(model)) {
            let reference = model.reference.clone().unwrap_or_default();
            let files = pulled.get(&(reference.clone(), model.encoding)).cloned();
            let (id, name) = (component.id.clone(), name.clone());
            let files = files.ok_or(ModelPackError::NotPulled { id, name, reference })?;
            model.path = files.path;
            model.weights = files.weights;
            model.file_name = Some(files.name);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::artifact::manifest::Options;

    fn store() -> (tempfile::TempDir, Blobs) {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in [("digits.onnx", "a model"), ("net.xml", "<net/>"), ("other.bin", "weights")] {
            fs::write(dir.path().join(name), text).unwrap();
        }
        let blobs = Blobs::open(&dir.path().join("cache"), 0).unwrap();
        (dir, blobs)
    }

    /// A ModelPack of others: layers of these types, with these paths and contents.
    fn made(blobs: &Blobs, layers: &[(&str, &str, &[u8])]) -> ImageManifest {
        let layer = |(media_type, path, bytes): &(&str, &str, &[u8])| {
            let digest = blobs.put(bytes).unwrap();
            let media_type = format!("application/vnd.cncf.model.{media_type}");
            let mut layer = Descriptor::new(&media_type, digest, bytes.len() as u64);
            if !path.is_empty() {
                layer.annotations.insert(FILE_PATH.to_owned(), (*path).to_owned());
            }
            layer
        };
        let config = Descriptor::new(CONFIG, blobs.put(b"{}").unwrap(), 2);
        let mut manifest = ImageManifest::new(config, layers.iter().map(layer).collect());
        manifest.artifact_type = Some(ARTIFACT.to_owned());
        manifest
    }

    fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut archive = tar::Builder::new(Vec::new());
        for (path, bytes) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            archive.append_data(&mut header, path, *bytes).unwrap();
        }
        archive.into_inner().unwrap()
    }

    const LIMIT: u64 = 1 << 20;

    #[test]
    fn a_model_is_packed_and_unpacked() {
        let (dir, blobs) = store();
        let packed = pack(&dir.path().join("digits.onnx"), None, &blobs).unwrap();
        let manifest = &packed.manifest;
        let [layer] = manifest.layers.as_slice() else { panic!("one layer") };
        assert_eq!(layer.media_type, "application/vnd.cncf.model.weight.v1.raw");
        // The digest of the file, so that the layer is the one of an app's image.
        assert_eq!(
            (layer.digest, layer.annotations[FILE_PATH].as_str()),
            (Digest::of(b"a model"), "digits.onnx")
        );
        let config = blobs.read(&manifest.config.digest, LIMIT).unwrap().unwrap();
        let expected = json!({
            "descriptor": {"name": "digits"},
            "config": {"format": "onnx"},
            "modelfs": {"type": "layers", "diffIds": [layer.digest]},
        });
        assert_eq!(serde_json::from_slice::<serde_json::Value>(&config).unwrap(), expected);
        assert_eq!(ImageManifest::parse(&manifest.bytes()).unwrap().artifact_type.as_deref(), Some(ARTIFACT));
        let files = unpack(manifest, Encoding::Onnx, &blobs, LIMIT).unwrap();
        assert_eq!((files.name.as_str(), files.weights), ("digits.onnx", None));
        assert_eq!(fs::read_to_string(files.path).unwrap(), "a model");

        let weights = dir.path().join("other.bin");
        let packed = pack(&dir.path().join("net.xml"), Some(&weights), &blobs).unwrap();
        let names: Vec<_> = packed.manifest.layers.iter().filter_map(Descriptor::title).collect();
        assert_eq!(names, ["net.xml", "net.bin"]);
        let files = unpack(&packed.manifest, Encoding::Openvino, &blobs, LIMIT).unwrap();
        assert_eq!(fs::read_to_string(files.weights.unwrap()).unwrap(), "weights");
        let error = unpack(&packed.manifest, Encoding::Onnx, &blobs, LIMIT).unwrap_err().to_string();
        assert!(
            error.contains("`net.bin`, `net.xml`") && error.contains("add `encoding = \"openvino\"`"),
            "{error}"
        );
    }

    #[test]
    fn models_that_others_packed_are_unpacked() {
        let (_dir, blobs) = store();
        let packed = archive(&[("model/a.onnx", b"packed"), ("model/README.md", b"hello")]);
        for (media_type, bytes) in [("weight.v1.tar", packed.clone()), ("weight.v1.tar+gzip", gzip(&packed))]
        {
            let layers: [(_, _, &[u8]); 2] = [(media_type, "model", &bytes), ("doc.v1.tar+zstd", "x", b"?")];
            let files = unpack(&made(&blobs, &layers), Encoding::Onnx, &blobs, LIMIT).unwrap();
            assert_eq!(fs::read_to_string(files.path).unwrap(), "packed");
            assert_eq!(files.name, "a.onnx");
        }
        // What is not needed is not kept.
        assert_eq!(blobs.get(&Digest::of(b"hello")).unwrap(), None);
        let layers: [(_, _, &[u8]); 2] =
            [("weight.config.v1.raw", "ir/m.xml", b"<net/>"), ("weight.v1.raw", "ir/m.bin", b"weights")];
        let files = unpack(&made(&blobs, &layers), Encoding::Openvino, &blobs, LIMIT).unwrap();
        assert_eq!(fs::read_to_string(files.weights.unwrap()).unwrap(), "weights");
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut encoder, bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn what_is_no_model_says_why() {
        let (_dir, blobs) = store();
        let check = |layers: &[(&str, &str, &[u8])], expected: &str| {
            let manifest = made(&blobs, layers);
            let error = unpack(&manifest, Encoding::Onnx, &blobs, LIMIT).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        check(&[], "its files are none: none is `*.onnx`");
        check(&[("weight.v1.raw", "a.safetensors", b"x")], "its files are `a.safetensors`");
        check(&[("weight.v1.raw", "", b"x")], "does not say which file it is");
        check(&[("weight.v1.tar+zstd", "a.onnx", b"x")], "model.weight.v1.tar+zstd`, which is not supported");
        check(
            &[("weight.v1.raw", "a.onnx", b"x"), ("weight.v1.raw", "b.onnx", b"y")],
            "several of its files",
        );
        check(
            &[("weight.v1.tar", "a", &archive(&[("a.onnx", &[0; 2 << 20])]))],
            "it unpacks to more than 1 MiB",
        );
        let half = |name: &str| archive(&[(name, &[0; 600 << 10])]);
        check(
            &[("weight.v1.tar", "a", &half("a.onnx")), ("weight.v1.tar", "b", &half("b.md"))],
            "it unpacks to more than",
        );
        let mut manifest = made(&blobs, &[("weight.v1.raw", "a.xml", b"x")]);
        let error = |manifest: &ImageManifest| {
            unpack(manifest, Encoding::Openvino, &blobs, LIMIT).unwrap_err().to_string()
        };
        assert!(error(&manifest).contains("a model without its weights"));
        manifest.layers[0].size = 2;
        assert!(error(&manifest).contains("has 2 bytes, and 1 are there"));
        manifest.layers[0].digest = Digest::of(b"gone");
        assert!(error(&manifest).contains("is not there; pull it again"));
        manifest.artifact_type = None;
        "application/vnd.kitops.modelkit.config.v1+json".clone_into(&mut manifest.config.media_type);
        assert!(error(&manifest).contains("`kit pack --use-model-pack`"));
        "application/vnd.oci.image.config.v1+json".clone_into(&mut manifest.config.media_type);
        assert!(error(&manifest).contains("it is not a model"));
    }

    #[test]
    fn references_are_listed_and_replaced() {
        let digest = Digest::of(b"");
        let text = format!(
            "spin_manifest_version = 2\n[application]\nname = \"a\"\n[component.c.tool.tenon]\n\
             models.m.reference = \"example.com/m@{digest}\"\n"
        );
        let none = BTreeMap::new();
        let options =
            Options { profile: None, variables: &none, environment: &|_| None, values_required: true };
        let mut app = Manifest::parse(&text, Path::new("spin.toml"), &options).unwrap();
        let wanted = references(&app);
        let reference = format!("example.com/m@{digest}");
        assert_eq!(wanted[&reference], BTreeSet::from([Encoding::Onnx]));
        let error = resolve(&mut app, &BTreeMap::new()).unwrap_err().to_string();
        assert!(error.contains("has not been pulled"), "{error}");
        let files = ModelFiles { name: "m.onnx".to_owned(), path: "/blob".into(), weights: None };
        resolve(&mut app, &BTreeMap::from([((reference, Encoding::Onnx), files)])).unwrap();
        assert!(references(&app).is_empty());
        let model = &app.components[0].models["m"];
        assert_eq!((model.path.as_path(), model.file_name.as_deref()), (Path::new("/blob"), Some("m.onnx")));
    }
}
