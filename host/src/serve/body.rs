//! Bodies: requests collected within limits, responses sent within limits.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{ALLOW, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use http::{Response, StatusCode};
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use serde_json::json;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::access::RequestId;
use super::judge::Coming;
use super::status::{AnswerError, Problem};
use crate::function::Function;
use crate::function::route::StaticResponse;
use crate::function::shadow::http_call::AnswerCopy;
use crate::instance::http::{HttpError, ResponseBody};
use crate::telemetry::Telemetry;

/// A response's body: known whole, or still coming from a guest or from a protocol that answers in parts.
pub enum Body {
    Whole(Option<Bytes>),
    Parts(VecDeque<Bytes>),
    Stream(UnsyncBoxBody<Bytes, BrokenBody>),
    Guest {
        body: ResponseBody,
        left: usize,
        watch: Option<Watch>,
        /// Where it is copied as it goes by, if it is.
        copy: Option<Box<AnswerCopy>>,
    },
}

/// Whose body it is, should it break off.
pub struct Watch {
    telemetry: Arc<Telemetry>,
    function: Arc<Function>,
    request_id: RequestId,
    judged: Option<Coming>,
}

impl Watch {
    fn passed(&mut self, bytes: usize) {
        self.judged.iter_mut().for_each(|judged| judged.passed(bytes));
    }

    fn ended(mut self) {
        self.judged.iter_mut().for_each(Coming::ended);
    }

    /// The head was counted and logged as the answer that it was: what went wrong since is told here.
    fn broken(mut self, error: &BrokenBody) {
        self.judged.iter_mut().for_each(Coming::broken);
        let Watch { telemetry, function, request_id, .. } = &self;
        telemetry.error(&function.metrics, error.name());
        let (function, request_id) = (function.name.as_str(), request_id.as_str());
        tracing::warn!(function, request_id, error = error.name(), "{error}");
    }
}

/// Why a body broke off after its head was sent.
#[derive(Debug, thiserror::Error)]
pub enum BrokenBody {
    #[error("the function broke off its answer: {0:?}")]
    Guest(HttpError),
    #[error("the function's answer is longer than it may be")]
    TooLarge,
    #[error("the answer broke off: {0}")]
    Protocol(String),
}

impl BrokenBody {
    /// The name for metrics.
    fn name(&self) -> &'static str {
        match self {
            BrokenBody::Guest(_) => "guest-broke-off",
            BrokenBody::TooLarge => "guest-bad-reply",
            BrokenBody::Protocol(_) => "internal",
        }
    }
}

impl Body {
    /// Has it counted and logged when the guest breaks it off, and judged when it ends.
    pub fn watch(
        &mut self,
        telemetry: Arc<Telemetry>,
        function: &Arc<Function>,
        request_id: &RequestId,
        judged: Option<Coming>,
    ) {
        if let Body::Guest { watch, .. } = self {
            let (function, request_id) = (Arc::clone(function), request_id.clone());
            *watch = Some(Watch { telemetry, function, request_id, judged });
        }
    }

