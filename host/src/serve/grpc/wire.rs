//! The wire format of Protocol Buffers, as far as tensors need it: what is large is neither copied nor taken apart.

use thiserror::Error;

use super::super::status::AnswerError;

/// What stands in one field of a message.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Value<'a> {
    Varint(u64),
    Fixed64([u8; 8]),
    /// A text, bytes, a message, or numbers one after the other.
    Bytes(&'a [u8]),
    Fixed32([u8; 4]),
}

/// Why bytes are not the message that they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(super) enum Malformed {
    #[error("it ends within a field")]
    Cut,
    #[error("a number in it is longer than 10 bytes")]
    LongNumber,
    #[error("the key of a field in it is impossible")]
    Key,
    #[error("its groups nest too deep, or do not end")]
    Group,
    #[error("it has too many fields")]
    Many,
    #[error("its field `{0}` is of another type")]
    Type(&'static str),
    #[error("its field `{0}` is not UTF-8")]
    Text(&'static str),
}

impl From<Malformed> for AnswerError {
    fn from(malformed: Malformed) -> AnswerError {
        AnswerError::InvalidInput(format!(
            "the message is not one that the method takes: {malformed}; is the caller's `.proto` that of the protocol?"
        ))
    }
}

impl<'a> Value<'a> {
    /// The content of a field that is a message or bytes.
    pub(super) fn bytes(self, field: &'static str) -> Result<&'a [u8], Malformed> {
        match self {
            Value::Bytes(bytes) => Ok(bytes),
            _ => Err(Malformed::Type(field)),
        }
    }

    pub(super) fn text(self, field: &'static str) -> Result<&'a str, Malformed> {
        std::str::from_utf8(self.bytes(field)?).map_err(|_| Malformed::Text(field))
    }

    pub(super) fn varint(self, field: &'static str) -> Result<u64, Malformed> {
        match self {
            Value::Varint(number) => Ok(number),
            _ => Err(Malformed::Type(field)),
        }
    }
}

/// The fields of a message in the order in which they stand, each with its number. Groups, which are of an age before
/// ours, are passed over.
pub(super) struct Fields<'a> {
    rest: &'a [u8],
    /// How many more there may be.
    left: usize,
}

/// The most fields of a message that has no reason to have more.
const FEW: usize = 2048;

impl<'a> Fields<'a> {
    /// However many there are: it may take long to look at all of them.
    pub(super) fn all(message: &'a [u8]) -> Fields<'a> {
        Fields { rest: message, left: usize::MAX }
    }

    /// Not more than some.
    pub(super) fn few(message: &'a [u8]) -> Fields<'a> {
        Fields { rest: message, left: FEW }
    }

    fn field(&mut self) -> Result<Option<(u32, Value<'a>)>, Malformed> {
        self.left = self.left.checked_sub(1).ok_or(Malformed::Many)?;
        let (number, kind) = key(&mut self.rest)?;
        if kind == GROUP {
            return self.group(number).map(|()| None);
        }
        value(&mut self.rest, kind).map(|value| Some((number, value)))
    }

    fn group(&mut self, number: u32) -> Result<(), Malformed> {
        let mut open = [0; DEEPEST];
        open[0] = number;
        let mut depth = 1;
        while depth > 0 {
            self.left = self.left.checked_sub(1).ok_or(Malformed::Many)?;
            let (number, kind) = key(&mut self.rest).map_err(|_| Malformed::Group)?;
            match kind {
                GROUP => {
                    *open.get_mut(depth).ok_or(Malformed::Group)? = number;
                    depth += 1;
                }
                GROUP_END if open[depth - 1] == number => depth -= 1,
                GROUP_END => return Err(Malformed::Group),
                kind => {
                    value(&mut self.rest, kind)?;
                }
            }
        }
        Ok(())
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u32, Value<'a>), Malformed>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        while !self.rest.is_empty() {
            match self.field() {
                Ok(None) => {}
                Ok(Some(field)) => return Some(Ok(field)),
                Err(malformed) => {
                    self.rest = &[];
                    return Some(Err(malformed));
                }
            }
        }
        None
    }
}

/// The kinds of fields, by the lowest three bits of their keys.
const VARINT: u32 = 0;
const FIXED64: u32 = 1;
const BYTES: u32 = 2;
const GROUP: u32 = 3;
const GROUP_END: u32 = 4;
const FIXED32: u32 = 5;

/// How deep groups may nest.
const DEEPEST: usize = 32;

#[inline]
fn key(rest: &mut &[u8]) -> Result<(u32, u32), Malformed> {
    let key = u32::try_from(varint(rest)?).map_err(|_| Malformed::Key)?;
    match key >> 3 {
        0 => Err(Malformed::Key),
        number => Ok((number, key & 7)),
    }
}

#[inline]
fn value<'a>(rest: &mut &'a [u8], kind: u32) -> Result<Value<'a>, Malformed> {
    Ok(match kind {
        VARINT => Value::Varint(varint(rest)?),
        FIXED64 => Value::Fixed64(fixed(rest)?),
        BYTES => {
            let length = usize::try_from(varint(rest)?).map_err(|_| Malformed::Cut)?;
            let (bytes, tail) = rest.split_at_checked(length).ok_or(Malformed::Cut)?;
            *rest = tail;
            Value::Bytes(bytes)
        }
        FIXED32 => Value::Fixed32(fixed(rest)?),
        _ => return Err(Malformed::Key),
    })
}

fn fixed<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], Malformed> {
    let (bytes, tail) = rest.split_first_chunk().ok_or(Malformed::Cut)?;
    *rest = tail;
    Ok(*bytes)
}

