//! Inference for guests: wasi:nn and Tenon's own interfaces, over one table of granted models.
//!
//! The host functions that wait for a graph or an inference are async while their WIT is not: the guest's fiber
//! is suspended and the thread is free meanwhile.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use wasmtime::component::{HasSelf, Linker};

use crate::backend::residency::{AcquireError, Lease, Model, Residency, RunError};
use crate::instance::state::State;
use crate::telemetry::ModelMetrics;
use crate::tensor::Tensor;

pub mod models;
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
    pub metrics: ModelMetrics,
}

/// What one instance does with models.
pub struct Session {
    residency: Arc<Residency>,
    granted: Arc<Granted>,
    deadline: Instant,
    usage: Usage,
}

/// What an instance used of models, for logs and metrics.
#[derive(Clone, Debug, Default)]
pub struct Usage {
    /// Time in inferences, waiting included.
    pub infer: Duration,
    /// Time waiting for graphs to be loaded.
    pub load: Duration,
    /// Whether a graph had to be loaded.
    pub cold: bool,
    /// The backend of the last inference.
    pub backend: Option<&'static str>,
}

/// A granted model whose graph is in memory for as long as this is held.
pub struct Held {
    pub lease: Lease,
    metrics: ModelMetrics,
}

/// Why a named model could not be had.
#[derive(Debug)]
pub enum NamedError {
    /// The function was not granted a model of this name. Says nothing of whether one exists.
    NotFound(String),
    Acquire(AcquireError),
}

impl Session {
    pub fn new(residency: Arc<Residency>, granted: Arc<Granted>, deadline: Instant) -> Session {
        Session { residency, granted, deadline, usage: Usage::default() }
    }

    pub fn usage(&self) -> &Usage {
        &self.usage
    }

    /// The granted model `name`, loaded if it is not in memory.
    ///
    /// # Errors
    /// Where it was not granted or cannot be loaded.
    pub async fn hold(&mut self, name: &str) -> Result<Held, NamedError> {
        let granted = Arc::clone(&self.granted);
        let grant = granted.models.get(name).ok_or_else(|| NamedError::NotFound(name.to_owned()))?;
        let started = Instant::now();
        let lease = self.residency.acquire(&grant.model).await.map_err(NamedError::Acquire)?;
        if lease.cold() {
            self.usage.cold = true;
            self.usage.load += started.elapsed();
        }
        Ok(Held { lease, metrics: grant.metrics.clone() })
    }

    /// Runs a held graph; outputs come in its signature's order.
    ///
    /// # Errors
    /// Where the inputs do not fit, or the run fails.
    pub async fn infer(&mut self, held: &Held, inputs: Vec<(String, Tensor)>) -> Result<Vec<Tensor>, RunError> {
        let started = Instant::now();
        let outputs = held.lease.infer(inputs, self.deadline).await;
        let took = started.elapsed();
        self.usage.infer += took;
        self.usage.backend = Some(held.lease.backend());
        held.metrics.inferences.inc();
        held.metrics.infer.observe(took.as_secs_f64());
        outputs
    }
}

/// Makes tensors, models and wasi:nn importable.
///
/// # Errors
/// Where a definition clashes with one that the linker has.
pub fn add_to_linker(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    use bindings::tenon::function::{models, nn_tensors, tensors};
    use bindings::wasi::nn::{errors, graph, inference, tensor};
    fn state(state: &mut State) -> &mut State {
        state
    }
    tensors::add_to_linker::<State, HasSelf<State>>(linker, state)?;
    models::add_to_linker::<State, HasSelf<State>>(linker, state)?;
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
