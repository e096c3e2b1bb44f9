//! What a call costs: time by the clock, processor time, fuel and memory.

use std::time::{Duration, Instant};

use serde::Serialize;

use crate::samples::{NotRunnable, Ran};

/// The cost of one call, the median of several where they differ.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Cost {
    /// Time by the clock, in microseconds.
    pub(super) took_us: f64,
    /// Processor time of all threads of the host together, in microseconds: the mean. Absent where the system does not
    /// tell.
    pub(super) cpu_us: Option<f64>,
    /// What the guest's instructions cost; absent for a model without code.
    pub(super) fuel: Option<u64>,
    /// The most memory of an instance at once, guest memory and host tensors together, in bytes.
    pub(super) memory_bytes: u64,
}

/// Runs a call again and again, one after the other.
///
/// # Errors
/// Where it is no call.
pub(super) async fn measure<F: Future<Output = Result<Ran, NotRunnable>>>(
    repeat: u32,
    call: impl Fn() -> F,
) -> Result<Cost, NotRunnable> {
    let mut took = Vec::new();
    let mut memory_bytes = 0;
    let (started, before) = (Instant::now(), processor_time());
    while took.len() < repeat as usize && !super::is_long(started) {
        let ran = call().await?;
        took.push(ran.took);
        memory_bytes = memory_bytes.max(ran.usage.memory_bytes as u64);
    }
    let spent = before.zip(processor_time()).map(|(before, after)| after.saturating_sub(before));
    took.sort_unstable();
    let calls = u32::try_from(took.len().max(1)).unwrap_or(u32::MAX);
    Ok(Cost {
        took_us: took.get(took.len() / 2).map_or(0.0, |took| took.as_secs_f64() * 1e6),
        cpu_us: spent.map(|spent| (spent / calls).as_secs_f64() * 1e6),
        fuel: None,
        memory_bytes,
    })
}

/// Processor time of this process until now, from what Linux keeps of each of its threads.
fn processor_time() -> Option<Duration> {
    let mut total = Duration::ZERO;
    for thread in std::fs::read_dir("/proc/self/task").ok()?.flatten() {
        let Ok(text) = std::fs::read_to_string(thread.path().join("schedstat")) else { continue };
        total += Duration::from_nanos(text.split_whitespace().next()?.parse().ok()?);
    }
    (!total.is_zero()).then_some(total)
}
