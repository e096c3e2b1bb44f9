//! One request to elsewhere.

use wasip2::http::outgoing_handler;
use wasip2::http::types::{ErrorCode, Fields, OutgoingRequest, Scheme};

/// The status that `url`, plain HTTP, answers with.
pub(crate) fn status(url: &str) -> Result<u16, String> {
    let rest = url.strip_prefix("http://").unwrap_or(url);
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let request = OutgoingRequest::new(Fields::new());
    let set = request.set_scheme(Some(&Scheme::Http)).is_ok()
        && request.set_authority(Some(authority)).is_ok()
        && request.set_path_with_query(Some(if path.is_empty() { "/" } else { path })).is_ok();
    if !set {
        return Err(format!("`{url}` is no URL"));
    }
    let told = |error: ErrorCode| format!("{url}: {error:?}");
    let response = outgoing_handler::handle(request, None).map_err(told)?;
    response.subscribe().block();
    let response = response.get().expect("it is there").expect("it is taken once");
    response.map(|response| response.status()).map_err(told)
}
