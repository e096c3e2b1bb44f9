//! The control API over HTTP: who may ask for what, within which bounds, and in which form it is answered.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    ALLOW, AUTHORIZATION, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER,
    WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS,
};
use http::{Method, Request, Response, StatusCode, Version};
use hyper::body::Body;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::time::timeout;
use url::form_urlencoded;

use super::openapi;
use super::token::{Bearer, Tokens};
use super::wire::{Command, Prepare, Prepared, Progress, Source, Start};
use super::{BoxFuture, Control, ControlError, Upload};
use crate::artifact::oci::Digest;
use crate::artifact::reference::Reference;
use crate::artifact::registry::printable;
use crate::config::Scope;
use body::Payload;
use places::{Kind, Places};
use route::{Found, Operation, Parameters, Route};

mod body;
pub mod listen;
mod places;
mod route;
mod socket;
#[cfg(test)]
mod tests;

/// Lines that a caller may be behind before it is not waited for any more.
const LINES_AHEAD: usize = 1024;
/// Entries of the history in one answer, unless the caller says, and at most.
const HISTORY: usize = 100;
const MAX_HISTORY: usize = 1000;
/// The longest message for the history.
const MESSAGE_CHARS: usize = 2000;

/// How long the API waits, and for what.
#[derive(Clone, Copy, Debug)]
struct Waits {
    /// For a body in JSON.
    json: Duration,
    /// For more of a blob.
    blob: Duration,
    /// For an answer. What was asked for goes on after that.
    answer: Duration,
    /// Before an empty line says that a stream of lines goes on.
    heartbeat: Duration,
}

const WAITS: Waits = Waits {
    json: Duration::from_secs(30),
    blob: Duration::from_secs(30),
    answer: Duration::from_secs(120),
    heartbeat: Duration::from_secs(10),
};

/// Answers callers of the control API.
pub struct Api {
    control: Arc<dyn Control>,
    tokens: Arc<Tokens>,
    max_blob_bytes: u64,
    waits: Waits,
    places: Places,
    draining: AtomicBool,
    strangers: Strangers,
}

/// Which way a caller has come.
#[derive(Clone, Copy, Debug)]
enum Way {
    Tcp(IpAddr),
    /// Over the local socket, by this user, who was found to be allowed.
    Socket(u32),
}

/// Whom a request is from.
#[derive(Debug)]
enum Caller {
    Bearer(Bearer),
    Local(u32),
}

impl Caller {
    fn may(&self, scope: Scope) -> bool {
        match self {
            Caller::Bearer(bearer) => bearer.may(scope),
            Caller::Local(_) => true,
        }
    }
}

impl std::fmt::Display for Caller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Caller::Bearer(bearer) => write!(f, "by the token `{}`", bearer.name),
            Caller::Local(user) => write!(f, "over the local socket, by user {user}"),
        }
    }
}

/// Tells the log of callers without a token, but not each time.
#[derive(Default)]
struct Strangers(std::sync::Mutex<Option<(std::time::Instant, u64)>>);

impl Strangers {
    const TOLD: Duration = Duration::from_secs(60);

    fn seen(&self, client: IpAddr) {
        let mut last = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match &mut *last {
            Some((told, since)) if told.elapsed() < Strangers::TOLD => *since += 1,
            last => {
                let more = last.map_or(0, |(_, since)| since);
                *last = Some((std::time::Instant::now(), 0));
                tracing::warn!(%client, more, "somebody without a token asked the control API for something");
            }
        }
    }
}

/// A refusal, and the head that goes with it.
struct Refused {
    error: ControlError,
    allow: Vec<Method>,
    /// Nothing further is heard of this caller on this connection.
    ends: bool,
}

impl From<ControlError> for Refused {
    fn from(error: ControlError) -> Refused {
        Refused { error, allow: Vec::new(), ends: false }
    }
}

impl Api {
    /// An API in front of `control`, for callers with these tokens, that takes blobs of at most so many bytes.
    fn new(control: Arc<dyn Control>, tokens: Arc<Tokens>, max_blob_bytes: u64, waits: Waits) -> Api {
        Api {
            control,
            tokens,
            max_blob_bytes,
            waits,
            places: Places::new(),
            draining: AtomicBool::new(false),
            strangers: Strangers::default(),
        }
    }

    /// Takes nothing new that would change what is served.
    fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Waits until nothing that was asked for is under way. To be called after [`drain`](Api::drain).
    async fn finished(&self) {
        self.places.emptied().await;
    }

