//! What the host holds for one instance.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use wasmtime::component::ResourceTable;
use wasmtime_wasi::{FsPerms, WasiCtx, WasiCtxView, WasiView};
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpView};

use super::key_value::Session as KeyValueSession;
use super::limits::Limits;
use super::log::FunctionLog;
use super::outgoing::{Egress, Outbound};
use crate::key_value::Store as KeyValueStore;
use crate::nn::Session;
use crate::nn::responses::Responses;

/// What every instance of a revision is given.
#[derive(Clone, Debug, Default)]
pub struct Grants {
    pub environment: Vec<(String, String)>,
    pub variables: BTreeMap<String, String>,
    /// The key-value stores that it may open, by the names of its manifest.
    pub key_value_stores: BTreeMap<String, KeyValueStore>,
    /// A folder of the function's files, which it sees as its root and cannot write to.
    pub files: Option<PathBuf>,
    /// Where it may send requests to; nowhere without.
    pub outbound: Option<Arc<Outbound>>,
    /// Whether no request of it leaves the host, whatever it may do otherwise.
    pub isolated: bool,
    /// Whether what it writes to stores is seen by the same call alone.
    pub keeps_nothing: bool,
}

/// The data of one instance's Store.
pub struct State {
    pub table: ResourceTable,
    pub limits: Limits,
    pub nn: Session,
    /// Where answers go before the last one, where the caller takes several.
    pub responses: Option<Responses>,
    pub key_value: KeyValueSession,
    wasi: WasiCtx,
    http: WasiHttpCtx,
    egress: Egress,
    grants: Arc<Grants>,
}

/// Bytes of one set of headers that a guest makes. Headers are not charged, so that this and the number of handles
/// bound them.
const FIELDS: usize = 16 << 10;

impl State {
    /// # Errors
    /// Where the folder of the function's files cannot be opened.
    pub fn new(
        grants: &Arc<Grants>,
        log: &Arc<FunctionLog>,
        limits: Limits,
        handles: usize,
        nn: Session,
    ) -> wasmtime::Result<State> {
        let mut wasi = WasiCtx::builder();
        wasi.stdout(log.stdout()).stderr(log.stderr()).allow_tcp(false).allow_udp(false);
        for (name, value) in &grants.environment {
            wasi.env(name, value);
        }
        if let Some(files) = &grants.files {
            wasi.preopened_dir(files, "/", FsPerms::ReadOnly)?;
        }
        let mut table = ResourceTable::new();
        table.set_max_capacity(handles);
        let mut http = WasiHttpCtx::new();
        http.set_field_size_limit(FIELDS);
        let observer = grants.isolated.then(|| nn.meter().clone());
        let egress = Egress::new(grants.outbound.clone(), nn.deadline(), observer);
        Ok(State {
            table,
            limits,
            nn,
            responses: None,
            key_value: KeyValueSession::default(),
            wasi: wasi.build(),
            http,
            egress,
            grants: Arc::clone(grants),
        })
    }

    pub fn grants(&self) -> &Grants {
        &self.grants
    }
}

impl WasiView for State {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

impl WasiHttpView for State {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView { ctx: &mut self.http, table: &mut self.table, hooks: &mut self.egress }
    }
}
