//! Compiled models on disk: what OpenVINO writes into its cache folder, sealed so that damage is noticed.
//!
//! OpenVINO trusts its cache: it checks a version and a date, not the content. So each folder carries a list of
//! its files with their digests, and is used only if all of them still hold. A folder is filled under another
//! name and renamed when complete.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// The list of a folder's files; written last.
const SEAL: &str = "sealed";

/// Where one model's derived files lie.
pub(super) struct Entry {
    folder: PathBuf,
}

impl Entry {
    /// The entry of a model under `derived`; `version` and `key` name everything that the files depend on.
    pub(super) fn new(derived: &Path, version: &str, key: &str) -> Entry {
        Entry { folder: derived.join("openvino").join(version).join(key) }
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The complete compiled model, if there is one and it is undamaged. A damaged one is removed.
    pub(super) fn sealed(&self) -> Option<PathBuf> {
        let folder = self.compiled();
        if !folder.exists() {
            return None;
        }
        match holds(&folder) {
            Ok(true) => Some(folder),
            damaged => {
                let error = damaged.err().map(|error| error.to_string());
                tracing::warn!(backend = "openvino", error, "a compiled model in the cache is damaged");
                self.remove();
                None
            }
        }
    }

    pub(super) fn remove(&self) {
        if let Err(error) = fs::remove_dir_all(self.compiled()) {
            tracing::warn!(backend = "openvino", %error, "failed to remove a compiled model");
        }
    }

    /// An empty folder to fill, which vanishes unless it is [kept](Entry::keep).
    pub(super) fn fresh(&self) -> io::Result<tempfile::TempDir> {
        fs::create_dir_all(&self.folder)?;
        tempfile::Builder::new().prefix("new-").tempdir_in(&self.folder)
    }

    /// Seals a filled folder and makes it the entry's compiled model, unless another process was first.
    pub(super) fn keep(&self, fresh: tempfile::TempDir) -> io::Result<()> {
        seal(fresh.path())?;
        match fs::rename(fresh.path(), self.compiled()) {
            Err(error) if !self.compiled().exists() => Err(error),
            _ => Ok(()),
        }
    }

    /// Gives a file of the model a name in this folder: OpenVINO looks for the weights beside the model, under
    /// the same name.
    pub(super) fn link(&self, file: &Path, name: &str) -> io::Result<PathBuf> {
        fs::create_dir_all(&self.folder)?;
        let link = self.folder.join(name);
        if same(&link, file) {
            return Ok(link);
        }
        match fs::remove_file(&link) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let made = fs::hard_link(file, &link)
            .or_else(|_| std::os::unix::fs::symlink(std::path::absolute(file)?, &link));
        if same(&link, file) { Ok(link) } else { Err(made.err().unwrap_or(io::ErrorKind::NotFound.into())) }
    }

    fn compiled(&self) -> PathBuf {
        self.folder.join("compiled")
    }
}

fn same(link: &Path, file: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (fs::metadata(link), fs::metadata(file)) {
        (Ok(link), Ok(file)) => (link.dev(), link.ino()) == (file.dev(), file.ino()),
        _ => false,
    }
}

/// Lists the files of `folder` in its seal.
fn seal(folder: &Path) -> io::Result<()> {
    let mut draft = tempfile::NamedTempFile::new_in(folder.parent().unwrap_or(folder))?;
    io::Write::write_all(&mut draft, list(folder)?.as_bytes())?;
    draft.persist(folder.join(SEAL))?;
    Ok(())
}

fn holds(folder: &Path) -> io::Result<bool> {
    Ok(fs::read_to_string(folder.join(SEAL))? == list(folder)?)
}

/// Digest and name of every file in `folder` but the seal.
fn list(folder: &Path) -> io::Result<String> {
    let mut lines = Vec::new();
    for file in fs::read_dir(folder)? {
        let file = file?;
        if file.file_name() != SEAL {
            let mut hash = Sha256::new();
            io::copy(&mut File::open(file.path())?, &mut hash)?;
            lines.push(format!("{:x}  {}\n", hash.finalize(), file.file_name().to_string_lossy()));
        }
    }
    lines.sort();
    Ok(lines.concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_folder_is_not_used() {
        let root = tempfile::tempdir().unwrap();
        let entry = Entry::new(root.path(), "1", "key");
        let filled = || {
            let fresh = entry.fresh().unwrap();
            fs::write(fresh.path().join("a.blob"), "abc").unwrap();
            entry.keep(fresh).unwrap();
            entry.sealed().expect("just sealed")
        };
        let damages: [fn(&Path); 5] = [
            |folder| fs::write(folder.join("a.blob"), "abd").unwrap(),
            |folder| fs::write(folder.join("a.blob"), "ab").unwrap(),
            |folder| fs::write(folder.join("b.blob"), "").unwrap(),
            |folder| fs::remove_file(folder.join("a.blob")).unwrap(),
            |folder| fs::remove_file(folder.join(SEAL)).unwrap(),
        ];
        for damage in damages {
            damage(&filled());
            assert_eq!(entry.sealed(), None);
        }
        filled();
        // A second writer finds the first one's folder, and leaves it.
        filled();
    }

    #[test]
    fn links_are_renewed() {
        let root = tempfile::tempdir().unwrap();
        let entry = Entry::new(root.path(), "1", "key");
        for name in ["one", "two"] {
            let file = root.path().join(name);
            fs::write(&file, name).unwrap();
            assert_eq!(fs::read_to_string(entry.link(&file, "model.xml").unwrap()).unwrap(), name);
        }
        assert!(entry.link(&root.path().join("absent"), "model.bin").is_err());
    }
}
