//! `tenon new`: writes a function of the author's own, with all that it needs to be built anywhere.
//!
//! The templates are laid out as Spin's are, so that `spin new` takes them too; of their placeholders there are
//! `{{project-name}}` and its filters `kebab_case` and `snake_case`. The SDK goes along as source, in `vendor`.

use std::borrow::Cow;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use super::progress::Progress;

/// Paths in the repository, and their contents.
const EMBEDDED: &[(&str, &[u8])] = include!(concat!(env!("OUT_DIR"), "/embedded.rs"));

/// Where the SDK and its WIT lie in the repository and in the new folder. The one names the other by `../wit`.
const VENDORED: [(&str, &str); 2] = [("guest-sdk/", "vendor/tenon-sdk/"), ("wit/", "vendor/wit/")];

/// Names that cargo or rustc would refuse, or take for something else.
const RESERVED: [&str; 58] = [
    "abstract",
    "alloc",
    "as",
    "async",
    "await",
    "become",
    "box",
    "break",
    "build",
    "const",
    "continue",
    "core",
    "crate",
    "deps",
    "do",
    "dyn",
    "else",
    "enum",
    "examples",
    "extern",
    "false",
    "final",
    "fn",
    "for",
    "gen",
    "if",
    "impl",
    "in",
    "incremental",
    "let",
    "loop",
    "macro",
    "match",
    "mod",
    "move",
    "mut",
    "override",
    "priv",
    "proc-macro",
    "pub",
    "ref",
    "return",
    "self",
    "static",
    "std",
    "struct",
    "super",
    "tenon-sdk",
    "test",
    "trait",
    "true",
    "try",
    "type",
    "unsafe",
    "use",
    "virtual",
    "where",
    "while",
];

/// Make a new function
#[derive(clap::Args, Debug)]
pub struct NewArgs {
    /// The name of the function: lower-case words with `-` between them
    pub name: String,
    /// What to begin with
    #[arg(short, long, default_value = "typed")]
    pub template: String,
    /// The folder to make; by default one of that name here
    #[arg(short, long, value_name = "DIR")]
    pub output: Option<PathBuf>,
}

/// Makes the folder and tells what to do next.
///
/// # Errors
/// The name or the template is not one, or the folder is there already.
pub fn run(args: &NewArgs, progress: &Progress) -> anyhow::Result<()> {
    let folder = args.output.clone().unwrap_or_else(|| PathBuf::from(&args.name));
    create(&args.name, &args.template, &folder)?;
    progress.say("Created", format!("function `{}` in `{}`", args.name, folder.display()));
    println!("Next:\n\n    cd {}\n    tenon up --build\n", quoted(&folder));
    println!("README.md in it shows how to call the function, src/lib.rs is the function.");
    Ok(())
}

/// A path as one word for the shell.
fn quoted(path: &Path) -> String {
    let path = path.display().to_string();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-+@".contains(c);
    if path.chars().all(is_plain) { path } else { format!("'{}'", path.replace('\'', r"'\''")) }
}

/// Writes `template` filled in for `name` to `folder`: the whole of it, or nothing.
///
/// # Errors
/// The name or the template is not one, or the folder is there already.
pub fn create(name: &str, template: &str, folder: &Path) -> anyhow::Result<()> {
    check_name(name)?;
    let files = files(name, template)?;
    let taken = std::fs::read_dir(folder).map(|mut entries| entries.next().is_some());
    if taken.unwrap_or(folder.exists()) {
        bail!("`{}` is there already and not empty; choose another folder with `--output`", folder.display());
    }
    let absolute = std::path::absolute(folder)?;
    let parent = absolute.parent().context("the root folder is not for a function; choose another one")?;
    let cannot = || format!("`{}` cannot be written", folder.display());
    std::fs::create_dir_all(parent).with_context(cannot)?;
    let draft = tempfile::Builder::new().prefix(".tenon-new-").tempdir_in(parent).with_context(cannot)?;
    for (path, content) in files {
        let path = draft.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap_or(draft.path())).with_context(cannot)?;
        std::fs::write(path, content).with_context(cannot)?;
    }
    // A temporary folder is its owner's alone; this one is a folder like any other.
    let permissions = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(draft.path(), permissions).with_context(cannot)?;
    std::fs::rename(draft.path(), &absolute).with_context(cannot)?;
    // There is nothing left to remove.
    let _ = draft.keep();
    Ok(())
}

