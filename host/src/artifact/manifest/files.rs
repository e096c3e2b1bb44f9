//! Finds on disk what a manifest names: components, models, and the files to mount.
//!
//! This is a step of its own because a build may make the files. Nothing outside the app's folder
//! is ever mounted, also not by way of a symbolic link.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::{Path, PathBuf};

use globset::{GlobBuilder, GlobMatcher};
use walkdir::{DirEntry, WalkDir};

use crate::artifact::sample::{self, MAX_SAMPLE_FILES, Sample};

use super::{Component, FilesEntry, Manifest, ManifestError, ManifestErrors, Source};
use crate::config::STATE_FOLDER;

/// The most directory entries that the `files` of one component may make the host look at.
const MAX_ENTRIES: usize = 100_000;
const MAX_DEPTH: usize = 64;
const PATTERN_CHARS: [char; 4] = ['*', '?', '[', ']'];

/// One file to mount, read-only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileMount {
    /// A regular file within the app's folder, absolute and free of symbolic links.
    pub source: PathBuf,
    /// Its guest path, absolute.
    pub destination: String,
}

/// What [`Manifest::files`] found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Files {
    /// By the component's id, in the order of the guest paths.
    pub mounts: BTreeMap<String, Vec<FileMount>>,
    /// By the component's id: the files of its samples by their names, which are paths such as `samples/one.json`.
    pub samples: BTreeMap<String, BTreeMap<String, PathBuf>>,
    /// What is allowed but probably not meant.
    pub warnings: Vec<String>,
}

impl Manifest {
    /// Checks that the files of components and models exist, and lists the files to mount.
    ///
    /// # Errors
    /// Everything that is missing, outside the app's folder or mounted twice, at once.
    pub fn files(&self) -> Result<Files, ManifestErrors> {
        let mut files = Files::default();
        let mut errors = Vec::new();
        // An app folder that is gone has none of the files either, which is then what is reported.
        let root = self.dir.canonicalize().unwrap_or_else(|_| self.dir.clone());
        for component in &self.components {
            check_existence(component, &mut errors);
            let mut expansion = Expansion::new(&root);
            match exclusions(&component.exclude_files) {
                Ok(excluded) => {
                    let entries = component.files.iter();
                    files.warnings.extend(entries.filter_map(|entry| expansion.add(entry, &excluded)));
                }
                Err(why) => expansion.problems.push((component.line, why)),
            }
            let problems = expansion.problems.into_iter();
            errors.extend(problems.map(|(line, message)| ManifestError { line, message }));
            let mounts = expansion.mounts.into_iter();
            let mounts = mounts.map(|(destination, source)| FileMount { source, destination });
            files.mounts.insert(component.id.clone(), mounts.collect());
            if !component.samples.is_empty() {
                files.add_samples(component, &root, &mut errors);
            }
        }
        match errors.is_empty() {
            true => Ok(files),
            false => Err(ManifestErrors { path: self.path.clone(), errors }),
        }
    }
}

impl Files {
    fn add_samples(&mut self, component: &Component, root: &Path, errors: &mut Vec<ManifestError>) {
        let mut expansion = Expansion::new(root);
        self.warnings.extend(component.samples.iter().filter_map(|entry| expansion.add(entry, &[])));
        expansion.add_named();
        if let Err(reason) = sample::check_amount(&expansion.mounts) {
            expansion.refuse(format!("component `{}` {reason}", component.id));
        }
        let problems = expansion.problems.into_iter();
        errors.extend(problems.map(|(line, message)| ManifestError { line, message }));
        let named = expansion.mounts.into_iter();
        let named = named.map(|(path, file)| (path.trim_start_matches('/').to_owned(), file));
        self.samples.insert(component.id.clone(), named.collect());
    }
}

