//! Counts by buckets of the logarithm: 16 to a power of two, so that multiplying what was measured is a shift.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Buckets to a power of two: neighbours are 4.4 % apart.
pub const BUCKETS_PER_DOUBLING: i16 = 16;

/// How often each bucket was met; buckets that were not met take no place.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Histogram {
    buckets: BTreeMap<i16, u64>,
}

impl Histogram {
    pub fn new() -> Histogram {
        Histogram::default()
    }

    pub fn is_empty(&self) -> bool {
        self.buckets.is_empty()
    }

    /// How often anything was counted.
    pub fn total(&self) -> u64 {
        self.buckets.values().fold(0, |total, count| total.saturating_add(*count))
    }

    /// The buckets that were met, in order, and how often.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (i16, u64)> {
        self.buckets.iter().map(|(bucket, count)| (*bucket, *count))
    }

    /// Counts `count` more in `bucket`.
    pub fn add_to(&mut self, bucket: i16, count: u64) {
        if count > 0 {
            let held = self.buckets.entry(bucket).or_default();
            *held = held.saturating_add(count);
        }
    }

    pub fn add(&mut self, other: &Histogram) {
        for (bucket, count) in other.iter() {
            self.add_to(bucket, count);
        }
    }

    /// What came since `earlier`, which was read of the same counters.
    #[must_use]
    pub fn since(&self, earlier: &Histogram) -> Histogram {
        let before = |bucket: i16| earlier.buckets.get(&bucket).copied().unwrap_or(0);
        let buckets = self.iter().map(|(bucket, count)| (bucket, count.saturating_sub(before(bucket))));
        Histogram { buckets: buckets.filter(|(_, count)| *count > 0).collect() }
    }

    /// The bucket below which a share `quantile` of everything lies; `None` where nothing was counted.
    pub fn quantile(&self, quantile: f64) -> Option<i16> {
        let rank = quantile * self.total() as f64;
        let mut below = 0;
        let mut last = None;
        for (bucket, count) in self.iter() {
            below += count;
            last = Some(bucket);
            if below as f64 >= rank {
                break;
            }
        }
        last
    }

    /// Halves every count, so that what is old counts for less.
    pub fn halve(&mut self) {
        self.buckets.retain(|_, count| {
            *count /= 2;
            *count > 0
        });
    }
}
