//! The Rust types that a tensor's elements can have, and how they lie in memory.

use std::borrow::Cow;

use half::{bf16, f16};

use crate::bytes::{Bytes, decode_bytes, encode_bytes};
use crate::{Datatype, Error, Result};

/// A type that the elements of a [`Tensor`](crate::Tensor) can have.
///
/// | type | datatype | | type | datatype |
/// |---|---|---|---|---|
/// | `bool` | BOOL | | `i8` `i16` `i32` `i64` | INT8 INT16 INT32 INT64 |
/// | `u8` `u16` `u32` `u64` | UINT8 UINT16 UINT32 UINT64 | | [`f16`](crate::f16) [`bf16`](crate::bf16) | FP16 BF16 |
/// | `f32` `f64` | FP32 FP64 | | `String` [`Bytes`] | BYTES |
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not an element of a tensor",
    note = "elements are bool, u8 to u64, i8 to i64, f16, bf16, f32, f64, String and Bytes"
)]
pub trait Element: Codec + Clone + 'static {
    /// The datatype in the Open Inference Protocol.
    const DATATYPE: Datatype;
}

/// Elements as they came: a host's bytes are read in place where their form allows it.
#[derive(Clone, Debug)]
pub enum Stored<T> {
    /// Elements made here.
    Elements(Vec<T>),
    /// Bytes whose form and alignment were checked.
    InPlace(Vec<u8>),
}

/// How elements are read and written. Sealed: the datatypes are a closed set.
pub trait Codec: Sized {
    /// Whether every sequence of bytes of the right length is valid, so that reading can wait.
    const ANY_BYTES: bool;

    /// The bytes as elements, where they can be read in place.
    fn view(data: &[u8]) -> Option<&[Self]>;

    /// The same to write into.
    fn view_mut(data: &mut [u8]) -> Option<&mut [Self]>;

    /// Elements of a host's bytes.
    fn decode(data: Vec<u8>) -> Result<Stored<Self>>;

    /// The bytes that a host takes.
    fn encode(elements: &[Self]) -> Cow<'_, [u8]>;
}

impl<T: Element> Stored<T> {
    pub(crate) fn as_slice(&self) -> &[T] {
        match self {
            Self::Elements(elements) => elements,
            Self::InPlace(data) => T::view(data).expect("form and alignment were checked when it was stored"),
        }
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [T] {
        match self {
            Self::Elements(elements) => elements,
            Self::InPlace(data) => {
                T::view_mut(data).expect("form and alignment were checked when it was stored")
            }
        }
    }

    pub(crate) fn into_vec(self) -> Vec<T> {
        match self {
            Self::Elements(elements) => elements,
            Self::InPlace(_) => self.as_slice().to_vec(),
        }
    }
}

macro_rules! numbers {
    ($($ty:ty: $datatype:ident),*) => {$(
        impl Element for $ty {
            const DATATYPE: Datatype = Datatype::$datatype;
        }

        impl Codec for $ty {
            const ANY_BYTES: bool = true;

            fn view(data: &[u8]) -> Option<&[Self]> {
                bytemuck::try_cast_slice(data).ok()
            }

            fn view_mut(data: &mut [u8]) -> Option<&mut [Self]> {
                bytemuck::try_cast_slice_mut(data).ok()
            }

            fn decode(data: Vec<u8>) -> Result<Stored<Self>> {
                if Self::view(&data).is_some() {
                    return Ok(Stored::InPlace(data));
                }
                let (elements, rest) = data.as_chunks::<{ size_of::<Self>() }>();
                if !rest.is_empty() {
                    return Err(Error::invalid_input("the data ends inside an element"));
                }
                Ok(Stored::Elements(elements.iter().map(|&element| bytemuck::cast(element)).collect()))
            }

            fn encode(elements: &[Self]) -> Cow<'_, [u8]> {
                Cow::Borrowed(bytemuck::cast_slice(elements))
            }
        }
    )*};
}

