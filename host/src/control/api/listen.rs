//! Where the control API is served: an address, a local socket, or both; until it is told to stop.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet};

use super::places::{Share, Shares};
use super::socket::{Socket, SocketError};
use super::{Api, Served, WAITS, Waits, Way};
use crate::config::Config;
use crate::control::Control;
use crate::control::token::{TokenError, Tokens};
use crate::serve::connection::{ConnectionLimits, Connections};
use crate::serve::tls::{Tls, TlsError};

/// Connections at once, of each listener; more wait to be accepted.
const CONNECTIONS: usize = 256;
/// How many of them one address may have, so that no single one can keep all others out.
const CONNECTIONS_OF_ONE: usize = CONNECTIONS / 4;

const LIMITS: ConnectionLimits = ConnectionLimits {
    header_read: Duration::from_secs(10),
    answer_stall: Duration::from_secs(30),
    idle: Duration::from_secs(30),
};

/// Why the control API is not served.
#[derive(Debug, Error)]
pub enum ListenError {
    #[error(
        "cannot listen on {address} (`control.listen`): {source}; stop what listens there, or choose another address"
    )]
    Tcp { address: SocketAddr, source: io::Error },
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error(transparent)]
    Tokens(#[from] TokenError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("{0}")]
    Plain(String),
}

/// The control API as it is served.
pub struct Listening {
    /// The address, if it is served on one.
    pub address: Option<SocketAddr>,
    /// Whether TLS is spoken there.
    pub is_tls: bool,
    /// The local socket, if it is served on one.
    pub socket: Option<PathBuf>,
    /// Whether any token is in force: without one, nobody is let in at the address.
    pub has_tokens: bool,
    api: Arc<Api>,
    stop: watch::Sender<bool>,
    serving: Vec<JoinHandle<()>>,
}

/// What is bound, and does not serve yet.
pub struct Bound {
    tcp: Option<(TcpListener, SocketAddr)>,
    socket: Option<Socket>,
    tokens: Arc<Tokens>,
    tls: Option<Arc<Tls>>,
    max_blob_bytes: u64,
    pub(super) waits: Waits,
}

impl Bound {
    /// Takes the addresses of a host whose state is in the folder `state`, as its settings say: what cannot be had is
    /// better known before anything else is begun. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// Where an address is taken or would give tokens away, or a file is not in order.
    pub async fn bind(config: &Config, state: &Path) -> Result<Bound, ListenError> {
        let is_tls = config.listen.tls.is_some();
        if let Some(address) = config.control.listen {
            config.control.check_listen(address, is_tls).map_err(ListenError::Plain)?;
        }
        let tokens = Arc::new(Tokens::load(config.control.tokens.clone())?);
        let socket = config.control_socket(state).map(|path| Socket::bind(&path)).transpose()?;
        let tcp = match config.control.listen {
            Some(address) => {
                let failed = |source| ListenError::Tcp { address, source };
                let listener = TcpListener::bind(address).await.map_err(failed)?;
                let bound = listener.local_addr().map_err(failed)?;
                Some((listener, bound))
            }
            None => None,
        };
        let tls = match (&tcp, &config.listen.tls) {
            (Some(_), Some(files)) => Some(Tls::start(files.clone())?),
            _ => None,
        };
        let max_blob_bytes = config.registry.max_artifact_mib << 20;
        Ok(Bound { tcp, socket, tokens, tls, max_blob_bytes, waits: WAITS })
    }

    /// Serves what is behind the API from now on.
    pub fn serve(self, control: Arc<dyn Control>) -> Listening {
        let Bound { tcp, socket, tokens, tls, max_blob_bytes, waits } = self;
        tokens.watch();
        let (stop, stopping) = watch::channel(false);
        let has_tokens = !tokens.is_empty();
        let api = Arc::new(Api::new(control, tokens, max_blob_bytes, waits));
        let (address, is_tls) = (tcp.as_ref().map(|(_, address)| *address), tls.is_some());
        let path = socket.as_ref().map(|socket| socket.path().to_owned());
        let mut serving = Vec::new();
        if let Some((listener, _)) = tcp {
            let connections = Arc::new(Connections::new(LIMITS, tls));
            serving.push(tokio::spawn(serve_tcp(Arc::clone(&api), listener, connections, stopping.clone())));
        }
        if let Some(socket) = socket {
            let connections = Arc::new(Connections::new(LIMITS, None));
            serving.push(tokio::spawn(serve_socket(Arc::clone(&api), socket, connections, stopping)));
        }
        Listening { address, is_tls, socket: path, has_tokens, api, stop, serving }
    }
}

