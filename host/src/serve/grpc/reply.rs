//! Answers of models as messages, written from the tensors' bytes. What is large is not copied.

use std::borrow::Cow;

use bytes::Bytes;

use super::super::json::TooLong;
use super::super::oip::message::classify;
use super::call::Wanted;
use super::contents;
use super::message::HEAD;
use super::wire::{field_len, key_len, put_bytes, put_double, put_head, put_number, put_varint, varint_len};
use crate::instance::typed::{Parameter, Reply};
use crate::tensor::Tensor;

/// A message in parts that are sent one after the other.
#[derive(Debug, Default)]
pub(super) struct Parts {
    whole: Vec<Bytes>,
    last: Vec<u8>,
}

/// Data of at least so many bytes is a part of its own. Shorter data is cheaper to copy.
const APART_BYTES: usize = 16 << 10;

impl Parts {
    pub(super) fn last(&mut self) -> &mut Vec<u8> {
        &mut self.last
    }

    pub(super) fn put(&mut self, data: &Bytes) {
        if data.len() < APART_BYTES {
            self.last.extend_from_slice(data);
            return;
        }
        self.whole.push(std::mem::take(&mut self.last).into());
        self.whole.push(data.clone());
    }

    pub(super) fn finish(mut self) -> Vec<Bytes> {
        if !self.last.is_empty() {
            self.whole.push(self.last.into());
        }
        self.whole
    }
}

/// What an answer says beside what the function says.
pub(super) struct Form<'a> {
    pub(super) model: &'a str,
    pub(super) version: &'a str,
    pub(super) id: &'a str,
    /// The outputs that are wanted, in this order; empty for all.
    pub(super) wanted: &'a [Wanted],
    /// Whether the caller takes bytes rather than typed contents.
    pub(super) is_raw: bool,
    /// On a stream of answers: whether it is the last one to its request.
    pub(super) is_last: Option<bool>,
}

/// Whether it is the last answer to a request.
pub(super) const LAST: &str = "triton_final_response";

// The fields of the messages.
const RESPONSE_MODEL: u32 = 1;
const RESPONSE_VERSION: u32 = 2;
const RESPONSE_ID: u32 = 3;
const RESPONSE_PARAMETERS: u32 = 4;
const RESPONSE_OUTPUTS: u32 = 5;
const RESPONSE_RAW: u32 = 6;
const STREAMED_RESPONSE: u32 = 2;
const OUTPUT_NAME: u32 = 1;
const OUTPUT_DATATYPE: u32 = 2;
const OUTPUT_SHAPE: u32 = 3;
const OUTPUT_CONTENTS: u32 = 5;
const ENTRY_KEY: u32 = 1;
const ENTRY_VALUE: u32 = 2;

/// One output, and how long it is in the message.
struct Output<'a> {
    name: &'a str,
    tensor: &'a Tensor,
    shape_len: usize,
    contents_len: usize,
    len: usize,
}

impl<'a> Output<'a> {
    fn new(name: &'a str, tensor: &'a Tensor, is_raw: bool) -> Output<'a> {
        let shape_len = tensor.shape().iter().map(|dim| varint_len(*dim as u64)).sum();
        let contents_len = if is_raw { 0 } else { contents::written_len(tensor) };
        let mut len = field_len(OUTPUT_NAME, name.len());
        len += field_len(OUTPUT_DATATYPE, tensor.datatype().name().len());
        len += if shape_len > 0 { field_len(OUTPUT_SHAPE, shape_len) } else { 0 };
        len += if is_raw { 0 } else { field_len(OUTPUT_CONTENTS, contents_len) };
        Output { name, tensor, shape_len, contents_len, len }
    }

    fn write(&self, to: &mut Parts, is_raw: bool) {
        let last = to.last();
        put_head(last, RESPONSE_OUTPUTS, self.len);
        put_bytes(last, OUTPUT_NAME, self.name.as_bytes());
        put_bytes(last, OUTPUT_DATATYPE, self.tensor.datatype().name().as_bytes());
        if self.shape_len > 0 {
            put_head(last, OUTPUT_SHAPE, self.shape_len);
            self.tensor.shape().iter().for_each(|dim| put_varint(last, *dim as u64));
        }
        if !is_raw {
            put_head(last, OUTPUT_CONTENTS, self.contents_len);
            contents::write(self.tensor, to);
        }
    }
}

