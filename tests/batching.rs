//! Calls that are joined into one run: each gets its own answer, and nobody waits for nothing.

use std::sync::Arc;

use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::harness::{TestHost, app, run, tensor};
use crate::oip::model;

const IDENTITY: &str = "tests/models/identity_int64.onnx";

fn batched(id: &str, file: &str) -> String {
    model(id, file, &format!("tool.tenon.models.{id}.batching = {{ max_size = 16, max_delay_us = 2000 }}"))
}

fn body(values: &[i64]) -> String {
    json!({ "inputs": [tensor("x", "INT64", &[values.len()], json!(values))] }).to_string()
}

async fn statistics(host: &TestHost, model: &str) -> Value {
    let path = format!("/v2/models/{model}/stats");
    host.get(&path).await.expect(200).json()["model_stats"][0].clone()
}

#[test]
fn each_of_thousands_gets_its_own_answer() {
    const CALLERS: i64 = 24;
    const CALLS: i64 = 100;
    run(async {
        let parts = [batched("a", IDENTITY), model("b", IDENTITY, "")];
        let host = Arc::new(TestHost::of(app(&parts)).start().await);
        let mut callers = JoinSet::new();
        for caller in 0..CALLERS {
            let host = Arc::clone(&host);
            callers.spawn(async move {
                for call in 0..CALLS {
                    let model = if (caller + call) % 5 == 0 { "b" } else { "a" };
                    // Of one to three rows, each a number that no other call has.
                    let first = (caller * CALLS + call) * 3;
                    let values: Vec<i64> = (first..=first + call % 3).collect();
                    let path = format!("/v2/models/{model}/infer");
                    let reply = host.post(&path, "application/json", body(&values)).await.expect(200).json();
                    assert_eq!(reply["outputs"][0]["data"], json!(values));
                    assert_eq!(reply["outputs"][0]["shape"], json!([values.len()]));
                }
            });
        }
        while let Some(ended) = callers.join_next().await {
            ended.unwrap();
        }
        let joined = statistics(&host, "a").await;
        let (calls, runs) = (&joined["inference_count"], &joined["execution_count"]);
        assert_eq!(calls.as_i64().unwrap(), CALLERS * CALLS * 4 / 5);
        assert!(runs.as_i64().unwrap() < calls.as_i64().unwrap(), "{runs} runs of {calls} calls");
        let largest = joined["batch_stats"].as_array().unwrap().last().unwrap()["batch_size"].clone();
        assert!((2..=16).contains(&largest.as_i64().unwrap()), "{joined}");
        let alone = statistics(&host, "b").await;
        assert_eq!(alone["execution_count"], alone["inference_count"]);
    });
}

#[test]
fn only_models_with_rows_can_be_joined() {
    run(async {
        let host = TestHost::of(app(&[batched("a", IDENTITY)])).start().await;
        let config = host.get("/v2/models/a/config").await.expect(200).json();
        assert_eq!((&config["max_batch_size"], &config["input"][0]["dims"]), (&16.into(), &json!([])));
        assert_eq!(config["dynamic_batching"]["max_queue_delay_microseconds"], 2000);
        let refused = TestHost::of(app(&[batched("slow", "tests/models/slow.onnx")])).try_start().await;
        let refused = refused.err().unwrap();
        assert!(refused.contains("`batching`"), "{refused}");
    });
}
