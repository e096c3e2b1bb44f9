//! Bodies in gzip and deflate: requests inflated within their limits, answers compressed for callers who ask for it.

use std::io::{BufRead, Read, Write};

use bytes::Bytes;
use flate2::Compression;
use flate2::bufread::{DeflateDecoder, GzDecoder, ZlibDecoder};
use flate2::write::{GzEncoder, ZlibEncoder};
use thiserror::Error;

use crate::serve::json::Room;

/// The codings that requests may have, as the header `accept-encoding` of a refusal says it.
pub const TAKEN: &str = "gzip, deflate";

/// How a body is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    Gzip,
    /// The zlib form, as HTTP means it; of requests the bare form is taken too.
    Deflate,
}

impl Coding {
    /// Its name in headers.
    pub fn name(self) -> &'static str {
        match self {
            Coding::Gzip => "gzip",
            Coding::Deflate => "deflate",
        }
    }

    fn from_name(name: &str) -> Option<Coding> {
        match name {
            "gzip" | "x-gzip" => Some(Coding::Gzip),
            "deflate" => Some(Coding::Deflate),
            _ => None,
        }
    }
}

/// Why a compressed body was not read.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Unreadable {
    #[error("a body is not taken in the content encoding `{0}`; send it as it is, or in {TAKEN}")]
    Coding(String),
    #[error("the body is not {0}: {1}")]
    Corrupt(&'static str, String),
    #[error("the body, inflated, is longer than the {0} bytes that this function takes")]
    TooLong(usize),
    #[error("there is no room for the body now")]
    NoRoom,
}

/// How a request's body is compressed, from the values of its header `content-encoding`.
///
/// # Errors
/// Where that is another way, or more than one.
pub fn of_request<'a>(values: impl IntoIterator<Item = &'a [u8]>) -> Result<Option<Coding>, Unreadable> {
    let codings = listed(values);
    let mut codings = codings.iter().filter(|coding| *coding != "identity");
    let Some(coding) = codings.next() else { return Ok(None) };
    let shown = |coding: &str| Unreadable::Coding(coding.chars().take(32).collect());
    if let Some(second) = codings.next() {
        return Err(shown(&format!("{coding}, {second}")));
    }
    Coding::from_name(coding).map(Some).ok_or_else(|| shown(coding))
}

/// How an answer of `length` bytes is to be compressed, from the values of the request's header `accept-encoding`.
///
/// A caller that names one coding alone has chosen it, and gets it. A list is what libraries send of their own accord:
/// it is followed where it pays, which it does for long JSON, and seldom for binary tensors.
pub fn of_answer<'a>(
    values: impl IntoIterator<Item = &'a [u8]>,
    length: usize,
    is_json: bool,
) -> Option<Coding> {
    /// Below, the answer goes into one packet as it is.
    const PAYS: usize = 1024;
    let accepted = listed(values);
    let accepted: Vec<_> = accepted.iter().map(|entry| weighed(entry)).collect();
    let weight = |name: &str| {
        let own = accepted.iter().find(|(coding, _)| *coding == name);
        own.or_else(|| accepted.iter().find(|(coding, _)| *coding == "*")).map_or(0.0, |(_, weight)| *weight)
    };
    let (gzip, deflate) = (weight("gzip"), weight("deflate"));
    let (coding, best) = if gzip >= deflate { (Coding::Gzip, gzip) } else { (Coding::Deflate, deflate) };
    let plain = accepted.iter().find(|(coding, _)| *coding == "identity").map_or(0.0, |(_, weight)| *weight);
    let is_chosen = accepted.iter().all(|(name, _)| [coding.name(), "identity"].contains(name));
    let pays = is_chosen || (is_json && length >= PAYS);
    (best > 0.0 && best >= plain && pays).then_some(coding)
}

/// The entries of a header that may come in several pieces, in lower case.
fn listed<'a>(values: impl IntoIterator<Item = &'a [u8]>) -> Vec<String> {
    /// Nobody has so many codings to name.
    const ENTRIES: usize = 32;
    let entries = values.into_iter().flat_map(|value| value.split(|byte| *byte == b','));
    let entries = entries.map(|entry| String::from_utf8_lossy(entry.trim_ascii()).to_ascii_lowercase());
    entries.filter(|entry| !entry.is_empty()).take(ENTRIES).collect()
}

/// A coding and how much it is wanted, from 0 to 1.
fn weighed(entry: &str) -> (&str, f32) {
    let mut parts = entry.split(';').map(str::trim);
    let coding = parts.next().map_or("", |coding| if coding == "x-gzip" { "gzip" } else { coding });
    let weight = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("q =")));
    let weight = weight.map_or(Some(1.0), |weight| weight.trim().parse().ok());
    (coding, weight.filter(|weight: &f32| (0.0..=1.0).contains(weight)).unwrap_or(0.0))
}

