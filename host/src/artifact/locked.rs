//! Spin's locked app: the JSON that stands for an app in an image, and that Spin hands to the trigger of an app.
//!
//! What is written here is what Spin writes, key for key. What is read may come from anybody: keys that are not known
//! are passed over, as Spin does, but for those that an app says must be understood.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use thiserror::Error;

use super::oci::Digest;

/// The media type of the layer that is a locked app.
pub const APPLICATION: &str = "application/vnd.fermyon.spin.application.v1+config";
/// The media type of a layer that is a component.
pub const WASM: &str = "application/vnd.wasm.content.layer.v1+wasm";
/// The media type of a layer that is a file.
pub const DATA: &str = "application/vnd.wasm.content.layer.v1+data";
/// The media type of a layer that is an archive of files.
pub const BUNDLE: &str = "application/vnd.wasm.content.bundle.v1.tar+gzip";
/// What a component's source says that it is.
pub const WASM_CONTENT: &str = "application/wasm";

/// Content of at most so many bytes stands in the locked app itself, as base64: some registries take no tiny blobs.
pub const MAX_INLINE_BYTES: u64 = 128;
/// The largest locked app that is read, in bytes.
pub const MAX_BYTES: u64 = 16 << 20;

/// The newest version that is known. Without requirements an app is of version 0.
const VERSION: u32 = 1;
/// The parts of a locked app that it may demand to be understood, which are understood here.
const UNDERSTOOD: [&str; 2] = ["host_requirements", COMPONENT_REQUIREMENTS];
const COMPONENT_REQUIREMENTS: &str = "component_host_requirements";
/// Requirements that this host meets: requests from one component of an app to another.
const MET: [&str; 1] = [CHAINING];
const CHAINING: &str = "local_service_chaining";
const REQUIRED: &str = "required";
const OPTIONAL: &str = "optional";

/// A whole app.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LockedApp {
    pub spin_lock_version: u32,
    /// Names of parts that a host must understand or refuse the app.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub must_understand: Vec<String>,
    /// `name`, `version`, `description`, `authors`; `triggers` and `trigger` with settings of trigger types; `origin`.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub metadata: Map<String, Value>,
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub host_requirements: Map<String, Value>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub variables: BTreeMap<String, Variable>,
    pub triggers: Vec<Trigger>,
    pub components: Vec<Component>,
}

/// An app variable; without a default it is required.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Variable {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub secret: bool,
}

/// What starts a call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trigger {
    pub id: String,
    /// Such as `http`.
    pub trigger_type: String,
    /// The keys of the trigger's table in `spin.toml`, `component` among them.
    pub trigger_config: Value,
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub trigger_dependencies: Map<String, Value>,
}

/// A component and what it is granted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Component {
    pub id: String,
    /// `description`, `allowed_outbound_hosts`, `key_value_stores`, `databases`, `ai_models`, `build`.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub metadata: Map<String, Value>,
    pub source: Source,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<File>,
    /// The component's variables, as templates.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub config: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub dependencies: Map<String, Value>,
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub trigger_dependencies: Map<String, Value>,
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub host_requirements: Map<String, Value>,
}

/// Where a component's wasm is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    pub content_type: String,
    #[serde(flatten)]
    pub content: Content,
}

/// A file of a component, or a folder of files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    #[serde(flatten)]
    pub content: Content,
    /// Where the guest finds it; in an image relative to the guest's root.
    pub path: String,
}

/// Where content is: one or more of the three.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    /// A URL, of a file where Spin hands the app over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none", with = "inline")]
    pub inline: Option<Vec<u8>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
}

/// Why a locked app is not taken.
#[derive(Debug, Error)]
pub enum LockedError {
    #[error("the locked app has {bytes} bytes, more than {} MiB", MAX_BYTES >> 20)]
    TooLarge { bytes: u64 },
    #[error("the locked app is not what Spin writes: {0}")]
    Json(#[from] serde_json::Error),
    #[error("the locked app has version {0}, and {VERSION} is the newest that is known here; update Tenon")]
    Version(u32),
    #[error("the app says that its `{0}` must be understood, which is not known here; update Tenon")]
    MustUnderstand(String),
    #[error("{who} needs `{requirement}` of its host, which is not supported here")]
    Requirement { who: String, requirement: String },
    #[error(
        "component `{0}` was pushed without the components that it depends on; compose it when it is built, or push \
         it with `spin registry push`, which composes unless told not to"
    )]
    Dependencies(String),
}

