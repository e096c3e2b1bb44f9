//! How likely a two by two table is under one ratio of odds or another, given its margins: Fisher's noncentral
//! hypergeometric distribution, exact also where counts are small.

/// Above this many calls a table is scaled down, which only ever takes from the evidence and bounds the work.
const LARGEST: f64 = 2e6;
/// Terms below this share of the largest do not change a sum.
const NEGLIGIBLE: f64 = 1e-17;

/// Calls of both arms in one stretch of time, and how many of each were bad.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) candidate: u64,
    pub(super) candidate_bad: u64,
    pub(super) stable: u64,
    pub(super) stable_bad: u64,
}

impl Table {
    /// Whether the table tells anything of the ratio of odds: both arms have calls, and not all calls are alike.
    pub(super) fn tells(&self) -> bool {
        let bad = self.candidate_bad.saturating_add(self.stable_bad);
        self.candidate > 0 && self.stable > 0 && bad > 0 && bad < self.candidate.saturating_add(self.stable)
    }

    /// For each pair of a tolerated ratio of odds and another, the logarithm of how many times likelier this table is
    /// under the other. Among tables of these margins, and under any ratio that is no worse than the tolerated one, its
    /// exponential is 1 in the mean or less.
    pub(super) fn likelihood_ratios(&self, ratios: &[(f64, f64)]) -> Vec<f64> {
        if !self.tells() {
            return vec![0.0; ratios.len()];
        }
        let scale = (LARGEST / (self.candidate as f64 + self.stable as f64)).min(1.0);
        let scaled = |count: u64| if scale < 1.0 { (count as f64 * scale).floor() } else { count as f64 };
        let margins = Margins {
            candidate: scaled(self.candidate),
            stable: scaled(self.stable),
            bad: scaled(self.candidate_bad) + scaled(self.stable_bad),
        };
        let candidate_bad = scaled(self.candidate_bad);
        let mut known: Vec<(f64, f64)> = Vec::new();
        let mut normaliser = |ratio: f64| match known.iter().find(|(held, _)| *held == ratio) {
            Some((_, value)) => *value,
            None => {
                let value = margins.log_normaliser(ratio);
                known.push((ratio, value));
                value
            }
        };
        ratios
            .iter()
            .map(|(tolerated, other)| {
                candidate_bad * (other / tolerated).ln() + normaliser(*tolerated) - normaliser(*other)
            })
            .collect()
    }
}

/// What is held fixed of a table.
struct Margins {
    candidate: f64,
    stable: f64,
    bad: f64,
}

impl Margins {
    /// The logarithm of the sum, over all tables of these margins, of the weight of each: the number of ways that it
    /// comes about, times the ratio of odds for each bad call of the candidate.
    fn log_normaliser(&self, ratio: f64) -> f64 {
        let (candidate, stable, bad) = (self.candidate, self.stable, self.bad);
        let (least, most) = ((bad - stable).max(0.0), candidate.min(bad));
        let mode = self.mode(ratio).floor().clamp(least, most);
        let mut sum = 1.0;
        let (mut term, mut x) = (1.0, mode);
        while x < most && term > NEGLIGIBLE * sum {
            term *= (candidate - x) * (bad - x) * ratio / ((x + 1.0) * (stable - bad + x + 1.0));
            x += 1.0;
            sum += term;
        }
        (term, x) = (1.0, mode);
        while x > least && term > NEGLIGIBLE * sum {
            term *= x * (stable - bad + x) / ((candidate - x + 1.0) * (bad - x + 1.0) * ratio);
            x -= 1.0;
            sum += term;
        }
        log_choose(candidate, mode) + log_choose(stable, bad - mode) + mode * ratio.ln() + sum.ln()
    }

    /// Where the weights are largest, or next to it: there a call more is as likely as not.
    fn mode(&self, ratio: f64) -> f64 {
        let linear = ratio * (self.candidate + self.bad) + self.stable - self.bad;
        let constant = ratio * self.candidate * self.bad;
        let root = (linear * linear - 4.0 * (ratio - 1.0) * constant).max(0.0).sqrt();
        2.0 * constant / (linear + root)
    }
}

fn log_choose(of: f64, chosen: f64) -> f64 {
    log_factorial(of) - log_factorial(chosen) - log_factorial(of - chosen)
}

