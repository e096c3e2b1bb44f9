//! A call of a function that takes tensors, whatever protocol it came by: from its inputs to its checked outputs.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::body::Share;
use super::status::AnswerError;
use super::{Server, Trace, judge};
use crate::backend::Priority;
use crate::function::cache;
use crate::function::statistics::Parts;
use crate::function::{Asker, Division, Function, Permit, Snapshot};
use crate::instance::typed::{Parameter, Reply, Request};
use crate::instance::{CallError, Deadline};
use crate::nn::responses::Responses;
use crate::tensor::Tensor;

/// Who calls.
pub struct Caller {
    /// When the caller stops waiting, where it says so.
    pub deadline: Option<Instant>,
    /// Room for the request, which the tensors hold.
    pub share: Share,
}

/// What was answered.
pub struct Outcome {
    pub reply: Reply,
    /// Until the answer is written, an instance's tensors are held.
    _permit: Option<Permit>,
    share: Share,
}

impl Outcome {
    /// Room for the request, which can now be for the answer.
    pub fn into_share(self) -> Share {
        self.share
    }
}

/// The parameter that says who goes first: 1 is the first. Triton's schedule policy names it so, and the next.
const PRIORITY: &str = "priority";
/// Microseconds after which the caller stops waiting.
const TIMEOUT: &str = "timeout";

