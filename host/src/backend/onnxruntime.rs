//! ONNX Runtime as a backend: its library is loaded at run time, its models mapped from an optimised form.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use ort::session::{RunOptions, Session};
use ort::value::{Outlet, ValueType};

use self::library::Runtime;
pub use self::library::disable_telemetry;
use self::session::{Pool, Recipe};
use self::value::Inputs;
use super::outline::Outline;
use super::{
    Backend, Cancel, Encoding, ExecutionTarget, Graph, InferError, LoadError, ModelFile, Port, Precision,
    Signature, Status,
};
use crate::tensor::Tensor;

mod derived;
mod library;
mod session;
#[cfg(test)]
mod tests;
mod value;

const NAME: &str = "onnxruntime";
/// The longest text of ONNX Runtime's that is passed on.
const MAX_MESSAGE: usize = 600;

/// The backend, whether or not its library is there.
///
/// The library is looked for when first needed, and loaded once for the process: a second `OnnxRuntime` that
/// finds the same file shares it, and one that finds another is not available.
pub struct OnnxRuntime {
    library: Option<PathBuf>,
    search: Vec<PathBuf>,
    runtime: OnceLock<Result<&'static Runtime, String>>,
}

impl OnnxRuntime {
    /// Takes the library at `library`, a file or a folder, or else the newest `libonnxruntime.so*` that lies
    /// in one of the `search` folders or in `onnxruntime/capi` below it, where the Python package has it.
    pub fn new(library: Option<&Path>, search: &[PathBuf]) -> OnnxRuntime {
        OnnxRuntime {
            library: library.map(Path::to_owned),
            search: search.to_vec(),
            runtime: OnceLock::new(),
        }
    }

    fn runtime(&self) -> Result<&'static Runtime, &str> {
        let outcome = self.runtime.get_or_init(|| library::load(self.library.as_deref(), &self.search));
        outcome.as_ref().copied().map_err(String::as_str)
    }
}

impl Backend for OnnxRuntime {
    fn name(&self) -> &'static str {
        NAME
    }

    fn status(&self) -> Status {
        let runtime = self.runtime();
        let found = runtime.ok();
        let gpu = found.is_some_and(|runtime| runtime.offers_cuda).then_some(ExecutionTarget::Gpu);
        Status {
            available: runtime.map(drop).map_err(str::to_owned),
            version: found.map(|runtime| runtime.version.clone()).unwrap_or_default(),
            encodings: vec![Encoding::Onnx],
            devices: found.map(|_| ExecutionTarget::Cpu).into_iter().chain(gpu).collect(),
            library: found.map(|runtime| runtime.library.clone()),
        }
    }

    fn version(&self) -> String {
        self.runtime().map(|runtime| runtime.key.clone()).unwrap_or_default()
    }

    fn load(&self, model: &ModelFile) -> Result<Arc<dyn Graph>, LoadError> {
        if model.encoding != Encoding::Onnx {
            return Err(LoadError::Encoding { backend: NAME, encoding: model.encoding.name() });
        }
        let runtime = self
            .runtime()
            .map_err(|reason| LoadError::Unavailable { backend: NAME, reason: reason.to_owned() })?;
        check_wishes(runtime, model)?;
        let outline = outline(&model.path)?;
        let (recipe, session) = Recipe::new(runtime, model, outline.is_static()).map_err(unloadable)?;
        let signature = signature(&session, &outline)?;
        Ok(Arc::new(OnnxGraph {
            signature,
            target: model.target,
            pool: Pool::new(recipe, session, model.concurrency),
        }))
    }
}

/// Refuses devices and precisions that cannot be had.
fn check_wishes(runtime: &Runtime, model: &ModelFile) -> Result<(), LoadError> {
    let target = |reason| Err(LoadError::Target { backend: NAME, target: model.target.name(), reason });
    match model.target {
        ExecutionTarget::Cpu => {}
        ExecutionTarget::Gpu if !runtime.offers_cuda => {
            return target(format!(
                "the library `{}` is built without CUDA; point the host at that of the Python package \
                 `onnxruntime-gpu`, with CUDA and cuDNN installed",
                runtime.library.display()
            ));
        }
        ExecutionTarget::Gpu => {
            if let Err(error) = session::check_cuda(runtime) {
                return target(format!(
                    "its CUDA provider does not start: {error}; install the CUDA and cuDNN that \
                     ONNX Runtime {} is built for",
                    runtime.version
                ));
            }
        }
        ExecutionTarget::Npu => return target("it drives no NPU; backend `openvino` does".to_owned()),
    }
    match model.precision {
        Precision::F32 => Ok(()),
        Precision::Bf16 => Err(unloadable("it has no precision `bf16`; backend `openvino` does".to_owned())),
    }
}

