//! Runs what waits, when the host has nothing better to do, and compares.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Map, Value};
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinSet;

use super::gentle::{Gentle, Pace, REST};
use super::{AGREED, FAILED, Job, MISMATCHED, Question, Side};
use crate::function::{Functions, Strain};
use crate::instance::typed::{Parameter, Reply};
use crate::instance::{CallError, Deadline};
use crate::rollout::shadow::LeftOut;
use crate::rollout::shadow::capture::Asked;
use crate::rollout::shadow::compare::{Answer, Comparison};
use crate::rollout::shadow::recorder::{Compared, Spent};

/// How long a caller has to take its answer before anything is done with the call.
const HEAD_START: Duration = Duration::from_millis(2);

/// What waited longer says too little of now.
const STALE: Duration = Duration::from_secs(10);

/// How often is looked whether the host is busy.
const LOOK: Duration = Duration::from_millis(5);

/// How long a call may rest at most, all in all, so that its place is not taken for ever.
const LONGEST_REST: Duration = Duration::from_secs(60);

/// Answers of more bytes are compared where they hold up no async thread.
const LONG: usize = 256 << 10;

/// What one revision came to.
type Ran = Result<(Answer, Spent), LeftOut>;

/// Works through a queue, one call after the other.
pub(super) async fn work(functions: Arc<Functions>, jobs: Arc<Mutex<mpsc::Receiver<Job>>>) {
    loop {
        let job = jobs.lock().await.recv().await;
        let Some(job) = job else { return };
        let shadowed = Arc::clone(&job.shadowed);
        // In a task of its own: what panics there ends no more than itself.
        let mut running = JoinSet::new();
        running.spawn(shadow(Arc::clone(&functions), job));
        if let Some(Err(error)) = running.join_next().await {
            tracing::warn!(%error, "a shadowed call was not compared");
            shadowed.leave_out(LeftOut::NotRun);
        }
    }
}

/// Gives a call to the candidate, and perhaps to the stable revision again.
async fn shadow(functions: Arc<Functions>, job: Job) {
    let shadowed = Arc::clone(&job.shadowed);
    if job.asked.elapsed() > STALE {
        return shadowed.leave_out(LeftOut::HostBusy);
    }
    tokio::time::sleep_until((job.asked + HEAD_START).into()).await;
    let room = &functions.shadows;
    let place = tokio::time::timeout_at((job.asked + STALE).into(), room.places.acquire());
    let Ok(Ok(_place)) = place.await else { return shadowed.leave_out(LeftOut::HostBusy) };
    if !calm(&functions, job.asked + STALE).await {
        return shadowed.leave_out(LeftOut::HostBusy);
    }
    // In turns, so that what changes with time is not held against one of the two.
    let early = match job.replay {
        Some(true) => Some(run(&functions, &shadowed.stable, &job).await),
        _ => None,
    };
    let candidate = match run(&functions, &shadowed.candidate, &job).await {
        Ok(candidate) => candidate,
        Err(reason) => return shadowed.leave_out(reason),
    };
    let replay = match (early, job.replay) {
        (None, Some(_)) => Some(run(&functions, &shadowed.stable, &job).await),
        (early, _) => early,
    };
    compare(job, candidate, replay.and_then(Result::ok)).await;
}

/// Waits until the host has a processor to spare, or little was taken of it of late. Answers whether that came in time.
async fn calm(functions: &Functions, until: Instant) -> bool {
    loop {
        match functions.strain() {
            Strain::Calm => return true,
            Strain::Busy if functions.shadows.is_rested() => return true,
            Strain::Busy | Strain::Full if Instant::now() >= until => return false,
            Strain::Busy | Strain::Full => tokio::time::sleep(LOOK).await,
        }
    }
}

/// Returns when live calls wait for the host.
async fn pressed(functions: &Functions) {
    loop {
        tokio::time::sleep(LOOK).await;
        if functions.strain() == Strain::Full {
            return;
        }
    }
}

async fn run(functions: &Arc<Functions>, side: &Side, job: &Job) -> Ran {
    let started = Instant::now();
    let ms = side.revision.deadline_ms;
    let limit = Duration::from_millis(ms);
    // Rests are not its own time, but they end as well.
    let deadline = Deadline { at: started + limit + limit.saturating_mul(REST).min(LONGEST_REST), ms };
    let answering = async {
        match &job.question {
            Question::Tensors(request) => {
                let (answer, usage) = side.program.call(request.clone(), deadline, None).await;
                (answer.and_then(|reply| described(side, reply, &request.outputs)), usage)
            }
            Question::Http(question) => {
                let most = job.shadowed.recorder.settings().max_body_kib << 10;
                question.ask(side, deadline, usize::try_from(most).unwrap_or(usize::MAX)).await
            }
        }
    };
    let ((answer, usage), pace) = tokio::select! {
        (done, pace) = Gentle::new(answering, limit, functions) => {
            (done.unwrap_or_else(|| (Err(CallError::DeadlineExceeded(ms)), Default::default())), pace)
        }
        () = pressed(functions) => return Err(LeftOut::HostBusy),
    };
    let computing = pace.worked + usage.infer.saturating_sub(usage.queue);
    functions.shadows.rest(computing);
    match usage.denied {
        Some("guest-model") => return Err(LeftOut::GuestModelDenied),
        Some(_) => return Err(LeftOut::OutboundDenied),
        None => {}
    }
    let spent = Spent {
        took: started.elapsed().saturating_sub(pace.rested),
        infer: usage.infer,
        memory_bytes: usage.memory_bytes as u64,
        fuel: usage.fuel,
    };
    Ok((answered(answer, pace)?, spent))
}

