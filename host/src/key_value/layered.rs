//! What one call changes of a store, seen by that call alone: over the store, which stays as it is.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{ENTRY_BYTES, Place, Seen, StoreError, embedded, number, redis};

/// A store with changes over it.
#[derive(Clone, Debug)]
pub(super) struct Layer {
    under: Under,
    changes: Arc<Mutex<Changes>>,
    /// Held by whoever changes something: what a change depends on is read before it.
    turn: Arc<tokio::sync::Mutex<()>>,
}

/// What keeps the store itself.
#[derive(Clone, Debug)]
enum Under {
    Embedded(embedded::Table),
    Redis(redis::Keys),
}

/// What keys are to be: their values, or gone.
#[derive(Debug, Default)]
struct Changes {
    entries: BTreeMap<String, Option<Vec<u8>>>,
    bytes: u64,
}

/// What the changes of one call may take, in MiB and in bytes, however much the store itself may hold.
const MOST_MIB: u64 = 8;
const MOST: u64 = MOST_MIB << 20;

impl Under {
    async fn get_many(&self, keys: Vec<String>, room: usize) -> Result<Vec<Option<Vec<u8>>>, StoreError> {
        match self {
            Under::Embedded(table) => table.get_many(keys, room).await,
            Under::Redis(server) => server.get_many(&keys, room).await,
        }
    }

    async fn exists(&self, key: &str) -> Result<bool, StoreError> {
        match self {
            Under::Embedded(table) => table.exists(key).await,
            Under::Redis(server) => server.exists(key).await,
        }
    }

    async fn keys(&self, after: Option<&str>, count: usize) -> Result<Vec<String>, StoreError> {
        match self {
            Under::Embedded(table) => table.keys(after, count).await,
            Under::Redis(server) => server.keys(after, count).await,
        }
    }
}

impl Under {
    /// The number that counters are kept as: in a file as bytes, in a server as text.
    fn number(&self, value: Option<Vec<u8>>) -> Option<i64> {
        match (self, value) {
            (Under::Embedded(_), value) => number(value),
            (Under::Redis(_), None) => Some(0),
            (Under::Redis(_), Some(value)) => {
                let number: i64 = std::str::from_utf8(&value).ok()?.parse().ok()?;
                // The server takes no other way to write it.
                (number.to_string().as_bytes() == value).then_some(number)
            }
        }
    }

    fn written(&self, number: i64) -> Vec<u8> {
        match self {
            Under::Embedded(_) => number.to_le_bytes().to_vec(),
            Under::Redis(_) => number.to_string().into_bytes(),
        }
    }
}

impl Changes {
    fn put(&mut self, key: String, value: Option<Vec<u8>>) -> Result<(), StoreError> {
        let size =
            |key: &str, value: Option<&Vec<u8>>| (ENTRY_BYTES + key.len() + value.map_or(0, Vec::len)) as u64;
        let former = self.entries.get(&key).map_or(0, |former| size(&key, former.as_ref()));
        let bytes = self.bytes - former + size(&key, value.as_ref());
        if bytes > MOST {
            return Err(StoreError::Full(MOST_MIB));
        }
        self.bytes = bytes;
        self.entries.insert(key, value);
        Ok(())
    }
}

impl Layer {
    /// Nothing changed yet.
    pub(super) fn over(place: &Place) -> Layer {
        let under = match place {
            Place::Embedded(table) => Under::Embedded(table.clone()),
            Place::Redis(keys) => Under::Redis(keys.clone()),
            Place::Layered(layer) => layer.under.clone(),
        };
        Layer { under, changes: Arc::default(), turn: Arc::default() }
    }

