//! `tenon:function/models`: granted models, for every datatype.

use wasmtime::component::Resource;

use super::bindings::tenon::function::models::{self, ErrorCode};
use super::bindings::tenon::function::tensors::{NamedTensor, TensorMetadata};
use super::tensors::{HostTensor, OVER_MEMORY};
use super::{Held, NamedError};
use crate::backend::residency::{AcquireError, RunError};
use crate::backend::{InferError, Port};
use crate::instance::state::State;
use crate::tensor::Tensor;

/// A granted model in an instance's table.
pub struct HostModel(Held);

impl models::Host for State {}

impl models::HostModel for State {
    async fn load(&mut self, name: String) -> wasmtime::Result<Result<Resource<HostModel>, models::Error>> {
        match self.nn.hold(&name).await {
            Ok(held) => Ok(Ok(self.table.push(HostModel(held))?)),
            Err(error) => Ok(Err(named_error(&error))),
        }
    }

    fn metadata(&mut self, model: Resource<HostModel>) -> wasmtime::Result<models::Metadata> {
        let lease = &self.table.get(&model)?.0.lease;
        let signature = lease.signature();
        Ok(models::Metadata {
            inputs: signature.inputs.iter().map(port).collect(),
            outputs: signature.outputs.iter().map(port).collect(),
            backend: lease.backend().to_owned(),
        })
    }

    async fn infer(
        &mut self,
        model: Resource<HostModel>,
        inputs: Vec<(String, Resource<HostTensor>)>,
    ) -> wasmtime::Result<Result<Vec<NamedTensor>, models::Error>> {
        // A clone shares the bytes.
        let inputs = inputs.into_iter().map(|(name, tensor)| Ok((name, self.table.get(&tensor)?.0.clone())));
        let inputs = inputs.collect::<wasmtime::Result<Vec<_>>>()?;
        let held = &self.table.get(&model)?.0;
        let outputs = match self.nn.infer(held, inputs).await {
            Ok(outputs) => outputs,
            Err(error) => return Ok(Err(run_error(&error))),
        };
        let names: Vec<_> = held.lease.signature().outputs.iter().map(|port| port.name.clone()).collect();
        // All or nothing: outputs that the guest never hears of would stay in its table.
        let total = outputs.iter().map(|output| output.data().len()).sum();
        if !self.limits.charge(total) {
            return Ok(Err(models::Error { code: ErrorCode::TooLarge, message: OVER_MEMORY.to_owned() }));
        }
        let named = names
            .into_iter()
            .zip(outputs)
            .map(|(name, output)| Ok(NamedTensor { name, tensor: self.table.push(HostTensor(output))? }));
        Ok(Ok(named.collect::<wasmtime::Result<_>>()?))
    }

    fn drop(&mut self, model: Resource<HostModel>) -> wasmtime::Result<()> {
        self.table.delete(model)?;
        Ok(())
    }
}

impl State {
    /// Takes the tensors that a guest hands over out of the table.
    ///
    /// # Errors
    /// Where the guest no longer has one.
    pub fn take_named(&mut self, named: Vec<NamedTensor>) -> wasmtime::Result<Vec<(String, Tensor)>> {
        named.into_iter().map(|named| Ok((named.name, self.take_tensor(named.tensor)?))).collect()
    }
}

fn port(port: &Port) -> TensorMetadata {
    TensorMetadata {
        name: port.name.clone(),
        datatype: port.datatype.into(),
        shape: metadata_shape(port.shape.as_deref().unwrap_or_default()),
    }
}

/// A shape as metadata tells it: -1 for a dimension that the caller chooses.
pub fn metadata_shape(shape: &[Option<usize>]) -> Vec<i64> {
    shape.iter().map(|dim| dim.map_or(-1, |dim| i64::try_from(dim).unwrap_or(i64::MAX))).collect()
}

fn named_error(error: &NamedError) -> models::Error {
    match error {
        NamedError::NotFound(name) => models::Error {
            code: ErrorCode::NotFound,
            message: format!("the function was not granted a model named `{name}`"),
        },
        NamedError::Acquire(error) => models::Error {
            code: match error {
                AcquireError::OverBudget { .. } => ErrorCode::TooLarge,
                AcquireError::Load(_) | AcquireError::Panicked(_) | AcquireError::TooSlow(_) => {
                    ErrorCode::Unavailable
                }
            },
            message: error.to_string(),
        },
    }
}

fn run_error(error: &RunError) -> models::Error {
    models::Error {
        code: match error {
            RunError::Input(_) | RunError::Infer(InferError::InvalidInput(_)) => ErrorCode::InvalidInput,
            RunError::Infer(InferError::Cancelled) | RunError::Queue(_) => ErrorCode::Timeout,
            RunError::Infer(InferError::Failed(_)) | RunError::Outputs { .. } => ErrorCode::Failed,
        },
        message: error.to_string(),
    }
}
