//! A timer that keeps the others cheap.
//!
//! A timer that is set to ring before all others makes tokio wake up the thread that waits for sockets and timers, so that
//! it does not wait longer than that: a call into the kernel and a change of thread. A request sets timers again and
//! again, nearly none of which ever rings. While requests come, this one always rings before them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::AbortHandle;

/// Shorter than whatever a request may wait for.
const BEAT: Duration = Duration::from_millis(10);

/// Beats without a request after which it rests.
const IDLE_BEATS: u32 = 3;

/// The timer; it stops when dropped.
pub(super) struct Pulse {
    shared: Arc<Shared>,
    task: AbortHandle,
}

#[derive(Default)]
struct Shared {
    /// Whether there was a request since the last beat.
    busy: AtomicBool,
    resting: AtomicBool,
    wake: Notify,
}

impl Pulse {
    /// Must be called within a tokio runtime.
    pub(super) fn start() -> Pulse {
        let shared = Arc::new(Shared::default());
        let beating = Arc::clone(&shared);
        let task = tokio::spawn(async move { beating.beat().await }).abort_handle();
        Pulse { shared, task }
    }

    /// There is a request.
    pub(super) fn quicken(&self) {
        // Read first: a line that all threads write to would go to and fro between them.
        if !self.shared.busy.load(Ordering::Relaxed) {
            self.shared.busy.store(true, Ordering::SeqCst);
            if self.shared.resting.load(Ordering::SeqCst) {
                self.shared.wake.notify_one();
            }
        }
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shared {
    async fn beat(&self) {
        let mut idle = 0;
        loop {
            if self.busy.swap(false, Ordering::SeqCst) {
                idle = 0;
            } else if idle < IDLE_BEATS {
                idle += 1;
            } else {
                self.resting.store(true, Ordering::SeqCst);
                if !self.busy.load(Ordering::SeqCst) {
                    self.wake.notified().await;
                }
                self.resting.store(false, Ordering::SeqCst);
                continue;
            }
            tokio::time::sleep(BEAT).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn comes(what: impl Fn() -> bool) {
        let wait = async {
            while !what() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), wait).await.unwrap();
    }

    #[tokio::test]
    async fn it_beats_while_requests_come_and_rests_afterwards() {
        let pulse = Pulse::start();
        let resting = || pulse.shared.resting.load(Ordering::SeqCst);
        for _ in 0..3 {
            comes(resting).await;
            pulse.quicken();
            comes(|| !resting()).await;
        }
        let shared = Arc::downgrade(&pulse.shared);
        drop(pulse);
        comes(|| shared.upgrade().is_none()).await;
    }
}
