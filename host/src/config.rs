//! The operator's settings: `host.toml`, its defaults and bounds, and everything read from the environment.

mod control;
pub(crate) mod document;
mod keys;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use ipnet::IpNet;

pub use control::{Control, NoStateDir, Scope, Socket, Token, TokenSource, control_token};
pub use document::{DocumentError, DocumentErrors};
pub(crate) use keys::bounds;

/// The names of the backends that this host knows, whether or not they are available.
pub const BACKENDS: [&str; 4] = ["onnxruntime", "openvino", "tract", "rten"];

/// What is wrong with `host.toml`: every mistake, each with its line.
pub type ConfigErrors = DocumentErrors;

/// The operator's settings. `host.example.toml` says what each is for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Config {
    pub listen: Listen,
    pub control: Control,
    pub cache: Cache,
    pub registry: Registry,
    pub key_value: KeyValue,
    pub limits: Limits,
    pub models: Models,
    pub inference: Inference,
    pub outbound: Outbound,
    pub engine: Engine,
    pub log: Log,
    pub signatures: Signatures,
}

/// Addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listen {
    /// Where functions are served.
    pub http: SocketAddr,
    /// A second address where they are served, for those who keep gRPC apart.
    pub grpc: Option<SocketAddr>,
    /// What is spoken on both of them, where it is TLS.
    pub tls: Option<TlsFiles>,
    /// Where metrics and readiness are served; `None` turns them off.
    pub admin: Option<SocketAddr>,
}

/// The files of TLS, in PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The host's certificate, and those that lead from it to one that callers trust.
    pub certificate: PathBuf,
    pub key: PathBuf,
    /// Certificates of authorities, one of which a caller's own certificate must come from.
    pub client_ca: Option<PathBuf>,
}

/// The host's own directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cache {
    /// As the operator gave it; [`Config::cache_dir`] resolves it.
    pub dir: Option<PathBuf>,
    /// 0 is no bound.
    pub max_mib: u64,
}

/// Where artifacts come from and go to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registry {
    /// Registries, with their ports, that are spoken to without TLS.
    pub insecure: Vec<String>,
    /// Certificates of authorities in PEM, beside the system's.
    pub ca: Option<PathBuf>,
    pub max_artifact_mib: u64,
    /// How many layers are moved at once.
    pub transfers: usize,
    /// How long nothing may come or be taken before a connection counts as broken.
    pub stall_ms: u64,
    /// How often something is tried again after the first time.
    pub retries: u32,
}

/// The files in which other tools keep what they log in to registries with, where the environment says they are.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CredentialFiles {
    /// What `REGISTRY_AUTH_FILE` names: the user's explicit choice.
    pub chosen: Option<PathBuf>,
    /// Docker's `config.json`.
    pub docker: Option<PathBuf>,
    /// Podman's `auth.json`: of this session, and of this user.
    pub podman: Vec<PathBuf>,
    /// Spin's `registry-auth.json`.
    pub spin: Option<PathBuf>,
}

/// Key-value stores.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyValue {
    /// Where the file of the embedded stores is; `None`: `.tenon` beside `spin.toml`.
    pub dir: Option<PathBuf>,
    /// The most that one app may keep in one store.
    pub max_mib: u64,
    /// The largest value.
    pub max_value_kib: u64,
    /// The stores that apps may ask for by name. `default` is one of them, also where the file does not name it.
    pub stores: BTreeMap<String, KeyValueStore>,
}

/// One key-value store.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct KeyValueStore {
    pub place: KeyValuePlace,
    /// Whether all apps see the same keys. Otherwise each app has its own.
    pub shared: bool,
}

/// Where a key-value store keeps what it is given.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum KeyValuePlace {
    /// In a file of this host.
    #[default]
    Embedded,
    Redis(Secret),
}

/// Text that may hold a password, and so is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// The folder beside `spin.toml` for what an app leaves behind when it runs here: logs, and what its functions keep.
pub const STATE_FOLDER: &str = ".tenon";

/// The store that every host has.
pub const DEFAULT_STORE: &str = "default";

/// Limits of calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    pub memory_mib: u64,
    pub deadline_ms: u64,
    pub concurrency: usize,
    pub function_concurrency: usize,
    pub queue_length: usize,
    pub queue_wait_ms: u64,
    pub request_body_mib: u64,
    pub response_body_mib: u64,
    pub response_cache_mib: u64,
    pub header_read_ms: u64,
    pub body_read_ms: u64,
    pub connections: usize,
    pub idle_ms: u64,
    pub drain_ms: u64,
    pub table_elements: usize,
    pub handles: usize,
}

