//! The keys of `host.toml` and the values that each may have.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use ipnet::IpNet;

use super::control;
use super::document::{Table, Value};
use super::{
    BACKENDS, Cache, Config, Engine, Inference, KeyValue, KeyValuePlace, KeyValueStore, Limits, Listen,
};
use super::{
    Log, LogFormat, Models, Outbound, PagemapScan, Registry, Required, Secret, Signatures, SigningKey,
    TlsFiles, Vet,
};

/// What a limit may be, here and in the app manifest.
pub(crate) mod bounds {
    use std::ops::RangeInclusive;

    /// A day is the longest that anything may take.
    pub(crate) const DEADLINE_MS: RangeInclusive<u64> = 1..=super::DAY_MS;
    pub(crate) const MEMORY_MIB: RangeInclusive<u64> = 1..=65_536;
    pub(crate) const CONCURRENCY: RangeInclusive<u64> = 1..=10_000;
    pub(crate) const BODY_MIB: RangeInclusive<u64> = 1..=4096;
    pub(crate) const QUEUE: RangeInclusive<u64> = 1..=1_000_000;
    /// Rows that are worth joining; beyond, a run takes longer than anybody waits.
    pub(crate) const BATCH: RangeInclusive<u64> = 2..=1024;
    /// Up to a second.
    pub(crate) const DELAY_US: RangeInclusive<u64> = 0..=1_000_000;
    pub(crate) const CACHE_MIB: RangeInclusive<u64> = 1..=65_536;
    /// Up to a year.
    pub(crate) const IDLE_S: RangeInclusive<u64> = 1..=365 * 24 * 60 * 60;
}

const DAY_MS: u64 = 24 * 60 * 60 * 1000;

/// Reads the whole file; `dir` is where a relative path in it starts.
pub(super) fn read(root: &mut Table<'_>, dir: &Path) -> Config {
    let listen = root.table("listen", |t| listen(t, dir)).unwrap_or_default();
    Config {
        control: root.table("control", |t| control::read(t, dir, &listen)).unwrap_or_default(),
        listen,
        cache: root.table("cache", |t| cache(t, dir)).unwrap_or_default(),
        registry: root.table("registry", |t| registry(t, dir)).unwrap_or_default(),
        key_value: root.table("key_value", |t| key_value(t, dir)).unwrap_or_default(),
        limits: root.table("limits", limits).unwrap_or_default(),
        models: root.table("models", models).unwrap_or_default(),
        inference: root.table("inference", |t| inference(t, dir)).unwrap_or_default(),
        outbound: root.table("outbound", |t| outbound(t, dir)).unwrap_or_default(),
        engine: root.table("engine", engine).unwrap_or_default(),
        log: root.table("log", |t| log(t, dir)).unwrap_or_default(),
        signatures: root.table("signatures", |t| signatures(t, dir)).unwrap_or_default(),
    }
}

fn listen(t: &mut Table<'_>, dir: &Path) -> Listen {
    let mut listen = Listen::default();
    if let Some(http) = t.value("http").and_then(|value| address(&value)) {
        listen.http = http;
    }
    if let Some(admin) = t.value("admin") {
        listen.admin = if is_off(&admin) { None } else { address(&admin) };
    }
    if let Some(grpc) = t.value("grpc") {
        listen.grpc = if is_off(&grpc) { None } else { address(&grpc) };
    }
    listen.tls = t.table("tls", |t| tls(t, dir)).flatten();
    // Port 0 asks the system for any free port, twice if need be.
    let pairs = [
        ("http", Some(listen.http), "admin", listen.admin),
        ("http", Some(listen.http), "grpc", listen.grpc),
        ("grpc", listen.grpc, "admin", listen.admin),
    ];
    for (one, address, other, taken) in pairs {
        if address.is_some_and(|address| address.port() != 0) && address == taken {
            t.refuse(&format!(
                "`listen.{one}` and `listen.{other}` are one address; give each a port of its own"
            ));
        }
    }
    listen
}

