//! Typed contents: a tensor's elements as numbers of Protocol Buffers, to and from the bytes that a tensor holds.
//!
//! FP32 and FP64 stand in a message as they stand in memory, so that the usual ones are neither copied nor converted.

use bytes::Bytes;

use super::super::body::Share;
use super::super::status::AnswerError;
use super::reply::Parts;
use super::wire::{
    Fields, Malformed, Value, field_len, key_len, put_bytes, put_head, put_varint, varint, varint_len,
};
use crate::tensor::{Datatype, Tensor, elements};

/// The fields of `InferTensorContents` by their numbers, from 1 on.
const FIELDS: [&str; 8] = [
    "bool_contents",
    "int_contents",
    "int64_contents",
    "uint_contents",
    "uint64_contents",
    "fp32_contents",
    "fp64_contents",
    "bytes_contents",
];

/// The last of them.
const BYTES: u32 = 8;

/// The field that the elements of a datatype go in; FP16 and BF16 have none.
fn field(datatype: Datatype) -> Option<u32> {
    match datatype {
        Datatype::Bool => Some(1),
        Datatype::Int8 | Datatype::Int16 | Datatype::Int32 => Some(2),
        Datatype::Int64 => Some(3),
        Datatype::Uint8 | Datatype::Uint16 | Datatype::Uint32 => Some(4),
        Datatype::Uint64 => Some(5),
        Datatype::Fp32 => Some(6),
        Datatype::Fp64 => Some(7),
        Datatype::Bytes => Some(BYTES),
        Datatype::Fp16 | Datatype::Bf16 => None,
    }
}

fn name(number: u32) -> &'static str {
    FIELDS[number as usize - 1]
}

/// Whether tensors of this type can be sent as contents at all.
pub(super) fn is_typed(datatype: Datatype) -> bool {
    field(datatype).is_some()
}

/// Whether any element is given.
pub(super) fn is_filled(contents: &[u8]) -> Result<bool, Malformed> {
    for field in Fields::few(contents) {
        let (number, value) = field?;
        if has_some(number, value) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether a field has elements. One that is there may have none: numbers one after the other, of which there are none.
fn has_some(number: u32, value: Value<'_>) -> bool {
    match value {
        Value::Bytes([]) => number == BYTES,
        _ => (1..=BYTES).contains(&number),
    }
}

/// A tensor of the elements in `contents`, which is a part of `message`.
///
/// Memory is asked for from `share` before it is taken. Answers as well whether the tensor is a part of the message.
///
/// # Errors
/// Where the elements are in another field, of another number or out of the datatype's range.
pub(super) fn tensor(
    datatype: Datatype,
    shape: Vec<usize>,
    contents: &[u8],
    message: &Bytes,
    share: &mut Share,
) -> Result<(Tensor, bool), AnswerError> {
    let wrong = |reason: String| AnswerError::InvalidInput(reason);
    let field = field(datatype).ok_or_else(|| {
        wrong(format!("{datatype} has no typed contents; send all inputs in `raw_input_contents`"))
    })?;
    let needed = elements(&shape).map_err(|error| wrong(error.to_string()))?;
    let found = survey(datatype, field, contents)?;
    if found.elements != needed {
        let (elements, name) = (found.elements, name(field));
        let reason = format!("{datatype} {shape:?} takes {needed} elements, `{name}` has {elements}");
        return Err(wrong(reason));
    }
    if let (Datatype::Fp32 | Datatype::Fp64, Some(run)) = (datatype, found.only) {
        let data = message.slice_ref(run);
        return made(datatype, shape, data).map(|tensor| (tensor, true));
    }
    share.grow(found.bytes)?;
    let mut data = Vec::with_capacity(found.bytes);
    for value in Fields::all(contents) {
        let (number, value) = value?;
        if number == field {
            fill(datatype, value, &mut data)?;
        }
    }
    made(datatype, shape, data.into()).map(|tensor| (tensor, false))
}

fn made(datatype: Datatype, shape: Vec<usize>, data: Bytes) -> Result<Tensor, AnswerError> {
    Tensor::new(datatype, shape, data).map_err(|error| AnswerError::InvalidInput(error.to_string()))
}

/// What contents have, before memory is taken for it.
struct Found<'a> {
    elements: usize,
    /// What they take in a tensor.
    bytes: usize,
    /// All of them, where they stand one after the other.
    only: Option<&'a [u8]>,
}

fn survey<'a>(datatype: Datatype, field: u32, contents: &'a [u8]) -> Result<Found<'a>, AnswerError> {
    let mut found = Found { elements: 0, bytes: 0, only: None };
    for value in Fields::all(contents) {
        let (number, value) = value?;
        if number != field {
            if has_some(number, value) {
                let (wanted, given) = (name(field), name(number));
                return Err(AnswerError::InvalidInput(format!(
                    "{datatype} elements go in `{wanted}`, but `{given}` has some"
                )));
            }
            continue;
        }
        let elements = match (datatype, value) {
            (Datatype::Bytes, Value::Bytes(element)) => {
                found.bytes += 4 + element.len();
                found.elements += 1;
                continue;
            }
            (Datatype::Fp32, Value::Fixed32(_)) | (Datatype::Fp64, Value::Fixed64(_)) => 1,
            (Datatype::Fp32, Value::Bytes(run)) if run.len() % 4 == 0 => run.len() / 4,
            (Datatype::Fp64, Value::Bytes(run)) if run.len() % 8 == 0 => run.len() / 8,
            (Datatype::Fp32 | Datatype::Fp64 | Datatype::Bytes, _) => {
                return Err(Malformed::Type(name(field)).into());
            }
            (_, Value::Varint(_)) => 1,
            // The last byte of a number alone has its highest bit clear.
            (_, Value::Bytes(run)) => run.iter().filter(|byte| **byte < 0x80).count(),
            (_, Value::Fixed32(_) | Value::Fixed64(_)) => return Err(Malformed::Type(name(field)).into()),
        };
        if let Value::Bytes(run) = value
            && found.elements == 0
        {
            found.only = Some(run);
        } else if elements > 0 {
            found.only = None;
        }
        found.elements += elements;
        found.bytes += elements * datatype.size().unwrap_or_default();
    }
    Ok(found)
}

