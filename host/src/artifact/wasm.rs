//! What a wasm file says of itself without being compiled: whether it is a component, its imports and exports.

use std::path::Path;

use thiserror::Error;
use wasmparser::{Encoding, Parser, Payload};

use super::fetch::MAX_COMPONENT_BYTES;

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

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The bytes of an empty core module.
    pub(crate) const MODULE: &[u8] = b"\0asm\x01\0\0\0";

    /// The bytes of a component that imports and exports empty instances of these names.
    pub(crate) fn component(imports: &[&str], exports: &[&str]) -> Vec<u8> {
        let mut bytes = b"\0asm\x0d\0\x01\0".to_vec();
        let mut section = |id: u8, items: &[Vec<u8>]| {
            let body: Vec<u8> =
                std::iter::once(u8::try_from(items.len()).unwrap()).chain(items.concat()).collect();
            bytes.push(id);
            bytes.extend(leb(body.len()));
            bytes.extend(body);
        };
        // One type: an instance without anything in it.
        section(7, &[vec![0x42, 0]]);
        let name = |name: &str| [vec![0], leb(name.len()), name.as_bytes().to_vec()].concat();
        let imported: Vec<_> = imports.iter().map(|import| [name(import), vec![5, 0]].concat()).collect();
        section(10, &imported);
        // An instance made of no exports, which is exported under each of the names.
        section(5, &[vec![1, 0]]);
        let instance = u8::try_from(imports.len()).unwrap();
        let exported: Vec<_> =
            exports.iter().map(|export| [name(export), vec![5, instance, 0]].concat()).collect();
        section(11, &exported);
        bytes
    }

    fn leb(mut number: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        loop {
            let low = u8::try_from(number & 0x7f).unwrap();
            number >>= 7;
            bytes.push(if number == 0 { low } else { low | 0x80 });
            if number == 0 {
                return bytes;
            }
        }
    }

    #[test]
    fn components_and_modules_are_told_apart() {
        let bytes = component(&["wasi:nn/graph@0.2.0-rc-2024-10-28", "wasi:io/poll@0.2.6"], &["a:b/c@1.0.0"]);
        let outline = Outline::of(&bytes).unwrap();
        assert!(outline.is_component);
        assert_eq!(outline.imports, ["wasi:nn/graph@0.2.0-rc-2024-10-28", "wasi:io/poll@0.2.6"]);
        assert_eq!(outline.exports, ["a:b/c@1.0.0"]);
        assert_eq!(outline.models_import(), Some("wasi:nn/graph@0.2.0-rc-2024-10-28"));
        let outline = Outline::of(MODULE).unwrap();
        assert!(!outline.is_component && outline.models_import().is_none());
        // A module that imports `f` of `m` twice and exports it as `e`.
        let module = b"\0asm\x01\0\0\0\x01\x04\x01\x60\0\0\x02\x0d\x02\x01m\x01f\0\0\x01m\x01f\0\0\x07\x05\x01\x01e\0\0";
        let outline = Outline::of(module).unwrap();
        assert_eq!((outline.imports, outline.exports), (vec!["m".to_owned()], vec!["e".to_owned()]));
    }

    #[test]
    fn nothing_that_is_not_wasm_passes_or_panics() {
        for bytes in [&b""[..], b"\0asm", b"#!/bin/sh", b"\0asm\x09\0\0\0", b"\x7fELF\x02\x01\x01\0\0"] {
            assert!(Outline::of(bytes).is_err());
        }
        let bytes = component(&["a:b/c"], &["d:e/f"]);
        for at in 0..bytes.len() {
            let _ = Outline::of(&bytes[..at]);
            for byte in [0, 1, 0x7f, 0x80, 0xff] {
                let mut bytes = bytes.clone();
                bytes[at] = byte;
                let _ = Outline::of(&bytes);
            }
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = Outline::of_file(file.path()).unwrap_err().to_string();
        assert!(error.contains("is not WebAssembly"), "{error}");
    }
}
