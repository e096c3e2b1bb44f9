//! HTTP functions: the request goes to the guest as it is, its body as it comes.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{CONNECTION, EXPECT, HOST, HeaderName};
use http::uri::Authority;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::BodyExt;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use tokio::time::Sleep;

use super::body::Body;
use super::connection::OverTls;
use super::status::AnswerError;
use super::{Trace, access, deadline, spin_headers};
use crate::function::{Function, Matched, Permit, Revision};
use crate::instance::http::{HttpError, IsHttps, RequestBody};

/// The request as the guest gets it.
///
/// # Errors
/// Where the body is announced to be too long, or does not begin to come, or the host that is asked for is not one.
pub async fn prepare(
    request: Request<Incoming>,
    matched: &Matched<'_>,
    client: SocketAddr,
    head: &access::Head,
    revision: &Revision,
    body_read: Duration,
) -> Result<Request<RequestBody>, AnswerError> {
    let limit = revision.request_body_bytes;
    if request.body().size_hint().lower() > limit as u64 {
        return Err(AnswerError::TooLarge(limit));
    }
    let (mut parts, mut body) = request.into_parts();
    check_host(&parts.headers)?;
    spin_headers::set(&mut parts, matched, client);
    parts.headers.remove(CONNECTION);
    // HTTP/1.0 callers need not send one, but wasi:http has no request without an authority.
    parts.headers.entry(HOST).or_insert(HeaderValue::from_static("localhost"));
    parts.headers.insert(access::REQUEST_ID, head.request_id.header());
    if parts.extensions.get::<OverTls>().is_some() {
        parts.extensions.insert(IsHttps);
    }
    let first = match parts.headers.remove(EXPECT) {
        // The caller waits for a word before it sends, which it gets when the body is first asked for. A guest that
        // answers before it reads would otherwise wait for a body that never comes.
        Some(_) => first_frame(&mut body, body_read).await?,
        None => None,
    };
    let body = Bounded { first, body, left: limit, wait: body_read, late: None };
    Ok(Request::from_parts(parts, body.boxed_unsync()))
}

/// At most one, and of a form that a guest can be told. An empty one is what a URI without an authority calls for.
fn check_host(headers: &HeaderMap) -> Result<(), AnswerError> {
    let mut hosts = headers.get_all(HOST).iter();
    let first = hosts.next().map_or(&b""[..], HeaderValue::as_bytes);
    if hosts.next().is_none() && (first.is_empty() || Authority::try_from(first).is_ok()) {
        return Ok(());
    }
    Err(AnswerError::InvalidInput(
        "the header `host` is not one name or address, with or without a port".to_owned(),
    ))
}

async fn first_frame(body: &mut Incoming, wait: Duration) -> Result<Option<Frame<Bytes>>, AnswerError> {
    let late = || AnswerError::SlowBody(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX));
    let frame = tokio::time::timeout(wait, body.frame()).await.map_err(|_| late())?;
    frame.transpose().map_err(|_| AnswerError::InvalidInput("the body was cut off".to_owned()))
}

/// Calls the function. Its permit goes with the body of the answer.
///
/// # Errors
/// Where the guest fails before it has answered.
pub async fn answer(
    function: &Arc<Function>,
    request: Request<RequestBody>,
    permit: Permit,
    trace: &mut Trace,
) -> Result<Response<Body>, AnswerError> {
    let running = Instant::now();
    // The revision, with its files, must outlive its instances.
    let held = (permit, Arc::clone(function));
    let (response, meter) = function.revision.program.handle(request, deadline(function), held).await;
    trace.run = running.elapsed();
    trace.usage = meter.read();
    let mut response = response?;
    for name in [CONNECTION, HeaderName::from_static("keep-alive"), http::header::TRANSFER_ENCODING] {
        response.headers_mut().remove(name);
    }
    let left = function.revision.response_body_bytes;
    if response.body().size_hint().lower() > left as u64 {
        return Err(AnswerError::ReplyTooLarge(left));
    }
    Ok(response.map(|body| Body::Guest { body, left, watch: None }))
}

/// A request's body that fails when it is too long or too slow.
struct Bounded {
    /// What was read of the body already.
    first: Option<Frame<Bytes>>,
    body: Incoming,
    left: usize,
    /// How long it may take from when it is first waited for.
    wait: Duration,
    late: Option<Pin<Box<Sleep>>>,
}

impl HttpBody for Bounded {
    type Data = Bytes;
    type Error = HttpError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
        let polled = match self.first.take() {
            Some(first) => Poll::Ready(Some(Ok(first))),
            None => Pin::new(&mut self.body).poll_frame(context),
        };
        if polled.is_pending() {
            let wait = self.wait;
            let late = self.late.get_or_insert_with(|| Box::pin(tokio::time::sleep(wait)));
            if late.as_mut().poll(context).is_ready() {
                return Poll::Ready(Some(Err(HttpError::ConnectionReadTimeout)));
            }
        }
        polled.map(|frame| {
            frame.map(|frame| {
                let frame = frame.map_err(|_| HttpError::ConnectionTerminated)?;
                let length = frame.data_ref().map_or(0, Bytes::len);
                let left = self.left.checked_sub(length);
                self.left = left.ok_or(HttpError::HttpRequestBodySize(None))?;
                Ok(frame)
            })
        })
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        // With a frame in hand, what is left to come is not the size any more.
        if self.first.is_none() { self.body.size_hint() } else { SizeHint::default() }
    }
}
