//! What is kept of a call for people to call again with: bounded, and of its own bytes.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::Captured;
use crate::tensor::compare::number;
use crate::tensor::{Datatype, Tensor};

/// A call, as it came.
#[derive(Clone, Copy, Debug)]
pub enum Asked<'a> {
    Tensors {
        inputs: &'a [(String, Tensor)],
        parameters: &'a Map<String, Value>,
    },
    Http {
        method: &'a str,
        /// The path with its query.
        path: &'a str,
        media_type: &'a str,
        body: &'a [u8],
    },
}

/// A call that is kept. It holds on to nothing that it came in.
#[derive(Clone, Debug)]
pub(super) enum Kept {
    Tensors { inputs: Vec<KeptTensor>, parameters: Map<String, Value>, truncated: bool },
    Http { method: String, path: String, media_type: String, body: Vec<u8>, truncated: bool },
}

#[derive(Clone, Debug)]
pub(super) struct KeptTensor {
    name: String,
    datatype: Datatype,
    shape: Vec<usize>,
    /// Absent where there was no room.
    data: Option<Bytes>,
}

/// What is kept of a path or a media type.
const LONGEST: usize = 4096;

impl Kept {
    /// Keeps at most `room` bytes of the call's data.
    pub(super) fn of(asked: Asked<'_>, mut room: usize) -> Kept {
        match asked {
            Asked::Tensors { inputs, parameters } => {
                let mut truncated = false;
                let inputs = inputs.iter().map(|(name, tensor)| {
                    let left = room.checked_sub(tensor.data().len());
                    truncated |= left.is_none();
                    room = left.unwrap_or(room);
                    KeptTensor {
                        name: name.clone(),
                        datatype: tensor.datatype(),
                        shape: tensor.shape().to_vec(),
                        data: left.map(|_| Bytes::copy_from_slice(tensor.data())),
                    }
                });
                let inputs = inputs.collect();
                let size = parameters.iter().map(|(name, value)| name.len() + text_bytes(value));
                let fits = size.sum::<usize>() <= room;
                let parameters = if fits { parameters.clone() } else { Map::new() };
                Kept::Tensors { inputs, parameters, truncated: truncated || !fits }
            }
            Asked::Http { method, path, media_type, body } => {
                let short = |text: &str| text[..text.floor_char_boundary(LONGEST)].to_owned();
                Kept::Http {
                    method: short(method),
                    path: short(path),
                    media_type: short(media_type),
                    body: body[..body.len().min(room)].to_vec(),
                    truncated: body.len() > room || path.len() > LONGEST,
                }
            }
        }
    }

    pub(super) fn shown(&self) -> Captured {
        match self {
            Kept::Tensors { inputs, parameters, truncated } => {
                let mut call = Map::new();
                call.insert("inputs".to_owned(), inputs.iter().map(KeptTensor::shown).collect());
                if !parameters.is_empty() {
                    call.insert("parameters".to_owned(), Value::Object(parameters.clone()));
                }
                Captured { call: Value::Object(call), truncated: *truncated }
            }
            Kept::Http { method, path, media_type, body, truncated } => {
                let body = match text(body) {
                    Some(text) => json!(text),
                    None => json!({ "base64": STANDARD.encode(body) }),
                };
                let call =
                    json!({ "method": method, "path": path, "content_type": media_type, "body": body });
                Captured { call, truncated: *truncated }
            }
        }
    }
}

impl KeptTensor {
    fn shown(&self) -> Value {
        let mut shown = Map::new();
        shown.insert("name".to_owned(), json!(self.name));
        shown.insert("datatype".to_owned(), json!(self.datatype.name()));
        shown.insert("shape".to_owned(), json!(self.shape));
        if let Some(data) = &self.data {
            shown.insert("data".to_owned(), elements(self.datatype, data));
        }
        Value::Object(shown)
    }
}

fn elements(datatype: Datatype, data: &[u8]) -> Value {
    let Some(size) = datatype.size() else { return byte_strings(data) };
    let elements = data.chunks_exact(size).map(|element| match (datatype, element) {
        (Datatype::Bool, [value]) => json!(*value == 1),
        (Datatype::Uint64, element) => json!(element.try_into().map(u64::from_le_bytes).unwrap_or_default()),
        (Datatype::Int64, element) => json!(element.try_into().map(i64::from_le_bytes).unwrap_or_default()),
        (Datatype::Fp16 | Datatype::Bf16 | Datatype::Fp32 | Datatype::Fp64, element) => {
            let number = number(datatype, element);
            // JSON has no word for them.
            if number.is_finite() { json!(number) } else { json!(number.to_string()) }
        }
        #[expect(clippy::cast_possible_truncation, reason = "whole numbers of at most 32 bits")]
        (_, element) => json!(number(datatype, element) as i64),
    });
    elements.collect()
}

fn byte_strings(data: &[u8]) -> Value {
    let mut rest = data;
    let elements = std::iter::from_fn(|| {
        let (length, tail) = rest.split_first_chunk::<4>()?;
        let (element, tail) = tail.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        rest = tail;
        Some(match text(element) {
            Some(text) => json!(text),
            None => json!({ "base64": STANDARD.encode(element) }),
        })
    });
    elements.collect()
}

/// Bytes that a person can read.
fn text(bytes: &[u8]) -> Option<Cow<'_, str>> {
    let text = std::str::from_utf8(bytes).ok()?;
    let is_plain = !text.chars().any(|c| c.is_control() && !matches!(c, '\n' | '\r' | '\t'));
    is_plain.then_some(Cow::Borrowed(text))
}

fn text_bytes(value: &Value) -> usize {
    value.as_str().map_or(8, str::len)
}
