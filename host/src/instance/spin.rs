//! Bindings of Spin's interfaces, and of the drafts of WASI that it has.

use wasmtime::component::{HasSelf, Linker};

use super::engine::Flavor;
use super::state::State;

/// The bindings.
pub mod bindings {
    wasmtime::component::bindgen!({
        path: "../wit",
        world: "spin",
        imports: {
            "fermyon:spin/key-value": async | trappable,
            "wasi:keyvalue/store": async | trappable,
            "wasi:keyvalue/batch": async | trappable,
            "wasi:keyvalue/atomics": async | trappable,
            default: trappable,
        },
        with: {
            "fermyon:spin/key-value.store": crate::instance::key_value::Opened,
            "spin:key-value/key-value.store": crate::instance::key_value::Opened,
            "wasi:keyvalue/store.bucket": crate::instance::key_value::Opened,
            "wasi:keyvalue/atomics.cas": crate::instance::key_value::Compared,
        },
    });
}

/// Makes them importable: the sync ones on both engines.
///
/// # Errors
/// Where a definition clashes with one that the linker has.
pub(super) fn add_to_linker(linker: &mut Linker<State>, flavor: Flavor) -> wasmtime::Result<()> {
    use bindings::fermyon::spin as sync;
    use bindings::spin as concurrent;
    use bindings::wasi::{config, keyvalue};
    fn state(state: &mut State) -> &mut State {
        state
    }
    sync::key_value::add_to_linker::<State, HasSelf<State>>(linker, state)?;
    sync::variables::add_to_linker::<State, HasSelf<State>>(linker, state)?;
    keyvalue::store::add_to_linker::<State, HasSelf<State>>(linker, state)?;
    keyvalue::batch::add_to_linker::<State, HasSelf<State>>(linker, state)?;
    keyvalue::atomics::add_to_linker::<State, HasSelf<State>>(linker, state)?;
    config::store::add_to_linker::<State, HasSelf<State>>(linker, state)?;
    if flavor == Flavor::Concurrent {
        concurrent::key_value::key_value::add_to_linker::<State, HasSelf<State>>(linker, state)?;
        concurrent::variables::variables::add_to_linker::<State, HasSelf<State>>(linker, state)?;
    }
    Ok(())
}
