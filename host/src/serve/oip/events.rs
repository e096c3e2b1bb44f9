//! The answers of one call as they come, for protocols that take several.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::task::JoinHandle;

use super::super::call::{self, Caller, Outcome};
use super::super::status::AnswerError;
use super::super::{Server, Trace, judge};
use crate::function::Function;
use crate::instance::typed::{Reply, Request};
use crate::nn::responses::{self, Sent};
use crate::telemetry::observations;

/// Answers that may wait for the caller to take them, before the function waits.
const WAITING: usize = 4;

/// A call that runs, and its answers. The call ends when this is dropped.
pub struct Answers {
    function: Arc<Function>,
    wanted: Vec<String>,
    coming: mpsc::Receiver<Sent>,
    call: Option<JoinHandle<(Result<Outcome, AnswerError>, Trace)>>,
    started: Instant,
    /// What the call has used, once it has ended.
    pub trace: Trace,
}

/// One answer, and what is held until it is written.
pub struct Answer {
    pub reply: Reply,
    outcome: Option<Outcome>,
    _room: Option<OwnedSemaphorePermit>,
}

impl Answer {
    /// Whether no other answer comes after it.
    pub fn is_last(&self) -> bool {
        self.outcome.is_some()
    }
}

impl Answers {
    /// Begins a call, whose trace goes on from `trace`.
    pub fn of(
        server: &Arc<Server>,
        function: &Arc<Function>,
        request: Request,
        caller: Caller,
        trace: &Trace,
    ) -> Answers {
        let (sender, coming) = responses::channel(WAITING, function.revision.response_body_bytes);
        let wanted = request.outputs.clone();
        let trace = Trace { function: Some(Arc::clone(function)), ..trace.clone() };
        let call = tokio::spawn({
            let (server, function, mut trace) = (Arc::clone(server), Arc::clone(function), trace.clone());
            async move {
                let answered =
                    server.infer_streaming(&function, request, caller, Some(sender), &mut trace).await;
                (answered, trace)
            }
        });
        Answers {
            function: Arc::clone(function),
            wanted,
            coming,
            call: Some(call),
            started: Instant::now(),
            trace,
        }
    }

    /// The next answer; after the last one, or an error, there is none.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Answer, AnswerError>>> {
        if self.call.is_none() {
            return Poll::Ready(None);
        }
        if let Some(Sent { outputs, room }) = ready!(self.coming.poll_recv(context)) {
            let reply = call::partial(&self.function, &self.wanted, outputs);
            if reply.is_err() {
                self.trace.began = Some(self.started);
                self.end();
            }
            return Poll::Ready(Some(reply.map(|reply| Answer { reply, outcome: None, _room: Some(room) })));
        }
        // Nobody can send any more: the call is at its end.
        let Some(call) = &mut self.call else { return Poll::Ready(None) };
        let ended = ready!(Pin::new(call).poll(context));
        self.call = None;
        let Ok((answered, trace)) = ended else { return Poll::Ready(Some(Err(AnswerError::Internal))) };
        self.trace = trace;
        Poll::Ready(Some(answered.map(|mut outcome| {
            let reply = std::mem::take(&mut outcome.reply);
            Answer { reply, outcome: Some(outcome), _room: None }
        })))
    }

    /// The next answer; after the last one, or an error, there is none.
    pub async fn next(&mut self) -> Option<Result<Answer, AnswerError>> {
        std::future::poll_fn(|context| self.poll_next(context)).await
    }

    /// Has a call judged that goes on after the head of the answer, where `answer` ends it.
    fn judge(&self, answer: &Result<Answer, AnswerError>) {
        let outcome = match answer {
            Ok(answer) if answer.is_last() => Some(observations::Outcome::Success),
            Ok(_) => None,
            Err(error) => error.outcome(),
        };
        judge::note(&self.function, outcome, &self.trace);
    }

    fn end(&mut self) {
        if let Some(call) = self.call.take() {
            call.abort();
        }
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        self.end();
    }
}

/// Writes an answer, or an error, as what is sent. Nothing goes on behind an error, also one of the writing.
type Write = Box<dyn FnMut(Result<Answer, AnswerError>) -> Result<Bytes, Bytes> + Send>;

/// A body of one part for each answer.
pub struct Events {
    answers: Answers,
    ready: VecDeque<Bytes>,
    write: Write,
}

impl Events {
    /// A body that begins with `first`, which was taken from `answers` already.
    pub fn new(answers: Answers, first: Answer, mut write: Write) -> Events {
        let written = write(Ok(first));
        let mut events = Events { answers, ready: VecDeque::new(), write };
        let first = events.written(written);
        events.ready.push_back(first);
        events
    }

    fn written(&mut self, written: Result<Bytes, Bytes>) -> Bytes {
        written.unwrap_or_else(|error| {
            self.answers.end();
            error
        })
    }
}

impl HttpBody for Events {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if let Some(bytes) = self.ready.pop_front() {
            return Poll::Ready(Some(Ok(Frame::data(bytes))));
        }
        let Some(answer) = ready!(self.answers.poll_next(context)) else { return Poll::Ready(None) };
        self.answers.judge(&answer);
        let written = (self.write)(answer);
        let written = self.written(written);
        Poll::Ready(Some(Ok(Frame::data(written))))
    }
}
