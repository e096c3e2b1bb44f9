//! Counts by buckets of the logarithm: 16 to a power of two, so that multiplying what was measured is a shift.

use serde::{Deserialize, Serialize};

/// Buckets to a power of two: neighbours are 4.4 % apart.
pub const BUCKETS_PER_DOUBLING: i16 = 16;

/// How often each bucket was met; buckets that were not met take no place.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<(i16, u64)>", into = "Vec<(i16, u64)>")]
pub struct Histogram {
    /// In the order of the buckets, each once, with counts above 0.
    counts: Vec<(i16, u64)>,
}

impl From<Vec<(i16, u64)>> for Histogram {
    fn from(counts: Vec<(i16, u64)>) -> Histogram {
        let mut histogram = Histogram::new();
        counts.into_iter().for_each(|(bucket, count)| histogram.add_to(bucket, count));
        histogram
    }
}

impl From<Histogram> for Vec<(i16, u64)> {
    fn from(histogram: Histogram) -> Vec<(i16, u64)> {
        histogram.counts
    }
}

impl Histogram {
    pub fn new() -> Histogram {
        Histogram::default()
    }

    pub fn is_empty(&self) -> bool {
        self.counts.is_empty()
    }

    /// How often anything was counted.
    pub fn total(&self) -> u64 {
        self.counts.iter().fold(0, |total, (_, count)| total.saturating_add(*count))
    }

    /// The buckets that were met, in order, and how often.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (i16, u64)> {
        self.counts.iter().copied()
    }

    /// Counts `count` more in `bucket`.
    pub fn add_to(&mut self, bucket: i16, count: u64) {
        if count == 0 {
            return;
        }
        // Mostly they come in order.
        let place = match self.counts.last() {
            Some((last, _)) if *last >= bucket => {
                self.counts.binary_search_by_key(&bucket, |(held, _)| *held)
            }
            _ => Err(self.counts.len()),
        };
        match place {
            Ok(place) => self.counts[place].1 = self.counts[place].1.saturating_add(count),
            Err(place) => self.counts.insert(place, (bucket, count)),
        }
    }

    pub fn add(&mut self, other: &Histogram) {
        if self.counts.is_empty() {
            self.counts.clone_from(&other.counts);
        } else {
            self.combine(other, u64::saturating_add);
        }
    }

    /// What came since `earlier`, which was read of the same counters.
    #[must_use]
    pub fn since(&self, earlier: &Histogram) -> Histogram {
        let mut since = self.clone();
        since.combine(earlier, u64::saturating_sub);
        since.counts.retain(|(_, count)| *count > 0);
        since
    }

    fn combine(&mut self, other: &Histogram, how: fn(u64, u64) -> u64) {
        let mut combined = Vec::with_capacity(self.counts.len() + other.counts.len());
        let (mut mine, mut others) = (self.counts.as_slice(), other.counts.as_slice());
        loop {
            match (mine.first(), others.first()) {
                (Some(a), Some(b)) if a.0 == b.0 => {
                    combined.push((a.0, how(a.1, b.1)));
                    (mine, others) = (&mine[1..], &others[1..]);
                }
                (Some(a), b) if b.is_none_or(|b| a.0 < b.0) => {
                    combined.push(*a);
                    mine = &mine[1..];
                }
                (_, Some(b)) => {
                    combined.push((b.0, how(0, b.1)));
                    others = &others[1..];
                }
                _ => break,
            }
        }
        self.counts = combined;
    }

    /// The same with every bucket elsewhere; `to` keeps the order, or turns it round.
    #[must_use]
    pub fn moved(&self, to: impl Fn(i16) -> i16) -> Histogram {
        let mut moved = Histogram { counts: Vec::with_capacity(self.counts.len()) };
        let turned = self.counts.len() > 1 && to(self.counts[0].0) > to(self.counts[self.counts.len() - 1].0);
        let mut push = |(bucket, count): (i16, u64)| moved.add_to(to(bucket), count);
        if turned {
            self.iter().rev().for_each(&mut push)
        } else {
            self.iter().for_each(&mut push)
        }
        moved
    }

    /// How often a bucket from `bucket` on was met.
    pub fn at_least(&self, bucket: i16) -> u64 {
        let above = self.counts.iter().rev().take_while(|(held, _)| *held >= bucket);
        above.fold(0, |total, (_, count)| total.saturating_add(*count))
    }

    /// The bucket below which a share `quantile` of everything lies; `None` where nothing was counted.
    pub fn quantile(&self, quantile: f64) -> Option<i16> {
        let rank = quantile * self.total() as f64;
        let mut below = 0u64;
        let mut last = None;
        for (bucket, count) in &self.counts {
            below = below.saturating_add(*count);
            last = Some(*bucket);
            if below as f64 >= rank {
                break;
            }
        }
        last
    }

    /// Halves every count, so that what is old counts for less.
    pub fn halve(&mut self) {
        self.counts.iter_mut().for_each(|(_, count)| *count /= 2);
        self.counts.retain(|(_, count)| *count > 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(counts: &[(i16, u64)]) -> Histogram {
        Histogram::from(counts.to_vec())
    }

    #[test]
    fn counts_come_in_any_order_and_are_added_and_taken_away() {
        let mut histogram = of(&[(5, 1), (-3, 2), (5, 4), (7, 0)]);
        assert_eq!(histogram, of(&[(-3, 2), (5, 5)]));
        let earlier = histogram.clone();
        histogram.add(&of(&[(-9, 1), (5, 1), (8, 2)]));
        assert_eq!(histogram, of(&[(-9, 1), (-3, 2), (5, 6), (8, 2)]));
        assert_eq!(histogram.since(&earlier), of(&[(-9, 1), (5, 1), (8, 2)]));
        assert_eq!(earlier.since(&histogram), of(&[]));
        assert_eq!((histogram.total(), histogram.at_least(5), histogram.at_least(9)), (11, 8, 0));
    }

    #[test]
    fn quantiles_are_of_buckets() {
        let histogram = of(&[(1, 10), (2, 80), (9, 10)]);
        let quantiles = [0.0, 0.1, 0.5, 0.9, 0.91, 1.0].map(|quantile| histogram.quantile(quantile).unwrap());
        assert_eq!(quantiles, [1, 1, 2, 2, 9, 9]);
        assert_eq!(of(&[]).quantile(0.5), None);
    }

    #[test]
    fn buckets_move_and_turn() {
        let histogram = of(&[(-2, 1), (0, 2), (4, 3)]);
        assert_eq!(histogram.moved(|bucket| bucket + 3), of(&[(1, 1), (3, 2), (7, 3)]));
        assert_eq!(histogram.moved(|bucket| -bucket), of(&[(-4, 3), (0, 2), (2, 1)]));
        assert_eq!(histogram.moved(|bucket| bucket.max(1)), of(&[(1, 3), (4, 3)]));
    }

    #[test]
    fn what_is_kept_is_read_again_and_put_in_order() {
        let histogram = of(&[(-2, 1), (4, 3)]);
        let text = serde_json::to_string(&histogram).unwrap();
        assert_eq!(text, "[[-2,1],[4,3]]");
        assert_eq!(serde_json::from_str::<Histogram>(&text).unwrap(), histogram);
        assert_eq!(serde_json::from_str::<Histogram>("[[4,1],[-2,1],[4,2]]").unwrap(), histogram);
    }
}
