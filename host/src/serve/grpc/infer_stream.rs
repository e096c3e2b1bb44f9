//! `ModelStreamInfer`: requests on one stream, answered in the order in which they came, some of them at once.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use http::{HeaderMap, HeaderName};
use hyper::body::Incoming;
use tokio::sync::mpsc;

use super::super::call::Caller;
use super::super::oip::events::Answers;
use super::super::status::{AnswerError, Problem};
use super::super::{Server, Trace};
use super::call::Names;
use super::deadline::deadline;
use super::framed;
use super::infer::{self, Form};
use super::message::{Messages, Received};
use super::proto::inference::infer_parameter::ParameterChoice;
use super::proto::inference::{InferParameter, ModelInferResponse, ModelStreamInferResponse};
use super::reply::LAST;
use super::stream::{At, Patience, Source, Streamed, refused};
use crate::function::Asker;
use crate::instance::Deadline;

/// Requests of one stream that are worked on at once. The ones behind wait, and so does their caller.
const AT_ONCE: usize = 8;

/// Answers to one request that wait behind those to earlier ones.
const WAITING: usize = 2;

/// Has a request that cannot be answered end the stream with its status, rather than be answered with a message.
const STRICT: HeaderName = HeaderName::from_static("triton_grpc_error");

/// A message, or what ends the stream.
type Parts = Result<Vec<Bytes>, Problem>;

/// The answers to the requests of one stream.
pub(super) struct Inferences {
    server: Arc<Server>,
    request_id: Arc<str>,
    deadline: Option<Deadline>,
    is_strict: bool,
    headers: Arc<HeaderMap>,
    client: SocketAddr,
    messages: Messages<Incoming>,
    turns: VecDeque<Turn>,
    /// What comes after the answers: `None` while requests may come.
    end: Option<Result<(), Problem>>,
    patience: Patience,
}

/// A request that is worked on, and its answers.
struct Turn {
    work: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    answers: mpsc::Receiver<Parts>,
}

/// Begins to answer a stream.
///
/// # Errors
/// Where its headers say something that is not understood.
pub(super) fn model_stream_infer(
    server: &Arc<Server>,
    headers: &HeaderMap,
    client: SocketAddr,
    body: Incoming,
    request_id: &str,
) -> Result<Streamed<Inferences>, AnswerError> {
    let deadline = deadline(headers)?;
    let inferences = Inferences {
        server: Arc::clone(server),
        request_id: request_id.into(),
        deadline,
        is_strict: is_strict(headers),
        headers: Arc::new(headers.clone()),
        client,
        messages: Messages::new(body, headers, server.limits.message)?,
        turns: VecDeque::with_capacity(AT_ONCE),
        end: None,
        patience: Patience::new(server, deadline),
    };
    Ok(Streamed::new(inferences))
}

fn is_strict(headers: &HeaderMap) -> bool {
    headers.get(STRICT).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"true"))
}

impl Inferences {
    fn begin(&mut self, received: Received) {
        let (sender, answers) = mpsc::channel(WAITING);
        let turn = Asking {
            server: Arc::clone(&self.server),
            request_id: Arc::clone(&self.request_id),
            deadline: self.deadline,
            is_strict: self.is_strict,
            headers: Arc::clone(&self.headers),
            client: self.client,
            names: Names::default(),
            trace: Trace::default(),
            started: Instant::now(),
            is_ended: false,
        };
        let work = Box::pin(turn.answer(received, sender));
        self.turns.push_back(Turn { work: Some(work), answers });
    }

    /// The first answer that is ready, where no earlier one is to come.
    fn poll_turns(&mut self, context: &mut Context<'_>) -> Poll<Parts> {
        for turn in &mut self.turns {
            if let Some(work) = &mut turn.work
                && work.as_mut().poll(context).is_ready()
            {
                turn.work = None;
            }
        }
        while let Some(first) = self.turns.front_mut() {
            match first.answers.poll_recv(context) {
                Poll::Ready(Some(answer)) => return Poll::Ready(answer),
                Poll::Ready(None) => drop(self.turns.pop_front()),
                Poll::Pending => break,
            }
        }
        Poll::Pending
    }

    fn at(&self) -> At {
        match self.messages.is_amid() {
            _ if !self.turns.is_empty() => At::Work,
            true => At::Message,
            false => At::Rest,
        }
    }
}

