//! Compressed messages: they are decompressed within the limit of messages and the budget, and the long ones aside.

use std::io::{self, Read};

use bytes::buf::Reader;
use bytes::{Buf, Bytes};
use flate2::bufread::{GzDecoder, ZlibDecoder};
use http::{HeaderMap, HeaderName};

use super::super::body::Share;
use super::super::status::AnswerError;
use super::message::Message;

/// How the messages of a call are compressed.
pub(super) const ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");

/// A way to compress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compression {
    Gzip,
    Deflate,
}

impl Compression {
    /// How the messages of a call are compressed that are.
    ///
    /// # Errors
    /// Where the host does not know the way.
    pub(super) fn of(headers: &HeaderMap) -> Result<Option<Compression>, AnswerError> {
        let Some(name) = headers.get(ENCODING) else { return Ok(None) };
        match name.as_bytes() {
            b"identity" => Ok(None),
            b"gzip" => Ok(Some(Compression::Gzip)),
            b"deflate" => Ok(Some(Compression::Deflate)),
            other => Err(AnswerError::Unsupported(format!(
                "messages cannot be compressed as `{}` here; use `gzip`, `deflate` or `identity`",
                other.escape_ascii()
            ))),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Compression::Gzip => "gzip",
            Compression::Deflate => "deflate",
        }
    }
}

/// Bytes that are written before the work goes on elsewhere.
const TURN_BYTES: usize = 256 << 10;

/// Bytes that are written in one go.
const STEP_BYTES: usize = 32 << 10;

/// Decompresses a message to at most `limit` bytes.
///
/// # Errors
/// Where it is not compressed in this way, or longer than the limit, or the host has no room for it.
pub(super) async fn inflate(
    message: Message,
    compression: Compression,
    limit: usize,
) -> Result<Message, AnswerError> {
    let mut work = Inflating::new(message, compression, limit);
    if !work.run(TURN_BYTES)? {
        // An async thread is not for this: what is short may become very long.
        let rest = move || work.run(usize::MAX).map(|_| work);
        work = tokio::task::spawn_blocking(rest).await.map_err(|_| AnswerError::Internal)??;
    }
    Ok(work.finish())
}

/// As [`inflate`], for a limit that is small.
pub(super) fn inflate_short(
    message: Message,
    compression: Compression,
    limit: usize,
) -> Result<Message, AnswerError> {
    let mut work = Inflating::new(message, compression, limit);
    work.run(usize::MAX)?;
    Ok(work.finish())
}

enum Decoder {
    Gzip(GzDecoder<Reader<Bytes>>),
    Deflate(ZlibDecoder<Reader<Bytes>>),
}

impl Decoder {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        match self {
            Decoder::Gzip(decoder) => decoder.read(to),
            Decoder::Deflate(decoder) => decoder.read(to),
        }
    }

    /// How many bytes follow the compressed ones.
    fn left(&self) -> usize {
        match self {
            Decoder::Gzip(decoder) => decoder.get_ref().get_ref().len(),
            Decoder::Deflate(decoder) => decoder.get_ref().get_ref().len(),
        }
    }
}

struct Inflating {
    from: Decoder,
    /// Of the compressed message.
    length: usize,
    to: Vec<u8>,
    share: Share,
    compression: Compression,
    limit: usize,
}

impl Inflating {
    fn new(message: Message, compression: Compression, limit: usize) -> Inflating {
        let Message { bytes, share } = message;
        let length = bytes.len();
        let from = match compression {
            Compression::Gzip => Decoder::Gzip(GzDecoder::new(bytes.reader())),
            Compression::Deflate => Decoder::Deflate(ZlibDecoder::new(bytes.reader())),
        };
        Inflating { from, length, to: Vec::new(), share, compression, limit }
    }

    fn finish(self) -> Message {
        let Inflating { length, mut to, mut share, .. } = self;
        to.shrink_to_fit();
        share.shrink(length);
        Message { bytes: to.into(), share }
    }

    /// Writes at most `turn` bytes or a little more. Answers whether all is written.
    fn run(&mut self, turn: usize) -> Result<bool, AnswerError> {
        let end = self.to.len().saturating_add(turn);
        while self.to.len() < end {
            let had = self.to.len();
            // One byte more than allowed tells what is too long from what just is not.
            let step = STEP_BYTES.min(self.limit.saturating_add(1) - had);
            self.share.grow(step)?;
            self.to.resize(had + step, 0);
            let read = self.from.read(&mut self.to[had..]).map_err(|error| self.wrong(&error.to_string()))?;
            self.to.truncate(had + read);
            self.share.shrink(step - read);
            if read == 0 {
                return match self.from.left() {
                    0 => Ok(true),
                    left => Err(self.wrong(&format!("{left} bytes follow it"))),
                };
            }
            if self.to.len() > self.limit {
                return Err(AnswerError::LongMessage(self.limit));
            }
        }
        Ok(false)
    }

    fn wrong(&self, reason: &str) -> AnswerError {
        let name = self.compression.name();
        AnswerError::InvalidInput(format!("a message is not compressed as `{name}`: {reason}"))
    }
}
