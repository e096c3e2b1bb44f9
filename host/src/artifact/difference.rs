//! What differs between two apps: their code, models, limits and capabilities. Pure: an app becomes a list of facts,
//! and two lists are compared.

mod outside;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Serialize;
use serde_json::Value as Json;
use thiserror::Error;

use super::fetch::MAX_COMPONENT_BYTES;
use super::manifest::{Component, Files, Manifest, Model, Source, Target};
use super::oci::Digest;
use outside::Outside;

/// What a fact is about, in the order in which differences are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Aspect {
    /// `name`, `version`, `description`.
    App,
    Route,
    /// A variable of the app, or one that a component reads.
    Variable,
    /// The component as a whole.
    Component,
    Code,
    Import,
    Export,
    /// An exported function and its type.
    Function,
    /// What the author's interface says besides: inputs, outputs.
    Interface,
    Model,
    /// How a model is served.
    Serving,
    Limit,
    OutboundHost,
    KeyValueStore,
    Environment,
    File,
    Sample,
}

impl Aspect {
    /// As people read it.
    pub fn name(self) -> &'static str {
        match self {
            Aspect::App => "app",
            Aspect::Route => "route",
            Aspect::Variable => "variable",
            Aspect::Component => "component",
            Aspect::Code => "code",
            Aspect::Import => "import",
            Aspect::Export => "export",
            Aspect::Function => "function",
            Aspect::Interface => "interface",
            Aspect::Model => "model",
            Aspect::Serving => "serving",
            Aspect::Limit => "limit",
            Aspect::OutboundHost => "outbound host",
            Aspect::KeyValueStore => "key-value store",
            Aspect::Environment => "environment",
            Aspect::File => "file",
            Aspect::Sample => "sample",
        }
    }

    /// Whether having one lets the app reach, read or answer more.
    fn is_capability(self) -> bool {
        use Aspect::{File, KeyValueStore, Model, OutboundHost, Route, Variable};
        matches!(self, Route | Variable | Model | OutboundHost | KeyValueStore | File)
    }
}

/// Where a fact stands.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    /// Empty: the app as a whole.
    component: String,
    aspect: Aspect,
    name: String,
}

/// One thing that is so.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Fact {
    text: String,
    /// A limit's number.
    number: Option<u64>,
    /// Bytes of what the fact is about; not compared.
    size: Option<u64>,
    /// Whether the text may be a secret: it is compared, and not shown.
    is_hidden: bool,
}

/// An app as it is compared.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    facts: BTreeMap<Place, Fact>,
    /// What the app consists of, and the bytes of each.
    blobs: BTreeMap<Digest, u64>,
}

/// Something that is not the same in both apps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// The component's id; `None`: the app as a whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub component: Option<String>,
    pub aspect: Aspect,
    /// Which one; empty where there is but one.
    pub name: String,
    /// `None`: there is none in the first app.
    pub before: Option<Side>,
    /// `None`: there is none in the second app.
    pub after: Option<Side>,
    /// Whether the second app may do or take more by it.
    pub grows: bool,
}

/// One side of a difference.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Side {
    /// Empty where it may be a secret, or where there is nothing to say but that it is there.
    pub text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
}

/// Why an app cannot be compared.
#[derive(Debug, Error)]
pub enum DescribeError {
    #[error("`{path}` cannot be read: {reason}")]
    Read { path: String, reason: String },
    #[error("`{path}` is larger than {} MiB", MAX_COMPONENT_BYTES >> 20)]
    TooLarge { path: String },
    #[error("`{path}` is not WebAssembly that can be read: {reason}")]
    Wasm { path: String, reason: String },
}

/// What to compare an app by.
pub struct App<'a> {
    pub manifest: &'a Manifest,
    pub files: &'a Files,
    /// By component: what the artifact says of its interface. Compared where both apps have it.
    pub interfaces: &'a BTreeMap<String, Json>,
    /// Asked for every file of the app's.
    pub digest: &'a Measure<'a>,
}

/// Tells the digest and the bytes of a file.
pub type Measure<'a> = dyn Fn(&Path) -> Result<(Digest, u64), DescribeError> + 'a;

