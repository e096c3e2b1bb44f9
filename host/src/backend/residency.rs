//! Which graphs are in memory: loaded on first use, shared by digest, gone when idle or when room is needed.

use std::any::Any;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use thiserror::Error;
use tokio::sync::{Notify, Semaphore, watch};

use super::batch::timer::Timer;
use super::batch::{About, Hold, Lane, Scheduler};
pub use super::batch::{Batching, Call, Overloaded, Ran, RunError};
use super::brisk::Paced;
use super::pool::Pool;
use super::{Backend, Encoding, ExecutionTarget, LoadError, ModelFile, Precision, Signature, validate};
use crate::background::background;
use crate::telemetry::Telemetry;
use crate::tensor::Tensor;

/// A model bound to the backend that serves it.
#[derive(Clone)]
pub struct Model {
    pub file: ModelFile,
    pub backend: Arc<dyn Backend>,
    /// How long the graph stays in memory unused.
    pub idle_timeout: Duration,
    /// What the graph takes in memory with as many callers as it may have, measured when it was vetted.
    pub cost_bytes: u64,
    /// The app whose model it is. Only calls of one owner are joined, and owners that share a graph take turns.
    pub owner: Arc<str>,
    /// How calls are joined; `None`: each runs alone.
    pub batching: Option<Batching>,
    /// The most calls of the owner that wait for the graph, at least 1 and at least the rows of a batch.
    pub queue_length: usize,
    /// Keeps its files on disk, as long as anybody may have it loaded.
    pub kept: Arc<dyn Any + Send + Sync>,
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Model")
            .field("digest", &self.file.digest)
            .field("backend", &self.backend.name())
            .finish_non_exhaustive()
    }
}

/// What makes two models one graph.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    digest: String,
    encoding: Encoding,
    backend: &'static str,
    target: ExecutionTarget,
    precision: Precision,
    concurrency: usize,
}

impl Model {
    fn key(&self) -> Key {
        Key {
            digest: self.file.digest.clone(),
            encoding: self.file.encoding,
            backend: self.backend.name(),
            target: self.file.target,
            precision: self.file.precision,
            concurrency: self.file.concurrency,
        }
    }

    /// Whether both are one graph in memory.
    pub fn is_same_graph(&self, other: &Model) -> bool {
        self.key() == other.key()
    }

    fn lane(&self) -> Lane {
        let queue_length = self.queue_length.max(1);
        // A batch that is never complete would wait for nothing.
        let batching = self
            .batching
            .map(|batching| Batching { max_size: batching.max_size.min(queue_length), ..batching });
        Lane { owner: Arc::clone(&self.owner), batching, queue_length }
    }
}

/// Why a graph is not in memory for its caller.
#[derive(Debug, Clone, Error)]
pub enum AcquireError {
    #[error(transparent)]
    Load(#[from] Arc<LoadError>),
    /// Graphs that are in use fill the memory budget.
    #[error(
        "the model needs {needed_mib} MiB, and {free_mib} MiB of the budget of {budget_mib} MiB for models are free"
    )]
    OverBudget { needed_mib: u64, free_mib: u64, budget_mib: u64 },
    #[error("the backend panicked while it loaded the model: {0}")]
    Panicked(String),
    #[error("the model was not loaded within {0} ms (`models.load_ms` in host.toml)")]
    TooSlow(u128),
}

/// The graphs in memory and the threads that run them.
pub struct Residency {
    entries: Mutex<HashMap<Key, Entry>>,
    bounds: Bounds,
    pool: Arc<Pool>,
    timer: Arc<Timer>,
    loading: Arc<Semaphore>,
    changed: Arc<Notify>,
    telemetry: Arc<Telemetry>,
}

/// What a table keeps within.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Memory of all graphs together.
    pub budget_bytes: u64,
    /// Bytes of one input.
    pub max_input_bytes: usize,
    /// How long callers wait for a load.
    pub load: Duration,
}

type Outcome = Result<Arc<Resident>, AcquireError>;

enum Entry {
    Loading { cost_bytes: u64, outcome: watch::Receiver<Option<Outcome>> },
    Ready(Arc<Resident>),
}

