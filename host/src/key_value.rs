//! Key-value stores: what functions keep from one call to the next, by app and store, in a file or in Redis.
//!
//! Every wait in here ends: those of a call with the call, which drops what it waits for, and the others in a bound
//! of their own.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use thiserror::Error;
use tokio::sync::OnceCell;

use crate::config::{self, KeyValuePlace};

mod embedded;
mod layered;
mod redis;
#[cfg(test)]
mod tests;

/// The longest key, in bytes.
pub const MAX_KEY_BYTES: usize = 255;

/// The most keys that one call may name.
pub const MAX_BATCH: usize = 4096;

/// What an entry counts beside its key and value, in bytes: empty ones are not for free.
const ENTRY_BYTES: usize = 64;

/// The key-value stores of a host. What holds their data is opened when the first of them is asked for.
pub struct KeyValue {
    settings: config::KeyValue,
    dir: PathBuf,
    file: OnceCell<Arc<embedded::File>>,
    servers: Mutex<BTreeMap<String, Arc<redis::Server>>>,
}

/// A store as one app has it.
#[derive(Clone, Debug)]
pub struct Store {
    place: Place,
    bounds: Bounds,
}

#[derive(Clone, Debug)]
enum Place {
    Embedded(embedded::Table),
    Redis(redis::Keys),
    /// Of one call alone.
    Layered(layered::Layer),
}

/// What a store may hold, in bytes.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    value: usize,
    total: u64,
}

/// Why a store cannot be had; for the operator.
#[derive(Debug, Error)]
pub enum OpenError {
    #[error(
        "the host has no key-value store `{0}`; add `[key_value.stores.{0}]` to host.toml, with `type = \"redis\"` \
         and a `url` where its keys are not to be kept on this machine"
    )]
    Unknown(String),
    #[error("the key-value file `{path}` cannot be used: {reason}")]
    File { path: PathBuf, reason: String },
}

/// Why an operation was not done; for the guest, and so without addresses and paths.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum StoreError {
    #[error("a key of {0} bytes is too long; keys have at most {MAX_KEY_BYTES}")]
    KeyTooLong(usize),
    #[error("a value of {bytes} bytes is too long; values have at most {limit} (`key_value.max_value_kib`)")]
    ValueTooLong { bytes: usize, limit: usize },
    #[error("{0} keys are too many for one call; name at most {MAX_BATCH}")]
    BatchTooLong(usize),
    #[error(
        "the store is full: it may hold {0} MiB (`key_value.max_mib`); delete keys, or ask the operator for more"
    )]
    Full(u64),
    #[error(
        "what was asked for has {0} bytes or more, for which the function has no memory left (`limits.memory_mib`)"
    )]
    AnswerTooLong(usize),
    #[error("the value is not a number that can be incremented")]
    NotANumber,
    #[error("the sum is beyond 64 bits")]
    Overflow,
    #[error("`{0}` is not a cursor that list-keys has given")]
    Cursor(String),
    #[error("the store cannot be reached, or cannot do this now; the operator's log says why")]
    Unavailable,
}

/// How often the log is told of a place that fails: guests choose how often they ask it.
const TELL_AGAIN: Duration = Duration::from_secs(1);

/// When the log was told last.
#[derive(Default)]
struct Told(Mutex<Option<Instant>>);

impl Told {
    /// Whether it is time to tell again.
    fn is_due(&self) -> bool {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let due = last.is_none_or(|last| last.elapsed() >= TELL_AGAIN);
        if due {
            *last = Some(Instant::now());
        }
        due
    }
}

/// What stood under a key when it was looked at, for a later comparison.
pub type Seen = Option<Vec<u8>>;

impl KeyValue {
    /// Stores with these settings; `dir` is where the embedded ones are where the settings name no folder.
    pub fn new(settings: config::KeyValue, dir: &Path) -> KeyValue {
        let dir = settings.dir.clone().unwrap_or_else(|| dir.to_owned());
        KeyValue { settings, dir, file: OnceCell::new(), servers: Mutex::default() }
    }

    /// The store `name` as the app `app` has it: its own, unless the operator has it shared.
    ///
    /// # Errors
    /// Where the host has no such store, or its file cannot be opened. A server that does not answer is none: it may
    /// by the time that it is asked.
    pub async fn store(&self, app: &str, name: &str) -> Result<Store, OpenError> {
        let settings = self.settings.stores.get(name).ok_or_else(|| OpenError::Unknown(name.to_owned()))?;
        // The name of a store has no `/`: whatever the app is called, no two of these are the same.
        let scope = if settings.shared { format!("shared:{name}") } else { format!("app:{app}/{name}") };
        let place = match &settings.place {
            KeyValuePlace::Embedded => Place::Embedded(embedded::Table::new(self.file().await?, &scope)),
            KeyValuePlace::Redis(url) => Place::Redis(redis::Keys::new(self.server(&url.0), &scope)),
        };
        let kib = |kib: u64| usize::try_from(kib << 10).unwrap_or(usize::MAX);
        let bounds = Bounds { value: kib(self.settings.max_value_kib), total: self.settings.max_mib << 20 };
        Ok(Store { place, bounds })
    }

    async fn file(&self) -> Result<Arc<embedded::File>, OpenError> {
        let open = async || embedded::File::open(&self.dir).await.map(Arc::new);
        self.file.get_or_try_init(open).await.map(Arc::clone)
    }

