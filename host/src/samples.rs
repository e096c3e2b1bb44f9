//! Golden samples: whether a function answers as its author expects, and what its calls cost.
//!
//! A sample is run as a call of the function's program, without the network between.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use thiserror::Error;

use crate::artifact::sample::{Response, Sample, SampleError};
use crate::function::{Function, Routes};
use crate::instance::{CallError, Deadline, Program};
use crate::nn::Usage;
use crate::tensor::compare::Tolerance;

pub mod files;
mod http;
mod json;
mod typed;

/// A sample with what its files hold.
#[derive(Clone, Debug)]
pub struct Golden {
    pub name: String,
    pub sample: Sample,
    /// By the names that the sample has for them.
    pub files: BTreeMap<String, Bytes>,
}

/// Why a sample cannot be run at all.
#[derive(Debug, Error)]
pub enum NotRunnable {
    #[error(transparent)]
    Form(#[from] SampleError),
    #[error("its request is none that the function takes: {0}")]
    Request(String),
    #[error("its response cannot be compared: {0}")]
    Response(String),
    #[error("it cannot be read: {0}")]
    Unreadable(String),
    #[error("it names the file `{0}`, which is not there")]
    NoFile(String),
}

/// What came of one run of a sample.
pub struct Ran {
    pub verdict: Verdict,
    /// What the function answered, as it would stand in the sample; for a call that failed, its error.
    pub response: Result<Response, CallError>,
    pub took: Duration,
    pub usage: Usage,
}

/// Whether the answer is the expected one.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// It is. The largest distance of two numbers, where there are numbers.
    Passed(f64),
    /// What is different.
    Failed(String),
    /// The sample says nothing of the answer.
    NothingExpected,
}

impl Golden {
    /// Reads a sample and, through `file`, the files that it names.
    ///
    /// # Errors
    /// Where the bytes are no sample, or a file is not there.
    pub fn read(
        name: &str,
        bytes: &[u8],
        file: &dyn Fn(&str) -> Option<Bytes>,
    ) -> Result<Golden, NotRunnable> {
        let sample = Sample::parse(bytes)?;
        let read = |name: &str| match file(name) {
            Some(bytes) => Ok((name.to_owned(), bytes)),
            None => Err(NotRunnable::NoFile(name.to_owned())),
        };
        let files = sample.files().into_iter().map(read).collect::<Result<_, _>>()?;
        let name = sample.name.clone().unwrap_or_else(|| name.to_owned());
        Ok(Golden { name, sample, files })
    }

    fn file(&self, name: &str) -> Result<Bytes, NotRunnable> {
        self.files.get(name).cloned().ok_or_else(|| NotRunnable::NoFile(name.to_owned()))
    }

    /// The request's body and its media type, where it is not tensors.
    fn body(&self) -> Result<(Bytes, Option<&'static str>), NotRunnable> {
        let request = &self.sample.request;
        match (&request.body_file, &request.body, &request.json) {
            (Some(file), ..) => Ok((self.file(file)?, None)),
            (_, Some(body), _) => {
                Ok((Bytes::copy_from_slice(body.as_bytes()), Some("text/plain; charset=utf-8")))
            }
            (.., Some(json)) => Ok((json.to_string().into(), Some("application/json"))),
            _ => Ok((Bytes::new(), None)),
        }
    }

    /// Compares a body that came with the one that is expected, if one is.
    fn compare_body(&self, expected: &Response, body: &Bytes) -> Result<Verdict, NotRunnable> {
        if let Some(json) = &expected.json {
            let Ok(actual) = serde_json::from_slice(body) else {
                return Ok(Verdict::Failed("the answer is not JSON".to_owned()));
            };
            return Ok(
                match json::compare(json, &actual, self.tolerance(None, false), self.tolerance(None, true)) {
                    Ok(largest) => Verdict::Passed(largest),
                    Err(difference) => Verdict::Failed(difference),
                },
            );
        }
        let expected = match (&expected.body, &expected.body_file) {
            (Some(text), _) => Bytes::copy_from_slice(text.as_bytes()),
            (None, Some(file)) => self.file(file)?,
            (None, None) => return Ok(Verdict::NothingExpected),
        };
        Ok(match expected == *body {
            true => Verdict::Passed(0.0),
            false => Verdict::Failed(format!(
                "the answer's {} bytes are not the {} that are expected: {}",
                body.len(),
                expected.len(),
                beginning(body)
            )),
        })
    }

    /// What numbers may differ by; `whole` ones not at all unless the author says so.
    fn tolerance(&self, output: Option<&str>, whole: bool) -> Tolerance {
        let usual = if whole { Tolerance::EXACT } else { Tolerance::USUAL };
        let all = &self.sample.tolerance;
        let own = output.and_then(|output| all.outputs.get(output));
        let (absolute, relative) = match own {
            Some(own) => (own.absolute, own.relative),
            None => (all.absolute, all.relative),
        };
        // Who says one of the two means the other to be nothing.
        match (absolute, relative) {
            (None, None) => usual,
            (absolute, relative) => {
                Tolerance { absolute: absolute.unwrap_or(0.0), relative: relative.unwrap_or(0.0) }
            }
        }
    }
}

/// Runs a sample once, with the function's program or one that keeps nothing. `routes` are those of the function's own
/// revision.
///
/// # Errors
/// Where it is no sample for this function. A call that fails is an answer, which may be the expected one.
pub async fn run(
    golden: &Golden,
    function: &Arc<Function>,
    program: &Arc<Program>,
    routes: &Routes,
) -> Result<Ran, NotRunnable> {
    let ms = function.revision.deadline_ms;
    let started = Instant::now();
    let deadline = Deadline { at: started + Duration::from_millis(ms), ms };
    match function.revision.program.is_typed() {
        true => typed::run(golden, function, program, deadline).await,
        false => http::run(golden, function, program, routes, deadline).await,
    }
}

/// The verdict on a call that failed.
fn failed(golden: &Golden, error: &CallError) -> Verdict {
    let expected = golden.sample.response.as_ref().and_then(|response| response.error.as_deref());
    match (expected, error) {
        (Some(expected), CallError::Raised { code, .. }) if expected == code => Verdict::Passed(0.0),
        (Some(expected), CallError::Raised { code, .. }) => {
            Verdict::Failed(format!("it raised the error `{code}`, not `{expected}`: {error}"))
        }
        (_, CallError::Raised { code, .. }) => {
            Verdict::Failed(format!("it raised the error `{code}`: {error}"))
        }
        _ => Verdict::Failed(error.to_string()),
    }
}

/// The beginning of an answer, for people.
fn beginning(body: &[u8]) -> String {
    const LONGEST: usize = 200;
    let more = if body.len() > LONGEST { "..." } else { "" };
    format!("{}{more}", String::from_utf8_lossy(&body[..body.len().min(LONGEST)]))
}
