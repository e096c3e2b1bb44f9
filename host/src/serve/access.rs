//! Request ids, the headers that every answer carries, and the access log.

use std::io::Write;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::header::{HeaderName, HeaderValue};
use http::{Method, Request, Response};
use serde_json::json;

use super::Trace;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
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

    fn next(&self) -> String {
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        format!("{:016x}", mix(self.start.wrapping_add(n)))
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

/// What is remembered of a request's head once the request is gone.
pub struct Head {
    pub request_id: String,
    method: Method,
    path: String,
    client: SocketAddr,
}

impl Head {
    /// A caller's `x-request-id` is kept where it is short and plain.
    pub fn of<B>(request: &Request<B>, client: SocketAddr, ids: &RequestIds) -> Head {
        let given = request.headers().get(REQUEST_ID).and_then(|id| id.to_str().ok());
        let plain = |id: &&str| {
            (1..=128).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"')
        };
        Head {
            request_id: given.filter(plain).map_or_else(|| ids.next(), str::to_owned),
            method: request.method().clone(),
            path: request.uri().path().to_owned(),
            client,
        }
    }

    /// Tells the caller which request this was, and which backend served it.
    pub fn mark<B>(&self, response: &mut Response<B>, trace: &Trace) {
        if let Ok(id) = HeaderValue::from_str(&self.request_id) {
            response.headers_mut().insert(REQUEST_ID, id);
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
            "request_id": head.request_id,
            "client": head.client.to_string(),
            "method": head.method.as_str(),
            "path": head.path,
            "function": trace.function_name(),
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
