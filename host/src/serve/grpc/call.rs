//! `ModelInferRequest`, read where it lies: names are borrowed from the message, and raw inputs are parts of it.

use bytes::Bytes;

use super::super::body::Share;
use super::super::json::{in_order, known_output};
use super::super::status::AnswerError;
use super::contents;
use super::wire::{Fields, Malformed, Value, varint};
use crate::instance::typed::{Description, Parameter, Request};
use crate::tensor::{Datatype, MAX_RANK, Tensor};

/// The most inputs, outputs, parameters and raw contents that a request may have, each.
const ENTRIES: usize = 256;

/// A request as it stands in its message.
#[derive(Default)]
pub(super) struct Call<'a> {
    pub(super) model: &'a str,
    pub(super) version: &'a str,
    pub(super) id: &'a str,
    /// Names, and values that are read when they are wanted.
    parameters: Vec<(&'a str, &'a [u8])>,
    inputs: Vec<Input<'a>>,
    outputs: Vec<Output<'a>>,
    raw: Vec<&'a [u8]>,
}

#[derive(Default)]
struct Input<'a> {
    name: &'a str,
    datatype: &'a str,
    shape: Vec<i64>,
    contents: Option<&'a [u8]>,
}

/// An output that is asked for.
#[derive(Clone, Copy, Default)]
struct Output<'a> {
    name: &'a str,
    /// How many of the best classes go in place of the tensor; 0 is for the tensor.
    classes: usize,
}

/// An output that the caller takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) name: String,
    /// How many of the best classes go in place of the tensor; 0 is for the tensor.
    pub(super) classes: usize,
}

fn wrong(reason: impl Into<String>) -> AnswerError {
    AnswerError::InvalidInput(reason.into())
}

fn push<T>(to: &mut Vec<T>, entry: T, what: &str) -> Result<(), AnswerError> {
    if to.len() == ENTRIES {
        return Err(wrong(format!("the request has more than {ENTRIES} {what}")));
    }
    to.push(entry);
    Ok(())
}

