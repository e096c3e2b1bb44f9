//! `tenon:function/responses`: answers of a function before its last one.

use tokio::sync::mpsc::Sender;

use super::bindings::tenon::function::responses::{Host, SendError};
use super::bindings::tenon::function::tensors::NamedTensor;
use crate::instance::state::State;
use crate::tensor::Tensor;

/// Where a function's answers go before its last one. As many as the channel holds wait for the caller; the function
/// waits with the next.
pub type Responses = Sender<Vec<(String, Tensor)>>;

impl Host for State {
    async fn send(&mut self, outputs: Vec<NamedTensor>) -> wasmtime::Result<Result<(), SendError>> {
        let outputs = self.take_named(outputs)?;
        let Some(responses) = &self.responses else { return Ok(Err(SendError::Single)) };
        Ok(responses.send(outputs).await.map_err(|_| SendError::Gone))
    }
}
