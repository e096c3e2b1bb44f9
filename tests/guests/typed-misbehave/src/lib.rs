//! A model function that does what its input says, most of which no function should do.

mod answers;
mod models;
mod resources;
mod system;

use tenon_sdk::bindings::exports::tenon::function::function::{Error, Guest, Metadata, Request, Response};
use tenon_sdk::bindings::tenon::function::tensors::{Datatype, NamedTensor, Tensor, TensorMetadata};

/// Written against the bindings: the SDK itself would not let it misbehave.
struct Misbehave;

tenon_sdk::bindings::export!(Misbehave with_types_in tenon_sdk::bindings);

impl Guest for Misbehave {
    fn describe() -> Metadata {
        let tensor =
            |name: &str| TensorMetadata { name: name.to_owned(), datatype: Datatype::Bytes, shape: vec![1] };
        Metadata {
            inputs: vec![tensor("behaviour")],
            outputs: vec![tensor("answer")],
            accepts: vec!["text/*".to_owned()],
            answers: Some("text/plain; charset=utf-8".to_owned()),
        }
    }

    fn call(request: Request) -> Result<Response, Error> {
        let input = request.inputs.first().ok_or_else(|| failed("no input"))?;
        let data = input.tensor.data();
        let behaviour = data.get(4..).and_then(|text| str::from_utf8(text).ok());
        let behaviour = behaviour.ok_or_else(|| failed("the behaviour is no text"))?.trim();
        let (name, argument) = behaviour.split_once(':').unwrap_or((behaviour, ""));
        if let Some(text) = system::behave(name, argument).or_else(|| resources::behave(name, argument)) {
            return Ok(respond("answer", text_tensor(&text)?));
        }
        if let Some(text) = models::behave(name, argument) {
            return Ok(respond("answer", text_tensor(&text)?));
        }
        answers::behave(name, argument)
            .unwrap_or_else(|| Err(failed(&format!("there is no behaviour `{name}`"))))
    }
}

/// BYTES with one element.
fn text_tensor(text: &str) -> Result<Tensor, Error> {
    let mut data = (text.len() as u32).to_le_bytes().to_vec();
    data.extend_from_slice(text.as_bytes());
    Tensor::create(Datatype::Bytes, &[1], &data).map_err(|error| failed(&error))
}

fn respond(name: &str, tensor: Tensor) -> Response {
    Response { outputs: vec![NamedTensor { name: name.to_owned(), tensor }], parameters: Vec::new() }
}

fn failed(message: &str) -> Error {
    Error { code: "misbehave-failed".to_owned(), message: message.to_owned(), status: Some(500) }
}

/// What the host answered, so that a test can compare it.
fn told<T>(result: Result<T, impl std::fmt::Display>, ok: impl FnOnce(T) -> String) -> String {
    match result {
        Ok(value) => ok(value),
        Err(error) => format!("refused: {error}"),
    }
}
