//! What one block of calls says about each metric: the calls of both arms between two moments, compared with each other.
//!
//! Everything a table is made of besides the number of the candidate's bad calls, thresholds too, comes of both arms
//! together and of earlier blocks. So nothing but chance says which of the calls went to the candidate where it is as
//! good as the stable revision, however the traffic itself goes up and down.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::telemetry::observations::{BUCKETS_PER_DOUBLING, Distribution, EMPTY, HASHED, Histogram, Tally};

use super::ShadowCounts;
use super::evidence::{Evidence, Finding};
use super::odds::Table;
use super::settings::Metric;

/// How many times worse than what is tolerated a rate may be, as alternatives that share the evidence.
const WORSE_RATES: [f64; 5] = [1.5, 2.5, 5.0, 15.0, 100.0];
const WORSE_MEDIAN: [f64; 4] = [1.3, 1.8, 3.0, 8.0];
const WORSE_TAIL: [f64; 4] = [1.5, 3.0, 8.0, 30.0];
const OTHER_SHARES: [f64; 3] = [1.5, 4.0, 30.0];
/// Rates of shadowed calls that are answered otherwise, beyond what is tolerated: shares of what is left to 1.
const WORSE_SHADOWS: [f64; 4] = [0.02, 0.06, 0.2, 0.6];

/// The share of calls that may fail where there is no stable revision to say how many do, and beyond it as above.
pub(super) const MOST_ERRORS: f64 = 0.5;
const WORSE_ERRORS: [f64; 3] = [0.2, 0.6, 0.95];

/// Where the slowest are cut off: which of them tells most depends on how the candidate is slow.
const TAILS: [(&str, f64); 6] =
    [("95", 0.95), ("98", 0.98), ("99", 0.99), ("99.5", 0.995), ("99.8", 0.998), ("99.9", 0.999)];
const MEMORIES: [(&str, f64); 3] = [("50", 0.5), ("90", 0.9), ("99", 0.99)];
const VALUES: [(&str, f64); 5] = [("10", 0.1), ("25", 0.25), ("50", 0.5), ("75", 0.75), ("90", 0.9)];

/// The most classes that are watched each by itself where there is one output, and the smallest share of one; the others
/// are put together into groups.
const MOST_CLASSES: usize = 64;
const LEAST_SHARE: f64 = 1e-3;
const GROUPS: u16 = 16;

/// The classes of an output that are watched each by itself, and the groups of the others, where there are so many
/// outputs: each output has its part of the room, whatever the others take.
fn places(outputs: usize) -> (usize, u16) {
    match outputs.next_power_of_two() {
        1 => (MOST_CLASSES, GROUPS),
        2 => (MOST_CLASSES / 2, GROUPS),
        4 => (MOST_CLASSES / 4, GROUPS / 2),
        8 => (MOST_CLASSES / 8, GROUPS / 4),
        _ => (MOST_CLASSES / 16, GROUPS / 8),
    }
}

/// The metrics that are counts of calls.
pub(super) const COUNTED: [Metric; 4] =
    [Metric::SuccessRate, Metric::ErrorRate, Metric::TrapRate, Metric::LimitKillRate];

/// Counts of calls of one arm.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Counts {
    pub(super) requests: u64,
    success: u64,
    errors: u64,
    traps: u64,
    limit_kills: u64,
}

impl Counts {
    pub(super) fn add(&mut self, tally: &Tally) {
        let sums = [
            (&mut self.requests, tally.requests),
            (&mut self.success, tally.success),
            (&mut self.errors, tally.errors),
            (&mut self.traps, tally.traps),
            (&mut self.limit_kills, tally.limit_kills),
        ];
        sums.into_iter().for_each(|(sum, count)| *sum = sum.saturating_add(count));
    }

    /// Calls that were not answered as asked.
    pub(super) fn failed(&self) -> u64 {
        self.requests.saturating_sub(self.success)
    }

    fn bad(&self, metric: Metric) -> u64 {
        let bad = match metric {
            Metric::SuccessRate => self.failed(),
            Metric::ErrorRate => self.errors.saturating_add(self.traps).saturating_add(self.limit_kills),
            Metric::TrapRate => self.traps,
            _ => self.limit_kills,
        };
        bad.min(self.requests)
    }