/// A graph in memory. It is in use for as long as anyone but the table holds it.
struct Resident {
    scheduler: Arc<Scheduler>,
    backend: &'static str,
    cost_bytes: u64,
    stay: Mutex<Stay>,
}

/// How long a graph stays.
#[derive(Clone, Copy)]
struct Stay {
    last_used: Instant,
    /// When it was kept last for calls that may come; which makes it no harder to evict than others.
    last_kept: Instant,
    /// The longest that any of the models asks for that are this graph.
    idle_timeout: Duration,
}

impl Resident {
    /// The graph is used now, by one who wants it to stay for `idle_timeout` from here.
    fn touch(&self, idle_timeout: Duration) {
        let mut stay = self.stay.lock().unwrap_or_else(PoisonError::into_inner);
        stay.last_used = Instant::now();
        stay.idle_timeout = stay.idle_timeout.max(idle_timeout);
    }

    /// The graph is to stay as if it were used now, while nobody needs its room.
    fn keep(&self, idle_timeout: Duration) {
        let mut stay = self.stay.lock().unwrap_or_else(PoisonError::into_inner);
        stay.last_kept = Instant::now();
        stay.idle_timeout = stay.idle_timeout.max(idle_timeout);
    }

    fn stay(&self) -> Stay {
        *self.stay.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Two loads at once keep both cores of a small machine busy; more would only add to the peak of memory.
const LOADS_AT_ONCE: usize = 2;

/// How often it is looked whether a graph that is to be unloaded is still in use.
const UNLOAD_CHECK: Duration = Duration::from_millis(10);

impl Residency {
    /// A table that keeps within `bounds`, with `pool` to run on. Must be called within a tokio runtime.
    pub fn start(pool: Pool, bounds: Bounds, telemetry: Arc<Telemetry>) -> Arc<Self> {
        let residency = Arc::new(Residency {
            entries: Mutex::default(),
            bounds,
            pool: Arc::new(pool),
            timer: Arc::default(),
            loading: Arc::new(Semaphore::new(LOADS_AT_ONCE)),
            changed: Arc::default(),
            telemetry,
        });
        // Held weakly, so that the table does not keep itself alive through its own sweeper.
        let (table, changed) = (Arc::downgrade(&residency), Arc::clone(&residency.changed));
        tokio::spawn(async move {
            while let Some(residency) = table.upgrade() {
                let next = residency.sweep().await;
                drop(residency);
                let _ = tokio::time::timeout_at(next.into(), changed.notified()).await;
            }
        });
        residency
    }

    /// The model's graph, loaded if it is not in memory. However many ask at once, it is loaded once.
    ///
    /// # Errors
    /// Where it cannot be loaded, or graphs in use fill the budget.
    pub async fn acquire(self: &Arc<Self>, model: &Model) -> Result<Lease, AcquireError> {
        let mut outcome = match self.ready_or_loading(model) {
            Ok(resident) => return Ok(self.lease(resident, model, false)),
            Err(outcome) => outcome,
        };
        let resident = match outcome.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.clone().expect("waited until there is an outcome")?,
            Err(_) => return Err(AcquireError::Panicked("loading ended without an outcome".to_owned())),
        };
        Ok(self.lease(resident, model, true))
    }

    /// Has the model's graph stay in memory for calls that may come, or come there where the budget has room: no other
    /// graph leaves for it, and it is the first to leave for others.
    pub fn keep_warm(self: &Arc<Self>, model: &Model) {
        let key = model.key();
        let mut entries = self.lock();
        match entries.get(&key) {
            Some(Entry::Ready(resident)) => resident.keep(model.idle_timeout),
            Some(Entry::Loading { .. }) => {}
            None => {
                let used: u64 = entries.values().map(Entry::cost_bytes).sum();
                if used.saturating_add(model.cost_bytes) > self.bounds.budget_bytes {
                    return;
                }
                let ready = entries.values().filter_map(|entry| match entry {
                    Entry::Ready(resident) => Some(resident.stay().last_used),
                    Entry::Loading { .. } => None,
                });
                let before = |oldest: Instant| oldest.checked_sub(Duration::from_nanos(1));
                let last_used = ready.min().and_then(before).unwrap_or_else(Instant::now);
                // Its room is its own from here on, so that nobody has to make any.
                drop(self.begin(&mut entries, key, model, model.cost_bytes, Some(last_used)));
            }
        }
    }

    /// Has the model's graph leave memory as soon as nobody uses it, or is waiting for it to be loaded, but not later
    /// than `within` from now. Answers whether it is not in memory now.
    pub async fn unload(&self, model: &Model, within: Duration) -> bool {
        let (key, until) = (model.key(), Instant::now() + within);
        loop {
            let unused = {
                let mut entries = self.lock();
                match entries.get(&key) {
                    None => return true,
                    Some(entry) if entry.unused().is_some() => entries.remove(&key),
                    Some(_) => None,
                }
            };
            if let Some(Entry::Ready(resident)) = unused {
                self.release(vec![resident], "unload").await;
                return true;
            }
            // Whoever uses a graph lets go of it on any thread, and tells nobody: that would be paid by every call.
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            tokio::time::sleep(left.min(UNLOAD_CHECK)).await;
        }
    }

    /// Whether the model's graph is in memory.
    pub fn is_resident(&self, model: &Model) -> bool {
        matches!(self.lock().get(&model.key()), Some(Entry::Ready(_)))
    }

    /// The number of graphs in memory.
    pub fn len(&self) -> usize {
        self.lock().values().filter(|entry| matches!(entry, Entry::Ready(_))).count()
    }

    /// Whether no graph is in memory.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Key, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lease(self: &Arc<Self>, resident: Arc<Resident>, model: &Model, cold: bool) -> Lease {
        resident.touch(model.idle_timeout);
        Lease { resident, residency: Arc::clone(self), lane: model.lane(), cold }
    }

