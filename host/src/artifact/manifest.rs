//! The app manifest, `spin.toml` in Spin's version 2: what an author declares, read strictly.
//!
//! Reading goes through the submodules: `component` and `triggers` read their tables, `variables`
//! fills in templates, `normal` gives everything an id and checks what refers to what, and
//! `files`, once a build has run, finds on disk what the manifest names.

mod component;
mod files;
mod models;
mod names;
mod normal;
mod route;
#[cfg(test)]
mod tests;
mod tool;
mod triggers;
mod variables;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::config::document::{self, Table, advice};
use crate::config::{DocumentError, DocumentErrors};

pub use files::{FileMount, Files};
pub(crate) use files::{mounts_below, named_in_sample};
pub(crate) use names::component_id;

/// What is wrong with an app manifest: every mistake, each with its line.
pub type ManifestErrors = DocumentErrors;
/// One mistake.
pub type ManifestError = DocumentError;

/// The file name that [`find`] looks for.
pub const FILE_NAME: &str = "spin.toml";

/// What reading a manifest depends on besides the file.
pub struct Options<'a> {
    /// The build profile whose overrides apply.
    pub profile: Option<&'a str>,
    /// Values of app variables; they go before the environment's and the defaults.
    pub variables: &'a BTreeMap<String, String>,
    /// The environment's value of an app variable: [`crate::config::variable`].
    pub environment: &'a dyn Fn(&str) -> Option<String>,
    /// Whether a required variable without a value is an error. To build an app needs no values:
    /// without this, such a variable is empty.
    pub values_required: bool,
}

/// An app as its author declares it. Nothing here has been looked for on disk: see [`Manifest::files`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// The manifest itself, absolute.
    pub path: PathBuf,
    /// The app's folder, absolute.
    pub dir: PathBuf,
    /// The app.
    pub name: String,
    pub version: Option<String>,
    pub description: Option<String>,
    pub authors: Vec<String>,
    /// The app's variables as they are declared; their values are in the components' own.
    pub variables: BTreeMap<String, Variable>,
    /// In the order of the file.
    pub triggers: Vec<Trigger>,
    /// In the order of the file, inline ones last.
    pub components: Vec<Component>,
    /// What is allowed but probably not meant.
    pub warnings: Vec<String>,
}

/// The declaration of an app variable: it is required or has a default.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Variable {
    pub description: Option<String>,
    pub default: Option<String>,
    pub required: bool,
    /// Whether its value is to be shown to nobody.
    pub secret: bool,
}

impl fmt::Debug for Variable {
    /// Without the default, which may be secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Variable");
        debug.field("required", &self.required).field("secret", &self.secret).finish_non_exhaustive()
    }
}

/// What starts a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trigger {
    pub id: String,
    pub kind: TriggerKind,
    /// Begins with `/`, ends in `/...` where it takes every path below; `None` is private.
    pub route: Option<String>,
    pub target: Target,
}

/// The table that a trigger stands in; both have the same keys and the same meaning here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TriggerKind {
    /// `[[trigger.http]]`, which `spin up` serves too.
    Http,
    /// `[[trigger.tenon]]`, which Spin hands to a plugin.
    Tenon,
}

/// What answers a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// The id of a component of the app.
    Component(String),
    /// The same answer for everyone.
    Static { status: u16, headers: BTreeMap<String, String>, body: String },
}

/// One component of an app and what it is granted.
#[derive(Clone, PartialEq, Eq)]
pub struct Component {
    /// Words with `-` between them; for an inline component made from its trigger's id.
    pub id: String,
    pub description: Option<String>,
    pub source: Source,
    /// What to mount; [`Manifest::files`] finds the files.
    pub files: Vec<FilesEntry>,
    /// Patterns of files that directories and patterns in `files` leave out.
    pub exclude_files: Vec<String>,
    /// The guest's environment.
    pub environment: BTreeMap<String, String>,
    /// The guest's variables, with every template filled in. May hold secrets.
    pub variables: BTreeMap<String, String>,
    /// The same as the author wrote them, for an app that is packed: the host that runs it has the values.
    pub variable_templates: BTreeMap<String, String>,
    /// Where the component may send requests, with every template filled in. May hold secrets.
    pub allowed_outbound_hosts: Vec<String>,
    /// The same as the author wrote them.
    pub outbound_host_templates: Vec<String>,
    /// The labels of the key-value stores that the component may open.
    pub key_value_stores: Vec<String>,
    pub build: Option<Build>,
    /// The models that the component may load, by the name that it loads them by.
    pub models: BTreeMap<String, Model>,
    /// Its name in the Open Inference Protocol; `None`: its id.
    pub model_name: Option<String>,
    pub limits: Limits,
    /// Files or patterns: requests with the answers that the author expects. [`Manifest::files`] finds them.
    pub samples: Vec<FilesEntry>,
    /// Whether the author gave any of Tenon's own settings, be it an empty table.
    pub has_settings: bool,
    /// The line of the manifest where the component begins.
    pub line: usize,
}

