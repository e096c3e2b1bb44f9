//! When a cache is looked at, and shrinks if it is over its bound.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::eviction::{Goal, evict};
use super::inventory::Inventory;
use crate::artifact::blobs::Store;

/// Others add to the cache too, so what is known of it holds for no longer.
const KNOWN_FOR: Duration = Duration::from_secs(60);
/// Where everything is in use there is nothing to gain from looking again at once.
const IN_VAIN: Duration = Duration::from_secs(10);

/// The most bytes of a cache, and what this process knows of them.
#[derive(Debug)]
pub(in crate::artifact) struct Bound {
    /// 0 is no bound.
    max_bytes: u64,
    /// Bytes that came since the last look.
    added: AtomicU64,
    looked: Mutex<Option<Looked>>,
}

#[derive(Debug)]
struct Looked {
    bytes: u64,
    at: Instant,
    in_vain: bool,
}

impl Bound {
    pub(in crate::artifact) fn new(max_bytes: u64) -> Bound {
        Bound { max_bytes, added: AtomicU64::new(0), looked: Mutex::new(None) }
    }

    /// Says that so many bytes have come.
    pub(in crate::artifact) fn grown(&self, bytes: u64, store: &Store) {
        self.add(bytes, 0, store);
    }

    /// Says that so many bytes are about to come: room is made for them now.
    pub(in crate::artifact) fn expects(&self, bytes: u64, store: &Store) {
        self.add(bytes, bytes, store);
    }

    fn add(&self, bytes: u64, coming: u64, store: &Store) {
        let added = self.added.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        if self.max_bytes == 0 {
            return;
        }
        // Whoever looks now looks for all.
        let Ok(mut looked) = self.looked.try_lock() else { return };
        let is_due = looked.as_ref().is_none_or(|looked| match looked.in_vain {
            true => looked.at.elapsed() > IN_VAIN,
            false => looked.at.elapsed() > KNOWN_FOR || looked.bytes.saturating_add(added) > self.max_bytes,
        });
        if is_due {
            *looked = Some(self.shrink(coming, store));
        }
    }

    /// Makes the cache smaller by so many bytes, because its disk lacks them; not at all where it is not that large.
    pub(in crate::artifact) fn free(&self, bytes: u64, store: &Store) {
        let Ok(inventory) = Inventory::of(&store.root) else { return };
        let Some(goal) = inventory.bytes.checked_sub(bytes) else { return };
        match evict(store, Goal::Bytes(goal), false) {
            Ok(evicted) => tracing::info!(freed_mib = evicted.bytes >> 20, "the cache's disk lacked room"),
            Err(error) => tracing::warn!(%error, "the cache's disk lacks room, and none can be made"),
        }
    }

    /// Looks now.
    pub(in crate::artifact) fn look(&self, store: &Store) {
        if self.max_bytes > 0
            && let Ok(mut looked) = self.looked.try_lock()
        {
            *looked = Some(self.shrink(0, store));
        }
    }

    /// `coming` bytes are not there yet.
    fn shrink(&self, coming: u64, store: &Store) -> Looked {
        self.added.store(0, Ordering::Relaxed);
        let failed = |error: &dyn std::fmt::Display| {
            tracing::warn!(%error, "the cache cannot be kept within its bound");
            Looked { bytes: 0, at: Instant::now(), in_vain: true }
        };
        let bytes = match Inventory::of(&store.root) {
            Ok(inventory) => inventory.bytes,
            Err(error) => return failed(&error),
        };
        if bytes.saturating_add(coming) <= self.max_bytes {
            return Looked { bytes: bytes.saturating_add(coming), at: Instant::now(), in_vain: false };
        }
        // A little more than it must, so as not to do it again at once.
        let goal = (self.max_bytes - self.max_bytes / 10).saturating_sub(coming);
        let evicted = match evict(store, Goal::Bytes(goal), false) {
            Ok(evicted) => evicted,
            Err(error) => return failed(&error),
        };
        let left = evicted.left_bytes.saturating_add(coming);
        tracing::info!(
            freed_mib = evicted.bytes >> 20,
            left_mib = left >> 20,
            "the cache was over its bound"
        );
        let in_vain = left > self.max_bytes;
        if in_vain {
            tracing::warn!(
                in_use_mib = evicted.in_use_bytes >> 20,
                max_mib = self.max_bytes >> 20,
                "the cache is over `cache.max_mib`, and what is left of it is in use; give it more"
            );
        }
        Looked { bytes: left, at: Instant::now(), in_vain }
    }
}
