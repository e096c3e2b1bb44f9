//! What an app may do: where it may connect to, what it may read and keep, and how much of the machine it may use.

use std::collections::BTreeSet;

use super::{quoted, routes};
use crate::artifact::manifest::{Component, ExecutionTarget, FilesEntry, Manifest, Model};
use crate::config::Config;
use crate::network::AllowedHost;

/// What the new app may do and the live one may not.
pub(super) fn grown(live: &Manifest, new: &Manifest) -> Vec<String> {
    let mut grown = Vec::new();
    for component in &new.components {
        let former = live.components.iter().find(|former| former.id == component.id);
        let id = quoted(&component.id);
        hosts(&id, former, component, &mut grown);
        key_value_stores(&id, former, component, &mut grown);
        variables(&id, former, component, new, &mut grown);
        devices(&id, former, component, &mut grown);
        if let Some(former) = former {
            files(&id, former, component, &mut grown);
            limits(&id, former, component, &mut grown);
            models(&id, former, component, &mut grown);
            published(&id, live, new, component, &mut grown);
        }
    }
    grown
}

fn hosts(id: &str, former: Option<&Component>, component: &Component, grown: &mut Vec<String>) {
    let parse = |entries: &[String]| -> Vec<_> { entries.iter().map(|entry| Entry::of(entry)).collect() };
    let known = former.map(|former| parse(&former.allowed_outbound_hosts)).unwrap_or_default();
    for (index, entry) in parse(&component.allowed_outbound_hosts).iter().enumerate() {
        if matches!(entry, Entry::Nothing) || known.iter().any(|known| known.covers(entry)) {
            continue;
        }
        // Its template, since a value may be secret.
        let template = component.outbound_host_templates.get(index).map_or("", String::as_str);
        let is_filled = template.contains("{{");
        let had = |former: &Component| former.outbound_host_templates.iter().any(|had| had == template);
        grown.push(match is_filled && former.is_some_and(had) {
            true => format!(
                "component {id} may connect to {} with other values of variables than before; give it those of before",
                quoted(template)
            ),
            false => format!(
                "component {id} may connect to {}, which it may not now; take that out of `allowed_outbound_hosts`",
                quoted(template)
            ),
        });
    }
}

/// An entry of `allowed_outbound_hosts`.
enum Entry {
    /// What a variable has left empty allows nothing.
    Nothing,
    Host(AllowedHost),
    /// What cannot be read is refused where it is deployed.
    Text(String),
}

impl Entry {
    fn of(entry: &str) -> Entry {
        match (entry.trim(), AllowedHost::parse(entry)) {
            ("" | "http://" | "https://", _) => Entry::Nothing,
            (_, Ok(host)) => Entry::Host(host),
            (text, Err(_)) => Entry::Text(text.to_owned()),
        }
    }

    fn covers(&self, other: &Entry) -> bool {
        match (self, other) {
            (Entry::Host(host), Entry::Host(other)) => host.covers(other),
            (Entry::Text(text), Entry::Text(other)) => text == other,
            _ => false,
        }
    }
}

fn key_value_stores(id: &str, former: Option<&Component>, component: &Component, grown: &mut Vec<String>) {
    let known = former.map(|former| former.key_value_stores.as_slice()).unwrap_or_default();
    for store in component.key_value_stores.iter().filter(|store| !known.contains(store)) {
        grown.push(format!(
            "component {id} may open the key-value store {}, which it may not now; take that out of \
             `key_value_stores`",
            quoted(store)
        ));
    }
}

/// Variables of the app that a component sees the values of. Text that its author wrote out is no capability.
fn variables(
    id: &str,
    former: Option<&Component>,
    component: &Component,
    app: &Manifest,
    grown: &mut Vec<String>,
) {
    let known = former.map(used_variables).unwrap_or_default();
    for name in used_variables(component).difference(&known) {
        let is_secret = app.variables.get(*name).is_some_and(|variable| variable.secret);
        let what = if is_secret { "the secret" } else { "the variable" };
        grown.push(format!(
            "component {id} reads {what} {}, which it does not now; take `{{{{ {} }}}}` out of its settings",
            quoted(name),
            super::shown(name)
        ));
    }
}

/// The names within `{{ }}`.
fn used_variables(component: &Component) -> BTreeSet<&str> {
    let templates = component.variable_templates.values().chain(&component.outbound_host_templates);
    let names = templates.flat_map(|template| {
        let expressions = template.split("{{").skip(1);
        expressions.filter_map(|rest| rest.split_once("}}").map(|(name, _)| name.trim()))
    });
    names.collect()
}

