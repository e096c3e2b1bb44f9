//! The store's file: made whole or not at all, used by one process at a time, and opened anew after a failure.

use std::fs::{self, DirBuilder, OpenOptions, Permissions, TryLockError};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};
use std::time::{Duration, Instant};

use redb::backends::FileBackend;
use redb::{Database, DatabaseError, ReadTransaction, ReadableDatabase, StorageError, WriteTransaction};

use super::{FORMAT, FORMAT_KEY, META, StoreError};

/// The state itself, and the file that is locked while a process has it open.
const FILE_NAME: &str = "control.redb";
const LOCK_NAME: &str = "control.lock";

/// What the file may have in memory, in bytes.
const CACHE_BYTES: usize = 16 << 20;

/// How often the lock is tried.
const AGAIN: Duration = Duration::from_millis(20);

/// What a file of redb begins with.
const MAGIC: &[u8] = b"redb\x1a\x0a\xa9\x0d\x0a";

/// The file, open.
pub(super) struct File {
    path: PathBuf,
    /// Absent after a failure, until the next use opens it anew: after an error redb takes no more writes.
    database: RwLock<Option<Database>>,
    /// Given back when it is dropped, after the database.
    _lock: fs::File,
}

/// Why something could not be read or written.
pub(super) enum Failure {
    Redb(redb::Error),
    /// A record that is not what was written.
    Record(String),
}

impl<E: Into<redb::Error>> From<E> for Failure {
    fn from(error: E) -> Failure {
        Failure::Redb(error.into())
    }
}

impl File {
    /// Opens the file in `dir`, which are both made where they are not there, and waits at most `patience` for
    /// another process that has it open.
    pub(super) fn open(dir: &Path, patience: Duration) -> Result<File, StoreError> {
        let path = dir.join(FILE_NAME);
        let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
        made.map_err(|error| unavailable(dir, format!("the folder cannot be made: {error}; {ANOTHER}")))?;
        let lock = lock(dir, patience)?;
        match path.try_exists() {
            Ok(true) => {}
            Ok(false) => create(dir, &path)?,
            Err(error) => return Err(unavailable(&path, format!("{error}; {ANOTHER}"))),
        }
        let database = open(&path)?;
        Ok(File { path, database: RwLock::new(Some(database)), _lock: lock })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Reads what was committed last.
    pub(super) fn read<T>(
        &self,
        work: impl FnOnce(&ReadTransaction) -> Result<T, Failure>,
    ) -> Result<T, StoreError> {
        self.guarded(|database| work(&database.begin_read()?))
    }

    /// Writes everything or nothing. It is on the disk once this returns.
    pub(super) fn write<T>(
        &self,
        work: impl FnOnce(&WriteTransaction) -> Result<T, Failure>,
    ) -> Result<T, StoreError> {
        self.guarded(|database| {
            let mut transaction = database.begin_write()?;
            // What is then damaged was damaged by others: redb never goes back to an earlier state without a word.
            transaction.set_two_phase_commit(true);
            let done = work(&transaction)?;
            transaction.commit()?;
            Ok(done)
        })
    }

    /// Does `work`, in which a damaged file can make redb panic.
    fn guarded<T>(&self, work: impl FnOnce(&Database) -> Result<T, Failure>) -> Result<T, StoreError> {
        self.reopen()?;
        let held = self.database.read().unwrap_or_else(PoisonError::into_inner);
        let Some(database) = &*held else {
            return Err(unavailable(&self.path, "it has failed just now; try again".to_owned()));
        };
        let done = catch_unwind(AssertUnwindSafe(|| work(database)));
        drop(held);
        let error = match done {
            Ok(Ok(done)) => return Ok(done),
            Ok(Err(Failure::Record(reason))) => return Err(damaged(&self.path, reason)),
            Ok(Err(Failure::Redb(error))) => {
                let error = DatabaseError::Storage(match error {
                    redb::Error::Corrupted(reason) => StorageError::Corrupted(reason),
                    redb::Error::Io(error) => StorageError::Io(error),
                    error => StorageError::Io(io::Error::other(error)),
                });
                unopened(&self.path, error)
            }
            Err(_) => damaged(&self.path, UNREADABLE.to_owned()),
        };
        let failed = self.database.write().unwrap_or_else(PoisonError::into_inner).take();
        // Closing what is damaged can panic as well.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(failed)));
        Err(error)
    }

    /// Opens the database anew where it has failed.
    fn reopen(&self) -> Result<(), StoreError> {
        if self.database.read().unwrap_or_else(PoisonError::into_inner).is_some() {
            return Ok(());
        }
        let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
        if database.is_none() {
            *database = Some(open(&self.path)?);
        }
        Ok(())
    }
}

const ANOTHER: &str = "name a folder of the host's own with `--state`";
const UNREADABLE: &str = "its pages do not hold together";

fn unavailable(path: &Path, reason: String) -> StoreError {
    StoreError::Unavailable { path: path.to_owned(), reason }
}

fn damaged(path: &Path, reason: String) -> StoreError {
    StoreError::Damaged { path: path.to_owned(), reason }
}

/// Locks the folder for this process, which is named in the lock's file for the others.
fn lock(dir: &Path, patience: Duration) -> Result<fs::File, StoreError> {
    let path = dir.join(LOCK_NAME);
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
    let mut file = file.map_err(|error| unavailable(&path, format!("{error}; {ANOTHER}")))?;
    let started = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => break,
            Err(TryLockError::WouldBlock) if started.elapsed() < patience => std::thread::sleep(AGAIN),
            Err(TryLockError::WouldBlock) => {
                return Err(StoreError::InUse { path: dir.to_owned(), holder: holder(&mut file) });
            }
            Err(TryLockError::Error(error)) => {
                return Err(unavailable(&path, format!("it cannot be locked: {error}; {ANOTHER}")));
            }
        }
    }
    // Who holds it is for people to read: without it the lock holds all the same.
    let _ = file.set_len(0).and_then(|()| file.write_all(format!("{}\n", std::process::id()).as_bytes()));
    Ok(file)
}