/// An answer as a message of at most `limit` bytes, with what stands before it.
///
/// # Errors
/// Where it is longer.
pub(super) fn write(form: &Form<'_>, reply: &Reply, limit: usize) -> Result<Vec<Bytes>, TooLong> {
    let outputs = outputs(form.wanted, reply, limit)?;
    // One that has no typed contents makes the whole answer raw: a message is all of one kind.
    let is_raw = form.is_raw || outputs.iter().any(|(_, tensor)| !contents::is_typed(tensor.datatype()));
    let outputs: Vec<_> = outputs.iter().map(|(name, tensor)| Output::new(name, tensor, is_raw)).collect();
    let last = form.is_last.map(|is_last| (LAST.to_owned(), Parameter::Bool(is_last)));
    let parameters = || reply.parameters.iter().chain(&last);

    let mut len = field_len(RESPONSE_MODEL, form.model.len());
    len += field_len(RESPONSE_VERSION, form.version.len());
    len += if form.id.is_empty() { 0 } else { field_len(RESPONSE_ID, form.id.len()) };
    len += parameters().map(|entry| field_len(RESPONSE_PARAMETERS, entry_len(entry))).sum::<usize>();
    len += outputs.iter().map(|output| field_len(RESPONSE_OUTPUTS, output.len)).sum::<usize>();
    if is_raw {
        len += outputs.iter().map(|out| field_len(RESPONSE_RAW, out.tensor.data().len())).sum::<usize>();
    }
    let total = if form.is_last.is_some() { field_len(STREAMED_RESPONSE, len) } else { len };
    let announced = u32::try_from(total).ok().filter(|_| total <= limit).ok_or(TooLong)?;

    let apart = outputs.iter().map(|output| output.tensor.data().len()).filter(|len| *len >= APART_BYTES);
    let together = total.saturating_sub(apart.sum());
    let mut to = Parts { whole: Vec::new(), last: Vec::with_capacity(HEAD + together) };
    to.last.push(0);
    to.last.extend_from_slice(&announced.to_be_bytes());
    if form.is_last.is_some() {
        put_head(&mut to.last, STREAMED_RESPONSE, len);
    }
    put_bytes(&mut to.last, RESPONSE_MODEL, form.model.as_bytes());
    put_bytes(&mut to.last, RESPONSE_VERSION, form.version.as_bytes());
    if !form.id.is_empty() {
        put_bytes(&mut to.last, RESPONSE_ID, form.id.as_bytes());
    }
    parameters().for_each(|entry| put_entry(&mut to.last, entry));
    outputs.iter().for_each(|output| output.write(&mut to, is_raw));
    if is_raw {
        for output in &outputs {
            put_head(&mut to.last, RESPONSE_RAW, output.tensor.data().len());
            to.put(output.tensor.data());
        }
    }
    Ok(to.finish())
}

/// The outputs of an answer that its caller takes, as it takes them.
fn outputs<'a>(
    wanted: &[Wanted],
    reply: &'a Reply,
    limit: usize,
) -> Result<Vec<(&'a str, Cow<'a, Tensor>)>, TooLong> {
    let given = || reply.outputs.iter().map(|(name, tensor)| (name.as_str(), Cow::Borrowed(tensor)));
    if wanted.is_empty() {
        return Ok(given().collect());
    }
    let mut outputs = Vec::with_capacity(wanted.len());
    for Wanted { name, classes } in wanted {
        // What a function answers before its last answer need not have all of them.
        let Some((name, tensor)) = given().find(|(given, _)| given == name) else { continue };
        let tensor = if *classes > 0 { Cow::Owned(classify(&tensor, *classes, limit)?) } else { tensor };
        outputs.push((name, tensor));
    }
    Ok(outputs)
}

// The kinds of parameters.
const BOOL: u32 = 1;
const INT64: u32 = 2;
const STRING: u32 = 3;
const DOUBLE: u32 = 4;
const UINT64: u32 = 5;

fn entry_len((name, value): &(String, Parameter)) -> usize {
    field_len(ENTRY_KEY, name.len()) + field_len(ENTRY_VALUE, value_len(value))
}

fn value_len(value: &Parameter) -> usize {
    match value {
        Parameter::Bool(_) => key_len(BOOL) + 1,
        Parameter::Int64(value) => key_len(INT64) + varint_len(*value as u64),
        Parameter::Text(value) => field_len(STRING, value.len()),
        Parameter::Double(_) => key_len(DOUBLE) + 8,
        Parameter::Uint64(value) => key_len(UINT64) + varint_len(*value),
    }
}

fn put_entry(to: &mut Vec<u8>, entry: &(String, Parameter)) {
    let (name, value) = entry;
    put_head(to, RESPONSE_PARAMETERS, entry_len(entry));
    put_bytes(to, ENTRY_KEY, name.as_bytes());
    put_head(to, ENTRY_VALUE, value_len(value));
    match value {
        Parameter::Bool(value) => put_number(to, BOOL, u64::from(*value)),
        Parameter::Int64(value) => put_number(to, INT64, *value as u64),
        Parameter::Text(value) => put_bytes(to, STRING, value.as_bytes()),
        Parameter::Double(value) => put_double(to, DOUBLE, *value),
        Parameter::Uint64(value) => put_number(to, UINT64, *value),
    }
}
