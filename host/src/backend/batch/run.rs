//! One run of a graph for the calls that were taken out of its queue.
//!
//! No answer can go to the wrong caller, because nothing is ever looked up: each [`Entry`] owns its inputs,
//! the number of its rows and the sender to its caller. A run owns its entries in one list. The inputs are
//! joined in the order of that list, the outputs are cut by the rows of that list, and the n-th answer goes
//! to the sender of the n-th entry.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use super::queue::Entry;
use super::{Place, Ran, Scheduler, Seats, join};
use crate::backend::pool::{Timed, run_timed};
use crate::backend::{Cancel, InferError};
use crate::tensor::Tensor;

/// The calls of one run; at least one.
pub(super) struct Run {
    members: Vec<Entry>,
    seats: Arc<Seats>,
    place: Place,
}

/// What the members of a run are answered, in their order.
struct Answers {
    each: Vec<Result<Vec<Tensor>, InferError>>,
    began: Instant,
    took: Duration,
}

impl Run {
    /// Seats the members. Must be called under the scheduler's lock, under which they were taken out of the
    /// queue: whoever leaves is either in the queue or has a seat.
    pub(super) fn new(members: Vec<Entry>, place: Place) -> Run {
        let latest = members.iter().map(|member| member.deadline).max();
        let cancel = latest.map_or_else(Cancel::default, Cancel::at);
        let seats = Arc::new(Seats { cancel, taken: AtomicUsize::new(members.len()) });
        for member in &members {
            *member.ticket.seats() = Some(Arc::clone(&seats));
        }
        Run { members, seats, place }
    }

    /// Computes, and answers the callers. Blocks: for a thread of the pool.
    pub(super) fn perform(self) {
        let Run { mut members, seats, mut place } = self;
        let now = Instant::now();
        members.retain(|member| !member.answer.is_closed() && member.deadline > now);
        let answers = match &mut members[..] {
            [] => return,
            [one] => Some(alone(&place.scheduler, one, &seats.cancel)),
            _ => together(&place.scheduler, &members, &seats.cancel),
        };
        let Some(Answers { each, began, took }) = answers else {
            place.again = members;
            return;
        };
        let rows = members.iter().map(Entry::count).sum();
        let callers: Vec<_> = members.into_iter().map(|member| (member.answer, member.arrived)).collect();
        // The graph goes first: whoever waits for it to be free must not see it in use by an ended run.
        drop(place);
        let mut leader = true;
        for ((answer, arrived), outputs) in callers.into_iter().zip(each) {
            let queue = began.saturating_duration_since(arrived);
            let ran = outputs.map(|outputs| Ran { outputs, queue, compute: took, rows, leader });
            // A caller that has gone since counts for nothing.
            leader &= answer.send(ran).is_err();
        }
    }
}

fn alone(scheduler: &Scheduler, member: &mut Entry, cancel: &Cancel) -> Answers {
    let inputs = std::mem::take(&mut member.inputs);
    let Timed { outputs, began, took } = run_timed(scheduler.graph(), inputs, cancel);
    if let Ok(outputs) = &outputs {
        scheduler.check_rows(member.rows, outputs);
    }
    Answers { each: vec![outputs], began, took }
}

/// The answers of a joined run; `None` where each member is to have a run of its own. The members keep their
/// inputs for that.
fn together(scheduler: &Scheduler, members: &[Entry], cancel: &Cancel) -> Option<Answers> {
    let calls: Vec<_> = members.iter().map(|member| &member.inputs[..]).collect();
    let inputs = join::join(&calls).ok()?;
    let Timed { outputs, began, took } = run_timed(scheduler.graph(), inputs, cancel);
    let each = match outputs {
        Ok(outputs) => {
            let rows: Vec<_> = members.iter().map(Entry::count).collect();
            match join::split(&outputs, &rows, &scheduler.graph().signature().outputs) {
                Ok(parts) => parts.into_iter().map(Ok).collect(),
                Err(reason) => {
                    scheduler.stop_joining(&reason);
                    return None;
                }
            }
        }
        Err(InferError::Cancelled) => members.iter().map(|_| Err(InferError::Cancelled)).collect(),
        // One of them may be at fault, or only all of them together.
        Err(InferError::Failed(_) | InferError::InvalidInput(_)) => return None,
    };
    Some(Answers { each, began, took })
}
