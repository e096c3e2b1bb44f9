//! Finds OpenVINO's shared library and loads it, once for the process.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::sys;
use crate::backend::ExecutionTarget;

/// How to get the library; the end of every reason why it is not there.
const INSTALL: &str = "run `tenon backend install openvino`";

/// OpenVINO, loaded.
pub(super) struct Runtime {
    pub(super) core: sys::Core,
    /// The whole build string, such as `2026.4.1-22982-e213a147257-releases/2026/4`.
    pub(super) build: String,
    pub(super) library: PathBuf,
    devices: OnceLock<Vec<ExecutionTarget>>,
}

impl Runtime {
    /// The version alone, such as `2026.4.1`.
    pub(super) fn version(&self) -> &str {
        self.build.split('-').next().unwrap_or_default()
    }

    /// The devices that OpenVINO can use on this machine. Asked once: it probes every driver there is.
    pub(super) fn devices(&self) -> &[ExecutionTarget] {
        self.devices.get_or_init(|| {
            let names = self.core.devices().unwrap_or_else(|error| {
                tracing::warn!(backend = "openvino", error = error.text, "failed to list the devices");
                Vec::new()
            });
            let kinds = [ExecutionTarget::Cpu, ExecutionTarget::Gpu, ExecutionTarget::Npu];
            // A machine with several devices of a kind lists them as `GPU.0`, `GPU.1`.
            let listed = |kind: &ExecutionTarget| {
                names.iter().any(|name| name.split('.').next() == super::device(*kind).to_str().ok())
            };
            kinds.into_iter().filter(listed).collect()
        })
    }
}

/// The library in `library`, or else the newest one in the folders of `search`.
///
/// # Errors
/// Says why there is none, and what to do about it.
pub(super) fn load(library: Option<&Path>, search: &[PathBuf]) -> Result<Arc<Runtime>, String> {
    let file = match library {
        Some(file) => file.to_owned(),
        None => newest(search).ok_or_else(|| format!("its library was not found; {INSTALL}"))?,
    };
    let shown = file.display();
    let file = file
        .canonicalize()
        .map_err(|error| format!("its library `{shown}` cannot be read ({error}); {INSTALL}"))?;
    // What the loader keeps is the process's, whoever asked first.
    static LOADED: Mutex<Option<Arc<Runtime>>> = Mutex::new(None);
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(runtime) = loaded.as_ref() {
        if runtime.library == file {
            return Ok(Arc::clone(runtime));
        }
        let other = runtime.library.display();
        return Err(format!("the process already uses `{other}`; restart it to use `{shown}`"));
    }
    let runtime =
        open(&file).map_err(|reason| format!("its library `{shown}` is unusable: {reason}; {INSTALL}"))?;
    Ok(Arc::clone(loaded.insert(Arc::new(runtime))))
}

fn open(file: &Path) -> Result<Runtime, String> {
    sys::bind(file)?;
    let text = |error: sys::Error| super::error::line(&error.text, &[]);
    Ok(Runtime {
        core: sys::Core::new().map_err(text)?,
        build: sys::version().map_err(text)?,
        library: file.to_owned(),
        devices: OnceLock::new(),
    })
}

/// The file with the highest version, in the folders themselves or where the Python package has it.
fn newest(search: &[PathBuf]) -> Option<PathBuf> {
    let folders = search.iter().flat_map(|folder| [folder.clone(), folder.join("openvino/libs")]);
    let files = folders.filter_map(|folder| std::fs::read_dir(folder).ok()).flatten().flatten();
    files.filter_map(|file| Some((version(&file.path())?, file.path()))).max().map(|(_, path)| path)
}

/// The number behind `libopenvino_c.so.`, such as 2641 for 2026.4.1.
fn version(file: &Path) -> Option<Vec<u32>> {
    let suffix = file.file_name()?.to_str()?.strip_prefix("libopenvino_c.so")?;
    match suffix.strip_prefix('.') {
        Some(numbers) => numbers.split('.').map(|number| number.parse().ok()).collect(),
        // A link without a number is as new as what it points to.
        None if suffix.is_empty() => {
            let target = file.canonicalize().ok()?;
            if target.file_name() == file.file_name() { Some(Vec::new()) } else { version(&target) }
        }
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_library_wins() {
        let root = tempfile::tempdir().unwrap();
        let package = root.path().join("site/openvino/libs");
        std::fs::create_dir_all(&package).unwrap();
        for name in ["libopenvino_c.so.2641", "libopenvino.so.9999", "libopenvino_c.so.txt"] {
            std::fs::write(package.join(name), "").unwrap();
        }
        std::fs::write(root.path().join("libopenvino_c.so.2540"), "").unwrap();
        let search = [root.path().to_owned(), root.path().join("site"), root.path().join("absent")];
        assert_eq!(newest(&search), Some(package.join("libopenvino_c.so.2641")));
        assert_eq!(newest(&search[..1]), Some(root.path().join("libopenvino_c.so.2540")));
        assert_eq!(newest(&search[2..]), None);
        let link = root.path().join("libopenvino_c.so");
        std::os::unix::fs::symlink(package.join("libopenvino_c.so.2641"), &link).unwrap();
        assert_eq!(version(&link), Some(vec![2641]));
    }
}
