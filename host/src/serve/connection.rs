//! One connection: TLS where the host speaks it, then HTTP/1.1 or HTTP/2 as the caller begins, and the bounds of each.

use std::convert::Infallible;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{HOST, HeaderValue};
use http::{Method, Request, Response, Uri};
use hyper::body::{Body, Incoming};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tokio_rustls::server::TlsStream;

use super::linger::{AHEAD, Lingering};
use super::tls::{self, Tls};

mod streams;
#[cfg(test)]
mod tests;

use streams::{PIECE_BYTES, Streams, paced};

/// What an HTTP/2 connection begins with (RFC 9113, section 3.4).
const PREFACE: &[u8; AHEAD] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The first byte of a TLS connection: the content type of a handshake (RFC 8446, section 5.1).
const TLS_HANDSHAKE: u8 = 22;

/// The most bytes of a request's head over HTTP/1.1.
const HTTP1_HEAD_BYTES: usize = 64 << 10;

// What one HTTP/2 connection may hold in memory: of request bodies that nobody has read yet 4 MiB, the connection's
// window; of heads 256 times 16 KiB, 4 MiB; of answers that were handed over and not taken 256 pieces, 16 MiB; a frame in
// each direction. What of answers is yet to be handed over is the answers' own, and waits for `answer_stall` at most.

/// Requests that one HTTP/2 connection may have open at once.
const STREAMS: u32 = 256;
/// The most bytes of a request's head over HTTP/2, unpacked.
const HTTP2_HEAD_BYTES: u32 = 16 << 10;
/// Bytes of a request's body that a caller may send ahead of who reads it.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
/// The same of all requests together: more, so that one that is not read does not hold up the others.
const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;
/// The most bytes of one frame that a caller may send.
const FRAME_BYTES: u32 = 64 << 10;
/// Requests that were reset by the caller before the host has looked at them, beyond which the connection is closed.
const EARLY_RESETS: usize = 64;
/// Requests that the host had to reset for the caller's mistakes, beyond which the connection is closed.
const ERROR_RESETS: usize = 1024;
/// How long nothing may be heard of an HTTP/2 caller before it is asked for a sign of life, and how long that may take.
const PING_AFTER: Duration = Duration::from_secs(30);
const PING_WAIT: Duration = Duration::from_secs(20);

/// What bounds a connection beside the requests on it.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionLimits {
    /// Time for what is before a request to arrive: the first bytes, TLS' handshake, a request's head.
    pub header_read: Duration,
    /// Time in which a caller must take some of its answer.
    pub answer_stall: Duration,
    /// How long an HTTP/2 connection that has had a request stays open without another.
    pub idle: Duration,
}

/// How a listener's connections are served.
pub struct Connections {
    limits: ConnectionLimits,
    http1: http1::Builder,
    tls: Option<Arc<Tls>>,
}

/// Why a connection ended early. Nobody but the log is told.
#[derive(Debug, Error)]
pub enum ConnectionError {
    #[error("the caller did not begin in time")]
    Late,
    #[error("the caller speaks no TLS")]
    Plain,
    #[error("TLS was not agreed on: {0}")]
    Tls(io::Error),
    #[error("the caller did not agree to the end in time")]
    Unending,
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
    #[error("{}", with_cause(.0))]
    Http(#[from] hyper::Error),
}

/// Hyper's own text leaves out the cause.
fn with_cause(error: &hyper::Error) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

/// Stands among the extensions of a request that came over TLS.
#[derive(Clone, Copy, Debug)]
pub struct OverTls;

enum Version {
    Http1,
    Http2,
}

impl Connections {
    /// For connections within `limits`, over TLS where there is a certificate.
    pub fn new(limits: ConnectionLimits, tls: Option<Arc<Tls>>) -> Connections {
        let mut http1 = http1::Builder::new();
        http1.timer(TokioTimer::new()).header_read_timeout(limits.header_read).max_buf_size(HTTP1_HEAD_BYTES);
        Connections { limits, http1, tls }
    }

