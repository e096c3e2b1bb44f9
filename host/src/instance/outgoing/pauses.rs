//! The body of an answer from outside: it comes as fast as the guest reads, and must not pause for long.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until};
use wasmtime_wasi_http::Error as HttpError;

use super::failure;

/// A body that fails where nothing of it comes for too long. Its connection goes as soon as it has ended.
pub(super) struct Paused<P> {
    /// `None` when it has ended.
    body: Option<Incoming>,
    pause: Duration,
    deadline: Instant,
    waiting: Option<Pin<Box<Sleep>>>,
    /// Kept until the body has ended.
    held: Option<P>,
}

impl<P> Paused<P> {
    pub(super) fn new(body: Incoming, pause: Duration, deadline: Instant, held: P) -> Paused<P> {
        Paused { body: Some(body), pause, deadline, waiting: None, held: Some(held) }
    }

    fn end(&mut self) {
        self.body = None;
        self.waiting = None;
        self.held = None;
    }
}

impl<P: Unpin> Body for Paused<P> {
    type Data = Bytes;
    type Error = HttpError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
        let this = &mut *self;
        let Some(body) = &mut this.body else { return Poll::Ready(None) };
        match Pin::new(body).poll_frame(context) {
            Poll::Ready(Some(Ok(frame))) => {
                this.waiting = None;
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                this.end();
                Poll::Ready(Some(Err(failure::body(&error))))
            }
            Poll::Ready(None) => {
                this.end();
                Poll::Ready(None)
            }
            Poll::Pending => {
                let until = (Instant::now() + this.pause).min(this.deadline);
                let waiting = this.waiting.get_or_insert_with(|| Box::pin(sleep_until(until)));
                match waiting.as_mut().poll(context) {
                    Poll::Pending => Poll::Pending,
                    Poll::Ready(()) => {
                        this.end();
                        Poll::Ready(Some(Err(HttpError::ConnectionReadTimeout)))
                    }
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}
