//! Tensors of several calls as one tensor, and back.

use bytes::{Bytes, BytesMut};

use crate::backend::Port;
use crate::tensor::{Datatype, Tensor, TensorError};

/// A part of an output that is smaller than half of it is lent only where all of it is at most so long;
/// others are copied. What a caller keeps counts against its limit by its own length, so it must not keep
/// many times that in memory; and a copy takes far less than it took to compute what is copied.
const LENT_BYTES: usize = 16 << 10;

/// The first dimension, where all inputs share one.
pub(super) fn rows(inputs: &[Tensor]) -> Option<usize> {
    let rows = *inputs.first()?.shape().first()?;
    inputs.iter().all(|input| input.shape().first() == Some(&rows)).then_some(rows)
}

/// Whether two calls' inputs differ in nothing but their first dimension.
pub(super) fn fit(one: &[Tensor], other: &[Tensor]) -> bool {
    one.len() == other.len()
        && one.iter().zip(other).all(|(one, other)| {
            one.datatype() == other.datatype() && one.shape().get(1..) == other.shape().get(1..)
        })
}

/// The inputs of all calls, one after the other along the first dimension. The calls fit each other.
pub(super) fn join(calls: &[&[Tensor]]) -> Result<Vec<Tensor>, TensorError> {
    let Some(first) = calls.first() else { return Ok(Vec::new()) };
    let inputs = first.iter().enumerate().map(|(index, like)| {
        let parts = || calls.iter().filter_map(|inputs| inputs.get(index));
        let mut shape = like.shape().to_vec();
        if let Some(rows) = shape.first_mut() {
            *rows = parts().filter_map(|part| part.shape().first()).sum();
        }
        // The elements of BYTES tensors lie one after the other as well.
        let mut data = BytesMut::with_capacity(parts().map(|part| part.data().len()).sum());
        for part in parts() {
            data.extend_from_slice(part.data());
        }
        Tensor::new(like.datatype(), shape, data.freeze())
    });
    inputs.collect()
}

/// The outputs of each call, of which the n-th had `rows[n]` rows: its part lies behind those of the calls
/// before it.
///
/// # Errors
/// Where an output has not one row for each row of the inputs.
pub(super) fn split(outputs: &[Tensor], rows: &[usize], ports: &[Port]) -> Result<Vec<Vec<Tensor>>, String> {
    if outputs.len() != ports.len() {
        return Err(format!(
            "the backend answered {} outputs where the model has {}",
            outputs.len(),
            ports.len()
        ));
    }
    let total: usize = rows.iter().sum();
    let mut answers: Vec<_> = rows.iter().map(|_| Vec::with_capacity(outputs.len())).collect();
    for (output, Port { name, .. }) in outputs.iter().zip(ports) {
        if output.shape().first() != Some(&total) {
            let shape = output.shape();
            return Err(format!("output `{name}` had the shape {shape:?} for a batch of {total} rows"));
        }
        let parts = parts(output, rows, total).map_err(|error| format!("output `{name}`: {error}"))?;
        for (answer, part) in answers.iter_mut().zip(parts) {
            answer.push(part);
        }
    }
    Ok(answers)
}

/// The output in parts of so many rows each.
fn parts(output: &Tensor, rows: &[usize], total: usize) -> Result<Vec<Tensor>, TensorError> {
    let ends = ends(output, rows, total);
    let mut start = 0;
    let parts = rows.iter().zip(ends).map(|(rows, end)| {
        let mut shape = output.shape().to_vec();
        if let Some(first) = shape.first_mut() {
            *first = *rows;
        }
        let data = output.data().slice(start..end);
        start = end;
        Tensor::new(output.datatype(), shape, kept(data, output.data().len()))
    });
    parts.collect()
}

/// Where in the data each part ends.
fn ends(output: &Tensor, rows: &[usize], total: usize) -> Vec<usize> {
    let total = total.max(1);
    let mut elements = output.elements();
    let mut length = |rows: &usize| match output.datatype() {
        Datatype::Bytes => {
            let elements = elements.by_ref().take(rows * (output.len() / total));
            elements.map(|element| 4 + element.len()).sum()
        }
        _ => rows * (output.data().len() / total),
    };
    let mut end = 0;
    let ends = rows.iter().map(|rows| {
        end += length(rows);
        end
    });
    ends.collect()
}