impl Server {
    /// The function that the Open Inference Protocol calls `name`, in `version` or, where that is empty, at the revision
    /// that takes calls where nothing else is said: for those who ask about it.
    ///
    /// # Errors
    /// Where there is none.
    pub fn model<'a>(
        &self,
        snapshot: &'a Snapshot,
        name: &'a str,
        version: &str,
    ) -> Result<&'a Arc<Function>, AnswerError> {
        let unknown = || self.nowhere(AnswerError::ModelNotFound(name.to_owned()));
        let traffic = snapshot.model(name).ok_or_else(unknown)?;
        let mut versions = traffic.versions(name);
        let first = versions.next().ok_or_else(unknown)?;
        if version.is_empty() || version == first.version {
            return Ok(first);
        }
        versions.find(|function| function.version == version).ok_or_else(|| {
            let there: Vec<_> = traffic.versions(name).map(|function| function.version.as_str()).collect();
            let (name, version) = (name.to_owned(), version.to_owned());
            AnswerError::VersionNotFound { name, version, there: there.join(", ") }
        })
    }

    /// The function that answers this call: as [`Server::model`], but where no version is named, of the revision that
    /// the call's lot falls to; and the division that it was chosen by.
    ///
    /// # Errors
    /// Where there is none.
    pub fn called<'a>(
        &self,
        snapshot: &'a Snapshot,
        name: &'a str,
        version: &str,
        asker: &Asker<'_>,
    ) -> Result<(&'a Arc<Function>, Option<&'a Arc<Division>>), AnswerError> {
        match snapshot.model(name) {
            Some(traffic) if version.is_empty() && traffic.candidate.is_some() => {
                let chosen = traffic.choose(asker);
                let function = chosen.release.models.get(name);
                let function = function.ok_or_else(|| AnswerError::ModelNotFound(name.to_owned()))?;
                Ok((function, chosen.division))
            }
            _ => Ok((self.model(snapshot, name, version)?, None)),
        }
    }

    /// Whether calls are taken.
    pub fn is_ready(&self) -> bool {
        self.functions.published() && !self.draining()
    }

    /// Refuses new calls while the host shuts down. To be asked before a call is read: one that is on its way by then
    /// is finished.
    ///
    /// # Errors
    /// Where the host shuts down.
    pub fn takes_calls(&self) -> Result<(), AnswerError> {
        if self.draining() { Err(AnswerError::Draining) } else { Ok(()) }
    }

    /// Whether calls of this function are taken. Its graphs need not be in memory for that.
    pub fn is_model_ready(&self, function: &Function) -> bool {
        self.is_ready() && function.is_ready()
    }

    /// Calls a function: from the cache where it keeps answers, else in an instance of its own.
    ///
    /// # Errors
    /// Where it takes no calls now, the guest or the inference fails, or it answers what it did not describe.
    pub async fn infer(
        &self,
        function: &Arc<Function>,
        request: Request,
        caller: Caller,
        trace: &mut Trace,
    ) -> Result<Outcome, AnswerError> {
        self.infer_streaming(function, request, caller, None, trace).await
    }

    /// Calls a function as [`Server::infer`] does. What it answers before its last answer goes to `responses`; where
    /// the one who takes them drops the receiver, the function is told so.
    ///
    /// # Errors
    /// As [`Server::infer`].
    pub async fn infer_streaming(
        &self,
        function: &Arc<Function>,
        mut request: Request,
        caller: Caller,
        responses: Option<Responses>,
        trace: &mut Trace,
    ) -> Result<Outcome, AnswerError> {
        let started = Instant::now();
        if !function.is_ready() {
            return Err(AnswerError::NotReady(function.model.clone()));
        }
        let asked = schedule(&mut request)?;
        let deadline = deadline(function, started, [caller.deadline, asked]);
        // A function that answers more than once has answers that the cache does not hold.
        let cache = function.cache.as_ref().filter(|_| !function.revision.program.streams());
        let key = cache.map(|cache| (cache, cache::key(&request)));
        if let Some((cache, key)) = &key
            && !judge::computes_anew(function, trace)
            && let Some(reply) = cache.get(key)
        {
            function.statistics.hit(started.elapsed());
            function.metrics.cache_hits.inc();
            return Ok(Outcome { reply, _permit: None, share: caller.share });
        }
        let missed = started.elapsed();
        let shadowed = function.shadow.ask(&request, responses.is_some());
        // What fails is counted where its caller is told.
        let computed = self.compute(function, request, deadline, responses, trace).await;
        if let Some(shadowed) = shadowed {
            let answer = match &computed {
                Ok((reply, _)) => Some(Ok(reply)),
                Err(AnswerError::Call(error)) => Some(Err(error)),
                Err(_) => None,
            };
            trace.shadow = answer.and_then(|answer| shadowed.answered(answer)).map(Arc::new);
        }
        let (reply, permit) = computed.map_err(|error| match error {
            AnswerError::Call(CallError::DeadlineExceeded(ms)) if ms < function.revision.deadline_ms => {
                AnswerError::CallerDeadline(ms)
            }
            other => other,
        })?;
        function.statistics.succeeded(&parts(trace, started));
        if let Some((cache, key)) = key {
            let keeping = Instant::now();
            cache.put(key, &reply);
            function.statistics.missed(missed + keeping.elapsed());
            function.metrics.cache_misses.inc();
        }
        Ok(Outcome { reply, _permit: Some(permit), share: caller.share })
    }

    async fn compute(
        &self,
        function: &Arc<Function>,
        request: Request,
        deadline: Deadline,
        responses: Option<Responses>,
        trace: &mut Trace,
    ) -> Result<(Reply, Permit), AnswerError> {
        let revision = &function.revision;
        let description = revision.description.as_ref().ok_or(AnswerError::Internal)?;
        let late = || AnswerError::Call(CallError::DeadlineExceeded(deadline.ms));
        let permit = tokio::time::timeout_at(deadline.at.into(), self.acquire(function, trace));
        let permit = permit.await.map_err(|_| late())??;
        // It may have been unloaded while the call waited.
        if !function.is_ready() {
            return Err(AnswerError::NotReady(function.model.clone()));
        }
        let wanted = request.outputs.clone();
        let running = Instant::now();
        trace.began = Some(running);
        let (reply, usage) = revision.program.call(request, deadline, responses).await;
        trace.run = running.elapsed();
        trace.usage = usage;
        let mut reply = reply?;
        if !wanted.is_empty() {
            reply.outputs.retain(|(name, _)| wanted.contains(name));
        }
        description
            .check(&reply, &wanted)
            .map_err(|reason| AnswerError::Call(CallError::BadReply(reason)))?;
        judge::note_outputs(function, &reply, trace);
        Ok((reply, permit))
    }

    /// Loads the graphs of a function's models, and has it take calls.
    ///
    /// # Errors
    /// Where the operator does not allow it, or a graph cannot be loaded.
    pub async fn load(&self, function: &Arc<Function>) -> Result<(), AnswerError> {
        self.may_control()?;
        let _turn = function.control.lock().await;
        function.revision.program.load_models().await.map_err(AnswerError::Call)?;
        function.unloaded.store(false, Ordering::Release);
        Ok(())
    }

    /// Has a function take no calls until it is loaded again, and its graphs leave memory where nobody else uses them.
    ///
    /// # Errors
    /// Where the operator does not allow it.
    pub async fn unload(&self, function: &Arc<Function>) -> Result<(), AnswerError> {
        self.may_control()?;
        let _turn = function.control.lock().await;
        function.unloaded.store(true, Ordering::Release);
        function.revision.program.unload_models().await;
        Ok(())
    }

    fn may_control(&self) -> Result<(), AnswerError> {
        if self.limits.model_control { Ok(()) } else { Err(AnswerError::ControlForbidden) }
    }
}

