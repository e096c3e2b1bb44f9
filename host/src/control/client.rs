//! Speaks to the control API of one host, over HTTP(S) or its local socket.

use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode, header};
use reqwest::{RequestBuilder, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;
use tokio::time::{Instant, timeout};
use tokio_rustls::rustls;
use url::{Host, Url};

use super::wire::{
    AppStatus, Command, HistoryEntry, HostStatus, Prepare, Prepared, Progress, Refusal, RolloutStatus,
    ShadowStatus, Start,
};
use crate::artifact::oci::Digest;
use crate::artifact::registry::{FileBody, printable};
use crate::config::Secret;

/// How long connecting may take, with TLS.
const CONNECT: Duration = Duration::from_secs(15);
/// How long an answer may take to begin: longer than the host keeps anybody waiting.
const ANSWER: Duration = Duration::from_secs(150);
/// How long nothing may come or be taken: several times as long as the host is ever silent.
const STALL: Duration = Duration::from_secs(60);
/// How often a blob is sent again that the host could not take at that moment, and the first wait before.
const RETRIES: u32 = 5;
const BACKOFF: Duration = Duration::from_millis(500);
/// The largest answer in bytes, and the longest line of a stream.
const MAX_ANSWER_BYTES: usize = 64 << 20;
const MAX_LINE_BYTES: usize = 1 << 20;
/// How much of an answer is shown that is none of a host's.
const SHOWN_CHARS: usize = 200;

/// Where the control API of a host is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum To {
    /// `http` or `https`, a host and a port.
    Url(Box<Url>),
    /// A socket of this machine.
    Socket(PathBuf),
}

/// Why a text says no place of a control API.
#[derive(Debug, Error, PartialEq, Eq)]
#[error(
    "`{0}` is no address of a host; write https://host:3002, http://127.0.0.1:3002 or unix:/path/to/tenon.sock"
)]
pub struct NotAnAddress(String);

/// Why a host did not do what it was asked for.
#[derive(Debug, Error)]
pub enum ClientError {
    /// It answered with an error.
    #[error("{to}: {}", .refusal.detail)]
    Refused { to: To, refusal: Refusal },
    #[error("{to} cannot be reached: {reason}")]
    Unreachable { to: To, reason: String },
    #[error(
        "{to}: the connection broke while {what}: {reason}; whether it was done is what `tenon status` tells"
    )]
    Broken { to: To, what: String, reason: String },
    #[error("{to} answers otherwise than a Tenon host of this version: {reason}; is it the control address?")]
    Strange { to: To, reason: String },
    #[error("`{}` cannot be read: {reason}", path.display())]
    File { path: PathBuf, reason: String },
    #[error("{to}: the token cannot be sent: it has other characters than a token may have; check its file")]
    Token { to: To },
}

impl ClientError {
    /// What the host answered, where it did.
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            ClientError::Refused { refusal, .. } => Some(refusal),
            _ => None,
        }
    }
}

/// Files of TLS, in PEM.
#[derive(Clone, Debug, Default)]
pub struct Trust {
    /// Certificates of authorities that are trusted beside the system's.
    pub ca: Option<PathBuf>,
    /// A certificate with its key, for hosts that ask for one.
    pub certificate: Option<PathBuf>,
}

/// What a blob is sent from.
#[derive(Clone, Debug)]
pub enum Content {
    Bytes(Bytes),
    File(PathBuf),
}

impl FromStr for To {
    type Err = NotAnAddress;

    fn from_str(text: &str) -> Result<To, NotAnAddress> {
        let wrong = || NotAnAddress(printable(text, SHOWN_CHARS));
        if let Some(path) = text.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            return path.starts_with('/').then(|| To::Socket(path.into())).ok_or_else(wrong);
        }
        let url = Url::parse(text).map_err(|_| wrong())?;
        let is_plain = url.path() == "/"
            && url.query().is_none()
            && url.fragment().is_none()
            && url.username().is_empty()
            && url.password().is_none();
        let is_http = matches!(url.scheme(), "http" | "https") && url.host().is_some();
        (is_http && is_plain).then(|| To::Url(Box::new(url))).ok_or_else(wrong)
    }
}

