//! An artifact as an OCI image layout: a folder that other tools (`skopeo copy oci:FOLDER`, `oras`) read and write.
//!
//! What is written is the same for the same artifact, byte for byte. What is read is believed no more than a registry:
//! sizes and digests are checked, and no symbolic link is followed.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, openat};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::blobs::{BlobError, Blobs, Receiving};
use super::oci::{Descriptor, Digest, INDEX, ImageManifest, MANIFEST, MAX_MANIFEST_BYTES, ManifestError};
use super::registry::{Moved, Pulled, printable};

/// The annotation of an index's entry that names it, usually a tag.
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// The file that tells that a folder is a layout, and its one member.
const MARK: &str = "oci-layout";
const VERSION: &str = "1.0.0";
const INDEX_FILE: &str = "index.json";
const BLOBS: [&str; 2] = ["blobs", "sha256"];
/// The largest mark that is read, in bytes.
const MAX_MARK_BYTES: u64 = 4096;

/// Why a layout cannot be read or written.
#[derive(Debug, Error)]
pub enum LayoutError {
    #[error("cannot write `{}`: {source}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("cannot read `{}`: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("`{}` is neither empty nor an OCI layout; name another folder, or empty it", .0.display())]
    Occupied(PathBuf),
    #[error("`{}` holds {artifacts} artifacts, which would be lost; name another folder", path.display())]
    Several { path: PathBuf, artifacts: usize },
    #[error("`{}` is not an OCI layout: {reason}", path.display())]
    NotALayout { path: PathBuf, reason: String },
    #[error("`{}` has no artifact `{name}`; it has {known}", path.display())]
    NoSuch { path: PathBuf, name: String, known: String },
    #[error("`{}` holds several artifacts; name one of {known}", path.display())]
    Which { path: PathBuf, known: String },
    #[error("the manifest {digest} cannot be read: {error}")]
    Manifest { digest: Digest, error: ManifestError },
    #[error("{what} has {mib} MiB in its layers, more than the {limit_mib} that are allowed")]
    Large { what: String, mib: u64, limit_mib: u64 },
    #[error("{0} is not in the cache; package or pull the artifact again")]
    NotHere(Digest),
    #[error(transparent)]
    Blob(#[from] BlobError),
}

#[derive(Serialize, Deserialize)]
struct Mark {
    #[serde(rename = "imageLayoutVersion")]
    version: String,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Index {
    schema_version: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    media_type: Option<String>,
    #[serde(default)]
    manifests: Vec<Descriptor>,
}

/// Writes an artifact whose manifest and blobs are all in `from` as the one artifact of the layout `folder`, named
/// `name` there. A layout that held one artifact before holds this one afterwards. Reads and writes files, so it
/// belongs on a thread that may block.
///
/// # Errors
/// Where the folder holds anything else, a blob is not there, or it cannot be written.
pub fn write(digest: &Digest, name: Option<&str>, from: &Blobs, folder: &Path) -> Result<(), LayoutError> {
    let bytes = from.read(digest, MAX_MANIFEST_BYTES)?.ok_or(LayoutError::NotHere(*digest))?;
    let manifest =
        ImageManifest::parse(&bytes).map_err(|error| LayoutError::Manifest { digest: *digest, error })?;
    check_room(folder)?;
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| LayoutError::Write { path, source }
    };
    let store = BLOBS.iter().fold(folder.to_owned(), |path, part| path.join(part));
    fs::create_dir_all(&store).map_err(failed(&store))?;
    let blobs: BTreeSet<Digest> =
        manifest.blobs().into_iter().map(|blob| blob.digest).chain([*digest]).collect();
    for blob in &blobs {
        let source = from.get(blob)?.ok_or(LayoutError::NotHere(*blob))?;
        let target = store.join(blob.hex());
        place(&source, &target).map_err(failed(&target))?;
    }
    let media_type = manifest.media_type.as_deref().unwrap_or(MANIFEST);
    let mut entry = Descriptor::new(media_type, *digest, bytes.len() as u64);
    entry.artifact_type.clone_from(&manifest.artifact_type);
    entry.annotations.extend(name.map(|name| (REF_NAME.to_owned(), name.to_owned())));
    let index = Index { schema_version: 2, media_type: Some(INDEX.to_owned()), manifests: vec![entry] };
    replace(folder, MARK, &Mark { version: VERSION.to_owned() })?;
    replace(folder, INDEX_FILE, &index)?;
    // Last: until here, what the layout held before is whole.
    for entry in fs::read_dir(&store).map_err(failed(&store))? {
        let path = entry.map_err(failed(&store))?.path();
        let digest = path.file_name().and_then(|name| format!("sha256:{}", name.to_str()?).parse().ok());
        if digest.is_some_and(|digest| !blobs.contains(&digest)) {
            fs::remove_file(&path).map_err(failed(&path))?;
        }
    }
    Ok(())
}

/// Reads an artifact of the layout `folder` into `into`: the one that `name` names, by its digest or as the index has
/// it, or the only one. Reads and writes files, so it belongs on a thread that may block.
///
/// # Errors
/// Where it is not a layout, there is no such artifact or no telling which, or something is not what its descriptor
/// says.
pub fn read(folder: &Path, name: Option<&str>, limit_mib: u64, into: &Blobs) -> Result<Pulled, LayoutError> {
    let layout = Layout::open(folder)?;
    let entry = layout.entry(name)?;
    if entry.size > MAX_MANIFEST_BYTES {
        let error = ManifestError::Large(usize::try_from(entry.size).unwrap_or(usize::MAX));
        return Err(LayoutError::Manifest { digest: entry.digest, error });
    }
    let digest = entry.digest;
    let mut held = BTreeSet::from([digest]);
    // Held while it is read: what it names is not known before.
    let _manifest = into.hold(held.clone())?;
    layout.copy(&entry, into)?;
    let bytes = into.read(&digest, MAX_MANIFEST_BYTES)?.ok_or(LayoutError::NotHere(digest))?;
    let manifest = ImageManifest::parse(&bytes).map_err(|error| LayoutError::Manifest { digest, error })?;
    let size = manifest.blobs().iter().fold(0u64, |sum, blob| sum.saturating_add(blob.size));
    if size > limit_mib << 20 {
        let what = format!("the artifact {digest}");
        return Err(LayoutError::Large { what, mib: size.div_ceil(1 << 20), limit_mib });
    }
    held.extend(manifest.blobs().iter().map(|blob| blob.digest));
    let hold = into.hold(held)?;
    let mut moved = Moved::default();
    for blob in manifest.blobs() {
        moved += layout.copy(blob, into)?;
    }
    Ok(Pulled { digest, manifest, moved, hold })
}

/// Whether a folder looks like a layout, for those who are handed a path.
pub fn is_layout(folder: &Path) -> bool {
    folder.join(MARK).is_file()
}

/// A layout that is being read, through handles that no link leads out of.
struct Layout {
    folder: PathBuf,
    index: Index,
    /// The folder of blobs.
    blobs: OwnedFd,
}

impl Layout {
    fn open(folder: &Path) -> Result<Layout, LayoutError> {
        let failed = |name: &str| {
            let path = folder.join(name);
            move |source: rustix::io::Errno| LayoutError::Read { path, source: source.into() }
        };
        let directory = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        // The folder itself may be a link: the caller chose it.
        let root = rustix::fs::open(folder, directory, Mode::empty()).map_err(failed(""))?;
        let not_a_layout = |reason: String| LayoutError::NotALayout { path: folder.to_owned(), reason };
        let parse = |name: &str, error: serde_json::Error| {
            not_a_layout(format!("`{name}` cannot be read: {}", printable(&error.to_string(), 200)))
        };
        let small = |name: &str, limit| read_small(&root, name, limit, &folder.join(name));
        let mark = small(MARK, MAX_MARK_BYTES)?.ok_or_else(|| not_a_layout(format!("it has no `{MARK}`")))?;
        let mark: Mark = serde_json::from_slice(&mark).map_err(|error| parse(MARK, error))?;
        if !mark.version.starts_with("1.") {
            return Err(not_a_layout(format!("its version is `{}`", printable(&mark.version, 20))));
        }
        let index = small(INDEX_FILE, MAX_MANIFEST_BYTES)?;
        let index = index.ok_or_else(|| not_a_layout(format!("it has no `{INDEX_FILE}`")))?;
        let index: Index = serde_json::from_slice(&index).map_err(|error| parse(INDEX_FILE, error))?;
        let inner = directory | OFlags::NOFOLLOW;
        let outer = openat(&root, BLOBS[0], inner, Mode::empty()).map_err(failed(BLOBS[0]))?;
        let blobs = openat(&outer, BLOBS[1], inner, Mode::empty()).map_err(failed("blobs/sha256"))?;
        Ok(Layout { folder: folder.to_owned(), index, blobs })
    }

