//! One host: everything that serves and deploys, put together from its settings.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::artifact::cache::{Cache, CacheError};
use crate::backend::available::{Backends, Libraries, search_folders};
use crate::backend::pool::Pool;
use crate::backend::residency::{Bounds, Residency};
use crate::backend::vet::{VetLimits, Vetting};
use crate::config::{Config, NoCacheDir, PagemapScan};
use crate::deploy::{Deployer, Intake};
use crate::function::shadow::places;
use crate::function::{Admission, Functions};
use crate::instance::engine::{EngineLimits, Engines, resets_by_pagemap};
use crate::key_value::KeyValue;
use crate::network::{AddressPolicy, Bounds as OutboundBounds, Network, Trust};
use crate::serve::access::AccessLog;
use crate::serve::tls::{Tls, TlsError};
use crate::serve::{ServeLimits, Server};
use crate::telemetry::Telemetry;
use crate::{admin, instance};

pub mod controlled;
mod memory;

pub use memory::physical_memory;

/// A host that listens.
pub struct Host {
    pub deployer: Arc<Deployer>,
    pub functions: Arc<Functions>,
    pub residency: Arc<Residency>,
    /// What functions are called with: `http`, or `https` where TLS is spoken.
    pub scheme: &'static str,
    /// Where functions are served.
    pub http: SocketAddr,
    /// Where functions are served as well, if anywhere.
    pub grpc: Option<SocketAddr>,
    /// Where the operator is answered, if anywhere.
    pub admin: Option<SocketAddr>,
    server: Arc<Server>,
    serving: Vec<JoinHandle<bool>>,
    operating: Option<JoinHandle<()>>,
    stop: watch::Sender<bool>,
}

/// What a host needs to know beside its settings.
pub struct Surroundings {
    /// The program that tries models out: the `tenon` program.
    pub program: PathBuf,
    /// Where functions' own output goes.
    pub logs: PathBuf,
    /// Where what functions keep is kept, unless the settings say (`key_value.dir`).
    pub state: PathBuf,
}

