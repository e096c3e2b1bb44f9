//! Bounds that an operator sets for a candidate, whatever the stable revision does.

use serde::{Deserialize, Serialize};

use crate::telemetry::observations::{Tally, lower_edge};

use super::ShadowCounts;
use super::compare::Counts;
use super::settings::{Metric, MetricSettings};

/// What was found of the bounds of one metric.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Bounds {
    /// The calls that the next value is taken from.
    window: Window,
    /// Values taken in this step.
    values: u32,
    failures: u32,
    inconclusive: u32,
    errors_in_a_row: u32,
    /// The last value, and what it was.
    last: Option<f64>,
    phase: Phase,
}

/// How many times the calls of a value are waited for where none of them tells anything.
const IN_VAIN: u64 = 10;

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Window {
    counts: Counts,
    /// Without the answers, of which only those that are not finite are counted.
    tally: Tally,
    answers: u64,
    non_finite: u64,
    shadow: ShadowCounts,
}

/// What a value was found to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Phase {
    #[default]
    Running,
    Successful,
    Failed,
    Inconclusive,
    Error,
}

impl Phase {
    pub(super) fn name(self) -> &'static str {
        match self {
            Phase::Running => "running",
            Phase::Successful => "successful",
            Phase::Failed => "failed",
            Phase::Inconclusive => "inconclusive",
            Phase::Error => "error",
        }
    }
}

/// What follows from all values so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Failed(String),
    Inconclusive(String),
}

impl Bounds {
    /// Takes in what was counted of the candidate; `drift` is the largest difference of shares so far.
    pub(super) fn add(
        &mut self,
        metric: Metric,
        settings: &MetricSettings,
        candidate: &Tally,
        shadow: Option<&ShadowCounts>,
        drift: Option<f64>,
    ) -> Option<Verdict> {
        self.window.add(candidate, shadow);
        if !self.window.is_full(metric, settings.samples.max(1), drift.is_some()) {
            return None;
        }
        let window = std::mem::take(&mut self.window);
        self.values = self.values.saturating_add(1);
        self.last = if metric == Metric::Drift { drift } else { window.value(metric) };
        let Some(value) = self.last else {
            self.phase = Phase::Error;
            self.errors_in_a_row = self.errors_in_a_row.saturating_add(1);
            return (self.errors_in_a_row > settings.consecutive_error_limit).then(|| {
                Verdict::Inconclusive(format!(
                    "{metric} could not be measured {} times in a row, of at least {} calls each: see that the \
                     function gives what it is measured by, or take its bounds out of the plan",
                    self.errors_in_a_row, settings.samples
                ))
            });
        };
        self.errors_in_a_row = 0;
        self.phase = settings.phase(value);
        match self.phase {
            Phase::Failed => {
                self.failures = self.failures.saturating_add(1);
                (self.failures > settings.failure_limit).then(|| {
                    let times = times(self.failures, settings.failure_limit);
                    Verdict::Failed(format!("{metric} is {}, beyond {}{times}", value, settings.bounds()))
                })
            }
            Phase::Inconclusive => {
                self.inconclusive = self.inconclusive.saturating_add(1);
                (self.inconclusive > settings.inconclusive_limit).then(|| {
                    let times = times(self.inconclusive, settings.inconclusive_limit);
                    Verdict::Inconclusive(format!(
                        "{metric} is {value}, neither within {} nor far enough beyond to be a failure{times}",
                        settings.bounds()
                    ))
                })
            }
            _ => None,
        }
    }

    pub(super) fn last(&self) -> Option<f64> {
        self.last
    }

    pub(super) fn phase(&self) -> Phase {
        self.phase
    }

    /// Whether this step has as many values as it needs.
    pub(super) fn enough(&self, settings: &MetricSettings) -> bool {
        self.values >= settings.count
    }

    /// Begins a step: values are counted anew, and a person has decided on what was inconclusive.
    pub(super) fn next_step(&mut self) {
        self.window = Window::default();
        self.values = 0;
        self.failures = 0;
        self.inconclusive = 0;
        self.errors_in_a_row = 0;
    }
}

