//! What an inference engine is to Tenon: `Backend` loads a model into a `Graph`, a `Graph` runs.
//!
//! Nothing of a guest's memory, of wasmtime or of the network crosses these traits: models come as files,
//! tensors as plain bytes, and a cancellation as a flag. A backend can therefore move into a process of its
//! own without a change to its callers.

use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use thiserror::Error;

use crate::tensor::{Datatype, Tensor};

pub mod available;
pub mod batch;
pub mod brisk;
#[cfg(any(feature = "rten", feature = "tract"))]
pub mod onnx;
#[cfg(feature = "onnxruntime")]
pub mod onnxruntime;
#[cfg(feature = "openvino")]
pub mod openvino;
#[cfg(any(feature = "onnxruntime", feature = "openvino"))]
mod outline;
pub mod pool;
pub mod residency;
#[cfg(feature = "rten")]
pub mod rten;
// It reads the inputs and outputs of models as the built-in backends do.
#[cfg(any(feature = "rten", feature = "tract"))]
pub mod stock;
#[cfg(feature = "tract")]
pub mod tract;
pub mod validate;
pub mod vet;

/// The format of a model file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// An ONNX file.
    Onnx,
    /// OpenVINO's intermediate representation: an `.xml` file and its `.bin` file of weights.
    Openvino,
}

impl Encoding {
    pub fn name(self) -> &'static str {
        match self {
            Encoding::Onnx => "onnx",
            Encoding::Openvino => "openvino",
        }
    }
}

/// The kind of device that a model asks to run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ExecutionTarget {
    Cpu,
    Gpu,
    Npu,
}

impl ExecutionTarget {
    pub fn name(self) -> &'static str {
        match self {
            ExecutionTarget::Cpu => "cpu",
            ExecutionTarget::Gpu => "gpu",
            ExecutionTarget::Npu => "npu",
        }
    }
}

/// The arithmetic that a model allows its FP32 operations to be done in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Precision {
    #[default]
    F32,
    /// Faster on processors with bfloat16 units; results differ in the third digit.
    Bf16,
}

/// A model to load: where its bytes are and how it wants to run.
#[derive(Clone, Debug)]
pub struct ModelFile {
    /// The model. It lies in the host's own cache, under its digest, and never changes: it may be mapped.
    pub path: PathBuf,
    /// The separate weights file of an OpenVINO model.
    pub weights: Option<PathBuf>,
    pub encoding: Encoding,
    /// Lower-case hex SHA-256 over the model, or over the digests of model and weights; the name of what a backend
    /// derives and caches.
    pub digest: String,
    pub target: ExecutionTarget,
    pub precision: Precision,
    /// How many callers may run the graph at once, at least 1.
    pub concurrency: usize,
    /// A folder of the host's own in which a backend keeps what it derives from models.
    pub derived: PathBuf,
}

/// Who goes first where calls wait for a graph: 1 before 2, and so on. Calls that ask for no priority, 0, go with those
/// of [`Priority::USUAL`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Priority(pub u32);

/// One input or output of a graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    pub name: String,
    pub datatype: Datatype,
    /// `None` is a dimension that every call may choose. `shape` itself is `None` where the model does not
    /// even fix the rank.
    pub shape: Option<Vec<Option<usize>>>,
}

/// What a graph takes and gives, in the model's own order and names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Signature {
    pub inputs: Vec<Port>,
    pub outputs: Vec<Port>,
}

/// An inference engine.
pub trait Backend: Send + Sync {
    /// The name that models and operators use, such as `onnxruntime`.
    fn name(&self) -> &'static str;

    /// What is known without loading a model.
    fn status(&self) -> Status;

    /// Changes whenever derived files or verdicts of the engine may no longer hold: its library's version,
    /// and for engines that compile to the machine, the processor.
    fn version(&self) -> String;

    /// Loads a model. Blocks for as long as that takes.
    ///
    /// # Errors
    /// Where the engine is absent, cannot read the model or has no such device. It never takes another device,
    /// precision or format than the one asked for.
    fn load(&self, model: &ModelFile) -> Result<Arc<dyn Graph>, LoadError>;

    /// Whether it starts no threads while it loads that are to run the model afterwards: the one that loads may then give
    /// way to others.
    fn loads_alone(&self) -> bool {
        false
    }
}

/// A model loaded into a backend, shared by every caller that was granted the model.
pub trait Graph: Send + Sync {
    fn signature(&self) -> &Signature;

    /// Whether the engine prepares itself for every shape that it meets, so that batches should be of few sizes.
    fn prefers_few_shapes(&self) -> bool {
        false
    }