numbers! {
    u8: Uint8, u16: Uint16, u32: Uint32, u64: Uint64, i8: Int8, i16: Int16, i32: Int32, i64: Int64,
    f16: Fp16, bf16: Bf16, f32: Fp32, f64: Fp64
}

impl Element for bool {
    const DATATYPE: Datatype = Datatype::Bool;
}

impl Codec for bool {
    const ANY_BYTES: bool = false;

    fn view(data: &[u8]) -> Option<&[Self]> {
        bytemuck::checked::try_cast_slice(data).ok()
    }

    fn view_mut(data: &mut [u8]) -> Option<&mut [Self]> {
        bytemuck::checked::try_cast_slice_mut(data).ok()
    }

    fn decode(data: Vec<u8>) -> Result<Stored<Self>> {
        match Self::view(&data) {
            Some(_) => Ok(Stored::InPlace(data)),
            None => Err(Error::invalid_input("an element of a BOOL tensor is neither 0 nor 1")),
        }
    }

    fn encode(elements: &[Self]) -> Cow<'_, [u8]> {
        Cow::Borrowed(bytemuck::cast_slice(elements))
    }
}

macro_rules! byte_strings {
    ($($ty:ty: $from:expr),*) => {$(
        impl Element for $ty {
            const DATATYPE: Datatype = Datatype::Bytes;
        }

        impl Codec for $ty {
            const ANY_BYTES: bool = false;

            fn view(_: &[u8]) -> Option<&[Self]> {
                None
            }

            fn view_mut(_: &mut [u8]) -> Option<&mut [Self]> {
                None
            }

            fn decode(data: Vec<u8>) -> Result<Stored<Self>> {
                decode_bytes(&data, $from).map(Stored::Elements)
            }

            fn encode(elements: &[Self]) -> Cow<'_, [u8]> {
                Cow::Owned(encode_bytes(elements))
            }
        }
    )*};
}

byte_strings! { Bytes: |data| Ok(Bytes::from(data)), String: text }

/// One element of a BYTES tensor as text.
pub(crate) fn text(data: &[u8]) -> Result<String> {
    match str::from_utf8(data) {
        Ok(text) => Ok(text.to_owned()),
        Err(error) => Err(Error::invalid_input(format!("text is not UTF-8: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check<T: Element + PartialEq + std::fmt::Debug>(elements: &[T]) {
        let data = T::encode(elements).into_owned();
        let mut shifted = vec![0];
        shifted.extend_from_slice(&data);
        assert_eq!(T::decode(data).unwrap().as_slice(), elements, "{:?}", T::DATATYPE);
        let misaligned = T::decode(shifted.split_off(1)).unwrap();
        assert_eq!(misaligned.into_vec(), elements, "{:?}", T::DATATYPE);
    }

    #[test]
    fn every_datatype_survives_the_way_there_and_back() {
        check(&[true, false]);
        check(&[0_u8, 255]);
        check(&[1_u16, 65535]);
        check(&[1_u32, u32::MAX]);
        check(&[1_u64, u64::MAX]);
        check(&[-1_i8, 127]);
        check(&[-1_i16, 300]);
        check(&[-1_i32, i32::MIN]);
        check(&[-1_i64, i64::MIN]);
        check(&[f16::from_f32(0.5), f16::INFINITY]);
        check(&[bf16::from_f32(0.5), bf16::MIN]);
        check(&[0.1_f32, -2.5]);
        check(&[0.1_f64, -2.5]);
        check(&[String::from("ä"), String::new()]);
        check(&[Bytes::from(b"\xff\x00"), Bytes::from(b"")]);
    }

    #[test]
    fn a_form_that_does_not_fit_is_refused() {
        assert!(bool::decode(vec![0, 2]).is_err());
        assert!(f32::decode(vec![0, 0, 0]).is_err());
        assert!(String::decode(vec![1, 0, 0, 0, 0xff]).is_err());
        assert!(String::decode(vec![9, 0, 0, 0, b'a']).is_err());
        assert!(String::decode(vec![9, 0]).is_err());
    }
}