    /// The rate of a metric, where there are calls and it is one of them.
    pub(super) fn rate(&self, metric: Metric) -> Option<f64> {
        if !COUNTED.contains(&metric) {
            return None;
        }
        let bad = self.bad(metric) as f64 / self.requests as f64;
        (self.requests > 0).then_some(if metric == Metric::SuccessRate { 1.0 - bad } else { bad })
    }
}

/// Counts of calls against which those of the candidate are held.
pub(super) fn of_counts(metric: Metric, stable: &Counts, candidate: &Counts, tolerance: f64) -> Vec<Finding> {
    let table = Table {
        candidate: candidate.requests,
        candidate_bad: candidate.bad(metric),
        stable: stable.requests,
        stable_bad: stable.bad(metric),
    };
    vec![Finding::of(String::new(), table, &worse(tolerance, &WORSE_RATES))]
}

/// Calls of a function that the stable revision lacks: whether more of them fail than are ever tolerated.
pub(super) fn of_errors_alone(candidate: &Counts) -> Vec<Finding> {
    of_share("alone", candidate.requests, candidate.bad(Metric::ErrorRate), MOST_ERRORS, &WORSE_ERRORS)
}

fn worse(tolerance: f64, factors: &[f64]) -> Vec<(f64, f64)> {
    factors.iter().map(|factor| (tolerance, tolerance * factor)).collect()
}

/// What is known of how long calls took, or what they used, earlier in this step.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Known {
    pub(super) stable: Histogram,
    pub(super) candidate: Histogram,
}

/// Counts beyond which what is known counts for half as much as what is new.
const KNOWN: u64 = 100_000;

impl Known {
    pub(super) fn add(&mut self, stable: &Histogram, candidate: &Histogram) {
        self.stable.add(stable);
        self.candidate.add(candidate);
        if self.stable.total().saturating_add(self.candidate.total()) > KNOWN {
            self.stable.halve();
            self.candidate.halve();
        }
    }
}

/// Times or sizes: whether more of the candidate's than of the stable revision's, each of which is first multiplied by
/// what is tolerated, are above thresholds of both together.
pub(super) fn of_sizes(
    metric: Metric,
    stable: &Histogram,
    candidate: &Histogram,
    known: &Known,
    tolerance: f64,
) -> Vec<Finding> {
    let shift = (tolerance.log2() * f64::from(BUCKETS_PER_DOUBLING)).round() as i16;
    let (cuts, factors): (&[(&str, f64)], &[f64]) = match metric {
        Metric::LatencyP50 => (&[("50", 0.5)], &WORSE_MEDIAN),
        Metric::LatencyP99 => (&TAILS, &WORSE_TAIL),
        _ => (&MEMORIES, &WORSE_TAIL),
    };
    let shifted = |bucket: i16| bucket.saturating_add(shift);
    let stable = stable.moved(shifted);
    let mut all = known.stable.moved(shifted);
    [&known.candidate, &stable, candidate].into_iter().for_each(|histogram| all.add(histogram));
    let ratios = worse(1.0, factors);
    let finding = |(name, quantile): &(&str, f64)| {
        let table = above(&stable, candidate, threshold(&all, *quantile));
        Finding::of((*name).to_owned(), table, &ratios)
    };
    cuts.iter().map(finding).collect()
}

/// The lowest bucket that counts as above a quantile: that of the quantile itself, unless nothing lies below it.
fn threshold(all: &Histogram, quantile: f64) -> i16 {
    let rank = quantile * all.total() as f64;
    let mut below = 0u64;
    for (bucket, count) in all.iter() {
        let with_this = below.saturating_add(count);
        if with_this as f64 > rank {
            return if below == 0 { bucket.saturating_add(1) } else { bucket };
        }
        below = with_this;
    }
    i16::MAX
}

fn above(stable: &Histogram, candidate: &Histogram, threshold: i16) -> Table {
    Table {
        candidate: candidate.total(),
        candidate_bad: candidate.at_least(threshold),
        stable: stable.total(),
        stable_bad: stable.at_least(threshold),
    }
}

