//! What leaves the cache when it must shrink: what no process uses, least recently used first.
//!
//! What a reference led to goes as a whole, and the reference with it: half an app is of no use. Blobs that several
//! references share stay until the last of them goes.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};
use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rustix::fs::FlockOperation;

use super::inventory::{Inventory, Kind};
use crate::artifact::blobs::{BlobError, Store, hold, seen_folder};

/// How far to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    /// Until no more bytes are left than this.
    Bytes(u64),
    /// What was last used before this moment.
    UnusedSince(SystemTime),
    /// Everything that is not in use.
    All,
}

/// What was removed, or would be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Evicted {
    /// Bytes on disk, as far as no mounted file shares them.
    pub bytes: u64,
    pub files: usize,
    /// References that were forgotten.
    pub references: Vec<String>,
    /// Bytes that are left.
    pub left_bytes: u64,
    /// Bytes of them that are in use.
    pub in_use_bytes: u64,
}

/// Notes on files that were read before are of no use for longer.
const SEEN_FOR: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// Records of what is not there are of no use for longer: something may be about to come.
const RECORDED_FOR: Duration = Duration::from_secs(24 * 60 * 60);
/// The most notes, and the most references, that are kept.
const MAX_NOTES: usize = 10_000;

/// What shall go, by index.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) references: BTreeSet<usize>,
    pub(super) groups: BTreeSet<usize>,
    pub(super) bytes: u64,
}

/// What goes at once.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Unit {
    Reference(usize),
    Group(usize),
}

/// Removes what is not in use, as far as the goal asks; a dry run only tells.
///
/// # Errors
/// Where the cache cannot be read or is locked for too long. What cannot be removed is left, and counts as such.
pub(in crate::artifact) fn evict(store: &Store, goal: Goal, dry_run: bool) -> Result<Evicted, BlobError> {
    let root = &store.root;
    let read = |source| BlobError::Read { path: root.clone(), source };
    // Nobody begins to use anything while this is held; see the module of holds.
    let turn = hold::turn(&root.join("held"), FlockOperation::LockExclusive)?;
    let held = hold::in_use(&root.join("held"), Some(&store.records)).map_err(read)?;
    let inventory = Inventory::given(root, &held).map_err(read)?;
    let plan = plan(&inventory, goal);
    let in_use = inventory.groups.iter().filter(|group| group.in_use);
    let mut evicted = Evicted {
        in_use_bytes: in_use.map(|group| group.bytes).sum(),
        left_bytes: inventory.bytes,
        ..Evicted::default()
    };
    // Names are taken away while the lock is held, and what they named is removed after it: that takes its time.
    let trash = if dry_run { None } else { Some(trash(&root.join("partial"))?) };
    for index in &plan.groups {
        let group = &inventory.groups[*index];
        let mut is_gone = true;
        for (number, item) in inventory.items_of(group).enumerate() {
            let removed = match &trash {
                Some(trash) => take_away(&item.path, &trash.path().join(format!("{index}-{number}"))),
                None => Ok(()),
            };
            match removed {
                Ok(()) => evicted.files += 1,
                Err(error) => {
                    is_gone = false;
                    tracing::warn!(path = %item.path.display(), %error, "failed to remove something from the cache");
                }
            }
        }
        if is_gone {
            evicted.bytes += group.bytes;
            evicted.left_bytes = evicted.left_bytes.saturating_sub(group.bytes);
            if !dry_run {
                group.digests.iter().for_each(|digest| store.records.remove(digest));
            }
        }
    }
    for index in &plan.references {
        let reference = &inventory.references[*index].remembered.reference;
        if !dry_run {
            let _ = fs::remove_file(store.place(reference));
        }
        evicted.references.push(reference.clone());
    }
    if !dry_run {
        tidy(store, &inventory, &held);
    }
    drop(turn);
    drop(trash);
    Ok(evicted)
}

/// Where names go that are taken away. It is removed with all that is in it when it is dropped.
fn trash(folder: &Path) -> Result<tempfile::TempDir, BlobError> {
    let made = tempfile::Builder::new().prefix("trash-").tempdir_in(folder);
    made.map_err(|source| BlobError::Write { path: folder.to_owned(), source })
}

fn take_away(path: &Path, trash: &Path) -> io::Result<()> {
    let taken = fs::rename(path, trash).or_else(|_| match fs::symlink_metadata(path)?.is_dir() {
        true => fs::remove_dir_all(path),
        false => fs::remove_file(path),
    });
    match taken {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        taken => taken,
    }
}

