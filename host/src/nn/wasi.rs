//! `wasi:nn`, release candidate of 2024-10-28.

use std::sync::Arc;

use bytes::Bytes;
use wasmtime::StoreContextMut;
use wasmtime::component::{Linker, Resource};

use super::bindings::wasi::nn::errors::{self, ErrorCode};
use super::bindings::wasi::nn::graph::{self, ExecutionTarget, GraphEncoding};
use super::bindings::wasi::nn::inference;
use super::bindings::wasi::nn::tensor::{self, TensorType};
use super::tensors::OVER_MEMORY;
use super::{GuestModel, Held, NamedError};
use crate::backend::residency::{AcquireError, RunError};
use crate::backend::{self, Encoding, InferError};
use crate::instance::state::State;
use crate::tensor::{Datatype, Tensor, TensorError};

/// A wasi:nn tensor. Its constructor cannot fail, so data and shape are checked where it is used.
pub struct NnTensor {
    dimensions: Vec<u32>,
    ty: TensorType,
    data: Bytes,
}

/// A granted model whose graph is in memory.
#[derive(Clone)]
pub struct NnGraph(Arc<Held>);

/// A graph to run. wasi:nn binds no inputs to it beforehand.
pub struct NnContext(Arc<Held>);

/// An error that a guest can ask about.
#[derive(Debug)]
pub struct NnError {
    code: ErrorCode,
    data: String,
}

type Answer<T> = wasmtime::Result<Result<T, Resource<NnError>>>;

impl NnTensor {
    /// What the host holds for it.
    fn bytes(&self) -> usize {
        self.data.len() + self.dimensions.len() * size_of::<u32>()
    }

    /// # Errors
    /// Where the data does not agree with dimensions and type.
    pub fn checked(self) -> Result<Tensor, TensorError> {
        let shape = self.dimensions.iter().map(|dim| *dim as usize).collect();
        Tensor::new(datatype(self.ty), shape, self.data)
    }
}

impl TryFrom<Tensor> for NnTensor {
    type Error = String;

    /// Shares the bytes of the tensor.
    fn try_from(tensor: Tensor) -> Result<NnTensor, String> {
        let ty = tensor_type(tensor.datatype())
            .ok_or_else(|| format!("wasi:nn has no tensor type for {}", tensor.datatype()))?;
        let dimensions = tensor.shape().iter().map(|dim| u32::try_from(*dim)).collect::<Result<_, _>>();
        let dimensions = dimensions.map_err(|_| "wasi:nn has no dimensions beyond 32 bits".to_owned())?;
        Ok(NnTensor { dimensions, ty, data: tensor.into_data() })
    }
}

impl State {
    /// Puts a tensor into the table; `None` where the instance's memory limit forbids it.
    ///
    /// # Errors
    /// Where the table is full.
    pub fn push_nn(&mut self, tensor: NnTensor) -> wasmtime::Result<Option<Resource<NnTensor>>> {
        if !self.limits.charge(tensor.bytes()) {
            return Ok(None);
        }
        Ok(Some(self.table.push(tensor)?))
    }

    /// Takes a tensor out of the table.
    ///
    /// # Errors
    /// Where the guest no longer has it.
    pub fn take_nn(&mut self, tensor: Resource<NnTensor>) -> wasmtime::Result<NnTensor> {
        let tensor = self.table.delete(tensor)?;
        self.limits.release(tensor.bytes());
        Ok(tensor)
    }

    fn nn_error<T>(&mut self, code: ErrorCode, data: impl Into<String>) -> Answer<T> {
        // It may quote a name of the guest's, which has no bound of its own.
        const LONGEST: usize = 4096;
        let mut data = data.into();
        data.truncate(data.floor_char_boundary(LONGEST));
        data.shrink_to_fit();
        Ok(Err(self.table.push(NnError { code, data })?))
    }
}

impl tensor::Host for State {}

impl tensor::HostTensor for State {
    fn new(
        &mut self,
        dimensions: Vec<u32>,
        ty: TensorType,
        data: Vec<u8>,
    ) -> wasmtime::Result<Resource<NnTensor>> {
        let tensor = NnTensor { dimensions, ty, data: Bytes::from(data) };
        self.push_nn(tensor)?.ok_or_else(|| wasmtime::format_err!("{OVER_MEMORY}"))
    }

