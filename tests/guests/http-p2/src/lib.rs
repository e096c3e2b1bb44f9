//! An HTTP component for wasi:http 0.2 that behaves as its path says, well or badly.

use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::types::{
    ErrorCode, Fields, IncomingBody, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam,
};
use wasip2::io::streams::{OutputStream, StreamError};

mod fetch;

struct Component;

wasip2::http::proxy::export!(Component);

impl Guest for Component {
    fn handle(request: IncomingRequest, outparam: ResponseOutparam) {
        let target = request.path_with_query().unwrap_or_default();
        let path = target.split('?').next().unwrap_or_default();
        let behaviour = path.rsplit('/').find(|part| !part.is_empty()).unwrap_or("hello");
        let query = target.split_once('?').map_or("", |(_, query)| query);
        match behaviour {
            "echo" => echo(&request, outparam),
            "big" => body(outparam, query.parse().unwrap_or(64) << 20),
            "endless" => body(outparam, u64::MAX),
            "headers" => text(outparam, 200, &headers(&request)),
            "env" => text(outparam, 200, &environment()),
            "status" => text(outparam, query.parse().unwrap_or(200), "as asked\n"),
            "trap" => core::arch::wasm32::unreachable(),
            "trap-after-headers" => trap_after_headers(outparam),
            "no-answer" => drop(outparam),
            "lie" => lie(outparam, query),
            "error" => ResponseOutparam::set(outparam, Err(ErrorCode::InternalError(Some(query.to_owned())))),
            "never" => never(),
            "loop" => endless(),
            "print" => print(query, outparam),
            "fetch" => text(outparam, 200, &fetch::fetch(query)),
            "count" => text(outparam, 200, &fetch::count(query)),
            "many" => text(outparam, 200, &fetch::many(8, query)),
            "hold" => text(outparam, 200, &fetch::hold(3, query)),
            "forward" => text(outparam, 200, &fetch::forward(query, &request)),
            "read-slowly" => read_slowly(&request, outparam),
            _ => text(outparam, 200, "hello\n"),
        }
    }
}

/// A response under way. The stream is dropped before the body.
struct Answer {
    stream: OutputStream,
    body: OutgoingBody,
}

impl Answer {
    fn write(&self, data: &[u8]) -> Result<(), StreamError> {
        data.chunks(4096).try_for_each(|chunk| self.stream.blocking_write_and_flush(chunk))
    }

    fn finish(self) {
        drop(self.stream);
        let _ = OutgoingBody::finish(self.body, None);
    }
}

fn start(outparam: ResponseOutparam, status: u16) -> Answer {
    let headers = Fields::new();
    let _ = headers.append("content-type", b"text/plain");
    let response = OutgoingResponse::new(headers);
    let _ = response.set_status_code(status);
    let body = response.body().expect("a response has one body");
    ResponseOutparam::set(outparam, Ok(response));
    let stream = body.write().expect("a body has one stream");
    Answer { stream, body }
}

/// Says that 200 bytes are as many as asked for, and ends without ending the body, which would be looked at then.
fn lie(outparam: ResponseOutparam, length: &str) {
    let headers = Fields::new();
    let _ = headers.append("content-length", length.as_bytes());
    let response = OutgoingResponse::new(headers);
    let body = response.body().expect("a response has one body");
    ResponseOutparam::set(outparam, Ok(response));
    let answer = Answer { stream: body.write().expect("a body has one stream"), body };
    let _ = answer.write(&[b'.'; 200]);
    std::mem::forget(answer);
}

fn text(outparam: ResponseOutparam, status: u16, text: &str) {
    let answer = start(outparam, status);
    if answer.write(text.as_bytes()).is_ok() {
        answer.finish();
    }
}

fn body(outparam: ResponseOutparam, mut bytes: u64) {
    let answer = start(outparam, 200);
    let chunk = [b'.'; 4096];
    while bytes > 0 {
        let now = bytes.min(chunk.len() as u64);
        if answer.write(&chunk[..now as usize]).is_err() {
            return;
        }
        bytes -= now;
    }
    answer.finish();
}

/// Chunk by chunk, as it comes.
fn echo(request: &IncomingRequest, outparam: ResponseOutparam) {
    let answer = start(outparam, 200);
    let incoming = request.consume().expect("a request has one body");
    let stream = incoming.stream().expect("a body has one stream");
    while let Ok(chunk) = stream.blocking_read(65_536) {
        if answer.write(&chunk).is_err() {
            return;
        }
    }
    answer.finish();
}

fn read_slowly(request: &IncomingRequest, outparam: ResponseOutparam) {
    let incoming: IncomingBody = request.consume().expect("a request has one body");
    let stream = incoming.stream().expect("a body has one stream");
    let mut bytes = 0;
    let ended = loop {
        match stream.blocking_read(1024) {
            Ok(chunk) => bytes += chunk.len(),
            Err(StreamError::Closed) => break "closed".to_owned(),
            Err(StreamError::LastOperationFailed(error)) => break error.to_debug_string(),
        }
    };
    text(outparam, 200, &format!("{bytes} bytes, then {ended}\n"));
}

/// In the order that they came, one a line.
fn headers(request: &IncomingRequest) -> String {
    let line = |(name, value): (String, Vec<u8>)| format!("{name}: {}\n", String::from_utf8_lossy(&value));
    request.headers().entries().into_iter().map(line).collect()
}

fn environment() -> String {
    std::env::vars().map(|(key, value)| format!("{key}={value}\n")).collect()
}

fn trap_after_headers(outparam: ResponseOutparam) {
    let answer = start(outparam, 200);
    let _ = answer.write(b"so far so good\n");
    core::arch::wasm32::unreachable();
}

/// Waits, without work, for longer than anyone does.
fn never() {
    std::thread::sleep(std::time::Duration::from_secs(86_400));
}

fn endless() {
    let mut turns = 0_u64;
    loop {
        turns = std::hint::black_box(turns.wrapping_add(1));
    }
}

fn print(line: &str, outparam: ResponseOutparam) {
    println!("out {line}");
    eprintln!("err {line}");
    text(outparam, 200, "printed\n");
}
