//! What one instance may use of memory: its own linear memories and what the host holds for it, together.

use wasmtime::ResourceLimiter;

/// Counts the memory of one instance against one limit, in bytes.
#[derive(Debug)]
pub struct Limits {
    limit: usize,
    linear: usize,
    host: usize,
    peak: usize,
    table_elements: usize,
    exceeded: bool,
}

impl Limits {
    pub fn new(limit: usize, table_elements: usize) -> Limits {
        Limits { limit, linear: 0, host: 0, peak: 0, table_elements, exceeded: false }
    }

    /// Counts bytes that the host is to hold for the guest; `false` where they would pass the limit.
    #[must_use]
    pub fn charge(&mut self, bytes: usize) -> bool {
        let fits = self.linear.saturating_add(self.host).saturating_add(bytes) <= self.limit;
        if fits {
            self.host += bytes;
            self.peak = self.peak.max(self.linear + self.host);
        } else {
            self.exceeded = true;
        }
        fits
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
        let fits = linear.saturating_add(self.host) <= self.limit;
        if fits {
            self.linear = linear;
            self.peak = self.peak.max(linear + self.host);
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
        assert!(limits.table_growing(0, 10, None).unwrap());
        assert!(!limits.table_growing(0, 11, None).unwrap());
    }
}
