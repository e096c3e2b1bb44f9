//! Answers that are streams of messages, and what ends such a stream from outside.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame};
use tokio::time::{Instant, Sleep, sleep_until};

use super::super::status::{AnswerError, Problem};
use super::super::{Server, Trace};
use super::deadline::exceeded;
use super::status::{failure, success};
use crate::instance::Deadline;

/// Where the messages of a stream come from.
pub(super) trait Source: Send + Unpin + 'static {
    /// The parts of the next message; `None` after the last one. After an error, which was counted and logged by then,
    /// there is nothing more to ask for.
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Vec<Bytes>, Problem>>>;
}

/// Counts and logs what ends a stream: the head of the answer was counted and logged as it was.
pub(super) fn refused(server: &Server, request_id: &str, error: &AnswerError) -> Problem {
    let mut trace = Trace::default();
    let problem = server.refuse(error, request_id, &mut trace);
    server.count(&trace, Duration::ZERO);
    problem
}

/// An answer of any number of messages.
pub(super) struct Streamed<S> {
    source: S,
    /// What of the last message was not sent yet.
    parts: VecDeque<Bytes>,
    is_ended: bool,
}

impl<S: Source> Streamed<S> {
    pub(super) fn new(source: S) -> Streamed<S> {
        Streamed { source, parts: VecDeque::new(), is_ended: false }
    }

    /// Takes the next message. Answers with what ends the stream, if it ends.
    fn take(&mut self, next: Option<Result<Vec<Bytes>, Problem>>) -> Option<Frame<Bytes>> {
        match next {
            Some(Ok(parts)) => {
                self.parts = parts.into();
                None
            }
            Some(Err(problem)) => Some(Frame::trailers(failure(&problem))),
            None => Some(Frame::trailers(success())),
        }
    }
}

impl<S: Source> HttpBody for Streamed<S> {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.is_ended {
            return Poll::Ready(None);
        }
        loop {
            if let Some(part) = self.parts.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(part))));
            }
            let next = ready!(self.source.poll_next(context));
            if let Some(end) = self.take(next) {
                self.is_ended = true;
                return Poll::Ready(Some(Ok(end)));
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.is_ended
    }
}

/// How long a stream may be silent on which nothing is under way. Callers keep streams open from one request to the
/// next; that a connection is dead is found out long before.
const QUIET: Duration = Duration::from_secs(3600);

/// How often it is looked at.
const TICK: Duration = Duration::from_secs(1);

/// What a stream is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum At {
    /// Nothing is under way.
    Rest,
    /// The caller is sending a message.
    Message,
    /// An answer is being made.
    Work,
}

/// Ends a stream whose time is over.
pub(super) struct Patience {
    server: Arc<Server>,
    deadline: Option<Deadline>,
    at: At,
    /// Since when it is at that.
    since: Instant,
    clock: Pin<Box<Sleep>>,
}

impl Patience {
    pub(super) fn new(server: &Arc<Server>, deadline: Option<Deadline>) -> Patience {
        let (server, now) = (Arc::clone(server), Instant::now());
        let clock = Box::pin(sleep_until(next(now, deadline)));
        Patience { server, deadline, at: At::Rest, since: now, clock }
    }

    /// Why the stream ends. Until then it waits, and has the stream looked at again from time to time.
    pub(super) fn poll_over(&mut self, context: &mut Context<'_>, at: At) -> Poll<AnswerError> {
        let mut now = Instant::now();
        if self.at != at {
            (self.at, self.since) = (at, now);
        }
        loop {
            if let Some(over) = self.over(now) {
                return Poll::Ready(over);
            }
            ready!(self.clock.as_mut().poll(context));
            now = Instant::now();
            self.clock.as_mut().reset(next(now, self.deadline));
        }
    }

    fn over(&self, now: Instant) -> Option<AnswerError> {
        if let Some(deadline) = self.deadline
            && deadline.at <= now.into_std()
        {
            return Some(exceeded(deadline));
        }
        let allowed = match self.at {
            At::Work => return None,
            At::Rest | At::Message if self.server.draining() => return Some(AnswerError::Draining),
            At::Message => self.server.limits.body_read,
            At::Rest => QUIET,
        };
        let late = AnswerError::SlowBody(u64::try_from(allowed.as_millis()).unwrap_or(u64::MAX));
        (now - self.since >= allowed).then_some(late)
    }
}

fn next(now: Instant, deadline: Option<Deadline>) -> Instant {
    let tick = now + TICK;
    deadline.map_or(tick, |deadline| tick.min(deadline.at.into()))
}
