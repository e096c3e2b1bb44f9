//! Rollouts without a host: calls that are drawn one by one, counted as the data plane counts them, and judged.
//!
//! Also a part of `benches`, which simulates more of them; what it uses, its parent names.

use std::collections::BTreeMap;

use super::{
    Analysis, AnalysisSettings, Arms, Distribution, Histogram, Judgement, ShadowCounts, Tally, bucket,
    signed_bucket,
};

/// How one revision behaves. Probabilities are of a call.
#[derive(Clone, Debug)]
pub(super) struct Behaviour {
    pub(super) traps: f64,
    pub(super) limit_kills: f64,
    pub(super) errors: f64,
    pub(super) raised: f64,
    /// The median, in milliseconds, and the spread of the logarithm of what calls take.
    pub(super) median_ms: f64,
    pub(super) spread: f64,
    /// The share of the slowest calls that take `tail_factor` times as long as they would.
    pub(super) tail: f64,
    pub(super) tail_factor: f64,
    pub(super) memory_mib: f64,
    pub(super) non_finite: f64,
    /// What the shares of the classes are to each other.
    pub(super) classes: Vec<f64>,
    /// What values are multiplied by, and what is added to them; they have a mean of 10 and a deviation of 3.
    pub(super) scale: f64,
    pub(super) offset: f64,
    /// The share of shadowed calls that are answered otherwise than the first time.
    pub(super) mismatched: f64,
}

impl Default for Behaviour {
    fn default() -> Self {
        Behaviour {
            traps: 0.0,
            limit_kills: 0.0,
            errors: 0.001,
            raised: 0.01,
            median_ms: 8.0,
            spread: 0.5,
            tail: 0.0,
            tail_factor: 1.0,
            memory_mib: 20.0,
            non_finite: 0.0,
            classes: vec![1.0; 10],
            scale: 1.0,
            offset: 0.0,
            mismatched: 0.002,
        }
    }
}

/// What both revisions have in common at one moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Weather {
    /// The buckets that every call is slower by.
    pub(super) slower: u16,
    /// The probability that a call fails, whoever answers it.
    pub(super) failing: f64,
}

/// How calls come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Traffic {
    /// About as many between any two looks.
    Even,
    /// From none to thousands between two looks, in fair weather and foul.
    Bursty,
    /// Ten between two looks, and a few hundred in all.
    AlmostNone,
    /// Even, but now and then one of the revisions, by itself, is ten times slower for a while.
    Stalls,
    /// The weight of the candidate goes up and down between looks while calls come in bursts.
    ChangingWeights,
}

/// One kind of candidate.
#[derive(Clone, Debug)]
pub(super) struct Kind {
    pub(super) name: &'static str,
    pub(super) bad: bool,
    pub(super) stable: Behaviour,
    pub(super) candidate: Behaviour,
    /// After so many of its calls the candidate behaves as `candidate`, and like the stable revision before.
    pub(super) from: u64,
    pub(super) traffic: Traffic,
    /// Whether calls are shadowed at first, 1,000 of them, half of them a second time to the stable revision.
    pub(super) shadowed: bool,
}

/// How a rollout ended, after so many calls of the candidate since it behaved as its kind.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum End {
    RolledBack {
        calls: u64,
    },
    /// Waits for a person.
    Paused,
    Promoted,
    /// Not enough calls came.
    Unfinished,
}

/// A kind of candidate in the form in which its rollouts are simulated quickly.
pub(super) struct Simulated<'a> {
    kind: &'a Kind,
    stable: Drawn,
    candidate: Drawn,
}

impl<'a> Simulated<'a> {
    pub(super) fn new(kind: &'a Kind) -> Simulated<'a> {
        Simulated { kind, stable: Drawn::new(&kind.stable), candidate: Drawn::new(&kind.candidate) }
    }

    /// One rollout, by its number, with so many calls between two looks where traffic is even. `looked` sees the
    /// evidence after each look.
    pub(super) fn rollout(
        &self,
        steps: &[(f64, u64)],
        settings: &AnalysisSettings,
        between_looks: u64,
        number: u64,
        mut looked: impl FnMut(&mut Analysis),
    ) -> End {
        let mut analysis = Analysis::new(settings, &[FUNCTION.to_owned()]);
        let traffic = self.kind.traffic;
        let mut calls = Calls::new(self, number);
        let mut look = |analysis: &mut Analysis, arms: Arms| {
            analysis.look(&BTreeMap::from([(FUNCTION.to_owned(), arms)]));
            looked(analysis);
        };
        if self.kind.shadowed {
            while analysis.judged_by_shadow(1000) == Judgement::Going && calls.drawn < MOST_CALLS {
                look(&mut analysis, calls.shadowed());
            }
            if let Some(end) = calls.end(&analysis.judged_by_shadow(1000)) {
                return end;
            }
            analysis.next_step();
        }
        for (weight, min_samples) in steps {
            while analysis.judged_at(*min_samples) == Judgement::Going {
                if calls.drawn > MOST_CALLS || traffic == Traffic::AlmostNone && calls.drawn > 250 {
                    return End::Unfinished;
                }
                let varied = if traffic == Traffic::ChangingWeights {
                    // As when a person promotes, and goes back.
                    analysis.next_step();
                    [2.0, 10.0, 50.0, *weight][(calls.chance.next() % 4) as usize]
                } else {
                    *weight
                };
                look(&mut analysis, calls.between_looks(between_looks, varied / 100.0));
                if traffic == Traffic::ChangingWeights && calls.drawn > 20_000 {
                    return calls.end(&analysis.judged_at(1)).unwrap_or(End::Promoted);
                }
            }
            if let Some(end) = calls.end(&analysis.judged_at(*min_samples)) {
                return end;
            }
            analysis.next_step();
        }
        End::Promoted
    }
}

const FUNCTION: &str = "f";

/// A rollout that is not over then never will be.
const MOST_CALLS: u64 = 400_000;

/// Calls as they come.
struct Calls<'a> {
    of: &'a Simulated<'a>,
    chance: Chance,
    weather: Weather,
    /// Until which call the stable revision is slow, and the candidate.
    stalled: [u64; 2],
    /// All calls so far, and those of the candidate.
    drawn: u64,
    of_candidate: u64,
}