    /// Whether a run computes on the thread that asks for it, with no more stack than is granted to any, so that
    /// it may be any thread.
    fn runs_on_caller(&self) -> bool {
        false
    }

    /// Runs the graph once. `inputs` hold one tensor for each input of the signature, in its order, already
    /// checked by [`validate::inputs`]; the outputs come in the signature's order. Blocks; callers bound how
    /// many run at once by the model's `concurrency`.
    ///
    /// # Errors
    /// Where the engine refuses the inputs or fails on them, or `cancel` was raised meanwhile. The graph stays usable.
    fn run(&self, inputs: Vec<Tensor>, cancel: &Cancel) -> Result<Vec<Tensor>, InferError>;
}

/// What an operator is told of a backend.
#[derive(Clone, Debug)]
pub struct Status {
    /// `Err` says why the backend cannot be used, and what to do about it.
    pub available: Result<(), String>,
    /// The engine's version, such as `1.28.0`; empty where it could not be asked.
    pub version: String,
    /// Formats that it reads.
    pub encodings: Vec<Encoding>,
    /// Devices that it found, such as `cpu` or `gpu`.
    pub devices: Vec<ExecutionTarget>,
    /// The shared library that it was loaded from; `None` where it is built in or absent.
    pub library: Option<PathBuf>,
}

/// Why a model could not be loaded.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The engine is not there; the text says how to get it.
    #[error("backend `{backend}` is not available: {reason}")]
    Unavailable { backend: &'static str, reason: String },
    #[error("backend `{backend}` does not read {encoding} models")]
    Encoding { backend: &'static str, encoding: &'static str },
    /// The text says what is missing for the device.
    #[error("backend `{backend}` cannot run on `{target}`: {reason}")]
    Target { backend: &'static str, target: &'static str, reason: String },
    #[error("backend `{backend}` cannot load the model: {reason}")]
    Model { backend: &'static str, reason: String },
    #[error("the model file cannot be read: {0}")]
    Io(#[from] std::io::Error),
}

/// Why a run gave no outputs.
#[derive(Clone, Debug, Error)]
pub enum InferError {
    /// The caller's inputs do not fit the model.
    #[error("{0}")]
    InvalidInput(String),
    /// The run was cancelled, by its deadline or because its caller went away.
    #[error("the inference was cancelled")]
    Cancelled,
    /// The engine failed on inputs that fit the model.
    #[error("the inference failed: {0}")]
    Failed(String),
}

/// Tells a running inference that nobody waits for it any more.
///
/// Engines that can be stopped from outside register a hook; the others ask [`Cancel::is_raised`] between steps.
#[derive(Default)]
pub struct Cancel {
    raised: AtomicBool,
    deadline: Option<Instant>,
    hook: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl Cancel {
    /// A cancellation that raises itself, for those who ask, at `deadline`.
    pub fn at(deadline: Instant) -> Cancel {
        Cancel { deadline: Some(deadline), ..Cancel::default() }
    }

    /// Stops the run: runs the hook, if one is registered, on the calling thread.
    pub fn raise(&self) {
        if !self.raised.swap(true, Ordering::AcqRel)
            && let Some(hook) = self.slot().take()
        {
            hook();
        }
    }

    /// Whether the run is to stop.
    pub fn is_raised(&self) -> bool {
        self.raised.load(Ordering::Acquire)
            || self.deadline.is_some_and(|deadline| Instant::now() >= deadline)
    }

    /// The time until the deadline; `None` where there is none.
    pub fn remaining(&self) -> Option<Duration> {
        self.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()))
    }

    /// Has `hook` run when the cancellation is raised; at once if it was already. The hook runs under the
    /// lock that withdrawing takes: once the returned guard is dropped, the hook neither runs nor will run.
    #[must_use = "the hook is withdrawn when the guard is dropped"]
    pub fn hook(&self, hook: impl FnOnce() + Send + 'static) -> CancelHook<'_> {
        *self.slot() = Some(Box::new(hook));
        if self.raised.load(Ordering::Acquire)
            && let Some(hook) = self.slot().take()
        {
            hook();
        }
        CancelHook(self)
    }

    fn slot(&self) -> std::sync::MutexGuard<'_, Option<Box<dyn FnOnce() + Send>>> {
        self.hook.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Cancel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cancel").field("raised", &self.is_raised()).finish_non_exhaustive()
    }
}

/// Withdraws the hook of a [`Cancel`] when dropped.
pub struct CancelHook<'a>(&'a Cancel);

impl Drop for CancelHook<'_> {
    fn drop(&mut self) {
        self.0.slot().take();
    }
}
