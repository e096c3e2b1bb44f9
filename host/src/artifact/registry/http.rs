//! One request to a registry: which client, redirects, authorization, bounds on time and size, and what an answer
//! means.
//!
//! This is reqwest alone. oci-client has these requests too, but reads every answer whole, however long; drops the
//! reason when a login fails; and hides statuses and headers (`Retry-After`, `Content-Range`, digests) that decide
//! here. Redirects are followed here rather than by reqwest, so that no credentials can go along.

use std::error::Error;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName};
use http::{Method, StatusCode};
use reqwest::{RequestBuilder, Response, Url};
use serde::Deserialize;
use tokio_rustls::rustls;

use super::Options;
use super::authorization::{Access, Authorizations, Challenge, Grant, origin};
use super::error::{Failure, RegistryError, printable};
use super::pace::Pace;
use crate::artifact::reference::Reference;

/// How long connecting may take, with TLS.
const CONNECT: Duration = Duration::from_secs(15);
/// The longest wait that a registry may ask for.
const MAX_WAIT: Duration = Duration::from_secs(60);
const MAX_REDIRECTS: usize = 5;
/// The largest text of an error that is read, in bytes.
const MAX_ERROR_BYTES: u64 = 16 << 10;
/// How much of it is shown.
const MESSAGE_CHARS: usize = 300;

/// The way to registries.
pub(super) struct Client {
    pub(super) options: Options,
    pub(super) authorizations: Authorizations,
    /// With the proxies of the environment.
    outside: reqwest::Client,
    /// Without: for this machine's own names, which no proxy knows.
    local: reqwest::Client,
    /// Whether any registry has answered. Before that, a refused connection is a wrong name sooner than a bad moment.
    reached: AtomicBool,
}

/// A request that can be made again: its body, if any, is small.
pub(super) struct Request<'a> {
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) headers: Vec<(HeaderName, String)>,
    pub(super) body: Bytes,
    /// For messages: the connection broke during ...
    pub(super) what: &'a str,
}

impl<'a> Request<'a> {
    pub(super) fn new(method: Method, url: Url, what: &'a str) -> Request<'a> {
        Request { method, url, headers: Vec::new(), body: Bytes::new(), what }
    }

    #[must_use]
    pub(super) fn with(mut self, name: HeaderName, value: impl Into<String>) -> Request<'a> {
        self.headers.push((name, value.into()));
        self
    }
}

/// An answer that is not one of those that mean the same for every request.
pub(super) struct Answer {
    pub(super) response: Response,
    /// It came from another place than the registry, by a redirect.
    pub(super) is_foreign: bool,
}

