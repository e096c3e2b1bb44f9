//! From an image to an app that can be deployed: an app that Tenon or Spin pushed, or a component alone.
//!
//! The locked app becomes the manifest that it once was, and is read by the same rules. The content is left where it
//! is, in the store of blobs; nothing is written elsewhere, whatever an image calls its files.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use thiserror::Error;

use super::archive::{self, ArchiveError, Compression};
use super::blobs::{BlobError, Blobs};
use super::locked::{self, LockedApp, LockedError, shown};
use super::manifest::{self, FileMount, Files, Manifest, ManifestErrors, Source};
use super::modelpack;
use super::oci::{Descriptor, Digest, ImageManifest};
use super::sample;
use super::settings::{self, Blob, Settings, SettingsError};
use super::wasm::{Outline, WasmError};

mod document;
mod local;
mod own_settings;
#[cfg(test)]
mod tests;

pub use local::{Local, locked_app};

/// What unpacking depends on besides the image.
pub struct Options<'a> {
    /// How people know the app: its reference, or its file.
    pub name: &'a str,
    /// Values of app variables; they go before the environment's and the defaults.
    pub variables: &'a BTreeMap<String, String>,
    /// The environment's value of an app variable: [`crate::config::variable`].
    pub environment: &'a dyn Fn(&str) -> Option<String>,
    /// Whether a required variable without a value is an error.
    pub values_required: bool,
    /// The most that the image's archives may unpack to together, in bytes.
    pub max_unpacked_bytes: u64,
}

/// An app as if it had been read from disk: what it names are files, most of them blobs.
#[derive(Clone, Debug, PartialEq)]
pub struct Unpacked {
    pub manifest: Manifest,
    /// What [`Manifest::files`] would have found.
    pub files: Files,
    /// By the component's id, what callers of the function find, as it was packed.
    pub interfaces: BTreeMap<String, Value>,
    /// Where Spin loaded the app from: see [`LockedApp::origin`].
    pub origin: Option<String>,
}

/// Why an image cannot be unpacked.
#[derive(Debug, Error)]
pub enum UnpackError {
    #[error(transparent)]
    Blob(#[from] BlobError),
    #[error(transparent)]
    Locked(#[from] LockedError),
    #[error(transparent)]
    Settings(#[from] SettingsError),
    #[error(transparent)]
    Manifest(#[from] ManifestErrors),
    #[error("component `{id}`: {source}")]
    Wasm { id: String, source: WasmError },
    #[error("the archive {digest}: {source}")]
    Archive { digest: Digest, source: ArchiveError },
    #[error(
        "it is not an app: none of its {layers} layers is Spin's locked app, and it is not one component alone; its \
         config is `{config}`"
    )]
    NotAnApp { layers: usize, config: String },
    #[error(
        "it is a model, not an app; name it in spin.toml: `[component.<id>.tool.tenon.models]` with `<name> = {{ \
         reference = \"...@sha256:...\" }}`"
    )]
    Model,
    #[error("{0} of its layers say that they are the locked app; an app has one")]
    Apps(usize),
    #[error("{what} is {digest}, and none of its layers has that digest; push the app again")]
    Unlisted { what: String, digest: Digest },
    #[error("{what} is {digest}, which is not there; pull the app again")]
    Missing { what: String, digest: Digest },
    #[error("{what} is said to be {expected} and has the digest {actual}; push the app again")]
    Inline { what: String, expected: Digest, actual: Digest },
    #[error("{what} says neither what it is nor where")]
    NoContent { what: String },
    #[error("{what} has {size} bytes, and the settings say {expected}; push the app again with `tenon push`")]
    Size { what: String, size: u64, expected: u64 },
    #[error(
        "component `{id}` has the content type `{found}`, and `{}` is what can be run",
        locked::WASM_CONTENT
    )]
    ContentType { id: String, found: String },
    #[error("trigger `{0}` has a configuration that is not a table")]
    TriggerConfig(String),
    #[error("two components have the id `{0}`")]
    SameId(String),
    #[error("`{path}` is not what a manifest can have: {reason}")]
    NotToml { path: String, reason: String },
    #[error(
        "component `{id}` has a file with the path `{path}`; paths of files are relative and have no `..`"
    )]
    FilePath { id: String, path: String },
    #[error("component `{id}` has the file `{path}` twice, or as a file and as a folder")]
    SameFile { id: String, path: String },
    #[error(
        "its settings are those of component `{0}`, which is not in the app; push the app again with `tenon push`"
    )]
    Stranger(String),
    #[error("component `{id}` {reason}")]
    Samples { id: String, reason: String },
    #[error("the settings of component `{id}` in its file `{}` are not text", settings::FILE_NAME)]
    NotText { id: String },
    #[error(
        "{what} of component `{id}` is to be `{path}`, which is not among the component's files; list it in the \
         component's `files` in spin.toml, so that Spin carries it along"
    )]
    NoSuchFile { what: String, id: String, path: String },
    #[error(
        "component `{id}` imports `{import}`, and nothing says which models it may load: Spin drops `tool.tenon`. Push \
         it with `tenon push`, or add a file `{file}` with the keys of `tool.tenon` to the component's `files`, or give \
         its `[[trigger.tenon]]` a table `settings`; the models go among its `files` too. An empty `{file}` is enough \
         for a component that brings its models itself",
        file = settings::FILE_NAME
    )]
    NeedsSettings { id: String, import: String },
    #[error("cannot read `{path}`: {reason}")]
    Read { path: PathBuf, reason: String },
    #[error("`{0}` is not the URL of a file; Spin gives `file:///...`")]
    NotAFile(String),
}

