//! The classification extension: the best classes of an output in place of its numbers.

use std::cmp::Ordering;
use std::fmt::Debug;

use half::{bf16, f16};

use crate::serve::json::TooLong;
use crate::tensor::{Datatype, Tensor};

/// A BYTES tensor of at most `limit` bytes with the `classes` highest values of a tensor, the highest first, each as
/// the text `value:index`. Where the tensor has more than one dimension, the first one is a batch: the answer has the
/// shape `[batch, classes]`, else `[classes]`. NaN counts as the lowest value, and of equal values the first one is first.
///
/// # Errors
/// Where it is longer. A tensor of BOOL or BYTES has no classes, and is answered with none.
pub fn classify(tensor: &Tensor, classes: usize, limit: usize) -> Result<Tensor, TooLong> {
    let data = tensor.data();
    let ranks = Ranking { shape: tensor.shape(), classes, limit };
    match tensor.datatype() {
        Datatype::Uint8 => ranks.of(data, u8::from_le_bytes, u8::cmp),
        Datatype::Uint16 => ranks.of(data, u16::from_le_bytes, u16::cmp),
        Datatype::Uint32 => ranks.of(data, u32::from_le_bytes, u32::cmp),
        Datatype::Uint64 => ranks.of(data, u64::from_le_bytes, u64::cmp),
        Datatype::Int8 => ranks.of(data, i8::from_le_bytes, i8::cmp),
        Datatype::Int16 => ranks.of(data, i16::from_le_bytes, i16::cmp),
        Datatype::Int32 => ranks.of(data, i32::from_le_bytes, i32::cmp),
        Datatype::Int64 => ranks.of(data, i64::from_le_bytes, i64::cmp),
        Datatype::Fp16 => ranks.of(data, |bytes| f16::from_le_bytes(bytes).to_f32(), floats),
        Datatype::Bf16 => ranks.of(data, |bytes| bf16::from_le_bytes(bytes).to_f32(), floats),
        Datatype::Fp32 => ranks.of(data, f32::from_le_bytes, floats),
        Datatype::Fp64 => ranks.of(data, f64::from_le_bytes, floats),
        Datatype::Bool | Datatype::Bytes => ranks.of::<u8, 1>(&[], |[byte]| byte, u8::cmp),
    }
}

fn floats<T: PartialOrd>(a: &T, b: &T) -> Ordering {
    // What is not comparable even with itself is NaN.
    let is_number = |value: &T| value.partial_cmp(value).is_some();
    a.partial_cmp(b).unwrap_or_else(|| is_number(a).cmp(&is_number(b)))
}

struct Ranking<'a> {
    shape: &'a [usize],
    classes: usize,
    limit: usize,
}

impl Ranking<'_> {
    fn of<T: Debug, const N: usize>(
        &self,
        data: &[u8],
        value: impl Fn([u8; N]) -> T,
        order: impl Fn(&T, &T) -> Ordering,
    ) -> Result<Tensor, TooLong> {
        let (values, _) = data.as_chunks::<N>();
        let batch = if self.shape.len() > 1 { self.shape[0] } else { 1 };
        let each = values.len().checked_div(batch).unwrap_or(0);
        let classes = self.classes.min(each);
        let mut elements = Vec::new();
        let mut places: Vec<usize> = Vec::with_capacity(each);
        // Where there are no classes, there is nothing to cut into rows.
        for row in values.chunks_exact(each.max(1)) {
            let better = |a: &usize, b: &usize| order(&value(row[*b]), &value(row[*a])).then(a.cmp(b));
            places.clear();
            places.extend(0..each);
            if classes < each {
                places.select_nth_unstable_by(classes, better);
                places.truncate(classes);
            }
            places.sort_unstable_by(better);
            for place in &places {
                let text = format!("{:?}:{place}", value(row[*place]));
                if elements.len() + 4 + text.len() > self.limit {
                    return Err(TooLong);
                }
                let length = u32::try_from(text.len()).map_err(|_| TooLong)?;
                elements.extend_from_slice(&length.to_le_bytes());
                elements.extend_from_slice(text.as_bytes());
            }
        }
        let shape = if self.shape.len() > 1 { vec![batch, classes] } else { vec![classes] };
        Tensor::new(Datatype::Bytes, shape, elements.into()).map_err(|_| TooLong)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(
        datatype: Datatype,
        shape: &[usize],
        data: Vec<u8>,
        classes: usize,
        expected: (&[usize], &[&str]),
    ) {
        let tensor = Tensor::new(datatype, shape.to_vec(), data.into()).unwrap();
        let best = classify(&tensor, classes, 4096).unwrap();
        let texts: Vec<_> = best.elements().map(|text| std::str::from_utf8(text).unwrap()).collect();
        assert_eq!((best.shape(), texts.as_slice()), expected);
    }

    fn fp32(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    #[test]
    fn the_best_classes_come_first() {
        let scores = fp32(&[1.0, 5.0, 10.0, 4.5]);
        check(Datatype::Fp32, &[4], scores.clone(), 2, (&[2], &["10.0:2", "5.0:1"]));
        check(Datatype::Fp32, &[4], scores.clone(), 9, (&[4], &["10.0:2", "5.0:1", "4.5:3", "1.0:0"]));
        check(Datatype::Fp32, &[1, 4], scores.clone(), 1, (&[1, 1], &["10.0:2"]));
        check(Datatype::Fp32, &[2, 2], scores.clone(), 1, (&[2, 1], &["5.0:1", "10.0:0"]));
        check(Datatype::Fp32, &[2, 1, 2], scores, 2, (&[2, 2], &["5.0:1", "1.0:0", "10.0:0", "4.5:1"]));
        check(Datatype::Fp32, &[], fp32(&[7.0]), 3, (&[1], &["7.0:0"]));
        check(Datatype::Fp32, &[0, 3], vec![], 3, (&[0, 0], &[]));
        check(Datatype::Fp32, &[0], vec![], 3, (&[0], &[]));
        check(Datatype::Int8, &[3], vec![0xff, 0x7f, 0x80], 3, (&[3], &["127:1", "-1:0", "-128:2"]));
        check(Datatype::Uint64, &[2], [[0xff; 8], [0; 8]].concat(), 1, (&[1], &["18446744073709551615:0"]));
    }

    #[test]
    fn equal_values_keep_their_order_and_nan_is_last() {
        let scores = fp32(&[f32::NAN, 0.5, f32::NEG_INFINITY, 0.5, f32::INFINITY]);
        let expected = ["inf:4", "0.5:1", "0.5:3", "-inf:2", "NaN:0"];
        check(Datatype::Fp32, &[5], scores.clone(), 5, (&[5], &expected));
        check(Datatype::Fp32, &[5], scores, 2, (&[2], &expected[..2]));
    }

    #[test]
    fn the_texts_are_bounded() {
        let tensor = Tensor::new(Datatype::Uint8, vec![1000, 1], vec![0; 1000].into()).unwrap();
        assert!(classify(&tensor, 1, 7000).is_ok());
        assert_eq!(classify(&tensor, 1, 6999), Err(TooLong));
    }
}