    fn dimensions(&mut self, tensor: Resource<NnTensor>) -> wasmtime::Result<Vec<u32>> {
        Ok(self.table.get(&tensor)?.dimensions.clone())
    }

    fn ty(&mut self, tensor: Resource<NnTensor>) -> wasmtime::Result<TensorType> {
        Ok(self.table.get(&tensor)?.ty)
    }

    fn data(&mut self, tensor: Resource<NnTensor>) -> wasmtime::Result<Vec<u8>> {
        Ok(self.table.get(&tensor)?.data.to_vec())
    }

    fn drop(&mut self, tensor: Resource<NnTensor>) -> wasmtime::Result<()> {
        self.take_nn(tensor).map(drop)
    }
}

/// Links `data` so that it copies straight from the tensor into the guest.
pub fn link_data(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    linker.instance("wasi:nn/tensor@0.2.0-rc-2024-10-28")?.func_wrap(
        "[method]tensor.data",
        |store: StoreContextMut<'_, State>, (tensor,): (Resource<NnTensor>,)| {
            Ok((store.data().table.get(&tensor)?.data.clone(),))
        },
    )
}

impl graph::Host for State {
    async fn load(
        &mut self,
        parts: Vec<Vec<u8>>,
        encoding: GraphEncoding,
        target: ExecutionTarget,
    ) -> Answer<Resource<NnGraph>> {
        if !self.nn.takes_guest_models() {
            let reason = "this host does not load models that guests bring; grant the model in the manifest and use \
                          load-by-name";
            return self.nn_error(ErrorCode::Security, reason);
        }
        let (encoding, expected) = match encoding {
            GraphEncoding::Onnx => (Encoding::Onnx, 1),
            GraphEncoding::Openvino => (Encoding::Openvino, 2),
            _ => return self.nn_error(ErrorCode::InvalidEncoding, "only onnx and openvino are read here"),
        };
        if parts.len() != expected {
            let reason = format!("{} models come in {expected} parts, not {}", encoding.name(), parts.len());
            return self.nn_error(ErrorCode::InvalidArgument, reason);
        }
        let target = match target {
            ExecutionTarget::Cpu => backend::ExecutionTarget::Cpu,
            ExecutionTarget::Gpu => backend::ExecutionTarget::Gpu,
            ExecutionTarget::Tpu => {
                return self.nn_error(ErrorCode::UnsupportedOperation, "there is no TPU here");
            }
        };
        match self.nn.bring(GuestModel { parts, encoding, target }).await {
            Ok(held) => Ok(Ok(self.table.push(NnGraph(Arc::new(held)))?)),
            Err(reason) => self.nn_error(ErrorCode::RuntimeError, reason),
        }
    }

    async fn load_by_name(&mut self, name: String) -> Answer<Resource<NnGraph>> {
        match self.nn.hold(&name).await {
            Ok(held) => Ok(Ok(self.table.push(NnGraph(Arc::new(held)))?)),
            Err(NamedError::NotFound(name)) => self.nn_error(
                ErrorCode::NotFound,
                format!("the function was not granted a model named `{name}`"),
            ),
            Err(NamedError::Acquire(error)) => {
                let code = match error {
                    AcquireError::OverBudget { .. } => ErrorCode::TooLarge,
                    AcquireError::Load(_) | AcquireError::Panicked(_) | AcquireError::TooSlow(_) => {
                        ErrorCode::RuntimeError
                    }
                };
                self.nn_error(code, error.to_string())
            }
        }
    }
}

impl graph::HostGraph for State {
    fn init_execution_context(&mut self, graph: Resource<NnGraph>) -> Answer<Resource<NnContext>> {
        let held = Arc::clone(&self.table.get(&graph)?.0);
        Ok(Ok(self.table.push(NnContext(held))?))
    }

    fn drop(&mut self, graph: Resource<NnGraph>) -> wasmtime::Result<()> {
        self.table.delete(graph)?;
        Ok(())
    }
}

