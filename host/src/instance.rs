//! One call of a guest: a fresh instance in a Store of its own, under limits, gone when it has answered.

use std::sync::Arc;
use std::time::Instant;

use thiserror::Error;
use wasmtime::component::{Component, InstancePre};
use wasmtime::{PoolConcurrencyLimitError, Store, Trap, UpdateDeadline};
use wasmtime_wasi::I32Exit;
use wasmtime_wasi_http::p2::bindings::ProxyPre;
use wasmtime_wasi_http::p3::bindings::ServicePre;

use crate::backend::Priority;
use crate::backend::residency::Residency;
use crate::nn::bindings::PlatformPre;
use crate::nn::{Granted, Session, TakeIn, Usage};

pub mod compile;
pub mod engine;
pub mod generations;
pub mod http;
pub mod key_value;
pub mod limits;
pub mod log;
mod model;
pub mod outgoing;
pub mod spin;
pub mod state;
pub mod typed;
mod variables;

use engine::{Engines, Flavor, Running};
use limits::Limits;
use log::FunctionLog;
use state::{Grants, State};

/// What every instance of one revision runs with.
pub struct Surroundings {
    pub engines: Arc<Engines>,
    pub residency: Arc<Residency>,
    pub granted: Arc<Granted>,
    /// There where the operator allows guests to bring models.
    pub take_in: Option<TakeIn>,
    pub grants: Arc<Grants>,
    pub log: Arc<FunctionLog>,
    /// Guest memory and host tensors of one instance together, in bytes.
    pub memory_bytes: usize,
    pub table_elements: usize,
    /// Handles that one instance may have open.
    pub handles: usize,
}

/// A component ready to be instantiated.
pub struct Program {
    kind: Kind,
    streams: bool,
    surroundings: Surroundings,
}

#[derive(Clone)]
enum Kind {
    /// No component: the granted model of this name, as it is.
    Model(String),
    Typed(PlatformPre<State>),
    HttpP2(ProxyPre<State>),
    HttpP3(ServicePre<State>),
}

/// What a component imports that answers more than once.
const RESPONSES: &str = "tenon:function/responses@";

/// Why a component cannot be served.
#[derive(Debug, Error)]
pub enum LinkError {
    #[error("the component imports something that this host does not have: {0}")]
    Import(String),
    #[error(
        "the component exports {found}; a function exports one of `tenon:function/function@0.1.0` (a typed model \
         function), `wasi:http/incoming-handler@0.2` or `wasi:http/handler@0.3.0`; with tenon-sdk, put \
         `#[tenon_sdk::function]` above the fn"
    )]
    Export { found: String },
    #[error("the engine cannot be set up: {0}")]
    Engine(String),
}

/// Why a call of a guest gave no answer.
#[derive(Clone, Debug, Error)]
pub enum CallError {
    #[error("the function did not answer before its deadline of {0} ms")]
    DeadlineExceeded(u64),
    #[error("the function trapped: {0}")]
    Trapped(String),
    #[error("the function needs more than its {0} MiB of memory (`limits.memory_mib`)")]
    OverMemory(usize),
    #[error("the function answered wrongly: {0}")]
    BadReply(String),
    /// The error that the function raises on purpose.
    #[error("{message}")]
    Raised { code: String, message: String, status: Option<u16> },
    #[error("the function cannot be started: {0}")]
    Start(String),
    /// What a model that is served as it is does not take.
    #[error("{0}")]
    Input(String),
    #[error("the model cannot be loaded: {0}")]
    Unavailable(String),
    /// Graphs that are in use fill the memory for models.
    #[error("{0}")]
    OverBudget(String),
    #[error("{0}")]
    Queue(String),
    #[error("{0}")]
    Inference(String),
}

/// The moment by which a call must have answered, and the length that it was given.
#[derive(Clone, Copy, Debug)]
pub struct Deadline {
    pub at: Instant,
    pub ms: u64,
}

/// More than any guest uses up within its deadline: it is counted, not bounded.
const FUEL: u64 = u64::MAX;

/// What the epoch callback raises; never seen by callers.
#[derive(Debug, Error)]
#[error("deadline exceeded")]
struct Overdue;

