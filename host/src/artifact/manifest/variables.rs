//! App variables: their declarations, their values, and the `{{ templates }}` that use them.
//!
//! No message here ever shows a value: any of them may be secret.

use std::cell::Cell;
use std::collections::BTreeMap;

use crate::config::document::{Table, Value, advice};

use super::{Options, Variable, names};

/// How large the filled templates of an app may be together, in bytes.
const MAX_FILLED: usize = 4 << 20;

/// The declared variables of an app; `None` is one that is required and has no value.
pub(super) struct Variables {
    declared: BTreeMap<String, Variable>,
    values: BTreeMap<String, Option<String>>,
    values_required: bool,
    /// Bytes that may still be filled in: a long value used often would fill the memory.
    left: Cell<usize>,
}

impl Variables {
    /// Reads `[variables]`. A value comes from the options, else the environment, else the default.
    pub(super) fn read(root: &mut Table<'_>, options: &Options<'_>) -> Self {
        let (mut declared, mut values) = (BTreeMap::new(), BTreeMap::new());
        for (name, declaration) in root.entries("variables") {
            if !names::is_variable(&name) {
                declaration.refuse(&format!(
                    "a variable cannot be named `{name}`; use lower-case words with `_` between them"
                ));
            }
            let variable = declaration.table(|t| variable(t, &name)).unwrap_or_default();
            let given = options.variables.get(&name).cloned();
            let value = given.or_else(|| (options.environment)(&name));
            values.insert(name.clone(), value.or_else(|| variable.default.clone()));
            declared.insert(name, variable);
        }
        for name in options.variables.keys().filter(|name| !values.contains_key(*name)) {
            let advice = unknown(name, &values);
            root.refuse_file(&format!("a value is given for the variable `{name}`; {advice}"));
        }
        Self { declared, values, values_required: options.values_required, left: Cell::new(MAX_FILLED) }
    }

    /// The declarations.
    pub(super) fn into_declared(self) -> BTreeMap<String, Variable> {
        self.declared
    }

    /// Fills in the templates of a string.
    pub(super) fn fill(&self, template: &Value<'_>) -> String {
        let Some(text) = template.string() else { return String::new() };
        let mut filled = String::new();
        let mut rest = text.as_str();
        while let Some((before, after)) = rest.split_once("{{") {
            let Some((expression, after)) = after.split_once("}}") else {
                template.refuse(&format!(
                    "`{}` has a `{{{{` without `}}}}`; close the template",
                    template.path()
                ));
                return filled;
            };
            filled.push_str(self.literal(before, template));
            filled.push_str(self.value(expression.trim(), template));
            rest = after;
        }
        filled.push_str(self.literal(rest, template));
        filled
    }

    fn literal<'t>(&self, text: &'t str, template: &Value<'_>) -> &'t str {
        if text.contains("}}") {
            let path = template.path();
            template.refuse(&format!("`{path}` has a `}}}}` without `{{{{`; open the template"));
        }
        text
    }

    fn value(&self, name: &str, template: &Value<'_>) -> &str {
        let path = template.path();
        match self.values.get(name) {
            Some(Some(value)) => match self.left.get().checked_sub(value.len()) {
                Some(left) => {
                    self.left.set(left);
                    return value;
                }
                None => {
                    let mib = MAX_FILLED >> 20;
                    template.refuse(&format!(
                        "`{path}` brings the filled variables of the app above {mib} MiB; make them shorter"
                    ));
                }
            },
            Some(None) if !self.values_required => {}
            Some(None) => template.refuse(&format!(
                "`{path}` needs the variable `{name}`, which has no value; give `--variable {name}=...` or set \
                 `SPIN_VARIABLE_{}`",
                name.to_ascii_uppercase()
            )),
            None => {
                let advice = unknown(name, &self.values);
                template.refuse(&format!("`{path}` uses `{{{{ {name} }}}}`; {advice}"));
            }
        }
        ""
    }
}

fn unknown(name: &str, values: &BTreeMap<String, Option<String>>) -> String {
    match values.is_empty() {
        true => format!("declare `{name}` under `[variables]`"),
        false => {
            let known = values.keys().map(String::as_str);
            format!("there is no such variable; {}", advice(name, known, "there are"))
        }
    }
}

/// One declaration, which is required or has a default.
fn variable(t: &mut Table<'_>, name: &str) -> Variable {
    let description = t.string("description");
    let secret = t.boolean("secret").unwrap_or(false);
    let required = t.boolean("required").unwrap_or(false);
    let given = t.value("default");
    match (required, &given) {
        (true, Some(_)) => t.refuse(&format!(
            "the variable `{name}` is required and has a default; remove `required` or `default`"
        )),
        (false, None) => t.refuse(&format!(
            "the variable `{name}` needs `required = true` or a `default`; add one of them"
        )),
        _ => {}
    }
    Variable { description, default: given.and_then(|value| value.string()), required, secret }
}