impl Client {
    pub(super) fn new(options: Options) -> Result<Client, RegistryError> {
        // The first provider stays; whichever it is serves.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let authorities = match &options.settings.ca {
            None => Vec::new(),
            Some(path) => {
                let failed = |reason: String| RegistryError::Authorities { path: path.clone(), reason };
                let pem = std::fs::read(path).map_err(|error| failed(error.to_string()))?;
                let read = reqwest::Certificate::from_pem_bundle(&pem);
                let authorities = read.map_err(|error| failed(reason(&error)))?;
                if authorities.is_empty() {
                    return Err(failed("there is no certificate in it".to_owned()));
                }
                authorities
            }
        };
        let build = |change: fn(reqwest::ClientBuilder) -> reqwest::ClientBuilder| {
            let builder = reqwest::Client::builder()
                .user_agent(concat!("tenon/", env!("CARGO_PKG_VERSION")))
                .redirect(reqwest::redirect::Policy::none())
                .connect_timeout(CONNECT.min(options.stall()))
                .tls_certs_merge(authorities.clone());
            change(builder).build().map_err(|error| match &options.settings.ca {
                Some(path) => RegistryError::Authorities { path: path.clone(), reason: reason(&error) },
                None => RegistryError::Client(reason(&error)),
            })
        };
        let (outside, local) = (build(|builder| builder)?, build(reqwest::ClientBuilder::no_proxy)?);
        let (authorizations, reached) = (Authorizations::default(), AtomicBool::new(false));
        Ok(Client { options, authorizations, outside, local, reached })
    }

    /// Whether a registry is spoken to without TLS.
    pub(super) fn is_plain(&self, reference: &Reference) -> bool {
        let Options { settings, plain_http, named, .. } = &self.options;
        let is_among = |registries: &[String]| registries.iter().any(|one| one == reference.registry());
        is_among(&settings.insecure) || *plain_http && (is_among(named) || is_loopback(reference.host()))
    }

    /// The address of `path` below a repository: `manifests/latest`, `blobs/sha256:...`.
    pub(super) fn url(&self, reference: &Reference, path: &str) -> Result<Url, RegistryError> {
        let scheme = if self.is_plain(reference) { "http" } else { "https" };
        let url = format!("{scheme}://{}/v2/{}/{path}", reference.host(), reference.repository());
        Url::parse(&url).map_err(|error| RegistryError::Unreachable {
            registry: reference.registry().to_owned(),
            reason: error.to_string(),
        })
    }

    /// Whether a request to `url` reaches the registry itself.
    pub(super) fn is_own(&self, reference: &Reference, url: &Url) -> bool {
        self.url(reference, "").is_ok_and(|own| own.origin() == url.origin())
    }

    pub(super) fn http(&self, url: &Url) -> &reqwest::Client {
        let is_local = match url.host_str() {
            Some("localhost") => true,
            Some(host) => host
                .trim_matches(['[', ']'])
                .parse::<std::net::IpAddr>()
                .is_ok_and(|address| address.is_loopback()),
            None => false,
        };
        if is_local { &self.local } else { &self.outside }
    }

    /// Makes a request: answers challenges, follows redirects, and tells apart what may pass from what will not.
    ///
    /// # Errors
    /// Where there is no answer, the registry wants other credentials, or is not able to answer now.
    pub(super) async fn send(&self, request: &Request<'_>, access: &Access) -> Result<Answer, Failure> {
        let registry = access.reference.registry();
        let mut url = request.url.clone();
        let mut grant = self.granted(access).await;
        let mut is_challenged = false;
        let mut redirects = 0;
        loop {
            let is_own = self.is_own(&access.reference, &url);
            let shown = grant.as_ref().filter(|_| is_own);
            let response = self.once(request, &url, shown, registry).await?;
            let status = response.status();
            if status == StatusCode::UNAUTHORIZED && is_own && !is_challenged {
                is_challenged = true;
                let values = response.headers().get_all(header::WWW_AUTHENTICATE);
                let challenge = Challenge::read(values.iter().filter_map(|value| value.to_str().ok()));
                if let Some(challenge) = challenge {
                    grant = self.authorize(access, &challenge).await?;
                    if grant.is_some() {
                        continue;
                    }
                }
                return Err(self.refused(response, access, request.what).await);
            }
            if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) && is_own {
                return Err(self.refused(response, access, request.what).await);
            }
            let target = self.redirect(&response, &url, request, registry)?;
            let Some(target) = target else {
                self.check_passing(&response, registry, request.what)?;
                return Ok(Answer { response, is_foreign: !is_own });
            };
            redirects += 1;
            if redirects > MAX_REDIRECTS {
                let reason = format!("it was redirected more than {MAX_REDIRECTS} times");
                let (registry, what) = (registry.to_owned(), request.what.to_owned());
                return Err(RegistryError::Broken { registry, what, reason }.into());
            }
            url = target;
        }
    }

    async fn once(
        &self,
        request: &Request<'_>,
        url: &Url,
        grant: Option<&Grant>,
        registry: &str,
    ) -> Result<Response, Failure> {
        let mut builder = self.http(url).request(request.method.clone(), url.clone());
        for (name, value) in &request.headers {
            builder = builder.header(name, value);
        }
        if request.method != Method::GET && request.method != Method::HEAD {
            // Some registries insist on a length, also of nothing.
            builder = builder.header(header::CONTENT_LENGTH, request.body.len()).body(request.body.clone());
        }
        let builder = match grant {
            Some(grant) => grant.apply(builder),
            None => builder,
        };
        self.perform(builder, registry, request.what).await
    }

    /// Where a redirect leads, if the answer is one that is followed.
    fn redirect(
        &self,
        response: &Response,
        from: &Url,
        request: &Request<'_>,
        registry: &str,
    ) -> Result<Option<Url>, RegistryError> {
        let is_read = matches!(request.method, Method::GET | Method::HEAD);
        if !is_read || !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
            return Ok(None);
        }
        let broken = |reason: String| RegistryError::Broken {
            registry: registry.to_owned(),
            what: request.what.to_owned(),
            reason,
        };
        let location = response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
        let target = location.and_then(|location| from.join(location).ok());
        let target = target.ok_or_else(|| broken("it was redirected to no address".to_owned()))?;
        match (from.scheme(), target.scheme()) {
            (_, "https") | ("http", "http") => Ok(Some(target)),
            _ => Err(broken(format!("it was redirected to `{}`, which is without TLS", origin(&target)))),
        }
    }

    /// Sends a request and waits for the head of its answer, within a bound.
    pub(super) async fn perform(
        &self,
        request: RequestBuilder,
        registry: &str,
        what: &str,
    ) -> Result<Response, Failure> {
        let stall = self.options.stall();
        let bound = CONNECT.min(stall) + stall;
        let response = match tokio::time::timeout(bound, request.send()).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => return Err(self.unsent(error, registry, what)),
            Err(_) => {
                return Err(broken(registry, what, &format!("no answer within {} s", bound.as_secs_f32())));
            }
        };
        self.reached.store(true, Ordering::Relaxed);
        Ok(response)
    }

    /// What it means that a request could not be sent, or has no answer.
    pub(super) fn unsent(&self, error: reqwest::Error, registry: &str, what: &str) -> Failure {
        let host = error.url().and_then(Url::host_str).unwrap_or(registry).to_owned();
        match tls(&error) {
            Some(rustls::Error::InvalidMessage(_)) => {
                return RegistryError::Plain { registry: registry.to_owned() }.into();
            }
            Some(rustls::Error::InvalidCertificate(reason)) => {
                return RegistryError::Certificate { host, reason: format!("{reason:?}") }.into();
            }
            _ => {}
        }
        if error.is_builder() {
            return RegistryError::Unreachable { registry: registry.to_owned(), reason: reason(&error) }
                .into();
        }
        let failure = broken(registry, what, &reason(&error));
        match error.is_connect() && !self.reached.load(Ordering::Relaxed) {
            true => {
                let reason = reason(&error);
                RegistryError::Unreachable { registry: registry.to_owned(), reason }.into()
            }
            false => failure,
        }
    }

    /// Fails where a registry says that it cannot answer now.
    pub(super) fn check_passing(
        &self,
        response: &Response,
        registry: &str,
        what: &str,
    ) -> Result<(), Failure> {
        let status = response.status();
        if !matches!(status.as_u16(), 408 | 425 | 429 | 500 | 502 | 503 | 504) {
            return Ok(());
        }
        // A date in place of seconds is left to our own waits.
        let wait = response.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok());
        let wait = wait.and_then(|value| value.trim().parse().ok()).map(Duration::from_secs);
        if let Some(wait) = wait.filter(|wait| *wait > MAX_WAIT) {
            return Err(RegistryError::Busy { registry: registry.to_owned(), wait }.into());
        }
        let (registry, what) = (registry.to_owned(), what.to_owned());
        let status = status.as_u16();
        let message = String::new();
        Err(Failure::passing(RegistryError::Status { registry, what, status, message }, wait))
    }

    /// What a refusal means, and what to do about it.
    pub(super) async fn refused(&self, response: Response, access: &Access, what: &str) -> Failure {
        let (registry, repository) = (access.reference.registry().to_owned(), access.reference.repository());
        let (repository, action) = (repository.to_owned(), access.action());
        let message = self.message(response, &registry, what).await;
        let reason =
            if message.is_empty() { message } else { format!(" ({})", message.trim_start_matches(": ")) };
        let error = match self.source_of(access).await {
            Some(source_of) => RegistryError::Denied { registry, repository, action, source_of, reason },
            None => RegistryError::Anonymous { registry, repository, action, reason },
        };
        error.into()
    }

    /// An answer that the caller has no use for.
    pub(super) async fn unexpected(&self, response: Response, registry: &str, what: &str) -> Failure {
        if let Err(failure) = self.check_passing(&response, registry, what) {
            return failure;
        }
        let status = response.status().as_u16();
        let host = response.url().host_str().unwrap_or_default().to_owned();
        let is_page = is_page(response.headers());
        let message = self.message(response, registry, what).await;
        // What Go's and nginx's servers say to plain HTTP where they speak TLS.
        let (registry, what) = (registry.to_owned(), what.to_owned());
        if status == 400 && message.to_ascii_lowercase().contains("to an https server")
            || message.contains("plain HTTP request was sent to HTTPS port")
        {
            return RegistryError::NotPlain { registry }.into();
        }
        if is_page {
            let found = format!("a web page, status {status}");
            return RegistryError::NotARegistry { host, registry, what, found }.into();
        }
        RegistryError::Status { registry, what, status, message }.into()
    }

    /// What a registry says of a failure: `: ` and its messages, or nothing.
    async fn message(&self, response: Response, registry: &str, what: &str) -> String {
        #[derive(Deserialize)]
        struct Errors {
            errors: Vec<Message>,
        }
        #[derive(Deserialize)]
        struct Message {
            #[serde(default)]
            code: String,
            #[serde(default)]
            message: String,
        }
        let is_page = is_page(response.headers());
        let Ok(body) = self.body(response, MAX_ERROR_BYTES, registry, what).await else {
            return String::new();
        };
        let text = match serde_json::from_slice::<Errors>(&body) {
            Ok(said) => said
                .errors
                .into_iter()
                .map(|error| if error.message.is_empty() { error.code } else { error.message })
                .collect::<Vec<_>>()
                .join("; "),
            Err(_) if is_page => String::new(),
            Err(_) => String::from_utf8_lossy(&body).into_owned(),
        };
        let text = printable(&text, MESSAGE_CHARS);
        if text.is_empty() { text } else { format!(": {text}") }
    }

    /// The bytes of an answer that must be small, within a bound on the time.
    ///
    /// # Errors
    /// Where there are more than `limit`, or they do not come.
    pub(super) async fn body(
        &self,
        mut response: Response,
        limit: u64,
        registry: &str,
        what: &str,
    ) -> Result<Vec<u8>, Failure> {
        let large = || RegistryError::Large { what: what.to_owned(), registry: registry.to_owned(), limit };
        if response.content_length().is_some_and(|length| length > limit) {
            return Err(large().into());
        }
        let mut pace = Pace::new(self.options.stall(), self.options.grace, limit);
        let mut body = Vec::new();
        while let Some(chunk) = pace.next(&mut response, registry, what).await? {
            if body.len() as u64 + chunk.len() as u64 > limit {
                return Err(large().into());
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }
}

pub(super) fn broken(registry: &str, what: &str, reason: &str) -> Failure {
    let (registry, what, reason) = (registry.to_owned(), what.to_owned(), reason.to_owned());
    Failure::passing(RegistryError::Broken { registry, what, reason }, None)
}

/// Why a request failed, without its address, which may have a token in its query: the innermost reason says most.
pub(super) fn reason(error: &reqwest::Error) -> String {
    let mut source = error.source();
    let mut reason = None;
    while let Some(inner) = source {
        reason = Some(inner.to_string());
        source = inner.source();
    }
    let kind = if error.is_timeout() { "it took too long" } else { "the request failed" };
    printable(&reason.unwrap_or_else(|| kind.to_owned()), MESSAGE_CHARS)
}

/// The failure of TLS among the reasons.
fn tls<'e>(error: &'e (dyn Error + 'static)) -> Option<&'e rustls::Error> {
    if let Some(found) = error.downcast_ref::<rustls::Error>() {
        return Some(found);
    }
    // An I/O error hides what it was made of from `source`.
    let hidden = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    let inner = hidden.map(|hidden| hidden as &(dyn Error + 'static)).or_else(|| error.source());
    inner.and_then(tls)
}

/// Whether an answer is a web page, which no registry sends.
pub(super) fn is_page(headers: &HeaderMap) -> bool {
    let media_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    media_type.is_some_and(|media_type| media_type.trim_start().to_ascii_lowercase().starts_with("text/html"))
}

/// Whether what is sent to a host stays on this machine.
fn is_loopback(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|c| c.is_ascii_digit()) => name,
        _ => host,
    };
    let address = name.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
    name == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::is_loopback;

    #[test]
    fn this_machine_is_known_by_its_names() {
        for host in ["localhost", "localhost:5000", "127.0.0.1", "127.1.2.3:5000", "[::1]:5000", "[::1]"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in [
            "localhost.example",
            "10.0.0.1:5000",
            "[2001:db8::1]:5000",
            "registry.example",
            "127.0.0.1.example",
        ] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
