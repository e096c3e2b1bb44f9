//! TLS of the data plane: the certificate and its key come from files, and are read anew when these change.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::io::AsyncWriteExt as _;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::linger::Lingering;
use crate::config::TlsFiles;

mod certificate;
#[cfg(test)]
mod tests;

use certificate::{Current, DAY_S, load, roughly, since_epoch};
pub use certificate::{TlsError, Wrong};

/// How often the files are looked at. A change is taken at the second look that finds it the same.
const LOOK: Duration = Duration::from_secs(1);

/// How long before its end a certificate is warned of, and how often.
const SOON: Duration = Duration::from_secs(7 * DAY_S);
const REMINDER: Duration = Duration::from_secs(DAY_S);

/// HTTP/2 as ALPN names it.
pub const H2: &[u8] = b"h2";

/// A certificate in force, and the files that it came from.
pub struct Tls {
    files: TlsFiles,
    current: ArcSwap<Current>,
    watch: Mutex<Watch>,
}

/// What is known of the files from one look to the next.
struct Watch {
    seen: Stamp,
    /// As the files were when they were last read, whether or not they were in order.
    tried: Stamp,
    reminded: Option<Instant>,
}

/// Tells one state of the files from another: symbolic links followed, device, inode, length, and the times of the last
/// change of content and of the inode, of each; `None` for a file that is not there.
type Stamp = Vec<Option<[i64; 7]>>;

/// What a look at the files came to.
#[derive(Debug)]
enum Look {
    Unchanged,
    /// They have just changed, and may be about to change further.
    Unsettled,
    Renewed,
    Refused(TlsError),
}

impl Tls {
    /// Reads the files, and goes on looking at them for as long as anybody holds this.
    ///
    /// # Errors
    /// Where the files are not in order.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn start(files: TlsFiles) -> Result<Arc<Tls>, TlsError> {
        let tls = Arc::new(Tls::read(files)?);
        tokio::spawn(watch(Arc::downgrade(&tls)));
        Ok(tls)
    }

    fn read(files: TlsFiles) -> Result<Tls, TlsError> {
        // First of all: what changes after this is read again.
        let stamp = stamp(&files);
        let current = load(&files)?;
        let watch = Mutex::new(Watch { seen: stamp.clone(), tried: stamp, reminded: None });
        Ok(Tls { files, current: ArcSwap::from_pointee(current), watch })
    }

    /// Shakes hands with a caller, under the certificate that is in force now. Nothing here bounds how long that takes.
    ///
    /// # Errors
    /// Where the caller speaks no TLS, or none that the host accepts, or the two do not trust each other. It has been
    /// told then.
    pub async fn accept(&self, stream: Lingering) -> io::Result<TlsStream<Lingering>> {
        let config = Arc::clone(&self.current.load().config);
        match TlsAcceptor::from(config).accept(stream).into_fallible().await {
            Ok(stream) => Ok(stream),
            Err((error, mut stream)) => {
                // Else the alert that says why might be lost with what the caller still sends.
                let _ = stream.shutdown().await;
                Err(error)
            }
        }
    }

    /// Looks at the files, and reads them where they have changed and rest. What is not in order changes nothing.
    fn look(&self) -> Look {
        let mut watch = self.watch.lock().unwrap_or_else(PoisonError::into_inner);
        let now = stamp(&self.files);
        if now != watch.seen {
            watch.seen = now;
            return Look::Unsettled;
        }
        if now == watch.tried {
            return Look::Unchanged;
        }
        watch.tried = now;
        match load(&self.files) {
            Ok(current) => {
                watch.reminded = None;
                self.current.store(Arc::new(current));
                Look::Renewed
            }
            Err(error) => Look::Refused(error),
        }
    }

    /// The time that the certificate has left, where that is little and was not said within a day.
    fn expires_soon(&self) -> Option<Duration> {
        let left = self.current.load().not_after.saturating_sub(since_epoch());
        let mut watch = self.watch.lock().unwrap_or_else(PoisonError::into_inner);
        if left > SOON || watch.reminded.is_some_and(|at| at.elapsed() < REMINDER) {
            return None;
        }
        watch.reminded = Some(Instant::now());
        Some(left)
    }

    fn report(&self, look: &Look) {
        let certificate = self.files.certificate.display();
        match look {
            Look::Unchanged | Look::Unsettled => {}
            Look::Renewed => tracing::info!("the TLS certificate in `{certificate}` was read anew"),
            Look::Refused(error) => tracing::warn!("{error}; the former TLS certificate stays in use"),
        }
        match self.expires_soon() {
            None => {}
            Some(Duration::ZERO) => {
                tracing::warn!(
                    "the TLS certificate in use has expired; put a renewed one into `{certificate}`"
                );
            }
            Some(left) => tracing::warn!(
                "the TLS certificate in use expires in {}; put a renewed one into `{certificate}`",
                roughly(left)
            ),
        }
    }
}

/// Looks at the files until nobody needs them.
async fn watch(tls: Weak<Tls>) {
    loop {
        let Some(tls) = tls.upgrade() else { return };
        // Where the files lie on a network, looking may take long.
        let looking = tokio::task::spawn_blocking(move || tls.report(&tls.look()));
        if let Err(error) = looking.await {
            tracing::error!(%error, "the TLS certificate could not be looked at");
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn stamp(files: &TlsFiles) -> Stamp {
    let paths = [Some(&files.certificate), Some(&files.key), files.client_ca.as_ref()];
    let stamps = paths.into_iter().flatten().map(|path| {
        let file = path.metadata().ok()?;
        let numbers = [file.dev(), file.ino(), file.len()].map(u64::cast_signed);
        let [dev, ino, len] = numbers;
        Some([dev, ino, len, file.mtime(), file.mtime_nsec(), file.ctime(), file.ctime_nsec()])
    });
    stamps.collect()
}
