//! A model over gRPC: its metadata, and inference with typed and raw contents.

use std::collections::BTreeMap;

use prost::Message as _;
use serde_json::{Value, json};

use super::server::grpc;
use super::{CANCELLED, DEADLINE_EXCEEDED, NOT_FOUND, OK, SERVICE, Status, UNIMPLEMENTED, pb};
use crate::cli::conformance::check::{Check, Level, Problem, Verdict};
use crate::cli::conformance::model::Model;
use crate::cli::conformance::server::NO_MODEL;
use crate::cli::conformance::tensor::{Element, Kind, Port, Tensor};

pub(super) const INFERENCE: &str = "gRPC Inference";
const EXTENSION: Level = Level::Extension;

type Parameter = pb::infer_parameter::ParameterChoice;

pub(in crate::cli::conformance) const CHECKS: &[Check<Model>] = &[
    check(
        "grpc.model.ready",
        Level::Required,
        "gRPC Health",
        "ModelReady answers that the model is ready",
        |model| {
            let request = pb::ModelReadyRequest { name: model.name.clone(), version: String::new() };
            let answer: pb::ModelReadyResponse = grpc(&model.server)?.ok("ModelReady", &request)?;
            if answer.ready { Ok(()) } else { Err(Problem::wrong("ready", format!("{answer:?}"))) }
        },
    ),
    check(
        "grpc.model.metadata",
        Level::Required,
        "gRPC Metadata",
        "ModelMetadata answers what the metadata over HTTP says",
        metadata,
    ),
    check(
        "grpc.model.unknown",
        Level::Required,
        "gRPC Metadata",
        "the metadata of a model or version that is not there, and inference with it, are refused",
        |model| unknown(model)?.iter().try_for_each(Status::refused),
    ),
    check(
        "grpc.model.unknown.code",
        Level::Advised,
        "gRPC Metadata",
        "a model or version that is not there is NOT_FOUND",
        |model| unknown(model)?.iter().try_for_each(|status| status.expect(NOT_FOUND)),
    ),
    check(
        "grpc.infer.typed",
        Level::Required,
        INFERENCE,
        "typed contents are answered as over HTTP",
        |model| agrees(model, &typed(model)?),
    ),
    check("grpc.infer.raw", Level::Required, INFERENCE, "raw contents are answered as over HTTP", |model| {
        agrees(model, &raw(model)?)
    }),
    check("grpc.infer.form", Level::Advised, INFERENCE, "raw contents are answered raw", |model| {
        let answer = call(model, &raw(model)?)?;
        match answer.raw_output_contents.len() == answer.outputs.len() {
            true => Ok(()),
            false => Err(Problem::wrong("an entry of `raw_output_contents` for each output", told(&answer))),
        }
    }),
    check("grpc.infer.id", Level::Required, INFERENCE, "the id and the model's name come back", |model| {
        identified(model, "42")
    }),
    check("grpc.infer.id.odd", Level::Advised, INFERENCE, "an id comes back, whatever it holds", |model| {
        ["a b/c?&\"\\", "größe"].into_iter().try_for_each(|id| identified(model, id))
    }),
    check(
        "grpc.infer.version",
        Level::Required,
        INFERENCE,
        "each version can be called by its name",
        |model| {
            let versions = model.versions();
            if versions.is_empty() {
                return Err(Problem::skip("the metadata lists no versions"));
            }
            versions.into_iter().try_for_each(|model_version| {
                call(model, &pb::ModelInferRequest { model_version, ..raw(model)? }).map(drop)
            })
        },
    ),
    check("grpc.infer.outputs", Level::Required, INFERENCE, "each output can be asked for alone", |model| {
        model.sample()?.outputs.iter().try_for_each(|output| {
            let answer = call(model, &wanting(raw(model)?, &output.name))?;
            match answer.outputs.as_slice() {
                [only] if only.name == output.name => Ok(()),
                _ => Err(Problem::wrong(format!("`{}` alone", output.name), told(&answer))),
            }
        })
    }),
    check(
        "grpc.infer.parameters",
        Level::Advised,
        "gRPC Inference, Parameters",
        "parameters that the server does not know do no harm",
        |model| {
            let values = [
                ("tenon_text", Parameter::StringParam("a".to_owned())),
                ("tenon_whole", Parameter::Int64Param(7)),
                ("tenon_truth", Parameter::BoolParam(true)),
            ];
            let own: BTreeMap<_, _> = values
                .into_iter()
                .map(|(name, value)| (name.to_owned(), pb::InferParameter { parameter_choice: Some(value) }))
                .collect();
            let mut request = pb::ModelInferRequest { parameters: own.clone(), ..raw(model)? };
            request.inputs[0].parameters = own;
            agrees(model, &request)
        },
    ),
    check(
        "grpc.infer.deadline",
        Level::Advised,
        "gRPC over HTTP/2",
        "a call whose deadline has passed is not answered as if it had not",
        |model| {
            let request = raw(model)?.encode_to_vec();
            let path = format!("{SERVICE}ModelInfer");
            let reply = grpc(&model.server)?.exchange(&path, &[("grpc-timeout", "1u")], &[request])?;
            match reply.status.code {
                DEADLINE_EXCEEDED | CANCELLED => Ok(()),
                _ => Err(Problem::wrong("DEADLINE_EXCEEDED", reply.status.told())),
            }
        },
    ),
    check(
        "grpc.stream",
        EXTENSION,
        "Triton's ModelStreamInfer",
        "requests on one stream are answered in order",
        |model| {
            let ids = ["1", "2", "3"];
            let requests = ids
                .map(|id| raw(model).map(|request| pb::ModelInferRequest { id: id.to_owned(), ..request }));
            let requests = requests.into_iter().collect::<Result<Vec<_>, _>>()?;
            let answers = stream(model, &requests)?;
            let got: Vec<_> =
                answers.iter().map(|answer| answer.infer_response.clone().unwrap_or_default().id).collect();
            if got != ids {
                return Err(Problem::wrong(ids.join(", "), got.join(", ")));
            }
            answers.iter().try_for_each(|answer| {
                model.agrees(&outputs(&answer.infer_response.clone().unwrap_or_default())?)
            })
        },
    ),
    check(
        "grpc.stream.error",
        EXTENSION,
        "Triton's ModelStreamInfer",
        "a wrong request on a stream is answered by `error_message`, and the stream goes on",
        |model| {
            let good = raw(model)?;
            let mut wrong = good.clone();
            "tenon-conformance-no-such-input".clone_into(&mut wrong.inputs[0].name);
            let answers = stream(model, &[wrong, good])?;
            let errors: Vec<bool> = answers.iter().map(|answer| !answer.error_message.is_empty()).collect();
            if errors == [true, false] {
                Ok(())
            } else {
                Err(Problem::wrong("an error, then an answer", format!("{errors:?}")))
            }
        },
    ),
    check(
        "grpc.config",
        EXTENSION,
        "Model Configuration extension",
        "ModelConfig names the model, its inputs and its outputs as the metadata does",
        |model| {
            let request = pb::ModelConfigRequest { name: model.name.clone(), version: String::new() };
            let answer: pb::ModelConfigResponse = grpc(&model.server)?.offered(
                &model.server,
                "model_configuration",
                "ModelConfig",
                &request,
            )?;
            let config = answer.config.unwrap_or_default();
            let names = |which| model.ports(which).into_iter().map(|port| port.name).collect::<Vec<_>>();
            let inputs: Vec<_> = config.input.iter().map(|input| input.name.clone()).collect();
            let outputs: Vec<_> = config.output.iter().map(|output| output.name.clone()).collect();
            match config.name == model.name && inputs == names("inputs") && outputs == names("outputs") {
                true => Ok(()),
                false => Err(Problem::wrong("the metadata's names", format!("{config:?}"))),
            }
        },
    ),
    check(
        "grpc.statistics",
        EXTENSION,
        "Statistics extension",
        "ModelStatistics counts an inference",
        |model| {
            let count = || {
                let request = pb::ModelStatisticsRequest { name: model.name.clone(), version: String::new() };
                let answer: pb::ModelStatisticsResponse =
                    grpc(&model.server)?.offered(&model.server, "statistics", "ModelStatistics", &request)?;
                let own = answer.model_stats.iter().find(|entry| entry.name == model.name);
                own.map(|entry| entry.inference_count).ok_or_else(|| {
                    Problem::wrong(format!("an entry for `{}`", model.name), format!("{answer:?}"))
                })
            };
            let before = count()?;
            call(model, &raw(model)?)?;
            let after = count()?;
            if after > before {
                Ok(())
            } else {
                Err(Problem::wrong("`inference_count` to grow", after.to_string()))
            }
        },
    ),
];

