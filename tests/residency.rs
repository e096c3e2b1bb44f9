//! Which graphs are in memory: loaded once and when needed, shared, gone when idle or over budget.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use http::Method;
use tenon::artifact::manifest::{Encoding, ExecutionTarget, Model as Declared};
use tenon::backend::residency::{Lease, Model};
use tenon::backend::vet::hex;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::task::JoinSet;

use crate::backends::deploy;
use crate::harness::{Answer, PROGRAM, TestHost, app, eventually, exchange, function, request, run};
use crate::raw::{backends, call, call_request, grant, grants, le, model, only, raw, refusal};

/// An ONNX file whose weights take so many MiB: `y` FP32 [n] are the weights at `at` INT64 [n], and the weight
/// at i is i + `seed`.
fn weights(mebibytes: usize, seed: u16) -> Vec<u8> {
    let count = mebibytes << 18;
    #[expect(clippy::cast_precision_loss, reason = "what it loses, the answer loses too")]
    let values: Vec<u8> = (0..count).flat_map(|i| (i as f32 + f32::from(seed)).to_le_bytes()).collect();
    picker(&[number(1, count), number(2, 1), bytes(8, b"weights"), bytes(9, &values)].concat())
}

/// As [`weights`], but its weights are the first `bytes` bytes of the file `name` beside it.
fn weights_of(name: &str, length: usize) -> Vec<u8> {
    let entry =
        |key: &str, value: &str| bytes(13, &[bytes(1, key.as_bytes()), bytes(2, value.as_bytes())].concat());
    let external =
        [entry("location", name), entry("offset", "0"), entry("length", &length.to_string())].concat();
    picker(&[number(1, length / 4), number(2, 1), bytes(8, b"weights"), external, number(14, 1)].concat())
}

/// The model around the tensor `weights`, which it picks from.
fn picker(tensor: &[u8]) -> Vec<u8> {
    let gather = [bytes(1, b"weights"), bytes(1, b"at"), bytes(2, b"y"), bytes(4, b"Gather")].concat();
    let port = |name: &[u8], datatype| {
        let shape = bytes(2, &bytes(1, &bytes(2, b"n")));
        [bytes(1, name), bytes(2, &bytes(1, &[number(1, datatype), shape].concat()))].concat()
    };
    let graph = [
        bytes(1, &gather),
        bytes(2, b"weights"),
        bytes(5, tensor),
        bytes(11, &port(b"at", 7)),
        bytes(12, &port(b"y", 1)),
    ];
    [number(1, 8), bytes(7, &graph.concat()), bytes(8, &number(2, 17))].concat()
}

/// A number in a protobuf message.
fn number(field: usize, value: usize) -> Vec<u8> {
    [varint(field << 3), varint(value)].concat()
}

/// Bytes, a text or a message in a protobuf message.
fn bytes(field: usize, content: &[u8]) -> Vec<u8> {
    [varint(field << 3 | 2), varint(content.len()), content.to_vec()].concat()
}

fn varint(mut value: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value > 127 {
        bytes.push(u8::try_from(value & 127).expect("seven bits") | 128);
        value >>= 7;
    }
    bytes.push(u8::try_from(value).expect("seven bits"));
    bytes
}

/// Asks the model `name` of the component `id` for its weight at 5; `seed` as it was made with.
async fn weighed(host: &TestHost, id: &str, name: &str, seed: u16) {
    let answer = weigh(host, id, name).await.expect(200);
    assert_eq!(
        answer.text(),
        format!("y TensorType::Fp32 [1] {}\n", hex(&(5.0 + f32::from(seed)).to_le_bytes()))
    );
}

async fn weigh(host: &TestHost, id: &str, name: &str) -> Answer {
    call(host, id, &format!("model={name}&input=at:I64:1"), &le![5_i64]).await
}

async fn loads(host: &TestHost) -> f64 {
    host.metric("tenon_graph_loads_total{backend=\"tract\"}").await
}

