//! Authors' files that were read before, so that one that has not changed is not read again.

use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use sha2::{Digest as _, Sha256};

use super::BlobError;
use crate::artifact::oci::Digest;

/// Within this time of a write, another may leave the same times behind.
const UNSETTLED: Duration = Duration::from_millis(100);

/// What tells that a file is the one that was read before.
#[derive(PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) path: PathBuf,
    /// Bytes.
    pub(super) size: u64,
    modified_s: i64,
    modified_ns: i64,
    device: u64,
    inode: u64,
}

impl Seen {
    pub(super) fn of(path: &Path) -> Result<Seen, BlobError> {
        let read = |source| BlobError::Read { path: path.to_owned(), source };
        let path = path.canonicalize().map_err(read)?;
        let metadata = fs::metadata(&path).map_err(read)?;
        if !metadata.is_file() {
            return Err(read(io::Error::other("it is not a file")));
        }
        Ok(Seen {
            path,
            size: metadata.len(),
            modified_s: metadata.mtime(),
            modified_ns: metadata.mtime_nsec(),
            device: metadata.dev(),
            inode: metadata.ino(),
        })
    }

    /// Whether the file was last written long enough ago for its times to tell.
    pub(super) fn is_settled(&self) -> bool {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let modified = Duration::new(
            u64::try_from(self.modified_s).unwrap_or(u64::MAX),
            u32::try_from(self.modified_ns).unwrap_or_default(),
        );
        now.checked_sub(modified).is_some_and(|age| age > UNSETTLED)
    }

    /// Where it is noted in the cache at `root` that this was read.
    pub(super) fn place(&self, root: &Path) -> PathBuf {
        let numbers = (self.size, self.modified_s, self.modified_ns, self.device, self.inode);
        let key = Sha256::new()
            .chain_update(format!("{numbers:?} "))
            .chain_update(self.path.as_os_str().as_bytes());
        super::seen_folder(root).join(Digest::from_hash(key).hex())
    }
}

/// The digest that was noted at `place`.
pub(super) fn digest(place: &Path) -> Option<Digest> {
    fs::read_to_string(place).ok()?.parse().ok()
}

/// Notes the digest of a file. Only a shortcut: without it the file is read again next time.
pub(super) fn remember(place: &Path, digest: &Digest) {
    let _ = fs::write(place, digest.to_string());
}

/// Notes that the shortcut was taken.
pub(super) fn touch(place: &Path) {
    let _ = File::options().append(true).open(place).and_then(|file| file.set_modified(SystemTime::now()));
}
