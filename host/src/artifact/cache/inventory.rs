//! What lies in a cache: each file, what it belongs to, when it was last used, and whether it is in use.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::artifact::blobs::hold;
use crate::artifact::blobs::record::Records;
use crate::artifact::blobs::{Remembered, remembered};
use crate::artifact::oci::{Digest, ImageManifest, MAX_MANIFEST_BYTES};

/// What a file of the cache is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Blob,
    /// A blob that did not come whole.
    Partial,
    /// A model file: mostly another name of a blob.
    Model,
    Compiled,
    /// What a backend made of a model.
    Derived,
    Verdict,
    /// What processes that died were writing, or others still are.
    Unfinished,
}

impl Kind {
    /// As people read it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Blob => "other blobs",
            Kind::Partial => "partial downloads",
            Kind::Model => "models",
            Kind::Compiled => "compiled components",
            Kind::Derived => "derived by backends",
            Kind::Verdict => "verdicts",
            Kind::Unfinished => "unfinished files",
        }
    }
}

/// One file, or one folder of what a backend derived.
#[derive(Debug)]
pub struct Item {
    pub kind: Kind,
    pub path: PathBuf,
    /// What it is named by.
    pub digest: Option<Digest>,
    /// Its files, so that two names of one are counted once.
    files: Vec<(Inode, u64)>,
    changed: SystemTime,
}

/// Device and number.
type Inode = (u64, u64);

/// Items that go together: those of one digest, and those that are names of one file.
#[derive(Debug)]
pub struct Group {
    pub items: Vec<usize>,
    pub digests: BTreeSet<Digest>,
    pub bytes: u64,
    pub used: SystemTime,
    /// Whether a live process holds one of its digests, a reference in use has one, or it may still be being written.
    pub in_use: bool,
}

/// A reference, and what it led to.
#[derive(Debug)]
pub struct Reference {
    pub remembered: Remembered,
    /// Its groups that are there; none where its manifest is gone.
    pub groups: BTreeSet<usize>,
    /// How many of its blobs are not there whole.
    pub missing: usize,
    pub in_use: bool,
}

/// All of a cache but libraries and mounts.
#[derive(Debug)]
pub struct Inventory {
    pub items: Vec<Item>,
    pub groups: Vec<Group>,
    pub references: Vec<Reference>,
    /// Bytes, each file once.
    pub bytes: u64,
}

/// Files together, each counted once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum {
    pub files: usize,
    pub bytes: u64,
    pub in_use_bytes: u64,
}

/// What has no digest in its name is being written, or was by a process that died longer ago than this.
const UNFINISHED: Duration = Duration::from_secs(60 * 60);

