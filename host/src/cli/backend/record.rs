//! The sums of an installed library's files, in the form that `sha256sum --check` reads.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io;
use std::path::Path;

use sha2::{Digest as _, Sha256};

/// Beside the files that it lists; written last.
pub(super) const FILE: &str = crate::backend::available::RECORD;

/// Sums up `names` in `folder`, writes them to disk for good, and then the record of them.
pub(super) fn write(folder: &Path, names: &[String]) -> io::Result<()> {
    let mut record = String::new();
    for name in names {
        let path = folder.join(name);
        File::open(&path)?.sync_all()?;
        let _ = writeln!(record, "{}  {name}", sum(&path)?);
    }
    let path = folder.join(FILE);
    fs::write(&path, record)?;
    File::open(&path)?.sync_all()
}

/// Whether `folder` has a record and every file in it is as it was.
pub(super) fn holds(folder: &Path) -> bool {
    let Ok(record) = fs::read_to_string(folder.join(FILE)) else { return false };
    let is_same = |line: &str| {
        let (recorded, name) = line.split_once("  ")?;
        (sum(&folder.join(name)).ok()? == recorded).then_some(())
    };
    !record.is_empty() && record.lines().all(|line| is_same(line).is_some())
}

/// The SHA-256 of a file, in lower-case hex.
pub(super) fn sum(path: &Path) -> io::Result<String> {
    let mut hash = Sha256::new();
    io::copy(&mut File::open(path)?, &mut hash)?;
    Ok(format!("{:x}", hash.finalize()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_file_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let check = |expected: bool| assert_eq!(holds(dir.path()), expected);
        check(false);
        fs::create_dir(dir.path().join("a")).unwrap();
        fs::write(dir.path().join("a/b"), "abc").unwrap();
        write(dir.path(), &["a/b".to_owned()]).unwrap();
        let record = fs::read_to_string(dir.path().join(FILE)).unwrap();
        assert_eq!(record, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad  a/b\n");
        check(true);
        fs::write(dir.path().join("a/b"), "abd").unwrap();
        check(false);
        fs::remove_file(dir.path().join("a/b")).unwrap();
        check(false);
        fs::write(dir.path().join(FILE), "").unwrap();
        check(false);
    }
}
