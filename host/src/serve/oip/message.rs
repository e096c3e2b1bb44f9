//! An inference request and its answer over REST: JSON, tensors in it, and binary tensors behind it.

use std::borrow::Cow;

use bytes::Bytes;

use super::binary::{self, Tail};
use crate::instance::typed::{Description, Parameter, Reply, Request};
use crate::serve::json::reader::{Content, Message, Output};
use crate::serve::json::reply::{Head, Shown};
use crate::serve::json::scan::Scan;
use crate::serve::json::{self, Refused, Room, TooLong};
use crate::tensor::{Datatype, Tensor};

mod classification;

pub use classification::classify;

/// The parameter of a request that asks for all outputs in binary.
const BINARY_OUTPUT: &str = "binary_data_output";

/// An inference request as it came over REST.
#[derive(Debug)]
pub struct InferRequest {
    /// The caller's own name for it, which goes back with the answer.
    pub id: Option<String>,
    pub call: Request,
    pub wanted: Wanted,
    /// Whether tensors lie in the body itself, so that its memory is held as long as they are.
    pub holds_body: bool,
}

/// The outputs that a caller wants, in its order, and their forms.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    outputs: Vec<WantedOutput>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct WantedOutput {
    name: String,
    is_binary: bool,
    /// How many of the best classes go in place of the tensor; 0 is for the tensor.
    classes: usize,
}

/// An answer, ready to be sent.
#[derive(Debug, PartialEq, Eq)]
pub struct Encoded {
    /// What the body consists of, one after the other. Binary tensors are the reply's own memory.
    pub body: Vec<Bytes>,
    /// Goes into the header [`binary::HEADER_LENGTH`]; nothing where all of the body is JSON.
    pub header_length: Option<usize>,
}

impl Encoded {
    /// Bytes of the whole body.
    pub fn length(&self) -> usize {
        self.body.iter().map(Bytes::len).sum()
    }

    /// The media type of the body.
    pub fn content_type(&self) -> &'static str {
        if self.header_length.is_some() { "application/octet-stream" } else { "application/json" }
    }
}

/// Reads a request from its body, of which `header_length` bytes are JSON; all of it where that is nothing, and none
/// where it is 0: then the body is the function's one input.
///
/// Binary tensors stay where they are in the body. JSON tensors take at most four times the JSON's length; `room` is
/// asked for their bytes before memory is taken.
///
/// # Errors
/// Says what is wrong with the request, and how, or that there is no room.
pub fn decode(
    body: Bytes,
    header_length: Option<usize>,
    description: &Description,
    room: &mut Room<'_>,
) -> Result<InferRequest, Refused> {
    if header_length == Some(0) {
        let (name, tensor, holds_body) = binary::raw(body, description, room)?;
        let inputs = json::in_order(vec![(name, tensor)], description).map_err(Refused::Input)?;
        let wanted = Wanted::of(vec![], true, description)?;
        return Ok(InferRequest {
            id: None,
            call: Request { inputs, ..Request::default() },
            wanted,
            holds_body,
        });
    }
    let length = header_length.unwrap_or(body.len());
    if length > body.len() {
        return Err(wrong(&format!(
            "the header `Inference-Header-Content-Length` says that {length} bytes are JSON, but the body has {}",
            body.len()
        )));
    }
    let text = &body[..length];
    let message = json::message(text, room).map_err(|refused| {
        if header_length.is_none() && is_followed(text) { wrong(UNSAID) } else { refused }
    })?;
    let mut tail = Tail::new(body.slice(length..));
    let Message { id, inputs, parameters, outputs } = message;
    let mut holds_body = false;
    let inputs = inputs.into_iter().map(|input| {
        let tensor = match input.content {
            Content::Here(tensor) => Ok(tensor),
            Content::Binary(_) if header_length.is_none() => Err(wrong(
                "a binary tensor needs the header `Inference-Header-Content-Length`, the length of the JSON before it",
            )),
            Content::Binary(size) => {
                holds_body = true;
                let data = tail.take(size);
                data.and_then(|data| {
                    Tensor::new(input.datatype, input.shape, data).map_err(|error| wrong(&error.to_string()))
                })
            }
        };
        tensor.map_err(|refused| refused.of_input(&input.name)).map(|tensor| (input.name, tensor))
    });
    let inputs = inputs.collect::<Result<Vec<_>, _>>()?;
    tail.end()?;
    let inputs = json::in_order(inputs, description).map_err(Refused::Input)?;
    let (parameters, is_binary) = without_form(parameters)?;
    let names = outputs.iter().map(|output| output.name.clone()).collect();
    let wanted = Wanted::of(outputs, is_binary, description)?;
    let call = Request { inputs, parameters, outputs: names, ..Request::default() };
    Ok(InferRequest { id, call, wanted, holds_body })
}