impl fmt::Display for To {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            To::Url(url) => f.write_str(url.as_str().trim_end_matches('/')),
            To::Socket(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl To {
    /// Whether what is said there can be heard by others: it leaves this machine without TLS.
    pub fn is_overheard(&self) -> bool {
        matches!(self, To::Url(url) if url.scheme() == "http" && !is_local(url))
    }
}

/// Whether an address is one of this machine.
fn is_local(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

/// The way to one host.
#[derive(Clone)]
pub struct Client {
    to: To,
    base: Url,
    http: reqwest::Client,
    token: Option<Secret>,
}

impl Client {
    /// A client of the host at `to`. A local socket needs no token.
    ///
    /// # Errors
    /// Where the system's certificates cannot be read.
    pub fn new(to: &To, token: Option<&Secret>) -> Result<Client, ClientError> {
        Client::trusting(to, token, &Trust::default())
    }

    /// As [`new`](Client::new), with certificates of one's own.
    ///
    /// # Errors
    /// Where certificates cannot be read.
    pub fn trusting(to: &To, token: Option<&Secret>, trust: &Trust) -> Result<Client, ClientError> {
        // The first provider stays; whichever it is serves.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("tenon/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT)
            // The host ends a connection on which nothing is asked for.
            .pool_idle_timeout(Duration::from_secs(5));
        if let Some(path) = &trust.ca {
            let failed = |reason: String| ClientError::File { path: path.clone(), reason };
            let read = reqwest::Certificate::from_pem_bundle(&read_pem(path)?);
            let read = read.map_err(|error| failed(reason(&error)))?;
            if read.is_empty() {
                return Err(failed("there is no certificate in it".to_owned()));
            }
            builder = builder.tls_certs_merge(read);
        }
        if let Some(path) = &trust.certificate {
            let read = reqwest::Identity::from_pem(&read_pem(path)?);
            let failed = |error: reqwest::Error| ClientError::File {
                path: path.clone(),
                reason: format!("{}; it must have a certificate and its key", reason(&error)),
            };
            builder = builder.identity(read.map_err(failed)?);
        }
        let base = match to {
            To::Url(url) => {
                if is_local(url) {
                    builder = builder.no_proxy();
                }
                Url::clone(url)
            }
            To::Socket(path) => {
                builder = builder.unix_socket(path.as_path());
                Url::parse("http://localhost/").expect("this is a URL")
            }
        };
        let failed =
            |error: reqwest::Error| ClientError::Unreachable { to: to.clone(), reason: reason(&error) };
        let http = builder.build().map_err(failed)?;
        Ok(Client { to: to.clone(), base, http, token: token.cloned() })
    }

    /// Where the host is.
    pub fn to(&self) -> &To {
        &self.to
    }

    /// What the host serves.
    ///
    /// # Errors
    /// As every call: where the host cannot be reached, refuses, or answers strangely.
    pub async fn status(&self) -> Result<HostStatus, ClientError> {
        self.get("/v1/status", "it was asked for its status").await
    }

    /// What is known of one app.
    ///
    /// # Errors
    /// As [`status`](Client::status).
    pub async fn app(&self, app: &str) -> Result<AppStatus, ClientError> {
        self.get(&self.of(app, "")?, "it was asked for an app").await
    }

    /// Has a revision made, and answers when it is ready to take traffic. `on_progress` sees every line but the last.
    ///
    /// # Errors
    /// As [`status`](Client::status); where the host goes on but is not heard of any more.
    pub async fn prepare(
        &self,
        prepare: &Prepare,
        mut on_progress: impl FnMut(&Progress),
    ) -> Result<Prepared, ClientError> {
        const WHAT: &str = "a revision was made ready";
        let request = self.posting("/v1/revisions", prepare)?;
        let response = self.perform(request, WHAT).await?;
        let mut lines = Lines { client: self, response, bytes: Vec::new() };
        while let Some(line) = lines.next(WHAT).await? {
            match self.read::<Progress>(&line)? {
                Progress::Ready { prepared } => return Ok(prepared),
                Progress::Failed { error } => return Err(self.refused(error)),
                progress => on_progress(&progress),
            }
        }
        Err(self.broken(WHAT, "it ended too early"))
    }

    /// Forgets a revision that takes no traffic.
    ///
    /// # Errors
    /// As [`status`](Client::status).
    pub async fn discard(&self, app: &str, revision: u64) -> Result<(), ClientError> {
        let path = self.of(app, &format!("/revisions/{revision}"))?;
        self.done(self.request(Method::DELETE, &path)?, "a revision was discarded").await
    }

    /// Starts the rollout of a prepared revision.
    ///
    /// # Errors
    /// As [`status`](Client::status).
    pub async fn start(&self, app: &str, start: &Start) -> Result<RolloutStatus, ClientError> {
        self.post(&self.of(app, "/rollout")?, start, "a rollout was started").await
    }

    /// Goes on to the next step, or past all.
    ///
    /// # Errors
    /// As [`status`](Client::status).
    pub async fn promote(&self, app: &str, command: &Command) -> Result<RolloutStatus, ClientError> {
        self.command(app, "promote", command).await
    }

    /// Keeps a rollout at its step.
    ///
    /// # Errors
    /// As [`status`](Client::status).
    pub async fn pause(&self, app: &str, command: &Command) -> Result<RolloutStatus, ClientError> {
        self.command(app, "pause", command).await
    }

    /// Goes on after a pause.
    ///
    /// # Errors
    /// As [`status`](Client::status).
    pub async fn resume(&self, app: &str, command: &Command) -> Result<RolloutStatus, ClientError> {
        self.command(app, "resume", command).await
    }

    /// Sends all traffic to the stable revision at once, or to an earlier one.
    ///
    /// # Errors
    /// As [`status`](Client::status).
    pub async fn rollback(&self, app: &str, command: &Command) -> Result<RolloutStatus, ClientError> {
        self.command(app, "rollback", command).await
    }

    /// Takes an app out of service.
    ///
    /// # Errors
    /// As [`status`](Client::status).
    pub async fn remove(&self, app: &str) -> Result<(), ClientError> {
        self.done(self.request(Method::DELETE, &self.of(app, "")?)?, "an app was removed").await
    }

    /// What happened to an app, the latest first.
    ///
    /// # Errors
    /// As [`status`](Client::status).
    pub async fn history(
        &self,
        app: &str,
        before: Option<u64>,
        limit: usize,
    ) -> Result<Vec<HistoryEntry>, ClientError> {
        let before = before.map_or_else(String::new, |before| format!("&before={before}"));
        let path = self.of(app, &format!("/history?limit={limit}{before}"))?;
        self.get(&path, "it was asked for a history").await
    }

    /// How far shadowed answers agree.
    ///
    /// # Errors
    /// As [`status`](Client::status).
    pub async fn shadow(&self, app: &str) -> Result<ShadowStatus, ClientError> {
        self.get(&self.of(app, "/shadow")?, "it was asked how answers agree").await
    }

    /// Whether the host has a blob.
    ///
    /// # Errors
    /// As [`status`](Client::status).
    pub async fn has_blob(&self, digest: &Digest) -> Result<bool, ClientError> {
        let request = self.request(Method::HEAD, &format!("/v1/blobs/{digest}"))?;
        let response = self.send(request, "it was asked for a blob").await?;
        match response.status() {
            StatusCode::OK => Ok(true),
            StatusCode::NOT_FOUND => Ok(false),
            // The answer to HEAD has no body that could say more.
            status => Err(self.refused(Refusal {
                title: status.canonical_reason().unwrap_or("error").to_owned(),
                status: status.as_u16(),
                detail: match status {
                    StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                        "the token does not let anybody deploy; give one that has the scope `deploy` \
                         (--token-file or TENON_TOKEN)"
                            .to_owned()
                    }
                    status => format!("it answered with the status {status} when it was asked for a blob"),
                },
            })),
        }
    }

    /// Sends a blob. `sent` is told how many bytes have gone, now and then; it begins anew where the host asks for
    /// the blob once more.
    ///
    /// # Errors
    /// As [`status`](Client::status), and where the file cannot be read.
    pub async fn put_blob(
        &self,
        digest: &Digest,
        content: &Content,
        sent: &(dyn Fn(u64) + Sync),
    ) -> Result<(), ClientError> {
        let mut wait = BACKOFF;
        for _ in 0..RETRIES {
            match self.put_once(digest, content, sent).await {
                Err(ClientError::Refused { refusal, .. }) if refusal.title == "try-again" => {}
                done => return done,
            }
            tokio::time::sleep(wait).await;
            wait *= 2;
        }
        self.put_once(digest, content, sent).await
    }

    async fn put_once(
        &self,
        digest: &Digest,
        content: &Content,
        sent: &(dyn Fn(u64) + Sync),
    ) -> Result<(), ClientError> {
        const WHAT: &str = "a blob was sent";
        let taken = Arc::new(AtomicU64::new(0));
        let (body, length) = match content {
            Content::Bytes(bytes) => (reqwest::Body::from(bytes.clone()), bytes.len() as u64),
            Content::File(path) => {
                let failed = |error: std::io::Error| ClientError::File {
                    path: path.clone(),
                    reason: error.to_string(),
                };
                let length = tokio::fs::metadata(path).await.map_err(failed)?.len();
                let body = FileBody::open(path, 0, length, Arc::clone(&taken));
                (reqwest::Body::wrap(body), length)
            }
        };
        let request = self
            .request(Method::PUT, &format!("/v1/blobs/{digest}"))?
            .header(header::CONTENT_TYPE, "application/octet-stream")
            .header(header::CONTENT_LENGTH, length)
            .body(body);
        let mut sending = std::pin::pin!(request.send());
        let (mut before, mut changed) = (0, Instant::now());
        let response = loop {
            match timeout(Duration::from_millis(200), sending.as_mut()).await {
                Ok(answered) => break answered.map_err(|error| self.unsent(&error, WHAT))?,
                Err(_) => {
                    let now = taken.load(Ordering::Relaxed);
                    sent(now);
                    if now != before {
                        (before, changed) = (now, Instant::now());
                    }
                    // The host writes what it has to its disk before it answers.
                    let patience = if now == length { ANSWER } else { STALL };
                    if changed.elapsed() > patience {
                        return Err(self.broken(WHAT, "nothing more was taken"));
                    }
                }
            }
        };
        self.whole(response, WHAT).await?;
        sent(length);
        Ok(())
    }

    async fn command(&self, app: &str, verb: &str, command: &Command) -> Result<RolloutStatus, ClientError> {
        let path = self.of(app, &format!("/rollout/{verb}"))?;
        self.post(&path, command, &format!("it was told to {verb}")).await
    }

    /// The path of what is below an app. A name that no app can have is refused here: it might mean another path.
    fn of(&self, app: &str, below: &str) -> Result<String, ClientError> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        let is_name = app.starts_with(|c: char| c.is_ascii_alphanumeric()) && app.chars().all(allowed);
        match is_name {
            true => Ok(format!("/v1/apps/{app}{below}")),
            false => Err(self.refused(Refusal {
                title: "app-not-found".to_owned(),
                status: 404,
                detail: format!("no app can have the name `{}`", printable(app, SHOWN_CHARS)),
            })),
        }
    }

    fn request(&self, method: Method, path: &str) -> Result<RequestBuilder, ClientError> {
        let url = self
            .base
            .join(path)
            .map_err(|error| ClientError::Strange { to: self.to.clone(), reason: error.to_string() })?;
        let request = self.http.request(method, url);
        let Some(token) = &self.token else { return Ok(request) };
        let mut value = header::HeaderValue::from_str(&format!("Bearer {}", token.0))
            .map_err(|_| ClientError::Token { to: self.to.clone() })?;
        value.set_sensitive(true);
        Ok(request.header(header::AUTHORIZATION, value))
    }

    fn posting(&self, path: &str, body: &impl Serialize) -> Result<RequestBuilder, ClientError> {
        let body = serde_json::to_vec(body)
            .map_err(|error| ClientError::Strange { to: self.to.clone(), reason: error.to_string() })?;
        let request = self.request(Method::POST, path)?;
        Ok(request.header(header::CONTENT_TYPE, "application/json").body(body))
    }

    async fn get<T: DeserializeOwned>(&self, path: &str, what: &str) -> Result<T, ClientError> {
        let response = self.perform(self.request(Method::GET, path)?, what).await?;
        self.read(&self.collect(response, MAX_ANSWER_BYTES, what).await?)
    }

    async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
        what: &str,
    ) -> Result<T, ClientError> {
        let response = self.perform(self.posting(path, body)?, what).await?;
        self.read(&self.collect(response, MAX_ANSWER_BYTES, what).await?)
    }

