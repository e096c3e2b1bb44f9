//! An HTTP component of spin-sdk 6, for WASI's release candidate, that behaves as its path says.

use bytes::Bytes;
use http_body_util::Full;
use spin_sdk::http::body::IncomingBodyExt;
use spin_sdk::http::{IntoResponse, Request, Response, Result, StatusCode};
use spin_sdk::http_service;

#[http_service]
async fn handle(request: Request) -> Result<impl IntoResponse> {
    let path = request.uri().path().to_owned();
    let query = request.uri().query().unwrap_or_default().to_owned();
    let behaviour = path.rsplit('/').find(|part| !part.is_empty()).unwrap_or("hello");
    let body = match behaviour {
        "echo" => request.into_body().bytes().await?,
        "forward" => forward(&query, request).await.into(),
        "fetch" => fetch(&query).await.into(),
        "sleep" => sleep().await,
        "variable" => variable(&query).await.into(),
        "env" => std::env::vars().map(|(key, value)| format!("{key}={value}\n")).collect::<String>().into(),
        "trap" => core::arch::wasm32::unreachable(),
        _ => "hello\n".into(),
    };
    let response = Response::builder().status(StatusCode::OK).header("content-type", "text/plain");
    Ok(response.body(Full::new(body))?)
}

/// By a clock of the candidate.
async fn sleep() -> Bytes {
    spin_sdk::wasip3::clocks::monotonic_clock::wait_for(1_000_000).await;
    "slept\n".into()
}

async fn variable(name: &str) -> String {
    let value = spin_sdk::variables::get(name).await;
    value.unwrap_or_else(|error| format!("refused: {error:?}"))
}

async fn fetch(url: &str) -> String {
    match spin_sdk::http::get(url).await {
        Ok(answer) => told(answer).await,
        Err(error) => format!("error: {error:?}"),
    }
}

/// Sends the body on as it comes.
async fn forward(url: &str, request: Request) -> String {
    match http::Request::post(url).body(request.into_body()) {
        Ok(onward) => match spin_sdk::http::send(onward).await {
            Ok(answer) => told(answer).await,
            Err(error) => format!("error: {error:?}"),
        },
        Err(error) => format!("error: {error:?}"),
    }
}

async fn told(answer: Response<impl IncomingBodyExt>) -> String {
    let status = answer.status().as_u16();
    match answer.into_body().bytes().await {
        Ok(body) => format!("{status} {}", String::from_utf8_lossy(&body)),
        Err(error) => format!("{status}, then {error:?}"),
    }
}
