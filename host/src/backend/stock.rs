//! The second way to plug in an engine: any `wasmtime_wasi_nn::Backend` as a backend, and, for comparisons, a
//! graph of ours as one of wasmtime-wasi-nn's.
//!
//! Such backends tell nothing of a model. What it takes and gives is read from the file where that is ONNX, and
//! asked of [`Stock::with_signatures`] otherwise. They are synchronous and cannot be cancelled.

#[cfg(test)]
mod tests;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};

use wasmtime_wasi_nn::backend::{BackendError, BackendExecutionContext, BackendGraph, Id, NamedTensor};
use wasmtime_wasi_nn::wit::{ExecutionTarget as StockTarget, GraphEncoding, TensorType};

use super::{
    Backend, Cancel, Encoding, ExecutionTarget, Graph, InferError, LoadError, ModelFile, Port, Precision,
    Signature, Status, onnx, validate,
};
use crate::tensor::{Datatype, Tensor};

type StockTensor = wasmtime_wasi_nn::Tensor;
type Signatures = Box<dyn Fn(&ModelFile) -> Result<Signature, String> + Send + Sync>;

/// A backend written for wasmtime-wasi-nn.
pub struct Stock {
    name: &'static str,
    version: String,
    encoding: GraphEncoding,
    backend: Mutex<wasmtime_wasi_nn::Backend>,
    signatures: Option<Signatures>,
}

impl Stock {
    /// `version` changes whenever verdicts on models may no longer hold, see [`Backend::version`].
    pub fn new(name: &'static str, version: String, backend: wasmtime_wasi_nn::Backend) -> Stock {
        Stock { name, version, encoding: backend.encoding(), backend: Mutex::new(backend), signatures: None }
    }

    /// Has `signatures` say what a model takes and gives, in place of the ONNX file.
    #[must_use]
    pub fn with_signatures(
        mut self,
        signatures: impl Fn(&ModelFile) -> Result<Signature, String> + Send + Sync + 'static,
    ) -> Stock {
        self.signatures = Some(Box::new(signatures));
        self
    }

    fn encoding(&self) -> Option<Encoding> {
        match self.encoding {
            GraphEncoding::Onnx => Some(Encoding::Onnx),
            GraphEncoding::Openvino => Some(Encoding::Openvino),
            _ => None,
        }
    }

    fn accept(&self, model: &ModelFile) -> Result<(), LoadError> {
        let backend = self.name;
        if self.encoding() != Some(model.encoding) {
            return Err(LoadError::Encoding { backend, encoding: model.encoding.name() });
        }
        if model.target != ExecutionTarget::Cpu {
            let reason = "backends of wasmtime-wasi-nn may take the processor in silence instead".to_owned();
            return Err(LoadError::Target { backend, target: model.target.name(), reason });
        }
        if model.precision != Precision::F32 {
            let reason = "it cannot be asked for `bf16`".to_owned();
            return Err(LoadError::Model { backend, reason });
        }
        Ok(())
    }

    fn signature(&self, model: &ModelFile) -> Result<Signature, LoadError> {
        let refused = |reason| LoadError::Model { backend: self.name, reason };
        let signature = match (&self.signatures, model.encoding) {
            (Some(signatures), _) => signatures(model).map_err(refused)?,
            (None, Encoding::Onnx) => {
                onnx::declared(&model.path).map_err(|error| error.of(self.name))?.signature
            }
            (None, Encoding::Openvino) => {
                let reason = "it does not tell the inputs and outputs of a model, and only ONNX files do";
                return Err(refused(reason.to_owned()));
            }
        };
        let mut ports = signature.inputs.iter().chain(&signature.outputs);
        match ports.find(|port| to_stock_type(port.datatype).is_none()) {
            Some(Port { name, datatype, .. }) => {
                Err(refused(format!("wasi-nn has no {datatype}, the datatype of `{name}`")))
            }
            None => Ok(signature),
        }
    }
}

