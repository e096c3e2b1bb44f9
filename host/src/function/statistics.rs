//! What became of a function's calls, counted from its deployment on, in the terms of the statistics extension.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How often something was done, and how long it took together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    pub count: u64,
    pub ns: u64,
}

/// The calls of one function.
#[derive(Debug, Default)]
pub struct Statistics {
    last_ms: AtomicU64,
    executions: AtomicU64,
    success: Counted,
    fail: Counted,
    queue: Counted,
    compute_input: Counted,
    compute_infer: Counted,
    compute_output: Counted,
    cache_hit: Counted,
    cache_miss: Counted,
    batches: Mutex<BTreeMap<usize, Spent>>,
}

/// What is known of one call that went well.
#[derive(Clone, Copy, Debug, Default)]
pub struct Parts {
    /// From the whole request to the whole answer.
    pub total: Duration,
    /// Waiting for an instance, and for the graph.
    pub queue: Duration,
    /// Until the first inference, in it and the ones between, and after the last.
    pub input: Duration,
    pub infer: Duration,
    pub output: Duration,
    /// Runs of graphs that this call led: those that it was alone in, and of each batch one call's.
    pub led: u64,
    /// The rows of the last of them, and how long it took.
    pub batch: Option<(usize, Duration)>,
}

/// The statistics at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Milliseconds since 1970 of the last call that went well, or 0.
    pub last_ms: u64,
    /// Runs of graphs, a batch counting once.
    pub executions: u64,
    pub success: Spent,
    pub fail: Spent,
    pub queue: Spent,
    pub compute_input: Spent,
    pub compute_infer: Spent,
    pub compute_output: Spent,
    pub cache_hit: Spent,
    pub cache_miss: Spent,
    /// Runs by their number of rows.
    pub batches: Vec<(usize, Spent)>,
}

impl Counts {
    /// Calls that were answered well, from the cache or not.
    pub fn inferences(&self) -> u64 {
        self.success.count
    }
}

#[derive(Debug, Default)]
struct Counted {
    count: AtomicU64,
    ns: AtomicU64,
}

impl Counted {
    fn add(&self, took: Duration) {
        self.count.fetch_add(1, Ordering::Relaxed);
        self.ns.fetch_add(ns(took), Ordering::Relaxed);
    }

    fn read(&self) -> Spent {
        Spent { count: self.count.load(Ordering::Relaxed), ns: self.ns.load(Ordering::Relaxed) }
    }
}

fn ns(took: Duration) -> u64 {
    u64::try_from(took.as_nanos()).unwrap_or(u64::MAX)
}

/// Batches of different sizes that are told apart; larger ones count as the largest.
const MOST_ROWS: usize = 1024;

impl Statistics {
    /// A call that was computed.
    pub fn succeeded(&self, parts: &Parts) {
        self.stamp();
        self.success.add(parts.total);
        self.queue.add(parts.queue);
        self.compute_input.add(parts.input);
        self.compute_infer.add(parts.infer);
        self.compute_output.add(parts.output);
        self.executions.fetch_add(parts.led, Ordering::Relaxed);
        if let Some((rows, took)) = parts.batch {
            let mut batches = self.batches.lock().unwrap_or_else(PoisonError::into_inner);
            let spent = batches.entry(rows.min(MOST_ROWS)).or_default();
            spent.count += 1;
            spent.ns += ns(took);
        }
    }

    pub fn failed(&self, took: Duration) {
        self.fail.add(took);
    }

    /// A call that was answered from the cache.
    pub fn hit(&self, took: Duration) {
        self.stamp();
        self.success.add(took);
        self.cache_hit.add(took);
    }

    /// A call that the cache had no answer for, and how long it took to look and to keep the answer.
    pub fn missed(&self, took: Duration) {
        self.cache_miss.add(took);
    }

    pub fn read(&self) -> Counts {
        let batches = self.batches.lock().unwrap_or_else(PoisonError::into_inner);
        Counts {
            last_ms: self.last_ms.load(Ordering::Relaxed),
            executions: self.executions.load(Ordering::Relaxed),
            success: self.success.read(),
            fail: self.fail.read(),
            queue: self.queue.read(),
            compute_input: self.compute_input.read(),
            compute_infer: self.compute_infer.read(),
            compute_output: self.compute_output.read(),
            cache_hit: self.cache_hit.read(),
            cache_miss: self.cache_miss.read(),
            batches: batches.iter().map(|(rows, spent)| (*rows, *spent)).collect(),
        }
    }

    fn stamp(&self) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.last_ms.store(u64::try_from(now.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_counted_by_what_became_of_them() {
        let statistics = Statistics::default();
        let ms = Duration::from_millis;
        let parts = Parts { total: ms(9), infer: ms(5), led: 1, batch: Some((4, ms(5))), ..Parts::default() };
        statistics.succeeded(&parts);
        statistics.succeeded(&Parts { led: 0, batch: None, ..parts });
        statistics.failed(ms(1));
        statistics.hit(ms(2));
        statistics.missed(ms(3));
        let counts = statistics.read();
        assert_eq!((counts.executions, counts.success.count, counts.fail.count), (1, 3, 1));
        assert_eq!(counts.success.ns, 20_000_000);
        assert_eq!((counts.cache_hit.count, counts.cache_miss.count), (1, 1));
        assert_eq!(counts.batches, [(4, Spent { count: 1, ns: 5_000_000 })]);
        assert!(counts.last_ms > 0);
    }
}
