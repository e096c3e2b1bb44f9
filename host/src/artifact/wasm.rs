//! What a wasm file says of itself without being compiled: whether it is a component, its imports and exports.

use std::path::Path;

use thiserror::Error;
use wasmparser::{Encoding, Parser, Payload};

use super::fetch::MAX_COMPONENT_BYTES;

#[cfg(test)]
pub(in crate::artifact) mod tests;

/// The interfaces by which a guest gets at models; their versions follow.
const MODELS: [&str; 2] = ["wasi:nn/", "tenon:function/models"];

/// The most imports and the most exports that are read.
const MAX_NAMES: usize = 4096;

/// The outside of a component, or of the core module that an older SDK builds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outline {
    pub is_component: bool,
    /// Names such as `wasi:http/types@0.2.0`, each once, in the order of the file. Those of a core module are the
    /// names of the modules that it imports from.
    pub imports: Vec<String>,
    pub exports: Vec<String>,
}

/// Why a file is no component.
#[derive(Debug, Error)]
pub enum WasmError {
    #[error("`{path}` cannot be read: {source}")]
    Read { path: String, source: std::io::Error },
    #[error("`{path}` is larger than {} MiB", MAX_COMPONENT_BYTES >> 20)]
    TooLarge { path: String },
    #[error("`{path}` is not WebAssembly: {reason}; build it for wasm32-wasip2")]
    NotWasm { path: String, reason: String },
}

impl Outline {
    /// Reads the file at `path`, whole.
    ///
    /// # Errors
    /// Where it cannot be read, is too large or is not WebAssembly.
    pub fn of_file(path: &Path) -> Result<Outline, WasmError> {
        let shown = || path.display().to_string();
        let failed = |source| WasmError::Read { path: shown(), source };
        if path.metadata().map_err(failed)?.len() > MAX_COMPONENT_BYTES {
            return Err(WasmError::TooLarge { path: shown() });
        }
        let bytes = std::fs::read(path).map_err(failed)?;
        Outline::of(&bytes).map_err(|reason| WasmError::NotWasm { path: shown(), reason })
    }

    /// Reads the bytes of a component or a core module.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn of(bytes: &[u8]) -> Result<Outline, String> {
        let mut outline = Outline { is_component: false, imports: Vec::new(), exports: Vec::new() };
        let mut depth = 0_usize;
        for payload in Parser::new(0).parse_all(bytes) {
            match payload.map_err(|error| error.to_string())? {
                Payload::Version { encoding, .. } if depth == 0 => {
                    outline.is_component = encoding == Encoding::Component;
                }
                // What is nested is the component's own affair.
                Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
                Payload::End(_) => depth = depth.saturating_sub(1),
                payload if depth == 0 => outline.add(payload).map_err(|error| error.to_string())?,
                _ => {}
            }
            if outline.imports.len().max(outline.exports.len()) > MAX_NAMES {
                return Err(format!("it has more than {MAX_NAMES} imports or exports"));
            }
        }
        Ok(outline)
    }

    fn add(&mut self, payload: Payload<'_>) -> wasmparser::Result<()> {
        match payload {
            Payload::ComponentImportSection(section) => {
                for import in section {
                    add(&mut self.imports, import?.name.name);
                }
            }
            Payload::ComponentExportSection(section) => {
                for export in section {
                    add(&mut self.exports, export?.name.name);
                }
            }
            Payload::ImportSection(section) => {
                for import in section.into_imports() {
                    add(&mut self.imports, import?.module);
                }
            }
            Payload::ExportSection(section) => {
                for export in section {
                    add(&mut self.exports, export?.name);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// The first import that is a way to models.
    pub fn models_import(&self) -> Option<&str> {
        let is_way = |name: &&String| MODELS.iter().any(|prefix| name.starts_with(prefix));
        self.imports.iter().find(is_way).map(String::as_str)
    }
}

fn add(names: &mut Vec<String>, name: &str) {
    // Names come in runs, so that the last one is mostly the one.
    let is_known = || names.iter().rev().any(|known| known == name);
    if names.len() <= MAX_NAMES && !is_known() {
        names.push(name.to_owned());
    }
}