impl fmt::Debug for Component {
    /// Without the values of variables, which may be secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Component");
        debug.field("id", &self.id).field("source", &self.source).field("files", &self.files);
        debug.field("variables", &self.variables.keys()).field("build", &self.build);
        debug.field("models", &self.models).field("limits", &self.limits).finish_non_exhaustive()
    }
}

/// Where a component's wasm comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A file, absolute.
    Path(PathBuf),
    /// A download that must have this digest, `sha256:` and 64 lower-case hex digits.
    Url { url: String, digest: String },
    /// There is no code: the component's one model is served as it is.
    Model,
}

/// One entry of a component's `files`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilesEntry {
    /// A file, a directory or (without `destination`) a pattern, relative to the app's folder.
    pub source: String,
    /// The guest path of the file or directory; `None`: the same as its path in the app's folder.
    pub destination: Option<String>,
    /// The line of the manifest.
    pub line: usize,
}

/// How a component is built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Build {
    /// Run in this order by the shell.
    pub commands: Vec<String>,
    /// Absolute.
    pub workdir: PathBuf,
    /// Patterns relative to `workdir`: a change of a file that one of them matches calls for a build.
    pub watch: Vec<String>,
}

/// A model file granted to a component.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Model {
    /// Absolute; empty until a model that is named by `reference` is on this machine.
    pub path: PathBuf,
    /// The file of weights beside an OpenVINO IR, absolute.
    pub weights: Option<PathBuf>,
    /// Where the model is in a registry, with a digest: `registry/repository:tag@sha256:...`.
    pub reference: Option<String>,
    /// What its author called the file, where `path` is a blob.
    pub file_name: Option<String>,
    pub encoding: Encoding,
    pub target: ExecutionTarget,
    /// One of [`crate::config::BACKENDS`]; `None` leaves the choice to the operator's preference.
    pub backend: Option<String>,
    /// How long the graph stays in memory unused, in seconds; `None`: as the operator says.
    pub idle_timeout_s: Option<u64>,
    /// The precision of the arithmetic; `None`: f32.
    pub precision: Option<Precision>,
    /// How many inferences run at once on this model; `None`: as the backend finds best.
    pub concurrency: Option<usize>,
    /// How calls are joined into one run; `None`: they are not.
    pub batching: Option<Batching>,
    /// How many calls may wait for the model; `None`: as the operator says.
    pub queue_length: Option<usize>,
    /// The line of the manifest.
    pub line: usize,
}

/// How calls of a model are joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batching {
    /// Rows of one run at most.
    pub max_size: usize,
    /// How long a call waits for others at most.
    pub max_delay: Duration,
}

/// The format of a model file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Encoding {
    Onnx,
    /// OpenVINO IR: an `.xml` file and its `.bin`.
    Openvino,
}

/// The kind of device that a model runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExecutionTarget {
    Cpu,
    Gpu,
    Npu,
}

/// The precision of a model's arithmetic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    F32,
    Bf16,
}

/// Limits of a component's calls; `None`: as the operator says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Limits {
    pub memory_mib: Option<u64>,
    pub deadline_ms: Option<u64>,
    pub concurrency: Option<usize>,
    pub request_body_mib: Option<u64>,
    pub response_body_mib: Option<u64>,
    /// Answers that are kept for the same question; `None` keeps none.
    pub response_cache_mib: Option<u64>,
}

/// The manifest that `start` means: the file itself, or else `spin.toml` in that folder or the
/// nearest one above it that has one. `None` also where `start` does not exist.
pub fn find(start: &Path) -> Option<PathBuf> {
    let start = std::path::absolute(start).ok()?;
    if start.is_file() {
        return Some(start);
    }
    if !start.is_dir() {
        return None;
    }
    let mut candidates = start.ancestors().map(|dir| dir.join(FILE_NAME));
    candidates.find(|path| path.is_file())
}

impl Manifest {
    /// Reads the manifest at `path`.
    ///
    /// # Errors
    /// Everything that is wrong with it, at once.
    pub fn load(path: &Path, options: &Options<'_>) -> Result<Self, ManifestErrors> {
        Self::parse(&document::read(path)?, path, options)
    }

    /// Reads the `text` of a manifest that stands, or is to stand, at `path`.
    ///
    /// # Errors
    /// Everything that is wrong with it, at once.
    pub fn parse(text: &str, path: &Path, options: &Options<'_>) -> Result<Self, ManifestErrors> {
        // Errors name the file as the caller does; what the manifest names must not depend on
        // the working directory.
        let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        document::walk(path, text, |root| read(root, absolute, options, true))
    }

