//! Inference for guests: wasi:nn and Tenon's own interfaces, over one table of granted models.
//!
//! The host functions that wait for a graph or an inference are async while their WIT is not: the guest's fiber
//! is suspended and the thread is free meanwhile.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use wasmtime::component::{HasSelf, Linker};

use crate::backend::residency::{AcquireError, Call, Lease, Model, Residency, RunError};
use crate::backend::{Encoding, ExecutionTarget, Priority};
use crate::instance::state::State;
use crate::telemetry::ModelMetrics;
use crate::tensor::Tensor;

pub mod models;
pub mod responses;
pub mod tensors;
pub mod wasi;

/// Bindings of everything in `wit/` that is about tensors, models and typed functions.
pub mod bindings {
    wasmtime::component::bindgen!({
        path: "../wit",
        world: "platform",
        imports: {
            "tenon:function/models.[static]model.load": async | trappable,
            "tenon:function/models.[method]model.infer": async | trappable,
            "tenon:function/responses.send": async | trappable,
            "wasi:nn/graph.load": async | trappable,
            "wasi:nn/graph.load-by-name": async | trappable,
            "wasi:nn/inference.[method]graph-execution-context.compute": async | trappable,
            default: trappable,
        },
        exports: { default: async },
        with: {
            "tenon:function/tensors.tensor": super::tensors::HostTensor,
            "tenon:function/models.model": super::models::HostModel,
            "wasi:nn/tensor.tensor": super::wasi::NnTensor,
            "wasi:nn/graph.graph": super::wasi::NnGraph,
            "wasi:nn/inference.graph-execution-context": super::wasi::NnContext,
            "wasi:nn/errors.error": super::wasi::NnError,
        },
    });
}

/// The models that a function was granted, by the names of its manifest.
#[derive(Default)]
pub struct Granted {
    pub models: BTreeMap<String, GrantedModel>,
}

/// One grant.
pub struct GrantedModel {
    pub model: Model,
    /// Absent where its use is not counted.
    pub metrics: Option<ModelMetrics>,
}

impl Granted {
    /// The same models for calls that nobody waits for: they are joined with no others, do not wait behind others of
    /// their app, and are not counted with them.
    #[must_use]
    pub fn isolated(&self) -> Granted {
        let models = self.models.iter().map(|(name, grant)| {
            let model = Model { batching: None, queue_length: 1, ..grant.model.clone() };
            (name.clone(), GrantedModel { model, metrics: None })
        });
        Granted { models: models.collect() }
    }
}

/// A model that a guest brings with it.
pub struct GuestModel {
    /// The model, and its weights where they are apart.
    pub parts: Vec<Vec<u8>>,
    pub encoding: Encoding,
    pub target: ExecutionTarget,
}

/// Takes a guest's model in, as a deployment would: kept by digest, given a backend, tried out. The error is
/// for the guest.
pub type TakeIn =
    Arc<dyn Fn(GuestModel) -> Pin<Box<dyn Future<Output = Result<Model, String>> + Send>> + Send + Sync>;

/// What one instance does with models.
pub struct Session {
    residency: Arc<Residency>,
    granted: Arc<Granted>,
    take_in: Option<TakeIn>,
    started: Instant,
    deadline: Instant,
    priority: Priority,
    meter: Meter,
    isolated: bool,
}

/// What an instance used of models, for logs and metrics.
#[derive(Clone, Debug, Default)]
pub struct Usage {
    /// Time in inferences, waiting included.
    pub infer: Duration,
    /// Of that, waiting for the graph to be free.
    pub queue: Duration,
    /// From the start of the call to its first inference, and from its last one to the end.
    pub before: Duration,
    pub after: Duration,
    /// Runs of graphs that this instance led: those that it was alone in, and of each batch one instance's.
    pub led: u64,
    /// The rows of the last of them, and how long it took.
    pub batch: Option<(usize, Duration)>,
    /// Time waiting for graphs to be loaded.
    pub load: Duration,
    /// Whether a graph had to be loaded.
    pub cold: bool,
    /// The most memory that the instance had at once, guest memory and host tensors together; known once it has ended.
    pub memory_bytes: usize,
    /// What the guest's instructions cost, where the engine counts it; known once the instance has ended.
    pub fuel: Option<u64>,
    /// The backend of the last inference.
    pub backend: Option<&'static str>,
    /// What an isolated instance asked for and did not get, though its function may have it.
    pub denied: Option<&'static str>,
    /// When the last inference ended.
    last: Option<Instant>,
}

