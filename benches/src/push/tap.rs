//! Stands before a server and counts the bytes that go there and come from there, whoever sends them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

/// A tap that runs until it is dropped.
pub struct Tap {
    pub address: SocketAddr,
    to: Arc<AtomicU64>,
    from: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Tap {
    /// Passes on to `server` what comes to the tap's address.
    ///
    /// # Errors
    /// Where there is no port for it.
    pub fn start(server: SocketAddr, runtime: &Runtime) -> anyhow::Result<Tap> {
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"))?;
        let address = listener.local_addr()?;
        let (to, from) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
        let counters = (Arc::clone(&to), Arc::clone(&from));
        let task = runtime.spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = TcpStream::connect(server).await else { return };
                let _ = (client.set_nodelay(true), server.set_nodelay(true));
                let ((from_client, to_client), (from_server, to_server)) =
                    (client.into_split(), server.into_split());
                tokio::spawn(pass(from_client, to_server, Arc::clone(&counters.0)));
                tokio::spawn(pass(from_server, to_client, Arc::clone(&counters.1)));
            }
        });
        Ok(Tap { address, to, from, task })
    }

    /// The bytes that have gone to the server, and that have come from it, heads and all.
    pub fn bytes(&self) -> (u64, u64) {
        (self.to.load(Ordering::Relaxed), self.from.load(Ordering::Relaxed))
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn pass(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, count: Arc<AtomicU64>) {
    let mut buffer = vec![0; 256 << 10];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        // Before they are passed on: who has them may ask for the count.
        count.fetch_add(read as u64, Ordering::Relaxed);
        if to.write_all(&buffer[..read]).await.is_err() {
            break;
        }
    }
    let _ = to.shutdown().await;
}
