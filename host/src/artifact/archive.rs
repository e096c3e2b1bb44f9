//! Archives of files in images, which anybody may have made: tar, with gzip or without.
//!
//! An archive is gone through twice. The first time nothing is kept, and it is found out what is in it; the second
//! time what is wanted goes into the store of blobs. Nothing is ever written under a name from an archive.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use flate2::read::MultiGzDecoder;
use sha2::{Digest as _, Sha256};
use tar::{Archive, EntryType};
use thiserror::Error;

use super::blobs::{BlobError, Blobs, Receiving};
use super::oci::Digest;

/// The most files and folders of one archive.
const MAX_ENTRIES: usize = 100_000;
/// The longest path, in bytes.
const MAX_PATH_BYTES: u64 = 4096;
/// The longest extended header, in bytes.
const MAX_HEADER_BYTES: u64 = 64 << 10;
/// An archive may always unpack to this size, and beyond it to so many times its own.
const FREE_BYTES: u64 = 64 << 20;
const MAX_RATIO: u64 = 200;
const BUFFER_BYTES: usize = 64 << 10;

/// How an archive is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compression {
    None,
    Gzip,
}

/// A file in an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// Relative, with `/`, without `.` and `..`.
    pub(super) path: String,
    pub(super) digest: Digest,
    /// Bytes.
    pub(super) size: u64,
}

