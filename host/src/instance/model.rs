//! A model that is served as it is: tensors in, tensors out, and no guest between.

use std::time::{Duration, Instant};

use super::typed::{Description, Reply, Request, within};
use super::{Answered, CallError, Deadline, Program};
use crate::backend::residency::{AcquireError, RunError};
use crate::backend::{InferError, Priority};
use crate::nn::{NamedError, Usage};

/// How long unloading waits for calls that use the graph.
const UNLOAD: Duration = Duration::from_secs(10);

impl Program {
    /// What the model says of itself, for which it is loaded.
    pub(super) async fn describe_model(
        &self,
        model: &str,
        deadline: Instant,
    ) -> Result<Description, CallError> {
        let mut session = self.session(deadline, Priority::default());
        let held = session.hold(model).await.map_err(|error| not_held(&error))?;
        Ok(Description { signature: held.lease.signature().clone(), ..Description::default() })
    }

    /// Loads the graphs of all models that the function was granted.
    ///
    /// # Errors
    /// Where one cannot be loaded.
    pub async fn load_models(&self) -> Result<(), CallError> {
        let mut session = self.session(Instant::now(), Priority::default());
        session.hold_all().await.map_err(|error| not_held(&error))
    }

    /// Has the graphs of the function's models stay in memory for calls that may come, where they take room from nobody.
    pub fn keep_models_warm(&self) {
        for grant in self.granted().models.values() {
            self.surroundings.residency.keep_warm(&grant.model);
        }
    }

    /// Has the graphs of the function's models leave memory, but for those that are in use.
    pub async fn unload_models(&self) {
        for grant in self.granted().models.values() {
            self.surroundings.residency.unload(&grant.model, UNLOAD).await;
        }
    }

    /// Has the graphs of the function's models leave memory that none of `others` has, but for those that are in use.
    pub async fn unload_models_unless(&self, others: &[&Program]) {
        for grant in self.granted().models.values() {
            let shared = |other: &&Program| {
                other.granted().models.values().any(|other| other.model.is_same_graph(&grant.model))
            };
            if !others.iter().any(shared) {
                self.surroundings.residency.unload(&grant.model, UNLOAD).await;
            }
        }
    }

    /// Runs the model once.
    pub(super) async fn infer(&self, model: &str, request: Request, deadline: Deadline) -> Answered<Reply> {
        let mut session = self.session(deadline.at, request.priority);
        let answered = within(deadline, async {
            let held = session.hold(model).await.map_err(|error| not_held(&error))?;
            let outputs =
                session.infer(&held, request.inputs).await.map_err(|error| not_run(&error, deadline))?;
            let ports = held.lease.signature().outputs.iter();
            let outputs = ports.map(|port| port.name.clone()).zip(outputs).collect();
            Ok(Reply { outputs, ..Reply::default() })
        });
        let answered = answered.await.unwrap_or(Err(CallError::DeadlineExceeded(deadline.ms)));
        let usage: Usage = session.meter().read();
        (answered, usage)
    }
}

fn not_held(error: &NamedError) -> CallError {
    match error {
        NamedError::NotFound(name) => CallError::Unavailable(format!("`{name}` was not granted")),
        NamedError::Acquire(error @ AcquireError::OverBudget { .. }) => {
            CallError::OverBudget(error.to_string())
        }
        NamedError::Acquire(
            error @ (AcquireError::Load(_) | AcquireError::Panicked(_) | AcquireError::TooSlow(_)),
        ) => CallError::Unavailable(error.to_string()),
    }
}

fn not_run(error: &RunError, deadline: Deadline) -> CallError {
    match error {
        RunError::Input(_) | RunError::Infer(InferError::InvalidInput(_)) => {
            CallError::Input(error.to_string())
        }
        RunError::Infer(InferError::Cancelled) => CallError::DeadlineExceeded(deadline.ms),
        RunError::Queue(_) => CallError::Queue(error.to_string()),
        RunError::Infer(InferError::Failed(_)) | RunError::Outputs { .. } => {
            CallError::Inference(error.to_string())
        }
    }
}
