//! Request ids, the headers that every answer carries, and the access log.

use std::io::Write;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::header::{HeaderName, HeaderValue};
use http::{Method, Request, Response, Uri};
use serde_json::json;

use super::Trace;

pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const REVISION: HeaderName = HeaderName::from_static("x-tenon-revision");
const BACKEND: HeaderName = HeaderName::from_static("x-tenon-backend");

/// Makes ids that differ between hosts and requests.
pub struct RequestIds {
    start: u64,
    next: AtomicU64,
}

impl RequestIds {
    pub fn new() -> RequestIds {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let start = u64::try_from(now.as_nanos() & u128::from(u64::MAX)).unwrap_or_default();
        RequestIds { start: mix(start ^ u64::from(std::process::id())), next: AtomicU64::new(0) }
    }

    fn next(&self) -> RequestId {
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        RequestId::of_number(mix(self.start.wrapping_add(n)))
    }
}

impl Default for RequestIds {
    fn default() -> Self {
        RequestIds::new()
    }
}

/// SplitMix64's finaliser: neighbouring numbers become ids that look nothing alike.
fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// A request's id: plain text, in the form that headers have. A clone shares it.
#[derive(Clone)]
pub struct RequestId(HeaderValue);

impl RequestId {
    /// The number in hex.
    fn of_number(number: u64) -> RequestId {
        let mut digits = [0; 16];
        for (place, digit) in digits.iter_mut().rev().enumerate() {
            *digit = b"0123456789abcdef"[(number >> (4 * place)) as usize & 0xf];
        }
        RequestId(HeaderValue::from_bytes(&digits).expect("hex digits may stand in a header"))
    }

    pub fn as_str(&self) -> &str {
        self.0.to_str().unwrap_or_default()
    }

    pub fn header(&self) -> HeaderValue {
        self.0.clone()
    }
}

/// What is remembered of a request's head once the request is gone.
pub struct Head {
    pub request_id: RequestId,
    method: Method,
    uri: Uri,
    client: SocketAddr,
}

impl Head {
    /// A caller's `x-request-id` is kept where it is short and plain.
    pub fn of<B>(request: &Request<B>, client: SocketAddr, ids: &RequestIds) -> Head {
        let plain = |id: &&HeaderValue| {
            let plain = |byte: &u8| byte.is_ascii_graphic() && *byte != b'"';
            (1..=128).contains(&id.len()) && id.as_bytes().iter().all(plain)
        };
        let given = request.headers().get(REQUEST_ID).filter(plain);
        Head {
            request_id: given.map_or_else(|| ids.next(), |id| RequestId(id.clone())),
            method: request.method().clone(),
            uri: request.uri().clone(),
            client,
        }
    }

    /// Tells the caller which request this was, which revision answered it, and on which backend.
    pub fn mark<B>(&self, response: &mut Response<B>, trace: &Trace) {
        response.headers_mut().insert(REQUEST_ID, self.request_id.header());
        if let Some(function) = &trace.function {
            response.headers_mut().insert(REVISION, function.version_header.clone());
        }
        if let Some(backend) = trace.usage.backend {
            response.headers_mut().insert(BACKEND, HeaderValue::from_static(backend));
        }
    }
}

/// One JSON object a line on standard output, written by a thread of its own.
pub struct AccessLog {
    lines: SyncSender<String>,
    lost: AtomicU64,
}

/// Lines that may wait to be written; beyond, they are lost and counted, and requests go on.
const WAITING_LINES: usize = 4096;

impl AccessLog {
    /// # Errors
    /// Where the system refuses a thread.
    pub fn start() -> std::io::Result<AccessLog> {
        let (sender, receiver) = sync_channel::<String>(WAITING_LINES);
        std::thread::Builder::new().name("access-log".to_owned()).spawn(move || {
            let mut out = std::io::stdout();
            while let Ok(line) = receiver.recv() {
                if out.write_all(line.as_bytes()).is_err() {
                    return;
                }
            }
        })?;
        Ok(AccessLog { lines: sender, lost: AtomicU64::new(0) })
    }

    pub fn write<B>(&self, head: &Head, response: &Response<B>, trace: &Trace, took: Duration) {
        let ms = |duration: Duration| (duration.as_secs_f64() * 1e6).round() / 1e3;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let line = json!({
            "time": now.as_secs_f64(),
            "request_id": head.request_id.as_str(),
            "client": head.client.to_string(),
            "method": head.method.as_str(),
            "path": head.uri.path(),
            "function": trace.function_name(),
            "revision": trace.function.as_ref().map(|function| &function.version),
            "status": response.status().as_u16(),
            "error": trace.error.as_ref().map(|(name, _)| name),
            "backend": trace.usage.backend,
            "cold": trace.usage.cold,
            "total_ms": ms(took),
            "queue_ms": ms(trace.queue),
            "run_ms": ms(trace.run),
            "infer_ms": ms(trace.usage.infer),
            "load_ms": ms(trace.usage.load),
            "lost_lines": self.lost.load(Ordering::Relaxed),
        });
        if let Err(TrySendError::Full(_)) = self.lines.try_send(format!("{line}\n")) {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_kept_where_they_are_plain_and_made_where_not() {
        let client = SocketAddr::from(([127, 0, 0, 1], 1));
        let ids = RequestIds::new();
        let id = |given: Option<&[u8]>| {
            let mut request = Request::new(());
            if let Some(given) = given {
                request.headers_mut().insert(REQUEST_ID, HeaderValue::from_bytes(given).unwrap());
            }
            Head::of(&request, client, &ids).request_id.as_str().to_owned()
        };
        assert_eq!(id(Some(b"an-id/1")), "an-id/1");
        for odd in [None, Some(&b"a\"b"[..]), Some(b"a b"), Some(b"\xff"), Some(b""), Some(&[b'x'; 129])] {
            let made = id(odd);
            assert!(made.len() == 16 && made.bytes().all(|byte| byte.is_ascii_hexdigit()), "{made}");
        }
        assert_eq!(RequestId::of_number(0x0123_4567_89ab_cdef).as_str(), "0123456789abcdef");
    }
}
