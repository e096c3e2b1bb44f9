//! The API over real connections, in front of a control plane that only remembers.

use std::net::SocketAddr;
use std::time::Instant;

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::listen::{Bound, Listening};
use super::*;
use crate::config::{Config, Secret};
use crate::control::client::{Client, ClientError, To};
use crate::control::wire::Refusal;
use fake::Fake;

mod blobs;
mod description;
mod fake;
mod schema;
mod streams;
mod tls;

const DEPLOY: &str = "a-token-that-may-deploy";
const READ: &str = "a-token-that-may-only-read";

/// A host that serves a fake.
struct Host {
    fake: Arc<Fake>,
    listening: Listening,
    folder: TempDir,
}

/// A host with a token for each scope.
async fn host() -> Host {
    host_with(|_| {}, WAITS).await
}

async fn host_with(change: impl FnOnce(&mut Config), waits: Waits) -> Host {
    let folder = tempfile::tempdir().unwrap();
    let settings = folder.path().join("host.toml");
    std::fs::write(folder.path().join("deploy"), format!("{DEPLOY}\n")).unwrap();
    std::fs::write(folder.path().join("read"), READ).unwrap();
    let text = "[control]\nlisten = \"127.0.0.1:0\"\n[control.tokens.deployer]\ntoken_file = \"deploy\"\n\
                scopes = [\"deploy\"]\n[control.tokens.reader]\ntoken_file = \"read\"\nscopes = [\"read\"]\n\
                [registry]\nmax_artifact_mib = 8\n";
    std::fs::write(&settings, text).unwrap();
    let mut config = Config::load(Some(&settings)).unwrap();
    change(&mut config);
    let mut bound = Bound::bind(&config, &folder.path().join("state")).await.unwrap();
    bound.waits = waits;
    let fake = Arc::new(Fake::new(folder.path()));
    let listening = bound.serve(Arc::clone(&fake) as Arc<dyn Control>);
    Host { fake, listening, folder }
}

impl Host {
    fn address(&self) -> SocketAddr {
        self.listening.address.unwrap()
    }

    fn client(&self, token: &str) -> Client {
        let to: To = format!("http://{}", self.address()).parse().unwrap();
        Client::new(&to, Some(&Secret(token.to_owned()))).unwrap()
    }

    fn local(&self) -> Client {
        Client::new(&To::Socket(self.listening.socket.clone().unwrap()), None).unwrap()
    }

    /// Sends text as it is, and answers with the status and the whole answer. `token` may be empty.
    async fn ask(&self, start: &str, token: &str, rest: &str) -> (u16, String) {
        let show =
            if token.is_empty() { String::new() } else { format!("authorization: Bearer {token}\r\n") };
        let text = format!("{start} HTTP/1.1\r\nhost: h\r\nconnection: close\r\n{show}{rest}");
        let text = if rest.contains("\r\n\r\n") { text } else { format!("{text}\r\n") };
        let mut stream = TcpStream::connect(self.address()).await.unwrap();
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let reading = timeout(Duration::from_secs(60), stream.read_to_end(&mut answer)).await;
        reading.expect("an answer comes, or the connection ends").unwrap();
        let answer = String::from_utf8(answer).unwrap();
        let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
        (status.unwrap_or_else(|| panic!("no answer: {answer:?}")), answer)
    }