    /// Serves one connection to its end. When `closing` becomes true, what is open is finished and nothing new is taken.
    ///
    /// # Errors
    /// Where it ended otherwise than the protocols have it.
    pub async fn serve<A, F, B>(
        &self,
        stream: TcpStream,
        answer: A,
        mut closing: watch::Receiver<bool>,
    ) -> Result<(), ConnectionError>
    where
        A: Fn(Request<Incoming>) -> F + Send + 'static,
        F: Future<Output = Result<Response<B>, Infallible>> + Send + 'static,
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        // It only costs time where it fails.
        let _ = stream.set_nodelay(true);
        let mut stream = Lingering::new(stream, self.limits.answer_stall);
        let Some(tls) = &self.tls else {
            let opened = self.in_time(open(&mut stream), &mut closing).await?;
            let Some(version) = opened else { return Ok(()) };
            return self.speak(version, stream, answer, closing).await;
        };
        let Some((version, stream)) = self.in_time(open_tls(stream, tls), &mut closing).await? else {
            return Ok(());
        };
        let answer = move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(OverTls);
            answer(request)
        };
        // On the heap, where it does not make every connection larger.
        Box::pin(self.speak(version, stream, answer, closing)).await
    }

    /// As [`serve`](Connections::serve), for a caller on this machine, where TLS would protect nothing.
    ///
    /// # Errors
    /// Where it ended otherwise than the protocols have it.
    pub async fn serve_local<A, F, B>(
        &self,
        stream: UnixStream,
        answer: A,
        mut closing: watch::Receiver<bool>,
    ) -> Result<(), ConnectionError>
    where
        A: Fn(Request<Incoming>) -> F + Send + 'static,
        F: Future<Output = Result<Response<B>, Infallible>> + Send + 'static,
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let mut stream = Lingering::new(stream, self.limits.answer_stall);
        let Some(version) = self.in_time(open(&mut stream), &mut closing).await? else { return Ok(()) };
        self.speak(version, stream, answer, closing).await
    }

    /// Waits until a connection is open; `None` where that is not worth while any more.
    async fn in_time<T>(
        &self,
        opening: impl Future<Output = Result<Option<T>, ConnectionError>>,
        closing: &mut watch::Receiver<bool>,
    ) -> Result<Option<T>, ConnectionError> {
        tokio::select! {
            opened = timeout(self.limits.header_read, opening) => opened.map_err(|_| ConnectionError::Late)?,
            // Nothing was asked yet.
            () = closed(closing) => Ok(None),
        }
    }

    async fn speak<S, A, F, B>(
        &self,
        version: Version,
        stream: S,
        answer: A,
        closing: watch::Receiver<bool>,
    ) -> Result<(), ConnectionError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
        A: Fn(Request<Incoming>) -> F + Send + 'static,
        F: Future<Output = Result<Response<B>, Infallible>> + Send + 'static,
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        match version {
            Version::Http1 => self.http1(stream, answer, closing).await,
            Version::Http2 => Box::pin(self.http2(stream, answer, closing)).await,
        }
    }

    async fn http1<S, A, F, B>(
        &self,
        stream: S,
        answer: A,
        mut closing: watch::Receiver<bool>,
    ) -> Result<(), ConnectionError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
        A: Fn(Request<Incoming>) -> F + Send + 'static,
        F: Future<Output = Result<Response<B>, Infallible>> + Send + 'static,
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let mut connection = pin!(self.http1.serve_connection(TokioIo::new(stream), service_fn(answer)));
        tokio::select! {
            ended = connection.as_mut() => return Ok(ended?),
            () = closed(&mut closing) => connection.as_mut().graceful_shutdown(),
        }
        Ok(connection.await?)
    }

    async fn http2<S, A, F, B>(
        &self,
        stream: S,
        answer: A,
        mut closing: watch::Receiver<bool>,
    ) -> Result<(), ConnectionError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
        A: Fn(Request<Incoming>) -> F + Send + 'static,
        F: Future<Output = Result<Response<B>, Infallible>> + Send + 'static,
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let ConnectionLimits { header_read, answer_stall, idle } = self.limits;
        let streams = Streams::new(answer_stall);
        let mut builder = http2::Builder::new(streams.clone());
        builder
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS)
            .max_header_list_size(HTTP2_HEAD_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .max_frame_size(FRAME_BYTES)
            .max_send_buf_size(PIECE_BYTES)
            .max_pending_accept_reset_streams(EARLY_RESETS)
            .max_local_error_reset_streams(ERROR_RESETS)
            .keep_alive_interval(PING_AFTER)
            .keep_alive_timeout(PING_WAIT);
        let service = service_fn(|mut request| {
            name_as_http1(&mut request);
            let is_head = request.method() == Method::HEAD;
            // On the heap, for it is moved about before it runs.
            let answering = Box::pin(answer(request));
            async move { answering.await.map(|answer| paced(answer, is_head)) }
        });
        let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
        let begun = Instant::now();
        tokio::select! {
            ended = connection.as_mut() => return Ok(ended?),
            () = closed(&mut closing) => {}
            () = streams.quiet(begun, |asked| if asked { idle } else { header_read }) => {}
        }
        connection.as_mut().graceful_shutdown();
        let told = Instant::now();
        tokio::select! {
            ended = connection => Ok(ended?),
            // A caller that is told of the end must say that it has heard, which it may never do.
            () = streams.quiet(told, |_| header_read) => Err(ConnectionError::Unending),
        }
    }
}

