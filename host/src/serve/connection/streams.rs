//! The requests of one HTTP/2 connection: how many are open, and that each answer is taken.

use std::cell::Cell;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, HeaderValue};
use http::{Response, StatusCode};
use hyper::body::{Body, Frame, SizeHint};
use hyper::rt::Executor;
use tokio::time::{Instant, Sleep, sleep, sleep_until};

/// The most bytes of an answer that are handed over in one piece.
pub(super) const PIECE_BYTES: usize = 64 << 10;

/// The open requests of one HTTP/2 connection, each a task. A task ends with its connection.
#[derive(Clone)]
pub(super) struct Streams {
    stall: Duration,
    open: Arc<Mutex<Open>>,
}

struct Open {
    count: usize,
    /// Whether there was ever one.
    asked: bool,
    /// Since when there has been none.
    since: Instant,
}

impl Streams {
    pub(super) fn new(stall: Duration) -> Streams {
        let open = Open { count: 0, asked: false, since: Instant::now() };
        Streams { stall, open: Arc::new(Mutex::new(open)) }
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until no request has been open for as long as is allowed, not counting what was before `from`. What is
    /// allowed may depend on whether there was a request at all.
    pub(super) async fn quiet(&self, from: Instant, allowed: impl Fn(bool) -> Duration) {
        loop {
            let now = Instant::now();
            let wait = {
                let open = self.lock();
                let allowed = allowed(open.asked);
                match open.count {
                    0 => (open.since.max(from) + allowed).saturating_duration_since(now),
                    // It is not over before this, however soon what is open ends.
                    _ => allowed,
                }
            };
            if wait.is_zero() {
                return;
            }
            // The first request may come meanwhile, and less be allowed from then on.
            sleep(wait.min(allowed(true))).await;
        }
    }
}

/// One open request.
struct Opened(Streams);

impl Drop for Opened {
    fn drop(&mut self) {
        let mut open = self.0.lock();
        open.count -= 1;
        open.since = Instant::now();
    }
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Streams {
    fn execute(&self, answering: F) {
        {
            let mut open = self.lock();
            open.count += 1;
            open.asked = true;
        }
        let opened = Opened(self.clone());
        tokio::spawn(async move {
            let stall = opened.0.stall;
            UNTAKEN.scope(Cell::new(None), while_taken(answering, stall)).await;
            drop(opened);
        });
    }
}

tokio::task_local! {
    /// Since when the caller has not taken the piece of this task's answer that was handed over last.
    static UNTAKEN: Cell<Option<Instant>>;
}

/// Answers a request, unless its caller takes nothing of the answer for too long; then the request is reset. A
/// connection of HTTP/2 that others use goes on: no stream stalls where the caller just leaves one window closed.
async fn while_taken(answering: impl Future<Output = ()>, stall: Duration) {
    let mut answering = pin!(answering);
    let mut late: Option<Pin<Box<Sleep>>> = None;
    std::future::poll_fn(|context| {
        if answering.as_mut().poll(context).is_ready() {
            return Poll::Ready(());
        }
        let Some(since) = UNTAKEN.with(Cell::get) else { return Poll::Pending };
        let end = since + stall;
        let late = late.get_or_insert_with(|| Box::pin(sleep_until(end)));
        if late.deadline() != end {
            late.as_mut().reset(end);
        }
        late.as_mut().poll(context)
    })
    .await;
}

/// An answer as HTTP/2 sends it. Which have no body is left to us here.
pub(super) fn paced<B: Body<Data = Bytes>>(mut answer: Response<B>, is_head: bool) -> Response<Paced<B>> {
    let length = answer.body().size_hint().exact();
    if let (true, Some(length)) = (is_head, length) {
        answer.headers_mut().entry(CONTENT_LENGTH).or_insert_with(|| HeaderValue::from(length));
    }
    let is_bodiless =
        is_head || [StatusCode::NO_CONTENT, StatusCode::NOT_MODIFIED].contains(&answer.status());
    answer.map(|body| Paced { body: (!is_bodiless).then_some(body), rest: Bytes::new(), is_part: false })
}

/// A body in pieces: hyper hands over whole what it gets, and what was handed over waits for the caller without an end.
pub(super) struct Paced<B> {
    body: Option<B>,
    /// What is left of the body's last frame.
    rest: Bytes,
    /// Whether a part of it was given already.
    is_part: bool,
}

impl<B: Body<Data = Bytes> + Unpin> Body for Paced<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let Paced { body, rest, is_part } = self.get_mut();
        UNTAKEN.with(|untaken| untaken.set(None));
        let Some(body) = body else { return Poll::Ready(None) };
        if rest.is_empty() {
            match ready!(Pin::new(body).poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => (*rest, *is_part) = (data, false),
                    Err(other) => return Poll::Ready(Some(Ok(other))),
                },
                end => return Poll::Ready(end),
            }
        }
        let piece = match rest.len() {
            // A copy: what is handed over last would else keep all of the answer in memory.
            0..=PIECE_BYTES if *is_part => Bytes::copy_from_slice(&std::mem::take(rest)),
            0..=PIECE_BYTES => std::mem::take(rest),
            _ => rest.split_to(PIECE_BYTES),
        };
        *is_part = true;
        UNTAKEN.with(|untaken| untaken.set(Some(Instant::now())));
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let Some(body) = &self.body else { return SizeHint::with_exact(0) };
        let (left, rest) = (body.size_hint(), self.rest.len() as u64);
        let mut hint = SizeHint::new();
        // The upper bound first: the lower must never pass it.
        left.upper().into_iter().for_each(|upper| hint.set_upper(upper.saturating_add(rest)));
        hint.set_lower(left.lower().saturating_add(rest));
        hint
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http_body_util::{BodyExt, Full};