/// Models in memory, and what a model must pass before it is trusted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Models {
    /// 0 stands for half of the physical memory; [`Models::budget_bytes`] resolves it.
    pub memory_budget_mib: u64,
    pub idle_timeout_s: u64,
    pub load_ms: u64,
    pub allow_control: bool,
    pub allow_guest_models: bool,
    pub max_model_mib: u64,
    pub vet: Vet,
}

/// Limits of the child process in which a model runs for the first time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vet {
    pub memory_mib: u64,
    pub cpu_s: u64,
    pub wall_ms: u64,
}

/// The inference pool and its backends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inference {
    /// 0 stands for the number of cores; [`Inference::thread_count`] resolves it.
    pub threads: usize,
    pub queue_length: usize,
    /// Names of [`BACKENDS`] in the operator's order of preference; one left out is not used.
    pub backends: Vec<String>,
    /// Where ONNX Runtime's library is, if not where it is looked for.
    pub onnxruntime_library: Option<PathBuf>,
    /// Where OpenVINO's library is, if not where it is looked for.
    pub openvino_library: Option<PathBuf>,
}

/// What functions may reach of the network, beside what their apps allow them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outbound {
    pub allow_private: bool,
    pub allow: Vec<IpNet>,
    pub deny: Vec<IpNet>,
    /// Certificates of authorities that are trusted beside the system's, in PEM.
    pub ca: Option<PathBuf>,
    pub concurrency: usize,
    pub instance_concurrency: usize,
    pub connect_ms: u64,
    pub first_byte_ms: u64,
    pub between_bytes_ms: u64,
}

/// Settings of the wasm engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Engine {
    pub pool_keep_resident_kib: u64,
    pub pagemap_scan: PagemapScan,
}

/// Whether a pooled memory is reset with Linux' PAGEMAP_SCAN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PagemapScan {
    /// Where the kernel has it.
    Auto,
    Off,
}

/// The host's log, the access log and the logs of functions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    pub format: LogFormat,
    pub access: bool,
    /// `None`: `.tenon/logs` beside `spin.toml`.
    pub dir: Option<PathBuf>,
    pub function_log_mib: u64,
}

/// How the host writes its log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

/// Whose artifacts are served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signatures {
    pub required: Required,
    /// Whether apps are served that come from no registry.
    pub local_apps: bool,
    /// Whether a signature must name the repository that the artifact comes from.
    pub same_repository: bool,
    /// By name.
    pub keys: BTreeMap<String, SigningKey>,
}

/// What must be signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Required {
    /// What comes from a repository that a key is for.
    Listed,
    /// Whatever comes from a registry.
    All,
}

/// A public key, and what it may sign.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SigningKey {
    pub file: PathBuf,
    /// Repositories such as `registry.example/team/app`, or all below one: `registry.example/team/*`; at least one.
    pub repositories: Vec<String>,
}

/// No directory can be found for the cache.
#[derive(Debug, thiserror::Error)]
#[error(
    "no place for the cache: neither `XDG_CACHE_HOME` nor `HOME` is an absolute path; set `dir` under `[cache]` in host.toml"
)]
pub struct NoCacheDir;

impl Default for Listen {
    fn default() -> Self {
        let local = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        Self { http: local(3000), grpc: None, tls: None, admin: Some(local(3001)) }
    }
}

impl Default for Cache {
    fn default() -> Self {
        Self { dir: None, max_mib: 51_200 }
    }
}

impl Default for Registry {
    fn default() -> Self {
        Self {
            insecure: Vec::new(),
            ca: None,
            max_artifact_mib: 20_480,
            transfers: 4,
            stall_ms: 30_000,
            retries: 5,
        }
    }
}

impl Default for KeyValue {
    fn default() -> Self {
        let stores = BTreeMap::from([(DEFAULT_STORE.to_owned(), KeyValueStore::default())]);
        Self { dir: None, max_mib: 64, max_value_kib: 4096, stores }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory_mib: 256,
            deadline_ms: 30_000,
            concurrency: 128,
            function_concurrency: 64,
            queue_length: 256,
            queue_wait_ms: 1000,
            request_body_mib: 16,
            response_body_mib: 16,
            response_cache_mib: 64,
            header_read_ms: 10_000,
            body_read_ms: 30_000,
            connections: 1024,
            idle_ms: 300_000,
            drain_ms: 30_000,
            table_elements: 20_000,
            handles: 4096,
        }
    }
}

impl Default for Models {
    fn default() -> Self {
        Self {
            memory_budget_mib: 0,
            idle_timeout_s: 300,
            load_ms: 120_000,
            allow_control: false,
            allow_guest_models: false,
            max_model_mib: 4096,
            vet: Vet { memory_mib: 8192, cpu_s: 120, wall_ms: 180_000 },
        }
    }
}

