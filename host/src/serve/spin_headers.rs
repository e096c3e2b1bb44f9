//! The request headers by which Spin tells a component how it was called.

use std::io::Write;
use std::net::SocketAddr;

use bytes::{BufMut, BytesMut};
use http::header::{HOST, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;

use super::connection::OverTls;
use crate::function::Matched;

const FULL_URL: HeaderName = HeaderName::from_static("spin-full-url");
const PATH_INFO: HeaderName = HeaderName::from_static("spin-path-info");
const MATCHED_ROUTE: HeaderName = HeaderName::from_static("spin-matched-route");
const BASE_PATH: HeaderName = HeaderName::from_static("spin-base-path");
const RAW_COMPONENT_ROUTE: HeaderName = HeaderName::from_static("spin-raw-component-route");
const COMPONENT_ROUTE: HeaderName = HeaderName::from_static("spin-component-route");
const CLIENT_ADDR: HeaderName = HeaderName::from_static("spin-client-addr");

/// Replaces whatever `spin-*` headers the caller sent with what is true.
///
/// This runs for every request: names are constants, and values share their bytes where they can.
pub fn set(parts: &mut Parts, matched: &Matched<'_>, client: SocketAddr) {
    strip(&mut parts.headers);
    // All at once, with room for what comes after: the map would grow, and sort itself anew, several times.
    parts.headers.reserve(10 + matched.parameters.len());
    let full_url = full_url(parts);
    let pattern = HeaderValue::from_str(&matched.route.pattern).ok();
    let component_route = match matched.route.pattern.strip_suffix("/...") {
        Some("") => Some(HeaderValue::from_static("/")),
        Some(parent) => HeaderValue::from_str(parent).ok(),
        None => pattern.clone(),
    };
    let path_info = match matched.rest.as_str() {
        "" => Some(HeaderValue::from_static("")),
        rest => HeaderValue::from_str(rest).ok(),
    };
    let mut set = |name: HeaderName, value: Option<HeaderValue>| {
        if let Some(value) = value {
            parts.headers.insert(name, value);
        }
    };
    set(FULL_URL, full_url);
    set(PATH_INFO, path_info);
    set(MATCHED_ROUTE, pattern.clone());
    set(BASE_PATH, Some(HeaderValue::from_static("/")));
    set(RAW_COMPONENT_ROUTE, pattern);
    set(COMPONENT_ROUTE, component_route);
    set(CLIENT_ADDR, client_addr(client));
    for (name, value) in &matched.parameters {
        let name = format!("spin-path-match-{}", name.to_lowercase().replace('_', "-"));
        if let Ok(name) = HeaderName::try_from(name) {
            set(name, HeaderValue::from_str(value).ok());
        }
    }
}

fn full_url(parts: &Parts) -> Option<HeaderValue> {
    let host = parts.headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or("localhost");
    let path = parts.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    let scheme = if parts.extensions.get::<OverTls>().is_some() { "https://" } else { "http://" };
    let mut url = BytesMut::with_capacity(scheme.len() + host.len() + path.len());
    for part in [scheme, host, path] {
        url.put_slice(part.as_bytes());
    }
    HeaderValue::from_maybe_shared(url.freeze()).ok()
}

fn client_addr(client: SocketAddr) -> Option<HeaderValue> {
    // The longest one is an IPv6 address with a scope and a port.
    let mut text = [0; 64];
    let mut left = &mut text[..];
    write!(left, "{client}").ok()?;
    let unused = left.len();
    HeaderValue::from_bytes(&text[..text.len() - unused]).ok()
}

fn strip(headers: &mut HeaderMap) {
    let forged: Vec<_> = headers.keys().filter(|name| name.as_str().starts_with("spin-")).cloned().collect();
    for name in forged {
        headers.remove(name);
    }
}
