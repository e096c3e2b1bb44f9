//! The binary tensor extension: tensors as raw bytes behind the JSON of a message, or alone.

use bytes::Bytes;

use crate::backend::Port;
use crate::backend::validate::shape_text;
use crate::instance::typed::Description;
use crate::serve::json::{Refused, Room};
use crate::tensor::{Datatype, Tensor};

/// The header that says how many bytes of a body are JSON. The rest are tensors.
pub const HEADER_LENGTH: &str = "inference-header-content-length";

/// The length of the JSON, from the values of the header [`HEADER_LENGTH`]; nothing where there are none.
///
/// # Errors
/// Where it is not a number of bytes, or said twice.
pub fn header_length<'a>(values: impl IntoIterator<Item = &'a [u8]>) -> Result<Option<usize>, Refused> {
    let mut values = values.into_iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(wrong("the header `Inference-Header-Content-Length` is there twice"));
    }
    let digits = value.trim_ascii();
    let is_number = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    let number =
        std::str::from_utf8(digits).ok().filter(|_| is_number).and_then(|digits| digits.parse().ok());
    number.map(Some).ok_or_else(|| {
        let value: String = String::from_utf8_lossy(value).chars().take(32).collect();
        wrong(&format!("the header `Inference-Header-Content-Length` is `{value}`, not a number of bytes"))
    })
}

/// What follows the JSON of a request.
pub(super) struct Tail {
    bytes: Bytes,
    taken: usize,
}

impl Tail {
    pub(super) fn new(bytes: Bytes) -> Tail {
        Tail { bytes, taken: 0 }
    }

    /// The next bytes, which stay where they are in the body.
    ///
    /// # Errors
    /// Where there are not as many.
    pub(super) fn take(&mut self, size: usize) -> Result<Bytes, Refused> {
        let left = self.bytes.len() - self.taken;
        if size > left {
            return Err(wrong(&format!(
                "`binary_data_size` is {size}, but only {left} bytes of the body are left for it"
            )));
        }
        let start = self.taken;
        self.taken += size;
        Ok(self.bytes.slice(start..self.taken))
    }

    /// Says that no tensors are left.
    ///
    /// # Errors
    /// Where bytes are.
    pub(super) fn end(&self) -> Result<(), Refused> {
        let (taken, all) = (self.taken, self.bytes.len());
        if taken == all {
            return Ok(());
        }
        Err(wrong(&format!(
            "{all} bytes follow the JSON, but the `binary_data_size` of its inputs add up to {taken}"
        )))
    }
}

/// A body that is nothing but the one input of a function, and whether the tensor lies in it.
///
/// A dimension that the caller chooses follows from the length. Of BYTES the whole body is the one element.
///
/// # Errors
/// Where the function has several inputs, or the shape does not follow from the length, or there is no room.
pub(super) fn raw(
    body: Bytes,
    description: &Description,
    room: &mut Room<'_>,
) -> Result<(String, Tensor, bool), Refused> {
    let [port] = description.signature.inputs.as_slice() else {
        let names: Vec<_> =
            description.signature.inputs.iter().map(|port| format!("`{}`", port.name)).collect();
        return Err(wrong(&format!(
            "a body without JSON (`Inference-Header-Content-Length: 0`) is for functions of one input; this one has {}",
            if names.is_empty() { "none".to_owned() } else { names.join(", ") },
        )));
    };
    let Some(dims) = &port.shape else {
        return Err(wrong(&format!("input `{}` may have any rank: say its shape in JSON", port.name)));
    };
    let (shape, data) = if port.datatype == Datatype::Bytes {
        (vec![1; dims.len()], element(&body, room)?)
    } else {
        (shape(port, dims, body.len())?, body)
    };
    let tensor = Tensor::new(port.datatype, shape, data);
    let tensor = tensor.map_err(|error| wrong(&format!("input `{}`: {error}", port.name)))?;
    Ok((port.name.clone(), tensor, port.datatype != Datatype::Bytes))
}

/// Bytes as a BYTES tensor of one element.
fn element(bytes: &[u8], room: &mut Room<'_>) -> Result<Bytes, Refused> {
    let length = u32::try_from(bytes.len());
    let length = length.map_err(|_| wrong("the body is longer than an element of BYTES may be"))?;
    if !room(4 + bytes.len()) {
        return Err(Refused::NoRoom);
    }
    Ok([&length.to_le_bytes(), bytes].concat().into())
}

fn shape(port: &Port, dims: &[Option<usize>], length: usize) -> Result<Vec<usize>, Refused> {
    let takes = |what: String| {
        wrong(&format!("input `{}` takes {} {}: {what}", port.name, port.datatype, shape_text(dims)))
    };
    if dims.iter().filter(|dim| dim.is_none()).count() > 1 {
        return Err(takes("several dimensions are open, so say the shape in JSON".to_owned()));
    }
    let size = port.datatype.size().unwrap_or(1);
    let fixed = dims.iter().flatten().try_fold(size, |product, dim| product.checked_mul(*dim));
    let open = match fixed {
        Some(fixed) if fixed > 0 && length.is_multiple_of(fixed) => length / fixed,
        Some(fixed) if dims.iter().any(Option::is_none) => {
            return Err(takes(format!("the body has {length} bytes, which is no multiple of {fixed}")));
        }
        // What the tensor makes of it is told.
        _ => 1,
    };
    Ok(dims.iter().map(|dim| dim.unwrap_or(open)).collect())
}