    /// The walk of a request.
    async fn answer<B>(self: &Arc<Self>, request: Request<B>, way: Way) -> Response<Payload>
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let version = request.version();
        let (head, mut body) = request.into_parts();
        let answered = match self.admit(&head.method, head.uri.path(), &head.headers, way) {
            Ok((route, parameters, caller)) => {
                let asked = Asked {
                    route,
                    parameters,
                    caller,
                    query: head.uri.query().unwrap_or_default(),
                    headers: &head.headers,
                };
                let answered = self.perform(&asked, body).await.map_err(Refused::from);
                self.note(&asked, &answered);
                answered
            }
            Err(refused) => {
                if version == Version::HTTP_2 {
                    body::finish(&mut body).await;
                }
                Err(refused)
            }
        };
        let mut response = answered.unwrap_or_else(|refused| self.refuse(&refused, version));
        let headers = response.headers_mut();
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        response
    }

    /// Whether a request may be looked at further. Who has no token is told nothing, not even which paths there are.
    fn admit(
        &self,
        method: &Method,
        path: &str,
        headers: &HeaderMap,
        way: Way,
    ) -> Result<(&'static Route, Parameters, Option<Caller>), Refused> {
        let found = route::find(method, path);
        if let Found::Route(route @ Route { scope: None, .. }, parameters) = found {
            return Ok((route, parameters, None));
        }
        let caller = self.caller(headers, way)?;
        match found {
            Found::Route(route, parameters) => match route.scope {
                Some(scope) if !caller.may(scope) => Err(ControlError::forbidden(format_args!(
                    "this asks for the scope `deploy`, which the token does not have; use another, or add the scope to \
                     `control.tokens` in host.toml"
                ))
                .into()),
                _ => Ok((route, parameters, Some(caller))),
            },
            Found::OtherMethods(allow) => {
                let methods: Vec<_> = allow.iter().map(Method::as_str).collect();
                let error = ControlError::wrong_method(format_args!(
                    "{} is not answered there, but {}",
                    printable(method.as_str(), 20),
                    methods.join(" and ")
                ));
                Err(Refused { error, allow, ends: false })
            }
            Found::Nothing => Err(ControlError::path_not_found(format_args!(
                "there is nothing at `{}`; /v1/openapi.json describes what there is",
                printable(path, 200)
            ))
            .into()),
        }
    }

    fn caller(&self, headers: &HeaderMap, way: Way) -> Result<Caller, Refused> {
        let address = match way {
            Way::Socket(user) => return Ok(Caller::Local(user)),
            Way::Tcp(address) => address,
        };
        let presented = headers.get(AUTHORIZATION).and_then(|value| bearer(value.to_str().ok()?));
        if let Some(bearer) = presented.and_then(|token| self.tokens.bearer(token)) {
            return Ok(Caller::Bearer(bearer));
        }
        self.strangers.seen(address);
        let detail = match (self.tokens.is_empty(), presented) {
            (true, _) => {
                "this host has no tokens, so nobody is let in here: on it, write `openssl rand -hex 32` into a file, name \
                 that in host.toml as `token_file` under `[control.tokens.NAME]` with `scopes = [\"deploy\"]`, and start \
                 the host again; its own user needs no token on its local socket"
            }
            (false, None) => {
                "show a token: `tenon` takes one from --token-file or TENON_TOKEN, others send `authorization: Bearer \
                 TOKEN`; the operator's host.toml has those that there are"
            }
            (false, Some(_)) => "this token is not in force; ask the operator for one that is",
        };
        Err(Refused { error: ControlError::unauthorized(detail), allow: Vec::new(), ends: true })
    }

    /// Does what was asked for.
    async fn perform<B>(
        self: &Arc<Self>,
        asked: &Asked<'_>,
        body: B,
    ) -> Result<Response<Payload>, ControlError>
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let Asked { route, headers, .. } = asked;
        if route.operation != Operation::History && !asked.query.is_empty() {
            return Err(ControlError::invalid("nothing after `?` is known here; leave it out"));
        }
        let changes = route.scope == Some(Scope::Deploy) && route.operation != Operation::HasBlob;
        if changes && self.draining.load(Ordering::Relaxed) {
            return Err(ControlError::draining());
        }
        let app = asked.parameters.app.clone();
        let revision = asked.parameters.revision;
        match route.operation {
            Operation::Health => Ok(text("OK\n")),
            Operation::Describe => Ok(whole(StatusCode::OK, "application/json", openapi::DOCUMENT)),
            Operation::Status => {
                self.call(asked, |control| Box::pin(async move { control.status().await })).await
            }
            Operation::App => {
                self.call(asked, |control| Box::pin(async move { control.app(&app).await })).await
            }
            Operation::Remove => {
                self.done(asked, |control| Box::pin(async move { control.remove(&app).await })).await
            }
            Operation::Discard => {
                self.done(asked, |control| Box::pin(async move { control.discard(&app, revision).await }))
                    .await
            }
            Operation::Shadow => {
                self.call(asked, |control| Box::pin(async move { control.shadow(&app).await })).await
            }
            Operation::History => {
                let (before, limit) = page(asked.query)?;
                self.call(asked, move |control| {
                    Box::pin(async move { control.history(&app, before, limit).await })
                })
                .await
            }
            Operation::Prepare => {
                let mut prepare: Prepare = body::json(headers, body, None, self.waits.json).await?;
                check_source(&prepare.source)?;
                asked.sign(&mut prepare.message)?;
                self.prepare(prepare)
            }
            Operation::Start => {
                let mut start: Start = body::json(headers, body, None, self.waits.json).await?;
                asked.sign(&mut start.message)?;
                self.call(asked, move |control| Box::pin(async move { control.start(&app, start).await }))
                    .await
            }
            Operation::Promote | Operation::Pause | Operation::Resume | Operation::Rollback => {
                let mut command =
                    body::json(headers, body, Some(Command::default()), self.waits.json).await?;
                check_command(route.operation, &command)?;
                asked.sign(&mut command.message)?;
                let operation = route.operation;
                self.call(asked, move |control| {
                    Box::pin(async move { send(&*control, operation, &app, command).await })
                })
                .await
            }
            Operation::HasBlob => self.has_blob(asked).await,
            Operation::PutBlob => {
                let upload = body::upload(headers, body, self.max_blob_bytes, self.waits.blob)?;
                self.put_blob(asked, upload).await
            }
        }
    }

    /// Has the control plane do something, and answers with what it says.
    async fn call<T, F>(&self, asked: &Asked<'_>, call: F) -> Result<Response<Payload>, ControlError>
    where
        T: Serialize + Send + 'static,
        F: FnOnce(Arc<dyn Control>) -> BoxFuture<'static, Result<T, ControlError>>,
    {
        let place = asked.place(&self.places)?;
        let answer = self.run(place, call, self.waits.answer).await?;
        let body = serde_json::to_vec(&answer)
            .map_err(|error| ControlError::internal(format_args!("the answer cannot be written: {error}")))?;
        Ok(whole(StatusCode::OK, "application/json", body))
    }

    /// The same where there is nothing to say.
    async fn done<F>(&self, asked: &Asked<'_>, call: F) -> Result<Response<Payload>, ControlError>
    where
        F: FnOnce(Arc<dyn Control>) -> BoxFuture<'static, Result<(), ControlError>>,
    {
        let place = asked.place(&self.places)?;
        self.run(place, call, self.waits.answer).await?;
        Ok(empty(StatusCode::NO_CONTENT))
    }

    /// Runs a call as a task of its own, so that it ends also where its caller leaves, and its panic stays its own. It
    /// has its `place` until then.
    async fn run<P, T, F>(&self, place: P, call: F, patience: Duration) -> Result<T, ControlError>
    where
        P: Send + 'static,
        T: Send + 'static,
        F: FnOnce(Arc<dyn Control>) -> BoxFuture<'static, Result<T, ControlError>>,
    {
        let calling = call(Arc::clone(&self.control));
        let running = tokio::spawn(async move {
            let answer = calling.await;
            drop(place);
            answer
        });
        match timeout(patience, running).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => Err(panicked(&error)),
            Err(_) => Err(ControlError::unfinished(format_args!(
                "it is not done after {} s, and goes on; `tenon status` tells what has become of it",
                patience.as_secs()
            ))),
        }
    }

    async fn has_blob(&self, asked: &Asked<'_>) -> Result<Response<Payload>, ControlError> {
        let (digest, place) = (asked.digest()?, asked.place(&self.places)?);
        let look = move |control: Arc<dyn Control>| -> BoxFuture<'static, _> {
            Box::pin(async move { control.has_blob(&digest).await })
        };
        let has = self.run(place, look, self.waits.answer).await?;
        match has {
            true => Ok(empty(StatusCode::OK)),
            false => Err(ControlError::no_such_blob(format_args!("{digest} is not here; send it with PUT"))),
        }
    }

    async fn put_blob(&self, asked: &Asked<'_>, upload: Upload) -> Result<Response<Payload>, ControlError> {
        let (digest, place) = (asked.digest()?, self.places.upload(&asked.sender())?);
        // What it waits for beside the disk is bounded by the upload itself.
        let patience = self.waits.answer + upload.bound();
        let put = move |control: Arc<dyn Control>| -> BoxFuture<'static, _> {
            Box::pin(async move { control.put_blob(&digest, upload).await })
        };
        self.run(place, put, patience).await?;
        Ok(empty(StatusCode::CREATED))
    }

    /// Has a revision made ready, and tells how far it is, line by line. It goes on though the caller leaves.
    fn prepare(self: &Arc<Self>, prepare: Prepare) -> Result<Response<Payload>, ControlError> {
        let place = self.places.prepare()?;
        let (progress, told) = mpsc::channel(64);
        let control = Arc::clone(&self.control);
        let preparing = tokio::spawn(async move { control.prepare(prepare, progress).await });
        let (lines, body) = mpsc::channel(LINES_AHEAD);
        let heartbeat = self.waits.heartbeat;
        tokio::spawn(async move {
            tell(preparing, told, Lines(Some(lines)), heartbeat).await;
            drop(place);
        });
        let mut response = Response::new(Payload::Lines(body));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
        Ok(response)
    }

    fn refuse(&self, refused: &Refused, version: Version) -> Response<Payload> {
        let Refused { error, allow, ends } = refused;
        let status = StatusCode::from_u16(error.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = serde_json::to_vec(&error.refusal()).unwrap_or_default();
        let mut response = whole(status, "application/problem+json", body);
        let headers = response.headers_mut();
        if let Ok(allow) =
            HeaderValue::from_str(&allow.iter().map(Method::as_str).collect::<Vec<_>>().join(", "))
            && !allow.is_empty()
        {
            headers.insert(ALLOW, allow);
        }
        match status {
            StatusCode::UNAUTHORIZED => {
                headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"tenon\""));
            }
            StatusCode::SERVICE_UNAVAILABLE => {
                headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
            }
            _ => {}
        }
        // HTTP/2 has no such header, and its connections are ended when they are idle.
        if *ends && version < Version::HTTP_2 {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    /// Who did what, for the log.
    fn note(&self, asked: &Asked<'_>, answered: &Result<Response<Payload>, Refused>) {
        let Some(caller) = &asked.caller else { return };
        let operation = asked.route.operation;
        let app = asked.parameters.app.as_str();
        match answered {
            Ok(_) if asked.route.scope == Some(Scope::Read) || operation == Operation::HasBlob => {}
            Ok(_) => tracing::info!(app, "control: {operation:?}, {caller}"),
            Err(Refused { error, .. }) if error.status >= 500 => {
                tracing::warn!(app, "control: {operation:?}, {caller}: {}: {error}", error.name);
            }
            Err(Refused { error, .. }) => {
                tracing::debug!(app, "control: {operation:?}, {caller}: {}: {error}", error.name);
            }
        }
    }
}

