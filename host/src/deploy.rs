//! The walk of a deployment: fetch, compile, admit the models, link, describe, publish.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use thiserror::Error;

use crate::artifact::blobs::Hold;
use crate::artifact::cache::CacheError;
use crate::artifact::fetch::{self, FetchError};
use crate::artifact::manifest::{
    Component, Files, Manifest, ManifestErrors, Source, Target as TriggerTarget,
};
use crate::artifact::oci::Digest;
use crate::backend::available::ChooseError;
use crate::backend::batch::check_batchable;
use crate::backend::residency::{AcquireError, Model, Residency};
use crate::backend::vet::VetError;
use crate::background::{self, background};
use crate::config::Config;
use crate::function::revision::ModelSummary;
use crate::function::route::{Route, StaticResponse};
use crate::function::{
    App, Conflict, Function, Functions, Release, Revision, Routes, Settings, Target, Traffic,
};
use crate::instance::compile::{CompileError, compile};
use crate::instance::engine::Engines;
use crate::instance::log::FunctionLog;
use crate::instance::outgoing::Outbound;
use crate::instance::state::Grants;
use crate::instance::{CallError, Deadline, LinkError, Program, Surroundings};
use crate::key_value::{KeyValue, OpenError, Store};
use crate::network::{AllowedHosts, Network};
use crate::nn::Granted;

pub mod compatibility;
mod interface;
mod models;

pub use interface::{Interface, Tensor};
pub use models::{Admitted, Intake};

/// What deployments need of the host.
pub struct Deployer {
    pub config: Arc<Config>,
    pub engines: Arc<Engines>,
    pub residency: Arc<Residency>,
    pub intake: Arc<Intake>,
    pub functions: Arc<Functions>,
    pub key_value: KeyValue,
    /// The way out for functions.
    pub network: Arc<Network>,
    /// Where functions' own output goes.
    pub logs: PathBuf,
}

/// Why one component was not deployed.
#[derive(Debug, Error)]
pub enum DeployError {
    #[error("cannot get its component: {0}")]
    Fetch(#[from] FetchError),
    #[error("its component `{path}` {source}")]
    Compile { path: String, source: CompileError },
    #[error("model `{name}`: {source}")]
    Model { name: String, source: ModelError },
    #[error("{0}")]
    Link(#[from] LinkError),
    #[error("its files cannot be mounted: {0}")]
    Files(CacheError),
    #[error(transparent)]
    KeyValue(#[from] OpenError),
    #[error("`allowed_outbound_hosts`: {0}")]
    Outbound(String),
    #[error(
        "`allowed_outbound_hosts` names `{0}`, but this host has no requests of an app to itself; leave it out, or give \
         the other function's address"
    )]
    ToItself(String),
    #[error("it could not describe itself: {0}")]
    Describe(CallError),
    #[error("its model cannot be described: {0}")]
    DescribeModel(CallError),
    #[error(
        "it is called `{0}` in the Open Inference Protocol, and so is another function; give one of them a name of \
         its own (`tool.tenon.model_name`)"
    )]
    SameModelName(String),
    #[error("its limit `{limit}` of {asked} is over the host's {allowed} (`limits.{limit}` in host.toml)")]
    Limit { limit: &'static str, asked: u64, allowed: u64 },
}

