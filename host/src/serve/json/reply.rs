//! A typed reply as JSON, written from its tensors' bytes into a body of bounded length.

use std::collections::BTreeMap;
use std::io;

use half::{bf16, f16};
use serde_json::ser::{CompactFormatter, Formatter};

use crate::instance::typed::{Parameter, Reply};
use crate::tensor::{Datatype, Tensor};

/// The body is longer than it may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLong;

/// A typed reply as a body of at most `limit` bytes.
///
/// # Errors
/// Where the body is longer.
pub fn reply(function: &str, id: Option<&str>, reply: &Reply, limit: usize) -> Result<Vec<u8>, TooLong> {
    let head = Head { id, model_name: function, model_version: None };
    let outputs = reply.outputs.iter().map(|(name, tensor)| Shown { name, tensor, is_binary: false });
    let outputs: Vec<_> = outputs.collect();
    message(&head, &outputs, &reply.parameters, limit)
}

/// Whose answer it is.
pub(in crate::serve) struct Head<'a> {
    pub(in crate::serve) id: Option<&'a str>,
    pub(in crate::serve) model_name: &'a str,
    pub(in crate::serve) model_version: Option<&'a str>,
}

/// An output as the caller is told of it.
pub(in crate::serve) struct Shown<'a> {
    pub(in crate::serve) name: &'a str,
    pub(in crate::serve) tensor: &'a Tensor,
    /// Its length stands in place of its elements, which follow the JSON.
    pub(in crate::serve) is_binary: bool,
}

