//! A model function whose revisions can be told apart: each names itself, and behaves as its environment says.
//!
//! Fresh instances remember nothing, so that what befalls one call of many is drawn from the call's input.

mod behaviour;
mod fetch;
mod reference;

use behaviour::Behaviour;
use reference::{CLASSES, FEATURES, classify, fingerprint};
use tenon_sdk::bindings::exports::tenon::function::function::{
    Error, Guest, Metadata, Parameter, ParameterValue, Request, Response,
};
use tenon_sdk::bindings::tenon::function::tensors::{Datatype, NamedTensor, Tensor, TensorMetadata};

/// Written against the bindings: what tells revisions apart is a parameter of the answer, which the SDK has not. An
/// output would do for a drift of the outputs.
struct Candidate;

tenon_sdk::bindings::export!(Candidate with_types_in tenon_sdk::bindings);

impl Guest for Candidate {
    fn describe() -> Metadata {
        let tensor = |name: &str, datatype, elements: usize| TensorMetadata {
            name: name.to_owned(),
            datatype,
            shape: vec![elements as i64],
        };
        Metadata {
            inputs: vec![tensor("x", Datatype::Fp32, FEATURES)],
            outputs: vec![tensor("scores", Datatype::Fp32, CLASSES), tensor("label", Datatype::Int64, 1)],
            accepts: Vec::new(),
            answers: None,
        }
    }

    fn call(request: Request) -> Result<Response, Error> {
        let input = request.inputs.first().ok_or_else(|| failed("there is no input"))?;
        let data = input.tensor.data();
        let x: Vec<f32> = data.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        let mut answer = classify(&x);
        let behaviour = Behaviour::of_environment().map_err(|message| failed(&message))?;
        behaviour.show(fingerprint(&x), &mut answer).map_err(|message| failed(&message))?;
        let scores: Vec<u8> = answer.scores.iter().flat_map(|score| score.to_le_bytes()).collect();
        let revision = std::env::var("REVISION").unwrap_or_default();
        Ok(Response {
            outputs: vec![
                output("scores", Datatype::Fp32, CLASSES, &scores)?,
                output("label", Datatype::Int64, 1, &answer.label.to_le_bytes())?,
            ],
            parameters: vec![Parameter {
                name: "revision".to_owned(),
                value: ParameterValue::Text(revision),
            }],
        })
    }
}

fn output(name: &str, datatype: Datatype, elements: usize, data: &[u8]) -> Result<NamedTensor, Error> {
    let tensor = Tensor::create(datatype, &[elements as u64], data).map_err(|error| failed(&error))?;
    Ok(NamedTensor { name: name.to_owned(), tensor })
}

fn failed(message: &str) -> Error {
    Error { code: "candidate-failed".to_owned(), message: message.to_owned(), status: Some(500) }
}