/// TLS is off where none of its files is named.
fn tls(t: &mut Table<'_>, dir: &Path) -> Option<TlsFiles> {
    let (certificate, key) = (path(t, "certificate", dir), path(t, "key", dir));
    let client_ca = path(t, "client_ca", dir);
    match (certificate, key) {
        (Some(certificate), Some(key)) => Some(TlsFiles { certificate, key, client_ca }),
        (None, None) if client_ca.is_none() => None,
        _ => {
            t.refuse("`listen.tls` takes both `certificate` and `key`; give the paths of two PEM files, or of one that holds both");
            None
        }
    }
}

fn cache(t: &mut Table<'_>, dir: &Path) -> Cache {
    let mut cache = Cache { dir: path(t, "dir", dir), ..Cache::default() };
    // Up to a pebibyte: sums of bytes must not overflow.
    set(t, "max_mib", 0..=1 << 30, "MiB", &mut cache.max_mib);
    cache
}

fn registry(t: &mut Table<'_>, dir: &Path) -> Registry {
    let mut registry = Registry { ca: path(t, "ca", dir), ..Registry::default() };
    if let Some(value) = t.value("insecure") {
        registry.insecure = value.items().iter().filter_map(host).collect();
    }
    set(t, "max_artifact_mib", 1..=1 << 30, "MiB", &mut registry.max_artifact_mib);
    set(t, "transfers", 1..=64, "", &mut registry.transfers);
    set(t, "stall_ms", 100..=DAY_MS, "ms", &mut registry.stall_ms);
    set(t, "retries", 0..=100, "", &mut registry.retries);
    registry
}

/// A registry as references name it: a host, with a port where it has one.
fn host(value: &Value<'_>) -> Option<String> {
    let text = value.string()?;
    let of_host = |c: char| c.is_ascii_alphanumeric() || "-.:[]".contains(c);
    if text.is_empty() || !text.chars().all(of_host) {
        value.refuse(&format!(
            "`{}` cannot be `{text}`; give a registry's host and port such as `localhost:5000`",
            value.path()
        ));
        return None;
    }
    Some(text.to_ascii_lowercase())
}

fn key_value(t: &mut Table<'_>, dir: &Path) -> KeyValue {
    let mut settings = KeyValue { dir: path(t, "dir", dir), ..KeyValue::default() };
    set(t, "max_mib", 1..=1 << 20, "MiB", &mut settings.max_mib);
    // A value lies in memory whole, in the host and in the guest.
    set(t, "max_value_kib", 1..=1 << 18, "KiB", &mut settings.max_value_kib);
    for (name, value) in t.entries("stores") {
        // The name stands in those of tables and of keys, where other characters mean something.
        let valid = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if name.is_empty() || name.len() > 64 || !name.chars().all(valid) {
            value.refuse(&format!(
                "a key-value store cannot be named `{name}`; use up to 64 letters, digits, `-` and `_`"
            ));
        }
        settings.stores.extend(value.table(store).map(|store| (name, store)));
    }
    settings
}

/// One `[key_value.stores.<name>]`.
fn store(t: &mut Table<'_>) -> KeyValueStore {
    let is_redis = t.choice("type", &[("embedded", false), ("redis", true)]);
    let shared = t.boolean("shared").unwrap_or(false);
    let url = t.value("url");
    let place = match (is_redis, url) {
        (Some(true), Some(url)) => redis(&url),
        (Some(true), None) => {
            let store = t.shown();
            t.refuse(&format!("{store} lacks `url`; add `url = \"redis://127.0.0.1:6379\"`"));
            None
        }
        (Some(false) | None, Some(url)) => {
            url.refuse(&format!(
                "`{}` is for stores of `type = \"redis\"`; remove it, or add the type",
                url.path()
            ));
            None
        }
        (Some(false) | None, None) => None,
    };
    KeyValueStore { place: place.unwrap_or_default(), shared }
}

