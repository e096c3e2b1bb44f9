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
use crate::function::shadow::http_call::{self, RequestCopy};
use crate::function::{Function, Matched, Permit};
use crate::instance::http::{HttpError, IsHttps, RequestBody};

/// The request as the guest gets it, and how it is to be given to a candidate as well, if it is.
///
/// # Errors
/// Where the body is announced to be too long, or does not begin to come, or the host that is asked for is not one.
pub async fn prepare(
    request: Request<Incoming>,
    matched: &Matched<'_>,
    client: SocketAddr,
    head: &access::Head,
    function: &Function,
    body_read: Duration,
) -> Result<(Request<RequestBody>, Option<http_call::Asked>), AnswerError> {
    let limit = function.revision.request_body_bytes;
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
    let shadowed = function.shadow.ask_http(&parts, body.size_hint().lower());
    let copy = shadowed.as_ref().map(http_call::Asked::body);
    let body = Bounded { first, body, left: limit, wait: body_read, late: None, copy };
    body.note_end();
    Ok((Request::from_parts(parts, body.boxed_unsync()), shadowed))
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
    shadowed: Option<http_call::Asked>,
    permit: Permit,
    trace: &mut Trace,
) -> Result<Response<Body>, AnswerError> {
    let running = Instant::now();
    trace.began = Some(running);
    // The revision, with its files, must outlive its instances.
    let held = (permit, Arc::clone(function));
    let (response, meter) = function.revision.program.handle(request, deadline(function), held).await;
    trace.run = running.elapsed();
    trace.usage = meter.read();
    trace.meter = Some(meter);
    let mut response = match (response, shadowed) {
        (Ok(response), shadowed) => {
            let (head, body) = response.into_parts();
            let copy = shadowed.and_then(|shadowed| shadowed.answered(&head)).map(Box::new);
            Response::from_parts(head, (body, copy))
        }
        (Err(error), shadowed) => {
            if let Some(shadowed) = shadowed {
                shadowed.failed();
            }
            return Err(error.into());
        }
    };
    for name in [CONNECTION, HeaderName::from_static("keep-alive"), http::header::TRANSFER_ENCODING] {
        response.headers_mut().remove(name);
    }
    let left = function.revision.response_body_bytes;
    if response.body().0.size_hint().lower() > left as u64 {
        return Err(AnswerError::ReplyTooLarge(left));
    }
    Ok(response.map(|(body, copy)| {
        let mut body = Body::Guest { body, left, watch: None, copy };
        body.note_end();
        body
    }))
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
    /// Where it is copied as it goes by, if it is.
    copy: Option<RequestCopy>,
}

impl Bounded {
    /// Tells the copy where there is no more to come, which a reader need not ask for.
    fn note_end(&self) {
        if let Some(copy) = self.copy.as_ref().filter(|_| self.is_end_stream()) {
            copy.end();
        }
    }
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
        let polled = polled.map(|frame| {
            frame.map(|frame| {
                let frame = frame.map_err(|_| HttpError::ConnectionTerminated)?;
                let length = frame.data_ref().map_or(0, Bytes::len);
                let left = self.left.checked_sub(length);
                self.left = left.ok_or(HttpError::HttpRequestBodySize(None))?;
                Ok(frame)
            })
        });
        if let Some(copy) = &self.copy {
            match &polled {
                Poll::Ready(Some(Ok(frame))) => {
                    frame.data_ref().into_iter().for_each(|data| copy.part(data));
                    self.note_end();
                }
                Poll::Ready(None) => copy.end(),
                Poll::Ready(Some(Err(_))) | Poll::Pending => {}
            }
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        // With a frame in hand, what is left to come is not the size any more.
        if self.first.is_none() { self.body.size_hint() } else { SizeHint::default() }
    }
}
