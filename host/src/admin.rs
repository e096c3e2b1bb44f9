//! The operator's address: metrics, readiness, and what is served.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::function::{Function, Functions};
use crate::serve::Server;

/// Connections of operators at once; more wait to be accepted.
const CONNECTIONS: usize = 64;

/// Answers the operator until it is dropped.
pub async fn run(listener: TcpListener, functions: Arc<Functions>, server: Arc<Server>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let place = Arc::clone(&places).acquire_owned().await.expect("the semaphore is never closed");
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            continue;
        };
        let (functions, server) = (Arc::clone(&functions), Arc::clone(&server));
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let answered = answer(&request, &functions, &server);
                async move { Ok::<_, Infallible>(answered) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(std::time::Duration::from_secs(10))
                .serve_connection(TokioIo::new(stream), service);
            if let Err(error) = connection.await {
                tracing::debug!(%error, "an operator's connection ended early");
            }
            drop(place);
        });
    }
}

fn answer(request: &Request<Incoming>, functions: &Functions, server: &Server) -> Response<Full<Bytes>> {
    if request.method() != Method::GET {
        return respond(StatusCode::METHOD_NOT_ALLOWED, "text/plain", "only GET is answered here\n");
    }
    match request.uri().path() {
        "/metrics" => {
            const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            respond(StatusCode::OK, OPENMETRICS, functions.telemetry.render())
        }
        "/health" => respond(StatusCode::OK, "text/plain", "OK\n"),
        "/ready" if server.draining() => respond(StatusCode::SERVICE_UNAVAILABLE, "text/plain", "draining\n"),
        "/ready" if !functions.published() => {
            respond(StatusCode::SERVICE_UNAVAILABLE, "text/plain", "nothing is deployed yet\n")
        }
        "/ready" => respond(StatusCode::OK, "text/plain", "OK\n"),
        "/functions" => {
            let functions: Vec<_> = functions
                .snapshot()
                .releases()
                .flat_map(|release| &release.functions)
                .map(|function| describe(function))
                .collect();
            respond(StatusCode::OK, "application/json", format!("{:#}\n", Value::Array(functions)))
        }
        _ => {
            let paths = "there are /metrics, /health, /ready and /functions\n";
            respond(StatusCode::NOT_FOUND, "text/plain", paths)
        }
    }
}

fn describe(function: &Function) -> Value {
    let revision = &function.revision;
    let models: Vec<_> = revision
        .models
        .iter()
        .map(|model| {
            json!({
                "name": model.name,
                "digest": format!("sha256:{}", model.digest),
                "backend": model.backend,
                "target": model.target,
                "signature": model.signature,
            })
        })
        .collect();
    json!({
        "name": function.name,
        "revision": function.version,
        "digest": format!("sha256:{}", revision.digest),
        "kind": revision.program.kind_name(),
        "models": models,
    })
}

fn respond(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(content_type));
    response
}
