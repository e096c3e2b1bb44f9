//! A tensor as it travels between callers, guests and backends: datatype, shape and little-endian bytes.

// Named by its path, for `host/fuzz` takes this file in from elsewhere.
#[path = "tensor/compare.rs"]
pub mod compare;

use std::fmt;

use bytes::Bytes;
use thiserror::Error;

/// The most dimensions a tensor may have; no model format in use goes beyond eight.
pub const MAX_RANK: usize = 16;

/// Element types of the Open Inference Protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Datatype {
    /// One byte an element: 0 or 1.
    Bool,
    Uint8,
    Uint16,
    Uint32,
    Uint64,
    Int8,
    Int16,
    Int32,
    Int64,
    /// IEEE 754 half precision.
    Fp16,
    /// The upper half of an FP32.
    Bf16,
    Fp32,
    Fp64,
    /// Byte strings of any length. In memory each element is a 4-byte little-endian length and its bytes,
    /// which is also the binary form of the Open Inference Protocol.
    Bytes,
}

impl Datatype {
    pub const ALL: [Datatype; 14] = [
        Datatype::Bool,
        Datatype::Uint8,
        Datatype::Uint16,
        Datatype::Uint32,
        Datatype::Uint64,
        Datatype::Int8,
        Datatype::Int16,
        Datatype::Int32,
        Datatype::Int64,
        Datatype::Fp16,
        Datatype::Bf16,
        Datatype::Fp32,
        Datatype::Fp64,
        Datatype::Bytes,
    ];

    /// Bytes of one element; `None` for BYTES, whose elements differ in length.
    pub fn size(self) -> Option<usize> {
        match self {
            Datatype::Bool | Datatype::Uint8 | Datatype::Int8 => Some(1),
            Datatype::Uint16 | Datatype::Int16 | Datatype::Fp16 | Datatype::Bf16 => Some(2),
            Datatype::Uint32 | Datatype::Int32 | Datatype::Fp32 => Some(4),
            Datatype::Uint64 | Datatype::Int64 | Datatype::Fp64 => Some(8),
            Datatype::Bytes => None,
        }
    }

    /// The name that the Open Inference Protocol gives the type, such as `FP32`.
    pub fn name(self) -> &'static str {
        match self {
            Datatype::Bool => "BOOL",
            Datatype::Uint8 => "UINT8",
            Datatype::Uint16 => "UINT16",
            Datatype::Uint32 => "UINT32",
            Datatype::Uint64 => "UINT64",
            Datatype::Int8 => "INT8",
            Datatype::Int16 => "INT16",
            Datatype::Int32 => "INT32",
            Datatype::Int64 => "INT64",
            Datatype::Fp16 => "FP16",
            Datatype::Bf16 => "BF16",
            Datatype::Fp32 => "FP32",
            Datatype::Fp64 => "FP64",
            Datatype::Bytes => "BYTES",
        }
    }

    /// The type of this Open Inference Protocol name; names are case-sensitive.
    pub fn from_name(name: &str) -> Option<Datatype> {
        Datatype::ALL.into_iter().find(|datatype| datatype.name() == name)
    }
}

impl fmt::Display for Datatype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why bytes are not a tensor of the datatype and shape given with them.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TensorError {
    #[error("a tensor has at most {MAX_RANK} dimensions, this one has {0}")]
    Rank(usize),
    #[error("the shape {0:?} has more elements than can be addressed")]
    TooManyElements(Vec<usize>),
    #[error("{datatype} {shape:?} takes {expected} bytes, but {actual} were given")]
    Length { datatype: Datatype, shape: Vec<usize>, expected: usize, actual: usize },
    #[error("BYTES element {element} of {expected} does not fit in the {actual} bytes given")]
    BytesElement { element: usize, expected: usize, actual: usize },
    #[error("BYTES {shape:?} has {elements} elements, but {extra} bytes follow the last one")]
    BytesExtra { shape: Vec<usize>, elements: usize, extra: usize },
    #[error("BOOL elements are 0 or 1, element {0} is not")]
    Bool(usize),
}

/// Datatype, shape and data that agree: a `Tensor` cannot be made of bytes that do not fit its shape.
#[derive(Clone, PartialEq, Eq)]
pub struct Tensor {
    datatype: Datatype,
    shape: Vec<usize>,
    data: Bytes,
}

impl Tensor {
    /// Checks `data`, little-endian and row-major, against datatype and shape.
    ///
    /// # Errors
    /// Where the length does not follow from datatype and shape, or an element is malformed.
    pub fn new(datatype: Datatype, shape: Vec<usize>, data: Bytes) -> Result<Tensor, TensorError> {
        let elements = elements(&shape)?;
        match datatype.size() {
            Some(size) => {
                let expected =
                    elements.checked_mul(size).ok_or_else(|| TensorError::TooManyElements(shape.clone()))?;
                if data.len() != expected {
                    return Err(TensorError::Length { datatype, shape, expected, actual: data.len() });
                }
                if datatype == Datatype::Bool
                    && let Some(element) = data.iter().position(|byte| *byte > 1)
                {
                    return Err(TensorError::Bool(element));
                }
            }
            None => check_bytes(&shape, elements, &data)?,
        }
        Ok(Tensor { datatype, shape, data })
    }

