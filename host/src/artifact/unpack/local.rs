//! The app that Spin hands to the trigger of an app: a locked app on this machine, whose content is files.

use std::collections::BTreeSet;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde_json::Value;
use url::Url;

use super::{Contents, Options, UnpackError, Unpacked, assemble, check_type};
use crate::artifact::locked::{self, LockedApp, LockedError, shown};
use crate::artifact::manifest::{self, FileMount, Files, Manifest};

/// What Spin says of an app that it hands over.
#[derive(Clone, Copy, Debug)]
pub struct Local<'a> {
    /// `SPIN_LOCKED_URL`: the locked app.
    pub locked_url: &'a str,
    /// `SPIN_LOCAL_APP_DIR`: the folder of the app's `spin.toml`, where it was loaded from one.
    pub local_app_dir: Option<&'a Path>,
    /// The only type of triggers that is served, with the components that these need; `None`: all types.
    pub trigger_type: Option<&'a str>,
}

/// Makes an app of the locked app that Spin wrote. A component without settings among its files and in its trigger has
/// those of `tool.tenon` in the `spin.toml` that the app was loaded from.
///
/// # Errors
/// Where it cannot be read, names what is not there, or is not one that is taken.
pub fn locked_app(local: &Local<'_>, options: &Options<'_>) -> Result<Unpacked, UnpackError> {
    let path = file_path(local.locked_url)?;
    let mut app = LockedApp::parse(&read(&path)?)?;
    if let Some(trigger_type) = local.trigger_type {
        keep_only(trigger_type, &mut app);
    }
    let profile = app.metadata.get("profile").and_then(Value::as_str).map(str::to_owned);
    let mut contents = OnDisk { local, options, profile, author: None };
    assemble(app, None, &mut contents, options)
}

/// Leaves the triggers of one type, and the components that no trigger of another type alone needs.
fn keep_only(trigger_type: &str, app: &mut LockedApp) {
    let target = |trigger: &locked::Trigger| {
        let component = trigger.trigger_config.get("component").and_then(Value::as_str);
        component.map(str::to_owned)
    };
    let (kept, others): (Vec<_>, Vec<_>) = std::mem::take(&mut app.triggers)
        .into_iter()
        .partition(|trigger| trigger.trigger_type == trigger_type);
    let ours: BTreeSet<_> = kept.iter().filter_map(target).collect();
    let theirs: BTreeSet<_> = others.iter().filter_map(target).collect();
    app.components.retain(|component| ours.contains(&component.id) || !theirs.contains(&component.id));
    app.triggers = kept;
    // What is said of other types is theirs.
    if let Some(Value::Object(types)) = app.metadata.get_mut("triggers") {
        types.retain(|name, _| name == trigger_type);
    }
}

fn read(path: &Path) -> Result<Vec<u8>, UnpackError> {
    let failed =
        |error: std::io::Error| UnpackError::Read { path: path.to_owned(), reason: error.to_string() };
    let file = std::fs::File::open(path).map_err(failed)?;
    let mut bytes = Vec::new();
    file.take(locked::MAX_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    match bytes.len() as u64 {
        size if size > locked::MAX_BYTES => Err(LockedError::TooLarge { bytes: size }.into()),
        _ => Ok(bytes),
    }
}

/// The file that a URL names.
fn file_path(url: &str) -> Result<PathBuf, UnpackError> {
    let parsed = Url::parse(url).ok().filter(|url| url.scheme() == "file");
    let path = parsed.and_then(|url| url.to_file_path().ok());
    path.ok_or_else(|| UnpackError::NotAFile(shown(url)))
}

/// Content that Spin has put on this machine's disk.
struct OnDisk<'a> {
    local: &'a Local<'a>,
    options: &'a Options<'a>,
    profile: Option<String>,
    /// The manifest that the app was loaded from, once it was looked for, or why it says nothing.
    author: Option<Result<(Manifest, Files), String>>,
}

impl OnDisk<'_> {
    fn source(what: &str, content: &locked::Content) -> Result<PathBuf, UnpackError> {
        match &content.source {
            Some(url) => file_path(url),
            None => Err(UnpackError::NoContent { what: what.to_owned() }),
        }
    }

    /// The app as its author wrote it.
    fn author(&mut self) -> Option<&Result<(Manifest, Files), String>> {
        let path = self.local.local_app_dir?.join(manifest::FILE_NAME);
        if self.author.is_none() && path.is_file() {
            let options = manifest::Options {
                profile: self.profile.as_deref(),
                variables: self.options.variables,
                environment: self.options.environment,
                values_required: false,
            };
            let read = Manifest::load(&path, &options).and_then(|app| {
                let files = app.files()?;
                Ok((app, files))
            });
            self.author = Some(read.map_err(|error| error.to_string()));
        }
        self.author.as_ref()
    }
}