const UNSAID: &str = "bytes follow the JSON; where they are binary tensors, the header \
                      `Inference-Header-Content-Length` must say how long the JSON is";

/// Whether a text is JSON and something behind it.
fn is_followed(text: &[u8]) -> bool {
    let mut scan = Scan::new(text);
    scan.skip().is_ok() && scan.end().is_err()
}

/// The parameters for the function, and whether all outputs are wanted in binary.
fn without_form(
    mut parameters: Vec<(String, Parameter)>,
) -> Result<(Vec<(String, Parameter)>, bool), Refused> {
    let Some(index) = parameters.iter().position(|(name, _)| name == BINARY_OUTPUT) else {
        return Ok((parameters, false));
    };
    match parameters.remove(index) {
        (_, Parameter::Bool(is_binary)) => Ok((parameters, is_binary)),
        _ => Err(wrong("the parameter `binary_data_output` is not true or false")),
    }
}

impl Wanted {
    /// What the caller asks for, or all outputs where it asks for none.
    fn of(asked: Vec<Output>, is_binary: bool, description: &Description) -> Result<Wanted, Refused> {
        if asked.is_empty() {
            let ports = &description.signature.outputs;
            let all =
                ports.iter().map(|port| WantedOutput { name: port.name.clone(), is_binary, classes: 0 });
            return Ok(Wanted { outputs: all.collect() });
        }
        let mut outputs: Vec<WantedOutput> = Vec::with_capacity(asked.len());
        for Output { name, is_binary: own, classes } in asked {
            let port = json::known_output(&name, description)?;
            if outputs.iter().any(|earlier| earlier.name == name) {
                return Err(wrong(&format!("output `{name}` is asked for twice")));
            }
            if classes > 0 && matches!(port.datatype, Datatype::Bool | Datatype::Bytes) {
                return Err(wrong(&format!(
                    "output `{name}` is {}, which has no best classes",
                    port.datatype
                )));
            }
            outputs.push(WantedOutput { name, is_binary: own.unwrap_or(is_binary), classes });
        }
        Ok(Wanted { outputs })
    }
}

/// Bodies up to this length are put together: sending one piece costs less than copying it.
const SHORT: usize = 16 << 10;

/// Writes an answer of at most `limit` bytes, with the outputs in the order that the caller asked for, else that of the
/// function's description. An infinity or NaN in a JSON tensor is null.
///
/// # Errors
/// Where it is longer.
pub fn encode(
    model: &str,
    version: &str,
    id: Option<&str>,
    reply: &Reply,
    wanted: &Wanted,
    limit: usize,
) -> Result<Encoded, TooLong> {
    let mut outputs = Vec::with_capacity(wanted.outputs.len());
    for WantedOutput { name, is_binary, classes } in &wanted.outputs {
        let Some((name, tensor)) = reply.outputs.iter().find(|(output, _)| output == name) else { continue };
        let tensor = match classes {
            0 => Cow::Borrowed(tensor),
            classes => Cow::Owned(classify(tensor, *classes, limit)?),
        };
        outputs.push((name, tensor, *is_binary));
    }
    let behind = || outputs.iter().filter(|(_, _, is_binary)| *is_binary).map(|(_, tensor, _)| tensor.data());
    let left = behind().try_fold(limit, |left, data| left.checked_sub(data.len())).ok_or(TooLong)?;
    let head = Head { id, model_name: model, model_version: Some(version) };
    let shown = outputs.iter();
    let shown = shown.map(|(name, tensor, is_binary)| Shown { name, tensor, is_binary: *is_binary });
    let text = json::reply::message(&head, &shown.collect::<Vec<_>>(), &reply.parameters, left)?;
    if !outputs.iter().any(|(_, _, is_binary)| *is_binary) {
        return Ok(Encoded { body: vec![text.into()], header_length: None });
    }
    let header_length = Some(text.len());
    let length = text.len() + (limit - left);
    if length <= SHORT {
        let mut body = text;
        body.reserve_exact(length - body.len());
        behind().for_each(|data| body.extend_from_slice(data));
        return Ok(Encoded { body: vec![body.into()], header_length });
    }
    let body = std::iter::once(Bytes::from(text)).chain(behind().filter(|data| !data.is_empty()).cloned());
    Ok(Encoded { body: body.collect(), header_length })
}

fn wrong(what: &str) -> Refused {
    Refused::Input(what.to_owned())
}

#[cfg(test)]
mod tests;
