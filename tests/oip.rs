//! The Open Inference Protocol over REST: models by name, and what is said about them.

use http::Method;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use crate::harness::{
    Program, TestHost, UP, app, eventually, function, repository, request, run, tenon, tensor, until,
};

/// A component without code, which is its one model.
pub(crate) fn model(id: &str, file: &str, settings: &str) -> String {
    let path = repository().join(file);
    format!("[component.{id}]\ntool.tenon.models.{id}.path = {path:?}\n{settings}\n")
}

pub(crate) const DIGITS: &str = "examples/digits/model/digits.onnx";

fn zeros() -> Value {
    json!({ "id": "7", "inputs": [tensor("image", "FP32", &[1, 1, 8, 8], json!(vec![0.0; 64]))] })
}

async fn infer(host: &TestHost, model: &str, body: &Value) -> crate::harness::Answer {
    host.post(&format!("/v2/models/{model}/infer"), "application/json", body.to_string()).await
}

/// The text of an error, which must have this status and the protocol's form.
#[track_caller]
fn error(answer: crate::harness::Answer, status: u16) -> String {
    let answer = answer.expect(status);
    assert_eq!(answer.header("content-type"), "application/json");
    let body = answer.json();
    assert_eq!(body.as_object().unwrap().len(), 1, "{body}");
    body["error"].as_str().unwrap().to_owned()
}