impl LockedApp {
    /// Reads the JSON of a locked app.
    ///
    /// # Errors
    /// Where it is too large, not a locked app, of a version that is not known, or needs what is not supported here.
    pub fn parse(bytes: &[u8]) -> Result<LockedApp, LockedError> {
        if bytes.len() as u64 > MAX_BYTES {
            return Err(LockedError::TooLarge { bytes: bytes.len() as u64 });
        }
        let app: LockedApp = serde_json::from_slice(bytes)?;
        if app.spin_lock_version > VERSION {
            return Err(LockedError::Version(app.spin_lock_version));
        }
        if let Some(unknown) = app.must_understand.iter().find(|name| !UNDERSTOOD.contains(&name.as_str())) {
            return Err(LockedError::MustUnderstand(shown(unknown)));
        }
        met("the app", &app.host_requirements)?;
        for component in &app.components {
            met(&format!("component `{}`", shown(&component.id)), &component.host_requirements)?;
        }
        Ok(app)
    }

    /// Refuses what was not put together: components that still depend on others.
    ///
    /// # Errors
    /// The first of them.
    pub fn check_composed(&self) -> Result<(), LockedError> {
        let is_loose = |component: &&Component| {
            !component.dependencies.is_empty() || !component.trigger_dependencies.is_empty()
        };
        match self.components.iter().find(is_loose) {
            Some(component) => Err(LockedError::Dependencies(shown(&component.id))),
            None => Ok(()),
        }
    }

    /// The JSON, the same bytes every time.
    pub fn bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("strings and numbers are JSON")
    }

    /// Whether JSON is a locked app, and not the config of an image that has one among its layers.
    pub fn is_in(bytes: &[u8]) -> bool {
        #[derive(Deserialize)]
        struct Outline {
            spin_lock_version: Option<Value>,
        }
        serde_json::from_slice::<Outline>(bytes).is_ok_and(|outline| outline.spin_lock_version.is_some())
    }

    /// Where the app was loaded from, as Spin says: `file:///.../spin.toml`, or `vnd.fermyon.origin-oci:` and a
    /// reference.
    pub fn origin(&self) -> Option<&str> {
        self.metadata.get("origin")?.as_str()
    }

    /// Has the app demand what its components need of their host, and gives it the version that goes with that.
    pub fn demand_requirements(&mut self) {
        let required = Value::from(REQUIRED);
        for component in &mut self.components {
            let hosts = component.metadata.get("allowed_outbound_hosts").and_then(Value::as_array);
            let hosts = hosts.into_iter().flatten().filter_map(Value::as_str);
            if hosts.into_iter().any(is_chaining) {
                component.host_requirements.insert(CHAINING.to_owned(), required.clone());
                self.must_understand = vec![COMPONENT_REQUIREMENTS.to_owned()];
                self.spin_lock_version = VERSION;
            }
        }
    }
}

/// Whether an allowed host is another component of the app.
fn is_chaining(allowed: &str) -> bool {
    let host = allowed.split_once("://").map_or(allowed, |(_, host)| host);
    let host = host.split(['/', ':']).next().unwrap_or(host);
    host.ends_with(".spin.internal")
}

fn met(who: &str, requirements: &Map<String, Value>) -> Result<(), LockedError> {
    let is_needed = |(_, value): &(&String, &Value)| value.as_str() != Some(OPTIONAL);
    let unmet = requirements.iter().filter(is_needed).find(|(name, _)| !MET.contains(&name.as_str()));
    match unmet {
        Some((name, _)) => Err(LockedError::Requirement { who: who.to_owned(), requirement: shown(name) }),
        None => Ok(()),
    }
}

