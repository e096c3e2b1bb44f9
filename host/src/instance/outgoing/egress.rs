//! Outbound HTTP of guests: what the author allows and the operator lets through, each request on a connection of its
//! own, under the deadline of the call.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use http::{HeaderName, Method, Request, Response, Uri};
use http_body_util::BodyExt as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};
use wasmtime_wasi_http::{
    DEFAULT_FORBIDDEN_HEADERS, Error as HttpError, RequestOptions, WasiBody, WasiHttpHooks,
};

use super::exchange::{Driver, Stream, exchange};
use super::failure;
use super::pauses::Paused;
use crate::network::{AllowedHosts, Destination, DialError, Network, TrustError, well_known_port};
use crate::nn::Meter;

/// What the functions of one component may send requests to.
pub struct Outbound {
    component: String,
    hosts: AllowedHosts,
    network: Arc<Network>,
    /// What the log was told already.
    told: Mutex<BTreeSet<String>>,
}

/// Lines that one component writes to the host's log about requests that were not sent: guests choose what stands in
/// them, and how many there are.
const MOST_TOLD: usize = 32;

/// The most that is logged of what a guest has written.
const LONGEST_TOLD: usize = 300;

/// The places that a request takes, as long as its connection lives.
type Places = Arc<(OwnedSemaphorePermit, OwnedSemaphorePermit)>;

/// A place among the requests of one instance, or the wait for it.
type OwnPlace = Pin<Box<dyn Future<Output = OwnedSemaphorePermit> + Send>>;

/// Queues for a place at once: in the order of sending, not in that in which requests happen to run. A guest that reads
/// its answers in that order would otherwise wait for one whose place a later one has.
fn queue(places: Arc<Semaphore>) -> OwnPlace {
    let acquired = async { places.acquire_owned().await.expect("the semaphore is never closed") };
    let mut place: OwnPlace = Box::pin(tokio::task::unconstrained(acquired));
    match place.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(place) => Box::pin(std::future::ready(place)),
        Poll::Pending => place,
    }
}

/// What the hook answers.
pub(crate) type Sent =
    Result<(Response<WasiBody>, Box<dyn Future<Output = Result<(), HttpError>> + Send>), HttpError>;

impl std::fmt::Debug for Outbound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outbound").field("component", &self.component).finish_non_exhaustive()
    }
}

impl Outbound {
    pub fn new(component: &str, hosts: AllowedHosts, network: &Arc<Network>) -> Outbound {
        let (component, network) = (component.to_owned(), Arc::clone(network));
        Outbound { component, hosts, network, told: Mutex::default() }
    }

    async fn send(
        &self,
        request: Request<WasiBody>,
        options: RequestOptions,
        own_place: OwnPlace,
        deadline: Instant,
    ) -> Sent {
        let target = Target::of(request.uri())?;
        // It would make a tunnel.
        if request.method() == Method::CONNECT {
            return Err(HttpError::HttpRequestMethodInvalid);
        }
        self.admit(&target)?;
        let bounds = self.network.bounds;
        let until =
            |asked: Option<Duration>, most| (Instant::now() + asked.unwrap_or(most).min(most)).min(deadline);
        let connected = until(options.connect_timeout, bounds.connect);
        let (stream, places) = self.connect(&target, own_place, connected).await?;
        let answered = until(options.first_byte_timeout, bounds.first_byte);
        let (response, driver) = exchange(stream, request, connected, answered).await?;
        let pause = options.between_bytes_timeout.unwrap_or(bounds.between_bytes).min(bounds.between_bytes);
        let held = Arc::clone(&places);
        let response = response.map(|body| Paused::new(body, pause, deadline, held).boxed_unsync());
        Ok((response, Box::new(drive(driver, places))))
    }

    /// Whether the author has allowed it.
    fn admit(&self, target: &Target) -> Result<(), HttpError> {
        let Target { scheme, destination, port } = target;
        let entry = AllowedHosts::entry(scheme, destination, *port);
        if !self.hosts.allows(scheme, destination, *port) {
            self.tell(format!(
                "a request to `{entry}` was denied; to allow it, add {entry:?} to `allowed_outbound_hosts` of \
                 `[component.{}]` in spin.toml",
                self.component
            ));
            return Err(HttpError::HttpRequestDenied);
        }
        if *destination == Destination::Own || destination.chained().is_some() {
            self.tell(format!(
                "a request to `{entry}` was denied: this host has no requests of an app to itself"
            ));
            return Err(HttpError::HttpRequestDenied);
        }
        Ok(())
    }

    async fn connect(
        &self,
        target: &Target,
        own_place: OwnPlace,
        until: Instant,
    ) -> Result<(Stream, Places), HttpError> {
        // Its own first: an instance that waits for itself must not keep others waiting.
        let own = timeout_at(until, own_place).await.map_err(|_| HttpError::ConnectionLimitReached)?;
        let place = self.network.place(until).await.map_err(|error| self.dial_failed(&error))?;
        let dialled = self.network.dial(&target.destination, target.port, until).await;
        let stream = dialled.map_err(|error| self.dial_failed(&error))?;
        let stream = match target.scheme {
            "https" => {
                let shaken = self.network.trust.connect(stream, &target.destination, until).await;
                Stream::Tls(Box::new(shaken.map_err(|error| self.trust_failed(target, &error))?))
            }
            _ => Stream::Plain(stream),
        };
        Ok((stream, Arc::new((own, place))))
    }

