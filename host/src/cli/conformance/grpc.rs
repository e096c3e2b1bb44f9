//! Calls over gRPC to a server that is not trusted: frames and trailers as they are, within bounds.
//!
//! No client library stands between, so that broken messages can be sent, and each part of an answer be looked at.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::{Buf, Bytes};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tokio::runtime::Runtime;

use super::check::{Problem, Verdict, excerpt};
use super::server::Server;

pub(super) mod infer;
pub(super) mod refusal;
pub(super) mod server;

/// The protocol's messages, as the build makes them from `host/proto`.
mod pb {
    #![allow(clippy::all, unreachable_pub, dead_code, reason = "made by the build, of which not all is used")]
    include!(concat!(env!("OUT_DIR"), "/inference.rs"));
}

/// The longest answer that is read, in bytes.
const MAX_ANSWER: usize = 16 << 20;

/// After so many calls in a row without an answer, no more are made.
const PATIENCE: u32 = 5;

/// Codes of gRPC that are looked for.
pub(super) const OK: u32 = 0;
pub(super) const CANCELLED: u32 = 1;
pub(super) const INVALID_ARGUMENT: u32 = 3;
pub(super) const DEADLINE_EXCEEDED: u32 = 4;
pub(super) const NOT_FOUND: u32 = 5;
pub(super) const UNIMPLEMENTED: u32 = 12;

/// The service of the protocol, with a slash on both sides.
const SERVICE: &str = "/inference.GRPCInferenceService/";

/// A server's address for gRPC, and a connection to it.
pub(super) struct Grpc {
    runtime: Runtime,
    address: String,
    timeout: Duration,
    sender: Mutex<Option<SendRequest<Full<Bytes>>>>,
    silent: AtomicU32,
}

/// What a server answered to one call.
#[derive(Clone, Debug)]
pub(super) struct Reply {
    pub(super) content_type: String,
    pub(super) messages: Vec<Bytes>,
    pub(super) status: Status,
}

/// How a call ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Status {
    pub(super) code: u32,
    pub(super) message: String,
}

impl Status {
    /// What a person is shown.
    pub(super) fn told(&self) -> String {
        let name = NAMES.get(self.code as usize).copied().unwrap_or("a code that is none");
        if self.message.is_empty() { name.to_owned() } else { format!("{name}: {}", self.message) }
    }

    /// The code must be this one.
    pub(super) fn expect(&self, code: u32) -> Verdict {
        match self.code == code {
            true => Ok(()),
            false => Err(Problem::wrong(NAMES[code as usize], self.told())),
        }
    }

    /// The call must have failed.
    pub(super) fn refused(&self) -> Verdict {
        if self.code == OK { Err(Problem::wrong("any code but OK", "OK")) } else { Ok(()) }
    }
}

const NAMES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

