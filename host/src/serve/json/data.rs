//! The `data` of a tensor: JSON elements, flat or nested, straight into the bytes of a tensor.
//!
//! How they are nested is not looked at, for clients differ in it: their order and their number are what counts.
//! FP16 and BF16 are taken as numbers like all others, though the protocol asks for them in binary alone.

use bytes::Bytes;
use half::{bf16, f16};

use super::Refused;
use super::number::Number;
use super::scan::{Scan, Value};
use super::text::Text;
use crate::backend::validate::shape_text;
use crate::tensor::{Datatype, Tensor, elements};

/// Asked for room before memory is taken: whether there are as many bytes more.
pub type Room<'a> = dyn FnMut(usize) -> bool + 'a;

/// Reads the value at a place as a tensor, which takes at most four times the bytes that are left of the text.
/// `room` is asked for them before memory is taken.
///
/// # Errors
/// Where an element is not of the datatype, or their number is not the shape's.
pub(in crate::serve) fn tensor(
    scan: &mut Scan<'_>,
    datatype: Datatype,
    shape: Vec<usize>,
    room: &mut Room<'_>,
) -> Result<Tensor, Refused> {
    let expected = elements(&shape).map_err(|error| Refused::Input(error.to_string()))?;
    // An element and its comma take two bytes at least: there may be too few of them for the shape from the start.
    let is_kept = expected <= scan.left() / 2 + 1;
    let mut elements = Elements { datatype, expected, seen: 0, is_kept, bytes: Vec::new(), room };
    if is_kept {
        elements.reserve(expected * datatype.size().unwrap_or(4))?;
    }
    elements.read(scan)?;
    let Elements { seen, bytes, .. } = elements;
    if seen != expected {
        let shape: Vec<_> = shape.into_iter().map(Some).collect();
        let shape = shape_text(&shape);
        return Err(Refused::Input(format!(
            "the shape {shape} takes {expected} elements, `data` has {seen}"
        )));
    }
    Tensor::new(datatype, shape, Bytes::from(bytes)).map_err(|error| Refused::Input(error.to_string()))
}

/// A tensor that is being read.
struct Elements<'a, 'b> {
    datatype: Datatype,
    /// Elements that the shape takes, and elements seen.
    expected: usize,
    seen: usize,
    /// Whether elements are kept, or only counted for the caller.
    is_kept: bool,
    bytes: Vec<u8>,
    room: &'a mut Room<'b>,
}

impl Elements<'_, '_> {
    /// Reads the value at the place. Each datatype has a loop of its own: this is where large bodies spend their time.
    fn read(&mut self, scan: &mut Scan<'_>) -> Result<(), Refused> {
        let value = &scan.value()?;
        match self.datatype {
            Datatype::Bool | Datatype::Bytes => self.values(scan, value, |_| None::<[u8; 0]>),
            Datatype::Uint8 => {
                self.values(scan, value, |n| Some(u8::try_from(n.uint()?).ok()?.to_le_bytes()))
            }
            Datatype::Uint16 => {
                self.values(scan, value, |n| Some(u16::try_from(n.uint()?).ok()?.to_le_bytes()))
            }
            Datatype::Uint32 => {
                self.values(scan, value, |n| Some(u32::try_from(n.uint()?).ok()?.to_le_bytes()))
            }
            Datatype::Uint64 => self.values(scan, value, |n| Some(n.uint()?.to_le_bytes())),
            Datatype::Int8 => self.values(scan, value, |n| Some(i8::try_from(n.int()?).ok()?.to_le_bytes())),
            Datatype::Int16 => {
                self.values(scan, value, |n| Some(i16::try_from(n.int()?).ok()?.to_le_bytes()))
            }
            Datatype::Int32 => {
                self.values(scan, value, |n| Some(i32::try_from(n.int()?).ok()?.to_le_bytes()))
            }
            Datatype::Int64 => self.values(scan, value, |n| Some(n.int()?.to_le_bytes())),
            Datatype::Fp16 => self.values(scan, value, |n| {
                Some(f16::from_f64(n.fp64()?)).filter(|value| value.is_finite()).map(f16::to_le_bytes)
            }),
            Datatype::Bf16 => self.values(scan, value, |n| {
                Some(bf16::from_f64(n.fp64()?)).filter(|value| value.is_finite()).map(bf16::to_le_bytes)
            }),
            Datatype::Fp32 => self.values(scan, value, |n| n.fp32().map(f32::to_le_bytes)),
            Datatype::Fp64 => self.values(scan, value, |n| n.fp64().map(f64::to_le_bytes)),
        }
    }

    fn values<const N: usize>(
        &mut self,
        scan: &mut Scan<'_>,
        value: &Value<'_>,
        element: impl Fn(&Number<'_>) -> Option<[u8; N]> + Copy,
    ) -> Result<(), Refused> {
        match value {
            Value::Array => {
                let mut first = true;
                while scan.element(&mut first)? {
                    if scan.is_number() {
                        let number = scan.number()?;
                        self.number(&number, element)?;
                    } else {
                        // The scan bounds the depth.
                        let value = scan.value()?;
                        self.values(scan, &value, element)?;
                    }
                }
                Ok(())
            }
            Value::Object => Err(Refused::Input("an element of `data` is an object".to_owned())),
            Value::Number(number) => self.number(number, element),
            Value::Text(text) => self.text(*text),
            Value::Bool(value) => self.bool(*value),
            Value::Null if self.count() => Err(self.wrong("null")),
            Value::Null => Ok(()),
        }
    }

    /// Whether the next element is one to be kept.
    #[inline]
    fn count(&mut self) -> bool {
        self.seen += 1;
        // What is too much is counted for the caller, and not kept.
        self.is_kept && self.seen <= self.expected
    }

    /// Nothing is rounded into a type but floats, and nothing becomes an infinity.
    #[inline(always)]
    fn number<const N: usize>(
        &mut self,
        number: &Number<'_>,
        element: impl Fn(&Number<'_>) -> Option<[u8; N]>,
    ) -> Result<(), Refused> {
        if !self.count() {
            return Ok(());
        }
        match element(number) {
            // Room for it is there already.
            Some(bytes) => self.bytes.extend_from_slice(&bytes),
            None => return Err(self.wrong(number.text())),
        }
        Ok(())
    }

    fn text(&mut self, text: Text<'_>) -> Result<(), Refused> {
        if !self.count() {
            return Ok(());
        }
        if self.datatype != Datatype::Bytes {
            return Err(self.wrong(&format!("\"{}\"", text.start())));
        }
        self.reserve(4 + text.longest())?;
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        text.append(&mut self.bytes)?;
        let length = self.bytes.len() - start - 4;
        let length = u32::try_from(length)
            .map_err(|_| Refused::Input("an element is longer than 4 GiB".to_owned()))?;
        self.bytes[start..start + 4].copy_from_slice(&length.to_le_bytes());
        Ok(())
    }

    fn bool(&mut self, value: bool) -> Result<(), Refused> {
        if !self.count() {
            return Ok(());
        }
        if self.datatype != Datatype::Bool {
            return Err(self.wrong(if value { "true" } else { "false" }));
        }
        self.bytes.push(u8::from(value));
        Ok(())
    }

    /// The element that was counted last is not of the type.
    #[cold]
    fn wrong(&self, text: &str) -> Refused {
        const CHARS: usize = 32;
        if self.datatype == Datatype::Bytes {
            return Refused::Input("an element is not a string".to_owned());
        }
        let text: String = text.chars().take(CHARS).collect();
        Refused::Input(format!("element {}, `{text}`, is not {}", self.seen - 1, self.datatype))
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
}