fn wrong(what: &str) -> Refused {
    Refused::Input(what.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Signature;

    #[test]
    fn the_length_of_the_json_is_a_number() {
        let check = |values: &[&str], expected: Result<Option<usize>, &str>| {
            let actual = header_length(values.iter().map(|value| value.as_bytes()));
            match (actual, expected) {
                (Ok(actual), Ok(expected)) => assert_eq!(actual, expected),
                (Err(Refused::Input(actual)), Err(expected)) => {
                    assert!(actual.contains(expected), "{actual}")
                }
                (actual, expected) => panic!("{values:?}: {actual:?}, expected {expected:?}"),
            }
        };
        check(&[], Ok(None));
        check(&["0"], Ok(Some(0)));
        check(&[" 17\t"], Ok(Some(17)));
        check(&["17", "17"], Err("is there twice"));
        check(&[""], Err("is ``, not a number"));
        check(&["-1"], Err("is `-1`, not a number"));
        check(&["+1"], Err("is `+1`, not a number"));
        check(&["1.0"], Err("not a number"));
        check(&["0x10"], Err("not a number"));
        check(&["99999999999999999999999"], Err("not a number"));
    }

    #[test]
    fn a_body_alone_is_the_one_input() {
        let port = |datatype, shape: &[Option<usize>]| Port {
            name: "x".to_owned(),
            datatype,
            shape: Some(shape.to_vec()),
        };
        let check = |ports: &[Port], body: &[u8], expected: Result<&str, &str>| {
            let signature = Signature { inputs: ports.to_vec(), outputs: vec![] };
            let description = Description { signature, ..Description::default() };
            let actual = raw(Bytes::copy_from_slice(body), &description, &mut |_| true);
            match (actual, expected) {
                (Ok((_, tensor, _)), Ok(expected)) => assert_eq!(format!("{tensor:?}"), expected),
                (Err(Refused::Input(actual)), Err(expected)) => {
                    assert!(actual.contains(expected), "{actual}")
                }
                (actual, expected) => panic!("{actual:?}, expected {expected:?}"),
            }
        };
        let fp32 = |shape: &[Option<usize>]| [port(Datatype::Fp32, shape)];
        check(&fp32(&[None, Some(2)]), &[0; 16], Ok("Tensor(FP32 [2, 2], 16 bytes)"));
        check(&fp32(&[Some(2), Some(2)]), &[0; 16], Ok("Tensor(FP32 [2, 2], 16 bytes)"));
        check(&fp32(&[]), &[0; 4], Ok("Tensor(FP32 [], 4 bytes)"));
        check(&fp32(&[None]), &[], Ok("Tensor(FP32 [0], 0 bytes)"));
        check(
            &fp32(&[None, Some(2)]),
            &[0; 15],
            Err("takes FP32 [-1, 2]: the body has 15 bytes, which is no multiple of 8"),
        );
        check(&fp32(&[Some(2), Some(2)]), &[0; 20], Err("takes 16 bytes, but 20"));
        check(&fp32(&[None, None]), &[0; 16], Err("several dimensions are open"));
        check(&fp32(&[None, Some(0)]), &[0; 16], Err("no multiple of 0"));
        check(&fp32(&[None, Some(1 << 40), Some(1 << 40)]), &[0; 16], Err("more elements"));
        check(&[], &[0; 16], Err("this one has none"));
        check(&[port(Datatype::Fp32, &[]), port(Datatype::Fp32, &[])], &[0; 4], Err("this one has `x`, `x`"));
        check(&[Port { shape: None, ..fp32(&[])[0].clone() }], &[0; 4], Err("any rank"));
        check(&[port(Datatype::Bool, &[None])], &[0, 2], Err("BOOL elements are 0 or 1"));
        let bytes = [port(Datatype::Bytes, &[None, Some(1)])];
        check(&bytes, b"an image", Ok("Tensor(BYTES [1, 1], 12 bytes)"));
        check(&bytes, b"", Ok("Tensor(BYTES [1, 1], 4 bytes)"));
    }

    #[test]
    fn room_is_asked_for_what_is_copied() {
        let port = Port { name: "x".to_owned(), datatype: Datatype::Bytes, shape: Some(vec![None]) };
        let signature = Signature { inputs: vec![port], outputs: vec![] };
        let description = Description { signature, ..Description::default() };
        let mut asked = 0;
        let refused = raw(Bytes::from_static(b"an image"), &description, &mut |more| {
            asked += more;
            false
        });
        assert_eq!((refused.err(), asked), (Some(Refused::NoRoom), 12));
    }
}
