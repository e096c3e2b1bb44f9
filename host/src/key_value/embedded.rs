//! The embedded stores: one file of a host, with a table for each store of each app.
//!
//! Hosts on one machine may have the same file open: each sees what the others have committed, and they write in
//! turns. Reads are done on blocking threads, a bounded number at once. Writes go to one thread, see [`writer`].

use std::ops::Bound;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use redb::backends::FileBackend;
use redb::{
    ConcurrencyMode, Database, DatabaseError, ReadableDatabase, StorageError, TableDefinition, TableError,
};
use tokio::sync::Semaphore;

use super::{OpenError, Seen, StoreError, Told};
use writer::{Change, Changed, Writer};

mod writer;

/// The file in its folder.
const FILE_NAME: &str = "key-value.redb";

/// What the file may have in memory, in bytes.
const CACHE_BYTES: usize = 16 << 20;

/// Reads at once; each has a thread.
const READS: usize = 16;

/// The entries of one store.
type Entries<'a> = TableDefinition<'a, &'static str, &'static [u8]>;

/// The file, open.
pub(super) struct File {
    shared: Arc<Shared>,
    writer: Writer,
}

/// What reads and writes share.
struct Shared {
    path: PathBuf,
    /// Absent after a failure, until the next use opens it anew.
    database: Mutex<Option<Arc<Database>>>,
    reads: Arc<Semaphore>,
    told: Told,
}

/// One store of one app.
#[derive(Clone)]
pub(super) struct Table {
    file: Arc<File>,
    name: Arc<str>,
}

impl std::fmt::Debug for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Table").field("name", &self.name).finish_non_exhaustive()
    }
}

impl File {
    /// Opens the file in `dir`, which are both made where they are not there.
    pub(super) async fn open(dir: &Path) -> Result<File, OpenError> {
        let path = dir.join(FILE_NAME);
        let failed = {
            let path = path.clone();
            |reason| OpenError::File { path, reason }
        };
        let opening = path.clone();
        let opened = tokio::task::spawn_blocking(move || open(&opening)).await;
        let database = opened.map_err(|error| error.to_string()).and_then(|opened| opened);
        let database = match database {
            Ok(database) => Mutex::new(Some(database)),
            Err(reason) => return Err(failed(reason)),
        };
        let shared = Arc::new(Shared {
            path,
            database,
            reads: Arc::new(Semaphore::new(READS)),
            told: Told::default(),
        });
        let writer = Writer::start(Arc::clone(&shared))
            .map_err(|error| failed(format!("a thread cannot be started: {error}")))?;
        Ok(File { shared, writer })
    }
}

/// Opens the database. The error says what to do.
fn open(path: &Path) -> Result<Arc<Database>, String> {
    if let Some(dir) = path.parent() {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(|error| format!("its folder cannot be made: {error}"))?;
    }
    let mut options = std::fs::OpenOptions::new();
    // What functions keep is nobody else's business.
    let file = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
    let file =
        file.map_err(|error| format!("{error}; set `key_value.dir` in host.toml to a folder of the host's"))?;
    // A file that was damaged can make redb panic.
    let opened = catch_unwind(AssertUnwindSafe(|| {
        let backend = FileBackend::new(file)?;
        Database::builder()
            .set_cache_size(CACHE_BYTES)
            .set_concurrency_mode(ConcurrencyMode::MultiWriter)
            .create_with_backend(backend)
    }));
    match opened {
        Ok(Ok(database)) => Ok(Arc::new(database)),
        Ok(Err(error)) => Err(unopened(&error)),
        Err(_) => Err(DAMAGED.to_owned()),
    }
}

const DAMAGED: &str = "it is damaged, or no key-value file at all; restore it from a copy, or move it away to start \
                       with empty stores";

fn unopened(error: &DatabaseError) -> String {
    match error {
        DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch => {
            "another program has it open for itself; stop that, or give this host a folder of its own \
             (`key_value.dir` in host.toml)"
                .to_owned()
        }
        DatabaseError::UpgradeRequired(version) => {
            format!(
                "it was written by another version of Tenon (format {version}); move it away to start with empty stores"
            )
        }
        DatabaseError::Storage(StorageError::Corrupted(_)) | DatabaseError::RepairAborted => {
            DAMAGED.to_owned()
        }
        DatabaseError::Storage(StorageError::Io(error))
            if error.kind() == std::io::ErrorKind::InvalidData =>
        {
            DAMAGED.to_owned()
        }
        error => error.to_string(),
    }
}

impl Shared {
    /// The database, opened anew where it has failed.
    fn database(&self) -> Result<Arc<Database>, redb::Error> {
        let mut database = self.database.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(database) = &*database {
            return Ok(Arc::clone(database));
        }
        let opened = open(&self.path).map_err(|reason| redb::Error::Io(std::io::Error::other(reason)))?;
        Ok(Arc::clone(database.insert(opened)))
    }

