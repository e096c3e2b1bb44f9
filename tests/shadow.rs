//! Live calls that a candidate gets as well: what is found, that nothing else comes of them, and that nobody waits.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{Method, StatusCode};
use serde_json::{Value, json};
use tenon::artifact::manifest::{Manifest, Options};
use tenon::function::Release;
use tenon::function::shadow::Shadow;
use tenon::rollout::shadow::{Report, ShadowCounts, ShadowSettings};

use crate::harness::{TestHost, app, eventually, function, request, run};
use crate::oip::{DIGITS, model};

/// An app at another revision, ready to be called.
async fn release(host: &TestHost, manifest: &str) -> Arc<Release> {
    let path = host.folder.path().join("candidate.toml");
    std::fs::write(&path, manifest).unwrap();
    let options =
        Options { profile: None, variables: &BTreeMap::new(), environment: &|_| None, values_required: true };
    let manifest = Manifest::load(&path, &options).unwrap();
    let files = manifest.files().unwrap();
    let made = host.host.deployer.release(&manifest, &files, 2, "sha256:2".to_owned(), &|_| {}).await;
    Arc::new(made.unwrap())
}

/// Has a candidate get the calls of what the host serves.
async fn shadow(host: &TestHost, candidate: &str, settings: Value) -> Shadow {
    let candidate = release(host, candidate).await;
    let settings: ShadowSettings = serde_json::from_value(settings).unwrap();
    settings.check().unwrap();
    let snapshot = host.host.functions.snapshot();
    let stable = &snapshot.apps()["app"].stable;
    Shadow::start(&host.host.functions, stable, &candidate, &settings)
}

/// The one function's numbers, once so many calls were compared or left out.
async fn found(shadow: &Shadow, calls: u64) -> Report {
    let done = |report: &Report| report.counts.compared + report.left_out.values().sum::<u64>();
    eventually("all calls are compared", async || done(&shadow.reports()[0]) >= calls).await;
    let report = shadow.reports().remove(0);
    assert_eq!(done(&report), calls, "{report:?}");
    report
}

/// An app of one function that behaves as the environment says.
fn candidate(environment: &str, settings: &str) -> String {
    app(&[function("/c", "digits", "candidate", &format!("environment = {{ {environment} }}\n{settings}"))])
}

fn misbehave(settings: &str) -> String {
    app(&[function("/t", "typed", "typed_misbehave", settings)])
}

fn input(n: u32) -> String {
    let x: Vec<f32> = (0..8).map(|i| ((n * 31 + i * 7) % 97) as f32 / 16.0).collect();
    json!({ "inputs": [{ "name": "x", "datatype": "FP32", "shape": [8], "data": x }] }).to_string()
}

async fn classify(host: &TestHost, count: u32) {
    for n in 0..count {
        let answer = host.post("/c", "application/json", input(n)).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
        assert_eq!(answer.headers["x-tenon-revision"], "1");
    }
}

#[test]
fn equal_candidates_agree_and_cost_the_same() {
    run(async {
        let host = TestHost::of(candidate("WORK = \"20000\"", "")).start().await;
        let shadow = shadow(&host, &candidate("WORK = \"20000\"", ""), json!({ "replay": 100.0 })).await;
        classify(&host, 40).await;
        let report = found(&shadow, 40).await;
        let all = ShadowCounts { compared: 40, replayed: 40, ..ShadowCounts::default() };
        assert_eq!(report.counts, all, "{report:?}");
        assert_eq!((report.agreement, report.own_agreement), (Some(100.0), Some(100.0)));
        let outputs: Vec<_> = report.outputs.iter().map(|output| output.output.as_str()).collect();
        assert_eq!(outputs, ["label", "scores"]);
        assert_eq!(report.outputs[1].same_top, Some(100.0));
        assert_eq!((report.candidate.calls, report.stable.calls), (40, 40));
        assert!(report.candidate.p50_ms.unwrap() > 0.0 && report.candidate.memory_peak_bytes.unwrap() > 0);
        // What was shadowed counts as nobody's call.
        assert_eq!(host.metric("tenon_requests_total{function=\"app/digits\"}").await, 40.0);
        assert_eq!(
            host.metric("tenon_shadow_calls_total{function=\"app/digits\",result=\"agreed\"}").await,
            40.0
        );
        drop(shadow);
        assert!(!host.metrics().await.contains("tenon_shadow_calls_total{"), "they go with the shadow");
        classify(&host, 3).await;
    });
}