/// Makes an app of the image `manifest`, whose blobs are there.
///
/// # Errors
/// Where it is not an app, not whole, or not one that is taken.
pub fn unpack(
    manifest: &ImageManifest,
    blobs: &Blobs,
    options: &Options<'_>,
) -> Result<Unpacked, UnpackError> {
    let app = match locked_app_of(manifest, blobs)? {
        Some(app) => app,
        None => component_alone(manifest)?,
    };
    let settings = match Settings::layer(manifest)? {
        Some(layer) => {
            let bytes = blobs.read(&layer.digest, settings::MAX_BYTES)?;
            Some(Settings::parse(&bytes.ok_or_else(|| missing("its settings", layer.digest))?)?)
        }
        None => None,
    };
    let mut image = Image { layers: &manifest.layers, blobs, options, archived: None };
    let mut unpacked = assemble(app, settings.as_ref(), &mut image, options)?;
    if let Some(settings) = settings {
        image.apply(settings, &mut unpacked)?;
    }
    for (id, samples) in &unpacked.files.samples {
        let amount = sample::check_amount(samples);
        amount.map_err(|reason| UnpackError::Samples { id: id.clone(), reason })?;
    }
    Ok(unpacked)
}

/// The locked app of the image: a layer, or in images of old the config.
fn locked_app_of(manifest: &ImageManifest, blobs: &Blobs) -> Result<Option<LockedApp>, UnpackError> {
    let mut digests: Vec<_> = manifest
        .layers
        .iter()
        .filter(|layer| layer.media_type == locked::APPLICATION)
        .map(|layer| layer.digest)
        .collect();
    digests.dedup();
    let digest = match digests.as_slice() {
        [] => manifest.config.digest,
        [digest] => *digest,
        several => return Err(UnpackError::Apps(several.len())),
    };
    let bytes = blobs.read(&digest, locked::MAX_BYTES)?.ok_or_else(|| missing("the locked app", digest))?;
    match digests.is_empty() && !LockedApp::is_in(&bytes) {
        true => Ok(None),
        false => Ok(Some(LockedApp::parse(&bytes)?)),
    }
}

