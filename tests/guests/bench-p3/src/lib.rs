//! The least that a component for wasi:http 0.3 can do, with no import of Spin's, so that every host can run it.

use http_body_util::Full;
use spin_sdk::http::{IntoResponse, Request, Response, Result, StatusCode};
use spin_sdk::http_service;

#[http_service]
async fn handle(_: Request) -> Result<impl IntoResponse> {
    Ok(Response::builder()
        .status(StatusCode::OK)
        .header("content-type", "text/plain")
        .body(Full::new(bytes::Bytes::from_static(b"hello\n")))?)
}
