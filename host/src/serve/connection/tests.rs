//! Connections on a port of their own: who is served, who is cut, and when.

use std::net::SocketAddr;

use http::header::CONTENT_LENGTH;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::TokioExecutor;
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::sleep;

use super::*;

const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(100);
const ROOMY: ConnectionLimits = ConnectionLimits { header_read: LONG, answer_stall: LONG, idle: LONG };

/// Serves what [`answer`] says.
struct Host {
    address: SocketAddr,
    stop: watch::Sender<bool>,
    /// How each connection ended.
    ended: mpsc::UnboundedReceiver<Result<(), ConnectionError>>,
    /// What becomes of each request.
    requests: mpsc::UnboundedReceiver<Fate>,
}

#[derive(Debug, PartialEq)]
enum Fate {
    Begun,
    Answered,
    Dropped,
}

struct Running(mpsc::UnboundedSender<Fate>, Fate);

impl Running {
    fn begin(fates: &mpsc::UnboundedSender<Fate>) -> Running {
        let _ = fates.send(Fate::Begun);
        Running(fates.clone(), Fate::Dropped)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.send(std::mem::replace(&mut self.1, Fate::Dropped));
    }
}

async fn start(limits: ConnectionLimits) -> Host {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let connections = Arc::new(Connections::new(limits, None));
    let (stop, closing) = watch::channel(false);
    let (end, ended) = mpsc::unbounded_channel();
    let (fates, requests) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (connections, closing, end, fates) =
                (Arc::clone(&connections), closing.clone(), end.clone(), fates.clone());
            tokio::spawn(async move {
                let answer = move |request| answer(request, Running::begin(&fates));
                let _ = end.send(connections.serve(stream, answer, closing).await);
            });
        }
    });
    Host { address, stop, ended, requests }
}

type Answer = Response<UnsyncBoxBody<Bytes, hyper::Error>>;

async fn answer(request: Request<Incoming>, mut running: Running) -> Result<Answer, Infallible> {
    assert!(request.uri().scheme().is_none() && request.uri().authority().is_none());
    let text = match request.uri().path() {
        "/host" => Bytes::copy_from_slice(request.headers()[HOST].as_bytes()),
        "/big" => big(),
        "/never" => std::future::pending().await,
        "/slow" => {
            sleep(SHORT * 3).await;
            Bytes::from_static(b"slow")
        }
        "/echo" => {
            running.1 = Fate::Answered;
            return Ok(Response::new(request.into_body().boxed_unsync()));
        }
        _ => Bytes::from_static(b"hello"),
    };
    running.1 = Fate::Answered;
    Ok(Response::new(Full::new(text).map_err(|never| match never {}).boxed_unsync()))
}

fn big() -> Bytes {
    (0..(1 << 20) + 1).map(|n: u32| n.to_le_bytes()[(n % 3) as usize]).collect()
}

impl Host {
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    async fn http2(&self) -> SendRequest<Full<Bytes>> {
        let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
        builder.initial_stream_window_size(1 << 16).initial_connection_window_size(1 << 20);
        let stream = TokioIo::new(self.connect().await);
        let (sender, connection) = builder.handshake(stream).await.unwrap();
        tokio::spawn(connection);
        sender
    }
}

fn request(method: Method, path: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    let uri = format!("http://tenon.test:80{path}");
    Request::builder().method(method).uri(uri).body(Full::new(body.into())).unwrap()
}

async fn get(sender: &mut SendRequest<Full<Bytes>>, path: &str) -> hyper::Result<Bytes> {
    let response = sender.send_request(request(Method::GET, path, "")).await?;
    Ok(response.into_body().collect().await?.to_bytes())
}

/// A connection of HTTP/2 whose caller says its settings and nothing else.
async fn mute(host: &Host) -> TcpStream {
    let mut stream = host.connect().await;
    stream.write_all(PREFACE).await.unwrap();
    stream.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
    stream
}