    /// A BYTES tensor of the given elements, in row-major order.
    ///
    /// # Errors
    /// Where the number of elements does not follow from the shape, or one is longer than 4 GiB.
    pub fn from_elements(shape: Vec<usize>, values: &[impl AsRef<[u8]>]) -> Result<Tensor, TensorError> {
        let total = values.iter().map(|value| 4 + value.as_ref().len()).sum();
        let mut data = Vec::with_capacity(total);
        for (element, value) in values.iter().enumerate() {
            let value = value.as_ref();
            let length = u32::try_from(value.len()).map_err(|_| TensorError::BytesElement {
                element,
                expected: values.len(),
                actual: value.len(),
            })?;
            data.extend_from_slice(&length.to_le_bytes());
            data.extend_from_slice(value);
        }
        Tensor::new(Datatype::Bytes, shape, data.into())
    }

    pub fn datatype(&self) -> Datatype {
        self.datatype
    }

    /// Dimensions, outermost first; empty for a scalar.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Little-endian, row-major; for BYTES see [`Datatype::Bytes`].
    pub fn data(&self) -> &Bytes {
        &self.data
    }

    /// The same tensor with bytes of its own, which hold on to nothing else.
    #[must_use]
    pub fn copied(&self) -> Tensor {
        Tensor { data: Bytes::copy_from_slice(&self.data), ..self.clone() }
    }

    pub fn into_data(self) -> Bytes {
        self.data
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether a dimension is zero.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The elements of a BYTES tensor; nothing for other datatypes.
    pub fn elements(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest: &[u8] = if self.datatype == Datatype::Bytes { &self.data } else { &[] };
        std::iter::from_fn(move || {
            let (length, tail) = rest.split_first_chunk::<4>()?;
            let (element, tail) = tail.split_at_checked(u32::from_le_bytes(*length) as usize)?;
            rest = tail;
            Some(element)
        })
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never the data: inputs and outputs do not belong in logs.
        write!(f, "Tensor({} {:?}, {} bytes)", self.datatype, self.shape, self.data.len())
    }
}

/// The number of elements of a shape.
///
/// # Errors
/// Where the shape has too many dimensions or more elements than can be addressed.
pub fn elements(shape: &[usize]) -> Result<usize, TensorError> {
    if shape.len() > MAX_RANK {
        return Err(TensorError::Rank(shape.len()));
    }
    // A zero anywhere must not hide an absurd dimension elsewhere.
    let bound = shape.iter().try_fold(1usize, |product, dim| product.checked_mul((*dim).max(1)));
    match bound {
        Some(bound) if bound <= isize::MAX as usize => Ok(shape.iter().product()),
        _ => Err(TensorError::TooManyElements(shape.to_vec())),
    }
}

fn check_bytes(shape: &[usize], elements: usize, data: &[u8]) -> Result<(), TensorError> {
    let mut rest = data;
    for element in 0..elements {
        let overrun = || TensorError::BytesElement { element, expected: elements, actual: data.len() };
        let (length, tail) = rest.split_first_chunk::<4>().ok_or_else(overrun)?;
        (_, rest) = tail.split_at_checked(u32::from_le_bytes(*length) as usize).ok_or_else(overrun)?;
    }
    if rest.is_empty() {
        Ok(())
    } else {
        Err(TensorError::BytesExtra { shape: shape.to_vec(), elements, extra: rest.len() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(datatype: Datatype, shape: &[usize], data: &[u8], expected: Result<usize, &str>) {
        let actual = Tensor::new(datatype, shape.to_vec(), Bytes::copy_from_slice(data))
            .map(|tensor| tensor.len())
            .map_err(|error| error.to_string());
        match (actual, expected) {
            (Ok(actual), Ok(expected)) => assert_eq!(actual, expected),
            (Err(actual), Err(expected)) => assert!(actual.contains(expected), "{actual}"),
            (actual, expected) => panic!("{datatype} {shape:?}: {actual:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn data_must_agree_with_datatype_and_shape() {
        check(Datatype::Fp32, &[2, 2], &[0; 16], Ok(4));
        check(Datatype::Fp32, &[], &[0; 4], Ok(1));
        check(Datatype::Fp32, &[0, 7], &[], Ok(0));
        check(Datatype::Fp32, &[2, 2], &[0; 15], Err("takes 16 bytes, but 15"));
        check(Datatype::Int64, &[usize::MAX, 2], &[], Err("more elements"));
        check(Datatype::Int64, &[usize::MAX, 0, 2], &[], Err("more elements"));
        check(Datatype::Int64, &[1 << 61], &[], Err("more elements"));
        check(Datatype::Uint8, &[1; 17], &[0], Err("at most 16 dimensions"));
        check(Datatype::Bool, &[3], &[0, 1, 1], Ok(3));
        check(Datatype::Bool, &[3], &[0, 1, 2], Err("element 2 is not"));
    }

    #[test]
    fn bytes_elements_must_fill_the_data() {
        check(Datatype::Bytes, &[2], b"\x01\0\0\0a\0\0\0\0", Ok(2));
        check(Datatype::Bytes, &[2], b"\x01\0\0\0a", Err("element 1 of 2"));
        check(Datatype::Bytes, &[1], b"\xff\xff\xff\xffa", Err("element 0 of 1"));
        check(Datatype::Bytes, &[1], b"\0\0\0\0a", Err("1 bytes follow"));
        check(Datatype::Bytes, &[usize::MAX >> 1], b"", Err("element 0"));
        let tensor = Tensor::from_elements(vec![2], &["seven", ""]).unwrap();
        assert_eq!(tensor.elements().collect::<Vec<_>>(), [b"seven".as_slice(), b""]);
    }

    #[test]
    fn datatype_names_round_trip() {
        for datatype in Datatype::ALL {
            assert_eq!(Datatype::from_name(datatype.name()), Some(datatype));
        }
        assert_eq!(Datatype::from_name("fp32"), None);
    }
}
