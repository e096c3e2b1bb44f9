//! What one instance may use of memory: its own linear memories and what the host holds for it, together.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use wasmtime::ResourceLimiter;

/// Counts the memory of one instance against one limit, in bytes.
#[derive(Debug)]
pub struct Limits {
    limit: usize,
    linear: usize,
    host: usize,
    /// What is held until somebody drops it; made when something first is.
    held: Option<Arc<AtomicUsize>>,
    peak: usize,
    table_elements: usize,
    exceeded: bool,
}

/// Bytes that count against the limit for as long as this lives.
#[derive(Debug)]
pub struct Held {
    all: Arc<AtomicUsize>,
    bytes: usize,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.all.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Limits {
    pub fn new(limit: usize, table_elements: usize) -> Limits {
        Limits { limit, linear: 0, host: 0, held: None, peak: 0, table_elements, exceeded: false }
    }

    /// Counts bytes that the host is to hold for the guest; `false` where they would pass the limit.
    #[must_use]
    pub fn charge(&mut self, bytes: usize) -> bool {
        let fits = bytes <= self.room();
        if fits {
            self.host += bytes;
            self.see();
        } else {
            self.exceeded = true;
        }
        fits
    }

    /// As [`Limits::charge`], for what may be dropped where these limits are out of reach.
    pub fn hold(&mut self, bytes: usize) -> Option<Held> {
        if bytes > self.room() {
            self.exceeded = true;
            return None;
        }
        let all = Arc::clone(self.held.get_or_insert_default());
        all.fetch_add(bytes, Ordering::Relaxed);
        self.see();
        Some(Held { all, bytes })
    }

    /// What may still be had, in bytes.
    pub fn room(&self) -> usize {
        self.limit.saturating_sub(self.linear.saturating_add(self.held_by_host()))
    }

    fn held_by_host(&self) -> usize {
        let held = self.held.as_ref().map_or(0, |held| held.load(Ordering::Relaxed));
        self.host.saturating_add(held)
    }

    fn see(&mut self) {
        self.peak = self.peak.max(self.linear + self.held_by_host());
    }

    /// Gives back what was charged.
    pub fn release(&mut self, bytes: usize) {
        self.host = self.host.saturating_sub(bytes);
    }

    /// Whether the guest was ever refused memory: tells a trap for want of memory from other traps.
    pub fn exceeded(&self) -> bool {
        self.exceeded
    }

    /// The most that the instance had at once, in bytes.
    pub fn peak(&self) -> usize {
        self.peak
    }

    /// The most that the instance may have, in bytes.
    pub fn limit(&self) -> usize {
        self.limit
    }
}

impl ResourceLimiter for Limits {
    fn memory_growing(&mut self, current: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        let linear = self.linear.saturating_sub(current).saturating_add(desired);
        let fits = linear.saturating_add(self.held_by_host()) <= self.limit;
        if fits {
            self.linear = linear;
            self.see();
        } else {
            self.exceeded = true;
        }
        Ok(fits)
    }

    fn table_growing(&mut self, _: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        let fits = desired <= self.table_elements;
        self.exceeded |= !fits;
        Ok(fits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_and_host_share_one_limit() {
        let mut limits = Limits::new(100, 10);
        assert!(limits.memory_growing(0, 60, None).unwrap());
        assert!(limits.charge(40));
        assert!(!limits.exceeded());
        assert!(!limits.charge(1));
        assert!(limits.exceeded());
        limits.release(40);
        assert!(limits.memory_growing(60, 100, None).unwrap());
        assert!(!limits.memory_growing(100, 101, None).unwrap());
        assert_eq!(limits.peak(), 100);
        let held = limits.hold(0).unwrap();
        assert!(limits.hold(1).is_none());
        drop(held);
        let mut limits = Limits::new(100, 10);
        let held = limits.hold(60).unwrap();
        assert_eq!(limits.room(), 40);
        assert!(!limits.charge(41) && !limits.memory_growing(0, 41, None).unwrap());
        drop(held);
        assert!(limits.charge(100));
        assert!(limits.table_growing(0, 10, None).unwrap());
        assert!(!limits.table_growing(0, 11, None).unwrap());
    }
}