/// The address of a Redis server. No message shows it: there may be a password in it.
fn redis(value: &Value<'_>) -> Option<KeyValuePlace> {
    let url = value.string()?;
    let is_plain = url.starts_with("redis://") || url.starts_with("valkey://");
    if !is_plain || redis::IntoConnectionInfo::into_connection_info(url.as_str()).is_err() {
        value.refuse(&format!(
            "`{}` must be a URL such as `redis://127.0.0.1:6379/0` or `redis://user:password@host`; TLS (`rediss://`) \
             is not spoken here",
            value.path()
        ));
    }
    Some(KeyValuePlace::Redis(Secret(url)))
}

fn limits(t: &mut Table<'_>) -> Limits {
    let mut limits = Limits::default();
    set(t, "memory_mib", bounds::MEMORY_MIB, "MiB", &mut limits.memory_mib);
    set(t, "deadline_ms", bounds::DEADLINE_MS, "ms", &mut limits.deadline_ms);
    set(t, "concurrency", bounds::CONCURRENCY, "", &mut limits.concurrency);
    set(t, "function_concurrency", bounds::CONCURRENCY, "", &mut limits.function_concurrency);
    set(t, "queue_length", 0..=1_000_000, "", &mut limits.queue_length);
    set(t, "queue_wait_ms", 0..=DAY_MS, "ms", &mut limits.queue_wait_ms);
    set(t, "request_body_mib", bounds::BODY_MIB, "MiB", &mut limits.request_body_mib);
    set(t, "response_body_mib", bounds::BODY_MIB, "MiB", &mut limits.response_body_mib);
    set(t, "response_cache_mib", bounds::CACHE_MIB, "MiB", &mut limits.response_cache_mib);
    set(t, "header_read_ms", 1..=DAY_MS, "ms", &mut limits.header_read_ms);
    set(t, "body_read_ms", 1..=DAY_MS, "ms", &mut limits.body_read_ms);
    set(t, "connections", 1..=1_000_000, "", &mut limits.connections);
    set(t, "idle_ms", 1..=DAY_MS, "ms", &mut limits.idle_ms);
    set(t, "drain_ms", 0..=DAY_MS, "ms", &mut limits.drain_ms);
    set(t, "table_elements", 1..=10_000_000, "", &mut limits.table_elements);
    set(t, "handles", 16..=1_000_000, "", &mut limits.handles);
    limits
}

fn models(t: &mut Table<'_>) -> Models {
    let mut models = Models::default();
    // Up to a pebibyte: beyond it a sum of bytes could overflow.
    set(t, "memory_budget_mib", 0..=1 << 30, "MiB", &mut models.memory_budget_mib);
    set(t, "idle_timeout_s", bounds::IDLE_S, "s", &mut models.idle_timeout_s);
    set(t, "load_ms", 1..=DAY_MS, "ms", &mut models.load_ms);
    set(t, "max_model_mib", 1..=1 << 20, "MiB", &mut models.max_model_mib);
    if let Some(allow) = t.boolean("allow_control") {
        models.allow_control = allow;
    }
    if let Some(allow) = t.boolean("allow_guest_models") {
        models.allow_guest_models = allow;
    }
    t.table("vet", |t| vet(t, &mut models.vet));
    models
}

fn vet(t: &mut Table<'_>, vet: &mut Vet) {
    set(t, "memory_mib", 64..=1 << 20, "MiB", &mut vet.memory_mib);
    set(t, "cpu_s", 1..=86_400, "s", &mut vet.cpu_s);
    set(t, "wall_ms", 100..=DAY_MS, "ms", &mut vet.wall_ms);
}

