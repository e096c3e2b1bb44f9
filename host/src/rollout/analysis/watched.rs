//! One function of a candidate: what was counted, in blocks of calls, and the evidence of each metric.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::telemetry::observations::Tally;

use super::bounds::{Bounds, Verdict};
use super::compare::{self, COUNTED, Counts, Known};
use super::evidence::{Evidence, Finding};
use super::settings::{AnalysisSettings, Metric, MetricSettings};
use super::{Arms, ShadowCounts};

/// Calls of both arms together after which a block ends. That it takes no notice of which arm they belong to, nor of how
/// they ended, is what makes a block fair.
const BLOCK: u64 = 40;
/// The same for times, sizes and answers, whose thresholds are found within a block.
const LARGE_BLOCK: u64 = 200;
/// What one block may multiply the evidence about times by. Whatever holds up one of the revisions for a moment, its
/// graph being loaded say, makes many calls slow at once, which are then no proof each: times must be worse again and
/// again.
const MOST_OF_A_BLOCK: f64 = 4.0;

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Watched {
    /// Since the beginning of this step, and of the rollout.
    pub(super) in_step: Samples,
    pub(super) in_all: Samples,
    /// Since the beginning of the rollout, by how they ended: of the stable revision, and of the candidate.
    pub(super) ended: [Counts; 2],
    /// Whether the stable revision lacks the function.
    pub(super) is_new: bool,
    /// Looks in this step at which there were calls of both.
    looks: u32,
    /// What no block has taken in yet.
    counts: [Counts; 2],
    shadow: ShadowCounts,
    answers: [Tally; 2],
    /// Earlier in this step.
    pub(super) latency: Known,
    pub(super) memory: Known,
    pub(super) evidence: BTreeMap<Metric, Evidence>,
    /// Of shadowed calls: against what is tolerated of a candidate whatever the stable revision does.
    shadow_alone: Option<Evidence>,
    pub(super) bounds: BTreeMap<Metric, Bounds>,
}

/// How many calls there were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Samples {
    pub(super) stable: u64,
    pub(super) candidate: u64,
    pub(super) shadow: ShadowCounts,
}

impl Samples {
    pub(super) fn calls(&self) -> u64 {
        self.stable.saturating_add(self.candidate)
    }

    fn add(&mut self, arms: &Arms) {
        self.stable = self.stable.saturating_add(arms.stable.requests);
        self.candidate = self.candidate.saturating_add(arms.candidate.requests);
        self.shadow.add(&arms.shadow.unwrap_or_default());
    }
}

/// Calls of the stable revision that a step takes at least, unless the candidate's own are fewer: without any, a
/// candidate that always fails could not be told from a caller that always asks wrongly.
const STABLE_CALLS: u64 = 10;

/// What evidence is shown as at most: more says no more, and JSON has no infinity.
const LARGEST: f64 = 1e300;

/// The evidence at which a step is not yet enough: where chance is still the likelier reason, but not by far.
pub(super) fn doubt(needed: f64) -> f64 {
    needed.sqrt().sqrt()
}

impl Watched {
    /// Takes in what was counted, and answers what follows from bounds.
    pub(super) fn look(&mut self, settings: &AnalysisSettings, step: u32, arms: &Arms) -> Vec<Verdict> {
        self.in_step.add(arms);
        // Not: times of both. A step must not be over sooner because there are none, where every call fails.
        let both = arms.candidate.requests > 0 && arms.stable.requests > 0;
        self.looks = self.looks.saturating_add(u32::from(both));
        self.in_all.add(arms);
        for (held, tally) in [(0, &arms.stable), (1, &arms.candidate)] {
            self.counts[held].add(tally);
            self.ended[held].add(tally);
            self.answers[held].add(tally);
        }
        if let Some(shadow) = &arms.shadow {
            self.shadow.add(shadow);
        }
        self.close_blocks(settings, step, BLOCK, LARGE_BLOCK);
        let drift = self.furthest_drift();
        let mut verdicts = Vec::new();
        for metric in Metric::ALL {
            let settings = settings.metric(metric);
            if settings.has_bounds() {
                let bounds = self.bounds.entry(metric).or_default();
                let verdict = bounds.add(metric, &settings, &arms.candidate, arms.shadow.as_ref(), drift);
                verdicts.extend(verdict.filter(|_| !settings.dry_run));
            }
        }
        verdicts
    }