    fn ready_or_loading(
        self: &Arc<Self>,
        model: &Model,
    ) -> Result<Arc<Resident>, watch::Receiver<Option<Outcome>>> {
        let key = model.key();
        let mut entries = self.lock();
        match entries.get(&key) {
            Some(Entry::Ready(resident)) => Ok(Arc::clone(resident)),
            Some(Entry::Loading { outcome, .. }) => Err(outcome.clone()),
            None => Err(self.begin(&mut entries, key, model, 0, None)),
        }
    }

    /// Begins to load a graph. `reserved` bytes of the budget are its own already; `last_used` is when it counts as used
    /// last, now unless said.
    fn begin(
        self: &Arc<Self>,
        entries: &mut HashMap<Key, Entry>,
        key: Key,
        model: &Model,
        reserved: u64,
        last_used: Option<Instant>,
    ) -> watch::Receiver<Option<Outcome>> {
        let (sender, receiver) = watch::channel(None);
        entries.insert(key.clone(), Entry::Loading { cost_bytes: reserved, outcome: receiver.clone() });
        // A task of its own: the load goes on for the next caller if this one's deadline passes.
        let (residency, model) = (Arc::clone(self), model.clone());
        tokio::spawn(async move {
            let outcome = residency.load(&key, &model).await;
            if let (Ok(resident), Some(last_used)) = (&outcome, last_used) {
                resident.stay.lock().unwrap_or_else(PoisonError::into_inner).last_used = last_used;
            }
            residency.settle(&key, &outcome);
            sender.send_replace(Some(outcome));
        });
        receiver
    }

    async fn load(&self, key: &Key, model: &Model) -> Outcome {
        let loaded = tokio::time::timeout(self.bounds.load, self.load_in_turn(key, model)).await;
        loaded.unwrap_or_else(|_| Err(AcquireError::TooSlow(self.bounds.load.as_millis())))
    }