    async fn done(&self, request: RequestBuilder, what: &str) -> Result<(), ClientError> {
        self.perform(request, what).await.map(drop)
    }

    async fn perform(&self, request: RequestBuilder, what: &str) -> Result<Response, ClientError> {
        let response = self.send(request, what).await?;
        self.whole(response, what).await
    }

    async fn send(&self, request: RequestBuilder, what: &str) -> Result<Response, ClientError> {
        match timeout(ANSWER, request.send()).await {
            Ok(answered) => answered.map_err(|error| self.unsent(&error, what)),
            Err(_) => Err(self.broken(what, "it gave no answer")),
        }
    }

    /// An answer that is no error.
    async fn whole(&self, response: Response, what: &str) -> Result<Response, ClientError> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = self.collect(response, MAX_LINE_BYTES, what).await?;
        match serde_json::from_slice::<Refusal>(&body) {
            Ok(refusal) => Err(self.refused(Refusal { status: status.as_u16(), ..refusal })),
            Err(_) => Err(ClientError::Strange {
                to: self.to.clone(),
                reason: format!("{status} {}", printable(&String::from_utf8_lossy(&body), SHOWN_CHARS)),
            }),
        }
    }

    async fn collect(
        &self,
        mut response: Response,
        limit: usize,
        what: &str,
    ) -> Result<Vec<u8>, ClientError> {
        let mut body = Vec::new();
        while let Some(piece) = self.piece(&mut response, what).await? {
            if body.len() + piece.len() > limit {
                let reason = format!("its answer is longer than {limit} bytes");
                return Err(ClientError::Strange { to: self.to.clone(), reason });
            }
            body.extend_from_slice(&piece);
        }
        Ok(body)
    }

    async fn piece(&self, response: &mut Response, what: &str) -> Result<Option<Bytes>, ClientError> {
        match timeout(STALL, response.chunk()).await {
            Ok(piece) => piece.map_err(|error| self.broken(what, &reason(&error))),
            Err(_) => Err(self.broken(what, "nothing more came")),
        }
    }

    fn read<T: DeserializeOwned>(&self, bytes: &[u8]) -> Result<T, ClientError> {
        serde_json::from_slice(bytes).map_err(|error| ClientError::Strange {
            to: self.to.clone(),
            reason: printable(&error.to_string(), SHOWN_CHARS),
        })
    }

    fn refused(&self, refusal: Refusal) -> ClientError {
        ClientError::Refused { to: self.to.clone(), refusal }
    }

    fn broken(&self, what: &str, reason: &str) -> ClientError {
        let (to, what, reason) = (self.to.clone(), what.to_owned(), reason.to_owned());
        ClientError::Broken { to, what, reason }
    }

    /// Why a request had no answer.
    fn unsent(&self, error: &reqwest::Error, what: &str) -> ClientError {
        if !error.is_connect() {
            return self.broken(what, &reason(error));
        }
        let advice = match &self.to {
            To::Socket(_) => "is `tenon serve` running, with this state folder and as this user?",
            To::Url(_) => "is `tenon serve` running there, with `control.listen` in its host.toml?",
        };
        ClientError::Unreachable { to: self.to.clone(), reason: format!("{}; {advice}", reason(error)) }
    }
}