/// The app that one component without anything else is: it answers on every path.
fn component_alone(manifest: &ImageManifest) -> Result<LockedApp, UnpackError> {
    if modelpack::is_model(manifest) {
        return Err(UnpackError::Model);
    }
    let is_wasm =
        |layer: &&Descriptor| [locked::WASM, locked::WASM_CONTENT].contains(&layer.media_type.as_str());
    let [layer] = manifest.layers.as_slice() else { return Err(not_an_app(manifest)) };
    let layer = Some(layer).filter(is_wasm).ok_or_else(|| not_an_app(manifest))?;
    let id = layer.title().map_or("component".to_owned(), manifest::component_id);
    let app = json!({
        "spin_lock_version": 0,
        "metadata": {"name": id},
        "triggers": [{
            "id": format!("{id}-http-trigger"),
            "trigger_type": "http",
            "trigger_config": {"component": id, "route": "/..."},
        }],
        "components": [{
            "id": id,
            "source": {"content_type": locked::WASM_CONTENT, "digest": layer.digest},
        }],
    });
    Ok(LockedApp::parse(app.to_string().as_bytes())?)
}

fn not_an_app(manifest: &ImageManifest) -> UnpackError {
    UnpackError::NotAnApp { layers: manifest.layers.len(), config: shown(&manifest.config.media_type) }
}

fn missing(what: &str, digest: Digest) -> UnpackError {
    UnpackError::Missing { what: what.to_owned(), digest }
}

/// Where the content of an app is found.
trait Contents {
    /// The file of a component.
    fn wasm(&mut self, id: &str, source: &locked::Source) -> Result<PathBuf, UnpackError>;

    /// The files that a component sees, in the order of their paths.
    fn mounts(&mut self, component: &locked::Component) -> Result<Vec<FileMount>, UnpackError>;

    /// Whatever else is known of a component that came without settings; answers what a person should know.
    fn settle(
        &mut self,
        component: &mut manifest::Component,
        files: &mut Files,
    ) -> Result<Option<String>, UnpackError>;

    /// A file that settings name by its guest path and that is not among the component's files.
    fn elsewhere(&self, guest_path: &Path) -> Option<PathBuf>;
}

/// Reads `app` by the rules of manifests and finds what it names.
fn assemble(
    app: LockedApp,
    settings: Option<&Settings>,
    contents: &mut dyn Contents,
    options: &Options<'_>,
) -> Result<Unpacked, UnpackError> {
    app.check_composed()?;
    check_ids(&app, settings)?;
    let text = document::text(&app, settings)?;
    let reading = manifest::Options {
        profile: None,
        variables: options.variables,
        environment: options.environment,
        values_required: options.values_required,
    };
    let mut manifest = Manifest::of_text(&text, options.name, &reading)?;
    let mut files = Files::default();
    for locked in &app.components {
        let component = manifest.components.iter_mut().find(|component| component.id == locked.id);
        // The manifest was made of these components.
        let Some(component) = component else { continue };
        let path = contents.wasm(&locked.id, &locked.source)?;
        let mounts = contents.mounts(locked)?;
        if settings.is_none() {
            own_settings::find(component, &mounts, contents, &mut files)?;
            if !component.has_settings {
                manifest.warnings.extend(contents.settle(component, &mut files)?);
            }
            if !component.has_settings {
                refuse_models(&component.id, &path)?;
            }
        }
        component.source = Source::Path(path);
        files.mounts.insert(locked.id.clone(), mounts);
    }
    let origin = app.origin().map(str::to_owned);
    Ok(Unpacked { manifest, files, interfaces: BTreeMap::new(), origin })
}