async fn graphs(host: &TestHost) -> f64 {
    host.metric("tenon_graphs").await
}

async fn evicted(host: &TestHost, reason: &str) -> f64 {
    host.metric(&format!("tenon_graph_evictions_total{{reason=\"{reason}\"}}")).await
}

#[test]
fn a_graph_is_loaded_when_first_used_and_once_for_all_who_wait() {
    run(async {
        let host = TestHost::of(app(&[raw("raw", &grant("m", "big.onnx", ""))]))
            .file("big.onnx", weights(8, 0))
            .start()
            .await;
        assert_eq!((graphs(&host).await, loads(&host).await), (0.0, 0.0));
        let mut callers = JoinSet::new();
        for _ in 0..32 {
            let request = call_request("raw", "model=m&input=at:I64:1", &le![5_i64]);
            callers.spawn(exchange(host.host.http, request));
        }
        while let Some(answer) = callers.join_next().await {
            let answer = answer.expect("no panic").expect("answered").expect(200);
            assert_eq!(answer.text(), format!("y TensorType::Fp32 [1] {}\n", hex(&5_f32.to_le_bytes())));
        }
        assert_eq!((graphs(&host).await, loads(&host).await), (1.0, 1.0));
        assert!(host.metric("tenon_cold_starts_total{function=\"app/raw\"}").await >= 1.0);
    });
}

#[test]
fn equal_bytes_are_one_graph() {
    run(async {
        let host = TestHost::of(app(&[
            raw("one", &grant("a", "a.onnx", "")),
            raw("two", &grant("b", "folder/b.onnx", "")),
            raw("three", &grant("c", "c.onnx", "")),
        ]))
        .file("a.onnx", weights(1, 1))
        .file("folder/b.onnx", weights(1, 1))
        .file("c.onnx", weights(1, 2))
        .start()
        .await;
        weighed(&host, "one", "a", 1).await;
        weighed(&host, "two", "b", 1).await;
        assert_eq!((graphs(&host).await, loads(&host).await), (1.0, 1.0));
        weighed(&host, "three", "c", 2).await;
        assert_eq!((graphs(&host).await, loads(&host).await), (2.0, 2.0));
    });
}

#[test]
fn an_idle_graph_leaves_and_comes_back() {
    run(async {
        let granted = [grant("brief", "a.onnx", "idle_timeout_s = 1"), grant("long", "b.onnx", "")].concat();
        let host = TestHost::of(app(&[raw("raw", &granted)]))
            .file("a.onnx", weights(1, 1))
            .file("b.onnx", weights(1, 2))
            .start()
            .await;
        weighed(&host, "raw", "long", 2).await;
        let used = Instant::now();
        weighed(&host, "raw", "brief", 1).await;
        assert_eq!(graphs(&host).await, 2.0);
        eventually("the idle graph leaves", async || graphs(&host).await == 1.0).await;
        assert!(used.elapsed() >= Duration::from_secs(1), "{:?}", used.elapsed());
        assert_eq!(evicted(&host, "idle").await, 1.0);
        weighed(&host, "raw", "brief", 1).await;
        assert_eq!((graphs(&host).await, loads(&host).await), (2.0, 3.0));
    });
}

/// A host with the models `a`, `b` and `c`, whose budget has room for two of them.
async fn room_for_two() -> TestHost {
    let granted: String = ["a", "b", "c"]
        .iter()
        .map(|name| grant(name, &format!("{name}.onnx"), "idle_timeout_s = 600"))
        .collect();
    let typed = function("/misbehave", "misbehave", "typed_misbehave", &granted);
    let host = TestHost::of(app(&[raw("raw", &granted), typed]))
        .config(|config| config.models.memory_budget_mib = 40)
        .file("a.onnx", weights(16, 1))
        .file("b.onnx", weights(16, 2))
        .file("c.onnx", weights(16, 3))
        .start()
        .await;
    // What each costs was measured when it was tried out: its weights, and little else.
    weighed(&host, "raw", "a", 1).await;
    let cost = host.metric("tenon_graph_memory_bytes").await / f64::from(1 << 20);
    assert!((15.0..20.0).contains(&cost), "a graph with 16 MiB of weights costs {cost} MiB");
    eprintln!("a graph with 16 MiB of weights costs {cost:.1} MiB");
    host
}