impl inference::Host for State {}

impl inference::HostGraphExecutionContext for State {
    async fn compute(
        &mut self,
        context: Resource<NnContext>,
        inputs: Vec<(String, Resource<NnTensor>)>,
    ) -> Answer<Vec<(String, Resource<NnTensor>)>> {
        let held = Arc::clone(&self.table.get(&context)?.0);
        let mut checked = Vec::with_capacity(inputs.len());
        let mut refused = None;
        for (name, tensor) in inputs {
            // All of them are taken: they were handed over, whatever becomes of the call.
            match self.take_nn(tensor)?.checked() {
                Ok(tensor) => checked.push((name, tensor)),
                Err(error) => refused = refused.or(Some(format!("input `{name}`: {error}"))),
            }
        }
        if let Some(refused) = refused {
            return self.nn_error(ErrorCode::InvalidArgument, refused);
        }
        let outputs = match self.nn.infer(&held, checked).await {
            Ok(outputs) => outputs,
            Err(error) => return self.nn_error(run_code(&error), error.to_string()),
        };
        let ports = held.lease.signature().outputs.iter();
        let mut converted = Vec::with_capacity(outputs.len());
        for (port, output) in ports.zip(outputs) {
            match NnTensor::try_from(output) {
                Ok(output) => converted.push((port.name.clone(), output)),
                Err(reason) => {
                    let reason = format!("output `{}`: {reason}; use tenon:function/models", port.name);
                    return self.nn_error(ErrorCode::UnsupportedOperation, reason);
                }
            }
        }
        // All or nothing: outputs that the guest never hears of would stay in its table.
        if !self.limits.charge(converted.iter().map(|(_, output)| output.bytes()).sum()) {
            return self.nn_error(ErrorCode::TooLarge, OVER_MEMORY);
        }
        let named = converted.into_iter().map(|(name, output)| Ok((name, self.table.push(output)?)));
        Ok(Ok(named.collect::<wasmtime::Result<_>>()?))
    }

    fn drop(&mut self, context: Resource<NnContext>) -> wasmtime::Result<()> {
        self.table.delete(context)?;
        Ok(())
    }
}

impl errors::Host for State {}

impl errors::HostError for State {
    fn code(&mut self, error: Resource<NnError>) -> wasmtime::Result<ErrorCode> {
        Ok(self.table.get(&error)?.code)
    }

    fn data(&mut self, error: Resource<NnError>) -> wasmtime::Result<String> {
        Ok(self.table.get(&error)?.data.clone())
    }

    fn drop(&mut self, error: Resource<NnError>) -> wasmtime::Result<()> {
        self.table.delete(error)?;
        Ok(())
    }
}

fn run_code(error: &RunError) -> ErrorCode {
    match error {
        RunError::Input(_) | RunError::Infer(InferError::InvalidInput(_)) => ErrorCode::InvalidArgument,
        RunError::Infer(InferError::Cancelled) | RunError::Queue(_) => ErrorCode::Timeout,
        RunError::Infer(InferError::Failed(_)) | RunError::Outputs { .. } => ErrorCode::RuntimeError,
    }
}

fn datatype(ty: TensorType) -> Datatype {
    match ty {
        TensorType::Fp16 => Datatype::Fp16,
        TensorType::Fp32 => Datatype::Fp32,
        TensorType::Fp64 => Datatype::Fp64,
        TensorType::Bf16 => Datatype::Bf16,
        TensorType::U8 => Datatype::Uint8,
        TensorType::I32 => Datatype::Int32,
        TensorType::I64 => Datatype::Int64,
    }
}

fn tensor_type(datatype: Datatype) -> Option<TensorType> {
    Some(match datatype {
        Datatype::Fp16 => TensorType::Fp16,
        Datatype::Fp32 => TensorType::Fp32,
        Datatype::Fp64 => TensorType::Fp64,
        Datatype::Bf16 => TensorType::Bf16,
        Datatype::Uint8 => TensorType::U8,
        Datatype::Int32 => TensorType::I32,
        Datatype::Int64 => TensorType::I64,
        _ => return None,
    })
}