#[test]
fn each_kind_of_bad_candidate_is_told_by_its_own_numbers() {
    let check = async |behaviour: &str, settings: Value, is_told: &dyn Fn(&Report) -> bool| {
        let host = TestHost::of(candidate("", "")).start().await;
        let other = candidate(&format!("BEHAVIOUR = {behaviour:?}"), "");
        let shadow = shadow(&host, &other, settings).await;
        classify(&host, 60).await;
        let report = found(&shadow, 60).await;
        assert!(is_told(&report), "{behaviour}: {report:#?}");
        assert_eq!(report.counts.noisy, 0, "{behaviour}");
    };
    run(async {
        check("trap:3", json!({ "capture": true }), &|report| {
            let worst = &report.worst[0];
            report.counts.failed > 5
                && report.counts.failed == report.counts.mismatched
                && report.failures["guest-trapped"] == report.counts.failed
                && worst.times == report.counts.failed
                && worst.request.as_ref().is_some_and(|request| request.call["inputs"][0]["name"] == "x")
                && worst.request_id.is_some()
        })
        .await;
        check("nan:4", json!({}), &|report| {
            report.counts.non_finite > 3
                && report.counts.non_finite == report.counts.mismatched
                && report.worst[0].what[0].contains("NaN")
                && report.worst[0].request.is_none()
        })
        .await;
        check("raise:4", json!({}), &|report| {
            report.counts.failed == 0
                && report.counts.mismatched > 3
                && report.worst[0].what[0].contains("it raised `candidate-failed` (500) in place of")
        })
        .await;
        let wrong = |report: &Report| {
            let scores = &report.outputs[1];
            report.counts.mismatched > 0
                && scores.same_top.is_some_and(|same| same < 100.0)
                && scores.own_same_top == Some(100.0)
                && scores.largest.is_some_and(|largest| largest > 0.0)
        };
        check("wrong:0 wrong:1 wrong:2 wrong:3 wrong:4", json!({}), &wrong).await;
        // What does not change which class is the best one need not count.
        let tolerant = json!({ "outputs": { "scores": { "top_k": 1 }, "label": { "ignore": true } } });
        check("drift:0.00390625", tolerant, &|report| report.counts.mismatched == 0).await;
        check("drift:0.00390625", json!({ "absolute": 0.01 }), &|report| report.counts.mismatched == 0).await;
        check("drift:0.5", json!({}), &|report| report.agreement == Some(0.0)).await;
    });
}

#[test]
fn a_candidate_that_hangs_or_eats_memory_hurts_nobody() {
    run(async {
        let hang = candidate("WORK = \"1000000000000\"", "tool.tenon.limits.deadline_ms = 300");
        let leak = candidate("BEHAVIOUR = \"leak:1\"", "tool.tenon.limits.memory_mib = 32");
        for (bad, error) in [(hang, "deadline-exceeded"), (leak, "guest-over-memory")] {
            let host = TestHost::of(candidate("", "")).start().await;
            let shadow = shadow(&host, &bad, json!({ "replay": 0.0 })).await;
            let started = Instant::now();
            classify(&host, 20).await;
            assert!(started.elapsed() < Duration::from_secs(5), "{error}: {:?}", started.elapsed());
            eventually("a call has failed", async || shadow.counts()["app/digits"].failed > 1).await;
            let report = shadow.reports().remove(0);
            assert_eq!(report.counts.failed, report.counts.compared, "{error}");
            assert_eq!(report.failures[error], report.counts.failed);
            // What runs is broken off, and nothing holds up the host's end.
            drop(shadow);
            assert!(host.stop().await);
        }
    });
}

