//! One request and its answer on a connection of their own, in HTTP/1.1, or HTTP/2 where TLS has agreed on it.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::Poll;

use http::header::HOST;
use http::uri::PathAndQuery;
use http::{Request, Response, Uri};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::client::TlsStream;
use wasmtime_wasi_http::{Error as HttpError, WasiBody};

use super::failure;

/// A connection that nothing has been sent on.
pub(super) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// What moves bytes on a connection; done when the exchange is.
pub(super) type Driver = Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>;

enum Sender {
    Http1(http1::SendRequest<WasiBody>),
    Http2(http2::SendRequest<WasiBody>),
}

/// The most that the head of an answer may have: bytes, and fields in HTTP/1.1.
const HEAD_BYTES: usize = 64 << 10;
const HEAD_FIELDS: usize = 256;

/// What the other side may send of a body before the guest has read it, in HTTP/2.
const WINDOW: u32 = 256 << 10;

/// Sends the request, and waits for the head of its answer until `answered`.
pub(super) async fn exchange(
    stream: Stream,
    mut request: Request<WasiBody>,
    connected: Instant,
    answered: Instant,
) -> Result<(Response<Incoming>, Option<Driver>), HttpError> {
    let (sender, driver) = timeout_at(connected, begin(stream))
        .await
        .map_err(|_| HttpError::ConnectionTimeout)?
        .map_err(|error| failure::exchange(&error))?;
    match sender {
        Sender::Http1(mut sender) => {
            // The rest of the URI stands in the header `host`.
            let path = request.uri().path_and_query().cloned();
            *request.uri_mut() = Uri::from(path.unwrap_or_else(|| PathAndQuery::from_static("/")));
            let sending = sender.send_request(request);
            answer(sending, driver, answered).await
        }
        Sender::Http2(mut sender) => {
            // The URI says it, and some servers mind what says it twice.
            request.headers_mut().remove(HOST);
            let sending = sender.send_request(request);
            answer(sending, driver, answered).await
        }
    }
}

async fn begin(stream: Stream) -> hyper::Result<(Sender, Driver)> {
    match stream {
        Stream::Plain(stream) => begin_http1(TokioIo::new(stream)).await,
        Stream::Tls(stream) if stream.get_ref().1.alpn_protocol() == Some(b"h2") => {
            let mut builder = http2::Builder::new(TokioExecutor::new());
            builder
                .initial_stream_window_size(WINDOW)
                .initial_connection_window_size(WINDOW)
                .max_header_list_size(u32::try_from(HEAD_BYTES).unwrap_or(u32::MAX));
            let (sender, connection) = builder.handshake(TokioIo::new(stream)).await?;
            Ok((Sender::Http2(sender), Box::pin(connection)))
        }
        Stream::Tls(stream) => begin_http1(TokioIo::new(stream)).await,
    }
}

async fn begin_http1<S>(stream: S) -> hyper::Result<(Sender, Driver)>
where
    S: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let mut builder = http1::Builder::new();
    builder.max_buf_size(HEAD_BYTES).max_headers(HEAD_FIELDS);
    let (sender, connection) = builder.handshake(stream).await?;
    Ok((Sender::Http1(sender), Box::pin(connection)))
}

/// Drives the connection until the answer has begun.
async fn answer(
    sending: impl Future<Output = hyper::Result<Response<Incoming>>>,
    driver: Driver,
    until: Instant,
) -> Result<(Response<Incoming>, Option<Driver>), HttpError> {
    let mut sending = pin!(sending);
    let mut driver = Some(driver);
    let response = poll_fn(|context| {
        if let Poll::Ready(response) = sending.as_mut().poll(context) {
            return Poll::Ready(response);
        }
        if let Some(driving) = &mut driver
            && let Poll::Ready(ended) = driving.as_mut().poll(context)
        {
            driver = None;
            // What it failed with, the answer tells as well, and better; only then is there nothing to wait for.
            return match sending.as_mut().poll(context) {
                Poll::Pending => ended.map_or_else(|error| Poll::Ready(Err(error)), |()| Poll::Pending),
                ready => ready,
            };
        }
        Poll::Pending
    });
    let response = timeout_at(until, response).await.map_err(|_| HttpError::ConnectionReadTimeout)?;
    Ok((response.map_err(|error| failure::exchange(&error))?, driver))
}
