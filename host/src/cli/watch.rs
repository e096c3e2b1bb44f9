//! Watches the files of an app and tells which components a change of them concerns.
//!
//! Folders are watched, never files: an editor that saves by renaming replaces the file that was watched. Each
//! folder is watched by itself, so that a `target` folder with its thousands of folders costs nothing.

use std::collections::BTreeSet;
use std::path::{Component as Part, Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use notify::event::{AccessKind, AccessMode, EventKind, ModifyKind};
use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};
use walkdir::{DirEntry, WalkDir};

use crate::artifact::manifest::{Component, Manifest, Source};

/// A change is told when nothing else has changed for this long: one save makes several events.
const QUIET: Duration = Duration::from_millis(150);
/// A change is told after this long even if something else changes all the time.
const MOST: Duration = Duration::from_secs(2);
/// Folders that tools fill, in which nobody edits.
const IGNORED: [&str; 6] = ["target", ".git", ".spin", ".tenon", "node_modules", "__pycache__"];
/// The most folders that are watched: the system lends only so many.
const MAX_FOLDERS: usize = 4096;
const PATTERN_CHARS: [char; 4] = ['*', '?', '[', ']'];

/// What has changed since it was last asked.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Change {
    /// The manifest itself: read it, and watch what it now names with a new [`Watcher`].
    pub manifest: bool,
    /// Components to build anew: a file that their `build.watch` names changed.
    pub rebuild: BTreeSet<String>,
    /// Components to load anew as they are: their wasm (where they have no build), a model or a mounted file
    /// changed.
    pub reload: BTreeSet<String>,
}

/// Watches the files that one version of a manifest names.
pub struct Watcher {
    rules: Vec<Rule>,
    /// Components with a build and nothing to watch for it.
    unwatched: Vec<String>,
    /// The folders that are watched.
    folders: BTreeSet<PathBuf>,
    watcher: RecommendedWatcher,
    events: mpsc::UnboundedReceiver<notify::Result<notify::Event>>,
    /// What has been seen and not been told yet.
    pending: Change,
    /// When the pending change is to be told: if it stays quiet, and at the latest.
    due: Option<(Instant, Instant)>,
}

/// Files, and what a change of one of them means.
struct Rule {
    files: Files,
    effect: Effect,
}

enum Files {
    /// This one.
    One(PathBuf),
    /// Those below the folder that a pattern matches.
    Matching(PathBuf, GlobSet),
}

enum Effect {
    Manifest,
    Rebuild(String),
    Reload(String),
}

impl Watcher {
    /// Begins to watch.
    ///
    /// # Errors
    /// The system watches no further folders.
    pub fn new(manifest: &Manifest) -> anyhow::Result<Self> {
        let (sender, events) = mpsc::unbounded_channel();
        let watcher = notify::recommended_watcher(move |event| {
            // The receiver is gone only when nobody watches any more.
            let _ = sender.send(event);
        });
        let watcher = watcher.context("files cannot be watched; raise `fs.inotify.max_user_instances`")?;
        let builds = manifest.components.iter();
        let unwatched = builds.filter(|c| c.build.as_ref().is_some_and(|build| build.watch.is_empty()));
        let unwatched = unwatched.map(|component| component.id.clone()).collect();
        let (folders, pending, due) = Default::default();
        let mut watcher = Self { rules: rules(manifest)?, unwatched, folders, watcher, events, pending, due };
        watcher.watch_folders()?;
        Ok(watcher)
    }

    /// Components whose sources are not watched, because their `build.watch` names nothing.
    pub fn unwatched(&self) -> &[String] {
        &self.unwatched
    }

    /// Waits until something has changed and is quiet again. May be dropped and called again: nothing is lost.
    pub async fn changed(&mut self) -> Change {
        loop {
            let event = match self.due {
                None => self.events.recv().await,
                Some((_, most)) if Instant::now() >= most => return self.tell(),
                Some((quiet, most)) => match timeout_at(quiet.min(most), self.events.recv()).await {
                    Ok(event) => event,
                    Err(_) => return self.tell(),
                },
            };
            match event {
                Some(event) => self.take(event),
                // The system's end is gone; there is nothing left to tell.
                None => std::future::pending().await,
            }
        }
    }

    fn tell(&mut self) -> Change {
        self.due = None;
        std::mem::take(&mut self.pending)
    }

    fn take(&mut self, event: notify::Result<notify::Event>) {
        // The system may lose count of what changed: then anything may have.
        let event = match event {
            Ok(event) if !event.need_rescan() => event,
            _ => {
                self.watch_folders_again();
                return self.note(|_| true);
            }
        };
        if !is_change(event.kind) {
            return;
        }
        for path in &event.paths {
            if self.folders.contains(path) && !path.is_dir() {
                // A folder that was moved away took files with it of which nothing is said.
                self.note(|files| files.concern_below(path));
                self.watch_folders_again();
            } else if path.is_dir() {
                // A folder came, and perhaps files in it before it was watched.
                self.watch_folders_again();
                files_below(path).for_each(|file| self.note(|files| files.concern(&file)));
            }
            self.note(|files| files.concern(path));
        }
    }

