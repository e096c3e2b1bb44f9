//! What stories about models share: backends that are here, grants, and calls of the guest nn-raw.

use std::sync::LazyLock;

use http::Method;
use tenon::config::Config;

use crate::harness::{self, Answer, TestHost, needs, repository, request};

/// The backends of these stories that are here, by the names that models and operators use.
pub(crate) fn backends() -> Vec<&'static str> {
    ["tract", "onnxruntime", "openvino"].into_iter().filter(|backend| is_here(backend)).collect()
}

/// Whether a backend is built in, or its library was found. Says so where it was not.
pub(crate) fn is_here(backend: &str) -> bool {
    library(backend) != Some(&None)
}

/// The library of a native backend; `None` for one that is built in.
fn library(backend: &str) -> Option<&'static Option<std::path::PathBuf>> {
    static ONNXRUNTIME: LazyLock<Option<std::path::PathBuf>> = LazyLock::new(|| needs("onnxruntime"));
    static OPENVINO: LazyLock<Option<std::path::PathBuf>> = LazyLock::new(|| needs("openvino"));
    match backend {
        "onnxruntime" => Some(&ONNXRUNTIME),
        "openvino" => Some(&OPENVINO),
        _ => None,
    }
}

/// Settings under which one backend serves every model.
pub(crate) fn only(backend: &str) -> impl FnOnce(&mut Config) + use<> {
    let backends = vec![backend.to_owned()];
    move |config| {
        every(config);
        config.inference.backends = backends;
    }
}

/// Settings with every library that is here.
pub(crate) fn every(config: &mut Config) {
    config.inference.onnxruntime_library = library("onnxruntime").and_then(Clone::clone);
    config.inference.openvino_library = library("openvino").and_then(Clone::clone);
}

/// The path of a model in `tests/models`; `add` stands for `add.onnx`.
pub(crate) fn model(name: &str) -> String {
    let name = if name.contains('.') { name.to_owned() } else { format!("{name}.onnx") };
    repository().join("tests/models").join(name).display().to_string()
}

/// A setting of a component that grants it the model at `path`; `more` are further keys, such as
/// `backend = "tract"`.
pub(crate) fn grant(name: &str, path: &str, more: &str) -> String {
    let comma = if more.is_empty() { "" } else { ", " };
    format!("tool.tenon.models.{name} = {{ path = {path:?}{comma}{more} }}\n")
}

/// Grants of models in `tests/models`, each under its own name.
pub(crate) fn grants(names: &[&str]) -> String {
    names.iter().map(|name| grant(name, &model(name), "")).collect()
}

/// The guest nn-raw below the route of its id, with further settings.
pub(crate) fn raw(id: &str, settings: &str) -> String {
    harness::function(&format!("/{id}/..."), id, "nn-raw", settings)
}

/// A call of nn-raw: `query` is as the guest describes it.
pub(crate) async fn call(host: &TestHost, id: &str, query: &str, data: &[u8]) -> Answer {
    host.send(call_request(id, query, data)).await
}

/// The request of a [`call`].
pub(crate) fn call_request(
    id: &str,
    query: &str,
    data: &[u8],
) -> http::Request<http_body_util::Full<bytes::Bytes>> {
    request(Method::POST, &format!("/{id}/?{query}"), &[], data.to_vec())
}

/// What nn-raw tells of an error: where it came from, its code, its text.
#[track_caller]
pub(crate) fn refusal(answer: Answer, code: &str) -> String {
    let text = answer.expect(500).text();
    let (_, text) = text.split_once(&format!(" ErrorCode::{code}: ")).unwrap_or_else(|| panic!("{text}"));
    text.to_owned()
}

/// The bytes of numbers, little end first.
macro_rules! le {
    ($($number:expr),* $(,)?) => { [$($number.to_le_bytes().as_slice()),*].concat() };
}
pub(crate) use le;
