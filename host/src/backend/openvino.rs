//! OpenVINO: runs its own IR and ONNX files on processors, and on Intel's GPUs and NPUs, from a shared library.
//!
//! What it does in silence is refused or prevented here. It computes 64-bit integers in 32 bits, so larger ones
//! are refused; it computes FP64 in FP32, so what FP32 cannot hold is refused (the precision is lost). A run
//! of a model with dynamic shapes that fails or is cancelled leaves state behind in which later runs fail or
//! answer with other runs' outputs, so nothing ever runs again where such a run was.

mod cache;
mod error;
mod library;
mod machine;
mod onnx;
mod source;
mod sys;
#[cfg(test)]
mod tests;

use std::ffi::CStr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use self::library::Runtime;
use self::onnx::Names;
use self::source::Source;
use super::{
    Backend, Cancel, Encoding, ExecutionTarget, Graph, InferError, LoadError, ModelFile, Port, Signature,
    Status,
};
use crate::tensor::{Datatype, Tensor};

const BACKEND: &str = "openvino";

/// The backend; absent where its library is.
pub struct OpenVino {
    runtime: Result<Arc<Runtime>, String>,
}

impl OpenVino {
    /// Loads the library in `library`, or else the newest `libopenvino_c.so*` that lies in a folder of
    /// `search` or in `openvino/libs/` under one. A process has one library: a second backend of the same
    /// file shares it, one of another file is unavailable.
    pub fn new(library: Option<&Path>, search: &[PathBuf]) -> OpenVino {
        OpenVino { runtime: library::load(library, search) }
    }

    fn runtime(&self) -> Result<&Arc<Runtime>, LoadError> {
        self.runtime
            .as_ref()
            .map_err(|reason| LoadError::Unavailable { backend: BACKEND, reason: reason.clone() })
    }
}

impl Backend for OpenVino {
    fn name(&self) -> &'static str {
        BACKEND
    }

    fn status(&self) -> Status {
        let runtime = self.runtime.as_ref().ok();
        Status {
            available: self.runtime.as_ref().map(|_| ()).map_err(Clone::clone),
            version: runtime.map_or_else(String::new, |runtime| runtime.version().to_owned()),
            encodings: vec![Encoding::Openvino, Encoding::Onnx],
            devices: runtime.map_or_else(Vec::new, |runtime| runtime.devices().to_vec()),
            library: runtime.map(|runtime| runtime.library.clone()),
        }
    }

    fn version(&self) -> String {
        self.runtime.as_ref().map_or_else(|_| String::new(), |runtime| machine::version(&runtime.build))
    }

    fn load(&self, model: &ModelFile) -> Result<Arc<dyn Graph>, LoadError> {
        let runtime = self.runtime()?;
        if !runtime.devices().contains(&model.target) {
            let (target, reason) = (model.target.name(), missing(model.target).to_owned());
            return Err(LoadError::Target { backend: BACKEND, target, reason });
        }
        let refused = |reason| LoadError::Model { backend: BACKEND, reason };
        let source = Source::new(Arc::clone(runtime), model)?;
        let (compiled, names) = source.compile().map_err(refused)?;
        let graph = Model::new(source, names, compiled, model.concurrency.max(1)).map_err(refused)?;
        Ok(Arc::new(graph))
    }
}

/// OpenVINO's name of a device.
fn device(target: ExecutionTarget) -> &'static CStr {
    match target {
        ExecutionTarget::Cpu => c"CPU",
        ExecutionTarget::Gpu => c"GPU",
        ExecutionTarget::Npu => c"NPU",
    }
}

/// What to do about a device that is not there.
fn missing(target: ExecutionTarget) -> &'static str {
    match target {
        ExecutionTarget::Cpu => {
            "its CPU plugin is not beside its library; run `tenon backend install openvino`"
        }
        ExecutionTarget::Gpu => {
            "it found no GPU: it needs an Intel GPU, Intel's compute runtime (package `intel-opencl-icd`) and \
             access to /dev/dri"
        }
        ExecutionTarget::Npu => {
            "it found no NPU: it needs an Intel Core Ultra processor, Intel's NPU driver (package \
             `intel-level-zero-npu`) and access to /dev/accel"
        }
    }
}

