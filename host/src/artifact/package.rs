//! From an app to an image: the layers, config and locked app that Spin would push, with models, samples and
//! settings beside them.
//!
//! The same inputs make the same bytes, wherever and whenever: nothing here has a time, a folder's name or an order
//! that depends on the machine.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use thiserror::Error;

use super::blobs::{BlobError, Blobs};
use super::fetch::MAX_COMPONENT_BYTES;
use super::locked::{self, Content, LockedApp};
use super::manifest::{self, Build, Component, FileMount, Files, Manifest, Source, Target, TriggerKind};
use super::oci::{Descriptor, Digest, IMAGE_CONFIG, ImageManifest, NotADigest};
use super::sample::MAX_SAMPLE_BYTES;
use super::settings::{self, Blob, Settings};
use super::wasm::{Outline, WasmError};

mod bundle;
#[cfg(test)]
pub(in crate::artifact) mod tests;

/// The most layers that Spin pushes: some registries take no more. Beyond, the files of a component are one archive.
const MAX_LAYERS: usize = 500;
/// The largest file of an app, in bytes.
const MAX_FILE_BYTES: u64 = 1 << 40;

const AUTHORS: &str = "org.opencontainers.image.authors";
const DESCRIPTION: &str = "org.opencontainers.image.description";
const IMAGE_TITLE: &str = "org.opencontainers.image.title";
const IMAGE_VERSION: &str = "org.opencontainers.image.version";

/// The config of a component alone, by the rules of the CNCF.
const WASM_CONFIG: &str = "application/vnd.wasm.config.v0+json";
/// When a component was made, which its config has to say and which must not make a difference.
const EPOCH: &str = "1970-01-01T00:00:00Z";

/// An artifact whose blobs are all in the store, its manifest among them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packed {
    /// Of the manifest's bytes.
    pub digest: Digest,
    pub manifest: ImageManifest,
    /// What is packed and perhaps should not be.
    pub warnings: Vec<String>,
}

/// Why an app cannot be packed.
#[derive(Debug, Error)]
pub enum PackError {
    #[error("{what}: {source}")]
    Blob { what: String, source: BlobError },
    #[error("component `{id}`: {source}")]
    Wasm { id: String, source: WasmError },
    #[error("component `{id}`: {source}")]
    Digest { id: String, source: NotADigest },
    #[error("component `{id}` comes from `{url}` and has not been fetched ({digest})")]
    NotFetched { id: String, url: String, digest: Digest },
    #[error("model `{name}` of component `{id}` is in a registry and has not been pulled: `{reference}`")]
    NotPulled { id: String, name: String, reference: String },
    #[error("the name of `{0}` is not UTF-8; rename it")]
    Name(PathBuf),
    #[error(
        "the app has {layers} layers, and some registries take no more than {MAX_LAYERS}; give it fewer components, \
         models and samples"
    )]
    Layers { layers: usize },
    #[error("{what}: {source}")]
    Archive { what: String, source: std::io::Error },
}

impl PackError {
    pub(super) fn blob(what: impl Into<String>) -> impl FnOnce(BlobError) -> PackError {
        let what = what.into();
        move |source| PackError::Blob { what, source }
    }
}

/// Packs `app` with the `files` that it was found to have. What callers of its functions find is in `interfaces`, by
/// the component's id. Components and models from elsewhere must have been fetched.
///
/// # Errors
/// Where something cannot be read or kept, is not there, or is more than a registry takes.
pub fn pack(
    app: &Manifest,
    files: &Files,
    interfaces: &BTreeMap<String, Value>,
    blobs: &Blobs,
) -> Result<Packed, PackError> {
    pack_within(MAX_LAYERS, app, files, interfaces, blobs)
}