    pub(super) async fn get_many(
        &self,
        keys: Vec<String>,
        room: usize,
    ) -> Result<Vec<Option<Vec<u8>>>, StoreError> {
        let (mut bytes, mut values, mut missing) = (0, Vec::with_capacity(keys.len()), Vec::new());
        {
            let changes = self.lock();
            for (index, key) in keys.into_iter().enumerate() {
                let changed = changes.entries.get(&key);
                if let Some(Some(value)) = changed {
                    bytes += value.len();
                    if bytes > room {
                        return Err(StoreError::AnswerTooLong(bytes));
                    }
                }
                values.push(changed.cloned().flatten());
                if changed.is_none() {
                    missing.push((index, key));
                }
            }
        }
        if !missing.is_empty() {
            let (places, keys): (Vec<_>, Vec<_>) = missing.into_iter().unzip();
            let found = self.under.get_many(keys, room - bytes).await?;
            for (place, value) in places.into_iter().zip(found) {
                values[place] = value;
            }
        }
        Ok(values)
    }

    pub(super) async fn exists(&self, key: &str) -> Result<bool, StoreError> {
        let changed = self.lock().entries.get(key).map(Option::is_some);
        match changed {
            Some(exists) => Ok(exists),
            None => self.under.exists(key).await,
        }
    }

    /// Puts all of them or none.
    pub(super) async fn put_many(&self, entries: Vec<(String, Option<Vec<u8>>)>) -> Result<(), StoreError> {
        let _turn = self.turn.lock().await;
        let mut changes = self.lock();
        let size = |(key, value): &(String, Option<Vec<u8>>)| {
            (ENTRY_BYTES + key.len() + value.as_ref().map_or(0, Vec::len)) as u64
        };
        // As if none of them were there already: the bound is not to be used up to the last byte.
        if changes.bytes + entries.iter().map(size).sum::<u64>() > MOST {
            return Err(StoreError::Full(MOST_MIB));
        }
        entries.into_iter().try_for_each(|(key, value)| changes.put(key, value))
    }

    pub(super) async fn keys(&self, after: Option<&str>, count: usize) -> Result<Vec<String>, StoreError> {
        let mut keys: Vec<String> = Vec::new();
        let mut from = after.map(str::to_owned);
        while keys.len() < count {
            let page = self.under.keys(from.as_deref(), count).await?;
            // Of a page that is not full, nothing comes after it.
            let until = if page.len() == count { page.last().cloned() } else { None };
            let changes = self.lock();
            let mut merged: Vec<String> =
                page.into_iter().filter(|key| !changes.entries.contains_key(key)).collect();
            let start = from.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
            let end = until.as_deref().map_or(Bound::Unbounded, Bound::Included);
            let own = changes.entries.range::<str, _>((start, end));
            merged.extend(own.filter(|(_, value)| value.is_some()).map(|(key, _)| key.clone()));
            drop(changes);
            merged.sort_unstable();
            keys.append(&mut merged);
            match until {
                Some(until) => from = Some(until),
                None => break,
            }
        }
        keys.truncate(count);
        Ok(keys)
    }

    pub(super) async fn increment(&self, key: String, delta: i64) -> Result<i64, StoreError> {
        // No number is longer; whatever is, is none.
        const ROOM: usize = 64 << 10;
        let _turn = self.turn.lock().await;
        let found = self.get_many(vec![key.clone()], ROOM).await;
        let found = match found {
            Err(StoreError::AnswerTooLong(_)) => return Err(StoreError::NotANumber),
            found => found?.into_iter().next().flatten(),
        };
        let sum = self.under.number(found).ok_or(StoreError::NotANumber)?;
        let sum = sum.checked_add(delta).ok_or(StoreError::Overflow)?;
        self.lock().put(key, Some(self.under.written(sum)))?;
        Ok(sum)
    }

    pub(super) async fn swap(&self, key: String, seen: Seen, value: Vec<u8>) -> Result<bool, StoreError> {
        // What is longer than what was seen is another value.
        let room = seen.as_ref().map_or(0, Vec::len);
        let _turn = self.turn.lock().await;
        let found = match self.get_many(vec![key.clone()], room).await {
            Err(StoreError::AnswerTooLong(_)) => return Ok(false),
            found => found?.into_iter().next().flatten(),
        };
        if found != seen {
            return Ok(false);
        }
        self.lock().put(key, Some(value))?;
        Ok(true)
    }

    fn lock(&self) -> MutexGuard<'_, Changes> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