/// A number of 1 to 10 bytes, the lowest seven bits first.
#[inline]
pub(super) fn varint(rest: &mut &[u8]) -> Result<u64, Malformed> {
    if let Some((first, tail)) = rest.split_first()
        && *first < 0x80
    {
        *rest = tail;
        return Ok(u64::from(*first));
    }
    let mut number = 0;
    for (index, byte) in rest.iter().enumerate().take(10) {
        number |= u64::from(byte & 0x7f) << (7 * index);
        if *byte < 0x80 {
            // Of the last byte there is room for one bit.
            if index == 9 && *byte > 1 {
                return Err(Malformed::LongNumber);
            }
            *rest = &rest[index + 1..];
            return Ok(number);
        }
    }
    Err(if rest.len() < 10 { Malformed::Cut } else { Malformed::LongNumber })
}

/// The bytes that a number takes.
#[inline]
pub(super) fn varint_len(number: u64) -> usize {
    (number | 1).ilog2() as usize / 7 + 1
}

pub(super) fn put_varint(to: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        to.push(number as u8 | 0x80);
        number >>= 7;
    }
    to.push(number as u8);
}

/// The bytes that a field takes whose content has `length` bytes.
pub(super) fn field_len(number: u32, length: usize) -> usize {
    key_len(number) + varint_len(length as u64) + length
}

/// The bytes that the key of a field takes.
pub(super) fn key_len(number: u32) -> usize {
    varint_len(u64::from(number) << 3)
}

/// What stands before the content of a field.
pub(super) fn put_head(to: &mut Vec<u8>, number: u32, length: usize) {
    put_varint(to, u64::from(number << 3 | BYTES));
    put_varint(to, length as u64);
}

pub(super) fn put_bytes(to: &mut Vec<u8>, number: u32, bytes: &[u8]) {
    put_head(to, number, bytes.len());
    to.extend_from_slice(bytes);
}

pub(super) fn put_number(to: &mut Vec<u8>, number: u32, value: u64) {
    put_varint(to, u64::from(number << 3 | VARINT));
    put_varint(to, value);
}

pub(super) fn put_double(to: &mut Vec<u8>, number: u32, value: f64) {
    put_varint(to, u64::from(number << 3 | FIXED64));
    to.extend_from_slice(&value.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(message: &[u8], expected: Result<&[(u32, Value<'_>)], Malformed>) {
        let actual: Result<Vec<_>, _> = Fields::few(message).collect();
        assert_eq!(actual.as_deref().map_err(|malformed| *malformed), expected, "{message:?}");
    }

    #[test]
    fn messages_are_their_fields() {
        check(&[], Ok(&[]));
        check(&[0x08, 0x96, 0x01], Ok(&[(1, Value::Varint(150))]));
        check(&[0x12, 2, b'o', b'k', 0x0d, 1, 2, 3, 4], {
            Ok(&[(2, Value::Bytes(b"ok")), (1, Value::Fixed32([1, 2, 3, 4]))])
        });
        check(&[0x09, 1, 2, 3, 4, 5, 6, 7, 8], Ok(&[(1, Value::Fixed64([1, 2, 3, 4, 5, 6, 7, 8]))]));
        // Groups, one in the other, go by.
        check(&[0x0b, 0x13, 0x08, 1, 0x14, 0x0c, 0x10, 7], Ok(&[(2, Value::Varint(7))]));
        let most = [0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1];
        check(&most, Ok(&[(1, Value::Varint(u64::MAX))]));
    }

    #[test]
    fn what_is_no_message_is_refused() {
        check(&[0x08], Err(Malformed::Cut));
        check(&[0x08, 0x80], Err(Malformed::Cut));
        check(&[0x12, 3, b'o', b'k'], Err(Malformed::Cut));
        check(&[0x12, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1], Err(Malformed::Cut));
        check(&[0x0d, 1, 2, 3], Err(Malformed::Cut));
        check(&[0x09, 1, 2, 3], Err(Malformed::Cut));
        check(&[0x00, 1], Err(Malformed::Key));
        check(&[0x0e, 1], Err(Malformed::Key));
        check(&[0x0c], Err(Malformed::Key));
        check(&[0xff; 12], Err(Malformed::LongNumber));
        check(&[0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2], Err(Malformed::LongNumber));
        check(&[0xf8, 0xff, 0xff, 0xff, 0xff, 0x01, 1], Err(Malformed::Key));
        check(&[0x0b, 0x14], Err(Malformed::Group));
        check(&[0x0b, 0x08, 1], Err(Malformed::Group));
        check(&[0x0b; 100_000], Err(Malformed::Group));
        check(&[0x08, 1].repeat(5000), Err(Malformed::Many));
        check(&[&[0x0b], [0x08, 1].repeat(5000).as_slice(), &[0x0c]].concat(), Err(Malformed::Many));
        assert_eq!(Fields::all(&[0x08, 1].repeat(5000)).filter(Result::is_ok).count(), 5000);
    }

    #[test]
    fn numbers_are_written_as_they_are_read() {
        for number in [0, 1, 127, 128, 16_383, 16_384, u64::from(u32::MAX), i64::MAX as u64, u64::MAX] {
            let mut written = Vec::new();
            put_varint(&mut written, number);
            assert_eq!(written.len(), varint_len(number));
            assert_eq!(varint(&mut written.as_slice()), Ok(number));
        }
        let mut written = Vec::new();
        put_bytes(&mut written, 16, b"seven");
        assert_eq!(written.len(), field_len(16, 5));
    }
}
