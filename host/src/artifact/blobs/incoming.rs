//! Receiving a blob: one writer over all processes, resumable by any of them.
//!
//! What came so far lies in `partial/` under the blob's digest. Its lock is the right to write it; a process that dies
//! loses it, and the next one goes on where the file ends, after it has hashed what is there.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use super::{BUFFER_BYTES, BlobError, Blobs};
use crate::artifact::oci::Digest;

/// How long another process may receive nothing before nobody waits for it any more.
const STALLED: Duration = Duration::from_secs(120);
/// The longest that anybody waits for another process.
const PATIENCE: Duration = Duration::from_secs(6 * 60 * 60);
const POLL: Duration = Duration::from_millis(50);
/// Space that is left to others on the disk.
const SPARE_BYTES: u64 = 16 << 20;

/// A blob that was asked for.
#[derive(Debug)]
pub enum Receiving {
    /// It is there.
    Whole(PathBuf),
    /// What is missing of it is to be written.
    Part(Incoming),
}

/// A blob that comes, by this process alone. What has come stays where this is dropped, for whoever goes on.
#[derive(Debug)]
pub struct Incoming {
    blobs: Blobs,
    digest: Digest,
    size: u64,
    received: u64,
    hash: Sha256,
    file: File,
    path: PathBuf,
}

impl Blobs {
    /// Begins to receive a blob of `size` bytes, or goes on with it. Where another process is at it, this waits as
    /// long as that one goes on, and then finds the blob whole, or goes on itself.
    ///
    /// # Errors
    /// Where the blob is there with another size, the disk has no room for it, another process stands still, or the
    /// cache cannot be written.
    pub fn receive(&self, digest: &Digest, size: u64) -> Result<Receiving, BlobError> {
        self.receive_within(digest, size, STALLED)
    }

    fn receive_within(&self, digest: &Digest, size: u64, stalled: Duration) -> Result<Receiving, BlobError> {
        let started = Instant::now();
        let (mut length, mut changed) = (None, started);
        loop {
            if let Some(receiving) = self.try_receive(digest, size)? {
                return Ok(receiving);
            }
            let now = fs::metadata(self.store.partial_of(digest)).ok().map(|metadata| metadata.len());
            if now != length {
                (length, changed) = (now, Instant::now());
            }
            if changed.elapsed() > stalled || started.elapsed() > PATIENCE {
                let stalled_s = changed.elapsed().as_secs();
                return Err(BlobError::Stalled { digest: *digest, stalled_s });
            }
            std::thread::sleep(POLL);
        }
    }

    /// As [`receive`](Blobs::receive), but does not wait: `None` where another process is at it.
    ///
    /// # Errors
    /// As [`receive`](Blobs::receive).
    pub fn try_receive(&self, digest: &Digest, size: u64) -> Result<Option<Receiving>, BlobError> {
        if let Some(path) = self.whole_of(digest, size)? {
            return Ok(Some(Receiving::Whole(path)));
        }
        let path = self.store.partial_of(digest);
        let write = |source| BlobError::Write { path: path.clone(), source };
        let open = || File::options().create(true).truncate(false).read(true).write(true).open(&path);
        let file = open().or_else(|error| match error.kind() {
            // It was about to become a blob when its process died.
            io::ErrorKind::PermissionDenied if path.exists() => {
                fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
                open()
            }
            _ => Err(error),
        });
        let file = file.map_err(write)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Ok(None),
            Err(error) => return Err(write(error.into())),
        }
        // Whoever had the lock may have finished since: then this file has another name, or none.
        let inode = file.metadata().map_err(write)?.ino();
        if fs::metadata(&path).map_or(true, |there| there.ino() != inode) {
            return Ok(self.whole_of(digest, size)?.map(Receiving::Whole));
        }
        if let Some(whole) = self.whole_of(digest, size)? {
            fs::remove_file(&path).map_err(write)?;
            return Ok(Some(Receiving::Whole(whole)));
        }
        let hash = Sha256::new();
        let mut incoming =
            Incoming { blobs: self.clone(), digest: *digest, size, received: 0, hash, file, path };
        incoming.read_back()?;
        incoming.has_room()?;
        self.store.bound.expects(size - incoming.received, &self.store);
        Ok(Some(Receiving::Part(incoming)))
    }

    fn whole_of(&self, digest: &Digest, size: u64) -> Result<Option<PathBuf>, BlobError> {
        let Some(path) = self.get(digest)? else { return Ok(None) };
        let metadata = fs::metadata(&path);
        let found = metadata.map_err(|source| BlobError::Read { path: path.clone(), source })?.len();
        match found == size {
            true => Ok(Some(path)),
            false => Err(BlobError::Size { digest: *digest, expected: size, found }),
        }
    }
}

