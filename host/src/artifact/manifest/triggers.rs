//! The triggers of an app: `[[trigger.http]]` and `[[trigger.tenon]]`.

use std::collections::BTreeMap;

use crate::config::document::{Table, Value, advice};

use super::route::{self, Route};
use super::{Component, Reading, Source, TriggerKind, component, tool};

const TYPES: [(&str, TriggerKind); 2] = [("http", TriggerKind::Http), ("tenon", TriggerKind::Tenon)];
/// Trigger types that Spin has or had, beside http.
const SPINS_TYPES: [&str; 4] = ["redis", "mqtt", "cron", "sqs"];

/// A trigger as it stands in the file, before everything has an id.
pub(super) struct Draft<'a> {
    pub(super) at: Value<'a>,
    pub(super) kind: TriggerKind,
    pub(super) kind_name: &'static str,
    pub(super) id: Option<String>,
    /// `None` is private.
    pub(super) route: Option<Route>,
    pub(super) target: DraftTarget<'a>,
    /// Tenon's own settings of the component that is the target.
    settings: Option<Value<'a>>,
}

pub(super) enum DraftTarget<'a> {
    Reference {
        id: String,
        at: Value<'a>,
    },
    Inline(Box<Component>),
    Static {
        status: u16,
        headers: BTreeMap<String, String>,
        body: String,
    },
    /// The trigger says neither or both, which has been refused.
    Wrong,
}

/// Reads all triggers in the order of the file, and gives `components` the settings that stand in them.
pub(super) fn read_all<'a>(
    root: &mut Table<'a>,
    components: &mut [Component],
    reading: &mut Reading<'_>,
) -> Vec<Draft<'a>> {
    // A model without code is called by its name.
    let needed = !components.iter().any(|component| component.source == Source::Model);
    let types = if needed { root.required("trigger", "[[trigger.http]]") } else { root.value("trigger") };
    let Some(types) = types else { return Vec::new() };
    let mut drafts = Vec::new();
    for (name, list) in types.entries() {
        let Some((kind_name, kind)) = TYPES.iter().find(|(known, _)| *known == name) else {
            refuse_type(&name, &list);
            continue;
        };
        if list.is_table() {
            list.refuse(&format!("write `[[trigger.{name}]]` with two brackets: there can be several"));
            continue;
        }
        for at in list.items() {
            drafts.extend(at.clone().table(|t| read(t, at, *kind, kind_name, reading)));
        }
    }
    for draft in &mut drafts {
        let Some(settings) = &draft.settings else { continue };
        let component = match &mut draft.target {
            DraftTarget::Reference { id, .. } => components.iter_mut().find(|component| component.id == *id),
            DraftTarget::Inline(component) => Some(&mut **component),
            DraftTarget::Static { .. } | DraftTarget::Wrong => None,
        };
        match component {
            Some(component) => tool::settings(settings, component, reading.dir),
            None => settings
                .refuse("these `settings` are those of a component, and the trigger has none; remove them"),
        }
    }
    drafts
}

fn refuse_type(name: &str, list: &Value<'_>) {
    let advice = match SPINS_TYPES.contains(&name) {
        true => "remove it, or serve the component over http".to_owned(),
        false => advice(name, TYPES.iter().map(|(name, _)| *name), "there are"),
    };
    list.refuse(&format!("triggers of type `{name}` are not supported yet; {advice}"));
}

fn read<'a>(
    t: &mut Table<'a>,
    at: Value<'a>,
    kind: TriggerKind,
    kind_name: &'static str,
    reading: &mut Reading<'_>,
) -> Draft<'a> {
    let id = t.value("id").and_then(|value| {
        let id = value.string()?;
        if id.is_empty() {
            value.refuse("the trigger's `id` is empty; give it a name or leave it out");
        }
        Some(id)
    });
    for (key, what) in [("components", "several components for a trigger"), ("dependencies", "middleware")] {
        if let Some(value) = t.value(key).filter(|value| !value.is_empty()) {
            value.refuse(&format!("`{key}` ({what}) is not supported yet; remove it"));
        }
    }
    if let Some(value) = t.value("executor") {
        value.table(executor);
    }
    let settings = t.value("settings");
    if let (Some(settings), TriggerKind::Http) = (&settings, kind) {
        settings.refuse(
            "Spin takes no `settings` in `[[trigger.http]]`; move them to `[component.<id>.tool.tenon]`, or write \
             `[[trigger.tenon]]`",
        );
    }
    let route = t.required("route", "route = \"/...\"").and_then(|value| read_route(&value));
    Draft { id, route, target: target(t, reading), at, kind, kind_name, settings }
}

fn executor(t: &mut Table<'_>) {
    // Keys of wagi alone, which is refused as a whole.
    t.value("argv");
    t.value("entrypoint");
    if let Some(kind) = t.required("type", "type = \"http\"") {
        match kind.as_str() {
            Some("wagi") => kind.refuse(
                "the executor `wagi` is not supported; export `wasi:http/incoming-handler` and remove `executor`",
            ),
            _ => {
                kind.choice(&[("http", ()), ("spin", ())]);
            }
        }
    }
}

fn read_route(value: &Value<'_>) -> Option<Route> {
    if value.is_table() {
        value.table(|t| {
            if let Some(private) = t.required("private", "private = true")
                && private.boolean() == Some(false)
            {
                private.refuse("`private = false` is no route; write `route = \"/...\"` for a public one");
            }
        });
        return None;
    }
    let route = route::parse(&value.string()?);
    route.map_err(|why| value.refuse(&why)).ok()
}

fn target<'a>(t: &mut Table<'a>, reading: &mut Reading<'_>) -> DraftTarget<'a> {
    match (t.value("component"), t.value("static_response")) {
        (Some(at), None) if at.is_table() => {
            let inline = at.table(|t| component::read(t, String::new(), at.line(), reading));
            inline.map_or(DraftTarget::Wrong, |inline| DraftTarget::Inline(Box::new(inline)))
        }
        (Some(at), None) => match at.string() {
            Some(id) => DraftTarget::Reference { id, at },
            None => DraftTarget::Wrong,
        },
        (None, Some(response)) => response.table(static_response).unwrap_or(DraftTarget::Wrong),
        (Some(_), Some(response)) => {
            response.table(static_response);
            response.refuse("the trigger has `component` and `static_response`; remove one of them");
            DraftTarget::Wrong
        }
        (None, None) => {
            t.refuse("the trigger has no target; add `component = \"<id>\"` or a `static_response`");
            DraftTarget::Wrong
        }
    }
}

fn static_response<'a>(t: &mut Table<'a>) -> DraftTarget<'a> {
    let status = t.number("status_code", 200..=599, "").unwrap_or(200);
    for (name, value) in t.entries("headers") {
        // The host frames the answer itself.
        let framing = ["content-length", "transfer-encoding", "connection"];
        if framing.contains(&name.to_ascii_lowercase().as_str()) {
            value.refuse(&format!("the header `{name}` is set by the host; remove it"));
        } else if !is_header_name(&name) {
            value.refuse(&format!("`{name}` is not a header name; use letters, digits and `-`"));
        }
        if value.as_str().is_some_and(|text| text.contains(|c: char| c != '\t' && c.is_control())) {
            value.refuse(&format!("the header `{name}` has a control character; remove it"));
        }
    }
    let headers = t.string_map("headers");
    DraftTarget::Static { status, headers, body: t.string("body").unwrap_or_default() }
}

fn is_header_name(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    !name.is_empty() && name.chars().all(allowed)
}
