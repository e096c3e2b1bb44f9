//! An HTTP component for wasi:http 0.3, written with spin-sdk, that behaves as its path says.

use http_body_util::Full;
use spin_sdk::http::body::IncomingBodyExt;
use spin_sdk::http::{IntoResponse, Request, Response, Result, StatusCode};
use spin_sdk::http_service;

#[http_service]
async fn handle(request: Request) -> Result<impl IntoResponse> {
    let path = request.uri().path().to_owned();
    let behaviour = path.rsplit('/').find(|part| !part.is_empty()).unwrap_or("hello");
    let body = match behaviour {
        "echo" => request.into_body().bytes().await?,
        "headers" => headers(&request).into(),
        "variable" => variable(request.uri().query().unwrap_or_default()).await.into(),
        "env" => std::env::vars().map(|(key, value)| format!("{key}={value}\n")).collect::<String>().into(),
        "fetch" => fetch(request.uri().query().unwrap_or_default()).await.into(),
        "forward" => forward(request).await.into(),
        "trap" => core::arch::wasm32::unreachable(),
        "loop" => endless(),
        _ => "hello\n".into(),
    };
    Ok(Response::builder()
        .status(StatusCode::OK)
        .header("content-type", "text/plain")
        .body(Full::new(body))?)
}

async fn fetch(url: &str) -> String {
    match spin_sdk::http::get(url).await {
        Ok(answer) => told(answer).await,
        Err(error) => format!("error: {error:?}"),
    }
}

/// Sends the body on as it comes.
async fn forward(request: Request) -> String {
    let url = request.uri().query().unwrap_or_default().to_owned();
    let onward = http::Request::post(url).body(request.into_body());
    match onward {
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

async fn variable(name: &str) -> String {
    let value = spin_sdk::variables::get(name).await;
    value.unwrap_or_else(|error| format!("refused: {error:?}"))
}

fn headers(request: &Request) -> String {
    let line = |(name, value): (_, &spin_sdk::http::HeaderValue)| {
        format!("{name}: {}\n", String::from_utf8_lossy(value.as_bytes()))
    };
    request.headers().iter().map(line).collect()
}

fn endless() -> bytes::Bytes {
    let mut turns = 0_u64;
    loop {
        turns = std::hint::black_box(turns.wrapping_add(1));
    }
}