#[tokio::test]
async fn one_port_speaks_both() {
    let host = start(ROOMY).await;
    let mut sender = host.http2().await;
    assert_eq!(get(&mut sender, "/").await.unwrap(), "hello");
    assert_eq!(get(&mut sender, "/host").await.unwrap(), "tenon.test:80");
    assert_eq!(get(&mut sender, "/big").await.unwrap(), big());
    let long = request(Method::POST, "/echo", big());
    let echoed = sender.send_request(long).await.unwrap().into_body().collect().await.unwrap();
    assert_eq!(echoed.to_bytes(), big());
    // The preface begins as these do.
    for method in ["GET", "POST", "PRI", "P", "PRI * HTTP/2.0\r\n\r\nSM\r\n\rX"] {
        let mut stream = host.connect().await;
        let head = format!("{method} /host HTTP/1.1\r\nhost: one\r\nconnection: close\r\n\r\n");
        for part in head.as_bytes().chunks(5) {
            stream.write_all(part).await.unwrap();
            tokio::task::yield_now().await;
        }
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        let expected = if method.len() > 4 { "HTTP/1.1 400 " } else { "HTTP/1.1 200 OK\r\n" };
        assert!(text.starts_with(expected), "{method}: {text}");
    }
}

#[tokio::test]
async fn an_answer_to_head_has_no_body() {
    let host = start(ROOMY).await;
    let mut sender = host.http2().await;
    let head = sender.send_request(request(Method::HEAD, "/big", "")).await.unwrap();
    assert_eq!(head.headers()[CONTENT_LENGTH], (big().len()).to_string());
    assert!(head.into_body().collect().await.unwrap().to_bytes().is_empty());
    assert_eq!(get(&mut sender, "/").await.unwrap(), "hello");
}

#[tokio::test]
async fn requests_on_one_connection_do_not_wait_for_each_other() {
    let host = start(ROOMY).await;
    let mut sender = host.http2().await;
    let mut first = sender.clone();
    let never = tokio::spawn(async move { get(&mut first, "/never").await });
    for _ in 0..3 {
        assert_eq!(get(&mut sender, "/").await.unwrap(), "hello");
    }
    assert!(!never.is_finished());
}

#[tokio::test]
async fn who_does_not_begin_is_cut() {
    let mut host = start(ConnectionLimits { header_read: SHORT, ..ROOMY }).await;
    for begin in [&b""[..], b"PRI * HT", PREFACE, b"GET / HTTP/1.1\r\n"] {
        let mut stream = host.connect().await;
        stream.write_all(begin).await.unwrap();
        let begun = Instant::now();
        stream.read_to_end(&mut Vec::new()).await.unwrap();
        assert!(begun.elapsed() >= SHORT / 2 && begun.elapsed() < LONG / 2, "{begin:?}");
        assert!(host.ended.recv().await.unwrap().is_err(), "{begin:?}");
    }
    mute(&host).await.read_to_end(&mut Vec::new()).await.unwrap();
    assert!(matches!(host.ended.recv().await.unwrap(), Err(ConnectionError::Unending)));
    drop(host.connect().await);
    assert!(host.ended.recv().await.unwrap().is_ok(), "who leaves has done nothing wrong");
}

#[tokio::test]
async fn an_idle_connection_is_closed_and_a_busy_one_is_not() {
    let mut host = start(ConnectionLimits { idle: SHORT, ..ROOMY }).await;
    let mut sender = host.http2().await;
    assert_eq!(get(&mut sender, "/slow").await.unwrap(), "slow", "it takes longer than that");
    assert!(host.ended.recv().await.unwrap().is_ok());
    assert!(get(&mut sender, "/").await.is_err());
}

