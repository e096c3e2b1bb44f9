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
    table: Mutex<Table>,
    _lock: File,
}

type Owners = BTreeMap<String, BTreeSet<Digest>>;

/// Who names which blobs: what nobody names is removed. It is locked for notes and removals, never for the blobs
/// themselves, which may be large.
#[derive(Debug, Default)]
struct Table {
    owners: Owners,
    /// What is being pinned, by a number of its own: none of it is removed meanwhile.
    coming: BTreeMap<u64, BTreeSet<Digest>>,
    next: u64,
}

/// Names blobs that are being pinned, until it is dropped.
struct Coming<'a> {
    pins: &'a Pins,
    number: u64,
}

impl Drop for Coming<'_> {
    fn drop(&mut self) {
        let mut table = self.pins.lock();
        let digests = table.coming.remove(&self.number).unwrap_or_default();
        self.pins.remove_unnamed(&digests, &table);
    }
}

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
    /// Why others could not be read or written; they stay as they are.
    pub troubles: Vec<String>,
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
        let pins = Pins { dir: dir.to_owned(), table: Mutex::default(), _lock: lock };
        let (owners, are_whole) = pins.read_notes()?;
        pins.remove_all(&pins.dir.join(DRAFTS))?;
        // What a damaged note named is nobody's now, but whoever knows of its owner may pin it again.
        if are_whole {
            let named: BTreeSet<Digest> = owners.values().flatten().copied().collect();
            let left: BTreeSet<_> = pins.kept()?.difference(&named).copied().collect();
            pins.remove(&left);
        }
        pins.lock().owners = owners;
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
        // First named, then looked for: what is found stays.
        let coming = self.coming(&digests);
        digests.iter().try_for_each(|digest| self.keep(digest, blobs))?;
        self.sync(BLOBS)?;
        let mut table = self.lock();
        self.note(owner, &digests)?;
        let former = table.owners.insert(owner.to_owned(), digests).unwrap_or_default();
        self.remove_unnamed(&former, &table);
        drop(table);
        drop(coming);
        Ok(())
    }

    fn coming(&self, digests: &BTreeSet<Digest>) -> Coming<'_> {
        let mut table = self.lock();
        let number = table.next;
        table.next += 1;
        table.coming.insert(number, digests.clone());
        Coming { pins: self, number }
    }

    /// Lets go of what `owner` has pinned, if anything. A blob that another owner has pinned too stays.
    ///
    /// # Errors
    /// Where the folder cannot be written.
    pub fn unpin(&self, owner: &str) -> Result<(), PinError> {
        let mut table = self.lock();
        let place = self.place(owner);
        match fs::remove_file(&place) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(PinError::Write { path: place, source });
            }
            _ => {}
        }
        let former = table.owners.remove(owner).unwrap_or_default();
        // The note must be gone for good before what it names goes.
        self.sync(OWNERS)?;
        self.remove_unnamed(&former, &table);
        Ok(())
    }

    /// Who has pinned what.
    pub fn owners(&self) -> BTreeMap<String, BTreeSet<Digest>> {
        self.lock().owners.clone()
    }

    /// Lets go of what all owners have pinned but those that `keep` names: of a host that ended between a pin and the
    /// note of what it was for.
    ///
    /// # Errors
    /// Where the folder cannot be written: the first that went wrong, after all were tried.
    pub fn retain(&self, keep: &dyn Fn(&str) -> bool) -> Result<(), PinError> {
        let others: Vec<_> = self.lock().owners.keys().filter(|owner| !keep(owner)).cloned().collect();
        others.iter().map(|owner| self.unpin(owner)).fold(Ok(()), Result::and)
    }

    /// Puts pinned blobs that have left the cache back into it. What goes through `blobs` stays there as long as that.
    ///
    /// # Errors
    /// Where the folder cannot be read. What is wrong with single blobs keeps no other from being put back: see
    /// [`Restored`].
    pub fn restore(&self, blobs: &Blobs) -> Result<Restored, PinError> {
        let owners = self.owners();
        let mut restored = Restored::default();
        let (there, mut lost) = (self.kept()?, BTreeSet::new());
        let named = owners.values().flatten().chain(&there).copied().collect::<BTreeSet<_>>();
        for digest in named {
            match self.restore_one(&digest, there.contains(&digest), blobs) {
                Ok(Some(true)) => restored.put_back += 1,
                Ok(Some(false)) => {}
                Ok(None) => drop(lost.insert(digest)),
                Err(error) => restored.troubles.push(format!("{digest}: {error}")),
            }
        }
        self.remove(&lost);
        let lost = owners.into_iter().map(|(owner, digests)| (owner, &digests & &lost));
        restored.lost = lost.filter(|(_, digests)| !digests.is_empty()).collect();
        Ok(restored)
    }

    /// Whether a blob had to be put back; `None` where it is damaged or gone.
    fn restore_one(&self, digest: &Digest, is_there: bool, blobs: &Blobs) -> Result<Option<bool>, PinError> {
        match blobs.get(digest) {
            Ok(Some(_)) if is_there => Ok(Some(false)),
            Ok(Some(_)) => self.keep(digest, blobs).map(|()| Some(false)),
            Ok(None) if !is_there => Ok(None),
            Ok(None) => Ok(blobs.adopt(&self.blob(digest), digest)?.then_some(true)),
            // What the cache has of it cannot be read: what is kept here may be.
            Err(_) if is_there && blobs.adopt(&self.blob(digest), digest)? => Ok(Some(true)),
            Err(error) => Err(error.into()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
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
            let mut text = Vec::new();
            let read = File::open(&path).and_then(|file| file.take(MAX_NOTE_BYTES).read_to_end(&mut text));
            let note = read.map_err(|error| error.to_string()).and_then(|_| {
                let note: Note = serde_json::from_slice(&text).map_err(|error| error.to_string())?;
                let is_its_own = self.place(&note.owner) == path;
                is_its_own.then_some(note).ok_or_else(|| "it has the name of another".to_owned())
            });
            match note {
                Ok(note) => drop(owners.insert(note.owner, note.digests)),
                Err(reason) => {
                    are_whole = false;
                    tracing::warn!(
                        path = %path.display(), reason,
                        "a note of what is deployed cannot be read, and is removed; its blobs stay until they are \
                         deployed anew"
                    );
                    if let Err(error) = fs::remove_file(&path) {
                        tracing::warn!(path = %path.display(), %error, "it cannot be removed either");
                    }
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
        let drafted = draft.to_path_buf();
        draft.persist(&place).map_err(|error| write(error.error))?;
        // Where another pin has just made the same link, renaming does nothing, and leaves the draft.
        match fs::remove_file(&drafted) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(PinError::Write { path: drafted, source })
            }
            _ => Ok(()),
        }
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

    /// Removes those of the blobs that nobody names.
    fn remove_unnamed(&self, digests: &BTreeSet<Digest>, table: &Table) {
        let is_named = |digest: &Digest| {
            table.owners.values().chain(table.coming.values()).any(|named| named.contains(digest))
        };
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
