//! What a model is measured on: a request of the author's, or inputs that are made up.

use std::path::Path;

use anyhow::Context;
use bytes::Bytes;

use crate::backend::Signature;
use crate::instance::typed::Description;
use crate::serve::json::{self, Refused};
use crate::tensor::{Datatype, Tensor};

type Inputs = Vec<(String, Tensor)>;

/// The inputs of a request in JSON.
pub(super) fn read(path: &Path, signature: &Signature) -> anyhow::Result<Inputs> {
    let body = std::fs::read(path).with_context(|| format!("cannot read `{}`", path.display()))?;
    let description = Description { signature: signature.clone(), ..Description::default() };
    match json::request(&body, &description, &mut |_| true) {
        Ok((_, request)) => Ok(request.inputs),
        Err(Refused::Input(reason)) => anyhow::bail!("`{}`: {reason}", path.display()),
        Err(Refused::NoRoom) => anyhow::bail!("`{}` is too large", path.display()),
    }
}

/// Inputs of zeros and ones for integers, and of numbers from 0 to 1 for the rest, with one row.
pub(super) fn made_up(signature: &Signature, free: usize) -> anyhow::Result<Inputs> {
    let inputs = signature.inputs.iter().map(|port| {
        let shape = port.shape.as_ref().with_context(|| {
            format!("input `{}` has no fixed rank; give a request with `--request`", port.name)
        })?;
        let dims = shape.iter().enumerate();
        let shape: Vec<usize> =
            dims.map(|(index, dim)| dim.unwrap_or(if index == 0 { 1 } else { free })).collect();
        let elements: usize = shape.iter().product();
        let data = (0..elements).flat_map(|index| element(port.datatype, index)).collect::<Vec<u8>>();
        let tensor = Tensor::new(port.datatype, shape, Bytes::from(data));
        Ok((port.name.clone(), tensor.with_context(|| format!("input `{}`", port.name))?))
    });
    inputs.collect()
}

fn element(datatype: Datatype, index: usize) -> Vec<u8> {
    let bit = u8::from(index % 2 == 1);
    #[expect(clippy::cast_precision_loss, reason = "a small number")]
    let fraction = (index * 37 % 101) as f32 / 101.0;
    match datatype {
        Datatype::Bytes => vec![1, 0, 0, 0, b'a' + bit],
        Datatype::Fp16 => half::f16::from_f32(fraction).to_le_bytes().to_vec(),
        Datatype::Bf16 => half::bf16::from_f32(fraction).to_le_bytes().to_vec(),
        Datatype::Fp32 => fraction.to_le_bytes().to_vec(),
        Datatype::Fp64 => f64::from(fraction).to_le_bytes().to_vec(),
        integer => {
            let mut bytes = vec![0; integer.size().unwrap_or(1)];
            bytes[0] = bit;
            bytes
        }
    }
}

/// The sample `rows` times over, along the first dimension.
///
/// # Errors
/// Says which input has no rows to repeat.
pub(super) fn rows(sample: &[(String, Tensor)], rows: usize) -> Result<Inputs, String> {
    let repeated = sample.iter().map(|(name, tensor)| {
        let mut shape = tensor.shape().to_vec();
        let first = shape.first_mut().ok_or_else(|| format!("input `{name}` of the request has no rows"))?;
        *first *= rows;
        let tensor = Tensor::new(tensor.datatype(), shape, tensor.data().repeat(rows).into());
        Ok((name.clone(), tensor.map_err(|error| error.to_string())?))
    });
    repeated.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Port;

    #[test]
    fn made_up_inputs_fit_and_can_be_repeated() {
        for datatype in Datatype::ALL {
            let port = |shape| Port { name: "x".to_owned(), datatype, shape };
            let signature = |shape| Signature { inputs: vec![port(shape)], outputs: vec![] };
            let sample = made_up(&signature(Some(vec![None, Some(2), None])), 3).unwrap();
            assert_eq!(sample[0].1.shape(), [1, 2, 3]);
            let four = rows(&sample, 4).unwrap();
            assert_eq!((four[0].1.shape(), four[0].1.len()), ([4, 2, 3].as_slice(), 24));
            assert!(made_up(&signature(None), 1).unwrap_err().to_string().contains("--request"));
            let scalar = made_up(&signature(Some(vec![])), 1).unwrap();
            assert!(rows(&scalar, 2).unwrap_err().contains("has no rows"));
        }
    }
}
