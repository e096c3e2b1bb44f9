//! A blob on its way in: its bytes as they come, and the cache that takes them.

use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use http_body::Body;
use http_body_util::{BodyExt as _, Full};
use sha2::{Digest as _, Sha256};

use super::interface::ControlError;
use crate::artifact::blobs::{BlobError, Blobs, Incoming, Receiving};
use crate::artifact::oci::Digest;
use crate::artifact::registry::SLOWEST;

/// What a blob takes beside its bytes.
const PAUSE: Duration = Duration::from_secs(30);
/// The most bytes that are handed to the disk at once.
const PIECE_BYTES: usize = 1 << 20;

/// How long so many bytes may take at most, which is how long what came of a blob may have taken.
pub(super) fn bound(size: u64) -> Duration {
    PAUSE + Duration::from_secs(size / SLOWEST)
}

/// The bytes of a blob, bounded in number and in time by whoever made this.
pub struct Upload {
    size: u64,
    body: Pin<Box<dyn Body<Data = Bytes, Error = ControlError> + Send>>,
}

impl Upload {
    /// A blob of `size` bytes that come as `body`.
    pub fn new(size: u64, body: impl Body<Data = Bytes, Error = ControlError> + Send + 'static) -> Upload {
        Upload { size, body: Box::pin(body) }
    }

    /// A blob that is there whole.
    pub fn whole(bytes: impl Into<Bytes>) -> Upload {
        let bytes = bytes.into();
        Upload::new(bytes.len() as u64, Full::new(bytes).map_err(|never| match never {}))
    }

    /// How many bytes the caller says that the blob has.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// How long it may take at most to come.
    pub(super) fn bound(&self) -> Duration {
        bound(self.size)
    }

    /// The next bytes; `None` at the end.
    ///
    /// # Errors
    /// Where the caller sends too slowly, or no more.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ControlError> {
        while let Some(frame) = self.body.frame().await {
            if let Ok(bytes) = frame?.into_data()
                && !bytes.is_empty()
            {
                return Ok(Some(bytes));
            }
        }
        Ok(None)
    }

    /// Takes the blob into a cache, where it lies under its digest when this is done. What came of one that breaks off
    /// stays for a while, and need not be written again.
    ///
    /// # Errors
    /// Where the bytes are others than the digest says, are more or fewer than announced, or do not come; where the disk
    /// has no room or fails; where another caller is sending the same blob.
    pub async fn store(mut self, blobs: &Blobs, digest: &Digest) -> Result<(), ControlError> {
        let (blobs, digest, size) = (blobs.clone(), *digest, self.size);
        let opening = on_disk(move || match blobs.try_receive(&digest, size) {
            Ok(Some(receiving)) => Ok(receiving),
            Ok(None) => Err(ControlError::try_again(format_args!(
                "another caller is sending {digest} at this moment; try again shortly"
            ))),
            Err(error) => Err(refused(&error)),
        });
        let mut incoming = match opening.await? {
            Receiving::Whole(_) => return Ok(()),
            Receiving::Part(incoming) => incoming,
        };
        // What an earlier try left is not written again. Should it be other bytes than these, that is not this caller's
        // fault, who is told to send once more.
        let mut known = incoming.received();
        let mut own_hash = (known > 0).then(Sha256::new);
        let mut piece: Vec<Bytes> = Vec::new();
        let mut waiting = 0;
        while let Some(mut bytes) = self.next().await? {
            if let Some(hash) = &mut own_hash {
                hash.update(&bytes);
            }
            let skipped = usize::try_from(known).unwrap_or(usize::MAX).min(bytes.len());
            known -= skipped as u64;
            let bytes = bytes.split_off(skipped);
            waiting += bytes.len();
            piece.push(bytes);
            if waiting >= PIECE_BYTES {
                incoming = write(incoming, std::mem::take(&mut piece)).await?;
                waiting = 0;
            }
        }
        let incoming = write(incoming, piece).await?;
        let is_own = own_hash.is_some_and(|hash| Digest::from_hash(hash) == digest);
        on_disk(move || match incoming.finish() {
            Ok(_) => Ok(()),
            Err(BlobError::Mismatch { .. }) if is_own => Err(ControlError::try_again(format_args!(
                "what an earlier, broken try had left of {digest} was damaged, and is removed; send it once more"
            ))),
            Err(error) => Err(refused(&error)),
        })
        .await
    }
}

async fn write(mut incoming: Incoming, pieces: Vec<Bytes>) -> Result<Incoming, ControlError> {
    on_disk(move || {
        for piece in pieces {
            incoming.write(&piece).map_err(|error| refused(&error))?;
        }
        Ok(incoming)
    })
    .await
}

async fn on_disk<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ControlError> + Send + 'static,
) -> Result<T, ControlError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(ControlError::internal(format_args!("a blob was not taken: {error}"))))
}

fn refused(error: &BlobError) -> ControlError {
    match error {
        BlobError::Mismatch { expected, actual } => ControlError::digest_mismatch(format_args!(
            "what was sent is not {expected} but {actual}; send the bytes that the digest is of"
        )),
        BlobError::Size { digest, expected, found } => ControlError::digest_mismatch(format_args!(
            "{digest} has {found} bytes, not {expected}; send the bytes that the digest is of"
        )),
        BlobError::Overlong { .. } | BlobError::Incomplete { .. } => ControlError::invalid(error),
        BlobError::NoRoom { .. } => ControlError::no_room(error),
        _ => ControlError::internal(error),
    }
}
