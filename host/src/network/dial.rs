//! Connections: a name is resolved once, each of its addresses is judged, and exactly one of those that passed is
//! connected to.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

use super::{AddressPolicy, Destination, Refused, Trust};

/// Addresses of one name that are looked at; more are dropped.
const MOST_ADDRESSES: usize = 16;

/// Names that are looked up at once. A look-up holds a thread until the system gives up on it, which may be long after
/// its caller has.
const LOOKUPS: usize = 64;

/// What is asked for the addresses of a name.
pub type Resolve = dyn Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync;

/// The most that connections may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Connections at once, over all functions.
    pub connections: usize,
    /// Connections of one instance at once.
    pub instance_connections: usize,
    /// Until a connection is there, with what leads to it: its place, its name, TLS.
    pub connect: Duration,
    /// Until an answer begins.
    pub first_byte: Duration,
    /// While nothing of an answer comes.
    pub between_bytes: Duration,
}

/// The way out of this host, shared by all functions.
pub struct Network {
    pub bounds: Bounds,
    policy: AddressPolicy,
    pub trust: Trust,
    resolve: Arc<Resolve>,
    lookups: Arc<Semaphore>,
    places: Arc<Semaphore>,
}

/// Why there is no connection.
#[derive(Debug, Error)]
pub enum DialError {
    #[error("`{name}` cannot be resolved: {source}")]
    Resolve { name: String, source: io::Error },
    #[error("the name `{0}` could not be resolved in time")]
    ResolveTimeout(String),
    #[error("`{destination}` is {address}, which functions may not reach: {reason}")]
    Prohibited { destination: String, address: IpAddr, reason: Refused },
    #[error("{address} cannot be connected to: {source}")]
    Connect { address: SocketAddr, source: io::Error },
    #[error("no connection to `{0}` in time")]
    Timeout(String),
    #[error("too many connections of functions are open (`outbound.concurrency` in host.toml)")]
    Full,
}

impl Network {
    pub fn new(bounds: Bounds, policy: AddressPolicy, trust: Trust) -> Network {
        Network::with_resolver(bounds, policy, trust, Arc::new(system))
    }

    /// With another source of addresses than the system's.
    pub fn with_resolver(
        bounds: Bounds,
        policy: AddressPolicy,
        trust: Trust,
        resolve: Arc<Resolve>,
    ) -> Network {
        Network {
            places: Arc::new(Semaphore::new(bounds.connections)),
            lookups: Arc::new(Semaphore::new(LOOKUPS)),
            bounds,
            policy,
            trust,
            resolve,
        }
    }

    /// A place among the connections of this host.
    ///
    /// # Errors
    /// Where none is free until `until`.
    pub async fn place(&self, until: Instant) -> Result<OwnedSemaphorePermit, DialError> {
        let place = timeout_at(until, Arc::clone(&self.places).acquire_owned()).await;
        Ok(place.map_err(|_| DialError::Full)?.expect("the semaphore is never closed"))
    }

    /// Connects to an address of `destination` that the operator lets functions reach.
    ///
    /// # Errors
    /// Where it has none, or none that answers until `until`.
    pub async fn dial(
        &self,
        destination: &Destination,
        port: u16,
        until: Instant,
    ) -> Result<TcpStream, DialError> {
        let addresses = match destination {
            Destination::Address(address) => vec![*address],
            Destination::Name(name) => self.look_up(name, until).await?,
            Destination::Own => Vec::new(),
        };
        let mut prohibited = None;
        let mut permitted = Vec::with_capacity(addresses.len());
        for address in addresses {
            match self.policy.check(address) {
                Ok(()) => permitted.push(SocketAddr::new(address, port)),
                Err(reason) => prohibited = Some((address, reason)),
            }
        }
        let shown = destination.to_string();
        if permitted.is_empty() {
            return Err(match prohibited {
                Some((address, reason)) => DialError::Prohibited { destination: shown, address, reason },
                None => DialError::Resolve { name: shown, source: io::ErrorKind::NotFound.into() },
            });
        }
        first_that_answers(&permitted, until).await?.ok_or(DialError::Timeout(shown))
    }

    async fn look_up(&self, name: &str, until: Instant) -> Result<Vec<IpAddr>, DialError> {
        let late = |_| DialError::ResolveTimeout(name.to_owned());
        let place = timeout_at(until, Arc::clone(&self.lookups).acquire_owned()).await.map_err(late)?;
        let (resolve, asked) = (Arc::clone(&self.resolve), name.to_owned());
        let work = tokio::task::spawn_blocking(move || {
            // Held by the work, not by whoever waits for it.
            let _place = place;
            resolve(&asked)
        });
        let found = timeout_at(until, work).await.map_err(late)?;
        let failed = |source| DialError::Resolve { name: name.to_owned(), source };
        let mut addresses = found.map_err(|panic| failed(io::Error::other(panic)))?.map_err(failed)?;
        let mut known = std::collections::HashSet::new();
        addresses.retain(|address| known.insert(*address));
        addresses.truncate(MOST_ADDRESSES);
        Ok(addresses)
    }
}

