//! Tensors: typed ones that are read when first looked at, and handles of any datatype.

use std::cell::OnceCell;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::rc::Rc;

use crate::element::{Element, Stored};
use crate::handle::Handle;
use crate::{Datatype, Error, Result, datatype};

/// Elements of one type with a shape, in row-major order: the last dimension varies fastest.
///
/// It reads and changes like a slice. A tensor that came from the host is copied into the function's memory when its
/// elements are first looked at, and not at all when it is only passed on to a model or to the caller.
///
/// ```
/// use tenon_sdk::Tensor;
///
/// let tensor = Tensor::new([2, 3], vec![1.0_f32, 2.0, 3.0, 4.0, 5.0, 6.0])?;
/// assert_eq!(tensor.shape(), [2, 3]);
/// assert_eq!(tensor.rows().last(), Some(&[4.0, 5.0, 6.0][..]));
/// assert_eq!(tensor.iter().sum::<f32>(), 21.0);
/// # Ok::<(), tenon_sdk::Error>(())
/// ```
pub struct Tensor<T: Element> {
    shape: Vec<usize>,
    /// Where the host keeps the same elements, as long as they are the same.
    handle: Option<Rc<Handle>>,
    stored: OnceCell<Stored<T>>,
}

impl<T: Element> Tensor<T> {
    /// A tensor of these elements. An error where their number is not the product of the shape.
    pub fn new(shape: impl Into<Vec<usize>>, elements: impl Into<Vec<T>>) -> Result<Self> {
        let (shape, elements) = (shape.into(), elements.into());
        check_shape(&shape, elements.len())?;
        Ok(Self::stored(shape, Stored::Elements(elements)))
    }

    /// Sizes of the dimensions, outermost first; empty for a scalar.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The elements.
    pub fn as_slice(&self) -> &[T] {
        self.stored.get_or_init(|| self.fetch()).as_slice()
    }

    /// The elements, to change them.
    pub fn as_mut_slice(&mut self) -> &mut [T] {
        self.as_slice();
        self.handle = None;
        self.stored.get_mut().expect("read just before").as_mut_slice()
    }

    /// The elements. Numbers that came from the host are copied once more: prefer
    /// [`as_slice`](Self::as_slice) where it does.
    pub fn into_vec(self) -> Vec<T> {
        self.as_slice();
        self.stored.into_inner().expect("read just before").into_vec()
    }

    /// The slices along the first dimension, such as the examples of a batch. A scalar has one.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &[T]> {
        let rows = self.shape.first().copied().unwrap_or(1);
        let elements = self.as_slice();
        let len = elements.len().checked_div(rows).unwrap_or(0);
        (0..rows).map(move |row| &elements[row * len..(row + 1) * len])
    }

    /// The same elements in another shape. An error where it has another number of elements.
    pub fn reshape(self, shape: impl Into<Vec<usize>>) -> Result<Self> {
        let shape = shape.into();
        check_shape(&shape, self.len())?;
        self.as_slice();
        Ok(Self { shape, handle: None, stored: self.stored })
    }

    fn stored(shape: Vec<usize>, stored: Stored<T>) -> Self {
        Self { shape, handle: None, stored: OnceCell::from(stored) }
    }

    fn fetch(&self) -> Stored<T> {
        let handle = self.handle.as_ref().expect("a tensor has elements, or a handle to read them from");
        T::decode(handle.data()).expect("the host checks data against shape and datatype")
    }

    fn to_handle(&self) -> Result<AnyTensor> {
        let shape: Vec<u64> = self.shape.iter().map(|&size| size as u64).collect();
        AnyTensor::create(T::DATATYPE, &shape, &T::encode(self.as_slice()))
    }
}

fn check_shape(shape: &[usize], elements: usize) -> Result<()> {
    let product = shape.iter().try_fold(1_usize, |product, &size| product.checked_mul(size));
    if product == Some(elements) {
        return Ok(());
    }
    Err(Error::failed(format_args!("{elements} elements do not fill a tensor of shape {shape:?}")))
}

/// Reads like a slice of the elements.
impl<T: Element> Deref for Tensor<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        self.as_slice()
    }
}

/// Changes like a slice of the elements.
impl<T: Element> DerefMut for Tensor<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        self.as_mut_slice()
    }
}

/// One dimension.
impl<T: Element> From<Vec<T>> for Tensor<T> {
    fn from(elements: Vec<T>) -> Self {
        Self::stored(vec![elements.len()], Stored::Elements(elements))
    }
}

/// One dimension.
impl<T: Element> From<&[T]> for Tensor<T> {
    fn from(elements: &[T]) -> Self {
        elements.to_vec().into()
    }
}

/// One dimension.
impl<T: Element> FromIterator<T> for Tensor<T> {
    fn from_iter<I: IntoIterator<Item = T>>(elements: I) -> Self {
        elements.into_iter().collect::<Vec<T>>().into()
    }
}

impl<T: Element> Clone for Tensor<T> {
    fn clone(&self) -> Self {
        Self { shape: self.shape.clone(), handle: self.handle.clone(), stored: self.stored.clone() }
    }
}

impl<T: Element + PartialEq> PartialEq for Tensor<T> {
    fn eq(&self, other: &Self) -> bool {
        self.shape == other.shape && self.as_slice() == other.as_slice()
    }
}

impl<T: Element + fmt::Debug> fmt::Debug for Tensor<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tensor").field("shape", &self.shape).field("elements", &self.as_slice()).finish()
    }
}

/// A tensor of any datatype, kept by the host: a clone is another name for the same one.
///
/// Passed on to a model or to the caller it crosses as a handle, without a copy; to the caller, unless a clone of
/// it is still held.
#[derive(Clone, Debug)]
pub struct AnyTensor {
    handle: Rc<Handle>,
}

