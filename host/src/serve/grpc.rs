//! gRPC: the Open Inference Protocol's service, health checks and reflection, beside everything else on the listener.
//!
//! The framing is our own. A message is counted as it comes, its tensors stay where it lies, and one that is too long,
//! too slow or too much for the host gets the status that says so; libraries that do the framing hold what is announced
//! before it has come, copy it, and decompress it on async threads.

use std::net::SocketAddr;
use std::sync::Arc;

use http::header::CONTENT_TYPE;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, Response, Version};
use http_body_util::BodyExt;
use hyper::body::{Body as HttpBody, Incoming};

use super::body::{self, Body};
use super::oip::{self, repository};
use super::status::{AnswerError, Problem};
use super::{Server, Trace};
use crate::function::Snapshot;

mod call;
mod contents;
mod deadline;
mod health;
mod infer;
mod infer_stream;
mod message;
mod model;
mod proto;
mod reflection;
mod reply;
mod status;
mod stream;
#[cfg(test)]
mod tests;
mod wire;

use deadline::deadline;
use infer::Whole;
use message::{HEAD, Message};
use model::Control;
use proto::inference as pb;

/// The media type of all gRPC.
const MEDIA_TYPE: &str = "application/grpc";

/// Whether a request is gRPC, or means to be.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    subtype(headers).is_some()
}

/// What follows the media type of a request that is gRPC.
fn subtype(headers: &HeaderMap) -> Option<&[u8]> {
    let (start, subtype) = headers.get(CONTENT_TYPE)?.as_bytes().split_at_checked(MEDIA_TYPE.len())?;
    // gRPC-Web and others that only begin like it are for functions.
    let is_grpc = matches!(subtype, [] | [b';' | b' ' | b'+', ..]);
    (is_grpc && start.eq_ignore_ascii_case(MEDIA_TYPE.as_bytes())).then_some(subtype)
}

/// Answers a request that [`is_grpc`].
///
/// # Errors
/// Where it cannot be answered as asked; [`problem`] gives the error its form.
pub async fn answer(
    server: &Arc<Server>,
    snapshot: &Snapshot,
    request: Request<Incoming>,
    client: SocketAddr,
    request_id: &str,
    trace: &mut Trace,
) -> Result<Response<Body>, AnswerError> {
    let (head, mut body) = request.into_parts();
    if let Err(error) = spoken(&head) {
        if head.version == Version::HTTP_2 {
            body::finish(&mut body).await;
        }
        // Whoever does not speak gRPC is not answered in it.
        return Ok(body::problem(&server.refuse(&error, request_id, trace)));
    }
    match head.uri.path() {
        "/inference.GRPCInferenceService/ModelStreamInfer" => {
            infer_stream::model_stream_infer(server, &head.headers, client, body, request_id).map(response)
        }
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
        | "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo" => {
            reflection::server_reflection_info(server, &head.headers, body, request_id).map(response)
        }
        path => {
            let called = Called { path, headers: &head.headers, client, request_id };
            let answered = called.answer(server, snapshot, &mut body, trace).await;
            body::finish(&mut body).await;
            answered
        }
    }
}

/// A call of a method that takes one message.
struct Called<'a> {
    path: &'a str,
    headers: &'a HeaderMap,
    client: SocketAddr,
    request_id: &'a str,
}

impl Called<'_> {
    async fn answer(
        &self,
        server: &Arc<Server>,
        snapshot: &Snapshot,
        body: &mut Incoming,
        trace: &mut Trace,
    ) -> Result<Response<Body>, AnswerError> {
        if self.path == "/inference.GRPCInferenceService/ModelInfer" {
            server.takes_calls()?;
            let answer = infer::model_infer(server, snapshot, self.headers, self.client, body, trace).await;
            return answer.map(response);
        }
        let named = self.named()?;
        let deadline = deadline(self.headers)?;
        let message = infer::only(server, self.headers, body, deadline).await?;
        match named {
            (INFERENCE, method) => inference(method, server, snapshot, &message).await,
            (HEALTH, "Check") => whole(server, &health::check(server, &decoded(&message)?)?),
            (HEALTH, "List") => whole(server, &health::list(server)),
            (HEALTH, "Watch") => {
                Ok(response(health::watch(server, decoded(&message)?, self.request_id, deadline)))
            }
            _ => Err(self.unknown()),
        }
    }

    /// The service and the method, which there are.
    fn named(&self) -> Result<(&str, &str), AnswerError> {
        let path = self.path;
        let (service, method) =
            path.strip_prefix('/').and_then(|path| path.split_once('/')).unwrap_or_default();
        if proto::is_method(service, method) {
            return Ok((service, method));
        }
        Err(match not_offered(method) {
            Some(what) if service == INFERENCE => {
                AnswerError::Unsupported(format!("{what} is not offered here"))
            }
            _ => self.unknown(),
        })
    }

    fn unknown(&self) -> AnswerError {
        AnswerError::Unsupported(format!("there is no method `{}`", self.path))
    }
}

const INFERENCE: &str = "inference.GRPCInferenceService";
const HEALTH: &str = "grpc.health.v1.Health";

