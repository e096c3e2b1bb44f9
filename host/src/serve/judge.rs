//! Which calls are counted where one revision is compared with another, and as what.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{Response, StatusCode};
use hyper::body::Body as _;

use super::Trace;
use super::body::Body;
use crate::function::{Division, Function};
use crate::instance::typed::Reply;
use crate::nn::Meter;
use crate::telemetry::observations::Outcome;

/// Of the calls that are judged, one in so many is computed where its answer may be kept from before; the others are not
/// judged. A revision that has just come has few answers yet, and what it computes are other questions than those that
/// are left for the one that has long been there.
const COMPUTED: u16 = 16;

/// Counts a call, where its function is compared with another revision.
pub(super) fn note(function: &Function, outcome: Option<Outcome>, trace: &Trace) {
    // What failed before an instance was there says nothing of the function.
    let (Some(outcome), Some(began)) = (outcome, trace.began) else { return };
    if is_judged(function, trace) {
        let took = if trace.run.is_zero() { began.elapsed() } else { trace.run };
        function.observations.record(outcome, trace.queue + took, known(trace.usage.memory_bytes));
    }
}

/// Counts the answer of an HTTP function, whose own errors are told by their status alone. One whose body is still to
/// come is counted by its end.
pub(super) fn note_answer(
    function: &Arc<Function>,
    response: &Response<Body>,
    trace: &mut Trace,
) -> Option<Coming> {
    if trace.error.is_some() {
        note(function, trace.outcome, trace);
        return None;
    }
    let meter = trace.meter.take()?;
    let division = trace.division.take().filter(|_| function.observations.watched())?;
    Some(Coming {
        division,
        function: Arc::clone(function),
        status: response.status(),
        before: trace.queue + trace.run,
        since: Instant::now(),
        meter,
        length: response.body().size_hint().exact(),
        passed: 0,
        end: End::Left,
    })
}

/// Counts what a call answered.
pub(super) fn note_outputs(function: &Function, reply: &Reply, trace: &Trace) {
    if is_judged(function, trace) {
        reply.outputs.iter().for_each(|(name, tensor)| function.observations.output(name, tensor));
    }
}

/// Whether a call is computed though its answer may be there from before. One that is judged is.
pub(super) fn computes_anew(function: &Function, trace: &mut Trace) -> bool {
    if !is_judged(function, trace) {
        return false;
    }
    let anew = crate::function::traffic::at_random().is_multiple_of(COMPUTED);
    trace.division.take_if(|_| !anew);
    anew
}

fn is_judged(function: &Function, trace: &Trace) -> bool {
    trace.division.as_ref().is_some_and(|division| !division.is_over()) && function.observations.watched()
}

fn known(memory_bytes: usize) -> Option<u64> {
    u64::try_from(memory_bytes).ok().filter(|bytes| *bytes > 0)
}

/// An answer of an HTTP function of which the head is there. Counted when this is dropped.
pub struct Coming {
    division: Arc<Division>,
    function: Arc<Function>,
    status: StatusCode,
    /// How long the head took, and when it was there.
    before: Duration,
    since: Instant,
    meter: Meter,
    /// Of the body, where it is known.
    length: Option<u64>,
    passed: u64,
    end: End,
}

#[derive(PartialEq)]
enum End {
    Whole,
    Broken,
    Left,
}

impl Coming {
    /// Some of the body has gone by.
    pub(super) fn passed(&mut self, bytes: usize) {
        self.passed += bytes as u64;
    }

    pub(super) fn ended(&mut self) {
        self.end = End::Whole;
    }

    pub(super) fn broken(&mut self) {
        self.end = End::Broken;
    }
}

impl Drop for Coming {
    fn drop(&mut self) {
        if self.division.is_over() {
            return;
        }
        // A connection does not ask for more than the length that was told.
        let is_whole = self.end == End::Whole || self.length == Some(self.passed);
        let outcome = if self.end == End::Broken || self.status.is_server_error() {
            Outcome::Error
        } else if self.status.is_client_error() {
            Outcome::Raised
        } else {
            Outcome::Success
        };
        // Where the caller has what it wanted of it, as with HEAD, the rest of it has no time and no length.
        let took = if is_whole { self.before + self.since.elapsed() } else { Duration::ZERO };
        let observations = &self.function.observations;
        if self.end != End::Broken {
            let length = if is_whole { Some(self.passed) } else { self.length };
            length.into_iter().for_each(|bytes| observations.body(self.status.as_u16(), bytes));
        }
        observations.record(outcome, took, known(self.meter.read().memory_bytes));
    }
}
