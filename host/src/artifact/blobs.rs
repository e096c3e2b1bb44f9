//! The content-addressed store: each blob is one read-only file under its digest, kept once for all apps and hosts.
//!
//! A blob has its name only when it is whole: it is written under another name, synced, and renamed. What is used
//! stays: `hold` has the protocol between those who use blobs and those who remove them, `record` what is known of a
//! blob beside its bytes.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FlockOperation, RenameFlags};
use sha2::{Digest as _, Sha256};
use thiserror::Error;

use super::cache::bound::Bound;
use super::cache::make_private;
use super::oci::Digest;
pub use hold::Hold;
use hold::{Held, Holder};
pub use incoming::{Incoming, Receiving};
use record::Records;
pub use references::Remembered;
pub(super) use references::all as remembered;
use seen::Seen;

pub(super) mod hold;
mod incoming;
pub(super) mod record;
mod references;
mod seen;

/// A way to the blobs of a cache. What goes through it stays on disk as long as it, or a clone of it, lives: make one
/// for each piece of work, with [`Cache::blobs`](super::cache::Cache::blobs), and hold what is used for longer.
///
/// All methods read and write files, so they belong on threads that may block.
#[derive(Clone, Debug)]
pub struct Blobs {
    pub(super) store: Arc<Store>,
    session: Arc<Held>,
}

/// What all ways of one process to one cache share.
#[derive(Debug)]
pub(super) struct Store {
    pub(super) root: PathBuf,
    pub(super) records: Records,
    pub(super) bound: Bound,
    holder: Arc<Holder>,
}

/// Why a blob cannot be had or kept.
#[derive(Debug, Error)]
pub enum BlobError {
    #[error("cannot read `{path}`: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write to the cache `{path}`: {source}; {}", advice(source))]
    Write { path: PathBuf, source: io::Error },
    #[error("`{what}` is larger than the {limit_bytes} bytes that are taken")]
    TooLarge { what: String, limit_bytes: u64 },
    #[error(
        "the cache's disk has {free_mib} MiB left and {digest} needs {needed_mib}; free some space (`tenon cache prune \
         --all` removes what nothing uses), or set `cache.dir` in host.toml"
    )]
    NoRoom { digest: Digest, needed_mib: u64, free_mib: u64 },
    #[error("{digest} has {found} bytes and not {expected}: who said so is wrong, and is not believed")]
    Size { digest: Digest, expected: u64, found: u64 },
    #[error("more than the {size} bytes of {digest} came; whoever sends it is broken")]
    Overlong { digest: Digest, size: u64 },
    #[error("{received} of the {size} bytes of {digest} came; try again to go on from there")]
    Incomplete { digest: Digest, received: u64, size: u64 },
    #[error(
        "what came as {expected} has the digest {actual}, and was removed; try again, and suspect whoever sends it if \
         that does not help"
    )]
    Mismatch { expected: Digest, actual: Digest },
    #[error(
        "another process has been receiving {digest} and has not gone on for {stalled_s} s; end it, or try again later"
    )]
    Stalled { digest: Digest, stalled_s: u64 },
    #[error(
        "another process has kept the cache `{path}` locked for {waited_s} s; end it, or try again later"
    )]
    Locked { path: PathBuf, waited_s: u64 },
    #[error("`{0}` is no reference that can be remembered")]
    Reference(String),
}

/// What to do about a write that failed.
pub(super) fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "let the host's user write there, or set `cache.dir` in host.toml to a folder where it may"
        }
        _ => {
            "free some space (`tenon cache prune --all` removes what nothing uses), or set `cache.dir` in host.toml"
        }
    }
}

/// The folders of the store in that of the cache.
pub(super) const FOLDERS: [&str; 7] =
    ["blobs", "blobs/sha256", "held", "partial", "records", "references", "seen"];

/// Blobs are read-only for everybody, so that nothing writes through one of their links.
const MODE: u32 = 0o444;

/// What is read at once.
const BUFFER_BYTES: usize = 1 << 20;