    /// Reads the `text` of a manifest that no person has written, for the app that people know as `name`. No message
    /// and nothing in the manifest speaks of lines, and paths in it begin at `/`.
    ///
    /// # Errors
    /// Everything that is wrong with it, at once.
    pub(crate) fn of_text(text: &str, name: &str, options: &Options<'_>) -> Result<Self, ManifestErrors> {
        let read = |root: &mut Table<'_>| read(root, PathBuf::from("/").join(FILE_NAME), options, false);
        let mut manifest = document::walk(Path::new(name), text, read).map_err(|mut errors| {
            errors.errors.iter_mut().for_each(|error| error.line = 0);
            errors
        })?;
        manifest.path = PathBuf::from(name);
        manifest.dir = std::path::absolute(".").unwrap_or_else(|_| PathBuf::from("/"));
        for component in &mut manifest.components {
            component.line = 0;
            component.models.values_mut().for_each(|model| model.line = 0);
        }
        Ok(manifest)
    }

    /// The name of a component's function: `<app>/<component>`.
    pub fn function(&self, component: &Component) -> String {
        format!("{}/{}", self.name, component.id)
    }
}

/// What every part of the reading needs.
struct Reading<'a> {
    dir: &'a Path,
    options: &'a Options<'a>,
    variables: variables::Variables,
    /// The profiles that any component has.
    profiles: Vec<String>,
    warnings: Vec<String>,
}

fn read(root: &mut Table<'_>, path: PathBuf, options: &Options<'_>, has_lines: bool) -> Manifest {
    let dir = path.parent().unwrap_or(Path::new("/")).to_owned();
    let mut manifest = Manifest {
        path,
        dir: dir.clone(),
        name: String::new(),
        version: None,
        description: None,
        authors: Vec::new(),
        variables: BTreeMap::new(),
        triggers: Vec::new(),
        components: Vec::new(),
        warnings: Vec::new(),
    };
    if !version_is_ours(root) {
        root.ignore_rest();
        return manifest;
    }
    if let Some(value) = root.required("application", "[application]") {
        value.table(|t| application(t, &mut manifest));
    }
    let variables = variables::Variables::read(root, options);
    let (profiles, warnings) = Default::default();
    let mut reading = Reading { dir: &dir, options, variables, profiles, warnings };
    manifest.components = component::read_all(root, &mut reading);
    let drafts = triggers::read_all(root, &mut manifest.components, &mut reading);
    check_profile(root, &reading);
    manifest.variables = reading.variables.into_declared();
    manifest.warnings = reading.warnings;
    normal::complete(&mut manifest, drafts, has_lines);
    manifest
}

/// Whether this is a version 2 manifest. Of one of another version nothing else is worth saying.
fn version_is_ours(root: &mut Table<'_>) -> bool {
    let Some(version) = root.value("spin_manifest_version") else {
        match root.has("spin_version") {
            true => root.refuse(VERSION_1),
            false => root
                .refuse("the file lacks `spin_manifest_version`; add `spin_manifest_version = 2` at its top"),
        }
        return false;
    };
    match (version.as_integer(), version.as_str()) {
        (Some(2), _) => return true,
        (Some(1), _) | (_, Some("1")) => version.refuse(VERSION_1),
        (_, Some("2")) => version.refuse("write `spin_manifest_version = 2`, a number without quotes"),
        _ => version.refuse("only version 2 of the app manifest is known; write `spin_manifest_version = 2`"),
    }
    false
}

const VERSION_1: &str = "this is a version 1 manifest; write `spin_manifest_version = 2`, move name, \
    version, description and authors under `[application]`, turn each `[[component]]` with its `id` into \
    `[component.<id>]`, and each `[component.trigger]` into a `[[trigger.http]]` with `component = \"<id>\"`";

fn application(t: &mut Table<'_>, manifest: &mut Manifest) {
    if let Some(value) = t.required("name", "name = \"my-app\"") {
        let name = value.string().unwrap_or_default();
        if value.is_string() && !names::is_app(&name) {
            value.refuse(&format!(
                "the app cannot be named `{name}`: its name is part of its functions' names; use 1 to 64 \
                 of A-Z, a-z, 0-9, `.`, `_` and `-`, the first a letter or digit"
            ));
        }
        manifest.name = name;
    }
    manifest.version = t.string("version");
    manifest.description = t.string("description");
    manifest.authors = t.strings("authors");
    // Metadata for Spin's build-time checks and for other tools.
    t.value("targets");
    t.entries("tool");
    for (kind, settings) in t.entries("trigger") {
        if !settings.is_empty() {
            settings.refuse(&format!(
                "settings of a trigger type are not supported yet; remove `[application.trigger.{kind}]`"
            ));
        }
    }
}

fn check_profile(root: &Table<'_>, reading: &Reading<'_>) {
    let Some(profile) = reading.options.profile else { return };
    let known = reading.profiles.iter().map(String::as_str);
    if reading.profiles.is_empty() {
        root.refuse_file(&format!(
            "there is no profile `{profile}`: no component has a profile; leave the profile out"
        ));
    } else if !reading.profiles.iter().any(|name| name == profile) {
        let advice = advice(profile, known, "there are");
        root.refuse_file(&format!("there is no profile `{profile}`; {advice}"));
    }
}
