//! What the code must be like: modules in the order of the walks, words as agreed, files that say what they own.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use crate::harness::repository;

/// Which top-level modules of the host each one may use, from ARCHITECTURE.md. Two stand for the whole: `host` puts
/// everything together, and `cli` is at the top.
const MAY_USE: [(&str, &[&str]); 19] = [
    (
        "cli",
        &[
            "artifact",
            "backend",
            "config",
            "control",
            "deploy",
            "function",
            "host",
            "instance",
            "samples",
            "key_value",
            "network",
            "rollout",
            "serve",
            "telemetry",
            "tensor",
        ],
    ),
    (
        "host",
        &[
            "admin",
            "artifact",
            "backend",
            "config",
            "control",
            "deploy",
            "function",
            "instance",
            "key_value",
            "network",
            "serve",
            "telemetry",
        ],
    ),
    (
        "control",
        &[
            "artifact",
            "background",
            "config",
            "deploy",
            "function",
            "instance",
            "rollout",
            "samples",
            "serve",
            "telemetry",
            "tensor",
        ],
    ),
    ("samples", &["artifact", "backend", "function", "instance", "nn", "serve", "tensor"]),
    ("serve", &["backend", "config", "function", "instance", "nn", "telemetry", "tensor"]),
    ("admin", &["config", "deploy", "function", "serve", "telemetry"]),
    (
        "deploy",
        &[
            "artifact",
            "backend",
            "background",
            "config",
            "function",
            "instance",
            "key_value",
            "network",
            "nn",
            "telemetry",
        ],
    ),
    ("function", &["backend", "instance", "nn", "rollout", "telemetry", "tensor"]),
    ("instance", &["backend", "config", "key_value", "network", "nn", "telemetry", "tensor"]),
    // Host fns work on the state of an instance: the two are one step of the walk.
    ("nn", &["backend", "instance", "telemetry", "tensor"]),
    ("backend", &["background", "config", "telemetry", "tensor"]),
    ("background", &[]),
    ("artifact", &["backend", "config", "network"]),
    ("key_value", &["config", "telemetry"]),
    ("network", &[]),
    ("rollout", &["config", "telemetry", "tensor"]),
    ("telemetry", &["tensor"]),
    ("config", &[]),
    ("tensor", &[]),
];

/// What must not be known where: words that none of these modules may contain, outside comments.
const KNOWS_NOTHING_OF: [(&str, &[&str]); 8] = [
    ("rollout", &["wasmtime::", "hyper::", "http::", "crate::function"]),
    ("serve", &["wasmtime::", "ort::", "crate::deploy", "crate::artifact"]),
    ("admin", &["wasmtime::"]),
    ("deploy", &["hyper::", "http::", "StatusCode"]),
    ("function", &["StatusCode", "wasmtime::"]),
    ("backend", &["wasmtime::component", "hyper::", "crate::instance", "crate::nn"]),
    ("artifact", &["wasmtime::", "hyper::", "crate::function"]),
    ("key_value", &["wasmtime::", "hyper::"]),
];

const FORBIDDEN_NAMES: [&str; 6] = ["util", "common", "core", "types", "helper", "manager"];

/// Every Rust file of the repository's own packages, without what builds leave behind.
fn sources() -> Vec<PathBuf> {
    let mut files = Vec::new();
    for folder in ["host/src", "guest-sdk", "tests", "examples", "benches"] {
        collect(&repository().join(folder), &mut files);
    }
    assert!(files.len() > 50, "too few files to be all of them");
    files.sort();
    files
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
            collect(&path, files);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            files.push(path);
        }
    }
}

