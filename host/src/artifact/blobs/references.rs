//! What a reference led to when it was last pulled or pushed: so that it can be served without its registry, and so
//! that people and eviction know which blobs belong together.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::{BlobError, Blobs, Store};
use crate::artifact::oci::Digest;

/// The longest reference that is remembered, in bytes: a name of 255, a tag of 128 and a digest fit.
const MAX_BYTES: usize = 1024;

/// A reference and the manifest that it led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remembered {
    pub reference: String,
    pub manifest: Digest,
    /// When it was last used.
    pub used: SystemTime,
}

/// As it is written down.
#[derive(Serialize, Deserialize)]
struct Note {
    reference: String,
    manifest: Digest,
}

impl Blobs {
    /// Remembers that `reference` led to this manifest.
    ///
    /// # Errors
    /// Where it is not the text of a reference, or the cache cannot be written.
    pub fn remember(&self, reference: &str, manifest: &Digest) -> Result<(), BlobError> {
        let is_text = reference.chars().all(|c| c.is_ascii_graphic());
        if reference.is_empty() || reference.len() > MAX_BYTES || !is_text {
            return Err(BlobError::Reference(
                reference.chars().take(100).flat_map(char::escape_default).collect(),
            ));
        }
        let note = Note { reference: reference.to_owned(), manifest: *manifest };
        let text = serde_json::to_vec(&note).map_err(|error| self.unwritable(error.into()))?;
        let mut draft = self.draft()?;
        let place = self.store.place(reference);
        let write = |source| BlobError::Write { path: place.clone(), source };
        draft.write_all(&text).and_then(|()| draft.as_file().sync_all()).map_err(write)?;
        draft.persist(&place).map_err(|error| write(error.error))?;
        super::sync_folder(&place).map_err(write)
    }

    /// The manifest that `reference` led to when it was last remembered, if its blob is still there; it counts as used
    /// now. Other blobs of it may be gone.
    ///
    /// # Errors
    /// Where the cache cannot be read or written.
    pub fn remembered(&self, reference: &str) -> Result<Option<Digest>, BlobError> {
        let place = self.store.place(reference);
        let Some(found) = read(&place).filter(|found| found.reference == reference) else { return Ok(None) };
        if self.get(&found.manifest)?.is_none() {
            return Ok(None);
        }
        let _ =
            File::options().append(true).open(&place).and_then(|file| file.set_modified(SystemTime::now()));
        Ok(Some(found.manifest))
    }
}

impl Store {
    fn references_folder(&self) -> PathBuf {
        self.root.join("references")
    }

    pub(in crate::artifact) fn place(&self, reference: &str) -> PathBuf {
        self.references_folder().join(Digest::of(reference.as_bytes()).hex())
    }
}

/// All references that are remembered in the cache at `root`, in the order of their names.
pub(in crate::artifact) fn all(root: &Path) -> Vec<Remembered> {
    let places = fs::read_dir(root.join("references")).into_iter().flatten().flatten();
    let mut found: Vec<_> = places.filter_map(|place| read(&place.path())).collect();
    found.sort_by(|one, other| one.reference.cmp(&other.reference));
    found
}

fn read(place: &Path) -> Option<Remembered> {
    let read = || -> io::Result<(Vec<u8>, SystemTime)> {
        let file = File::open(place)?;
        let used = file.metadata()?.modified()?;
        let mut text = Vec::new();
        file.take(MAX_BYTES as u64 * 2).read_to_end(&mut text)?;
        Ok((text, used))
    };
    let (text, used) = read().ok()?;
    let Note { reference, manifest } = serde_json::from_slice(&text).ok()?;
    Some(Remembered { reference, manifest, used })
}
