//! Calls of HTTP functions: a request in, a response whose body may still be on its way out.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::CONTENT_LENGTH;
use http::{Method, StatusCode};
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::{Body, Frame, SizeHint};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use wasmtime::Store;
use wasmtime_wasi_http::WasiHttpView;
use wasmtime_wasi_http::p2::bindings::ProxyPre;
use wasmtime_wasi_http::p2::bindings::http::types::Scheme;
use wasmtime_wasi_http::p3::bindings::ServicePre;

/// Why a body breaks off, in wasi:http's words.
pub use wasmtime_wasi_http::Error as HttpError;

use super::{CallError, Deadline, Kind, Program};
use crate::backend::Priority;
use crate::instance::state::State;
use crate::nn::Meter;

/// The body of a request on its way to a guest. It must fail, not hang, when the caller stops sending.
pub type RequestBody = UnsyncBoxBody<Bytes, HttpError>;

/// The body of a guest's response.
pub type ResponseBody = UnsyncBoxBody<Bytes, HttpError>;

/// Whether the guest has failed. Told before its store goes, with which its body ends as if it were whole.
type Broken = Arc<AtomicBool>;

/// The guest's work for one request, from instantiation to its last byte.
type Work = Pin<Box<dyn Future<Output = Ended> + Send>>;

/// How the guest ended.
type Ended = Result<(), CallError>;

/// The head of a response, with the guest still at work on the body.
type Head = Result<http::Response<ResponseBody>, CallError>;

/// Stands among the extensions of a request that came over TLS, as its URI does not always say.
#[derive(Clone, Copy, Debug)]
pub struct IsHttps;

impl Program {
    /// Calls an HTTP function in a fresh instance. `permit` is kept until the guest has ended, which is when the
    /// body has been read or dropped; until then, more may come to what it used.
    pub async fn handle<P: Send + 'static>(
        self: &Arc<Self>,
        request: http::Request<RequestBody>,
        deadline: Deadline,
        permit: P,
    ) -> (Result<http::Response<ResponseBody>, CallError>, Meter) {
        let (head, answered) = oneshot::channel();
        let broken = Broken::default();
        let is_head = request.method() == Method::HEAD;
        let (mut work, meter) = match self.work(request, deadline, head, &broken) {
            Ok(work) => work,
            Err(error) => return (Err(error), Meter::default()),
        };
        let mut answered = answered;
        // The guest runs in this task until it has to wait for something: most are through by then, and cost no other task.
        let response = tokio::select! {
            biased;
            // Who failed is not believed what it has answered: its body may not be whole.
            ended = &mut work => match (ended, answered.try_recv()) {
                (Ok(()), Ok(head)) => head.and_then(|response| all_there(response, is_head)),
                (Err(error), _) => Err(error),
                (Ok(()), Err(_)) => Err(never_answered()),
            },
            head = &mut answered => match head {
                // The sender lives in the work, which has not ended.
                Err(_) => Err(work.await.err().unwrap_or_else(never_answered)),
                Ok(Err(error)) => Err(error),
                Ok(Ok(response)) => go_on(response, is_head, work, broken, permit).await,
            },
        };
        (response, meter)
    }

    /// Calls an HTTP function in a fresh instance, and has `read` take its answer, which counts where the guest does not
    /// fail after it. The guest runs within this to its end: where it is polled less often, or dropped, so is the guest.
    pub async fn answer<T, R: Future<Output = T>>(
        self: &Arc<Self>,
        request: http::Request<RequestBody>,
        deadline: Deadline,
        read: impl FnOnce(http::Response<ResponseBody>) -> R,
    ) -> (Result<T, CallError>, Meter) {
        let (head, answered) = oneshot::channel();
        let (work, meter) = match self.work(request, deadline, head, &Broken::default()) {
            Ok(work) => work,
            Err(error) => return (Err(error), Meter::default()),
        };
        let reading = async {
            match answered.await {
                Ok(Ok(response)) => Ok(read(response).await),
                Ok(Err(error)) => Err(error),
                Err(_) => Err(never_answered()),
            }
        };
        let (ended, answer) = tokio::join!(work, reading);
        (ended.and(answer), meter)
    }

    fn work(
        self: &Arc<Self>,
        request: http::Request<RequestBody>,
        deadline: Deadline,
        head: oneshot::Sender<Head>,
        broken: &Broken,
    ) -> Result<(Work, Meter), CallError> {
        if self.is_typed() {
            return Err(CallError::Start("the function takes tensors".to_owned()));
        }
        let store = self.store(deadline, Priority::default())?;
        let meter = store.data().nn.meter().clone();
        let work = Arc::clone(self).guarded(store, deadline, Arc::clone(broken), request, head);
        Ok((Box::pin(work), meter))
    }

    /// Runs a guest under its deadline and tells what became of it.
    async fn guarded(
        self: Arc<Self>,
        mut store: Store<State>,
        deadline: Deadline,
        broken: Broken,
        request: http::Request<RequestBody>,
        head: oneshot::Sender<Head>,
    ) -> Ended {
        let _running = self.running();
        let run = async {
            match &self.kind {
                Kind::Model(_) | Kind::Typed(_) => Ok(()),
                Kind::HttpP2(pre) => run_p2(pre, &mut store, request, head).await,
                // Far larger than the other, which must not be moved with room for it.
                Kind::HttpP3(pre) => Box::pin(run_p3(pre, &mut store, request, head)).await,
            }
        };
        let ended = tokio::time::timeout_at(deadline.at.into(), run).await;
        let outcome = match ended {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(self.failure(&error, &store.data().limits, deadline)),
            Err(_) => Err(CallError::DeadlineExceeded(deadline.ms)),
        };
        self.ended(&store);
        broken.store(outcome.is_err(), Ordering::Release);
        outcome
    }
}