    /// Tells the copy where there is no more to come, which a connection need not ask for.
    pub fn note_end(&mut self) {
        if let Body::Guest { body, copy, .. } = self
            && let Some(copy) = copy.take_if(|_| body.is_end_stream())
        {
            copy.end();
        }
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BrokenBody;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenBody>>> {
        match self.get_mut() {
            Body::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Body::Parts(parts) => Poll::Ready(parts.pop_front().map(|bytes| Ok(Frame::data(bytes)))),
            Body::Stream(body) => Pin::new(body).poll_frame(context),
            Body::Guest { body, left, watch, copy } => {
                Pin::new(&mut *body).poll_frame(context).map(|frame| {
                    let Some(frame) = frame else {
                        copy.take().into_iter().for_each(|copy| copy.end());
                        watch.take().into_iter().for_each(Watch::ended);
                        return None;
                    };
                    let frame = frame.map_err(BrokenBody::Guest).and_then(|frame| {
                        let length = frame.data_ref().map_or(0, Bytes::len);
                        *left = left.checked_sub(length).ok_or(BrokenBody::TooLarge)?;
                        watch.iter_mut().for_each(|watch| watch.passed(length));
                        Ok(frame)
                    });
                    // Once: whoever is told of an error asks no further.
                    if let (Err(error), Some(watch)) = (&frame, watch.take_if(|_| frame.is_err())) {
                        watch.broken(error);
                    }
                    if copy.is_some() {
                        copy_frame(copy, &frame, body.is_end_stream());
                    }
                    Some(frame)
                })
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Body::Whole(bytes) => bytes.as_ref().is_none_or(Bytes::is_empty),
            Body::Parts(parts) => parts.is_empty(),
            Body::Stream(body) => body.is_end_stream(),
            Body::Guest { body, .. } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Body::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Body::Parts(parts) => SizeHint::with_exact(parts.iter().map(|part| part.len() as u64).sum()),
            Body::Stream(body) => body.size_hint(),
            Body::Guest { body, .. } => body.size_hint(),
        }
    }
}

/// Copies a part of an answer. One that breaks off is not compared with another.
fn copy_frame(copy: &mut Option<Box<AnswerCopy>>, frame: &Result<Frame<Bytes>, BrokenBody>, is_last: bool) {
    match frame {
        Ok(frame) => {
            if let (Some(copy), Some(data)) = (copy.as_mut(), frame.data_ref()) {
                copy.part(data);
            }
            if is_last && let Some(copy) = copy.take() {
                copy.end();
            }
        }
        Err(_) => *copy = None,
    }
}

/// The media type of what answers in JSON.
pub const JSON: &str = "application/json";

/// A whole answer.
pub fn text(content_type: &'static str, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Body::Whole(Some(body.into())));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// A whole answer that lies in several pieces.
pub fn parts(parts: Vec<Bytes>) -> Body {
    match <[Bytes; 1]>::try_from(parts) {
        Ok([only]) => Body::Whole(Some(only)),
        Err(parts) => Body::Parts(parts.into()),
    }
}

/// Answers up to this many bytes are not counted: a caller gains little by not taking them.
const SHORT: usize = 64 << 10;

/// Bytes, and the room that they take: it is given back with the last part of them, wherever that waits to be sent. A
/// body is let go of before its bytes are.
struct Roomy {
    bytes: Bytes,
    _share: Arc<Share>,
}

impl AsRef<[u8]> for Roomy {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Has long bytes hold room in the budget for as long as any part of them is left, in place of what `share` had.
///
/// # Errors
/// Where there is no room.
pub fn counted(parts: Vec<Bytes>, mut share: Share) -> Result<Vec<Bytes>, AnswerError> {
    let length = parts.iter().map(Bytes::len).sum();
    if length <= SHORT {
        return Ok(parts);
    }
    share.shrink(usize::MAX);
    share.grow(length)?;
    let share = Arc::new(share);
    let roomy = |bytes| Bytes::from_owner(Roomy { bytes, _share: Arc::clone(&share) });
    Ok(parts.into_iter().map(roomy).collect())
}

/// Has an answer hold room in the budget where it is long, in place of what `share` had of it for the request.
///
/// # Errors
/// Where there is no room.
pub fn held(response: Response<Body>, share: Share) -> Result<Response<Body>, AnswerError> {
    let (head, body) = response.into_parts();
    let body = match body {
        Body::Whole(Some(bytes)) => parts(counted(vec![bytes], share)?),
        Body::Parts(rest) => Body::Parts(counted(rest.into(), share)?.into()),
        other => other,
    };
    Ok(Response::from_parts(head, body))
}

/// An error as problem details (RFC 9457).
pub fn problem(problem: &Problem) -> Response<Body> {
    let body = json!({
        "type": "about:blank",
        "title": problem.name,
        "status": problem.status,
        "detail": problem.detail,
    });
    refusal(problem, text("application/problem+json", body.to_string()))
}

/// What every form of an error has over HTTP: its status, and when or how to try again.
pub fn refusal(problem: &Problem, mut response: Response<Body>) -> Response<Body> {
    *response.status_mut() =
        StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    if let Some(seconds) = problem.retry_after_s {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    if let Some(allowed) = problem.allowed {
        response.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    }
    response
}

/// An answer that stands in the manifest, which has checked it.
pub fn fixed(answer: &Arc<StaticResponse>) -> Response<Body> {
    let mut response = Response::new(Body::Whole(Some(Bytes::from(answer.body.clone()))));
    *response.status_mut() = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::OK);
    for (name, value) in &answer.headers {
        if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), HeaderValue::from_str(value)) {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

/// How long, and for how many bytes, a body is read of which nothing is wanted.
const REST: Duration = Duration::from_secs(1);
const REST_BYTES: usize = 1 << 20;

/// Reads a body to its end. Over HTTP/2, most callers say only after the last of it that it was the last, a request that
/// is let go of before is reset, and a connection on which that happens often is closed.
pub async fn finish(body: &mut Incoming) {
    if body.is_end_stream() {
        return;
    }
    let rest = async {
        let mut left = REST_BYTES;
        while let Some(Ok(frame)) = body.frame().await {
            let length = frame.data_ref().map_or(0, Bytes::len);
            match left.checked_sub(length) {
                Some(less) => left = less,
                None => return,
            }
        }
    };
    // What comes later is not waited for.
    let _ = tokio::time::timeout(REST, rest).await;
}

/// How many bytes of request bodies, and of tensors read from them, the host holds at once, over all requests.
pub struct Budget(Arc<Semaphore>);

/// Bytes are counted in pages, since a semaphore counts to 2^29 on 32-bit machines.
const PAGE: usize = 4096;

/// A collected body and its share of the budget.
pub struct Collected {
    pub bytes: Bytes,
    pub share: Share,
}

/// A part of the budget, given back when dropped.
pub struct Share {
    budget: Arc<Semaphore>,
    pages: Option<OwnedSemaphorePermit>,
    bytes: usize,
}

impl Share {
    /// Takes room for so many bytes more.
    ///
    /// # Errors
    /// Where the budget has none.
    pub fn grow(&mut self, more: usize) -> Result<(), AnswerError> {
        let bytes = self.bytes.saturating_add(more);
        let have = self.pages.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let pages = bytes.div_ceil(PAGE).saturating_sub(have);
        if pages > 0 {
            let pages = u32::try_from(pages).map_err(|_| AnswerError::Overloaded)?;
            let budget = Arc::clone(&self.budget);
            let pages = budget.try_acquire_many_owned(pages).map_err(|_| AnswerError::Overloaded)?;
            match &mut self.pages {
                Some(held) => held.merge(pages),
                None => self.pages = Some(pages),
            }
        }
        self.bytes = bytes;
        Ok(())
    }

    /// Gives back the room of so many bytes that are not held any more.
    pub fn shrink(&mut self, less: usize) {
        self.bytes = self.bytes.saturating_sub(less);
        if let Some(held) = &mut self.pages {
            let spare = held.num_permits().saturating_sub(self.bytes.div_ceil(PAGE));
            drop(held.split(spare));
        }
    }
}

impl Budget {
    pub fn new(bytes: usize) -> Budget {
        Budget(Arc::new(Semaphore::new((bytes / PAGE).clamp(1, Semaphore::MAX_PERMITS))))
    }

    /// Reads a body of at most `limit` bytes, behind `headroom` bytes that the caller fills in.
    ///
    /// # Errors
    /// Where the body is too long, too slow or cut off, or the host holds too many already.
    pub async fn collect(
        &self,
        mut body: Incoming,
        headroom: &[u8],
        limit: usize,
        wait: Duration,
    ) -> Result<Collected, AnswerError> {
        let announced = body.size_hint().exact().map(|exact| usize::try_from(exact).unwrap_or(usize::MAX));
        if announced.is_some_and(|announced| announced > limit) {
            return Err(AnswerError::TooLarge(limit));
        }
        let mut share = self.share();
        // What was announced may never come: memory is taken for what did.
        let first = announced.unwrap_or(PAGE).min(64 << 10);
        let mut bytes = BytesMut::with_capacity(headroom.len() + first);
        bytes.extend_from_slice(headroom);
        let reading = async {
            while let Some(frame) = body.frame().await {
                let frame =
                    frame.map_err(|_| AnswerError::InvalidInput("the body was cut off".to_owned()))?;
                let Some(data) = frame.data_ref() else { continue };
                if bytes.len() - headroom.len() + data.len() > limit {
                    return Err(AnswerError::TooLarge(limit));
                }
                share.grow(data.len())?;
                if bytes.capacity() - bytes.len() < data.len() {
                    // Whoever has sent so much is believed the rest. Only what comes is touched, and takes memory; what
                    // grows step by step is copied at every step.
                    let rest = announced.map_or(0, |all| (headroom.len() + all).saturating_sub(bytes.len()));
                    bytes.reserve(rest.max(data.len()));
                }
                bytes.extend_from_slice(data);
            }
            Ok(())
        };
        tokio::time::timeout(wait, reading)
            .await
            .map_err(|_| AnswerError::SlowBody(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)))??;
        Ok(Collected { bytes: bytes.freeze(), share })
    }

    /// A part of it that holds nothing yet.
    pub fn share(&self) -> Share {
        Share { budget: Arc::clone(&self.0), pages: None, bytes: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_takes_what_it_holds_and_no_more() {
        let budget = Budget::new(10 * PAGE);
        let mut share = budget.share();
        share.grow(1).unwrap();
        share.grow(PAGE - 1).unwrap();
        assert_eq!(budget.0.available_permits(), 9);
        share.grow(8 * PAGE + 1).unwrap();
        assert_eq!(budget.0.available_permits(), 0);
        share.grow(PAGE - 1).unwrap();
        assert!(matches!(share.grow(1), Err(AnswerError::Overloaded)));
        share.shrink(9 * PAGE);
        assert_eq!(budget.0.available_permits(), 9);
        assert!(matches!(share.grow(usize::MAX), Err(AnswerError::Overloaded)));
        drop(share);
        assert_eq!(budget.0.available_permits(), 10);
    }
}
