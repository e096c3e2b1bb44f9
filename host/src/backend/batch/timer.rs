//! Wakes schedulers whose calls have waited long enough for others.
//!
//! A thread of its own: delays are often shorter than a millisecond, which is as exact as tokio's timers are.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::thread;
use std::time::Instant;

use super::Scheduler;

/// The alarms of all schedulers; its thread starts with the first one that is set, and ends when this is
/// dropped.
#[derive(Default)]
pub(in crate::backend) struct Timer {
    shared: Arc<Shared>,
    started: OnceLock<()>,
}

#[derive(Default)]
struct Shared {
    alarms: Mutex<Alarms>,
    changed: Condvar,
}

#[derive(Default)]
struct Alarms {
    /// By time, and by the address of the scheduler, which has one at most.
    set: BTreeMap<(Instant, usize), Weak<Scheduler>>,
    closed: bool,
}

impl Timer {
    /// Sets the alarm of a scheduler, in the place of the one that it had for `before`.
    pub(super) fn set(&self, scheduler: &Arc<Scheduler>, before: Option<Instant>, at: Instant) {
        // Without the thread, what waits goes when a run of its graph ends, which is under way.
        self.started.get_or_init(|| {
            let shared = Arc::clone(&self.shared);
            let thread = thread::Builder::new().name("batch-timer".to_owned()).spawn(move || shared.run());
            if let Err(error) = thread {
                tracing::warn!(%error, "no thread for batches: `max_delay_us` of models has no effect");
            }
        });
        let address = Arc::as_ptr(scheduler).addr();
        let mut alarms = self.shared.lock();
        if let Some(before) = before {
            alarms.set.remove(&(before, address));
        }
        let is_first = alarms.set.first_key_value().is_none_or(|((first, _), _)| at < *first);
        alarms.set.insert((at, address), Arc::downgrade(scheduler));
        drop(alarms);
        if is_first {
            self.shared.changed.notify_one();
        }
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.changed.notify_one();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Alarms> {
        self.alarms.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let mut alarms = self.lock();
        while !alarms.closed {
            let Some(first) = alarms.set.first_entry() else {
                alarms = self.changed.wait(alarms).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let at = first.key().0;
            let left = at.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let scheduler = first.remove();
                drop(alarms);
                if let Some(scheduler) = scheduler.upgrade() {
                    scheduler.rings(at);
                }
                alarms = self.lock();
            } else {
                alarms = self.changed.wait_timeout(alarms, left).unwrap_or_else(PoisonError::into_inner).0;
            }
        }
    }
}
