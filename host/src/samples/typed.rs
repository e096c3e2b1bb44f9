//! Samples of functions that take tensors.

use std::sync::Arc;
use std::time::Instant;

use bytes::{BufMut, BytesMut};
use serde_json::{Map, Value};

use super::{Golden, NotRunnable, Ran, Verdict, failed};
use crate::artifact::sample::Response;
use crate::backend::Signature;
use crate::function::Function;
use crate::instance::typed::{Description, Reply, Request};
use crate::instance::{CallError, Deadline, Program};
use crate::serve::json;
use crate::serve::json::Refused;
use crate::serve::typed_function;
use crate::tensor::Tensor;
use crate::tensor::compare::{compare, is_whole};

pub(super) async fn run(
    golden: &Golden,
    function: &Arc<Function>,
    program: &Program,
    deadline: Deadline,
) -> Result<Ran, NotRunnable> {
    let revision = &function.revision;
    let nothing = Description::default();
    let description = revision.description.as_ref().unwrap_or(&nothing);
    let request = request(golden, description)?;
    let wanted = request.outputs.clone();
    let is_raw = golden.sample.request.inputs.is_none() && description.answers.is_some();
    let started = Instant::now();
    let (answered, usage) = program.call(request, deadline, None).await;
    let took = started.elapsed();
    let answered = answered.and_then(|mut reply| {
        reply.outputs.retain(|(name, _)| wanted.is_empty() || wanted.contains(name));
        description.check(&reply, &wanted).map_err(CallError::BadReply)?;
        Ok(reply)
    });
    let verdict = match (&answered, &golden.sample.response) {
        (Err(error), _) => failed(golden, error),
        (Ok(_), None) => Verdict::NothingExpected,
        (Ok(_), Some(Response { error: Some(code), .. })) => {
            Verdict::Failed(format!("it answered, and did not raise the error `{code}`"))
        }
        (Ok(reply), Some(expected)) => compare_reply(golden, expected, reply, description)?,
    };
    let response = answered.and_then(|reply| response(&function.name, &reply, is_raw));
    Ok(Ran { verdict, response, took, usage })
}

fn request(golden: &Golden, description: &Description) -> Result<Request, NotRunnable> {
    let said = &golden.sample.request;
    if said.method.is_some() || said.path.is_some() || !said.headers.is_empty() {
        return Err(NotRunnable::Request(
            "the function takes tensors, and has no `method`, `path` or `headers`".to_owned(),
        ));
    }
    if said.inputs.is_none() {
        let (body, _) = golden.body()?;
        if description.accepts.is_empty() {
            return Err(NotRunnable::Request("the function takes no raw bodies; give `inputs`".to_owned()));
        }
        let mut framed = BytesMut::with_capacity(body.len() + 4);
        framed.put_u32_le(u32::try_from(body.len()).map_err(|_| {
            NotRunnable::Request("the body is longer than a BYTES element may be".to_owned())
        })?);
        framed.put_slice(&body);
        return typed_function::raw_request(framed.freeze(), description)
            .map_err(|error| NotRunnable::Request(error.to_string()));
    }
    let mut message = Map::new();
    for (name, value) in
        [("inputs", &said.inputs), ("parameters", &said.parameters), ("outputs", &said.outputs)]
    {
        if let Some(value) = value {
            message.insert(name.to_owned(), value.clone());
        }
    }
    let text = Value::Object(message).to_string();
    let read = json::request(text.as_bytes(), description, &mut |_| true);
    read.map(|(_, request)| request).map_err(|refused| NotRunnable::Request(reason(refused)))
}

fn reason(refused: Refused) -> String {
    match refused {
        Refused::Input(reason) => reason,
        Refused::NoRoom => "it is too large".to_owned(),
    }
}

fn compare_reply(
    golden: &Golden,
    expected: &Response,
    reply: &Reply,
    description: &Description,
) -> Result<Verdict, NotRunnable> {
    if expected.status.is_some() || !expected.headers.is_empty() {
        return Err(NotRunnable::Response(
            "the function answers tensors, and has no `status` or `headers`".to_owned(),
        ));
    }
    let Some(outputs) = &expected.outputs else {
        if expected.body.is_none() && expected.body_file.is_none() && expected.json.is_none() {
            return Ok(Verdict::NothingExpected);
        }
        let body = match typed_function::raw_body(reply) {
            Ok(body) => body,
            Err(error) => return Ok(Verdict::Failed(error.to_string())),
        };
        return golden.compare_body(expected, &body);
    };
    let mut largest = 0.0_f64;
    for (name, expected) in tensors(outputs, description)? {
        let Some((_, actual)) = reply.outputs.iter().find(|(other, _)| *other == name) else {
            return Ok(Verdict::Failed(format!("it did not answer its output `{name}`")));
        };
        match compare(&expected, actual, golden.tolerance(Some(&name), is_whole(expected.datatype()))) {
            Ok(distance) => largest = largest.max(distance),
            Err(difference) => return Ok(Verdict::Failed(format!("output `{name}`: {difference}"))),
        }
    }
    Ok(Verdict::Passed(largest))
}

/// Tensors that are expected, read as inputs are: of the outputs that the sample names, each once.
fn tensors(outputs: &[Value], description: &Description) -> Result<Vec<(String, Tensor)>, NotRunnable> {
    let name = |output: &Value| output.get("name").and_then(Value::as_str).map(str::to_owned);
    let names: Vec<_> = outputs.iter().filter_map(name).collect();
    let ports = &description.signature.outputs;
    if let Some(unknown) = names.iter().find(|name| !ports.iter().any(|port| port.name == **name)) {
        return Err(NotRunnable::Response(format!("the function has no output `{unknown}`")));
    }
    // An output of another shape than this is a difference, not a mistake in the sample.
    let inputs = ports.iter().filter(|port| names.contains(&port.name)).cloned();
    let inputs = inputs.map(|port| crate::backend::Port { shape: None, ..port }).collect();
    let signature = Signature { inputs, outputs: Vec::new() };
    let text = serde_json::json!({ "inputs": outputs }).to_string();
    let described = Description { signature, ..Description::default() };
    let read = json::request(text.as_bytes(), &described, &mut |_| true);
    read.map(|(_, request)| request.inputs).map_err(|refused| NotRunnable::Response(reason(refused)))
}

/// The answer as it would stand in a sample.
fn response(function: &str, reply: &Reply, is_raw: bool) -> Result<Response, CallError> {
    if is_raw {
        let body = typed_function::raw_body(reply).map_err(|error| CallError::BadReply(error.to_string()))?;
        return Ok(super::http::body_response(&body));
    }
    let text = json::reply(function, None, reply, usize::MAX)
        .map_err(|_| CallError::BadReply("it is too long".to_owned()))?;
    let mut document: Value =
        serde_json::from_slice(&text).map_err(|error| CallError::BadReply(error.to_string()))?;
    let outputs = document.get_mut("outputs").map(Value::take);
    let outputs = match outputs {
        Some(Value::Array(outputs)) => Some(outputs),
        _ => None,
    };
    Ok(Response { outputs, ..Response::default() })
}