    /// Tells the operator why something failed, and has the database opened anew: after an error it takes no more
    /// writes.
    fn failed(&self, error: &dyn std::fmt::Display) -> StoreError {
        if self.told.is_due() {
            tracing::warn!(path = %self.path.display(), %error, "the key-value file failed");
        }
        let database = self.database.lock().unwrap_or_else(PoisonError::into_inner).take();
        // Closing what is damaged can panic as well.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(database)));
        StoreError::Unavailable
    }

    /// Does `work`, in which a damaged file can make redb panic.
    fn guarded<T>(&self, work: impl FnOnce(&Database) -> Result<T, redb::Error>) -> Result<T, StoreError> {
        let done = catch_unwind(AssertUnwindSafe(|| work(&*self.database()?)));
        match done {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(error)) => Err(self.failed(&error)),
            Err(_) => Err(self.failed(&"it is damaged")),
        }
    }
}

/// The entries of a store that has been written to, as they are now.
type Snapshot = redb::ReadOnlyTable<&'static str, &'static [u8]>;

impl Table {
    pub(super) fn new(file: Arc<File>, name: &str) -> Table {
        Table { file, name: name.into() }
    }

    /// Reads on a blocking thread; `None` where nothing was ever written.
    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(Option<Snapshot>) -> Result<T, redb::Error> + Send + 'static,
    ) -> Result<T, StoreError> {
        let shared = Arc::clone(&self.file.shared);
        let permit = Arc::clone(&shared.reads).acquire_owned().await;
        let permit = permit.map_err(|_| StoreError::Unavailable)?;
        let name = Arc::clone(&self.name);
        let reading = tokio::task::spawn_blocking(move || {
            // Kept by the thread, also where nobody waits for it any more.
            let _permit = permit;
            shared.guarded(|database| {
                let transaction = database.begin_read()?;
                match transaction.open_table(Entries::new(&name)) {
                    Ok(table) => read(Some(table)),
                    Err(TableError::TableDoesNotExist(_)) => read(None),
                    Err(error) => Err(error.into()),
                }
            })
        });
        reading.await.map_err(|_| StoreError::Unavailable)?
    }

    pub(super) async fn get_many(
        &self,
        keys: Vec<String>,
        room: usize,
    ) -> Result<Vec<Option<Vec<u8>>>, StoreError> {
        let found = self.read(move |table| {
            let Some(table) = table else { return Ok(Ok(vec![None; keys.len()])) };
            let mut values = Vec::with_capacity(keys.len());
            let mut bytes = 0;
            for key in &keys {
                let Some(value) = table.get(key.as_str())? else {
                    values.push(None);
                    continue;
                };
                bytes += value.value().len();
                if bytes > room {
                    return Ok(Err(StoreError::AnswerTooLong(bytes)));
                }
                values.push(Some(value.value().to_vec()));
            }
            Ok(Ok(values))
        });
        found.await?
    }

    pub(super) async fn exists(&self, key: &str) -> Result<bool, StoreError> {
        let key = key.to_owned();
        self.read(move |table| match table {
            Some(table) => Ok(table.get(key.as_str())?.is_some()),
            None => Ok(false),
        })
        .await
    }

    pub(super) async fn keys(&self, after: Option<&str>, count: usize) -> Result<Vec<String>, StoreError> {
        let after = after.map(str::to_owned);
        self.read(move |table| {
            let Some(table) = table else { return Ok(Vec::new()) };
            let start = after.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
            let keys = table.range::<&str>((start, Bound::Unbounded))?.take(count);
            keys.map(|entry| Ok(entry?.0.value().to_owned())).collect()
        })
        .await
    }

    pub(super) async fn set_many(
        &self,
        entries: Vec<(String, Vec<u8>)>,
        limit: u64,
    ) -> Result<(), StoreError> {
        if entries.is_empty() {
            return Ok(());
        }
        self.write(Change::Set(entries), limit).await.map(|_| ())
    }

    pub(super) async fn delete_many(&self, keys: Vec<String>) -> Result<(), StoreError> {
        if keys.is_empty() {
            return Ok(());
        }
        self.write(Change::Delete(keys), u64::MAX).await.map(|_| ())
    }

    pub(super) async fn increment(&self, key: String, delta: i64, limit: u64) -> Result<i64, StoreError> {
        match self.write(Change::Increment(key, delta), limit).await? {
            Changed::Sum(sum) => Ok(sum),
            Changed::Done | Changed::Otherwise => Err(StoreError::Unavailable),
        }
    }

    pub(super) async fn swap(
        &self,
        key: String,
        seen: Seen,
        value: Vec<u8>,
        limit: u64,
    ) -> Result<bool, StoreError> {
        let changed = self.write(Change::Swap { key, seen, value }, limit).await?;
        Ok(matches!(changed, Changed::Done))
    }

    async fn write(&self, change: Change, limit: u64) -> Result<Changed, StoreError> {
        self.file.writer.write(Arc::clone(&self.name), change, limit).await
    }
}