impl Blobs {
    /// Opens the store in the cache at `root`, which is made if it is not there; beyond `max_bytes` in the whole
    /// cache, what is not used makes room. 0 is no bound.
    ///
    /// # Errors
    /// Where a folder cannot be made.
    pub fn open(root: &Path, max_bytes: u64) -> Result<Blobs, BlobError> {
        let write = |source| BlobError::Write { path: root.to_owned(), source };
        make_private(root).map_err(write)?;
        let root = root.canonicalize().map_err(write)?;
        for name in FOLDERS {
            let path = root.join(name);
            make_private(&path).map_err(|source| BlobError::Write { path, source })?;
        }
        let records = Records::at(&root);
        let holder = Arc::new(Holder::new(root.join("held"), records.clone()));
        let session = Arc::new(Held::new(Arc::clone(&holder)));
        let store = Store { root, records, bound: Bound::new(max_bytes), holder };
        Ok(Blobs { store: Arc::new(store), session })
    }

    /// Another way to the same blobs, which keeps only what goes through itself.
    #[must_use]
    pub fn afresh(&self) -> Blobs {
        let session = Arc::new(Held::new(Arc::clone(&self.store.holder)));
        Blobs { store: Arc::clone(&self.store), session }
    }

    /// Where a blob lies, if it is there.
    pub fn path(&self, digest: &Digest) -> PathBuf {
        self.store.blob(digest)
    }

    fn partial(&self) -> PathBuf {
        self.store.partial()
    }

    /// The file of a blob that is there whole; it counts as used now. One that was not verified since the machine
    /// started is read through first, and thrown away where it is damaged.
    ///
    /// # Errors
    /// Where the cache cannot be read or written.
    pub fn get(&self, digest: &Digest) -> Result<Option<PathBuf>, BlobError> {
        // First held, then looked for: what is found stays.
        self.session.add([*digest])?;
        self.store.whole(digest)
    }