fn shown(path: &Path) -> String {
    path.strip_prefix(repository()).unwrap().display().to_string()
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The part of a file before its tests.
fn without_tests(text: &str) -> &str {
    text.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or(text)
}

fn is_test(path: &Path) -> bool {
    let shown = shown(path);
    shown.starts_with("tests/") || shown.ends_with("/tests.rs") || shown.contains("/tests/")
}

#[test]
fn modules_use_only_what_comes_after_them_on_their_walk() {
    let mut wrong = String::new();
    for path in sources() {
        let shown = shown(&path);
        let Some(inner) = shown.strip_prefix("host/src/") else { continue };
        let module = inner.split(['/', '.']).next().unwrap();
        if is_test(&path) || ["lib", "main"].contains(&module) {
            continue;
        }
        let (_, allowed) = MAY_USE
            .iter()
            .find(|(name, _)| *name == module)
            .unwrap_or_else(|| panic!("`{module}` stands in no walk: say in MAY_USE what it may use"));
        for used in used_modules(without_tests(&read(&path))) {
            if used != module && !allowed.contains(&used.as_str()) {
                let _ = writeln!(wrong, "{shown} uses `{used}`");
            }
        }
    }
    assert!(wrong.is_empty(), "against the direction of the walks:\n{wrong}");
}

#[test]
fn modules_know_nothing_of_what_is_not_theirs() {
    let mut wrong = String::new();
    for path in sources().iter().filter(|path| !is_test(path)) {
        let shown = shown(path);
        let Some(module) = shown.strip_prefix("host/src/").and_then(|inner| inner.split(['/', '.']).next())
        else {
            continue;
        };
        let Some((_, words)) = KNOWS_NOTHING_OF.iter().find(|(name, _)| *name == module) else { continue };
        let code = code(without_tests(&read(path)));
        for word in words.iter().filter(|word| code.contains(*word)) {
            let _ = writeln!(wrong, "{shown} contains `{word}`");
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

/// A file without its comments that stand alone on their lines.
fn code(text: &str) -> String {
    text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// The names after `crate::`, also those of a group.
fn used_modules(text: &str) -> Vec<String> {
    let code = code(text);
    let mut used = Vec::new();
    for after in code.split("crate::").skip(1) {
        let names = match after.strip_prefix('{') {
            Some(group) => top_level(group),
            None => vec![after],
        };
        for name in names {
            let word = |c: char| !(c.is_alphanumeric() || c == '_');
            used.push(name.trim_start().split(word).next().unwrap_or_default().to_owned());
        }
    }
    used.retain(|name| name.starts_with(|c: char| c.is_ascii_lowercase()));
    used.sort();
    used.dedup();
    used
}

/// The parts of a group up to its closing brace.
fn top_level(group: &str) -> Vec<&str> {
    let (mut depth, mut start, mut parts) = (0, 0, Vec::new());
    for (index, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => {
                parts.push(&group[start..index]);
                break;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&group[start..index]);
                start = index + 1;
            }
            _ => {}
        }
    }
    parts
}

#[test]
fn groups_of_uses_are_read() {
    let text = "use crate::{admin, instance::{self, nn}};\nuse crate::a::b;\n// crate::no\nlet x = crate::c::D;\nuse crate::E;";
    assert_eq!(used_modules(text), ["a", "admin", "c", "instance"]);
}

#[test]
fn every_file_says_what_it_owns() {
    let silent: Vec<_> =
        sources().iter().filter(|path| !read(path).starts_with("//! ")).map(|path| shown(path)).collect();
    assert!(silent.is_empty(), "these do not open with a `//!` sentence: {silent:#?}");
}

#[test]
fn no_module_is_named_for_nothing() {
    let named: Vec<_> = sources()
        .iter()
        .filter(|path| FORBIDDEN_NAMES.iter().any(|name| path.file_stem().is_some_and(|stem| stem == *name)))
        .map(|path| shown(path))
        .collect();
    assert!(named.is_empty(), "{named:#?}");
}

#[test]
fn unwrap_is_for_tests() {
    let mut found = String::new();
    for path in sources().iter().filter(|path| !is_test(path)) {
        for (index, line) in without_tests(&read(path)).lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            if code.contains(".unwrap()") {
                let _ = writeln!(found, "{}:{}", shown(path), index + 1);
            }
        }
    }
    assert!(found.is_empty(), "say why it cannot fail with `expect`:\n{found}");
}

/// The agreed measures are looked at now and then; these bounds are where looking is no longer enough.
const LINES_OF_A_FILE: (usize, usize) = (400, 700);
const LINES_OF_A_FN: (usize, usize) = (70, 120);

#[test]
fn files_and_fns_stay_readable() {
    let (mut long, mut too_long) = (String::new(), String::new());
    for path in sources() {
        let text = read(&path);
        let mut measure = |what: String, lines: usize, (listed, bound): (usize, usize)| {
            let list = if lines > bound { &mut too_long } else { &mut long };
            if lines > listed {
                let _ = writeln!(list, "{lines:4} lines: {}{what}", shown(&path));
            }
        };
        measure(String::new(), text.lines().count(), LINES_OF_A_FILE);
        for (name, lines) in fns(&text) {
            measure(format!(" fn {name}"), lines, LINES_OF_A_FN);
        }
    }
    eprintln!("longer than agreed:\n{long}");
    assert!(too_long.is_empty(), "far too long:\n{too_long}");
}

/// Each fn and its lines, told from the indentation that rustfmt gives.
fn fns(text: &str) -> Vec<(String, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let starts = lines.iter().enumerate().filter(|(_, line)| {
        let line = line.trim_start();
        let words = ["pub(crate) ", "pub(super) ", "pub ", "async ", "const ", "unsafe "];
        let plain = words.iter().fold(line, |line, word| line.strip_prefix(word).unwrap_or(line));
        plain.starts_with("fn ")
    });
    let measured = starts.filter_map(|(start, line)| {
        // A declaration in a trait has no body.
        lines[start..].iter().find(|line| line.ends_with(['{', '}', ';']))?.strip_suffix('{')?;
        let indent = line.len() - line.trim_start().len();
        let close = format!("{}}}", " ".repeat(indent));
        let length = lines[start..].iter().position(|line| *line == close)?;
        let name = line.split("fn ").nth(1)?.split(['(', '<']).next()?;
        Some((name.to_owned(), length + 1))
    });
    measured.collect()
}

#[test]
fn links_between_our_pages_lead_somewhere() {
    let mut broken = String::new();
    for page in pages() {
        let folder = page.parent().unwrap().to_owned();
        for link in links(&read(&page)) {
            let path = link.split('#').next().unwrap_or_default();
            if !path.is_empty()
                && !path.contains("://")
                && !path.starts_with("mailto:")
                && !folder.join(path).exists()
            {
                let _ = writeln!(broken, "{}: {link}", shown(&page));
            }
        }
    }
    assert!(broken.is_empty(), "these lead nowhere:\n{broken}");
}

fn pages() -> Vec<PathBuf> {
    let mut folders =
        vec![repository().to_owned(), repository().join("docs"), repository().join("tests/models")];
    for parent in ["examples", "templates"] {
        folders.extend(
            std::fs::read_dir(repository().join(parent)).into_iter().flatten().flatten().map(|e| e.path()),
        );
    }
    let files = folders.iter().flat_map(|folder| std::fs::read_dir(folder).into_iter().flatten().flatten());
    files
        .map(|file| file.path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "md"))
        .collect()
}

/// The targets of `[text](target)` outside code.
fn links(page: &str) -> Vec<String> {
    let mut in_code = false;
    let mut links = Vec::new();
    for line in page.lines() {
        in_code ^= line.trim_start().starts_with("```");
        if in_code {
            continue;
        }
        for part in line.split("](").skip(1) {
            links.extend(part.split([')', ' ']).next().map(str::to_owned));
        }
    }
    links
}

#[test]
fn the_example_of_the_operators_settings_holds_every_default() {
    let path = repository().join("host.example.toml");
    let uncommented: String = read(&path)
        .lines()
        .map(|line| line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')).unwrap_or(line))
        .map(|line| format!("{line}\n"))
        .collect();
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("host.toml");
    std::fs::write(&copy, uncommented).unwrap();
    let config = tenon::config::Config::load(Some(&copy)).unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(config, tenon::config::Config::default());
}