/// Takes what a request says of its own scheduling out of its parameters. Answers when its caller stops waiting.
fn schedule(request: &mut Request) -> Result<Option<Instant>, AnswerError> {
    let mut deadline = None;
    let number = |name: &str, value: &Parameter| {
        let number = match value {
            Parameter::Int64(number) => u64::try_from(*number).ok(),
            Parameter::Uint64(number) => Some(*number),
            Parameter::Bool(_) | Parameter::Double(_) | Parameter::Text(_) => None,
        };
        number.ok_or_else(|| {
            AnswerError::InvalidInput(format!("the parameter `{name}` is not a whole number from 0 on"))
        })
    };
    for (name, value) in &request.parameters {
        if name == PRIORITY {
            request.priority = Priority(u32::try_from(number(name, value)?).unwrap_or(u32::MAX));
        } else if name == TIMEOUT {
            let wait = Duration::from_micros(number(name, value)?);
            // 0 stands for none.
            deadline = (!wait.is_zero()).then(|| Instant::now().checked_add(wait)).flatten();
        }
    }
    request.parameters.retain(|(name, _)| name != PRIORITY && name != TIMEOUT);
    Ok(deadline)
}

/// The earliest of the function's own deadline and the caller's.
fn deadline(function: &Function, started: Instant, callers: [Option<Instant>; 2]) -> Deadline {
    let own = started + Duration::from_millis(function.revision.deadline_ms);
    let at = callers.into_iter().flatten().fold(own, Instant::min);
    let ms = at.saturating_duration_since(started).as_millis();
    Deadline { at, ms: u64::try_from(ms).unwrap_or(u64::MAX) }
}

fn parts(trace: &Trace, started: Instant) -> Parts {
    let usage = &trace.usage;
    let guest = trace.run.saturating_sub(usage.before + usage.after);
    Parts {
        total: started.elapsed(),
        queue: trace.queue + usage.queue,
        input: usage.before,
        infer: guest.saturating_sub(usage.queue),
        output: usage.after,
        led: usage.led,
        batch: usage.batch,
    }
}

/// An answer before the last one: any of the outputs that the function describes and the caller wants.
///
/// # Errors
/// Where the function does not describe them so.
pub fn partial(
    function: &Function,
    wanted: &[String],
    mut outputs: Vec<(String, Tensor)>,
) -> Result<Reply, AnswerError> {
    let description = function.revision.description.as_ref().ok_or(AnswerError::Internal)?;
    let wrong = |reason| AnswerError::Call(CallError::BadReply(reason));
    description.check_outputs(&outputs).map_err(wrong)?;
    outputs.retain(|(name, _)| wanted.is_empty() || wanted.contains(name));
    Ok(Reply { outputs, ..Reply::default() })
}
