//! The digits model called from an HTTP component that is written with spin-sdk.

use serde::Serialize;
use spin_sdk::http::{IntoResponse, Json, Request, StatusCode};
use spin_sdk::http_service;
use tenon_sdk::{Model, Result, Tensor, scores};

/// A held-out seven of the data set: 16 is light, 0 is dark.
#[rustfmt::skip]
const SEVEN: [u8; 64] = [
    0, 0, 12, 16, 16, 16, 15, 0,
    0, 0, 3, 4, 2, 8, 15, 0,
    0, 0, 0, 2, 4, 11, 11, 0,
    0, 0, 6, 15, 16, 16, 12, 0,
    0, 0, 5, 6, 15, 7, 2, 0,
    0, 0, 0, 10, 13, 0, 0, 0,
    0, 0, 4, 16, 2, 0, 0, 0,
    0, 0, 14, 11, 0, 0, 0, 0,
];

#[derive(Serialize)]
struct Hello {
    hello: String,
    digit: Option<usize>,
    score: f32,
    backend: String,
}

#[derive(Serialize)]
struct Failure {
    error: String,
}

#[http_service]
async fn hello(request: Request) -> impl IntoResponse {
    match seen(&request) {
        Ok(hello) => (StatusCode::OK, Json(hello)).into_response(),
        Err(error) => (StatusCode::BAD_GATEWAY, Json(Failure { error: error.to_string() })).into_response(),
    }
}

fn seen(request: &Request) -> Result<Hello> {
    let image: Vec<f32> = SEVEN.iter().map(|&value| f32::from(value) / 16.0).collect();
    let model = Model::named("digits")?;
    let outputs = model.infer([("image", Tensor::new([1, 1, 8, 8], image)?)])?;
    let (digit, score) = scores::top_k(&outputs.tensor::<f32>("scores")?, 1).first().copied().unzip();
    let name = request.headers().get("spin-path-info").and_then(|path| path.to_str().ok());
    let name = name.map(|path| path.trim_matches('/')).filter(|name| !name.is_empty()).unwrap_or("world");
    Ok(Hello {
        hello: name.to_owned(),
        digit,
        score: score.unwrap_or_default(),
        backend: model.metadata().backend,
    })
}