/// Reads what a guest has of its body by the time that it has to wait for something. The rest comes as it is read.
async fn go_on<P: Send + 'static>(
    response: http::Response<ResponseBody>,
    is_head: bool,
    mut work: Work,
    broken: Broken,
    permit: P,
) -> Result<http::Response<ResponseBody>, CallError> {
    let (head, mut body) = response.into_parts();
    let mut begun = Begun::default();
    let started = Instant::now();
    let ended = poll_fn(|context| {
        loop {
            let mut more = begun.take(&mut body, context);
            let polled = work.as_mut().poll(context);
            more |= begun.take(&mut body, context);
            match polled {
                Poll::Ready(ended) => return Poll::Ready(Some(ended)),
                // What was taken may be what it has waited for.
                Poll::Pending if more && started.elapsed() < BEGUN_WITHIN => {}
                Poll::Pending => return Poll::Ready(None),
            }
        }
    });
    match ended.await {
        Some(ended) => ended?,
        None if begun.whole => drop(attend(work, broken, permit)),
        None => {
            let task = attend(work, Arc::clone(&broken), permit);
            begun.rest = Some(body);
            let body =
                Attended { body: begun.boxed_unsync(), guest: Guest(Some(task)), broken }.boxed_unsync();
            return Ok(http::Response::from_parts(head, body));
        }
    }
    begun.answer(head, body, is_head)
}

/// The answer of a guest that has ended.
fn all_there(
    response: http::Response<ResponseBody>,
    is_head: bool,
) -> Result<http::Response<ResponseBody>, CallError> {
    let (head, mut body) = response.into_parts();
    let mut begun = Begun::default();
    begun.take(&mut body, &mut Context::from_waker(Waker::noop()));
    begun.answer(head, body, is_head)
}

/// For how long a guest that goes on writing keeps its caller waiting for the beginning.
const BEGUN_WITHIN: Duration = Duration::from_micros(200);

/// What of a body is taken before it is asked for.
const BEGUN_BYTES: usize = 64 << 10;
const BEGUN_FRAMES: usize = 16;

/// The frames that were there of a body when its head was: known whole, it goes out with its length and in one piece.
#[derive(Default)]
struct Begun {
    frames: VecDeque<Result<Frame<Bytes>, HttpError>>,
    bytes: usize,
    /// Whether there are no others.
    whole: bool,
    /// Whether the answer's head speaks of another body.
    is_other: bool,
    rest: Option<ResponseBody>,
}

impl Begun {
    /// Takes what is there. Answers whether anything was.
    fn take(&mut self, body: &mut ResponseBody, context: &mut Context<'_>) -> bool {
        let mut more = false;
        while !self.whole && self.bytes < BEGUN_BYTES && self.frames.len() < BEGUN_FRAMES {
            let Poll::Ready(frame) = Pin::new(&mut *body).poll_frame(context) else { break };
            more = true;
            match &frame {
                Some(Ok(frame)) => self.bytes += frame.data_ref().map_or(0, Bytes::len),
                Some(Err(_)) | None => self.whole = true,
            }
            self.frames.extend(frame);
        }
        more
    }

