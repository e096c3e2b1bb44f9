//! What a function answers when it cannot answer, and what a model answers when it cannot run.

use std::borrow::Cow;
use std::fmt;

/// The result of a function, of a model and of every helper here.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error with a stable name for programs, a message for people and an HTTP status.
///
/// Returned from a function it becomes the caller's answer: problem details with the code as `title`, the message
/// as `detail` and the status, 422 where none is set.
///
/// ```
/// use tenon_sdk::Error;
///
/// let error = Error::new("not-a-record", "the field `age` is missing");
/// assert_eq!((error.code(), error.status()), ("not-a-record", None));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    code: Cow<'static, str>,
    message: String,
    status: Option<u16>,
}

impl Error {
    /// An error of the function's own. `code` is lowercase words joined by hyphens, of 64 bytes at most, and stays
    /// the same from version to version: callers get any other as `function-error`. The status is 422, unless
    /// [`with_status`](Self::with_status) says else.
    pub fn new(code: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Self { code: code.into(), message: message.into(), status: None }
    }

    /// The caller sent something that the function does not take: code `invalid-input`, status 400.
    pub fn invalid_input(message: impl Into<String>) -> Self {
        Self::new("invalid-input", message).with_status(400)
    }

    /// Something went wrong that the caller cannot mend: code `function-failed`, status 500. It makes an error of
    /// this type of any other.
    ///
    /// ```
    /// use tenon_sdk::{Error, Result};
    ///
    /// fn labels() -> Result<String> {
    ///     std::fs::read_to_string("/labels.txt").map_err(Error::failed)
    /// }
    /// assert_eq!(labels().unwrap_err().status(), Some(500));
    /// ```
    pub fn failed(cause: impl fmt::Display) -> Self {
        Self::new("function-failed", cause.to_string()).with_status(500)
    }

    /// The same error with an HTTP status, 400 to 599. The host replaces any other number by 422.
    #[must_use]
    pub fn with_status(mut self, status: u16) -> Self {
        self.status = Some(status);
        self
    }

    /// The stable name, such as `invalid-input`, or for a model `model-unavailable`, `inference-failed`,
    /// `deadline-exceeded` or `over-memory-budget`.
    pub fn code(&self) -> &str {
        &self.code
    }

    /// What happened, in words.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The HTTP status, where one is set.
    pub fn status(&self) -> Option<u16> {
        self.status
    }

    pub(crate) fn about(mut self, what: fmt::Arguments<'_>) -> Self {
        self.message = format!("{what}: {}", self.message);
        self
    }
}

/// An error that a function can return: [`Error`], and what becomes one by `From`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be the error of a model function",
    label = "not a `tenon_sdk::Error`",
    note = "return `tenon_sdk::Result<...>`; `.map_err(tenon_sdk::Error::failed)?` makes a `tenon_sdk::Error` of any \
            other error"
)]
pub trait Failure {
    /// The error that the caller gets.
    fn into_error(self) -> Error;
}

// Else the compiler would speak of `From` alone.
#[diagnostic::do_not_recommend]
impl<E: Into<Error>> Failure for E {
    fn into_error(self) -> Error {
        self.into()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.message, self.code)
    }
}

impl std::error::Error for Error {}