/// The paths in the new folder and what stands there.
fn files(name: &str, template: &str) -> anyhow::Result<Vec<(String, Cow<'static, [u8]>)>> {
    let content = format!("templates/{template}/content/");
    let mut files = Vec::new();
    for (path, bytes) in EMBEDDED {
        if let Some(path) = path.strip_prefix(&content) {
            // A template's Cargo.toml must not be taken for that of a real package.
            let path = path.strip_suffix(".tmpl").unwrap_or(path);
            files.push((path.to_owned(), fill(bytes, name)));
        }
    }
    if files.is_empty() {
        bail!("there is no template `{template}`; there are {}", templates().join(", "));
    }
    for (from, to) in VENDORED {
        let vendored = EMBEDDED.iter().filter_map(|(path, bytes)| {
            path.strip_prefix(from).map(|rest| (format!("{to}{rest}"), Cow::Borrowed(*bytes)))
        });
        files.extend(vendored);
    }
    Ok(files)
}

fn templates() -> Vec<String> {
    names().map(|name| format!("`{name}`")).collect()
}

/// The templates' names, each once: they are embedded in order.
fn names() -> impl Iterator<Item = &'static str> {
    let names = EMBEDDED.iter().filter_map(|(path, _)| path.strip_prefix("templates/")?.split('/').next());
    let mut before = None;
    names.filter(move |name| before.replace(*name) != Some(*name))
}

/// Writes the templates for Spin, each with all that it needs, to `templates` in `folder`.
///
/// # Errors
/// Where they cannot be written.
pub(super) fn write_for_spin(folder: &Path) -> anyhow::Result<()> {
    let write = |path: &str, bytes: &[u8]| {
        let path = folder.join(path);
        let written = path.parent().map_or(Ok(()), std::fs::create_dir_all);
        let written = written.and_then(|()| std::fs::write(&path, bytes));
        written.with_context(|| format!("`{}` cannot be written", path.display()))
    };
    for (path, bytes) in EMBEDDED.iter().filter(|(path, _)| path.starts_with("templates/")) {
        write(path, bytes)?;
    }
    for template in names() {
        for (from, to) in VENDORED {
            for (path, bytes) in EMBEDDED {
                if let Some(rest) = path.strip_prefix(from) {
                    // As in a template of its own, a Cargo.toml must not be taken for that of a real package.
                    let ending = if rest.ends_with("Cargo.toml") { ".tmpl" } else { "" };
                    write(&format!("templates/{template}/content/{to}{rest}{ending}"), &raw(bytes))?;
                }
            }
        }
    }
    Ok(())
}

