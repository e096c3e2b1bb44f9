//! Calls of models: a request's body becomes tensors, the answer's tensors a body.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, VARY};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::json;

use super::super::body::{self, Body, Collected, Share};
use super::super::call::Caller;
use super::super::json::TooLong;
use super::super::status::AnswerError;
use super::super::typed_function::aside;
use super::super::{Server, Trace};
use super::compression::{self, Coding, Unreadable};
use super::events::{Answer, Answers, Events};
use super::message::{self, Encoded};
use super::{binary, generate as plain};
use crate::function::Function;
use crate::instance::typed;
use crate::tensor::Datatype;

/// The length of the JSON before binary tensors, in both directions.
const HEADER_LENGTH: HeaderName = HeaderName::from_static("inference-header-content-length");

/// As the largest elements must lie, and as memory that is allocated does.
const ALIGNMENT: usize = 16;

const BINARY_FASTER: usize = 16;

/// A request's body, inflated, and the room that it takes.
struct Whole {
    bytes: Bytes,
    share: Share,
    headers: HeaderMap,
}

pub(super) async fn infer(
    server: &Server,
    function: &Arc<Function>,
    request: Request<Incoming>,
    trace: &mut Trace,
) -> Result<Response<Body>, AnswerError> {
    let length = binary::header_length(values(request.headers(), &HEADER_LENGTH));
    let whole = collect(server, function, request, length.as_ref().ok().copied().flatten()).await?;
    let length = length?;
    let Whole { bytes, mut share, headers } = whole;
    let called = Arc::clone(function);
    // Numbers in binary are looked at at most, which goes so much faster than reading them from JSON. The elements of
    // BYTES have to be found.
    let described = function.revision.description.as_ref();
    let numbers = described.is_some_and(|described| {
        described.signature.inputs.iter().all(|port| port.datatype != Datatype::Bytes)
    });
    let json = length.filter(|_| numbers);
    let work = json.map_or(bytes.len(), |json| json.saturating_add(bytes.len() / BINARY_FASTER));
    let (request, share) = aside(work, move || {
        let description = called.revision.description.as_ref().ok_or(AnswerError::Internal)?;
        let held = bytes.len();
        let read = message::decode(bytes, length, description, &mut |more| share.grow(more).is_ok())?;
        if !read.holds_body {
            // From here on the tensors are held in place of the body.
            share.shrink(held);
        }
        Ok((read, share))
    })
    .await?;
    let (id, wanted) = (request.id, request.wanted);
    let outcome = server.infer(function, request.call, Caller { deadline: None, share }, trace).await?;
    let function = Arc::clone(function);
    let bytes = outcome.reply.tensor_bytes();
    aside(bytes, move || {
        let limit = function.revision.response_body_bytes;
        let (model, version) = (&function.model, &function.version);
        let encoded = message::encode(model, version, id.as_deref(), &outcome.reply, &wanted, limit);
        let encoded = encoded.map_err(|TooLong| AnswerError::ReplyTooLarge(limit))?;
        body::held(respond(encoded, &headers), outcome.into_share())
    })
    .await
}

pub(super) async fn generate(
    server: &Server,
    function: &Arc<Function>,
    request: Request<Incoming>,
    trace: &mut Trace,
) -> Result<Response<Body>, AnswerError> {
    let (id, request, share, headers) = read_plain(server, function, request).await?;
    let outcome = server.infer(function, request, Caller { deadline: None, share }, trace).await?;
    let function = Arc::clone(function);
    let bytes = outcome.reply.tensor_bytes();
    aside(bytes, move || {
        let body = write_plain(&function, id.as_deref(), &outcome.reply)?;
        let encoded = Encoded { body: vec![body.into()], header_length: None };
        body::held(respond(encoded, &headers), outcome.into_share())
    })
    .await
}