impl Component {
    /// Those of `names`, which are paths of files, that are this component's samples.
    ///
    /// # Errors
    /// Where one of its patterns matches none, or they are too many.
    pub(crate) fn chosen_samples<'n>(
        &self,
        names: impl Iterator<Item = &'n str> + Clone,
    ) -> Result<Vec<&'n str>, ManifestErrors> {
        let refuse = |message: String| {
            let path = PathBuf::from(format!("component `{}`", self.id));
            ManifestErrors { path, errors: vec![ManifestError { line: 0, message }] }
        };
        let mut chosen = Vec::new();
        for entry in &self.samples {
            let source = entry.source.trim_start_matches("./").trim_end_matches('/');
            let matcher = matcher(source, true).map_err(refuse)?;
            let is_below = |name: &str| name.strip_prefix(source).is_some_and(|rest| rest.starts_with('/'));
            let is_meant = |name: &&str| *name == source || is_below(name) || matcher.is_match(name);
            let before = chosen.len();
            chosen.extend(names.clone().filter(is_meant));
            if chosen.len() == before {
                return Err(refuse(format!("none of its files is a sample `{}`", entry.source)));
            }
        }
        match chosen.len() > MAX_SAMPLE_FILES {
            true => Err(refuse(format!("it has more than {MAX_SAMPLE_FILES} files of samples"))),
            false => Ok(chosen),
        }
    }
}

/// The files to mount for `source`, a file or a folder, which the guest is to find at `path`.
///
/// # Errors
/// What cannot be read, or leads out of the folder.
pub(crate) fn mounts_below(source: &Path, path: &str) -> Result<Vec<FileMount>, String> {
    check_destination(path)?;
    let real = source.canonicalize().map_err(|error| error.to_string())?;
    let mut expansion = Expansion::new(&real);
    if real.is_dir() {
        let entry = FilesEntry { source: String::new(), destination: Some(path.to_owned()), line: 0 };
        expansion.add(&entry, &[]);
    } else {
        expansion.mount(path, real.clone());
    }
    if let Some((_, problem)) = expansion.problems.into_iter().next() {
        return Err(problem);
    }
    let mounts = expansion.mounts.into_iter();
    Ok(mounts.map(|(destination, source)| FileMount { source, destination }).collect())
}

/// The paths of the files that the sample at `path`, which is the `file`, names: relative to the same folder as `path`.
/// None where it is no sample; what is wrong with one is told when it is run.
pub(crate) fn named_in_sample(path: &str, file: &Path) -> Vec<String> {
    let path = path.trim_start_matches('/');
    let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
    let bytes = path.ends_with(".json").then(|| sample::read(file).ok()).flatten();
    let Some(sample) = bytes.and_then(|bytes| Sample::parse(&bytes).ok()) else { return Vec::new() };
    let below = |file: &str| {
        let segments = folder.split('/').chain(file.split('/'));
        let segments: Vec<_> = segments.filter(|segment| !matches!(*segment, "" | ".")).collect();
        segments.join("/")
    };
    sample.files().into_iter().map(below).collect()
}

fn check_existence(component: &Component, errors: &mut Vec<ManifestError>) {
    let mut check = |line: usize, what: &str, path: &Path, hint: &str| {
        if !path.is_file() {
            let message = format!("{what}: there is no file `{}`; {hint}", path.display());
            errors.push(ManifestError { line, message });
        }
    };
    if let Source::Path(path) = &component.source {
        let hint = match component.build {
            Some(_) => {
                "build it (`--build`); where that made no such file, correct `source`, or have \
                 `crate-type = [\"cdylib\"]` in its Cargo.toml"
            }
            None => "correct `source`",
        };
        check(component.line, &format!("component `{}`", component.id), path, hint);
    }
    for (name, model) in &component.models {
        if model.reference.is_some() && model.path.as_os_str().is_empty() {
            continue;
        }
        // Of a model that was named on the command line there is nothing else to say.
        let what = match model.line {
            0 => "the model".to_owned(),
            _ => format!("model `{name}` of component `{}`", component.id),
        };
        check(model.line, &what, &model.path, "correct `path`");
        if let Some(weights) = &model.weights {
            check(model.line, &what, weights, "put it there or correct `weights`");
        }
    }
}

/// Whether `pattern` may stand in `files`.
pub(super) fn check_pattern(pattern: &str) -> Result<(), String> {
    check_source(pattern)?;
    if pattern == "." || pattern.ends_with("/.") {
        return Err(format!("`{pattern}` ends in `.`; name a folder, or write `{pattern}/**/*`"));
    }
    Ok(())
}

