//! Rollouts without a host: calls that are drawn one by one, counted as the data plane counts them, and judged.
//!
//! Also a part of `benches`, which simulates more of them; what it uses, its parent names.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use super::{
    Analysis, AnalysisSettings, Arms, Distribution, Histogram, Judgement, ShadowCounts, Tally, bucket,
    signed_bucket,
};

/// How one revision behaves. Probabilities are of a call.
#[derive(Clone, Debug)]
pub struct Behaviour {
    pub traps: f64,
    pub limit_kills: f64,
    pub errors: f64,
    pub raised: f64,
    /// The median, in milliseconds, and the spread of the logarithm of what calls take.
    pub median_ms: f64,
    pub spread: f64,
    /// The share of the slowest calls that take `tail_factor` times as long as they would.
    pub tail: f64,
    pub tail_factor: f64,
    pub memory_mib: f64,
    pub non_finite: f64,
    /// What the shares of the classes are to each other.
    pub classes: Vec<f64>,
    /// What values are multiplied by, and what is added to them; they have a mean of 10 and a deviation of 3.
    pub scale: f64,
    pub offset: f64,
    /// The share of shadowed calls that are answered otherwise than the first time.
    pub mismatched: f64,
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
pub struct Weather {
    /// What every call takes is multiplied by this.
    pub slower: f64,
    /// The probability that a call fails, whoever answers it.
    pub failing: f64,
}

/// How calls come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Traffic {
    /// Some 400 between two looks.
    Even,
    /// From none to thousands between two looks, in fair weather and foul.
    Bursty,
    /// Three between two looks, and a few hundred in all.
    AlmostNone,
    /// The weight of the candidate goes up and down between looks while calls come in bursts.
    ChangingWeights,
}

/// One kind of candidate.
#[derive(Clone, Debug)]
pub struct Kind {
    pub name: &'static str,
    pub bad: bool,
    pub stable: Behaviour,
    pub candidate: Behaviour,
    /// After so many of its calls the candidate behaves as `candidate`, and like the stable revision before.
    pub from: u64,
    pub traffic: Traffic,
    /// Whether calls are shadowed at first, 1,000 of them, half of them a second time to the stable revision.
    pub shadowed: bool,
}

/// How a rollout ended, after so many calls of the candidate since it behaved as its kind.
#[derive(Clone, Debug, PartialEq)]
pub enum End {
    RolledBack {
        calls: u64,
        reason: String,
    },
    /// Waits for a person.
    Paused,
    Promoted,
    /// Not enough calls came.
    Unfinished,
}

