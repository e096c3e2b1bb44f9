//! A second built-in backend: ONNX models run by rten, which builds and loads faster than tract.
//!
//! rten computes INT64 and BOOL in 32-bit integers: INT64 inputs beyond them are refused. A run cannot be
//! stopped: a cancelled one ends when it ends, and only then answers that it was cancelled.

#[cfg(test)]
mod tests;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};

use ::rten::{Model, NodeId, RunOptions, ThreadPool, Value};
use bytes::Bytes;
use rten_tensor::Layout as _;

use super::onnx::{self, Declared};
use super::{
    Backend, Cancel, Encoding, ExecutionTarget, Graph, InferError, LoadError, ModelFile, Port, Signature,
    Status,
};
use crate::tensor::{Datatype, Tensor};

const NAME: &str = "rten";

/// The version of the rten crate in `Cargo.lock`; a test compares the two.
const VERSION: &str = "0.27.0";

/// rten, built into the host.
#[derive(Debug, Default)]
pub struct Rten;

impl Rten {
    pub fn new() -> Rten {
        Rten
    }
}

impl Backend for Rten {
    fn name(&self) -> &'static str {
        NAME
    }

    fn status(&self) -> Status {
        Status {
            available: Ok(()),
            version: VERSION.to_owned(),
            encodings: vec![Encoding::Onnx],
            devices: vec![ExecutionTarget::Cpu],
            library: None,
        }
    }

    fn version(&self) -> String {
        format!("{VERSION} {}", std::env::consts::ARCH)
    }

    fn load(&self, model: &ModelFile) -> Result<Arc<dyn Graph>, LoadError> {
        onnx::accept(NAME, model)?;
        // rten takes an empty file for an empty model, and one cut short for a whole one; this does not.
        let declared = onnx::declared(&model.path).map_err(|error| error.of(NAME))?;
        declared.check(NAME, can)?;
        let bytes = std::fs::read(&model.path)?;
        let refused = |reason| LoadError::Model { backend: NAME, reason };
        let model = contained(|| Model::load(bytes).map_err(|error| error.to_string())).map_err(refused)?;
        let ids =
            |ports: &[Port]| ports.iter().map(|port| node(&model, &port.name)).collect::<Result<_, _>>();
        let inputs = ids(&declared.signature.inputs)?;
        let outputs = ids(&declared.signature.outputs)?;
        Ok(Arc::new(RtenGraph { declared, inputs, outputs, model, idle: Mutex::default() }))
    }
}

fn can(datatype: Datatype) -> bool {
    matches!(
        datatype,
        Datatype::Bool
            | Datatype::Uint8
            | Datatype::Int8
            | Datatype::Int32
            | Datatype::Int64
            | Datatype::Fp32
    )
}

fn node(model: &Model, name: &str) -> Result<NodeId, LoadError> {
    let reason = || format!("nothing in the graph is called `{name}`");
    model.find_node(name).ok_or_else(|| LoadError::Model { backend: NAME, reason: reason() })
}

struct RtenGraph {
    declared: Declared,
    inputs: Vec<NodeId>,
    outputs: Vec<NodeId>,
    model: Model,
    /// One thread for each caller that ever ran at the same time: callers that share a pool would wait for
    /// one another.
    idle: Mutex<Vec<Arc<ThreadPool>>>,
}

impl Graph for RtenGraph {
    fn signature(&self) -> &Signature {
        &self.declared.signature
    }

    fn run(&self, inputs: Vec<Tensor>, cancel: &Cancel) -> Result<Vec<Tensor>, InferError> {
        let shapes: Vec<_> = inputs.iter().map(|tensor| tensor.shape().to_vec()).collect();
        self.declared.same_symbols(&shapes).map_err(InferError::InvalidInput)?;
        let ports = &self.declared.signature;
        let values = inputs.into_iter().zip(&ports.inputs).map(|(tensor, port)| from_tenon(&tensor, port));
        let values = values.collect::<Result<Vec<_>, _>>()?;
        if cancel.is_raised() {
            return Err(InferError::Cancelled);
        }
        let outcome = self.compute(values);
        if cancel.is_raised() {
            return Err(InferError::Cancelled);
        }
        let outputs = outcome.map_err(InferError::Failed)?.into_iter().zip(&ports.outputs);
        outputs
            .map(|(value, port)| to_tenon(value, port))
            .collect::<Result<_, _>>()
            .map_err(InferError::Failed)
    }
}

