//! What is in use, told to all processes that share a cache.
//!
//! Each process that uses blobs has one file in `held/`, which it keeps locked as long as it lives, and which lists
//! the digests that it uses. Whoever removes something first takes the lock `held/lock` alone, reads all lists whose
//! process lives, and removes only what none of them names, before it gives the lock back. Whoever uses something
//! first adds it to its list, for which it takes the same lock together with others, and only then looks whether it
//! is there. So either the digest was on the list before anything was removed, or its user sees that it is gone.
//!
//! A list is a table of lines of one length. What is no longer used is crossed out by writing one byte, which nobody
//! can see half done, so that needs no lock.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::BlobError;
use super::record::Records;
use crate::artifact::oci::Digest;

/// The lock beside the lists.
const LOCK: &str = "lock";
/// How long anybody waits for it: it is held for one look at the cache at most.
const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(5);
/// A sign, the hex digits and the end of the line.
const LINE_BYTES: usize = 66;
const USED: u8 = b'+';
const CROSSED_OUT: u8 = b'-';
/// The most of a list that is read.
const MAX_LIST_BYTES: u64 = 64 << 20;

/// Keeps digests from being removed while it, or a clone of it, lives.
#[derive(Clone, Debug)]
pub struct Hold(Arc<Held>);

impl Hold {
    pub(super) fn new(held: Held) -> Hold {
        Hold(Arc::new(held))
    }

    /// What is held.
    pub fn digests(&self) -> BTreeSet<Digest> {
        self.0.lock().clone()
    }
}

/// Two holds are equal that keep the same.
impl PartialEq for Hold {
    fn eq(&self, other: &Hold) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.digests() == other.digests()
    }
}

impl Eq for Hold {}

/// Some of what a process holds, for as long as this lives.
#[derive(Debug)]
pub(super) struct Held {
    holder: Arc<Holder>,
    digests: Mutex<BTreeSet<Digest>>,
}

impl Held {
    pub(super) fn new(holder: Arc<Holder>) -> Held {
        Held { holder, digests: Mutex::default() }
    }

    /// Holds these as well.
    ///
    /// # Errors
    /// Where the list cannot be written; then none of them is held for it.
    pub(super) fn add(&self, digests: impl IntoIterator<Item = Digest>) -> Result<(), BlobError> {
        let mut held = self.lock();
        let new: BTreeSet<_> = digests.into_iter().filter(|digest| !held.contains(digest)).collect();
        self.holder.add(&new)?;
        held.extend(new);
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeSet<Digest>> {
        self.digests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let digests = std::mem::take(&mut *self.lock());
        self.holder.release(&digests);
    }
}

/// The list of this process.
#[derive(Debug)]
pub(super) struct Holder {
    folder: PathBuf,
    records: Records,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    /// Made when something is held for the first time.
    list: Option<(PathBuf, File)>,
    /// The line of each digest, and how often it is held.
    lines: BTreeMap<Digest, (u64, usize)>,
    crossed_out: Vec<u64>,
}

impl Holder {
    pub(super) fn new(folder: PathBuf, records: Records) -> Holder {
        Holder { folder, records, table: Mutex::default() }
    }

    fn add(&self, digests: &BTreeSet<Digest>) -> Result<(), BlobError> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let new: Vec<_> = digests.iter().filter(|digest| !table.lines.contains_key(digest)).collect();
        if !new.is_empty() {
            let _turn = turn(&self.folder, FlockOperation::LockShared)?;
            let write = |source| BlobError::Write { path: self.folder.clone(), source };
            for digest in new {
                if let Err(error) = table.write(&self.folder, digest) {
                    table.cross_out_unused();
                    return Err(write(error));
                }
            }
        }
        for digest in digests {
            if let Some((_, count)) = table.lines.get_mut(digest) {
                *count += 1;
            }
        }
        Ok(())
    }

    fn release(&self, digests: &BTreeSet<Digest>) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        for digest in digests {
            if let Some((_, count)) = table.lines.get_mut(digest) {
                *count = count.saturating_sub(1);
                if *count == 0 {
                    // It was used until now.
                    self.records.touch(digest);
                }
            }
        }
        table.cross_out_unused();
    }
}

