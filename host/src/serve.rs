//! The data plane: accepts connections, answers requests, drains.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use http::{Method, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use prometheus_client::metrics::gauge::Gauge;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};

use crate::function::{Asker, Division, Function, Functions, Matched, Release, Snapshot, Target, shadow};
use crate::instance::Deadline;
use crate::nn::{Meter, Usage};
use crate::telemetry::FunctionMetrics;
use crate::telemetry::observations::Outcome;

pub mod access;
pub mod body;
pub mod call;
pub mod connection;
mod eager;
pub mod grpc;
pub mod http_function;
pub mod json;
mod judge;
pub mod linger;
pub mod oip;
mod pulse;
pub mod spin_headers;
pub mod status;
pub mod tls;
pub mod typed_function;

use access::AccessLog;
use body::Body;
use connection::{ConnectionLimits, Connections};
use eager::Eager;
use pulse::Pulse;
use status::{AnswerError, Problem};
use tls::Tls;

/// What bounds a connection and a request before its function is known.
#[derive(Clone, Debug)]
pub struct ServeLimits {
    /// Open connections; more wait to be accepted.
    pub connections: usize,
    /// Time for a request's head to arrive.
    pub header_read: Duration,
    /// Time for a request's body to arrive.
    pub body_read: Duration,
    /// Time in which a caller must take some of its answer, or lose its connection.
    pub answer_stall: Duration,
    /// Time that a connection over HTTP/2 may be open without a request.
    pub idle: Duration,
    /// Bytes of one message over gRPC.
    pub message: usize,
    /// Whether callers may have models loaded and unloaded.
    pub model_control: bool,
    /// Bytes of request bodies, and of tensors read from them, that are held for all requests together.
    pub buffered_bodies: usize,
}

/// The data plane, on however many listeners.
pub struct Server {
    functions: Arc<Functions>,
    limits: ServeLimits,
    connections: Connections,
    /// One for each connection that may be open, on all listeners together.
    places: Arc<Semaphore>,
    bodies: body::Budget,
    access: Option<AccessLog>,
    draining: AtomicBool,
    ids: access::RequestIds,
    pulse: Pulse,
    /// Counts errors before a function was found, under no name.
    unrouted: FunctionMetrics,
}

/// A request as far as it has been looked at, for its log line.
#[derive(Clone, Default)]
pub struct Trace {
    pub function: Option<Arc<Function>>,
    /// Where the call is compared with those of another revision: what chose this one.
    pub division: Option<Arc<Division>>,
    pub queue: Duration,
    pub run: Duration,
    /// When an instance of the function began to run.
    pub began: Option<Instant>,
    pub usage: Usage,
    /// Where the instance goes on after the head of its answer, what it has used.
    pub meter: Option<Meter>,
    /// The name of the error for the access log, and the one for metrics.
    pub error: Option<(String, &'static str)>,
    /// What an error says of the function.
    pub outcome: Option<Outcome>,
    /// The call, to be given to a candidate as well when this goes.
    pub shadow: Option<Arc<shadow::Pending>>,
}

impl Trace {
    /// The name of the function that was called; empty where none was.
    pub fn function_name(&self) -> &str {
        self.function.as_ref().map_or("", |function| &function.name)
    }
}

impl Server {
    /// A server that speaks TLS where it is given a certificate.
    pub fn new(
        functions: Arc<Functions>,
        limits: ServeLimits,
        tls: Option<Arc<Tls>>,
        access: Option<AccessLog>,
    ) -> Arc<Server> {
        let bounds = ConnectionLimits {
            header_read: limits.header_read,
            answer_stall: limits.answer_stall,
            idle: limits.idle,
        };
        Arc::new(Server {
            bodies: body::Budget::new(limits.buffered_bodies),
            places: Arc::new(Semaphore::new(limits.connections)),
            connections: Connections::new(bounds, tls),
            ids: access::RequestIds::new(),
            pulse: Pulse::start(),
            unrouted: functions.telemetry.function("", 0),
            draining: AtomicBool::new(false),
            functions,
            limits,
            access,
        })
    }

    /// Whether new requests are refused because the host is shutting down.
    pub fn draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Serves a listener until `stop` says so, then finishes what runs for at most `drain`. Answers whether all of it ended.
    pub async fn run(
        self: &Arc<Self>,
        listener: TcpListener,
        mut stop: watch::Receiver<bool>,
        drain: Duration,
    ) -> bool {
        let mut open = tokio::task::JoinSet::new();
        let closing = stop.clone();
        let stopping = async { drop(stop.wait_for(|stop| *stop).await) };
        let mut stopping = std::pin::pin!(stopping);
        loop {
            let accepted = tokio::select! {
                () = &mut stopping => break,
                Some(_) = open.join_next(), if !open.is_empty() => continue,
                accepted = listener.accept() => accepted,
            };
            let (stream, client) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Most often too many open files: others must close before another try makes sense.
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            // Taken last: a listener that waits for callers leaves all places to the others.
            let place = tokio::select! {
                () = &mut stopping => break,
                place = Arc::clone(&self.places).acquire_owned() => place,
            };
            let place = place.expect("the semaphore is never closed");
            let (server, closing) = (Arc::clone(self), closing.clone());
            open.spawn(Eager::new(async move {
                server.connection(stream, client, closing).await;
                drop(place);
            }));
        }
        self.draining.store(true, Ordering::Relaxed);
        drop(listener);
        tokio::time::timeout(drain, async { while open.join_next().await.is_some() {} }).await.is_ok()
    }