/// Answers with NaN or infinities, by output.
pub(super) fn of_non_finite(stable: &Tally, candidate: &Tally, tolerance: f64) -> Vec<Finding> {
    let ratios = worse(tolerance, &WORSE_RATES);
    let nothing = Distribution::default();
    let finding = |output: &str| {
        let stable = stable.outputs.get(output).unwrap_or(&nothing);
        let candidate = candidate.outputs.get(output).unwrap_or(&nothing);
        let table = Table {
            candidate: candidate.finite.saturating_add(candidate.non_finite),
            candidate_bad: candidate.non_finite,
            stable: stable.finite.saturating_add(stable.non_finite),
            stable_bad: stable.non_finite,
        };
        Finding::of(output.to_owned(), table, &ratios)
    };
    outputs(stable, candidate).into_iter().map(finding).collect()
}

fn outputs<'a>(stable: &'a Tally, candidate: &'a Tally) -> BTreeSet<&'a str> {
    stable.outputs.keys().chain(candidate.outputs.keys()).map(String::as_str).collect()
}

/// How answers are distributed, by output: over classes, and over values.
pub(super) fn of_drift(stable: &Tally, candidate: &Tally, held: &Evidence, tolerance: f64) -> Vec<Finding> {
    let nothing = Distribution::default();
    let mut findings = Vec::new();
    let outputs = outputs(stable, candidate);
    let earlier = held.parts().filter_map(|part| Some(part.split_once(':')?.1));
    let places = places(outputs.iter().copied().chain(earlier).collect::<BTreeSet<_>>().len());
    for output in outputs {
        let stable = stable.outputs.get(output).unwrap_or(&nothing);
        let candidate = candidate.outputs.get(output).unwrap_or(&nothing);
        findings.extend(of_classes(output, stable, candidate, held, places, tolerance));
        findings.extend(of_values(output, &stable.values, &candidate.values, tolerance));
    }
    findings
}

fn of_classes(
    output: &str,
    stable: &Distribution,
    candidate: &Distribution,
    held: &Evidence,
    (most_classes, groups): (usize, u16),
    tolerance: f64,
) -> Vec<Finding> {
    let total = |of: &Distribution| of.classes.values().sum::<u64>();
    let (of_stable, of_candidate) = (total(stable), total(candidate));
    if of_stable == 0 && of_candidate == 0 {
        return Vec::new();
    }
    let mut alone: BTreeSet<u16> = held
        .parts()
        .filter_map(|part| class_of(part).filter(|(_, of)| *of == output))
        .map(|(class, _)| class)
        .collect();
    let mut both = stable.classes.clone();
    candidate.classes.iter().for_each(|(class, count)| *both.entry(*class).or_default() += count);
    let mut frequent: Vec<_> = both
        .into_iter()
        .filter(|(class, count)| {
            *count as f64 >= LEAST_SHARE * (of_stable + of_candidate) as f64 && !alone.contains(class)
        })
        .collect();
    frequent.sort_by_key(|(class, count)| (std::cmp::Reverse(*count), *class));
    frequent.truncate(most_classes.saturating_sub(alone.len()));
    alone.extend(frequent.into_iter().map(|(class, _)| class));
    let share = |of: &Distribution, mine: &dyn Fn(u16) -> bool| -> u64 {
        of.classes.iter().filter(|(class, _)| mine(**class)).map(|(_, count)| *count).sum()
    };
    let ratios: Vec<_> = worse(tolerance, &OTHER_SHARES)
        .into_iter()
        .flat_map(|(tolerated, other)| [(tolerated, other), (1.0 / tolerated, 1.0 / other)])
        .collect();
    let finding = |part: String, mine: &dyn Fn(u16) -> bool| {
        let table = Table {
            candidate: of_candidate,
            candidate_bad: share(candidate, mine),
            stable: of_stable,
            stable_bad: share(stable, mine),
        };
        Finding::of(part, table, &ratios)
    };
    let mut findings: Vec<_> =
        alone.iter().map(|class| finding(format!("c{class}:{output}"), &|other| other == *class)).collect();
    for group in 0..groups {
        let mine = |class: u16| class % groups == group && !alone.contains(&class);
        if share(stable, &mine) + share(candidate, &mine) > 0 {
            findings.push(finding(format!("g{group}:{output}"), &mine));
        }
    }
    findings
}

