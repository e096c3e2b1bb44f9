//! `tenon:function/responses`: answers of a function before its last one.

use std::sync::Arc;

use tokio::sync::mpsc::{Receiver, Sender};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::bindings::tenon::function::responses::{Host, SendError};
use super::bindings::tenon::function::tensors::NamedTensor;
use crate::instance::state::State;
use crate::tensor::Tensor;

/// Where a function's answers go before its last one. As many as there is room for wait for the caller; the function
/// waits with the next, and its tensors count as its memory meanwhile.
#[derive(Clone)]
pub struct Responses {
    to: Sender<Sent>,
    room: Arc<Semaphore>,
    pages: u32,
}

/// An answer on its way, and its part of the room, which is given back when it is written.
pub struct Sent {
    pub outputs: Vec<(String, Tensor)>,
    pub room: OwnedSemaphorePermit,
}

/// Bytes are counted in pages, for a semaphore counts to 2^29 on small machines.
const PAGE: usize = 4096;

/// A way on which `count` answers of `bytes` together may wait; a longer one has it for itself.
pub fn channel(count: usize, bytes: usize) -> (Responses, Receiver<Sent>) {
    let (to, from) = tokio::sync::mpsc::channel(count);
    let pages = u32::try_from(bytes.div_ceil(PAGE)).unwrap_or(u32::MAX).clamp(1, u32::MAX >> 4);
    (Responses { to, room: Arc::new(Semaphore::new(pages as usize)), pages }, from)
}

impl Host for State {
    async fn send(&mut self, outputs: Vec<NamedTensor>) -> wasmtime::Result<Result<(), SendError>> {
        let Some(responses) = self.responses.clone() else {
            self.take_named(outputs)?;
            return Ok(Err(SendError::Single));
        };
        let mut bytes = 0;
        for named in &outputs {
            bytes += self.table.get(&named.tensor)?.0.data().len();
        }
        let pages = u32::try_from(bytes.div_ceil(PAGE)).unwrap_or(u32::MAX).clamp(1, responses.pages);
        let room = Arc::clone(&responses.room).acquire_many_owned(pages);
        let room = room.await.expect("the semaphore is never closed");
        let outputs = self.take_named(outputs)?;
        Ok(responses.to.send(Sent { outputs, room }).await.map_err(|_| SendError::Gone))
    }
}
