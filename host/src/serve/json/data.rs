//! The `data` of an input: JSON elements, flat or nested, straight into the bytes of a tensor.

use bytes::Bytes;
use half::{bf16, f16};
use serde::de::{Error, MapAccess, SeqAccess};

use super::Refused;
use super::take::{Any, Scalar, Take};
use crate::backend::validate::shape_text;
use crate::tensor::{Datatype, Tensor, elements};

/// Asked for room before memory is taken: whether there are as many bytes more.
pub type Room<'a> = dyn FnMut(usize) -> bool + 'a;

/// A tensor that is being read.
pub(super) struct Elements<'a, 'b> {
    datatype: Datatype,
    shape: Vec<usize>,
    /// Elements that the shape takes, and elements seen.
    expected: usize,
    seen: usize,
    /// Whether the elements are kept: there may be too few of them for the shape from the start.
    kept: bool,
    bytes: Vec<u8>,
    room: &'a mut Room<'b>,
    refused: Option<Refused>,
}

impl<'a, 'b> Elements<'a, 'b> {
    /// Reads the value of a field whose text has at most `longest` bytes.
    pub(super) fn read<'de, A: MapAccess<'de>>(
        datatype: Datatype,
        shape: Vec<usize>,
        longest: usize,
        room: &'a mut Room<'b>,
        fields: &mut A,
    ) -> Result<Result<Tensor, Refused>, A::Error> {
        let mut elements = match Elements::new(datatype, shape, longest, room) {
            Ok(elements) => elements,
            Err(refused) => return Ok(Err(refused)),
        };
        let read = fields.next_value_seed(Any(&mut elements));
        if let Some(refused) = elements.refused.take() {
            return Ok(Err(refused));
        }
        read.map(|()| elements.tensor())
    }

    /// Takes room for what the shape says.
    fn new(
        datatype: Datatype,
        shape: Vec<usize>,
        longest: usize,
        room: &'a mut Room<'b>,
    ) -> Result<Elements<'a, 'b>, Refused> {
        let expected = elements(&shape).map_err(|error| Refused::Input(error.to_string()))?;
        // An element and its comma take two bytes at least, so a tensor is at most four times its text.
        let kept = expected <= longest / 2 + 1;
        let mut elements =
            Elements { datatype, shape, expected, seen: 0, kept, bytes: Vec::new(), room, refused: None };
        if kept {
            elements.reserve(expected * datatype.size().unwrap_or(4))?;
        }
        Ok(elements)
    }

    fn tensor(self) -> Result<Tensor, Refused> {
        let Elements { datatype, shape, expected, seen, bytes, .. } = self;
        if seen != expected {
            let shape: Vec<_> = shape.into_iter().map(Some).collect();
            let shape = shape_text(&shape);
            return Err(Refused::Input(format!(
                "the shape {shape} takes {expected} elements, `data` has {seen}"
            )));
        }
        let tensor = Tensor::new(datatype, shape, Bytes::from(bytes));
        tensor.map_err(|error| Refused::Input(error.to_string()))
    }

    fn reserve(&mut self, more: usize) -> Result<(), Refused> {
        let (have, need) = (self.bytes.capacity(), self.bytes.len() + more);
        if need > have {
            let capacity = need.max(have * 2);
            if !(self.room)(capacity - have) {
                return Err(Refused::NoRoom);
            }
            self.bytes.reserve_exact(capacity - self.bytes.len());
        }
        Ok(())
    }

    /// Appends an element; `None` where the value is not of the type. Nothing is rounded into a type but floats.
    fn push(&mut self, value: &Scalar<'_>) -> Result<Option<()>, Refused> {
        if let Scalar::Text(text) = value
            && self.datatype == Datatype::Bytes
        {
            let Ok(length) = u32::try_from(text.len()) else { return Ok(None) };
            self.reserve(4 + text.len())?;
            self.bytes.extend_from_slice(&length.to_le_bytes());
            self.bytes.extend_from_slice(text.as_bytes());
            return Ok(Some(()));
        }
        Ok(push(self.datatype, value, &mut self.bytes))
    }

    fn refuse<E: Error>(&mut self, refused: Refused) -> E {
        self.refused = Some(refused);
        E::custom("refused")
    }
}