fn inference(t: &mut Table<'_>, dir: &Path) -> Inference {
    let mut inference = Inference::default();
    set(t, "threads", 0..=1024, "", &mut inference.threads);
    set(t, "queue_length", 1..=1_000_000, "", &mut inference.queue_length);
    if let Some(value) = t.value("backends") {
        inference.backends = backends(&value);
    }
    inference.onnxruntime_library = t.table("onnxruntime", |t| path(t, "library", dir)).flatten();
    inference.openvino_library = t.table("openvino", |t| path(t, "library", dir)).flatten();
    inference
}

fn backends(value: &Value<'_>) -> Vec<String> {
    let choices = BACKENDS.map(|name| (name, name));
    let mut names: Vec<String> = Vec::new();
    for item in value.items() {
        match item.choice(&choices) {
            Some(name) if names.iter().any(|known| known == name) => {
                item.refuse(&format!("`{}` lists `{name}` twice; remove one", value.path()));
            }
            Some(name) => names.push(name.to_owned()),
            None => {}
        }
    }
    if value.is_empty() {
        value.refuse(&format!("`{}` is empty; name at least one backend", value.path()));
    }
    names
}

fn outbound(t: &mut Table<'_>, dir: &Path) -> Outbound {
    let mut outbound = Outbound { ca: path(t, "ca", dir), ..Outbound::default() };
    if let Some(allow) = t.boolean("allow_private") {
        outbound.allow_private = allow;
    }
    if let Some(value) = t.value("allow") {
        outbound.allow = networks(&value);
    }
    if let Some(value) = t.value("deny") {
        outbound.deny = networks(&value);
    }
    set(t, "concurrency", bounds::CONCURRENCY, "", &mut outbound.concurrency);
    set(t, "instance_concurrency", bounds::CONCURRENCY, "", &mut outbound.instance_concurrency);
    set(t, "connect_ms", 1..=DAY_MS, "ms", &mut outbound.connect_ms);
    set(t, "first_byte_ms", 1..=DAY_MS, "ms", &mut outbound.first_byte_ms);
    set(t, "between_bytes_ms", 1..=DAY_MS, "ms", &mut outbound.between_bytes_ms);
    outbound
}

/// Networks, or single addresses.
fn networks(value: &Value<'_>) -> Vec<IpNet> {
    let mut networks = Vec::new();
    for item in value.items() {
        let Some(text) = item.string() else { continue };
        let address = || text.parse::<IpAddr>().ok().map(IpNet::from);
        match text.parse::<IpNet>().ok().or_else(address) {
            Some(network) => networks.push(network.trunc()),
            None => item.refuse(&format!(
                "`{}` must list networks such as `10.0.0.0/8` or addresses, not `{text}`",
                value.path()
            )),
        }
    }
    networks
}

fn engine(t: &mut Table<'_>) -> Engine {
    let mut engine = Engine::default();
    let keep = &mut engine.pool_keep_resident_kib;
    set(t, "pool_keep_resident_kib", 0..=1 << 20, "KiB", keep);
    let choices = [("auto", PagemapScan::Auto), ("off", PagemapScan::Off)];
    if let Some(scan) = t.choice("pagemap_scan", &choices) {
        engine.pagemap_scan = scan;
    }
    engine
}

fn log(t: &mut Table<'_>, dir: &Path) -> Log {
    let mut log = Log { dir: path(t, "dir", dir), ..Log::default() };
    let choices = [("text", LogFormat::Text), ("json", LogFormat::Json)];
    if let Some(format) = t.choice("format", &choices) {
        log.format = format;
    }
    if let Some(access) = t.boolean("access") {
        log.access = access;
    }
    set(t, "function_log_mib", 1..=1 << 20, "MiB", &mut log.function_log_mib);
    log
}

fn signatures(t: &mut Table<'_>, dir: &Path) -> Signatures {
    let mut signatures = Signatures::default();
    let choices = [("listed", Required::Listed), ("all", Required::All)];
    if let Some(required) = t.choice("required", &choices) {
        signatures.required = required;
    }
    if let Some(local_apps) = t.boolean("local_apps") {
        signatures.local_apps = local_apps;
    }
    if let Some(same_repository) = t.boolean("same_repository") {
        signatures.same_repository = same_repository;
    }
    let keys = t.entries("keys").into_iter();
    let keys = keys.filter_map(|(name, value)| Some((name, value.table(|t| signing_key(t, dir)).flatten()?)));
    signatures.keys = keys.collect::<BTreeMap<_, _>>();
    signatures
}