impl Source for Inferences {
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Parts>> {
        loop {
            if let Poll::Ready(answer) = self.poll_turns(context) {
                return Poll::Ready(Some(answer));
            }
            if self.end.is_none() && self.turns.len() < AT_ONCE {
                match self.messages.poll_next(context, &self.server.bodies) {
                    Poll::Ready(Some(Ok(received))) => self.begin(received),
                    Poll::Ready(Some(Err(error))) => {
                        self.end = Some(Err(refused(&self.server, &self.request_id, &error)));
                    }
                    Poll::Ready(None) => self.end = Some(Ok(())),
                    Poll::Pending => break,
                }
                continue;
            }
            break;
        }
        if self.turns.is_empty()
            && let Some(end) = self.end.take()
        {
            return Poll::Ready(end.err().map(Err));
        }
        let at = self.at();
        self.patience.poll_over(context, at).map(|over| {
            self.turns.clear();
            Some(Err(refused(&self.server, &self.request_id, &over)))
        })
    }
}

/// One request of a stream. It is counted when it ends, also where the caller has left.
struct Asking {
    server: Arc<Server>,
    request_id: Arc<str>,
    deadline: Option<Deadline>,
    is_strict: bool,
    headers: Arc<HeaderMap>,
    client: SocketAddr,
    names: Names,
    trace: Trace,
    started: Instant,
    is_ended: bool,
}

impl Asking {
    async fn answer(mut self, received: Received, answers: mpsc::Sender<Parts>) {
        let answered = self.answers(received, &answers).await;
        if let Err(error) = answered {
            let problem = self.server.refuse(&error, &self.request_id, &mut self.trace);
            let answer = if self.is_strict { Err(problem) } else { Ok(vec![self.refusal(problem.detail)]) };
            // Where nobody takes it, the stream is over.
            let _ = answers.send(answer).await;
        }
        self.is_ended = true;
    }

    async fn answers(&mut self, received: Received, to: &mpsc::Sender<Parts>) -> Result<(), AnswerError> {
        let message = received.plain().await?;
        let snapshot = self.server.functions.snapshot();
        let bytes = message.bytes.clone();
        let asker = Asker { headers: &self.headers, client: self.client.ip() };
        let asked = infer::read(&self.server, &snapshot, &asker, message, &mut self.trace).await;
        let asked = asked.inspect_err(|_| self.names = Names::of(&bytes))?;
        drop(bytes);
        let form = asked.form;
        self.names = Names {
            model: form.function.model.clone(),
            version: form.function.version.clone(),
            id: form.id.clone(),
        };
        let caller = Caller { deadline: self.deadline.map(|deadline| deadline.at), share: asked.share };
        let mut answers = Answers::of(&self.server, &form.function, asked.request, caller, &self.trace);
        let passed_on = pass_on(&self.server, &mut answers, &form, to).await;
        self.trace = std::mem::take(&mut answers.trace);
        passed_on
    }

    fn refusal(&mut self, error_message: String) -> Bytes {
        let Names { model, version, id } = std::mem::take(&mut self.names);
        let is_last = InferParameter { parameter_choice: Some(ParameterChoice::BoolParam(true)) };
        let infer_response = Some(ModelInferResponse {
            model_name: model,
            model_version: version,
            id,
            parameters: [(LAST.to_owned(), is_last)].into(),
            ..ModelInferResponse::default()
        });
        framed(&ModelStreamInferResponse { error_message, infer_response })
    }
}

/// Writes answers as they come.
async fn pass_on(
    server: &Server,
    answers: &mut Answers,
    form: &Form,
    to: &mpsc::Sender<Parts>,
) -> Result<(), AnswerError> {
    while let Some(answer) = answers.next().await {
        let mut answer = answer?;
        let (is_last, reply) = (answer.is_last(), std::mem::take(&mut answer.reply));
        let parts = infer::write(form.clone(), reply, answer, Some(is_last)).await?;
        let parts = infer::counted(server, parts)?;
        if to.send(Ok(parts)).await.is_err() {
            // Where nobody takes it, the stream is over.
            break;
        }
    }
    Ok(())
}

impl Drop for Asking {
    fn drop(&mut self) {
        if !self.is_ended {
            let name = if std::thread::panicking() { "internal" } else { "cancelled" };
            self.trace.error = Some((name.to_owned(), name));
        }
        self.server.count(&self.trace, self.started.elapsed());
    }
}