    /// These frames and those that are still to come, of a guest that writes no more.
    ///
    /// # Errors
    /// Where all of them are here, and are not as long as the guest said: a caller would take what follows on its
    /// connection for a part of them, or they for a part of that.
    fn answer(
        mut self,
        head: http::response::Parts,
        body: ResponseBody,
        is_head: bool,
    ) -> Result<http::Response<ResponseBody>, CallError> {
        if !self.whole {
            self.rest = Some(body);
        }
        let mut said = head.headers.get_all(CONTENT_LENGTH).iter();
        if let (Some(length), Some(first)) = (self.size_hint().exact(), said.next()) {
            let number = first.to_str().ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
            let number = number.and_then(|digits| digits.parse::<u64>().ok());
            if number != Some(length) || said.next().is_some() {
                let bodiless = [StatusCode::NO_CONTENT, StatusCode::NOT_MODIFIED].contains(&head.status);
                if !is_head && !bodiless {
                    return Err(CallError::BadReply(format!(
                        "its `content-length` is {}, and its body has {length} bytes",
                        first.to_str().unwrap_or("no number")
                    )));
                }
                // It is that of another answer, which has a body.
                self.is_other = true;
            }
        }
        Ok(http::Response::from_parts(head, self.boxed_unsync()))
    }
}

impl Body for Begun {
    type Data = Bytes;
    type Error = HttpError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
        match (self.frames.pop_front(), &mut self.rest) {
            (Some(frame), _) => Poll::Ready(Some(frame)),
            (None, Some(body)) => Pin::new(body).poll_frame(context),
            (None, None) => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.frames.is_empty() && self.rest.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        // Told a length, a connection sends no trailers.
        let data = |frame: &Result<Frame<Bytes>, _>| frame.as_ref().ok()?.data_ref().map(Bytes::len);
        match self.frames.iter().map(data).sum::<Option<usize>>() {
            Some(bytes) if self.rest.is_none() && !self.is_other => SizeHint::with_exact(bytes as u64),
            _ => SizeHint::default(),
        }
    }
}

fn never_answered() -> CallError {
    CallError::BadReply("it ended without a response".to_owned())
}

async fn run_p2(
    pre: &ProxyPre<State>,
    store: &mut Store<State>,
    request: http::Request<RequestBody>,
    head: oneshot::Sender<Head>,
) -> wasmtime::Result<()> {
    let is_https = request.extensions().get::<IsHttps>().is_some();
    let scheme = if is_https { Scheme::Https } else { Scheme::Http };
    let request = store.data_mut().http().new_incoming_request(scheme, request)?;
    let out = store.data_mut().http().new_response_outparam_from_callback(move |response| {
        let response =
            response.map_err(|code| CallError::BadReply(format!("it answered the error `{code:?}`")));
        // A caller that has gone needs no head.
        let _ = head.send(response);
    })?;
    let guest = pre.instantiate_async(&mut *store).await?;
    guest.wasi_http_incoming_handler().call_handle(&mut *store, request, out).await
}

async fn run_p3(
    pre: &ServicePre<State>,
    store: &mut Store<State>,
    request: http::Request<RequestBody>,
    head: oneshot::Sender<Head>,
) -> wasmtime::Result<()> {
    let (request, sent) = wasmtime_wasi_http::p3::Request::from_http(store.data_mut().http().hooks, request);
    let guest = pre.instantiate_async(&mut *store).await?;
    store
        .run_concurrent(async |accessor| {
            let response = match guest.handle(accessor, request).await? {
                Ok(response) => response,
                Err(code) => {
                    let error = CallError::BadReply(format!("it answered the error `{code:?}`"));
                    let _ = head.send(Err(error));
                    return Ok(());
                }
            };
            let response = accessor.with(|store| response.into_http(store, sent))?;
            // The store has to run on until the body has been read: the guest may still be writing it.
            let (read, done) = oneshot::channel::<()>();
            let response = response.map(|body| Watched { body, read: Some(read) }.boxed_unsync());
            if head.send(Ok(response)).is_ok() {
                let _ = done.await;
            }
            Ok(())
        })
        .await?
}

/// A body that tells when it has been read or dropped, by dropping `read`.
struct Watched {
    body: ResponseBody,
    read: Option<oneshot::Sender<()>>,
}

