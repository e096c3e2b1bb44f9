//! What has been gathered against a candidate: products of likelihood ratios that may be looked at as often as one likes.
//!
//! Each number here is 1 in the mean, at any time, while the candidate is as good as is tolerated. By Ville's inequality
//! it then ever reaches `x` with a probability of at most `1 / x`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::odds::Table;

/// Logarithms are kept as whole numbers of this, rounded down: short, the same after a restart, and never too large.
const UNIT: f64 = 1e-4;
/// Shares of the evidence are kept in millionths.
const WHOLE: u32 = 1_000_000;
/// The most parts that one metric is watched by: more than the outputs of a function ever have together.
const MOST_PARTS: usize = 512;
/// Of what is divided among parts: what those have that are there from the beginning, where others may come.
const AT_ONCE: u32 = WHOLE / 4 * 3;
/// Of those that come later, the `n`th has a share of 1 / ((n + 31) (n + 32)), as it were: all of them together have no
/// more than what is left, and the hundredth has a tenth of the first one's.
const LATE: u64 = 32;

/// Of the capital of a part: what is bet from the beginning, and what each later beginning may take of the rest, so that
/// a candidate that turns bad later is found out as well, whatever spoke for it before.
const AT_FIRST: f64 = 0.5;
const LATER: f64 = 0.25;

/// The evidence of one metric: the mean of that of its parts, weighted by what each was given when it was first seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Evidence {
    /// What no part has been given yet, in millionths.
    left: u32,
    parts: BTreeMap<String, Part>,
}

/// One way in which a candidate can be worse.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Stored", into = "Stored")]
struct Part {
    /// In millionths.
    share: u32,
    /// The step of the rollout that it was last brought up to date in, and steps and blocks that it has seen.
    step: u32,
    steps: u32,
    blocks: u32,
    /// For each alternative, the logarithm of the capital that is bet on it.
    logs: Vec<i32>,
    rates: Rates,
}

/// A part without the names of its fields: there may be hundreds, and they are written at each look.
type Stored = (u32, [u32; 3], Vec<i32>, [u64; 3]);

impl From<Stored> for Part {
    fn from((share, [step, steps, blocks], logs, [weight, stable, candidate]): Stored) -> Part {
        let rates = Rates { weight: Sum(weight), stable: Sum(stable), candidate: Sum(candidate) };
        Part { share, step, steps, blocks, logs, rates }
    }
}

impl From<Part> for Stored {
    fn from(part: Part) -> Stored {
        let Rates { weight, stable, candidate } = part.rates;
        (part.share, [part.step, part.steps, part.blocks], part.logs, [weight.0, stable.0, candidate.0])
    }
}

/// The rates of both arms as if each block had had the same mixture of both: weights may change between blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Rates {
    weight: Sum,
    stable: Sum,
    candidate: Sum,
}

/// A sum of numbers that are not negative, in thousandths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sum(u64);

impl Sum {
    fn add(&mut self, number: f64) {
        self.0 = self.0.saturating_add((number * 1000.0).round() as u64);
    }

    fn value(self) -> f64 {
        self.0 as f64 / 1000.0
    }
}

/// What one block says about one part.
pub(super) struct Finding {
    pub(super) part: String,
    pub(super) table: Table,
    /// Logarithms of likelihood ratios, one for each alternative, always as many for a part.
    pub(super) logs: Vec<f64>,
}

impl Finding {
    /// Of a table, against pairs of a tolerated ratio of odds and a worse one.
    pub(super) fn of(part: String, table: Table, ratios: &[(f64, f64)]) -> Finding {
        Finding { part, table, logs: table.likelihood_ratios(ratios) }
    }

    /// Has it multiply the evidence by `most` at most, which leaves its mean at 1 or below.
    pub(super) fn cap(&mut self, most: f64) {
        self.logs.iter_mut().for_each(|log| *log = log.min(most.ln()));
    }
}

impl Evidence {
    pub(super) fn new() -> Evidence {
        Evidence { left: WHOLE, parts: BTreeMap::new() }
    }

    /// Takes in what a block says. The first parts share what there is alike; where `growing`, they leave something to
    /// those that come later, however many they are.
    pub(super) fn add(&mut self, findings: &[Finding], step: u32, growing: bool) {
        let room = MOST_PARTS.saturating_sub(self.parts.len());
        let new: Vec<_> = findings
            .iter()
            .filter(|finding| !self.parts.contains_key(&finding.part))
            .take(room)
            .map(|finding| (finding.part.clone(), finding.logs.len()))
            .collect();
        let is_first = self.parts.is_empty();
        let given = if growing { AT_ONCE } else { WHOLE };
        let alike = given / u32::try_from(new.len()).unwrap_or(u32::MAX).max(1);
        for (name, alternatives) in new {
            let share = if is_first { alike } else { self.late_share() };
            self.left -= share;
            self.parts.insert(name, Part::new(share, step, alternatives));
        }
        for finding in findings {
            if let Some(part) = self.parts.get_mut(&finding.part) {
                part.add(finding, step);
            }
        }
    }

