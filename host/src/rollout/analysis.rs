//! Whether a candidate is worse than the stable revision that runs beside it.

mod bounds;
mod compare;
mod evidence;
mod odds;
mod report;
mod settings;
mod watched;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use super::shadow::ShadowCounts;
use crate::telemetry::observations::Tally;

use bounds::Verdict;
pub use settings::{AnalysisSettings, Metric, MetricSettings};
use watched::Watched;

/// The steps of the default canary: percent of the traffic, and the calls that the candidate must have answered at that
/// weight before it takes more. After the last of them it takes all.
pub const DEFAULT_STEPS: [(f64, u64); 3] = [(5.0, 500), (20.0, 1000), (50.0, 2000)];

/// A candidate that something speaks against, but not enough, is looked at up to so many times as often as a step needs
/// before a person must decide.
const PATIENCE: u32 = 4;

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
    step: u32,
    functions: BTreeMap<String, Watched>,
    /// Why the candidate has failed. It stays so.
    failed: Option<String>,
    /// Why a person must decide in this step.
    inconclusive: Option<String>,
}

/// What a step waits for.
struct Waited {
    samples: u64,
    /// Whether there were looks enough, and so many that more will not help.
    seen: bool,
    patient: bool,
    /// Whether bounds have as many values as they need.
    bounded: bool,
}

impl Analysis {
    /// Knows nothing yet. Functions that are not named here are left out of every look.
    pub fn new(settings: &AnalysisSettings, functions: &[String]) -> Analysis {
        let functions = functions.iter().map(|function| (function.clone(), Watched::default())).collect();
        Analysis { settings: settings.clone(), step: 0, functions, failed: None, inconclusive: None }
    }

    /// Says which functions the stable revision lacks. There is nothing to compare them with, so that they are judged by
    /// themselves: by whether most of their calls fail.
    pub fn lacked_by_stable(&mut self, functions: &[String]) {
        for name in functions {
            if let Some(function) = self.functions.get_mut(name) {
                function.is_new = true;
            }
        }
    }

    /// Takes in what was counted since the last look, and answers what is known of every metric.
    pub fn look(&mut self, functions: &BTreeMap<String, Arms>) -> Vec<Measurement> {
        for (name, arms) in functions {
            let Some(function) = self.functions.get_mut(name) else { continue };
            for verdict in function.look(&self.settings, self.step, arms) {
                let of_function = |reason: String| format!("function `{name}`: {reason}");
                match verdict {
                    Verdict::Failed(reason) => self.failed.get_or_insert(of_function(reason)),
                    Verdict::Inconclusive(reason) => self.inconclusive.get_or_insert(of_function(reason)),
                };
            }
        }
        self.find_failed();
        self.measurements()
    }

    /// What is known of every metric now.
    pub fn measurements(&self) -> Vec<Measurement> {
        let needed = self.needed();
        let of_function = |(name, function): (&String, &Watched)| {
            Metric::ALL.map(|metric| function.measure(name, metric, &self.settings.metric(metric), needed))
        };
        self.functions.iter().flat_map(of_function).collect()
    }

    /// Notes the first metric whose evidence is as large as is needed.
    fn find_failed(&mut self) {
        if self.failed.is_some() {
            return;
        }
        let needed = self.needed();
        for (name, function) in &self.functions {
            let worse = Metric::ALL.into_iter().find(|metric| {
                self.settings.compares(*metric)
                    && function.evidence(*metric, &self.settings.metric(*metric)) >= needed
            });
            if let Some(metric) = worse {
                let found = function.measure(name, metric, &self.settings.metric(metric), needed);
                self.failed = Some(format!("function `{name}`: {}", found.text));
                return;
            }
        }
    }

    /// The evidence at which a metric has failed: what chance alone reaches with the probability that all metrics of
    /// all functions have each a part of.
    fn needed(&self) -> f64 {
        let compared = Metric::ALL.iter().filter(|metric| self.settings.compares(**metric));
        (compared.count() * self.functions.len()).max(1) as f64 / self.settings.false_alarm
    }

    /// What becomes of the candidate where a step needs as many calls as the settings say.
    pub fn judged(&mut self) -> Judgement {
        self.judged_at(self.settings.min_samples)
    }

