//! How long a caller of gRPC waits: the header `grpc-timeout`.

use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderName};

use super::super::status::AnswerError;
use crate::instance::Deadline;

const TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// When the caller stops waiting, if it says so. What is too long for a clock counts as no deadline.
///
/// # Errors
/// Where the header is not a number and a unit.
pub(super) fn deadline(headers: &HeaderMap) -> Result<Option<Deadline>, AnswerError> {
    let Some(value) = headers.get(TIMEOUT) else { return Ok(None) };
    let timeout = timeout(value.as_bytes()).ok_or_else(|| {
        AnswerError::InvalidInput(format!(
            "the header `grpc-timeout` is `{}`, not digits and one of H, M, S, m, u and n",
            value.as_bytes().escape_ascii()
        ))
    })?;
    let ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
    Ok(Instant::now().checked_add(timeout).map(|at| Deadline { at, ms }))
}

/// Of the digits there may be more than the eight that gRPC allows: a longer wait is not worth an error.
fn timeout(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() {
        return None;
    }
    let number = digits.iter().try_fold(0u64, |number, digit| {
        let digit = digit.is_ascii_digit().then(|| u64::from(digit - b'0'))?;
        Some(number.saturating_mul(10).saturating_add(digit))
    })?;
    let seconds = |each: u64| Duration::from_secs(number.saturating_mul(each));
    Some(match unit {
        b'H' => seconds(3600),
        b'M' => seconds(60),
        b'S' => seconds(1),
        b'm' => Duration::from_millis(number),
        b'u' => Duration::from_micros(number),
        b'n' => Duration::from_nanos(number),
        _ => return None,
    })
}

/// What a caller is told whose deadline has passed.
pub(super) fn exceeded(deadline: Deadline) -> AnswerError {
    AnswerError::CallerDeadline(deadline.ms)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn every_unit_is_read() {
        for (value, expected) in [
            ("1H", Some(Duration::from_secs(3600))),
            ("2M", Some(Duration::from_secs(120))),
            ("3S", Some(Duration::from_secs(3))),
            ("4m", Some(Duration::from_millis(4))),
            ("5u", Some(Duration::from_micros(5))),
            ("99999999n", Some(Duration::from_nanos(99_999_999))),
            ("0n", Some(Duration::ZERO)),
            ("99999999999999999999H", Some(Duration::from_secs(u64::MAX))),
            ("1h", None),
            ("1", None),
            ("S", None),
            ("", None),
            ("-1S", None),
            ("1.5S", None),
            (" 1S", None),
        ] {
            assert_eq!(timeout(value.as_bytes()), expected, "{value}");
        }
    }

    #[test]
    fn a_deadline_is_what_the_header_says() {
        let headers = |value| HeaderMap::from_iter([(TIMEOUT, HeaderValue::from_static(value))]);
        assert!(deadline(&HeaderMap::new()).unwrap().is_none());
        assert_eq!(deadline(&headers("100m")).unwrap().unwrap().ms, 100);
        // No clock goes so far.
        assert!(deadline(&headers("99999999999999999999H")).unwrap().is_none());
        assert!(deadline(&headers("soon")).unwrap_err().to_string().contains("`soon`"));
    }
}