impl AnyTensor {
    /// A tensor of row-major, little-endian data; BYTES elements are each a 4-byte length and their bytes. An
    /// error where data and shape disagree, or the function's memory limit is reached.
    pub fn new(datatype: Datatype, shape: &[usize], data: &[u8]) -> Result<Self> {
        let shape: Vec<u64> = shape.iter().map(|&size| size as u64).collect();
        Self::create(datatype, &shape, data)
    }

    pub(crate) fn create(datatype: Datatype, shape: &[u64], data: &[u8]) -> Result<Self> {
        Handle::create(datatype, shape, data).map(Self::from_handle).map_err(Error::failed)
    }

    pub(crate) fn from_handle(handle: Handle) -> Self {
        Self { handle: Rc::new(handle) }
    }

    #[cfg_attr(not(target_family = "wasm"), expect(dead_code, reason = "the host borrows it"))]
    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }

    /// The handle itself, or where a clone is held, a handle of a copy: the host takes each but once.
    #[cfg_attr(not(target_family = "wasm"), expect(dead_code, reason = "the host takes it"))]
    pub(crate) fn into_handle(self) -> Result<Handle> {
        Rc::try_unwrap(self.handle).or_else(|handle| {
            Handle::create(handle.datatype(), &handle.shape(), &handle.data()).map_err(Error::failed)
        })
    }

    /// The datatype of the elements.
    pub fn datatype(&self) -> Datatype {
        self.handle.datatype()
    }

    /// Sizes of the dimensions, outermost first; empty for a scalar.
    pub fn shape(&self) -> Vec<usize> {
        self.handle.shape().into_iter().map(|size| size as usize).collect()
    }

    /// The length of the data in bytes.
    pub fn data_bytes(&self) -> usize {
        self.handle.size() as usize
    }

    /// A copy of the data, in the form that [`new`](Self::new) takes.
    pub fn data(&self) -> Vec<u8> {
        self.handle.data()
    }

    /// The tensor with its elements' type. An error where it has another datatype, or BOOL or text elements that
    /// are none.
    pub fn typed<T: Element>(self) -> Result<Tensor<T>> {
        if self.datatype() != T::DATATYPE {
            let (has, wants) = (datatype::name(self.datatype()), datatype::name(T::DATATYPE));
            return Err(Error::invalid_input(format!("the tensor is {has}, not {wants}")));
        }
        if T::ANY_BYTES {
            return Ok(Tensor { shape: self.shape(), handle: Some(self.handle), stored: OnceCell::new() });
        }
        let stored = OnceCell::from(T::decode(self.data())?);
        Ok(Tensor { shape: self.shape(), handle: Some(self.handle), stored })
    }
}

/// What can be handed to a model: [`AnyTensor`], [`Tensor`], and references to them.
///
/// A tensor that came from the host crosses as a handle; one that was made here is copied to the host.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be handed to a model",
    note = "hand over a `Tensor`, an `AnyTensor` or a reference to one"
)]
pub trait IntoTensor {
    /// The tensor as the host's. An error where the function's memory limit is reached.
    fn into_tensor(self) -> Result<AnyTensor>;
}

impl IntoTensor for AnyTensor {
    fn into_tensor(self) -> Result<AnyTensor> {
        Ok(self)
    }
}

impl IntoTensor for &AnyTensor {
    fn into_tensor(self) -> Result<AnyTensor> {
        Ok(self.clone())
    }
}

impl<T: Element> IntoTensor for Tensor<T> {
    fn into_tensor(self) -> Result<AnyTensor> {
        (&self).into_tensor()
    }
}

impl<T: Element> IntoTensor for &Tensor<T> {
    fn into_tensor(self) -> Result<AnyTensor> {
        match &self.handle {
            Some(handle) => Ok(AnyTensor { handle: Rc::clone(handle) }),
            None => self.to_handle(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_fill_their_shape() {
        assert!(Tensor::new([2, 2], vec![0_i64; 4]).is_ok());
        assert!(Tensor::new([], vec![0_i64]).is_ok());
        assert!(Tensor::new([0, 3], Vec::<f32>::new()).is_ok());
        assert!(Tensor::new([2, 2], vec![0_i64; 3]).is_err());
        assert!(Tensor::new([usize::MAX, 2], vec![0_u8; 2]).is_err());
    }

    #[test]
    fn a_changed_tensor_leaves_the_host_s_copy_alone() {
        let host = Tensor::from(vec![1_i32, 2]).into_tensor().unwrap();
        let mut tensor = host.clone().typed::<i32>().unwrap();
        tensor[0] = 9;
        assert_eq!(*tensor, [9, 2]);
        assert_eq!(*host.typed::<i32>().unwrap(), [1, 2]);
        assert_eq!(*tensor.into_tensor().unwrap().typed::<i32>().unwrap(), [9, 2]);
    }

    #[test]
    fn another_datatype_is_named() {
        let tensor = Tensor::from(vec![1_i32]).into_tensor().unwrap();
        let error = tensor.typed::<f32>().unwrap_err();
        assert_eq!(error.message(), "the tensor is INT32, not FP32");
    }

    #[test]
    fn rows_lie_along_the_first_dimension() {
        let rows = |shape: &[usize], len| {
            let tensor = Tensor::new(shape, vec![0_u8; len]).unwrap();
            tensor.rows().map(<[u8]>::len).collect::<Vec<_>>()
        };
        assert_eq!(rows(&[2, 3], 6), [3, 3]);
        assert_eq!(rows(&[], 1), [1]);
        assert_eq!(rows(&[2, 0], 0), [0, 0]);
        assert_eq!(rows(&[0, 2], 0), [0_usize; 0]);
    }
}
