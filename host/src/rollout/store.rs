//! What outlives the host: which apps it serves, in which revisions, their rollouts, and what became of them.

mod file;
mod record;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use redb::{ReadableTable, ReadableTableMetadata, TableDefinition, TableError, WriteTransaction};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use file::{Failure, File};

pub use record::{AppRecord, Event, HistoryEntry, RevisionRecord};

/// The entries of the history that are kept of one app, and of all apps together.
pub const HISTORY_OF_AN_APP: u64 = 10_000;
pub const HISTORY: u64 = 100_000;

/// The most apps, the longest name of one, and the largest record, in bytes.
const APPS: u64 = 10_000;
const NAME_BYTES: usize = 512;
const RECORD_BYTES: usize = 64 << 20;

/// The most entries of the history that are read at once, or go at once where there are too many.
const AT_ONCE: usize = 1000;

/// How long another process, such as the one that this one takes the place of, may still have the state open.
const PATIENCE: Duration = Duration::from_secs(5);

/// The format of the records. Whoever changes it reads the earlier ones too.
const FORMAT: u64 = 1;

/// Numbers of the store's own: its format, and the id of the history's next entry.
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("tenon");
const FORMAT_KEY: &str = "format";
const NEXT_ENTRY: &str = "next_entry";

/// Records of apps by name, as JSON.
const RECORDS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("apps");

/// The history by id, as JSON; which entries are of which app; and how many each app has.
const ENTRIES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("history");
const OF_APP: TableDefinition<'_, (&str, u64), ()> = TableDefinition::new("history_of_app");
const COUNTS: TableDefinition<'_, &str, u64> = TableDefinition::new("history_counts");

/// Why the state cannot be read or kept. Each text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("the state in {} is in use by {holder}; stop that, or give this host a folder of its own", path.display())]
    InUse { path: PathBuf, holder: String },
    #[error("the host's state, {}, is damaged: {reason}; restore it from a copy, or move it away to start without apps", path.display())]
    Damaged { path: PathBuf, reason: String },
    #[error("{} is not a host's state: {reason}; move it away, or name another folder", path.display())]
    Foreign { path: PathBuf, reason: String },
    #[error("the host's state, {}, is of a later Tenon (format {found}; this one knows {known}); use that, or another folder", path.display())]
    Later { path: PathBuf, found: u64, known: u64 },
    #[error("the host's state, {}, cannot be used: {reason}", path.display())]
    Unavailable { path: PathBuf, reason: String },
    #[error("{0}")]
    TooLarge(String),
}

/// The state of one host, which is its own as long as this lives.
///
/// Every call waits for the disk: it is to be made where that holds up nobody.
pub struct Store {
    file: File,
    /// Whether its disk is full, as far as it knows.
    #[cfg(test)]
    pub(crate) full: std::sync::atomic::AtomicBool,
}

impl Store {
    /// Opens the state in `dir`, which are both made where they are not there.
    ///
    /// Waits some seconds for another process that has it open.
    pub fn open(dir: &Path) -> Result<Store, StoreError> {
        let file = File::open(dir, PATIENCE)?;
        Ok(Store {
            file,
            #[cfg(test)]
            full: Default::default(),
        })
    }

    /// All apps.
    pub fn apps(&self) -> Result<BTreeMap<String, AppRecord>, StoreError> {
        self.file.read(|transaction| {
            let Some(records) = existing(transaction.open_table(RECORDS))? else {
                return Ok(BTreeMap::new());
            };
            let mut apps = BTreeMap::new();
            for entry in records.iter()? {
                let (app, record) = entry?;
                let app = app.value().to_owned();
                let record = read_json(record.value(), || format!("the record of the app `{app}`"))?;
                apps.insert(app, record);
            }
            Ok(apps)
        })
    }

    /// Keeps an app's record and adds to its history, both or neither. On the disk once it returns.
    pub fn put(&self, app: &str, record: &AppRecord, events: &[Event]) -> Result<(), StoreError> {
        let json = serde_json::to_vec(record).map_err(|error| StoreError::TooLarge(error.to_string()))?;
        if app.len() > NAME_BYTES {
            let text = format!("an app's name may have {NAME_BYTES} bytes; give this one a shorter name");
            return Err(StoreError::TooLarge(text));
        }
        if json.len() > RECORD_BYTES {
            let (mib, most) = (json.len() >> 20, RECORD_BYTES >> 20);
            let text = format!(
                "what is to be kept of the app `{app}` has {mib} MiB, and at most {most} MiB are kept; give it fewer \
                 functions, or smaller variables"
            );
            return Err(StoreError::TooLarge(text));
        }
        let kept = self.file.write(|transaction| {
            #[cfg(test)]
            if self.full.load(std::sync::atomic::Ordering::Relaxed) {
                return Err(redb::Error::Io(std::io::ErrorKind::StorageFull.into()).into());
            }
            let mut records = transaction.open_table(RECORDS)?;
            if records.len()? >= APPS && records.get(app)?.is_none() {
                return Ok(false);
            }
            records.insert(app, json.as_slice())?;
            add(transaction, app, events)?;
            Ok(true)
        })?;
        match kept {
            true => Ok(()),
            false => Err(StoreError::TooLarge(format!(
                "a host keeps {APPS} apps, those that were removed among them, and this one has as many; deploy this one \
                 to another host"
            ))),
        }
    }