/// Writes the elements of one field behind those that are there.
fn fill(datatype: Datatype, value: Value<'_>, data: &mut Vec<u8>) -> Result<(), AnswerError> {
    match value {
        Value::Bytes(element) if datatype == Datatype::Bytes => {
            let length = u32::try_from(element.len());
            let length =
                length.map_err(|_| AnswerError::InvalidInput("an element is too long".to_owned()))?;
            data.extend_from_slice(&length.to_le_bytes());
            data.extend_from_slice(element);
        }
        Value::Fixed32(element) => data.extend_from_slice(&element),
        Value::Fixed64(element) => data.extend_from_slice(&element),
        Value::Varint(number) => put(datatype, number, data)?,
        Value::Bytes(run) if matches!(datatype, Datatype::Fp32 | Datatype::Fp64) => {
            data.extend_from_slice(run);
        }
        Value::Bytes(mut run) => {
            while !run.is_empty() {
                put(datatype, varint(&mut run)?, data)?;
            }
        }
    }
    Ok(())
}

/// Writes one element. Of a number for a field of 32 bits the lower 32 count, as everywhere in Protocol Buffers.
#[inline]
fn put(datatype: Datatype, number: u64, data: &mut Vec<u8>) -> Result<(), AnswerError> {
    let (signed, unsigned) = (number as i32, number as u32);
    let index = || data.len() / datatype.size().unwrap_or(1);
    let out = |shown: &dyn std::fmt::Display| {
        AnswerError::InvalidInput(format!("element {}, {shown}, is not a {datatype}", index()))
    };
    match datatype {
        Datatype::Bool => data.push(u8::from(number != 0)),
        Datatype::Int8 => {
            let element = i8::try_from(signed).map_err(|_| out(&signed))?;
            data.extend_from_slice(&element.to_le_bytes());
        }
        Datatype::Int16 => {
            let element = i16::try_from(signed).map_err(|_| out(&signed))?;
            data.extend_from_slice(&element.to_le_bytes());
        }
        Datatype::Uint8 => data.push(u8::try_from(unsigned).map_err(|_| out(&unsigned))?),
        Datatype::Uint16 => {
            let element = u16::try_from(unsigned).map_err(|_| out(&unsigned))?;
            data.extend_from_slice(&element.to_le_bytes());
        }
        Datatype::Int32 | Datatype::Uint32 => data.extend_from_slice(&unsigned.to_le_bytes()),
        Datatype::Int64 | Datatype::Uint64 => data.extend_from_slice(&number.to_le_bytes()),
        Datatype::Fp16 | Datatype::Bf16 | Datatype::Fp32 | Datatype::Fp64 | Datatype::Bytes => {
            return Err(AnswerError::Internal);
        }
    }
    Ok(())
}