impl Contents for OnDisk<'_> {
    fn wasm(&mut self, id: &str, source: &locked::Source) -> Result<PathBuf, UnpackError> {
        check_type(id, source)?;
        Self::source(&format!("component `{id}`"), &source.content)
    }

    fn mounts(&mut self, component: &locked::Component) -> Result<Vec<FileMount>, UnpackError> {
        let mut mounts = Vec::new();
        for file in &component.files {
            let what = format!("file `{}` of component `{}`", shown(&file.path), component.id);
            let source = Self::source(&what, &file.content)?;
            let found = manifest::mounts_below(&source, &file.path);
            mounts.extend(found.map_err(|reason| UnpackError::Read { path: source, reason })?);
        }
        mounts.sort_by(|one, other| one.destination.cmp(&other.destination));
        if let Some([one, _]) =
            mounts.array_windows().find(|[one, other]| one.destination == other.destination)
        {
            let path = shown(&one.destination);
            return Err(UnpackError::SameFile { id: component.id.clone(), path });
        }
        Ok(mounts)
    }

    fn settle(
        &mut self,
        component: &mut manifest::Component,
        files: &mut Files,
    ) -> Result<Option<String>, UnpackError> {
        let (app, found) = match self.author() {
            None => return Ok(None),
            Some(Err(why)) => return Ok(Some(format!("its `tool.tenon` is not looked at: {why}"))),
            Some(Ok(author)) => author,
        };
        let Some(author) = app.components.iter().find(|author| author.id == component.id) else {
            return Ok(None);
        };
        component.has_settings = author.has_settings;
        component.models.clone_from(&author.models);
        component.model_name.clone_from(&author.model_name);
        component.limits.clone_from(&author.limits);
        component.samples.clone_from(&author.samples);
        let samples = found.samples.get(&component.id);
        files.samples.extend(samples.map(|samples| (component.id.clone(), samples.clone())));
        Ok(None)
    }

    fn elsewhere(&self, guest_path: &Path) -> Option<PathBuf> {
        let relative = guest_path.strip_prefix("/").unwrap_or(guest_path);
        Some(self.local.local_app_dir?.join(relative)).filter(|path| path.is_file())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;

    use serde_json::json;

    use super::*;
    use crate::artifact::manifest::Source;
    use crate::artifact::wasm::tests as wasm;

    /// A folder as Spin leaves it: the locked app, its assets, and the author's app beside them.
    fn folder() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let nn = wasm::component(&["wasi:nn/graph@0.2.0-rc-2024-10-28"], &[]);
        let files: [(&str, &[u8]); 6] = [
            ("my app/c.wasm", &nn),
            ("my app/plain.wasm", &wasm::component(&[], &[])),
            ("my app/model/m.onnx", b"a model"),
            ("work/assets/c/a.txt", b"a"),
            ("work/assets/c/sub/b.txt", b"b"),
            ("direct/d.txt", b"d"),
        ];
        for (name, bytes) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
        dir
    }

    fn url(path: &Path) -> String {
        Url::from_file_path(path).unwrap().to_string()
    }

    fn app_in(dir: &Path) -> Value {
        let source = |file: &str| json!({"content_type": "application/wasm", "source": url(&dir.join(file))});
        let config = |component: &str, route: &str| json!({"component": component, "route": route});
        json!({
            "spin_lock_version": 0,
            "metadata": {
                "name": "shop",
                "origin": url(&dir.join("my app/spin.toml")),
                "triggers": {"redis": {"address": "redis://localhost"}},
            },
            "triggers": [
                {"id": "t", "trigger_type": "tenon", "trigger_config": config("c", "/c")},
                {"id": "r", "trigger_type": "redis", "trigger_config": {"component": "plain", "channel": "x"}},
            ],
            "components": [
                {
                    "id": "c",
                    "source": source("my app/c.wasm"),
                    "files": [
                        {"source": url(&dir.join("work/assets/c")), "path": "/"},
                        {"source": url(&dir.join("direct")), "path": "/direct"},
                    ],
                },
                {"id": "plain", "source": source("my app/plain.wasm")},
            ],
        })
    }

    /// What becomes of the app, with the author's `spin.toml` beside it or without.
    fn handed_over(dir: &Path, app: &Value, author: Option<&str>) -> Result<Unpacked, UnpackError> {
        let lock = dir.join("work/spin.lock");
        fs::write(&lock, serde_json::to_vec_pretty(app).unwrap()).unwrap();
        let folder = dir.join("my app");
        if let Some(author) = author {
            fs::write(folder.join("spin.toml"), author).unwrap();
        }
        let url = url(&lock);
        let local_app_dir = author.map(|_| folder.as_path());
        let local = Local { locked_url: &url, local_app_dir, trigger_type: Some("tenon") };
        let options = Options {
            name: "shop",
            variables: &BTreeMap::new(),
            environment: &|_| None,
            values_required: true,
            max_unpacked_bytes: 0,
        };
        locked_app(&local, &options)
    }

    const AUTHOR: &str = "spin_manifest_version = 2\n[application]\nname = \"shop\"\n[[trigger.tenon]]\n\
        route = \"/c\"\ncomponent = \"c\"\n[component.c]\nsource = \"c.wasm\"\n[component.c.tool.tenon]\n\
        limits.deadline_ms = 7\nmodels.m.path = \"model/m.onnx\"\n";

    #[test]
    fn what_spin_hands_over_is_served_with_the_authors_settings() {
        let dir = folder();
        let unpacked = handed_over(dir.path(), &app_in(dir.path()), Some(AUTHOR)).unwrap();
        let [component] = unpacked.manifest.components.as_slice() else {
            panic!("the component of our trigger")
        };
        assert_eq!(unpacked.manifest.triggers.len(), 1);
        assert_eq!(component.source, Source::Path(dir.path().join("my app/c.wasm")));
        assert_eq!(component.models["m"].path, dir.path().join("my app/model/m.onnx"));
        assert_eq!(component.limits.deadline_ms, Some(7));
        let mounts = unpacked.files.mounts["c"].iter();
        let paths: Vec<_> = mounts.map(|mount| mount.destination.as_str()).collect();
        assert_eq!(paths, ["/a.txt", "/direct/d.txt", "/sub/b.txt"]);
    }

    #[test]
    fn settings_in_the_trigger_go_before_those_of_the_author() {
        let dir = folder();
        let mut app = app_in(dir.path());
        let settings = json!({"models": {"n": {"path": "model/m.onnx"}}});
        app["triggers"][0]["trigger_config"]["settings"] = settings;
        let unpacked = handed_over(dir.path(), &app, Some(AUTHOR)).unwrap();
        let component = &unpacked.manifest.components[0];
        assert_eq!((component.models.len(), component.limits.deadline_ms), (1, None));
        assert_eq!(component.models["n"].path, dir.path().join("my app/model/m.onnx"));
        let error = handed_over(dir.path(), &app, None).unwrap_err().to_string();
        assert!(error.contains("model `n` of component `c` is to be `/model/m.onnx`"), "{error}");
    }

    #[test]
    fn what_spin_hands_over_is_refused_with_a_reason() {
        let dir = folder();
        let check = |author: Option<&str>, change: &dyn Fn(&mut Value), expected: &str| {
            let mut app = app_in(dir.path());
            change(&mut app);
            let error = handed_over(dir.path(), &app, author).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        check(None, &|_| {}, "component `c` imports `wasi:nn/graph");
        check(Some("spin_manifest_version = 2"), &|_| {}, "component `c` imports `wasi:nn/graph");
        let source =
            |url: &'static str| move |app: &mut Value| app["components"][0]["source"]["source"] = json!(url);
        check(Some(AUTHOR), &source("https://example.com/c.wasm"), "is not the URL of a file");
        check(Some(AUTHOR), &source("c.wasm"), "is not the URL of a file");
        check(
            Some(AUTHOR),
            &|app| app["components"][0]["source"] = json!({"content_type": "application/wasm"}),
            "nor where",
        );
        let file = |path: &'static str| {
            move |app: &mut Value| app["components"][0]["files"][1]["path"] = json!(path)
        };
        check(Some(AUTHOR), &file("/../x"), "is not a guest path");
        let gone = |app: &mut Value| app["components"][0]["files"][1]["source"] = json!("file:///gone/away");
        check(Some(AUTHOR), &gone, "cannot read `/gone/away`");
        let twice = |app: &mut Value| {
            let list = app["components"][0]["files"].as_array_mut().unwrap();
            list.push(list[0].clone());
        };
        check(Some(AUTHOR), &twice, "has the file `/a.txt` twice");
        let no_url = Local { locked_url: "spin.lock", local_app_dir: None, trigger_type: None };
        let options = Options {
            name: "shop",
            variables: &BTreeMap::new(),
            environment: &|_| None,
            values_required: true,
            max_unpacked_bytes: 0,
        };
        assert!(locked_app(&no_url, &options).is_err());
    }
}
