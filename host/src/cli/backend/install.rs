//! `tenon backend install`: obtains a library with the user's own pip, verifies it and puts it where the host
//! looks.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow, bail};

use super::wheel::{self, Pin};
use super::{Place, python, record};
use crate::artifact::cache::make_private;

/// The oldest versions that can be used: their interface is what the host is written for.
const OLDEST_ONNXRUNTIME: [u32; 2] = [1, 23];
const OLDEST_OPENVINO: [u32; 2] = [2025, 1];
/// From here on ONNX Runtime sends telemetry, unless it is told not to.
const FIRST_WITH_TELEMETRY: [u32; 2] = [1, 29];

#[derive(clap::Args, Debug)]
pub struct InstallArgs {
    /// The backend
    pub library: Library,
    /// Another version than the one that this host was tested with
    #[arg(long)]
    pub version: Option<String>,
}

/// A library that can be installed, known by the name of its Python package.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Library {
    Onnxruntime,
    Openvino,
}

impl Library {
    /// The name of the backend and of the Python package.
    pub fn name(self) -> &'static str {
        match self {
            Library::Onnxruntime => "onnxruntime",
            Library::Openvino => "openvino",
        }
    }
}

pub(super) fn run(args: &InstallArgs, place: &Place<'_>) -> anyhow::Result<()> {
    let name = args.library.name();
    let arch = std::env::consts::ARCH;
    let pin = Some(()).filter(|()| cfg!(target_os = "linux")).and_then(|()| wheel::pin(args.library, arch));
    let pin = pin.ok_or_else(|| {
        let os = std::env::consts::OS;
        anyhow!(
            "there is no wheel of `{name}` for {os} on {arch}; set `inference.{name}.library` in host.toml"
        )
    })?;
    let version = args.version.as_deref().unwrap_or(pin.version);
    for warning in check_version(args.library, version, pin)? {
        place.progress.warn(warning);
    }
    let folder = install(args.library, version, pin, place)?;
    report(name, &folder, place)
}

/// What is to be said of a version before it is installed.
fn check_version(library: Library, version: &str, pin: Pin) -> anyhow::Result<Vec<String>> {
    let (name, pinned) = (library.name(), pin.version);
    let numbers: Option<Vec<u32>> = version.split('.').map(|number| number.parse().ok()).collect();
    let Some(numbers) = numbers.filter(|numbers| numbers.len() > 1) else {
        bail!("`{version}` is not a version; write one such as `{pinned}`");
    };
    let oldest = match library {
        Library::Onnxruntime => OLDEST_ONNXRUNTIME,
        Library::Openvino => OLDEST_OPENVINO,
    };
    if numbers[..2] < oldest[..] {
        let [major, minor] = oldest;
        bail!("{name} {version} is too old: this host needs {major}.{minor} or later, best {pinned}");
    }
    let mut warnings = Vec::new();
    if version != pinned {
        warnings.push(format!(
            "this host was tested with {name} {pinned} and knows no checksum of {version}: only pip vouches for it"
        ));
    }
    if library == Library::Onnxruntime && numbers[..2] >= FIRST_WITH_TELEMETRY[..] {
        warnings.push(format!(
            "{name} {version} sends telemetry by default; the host switches it off (ORT_DISABLE_TELEMETRY=1) \
             before it loads the library"
        ));
    }
    Ok(warnings)
}

/// The folder of the version, with the library in it.
fn install(library: Library, version: &str, pin: Pin, place: &Place<'_>) -> anyhow::Result<PathBuf> {
    let (name, progress) = (library.name(), place.progress);
    let folder = place.libraries.join(format!("{name}-{version}"));
    if record::holds(&folder) {
        progress.say("Fresh", format!("{name} {version} in `{}`", folder.display()));
        return Ok(folder);
    }
    python::check_pip(place.python).map_err(anyhow::Error::msg)?;
    let cannot = || format!("`{}` cannot be written", place.libraries.display());
    make_private(place.libraries).with_context(cannot)?;
    let draft =
        tempfile::Builder::new().prefix(".install-").tempdir_in(place.libraries).with_context(cannot)?;
    let [download, content] = ["download", "content"].map(|name| draft.path().join(name));
    for folder in [&download, &content] {
        std::fs::create_dir(folder).with_context(cannot)?;
    }

    progress.say("Downloading", format!("{name} {version} with `{} -m pip`", place.python.display()));
    let wheel = obtain(library, version, pin, place.python, &download)?;
    if version == pin.version {
        let step = progress.step("Verifying", format!("{name} {version}"));
        verify(&wheel, pin)?;
        step.done();
    }
    let step = progress.step("Unpacking", format!("{name} {version}"));
    unpack(library, &wheel, &content, place.python)?;
    publish(&content, &folder, draft.path()).with_context(cannot)?;
    step.done();
    progress.say("Installed", format!("{name} {version} in `{}`", folder.display()));
    Ok(folder)
}