/// The usage of one instance. An HTTP function may answer before its instance has ended, so it is read from
/// outside of the instance's store.
#[derive(Clone, Debug, Default)]
pub struct Meter(Arc<Mutex<Usage>>);

impl Meter {
    /// What was used until now.
    pub fn read(&self) -> Usage {
        let usage = self.lock();
        Usage { after: usage.last.map_or(Duration::ZERO, |last| last.elapsed()), ..usage.clone() }
    }

    /// What is known of an instance when it has ended.
    pub fn ended(&self, memory_bytes: usize, fuel: Option<u64>) {
        let mut usage = self.lock();
        usage.memory_bytes = memory_bytes;
        usage.fuel = fuel;
    }

    /// Notes what an isolated instance does not get.
    pub fn denied(&self, what: &'static str) {
        self.lock().denied.get_or_insert(what);
    }

    fn lock(&self) -> MutexGuard<'_, Usage> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A granted model whose graph is in memory for as long as this is held.
pub struct Held {
    pub lease: Lease,
    /// Absent for models that a guest brings, whose number has no bound, and where uses are not counted.
    metrics: Option<ModelMetrics>,
}

/// Why a named model could not be had.
#[derive(Debug)]
pub enum NamedError {
    /// The function was not granted a model of this name. Says nothing of whether one exists.
    NotFound(String),
    Acquire(AcquireError),
}

impl Session {
    /// `take_in` is there where the operator allows guests to bring models.
    pub fn new(
        residency: Arc<Residency>,
        granted: Arc<Granted>,
        take_in: Option<TakeIn>,
        deadline: Instant,
        priority: Priority,
    ) -> Session {
        let (started, meter) = (Instant::now(), Meter::default());
        Session { residency, granted, take_in, started, deadline, priority, meter, isolated: false }
    }

    /// For calls that nobody waits for: inferences go last, and no model of the guest's own is taken in.
    #[must_use]
    pub fn isolated(self) -> Session {
        Session { priority: Priority::LAST, isolated: true, ..self }
    }

    /// Whether guests may bring models.
    pub fn takes_guest_models(&self) -> bool {
        if self.isolated && self.take_in.is_some() {
            self.meter.denied("guest-model");
        }
        self.take_in.is_some() && !self.isolated
    }

    /// When the call must have answered.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Tells what the instance has used, also while it runs.
    pub fn meter(&self) -> &Meter {
        &self.meter
    }

    /// The granted model `name`, loaded if it is not in memory.
    ///
    /// # Errors
    /// Where it was not granted or cannot be loaded.
    pub async fn hold(&mut self, name: &str) -> Result<Held, NamedError> {
        let granted = Arc::clone(&self.granted);
        let grant = granted.models.get(name).ok_or_else(|| NamedError::NotFound(name.to_owned()))?;
        let lease = self.lease(&grant.model).await.map_err(NamedError::Acquire)?;
        Ok(Held { lease, metrics: grant.metrics.clone() })
    }

    /// A model that the guest brings, loaded.
    ///
    /// # Errors
    /// Where the operator does not allow it, or the model cannot be taken in or loaded; for the guest to read.
    pub async fn bring(&mut self, model: GuestModel) -> Result<Held, String> {
        let take_in = self.take_in.clone().filter(|_| self.takes_guest_models());
        let take_in = take_in.ok_or_else(|| "the operator does not allow it".to_owned())?;
        let model = take_in(model).await?;
        let lease = self.lease(&model).await.map_err(|error| error.to_string())?;
        Ok(Held { lease, metrics: None })
    }