    fn entry(&self, name: Option<&str>) -> Result<Descriptor, LayoutError> {
        let path = self.folder.clone();
        let manifests = &self.index.manifests;
        let known = || {
            let shown = manifests.iter().take(8).map(|entry| match entry.annotations.get(REF_NAME) {
                Some(name) => format!("`{}`", printable(name, 100)),
                None => format!("`{}`", entry.digest),
            });
            let shown = shown.collect::<Vec<_>>().join(", ");
            if shown.is_empty() { "none".to_owned() } else { shown }
        };
        match (name, manifests.as_slice()) {
            (Some(name), _) => {
                let is_named = |entry: &&Descriptor| {
                    entry.annotations.get(REF_NAME).is_some_and(|known| known == name)
                        || entry.digest.to_string() == name
                };
                let found = manifests.iter().find(is_named).cloned();
                found.ok_or_else(|| LayoutError::NoSuch { path, name: name.to_owned(), known: known() })
            }
            (None, [only]) => Ok(only.clone()),
            (None, []) => {
                let reason = "its index names no artifact".to_owned();
                Err(LayoutError::NotALayout { path, reason })
            }
            (None, _) => Err(LayoutError::Which { path, known: known() }),
        }
    }

    /// Copies a blob into the store, unless it is there.
    fn copy(&self, blob: &Descriptor, into: &Blobs) -> Result<Moved, LayoutError> {
        let mut incoming = match into.receive(&blob.digest, blob.size)? {
            Receiving::Whole(_) => return Ok(Moved { present: blob.size, ..Moved::default() }),
            Receiving::Part(incoming) => incoming,
        };
        let path = self.folder.join("blobs/sha256").join(blob.digest.hex());
        let failed = |source| LayoutError::Read { path: path.clone(), source };
        let mut file = open_file(&self.blobs, &blob.digest.hex()).map_err(failed)?;
        let size = file.metadata().map_err(failed)?.len();
        if size != blob.size {
            let (digest, expected) = (blob.digest, blob.size);
            return Err(BlobError::Size { digest, expected, found: size }.into());
        }
        // A part that a registry sent before is hashed already, and what is skipped has the same digest or fails.
        io::Seek::seek(&mut file, io::SeekFrom::Start(incoming.received())).map_err(failed)?;
        let begun = incoming.received();
        let mut buffer = vec![0; 1 << 20];
        loop {
            match file.read(&mut buffer).map_err(failed)? {
                0 => break,
                length => incoming.write(&buffer[..length])?,
            }
        }
        incoming.finish()?;
        Ok(Moved { bytes: blob.size - begun, present: begun, layers: 1 })
    }
}

/// A file in an open folder: not a link, and not something that has no end.
fn open_file(folder: &OwnedFd, name: &str) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(openat(folder, name, flags, Mode::empty())?);
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::other("it is not a file")),
    }
}