    async fn connection(
        self: &Arc<Self>,
        stream: TcpStream,
        client: SocketAddr,
        closing: watch::Receiver<bool>,
    ) {
        let _counted = Counted::new(&self.functions.telemetry.connections);
        let server = Arc::clone(self);
        let answer = move |request| {
            let server = Arc::clone(&server);
            async move { Ok::<_, std::convert::Infallible>(server.answer(request, client).await) }
        };
        if let Err(error) = self.connections.serve(stream, answer, closing).await {
            tracing::debug!(%client, %error, "a connection ended early");
        }
    }

    /// The walk of a request.
    pub async fn answer(self: &Arc<Self>, request: Request<Incoming>, client: SocketAddr) -> Response<Body> {
        let started = Instant::now();
        self.pulse.quicken();
        let head = access::Head::of(&request, client, &self.ids);
        let mut answering = Answering { server: self, head, started, trace: Trace::default(), ended: false };
        let Answering { head, trace, .. } = &mut answering;
        let snapshot = self.functions.snapshot();
        let form = if grpc::is_grpc(request.headers()) {
            grpc::problem
        } else if oip::is_ours(request.uri().path()) {
            oip::problem
        } else {
            body::problem
        };
        let mut response = match self.route(&snapshot, request, client, head, trace).await {
            Ok(response) => response,
            Err(error) => form(&self.refuse(&error, head.request_id.as_str(), trace)),
        };
        head.mark(&mut response, trace);
        answering.end(&mut response);
        response
    }

    async fn route(
        self: &Arc<Self>,
        snapshot: &Snapshot,
        mut request: Request<Incoming>,
        client: SocketAddr,
        head: &access::Head,
        trace: &mut Trace,
    ) -> Result<Response<Body>, AnswerError> {
        if request.version() == Version::HTTP_2
            && let Some(error) = self.refused_at_once(snapshot, &request)
        {
            body::finish(request.body_mut()).await;
            return Err(error);
        }
        if grpc::is_grpc(request.headers()) {
            return grpc::answer(self, snapshot, request, client, head.request_id.as_str(), trace).await;
        }
        if oip::is_ours(request.uri().path()) {
            return oip::answer(self, snapshot, request, client, trace).await;
        }
        if let Some(response) = well_known(snapshot, request.uri().path()) {
            return response;
        }
        if self.draining() {
            return Err(AnswerError::Draining);
        }
        let path = request.uri().path();
        let asker = Asker { headers: request.headers(), client: client.ip() };
        let Some((matched, division)) = snapshot.find(path, &asker) else {
            return Err(self.nowhere(AnswerError::FunctionNotFound(path.to_owned())));
        };
        trace.division = division.map(Arc::clone);
        match &matched.route.target {
            Target::Static(answer) => Ok(body::fixed(answer)),
            Target::Function(function) => {
                trace.function = Some(Arc::clone(function));
                self.call(function, &matched, request, client, head, trace).await
            }
        }
    }

    /// What is not found before anything was deployed may be there soon.
    fn nowhere(&self, error: AnswerError) -> AnswerError {
        if self.functions.published() { error } else { AnswerError::NothingDeployed }
    }

    /// What a request without gRPC is refused for by its head alone.
    fn refused_at_once(&self, snapshot: &Snapshot, request: &Request<Incoming>) -> Option<AnswerError> {
        let path = request.uri().path();
        if grpc::is_grpc(request.headers()) {
            None
        } else if oip::is_ours(path) {
            oip::refused_at_once(self, snapshot, request)
        } else if reserved(path) {
            None
        } else if self.draining() {
            Some(AnswerError::Draining)
        } else if !snapshot.leads(path) {
            Some(self.nowhere(AnswerError::FunctionNotFound(path.to_owned())))
        } else {
            None
        }
    }

    async fn call(
        &self,
        function: &Arc<Function>,
        matched: &Matched<'_>,
        request: Request<Incoming>,
        client: SocketAddr,
        head: &access::Head,
        trace: &mut Trace,
    ) -> Result<Response<Body>, AnswerError> {
        let revision = &function.revision;
        if revision.program.is_typed() {
            let call = typed_function::read(function, request, &self.bodies, self.limits.body_read).await?;
            typed_function::answer(self, function, call, trace).await
        } else {
            let wait = self.limits.body_read;
            let (request, shadowed) =
                http_function::prepare(request, matched, client, head, function, wait).await?;
            let permit = self.acquire(function, trace).await?;
            http_function::answer(function, request, shadowed, permit, trace).await
        }
    }

