//! Gives every trigger and inline component its id, by Spin's rules, and checks what refers to what.

use std::collections::{BTreeMap, BTreeSet};

use crate::config::document::advice;

use super::triggers::{Draft, DraftTarget};
use super::{Manifest, Target, Trigger, names};

/// Completes `manifest` with its triggers and their inline components.
pub(super) fn complete(manifest: &mut Manifest, drafts: Vec<Draft<'_>>) {
    let ids = trigger_ids(&drafts);
    refuse_same_routes(&drafts, &ids);
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
    warn_of_unused(manifest);
}

fn missing_component(id: &str, manifest: &Manifest) -> String {
    let known = manifest.components.iter().map(|component| component.id.as_str());
    match manifest.components.is_empty() {
        true => format!("there is no component `{id}`; add `[component.{id}]`"),
        false => format!("there is no component `{id}`; {}", advice(id, known, "there are")),
    }
}

/// The id of each trigger: its own, else `<component>-<type>-trigger`, else `<type>-trigger<number>`.
fn trigger_ids(drafts: &[Draft<'_>]) -> Vec<String> {
    let mut lines: BTreeMap<&str, usize> = BTreeMap::new();
    for draft in drafts {
        let Some(id) = &draft.id else { continue };
        if let Some(line) = lines.insert(id, draft.at.line()) {
            let message = format!("the trigger of line {line} has the id `{id}` too; choose another");
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

fn refuse_same_routes(drafts: &[Draft<'_>], ids: &[String]) {
    let mut routes: BTreeMap<&str, (&str, usize)> = BTreeMap::new();
    for (draft, id) in drafts.iter().zip(ids) {
        let Some(route) = &draft.route else { continue };
        let line = draft.at.line();
        if let Some((other, other_line)) = routes.insert(&route.pattern, (id, line)) {
            draft.at.refuse(&format!(
                "trigger `{id}` has the route `{}`, which trigger `{other}` of line {other_line} has too; change \
                 one of them",
                route.text
            ));
        }
    }
}

fn warn_of_unused(manifest: &mut Manifest) {
    let is_used = |id: &str| {
        let targets = manifest.triggers.iter().map(|trigger| &trigger.target);
        targets.into_iter().any(|target| matches!(target, Target::Component(used) if used == id))
    };
    // A model without code is called by its name.
    let has_code = |component: &&super::Component| component.source != super::Source::Model;
    let unused = manifest.components.iter().filter(has_code).filter(|component| !is_used(&component.id));
    let warnings: Vec<_> = unused
        .map(|component| format!("line {}: no trigger uses the component `{}`: only a typed function can be called without one", component.line, component.id))
        .collect();
    manifest.warnings.extend(warnings);
}
