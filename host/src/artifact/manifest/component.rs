//! The `[component.<id>]` tables of an app manifest.

use std::collections::BTreeMap;

use crate::config::document::{Table, Value};
use crate::network::AllowedHost;

use super::{Build, Component, FilesEntry, Reading, Source, files, names, tool};

/// Keys of Spin's that would grant what this host cannot grant yet, and what each would grant.
const NOT_YET: [(&str, &str); 4] = [
    ("allowed_http_hosts", "write `allowed_outbound_hosts`, with schemes, instead"),
    ("sqlite_databases", "there are no databases"),
    ("ai_models", "grant models under `[component.<id>.tool.tenon.models]` instead"),
    ("dependencies", "compose the component when it is built"),
];

/// Reads every `[component.<id>]` in the order of the file.
pub(super) fn read_all(root: &mut Table<'_>, reading: &mut Reading<'_>) -> Vec<Component> {
    let mut components = Vec::new();
    for (id, value) in root.entries("component") {
        if !names::is_component(&id) {
            value.refuse(&format!(
                "a component cannot have the id `{id}`; use words of letters and digits with `-` between them, \
                 each in one case, the first beginning with a letter"
            ));
        }
        let line = value.line();
        components.extend(value.table(|t| read(t, id, line, reading)));
    }
    components
}

/// Reads one component, inline or not.
pub(super) fn read(t: &mut Table<'_>, id: String, line: usize, reading: &mut Reading<'_>) -> Component {
    let source = t.value("source");
    let has_source = source.is_some();
    let (variable_templates, variables) = variables(t, reading);
    let (outbound_host_templates, allowed_outbound_hosts) = outbound_hosts(t, reading);
    let mut component = Component {
        id,
        description: t.string("description"),
        source: source.and_then(|value| read_source(&value, reading)).unwrap_or(no_source()),
        files: t.value("files").map(|value| read_files(&value)).unwrap_or_default(),
        exclude_files: t.value("exclude_files").map(|value| patterns(&value)).unwrap_or_default(),
        environment: environment(t),
        variables,
        variable_templates,
        allowed_outbound_hosts,
        outbound_host_templates,
        key_value_stores: key_value_stores(t),
        build: t.table("build", |t| build(t, reading)),
        models: BTreeMap::new(),
        model_name: None,
        limits: super::Limits::default(),
        samples: Vec::new(),
        has_settings: false,
        line,
    };
    for (key, instead) in NOT_YET {
        if let Some(value) = t.value(key).filter(|value| !value.is_empty()) {
            value.refuse(&format!("`{}` is not supported yet: {instead}; remove it", value.path()));
        }
    }
    // Means nothing without dependencies.
    t.value("dependencies_inherit_configuration");
    // Metadata for Spin's build-time checks.
    t.value("targets");
    if let Some(value) = t.value("tool") {
        tool::read(&value, &mut component, reading);
    }
    if !has_source {
        without_source(t, &mut component);
    }
    for (name, value) in t.entries("profile") {
        value.table(|t| profile(t, &name, &mut component, reading));
        reading.profiles.push(name);
    }
    component
}

/// A component without code is its one model, for which nothing else means anything.
fn without_source(t: &Table<'_>, component: &mut Component) {
    let code = [
        ("build", component.build.is_some()),
        ("files", !component.files.is_empty()),
        ("environment", !component.environment.is_empty()),
        ("variables", !component.variables.is_empty()),
        ("allowed_outbound_hosts", !component.allowed_outbound_hosts.is_empty()),
        ("key_value_stores", !component.key_value_stores.is_empty()),
    ];
    let code = code.into_iter().find(|(_, there)| *there);
    match (component.models.len(), code) {
        (1, None) => component.source = Source::Model,
        (1, Some((key, _))) => t.refuse(&format!(
            "{} lacks `source`; add `source = \"path/to/component.wasm\"`, or remove `{key}` to serve its model as it \
             is",
            t.shown()
        )),
        (0, _) => t.refuse(&format!("{} lacks `source`; add `source = \"path/to/component.wasm\"`", t.shown())),
        (many, _) => t.refuse(&format!(
            "{} lacks `source` and has {many} models: without code, a component serves exactly one; add a `source`, \
             or give each model a component of its own",
            t.shown()
        )),
    }
}