/// The bytes of a small file, if it is there.
fn read_small(
    folder: &OwnedFd,
    name: &str,
    limit: u64,
    shown: &Path,
) -> Result<Option<Vec<u8>>, LayoutError> {
    let failed = |source| LayoutError::Read { path: shown.to_owned(), source };
    let file = match open_file(folder, name) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(failed(source)),
    };
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > limit {
        return Err(failed(io::Error::other(format!("it has more than {limit} bytes"))));
    }
    Ok(Some(bytes))
}

/// Fails where a folder holds what writing a layout would destroy or mix with.
fn check_room(folder: &Path) -> Result<(), LayoutError> {
    let mut entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(LayoutError::Read { path: folder.to_owned(), source }),
    };
    if entries.next().is_none() {
        return Ok(());
    }
    if !is_layout(folder) {
        return Err(LayoutError::Occupied(folder.to_owned()));
    }
    match Layout::open(folder) {
        Ok(layout) if layout.index.manifests.len() > 1 => {
            Err(LayoutError::Several { path: folder.to_owned(), artifacts: layout.index.manifests.len() })
        }
        Ok(_) => Ok(()),
        // One that was being written when its writer ended has no index yet.
        Err(LayoutError::NotALayout { .. }) if !folder.join(INDEX_FILE).exists() => Ok(()),
        Err(error) => Err(error),
    }
}

/// Puts a blob in its place: sharing its blocks where the file system can, else its file, else by copying.
fn place(source: &Path, target: &Path) -> io::Result<()> {
    if let Ok(there) = fs::symlink_metadata(target) {
        if there.is_file() && is_same(&there, &fs::metadata(source)?) {
            return Ok(());
        }
        // Whatever has the name may not be what the name says.
        fs::remove_file(target)?;
    }
    let folder = target.parent().unwrap_or(Path::new("."));
    let mut draft = tempfile::Builder::new().prefix(".draft-").tempfile_in(folder)?;
    let mut from = File::open(source)?;
    let is_shared = rustix::fs::ioctl_ficlone(draft.as_file(), &from).is_ok();
    if !is_shared {
        if fs::hard_link(source, target).is_ok() {
            return Ok(());
        }
        io::copy(&mut from, &mut draft)?;
    }
    set_mode(draft.as_file(), 0o444)?;
    draft.persist(target).map_err(|error| error.error)?;
    Ok(())
}

fn is_same(one: &fs::Metadata, other: &fs::Metadata) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    one.dev() == other.dev() && one.ino() == other.ino()
}

fn set_mode(file: &File, mode: u32) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    file.set_permissions(fs::Permissions::from_mode(mode))
}

/// Writes a file of the layout, which is the old one or the new one whenever somebody looks.
fn replace(folder: &Path, name: &str, content: &impl Serialize) -> Result<(), LayoutError> {
    let path = folder.join(name);
    let write = || {
        let mut draft = tempfile::Builder::new().prefix(".draft-").tempfile_in(folder)?;
        draft.write_all(&serde_json::to_vec(content).map_err(io::Error::other)?)?;
        set_mode(draft.as_file(), 0o644)?;
        draft.persist(&path).map_err(|error| error.error)?;
        Ok(())
    };
    write().map_err(|source| LayoutError::Write { path: path.clone(), source })
}

#[cfg(test)]
mod tests;