fn signing_key(t: &mut Table<'_>, dir: &Path) -> Option<SigningKey> {
    let file = t.required("file", "file = \"keys/team.pub\"").and_then(|value| value.string());
    let repositories = t.required("repositories", "repositories = [\"registry.example/team/*\"]")?;
    if repositories.is_empty() {
        let path = repositories.path();
        repositories
            .refuse(&format!("`{path}` is empty; name what the key may sign, `\"*\"` for everything"));
    }
    let mut patterns = Vec::new();
    for item in repositories.items() {
        let Some(pattern) = item.string() else { continue };
        if !is_pattern(&pattern) {
            let path = item.path();
            item.refuse(&format!(
                "`{path}` cannot have `{pattern}`; write a repository with its registry, such as \
                 `registry.example/team/app`, or `registry.example/team/*` for all below, or `*`"
            ));
        }
        patterns.push(pattern);
    }
    Some(SigningKey { file: dir.join(file?), repositories: patterns })
}

/// Whether a text means repositories: with a registry, without a tag, and with `*` only as its last part.
fn is_pattern(text: &str) -> bool {
    let whole = text.strip_suffix("/*").unwrap_or(text);
    let mut parts = whole.split('/');
    let registry = parts.next().unwrap_or_default();
    let names_registry = registry.contains(['.', ':']) || registry == "localhost";
    let plain = |part: &str| {
        !part.is_empty()
            && part.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-'))
    };
    let has_path = text.contains('/');
    text == "*" || (names_registry && has_path && !registry.contains('*') && parts.all(plain))
}

fn set<N: TryFrom<u64>>(
    t: &mut Table<'_>,
    key: &'static str,
    range: RangeInclusive<u64>,
    unit: &str,
    place: &mut N,
) {
    if let Some(number) = t.number(key, range, unit) {
        *place = number;
    }
}

/// A path; the empty string stands for none.
pub(super) fn path(t: &mut Table<'_>, key: &'static str, dir: &Path) -> Option<PathBuf> {
    let path = t.string(key)?;
    (!path.is_empty()).then(|| dir.join(path))
}

/// Whether a place where something could be served says that it is not.
pub(super) fn is_off(value: &Value<'_>) -> bool {
    matches!(value.as_str(), Some("" | "off"))
}