/// Stands in for a source that has been refused; nobody gets to see it.
fn no_source() -> Source {
    Source::Path(Default::default())
}

/// One `profile.<name>`, which changes `component` if it is the chosen one.
fn profile(t: &mut Table<'_>, name: &str, component: &mut Component, reading: &Reading<'_>) {
    let source = t.value("source").and_then(|value| read_source(&value, reading));
    let environment = environment(t);
    let commands = t.table("build", |t| commands(t)).unwrap_or_default();
    if let Some(value) = t.value("dependencies").filter(|value| !value.is_empty()) {
        value.refuse(&format!("`{}` is not supported yet; remove it", value.path()));
    }
    if reading.options.profile != Some(name) {
        return;
    }
    if let Some(source) = source {
        component.source = source;
    }
    component.environment.extend(environment);
    if !commands.is_empty() {
        let (workdir, watch) = (reading.dir.to_owned(), Vec::new());
        let build = component.build.get_or_insert(Build { commands: Vec::new(), workdir, watch });
        build.commands = commands;
    }
}

fn read_source(value: &Value<'_>, reading: &Reading<'_>) -> Option<Source> {
    if !value.is_table() {
        let path = value.string()?;
        if path.is_empty() {
            value.refuse(&format!("`{}` is empty; give the path of the component", value.path()));
        }
        return Some(Source::Path(reading.dir.join(path)));
    }
    value.table(|t| {
        if ["package", "registry", "version"].into_iter().filter(|key| t.value(key).is_some()).count() > 0 {
            t.refuse(
                "components from a package registry are not supported yet; use a path or `{ url, digest }`",
            );
            t.ignore_rest();
            return no_source();
        }
        let url = t.required("url", "url = \"https://...\"");
        let digest = t.required("digest", "digest = \"sha256:...\"");
        Source::Url {
            url: url.and_then(|value| read_url(&value)).unwrap_or_default(),
            digest: digest.and_then(|value| read_digest(&value)).unwrap_or_default(),
        }
    })
}

fn read_url(value: &Value<'_>) -> Option<String> {
    let url = value.string()?;
    let host = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    let is_url = host.is_some_and(|host| !host.is_empty()) && url.chars().all(|c| c.is_ascii_graphic());
    if !is_url {
        value.refuse(&format!("`{url}` is not a URL; write one that begins with `https://`"));
    }
    Some(url)
}

fn read_digest(value: &Value<'_>) -> Option<String> {
    let digest = value.string()?;
    let is_hex =
        |hex: &str| hex.len() == 64 && hex.bytes().all(|c| c.is_ascii_digit() || (b'a'..=b'f').contains(&c));
    if !digest.strip_prefix("sha256:").is_some_and(is_hex) {
        value.refuse(&format!("`{digest}` is not a digest; write `sha256:` and 64 lower-case hex digits"));
    }
    Some(digest)
}

fn read_files(value: &Value<'_>) -> Vec<FilesEntry> {
    let entries = value.items().into_iter().filter_map(|item| {
        let line = item.line();
        if item.is_table() {
            return item.table(|t| {
                let source = t.required("source", "source = \"dir\"");
                let destination = t.required("destination", "destination = \"/dir\"");
                let source = source.and_then(|value| checked(&value, files::check_source));
                let destination = destination.and_then(|value| checked(&value, files::check_destination));
                FilesEntry { source: source.unwrap_or_default(), destination, line }
            });
        }
        let source = checked(&item, files::check_pattern)?;
        Some(FilesEntry { source, destination: None, line })
    });
    entries.collect()
}

fn patterns(value: &Value<'_>) -> Vec<String> {
    value.items().iter().filter_map(|item| checked(item, files::check_exclude)).collect()
}

/// A string that `check` finds nothing wrong with.
fn checked(value: &Value<'_>, check: fn(&str) -> Result<(), String>) -> Option<String> {
    let text = value.string()?;
    if let Err(why) = check(&text) {
        value.refuse(&why);
    }
    Some(text)
}

