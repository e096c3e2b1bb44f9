//! Calls of models: a request's body becomes tensors, the answer's tensors a body.

use std::sync::Arc;

use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::json;

use super::super::body::{self, Body, BrokenBody, Collected, Share};
use super::super::call::Caller;
use super::super::json::{self as codec, Refused, TooLong};
use super::super::status::AnswerError;
use super::super::typed_function::aside;
use super::super::{Server, Trace};
use super::events::{Answers, Events};
use crate::function::Function;
use crate::instance::typed;

/// A call as it was read.
struct Call {
    id: Option<String>,
    request: typed::Request,
    share: Share,
}

pub(super) async fn infer(
    server: &Server,
    function: &Arc<Function>,
    request: Request<Incoming>,
    trace: &mut Trace,
) -> Result<Response<Body>, AnswerError> {
    let Call { id, request, share } = read(server, function, request).await?;
    let outcome = server.infer(function, request, Caller { deadline: None, share }, trace).await?;
    let bytes = outcome.reply.outputs.iter().map(|(_, tensor)| tensor.data().len()).sum();
    let function = Arc::clone(function);
    let write = move || {
        let limit = function.revision.response_body_bytes;
        let body = codec::reply(&function.model, id.as_deref(), &outcome.reply, limit);
        body.map_err(|TooLong| AnswerError::ReplyTooLarge(limit))
    };
    Ok(body::text(body::JSON, aside(bytes, write).await?))
}

async fn read(
    server: &Server,
    function: &Arc<Function>,
    request: Request<Incoming>,
) -> Result<Call, AnswerError> {
    let limit = function.revision.request_body_bytes;
    let collected = server.bodies.collect(request.into_body(), &[], limit, server.limits.body_read).await?;
    let function = Arc::clone(function);
    aside(collected.bytes.len(), move || {
        let Collected { bytes, mut share } = collected;
        let description = function.revision.description.as_ref().ok_or(AnswerError::Internal)?;
        let read = codec::request(&bytes, description, &mut |more| share.grow(more).is_ok());
        let (id, request) = read.map_err(refused)?;
        share.shrink(bytes.len());
        Ok(Call { id, request, share })
    })
    .await
}

fn refused(refused: Refused) -> AnswerError {
    match refused {
        Refused::Input(reason) => AnswerError::InvalidInput(reason),
        Refused::NoRoom => AnswerError::Overloaded,
    }
}
