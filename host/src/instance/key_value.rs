//! Key-value stores for guests: which they may open, and what one instance may have of them at once.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use wasmtime::component::Resource;

use super::state::State;
use crate::key_value::{MAX_KEY_BYTES, Seen, Store, StoreError};

mod concurrent;
mod sync;
mod wasi;

/// Stores that one instance may have open.
const OPEN: usize = 256;

/// Operations of one instance that are under way at once; further ones wait for their turn.
const AT_ONCE: usize = 8;

/// Lists of keys that one instance may be reading at once.
const LISTS: usize = 16;

/// Keys that are read at once where a guest wants all of them, and the most in one answer of `list-keys`.
const PAGE: usize = 1000;

/// What one instance does with stores. The parts are made when they are first used.
#[derive(Default)]
pub struct Session {
    open: usize,
    turns: Option<Arc<Semaphore>>,
    lists: Option<Arc<Semaphore>>,
    /// Of an isolated instance, its own view of each store, by name.
    layers: BTreeMap<String, Store>,
}

/// A store that a guest has open.
pub struct Opened(Store);

/// What a guest has seen under a key, to compare with later.
pub struct Compared {
    store: Store,
    key: String,
    seen: Seen,
}

/// Why a guest does not get what it asks for. Each interface has it in words of its own.
enum Refused {
    /// Too many stores are open.
    Full,
    /// The function was not granted a store of this name. Says nothing of whether there is one.
    Denied,
    Other(String),
}

impl From<StoreError> for Refused {
    fn from(error: StoreError) -> Refused {
        Refused::Other(error.to_string())
    }
}

const OVER_MEMORY: &str = "the function's memory limit is reached (`limits.memory_mib`), which what the host holds for it counts against";

impl Session {
    fn turns(&mut self) -> Arc<Semaphore> {
        Arc::clone(self.turns.get_or_insert_with(|| Arc::new(Semaphore::new(AT_ONCE))))
    }

    /// A place among the lists that are being read, if there is one.
    fn list(&mut self) -> Option<OwnedSemaphorePermit> {
        let lists = self.lists.get_or_insert_with(|| Arc::new(Semaphore::new(LISTS)));
        Arc::clone(lists).try_acquire_owned().ok()
    }
}

impl State {
    fn open_store(&mut self, name: &str) -> wasmtime::Result<Result<Resource<Opened>, Refused>> {
        let Some(store) = self.grants().key_value_stores.get(name).cloned() else {
            return Ok(Err(Refused::Denied));
        };
        if self.key_value.open == OPEN {
            return Ok(Err(Refused::Full));
        }
        let store = if self.grants().keeps_nothing {
            let layers = &mut self.key_value.layers;
            layers.entry(name.to_owned()).or_insert_with(|| store.layered()).clone()
        } else {
            store
        };
        let opened = self.table.push(Opened(store))?;
        self.key_value.open += 1;
        Ok(Ok(opened))
    }

    fn opened(&self, store: &Resource<Opened>) -> wasmtime::Result<Store> {
        Ok(self.table.get(store)?.0.clone())
    }

    fn close_store(&mut self, store: Resource<Opened>) -> wasmtime::Result<()> {
        self.table.delete(store)?;
        self.key_value.open -= 1;
        Ok(())
    }

    /// Keeps what was seen; `None` where the instance's memory limit forbids it.
    fn push_compared(&mut self, compared: Compared) -> wasmtime::Result<Option<Resource<Compared>>> {
        if !self.limits.charge(compared.bytes()) {
            return Ok(None);
        }
        Ok(Some(self.table.push(compared)?))
    }

    fn take_compared(&mut self, compared: Resource<Compared>) -> wasmtime::Result<Compared> {
        let compared = self.table.delete(compared)?;
        self.limits.release(compared.bytes());
        Ok(compared)
    }
}

impl Compared {
    /// What the host holds for it.
    fn bytes(&self) -> usize {
        self.key.len() + self.seen.as_ref().map_or(0, Vec::len)
    }
}

/// All keys of a store, of at most `room` bytes together.
async fn all_keys(store: &Store, room: usize) -> Result<Vec<String>, StoreError> {
    let (mut keys, mut bytes) = (Vec::<String>::new(), 0);
    loop {
        let page = store.keys(keys.last().map(String::as_str), PAGE).await?;
        let is_last = page.len() < PAGE;
        bytes += page.iter().map(|key| key.len() + size_of::<String>()).sum::<usize>();
        if bytes > room {
            return Err(StoreError::AnswerTooLong(bytes));
        }
        keys.extend(page);
        if is_last {
            return Ok(keys);
        }
    }
}

/// Where the next keys of a list begin, as a guest is told.
fn cursor(last: &str) -> String {
    format!("after {last}")
}

/// The key that a cursor names.
fn after(cursor: &str) -> Result<&str, StoreError> {
    let shown = &cursor[..cursor.floor_char_boundary(MAX_KEY_BYTES)];
    cursor.strip_prefix("after ").ok_or_else(|| StoreError::Cursor(shown.to_owned()))
}
