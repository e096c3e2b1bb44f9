//! `wasi:keyvalue@0.2.0-draft2`, as Spin has it.

use wasmtime::component::Resource;

use super::{Compared, OVER_MEMORY, Opened, PAGE, Refused, after, cursor};
use crate::instance::spin::bindings::wasi::keyvalue::atomics::{self, CasError};
use crate::instance::spin::bindings::wasi::keyvalue::batch;
use crate::instance::spin::bindings::wasi::keyvalue::store::{self, Error, KeyResponse};
use crate::instance::state::State;
use crate::key_value::{Store, StoreError};

type Answer<T> = wasmtime::Result<Result<T, Error>>;

impl<R: Into<Refused>> From<R> for Error {
    fn from(refused: R) -> Error {
        match refused.into() {
            Refused::Full => Error::Other("too many stores are open; close one".to_owned()),
            Refused::Denied => Error::AccessDenied,
            Refused::Other(why) => Error::Other(why),
        }
    }
}

impl store::Host for State {
    async fn open(&mut self, identifier: String) -> Answer<Resource<Opened>> {
        Ok(self.open_store(&identifier)?.map_err(Error::from))
    }
}

impl store::HostBucket for State {
    async fn get(&mut self, bucket: Resource<Opened>, key: String) -> Answer<Option<Vec<u8>>> {
        let (store, room) = (self.opened(&bucket)?, self.limits.room());
        Ok(store.get(&key, room).await.map_err(Error::from))
    }

    async fn set(&mut self, bucket: Resource<Opened>, key: String, value: Vec<u8>) -> Answer<()> {
        let store = self.opened(&bucket)?;
        Ok(store.set(key, value).await.map_err(Error::from))
    }

    async fn delete(&mut self, bucket: Resource<Opened>, key: String) -> Answer<()> {
        let store = self.opened(&bucket)?;
        Ok(store.delete_many(vec![key]).await.map_err(Error::from))
    }

    async fn exists(&mut self, bucket: Resource<Opened>, key: String) -> Answer<bool> {
        let store = self.opened(&bucket)?;
        Ok(store.exists(&key).await.map_err(Error::from))
    }

    async fn list_keys(&mut self, bucket: Resource<Opened>, from: Option<String>) -> Answer<KeyResponse> {
        let store = self.opened(&bucket)?;
        Ok(list(&store, from.as_deref()).await.map_err(Error::from))
    }

    async fn drop(&mut self, bucket: Resource<Opened>) -> wasmtime::Result<()> {
        self.close_store(bucket)
    }
}

async fn list(store: &Store, from: Option<&str>) -> Result<KeyResponse, StoreError> {
    let keys = store.keys(from.map(after).transpose()?, PAGE).await?;
    let cursor = if keys.len() < PAGE { None } else { keys.last().map(|last| cursor(last)) };
    Ok(KeyResponse { keys, cursor })
}

impl batch::Host for State {
    async fn get_many(
        &mut self,
        bucket: Resource<Opened>,
        keys: Vec<String>,
    ) -> Answer<Vec<(String, Option<Vec<u8>>)>> {
        let (store, room) = (self.opened(&bucket)?, self.limits.room());
        let found = store.get_many(keys.clone(), room).await;
        Ok(found.map(|found| keys.into_iter().zip(found).collect()).map_err(Error::from))
    }

    async fn set_many(&mut self, bucket: Resource<Opened>, entries: Vec<(String, Vec<u8>)>) -> Answer<()> {
        let store = self.opened(&bucket)?;
        Ok(store.set_many(entries).await.map_err(Error::from))
    }

    async fn delete_many(&mut self, bucket: Resource<Opened>, keys: Vec<String>) -> Answer<()> {
        let store = self.opened(&bucket)?;
        Ok(store.delete_many(keys).await.map_err(Error::from))
    }
}

impl State {
    /// Looks at a key, for a later comparison.
    async fn compare(&mut self, store: Store, key: String) -> Answer<Resource<Compared>> {
        let seen = match store.get(&key, self.limits.room()).await {
            Ok(seen) => seen,
            Err(error) => return Ok(Err(error.into())),
        };
        let compared = self.push_compared(Compared { store, key, seen })?;
        Ok(compared.ok_or_else(|| Error::Other(OVER_MEMORY.to_owned())))
    }
}

impl atomics::HostCas for State {
    async fn new(&mut self, bucket: Resource<Opened>, key: String) -> Answer<Resource<Compared>> {
        let store = self.opened(&bucket)?;
        self.compare(store, key).await
    }

    async fn current(&mut self, cas: Resource<Compared>) -> Answer<Option<Vec<u8>>> {
        let (before, store, key) = {
            let compared = self.table.get(&cas)?;
            (compared.bytes(), compared.store.clone(), compared.key.clone())
        };
        // It is held twice: here, and in the answer.
        let seen = match store.get(&key, self.limits.room() / 2).await {
            Ok(seen) => seen,
            Err(error) => return Ok(Err(error.into())),
        };
        let after = Compared { store, key, seen: seen.clone() };
        self.limits.release(before);
        if !self.limits.charge(after.bytes()) {
            // There was room for what was seen before.
            let _ = self.limits.charge(before);
            return Ok(Err(Error::Other(OVER_MEMORY.to_owned())));
        }
        *self.table.get_mut(&cas)? = after;
        Ok(Ok(seen))
    }

    async fn drop(&mut self, cas: Resource<Compared>) -> wasmtime::Result<()> {
        self.take_compared(cas).map(drop)
    }
}

impl atomics::Host for State {
    async fn increment(&mut self, bucket: Resource<Opened>, key: String, delta: i64) -> Answer<i64> {
        let store = self.opened(&bucket)?;
        Ok(store.increment(key, delta).await.map_err(Error::from))
    }

    async fn swap(
        &mut self,
        cas: Resource<Compared>,
        value: Vec<u8>,
    ) -> wasmtime::Result<Result<(), CasError>> {
        let Compared { store, key, seen } = self.take_compared(cas)?;
        match store.swap(key.clone(), seen, value).await {
            Ok(true) => Ok(Ok(())),
            Ok(false) => Ok(Err(match self.compare(store, key).await? {
                Ok(newer) => CasError::CasFailed(newer),
                Err(error) => CasError::StoreError(error),
            })),
            Err(error) => Ok(Err(CasError::StoreError(error.into()))),
        }
    }
}