/// An answer of one JSON object a line.
struct Lines<'c> {
    client: &'c Client,
    response: Response,
    bytes: Vec<u8>,
}

impl Lines<'_> {
    /// The next line that is not empty: an empty one only says that the host goes on.
    async fn next(&mut self, what: &str) -> Result<Option<Vec<u8>>, ClientError> {
        loop {
            while let Some(end) = self.bytes.iter().position(|byte| *byte == b'\n') {
                let mut line: Vec<u8> = self.bytes.drain(..=end).collect();
                line.pop();
                if !line.trim_ascii().is_empty() {
                    return Ok(Some(line));
                }
            }
            if self.bytes.len() > MAX_LINE_BYTES {
                let reason = "a line of its answer does not end".to_owned();
                return Err(ClientError::Strange { to: self.client.to.clone(), reason });
            }
            match self.client.piece(&mut self.response, what).await? {
                Some(piece) => self.bytes.extend_from_slice(&piece),
                None => return Ok(None),
            }
        }
    }
}

/// The most bytes of a file of TLS.
const MAX_PEM_BYTES: u64 = 1 << 20;

fn read_pem(path: &Path) -> Result<Vec<u8>, ClientError> {
    let failed = |reason: String| ClientError::File { path: path.to_owned(), reason };
    let mut pem = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MAX_PEM_BYTES + 1).read_to_end(&mut pem));
    read.map_err(|error| failed(error.to_string()))?;
    match pem.len() as u64 > MAX_PEM_BYTES {
        true => Err(failed("it is too long to be a file of certificates".to_owned())),
        false => Ok(pem),
    }
}