    /// Notes the effects of a change of the files for which `concern` answers so.
    fn note(&mut self, concern: impl Fn(&Files) -> bool) {
        let mut is_concern = false;
        for rule in self.rules.iter().filter(|rule| concern(&rule.files)) {
            rule.effect.note(&mut self.pending);
            is_concern = true;
        }
        if is_concern {
            let now = Instant::now();
            let most = self.due.map_or(now + MOST, |(_, most)| most);
            self.due = Some((now + QUIET, most));
        }
    }

    fn watch_folders_again(&mut self) {
        if let Err(error) = self.watch_folders() {
            tracing::warn!(error = %format!("{error:#}"), "failed to watch a folder");
        }
    }

    /// Watches every folder in which a file of a rule is or may come to be. To watch one twice does nothing;
    /// one that was replaced is watched anew.
    fn watch_folders(&mut self) -> anyhow::Result<()> {
        self.folders = folders(&self.rules);
        let mut paths = self.watcher.paths_mut();
        for folder in self.folders.iter().take(MAX_FOLDERS) {
            match paths.add(folder, RecursiveMode::NonRecursive) {
                // It went while it was looked at.
                Err(error) if is_absent(&error) => {}
                outcome => outcome.with_context(|| {
                    format!("`{}` cannot be watched; raise `fs.inotify.max_user_watches`", folder.display())
                })?,
            }
        }
        paths.commit().context("files cannot be watched")
    }
}

fn is_absent(error: &notify::Error) -> bool {
    match &error.kind {
        notify::ErrorKind::PathNotFound => true,
        notify::ErrorKind::Io(error) => error.kind() == std::io::ErrorKind::NotFound,
        _ => false,
    }
}

/// Whether an event says that the content of something is, or may be, another one. To read is none.
fn is_change(kind: EventKind) -> bool {
    match kind {
        EventKind::Access(access) => access == AccessKind::Close(AccessMode::Write),
        EventKind::Modify(ModifyKind::Metadata(_)) => false,
        EventKind::Any | EventKind::Create(_) | EventKind::Modify(_) | EventKind::Remove(_) => true,
        EventKind::Other => false,
    }
}

impl Effect {
    fn note(&self, change: &mut Change) {
        match self {
            Effect::Manifest => change.manifest = true,
            Effect::Rebuild(id) => change.rebuild.extend([id.clone()]),
            Effect::Reload(id) => change.reload.extend([id.clone()]),
        }
    }
}

impl Files {
    fn concern(&self, path: &Path) -> bool {
        match self {
            Files::One(file) => file == path,
            Files::Matching(base, patterns) => path.strip_prefix(base).is_ok_and(|relative| {
                !relative.iter().any(|part| IGNORED.iter().any(|ignored| part == *ignored))
                    && !is_scratch(relative)
                    && patterns.is_match(path)
            }),
        }
    }

    /// Whether they may lie in `folder`.
    fn concern_below(&self, folder: &Path) -> bool {
        match self {
            Files::One(file) => file.starts_with(folder),
            Files::Matching(base, _) => base.starts_with(folder) || folder.starts_with(base),
        }
    }
}

/// Whether an editor keeps it for itself while it edits another file.
fn is_scratch(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // `4913` is what vim creates to see whether it may.
    [".swp", ".swx", ".swo", "~"].iter().any(|end| name.ends_with(end))
        || name.starts_with(".#")
        || name == "4913"
}

fn rules(manifest: &Manifest) -> anyhow::Result<Vec<Rule>> {
    let mut rules = vec![Rule { files: Files::One(clean(&manifest.path)), effect: Effect::Manifest }];
    for component in &manifest.components {
        if let Some(build) = &component.build {
            for pattern in &build.watch {
                let effect = Effect::Rebuild(component.id.clone());
                rules.push(Rule { files: matching(&build.workdir, pattern)?, effect });
            }
        }
        for files in loaded(component, &manifest.dir)? {
            rules.push(Rule { files, effect: Effect::Reload(component.id.clone()) });
        }
    }
    Ok(rules)
}

/// What is loaded as it is, without a build.
fn loaded(component: &Component, dir: &Path) -> anyhow::Result<Vec<Files>> {
    let mut files = Vec::new();
    match &component.source {
        Source::Path(path) if component.build.is_none() => files.push(Files::One(clean(path))),
        Source::Path(_) | Source::Url { .. } | Source::Model => {}
    }
    for model in component.models.values() {
        files.push(Files::One(clean(&model.path)));
        files.extend(model.weights.as_deref().map(|weights| Files::One(clean(weights))));
    }
    for entry in &component.files {
        files.push(matching(dir, &entry.source)?);
    }
    Ok(files)
}