impl Default for Inference {
    fn default() -> Self {
        Self {
            threads: 0,
            queue_length: 1024,
            backends: BACKENDS.map(str::to_owned).to_vec(),
            onnxruntime_library: None,
            openvino_library: None,
        }
    }
}

impl Default for Outbound {
    fn default() -> Self {
        Self {
            allow_private: false,
            allow: Vec::new(),
            deny: Vec::new(),
            ca: None,
            concurrency: 256,
            instance_concurrency: 16,
            connect_ms: 10_000,
            first_byte_ms: 30_000,
            between_bytes_ms: 30_000,
        }
    }
}

impl Default for Engine {
    fn default() -> Self {
        Self { pool_keep_resident_kib: 4096, pagemap_scan: PagemapScan::Auto }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { format: LogFormat::Text, access: false, dir: None, function_log_mib: 10 }
    }
}

impl Default for Signatures {
    fn default() -> Self {
        Self { required: Required::Listed, local_apps: true, same_repository: false, keys: BTreeMap::new() }
    }
}

impl Config {
    /// Reads `host.toml` at `path`; without one, the defaults.
    ///
    /// # Errors
    /// Everything that is wrong with the file, at once.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigErrors> {
        match path {
            Some(path) => Self::parse(&document::read(path)?, path),
            None => Ok(Self::default()),
        }
    }

    fn parse(text: &str, path: &Path) -> Result<Self, ConfigErrors> {
        // A relative path in the file is meant from where the file is, not from where the host starts.
        let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let dir = absolute.parent().unwrap_or(Path::new("/"));
        document::walk(path, text, |root| keys::read(root, dir))
    }

    /// The host's own directory: `cache.dir`, else `$XDG_CACHE_HOME/tenon`, else `$HOME/.cache/tenon`.
    ///
    /// # Errors
    /// None of the three is set.
    pub fn cache_dir(&self) -> Result<PathBuf, NoCacheDir> {
        self.cache_dir_given(environment("XDG_CACHE_HOME"), environment("HOME"))
    }

    fn cache_dir_given(&self, xdg: Option<String>, home: Option<String>) -> Result<PathBuf, NoCacheDir> {
        // The XDG specification has a relative path ignored.
        let absolute = |path: Option<String>| path.map(PathBuf::from).filter(|p| p.is_absolute());
        let xdg = absolute(xdg).map(|dir| dir.join("tenon"));
        let home = absolute(home).map(|dir| dir.join(".cache/tenon"));
        self.cache.dir.clone().or(xdg).or(home).ok_or(NoCacheDir)
    }
}

impl Cache {
    /// The most bytes of the cache; 0 is no bound.
    pub fn max_bytes(&self) -> u64 {
        self.max_mib << 20
    }
}

impl Models {
    /// The memory budget in bytes on a machine with `physical_bytes` of memory.
    pub fn budget_bytes(&self, physical_bytes: u64) -> u64 {
        match self.memory_budget_mib {
            0 => physical_bytes / 2,
            mib => mib << 20,
        }
    }
}

impl Inference {
    /// How many threads run inference on a machine with `cores` cores.
    pub fn thread_count(&self, cores: usize) -> usize {
        match self.threads {
            0 => cores.max(1),
            threads => threads,
        }
    }
}

/// The filter of the host's log, from `TENON_LOG` (such as `info` or `tenon=debug`).
pub fn log_filter() -> Option<String> {
    environment("TENON_LOG")
}

/// Whether `NO_COLOR` asks for output without colours.
pub fn no_color() -> bool {
    environment("NO_COLOR").is_some()
}

impl CredentialFiles {
    /// Where the environment of this process has them.
    pub fn find() -> Self {
        Self::given(|name| environment(name).map(PathBuf::from))
    }

    fn given(variable: impl Fn(&str) -> Option<PathBuf>) -> Self {
        let home = variable("HOME");
        let in_home = |path: &str| home.as_ref().map(|home| home.join(path));
        let user = variable("XDG_CONFIG_HOME").or_else(|| in_home(".config"));
        let docker = variable("DOCKER_CONFIG").or_else(|| in_home(".docker"));
        Self {
            chosen: variable("REGISTRY_AUTH_FILE"),
            docker: docker.map(|folder| folder.join("config.json")),
            podman: [variable("XDG_RUNTIME_DIR"), user.clone()]
                .into_iter()
                .flatten()
                .map(|folder| folder.join("containers/auth.json"))
                .collect(),
            spin: user.map(|folder| folder.join("fermyon/registry-auth.json")),
        }
    }
}