    async fn load_in_turn(&self, key: &Key, model: &Model) -> Outcome {
        let turn = Arc::clone(&self.loading).acquire_owned().await.expect("the semaphore is never closed");
        self.make_room(key, model.cost_bytes).await?;
        let started = Instant::now();
        let (backend, file) = (Arc::clone(&model.backend), model.file.clone());
        // A backend cannot be stopped while it loads. What comes when nobody waits for it any more is dropped, and
        // only then is it the next one's turn: callers that try again must not pile up loads.
        let gives_way = backend.loads_alone();
        let load = move || {
            let graph = backend.load(&file);
            trim_heap();
            (graph, turn)
        };
        let loading = match gives_way {
            true => background(load).await.map_err(|failed| failed.to_string()),
            false => tokio::task::spawn_blocking(load).await.map_err(|panic| panic.to_string()),
        };
        let graph = match loading {
            Ok((Ok(graph), _)) => graph,
            Ok((Err(error), _)) => return Err(Arc::new(error).into()),
            Err(why) => return Err(AcquireError::Panicked(why)),
        };
        self.telemetry.loaded(model.backend.name(), started.elapsed(), model.cost_bytes);
        tracing::info!(
            digest = %short(&model.file.digest),
            backend = model.backend.name(),
            load_ms = started.elapsed().as_millis(),
            cost_mib = model.cost_bytes >> 20,
            "graph loaded"
        );
        let about = About {
            digest: short(&model.file.digest).to_owned(),
            backend: model.backend.name(),
            precision: model.file.precision,
        };
        let (pool, timer, now) = (Arc::clone(&self.pool), Arc::clone(&self.timer), Instant::now());
        Ok(Arc::new(Resident {
            scheduler: Scheduler::new(Paced::new(graph), model.file.concurrency, pool, timer, about),
            backend: model.backend.name(),
            cost_bytes: model.cost_bytes,
            stay: Mutex::new(Stay { last_used: now, last_kept: now, idle_timeout: model.idle_timeout }),
        }))
    }

    fn settle(&self, key: &Key, outcome: &Outcome) {
        let mut entries = self.lock();
        match outcome {
            Ok(resident) => {
                entries.insert(key.clone(), Entry::Ready(Arc::clone(resident)));
            }
            Err(error) => {
                entries.remove(key);
                self.telemetry.load_failed(key.backend);
                tracing::warn!(digest = %short(&key.digest), backend = key.backend, %error, "graph not loaded");
            }
        }
        drop(entries);
        self.changed.notify_one();
    }

    /// Reserves `cost_bytes` of the budget for `key`, evicting what is unused, least recently used first. Where even
    /// that would not make enough room, nothing is evicted.
    async fn make_room(&self, key: &Key, cost_bytes: u64) -> Result<(), AcquireError> {
        let evicted = {
            let mut entries = self.lock();
            // What it has reserved already is not counted twice.
            let reserved = entries.get(key).map_or(0, Entry::cost_bytes);
            let mut used: u64 = entries.values().map(Entry::cost_bytes).sum::<u64>() - reserved;
            let evictable: u64 =
                entries.values().filter_map(Entry::unused).map(|unused| unused.cost_bytes).sum();
            if used - evictable + cost_bytes > self.bounds.budget_bytes {
                return Err(self.over_budget(used - evictable, cost_bytes));
            }
            let mut evicted = Vec::new();
            while used + cost_bytes > self.bounds.budget_bytes {
                let Some(oldest) = least_recently_used(&entries) else { break };
                if let Some(Entry::Ready(resident)) = entries.remove(&oldest) {
                    used -= resident.cost_bytes;
                    evicted.push(resident);
                }
            }
            if let Some(Entry::Loading { cost_bytes: reserved, .. }) = entries.get_mut(key) {
                *reserved = cost_bytes;
            }
            evicted
        };
        self.release(evicted, "budget").await;
        Ok(())
    }

    fn over_budget(&self, used: u64, cost_bytes: u64) -> AcquireError {
        AcquireError::OverBudget {
            needed_mib: cost_bytes.div_ceil(1 << 20),
            free_mib: self.bounds.budget_bytes.saturating_sub(used) >> 20,
            budget_mib: self.bounds.budget_bytes >> 20,
        }
    }

    /// Lets idle graphs go, and answers when to look again.
    async fn sweep(&self) -> Instant {
        let now = Instant::now();
        let mut next = now + Duration::from_secs(3600);
        let mut evicted = Vec::new();
        self.lock().retain(|_, entry| {
            let Entry::Ready(resident) = entry else { return true };
            // In use: it is not idle before its whole timeout has passed from now.
            let unused = Arc::strong_count(resident) == 1;
            let stay = resident.stay();
            let since = if unused { stay.last_used.max(stay.last_kept) } else { now };
            let expires = since + stay.idle_timeout;
            if expires > now {
                next = next.min(expires);
                return true;
            }
            evicted.push(Arc::clone(resident));
            false
        });
        self.release(evicted, "idle").await;
        next
    }