#[test]
fn the_least_recently_used_graph_makes_room() {
    run(async {
        let host = room_for_two().await;
        weighed(&host, "raw", "b", 2).await;
        weighed(&host, "raw", "a", 1).await;
        assert_eq!((graphs(&host).await, loads(&host).await), (2.0, 2.0));
        // `b` was used before `a`.
        weighed(&host, "raw", "c", 3).await;
        assert_eq!(
            (graphs(&host).await, loads(&host).await, evicted(&host, "budget").await),
            (2.0, 3.0, 1.0)
        );
        weighed(&host, "raw", "a", 1).await;
        assert_eq!(loads(&host).await, 3.0);
        weighed(&host, "raw", "b", 2).await;
        assert_eq!(
            (graphs(&host).await, loads(&host).await, evicted(&host, "budget").await),
            (2.0, 4.0, 2.0)
        );
    });
}

/// Holds the graph of a model file of the host's app as a call does.
async fn hold(host: &TestHost, file: &str) -> Lease {
    let declared = Declared {
        reference: None,
        path: host.folder.path().join(file),
        weights: None,
        file_name: None,
        encoding: Encoding::Onnx,
        target: ExecutionTarget::Cpu,
        backend: None,
        idle_timeout_s: Some(1),
        precision: None,
        concurrency: None,
        batching: None,
        queue_length: None,
        line: 1,
    };
    let model: Model =
        host.host.deployer.intake.admit(&declared, "app").await.expect("it was admitted before").model;
    host.host.residency.acquire(&model).await.expect("there is room")
}

#[test]
fn a_graph_in_use_never_leaves_and_what_has_no_room_is_told_so() {
    run(async {
        let host = room_for_two().await;
        let (a, b) = (hold(&host, "a.onnx").await, hold(&host, "b.onnx").await);
        let reason = refusal(weigh(&host, "raw", "c").await, "TooLarge");
        assert!(reason.contains("of the budget of 40 MiB for models"), "{reason}");
        let typed = host.post("/misbehave", "text/plain", "load:c").await.expect(200).text();
        assert!(typed.starts_with("ErrorCode::TooLarge: ") && typed.contains("40 MiB"), "{typed}");
        // Those in memory go on serving.
        weighed(&host, "raw", "a", 1).await;
        weighed(&host, "raw", "b", 2).await;
        assert_eq!(
            (graphs(&host).await, loads(&host).await, evicted(&host, "budget").await),
            (2.0, 2.0, 0.0)
        );
        drop(b);
        weighed(&host, "raw", "c", 3).await;
        assert_eq!((graphs(&host).await, evicted(&host, "budget").await), (2.0, 1.0));
        weighed(&host, "raw", "a", 1).await;
        assert_eq!(loads(&host).await, 3.0);
        drop(a);
    });
}

#[test]
fn a_graph_in_use_is_not_idle() {
    run(async {
        let granted =
            [grant("held", "a.onnx", "idle_timeout_s = 1"), grant("other", "b.onnx", "idle_timeout_s = 1")];
        let host = TestHost::of(app(&[raw("raw", &granted.concat())]))
            .file("a.onnx", weights(1, 1))
            .file("b.onnx", weights(1, 2))
            .start()
            .await;
        let held = hold(&host, "a.onnx").await;
        // Two lives of a graph that nobody holds pass, one after the other.
        for life in 1..=2 {
            weighed(&host, "raw", "other", 2).await;
            eventually("the other leaves", async || evicted(&host, "idle").await == f64::from(life)).await;
            assert_eq!(graphs(&host).await, 1.0);
        }
        drop(held);
        eventually("it leaves too", async || graphs(&host).await == 0.0).await;
    });
}

