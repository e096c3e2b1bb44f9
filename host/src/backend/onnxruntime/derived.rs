//! Keeps optimised models on disk: one folder a model, library and processor, complete or not there.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, BufReader, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};

pub(super) const GRAPH: &str = "model.onnx";
pub(super) const WEIGHTS: &str = "model.data";
const MANIFEST: &str = "manifest";
const BUILDING: &str = ".building-";
/// What a killed process left behind is removed after this time.
const ABANDONED: Duration = Duration::from_secs(3600);

/// Where the optimised form of one model lies, or would lie.
#[derive(Debug)]
pub(super) struct Slot {
    folder: PathBuf,
}

impl Slot {
    pub(super) fn new(root: &Path, digest: &str, key: &str) -> Slot {
        Slot { folder: root.join("onnxruntime").join(format!("{digest}-{key}")) }
    }

    pub(super) fn graph(&self) -> PathBuf {
        self.folder.join(GRAPH)
    }

    /// Whether everything that was written is still there.
    pub(super) fn is_intact(&self) -> bool {
        is_intact(&self.folder)
    }

    /// Has `write` fill a folder and puts it into place, unless another process was quicker.
    pub(super) fn build(&self, write: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
        let root = self.folder.parent().ok_or(ErrorKind::InvalidInput)?;
        fs::create_dir_all(root)?;
        remove_abandoned(root);
        let building = tempfile::Builder::new().prefix(BUILDING).tempdir_in(root)?;
        write(building.path())?;
        for name in [GRAPH, WEIGHTS] {
            match File::open(building.path().join(name)) {
                // A model without large weights has no file of them.
                Err(error) if error.kind() == ErrorKind::NotFound && name == WEIGHTS => {}
                file => file?.sync_all()?,
            }
        }
        let manifest = building.path().join(MANIFEST);
        fs::write(&manifest, describe(building.path())?)?;
        File::open(&manifest)?.sync_all()?;
        File::open(building.path())?.sync_all()?;
        self.publish(building.path())?;
        File::open(root)?.sync_all()
    }

    /// Renames the folder into place. What lies there is either another process's good work, which stays, or
    /// damaged; graphs that map the files keep them when they are unlinked.
    fn publish(&self, building: &Path) -> io::Result<()> {
        let Err(error) = fs::rename(building, &self.folder) else { return Ok(()) };
        if !self.folder.exists() {
            return Err(error);
        }
        if self.is_intact() {
            return Ok(());
        }
        let damaged = building.with_extension("damaged");
        fs::rename(&self.folder, &damaged)?;
        // What cannot be removed now is removed when it counts as abandoned.
        let _ = fs::remove_dir_all(&damaged);
        fs::rename(building, &self.folder).or_else(|error| if self.is_intact() { Ok(()) } else { Err(error) })
    }
}

fn is_intact(folder: &Path) -> bool {
    let written = fs::read_to_string(folder.join(MANIFEST));
    written.is_ok_and(|written| describe(folder).is_ok_and(|found| found == written))
}

/// What the manifest says of the folder. The graph, which is parsed, is hashed. The weights are mapped and
/// can be gigabytes: reading them would cost what the mapping saves. So they only must have their length,
/// without which the mapping would crash; their content is for the disk to keep, as that of every file.
fn describe(folder: &Path) -> io::Result<String> {
    let mut hasher = Sha256::new();
    io::copy(&mut BufReader::new(File::open(folder.join(GRAPH))?), &mut hasher)?;
    let mut text = String::from("1 ");
    for byte in hasher.finalize() {
        write!(text, "{byte:02x}").expect("writing to a String cannot fail");
    }
    let weights = match fs::metadata(folder.join(WEIGHTS)) {
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        metadata => Some(metadata?.len()),
    };
    writeln!(text, " {weights:?}").expect("writing to a String cannot fail");
    Ok(text)
}

fn remove_abandoned(root: &Path) {
    for entry in fs::read_dir(root).into_iter().flatten().flatten() {
        let is_ours = entry.file_name().to_string_lossy().starts_with(BUILDING);
        let age = entry.metadata().and_then(|metadata| metadata.modified()).map(|time| time.elapsed());
        if is_ours && age.is_ok_and(|age| age.is_ok_and(|age| age > ABANDONED)) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(folder: &Path, graph: &str) -> io::Result<()> {
        fs::write(folder.join(GRAPH), graph)?;
        fs::write(folder.join(WEIGHTS), "weights")
    }

    fn slot(root: &Path) -> Slot {
        let slot = Slot::new(root, "digest", "key");
        slot.build(|folder| write(folder, "first")).unwrap();
        assert!(slot.is_intact());
        slot
    }

    #[test]
    fn damage_is_seen_and_rebuilt() {
        let damages: [fn(&Path) -> io::Result<()>; 5] = [
            |folder| fs::write(folder.join(GRAPH), "fir"),
            |folder| fs::write(folder.join(GRAPH), "f1rst"),
            |folder| fs::write(folder.join(WEIGHTS), "weight"),
            |folder| fs::remove_file(folder.join(WEIGHTS)),
            |folder| fs::remove_file(folder.join(MANIFEST)),
        ];
        for damage in damages {
            let root = tempfile::tempdir().unwrap();
            let slot = slot(root.path());
            damage(&slot.folder).unwrap();
            assert!(!slot.is_intact());
            slot.build(|folder| write(folder, "second")).unwrap();
            assert!(slot.is_intact());
            assert_eq!(fs::read_to_string(slot.graph()).unwrap(), "second");
        }
    }

    #[test]
    fn the_second_to_build_uses_what_the_first_built() {
        let root = tempfile::tempdir().unwrap();
        let slot = slot(root.path());
        slot.build(|folder| write(folder, "second")).unwrap();
        assert_eq!(fs::read_to_string(slot.graph()).unwrap(), "first");
        assert_eq!(fs::read_dir(slot.folder.parent().unwrap()).unwrap().count(), 1, "nothing is left behind");
    }

    #[test]
    fn a_failed_build_leaves_nothing() {
        let root = tempfile::tempdir().unwrap();
        let slot = Slot::new(root.path(), "digest", "key");
        slot.build(|_| Err(ErrorKind::StorageFull.into())).unwrap_err();
        assert!(!slot.is_intact());
        assert_eq!(fs::read_dir(slot.folder.parent().unwrap()).unwrap().count(), 0);
    }
}
