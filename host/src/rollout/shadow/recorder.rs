//! What is kept of all comparisons of one function, in bounded memory.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::capture::{Asked, Kept};
use super::compare::{Comparison, Part, Severity};
use super::{Bin, Cost, Disagreement, LeftOut, OutputReport, Report, ShadowCounts, ShadowSettings};

/// Takes what shadowed calls of one function came to.
pub struct Recorder {
    function: String,
    settings: ShadowSettings,
    state: Mutex<State>,
    /// Counted where live calls are answered, which nothing may hold up.
    left_out: [AtomicU64; LeftOut::ALL.len()],
}

/// What one run took of the host.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spent {
    pub took: Duration,
    /// Of that, in inferences.
    pub infer: Duration,
    pub memory_bytes: u64,
    pub fuel: Option<u64>,
}

/// One call that the candidate got as well.
pub struct Compared<'a> {
    pub candidate: (Comparison, Spent),
    /// The stable revision's second answer, where it was asked for one.
    pub replay: Option<(Comparison, Spent)>,
    pub time_ms: u64,
    pub request_id: Option<&'a str>,
    pub asked: Asked<'a>,
}

#[derive(Default)]
struct State {
    counts: ShadowCounts,
    outputs: BTreeMap<String, Output>,
    /// The worst first.
    worst: Vec<Worst>,
    candidate: Costs,
    stable: Costs,
    failures: BTreeMap<&'static str, u64>,
}

struct Worst {
    severity: Severity,
    disagreement: Disagreement,
    request: Option<Kept>,
}

#[derive(Default)]
struct Output {
    rule: String,
    candidate: Side,
    stable: Side,
}

/// What one revision answered as an output.
#[derive(Default)]
struct Side {
    compared: u64,
    mismatched: u64,
    largest: Option<f64>,
    /// Calls by their largest distance, one for each of [`BOUNDS`] and one beyond.
    distances: [u64; BOUNDS.len() + 1],
    same_top: u64,
    rows: u64,
}

/// The bounds of the bins of distances: none at all, and then the powers of ten.
const BOUNDS: [f64; 20] = [
    0.0, 1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8,
    1e9,
];

/// Outputs that are told apart; signatures have at most as many.
const MOST_OUTPUTS: usize = 256;

/// The most that is kept of what a candidate says in one difference, in bytes.
const LONGEST: usize = 400;

impl Recorder {
    pub fn new(function: &str, settings: &ShadowSettings) -> Recorder {
        Recorder {
            function: function.to_owned(),
            settings: settings.clone(),
            state: Mutex::default(),
            left_out: Default::default(),
        }
    }

    pub fn settings(&self) -> &ShadowSettings {
        &self.settings
    }

    /// A call that was compared.
    pub fn compared(&self, call: Compared<'_>) {
        let Compared { candidate: (comparison, spent), replay, time_ms, request_id, asked } = call;
        let mut state = self.lock();
        let counts = &mut state.counts;
        counts.compared += 1;
        counts.mismatched += u64::from(!comparison.agreed());
        counts.non_finite += u64::from(comparison.non_finite);
        counts.failed += u64::from(comparison.failed.is_some());
        if let Some((replay, _)) = &replay {
            counts.replayed += 1;
            counts.noisy += u64::from(!replay.agreed());
        }
        match comparison.failed {
            Some(name) => *state.failures.entry(name).or_default() += 1,
            None => state.candidate.add(&spent),
        }
        for part in &comparison.parts {
            state.output(part, |output| &mut output.candidate);
        }
        let replay_agreed = replay.as_ref().map(|(replay, _)| replay.agreed());
        if let Some((replay, spent)) = replay {
            if replay.failed.is_none() {
                state.stable.add(&spent);
            }
            for part in &replay.parts {
                state.output(part, |output| &mut output.stable);
            }
        }
        if comparison.agreed() {
            return;
        }
        let disagreement = Disagreement {
            time_ms,
            request_id: request_id.map(shortened),
            what: comparison.what.iter().map(|what| shortened(what)).collect(),
            times: 1,
            replay_agreed,
            request: None,
        };
        state.keep(&self.settings, comparison.severity, disagreement, asked);
    }

