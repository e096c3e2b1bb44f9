//! What a function's inputs, outputs and parameters can be.

use crate::bytes::{Bytes, encode_bytes, only_element};
use crate::element::{Element, text};
use crate::export::{Description, ONLY_OUTPUT, Reply};
use crate::{AnyTensor, Datatype, Error, IntoTensor, ParameterValue, Result, Tensor};

/// A type that an input of a function can have.
///
/// | type | datatype | shape unless `#[tensor(shape = [...])]` says else |
/// |---|---|---|
/// | [`Tensor<T>`] | that of [`T`](Element) | `[-1]`: one dimension of any length |
/// | `bool`, `u8` to `u64`, `i8` to `i64`, `f32`, `f64` | its own | `[1]` |
/// | [`Bytes`], `Vec<u8>`, `String`, [`Json<T>`](crate::Json) | BYTES, one element | `[1]` |
/// | `Vec<String>` | BYTES | `[-1]` |
/// | [`AnyTensor`] | as `#[tensor(datatype = "...")]` says | `[-1]` |
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be an input of a model function",
    label = "not an input",
    note = "inputs are `Tensor<T>`, a number of a fixed width (`i64`, `f32`, ...), `bool`, `String`, `Vec<String>`, \
            `Bytes`, `Vec<u8>`, `Json<T>` with `T: DeserializeOwned`, and `AnyTensor`",
    note = "a list of numbers is a `Tensor<T>`",
    note = "a request parameter is marked `#[parameter]`"
)]
pub trait Input: Sized {
    /// The datatype, where the type alone says it.
    const DATATYPE: Option<Datatype>;
    /// The shape, -1 for a dimension that the caller chooses.
    const SHAPE: &'static [i64];
    /// Media types of raw bodies that are taken without further words.
    const ACCEPTS: &'static [&'static str] = &[];

    /// The value of a tensor. An error where it does not fit, with the caller in mind.
    fn from_tensor(tensor: AnyTensor) -> Result<Self>;
}

/// A type that one output of a function can have: the same as for [`Input`].
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be an output of a model function",
    label = "not an output",
    note = "outputs are `Tensor<T>`, a number of a fixed width (`i64`, `f32`, ...), `bool`, `String`, `Vec<String>`, \
            `Bytes`, `Vec<u8>`, `Json<T>` with `T: Serialize`, and `AnyTensor`"
)]
pub trait Output: Sized {
    /// The datatype, where the type alone says it.
    const DATATYPE: Option<Datatype>;
    /// The shape, -1 for a dimension that varies.
    const SHAPE: &'static [i64];
    /// The media type as a raw body.
    const ANSWERS: Option<&'static str> = None;

    /// The value as a tensor. An error where the function's memory limit is reached.
    fn into_output(self) -> Result<AnyTensor>;
}

/// What a function returns: one [`Output`], named `output`, or a struct with `#[derive(Outputs)]`, each field of
/// which is an output of the field's name.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be returned by a model function",
    label = "neither an output nor a struct of outputs",
    note = "return `Tensor<T>`, a number of a fixed width (`i64`, `f32`, ...), `bool`, `String`, `Vec<String>`, \
            `Bytes`, `Json<T>` with `T: Serialize`, a struct with `#[derive(tenon_sdk::Outputs)]`, or a tuple and \
            `#[function(outputs(first, second))]`"
)]
pub trait Outputs: Sized {
    /// The media type as a raw body, where there is one output that has one.
    const ANSWERS: Option<&'static str> = None;

    /// Adds the outputs to the function's metadata.
    fn describe(description: &mut Description);

    /// Adds the outputs that the caller wants to the reply.
    fn write(self, reply: &mut Reply) -> Result<()>;
}

impl<T: Output> Outputs for T {
    const ANSWERS: Option<&'static str> = T::ANSWERS;

    fn describe(description: &mut Description) {
        description.output::<T>(ONLY_OUTPUT, None, T::SHAPE);
    }

