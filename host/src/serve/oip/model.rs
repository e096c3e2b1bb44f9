//! What the protocol's callers are told of the server and of a model: facts that both of its forms share, and the JSON
//! of one of them.

use serde_json::{Map, Value, json};

use crate::backend::Port;
use crate::function::Function;
use crate::function::statistics::Spent;
use crate::nn::models::metadata_shape;
use crate::tensor::Datatype;

/// The server's name in the protocol.
pub const NAME: &str = "tenon";
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What is spoken beside the protocol itself.
pub const EXTENSIONS: [&str; 8] = [
    "binary_tensor_data",
    "classification",
    "generate",
    "model_configuration",
    "model_repository",
    "parameters",
    "schedule_policy",
    "statistics",
];

/// The inputs of a function, and its outputs.
pub fn ports(function: &Function) -> (&[Port], &[Port]) {
    match &function.revision.description {
        Some(description) => (&description.signature.inputs, &description.signature.outputs),
        None => (&[], &[]),
    }
}

/// A shape as the protocol tells it: -1 for a dimension that the caller chooses, also where not even the rank is known.
pub fn shape(port: &Port) -> Vec<i64> {
    port.shape.as_deref().map_or_else(|| vec![-1], metadata_shape)
}

/// What runs the model, and its format: `<project>_<format>`.
pub fn platform(function: &Function) -> String {
    match served_model(function) {
        Some(model) => format!("{}_{}", model.backend, model.encoding),
        None => "tenon_wasm".to_owned(),
    }
}

/// The backend of a model that is served as it is; for a function with code of its own it is the host.
pub fn backend(function: &Function) -> &'static str {
    served_model(function).map_or(NAME, |model| model.backend)
}

fn served_model(function: &Function) -> Option<&crate::function::revision::ModelSummary> {
    if function.revision.program.is_model() { function.revision.models.first() } else { None }
}

/// What else is known of a model, as text.
pub fn properties(function: &Function) -> Vec<(&'static str, String)> {
    let revision = &function.revision;
    let mut properties =
        vec![("function", function.name.clone()), ("digest", format!("sha256:{}", revision.digest))];
    if let Some(model) = served_model(function) {
        properties.push(("backend", model.backend.to_owned()));
        properties.push(("target", model.target.to_owned()));
    }
    properties
}

/// The rows that the host joins at most into one run; 0 where it joins none.
pub fn max_batch_size(function: &Function) -> usize {
    batching(function).map_or(0, |batching| batching.max_size)
}

/// How calls of a model that is served as it is are joined. What a function with code does with its models is its own.
pub fn batching(function: &Function) -> Option<crate::backend::batch::Batching> {
    served_model(function).and_then(|model| model.batching)
}

/// The type's name in a model configuration.
pub fn config_type(datatype: Datatype) -> &'static str {
    match datatype {
        Datatype::Bool => "TYPE_BOOL",
        Datatype::Uint8 => "TYPE_UINT8",
        Datatype::Uint16 => "TYPE_UINT16",
        Datatype::Uint32 => "TYPE_UINT32",
        Datatype::Uint64 => "TYPE_UINT64",
        Datatype::Int8 => "TYPE_INT8",
        Datatype::Int16 => "TYPE_INT16",
        Datatype::Int32 => "TYPE_INT32",
        Datatype::Int64 => "TYPE_INT64",
        Datatype::Fp16 => "TYPE_FP16",
        Datatype::Bf16 => "TYPE_BF16",
        Datatype::Fp32 => "TYPE_FP32",
        Datatype::Fp64 => "TYPE_FP64",
        Datatype::Bytes => "TYPE_STRING",
    }
}

/// A shape in a model configuration, which leaves the rows out where they are joined.
pub fn config_dims(port: &Port, function: &Function) -> Vec<i64> {
    let shape = shape(port);
    if max_batch_size(function) > 0 { shape.get(1..).unwrap_or_default().to_vec() } else { shape }
}

pub(super) fn server() -> Value {
    json!({ "name": NAME, "version": VERSION, "extensions": EXTENSIONS })
}

/// A model at one of the `versions` that there are.
pub(super) fn metadata(function: &Function, versions: &[&str]) -> Value {
    let (inputs, outputs) = ports(function);
    let tensors = |ports: &[Port]| {
        let tensor = |port: &Port| json!({ "name": port.name, "datatype": port.datatype.name(), "shape": shape(port) });
        ports.iter().map(tensor).collect::<Vec<_>>()
    };
    let properties: Map<_, _> =
        properties(function).into_iter().map(|(name, value)| (name.to_owned(), Value::from(value))).collect();
    json!({
        "name": function.model,
        "versions": versions,
        "platform": platform(function),
        "inputs": tensors(inputs),
        "outputs": tensors(outputs),
        "properties": properties,
    })
}

/// The model configuration, as far as it says something of a function.
pub(super) fn config(function: &Function) -> Value {
    let (inputs, outputs) = ports(function);
    let tensor = |port: &Port| {
        json!({
            "name": port.name,
            "data_type": config_type(port.datatype),
            "dims": config_dims(port, function),
        })
    };
    let input = |port: &Port| {
        let mut input = tensor(port);
        input["optional"] = false.into();
        input["is_shape_tensor"] = false.into();
        input
    };
    let mut config = json!({
        "name": function.model,
        "platform": platform(function),
        "backend": backend(function),
        "version_policy": { "latest": { "num_versions": 1 } },
        "max_batch_size": max_batch_size(function),
        "input": inputs.iter().map(input).collect::<Vec<_>>(),
        "output": outputs.iter().map(tensor).collect::<Vec<_>>(),
        "model_transaction_policy": { "decoupled": function.revision.program.streams() },
        "response_cache": { "enable": function.cache.is_some() },
    });
    if let Some(batching) = batching(function) {
        let delay = u64::try_from(batching.max_delay.as_micros()).unwrap_or(u64::MAX);
        config["dynamic_batching"] = json!({
            "preferred_batch_size": [batching.max_size],
            "max_queue_delay_microseconds": delay,
        });
    }
    config
}

/// The calls of a function since it was deployed.
pub(super) fn statistics(function: &Function) -> Value {
    let counts = function.statistics.read();
    let spent = |spent: Spent| json!({ "count": spent.count, "ns": spent.ns });
    let nothing = spent(Spent::default());
    let batches = counts.batches.iter().map(|(rows, took)| {
        json!({
            "batch_size": rows,
            "compute_input": nothing,
            "compute_infer": spent(*took),
            "compute_output": nothing,
        })
    });
    json!({
        "name": function.model,
        "version": function.version,
        "last_inference": counts.last_ms,
        "inference_count": counts.inferences(),
        "execution_count": counts.executions,
        "inference_stats": {
            "success": spent(counts.success),
            "fail": spent(counts.fail),
            "queue": spent(counts.queue),
            "compute_input": spent(counts.compute_input),
            "compute_infer": spent(counts.compute_infer),
            "compute_output": spent(counts.compute_output),
            "cache_hit": spent(counts.cache_hit),
            "cache_miss": spent(counts.cache_miss),
        },
        "batch_stats": batches.collect::<Vec<_>>(),
    })
}