/// The bytes that [`write`] writes.
pub(super) fn written_len(tensor: &Tensor) -> usize {
    let Some(field) = field(tensor.datatype()) else { return 0 };
    if tensor.is_empty() {
        return 0;
    }
    match tensor.datatype() {
        Datatype::Bytes => {
            let elements = tensor.elements().map(|element| varint_len(element.len() as u64) + element.len());
            elements.map(|length| key_len(field) + length).sum()
        }
        _ => field_len(field, run_len(tensor)),
    }
}

/// The bytes of the numbers of a tensor, one after the other.
fn run_len(tensor: &Tensor) -> usize {
    match tensor.datatype() {
        Datatype::Bool | Datatype::Fp32 | Datatype::Fp64 => tensor.data().len(),
        _ => {
            let mut length = 0;
            each(tensor, |number| length += varint_len(number));
            length
        }
    }
}

/// Writes the elements of a tensor as contents.
pub(super) fn write(tensor: &Tensor, to: &mut Parts) {
    let Some(field) = field(tensor.datatype()).filter(|_| !tensor.is_empty()) else { return };
    match tensor.datatype() {
        Datatype::Bytes => tensor.elements().for_each(|element| put_bytes(to.last(), field, element)),
        // They are numbers already, those of BOOL too, which are 0 and 1.
        Datatype::Bool | Datatype::Fp32 | Datatype::Fp64 => {
            put_head(to.last(), field, tensor.data().len());
            to.put(tensor.data());
        }
        _ => {
            put_head(to.last(), field, run_len(tensor));
            let to = to.last();
            each(tensor, |number| put_varint(to, number));
        }
    }
}

/// The elements of a tensor of integers as the numbers that stand in a message: those below zero take 64 bits.
fn each(tensor: &Tensor, mut of: impl FnMut(u64)) {
    fn chunks<const N: usize>(data: &[u8], number: impl Fn([u8; N]) -> u64, of: &mut impl FnMut(u64)) {
        data.as_chunks().0.iter().for_each(|chunk| of(number(*chunk)));
    }
    let data = tensor.data();
    match tensor.datatype() {
        Datatype::Uint8 => chunks(data, |chunk| u64::from(u8::from_le_bytes(chunk)), &mut of),
        Datatype::Uint16 => chunks(data, |chunk| u64::from(u16::from_le_bytes(chunk)), &mut of),
        Datatype::Uint32 => chunks(data, |chunk| u64::from(u32::from_le_bytes(chunk)), &mut of),
        Datatype::Uint64 => chunks(data, u64::from_le_bytes, &mut of),
        Datatype::Int8 => chunks(data, |chunk| i64::from(i8::from_le_bytes(chunk)) as u64, &mut of),
        Datatype::Int16 => chunks(data, |chunk| i64::from(i16::from_le_bytes(chunk)) as u64, &mut of),
        Datatype::Int32 => chunks(data, |chunk| i64::from(i32::from_le_bytes(chunk)) as u64, &mut of),
        Datatype::Int64 => chunks(data, u64::from_le_bytes, &mut of),
        Datatype::Bool
        | Datatype::Fp16
        | Datatype::Bf16
        | Datatype::Fp32
        | Datatype::Fp64
        | Datatype::Bytes => {}
    }
}