/// The innermost reason, which says most.
fn reason(error: &reqwest::Error) -> String {
    let mut source = std::error::Error::source(error);
    let mut reason = None;
    while let Some(inner) = source {
        reason = Some(inner.to_string());
        source = inner.source();
    }
    let kind = if error.is_timeout() { "it took too long" } else { "the request failed" };
    printable(&reason.unwrap_or_else(|| kind.to_owned()), SHOWN_CHARS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_strictly() {
        let check = |text: &str, expected: Option<&str>| {
            let shown = text.parse::<To>().ok().map(|to| to.to_string());
            assert_eq!(shown.as_deref(), expected, "{text}");
        };
        check("https://host:3002", Some("https://host:3002"));
        check("http://[::1]:3002/", Some("http://[::1]:3002"));
        check("unix:/run/tenon.sock", Some("unix:/run/tenon.sock"));
        check("unix:///run/tenon.sock", Some("unix:/run/tenon.sock"));
        for wrong in [
            "",
            "host:3002",
            "host",
            "/run/tenon.sock",
            "unix:tenon.sock",
            "ftp://host",
            "https://user:word@host",
            "https://host/v1",
            "https://host?x",
            "https://",
        ] {
            check(wrong, None);
        }
    }

    #[test]
    fn only_what_leaves_the_machine_without_tls_is_overheard() {
        let check = |text: &str, expected: bool| {
            assert_eq!(text.parse::<To>().unwrap().is_overheard(), expected, "{text}");
        };
        check("http://host:3002", true);
        check("http://10.0.0.1:3002", true);
        check("https://host:3002", false);
        check("http://127.0.0.1:3002", false);
        check("http://[::1]:3002", false);
        check("http://localhost:3002", false);
        check("unix:/s", false);
    }
}
