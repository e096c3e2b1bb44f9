//! The host's own folder: blobs and models by digest, and what is derived, compiled and mounted.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FlockOperation, flock};
use sha2::{Digest as _, Sha256};
use thiserror::Error;

use super::blobs::{self, BlobError, Blobs, Hold};
use super::oci::Digest;
pub use eviction::{Evicted, Goal};
pub use verify::{Progress, Verified};

pub(super) mod bound;
mod eviction;
pub mod inventory;
mod verify;

/// The folder. Only the host's user may write to it, so what lies in it may be trusted and mapped.
#[derive(Clone, Debug)]
pub struct Cache {
    root: PathBuf,
    mounts: Arc<Mounts>,
    blobs: Blobs,
}

/// This host's folder of mounts. It is stale once nobody holds its lock: a process id would say nothing to a host in
/// another container.
#[derive(Debug)]
struct Mounts {
    folder: PathBuf,
    _lock: File,
}

/// A model file in the cache, under its digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredModel {
    pub path: PathBuf,
    pub weights: Option<PathBuf>,
    /// SHA-256 in lower-case hex: of the file, or of the two digests of model and weights.
    pub digest: String,
    /// Bytes of model and weights together.
    pub size: u64,
    /// Keeps its files, and what is made of them, in the cache.
    pub hold: Hold,
}

/// Why a file did not get into the cache.
#[derive(Debug, Error)]
pub enum CacheError {
    #[error(transparent)]
    Blob(#[from] BlobError),
    #[error("cannot read `{path}`: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("`{path}` is larger than the {limit_mib} MiB that a model may have (`models.max_model_mib`)")]
    TooLarge { path: PathBuf, limit_mib: u64 },
    #[error("cannot write to the cache `{path}`: {source}; {}", blobs::advice(source))]
    Write { path: PathBuf, source: io::Error },
    #[error("nothing in the cache can be trusted while {whose}; `{command}` mends that")]
    Untrusted { whose: String, command: String },
}

impl Cache {
    /// Makes the folder if it is not there, for this user alone.
    ///
    /// # Errors
    /// Where it cannot be made, or others may write to it.
    pub fn open(root: &Path) -> Result<Cache, CacheError> {
        Cache::bounded(root, 0)
    }

    /// As [`open`](Cache::open); what is not in use makes room where there are more than `max_bytes` of blobs, models,
    /// and what is derived from them, compiled and found out. 0 is no bound.
    ///
    /// # Errors
    /// Where it cannot be made, or others may write to it.
    pub fn bounded(root: &Path, max_bytes: u64) -> Result<Cache, CacheError> {
        let write = |source| CacheError::Write { path: root.to_owned(), source };
        make_private(root).map_err(write)?;
        let root = root.canonicalize().map_err(write)?;
        trusted(&root)?;
        for name in FOLDERS {
            let folder = root.join(name);
            make_private(&folder).map_err(|source| CacheError::Write { path: folder.clone(), source })?;
        }
        let blobs = Blobs::open(&root, max_bytes)?;
        let mounts = root.join("mounts");
        let mounts = Mounts::start(&mounts).map_err(|source| CacheError::Write { path: mounts, source })?;
        Ok(Cache { root, mounts: Arc::new(mounts), blobs })
    }

    /// What backends derive from models.
    pub fn derived(&self) -> PathBuf {
        self.root.join("derived")
    }

    /// Compiled components.
    pub fn compiled(&self) -> PathBuf {
        self.root.join("compiled")
    }

    /// Verdicts on models.
    pub fn verdicts(&self) -> PathBuf {
        self.root.join("verdicts")
    }

    /// Libraries of backends that `tenon backend install` put there.
    pub fn libraries(&self) -> PathBuf {
        self.root.join("libraries")
    }

    fn models(&self) -> PathBuf {
        self.root.join("models")
    }

    /// A way to the blobs, which keeps what goes through it on disk while it lives: one for each piece of work.
    pub fn blobs(&self) -> Blobs {
        self.blobs.afresh()
    }