/// The value of the app variable `name` from `SPIN_VARIABLE_<NAME>`.
pub fn variable(name: &str) -> Option<String> {
    std::env::var(format!("SPIN_VARIABLE_{}", name.to_ascii_uppercase())).ok()
}

/// The app that Spin hands to a trigger, in the environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handover {
    /// `SPIN_LOCKED_URL`: the URL of the file of the locked app.
    pub locked_url: String,
    /// `SPIN_WORKING_DIR`: a folder of Spin's, which is gone when it ends.
    pub working_dir: PathBuf,
    /// `SPIN_LOCAL_APP_DIR`: the folder of spin.toml, where the app comes from one.
    pub local_app_dir: Option<PathBuf>,
}

impl Handover {
    /// What the environment of this process has; `None` where Spin did not start it as a trigger.
    pub fn find() -> Option<Self> {
        Some(Self {
            locked_url: environment("SPIN_LOCKED_URL")?,
            working_dir: environment("SPIN_WORKING_DIR")?.into(),
            local_app_dir: environment("SPIN_LOCAL_APP_DIR").map(PathBuf::from),
        })
    }
}

/// The password of a private key from `TENON_KEY_PASSWORD`, or `COSIGN_PASSWORD`; one that is set to nothing is an
/// empty password.
pub fn key_password() -> Option<String> {
    ["TENON_KEY_PASSWORD", "COSIGN_PASSWORD"].into_iter().find_map(|name| std::env::var(name).ok())
}

/// Whether `TENON_REQUIRE`, a list with commas, demands the tests that need `what`.
pub fn demands(what: &str) -> bool {
    environment("TENON_REQUIRE").is_some_and(|list| lists(&list, what))
}

fn lists(list: &str, what: &str) -> bool {
    list.split(',').any(|name| name.trim() == what)
}

/// A variable of the environment; one that is set to nothing counts as not set.
fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_has_a_place() {
        let check = |dir: &str, xdg: &str, home: &str, expected: Option<&str>| {
            let some = |value: &str| Some(value.to_owned()).filter(|value| !value.is_empty());
            let cache = Cache { dir: some(dir).map(PathBuf::from), ..Cache::default() };
            let config = Config { cache, ..Config::default() };
            let found = config.cache_dir_given(some(xdg), some(home)).ok();
            assert_eq!(found, expected.map(PathBuf::from), "{dir} {xdg} {home}");
        };
        check("/d", "/x", "/h", Some("/d"));
        check("", "/x", "/h", Some("/x/tenon"));
        check("", "x", "/h", Some("/h/.cache/tenon"));
        check("", "", "/h", Some("/h/.cache/tenon"));
        check("", "", "", None);
    }

    #[test]
    fn credentials_are_where_other_tools_keep_them() {
        let check = |set: &[(&str, &str)], expected: [&str; 5]| {
            let value =
                |name: &str| set.iter().find(|(known, _)| *known == name).map(|(_, path)| path.into());
            let files = CredentialFiles::given(value);
            let mut podman = files.podman.into_iter().map(Some).collect::<Vec<_>>();
            podman.resize(2, None);
            let found = [files.chosen, files.docker, podman[0].clone(), podman[1].clone(), files.spin];
            assert_eq!(found.map(Option::unwrap_or_default), expected.map(PathBuf::from), "{set:?}");
        };
        check(&[], ["", "", "", "", ""]);
        let at_home = [
            "",
            "/h/.docker/config.json",
            "/h/.config/containers/auth.json",
            "",
            "/h/.config/fermyon/registry-auth.json",
        ];
        check(&[("HOME", "/h")], at_home);
        let all = [
            ("HOME", "/h"),
            ("REGISTRY_AUTH_FILE", "/a"),
            ("DOCKER_CONFIG", "/d"),
            ("XDG_RUNTIME_DIR", "/r"),
            ("XDG_CONFIG_HOME", "/c"),
        ];
        let places = [
            "/a",
            "/d/config.json",
            "/r/containers/auth.json",
            "/c/containers/auth.json",
            "/c/fermyon/registry-auth.json",
        ];
        check(&all, places);
    }

    #[test]
    fn zero_means_as_the_machine_has() {
        assert_eq!(Models::default().budget_bytes(8 << 30), 4 << 30);
        let models = Models { memory_budget_mib: 3, ..Models::default() };
        assert_eq!(models.budget_bytes(8 << 30), 3 << 20);
        assert_eq!(Inference::default().thread_count(6), 6);
        assert_eq!(Inference { threads: 2, ..Inference::default() }.thread_count(6), 2);
    }

    #[test]
    fn tests_are_demanded_by_name() {
        assert!(lists("onnxruntime, openvino", "openvino"));
        assert!(!lists("onnxruntime", "onnx"));
    }
}
