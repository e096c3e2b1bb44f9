//! Tensors to and from `ndarray`.

use ndarray::{ArrayD, ArrayViewD, IxDyn};

use crate::element::Element;
use crate::{Result, Tensor};

impl<T: Element> Tensor<T> {
    /// The elements as an array, without a copy.
    pub fn view(&self) -> ArrayViewD<'_, T> {
        ArrayViewD::from_shape(IxDyn(self.shape()), self.as_slice())
            .expect("a tensor's elements fill its shape")
    }

    /// The elements as an array of its own.
    pub fn into_array(self) -> ArrayD<T> {
        let shape = IxDyn(self.shape());
        ArrayD::from_shape_vec(shape, self.into_vec()).expect("a tensor's elements fill its shape")
    }

    /// A tensor of an array's elements in row-major order, copied only where the array lies otherwise.
    ///
    /// ```
    /// use tenon_sdk::Tensor;
    ///
    /// let array = ndarray::array![[1_i64, 2], [3, 4]];
    /// let tensor = Tensor::from_array(array.reversed_axes())?;
    /// assert_eq!(*tensor, [1, 3, 2, 4]);
    /// # Ok::<(), tenon_sdk::Error>(())
    /// ```
    pub fn from_array<D: ndarray::Dimension>(array: ndarray::Array<T, D>) -> Result<Self> {
        let shape = array.shape().to_vec();
        let elements = match array.is_standard_layout() {
            true => array.into_raw_vec_and_offset(),
            false => (array.iter().cloned().collect(), None),
        };
        match elements {
            (elements, None | Some(0)) => Self::new(shape, elements),
            (elements, Some(offset)) => {
                let len = shape.iter().product::<usize>();
                Self::new(shape, elements[offset..offset + len].to_vec())
            }
        }
    }
}
