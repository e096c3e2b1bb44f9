//! Which backends this host has, and which of them serves a model.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use thiserror::Error;

use super::{Backend, Encoding};

/// Where the native backends' libraries are looked for.
#[derive(Clone, Debug, Default)]
pub struct Libraries {
    /// The operator's own choice of ONNX Runtime's library.
    pub onnxruntime: Option<PathBuf>,
    /// The operator's own choice of OpenVINO's C library.
    pub openvino: Option<PathBuf>,
    /// Folders to look in: Python's packages among them.
    pub search: Vec<PathBuf>,
}

/// The backends that were built into this host, available or not, in the operator's order of preference.
#[derive(Clone)]
pub struct Backends {
    backends: Vec<Arc<dyn Backend>>,
}

/// Why no backend serves a model. Nothing is ever chosen in place of an explicit choice.
#[derive(Debug, Error)]
pub enum ChooseError {
    #[error("there is no backend `{name}`; this host was built with {known}")]
    Unknown { name: String, known: String },
    #[error("backend `{name}` is not available: {reason}")]
    Unavailable { name: &'static str, reason: String },
    #[error("backend `{name}` does not read {encoding} models; {others}")]
    Encoding { name: &'static str, encoding: &'static str, others: String },
    #[error("no backend that is available here reads {encoding} models; {reasons}")]
    None { encoding: &'static str, reasons: String },
}

impl Backends {
    /// Looks for the backends named in `preference`, in its order; those that it does not name are not used.
    pub fn find(preference: &[impl AsRef<str>], libraries: &Libraries) -> Backends {
        let built_in = built_in(libraries);
        let named = |name: &str| built_in.iter().find(|backend| backend.name() == name).cloned();
        Backends { backends: preference.iter().filter_map(|name| named(name.as_ref())).collect() }
    }

    /// Exactly these backends, in this order.
    pub fn of(backends: Vec<Arc<dyn Backend>>) -> Backends {
        Backends { backends }
    }

    pub fn iter(&self) -> impl Iterator<Item = &Arc<dyn Backend>> {
        self.backends.iter()
    }

    /// The backend for a model of this encoding: `wanted`, or else the first available one that reads it.
    ///
    /// # Errors
    /// Where the wanted one cannot be had, or none can.
    pub fn choose(&self, wanted: Option<&str>, encoding: Encoding) -> Result<Arc<dyn Backend>, ChooseError> {
        match wanted {
            Some(name) => self.explicit(name, encoding),
            None => self
                .backends
                .iter()
                .find(|backend| {
                    let status = backend.status();
                    status.available.is_ok() && status.encodings.contains(&encoding)
                })
                .cloned()
                .ok_or_else(|| ChooseError::None {
                    encoding: encoding.name(),
                    reasons: self.reasons(encoding),
                }),
        }
    }

    fn explicit(&self, name: &str, encoding: Encoding) -> Result<Arc<dyn Backend>, ChooseError> {
        let Some(backend) = self.backends.iter().find(|backend| backend.name() == name) else {
            let known: Vec<_> = self.backends.iter().map(|backend| format!("`{}`", backend.name())).collect();
            return Err(ChooseError::Unknown { name: name.to_owned(), known: known.join(", ") });
        };
        let status = backend.status();
        let name = backend.name();
        if !status.encodings.contains(&encoding) {
            let others = self.reasons(encoding);
            return Err(ChooseError::Encoding { name, encoding: encoding.name(), others });
        }
        match status.available {
            Ok(()) => Ok(Arc::clone(backend)),
            Err(reason) => Err(ChooseError::Unavailable { name, reason }),
        }
    }

    /// Which backends read the encoding, and what keeps each of them from it.
    fn reasons(&self, encoding: Encoding) -> String {
        let reasons: Vec<_> = self
            .backends
            .iter()
            .filter_map(|backend| {
                let status = backend.status();
                status.encodings.contains(&encoding).then(|| match status.available {
                    Ok(()) => format!("`{}` does", backend.name()),
                    Err(reason) => format!("`{}` is not available: {reason}", backend.name()),
                })
            })
            .collect();
        if reasons.is_empty() {
            "no backend built into this host does".to_owned()
        } else {
            reasons.join("; ")
        }
    }
}

#[cfg_attr(
    not(any(feature = "onnxruntime", feature = "openvino")),
    expect(unused_variables, reason = "only the native backends have libraries")
)]
fn built_in(libraries: &Libraries) -> Vec<Arc<dyn Backend>> {
    vec![
        #[cfg(feature = "onnxruntime")]
        Arc::new(super::onnxruntime::OnnxRuntime::new(libraries.onnxruntime.as_deref(), &libraries.search)),
        #[cfg(feature = "openvino")]
        Arc::new(super::openvino::OpenVino::new(libraries.openvino.as_deref(), &libraries.search)),
        #[cfg(feature = "tract")]
        Arc::new(super::tract::Tract::new()),
        #[cfg(feature = "rten")]
        Arc::new(super::rten::Rten::new()),
    ]
}

/// The file that an installed library's folder is complete with: the sums of its other files.
pub const RECORD: &str = "RECORD";

/// The folders in `libraries` that hold an installed library, the newest version first.
pub fn search_folders(libraries: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(libraries).into_iter().flatten().flatten();
    let versioned = entries.filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        let version = ["onnxruntime", "openvino"].iter().find_map(|library| {
            let version = name.strip_prefix(library)?.strip_prefix('-')?;
            version.split('.').map(|number| number.parse().ok()).collect::<Option<Vec<u32>>>()
        })?;
        // Without a record it was not installed whole.
        entry.path().join(RECORD).is_file().then(|| (version, entry.path()))
    });
    let mut folders: Vec<_> = versioned.collect();
    folders.sort();
    folders.into_iter().rev().map(|(_, folder)| folder).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_folder_is_searched_first() {
        let dir = tempfile::tempdir().unwrap();
        let names = ["onnxruntime-1.9.0", "onnxruntime-1.28.0", "openvino-2026.4.1", "openvino-old", "x-1.0"];
        for name in names.into_iter().chain([".install-1.0", "onnxruntime-2.0.0"]) {
            std::fs::create_dir(dir.path().join(name)).unwrap();
            if name != "onnxruntime-2.0.0" {
                std::fs::write(dir.path().join(name).join("RECORD"), "").unwrap();
            }
        }
        let expected = ["openvino-2026.4.1", "onnxruntime-1.28.0", "onnxruntime-1.9.0"];
        assert_eq!(search_folders(dir.path()), expected.map(|name| dir.path().join(name)));
        assert!(search_folders(&dir.path().join("none")).is_empty());
    }
}
