//! Every metric that the host keeps, and the log that it writes.

pub mod observations;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

/// The metrics of one host. Cheap to share; what a request touches is looked up once per function.
pub struct Telemetry {
    registry: Registry,
    requests: Family<FunctionLabel, Counter>,
    errors: Family<ErrorLabels, Counter>,
    duration: Family<FunctionLabel, Histogram>,
    queue: Family<FunctionLabel, Histogram>,
    run: Family<FunctionLabel, Histogram>,
    inferences: Family<ModelLabels, Counter>,
    infer: Family<ModelLabels, Histogram>,
    infer_queue: Family<ModelLabels, Histogram>,
    rows: Family<ModelLabels, Histogram>,
    cold_starts: Family<FunctionLabel, Counter>,
    cache_hits: Family<FunctionLabel, Counter>,
    cache_misses: Family<FunctionLabel, Counter>,
    shadowed: Family<ShadowLabels, Counter>,
    loads: Family<BackendLabel, Counter>,
    load_failures: Family<BackendLabel, Counter>,
    load: Family<BackendLabel, Histogram>,
    evictions: Family<ReasonLabel, Counter>,
    /// Instances that run now.
    pub instances: Gauge,
    /// Requests that wait for an instance.
    pub queued: Gauge,
    /// Open connections.
    pub connections: Gauge,
    /// Graphs in memory.
    pub graphs: Gauge,
    /// What the graphs in memory cost, as measured when each was first vetted.
    pub graph_bytes: Gauge,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FunctionLabel {
    function: String,
    revision: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ErrorLabels {
    function: String,
    revision: u64,
    error: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ShadowLabels {
    function: String,
    revision: u64,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ModelLabels {
    function: String,
    revision: u64,
    model: String,
    backend: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BackendLabel {
    backend: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

/// The metrics of one function, looked up once.
#[derive(Clone)]
pub struct FunctionMetrics {
    label: FunctionLabel,
    /// The errors that were counted.
    errors: Arc<Mutex<BTreeSet<&'static str>>>,
    /// Requests that were answered, whatever the answer.
    pub requests: Counter,
    /// From the last byte of a request's head to the start of its answer.
    pub duration: Histogram,
    /// Waiting for an instance to be allowed.
    pub queue: Histogram,
    /// Instantiation, guest and inference together.
    pub run: Histogram,
    /// Calls that had to load a graph.
    pub cold_starts: Counter,
    /// Calls that were answered from the function's cache, and those that it had no answer for.
    pub cache_hits: Counter,
    pub cache_misses: Counter,
}

/// The metrics of one model as one function uses it.
#[derive(Clone)]
pub struct ModelMetrics {
    /// Inferences that were run.
    pub inferences: Counter,
    /// From the guest's request to the answer of the backend, waiting included.
    pub infer: Histogram,
    /// Of that, waiting until the backend began.
    pub queue: Histogram,
    /// Rows of each run; 1 where calls are not joined.
    pub rows: Histogram,
}

impl Default for Telemetry {
    fn default() -> Self {
        Telemetry::new()
    }
}

impl Telemetry {
    pub fn new() -> Telemetry {
        let mut telemetry = Telemetry {
            registry: Registry::with_prefix("tenon"),
            requests: Family::default(),
            errors: Family::default(),
            duration: Family::new_with_constructor(seconds),
            queue: Family::new_with_constructor(seconds),
            run: Family::new_with_constructor(seconds),
            inferences: Family::default(),
            infer: Family::new_with_constructor(seconds),
            infer_queue: Family::new_with_constructor(seconds),
            rows: Family::new_with_constructor(rows),
            cold_starts: Family::default(),
            cache_hits: Family::default(),
            cache_misses: Family::default(),
            shadowed: Family::default(),
            loads: Family::default(),
            load_failures: Family::default(),
            load: Family::new_with_constructor(seconds),
            evictions: Family::default(),
            instances: Gauge::default(),
            queued: Gauge::default(),
            connections: Gauge::default(),
            graphs: Gauge::default(),
            graph_bytes: Gauge::default(),
        };
        telemetry.register_calls();
        telemetry.register_graphs();
        telemetry
    }

    fn register_calls(&mut self) {
        let registry = &mut self.registry;
        registry.register("requests", "Requests answered, whatever the answer", self.requests.clone());
        registry.register(
            "request_errors",
            "Requests answered with an error, by its name",
            self.errors.clone(),
        );
        let mut timed = |name, help, metric: &Family<FunctionLabel, Histogram>| {
            registry.register_with_unit(name, help, Unit::Seconds, metric.clone());
        };
        timed("request_duration", "From the head of a request to the head of its answer", &self.duration);
        timed("queue_duration", "Waiting until an instance was allowed", &self.queue);
        timed("run_duration", "Instantiation, guest and inference together", &self.run);
        registry.register("cold_starts", "Calls that had to load a graph", self.cold_starts.clone());
        registry.register("cache_hits", "Calls answered from a function's cache", self.cache_hits.clone());
        registry.register(
            "cache_misses",
            "Calls that a function's cache had no answer for",
            self.cache_misses.clone(),
        );
        registry.register("instances", "Instances that run now", self.instances.clone());
        registry.register("queued_requests", "Requests that wait for an instance", self.queued.clone());
        registry.register("connections", "Open connections", self.connections.clone());
    }

    fn register_graphs(&mut self) {
        let registry = &mut self.registry;
        registry.register("inferences", "Inferences run", self.inferences.clone());
        registry.register_with_unit(
            "infer_duration",
            "From a guest's request to the backend's answer, waiting included",
            Unit::Seconds,
            self.infer.clone(),
        );
        registry.register_with_unit(
            "infer_queue_duration",
            "Waiting until the backend began with an inference",
            Unit::Seconds,
            self.infer_queue.clone(),
        );
        registry.register("infer_rows", "Rows of each run of a graph, batches as one", self.rows.clone());
        registry.register("graph_loads", "Graphs loaded into memory", self.loads.clone());
        registry.register(
            "graph_load_failures",
            "Graphs that could not be loaded",
            self.load_failures.clone(),
        );
        registry.register_with_unit(
            "graph_load_duration",
            "Loading a graph into memory",
            Unit::Seconds,
            self.load.clone(),
        );
        registry.register(
            "shadow_calls",
            "Live calls of the stable revision that a candidate, whose revision this is, was to get as well, by result",
            self.shadowed.clone(),
        );
        registry.register("graph_evictions", "Graphs that left memory, by reason", self.evictions.clone());
        registry.register("graphs", "Graphs in memory", self.graphs.clone());
        registry.register_with_unit(
            "graph_memory",
            "Memory of the graphs that are loaded, as measured when each was vetted",
            Unit::Bytes,
            self.graph_bytes.clone(),
        );
    }

    /// The metrics of the function `name` at a revision; they stay until they are [forgotten](Self::forget).
    pub fn function(&self, name: &str, revision: u64) -> FunctionMetrics {
        let label = FunctionLabel { function: name.to_owned(), revision };
        FunctionMetrics {
            requests: self.requests.get_or_create_owned(&label),
            duration: self.duration.get_or_create_owned(&label),
            queue: self.queue.get_or_create_owned(&label),
            run: self.run.get_or_create_owned(&label),
            cold_starts: self.cold_starts.get_or_create_owned(&label),
            cache_hits: self.cache_hits.get_or_create_owned(&label),
            cache_misses: self.cache_misses.get_or_create_owned(&label),
            errors: Arc::default(),
            label,
        }
    }

    /// The metrics of a model as `function` uses it at a revision.
    pub fn model(&self, function: &str, revision: u64, model: &str, backend: &'static str) -> ModelMetrics {
        let labels =
            ModelLabels { function: function.to_owned(), revision, model: model.to_owned(), backend };
        ModelMetrics {
            inferences: self.inferences.get_or_create_owned(&labels),
            infer: self.infer.get_or_create_owned(&labels),
            queue: self.infer_queue.get_or_create_owned(&labels),
            rows: self.rows.get_or_create_owned(&labels),
        }
    }

    /// Lets go of the metrics of a revision that is no longer served; `models` are those that it used, with their
    /// backends.
    pub fn forget<'a>(
        &self,
        metrics: &FunctionMetrics,
        models: impl Iterator<Item = (&'a str, &'static str)>,
    ) {
        let label = &metrics.label;
        self.requests.remove(label);
        self.duration.remove(label);
        self.queue.remove(label);
        self.run.remove(label);
        self.cold_starts.remove(label);
        self.cache_hits.remove(label);
        self.cache_misses.remove(label);
        for error in metrics.errors.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let (function, revision) = (label.function.clone(), label.revision);
            self.errors.remove(&ErrorLabels { function, revision, error });
        }
        for (model, backend) in models {
            let (function, revision) = (label.function.clone(), label.revision);
            let labels = ModelLabels { function, revision, model: model.to_owned(), backend };
            self.inferences.remove(&labels);
            self.infer.remove(&labels);
            self.infer_queue.remove(&labels);
            self.rows.remove(&labels);
        }
    }

    /// Counts of the live calls that a candidate got as well, by one of `results` each; they stay until they are
    /// [forgotten](Self::forget_shadow).
    pub fn shadow<const N: usize>(
        &self,
        function: &str,
        revision: u64,
        results: [&'static str; N],
    ) -> [Counter; N] {
        results.map(|result| {
            self.shadowed.get_or_create_owned(&ShadowLabels {
                function: function.to_owned(),
                revision,
                result,
            })
        })
    }

    pub fn forget_shadow(&self, function: &str, revision: u64, results: &[&'static str]) {
        for result in results {
            self.shadowed.remove(&ShadowLabels { function: function.to_owned(), revision, result });
        }
    }

    /// Counts an error answer of a function; `error` is a name of the error table.
    pub fn error(&self, function: &FunctionMetrics, error: &'static str) {
        let (name, revision) = (function.label.function.clone(), function.label.revision);
        self.errors.get_or_create(&ErrorLabels { function: name, revision, error }).inc();
        function.errors.lock().unwrap_or_else(PoisonError::into_inner).insert(error);
    }

    pub fn loaded(&self, backend: &'static str, took: Duration, cost_bytes: u64) {
        let label = BackendLabel { backend };
        self.loads.get_or_create(&label).inc();
        self.load.get_or_create(&label).observe(took.as_secs_f64());
        self.graphs.inc();
        self.graph_bytes.inc_by(i64::try_from(cost_bytes).unwrap_or(i64::MAX));
    }

    pub fn load_failed(&self, backend: &'static str) {
        self.load_failures.get_or_create(&BackendLabel { backend }).inc();
    }

    /// Counts a graph that left memory; `reason` is `idle` or `budget`.
    pub fn evicted(&self, reason: &'static str, cost_bytes: u64) {
        self.evictions.get_or_create(&ReasonLabel { reason }).inc();
        self.graphs.dec();
        self.graph_bytes.dec_by(i64::try_from(cost_bytes).unwrap_or(i64::MAX));
    }

    /// Everything, in the OpenMetrics text format that Prometheus reads.
    pub fn render(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("writing to a String does not fail");
        text
    }
}

/// From one row to the largest batch, in steps of 2.
fn rows() -> Histogram {
    Histogram::new(exponential_buckets(1.0, 2.0, 11))
}

fn seconds() -> Histogram {
    // 50 microseconds to 54 seconds, in steps of 2: a cold start and a hello both land inside.
    Histogram::new(exponential_buckets(50e-6, 2.0, 21))
}

/// Starts the log on standard error: people's text, or one JSON object a line.
///
/// `filter` is in the syntax of `tracing`'s environment filter; what it cannot read is treated as `info`.
pub fn start_log(json: bool, filter: &str) {
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_new(filter).unwrap_or_else(|_| EnvFilter::new("info"));
    let people = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let log =
        tracing_subscriber::fmt().with_env_filter(filter).with_ansi(people).with_writer(std::io::stderr);
    // A second start, as in tests with several hosts, keeps the first log.
    let _ = if json { log.json().flatten_event(true).try_init() } else { log.with_target(false).try_init() };
}