#[test]
fn a_function_tells_its_caller_that_there_is_no_room() {
    let seven = crate::harness::repository().join("examples/digits/seven.png");
    let seven = std::fs::read(seven).expect("the image is here");
    run(async {
        let digits = function("/digits", "digits", "digits", &grant("digits", "big.onnx", ""));
        let host = TestHost::of(app(&[digits, raw("raw", &grant("other", "other.onnx", ""))]))
            .file("big.onnx", weights(16, 9))
            .file("other.onnx", weights(16, 8))
            .config(|config| config.models.memory_budget_mib = 24)
            .start()
            .await;
        let held = hold(&host, "other.onnx").await;
        let answer = host.post("/digits", "image/png", seven).await;
        assert_eq!(answer.header("retry-after"), "1", "{}", answer.text());
        let detail = answer.problem(503, "over-memory-budget");
        assert!(detail.contains("the budget of 24 MiB"), "{detail}");
        drop(held);
    });
}

#[test]
fn a_model_larger_than_the_budget_is_not_deployed() {
    run(async {
        let host = TestHost::of(app(&[raw("raw", &grants(&["add"]))]))
            .file("big.onnx", weights(16, 9))
            .config(|config| config.models.memory_budget_mib = 8)
            .start()
            .await;
        let manifest = app(&[raw("raw", &[grant("big", "big.onnx", ""), grants(&["add"])].concat())]);
        let refused = deploy(&host, &manifest).await.expect_err("there can never be room");
        assert!(refused.contains("model `big`: it needs 1"), "{refused}");
        assert!(
            refused.contains("more than the 8 MiB") && refused.contains("`models.memory_budget_mib`"),
            "{refused}"
        );
        let query = "model=add&input=a:I64:1&input=b:I64:1";
        call(&host, "raw", query, &le![1_i64, 2_i64]).await.expect(200);
    });
}

/// What has no room even if all that is unused went does not make it go.
#[test]
fn nothing_is_evicted_in_vain() {
    run(async {
        let granted: String = [("held", "a"), ("unused", "b"), ("large", "c")]
            .map(|(name, file)| grant(name, &format!("{file}.onnx"), "idle_timeout_s = 600"))
            .concat();
        let host = TestHost::of(app(&[raw("raw", &granted)]))
            .config(|config| config.models.memory_budget_mib = 40)
            .file("a.onnx", weights(16, 1))
            .file("b.onnx", weights(8, 2))
            .file("c.onnx", weights(32, 3))
            .start()
            .await;
        let held = hold(&host, "a.onnx").await;
        weighed(&host, "raw", "unused", 2).await;
        let reason = refusal(weigh(&host, "raw", "large").await, "TooLarge");
        assert!(reason.contains("of the budget of 40 MiB for models"), "{reason}");
        assert_eq!((graphs(&host).await, evicted(&host, "budget").await), (2.0, 0.0));
        drop(held);
        weighed(&host, "raw", "large", 3).await;
    });
}

#[test]
fn a_shared_graph_stays_as_long_as_any_of_its_models_asks() {
    run(async {
        let granted =
            [grant("brief", "a.onnx", "idle_timeout_s = 1"), grant("long", "b.onnx", "idle_timeout_s = 600")];
        let other = grant("other", "c.onnx", "idle_timeout_s = 1");
        let host = TestHost::of(app(&[raw("raw", &[granted.concat(), other].concat())]))
            .file("a.onnx", weights(1, 1))
            .file("b.onnx", weights(1, 1))
            .file("c.onnx", weights(1, 2))
            .start()
            .await;
        weighed(&host, "raw", "brief", 1).await;
        weighed(&host, "raw", "long", 1).await;
        weighed(&host, "raw", "brief", 1).await;
        // Two lives of one that is used later pass meanwhile.
        for life in 1..=2 {
            weighed(&host, "raw", "other", 2).await;
            eventually("the other leaves", async || evicted(&host, "idle").await == f64::from(life)).await;
            assert_eq!(graphs(&host).await, 1.0);
        }
    });
}