/// Answers what takes one message and gives one, but for calls of models.
async fn inference(
    method: &str,
    server: &Server,
    snapshot: &Snapshot,
    message: &Message,
) -> Result<Response<Body>, AnswerError> {
    match method {
        "ServerLive" => whole(server, &pb::ServerLiveResponse { live: true }),
        "ServerReady" => whole(server, &pb::ServerReadyResponse { ready: server.is_ready() }),
        "ServerMetadata" => whole(server, &model::server()),
        "ModelReady" => {
            let pb::ModelReadyRequest { name, version } = decoded(message)?;
            let ready = server.is_model_ready(server.model(snapshot, &name, &version)?);
            whole(server, &pb::ModelReadyResponse { ready })
        }
        "ModelMetadata" => {
            let pb::ModelMetadataRequest { name, version } = decoded(message)?;
            let function = server.model(snapshot, &name, &version)?;
            whole(server, &model::metadata(function, &oip::versions(snapshot, &name)))
        }
        "ModelConfig" => {
            let pb::ModelConfigRequest { name, version } = decoded(message)?;
            whole(server, &model::config(server.model(snapshot, &name, &version)?))
        }
        "ModelStatistics" => {
            let pb::ModelStatisticsRequest { name, version } = decoded(message)?;
            let model_stats = match name.as_str() {
                "" => snapshot.models().map(|function| model::statistics(function)).collect(),
                name => vec![model::statistics(server.model(snapshot, name, &version)?)],
            };
            whole(server, &pb::ModelStatisticsResponse { model_stats })
        }
        "RepositoryIndex" => {
            let request: pb::RepositoryIndexRequest = decoded(message)?;
            whole(server, &model::index(server, snapshot, &request)?)
        }
        "RepositoryModelLoad" | "RepositoryModelUnload" => {
            let Control { model, parameters } = Control::read(&message.bytes)?;
            let function = server.model(snapshot, model, "")?;
            if method == "RepositoryModelLoad" {
                repository::loadable(parameters.into_iter())?;
                server.load(function).await?;
            } else {
                repository::unloadable(parameters.into_iter())?;
                server.unload(function).await?;
            }
            // Both of their answers say nothing.
            whole(server, &pb::RepositoryModelLoadResponse {})
        }
        other => Err(AnswerError::Unsupported(format!("there is no method `{other}` in `{INFERENCE}`"))),
    }
}

/// What a method of Triton's is for that the host does not have.
fn not_offered(method: &str) -> Option<&'static str> {
    match method {
        "SystemSharedMemoryStatus"
        | "SystemSharedMemoryRegister"
        | "SystemSharedMemoryUnregister"
        | "CudaSharedMemoryStatus"
        | "CudaSharedMemoryRegister"
        | "CudaSharedMemoryUnregister" => Some("shared memory, through which tensors would come,"),
        "TraceSetting" => Some("a choice of traces by callers"),
        "LogSettings" => Some("a choice of logs by callers"),
        _ => None,
    }
}

/// Whether a request is gRPC as it is spoken here.
fn spoken(head: &Parts) -> Result<(), AnswerError> {
    if head.version != Version::HTTP_2 {
        return Err(AnswerError::NeedsHttp2);
    }
    if head.method != Method::POST {
        let method = head.method.to_string();
        return Err(AnswerError::MethodNotAllowed { method, allowed: "POST" });
    }
    match subtype(&head.headers).unwrap_or_default() {
        [] | [b';' | b' ', ..] => Ok(()),
        subtype if subtype.eq_ignore_ascii_case(b"+proto") => Ok(()),
        subtype => Err(AnswerError::UnsupportedMedia(format!(
            "`{MEDIA_TYPE}{}` is not spoken here; use `{MEDIA_TYPE}`, or the Open Inference Protocol over REST",
            subtype.escape_ascii()
        ))),
    }
}

/// An error in the form of gRPC, which is an answer of trailers alone.
pub fn problem(problem: &Problem) -> Response<Body> {
    let mut response = head(Body::Whole(None));
    response.headers_mut().extend(status::failure(problem));
    response
}

fn head(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
    response
}

fn response<B>(body: B) -> Response<Body>
where
    B: HttpBody<Data = bytes::Bytes, Error = std::convert::Infallible> + Send + 'static,
{
    head(Body::Stream(body.map_err(|never| match never {}).boxed_unsync()))
}

/// An answer of one message.
fn whole(server: &Server, message: &impl prost::Message) -> Result<Response<Body>, AnswerError> {
    Whole::new(server, vec![framed(message)]).map(response)
}

/// A message, and what stands before it.
fn framed(message: &impl prost::Message) -> bytes::Bytes {
    let length = message.encoded_len();
    let mut framed = Vec::with_capacity(HEAD + length);
    framed.push(0);
    // None of those that are written this way is anywhere near 4 GiB long.
    framed.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
    message.encode(&mut framed).expect("a vector grows");
    framed.into()
}

/// A message of a kind that takes no more memory than it is long.
fn decoded<M: prost::Message + Default>(message: &Message) -> Result<M, AnswerError> {
    M::decode(message.bytes.clone()).map_err(|error| {
        AnswerError::InvalidInput(format!("the message is not one that the method takes: {error}"))
    })
}
