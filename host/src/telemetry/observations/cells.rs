//! The counters themselves: atomics of a fixed number.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use crate::tensor::{Datatype, Tensor};

use super::histogram::{BUCKETS_PER_DOUBLING, Histogram};
use super::tally::{Distribution, Tally};
use super::{MAX_OUTPUTS, Outcome};

/// The first class that stands for a hash, of which there are 64: whole numbers beyond the classes before it, and texts.
pub const HASHED: u16 = 1024;
/// The class of an answer without elements.
pub const EMPTY: u16 = HASHED + HASHES;

const HASHES: u16 = 64;
const CLASSES: usize = EMPTY as usize + 1;
/// From 2^10 (a microsecond, a KiB) to 2^42 (73 minutes, 4 TiB).
const BUCKETS: usize = 32 * BUCKETS_PER_DOUBLING as usize;
const LOWEST_BIT: f64 = 10.0;
/// Of values: from 2^-24 to 2^40, for either sign, and zero between them.
const MAGNITUDES: i16 = 64 * BUCKETS_PER_DOUBLING;
const LOWEST_MAGNITUDE: f64 = -24.0;
const VALUES: usize = 2 * MAGNITUDES as usize + 1;
/// The most elements of an answer that are looked at.
const LOOKED_AT: usize = 4096;
/// The most bytes of a text that are hashed.
const HASHED_BYTES: usize = 256;

/// The bucket of a time in nanoseconds or of a size in bytes: from 0, 16 to a power of two, from 2^10 to 2^42.
pub fn bucket(value: u64) -> i16 {
    logarithm(value as f64, LOWEST_BIT).clamp(0.0, BUCKETS as f64 - 1.0) as i16
}

/// The smallest value in a bucket.
pub fn lower_edge(bucket: i16) -> f64 {
    (LOWEST_BIT + f64::from(bucket) / f64::from(BUCKETS_PER_DOUBLING)).exp2()
}

/// The bucket of a number: in order, 0 for what is next to zero, 16 to a power of two of its magnitude.
pub fn signed_bucket(value: f64) -> i16 {
    let magnitude = logarithm(value.abs(), LOWEST_MAGNITUDE);
    // NaN is counted elsewhere.
    if magnitude.is_nan() || magnitude < 0.0 {
        return 0;
    }
    let magnitude = magnitude.min(f64::from(MAGNITUDES) - 1.0) as i16 + 1;
    if value < 0.0 { -magnitude } else { magnitude }
}

/// The number nearest to zero in a bucket of [`signed_bucket`].
pub fn signed_lower_edge(bucket: i16) -> f64 {
    if bucket == 0 {
        return 0.0;
    }
    let doublings = (f64::from(bucket).abs() - 1.0) / f64::from(BUCKETS_PER_DOUBLING);
    (LOWEST_MAGNITUDE + doublings).exp2().copysign(f64::from(bucket))
}

fn logarithm(value: f64, lowest: f64) -> f64 {
    ((value.log2() - lowest) * f64::from(BUCKETS_PER_DOUBLING)).floor()
}

pub(super) struct Cells {
    outcomes: [AtomicU64; 6],
    latency: [AtomicU64; BUCKETS],
    memory: [AtomicU64; BUCKETS],
    memory_peak: AtomicU64,
    outputs: [OnceLock<Box<Output>>; MAX_OUTPUTS],
}

impl Default for Cells {
    fn default() -> Self {
        Cells {
            outcomes: Default::default(),
            latency: std::array::from_fn(|_| AtomicU64::new(0)),
            memory: std::array::from_fn(|_| AtomicU64::new(0)),
            memory_peak: AtomicU64::new(0),
            outputs: Default::default(),
        }
    }
}

impl Cells {
    pub(super) fn record(&self, outcome: Outcome, took: Duration, memory_bytes: Option<u64>) {
        add(&self.outcomes[place(outcome)]);
        // What failed at once must not make the candidate look fast, nor what was ended at its deadline slow; and an
        // answer that nobody took to its end has no time.
        if outcome == Outcome::Success && !took.is_zero() {
            let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
            add(&self.latency[usize::from(bucket(nanoseconds).unsigned_abs())]);
        }
        if let Some(bytes) = memory_bytes {
            add(&self.memory[usize::from(bucket(bytes).unsigned_abs())]);
            self.memory_peak.fetch_max(bytes, Ordering::Relaxed);
        }
    }

    pub(super) fn output(&self, name: &str, tensor: &Tensor) {
        if let Some(output) = self.find(name) {
            output.count(tensor);
        }
    }

