//! Whose turn it is on a graph: a bounded number of runs at once, a bounded queue, and calls joined into
//! batches.
//!
//! Every graph has one `Scheduler`, which stands between the check of a call's inputs and the pool.
//!
//! **Places.** At most as many runs as the model's `concurrency`, and never more than the pool has threads,
//! are under way at once: what waits, waits here, where it can be ordered, joined and withdrawn. A call that
//! finds a place free runs at once and touches no queue.
//!
//! **Order.** Where several owners' calls wait, the owners take turns, a run each. Among the calls of one
//! owner the higher priority goes first, and within a priority who came first. So no owner can be starved by
//! another, however high the priorities that its callers ask for; an owner's own low priorities can be
//! starved by its high ones, and then end at their deadlines. A call that is past its deadline, or that
//! nobody waits for any more, is never computed.
//!
//! **Batches.** Calls of one owner whose model asks for batching, and whose inputs differ in their first
//! dimension at most, are joined along it, run once, and split. Calls of different owners never meet in a
//! batch. A call that finds nothing of its graph under way runs at once. Otherwise it waits until there are
//! `max_size` rows, until it has waited `max_delay` and a place is free, or until any run of the graph ends,
//! whichever is first: a place that a run leaves never stays empty while somebody waits.
//!
//! **Bounds.** An owner's calls that wait at a graph are at most its `queue_length`. The bytes that they hold
//! need no bound of their own: a call that waits is an instance that is alive, and its inputs count against
//! the memory of that instance. A batch holds its inputs a second time while it runs, and so many batches as
//! there are places run.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use thiserror::Error;
use tokio::sync::oneshot;

use self::queue::{Entry, Policy, Queue, Rank};
use self::run::Run;
use self::timer::Timer;
use super::brisk::Paced;
use super::pool::{Pool, QueueFull};
use super::validate::InputError;
use super::{Cancel, Graph, InferError, Precision, Priority};
use crate::tensor::Tensor;

mod join;
mod queue;
mod rows;
mod run;
#[cfg(test)]
mod tests;
pub(super) mod timer;

pub use self::rows::{check_batchable, rows_are_independent};

/// How calls of a model are joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batching {
    /// The most rows of a batch, 2 to 1024; a call that has more runs alone.
    pub max_size: usize,
    /// The longest that a call waits for others while a place is free, if it has at least twice as long in
    /// all.
    pub max_delay: Duration,
}

/// What a caller says of one call.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    pub deadline: Instant,
    pub priority: Priority,
}

impl Priority {
    /// The level of calls that ask for none: the urgent may ask for 1, what can wait for 3 and up.
    pub const USUAL: Priority = Priority(2);
    /// The level of calls that nobody waits for.
    pub const LAST: Priority = Priority(u32::MAX);

    fn level(self) -> u32 {
        if self.0 == 0 { Priority::USUAL.0 } else { self.0 }
    }
}

/// What a call was answered, and how it was run.
#[derive(Debug)]
pub struct Ran {
    /// In the signature's order.
    pub outputs: Vec<Tensor>,
    /// From the call to the moment when the backend began.
    pub queue: Duration,
    /// The time that the backend took, for the whole batch.
    pub compute: Duration,
    /// The rows of the whole batch; 1 for models without batching.
    pub rows: usize,
    /// Whether the run counts as this call's: true for exactly one of the calls that shared it.
    pub leader: bool,
}

