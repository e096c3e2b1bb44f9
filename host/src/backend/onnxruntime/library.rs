//! Finds ONNX Runtime's shared library and loads it, once for the process.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use ort::environment::Environment;
use ort::ep::ExecutionProvider as _;
use ort::logging::LogLevel;
use sha2::{Digest, Sha256};

use super::contained;
use super::session::Cuda;

const FILE: &str = "libonnxruntime.so";
const TELEMETRY: &str = "ORT_DISABLE_TELEMETRY";
/// From this minor version on the library sends telemetry unless the environment forbids it.
const FIRST_WITH_TELEMETRY: u32 = 29;
pub(super) const INSTALL: &str = "run `tenon backend install onnxruntime`";

/// Forbids ONNX Runtime to send telemetry, whatever version is found later.
///
/// Call it first in `main`: the environment can only be changed while the process has one thread. Where it
/// has more, nothing is changed and `false` returned, and versions that send telemetry will be refused.
#[expect(unsafe_code, reason = "changing the environment is unsafe while other threads may read it")]
pub fn disable_telemetry() -> bool {
    if is_telemetry_disabled() {
        return true;
    }
    let single = fs::read_dir("/proc/self/task").is_ok_and(|tasks| tasks.count() == 1);
    if single {
        // SAFETY: this thread is the only one of the process, so no other can read the environment meanwhile.
        unsafe { std::env::set_var(TELEMETRY, "1") };
    }
    single
}

fn is_telemetry_disabled() -> bool {
    std::env::var_os(TELEMETRY).is_some_and(|value| value == "1")
}

/// The loaded library, which stays for the life of the process.
pub(super) struct Runtime {
    pub(super) environment: Environment,
    pub(super) library: PathBuf,
    /// Such as `1.28.0`.
    pub(super) version: String,
    /// Library and processor: what it writes on one must not be read on another.
    pub(super) key: String,
    pub(super) offers_cuda: bool,
}

/// The one library of this process, or why it can have none.
static LOADED: Mutex<Option<(PathBuf, Result<&'static Runtime, String>)>> = Mutex::new(None);

/// Loads the library from the operator's `explicit` path, or else the newest in the `search` folders.
///
/// # Errors
/// Says why there is none, and what to do about it.
pub(super) fn load(explicit: Option<&Path>, search: &[PathBuf]) -> Result<&'static Runtime, String> {
    let path = match explicit {
        Some(path) if path.is_dir() => newest(&[path.to_owned()])
            .ok_or_else(|| format!("there is no `{FILE}` in `{}`; {INSTALL}", path.display()))?,
        Some(path) => path.to_owned(),
        None => newest(search).ok_or_else(|| format!("its library `{FILE}` was not found; {INSTALL}"))?,
    };
    let path = fs::canonicalize(&path)
        .map_err(|error| format!("its library `{}` cannot be read: {error}", path.display()))?;

    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((first, outcome)) = &*loaded {
        return if *first == path {
            outcome.clone()
        } else {
            Err(format!(
                "this process has loaded `{}` already and cannot load `{}` beside it",
                first.display(),
                path.display()
            ))
        };
    }
    check_telemetry(&path)?;
    let builder = ort::init_from(&path)
        .map_err(|error| format!("its library cannot be used: {error}; {INSTALL} or name another one"))?;
    // From here on `ort` keeps this library, whatever comes of it.
    let outcome = contained(|| initialise(builder, &path))
        .and_then(|outcome| outcome.map_err(|error| error.to_string()))
        .map(|runtime| &*Box::leak(Box::new(runtime)))
        .map_err(|error| format!("its library `{}` does not start: {error}", path.display()));
    *loaded = Some((path, outcome.clone()));
    outcome
}

fn check_telemetry(path: &Path) -> Result<(), String> {
    // The name tells without running anything of the library's; only where it has no version we look inside.
    let minor = || named_version(path).map(|version| version[1]).or_else(|| ort::util::probe(path));
    if is_telemetry_disabled() || minor().is_none_or(|minor| minor < FIRST_WITH_TELEMETRY) {
        return Ok(());
    }
    Err(format!(
        "its library `{}` sends telemetry unless {TELEMETRY}=1 is set in the environment, which it is not",
        path.display()
    ))
}