#[test]
fn models_and_functions_are_called_by_name() {
    run(async {
        let echo = function("/echo", "echo", "typed_echo", "");
        let host = TestHost::of(app(&[echo, model("digits", DIGITS, "")])).start().await;
        let server = host.get("/v2").await.expect(200).json();
        assert_eq!(server["name"], "tenon");
        assert!(server["extensions"].as_array().unwrap().contains(&"statistics".into()));
        assert_eq!(host.get("/v2/health/live").await.expect(200).json(), json!({ "live": true }));
        assert_eq!(host.get("/v2/health/ready").await.expect(200).json(), json!({ "ready": true }));
        let metadata = host.get("/v2/models/digits").await.expect(200).json();
        assert_eq!(
            metadata["inputs"],
            json!([{ "name": "image", "datatype": "FP32", "shape": [-1, 1, 8, 8] }])
        );
        assert_eq!((&metadata["platform"], &metadata["versions"]), (&"tract_onnx".into(), &json!(["1"])));
        let echo = host.get("/v2/models/echo/versions/1").await.expect(200).json();
        assert_eq!((&echo["name"], &echo["platform"]), (&"echo".into(), &"tenon_wasm".into()));
        assert_eq!(echo["inputs"].as_array().unwrap().len(), 14);
        let ready = host.get("/v2/models/digits/versions/1/ready").await.expect(200).json();
        assert_eq!(ready, json!({ "name": "digits", "ready": true }));
        let config = host.get("/v2/models/digits/config").await.expect(200).json();
        assert_eq!(config["input"][0]["data_type"], "TYPE_FP32");
        assert_eq!(config["max_batch_size"], 0);

        let answer = infer(&host, "digits", &zeros()).await.expect(200);
        assert_eq!(answer.header("x-tenon-backend"), "tract");
        let reply = answer.json();
        assert_eq!((&reply["id"], &reply["model_name"]), (&"7".into(), &"digits".into()));
        assert_eq!(reply["outputs"][0]["shape"], json!([1, 10]));
        let statistics = host.get("/v2/models/digits/stats").await.expect(200).json();
        let statistics = &statistics["model_stats"][0];
        assert_eq!((&statistics["inference_count"], &statistics["execution_count"]), (&1.into(), &1.into()));
        assert!(statistics["inference_stats"]["compute_infer"]["ns"].as_u64().unwrap() > 0);
        let all = host.get("/v2/models/stats").await.expect(200).json();
        assert_eq!(all["model_stats"].as_array().unwrap().len(), 2);
        assert_eq!(host.metric(r#"tenon_requests_total{function="app/digits"}"#).await, 1.0);
    });
}

#[test]
fn what_is_wrong_is_said_in_the_form_of_the_protocol() {
    run(async {
        let host = TestHost::of(app(&[model("digits", DIGITS, "")])).start().await;
        assert!(error(host.get("/v2/models/digit").await, 404).contains("no model `digit`"));
        assert!(error(host.get("/v2/models/digits/versions/2").await, 404).contains("it has version `1`"));
        assert!(error(infer(&host, "digit", &zeros()).await, 404).contains("no model `digit`"));
        error(host.get("/v2/nothing").await, 404);
        let answer = host.get("/v2/models/digits/infer").await;
        assert_eq!(answer.header("allow"), "POST");
        error(answer, 405);
        let answer = host.post("/v2/health/live", "application/json", "{}").await;
        assert_eq!(answer.header("allow"), "GET");
        error(answer, 405);
        let of = |tensor: Value| json!({ "inputs": [tensor] });
        let rows = [
            (json!(7), "not a JSON object"),
            (json!({}), "no array `inputs`"),
            (of(tensor("x", "FP32", &[1], json!([1]))), "its inputs are `image`"),
            (of(tensor("image", "INT64", &[1, 1, 8, 8], json!(vec![0; 64]))), "takes FP32"),
            (of(tensor("image", "FP32", &[1, 64], json!(vec![0; 64]))), "takes the shape [-1, 1, 8, 8]"),
            (of(tensor("image", "FP32", &[1, 1, 8, 8], json!(vec![0; 63]))), "takes 64 elements"),
        ];
        for (body, expected) in rows {
            let said = error(infer(&host, "digits", &body).await, 400);
            assert!(said.contains(expected), "{said}");
        }
        let mut asked = zeros();
        for (name, value, expected) in
            [("timeout", json!("soon"), "`timeout` is not"), ("priority", json!(-1), "`priority` is not")]
        {
            asked["parameters"] = json!({ name: value });
            let said = error(infer(&host, "digits", &asked).await, 400);
            assert!(said.contains(expected), "{said}");
        }
        asked["parameters"] = json!({ "timeout": 1, "priority": 1 });
        error(infer(&host, "digits", &asked).await, 504);
        asked["parameters"] = json!({ "timeout": 10_000_000, "priority": 1 });
        infer(&host, "digits", &asked).await.expect(200);
    });
}

#[test]
fn models_leave_memory_and_come_back_where_the_operator_allows_it() {
    run(async {
        let app = app(&[model("digits", DIGITS, "")]);
        let host = TestHost::of(app.as_str()).start().await;
        let post = async |host: &TestHost, path: &str, body: &str| {
            host.send(request(Method::POST, path, &[], body.to_owned())).await
        };
        let said = error(post(&host, "/v2/repository/models/digits/unload", "").await, 403);
        assert!(said.contains("models.allow_control"), "{said}");
        infer(&host, "digits", &zeros()).await.expect(200);

        let host = TestHost::of(app).config(|config| config.models.allow_control = true).start().await;
        let index = post(&host, "/v2/repository/index", "").await.expect(200).json();
        assert_eq!(index, json!([{ "name": "digits", "version": "1", "state": "READY", "reason": "" }]));
        let parameters = r#"{"parameters":{"config":"{}"}}"#;
        let said = error(post(&host, "/v2/repository/models/digits/load", parameters).await, 501);
        assert!(said.contains("`config` is not taken"), "{said}");
        infer(&host, "digits", &zeros()).await.expect(200);
        assert_eq!(host.metric("tenon_graphs").await, 1.0);
        let parameters = r#"{"parameters":{"unload_dependents":true}}"#;
        post(&host, "/v2/repository/models/digits/unload", parameters).await.expect(200);
        assert_eq!(host.metric("tenon_graphs").await, 0.0);
        assert!(error(infer(&host, "digits", &zeros()).await, 503).contains("unloaded"));
        error(host.get("/v2/models/digits/ready").await, 503);
        let index = post(&host, "/v2/repository/index", r#"{"ready":true}"#).await.expect(200).json();
        assert_eq!(index, json!([]));
        error(post(&host, "/v2/repository/models/digit/load", "").await, 404);
        error(post(&host, "/v2/repository/models/digits/load", "{").await, 400);
        post(&host, "/v2/repository/models/digits/load", "{}").await.expect(200);
        assert_eq!(host.metric("tenon_graphs").await, 1.0);
        infer(&host, "digits", &zeros()).await.expect(200);
    });
}

#[test]
fn answers_are_kept_where_the_function_asks_for_it() {
    run(async {
        let cached = model("cached", DIGITS, "tool.tenon.limits.response_cache_mib = 1");
        let host = TestHost::of(app(&[cached, model("digits", DIGITS, "")])).start().await;
        let mut other = zeros();
        other["inputs"][0]["data"][5] = json!(9);
        for model in ["cached", "digits"] {
            let first = infer(&host, model, &zeros()).await.expect(200).json();
            assert_ne!(infer(&host, model, &other).await.expect(200).json(), first);
            assert_eq!(infer(&host, model, &zeros()).await.expect(200).json(), first);
        }
        let counted = async |model: &str| {
            let path = format!("/v2/models/{model}/stats");
            let counts = host.get(&path).await.expect(200).json()["model_stats"][0].clone();
            let stats = &counts["inference_stats"];
            let count = |part: &str| stats[part]["count"].as_u64().unwrap();
            (counts["execution_count"].as_u64().unwrap(), count("cache_hit"), count("cache_miss"))
        };
        assert_eq!(counted("cached").await, (2, 1, 2));
        assert_eq!(counted("digits").await, (3, 0, 0));
        assert_eq!(host.metric(r#"tenon_cache_hits_total{function="app/cached"}"#).await, 1.0);
        let large = model("digits", DIGITS, "tool.tenon.limits.response_cache_mib = 65");
        let refused = TestHost::of(app(&[large])).try_start().await.err().unwrap();
        assert!(refused.contains("`limits.response_cache_mib` in host.toml"), "{refused}");
    });
}

#[test]
fn names_are_unique_on_the_host() {
    run(async {
        let named = model("a", DIGITS, "tool.tenon.model_name = \"digits\"");
        let host = TestHost::of(app(std::slice::from_ref(&named))).start().await;
        infer(&host, "digits", &zeros()).await.expect(200);
        let refused =
            TestHost::of(app(&[named, model("digits", DIGITS, "")])).try_start().await.err().unwrap();
        assert!(refused.contains("it is called `digits`"), "{refused}");
    });
}

#[test]
fn a_model_file_is_served_as_it_is() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let settings = "[listen]\nadmin = \"off\"\n";
        let path = repository().join(DIGITS).display().to_string();
        let (program, said) =
            Program::of(tenon(folder.path(), settings, &[&UP[..], &[&path]].concat())).await;
        assert!(said.contains("image FP32[-1, 1, 8, 8] -> scores FP32[-1, 10]"), "{said}");
        assert!(said.contains("/v2/models/digits/infer"), "{said}");
        let body = zeros().to_string();
        let infer = request(Method::POST, "/v2/models/digits/infer", &[], body);
        crate::harness::exchange(program.address, infer).await.unwrap().expect(200);
    });
}

/// The events of a body, each as JSON.
fn events(body: &str) -> Vec<Value> {
    let event = |event: &str| {
        let data = event.strip_prefix("data: ").unwrap_or_else(|| panic!("`{event}` is no event"));
        serde_json::from_str(data).unwrap()
    };
    body.split_terminator("\n\n").map(event).collect()
}

#[test]
fn a_function_may_answer_more_than_once() {
    run(async {
        let host = TestHost::of(app(&[function("/s", "stream", "typed_stream", "")])).start().await;
        let ask = async |path: &str, body: Value| {
            host.post(&format!("/v2/models/stream/{path}"), "application/json", body.to_string()).await
        };
        let config = host.get("/v2/models/stream/config").await.expect(200).json();
        assert_eq!(config["model_transaction_policy"]["decoupled"], true);
        let streamed =
            ask("generate_stream", json!({ "text": "one two three", "id": "7" })).await.expect(200);
        assert_eq!(streamed.header("content-type"), "text/event-stream");
        let told = events(&streamed.text());
        let words: Vec<_> = told.iter().map(|event| event["word"].as_str().unwrap_or_default()).collect();
        assert_eq!(words[..3], ["one", "two", "three"], "{told:?}");
        assert!(told.iter().all(|event| event["model_name"] == "stream" && event["id"] == "7"), "{told:?}");
        // Who takes one answer gets the last.
        let single = ask("generate", json!({ "text": "one two three" })).await.expect(200).json();
        assert_eq!(single["word"], told.last().unwrap()["word"]);
        // Before the first answer an error has a status, behind it an event, and nothing comes after.
        error(ask("generate_stream", json!({ "texts": "one" })).await, 400);
        for behaviour in ["undescribed", "wrong-shape", "raise", "panic"] {
            let body = json!({ "text": "one two", "parameters": { "behaviour": behaviour } });
            let told = events(&ask("generate_stream", body).await.expect(200).text());
            assert_eq!(told.len(), 2, "{behaviour}: {told:?}");
            assert!(told[0]["word"] == "one" && told[1]["error"].is_string(), "{behaviour}: {told:?}");
        }
        assert!(
            host.metric(r#"tenon_request_errors_total{function="app/stream",error="guest-bad-reply"}"#).await
                >= 2.0
        );
    });
}

#[test]
fn a_stream_ends_when_its_caller_leaves() {
    run(async {
        let host = TestHost::of(app(&[function("/s", "stream", "typed_stream", "")])).start().await;
        let body = json!({ "text": "on and on", "parameters": { "behaviour": "endless" } }).to_string();
        let mut stream = host.connect().await;
        let head = format!(
            "POST /v2/models/stream/generate_stream HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        until(&mut stream, |text| text.matches("data: ").count() > 2).await;
        assert_eq!(host.metric("tenon_instances").await, 1.0);
        drop(stream);
        eventually("the instance ends", async || host.metric("tenon_instances").await == 0.0).await;
    });
}