/// Why an inference gave no outputs.
#[derive(Debug, Clone, Error)]
pub enum RunError {
    #[error(transparent)]
    Input(#[from] InputError),
    #[error(transparent)]
    Infer(#[from] InferError),
    #[error(transparent)]
    Queue(#[from] Overloaded),
    /// The backend broke its own signature.
    #[error("the backend answered {actual} outputs where the model has {expected}")]
    Outputs { expected: usize, actual: usize },
}

/// Too many wait already.
#[derive(Debug, Clone, Error)]
pub enum Overloaded {
    #[error(transparent)]
    Host(#[from] QueueFull),
    #[error(
        "{0} inferences wait for the model already; send fewer at once, or raise its `queue_length` in spin.toml"
    )]
    Model(usize),
}

/// Whose calls they are, and what holds for them all.
#[derive(Clone, Debug)]
pub(super) struct Lane {
    /// The app: only calls of one owner are joined.
    pub(super) owner: Arc<str>,
    pub(super) batching: Option<Batching>,
    /// The most calls of the owner that wait at the graph.
    pub(super) queue_length: usize,
}

/// What keeps a graph in memory for as long as a call of it waits or runs.
pub(super) type Hold = Arc<dyn Send + Sync>;

/// How a scheduler calls its graph in the log, and how exact its answers are.
pub(super) struct About {
    pub(super) digest: String,
    pub(super) backend: &'static str,
    pub(super) precision: Precision,
}

/// Decides when which calls of one graph run.
pub(super) struct Scheduler {
    graph: Arc<Paced>,
    pool: Arc<Pool>,
    timer: Arc<Timer>,
    about: About,
    /// How many runs may be under way at once.
    places: usize,
    few_shapes: bool,
    state: Mutex<State>,
}

struct State {
    running: usize,
    queue: Queue,
    joins: Joins,
    /// When the timer is to look at the queue.
    alarm: Option<Instant>,
}

/// Whether calls may be joined.
enum Joins {
    /// No two calls that may be joined have met yet: a cold start is not the time to find out.
    Unknown,
    /// It is to be tried out whether rows are independent, as soon as a place is free. Until then calls run
    /// alone.
    Asked(Hold),
    /// It is being tried out.
    Trying,
    Yes,
    /// Rows are not independent, or outputs have no rows.
    No,
}

/// What is to be done once the lock is free again.
#[must_use = "runs that are not started are lost"]
#[derive(Default)]
struct Next {
    runs: Vec<Run>,
    trial: Option<(Place, Hold)>,
    /// The alarm before, and the one to set.
    alarm: Option<(Option<Instant>, Instant)>,
}

/// The right to one run of the graph; the next ones start when it is dropped.
struct Place {
    scheduler: Arc<Scheduler>,
    /// Calls that are to run once more, each alone.
    again: Vec<Entry>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let again = std::mem::take(&mut self.again);
        self.scheduler.release(again);
    }
}

enum Turn {
    Now(Place, Vec<Tensor>),
    Later(Waiting),
}

impl Scheduler {
    /// A scheduler of at most `concurrency` runs at once.
    pub(super) fn new(
        graph: Paced,
        concurrency: usize,
        pool: Arc<Pool>,
        timer: Arc<Timer>,
        about: About,
    ) -> Arc<Scheduler> {
        let places = concurrency.clamp(1, pool.threads());
        let state = State { running: 0, queue: Queue::default(), joins: Joins::Unknown, alarm: None };
        let few_shapes = graph.prefers_few_shapes();
        let graph = Arc::new(graph);
        Arc::new(Scheduler { graph, pool, timer, about, places, few_shapes, state: Mutex::new(state) })
    }

    pub(super) fn graph(&self) -> &dyn Graph {
        self.graph.as_ref()
    }

    /// Runs the graph once for this call, as soon as it is its turn. `hold` is kept until the run has really
    /// ended, which can be after its caller has gone. Dropping the future withdraws the call.
    ///
    /// # Errors
    /// Where too many wait already, the run fails, or the call's deadline passes while it waits for others.
    pub(super) async fn infer(
        self: &Arc<Self>,
        lane: &Lane,
        inputs: Vec<Tensor>,
        call: Call,
        hold: Hold,
    ) -> Result<Ran, RunError> {
        let arrived = Instant::now();
        let rows = lane.batching.and_then(|_| join::rows(&inputs));
        match self.enter(lane, inputs, rows, call, arrived, &hold)? {
            Turn::Now(place, inputs) => {
                let run = match self.pool.brisk.run(&self.graph, inputs, call.deadline) {
                    // It was quick no more, and nobody could hold it to its deadline meanwhile.
                    Ok(_) if Instant::now() >= call.deadline => {
                        return Err(InferError::Cancelled.into());
                    }
                    Ok(run) => {
                        drop((place, hold));
                        run
                    }
                    Err(inputs) => {
                        let graph: Arc<Paced> = Arc::clone(&self.graph);
                        let cancel = Arc::new(Cancel::at(call.deadline));
                        let run = self.pool.run(graph, inputs, cancel, (place, hold)).await;
                        run.map_err(Overloaded::from)?
                    }
                };
                let outputs = run.outputs?;
                self.check_rows(rows, &outputs);
                Ok(Ran {
                    outputs,
                    queue: run.began.saturating_duration_since(arrived),
                    compute: run.took,
                    rows: rows.unwrap_or(1),
                    leader: true,
                })
            }
            Turn::Later(waiting) => waiting.answer(call.deadline).await,
        }
    }

