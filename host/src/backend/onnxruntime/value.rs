//! Tensors to ONNX Runtime's values and back: inputs are lent in place, outputs copied once.

use std::ptr;

use bytes::Bytes;
use ort::AsPointer as _;
use ort::memory::{Allocator, MemoryInfo};
use ort::session::SessionInputValue;
use ort::value::{DynTensor, DynTensorValueType, DynValue, DynValueRef, Shape, TensorElementType};

use crate::backend::{InferError, Port};
use crate::tensor::{Datatype, Tensor};

const TYPES: [(Datatype, TensorElementType); 14] = [
    (Datatype::Bool, TensorElementType::Bool),
    (Datatype::Uint8, TensorElementType::Uint8),
    (Datatype::Uint16, TensorElementType::Uint16),
    (Datatype::Uint32, TensorElementType::Uint32),
    (Datatype::Uint64, TensorElementType::Uint64),
    (Datatype::Int8, TensorElementType::Int8),
    (Datatype::Int16, TensorElementType::Int16),
    (Datatype::Int32, TensorElementType::Int32),
    (Datatype::Int64, TensorElementType::Int64),
    (Datatype::Fp16, TensorElementType::Float16),
    (Datatype::Bf16, TensorElementType::Bfloat16),
    (Datatype::Fp32, TensorElementType::Float32),
    (Datatype::Fp64, TensorElementType::Float64),
    (Datatype::Bytes, TensorElementType::String),
];

/// The datatype of an element type; `None` for those that the Open Inference Protocol does not have.
pub(super) fn datatype(element: TensorElementType) -> Option<Datatype> {
    TYPES.into_iter().find(|(_, other)| *other == element).map(|(datatype, _)| datatype)
}

fn element_type(datatype: Datatype) -> TensorElementType {
    let found = TYPES.into_iter().find(|(other, _)| *other == datatype);
    found.expect("the table has every datatype").1
}

/// The inputs of one run. The values point into `lent`, so they are declared, and dropped, before it.
pub(super) struct Inputs {
    values: Vec<SessionInputValue<'static>>,
    lent: Vec<Bytes>,
}

impl Inputs {
    pub(super) fn new(tensors: Vec<Tensor>, ports: &[Port]) -> Result<Inputs, InferError> {
        let mut inputs =
            Inputs { values: Vec::with_capacity(ports.len()), lent: Vec::with_capacity(ports.len()) };
        for (tensor, port) in tensors.into_iter().zip(ports) {
            let value = match tensor.datatype().size() {
                Some(size) => inputs.lend(tensor, size)?,
                None => strings(&tensor, port)?.into_dyn(),
            };
            inputs.values.push(value.into());
        }
        Ok(inputs)
    }

    pub(super) fn values(&self) -> &[SessionInputValue<'static>] {
        &self.values
    }

    #[expect(unsafe_code, reason = "`ort` makes tensors of borrowed bytes only for the types that Rust has")]
    fn lend(&mut self, tensor: Tensor, size: usize) -> Result<DynValue, InferError> {
        let element = element_type(tensor.datatype());
        let shape = shape(&tensor);
        let data = aligned(tensor.into_data(), size);
        let mut value = ptr::null_mut();
        // SAFETY: the data has the length that its shape asks for, as every `Tensor`, is aligned for its
        // elements, and stays where it is until `self` drops it, which is after the value. ONNX Runtime does
        // not write to inputs.
        unsafe {
            let status = (ort::api().CreateTensorWithDataAsOrtValue)(
                MemoryInfo::default().ptr(),
                data.as_ptr().cast_mut().cast(),
                data.len(),
                shape.as_ptr(),
                shape.len(),
                element.into(),
                &raw mut value,
            );
            ort::Error::result_from_status(status).map_err(failed)?;
            let value = ptr::NonNull::new(value)
                .ok_or_else(|| InferError::Failed("no tensor was made".to_owned()))?;
            self.lent.push(data);
            Ok(DynValue::from_ptr(value, Some(&Allocator::default())))
        }
    }
}

/// The same bytes where their elements may lie, which ONNX Runtime reads as typed arrays; copied only where they must be.
fn aligned(bytes: Bytes, alignment: usize) -> Bytes {
    if bytes.as_ptr().addr().is_multiple_of(alignment) {
        return bytes;
    }
    let mut copy: Vec<u8> = Vec::with_capacity(bytes.len() + alignment);
    let pad = copy.as_ptr().align_offset(alignment);
    // There is room for all of it, so that it stays where it is.
    copy.resize(pad, 0);
    copy.extend_from_slice(&bytes);
    Bytes::from(copy).slice(pad..)
}

