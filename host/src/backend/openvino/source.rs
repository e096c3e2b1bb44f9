//! A model on disk and how to compile it: from the cache of compiled models, into it, or without it.

use std::ffi::CStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::cache::Entry;
use super::library::Runtime;
use super::onnx::{self, Names};
use super::sys::{self, Compiled, Property};
use super::{BACKEND, device, error, machine};
use crate::backend::outline::Outline;
use crate::backend::{Encoding, ExecutionTarget, LoadError, ModelFile, Precision};

/// Beside the compiled model: the names that compiling loses, each ended by a zero byte, inputs first.
const NAMES: &str = "names";

/// Everything that compiling a model again needs.
pub(super) struct Source {
    runtime: Arc<Runtime>,
    model: ModelFile,
    entry: Entry,
    /// Read from an ONNX file itself; a model in OpenVINO's own form is asked for them.
    names: Option<Names>,
}

/// A model ready to make requests, and the names of its inputs and outputs.
pub(super) type Ready = (Compiled, Names);

impl Source {
    /// # Errors
    /// Where the files cannot be read, or are not of the format that they are said to be.
    pub(super) fn new(runtime: Arc<Runtime>, model: &ModelFile) -> Result<Source, LoadError> {
        let refused = |reason: &str| LoadError::Model { backend: BACKEND, reason: reason.to_owned() };
        let file = File::open(&model.path)?;
        // OpenVINO itself reads whatever format it recognises, also ones that nobody asked for.
        let names = match model.encoding {
            Encoding::Onnx => {
                Outline::of_whole(&model.path, BACKEND)?;
                Some(onnx::names(file)?.ok_or_else(|| refused("it is not an ONNX model"))?)
            }
            Encoding::Openvino if !is_xml(file)? => return Err(refused("it is not an XML file")),
            Encoding::Openvino => None,
        };
        if let Some(weights) = &model.weights {
            File::open(weights)?;
        }
        let precision = precision(model);
        let key = format!("{}-{}-{precision}", model.digest, model.target.name());
        let entry = Entry::new(&model.derived, &machine::version(&runtime.build), &key);
        Ok(Source { runtime, model: model.clone(), entry, names })
    }

    /// Compiles the model for one run at a time, and keeps what was compiled for the next time.
    ///
    /// # Errors
    /// Says on one line why OpenVINO cannot; a cache that cannot be used is no reason.
    pub(super) fn compile(&self) -> Result<Ready, String> {
        let compiled = match self.cacheable() {
            Ok(file) => match self.load_cached(&file) {
                Some(ready) => return Ok(ready),
                None => self.compile_cached(&file),
            },
            Err(error) => {
                tracing::warn!(backend = BACKEND, %error, "failed to use the cache of compiled models");
                self.compile_uncached()
            }
        };
        compiled.map_err(|error| self.line(&error.text))
    }

    /// `text` on one line, without the paths of this host.
    pub(super) fn line(&self, text: &str) -> String {
        let linked = self.entry.folder().join("model.xml");
        let mut paths: Vec<(&Path, &str)> = vec![(&linked, "the model"), (&self.model.path, "the model")];
        paths.extend(self.model.weights.as_deref().map(|weights| (weights, "its weights")));
        paths.push((self.entry.folder(), "the cache"));
        error::line(text, &paths)
    }

    /// The file to compile with the cache, which knows models by path.
    fn cacheable(&self) -> io::Result<PathBuf> {
        if let Some(weights) = &self.model.weights {
            self.entry.link(weights, "model.bin")?;
        }
        match self.model.encoding {
            Encoding::Onnx => std::path::absolute(&self.model.path),
            Encoding::Openvino => self.entry.link(&self.model.path, "model.xml"),
        }
    }

    fn load_cached(&self, file: &Path) -> Option<Ready> {
        let folder = self.entry.sealed()?;
        let compile = || {
            let compiled = self.compile_file(file, &folder)?;
            let names = match &self.names {
                Some(names) => names.clone(),
                None => self.stored_names(&folder)?,
            };
            Ok((compiled, names))
        };
        let ready: Ready = compile()
            .inspect_err(|error: &sys::Error| {
                let error = self.line(&error.text);
                tracing::warn!(backend = BACKEND, error, "failed to load a compiled model from the cache");
                self.entry.remove();
            })
            .ok()?;
        // OpenVINO did not find what it wants there, and may have begun to write it.
        if !is_cached(&ready.0) {
            self.entry.remove();
        }
        Some(ready)
    }

    fn compile_cached(&self, file: &Path) -> sys::Result<Ready> {
        let fresh = match self.entry.fresh() {
            Ok(fresh) => fresh,
            Err(error) => {
                tracing::warn!(backend = BACKEND, %error, "failed to make room for a compiled model");
                return self.compile_uncached();
            }
        };
        let compiled = match self.compile_file(file, fresh.path()) {
            Ok(compiled) => compiled,
            // Once there is a file the model was fine, and writing it down failed.
            Err(error) if has_files(fresh.path()) => {
                tracing::warn!(
                    backend = BACKEND,
                    error = self.line(&error.text),
                    "failed to write a compiled model"
                );
                return self.compile_uncached();
            }
            Err(error) => return Err(error),
        };
        let names = match &self.names {
            Some(names) => names.clone(),
            None => self.own_names(&self.read()?)?,
        };
        // A full disk, or a device whose compilations cannot be written down.
        if !has_files(fresh.path()) {
            tracing::warn!(backend = BACKEND, "OpenVINO did not write a compiled model");
            return Ok((compiled, names));
        }
        let stored =
            fs::write(fresh.path().join(NAMES), encode(&names)).and_then(|()| self.entry.keep(fresh));
        if let Err(error) = stored {
            tracing::warn!(backend = BACKEND, %error, "failed to keep a compiled model");
        }
        Ok((compiled, names))
    }