    /// Takes a place, or else a seat in the queue.
    fn enter(
        self: &Arc<Self>,
        lane: &Lane,
        inputs: Vec<Tensor>,
        rows: Option<usize>,
        call: Call,
        arrived: Instant,
        hold: &Hold,
    ) -> Result<Turn, Overloaded> {
        let mut state = self.lock();
        if lane.batching.is_some() && state.running > 0 && matches!(state.joins, Joins::Unknown) {
            state.joins = Joins::Asked(Arc::clone(hold));
        }
        let joins = matches!(state.joins, Joins::Yes);
        // Larger ones have nobody to wait for.
        let batching =
            lane.batching.filter(|batching| joins && rows.is_some_and(|rows| rows < batching.max_size));
        // Where a place is free, nobody waits who wants it: those in the queue wait for others to join.
        if state.running < self.places && (batching.is_none() || state.running == 0) {
            state.running += 1;
            drop(state);
            return Ok(Turn::Now(self.place(), inputs));
        }
        if state.queue.waiting(&lane.owner) >= lane.queue_length {
            return Err(Overloaded::Model(lane.queue_length));
        }
        let (answer, answered) = oneshot::channel();
        let rank = Rank { level: call.priority.level(), number: state.queue.number() };
        let ticket = Arc::new(Ticket { owner: Arc::clone(&lane.owner), rank, seats: Mutex::default() });
        state.queue.push(Entry {
            inputs,
            rows,
            batching,
            arrived,
            deadline: call.deadline,
            ticket: Arc::clone(&ticket),
            answer,
            _hold: Arc::clone(hold),
        });
        let next = self.next(&mut state, false);
        drop(state);
        self.go(next);
        Ok(Turn::Later(Waiting { scheduler: Arc::clone(self), ticket, answered, is_answered: false }))
    }

    /// Takes as much out of the queue as may run now. `freed` says that a run has ended, which somebody who
    /// waits takes the place of, whatever else could still join.
    fn next(self: &Arc<Self>, state: &mut State, mut freed: bool) -> Next {
        let mut next = Next::default();
        if state.running < self.places
            && let Joins::Asked(hold) = &state.joins
        {
            next.trial = Some((self.place(), Arc::clone(hold)));
            state.joins = Joins::Trying;
            state.running += 1;
        }
        if state.queue.is_empty() {
            return next;
        }
        let now = Instant::now();
        while state.running < self.places {
            let policy = Policy {
                now,
                at_once: freed || state.running == 0,
                joins: matches!(state.joins, Joins::Yes),
                few_shapes: self.few_shapes,
            };
            let Some(members) = state.queue.take(&policy) else { break };
            freed = false;
            state.running += 1;
            next.runs.push(Run::new(members, self.place()));
        }
        // Where no place is free, the end of a run comes before any alarm could matter.
        if state.running < self.places
            && let Some(due) = state.queue.due()
            && state.alarm.is_none_or(|alarm| due < alarm)
        {
            next.alarm = Some((state.alarm.replace(due), due));
        }
        next
    }

    fn place(self: &Arc<Self>) -> Place {
        Place { scheduler: Arc::clone(self), again: Vec::new() }
    }

    fn go(self: &Arc<Self>, next: Next) {
        for run in next.runs {
            self.pool.push(move || run.perform());
        }
        if let Some((place, hold)) = next.trial {
            let scheduler = Arc::clone(self);
            self.pool.push(move || {
                scheduler.try_rows();
                drop(hold);
                drop(place);
            });
        }
        if let Some((before, at)) = next.alarm {
            self.timer.set(self, before, at);
        }
    }

