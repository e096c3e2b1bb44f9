//! What is known of each metric, in numbers and words.

use crate::telemetry::observations::Histogram;

use super::Measurement;
use super::bounds::{Bounds, Phase, milliseconds, upper_edge};
use super::compare::{Known, MOST_ERRORS, describe, percent};
use super::settings::{Metric, MetricSettings};
use super::watched::{Watched, doubt};

impl Watched {
    /// What is known of one metric; `needed` is the evidence at which it has failed.
    pub(super) fn measure(
        &self,
        function: &str,
        metric: Metric,
        settings: &MetricSettings,
        needed: f64,
    ) -> Measurement {
        let (stable, candidate) = self.values(metric, settings);
        let evidence = if settings.compare { self.evidence(metric, settings) } else { 1.0 };
        let bounds = self.bounds.get(&metric).filter(|bounds| bounds.phase() != Phase::Running);
        let phase = match bounds.map(Bounds::phase) {
            _ if evidence >= needed => Phase::Failed,
            Some(phase) if phase != Phase::Successful => phase,
            _ if evidence >= doubt(needed) => Phase::Inconclusive,
            Some(_) => Phase::Successful,
            _ if stable.is_some() && candidate.is_some() => Phase::Successful,
            _ => Phase::Running,
        };
        let (stable_samples, candidate_samples) = match metric {
            Metric::ShadowMismatch => (self.in_all.shadow.replayed, self.in_all.shadow.compared),
            _ => (self.in_all.stable, self.in_all.candidate),
        };
        let mut text = self.words(metric, settings, stable, candidate);
        if settings.compare {
            text += &format!(
                "; evidence that it is worse: {} of {needed:.0}, after {candidate_samples} calls of the candidate and \
                 {stable_samples} of the stable revision",
                short(evidence)
            );
        }
        if let Some(value) = bounds.and_then(Bounds::last) {
            text += &format!("; against its bounds: {}, with {value:.4} last", phase_of(bounds));
        }
        Measurement {
            function: function.to_owned(),
            metric: metric.name().to_owned(),
            phase: phase.name().to_owned(),
            stable,
            candidate,
            stable_samples,
            candidate_samples,
            evidence,
            needed,
            dry_run: settings.dry_run,
            text,
        }
    }

    /// The values of both arms: of rates over the whole rollout, as if weights had never changed, of times and sizes in
    /// this step.
    fn values(&self, metric: Metric, settings: &MetricSettings) -> (Option<f64>, Option<f64>) {
        let both = |known: &Known, value: &dyn Fn(&Histogram) -> Option<f64>| {
            (value(&known.stable), value(&known.candidate))
        };
        match metric {
            Metric::LatencyP50 => both(&self.latency, &|known| milliseconds(known.quantile(0.5))),
            Metric::LatencyP99 => both(&self.latency, &|known| milliseconds(known.quantile(0.99))),
            Metric::Memory => both(&self.memory, &|known| known.quantile(1.0).map(upper_edge)),
            Metric::ShadowMismatch => {
                let counts = &self.in_all.shadow;
                let share = |bad: u64, calls: u64| (calls > 0).then(|| bad as f64 / calls as f64);
                (share(counts.noisy, counts.replayed), share(counts.mismatched, counts.compared))
            }
            _ => {
                let evidence = self.evidence.get(&metric);
                let rates =
                    evidence.and_then(|evidence| evidence.worst(settings.min_difference_of(metric))?.1);
                let of = |bad: f64| if metric == Metric::SuccessRate { 1.0 - bad } else { bad };
                match rates {
                    Some((stable, candidate)) => (Some(of(stable)), Some(of(candidate))),
                    None => {
                        let [stable, candidate] = &self.ended;
                        (stable.rate(metric), candidate.rate(metric))
                    }
                }
            }
        }
    }

    fn words(
        &self,
        metric: Metric,
        settings: &MetricSettings,
        stable: Option<f64>,
        candidate: Option<f64>,
    ) -> String {
        let tolerance = settings.tolerance_of(metric);
        let (stable, candidate) = match (stable, candidate) {
            (Some(stable), Some(candidate)) => (stable, candidate),
            (None, Some(candidate)) if self.is_new && metric == Metric::ErrorRate => {
                let (failed, most) = (value(metric, candidate), percent(MOST_ERRORS));
                return format!(
                    "{metric}: {failed}, of a function that the stable revision lacks, and {most} is tolerated"
                );
            }
            (None, Some(candidate)) => {
                return format!("{metric}: {}, and nothing to compare it with yet", value(metric, candidate));
            }
            _ => return format!("{metric}: nothing to tell yet"),
        };
        match metric {
            Metric::LatencyP50 | Metric::LatencyP99 | Metric::Memory => {
                let (of_candidate, of_stable) = (value(metric, candidate), value(metric, stable));
                format!(
                    "{metric}: {of_candidate} against {of_stable}, of which {tolerance} times is tolerated"
                )
            }
            Metric::Drift => {
                let evidence = self.evidence.get(&metric);
                let worst = evidence.and_then(|evidence| evidence.worst(settings.min_difference_of(metric)));
                let part = worst.map(|(part, _)| describe(part, stable, candidate));
                format!("{metric}: {}", part.unwrap_or_default())
            }
            _ => format!("{metric}: {} against {}", value(metric, candidate), value(metric, stable)),
        }
    }
}

/// A value with its unit.
fn value(metric: Metric, value: f64) -> String {
    match metric {
        Metric::LatencyP50 | Metric::LatencyP99 => format!("{} ms", short(value)),
        Metric::Memory => format!("{} MiB", short(value / f64::from(1 << 20))),
        _ => percent(value),
    }
}

fn phase_of(bounds: Option<&Bounds>) -> &'static str {
    bounds.map_or(Phase::Running, Bounds::phase).name()
}

/// With three or four digits that tell.
fn short(number: f64) -> String {
    match number {
        _ if number >= 1e6 => format!("{number:.1e}"),
        _ if number >= 100.0 => format!("{number:.0}"),
        _ if number >= 1.0 => format!("{number:.1}"),
        _ => format!("{number:.3}"),
    }
}