/// Why an archive is not taken.
#[derive(Debug, Error)]
pub enum ArchiveError {
    #[error("it cannot be read: {0}")]
    Read(#[from] io::Error),
    #[error("it has more than {MAX_ENTRIES} entries")]
    Entries,
    #[error("its entry `{path}` is {kind}, and only files and folders are taken")]
    Kind { path: String, kind: &'static str },
    #[error("its entry `{0}` leads out of it; an archive may only have relative paths without `..`")]
    Path(String),
    #[error("its entry `{path}` has {what}")]
    Header { path: String, what: &'static str },
    #[error(transparent)]
    Blob(#[from] BlobError),
}

/// Bytes of all files together.
pub(super) fn size(entries: &[Entry]) -> u64 {
    entries.iter().fold(0, |sum, entry| sum.saturating_add(entry.size))
}

/// Lists the files of the archive at `path`, which may unpack to at most `max_bytes`.
///
/// # Errors
/// Where it is no archive, too large, or has something other than files and folders with proper paths.
pub(super) fn list(
    path: &Path,
    compression: Compression,
    max_bytes: u64,
) -> Result<Vec<Entry>, ArchiveError> {
    let mut entries = Vec::new();
    let mut buffer = vec![0; BUFFER_BYTES];
    walk(path, compression, max_bytes, &mut |path, size, content| {
        let mut hash = Sha256::new();
        let mut left = size;
        while left > 0 {
            let length = read(content, &mut buffer, left)?;
            hash.update(&buffer[..length]);
            left -= length as u64;
        }
        entries.push(Entry { path: path.to_owned(), digest: Digest::from_hash(hash), size });
        Ok(())
    })?;
    Ok(entries)
}

/// Keeps files of the archive at `path`, whose `entries` are known: those that `is_wanted` says.
///
/// # Errors
/// As [`list`], and where a file cannot be kept.
pub(super) fn keep(
    path: &Path,
    compression: Compression,
    max_bytes: u64,
    entries: &[Entry],
    is_wanted: &dyn Fn(&Entry) -> bool,
    blobs: &Blobs,
) -> Result<(), ArchiveError> {
    // Each digest once, by the place of its entry.
    let mut places = BTreeMap::new();
    for (place, entry) in entries.iter().enumerate().filter(|(_, entry)| is_wanted(entry)) {
        if blobs.get(&entry.digest)?.is_none() {
            places.entry(entry.digest).or_insert(place);
        }
    }
    let wanted: BTreeMap<usize, Digest> = places.into_iter().map(|(digest, place)| (place, digest)).collect();
    if wanted.is_empty() {
        return Ok(());
    }
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut place = 0;
    walk(path, compression, max_bytes, &mut |_, size, content| {
        if let Some(digest) = wanted.get(&place) {
            receive(blobs, digest, size, content, &mut buffer)?;
        }
        place += 1;
        Ok(())
    })
}

fn receive(
    blobs: &Blobs,
    digest: &Digest,
    size: u64,
    content: &mut dyn Read,
    buffer: &mut [u8],
) -> Result<(), ArchiveError> {
    let Receiving::Part(mut incoming) = blobs.receive(digest, size)? else { return Ok(()) };
    // What an earlier attempt left is there already.
    let mut there = incoming.received();
    let mut left = size;
    while left > 0 {
        let length = read(content, buffer, left)?;
        left -= length as u64;
        let skipped = usize::try_from(there).unwrap_or(usize::MAX).min(length);
        there -= skipped as u64;
        incoming.write(&buffer[skipped..length])?;
    }
    incoming.finish()?;
    Ok(())
}

/// Reads some of the `left` bytes, which are more than none.
fn read(content: &mut dyn Read, buffer: &mut [u8], left: u64) -> io::Result<usize> {
    let most = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
    match content.read(&mut buffer[..most])? {
        0 => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it ends within a file")),
        length => Ok(length),
    }
}

type EachFile<'f> = dyn FnMut(&str, u64, &mut dyn Read) -> Result<(), ArchiveError> + 'f;

fn walk(
    path: &Path,
    compression: Compression,
    max_bytes: u64,
    each: &mut EachFile<'_>,
) -> Result<(), ArchiveError> {
    let file = File::open(path)?;
    let packed = file.metadata()?.len();
    let max_bytes = max_bytes.min(FREE_BYTES.max(packed.saturating_mul(MAX_RATIO)));
    let file = BufReader::with_capacity(BUFFER_BYTES, file);
    match compression {
        Compression::None => walk_tar(Bounded { inner: file, left: max_bytes, max_bytes }, max_bytes, each),
        Compression::Gzip => {
            let inner = MultiGzDecoder::new(file);
            walk_tar(Bounded { inner, left: max_bytes, max_bytes }, max_bytes, each)
        }
    }
}

fn walk_tar(reader: impl Read, max_bytes: u64, each: &mut EachFile<'_>) -> Result<(), ArchiveError> {
    let mut archive = Archive::new(reader);
    let mut long_path = None;
    // Raw, because the reader of archives would read a path of any length into memory.
    for (count, entry) in archive.entries()?.raw(true).enumerate() {
        let mut entry = entry?;
        if count >= MAX_ENTRIES {
            return Err(ArchiveError::Entries);
        }
        let kind = entry.header().entry_type();
        match kind {
            EntryType::GNULongName => {
                let mut path = header(&mut entry, MAX_PATH_BYTES)?;
                while path.pop_if(|last| *last == 0).is_some() {}
                long_path = Some(path);
                continue;
            }
            EntryType::XHeader => {
                let records = header(&mut entry, MAX_HEADER_BYTES)?;
                long_path = extended_path(&records)?.or(long_path);
                continue;
            }
            EntryType::XGlobalHeader => continue,
            _ => {}
        }
        let path = long_path.take().unwrap_or_else(|| entry.path_bytes().into_owned());
        let path = checked_path(&path, kind == EntryType::Directory)?;
        match kind {
            EntryType::Directory => {}
            EntryType::Regular | EntryType::Continuous => {
                let size = entry.header().entry_size()?;
                if size > max_bytes {
                    return Err(too_large(max_bytes).into());
                }
                each(&path, size, &mut entry)?;
            }
            kind => return Err(ArchiveError::Kind { path, kind: kind_name(kind) }),
        }
    }
    Ok(())
}

/// The content of a header that is an entry.
fn header(entry: &mut tar::Entry<'_, impl Read>, max_bytes: u64) -> Result<Vec<u8>, ArchiveError> {
    let size = entry.header().entry_size()?;
    if size > max_bytes {
        let path = shown(&entry.path_bytes());
        return Err(ArchiveError::Header { path, what: "a header that is too long" });
    }
    let mut bytes = Vec::new();
    entry.take(size).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The path in an extended header: records such as `17 path=a/b/c.txt`, each with its length before it.
fn extended_path(mut records: &[u8]) -> Result<Option<Vec<u8>>, ArchiveError> {
    let wrong = || ArchiveError::Header { path: "PaxHeaders".to_owned(), what: "a broken extended header" };
    let mut path = None;
    while !records.is_empty() {
        let space = records.iter().position(|byte| *byte == b' ').ok_or_else(wrong)?;
        let length = std::str::from_utf8(&records[..space]).ok().and_then(|text| text.parse::<usize>().ok());
        let length = length.filter(|length| *length > space && *length <= records.len()).ok_or_else(wrong)?;
        let record = &records[space + 1..length];
        records = &records[length..];
        let record = record.strip_suffix(b"\n").ok_or_else(wrong)?;
        let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(wrong)?;
        match &record[..equals] {
            b"path" => path = Some(record[equals + 1..].to_vec()),
            b"size" => {
                let what = "its size in an extended header, which is not supported";
                return Err(ArchiveError::Header { path: "PaxHeaders".to_owned(), what });
            }
            _ => {}
        }
    }
    Ok(path)
}

/// The path of an entry, where it stays within the archive.
fn checked_path(bytes: &[u8], is_folder: bool) -> Result<String, ArchiveError> {
    let wrong = || ArchiveError::Path(shown(bytes));
    let path = std::str::from_utf8(bytes).map_err(|_| wrong())?;
    let is_sound = !path.starts_with('/') && !path.contains('\0') && path.len() as u64 <= MAX_PATH_BYTES;
    let segments: Vec<_> = path.split('/').filter(|segment| !matches!(*segment, "" | ".")).collect();
    if !is_sound || segments.contains(&"..") || (segments.is_empty() && !is_folder) {
        return Err(wrong());
    }
    Ok(segments.join("/"))
}

fn shown(path: &[u8]) -> String {
    super::locked::shown(&String::from_utf8_lossy(path))
}

fn kind_name(kind: EntryType) -> &'static str {
    match kind {
        EntryType::Symlink | EntryType::Link | EntryType::GNULongLink => "a link",
        EntryType::Char | EntryType::Block => "a device",
        EntryType::Fifo => "a pipe",
        EntryType::GNUSparse => "a sparse file",
        _ => "of a kind that is not known",
    }
}

/// A reader that gives no more than it may.
struct Bounded<R> {
    inner: R,
    left: u64,
    max_bytes: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 && !buffer.is_empty() {
            return Err(too_large(self.max_bytes));
        }
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let length = self.inner.read(&mut buffer[..most])?;
        self.left -= length as u64;
        Ok(length)
    }
}

fn too_large(max_bytes: u64) -> io::Error {
    io::Error::other(format!(
        "it unpacks to more than {} MiB, which is all that may come of it: at most {MAX_RATIO} times its own size, and \
         what the host allows",
        max_bytes >> 20
    ))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    const MAX_BYTES: u64 = 1 << 20;

    fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    /// An archive of files with short and long paths and of all sizes, as the library writes it.
    fn archive() -> (Vec<u8>, Vec<(String, Vec<u8>)>) {
        let long = format!("{}/{}/z.txt", "x".repeat(90), "y".repeat(90));
        let files = [("a.txt", 0), ("b/c.bin", 1), ("b/d.bin", 511), ("e", 512), (long.as_str(), 70_000)];
        let files = files.map(|(path, size)| (path.to_owned(), vec![b'x'; size]));
        let mut archive = tar::Builder::new(Vec::new());
        for (path, bytes) in &files {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            archive.append_data(&mut header, format!("./{path}"), bytes.as_slice()).unwrap();
        }
        (archive.into_inner().unwrap(), files.to_vec())
    }

    #[test]
    fn files_are_listed_and_those_that_are_wanted_kept() {
        let (bytes, files) = archive();
        let file = file(&bytes);
        let entries = list(file.path(), Compression::None, MAX_BYTES).unwrap();
        let found: Vec<_> =
            entries.iter().map(|entry| (entry.path.clone(), entry.digest, entry.size)).collect();
        let expected: Vec<_> =
            files.iter().map(|(path, bytes)| (path.clone(), Digest::of(bytes), bytes.len() as u64)).collect();
        assert_eq!(found, expected);
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path(), 0).unwrap();
        let is_wanted = |entry: &Entry| entry.size > 511;
        // What an earlier attempt began is gone on with.
        let Receiving::Part(mut part) = blobs.receive(&expected[4].1, 70_000).unwrap() else {
            panic!("a part")
        };
        part.write(&[b'x'; 30_000]).unwrap();
        drop(part);
        for _ in 0..2 {
            keep(file.path(), Compression::None, MAX_BYTES, &entries, &is_wanted, &blobs).unwrap();
            let there = |(_, digest, size): &(_, Digest, u64)| {
                assert_eq!(blobs.get(digest).unwrap().is_some(), *size > 511);
            };
            expected.iter().for_each(there);
        }
    }

    #[test]
    fn no_mutation_of_an_archive_panics_or_leads_out_of_it() {
        let (bytes, _) = archive();
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = move |below: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            usize::try_from(state % below as u64).unwrap()
        };
        let mut taken = 0;
        for round in 0..3000 {
            let mut bytes = bytes.clone();
            for _ in 0..=random(2) {
                // Mostly in the first headers, where something can go wrong.
                let at = random(if round % 3 == 0 { bytes.len() } else { 6 * 512 });
                match random(3) {
                    0 => bytes[at] = u8::try_from(random(256)).unwrap(),
                    1 => bytes[at..at + 4].copy_from_slice(b"/../"),
                    _ => bytes.truncate(bytes.len().max(1024) - random(600)),
                }
            }
            if round % 2 == 0 {
                mend_checksums(&mut bytes);
            }
            let Ok(entries) = list(file(&bytes).path(), Compression::None, MAX_BYTES) else { continue };
            taken += 1;
            for entry in entries {
                let is_wrong = |segment: &str| matches!(segment, "" | "." | "..");
                assert!(!entry.path.split('/').any(is_wrong), "{}", entry.path);
            }
        }
        assert!(taken > 100, "{taken}");
    }

    /// Makes headers look as if they had been written like that.
    fn mend_checksums(bytes: &mut [u8]) {
        for header in bytes.chunks_exact_mut(512).filter(|header| &header[257..262] == b"ustar") {
            let sum: u32 = header
                .iter()
                .enumerate()
                .map(|(at, byte)| match at {
                    148..156 => 32,
                    _ => u32::from(*byte),
                })
                .sum();
            header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }

    #[test]
    fn what_unpacks_to_too_much_is_refused_before_it_is_read() {
        let mut header = tar::Header::new_gnu();
        header.set_path("bomb").unwrap();
        header.set_size(1 << 40);
        header.set_cksum();
        let bytes = [header.as_bytes().as_slice(), &[0; 1024]].concat();
        let error = list(file(&bytes).path(), Compression::None, 1 << 50).unwrap_err().to_string();
        assert!(error.contains("it unpacks to more than 64 MiB"), "{error}");
        let error = list(file(b"no gzip").path(), Compression::Gzip, MAX_BYTES).unwrap_err().to_string();
        assert!(error.contains("it cannot be read"), "{error}");
    }
}
