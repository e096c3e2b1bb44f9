//! What every revision of the candidate should answer: the guest computes it, and those who check its answers do.
//!
//! All numbers are multiples of a power of two and small, so that sums are exact in `f32`, whoever adds them.

/// Elements of the input.
pub(crate) const FEATURES: usize = 8;
/// Classes that are told apart.
pub(crate) const CLASSES: usize = 10;

/// What is answered to one input.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Answer {
    pub(crate) scores: [f32; CLASSES],
    /// The class with the highest score, the first of them.
    pub(crate) label: i64,
}

/// The right answer. Inputs are multiples of 1/16 of at most 8.
pub(crate) fn classify(x: &[f32]) -> Answer {
    let mut scores = [0.0; CLASSES];
    for (class, score) in scores.iter_mut().enumerate() {
        *score = x.iter().enumerate().map(|(index, x)| x * weight(class, index)).sum();
    }
    Answer { scores, label: best(&scores) }
}

/// The index of the highest score, the first of them.
pub(crate) fn best(scores: &[f32; CLASSES]) -> i64 {
    let mut best = 0;
    for (class, score) in scores.iter().enumerate() {
        if *score > scores[best] {
            best = class;
        }
    }
    best as i64
}

/// Multiples of 1/16 between -2 and 2.
fn weight(class: usize, index: usize) -> f32 {
    let bits = scramble((class * FEATURES + index) as u64 + 1);
    ((bits % 65) as f32 - 32.0) / 16.0
}

/// A number that stands for the input. What seems random about a call comes from it, so that a call that is repeated
/// goes as before, in whatever instance.
pub(crate) fn fingerprint(x: &[f32]) -> u64 {
    x.iter().fold(0, |state, x| scramble(state ^ u64::from(x.to_bits())))
}

/// The finalizer of splitmix64: each bit of the number moves each bit of the answer.
pub(crate) fn scramble(number: u64) -> u64 {
    let mut bits = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}
