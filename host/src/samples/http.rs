//! Samples of HTTP functions.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, HeaderName, HeaderValue};
use http::{Method, Request, Uri};
use http_body_util::{BodyExt, Full, Limited};
use tokio::sync::oneshot;

use super::{Golden, NotRunnable, Ran, Verdict, failed};
use crate::artifact::sample::Response;
use crate::function::{Function, Route, Routes, Target};
use crate::instance::http::{HttpError, RequestBody};
use crate::instance::{CallError, Deadline, Program};
use crate::serve::spin_headers;

/// Who calls, as far as the function can tell.
const CLIENT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 1);

pub(super) async fn run(
    golden: &Golden,
    function: &Arc<Function>,
    program: &Arc<Program>,
    routes: &Routes,
    deadline: Deadline,
) -> Result<Ran, NotRunnable> {
    let request = request(golden, function, routes)?;
    let revision = &function.revision;
    let started = Instant::now();
    // The revision must outlive its instances, and what an instance used is known when it has ended.
    let (ended, end) = oneshot::channel::<()>();
    let held = (Arc::clone(function), ended);
    let (answered, meter) = program.handle(request, deadline, held).await;
    let answered = match answered {
        Ok(response) => {
            let (head, body) = response.into_parts();
            let body = Limited::new(body, revision.response_body_bytes).collect().await;
            let body = body.map(http_body_util::Collected::to_bytes);
            body.map(|body| (head, body))
                .map_err(|error| CallError::BadReply(format!("its answer broke off: {error}")))
        }
        Err(error) => Err(error),
    };
    let took = started.elapsed();
    let _ = tokio::time::timeout_at(deadline.at.into(), end).await;
    let verdict = match (&answered, &golden.sample.response) {
        (Err(error), _) => failed(golden, error),
        (Ok(_), None) => Verdict::NothingExpected,
        (Ok((head, body)), Some(expected)) => compare(golden, expected, head, body)?,
    };
    let response = answered.map(|(head, body)| Response {
        status: (head.status != 200).then(|| head.status.as_u16()),
        ..body_response(&body)
    });
    Ok(Ran { verdict, response, took, usage: meter.read() })
}

fn request(
    golden: &Golden,
    function: &Function,
    routes: &Routes,
) -> Result<Request<RequestBody>, NotRunnable> {
    let said = &golden.sample.request;
    let wrong = |reason: String| NotRunnable::Request(reason);
    if said.inputs.is_some() || said.parameters.is_some() || said.outputs.is_some() {
        return Err(wrong("the function takes HTTP requests; give a body in place of `inputs`".to_owned()));
    }
    let (body, media_type) = golden.body()?;
    let is_own = |route: &&Route| matches!(&route.target, Target::Function(own) if own.name == function.name);
    let path = match (&said.path, routes.iter().find(is_own)) {
        (Some(path), _) => path.clone(),
        (None, Some(route)) if !route.pattern.contains(':') => match route.pattern.strip_suffix("/...") {
            Some("") => "/".to_owned(),
            Some(parent) => parent.to_owned(),
            None => route.pattern.clone(),
        },
        (None, _) => return Err(wrong("it needs a `path`".to_owned())),
    };
    let uri: Uri = path.parse().map_err(|_| wrong(format!("`{path}` is not a path")))?;
    let usual = if body.is_empty() { "GET" } else { "POST" };
    let method = said.method.as_deref().unwrap_or(usual);
    let method =
        Method::from_bytes(method.as_bytes()).map_err(|_| wrong(format!("`{method}` is not a method")))?;
    let mut request = Request::new(Full::new(body).map_err(no_error).boxed_unsync());
    *request.method_mut() = method;
    *request.uri_mut() = uri;
    let headers = request.headers_mut();
    headers.insert(HOST, HeaderValue::from_static("localhost"));
    if let Some(media_type) = media_type {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    }
    for (name, value) in &said.headers {
        let parsed = (HeaderName::try_from(name), HeaderValue::try_from(value));
        let (Ok(name), Ok(value)) = parsed else { return Err(wrong(format!("`{name}` is not a header"))) };
        headers.insert(name, value);
    }
    let (mut parts, body) = request.into_parts();
    match routes.find(parts.uri.path()) {
        Some(matched) if is_own(&matched.route) => spin_headers::set(&mut parts, &matched, CLIENT),
        Some(_) | None if said.path.is_some() && routes.iter().any(|route| is_own(&route)) => {
            return Err(wrong(format!("the path `{}` does not lead to the function", parts.uri.path())));
        }
        Some(_) | None => {}
    }
    Ok(Request::from_parts(parts, body))
}

fn no_error(never: Infallible) -> HttpError {
    match never {}
}

fn compare(
    golden: &Golden,
    expected: &Response,
    head: &http::response::Parts,
    body: &Bytes,
) -> Result<Verdict, NotRunnable> {
    if expected.outputs.is_some() || expected.error.is_some() {
        return Err(NotRunnable::Response(
            "the function answers HTTP; give `status` and a body in place of `outputs` and `error`"
                .to_owned(),
        ));
    }
    let status = expected.status.unwrap_or(200);
    if head.status != status {
        let said = super::beginning(body);
        return Ok(Verdict::Failed(format!("the status is {}, not {status}: {said}", head.status.as_u16())));
    }
    for (name, value) in &expected.headers {
        let actual = head.headers.get(name.as_str()).map(HeaderValue::as_bytes);
        if actual != Some(value.as_bytes()) {
            let actual = actual.map_or("missing".into(), String::from_utf8_lossy);
            return Ok(Verdict::Failed(format!("the header `{name}` is {actual}, not {value}")));
        }
    }
    match golden.compare_body(expected, body)? {
        // The status was compared.
        Verdict::NothingExpected => Ok(Verdict::Passed(0.0)),
        verdict => Ok(verdict),
    }
}

/// A body as it would stand in a sample; none where it is no text.
pub(super) fn body_response(body: &Bytes) -> Response {
    if let Ok(json) = serde_json::from_slice::<serde_json::Value>(body)
        && (json.is_object() || json.is_array())
    {
        return Response { json: Some(json), ..Response::default() };
    }
    let body = std::str::from_utf8(body).ok().map(str::to_owned);
    Response { body, ..Response::default() }
}
