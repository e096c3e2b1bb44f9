//! Blobs that stay on disk though no process runs: those of what is deployed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use thiserror::Error;

use super::blobs::{BlobError, Blobs};
use super::oci::Digest;

/// The pins of one host, in a folder of its state.
#[derive(Debug)]
pub struct Pins {}

/// Why blobs cannot be pinned.
#[derive(Debug, Error)]
pub enum PinError {
    #[error(transparent)]
    Blob(#[from] BlobError),
}

/// What came of putting pinned blobs back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// Blobs that had left the cache and are there again.
    pub put_back: usize,
    /// What is damaged or gone, by its owner: only whoever has it elsewhere can bring it back.
    pub lost: BTreeMap<String, BTreeSet<Digest>>,
}

impl Pins {
    /// Opens the pins in `dir`, which is made if it is not there, and removes what an interrupted change left. One
    /// process at a time may have them.
    ///
    /// # Errors
    /// Where another process has them, or the folder cannot be read or written.
    pub fn open(_dir: &Path) -> Result<Pins, PinError> {
        Ok(Pins {})
    }

    /// Keeps these blobs, all of which are in the cache, until `owner` lets go of them; in place of what it had pinned
    /// before. When this answers, the pin lasts.
    ///
    /// # Errors
    /// Where a blob is not there, or cannot be linked nor copied. What `owner` had pinned stays pinned then.
    pub fn pin(&self, _owner: &str, _digests: &[Digest], _blobs: &Blobs) -> Result<(), PinError> {
        Ok(())
    }

    /// Lets go of what `owner` has pinned, if anything. A blob that another owner has pinned too stays.
    ///
    /// # Errors
    /// Where the folder cannot be written.
    pub fn unpin(&self, _owner: &str) -> Result<(), PinError> {
        Ok(())
    }

    /// Who has pinned what.
    pub fn owners(&self) -> BTreeMap<String, BTreeSet<Digest>> {
        BTreeMap::new()
    }

    /// Lets go of what all owners have pinned but those that `keep` names: of a host that ended between a pin and the
    /// note of what it was for.
    ///
    /// # Errors
    /// Where the folder cannot be written.
    pub fn retain(&self, _keep: &dyn Fn(&str) -> bool) -> Result<(), PinError> {
        Ok(())
    }

    /// Puts pinned blobs that have left the cache back into it. What goes through `blobs` stays there as long as that.
    ///
    /// # Errors
    /// Where a folder cannot be read or written. Damage is no error: see [`Restored::lost`].
    pub fn restore(&self, _blobs: &Blobs) -> Result<Restored, PinError> {
        Ok(Restored::default())
    }
}