    pub(super) fn body(&self, status: u16, bytes: u64) {
        if let Some(output) = self.find("status") {
            output.count_class(status.min(HASHED - 1));
        }
        if let Some(output) = self.find("length") {
            add(&output.finite);
            output.count_value(bytes as f64);
        }
    }

    /// The counters of an output, taken where they are not there yet; `None` where all places are taken.
    fn find(&self, name: &str) -> Option<&Output> {
        self.outputs
            .iter()
            .map(|place| place.get_or_init(|| Box::new(Output::new(name))))
            .find(|output| output.name == name)
            .map(Box::as_ref)
    }

    pub(super) fn read(&self) -> Tally {
        let [success, raised, errors, traps, limit_kills, left] =
            [0, 1, 2, 3, 4, 5].map(|place| self.outcomes[place].load(Ordering::Relaxed));
        let outputs = self.outputs.iter().map_while(OnceLock::get);
        Tally {
            // From the same six, so that they agree while calls are recorded meanwhile.
            requests: success + raised + errors + traps + limit_kills + left,
            success,
            raised,
            errors,
            traps,
            limit_kills,
            left,
            latency: histogram(&self.latency, |place| place as i16),
            memory: histogram(&self.memory, |place| place as i16),
            memory_peak_bytes: self.memory_peak.load(Ordering::Relaxed),
            outputs: outputs.map(|output| (output.name.clone(), output.read())).collect(),
        }
    }
}

fn place(outcome: Outcome) -> usize {
    match outcome {
        Outcome::Success => 0,
        Outcome::Raised => 1,
        Outcome::Error => 2,
        Outcome::Trap => 3,
        Outcome::LimitKill => 4,
        Outcome::Left => 5,
    }
}

