//! Bodies of the control API: requests within bounds of length and time, answers whole or line by line.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderMap};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::time::{Instant, Sleep};

use crate::artifact::registry::printable;
use crate::control::upload::bound;
use crate::control::{ControlError, Upload};

/// The longest body in JSON.
pub(super) const MAX_JSON_BYTES: usize = 1 << 20;

/// The body of an answer.
pub(super) enum Payload {
    Whole(Option<Bytes>),
    /// Lines as they come, until nobody has anything more to say.
    Lines(mpsc::Receiver<Bytes>),
}

impl Body for Payload {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match &mut *self {
            Payload::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Payload::Lines(lines) => lines.poll_recv(context).map(|line| Some(Ok(Frame::data(line?)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Payload::Whole(bytes) if bytes.as_ref().is_none_or(Bytes::is_empty))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Payload::Whole(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Payload::Lines(_) => SizeHint::default(),
        }
    }
}

/// Reads a body in JSON, which must come within `wait`. An empty one is what `empty` says, where it says something.
pub(super) async fn json<T, B>(
    headers: &HeaderMap,
    body: B,
    empty: Option<T>,
    wait: Duration,
) -> Result<T, ControlError>
where
    T: DeserializeOwned,
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let too_large = || {
        ControlError::too_large(format_args!(
            "the body is longer than {} KiB; only blobs may be, and they go to /v1/blobs",
            MAX_JSON_BYTES >> 10
        ))
    };
    if length(headers)?.is_some_and(|length| length > MAX_JSON_BYTES as u64) {
        return Err(too_large());
    }
    let collecting = tokio::time::timeout(wait, Limited::new(body, MAX_JSON_BYTES).collect());
    let bytes = match collecting.await {
        Ok(Ok(collected)) => collected.to_bytes(),
        Ok(Err(error)) if error.is::<LengthLimitError>() => return Err(too_large()),
        Ok(Err(_)) => return Err(ControlError::invalid("the body broke off; send it again")),
        Err(_) => {
            let wait = wait.as_secs();
            return Err(ControlError::slow_body(format_args!("the body did not come within {wait} s")));
        }
    };
    if let (true, Some(empty)) = (bytes.is_empty(), empty) {
        return Ok(empty);
    }
    let media_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = media_type.split(';').next().unwrap_or_default().trim();
    if !essence.eq_ignore_ascii_case("application/json") {
        return Err(ControlError::wrong_media_type(format_args!(
            "the body must be JSON, with `content-type: application/json`, not `{}`",
            printable(media_type, 100)
        )));
    }
    serde_json::from_slice(&bytes).map_err(|error| {
        let error = printable(&error.to_string(), 400);
        ControlError::invalid(format_args!(
            "the body is not what is expected here: {error}; /v1/openapi.json describes it"
        ))
    })
}

/// The length that a caller announces.
fn length(headers: &HeaderMap) -> Result<Option<u64>, ControlError> {
    let Some(value) = headers.get(CONTENT_LENGTH) else { return Ok(None) };
    let length = value.to_str().ok().and_then(|value| value.parse().ok());
    length.map(Some).ok_or_else(|| ControlError::invalid("`content-length` is not a number"))
}

/// A blob of at most `limit` bytes that comes as a body, with no longer pauses than `pause`.
pub(super) fn upload<B>(
    headers: &HeaderMap,
    body: B,
    limit: u64,
    pause: Duration,
) -> Result<Upload, ControlError>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
{
    let size = length(headers)?;
    let size = size.ok_or_else(|| {
        ControlError::length_required(
            "say in `content-length` how many bytes the blob has; it is not taken in chunks",
        )
    })?;
    if size > limit {
        return Err(ControlError::too_large(format_args!(
            "the blob has {size} bytes and at most {limit} are taken; the operator may raise \
             `registry.max_artifact_mib` in host.toml"
        )));
    }
    let steady = Steady {
        body,
        left: size,
        longest: pause,
        pause: Box::pin(tokio::time::sleep(pause)),
        since: None,
        waited: Duration::ZERO,
        came: 0,
    };
    Ok(Upload::new(size, steady))
}

/// A body that comes within its length, without long pauses, and not too slowly altogether.
struct Steady<B> {
    body: B,
    left: u64,
    longest: Duration,
    pause: Pin<Box<Sleep>>,
    /// When it was last found that nothing is there.
    since: Option<Instant>,
    /// How long it was waited for: the time of this host's disk is not the caller's.
    waited: Duration,
    came: u64,
}

impl<B: Body<Data = Bytes> + Unpin> Body for Steady<B> {
    type Data = Bytes;
    type Error = ControlError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ControlError>>> {
        let Steady { body, left, longest, pause, since, waited, came } = &mut *self;
        let Poll::Ready(frame) = Pin::new(body).poll_frame(context) else {
            if since.is_none() {
                let now = Instant::now();
                *since = Some(now);
                pause.as_mut().reset(now + bound(*came).saturating_sub(*waited).min(*longest));
            }
            std::task::ready!(pause.as_mut().poll(context));
            return Poll::Ready(Some(Err(ControlError::slow_body(
                "the blob comes too slowly; send it again over a better connection",
            ))));
        };
        *waited += since.take().map_or(Duration::ZERO, |since| since.elapsed());
        let length = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref());
        let length = length.map_or(0, Bytes::len) as u64;
        *came += length;
        Poll::Ready(match frame {
            Some(Ok(frame)) => match left.checked_sub(length) {
                Some(less) => {
                    *left = less;
                    Some(Ok(frame))
                }
                None => Some(Err(ControlError::invalid("more bytes came than `content-length` says"))),
            },
            Some(Err(_)) => Some(Err(ControlError::invalid("the blob broke off; send it again"))),
            None if *left > 0 => Some(Err(ControlError::invalid(format_args!(
                "the blob ended {left} bytes before the end that `content-length` says; send it again"
            )))),
            None => None,
        })
    }
}

/// Takes what is left of a body that nobody reads, within bounds: a caller that is still sending might not hear the
/// answer otherwise.
pub(super) async fn finish<B: Body<Data = Bytes> + Unpin>(body: &mut B) {
    let mut left = MAX_JSON_BYTES;
    let reading = async {
        while let Some(Ok(frame)) = body.frame().await {
            left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
            if left == 0 {
                break;
            }
        }
    };
    let _ = tokio::time::timeout(Duration::from_secs(1), reading).await;
}
