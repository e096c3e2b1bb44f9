//! `ModelInfer`: one message in, one message out.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use http::HeaderMap;
use hyper::body::{Body as HttpBody, Frame, Incoming};

use super::super::body::{self, Share};
use super::super::call::Caller;
use super::super::json::TooLong;
use super::super::status::AnswerError;
use super::super::typed_function::aside;
use super::super::{Server, Trace};
use super::call::{Call, Wanted};
use super::deadline::{deadline, exceeded};
use super::message::{Message, Messages};
use super::reply;
use super::status::success;
use crate::function::{Asker, Function, Snapshot};
use crate::instance::Deadline;
use crate::instance::typed::{Reply, Request as TypedRequest};

/// A call that was read, and how its caller wants the answer.
pub(super) struct Asked {
    pub(super) request: TypedRequest,
    pub(super) share: Share,
    pub(super) form: Form,
}

/// What the answer to a call looks like.
#[derive(Clone)]
pub(super) struct Form {
    pub(super) function: Arc<Function>,
    pub(super) id: String,
    wanted: Vec<Wanted>,
    is_raw: bool,
}

/// Answers a call.
///
/// # Errors
/// Where there is no such model, or it does not take the call, or fails.
pub(super) async fn model_infer(
    server: &Server,
    snapshot: &Snapshot,
    headers: &HeaderMap,
    client: SocketAddr,
    body: &mut Incoming,
    trace: &mut Trace,
) -> Result<Whole, AnswerError> {
    let deadline = deadline(headers)?;
    let message = only(server, headers, body, deadline).await?;
    let asker = Asker { headers, client: client.ip() };
    let asked = read(server, snapshot, &asker, message, trace).await?;
    let caller = Caller { deadline: deadline.map(|deadline| deadline.at), share: asked.share };
    let mut outcome = server.infer(&asked.form.function, asked.request, caller, trace).await?;
    let reply = std::mem::take(&mut outcome.reply);
    // Until its answer is written, an instance's tensors are held.
    let parts = write(asked.form, reply, outcome, None).await?;
    Whole::new(server, parts)
}

/// The message of a call that takes one.
///
/// # Errors
/// Where it is not one message, or longer than the host takes, or does not come in time.
pub(super) async fn only(
    server: &Server,
    headers: &HeaderMap,
    body: &mut Incoming,
    deadline: Option<Deadline>,
) -> Result<Message, AnswerError> {
    let mut messages = Messages::new(body, headers, server.limits.message)?;
    let body_read = server.limits.body_read;
    let Some(deadline) = deadline else { return messages.only(&server.bodies, body_read).await };
    let left = deadline.at.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(exceeded(deadline));
    }
    let message = messages.only(&server.bodies, left.min(body_read)).await;
    message.map_err(|error| match error {
        AnswerError::SlowBody(_) if left < body_read => exceeded(deadline),
        other => other,
    })
}

/// Reads a call from its message, and finds the function that is called.
///
/// # Errors
/// Where it is not a call, or not one that the function takes.
pub(super) async fn read(
    server: &Server,
    snapshot: &Snapshot,
    asker: &Asker<'_>,
    message: Message,
    trace: &mut Trace,
) -> Result<Asked, AnswerError> {
    let Message { bytes, share } = message;
    let call = Call::read(&bytes)?;
    let (function, division) = server.called(snapshot, call.model, call.version, asker)?;
    let function = Arc::clone(function);
    trace.function = Some(Arc::clone(&function));
    trace.division = division.map(Arc::clone);
    let limit = function.revision.request_body_bytes;
    if bytes.len() > limit {
        return Err(AnswerError::TooLarge(limit));
    }
    let work = call.work();
    if work == 0 {
        return asked(&call, &bytes, share, function);
    }
    let message = bytes.clone();
    // What was read is borrowed from the message. Where the work is done on another thread, it is read there again.
    aside(work, move || asked(&Call::read(&message)?, &message, share, function)).await
}

fn asked(
    call: &Call<'_>,
    message: &Bytes,
    mut share: Share,
    function: Arc<Function>,
) -> Result<Asked, AnswerError> {
    let description = function.revision.description.as_ref().ok_or(AnswerError::Internal)?;
    let request = call.request(message, description, &mut share)?;
    let (id, wanted, is_raw) = (call.id.to_owned(), call.wanted(description)?, call.is_raw());
    Ok(Asked { request, share, form: Form { function, id, wanted, is_raw } })
}

/// Writes an answer. What is `held` is let go of when that is done.
///
/// # Errors
/// Where it is longer than the function's answers may be.
pub(super) async fn write(
    form: Form,
    reply: Reply,
    held: impl Send + 'static,
    is_last: Option<bool>,
) -> Result<Vec<Bytes>, AnswerError> {
    // Raw tensors become parts of the answer as they are.
    let is_lent = form.is_raw && form.wanted.iter().all(|wanted| wanted.classes == 0);
    let work = if is_lent { 0 } else { reply.tensor_bytes() };
    aside(work, move || {
        let _held = held;
        let Form { function, id, wanted, is_raw } = &form;
        let (model, version) = (function.model.as_str(), function.version.as_str());
        let form = reply::Form { model, version, id, wanted, is_raw: *is_raw, is_last };
        let limit = function.revision.response_body_bytes;
        reply::write(&form, &reply, limit).map_err(|TooLong| AnswerError::ReplyTooLarge(limit))
    })
    .await
}

/// An answer of one message.
pub(super) struct Whole {
    parts: VecDeque<Bytes>,
    is_ended: bool,
}

impl Whole {
    /// # Errors
    /// Where the host has no room for an answer as long as this one.
    pub(super) fn new(server: &Server, parts: Vec<Bytes>) -> Result<Whole, AnswerError> {
        Ok(Whole { parts: counted(server, parts)?.into(), is_ended: false })
    }
}

/// Has what is sent hold room in the budget for as long as it waits, where it is much.
///
/// # Errors
/// Where the host has none.
pub(super) fn counted(server: &Server, parts: Vec<Bytes>) -> Result<Vec<Bytes>, AnswerError> {
    body::counted(parts, server.bodies.share())
}

impl HttpBody for Whole {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.is_ended {
            return Poll::Ready(None);
        }
        let part = self.parts.pop_front().map(Frame::data);
        Poll::Ready(Some(Ok(part.unwrap_or_else(|| {
            self.is_ended = true;
            Frame::trailers(success())
        }))))
    }

    fn is_end_stream(&self) -> bool {
        self.is_ended
    }
}
