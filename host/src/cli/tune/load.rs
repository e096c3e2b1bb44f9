//! A load of callers that each wait for their answer before they ask again.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::backend::Priority;
use crate::backend::batch::{Batching, Call};
use crate::backend::residency::{Lease, Model, Residency};
use crate::tensor::Tensor;

/// What is tried.
#[derive(Clone, Copy, Debug)]
pub(super) struct Settings {
    pub(super) threads: usize,
    pub(super) batching: Option<Batching>,
}

impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} threads", self.threads)?;
        match self.batching {
            Some(Batching { max_size, max_delay }) => {
                write!(f, ", batches of {max_size} within {} us", max_delay.as_micros())
            }
            None => Ok(()),
        }
    }
}

/// What came of it.
pub(super) struct Measured {
    pub(super) settings: Settings,
    /// Calls a second.
    pub(super) per_s: f64,
    pub(super) p50: Duration,
    pub(super) p99: Duration,
    /// Rows of a run, on average.
    pub(super) rows: f64,
}

pub(super) struct Load {
    pub(super) callers: usize,
    pub(super) length: Duration,
    pub(super) settings: Settings,
}

/// No call of a measurement may take longer.
const DEADLINE: Duration = Duration::from_secs(60);
/// Calls before those that count, for each caller.
const WARM_UP: usize = 2;

fn call() -> Call {
    Call { deadline: Instant::now() + DEADLINE, priority: Priority::default() }
}

impl Load {
    pub(super) async fn measure(
        &self,
        residency: &Arc<Residency>,
        model: &Model,
        inputs: &[(String, Tensor)],
    ) -> anyhow::Result<Measured> {
        let mut model = model.clone();
        model.batching = self.settings.batching;
        model.file.concurrency = self.settings.threads;
        model.queue_length = self.callers.max(model.queue_length);
        let mut callers = tokio::task::JoinSet::new();
        let began = Instant::now();
        for _ in 0..self.callers {
            let lease = residency.acquire(&model).await?;
            callers.spawn(caller(lease, inputs.to_vec(), self.length));
        }
        let mut times = Vec::new();
        let mut runs = 0_usize;
        while let Some(ended) = callers.join_next().await {
            let (taken, led) = ended.context("a caller panicked")??;
            times.extend(taken);
            runs += led;
        }
        let took = began.elapsed();
        times.sort_unstable();
        let at = |share: f64| {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                clippy::cast_precision_loss,
                reason = "an index within the list"
            )]
            let index = (times.len() as f64 * share) as usize;
            times.get(index.min(times.len().saturating_sub(1))).copied().unwrap_or_default()
        };
        #[expect(clippy::cast_precision_loss, reason = "numbers of calls")]
        let (calls, runs) = (times.len() as f64, runs.max(1) as f64);
        let per_s = calls / took.as_secs_f64().max(1e-9);
        Ok(Measured { settings: self.settings, per_s, p50: at(0.5), p99: at(0.99), rows: calls / runs })
    }
}

/// Calls until the time is over. Answers how long each took, and how many runs it led.
async fn caller(
    lease: Lease,
    inputs: Vec<(String, Tensor)>,
    length: Duration,
) -> anyhow::Result<(Vec<Duration>, usize)> {
    for _ in 0..WARM_UP {
        lease.infer(inputs.clone(), call()).await?;
    }
    let (mut times, mut led) = (Vec::new(), 0);
    let began = Instant::now();
    while began.elapsed() < length {
        let started = Instant::now();
        let ran = lease.infer(inputs.clone(), call()).await?;
        times.push(started.elapsed());
        led += usize::from(ran.leader);
    }
    Ok((times, led))
}

/// The median of a run where nobody else calls.
pub(super) async fn alone(
    lease: &Lease,
    inputs: &[(String, Tensor)],
    length: Duration,
) -> anyhow::Result<Duration> {
    for _ in 0..WARM_UP {
        lease.infer(inputs.to_vec(), call()).await?;
    }
    let mut times = Vec::new();
    let began = Instant::now();
    while times.len() < 3 || began.elapsed() < length {
        times.push(lease.infer(inputs.to_vec(), call()).await?.compute);
    }
    times.sort_unstable();
    Ok(times[times.len() / 2])
}
