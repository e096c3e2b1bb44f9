//! What is known of a digest beside its bytes: when it was last used, and whether its blob was verified.
//!
//! A record is a small file under the digest. The time of its last change is the time of the last use. Its text says
//! which file was verified, and in which run of the machine: by the kernel's boot id. What a process wrote or read in
//! this run is what the kernel shows to all of them, whichever of them died; only where the machine itself went down
//! may a disk lack what was written. So a record that names this run was written in this run, and no record needs to
//! reach the disk in any order: one that is old, torn or missing has the blob read again.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};
use std::time::SystemTime;

use crate::artifact::oci::Digest;

/// The records of a cache.
#[derive(Clone, Debug)]
pub(in crate::artifact) struct Records {
    folder: PathBuf,
    boot: Arc<str>,
}

impl Records {
    /// Those of the cache at `root`.
    pub(in crate::artifact) fn at(root: &Path) -> Records {
        Records { folder: root.join("records"), boot: Arc::from(boot()) }
    }

    /// As in another run of the machine.
    #[cfg(test)]
    pub(super) fn in_run(mut self, boot: &str) -> Records {
        self.boot = Arc::from(boot);
        self
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.folder.join(digest.hex())
    }

    /// Whether this very file was verified in this run of the machine, and has not been written since.
    pub(super) fn is_verified(&self, digest: &Digest, blob: &Metadata) -> bool {
        fs::read_to_string(self.path(digest)).is_ok_and(|text| text == self.text(blob))
    }

    /// Notes that the file was verified, and used, now. Where that cannot be noted, it is verified again.
    pub(super) fn verified(&self, digest: &Digest, blob: &Metadata) {
        let _ = fs::write(self.path(digest), self.text(blob));
        self.touch(digest);
    }

    fn text(&self, blob: &Metadata) -> String {
        let changed = (blob.mtime(), blob.mtime_nsec());
        format!("{} {} {} {}.{:09}\n", self.boot, blob.ino(), blob.len(), changed.0, changed.1)
    }

    /// Notes a use. Where that cannot be noted, something is removed sooner than it should be.
    pub(super) fn touch(&self, digest: &Digest) {
        let file = File::options().append(true).create(true).open(self.path(digest));
        let _ = file.and_then(|file| file.set_modified(SystemTime::now()));
    }

    /// When the digest was last used, as far as it was noted.
    pub(in crate::artifact) fn last_use(&self, digest: &Digest) -> Option<SystemTime> {
        fs::metadata(self.path(digest)).and_then(|metadata| metadata.modified()).ok()
    }

    pub(in crate::artifact) fn remove(&self, digest: &Digest) {
        let _ = fs::remove_file(self.path(digest));
    }

    /// Every digest that has a record.
    pub(in crate::artifact) fn digests(&self) -> io::Result<Vec<Digest>> {
        let names =
            fs::read_dir(&self.folder)?.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        Ok(names.filter_map(|name| format!("sha256:{name}").parse().ok()).collect())
    }
}

/// What tells this run of the machine from others. Without the kernel's word for it, each process is a run of its own.
fn boot() -> &'static str {
    static BOOT: LazyLock<String> = LazyLock::new(|| {
        let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        match id.trim() {
            "" => {
                let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
                format!("process-{}-{}", std::process::id(), now.as_nanos())
            }
            id => id.to_owned(),
        }
    });
    &BOOT
}
