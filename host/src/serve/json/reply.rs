//! A typed reply as JSON, written from its tensors' bytes into a body of bounded length.

use std::collections::BTreeMap;
use std::io;

use half::{bf16, f16};
use serde::{Serialize, Serializer};

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
    let parameters = reply.parameters.iter().map(|(name, value)| (name.as_str(), ParameterForm(value)));
    let form =
        Form { id, model_name: function, outputs: Outputs(&reply.outputs), parameters: parameters.collect() };
    let mut body = Limited { bytes: Vec::new(), limit };
    // Nothing fails here but the body: the form has no keys that are not text.
    serde_json::to_writer(&mut body, &form).map_err(|_| TooLong)?;
    Ok(body.bytes)
}

/// Keys are in the order of the alphabet.
#[derive(Serialize)]
struct Form<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    model_name: &'a str,
    outputs: Outputs<'a>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    parameters: BTreeMap<&'a str, ParameterForm<'a>>,
}

struct Outputs<'a>(&'a [(String, Tensor)]);

impl Serialize for Outputs<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(|(name, tensor)| OutputForm {
            data: Data(tensor),
            datatype: tensor.datatype().name(),
            name,
            shape: tensor.shape(),
        }))
    }
}

#[derive(Serialize)]
struct OutputForm<'a> {
    data: Data<'a>,
    datatype: &'static str,
    name: &'a str,
    shape: &'a [usize],
}

struct ParameterForm<'a>(&'a Parameter);

impl Serialize for ParameterForm<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Parameter::Bool(value) => serializer.serialize_bool(*value),
            Parameter::Int64(value) => serializer.serialize_i64(*value),
            Parameter::Uint64(value) => serializer.serialize_u64(*value),
            Parameter::Double(value) => serializer.serialize_f64(*value),
            Parameter::Text(value) => serializer.serialize_str(value),
        }
    }
}

/// The elements, floats in the fewest digits that read back as the same value of their type.
/// What JSON cannot say, an infinity or NaN, is null.
struct Data<'a>(&'a Tensor);

impl Serialize for Data<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let to = serializer;
        let bytes = self.0.data();
        match self.0.datatype() {
            Datatype::Bool => each(to, bytes, |[byte]: [u8; 1]| byte != 0),
            Datatype::Uint8 => each(to, bytes, u8::from_le_bytes),
            Datatype::Uint16 => each(to, bytes, u16::from_le_bytes),
            Datatype::Uint32 => each(to, bytes, u32::from_le_bytes),
            Datatype::Uint64 => each(to, bytes, u64::from_le_bytes),
            Datatype::Int8 => each(to, bytes, i8::from_le_bytes),
            Datatype::Int16 => each(to, bytes, i16::from_le_bytes),
            Datatype::Int32 => each(to, bytes, i32::from_le_bytes),
            Datatype::Int64 => each(to, bytes, i64::from_le_bytes),
            Datatype::Fp16 => each(to, bytes, |chunk| f16::from_le_bytes(chunk).to_f32()),
            Datatype::Bf16 => each(to, bytes, |chunk| bf16::from_le_bytes(chunk).to_f32()),
            Datatype::Fp32 => each(to, bytes, f32::from_le_bytes),
            Datatype::Fp64 => each(to, bytes, f64::from_le_bytes),
            Datatype::Bytes => to.collect_seq(self.0.elements().map(String::from_utf8_lossy)),
        }
    }
}

fn each<S: Serializer, T: Serialize, const N: usize>(
    serializer: S,
    data: &[u8],
    value: impl Fn([u8; N]) -> T,
) -> Result<S::Ok, S::Error> {
    let (chunks, _) = data.as_chunks::<N>();
    serializer.collect_seq(chunks.iter().map(|chunk| value(*chunk)))
}

/// Bytes up to a limit; what goes beyond is an error.
struct Limited {
    bytes: Vec<u8>,
    limit: usize,
}

impl io::Write for Limited {
    #[inline]
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_all(bytes).map(|()| bytes.len())
    }

    #[inline]
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        if bytes.len() > self.limit - self.bytes.len() {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
