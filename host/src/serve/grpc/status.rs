//! What a caller is told of an error over gRPC: the one place that knows its status codes.

use http::{HeaderMap, HeaderName, HeaderValue};

use super::super::status::Problem;

/// The status codes of gRPC that the host gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Code {
    Cancelled = 1,
    InvalidArgument = 3,
    DeadlineExceeded = 4,
    NotFound = 5,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    FailedPrecondition = 9,
    Aborted = 10,
    OutOfRange = 11,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
    Unauthenticated = 16,
}

/// The code of an error. What a function says of itself comes as a status of HTTP as well.
pub(super) fn code(problem: &Problem) -> Code {
    match problem.status {
        401 => Code::Unauthenticated,
        403 => Code::PermissionDenied,
        404 => Code::NotFound,
        405 | 501 => Code::Unimplemented,
        408 | 504 => Code::DeadlineExceeded,
        409 => Code::Aborted,
        412 => Code::FailedPrecondition,
        413 | 429 => Code::ResourceExhausted,
        416 => Code::OutOfRange,
        499 => Code::Cancelled,
        400..=498 => Code::InvalidArgument,
        // Another try finds the same models in memory.
        503 if problem.name == "over-memory-budget" => Code::ResourceExhausted,
        503 => Code::Unavailable,
        _ => Code::Internal,
    }
}

const STATUS: HeaderName = HeaderName::from_static("grpc-status");
const MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
/// When another try makes sense: what `retry-after` is elsewhere, and clients with a policy of retrying heed.
const PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");
/// The name of an error, for programs.
const ERROR: HeaderName = HeaderName::from_static("tenon-error");
/// How messages may be compressed.
const ACCEPT_ENCODING: HeaderName = HeaderName::from_static("grpc-accept-encoding");

/// Bytes of a message as it is sent. Clients take 8 KiB of headers together.
const LONGEST: usize = 4096;

/// The end of an answer in which nothing went wrong.
pub(super) fn success() -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(1);
    trailers.insert(STATUS, HeaderValue::from_static("0"));
    trailers
}

/// The end of an answer, or all of it, in which something went wrong.
pub(super) fn failure(problem: &Problem) -> HeaderMap {
    let code = code(problem);
    let mut trailers = HeaderMap::new();
    trailers.insert(STATUS, HeaderValue::from(code as u16));
    trailers.insert(MESSAGE, message(&problem.detail));
    if let Ok(name) = HeaderValue::from_str(&problem.name) {
        trailers.insert(ERROR, name);
    }
    if let Some(seconds) = problem.retry_after_s {
        trailers.insert(PUSHBACK, HeaderValue::from(u64::from(seconds) * 1000));
    }
    if code == Code::Unimplemented {
        trailers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity,deflate,gzip"));
    }
    trailers
}

/// A text as the header has it: what is not plain ASCII as `%` and two digits for each byte.
fn message(text: &str) -> HeaderValue {
    let mut encoded = String::with_capacity(text.len().min(LONGEST));
    for char in text.chars() {
        let length = encoded.len();
        match char {
            ' '..='~' if char != '%' => encoded.push(char),
            _ => {
                for byte in char.encode_utf8(&mut [0; 4]).bytes() {
                    let digit = |nibble: u8| char::from(b"0123456789ABCDEF"[usize::from(nibble)]);
                    encoded.extend(['%', digit(byte >> 4), digit(byte & 15)]);
                }
            }
        }
        if encoded.len() > LONGEST {
            encoded.truncate(length);
            break;
        }
    }
    HeaderValue::from_str(&encoded).unwrap_or(HeaderValue::from_static(""))
}

#[cfg(test)]
mod tests {
    use super::super::super::status::AnswerError;
    use super::*;
    use crate::instance::CallError;

    fn check(error: AnswerError, expected: Code) {
        assert_eq!(code(&error.problem()), expected, "{error}");
    }

    #[test]
    fn every_error_has_its_code() {
        let raised = |status| {
            let (code, message) = ("over-memory-budget".to_owned(), String::new());
            AnswerError::Call(CallError::Raised { code, message, status })
        };
        check(AnswerError::ModelNotFound("m".to_owned()), Code::NotFound);
        check(AnswerError::NotReady("m".to_owned()), Code::Unavailable);
        check(AnswerError::ControlForbidden, Code::PermissionDenied);
        check(AnswerError::Unsupported(String::new()), Code::Unimplemented);
        check(AnswerError::InvalidInput(String::new()), Code::InvalidArgument);
        check(AnswerError::TooLarge(1), Code::ResourceExhausted);
        check(AnswerError::SlowBody(1), Code::DeadlineExceeded);
        check(AnswerError::Overloaded, Code::Unavailable);
        check(AnswerError::Draining, Code::Unavailable);
        check(AnswerError::Call(CallError::DeadlineExceeded(1)), Code::DeadlineExceeded);
        check(AnswerError::Call(CallError::Trapped(String::new())), Code::Internal);
        check(AnswerError::Internal, Code::Internal);
        for (status, code) in [
            (None, Code::InvalidArgument),
            (Some(401), Code::Unauthenticated),
            (Some(409), Code::Aborted),
            (Some(412), Code::FailedPrecondition),
            (Some(416), Code::OutOfRange),
            (Some(429), Code::ResourceExhausted),
            (Some(451), Code::InvalidArgument),
            (Some(499), Code::Cancelled),
            (Some(503), Code::ResourceExhausted),
            (Some(599), Code::Internal),
        ] {
            check(raised(status), code);
        }
    }

    #[test]
    fn messages_are_plain_headers() {
        for (text, expected) in [
            ("input `x` takes FP32", "input `x` takes FP32"),
            ("100 %\n", "100 %25%0A"),
            ("größer", "gr%C3%B6%C3%9Fer"),
        ] {
            assert_eq!(message(text), expected);
        }
        let long = message(&"é".repeat(LONGEST));
        assert!(long.len() <= LONGEST && long.len().is_multiple_of(6), "{}", long.len());
    }

    #[test]
    fn an_overloaded_host_says_when_to_come_back() {
        let trailers = failure(&AnswerError::Overloaded.problem());
        assert_eq!(trailers[STATUS], "14");
        assert_eq!(trailers[PUSHBACK], "1000");
        assert_eq!(trailers[ERROR], "overloaded");
    }
}
