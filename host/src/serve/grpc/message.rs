//! The messages of a request's body: each is preceded by five bytes that say how long it is, and whether compressed.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use http::{HeaderMap, HeaderName, HeaderValue};
use hyper::body::Body as HttpBody;

use super::super::body::{Budget, Share};
use super::super::oip::compression::{self, Coding, Unreadable};
use super::super::status::AnswerError;
use super::super::typed_function::aside;

/// How the messages of a call are compressed.
const ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");

/// What stands before a message: whether it is compressed, and its length in four bytes.
pub(super) const HEAD: usize = 5;

/// Bytes that memory is set aside for when a message is announced, as many as a connection may have on their way. From
/// there on it is for what has come: what is announced may never come.
const FIRST_BYTES: usize = 1 << 20;

/// One message, and its share of the budget.
pub(super) struct Message {
    pub(super) bytes: Bytes,
    pub(super) share: Share,
}

/// A message as it came.
pub(super) struct Received {
    message: Message,
    coding: Option<Coding>,
    limit: usize,
}

impl Received {
    /// The message, inflated where it is compressed.
    ///
    /// # Errors
    /// Where it is not compressed as it is said to be, or longer than the limit, or the host has no room for it.
    pub(super) async fn plain(self) -> Result<Message, AnswerError> {
        if self.coding.is_none() {
            return Ok(self.message);
        }
        // However short it is, it may become as long as the limit.
        aside(self.limit, move || self.inflated()).await
    }

    /// As [`Received::plain`], on this thread.
    pub(super) fn inflated(self) -> Result<Message, AnswerError> {
        let Received { message, coding, limit } = self;
        let Some(coding) = coding else { return Ok(message) };
        let Message { bytes, mut share } = message;
        let inflated = compression::inflate(&bytes, coding, limit, &mut |more| share.grow(more).is_ok());
        let inflated = inflated.map_err(|unreadable| match unreadable {
            Unreadable::TooLong(limit) => AnswerError::LongMessage(limit),
            Unreadable::NoRoom => AnswerError::Overloaded,
            Unreadable::Coding(_) | Unreadable::Corrupt(..) => {
                AnswerError::InvalidInput(unreadable.to_string())
            }
        })?;
        share.shrink(bytes.len());
        Ok(Message { bytes: inflated, share })
    }
}

/// How the messages of a call are compressed that say so.
fn coding(headers: &HeaderMap) -> Result<Option<Coding>, AnswerError> {
    let values = headers.get_all(ENCODING).iter().map(HeaderValue::as_bytes);
    compression::of_request(values).map_err(|unreadable| match unreadable {
        Unreadable::Coding(name) => AnswerError::Unsupported(format!(
            "messages compressed as `{name}` are not taken; send them as they are, or in {}",
            compression::TAKEN
        )),
        other => AnswerError::InvalidInput(other.to_string()),
    })
}

/// Takes the messages out of a request's body, one after the other.
pub(super) struct Messages<B> {
    body: B,
    coding: Option<Coding>,
    limit: usize,
    /// What has come, and was not looked at yet.
    rest: Bytes,
    head: [u8; HEAD],
    head_len: usize,
    partial: Option<Partial>,
}

/// A message of which not all has come.
struct Partial {
    is_compressed: bool,
    length: usize,
    bytes: Vec<u8>,
    share: Share,
}