    fn compile_uncached(&self) -> sys::Result<Ready> {
        let model = self.read()?;
        let names = self.own_names(&model)?;
        let compiled = self.runtime.core.compile(&model, self.device(), &self.properties())?;
        Ok((compiled, names))
    }

    fn read(&self) -> sys::Result<sys::Model> {
        self.runtime.core.read(&self.model.path, self.model.weights.as_deref())
    }

    fn compile_file(&self, file: &Path, cache: &Path) -> sys::Result<Compiled> {
        let mut properties = self.properties();
        // A host whose folders have names beyond UTF-8 has no cache.
        properties.extend(cache.to_str().map(|folder| (c"CACHE_DIR", folder.to_owned())));
        self.runtime.core.compile_file(file, self.device(), &properties)
    }

    /// The names that the model itself has, before compiling changes them.
    fn own_names(&self, model: &sys::Model) -> sys::Result<Names> {
        if let Some(names) = &self.names {
            return Ok(names.clone());
        }
        let (inputs, outputs) = model.ports()?;
        let all = |ports: Vec<sys::PortInfo>, noun: &str| {
            let name = |(index, port): (usize, sys::PortInfo)| {
                port.name.unwrap_or_else(|| format!("{noun}_{index}"))
            };
            ports.into_iter().enumerate().map(name).collect()
        };
        Ok(Names { inputs: all(inputs, "input"), outputs: all(outputs, "output") })
    }

    fn stored_names(&self, folder: &Path) -> sys::Result<Names> {
        match fs::read(folder.join(NAMES)).ok().and_then(|bytes| decode(&bytes)) {
            Some(names) => Ok(names),
            None => self.own_names(&self.read()?),
        }
    }

    fn device(&self) -> &'static CStr {
        device(self.model.target)
    }

    /// The settings of every compilation; OpenVINO refuses those that a device does not know.
    fn properties(&self) -> Vec<Property<'static>> {
        let mut properties = vec![(c"INFERENCE_PRECISION_HINT", precision(&self.model).to_owned())];
        if self.model.target != ExecutionTarget::Npu {
            properties.push((c"NUM_STREAMS", "1".to_owned()));
        }
        if self.model.target == ExecutionTarget::Cpu {
            // Not pinned: OpenVINO would pin the threads of all compilations to the same processors.
            properties.push((c"INFERENCE_NUM_THREADS", "1".to_owned()));
            properties.push((c"ENABLE_CPU_PINNING", "NO".to_owned()));
        }
        properties
    }
}

fn has_files(folder: &Path) -> bool {
    fs::read_dir(folder).is_ok_and(|mut files| files.next().is_some())
}

/// Whether OpenVINO took the compiled model from its cache.
pub(super) fn is_cached(compiled: &Compiled) -> bool {
    compiled
        .property(c"LOADED_FROM_CACHE")
        .is_ok_and(|value| value == "YES" || value == "1" || value == "true")
}

fn precision(model: &ModelFile) -> &'static str {
    match model.precision {
        Precision::F32 => "f32",
        Precision::Bf16 => "bf16",
    }
}

/// Whether a file starts as XML does, after a byte order mark and white space.
fn is_xml(file: File) -> io::Result<bool> {
    let mut start = Vec::new();
    file.take(64).read_to_end(&mut start)?;
    let text = start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&start).trim_ascii_start();
    Ok(text.starts_with(b"<?xml") || text.starts_with(b"<net") || text.starts_with(b"<!--"))
}

fn encode(names: &Names) -> Vec<u8> {
    let lists = [&names.inputs, &names.outputs];
    lists
        .into_iter()
        .flat_map(|list| {
            let count = list.len().to_string();
            std::iter::once(count).chain(list.iter().cloned()).flat_map(|text| (text + "\0").into_bytes())
        })
        .collect()
}

fn decode(bytes: &[u8]) -> Option<Names> {
    let text = std::str::from_utf8(bytes).ok()?.strip_suffix('\0')?;
    let mut texts = text.split('\0').map(str::to_owned);
    let mut list = || {
        let count = texts.next()?.parse().ok()?;
        Some(texts.by_ref().take(count).collect())
    };
    Some(Names { inputs: list()?, outputs: list()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_kept() {
        let names =
            Names { inputs: vec!["a".into(), "b c".into()], outputs: vec![String::new(), "é".into()] };
        assert_eq!(decode(&encode(&names)), Some(names));
        assert_eq!(decode(&encode(&Names::default())), Some(Names::default()));
        assert_eq!(decode(b""), None);
        assert_eq!(decode(b"2\0a"), None);
    }
}