pub(super) async fn generate_stream(
    server: &Arc<Server>,
    function: &Arc<Function>,
    request: Request<Incoming>,
    trace: &mut Trace,
) -> Result<Response<Body>, AnswerError> {
    let (id, request, share, _) = read_plain(server, function, request).await?;
    let mut answers = Answers::of(server, function, request, Caller { deadline: None, share }, trace);
    // What goes wrong before the first answer has a status.
    let first = answers.next().await;
    trace.clone_from(&answers.trace);
    let first = first.ok_or(AnswerError::Internal)??;
    // One that goes on is judged by its end.
    trace.division.take_if(|_| !first.is_last());
    let (server, function) = (Arc::clone(server), Arc::clone(function));
    let write = move |answer: Result<Answer, AnswerError>| {
        let written = answer.and_then(|answer| {
            let event = plain::event(&write_plain(&function, id.as_deref(), &answer.reply)?);
            body::counted(vec![event.into()], server.bodies.share())
        });
        written.map(|mut parts| parts.swap_remove(0)).map_err(|error| {
            let problem = error.problem();
            // The head was counted as the answer that it was.
            server.functions.telemetry.error(&function.metrics, error.name());
            function.statistics.failed(Duration::ZERO);
            tracing::warn!(function = function.name, error = problem.name, "a stream ended early: {error}");
            plain::event(json!({ "error": problem.detail }).to_string().as_bytes()).into()
        })
    };
    let events = Events::new(answers, first, Box::new(write));
    let mut response = Response::new(Body::Stream(events.map_err(|never| match never {}).boxed_unsync()));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(http::header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    Ok(response)
}

/// Collects a request's body, of which so many bytes are JSON before tensors, and inflates it.
async fn collect(
    server: &Server,
    function: &Arc<Function>,
    request: Request<Incoming>,
    json: Option<usize>,
) -> Result<Whole, AnswerError> {
    let limit = function.revision.request_body_bytes;
    let (parts, body) = request.into_parts();
    let coding = compression::of_request(values(&parts.headers, &CONTENT_ENCODING)).map_err(unreadable)?;
    // Where tensors follow the JSON, they are to lie as their elements must, or they would have to be copied.
    let pad = json.unwrap_or(0).wrapping_neg() % ALIGNMENT;
    let collected = server.bodies.collect(body, &[0; ALIGNMENT][..pad], limit, server.limits.body_read);
    let Collected { bytes, mut share } = collected.await?;
    let bytes = bytes.slice(pad..);
    let Some(coding) = coding else { return Ok(Whole { bytes, share, headers: parts.headers }) };
    let (bytes, share) = aside(INFLATED_ASIDE, move || {
        let inflated = compression::inflate(&bytes, coding, limit, &mut |more| share.grow(more).is_ok());
        let inflated = inflated.map_err(unreadable)?;
        share.shrink(bytes.len());
        Ok((inflated, share))
    })
    .await?;
    Ok(Whole { bytes, share, headers: parts.headers })
}

/// A short body may be a long one inflated, so that none is inflated by an async thread.
const INFLATED_ASIDE: usize = usize::MAX;

async fn read_plain(
    server: &Server,
    function: &Arc<Function>,
    request: Request<Incoming>,
) -> Result<(Option<String>, typed::Request, Share, HeaderMap), AnswerError> {
    let Whole { bytes, mut share, headers } = collect(server, function, request, None).await?;
    let function = Arc::clone(function);
    aside(bytes.len(), move || {
        let description = function.revision.description.as_ref().ok_or(AnswerError::Internal)?;
        let read = plain::decode_generate(&bytes, description, &mut |more| share.grow(more).is_ok());
        let (id, request) = read?;
        share.shrink(bytes.len());
        Ok((id, request, share, headers))
    })
    .await
}

fn write_plain(function: &Function, id: Option<&str>, reply: &typed::Reply) -> Result<Vec<u8>, AnswerError> {
    let limit = function.revision.response_body_bytes;
    let written = plain::encode_generate(&function.model, &function.version, id, reply, limit);
    written.map_err(|TooLong| AnswerError::ReplyTooLarge(limit))
}

/// An answer, compressed where its caller asks for it.
fn respond(encoded: Encoded, asked: &HeaderMap) -> Response<Body> {
    let content_type = encoded.content_type();
    let header_length = encoded.header_length;
    let is_json = header_length.is_none();
    let coding = compression::of_answer(values(asked, &ACCEPT_ENCODING), encoded.length(), is_json);
    let body = match coding {
        Some(coding) => Body::Whole(Some(compression::compress(&encoded.body, coding).into())),
        None => body::parts(encoded.body),
    };
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    if let Some(length) = header_length {
        headers.insert(HEADER_LENGTH, HeaderValue::from(length));
    }
    if let Some(coding) = coding {
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static(Coding::name(coding)));
        headers.insert(VARY, HeaderValue::from_static("accept-encoding"));
    }
    response
}

fn values<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a [u8]> {
    headers.get_all(name).into_iter().map(HeaderValue::as_bytes)
}

fn unreadable(error: Unreadable) -> AnswerError {
    match error {
        Unreadable::Coding(_) => AnswerError::UnsupportedMedia(error.to_string()),
        Unreadable::TooLong(limit) => AnswerError::TooLarge(limit),
        Unreadable::NoRoom => AnswerError::Overloaded,
        Unreadable::Corrupt(..) => AnswerError::InvalidInput(error.to_string()),
    }
}