    async fn acquire(
        &self,
        function: &Function,
        trace: &mut Trace,
    ) -> Result<crate::function::Permit, AnswerError> {
        let waiting = Instant::now();
        let permit = self.functions.acquire(function).await;
        trace.queue = waiting.elapsed();
        Ok(permit?)
    }

    fn refuse(&self, error: &AnswerError, request_id: &str, trace: &mut Trace) -> Problem {
        let problem = error.problem();
        if error.is_fault() {
            tracing::warn!(function = trace.function_name(), request_id, error = problem.name, "{error}");
        }
        if let Some(function) = trace.function.as_ref().filter(|f| f.revision.program.is_typed()) {
            function.statistics.failed(trace.queue + trace.run);
        }
        trace.error = Some((problem.name.clone(), error.name()));
        trace.outcome = error.outcome();
        problem
    }

    fn count(&self, trace: &Trace, took: Duration) {
        let metrics = match &trace.function {
            Some(function) => &function.metrics,
            None if trace.error.is_some() => &self.unrouted,
            None => return,
        };
        metrics.requests.inc();
        metrics.duration.observe(took.as_secs_f64());
        metrics.queue.observe(trace.queue.as_secs_f64());
        metrics.run.observe(trace.run.as_secs_f64());
        if trace.usage.cold {
            metrics.cold_starts.inc();
        }
        if let Some((_, error)) = &trace.error {
            self.functions.telemetry.error(metrics, error);
        }
        if let Some(function) = trace.function.as_ref().filter(|function| !is_http(function)) {
            let outcome = if trace.error.is_none() { Some(Outcome::Success) } else { trace.outcome };
            judge::note(function, outcome, trace);
        }
    }
}

fn is_http(function: &Function) -> bool {
    !function.revision.program.is_typed()
}

/// Counts a connection until it is dropped.
struct Counted(Gauge);

impl Counted {
    fn new(gauge: &Gauge) -> Counted {
        gauge.inc();
        Counted(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// A request until the head of its answer is there. One that is dropped before, since its caller has left, is counted
/// and logged as well.
struct Answering<'a> {
    server: &'a Server,
    head: access::Head,
    started: Instant,
    trace: Trace,
    ended: bool,
}

/// What the access log says in place of the status that was not sent, as nginx does.
const CANCELLED_STATUS: u16 = 499;

impl Answering<'_> {
    fn end(&mut self, response: &mut Response<Body>) {
        self.ended = true;
        let Answering { server, head, started, trace, .. } = self;
        let function = trace.function.clone().filter(|function| is_http(function));
        let judged = function.and_then(|function| judge::note_answer(&function, response, trace));
        if let Some(shadow) = &trace.shadow {
            shadow.identify(head.request_id.header());
        }
        if let Some(function) = &trace.function {
            let telemetry = Arc::clone(&server.functions.telemetry);
            response.body_mut().watch(telemetry, function, &head.request_id, judged);
        }
        server.count(trace, started.elapsed());
        if let Some(access) = &server.access {
            access.write(head, response, trace, started.elapsed());
        }
    }
}

impl Drop for Answering<'_> {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        let name = if std::thread::panicking() { "internal" } else { "cancelled" };
        self.trace.error = Some((name.to_owned(), name));
        self.trace.outcome = Some(Outcome::Left);
        let mut response = Response::new(Body::Whole(None));
        *response.status_mut() = StatusCode::from_u16(CANCELLED_STATUS).expect("it has three digits");
        self.end(&mut response);
    }
}

/// The deadline of a call that begins now.
fn deadline(function: &Function) -> Deadline {
    let ms = function.revision.deadline_ms;
    Deadline { at: Instant::now() + Duration::from_millis(ms), ms }
}

/// Spin's own paths. Everything else below `/.well-known/` is kept free of functions.
fn well_known(snapshot: &Snapshot, path: &str) -> Option<Result<Response<Body>, AnswerError>> {
    match path {
        "/.well-known/spin/health" => Some(Ok(body::text("text/plain", "OK"))),
        "/.well-known/spin/info" => {
            let info = info(snapshot);
            let info = serde_json::to_string_pretty(&info).expect("a JSON value can be written");
            Some(Ok(body::text("application/json", info)))
        }
        path if reserved(path) => Some(Err(AnswerError::FunctionNotFound(path.to_owned()))),
        _ => None,
    }
}

/// What Spin says of the app that it serves; of several, each.
fn info(snapshot: &Snapshot) -> serde_json::Value {
    let info = |release: &Release| {
        let mut info = serde_json::Map::new();
        info.insert("name".to_owned(), release.app.name.clone().into());
        if let Some(version) = &release.app.version {
            info.insert("version".to_owned(), version.clone().into());
        }
        serde_json::Value::Object(info)
    };
    let mut apps: Vec<_> = snapshot.apps().values().map(|traffic| info(&traffic.stable)).collect();
    if apps.len() == 1 { apps.remove(0) } else { serde_json::json!({ "apps": apps }) }
}

fn reserved(path: &str) -> bool {
    path.starts_with("/.well-known/")
}

/// Methods that a typed function answers to.
fn is_post(method: &Method) -> bool {
    method == Method::POST
}