impl Grpc {
    /// A connection to the server at `address`, `host:port`, whose answers may take `timeout`.
    ///
    /// # Errors
    /// There is no server of HTTP/2 in clear text.
    pub(super) fn connect(address: &str, timeout: Duration) -> anyhow::Result<Grpc> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let (sender, silent) = (Mutex::new(None), AtomicU32::new(0));
        let grpc = Grpc { runtime, address: address.to_owned(), timeout, sender, silent };
        let reply = grpc.exchange(&format!("{SERVICE}ServerLive"), &[], &[Vec::new()]);
        match reply {
            Ok(_) => Ok(grpc),
            Err(Problem::Wrong { got, .. } | Problem::Skip(got)) => {
                anyhow::bail!("`{address}` does not speak gRPC in clear text: {got}")
            }
        }
    }

    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// Calls a method of the protocol's service that answers one message.
    pub(super) fn call<A: Message + Default>(
        &self,
        method: &str,
        request: &impl Message,
    ) -> Result<Result<A, Status>, Problem> {
        let reply = self.exchange(&format!("{SERVICE}{method}"), &[], &[request.encode_to_vec()])?;
        one(reply, method)
    }

    /// As [`call`](Self::call); the call must go well.
    pub(super) fn ok<A: Message + Default>(
        &self,
        method: &str,
        request: &impl Message,
    ) -> Result<A, Problem> {
        self.call(method, request)?
            .map_err(|status| Problem::wrong(format!("{method} to go well"), status.told()))
    }

    /// How a call of the protocol's service ends.
    pub(super) fn status(&self, method: &str, request: &impl Message) -> Result<Status, Problem> {
        Ok(self.exchange(&format!("{SERVICE}{method}"), &[], &[request.encode_to_vec()])?.status)
    }

    /// Calls a method of an extension; a reason to skip where the server does not have it and does not say so.
    pub(super) fn offered<A: Message + Default>(
        &self,
        server: &Server,
        extension: &str,
        method: &str,
        request: &impl Message,
    ) -> Result<A, Problem> {
        match self.call(method, request)? {
            Ok(answer) => Ok(answer),
            Err(status) if status.code == UNIMPLEMENTED && !server.announces(extension) => {
                Err(Problem::skip(format!("`{extension}` is not announced, and {method} is UNIMPLEMENTED")))
            }
            Err(status) => Err(Problem::wrong(format!("{method} to go well"), status.told())),
        }
    }

    /// Sends `messages` to the method at `path`, and reads all that is answered.
    pub(super) fn exchange(
        &self,
        path: &str,
        metadata: &[(&str, &str)],
        messages: &[Vec<u8>],
    ) -> Result<Reply, Problem> {
        if self.silent.load(Ordering::Relaxed) >= PATIENCE {
            return Err(Problem::skip("the server has left too many calls without an answer"));
        }
        let answered = self.runtime.block_on(async {
            let exchange = self.try_exchange(path, metadata, framed(messages));
            tokio::time::timeout(self.timeout, exchange).await
        });
        let told = match answered {
            Ok(Ok(reply)) => {
                self.silent.store(0, Ordering::Relaxed);
                return Ok(reply);
            }
            Ok(Err(told)) => told,
            Err(_) => "none in time".to_owned(),
        };
        self.silent.fetch_add(1, Ordering::Relaxed);
        *self.sender.lock().unwrap_or_else(PoisonError::into_inner) = None;
        Err(Problem::wrong(format!("an answer to {path}"), told))
    }

    async fn try_exchange(
        &self,
        path: &str,
        metadata: &[(&str, &str)],
        body: Bytes,
    ) -> Result<Reply, String> {
        let mut sender = self.sender().await?;
        let mut request = http::Request::post(format!("http://{}{path}", self.address))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        for (name, value) in metadata {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body)).map_err(|error| error.to_string())?;
        let response = sender.send_request(request).await.map_err(|error| chain(&error))?;
        let (head, mut body) = response.into_parts();
        let (mut data, mut trailers) = (Vec::new(), head.headers.clone());
        while let Some(frame) = body.frame().await {
            match frame.map_err(|error| chain(&error))?.into_data() {
                Ok(bytes) if data.len() + bytes.len() > MAX_ANSWER => {
                    return Err(format!("more than {} MiB", MAX_ANSWER >> 20));
                }
                Ok(bytes) => data.extend(bytes),
                Err(frame) => trailers.extend(frame.into_trailers().unwrap_or_default()),
            }
        }
        let text = |name: &str| trailers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()));
        let code = text("grpc-status").and_then(|code| code.parse().ok());
        let Some(code) = code else {
            return Err(format!("status {} without a `grpc-status`", head.status.as_u16()));
        };
        let message = excerpt(&percent_decoded(&text("grpc-message").unwrap_or_default()));
        let content_type = excerpt(&text("content-type").unwrap_or_default());
        Ok(Reply { content_type, messages: unframed(data.into())?, status: Status { code, message } })
    }

    /// The connection, or a new one where it was closed.
    async fn sender(&self) -> Result<SendRequest<Full<Bytes>>, String> {
        let open = self.sender.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(sender) = open.filter(|sender| !sender.is_closed()) {
            return Ok(sender);
        }
        let stream =
            tokio::net::TcpStream::connect(&self.address).await.map_err(|error| error.to_string())?;
        let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
        builder.max_header_list_size(64 << 10).initial_stream_window_size(1 << 20);
        let (sender, connection) =
            builder.handshake(TokioIo::new(stream)).await.map_err(|error| chain(&error))?;
        tokio::spawn(connection);
        *self.sender.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender.clone());
        Ok(sender)
    }
}

/// The one message of a call that went well.
fn one<A: Message + Default>(reply: Reply, method: &str) -> Result<Result<A, Status>, Problem> {
    if reply.status.code != OK {
        return Ok(Err(reply.status));
    }
    match reply.messages.as_slice() {
        [message] => match A::decode(message.clone()) {
            Ok(message) => Ok(Ok(message)),
            Err(error) => Err(Problem::wrong(format!("an answer of {method}"), error.to_string())),
        },
        messages => Err(Problem::wrong("one message", format!("{} messages", messages.len()))),
    }
}

/// Messages, each behind its length.
fn framed(messages: &[Vec<u8>]) -> Bytes {
    let mut frames = Vec::new();
    for message in messages {
        frames.push(0);
        frames.extend(u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes());
        frames.extend(message);
    }
    frames.into()
}

