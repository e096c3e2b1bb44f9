//! The request headers by which Spin tells a component how it was called.

use std::net::SocketAddr;

use http::header::{HOST, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;

use crate::function::Matched;

/// Replaces whatever `spin-*` headers the caller sent with what is true.
pub fn set(parts: &mut Parts, matched: &Matched<'_>, client: SocketAddr) {
    strip(&mut parts.headers);
    let host = parts.headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or("localhost").to_owned();
    let path = parts.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    let full_url = format!("http://{host}{path}");
    let pattern = &matched.route.pattern;
    let component_route = match pattern.strip_suffix("/...") {
        Some("") => "/",
        Some(parent) => parent,
        None => pattern,
    };
    let mut set = |name: &str, value: &str| {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            parts.headers.insert(name, value);
        }
    };
    set("spin-full-url", &full_url);
    set("spin-path-info", &matched.rest);
    set("spin-matched-route", pattern);
    set("spin-base-path", "/");
    set("spin-raw-component-route", pattern);
    set("spin-component-route", component_route);
    set("spin-client-addr", &client.to_string());
    for (name, value) in &matched.parameters {
        set(&format!("spin-path-match-{}", name.to_lowercase().replace('_', "-")), value);
    }
}

fn strip(headers: &mut HeaderMap) {
    let forged: Vec<_> = headers.keys().filter(|name| name.as_str().starts_with("spin-")).cloned().collect();
    for name in forged {
        headers.remove(name);
    }
}