    fn server(&self, url: &str) -> Arc<redis::Server> {
        let mut servers = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
        let server = servers.entry(url.to_owned());
        Arc::clone(server.or_insert_with(|| Arc::new(redis::Server::new(url))))
    }
}

impl Store {
    /// The value of `key`, of at most `room` bytes.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn get(&self, key: &str, room: usize) -> Result<Option<Vec<u8>>, StoreError> {
        let found = self.get_many(vec![key.to_owned()], room).await?;
        Ok(found.into_iter().next().flatten())
    }

    /// The values of `keys`, in their order, of at most `room` bytes together.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn get_many(&self, keys: Vec<String>, room: usize) -> Result<Vec<Option<Vec<u8>>>, StoreError> {
        check_keys(keys.iter().map(String::as_str))?;
        match &self.place {
            Place::Embedded(table) => table.get_many(keys, room).await,
            Place::Redis(server) => server.get_many(&keys, room).await,
            Place::Layered(layer) => layer.get_many(keys, room).await,
        }
    }

    /// # Errors
    /// See [`StoreError`].
    pub async fn exists(&self, key: &str) -> Result<bool, StoreError> {
        check_keys([key])?;
        match &self.place {
            Place::Embedded(table) => table.exists(key).await,
            Place::Redis(server) => server.exists(key).await,
            Place::Layered(layer) => layer.exists(key).await,
        }
    }

    /// # Errors
    /// See [`StoreError`].
    pub async fn set(&self, key: String, value: Vec<u8>) -> Result<(), StoreError> {
        self.set_many(vec![(key, value)]).await
    }

    /// Sets all of them or none. Of a key that is there twice, the last value stays.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn set_many(&self, entries: Vec<(String, Vec<u8>)>) -> Result<(), StoreError> {
        check_keys(entries.iter().map(|(key, _)| key.as_str()))?;
        for (_, value) in &entries {
            self.check_value(value)?;
        }
        match &self.place {
            Place::Embedded(table) => table.set_many(entries, self.bounds.total).await,
            Place::Redis(server) => server.set_many(&entries, self.bounds.total).await,
            Place::Layered(layer) => {
                layer.put_many(entries.into_iter().map(|(key, value)| (key, Some(value))).collect()).await
            }
        }
    }

    /// Deletes all of them that are there.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn delete_many(&self, keys: Vec<String>) -> Result<(), StoreError> {
        check_keys(keys.iter().map(String::as_str))?;
        match &self.place {
            Place::Embedded(table) => table.delete_many(keys).await,
            Place::Redis(server) => server.delete_many(&keys).await,
            Place::Layered(layer) => layer.put_many(keys.into_iter().map(|key| (key, None)).collect()).await,
        }
    }

    /// Up to `count` keys in the order of their bytes, from the first after `after` on. Fewer are all that are left.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn keys(&self, after: Option<&str>, count: usize) -> Result<Vec<String>, StoreError> {
        match &self.place {
            Place::Embedded(table) => table.keys(after, count).await,
            Place::Redis(server) => server.keys(after, count).await,
            Place::Layered(layer) => layer.keys(after, count).await,
        }
    }

    /// Adds `delta` to the number under `key`, which is 0 where there is none, and answers the sum. Nobody else's
    /// change comes in between.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn increment(&self, key: String, delta: i64) -> Result<i64, StoreError> {
        check_keys([key.as_str()])?;
        match &self.place {
            Place::Embedded(table) => table.increment(key, delta, self.bounds.total).await,
            Place::Redis(server) => server.increment(&key, delta, self.bounds.total).await,
            Place::Layered(layer) => layer.increment(key, delta).await,
        }
    }

    /// Sets `key` if what stands there is what was `seen`, and answers whether it was. Nobody else's change comes in
    /// between.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn swap(&self, key: String, seen: Seen, value: Vec<u8>) -> Result<bool, StoreError> {
        check_keys([key.as_str()])?;
        self.check_value(&value)?;
        match &self.place {
            Place::Embedded(table) => table.swap(key, seen, value, self.bounds.total).await,
            Place::Redis(server) => server.swap(&key, seen.as_deref(), &value, self.bounds.total).await,
            Place::Layered(layer) => layer.swap(key, seen, value).await,
        }
    }

    /// The same store for one call alone: it reads what is there, and sees its own changes, of which nothing is kept.
    #[must_use]
    pub fn layered(&self) -> Store {
        Store { place: Place::Layered(layered::Layer::over(&self.place)), bounds: self.bounds }
    }

    /// The largest value, in bytes.
    pub fn max_value_bytes(&self) -> usize {
        self.bounds.value
    }

    fn check_value(&self, value: &[u8]) -> Result<(), StoreError> {
        let (bytes, limit) = (value.len(), self.bounds.value);
        if bytes > limit { Err(StoreError::ValueTooLong { bytes, limit }) } else { Ok(()) }
    }
}

fn check_keys<'a>(keys: impl IntoIterator<Item = &'a str>) -> Result<(), StoreError> {
    let mut count = 0;
    for key in keys {
        if key.len() > MAX_KEY_BYTES {
            return Err(StoreError::KeyTooLong(key.len()));
        }
        count += 1;
    }
    if count > MAX_BATCH { Err(StoreError::BatchTooLong(count)) } else { Ok(()) }
}

/// A counter as Spin's own store keeps it: eight bytes, the least significant first.
fn number(value: Option<Vec<u8>>) -> Option<i64> {
    match value {
        None => Some(0),
        Some(bytes) => Some(i64::from_le_bytes(bytes.try_into().ok()?)),
    }
}
