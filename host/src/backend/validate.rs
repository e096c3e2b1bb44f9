//! The one check of a call's inputs against a graph's signature, in front of every backend.

use thiserror::Error;

use super::{Port, Signature};
use crate::tensor::{Datatype, Tensor};

/// Why inputs do not fit a graph. The texts go to the caller.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum InputError {
    #[error("the model has no input `{name}`; its inputs are {expected}")]
    Unknown { name: String, expected: String },
    #[error("input `{0}` is given twice")]
    Twice(String),
    #[error("input `{0}` is missing")]
    Missing(String),
    #[error("input `{name}` takes {expected}, but {actual} was given")]
    Datatype { name: String, expected: Datatype, actual: Datatype },
    #[error("input `{name}` takes the shape {expected}, but {actual:?} was given")]
    Shape { name: String, expected: String, actual: Vec<usize> },
    #[error("input `{name}` has no elements: the shape {shape:?} has a zero")]
    Empty { name: String, shape: Vec<usize> },
    #[error("input `{name}` is larger than {limit} bytes")]
    TooLarge { name: String, limit: usize },
}

/// The inputs in the signature's order, each checked for name, datatype, rank, fixed dimensions and size.
///
/// Tensors without elements are refused: engines disagree about them, and OpenVINO is left unusable by some.
///
/// # Errors
/// Names the first input that does not fit, and what would.
pub fn inputs(
    signature: &Signature,
    given: Vec<(String, Tensor)>,
    max_bytes: usize,
) -> Result<Vec<Tensor>, InputError> {
    let mut ordered: Vec<Option<Tensor>> = vec![None; signature.inputs.len()];
    for (name, tensor) in given {
        let Some(index) = signature.inputs.iter().position(|port| port.name == name) else {
            let names: Vec<_> = signature.inputs.iter().map(|port| format!("`{}`", port.name)).collect();
            return Err(InputError::Unknown { name, expected: names.join(", ") });
        };
        if ordered[index].is_some() {
            return Err(InputError::Twice(name));
        }
        check(&signature.inputs[index], &tensor, max_bytes)?;
        ordered[index] = Some(tensor);
    }
    ordered
        .into_iter()
        .zip(&signature.inputs)
        .map(|(tensor, port)| tensor.ok_or_else(|| InputError::Missing(port.name.clone())))
        .collect()
}

fn check(port: &Port, tensor: &Tensor, max_bytes: usize) -> Result<(), InputError> {
    let name = || port.name.clone();
    if tensor.datatype() != port.datatype {
        return Err(InputError::Datatype {
            name: name(),
            expected: port.datatype,
            actual: tensor.datatype(),
        });
    }
    if let Some(expected) = &port.shape {
        let fits = expected.len() == tensor.shape().len()
            && expected.iter().zip(tensor.shape()).all(|(want, have)| want.is_none_or(|want| want == *have));
        if !fits {
            return Err(InputError::Shape {
                name: name(),
                expected: shape_text(expected),
                actual: tensor.shape().to_vec(),
            });
        }
    }
    if tensor.is_empty() {
        return Err(InputError::Empty { name: name(), shape: tensor.shape().to_vec() });
    }
    if tensor.data().len() > max_bytes {
        return Err(InputError::TooLarge { name: name(), limit: max_bytes });
    }
    Ok(())
}

/// A signature's shape as callers write it: -1 for a dimension that they choose.
pub fn shape_text(shape: &[Option<usize>]) -> String {
    let dims: Vec<_> =
        shape.iter().map(|dim| dim.map_or_else(|| "-1".to_owned(), |dim| dim.to_string())).collect();
    format!("[{}]", dims.join(", "))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn tensor(shape: &[usize]) -> Tensor {
        let size = shape.iter().product::<usize>() * 4;
        Tensor::new(Datatype::Fp32, shape.to_vec(), Bytes::from(vec![0; size])).unwrap()
    }

    fn check(given: &[(&str, Tensor)], expected: Result<(), &str>) {
        let port = |name: &str, shape| Port { name: name.to_owned(), datatype: Datatype::Fp32, shape };
        let signature = Signature {
            inputs: vec![port("a", Some(vec![None, Some(2)])), port("b", None)],
            outputs: vec![],
        };
        let given = given.iter().map(|(name, tensor)| ((*name).to_owned(), tensor.clone())).collect();
        match (inputs(&signature, given, 64), expected) {
            (Ok(tensors), Ok(())) => assert_eq!(tensors.len(), 2),
            (Err(error), Err(expected)) => assert!(error.to_string().contains(expected), "{error}"),
            (actual, expected) => panic!("{actual:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn inputs_must_fit_the_signature() {
        let int = Tensor::new(Datatype::Int32, vec![1, 2], Bytes::from(vec![0; 8])).unwrap();
        check(&[("b", tensor(&[])), ("a", tensor(&[3, 2]))], Ok(()));
        check(&[("a", tensor(&[3, 2]))], Err("`b` is missing"));
        check(&[("a", tensor(&[3, 2])), ("a", tensor(&[3, 2]))], Err("`a` is given twice"));
        check(&[("c", tensor(&[1]))], Err("its inputs are `a`, `b`"));
        check(&[("a", tensor(&[3, 3]))], Err("takes the shape [-1, 2], but [3, 3]"));
        check(&[("a", tensor(&[2]))], Err("takes the shape [-1, 2], but [2]"));
        check(&[("a", tensor(&[0, 2]))], Err("has a zero"));
        check(&[("a", tensor(&[9, 2]))], Err("larger than 64 bytes"));
        check(&[("a", int)], Err("takes FP32, but INT32"));
    }
}
