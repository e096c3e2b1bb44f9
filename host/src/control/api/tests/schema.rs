//! As much of JSON Schema as the description of the API needs: what is not known here is a mistake in it.

use serde_json::{Map, Value};

/// What is wrong with a value, by a schema of `document`.
pub(super) fn violations(document: &Value, schema: &Value, value: &Value) -> Vec<String> {
    let mut checked = Checked { document, is_strict: false, found: Vec::new() };
    checked.check(schema, value, "");
    checked.found
}

/// The same, where members that are not described are wrong too.
pub(super) fn strictly(document: &Value, schema: &Value, value: &Value) -> Vec<String> {
    let mut checked = Checked { document, is_strict: true, found: Vec::new() };
    checked.check(schema, value, "");
    checked.found
}

struct Checked<'d> {
    document: &'d Value,
    is_strict: bool,
    found: Vec<String>,
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

impl Checked<'_> {
    fn fail(&mut self, at: &str, what: String) {
        self.found.push(format!("{at} {what}"));
    }

    fn check(&mut self, schema: &Value, value: &Value, at: &str) {
        let schema = resolve(self.document, schema).as_object().unwrap();
        for (key, rule) in schema {
            self.rule(key, rule, value, at);
        }
        if let Some(object) = value.as_object() {
            self.members(schema, object, at);
        }
    }

    fn rule(&mut self, key: &str, rule: &Value, value: &Value, at: &str) {
        match key {
            // Members are looked at together.
            "properties" | "additionalProperties" | "required" => {}
            "description" | "default" | "discriminator" | "format" => {}
            "type" => {
                let is_one = match rule {
                    Value::Array(types) => types.iter().any(|one| is_of(one, value)),
                    one => is_of(one, value),
                };
                if !is_one {
                    self.fail(at, format!("must be {rule}, not {value}"));
                }
            }
            "const" if rule != value => self.fail(at, format!("must be {rule}, not {value}")),
            "enum" if !rule.as_array().unwrap().contains(value) => {
                self.fail(at, format!("must be one of {rule}, not {value}"));
            }
            "const" | "enum" => {}
            "minimum" if value.is_number() && value.as_f64() < rule.as_f64() => {
                self.fail(at, format!("is too small: {value}"));
            }
            "maximum" if value.as_f64() > rule.as_f64() => self.fail(at, format!("is too large: {value}")),
            "minimum" | "maximum" => {}
            "maxLength" => {
                let longest = usize::try_from(rule.as_u64().unwrap()).unwrap();
                if value.as_str().is_some_and(|text| text.chars().count() > longest) {
                    self.fail(at, "is too long".to_owned());
                }
            }
            "pattern" => {
                if value.as_str().is_some_and(|text| !fits(rule.as_str().unwrap(), text)) {
                    self.fail(at, format!("does not fit {rule}: {value}"));
                }
            }
            "items" => {
                for (index, item) in value.as_array().into_iter().flatten().enumerate() {
                    self.check(rule, item, &format!("{at}/{index}"));
                }
            }
            "oneOf" => {
                let forms = rule.as_array().unwrap().iter();
                let fitting: Vec<_> =
                    forms.filter(|one| violations(self.document, one, value).is_empty()).collect();
                match fitting.as_slice() {
                    [one] => self.check(one, value, at),
                    several => {
                        self.fail(
                            at,
                            format!("fits {} of the forms that it may have: {value}", several.len()),
                        );
                    }
                }
            }
            unknown => panic!("`{unknown}` is not known here"),
        }
    }

    fn members(&mut self, schema: &Map<String, Value>, object: &Map<String, Value>, at: &str) {
        let properties = schema.get("properties").and_then(Value::as_object);
        for required in schema.get("required").and_then(Value::as_array).into_iter().flatten() {
            if !object.contains_key(required.as_str().unwrap()) {
                self.fail(at, format!("lacks {required}"));
            }
        }
        for (key, value) in object {
            let at = format!("{at}/{key}");
            let described = properties.and_then(|properties| properties.get(key));
            match described.or_else(|| schema.get("additionalProperties")) {
                Some(Value::Bool(false)) => self.fail(&at, "is not known".to_owned()),
                Some(schema) => self.check(schema, value, &at),
                None if self.is_strict && properties.is_some() => {
                    self.fail(&at, "is not described".to_owned());
                }
                None => {}
            }
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