fn pack_within(
    max_layers: usize,
    app: &Manifest,
    files: &Files,
    interfaces: &BTreeMap<String, Value>,
    blobs: &Blobs,
) -> Result<Packed, PackError> {
    let mut packing = Packing::new(blobs, false);
    let mut parts = packing.parts(app, files, interfaces)?;
    // The settings and the locked app come to these.
    if packing.layers.len() + 2 > max_layers {
        packing = Packing::new(blobs, true);
        parts = packing.parts(app, files, interfaces)?;
    }
    let Parts { locked, settings } = parts;
    let layers = packing.layers.len() + 2;
    if layers > max_layers {
        return Err(PackError::Layers { layers });
    }
    let settings = settings.bytes();
    let mut layer = packing.bytes(locked::DATA, &settings, settings::TITLE)?;
    layer.annotations.insert(settings::ANNOTATION.to_owned(), settings::VERSION.to_string());
    let settings_digest = layer.digest;
    packing.layers.push(layer);
    let locked_layer = packing.bytes(locked::APPLICATION, &locked.bytes(), "spin.lock")?;
    let config = config(locked_layer.digest);
    packing.layers.push(locked_layer);
    let config = packing.bytes(IMAGE_CONFIG, config.as_bytes(), "")?;
    let mut manifest = ImageManifest::new(config, packing.layers);
    manifest.annotations = annotations(app);
    manifest.annotations.insert(settings::ANNOTATION.to_owned(), settings_digest.to_string());
    packed(manifest, warnings(app), blobs)
}

/// Keeps the manifest too.
pub(super) fn packed(
    manifest: ImageManifest,
    warnings: Vec<String>,
    blobs: &Blobs,
) -> Result<Packed, PackError> {
    let digest = blobs.put(&manifest.bytes()).map_err(PackError::blob("the manifest"))?;
    Ok(Packed { digest, manifest, warnings })
}

/// Packs the component in the file at `path` alone, as other tools for components expect it.
///
/// # Errors
/// Where it cannot be read or kept, or is not WebAssembly.
pub fn component(path: &Path, blobs: &Blobs) -> Result<Packed, PackError> {
    let name = file_name(path)?;
    let title = format!("{}.wasm", name.strip_suffix(".wasm").unwrap_or(&name));
    let kept = blobs.put_file(path, MAX_COMPONENT_BYTES);
    let (digest, size) = kept.map_err(PackError::blob(format!("`{}`", path.display())))?;
    let outline = Outline::of_file(&blobs.path(&digest));
    let outline = outline.map_err(|source| PackError::Wasm { id: title.clone(), source })?;
    let mut config = json!({
        "created": EPOCH,
        "architecture": "wasm",
        "os": if outline.is_component { "wasip2" } else { "wasip1" },
        "layerDigests": [digest],
    });
    if outline.is_component {
        config["component"] = json!({"exports": outline.exports, "imports": outline.imports});
    }
    let config = Packing::new(blobs, false).bytes(WASM_CONFIG, config.to_string().as_bytes(), "")?;
    let layer = Descriptor::new(locked::WASM_CONTENT, digest, size).titled(&title);
    packed(ImageManifest::new(config, vec![layer]), Vec::new(), blobs)
}