impl Backend for Stock {
    fn name(&self) -> &'static str {
        self.name
    }

    fn status(&self) -> Status {
        Status {
            available: Ok(()),
            version: self.version.clone(),
            encodings: self.encoding().into_iter().collect(),
            devices: vec![ExecutionTarget::Cpu],
            library: None,
        }
    }

    fn version(&self) -> String {
        self.version.clone()
    }

    fn load(&self, model: &ModelFile) -> Result<Arc<dyn Graph>, LoadError> {
        self.accept(model)?;
        let signature = self.signature(model)?;
        let mut files = vec![std::fs::read(&model.path)?];
        if let Some(weights) = &model.weights {
            files.push(std::fs::read(weights)?);
        }
        let files: Vec<&[u8]> = files.iter().map(Vec::as_slice).collect();
        let mut backend = self.backend.lock().unwrap_or_else(PoisonError::into_inner);
        match contained(|| backend.load(&files, StockTarget::Cpu).map_err(chain)) {
            Ok(graph) => Ok(Arc::new(Adapted { signature, graph })),
            Err(reason) => Err(LoadError::Model { backend: self.name, reason }),
        }
    }
}

/// A graph of wasmtime-wasi-nn's as one of ours.
struct Adapted {
    signature: Signature,
    graph: wasmtime_wasi_nn::Graph,
}

impl Graph for Adapted {
    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn run(&self, inputs: Vec<Tensor>, cancel: &Cancel) -> Result<Vec<Tensor>, InferError> {
        let inputs = self.signature.inputs.iter().zip(inputs);
        let inputs = inputs.map(|(port, tensor)| named(&port.name, &tensor));
        let inputs = inputs.collect::<Result<Vec<_>, _>>().map_err(InferError::InvalidInput)?;
        if cancel.is_raised() {
            return Err(InferError::Cancelled);
        }
        let outcome = contained(|| {
            let mut context = self.graph.init_execution_context().map_err(chain)?;
            context.compute_with_io(inputs).map_err(chain)
        });
        if cancel.is_raised() {
            return Err(InferError::Cancelled);
        }
        let mut given = outcome.map_err(InferError::Failed)?;
        let outputs = self.signature.outputs.iter().enumerate();
        outputs.map(|(index, port)| take(&mut given, index, port).map_err(InferError::Failed)).collect()
    }
}

/// The output of a port. Some backends give the position in place of the name.
fn take(given: &mut Vec<NamedTensor>, index: usize, port: &Port) -> Result<Tensor, String> {
    let position = given
        .iter()
        .position(|output| output.name == port.name)
        .or_else(|| given.iter().position(|output| output.name == index.to_string()))
        .ok_or_else(|| format!("the backend gives no output `{}`", port.name))?;
    let tensor = from_stock(given.swap_remove(position).tensor)?;
    if tensor.datatype() == port.datatype {
        Ok(tensor)
    } else {
        Err(format!("the output `{}` is {}, not {}", port.name, tensor.datatype(), port.datatype))
    }
}

/// One of our graphs as wasmtime-wasi-nn has them, so that its implementation of wasi-nn can run it too.
pub struct StockGraph(Arc<dyn Graph>);

impl StockGraph {
    /// The graph in the form that a `wasmtime_wasi_nn::GraphRegistry` holds.
    pub fn wrap(graph: Arc<dyn Graph>) -> wasmtime_wasi_nn::Graph {
        let graph: Box<dyn BackendGraph> = Box::new(StockGraph(graph));
        graph.into()
    }
}

impl BackendGraph for StockGraph {
    fn init_execution_context(&self) -> Result<wasmtime_wasi_nn::ExecutionContext, BackendError> {
        let context: Box<dyn BackendExecutionContext> =
            Box::new(Context { graph: self.0.clone(), inputs: Vec::new(), outputs: Vec::new() });
        Ok(context.into())
    }
}

/// An execution context over one of our graphs.
struct Context {
    graph: Arc<dyn Graph>,
    inputs: Vec<(String, Tensor)>,
    outputs: Vec<Tensor>,
}

impl Context {
    fn run(&self, inputs: Vec<(String, Tensor)>) -> Result<Vec<Tensor>, BackendError> {
        let inputs = validate::inputs(self.graph.signature(), inputs, usize::MAX).map_err(failure)?;
        self.graph.run(inputs, &Cancel::default()).map_err(failure)
    }
}