    /// What the next part has that comes late. How many there were before, what is left of it tells.
    fn late_share(&self) -> u32 {
        let (left, reserve) = (u64::from(self.left), u64::from(WHOLE - AT_ONCE));
        u32::try_from(left * left / (LATE * reserve + left).max(1)).unwrap_or_default()
    }

    pub(super) fn parts(&self) -> impl Iterator<Item = &str> {
        self.parts.keys().map(String::as_str)
    }

    /// How much speaks against the candidate: 1 at the beginning. Parts in which the arms differ by less than
    /// `difference` do not speak against it.
    pub(super) fn value(&self, difference: f64) -> f64 {
        let parts = self.parts.values().map(|part| f64::from(part.share) * part.weighed(difference));
        (f64::from(self.left) + parts.sum::<f64>()) / f64::from(WHOLE)
    }

    /// The part that speaks most against the candidate, and the rates of the stable revision and the candidate in it.
    pub(super) fn worst(&self, difference: f64) -> Option<(&str, Option<(f64, f64)>)> {
        let weighed = |part: &Part| f64::from(part.share) * part.weighed(difference);
        let (name, part) = self.parts.iter().max_by(|a, b| weighed(a.1).total_cmp(&weighed(b.1)))?;
        Some((name, part.rates.get()))
    }

    /// The rates of the stable revision and the candidate in the part in which they are furthest apart.
    pub(super) fn furthest(&self) -> Option<(f64, f64)> {
        let rates = self.parts.values().filter_map(|part| part.rates.get());
        rates.max_by(|a, b| (a.0 - a.1).abs().total_cmp(&(b.0 - b.1).abs()))
    }
}

impl Part {
    fn new(share: u32, step: u32, alternatives: usize) -> Part {
        let logs = vec![to_units(AT_FIRST.ln()); alternatives];
        Part { share, step, steps: 0, blocks: 0, logs, rates: Rates::default() }
    }

    fn add(&mut self, finding: &Finding, step: u32) {
        self.rates.add(&finding.table);
        // What tells nothing leaves the capital as it is.
        if finding.logs.iter().all(|log| *log == 0.0) || finding.logs.len() != self.logs.len() {
            return;
        }
        let mut begun = 0.0;
        if step > self.step {
            self.step = step;
            self.steps += 1;
            begun += LATER * between(self.steps);
        }
        if self.blocks > 0 {
            begun += LATER * between(self.blocks);
        }
        self.blocks = self.blocks.saturating_add(1);
        for (capital, log) in self.logs.iter_mut().zip(&finding.logs) {
            let before = f64::from(*capital) * UNIT;
            let with_begun = if begun > 0.0 { before + (begun / before.exp()).ln_1p() } else { before };
            // Where so little is left that the quotient is infinite, only what begins counts.
            let with_begun = if with_begun.is_finite() { with_begun } else { begun.ln() };
            *capital = to_units(with_begun + log);
        }
    }

    fn weighed(&self, difference: f64) -> f64 {
        let apart = self.rates.get().map_or(f64::INFINITY, |(stable, candidate)| (stable - candidate).abs());
        if apart >= difference { self.value() } else { self.value().min(1.0) }
    }

    fn value(&self) -> f64 {
        let begun = AT_FIRST
            + LATER * (1.0 - 1.0 / f64::from(self.blocks.max(1)))
            + LATER * (1.0 - 1.0 / f64::from(self.steps + 1));
        let capital = self.logs.iter().map(|log| (f64::from(*log) * UNIT).exp());
        capital.sum::<f64>() / self.logs.len().max(1) as f64 + 1.0 - begun
    }
}

/// What the `count`th later beginning takes: all of them together take 1.
fn between(count: u32) -> f64 {
    1.0 / (f64::from(count) * (f64::from(count) + 1.0))
}

fn to_units(log: f64) -> i32 {
    (log / UNIT).floor() as i32
}

impl Rates {
    fn add(&mut self, table: &Table) {
        if table.candidate == 0 || table.stable == 0 {
            return;
        }
        let (candidate, stable) = (table.candidate as f64, table.stable as f64);
        let weight = candidate * stable / (candidate + stable);
        self.weight.add(weight);
        self.stable.add(weight * table.stable_bad as f64 / stable);
        self.candidate.add(weight * table.candidate_bad as f64 / candidate);
    }