/// Inflates a request's body to at most `limit` bytes. `room` is asked before memory is taken for them.
///
/// # Errors
/// Where the body is damaged, goes on behind its end, or becomes longer; or there is no room.
pub fn inflate(body: &[u8], coding: Coding, limit: usize, room: &mut Room<'_>) -> Result<Bytes, Unreadable> {
    let mut rest = body;
    match coding {
        Coding::Gzip => grow(&mut GzDecoder::new(&mut rest), body.len(), limit, room),
        Coding::Deflate if is_zlib(body) => grow(&mut ZlibDecoder::new(&mut rest), body.len(), limit, room),
        Coding::Deflate => grow(&mut DeflateDecoder::new(&mut rest), body.len(), limit, room),
    }
    .map_err(|stopped| match stopped {
        Stopped::Corrupt(error) => Unreadable::Corrupt(coding.name(), error.to_string()),
        Stopped::TooLong => Unreadable::TooLong(limit),
        Stopped::NoRoom => Unreadable::NoRoom,
    })
    .and_then(|inflated| match rest.fill_buf() {
        Ok([]) => Ok(inflated),
        _ => Err(Unreadable::Corrupt(coding.name(), "bytes follow its end".to_owned())),
    })
}

/// The two bytes that zlib begins with: method, window and a check. Bare deflate does not begin with them.
fn is_zlib(body: &[u8]) -> bool {
    let [method, check, ..] = *body else { return true };
    method & 0x0f == 8 && method >> 4 <= 7 && u16::from_be_bytes([method, check]).is_multiple_of(31)
}

enum Stopped {
    Corrupt(std::io::Error),
    TooLong,
    NoRoom,
}

fn grow(from: &mut dyn Read, expected: usize, limit: usize, room: &mut Room<'_>) -> Result<Bytes, Stopped> {
    /// Read at once.
    const STEP: usize = 64 << 10;
    let mut bytes: Vec<u8> = Vec::new();
    loop {
        if bytes.len() == limit {
            // One byte more tells whether there is more.
            return match from.read(&mut [0]).map_err(Stopped::Corrupt)? {
                0 => Ok(bytes.into()),
                _ => Err(Stopped::TooLong),
            };
        }
        if bytes.len() == bytes.capacity() {
            // At first what is usual of JSON, which shrinks to a third or so.
            let more = if bytes.is_empty() { expected.saturating_mul(4).max(512) } else { bytes.len() };
            let more = more.min(limit - bytes.len());
            if !room(more) {
                return Err(Stopped::NoRoom);
            }
            bytes.reserve_exact(more);
        }
        let have = bytes.len();
        let upto = bytes.capacity().min(have + STEP).min(limit);
        bytes.resize(upto, 0);
        let read = from.read(&mut bytes[have..]).map_err(Stopped::Corrupt)?;
        bytes.truncate(have + read);
        if read == 0 {
            return Ok(bytes.into());
        }
    }
}

/// Compresses an answer, for speed rather than size.
pub fn compress(parts: &[Bytes], coding: Coding) -> Vec<u8> {
    let length: usize = parts.iter().map(Bytes::len).sum();
    let into = Vec::with_capacity(length / 2 + 64);
    // Writing into memory does not fail.
    let compressed = match coding {
        Coding::Gzip => {
            let mut encoder = GzEncoder::new(into, Compression::fast());
            parts.iter().try_for_each(|part| encoder.write_all(part)).and_then(|()| encoder.finish())
        }
        Coding::Deflate => {
            let mut encoder = ZlibEncoder::new(into, Compression::fast());
            parts.iter().try_for_each(|part| encoder.write_all(part)).and_then(|()| encoder.finish())
        }
    };
    compressed.expect("memory takes all that is written to it")
}

#[cfg(test)]
mod tests {
    use flate2::write::DeflateEncoder;

    use super::*;

    #[test]
    fn a_request_names_its_coding() {
        let check = |values: &[&str], expected: Result<Option<Coding>, &str>| {
            let actual = of_request(values.iter().map(|value| value.as_bytes()));
            match (actual, expected) {
                (Ok(actual), Ok(expected)) => assert_eq!(actual, expected),
                (Err(actual), Err(expected)) => assert!(actual.to_string().contains(expected), "{actual}"),
                (actual, expected) => panic!("{values:?}: {actual:?}, expected {expected:?}"),
            }
        };
        check(&[], Ok(None));
        check(&[""], Ok(None));
        check(&["identity"], Ok(None));
        check(&["gzip"], Ok(Some(Coding::Gzip)));
        check(&[" X-GZip "], Ok(Some(Coding::Gzip)));
        check(&["deflate"], Ok(Some(Coding::Deflate)));
        check(&["identity, deflate"], Ok(Some(Coding::Deflate)));
        check(&["br"], Err("`br`; send it as it is, or in gzip, deflate"));
        check(&["gzip, gzip"], Err("`gzip, gzip`"));
        check(&["gzip", "deflate"], Err("`gzip, deflate`"));
    }

