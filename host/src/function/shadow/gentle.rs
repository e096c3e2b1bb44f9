//! Work that gives way: where live calls are answered, it rests far longer than it computes.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::time::Sleep;

use crate::function::{Functions, Strain};

/// How many times as long as it computed work rests while live calls are answered: a twentieth of one processor is what
/// it has then.
pub(super) const REST: u32 = 19;

/// What is computed without a rest after it.
const SHORT: Duration = Duration::from_micros(100);

/// A future that is polled less often where the host is busy, and given up once it has taken its time without that. A
/// guest computes for a millisecond at most in one poll.
pub(super) struct Gentle<F> {
    work: Pin<Box<F>>,
    functions: Arc<Functions>,
    started: Instant,
    /// What it may take, rests not counted.
    limit: Duration,
    end: Pin<Box<Sleep>>,
    rest: Option<(Instant, Pin<Box<Sleep>>)>,
    pace: Pace,
}

/// How work went.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pace {
    /// Time in polls.
    pub(super) worked: Duration,
    pub(super) rested: Duration,
}

impl<F: Future> Gentle<F> {
    pub(super) fn new(work: F, limit: Duration, functions: &Arc<Functions>) -> Gentle<F> {
        let (work, functions) = (Box::pin(work), Arc::clone(functions));
        let (started, end) = (Instant::now(), Box::pin(tokio::time::sleep(limit)));
        Gentle { work, functions, started, limit, end, rest: None, pace: Pace::default() }
    }
}

impl<F: Future> Future for Gentle<F> {
    /// Nothing of work that took too long.
    type Output = (Option<F::Output>, Pace);

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        if let Some((since, rest)) = &mut this.rest {
            ready!(rest.as_mut().poll(context));
            this.pace.rested += since.elapsed();
            this.rest = None;
            this.end.as_mut().reset((this.started + this.limit + this.pace.rested).into());
        }
        let begun = Instant::now();
        let polled = this.work.as_mut().poll(context);
        let took = begun.elapsed();
        this.pace.worked += took;
        if let Poll::Ready(done) = polled {
            return Poll::Ready((Some(done), this.pace));
        }
        if this.end.as_mut().poll(context).is_ready() {
            return Poll::Ready((None, this.pace));
        }
        if took >= SHORT && this.functions.strain() != Strain::Calm {
            let mut rest = Box::pin(tokio::time::sleep(took.saturating_mul(REST)));
            // Asked at once, so that it wakes this task.
            if rest.as_mut().poll(context).is_pending() {
                this.rest = Some((Instant::now(), rest));
            }
        }
        Poll::Pending
    }
}