/// Whether `source` is a relative path that stays within the app's folder.
pub(super) fn check_source(source: &str) -> Result<(), String> {
    if source.is_empty() || source.contains('\0') {
        return Err("an empty path cannot be mounted; name a file or folder".to_owned());
    }
    if source.starts_with('/') || source.split('/').any(|segment| segment == "..") {
        return Err(format!(
            "`{source}` leads outside the app's folder; put the files into it and write a path without `..` or a \
             leading `/`"
        ));
    }
    Ok(())
}

/// Whether `destination` is a guest path.
pub(super) fn check_destination(destination: &str) -> Result<(), String> {
    let is_wrong = |segment: &str| matches!(segment, "." | "..");
    if destination.is_empty() || destination.contains('\0') || destination.split('/').any(is_wrong) {
        return Err(format!("`{destination}` is not a guest path; write one such as `/data`, without `..`"));
    }
    Ok(())
}

/// Whether `pattern` may stand in `exclude_files` or `watch`.
pub(super) fn check_exclude(pattern: &str) -> Result<(), String> {
    matcher(pattern, false).map(|_| ())
}

fn exclusions(patterns: &[String]) -> Result<Vec<GlobMatcher>, String> {
    // In Spin a `*` here crosses slashes, other than in `files`.
    patterns.iter().map(|pattern| matcher(pattern, false)).collect()
}

fn matcher(pattern: &str, star_stops_at_slash: bool) -> Result<GlobMatcher, String> {
    // Braces and backslashes mean themselves in Spin's patterns.
    let braces = pattern.replace('{', "\u{0}").replace('}', "[}]").replace('\u{0}', "[{]");
    let mut builder = GlobBuilder::new(&braces);
    builder.literal_separator(star_stops_at_slash).backslash_escape(false);
    let glob = builder.build();
    let glob = glob.map_err(|error| format!("`{pattern}` is not a pattern: {}; correct it", error.kind()))?;
    Ok(glob.compile_matcher())
}

/// The mounts of one component as they come together.
struct Expansion<'a> {
    /// The app's folder, free of symbolic links.
    root: &'a Path,
    /// Guest path to file.
    mounts: BTreeMap<String, PathBuf>,
    /// The line of the entry in hand.
    line: usize,
    /// Directory entries that were looked at.
    seen: usize,
    problems: Vec<(usize, String)>,
}

impl<'a> Expansion<'a> {
    fn new(root: &'a Path) -> Self {
        Expansion { root, mounts: BTreeMap::new(), line: 0, seen: 0, problems: Vec::new() }
    }

    /// Adds the files that samples name. What is wrong with a sample itself is told when it is run.
    fn add_named(&mut self) {
        let named: Vec<_> = self.mounts.iter().flat_map(|(path, file)| named_in_sample(path, file)).collect();
        for source in named {
            let path = self.root.join(&source);
            if path.is_file() {
                self.add_file(&source, &source, &path);
            } else {
                self.refuse(format!("a sample names the file `{source}`, which is not there; put it there"));
            }
        }
    }

    fn refuse(&mut self, message: String) {
        self.problems.push((self.line, message));
    }

    /// Adds one entry of `files`; answers a warning if it matches nothing.
    fn add(&mut self, entry: &FilesEntry, excluded: &[GlobMatcher]) -> Option<String> {
        self.line = entry.line;
        let before = (self.mounts.len(), self.problems.len());
        let source = entry.source.trim_start_matches("./").trim_end_matches('/');
        let path = self.root.join(source);
        let destination = entry.destination.as_deref();
        if path.is_dir() {
            let prefix = if destination.is_some() { source } else { "" };
            for (relative, file) in self.walk(&path, MAX_DEPTH, excluded, &|_| true) {
                let below = relative.strip_prefix(prefix).unwrap_or(&relative);
                self.mount(&format!("{}/{below}", destination.unwrap_or_default()), file);
            }
        } else if path.exists() {
            self.add_file(source, destination.unwrap_or(source), &path);
        } else if destination.is_none() && source.contains(PATTERN_CHARS) {
            self.add_matches(source, excluded);
        } else {
            self.refuse(format!("there is no file or folder `{source}`; correct the path or build the app"));
        }
        let nothing = before == (self.mounts.len(), self.problems.len());
        // What an earlier entry mounted already is not nothing, but then this entry is not needed.
        nothing.then(|| format!("line {}: `{}` adds no file", entry.line, entry.source))
    }

