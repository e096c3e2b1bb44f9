//! The `spin.toml` that a locked app stands for, so that one reader checks both.

use serde_json::{Map, Value, json};

use super::UnpackError;
use crate::artifact::locked::{Component, LockedApp, Trigger, shown};
use crate::artifact::settings::{self, Settings};

/// Stands where a component's path is wanted; the component itself is put in its place.
const SOURCE: &str = "component.wasm";

/// The text of the manifest of `app`, with `settings` where they are known.
pub(super) fn text(app: &LockedApp, settings: Option<&Settings>) -> Result<String, UnpackError> {
    let mut text = "spin_manifest_version = 2\n".to_owned();
    let triggers: Vec<&Trigger> =
        app.triggers.iter().chain(settings.into_iter().flat_map(|settings| &settings.triggers)).collect();
    if triggers.is_empty() {
        text.push_str("trigger = {}\n");
    }
    add(&mut text, &["application"], application(app))?;
    for (name, variable) in &app.variables {
        let required = variable.default.is_none();
        let mut declaration = json!({"default": variable.default, "description": variable.description});
        declaration["required"] = json!(required);
        declaration["secret"] = json!(variable.secret);
        add(&mut text, &["variables", name], declaration)?;
    }
    for trigger in triggers {
        let Value::Object(mut keys) = trigger.trigger_config.clone() else {
            return Err(UnpackError::TriggerConfig(shown(&trigger.id)));
        };
        keys.insert("id".to_owned(), json!(trigger.id));
        keys.insert("dependencies".to_owned(), Value::Object(trigger.trigger_dependencies.clone()));
        add(&mut text, &["trigger", &trigger.trigger_type], json!([keys]))?;
    }
    let settings_of = |id: &str| settings.and_then(|settings| settings.components.get(id));
    for locked in &app.components {
        add(&mut text, &["component", &locked.id], component(locked, settings_of(&locked.id)))?;
    }
    let all = settings.into_iter().flat_map(|settings| &settings.components);
    for (id, own) in all.filter(|(_, own)| own.without_code) {
        let description = own.description.as_ref();
        let table = json!({"description": description, "tool": {"tenon": own.tool()}});
        add(&mut text, &["component", id], table)?;
    }
    Ok(text)
}

fn application(app: &LockedApp) -> Value {
    let mut table = Map::new();
    for key in ["name", "version", "description", "authors"] {
        table.extend(app.metadata.get(key).map(|value| (key.to_owned(), value.clone())));
    }
    if let Some(Value::Object(types)) = app.metadata.get("triggers") {
        let mut types = types.clone();
        for settings in types.values_mut().filter_map(Value::as_object_mut) {
            // Apps of old have this, and it is all that it can be.
            if settings.get("base").and_then(Value::as_str) == Some("/") {
                settings.remove("base");
            }
        }
        table.insert("trigger".to_owned(), Value::Object(types));
    }
    Value::Object(table)
}

fn component(locked: &Component, own: Option<&settings::Component>) -> Value {
    let mut table = Map::from_iter([
        ("source".to_owned(), json!(SOURCE)),
        ("environment".to_owned(), json!(locked.env)),
        ("variables".to_owned(), json!(locked.config)),
    ]);
    let metadata = [
        ("description", "description"),
        ("allowed_outbound_hosts", "allowed_outbound_hosts"),
        ("allowed_http_hosts", "allowed_http_hosts"),
        ("key_value_stores", "key_value_stores"),
        ("databases", "sqlite_databases"),
        ("ai_models", "ai_models"),
    ];
    for (key, name) in metadata {
        table.extend(locked.metadata.get(key).map(|value| (name.to_owned(), value.clone())));
    }
    if let Some(own) = own {
        table.insert("tool".to_owned(), json!({"tenon": own.tool()}));
    }
    Value::Object(table)
}

/// Adds the table or array of tables at the dotted `path`.
fn add(text: &mut String, path: &[&str], value: Value) -> Result<(), UnpackError> {
    let wrong = |reason: String| UnpackError::NotToml { path: shown(&path.join(".")), reason };
    let nested = path.iter().rev().fold(without_nulls(value), |value, key| json!({*key: value}));
    let nested = toml::Table::try_from(nested).map_err(|error| wrong(error.to_string()))?;
    text.push_str(&toml::to_string(&nested).map_err(|error| wrong(error.to_string()))?);
    text.push('\n');
    Ok(())
}

/// TOML has no nulls, and where JSON has one, it stands for a key that is not there.
fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(entries) => {
            let entries = entries.into_iter().filter(|(_, value)| !value.is_null());
            Value::Object(entries.map(|(key, value)| (key, without_nulls(value))).collect())
        }
        Value::Array(items) => {
            Value::Array(items.into_iter().filter(|item| !item.is_null()).map(without_nulls).collect())
        }
        value => value,
    }
}
