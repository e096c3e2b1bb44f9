//! As much of JSON Schema as the description of the API needs: what is not known here is a mistake in it.

use serde_json::{Map, Value};

/// What is wrong with a value, by a schema of `document`.
pub(super) fn violations(document: &Value, schema: &Value, value: &Value) -> Vec<String> {
    let mut found = Vec::new();
    check(document, schema, value, "", &mut found);
    found
}

/// The schema itself, where it is only referred to.
pub(super) fn resolve<'d>(document: &'d Value, schema: &'d Value) -> &'d Value {
    match schema.get("$ref").and_then(Value::as_str) {
        Some(pointer) => {
            let pointer = pointer.strip_prefix('#').unwrap();
            document.pointer(pointer).unwrap_or_else(|| panic!("`{pointer}` leads nowhere"))
        }
        None => schema,
    }
}

fn check(document: &Value, schema: &Value, value: &Value, at: &str, found: &mut Vec<String>) {
    let schema = resolve(document, schema).as_object().unwrap();
    let number = |key: &str| schema.get(key).and_then(Value::as_f64);
    for (key, rule) in schema {
        match key.as_str() {
            "description" | "default" | "discriminator" | "format" | "required" => {}
            "type" => {
                let is_one = match rule {
                    Value::Array(types) => types.iter().any(|one| is_of(one, value)),
                    one => is_of(one, value),
                };
                if !is_one {
                    found.push(format!("{at} must be {rule}, not {value}"));
                }
            }
            "const" if rule != value => found.push(format!("{at} must be {rule}, not {value}")),
            "enum" if !rule.as_array().unwrap().contains(value) => {
                found.push(format!("{at} must be one of {rule}, not {value}"));
            }
            "const" | "enum" => {}
            "minimum" if value.as_f64() < number("minimum") && value.is_number() => {
                found.push(format!("{at} is too small: {value}"));
            }
            "maximum" if value.as_f64() > number("maximum") => {
                found.push(format!("{at} is too large: {value}"));
            }
            "minimum" | "maximum" => {}
            "maxLength" => {
                let longest = usize::try_from(rule.as_u64().unwrap()).unwrap();
                if value.as_str().is_some_and(|text| text.chars().count() > longest) {
                    found.push(format!("{at} is too long"));
                }
            }
            "pattern" => {
                if value.as_str().is_some_and(|text| !fits(rule.as_str().unwrap(), text)) {
                    found.push(format!("{at} does not fit {rule}: {value}"));
                }
            }
            "items" => {
                for (index, item) in value.as_array().into_iter().flatten().enumerate() {
                    check(document, rule, item, &format!("{at}/{index}"), found);
                }
            }
            "oneOf" => {
                let fitting = rule.as_array().unwrap().iter();
                let fitting = fitting.filter(|one| violations(document, one, value).is_empty()).count();
                if fitting != 1 {
                    found.push(format!("{at} fits {fitting} of the forms that it may have: {value}"));
                }
            }
            "properties" | "additionalProperties" => {}
            unknown => panic!("`{unknown}` is not known here"),
        }
    }
    if let Some(object) = value.as_object() {
        members(document, schema, object, at, found);
    }
}

fn members(
    document: &Value,
    schema: &Map<String, Value>,
    object: &Map<String, Value>,
    at: &str,
    found: &mut Vec<String>,
) {
    let properties = schema.get("properties").and_then(Value::as_object);
    for required in schema.get("required").and_then(Value::as_array).into_iter().flatten() {
        if !object.contains_key(required.as_str().unwrap()) {
            found.push(format!("{at} lacks {required}"));
        }
    }
    for (key, value) in object {
        let at = format!("{at}/{key}");
        match properties.and_then(|properties| properties.get(key)) {
            Some(schema) => check(document, schema, value, &at, found),
            None => match schema.get("additionalProperties") {
                Some(Value::Bool(false)) => found.push(format!("{at} is not known")),
                Some(schema @ Value::Object(_)) => check(document, schema, value, &at, found),
                _ => {}
            },
        }
    }
}

fn is_of(name: &Value, value: &Value) -> bool {
    match name.as_str().unwrap() {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_u64() || value.is_i64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        unknown => panic!("there is no type `{unknown}`"),
    }
}

/// The two patterns that there are.
fn fits(pattern: &str, text: &str) -> bool {
    match pattern {
        "^sha256:[0-9a-f]{64}$" => text.parse::<crate::artifact::oci::Digest>().is_ok(),
        "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$" => {
            let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
            text.starts_with(|c: char| c.is_ascii_alphanumeric())
                && text.len() <= 64
                && text.chars().all(allowed)
        }
        unknown => panic!("the pattern `{unknown}` is not known here"),
    }
}