    fn add_file(&mut self, source: &str, destination: &str, path: &Path) {
        if destination.ends_with('/') {
            self.refuse(format!(
                "`{destination}` is a folder, but `{source}` is a file; add the file's name"
            ));
        } else if let Some(file) = self.within(source, path) {
            self.mount(destination, file);
        }
    }

    fn add_matches(&mut self, pattern: &str, excluded: &[GlobMatcher]) {
        let matcher = match matcher(pattern, true) {
            Ok(matcher) => matcher,
            Err(why) => return self.refuse(why),
        };
        let literal = pattern.split('/').take_while(|segment| !segment.contains(PATTERN_CHARS));
        let base = self.root.join(literal.collect::<Vec<_>>().join("/"));
        let depth = if pattern.contains("**") { MAX_DEPTH } else { pattern.split('/').count() };
        if base.is_dir() {
            for (relative, file) in self.walk(&base, depth, excluded, &|path| matcher.is_match(path)) {
                self.mount(&relative, file);
            }
        }
    }

    /// The files below `base` that `wanted` and not `excluded` matches, each with its path
    /// relative to the app's folder and where it really is.
    fn walk(
        &mut self,
        base: &Path,
        depth: usize,
        excluded: &[GlobMatcher],
        wanted: &dyn Fn(&str) -> bool,
    ) -> Vec<(String, PathBuf)> {
        let mut files = Vec::new();
        let walk = WalkDir::new(base).follow_links(true).max_depth(depth).sort_by_file_name();
        let mut entries = walk.into_iter();
        while let Some(entry) = entries.next() {
            self.seen += 1;
            if self.seen > MAX_ENTRIES {
                let base = base.display();
                self.refuse(format!(
                    "more than {MAX_ENTRIES} files to look at, at last below `{base}`; name fewer"
                ));
                break;
            }
            let Some(entry) = self.readable(entry) else { continue };
            let Some(relative) = self.relative(entry.path()) else { continue };
            // What functions keep is no part of the app: neither for its components to read nor to be packed.
            if relative == STATE_FOLDER {
                entries.skip_current_dir();
                continue;
            }
            let is_excluded = excluded.iter().any(|pattern| pattern.is_match(&relative));
            if entry.file_type().is_dir() {
                let leads_out = !is_excluded && entry.path_is_symlink();
                if is_excluded && entry.path_is_symlink()
                    || leads_out && self.within(&relative, entry.path()).is_none()
                {
                    entries.skip_current_dir();
                }
            } else if entry.file_type().is_file() && !is_excluded && wanted(&relative) {
                let file = self.within(&relative, entry.path());
                files.extend(file.map(|file| (relative, file)));
            }
        }
        files
    }

    fn readable(&mut self, entry: walkdir::Result<DirEntry>) -> Option<DirEntry> {
        match entry {
            Ok(entry) => Some(entry),
            // A link to nothing, or a file that went while it was looked at.
            Err(error) if error.io_error().is_some_and(|e| e.kind() == std::io::ErrorKind::NotFound) => None,
            Err(error) => {
                self.refuse(format!("cannot be read: {error}; exclude it or correct its permissions"));
                None
            }
        }
    }

    fn relative(&mut self, path: &Path) -> Option<String> {
        let relative = path.strip_prefix(self.root).unwrap_or(path);
        let text = relative.to_str().map(str::to_owned);
        if text.is_none() {
            self.refuse(format!("the name of `{}` is not UTF-8; rename it", relative.display()));
        }
        text
    }