impl Inventory {
    /// Looks through the cache at `root`, which need not be there.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub fn of(root: &Path) -> io::Result<Inventory> {
        let held = hold::in_use(&root.join("held"), None)?;
        Inventory::given(root, &held)
    }

    /// As [`of`](Inventory::of), where it is known what is held.
    pub(super) fn given(root: &Path, held: &BTreeSet<Digest>) -> io::Result<Inventory> {
        let mut items = Vec::new();
        let folders = [
            (Kind::Blob, "blobs/sha256"),
            (Kind::Partial, "partial"),
            (Kind::Model, "models"),
            (Kind::Compiled, "compiled"),
            (Kind::Verdict, "verdicts"),
        ];
        for (kind, folder) in folders {
            each(&root.join(folder), &mut |path, metadata| {
                let digest = digest_in(&path).filter(|_| metadata.is_file());
                let kind = if digest.is_some() { kind } else { Kind::Unfinished };
                items.extend(item(kind, path, &metadata, digest));
                Ok(())
            })?;
        }
        derived(&root.join("derived"), 2, &mut items)?;
        let records = Records::at(root);
        let mut inventory =
            Inventory { groups: groups(&items, &records, held), items, references: Vec::new(), bytes: 0 };
        inventory.bytes = inventory.groups.iter().map(|group| group.bytes).sum();
        inventory.references = inventory.references(root, held);
        Ok(inventory)
    }

    fn references(&mut self, root: &Path, held: &BTreeSet<Digest>) -> Vec<Reference> {
        let blobs = self.items.iter().filter(|item| item.kind == Kind::Blob);
        let whole: BTreeSet<_> = blobs.filter_map(|item| item.digest).collect();
        let mut by_digest = HashMap::new();
        for (index, group) in self.groups.iter().enumerate() {
            by_digest.extend(group.digests.iter().map(|digest| (*digest, index)));
        }
        let mut references = Vec::new();
        for remembered in remembered(root) {
            let parts = match whole.contains(&remembered.manifest) {
                true => parts(root, remembered.manifest),
                false => BTreeSet::new(),
            };
            let groups: BTreeSet<_> = parts.iter().filter_map(|part| by_digest.get(part)).copied().collect();
            let in_use = held.contains(&remembered.manifest);
            if in_use {
                groups.iter().for_each(|group| self.groups[*group].in_use = true);
            }
            let missing = parts.iter().filter(|part| !whole.contains(part)).count();
            references.push(Reference { remembered, groups, missing, in_use });
        }
        references
    }

    /// Bytes of a reference and of what was made of it, those that it shares with others included.
    pub fn bytes_of(&self, reference: &Reference) -> u64 {
        reference.groups.iter().map(|group| self.groups[*group].bytes).sum()
    }

    /// What belongs to no reference, by its kind, in the order of their names.
    pub fn unreferenced(&self) -> BTreeMap<&'static str, Sum> {
        let referenced: BTreeSet<_> =
            self.references.iter().flat_map(|reference| &reference.groups).collect();
        let mut sums: BTreeMap<_, Sum> = BTreeMap::new();
        for (index, group) in self.groups.iter().enumerate() {
            if referenced.contains(&index) {
                continue;
            }
            let has_model = self.items_of(group).any(|item| item.kind == Kind::Model);
            let mut counted = BTreeSet::new();
            for item in self.items_of(group) {
                let new: Vec<_> = item.files.iter().filter(|(inode, _)| counted.insert(*inode)).collect();
                if new.is_empty() {
                    continue;
                }
                let kind = match item.kind {
                    Kind::Blob if has_model => Kind::Model.name(),
                    Kind::Blob if is_wasm(&item.path) => "components",
                    kind => kind.name(),
                };
                let bytes: u64 = new.iter().map(|(_, bytes)| bytes).sum();
                let sum = sums.entry(kind).or_default();
                sum.files += new.len();
                sum.bytes += bytes;
                sum.in_use_bytes += if group.in_use { bytes } else { 0 };
            }
        }
        sums
    }

    /// The items of a group.
    pub fn items_of<'a>(&'a self, group: &'a Group) -> impl Iterator<Item = &'a Item> {
        group.items.iter().map(|index| &self.items[*index])
    }
}

impl Item {
    /// Bytes, whether or not they are another item's too.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|(_, bytes)| bytes).sum()
    }

    /// Whether `other` is a name of the same file.
    pub fn is_also(&self, other: &Item) -> bool {
        self.files.iter().any(|(inode, _)| other.files.iter().any(|(own, _)| own == inode))
    }
}

/// The manifest and what it names; the manifest alone where it names nothing that is understood here.
fn parts(root: &Path, manifest: Digest) -> BTreeSet<Digest> {
    let path = root.join("blobs/sha256").join(manifest.hex());
    let is_small = fs::metadata(&path).is_ok_and(|metadata| metadata.len() <= MAX_MANIFEST_BYTES);
    let bytes = if is_small { fs::read(&path).unwrap_or_default() } else { Vec::new() };
    let mut parts = BTreeSet::from([manifest]);
    if let Ok(manifest) = ImageManifest::parse(&bytes) {
        parts.extend(manifest.blobs().iter().map(|blob| blob.digest));
    }
    parts
}

/// Whether a file begins as WebAssembly does.
fn is_wasm(path: &Path) -> bool {
    let mut start = [0; 4];
    File::open(path).and_then(|mut file| file.read_exact(&mut start)).is_ok_and(|()| start == *b"\0asm")
}

