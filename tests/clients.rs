//! The field's own clients, unmodified, against a whole host; `tests/clients/install` brings them.

use std::path::PathBuf;
use std::process::Stdio;

use tokio::process::Command;

use crate::harness::{PROGRAM, TestHost, app, available, function, repository, run};
use crate::oip::{DIGITS, model};
use crate::raw::{is_here, only};

/// Datatypes by the files of their models, which answer what they are given.
const IDENTITIES: [(&str, &str); 12] = [
    ("bool", "bool"),
    ("uint8", "uint8"),
    ("uint16", "uint16"),
    ("uint32", "uint32"),
    ("uint64", "uint64"),
    ("int8", "int8"),
    ("int16", "int16"),
    ("int32", "int32"),
    ("int64", "int64"),
    ("fp16", "float16"),
    ("fp32", "float32"),
    ("fp64", "float64"),
];

/// Those that tract does not take.
const IDENTITIES_OF_ONNXRUNTIME: [(&str, &str); 2] = [("bf16", "bfloat16"), ("bytes", "string")];

/// A host with every model that the clients' stories call, and what it lacks.
async fn host() -> (TestHost, &'static str) {
    let (backend, without) = match is_here("onnxruntime") {
        true => ("onnxruntime", ""),
        false => ("tract", "bf16,bytes"),
    };
    let more: &[(&str, &str)] = if without.is_empty() { &IDENTITIES_OF_ONNXRUNTIME } else { &[] };
    let identity = |(datatype, file): &(&str, &str)| {
        model(&format!("identity-{datatype}"), &format!("tests/models/identity_{file}.onnx"), "")
    };
    let mut parts: Vec<String> = IDENTITIES.iter().chain(more).map(identity).collect();
    parts.push(function("/echo", "echo", "typed_echo", ""));
    parts.push(model("digits", DIGITS, ""));
    for (id, file) in [("add", "add"), ("slow", "slow"), ("two-outputs", "two_outputs")] {
        parts.push(model(id, &format!("tests/models/{file}.onnx"), ""));
    }
    let only = only(backend);
    let host = TestHost::of(app(&parts)).config(|config| {
        only(config);
        config.models.allow_control = true;
        // Clients send hundreds of requests at once.
        config.limits.queue_length = 2048;
        config.limits.queue_wait_ms = 30_000;
    });
    (host.start().await, without)
}

/// Where the clients are, if they are here.
fn clients() -> Option<PathBuf> {
    let folder = repository().join("target/clients");
    // What is installed last.
    let complete = folder.join("perf_analyzer/.installed").exists().then_some(folder);
    available("clients", complete, "run `tests/clients/install`")
}

/// Tells the story in `script` with the Python environment of this name.
fn tell(environment: &str, script: &str) {
    let Some(clients) = clients() else { return };
    run(async {
        let (host, without) = host().await;
        let mut command = Command::new(clients.join(environment).join("bin/python"));
        command.arg(repository().join("tests/clients").join(script));
        command.arg("--http").arg(host.host.http.to_string()).arg("--without").arg(without);
        // Nothing is left beside the scripts.
        command.env("PYTHONDONTWRITEBYTECODE", "1");
        ends_well(command).await;
    });
}

/// Runs `command` to its end, which must be a good one. Answers what it said.
async fn ends_well(mut command: Command) -> String {
    command.stdin(Stdio::null()).kill_on_drop(true);
    let ended = command.output().await.expect("the program starts");
    let said = String::from_utf8_lossy(&ended.stdout).into_owned();
    assert!(ended.status.success(), "{said}\n{}", String::from_utf8_lossy(&ended.stderr));
    said
}

#[test]
fn tritonclient_over_http() {
    tell("triton", "triton_http.py");
}

#[test]
fn tritonclient_over_http_on_asyncio() {
    tell("triton", "triton_http_aio.py");
}

#[test]
fn tritonclient_over_grpc() {
    tell("triton", "triton_grpc.py");
}

#[test]
fn tritonclient_over_grpc_on_asyncio() {
    tell("triton", "triton_grpc_aio.py");
}

#[test]
fn tritonclient_on_a_stream() {
    tell("triton", "triton_grpc_stream.py");
}

#[test]
fn the_rest_client_of_kserve() {
    tell("kserve", "kserve_rest.py");
}

#[test]
fn the_client_made_from_the_openapi_file() {
    tell("open-inference", "open_inference_openapi.py");
}

#[test]
fn the_client_made_from_the_grpc_file() {
    tell("open-inference", "open_inference_grpc.py");
}

#[test]
fn perf_analyzer_measures() {
    tell("triton", "perf_analyzer.py");
}

#[test]
fn the_host_conforms() {
    run(async {
        let (host, without) = host().await;
        let mut command = Command::new(PROGRAM);
        command.arg("conformance").arg(format!("http://{}", host.host.http)).arg("--control");
        for model in ["add", "digits", "echo", "identity-bool", "identity-int8", "two-outputs"] {
            command.args(["--model", model]);
        }
        if without.is_empty() {
            command.args(["--model", "identity-bytes"]);
        }
        let said = ends_well(command).await;
        // Nothing was left out for want of gRPC or an extension.
        for absent in ["is not announced", "there is no gRPC", "does not have this service"] {
            assert!(!said.contains(absent), "{said}");
        }
    });
}