fn add(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

fn histogram(cells: &[AtomicU64], bucket: impl Fn(usize) -> i16) -> Histogram {
    let mut histogram = Histogram::new();
    for (place, count) in cells.iter().enumerate() {
        histogram.add_to(bucket(place), count.load(Ordering::Relaxed));
    }
    histogram
}

/// The counters of one output. Those that its datatype has no use for take no memory.
struct Output {
    name: String,
    /// Which row and which element of an answer is looked at goes by this.
    calls: AtomicU64,
    finite: AtomicU64,
    non_finite: AtomicU64,
    classes: OnceLock<Box<[AtomicU32]>>,
    values: OnceLock<Box<[AtomicU32]>>,
}

impl Output {
    fn new(name: &str) -> Output {
        Output {
            name: name.to_owned(),
            calls: AtomicU64::new(0),
            finite: AtomicU64::new(0),
            non_finite: AtomicU64::new(0),
            classes: OnceLock::new(),
            values: OnceLock::new(),
        }
    }

    fn count(&self, tensor: &Tensor) {
        let chance = scatter(self.calls.fetch_add(1, Ordering::Relaxed));
        let elements = tensor.len();
        if elements == 0 {
            add(&self.finite);
            return self.count_class(EMPTY);
        }
        let data = tensor.data();
        let datatype = tensor.datatype();
        if !is_finite(datatype, data, elements, chance) {
            return add(&self.non_finite);
        }
        add(&self.finite);
        let element = (chance % elements as u64) as usize;
        match datatype {
            Datatype::Bytes => {
                if let Some(text) = tensor.elements().take(LOOKED_AT).nth(element % LOOKED_AT) {
                    self.count_class(HASHED + (hash(text) % u64::from(HASHES)) as u16);
                    self.count_value(text.len() as f64);
                }
            }
            Datatype::Fp16 | Datatype::Bf16 | Datatype::Fp32 | Datatype::Fp64 => {
                let value = number(datatype, data, element);
                if value.is_finite() {
                    self.count_value(value);
                }
                let width = tensor.shape().last().copied().unwrap_or(1);
                if (2..=usize::from(HASHED)).contains(&width) {
                    let row = element / width * width;
                    self.count_class(largest((row..row + width).map(|at| number(datatype, data, at))));
                }
            }
            _ => {
                let value = number(datatype, data, element);
                self.count_value(value);
                let small = (0.0..f64::from(HASHED)).contains(&value);
                let hashed = || HASHED + (scatter(value.to_bits()) % u64::from(HASHES)) as u16;
                self.count_class(if small { value as u16 } else { hashed() });
            }
        }
    }

    fn count_class(&self, class: u16) {
        count(&self.classes, CLASSES, usize::from(class));
    }

    fn count_value(&self, value: f64) {
        let place = i32::from(signed_bucket(value)) + i32::from(MAGNITUDES);
        count(&self.values, VALUES, usize::try_from(place).unwrap_or_default());
    }

    fn read(&self) -> Distribution {
        let met = |cells: &OnceLock<Box<[AtomicU32]>>| {
            let cells = cells.get().map_or(&[][..], |cells| cells).iter().enumerate();
            cells
                .map(|(place, count)| (place, u64::from(count.load(Ordering::Relaxed))))
                .filter(|(_, count)| *count > 0)
                .collect::<Vec<_>>()
        };
        let mut values = Histogram::new();
        for (place, count) in met(&self.values) {
            values.add_to(place as i16 - MAGNITUDES, count);
        }
        Distribution {
            finite: self.finite.load(Ordering::Relaxed),
            non_finite: self.non_finite.load(Ordering::Relaxed),
            classes: met(&self.classes).into_iter().map(|(place, count)| (place as u16, count)).collect(),
            values,
        }
    }
}

fn count(cells: &OnceLock<Box<[AtomicU32]>>, length: usize, place: usize) {
    let cells = cells.get_or_init(|| (0..length).map(|_| AtomicU32::new(0)).collect());
    if let Some(cell) = cells.get(place) {
        cell.fetch_add(1, Ordering::Relaxed);
    }
}

/// Whether there is no NaN and no infinity among the elements that are looked at: all of them, or as many as
/// [`LOOKED_AT`], spread over the tensor and others in each call.
fn is_finite(datatype: Datatype, data: &[u8], elements: usize, chance: u64) -> bool {
    fn all<const N: usize>(data: &[u8], first: usize, step: usize, finite: fn([u8; N]) -> bool) -> bool {
        data.as_chunks().0.iter().skip(first).step_by(step).all(|bytes| finite(*bytes))
    }
    let step = elements.div_ceil(LOOKED_AT);
    let first = (chance % step as u64) as usize;
    match datatype {
        Datatype::Fp16 => all(data, first, step, |bytes| half::f16::from_le_bytes(bytes).is_finite()),
        Datatype::Bf16 => all(data, first, step, |bytes| half::bf16::from_le_bytes(bytes).is_finite()),
        Datatype::Fp32 => all(data, first, step, |bytes| f32::from_le_bytes(bytes).is_finite()),
        Datatype::Fp64 => all(data, first, step, |bytes| f64::from_le_bytes(bytes).is_finite()),
        _ => true,
    }
}

/// An element of a tensor that is not BYTES. NaN where there is none, which the caller excludes.
fn number(datatype: Datatype, data: &[u8], element: usize) -> f64 {
    fn at<const N: usize>(data: &[u8], element: usize) -> Option<[u8; N]> {
        data.get(element * N..)?.first_chunk().copied()
    }
    let number = match datatype {
        Datatype::Bool | Datatype::Uint8 => data.get(element).map(|byte| f64::from(*byte)),
        Datatype::Int8 => data.get(element).map(|byte| f64::from(byte.cast_signed())),
        Datatype::Uint16 => at(data, element).map(|bytes| f64::from(u16::from_le_bytes(bytes))),
        Datatype::Int16 => at(data, element).map(|bytes| f64::from(i16::from_le_bytes(bytes))),
        Datatype::Uint32 => at(data, element).map(|bytes| f64::from(u32::from_le_bytes(bytes))),
        Datatype::Int32 => at(data, element).map(|bytes| f64::from(i32::from_le_bytes(bytes))),
        Datatype::Uint64 => at(data, element).map(|bytes| u64::from_le_bytes(bytes) as f64),
        Datatype::Int64 => at(data, element).map(|bytes| i64::from_le_bytes(bytes) as f64),
        Datatype::Fp16 => at(data, element).map(|bytes| half::f16::from_le_bytes(bytes).to_f64()),
        Datatype::Bf16 => at(data, element).map(|bytes| half::bf16::from_le_bytes(bytes).to_f64()),
        Datatype::Fp32 => at(data, element).map(|bytes| f64::from(f32::from_le_bytes(bytes))),
        Datatype::Fp64 => at(data, element).map(f64::from_le_bytes),
        Datatype::Bytes => None,
    };
    number.unwrap_or(f64::NAN)
}

/// The place of the largest; the first of equals.
fn largest(row: impl Iterator<Item = f64>) -> u16 {
    let first = (0u16, f64::NEG_INFINITY);
    let (place, _) = row
        .zip(0u16..)
        .fold(first, |best, (value, place)| if value > best.1 { (place, value) } else { best });
    place
}

/// FNV-1a.
fn hash(text: &[u8]) -> u64 {
    let bytes = text.iter().take(HASHED_BYTES);
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    scatter(hash)
}

/// The finaliser of splitmix64: neighbours end up anywhere.
fn scatter(number: u64) -> u64 {
    let number = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}