/// Calls `visit` with each entry of a folder; one that is gone has none, and entries that go meanwhile are left out.
fn each(folder: &Path, visit: &mut dyn FnMut(PathBuf, Metadata) -> io::Result<()>) -> io::Result<()> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        match entry.metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            metadata => visit(entry.path(), metadata?)?,
        }
    }
    Ok(())
}

/// Backends name a folder by the model's digest and more, below one of their own or of one of their versions.
fn derived(folder: &Path, depth: usize, items: &mut Vec<Item>) -> io::Result<()> {
    each(folder, &mut |path, metadata| {
        let digest = digest_in(&path);
        // What is being made has a dot, or a name that tempfile gave it.
        let is_level = metadata.is_dir() && depth > 0 && !name(&path).starts_with('.');
        match digest {
            None if is_level => derived(&path, depth - 1, items),
            None => {
                items.extend(item(Kind::Unfinished, path, &metadata, None));
                Ok(())
            }
            Some(_) => {
                items.extend(item(Kind::Derived, path, &metadata, digest));
                Ok(())
            }
        }
    })
}

fn name(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

/// The digest that a name begins with.
fn digest_in(path: &Path) -> Option<Digest> {
    let name = name(path);
    let (hex, rest) = name.split_at_checked(64)?;
    let ends = rest.is_empty() || rest.starts_with(['-', '.']);
    format!("sha256:{hex}").parse().ok().filter(|_| ends)
}

fn item(kind: Kind, path: PathBuf, metadata: &Metadata, digest: Option<Digest>) -> Option<Item> {
    let changed = metadata.modified().ok()?;
    let files = match metadata.is_dir() {
        false => vec![file(metadata)],
        true => {
            let entries = walkdir::WalkDir::new(&path).into_iter().flatten();
            let files = entries.filter(|entry| entry.file_type().is_file());
            files.filter_map(|entry| Some(file(&entry.metadata().ok()?))).collect()
        }
    };
    Some(Item { kind, path, digest, files, changed })
}

fn file(metadata: &Metadata) -> (Inode, u64) {
    ((metadata.dev(), metadata.ino()), metadata.len())
}

fn groups(items: &[Item], records: &Records, held: &BTreeSet<Digest>) -> Vec<Group> {
    let mut sets = Sets((0..items.len()).collect());
    let (mut digests, mut inodes) = (HashMap::new(), HashMap::new());
    for (index, item) in items.iter().enumerate() {
        let of_digest = item.digest.map(|digest| *digests.entry(digest).or_insert(index));
        of_digest.into_iter().for_each(|other| sets.join(index, other));
        for (inode, _) in &item.files {
            sets.join(index, *inodes.entry(*inode).or_insert(index));
        }
    }
    let mut members: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for index in 0..items.len() {
        members.entry(sets.first(index)).or_default().push(index);
    }
    let group = |indices: Vec<usize>| {
        let items = || indices.iter().map(|index| &items[*index]);
        let digests: BTreeSet<_> = items().filter_map(|item| item.digest).collect();
        let files: BTreeMap<_, _> = items().flat_map(|item| item.files.iter().copied()).collect();
        let noted = digests.iter().filter_map(|digest| records.last_use(digest));
        let changed = items().map(|item| item.changed);
        // What was noted is more exact, and is there for all but what was made by other ways.
        let used = noted.max().or(changed.max()).unwrap_or(SystemTime::UNIX_EPOCH);
        let is_young = used.elapsed().is_ok_and(|age| age < UNFINISHED);
        let in_use = digests.iter().any(|digest| held.contains(digest)) || (digests.is_empty() && is_young);
        Group { digests, bytes: files.values().sum(), used, in_use, items: indices }
    };
    members.into_values().map(group).collect()
}

/// Sets of indices that are joined.
struct Sets(Vec<usize>);

impl Sets {
    fn first(&mut self, index: usize) -> usize {
        let mut first = index;
        while self.0[first] != first {
            self.0[first] = self.0[self.0[first]];
            first = self.0[first];
        }
        first
    }

    fn join(&mut self, one: usize, other: usize) {
        let (one, other) = (self.first(one), self.first(other));
        self.0[one.max(other)] = one.min(other);
    }
}