/// Why a model cannot be granted.
#[derive(Debug, Error)]
pub enum ModelError {
    #[error(transparent)]
    Cache(#[from] CacheError),
    #[error(transparent)]
    Choose(#[from] ChooseError),
    #[error("backend `{backend}` refuses it: {source}")]
    Vet { backend: &'static str, source: VetError },
    #[error("it cannot be copied: {0}")]
    Background(#[from] background::Failed),
    #[error("its calls cannot be joined (`batching`): {0}")]
    Batching(String),
    #[error(transparent)]
    Acquire(#[from] AcquireError),
    #[error(
        "it needs {needed_mib} MiB in memory for {concurrency} callers at once, which is more than the {budget_mib} MiB for all models together (`models.memory_budget_mib` in host.toml)"
    )]
    OverBudget { needed_mib: u64, budget_mib: u64, concurrency: usize },
}

/// Everything that keeps an app from being served; nothing of it is then served anew.
#[derive(Debug, Error)]
pub enum AppError {
    #[error(transparent)]
    Manifest(#[from] ManifestErrors),
    #[error("{}", .0.iter().map(|(name, error)| format!("failed to deploy `{name}`: {error}")).collect::<Vec<_>>().join("\n"))]
    Functions(Vec<(String, DeployError)>),
    #[error("{0}")]
    Routes(String),
    #[error(transparent)]
    Conflict(#[from] Conflict),
}

/// What a person is told while a deployment goes on.
#[derive(Clone, Debug)]
pub struct Step {
    pub what: String,
    pub took: Duration,
}

/// The revision that is being made.
struct Making {
    revision: u64,
    /// Where its functions' own output goes.
    logs: PathBuf,
}

/// A compiled component.
struct Code {
    compiled: crate::instance::compile::Compiled,
    digest: String,
    /// The component itself.
    wasm: Bytes,
    /// Keeps it and its native code in the cache.
    hold: Option<Hold>,
}

/// The limits of one function, in the units of its revision.
struct Limits {
    memory_bytes: usize,
    deadline_ms: u64,
    request_body_bytes: usize,
    response_body_bytes: usize,
    response_cache_bytes: usize,
    concurrency: usize,
}

/// How long a function may take to describe itself.
const DESCRIBE_MS: u64 = 5000;

impl Deployer {
    /// Makes an app what this host serves, all of it or nothing.
    ///
    /// # Errors
    /// Everything that is wrong with it, at once.
    pub async fn deploy(
        &self,
        app: &Manifest,
        files: &Files,
        report: &(dyn Fn(Step) + Sync),
    ) -> Result<(), AppError> {
        let served = self.functions.snapshot().apps().get(&app.name).map(|traffic| traffic.stable.revision);
        let revision = served.unwrap_or_default() + 1;
        let release = self.release(app, files, revision, String::new(), report).await?;
        self.functions.publish(&app.name, Some(Traffic::all(Arc::new(release))))?;
        self.keep_bound();
        Ok(())
    }

    /// Makes a revision of an app ready to be called, which nobody does yet. `digest` is what it was made of.
    ///
    /// # Errors
    /// Everything that is wrong with it, at once.
    pub async fn release(
        &self,
        app: &Manifest,
        files: &Files,
        revision: u64,
        digest: String,
        report: &(dyn Fn(Step) + Sync),
    ) -> Result<Release, AppError> {
        // What is deployed beside other apps has its logs in a folder of its own.
        let logs = if digest.is_empty() { self.logs.clone() } else { self.logs.join(&app.name) };
        let making = Making { revision, logs };
        let mut functions = Vec::new();
        let mut errors = Vec::new();
        for component in &app.components {
            let name = app.function(component);
            match self.function(app, component, files, &making, report).await {
                Ok(function) if same_model_name(&functions, &function) => {
                    errors.push((name, DeployError::SameModelName(function.model.clone())));
                }
                Ok(function) => functions.push(Arc::new(function)),
                Err(error) => errors.push((name, error)),
            }
        }
        if !errors.is_empty() {
            return Err(AppError::Functions(errors));
        }
        let routes = routes(app, &functions).map_err(AppError::Routes)?;
        let about = App { name: app.name.clone(), version: app.version.clone() };
        Ok(Release::new(about, revision, digest, functions, routes))
    }

    /// Brings the cache back within its bound, in the background: what was compiled and derived counts too, and what is
    /// no longer served may have made room for it.
    pub fn keep_bound(&self) {
        let cache = self.intake.cache.clone();
        tokio::task::spawn_blocking(move || cache.keep_bound());
    }

    async fn function(
        &self,
        app: &Manifest,
        component: &Component,
        files: &Files,
        making: &Making,
        report: &(dyn Fn(Step) + Sync),
    ) -> Result<Function, DeployError> {
        let limits = self.limits(component)?;
        let code = self.revision(app, component, files, making, &limits, report).await?;
        let settings = Settings {
            revision: making.revision,
            name: app.function(component),
            model: component.model_name.clone().unwrap_or_else(|| component.id.clone()),
            concurrency: limits.concurrency,
            response_cache_bytes: limits.response_cache_bytes,
        };
        Ok(Function::new(settings, code, &self.functions.telemetry))
    }

    async fn revision(
        &self,
        app: &Manifest,
        component: &Component,
        files: &Files,
        making: &Making,
        limits: &Limits,
        report: &(dyn Fn(Step) + Sync),
    ) -> Result<Revision, DeployError> {
        let name = &app.function(component);
        let code = match component.source {
            Source::Model => None,
            Source::Path(_) | Source::Url { .. } => Some(self.code(name, component, report).await?),
        };
        let (granted, models) = self.models(app, component, making.revision, report).await?;
        let files = self.mount(component, files).await?;
        let grants = Grants {
            environment: component.environment.clone().into_iter().collect(),
            variables: component.variables.clone(),
            key_value_stores: self.key_value_stores(app, component).await?,
            files: files.as_ref().map(|files| files.path().to_owned()),
            outbound: Some(Arc::new(self.outbound(component)?)),
            isolated: false,
            keeps_nothing: false,
        };
        let surroundings = Surroundings {
            engines: Arc::clone(&self.engines),
            residency: Arc::clone(&self.residency),
            granted: Arc::new(granted),
            take_in: self.intake.take_in(),
            grants: Arc::new(grants),
            log: FunctionLog::new(&making.logs, &component.id, self.config.log.function_log_mib << 20),
            memory_bytes: limits.memory_bytes,
            table_elements: self.config.limits.table_elements,
            handles: self.config.limits.handles,
        };
        let component_bytes = code.as_ref().map_or(0, |code| code.wasm.len() as u64);
        let (program, description, digest, kept) = match code {
            Some(Code { compiled, digest, hold, .. }) => {
                let program = Program::link(&compiled.component, compiled.flavor, surroundings)?;
                let description = program.describe(until(DESCRIBE_MS)).await;
                (program, description.map_err(DeployError::Describe)?, digest, hold)
            }
            None => {
                // The manifest has seen to it that there is one.
                let model = models.first().map(|model| (model.name.clone(), model.digest.clone()));
                let (model, digest) = model.unwrap_or_default();
                let program = Program::model(model, surroundings);
                let load = until(self.config.models.load_ms);
                let description = timed(report, &format!("{name}: graph"), program.describe(load)).await;
                (program, description.map_err(DeployError::DescribeModel)?, digest, None)
            }
        };
        Ok(Revision {
            program: Arc::new(program),
            description,
            digest,
            component_bytes,
            deadline_ms: limits.deadline_ms,
            request_body_bytes: limits.request_body_bytes,
            response_body_bytes: limits.response_body_bytes,
            models,
            files,
            kept: Arc::new(kept),
        })
    }

    /// Where a component may send requests to.
    fn outbound(&self, component: &Component) -> Result<Outbound, DeployError> {
        let hosts = AllowedHosts::parse(&component.allowed_outbound_hosts).map_err(DeployError::Outbound)?;
        if let Some(own) = hosts.iter().find(|host| host.is_own()) {
            return Err(DeployError::ToItself(own.to_string()));
        }
        Ok(Outbound::new(&component.id, hosts, &self.network))
    }

    /// A function may ask for less than the host gives, not for more.
    fn limits(&self, component: &Component) -> Result<Limits, DeployError> {
        let (own, host) = (&component.limits, &self.config.limits);
        let within = |limit, asked: Option<u64>, allowed: u64| match asked {
            Some(asked) if asked > allowed => Err(DeployError::Limit { limit, asked, allowed }),
            asked => Ok(asked.unwrap_or(allowed)),
        };
        let bytes = |mib: u64| usize::try_from(mib << 20).unwrap_or(usize::MAX);
        let concurrency = own.concurrency.map(|concurrency| concurrency as u64);
        within("concurrency", concurrency, host.concurrency as u64)?;
        let cache_mib = within("response_cache_mib", own.response_cache_mib, host.response_cache_mib)?;
        let response_body_mib = within("response_body_mib", own.response_body_mib, host.response_body_mib)?;
        Ok(Limits {
            memory_bytes: bytes(within("memory_mib", own.memory_mib, host.memory_mib)?),
            deadline_ms: within("deadline_ms", own.deadline_ms, host.deadline_ms)?,
            request_body_bytes: bytes(within(
                "request_body_mib",
                own.request_body_mib,
                host.request_body_mib,
            )?),
            response_body_bytes: bytes(response_body_mib),
            // Nothing is kept unless the function asks for it.
            response_cache_bytes: own.response_cache_mib.map_or(0, |_| bytes(cache_mib)),
            concurrency: own.concurrency.unwrap_or(host.function_concurrency).min(host.concurrency),
        })
    }

    /// The native code of a component, and what keeps it in the cache.
    async fn code(
        &self,
        name: &str,
        component: &Component,
        report: &(dyn Fn(Step) + Sync),
    ) -> Result<Code, DeployError> {
        let fetched =
            timed(report, &format!("{name}: component"), fetch::component(&component.source)).await?;
        let digest = Digest::of(&fetched.wasm);
        // Before it is looked for: what is held stays.
        let cache = self.intake.cache.clone();
        let hold = tokio::task::spawn_blocking(move || cache.hold([digest]));
        let hold = hold.await.expect("holding does not panic");
        let hold = hold.inspect_err(|error| {
            // It is in memory as long as it is served: losing what is on disk costs time only.
            tracing::warn!(%error, "compiled code may be removed from the cache while it is served");
        });
        let digest = digest.hex();
        let compiled =
            timed(report, &format!("{name}: native code"), self.compile(&fetched, &digest)).await?;
        Ok(Code { compiled, digest, wasm: fetched.wasm, hold: hold.ok() })
    }

    async fn compile(
        &self,
        fetched: &fetch::Fetched,
        digest: &str,
    ) -> Result<crate::instance::compile::Compiled, DeployError> {
        let (engines, wasm) = (Arc::clone(&self.engines), fetched.wasm.clone());
        let (digest, folder) = (digest.to_owned(), self.intake.cache.compiled());
        let compiled = background(move || compile(&engines, &wasm, &digest, &folder)).await;
        let failed = |source| DeployError::Compile { path: fetched.name.clone(), source };
        match compiled {
            Ok(compiled) => compiled.map_err(failed),
            Err(error) => Err(failed(CompileError::Compile(error.to_string()))),
        }
    }

    async fn mount(
        &self,
        component: &Component,
        files: &Files,
    ) -> Result<Option<tempfile::TempDir>, DeployError> {
        let mounts = files.mounts.get(&component.id).map(Vec::as_slice).unwrap_or_default();
        if mounts.is_empty() {
            return Ok(None);
        }
        let mounts: Vec<_> =
            mounts.iter().map(|mount| (mount.source.clone(), mount.destination.clone())).collect();
        let cache = self.intake.cache.clone();
        let mounted = tokio::task::spawn_blocking(move || cache.mount(&mounts)).await;
        mounted.expect("mounting does not panic").map(Some).map_err(DeployError::Files)
    }

    async fn key_value_stores(
        &self,
        app: &Manifest,
        component: &Component,
    ) -> Result<BTreeMap<String, Store>, OpenError> {
        let mut stores = BTreeMap::new();
        for name in &component.key_value_stores {
            stores.insert(name.clone(), self.key_value.store(&app.name, name).await?);
        }
        Ok(stores)
    }

    async fn models(
        &self,
        app: &Manifest,
        component: &Component,
        revision: u64,
        report: &(dyn Fn(Step) + Sync),
    ) -> Result<(Granted, Vec<ModelSummary>), DeployError> {
        let name = &app.function(component);
        let mut granted = Granted::default();
        let mut summaries = Vec::new();
        for (model_name, model) in &component.models {
            let what = format!("{name}: model {model_name}");
            let admitted = timed(report, &what, self.intake.admit(model, &app.name)).await;
            let refused = |source| DeployError::Model { name: model_name.clone(), source };
            let admitted = admitted.map_err(refused)?;
            if admitted.model.batching.is_some() {
                timed(report, &format!("{what}: batching"), self.check_batching(&admitted.model))
                    .await
                    .map_err(refused)?;
            }
            let backend = admitted.model.backend.name();
            summaries.push(ModelSummary {
                name: model_name.clone(),
                digest: admitted.model.file.digest.clone(),
                backend,
                encoding: admitted.model.file.encoding.name(),
                target: admitted.model.file.target.name(),
                batching: admitted.model.batching,
                signature: admitted.signature,
            });
            let metrics = self.functions.telemetry.model(name, revision, model_name, backend);
            let grant = crate::nn::GrantedModel { model: admitted.model, metrics: Some(metrics) };
            granted.models.insert(model_name.clone(), grant);
        }
        Ok((granted, summaries))
    }
}

impl Deployer {
    /// Whether calls of the model can be joined, for which it is loaded.
    async fn check_batching(&self, model: &Model) -> Result<(), ModelError> {
        let lease = self.residency.acquire(model).await?;
        check_batchable(lease.signature()).map_err(ModelError::Batching)
    }
}

/// The deadline of something that may take so long from now.
fn until(ms: u64) -> Deadline {
    Deadline { at: Instant::now() + Duration::from_millis(ms), ms }
}

/// Only functions that take tensors are called by that name.
fn same_model_name(functions: &[Arc<Function>], function: &Function) -> bool {
    let is_called = |other: &Function| other.revision.program.is_typed() && other.model == function.model;
    function.revision.program.is_typed() && functions.iter().any(|other| is_called(other))
}

async fn timed<T>(report: &(dyn Fn(Step) + Sync), what: &str, work: impl Future<Output = T>) -> T {
    let started = Instant::now();
    let done = work.await;
    report(Step { what: what.to_owned(), took: started.elapsed() });
    done
}

fn routes(app: &Manifest, functions: &[Arc<Function>]) -> Result<Routes, String> {
    let target = |target: &TriggerTarget| match target {
        TriggerTarget::Component(id) => {
            let name = format!("{}/{id}", app.name);
            let function = functions.iter().find(|function| function.name == name);
            function.map(|function| Target::Function(Arc::clone(function)))
        }
        TriggerTarget::Static { status, headers, body } => Some(Target::Static(Arc::new(StaticResponse {
            status: *status,
            headers: headers.clone(),
            body: body.clone(),
        }))),
    };
    let routes = app.triggers.iter().filter_map(|trigger| {
        let pattern = trigger.route.clone()?;
        Some(Route { pattern, target: target(&trigger.target)? })
    });
    Routes::new(routes.collect())
}