fn initialise(builder: ort::environment::EnvironmentBuilder, path: &Path) -> ort::Result<Runtime> {
    let environment = builder.with_name("tenon").with_telemetry(false).with_logger(Arc::new(log)).build()?;
    environment.set_log_level(LogLevel::Warning);
    let version = version(path);
    let key = format!("{version}-{}-{}", short(&build()), short(&processor()));
    Ok(Runtime {
        environment,
        library: path.to_owned(),
        version,
        key,
        offers_cuda: Cuda::is_available().unwrap_or(false),
    })
}

/// What fails is reported where it is handled; this is only for those who look for more.
fn log(level: LogLevel, category: &str, _id: &str, location: &str, message: &str) {
    tracing::debug!(target: "onnxruntime", ?level, category, location, "{message}");
}

/// The version in the file's name where the library agrees with it, or else as much as the library tells.
fn version(path: &Path) -> String {
    let named = named_version(path);
    match ort::util::probe(path) {
        Some(minor) if named.as_ref().is_none_or(|version| version[1] != minor) => format!("1.{minor}"),
        _ => named.map_or_else(String::new, |[major, minor, patch]| format!("{major}.{minor}.{patch}")),
    }
}

/// The commit that the library was built from tells builds of one version apart.
fn build() -> String {
    ort::info().to_owned()
}

/// The features of the processor: ONNX Runtime lays out weights for the ones it finds.
fn processor() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = info.lines().find(|line| line.starts_with("flags") || line.starts_with("Features"));
    format!("{} {}", std::env::consts::ARCH, line.unwrap_or_default())
}

fn short(text: &str) -> String {
    Sha256::digest(text).iter().take(6).fold(String::new(), |mut hex, byte| {
        write!(hex, "{byte:02x}").expect("writing to a String cannot fail");
        hex
    })
}

/// The newest library in the folders, each of which may be a `site-packages` folder.
fn newest(folders: &[PathBuf]) -> Option<PathBuf> {
    let folders = folders.iter().flat_map(|folder| [folder.clone(), folder.join("onnxruntime/capi")]);
    let files = folders.filter_map(|folder| fs::read_dir(folder).ok()).flatten().flatten();
    let libraries = files.map(|file| file.path()).filter(|path| {
        path.is_file() && path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(FILE))
    });
    // Folders come in the order of preference; of equal versions `max_by_key` would take the last.
    libraries.fold(None, |best: Option<PathBuf>, path| match best {
        Some(best) if named_version(&best) >= named_version(&path) => Some(best),
        _ => Some(path),
    })
}

/// The version in the name of the file that the path leads to, such as `libonnxruntime.so.1.28.0`.
fn named_version(path: &Path) -> Option<[u32; 3]> {
    let path = fs::canonicalize(path).ok()?;
    let version = path.file_name()?.to_str()?.strip_prefix(FILE)?.strip_prefix('.')?;
    let parts = version.split('.').map(|part| part.parse().ok()).collect::<Option<Vec<u32>>>()?;
    <[u32; 3]>::try_from(parts).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(files: &[&str], expected: Option<&str>) {
        let folder = tempfile::tempdir().unwrap();
        for file in files {
            let path = folder.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        let search = [folder.path().join("a"), folder.path().join("b")];
        let found = newest(&search).map(|path| path.strip_prefix(folder.path()).unwrap().to_owned());
        assert_eq!(found.as_deref(), expected.map(Path::new));
    }

    #[test]
    fn the_newest_library_is_found() {
        check(&[], None);
        check(&["a/libonnxruntime_providers_shared.so", "b/onnxruntime/capi/readme"], None);
        check(&["a/libonnxruntime.so"], Some("a/libonnxruntime.so"));
        check(
            &["a/libonnxruntime.so", "b/onnxruntime/capi/libonnxruntime.so.1.28.0"],
            Some("b/onnxruntime/capi/libonnxruntime.so.1.28.0"),
        );
        check(
            &["a/libonnxruntime.so.1.28.0", "a/libonnxruntime.so.1.9.3", "b/libonnxruntime.so.1.28.0"],
            Some("a/libonnxruntime.so.1.28.0"),
        );
    }

    #[test]
    fn a_library_that_sends_telemetry_is_refused_unopened() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("libonnxruntime.so.1.29.0");
        fs::write(&path, "").unwrap();
        let refused = check_telemetry(&path).is_err_and(|reason| reason.contains("ORT_DISABLE_TELEMETRY=1"));
        assert_eq!(refused, !is_telemetry_disabled());
    }
}
