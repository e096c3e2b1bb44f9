//! The host's own folder: models by digest, and what is derived, compiled and mounted.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::backend::vet::hex;

/// The folder. Only the host's user may write to it, so what lies in it may be trusted and mapped.
#[derive(Clone, Debug)]
pub struct Cache {
    root: PathBuf,
}

/// A model file in the cache, under its digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredModel {
    pub path: PathBuf,
    pub weights: Option<PathBuf>,
    /// SHA-256 in lower-case hex: of the file, or of model and weights one after the other.
    pub digest: String,
    /// Bytes of model and weights together.
    pub size: u64,
}

/// Why a file did not get into the cache.
#[derive(Debug, Error)]
pub enum CacheError {
    #[error("cannot read `{path}`: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("`{path}` is larger than the {limit_mib} MiB that a model may have (`models.max_model_mib`)")]
    TooLarge { path: PathBuf, limit_mib: u64 },
    #[error("cannot write to the cache `{path}`: {source}; free some space or set `cache.dir` in host.toml")]
    Write { path: PathBuf, source: io::Error },
}

impl Cache {
    /// Makes the folder if it is not there, for this user alone.
    ///
    /// # Errors
    /// Where it cannot be made, or others may write to it.
    pub fn open(root: &Path) -> Result<Cache, CacheError> {
        let write = |source| CacheError::Write { path: root.to_owned(), source };
        make_private(root).map_err(write)?;
        let root = root.canonicalize().map_err(write)?;
        let mode = fs::metadata(&root).map_err(write)?.mode();
        if mode & 0o022 != 0 {
            let reason = "others may write to it, so nothing in it can be trusted (`chmod go-w` mends that)";
            return Err(write(io::Error::other(reason)));
        }
        let cache = Cache { root };
        for folder in [cache.models(), cache.compiled(), cache.derived(), cache.verdicts(), cache.mounts()] {
            make_private(&folder).map_err(|source| CacheError::Write { path: folder.clone(), source })?;
        }
        cache.remove_stale_mounts();
        Ok(cache)
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

    fn mounts(&self) -> PathBuf {
        self.root.join("mounts")
    }

    /// Copies a model into the cache, sharing its blocks where the file system can. Whatever becomes of the
    /// author's file later, what is served does not change. A file that was copied before and has not changed
    /// since, by its size, time and inode, is not read again.
    ///
    /// # Errors
    /// Where the model cannot be read, is too large, or cannot be kept.
    pub fn store_model(
        &self,
        model: &Path,
        weights: Option<&Path>,
        limit_bytes: u64,
    ) -> Result<StoredModel, CacheError> {
        let files: Vec<&Path> = std::iter::once(model).chain(weights).collect();
        let seen = files.iter().map(|path| Seen::of(path)).collect::<Result<Vec<_>, _>>()?;
        let size = seen.iter().map(|seen| seen.size).sum();
        if size > limit_bytes {
            return Err(CacheError::TooLarge { path: model.to_owned(), limit_mib: limit_bytes >> 20 });
        }
        let remembered = self.models().join(format!("{}.seen", fingerprint(&seen)));
        if let Some(stored) = self.remembered(&remembered, weights.is_some(), size) {
            return Ok(stored);
        }
        let write = |source| CacheError::Write { path: self.models(), source };
        let mut hash = Sha256::new();
        let mut copies = Vec::new();
        for path in &files {
            copies.push(copy(path, &self.models(), limit_bytes, &mut hash)?);
        }
        if let [model, _] = copies.as_slice() {
            hash.update(model.as_file().metadata().map_err(write)?.len().to_le_bytes());
        }
        let digest = hex(&hash.finalize());
        let stored = self.stored(&digest, weights.is_some(), size);
        for (copy, path) in copies.into_iter().zip(std::iter::once(&stored.path).chain(&stored.weights)) {
            copy.persist(path).map_err(|error| write(error.error))?;
        }
        // Only a shortcut: without it the file is read again next time.
        let _ = fs::write(&remembered, &digest);
        Ok(stored)
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
        let mut hash = Sha256::new();
        parts.iter().for_each(|part| hash.update(part));
        if let [model, _] = parts {
            // Where the one ends and the other begins: the same bytes cut elsewhere are another model.
            hash.update((model.as_ref().len() as u64).to_le_bytes());
        }
        let stored = self.stored(&hex(&hash.finalize()), parts.len() > 1, size);
        let write = |source| CacheError::Write { path: self.models(), source };
        for (part, path) in parts.iter().zip(std::iter::once(&stored.path).chain(&stored.weights)) {
            let mut file = tempfile::NamedTempFile::new_in(self.models()).map_err(write)?;
            file.write_all(part.as_ref()).map_err(write)?;
            file.persist(path).map_err(|error| write(error.error))?;
        }
        Ok(stored)
    }

    fn stored(&self, digest: &str, weights: bool, size: u64) -> StoredModel {
        let file = |ending: &str| self.models().join(format!("{digest}.{ending}"));
        let path = file(if weights { "xml" } else { "onnx" });
        StoredModel { path, weights: weights.then(|| file("bin")), digest: digest.to_owned(), size }
    }

    fn remembered(&self, path: &Path, weights: bool, size: u64) -> Option<StoredModel> {
        let digest = fs::read_to_string(path).ok()?;
        let valid = digest.len() == 64 && digest.bytes().all(|byte| byte.is_ascii_hexdigit());
        let stored = valid.then(|| self.stored(&digest, weights, size))?;
        let there = fs::metadata(&stored.path).ok()?.len()
            + match &stored.weights {
                Some(weights) => fs::metadata(weights).ok()?.len(),
                None => 0,
            };
        (there == size).then_some(stored)
    }

    /// A folder that shows `files`, as pairs of file and path within it, by hard links where they can be made. It
    /// goes when the answer is dropped.
    ///
    /// # Errors
    /// Where a file can neither be linked nor copied.
    pub fn mount(&self, files: &[(PathBuf, String)]) -> Result<tempfile::TempDir, CacheError> {
        let write = |source| CacheError::Write { path: self.mounts(), source };
        let prefix = format!("{}-", std::process::id());
        let folder = tempfile::Builder::new().prefix(&prefix).tempdir_in(self.mounts()).map_err(write)?;
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

    /// Removes the folders of hosts that were killed.
    fn remove_stale_mounts(&self) {
        for entry in fs::read_dir(self.mounts()).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let pid = name.to_str().and_then(|name| name.split_once('-')).map(|(pid, _)| pid.to_owned());
            if let Some(pid) = pid
                && !Path::new("/proc").join(pid).exists()
            {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }
}

/// What tells that a file is the one that was read before.
#[derive(Serialize, Deserialize)]
struct Seen {
    path: PathBuf,
    size: u64,
    modified_s: i64,
    modified_ns: i64,
    device: u64,
    inode: u64,
}

impl Seen {
    fn of(path: &Path) -> Result<Seen, CacheError> {
        let read = |source| CacheError::Read { path: path.to_owned(), source };
        let path = path.canonicalize().map_err(read)?;
        let metadata = fs::metadata(&path).map_err(read)?;
        if !metadata.is_file() {
            return Err(read(io::Error::other("it is not a file")));
        }
        Ok(Seen {
            path,
            size: metadata.len(),
            modified_s: metadata.mtime(),
            modified_ns: metadata.mtime_nsec(),
            device: metadata.dev(),
            inode: metadata.ino(),
        })
    }
}

fn fingerprint(seen: &[Seen]) -> String {
    hex(&Sha256::digest(serde_json::to_vec(seen).expect("paths and numbers are JSON")))
}

/// Copies a file next to its final place, hashing it on the way.
fn copy(
    path: &Path,
    folder: &Path,
    limit_bytes: u64,
    hash: &mut Sha256,
) -> Result<tempfile::NamedTempFile, CacheError> {
    let read = |source| CacheError::Read { path: path.to_owned(), source };
    let write = |source| CacheError::Write { path: folder.to_owned(), source };
    let mut source = File::open(path).map_err(read)?;
    let mut target = tempfile::NamedTempFile::new_in(folder).map_err(write)?;
    let shared = rustix::fs::ioctl_ficlone(target.as_file(), &source).is_ok();
    if shared {
        // What was cloned is hashed, not what the author may be writing meanwhile.
        source = target.reopen().map_err(write)?;
    }
    let mut buffer = vec![0; 1 << 20];
    let mut size = 0;
    loop {
        let length = source.read(&mut buffer).map_err(read)?;
        if length == 0 {
            break;
        }
        size += length as u64;
        if size > limit_bytes {
            return Err(CacheError::TooLarge { path: path.to_owned(), limit_mib: limit_bytes >> 20 });
        }
        hash.update(&buffer[..length]);
        if !shared {
            target.write_all(&buffer[..length]).map_err(write)?;
        }
    }
    target.as_file().sync_all().map_err(write)?;
    Ok(target)
}

fn make_private(folder: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
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
}