/// A request whose caller may have what it asks for.
struct Asked<'r> {
    route: &'static Route,
    parameters: Parameters,
    /// `None` where anybody may ask.
    caller: Option<Caller>,
    query: &'r str,
    headers: &'r HeaderMap,
}

impl Asked<'_> {
    /// A place for what is asked, until it is done.
    fn place(&self, places: &Places) -> Result<tokio::sync::OwnedSemaphorePermit, ControlError> {
        let is_question =
            self.route.scope != Some(Scope::Deploy) || self.route.operation == Operation::HasBlob;
        let kind = if is_question { Kind::Question } else { Kind::Command };
        places.take(kind, matches!(self.caller, Some(Caller::Local(_))))
    }

    /// By whom, in words.
    fn sender(&self) -> String {
        self.caller.as_ref().map(Caller::to_string).unwrap_or_default()
    }

    fn digest(&self) -> Result<Digest, ControlError> {
        self.parameters.digest.ok_or_else(|| ControlError::invalid("the path names no digest"))
    }

    /// Has a message for the history say who it is from, where it says nothing itself.
    fn sign(&self, message: &mut Option<String>) -> Result<(), ControlError> {
        match message.as_deref().map(str::trim) {
            Some(text) if text.chars().count() > MESSAGE_CHARS => Err(ControlError::invalid(format_args!(
                "`message` is longer than {MESSAGE_CHARS} characters; make it shorter"
            ))),
            None | Some("") => {
                *message = self.caller.as_ref().map(Caller::to_string);
                Ok(())
            }
            Some(_) => Ok(()),
        }
    }
}

