//! The Open Inference Protocol over REST: every path below `/v2`.

use std::net::SocketAddr;
use std::sync::Arc;

use http::{Method, Request, Response};
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::body::{self, Body};
use super::status::{AnswerError, Problem};
use super::{Server, Trace};
use crate::function::{Asker, Snapshot};

pub mod binary;
pub mod compression;
pub mod events;
pub mod generate;
mod infer;
pub mod message;
pub mod model;
pub mod repository;

/// What a path below `/v2` asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Endpoint<'a> {
    Server,
    Live,
    Ready,
    /// Statistics of all models.
    Statistics,
    /// The index of the model repository.
    Index,
    Load(&'a str),
    Unload(&'a str),
    /// Something about a model, and its version where that is given.
    Model(&'a str, &'a str, Aspect),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Aspect {
    Metadata,
    Ready,
    Config,
    Statistics,
    Infer,
    Generate,
    GenerateStream,
}

impl Endpoint<'_> {
    /// What `path` asks for, and nothing where there is nothing.
    fn of(path: &str) -> Option<Endpoint<'_>> {
        let path = path.strip_prefix("/v2")?;
        let path = path.strip_suffix('/').unwrap_or(path);
        let mut segments = path.split('/');
        // What stands before the first slash.
        segments.next()?;
        let segments: Vec<_> = segments.collect();
        match *segments.as_slice() {
            [] => Some(Endpoint::Server),
            ["health", "live"] => Some(Endpoint::Live),
            ["health", "ready"] => Some(Endpoint::Ready),
            ["models", "stats"] => Some(Endpoint::Statistics),
            ["repository", "index"] => Some(Endpoint::Index),
            ["repository", "models", model, "load"] => Some(Endpoint::Load(model)),
            ["repository", "models", model, "unload"] => Some(Endpoint::Unload(model)),
            ["models", model, "versions", version, ref rest @ ..] => {
                Some(Endpoint::Model(model, version, Aspect::of(rest)?))
            }
            ["models", model, ref rest @ ..] => Some(Endpoint::Model(model, "", Aspect::of(rest)?)),
            _ => None,
        }
    }

    fn method(self) -> Method {
        match self {
            Endpoint::Index | Endpoint::Load(_) | Endpoint::Unload(_) => Method::POST,
            Endpoint::Model(_, _, aspect) if aspect.is_call() => Method::POST,
            Endpoint::Server
            | Endpoint::Live
            | Endpoint::Ready
            | Endpoint::Statistics
            | Endpoint::Model(..) => Method::GET,
        }
    }
}

impl Aspect {
    /// Whether the function is called, rather than asked about.
    fn is_call(self) -> bool {
        matches!(self, Aspect::Infer | Aspect::Generate | Aspect::GenerateStream)
    }

    fn of(segments: &[&str]) -> Option<Aspect> {
        match segments {
            [] => Some(Aspect::Metadata),
            ["ready"] => Some(Aspect::Ready),
            ["config"] => Some(Aspect::Config),
            ["stats"] => Some(Aspect::Statistics),
            ["infer"] => Some(Aspect::Infer),
            ["generate"] => Some(Aspect::Generate),
            ["generate_stream"] => Some(Aspect::GenerateStream),
            _ => None,
        }
    }
}

/// Whether a path is the protocol's.
pub fn is_ours(path: &str) -> bool {
    path == "/v2" || path.starts_with("/v2/")
}