impl<'de> Take<'de> for &mut Elements<'_, '_> {
    #[inline]
    fn scalar<E: Error>(self, value: Scalar<'_>) -> Result<(), E> {
        let index = self.seen;
        self.seen += 1;
        // What is too much is counted for the caller, and not kept.
        if !self.kept || index >= self.expected {
            return Ok(());
        }
        match self.push(&value) {
            Ok(Some(())) => Ok(()),
            Ok(None) if self.datatype == Datatype::Bytes => {
                Err(self.refuse(Refused::Input("an element is not a string".to_owned())))
            }
            Ok(None) => {
                let reason = format!("element {index}, `{}`, is not a {}", short(&value), self.datatype);
                Err(self.refuse(Refused::Input(reason)))
            }
            Err(refused) => Err(self.refuse(refused)),
        }
    }

    fn array<A: SeqAccess<'de>>(self, mut elements: A) -> Result<(), A::Error> {
        // Depth is bounded: the JSON reader refuses nesting beyond 128.
        while elements.next_element_seed(Any(&mut *self))?.is_some() {}
        Ok(())
    }

    fn object<A: MapAccess<'de>>(self, _: A) -> Result<(), A::Error> {
        Err(self.refuse(Refused::Input("an element of `data` is an object".to_owned())))
    }
}

/// Room for it is there already.
#[inline]
fn push(datatype: Datatype, value: &Scalar<'_>, bytes: &mut Vec<u8>) -> Option<()> {
    match datatype {
        Datatype::Bool => match value {
            Scalar::Bool(value) => bytes.push(u8::from(*value)),
            _ => return None,
        },
        Datatype::Uint8 => bytes.extend_from_slice(&u8::try_from(uint(value)?).ok()?.to_le_bytes()),
        Datatype::Uint16 => bytes.extend_from_slice(&u16::try_from(uint(value)?).ok()?.to_le_bytes()),
        Datatype::Uint32 => bytes.extend_from_slice(&u32::try_from(uint(value)?).ok()?.to_le_bytes()),
        Datatype::Uint64 => bytes.extend_from_slice(&uint(value)?.to_le_bytes()),
        Datatype::Int8 => bytes.extend_from_slice(&i8::try_from(int(value)?).ok()?.to_le_bytes()),
        Datatype::Int16 => bytes.extend_from_slice(&i16::try_from(int(value)?).ok()?.to_le_bytes()),
        Datatype::Int32 => bytes.extend_from_slice(&i32::try_from(int(value)?).ok()?.to_le_bytes()),
        Datatype::Int64 => bytes.extend_from_slice(&int(value)?.to_le_bytes()),
        Datatype::Fp16 => bytes.extend_from_slice(&f16::from_f64(float(value)?).to_le_bytes()),
        Datatype::Bf16 => bytes.extend_from_slice(&bf16::from_f64(float(value)?).to_le_bytes()),
        #[expect(clippy::cast_possible_truncation, reason = "FP32 is what the caller asked for")]
        Datatype::Fp32 => bytes.extend_from_slice(&(float(value)? as f32).to_le_bytes()),
        Datatype::Fp64 => bytes.extend_from_slice(&float(value)?.to_le_bytes()),
        Datatype::Bytes => return None,
    }
    Some(())
}

fn int(value: &Scalar<'_>) -> Option<i64> {
    match *value {
        Scalar::Int(value) => Some(value),
        Scalar::Uint(value) => i64::try_from(value).ok(),
        _ => None,
    }
}

fn uint(value: &Scalar<'_>) -> Option<u64> {
    match *value {
        Scalar::Int(value) => u64::try_from(value).ok(),
        Scalar::Uint(value) => Some(value),
        _ => None,
    }
}

#[expect(clippy::cast_precision_loss, reason = "a float is what the caller asked for")]
fn float(value: &Scalar<'_>) -> Option<f64> {
    match *value {
        Scalar::Int(value) => Some(value as f64),
        Scalar::Uint(value) => Some(value as f64),
        Scalar::Float(value) => Some(value),
        _ => None,
    }
}

/// A value for people: its beginning, as JSON.
fn short(value: &Scalar<'_>) -> String {
    const CHARS: usize = 32;
    match *value {
        Scalar::Null => "null".to_owned(),
        Scalar::Bool(value) => value.to_string(),
        Scalar::Int(value) => value.to_string(),
        Scalar::Uint(value) => value.to_string(),
        Scalar::Float(value) => serde_json::Value::from(value).to_string(),
        Scalar::Text(text) => {
            let start: String = text.chars().take(CHARS).collect();
            serde_json::Value::from(start).to_string().chars().take(CHARS).collect()
        }
    }
}
