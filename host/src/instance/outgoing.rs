//! Requests that guests send: bounds on what they make up, since wasmtime keeps its parts on the host, of any length.

use wasmtime::StoreContextMut;
use wasmtime::component::{Linker, Resource};
use wasmtime_wasi_http::WasiHttpView;
use wasmtime_wasi_http::p2::bindings::http::types::{HostOutgoingRequest as P2, Method as MethodP2};
use wasmtime_wasi_http::p2::types::HostOutgoingRequest;
use wasmtime_wasi_http::p3::Request;
use wasmtime_wasi_http::p3::bindings::http::types::{HostRequest as P3, Method as MethodP3};

use super::state::State;

mod egress;
mod exchange;
mod failure;
mod pauses;

pub(super) use egress::Egress;
pub use egress::Outbound;

/// Bytes of a method, a path with its query, or an authority.
const LONGEST: usize = 8 << 10;

fn bounded(text: Option<&str>) -> wasmtime::Result<()> {
    match text {
        Some(text) if text.len() > LONGEST => {
            wasmtime::bail!("a part of a request is longer than {LONGEST} bytes")
        }
        _ => Ok(()),
    }
}

/// Replaces the setters of `outgoing-request` by ones that look at the length first.
pub(super) fn bound_p2(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    type Of<T> = (Resource<HostOutgoingRequest>, T);
    linker.allow_shadowing(true);
    let mut types = linker.instance("wasi:http/types@0.2.12")?;
    types.func_wrap(
        "[method]outgoing-request.set-method",
        |mut store: StoreContextMut<'_, State>, (request, method): Of<MethodP2>| {
            if let MethodP2::Other(method) = &method {
                bounded(Some(method))?;
            }
            Ok((P2::set_method(&mut store.data_mut().http(), request, method)?,))
        },
    )?;
    types.func_wrap(
        "[method]outgoing-request.set-path-with-query",
        |mut store: StoreContextMut<'_, State>, (request, path): Of<Option<String>>| {
            bounded(path.as_deref())?;
            Ok((P2::set_path_with_query(&mut store.data_mut().http(), request, path)?,))
        },
    )?;
    types.func_wrap(
        "[method]outgoing-request.set-authority",
        |mut store: StoreContextMut<'_, State>, (request, authority): Of<Option<String>>| {
            bounded(authority.as_deref())?;
            Ok((P2::set_authority(&mut store.data_mut().http(), request, authority)?,))
        },
    )?;
    linker.allow_shadowing(false);
    Ok(())
}

/// The same for `request` of wasi:http 0.3.
pub(super) fn bound_p3(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    type Of<T> = (Resource<Request>, T);
    linker.allow_shadowing(true);
    let mut types = linker.instance("wasi:http/types@0.3.0")?;
    types.func_wrap(
        "[method]request.set-method",
        |mut store: StoreContextMut<'_, State>, (request, method): Of<MethodP3>| {
            if let MethodP3::Other(method) = &method {
                bounded(Some(method))?;
            }
            Ok((P3::set_method(&mut store.data_mut().http(), request, method)?,))
        },
    )?;
    types.func_wrap(
        "[method]request.set-path-with-query",
        |mut store: StoreContextMut<'_, State>, (request, path): Of<Option<String>>| {
            bounded(path.as_deref())?;
            Ok((P3::set_path_with_query(&mut store.data_mut().http(), request, path)?,))
        },
    )?;
    types.func_wrap(
        "[method]request.set-authority",
        |mut store: StoreContextMut<'_, State>, (request, authority): Of<Option<String>>| {
            bounded(authority.as_deref())?;
            Ok((P3::set_authority(&mut store.data_mut().http(), request, authority)?,))
        },
    )?;
    linker.allow_shadowing(false);
    Ok(())
}