/// Answers a request below `/v2`.
///
/// # Errors
/// Where it cannot be answered as asked; [`problem`] gives the error its form.
pub async fn answer(
    server: &Arc<Server>,
    snapshot: &Snapshot,
    request: Request<Incoming>,
    client: SocketAddr,
    trace: &mut Trace,
) -> Result<Response<Body>, AnswerError> {
    let path = request.uri().path().to_owned();
    match endpoint(&path, request.method())? {
        Endpoint::Server => Ok(json(&model::server())),
        Endpoint::Live => Ok(json(&json!({ "live": true }))),
        Endpoint::Ready if server.is_ready() => Ok(json(&json!({ "ready": true }))),
        Endpoint::Ready if server.draining() => Err(AnswerError::Draining),
        Endpoint::Ready => Err(AnswerError::NothingDeployed),
        Endpoint::Statistics => {
            let models: Vec<_> = snapshot.models().map(|function| model::statistics(function)).collect();
            Ok(json(&json!({ "model_stats": models })))
        }
        Endpoint::Index => repository::index(server, snapshot, request).await,
        Endpoint::Load(name) => {
            let function = server.model(snapshot, name, "")?;
            repository::load(server, function, request).await
        }
        Endpoint::Unload(name) => {
            let function = server.model(snapshot, name, "")?;
            repository::unload(server, function, request).await
        }
        Endpoint::Model(name, version, aspect) => {
            let function = if aspect.is_call() {
                let asker = Asker { headers: request.headers(), client: client.ip() };
                let (function, division) = server.called(snapshot, name, version, &asker)?;
                trace.division = division.map(Arc::clone);
                function
            } else {
                server.model(snapshot, name, version)?
            };
            match aspect {
                Aspect::Metadata => Ok(json(&model::metadata(function, &versions(snapshot, name)))),
                Aspect::Ready if server.is_model_ready(function) => {
                    Ok(json(&json!({ "name": function.model, "ready": true })))
                }
                Aspect::Ready if server.draining() => Err(AnswerError::Draining),
                Aspect::Ready => Err(AnswerError::NotReady(function.model.clone())),
                Aspect::Config => Ok(json(&model::config(function))),
                Aspect::Statistics => Ok(json(&json!({ "model_stats": [model::statistics(function)] }))),
                Aspect::Infer | Aspect::Generate | Aspect::GenerateStream => {
                    server.takes_calls()?;
                    trace.function = Some(function.clone());
                    match aspect {
                        Aspect::Generate => infer::generate(server, function, request, trace).await,
                        Aspect::GenerateStream => {
                            infer::generate_stream(server, function, request, trace).await
                        }
                        _ => infer::infer(server, function, request, trace).await,
                    }
                }
            }
        }
    }
}

/// The versions of a model that calls can ask for.
pub fn versions<'a>(snapshot: &'a Snapshot, name: &'a str) -> Vec<&'a str> {
    let functions = snapshot.model(name).into_iter().flat_map(|traffic| traffic.versions(name));
    functions.map(|function| function.version.as_str()).collect()
}

/// What a path and a method ask for.
fn endpoint<'a>(path: &'a str, method: &Method) -> Result<Endpoint<'a>, AnswerError> {
    let endpoint = Endpoint::of(path).ok_or_else(|| AnswerError::FunctionNotFound(path.to_owned()))?;
    let allowed = endpoint.method();
    // A probe may ask for heads alone.
    if *method != allowed && !(*method == Method::HEAD && allowed == Method::GET) {
        let allowed = if allowed == Method::GET { "GET" } else { "POST" };
        return Err(AnswerError::MethodNotAllowed { method: method.to_string(), allowed });
    }
    Ok(endpoint)
}

/// What a request is refused for by its head alone.
pub fn refused_at_once(
    server: &Server,
    snapshot: &Snapshot,
    request: &Request<Incoming>,
) -> Option<AnswerError> {
    match endpoint(request.uri().path(), request.method()) {
        Ok(Endpoint::Model(name, version, _)) => server.model(snapshot, name, version).err(),
        Ok(Endpoint::Load(name) | Endpoint::Unload(name)) => server.model(snapshot, name, "").err(),
        Ok(_) => None,
        Err(error) => Some(error),
    }
}

/// An error in the protocol's form.
pub fn problem(problem: &Problem) -> Response<Body> {
    body::refusal(problem, json(&json!({ "error": problem.detail })))
}

fn json(value: &Value) -> Response<Body> {
    body::text(body::JSON, value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_what_they_ask_for() {
        let check = |path: &str, expected: Option<Endpoint<'_>>| {
            assert_eq!(Endpoint::of(path), expected, "{path}");
        };
        check("/v2", Some(Endpoint::Server));
        check("/v2/", Some(Endpoint::Server));
        check("/v2/health/live", Some(Endpoint::Live));
        check("/v2/health/ready", Some(Endpoint::Ready));
        check("/v2/health", None);
        check("/v2/models/stats", Some(Endpoint::Statistics));
        check("/v2/models", None);
        check("/v2/models/m", Some(Endpoint::Model("m", "", Aspect::Metadata)));
        check("/v2/models/m/", Some(Endpoint::Model("m", "", Aspect::Metadata)));
        check("/v2/models/m/versions/2", Some(Endpoint::Model("m", "2", Aspect::Metadata)));
        check("/v2/models/m/versions/2/infer", Some(Endpoint::Model("m", "2", Aspect::Infer)));
        check("/v2/models/m/versions", None);
        check("/v2/models/m/ready", Some(Endpoint::Model("m", "", Aspect::Ready)));
        check("/v2/models/m/generate_stream", Some(Endpoint::Model("m", "", Aspect::GenerateStream)));
        check("/v2/models/m/infer/more", None);
        check("/v2/repository/index", Some(Endpoint::Index));
        check("/v2/repository/models/m/load", Some(Endpoint::Load("m")));
        check("/v2/repository/models/m/unload", Some(Endpoint::Unload("m")));
        check("/v2/repository/m/index", None);
        check("/v3", None);
    }
}