    #[test]
    fn a_caller_gets_what_it_chose() {
        let check = |value: &str, length, is_json, expected: Option<Coding>| {
            assert_eq!(of_answer([value.as_bytes()], length, is_json), expected, "{value}");
        };
        let (gzip, deflate) = (Some(Coding::Gzip), Some(Coding::Deflate));
        // As tritonclient says what it was told to ask for.
        check("gzip", 1, false, gzip);
        check("deflate", 1, false, deflate);
        check("deflate;q=0.5", 1, false, deflate);
        check("identity;q=0.5, deflate", 1, false, deflate);
        check("identity, gzip;q=0.5", 1, false, None);
        // As libraries say what they could read.
        check("gzip, deflate", 4096, true, gzip);
        check("gzip, deflate", 4096, false, None);
        check("gzip, deflate", 100, true, None);
        check("gzip;q=0.2, deflate;q=0.8, br", 4096, true, deflate);
        check("gzip;q=0, *", 4096, true, deflate);
        check("*", 100, true, None);
        check("x-gzip", 100, true, gzip);
        check("*;q=0", 4096, true, None);
        check("br, zstd", 4096, true, None);
        check("gzip;q=none, br", 4096, true, None);
        check("gzip;q=7, br", 4096, true, None);
        check("", 4096, true, None);
        assert_eq!(of_answer([b"br".as_slice(), b"gzip".as_slice()], 4096, true), gzip);
        assert_eq!(of_answer([], 4096, true), None);
    }

    fn asked(body: &[u8], coding: Coding, limit: usize) -> (Result<Bytes, Unreadable>, usize) {
        let mut asked = 0;
        let inflated = inflate(body, coding, limit, &mut |more| {
            asked += more;
            true
        });
        (inflated, asked)
    }

    #[test]
    fn what_was_compressed_is_inflated() {
        let text: Bytes = b"0.25, 0.5, ".repeat(20_000).into();
        let parts = [text.slice(..7), Bytes::new(), text.slice(7..)];
        for coding in [Coding::Gzip, Coding::Deflate] {
            let body = compress(&parts, coding);
            assert!(body.len() < text.len() / 10);
            let (inflated, asked) = asked(&body, coding, 1 << 20);
            assert_eq!(inflated.unwrap(), text);
            assert!((text.len()..=2 * text.len()).contains(&asked), "{asked}");
            assert_eq!(self::asked(&body, coding, text.len()).0.unwrap(), text, "the limit itself is taken");
            let empty = compress(&[], coding);
            assert_eq!(self::asked(&empty, coding, 0).0.unwrap(), "");
        }
        let mut bare = DeflateEncoder::new(Vec::new(), Compression::default());
        bare.write_all(&text).unwrap();
        assert_eq!(asked(&bare.finish().unwrap(), Coding::Deflate, 1 << 20).0.unwrap(), text);
    }

    #[test]
    fn a_bomb_is_refused_before_it_goes_off() {
        let zeros = Bytes::from(vec![0; 64 << 20]);
        for coding in [Coding::Gzip, Coding::Deflate] {
            let body = compress(std::slice::from_ref(&zeros), coding);
            let (refused, held) = asked(&body, coding, 1 << 20);
            assert_eq!(refused, Err(Unreadable::TooLong(1 << 20)));
            assert!(held <= 1 << 20, "{held}");
            let refused = inflate(&body, coding, 1 << 30, &mut |_| false);
            assert_eq!(refused, Err(Unreadable::NoRoom));
        }
    }

    #[test]
    fn damaged_bodies_are_refused() {
        let check = |body: &[u8], coding, expected: &str| {
            let refused = asked(body, coding, 1 << 20).0.unwrap_err().to_string();
            assert!(refused.contains(expected), "{refused}");
        };
        let text = [Bytes::from_static(b"{\"inputs\":[]} {\"inputs\":[]}")];
        for coding in [Coding::Gzip, Coding::Deflate] {
            let body = compress(&text, coding);
            let name = format!("the body is not {}", coding.name());
            for length in 0..body.len() {
                check(&body[..length], coding, &name);
            }
            check(&[body.as_slice(), b"more"].concat(), coding, "bytes follow its end");
            check(&[body.as_slice(), &body].concat(), coding, "bytes follow its end");
            let mut flipped = body.clone();
            let last = flipped.len() - 1;
            flipped[last] ^= 1;
            check(&flipped, coding, &name);
            check(b"{\"inputs\":[]}", coding, &name);
        }
    }
}