/// Downloads the wheel to `folder`.
fn obtain(
    library: Library,
    version: &str,
    pin: Pin,
    python: &Path,
    folder: &Path,
) -> anyhow::Result<PathBuf> {
    let wanted = format!("{}=={version}", library.name());
    let platforms = wheel::platforms(pin, version);
    let mut args = vec!["download", "--no-deps", "--only-binary=:all:", "--disable-pip-version-check"];
    args.extend(["--implementation", "cp", "--python-version", wheel::PYTHON, "--abi", wheel::ABI]);
    args.extend(platforms.iter().flat_map(|platform| ["--platform", platform]));
    args.extend(["--dest", ".", &wanted]);
    python::pip(python, folder, &args)?;
    let files = std::fs::read_dir(folder)?.flatten().map(|file| file.path());
    let wheel = files.into_iter().find(|path| path.extension().is_some_and(|extension| extension == "whl"));
    wheel.with_context(|| {
        format!("pip downloaded no wheel of {wanted}; choose another version with `--version`")
    })
}

fn verify(wheel: &Path, pin: Pin) -> anyhow::Result<()> {
    let sum = record::sum(wheel).context("the download cannot be read")?;
    if sum != pin.sum {
        bail!(
            "`{}` is not the file that this host knows: its SHA-256 is {sum} and should be {}; nothing was \
             installed. If pip uses a mirror, see that it is unchanged",
            wheel.file_name().unwrap_or_default().display(),
            pin.sum
        );
    }
    Ok(())
}

/// Writes what is wanted of the wheel to `content`, and the record of it.
fn unpack(library: Library, wheel: &Path, content: &Path, python: &Path) -> anyhow::Result<()> {
    let names = wheel::kept(library, python::entries(python, wheel)?)?;
    let paths: Vec<_> = names.iter().map(|name| content.join(name)).collect();
    for path in &paths {
        std::fs::create_dir_all(path.parent().unwrap_or(content))?;
    }
    let entries = names.iter().map(String::as_str).zip(paths.iter().map(PathBuf::as_path));
    python::extract(python, wheel, entries)?;
    record::write(content, &names).context("the record of the library cannot be written")
}

/// Puts `content` in the place of `folder`; what was there, unusable, goes with the draft.
fn publish(content: &Path, folder: &Path, draft: &Path) -> std::io::Result<()> {
    // The host may run as another user than the one who installs.
    std::fs::set_permissions(content, std::fs::Permissions::from_mode(0o755))?;
    match std::fs::rename(folder, draft.join("replaced")) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => std::fs::rename(content, folder)?,
    }
    std::fs::File::open(folder.parent().unwrap_or(folder))?.sync_all()
}

