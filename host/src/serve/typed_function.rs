//! Typed functions on an HTTP route: JSON tensors, or a raw body where the function takes one.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Request, Response, StatusCode};
use hyper::body::Incoming;

use super::body::{self, Body, Budget, Collected, Share};
use super::call::Caller;
use super::json::TooLong;
use super::status::AnswerError;
use super::{Server, Trace, is_post, json};
use crate::function::Function;
use crate::instance::CallError;
use crate::instance::typed::{self, Description, Reply};
use crate::tensor::{Datatype, Tensor};

/// A call and how its caller wants the answer.
pub struct Call {
    request: typed::Request,
    form: Form,
    /// The tensors hold the body, so its share of the budget is held as long.
    share: Share,
}

enum Form {
    Json { id: Option<String> },
    Raw,
}

/// Reads a call from a request.
///
/// # Errors
/// Where the request is not one that the function takes.
pub async fn read(
    function: &Arc<Function>,
    request: Request<Incoming>,
    bodies: &Budget,
    wait: Duration,
) -> Result<Call, AnswerError> {
    let revision = &function.revision;
    let description = revision.description.as_ref().ok_or(AnswerError::Internal)?;
    if !is_post(request.method()) {
        let method = request.method().to_string();
        return Err(AnswerError::MethodNotAllowed { method, allowed: "POST" });
    }
    let media_type = media_type(&request)?;
    let limit = revision.request_body_bytes;
    if accepts(description, &media_type) {
        // The length of the one BYTES element goes before it, and is known when the body is here.
        let collected = bodies.collect(request.into_body(), &[0; 4], limit, wait).await?;
        return raw(collected, description);
    }
    if !is_json(&media_type) && !UNCHOSEN.contains(&media_type.as_str()) {
        return Err(unsupported(description, &media_type));
    }
    let collected = bodies.collect(request.into_body(), &[], limit, wait).await?;
    let function = Arc::clone(function);
    aside(collected.bytes.len(), move || from_json(collected, &function)).await
}

fn from_json(collected: Collected, function: &Function) -> Result<Call, AnswerError> {
    let Collected { bytes, mut share } = collected;
    let description = function.revision.description.as_ref().ok_or(AnswerError::Internal)?;
    let read = json::request(&bytes, description, &mut |more| share.grow(more).is_ok());
    let (id, request) = read?;
    // From here on the tensors are held in place of the body.
    share.shrink(bytes.len());
    Ok(Call { request, form: Form::Json { id }, share })
}

/// JSON and tensors beyond this many bytes are not worked on by an async thread, which others wait for.
const LONG: usize = 256 << 10;

/// Does work on so many bytes where it holds up nobody else.
pub(super) async fn aside<T: Send + 'static>(
    bytes: usize,
    work: impl FnOnce() -> Result<T, AnswerError> + Send + 'static,
) -> Result<T, AnswerError> {
    if bytes <= LONG {
        return work();
    }
    tokio::task::spawn_blocking(work).await.map_err(|_| AnswerError::Internal)?
}

/// Calls the function and writes its answer.
///
/// # Errors
/// Where the guest fails, or answers what it did not describe.
pub async fn answer(
    server: &Server,
    function: &Arc<Function>,
    call: Call,
    trace: &mut Trace,
) -> Result<Response<Body>, AnswerError> {
    let Call { request, form, share } = call;
    let revision = &function.revision;
    let outcome = server.infer(function, request, Caller { deadline: None, share }, trace).await?;
    let description = revision.description.as_ref().ok_or(AnswerError::Internal)?;
    let id = match (form, &description.answers) {
        (Form::Raw, Some(media_type)) => {
            let answer = raw_answer(&outcome.reply, media_type, revision.response_body_bytes)?;
            return body::held(answer, outcome.into_share());
        }
        (Form::Raw, None) => None,
        (Form::Json { id }, _) => id,
    };
    let bytes = outcome.reply.tensor_bytes();
    let function = Arc::clone(function);
    let write = move || {
        let limit = function.revision.response_body_bytes;
        let written = json::reply(&function.name, id.as_deref(), &outcome.reply, limit);
        let written = written.map_err(|TooLong| AnswerError::ReplyTooLarge(limit))?;
        body::held(body::text(body::JSON, written), outcome.into_share())
    };
    aside(bytes, write).await
}