    /// The alarm that was set for `at`.
    fn rings(self: &Arc<Self>, at: Instant) {
        let next = {
            let mut state = self.lock();
            if state.alarm == Some(at) {
                state.alarm = None;
            }
            self.next(&mut state, false)
        };
        self.go(next);
    }

    /// A run has ended; `again` are calls that are to run once more, each alone.
    fn release(self: &Arc<Self>, again: Vec<Entry>) {
        let next = {
            let mut state = self.lock();
            state.running -= 1;
            for entry in again {
                state.queue.push(Entry { batching: None, ..entry });
            }
            self.next(&mut state, true)
        };
        self.go(next);
    }

    /// Nobody waits for the ticket's call any more.
    fn leave(&self, ticket: &Ticket) {
        let withdrawn = self.lock().queue.remove(ticket);
        if withdrawn.is_none()
            && let Some(seats) = ticket.seats().as_ref()
        {
            seats.leave();
        }
    }

    /// Finds out whether rows are independent, on the thread of a run.
    fn try_rows(&self) {
        let tried = check_batchable(self.graph.signature())
            .and_then(|()| rows_are_independent(self.graph.as_ref(), self.about.precision));
        match tried {
            Ok(()) => {
                let joins = &mut self.lock().joins;
                // A call may have shown meanwhile that outputs have no rows.
                if matches!(joins, Joins::Trying) {
                    *joins = Joins::Yes;
                }
            }
            Err(reason) => self.stop_joining(&reason),
        }
    }

    /// Looks at what a call with so many rows was answered that ran alone: other outputs than one row for
    /// each could not be told apart in a batch. `None` for calls that are never joined.
    fn check_rows(&self, rows: Option<usize>, outputs: &[Tensor]) {
        let has_rows = |output: &Tensor| output.shape().first() == rows.as_ref();
        if let Some(rows) = rows
            && let Some(output) = outputs.iter().find(|output| !has_rows(output))
        {
            self.stop_joining(&format!("an output had the shape {:?} for {rows} rows", output.shape()));
        }
    }

    /// Calls are not joined from now on, nor ever while the graph is in memory.
    fn stop_joining(&self, reason: &str) {
        let before = std::mem::replace(&mut self.lock().joins, Joins::No);
        if matches!(before, Joins::No) {
            return;
        }
        let About { digest, backend, .. } = &self.about;
        tracing::warn!(
            digest,
            backend,
            reason,
            "the model asks for batching, but its calls run one by one: a call's answer would depend on the others in \
             its batch; export it so that every row is computed by itself, or remove `batching` in spin.toml"
        );
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a call in the queue and its caller share.
struct Ticket {
    owner: Arc<str>,
    rank: Rank,
    /// The run that the call is a member of; set under the scheduler's lock.
    seats: Mutex<Option<Arc<Seats>>>,
}

impl Ticket {
    fn seats(&self) -> MutexGuard<'_, Option<Arc<Seats>>> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The callers that wait for one run. It is stopped when the last of them has gone.
struct Seats {
    cancel: Cancel,
    taken: AtomicUsize,
}

impl Seats {
    fn leave(&self) {
        if self.taken.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.cancel.raise();
        }
    }
}

/// The caller's end of a call in the queue.
struct Waiting {
    scheduler: Arc<Scheduler>,
    ticket: Arc<Ticket>,
    answered: oneshot::Receiver<Result<Ran, InferError>>,
    is_answered: bool,
}

impl Waiting {
    async fn answer(mut self, deadline: Instant) -> Result<Ran, RunError> {
        match tokio::time::timeout_at(deadline.into(), &mut self.answered).await {
            Ok(Ok(answer)) => {
                self.is_answered = true;
                Ok(answer?)
            }
            // It left the queue, or its run the pool, without being computed.
            Ok(Err(_)) | Err(_) => Err(InferError::Cancelled.into()),
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if !self.is_answered {
            self.scheduler.leave(&self.ticket);
        }
    }
}