/// The token of an `authorization` header.
fn bearer(value: &str) -> Option<&str> {
    let (scheme, token) = value.trim().split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

async fn send(
    control: &dyn Control,
    operation: Operation,
    app: &str,
    command: Command,
) -> Result<super::wire::RolloutStatus, ControlError> {
    match operation {
        Operation::Promote => control.promote(app, command).await,
        Operation::Pause => control.pause(app, command).await,
        Operation::Resume => control.resume(app, command).await,
        _ => control.rollback(app, command).await,
    }
}

/// Refuses what only another command would understand, before somebody believes that it was done.
fn check_command(operation: Operation, command: &Command) -> Result<(), ControlError> {
    if command.full && operation != Operation::Promote {
        return Err(ControlError::invalid("`full` is of a promotion; leave it out"));
    }
    if command.revision.is_some() && operation != Operation::Rollback {
        return Err(ControlError::invalid("`revision` is of a rollback; leave it out"));
    }
    Ok(())
}

fn check_source(source: &Source) -> Result<(), ControlError> {
    match source {
        Source::Reference(reference) => {
            let parsed = reference.parse::<Reference>();
            parsed.map(drop).map_err(ControlError::invalid)
        }
        Source::Uploaded(digest) => digest.parse::<Digest>().map(drop).map_err(ControlError::invalid),
    }
}

/// The part of a history that a query asks for.
fn page(query: &str) -> Result<(Option<u64>, usize), ControlError> {
    let (mut before, mut limit) = (None, HISTORY);
    for (key, value) in form_urlencoded::parse(query.as_bytes()) {
        let wrong = |expected: &str| {
            let value = printable(&value, 100);
            Err(ControlError::invalid(format_args!("`{key}` must be {expected}, not `{value}`")))
        };
        match key.as_ref() {
            "before" => match value.parse() {
                Ok(id) => before = Some(id),
                Err(_) => return wrong("the id of an entry"),
            },
            "limit" => match value.parse() {
                Ok(count) if (1..=MAX_HISTORY).contains(&count) => limit = count,
                _ => return wrong(&format!("a whole number from 1 to {MAX_HISTORY}")),
            },
            _ => {
                let key = printable(&key, 100);
                return Err(ControlError::invalid(format_args!(
                    "`{key}` is not known here; there are `before` and `limit`"
                )));
            }
        }
    }
    Ok((before, limit))
}

/// Lines for a caller that may be too slow for them, or gone.
struct Lines(Option<mpsc::Sender<Bytes>>);

impl Lines {
    fn say(&mut self, progress: &Progress) {
        let mut line = serde_json::to_vec(progress).unwrap_or_default();
        line.push(b'\n');
        self.send(line.into());
    }

    /// A caller that cannot follow is left behind: the stream ends for it without its last line.
    fn send(&mut self, line: Bytes) {
        if self.0.as_ref().is_some_and(|lines| lines.try_send(line).is_err()) {
            self.0 = None;
        }
    }
}

/// Tells what happens until it is done, and what came of it.
async fn tell(
    preparing: tokio::task::JoinHandle<Result<Prepared, ControlError>>,
    mut told: mpsc::Receiver<Progress>,
    mut lines: Lines,
    heartbeat: Duration,
) {
    let mut preparing = preparing;
    let prepared = loop {
        tokio::select! {
            biased;
            Some(progress) = told.recv() => lines.say(&progress),
            prepared = &mut preparing => break prepared,
            () = tokio::time::sleep(heartbeat) => lines.send(Bytes::from_static(b"\n")),
        }
    };
    told.close();
    while let Some(progress) = told.recv().await {
        lines.say(&progress);
    }
    let prepared = prepared.unwrap_or_else(|error| Err(panicked(&error)));
    match prepared {
        Ok(prepared) => {
            let Prepared { app, revision, unchanged, .. } = &prepared;
            tracing::info!(app, revision, unchanged, "control: a revision is ready to take traffic");
            lines.say(&Progress::Ready { prepared });
        }
        Err(error) => {
            tracing::warn!("control: a revision was not made: {}: {error}", error.name);
            lines.say(&Progress::Failed { error: error.into() });
        }
    }
}

fn panicked(error: &tokio::task::JoinError) -> ControlError {
    tracing::error!(%error, "the control plane failed");
    ControlError::internal("the host failed within; its log says more, and `tenon status` what it serves")
}

fn whole(status: StatusCode, media_type: &'static str, body: impl Into<Bytes>) -> Response<Payload> {
    let mut response = Response::new(Payload::Whole(Some(body.into())));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    response
}

fn text(text: &'static str) -> Response<Payload> {
    whole(StatusCode::OK, "text/plain; charset=utf-8", text)
}

fn empty(status: StatusCode) -> Response<Payload> {
    let mut response = Response::new(Payload::Whole(None));
    *response.status_mut() = status;
    response
}

/// What a connection's service answers.
type Served = Result<Response<Payload>, Infallible>;
