//! Tenon's own settings of a packed app: what a locked app cannot say, as one JSON document beside it.
//!
//! The document is strict: a host that does not know a key would serve the app with other limits than its author
//! meant. A new key is therefore a new version.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use thiserror::Error;

use super::locked;
use super::manifest::{self, Batching, Encoding, ExecutionTarget, Limits, Precision};
use super::oci::{Descriptor, Digest, ImageManifest};

/// The annotation that tells the settings among the layers: on the layer their version, on the manifest their digest.
pub const ANNOTATION: &str = "dev.tenon.settings";
/// The title of the layer.
pub const TITLE: &str = "tenon.json";
/// The settings among the files of an app that Spin pushed: the keys of `tool.tenon`, as TOML.
pub const FILE_NAME: &str = "tenon.toml";

/// The version that is written, and the only one that is read.
pub const VERSION: u32 = 1;
/// The largest document that is read, in bytes.
pub const MAX_BYTES: u64 = 16 << 20;

/// The settings of an app.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    pub version: u32,
    /// By id, all components of the app.
    #[serde(default)]
    pub components: BTreeMap<String, Component>,
    /// Triggers of components without code, which Spin could not run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub triggers: Vec<locked::Trigger>,
}

/// The settings of one component.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Component {
    /// Whether there is no code, and the component not in the locked app: it is its one model.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub without_code: bool,
    /// Of a component without code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_name: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub models: BTreeMap<String, Model>,
    /// Keys of `tool.tenon.limits`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub limits: BTreeMap<String, u64>,
    /// By name, which is a path such as `samples/one.json`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub samples: BTreeMap<String, Blob>,
    /// What callers of the function find: its WIT, inputs and outputs. For people and tools; nothing is decided by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<Value>,
}

/// A model and how it is served.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// The name of the author's file.
    pub name: String,
    pub file: Blob,
    /// The weights of an OpenVINO model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<Blob>,
    /// Where the author had the model from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    pub encoding: String,
    pub target: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub precision: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batching: Option<JoinedCalls>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_length: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_timeout_s: Option<u64>,
}

/// A layer of the same image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Blob {
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
}

/// `batching`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinedCalls {
    pub max_size: u64,
    pub max_delay_us: u64,
}

/// Why there are no settings to be had.
#[derive(Debug, Error)]
pub enum SettingsError {
    #[error("its settings (`{TITLE}`) are not what Tenon writes: {0}")]
    Json(#[from] serde_json::Error),
    #[error("its settings (`{TITLE}`) have version {0}, and {VERSION} is what is known here; update Tenon")]
    Version(u32),
    #[error(
        "its settings are gone: the manifest names them ({annotated}) and no layer is annotated as they; push the \
         app again with `tenon push`"
    )]
    Gone { annotated: String },
    #[error(
        "{layers} of its layers say that they are its settings, and the manifest names {annotated}; push the app again \
         with `tenon push`"
    )]
    Ambiguous { layers: usize, annotated: String },
}

impl Settings {
    /// The layer of `manifest` that has the settings; `None` where the app was not pushed by Tenon.
    ///
    /// # Errors
    /// Where the manifest and its layers do not agree.
    pub fn layer(manifest: &ImageManifest) -> Result<Option<&Descriptor>, SettingsError> {
        let annotated = manifest.annotations.get(ANNOTATION);
        let mut layers: Vec<_> =
            manifest.layers.iter().filter(|layer| layer.annotations.contains_key(ANNOTATION)).collect();
        layers.dedup_by_key(|layer| layer.digest);
        match (annotated, layers.as_slice()) {
            (None, []) => Ok(None),
            (Some(digest), [layer]) if layer.digest.to_string() == *digest => Ok(Some(layer)),
            (Some(annotated), []) => Err(SettingsError::Gone { annotated: locked::shown(annotated) }),
            (annotated, layers) => Err(SettingsError::Ambiguous {
                layers: layers.len(),
                annotated: annotated.map_or("none".to_owned(), |annotated| locked::shown(annotated)),
            }),
        }
    }

    /// Reads the document.
    ///
    /// # Errors
    /// Where it is not one, or of another version.
    pub fn parse(bytes: &[u8]) -> Result<Settings, SettingsError> {
        #[derive(Deserialize)]
        struct Outline {
            version: u32,
        }
        // A newer version has keys that are not known, so that its number is what to speak of.
        let Outline { version } = serde_json::from_slice(bytes)?;
        if version != VERSION {
            return Err(SettingsError::Version(version));
        }
        Ok(serde_json::from_slice(bytes)?)
    }