/// Stirling's series where it is exact to the last digits, and products below.
fn log_factorial(number: f64) -> f64 {
    const EXACT_FROM: f64 = 16.0;
    let (mut product, mut x) = (1.0, number);
    while x < EXACT_FROM {
        x += 1.0;
        product *= x;
    }
    let square = x * x;
    let series = (1.0 / 12.0 - (1.0 / 360.0 - (1.0 / 1260.0 - 1.0 / 1680.0 / square) / square) / square) / x;
    (x + 0.5) * x.ln() - x + 0.5 * (2.0 * std::f64::consts::PI).ln() + series - f64::ln(product)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factorials_are_exact() {
        let mut exact = 0.0;
        for number in 1..200 {
            exact += f64::from(number).ln();
            let difference = (log_factorial(f64::from(number)) - exact).abs();
            assert!(difference < 1e-11, "{number}: {difference}");
        }
        assert!(log_factorial(0.0).abs() < 1e-12);
    }

    /// The sum over all tables, by brute force.
    fn normaliser(margins: &Margins, ratio: f64) -> f64 {
        let least = (margins.bad - margins.stable).max(0.0) as u64;
        let most = margins.candidate.min(margins.bad) as u64;
        let terms = (least..=most).map(|x| {
            let x = x as f64;
            log_choose(margins.candidate, x) + log_choose(margins.stable, margins.bad - x) + x * ratio.ln()
        });
        terms.map(f64::exp).sum::<f64>().ln()
    }

    #[test]
    fn sums_are_those_of_all_tables() {
        for (candidate, stable, bad) in
            [(1, 1, 1), (5, 95, 1), (5, 95, 99), (40, 60, 50), (60, 40, 70), (3, 200, 17)]
        {
            let margins = Margins { candidate: candidate.into(), stable: stable.into(), bad: bad.into() };
            for ratio in [0.001, 0.3, 1.0, 1.2, 4.0, 1000.0] {
                let (actual, expected) = (margins.log_normaliser(ratio), normaliser(&margins, ratio));
                assert!(
                    (actual - expected).abs() < 1e-9,
                    "{candidate} {stable} {bad} {ratio}: {actual} {expected}"
                );
            }
        }
    }

    #[test]
    fn the_evidence_is_one_in_the_mean_at_the_tolerated_ratio_and_less_below() {
        for (candidate, stable, bad) in [(10, 90, 3), (50, 50, 10), (20, 5, 12)] {
            let margins = Margins { candidate: candidate as f64, stable: stable as f64, bad: bad as f64 };
            for (tolerated, other) in [(1.0, 2.0), (1.2, 60.0), (0.5, 0.1)] {
                let mean = |truth: f64| {
                    let tables = (0..=candidate.min(bad)).filter(|x| bad - x <= stable).map(|x| {
                        let table = Table { candidate, candidate_bad: x, stable, stable_bad: bad - x };
                        let ways = log_choose(candidate as f64, x as f64)
                            + log_choose(stable as f64, (bad - x) as f64)
                            + x as f64 * truth.ln();
                        let chance = (ways - margins.log_normaliser(truth)).exp();
                        chance * table.likelihood_ratios(&[(tolerated, other)])[0].exp()
                    });
                    tables.sum::<f64>()
                };
                assert!((mean(tolerated) - 1.0).abs() < 1e-9);
                let better = if other > tolerated { tolerated * 0.8 } else { tolerated * 1.25 };
                assert!(mean(better) < 1.0);
            }
        }
    }

    #[test]
    fn tables_that_tell_nothing_count_for_nothing_and_large_ones_are_bounded() {
        for table in [
            Table { candidate: 0, candidate_bad: 0, stable: 10, stable_bad: 3 },
            Table { candidate: 5, candidate_bad: 5, stable: 5, stable_bad: 5 },
            Table { candidate: 5, candidate_bad: 0, stable: 5, stable_bad: 0 },
        ] {
            assert_eq!(table.likelihood_ratios(&[(1.0, 2.0)]), [0.0]);
        }
        let half = u64::MAX / 4;
        let table = Table { candidate: half, candidate_bad: half / 2, stable: half, stable_bad: half / 3 };
        let evidence = table.likelihood_ratios(&[(1.0, 2.0), (1.0, 0.5)]);
        assert!(evidence[0] > 1e4 && evidence[1] < -1e4, "{evidence:?}");
    }
}