    fn write(self, reply: &mut Reply) -> Result<()> {
        reply.add_only(self)
    }
}

impl<T: Element> Input for Tensor<T> {
    const DATATYPE: Option<Datatype> = Some(T::DATATYPE);
    const SHAPE: &'static [i64] = &[-1];

    fn from_tensor(tensor: AnyTensor) -> Result<Self> {
        tensor.typed()
    }
}

impl<T: Element> Output for Tensor<T> {
    const DATATYPE: Option<Datatype> = Some(T::DATATYPE);
    const SHAPE: &'static [i64] = &[-1];

    fn into_output(self) -> Result<AnyTensor> {
        self.into_tensor()
    }
}

impl Input for AnyTensor {
    const DATATYPE: Option<Datatype> = None;
    const SHAPE: &'static [i64] = &[-1];

    fn from_tensor(tensor: AnyTensor) -> Result<Self> {
        Ok(tensor)
    }
}

impl Output for AnyTensor {
    const DATATYPE: Option<Datatype> = None;
    const SHAPE: &'static [i64] = &[-1];

    fn into_output(self) -> Result<AnyTensor> {
        Ok(self)
    }
}

macro_rules! scalars {
    ($($ty:ty),*) => {$(
        impl Input for $ty {
            const DATATYPE: Option<Datatype> = Some(<$ty as Element>::DATATYPE);
            const SHAPE: &'static [i64] = &[1];

            fn from_tensor(tensor: AnyTensor) -> Result<Self> {
                match *tensor.typed()? {
                    [element] => Ok(element),
                    ref elements => Err(one_expected(elements.len())),
                }
            }
        }

        impl Output for $ty {
            const DATATYPE: Option<Datatype> = Some(<$ty as Element>::DATATYPE);
            const SHAPE: &'static [i64] = &[1];

            fn into_output(self) -> Result<AnyTensor> {
                Tensor::from(vec![self]).into_tensor()
            }
        }
    )*};
}

scalars! { bool, u8, u16, u32, u64, i8, i16, i32, i64, crate::f16, crate::bf16, f32, f64 }

fn one_expected(elements: usize) -> Error {
    Error::invalid_input(format!("one element is expected, not {elements}"))
}

macro_rules! one_byte_string {
    ($($ty:ty: $accepts:expr, $answers:literal, $from:expr, $into:expr;)*) => {$(
        impl Input for $ty {
            const DATATYPE: Option<Datatype> = Some(Datatype::Bytes);
            const SHAPE: &'static [i64] = &[1];
            const ACCEPTS: &'static [&'static str] = &$accepts;

            fn from_tensor(tensor: AnyTensor) -> Result<Self> {
                if tensor.datatype() != Datatype::Bytes {
                    return Err(Error::invalid_input("the tensor is not BYTES"));
                }
                Bytes::only(tensor.data()).and_then($from)
            }
        }

        impl Output for $ty {
            const DATATYPE: Option<Datatype> = Some(Datatype::Bytes);
            const SHAPE: &'static [i64] = &[1];
            const ANSWERS: Option<&'static str> = Some($answers);

            fn into_output(self) -> Result<AnyTensor> {
                let data = $into(self)?;
                AnyTensor::create(Datatype::Bytes, &[1], &data)
            }
        }
    )*};
}

one_byte_string! {
    Bytes: [], "application/octet-stream", Ok, Bytes::into_only;
    Vec<u8>: [], "application/octet-stream", |bytes| Ok(bytes.into_vec()), |bytes: Vec<u8>| one_element(&bytes);
    String: ["text/*"], "text/plain; charset=utf-8", |bytes| text(&bytes), |text: String| one_element(text.as_bytes());
}

fn one_element(element: &[u8]) -> Result<Vec<u8>> {
    only_element(|data| {
        data.extend_from_slice(element);
        Ok(())
    })
}

