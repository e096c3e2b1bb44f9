//! What went wrong with an outbound request, in wasi:http's words.

use std::error::Error;
use std::io;

use wasmtime_wasi_http::Error as HttpError;

use crate::network::{DialError, TrustError};

pub(super) fn dial(error: &DialError) -> HttpError {
    match error {
        DialError::Resolve { source, .. } => {
            HttpError::DnsError { rcode: Some(source.to_string()), info_code: None }
        }
        DialError::ResolveTimeout(_) => HttpError::DnsTimeout,
        DialError::Prohibited { .. } => HttpError::DestinationIpProhibited,
        DialError::Connect { source, .. } => match source.kind() {
            io::ErrorKind::ConnectionRefused => HttpError::ConnectionRefused,
            io::ErrorKind::TimedOut => HttpError::ConnectionTimeout,
            io::ErrorKind::NetworkUnreachable | io::ErrorKind::AddrNotAvailable => {
                HttpError::DestinationIpUnroutable
            }
            io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted => {
                HttpError::ConnectionTerminated
            }
            _ => HttpError::DestinationUnavailable,
        },
        DialError::Timeout(_) => HttpError::ConnectionTimeout,
        DialError::Full => HttpError::ConnectionLimitReached,
    }
}

pub(super) fn trust(error: &TrustError) -> HttpError {
    match error {
        TrustError::Own { .. } | TrustError::NoAuthorities => HttpError::ConfigurationError,
        TrustError::Certificate(_) => HttpError::TlsCertificateError,
        TrustError::Alert(alert) => HttpError::TlsAlertReceived {
            alert_id: Some(u8::from(*alert)),
            alert_message: Some(format!("{alert:?}")),
        },
        TrustError::Protocol(_) => HttpError::TlsProtocolError,
        TrustError::Timeout => HttpError::ConnectionTimeout,
    }
}

/// Before the answer has begun.
pub(super) fn exchange(error: &hyper::Error) -> HttpError {
    if error.is_parse_too_large() {
        return HttpError::HttpResponseHeaderSectionSize(None);
    }
    if error.is_canceled() || error.is_closed() || error.is_incomplete_message() {
        return HttpError::ConnectionTerminated;
    }
    caused(error).unwrap_or(HttpError::HttpProtocolError)
}

/// After it has begun.
pub(super) fn body(error: &hyper::Error) -> HttpError {
    match exchange(error) {
        HttpError::ConnectionTerminated => HttpError::HttpResponseIncomplete,
        other => other,
    }
}

/// What lies below hyper's own words: the guest's body, or the connection.
fn caused(error: &hyper::Error) -> Option<HttpError> {
    let mut cause = error.source();
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<HttpError>() {
            return Some(match error {
                HttpError::HttpRequestBodySize(size) => HttpError::HttpRequestBodySize(*size),
                // The guest has given its body up.
                _ => HttpError::HttpProtocolError,
            });
        }
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return Some(match error.kind() {
                io::ErrorKind::TimedOut => HttpError::ConnectionTimeout,
                io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData => HttpError::HttpProtocolError,
                _ => HttpError::ConnectionTerminated,
            });
        }
        cause = error.source();
    }
    None
}