impl Facts {
    /// Looks at all of an app, its code included.
    ///
    /// # Errors
    /// Where a file cannot be read, or the code is not WebAssembly.
    pub fn of(app: &App<'_>) -> Result<Facts, DescribeError> {
        let mut facts = Facts::default();
        let manifest = app.manifest;
        facts.add("", Aspect::App, "name", &manifest.name);
        for (name, text) in [("version", &manifest.version), ("description", &manifest.description)] {
            if let Some(text) = text {
                facts.add("", Aspect::App, name, text);
            }
        }
        for trigger in &manifest.triggers {
            let target = match &trigger.target {
                Target::Component(id) => id.clone(),
                Target::Static { status, body, .. } => format!("status {status}, {} bytes", body.len()),
            };
            if let Some(route) = &trigger.route {
                facts.add("", Aspect::Route, route, &target);
            }
        }
        for (name, variable) in &manifest.variables {
            let kind = if variable.secret { "secret, " } else { "" };
            let text = match &variable.default {
                None => format!("{kind}required"),
                Some(default) => format!("{kind}default `{default}`"),
            };
            facts.add("", Aspect::Variable, name, &text).is_hidden = variable.secret && !variable.required;
        }
        for component in &manifest.components {
            facts.add_component(component, app)?;
        }
        Ok(facts)
    }

    fn add(&mut self, component: &str, aspect: Aspect, name: &str, text: &str) -> &mut Fact {
        let place = Place { component: component.to_owned(), aspect, name: name.to_owned() };
        let fact = Fact { text: text.to_owned(), number: None, size: None, is_hidden: false };
        self.facts.entry(place).insert_entry(fact).into_mut()
    }

    fn add_component(&mut self, component: &Component, app: &App<'_>) -> Result<(), DescribeError> {
        let id = component.id.as_str();
        self.add(id, Aspect::Component, "", "");
        self.add_code(component, app)?;
        for (name, template) in &component.variable_templates {
            self.add(id, Aspect::Variable, name, template).is_hidden = true;
        }
        for (name, value) in &component.environment {
            self.add(id, Aspect::Environment, name, value).is_hidden = true;
        }
        for host in &component.outbound_host_templates {
            self.add(id, Aspect::OutboundHost, host, "");
        }
        for store in &component.key_value_stores {
            self.add(id, Aspect::KeyValueStore, store, "");
        }
        for (name, model) in &component.models {
            self.add_model(id, name, model, app)?;
        }
        if let Some(name) = &component.model_name {
            self.add(id, Aspect::Serving, "name", name);
        }
        self.add_limits(id, component);
        for mount in app.files.mounts.get(id).into_iter().flatten() {
            self.add_file(id, Aspect::File, &mount.destination, &mount.source, app)?;
        }
        for (name, path) in app.files.samples.get(id).into_iter().flatten() {
            self.add_file(id, Aspect::Sample, name, path, app)?;
        }
        if let Some(Json::Object(interface)) = app.interfaces.get(id) {
            for (key, value) in interface {
                self.add(id, Aspect::Interface, key, &value.to_string());
            }
        }
        Ok(())
    }

    fn add_code(&mut self, component: &Component, app: &App<'_>) -> Result<(), DescribeError> {
        let id = component.id.as_str();
        let path = match &component.source {
            Source::Path(path) => path,
            Source::Url { digest, .. } => {
                self.add(id, Aspect::Code, "", digest);
                return Ok(());
            }
            Source::Model => return Ok(()),
        };
        let (digest, size) = (app.digest)(path)?;
        self.blobs.insert(digest, size);
        self.add(id, Aspect::Code, "", &digest.to_string()).size = Some(size);
        let shown = || path.display().to_string();
        if size > MAX_COMPONENT_BYTES {
            return Err(DescribeError::TooLarge { path: shown() });
        }
        let failed = |error: std::io::Error| DescribeError::Read { path: shown(), reason: error.to_string() };
        let wasm = std::fs::read(path).map_err(failed)?;
        let outside = Outside::of(&wasm).map_err(|reason| DescribeError::Wasm { path: shown(), reason })?;
        let outside = [
            (Aspect::Import, outside.imports),
            (Aspect::Export, outside.exports),
            (Aspect::Function, outside.functions),
        ];
        for (aspect, names) in outside {
            for (name, text) in names {
                self.add(id, aspect, &name, &text);
            }
        }
        Ok(())
    }

    fn add_model(&mut self, id: &str, name: &str, model: &Model, app: &App<'_>) -> Result<(), DescribeError> {
        let in_registry = model.reference.as_ref().filter(|_| model.path.as_os_str().is_empty());
        if let Some(reference) = in_registry {
            self.add(id, Aspect::Model, name, reference);
        } else {
            self.add_file(id, Aspect::Model, name, &model.path, app)?;
        }
        if let Some(weights) = &model.weights {
            self.add_file(id, Aspect::Model, &format!("{name}, its weights"), weights, app)?;
        }
        let mut serving = vec![
            ("encoding", format!("{:?}", model.encoding).to_lowercase()),
            ("target", format!("{:?}", model.target).to_lowercase()),
        ];
        serving.extend(model.backend.clone().map(|backend| ("backend", backend)));
        serving
            .extend(model.precision.map(|precision| ("precision", format!("{precision:?}").to_lowercase())));
        serving.extend(model.idle_timeout_s.map(|seconds| ("idle_timeout_s", seconds.to_string())));
        serving.extend(model.concurrency.map(|concurrency| ("concurrency", concurrency.to_string())));
        serving.extend(model.queue_length.map(|length| ("queue_length", length.to_string())));
        serving.extend(model.batching.map(|batching| {
            let (rows, delay) = (batching.max_size, batching.max_delay.as_micros());
            ("batching", format!("up to {rows} rows, {delay} us"))
        }));
        for (key, text) in serving {
            self.add(id, Aspect::Serving, &format!("{name}.{key}"), &text);
        }
        Ok(())
    }