#[test]
fn a_candidate_that_hangs_is_told_from_one_that_has_no_time_on_a_busy_host() {
    run(async {
        let apps =
            app(&[function("/c", "digits", "candidate", ""), function("/t", "typed", "typed_misbehave", "")]);
        let host = Arc::new(TestHost::of(apps).start().await);
        let hang = candidate("WORK = \"1000000000000\"", "tool.tenon.limits.deadline_ms = 100");
        let shadow = shadow(&host, &hang, json!({ "replay": 0.0 })).await;
        // As many live calls as there are processors.
        let live = (0..std::thread::available_parallelism().unwrap().get()).map(|_| {
            let host = Arc::clone(&host);
            let call = request(Method::POST, "/t", &[("content-type", "text/plain")], "sleep:5000");
            tokio::spawn(async move { host.send(call).await.status })
        });
        let live: Vec<_> = live.collect();
        tokio::time::sleep(Duration::from_millis(300)).await;
        classify(&host, 1).await;
        let asked = Instant::now();
        let report = found(&shadow, 1).await;
        assert_eq!(report.failures.get("deadline-exceeded"), Some(&1), "{report:?}");
        assert!(asked.elapsed() > Duration::from_millis(500), "it did not rest: {:?}", asked.elapsed());
        for call in live {
            assert_eq!(call.await.unwrap(), StatusCode::OK);
        }
    });
}

#[test]
fn a_revision_that_differs_from_itself_is_told_apart_from_one_that_is_different() {
    run(async {
        let host = TestHost::of(misbehave("")).start().await;
        let shadow = shadow(&host, &misbehave(""), json!({ "replay": 100.0 })).await;
        for _ in 0..20 {
            host.post("/t", "text/plain", "clock").await;
        }
        let report = found(&shadow, 20).await;
        assert_eq!(report.counts.mismatched, 20);
        assert_eq!((report.counts.replayed, report.counts.noisy), (20, 20), "so does the stable one");
        assert!(report.worst.iter().all(|worst| worst.replay_agreed == Some(false)));
    });
}

#[test]
fn errors_of_callers_agree_and_failures_are_not_compared() {
    run(async {
        let host = TestHost::of(misbehave("")).start().await;
        let shadow = shadow(&host, &misbehave(""), json!({ "replay": 0.0 })).await;
        assert_eq!(host.post("/t", "text/plain", "own-error:409").await.status, StatusCode::CONFLICT);
        assert_eq!(host.post("/t", "text/plain", "trap").await.status, StatusCode::BAD_GATEWAY);
        assert_eq!(host.post("/t", "image/png", "x").await.status, StatusCode::BAD_REQUEST);
        let report = found(&shadow, 2).await;
        assert_eq!((report.counts.compared, report.counts.mismatched), (1, 0), "{report:?}");
        assert_eq!(report.left_out, BTreeMap::from([("stable-failed".to_owned(), 1)]));
    });
}

/// Both generations of HTTP functions.
fn http(settings: &str) -> String {
    app(&[
        function("/p2/...", "p2", "http_p2", settings),
        function("/p3/...", "p3", "http_p3", settings),
        function("/keys/...", "keys", "keys_p2", "key_value_stores = [\"default\"]"),
    ])
}

fn of(shadow: &Shadow, name: &str) -> Report {
    shadow.reports().into_iter().find(|report| report.function == name).unwrap()
}