    fn get(&self) -> Option<(f64, f64)> {
        let weight = self.weight.value();
        (weight > 0.0).then(|| (self.stable.value() / weight, self.candidate.value() / weight))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATIOS: [(f64, f64); 2] = [(1.0, 1.4), (1.0, 0.7)];

    /// A share from 0 to 1, by splitmix64.
    fn share(state: &mut u64) -> f64 {
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let number = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((number ^ (number >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// A block of calls that are bad with the same probability in both arms.
    fn equal(state: &mut u64, bad: f64) -> Table {
        let mut of = |calls: u64| (0..calls).filter(|_| share(state) < bad).count() as u64;
        Table { candidate: 10, candidate_bad: of(10), stable: 40, stable_bad: of(40) }
    }

    #[test]
    fn evidence_is_one_in_the_mean_and_rarely_ever_large_though_parts_and_steps_come_and_go() {
        const RUNS: u64 = 4000;
        let (mut sum, mut ever) = (0.0, 0);
        for run in 0..RUNS {
            let mut state = run << 32;
            let mut evidence = Evidence::new();
            let mut largest = 0.0f64;
            for block in 0..12u32 {
                let mut findings = vec![Finding::of("first".to_owned(), equal(&mut state, 0.1), &RATIOS)];
                if block >= 4 {
                    findings.push(Finding::of("second".to_owned(), equal(&mut state, 0.4), &RATIOS));
                }
                evidence.add(&findings, block / 3, true);
                largest = largest.max(evidence.value(0.0));
            }
            sum += evidence.value(0.0);
            ever += u64::from(largest >= 10.0);
        }
        let mean = sum / RUNS as f64;
        assert!((0.95..1.05).contains(&mean), "{mean}");
        assert!(ever * 10 <= RUNS, "{ever} of {RUNS} come to 10");
    }

    #[test]
    fn parts_that_come_late_have_a_share_that_tells() {
        let mut evidence = Evidence::new();
        let finding = |part: u32| Finding::of(part.to_string(), Table::default(), &RATIOS);
        let first: Vec<_> = (0..20).map(finding).collect();
        evidence.add(&first, 0, true);
        // One by one, or many at a time.
        (20..120).for_each(|part| evidence.add(&[finding(part)], 0, true));
        evidence.add(&(120..220).map(finding).collect::<Vec<_>>(), 0, true);
        let share = |part: u32| evidence.parts[&part.to_string()].share;
        assert_eq!((share(0), share(20)), (AT_ONCE / 20, 7575));
        assert!(share(119) > 400 && share(219) > 100, "{} {}", share(119), share(219));
        let given: u32 = evidence.parts.values().map(|part| part.share).sum();
        assert_eq!(given + evidence.left, WHOLE);
        (220..600).for_each(|part| evidence.add(&[finding(part)], 0, true));
        assert_eq!(evidence.parts.len(), MOST_PARTS);
        assert!(evidence.left > 0);
    }

    #[test]
    fn what_speaks_for_a_candidate_does_not_outweigh_for_ever_what_speaks_against_it_later() {
        let mut evidence = Evidence::new();
        let mut add = |candidate_bad, blocks: u32| {
            let table = Table { candidate: 50, candidate_bad, stable: 50, stable_bad: 10 };
            (0..blocks).for_each(|_| {
                evidence.add(&[Finding::of("part".to_owned(), table, &[(1.0, 4.0)])], 0, false);
            });
            evidence.value(0.0)
        };
        assert!(add(5, 500) < 1.0);
        assert!(add(30, 4) > 1e6);
    }

    #[test]
    fn rates_are_those_of_equal_mixtures() {
        // Everything fails more often while the candidate takes more.
        let mut evidence = Evidence::new();
        for (candidate, stable, bad) in [(100, 900, 0.01), (900, 100, 0.5)] {
            let of = |calls: u64| (calls as f64 * bad) as u64;
            let table = Table { candidate, candidate_bad: of(candidate), stable, stable_bad: of(stable) };
            evidence.add(&[Finding::of("part".to_owned(), table, &RATIOS)], 0, false);
        }
        let (part, rates) = evidence.worst(0.0).unwrap();
        let (of_stable, of_candidate) = rates.unwrap();
        assert_eq!(part, "part");
        assert!((of_stable - of_candidate).abs() < 1e-3 && evidence.value(0.0) < 1.0);
        assert_eq!(evidence.furthest().unwrap(), (of_stable, of_candidate));
        // Parts that differ by too little do not speak against a candidate.
        assert!(evidence.value(0.5) <= 1.0);
    }
}