    /// A call that was not shadowed or could not be compared, and why.
    pub fn left_out(&self, reason: LeftOut) {
        self.left_out[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub fn counts(&self) -> ShadowCounts {
        self.lock().counts
    }

    pub fn report(&self) -> Report {
        let state = self.lock();
        let counts = state.counts;
        let left_out = LeftOut::ALL.into_iter().filter_map(|reason| {
            let count = self.left_out[reason as usize].load(Ordering::Relaxed);
            (count > 0).then(|| (reason.name().to_owned(), count))
        });
        let worst = state.worst.iter().map(|worst| {
            let request = worst.request.as_ref().map(Kept::shown);
            Disagreement { request, ..worst.disagreement.clone() }
        });
        Report {
            function: self.function.clone(),
            counts,
            agreement: percent(counts.compared - counts.mismatched, counts.compared),
            own_agreement: percent(counts.replayed - counts.noisy, counts.replayed),
            outputs: state.outputs.iter().map(|(name, output)| output.report(name)).collect(),
            worst: worst.collect(),
            candidate: state.candidate.report(),
            stable: state.stable.report(),
            failures: state.failures.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect(),
            left_out: left_out.collect(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

impl State {
    fn output(&mut self, part: &Part, side: impl FnOnce(&mut Output) -> &mut Side) {
        if !self.outputs.contains_key(&part.name) && self.outputs.len() == MOST_OUTPUTS {
            return;
        }
        let output = self.outputs.entry(part.name.clone()).or_default();
        if output.rule.is_empty() {
            output.rule.clone_from(&part.rule);
        }
        side(output).add(part);
    }

    /// Keeps a disagreement among the worst, where it is one of them.
    fn keep(
        &mut self,
        settings: &ShadowSettings,
        severity: Severity,
        disagreement: Disagreement,
        asked: Asked<'_>,
    ) {
        // One failure that keeps coming must not be all that a person sees.
        let same = |worst: &&mut Worst| {
            matches!(severity, Severity::Failed | Severity::Form)
                && worst.severity == severity
                && worst.disagreement.what == disagreement.what
        };
        if let Some(same) = self.worst.iter_mut().find(same) {
            same.disagreement.times += 1;
            return;
        }
        // Of those that are equally bad, the earlier ones stay.
        let place = self.worst.partition_point(|worst| worst.severity >= severity);
        if place >= settings.worst {
            return;
        }
        let room = usize::try_from(settings.capture_kib << 10).unwrap_or(usize::MAX);
        let request = settings.capture.then(|| Kept::of(asked, room));
        self.worst.insert(place, Worst { severity, disagreement, request });
        self.worst.truncate(settings.worst);
    }
}

impl Side {
    fn add(&mut self, part: &Part) {
        self.compared += 1;
        self.mismatched += u64::from(!part.agreed);
        self.same_top += part.same_top;
        self.rows += part.rows;
        if let Some(distance) = part.distance {
            let bin = BOUNDS.iter().position(|bound| distance <= *bound).unwrap_or(BOUNDS.len());
            self.distances[bin] += 1;
            self.largest = Some(self.largest.unwrap_or_default().max(distance));
        }
    }

    /// The largest distance, where JSON has a word for it.
    fn largest(&self) -> Option<f64> {
        self.largest.filter(|distance| distance.is_finite())
    }
}

impl Output {
    fn report(&self, name: &str) -> OutputReport {
        let (candidate, stable) = (&self.candidate, &self.stable);
        let bounds = BOUNDS.iter().copied().map(Some).chain([None]);
        let bins = bounds.zip(candidate.distances.iter().zip(&stable.distances));
        let bins =
            bins.map(|(up_to, (candidate, stable))| Bin { up_to, candidate: *candidate, stable: *stable });
        OutputReport {
            output: name.to_owned(),
            rule: self.rule.clone(),
            compared: candidate.compared,
            mismatched: candidate.mismatched,
            replayed: stable.compared,
            noisy: stable.mismatched,
            largest: candidate.largest(),
            own_largest: stable.largest(),
            distances: bins.filter(|bin| bin.candidate + bin.stable > 0).collect(),
            same_top: percent(candidate.same_top, candidate.rows),
            own_same_top: percent(stable.same_top, stable.rows),
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "a percentage for people")]
fn percent(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| 100.0 * part as f64 / whole as f64)
}

/// What the runs of one revision took.
#[derive(Default)]
struct Costs {
    calls: u64,
    took: Duration,
    infer: Duration,
    memory_peak_bytes: u64,
    fuel: Option<(u64, u128)>,
    times: Times,
}

impl Costs {
    fn add(&mut self, spent: &Spent) {
        self.calls += 1;
        self.took += spent.took;
        self.infer += spent.infer;
        self.memory_peak_bytes = self.memory_peak_bytes.max(spent.memory_bytes);
        if let Some(fuel) = spent.fuel {
            let (calls, sum) = self.fuel.unwrap_or_default();
            self.fuel = Some((calls + 1, sum + u128::from(fuel)));
        }
        self.times.add(spent.took);
    }

    #[expect(clippy::cast_precision_loss, reason = "means for people")]
    fn report(&self) -> Cost {
        let mean = |sum: Duration| (self.calls > 0).then(|| 1000.0 * sum.as_secs_f64() / self.calls as f64);
        Cost {
            calls: self.calls,
            mean_ms: mean(self.took),
            p50_ms: self.times.quantile(0.5),
            p99_ms: self.times.quantile(0.99),
            infer_ms: mean(self.infer),
            memory_peak_bytes: (self.memory_peak_bytes > 0).then_some(self.memory_peak_bytes),
            mean_fuel: self.fuel.map(|(calls, sum)| sum as f64 / calls as f64),
        }
    }
}

/// How often which time was taken: 16 bins to each power of two of microseconds.
#[derive(Default)]
struct Times(Vec<u32>);

const BINS_PER_OCTAVE: u32 = 16;
const OCTAVES: u32 = 32;

impl Times {
    fn add(&mut self, took: Duration) {
        let bins = (BINS_PER_OCTAVE * OCTAVES) as usize;
        self.0.resize(bins, 0);
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).saturating_add(1);
        let octave = micros.ilog2();
        // The four bits below the highest one.
        let fine = (u128::from(micros) << 4 >> octave) & 15;
        let bin = octave as usize * BINS_PER_OCTAVE as usize + usize::try_from(fine).unwrap_or_default();
        let count = &mut self.0[bin.min(bins - 1)];
        *count = count.saturating_add(1);
    }

    /// In milliseconds, to a few percent.
    fn quantile(&self, quantile: f64) -> Option<f64> {
        let all: f64 = self.0.iter().map(|count| f64::from(*count)).sum();
        let mut before = 0.0;
        let bin = self.0.iter().position(|count| {
            before += f64::from(*count);
            before > 0.0 && before >= quantile * all
        })?;
        let bin = u32::try_from(bin).ok()?;
        let (octave, fine) = (bin / BINS_PER_OCTAVE, bin % BINS_PER_OCTAVE);
        let micros = f64::from(octave).exp2() * (1.0 + (f64::from(fine) + 0.5) / f64::from(BINS_PER_OCTAVE));
        Some((micros - 1.0).max(0.0) / 1000.0)
    }
}

#[cfg(test)]
mod tests;
