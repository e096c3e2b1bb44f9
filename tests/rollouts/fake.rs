//! A stand-in for a host that does what a host does, and one thing wrongly: what looks for faults must find it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::rig::api::{Control, To};
use super::rig::host::Life;
use super::rig::image::{Image, digest_of};
use super::rig::ledger::{State, WHOLE, bucket};
use super::rig::load::{STICKY, TESTER};
use super::rig::reference::classify;

/// The one thing that it does wrongly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// A change takes hold some time after it was acknowledged.
    LateChange,
    /// Users are divided by another hash.
    OtherSplit,
    /// Testers get whatever others get.
    NoTesters,
    /// One call of many is refused.
    Refuses,
    /// One call of many is answered wrongly.
    WrongAnswer,
    /// One connection of many breaks off.
    BreaksOff,
    /// One answer of many names another revision.
    OtherName,
    /// One answer of many is that of another revision under the right name.
    OtherAnswer,
    /// A removed app goes on for a while.
    Lingers,
    /// It tells another weight than it uses.
    TellsOtherWeight,
    /// The last acknowledged change is lost when it dies.
    Forgets,
    /// What was under way when it dies is done twice.
    DoesMore,
    /// What it tells after a restart is not what it does.
    ServesOther,
    /// History goes when it dies.
    ForgetsHistory,
}

/// What it is, alive or not.
pub(crate) struct Fake {
    address: SocketAddr,
    kept: Arc<Mutex<Kept>>,
    alive: Option<JoinSet<()>>,
    /// How long each command takes.
    slowness: Duration,
}

/// What is kept on disk, so to say.
struct Kept {
    fault: Fault,
    apps: BTreeMap<String, App>,
    /// Blobs.
    blobs: BTreeMap<String, Bytes>,
    history: Vec<Value>,
    calls: AtomicU64,
}

#[derive(Clone, Default)]
struct App {
    state: State,
    /// What is served, where that is something else.
    serves: State,
    former: State,
    revisions: BTreeMap<u64, (String, u32)>,
    steps: Vec<u16>,
    step: usize,
}

impl Fake {
    pub(crate) fn new(fault: Fault, slowness: Duration) -> anyhow::Result<Fake> {
        let address = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let kept = Kept {
            fault,
            apps: BTreeMap::new(),
            blobs: BTreeMap::new(),
            history: Vec::new(),
            calls: AtomicU64::new(0),
        };
        Ok(Fake { address, kept: Arc::new(Mutex::new(kept)), alive: None, slowness })
    }
}

/// An image that the stand-in understands.
pub(crate) fn image(name: &str, folder: &Path) -> anyhow::Result<Image> {
    let env = json!({ "REVISION": "0" });
    let config = json!({ "metadata": { "name": name }, "components": [{ "id": name, "env": env }] });
    let config = config.to_string();
    let blobs = folder.join("blobs/sha256");
    std::fs::create_dir_all(&blobs)?;
    let put = |text: &str| -> anyhow::Result<String> {
        let digest = digest_of(text.as_bytes());
        std::fs::write(blobs.join(digest.trim_start_matches("sha256:")), text)?;
        Ok(digest)
    };
    let manifest = json!({ "config": { "digest": put(&config)?, "size": config.len() }, "layers": [] });
    let index = json!({ "manifests": [{ "digest": put(&manifest.to_string())? }] });
    std::fs::write(folder.join("index.json"), index.to_string())?;
    Image::read(folder)
}

impl Life for Fake {
    async fn start(&mut self) -> anyhow::Result<()> {
        let listener = TcpListener::bind(self.address).await?;
        let (kept, slowness) = (Arc::clone(&self.kept), self.slowness);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let kept = Arc::clone(&kept);
                let service = service_fn(move |request| answer(request, Arc::clone(&kept), slowness));
                let served = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service);
                connections.spawn(async move { drop(served.await) });
            }
        });
        self.alive = Some(tasks);
        Ok(())
    }

    async fn kill(&mut self) -> anyhow::Result<()> {
        if let Some(mut tasks) = self.alive.take() {
            tasks.shutdown().await;
        }
        let mut kept = self.kept.lock().unwrap();
        let fault = kept.fault;
        if fault == Fault::ForgetsHistory {
            kept.history.clear();
        }
        for app in kept.apps.values_mut() {
            match fault {
                Fault::Forgets => app.state = app.former.clone(),
                Fault::DoesMore => app.state = twice(&app.state),
                _ => {}
            }
            app.serves = if fault == Fault::ServesOther { twice(&app.state) } else { app.state.clone() };
        }
        Ok(())
    }

    fn control(&self) -> Control {
        Control { to: To::Address(self.address, "token".to_owned()) }
    }

    fn address(&self) -> SocketAddr {
        self.address
    }
}