    fn add_limits(&mut self, id: &str, component: &Component) {
        let limits = &component.limits;
        let count = |number: Option<usize>| number.map(|number| number as u64);
        let limits = [
            ("memory_mib", limits.memory_mib),
            ("deadline_ms", limits.deadline_ms),
            ("concurrency", count(limits.concurrency)),
            ("request_body_mib", limits.request_body_mib),
            ("response_body_mib", limits.response_body_mib),
            ("response_cache_mib", limits.response_cache_mib),
        ];
        for (name, number) in limits {
            if let Some(number) = number {
                self.add(id, Aspect::Limit, name, &number.to_string()).number = Some(number);
            }
        }
    }

    fn add_file(
        &mut self,
        id: &str,
        aspect: Aspect,
        name: &str,
        path: &Path,
        app: &App<'_>,
    ) -> Result<(), DescribeError> {
        let (digest, size) = (app.digest)(path)?;
        self.blobs.insert(digest, size);
        self.add(id, aspect, name, &digest.to_string()).size = Some(size);
        Ok(())
    }

    /// Bytes of all that the app consists of, each content once.
    pub fn bytes(&self) -> u64 {
        self.blobs.values().sum()
    }

    /// Bytes that a machine that has `former` lacks of this app.
    pub fn bytes_beyond(&self, former: &Facts) -> u64 {
        let new = self.blobs.iter().filter(|(digest, _)| !former.blobs.contains_key(digest));
        new.map(|(_, size)| size).sum()
    }
}

/// What is not the same, in the order of components and aspects. Of a component that only one of the apps has, its
/// capabilities, models and limits are told, and not what its code is like.
pub fn differences(before: &Facts, after: &Facts) -> Vec<Difference> {
    let ids = |facts: &Facts| -> BTreeSet<String> {
        facts.facts.keys().map(|place| place.component.clone()).collect()
    };
    let both: BTreeSet<_> = ids(before).intersection(&ids(after)).cloned().collect();
    let has_interface = |facts: &Facts, id: &str| {
        facts.facts.keys().any(|place| place.component == id && place.aspect == Aspect::Interface)
    };
    let places: BTreeSet<_> = before.facts.keys().chain(after.facts.keys()).collect();
    let told = places.into_iter().filter(|place| {
        use Aspect::{Code, Export, Function, Import, Interface, Serving};
        let is_about_code = matches!(place.aspect, Code | Import | Export | Function | Interface | Serving);
        match place.aspect {
            Interface => has_interface(before, &place.component) && has_interface(after, &place.component),
            _ => both.contains(&place.component) || !is_about_code,
        }
    });
    let compared = told.map(|place| {
        let is_in_both = both.contains(&place.component);
        difference(place, before.facts.get(place), after.facts.get(place), is_in_both)
    });
    compared.flatten().collect()
}

fn difference(
    place: &Place,
    before: Option<&Fact>,
    after: Option<&Fact>,
    is_in_both: bool,
) -> Option<Difference> {
    let same = |(one, other): (&Fact, &Fact)| one.text == other.text;
    if before.zip(after).is_some_and(same) {
        return None;
    }
    let grows = match (before, after) {
        // What the app declares is granted to its components one by one.
        (None, Some(_)) if place.aspect == Aspect::Variable => !place.component.is_empty(),
        (None, Some(_)) => place.aspect.is_capability(),
        // What was bounded by the author is so by the operator alone.
        (Some(_), None) => place.aspect == Aspect::Limit && is_in_both,
        (Some(before), Some(after)) => before.number < after.number,
        (None, None) => false,
    };
    let side = |fact: &Fact| {
        let text = if fact.is_hidden { String::new() } else { fact.text.clone() };
        Side { text, bytes: fact.size }
    };
    Some(Difference {
        component: Some(place.component.clone()).filter(|id| !id.is_empty()),
        aspect: place.aspect,
        name: place.name.clone(),
        before: before.map(side),
        after: after.map(side),
        grows,
    })
}
