//! Gives every trigger and inline component its id, by Spin's rules, and checks what refers to what.

use std::collections::{BTreeMap, BTreeSet};

use crate::config::document::advice;

use super::triggers::{Draft, DraftTarget};
use super::{Manifest, Target, Trigger, names};

/// Completes `manifest` with its triggers and their inline components.
///
/// Messages name lines where the manifest `has_lines` that a person knows.
pub(super) fn complete(manifest: &mut Manifest, drafts: Vec<Draft<'_>>, has_lines: bool) {
    let of_line = |draft: &Draft<'_>| match has_lines {
        true => format!(" of line {}", draft.at.line()),
        false => String::new(),
    };
    let ids = trigger_ids(&drafts, &of_line);
    refuse_same_routes(&drafts, &ids, &of_line);
    let mut components: BTreeSet<_> = manifest.components.iter().map(|c| c.id.clone()).collect();
    for (draft, id) in drafts.into_iter().zip(ids) {
        let target = match draft.target {
            DraftTarget::Reference { id, at } => {
                if !components.contains(&id) {
                    at.refuse(&missing_component(&id, manifest));
                }
                Target::Component(id)
            }
            DraftTarget::Inline(mut component) => {
                component.id = inline_id(&id, &components);
                components.insert(component.id.clone());
                let target = Target::Component(component.id.clone());
                manifest.components.push(*component);
                target
            }
            DraftTarget::Static { status, headers, body } => Target::Static { status, headers, body },
            DraftTarget::Wrong => continue,
        };
        let route = draft.route.map(|route| route.text);
        manifest.triggers.push(Trigger { id, kind: draft.kind, route, target });
    }
    warn_of_unused(manifest, has_lines);
}

fn missing_component(id: &str, manifest: &Manifest) -> String {
    let known = manifest.components.iter().map(|component| component.id.as_str());
    match manifest.components.is_empty() {
        true => format!("there is no component `{id}`; add `[component.{id}]`"),
        false => format!("there is no component `{id}`; {}", advice(id, known, "there are")),
    }
}

/// Where a draft stands, after its name.
type OfLine<'l> = dyn Fn(&Draft<'_>) -> String + 'l;

/// The id of each trigger: its own, else `<component>-<type>-trigger`, else `<type>-trigger<number>`.
fn trigger_ids(drafts: &[Draft<'_>], of_line: &OfLine<'_>) -> Vec<String> {
    let mut lines: BTreeMap<&str, String> = BTreeMap::new();
    for draft in drafts {
        let Some(id) = &draft.id else { continue };
        if let Some(line) = lines.insert(id, of_line(draft)) {
            let other = if line.is_empty() { "another trigger" } else { "the trigger" };
            let message = format!("{other}{line} has the id `{id}` too; choose another");
            draft.at.refuse(&message);
        }
    }
    let mut taken: BTreeSet<String> = lines.into_keys().map(str::to_owned).collect();
    let mut ids = Vec::new();
    for draft in drafts {
        let id = draft.id.clone().unwrap_or_else(|| made_id(draft, &taken));
        taken.insert(id.clone());
        ids.push(id);
    }
    ids
}

fn made_id(draft: &Draft<'_>, taken: &BTreeSet<String>) -> String {
    let kind = draft.kind_name;
    let natural = match &draft.target {
        DraftTarget::Reference { id, .. } => Some(format!("{id}-{kind}-trigger")),
        _ => None,
    };
    let mut numbered = (1..).map(|number| format!("{kind}-trigger{number}"));
    let natural = natural.filter(|id| !taken.contains(id));
    natural.or_else(|| numbered.find(|id| !taken.contains(id))).expect("numbers do not run out")
}

/// The id of an inline component: `<trigger>-component`, else `inline-component<number>`.
fn inline_id(trigger_id: &str, components: &BTreeSet<String>) -> String {
    let free = |id: &String| !components.contains(id);
    let natural = Some(format!("{trigger_id}-component")).filter(|id| names::is_component(id));
    let mut numbered = (1..).map(|number| format!("inline-component{number}"));
    natural.filter(free).or_else(|| numbered.find(free)).expect("numbers do not run out")
}

fn refuse_same_routes(drafts: &[Draft<'_>], ids: &[String], of_line: &OfLine<'_>) {
    let mut routes: BTreeMap<&str, (&str, String)> = BTreeMap::new();
    for (draft, id) in drafts.iter().zip(ids) {
        let Some(route) = &draft.route else { continue };
        let other = routes.insert(&route.pattern, (id, of_line(draft)));
        if let Some((other, other_line)) = other {
            draft.at.refuse(&format!(
                "trigger `{id}` has the route `{}`, which trigger `{other}`{other_line} has too; change \
                 one of them",
                route.text
            ));
        }
    }
}

fn warn_of_unused(manifest: &mut Manifest, has_lines: bool) {
    let is_used = |id: &str| {
        let targets = manifest.triggers.iter().map(|trigger| &trigger.target);
        targets.into_iter().any(|target| matches!(target, Target::Component(used) if used == id))
    };
    // A model without code is called by its name.
    let has_code = |component: &&super::Component| component.source != super::Source::Model;
    let unused = manifest.components.iter().filter(has_code).filter(|component| !is_used(&component.id));
    let warnings: Vec<_> = unused
        .map(|component| {
            let line = if has_lines { format!("line {}: ", component.line) } else { String::new() };
            format!(
                "{line}no trigger uses the component `{}`: only a typed function can be called without one",
                component.id
            )
        })
        .collect();
    manifest.warnings.extend(warnings);
}
