//! What callers are told of models, and the model repository: facts in the messages of gRPC.

use super::super::Server;
use super::super::oip::{model, repository};
use super::super::status::AnswerError;
use super::call::entry_name;
use super::proto::inference as pb;
use super::proto::inference::model_config::SchedulingChoice;
use super::proto::inference::model_metadata_response::TensorMetadata;
use super::proto::inference::model_version_policy::{Latest, PolicyChoice};
use super::proto::inference::repository_index_response::ModelIndex;
use super::wire::Fields;
use crate::backend::Port;
use crate::function::statistics::Spent;
use crate::function::{Function, Snapshot};

pub(super) fn server() -> pb::ServerMetadataResponse {
    pb::ServerMetadataResponse {
        name: model::NAME.to_owned(),
        version: model::VERSION.to_owned(),
        extensions: model::EXTENSIONS.iter().map(|name| (*name).to_owned()).collect(),
    }
}

/// A model at one of the `versions` that there are.
pub(super) fn metadata(function: &Function, versions: &[&str]) -> pb::ModelMetadataResponse {
    let (inputs, outputs) = model::ports(function);
    let tensor = |port: &Port| TensorMetadata {
        name: port.name.clone(),
        datatype: port.datatype.name().to_owned(),
        shape: model::shape(port),
    };
    let properties = model::properties(function).into_iter();
    pb::ModelMetadataResponse {
        name: function.model.clone(),
        versions: versions.iter().map(|version| (*version).to_owned()).collect(),
        platform: model::platform(function),
        inputs: inputs.iter().map(tensor).collect(),
        outputs: outputs.iter().map(tensor).collect(),
        properties: properties.map(|(name, value)| (name.to_owned(), value)).collect(),
    }
}

pub(super) fn config(function: &Function) -> pb::ModelConfigResponse {
    let (inputs, outputs) = model::ports(function);
    let data_type = |port: &Port| {
        let name = model::config_type(port.datatype);
        pb::DataType::from_str_name(name).unwrap_or(pb::DataType::TypeInvalid).into()
    };
    let input = |port: &Port| pb::ModelInput {
        name: port.name.clone(),
        data_type: data_type(port),
        dims: model::config_dims(port, function),
        ..pb::ModelInput::default()
    };
    let output = |port: &Port| pb::ModelOutput {
        name: port.name.clone(),
        data_type: data_type(port),
        dims: model::config_dims(port, function),
        ..pb::ModelOutput::default()
    };
    let size = |size: usize| i32::try_from(size).unwrap_or(i32::MAX);
    let batching = model::batching(function).map(|batching| {
        SchedulingChoice::DynamicBatching(pb::ModelDynamicBatching {
            preferred_batch_size: vec![size(batching.max_size)],
            max_queue_delay_microseconds: u64::try_from(batching.max_delay.as_micros()).unwrap_or(u64::MAX),
            ..pb::ModelDynamicBatching::default()
        })
    });
    let latest = PolicyChoice::Latest(Latest { num_versions: 1 });
    let config = pb::ModelConfig {
        name: function.model.clone(),
        platform: model::platform(function),
        backend: model::backend(function).to_owned(),
        version_policy: Some(pb::ModelVersionPolicy { policy_choice: Some(latest) }),
        max_batch_size: size(model::max_batch_size(function)),
        input: inputs.iter().map(input).collect(),
        output: outputs.iter().map(output).collect(),
        scheduling_choice: batching,
        model_transaction_policy: Some(pb::ModelTransactionPolicy {
            decoupled: function.revision.program.streams(),
        }),
        response_cache: Some(pb::ModelResponseCache { enable: function.cache.is_some() }),
        ..pb::ModelConfig::default()
    };
    pb::ModelConfigResponse { config: Some(config) }
}

pub(super) fn statistics(function: &Function) -> pb::ModelStatistics {
    let counts = function.statistics.read();
    let spent = |Spent { count, ns }: Spent| Some(pb::StatisticDuration { count, ns });
    let batches = counts.batches.iter().map(|(rows, took)| pb::InferBatchStatistics {
        batch_size: *rows as u64,
        compute_input: spent(Spent::default()),
        compute_infer: spent(*took),
        compute_output: spent(Spent::default()),
    });
    pb::ModelStatistics {
        name: function.model.clone(),
        version: function.version.clone(),
        last_inference: counts.last_ms,
        inference_count: counts.inferences(),
        execution_count: counts.executions,
        batch_stats: batches.collect(),
        inference_stats: Some(pb::InferStatistics {
            success: spent(counts.success),
            fail: spent(counts.fail),
            queue: spent(counts.queue),
            compute_input: spent(counts.compute_input),
            compute_infer: spent(counts.compute_infer),
            compute_output: spent(counts.compute_output),
            cache_hit: spent(counts.cache_hit),
            cache_miss: spent(counts.cache_miss),
        }),
    }
}

/// The models that there are, or those that take calls.
///
/// # Errors
/// Where another repository is asked for.
pub(super) fn index(
    server: &Server,
    snapshot: &Snapshot,
    request: &pb::RepositoryIndexRequest,
) -> Result<pb::RepositoryIndexResponse, AnswerError> {
    only_repository(&request.repository_name)?;
    let models = snapshot.models();
    let models = models.filter(|function| !request.ready || server.is_model_ready(function));
    let models = models.map(|function| {
        let (state, reason) = repository::state(server, function);
        ModelIndex {
            name: function.model.clone(),
            version: function.version.clone(),
            state: state.to_owned(),
            reason: reason.to_owned(),
        }
    });
    Ok(pb::RepositoryIndexResponse { models: models.collect() })
}

/// What a request to load or unload a model says: of its parameters the names, since no value of one is ever taken.
pub(super) struct Control<'a> {
    pub(super) model: &'a str,
    pub(super) parameters: Vec<&'a str>,
}

impl<'a> Control<'a> {
    /// # Errors
    /// Where the message is not such a request, or asks for another repository.
    pub(super) fn read(message: &'a [u8]) -> Result<Control<'a>, AnswerError> {
        let mut control = Control { model: "", parameters: Vec::new() };
        for field in Fields::few(message) {
            match field? {
                (1, value) => only_repository(value.text("repository_name")?)?,
                (2, value) => control.model = value.text("model_name")?,
                // The first that is not known is refused: more than a few are never looked at.
                (3, value) if control.parameters.len() < 4 => {
                    control.parameters.push(entry_name(value.bytes("parameters")?)?);
                }
                _ => {}
            }
        }
        Ok(control)
    }
}

fn only_repository(name: &str) -> Result<(), AnswerError> {
    match name {
        "" => Ok(()),
        name => Err(AnswerError::InvalidInput(format!(
            "there is no repository `{name}`; there is one, which has no name: leave `repository_name` empty"
        ))),
    }
}