fn signature(compiled: &sys::Compiled, names: Names) -> Result<Signature, String> {
    let (inputs, outputs) = compiled.ports().map_err(|error| error::line(&error.text, &[]))?;
    Ok(Signature {
        inputs: ports("input", inputs, names.inputs)?,
        outputs: ports("output", outputs, names.outputs)?,
    })
}

fn ports(noun: &str, ports: Vec<sys::PortInfo>, names: Vec<String>) -> Result<Vec<Port>, String> {
    if ports.len() != names.len() {
        let (model, engine) = (names.len(), ports.len());
        return Err(format!("the model names {model} {noun}s, OpenVINO sees {engine}"));
    }
    if let Some((_, name)) = names.iter().enumerate().find(|(index, name)| names[..*index].contains(name)) {
        return Err(format!("two {noun}s have the name `{name}`"));
    }
    let port = |(port, name): (sys::PortInfo, String)| match port.datatype {
        Some(Datatype::Bytes) => Err(format!(
            "{noun} `{name}` is of strings (BYTES), which OpenVINO's C interface cannot exchange; use another backend"
        )),
        Some(datatype) => Ok(Port { name, datatype, shape: port.shape }),
        None => Err(format!(
            "{noun} `{name}` has an element type that the Open Inference Protocol has no name for"
        )),
    };
    ports.into_iter().zip(names).map(port).collect()
}

/// A loaded model.
struct Model {
    source: Source,
    signature: Signature,
    concurrency: usize,
    /// Whether shapes vary inside, so that a lane is spoiled by a run that was cancelled.
    dynamic: bool,
    lanes: Mutex<Lanes>,
}

#[derive(Default)]
struct Lanes {
    /// As many as ever ran at once.
    idle: Vec<Lane>,
    /// Runs that went on after they were cancelled.
    stuck: Vec<sys::Run>,
}

/// What one caller at a time runs on: a compilation of the model with one thread. Callers share none, for what
/// one run spoils would be another's before anybody knew.
struct Lane {
    // Before `compiled`, so that it goes first.
    request: sys::Request,
    compiled: sys::Compiled,
}

impl Graph for Model {
    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn run(&self, inputs: Vec<Tensor>, cancel: &Cancel) -> Result<Vec<Tensor>, InferError> {
        for (port, input) in self.signature.inputs.iter().zip(&inputs) {
            check_range(&port.name, input)?;
        }
        if self.is_stuck() {
            return Err(InferError::Failed("an earlier run of the model cannot be stopped".to_owned()));
        }
        let failed = |error: sys::Error| InferError::Failed(self.source.line(&error.text));
        let Lane { request, compiled } = self.lane().map_err(InferError::Failed)?;
        let run = request.start(inputs).map_err(failed)?;
        let error = match run.wait(cancel) {
            Some(Ok(())) => {
                let (outputs, request) = run.finish(self.signature.outputs.len()).map_err(failed)?;
                self.put(Lane { request, compiled });
                return self.checked(outputs);
            }
            Some(Err(error)) if error.cancelled && cancel.is_raised() => {
                if !self.dynamic {
                    let (_, request) = run.finish(0).map_err(failed)?;
                    self.put(Lane { request, compiled });
                }
                InferError::Cancelled
            }
            Some(Err(error)) => failed(error),
            None => {
                tracing::warn!(backend = BACKEND, "a cancelled run goes on");
                self.lanes().stuck.push(run);
                InferError::Cancelled
            }
        };
        self.refill();
        Err(error)
    }
}

