//! `spin:key-value@3.0.0`, whose functions are async: a guest may have several under way.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::sync::{OwnedSemaphorePermit, oneshot};
use wasmtime::StoreContextMut;
use wasmtime::component::{
    Accessor, Destination, FutureReader, HasSelf, Resource, StreamProducer, StreamReader, StreamResult,
    VecBuffer,
};

use super::{OVER_MEMORY, Opened, Refused};
use crate::instance::limits::Held;
use crate::instance::spin::bindings::spin::key_value::key_value::{
    Error, Host, HostStore, HostStoreWithStore,
};
use crate::instance::state::State;
use crate::key_value::{Store, StoreError};

type Answer<T> = wasmtime::Result<Result<T, Error>>;

/// Keys that are read ahead of a guest.
const AHEAD: usize = 64;

impl<R: Into<Refused>> From<R> for Error {
    fn from(refused: R) -> Error {
        match refused.into() {
            Refused::Full => Error::StoreTableFull,
            Refused::Denied => Error::AccessDenied,
            Refused::Other(why) => Error::Other(why),
        }
    }
}

/// An operation that has its turn.
struct Turn {
    store: Store,
    /// How long an answer may be, in bytes.
    room: usize,
    _permit: OwnedSemaphorePermit,
    _held: Held,
}

/// Waits for a turn, while `bytes` of the guest's count as its memory.
async fn turn<T: Send>(
    accessor: &Accessor<T, HasSelf<State>>,
    store: Resource<Opened>,
    bytes: usize,
) -> Answer<Turn> {
    let begun = accessor.with(|mut access| {
        let state = access.get();
        let store = state.opened(&store)?;
        let held = state.limits.hold(bytes);
        wasmtime::error::Ok((store, held, state.key_value.turns()))
    });
    let (store, held, turns) = begun?;
    let Some(held) = held else { return Ok(Err(Error::Other(OVER_MEMORY.to_owned()))) };
    let permit = turns.acquire_owned().await.expect("the semaphore is never closed");
    let room = accessor.with(|mut access| access.get().limits.room());
    Ok(Ok(Turn { store, room, _permit: permit, _held: held }))
}

impl Host for State {}

impl HostStore for State {
    fn drop(&mut self, store: Resource<Opened>) -> wasmtime::Result<()> {
        self.close_store(store)
    }
}

impl<T: Send> HostStoreWithStore<T> for HasSelf<State> {
    async fn open(accessor: &Accessor<T, Self>, label: String) -> Answer<Resource<Opened>> {
        let opened = accessor.with(|mut access| access.get().open_store(&label))?;
        Ok(opened.map_err(Error::from))
    }

    async fn get(
        accessor: &Accessor<T, Self>,
        store: Resource<Opened>,
        key: String,
    ) -> Answer<Option<Vec<u8>>> {
        match turn(accessor, store, key.len()).await? {
            Ok(turn) => Ok(turn.store.get(&key, turn.room).await.map_err(Error::from)),
            Err(error) => Ok(Err(error)),
        }
    }

    async fn set(
        accessor: &Accessor<T, Self>,
        store: Resource<Opened>,
        key: String,
        value: Vec<u8>,
    ) -> Answer<()> {
        match turn(accessor, store, key.len() + value.len()).await? {
            Ok(turn) => Ok(turn.store.set(key, value).await.map_err(Error::from)),
            Err(error) => Ok(Err(error)),
        }
    }

    async fn delete(accessor: &Accessor<T, Self>, store: Resource<Opened>, key: String) -> Answer<()> {
        match turn(accessor, store, key.len()).await? {
            Ok(turn) => Ok(turn.store.delete_many(vec![key]).await.map_err(Error::from)),
            Err(error) => Ok(Err(error)),
        }
    }

    async fn exists(accessor: &Accessor<T, Self>, store: Resource<Opened>, key: String) -> Answer<bool> {
        match turn(accessor, store, key.len()).await? {
            Ok(turn) => Ok(turn.store.exists(&key).await.map_err(Error::from)),
            Err(error) => Ok(Err(error)),
        }
    }

    async fn get_keys(
        accessor: &Accessor<T, Self>,
        store: Resource<Opened>,
    ) -> wasmtime::Result<(StreamReader<String>, FutureReader<Result<(), Error>>)> {
        accessor.with(|mut access| {
            let state = access.get();
            let (store, place) = (state.opened(&store)?, state.key_value.list());
            let (told, ended) = oneshot::channel();
            let keys = match place {
                Some(place) => StreamReader::new(&mut access, Keys::new(store, told, place))?,
                None => {
                    let why = "too many lists of keys are being read; end one".to_owned();
                    let _ = told.send(Err(Error::Other(why)));
                    StreamReader::new(&mut access, std::iter::empty())?
                }
            };
            Ok((keys, FutureReader::new(&mut access, ended)?))
        })
    }
}

type Reading = Pin<Box<dyn Future<Output = Result<Vec<String>, StoreError>> + Send>>;

/// The keys of a store, read some at a time as the guest takes them.
struct Keys {
    store: Arc<Store>,
    last: Option<String>,
    reading: Option<Reading>,
    ended: Option<oneshot::Sender<Result<(), Error>>>,
    _place: OwnedSemaphorePermit,
}

impl Keys {
    fn new(store: Store, ended: oneshot::Sender<Result<(), Error>>, place: OwnedSemaphorePermit) -> Keys {
        Keys { store: Arc::new(store), last: None, reading: None, ended: Some(ended), _place: place }
    }

    fn end(&mut self, how: Result<(), Error>) {
        if let Some(ended) = self.ended.take() {
            let _ = ended.send(how);
        }
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        // A guest that takes no more has all that it wants.
        self.end(Ok(()));
    }
}

impl<D> StreamProducer<D> for Keys {
    type Item = String;
    type Buffer = VecBuffer<String>;

    fn poll_produce<'a>(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        mut store: StoreContextMut<'a, D>,
        mut to: Destination<'a, String, VecBuffer<String>>,
        finish: bool,
    ) -> Poll<wasmtime::Result<StreamResult>> {
        // Whoever only asks whether there is something might never take it.
        if to.remaining(&mut store) == Some(0) {
            return Poll::Ready(Ok(StreamResult::Completed));
        }
        let keys = &mut *self;
        let reading = keys.reading.get_or_insert_with(|| {
            let (store, last) = (Arc::clone(&keys.store), keys.last.clone());
            Box::pin(async move { store.keys(last.as_deref(), AHEAD).await })
        });
        let read = match reading.as_mut().poll(context) {
            Poll::Ready(read) => read,
            Poll::Pending if finish => {
                keys.reading = None;
                return Poll::Ready(Ok(StreamResult::Cancelled));
            }
            Poll::Pending => return Poll::Pending,
        };
        keys.reading = None;
        let page = match read {
            Ok(page) => page,
            Err(error) => {
                keys.end(Err(error.into()));
                return Poll::Ready(Ok(StreamResult::Dropped));
            }
        };
        let is_last = page.len() < AHEAD;
        keys.last = page.last().cloned();
        to.set_buffer(page.into());
        if is_last {
            keys.end(Ok(()));
            return Poll::Ready(Ok(StreamResult::Dropped));
        }
        Poll::Ready(Ok(StreamResult::Completed))
    }
}
