//! Reflection: what services there are, and the descriptions of their messages, for tools that have no `.proto`.

use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use hyper::body::Incoming;

use super::super::Server;
use super::super::status::{AnswerError, Problem};
use super::deadline::deadline;
use super::message::{Messages, Received};
use super::proto::reflection::server_reflection_request::MessageRequest;
use super::proto::reflection::server_reflection_response::MessageResponse;
use super::proto::reflection::{
    ErrorResponse, ExtensionNumberResponse, FileDescriptorResponse, ListServiceResponse,
    ServerReflectionRequest, ServerReflectionResponse, ServiceResponse,
};
use super::proto::{FILES, File};
use super::status::Code;
use super::stream::{At, Patience, Source, Streamed, refused};
use super::{decoded, framed};

/// Bytes of a question.
const LONGEST: usize = 4096;

/// Answers to questions on one stream, one after the other.
pub(super) struct Questions {
    server: Arc<Server>,
    request_id: String,
    messages: Messages<Incoming>,
    patience: Patience,
}

/// Begins to answer a stream.
///
/// # Errors
/// Where its headers say something that is not understood.
pub(super) fn server_reflection_info(
    server: &Arc<Server>,
    headers: &HeaderMap,
    body: Incoming,
    request_id: &str,
) -> Result<Streamed<Questions>, AnswerError> {
    let questions = Questions {
        server: Arc::clone(server),
        request_id: request_id.to_owned(),
        messages: Messages::new(body, headers, LONGEST)?,
        patience: Patience::new(server, deadline(headers)?),
    };
    Ok(Streamed::new(questions))
}

impl Source for Questions {
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Vec<Bytes>, Problem>>> {
        let answer = match self.messages.poll_next(context, &self.server.bodies) {
            Poll::Ready(next) => next.map(|received| received.and_then(answer)),
            Poll::Pending => {
                let at = if self.messages.is_amid() { At::Message } else { At::Rest };
                let over = self.patience.poll_over(context, at);
                return over.map(|over| Some(Err(refused(&self.server, &self.request_id, &over))));
            }
        };
        let answer =
            answer.map(|answer| answer.map_err(|error| refused(&self.server, &self.request_id, &error)));
        Poll::Ready(answer)
    }
}

fn answer(received: Received) -> Result<Vec<Bytes>, AnswerError> {
    let question: ServerReflectionRequest = decoded(&received.inflated()?)?;
    let message_response = Some(found(question.message_request.as_ref()));
    let valid_host = question.host.clone();
    let original_request = Some(question);
    Ok(vec![framed(&ServerReflectionResponse { valid_host, original_request, message_response })])
}

fn found(question: Option<&MessageRequest>) -> MessageResponse {
    match question {
        Some(MessageRequest::ListServices(_)) => {
            let names = FILES.iter().flat_map(|file| file.services);
            let service = names.map(|name| ServiceResponse { name: (*name).to_owned() }).collect();
            MessageResponse::ListServicesResponse(ListServiceResponse { service })
        }
        Some(MessageRequest::FileByFilename(name)) => file(|file| file.name == name, "file", name),
        Some(MessageRequest::FileContainingSymbol(name)) => {
            file(|file| file.describes(name), "service, method, message or enum", name)
        }
        // Nothing here can be extended.
        Some(MessageRequest::FileContainingExtension(extension)) => {
            file(|_| false, "extension of", &extension.containing_type)
        }
        Some(MessageRequest::AllExtensionNumbersOfType(name)) => {
            if FILES.iter().any(|file| file.describes(name)) {
                let none = ExtensionNumberResponse { base_type_name: name.clone(), extension_number: vec![] };
                MessageResponse::AllExtensionNumbersResponse(none)
            } else {
                file(|_| false, "message", name)
            }
        }
        None => error(Code::InvalidArgument, "the request asks for nothing".to_owned()),
    }
}

fn file(is_wanted: impl Fn(&File) -> bool, what: &str, name: &str) -> MessageResponse {
    match FILES.iter().find(|file| is_wanted(file)) {
        Some(file) => MessageResponse::FileDescriptorResponse(FileDescriptorResponse {
            file_descriptor_proto: vec![Bytes::from_static(file.bytes)],
        }),
        None => error(Code::NotFound, format!("there is no {what} `{name}`")),
    }
}

fn error(code: Code, error_message: String) -> MessageResponse {
    MessageResponse::ErrorResponse(ErrorResponse { error_code: code as i32, error_message })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(question: MessageRequest, expected: &str) {
        let found = match found(Some(&question)) {
            MessageResponse::FileDescriptorResponse(response) => {
                let [bytes] = response.file_descriptor_proto.as_slice() else { panic!("{question:?}") };
                FILES.iter().find(|file| file.bytes == bytes).unwrap().name.to_owned()
            }
            MessageResponse::ListServicesResponse(response) => {
                response.service.into_iter().map(|service| service.name).collect::<Vec<_>>().join(" ")
            }
            MessageResponse::ErrorResponse(error) => format!("{} {}", error.error_code, error.error_message),
            MessageResponse::AllExtensionNumbersResponse(response) => response.base_type_name,
        };
        assert_eq!(found, expected, "{question:?}");
    }

    #[test]
    fn what_is_served_is_described() {
        use MessageRequest::*;
        let all = "inference.GRPCInferenceService grpc.health.v1.Health grpc.reflection.v1.ServerReflection \
                   grpc.reflection.v1alpha.ServerReflection";
        check(ListServices(String::new()), all);
        check(FileByFilename("inference.proto".to_owned()), "inference.proto");
        check(FileByFilename("other.proto".to_owned()), "5 there is no file `other.proto`");
        for (symbol, file) in [
            ("inference.GRPCInferenceService", "inference.proto"),
            ("inference.GRPCInferenceService.ModelInfer", "inference.proto"),
            ("inference.ModelInferRequest.InferInputTensor", "inference.proto"),
            ("inference.DataType", "inference.proto"),
            ("inference.ModelInstanceGroup.Kind", "inference.proto"),
            ("grpc.health.v1.Health", "health.proto"),
            ("grpc.reflection.v1.ServerReflection", "reflection.proto"),
            ("grpc.reflection.v1alpha.ServerReflection", "reflection_v1alpha.proto"),
        ] {
            check(FileContainingSymbol(symbol.to_owned()), file);
        }
        check(
            FileContainingSymbol("inference.Other".to_owned()),
            "5 there is no service, method, message or enum `inference.Other`",
        );
        check(AllExtensionNumbersOfType("inference.ModelConfig".to_owned()), "inference.ModelConfig");
        check(AllExtensionNumbersOfType("Other".to_owned()), "5 there is no message `Other`");
    }
}
