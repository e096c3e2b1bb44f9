//! BYTES: byte strings of any length, each behind its length in a tensor's data.

use std::fmt;
use std::ops::Deref;

use crate::{Error, Result};

const PREFIX_BYTES: usize = 4;

/// One element of a BYTES tensor: a file, an image, any bytes. Reads like a slice.
///
/// ```
/// use tenon_sdk::Bytes;
///
/// let bytes = Bytes::from(b"\x89PNG");
/// assert!(bytes.starts_with(b"\x89PNG"));
/// ```
#[derive(Clone, Default)]
pub struct Bytes {
    data: Vec<u8>,
    /// A single element keeps the prefix that it came with, so that nothing has to move.
    start: usize,
}

impl Bytes {
    /// The bytes as a vector.
    pub fn into_vec(mut self) -> Vec<u8> {
        self.data.drain(..self.start);
        self.data
    }

    /// The bytes as text. An error where they are not UTF-8.
    pub fn into_string(self) -> Result<String> {
        String::from_utf8(self.into_vec())
            .map_err(|error| Error::invalid_input(format!("text is not UTF-8: {error}")))
    }

    /// The one element of a BYTES tensor's data.
    pub(crate) fn only(data: Vec<u8>) -> Result<Self> {
        match split_first(&data)? {
            Some((_, [])) => Ok(Self { data, start: PREFIX_BYTES }),
            _ => Err(Error::invalid_input("one element is expected")),
        }
    }

    /// The data of a BYTES tensor with this one element.
    pub(crate) fn into_only(self) -> Result<Vec<u8>> {
        if self.start == PREFIX_BYTES {
            return Ok(self.data);
        }
        only_element(|data| {
            data.extend_from_slice(&self);
            Ok(())
        })
    }
}

/// The data of a BYTES tensor with one element, which `write` appends.
pub(crate) fn only_element(write: impl FnOnce(&mut Vec<u8>) -> Result<()>) -> Result<Vec<u8>> {
    let mut data = vec![0; PREFIX_BYTES];
    write(&mut data)?;
    let len = u32::try_from(data.len() - PREFIX_BYTES)
        .map_err(|_| Error::failed("a BYTES element is 4 GiB or longer"))?;
    data[..PREFIX_BYTES].copy_from_slice(&len.to_le_bytes());
    Ok(data)
}

/// The elements of a BYTES tensor's data.
pub(crate) fn decode_bytes<T>(mut data: &[u8], from: impl Fn(&[u8]) -> Result<T>) -> Result<Vec<T>> {
    let mut elements = Vec::new();
    while let Some((element, rest)) = split_first(data)? {
        elements.push(from(element)?);
        data = rest;
    }
    Ok(elements)
}

/// The data of a BYTES tensor.
pub(crate) fn encode_bytes(elements: &[impl AsRef<[u8]>]) -> Vec<u8> {
    let bytes: usize = elements.iter().map(|element| PREFIX_BYTES + element.as_ref().len()).sum();
    let mut data = Vec::with_capacity(bytes);
    for element in elements {
        let element = element.as_ref();
        let len = u32::try_from(element.len()).expect("a guest's memory ends at 4 GiB");
        data.extend_from_slice(&len.to_le_bytes());
        data.extend_from_slice(element);
    }
    data
}

fn split_first(data: &[u8]) -> Result<Option<(&[u8], &[u8])>> {
    if data.is_empty() {
        return Ok(None);
    }
    let cut_off = || Error::invalid_input("the data of a BYTES tensor ends inside an element");
    let (prefix, rest) = data.split_first_chunk::<PREFIX_BYTES>().ok_or_else(cut_off)?;
    rest.split_at_checked(u32::from_le_bytes(*prefix) as usize).ok_or_else(cut_off).map(Some)
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.data[self.start..]
    }
}

impl AsRef<[u8]> for Bytes {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl PartialEq for Bytes {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Bytes {}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "b\"{}\"", self.escape_ascii())
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(data: Vec<u8>) -> Self {
        Self { data, start: 0 }
    }
}

impl From<&[u8]> for Bytes {
    fn from(data: &[u8]) -> Self {
        data.to_vec().into()
    }
}

impl<const N: usize> From<&[u8; N]> for Bytes {
    fn from(data: &[u8; N]) -> Self {
        data.to_vec().into()
    }
}

impl From<String> for Bytes {
    fn from(text: String) -> Self {
        text.into_bytes().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_element_keeps_its_prefix_and_loses_it_on_demand() {
        let data = encode_bytes(&["abc"]);
        let bytes = Bytes::only(data.clone()).unwrap();
        assert_eq!(&*bytes, b"abc");
        assert_eq!(bytes.clone().into_only().unwrap(), data);
        assert_eq!(Bytes::from(b"abc").into_only().unwrap(), data);
        assert_eq!(bytes.into_vec(), b"abc");
    }

    #[test]
    fn more_or_less_than_one_element_is_refused() {
        assert!(Bytes::only(encode_bytes(&["a", "b"])).is_err());
        assert!(Bytes::only(Vec::new()).is_err());
        assert!(Bytes::only(vec![2, 0, 0, 0, b'a']).is_err());
    }
}
