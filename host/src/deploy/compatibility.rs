//! Whether callers of the live revision get on with a new one, and whether that may do more. Pure: both apps are
//! compared by their manifests and by what their functions say of themselves.
//!
//! What is compared is what callers and operators rely on: where functions are found, what they take and answer, and
//! what they are granted. The types in a component's WIT are not: the host calls three interfaces alone, whose types
//! are fixed by their names.

use std::collections::BTreeMap;

use super::{Interface, Tensor};
use crate::artifact::manifest::{Component, Manifest, Source};

mod grants;
mod routes;
#[cfg(test)]
mod tests;

/// An app as it is compared.
#[derive(Clone, Copy, Debug)]
pub struct Described<'a> {
    pub manifest: &'a Manifest,
    /// By the component's id. A function that is not here says nothing of its inputs and outputs.
    pub interfaces: &'a BTreeMap<String, Interface>,
}

/// The most sentences that are answered; one more says how many were left out.
const MOST: usize = 50;
/// The most characters of a name out of an artifact that are shown.
const LONGEST: usize = 100;

/// What of the new revision breaks callers of the live one: a sentence each, with what to do.
pub fn interface_breaks(live: &Described<'_>, new: &Described<'_>) -> Vec<String> {
    let mut breaks = Vec::new();
    for component in &live.manifest.components {
        let Some(other) = new.component(&component.id) else {
            breaks.extend(gone(live, component));
            continue;
        };
        let (before, after) = (live.function(component), new.function(other));
        names(new, &before, &after, &mut breaks);
        interface(&before, &after, &mut breaks);
    }
    routes::breaks(live.manifest, new.manifest, &mut breaks);
    limited(breaks)
}

/// What the new revision may do more than the live one: a sentence each, with how to avoid it.
pub fn capabilities_grown(live: &Described<'_>, new: &Described<'_>) -> Vec<String> {
    limited(grants::grown(live.manifest, new.manifest))
}

/// As many as a person reads.
fn limited(mut found: Vec<String>) -> Vec<String> {
    let more = found.len().saturating_sub(MOST);
    found.truncate(MOST);
    if more > 0 {
        found.push(format!("and {more} more; `tenon diff` shows all that differs"));
    }
    found
}

/// What callers of a function can tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Takes and answers tensors, and has a name in the Open Inference Protocol.
    Typed,
    Http,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Typed => "a typed function",
            Kind::Http => "an HTTP function",
        }
    }
}

/// One function as it is compared.
struct Function<'a> {
    component: &'a Component,
    /// `None` where nobody has said.
    kind: Option<Kind>,
    /// `None` where nobody has said.
    interface: Option<&'a Interface>,
}

impl<'a> Described<'a> {
    fn component(&self, id: &str) -> Option<&'a Component> {
        self.manifest.components.iter().find(|component| component.id == id)
    }

    fn function(&self, component: &'a Component) -> Function<'a> {
        let interface = self.interfaces.get(&component.id);
        let is_model = component.source == Source::Model;
        let kind = if is_model { Some(Kind::Typed) } else { interface.and_then(kind) };
        let is_said = |interface: &&Interface| {
            // The file of a model may say nothing; a function without inputs and outputs says so.
            !(is_model && interface.inputs.is_empty() && interface.outputs.is_empty())
        };
        Function { component, kind, interface: interface.filter(is_said).filter(|_| kind.is_some()) }
    }
}

impl Function<'_> {
    /// Its name in the Open Inference Protocol.
    fn model(&self) -> &str {
        self.component.model_name.as_deref().unwrap_or(&self.component.id)
    }
}

/// The kind of a function, as far as it can be told.
fn kind(interface: &Interface) -> Option<Kind> {
    let has_tensors = !interface.inputs.is_empty() || !interface.outputs.is_empty();
    if has_tensors || !interface.accepts.is_empty() || interface.answers.is_some() {
        return Some(Kind::Typed);
    }
    let exports = |name: &str| {
        let lines = interface.wit.iter().flat_map(|wit| wit.lines());
        let exported = lines.filter_map(|line| line.trim().strip_prefix("export "));
        exported.into_iter().any(|exported| exported.starts_with(name))
    };
    if exports("tenon:function/function@") {
        return Some(Kind::Typed);
    }
    let is_http = exports("wasi:http/incoming-handler@") || exports("wasi:http/handler@");
    is_http.then_some(Kind::Http)
}