fn check_ids(app: &LockedApp, settings: Option<&Settings>) -> Result<(), UnpackError> {
    let mut ids = BTreeSet::new();
    if let Some(twice) = app.components.iter().find(|component| !ids.insert(component.id.as_str())) {
        return Err(UnpackError::SameId(shown(&twice.id)));
    }
    for (id, own) in settings.into_iter().flat_map(|settings| &settings.components) {
        match (ids.contains(id.as_str()), own.without_code) {
            (true, true) => return Err(UnpackError::SameId(shown(id))),
            (false, false) => return Err(UnpackError::Stranger(shown(id))),
            _ => {}
        }
    }
    Ok(())
}

/// Refuses a component without settings that cannot do without them.
fn refuse_models(id: &str, path: &Path) -> Result<(), UnpackError> {
    let outline = Outline::of_file(path);
    let outline = outline.map_err(|source| UnpackError::Wasm { id: id.to_owned(), source })?;
    match outline.models_import() {
        Some(import) => Err(UnpackError::NeedsSettings { id: id.to_owned(), import: shown(import) }),
        None => Ok(()),
    }
}

/// The content of an image: its layers, and what is in those of them that are archives.
struct Image<'a> {
    layers: &'a [Descriptor],
    blobs: &'a Blobs,
    options: &'a Options<'a>,
    /// What the archives have, once they were looked into.
    archived: Option<BTreeSet<Digest>>,
}

impl Image<'_> {
    /// The file of a blob, which must be the image's own: a digest is no key to what other apps have in the cache.
    fn blob(&self, what: &str, digest: &Digest) -> Result<PathBuf, UnpackError> {
        let is_archived = || self.archived.as_ref().is_some_and(|archived| archived.contains(digest));
        if !self.is_layer(digest) && !is_archived() {
            return Err(UnpackError::Unlisted { what: what.to_owned(), digest: *digest });
        }
        self.blobs.get(digest)?.ok_or_else(|| missing(what, *digest))
    }

    fn is_layer(&self, digest: &Digest) -> bool {
        self.layers.iter().any(|layer| layer.digest == *digest)
    }

    /// A blob whose size is known too.
    fn sized(&self, what: &str, blob: &Blob) -> Result<PathBuf, UnpackError> {
        let path = self.blob(what, &blob.digest)?;
        let size = self.layers.iter().find(|layer| layer.digest == blob.digest).map(|layer| layer.size);
        match size {
            Some(size) if size != blob.size => {
                Err(UnpackError::Size { what: what.to_owned(), size, expected: blob.size })
            }
            _ => Ok(path),
        }
    }

    /// The file of content that is a blob, or stands in the locked app itself.
    fn content(&mut self, what: &str, content: &locked::Content) -> Result<PathBuf, UnpackError> {
        if let Some(bytes) = &content.inline {
            let actual = self.blobs.put(bytes)?;
            if let Some(expected) = content.digest.filter(|expected| *expected != actual) {
                return Err(UnpackError::Inline { what: what.to_owned(), expected, actual });
            }
            return self.blobs.get(&actual)?.ok_or_else(|| missing(what, actual));
        }
        let digest = content.digest.ok_or_else(|| UnpackError::NoContent { what: what.to_owned() })?;
        if !self.is_layer(&digest) {
            self.open_archives()?;
        }
        self.blob(what, &digest)
    }

    /// Keeps what is in the archives of the image, once.
    fn open_archives(&mut self) -> Result<(), UnpackError> {
        if self.archived.is_some() {
            return Ok(());
        }
        let mut archived = BTreeSet::new();
        let mut left = self.options.max_unpacked_bytes;
        for layer in self.layers.iter().filter(|layer| layer.media_type == locked::BUNDLE) {
            let path = self.blobs.get(&layer.digest)?.ok_or_else(|| missing("an archive", layer.digest))?;
            let failed = |source| UnpackError::Archive { digest: layer.digest, source };
            let entries = archive::list(&path, Compression::Gzip, left).map_err(failed)?;
            archive::keep(&path, Compression::Gzip, left, &entries, &|_| true, self.blobs).map_err(failed)?;
            left = left.saturating_sub(archive::size(&entries));
            archived.extend(entries.into_iter().map(|entry| entry.digest));
        }
        self.archived = Some(archived);
        Ok(())
    }

    /// Puts the blobs that the settings name in the place of paths.
    fn apply(&self, settings: Settings, unpacked: &mut Unpacked) -> Result<(), UnpackError> {
        for (id, own) in settings.components {
            let component = unpacked.manifest.components.iter_mut().find(|component| component.id == id);
            // The manifest was made of these components.
            let Some(component) = component else { continue };
            for (name, packed) in own.models {
                let what = format!("model `{}` of component `{id}`", shown(&name));
                let Some(model) = component.models.get_mut(&name) else { continue };
                model.path = self.sized(&what, &packed.file)?;
                let weights =
                    packed.weights.map(|weights| self.sized(&format!("the weights of {what}"), &weights));
                model.weights = weights.transpose()?;
                model.reference = packed.reference;
                model.file_name = Some(packed.name);
            }
            let mut samples = BTreeMap::new();
            for (name, blob) in own.samples {
                let what = format!("sample `{}` of component `{id}`", shown(&name));
                if !is_relative(&name) {
                    return Err(UnpackError::FilePath { id, path: shown(&name) });
                }
                samples.insert(name, self.sized(&what, &blob)?);
            }
            if !samples.is_empty() {
                unpacked.files.samples.insert(id.clone(), samples);
            }
            unpacked.interfaces.extend(own.interface.map(|interface| (id, interface)));
        }
        Ok(())
    }
}