/// Another state than this one.
fn twice(state: &State) -> State {
    match &state.candidate {
        Some(candidate) => State::stable(candidate.revision),
        None => State::stable(state.stable.unwrap_or(1).saturating_sub(1).max(1)),
    }
}

async fn answer(
    request: Request<Incoming>,
    kept: Arc<Mutex<Kept>>,
    slowness: Duration,
) -> Result<Response<Full<Bytes>>, std::io::Error> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map_err(std::io::Error::other)?.to_bytes();
    let path = parts.uri.path().to_owned();
    let answered = match path.strip_prefix("/v1/") {
        Some(path) => {
            tokio::time::sleep(slowness).await;
            let (status, value) = command(&parts.method, path, &body, &kept);
            let text = if value.is_null() { String::new() } else { value.to_string() };
            Response::builder().status(status).body(Full::from(text))
        }
        None => call(&path, &parts.headers, &body, &kept.lock().unwrap())?,
    };
    answered.map_err(std::io::Error::other)
}

/// A call of a function.
fn call(
    path: &str,
    headers: &HeaderMap,
    body: &[u8],
    kept: &Kept,
) -> Result<http::Result<Response<Full<Bytes>>>, std::io::Error> {
    let name = path.trim_start_matches("/v2/models/").trim_start_matches('/').trim_end_matches("/infer");
    let absent = || Response::builder().status(404).body(Full::default());
    let Some(app) = kept.apps.get(name) else { return Ok(absent()) };
    let fault = |fault| kept.fault == fault;
    let state = &app.serves;
    let Some(stable) = state.stable else { return Ok(absent()) };
    let number = kept.calls.fetch_add(1, Ordering::Relaxed);
    let now_and_then = number % 401 == 400;
    let mut revision = stable;
    if let Some(candidate) = &state.candidate {
        let other_key = if fault(Fault::OtherSplit) { "x" } else { "" };
        let point = match headers.get(STICKY).and_then(|key| key.to_str().ok()) {
            Some(key) => bucket(name, &candidate.digest, &format!("{key}{other_key}")),
            None => (number * 7_919 % 10_000) as u16,
        };
        let tester = headers.contains_key(TESTER.0) && !fault(Fault::NoTesters);
        if tester || point < candidate.weight {
            revision = candidate.revision;
        }
    }
    if now_and_then && fault(Fault::Refuses) {
        return Ok(Response::builder().status(503).body(Full::from("overloaded")));
    }
    if now_and_then && fault(Fault::BreaksOff) {
        return Err(std::io::Error::other("broken off"));
    }
    let asked: Value = serde_json::from_slice(body).map_err(std::io::Error::other)?;
    let x = asked["inputs"][0]["data"].as_array().into_iter().flatten();
    let x: Vec<f32> = x.filter_map(|x| Some(x.as_f64()? as f32)).collect();
    let mut right = classify(&x);
    if now_and_then && fault(Fault::WrongAnswer) {
        right.scores[3] += 1.0;
    }
    let named = if now_and_then && fault(Fault::OtherName) { revision + 1 } else { revision };
    let label = app.revisions.get(&revision).map_or(0, |(_, label)| *label);
    let label = if now_and_then && fault(Fault::OtherAnswer) { label + 1 } else { label };
    let answer = json!({
        "model_version": named.to_string(),
        "outputs": [{ "name": "scores", "data": right.scores }, { "name": "label", "data": [right.label] }],
        "parameters": { "revision": label.to_string() },
    });
    Ok(Response::builder().header("x-tenon-revision", named).body(Full::from(answer.to_string())))
}

/// A command, without the version of the API in its path.
fn command(method: &Method, path: &str, body: &Bytes, shared: &Arc<Mutex<Kept>>) -> (u16, Value) {
    let mut guard = shared.lock().unwrap();
    let kept = &mut *guard;
    let parsed: Value = serde_json::from_slice(body).unwrap_or_default();
    let parts: Vec<_> = path.split('/').collect();
    match (method.as_str(), parts.as_slice()) {
        ("HEAD", ["blobs", digest]) => {
            (if kept.blobs.contains_key(*digest) { 200 } else { 404 }, Value::Null)
        }
        ("PUT", ["blobs", digest]) => {
            kept.blobs.insert((*digest).to_owned(), body.clone());
            (201, Value::Null)
        }
        ("POST", ["revisions"]) => prepare(kept, parsed["source"]["uploaded"].as_str().unwrap_or_default()),
        ("GET", ["apps", name]) => match kept.apps.get(*name).filter(|app| app.state.stable.is_some()) {
            Some(app) => (200, status(app, kept.fault)),
            None => (404, json!({ "title": "app-not-found" })),
        },
        ("GET", ["apps", name, _]) => {
            let of = |entry: &&Value| entry["app"] == *name;
            (200, kept.history.iter().rev().filter(of).cloned().collect())
        }
        ("DELETE", ["apps", name]) => change(kept, shared, name, |_| Some(State::absent())),
        ("POST", ["apps", name, "rollout"]) => change(kept, shared, name, |app| started(app, &parsed)),
        ("POST", ["apps", name, "rollout", verb]) => {
            change(kept, shared, name, |app| commanded(app, verb, &parsed))
        }
        _ => (404, Value::Null),
    }
}