    use super::*;

    async fn frames<B: Body<Data = Bytes, Error = Infallible> + Unpin>(
        mut body: Paced<B>,
    ) -> Vec<Frame<Bytes>> {
        let reading = async {
            let mut frames = Vec::new();
            while !body.is_end_stream() {
                let left = body.size_hint();
                let Some(frame) = body.frame().await else { break };
                let frame = frame.unwrap();
                assert!(
                    left.exact().is_none_or(|left| left >= frame.data_ref().map_or(0, Bytes::len) as u64)
                );
                frames.push(frame);
            }
            frames
        };
        UNTAKEN.scope(Cell::new(None), reading).await
    }

    #[tokio::test]
    async fn a_body_is_given_in_pieces() {
        let check = async |length: usize, expected: &[usize]| {
            let whole: Bytes = (0..length).map(|n| n.to_le_bytes()[0] ^ n.to_le_bytes()[1]).collect();
            let given = frames(paced(Response::new(Full::new(whole.clone())), false).into_body()).await;
            let pieces: Vec<_> = given.into_iter().map(|frame| frame.into_data().unwrap()).collect();
            assert_eq!(pieces.iter().map(Bytes::len).collect::<Vec<_>>(), expected);
            assert_eq!(pieces.concat(), whole);
            if let [_, .., last] = &pieces[..] {
                let range = whole.as_ptr_range();
                assert!(!range.contains(&last.as_ptr()), "the last must not hold on to the whole");
            }
        };
        const PIECE: usize = PIECE_BYTES;
        check(0, &[]).await;
        check(1, &[1]).await;
        check(PIECE, &[PIECE]).await;
        check(PIECE + 1, &[PIECE, 1]).await;
        check(3 * PIECE, &[PIECE, PIECE, PIECE]).await;
    }

    #[tokio::test]
    async fn what_follows_a_body_is_kept() {
        let mut trailers = http::HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        let body = Full::new(Bytes::from(vec![7; PIECE_BYTES + 5]));
        let body = body.with_trailers(std::future::ready(Some(Ok(trailers.clone()))));
        let given = frames(paced(Response::new(Box::pin(body)), false).into_body()).await;
        assert_eq!(given.len(), 3);
        assert_eq!(given[2].trailers_ref(), Some(&trailers));
    }

    #[test]
    fn some_answers_have_no_body() {
        let check = |status: u16, is_head: bool, length: Option<&str>, is_empty: bool| {
            let mut answer = Response::new(Full::new(Bytes::from_static(b"hello")));
            *answer.status_mut() = StatusCode::from_u16(status).unwrap();
            let answer = paced(answer, is_head);
            let found = answer.headers().get(CONTENT_LENGTH).map(|length| length.to_str().unwrap());
            assert_eq!((found, answer.body().is_end_stream()), (length, is_empty), "{status} {is_head}");
        };
        check(200, false, None, false);
        check(200, true, Some("5"), true);
        check(204, false, None, true);
        check(304, false, None, true);
        check(404, false, None, false);
    }

    const SHORT: Duration = Duration::from_millis(50);

    #[tokio::test]
    async fn only_what_nobody_takes_is_late() {
        let check = async |work: &mut (dyn Future<Output = ()> + Unpin), expected: u32| {
            let begun = Instant::now();
            UNTAKEN.scope(Cell::new(None), while_taken(work, SHORT * 3)).await;
            assert!(begun.elapsed() >= SHORT * expected, "{:?}", begun.elapsed());
        };
        let untaken = |since| UNTAKEN.with(|untaken| untaken.set(since));
        // A function that thinks for long.
        check(&mut Box::pin(sleep(SHORT * 5)), 5).await;
        let slowly = async {
            for _ in 0..4 {
                untaken(Some(Instant::now()));
                sleep(SHORT * 2).await;
                untaken(None);
            }
        };
        check(&mut Box::pin(slowly), 8).await;
        let stalled = async {
            sleep(SHORT).await;
            untaken(Some(Instant::now()));
            std::future::pending().await
        };
        check(&mut Box::pin(stalled), 4).await;
    }

    #[tokio::test]
    async fn quiet_is_counted_from_the_last_request() {
        let streams = Streams::new(SHORT);
        let check = async |from: Instant, expected: u32| {
            streams.quiet(from, |asked| SHORT * if asked { 4 } else { 2 }).await;
            assert!(from.elapsed() >= SHORT * expected, "{:?}", from.elapsed());
        };
        let begun = Instant::now();
        // Nobody has asked for anything.
        check(begun, 2).await;
        Executor::execute(&streams, sleep(SHORT * 6));
        check(begun, 2 + 6 + 4).await;
        // What was before does not count.
        check(Instant::now(), 4).await;
    }
}
