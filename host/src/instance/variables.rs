//! The variables of a component, in the three interfaces that ask for them.

use wasmtime::component::{Accessor, HasSelf};

use super::spin::bindings::fermyon::spin::variables as sync;
use super::spin::bindings::spin::variables::variables as concurrent;
use super::spin::bindings::wasi::config::store;
use super::state::State;

/// Why there is no value; both hold the name.
enum Missing {
    NoName(String),
    Undefined(String),
}

impl State {
    fn variable(&self, name: String) -> Result<String, Missing> {
        if let Some(value) = self.grants().variables.get(&name) {
            return Ok(value.clone());
        }
        let valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        let is_name = !name.is_empty() && name.chars().all(valid);
        Err(if is_name { Missing::Undefined(name) } else { Missing::NoName(name) })
    }
}

impl concurrent::Host for State {}

impl<T: Send> concurrent::HostWithStore<T> for HasSelf<State> {
    async fn get(
        accessor: &Accessor<T, Self>,
        name: String,
    ) -> wasmtime::Result<Result<String, concurrent::Error>> {
        Ok(accessor.with(|mut store| store.get().variable(name)).map_err(|missing| match missing {
            Missing::NoName(name) => concurrent::Error::InvalidName(name),
            Missing::Undefined(name) => concurrent::Error::Undefined(name),
        }))
    }
}

impl sync::Host for State {
    fn get(&mut self, name: String) -> wasmtime::Result<Result<String, sync::Error>> {
        Ok(self.variable(name).map_err(|missing| match missing {
            Missing::NoName(name) => sync::Error::InvalidName(name),
            Missing::Undefined(name) => sync::Error::Undefined(name),
        }))
    }
}

impl store::Host for State {
    fn get(&mut self, name: String) -> wasmtime::Result<Result<Option<String>, store::Error>> {
        Ok(Ok(self.variable(name).ok()))
    }

    fn get_all(&mut self) -> wasmtime::Result<Result<Vec<(String, String)>, store::Error>> {
        Ok(Ok(self.grants().variables.clone().into_iter().collect()))
    }
}