fn unframed(mut frames: Bytes) -> Result<Vec<Bytes>, String> {
    let mut messages = Vec::new();
    while !frames.is_empty() {
        if frames.len() < 5 {
            return Err("a frame without a length".to_owned());
        }
        if frames.get_u8() != 0 {
            return Err("a compressed message, which nobody asked for".to_owned());
        }
        let length = usize::try_from(frames.get_u32()).unwrap_or(usize::MAX);
        if length > frames.len() {
            return Err(format!("a message of {length} bytes in {}", frames.len()));
        }
        messages.push(frames.split_to(length));
    }
    Ok(messages)
}

fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let hex = after.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        let byte = hex.filter(|_| *first == b'%').and_then(|hex| u8::from_str_radix(hex, 16).ok());
        bytes.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { &after[2..] } else { after };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// An error and what caused it.
fn chain(error: &dyn std::error::Error) -> String {
    let mut told = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        told.push_str(": ");
        told.push_str(&cause.to_string());
        source = cause.source();
    }
    told
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use http::{HeaderMap, Response};
    use hyper::body::Frame;

    use super::*;

    /// The frames of an answer, the last first, and whether nothing follows them, not even the end.
    struct Answer(Vec<Frame<Bytes>>, bool);

    impl hyper::body::Body for Answer {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            match self.0.pop() {
                None if self.1 => Poll::Pending,
                frame => Poll::Ready(frame.map(Ok)),
            }
        }
    }

    /// The address of a server that answers each call so.
    fn server(runtime: &Runtime, answer: fn() -> Answer) -> String {
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap().to_string();
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let service =
                    hyper::service::service_fn(move |_| async move { Response::builder().body(answer()) });
                let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                tokio::spawn(server.serve_connection(TokioIo::new(stream), service));
            }
        });
        address
    }

    fn data(bytes: &[u8]) -> Frame<Bytes> {
        Frame::data(Bytes::copy_from_slice(bytes))
    }

    fn status(code: &'static str) -> Frame<Bytes> {
        Frame::trailers(HeaderMap::from_iter([("grpc-status".parse().unwrap(), code.parse().unwrap())]))
    }

    #[test]
    fn what_is_read_is_bounded() {
        let runtime = Runtime::new().unwrap();
        let check = |answer: fn() -> Answer, expected: Result<u32, &str>| {
            let address = server(&runtime, answer);
            match (Grpc::connect(&address, Duration::from_secs(2)), expected) {
                (Ok(grpc), Ok(code)) => {
                    assert_eq!(grpc.status("ServerLive", &pb::ServerLiveRequest {}).unwrap().code, code);
                }
                (Err(error), Err(expected)) => assert!(error.to_string().contains(expected), "{error}"),
                (connected, expected) => panic!("{:?}, not {expected:?}", connected.err()),
            }
        };
        check(|| Answer(vec![status("0"), data(&[0, 0, 0, 0, 2, 8, 1])], false), Ok(0));
        check(|| Answer(vec![status("5")], false), Ok(5));
        check(|| Answer(vec![status("soon")], false), Err("without a `grpc-status`"));
        check(|| Answer(vec![], false), Err("without a `grpc-status`"));
        check(|| Answer(vec![status("0"), data(&[0, 0, 0, 0, 9])], false), Err("9 bytes in 0"));
        check(|| Answer((0..20).map(|_| data(&[0; 1 << 20])).collect(), true), Err("16 MiB"));
        check(|| Answer(vec![], true), Err("none in time"));
    }

    #[test]
    fn frames_are_read_strictly() {
        let check = |frames: &[u8], expected: Option<usize>| {
            let messages = unframed(Bytes::copy_from_slice(frames)).ok();
            assert_eq!(messages.map(|messages| messages.len()), expected, "{frames:?}");
        };
        check(&framed(&[vec![1, 2], vec![]]), Some(2));
        check(&[], Some(0));
        check(&[0, 0, 0, 0], None);
        check(&[0, 0, 0, 0, 1], None);
        check(&[1, 0, 0, 0, 0], None);
        check(&[0, 255, 255, 255, 255, 1], None);
    }

    #[test]
    fn messages_are_decoded() {
        let check = |text: &str, expected: &str| assert_eq!(percent_decoded(text), expected);
        check("no model `x`", "no model `x`");
        check("a%20b%C3%9F", "a bß");
        check("100%", "100%");
        check("%zz%4", "%zz%4");
        check("%4ß", "%4ß");
    }

    #[test]
    fn codes_have_names() {
        let status = |code, message: &str| Status { code, message: message.to_owned() };
        assert_eq!(status(5, "no").told(), "NOT_FOUND: no");
        assert_eq!(status(99, "").told(), "a code that is none");
        assert!(status(0, "").refused().is_err());
        assert!(status(5, "").expect(NOT_FOUND).is_ok());
        assert!(status(99, "").expect(NOT_FOUND).is_err());
    }
}