/// Finds out what is spoken; `None` where the caller has left without a word.
async fn open<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut Lingering<S>,
) -> Result<Option<Version>, ConnectionError> {
    let seen = stream.look_ahead(|seen| !PREFACE.starts_with(seen)).await?;
    Ok(match seen {
        [] => None,
        seen if seen == PREFACE => Some(Version::Http2),
        _ => Some(Version::Http1),
    })
}

/// As [`open`], where TLS comes first.
async fn open_tls(
    mut stream: Lingering,
    tls: &Tls,
) -> Result<Option<(Version, Box<TlsStream<Lingering>>)>, ConnectionError> {
    match stream.look_ahead(|seen| !seen.is_empty()).await? {
        [] => return Ok(None),
        [TLS_HANDSHAKE, ..] => {}
        [first, ..] => {
            if first.is_ascii_uppercase() {
                let head = "HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-type: text/plain";
                let answer = format!("{head}\r\ncontent-length: {}\r\n\r\n{NO_TLS}", NO_TLS.len());
                stream.write_all(answer.as_bytes()).await?;
            }
            stream.shutdown().await?;
            return Err(ConnectionError::Plain);
        }
    }
    let stream = Box::pin(tls.accept(stream)).await.map_err(ConnectionError::Tls)?;
    // Who names nothing speaks HTTP/1.1 (RFC 9113, section 3.3).
    let is_http2 = stream.get_ref().1.alpn_protocol() == Some(tls::H2);
    Ok(Some((if is_http2 { Version::Http2 } else { Version::Http1 }, Box::new(stream))))
}

/// What a caller without TLS is told where TLS is spoken.
const NO_TLS: &str = "this port speaks TLS: call it with https://\n";

async fn closed(closing: &mut watch::Receiver<bool>) {
    // Where nobody is left who could say so, it is closing as well.
    let _ = closing.wait_for(|closing| *closing).await;
}

/// Names what is asked for as HTTP/1.1 does, so that what is behind need not know which of the two it was (RFC 9113,
/// section 8.3.1). What the caller says of TLS is not the truth but its word.
fn name_as_http1(request: &mut Request<Incoming>) {
    let Some(path) = request.uri().path_and_query().cloned() else { return };
    let uri = std::mem::replace(request.uri_mut(), Uri::from(path));
    if let Some(Ok(authority)) = uri.authority().map(|authority| HeaderValue::from_str(authority.as_str())) {
        request.headers_mut().insert(HOST, authority);
    }
}