impl<'a> Calls<'a> {
    fn new(of: &'a Simulated<'a>, seed: u64) -> Calls<'a> {
        Calls {
            of,
            chance: Chance(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d),
            weather: Weather { slower: 0, failing: 0.0 },
            stalled: [0; 2],
            drawn: 0,
            of_candidate: 0,
        }
    }

    fn end(&self, judgement: &Judgement) -> Option<End> {
        let calls = self.of_candidate.saturating_sub(self.of.kind.from);
        match judgement {
            Judgement::Failed { .. } => Some(End::RolledBack { calls }),
            Judgement::Inconclusive { .. } => Some(End::Paused),
            Judgement::Going | Judgement::Enough => None,
        }
    }

    fn between_looks(&mut self, even: u64, weight: f64) -> Arms {
        let Simulated { kind, stable: stable_draws, candidate: candidate_draws } = self.of;
        let (mut stable, mut candidate) = (Counted::new(), Counted::new());
        let bursty = matches!(kind.traffic, Traffic::Bursty | Traffic::ChangingWeights);
        let calls = match kind.traffic {
            Traffic::Even | Traffic::Stalls => even / 2 + self.chance.next() % even,
            Traffic::AlmostNone => self.chance.next() % 21,
            _ => [0, even / 10, even, 3 * even][(self.chance.next() % 4) as usize],
        };
        for _ in 0..calls {
            if bursty && self.chance.share() < 0.01 {
                let foul = self.chance.share() < 0.3;
                self.weather = Weather {
                    slower: if foul { (self.chance.next() % 50) as u16 } else { 0 },
                    failing: if foul { 0.5 * self.chance.share() } else { 0.0 },
                };
            }
            self.drawn += 1;
            let to_candidate = self.chance.share() < weight;
            if kind.traffic == Traffic::Stalls {
                for stalled in &mut self.stalled {
                    if self.chance.share() < 1.0 / 5000.0 {
                        *stalled = self.drawn + 100;
                    }
                }
                let stalled = self.drawn < self.stalled[usize::from(to_candidate)];
                self.weather.slower = if stalled { 53 } else { 0 };
            }
            if to_candidate {
                self.of_candidate += 1;
                let behaves = if self.of_candidate > kind.from { candidate_draws } else { stable_draws };
                behaves.call(&mut self.chance, self.weather, &mut candidate);
            } else {
                stable_draws.call(&mut self.chance, self.weather, &mut stable);
            }
        }
        Arms { stable: stable.tally(), candidate: candidate.tally(), shadow: None }
    }

    fn shadowed(&mut self) -> Arms {
        let mut counts = ShadowCounts::default();
        for _ in 0..100 {
            self.drawn += 1;
            self.of_candidate += 1;
            counts.compared += 1;
            counts.mismatched += u64::from(self.chance.share() < self.of.kind.candidate.mismatched);
            if self.chance.share() < 0.5 {
                counts.replayed += 1;
                counts.noisy += u64::from(self.chance.share() < self.of.kind.stable.mismatched);
            }
        }
        Arms { shadow: Some(counts), ..Arms::default() }
    }
}

/// A behaviour in the form in which calls are drawn quickly: tables, of which each entry is as likely as another.
struct Drawn {
    /// Traps, limit kills, errors, raised: each the sum of itself and those before it.
    ends: [f64; 4],
    latency: Vec<u16>,
    memory: i16,
    non_finite: f64,
    classes: Vec<u16>,
    /// From [`LEAST_VALUE`].
    values: Vec<u16>,
}

const TABLE: usize = 1 << 14;
const LEAST_VALUE: i16 = -1100;
const BUCKETS: f64 = 16.0;