impl Body for Watched {
    type Data = Bytes;
    type Error = HttpError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if matches!(polled, Poll::Ready(None)) {
            self.read = None;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Lets the guest work on while its body is read. In a task of its own: a caller that reads slowly, so that the
/// body is not polled, must not keep the guest beyond its deadline.
fn attend<P: Send + 'static>(work: Work, broken: Broken, permit: P) -> JoinHandle<()> {
    let working = Working { stopped: Stopped(Some(broken)), work };
    tokio::spawn(async move {
        let outcome = working.await;
        drop(permit);
        if let Err(error) = outcome {
            tracing::warn!(%error, "a function failed after it had begun to answer");
        }
    })
}

/// Work that counts as failed where it is stopped before its end, or panics.
struct Working {
    // The first to be dropped: before the work and its store, with which the body ends.
    stopped: Stopped,
    work: Work,
}

struct Stopped(Option<Broken>);

impl Drop for Stopped {
    fn drop(&mut self) {
        if let Some(broken) = &self.0 {
            broken.store(true, Ordering::Release);
        }
    }
}

impl Future for Working {
    type Output = Ended;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Ended> {
        let polled = self.work.as_mut().poll(context);
        if polled.is_ready() {
            self.stopped.0 = None;
        }
        polled
    }
}

/// A guest that works on its body; dropping it stops the guest.
struct Guest(Option<JoinHandle<()>>);

impl Guest {
    /// Lets the guest work on for itself, until its deadline.
    fn release(&mut self) {
        self.0 = None;
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}

/// A body with the guest that writes it.
struct Attended {
    body: ResponseBody,
    guest: Guest,
    broken: Broken,
}

impl Body for Attended {
    type Data = Bytes;
    type Error = HttpError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if self.broken.load(Ordering::Acquire) {
            // What was sent is not the whole: the connection must not end as if it were.
            return Poll::Ready(Some(Err(HttpError::HttpResponseIncomplete)));
        }
        if matches!(polled, Poll::Ready(None)) {
            self.guest.release();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        // Only the end itself tells whether the guest had failed.
        false
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What becomes of an answer whose guest has ended.
    fn answered(
        frames: &[&'static str],
        said: &[&'static str],
        status: u16,
        is_head: bool,
    ) -> Result<ResponseBody, CallError> {
        let frames = frames.iter().map(|frame| Ok(Frame::data(Bytes::from_static(frame.as_bytes()))));
        let body = Begun { frames: frames.collect(), ..Begun::default() };
        let mut response = http::Response::new(body.boxed_unsync());
        *response.status_mut() = StatusCode::from_u16(status).unwrap();
        for said in said {
            response.headers_mut().append(CONTENT_LENGTH, http::HeaderValue::from_static(said));
        }
        all_there(response, is_head).map(http::Response::into_body)
    }

    #[test]
    fn an_answer_that_is_all_there_has_its_length() {
        for said in [&[][..], &["5"]] {
            let body = answered(&["hel", "lo"], said, 200, false).unwrap();
            assert_eq!(body.size_hint().exact(), Some(5));
        }
        for (frames, said) in [(&["hello"][..], &["0"][..]), (&[], &["0"]), (&[], &[])] {
            let body = answered(frames, said, 200, false);
            assert_eq!(body.is_ok(), frames.is_empty());
            assert!(body.is_err() || body.unwrap().is_end_stream());
        }
    }

    #[test]
    fn one_that_is_not_as_long_as_it_says_is_none() {
        for said in [&["4"][..], &["6"], &["5", "5"], &["+5"], &["five"]] {
            let refused = answered(&["hel", "lo"], said, 200, false).err();
            let text = refused.map(|error| error.to_string()).unwrap_or_default();
            assert!(text.contains("and its body has 5 bytes"), "{said:?}: {text}");
        }
        assert!(answered(&[], &["3"], 200, false).is_err());
        // What is said where no body belongs is the length of another.
        for (status, is_head) in [(200, true), (204, false), (304, false)] {
            let body = answered(&[], &["100"], status, is_head).unwrap();
            assert_eq!((body.size_hint().exact(), body.is_end_stream()), (None, true));
        }
    }

    #[tokio::test]
    async fn a_long_one_comes_in_time() {
        let body = answered(&["x"; 40], &["40"], 200, false).unwrap();
        assert_eq!(body.size_hint().exact(), None, "not all of it was looked at");
        assert_eq!(body.collect().await.unwrap().to_bytes(), "x".repeat(40));
    }
}