impl super::Store {
    fn partial_of(&self, digest: &Digest) -> PathBuf {
        self.partial().join(digest.hex())
    }
}

impl Incoming {
    /// Bytes that are there already: the sender goes on after them.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Bytes that it has when it is whole.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Hashes what an earlier process left; what cannot be the beginning of the blob is removed.
    fn read_back(&mut self) -> Result<(), BlobError> {
        let failed = |source| BlobError::Read { path: self.path.clone(), source };
        let left = self.file.metadata().map_err(failed)?.len();
        if left > self.size {
            tracing::warn!(digest = %self.digest, left, size = self.size,
                "more was received of a blob than it has, so it is received anew");
            return self.begin_anew();
        }
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let length = self.file.read(&mut buffer).map_err(failed)?;
            if length == 0 {
                break;
            }
            self.hash.update(&buffer[..length]);
            self.received += length as u64;
        }
        if self.received == self.size && Digest::from_hash(self.hash.clone()) != self.digest {
            tracing::warn!(digest = %self.digest, "what was received of a blob is damaged, so it is received anew");
            return self.begin_anew();
        }
        Ok(())
    }

    fn begin_anew(&mut self) -> Result<(), BlobError> {
        use std::io::Seek;
        let begun = self.file.set_len(0).and_then(|()| self.file.rewind());
        begun.map_err(|source| BlobError::Write { path: self.path.clone(), source })?;
        (self.received, self.hash) = (0, Sha256::new());
        Ok(())
    }

    /// Whether the disk has room for what is missing: better known now than when it is full. What is not in use makes
    /// room.
    fn has_room(&self) -> Result<(), BlobError> {
        let store = &self.blobs.store;
        let needed = self.size - self.received;
        let lacking = |free: u64| needed.saturating_add(SPARE_BYTES).saturating_sub(free);
        let Some(free) = free_bytes(&store.root).filter(|free| needed > 0 && lacking(*free) > 0) else {
            return Ok(());
        };
        store.bound.free(lacking(free), store);
        let free = free_bytes(&store.root).unwrap_or(free);
        match lacking(free) {
            0 => Ok(()),
            _ => Err(BlobError::NoRoom {
                digest: self.digest,
                needed_mib: needed.div_ceil(1 << 20),
                free_mib: free >> 20,
            }),
        }
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// Where they are more than are missing, none of which is then taken, or cannot be written. What came before
    /// stays.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), BlobError> {
        if bytes.len() as u64 > self.size - self.received {
            return Err(BlobError::Overlong { digest: self.digest, size: self.size });
        }
        if let Err(source) = self.file.write_all(bytes) {
            // Where a part of them was written, they are written again.
            use std::io::Seek;
            let _ = self.file.set_len(self.received);
            let _ = self.file.seek(io::SeekFrom::Start(self.received));
            return Err(BlobError::Write { path: self.path.clone(), source });
        }
        self.hash.update(bytes);
        self.received += bytes.len() as u64;
        Ok(())
    }

    /// Makes it a blob, and answers its file.
    ///
    /// # Errors
    /// Where some of it is missing: that may still come. Where it has another digest: it is removed. Where it cannot
    /// be written.
    pub fn finish(self) -> Result<PathBuf, BlobError> {
        let (digest, received, size) = (self.digest, self.received, self.size);
        if received < size {
            return Err(BlobError::Incomplete { digest, received, size });
        }
        let actual = Digest::from_hash(self.hash.clone());
        if actual != digest {
            let removed = fs::remove_file(&self.path);
            removed.map_err(|source| BlobError::Write { path: self.path.clone(), source })?;
            return Err(BlobError::Mismatch { expected: digest, actual });
        }
        self.blobs.store.publish(&self.file, &self.path, &digest)
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        // This still has the lock, so nobody else has begun to write: an empty file is of no use to anybody. One that
        // has become a blob is no longer there under this name.
        let is_there = fs::metadata(&self.path).ok().map(|there| there.ino());
        let own = self.file.metadata().ok().map(|own| own.ino());
        if self.received == 0 && is_there.is_some() && is_there == own {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// What is left of the disk for this user.
fn free_bytes(root: &Path) -> Option<u64> {
    let disk = rustix::fs::statvfs(root).ok()?;
    Some(disk.f_bavail.saturating_mul(disk.f_frsize))
}

#[cfg(test)]
impl Blobs {
    pub(super) fn receive_for_test(
        &self,
        digest: &Digest,
        size: u64,
        stalled: Duration,
    ) -> Result<Receiving, BlobError> {
        self.receive_within(digest, size, stalled)
    }
}