pub(super) const fn check(
    id: &'static str,
    level: Level,
    section: &'static str,
    says: &'static str,
    run: fn(&Model) -> Verdict,
) -> Check<Model> {
    Check { id, level, section, says, run }
}

fn metadata(model: &Model) -> Verdict {
    let request = pb::ModelMetadataRequest { name: model.name.clone(), version: String::new() };
    let answer: pb::ModelMetadataResponse = grpc(&model.server)?.ok("ModelMetadata", &request)?;
    let over_http = model.metadata.clone().map_err(|problem| problem.elsewhere())?;
    let ports = |listed: &[pb::model_metadata_response::TensorMetadata]| {
        let port = |port: &pb::model_metadata_response::TensorMetadata| Port {
            name: port.name.clone(),
            datatype: port.datatype.clone(),
            shape: port.shape.clone(),
        };
        listed.iter().map(port).collect::<Vec<_>>()
    };
    let is_same = answer.name == model.name
        && over_http["platform"] == json!(answer.platform)
        && ports(&answer.inputs) == model.ports("inputs")
        && ports(&answer.outputs) == model.ports("outputs");
    if is_same { Ok(()) } else { Err(Problem::wrong(over_http.to_string(), format!("{answer:?}"))) }
}

/// How metadata and inference end for a model, and for a version, that is not there.
fn unknown(model: &Model) -> Result<Vec<Status>, Problem> {
    let grpc = grpc(&model.server)?;
    let request = raw(model).unwrap_or_default();
    let mut statuses = Vec::new();
    for (name, version) in [(NO_MODEL, ""), (model.name.as_str(), NO_MODEL)] {
        let (name, version) = (name.to_owned(), version.to_owned());
        let metadata = pb::ModelMetadataRequest { name: name.clone(), version: version.clone() };
        statuses.push(grpc.status("ModelMetadata", &metadata)?);
        let infer = pb::ModelInferRequest { model_name: name, model_version: version, ..request.clone() };
        statuses.push(grpc.status("ModelInfer", &infer)?);
    }
    Ok(statuses)
}