    /// The document, the same bytes every time.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec_pretty(self).expect("strings and numbers are JSON");
        bytes.push(b'\n');
        bytes
    }
}

impl Component {
    /// The settings of `component` without its models and samples, whose blobs are the caller's to find.
    pub(super) fn of(component: &manifest::Component) -> Component {
        let without_code = component.source == manifest::Source::Model;
        Component {
            without_code,
            description: component.description.clone().filter(|_| without_code),
            model_name: component.model_name.clone(),
            models: BTreeMap::new(),
            limits: limits(&component.limits),
            samples: BTreeMap::new(),
            interface: None,
        }
    }

    /// What would stand in `tool.tenon`, so that the same rules hold; each model has the path `model`.
    pub(super) fn tool(&self) -> Value {
        let models = self.models.iter().map(|(name, model)| (name.clone(), model.tool()));
        let mut tool = Map::from_iter([("models".to_owned(), Value::Object(models.collect()))]);
        if let Some(name) = &self.model_name {
            tool.insert("model_name".to_owned(), json!(name));
        }
        if !self.limits.is_empty() {
            tool.insert("limits".to_owned(), json!(self.limits));
        }
        Value::Object(tool)
    }
}

impl Model {
    /// How `model` is served, from the file `name` that is `file`.
    pub(super) fn of(model: &manifest::Model, name: String, file: Blob, weights: Option<Blob>) -> Model {
        let number = |number: usize| number as u64;
        Model {
            name,
            file,
            weights,
            reference: model.reference.clone(),
            encoding: encoding(model.encoding).to_owned(),
            target: target(model.target).to_owned(),
            backend: model.backend.clone(),
            precision: model.precision.map(|precision| self::precision(precision).to_owned()),
            concurrency: model.concurrency.map(number),
            batching: model.batching.map(JoinedCalls::of),
            queue_length: model.queue_length.map(number),
            idle_timeout_s: model.idle_timeout_s,
        }
    }

    fn tool(&self) -> Value {
        let mut tool = Map::new();
        tool.insert("path".to_owned(), json!("model"));
        tool.insert("encoding".to_owned(), json!(self.encoding));
        tool.insert("target".to_owned(), json!(self.target));
        let mut add = |key: &str, value: Option<Value>| {
            tool.extend(value.map(|value| (key.to_owned(), value)));
        };
        add("weights", self.weights.map(|_| json!("weights")));
        add("backend", self.backend.as_ref().map(|backend| json!(backend)));
        add("precision", self.precision.as_ref().map(|precision| json!(precision)));
        add("concurrency", self.concurrency.map(Value::from));
        add("batching", self.batching.map(|batching| json!(batching)));
        add("queue_length", self.queue_length.map(Value::from));
        add("idle_timeout_s", self.idle_timeout_s.map(Value::from));
        Value::Object(tool)
    }
}

impl JoinedCalls {
    fn of(batching: Batching) -> JoinedCalls {
        JoinedCalls {
            max_size: batching.max_size as u64,
            max_delay_us: u64::try_from(batching.max_delay.as_micros()).unwrap_or(u64::MAX),
        }
    }
}

fn limits(limits: &Limits) -> BTreeMap<String, u64> {
    let all = [
        ("memory_mib", limits.memory_mib),
        ("deadline_ms", limits.deadline_ms),
        ("concurrency", limits.concurrency.map(|concurrency| concurrency as u64)),
        ("request_body_mib", limits.request_body_mib),
        ("response_body_mib", limits.response_body_mib),
        ("response_cache_mib", limits.response_cache_mib),
    ];
    all.into_iter().filter_map(|(name, limit)| Some((name.to_owned(), limit?))).collect()
}

/// The name of an encoding in settings and manifests.
pub(super) fn encoding(encoding: Encoding) -> &'static str {
    match encoding {
        Encoding::Onnx => "onnx",
        Encoding::Openvino => "openvino",
    }
}

fn target(target: ExecutionTarget) -> &'static str {
    match target {
        ExecutionTarget::Cpu => "cpu",
        ExecutionTarget::Gpu => "gpu",
        ExecutionTarget::Npu => "npu",
    }
}

fn precision(precision: Precision) -> &'static str {
    match precision {
        Precision::F32 => "f32",
        Precision::Bf16 => "bf16",
    }
}
