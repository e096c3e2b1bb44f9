//! Compiling components ahead of time, and the cache of what was compiled.

use std::borrow::Cow;
use std::hash::{Hash, Hasher};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use thiserror::Error;
use wasmparser::{Parser, Payload};
use wasmtime::Engine;
use wasmtime::component::Component;

use super::chain;
use super::engine::{Engines, Flavor, config};
use super::generations::{self, GenerationError};

/// The version of the wasmtime that compiled code belongs to; the engine checks it once more.
const WASMTIME: &str = "48";

/// Why a component was not compiled.
#[derive(Debug, Error)]
pub enum CompileError {
    #[error("is native code that was compiled elsewhere; only WebAssembly is taken")]
    Native,
    #[error(transparent)]
    Generation(#[from] GenerationError),
    #[error("is not a WebAssembly component: {0}")]
    NotWasm(String),
    #[error("cannot be compiled: {0}")]
    Compile(String),
    #[error("the engine cannot be set up: {0}")]
    Engine(String),
}

/// A component ready to be linked, and the engine that it needs.
pub struct Compiled {
    pub component: Component,
    pub flavor: Flavor,
    /// Whether it was found in the cache.
    pub cached: bool,
}

/// Compiles `wasm`, or takes it from `folder`, which only this host may write. What is of an earlier generation is
/// brought to today's form first.
///
/// # Errors
/// Where `wasm` is not a component that the engine takes. A cache that cannot be read or written costs time only.
pub fn compile(
    engines: &Engines,
    wasm: &[u8],
    digest: &str,
    folder: &Path,
) -> Result<Compiled, CompileError> {
    if Engine::detect_precompiled(wasm).is_some() {
        return Err(CompileError::Native);
    }
    let current = generations::current(wasm)?;
    let flavor = flavor(&current)?;
    let engine = &engines.linked(flavor).map_err(|error| CompileError::Engine(chain(&error)))?.engine;
    let edition = match &current {
        Cow::Borrowed(_) => String::new(),
        Cow::Owned(_) => format!("-{}", generations::EDITION),
    };
    let (flavored, settings) = (flavor.name(), settings(engine));
    let path = folder.join(format!("{digest}{edition}-{flavored}-{WASMTIME}-{settings:016x}.cwasm"));
    if let Some(component) = load(engine, folder, &path) {
        return Ok(Compiled { component, flavor, cached: true });
    }
    let compiler = Engine::new(&config(flavor, engines.count_fuel()))
        .map_err(|error| CompileError::Engine(chain(&error)))?;
    let code =
        compiler.precompile_component(&current).map_err(|error| CompileError::Compile(chain(&error)))?;
    if let Err(error) = keep(folder, &path, &code) {
        tracing::warn!(folder = %folder.display(), %error, "compiled code could not be kept; it is compiled again next time");
    } else if let Some(component) = load(engine, folder, &path) {
        // Mapped from the file, it shares memory with other hosts and costs nothing while it is idle.
        return Ok(Compiled { component, flavor, cached: false });
    }
    let component = deserialize(engine, &code).map_err(|error| CompileError::Compile(chain(&error)))?;
    Ok(Compiled { component, flavor, cached: false })
}

/// Which engine the component needs, told from the names of its imports and exports.
fn flavor(wasm: &[u8]) -> Result<Flavor, CompileError> {
    if !Parser::is_component(wasm) {
        return Err(CompileError::NotWasm("it does not begin as one".to_owned()));
    }
    let mut flavor = Flavor::Plain;
    let mut depth = 0;
    for payload in Parser::new(0).parse_all(wasm) {
        let payload = payload.map_err(|error| CompileError::NotWasm(error.to_string()))?;
        match payload {
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
            Payload::End(_) if depth > 0 => depth -= 1,
            Payload::ComponentImportSection(imports) if depth == 0 => {
                for import in imports {
                    let import = import.map_err(|error| CompileError::NotWasm(error.to_string()))?;
                    flavor = needs(import.name.name, flavor);
                }
            }
            Payload::ComponentExportSection(exports) if depth == 0 => {
                for export in exports {
                    let export = export.map_err(|error| CompileError::NotWasm(error.to_string()))?;
                    flavor = needs(export.name.name, flavor);
                }
            }
            _ => {}
        }
    }
    Ok(flavor)
}

/// Async functions stand in WASI from 0.3 on, and in Spin's interfaces from 3 on.
fn needs(name: &str, flavor: Flavor) -> Flavor {
    let concurrent = name.split_once('@').is_some_and(|(name, version)| {
        (name.starts_with("wasi:") && version.starts_with("0.3.")) || name.starts_with("spin:")
    });
    if concurrent { Flavor::Concurrent } else { flavor }
}

/// A number that changes with every setting that compiled code depends on.
fn settings(engine: &Engine) -> u64 {
    let mut hasher = std::hash::DefaultHasher::new();
    engine.precompile_compatibility_hash().hash(&mut hasher);
    hasher.finish()
}

fn load(engine: &Engine, folder: &Path, path: &Path) -> Option<Component> {
    if !path.exists() {
        return None;
    }
    if let Err(reason) = ours(folder).and_then(|()| ours(path)) {
        tracing::warn!(path = %path.display(), %reason, "compiled code is not trusted, and is compiled anew");
        return None;
    }
    match deserialize_file(engine, path) {
        Ok(component) => Some(component),
        Err(error) => {
            tracing::warn!(path = %path.display(), error = %chain(&error), "compiled code cannot be used, and is compiled anew");
            None
        }
    }
}

/// Whether nobody but this user can have written it.
fn ours(path: &Path) -> Result<(), String> {
    let metadata = std::fs::symlink_metadata(path).map_err(|error| error.to_string())?;
    if metadata.uid() != rustix::process::geteuid().as_raw() {
        return Err("it belongs to another user".to_owned());
    }
    if metadata.mode() & 0o022 != 0 {
        return Err("others may write it".to_owned());
    }
    Ok(())
}

fn keep(folder: &Path, path: &Path, code: &[u8]) -> io::Result<()> {
    make_private(folder)?;
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(code)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}

/// Makes a folder that only this user may write.
///
/// # Errors
/// Where the system refuses.
pub fn make_private(folder: &Path) -> io::Result<PathBuf> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    Ok(folder.to_owned())
}

#[expect(unsafe_code, reason = "wasmtime trusts compiled code")]
fn deserialize_file(engine: &Engine, path: &Path) -> wasmtime::Result<Component> {
    // SAFETY: only this host writes the folder, which `ours` has checked, and only whole files under names that
    // carry the digest of their source and the settings of the engine.
    unsafe { Component::deserialize_file(engine, path) }
}

#[expect(unsafe_code, reason = "wasmtime trusts compiled code")]
fn deserialize(engine: &Engine, code: &[u8]) -> wasmtime::Result<Component> {
    // SAFETY: the code comes from `precompile_component` in this process.
    unsafe { Component::deserialize(engine, code) }
}
