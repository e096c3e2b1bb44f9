//! Tasks that are polled again at once where they have woken themselves.
//!
//! A connection does so with every request that has a body: who answers waits for the body, and the same task then reads
//! it. tokio puts a task that was woken while it ran at the end of its queue, and wakes up another thread that may take it
//! from there: the request goes on later, and on another processor.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use atomic_waker::AtomicWaker;

/// Nobody else waits longer for a task's sake, but for what it does without a pause.
const AT_ONCE: Duration = Duration::from_micros(200);

/// More often, a task waits for what does not come by polling it.
const TIMES: u32 = 8;

/// A task that is polled so.
pub(super) struct Eager<F> {
    task: Pin<Box<F>>,
    state: Arc<State>,
    waker: Waker,
}

struct State {
    polled: AtomicU8,
    outer: AtomicWaker,
}

const RESTING: u8 = 0;
const POLLED: u8 = 1;
/// A bit beside: woken since it was polled last.
const WOKEN: u8 = 2;

impl<F: Future> Eager<F> {
    pub(super) fn new(task: F) -> Eager<F> {
        let state = Arc::new(State { polled: AtomicU8::new(RESTING), outer: AtomicWaker::new() });
        Eager { task: Box::pin(task), waker: Waker::from(Arc::clone(&state)), state }
    }
}

impl Wake for State {
    fn wake(self: Arc<State>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<State>) {
        // Written in any case: what was done before is to be seen by whoever polls for it.
        if self.polled.fetch_or(WOKEN, Ordering::SeqCst) & POLLED == 0 {
            self.outer.wake();
        }
    }
}

impl<F: Future> Future for Eager<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let this = &mut *self;
        let State { polled, outer } = &*this.state;
        outer.register(context.waker());
        let began = Instant::now();
        let mut times = 0;
        loop {
            polled.swap(POLLED, Ordering::SeqCst);
            let task = this.task.as_mut().poll(&mut Context::from_waker(&this.waker));
            if task.is_ready() {
                return task;
            }
            if polled.swap(RESTING, Ordering::SeqCst) & WOKEN == 0 {
                return Poll::Pending;
            }
            times += 1;
            if times == TIMES || began.elapsed() > AT_ONCE {
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::sync::atomic::AtomicU32;

    use super::*;

    #[derive(Default)]
    struct Count(AtomicU32);

    impl Wake for Count {
        fn wake(self: Arc<Count>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// What one poll answers; how often it polled the task and woke its own caller.
    fn once(mut task: impl FnMut(&mut Context<'_>) -> Poll<()>) -> (Poll<()>, u32, u32) {
        let caller = Arc::new(Count::default());
        let mut times = 0;
        let mut eager = Eager::new(poll_fn(|context| {
            times += 1;
            task(context)
        }));
        let polled = Pin::new(&mut eager).poll(&mut Context::from_waker(&Arc::clone(&caller).into()));
        drop(eager);
        (polled, times, caller.0.load(Ordering::SeqCst))
    }

    #[test]
    fn who_wakes_itself_is_polled_at_once() {
        let mut left = 3;
        let ends = once(|context| {
            left -= 1;
            context.waker().wake_by_ref();
            if left == 0 { Poll::Ready(()) } else { Poll::Pending }
        });
        assert_eq!(ends, (Poll::Ready(()), 3, 0));
        assert_eq!(once(|_| Poll::Pending), (Poll::Pending, 1, 0));
    }

    #[test]
    fn but_does_not_keep_others_waiting() {
        let wakes_itself = |context: &mut Context<'_>| {
            context.waker().wake_by_ref();
            Poll::Pending
        };
        let (polled, times, woken) = once(wakes_itself);
        assert!((2..=TIMES).contains(&times), "{times}");
        assert_eq!((polled, woken), (Poll::Pending, 1));
        let works = |context: &mut Context<'_>| {
            std::thread::sleep(AT_ONCE * 2);
            wakes_itself(context)
        };
        assert_eq!(once(works), (Poll::Pending, 1, 1));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn no_wake_is_lost() {
        const MESSAGES: u32 = 20_000;
        let (sender, mut receiver) = tokio::sync::mpsc::channel(1);
        let sending = tokio::spawn(Eager::new(async move {
            for message in 0..MESSAGES {
                sender.send(message).await.unwrap();
            }
        }));
        let receiving = tokio::spawn(Eager::new(async move {
            let mut received = 0;
            while let Some(message) = receiver.recv().await {
                assert_eq!(message, received);
                received += 1;
            }
            received
        }));
        let both = async { (sending.await.unwrap(), receiving.await.unwrap()).1 };
        assert_eq!(tokio::time::timeout(Duration::from_secs(60), both).await.unwrap(), MESSAGES);
    }
}
