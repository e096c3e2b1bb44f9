//! Reads a whole cache through, and removes what is not what its name says.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use super::digest_of;
use super::inventory::{Inventory, Item, Kind};
use crate::artifact::blobs::{BlobError, Checked, Store, hash};

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Blobs and models that were read and are whole.
    pub files: usize,
    /// What was damaged, and is removed.
    pub broken: Vec<PathBuf>,
    /// References of which blobs are missing, and how many.
    pub incomplete: Vec<(String, usize)>,
}

/// How far it is, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    pub done: u64,
    pub total: u64,
    /// What is being read.
    pub path: &'a Path,
}

/// Reads every blob, and every model that is not a name of one.
///
/// # Errors
/// Where the cache cannot be read.
pub(super) fn verify(store: &Store, report: &mut dyn FnMut(Progress<'_>)) -> Result<Verified, BlobError> {
    let failed = |source| BlobError::Read { path: store.root.clone(), source };
    let inventory = Inventory::of(&store.root).map_err(failed)?;
    let of_kind = |kind| inventory.items.iter().filter(move |item| item.kind == kind);
    let blobs: Vec<_> = of_kind(Kind::Blob).collect();
    let copies = copies(&inventory);
    let total = blobs.iter().chain(copies.values().flatten()).map(|item| item.bytes()).sum();
    let (mut verified, mut done) = (Verified::default(), 0);
    for blob in blobs {
        let Some(digest) = blob.digest else { continue };
        let checked = store.check(&digest, &mut |bytes| {
            done += bytes;
            report(Progress { done, total, path: &blob.path });
        });
        match checked? {
            Checked::Whole => verified.files += 1,
            Checked::Absent => {}
            Checked::Damaged => verified.broken.push(blob.path.clone()),
        }
    }
    for (stem, files) in copies {
        let mut digests = Vec::new();
        for item in &files {
            let read = |bytes| {
                done += bytes;
                report(Progress { done, total, path: &item.path });
            };
            digests.extend(read_through(&item.path, read));
        }
        if digests.len() == files.len() && digest_of(&digests).hex() == stem {
            verified.files += files.len();
            continue;
        }
        for item in files.into_iter().filter(|item| item.path.exists()) {
            fs::remove_file(&item.path)
                .map_err(|source| BlobError::Write { path: item.path.clone(), source })?;
            verified.broken.push(item.path.clone());
        }
    }
    // As it is now, after what was damaged is gone.
    let references = Inventory::of(&store.root).map_err(failed)?.references;
    let missing = references.into_iter().map(|found| (found.remembered.reference, found.missing));
    verified.incomplete = missing.filter(|(_, missing)| *missing > 0).collect();
    Ok(verified)
}

/// What cannot be read is not what its name says either.
fn read_through(path: &Path, mut read: impl FnMut(u64)) -> Option<crate::artifact::oci::Digest> {
    hash(File::open(path).ok()?, &mut read).ok()
}

/// The files of models of which one is not a name of a blob, by the digest in their names: the model, then its
/// weights.
fn copies(inventory: &Inventory) -> BTreeMap<String, Vec<&Item>> {
    let mut models: BTreeMap<String, Vec<&Item>> = BTreeMap::new();
    for item in inventory.items.iter().filter(|item| item.kind == Kind::Model) {
        // What else lies there is old, and no model.
        let ending = item.path.extension().and_then(|ending| ending.to_str());
        if let (Some(digest), Some("onnx" | "xml" | "bin")) = (item.digest, ending) {
            models.entry(digest.hex()).or_default().push(item);
        }
    }
    let blobs: Vec<_> = inventory.items.iter().filter(|item| item.kind == Kind::Blob).collect();
    let is_copy = |item: &&Item| !blobs.iter().any(|blob| blob.is_also(item));
    models.retain(|_, files| files.iter().any(is_copy));
    // `.xml` stands before `.bin`.
    models.values_mut().for_each(|files| files.sort_by(|one, other| other.path.cmp(&one.path)));
    models
}