#[test]
fn a_model_file_that_changes_or_goes_changes_nothing_that_is_served() {
    for backend in backends() {
        run(async {
            let granted =
                [grant("m", "m.onnx", "idle_timeout_s = 1"), grant("n", "n.onnx", "idle_timeout_s = 1")];
            let host = TestHost::of(app(&[raw("raw", &granted.concat())]))
                .config(only(backend))
                .file("m.onnx", weights(1, 1))
                .file("n.onnx", weights(1, 2))
                .start()
                .await;
            let file = |name| host.folder.path().join(name);
            weighed(&host, "raw", "m", 1).await;
            weighed(&host, "raw", "n", 2).await;
            std::fs::remove_file(file("m.onnx")).expect("files can be removed");
            // In place, as a careless copy does it.
            std::fs::write(file("n.onnx"), b"no longer a model").expect("files can be written");
            weighed(&host, "raw", "m", 1).await;
            weighed(&host, "raw", "n", 2).await;
            eventually("both leave", async || graphs(&host).await == 0.0).await;
            weighed(&host, "raw", "m", 1).await;
            weighed(&host, "raw", "n", 2).await;
        });
    }
}

#[test]
fn a_load_that_takes_too_long_is_given_up() {
    run(async {
        let host = TestHost::of(app(&[raw("raw", &grant("m", "m.onnx", "")), raw("none", "")]))
            .file("m.onnx", weights(64, 6))
            .config(|config| config.models.load_ms = 1)
            .start()
            .await;
        for failures in 1..=4 {
            let reason = refusal(weigh(&host, "raw", "m").await, "RuntimeError");
            assert!(reason.contains("not loaded within 1 ms (`models.load_ms`"), "{reason}");
            let failed = host.metric("tenon_graph_load_failures_total{backend=\"tract\"}").await;
            assert_eq!((failed, graphs(&host).await), (f64::from(failures), 0.0));
        }
        refusal(weigh(&host, "none", "m").await, "NotFound");
    });
}

/// A host in a process of its own, whose memory nothing else uses.
struct Apart {
    process: tokio::process::Child,
    http: std::net::SocketAddr,
    admin: std::net::SocketAddr,
}

impl Apart {
    async fn start(folder: &Path, backend: &str) -> Apart {
        let mut config = tenon::config::Config::default();
        only(backend)(&mut config);
        let library = |name: &str, path: Option<&Path>| {
            path.map(|path| format!("{name}.library = {path:?}\n")).unwrap_or_default()
        };
        let cache = crate::harness::repository().join("target/tests-cache");
        let settings = format!(
            "[listen]\nadmin = \"127.0.0.1:0\"\n[cache]\ndir = {cache:?}\n[models]\nidle_timeout_s = 1\n\
             [inference]\nbackends = [{backend:?}]\n{}{}",
            library("onnxruntime", config.inference.onnxruntime_library.as_deref()),
            library("openvino", config.inference.openvino_library.as_deref()),
        );
        std::fs::write(folder.join("host.toml"), settings).expect("files can be written");
        let mut process = tokio::process::Command::new(PROGRAM)
            .args(["--config", "host.toml", "up", "--listen", "127.0.0.1:0"])
            .current_dir(folder)
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the program starts");
        let mut lines = BufReader::new(process.stderr.take().expect("it is piped")).lines();
        let (mut http, mut admin, mut told) = (None, None, String::new());
        while http.is_none() || admin.is_none() {
            let line = lines.next_line().await.expect("it is text").unwrap_or_else(|| panic!("{told}"));
            let address = |what: &str| line.trim().strip_prefix(what)?.split('/').next()?.parse().ok();
            http = http.or_else(|| address("Serving http://"));
            admin = admin.or_else(|| address("Operator http://"));
            told += &line;
        }
        // Its log goes on being read, so that it never waits for us.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Apart { process, http: http.expect("told"), admin: admin.expect("told") }
    }