    /// The bytes of a small blob, checked against the digest every time. A damaged one is thrown away.
    ///
    /// # Errors
    /// Where it has more than `limit` bytes, or the cache cannot be read or written.
    pub fn read(&self, digest: &Digest, limit: u64) -> Result<Option<Vec<u8>>, BlobError> {
        self.session.add([*digest])?;
        let path = self.path(digest);
        let failed = |source| BlobError::Read { path: path.clone(), source };
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(failed(source)),
        };
        let metadata = file.metadata().map_err(failed)?;
        if metadata.len() > limit {
            return Err(BlobError::TooLarge { what: digest.to_string(), limit_bytes: limit });
        }
        let mut bytes = Vec::new();
        file.take(limit).read_to_end(&mut bytes).map_err(failed)?;
        if Digest::of(&bytes) != *digest {
            self.store.throw_away(digest, metadata.ino())?;
            return Ok(None);
        }
        self.store.records.verified(digest, &metadata);
        Ok(Some(bytes))
    }

    /// Keeps bytes.
    ///
    /// # Errors
    /// Where the cache cannot be written.
    pub fn put(&self, bytes: &[u8]) -> Result<Digest, BlobError> {
        let digest = Digest::of(bytes);
        if self.get(&digest)?.is_some() {
            return Ok(digest);
        }
        let mut draft = self.draft()?;
        draft.write_all(bytes).map_err(|source| self.unwritable(source))?;
        self.publish(draft, &digest)?;
        self.grown(bytes.len() as u64);
        Ok(digest)
    }

    /// Keeps a copy of a file, sharing its blocks where the file system can, and answers its digest and its bytes.
    /// Whatever becomes of the file later, what is kept does not change. A file that was kept before and has not
    /// changed since, by its size, time and inode, is not read again; nor is one that is a blob of this cache.
    ///
    /// # Errors
    /// Where it cannot be read, has more than `limit_bytes`, or cannot be kept.
    pub fn put_file(&self, path: &Path, limit_bytes: u64) -> Result<(Digest, u64), BlobError> {
        let seen = Seen::of(path)?;
        if seen.size > limit_bytes {
            return Err(BlobError::TooLarge { what: path.display().to_string(), limit_bytes });
        }
        let remembered = seen.place(&self.store.root);
        let known = self.store.digest_at(&seen.path).or_else(|| seen::digest(&remembered));
        if let Some(digest) = known
            && let Some(kept) = self.get(&digest)?
            && fs::metadata(kept).is_ok_and(|metadata| metadata.len() == seen.size)
        {
            seen::touch(&remembered);
            return Ok((digest, seen.size));
        }
        let (draft, digest, size) = self.copy(path, limit_bytes)?;
        if self.get(&digest)?.is_none() {
            self.publish(draft, &digest)?;
            self.grown(size);
        }
        if seen.is_settled() && Seen::of(path).is_ok_and(|now| now == seen) {
            seen::remember(&remembered, &digest);
        }
        Ok((digest, size))
    }

    /// Makes a blob of a file that is kept elsewhere: another name of it, or a copy where that cannot be. Answers
    /// whether it had the digest; if not, nothing is kept.
    ///
    /// # Errors
    /// Where it cannot be read or kept.
    pub(super) fn adopt(&self, path: &Path, digest: &Digest) -> Result<bool, BlobError> {
        self.session.add([*digest])?;
        let link = |draft: &Path| fs::hard_link(path, draft).and_then(|()| File::open(draft));
        let (draft, actual, size) =
            match tempfile::Builder::new().prefix("put-").make_in(self.partial(), link) {
                Ok(draft) => {
                    let failed = |source| BlobError::Read { path: path.to_owned(), source };
                    let size = draft.as_file().metadata().map_err(failed)?.len();
                    let actual = hash(draft.as_file(), &mut |_| {}).map_err(failed)?;
                    (draft, actual, size)
                }
                Err(_) => self.copy(path, u64::MAX)?,
            };
        if actual != *digest {
            return Ok(false);
        }
        self.publish(draft, digest)?;
        self.grown(size);
        Ok(true)
    }

    /// A copy beside the blobs, hashed on the way.
    fn copy(&self, path: &Path, limit_bytes: u64) -> Result<(Draft, Digest, u64), BlobError> {
        let failed = |source| BlobError::Read { path: path.to_owned(), source };
        let mut source = File::open(path).map_err(failed)?;
        let mut draft = self.draft()?;
        let shared = rustix::fs::ioctl_ficlone(draft.as_file(), &source).is_ok();
        if shared {
            // What was cloned is hashed, not what the author may be writing meanwhile.
            source = draft.reopen().map_err(|source| self.unwritable(source))?;
        }
        let (mut hash, mut size) = (Sha256::new(), 0);
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let length = source.read(&mut buffer).map_err(failed)?;
            if length == 0 {
                return Ok((draft, Digest::from_hash(hash), size));
            }
            size += length as u64;
            if size > limit_bytes {
                return Err(BlobError::TooLarge { what: path.display().to_string(), limit_bytes });
            }
            hash.update(&buffer[..length]);
            if !shared {
                draft.write_all(&buffer[..length]).map_err(|source| self.unwritable(source))?;
            }
        }
    }

    /// Keeps these digests from being removed as long as the answer lives, whether or not there is anything of them
    /// yet: hold first, then look.
    ///
    /// # Errors
    /// Where the cache cannot be written, or is locked for too long.
    pub fn hold(&self, digests: impl IntoIterator<Item = Digest>) -> Result<Hold, BlobError> {
        let held = Held::new(Arc::clone(&self.store.holder));
        held.add(digests)?;
        Ok(Hold::new(held))
    }

    /// Makes room if the cache is over its bound. Files that came into it by other ways count from here on.
    pub fn keep_bound(&self) {
        self.store.bound.look(&self.store);
    }

    fn grown(&self, bytes: u64) {
        self.store.bound.grown(bytes, &self.store);
    }

    fn unwritable(&self, source: io::Error) -> BlobError {
        BlobError::Write { path: self.store.root.clone(), source }
    }

    /// A file to write a blob into. What a process that died left of one is removed when it is old.
    fn draft(&self) -> Result<Draft, BlobError> {
        let draft = tempfile::Builder::new().prefix("put-").tempfile_in(self.partial());
        draft.map_err(|source| self.unwritable(source))
    }

    fn publish(&self, draft: Draft, digest: &Digest) -> Result<PathBuf, BlobError> {
        let (file, path) = draft.into_parts();
        let published = self.store.publish(&file, &path, digest);
        // Renamed away, or no more use.
        drop(path);
        published
    }
}

type Draft = tempfile::NamedTempFile;

/// Where it is noted in the cache at `root` which files were read before.
pub(super) fn seen_folder(root: &Path) -> PathBuf {
    root.join("seen")
}

impl Store {
    pub(super) fn blob(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs/sha256").join(digest.hex())
    }

    pub(super) fn partial(&self) -> PathBuf {
        self.root.join("partial")
    }

    /// The digest of the blob that a path of this cache leads to.
    fn digest_at(&self, path: &Path) -> Option<Digest> {
        let name = path.strip_prefix(self.root.join("blobs/sha256")).ok()?.to_str()?;
        format!("sha256:{name}").parse().ok()
    }

