//! How far two tensors are apart: what is expected, what came, and which difference is still the same answer.

use std::fmt;

use super::{Datatype, Tensor};

/// What may differ between two numbers that count as equal: `absolute + relative * |expected|`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerance {
    pub absolute: f64,
    pub relative: f64,
}

impl Tolerance {
    /// Nothing may differ.
    pub const EXACT: Tolerance = Tolerance { absolute: 0.0, relative: 0.0 };
    /// What engines of one precision differ by: the order in which sums are taken is theirs.
    pub const USUAL: Tolerance = Tolerance { absolute: 1e-5, relative: 1e-3 };

    /// Whether `actual` counts as `expected`. NaN counts as NaN, and an infinity as itself.
    pub fn allows(&self, expected: f64, actual: f64) -> bool {
        expected == actual
            || expected.is_nan() && actual.is_nan()
            || expected.is_finite()
                && (expected - actual).abs() <= self.absolute + self.relative * expected.abs()
    }
}

/// Where two tensors differ.
#[derive(Clone, Debug, PartialEq)]
pub enum Difference {
    Datatype {
        expected: Datatype,
        actual: Datatype,
    },
    Shape {
        expected: Vec<usize>,
        actual: Vec<usize>,
    },
    /// The first element that differs, how many do, and the largest distance of numbers.
    Elements {
        index: usize,
        expected: String,
        actual: String,
        count: usize,
        of: usize,
        largest: f64,
    },
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Difference::Datatype { expected, actual } => write!(f, "it is {actual}, not {expected}"),
            Difference::Shape { expected, actual } => {
                write!(f, "it has the shape {actual:?}, not {expected:?}")
            }
            Difference::Elements { index, expected, actual, count, of, largest } => {
                write!(f, "element {index} is {actual}, not {expected}; {count} of {of} differ")?;
                if *largest > 0.0 { write!(f, ", by {largest:.3e} at most") } else { Ok(()) }
            }
        }
    }
}

/// Compares what came with what was expected. Numbers may differ by the tolerance, BYTES and BOOL not at all.
/// Answers the largest distance of two numbers.
///
/// # Errors
/// Where they differ by more.
pub fn compare(expected: &Tensor, actual: &Tensor, tolerance: Tolerance) -> Result<f64, Difference> {
    let (datatype, other) = (expected.datatype(), actual.datatype());
    if datatype != other {
        return Err(Difference::Datatype { expected: datatype, actual: other });
    }
    if expected.shape() != actual.shape() {
        return Err(Difference::Shape { expected: expected.shape().into(), actual: actual.shape().into() });
    }
    let Some(size) = datatype.size() else { return texts(expected, actual) };
    let pairs = expected.data().chunks_exact(size).zip(actual.data().chunks_exact(size));
    let mut found: Option<(usize, String, String)> = None;
    let (mut count, mut of, mut largest) = (0, 0, 0.0_f64);
    for (index, (expected, actual)) in pairs.enumerate() {
        of += 1;
        if expected == actual {
            continue;
        }
        let (a, b) = (number(datatype, expected), number(datatype, actual));
        let distance = (a - b).abs();
        // Whole numbers beyond 2^53 are one f64 with their neighbours, but not the same.
        let differs =
            tolerance == Tolerance::EXACT && !(a.is_nan() && b.is_nan()) && (a != b || is_whole(datatype))
                || !tolerance.allows(a, b);
        if distance > largest {
            largest = distance;
        }
        if differs {
            count += 1;
            found.get_or_insert_with(|| (index, shown(datatype, expected), shown(datatype, actual)));
        }
    }
    match found {
        None => Ok(largest),
        Some((index, expected, actual)) => {
            Err(Difference::Elements { index, expected, actual, count, of, largest })
        }
    }
}

fn texts(expected: &Tensor, actual: &Tensor) -> Result<f64, Difference> {
    let mut found = None;
    let (mut count, mut of) = (0, 0);
    for (index, (expected, actual)) in expected.elements().zip(actual.elements()).enumerate() {
        of += 1;
        if expected != actual {
            count += 1;
            found.get_or_insert_with(|| (index, text(expected), text(actual)));
        }
    }
    match found {
        None => Ok(0.0),
        Some((index, expected, actual)) => {
            Err(Difference::Elements { index, expected, actual, count, of, largest: 0.0 })
        }
    }
}

/// The beginning of a byte string, for people.
fn text(bytes: &[u8]) -> String {
    const LONGEST: usize = 60;
    let more = if bytes.len() > LONGEST { "..." } else { "" };
    format!("{:?}{more}", String::from_utf8_lossy(&bytes[..bytes.len().min(LONGEST)]))
}

/// Whether elements are whole numbers.
pub fn is_whole(datatype: Datatype) -> bool {
    !matches!(datatype, Datatype::Fp16 | Datatype::Bf16 | Datatype::Fp32 | Datatype::Fp64)
}