impl Listening {
    /// Takes nothing new that would change what is served; questions are answered all the same.
    pub fn drain(&self) {
        self.api.drain();
    }

    /// Stops: takes no more callers, and gives what is under way so long to end. Answers whether all of it did.
    pub async fn stop(self, within: Duration) -> bool {
        self.api.drain();
        self.stop.send_replace(true);
        let ending = async {
            self.api.finished().await;
            for serving in self.serving {
                let _ = serving.await;
            }
        };
        tokio::time::timeout(within, ending).await.is_ok()
    }
}

#[cfg(test)]
impl Listening {
    /// How much of what was asked for is not done yet.
    pub(super) fn calls_under_way(&self) -> usize {
        self.api.places.taken()
    }
}

/// A connection's place, among all and among those of its address.
struct Place {
    _place: OwnedSemaphorePermit,
    _share: Share<IpAddr>,
}

async fn serve_tcp(
    api: Arc<Api>,
    listener: TcpListener,
    connections: Arc<Connections>,
    mut stopping: watch::Receiver<bool>,
) {
    let (places, addresses) = (Arc::new(Semaphore::new(CONNECTIONS)), Shares::default());
    let closing = stopping.clone();
    let mut open = JoinSet::new();
    loop {
        let place = tokio::select! {
            () = stopped(&mut stopping) => break,
            Some(_) = open.join_next(), if !open.is_empty() => continue,
            place = Arc::clone(&places).acquire_owned() => place.expect("the semaphore is never closed"),
        };
        let (stream, client) = tokio::select! {
            () = stopped(&mut stopping) => break,
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    not_accepted(&error).await;
                    continue;
                }
            },
        };
        // IPv4 addresses that come over IPv6 are what they are.
        let address = client.ip().to_canonical();
        let Some(share) = addresses.take(address, CONNECTIONS_OF_ONE) else { continue };
        let place = Place { _place: place, _share: share };
        let (api, connections, closing) = (Arc::clone(&api), Arc::clone(&connections), closing.clone());
        open.spawn(async move {
            let answer = answering(api, Way::Tcp(address));
            if let Err(error) = connections.serve(stream, answer, closing).await {
                tracing::debug!(%client, %error, "a connection to the control API ended early");
            }
            drop(place);
        });
    }
    drop(listener);
    while open.join_next().await.is_some() {}
}

async fn serve_socket(
    api: Arc<Api>,
    socket: Socket,
    connections: Arc<Connections>,
    mut stopping: watch::Receiver<bool>,
) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let closing = stopping.clone();
    let mut open = JoinSet::new();
    loop {
        let place = tokio::select! {
            () = stopped(&mut stopping) => break,
            Some(_) = open.join_next(), if !open.is_empty() => continue,
            place = Arc::clone(&places).acquire_owned() => place.expect("the semaphore is never closed"),
        };
        let (stream, user) = tokio::select! {
            () = stopped(&mut stopping) => break,
            accepted = socket.accept() => match accepted {
                Ok(Some(accepted)) => accepted,
                Ok(None) => {
                    tracing::warn!("another user's call on the control socket was refused");
                    continue;
                }
                Err(error) => {
                    not_accepted(&error).await;
                    continue;
                }
            },
        };
        let (api, connections, closing) = (Arc::clone(&api), Arc::clone(&connections), closing.clone());
        open.spawn(async move {
            let answer = answering(api, Way::Socket(user));
            if let Err(error) = connections.serve_local(stream, answer, closing).await {
                tracing::debug!(%error, "a connection to the control socket ended early");
            }
            drop(place);
        });
    }
    // First of all: who comes now must not wait for the rest, but hear that nobody is there.
    drop(socket);
    while open.join_next().await.is_some() {}
}

fn answering(
    api: Arc<Api>,
    way: Way,
) -> impl Fn(http::Request<Incoming>) -> std::pin::Pin<Box<dyn Future<Output = Served> + Send>> + Send + 'static
{
    move |request| {
        let api = Arc::clone(&api);
        Box::pin(async move { Ok(api.answer(request, way).await) })
    }
}

async fn stopped(stopping: &mut watch::Receiver<bool>) {
    // Where nobody is left who could say so, it is over as well.
    let _ = stopping.wait_for(|stop| *stop).await;
}

/// Most often too many open files: others must close before another try makes sense.
async fn not_accepted(error: &io::Error) {
    tracing::warn!(%error, "a connection to the control API could not be accepted");
    tokio::time::sleep(Duration::from_millis(50)).await;
}