impl BackendExecutionContext for Context {
    fn set_input(&mut self, id: Id, tensor: &StockTensor) -> Result<(), BackendError> {
        let name = port(&self.graph.signature().inputs, &id)?.1.name.clone();
        let tensor = from_stock(tensor.clone()).map_err(failure)?;
        self.inputs.retain(|(other, _)| *other != name);
        self.inputs.push((name, tensor));
        Ok(())
    }

    fn get_output(&mut self, id: Id) -> Result<StockTensor, BackendError> {
        let (index, port) = port(&self.graph.signature().outputs, &id)?;
        let output = self.outputs.get(index).ok_or_else(|| failure("nothing was computed yet"))?;
        Ok(named(&port.name, output).map_err(failure)?.tensor)
    }

    fn compute(
        &mut self,
        inputs: Option<Vec<NamedTensor>>,
    ) -> Result<Option<Vec<NamedTensor>>, BackendError> {
        let Some(inputs) = inputs else {
            self.outputs = self.run(self.inputs.clone())?;
            return Ok(None);
        };
        let inputs = inputs.into_iter().map(|input| Ok((input.name, from_stock(input.tensor)?)));
        let outputs = self.run(inputs.collect::<Result<_, String>>().map_err(failure)?)?;
        let outputs = self.graph.signature().outputs.iter().zip(&outputs);
        outputs
            .map(|(port, tensor)| named(&port.name, tensor))
            .collect::<Result<_, _>>()
            .map(Some)
            .map_err(failure)
    }
}

fn port<'a>(ports: &'a [Port], id: &Id) -> Result<(usize, &'a Port), BackendError> {
    let mut ports = ports.iter().enumerate();
    let port = match id {
        Id::Index(index) => usize::try_from(*index).ok().and_then(|index| ports.nth(index)),
        Id::Name(name) => ports.find(|(_, port)| port.name == *name),
    };
    port.ok_or_else(|| failure(format!("the model has no {id:?}")))
}

fn failure(error: impl std::fmt::Display) -> BackendError {
    BackendError::BackendAccess(wasmtime::format_err!("{error}"))
}

/// The error with its causes: the outermost text of a `BackendError` says nothing.
fn chain(error: BackendError) -> String {
    match error {
        BackendError::BackendAccess(error) => format!("{error:#}"),
        other => other.to_string(),
    }
}

fn named(name: &str, tensor: &Tensor) -> Result<NamedTensor, String> {
    let Some(ty) = to_stock_type(tensor.datatype()) else {
        return Err(format!("wasi-nn has no {}, the datatype of `{name}`", tensor.datatype()));
    };
    let dims: Result<_, _> = tensor.shape().iter().map(|size| u32::try_from(*size)).collect();
    let dims = dims.map_err(|_| format!("`{name}` has a dimension that wasi-nn cannot say"))?;
    Ok(NamedTensor { name: name.to_owned(), tensor: StockTensor::new(dims, ty, tensor.data().to_vec()) })
}

fn from_stock(tensor: StockTensor) -> Result<Tensor, String> {
    let datatype = match tensor.ty {
        TensorType::Fp16 => Datatype::Fp16,
        TensorType::Fp32 => Datatype::Fp32,
        TensorType::Fp64 => Datatype::Fp64,
        TensorType::Bf16 => Datatype::Bf16,
        TensorType::U8 => Datatype::Uint8,
        TensorType::I32 => Datatype::Int32,
        TensorType::I64 => Datatype::Int64,
    };
    let shape = tensor.dimensions.iter().map(|size| *size as usize).collect();
    Tensor::new(datatype, shape, tensor.data.into()).map_err(|error| error.to_string())
}

fn to_stock_type(datatype: Datatype) -> Option<TensorType> {
    match datatype {
        Datatype::Fp16 => Some(TensorType::Fp16),
        Datatype::Fp32 => Some(TensorType::Fp32),
        Datatype::Fp64 => Some(TensorType::Fp64),
        Datatype::Bf16 => Some(TensorType::Bf16),
        Datatype::Uint8 => Some(TensorType::U8),
        Datatype::Int32 => Some(TensorType::I32),
        Datatype::Int64 => Some(TensorType::I64),
        _ => None,
    }
}

/// What `work` answers; a panic as a text. Backends of others panic on inputs that they do not expect.
fn contained<T>(work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().copied();
        let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
        Err(format!("the backend panicked: {}", text.unwrap_or("for no reason given")))
    })
}