    /// Frees graphs away from the async threads and gives their memory back to the system.
    async fn release(&self, evicted: Vec<Arc<Resident>>, reason: &'static str) {
        if evicted.is_empty() {
            return;
        }
        for resident in &evicted {
            self.telemetry.evicted(reason, resident.cost_bytes);
            tracing::info!(backend = resident.backend, reason, "graph left memory");
        }
        let freed = background(move || {
            drop(evicted);
            trim_heap();
        });
        if let Err(failed) = freed.await {
            tracing::error!(%failed, "a graph could not be freed");
        }
    }
}

impl Entry {
    fn cost_bytes(&self) -> u64 {
        match self {
            Entry::Loading { cost_bytes, .. } => *cost_bytes,
            Entry::Ready(resident) => resident.cost_bytes,
        }
    }

    /// The graph, where only the table holds it.
    fn unused(&self) -> Option<&Resident> {
        match self {
            Entry::Ready(resident) if Arc::strong_count(resident) == 1 => Some(resident),
            _ => None,
        }
    }
}

fn least_recently_used(entries: &HashMap<Key, Entry>) -> Option<Key> {
    entries
        .iter()
        .filter_map(|(key, entry)| Some((entry.unused()?.stay().last_used, key)))
        .min_by_key(|(last_used, _)| *last_used)
        .map(|(_, key)| key.clone())
}

impl Drop for Residency {
    fn drop(&mut self) {
        self.changed.notify_one();
    }
}

/// A graph that stays in memory for as long as this is held.
pub struct Lease {
    resident: Arc<Resident>,
    residency: Arc<Residency>,
    lane: Lane,
    cold: bool,
}

impl Lease {
    pub fn signature(&self) -> &Signature {
        self.resident.scheduler.graph().signature()
    }

    /// The name of the backend that serves the graph.
    pub fn backend(&self) -> &'static str {
        self.resident.backend
    }

    /// Whether its holder had to wait for the graph to be loaded.
    pub fn cold(&self) -> bool {
        self.cold
    }

    /// Checks the inputs and runs the graph, alone or in a batch with others of its owner; outputs come in the
    /// signature's order. Dropping the future stops the run where the backend can and nobody else waits for it, and
    /// frees the caller in any case.
    ///
    /// # Errors
    /// Where the inputs do not fit, too many wait already, the run fails, or the deadline passes while it waits.
    pub async fn infer(&self, inputs: Vec<(String, Tensor)>, call: Call) -> Result<Ran, RunError> {
        let inputs = validate::inputs(self.signature(), inputs, self.residency.bounds.max_input_bytes)?;
        // The run keeps the graph in use even when the caller is gone.
        let hold = Arc::clone(&self.resident) as Hold;
        let ran = self.resident.scheduler.infer(&self.lane, inputs, call, hold).await?;
        let (expected, actual) = (self.signature().outputs.len(), ran.outputs.len());
        if actual != expected {
            return Err(RunError::Outputs { expected, actual });
        }
        Ok(ran)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.resident.touch(Duration::ZERO);
    }
}

/// The first digits of a digest, enough for people to tell models apart.
pub fn short(digest: &str) -> &str {
    digest.get(..12).unwrap_or(digest)
}

/// Gives freed memory back to the system: allocators keep most of a dropped graph otherwise. Rust's memory and that
/// of native libraries come from two of them.
pub fn trim_heap() {
    #[expect(unsafe_code, reason = "mimalloc offers this to C alone")]
    // SAFETY: mi_collect takes no pointers and may be called at any time from any thread.
    unsafe {
        libmimalloc_sys::mi_collect(true);
    }
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[expect(unsafe_code, reason = "glibc offers this to C alone")]
    // SAFETY: malloc_trim takes no pointers and may be called at any time from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests;