fn times(count: u32, limit: u32) -> String {
    if limit == 0 { String::new() } else { format!(", for the {count}th time, and {limit} are forgiven") }
}

impl Window {
    fn add(&mut self, candidate: &Tally, shadow: Option<&ShadowCounts>) {
        self.counts.add(candidate);
        for output in candidate.outputs.values() {
            let answers = output.finite.saturating_add(output.non_finite);
            self.answers = self.answers.saturating_add(answers);
            self.non_finite = self.non_finite.saturating_add(output.non_finite);
        }
        self.tally.latency.add(&candidate.latency);
        self.tally.memory.add(&candidate.memory);
        if let Some(shadow) = shadow {
            self.shadow.add(shadow);
        }
    }

    /// Whether a value is taken now: of so many calls, or of many more where none of them is one that it can be taken
    /// from.
    fn is_full(&self, metric: Metric, samples: u64, drifts: bool) -> bool {
        let calls = self.calls(metric, drifts);
        calls >= samples || calls == 0 && self.counts.requests >= samples.saturating_mul(IN_VAIN)
    }

    /// The calls that a value of this metric is taken from. Answers that were kept from other calls have no time.
    fn calls(&self, metric: Metric, drifts: bool) -> u64 {
        match metric {
            Metric::ShadowMismatch => self.shadow.compared,
            Metric::LatencyP50 | Metric::LatencyP99 => {
                self.counts.failed().saturating_add(self.tally.latency.total())
            }
            Metric::Memory => self.tally.memory.total(),
            // Of which nothing is known before its first block has ended.
            Metric::Drift if !drifts => 0,
            _ => self.counts.requests,
        }
    }

    fn value(&self, metric: Metric) -> Option<f64> {
        match metric {
            Metric::SuccessRate | Metric::ErrorRate | Metric::TrapRate | Metric::LimitKillRate => {
                self.counts.rate(metric)
            }
            Metric::LatencyP50 => milliseconds(self.tally.latency.quantile(0.5)),
            Metric::LatencyP99 => milliseconds(self.tally.latency.quantile(0.99)),
            Metric::Memory => self.tally.memory.quantile(1.0).map(upper_edge),
            Metric::NonFinite => (self.answers > 0).then(|| self.non_finite as f64 / self.answers as f64),
            Metric::ShadowMismatch => (self.shadow.compared > 0)
                .then(|| self.shadow.mismatched as f64 / self.shadow.compared as f64),
            Metric::Drift => None,
        }
    }
}

/// The middle of a bucket of nanoseconds, in milliseconds.
pub(super) fn milliseconds(bucket: Option<i16>) -> Option<f64> {
    bucket.map(|bucket| (lower_edge(bucket) * upper_edge(bucket)).sqrt() / 1e6)
}

pub(super) fn upper_edge(bucket: i16) -> f64 {
    lower_edge(bucket.saturating_add(1))
}

impl MetricSettings {
    pub(super) fn has_bounds(&self) -> bool {
        self.min.is_some() || self.max.is_some()
    }

    fn phase(&self, value: f64) -> Phase {
        let beyond = |min: Option<f64>, max: Option<f64>| {
            min.is_some_and(|min| value < min) || max.is_some_and(|max| value > max)
        };
        if !beyond(self.min, self.max) {
            Phase::Successful
        } else if beyond(self.failure_min.or(self.min), self.failure_max.or(self.max)) {
            Phase::Failed
        } else {
            Phase::Inconclusive
        }
    }

    fn bounds(&self) -> String {
        match (self.min, self.max) {
            (Some(min), Some(max)) => format!("{min} to {max}"),
            (Some(min), None) => format!("its minimum of {min}"),
            (None, Some(max)) => format!("its maximum of {max}"),
            (None, None) => "no bounds".to_owned(),
        }
    }
}