fn shape(tensor: &Tensor) -> Shape {
    // A dimension is at most `isize::MAX`, as the shape of a `Tensor` can be addressed.
    Shape::new(tensor.shape().iter().map(|dim| dim.cast_signed() as i64))
}

/// A tensor of strings, element by element. The C functions for whole arrays end at a NUL; this one does not.
#[expect(unsafe_code, reason = "`ort` cannot put a string with a NUL into a tensor")]
fn strings(tensor: &Tensor, port: &Port) -> Result<DynTensor, InferError> {
    let mut value =
        DynTensor::new(&Allocator::default(), TensorElementType::String, shape(tensor)).map_err(failed)?;
    for (index, element) in tensor.elements().enumerate() {
        if std::str::from_utf8(element).is_err() {
            return Err(InferError::InvalidInput(format!(
                "element {index} of input `{}` is not UTF-8, which the strings of an ONNX model are",
                port.name
            )));
        }
        let mut buffer = ptr::null_mut();
        // SAFETY: the value is a tensor of strings with as many elements as `tensor`, and nothing else has
        // it; the buffer is valid for the length that was asked for, until the element is touched again.
        unsafe {
            let status = (ort::api().GetResizedStringTensorElementBuffer)(
                value.ptr_mut(),
                index,
                element.len(),
                &raw mut buffer,
            );
            ort::Error::result_from_status(status).map_err(failed)?;
            if !buffer.is_null() {
                ptr::copy_nonoverlapping(element.as_ptr(), buffer.cast(), element.len());
            }
        }
    }
    Ok(value)
}

/// Copies an output of a run.
pub(super) fn output(value: &DynValueRef<'_>, port: &Port) -> Result<Tensor, InferError> {
    let wrong = |what: &str| InferError::Failed(format!("output `{}` {what}", port.name));
    let tensor = value.view().downcast::<DynTensorValueType>().map_err(|_| wrong("is not a tensor"))?;
    let datatype = datatype(*tensor.data_type()).ok_or_else(|| wrong("has an unknown datatype"))?;
    let shape = tensor.shape().iter().map(|dim| usize::try_from(*dim)).collect::<Result<Vec<_>, _>>();
    let shape = shape.map_err(|_| wrong("has a negative dimension"))?;
    let tensor = if datatype == Datatype::Bytes {
        let (_, strings) = tensor.try_extract_strings().map_err(failed)?;
        Tensor::from_elements(shape, &strings)
    } else {
        Tensor::new(datatype, shape, copy(&tensor)?)
    };
    tensor.map_err(|error| wrong(&format!("is malformed: {error}")))
}

#[expect(unsafe_code, reason = "`ort` shows the data of a tensor only as the types that Rust has")]
fn copy(tensor: &DynTensor) -> Result<Bytes, InferError> {
    if !tensor.memory_info().is_cpu_accessible() {
        return Err(InferError::Failed("an output was left on the device".to_owned()));
    }
    let length = tensor.size().ok_or_else(|| InferError::Failed("an output has no size".to_owned()))?;
    let start = tensor.data_ptr().cast::<u8>();
    if length == 0 || start.is_null() {
        return Ok(Bytes::new());
    }
    // SAFETY: ONNX Runtime says that the tensor, which is borrowed here, has `length` bytes at `start`, and
    // has written them: it is an output of a run that succeeded, in memory that the processor can read.
    let data = unsafe { std::slice::from_raw_parts(start, length) };
    Ok(Bytes::copy_from_slice(data))
}

fn failed(error: ort::Error) -> InferError {
    InferError::Failed(super::one_line(error.message()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_is_copied_only_where_it_must() {
        let bytes = Bytes::from_iter((0..=40u8).chain([9; 40]));
        let start = (0..8).find(|start| bytes[*start..].as_ptr().addr().is_multiple_of(8)).unwrap();
        let check = |start: usize, alignment: usize, is_copied: bool| {
            let part = bytes.slice(start..start + 21);
            let found = aligned(part.clone(), alignment);
            assert_eq!(found, part);
            assert!(found.as_ptr().addr().is_multiple_of(alignment));
            assert_eq!(found.as_ptr() != part.as_ptr(), is_copied);
        };
        check(start, 8, false);
        check(start + 1, 1, false);
        check(start + 1, 4, true);
        check(start + 4, 8, true);
    }

    #[test]
    fn every_datatype_has_an_element_type() {
        for wanted in Datatype::ALL {
            assert_eq!(datatype(element_type(wanted)), Some(wanted));
        }
        assert_eq!(datatype(TensorElementType::Complex64), None);
    }
}
