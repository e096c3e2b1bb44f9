//! Requests to elsewhere, in wasi:http 0.2.

use wasip2::http::outgoing_handler;
use wasip2::http::types::{
    ErrorCode, Fields, FutureIncomingResponse, IncomingBody, IncomingRequest, IncomingResponse, Method,
    OutgoingBody, OutgoingRequest, RequestOptions, Scheme,
};
use wasip2::io::streams::StreamError;

/// The status and the body of the answer from `url`, or its error.
pub fn fetch(url: &str) -> String {
    told(begin(url, Method::Get, None).and_then(wait).and_then(|response| read(&response, true)))
}

/// The status of the answer from `url` and the length of its body.
pub fn count(url: &str) -> String {
    told(begin(url, Method::Get, None).and_then(wait).and_then(|response| read(&response, false)))
}

/// As many answers from `url` as are asked for, all requests sent before the first answer is waited for.
pub fn many(number: usize, url: &str) -> String {
    let begun: Vec<_> = (0..number).map(|_| begin(url, Method::Get, None)).collect();
    let answers =
        begun.into_iter().map(|begun| told(begun.and_then(wait).and_then(|answer| read(&answer, true))));
    answers.map(|answer| answer + "\n").collect()
}

/// As many heads of answers as are asked for, each kept with its body unread.
pub fn hold(number: usize, url: &str) -> String {
    let mut held = Vec::new();
    let mut lines = String::new();
    for _ in 0..number {
        match begin(url, Method::Get, None).and_then(wait) {
            Ok(response) => {
                lines += &format!("{}\n", response.status());
                held.push(response);
            }
            Err(error) => lines += &format!("error: {error:?}\n"),
        }
    }
    lines
}

/// Sends the body of `request` on to `url` as it comes, and tells the answer.
pub fn forward(url: &str, request: &IncomingRequest) -> String {
    told(begin(url, Method::Post, Some(request)).and_then(wait).and_then(|response| read(&response, true)))
}

fn told(answer: Result<String, ErrorCode>) -> String {
    answer.unwrap_or_else(|error| format!("error: {error:?}"))
}

fn begin(
    url: &str,
    method: Method,
    body: Option<&IncomingRequest>,
) -> Result<FutureIncomingResponse, ErrorCode> {
    let (scheme, rest) = url.split_once("://").unwrap_or(("http", url));
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let scheme = match scheme {
        "http" => Scheme::Http,
        "https" => Scheme::Https,
        other => Scheme::Other(other.to_owned()),
    };
    let request = OutgoingRequest::new(Fields::new());
    let set = request.set_method(&method).is_ok()
        && request.set_scheme(Some(&scheme)).is_ok()
        && request.set_authority(Some(authority)).is_ok()
        && request.set_path_with_query(Some(if path.is_empty() { "/" } else { path })).is_ok();
    if !set {
        return Err(ErrorCode::HttpRequestUriInvalid);
    }
    let options = RequestOptions::new();
    let outgoing = body.map(|_| request.body().expect("a request has one body"));
    let response = outgoing_handler::handle(request, Some(options))?;
    if let (Some(outgoing), Some(incoming)) = (outgoing, body) {
        copy(incoming, outgoing)?;
    }
    Ok(response)
}

fn copy(from: &IncomingRequest, to: OutgoingBody) -> Result<(), ErrorCode> {
    let incoming = from.consume().expect("a request has one body");
    let source = incoming.stream().expect("a body has one stream");
    let sink = to.write().expect("a body has one stream");
    while let Ok(chunk) = source.blocking_read(65_536) {
        for part in chunk.chunks(4096) {
            if sink.blocking_write_and_flush(part).is_err() {
                return Err(ErrorCode::ConnectionTerminated);
            }
        }
    }
    drop(sink);
    OutgoingBody::finish(to, None)
}

fn wait(response: FutureIncomingResponse) -> Result<IncomingResponse, ErrorCode> {
    response.subscribe().block();
    response.get().expect("it is there").expect("it is taken once")
}

fn read(response: &IncomingResponse, whole: bool) -> Result<String, ErrorCode> {
    let status = response.status();
    let body: IncomingBody = response.consume().expect("a response has one body");
    let stream = body.stream().expect("a body has one stream");
    let (mut bytes, mut text) = (0, Vec::new());
    let ended = loop {
        match stream.blocking_read(65_536) {
            Ok(chunk) => {
                bytes += chunk.len();
                if whole {
                    text.extend(chunk);
                }
            }
            Err(StreamError::Closed) => break String::new(),
            Err(StreamError::LastOperationFailed(error)) => {
                let code = wasip2::http::types::http_error_code(&error);
                break format!(", then {}", code.map_or(error.to_debug_string(), |code| format!("{code:?}")));
            }
        }
    };
    match whole {
        true => Ok(format!("{status} {}{ended}", String::from_utf8_lossy(&text))),
        false => Ok(format!("{status} {bytes} bytes{ended}")),
    }
}
