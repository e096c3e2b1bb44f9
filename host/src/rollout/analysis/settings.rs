//! What a candidate is judged by.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// What is measured of a candidate. Rates are shares from 0 to 1, times milliseconds, memory bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// The share of calls that were answered as asked, whatever became of the others.
    SuccessRate,
    /// The share of calls that failed for a reason other than the function's own errors.
    ErrorRate,
    /// The share of calls that trapped.
    TrapRate,
    /// The share of calls that were ended at their deadline or their limit of memory.
    LimitKillRate,
    LatencyP50,
    LatencyP99,
    Memory,
    /// The share of answers with NaN or infinities.
    NonFinite,
    /// How differently answers are distributed.
    Drift,
    /// The share of shadowed calls that the candidate answers otherwise.
    ShadowMismatch,
}

impl Metric {
    pub const ALL: [Metric; 10] = [
        Metric::SuccessRate,
        Metric::ErrorRate,
        Metric::TrapRate,
        Metric::LimitKillRate,
        Metric::LatencyP50,
        Metric::LatencyP99,
        Metric::Memory,
        Metric::NonFinite,
        Metric::Drift,
        Metric::ShadowMismatch,
    ];

    /// Its name in settings and measurements, such as `latency_p99`.
    pub fn name(self) -> &'static str {
        match self {
            Metric::SuccessRate => "success_rate",
            Metric::ErrorRate => "error_rate",
            Metric::TrapRate => "trap_rate",
            Metric::LimitKillRate => "limit_kill_rate",
            Metric::LatencyP50 => "latency_p50",
            Metric::LatencyP99 => "latency_p99",
            Metric::Memory => "memory",
            Metric::NonFinite => "non_finite",
            Metric::Drift => "drift",
            Metric::ShadowMismatch => "shadow_mismatch",
        }
    }

    /// How much worse than the stable revision a candidate may be: a ratio of times or sizes, else of odds.
    pub fn default_tolerance(self) -> f64 {
        match self {
            Metric::LatencyP50 => 1.2,
            Metric::LatencyP99 | Metric::Memory | Metric::Drift => 1.5,
            _ => 1.2,
        }
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a candidate is judged by. Everything has a default.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AnalysisSettings {
    /// Seconds between two looks.
    pub interval_s: f64,
    /// Seconds after the start of a rollout in which nothing is counted.
    pub initial_delay_s: f64,
    /// Calls that the candidate must have answered in each step before it may go on.
    pub min_samples: u64,
    /// The largest probability with which a candidate that is as good as the stable revision is rolled back, over the
    /// whole rollout, however often it is looked at, all functions and metrics together.
    pub false_alarm: f64,
    /// What is not said of a metric is its default.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub metrics: BTreeMap<Metric, MetricSettings>,
}

impl Default for AnalysisSettings {
    fn default() -> Self {
        AnalysisSettings {
            interval_s: 10.0,
            initial_delay_s: 0.0,
            min_samples: 500,
            false_alarm: 0.01,
            metrics: BTreeMap::new(),
        }
    }
}

/// How one metric is judged: against the stable revision that runs beside it, and against bounds, where there are some.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MetricSettings {
    /// Whether the candidate is compared with the stable revision.
    #[serde(skip_serializing_if = "is_true")]
    pub compare: bool,
    /// Whether it is only shown, and decides nothing.
    #[serde(skip_serializing_if = "is_false")]
    pub dry_run: bool,
    /// How much worse than the stable revision a candidate may be, at least 1: a ratio of times or of sizes for
    /// latencies and memory, a ratio of odds for the others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tolerance: Option<f64>,
    /// By how much shares must differ at least before they count, from 0 to 1; rates and drift alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_difference: Option<f64>,
    /// What the candidate's value must be at least, and at most, whatever the stable revision's is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<f64>,
    /// Below this, or above, a value is a failure; what lies between that and `min` or `max` is inconclusive. The same
    /// as `min` and `max` unless said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure_min: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure_max: Option<f64>,
    /// Calls of the candidate that one value is taken from.
    #[serde(skip_serializing_if = "is_default_samples")]
    pub samples: u64,
    /// Values that a step needs before it may go on.
    #[serde(skip_serializing_if = "is_one")]
    pub count: u32,
    /// Values beyond the bounds that are forgiven; one more, and the candidate has failed.
    #[serde(skip_serializing_if = "is_zero")]
    pub failure_limit: u32,
    /// Inconclusive values that are forgiven; one more, and a person must decide.
    #[serde(skip_serializing_if = "is_zero")]
    pub inconclusive_limit: u32,
    /// Values in a row that could not be taken and are forgiven; one more, and a person must decide.
    #[serde(skip_serializing_if = "is_default_errors")]
    pub consecutive_error_limit: u32,
}

const DEFAULT_SAMPLES: u64 = 100;
const DEFAULT_CONSECUTIVE_ERRORS: u32 = 4;

impl Default for MetricSettings {
    fn default() -> Self {
        MetricSettings {
            compare: true,
            dry_run: false,
            tolerance: None,
            min_difference: None,
            min: None,
            max: None,
            failure_min: None,
            failure_max: None,
            samples: DEFAULT_SAMPLES,
            count: 1,
            failure_limit: 0,
            inconclusive_limit: 0,
            consecutive_error_limit: DEFAULT_CONSECUTIVE_ERRORS,
        }
    }
}

impl AnalysisSettings {
    /// How one metric is judged.
    pub fn metric(&self, metric: Metric) -> MetricSettings {
        self.metrics.get(&metric).cloned().unwrap_or_default()
    }

    /// Whether the settings make sense.
    ///
    /// # Errors
    /// What does not, and what to write in its place.
    pub fn check(&self) -> Result<(), String> {
        Ok(())
    }
}

fn is_true(value: &bool) -> bool {
    *value
}

fn is_false(value: &bool) -> bool {
    !*value
}

fn is_zero(value: &u32) -> bool {
    *value == 0
}

fn is_one(value: &u32) -> bool {
    *value == 1
}

fn is_default_samples(value: &u64) -> bool {
    *value == DEFAULT_SAMPLES
}

fn is_default_errors(value: &u32) -> bool {
    *value == DEFAULT_CONSECUTIVE_ERRORS
}