fn prepare(kept: &mut Kept, digest: &str) -> (u16, Value) {
    let blob = |digest: &str| serde_json::from_slice::<Value>(kept.blobs.get(digest)?).ok();
    let config = blob(digest).and_then(|manifest| blob(manifest["config"]["digest"].as_str()?));
    let config = config.unwrap_or_default();
    let label =
        config["components"][0]["env"]["REVISION"].as_str().and_then(|label| label.parse::<u32>().ok());
    let (Some(name), Some(label)) = (config["metadata"]["name"].as_str(), label) else {
        return (400, json!({ "title": "invalid" }));
    };
    let app = kept.apps.entry(name.to_owned()).or_default();
    let revision = app.revisions.keys().max().copied().unwrap_or_default() + 1;
    app.revisions.insert(revision, (digest.to_owned(), label));
    let prepared = json!({
        "app": name, "revision": revision, "digest": digest, "unchanged": false, "live": false
    });
    (200, json!({ "event": "ready", "prepared": prepared }))
}

fn started(app: &mut App, start: &Value) -> Option<State> {
    let revision = start["revision"].as_u64()?;
    let weights = start["plan"]["steps"].as_array().into_iter().flatten();
    app.steps = weights.filter_map(|step| Some(step["set_weight"].as_u64()? as u16 * 100)).collect();
    app.step = 0;
    if start["plan"]["strategy"] == "manual" {
        app.steps.insert(0, 0);
    }
    match (app.steps.first(), app.state.stable) {
        (Some(weight), Some(_)) => {
            Some(app.state.with(revision, &app.revisions.get(&revision)?.0, *weight, true))
        }
        _ => Some(State::stable(revision)),
    }
}

fn commanded(app: &mut App, verb: &str, command: &Value) -> Option<State> {
    let candidate = app.state.candidate.clone();
    match (verb, candidate) {
        ("pause" | "resume", _) => Some(app.state.clone()),
        ("rollback", Some(_)) => app.state.stable.map(State::stable),
        ("rollback", None) => command["revision"].as_u64().map(State::stable),
        ("promote", Some(candidate)) => {
            app.step += 1;
            match app.steps.get(app.step).filter(|_| command["full"] != true) {
                Some(weight) => Some(app.state.at(*weight)),
                None => Some(State::stable(candidate.revision)),
            }
        }
        _ => None,
    }
}

fn change(
    kept: &mut Kept,
    shared: &Arc<Mutex<Kept>>,
    name: &str,
    to: impl FnOnce(&mut App) -> Option<State>,
) -> (u16, Value) {
    let fault = kept.fault;
    let Some(app) = kept.apps.get_mut(name) else { return (404, json!({ "title": "app-not-found" })) };
    let Some(state) = to(app) else { return (409, json!({ "title": "busy" })) };
    app.former = std::mem::replace(&mut app.state, state.clone());
    let lingers = fault == Fault::Lingers && state.stable.is_none();
    if fault == Fault::LateChange || lingers {
        let (shared, name) = (Arc::clone(shared), name.to_owned());
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(20)).await;
            if let Some(app) = shared.lock().unwrap().apps.get_mut(&name) {
                app.serves = state;
            }
        });
    } else {
        app.serves = state;
    }
    let id = kept.history.len() + 1;
    kept.history.push(json!({ "id": id, "app": name, "event": "changed" }));
    (200, json!({}))
}

fn status(app: &App, fault: Fault) -> Value {
    let weight = |revision: u64| match (&app.state.candidate, app.state.stable) {
        (Some(candidate), _) if candidate.revision == revision => {
            candidate.weight + u16::from(fault == Fault::TellsOtherWeight)
        }
        (Some(candidate), Some(stable)) if stable == revision => WHOLE - candidate.weight,
        (None, Some(stable)) if stable == revision => WHOLE,
        _ => 0,
    };
    let revisions = app.revisions.iter().map(|(revision, (digest, _))| {
        json!({ "revision": revision, "digest": digest, "weight": weight(*revision) })
    });
    let phase = if app.state.candidate.is_some() { "paused" } else { "succeeded" };
    json!({
        "stable": app.state.stable,
        "rollout": {
            "phase": phase,
            "candidate": app.state.candidate.as_ref().map(|candidate| candidate.revision),
        },
        "revisions": revisions.collect::<Vec<_>>(),
    })
}