impl Contents for Image<'_> {
    fn wasm(&mut self, id: &str, source: &locked::Source) -> Result<PathBuf, UnpackError> {
        check_type(id, source)?;
        self.content(&format!("component `{id}`"), &source.content)
    }

    fn mounts(&mut self, component: &locked::Component) -> Result<Vec<FileMount>, UnpackError> {
        let id = &component.id;
        let mut mounts: BTreeMap<&str, PathBuf> = BTreeMap::new();
        for file in &component.files {
            if !is_relative(&file.path) {
                return Err(UnpackError::FilePath { id: id.clone(), path: shown(&file.path) });
            }
            let what = format!("file `{}` of component `{id}`", shown(&file.path));
            let source = self.content(&what, &file.content)?;
            if mounts.insert(&file.path, source).is_some() {
                return Err(UnpackError::SameFile { id: id.clone(), path: shown(&file.path) });
            }
        }
        let is_folder = |path: &&&str| {
            let above = path.match_indices('/').map(|(end, _)| &path[..end]);
            above.into_iter().any(|above| mounts.contains_key(above))
        };
        if let Some(path) = mounts.keys().find(is_folder) {
            return Err(UnpackError::SameFile { id: id.clone(), path: shown(path) });
        }
        let mounts = mounts.into_iter();
        Ok(mounts.map(|(path, source)| FileMount { source, destination: format!("/{path}") }).collect())
    }

    fn settle(&mut self, _: &mut manifest::Component, _: &mut Files) -> Result<Option<String>, UnpackError> {
        Ok(None)
    }

    fn elsewhere(&self, _: &Path) -> Option<PathBuf> {
        None
    }
}

fn check_type(id: &str, source: &locked::Source) -> Result<(), UnpackError> {
    match source.content_type.as_str() {
        locked::WASM_CONTENT => Ok(()),
        found => Err(UnpackError::ContentType { id: id.to_owned(), found: shown(found) }),
    }
}

/// Whether a path of a file stays below the guest's root, and is the only way to write it.
fn is_relative(path: &str) -> bool {
    let is_wrong = |segment: &str| matches!(segment, "" | "." | "..");
    path.len() <= MAX_PATH_BYTES && !path.contains('\0') && !path.split('/').any(is_wrong)
}

/// The longest path of a file, in bytes.
const MAX_PATH_BYTES: usize = 4096;