impl Program {
    /// Links a component, and finds out which kind of function it is.
    ///
    /// # Errors
    /// Where it imports what the host lacks, or exports none of the three kinds.
    pub fn link(
        component: &Component,
        flavor: Flavor,
        surroundings: Surroundings,
    ) -> Result<Program, LinkError> {
        let linked = surroundings.engines.linked(flavor).map_err(|error| LinkError::Engine(chain(&error)))?;
        let pre =
            linked.linker.instantiate_pre(component).map_err(|error| LinkError::Import(chain(&error)))?;
        let kind =
            kind(pre, flavor).ok_or_else(|| LinkError::Export { found: exports(component, linked) })?;
        let ty = component.component_type();
        let streams = ty.imports(&linked.engine).any(|(name, _)| name.starts_with(RESPONSES));
        Ok(Program { kind, streams, surroundings })
    }

    /// A function without a component: the granted model of this name, as it is.
    pub fn model(name: String, surroundings: Surroundings) -> Program {
        Program { kind: Kind::Model(name), streams: false, surroundings }
    }

    /// The same program for calls that nothing may come of but their answers: requests to elsewhere are denied, what is
    /// written to key-value stores is seen by the same call alone, models that a guest brings are refused. Its
    /// inferences go last, and none of its calls is counted as one of the function's. Keeps its output where it has a
    /// log.
    #[must_use]
    pub fn isolated(&self, log: Option<&Arc<FunctionLog>>) -> Program {
        let grants =
            Grants { isolated: true, keeps_nothing: true, ..Grants::clone(&self.surroundings.grants) };
        self.with(
            grants,
            self.surroundings.granted.isolated(),
            log.map_or_else(FunctionLog::none, Arc::clone),
        )
    }

    /// The same program for calls that try it out: what is written to key-value stores is seen by the same call alone,
    /// and none of its calls is counted as one of the function's.
    #[must_use]
    pub fn rehearsed(&self) -> Program {
        let grants = Grants { keeps_nothing: true, ..Grants::clone(&self.surroundings.grants) };
        self.with(grants, self.surroundings.granted.isolated(), Arc::clone(&self.surroundings.log))
    }

    fn with(&self, grants: Grants, granted: Granted, log: Arc<FunctionLog>) -> Program {
        let around = &self.surroundings;
        let surroundings = Surroundings {
            engines: Arc::clone(&around.engines),
            residency: Arc::clone(&around.residency),
            granted: Arc::new(granted),
            take_in: around.take_in.clone(),
            grants: Arc::new(grants),
            log,
            ..*around
        };
        Program { kind: self.kind.clone(), streams: self.streams, surroundings }
    }

    /// Where its guests' output goes.
    pub fn log(&self) -> &Arc<FunctionLog> {
        &self.surroundings.log
    }

    /// Whether it takes and gives tensors.
    pub fn is_typed(&self) -> bool {
        matches!(self.kind, Kind::Model(_) | Kind::Typed(_))
    }

    /// Whether it may answer a call more than once.
    pub fn streams(&self) -> bool {
        self.streams
    }

    /// Whether it is a model that is served as it is.
    pub fn is_model(&self) -> bool {
        matches!(self.kind, Kind::Model(_))
    }