/// A name out of an app, fit to be shown: short and without control characters.
pub(super) fn shown(name: &str) -> String {
    name.chars().take(100).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// Content within the JSON: base64 without padding.
mod inline {
    use base64::Engine as _;
    use base64::alphabet::STANDARD;
    use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
    use serde::{Deserialize as _, Deserializer, Serializer};

    /// Writes no padding, as Spin, and reads both.
    const BASE64: GeneralPurpose = GeneralPurpose::new(
        &STANDARD,
        GeneralPurposeConfig::new()
            .with_encode_padding(false)
            .with_decode_padding_mode(DecodePaddingMode::Indifferent),
    );

    pub(super) fn serialize<S: Serializer>(
        bytes: &Option<Vec<u8>>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match bytes {
            Some(bytes) => serializer.serialize_str(&BASE64.encode(bytes)),
            None => serializer.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Vec<u8>>, D::Error> {
        let Some(text) = Option::<String>::deserialize(deserializer)? else { return Ok(None) };
        BASE64.decode(text).map(Some).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(app: &Value) -> Result<LockedApp, LockedError> {
        LockedApp::parse(app.to_string().as_bytes())
    }

    #[test]
    fn what_spin_writes_comes_back_byte_for_byte() {
        let text = concat!(
            r#"{"spin_lock_version":1,"must_understand":["host_requirements"],"metadata":{"name":"a","triggers":{}},"#,
            r#""host_requirements":{"local_service_chaining":"required"},"variables":{"x":{"description":"d","#,
            r#""default":"","secret":true}},"triggers":[{"id":"t","trigger_type":"http","trigger_config":{"#,
            r#""component":"c","route":"/..."}}],"components":[{"id":"c","metadata":{"description":"d"},"source":{"#,
            r#""content_type":"application/wasm","source":"file:///c.wasm"},"env":{"A":"b"},"files":[{"source":"#,
            r#""file:///assets","path":"/"},{"inline":"AQ","path":"b"}],"config":{"k":"{{ x }}"}}]}"#
        );
        let app = LockedApp::parse(text.as_bytes()).unwrap();
        assert_eq!(String::from_utf8(app.bytes()).unwrap(), text);
        assert_eq!(app.components[0].files[1].content.inline.as_deref(), Some(&[1][..]));
        let padded = LockedApp::parse(text.replace("\"AQ\"", "\"AQ==\"").as_bytes()).unwrap();
        assert_eq!(padded, app);
        assert!(LockedApp::is_in(text.as_bytes()) && !LockedApp::is_in(b"{\"architecture\":\"wasm\"}"));
    }

    #[test]
    fn what_a_host_must_do_is_refused_where_it_is_not_done() {
        let app = |key: &str, value: Value| {
            let mut app = json!({"spin_lock_version": 1, "triggers": [], "components": []});
            app[key] = value;
            app
        };
        parse(&app("host_requirements", json!({"warp": "optional", "local_service_chaining": 1}))).unwrap();
        parse(&app("must_understand", json!(["component_host_requirements"]))).unwrap();
        parse(&app("never_heard_of", json!(1))).unwrap();
        let check = |key: &str, value: Value, expected: &str| {
            let error = parse(&app(key, value)).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        check("host_requirements", json!({"warp": "required"}), "the app needs `warp` of its host");
        check("host_requirements", json!({"warp": {"speed": 9}}), "the app needs `warp` of its host");
        check("must_understand", json!(["a\u{1b}[31m"]), "`a\u{fffd}[31m` must be understood");
        check("spin_lock_version", json!(2), "version 2, and 1 is the newest");
        check("triggers", json!({}), "is not what Spin writes");
        check("components", json!([{"id": "c"}]), "missing field `source`");
        let deep = "[".repeat(100_000);
        let text = format!("{{\"spin_lock_version\":0,\"triggers\":[],\"components\":[],\"x\":{deep}");
        assert!(LockedApp::parse(text.as_bytes()).is_err());
        let large = vec![b' '; usize::try_from(MAX_BYTES).unwrap() + 1];
        assert!(LockedApp::parse(&large).unwrap_err().to_string().contains("more than 16 MiB"));
    }

    #[test]
    fn requests_to_other_components_are_told_by_their_host() {
        let check = |host: &str, expected: bool| assert_eq!(is_chaining(host), expected, "{host}");
        check("http://c.spin.internal", true);
        check("https://*.spin.internal:80/", true);
        check("https://example.com", false);
        check("https://spin.internal.example.com", false);
        check("http://self", false);
    }
}