/// Looks the file through before ONNX Runtime does.
fn outline(path: &Path) -> Result<Outline, LoadError> {
    let outline = Outline::of_whole(path, NAME)?;
    match outline.other_kind() {
        Some((name, kind)) => {
            Err(unloadable(format!("its input or output `{name}` is {kind}; only tensors are supported")))
        }
        None => Ok(outline),
    }
}

fn signature(session: &Session, outline: &Outline) -> Result<Signature, LoadError> {
    let ports = |outlets: &[Outlet]| -> Result<Vec<Port>, LoadError> {
        outlets.iter().map(|outlet| port(outlet, outline)).collect()
    };
    Ok(Signature { inputs: ports(session.inputs())?, outputs: ports(session.outputs())? })
}

fn port(outlet: &Outlet, outline: &Outline) -> Result<Port, LoadError> {
    let name = outlet.name().to_owned();
    let unsupported = || {
        unloadable(format!("its input or output `{name}` is a {}, which is not supported", outlet.dtype()))
    };
    let ValueType::Tensor { ty, shape, .. } = outlet.dtype() else { return Err(unsupported()) };
    let datatype = value::datatype(*ty).ok_or_else(unsupported)?;
    // ONNX Runtime shows no dimensions both for a scalar and for a rank that nobody knows.
    let is_ranked = !shape.is_empty() || outline.is_ranked(&name);
    let shape = is_ranked.then(|| shape.iter().map(|dim| usize::try_from(*dim).ok()).collect());
    Ok(Port { name, datatype, shape })
}

fn unloadable(reason: String) -> LoadError {
    LoadError::Model { backend: NAME, reason }
}

struct OnnxGraph {
    signature: Signature,
    target: ExecutionTarget,
    pool: Pool,
}

impl Graph for OnnxGraph {
    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn prefers_few_shapes(&self) -> bool {
        // On a GPU, algorithms are looked for by shape.
        self.target == ExecutionTarget::Gpu
    }

    fn runs_on_caller(&self) -> bool {
        self.target == ExecutionTarget::Cpu
    }

    fn run(&self, inputs: Vec<Tensor>, cancel: &Cancel) -> Result<Vec<Tensor>, InferError> {
        let inputs = Inputs::new(inputs, &self.signature.inputs)?;
        let mut session = self.pool.take(cancel)?;
        let options = Arc::new(RunOptions::new().map_err(|error| refusal(&error))?);
        let hook = {
            let options = Arc::clone(&options);
            cancel.hook(move || {
                // It fails on no options that exist.
                let _ = options.terminate();
            })
        };
        let outputs = contained(|| self.outputs(&mut session, &inputs, &options));
        drop(hook);
        match outputs.unwrap_or_else(|panic| Err(InferError::Failed(panic))) {
            Err(_) if cancel.is_raised() => Err(InferError::Cancelled),
            outputs => outputs,
        }
    }
}

impl OnnxGraph {
    fn outputs(
        &self,
        session: &mut Session,
        inputs: &Inputs,
        options: &RunOptions,
    ) -> Result<Vec<Tensor>, InferError> {
        let outputs = session.run_with_options(inputs.values(), options).map_err(|error| refusal(&error))?;
        outputs
            .values()
            .zip(&self.signature.outputs)
            .map(|(output, port)| value::output(&output, port))
            .collect()
    }
}

fn refusal(error: &ort::Error) -> InferError {
    let message = one_line(error.message());
    match error.code() {
        ort::ErrorCode::InvalidArgument => InferError::InvalidInput(message),
        _ => InferError::Failed(message),
    }
}

/// A message of ONNX Runtime's without line breaks and the places in its own source.
fn one_line(message: &str) -> String {
    let words: Vec<_> =
        message.split_whitespace().filter(|word| !word.starts_with("/onnxruntime_src/")).collect();
    let mut line = words.join(" ");
    if line.len() > MAX_MESSAGE {
        line.truncate(line.floor_char_boundary(MAX_MESSAGE));
        line.push_str("...");
    }
    line
}

/// Calls into `ort`, which panics where its author holds an answer of the library to be impossible.
fn contained<T>(call: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(call))
        .map_err(|_| "ONNX Runtime gave an answer that `ort` does not know".to_owned())
}