    /// What becomes of the candidate where this step needs `min_samples` calls.
    pub fn judged_at(&mut self, min_samples: u64) -> Judgement {
        let waited_for = self.waited_for(|function| function.in_step.calls());
        let seen = |looks: u32| {
            let seen = |function: &&Watched| {
                function.is_comparable(&self.settings, min_samples) && function.seen(&self.settings, looks)
            };
            waited_for.iter().all(seen)
        };
        let looks = self.settings.min_looks;
        let (seen, patient) = (seen(looks), seen(looks.saturating_mul(PATIENCE)));
        let bounded =
            waited_for.iter().all(|function| function.enough(&self.settings, |metric| !metric.is_shadow()));
        let known = Waited { samples: self.candidate_samples(), seen, patient, bounded };
        self.judge(known, min_samples)
    }

    /// What becomes of the candidate where this step needs `min_samples` shadowed calls that were compared.
    pub fn judged_by_shadow(&mut self, min_samples: u64) -> Judgement {
        // Nothing else can be known of a candidate that takes no calls beside them.
        let waited_for = self.waited_for(|function| function.in_step.shadow.compared);
        let bounded = waited_for.iter().all(|function| function.enough(&self.settings, Metric::is_shadow));
        let known = Waited { samples: self.shadow_samples(), seen: true, patient: true, bounded };
        self.judge(known, min_samples)
    }

    fn judge(&mut self, known: Waited, min_samples: u64) -> Judgement {
        let Waited { samples, seen, patient, bounded } = known;
        let all_seen = samples >= min_samples.max(1) && seen;
        if all_seen {
            // What no block has taken in yet must not be promoted past. How calls ended has no part in when that is, so
            // that these blocks are as fair as the others.
            self.functions.values_mut().for_each(|function| function.close_open(&self.settings, self.step));
            self.find_failed();
        }
        if let Some(reason) = &self.failed {
            return Judgement::Failed { reason: reason.clone() };
        }
        if let Some(reason) = &self.inconclusive {
            return Judgement::Inconclusive { reason: reason.clone() };
        }
        if !all_seen || !bounded {
            return Judgement::Going;
        }
        let doubted =
            |(name, function): (_, &Watched)| Some((name, function.doubted(&self.settings, self.needed())?));
        let Some((name, metric)) = self.functions.iter().find_map(doubted) else { return Judgement::Enough };
        if samples < min_samples.saturating_mul(u64::from(PATIENCE)) || !patient {
            return Judgement::Going;
        }
        let reason = format!(
            "function `{name}`: after {samples} calls of the candidate in this step it can still not be told whether \
             its {metric} is worse than the stable revision's: look at the numbers, then promote or roll back"
        );
        Judgement::Inconclusive { reason }
    }

    /// Calls that the candidate has answered in this step: of the function that has the fewest, of those that take a
    /// fair share of the app's calls.
    pub fn candidate_samples(&self) -> u64 {
        let waited_for = self.waited_for(|function| function.in_step.calls());
        waited_for.iter().map(|function| function.in_step.candidate).min().unwrap_or(0)
    }

    /// Shadowed calls that were compared in this step; of functions as with [`Analysis::candidate_samples`].
    pub fn shadow_samples(&self) -> u64 {
        let compared = |function: &Watched| function.in_step.shadow.compared;
        self.waited_for(compared).into_iter().map(compared).min().unwrap_or(0)
    }

    /// The functions that take a quarter of an equal share of the app's calls, or more.
    fn waited_for(&self, calls: impl Fn(&Watched) -> u64) -> Vec<&Watched> {
        let fair = self.fair(&calls);
        self.functions.values().filter(|function| calls(function) >= fair).collect()
    }

    fn fair(&self, calls: impl Fn(&Watched) -> u64) -> u64 {
        let total =
            self.functions.values().fold(0u64, |total, function| total.saturating_add(calls(function)));
        total / (4 * self.functions.len().max(1) as u64)
    }

    /// What this step of `min_samples` calls lacks beside them, in words, where that can be told.
    pub fn lacks(&self, min_samples: u64) -> Option<String> {
        let calls = |function: &Watched| function.in_step.calls();
        let fair = self.fair(calls);
        let mut waited_for = self.functions.iter().filter(|(_, function)| calls(function) >= fair);
        waited_for.find_map(|(name, function)| {
            let lacks = function.lacks(&self.settings, min_samples)?;
            Some(format!("of `{name}`, {lacks}"))
        })
    }

    /// Begins a step with other weights: samples are counted anew, the evidence stays.
    pub fn next_step(&mut self) {
        for function in self.functions.values_mut() {
            function.next_step(&self.settings, self.step);
        }
        self.step = self.step.saturating_add(1);
        self.inconclusive = None;
    }
}

#[cfg(test)]
mod tests;
