//! Whether a candidate is worse than the stable revision that runs beside it.

mod settings;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::telemetry::observations::Tally;

pub use settings::{AnalysisSettings, Metric, MetricSettings};

/// The steps of the default canary: percent of the traffic, and the calls that the candidate must have answered at that
/// weight before it takes more. After the last of them it takes all.
pub const DEFAULT_STEPS: [(f64, u64); 3] = [(5.0, 500), (20.0, 1000), (50.0, 1500)];

/// What was counted of one function since the last look.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Arms {
    pub stable: Tally,
    pub candidate: Tally,
    /// Of shadowed calls, where there are any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shadow: Option<ShadowCounts>,
}

/// What was counted of shadowed calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ShadowCounts {
    /// Calls that the candidate got as well and that could be compared, answered or not.
    pub compared: u64,
    /// Of them, those that the candidate answered otherwise, or not at all.
    pub mismatched: u64,
    /// Calls that the stable revision got a second time.
    pub replayed: u64,
    /// Of them, those that it answered otherwise, or not at all: its own noise.
    pub noisy: u64,
    /// Of the mismatched, those with NaN or infinities where the stable revision's answer has none.
    pub non_finite: u64,
    /// Of the mismatched, those that the candidate did not answer: it trapped, or came to a limit.
    pub failed: u64,
}

impl ShadowCounts {
    /// What came since `earlier`, which was read of the same counters.
    #[must_use]
    pub fn since(&self, earlier: &ShadowCounts) -> ShadowCounts {
        ShadowCounts {
            compared: self.compared.saturating_sub(earlier.compared),
            mismatched: self.mismatched.saturating_sub(earlier.mismatched),
            replayed: self.replayed.saturating_sub(earlier.replayed),
            noisy: self.noisy.saturating_sub(earlier.noisy),
            non_finite: self.non_finite.saturating_sub(earlier.non_finite),
            failed: self.failed.saturating_sub(earlier.failed),
        }
    }
}

/// What was found of one metric of one function.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    pub function: String,
    /// The name of a [`Metric`].
    pub metric: String,
    /// `running`, `successful`, `failed`, `inconclusive` or `error`.
    pub phase: String,
    /// The values of both, where they are known.
    pub stable: Option<f64>,
    pub candidate: Option<f64>,
    pub stable_samples: u64,
    pub candidate_samples: u64,
    /// How many times likelier what was seen is if the candidate is worse than if it is not; at `needed` it has failed.
    pub evidence: f64,
    pub needed: f64,
    /// Whether it decides nothing.
    pub dry_run: bool,
    /// In words.
    pub text: String,
}

/// What becomes of a candidate, as far as is known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Judgement {
    /// Not enough is known.
    Going,
    /// It has answered enough calls in this step, and nothing is held against it.
    Enough,
    /// It is worse than the stable revision, or beyond a bound.
    Failed { reason: String },
    /// It cannot be told, and a person must decide.
    Inconclusive { reason: String },
}

/// The evidence so far. It is kept while the rollout lasts, so that a host that restarts goes on where it was.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Analysis {
    settings: AnalysisSettings,
    functions: BTreeMap<String, u64>,
}

impl Analysis {
    /// Knows nothing yet. Functions that are not named here are left out of every look.
    pub fn new(settings: &AnalysisSettings, functions: &[String]) -> Analysis {
        let functions = functions.iter().map(|function| (function.clone(), 0)).collect();
        Analysis { settings: settings.clone(), functions }
    }

    /// Takes in what was counted since the last look, and answers what is known of every metric.
    pub fn look(&mut self, functions: &BTreeMap<String, Arms>) -> Vec<Measurement> {
        for (name, arms) in functions {
            if let Some(samples) = self.functions.get_mut(name) {
                *samples += arms.candidate.requests;
            }
        }
        Vec::new()
    }

    /// What becomes of the candidate where a step needs as many calls as the settings say.
    pub fn judged(&self) -> Judgement {
        self.judged_at(self.settings.min_samples)
    }

    /// What becomes of the candidate where this step needs `min_samples` calls.
    pub fn judged_at(&self, min_samples: u64) -> Judgement {
        if self.candidate_samples() >= min_samples { Judgement::Enough } else { Judgement::Going }
    }

    /// What becomes of the candidate where this step needs `min_samples` shadowed calls that were compared.
    pub fn judged_by_shadow(&self, min_samples: u64) -> Judgement {
        if self.shadow_samples() >= min_samples { Judgement::Enough } else { Judgement::Going }
    }

    /// Calls that the candidate has answered in this step: of the function that has the fewest, of those that take a
    /// fair share of the app's calls.
    pub fn candidate_samples(&self) -> u64 {
        self.functions.values().copied().min().unwrap_or(0)
    }

    /// Shadowed calls that were compared in this step; of functions as with [`Analysis::candidate_samples`].
    pub fn shadow_samples(&self) -> u64 {
        0
    }

    /// Begins a step with other weights: samples are counted anew, the evidence stays.
    pub fn next_step(&mut self) {
        self.functions.values_mut().for_each(|samples| *samples = 0);
    }
}
