//! What a caller is told of an error: the one place that knows status codes.

use thiserror::Error;

use super::json::Refused;
use crate::function::Overloaded;
use crate::instance::CallError;
use crate::telemetry::observations::Outcome;

/// Why a request was not answered as asked.
#[derive(Debug, Error)]
pub enum AnswerError {
    #[error("there is no function at `{0}`")]
    FunctionNotFound(String),
    #[error("there is no model `{0}`")]
    ModelNotFound(String),
    #[error("model `{name}` has no version `{version}`; it has version `{there}`")]
    VersionNotFound { name: String, version: String, there: String },
    #[error("model `{0}` was unloaded; load it before you call it")]
    NotReady(String),
    #[error("loading and unloading models is not allowed here (`models.allow_control` in host.toml)")]
    ControlForbidden,
    /// The form of the body.
    #[error("{0}")]
    UnsupportedMedia(String),
    #[error("{0}")]
    Unsupported(String),
    #[error("`{method}` is not allowed here; use {allowed}")]
    MethodNotAllowed { method: String, allowed: &'static str },
    #[error("{0}")]
    InvalidInput(String),
    #[error("the body is longer than the {0} bytes that this function takes (`limits.request_body_mib`)")]
    TooLarge(usize),
    #[error(
        "the message is longer than the {0} bytes that the host takes (`limits.request_body_mib` in host.toml)"
    )]
    LongMessage(usize),
    #[error("gRPC needs HTTP/2: speak it from the start, or over TLS")]
    NeedsHttp2,
    #[error("there is no service `{0}`")]
    ServiceNotFound(String),
    #[error("the body did not arrive within {0} ms")]
    SlowBody(u64),
    #[error("the call did not end within the {0} ms that its caller gave it")]
    CallerDeadline(u64),
    #[error("the host has no room for this request now; try again")]
    Overloaded,
    #[error("the host is shutting down")]
    Draining,
    #[error("nothing is served yet: nothing was deployed, or it is still being brought back")]
    NothingDeployed,
    #[error(transparent)]
    Call(#[from] CallError),
    #[error("the function's answer is longer than the {0} bytes that it may be (`limits.response_body_mib`)")]
    ReplyTooLarge(usize),
    #[error("something went wrong in the host")]
    Internal,
}

impl From<Refused> for AnswerError {
    fn from(refused: Refused) -> AnswerError {
        match refused {
            Refused::Input(reason) => AnswerError::InvalidInput(reason),
            Refused::NoRoom => AnswerError::Overloaded,
        }
    }
}

impl From<Overloaded> for AnswerError {
    fn from(Overloaded: Overloaded) -> AnswerError {
        AnswerError::Overloaded
    }
}

/// An error as callers see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub status: u16,
    /// Stable, for programs.
    pub name: String,
    /// For people.
    pub detail: String,
    /// Seconds after which another try makes sense.
    pub retry_after_s: Option<u32>,
    /// The method to use instead, where that is what is wrong.
    pub allowed: Option<&'static str>,
}

/// Bytes of a function's own message that are passed on.
const LONGEST_MESSAGE: usize = 4096;

impl AnswerError {
    pub fn problem(&self) -> Problem {
        let (status, name) = self.meaning();
        let name = match self {
            AnswerError::Call(CallError::Raised { code, .. }) if is_name(code) => code.clone(),
            _ => name.to_owned(),
        };
        let mut detail = self.to_string();
        detail.truncate(detail.floor_char_boundary(LONGEST_MESSAGE));
        let retry_after_s = (status == 503).then_some(1);
        let allowed = match self {
            AnswerError::MethodNotAllowed { allowed, .. } => Some(*allowed),
            _ => None,
        };
        Problem { status, name, detail, retry_after_s, allowed }
    }

