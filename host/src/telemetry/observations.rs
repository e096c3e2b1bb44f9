//! What the data plane notes of each call of a release while somebody watches it.

mod cells;
mod histogram;
mod tally;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use crate::tensor::Tensor;

use cells::Cells;
pub use cells::{EMPTY, HASHED, bucket, lower_edge, signed_bucket, signed_lower_edge};
pub use histogram::{BUCKETS_PER_DOUBLING, Histogram};
pub use tally::{Distribution, Tally};

/// The most outputs whose answers are followed; further ones are left out.
pub const MAX_OUTPUTS: usize = 16;

/// How a call ended. What went wrong before an instance of the function ran is no outcome and is not recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Success,
    /// The function's own error, an HTTP function's answer of 4xx, or input that a model does not take.
    Raised,
    /// An answer that cannot be used, an inference that failed, a model that is not there, an answer of 5xx.
    Error,
    Trap,
    /// Ended at its deadline or its limit of memory.
    LimitKill,
    /// The caller left while the call ran.
    Left,
}

/// The counters of one function of one release. Counting is a few atomic additions, and nothing at all while nobody
/// watches; memory is taken when somebody first does.
#[derive(Default)]
pub struct Observations {
    watched: AtomicBool,
    cells: OnceLock<Box<Cells>>,
    /// What was counted before the count began anew.
    before: Mutex<Tally>,
}

impl Observations {
    pub fn new() -> Observations {
        Observations::default()
    }

    /// Begins the count anew.
    pub fn begin(&self) {
        if let Some(cells) = self.cells.get() {
            *self.before.lock().unwrap_or_else(PoisonError::into_inner) = cells.read();
        }
    }

    /// Begins or ends the counting. What was counted stays.
    pub fn watch(&self, on: bool) {
        if on {
            self.cells.get_or_init(Box::default);
        }
        self.watched.store(on, Ordering::Relaxed);
    }

    /// Whether it is worth while to work out what [`Observations::output`] and its like are to be given.
    pub fn watched(&self) -> bool {
        self.watched.load(Ordering::Relaxed)
    }

    /// Counts a call: how it ended, how long it took, which is nothing where its caller has left the rest of its answer,
    /// and what memory its instance used, where that is known.
    pub fn record(&self, outcome: Outcome, took: Duration, memory_bytes: Option<u64>) {
        if let Some(cells) = self.cells() {
            cells.record(outcome, took, memory_bytes);
        }
    }

    /// Counts an answered tensor of a successful call: once for each output and call. Looks at some thousands of
    /// elements at most.
    pub fn output(&self, name: &str, tensor: &Tensor) {
        if let Some(cells) = self.cells() {
            cells.output(name, tensor);
        }
    }

    /// Counts what an HTTP function answered: its status, and how long its body was.
    pub fn body(&self, status: u16, bytes: u64) {
        if let Some(cells) = self.cells() {
            cells.body(status, bytes);
        }
    }

    /// What was counted since the count last began.
    pub fn read(&self) -> Tally {
        let Some(cells) = self.cells.get() else { return Tally::default() };
        let before = self.before.lock().unwrap_or_else(PoisonError::into_inner);
        cells.read().since(&before)
    }

    fn cells(&self) -> Option<&Cells> {
        if self.watched() { self.cells.get().map(Box::as_ref) } else { None }
    }
}

#[cfg(test)]
mod tests;
