//! How far a candidate's answers to shadowed calls agree with the stable revision's.
//!
//! Three answers to one call are known: the caller's, by the stable revision; the candidate's; and for a share of the
//! calls a second one of the stable revision, its *replay*. How often a replay differs from the caller's answer is the
//! stable revision's own noise, against which the candidate's disagreements are weighed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub mod capture;
pub mod compare;
mod json;
pub mod recorder;

/// How live calls are given to a candidate as well, and what counts as the same answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ShadowSettings {
    /// Percent of the live calls that the candidate gets as well, from 0 to 100.
    pub share: f64,
    /// Percent of those that the stable revision answers a second time, from 0 to 100.
    pub replay: f64,
    /// What numbers may differ by: `absolute + relative * |expected|`.
    pub absolute: f64,
    pub relative: f64,
    /// What else holds for single outputs, by their names. Of HTTP functions, JSON pointers into their bodies, such as
    /// `/scores`, which hold for everything below; the longest that fits counts, and the empty one is the whole body.
    pub outputs: BTreeMap<String, OutputSettings>,
    /// Whether the inputs of the worst disagreements are kept, for everybody who may read how far answers agree.
    pub capture: bool,
    /// The most that is kept of the inputs of one disagreement, in KiB.
    pub capture_kib: u64,
    /// How many disagreements are kept, from 0 to 100.
    pub worst: usize,
    /// HTTP functions: calls with longer bodies, of request or response, are not shadowed. In KiB.
    pub max_body_kib: u64,
}

/// What counts as the same output.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OutputSettings {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub absolute: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub relative: Option<f64>,
    /// In place of the distances of numbers: the same elements, in any order, are the largest so many of each row, which
    /// is the last dimension. With 1, the same class has the highest score.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_k: Option<usize>,
    /// It is not compared.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub ignore: bool,
}

impl Default for ShadowSettings {
    fn default() -> ShadowSettings {
        ShadowSettings {
            share: 100.0,
            replay: 50.0,
            absolute: 1e-5,
            relative: 1e-3,
            outputs: BTreeMap::new(),
            capture: false,
            capture_kib: 64,
            worst: 10,
            max_body_kib: 256,
        }
    }
}

/// The most outputs that settings name.
const MOST_OUTPUTS: usize = 256;

impl ShadowSettings {
    /// # Errors
    /// Says which setting makes no sense, and what would.
    pub fn check(&self) -> Result<(), String> {
        for (name, percent) in [("share", self.share), ("replay", self.replay)] {
            if !(0.0..=100.0).contains(&percent) {
                return Err(format!("shadow.{name} is {percent}; it is a percentage, from 0 to 100"));
            }
        }
        check_tolerance("shadow", Some(self.absolute), Some(self.relative))?;
        if self.worst > 100 {
            return Err(format!("shadow.worst is {}; at most 100 disagreements are kept", self.worst));
        }
        for (name, kib) in [("capture_kib", self.capture_kib), ("max_body_kib", self.max_body_kib)] {
            if kib > 4096 {
                return Err(format!("shadow.{name} is {kib}; it may be 4096 at most"));
            }
        }
        if self.outputs.len() > MOST_OUTPUTS {
            let count = self.outputs.len();
            return Err(format!("shadow.outputs has {count} entries; it may have {MOST_OUTPUTS} at most"));
        }
        for (name, output) in &self.outputs {
            let place = format!("shadow.outputs.{name:?}");
            check_tolerance(&place, output.absolute, output.relative)?;
            if output.top_k.is_some_and(|k| !(1..=1000).contains(&k)) {
                return Err(format!("{place}.top_k is a whole number from 1 to 1000"));
            }
            let other = output.absolute.is_some() || output.relative.is_some() || output.top_k.is_some();
            if output.ignore && other {
                return Err(format!("{place} is ignored; leave out what else it says, or `ignore`"));
            }
            if output.top_k.is_some() && (output.absolute.is_some() || output.relative.is_some()) {
                return Err(format!("{place} has both top_k and a tolerance; give one of them"));
            }
        }
        Ok(())
    }
}

fn check_tolerance(place: &str, absolute: Option<f64>, relative: Option<f64>) -> Result<(), String> {
    for (name, tolerance) in [("absolute", absolute), ("relative", relative)] {
        if tolerance.is_some_and(|tolerance| !tolerance.is_finite() || tolerance < 0.0) {
            return Err(format!("{place}.{name} is a tolerance: a number from 0 on"));
        }
    }
    Ok(())
}

/// What the analysis of a rollout needs of shadowed calls. They only grow while a shadow runs.
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
    /// Counts what another counted as well.
    pub fn add(&mut self, other: &ShadowCounts) {
        self.compared = self.compared.saturating_add(other.compared);
        self.mismatched = self.mismatched.saturating_add(other.mismatched);
        self.replayed = self.replayed.saturating_add(other.replayed);
        self.noisy = self.noisy.saturating_add(other.noisy);
        self.non_finite = self.non_finite.saturating_add(other.non_finite);
        self.failed = self.failed.saturating_add(other.failed);
    }

    /// What came since `earlier`.
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