#[tokio::test]
async fn the_end_waits_for_what_runs_and_no_longer() {
    let mut host = start(ConnectionLimits { header_read: SHORT * 4, ..ROOMY }).await;
    let (mut busy, mut quiet) = (host.http2().await, mute(&host).await);
    let slow = tokio::spawn(async move { get(&mut busy, "/slow").await });
    assert_eq!(host.requests.recv().await, Some(Fate::Begun));
    host.stop.send_replace(true);
    assert_eq!(slow.await.unwrap().unwrap(), "slow");
    assert!(host.ended.recv().await.unwrap().is_ok());
    assert!(matches!(host.ended.recv().await.unwrap(), Err(ConnectionError::Unending)));
    let mut told = Vec::new();
    quiet.read_to_end(&mut told).await.unwrap();
    assert!(told.windows(5).any(|frame| frame == [0, 0, 8, 7, 0]), "it was told with GOAWAY: {told:?}");
}

#[tokio::test]
async fn an_answer_that_is_not_taken_is_reset_and_the_others_go_on() {
    let host = start(ConnectionLimits { answer_stall: SHORT * 5, ..ROOMY }).await;
    let mut sender = host.http2().await;
    let untaken = sender.send_request(request(Method::GET, "/big", "")).await.unwrap();
    for _ in 0..7 {
        sleep(SHORT).await;
        assert_eq!(get(&mut sender, "/").await.unwrap(), "hello");
    }
    assert!(untaken.into_body().collect().await.is_err(), "it was given up");
    let slowly = sender.send_request(request(Method::GET, "/big", "")).await.unwrap();
    let (mut body, mut length) = (slowly.into_body(), 0);
    while let Some(frame) = body.frame().await {
        length += frame.unwrap().data_ref().map_or(0, Bytes::len);
        sleep(SHORT / 20).await;
    }
    assert_eq!(length, big().len());
}

#[tokio::test]
async fn a_request_ends_with_its_connection_or_its_caller() {
    let mut host = start(ROOMY).await;
    let mut sender = host.http2().await;
    let never = |mut sender: SendRequest<Full<Bytes>>| {
        tokio::spawn(async move { sender.send_request(request(Method::GET, "/never", "")).await })
    };
    let taken_back = never(sender.clone());
    assert_eq!(host.requests.recv().await, Some(Fate::Begun));
    taken_back.abort();
    assert_eq!(host.requests.recv().await, Some(Fate::Dropped));
    assert_eq!(get(&mut sender, "/").await.unwrap(), "hello");
    assert_eq!(host.requests.recv().await, Some(Fate::Begun));
    assert_eq!(host.requests.recv().await, Some(Fate::Answered));
    let left = never(sender);
    assert_eq!(host.requests.recv().await, Some(Fate::Begun));
    left.abort();
    assert_eq!(host.requests.recv().await, Some(Fate::Dropped));
    assert!(host.ended.recv().await.unwrap().is_ok());
}

/// As a host does whose time to drain is over.
#[tokio::test]
async fn a_request_ends_when_its_connection_is_dropped() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (fates, mut requests) = mpsc::unbounded_channel();
    let (_stop, closing) = watch::channel(false);
    let (accepted, _) = listener.accept().await.unwrap();
    let serving = tokio::spawn(async move {
        let answer = move |request| answer(request, Running::begin(&fates));
        Connections::new(ROOMY, None).serve(accepted, answer, closing).await
    });
    let shaken = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
    let (mut sender, connection) = shaken.unwrap();
    tokio::spawn(connection);
    let asked = tokio::spawn(async move { get(&mut sender, "/never").await });
    assert_eq!(requests.recv().await, Some(Fate::Begun));
    serving.abort();
    assert_eq!(requests.recv().await, Some(Fate::Dropped));
    assert!(asked.await.unwrap().is_err());
}

#[tokio::test]
async fn a_head_that_is_too_long_is_refused() {
    let host = start(ROOMY).await;
    let mut sender = host.http2().await;
    let mut long = request(Method::GET, "/", "");
    long.headers_mut().insert("x-long", HeaderValue::from_str(&"x".repeat(20_000)).unwrap());
    let refused = sender.send_request(long).await.unwrap();
    assert_eq!(refused.status(), 431);
    assert_eq!(get(&mut sender, "/").await.unwrap(), "hello");
}