    /// Takes a model into the cache. Its bytes are kept once, as blobs, of which the model's files are further names.
    /// Whatever becomes of the author's file later, what is served does not change. A file that was kept before and
    /// has not changed since is not read again, nor is one that is a blob.
    ///
    /// # Errors
    /// Where the model cannot be read, is too large, or cannot be kept.
    pub fn store_model(
        &self,
        model: &Path,
        weights: Option<&Path>,
        limit_bytes: u64,
    ) -> Result<StoredModel, CacheError> {
        let too_large = || CacheError::TooLarge { path: model.to_owned(), limit_mib: limit_bytes >> 20 };
        let blobs = self.blobs();
        let (mut digests, mut size) = (Vec::new(), 0);
        for path in std::iter::once(model).chain(weights) {
            let left = limit_bytes - size;
            let (digest, bytes) = blobs.put_file(path, left).map_err(|error| match error {
                BlobError::TooLarge { .. } => too_large(),
                error => error.into(),
            })?;
            size += bytes;
            digests.push(digest);
        }
        self.stored(&blobs, &digests, size)
    }

    /// Keeps a model that came as bytes.
    ///
    /// # Errors
    /// Where it is too large or cannot be kept.
    pub fn store_bytes(
        &self,
        parts: &[impl AsRef<[u8]>],
        limit_bytes: u64,
    ) -> Result<StoredModel, CacheError> {
        let size: u64 = parts.iter().map(|part| part.as_ref().len() as u64).sum();
        if size > limit_bytes {
            let path = PathBuf::from("the guest's model");
            return Err(CacheError::TooLarge { path, limit_mib: limit_bytes >> 20 });
        }
        let blobs = self.blobs();
        let digests = parts.iter().map(|part| blobs.put(part.as_ref())).collect::<Result<Vec<_>, _>>()?;
        self.stored(&blobs, &digests, size)
    }

    /// A model of these blobs, which `blobs` keeps: its files are named by its digest, with the endings that backends
    /// expect.
    fn stored(&self, blobs: &Blobs, digests: &[Digest], size: u64) -> Result<StoredModel, CacheError> {
        let digest = digest_of(digests);
        let hold = blobs.hold(digests.iter().copied().chain([digest]))?;
        let file = |ending: &str| self.models().join(format!("{}.{ending}", digest.hex()));
        let (path, weights) = match digests.len() {
            1 => (file("onnx"), None),
            _ => (file("xml"), Some(file("bin"))),
        };
        for (blob, name) in digests.iter().zip(std::iter::once(&path).chain(&weights)) {
            let given = give_name(&blobs.path(blob), name);
            given.map_err(|source| CacheError::Write { path: self.models(), source })?;
        }
        Ok(StoredModel { path, weights, digest: digest.hex(), size, hold })
    }

    /// Keeps these digests, and all that is named by them, in the cache as long as the answer lives.
    ///
    /// # Errors
    /// Where the cache cannot be written.
    pub fn hold(&self, digests: impl IntoIterator<Item = Digest>) -> Result<Hold, CacheError> {
        Ok(self.blobs.hold(digests)?)
    }

    /// Makes room if the cache is over its bound.
    pub fn keep_bound(&self) {
        self.blobs.keep_bound();
    }

    /// Removes what no process uses, as far as the goal asks; a dry run only tells.
    ///
    /// # Errors
    /// Where the cache cannot be read, or another process keeps it locked.
    pub fn evict(&self, goal: Goal, dry_run: bool) -> Result<Evicted, CacheError> {
        Ok(eviction::evict(&self.blobs.store, goal, dry_run)?)
    }