/// The sample's request without contents.
fn bare(model: &Model) -> Result<pb::ModelInferRequest, Problem> {
    let inputs = model.sample()?.inputs.iter().map(|tensor| pb::model_infer_request::InferInputTensor {
        name: tensor.name.clone(),
        datatype: tensor.datatype.name.to_owned(),
        shape: tensor.shape.iter().map(|dim| dim.cast_signed() as i64).collect(),
        ..Default::default()
    });
    Ok(pb::ModelInferRequest {
        model_name: model.name.clone(),
        inputs: inputs.collect(),
        ..Default::default()
    })
}

/// The sample's request with raw contents.
pub(super) fn raw(model: &Model) -> Result<pb::ModelInferRequest, Problem> {
    let raw_input_contents = model.sample()?.inputs.iter().map(|tensor| tensor.raw().into()).collect();
    Ok(pb::ModelInferRequest { raw_input_contents, ..bare(model)? })
}

/// The sample's request with typed contents; a reason to skip where a datatype has none.
pub(super) fn typed(model: &Model) -> Result<pb::ModelInferRequest, Problem> {
    let mut request = bare(model)?;
    for (input, tensor) in request.inputs.iter_mut().zip(&model.sample()?.inputs) {
        if tensor.datatype.is_raw_only() {
            return Err(Problem::skip(format!("there are no typed contents for {}", tensor.datatype.name)));
        }
        input.contents = Some(contents(tensor));
    }
    Ok(request)
}

/// The elements in the field of their datatype.
pub(super) fn contents(tensor: &Tensor) -> pb::InferTensorContents {
    let mut contents = pb::InferTensorContents::default();
    let (kind, width) = (tensor.datatype.kind, tensor.datatype.width);
    for element in &tensor.elements {
        #[expect(clippy::cast_possible_truncation, reason = "the element fits its datatype")]
        match element {
            Element::Bool(value) => contents.bool_contents.push(*value),
            Element::Signed(value) if width == 8 => contents.int64_contents.push(*value),
            Element::Signed(value) => contents.int_contents.push(*value as i32),
            Element::Unsigned(value) if width == 8 => contents.uint64_contents.push(*value),
            Element::Unsigned(value) => contents.uint_contents.push(*value as u32),
            Element::Float(value) if (kind, width) == (Kind::Float, 8) => contents.fp64_contents.push(*value),
            Element::Float(value) => contents.fp32_contents.push(*value as f32),
            Element::Bytes(value) => contents.bytes_contents.push(value.clone().into()),
        }
    }
    contents
}