impl Table {
    /// Puts a digest on the list, held by nobody yet.
    fn write(&mut self, folder: &Path, digest: &Digest) -> io::Result<()> {
        let (_, file) = match &self.list {
            Some(list) => list,
            None => self.list.insert(list(folder)?),
        };
        let line = self.crossed_out.last().copied().unwrap_or(self.lines.len() as u64);
        let text = format!("{}{}\n", char::from(USED), digest.hex());
        file.write_all_at(text.as_bytes(), line * LINE_BYTES as u64)?;
        self.crossed_out.pop();
        self.lines.insert(*digest, (line, 0));
        Ok(())
    }

    fn cross_out_unused(&mut self) {
        let Some((path, file)) = &self.list else { return };
        let unused: Vec<_> = self.lines.extract_if(.., |_, (_, count)| *count == 0).collect();
        for (_, (line, _)) in unused {
            if let Err(error) = file.write_all_at(&[CROSSED_OUT], line * LINE_BYTES as u64) {
                tracing::warn!(path = %path.display(), %error, "something in the cache stays held for longer than needed");
            }
            self.crossed_out.push(line);
        }
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        if let Some((path, _)) = &self.list {
            let _ = fs::remove_file(path);
        }
    }
}

/// Makes a list, locked. The caller has the lock beside it, so nobody takes the list for one that was left.
fn list(folder: &Path) -> io::Result<(PathBuf, File)> {
    let (file, path) = tempfile::Builder::new().prefix("by-").tempfile_in(folder)?.keep()?;
    // Whoever only looks tries the lock of each list, for a moment.
    wait(&file, FlockOperation::NonBlockingLockExclusive)?;
    Ok((path, file))
}

/// The lock beside the lists: shared to add to one, exclusive to remove from the cache. It lasts until the file is
/// closed.
///
/// # Errors
/// Where others have had it for too long, or it cannot be made.
pub(in crate::artifact) fn turn(folder: &Path, operation: FlockOperation) -> Result<File, BlobError> {
    let path = folder.join(LOCK);
    let write = |source| BlobError::Write { path: path.clone(), source };
    let operation = match operation {
        FlockOperation::LockShared => FlockOperation::NonBlockingLockShared,
        _ => FlockOperation::NonBlockingLockExclusive,
    };
    let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(write)?;
    match wait(&file, operation) {
        Ok(()) => Ok(file),
        Err(Errno::WOULDBLOCK) => {
            Err(BlobError::Locked { path: folder.to_owned(), waited_s: PATIENCE.as_secs() })
        }
        Err(error) => Err(write(error.into())),
    }
}

fn wait(file: &File, operation: FlockOperation) -> Result<(), Errno> {
    let started = Instant::now();
    loop {
        match flock(file, operation) {
            Err(Errno::WOULDBLOCK | Errno::INTR) if started.elapsed() < PATIENCE => std::thread::sleep(POLL),
            locked => return locked,
        }
    }
}

/// What live processes hold, as their lists in `folder` say. Lists of processes that are gone are removed if the
/// caller has the [`turn`] for itself, as `records` tells: what they held was used until now.
///
/// # Errors
/// Where a list cannot be read: then nothing is known.
pub(in crate::artifact) fn in_use(folder: &Path, records: Option<&Records>) -> io::Result<BTreeSet<Digest>> {
    let mut used = BTreeSet::new();
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(used),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_name() == LOCK {
            continue;
        }
        let file = match File::open(entry.path()) {
            // Its process has ended since.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            file => file?,
        };
        let is_left = match flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => true,
            Err(Errno::WOULDBLOCK) => false,
            Err(error) => return Err(error.into()),
        };
        match (is_left, records) {
            (true, None) => {}
            (true, Some(records)) => {
                digests(&file)?.iter().for_each(|digest| records.touch(digest));
                fs::remove_file(entry.path())?;
            }
            (false, _) => used.extend(digests(&file)?),
        }
    }
    Ok(used)
}

fn digests(file: &File) -> io::Result<Vec<Digest>> {
    let mut text = Vec::new();
    file.take(MAX_LIST_BYTES).read_to_end(&mut text)?;
    let lines = text.chunks_exact(LINE_BYTES).filter(|line| line[0] == USED);
    let hex = lines.filter_map(|line| std::str::from_utf8(&line[1..LINE_BYTES - 1]).ok());
    Ok(hex.filter_map(|hex| format!("sha256:{hex}").parse().ok()).collect())
}