    /// Reads every blob and model, removes what is damaged, and names it. `report` is told how far it is.
    ///
    /// # Errors
    /// Where the cache cannot be read.
    pub fn verify(&self, report: &mut dyn FnMut(Progress<'_>)) -> Result<Verified, CacheError> {
        Ok(verify::verify(&self.blobs.store, report)?)
    }

    /// A folder that shows `files`, as pairs of file and path within it, by hard links where they can be made. It
    /// goes when the answer is dropped.
    ///
    /// # Errors
    /// Where a file can neither be linked nor copied.
    pub fn mount(&self, files: &[(PathBuf, String)]) -> Result<tempfile::TempDir, CacheError> {
        let mounts = &self.mounts.folder;
        let write = |source| CacheError::Write { path: mounts.clone(), source };
        let folder = tempfile::Builder::new().prefix("mount-").tempdir_in(mounts).map_err(write)?;
        for (source, destination) in files {
            let target = folder.path().join(destination.trim_start_matches('/'));
            if let Some(parent) = target.parent() {
                fs::create_dir_all(parent).map_err(write)?;
            }
            if fs::hard_link(source, &target).is_err() {
                fs::copy(source, &target)
                    .map_err(|error| CacheError::Read { path: source.clone(), source: error })?;
            }
        }
        Ok(folder)
    }
}

/// The name of the lock in a host's folder of mounts, and beside those folders.
const LOCK: &str = "lock";

impl Mounts {
    /// Removes what hosts that are gone left in `root`, and makes a folder for this one.
    fn start(root: &Path) -> io::Result<Mounts> {
        // Whoever looks for stale folders must not see one that is made but not locked yet.
        let _turn = locked(&root.join(LOCK), FlockOperation::LockExclusive)?;
        for entry in fs::read_dir(root)?.flatten() {
            let folder = entry.path();
            if folder.is_dir() && is_stale(&folder) {
                let _ = fs::remove_dir_all(folder);
            }
        }
        let folder = tempfile::Builder::new().prefix("host-").tempdir_in(root)?.keep();
        let lock = locked(&folder.join(LOCK), FlockOperation::NonBlockingLockExclusive)?;
        Ok(Mounts { folder, _lock: lock })
    }
}

impl Drop for Mounts {
    fn drop(&mut self) {
        // What a revision still has mounted goes with the revision; what is left then, the next host removes.
        let _ = fs::remove_file(self.folder.join(LOCK));
        let _ = fs::remove_dir(&self.folder);
    }
}

/// The file, made if need be, with a lock that lasts until it is closed, also by the end of the process.
fn locked(path: &Path, operation: FlockOperation) -> io::Result<File> {
    let file = File::options().create(true).truncate(false).write(true).open(path)?;
    flock(&file, operation)?;
    Ok(file)
}

/// Whether no host lives that made the folder.
fn is_stale(folder: &Path) -> bool {
    let lock = File::options().write(true).open(folder.join(LOCK));
    match lock {
        Ok(lock) => flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok(),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

/// What the cache keeps, a folder each.
const FOLDERS: [&str; 6] = ["compiled", "derived", "libraries", "models", "mounts", "verdicts"];

/// Whether only this user can have written what lies in the cache at `root`, as far as it is there.
///
/// # Errors
/// Where a folder of it belongs to another user, or others may write to it.
pub fn trusted(root: &Path) -> Result<(), CacheError> {
    let own = rustix::process::geteuid().as_raw();
    for folder in std::iter::once(root.to_owned())
        .chain(FOLDERS.iter().chain(&blobs::FOLDERS).map(|name| root.join(name)))
    {
        let metadata = match fs::metadata(&folder) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(source) => return Err(CacheError::Read { path: folder, source }),
        };
        let path = folder.display();
        let (owner, mode) = (metadata.uid(), metadata.mode() & 0o7777);
        if owner != own {
            let whose = format!("`{path}` belongs to user {owner} and the host runs as user {own}");
            return Err(CacheError::Untrusted { whose, command: format!("chown -R {own} {path}") });
        }
        if mode & 0o022 != 0 {
            let whose = format!("others may write to `{path}` (its mode is {mode:o})");
            return Err(CacheError::Untrusted { whose, command: format!("chmod go-w {path}") });
        }
    }
    Ok(())
}

/// The digest of a model: that of its one file, or that of the digests of its files, so that the same bytes cut
/// elsewhere are another model.
fn digest_of(digests: &[Digest]) -> Digest {
    match digests {
        [only] => *only,
        _ => Digest::from_hash(
            digests.iter().fold(Sha256::new(), |hash, digest| hash.chain_update(digest.bytes())),
        ),
    }
}

/// Makes `name` a name of the file `blob`, in place of what has it now.
fn give_name(blob: &Path, name: &Path) -> io::Result<()> {
    let file = |path: &Path| fs::metadata(path).map(|metadata| (metadata.dev(), metadata.ino()));
    let wanted = file(blob)?;
    if file(name).is_ok_and(|there| there == wanted) {
        return Ok(());
    }
    let folder = name.parent().unwrap_or(Path::new("."));
    // File systems without links of either kind have a copy.
    let make = |draft: &Path| match fs::hard_link(blob, draft) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => std::os::unix::fs::symlink(blob, draft)
            .or_else(|_| fs::copy(blob, draft).and_then(|_| File::open(draft)?.sync_all())),
        made => made,
    };
    let draft = tempfile::Builder::new().prefix("link-").make_in(folder, make)?.into_temp_path();
    fs::rename(&draft, name)
    // Where another process was quicker, both are names of one file and nothing was renamed: the draft goes now.
}

/// Makes a folder that only this user may write, and those above it that are missing.
///
/// # Errors
/// Where the system refuses.
pub fn make_private(folder: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

/// As [`Cache::evict`], for tests that have blobs alone.
#[cfg(test)]
pub(super) fn eviction_for_tests(blobs: &Blobs, goal: Goal) -> Evicted {
    eviction::evict(&blobs.store, goal, false).expect("the cache can be read")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_kept_under_its_digest_whatever_becomes_of_the_file() {
        let root = tempfile::tempdir().unwrap();
        let cache = Cache::open(&root.path().join("cache")).unwrap();
        let file = root.path().join("model.onnx");
        fs::write(&file, "first").unwrap();
        let first = cache.store_model(&file, None, 100).unwrap();
        assert_eq!(cache.store_model(&file, None, 100).unwrap(), first);
        fs::write(&file, "second").unwrap();
        let second = cache.store_model(&file, None, 100).unwrap();
        assert_ne!(first.digest, second.digest);
        assert_eq!(fs::read_to_string(&first.path).unwrap(), "first");
        assert_eq!(fs::read_to_string(&second.path).unwrap(), "second");
    }

    #[test]
    fn a_model_and_its_weights_are_not_the_same_bytes_cut_elsewhere() {
        let root = tempfile::tempdir().unwrap();
        let cache = Cache::open(&root.path().join("cache")).unwrap();
        let (model, weights) = (root.path().join("m.xml"), root.path().join("m.bin"));
        fs::write(&model, "model").unwrap();
        fs::write(&weights, "weights").unwrap();
        let stored = cache.store_model(&model, Some(&weights), 100).unwrap();
        assert_eq!(cache.store_bytes(&["model", "weights"], 100).unwrap(), stored);
        assert_ne!(cache.store_bytes(&["mode", "lweights"], 100).unwrap().digest, stored.digest);
        assert_eq!(fs::read_to_string(&stored.path).unwrap(), "model");
    }

    #[test]
    fn a_model_is_kept_once_whichever_way_it_came() {
        let root = tempfile::tempdir().unwrap();
        let cache = Cache::open(&root.path().join("cache")).unwrap();
        let inode = |path: &Path| fs::metadata(path).unwrap().ino();
        let blobs = cache.blobs();
        let [model, weights] =
            ["model", "weights"].map(|text| blobs.path(&blobs.put(text.as_bytes()).unwrap()));
        // As of a pulled artifact: the paths are those of blobs.
        let stored = cache.store_model(&model, Some(&weights), 100).unwrap();
        assert_eq!(
            [&stored.path, stored.weights.as_ref().unwrap()].map(|path| inode(path)),
            [&model, &weights].map(|path| inode(path))
        );
        let alone = cache.store_model(&model, None, 100).unwrap();
        assert_eq!((inode(&alone.path), alone.digest), (inode(&model), Digest::of(b"model").hex()));
        assert_eq!(fs::read_dir(cache.models()).unwrap().count(), 3);
        assert_eq!(fs::read_dir(cache.root.join("blobs/sha256")).unwrap().count(), 2);
        // A copy that an earlier version made is replaced, and so is what became of a name by accident.
        for other in ["model", "other"] {
            fs::remove_file(&alone.path).unwrap();
            fs::write(&alone.path, other).unwrap();
            let stored = cache.store_bytes(&["model"], 100).unwrap();
            assert_eq!(inode(&stored.path), inode(&model));
        }
        assert_eq!(fs::read_dir(cache.models()).unwrap().count(), 3);
    }

    #[test]
    fn what_cannot_be_kept_says_why() {
        let root = tempfile::tempdir().unwrap();
        let cache = Cache::open(root.path()).unwrap();
        let file = root.path().join("model.onnx");
        let check = |limit, expected: &str| {
            let error = cache.store_model(&file, None, limit).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        check(100, "cannot read");
        fs::write(&file, vec![0; 200]).unwrap();
        check(100, "larger than");
        fs::remove_file(&file).unwrap();
        fs::create_dir(&file).unwrap();
        check(100, "not a file");
    }

    #[test]
    fn mounted_files_go_with_their_folder() {
        let root = tempfile::tempdir().unwrap();
        let cache = Cache::open(&root.path().join("cache")).unwrap();
        let file = root.path().join("labels.txt");
        fs::write(&file, "seven").unwrap();
        let mounted = cache.mount(&[(file, "/data/labels.txt".to_owned())]).unwrap();
        let path = mounted.path().join("data/labels.txt");
        assert_eq!(fs::read_to_string(&path).unwrap(), "seven");
        drop(mounted);
        assert!(!path.exists());
    }

    #[test]
    fn what_others_may_write_is_not_trusted() {
        use std::os::unix::fs::PermissionsExt;
        let root = tempfile::tempdir().unwrap();
        let cache = root.path().join("cache");
        trusted(&cache).unwrap();
        drop(Cache::open(&cache).unwrap());
        let set = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        for (folder, mode) in [(".", 0o770), ("libraries", 0o775), ("derived", 0o702), ("models", 0o777)] {
            let folder: PathBuf = cache.join(folder).components().collect();
            set(&folder, mode);
            let error = Cache::open(&cache).unwrap_err().to_string();
            assert!(error.contains("others may write to") && error.contains("`chmod go-w "), "{error}");
            assert!(error.contains(&folder.display().to_string()), "{error}");
            set(&folder, 0o755);
        }
        drop(Cache::open(&cache).unwrap());
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(cache.join("compiled"), Some(12345), None).unwrap();
            let error = Cache::open(&cache).unwrap_err().to_string();
            assert!(error.contains("belongs to user 12345") && error.contains("`chown -R 0 "), "{error}");
        }
    }

    #[test]
    fn mounts_of_hosts_that_live_stay() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("labels.txt");
        fs::write(&file, "seven").unwrap();
        let files = [(file, "labels.txt".to_owned())];
        // What killed hosts left: one had a lock, the other none.
        let mounts = root.path().join("cache/mounts");
        let left = [mounts.join("host-gone"), mounts.join("1-gone")];
        for folder in &left {
            fs::create_dir_all(folder.join("mount-1")).unwrap();
            fs::write(folder.join("mount-1/labels.txt"), "six").unwrap();
        }
        fs::write(left[0].join(LOCK), "").unwrap();
        for folder in [mounts.parent().unwrap(), &mounts] {
            let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
            fs::set_permissions(folder, private).unwrap();
        }
        let one = Cache::open(&root.path().join("cache")).unwrap();
        assert!(!left[0].exists() && !left[1].exists());
        let mounted = one.mount(&files).unwrap();
        let other = Cache::open(&root.path().join("cache")).unwrap();
        assert_eq!(fs::read_to_string(mounted.path().join("labels.txt")).unwrap(), "seven");
        // A revision may outlive its host by a moment.
        drop(one);
        assert!(mounted.path().join("labels.txt").exists());
        drop(mounted);
        drop(other);
        drop(Cache::open(&root.path().join("cache")).unwrap());
        let left: Vec<_> = fs::read_dir(&mounts).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, [LOCK]);
    }
}