fn holder(file: &mut fs::File) -> String {
    let mut text = String::new();
    let read = file.take(32).read_to_string(&mut text);
    match read.ok().and_then(|_| text.trim().parse::<u32>().ok()) {
        Some(id) => format!("the process {id}"),
        None => "another process".to_owned(),
    }
}

/// Makes an empty file, which has its name only once it is whole.
fn create(dir: &Path, path: &Path) -> Result<(), StoreError> {
    let new = dir.join(format!("{FILE_NAME}.new"));
    let made = (|| {
        match fs::remove_file(&new) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut options = OpenOptions::new();
        // Variables may be secrets.
        let file = options.read(true).write(true).create_new(true).mode(0o600).open(&new)?;
        let kept = file.try_clone()?;
        initialise(file).map_err(io::Error::other)?;
        kept.sync_all()?;
        fs::rename(&new, path)?;
        fs::File::open(dir)?.sync_all()?;
        // The folder may be new as well. Where its own folder cannot be opened, it was not made by us.
        if let Some(parent) = dir.parent().and_then(|parent| fs::File::open(parent).ok()) {
            parent.sync_all()?;
        }
        Ok(())
    })();
    made.map_err(|error| unavailable(path, format!("it cannot be made: {error}; {ANOTHER}")))
}

fn initialise(file: fs::File) -> Result<(), redb::Error> {
    let database = Database::builder().create_with_backend(FileBackend::new(file)?)?;
    let transaction = database.begin_write()?;
    transaction.open_table(META)?.insert(FORMAT_KEY, FORMAT)?;
    transaction.commit()?;
    database.close()?;
    Ok(())
}

/// Opens a file that is there, looks through all of it, and reads which format it is in.
fn open(path: &Path) -> Result<Database, StoreError> {
    let cannot = |error: io::Error| unavailable(path, format!("{error}; {ANOTHER}"));
    let mut options = OpenOptions::new();
    // Asked first: to open a pipe would wait for somebody at its other end.
    if !path.metadata().map_err(cannot)?.is_file() {
        return Err(StoreError::Foreign { path: path.to_owned(), reason: "it is no file".to_owned() });
    }
    let mut file = options.read(true).write(true).open(path).map_err(cannot)?;
    if file.metadata().map_err(cannot)?.permissions().mode() & 0o077 != 0 {
        file.set_permissions(Permissions::from_mode(0o600)).map_err(cannot)?;
    }
    let mut first = Vec::new();
    (&mut file).take(MAGIC.len() as u64).read_to_end(&mut first).map_err(cannot)?;
    if first.is_empty() {
        return Err(damaged(path, "it is empty".to_owned()));
    }
    if first != MAGIC {
        return Err(StoreError::Foreign { path: path.to_owned(), reason: "it is no database".to_owned() });
    }
    let opened = catch_unwind(AssertUnwindSafe(|| {
        let database = Database::builder()
            .set_cache_size(CACHE_BYTES)
            .set_check_integrity_on_open(true)
            .create_with_backend(FileBackend::new(file)?)?;
        let format = format(&database);
        Ok((database, format))
    }));
    let (database, format) = match opened {
        Ok(Ok((database, Ok(format)))) => (database, format),
        Ok(Ok((_, Err(redb::Error::Corrupted(reason))))) => return Err(damaged(path, reason)),
        Ok(Ok((_, Err(error)))) => return Err(unavailable(path, error.to_string())),
        Ok(Err(error)) => return Err(unopened(path, error)),
        Err(_) => return Err(damaged(path, UNREADABLE.to_owned())),
    };
    match format {
        Some(FORMAT) => Ok(database),
        Some(found) => Err(StoreError::Later { path: path.to_owned(), found, known: FORMAT }),
        None => {
            let reason = "it is a database of something else".to_owned();
            Err(StoreError::Foreign { path: path.to_owned(), reason })
        }
    }
}

/// The format that the records are in; `None` where it is not a host's state.
fn format(database: &Database) -> Result<Option<u64>, redb::Error> {
    match database.begin_read()?.open_table(META) {
        Ok(table) => Ok(table.get(FORMAT_KEY)?.map(|format| format.value())),
        Err(
            redb::TableError::TableDoesNotExist(_)
            | redb::TableError::TableTypeMismatch { .. }
            | redb::TableError::TableIsMultimap(_),
        ) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn unopened(path: &Path, error: DatabaseError) -> StoreError {
    match error {
        DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch => {
            StoreError::InUse { path: path.to_owned(), holder: "another program".to_owned() }
        }
        DatabaseError::UpgradeRequired(version) => {
            let reason = format!("it is a database of another version, {version}");
            StoreError::Foreign { path: path.to_owned(), reason }
        }
        DatabaseError::RepairAborted => damaged(path, UNREADABLE.to_owned()),
        DatabaseError::Storage(StorageError::Corrupted(reason)) => damaged(path, reason),
        DatabaseError::Storage(StorageError::Io(error)) if is_damage(&error) => {
            damaged(path, UNREADABLE.to_owned())
        }
        error => unavailable(path, format!("{error}; see that the disk has room and is sound")),
    }
}

/// Whether an error of reading tells that the file is not what was written.
fn is_damage(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::InvalidData | ErrorKind::UnexpectedEof)
}
