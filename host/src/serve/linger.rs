//! A connection's stream: its first bytes can be looked at, the caller hears the last answer also where it is still
//! sending, and an answer that nobody takes is not held forever.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

/// How long the host goes on reading what a caller sends after its last answer.
const LINGER: Duration = Duration::from_secs(1);

/// The most bytes that can be looked at before they are read: as many as tell HTTP/2 from all else.
pub const AHEAD: usize = 24;

/// Bytes that are read and forgotten in one go, before others have their turn.
const LINGER_TURN: usize = 1 << 20;

/// A stream that is read to its end before it is closed: a system that closes a socket with something unread in it
/// takes back what it has sent, such as the answer that the body is too long.
pub struct Lingering<S = TcpStream> {
    stream: S,
    /// What was looked at, and is still to be read from `read` up to `seen`.
    ahead: [u8; AHEAD],
    read: usize,
    seen: usize,
    /// How long a caller may take nothing of what is written.
    stall: Duration,
    stalled: Option<Pin<Box<Sleep>>>,
    is_stalled: bool,
    late: Option<Pin<Box<Sleep>>>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Lingering<S> {
    pub fn new(stream: S, stall: Duration) -> Lingering<S> {
        let (ahead, read, seen) = ([0; AHEAD], 0, 0);
        Lingering { stream, ahead, read, seen, stall, stalled: None, is_stalled: false, late: None }
    }

    /// Looks at the first bytes until there are `enough`, or [`AHEAD`] of them, or no more come. To be called before
    /// anything is read; what was looked at is read all the same.
    ///
    /// # Errors
    /// Where the connection has none.
    pub async fn look_ahead(&mut self, enough: impl Fn(&[u8]) -> bool) -> io::Result<&[u8]> {
        while self.seen < AHEAD && !enough(&self.ahead[..self.seen]) {
            match self.stream.read(&mut self.ahead[self.seen..]).await? {
                0 => break,
                length => self.seen += length,
            }
        }
        Ok(&self.ahead[..self.seen])
    }

    /// Fails where the stream has taken nothing for too long.
    fn bounded<T>(&mut self, polled: Poll<io::Result<T>>, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.is_stalled = false;
            return polled;
        }
        let stall = self.stall;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(stall)));
        if !self.is_stalled {
            stalled.as_mut().reset(Instant::now() + stall);
            self.is_stalled = true;
        }
        ready!(stalled.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Lingering<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.read < self.seen {
            let length = buffer.remaining().min(self.seen - self.read);
            buffer.put_slice(&self.ahead[self.read..self.read + length]);
            self.read += length;
            // Together with what has come since: hyper makes more room and parses again for every part that it gets.
            // Should this fail, the next read finds the end.
            let _ = Pin::new(&mut self.stream).poll_read(context, buffer);
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Lingering<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.bounded(written, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.bounded(written, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        // What was written is the system's: a TCP stream has nothing to flush, and is always ready.
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Lingering { stream, late, .. } = &mut *self;
        if late.is_none() {
            ready!(Pin::new(&mut *stream).poll_shutdown(context))?;
        }
        let late = late.get_or_insert_with(|| Box::pin(tokio::time::sleep(LINGER)));
        // First of all: who sends without a pause would not let it come to this below.
        if late.as_mut().poll(context).is_ready() {
            return Poll::Ready(Ok(()));
        }
        let mut scratch = [0; 4096];
        for _ in 0..LINGER_TURN / scratch.len() {
            let mut buffer = ReadBuf::new(&mut scratch);
            match ready!(Pin::new(&mut *stream).poll_read(context, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => {}
                _ => return Poll::Ready(Ok(())),
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;

    /// A host's end with a bound of `stall`, and its caller's.
    async fn pair(stall: Duration) -> (Lingering, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let caller = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (Lingering::new(listener.accept().await.unwrap().0, stall), caller)
    }

    #[tokio::test]
    async fn what_was_looked_at_is_read_all_the_same() {
        let (mut host, mut caller) = pair(Duration::from_secs(60)).await;
        caller.write_all(b"GET").await.unwrap();
        assert_eq!(host.look_ahead(|seen| seen.len() >= 2).await.unwrap(), b"GET");
        caller.write_all(b" / HTTP/1.1 and so on, further than ahead").await.unwrap();
        assert_eq!(host.look_ahead(|_| false).await.unwrap(), b"GET / HTTP/1.1 and so on");
        assert_eq!(host.look_ahead(|_| false).await.unwrap().len(), AHEAD, "there is no room for more");
        caller.shutdown().await.unwrap();
        let mut first = [0; 4];
        host.read_exact(&mut first).await.unwrap();
        let mut rest = String::new();
        host.read_to_string(&mut rest).await.unwrap();
        assert_eq!((&first, rest.as_str()), (b"GET ", "/ HTTP/1.1 and so on, further than ahead"));
    }

    #[tokio::test]
    async fn what_ends_early_is_not_waited_for() {
        let (mut host, mut caller) = pair(Duration::from_secs(60)).await;
        caller.write_all(b"PRI").await.unwrap();
        caller.shutdown().await.unwrap();
        assert_eq!(host.look_ahead(|_| false).await.unwrap(), b"PRI");
    }

    #[tokio::test]
    async fn an_answer_that_nobody_takes_is_given_up() {
        let stall = Duration::from_millis(100);
        let (mut host, _caller) = pair(stall).await;
        let begun = Instant::now();
        let error = host.write_all(&vec![0; 64 << 20]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(begun.elapsed() >= stall);
    }

    #[tokio::test]
    async fn an_answer_that_is_taken_slowly_goes_on() {
        const ANSWER: usize = 32 << 20;
        let (mut host, mut caller) = pair(Duration::from_millis(400)).await;
        let begun = Instant::now();
        let taken = async {
            let (mut taken, mut buffer) = (0, vec![0; 4 << 20]);
            while taken < ANSWER {
                tokio::time::sleep(Duration::from_millis(50)).await;
                taken += caller.read(&mut buffer).await.unwrap();
            }
        };
        let answer = vec![0; ANSWER];
        let (written, ()) = tokio::join!(host.write_all(&answer), taken);
        written.unwrap();
        assert!(begun.elapsed() >= Duration::from_millis(400), "each pause is shorter, all together are not");
    }

    #[tokio::test]
    async fn who_never_stops_sending_does_not_hold_the_end_up() {
        let (mut host, mut caller) = pair(Duration::from_secs(60)).await;
        let sending = tokio::spawn(async move {
            let some = vec![0; 1 << 20];
            while caller.write_all(&some).await.is_ok() {}
        });
        let begun = Instant::now();
        host.shutdown().await.unwrap();
        assert!(begun.elapsed() >= LINGER && begun.elapsed() < LINGER * 4, "{:?}", begun.elapsed());
        drop(host);
        sending.await.unwrap();
    }
}