impl<'a> Call<'a> {
    /// # Errors
    /// Where the message is not a request, or names more than a request may, or asks for what the host does not offer.
    pub(super) fn read(message: &'a [u8]) -> Result<Call<'a>, AnswerError> {
        let mut call = Call::default();
        for field in Fields::few(message) {
            let (number, value) = field?;
            match number {
                1 => call.model = value.text("model_name")?,
                2 => call.version = value.text("model_version")?,
                3 => call.id = value.text("id")?,
                4 => {
                    let (name, value) = entry(value.bytes("parameters")?)?;
                    match call.parameters.iter_mut().find(|(earlier, _)| *earlier == name) {
                        Some((_, earlier)) => *earlier = value,
                        None => push(&mut call.parameters, (name, value), "parameters")?,
                    }
                }
                5 => push(&mut call.inputs, Input::read(value.bytes("inputs")?)?, "inputs")?,
                6 => push(&mut call.outputs, Output::read(value.bytes("outputs")?)?, "outputs")?,
                7 => push(&mut call.raw, value.bytes("raw_input_contents")?, "raw_input_contents")?,
                _ => {}
            }
        }
        Ok(call)
    }

    /// Whether the answer is to be raw: where the request was, or had nothing to tell by.
    pub(super) fn is_raw(&self) -> bool {
        !self.raw.is_empty() || self.inputs.is_empty()
    }

    /// The bytes that are looked at one by one to read the inputs.
    pub(super) fn work(&self) -> usize {
        let each = |(index, input): (usize, &Input<'_>)| match (self.raw.get(index), input.contents) {
            (Some(raw), _) if ["BOOL", "BYTES"].contains(&input.datatype) => raw.len(),
            (Some(_), _) => 0,
            (None, contents) => contents.map_or(0, <[u8]>::len),
        };
        self.inputs.iter().enumerate().map(each).sum()
    }

    /// The call that the request asks for. `message` is what it was read from.
    ///
    /// # Errors
    /// Where it is not one that the function takes.
    pub(super) fn request(
        &self,
        message: &Bytes,
        description: &Description,
        share: &mut Share,
    ) -> Result<Request, AnswerError> {
        let inputs =
            in_order(self.tensors(message, share)?, description).map_err(AnswerError::InvalidInput)?;
        let parameter = |(name, value): &(&str, &[u8])| {
            share.grow(name.len() + value.len())?;
            let value = parameter(value)?.ok_or_else(|| wrong(format!("parameter `{name}` has no value")))?;
            Ok(((*name).to_owned(), value))
        };
        let asked = self.parameters.iter().filter(|(name, _)| *name != EMPTY_FINAL);
        let parameters = asked.map(parameter).collect::<Result<_, AnswerError>>()?;
        let outputs = self.wanted(description)?.into_iter().map(|wanted| wanted.name).collect();
        Ok(Request { inputs, parameters, outputs, ..Request::default() })
    }

    /// The outputs that the caller takes, in its order; none for all.
    ///
    /// # Errors
    /// Where the function has no such output, or it has no classes.
    pub(super) fn wanted(&self, description: &Description) -> Result<Vec<Wanted>, AnswerError> {
        let mut outputs: Vec<Wanted> = Vec::with_capacity(self.outputs.len());
        for Output { name, classes } in &self.outputs {
            let port = known_output(name, description)?;
            if outputs.iter().any(|earlier| earlier.name == *name) {
                return Err(wrong(format!("output `{name}` is asked for twice")));
            }
            if *classes > 0 && matches!(port.datatype, Datatype::Bool | Datatype::Bytes) {
                let datatype = port.datatype;
                return Err(wrong(format!("output `{name}` is {datatype}, which has no best classes")));
            }
            outputs.push(Wanted { name: (*name).to_owned(), classes: *classes });
        }
        Ok(outputs)
    }

    fn tensors(&self, message: &Bytes, share: &mut Share) -> Result<Vec<(String, Tensor)>, AnswerError> {
        let count = self.raw.len();
        if count > 0 && count != self.inputs.len() {
            let inputs = self.inputs.len();
            return Err(wrong(format!("`raw_input_contents` has {count} entries for {inputs} inputs")));
        }
        let mut is_held = false;
        let mut tensors = Vec::with_capacity(self.inputs.len());
        for (index, input) in self.inputs.iter().enumerate() {
            let tensor = match self.raw.get(index) {
                Some(raw) => input.raw(message.slice_ref(raw)).map(|tensor| (tensor, true)),
                None => input.typed(message, share),
            };
            let (tensor, is_part) = tensor.map_err(|error| match error {
                AnswerError::InvalidInput(reason) => wrong(format!("input `{}`: {reason}", input.name)),
                other => other,
            })?;
            is_held |= is_part;
            tensors.push((input.name.to_owned(), tensor));
        }
        if !is_held {
            // From here on the tensors are held in place of the message.
            share.shrink(message.len());
        }
        Ok(tensors)
    }
}

/// Asks that the end of a stream of answers is told by an answer without outputs. The last answer always has them here,
/// and says that it is the last.
const EMPTY_FINAL: &str = "triton_enable_empty_final_response";

impl<'a> Input<'a> {
    fn read(message: &'a [u8]) -> Result<Input<'a>, AnswerError> {
        let mut input = Input::default();
        for field in Fields::few(message) {
            let (number, value) = field?;
            match number {
                1 => input.name = value.text("inputs.name")?,
                2 => input.datatype = value.text("inputs.datatype")?,
                3 => dims(value, &mut input.shape)?,
                4 => offered(entry_name(value.bytes("inputs.parameters")?)?)?,
                5 if input.contents.is_some() => {
                    return Err(wrong(format!("input `{}` has `contents` twice", input.name)));
                }
                5 => input.contents = Some(value.bytes("inputs.contents")?),
                _ => {}
            }
        }
        Ok(input)
    }

    fn raw(&self, data: Bytes) -> Result<Tensor, AnswerError> {
        if contents::is_filled(self.contents.unwrap_or_default())? {
            return Err(wrong(
                "`contents` is filled, but the request has `raw_input_contents`; use one of them",
            ));
        }
        let (datatype, shape) = self.form()?;
        Tensor::new(datatype, shape, data).map_err(|error| wrong(error.to_string()))
    }

    fn typed(&self, message: &Bytes, share: &mut Share) -> Result<(Tensor, bool), AnswerError> {
        let (datatype, shape) = self.form()?;
        let Some(contents) = self.contents else {
            return Err(wrong("neither `contents` nor `raw_input_contents` has its elements"));
        };
        contents::tensor(datatype, shape, contents, message, share)
    }

    fn form(&self) -> Result<(Datatype, Vec<usize>), AnswerError> {
        let datatype = Datatype::from_name(self.datatype).ok_or_else(|| {
            let names: Vec<_> = Datatype::ALL.iter().map(|datatype| datatype.name()).collect();
            wrong(format!("there is no datatype `{}`; there are {}", self.datatype, names.join(", ")))
        })?;
        let dim = |dim: &i64| {
            usize::try_from(*dim)
                .map_err(|_| wrong(format!("the shape {:?} has a dimension below zero", self.shape)))
        };
        Ok((datatype, self.shape.iter().map(dim).collect::<Result<_, _>>()?))
    }
}

fn dims(value: Value<'_>, shape: &mut Vec<i64>) -> Result<(), AnswerError> {
    let mut dim = |dim: u64| {
        if shape.len() == MAX_RANK {
            return Err(wrong(format!("an input has more than {MAX_RANK} dimensions")));
        }
        shape.push(dim as i64);
        Ok(())
    };
    match value {
        Value::Varint(number) => dim(number),
        Value::Bytes(mut run) => {
            while !run.is_empty() {
                dim(varint(&mut run)?)?;
            }
            Ok(())
        }
        Value::Fixed32(_) | Value::Fixed64(_) => Err(Malformed::Type("inputs.shape").into()),
    }
}

impl<'a> Output<'a> {
    fn read(message: &'a [u8]) -> Result<Output<'a>, AnswerError> {
        let mut output = Output::default();
        for field in Fields::few(message) {
            match field? {
                (1, value) => output.name = value.text("outputs.name")?,
                (2, value) => {
                    let (name, value) = entry(value.bytes("outputs.parameters")?)?;
                    offered(name)?;
                    if name == CLASSES {
                        output.classes = classes(value)?;
                    }
                }
                _ => {}
            }
        }
        Ok(output)
    }
}

/// How many of the best classes an output is to have in place of its numbers.
const CLASSES: &str = "classification";

fn classes(value: &[u8]) -> Result<usize, AnswerError> {
    let number = match parameter(value)? {
        Some(Parameter::Int64(number)) => usize::try_from(number).ok(),
        Some(Parameter::Uint64(number)) => usize::try_from(number).ok(),
        _ => None,
    };
    number.ok_or_else(|| wrong("the parameter `classification` is not a number of classes"))
}

/// Refuses parameters of tensors that change where their data is.
fn offered(parameter: &str) -> Result<(), AnswerError> {
    match parameter {
        "shared_memory_region" | "shared_memory_offset" | "shared_memory_byte_size" => Err(wrong(format!(
            "shared memory is not supported, which the parameter `{parameter}` asks for; \
             tensors go in the messages"
        ))),
        _ => Ok(()),
    }
}

/// The name of a parameter.
pub(super) fn entry_name(entry: &[u8]) -> Result<&str, Malformed> {
    let mut name = "";
    for field in Fields::few(entry) {
        if let (1, value) = field? {
            name = value.text("parameters.key")?;
        }
    }
    Ok(name)
}

/// The name of a parameter, and its value as it stands in the message.
fn entry(entry: &[u8]) -> Result<(&str, &[u8]), Malformed> {
    let (mut name, mut parameter) = ("", [].as_slice());
    for field in Fields::few(entry) {
        match field? {
            (1, value) => name = value.text("parameters.key")?,
            (2, value) => parameter = value.bytes("parameters.value")?,
            _ => {}
        }
    }
    Ok((name, parameter))
}

/// The value of a parameter, where it has one.
fn parameter(value: &[u8]) -> Result<Option<Parameter>, Malformed> {
    let mut parameter = None;
    for field in Fields::few(value) {
        parameter = Some(match field? {
            (1, value) => Parameter::Bool(value.varint("bool_param")? != 0),
            (2, value) => Parameter::Int64(value.varint("int64_param")? as i64),
            (3, value) => Parameter::Text(value.text("string_param")?.to_owned()),
            (4, Value::Fixed64(value)) => Parameter::Double(f64::from_le_bytes(value)),
            (4, _) => return Err(Malformed::Type("double_param")),
            (5, value) => Parameter::Uint64(value.varint("uint64_param")?),
            _ => continue,
        });
    }
    Ok(parameter)
}

/// What tells a caller which of its requests it was, as far as it can be read.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Names {
    pub(super) model: String,
    pub(super) version: String,
    pub(super) id: String,
}

impl Names {
    pub(super) fn of(message: &[u8]) -> Names {
        let mut names = Names::default();
        for (number, value) in Fields::few(message).map_while(Result::ok) {
            let name = match number {
                1 => &mut names.model,
                2 => &mut names.version,
                3 => &mut names.id,
                _ => continue,
            };
            value.text("").unwrap_or_default().clone_into(name);
        }
        names
    }
}
