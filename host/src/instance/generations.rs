//! Components of earlier generations of Spin's SDK, brought to the form of today's before they are compiled. What they
//! mean stays the same: where that cannot be had, they are refused.

use std::borrow::Cow;

use thiserror::Error;
use wasmparser::Parser;

mod candidate;
mod module;

/// Changes with what is made of the same bytes: compiled code is kept under it.
pub const EDITION: &str = "e1";

/// Why an earlier form cannot be brought to today's.
#[derive(Debug, Error)]
pub enum GenerationError {
    #[error("is not a valid core module: {0}")]
    Invalid(String),
    #[error(
        "is a core module that does not say what it imports and exports; build it for the target wasm32-wasip2, or, if \
         its SDK builds modules for wasm32-wasip1 as spin-sdk 5 does, keep its custom sections: do not strip them"
    )]
    Undescribed,
    #[error(
        "is a core module of spin-sdk 1 (it has `{0}`), whose interfaces this host does not have; build it with spin-sdk \
         5 or later"
    )]
    FirstSdk(String),
    #[error(
        "is a program with a `_start` of its own, not a function; build a library (`crate-type = [\"cdylib\"]`)"
    )]
    Program,
    #[error("is a core module with more than {0} MiB of descriptions (custom sections `component-type...`)")]
    TooLong(usize),
    #[error("is a core module that cannot be made a component of: {0}")]
    Componentize(String),
    #[error(
        "has both `{0}` and `{1}`, which this host takes for the same; build it with one version of the SDK"
    )]
    Both(String, String),
}

/// The component as it is compiled: the bytes themselves, unless they are of an earlier generation.
///
/// - Core modules that describe themselves (spin-sdk 5 and others, wasm32-wasip1) become components.
/// - WASI 0.3.0-rc-2026-03-15 (spin-sdk 6) is WASI 0.3.0 under another name.
///
/// # Errors
/// Where they are of a generation that cannot be served.
pub fn current(wasm: &[u8]) -> Result<Cow<'_, [u8]>, GenerationError> {
    if Parser::is_core_wasm(wasm) {
        let component = module::componentize(wasm)?;
        return Ok(Cow::Owned(candidate::released(&component)?.unwrap_or(component)));
    }
    if Parser::is_component(wasm) {
        return Ok(candidate::released(wasm)?.map_or(Cow::Borrowed(wasm), Cow::Owned));
    }
    Ok(Cow::Borrowed(wasm))
}