/// What typed contents hold, of whichever field has any.
fn elements(contents: pb::InferTensorContents) -> Vec<Element> {
    let mut elements: Vec<Element> = contents.bool_contents.into_iter().map(Element::Bool).collect();
    elements.extend(contents.int_contents.into_iter().map(|value| Element::Signed(value.into())));
    elements.extend(contents.int64_contents.into_iter().map(Element::Signed));
    elements.extend(contents.uint_contents.into_iter().map(|value| Element::Unsigned(value.into())));
    elements.extend(contents.uint64_contents.into_iter().map(Element::Unsigned));
    elements.extend(contents.fp32_contents.into_iter().map(|value| Element::Float(value.into())));
    elements.extend(contents.fp64_contents.into_iter().map(Element::Float));
    elements.extend(contents.bytes_contents.into_iter().map(|value| Element::Bytes(value.into())));
    elements
}

pub(super) fn call(
    model: &Model,
    request: &pb::ModelInferRequest,
) -> Result<pb::ModelInferResponse, Problem> {
    grpc(&model.server)?.ok("ModelInfer", request)
}

fn identified(model: &Model, id: &str) -> Verdict {
    let answer = call(model, &pb::ModelInferRequest { id: id.to_owned(), ..raw(model)? })?;
    match answer.id == id && answer.model_name == model.name {
        true => Ok(()),
        false => Err(Problem::wrong(format!("id `{id}`, model_name `{}`", model.name), told(&answer))),
    }
}

/// The answer must be the sample's.
pub(super) fn agrees(model: &Model, request: &pb::ModelInferRequest) -> Verdict {
    model.agrees(&outputs(&call(model, request)?)?)
}

/// The outputs of an answer, from raw or typed contents.
fn outputs(answer: &pb::ModelInferResponse) -> Result<Vec<Tensor>, Problem> {
    let is_raw = !answer.raw_output_contents.is_empty();
    if is_raw && answer.raw_output_contents.len() != answer.outputs.len() {
        return Err(Problem::wrong("raw contents for each output or for none", told(answer)));
    }
    let read = |(index, output): (usize, &pb::model_infer_response::InferOutputTensor)| {
        let wrong = |why: String| Problem::wrong("an output of the protocol", why);
        if is_raw {
            let head = json!({ "name": output.name, "datatype": output.datatype, "shape": output.shape });
            return Tensor::read_binary(&head, &answer.raw_output_contents[index]).map_err(wrong);
        }
        let elements = elements(output.contents.clone().unwrap_or_default());
        Tensor::of(&output.name, &output.datatype, &output.shape, elements).map_err(wrong)
    };
    answer.outputs.iter().enumerate().map(read).collect()
}

fn wanting(mut request: pb::ModelInferRequest, output: &str) -> pb::ModelInferRequest {
    let wanted =
        pb::model_infer_request::InferRequestedOutputTensor { name: output.to_owned(), ..Default::default() };
    request.outputs = vec![wanted];
    request
}

/// An answer as a person is shown it: without the contents.
fn told(answer: &pb::ModelInferResponse) -> String {
    let outputs: Vec<Value> = answer
        .outputs
        .iter()
        .map(|output| json!({ "name": output.name, "datatype": output.datatype, "shape": output.shape }))
        .collect();
    let raw = answer.raw_output_contents.len();
    format!(
        "id `{}`, model_name `{}`, {raw} raw contents, outputs {}",
        answer.id,
        answer.model_name,
        json!(outputs)
    )
}

/// Sends requests on one stream; there must be an answer to each, in Triton's form.
fn stream(
    model: &Model,
    requests: &[pb::ModelInferRequest],
) -> Result<Vec<pb::ModelStreamInferResponse>, Problem> {
    let messages: Vec<_> = requests.iter().map(prost::Message::encode_to_vec).collect();
    let reply = grpc(&model.server)?.exchange(&format!("{SERVICE}ModelStreamInfer"), &[], &messages)?;
    match reply.status.code {
        OK => {}
        UNIMPLEMENTED => return Err(Problem::skip("ModelStreamInfer is UNIMPLEMENTED")),
        _ => return Err(Problem::wrong("the stream to go on", reply.status.told())),
    }
    if reply.messages.len() != requests.len() {
        let (expected, got) = (requests.len(), reply.messages.len());
        return Err(Problem::wrong(format!("{expected} answers"), format!("{got}")));
    }
    let answers = reply.messages.into_iter().map(pb::ModelStreamInferResponse::decode);
    answers.collect::<Result<_, _>>().map_err(|_| {
        Problem::wrong(
            "Triton's ModelStreamInferResponse",
            "another message, such as ModelInferResponse itself",
        )
    })
}