/// Why a live call was not shadowed, or its answers could not be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeftOut {
    /// As many calls wait as may.
    QueueFull,
    /// The host had live calls to answer.
    HostBusy,
    /// It holds more than one shadowed call may.
    TooLarge,
    /// Its caller takes several answers.
    Streamed,
    /// The stable revision failed itself.
    StableFailed,
    /// The stable revision has not read the whole body of the request, which nobody knows therefore.
    BodyNotRead,
    /// It sends requests to elsewhere.
    OutboundDenied,
    /// It brings models of its own.
    GuestModelDenied,
    /// The memory or the threads for models are in use.
    ModelsBusy,
    /// The host could not run it.
    NotRun,
}

impl LeftOut {
    pub const ALL: [LeftOut; 10] = [
        LeftOut::QueueFull,
        LeftOut::HostBusy,
        LeftOut::TooLarge,
        LeftOut::Streamed,
        LeftOut::StableFailed,
        LeftOut::BodyNotRead,
        LeftOut::OutboundDenied,
        LeftOut::GuestModelDenied,
        LeftOut::ModelsBusy,
        LeftOut::NotRun,
    ];

    pub fn name(self) -> &'static str {
        match self {
            LeftOut::QueueFull => "queue-full",
            LeftOut::HostBusy => "host-busy",
            LeftOut::TooLarge => "too-large",
            LeftOut::Streamed => "streamed",
            LeftOut::StableFailed => "stable-failed",
            LeftOut::BodyNotRead => "body-not-read",
            LeftOut::OutboundDenied => "outbound-denied",
            LeftOut::GuestModelDenied => "guest-model-denied",
            LeftOut::ModelsBusy => "models-busy",
            LeftOut::NotRun => "not-run",
        }
    }
}

/// What was found of one function.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub function: String,
    pub counts: ShadowCounts,
    /// Percent of the compared calls in which the candidate agreed, and of the replayed ones in which the stable revision
    /// agreed with itself; absent before there is one.
    pub agreement: Option<f64>,
    pub own_agreement: Option<f64>,
    pub outputs: Vec<OutputReport>,
    /// The worst first.
    pub worst: Vec<Disagreement>,
    /// What calls cost, run beside each other under the same conditions.
    pub candidate: Cost,
    pub stable: Cost,
    /// Calls that the candidate did not answer, by the reason.
    pub failures: BTreeMap<String, u64>,
    /// Calls that were not shadowed or not compared, by the reason.
    pub left_out: BTreeMap<String, u64>,
}

/// What was found of one output, or of one part of an HTTP answer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct OutputReport {
    pub output: String,
    /// How it is compared, in words.
    pub rule: String,
    pub compared: u64,
    pub mismatched: u64,
    pub replayed: u64,
    pub noisy: u64,
    /// The largest distance of two numbers, of the candidate and of the stable revision from itself.
    pub largest: Option<f64>,
    pub own_largest: Option<f64>,
    /// How many calls had which largest distance; those without calls are left out.
    pub distances: Vec<Bin>,
    /// Percent of the rows whose highest element is the same one, where rows have several.
    pub same_top: Option<f64>,
    pub own_same_top: Option<f64>,
}

/// Calls whose largest distance is over the former bin's bound, and not over this one's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Bin {
    /// Absent where it has no bound: what is not finite is there too.
    pub up_to: Option<f64>,
    pub candidate: u64,
    pub stable: u64,
}

/// A call that the candidate answered otherwise.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Disagreement {
    pub time_ms: u64,
    /// The id of the live request, as access logs have it; absent where it has none.
    pub request_id: Option<String>,
    /// What differs, in words.
    pub what: Vec<String>,
    /// How often the same failure came: only the first is kept.
    pub times: u64,
    /// Whether the stable revision agreed with itself; absent where it was not asked.
    pub replay_agreed: Option<bool>,
    /// The call; absent where capturing is not allowed.
    pub request: Option<Captured>,
}

/// A call as it came, to call again with.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Captured {
    /// Tensors as the Open Inference Protocol has them in JSON, or an HTTP request without its headers.
    pub call: serde_json::Value,
    /// Whether some of it was too long to be kept.
    pub truncated: bool,
}

/// What calls took.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    pub calls: u64,
    pub mean_ms: Option<f64>,
    pub p50_ms: Option<f64>,
    pub p99_ms: Option<f64>,
    /// Of that, in inferences, in the mean.
    pub infer_ms: Option<f64>,
    /// The most memory of one instance.
    pub memory_peak_bytes: Option<u64>,
    /// Instructions, in the mean, where the engine counts them.
    pub mean_fuel: Option<f64>,
}
