//! `fermyon:spin/key-value@2.0.0`: async here and sync in its WIT, so that the guest's fiber waits and no thread does.

use wasmtime::component::Resource;

use super::{Opened, Refused, all_keys};
use crate::instance::spin::bindings::fermyon::spin::key_value::{Error, Host, HostStore};
use crate::instance::state::State;

type Answer<T> = wasmtime::Result<Result<T, Error>>;

impl<R: Into<Refused>> From<R> for Error {
    fn from(refused: R) -> Error {
        match refused.into() {
            Refused::Full => Error::StoreTableFull,
            Refused::Denied => Error::AccessDenied,
            Refused::Other(why) => Error::Other(why),
        }
    }
}

impl Host for State {}

impl HostStore for State {
    async fn open(&mut self, label: String) -> Answer<Resource<Opened>> {
        Ok(self.open_store(&label)?.map_err(Error::from))
    }

    async fn get(&mut self, store: Resource<Opened>, key: String) -> Answer<Option<Vec<u8>>> {
        let (store, room) = (self.opened(&store)?, self.limits.room());
        Ok(store.get(&key, room).await.map_err(Error::from))
    }

    async fn set(&mut self, store: Resource<Opened>, key: String, value: Vec<u8>) -> Answer<()> {
        let store = self.opened(&store)?;
        Ok(store.set(key, value).await.map_err(Error::from))
    }

    async fn delete(&mut self, store: Resource<Opened>, key: String) -> Answer<()> {
        let store = self.opened(&store)?;
        Ok(store.delete_many(vec![key]).await.map_err(Error::from))
    }

    async fn exists(&mut self, store: Resource<Opened>, key: String) -> Answer<bool> {
        let store = self.opened(&store)?;
        Ok(store.exists(&key).await.map_err(Error::from))
    }

    async fn get_keys(&mut self, store: Resource<Opened>) -> Answer<Vec<String>> {
        let (store, room) = (self.opened(&store)?, self.limits.room());
        Ok(all_keys(&store, room).await.map_err(Error::from))
    }

    async fn drop(&mut self, store: Resource<Opened>) -> wasmtime::Result<()> {
        self.close_store(store)
    }
}