/// Tries one after the other, each for its share of the time that is left; `None` where it is over.
async fn first_that_answers(
    addresses: &[SocketAddr],
    until: Instant,
) -> Result<Option<TcpStream>, DialError> {
    let mut failed = None;
    for (index, address) in addresses.iter().enumerate() {
        let now = Instant::now();
        let left = u32::try_from(addresses.len() - index).unwrap_or(u32::MAX);
        let share = now + until.saturating_duration_since(now) / left;
        match timeout_at(share, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                // A request that is not sent at once waits for an acknowledgement otherwise; without it, it is slower.
                let _ = stream.set_nodelay(true);
                return Ok(Some(stream));
            }
            Ok(Err(source)) => failed = Some(DialError::Connect { address: *address, source }),
            Err(_) => {}
        }
    }
    failed.map_or(Ok(None), Err)
}

/// As the system resolves it: its files, its servers, its order.
fn system(name: &str) -> io::Result<Vec<IpAddr>> {
    Ok((name, 0).to_socket_addrs()?.map(|address| address.ip()).collect())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use ipnet::IpNet;
    use tokio::net::TcpListener;

    use super::*;

    fn bounds() -> Bounds {
        let second = Duration::from_secs(1);
        Bounds {
            connections: 2,
            instance_connections: 2,
            connect: second,
            first_byte: second,
            between_bytes: second,
        }
    }

    fn loopback_only() -> AddressPolicy {
        let allow: Vec<IpNet> = vec!["127.0.0.1/32".parse().unwrap()];
        AddressPolicy { allow, ..AddressPolicy::default() }
    }

    fn network(
        policy: AddressPolicy,
        resolve: impl Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync + 'static,
    ) -> Network {
        Network::with_resolver(bounds(), policy, Trust::default(), Arc::new(resolve))
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(5)
    }

    fn name() -> Destination {
        Destination::parse("rebinds.test").unwrap()
    }

    #[tokio::test]
    async fn a_name_is_resolved_once_and_the_address_that_was_judged_is_connected_to() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&asked);
        // Answers something else from the second time on, as one does who wants the check to see another address.
        let network = network(loopback_only(), move |_| {
            let first = counted.fetch_add(1, Ordering::SeqCst) == 0;
            Ok(vec![if first { "127.0.0.1" } else { "169.254.169.254" }.parse().unwrap()])
        });
        let stream = network.dial(&name(), port, soon()).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), listener.local_addr().unwrap());
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        let error = network.dial(&name(), port, soon()).await.unwrap_err();
        assert!(matches!(error, DialError::Prohibited { .. }), "{error}");
        assert!(error.to_string().contains("`rebinds.test` is 169.254.169.254"), "{error}");
    }

    #[tokio::test]
    async fn addresses_that_may_not_be_reached_are_left_out() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let several =
            |_: &str| Ok(["10.0.0.1", "::1", "127.0.0.1"].map(|text| text.parse().unwrap()).to_vec());
        let network = network(loopback_only(), several);
        let stream = network.dial(&name(), port, soon()).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap().ip(), IpAddr::from([127, 0, 0, 1]));
    }

    #[tokio::test]
    async fn what_fails_is_told_apart() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let closed = listener.local_addr().unwrap().port();
        drop(listener);
        let local = Destination::parse("127.0.0.1").unwrap();
        let refused = network(loopback_only(), |_| Ok(Vec::new()));
        let error = refused.dial(&local, closed, soon()).await.unwrap_err();
        assert!(matches!(error, DialError::Connect { .. }), "{error}");
        let error = refused.dial(&name(), 80, soon()).await.unwrap_err();
        assert!(matches!(error, DialError::Resolve { .. }), "{error}");
        let unknown = network(loopback_only(), |_| Err(io::Error::other("no such name")));
        let error = unknown.dial(&name(), 80, soon()).await.unwrap_err();
        assert!(matches!(error, DialError::Resolve { .. }), "{error}");
        let slow = network(loopback_only(), |_| {
            std::thread::sleep(Duration::from_millis(300));
            Ok(Vec::new())
        });
        let error = slow.dial(&name(), 80, Instant::now() + Duration::from_millis(30)).await.unwrap_err();
        assert!(matches!(error, DialError::ResolveTimeout(_)), "{error}");
    }

    #[tokio::test]
    async fn connections_have_places() {
        let network = network(loopback_only(), |_| Ok(Vec::new()));
        let held = (network.place(soon()).await.unwrap(), network.place(soon()).await.unwrap());
        let error = network.place(Instant::now() + Duration::from_millis(20)).await.unwrap_err();
        assert!(matches!(error, DialError::Full), "{error}");
        drop(held);
        drop(network.place(soon()).await.unwrap());
    }
}
