//! Long work that calls should notice nothing of: in threads that give way to those that answer calls.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

use thiserror::Error;
use tokio::sync::oneshot;

/// By how much such threads are nicer than others: a busy processor gives them a tenth of what it gives another.
const NICER: i32 = 10;

/// Why work did not come to its end.
#[derive(Debug, Error)]
pub enum Failed {
    #[error("there is no thread for it: {0}")]
    NoThread(#[source] io::Error),
    #[error("it panicked: {0}")]
    Panicked(String),
}

/// Does something in a thread of its own, to its end also where nobody waits for it any more. How much is done so at once
/// is for the caller to bound. Threads that the work starts give way as well, for as long as they live.
///
/// # Errors
/// Where it panics, or the system has no thread.
pub async fn background<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Failed> {
    let (sender, receiver) = oneshot::channel();
    let thread = std::thread::Builder::new().name("background".to_owned());
    let started = thread.spawn(move || {
        // Linux counts niceness by threads. Where it is refused, the work is done all the same.
        let _ = rustix::process::nice(NICER);
        let _ = sender.send(caught(work).map_err(Failed::Panicked));
    });
    started.map_err(Failed::NoThread)?;
    receiver.await.unwrap_or_else(|_| Err(Failed::Panicked("its thread is gone".to_owned())))
}

/// Runs `work`; a panic becomes its message.
///
/// # Errors
/// Where `work` panics.
pub fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_is_done_by_a_nicer_thread_and_panics_are_told() {
        let before = rustix::process::getpriority_process(None).unwrap();
        let priority = background(|| rustix::process::getpriority_process(None)).await.unwrap();
        assert_eq!(priority.unwrap(), (before + NICER).min(19));
        assert_eq!(rustix::process::getpriority_process(None).unwrap(), before);
        let failed = background(|| panic!("no {}", 7)).await.unwrap_err();
        assert_eq!(failed.to_string(), "it panicked: no 7");
    }
}
