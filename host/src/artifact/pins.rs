//! Blobs that stay on disk though no process runs: those of what is deployed.
//!
//! The cache keeps what a live process holds, and may lose everything else. A host that has ended must find what it
//! served when it starts again, without asking anybody, so its state keeps another name of each of those blobs, or a
//! copy where the state lies on another disk.
//!
//! `blobs/` has the blobs under their digests, `owners/` one note for each owner that says what it has pinned. A note
//! is renamed into its place after all that it names is there and synced; it is removed before any of that is. So
//! whenever the process is killed, a note either is there with all that it names, or is not there, and what is left of
//! it is removed when the pins are opened next.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::blobs::{BlobError, Blobs};
use super::cache::make_private;
use super::oci::Digest;

/// The pins of one host, in a folder of its state. All methods read and write files, so they belong on threads that
/// may block.
#[derive(Debug)]
pub struct Pins {
    dir: PathBuf,
    owners: Mutex<Owners>,
    _lock: File,
}

type Owners = BTreeMap<String, BTreeSet<Digest>>;

/// Why blobs cannot be pinned.
#[derive(Debug, Error)]
pub enum PinError {
    #[error(transparent)]
    Blob(#[from] BlobError),
    #[error("cannot read `{path}`: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error(
        "cannot write to `{path}`: {source}; what is deployed is kept there, so give it room and let the host's user \
         write there, or have the state in another folder"
    )]
    Write { path: PathBuf, source: io::Error },
    #[error(
        "another host uses the state in `{path}`; end it, or give this one a state folder of its own (`--state`)"
    )]
    InUse { path: PathBuf },
    #[error("{0} is not in the cache any more; deploy again")]
    Missing(Digest),
    #[error("cannot pin {what}, which is more than the {most} that one deployment may have")]
    TooMany { what: String, most: usize },
}

/// What came of putting pinned blobs back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// Blobs that had left the cache and are there again.
    pub put_back: usize,
    /// What is damaged or gone, by its owner: only whoever has it elsewhere can bring it back.
    pub lost: BTreeMap<String, BTreeSet<Digest>>,
}

/// What an owner has pinned, as it is written down.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Note {
    owner: String,
    digests: BTreeSet<Digest>,
}

/// The most blobs of one owner, and the longest name of one, in bytes.
const MOST_DIGESTS: usize = 20_000;
const LONGEST_OWNER: usize = 1024;
/// More than a note of so many digests has.
const MAX_NOTE_BYTES: u64 = 4 << 20;

const BLOBS: &str = "blobs";
const OWNERS: &str = "owners";
/// What is being written, under names of no meaning.
const DRAFTS: &str = "drafts";
const LOCK: &str = "lock";

/// As in the cache: nothing writes through a name of a blob.
const MODE: u32 = 0o444;