    pub(super) fn next_step(&mut self, settings: &AnalysisSettings, step: u32) {
        // Weights differ from now on, and calls of different weights never meet in one block.
        self.close_open(settings, step);
        self.in_step = Samples::default();
        self.looks = 0;
        self.latency = Known::default();
        self.memory = Known::default();
        self.bounds.values_mut().for_each(Bounds::next_step);
    }

    /// Ends the blocks that calls are still gathered for.
    pub(super) fn close_open(&mut self, settings: &AnalysisSettings, step: u32) {
        self.close_blocks(settings, step, 1, 1);
    }

    fn close_blocks(&mut self, settings: &AnalysisSettings, step: u32, block: u64, large_block: u64) {
        if self.counts[0].requests.saturating_add(self.counts[1].requests) >= block {
            let [stable, candidate] = std::mem::take(&mut self.counts);
            for metric in COUNTED {
                let tolerance = settings.metric(metric).tolerance_of(metric);
                let findings = match metric {
                    Metric::ErrorRate if self.is_new => compare::of_errors_alone(&candidate),
                    _ => compare::of_counts(metric, &stable, &candidate, tolerance),
                };
                self.add(settings, metric, &findings, step, false);
            }
        }
        if self.shadow.compared.saturating_add(self.shadow.replayed) >= block {
            let shadow = std::mem::take(&mut self.shadow);
            self.close_shadow(settings, step, &shadow);
        }
        if self.answers[0].requests.saturating_add(self.answers[1].requests) >= large_block {
            let [stable, candidate] = std::mem::take(&mut self.answers);
            self.close_answers(settings, step, &stable, &candidate);
        }
    }

    fn close_answers(&mut self, settings: &AnalysisSettings, step: u32, stable: &Tally, candidate: &Tally) {
        let tolerance = |metric: Metric| settings.metric(metric).tolerance_of(metric);
        for metric in [Metric::LatencyP50, Metric::LatencyP99] {
            let (stable, candidate) = (&stable.latency, &candidate.latency);
            let mut findings = compare::of_sizes(metric, stable, candidate, &self.latency, tolerance(metric));
            findings.iter_mut().for_each(|finding| finding.cap(MOST_OF_A_BLOCK));
            self.add(settings, metric, &findings, step, false);
        }
        self.latency.add(&stable.latency, &candidate.latency);
        let metric = Metric::Memory;
        let findings =
            compare::of_sizes(metric, &stable.memory, &candidate.memory, &self.memory, tolerance(metric));
        self.add(settings, metric, &findings, step, false);
        self.memory.add(&stable.memory, &candidate.memory);
        let findings = compare::of_non_finite(stable, candidate, tolerance(Metric::NonFinite));
        self.add(settings, Metric::NonFinite, &findings, step, true);
        let nothing = Evidence::new();
        let held = self.evidence.get(&Metric::Drift).unwrap_or(&nothing);
        let findings = compare::of_drift(stable, candidate, held, tolerance(Metric::Drift));
        self.add(settings, Metric::Drift, &findings, step, true);
    }

    fn close_shadow(&mut self, settings: &AnalysisSettings, step: u32, shadow: &ShadowCounts) {
        let metric = Metric::ShadowMismatch;
        let of_metric = settings.metric(metric);
        let findings = compare::of_shadow(shadow, of_metric.tolerance_of(metric));
        self.add(settings, metric, &findings, step, false);
        if of_metric.compare {
            let tolerated = of_metric.min_difference_of(metric);
            let findings = compare::of_shadow_alone(shadow.compared, shadow.mismatched, tolerated);
            self.shadow_alone.get_or_insert_with(Evidence::new).add(&findings, step, false);
        }
    }