/// Why a host does not start.
#[derive(Debug, Error)]
pub enum StartError {
    #[error(transparent)]
    NoCacheDir(#[from] NoCacheDir),
    #[error(transparent)]
    Cache(#[from] CacheError),
    #[error("cannot listen on {address}; stop what listens there, or choose another address")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error("the WebAssembly engine cannot be set up: {0}; fewer `limits.concurrency` in host.toml may help")]
    Engine(String),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("cannot start a thread: {0}")]
    Thread(#[from] std::io::Error),
}

impl Host {
    /// Starts a host that listens, with nothing to serve yet.
    ///
    /// # Errors
    /// Where an address is taken, or the system refuses memory, threads or the cache folder.
    pub async fn start(config: Config, around: Surroundings) -> Result<Host, StartError> {
        let http = listen(config.listen.http).await?;
        let grpc = match config.listen.grpc {
            Some(address) => Some(listen(address).await?),
            None => None,
        };
        let admin = match config.listen.admin {
            Some(address) => Some(listen(address).await?),
            None => None,
        };
        let telemetry = Arc::new(Telemetry::new());
        let cache = Cache::bounded(&config.cache_dir()?, config.cache.max_bytes())?;
        let residency = residency(&config, &telemetry)?;
        let functions = Functions::new(admission(&config), Arc::clone(&telemetry));
        let deployer = deployer(config, around, cache, &residency, &functions, false)?;
        let config = Arc::clone(&deployer.config);
        let access = if config.log.access { Some(AccessLog::start()?) } else { None };
        let tls = config.listen.tls.clone().map(Tls::start).transpose()?;
        let server = Server::new(Arc::clone(&functions), serve_limits(&config), tls, access);
        let (stop, stopping) = watch::channel(false);
        let address =
            |listener: &Option<TcpListener>| listener.as_ref().map(TcpListener::local_addr).transpose();
        let addresses = (http.local_addr()?, address(&grpc)?, address(&admin)?);
        let drain = Duration::from_millis(config.limits.drain_ms);
        let serving = std::iter::once(http).chain(grpc).map(|listener| {
            let (server, stopping) = (Arc::clone(&server), stopping.clone());
            tokio::spawn(async move { server.run(listener, stopping, drain).await })
        });
        let serving = serving.collect();
        let operating =
            admin.map(|admin| tokio::spawn(admin::run(admin, Arc::clone(&functions), Arc::clone(&server))));
        Ok(Host {
            deployer: Arc::new(deployer),
            functions,
            residency,
            scheme: if config.listen.tls.is_some() { "https" } else { "http" },
            http: addresses.0,
            grpc: addresses.1,
            admin: addresses.2,
            server,
            serving,
            operating,
            stop,
        })
    }

    /// Stops accepting, and finishes what runs. Answers whether all of it ended in time.
    pub async fn drain(self) -> bool {
        self.stop.send_replace(true);
        let mut ended = true;
        for serving in self.serving {
            ended &= serving.await.unwrap_or(false);
        }
        if let Some(operating) = self.operating {
            operating.abort();
        }
        ended
    }

    /// Whether the host is shutting down.
    pub fn draining(&self) -> bool {
        self.server.draining()
    }
}

async fn listen(address: SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(address).await.map_err(|source| StartError::Listen { address, source })
}

fn admission(config: &Config) -> Admission {
    let limits = &config.limits;
    Admission::new(limits.concurrency, limits.queue_length, Duration::from_millis(limits.queue_wait_ms))
}

/// What graphs may take in memory together.
fn budget_bytes(config: &Config) -> u64 {
    config.models.budget_bytes(physical_memory())
}

fn residency(config: &Config, telemetry: &Arc<Telemetry>) -> Result<Arc<Residency>, StartError> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    Ok(graphs(config, config.inference.thread_count(cores), telemetry)?)
}

/// The table of graphs, with so many threads to run them. Must be called within a tokio runtime.
///
/// # Errors
/// Where the system refuses a thread.
pub fn graphs(
    config: &Config,
    threads: usize,
    telemetry: &Arc<Telemetry>,
) -> std::io::Result<Arc<Residency>> {
    let pool = Pool::start(threads, config.inference.queue_length)?;
    let bounds = Bounds {
        budget_bytes: budget_bytes(config),
        max_input_bytes: usize::try_from(config.limits.memory_mib << 20).unwrap_or(usize::MAX),
        load: Duration::from_millis(config.models.load_ms),
    };
    Ok(Residency::start(pool, bounds, Arc::clone(telemetry)))
}

fn engines(config: &Config, fuel: bool) -> Result<Engines, StartError> {
    let limits = &config.limits;
    let scan = config.engine.pagemap_scan == PagemapScan::Auto;
    match resets_by_pagemap() {
        Ok(()) if scan => tracing::debug!("used memory is reset by page map: there is no swap"),
        Ok(()) => tracing::info!("used memory is not kept: `engine.pagemap_scan` is off"),
        Err(reason) => tracing::info!(reason, "used memory is not kept, so instances start slower"),
    }
    let engine = EngineLimits {
        // A few more than requests: functions describe themselves while others are served, and candidates get calls that
        // were answered already.
        instances: u32::try_from(limits.concurrency + places()).unwrap_or(u32::MAX).saturating_add(4),
        memory_bytes: usize::try_from(limits.memory_mib << 20).unwrap_or(usize::MAX),
        table_elements: limits.table_elements,
        keep_resident_bytes: usize::try_from(config.engine.pool_keep_resident_kib << 10)
            .unwrap_or(usize::MAX),
        pagemap_scan: scan,
        fuel,
    };
    Engines::new(engine).map_err(|error| StartError::Engine(instance::chain(&error)))
}

fn deployer(
    config: Config,
    around: Surroundings,
    cache: Cache,
    residency: &Arc<Residency>,
    functions: &Arc<Functions>,
    fuel: bool,
) -> Result<Deployer, StartError> {
    let engines = Arc::new(engines(&config, fuel)?);
    let config = Arc::new(config);
    Ok(Deployer {
        engines,
        residency: Arc::clone(residency),
        intake: Arc::new(intake(&config, around.program, cache)),
        functions: Arc::clone(functions),
        key_value: KeyValue::new(config.key_value.clone(), &around.state),
        network: Arc::new(network(&config)),
        logs: around.logs,
        config,
    })
}

/// What deploys without anybody being served: to look at functions, and to try them out. With `fuel`, guests'
/// instructions are counted, which makes them slower. Must be called within a tokio runtime.
///
/// # Errors
/// Where the system refuses memory, threads or the cache folder.
pub fn workbench(config: Config, around: Surroundings, fuel: bool) -> Result<Deployer, StartError> {
    let telemetry = Arc::new(Telemetry::new());
    let cache = Cache::bounded(&config.cache_dir()?, config.cache.max_bytes())?;
    let residency = residency(&config, &telemetry)?;
    let functions = Functions::new(admission(&config), telemetry);
    deployer(config, around, cache, &residency, &functions, fuel)
}

/// The way out for functions.
pub fn network(config: &Config) -> Network {
    let outbound = &config.outbound;
    let bounds = OutboundBounds {
        connections: outbound.concurrency,
        instance_connections: outbound.instance_concurrency,
        connect: Duration::from_millis(outbound.connect_ms),
        first_byte: Duration::from_millis(outbound.first_byte_ms),
        between_bytes: Duration::from_millis(outbound.between_bytes_ms),
    };
    let policy = AddressPolicy {
        allow_private: outbound.allow_private,
        allow: outbound.allow.clone(),
        deny: outbound.deny.clone(),
    };
    Network::new(bounds, policy, Trust::new(outbound.ca.clone()))
}

/// What takes models in; `program` tries them out.
pub fn intake(config: &Arc<Config>, program: PathBuf, cache: Cache) -> Intake {
    let libraries = libraries(config, &cache.libraries());
    let vet = &config.models.vet;
    let vetting = Vetting {
        program,
        verdicts: cache.verdicts(),
        limits: VetLimits {
            memory_bytes: vet.memory_mib << 20,
            cpu_s: vet.cpu_s,
            wall: Duration::from_millis(vet.wall_ms),
        },
        libraries: libraries.clone(),
    };
    let backends = Backends::find(&config.inference.backends, &libraries);
    Intake::new(Arc::clone(config), cache, backends, vetting, budget_bytes(config))
}

/// Where the native backends' libraries are looked for: the operator's choice, else what was installed.
pub fn libraries(config: &Config, installed: &Path) -> Libraries {
    Libraries {
        onnxruntime: config.inference.onnxruntime_library.clone(),
        openvino: config.inference.openvino_library.clone(),
        search: search_folders(installed),
    }
}

fn serve_limits(config: &Config) -> ServeLimits {
    let limits = &config.limits;
    let body = usize::try_from(limits.request_body_mib << 20).unwrap_or(usize::MAX);
    ServeLimits {
        connections: limits.connections,
        header_read: Duration::from_millis(limits.header_read_ms),
        body_read: Duration::from_millis(limits.body_read_ms),
        // One word of the operator's for both directions.
        answer_stall: Duration::from_millis(limits.body_read_ms),
        message: body,
        idle: Duration::from_millis(limits.idle_ms),
        model_control: config.models.allow_control,
        // As if every instance had the longest body, and one of them in tensors of four times its length beside it,
        // within a quarter of the memory.
        buffered_bodies: body
            .saturating_mul(limits.concurrency.saturating_add(4))
            .min(usize::try_from(physical_memory() / 4).unwrap_or(usize::MAX)),
    }
}