    /// Where the file or folder at `path` really is, if that is within the app's folder.
    fn within(&mut self, shown: &str, path: &Path) -> Option<PathBuf> {
        match path.canonicalize() {
            Ok(real) if real.starts_with(self.root.join(STATE_FOLDER)) => {
                self.refuse(format!(
                    "`{shown}` lies in `{STATE_FOLDER}`, where the host keeps what is no part of the app; move it"
                ));
                None
            }
            Ok(real) if real.starts_with(self.root) => Some(real),
            Ok(_) => {
                self.refuse(format!(
                    "`{shown}` is a link that leads outside the app's folder; copy it instead"
                ));
                None
            }
            Err(error) => {
                self.refuse(format!(
                    "`{shown}` cannot be read: {error}; correct the path or its permissions"
                ));
                None
            }
        }
    }

    fn mount(&mut self, destination: &str, file: PathBuf) {
        let segments: Vec<_> = destination.split('/').filter(|segment| !segment.is_empty()).collect();
        let destination = format!("/{}", segments.join("/"));
        let conflict = match self.mounts.entry(destination.clone()) {
            Entry::Vacant(vacant) => {
                vacant.insert(file);
                None
            }
            Entry::Occupied(mounted) if *mounted.get() == file => None,
            Entry::Occupied(mounted) => Some((mounted.get().clone(), file)),
        };
        if let Some((first, second)) = conflict {
            let (first, second) = (first.display(), second.display());
            self.refuse(format!(
                "`{first}` and `{second}` would both be mounted at `{destination}`; move or exclude one of them"
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A folder with an app in `app` and a file and a folder outside.
    fn folder() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let files = [
            "app/main.wasm",
            "app/a.txt",
            "app/static/index.html",
            "app/static/css/a.css",
            "app/static/x.md",
            "app/b{1}.txt",
            "app/.hidden",
            "outside.txt",
            "far/away.txt",
        ];
        for file in files {
            let path = dir.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, file).unwrap();
        }
        dir
    }

    fn manifest(dir: &Path, component: &str) -> Manifest {
        let text = format!(
            "spin_manifest_version = 2\n[application]\nname = \"a\"\n[[trigger.http]]\nroute = \"/\"\n\
             component = \"c\"\n[component.c]\nsource = \"main.wasm\"\n{component}"
        );
        let none = BTreeMap::new();
        let environment = |_: &str| None;
        let options = super::super::Options {
            profile: None,
            variables: &none,
            environment: &environment,
            values_required: true,
        };
        Manifest::parse(&text, &dir.join("app/spin.toml"), &options).unwrap()
    }

    #[test]
    fn files_are_expanded() {
        let dir = folder();
        symlink("static/index.html", dir.path().join("app/link.html")).unwrap();
        symlink("static", dir.path().join("app/linked")).unwrap();
        symlink("nowhere", dir.path().join("app/static/dangling")).unwrap();
        let check = |files: &str, expected: &[(&str, &str)]| {
            let found = manifest(dir.path(), files).files().unwrap();
            let root = dir.path().canonicalize().unwrap().join("app");
            let mount = |mount: &FileMount| {
                let source = mount.source.strip_prefix(&root).unwrap();
                (mount.destination.clone(), source.to_str().unwrap().to_owned())
            };
            let found: Vec<_> = found.mounts["c"].iter().map(mount).collect();
            let owned = |(a, b): &(&str, &str)| (a.to_string(), b.to_string());
            assert_eq!(found, expected.iter().map(owned).collect::<Vec<_>>(), "{files}");
        };
        let css = ("/static/css/a.css", "static/css/a.css");
        let index = ("/static/index.html", "static/index.html");
        let md = ("/static/x.md", "static/x.md");
        check("", &[]);
        check("files = ['a.txt']", &[("/a.txt", "a.txt")]);
        check("files = ['./*.txt']", &[("/a.txt", "a.txt"), ("/b{1}.txt", "b{1}.txt")]);
        check("files = ['b{?}.txt']", &[("/b{1}.txt", "b{1}.txt")]);
        check("files = ['static']", &[css, index, md]);
        check("files = ['static/']", &[css, index, md]);
        check("files = ['static/*']", &[index, md]);
        check("files = ['static/**/*', 'static']", &[css, index, md]);
        check("files = ['static/**/*']\nexclude_files = ['*.md']", &[css, index]);
        check("files = ['static']\nexclude_files = ['static/*']", &[]);
        check("files = ['a.txt']\nexclude_files = ['*']", &[("/a.txt", "a.txt")]);
        check("files = ['**/a.*']", &[("/a.txt", "a.txt"), ("/linked/css/a.css", "static/css/a.css"), css]);
        check("files = ['link.*']", &[("/link.html", "static/index.html")]);
        check("files = ['.hid*']", &[("/.hidden", ".hidden")]);
        check(
            "files = [{ source = 'static/css', destination = '/c/' }]",
            &[("/c/a.css", "static/css/a.css")],
        );
        check("files = [{ source = 'static/css', destination = '/' }]", &[("/a.css", "static/css/a.css")]);
        check("files = [{ source = 'a.txt', destination = 'x/b.txt' }]", &[("/x/b.txt", "a.txt")]);
        std::fs::create_dir(dir.path().join("app/.tenon")).unwrap();
        std::fs::write(dir.path().join("app/.tenon/kept.md"), "kept").unwrap();
        check("files = ['**/*.md']", &[("/linked/x.md", "static/x.md"), md]);
        check("files = [{ source = '.tenon', destination = '/' }]", &[]);
        let nothing = manifest(dir.path(), "files = ['none/*']").files().unwrap();
        assert_eq!(nothing.warnings, ["line 9: `none/*` adds no file"]);
    }

    #[test]
    fn wrong_files_are_refused() {
        let dir = folder();
        symlink("../outside.txt", dir.path().join("app/out.txt")).unwrap();
        std::fs::create_dir(dir.path().join("app/deep")).unwrap();
        symlink("../../far", dir.path().join("app/deep/far")).unwrap();
        std::fs::create_dir(dir.path().join("app/loop")).unwrap();
        symlink("../loop", dir.path().join("app/loop/again")).unwrap();
        let check = |files: &str, line: usize, expected: &str| {
            let errors = manifest(dir.path(), files).files().unwrap_err();
            assert_eq!((errors.errors.len(), errors.errors[0].line), (1, line), "{errors}");
            assert!(errors.to_string().contains(expected), "{errors}");
        };
        check("files = [\n'gone.txt']", 10, "no file or folder `gone.txt`");
        check("files = ['out.txt']", 9, "`out.txt` is a link that leads outside");
        check("files = ['out.*']", 9, "`out.txt` is a link that leads outside");
        check("files = ['deep']", 9, "`deep/far` is a link that leads outside");
        check("files = ['deep/far/away.txt']", 9, "leads outside");
        check("files = [{ source = 'deep/far', destination = '/' }]", 9, "leads outside");
        check("files = ['loop']", 9, "cannot be read");
        std::fs::create_dir(dir.path().join("app/.tenon")).unwrap();
        std::fs::write(dir.path().join("app/.tenon/kept"), "kept").unwrap();
        symlink("../.tenon", dir.path().join("app/static/kept")).unwrap();
        check("files = ['.tenon/kept']", 9, "`.tenon/kept` lies in `.tenon`");
        check("files = ['static/*/kept']", 9, "`static/kept` lies in `.tenon`");
        check("files = ['[a']", 9, "is not a pattern");
        check("files = [{ source = 'a.txt', destination = '/b/' }]", 9, "add the file's name");
        check("files = ['a.txt', { source = '.hidden', destination = '/a.txt' }]", 9, "both be mounted");
        check("files = [{ source = '*.txt', destination = '/' }]", 9, "no file or folder");
        manifest(dir.path(), "files = ['deep']\nexclude_files = ['deep/far']").files().unwrap();
    }

    #[test]
    fn components_and_models_must_exist() {
        let dir = folder();
        let models = "tool.tenon.models.m.path = 'm.onnx'\ntool.tenon.models.ir.path = 'm.xml'\n\
                      build.command = 'make'";
        std::fs::remove_file(dir.path().join("app/main.wasm")).unwrap();
        let errors = manifest(dir.path(), models).files().unwrap_err().to_string();
        assert_eq!(errors.lines().count(), 4, "{errors}");
        for part in ["main.wasm`; build it", "`m` of component `c`", "m.onnx", "m.xml", "m.bin"] {
            assert!(errors.contains(part), "{part}: {errors}");
        }
    }
}