/// A component that the new revision lacks. One that nobody could call is not missed.
fn gone(live: &Described<'_>, component: &Component) -> Option<String> {
    let function = live.function(component);
    let route = live.manifest.triggers.iter().find_map(|trigger| {
        let route = trigger.route.as_deref()?;
        routes::leads_to(trigger, &component.id).then_some(route)
    });
    let called = match (function.kind, route) {
        (Some(Kind::Typed), _) => {
            format!("callers of the model {} find nothing any more", quoted(function.model()))
        }
        (_, Some(route)) => format!("callers of the route {} lose it", quoted(route)),
        (None, None) => "whoever called it finds nothing any more".to_owned(),
        (Some(Kind::Http), None) => return None,
    };
    Some(format!(
        "component {} is gone, so {called}; keep it under the same id until nobody calls it",
        quoted(&component.id)
    ))
}

/// The function's name in the Open Inference Protocol.
fn names(new: &Described<'_>, before: &Function<'_>, after: &Function<'_>, breaks: &mut Vec<String>) {
    let is_typed = |function: &Function<'_>| function.kind != Some(Kind::Http);
    if !is_typed(before) || !is_typed(after) || before.model() == after.model() {
        return;
    }
    // A component that says nothing of itself, and was given no name, may well be no typed function.
    if before.kind.is_none() && before.component.model_name.is_none() {
        return;
    }
    let taker = new.manifest.components.iter().map(|component| new.function(component));
    let mut taker = taker.filter(|other| is_typed(other) && other.model() == before.model());
    let now = match taker.next() {
        Some(other) => format!("leads to component {} now", quoted(&other.component.id)),
        None => format!(
            "is gone: component {} is called {} now",
            quoted(&after.component.id),
            quoted(after.model())
        ),
    };
    breaks.push(format!(
        "the model name {} {now}; keep `tool.tenon.model_name = \"{}\"` in component {}",
        quoted(before.model()),
        shown(before.model()),
        quoted(&before.component.id),
    ));
}

/// What the function takes and answers.
fn interface(before: &Function<'_>, after: &Function<'_>, breaks: &mut Vec<String>) {
    let id = quoted(&before.component.id);
    match (before.kind, after.kind) {
        (Some(one), Some(other)) if one != other => {
            breaks.push(format!(
                "component {id} was {} and is {}; give the new one an id and a route of its own",
                one.name(),
                other.name()
            ));
            return;
        }
        // Nothing but HTTP was promised.
        (Some(Kind::Http), _) | (None, _) => return,
        (Some(Kind::Typed), _) => {}
    }
    let Some(said) = before.interface else { return };
    let Some(new) = after.interface else {
        breaks.push(format!(
            "component {id} says nothing of its inputs and outputs any more, so nobody can tell whether its callers \
             get on; pack the app with `tenon push` or `tenon package`, which ask it"
        ));
        return;
    };
    inputs(&id, &said.inputs, &new.inputs, breaks);
    outputs(&id, &said.outputs, &new.outputs, breaks);
    media_types(&id, said, new, breaks);
}

fn inputs(id: &str, before: &[Tensor], after: &[Tensor], breaks: &mut Vec<String>) {
    for tensor in before {
        let Some(now) = named(after, &tensor.name) else {
            breaks.push(format!(
                "component {id} does not take the input {} any more, and a call that has it is refused; go on \
                 taking it",
                quoted(&tensor.name)
            ));
            continue;
        };
        if now.datatype != tensor.datatype {
            breaks.push(format!(
                "the input {} of component {id} was {} and is {}; take what callers send",
                quoted(&tensor.name),
                shown(&tensor.datatype),
                shown(&now.datatype)
            ));
        }
        if !fits(tensor.shape.as_deref(), now.shape.as_deref()) {
            breaks.push(format!(
                "the input {} of component {id} took the shape {} and takes {}; take at least the shapes of before",
                quoted(&tensor.name),
                shape(tensor),
                shape(now)
            ));
        }
    }
    for tensor in after.iter().filter(|tensor| named(before, &tensor.name).is_none()) {
        breaks.push(format!(
            "component {id} needs an input {} that callers do not send; make it a parameter, which may be absent",
            quoted(&tensor.name)
        ));
    }
}