/// The files that `pattern` matches from `folder` on, and everything below a folder that it matches.
fn matching(folder: &Path, pattern: &str) -> anyhow::Result<Files> {
    let literal = pattern.split('/').take_while(|segment| !segment.contains(PATTERN_CHARS));
    let literal = literal.collect::<Vec<_>>().join("/");
    let rest = pattern[literal.len()..].trim_start_matches('/');
    let base = clean(&folder.join(literal));
    if rest.is_empty() && !base.is_dir() {
        return Ok(Files::One(base));
    }
    // Braces and backslashes mean themselves in Spin's patterns.
    let rest = rest.replace('{', "\u{0}").replace('}', "[}]").replace('\u{0}', "[{]");
    let root = globset::escape(&base.to_string_lossy());
    let glob = format!("{}/{rest}", root.trim_end_matches('/'));
    let mut set = GlobSetBuilder::new();
    for glob in [glob.trim_end_matches('/'), &format!("{}/**", glob.trim_end_matches('/'))] {
        let glob = GlobBuilder::new(glob).literal_separator(true).backslash_escape(false).build();
        set.add(glob.with_context(|| format!("`{pattern}` is not a pattern; correct it"))?);
    }
    Ok(Files::Matching(base, set.build()?))
}

/// The path without `.` and `..`, as the system reports it; links stay, as nobody follows them here.
fn clean(path: &Path) -> PathBuf {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Part::CurDir => {}
            Part::ParentDir => {
                clean.pop();
            }
            part => clean.push(part),
        }
    }
    clean
}

/// The folders to watch. One that is not there yet is awaited in the nearest one above it.
fn folders(rules: &[Rule]) -> BTreeSet<PathBuf> {
    let mut folders = BTreeSet::new();
    for rule in rules {
        let base = match &rule.files {
            Files::One(file) => file.parent().unwrap_or(file),
            Files::Matching(base, _) => base,
        };
        let mut there = base.ancestors().filter(|folder| folder.is_dir());
        folders.extend(there.next().map(Path::to_owned));
        // From the one above it is seen that the folder itself is replaced.
        folders.extend(there.next().map(Path::to_owned));
        if matches!(rule.files, Files::Matching(..)) {
            let below = walk(base).filter(|entry| entry.file_type().is_dir()).map(DirEntry::into_path);
            folders.extend(below.take(MAX_FOLDERS));
        }
    }
    folders
}

fn files_below(folder: &Path) -> impl Iterator<Item = PathBuf> {
    walk(folder).filter(|entry| entry.file_type().is_file()).map(DirEntry::into_path)
}