/// The config of an image, with what Spin puts there so that two apps are two images.
fn config(locked_app: Digest) -> String {
    let label = format!(r#"{{"com.fermyon.spin.lockedAppDigest":"{locked_app}"}}"#);
    let rootfs = r#"{"type":"layers","diff_ids":[]}"#;
    format!(r#"{{"architecture":"wasm","os":"Wasip1","config":{{"Labels":{label}}},"rootfs":{rootfs}}}"#)
}

fn annotations(app: &Manifest) -> BTreeMap<String, String> {
    let authors = Some(app.authors.join(", ")).filter(|authors| !authors.is_empty());
    let all = [
        (AUTHORS, authors),
        (DESCRIPTION, app.description.clone()),
        (IMAGE_TITLE, Some(app.name.clone())),
        (IMAGE_VERSION, app.version.clone()),
    ];
    all.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
}

fn warnings(app: &Manifest) -> Vec<String> {
    let secrets = app.variables.iter().filter(|(_, variable)| variable.secret && variable.default.is_some());
    let warnings = secrets.map(|(name, _)| {
        format!(
            "the variable `{name}` is secret and has a default, which everybody who may pull the app can read; write \
             `required = true` instead"
        )
    });
    warnings.collect()
}

/// The documents of an app.
struct Parts {
    locked: LockedApp,
    settings: Settings,
}

/// An image that comes together.
struct Packing<'a> {
    blobs: &'a Blobs,
    layers: Vec<Descriptor>,
    /// Digests and media types of the layers.
    seen: BTreeSet<(Digest, String)>,
    /// Whether the files of a component are one archive.
    bundled: bool,
}

impl<'a> Packing<'a> {
    fn new(blobs: &'a Blobs, bundled: bool) -> Packing<'a> {
        Packing { blobs, layers: Vec::new(), seen: BTreeSet::new(), bundled }
    }

    fn parts(
        &mut self,
        app: &Manifest,
        files: &Files,
        interfaces: &BTreeMap<String, Value>,
    ) -> Result<Parts, PackError> {
        let without_code: BTreeSet<&str> =
            app.components.iter().filter(|c| c.source == Source::Model).map(|c| c.id.as_str()).collect();
        let mut settings = Settings { version: settings::VERSION, ..Settings::default() };
        let mut components = Vec::new();
        for component in app.components.iter().filter(|component| component.source != Source::Model) {
            let mounts = files.mounts.get(&component.id).map(Vec::as_slice).unwrap_or_default();
            components.push(self.component(component, mounts, &app.dir)?);
        }
        for component in &app.components {
            let interface = interfaces.get(&component.id).cloned();
            let own = self.settings(component, files, interface)?;
            settings.components.insert(component.id.clone(), own);
        }
        let mut triggers = Vec::new();
        for trigger in &app.triggers {
            let is_ours =
                matches!(&trigger.target, Target::Component(id) if without_code.contains(id.as_str()));
            let list = if is_ours { &mut settings.triggers } else { &mut triggers };
            list.push(locked_trigger(trigger));
        }
        let mut locked = LockedApp {
            spin_lock_version: 0,
            must_understand: Vec::new(),
            metadata: metadata(app, &triggers),
            host_requirements: Map::new(),
            variables: app.variables.iter().map(locked_variable).collect(),
            triggers,
            components,
        };
        locked.demand_requirements();
        Ok(Parts { locked, settings })
    }

    /// A component as the locked app has it, its code and files as layers.
    fn component(
        &mut self,
        component: &Component,
        mounts: &[FileMount],
        dir: &Path,
    ) -> Result<locked::Component, PackError> {
        let id = &component.id;
        let (digest, size) = self.code(component)?;
        let path = self.blobs.path(&digest);
        // Spin would refuse it, and so would whoever pulls it.
        Outline::of_file(&path).map_err(|source| PackError::Wasm { id: id.clone(), source })?;
        self.push(Descriptor::new(locked::WASM, digest, size).titled(&format!("components/{id}.wasm")));
        let content = self.content(&path, digest, size)?;
        let files = self.files(id, mounts)?;
        Ok(locked::Component {
            id: id.clone(),
            metadata: component_metadata(component, dir),
            source: locked::Source { content_type: locked::WASM_CONTENT.to_owned(), content },
            env: component.environment.clone(),
            files,
            config: component.variable_templates.clone(),
            dependencies: Map::new(),
            trigger_dependencies: Map::new(),
            host_requirements: Map::new(),
        })
    }

    fn code(&self, component: &Component) -> Result<(Digest, u64), PackError> {
        let id = &component.id;
        match &component.source {
            Source::Path(path) => {
                let kept = self.blobs.put_file(path, MAX_COMPONENT_BYTES);
                kept.map_err(PackError::blob(format!("component `{id}`")))
            }
            Source::Url { url, digest } => {
                let digest: Digest =
                    digest.parse().map_err(|source| PackError::Digest { id: id.clone(), source })?;
                let kept = self.blobs.get(&digest).map_err(PackError::blob(format!("component `{id}`")))?;
                let size = kept.and_then(|path| path.metadata().ok()).map(|metadata| metadata.len());
                let not_fetched = || PackError::NotFetched { id: id.clone(), url: url.clone(), digest };
                Ok((digest, size.ok_or_else(not_fetched)?))
            }
            Source::Model => unreachable!("components without code are left out"),
        }
    }

    /// The files of a component, as layers of their own or as an archive.
    fn files(&mut self, id: &str, mounts: &[FileMount]) -> Result<Vec<locked::File>, PackError> {
        let (mut files, mut kept_mounts) = (Vec::new(), Vec::new());
        for mount in mounts {
            let path = mount.destination.trim_start_matches('/');
            let what = format!("file `{path}` of component `{id}`");
            let (digest, size) =
                self.blobs.put_file(&mount.source, MAX_FILE_BYTES).map_err(PackError::blob(what))?;
            let source = self.blobs.path(&digest);
            let content = self.content(&source, digest, size)?;
            kept_mounts.push(FileMount { source, destination: mount.destination.clone() });
            if content.inline.is_none() && !self.bundled {
                let title = format!("files/{id}/{path}");
                self.push(Descriptor::new(locked::DATA, digest, size).titled(&title));
            }
            files.push(locked::File { content, path: path.to_owned() });
        }
        if self.bundled && !mounts.is_empty() {
            let what = format!("the archive of the files of component `{id}`");
            let archive = bundle::write(&kept_mounts)
                .map_err(|source| PackError::Archive { what: what.clone(), source })?;
            let kept = self.blobs.put_file(archive.path(), MAX_FILE_BYTES);
            let (digest, size) = kept.map_err(PackError::blob(what))?;
            let title = format!("files/{id}.tar.gz");
            self.push(Descriptor::new(locked::BUNDLE, digest, size).titled(&title));
        }
        Ok(files)
    }

    /// What the locked app says of content: its digest, and the content itself where that is shorter than a layer.
    fn content(&self, path: &Path, digest: Digest, size: u64) -> Result<Content, PackError> {
        let inline = match size <= locked::MAX_INLINE_BYTES {
            true => {
                let bytes = self.blobs.read(&digest, locked::MAX_INLINE_BYTES);
                bytes.map_err(PackError::blob(format!("`{}`", path.display())))?
            }
            false => None,
        };
        Ok(Content { source: None, inline, digest: Some(digest) })
    }

    /// The settings of a component, its models and samples as layers.
    fn settings(
        &mut self,
        component: &Component,
        files: &Files,
        interface: Option<Value>,
    ) -> Result<settings::Component, PackError> {
        let id = &component.id;
        let mut own = settings::Component::of(component);
        own.interface = interface;
        for (name, model) in &component.models {
            own.models.insert(name.clone(), self.model(id, name, model)?);
        }
        for (name, path) in files.samples.get(id).into_iter().flatten() {
            let what = format!("sample `{name}` of component `{id}`");
            let kept = self.blobs.put_file(path, MAX_SAMPLE_BYTES).map_err(PackError::blob(what))?;
            own.samples.insert(name.clone(), self.data(kept, &format!("samples/{id}/{name}")));
        }
        Ok(own)
    }

    fn model(&mut self, id: &str, name: &str, model: &manifest::Model) -> Result<settings::Model, PackError> {
        if model.path.as_os_str().is_empty() {
            let reference = model.reference.clone().unwrap_or_default();
            return Err(PackError::NotPulled { id: id.to_owned(), name: name.to_owned(), reference });
        }
        let mut layer = |path: &Path, file: &str| {
            let what = format!("model `{name}` of component `{id}`");
            let kept = self.blobs.put_file(path, MAX_FILE_BYTES).map_err(PackError::blob(what))?;
            Ok::<_, PackError>(self.data(kept, &format!("models/{id}/{name}/{file}")))
        };
        let file_name = match &model.file_name {
            Some(name) => name.clone(),
            None => file_name(&model.path)?,
        };
        let file = layer(&model.path, &file_name)?;
        let weights = match &model.weights {
            Some(path) => {
                let stem = file_name.strip_suffix(".xml").unwrap_or(&file_name);
                Some(layer(path, &format!("{stem}.bin"))?)
            }
            None => None,
        };
        Ok(settings::Model::of(model, file_name, file, weights))
    }

    fn data(&mut self, (digest, size): (Digest, u64), title: &str) -> Blob {
        self.push(Descriptor::new(locked::DATA, digest, size).titled(title));
        Blob { digest, size }
    }

    /// Adds a layer, unless it is there already.
    fn push(&mut self, layer: Descriptor) {
        if self.seen.insert((layer.digest, layer.media_type.clone())) {
            self.layers.push(layer);
        }
    }

    fn bytes(&self, media_type: &str, bytes: &[u8], title: &str) -> Result<Descriptor, PackError> {
        let digest = self.blobs.put(bytes).map_err(PackError::blob("the store of blobs"))?;
        let layer = Descriptor::new(media_type, digest, bytes.len() as u64);
        Ok(if title.is_empty() { layer } else { layer.titled(title) })
    }
}

/// The name of a file, without its folder.
pub(super) fn file_name(path: &Path) -> Result<String, PackError> {
    let name = path.file_name().and_then(|name| name.to_str());
    name.map(str::to_owned).ok_or_else(|| PackError::Name(path.to_owned()))
}

fn locked_variable((name, variable): (&String, &manifest::Variable)) -> (String, locked::Variable) {
    let manifest::Variable { description, default, secret, .. } = variable.clone();
    (name.clone(), locked::Variable { description, default, secret })
}

fn locked_trigger(trigger: &manifest::Trigger) -> locked::Trigger {
    let route = trigger.route.as_ref().map_or(json!({"private": true}), |route| json!(route));
    let mut config = Map::from_iter([("route".to_owned(), route)]);
    match &trigger.target {
        Target::Component(id) => {
            config.insert("component".to_owned(), json!(id));
        }
        Target::Static { status, headers, body } => {
            let response = json!({"status_code": status, "headers": headers, "body": body});
            config.insert("static_response".to_owned(), response);
        }
    }
    locked::Trigger {
        id: trigger.id.clone(),
        trigger_type: trigger_type(trigger.kind).to_owned(),
        trigger_config: Value::Object(config),
        trigger_dependencies: Map::new(),
    }
}

fn trigger_type(kind: TriggerKind) -> &'static str {
    match kind {
        TriggerKind::Http => "http",
        TriggerKind::Tenon => "tenon",
    }
}

/// What Spin writes of an app; what is empty it leaves out.
fn metadata(app: &Manifest, triggers: &[locked::Trigger]) -> Map<String, Value> {
    let mut metadata = Map::new();
    let texts = [
        ("name", Some(&app.name)),
        ("version", app.version.as_ref()),
        ("description", app.description.as_ref()),
    ];
    for (key, text) in texts {
        let text = text.filter(|text| !text.is_empty());
        metadata.extend(text.map(|text| (key.to_owned(), json!(text))));
    }
    if !app.authors.is_empty() {
        metadata.insert("authors".to_owned(), json!(app.authors));
    }
    metadata.insert("triggers".to_owned(), json!({}));
    let types: BTreeSet<_> = triggers.iter().map(|trigger| trigger.trigger_type.as_str()).collect();
    if let (Some(only), 1) = (types.first(), types.len()) {
        metadata.insert("trigger".to_owned(), json!({"type": only}));
    }
    metadata
}

fn component_metadata(component: &Component, dir: &Path) -> Map<String, Value> {
    let mut metadata = Map::new();
    if let Some(description) = component.description.as_ref().filter(|text| !text.is_empty()) {
        metadata.insert("description".to_owned(), json!(description));
    }
    let lists = [
        ("allowed_outbound_hosts", &component.outbound_host_templates),
        ("key_value_stores", &component.key_value_stores),
    ];
    for (key, list) in lists.into_iter().filter(|(_, list)| !list.is_empty()) {
        metadata.insert(key.to_owned(), json!(list));
    }
    metadata.extend(component.build.as_ref().map(|build| ("build".to_owned(), locked_build(build, dir))));
    metadata
}

/// How a component is built, with its folder relative to the app's `dir`.
fn locked_build(build: &Build, dir: &Path) -> Value {
    let command = match build.commands.as_slice() {
        [only] => json!(only),
        several => json!(several),
    };
    let mut keys = Map::from_iter([("command".to_owned(), command)]);
    let workdir = build.workdir.strip_prefix(dir).ok().and_then(Path::to_str);
    if let Some(workdir) = workdir.filter(|workdir| !workdir.is_empty()) {
        keys.insert("workdir".to_owned(), json!(workdir));
    }
    if !build.watch.is_empty() {
        keys.insert("watch".to_owned(), json!(build.watch));
    }
    Value::Object(keys)
}