    fn dial_failed(&self, error: &DialError) -> HttpError {
        if matches!(error, DialError::Prohibited { .. } | DialError::Full) {
            self.tell(format!("a request was not sent: {error}"));
        }
        tracing::debug!(component = self.component, %error, "no connection");
        failure::dial(error)
    }

    fn trust_failed(&self, target: &Target, error: &TrustError) -> HttpError {
        if matches!(error, TrustError::Own { .. } | TrustError::NoAuthorities) {
            self.tell(format!("a request over TLS was not sent: {error}"));
        }
        tracing::debug!(component = self.component, destination = %target.destination, %error, "no TLS");
        failure::trust(error)
    }

    /// Says something in the host's log, once.
    fn tell(&self, mut line: String) {
        if line.len() > LONGEST_TOLD {
            line.truncate(line.floor_char_boundary(LONGEST_TOLD));
            line.push_str("...");
        }
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.len() < MOST_TOLD && !told.contains(&line) {
            tracing::warn!(component = self.component, "{line}");
            told.insert(line);
        }
    }
}

/// Lets the connection work on until it is done, which is when its body has been read or dropped.
async fn drive(driver: Option<Driver>, places: Places) -> Result<(), HttpError> {
    let ended = match driver {
        Some(driver) => driver.await.map_err(|error| failure::exchange(&error)),
        None => Ok(()),
    };
    drop(places);
    ended
}

/// Where a request goes.
#[derive(Debug, PartialEq, Eq)]
struct Target {
    scheme: &'static str,
    destination: Destination,
    port: u16,
}

impl Target {
    fn of(uri: &Uri) -> Result<Target, HttpError> {
        let scheme = match uri.scheme_str() {
            Some("http") => "http",
            Some("https") => "https",
            _ => return Err(HttpError::HttpProtocolError),
        };
        let authority = uri.authority().ok_or(HttpError::HttpRequestUriInvalid)?;
        let host = authority.host();
        // A name and password before the host are refused as well.
        let after = authority.as_str().strip_prefix(host).ok_or(HttpError::HttpRequestUriInvalid)?;
        let port = match after.strip_prefix(':').unwrap_or(after) {
            "" => well_known_port(scheme),
            port => port.parse().ok().filter(|port| *port != 0),
        };
        let port = port.ok_or(HttpError::HttpRequestUriInvalid)?;
        let destination = Destination::parse(host).map_err(|_| HttpError::HttpRequestUriInvalid)?;
        Ok(Target { scheme, destination, port })
    }
}

/// The call's own deadline stops the guest, and its requests with it. What is left then ends so much later: a request
/// that failed a moment before would have the guest answer in place of the host.
const AFTER: Duration = Duration::from_secs(1);

/// The hook of one instance.
pub(crate) struct Egress {
    outbound: Option<Arc<Outbound>>,
    deadline: Instant,
    /// Made with the first request.
    places: Option<Arc<Semaphore>>,
    /// Of an isolated instance, which sends nothing: is told what it wanted to send.
    observer: Option<Meter>,
}

impl Egress {
    pub(crate) fn new(
        outbound: Option<Arc<Outbound>>,
        deadline: std::time::Instant,
        observer: Option<Meter>,
    ) -> Egress {
        Egress { outbound, deadline: Instant::from(deadline) + AFTER, places: None, observer }
    }
}

/// A static, since every use of the constant makes its names anew.
static FORBIDDEN_HEADERS: [HeaderName; 9] = DEFAULT_FORBIDDEN_HEADERS;

impl WasiHttpHooks for Egress {
    fn is_forbidden_header(&mut self, name: &HeaderName) -> bool {
        // What the trait does by itself, without a closure on the heap for every header.
        FORBIDDEN_HEADERS.contains(name)
    }

    fn send_request(
        &mut self,
        request: Request<WasiBody>,
        options: Option<RequestOptions>,
        _: Box<dyn Future<Output = Result<(), HttpError>> + Send>,
    ) -> Box<dyn Future<Output = Sent> + Send> {
        let Some(outbound) = self.outbound.clone() else {
            return Box::new(async { Err(HttpError::HttpRequestDenied) });
        };
        if let Some(observer) = &self.observer {
            let admitted = Target::of(request.uri()).and_then(|target| outbound.admit(&target));
            if admitted.is_ok() {
                observer.denied("outbound-request");
            }
            return Box::new(async { Err(HttpError::HttpRequestDenied) });
        }
        let most = outbound.network.bounds.instance_connections;
        let places = Arc::clone(self.places.get_or_insert_with(|| Arc::new(Semaphore::new(most))));
        let (place, deadline) = (queue(places), self.deadline);
        Box::new(async move { outbound.send(request, options.unwrap_or_default(), place, deadline).await })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_told_from_uris() {
        let check = |uri: &str, expected: Option<(&str, u16)>| {
            let target = Target::of(&uri.parse().unwrap()).ok();
            let found = target.map(|target| (target.destination.to_string(), target.port));
            assert_eq!(found, expected.map(|(host, port)| (host.to_owned(), port)), "{uri}");
        };
        check("http://Example.com/a", Some(("example.com", 80)));
        check("https://example.com", Some(("example.com", 443)));
        check("https://example.com:/", Some(("example.com", 443)));
        check("http://[::1]:8080/", Some(("[::1]", 8080)));
        check("http://self.alt/", Some(("self", 80)));
        check("http://user:secret@example.com/", None);
        check("http://example.com:0/", None);
        check("http://example.com:99999/", None);
        check("http://2130706433/", None);
        check("ftp://example.com/", None);
        check("/path", None);
    }
}
