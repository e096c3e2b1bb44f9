//! Requests over HTTP to a server that is not trusted: what is read, and how long it takes, is bounded.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::bail;
use serde_json::Value;
use ureq::http::{HeaderMap, Method, Request};

use super::check::{Problem, Verdict, excerpt};

/// The longest answer that is read, in bytes.
const MAX_BODY: u64 = 16 << 20;

/// After so many requests in a row without an answer, no more are made.
const PATIENCE: u32 = 5;

/// A server's address, and how long it may take.
pub(super) struct Http {
    agent: ureq::Agent,
    base: String,
    silent: AtomicU32,
}

impl Http {
    /// Asks the server at `url`, such as `http://127.0.0.1:3000`, whose answers may take `timeout`.
    ///
    /// # Errors
    /// The URL is not one of HTTP.
    pub(super) fn new(url: &str, timeout: Duration) -> anyhow::Result<Http> {
        let is_http = ["http://", "https://"].iter().any(|scheme| url.starts_with(scheme));
        if !is_http || url.parse::<ureq::http::Uri>().is_err() || url.contains(['?', '#']) {
            bail!("`{url}` is not the address of a server: write it as http://host:port");
        }
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(timeout))
            .http_status_as_error(false)
            .max_redirects(0)
            .max_response_header_size(64 << 10)
            // A server may close a connection on which it was sent nonsense.
            .max_idle_connections(0)
            .user_agent(concat!("tenon-conformance/", env!("CARGO_PKG_VERSION")))
            .accept("*/*")
            .build();
        let base = url.trim_end_matches('/').trim_end_matches("/v2").to_owned();
        Ok(Http { agent: config.into(), base, silent: AtomicU32::new(0) })
    }

    /// The address, without a path.
    pub(super) fn base(&self) -> &str {
        &self.base
    }

    pub(super) fn get(&self, path: &str) -> Result<Answer, Problem> {
        self.send(Method::GET, path, &[], Vec::new())
    }

    pub(super) fn post_json(&self, path: &str, body: &Value) -> Result<Answer, Problem> {
        self.post(path, &[("content-type", "application/json")], body.to_string())
    }

    pub(super) fn post(
        &self,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Vec<u8>>,
    ) -> Result<Answer, Problem> {
        self.send(Method::POST, path, headers, body.into())
    }

    pub(super) fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Vec<u8>,
    ) -> Result<Answer, Problem> {
        self.exchange(method, path, headers, |request| match body.is_empty() {
            true => Ok(self.agent.run(request.body(())?)?),
            false => Ok(self.agent.run(request.body(body.as_slice())?)?),
        })
    }

    /// Posts a body whose length is not told before it.
    pub(super) fn post_chunked(
        &self,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Answer, Problem> {
        self.exchange(Method::POST, path, headers, |request| {
            let body = ureq::SendBody::from_owned_reader(std::io::Cursor::new(body.to_vec()));
            self.agent.run(request.body(body)?)
        })
    }

    fn exchange(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        send: impl FnOnce(ureq::http::request::Builder) -> Result<ureq::http::Response<ureq::Body>, ureq::Error>,
    ) -> Result<Answer, Problem> {
        if self.silent.load(Ordering::Relaxed) >= PATIENCE {
            return Err(Problem::skip("the server has left too many requests without an answer"));
        }
        let mut request = Request::builder().method(method.clone()).uri(format!("{}{path}", self.base));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let answer = send(request).and_then(|mut response| {
            let body = response.body_mut().with_config().limit(MAX_BODY).read_to_vec()?;
            let (parts, _) = response.into_parts();
            Ok(Answer { status: parts.status.as_u16(), headers: parts.headers, body })
        });
        match &answer {
            Ok(_) => self.silent.store(0, Ordering::Relaxed),
            Err(_) => _ = self.silent.fetch_add(1, Ordering::Relaxed),
        }
        answer.map_err(|error| Problem::wrong(format!("an answer to {method} {path}"), told(&error)))
    }
}

fn told(error: &ureq::Error) -> String {
    match error {
        ureq::Error::BodyExceedsLimit(limit) => format!("more than {} MiB", limit >> 20),
        ureq::Error::Timeout(_) => "none in time".to_owned(),
        error => error.to_string(),
    }
}

/// What a server answered.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    pub(super) body: Vec<u8>,
}

impl Answer {
    /// A header's value; empty where there is none, or it is not text.
    pub(super) fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    pub(super) fn is_ok(&self) -> bool {
        self.status == 200
    }