    /// As [`Blobs::get`], of what is held.
    pub(super) fn whole(&self, digest: &Digest) -> Result<Option<PathBuf>, BlobError> {
        let path = self.blob(digest);
        let failed = |source| BlobError::Read { path: path.clone(), source };
        let metadata = match fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.is_file() => metadata,
            Ok(_) => return Err(failed(io::Error::other("it is not a file; remove it"))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(failed(source)),
        };
        if self.records.is_verified(digest, &metadata) {
            self.records.touch(digest);
            return Ok(Some(path));
        }
        Ok((self.check(digest, &mut |_| {})? == Checked::Whole).then_some(path))
    }

    /// Reads a blob through, and throws it away where it is not what its name says. `read` is told each time how many
    /// bytes were read.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub(super) fn check(&self, digest: &Digest, read: &mut dyn FnMut(u64)) -> Result<Checked, BlobError> {
        let path = self.blob(digest);
        let failed = |source| BlobError::Read { path: path.clone(), source };
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Checked::Absent),
            Err(source) => return Err(failed(source)),
        };
        let metadata = file.metadata().map_err(failed)?;
        match hash(file, read) {
            Ok(actual) if actual == *digest => {
                self.records.verified(digest, &metadata);
                return Ok(Checked::Whole);
            }
            Ok(_) => {}
            // What the disk cannot read any more is as good as gone.
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => {}
            Err(source) => return Err(failed(source)),
        }
        self.throw_away(digest, metadata.ino())?;
        Ok(Checked::Damaged)
    }

    /// Removes a damaged blob, and the models that are links of it.
    fn throw_away(&self, digest: &Digest, inode: u64) -> Result<(), BlobError> {
        let path = self.blob(digest);
        // Only whoever has this lock takes names away, so what has the name now is what was read, or is left alone.
        let _turn = hold::turn(&self.root.join("held"), FlockOperation::LockExclusive)?;
        match fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.ino() == inode => {}
            _ => return Ok(()),
        }
        tracing::warn!(%digest, "a blob in the cache is damaged, and is thrown away");
        self.records.remove(digest);
        let links = fs::read_dir(self.root.join("models")).into_iter().flatten().flatten();
        let is_link = |metadata: io::Result<fs::Metadata>| metadata.is_ok_and(|link| link.ino() == inode);
        for link in links.filter(|link| is_link(link.metadata())) {
            let _ = fs::remove_file(link.path());
        }
        fs::remove_file(&path).map_err(|source| BlobError::Write { path, source })
    }

    /// Gives a complete file its name, unless that is taken by a whole blob.
    fn publish(&self, file: &File, from: &Path, digest: &Digest) -> Result<PathBuf, BlobError> {
        let path = self.blob(digest);
        let write = |source| BlobError::Write { path: path.clone(), source };
        file.set_permissions(fs::Permissions::from_mode(MODE)).map_err(write)?;
        file.sync_all().map_err(write)?;
        let mut renamed = rename_new(from, &path);
        if renamed.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::AlreadyExists) {
            // Somebody was quicker. If what is there is damaged, it is gone now.
            if let Some(path) = self.whole(digest)? {
                let _ = fs::remove_file(from);
                return Ok(path);
            }
            renamed = rename_new(from, &path);
        }
        renamed.map_err(write)?;
        sync_folder(&path).map_err(write)?;
        self.records.verified(digest, &file.metadata().map_err(write)?);
        Ok(path)
    }
}

/// What reading a blob through came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Checked {
    Whole,
    Absent,
    /// It is thrown away.
    Damaged,
}

/// The digest of what is left to read; `read` is told each time how many bytes were read.
pub(super) fn hash(mut file: impl Read, read: &mut dyn FnMut(u64)) -> io::Result<Digest> {
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; BUFFER_BYTES]);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(Digest::from_hash(hash)),
            length => {
                hash.update(&buffer[..length]);
                read(length as u64);
            }
        }
    }
}

/// Renames a file to a name that nothing has.
fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, renameat_with};
    use rustix::io::Errno;
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // File systems that cannot do it have links.
        Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {
            fs::hard_link(from, to)?;
            fs::remove_file(from)
        }
        renamed => Ok(renamed?),
    }
}

/// Makes the name of a file last.
fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

#[cfg(test)]
mod tests;