impl Input for Vec<String> {
    const DATATYPE: Option<Datatype> = Some(Datatype::Bytes);
    const SHAPE: &'static [i64] = &[-1];

    fn from_tensor(tensor: AnyTensor) -> Result<Self> {
        Ok(tensor.typed()?.into_vec())
    }
}

impl Output for Vec<String> {
    const DATATYPE: Option<Datatype> = Some(Datatype::Bytes);
    const SHAPE: &'static [i64] = &[-1];

    fn into_output(self) -> Result<AnyTensor> {
        AnyTensor::create(Datatype::Bytes, &[self.len() as u64], &encode_bytes(&self))
    }
}

/// A type that a request parameter can have: `bool`, integers, `f32`, `f64`, `String`, and any of them in an
/// `Option` where the caller may leave it out.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be a request parameter",
    label = "not a parameter",
    note = "parameters are `bool`, `i32`, `i64`, `u32`, `u64`, `usize`, `f32`, `f64`, `String`, and `Option` of these"
)]
pub trait Parameter: Sized {
    /// The value that the caller gave, if any. The error says what is expected.
    fn from_value(value: Option<ParameterValue>) -> Result<Self, String>;
}

impl<T: Parameter> Parameter for Option<T> {
    fn from_value(value: Option<ParameterValue>) -> Result<Self, String> {
        value.map(|value| T::from_value(Some(value))).transpose()
    }
}

macro_rules! parameters {
    ($($ty:ty, $what:expr => $($pattern:pat => $value:expr),*;)*) => {$(
        impl Parameter for $ty {
            fn from_value(value: Option<ParameterValue>) -> Result<Self, String> {
                let value: Option<Self> = match value {
                    $(Some($pattern) => $value,)*
                    Some(_) => None,
                    None => return Err(format!("is missing: {} is expected", $what)),
                };
                value.ok_or_else(|| format!("is not {}", $what))
            }
        }
    )*};
}

macro_rules! integer_parameters {
    ($($ty:ty),*) => {
        parameters! {$(
            $ty, format_args!("an integer from {} to {}", <$ty>::MIN, <$ty>::MAX) =>
                ParameterValue::Int64(value) => value.try_into().ok(),
                ParameterValue::Uint64(value) => value.try_into().ok();
        )*}
    };
}

integer_parameters! { i32, i64, u32, u64, usize }

parameters! {
    bool, "a boolean" => ParameterValue::Bool(value) => Some(value);
    f64, "a number" => ParameterValue::Double(value) => Some(value),
        ParameterValue::Int64(value) => Some(value as f64),
        ParameterValue::Uint64(value) => Some(value as f64);
    f32, "a number" => ParameterValue::Double(value) => Some(value as f32),
        ParameterValue::Int64(value) => Some(value as f32),
        ParameterValue::Uint64(value) => Some(value as f32);
    String, "a text" => ParameterValue::Text(value) => Some(value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parameter_takes_every_number_that_fits() {
        assert_eq!(u32::from_value(Some(ParameterValue::Int64(7))), Ok(7));
        assert_eq!(f64::from_value(Some(ParameterValue::Int64(7))), Ok(7.0));
        assert_eq!(Option::<i64>::from_value(None), Ok(None));
        assert_eq!(
            u32::from_value(Some(ParameterValue::Int64(-1))),
            Err("is not an integer from 0 to 4294967295".into())
        );
        assert_eq!(bool::from_value(None), Err("is missing: a boolean is expected".into()));
    }

    #[test]
    fn a_scalar_is_one_element() {
        let tensor = |elements: &[f32]| Tensor::from(elements).into_tensor().unwrap();
        assert_eq!(f32::from_tensor(tensor(&[1.5])), Ok(1.5));
        assert!(f32::from_tensor(tensor(&[1.5, 2.5])).is_err());
        assert!(i32::from_tensor(tensor(&[1.5])).is_err());
    }
}