    /// The answer, which must have status 200.
    pub(super) fn ok(self) -> Result<Answer, Problem> {
        if self.is_ok() { Ok(self) } else { Err(Problem::wrong("status 200", self.told())) }
    }

    /// The body, which must be JSON.
    pub(super) fn json(&self) -> Result<Value, Problem> {
        serde_json::from_slice(&self.body).map_err(|_| Problem::wrong("a body of JSON", self.told()))
    }

    /// What an answer with an error says, where it has the protocol's form: status 4xx or 5xx, and an object whose
    /// `error` is a text.
    pub(super) fn error(&self) -> Option<String> {
        let text = self.json().ok()?.get("error")?.as_str()?.to_owned();
        ((400..600).contains(&self.status) && !text.is_empty()).then_some(text)
    }

    /// Must be an error in the protocol's form.
    pub(super) fn refusal(&self) -> Verdict {
        match self.error() {
            Some(_) => Ok(()),
            None => Err(Problem::wrong("an error status and {\"error\": \"…\"}", self.told())),
        }
    }

    /// What a person is shown.
    pub(super) fn told(&self) -> String {
        let kind = self.header("content-type");
        let is_text = kind.is_empty() || kind.contains("json") || kind.starts_with("text/");
        let body = match self.body.len() {
            0 => "no body".to_owned(),
            _ if is_text => excerpt(&String::from_utf8_lossy(&self.body)),
            length => format!("{length} bytes of {}", excerpt(kind)),
        };
        format!("{} {body}", self.status)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    fn answer(status: u16, body: &str) -> Answer {
        Answer { status, headers: HeaderMap::new(), body: body.into() }
    }

    #[test]
    fn refusals_have_one_form() {
        let check = |status: u16, body: &str, expected: bool| {
            assert_eq!(answer(status, body).refusal().is_ok(), expected, "{status} {body}");
        };
        check(400, r#"{"error":"no"}"#, true);
        check(500, r#"{"error":"no","code":7}"#, true);
        check(200, r#"{"error":"no"}"#, false);
        check(400, r#"{"error":""}"#, false);
        check(400, r#"{"error":["no"]}"#, false);
        check(400, r#"{"detail":"no"}"#, false);
        check(400, "no", false);
    }

    #[test]
    fn only_servers_have_addresses() {
        let check = |url: &str, expected: Option<&str>| {
            let base = Http::new(url, Duration::from_secs(1)).ok().map(|http| http.base);
            assert_eq!(base.as_deref(), expected);
        };
        check("http://127.0.0.1:3000", Some("http://127.0.0.1:3000"));
        check("http://h/v2/", Some("http://h"));
        check("https://h/prefix/", Some("https://h/prefix"));
        check("127.0.0.1:3000", None);
        check("ftp://h", None);
        check("http://h?x", None);
        check("http://", None);
    }

    #[test]
    fn what_is_read_is_bounded() {
        let check = |answers: fn(TcpStream), expected: &str| {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let url = format!("http://{}", listener.local_addr().unwrap());
            let server = std::thread::spawn(move || answers(listener.accept().unwrap().0));
            let Err(Problem::Wrong { got, .. }) = Http::new(&url, Duration::from_secs(2)).unwrap().get("/v2")
            else {
                panic!("there was an answer");
            };
            assert!(got.contains(expected), "{got}");
            server.join().unwrap();
        };
        let endless = |mut stream: TcpStream| {
            _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
            while stream.write_all(&[b'x'; 1 << 16]).is_ok() {}
        };
        check(endless, "16 MiB");
        let many_headers = |mut stream: TcpStream| {
            _ = stream.write_all(b"HTTP/1.1 200 OK\r\n");
            while stream.write_all(b"x: y\r\n").is_ok() {}
        };
        check(many_headers, "header");
        let silent = |mut stream: TcpStream| {
            _ = stream.write_all(b"HTTP/1.1 200 OK\r\n");
            // Until the other side gives up.
            _ = stream.read_to_end(&mut Vec::new());
        };
        check(silent, "none in time");
    }

    #[test]
    fn a_server_that_does_not_answer_is_not_asked_for_ever() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        drop(listener);
        let http = Http::new(&url, Duration::from_secs(1)).unwrap();
        for _ in 0..PATIENCE {
            assert!(matches!(http.get("/v2"), Err(Problem::Wrong { .. })));
        }
        assert!(matches!(http.get("/v2"), Err(Problem::Skip(_))));
    }
}