/// An answer of at most `limit` bytes. Keys are in the order of the alphabet.
pub(in crate::serve) fn message(
    head: &Head<'_>,
    outputs: &[Shown<'_>],
    parameters: &[(String, Parameter)],
    limit: usize,
) -> Result<Vec<u8>, TooLong> {
    let expected = outputs.iter().map(expected_length).sum::<usize>() + 128;
    let mut json = Json::new(expected, limit);
    json.head(head)?;
    json.raw(b",\"outputs\":[")?;
    for (index, output) in outputs.iter().enumerate() {
        json.raw(if index == 0 { b"{" } else { b",{" })?;
        json.output(output)?;
        json.raw(b"}")?;
    }
    json.raw(b"]")?;
    if !parameters.is_empty() {
        json.raw(b",\"parameters\":{")?;
        let sorted: BTreeMap<_, _> = parameters.iter().map(|(name, value)| (name.as_str(), value)).collect();
        for (index, (name, value)) in sorted.into_iter().enumerate() {
            json.raw(if index == 0 { b"" } else { b"," })?;
            json.text(name)?;
            json.raw(b":")?;
            json.parameter(value)?;
        }
        json.raw(b"}")?;
    }
    json.raw(b"}")?;
    Ok(json.into_bytes())
}

/// About how many bytes an output takes, so that a long body is seldom moved while it grows.
fn expected_length(output: &Shown<'_>) -> usize {
    let Shown { name, tensor, is_binary } = output;
    let elements = match tensor.datatype() {
        _ if *is_binary => 0,
        Datatype::Bytes => tensor.data().len(),
        Datatype::Fp32 | Datatype::Fp64 => tensor.data().len() * 3,
        _ => tensor.data().len() * 2,
    };
    elements + name.len() + 96
}

/// JSON as it is written, up to a limit. What goes beyond is an error, and is not held.
pub(in crate::serve) struct Json {
    bytes: Vec<u8>,
    limit: usize,
}

impl Json {
    pub(in crate::serve) fn new(expected: usize, limit: usize) -> Json {
        Json { bytes: Vec::with_capacity(expected.min(limit)), limit }
    }

    pub(in crate::serve) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// What is JSON already.
    #[inline]
    pub(in crate::serve) fn raw(&mut self, bytes: &[u8]) -> Result<(), TooLong> {
        if bytes.len() > self.limit - self.bytes.len() {
            return Err(TooLong);
        }
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    pub(in crate::serve) fn text(&mut self, text: &str) -> Result<(), TooLong> {
        // Nothing fails here but the writing.
        serde_json::to_writer(self, text).map_err(|_| TooLong)
    }

    /// An object's brace and first keys.
    pub(in crate::serve) fn head(&mut self, head: &Head<'_>) -> Result<(), TooLong> {
        self.raw(b"{")?;
        if let Some(id) = head.id {
            self.raw(b"\"id\":")?;
            self.text(id)?;
            self.raw(b",")?;
        }
        self.raw(b"\"model_name\":")?;
        self.text(head.model_name)?;
        if let Some(version) = head.model_version {
            self.raw(b",\"model_version\":")?;
            self.text(version)?;
        }
        Ok(())
    }

    pub(in crate::serve) fn parameter(&mut self, value: &Parameter) -> Result<(), TooLong> {
        match value {
            Parameter::Bool(value) => self.raw(if *value { b"true" } else { b"false" }),
            Parameter::Int64(value) => self.with(|format, to| format.write_i64(to, *value)),
            Parameter::Uint64(value) => self.with(|format, to| format.write_u64(to, *value)),
            Parameter::Double(value) => self.fp64(*value),
            Parameter::Text(value) => self.text(value),
        }
    }

    fn output(&mut self, output: &Shown<'_>) -> Result<(), TooLong> {
        let Shown { name, tensor, is_binary } = output;
        if !is_binary {
            self.raw(b"\"data\":")?;
            self.data(tensor)?;
            self.raw(b",")?;
        }
        self.raw(b"\"datatype\":\"")?;
        self.raw(tensor.datatype().name().as_bytes())?;
        self.raw(b"\",\"name\":")?;
        self.text(name)?;
        if *is_binary {
            self.raw(b",\"parameters\":{\"binary_data_size\":")?;
            self.size(tensor.data().len())?;
            self.raw(b"}")?;
        }
        self.raw(b",\"shape\":[")?;
        for (index, dim) in tensor.shape().iter().enumerate() {
            self.raw(if index == 0 { b"" } else { b"," })?;
            self.size(*dim)?;
        }
        self.raw(b"]")
    }

    fn size(&mut self, size: usize) -> Result<(), TooLong> {
        self.with(|format, to| format.write_u64(to, size as u64))
    }

    /// The elements as an array, without nesting.
    pub(in crate::serve) fn data(&mut self, tensor: &Tensor) -> Result<(), TooLong> {
        self.raw(b"[")?;
        self.elements(tensor)?;
        self.raw(b"]")
    }

    /// The elements, floats in the fewest digits that read back as the same value of their type.
    /// What JSON cannot say, an infinity or NaN, is null, and what is not UTF-8 in BYTES is replaced.
    pub(in crate::serve) fn elements(&mut self, tensor: &Tensor) -> Result<(), TooLong> {
        let bytes = tensor.data();
        match tensor.datatype() {
            Datatype::Bool => {
                self.each(bytes, |json, [byte]: [u8; 1]| json.raw(if byte == 0 { b"false" } else { b"true" }))
            }
            Datatype::Uint8 => self.each(bytes, |json, [byte]| json.with(|f, to| f.write_u8(to, byte))),
            Datatype::Uint16 => self.each(bytes, |json, two| {
                json.with(|format, to| format.write_u16(to, u16::from_le_bytes(two)))
            }),
            Datatype::Uint32 => self.each(bytes, |json, four| {
                json.with(|format, to| format.write_u32(to, u32::from_le_bytes(four)))
            }),
            Datatype::Uint64 => self.each(bytes, |json, eight| {
                json.with(|format, to| format.write_u64(to, u64::from_le_bytes(eight)))
            }),
            Datatype::Int8 => self
                .each(bytes, |json, one| json.with(|format, to| format.write_i8(to, i8::from_le_bytes(one)))),
            Datatype::Int16 => self.each(bytes, |json, two| {
                json.with(|format, to| format.write_i16(to, i16::from_le_bytes(two)))
            }),
            Datatype::Int32 => self.each(bytes, |json, four| {
                json.with(|format, to| format.write_i32(to, i32::from_le_bytes(four)))
            }),
            Datatype::Int64 => self.each(bytes, |json, eight| {
                json.with(|format, to| format.write_i64(to, i64::from_le_bytes(eight)))
            }),
            Datatype::Fp16 => self.each(bytes, |json, two| json.fp32(f16::from_le_bytes(two).to_f32())),
            Datatype::Bf16 => self.each(bytes, |json, two| json.fp32(bf16::from_le_bytes(two).to_f32())),
            Datatype::Fp32 => self.each(bytes, |json, four| json.fp32(f32::from_le_bytes(four))),
            Datatype::Fp64 => self.each(bytes, |json, eight| json.fp64(f64::from_le_bytes(eight))),
            Datatype::Bytes => {
                for (index, element) in tensor.elements().enumerate() {
                    self.raw(if index == 0 { b"" } else { b"," })?;
                    self.text(&String::from_utf8_lossy(element))?;
                }
                Ok(())
            }
        }
    }

    #[inline]
    fn fp32(&mut self, value: f32) -> Result<(), TooLong> {
        if value.is_finite() {
            self.with(|format, to| format.write_f32(to, value))
        } else {
            self.raw(b"null")
        }
    }

    #[inline]
    fn fp64(&mut self, value: f64) -> Result<(), TooLong> {
        if value.is_finite() {
            self.with(|format, to| format.write_f64(to, value))
        } else {
            self.raw(b"null")
        }
    }

    #[inline]
    fn each<const N: usize>(
        &mut self,
        data: &[u8],
        write: impl Fn(&mut Json, [u8; N]) -> Result<(), TooLong>,
    ) -> Result<(), TooLong> {
        let (chunks, _) = data.as_chunks::<N>();
        for (index, chunk) in chunks.iter().enumerate() {
            if index > 0 {
                self.raw(b",")?;
            }
            write(self, *chunk)?;
        }
        Ok(())
    }

    #[inline]
    fn with(
        &mut self,
        write: impl FnOnce(&mut CompactFormatter, &mut Json) -> io::Result<()>,
    ) -> Result<(), TooLong> {
        write(&mut CompactFormatter, self).map_err(|_| TooLong)
    }
}

impl io::Write for Json {
    #[inline]
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_all(bytes).map(|()| bytes.len())
    }

    #[inline]
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.raw(bytes).map_err(|TooLong| io::ErrorKind::FileTooLarge.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