impl<B> Messages<B>
where
    B: HttpBody<Data = Bytes> + Unpin,
{
    /// The messages of a body, of at most `limit` bytes each.
    ///
    /// # Errors
    /// Where they are compressed in a way that the host does not know.
    pub(super) fn new(body: B, headers: &HeaderMap, limit: usize) -> Result<Messages<B>, AnswerError> {
        let coding = coding(headers)?;
        let (rest, head) = (Bytes::new(), [0; HEAD]);
        Ok(Messages { body, coding, limit, rest, head, head_len: 0, partial: None })
    }

    /// The next message; `None` where the caller has sent all of them. After an error there is nothing more to ask for.
    pub(super) fn poll_next(
        &mut self,
        context: &mut Context<'_>,
        budget: &Budget,
    ) -> Poll<Option<Result<Received, AnswerError>>> {
        loop {
            match self.take(budget) {
                Ok(None) => {}
                found => return Poll::Ready(found.transpose()),
            }
            let cut_off = || AnswerError::InvalidInput("the body ended within a message".to_owned());
            match ready!(Pin::new(&mut self.body).poll_frame(context)) {
                Some(Ok(frame)) => {
                    // Trailers of requests mean nothing.
                    if let Ok(data) = frame.into_data() {
                        self.rest = data;
                    }
                }
                None if !self.is_amid() => return Poll::Ready(None),
                Some(Err(_)) | None => return Poll::Ready(Some(Err(cut_off()))),
            }
        }
    }

    /// The one message of a call that takes one, which must come within `wait`.
    pub(super) async fn only(&mut self, budget: &Budget, wait: Duration) -> Result<Message, AnswerError> {
        let next = std::future::poll_fn(|context| self.poll_next(context, budget));
        let late = || AnswerError::SlowBody(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX));
        let message = tokio::time::timeout(wait, next).await.map_err(|_| late())?;
        let missing = || AnswerError::InvalidInput("the call has no message".to_owned());
        let message = message.ok_or_else(missing)??.plain().await?;
        if self.is_amid() || !self.rest.is_empty() {
            return Err(AnswerError::InvalidInput(
                "the call has more than one message; it takes one".to_owned(),
            ));
        }
        Ok(message)
    }

    /// Whether a message has begun to come.
    pub(super) fn is_amid(&self) -> bool {
        self.head_len > 0 || self.partial.is_some()
    }

    /// A message, if all of it has come.
    fn take(&mut self, budget: &Budget) -> Result<Option<Received>, AnswerError> {
        if self.partial.is_none() {
            let more = self.rest.len().min(HEAD - self.head_len);
            self.rest.copy_to_slice(&mut self.head[self.head_len..][..more]);
            self.head_len += more;
            if self.head_len < HEAD {
                return Ok(None);
            }
            self.head_len = 0;
            self.partial = Some(self.begin(budget)?);
        }
        let Some(partial) = &mut self.partial else { return Ok(None) };
        let more = self.rest.len().min(partial.length - partial.bytes.len());
        partial.share.grow(more)?;
        let whole = if more == partial.length {
            // All of it came in one piece, which need not be copied.
            Some(self.rest.split_to(more))
        } else {
            partial.extend(&self.rest.split_to(more));
            (partial.bytes.len() == partial.length).then(|| std::mem::take(&mut partial.bytes).into())
        };
        let Some(bytes) = whole else { return Ok(None) };
        let Some(Partial { is_compressed, share, .. }) = self.partial.take() else { return Ok(None) };
        let coding = self.coding.filter(|_| is_compressed);
        Ok(Some(Received { message: Message { bytes, share }, coding, limit: self.limit }))
    }

    fn begin(&self, budget: &Budget) -> Result<Partial, AnswerError> {
        let [flag, length @ ..] = self.head;
        let length = u32::from_be_bytes(length) as usize;
        if length > self.limit {
            return Err(AnswerError::LongMessage(self.limit));
        }
        let is_compressed = match flag {
            0 => false,
            1 if self.coding.is_some() => true,
            1 => {
                let wrong = "a message is compressed, but the header `grpc-encoding` does not say how";
                return Err(AnswerError::InvalidInput(wrong.to_owned()));
            }
            _ => {
                let wrong = format!("a message begins with {flag}, which is not 0 or 1");
                return Err(AnswerError::InvalidInput(wrong));
            }
        };
        Ok(Partial { is_compressed, length, bytes: Vec::new(), share: budget.share() })
    }
}

impl Partial {
    fn extend(&mut self, more: &[u8]) {
        let needed = self.bytes.len() + more.len();
        if needed > self.bytes.capacity() {
            // Several times as much each time, but never more than the message is long.
            let wanted = (self.bytes.capacity() * 4).max(FIRST_BYTES).max(needed).min(self.length);
            self.bytes.reserve_exact(wanted - self.bytes.len());
        }
        self.bytes.extend_from_slice(more);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::convert::Infallible;
    use std::io::Write;

    use flate2::write::{GzEncoder, ZlibEncoder};
    use hyper::body::Frame;

    use super::*;

    /// A body of the given frames.
    struct Frames(VecDeque<Bytes>);

    impl HttpBody for Frames {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            Poll::Ready(self.0.pop_front().map(|bytes| Ok(Frame::data(bytes))))
        }
    }

    fn framed(flag: u8, message: &[u8]) -> Vec<u8> {
        let length = u32::try_from(message.len()).unwrap();
        [&[flag], length.to_be_bytes().as_slice(), message].concat()
    }