/// The media type without its parameters, lower-case; empty where the caller names none.
fn media_type(request: &Request<Incoming>) -> Result<String, AnswerError> {
    let Some(value) = request.headers().get(CONTENT_TYPE) else { return Ok(String::new()) };
    let value = value
        .to_str()
        .map_err(|_| AnswerError::InvalidInput("the header `content-type` is not plain text".to_owned()))?;
    Ok(value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase())
}

fn is_json(media_type: &str) -> bool {
    media_type.is_empty() || media_type == "application/json" || media_type.ends_with("+json")
}

/// What curl and some libraries send where nobody chose a type.
const UNCHOSEN: [&str; 3] = ["", "application/x-www-form-urlencoded", "application/octet-stream"];

/// Whether the function takes a body of this type raw. A type that the caller did not choose is taken for what the
/// function accepts, so that `curl --data-binary @file` is all that it takes.
fn accepts(description: &Description, media_type: &str) -> bool {
    if description.accepts.is_empty() {
        return false;
    }
    UNCHOSEN.contains(&media_type)
        || description.accepts.iter().any(|accepted| match accepted.strip_suffix("/*") {
            Some("*") => true,
            Some(kind) => media_type.split('/').next() == Some(kind),
            None => accepted == media_type,
        })
}

fn unsupported(description: &Description, media_type: &str) -> AnswerError {
    let mut taken = vec!["application/json"];
    taken.extend(description.accepts.iter().map(String::as_str));
    let taken = taken.join(", ");
    AnswerError::InvalidInput(format!("the function does not take `{media_type}`; it takes {taken}"))
}

fn raw(collected: Collected, description: &Description) -> Result<Call, AnswerError> {
    let Collected { bytes, share } = collected;
    let mut bytes = bytes.try_into_mut().unwrap_or_else(|shared| shared.as_ref().into());
    let length = u32::try_from(bytes.len() - 4).map_err(|_| AnswerError::TooLarge(u32::MAX as usize))?;
    bytes[..4].copy_from_slice(&length.to_le_bytes());
    let request = raw_request(bytes.freeze(), description)?;
    Ok(Call { request, form: Form::Raw, share })
}

/// The call of a function that takes raw bodies: `element` is the body with its length before it, as BYTES are.
///
/// # Errors
/// Where the function has not exactly one input.
pub fn raw_request(element: Bytes, description: &Description) -> Result<typed::Request, AnswerError> {
    let port = description.signature.inputs.first().ok_or(AnswerError::Internal)?;
    let tensor = Tensor::new(Datatype::Bytes, vec![1; rank(port)], element);
    let tensor = tensor.map_err(|error| AnswerError::InvalidInput(error.to_string()))?;
    let inputs =
        json::in_order(vec![(port.name.clone(), tensor)], description).map_err(AnswerError::InvalidInput)?;
    Ok(typed::Request { inputs, ..typed::Request::default() })
}

fn rank(port: &crate::backend::Port) -> usize {
    port.shape.as_ref().map_or(1, Vec::len)
}

fn raw_answer(reply: &Reply, media_type: &str, limit: usize) -> Result<Response<Body>, AnswerError> {
    let body = raw_body(reply)?;
    if body.len() > limit {
        return Err(AnswerError::ReplyTooLarge(limit));
    }
    let mut response = Response::new(Body::Whole(Some(body)));
    *response.status_mut() = StatusCode::OK;
    let media_type =
        HeaderValue::from_str(media_type).map_err(|_| wrong_reply("its media type is not a header value"))?;
    response.headers_mut().insert(CONTENT_TYPE, media_type);
    Ok(response)
}

/// The one element of the one BYTES output: the answer for a caller that sent a raw body.
///
/// # Errors
/// Where the function answered something else.
pub fn raw_body(reply: &Reply) -> Result<Bytes, AnswerError> {
    let [(_, tensor)] = reply.outputs.as_slice() else {
        return Err(wrong_reply("it did not answer one output"));
    };
    let element = tensor.elements().next().ok_or_else(|| wrong_reply("its BYTES output has no element"))?;
    let start = element.as_ptr() as usize - tensor.data().as_ptr() as usize;
    Ok(tensor.data().slice(start..start + element.len()))
}

fn wrong_reply(reason: &str) -> AnswerError {
    AnswerError::Call(CallError::BadReply(reason.to_owned()))
}