    /// The name for metrics: one of a fixed set, where a function's own codes have no bound.
    pub fn name(&self) -> &'static str {
        self.meaning().1
    }

    fn meaning(&self) -> (u16, &'static str) {
        match self {
            AnswerError::FunctionNotFound(_) => (404, "function-not-found"),
            AnswerError::ModelNotFound(_) | AnswerError::VersionNotFound { .. } => (404, "model-not-found"),
            AnswerError::NotReady(_) => (503, "not-ready"),
            AnswerError::ControlForbidden => (403, "control-forbidden"),
            AnswerError::UnsupportedMedia(_) => (415, "unsupported-media"),
            AnswerError::Unsupported(_) => (501, "unsupported"),
            AnswerError::MethodNotAllowed { .. } => (405, "method-not-allowed"),
            AnswerError::InvalidInput(_) => (400, "invalid-input"),
            AnswerError::TooLarge(_) | AnswerError::LongMessage(_) => (413, "too-large"),
            AnswerError::NeedsHttp2 => (505, "needs-http2"),
            AnswerError::ServiceNotFound(_) => (404, "service-not-found"),
            AnswerError::SlowBody(_) => (408, "slow-body"),
            AnswerError::CallerDeadline(_) => (504, "deadline-exceeded"),
            AnswerError::Overloaded => (503, "overloaded"),
            AnswerError::Draining => (503, "draining"),
            AnswerError::NothingDeployed => (503, "not-ready"),
            AnswerError::Call(error) => call(error),
            AnswerError::ReplyTooLarge(_) => (502, "guest-bad-reply"),
            AnswerError::Internal => (500, "internal"),
        }
    }

    /// What it says of the function, where an instance of it ran.
    pub fn outcome(&self) -> Option<Outcome> {
        match self {
            AnswerError::ReplyTooLarge(_) => Some(Outcome::Error),
            AnswerError::CallerDeadline(_) => Some(Outcome::LimitKill),
            AnswerError::Call(error) => match error {
                // Input that one revision's model takes, the other's may refuse.
                CallError::Raised { .. } | CallError::Input(_) => Some(Outcome::Raised),
                CallError::Trapped(_) => Some(Outcome::Trap),
                CallError::DeadlineExceeded(_) | CallError::OverMemory(_) => Some(Outcome::LimitKill),
                CallError::BadReply(_)
                | CallError::Start(_)
                | CallError::Unavailable(_)
                | CallError::OverBudget(_)
                | CallError::Inference(_) => Some(Outcome::Error),
                CallError::Queue(_) => None,
            },
            _ => None,
        }
    }

    /// Whether it is ours or the author's to look at, rather than the caller's: such errors are logged as warnings.
    pub fn is_fault(&self) -> bool {
        match self {
            AnswerError::Call(CallError::Raised { .. })
            | AnswerError::Call(CallError::Input(_) | CallError::Queue(_))
            | AnswerError::FunctionNotFound(_)
            | AnswerError::ModelNotFound(_)
            | AnswerError::VersionNotFound { .. }
            | AnswerError::NotReady(_)
            | AnswerError::NothingDeployed
            | AnswerError::ControlForbidden
            | AnswerError::UnsupportedMedia(_)
            | AnswerError::Unsupported(_)
            | AnswerError::MethodNotAllowed { .. }
            | AnswerError::InvalidInput(_)
            | AnswerError::TooLarge(_)
            | AnswerError::LongMessage(_)
            | AnswerError::NeedsHttp2
            | AnswerError::ServiceNotFound(_)
            | AnswerError::SlowBody(_)
            | AnswerError::CallerDeadline(_)
            | AnswerError::Overloaded
            | AnswerError::Draining => false,
            AnswerError::Call(_) | AnswerError::ReplyTooLarge(_) | AnswerError::Internal => true,
        }
    }
}

/// Whether a function's own code is a name: lower-case words joined by hyphens.
fn is_name(code: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=64).contains(&code.len()) && code.bytes().all(plain)
}

fn call(error: &CallError) -> (u16, &'static str) {
    match error {
        CallError::DeadlineExceeded(_) => (504, "deadline-exceeded"),
        CallError::Trapped(_) => (502, "guest-trapped"),
        CallError::OverMemory(_) => (502, "guest-over-memory"),
        CallError::BadReply(_) => (502, "guest-bad-reply"),
        CallError::Start(_) => (500, "internal"),
        CallError::Input(_) => (400, "invalid-input"),
        CallError::Unavailable(_) => (502, "model-unavailable"),
        CallError::OverBudget(_) => (503, "over-memory-budget"),
        CallError::Queue(_) => (503, "overloaded"),
        CallError::Inference(_) => (502, "inference-failed"),
        // What a function says of itself goes, within what is an error at all.
        CallError::Raised { status, .. } => {
            (status.filter(|status| (400..=599).contains(status)).unwrap_or(422), "function-error")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(error: AnswerError, status: u16, name: &str) {
        let problem = error.problem();
        assert_eq!((problem.status, problem.name.as_str()), (status, name));
        assert_eq!(problem.retry_after_s.is_some(), status == 503);
    }

    #[test]
    fn every_error_has_its_status() {
        let raised = |status| {
            let (code, message) = ("not-an-image".to_owned(), String::new());
            AnswerError::Call(CallError::Raised { code, message, status })
        };
        check(AnswerError::FunctionNotFound("/x".to_owned()), 404, "function-not-found");
        check(AnswerError::InvalidInput(String::new()), 400, "invalid-input");
        check(AnswerError::TooLarge(1), 413, "too-large");
        check(AnswerError::Overloaded, 503, "overloaded");
        check(AnswerError::Draining, 503, "draining");
        check(AnswerError::Call(CallError::DeadlineExceeded(1)), 504, "deadline-exceeded");
        check(AnswerError::Call(CallError::Trapped(String::new())), 502, "guest-trapped");
        check(AnswerError::Call(CallError::OverMemory(1)), 502, "guest-over-memory");
        check(raised(None), 422, "not-an-image");
        check(raised(Some(415)), 415, "not-an-image");
        check(raised(Some(200)), 422, "not-an-image");
        check(raised(Some(99)), 422, "not-an-image");
        check(AnswerError::Internal, 500, "internal");
        let code = "not\r\na name".to_owned();
        let message = "é".repeat(LONGEST_MESSAGE);
        let odd = AnswerError::Call(CallError::Raised { code, message, status: None });
        assert!(odd.problem().detail.len() <= LONGEST_MESSAGE);
        check(odd, 422, "function-error");
    }
}