#[test]
fn http_functions_are_compared_by_status_type_and_body() {
    run(async {
        let host = TestHost::of(http("environment = { COLOUR = \"red\" }")).start().await;
        let other = http("environment = { COLOUR = \"blue\" }");
        let shadow = shadow(&host, &other, json!({ "replay": 100.0, "capture": true })).await;
        for guest in ["p2", "p3"] {
            let name = format!("app/{guest}");
            let compared = async |count: u64, mismatched: u64| {
                eventually("it is compared", async || of(&shadow, &name).counts.compared >= count).await;
                let report = of(&shadow, &name);
                assert_eq!(
                    (report.counts.compared, report.counts.mismatched),
                    (count, mismatched),
                    "{report:#?}"
                );
                assert_eq!((report.counts.replayed, report.counts.noisy), (count, 0));
                report
            };
            let get = async |path: &str| host.get(&format!("/{guest}/{path}")).await.status.as_u16();
            assert_eq!(get("hello").await, 200);
            compared(1, 0).await;
            let body = "a long body ".repeat(10_000);
            let answer = host.post(&format!("/{guest}/echo"), "text/plain", body.clone()).await;
            assert_eq!(answer.text(), body);
            compared(2, 0).await;
            assert_eq!(get("env").await, 200);
            let report = compared(3, 1).await;
            let worst = &report.worst[0];
            assert!(worst.what[0].contains("the body differs from byte"), "{worst:?}");
            let path = worst.request.as_ref().unwrap().call["path"].as_str().unwrap().to_owned();
            assert!(path.ends_with(&format!("/{guest}/env")), "{path}");
            let parts: Vec<_> = report.outputs.iter().map(|part| part.output.as_str()).collect();
            assert_eq!(parts, ["body", "content-type", "status"]);
        }
        let left_out = async |reason: &str| {
            let count = || of(&shadow, "app/p2").left_out.get(reason).copied();
            eventually(reason, async || count() == Some(1)).await;
        };
        let body = "x".repeat(300 << 10);
        host.post("/p2/echo", "text/plain", body).await;
        left_out("too-large").await;
        host.post("/p2/hello", "text/plain", "a body that nobody reads").await;
        left_out("body-not-read").await;
        assert_eq!(host.get("/p2/status?503").await.status.as_u16(), 503);
        left_out("stable-failed").await;
        assert_eq!(of(&shadow, "app/p2").counts.compared, 3);
    });
}

#[test]
fn nothing_comes_of_a_candidates_calls_but_its_answers() {
    run(async {
        // A server that counts who comes.
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let came = Arc::new(std::sync::atomic::AtomicU64::new(0));
        let counting = Arc::clone(&came);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                counting.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok";
                let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, answer).await;
            }
        });
        let allowed = format!("allowed_outbound_hosts = [\"http://{address}\"]");
        let apps = http(&allowed);
        let start = async || {
            let setup = TestHost::of(apps.clone()).config(|config| config.outbound.allow_private = true);
            setup.start().await
        };
        let (plain, shadowed) = (start().await, start().await);
        let shadow = shadow(&shadowed, &apps, json!({ "replay": 100.0 })).await;
        let before = came.load(std::sync::atomic::Ordering::SeqCst);
        let answer = shadowed.get(&format!("/p2/fetch?http://{address}/")).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
        let denied = || of(&shadow, "app/p2").left_out.get("outbound-denied").copied();
        eventually("it is denied", async || denied() == Some(1)).await;
        assert_eq!(came.load(std::sync::atomic::Ordering::SeqCst), before + 1, "the live call's alone");
        assert_eq!(of(&shadow, "app/p2").counts.compared, 0, "that says nothing of the candidate");
        // Stores become what they become without a shadow.
        let paths = [
            "set/default/a/one",
            "cas/default",
            "cas/default",
            "delete/default/a",
            "wasi/default",
            "keys/default",
        ];
        for (calls, path) in (1..).zip(paths) {
            let path = format!("/keys/{path}");
            let (expected, actual) = (plain.get(&path).await.text(), shadowed.get(&path).await.text());
            assert_eq!(expected, actual, "{path}");
            eventually("it is compared", async || of(&shadow, "app/keys").counts.compared == calls).await;
        }
        assert_eq!(of(&shadow, "app/keys").counts.failed, 0);
    });
}