/// What is to go, in the order of last use.
pub(super) fn plan(inventory: &Inventory, goal: Goal) -> Plan {
    let mut plan = Plan::default();
    let mut referenced: Vec<BTreeSet<usize>> = vec![BTreeSet::new(); inventory.groups.len()];
    for (index, reference) in inventory.references.iter().enumerate() {
        match reference.groups.is_empty() {
            // Its manifest is gone: it leads nowhere.
            true => plan.references.extend([index]),
            false => reference.groups.iter().for_each(|group| referenced[*group].extend([index])),
        }
    }
    let mut units = BinaryHeap::new();
    for (index, reference) in inventory.references.iter().enumerate() {
        if !reference.in_use && !reference.groups.is_empty() {
            let own = reference.groups.iter().filter(|group| referenced[**group].len() == 1);
            let used =
                own.map(|group| inventory.groups[*group].used).chain([reference.remembered.used]).max();
            units.push(Reverse((used, Unit::Reference(index))));
        }
    }
    for (index, group) in inventory.groups.iter().enumerate() {
        if !group.in_use && is_unfinished(inventory, index) {
            plan.remove(inventory, index);
        } else if !group.in_use && referenced[index].is_empty() {
            units.push(Reverse((Some(group.used), Unit::Group(index))));
        }
    }
    while let Some(Reverse((used, unit))) = units.pop() {
        let is_reached = match goal {
            Goal::Bytes(bytes) => inventory.bytes - plan.bytes <= bytes,
            Goal::UnusedSince(moment) => used >= Some(moment),
            Goal::All => false,
        };
        if is_reached {
            break;
        }
        match unit {
            Unit::Group(index) => plan.remove(inventory, index),
            Unit::Reference(index) => {
                plan.references.insert(index);
                for group in &inventory.references[index].groups {
                    referenced[*group].remove(&index);
                    if inventory.groups[*group].in_use || !referenced[*group].is_empty() {
                        continue;
                    }
                    let last = Some(inventory.groups[*group].used);
                    match last <= used {
                        true => plan.remove(inventory, *group),
                        // Something else used it later.
                        false => units.push(Reverse((last, Unit::Group(*group)))),
                    }
                }
            }
        }
    }
    plan
}

impl Plan {
    fn remove(&mut self, inventory: &Inventory, group: usize) {
        if self.groups.insert(group) {
            self.bytes += inventory.groups[group].bytes;
        }
    }
}

/// Whether a group is what a process that died was writing.
fn is_unfinished(inventory: &Inventory, group: usize) -> bool {
    inventory.items_of(&inventory.groups[group]).all(|item| item.kind == Kind::Unfinished)
}

/// Removes notes that lead nowhere, and the oldest beyond what is kept.
fn tidy(store: &Store, inventory: &Inventory, held: &BTreeSet<crate::artifact::oci::Digest>) {
    let is_older = |used: Option<SystemTime>, than: Duration| {
        used.is_none_or(|used| used.elapsed().is_ok_and(|age| age > than))
    };
    let there: BTreeSet<_> = inventory.groups.iter().flat_map(|group| &group.digests).collect();
    for digest in store.records.digests().unwrap_or_default() {
        let is_known = there.contains(&digest) || held.contains(&digest);
        if !is_known && is_older(store.records.last_use(&digest), RECORDED_FOR) {
            store.records.remove(&digest);
        }
    }
    let mut notes = Vec::new();
    for note in fs::read_dir(seen_folder(&store.root)).into_iter().flatten().flatten() {
        let used = note.metadata().and_then(|metadata| metadata.modified()).ok();
        let digest = fs::read_to_string(note.path()).ok().and_then(|text| text.parse().ok());
        let leads_nowhere = digest.is_none_or(|digest| !store.blob(&digest).exists());
        match leads_nowhere || is_older(used, SEEN_FOR) {
            true => drop(fs::remove_file(note.path())),
            false => notes.push((used, note.path())),
        }
    }
    let references = inventory.references.iter().filter(|reference| !reference.in_use);
    let references = references.map(|reference| &reference.remembered);
    let places = references.map(|found| (Some(found.used), store.place(&found.reference))).collect();
    for mut notes in [notes, places] {
        notes.sort();
        let excess = notes.len().saturating_sub(MAX_NOTES);
        notes.iter().take(excess).for_each(|(_, path)| drop(fs::remove_file(path)));
    }
}

#[cfg(test)]
mod tests;