fn outputs(id: &str, before: &[Tensor], after: &[Tensor], breaks: &mut Vec<String>) {
    for tensor in before {
        let Some(now) = named(after, &tensor.name) else {
            breaks.push(format!(
                "component {id} does not answer the output {} any more; go on answering it",
                quoted(&tensor.name)
            ));
            continue;
        };
        if now.datatype != tensor.datatype {
            breaks.push(format!(
                "the output {} of component {id} was {} and is {}; answer what callers read",
                quoted(&tensor.name),
                shown(&tensor.datatype),
                shown(&now.datatype)
            ));
        }
        if !fits(now.shape.as_deref(), tensor.shape.as_deref()) {
            breaks.push(format!(
                "the output {} of component {id} had the shape {} and has {}; answer in no other shapes",
                quoted(&tensor.name),
                shape(tensor),
                shape(now)
            ));
        }
    }
}

fn media_types(id: &str, before: &Interface, after: &Interface, breaks: &mut Vec<String>) {
    for accepted in before.accepts.iter().filter(|accepted| !accepts(after, accepted)) {
        breaks.push(format!(
            "component {id} does not take bodies of {} any more; go on taking them",
            quoted(accepted)
        ));
    }
    if before.accepts.is_empty() && !after.accepts.is_empty() {
        breaks.push(format!(
            "component {id} takes raw bodies now, so that JSON without a media type is read as one; leave `accepts` \
             empty, or have callers send `content-type: application/json`"
        ));
    }
    if !before.accepts.is_empty() && before.answers != after.answers {
        let said = |answers: &Option<String>| answers.as_deref().map_or("JSON".to_owned(), quoted);
        breaks.push(format!(
            "component {id} answered raw bodies with {} and answers them with {}; answer as before",
            said(&before.answers),
            said(&after.answers)
        ));
    }
}

/// Whether whoever sends this media type, or one that the pattern stands for, is understood.
fn accepts(interface: &Interface, media_type: &str) -> bool {
    interface.accepts.iter().any(|accepted| match accepted.strip_suffix("/*") {
        Some("*") => true,
        Some(kind) => media_type.split('/').next() == Some(kind),
        None => accepted == media_type,
    })
}

fn named<'t>(tensors: &'t [Tensor], name: &str) -> Option<&'t Tensor> {
    tensors.iter().find(|tensor| tensor.name == name)
}

/// Whether every tensor of the one shape has the other as well. `None` is any shape, -1 any length.
fn fits(shape: Option<&[i64]>, other: Option<&[i64]>) -> bool {
    match (shape, other) {
        (_, None) => true,
        (None, Some(_)) => false,
        (Some(shape), Some(other)) => {
            let fits = |(length, other): (&i64, &i64)| *other == -1 || length == other;
            shape.len() == other.len() && shape.iter().zip(other).all(fits)
        }
    }
}

fn shape(tensor: &Tensor) -> String {
    match &tensor.shape {
        None => "of any rank".to_owned(),
        Some(shape) => shown(&format!("{shape:?}")),
    }
}

/// A name out of an artifact, fit for a person's terminal.
fn quoted(name: &str) -> String {
    format!("`{}`", shown(name))
}

fn shown(text: &str) -> String {
    let clean = |c: char| if c.is_control() || c == '`' { char::REPLACEMENT_CHARACTER } else { c };
    let mut shown: String = text.chars().take(LONGEST).map(clean).collect();
    if text.chars().nth(LONGEST).is_some() {
        shown.push('…');
    }
    shown
}