#[test]
fn what_the_host_has_no_time_for_is_left_out() {
    run(async {
        // Two live calls that wait fill the host.
        let setup = TestHost::of(misbehave("")).config(|config| {
            config.limits.concurrency = 2;
            config.limits.function_concurrency = 2;
        });
        let host = setup.start().await;
        let shadow = shadow(&host, &misbehave(""), json!({ "replay": 0.0 })).await;
        let call = |body: &'static str| request(Method::POST, "/t", &[("content-type", "text/plain")], body);
        let started = Instant::now();
        let (one, other) = tokio::join!(host.send(call("sleep:700")), host.send(call("sleep:700")));
        assert_eq!((one.status, other.status), (StatusCode::OK, StatusCode::OK));
        assert!(started.elapsed() < Duration::from_secs(3));
        // They are given to the candidate now, and broken off when the host fills up.
        tokio::time::sleep(Duration::from_millis(100)).await;
        let (one, other) = tokio::join!(host.send(call("sleep:300")), host.send(call("sleep:300")));
        assert_eq!((one.status, other.status), (StatusCode::OK, StatusCode::OK));
        let report = found(&shadow, 4).await;
        assert!(report.left_out["host-busy"] >= 1, "{report:?}");
        assert_eq!((report.counts.mismatched, report.counts.failed), (0, 0), "{report:?}");
    });
}

#[test]
fn the_share_of_calls_can_be_changed_while_it_runs() {
    run(async {
        let host = TestHost::of(candidate("", "")).start().await;
        let shadow = shadow(&host, &candidate("", ""), json!({ "share": 0.0 })).await;
        classify(&host, 20).await;
        shadow.set_share(5000);
        classify(&host, 100).await;
        shadow.set_share(0);
        classify(&host, 20).await;
        let drawn = || {
            let report = shadow.reports().remove(0);
            report.counts.compared + report.left_out.values().sum::<u64>()
        };
        eventually("about half is compared", async || (30..=70).contains(&drawn())).await;
        // Calls that name their version are live calls like others.
        shadow.set_share(10_000);
        let before = drawn();
        let answer = host.post("/v2/models/digits/versions/1/infer", "application/json", input(1)).await;
        let answered: Value = serde_json::from_str(&answer.text()).unwrap();
        assert_eq!(answered["model_version"], "1");
        eventually("it is compared", async || drawn() > before).await;
    });
}

#[test]
fn models_as_they_are_are_compared_without_counting_as_the_functions_own() {
    run(async {
        let served = app(&[model("digits", DIGITS, "tool.tenon.models.digits.batching = { max_size = 4 }")]);
        let host = TestHost::of(served.clone()).start().await;
        let shadow = shadow(&host, &served, json!({ "replay": 100.0, "capture": true })).await;
        let call = |value: f32| {
            let image = json!({ "name": "image", "datatype": "FP32", "shape": [1, 1, 8, 8], "data": vec![value; 64] });
            json!({ "inputs": [image] }).to_string()
        };
        for n in 0..10_u8 {
            let body = call(f32::from(n) / 16.0);
            host.post("/v2/models/digits/infer", "application/json", body).await.expect(200);
        }
        let report = found(&shadow, 10).await;
        assert_eq!((report.counts.mismatched, report.counts.noisy), (0, 0), "{report:#?}");
        assert!(report.candidate.infer_ms.is_some_and(|ms| ms > 0.0));
        let metrics = host.metrics().await;
        let inferences = metrics.lines().filter(|line| line.starts_with("tenon_inferences_total{"));
        let own: f64 = inferences.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum();
        assert_eq!(own, 10.0, "{metrics}");
    });
}