    fn encoded(encoding: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(ENCODING, HeaderValue::from_static(encoding))])
    }

    /// What is read of a body that comes in pieces of `size`, with a limit of 1000 bytes.
    async fn read(body: &[u8], size: usize, encoding: &'static str) -> Result<Vec<Bytes>, String> {
        let budget = Budget::new(1 << 20);
        let frames = body.chunks(size).map(Bytes::copy_from_slice).collect();
        let messages = Messages::new(Frames(frames), &encoded(encoding), 1000);
        let mut messages = messages.map_err(|error| error.to_string())?;
        let mut read = Vec::new();
        loop {
            let next = std::future::poll_fn(|context| messages.poll_next(context, &budget)).await;
            let Some(next) = next else { return Ok(read) };
            let received = next.map_err(|error| error.to_string())?;
            read.push(received.plain().await.map_err(|error| error.to_string())?.bytes);
        }
    }

    #[tokio::test]
    async fn messages_are_found_however_they_are_cut() {
        let body = [framed(0, b"seven"), framed(0, b""), framed(0, &[7; 900])].concat();
        for size in [1, 2, 3, 4, 5, 6, 7, 11, 500, 5000] {
            let read = read(&body, size, "identity").await.unwrap();
            assert_eq!(read, [b"seven".as_slice(), b"", &[7; 900]], "in pieces of {size}");
        }
        assert_eq!(read(&[], 1, "identity").await, Ok(vec![]));
    }

    #[tokio::test]
    async fn what_is_no_message_is_refused() {
        let zip = |message: &[u8]| {
            let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::default());
            encoder.write_all(message).unwrap();
            encoder.finish().unwrap()
        };
        let more = [zip(b"seven"), b"more".to_vec()].concat();
        for (body, encoding, expected) in [
            (framed(0, &[0; 1001]), "identity", "longer than the 1000 bytes"),
            (vec![0, 255, 255, 255, 255], "identity", "longer than the 1000 bytes"),
            (framed(0, b"seven")[..9].to_vec(), "identity", "ended within a message"),
            (vec![0, 0, 0], "identity", "ended within a message"),
            (framed(2, b"seven"), "identity", "begins with 2"),
            (framed(1, b"seven"), "identity", "does not say how"),
            (framed(1, b"seven"), "gzip", "is not gzip"),
            (framed(1, &zip(b"seven")[..12]), "gzip", "is not gzip"),
            (framed(1, &more), "gzip", "bytes follow its end"),
            (framed(1, &zip(&[0; 1001])), "gzip", "longer than the 1000 bytes"),
            (vec![], "snappy", "`snappy`"),
        ] {
            let refused = read(&body, 4, encoding).await.unwrap_err();
            assert!(refused.contains(expected), "{refused}");
        }
    }

    #[tokio::test]
    async fn compressed_messages_are_read_where_the_caller_says_how() {
        let message = b"seven ".repeat(100);
        let mut gzip = GzEncoder::new(Vec::new(), flate2::Compression::default());
        gzip.write_all(&message).unwrap();
        let mut deflate = ZlibEncoder::new(Vec::new(), flate2::Compression::default());
        deflate.write_all(&message).unwrap();
        for (bytes, encoding) in [(gzip.finish().unwrap(), "gzip"), (deflate.finish().unwrap(), "deflate")] {
            // One that is not compressed may stand among those that are.
            let body = [framed(1, &bytes), framed(0, b"plain")].concat();
            let read = read(&body, 50, encoding).await.unwrap();
            assert_eq!(read, [message.as_slice(), b"plain"], "{encoding}");
        }
    }

    #[tokio::test]
    async fn a_message_takes_of_the_budget_what_it_holds() {
        let budget = Budget::new(64 << 10);
        let frames = VecDeque::from([framed(0, &[0; 40_000]).into()]);
        let mut messages = Messages::new(Frames(frames), &HeaderMap::new(), 1 << 20).unwrap();
        let held = messages.only(&budget, Duration::from_secs(1)).await.unwrap();
        let again = VecDeque::from([framed(0, &[0; 40_000]).into()]);
        let mut messages = Messages::new(Frames(again), &HeaderMap::new(), 1 << 20).unwrap();
        let refused = messages.only(&budget, Duration::from_secs(1)).await.err();
        assert!(matches!(refused, Some(AnswerError::Overloaded)));
        drop(held);
        let again = VecDeque::from([framed(0, &[0; 40_000]).into()]);
        let mut messages = Messages::new(Frames(again), &HeaderMap::new(), 1 << 20).unwrap();
        assert!(messages.only(&budget, Duration::from_secs(1)).await.is_ok());
    }

    #[tokio::test]
    async fn a_call_has_one_message() {
        let budget = Budget::new(1 << 20);
        let only = async |body: Vec<u8>| {
            let frames = Frames(VecDeque::from([body.into()]));
            let mut messages = Messages::new(frames, &HeaderMap::new(), 1000).unwrap();
            let only = messages.only(&budget, Duration::from_secs(1)).await;
            only.map(|message| message.bytes).map_err(|error| error.to_string())
        };
        assert_eq!(only(framed(0, b"seven")).await, Ok(Bytes::from_static(b"seven")));
        assert!(only(vec![]).await.unwrap_err().contains("no message"));
        let two = [framed(0, b"seven"), framed(0, b"eight")].concat();
        assert!(only(two).await.unwrap_err().contains("more than one"));
    }
}