fn walk(folder: &Path) -> impl Iterator<Item = DirEntry> {
    let is_wanted =
        |entry: &DirEntry| entry.depth() == 0 || !IGNORED.iter().any(|ignored| entry.file_name() == *ignored);
    WalkDir::new(folder).into_iter().filter_entry(is_wanted).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An app in a folder of its own: two components with a build, one without.
    fn app() -> (tempfile::TempDir, Manifest) {
        let dir = tempfile::tempdir().unwrap();
        let text = "spin_manifest_version = 2\n[application]\nname = \"a\"\n[trigger]\n\
            [component.a]\nsource = \"target/a.wasm\"\nfiles = [\"static\"]\n\
            tool.tenon.models.m.path = \"models/m.onnx\"\n\
            build = { command = \"true\", workdir = \"a\", watch = [\"src/**/*.rs\", \"Cargo.toml\", \"../shared\"] }\n\
            [component.b]\nsource = \"target/b.wasm\"\nbuild = { command = \"true\" }\n\
            [component.c]\nsource = \"target/c.wasm\"\n";
        for file in ["spin.toml", "a/src/lib.rs", "a/Cargo.toml", "models/m.onnx", "static/x", "shared/s/t"] {
            write(dir.path(), file, text);
        }
        let manifest = crate::cli::build::load(dir.path(), None).unwrap();
        (dir, manifest)
    }

    fn write(dir: &Path, file: &str, text: &str) {
        let path = dir.join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    fn change(manifest: bool, rebuild: &[&str], reload: &[&str]) -> Change {
        let set = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect();
        Change { manifest, rebuild: set(rebuild), reload: set(reload) }
    }

    fn merge(change: &mut Change, other: Change) {
        change.manifest |= other.manifest;
        change.rebuild.extend(other.rebuild);
        change.reload.extend(other.reload);
    }

    fn covers(change: &Change, other: &Change) -> bool {
        change.manifest >= other.manifest
            && change.rebuild.is_superset(&other.rebuild)
            && change.reload.is_superset(&other.reload)
    }

    #[test]
    fn a_file_concerns_what_names_it() {
        let (dir, manifest) = app();
        let rules = rules(&manifest).unwrap();
        let check = |file: &str, expected: Change| {
            let mut found = Change::default();
            let concerned = rules.iter().filter(|rule| rule.files.concern(&dir.path().join(file)));
            concerned.for_each(|rule| rule.effect.note(&mut found));
            assert_eq!(found, expected, "{file}");
        };
        check("spin.toml", change(true, &[], &[]));
        check("a/src/lib.rs", change(false, &["a"], &[]));
        check("a/src/x/y.rs", change(false, &["a"], &[]));
        check("a/src/.#lib.rs", change(false, &[], &[]));
        check("a/src/lib.rs.swp", change(false, &[], &[]));
        check("a/src/target/x.rs", change(false, &[], &[]));
        check("a/src/lib.txt", change(false, &[], &[]));
        check("a/Cargo.toml", change(false, &["a"], &[]));
        check("shared/s/t", change(false, &["a"], &[]));
        check("models/m.onnx", change(false, &[], &["a"]));
        check("static/x", change(false, &[], &["a"]));
        check("target/a.wasm", change(false, &[], &[]));
        check("target/c.wasm", change(false, &[], &["c"]));
        check("other", change(false, &[], &[]));
    }

    #[test]
    fn reading_is_no_change() {
        use notify::event::{CreateKind, MetadataKind, RenameMode};
        let check = |kind: EventKind, expected: bool| assert_eq!(is_change(kind), expected, "{kind:?}");
        check(EventKind::Access(AccessKind::Open(AccessMode::Any)), false);
        check(EventKind::Access(AccessKind::Close(AccessMode::Read)), false);
        check(EventKind::Modify(ModifyKind::Metadata(MetadataKind::Any)), false);
        check(EventKind::Access(AccessKind::Close(AccessMode::Write)), true);
        check(EventKind::Modify(ModifyKind::Name(RenameMode::Both)), true);
        check(EventKind::Create(CreateKind::File), true);
    }

    #[tokio::test]
    async fn changes_are_told() {
        let (dir, manifest) = app();
        let mut watcher = Watcher::new(&manifest).unwrap();
        assert_eq!(watcher.unwatched(), ["b"]);
        let path = dir.path();
        let mut before = Change::default();
        let mut check = async |act: &dyn Fn(), expected: Change| {
            act();
            // On a busy machine one act may be told in two parts, the second of them after the next act.
            let mut told = Change::default();
            while !covers(&told, &expected) {
                let change = tokio::time::timeout(Duration::from_secs(20), watcher.changed()).await;
                assert!(change.is_ok(), "only {told:?} was told of {expected:?}");
                merge(&mut told, change.unwrap());
            }
            merge(&mut before, expected.clone());
            assert!(covers(&before, &told), "{told:?} was told of {expected:?}");
            before = expected;
        };
        check(&|| write(path, "a/src/lib.rs", "1"), change(false, &["a"], &[])).await;
        // An editor that saves by renaming, twice: the second time the first file is gone.
        let rename = || {
            write(path, "a/src/lib.rs~new", "2");
            std::fs::rename(path.join("a/src/lib.rs~new"), path.join("a/src/lib.rs")).unwrap();
        };
        check(&rename, change(false, &["a"], &[])).await;
        check(&rename, change(false, &["a"], &[])).await;
        check(&|| write(path, "spin.toml", "1"), change(true, &[], &[])).await;
        // Folders that come later.
        check(&|| write(path, "a/src/new/deep/x.rs", "1"), change(false, &["a"], &[])).await;
        check(&|| write(path, "a/src/new/deep/x.rs", "2"), change(false, &["a"], &[])).await;
        check(&|| write(path, "target/c.wasm", "1"), change(false, &[], &["c"])).await;
        check(&|| write(path, "target/c.wasm", "2"), change(false, &[], &["c"])).await;
        // A folder that is replaced.
        let replace = || {
            std::fs::rename(path.join("a/src"), path.join("a/old")).unwrap();
            write(path, "a/src/lib.rs", "3");
        };
        check(&replace, change(false, &["a"], &[])).await;
        check(&|| write(path, "a/src/lib.rs", "4"), change(false, &["a"], &[])).await;
        // What concerns nobody is not told: the next change is.
        let other = || {
            write(path, "a/target/x.rs", "");
            std::fs::read(path.join("a/src/lib.rs")).unwrap();
            write(path, "models/m.onnx", "2");
        };
        check(&other, change(false, &[], &["a"])).await;
        let several = || {
            write(path, "static/x", "2");
            write(path, "a/Cargo.toml", "2");
        };
        check(&several, change(false, &["a"], &["a"])).await;
    }
}
