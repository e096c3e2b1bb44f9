//! From a model in a manifest to one that may be granted: kept, given a backend, tried out.

use std::time::Duration;

use super::{Deployer, ModelError};
use crate::artifact::manifest;
use crate::backend::residency::Model;
use crate::backend::{Encoding, ExecutionTarget, ModelFile, Precision};

/// A model that may be granted.
pub struct Admitted {
    pub model: Model,
    /// Inputs and outputs, in words.
    pub signature: String,
}

impl Deployer {
    /// Takes a model in: a copy in the cache, a backend, and a verdict on the two.
    ///
    /// # Errors
    /// Where it cannot be kept, no backend serves it, or the backend refuses it.
    pub async fn admit(&self, declared: &manifest::Model) -> Result<Admitted, ModelError> {
        let cache = self.cache.clone();
        let (path, weights) = (declared.path.clone(), declared.weights.clone());
        let limit = self.config.models.max_model_mib << 20;
        let stored = tokio::task::spawn_blocking(move || cache.store_model(&path, weights.as_deref(), limit))
            .await
            .expect("copying a file does not panic")?;
        let encoding = match declared.encoding {
            manifest::Encoding::Onnx => Encoding::Onnx,
            manifest::Encoding::Openvino => Encoding::Openvino,
        };
        let backend = self.backends.choose(declared.backend.as_deref(), encoding)?;
        let file = ModelFile {
            path: stored.path,
            weights: stored.weights,
            encoding,
            digest: stored.digest,
            target: match declared.target {
                manifest::ExecutionTarget::Cpu => ExecutionTarget::Cpu,
                manifest::ExecutionTarget::Gpu => ExecutionTarget::Gpu,
                manifest::ExecutionTarget::Npu => ExecutionTarget::Npu,
            },
            precision: match declared.precision {
                Some(manifest::Precision::Bf16) => Precision::Bf16,
                Some(manifest::Precision::F32) | None => Precision::F32,
            },
            concurrency: declared.concurrency.unwrap_or_else(|| self.inference_threads()),
            derived: self.cache.derived(),
        };
        let verdict = self
            .vetting
            .verdict(&backend, &file)
            .await
            .map_err(|source| ModelError::Vet { backend: backend.name(), source })?;
        let idle_timeout = declared.idle_timeout_s.unwrap_or(self.config.models.idle_timeout_s);
        let model = Model {
            file,
            backend,
            idle_timeout: Duration::from_secs(idle_timeout),
            cost_bytes: verdict.cost_bytes,
        };
        Ok(Admitted { model, signature: verdict.signature })
    }

    /// More callers than threads would only wait inside the backend.
    fn inference_threads(&self) -> usize {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        self.config.inference.thread_count(cores)
    }
}