    /// What the component is, for people.
    pub fn kind_name(&self) -> &'static str {
        match self.kind {
            Kind::Model(_) => "model",
            Kind::Typed(_) => "typed model function",
            Kind::HttpP2(_) => "wasi:http/incoming-handler@0.2",
            Kind::HttpP3(_) => "wasi:http/handler@0.3",
        }
    }

    /// Bytes of the component's native code, mapped from the cache where it could be kept there.
    pub fn native_bytes(&self) -> usize {
        let component = match &self.kind {
            Kind::Model(_) => return 0,
            Kind::Typed(pre) => pre.instance_pre().component(),
            Kind::HttpP2(pre) => pre.instance_pre().component(),
            Kind::HttpP3(pre) => pre.instance_pre().component(),
        };
        let image = component.image_range();
        image.end as usize - image.start as usize
    }

    /// The models that the function was granted.
    pub fn granted(&self) -> &Granted {
        &self.surroundings.granted
    }

    fn session(&self, deadline: Instant, priority: Priority) -> Session {
        let around = &self.surroundings;
        let (residency, granted) = (Arc::clone(&around.residency), Arc::clone(&around.granted));
        let session = Session::new(residency, granted, around.take_in.clone(), deadline, priority);
        if around.grants.isolated { session.isolated() } else { session }
    }

    fn store(&self, deadline: Deadline, priority: Priority) -> Result<Store<State>, CallError> {
        let around = &self.surroundings;
        let session = self.session(deadline.at, priority);
        let limits = Limits::new(around.memory_bytes, around.table_elements);
        let state = State::new(&around.grants, &around.log, limits, around.handles, session)
            .map_err(|error| CallError::Start(chain(&error)))?;
        let mut store = match &self.kind {
            Kind::Model(_) => return Err(CallError::Start("it has no component".to_owned())),
            Kind::Typed(pre) => Store::new(pre.engine(), state),
            Kind::HttpP2(pre) => Store::new(pre.engine(), state),
            Kind::HttpP3(pre) => Store::new(pre.engine(), state),
        };
        store.limiter(|state| &mut state.limits);
        store.set_hostcall_fuel(around.memory_bytes);
        store.set_max_component_handles(around.handles);
        store.epoch_deadline_callback(move |_| {
            if Instant::now() >= deadline.at { Err(Overdue.into()) } else { Ok(UpdateDeadline::Yield(1)) }
        });
        store.set_epoch_deadline(1);
        if around.engines.count_fuel() {
            store.set_fuel(FUEL).map_err(|error| CallError::Start(chain(&error)))?;
        }
        Ok(store)
    }

    /// Notes what an instance used that has ended.
    fn ended(&self, store: &Store<State>) {
        // Asking an engine that does not count is an error, which costs its making in every call.
        let counted = self.surroundings.engines.count_fuel().then(|| store.get_fuel());
        let fuel = counted.and_then(Result::ok).map(|left| FUEL - left);
        let state = store.data();
        state.nn.meter().ended(state.limits.peak(), fuel);
    }

    fn running(&self) -> Running {
        self.surroundings.engines.running()
    }

    /// What a failed call was, told from the error and what the instance had used.
    fn failure(&self, error: &wasmtime::Error, limits: &Limits, deadline: Deadline) -> CallError {
        if error.downcast_ref::<Overdue>().is_some() || Instant::now() >= deadline.at {
            return CallError::DeadlineExceeded(deadline.ms);
        }
        if error.downcast_ref::<PoolConcurrencyLimitError>().is_some() {
            return CallError::Start("all its places are taken".to_owned());
        }
        if limits.exceeded() {
            return CallError::OverMemory(limits.limit() >> 20);
        }
        if let Some(trap) = error.downcast_ref::<Trap>() {
            // What it wants to say of a panic, a guest writes before it traps so.
            return CallError::Trapped(match trap {
                Trap::UnreachableCodeReached => {
                    "it panicked or aborted; its log has its last words".to_owned()
                }
                trap => trap.to_string(),
            });
        }
        if let Some(I32Exit(status)) = error.downcast_ref::<I32Exit>() {
            return CallError::Trapped(format!("it ended itself with status {status}"));
        }
        CallError::Trapped(error.root_cause().to_string())
    }
}

/// What a call used of models, beside its answer.
pub type Answered<T> = (Result<T, CallError>, Usage);

fn kind(pre: InstancePre<State>, flavor: Flavor) -> Option<Kind> {
    if let Ok(pre) = PlatformPre::new(pre.clone()) {
        return Some(Kind::Typed(pre));
    }
    if let Ok(pre) = ProxyPre::new(pre.clone()) {
        return Some(Kind::HttpP2(pre));
    }
    match flavor {
        Flavor::Plain => None,
        Flavor::Concurrent => ServicePre::new(pre).ok().map(Kind::HttpP3),
    }
}

fn exports(component: &Component, linked: &engine::Linked) -> String {
    let ty = component.component_type();
    let names: Vec<_> = ty.exports(&linked.engine).map(|(name, _)| format!("`{name}`")).collect();
    if names.is_empty() { "nothing".to_owned() } else { names.join(", ") }
}

/// An error and its causes in one line.
pub fn chain(error: &wasmtime::Error) -> String {
    let causes: Vec<_> = error.chain().map(|cause| cause.to_string().replace('\n', " ")).collect();
    causes.join(": ")
}