/// One rollout of the kind with the given seed.
pub fn rollout(kind: &Kind, steps: &[(f64, u64)], settings: &AnalysisSettings, seed: u64) -> End {
    let function = "f".to_owned();
    let mut analysis = Analysis::new(settings, std::slice::from_ref(&function));
    let mut calls = Calls::new(kind, seed);
    if kind.shadowed {
        while analysis.judged_by_shadow(1000) == Judgement::Going && calls.drawn < MOST_CALLS {
            analysis.look(&BTreeMap::from([(function.clone(), calls.shadowed())]));
        }
        if let Some(end) = calls.end(&analysis.judged_by_shadow(1000)) {
            return end;
        }
        analysis.next_step();
    }
    for (weight, min_samples) in steps {
        while analysis.judged_at(*min_samples) == Judgement::Going {
            if calls.drawn > MOST_CALLS || kind.traffic == Traffic::AlmostNone && calls.drawn > 400 {
                return End::Unfinished;
            }
            let varied = if kind.traffic == Traffic::ChangingWeights {
                // As when a person promotes, and goes back.
                analysis.next_step();
                [2.0, 10.0, 50.0, *weight][(calls.chance.next() % 4) as usize]
            } else {
                *weight
            };
            analysis.look(&BTreeMap::from([(function.clone(), calls.between_looks(varied / 100.0))]));
            if kind.traffic == Traffic::ChangingWeights && calls.drawn > 40_000 {
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

/// A rollout that is not over then never will be.
const MOST_CALLS: u64 = 400_000;

/// Calls as they come.
struct Calls<'a> {
    kind: &'a Kind,
    stable: Drawn,
    candidate: Drawn,
    chance: Chance,
    weather: Weather,
    /// All calls so far, and those of the candidate.
    drawn: u64,
    of_candidate: u64,
}

impl<'a> Calls<'a> {
    fn new(kind: &'a Kind, seed: u64) -> Calls<'a> {
        Calls {
            kind,
            stable: Drawn::new(&kind.stable),
            candidate: Drawn::new(&kind.candidate),
            chance: Chance(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d),
            weather: Weather { slower: 1.0, failing: 0.0 },
            drawn: 0,
            of_candidate: 0,
        }
    }

    fn end(&self, judgement: &Judgement) -> Option<End> {
        let calls = self.of_candidate.saturating_sub(self.kind.from);
        match judgement {
            Judgement::Failed { reason } => Some(End::RolledBack { calls, reason: reason.clone() }),
            Judgement::Inconclusive { .. } => Some(End::Paused),
            Judgement::Going | Judgement::Enough => None,
        }
    }

    fn between_looks(&mut self, weight: f64) -> Arms {
        let (mut stable, mut candidate) = (Counted::default(), Counted::default());
        let bursty = matches!(self.kind.traffic, Traffic::Bursty | Traffic::ChangingWeights);
        let calls = match self.kind.traffic {
            Traffic::Even => 200 + self.chance.next() % 401,
            Traffic::AlmostNone => self.chance.next() % 7,
            _ => [0, 30, 300, 3000][(self.chance.next() % 4) as usize],
        };
        for _ in 0..calls {
            if bursty && self.chance.share() < 0.01 {
                let foul = self.chance.share() < 0.3;
                self.weather = Weather {
                    slower: if foul { 1.0 + 9.0 * self.chance.share() } else { 1.0 },
                    failing: if foul { 0.5 * self.chance.share() } else { 0.0 },
                };
            }
            self.drawn += 1;
            if self.chance.share() < weight {
                self.of_candidate += 1;
                let behaves = if self.of_candidate > self.kind.from { &self.candidate } else { &self.stable };
                behaves.call(&mut self.chance, &self.weather, &mut candidate);
            } else {
                self.stable.call(&mut self.chance, &self.weather, &mut stable);
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
            counts.mismatched += u64::from(self.chance.share() < self.kind.candidate.mismatched);
            if self.chance.share() < 0.5 {
                counts.replayed += 1;
                counts.noisy += u64::from(self.chance.share() < self.kind.stable.mismatched);
            }
        }
        Arms { shadow: Some(counts), ..Arms::default() }
    }
}

/// A behaviour in the form in which calls are drawn quickly.
struct Drawn {
    /// Each the sum of itself and those before it.
    ends: [f64; 4],
    median_bucket: f64,
    spread_buckets: f64,
    /// The slowest of [`normal`] that are in the tail, and the buckets that they are slower by.
    tail_from: u64,
    tail_buckets: f64,
    memory: i16,
    non_finite: f64,
    classes: Vec<f64>,
    scale: f64,
    offset: f64,
}

const BUCKETS: f64 = 16.0;

impl Drawn {
    fn new(behaviour: &Behaviour) -> Drawn {
        let mut end = 0.0;
        let ends =
            [behaviour.traps, behaviour.limit_kills, behaviour.errors, behaviour.raised].map(|share| {
                end += share;
                end
            });
        let total: f64 = behaviour.classes.iter().sum();
        let mut end = 0.0;
        let classes = behaviour.classes.iter().map(|share| {
            end += share / total;
            end
        });
        Drawn {
            ends,
            median_bucket: ((behaviour.median_ms * 1e6).log2() - 10.0) * BUCKETS,
            spread_buckets: behaviour.spread * std::f64::consts::LOG2_E * BUCKETS,
            tail_from: ((1.0 - behaviour.tail) * NORMALS as f64) as u64,
            tail_buckets: behaviour.tail_factor.log2() * BUCKETS,
            memory: bucket((behaviour.memory_mib * f64::from(1 << 20)) as u64),
            non_finite: behaviour.non_finite,
            classes: classes.collect(),
            scale: behaviour.scale,
            offset: behaviour.offset,
        }
    }

    fn call(&self, chance: &mut Chance, weather: &Weather, counted: &mut Counted) {
        counted.requests += 1;
        if counted.memory.is_empty() {
            counted.memory = vec![0; 512];
            counted.latency = vec![0; 512];
            counted.values = BTreeMap::new();
            counted.classes = vec![0; self.classes.len()];
        }
        let share = chance.share();
        if share < self.ends[3] + weather.failing {
            let place = self.ends.iter().position(|end| share < *end).unwrap_or(2);
            counted.ended[place] += 1;
            return;
        }
        let quantile = chance.next() % NORMALS as u64;
        let slow = if quantile >= self.tail_from { self.tail_buckets } else { 0.0 };
        let latency = self.median_bucket
            + self.spread_buckets * NORMAL[quantile as usize]
            + slow
            + if weather.slower > 1.0 { weather.slower.log2() * BUCKETS } else { 0.0 };
        counted.latency[latency.clamp(0.0, 511.0) as usize] += 1;
        counted.memory[self.memory as usize] += 1;
        if self.non_finite > 0.0 && chance.share() < self.non_finite {
            counted.non_finite += 1;
            return;
        }
        let class = chance.share();
        counted.classes[self.classes.iter().position(|end| class < *end).unwrap_or(0)] += 1;
        let value = 10.0 + 3.0 * NORMAL[(chance.next() % NORMALS as u64) as usize];
        *counted.values.entry(signed_bucket(value * self.scale + self.offset)).or_default() += 1;
    }
}

/// What was counted of one arm between two looks.
#[derive(Default)]
struct Counted {
    requests: u64,
    /// Traps, limit kills, errors, raised.
    ended: [u64; 4],
    latency: Vec<u64>,
    memory: Vec<u64>,
    non_finite: u64,
    classes: Vec<u64>,
    values: BTreeMap<i16, u64>,
}

impl Counted {
    fn tally(self) -> Tally {
        let histogram = |counts: &[u64]| {
            let mut histogram = Histogram::new();
            (0..).zip(counts).for_each(|(bucket, count)| histogram.add_to(bucket, *count));
            histogram
        };
        let [traps, limit_kills, errors, raised] = self.ended;
        let success = self.requests - self.ended.iter().sum::<u64>();
        let mut distribution = Distribution {
            finite: success - self.non_finite,
            non_finite: self.non_finite,
            ..Distribution::default()
        };
        distribution.classes = (0..)
            .zip(&self.classes)
            .filter(|(_, count)| **count > 0)
            .map(|(class, count)| (class, *count))
            .collect();
        self.values.iter().for_each(|(bucket, count)| distribution.values.add_to(*bucket, *count));
        Tally {
            requests: self.requests,
            success,
            raised,
            errors,
            traps,
            limit_kills,
            latency: histogram(&self.latency),
            memory: histogram(&self.memory),
            memory_peak_bytes: 0,
            outputs: BTreeMap::from([("scores".to_owned(), distribution)]),
        }
    }
}

/// splitmix64.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let number = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        number ^ (number >> 31)
    }

    /// From 0 to 1.
    fn share(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

const NORMALS: usize = 1 << 16;

/// The quantiles of the normal distribution, so that drawing one is a look into a table.
static NORMAL: LazyLock<Vec<f64>> = LazyLock::new(|| {
    // Integrated from the middle, where the quantile is 0, in steps much smaller than those of the table.
    let mut upper = vec![0.0; NORMALS / 2];
    let (mut z, mut below) = (0.0f64, 0.5f64);
    for (place, quantile) in upper.iter_mut().enumerate() {
        let wanted = 0.5 + (place as f64 + 0.5) / NORMALS as f64;
        for _ in 0..8 {
            let step = (wanted - below) / 8.0_f64.max(1.0);
            let density = |z: f64| (-z * z / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
            let first = step / density(z);
            z += step / density(z + first / 2.0);
            below += step;
        }
        *quantile = z;
    }
    upper.iter().rev().map(|z| -z).chain(upper.iter().copied()).collect()
});