/// Whether the host now has the backend, from this folder.
fn report(name: &str, folder: &Path, place: &Place<'_>) -> anyhow::Result<()> {
    let backends = (place.find)();
    let Some(backend) = backends.iter().find(|backend| backend.name() == name) else {
        place
            .progress
            .warn(format!("this host was built without `{name}`; build it with `--features {name}`"));
        return Ok(());
    };
    let status = backend.status();
    if let Err(reason) = status.available {
        bail!("`{name}` is installed in `{}`, but not available: {reason}", folder.display());
    }
    let devices: Vec<_> = status.devices.iter().map(|device| device.name()).collect();
    let text = format!("{name} {} on {}", status.version, devices.join(", "));
    place.progress.say("Available", text);
    let folder = folder.canonicalize()?;
    if let Some(library) = status.library.filter(|library| !library.starts_with(&folder)) {
        let library = library.display();
        place.progress.warn(format!(
            "the host uses `{library}` instead: `inference.{name}.library` in host.toml names it, or it is newer"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::super::Progress;
    use super::*;
    use crate::backend::available::Backends;

    #[test]
    fn versions() {
        let check = |library: Library, version: &str, expected: Result<&[&str], &str>| {
            let pin = wheel::pin(library, "x86_64").unwrap();
            match (check_version(library, version, pin), expected) {
                (Ok(warnings), Ok(expected)) => {
                    assert_eq!(warnings.len(), expected.len(), "{warnings:?}");
                    for (warning, expected) in warnings.iter().zip(expected) {
                        assert!(warning.contains(expected), "{warning}");
                    }
                }
                (Err(error), Err(expected)) => assert!(error.to_string().contains(expected), "{error}"),
                (outcome, _) => panic!("{version}: {outcome:?}"),
            }
        };
        check(Library::Onnxruntime, "1.28.0", Ok(&[]));
        check(Library::Onnxruntime, "1.27.0", Ok(&["only pip vouches for it"]));
        check(Library::Onnxruntime, "1.31.1", Ok(&["only pip", "sends telemetry"]));
        check(Library::Onnxruntime, "1.22.0", Err("needs 1.23 or later, best 1.28.0"));
        check(Library::Openvino, "2026.4.1", Ok(&[]));
        check(Library::Openvino, "2024.6.0", Err("too old"));
        for wrong in ["", "1", "latest", "1.28.0 --hash", "1.28.0;x", "../1.2"] {
            check(Library::Onnxruntime, wrong, Err("is not a version; write one such as `1.28.0`"));
        }
    }

    /// Stands in for Python: `pip download` copies `$0.whl`, a script's list is `$0.json`, and to extract is to
    /// write the entry's name.
    const FAKE: &str = r#"#!/bin/sh
self="$0"
case "$2 $3" in
"pip --version") ;;
"pip download") echo "$@" >> "$self.log"; cp "$self.whl" ./x.whl ;;
"-c import json"*) cat "$self.json" ;;
"-c import shutil"*) shift 4; while [ $# -gt 0 ]; do printf %s "$1" > "$2"; shift 2; done ;;
*) exit 9 ;;
esac"#;

    fn fake(dir: &Path, entries: &str) -> PathBuf {
        let python = dir.join("python");
        // Not written by this process: a child forked meanwhile would hold it open, and it could not be run.
        let write = r#"printf %s "$1" > "$2"; chmod +x "$2""#;
        let status = Command::new("sh").args(["-c", write, "sh", FAKE]).arg(&python).status();
        assert!(status.unwrap().success());
        std::fs::write(dir.join("python.whl"), "a wheel").unwrap();
        std::fs::write(dir.join("python.json"), entries).unwrap();
        python
    }

    const ENTRIES: &str = r#"[["onnxruntime/capi/libonnxruntime.so.1.27.0", 3], ["onnxruntime/LICENSE", 1],
        ["onnxruntime/x.py", 1]]"#;

    fn attempt(dir: &Path, python: &Path, version: &str) -> Result<PathBuf, String> {
        let progress = Progress::stderr(true);
        let (libraries, find) = (dir.join("libraries"), || Backends::of(Vec::new()));
        let place = Place { libraries: &libraries, python, find: &find, progress: &progress };
        let pin = wheel::pin(Library::Onnxruntime, "x86_64").unwrap();
        let outcome = install(Library::Onnxruntime, version, pin, &place);
        // Nothing but whole folders stays behind.
        let left = std::fs::read_dir(&libraries).into_iter().flatten().flatten();
        assert!(left.into_iter().all(|entry| !entry.file_name().to_string_lossy().starts_with('.')));
        outcome.map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn a_library_is_installed_once() {
        let dir = tempfile::tempdir().unwrap();
        let python = fake(dir.path(), ENTRIES);
        let folder = attempt(dir.path(), &python, "1.27.0").unwrap();
        let library = folder.join("onnxruntime/capi/libonnxruntime.so.1.27.0");
        assert_eq!(std::fs::read_to_string(&library).unwrap(), "onnxruntime/capi/libonnxruntime.so.1.27.0");
        assert!(folder.join("onnxruntime/LICENSE").is_file() && !folder.join("onnxruntime/x.py").exists());
        let downloads = || std::fs::read_to_string(dir.path().join("python.log")).unwrap().lines().count();
        let log = std::fs::read_to_string(dir.path().join("python.log")).unwrap();
        assert!(log.contains("--abi cp312 --platform manylinux2014_x86_64"), "{log}");
        assert!(log.trim_end().ends_with("--dest . onnxruntime==1.27.0"), "{log}");
        attempt(dir.path(), &python, "1.27.0").unwrap();
        assert_eq!(downloads(), 1);
        std::fs::write(&library, "damaged").unwrap();
        attempt(dir.path(), &python, "1.27.0").unwrap();
        assert_eq!(downloads(), 2);
        assert_ne!(std::fs::read_to_string(&library).unwrap(), "damaged");
        assert_eq!(crate::backend::available::search_folders(&dir.path().join("libraries")), [folder]);
    }

    #[test]
    fn what_is_wrong_is_not_installed() {
        let check = |entries: &str, version: &str, expected: &str| {
            let dir = tempfile::tempdir().unwrap();
            let python = fake(dir.path(), entries);
            let error = attempt(dir.path(), &python, version).unwrap_err();
            assert!(error.contains(expected), "{error}");
            assert!(crate::backend::available::search_folders(&dir.path().join("libraries")).is_empty());
        };
        check(ENTRIES, "1.28.0", "is not the file that this host knows: its SHA-256 is ");
        check("[]", "1.27.0", "has no `onnxruntime/capi/libonnxruntime.so*`");
        check("{", "1.27.0", "cannot be listed");
        let dir = tempfile::tempdir().unwrap();
        let error = attempt(dir.path(), Path::new("/no/python3"), "1.28.0").unwrap_err();
        assert!(error.contains("install Python 3 with pip"), "{error}");
    }
}
