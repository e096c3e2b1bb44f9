//! Answers the tensors that it is given, one of each datatype: as handles, or with `copy` read and made anew.

use tenon_sdk::{AnyTensor, Bytes, Element, IntoTensor, Outputs, Result, Tensor, bf16, f16};

macro_rules! echo {
    ($($name:ident: $ty:ty, $datatype:literal;)*) => {
        #[derive(Outputs)]
        struct Echo {
            $(#[tensor(datatype = $datatype)] $name: AnyTensor,)*
        }

        #[tenon_sdk::function]
        #[expect(clippy::too_many_arguments, reason = "one for each datatype")]
        fn echo(
            $(#[tensor(datatype = $datatype)] $name: AnyTensor,)*
            #[parameter(default = false)] copy: bool,
        ) -> Result<Echo> {
            if !copy {
                return Ok(Echo { $($name,)* });
            }
            Ok(Echo { $($name: copied::<$ty>($name)?,)* })
        }
    };
}

echo! {
    bool: bool, "BOOL";
    uint8: u8, "UINT8";
    uint16: u16, "UINT16";
    uint32: u32, "UINT32";
    uint64: u64, "UINT64";
    int8: i8, "INT8";
    int16: i16, "INT16";
    int32: i32, "INT32";
    int64: i64, "INT64";
    fp16: f16, "FP16";
    bf16: bf16, "BF16";
    fp32: f32, "FP32";
    fp64: f64, "FP64";
    bytes: Bytes, "BYTES";
}

fn copied<T: Element>(tensor: AnyTensor) -> Result<AnyTensor> {
    let tensor = tensor.typed::<T>()?;
    Tensor::new(tensor.shape(), tensor.as_slice())?.into_tensor()
}