/// The number that a little-endian element stands for, as near as an f64 comes to it.
#[expect(clippy::cast_precision_loss, reason = "distances of such large numbers need not be exact")]
pub fn number(datatype: Datatype, element: &[u8]) -> f64 {
    fn le<const N: usize>(element: &[u8]) -> [u8; N] {
        element.try_into().unwrap_or([0; N])
    }
    match datatype {
        Datatype::Bool | Datatype::Uint8 => f64::from(le::<1>(element)[0]),
        Datatype::Int8 => f64::from(i8::from_le_bytes(le(element))),
        Datatype::Uint16 => f64::from(u16::from_le_bytes(le(element))),
        Datatype::Int16 => f64::from(i16::from_le_bytes(le(element))),
        Datatype::Uint32 => f64::from(u32::from_le_bytes(le(element))),
        Datatype::Int32 => f64::from(i32::from_le_bytes(le(element))),
        Datatype::Uint64 => u64::from_le_bytes(le(element)) as f64,
        Datatype::Int64 => i64::from_le_bytes(le(element)) as f64,
        Datatype::Fp16 => half::f16::from_le_bytes(le(element)).to_f64(),
        Datatype::Bf16 => half::bf16::from_le_bytes(le(element)).to_f64(),
        Datatype::Fp32 => f64::from(f32::from_le_bytes(le(element))),
        Datatype::Fp64 => f64::from_le_bytes(le(element)),
        Datatype::Bytes => f64::NAN,
    }
}

fn shown(datatype: Datatype, element: &[u8]) -> String {
    match datatype {
        Datatype::Uint64 => element.try_into().map(u64::from_le_bytes).unwrap_or_default().to_string(),
        Datatype::Int64 => element.try_into().map(i64::from_le_bytes).unwrap_or_default().to_string(),
        _ => number(datatype, element).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fp32(values: &[f32]) -> Tensor {
        let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Tensor::new(Datatype::Fp32, vec![values.len()], data.into()).unwrap()
    }

    fn int64(values: &[i64]) -> Tensor {
        let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Tensor::new(Datatype::Int64, vec![values.len()], data.into()).unwrap()
    }

    #[test]
    fn numbers_may_differ_by_the_tolerance() {
        let loose = Tolerance { absolute: 0.1, relative: 0.01 };
        let check = |expected: &Tensor, actual: &Tensor, tolerance, said: Option<&str>| {
            let found = compare(expected, actual, tolerance).err().map(|difference| difference.to_string());
            assert_eq!(found.as_deref(), said);
        };
        check(&fp32(&[1.0, 2.0]), &fp32(&[1.0, 2.05]), loose, None);
        check(&fp32(&[100.0]), &fp32(&[101.0]), loose, None);
        check(
            &fp32(&[1.0, 2.0]),
            &fp32(&[1.0, 2.5]),
            loose,
            Some("element 1 is 2.5, not 2; 1 of 2 differ, by 5.000e-1 at most"),
        );
        check(&fp32(&[f32::NAN, f32::INFINITY]), &fp32(&[f32::NAN, f32::INFINITY]), Tolerance::EXACT, None);
        check(&fp32(&[1.0]), &fp32(&[f32::NAN]), loose, Some("element 0 is NaN, not 1; 1 of 1 differ"));
        check(
            &fp32(&[f32::INFINITY]),
            &fp32(&[1.0]),
            loose,
            Some("element 0 is 1, not inf; 1 of 1 differ, by inf at most"),
        );
        check(&fp32(&[0.0]), &fp32(&[-0.0]), Tolerance::EXACT, None);
        check(&int64(&[3]), &int64(&[3]), Tolerance::EXACT, None);
        let large = (1_i64 << 53) + 1;
        check(
            &int64(&[large]),
            &int64(&[large - 1]),
            Tolerance::EXACT,
            Some("element 0 is 9007199254740992, not 9007199254740993; 1 of 1 differ"),
        );
        check(&fp32(&[1.0]), &int64(&[1]), loose, Some("it is INT64, not FP32"));
        check(&fp32(&[1.0]), &fp32(&[1.0, 2.0]), loose, Some("it has the shape [2], not [1]"));
    }

    #[test]
    fn byte_strings_are_equal_or_not() {
        let one = Tensor::from_elements(vec![2], &["a", "b"]).unwrap();
        let other = Tensor::from_elements(vec![2], &["a", "c"]).unwrap();
        assert_eq!(compare(&one, &one, Tolerance::USUAL), Ok(0.0));
        let said = compare(&one, &other, Tolerance::USUAL).unwrap_err().to_string();
        assert_eq!(said, "element 1 is \"c\", not \"b\"; 1 of 2 differ");
    }
}