impl Model {
    fn new(
        source: Source,
        names: Names,
        compiled: sys::Compiled,
        concurrency: usize,
    ) -> Result<Model, String> {
        let line = |error: sys::Error| error::line(&error.text, &[]);
        let signature = signature(&compiled, names)?;
        // What cannot be known is taken for the worse.
        let dynamic = compiled.is_dynamic().unwrap_or(true);
        let lane = Lane { request: compiled.request().map_err(line)?, compiled };
        let lanes = Mutex::new(Lanes { idle: vec![lane], stuck: Vec::new() });
        Ok(Model { source, signature, concurrency, dynamic, lanes })
    }

    /// A lane for one run; where none is idle, a new one, which after the first load comes from the cache.
    fn lane(&self) -> Result<Lane, String> {
        let idle = self.lanes().idle.pop();
        idle.map_or_else(
            || {
                let (compiled, _) = self.source.compile()?;
                let request = compiled.request().map_err(|error| self.source.line(&error.text))?;
                Ok(Lane { request, compiled })
            },
            Ok,
        )
    }

    /// Takes a lane for the next caller.
    fn put(&self, lane: Lane) {
        let mut lanes = self.lanes();
        if lanes.idle.len() < self.concurrency {
            lanes.idle.push(lane);
        }
    }

    /// Makes a lane for the next caller, in the time of the one whose lane is gone.
    fn refill(&self) {
        if !self.lanes().idle.is_empty() {
            return;
        }
        match self.lane() {
            Ok(lane) => self.put(lane),
            Err(error) => tracing::warn!(backend = BACKEND, error, "failed to compile a model again"),
        }
    }

    /// Whether runs that cannot be stopped are as many as callers may be.
    fn is_stuck(&self) -> bool {
        let stuck = &mut self.lanes().stuck;
        stuck.retain(|run| !run.has_ended());
        stuck.len() >= self.concurrency
    }

    fn lanes(&self) -> MutexGuard<'_, Lanes> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Outputs of the datatypes that the signature promises.
    fn checked(&self, outputs: Vec<Tensor>) -> Result<Vec<Tensor>, InferError> {
        for (port, output) in self.signature.outputs.iter().zip(&outputs) {
            if port.datatype != output.datatype() {
                let (name, expected, actual) = (&port.name, port.datatype, output.datatype());
                return Err(InferError::Failed(format!("output `{name}` is {actual}, not {expected}")));
            }
        }
        Ok(outputs)
    }
}

/// Refuses numbers that OpenVINO would change in silence: it keeps integers in 32 bits with a sign, and FP64 in
/// FP32.
fn check_range(name: &str, tensor: &Tensor) -> Result<(), InferError> {
    let data = tensor.data();
    let (fits, range) = match tensor.datatype() {
        Datatype::Int64 => {
            (all(data, |bytes| i32::try_from(i64::from_le_bytes(bytes)).is_ok()), "of 32-bit integers")
        }
        Datatype::Uint64 => {
            (all(data, |bytes| i32::try_from(u64::from_le_bytes(bytes)).is_ok()), "of 0 to 2147483647")
        }
        Datatype::Uint32 => {
            (all(data, |bytes| i32::try_from(u32::from_le_bytes(bytes)).is_ok()), "of 0 to 2147483647")
        }
        Datatype::Fp64 => (
            all(data, |bytes| {
                let value = f64::from_le_bytes(bytes);
                !value.is_finite() || value.abs() <= f64::from(f32::MAX)
            }),
            "of FP32",
        ),
        _ => return Ok(()),
    };
    if fits {
        return Ok(());
    }
    let datatype = tensor.datatype();
    Err(InferError::InvalidInput(format!(
        "input `{name}` has a value outside the range {range}, in which backend `{BACKEND}` computes {datatype}"
    )))
}

/// Whether every element passes; without leaving the loop early, so that it is vectorised.
fn all<const N: usize>(data: &[u8], fits: impl Fn([u8; N]) -> bool) -> bool {
    data.as_chunks().0.iter().fold(true, |all, element| all & fits(*element))
}