    /// Posts JSON, and answers with the status and the error's name, or the body.
    async fn post(&self, path: &str, body: &str) -> (u16, String) {
        let rest = format!("content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        let (status, answer) = self.ask(&format!("POST {path}"), DEPLOY, &rest).await;
        (status, named(&answer))
    }
}

/// The error's name in an answer; the body where it is none.
fn named(answer: &str) -> String {
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    serde_json::from_str::<Refusal>(body).map_or_else(|_| body.to_owned(), |refusal| refusal.title)
}

fn refused(error: &ClientError) -> &str {
    &error.refusal().unwrap_or_else(|| panic!("{error}")).title
}

fn prepare(reference: &str) -> Prepare {
    Prepare {
        source: Source::Reference(format!("registry.example/team/{reference}:1")),
        variables: std::collections::BTreeMap::new(),
        allow_incompatible: false,
        allow_capabilities: false,
        skip_samples: false,
        message: None,
    }
}

fn start_of(revision: u64) -> Start {
    Start { revision, plan: fake::rollout().plan, message: Some("by hand".to_owned()) }
}

#[tokio::test]
async fn a_client_may_ask_for_everything_over_tcp_and_over_the_socket() {
    let host = host().await;
    for (client, signed) in [
        (host.client(DEPLOY), "by the token `deployer`".to_owned()),
        (host.local(), format!("over the local socket, by user {}", rustix::process::geteuid().as_raw())),
    ] {
        assert_eq!(client.status().await.unwrap().apps, [fake::app("digits")]);
        assert_eq!(client.app("digits").await.unwrap(), fake::app("digits"));
        let mut lines = Vec::new();
        let prepared = client.prepare(&prepare("ok"), |line| lines.push(line.clone())).await.unwrap();
        assert_eq!((prepared.app.as_str(), prepared.revision), ("digits", 2));
        let begun = Progress::Begun { step: "fetch".to_owned() };
        assert_eq!(lines, [begun, Progress::Done { step: "fetch".to_owned(), took_ms: 1.5 }]);
        assert_eq!(client.start("digits", &start_of(2)).await.unwrap(), fake::rollout());
        let message = Some("enough".to_owned());
        client.promote("a.b-c_D", &Command { full: true, message, ..Command::default() }).await.unwrap();
        client.pause("digits", &Command::default()).await.unwrap();
        client.resume("digits", &Command::default()).await.unwrap();
        client.rollback("digits", &Command { revision: Some(1), ..Command::default() }).await.unwrap();
        client.discard("digits", 3).await.unwrap();
        client.remove("digits").await.unwrap();
        assert_eq!(
            host.fake.done(),
            [
                format!("prepare ok:1 {signed}"),
                "start digits 2 by hand".to_owned(),
                "promote a.b-c_D true None enough".to_owned(),
                format!("pause digits false None {signed}"),
                format!("resume digits false None {signed}"),
                format!("rollback digits false Some(1) {signed}"),
                "discard digits 3".to_owned(),
                "remove digits".to_owned(),
            ]
        );
        let page = client.history("digits", Some(10), 3).await.unwrap();
        assert_eq!(page.iter().map(|entry| entry.id).collect::<Vec<_>>(), [9, 8, 7]);
        assert_eq!(client.shadow("digits").await.unwrap().candidate, Some(2));
        let error = client.app("missing").await.unwrap_err();
        assert_eq!(refused(&error), "app-not-found");
        assert!(error.to_string().contains("there is no app `missing` here"), "{error}");
        assert_eq!(refused(&client.app("../status").await.unwrap_err()), "app-not-found");
    }
}

#[tokio::test]
async fn tokens_open_what_their_scopes_say_and_nothing_else_opens_anything() {
    let host = host().await;
    let check = async |start: &str, token: &str, expected: u16| {
        let (status, answer) = host.ask(start, token, "content-length: 0\r\n").await;
        assert_eq!(status, expected, "{start} {token}: {answer}");
        answer
    };
    check("GET /v1/health", "", 200).await;
    check("GET /v1/health", "a wrong one", 200).await;
    check("GET /v1/status", READ, 200).await;
    check("GET /v1/status", DEPLOY, 200).await;
    check("GET /v1/openapi.json", READ, 200).await;
    check("GET /v1/nothing", READ, 404).await;
    for start in ["DELETE /v1/apps/digits", "POST /v1/apps/digits/rollout/pause", "POST /v1/revisions"] {
        assert_eq!(named(&check(start, READ, 403).await), "forbidden");
    }
    check("POST /v1/apps/digits/rollout/pause", DEPLOY, 200).await;
    // Whoever has no token learns nothing of what there is.
    let mut answers = std::collections::BTreeSet::new();
    for start in ["GET /v1/status", "GET /v1/nothing", "BREW /", "DELETE /v1/apps/digits", "POST /v1/health"]
    {
        let answer = check(start, "", 401).await;
        assert!(answer.contains("www-authenticate: Bearer"), "{answer}");
        assert!(answer.contains("connection: close"), "{answer}");
        answers.insert(answer.split_once("\r\n\r\n").unwrap().1.to_owned());
        for wrong in [&DEPLOY[1..], "x", &DEPLOY.to_uppercase(), &"y".repeat(5000)] {
            assert_eq!(named(&check(start, wrong, 401).await), "unauthorized");
        }
    }
    assert_eq!(answers.len(), 1, "{answers:?}");
    // Other ways to show a token are none.
    for rest in [
        format!("authorization: Basic {DEPLOY}\r\n"),
        format!("authorization: {DEPLOY}\r\n"),
        format!("x-token: {DEPLOY}\r\n"),
        format!("cookie: token={DEPLOY}\r\n"),
        "authorization: Bearer \u{e9}\r\n".to_owned(),
    ] {
        assert_eq!(host.ask("GET /v1/status", "", &rest).await.0, 401, "{rest}");
    }
    assert_eq!(host.ask(&format!("GET /v1/status?token={DEPLOY}"), "", "").await.0, 401);
    assert_eq!(host.fake.done().len(), 1);
}

#[tokio::test]
async fn a_host_without_tokens_says_how_to_make_one_and_serves_its_own_user() {
    let host = host_with(|config| config.control.tokens.clear(), WAITS).await;
    let (status, answer) = host.ask("GET /v1/status", DEPLOY, "").await;
    assert_eq!(status, 401);
    assert!(answer.contains("[control.tokens.NAME]"), "{answer}");
    assert!(!host.listening.has_tokens);
    host.local().status().await.unwrap();
}

#[tokio::test]
async fn what_is_off_is_not_served() {
    let host = host_with(|config| config.control.listen = None, WAITS).await;
    assert_eq!(host.listening.address, None);
    host.local().status().await.unwrap();
    let host = host_with(|config| config.control.socket = crate::config::Socket::Off, WAITS).await;
    assert_eq!(host.listening.socket, None);
    assert!(!host.folder.path().join("state/tenon.sock").exists());
    host.client(READ).status().await.unwrap();
}

#[tokio::test]
async fn addresses_and_files_that_cannot_be_had_are_named() {
    let host = host().await;
    let check = async |change: &dyn Fn(&mut Config), expected: &str| {
        let mut config = Config::default();
        config.control.listen = None;
        config.control.socket = crate::config::Socket::Off;
        change(&mut config);
        let bound = Bound::bind(&config, &host.folder.path().join("state")).await;
        let error = bound.map(drop).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    check(&|c| c.control.listen = Some(host.address()), "stop what listens there").await;
    check(&|c| c.control.listen = Some("0.0.0.0:0".parse().unwrap()), "could read its tokens").await;
    check(&|c| c.control.socket = crate::config::Socket::InState, "is listening on").await;
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_with_its_reason() {
    let host = host().await;
    let check = async |path: &str, body: &str, expected: (u16, &str)| {
        let (status, name) = host.post(path, body).await;
        assert_eq!((status, name.as_str()), expected, "{path} {body}");
    };
    let invalid = (400, "invalid");
    let reference = json!({"source": {"reference": "registry.example/a/b:1"}}).to_string();
    for body in [
        "",
        " ",
        "{",
        "[]",
        "null",
        "{}",
        "{\"source\":{}}",
        "{\"source\":{\"reference\":\"a b\"}}",
        "{\"source\":{\"reference\":\"registry.example/a/b\",\"uploaded\":\"x\"}}",
        "{\"source\":{\"uploaded\":\"sha256:00\"}}",
        "{\"source\":{\"path\":\"/etc/passwd\"}}",
        &reference.replace('}', ",\"allow_all\":true}"),
        &format!("{reference} {reference}"),
        &format!("{}{}", "[".repeat(100_000), "]".repeat(100_000)),
        &json!({"source": {"reference": "registry.example/a/b:1"}, "message": "x".repeat(2001)}).to_string(),
    ] {
        check("/v1/revisions", body, invalid).await;
    }
    check("/v1/apps/digits/rollout", "{\"revision\":-1,\"plan\":{}}", invalid).await;
    check("/v1/apps/digits/rollout", "{\"revision\":1}", invalid).await;
    check("/v1/apps/digits/rollout/pause", "{\"full\":true}", invalid).await;
    check("/v1/apps/digits/rollout/promote", "{\"revision\":1}", invalid).await;
    check("/v1/apps/digits/rollout/rollback", "{\"full\":true}", invalid).await;
    check("/v1/apps/digits/rollout/pause?now=1", "{}", invalid).await;
    check("/v1/apps/digits/rollout/stop", "{}", (404, "path-not-found")).await;
    check("/v1/status", "{}", (405, "wrong-method")).await;
    check("/v1/apps/panics/rollout/pause", "{}", (500, "internal")).await;
    check("/v1/apps/missing/rollout/pause", "", (404, "app-not-found")).await;
    let (_, answer) = host.ask("PATCH /v1/apps/digits", DEPLOY, "").await;
    assert!(answer.contains("allow: GET, DELETE\r\n"), "{answer}");
    assert!(answer.contains("content-type: application/problem+json"), "{answer}");
    for (media_type, expected) in [
        ("text/plain", 415),
        ("application/x-www-form-urlencoded", 415),
        ("application/json; charset=utf-8", 200),
        ("APPLICATION/JSON", 200),
    ] {
        let rest = format!("content-type: {media_type}\r\ncontent-length: 2\r\n\r\n{{}}");
        let (status, _) = host.ask("POST /v1/apps/digits/rollout/pause", DEPLOY, &rest).await;
        assert_eq!(status, expected, "{media_type}");
    }
    for query in ["limit=0", "limit=1001", "limit=x", "before=-1", "after=1", "limit"] {
        let (status, _) = host.ask(&format!("GET /v1/apps/digits/history?{query}"), READ, "").await;
        assert_eq!(status, 400, "{query}");
    }
    let (status, answer) = host.ask("GET /v1/apps/digits/history", READ, "").await;
    let page: Value = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
    assert_eq!((status, page.as_array().unwrap().len()), (200, 100));
    host.fake.done();
}

#[tokio::test]
async fn bodies_that_are_too_long_or_too_slow_are_cut_off() {
    let host = host_with(|_| {}, Waits { json: Duration::from_millis(200), ..WAITS }).await;
    let post = "POST /v1/apps/digits/rollout/pause";
    let json = "content-type: application/json\r\n";
    // By its length alone: nothing of it was sent.
    let rest = format!("{json}content-length: 1048577\r\n\r\n");
    let (status, answer) = host.ask(post, DEPLOY, &rest).await;
    assert_eq!((status, named(&answer).as_str()), (413, "too-large"));
    let chunk = format!("{:x}\r\n{}\r\n", 1 << 20, " ".repeat(1 << 20));
    let rest = format!("{json}transfer-encoding: chunked\r\n\r\n{chunk}{chunk}0\r\n\r\n");
    let (status, answer) = host.ask(post, DEPLOY, &rest).await;
    assert_eq!((status, named(&answer).as_str()), (413, "too-large"));
    // As long as may be.
    let body = format!("{{}}{}", " ".repeat((1 << 20) - 2));
    assert_eq!(host.post("/v1/apps/digits/rollout/pause", &body).await.0, 200);
    let begun = Instant::now();
    let (status, answer) = host.ask(post, DEPLOY, &format!("{json}content-length: 3\r\n\r\n{{}}")).await;
    assert_eq!((status, named(&answer).as_str()), (408, "slow-body"));
    assert!(begun.elapsed() < Duration::from_secs(5));
    // Nobody reads what a stranger sends.
    let rest = format!("{json}content-length: 1000000000\r\n\r\n{{}}");
    assert_eq!(host.ask(post, "", &rest).await.0, 401);
    assert_eq!(host.fake.done().len(), 1);
}

#[tokio::test]
async fn what_was_asked_for_is_done_though_its_caller_leaves() {
    let host = host().await;
    let call = "POST /v1/apps/slow/rollout/promote HTTP/1.1\r\nhost: h\r\ncontent-length: 0\r\n";
    let mut stream = TcpStream::connect(host.address()).await.unwrap();
    stream.write_all(format!("{call}authorization: Bearer {DEPLOY}\r\n\r\n").as_bytes()).await.unwrap();
    until(|| host.listening.calls_under_way() == 1).await;
    drop(stream);
    tokio::time::sleep(Duration::from_millis(50)).await;
    host.fake.gate.add_permits(1);
    until(|| host.listening.calls_under_way() == 0).await;
    assert_eq!(host.fake.done(), ["promote slow false None by the token `deployer`"]);
}

#[tokio::test]
async fn nobody_is_kept_waiting_for_long_and_what_was_asked_for_goes_on() {
    let host = host_with(|_| {}, Waits { answer: Duration::from_millis(50), ..WAITS }).await;
    let error = host.client(DEPLOY).pause("slow", &Command::default()).await.unwrap_err();
    assert_eq!(refused(&error), "unfinished");
    host.fake.gate.add_permits(1);
    until(|| host.listening.calls_under_way() == 0).await;
    assert_eq!(host.fake.done(), ["pause slow false None by the token `deployer`"]);
}

/// Waits until something is so, for it will be.
async fn until(is_so: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < Duration::from_secs(20), "it never is");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn at_its_end_the_host_takes_nothing_new_and_finishes_what_runs() {
    let host = host().await;
    let client = host.client(DEPLOY);
    let asking = client.clone();
    let slow = tokio::spawn(async move { asking.promote("slow", &Command::default()).await });
    let asking = client.clone();
    let preparing = tokio::spawn(async move { asking.prepare(&prepare("slow"), |_| {}).await });
    until(|| host.listening.calls_under_way() == 2).await;
    host.listening.drain();
    assert_eq!(refused(&client.pause("digits", &Command::default()).await.unwrap_err()), "draining");
    client.status().await.unwrap();
    let Host { fake, listening, folder: _folder } = host;
    let stopping = tokio::spawn(listening.stop(Duration::from_secs(20)));
    tokio::time::sleep(Duration::from_millis(50)).await;
    fake.gate.add_permits(2);
    assert!(stopping.await.unwrap());
    slow.await.unwrap().unwrap();
    preparing.await.unwrap().unwrap();
    assert!(matches!(client.status().await, Err(ClientError::Unreachable { .. })));
}

#[tokio::test]
async fn an_end_that_does_not_come_is_not_waited_for() {
    let Host { fake: _fake, listening, folder: _folder } = {
        let host = host().await;
        let client = host.client(DEPLOY);
        tokio::spawn(async move { client.promote("slow", &Command::default()).await });
        until(|| host.listening.calls_under_way() == 1).await;
        host
    };
    assert!(!listening.stop(Duration::from_millis(50)).await);
}

#[tokio::test]
async fn one_address_cannot_keep_all_others_out() {
    let host = host().await;
    let mut idle = Vec::new();
    for _ in 0..100 {
        idle.push(TcpStream::connect(host.address()).await.unwrap());
    }
    // Those beyond its share are ended at once, before a word.
    let mut ended = 0;
    for stream in &mut idle {
        let mut byte = [0];
        let read = tokio::time::timeout(Duration::from_millis(20), stream.read(&mut byte)).await;
        ended += usize::from(matches!(read, Ok(Ok(0) | Err(_))));
    }
    assert_eq!(ended, 36);
    let elsewhere = tokio::net::TcpSocket::new_v4().unwrap();
    elsewhere.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let mut stream = elsewhere.connect(host.address()).await.unwrap();
    stream.write_all(b"GET /v1/health HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    drop(idle);
    until(|| std::net::TcpStream::connect(host.address()).is_ok()).await;
}
