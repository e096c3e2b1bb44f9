//! Calls of HTTP functions: a request in, a response whose body may still be on its way out.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::{Body, Frame, SizeHint};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use wasmtime::Store;
use wasmtime_wasi_http::p2::bindings::ProxyPre;
use wasmtime_wasi_http::p2::bindings::http::types::Scheme;
use wasmtime_wasi_http::p3::bindings::ServicePre;
use wasmtime_wasi_http::WasiHttpView;

/// Why a body breaks off, in wasi:http's words.
pub use wasmtime_wasi_http::Error as HttpError;

use super::{Answered, CallError, Deadline, Kind, Program};
use crate::instance::state::State;
use crate::nn::Usage;

/// The body of a request on its way to a guest. It must fail, not hang, when the caller stops sending.
pub type RequestBody = UnsyncBoxBody<Bytes, HttpError>;

/// The body of a guest's response.
pub type ResponseBody = UnsyncBoxBody<Bytes, HttpError>;

/// The guest's work for one request, from instantiation to its last byte.
type Work = Pin<Box<dyn Future<Output = Ended> + Send>>;

/// How the guest ended, and what it used.
type Ended = (Result<(), CallError>, Usage);

/// The head of a response, with the guest still at work on the body.
type Head = Result<http::Response<ResponseBody>, CallError>;

impl Program {
    /// Calls an HTTP function in a fresh instance. `permit` is kept until the guest has ended, which is when the
    /// body has been read or dropped.
    pub async fn handle<P: Send + 'static>(
        self: &Arc<Self>,
        request: http::Request<RequestBody>,
        deadline: Deadline,
        permit: P,
    ) -> Answered<http::Response<ResponseBody>> {
        let (head, answered) = oneshot::channel();
        let mut work = match self.work(request, deadline, head) {
            Ok(work) => work,
            Err(error) => return (Err(error), Usage::default()),
        };
        let mut answered = answered;
        // The guest runs in this task until its head is there: most are through by then, and cost no other task.
        tokio::select! {
            biased;
            ended = &mut work => match answered.try_recv() {
                Ok(head) => (head, ended.1),
                Err(_) => (Err(ended.0.err().unwrap_or_else(never_answered)), ended.1),
            },
            head = &mut answered => match head {
                // The sender lives in the work, which has not ended.
                Err(_) => { let ended = work.await; (Err(ended.0.err().unwrap_or_else(never_answered)), ended.1) }
                Ok(Err(error)) => (Err(error), Usage::default()),
                Ok(Ok(response)) => (Ok(response.map(|body| attend(body, work, permit))), Usage::default()),
            },
        }
    }

    fn work(
        self: &Arc<Self>,
        request: http::Request<RequestBody>,
        deadline: Deadline,
        head: oneshot::Sender<Head>,
    ) -> Result<Work, CallError> {
        let store = self.store(deadline)?;
        let program = Arc::clone(self);
        match &self.kind {
            Kind::Typed(_) => Err(CallError::Start("the function takes tensors".to_owned())),
            Kind::HttpP2(pre) => {
                let pre = pre.clone();
                Ok(Box::pin(program.guarded(store, deadline, async move |store: &mut Store<State>| {
                    run_p2(&pre, store, request, head).await
                })))
            }
            Kind::HttpP3(pre) => {
                let pre = pre.clone();
                Ok(Box::pin(program.guarded(store, deadline, async move |store: &mut Store<State>| {
                    run_p3(&pre, store, request, head).await
                })))
            }
        }
    }

    /// Runs a guest under its deadline and tells what became of it.
    async fn guarded<F>(self: Arc<Self>, mut store: Store<State>, deadline: Deadline, run: F) -> Ended
    where
        F: AsyncFnOnce(&mut Store<State>) -> wasmtime::Result<()>,
    {
        let _running = self.running();
        let ended = tokio::time::timeout_at(deadline.at.into(), run(&mut store)).await;
        let usage = store.data().nn.usage().clone();
        let outcome = match ended {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(self.failure(&error, &store.data().limits, deadline)),
            Err(_) => Err(CallError::DeadlineExceeded(deadline.ms)),
        };
        (outcome, usage)
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
    let request = store.data_mut().http().new_incoming_request(Scheme::Http, request)?;
    let out = store.data_mut().http().new_response_outparam_from_callback(move |response| {
        let response = response.map_err(|code| CallError::BadReply(format!("it answered the error `{code:?}`")));
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
            let response = response.map(|body| Watched { body, _read: read }.boxed_unsync());
            if head.send(Ok(response)).is_ok() {
                let _ = done.await;
            }
            Ok(())
        })
        .await?
}

/// A body that tells when it has gone.
struct Watched {
    body: ResponseBody,
    _read: oneshot::Sender<()>,
}

impl Body for Watched {
    type Data = Bytes;
    type Error = HttpError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
        Pin::new(&mut self.body).poll_frame(context)
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
fn attend<P: Send + 'static>(body: ResponseBody, work: Work, permit: P) -> ResponseBody {
    let task = tokio::spawn(async move {
        let (outcome, _) = work.await;
        drop(permit);
        outcome
    });
    Attended { body, guest: Some(Guest(task)) }.boxed_unsync()
}

/// A guest that works on its body; dropping it stops the guest.
struct Guest(JoinHandle<Result<(), CallError>>);

impl Drop for Guest {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A body with the guest that writes it.
struct Attended {
    body: ResponseBody,
    guest: Option<Guest>,
}

impl Attended {
    /// Whether the guest failed, as far as is known now.
    fn failed(&mut self, context: &mut Context<'_>) -> bool {
        let Some(Guest(task)) = &mut self.guest else { return false };
        let Poll::Ready(ended) = Pin::new(task).poll(context) else { return false };
        self.guest = None;
        match ended {
            Ok(Ok(())) => false,
            Ok(Err(error)) => {
                tracing::warn!(%error, "a function failed after it had begun to answer");
                true
            }
            Err(error) => {
                tracing::error!(%error, "a call panicked after it had begun to answer");
                true
            }
        }
    }
}

impl Body for Attended {
    type Data = Bytes;
    type Error = HttpError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
        if self.failed(context) {
            // What was sent is not the whole: the connection must not end as if it were.
            return Poll::Ready(Some(Err(HttpError::HttpResponseIncomplete)));
        }
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if matches!(polled, Poll::Ready(None)) {
            // The caller has everything: a guest that works on ends here.
            self.guest = None;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.guest.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