/// The class and the output of a part that watches one class.
fn class_of(part: &str) -> Option<(u16, &str)> {
    let (class, output) = part.strip_prefix('c')?.split_once(':')?;
    Some((class.parse().ok()?, output))
}

/// Whether values are larger, or smaller, than the stable revision's. One bucket, 4 %, is no difference.
fn of_values(output: &str, stable: &Histogram, candidate: &Histogram, tolerance: f64) -> Vec<Finding> {
    if stable.is_empty() && candidate.is_empty() {
        return Vec::new();
    }
    let ratios = worse(tolerance, &OTHER_SHARES);
    let mut findings = Vec::new();
    for (larger, direction) in [(true, 'u'), (false, 'd')] {
        // Seen from the other side, smaller is larger.
        let seen = |bucket: i16| if larger { bucket } else { -bucket };
        let candidate = candidate.moved(seen);
        let stable = stable.moved(seen).moved(|bucket| if bucket == 0 { 0 } else { bucket + 1 });
        let mut all = stable.clone();
        all.add(&candidate);
        for (name, quantile) in VALUES {
            let table = above(&stable, &candidate, threshold(&all, quantile));
            findings.push(Finding::of(format!("{direction}{name}:{output}"), table, &ratios));
        }
    }
    findings
}

/// Shadowed calls that the candidate answers otherwise, against those that the stable revision itself does.
pub(super) fn of_shadow(counts: &ShadowCounts, tolerance: f64) -> Vec<Finding> {
    let table = Table {
        candidate: counts.compared,
        candidate_bad: counts.mismatched.min(counts.compared),
        stable: counts.replayed,
        stable_bad: counts.noisy.min(counts.replayed),
    };
    vec![Finding::of(String::new(), table, &worse(tolerance, &WORSE_RATES))]
}

/// The same against a share that is tolerated whatever the stable revision does.
pub(super) fn of_shadow_alone(calls: u64, bad: u64, tolerated: f64) -> Vec<Finding> {
    of_share("", calls, bad, tolerated, &WORSE_SHADOWS)
}

/// Calls of the candidate alone, of which a share is tolerated. The alternatives are shares of what is left to 1.
fn of_share(part: &str, calls: u64, bad: u64, tolerated: f64, alternatives: &[f64]) -> Vec<Finding> {
    let bad = bad.min(calls);
    let table = Table { candidate: calls, candidate_bad: bad, stable: 0, stable_bad: 0 };
    let (bad, good) = (bad as f64, (calls - bad) as f64);
    let logs = alternatives.iter().map(|share| {
        let other = tolerated + (1.0 - tolerated) * share;
        let (of_bad, of_good) = (other.ln() - tolerated.ln(), (-other).ln_1p() - (-tolerated).ln_1p());
        if calls == 0 { 0.0 } else { bad * of_bad + good * of_good }
    });
    vec![Finding { part: part.to_owned(), table, logs: logs.collect() }]
}

/// What a part of the drift watches, in words.
pub(super) fn describe(part: &str, stable: f64, candidate: f64) -> String {
    let Some((kind, output)) = part.split_once(':') else { return part.to_owned() };
    let (kind, rest) = kind.split_at(1);
    let (of_stable, of_candidate) = (percent(stable), percent(candidate));
    let what = match (kind, rest.parse()) {
        ("u" | "d", _) => {
            let direction = if kind == "u" { "above" } else { "below" };
            return format!(
                "{of_candidate} of the candidate's values of `{output}` lie {direction} a threshold, and {of_stable} of \
                 the stable revision's"
            );
        }
        ("c", Ok(EMPTY)) => "has no elements".to_owned(),
        ("c", Ok(class)) if class < HASHED => format!("is {class}"),
        ("c", _) => "is one of a group of texts or large numbers".to_owned(),
        _ => "is one of a group of rare classes".to_owned(),
    };
    format!(
        "`{output}` {what} in {of_candidate} of the candidate's answers and {of_stable} of the stable revision's"
    )
}

/// A share, with as many digits as tell.
pub(super) fn percent(share: f64) -> String {
    let percent = share * 100.0;
    if percent == 0.0 || percent >= 10.0 {
        format!("{percent:.1} %")
    } else if percent >= 0.1 {
        format!("{percent:.2} %")
    } else {
        format!("{percent:.4} %")
    }
}