    fn add(
        &mut self,
        settings: &AnalysisSettings,
        metric: Metric,
        findings: &[Finding],
        step: u32,
        growing: bool,
    ) {
        if settings.metric(metric).compare && !findings.is_empty() {
            self.evidence.entry(metric).or_insert_with(Evidence::new).add(findings, step, growing);
        }
    }

    /// The evidence of one metric. Of shadowed calls both must speak against the candidate: more mismatches than the
    /// stable revision has with itself, where it was asked twice, and more than are tolerated.
    pub(super) fn evidence(&self, metric: Metric, settings: &MetricSettings) -> f64 {
        let difference =
            if metric == Metric::ShadowMismatch { 0.0 } else { settings.min_difference_of(metric) };
        let value = self.evidence.get(&metric).map_or(1.0, |evidence| evidence.value(difference));
        let value = match (&self.shadow_alone, metric) {
            (Some(alone), Metric::ShadowMismatch) if self.in_all.shadow.replayed > 0 => {
                value.min(alone.value(0.0))
            }
            (Some(alone), Metric::ShadowMismatch) => alone.value(0.0),
            _ => value,
        };
        value.min(LARGEST)
    }

    fn furthest_drift(&self) -> Option<f64> {
        let (stable, candidate) = self.evidence.get(&Metric::Drift)?.furthest()?;
        Some((stable - candidate).abs())
    }

    /// Whether calls of both were looked at so often in this step that times could have shown, where they are compared.
    pub(super) fn seen(&self, settings: &AnalysisSettings, looks: u32) -> bool {
        let compared =
            [Metric::LatencyP50, Metric::LatencyP99].into_iter().any(|metric| settings.compares(metric));
        self.is_new || !compared || self.looks >= looks
    }

    /// Whether the stable revision has answered so many calls in this step that the candidate's can be held against them,
    /// where anything is.
    pub(super) fn is_comparable(&self, settings: &AnalysisSettings, min_samples: u64) -> bool {
        let of_live_calls = |metric: &Metric| *metric != Metric::ShadowMismatch && settings.compares(*metric);
        let compared = Metric::ALL.iter().any(of_live_calls);
        self.is_new || !compared || self.in_step.stable >= STABLE_CALLS.min(min_samples)
    }

    /// What a step lacks of this function beside calls of the candidate.
    pub(super) fn lacks(&self, settings: &AnalysisSettings, min_samples: u64) -> Option<String> {
        if !self.is_comparable(settings, min_samples) {
            return Some(format!(
                "the stable revision has answered {} of the {} calls that it takes to compare the two: see how calls are \
                 divided, by `sticky` above all",
                self.in_step.stable,
                STABLE_CALLS.min(min_samples)
            ));
        }
        if !self.seen(settings, settings.min_looks) {
            let (looks, needed) = (self.looks, settings.min_looks);
            return Some(format!("calls of both revisions were looked at {looks} of {needed} times"));
        }
        let live = |metric: Metric| !metric.is_shadow();
        (!self.enough(settings, live))
            .then(|| "there were too few calls to measure what has bounds".to_owned())
    }

    /// Whether the bounds of these metrics have as many values in this step as they need.
    pub(super) fn enough(&self, settings: &AnalysisSettings, of: impl Fn(Metric) -> bool) -> bool {
        self.bounds.iter().filter(|(metric, _)| of(**metric)).all(|(metric, bounds)| {
            let settings = settings.metric(*metric);
            settings.dry_run || bounds.enough(&settings)
        })
    }

    /// A metric that something speaks against.
    pub(super) fn doubted(&self, settings: &AnalysisSettings, needed: f64) -> Option<Metric> {
        Metric::ALL.into_iter().find(|metric| {
            settings.compares(*metric) && self.evidence(*metric, &settings.metric(*metric)) >= doubt(needed)
        })
    }
}