impl RtenGraph {
    fn compute(&self, values: Vec<Value>) -> Result<Vec<Value>, String> {
        let idle = || self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let pool = idle().pop().unwrap_or_else(|| Arc::new(ThreadPool::with_num_threads(1)));
        let inputs = self.inputs.iter().copied().zip(values.into_iter().map(Into::into)).collect();
        let options = RunOptions::default().with_thread_pool(Some(pool.clone()));
        let outcome = contained(|| {
            self.model.run(inputs, &self.outputs, Some(options)).map_err(|error| error.to_string())
        });
        idle().push(pool);
        outcome
    }
}

fn from_tenon(tensor: &Tensor, port: &Port) -> Result<Value, InferError> {
    let (shape, data) = (tensor.shape(), tensor.data());
    let value = match tensor.datatype() {
        Datatype::Fp32 => Value::from_shape(shape, numbers(data, f32::from_le_bytes)).map_err(text),
        Datatype::Int32 => Value::from_shape(shape, numbers(data, i32::from_le_bytes)).map_err(text),
        Datatype::Int8 => Value::from_shape(shape, numbers(data, i8::from_le_bytes)).map_err(text),
        Datatype::Uint8 => Value::from_shape(shape, data.to_vec()).map_err(text),
        Datatype::Bool => Value::from_shape(shape, numbers(data, |[byte]| i32::from(byte))).map_err(text),
        Datatype::Int64 => Value::from_shape(shape, narrowed(data, port)?).map_err(text),
        other => Err(format!("{NAME} has no {other} tensors")),
    };
    value.map_err(InferError::Failed)
}

fn text(error: impl std::error::Error) -> String {
    error.to_string()
}

fn numbers<T, const SIZE: usize>(data: &[u8], number: impl Fn([u8; SIZE]) -> T) -> Vec<T> {
    data.as_chunks::<SIZE>().0.iter().map(|bytes| number(*bytes)).collect()
}

fn narrowed(data: &[u8], port: &Port) -> Result<Vec<i32>, InferError> {
    let wide = data.as_chunks::<8>().0.iter().map(|bytes| i64::from_le_bytes(*bytes));
    wide.map(|number| {
        i32::try_from(number).map_err(|_| {
            let name = &port.name;
            InferError::InvalidInput(format!(
                "input `{name}` has the value {number}, but backend `{NAME}` computes INT64 in 32 bits"
            ))
        })
    })
    .collect()
}

fn to_tenon(value: Value, port: &Port) -> Result<Tensor, String> {
    let shape = value.shape().to_vec();
    let computed = value.dtype();
    let data: Option<Vec<u8>> = match port.datatype {
        Datatype::Fp32 => value.into_tensor::<f32>().map(|t| bytes(t.into_data(), f32::to_le_bytes)),
        Datatype::Int32 => value.into_tensor::<i32>().map(|t| bytes(t.into_data(), i32::to_le_bytes)),
        Datatype::Int8 => value.into_tensor::<i8>().map(|t| bytes(t.into_data(), i8::to_le_bytes)),
        Datatype::Uint8 => value.into_tensor::<u8>().map(|t| t.into_data()),
        Datatype::Bool => value.into_tensor::<i32>().map(|t| bytes(t.into_data(), |n| [u8::from(n != 0)])),
        Datatype::Int64 => {
            value.into_tensor::<i32>().map(|t| bytes(t.into_data(), |n| i64::from(n).to_le_bytes()))
        }
        _ => None,
    };
    let data = data.ok_or_else(|| {
        format!("{NAME} gives {computed} for the output `{}`, which is {}", port.name, port.datatype)
    })?;
    Tensor::new(port.datatype, shape, Bytes::from(data)).map_err(text)
}

fn bytes<T, const SIZE: usize>(numbers: Vec<T>, bytes: impl Fn(T) -> [u8; SIZE]) -> Vec<u8> {
    numbers.into_iter().flat_map(bytes).collect()
}

/// What `work` answers; a panic as a text.
fn contained<T>(work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    // Unwind safety: what `work` shares with later calls is a model, which a run only reads.
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().copied();
        let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
        Err(format!("{NAME} panicked: {}", text.unwrap_or("for no reason given")))
    })
}
