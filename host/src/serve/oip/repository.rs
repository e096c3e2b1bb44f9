//! The model repository extension: which models there are, and their leaving and coming back to memory. Nothing is ever
//! uploaded by it.

use std::sync::Arc;

use http::{Request, Response};
use hyper::body::Incoming;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::super::Server;
use super::super::body::Body;
use super::super::status::AnswerError;
use crate::function::{Function, Snapshot};

/// Bytes of a request to the repository, which has parameters alone.
const LONGEST: usize = 64 << 10;

/// What the index is asked.
#[derive(Default, Deserialize)]
struct Wanted {
    /// Only the models that take calls.
    #[serde(default)]
    ready: bool,
}

pub(super) async fn index(
    server: &Server,
    snapshot: &Snapshot,
    request: Request<Incoming>,
) -> Result<Response<Body>, AnswerError> {
    let wanted: Wanted = read(server, request, "{\"ready\": true}").await?.unwrap_or_default();
    let models = snapshot.models();
    let models = models.filter(|function| !wanted.ready || server.is_model_ready(function));
    let models: Vec<_> = models
        .map(|function| {
            let (state, reason) = state(server, function);
            json!({ "name": function.model, "version": function.version, "state": state, "reason": reason })
        })
        .collect();
    Ok(super::json(&models.into()))
}

/// A model's state in the index, and why it is in it.
pub fn state(server: &Server, function: &Function) -> (&'static str, &'static str) {
    if server.is_model_ready(function) {
        ("READY", "")
    } else if function.is_ready() {
        ("UNAVAILABLE", "the host is shutting down")
    } else {
        ("UNAVAILABLE", "unloaded")
    }
}

pub(super) async fn load(
    server: &Server,
    function: &Arc<Function>,
    request: Request<Incoming>,
) -> Result<Response<Body>, AnswerError> {
    let parameters = parameters(server, request).await?;
    loadable(parameters.keys().map(String::as_str))?;
    server.load(function).await?;
    Ok(super::json(&json!({})))
}

pub(super) async fn unload(
    server: &Server,
    function: &Arc<Function>,
    request: Request<Incoming>,
) -> Result<Response<Body>, AnswerError> {
    let parameters = parameters(server, request).await?;
    unloadable(parameters.keys().map(String::as_str))?;
    server.unload(function).await?;
    Ok(super::json(&json!({})))
}

/// Refuses what would bring another model, or another configuration of it, with a call.
///
/// # Errors
/// Names the parameter, and what to do instead.
pub fn loadable<'a>(mut parameters: impl Iterator<Item = &'a str>) -> Result<(), AnswerError> {
    let Some(name) = parameters.next() else { return Ok(()) };
    Err(AnswerError::Unsupported(format!(
        "the parameter `{name}` is not taken: loading brings what is deployed into memory, and nothing else; deploy \
         the app to change a model or its settings"
    )))
}

/// # Errors
/// Names a parameter that is not one of the extension's.
pub fn unloadable<'a>(parameters: impl Iterator<Item = &'a str>) -> Result<(), AnswerError> {
    // No model depends on another here, so that it means nothing.
    match parameters.into_iter().find(|name| *name != "unload_dependents") {
        Some(name) => Err(AnswerError::Unsupported(format!("the parameter `{name}` is not taken"))),
        None => Ok(()),
    }
}

async fn parameters(server: &Server, request: Request<Incoming>) -> Result<Map<String, Value>, AnswerError> {
    #[derive(Default, Deserialize)]
    struct Form {
        #[serde(default)]
        parameters: Map<String, Value>,
    }
    let form: Option<Form> = read(server, request, "{\"parameters\": {}}").await?;
    Ok(form.unwrap_or_default().parameters)
}

/// The JSON body of a request; clients also send none.
async fn read<T: for<'de> Deserialize<'de>>(
    server: &Server,
    request: Request<Incoming>,
    example: &str,
) -> Result<Option<T>, AnswerError> {
    let wait = server.limits.body_read;
    let collected = server.bodies.collect(request.into_body(), &[], LONGEST, wait).await?;
    if collected.bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(None);
    }
    let wrong =
        |error| AnswerError::InvalidInput(format!("the body is not of the form `{example}`: {error}"));
    serde_json::from_slice(&collected.bytes).map(Some).map_err(wrong)
}