/// Models that run on other devices than the processor. Others are content of the app, as its code is.
fn devices(id: &str, former: Option<&Component>, component: &Component, grown: &mut Vec<String>) {
    let used = |component: &Component, target: ExecutionTarget| {
        component.models.values().any(|model| model.target == target)
    };
    let mut told = Vec::new();
    for (name, model) in &component.models {
        let device = match model.target {
            ExecutionTarget::Cpu => continue,
            ExecutionTarget::Gpu => "GPU",
            ExecutionTarget::Npu => "NPU",
        };
        let is_new = former.is_none_or(|former| !used(former, model.target));
        if is_new && !told.contains(&device) {
            told.push(device);
            grown.push(format!(
                "model {} of component {id} runs on the {device}, which the component does not use now; let it run \
                 on the CPU",
                quoted(name)
            ));
        }
    }
}

/// Files of the author's machine. What a packed app brings along is its own content.
fn files(id: &str, former: &Component, component: &Component, grown: &mut Vec<String>) {
    let is_known = |entry: &&FilesEntry| {
        let same =
            |known: &FilesEntry| known.source == entry.source && known.destination == entry.destination;
        former.files.iter().any(same)
    };
    for entry in component.files.iter().filter(|entry| !is_known(entry)) {
        grown.push(format!(
            "component {id} may read the files {}, which it may not now; take them out of `files`",
            quoted(&entry.source)
        ));
    }
    for pattern in former.exclude_files.iter().filter(|pattern| !component.exclude_files.contains(pattern)) {
        if !component.files.is_empty() {
            grown.push(format!(
                "component {id} may read files that {} kept from it; leave that in `exclude_files`",
                quoted(pattern)
            ));
        }
    }
}

/// The larger of its limits. One that is not there any more is the operator's.
fn limits(id: &str, former: &Component, component: &Component, grown: &mut Vec<String>) {
    let count = |number: Option<usize>| number.map(|number| number as u64);
    let (before, after) = (&former.limits, &component.limits);
    let usual = Config::default().limits;
    // Where there is no number: what holds then, `None` for as much as the operator gives.
    let limits = [
        ("memory_mib", before.memory_mib, after.memory_mib, None),
        ("deadline_ms", before.deadline_ms, after.deadline_ms, None),
        ("request_body_mib", before.request_body_mib, after.request_body_mib, None),
        ("response_body_mib", before.response_body_mib, after.response_body_mib, None),
        ("response_cache_mib", before.response_cache_mib, after.response_cache_mib, Some(0)),
        (
            "concurrency",
            count(before.concurrency),
            count(after.concurrency),
            Some(usual.function_concurrency as u64),
        ),
    ];
    for (name, before, after, usual) in limits {
        let (was, is) = (before.or(usual), after.or(usual));
        let text = match (was, is) {
            (Some(was), Some(is)) if is > was => format!("{was} and is {is}"),
            (Some(was), None) => format!("{was} and is as much as the operator gives"),
            _ => continue,
        };
        let leave = match before {
            Some(before) => format!("leave it at {before}"),
            None => "leave it out".to_owned(),
        };
        grown.push(format!("`limits.{name}` of component {id} was {text}; {leave}"));
    }
}

/// How many runs of a model there may be at once, each of which takes memory and threads.
fn models(id: &str, former: &Component, component: &Component, grown: &mut Vec<String>) {
    for (name, model) in &component.models {
        let before = former.models.get(name).and_then(|former: &Model| former.concurrency);
        if let (Some(before), Some(after)) = (before, model.concurrency)
            && after > before
        {
            grown.push(format!(
                "model {} of component {id} ran {before} inferences at once and runs {after}; leave its \
                 `concurrency` at {before}",
                quoted(name)
            ));
        }
    }
}

/// A component that was within no caller's reach and has a route now.
fn published(id: &str, live: &Manifest, new: &Manifest, component: &Component, grown: &mut Vec<String>) {
    let route = |app: &Manifest| {
        let triggers = app.triggers.iter().filter(|trigger| routes::leads_to(trigger, &component.id));
        triggers.filter_map(|trigger| trigger.route.clone()).next()
    };
    if let (None, Some(route)) = (route(live), route(new)) {
        grown.push(format!(
            "component {id} had no public route and has {}; leave its route private",
            quoted(&route)
        ));
    }
}
