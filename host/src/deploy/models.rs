//! From a model file to one that may be granted: kept, given a backend, tried out.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use super::ModelError;
use crate::artifact::cache::{Cache, StoredModel};
use crate::artifact::manifest;
use crate::backend::available::Backends;
use crate::backend::residency::{Batching, Model};
use crate::backend::vet::Vetting;
use crate::backend::{Encoding, ExecutionTarget, ModelFile, Precision};
use crate::background::background;
use crate::config::Config;
use crate::nn::{GuestModel, TakeIn};

/// What it takes to take a model in.
pub struct Intake {
    pub config: Arc<Config>,
    pub cache: Cache,
    pub backends: Backends,
    pub vetting: Vetting,
    /// What graphs may take in memory together.
    budget_bytes: u64,
    trying: Semaphore,
}

/// The owner of models that guests bring, whatever their app: they are never joined.
const GUESTS: &str = "";

/// Models that are tried out at once: each child may take as much as `models.vet` allows.
const CHILDREN: usize = 2;

/// A model that may be granted.
pub struct Admitted {
    pub model: Model,
    /// Inputs and outputs, in words.
    pub signature: String,
}

/// How a model wants to be run.
struct Wishes {
    encoding: Encoding,
    target: ExecutionTarget,
    precision: Precision,
    backend: Option<String>,
    concurrency: Option<usize>,
    idle_timeout_s: Option<u64>,
    batching: Option<Batching>,
    queue_length: Option<usize>,
}

impl Intake {
    pub fn new(
        config: Arc<Config>,
        cache: Cache,
        backends: Backends,
        vetting: Vetting,
        budget_bytes: u64,
    ) -> Intake {
        Intake { config, cache, backends, vetting, budget_bytes, trying: Semaphore::new(CHILDREN) }
    }

    /// Takes in a model that a manifest declares, for the app `owner`.
    ///
    /// # Errors
    /// Where it cannot be kept, no backend serves it, the backend refuses it, or it could never be in memory.
    pub async fn admit(&self, declared: &manifest::Model, owner: &str) -> Result<Admitted, ModelError> {
        let cache = self.cache.clone();
        let (path, weights) = (declared.path.clone(), declared.weights.clone());
        let limit = self.limit();
        let stored = background(move || cache.store_model(&path, weights.as_deref(), limit));
        let stored = stored.await??;
        let wishes = Wishes {
            encoding: match declared.encoding {
                manifest::Encoding::Onnx => Encoding::Onnx,
                manifest::Encoding::Openvino => Encoding::Openvino,
            },
            target: match declared.target {
                manifest::ExecutionTarget::Cpu => ExecutionTarget::Cpu,
                manifest::ExecutionTarget::Gpu => ExecutionTarget::Gpu,
                manifest::ExecutionTarget::Npu => ExecutionTarget::Npu,
            },
            precision: match declared.precision {
                Some(manifest::Precision::Bf16) => Precision::Bf16,
                Some(manifest::Precision::F32) | None => Precision::F32,
            },
            backend: declared.backend.clone(),
            concurrency: declared.concurrency,
            idle_timeout_s: declared.idle_timeout_s,
            batching: declared
                .batching
                .map(|batching| Batching { max_size: batching.max_size, max_delay: batching.max_delay }),
            queue_length: declared.queue_length,
        };
        let admitted = self.vetted(stored, wishes, owner).await?;
        if admitted.model.cost_bytes > self.budget_bytes {
            return Err(ModelError::OverBudget {
                needed_mib: admitted.model.cost_bytes.div_ceil(1 << 20),
                budget_mib: self.budget_bytes >> 20,
                concurrency: admitted.model.file.concurrency,
            });
        }
        Ok(admitted)
    }

    /// What takes in models that guests bring; absent unless the operator allows that.
    pub fn take_in(self: &Arc<Self>) -> Option<TakeIn> {
        if !self.config.models.allow_guest_models {
            return None;
        }
        let intake = Arc::clone(self);
        Some(Arc::new(move |model: GuestModel| {
            let intake = Arc::clone(&intake);
            Box::pin(async move { intake.bring(model).await.map_err(|error| error.to_string()) })
        }))
    }

    async fn bring(&self, model: GuestModel) -> Result<Model, ModelError> {
        let cache = self.cache.clone();
        let limit = self.limit();
        let GuestModel { parts, encoding, target } = model;
        let stored = tokio::task::spawn_blocking(move || cache.store_bytes(&parts, limit))
            .await
            .expect("writing a file does not panic")?;
        let precision = Precision::default();
        let wishes = Wishes {
            encoding,
            target,
            precision,
            backend: None,
            concurrency: None,
            idle_timeout_s: None,
            batching: None,
            queue_length: None,
        };
        Ok(self.vetted(stored, wishes, GUESTS).await?.model)
    }

    async fn vetted(&self, stored: StoredModel, wishes: Wishes, owner: &str) -> Result<Admitted, ModelError> {
        let backend = self.backends.choose(wishes.backend.as_deref(), wishes.encoding)?;
        let file = ModelFile {
            path: stored.path,
            weights: stored.weights,
            encoding: wishes.encoding,
            digest: stored.digest,
            target: wishes.target,
            precision: wishes.precision,
            concurrency: wishes.concurrency.unwrap_or_else(|| self.inference_threads()),
            derived: self.cache.derived(),
        };
        let trying = self.trying.acquire().await.expect("the semaphore is never closed");
        let verdict = self.vetting.verdict(&backend, &file).await;
        drop(trying);
        let verdict = verdict.map_err(|source| ModelError::Vet { backend: backend.name(), source })?;
        let idle_timeout_s = wishes.idle_timeout_s.unwrap_or(self.config.models.idle_timeout_s);
        let idle_timeout = Duration::from_secs(idle_timeout_s);
        let cost_bytes = verdict.total_bytes(file.concurrency);
        let queue_length = wishes.queue_length.unwrap_or(self.config.inference.queue_length);
        let (owner, batching) = (owner.into(), wishes.batching);
        let kept = Arc::new(stored.hold);
        let model = Model { file, backend, idle_timeout, cost_bytes, owner, batching, queue_length, kept };
        Ok(Admitted { model, signature: verdict.signature })
    }

    fn limit(&self) -> u64 {
        self.config.models.max_model_mib << 20
    }

    /// More callers than threads would only wait inside the backend.
    fn inference_threads(&self) -> usize {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        self.config.inference.thread_count(cores)
    }
}