impl Pins {
    /// Opens the pins in `dir`, which is made if it is not there, and removes what an interrupted change left. One
    /// process at a time may have them.
    ///
    /// # Errors
    /// Where another process has them, or the folder cannot be read or written.
    pub fn open(dir: &Path) -> Result<Pins, PinError> {
        for folder in [dir.to_owned(), dir.join(BLOBS), dir.join(OWNERS), dir.join(DRAFTS)] {
            make_private(&folder).map_err(|source| PinError::Write { path: folder, source })?;
        }
        let path = dir.join(LOCK);
        let write = |source| PinError::Write { path: path.clone(), source };
        let lock = File::options().create(true).truncate(false).write(true).open(&path).map_err(write)?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(PinError::InUse { path: dir.to_owned() }),
            Err(error) => return Err(write(error.into())),
        }
        let pins = Pins { dir: dir.to_owned(), owners: Mutex::default(), _lock: lock };
        let (owners, are_whole) = pins.read_notes()?;
        pins.remove_all(&pins.dir.join(DRAFTS))?;
        // What a damaged note named is nobody's now, but whoever knows of its owner may pin it again.
        if are_whole {
            let named: BTreeSet<Digest> = owners.values().flatten().copied().collect();
            let left: BTreeSet<_> = pins.kept()?.difference(&named).copied().collect();
            pins.remove(&left);
        }
        *pins.lock() = owners;
        Ok(pins)
    }

    /// Keeps these blobs, all of which are in the cache, until `owner` lets go of them; in place of what it had pinned
    /// before. When this answers, the pin lasts.
    ///
    /// # Errors
    /// Where a blob is not there, or cannot be linked nor copied. What `owner` had pinned stays pinned then.
    pub fn pin(&self, owner: &str, digests: &[Digest], blobs: &Blobs) -> Result<(), PinError> {
        let digests: BTreeSet<Digest> = digests.iter().copied().collect();
        if digests.len() > MOST_DIGESTS {
            return Err(PinError::TooMany { what: format!("{} blobs", digests.len()), most: MOST_DIGESTS });
        }
        if owner.len() > LONGEST_OWNER {
            return Err(PinError::TooMany {
                what: format!("for a name of {} bytes", owner.len()),
                most: LONGEST_OWNER,
            });
        }
        let mut owners = self.lock();
        let pinned = digests.iter().try_for_each(|digest| self.keep(digest, blobs));
        let noted = pinned.and_then(|()| self.sync(BLOBS)).and_then(|()| self.note(owner, &digests));
        let former = match &noted {
            Ok(()) => owners.insert(owner.to_owned(), digests).unwrap_or_default(),
            Err(_) => digests,
        };
        self.remove_unnamed(&former, &owners);
        noted
    }

    /// Lets go of what `owner` has pinned, if anything. A blob that another owner has pinned too stays.
    ///
    /// # Errors
    /// Where the folder cannot be written.
    pub fn unpin(&self, owner: &str) -> Result<(), PinError> {
        let mut owners = self.lock();
        let place = self.place(owner);
        match fs::remove_file(&place) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(PinError::Write { path: place, source });
            }
            _ => {}
        }
        let former = owners.remove(owner).unwrap_or_default();
        // The note must be gone for good before what it names goes.
        self.sync(OWNERS)?;
        self.remove_unnamed(&former, &owners);
        Ok(())
    }

    /// Who has pinned what.
    pub fn owners(&self) -> BTreeMap<String, BTreeSet<Digest>> {
        self.lock().clone()
    }

    /// Lets go of what all owners have pinned but those that `keep` names: of a host that ended between a pin and the
    /// note of what it was for.
    ///
    /// # Errors
    /// Where the folder cannot be written.
    pub fn retain(&self, keep: &dyn Fn(&str) -> bool) -> Result<(), PinError> {
        let others: Vec<_> = self.lock().keys().filter(|owner| !keep(owner)).cloned().collect();
        others.iter().try_for_each(|owner| self.unpin(owner))
    }

    /// Puts pinned blobs that have left the cache back into it. What goes through `blobs` stays there as long as that.
    ///
    /// # Errors
    /// Where a folder cannot be read or written. Damage is no error: see [`Restored::lost`].
    pub fn restore(&self, blobs: &Blobs) -> Result<Restored, PinError> {
        let owners = self.lock();
        let (mut put_back, mut lost) = (0, BTreeSet::new());
        let there = self.kept()?;
        for digest in owners.values().flatten().copied().chain(there.iter().copied()).collect::<BTreeSet<_>>()
        {
            if blobs.get(&digest)?.is_some() {
                if !there.contains(&digest) {
                    self.keep(&digest, blobs)?;
                }
                continue;
            }
            match there.contains(&digest) && blobs.adopt(&self.blob(&digest), &digest)? {
                true => put_back += 1,
                false => {
                    lost.insert(digest);
                }
            }
        }
        self.remove(&lost);
        let lost = owners.iter().map(|(owner, digests)| (owner.clone(), digests & &lost));
        Ok(Restored { put_back, lost: lost.filter(|(_, digests)| !digests.is_empty()).collect() })
    }

    fn lock(&self) -> MutexGuard<'_, Owners> {
        self.owners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn blob(&self, digest: &Digest) -> PathBuf {
        self.dir.join(BLOBS).join(digest.hex())
    }

    fn place(&self, owner: &str) -> PathBuf {
        self.dir.join(OWNERS).join(Digest::of(owner.as_bytes()).hex())
    }

    /// What the notes say, and whether all of them could be read. A damaged one is removed.
    fn read_notes(&self) -> Result<(Owners, bool), PinError> {
        let (mut owners, mut are_whole) = (Owners::new(), true);
        for path in entries(&self.dir.join(OWNERS))? {
            let read = |source| PinError::Read { path: path.clone(), source };
            let mut text = Vec::new();
            File::open(&path)
                .and_then(|file| file.take(MAX_NOTE_BYTES).read_to_end(&mut text))
                .map_err(read)?;
            match serde_json::from_slice::<Note>(&text) {
                Ok(note) if self.place(&note.owner) == path => {
                    owners.insert(note.owner, note.digests);
                }
                _ => {
                    tracing::warn!(path = %path.display(), "a note of what is deployed is damaged, and is removed");
                    are_whole = false;
                    fs::remove_file(&path)
                        .map_err(|source| PinError::Write { path: path.clone(), source })?;
                }
            }
        }
        Ok((owners, are_whole))
    }

    /// What lies among the blobs.
    fn kept(&self) -> Result<BTreeSet<Digest>, PinError> {
        let paths = entries(&self.dir.join(BLOBS))?;
        let names = paths.iter().filter_map(|path| path.file_name()?.to_str());
        Ok(names.filter_map(|name| format!("sha256:{name}").parse().ok()).collect())
    }

    /// Makes a name or a copy of a blob of the cache.
    fn keep(&self, digest: &Digest, blobs: &Blobs) -> Result<(), PinError> {
        let place = self.blob(digest);
        let there = fs::metadata(&place).ok();
        // It is held from here on, so that it does not leave the cache meanwhile.
        let Some(path) = blobs.get(digest)? else {
            return if there.is_some() && blobs.adopt(&place, digest)? {
                Ok(())
            } else {
                Err(PinError::Missing(*digest))
            };
        };
        let cached = fs::metadata(&path).map_err(|source| PinError::Read { path: path.clone(), source })?;
        let is_same = |there: &fs::Metadata| (there.dev(), there.ino()) == (cached.dev(), cached.ino());
        if there.as_ref().is_some_and(is_same) {
            return Ok(());
        }
        let write = |source| PinError::Write { path: self.dir.clone(), source };
        let drafts = self.dir.join(DRAFTS);
        let draft = tempfile::Builder::new().make_in(&drafts, |draft| fs::hard_link(&path, draft));
        let draft = match draft {
            Ok(draft) => draft.into_temp_path(),
            // Of another disk, or one without links: what is there is a copy already.
            Err(_) if there.is_some_and(|there| there.len() == cached.len()) => return Ok(()),
            Err(_) => self.copy(&path, digest)?,
        };
        draft.persist(&place).map_err(|error| write(error.error))
    }

    /// A copy of a blob, synced, sharing its blocks where the file system can.
    fn copy(&self, path: &Path, digest: &Digest) -> Result<tempfile::TempPath, PinError> {
        let read = |source| PinError::Read { path: path.to_owned(), source };
        let write = |source| PinError::Write { path: self.dir.clone(), source };
        let mut draft = tempfile::NamedTempFile::new_in(self.dir.join(DRAFTS)).map_err(write)?;
        let mut source = File::open(path).map_err(read)?;
        if rustix::fs::ioctl_ficlone(draft.as_file(), &source).is_err() {
            io::copy(&mut source, draft.as_file_mut()).map_err(write)?;
        }
        draft.as_file().set_permissions(fs::Permissions::from_mode(MODE)).map_err(write)?;
        draft.as_file().sync_all().map_err(write)?;
        let mut written = draft.reopen().map_err(write)?;
        match super::blobs::hash(&mut written, &mut |_| {}).map_err(read)? {
            actual if actual == *digest => Ok(draft.into_temp_path()),
            actual => Err(BlobError::Mismatch { expected: *digest, actual }.into()),
        }
    }

    /// Writes down what an owner has pinned.
    fn note(&self, owner: &str, digests: &BTreeSet<Digest>) -> Result<(), PinError> {
        let place = self.place(owner);
        let write = |source| PinError::Write { path: place.clone(), source };
        let note = Note { owner: owner.to_owned(), digests: digests.clone() };
        let text = serde_json::to_vec(&note).map_err(|error| write(error.into()))?;
        let mut draft = tempfile::NamedTempFile::new_in(self.dir.join(DRAFTS)).map_err(write)?;
        draft.write_all(&text).and_then(|()| draft.as_file().sync_all()).map_err(write)?;
        draft.persist(&place).map_err(|error| write(error.error))?;
        self.sync(OWNERS)
    }

    /// Makes the names in a folder last.
    fn sync(&self, folder: &str) -> Result<(), PinError> {
        let path = self.dir.join(folder);
        let synced = File::open(&path).and_then(|folder| folder.sync_all());
        synced.map_err(|source| PinError::Write { path, source })
    }

    /// Removes those of the blobs that no owner names.
    fn remove_unnamed(&self, digests: &BTreeSet<Digest>, owners: &Owners) {
        let is_named = |digest: &Digest| owners.values().any(|named| named.contains(digest));
        self.remove(&digests.iter().filter(|digest| !is_named(digest)).copied().collect());
    }

    fn remove(&self, digests: &BTreeSet<Digest>) {
        for digest in digests {
            let path = self.blob(digest);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(path = %path.display(), %error, "what nothing deployed needs stays for now");
                }
                _ => {}
            }
        }
    }

    fn remove_all(&self, folder: &Path) -> Result<(), PinError> {
        for path in entries(folder)? {
            fs::remove_file(&path).map_err(|source| PinError::Write { path, source })?;
        }
        Ok(())
    }
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>, PinError> {
    let read = |source| PinError::Read { path: folder.to_owned(), source };
    fs::read_dir(folder).map_err(read)?.map(|entry| Ok(entry.map_err(read)?.path())).collect()
}

#[cfg(test)]
mod tests;
