//! What a function writes to its standard output and error: its own files, bounded.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::AsyncWrite;
use wasmtime_wasi::async_trait;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamError, StreamResult};

/// The two log files of a function, made when it first writes to one.
#[derive(Debug)]
pub struct FunctionLog {
    stdout: Arc<Sink>,
    stderr: Arc<Sink>,
}

impl FunctionLog {
    /// Logs to `<folder>/<name>_stdout.txt` and `_stderr.txt`, each kept within `max_bytes`: a full file becomes
    /// `.1`, in place of the one before.
    pub fn new(folder: &Path, name: &str, max_bytes: u64) -> Arc<FunctionLog> {
        let sink = |stream: &str| {
            Arc::new(Sink {
                path: folder.join(format!("{name}_{stream}.txt")),
                max_bytes: max_bytes / 2,
                open: Mutex::default(),
            })
        };
        Arc::new(FunctionLog { stdout: sink("stdout"), stderr: sink("stderr") })
    }

    /// Drops everything that is written.
    pub fn none() -> Arc<FunctionLog> {
        FunctionLog::new(Path::new(""), "", 0)
    }

    pub(super) fn stdout(&self) -> LogStream {
        LogStream(Arc::clone(&self.stdout))
    }

    pub(super) fn stderr(&self) -> LogStream {
        LogStream(Arc::clone(&self.stderr))
    }
}

#[derive(Debug)]
struct Sink {
    path: PathBuf,
    max_bytes: u64,
    open: Mutex<Option<(File, u64)>>,
}

impl Sink {
    /// A log that cannot be written loses lines; the function goes on.
    fn write(&self, bytes: &[u8]) {
        if self.max_bytes == 0 {
            return;
        }
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = self.try_write(&mut open, bytes) {
            *open = None;
            tracing::debug!(path = %self.path.display(), %error, "a function's log could not be written");
        }
    }

    fn try_write(&self, open: &mut Option<(File, u64)>, bytes: &[u8]) -> io::Result<()> {
        let length = bytes.len() as u64;
        if open.as_ref().is_some_and(|(_, written)| written + length > self.max_bytes) {
            *open = None;
            std::fs::rename(&self.path, self.path.with_extension("txt.1"))?;
        }
        let (file, written) = match open {
            Some(open) => open,
            None => open.insert(self.open_file()?),
        };
        file.write_all(bytes)?;
        *written += length;
        Ok(())
    }

    fn open_file(&self) -> io::Result<(File, u64)> {
        if let Some(folder) = self.path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let file = OpenOptions::new().create(true).append(true).open(&self.path)?;
        let written = file.metadata()?.len();
        Ok((file, written))
    }
}

/// One of a function's streams.
#[derive(Clone, Debug)]
pub(super) struct LogStream(Arc<Sink>);

/// The most that a guest may write in one go.
const CHUNK: usize = 64 << 10;

impl IsTerminal for LogStream {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for LogStream {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(self.clone())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

impl OutputStream for LogStream {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        if bytes.len() > CHUNK {
            return Err(StreamError::trap("more was written than the stream had said it takes"));
        }
        self.0.write(&bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(CHUNK)
    }
}

#[async_trait]
impl Pollable for LogStream {
    async fn ready(&mut self) {}
}

impl AsyncWrite for LogStream {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let bytes = &bytes[..bytes.len().min(CHUNK)];
        self.0.write(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