/// Whether it is the host that let a deadline pass, rests not counted: a busy one, where the revision computed for less
/// than half of that and waited for models behind everybody else.
fn starved(ms: u64, pace: Pace) -> bool {
    !pace.rested.is_zero() && pace.worked.saturating_mul(2) < Duration::from_millis(ms)
}

/// An answer that its caller would get, were it a live call.
fn described(side: &Side, mut reply: Reply, wanted: &[String]) -> Result<Answer, CallError> {
    reply.outputs.retain(|(name, _)| wanted.is_empty() || wanted.contains(name));
    if let Some(description) = &side.revision.description {
        description.check(&reply, wanted).map_err(CallError::BadReply)?;
    }
    Ok(Answer::Tensors(reply.outputs))
}

/// What an answer says of the revision; nothing where the host is to blame for it.
fn answered(answer: Result<Answer, CallError>, pace: Pace) -> Result<Answer, LeftOut> {
    let error = match answer {
        Ok(answer) => return Ok(answer),
        Err(error) => error,
    };
    let name = match &error {
        CallError::Raised { code, status, .. } => {
            return Ok(Answer::Raised { code: code.clone(), status: *status });
        }
        CallError::DeadlineExceeded(ms) if starved(*ms, pace) => return Err(LeftOut::HostBusy),
        CallError::OverBudget(_) | CallError::Queue(_) => return Err(LeftOut::ModelsBusy),
        CallError::Start(_) => return Err(LeftOut::NotRun),
        CallError::DeadlineExceeded(_) => "deadline-exceeded",
        CallError::Trapped(_) => "guest-trapped",
        CallError::OverMemory(_) => "guest-over-memory",
        CallError::BadReply(_) => "guest-bad-reply",
        CallError::Input(_) => "invalid-input",
        CallError::Unavailable(_) => "model-unavailable",
        CallError::Inference(_) => "inference-failed",
    };
    Ok(Answer::Failed { name, text: error.to_string() })
}

async fn compare(job: Job, candidate: (Answer, Spent), replay: Option<(Answer, Spent)>) {
    let is_long = job.bytes > LONG;
    let comparing = move || {
        let recorder = &job.shadowed.recorder;
        let compare = |(answer, spent): (Answer, Spent)| -> (Comparison, Spent) {
            (recorder.settings().compare(&job.expected, &answer), spent)
        };
        let (candidate, replay) = (compare(candidate), replay.map(compare));
        let result = match &candidate.0 {
            comparison if comparison.failed.is_some() => FAILED,
            comparison if comparison.agreed() => AGREED,
            _ => MISMATCHED,
        };
        let parameters;
        let asked = match &job.question {
            Question::Tensors(request) => {
                parameters = shown(&request.parameters);
                Asked::Tensors { inputs: &request.inputs, parameters: &parameters }
            }
            Question::Http(question) => question.shown(),
        };
        let request_id = job.request_id.as_ref().and_then(|id| id.to_str().ok());
        recorder.compared(Compared { candidate, replay, time_ms: job.time_ms, request_id, asked });
        job.shadowed.counters[result].inc();
    };
    if is_long {
        // A panic is for whoever runs this to tell.
        if let Err(error) = tokio::task::spawn_blocking(comparing).await {
            std::panic::resume_unwind(Box::new(error.to_string()));
        }
    } else {
        comparing();
    }
}

fn shown(parameters: &[(String, Parameter)]) -> Map<String, Value> {
    let shown = parameters.iter().map(|(name, value)| {
        let value = match value {
            Parameter::Bool(value) => Value::from(*value),
            Parameter::Int64(value) => Value::from(*value),
            Parameter::Uint64(value) => Value::from(*value),
            Parameter::Double(value) => Value::from(*value),
            Parameter::Text(value) => Value::from(value.as_str()),
        };
        (name.clone(), value)
    });
    shown.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_was_kept_from_computing_is_starved() {
        let check = |worked: u64, rested: u64, expected: bool| {
            let [worked, rested] = [worked, rested].map(Duration::from_millis);
            assert_eq!(starved(100, Pace { worked, rested }), expected, "{worked:?} {rested:?}");
        };
        check(0, 0, false);
        check(100, 0, false);
        check(100, 1900, false);
        check(50, 10, false);
        check(49, 10, true);
    }
}