    /// Forgets an app; its history stays.
    pub fn remove(&self, app: &str, events: &[Event]) -> Result<(), StoreError> {
        self.file.write(|transaction| {
            transaction.open_table(RECORDS)?.remove(app)?;
            add(transaction, app, events)
        })
    }

    /// At most `limit` entries of an app's history, the newest first, all of them before the entry `before`.
    pub fn history(
        &self,
        app: &str,
        before: Option<u64>,
        limit: usize,
    ) -> Result<Vec<HistoryEntry>, StoreError> {
        self.file.read(|transaction| {
            let of_app = existing(transaction.open_table(OF_APP))?;
            let entries = existing(transaction.open_table(ENTRIES))?;
            let (Some(of_app), Some(entries)) = (of_app, entries) else { return Ok(Vec::new()) };
            let ids = of_app.range((app, 0)..(app, before.unwrap_or(u64::MAX)))?.rev();
            let mut found = Vec::new();
            for id in ids.take(limit.min(AT_ONCE)) {
                let id = id?.0.value().1;
                if let Some(json) = entries.get(id)? {
                    found.push(read_json(json.value(), || format!("the entry {id} of the history"))?);
                }
            }
            Ok(found)
        })
    }

    /// Where the state is.
    pub fn path(&self) -> &Path {
        self.file.path()
    }
}

/// Adds to the history of an app, and lets go of what is beyond its bounds.
fn add(transaction: &WriteTransaction, app: &str, events: &[Event]) -> Result<(), Failure> {
    let mut meta = transaction.open_table(META)?;
    let mut entries = transaction.open_table(ENTRIES)?;
    let mut of_app = transaction.open_table(OF_APP)?;
    let mut counts = transaction.open_table(COUNTS)?;
    let first = meta.get(NEXT_ENTRY)?.map_or(1, |next| next.value());
    let mut next = first;
    for event in events {
        let json = serde_json::to_vec(&HistoryEntry::new(next, app, event));
        let json = json.map_err(|error| redb::Error::Io(std::io::Error::other(error)))?;
        entries.insert(next, json.as_slice())?;
        of_app.insert((app, next), ())?;
        next += 1;
    }
    meta.insert(NEXT_ENTRY, next)?;
    let count = counts.get(app)?.map_or(0, |count| count.value()) + (next - first);
    let mut gone = 0;
    while count - gone > HISTORY_OF_AN_APP && gone < AT_ONCE as u64 {
        let Some(id) =
            of_app.range((app, 0)..(app, u64::MAX))?.next().transpose()?.map(|(key, _)| key.value().1)
        else {
            break;
        };
        of_app.remove((app, id))?;
        entries.remove(id)?;
        gone += 1;
    }
    if count > gone {
        counts.insert(app, count - gone)?;
    }
    let mut dropped = 0;
    while entries.len()? > HISTORY && dropped < AT_ONCE {
        let Some((id, json)) = entries.pop_first()?.map(|(id, json)| (id.value(), json.value().to_vec()))
        else {
            break;
        };
        let owner: Owner = read_json(&json, || format!("the entry {id} of the history"))?;
        of_app.remove((owner.app.as_str(), id))?;
        let left = counts.get(owner.app.as_str())?.map_or(0, |count| count.value()).saturating_sub(1);
        match left {
            0 => drop(counts.remove(owner.app.as_str())?),
            left => drop(counts.insert(owner.app.as_str(), left)?),
        }
        dropped += 1;
    }
    Ok(())
}

/// Whose an entry of the history is.
#[derive(Deserialize)]
struct Owner {
    app: String,
}

/// A table, where anything was ever written to it.
fn existing<T>(opened: Result<T, TableError>) -> Result<Option<T>, Failure> {
    match opened {
        Ok(table) => Ok(Some(table)),
        Err(TableError::TableDoesNotExist(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn read_json<T: DeserializeOwned>(json: &[u8], what: impl FnOnce() -> String) -> Result<T, Failure> {
    serde_json::from_slice(json)
        .map_err(|error| Failure::Record(format!("{} is not what was kept: {error}", what())))
}

#[cfg(test)]
mod tests;
