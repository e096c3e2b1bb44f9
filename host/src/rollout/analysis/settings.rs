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

    /// How many times worse than the stable revision a candidate may be unless settings say: of times and sizes their
    /// ratio, of shares the ratio of their odds.
    pub fn default_tolerance(self) -> f64 {
        match self {
            Metric::LatencyP50 => 1.2,
            Metric::LatencyP99 | Metric::Memory => 1.5,
            Metric::Drift => 1.3,
            _ => 1.25,
        }
    }

    /// By how much shares must differ before they count unless settings say; `None` where shares are not compared.
    pub fn default_min_difference(self) -> Option<f64> {
        match self {
            Metric::LatencyP50 | Metric::LatencyP99 | Metric::Memory => None,
            Metric::Drift => Some(0.005),
            Metric::ShadowMismatch => Some(0.01),
            _ => Some(0.0001),
        }
    }

    /// Whether it is known of shadowed calls, and of no others.
    pub(super) fn is_shadow(self) -> bool {
        self == Metric::ShadowMismatch
    }

    /// What a value is counted in.
    fn is_share(self) -> bool {
        self.default_min_difference().is_some()
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
    /// Looks with answers of the candidate that each step takes at least, where times are compared: one look alone proves
    /// little about times, for what holds up a revision for a moment makes many calls slow at once.
    pub min_looks: u32,
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
            interval_s: 5.0,
            initial_delay_s: 0.0,
            min_samples: 500,
            min_looks: 5,
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

    /// Whether a metric is compared with the stable revision's and decides.
    pub(super) fn compares(&self, metric: Metric) -> bool {
        self.metrics.get(&metric).is_none_or(|settings| settings.compare && !settings.dry_run)
    }

    /// Whether the settings make sense.
    ///
    /// # Errors
    /// What does not, and what to write in its place.
    pub fn check(&self) -> Result<(), String> {
        in_range("interval_s", self.interval_s, 0.1, DAY_S)?;
        in_range("initial_delay_s", self.initial_delay_s, 0.0, DAY_S)?;
        in_range("false_alarm", self.false_alarm, 1e-9, 0.5)?;
        if self.min_samples == 0 {
            return Err(
                "min_samples must be at least 1: without a call of the candidate nothing is known".into()
            );
        }
        if !(1..=1000).contains(&self.min_looks) {
            return Err(format!("min_looks must be from 1 to 1000, and it is {}", self.min_looks));
        }
        for (metric, settings) in &self.metrics {
            settings.check(*metric).map_err(|wrong| format!("metrics.{metric}: {wrong}"))?;
        }
        Ok(())
    }
}

const DAY_S: f64 = 86_400.0;

fn in_range(name: &str, value: f64, least: f64, most: f64) -> Result<(), String> {
    if (least..=most).contains(&value) {
        Ok(())
    } else {
        Err(format!("{name} must be from {least} to {most}, and it is {value}"))
    }
}

impl MetricSettings {
    /// How many times worse than the stable revision the candidate may be.
    pub fn tolerance_of(&self, metric: Metric) -> f64 {
        self.tolerance.unwrap_or_else(|| metric.default_tolerance())
    }

    /// By how much shares must differ before they count; 0 where shares are not compared.
    pub fn min_difference_of(&self, metric: Metric) -> f64 {
        self.min_difference.or_else(|| metric.default_min_difference()).unwrap_or(0.0)
    }

    fn check(&self, metric: Metric) -> Result<(), String> {
        if let Some(tolerance) = self.tolerance {
            in_range("tolerance", tolerance, 1.0, 1000.0)?;
        }
        match self.min_difference {
            Some(_) if !metric.is_share() => {
                return Err("min_difference is for shares; say `tolerance`, a ratio, in its place".into());
            }
            // Of shadowed calls it is what is tolerated at all, of which the logarithm is taken.
            Some(difference) if metric == Metric::ShadowMismatch => {
                in_range("min_difference", difference, 1e-6, 0.9)?;
            }
            Some(difference) => in_range("min_difference", difference, 0.0, 1.0)?,
            None => {}
        }
        let bounds = [("min", self.min), ("max", self.max)];
        let failures = [("failure_min", self.failure_min), ("failure_max", self.failure_max)];
        for (name, bound) in bounds.into_iter().chain(failures) {
            let most = if metric.is_share() { 1.0 } else { 1e15 };
            if let Some(bound) = bound {
                in_range(name, bound, 0.0, most)?;
            }
        }
        if metric == Metric::Drift && !self.compare && self.has_bounds() {
            return Err("bounds of drift need `compare`, for it is measured against the stable revision; say `tolerance` \
                        and leave `compare` out, or leave the bounds out"
                .into());
        }
        match (self.min, self.max) {
            (Some(min), Some(max)) if min > max => return Err(format!("min {min} is above max {max}")),
            _ => {}
        }
        match (self.min, self.failure_min) {
            (None, Some(_)) => return Err("failure_min needs min, the value from which all is well".into()),
            (Some(min), Some(failure)) if failure > min => {
                return Err(format!("failure_min {failure} is above min {min}, where all is well"));
            }
            _ => {}
        }
        match (self.max, self.failure_max) {
            (None, Some(_)) => return Err("failure_max needs max, the value up to which all is well".into()),
            (Some(max), Some(failure)) if failure < max => {
                return Err(format!("failure_max {failure} is below max {max}, where all is well"));
            }
            _ => {}
        }
        if self.samples == 0 || self.count == 0 {
            return Err("samples and count must be at least 1".into());
        }
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