fn environment(t: &mut Table<'_>) -> BTreeMap<String, String> {
    for (name, value) in t.entries("environment") {
        if name.is_empty() || name.contains(['=', '\0']) {
            value.refuse(&format!("`{name}` cannot name a variable of the environment; remove `=` from it"));
        }
        if value.as_str().is_some_and(|text| text.contains('\0')) {
            value.refuse(&format!("`{}` contains a NUL character; remove it", value.path()));
        }
    }
    t.string_map("environment")
}

/// The component's own variables: as they are written, and filled in.
fn variables(
    t: &mut Table<'_>,
    reading: &Reading<'_>,
) -> (BTreeMap<String, String>, BTreeMap<String, String>) {
    let (mut templates, mut variables) = (BTreeMap::new(), BTreeMap::new());
    for (name, template) in t.entries("variables") {
        if !names::is_variable(&name) {
            template.refuse(&format!(
                "a variable cannot be named `{name}`; use lower-case words with `_` between them"
            ));
        }
        templates.insert(name.clone(), template.as_str().unwrap_or_default().to_owned());
        variables.insert(name, reading.variables.fill(&template));
    }
    (templates, variables)
}

/// Where the component may send requests: as it is written, and filled in.
fn outbound_hosts(t: &mut Table<'_>, reading: &Reading<'_>) -> (Vec<String>, Vec<String>) {
    let (mut templates, mut hosts) = (Vec::new(), Vec::new());
    let Some(list) = t.value("allowed_outbound_hosts") else { return (templates, hosts) };
    for item in list.items() {
        let Some(template) = item.string() else { continue };
        let host = reading.variables.fill(&item);
        // What a variable without a value will stand for cannot be known.
        let is_known = reading.options.values_required || !template.contains("{{");
        if host.trim().is_empty() && is_known {
            item.refuse(&format!(
                "`{}` has an empty entry; write a host such as `https://example.com`",
                item.path()
            ));
        } else if is_known && let Err(reason) = AllowedHost::parse(&host) {
            // A filled template may hold a secret.
            let reason = if template == host {
                reason
            } else {
                "with its variables filled in, it is no host".to_owned()
            };
            item.refuse(&format!("`{}`: {reason}", item.path()));
        }
        templates.push(template);
        hosts.push(host);
    }
    (templates, hosts)
}

fn key_value_stores(t: &mut Table<'_>) -> Vec<String> {
    let items = t.value("key_value_stores").map(|value| value.items()).unwrap_or_default();
    let labels = items.iter().filter_map(|item| {
        let label = item.string()?;
        if !names::is_store(&label) {
            item.refuse(&format!(
                "a key-value store cannot have the label `{label}`; use words of letters and digits with `-` or `_` \
                 between them, each in one case and beginning with a letter, such as `default`"
            ));
        }
        Some(label)
    });
    labels.collect()
}

fn build(t: &mut Table<'_>, reading: &Reading<'_>) -> Build {
    let commands = commands(t);
    let workdir = t.value("workdir").and_then(|value| {
        let workdir = value.string()?;
        if workdir.starts_with('/') {
            value.refuse(&format!("`{}` must be relative to the manifest's folder", value.path()));
        }
        Some(workdir)
    });
    let workdir = workdir.map_or(reading.dir.to_owned(), |workdir| reading.dir.join(workdir));
    let watch = t.value("watch").map(|value| patterns(&value)).unwrap_or_default();
    Build { commands, workdir, watch }
}

fn commands(t: &mut Table<'_>) -> Vec<String> {
    let Some(value) = t.required("command", "command = \"cargo build ...\"") else { return Vec::new() };
    let items = if value.is_string() { vec![value.clone()] } else { value.items() };
    let is_blank = |item: &Value<'_>| item.as_str().is_some_and(|text| text.trim().is_empty());
    if value.is_empty() || items.iter().any(is_blank) {
        value.refuse(&format!("`{}` has nothing to run; give the command that builds", value.path()));
    }
    items.iter().filter_map(Value::string).collect()
}