fn kept(part: Bytes, whole: usize) -> Bytes {
    if whole <= LENT_BYTES || part.len() >= whole / 2 { part } else { Bytes::copy_from_slice(&part) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(shape: &[usize], first: u8) -> Tensor {
        let data: Vec<u8> = (first..).take(shape.iter().product()).collect();
        Tensor::new(Datatype::Uint8, shape.to_vec(), data.into()).unwrap()
    }

    fn texts(shape: &[usize], texts: &[&str]) -> Tensor {
        Tensor::from_elements(shape.to_vec(), texts).unwrap()
    }

    fn ports(count: usize) -> Vec<Port> {
        (0..count).map(|n| Port { name: format!("y{n}"), datatype: Datatype::Uint8, shape: None }).collect()
    }

    #[test]
    fn rows_are_what_all_inputs_share() {
        assert_eq!(rows(&[bytes(&[3, 2], 0), bytes(&[3], 0)]), Some(3));
        assert_eq!(rows(&[bytes(&[3], 0), bytes(&[2], 0)]), None);
        assert_eq!(rows(&[bytes(&[3], 0), bytes(&[], 0)]), None);
        assert_eq!(rows(&[]), None);
    }

    #[test]
    fn only_the_first_dimension_may_differ() {
        let check = |one: &Tensor, other: &Tensor, expected| {
            assert_eq!(fit(std::slice::from_ref(one), std::slice::from_ref(other)), expected);
        };
        check(&bytes(&[1, 4], 0), &bytes(&[2, 4], 0), true);
        check(&bytes(&[1, 4], 0), &bytes(&[1, 5], 0), false);
        check(&bytes(&[1, 4], 0), &bytes(&[1, 4, 1], 0), false);
        check(&bytes(&[1, 1], 0), &texts(&[1, 1], &["a"]), false);
        assert!(!fit(&[bytes(&[1], 0)], &[]));
    }

    /// What was joined is split into what it was made of.
    #[test]
    fn every_call_gets_its_rows_back() {
        let calls = [
            [bytes(&[2, 2], 0), texts(&[2, 2], &["", "b", "cc", "ddd"])],
            [bytes(&[1, 2], 4), texts(&[1, 2], &["eeee", ""])],
            [bytes(&[3, 2], 6), texts(&[3, 2], &["f", "g", "h", "i", "j", "k"])],
        ];
        let joined = join(&calls.each_ref().map(|call| &call[..])).unwrap();
        assert_eq!(joined[0], bytes(&[6, 2], 0));
        assert_eq!(joined[1].shape(), [6, 2]);
        assert_eq!(split(&joined, &[2, 1, 3], &ports(2)).unwrap(), calls);
        // Outputs of no elements have rows as well.
        let nothing = bytes(&[3, 0], 0);
        assert_eq!(
            split(&[nothing], &[1, 2], &ports(1)).unwrap(),
            [[bytes(&[1, 0], 0)], [bytes(&[2, 0], 0)]]
        );
    }

    #[test]
    fn outputs_must_have_the_rows_of_the_inputs() {
        let check = |outputs: &[Tensor], expected: &str| {
            let error = split(outputs, &[1, 2], &ports(1)).unwrap_err();
            assert!(error.contains(expected), "{error}");
        };
        check(&[bytes(&[1], 0)], "output `y0` had the shape [1] for a batch of 3 rows");
        check(&[bytes(&[], 0)], "had the shape []");
        check(&[bytes(&[6], 0)], "had the shape [6]");
        check(&[], "answered 0 outputs where the model has 1");
    }

    #[test]
    fn a_small_part_does_not_keep_a_large_whole() {
        let check = |rows: &[usize], width: usize, lent: &[bool]| {
            let data = Bytes::from(vec![7; rows.iter().sum::<usize>() * width]);
            let whole = data.as_ptr_range();
            let shape = vec![rows.iter().sum(), width];
            let output = Tensor::new(Datatype::Uint8, shape, data.clone()).unwrap();
            let parts = split(&[output], rows, &ports(1)).unwrap();
            let is_lent = |part: &Vec<Tensor>| whole.contains(&part[0].data().as_ptr());
            assert_eq!(parts.iter().map(is_lent).collect::<Vec<_>>(), lent);
        };
        check(&[1, 7], 100, &[true, true]);
        check(&[1, 7], LENT_BYTES, &[false, true]);
        check(&[1, 1], LENT_BYTES, &[true, true]);
        check(&[1, 1, 1], LENT_BYTES, &[false, false, false]);
    }
}