/// What Spin, which fills in every text, is to leave as it is.
fn raw(bytes: &'static [u8]) -> Cow<'static, [u8]> {
    match std::str::from_utf8(bytes) {
        Ok(text) if text.contains("{{") || text.contains("{%") => {
            Cow::Owned(format!("{{% raw %}}{text}{{% endraw %}}").into_bytes())
        }
        _ => Cow::Borrowed(bytes),
    }
}

/// Fills in the placeholders; what is not text has none.
fn fill(bytes: &'static [u8], name: &str) -> Cow<'static, [u8]> {
    let Ok(text) = std::str::from_utf8(bytes) else { return Cow::Borrowed(bytes) };
    let mut filled = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("{{") {
        filled.push_str(before);
        let value = after.split_once("}}").and_then(|(inner, after)| Some((value(inner, name)?, after)));
        match value {
            Some((value, after)) => {
                filled.push_str(&value);
                rest = after;
            }
            // Spin's own expressions look the same.
            None => {
                filled.push_str("{{");
                rest = after;
            }
        }
    }
    filled.push_str(rest);
    Cow::Owned(filled.into_bytes())
}

fn value(placeholder: &str, name: &str) -> Option<String> {
    let parts: Vec<_> = placeholder.split('|').map(str::trim).collect();
    match parts[..] {
        // A name is in kebab case, or it is refused.
        ["project-name"] | ["project-name", "kebab_case"] => Some(name.to_owned()),
        ["project-name", "snake_case"] => Some(name.replace('-', "_")),
        _ => None,
    }
}

/// Whether `name` can be a component's id for Spin and a crate's for cargo.
fn check_name(name: &str) -> anyhow::Result<()> {
    if RESERVED.contains(&name) {
        bail!("a function cannot be named `{name}`, which means something to Rust; try `{name}-fn`");
    }
    if is_kebab(name) {
        return Ok(());
    }
    let near = kebab(name);
    let advice = if is_kebab(&near) { format!("try `{near}`") } else { "such as `my-function`".to_owned() };
    bail!(
        "a function cannot be named `{name}`: use at most 64 lower-case letters and digits in words with `-` \
         between them, the first beginning with a letter; {advice}"
    )
}

fn is_kebab(name: &str) -> bool {
    let is_word =
        |word: &str| !word.is_empty() && word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    name.len() <= 64 && name.starts_with(|c: char| c.is_ascii_lowercase()) && name.split('-').all(is_word)
}

/// The nearest name in kebab case.
fn kebab(name: &str) -> String {
    let mut words = String::new();
    let mut previous = '-';
    for c in name.chars() {
        let begins = c.is_ascii_uppercase() && previous.is_ascii_lowercase();
        if (begins || !c.is_ascii_alphanumeric()) && !words.is_empty() && !words.ends_with('-') {
            words.push('-');
        }
        if c.is_ascii_alphanumeric() {
            words.push(c.to_ascii_lowercase());
        }
        previous = c;
    }
    words.trim_end_matches('-').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_apps() {
        let check = |name: &str, expected: Option<&str>| match (check_name(name), expected) {
            (Ok(()), None) => {}
            (Err(error), Some(expected)) => assert!(error.to_string().contains(expected), "{error}"),
            (outcome, _) => panic!("{name}: {outcome:?}"),
        };
        check("digits", None);
        check("hello-2-world", None);
        check("MyFunction", Some("try `my-function`"));
        check("my_fn", Some("try `my-fn`"));
        check("a--b", Some("try `a-b`"));
        check("HTTPServer", Some("try `httpserver`"));
        check("2nd", Some("such as `my-function`"));
        check("../x", Some("try `x`"));
        check("", Some("such as"));
        check("fn", Some("try `fn-fn`"));
        check("tenon-sdk", Some("means something to Rust"));
        check(&"a".repeat(65), Some("at most 64"));
    }

    #[test]
    fn placeholders() {
        let check = |text: &'static str, expected: &str| {
            assert_eq!(fill(text.as_bytes(), "my-fn"), expected.as_bytes(), "{text}");
        };
        check("a {{project-name | kebab_case}} b", "a my-fn b");
        check("{{ project-name|snake_case }}.wasm", "my_fn.wasm");
        check("{{project-name}}", "my-fn");
        check("{{ token }} {{project-name}}", "{{ token }} my-fn");
        check("{{ {{project-name}} }}", "{{ my-fn }}");
        check("{{", "{{");
        assert_eq!(fill(b"\xff{{project-name}}", "x"), &b"\xff{{project-name}}"[..]);
    }

    #[test]
    fn every_template_becomes_an_app() {
        assert!(!templates().is_empty());
        for template in templates() {
            let dir = tempfile::tempdir().unwrap();
            let folder = dir.path().join("deep/my-fn");
            create("my-fn", template.trim_matches('`'), &folder).unwrap();
            for file in ["Cargo.toml", "README.md", "vendor/tenon-sdk/Cargo.toml", "vendor/wit/tenon.wit"] {
                assert!(folder.join(file).is_file(), "{file}");
            }
            let own = |entry: &walkdir::DirEntry| entry.file_name() != "vendor";
            for entry in walkdir::WalkDir::new(&folder).into_iter().filter_entry(own) {
                let path = entry.unwrap().into_path();
                let text = std::fs::read_to_string(&path).unwrap_or_default();
                assert!(!text.contains("{{project"), "{}", path.display());
                assert!(!path.to_string_lossy().ends_with(".tmpl"));
            }
            let manifest = crate::cli::build::load(&folder, None).unwrap();
            assert_eq!((manifest.name.as_str(), manifest.warnings.len()), ("my-fn", 0));
            assert!(std::fs::read_dir(dir.path().join("deep")).unwrap().count() == 1);
        }
    }

    #[test]
    fn templates_for_spin_are_whole() {
        let dir = tempfile::tempdir().unwrap();
        write_for_spin(dir.path()).unwrap();
        assert_eq!(names().collect::<Vec<_>>(), ["http", "typed"]);
        for template in names() {
            let folder = dir.path().join("templates").join(template);
            let metadata = std::fs::read_to_string(folder.join("metadata/spin-template.toml")).unwrap();
            let metadata: toml::Table = metadata.parse().unwrap();
            assert_eq!(metadata["id"].as_str(), Some(format!("tenon-{template}").as_str()));
            let snippet = metadata["add_component"]["snippets"]["component"].as_str().unwrap();
            let snippet = std::fs::read_to_string(folder.join("metadata/snippets").join(snippet)).unwrap();
            // As `spin add` appends it to a manifest.
            let snippet = String::from_utf8(fill(snippet.leak().as_bytes(), "my-fn").into_owned()).unwrap();
            let snippet = snippet.replace("{{ output-path }}", "my-fn");
            let manifest = format!("spin_manifest_version = 2\n[application]\nname = \"app\"\n{snippet}");
            let options = crate::artifact::manifest::Options {
                profile: None,
                variables: &Default::default(),
                environment: &|_| None,
                values_required: true,
            };
            let path = dir.path().join("spin.toml");
            let manifest = crate::artifact::manifest::Manifest::parse(&manifest, &path, &options).unwrap();
            let model = &manifest.components[0].models["add"].path;
            assert_eq!(model, &dir.path().join("my-fn/model/add.onnx"));
            for file in ["Cargo.toml.tmpl", "vendor/tenon-sdk/Cargo.toml.tmpl", "vendor/wit/tenon.wit"] {
                assert!(folder.join("content").join(file).is_file(), "{template}: {file}");
            }
        }
        let placed = |entry: &walkdir::DirEntry| entry.file_type().is_file();
        let vendor = dir.path().join("templates/typed/content/vendor");
        for entry in walkdir::WalkDir::new(vendor).into_iter().map(Result::unwrap).filter(placed) {
            let text = std::fs::read_to_string(entry.path()).unwrap();
            let is_plain = !text.contains("{{") && !text.contains("{%");
            let is_raw = text.starts_with("{% raw %}") && text.matches("{% endraw %}").count() == 1;
            assert!(is_plain || is_raw, "{}", entry.path().display());
        }
    }

    #[test]
    fn what_is_there_stays() {
        let dir = tempfile::tempdir().unwrap();
        let check = |name: &str, template: &str, expected: &str| {
            let error = create(name, template, &dir.path().join("x")).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        check("a", "none", "no template `none`; there are `http`, `typed`");
        check("A", "typed", "cannot be named `A`");
        create("a", "typed", &dir.path().join("x")).unwrap();
        check("a", "typed", "is there already and not empty");
        std::fs::create_dir(dir.path().join("empty")).unwrap();
        create("a", "typed", &dir.path().join("empty")).unwrap();
        std::fs::write(dir.path().join("file"), "").unwrap();
        assert!(create("a", "typed", &dir.path().join("file")).is_err());
    }

    #[test]
    fn paths_are_words() {
        assert_eq!(quoted(Path::new("a/b-c")), "a/b-c");
        assert_eq!(quoted(Path::new("it's")), r"'it'\''s'");
    }
}