    async fn graphs(&self) -> String {
        let metrics =
            exchange(self.admin, request(Method::GET, "/metrics", &[], "")).await.expect("answered");
        metrics
            .text()
            .lines()
            .find_map(|line| line.strip_prefix("tenon_graphs "))
            .map_or(String::new(), str::to_owned)
    }

    /// Memory of the process in MiB.
    fn resident(&self) -> i64 {
        let status = format!("/proc/{}/status", self.process.id().expect("it runs"));
        let status = std::fs::read_to_string(status).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("Linux tells it");
        line.trim().trim_end_matches(" kB").parse::<i64>().expect("a number") / 1024
    }
}

#[test]
fn memory_comes_back_when_graphs_leave() {
    for backend in backends() {
        run(async {
            let folder = tempfile::tempdir().expect("the system has a folder for temporary files");
            let manifest = app(&[raw("raw", &[grant("m", "m.onnx", ""), grants(&["add"])].concat())]);
            std::fs::write(folder.path().join("spin.toml"), manifest).expect("files can be written");
            std::fs::write(folder.path().join("m.onnx"), weights(64, 4)).expect("files can be written");
            let host = Apart::start(folder.path(), backend).await;
            let use_it = async |query: &str, data: Vec<u8>| {
                exchange(host.http, call_request("raw", query, &data)).await.expect("answered").expect(200)
            };
            // What the first call of all leaves behind is not the model's.
            use_it("model=add&input=a:I64:1&input=b:I64:1", le![1_i64, 2_i64]).await;
            eventually("the graph leaves", async || host.graphs().await == "0").await;
            let start = host.resident();
            let mut told = Vec::new();
            for _ in 0..4 {
                use_it("model=m&input=at:I64:1", le![5_i64]).await;
                let loaded = host.resident();
                eventually("the graph leaves", async || host.graphs().await == "0").await;
                // Freed memory goes back right after the table was told.
                eventually("memory is given back", async || host.resident() < start + 24).await;
                told.push((loaded, host.resident()));
            }
            eprintln!("{backend}: {start} MiB, then with and after a graph of 64 MiB of weights: {told:?}");
        });
    }
}

#[test]
fn nothing_is_loaded_for_a_call_that_needs_no_model() {
    run(async {
        let manifest = app(&[function("/misbehave", "misbehave", "typed_misbehave", &grants(&["add"]))]);
        let host = TestHost::of(manifest).start().await;
        host.post("/misbehave", "text/plain", "ok").await.expect(200);
        assert_eq!((graphs(&host).await, loads(&host).await), (0.0, 0.0));
        assert!(std::fs::exists(model("add")).expect("the model is here"));
    });
}

#[test]
fn no_model_reads_the_file_of_another() {
    for backend in backends() {
        run(async {
            let host = TestHost::of(app(&[raw("raw", &grant("secret", "secret.onnx", ""))]))
                .config(only(backend))
                .config(|config| config.models.allow_guest_models = true)
                .private_cache()
                .file("secret.onnx", weights(1, 5))
                .start()
                .await;
            let models = host.folder.path().join("cache/models");
            let names =
                std::fs::read_dir(models).expect("it is there").flatten().map(|entry| entry.file_name());
            let names: Vec<_> = names.map(|name| name.to_string_lossy().into_owned()).collect();
            let secret = names.iter().find(|name| name.ends_with(".onnx")).expect("the model is kept");
            let thief = weights_of(secret, 1024);
            let reason =
                refusal(call(&host, "raw", "load=onnx&input=at:I64:1", &thief).await, "RuntimeError");
            assert!(!reason.contains(&host.folder.path().display().to_string()), "{reason}");
            eprintln!("{backend}: {reason}");
            weighed(&host, "raw", "secret", 5).await;
        });
    }
}