    /// Every granted model, loaded.
    ///
    /// # Errors
    /// Names the first that cannot be loaded.
    pub async fn hold_all(&mut self) -> Result<(), NamedError> {
        let granted = Arc::clone(&self.granted);
        for grant in granted.models.values() {
            self.lease(&grant.model).await.map_err(NamedError::Acquire)?;
        }
        Ok(())
    }

    async fn lease(&mut self, model: &Model) -> Result<Lease, AcquireError> {
        let started = Instant::now();
        let lease = self.residency.acquire(model).await?;
        if lease.cold() {
            let mut usage = self.meter.lock();
            usage.cold = true;
            usage.load += started.elapsed();
        }
        Ok(lease)
    }

    /// Runs a held graph; outputs come in its signature's order.
    ///
    /// # Errors
    /// Where the inputs do not fit, or the run fails.
    pub async fn infer(
        &mut self,
        held: &Held,
        inputs: Vec<(String, Tensor)>,
    ) -> Result<Vec<Tensor>, RunError> {
        let started = Instant::now();
        {
            let mut usage = self.meter.lock();
            usage.backend = Some(held.lease.backend());
            if usage.last.is_none() {
                usage.before = started - self.started;
            }
        }
        let mut timed = Timed { meter: self.meter.clone(), metrics: held.metrics.clone(), started };
        let call = Call { deadline: self.deadline, priority: self.priority };
        let ran = match held.lease.infer(inputs, call).await {
            Ok(ran) => ran,
            Err(error) => {
                // Inputs that do not fit never reach the backend: that is no inference.
                if matches!(error, RunError::Input(_)) {
                    timed.metrics = None;
                }
                return Err(error);
            }
        };
        let mut usage = self.meter.lock();
        usage.queue += ran.queue;
        if ran.leader {
            usage.led += 1;
            usage.batch = Some((ran.rows, ran.compute));
        }
        drop(usage);
        if let Some(metrics) = &timed.metrics {
            metrics.queue.observe(ran.queue.as_secs_f64());
            if ran.leader {
                metrics.rows.observe(f64::from(u32::try_from(ran.rows).unwrap_or(u32::MAX)));
            }
        }
        Ok(ran.outputs)
    }
}

/// Counts an inference when it ends, also where its deadline ends it.
struct Timed {
    meter: Meter,
    metrics: Option<ModelMetrics>,
    started: Instant,
}

impl Drop for Timed {
    fn drop(&mut self) {
        let took = self.started.elapsed();
        let mut usage = self.meter.lock();
        usage.infer += took;
        usage.last = Some(self.started + took);
        drop(usage);
        if let Some(metrics) = &self.metrics {
            metrics.inferences.inc();
            metrics.infer.observe(took.as_secs_f64());
        }
    }
}

/// Makes tensors, models and wasi:nn importable.
///
/// # Errors
/// Where a definition clashes with one that the linker has.
pub fn add_to_linker(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    use bindings::tenon::function::{models, nn_tensors, responses, tensors};
    use bindings::wasi::nn::{errors, graph, inference, tensor};
    fn state(state: &mut State) -> &mut State {
        state
    }
    tensors::add_to_linker::<State, HasSelf<State>>(linker, state)?;
    models::add_to_linker::<State, HasSelf<State>>(linker, state)?;
    responses::add_to_linker::<State, HasSelf<State>>(linker, state)?;
    nn_tensors::add_to_linker::<State, HasSelf<State>>(linker, state)?;
    tensor::add_to_linker::<State, HasSelf<State>>(linker, state)?;
    graph::add_to_linker::<State, HasSelf<State>>(linker, state)?;
    inference::add_to_linker::<State, HasSelf<State>>(linker, state)?;
    errors::add_to_linker::<State, HasSelf<State>>(linker, state)?;
    // The generated bindings answer `data` with a Vec, one copy more than the guest's memory needs.
    linker.allow_shadowing(true);
    self::tensors::link_data(linker)?;
    self::wasi::link_data(linker)?;
    linker.allow_shadowing(false);
    Ok(())
}