impl Drawn {
    fn new(behaviour: &Behaviour) -> Drawn {
        let mut end = 0.0;
        let ends =
            [behaviour.traps, behaviour.limit_kills, behaviour.errors, behaviour.raised].map(|share| {
                end += share;
                end
            });
        let normals = normals();
        let tail_from = (1.0 - behaviour.tail) * TABLE as f64;
        let latency = normals.iter().enumerate().map(|(place, normal)| {
            let slow = if place as f64 >= tail_from { behaviour.tail_factor.log2() } else { 0.0 };
            let doublings =
                (behaviour.median_ms * 1e6).log2() - 10.0 + behaviour.spread * normal / 2f64.ln() + slow;
            (doublings * BUCKETS) as u16
        });
        let total: f64 = behaviour.classes.iter().sum();
        let (mut class, mut end) = (0, behaviour.classes[0] / total);
        let classes = (0..TABLE).map(|place| {
            while (place as f64 + 0.5) / TABLE as f64 > end && class + 1 < behaviour.classes.len() {
                class += 1;
                end += behaviour.classes[class] / total;
            }
            class as u16
        });
        let values = normals.iter().map(|normal| {
            let value = (10.0 + 3.0 * normal) * behaviour.scale + behaviour.offset;
            (signed_bucket(value) - LEAST_VALUE) as u16
        });
        Drawn {
            ends,
            latency: latency.collect(),
            memory: bucket((behaviour.memory_mib * f64::from(1 << 20)) as u64),
            non_finite: behaviour.non_finite,
            classes: classes.collect(),
            values: values.collect(),
        }
    }

    fn call(&self, chance: &mut Chance, weather: Weather, counted: &mut Counted) {
        counted.requests += 1;
        let share = chance.share();
        if share < self.ends[3] + weather.failing {
            let place = self.ends.iter().position(|end| share < *end).unwrap_or(2);
            counted.ended[place] += 1;
            return;
        }
        let places = chance.next();
        let place = |part: u32| (places >> (16 * part)) as usize % TABLE;
        counted.latency[usize::from(self.latency[place(0)] + weather.slower)] += 1;
        counted.memory = self.memory;
        if self.non_finite > 0.0 && chance.share() < self.non_finite {
            counted.non_finite += 1;
            return;
        }
        counted.classes[usize::from(self.classes[place(1)])] += 1;
        counted.values[usize::from(self.values[place(2)])] += 1;
    }
}

/// The quantiles of the normal distribution.
fn normals() -> Vec<f64> {
    // Integrated from the middle, where it is 0, in steps much smaller than those of the table.
    let mut z = 0.0f64;
    let density = |z: f64| (-z * z / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
    let step = 0.5 / (TABLE as f64 / 2.0) / 32.0;
    let upper = (0..TABLE / 2).map(|_| {
        let mut middle = z;
        for part in 0..32 {
            let half = step / 2.0 / density(z);
            z += step / density(z + half);
            middle = if part == 15 { z } else { middle };
        }
        middle
    });
    let upper: Vec<f64> = upper.collect();
    upper.iter().rev().map(|z| -z).chain(upper.iter().copied()).collect()
}

/// What was counted of one arm between two looks.
struct Counted {
    requests: u64,
    /// Traps, limit kills, errors, raised.
    ended: [u64; 4],
    latency: [u64; 512],
    memory: i16,
    non_finite: u64,
    classes: [u64; 256],
    values: [u64; 2200],
}

impl Counted {
    fn new() -> Counted {
        Counted {
            requests: 0,
            ended: [0; 4],
            latency: [0; 512],
            memory: 0,
            non_finite: 0,
            classes: [0; 256],
            values: [0; 2200],
        }
    }

    fn tally(self) -> Tally {
        let histogram = |counts: &[u64], first: i16| {
            let mut histogram = Histogram::new();
            for (place, count) in counts.iter().enumerate() {
                if *count > 0 {
                    histogram.add_to(first + place as i16, *count);
                }
            }
            histogram
        };
        let [traps, limit_kills, errors, raised] = self.ended;
        let success = self.requests - self.ended.iter().sum::<u64>();
        let classes = (0..).zip(self.classes).filter(|(_, count)| *count > 0);
        let distribution = Distribution {
            finite: success - self.non_finite,
            non_finite: self.non_finite,
            classes: classes.collect(),
            values: histogram(&self.values, LEAST_VALUE),
        };
        let mut memory = Histogram::new();
        memory.add_to(self.memory, success);
        Tally {
            requests: self.requests,
            success,
            raised,
            errors,
            traps,
            limit_kills,
            left: 0,
            latency: histogram(&self.latency, 0),
            memory,
            memory_peak_bytes: 0,
            outputs: BTreeMap::from([("scores".to_owned(), distribution)]),
        }
    }
}

/// splitmix64.
pub(super) struct Chance(pub(super) u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let number = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        number ^ (number >> 31)
    }

    /// From 0 to 1.
    pub(super) fn share(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}