pub(super) fn address(value: &Value<'_>) -> Option<SocketAddr> {
    let text = value.string()?;
    let address = text.parse().ok();
    if address.is_none() {
        let path = value.path();
        let message =
            format!("`{path}` must be an IP address and a port such as `127.0.0.1:3000`, not `{text}`");
        value.refuse(&message);
    }
    address
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../host.example.toml"));

    /// The example with every key in force: a key is commented out as `#key = ...`, prose as `# ...`.
    fn example() -> String {
        let lines = EXAMPLE.lines().map(|line| match line.strip_prefix('#') {
            Some(key) if key.starts_with(|c: char| c.is_ascii_lowercase()) => key,
            _ => line,
        });
        lines.collect::<Vec<_>>().join("\n")
    }

    fn parse(text: &str) -> Result<Config, super::super::ConfigErrors> {
        Config::parse(text, Path::new("/etc/tenon/host.toml"))
    }

    #[test]
    fn the_example_shows_the_defaults() {
        assert_eq!(parse(&example()).unwrap(), Config::default());
        assert_eq!(parse(EXAMPLE).unwrap(), Config::default());
        assert_eq!(parse("").unwrap(), Config::default());
    }

    #[test]
    fn the_example_has_every_key() {
        let sections: Vec<_> = EXAMPLE.lines().filter(|line| line.starts_with('[')).collect();
        assert!(sections.len() > 7, "{sections:?}");
        for section in sections {
            let text = format!("{section}\nnothing-like-any-known-key = 1");
            let errors = parse(&text).unwrap_err().to_string();
            let (_, known) = errors.split_once("the keys here are ").expect(&errors);
            for key in known.split(", ") {
                let key = key.trim_matches('`');
                let path = section.trim_matches(['[', ']']);
                let is_key = example().contains(&format!("\n{key} = "));
                assert!(is_key || EXAMPLE.contains(&format!("\n[{path}.{key}]")), "{path}.{key}");
            }
        }
    }

    #[test]
    fn every_mistake_is_reported_with_its_line() {
        let text = r#"[listen]
http = "localhost"
admin = 3001
[limits]
memory_mib = 0
deadlin_ms = 5
deadline_ms = "30s"
concurrency = -1
[modles]
[inference]
backends = ["tract", "onnx-runtime", "tract"]
[inference.openvino]
libary = "x"
[registry]
insecure = ["http://localhost:5000"]
[engine]
pagemap_scan = "on"
[outbound]
deny = ["10.0.0.0/40"]
[log]
access = "yes""#;
        let errors = parse(text).unwrap_err();
        let expected = [
            (2, "`listen.http` must be an IP address and a port such as `127.0.0.1:3000`, not `localhost`"),
            (3, "`listen.admin` must be a string, not this integer"),
            (5, "`limits.memory_mib` must be a whole number from 1 to 65536 MiB"),
            (6, "unknown key `deadlin_ms` in `limits`; did you mean `deadline_ms`?"),
            (7, "`limits.deadline_ms` must be a whole number from 1 to 86400000 ms"),
            (8, "`limits.concurrency` must be a whole number from 1 to 10000"),
            (9, "unknown key `modles` in the file; did you mean `models`?"),
            (11, "`inference.backends` cannot be `onnx-runtime`; did you mean `onnxruntime`?"),
            (11, "`inference.backends` lists `tract` twice; remove one"),
            (13, "unknown key `libary` in `inference.openvino`; did you mean `library`?"),
            (
                15,
                "`registry.insecure` cannot be `http://localhost:5000`; give a registry's host and port such as `localhost:5000`",
            ),
            (17, "`engine.pagemap_scan` cannot be `on`; it may be `auto`, `off`"),
            (19, "`outbound.deny` must list networks such as `10.0.0.0/8` or addresses, not `10.0.0.0/40`"),
            (21, "`log.access` must be true or false, not this string"),
        ];
        let found: Vec<_> = errors.errors.iter().map(|error| (error.line, error.message.as_str())).collect();
        assert_eq!(found, expected);
        assert!(errors.to_string().starts_with("/etc/tenon/host.toml:2: `listen.http`"));
    }

    #[test]
    fn values_are_taken() {
        let check = |text: &str, change: &dyn Fn(&mut Config)| {
            let mut expected = Config::default();
            change(&mut expected);
            assert_eq!(parse(text).unwrap(), expected, "{text}");
        };
        check("listen.admin = \"\"", &|c| c.listen.admin = None);
        check("listen.admin = \"off\"", &|c| c.listen.admin = None);
        check("listen.http = \"[::1]:80\"", &|c| {
            c.listen.http = "[::1]:80".parse().unwrap();
        });
        check("cache.dir = \"c\"", &|c| c.cache.dir = Some("/etc/tenon/c".into()));
        check("log.dir = \"/l\"", &|c| c.log.dir = Some("/l".into()));
        check("models.vet = { cpu_s = 7 }", &|c| c.models.vet.cpu_s = 7);
        check("inference.backends = [\"rten\"]", &|c| c.inference.backends = vec!["rten".into()]);
        check("inference.openvino.library = \"/o.so\"", &|c| {
            c.inference.openvino_library = Some("/o.so".into());
        });
        check("outbound.allow = [\"10.1.2.3/8\", \"::1\"]", &|c| {
            c.outbound.allow = vec!["10.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()];
        });
        check("log.format = \"json\"", &|c| c.log.format = LogFormat::Json);
        check("registry.insecure = [\"Localhost:5000\"]", &|c| {
            c.registry.insecure = vec!["localhost:5000".into()];
        });
        check("registry.ca = \"ca.pem\"", &|c| c.registry.ca = Some("/etc/tenon/ca.pem".into()));
        check("limits.queue_length = 0", &|c| c.limits.queue_length = 0);
    }

    #[test]
    fn key_value_stores_are_read_and_no_password_is_shown() {
        let text = "[key_value]\ndir = \"kv\"\nmax_mib = 7\n[key_value.stores.sessions]\ntype = \"redis\"\n\
                    url = \"redis://:hunter2@cache:6379/3\"\nshared = true\n[key_value.stores.notes]\n";
        let config = parse(text).unwrap();
        let found = &config.key_value;
        assert_eq!((found.dir.as_deref(), found.max_mib), (Some(Path::new("/etc/tenon/kv")), 7));
        let names: Vec<_> = found.stores.keys().map(String::as_str).collect();
        assert_eq!(names, ["default", "notes", "sessions"]);
        assert_eq!(found.stores["notes"], KeyValueStore::default());
        let url = Secret("redis://:hunter2@cache:6379/3".to_owned());
        assert_eq!(
            found.stores["sessions"],
            KeyValueStore { place: KeyValuePlace::Redis(url), shared: true }
        );
        assert!(!format!("{config:?}").contains("hunter2"));
        let check = |store: &str, expected: &str| {
            let errors = parse(&format!("[key_value.stores.{store}")).unwrap_err().to_string();
            assert!(errors.contains(expected) && !errors.contains("hunter2"), "{errors}");
        };
        check("a]\ntype = \"redis\"", "lacks `url`");
        check("a]\ntype = \"sqlite\"", "it may be `embedded`, `redis`");
        check("a]\nurl = \"redis://:hunter2@h\"", "is for stores of `type = \"redis\"`");
        check("a]\ntype = \"redis\"\nurl = \"rediss://:hunter2@h\"", "must be a URL");
        check("a]\ntype = \"redis\"\nurl = \"redis://:hunter2@h:port\"", "must be a URL");
        check("\"a/b\"]", "cannot be named `a/b`");
    }

    #[test]
    fn keys_of_signatures_are_read() {
        let text = "[signatures]\nrequired = \"all\"\nlocal_apps = false\n[signatures.keys.team]\n\
                    file = \"team.pub\"\nrepositories = [\"registry.example:5000/team/*\", \"*\"]";
        let signatures = parse(text).unwrap().signatures;
        assert_eq!((signatures.required, signatures.local_apps), (Required::All, false));
        let key = &signatures.keys["team"];
        assert_eq!(key.file, Path::new("/etc/tenon/team.pub"));
        assert_eq!(key.repositories, ["registry.example:5000/team/*", "*"]);
        let check = |key: &str, expected: &str| {
            let errors = parse(&format!("[signatures.keys.team]\n{key}")).unwrap_err().to_string();
            assert!(errors.contains(expected), "{key}: {errors}");
        };
        check("", "lacks `file`");
        check("file = \"a\"", "lacks `repositories`");
        check("file = \"a\"\nrepositories = []", "is empty");
        for pattern in
            ["", "team/app", "registry.example", "registry.example/*/app", "registry.example/App", "a.b/c:1"]
        {
            check(
                &format!("file = \"a\"\nrepositories = [\"{pattern}\"]"),
                "write a repository with its registry",
            );
        }
    }

    #[test]
    fn one_address_cannot_serve_twice() {
        let text = "listen.http = \"127.0.0.1:3001\"";
        assert!(parse(text).unwrap_err().to_string().contains("a port of its own"));
    }
}
