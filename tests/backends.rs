//! Every backend, from the outside: right answers, its own answer for each caller, refusals, hostile models.

use std::path::{Path, PathBuf};

use http::Method;
use serde_json::json;
use tenon::artifact::manifest::{Manifest, Options};
use tenon::backend::vet::hex;
use tokio::task::JoinSet;

use crate::harness::{TestHost, app, available, exchange, function, needs, repository, request, run};
use crate::raw::{backends, call, call_request, every, grant, grants, is_here, le, model, only, raw};

/// The held-out images of the digits example, with what each shows.
pub(crate) fn held_out() -> Vec<(u64, Vec<u8>)> {
    let folder = repository().join("examples/digits/testdata/heldout");
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(folder).expect("the images are here").flatten().map(|entry| entry.path()).collect();
    paths.sort();
    let image = |path: &PathBuf| {
        let name = path.file_stem().expect("a file has a name").to_string_lossy();
        let (_, digit) = name.split_once('_').expect("a name is row_label");
        (digit.parse().expect("a label is a digit"), std::fs::read(path).expect("the image is here"))
    };
    paths.iter().map(image).collect()
}

/// The part of the held-out images that `host` reads right, and the backend that it names.
async fn accuracy(host: &TestHost, backend: &str) -> f64 {
    let images = held_out();
    let mut right = 0_u32;
    for (digit, image) in &images {
        let answer = host.post("/digits", "image/png", image.clone()).await.expect(200);
        assert_eq!(answer.header("x-tenon-backend"), backend);
        right += u32::from(answer.json()["digit"] == json!(digit));
    }
    assert_eq!(images.len(), 360);
    f64::from(right) / 360.0
}

#[test]
fn held_out_digits_are_read_right() {
    let digits = repository().join("examples/digits/model/digits.onnx").display().to_string();
    for backend in backends() {
        run(async {
            let manifest = app(&[function("/digits", "digits", "digits", &grant("digits", &digits, ""))]);
            let host = TestHost::of(manifest).config(only(backend)).start().await;
            let accuracy = accuracy(&host, backend).await;
            eprintln!("{backend}: {accuracy:.4} of the held-out digits are read right");
            assert!(accuracy >= 0.97, "{backend}: {accuracy}");
        });
    }
}

#[test]
fn openvino_s_own_form_gives_the_same_digits() {
    if !is_here("openvino") {
        return;
    }
    run(async {
        let ir = model("digits.xml");
        let manifest = app(&[function("/digits", "digits", "digits", &grant("digits", &ir, ""))]);
        // Nothing names a backend: the one that reads the format is found.
        let host = TestHost::of(manifest).config(every).start().await;
        let accuracy = accuracy(&host, "openvino").await;
        assert!(accuracy >= 0.97, "{accuracy}");
    });
}

#[test]
fn integers_are_added() {
    for backend in backends() {
        run(async {
            let host =
                TestHost::of(app(&[raw("raw", &grants(&["add"]))])).config(only(backend)).start().await;
            for n in [1, 2, 3, 257] {
                let (a, b): (Vec<i64>, Vec<i64>) = (0..n).map(|i| (i * 1_000_003, -7 * i)).unzip();
                let bytes =
                    |numbers: &[i64]| -> Vec<u8> { numbers.iter().flat_map(|n| n.to_le_bytes()).collect() };
                let query = format!("model=add&input=a:I64:{n}&input=b:I64:{n}");
                let answer = call(&host, "raw", &query, &[bytes(&a), bytes(&b)].concat()).await.expect(200);
                let sum: Vec<i64> = a.iter().zip(&b).map(|(a, b)| a + b).collect();
                let expected = format!("sum TensorType::I64 [{n}] {}\n", hex(&bytes(&sum)));
                assert_eq!(answer.text(), expected, "{backend}");
                assert_eq!(answer.header("x-tenon-backend"), backend);
            }
        });
    }
}

/// A request of `dynamic_seq` for `rows` rows of `length` ids, all of them `id`, and its answer.
fn mean_of(id: i64, rows: usize, length: usize) -> (String, Vec<u8>, String) {
    let query = format!("model=dynamic_seq&input=ids:I64:{rows},{length}");
    let ids = le![id].repeat(rows * length);
    #[expect(clippy::cast_precision_loss, reason = "an id is below 100")]
    let row: Vec<u8> =
        (0..8_u8).flat_map(|column| (id as f32 + f32::from(column) / 8.0).to_le_bytes()).collect();
    (query, ids, format!("mean TensorType::Fp32 [{rows}, 8] {}\n", hex(&row.repeat(rows))))
}

#[test]
fn shapes_may_vary_from_call_to_call() {
    for backend in backends() {
        run(async {
            let manifest = app(&[raw("raw", &grants(&["dynamic_seq"]))]);
            let host = TestHost::of(manifest).config(only(backend)).start().await;
            // Powers of two: no backend rounds the mean of as many.
            for (rows, length) in [(1, 1), (1, 8), (3, 2), (1, 1), (2, 64), (1, 128), (1, 8)] {
                let (query, ids, expected) = mean_of(42, rows, length);
                let answer = call(&host, "raw", &query, &ids).await.expect(200);
                assert_eq!(answer.text(), expected, "{backend} {rows} {length}");
            }
        });
    }
}

#[test]
fn a_failed_run_leaves_nothing_behind() {
    for backend in backends() {
        run(async {
            let manifest = app(&[raw("raw", &grants(&["dynamic_seq"]))]);
            let host = TestHost::of(manifest).config(only(backend)).start().await;
            let (query, ids, expected) = mean_of(7, 1, 4);
            for _ in 0..3 {
                // 4000 is not in the table; OpenVINO may take it for zeros.
                let outside = call(&host, "raw", &query, &le![4000_i64].repeat(4)).await;
                assert!(backend == "openvino" || outside.status == 500, "{backend}: {}", outside.text());
                let answer = call(&host, "raw", &query, &ids).await.expect(200);
                assert_eq!(answer.text(), expected, "{backend}");
            }
        });
    }
}

#[test]
fn every_caller_gets_its_own_answer() {
    const CALLERS: i64 = 16;
    const CALLS: i64 = 20;
    for backend in backends() {
        run(async {
            let manifest = app(&[raw("raw", &grants(&["dynamic_seq"]))]);
            let host = TestHost::of(manifest).config(only(backend)).start().await;
            let address = host.host.http;
            let mut callers = JoinSet::new();
            for caller in 0..CALLERS {
                callers.spawn(async move {
                    for call in 0..CALLS {
                        let id = (caller * CALLS + call) % 100;
                        let length = usize::try_from(1 << (caller % 4)).expect("small");
                        let (query, ids, expected) = mean_of(id, 1, length);
                        let answer = exchange(address, call_request("raw", &query, &ids)).await;
                        assert_eq!(answer.expect("answered").expect(200).text(), expected);
                    }
                });
            }
            while let Some(caller) = callers.join_next().await {
                caller.unwrap_or_else(|error| panic!("{backend}: {error}"));
            }
        });
    }
}

#[test]
fn what_cannot_be_had_is_refused_by_name() {
    let digits = model("digits.xml");
    let add = model("add");
    let refused =
        |grant: String| run(async { TestHost::of(app(&[raw("raw", &grant)])).try_start().await.err() });
    let check = |path: &str, wish: &str, expected: &[&str]| {
        let refused = refused(grant("m", path, wish)).expect("it cannot be had");
        assert!(expected.iter().all(|part| refused.contains(part)), "{wish}: {refused}");
    };
    // Hosts of these tests find no library unless they are told where it is.
    let install = |name: &'static str| ["`m`", name, "not available", "tenon backend install"];
    check(&add, "backend = \"onnxruntime\"", &install("`onnxruntime`"));
    check(&add, "backend = \"openvino\"", &install("`openvino`"));
    check(&digits, "", &["`m`", "openvino", "tenon backend install openvino"]);
    check(&digits, "backend = \"tract\"", &["`tract`", "openvino"]);
    check(&add, "backend = \"rten\"", &["`rten`", "built with"]);
    check(&add, "backend = \"tract\", target = \"gpu\"", &["`tract`", "CPU", "`target = \"cpu\"`"]);
    check(&add, "backend = \"tract\", precision = \"bf16\"", &["`tract`", "`bf16`"]);
}

#[test]
fn a_gpu_that_is_not_there_is_refused_by_name() {
    // A test of its own demands the GPU where there is one.
    if std::path::Path::new("/dev/nvidiactl").exists() || std::path::Path::new("/dev/dri").exists() {
        eprintln!("skipped: there is a GPU here");
        return;
    }
    for backend in backends().into_iter().filter(|backend| *backend != "tract") {
        run(async {
            let wish = format!("backend = {backend:?}, target = \"gpu\"");
            let manifest = app(&[raw("raw", &grant("m", &model("add"), &wish))]);
            let refused =
                TestHost::of(manifest).config(every).try_start().await.err().expect("there is none");
            assert!(refused.contains(backend) && refused.contains("gpu"), "{refused}");
            eprintln!("{backend}: {refused}");
        });
    }
}

/// Runs where the machine has a GPU and the ONNX Runtime that was found can use it, and then for real.
#[test]
fn a_model_runs_on_the_gpu() {
    let library = is_here("onnxruntime").then(|| needs("onnxruntime")).flatten();
    let provider = library.and_then(|library| {
        let beside = library.parent()?.join("libonnxruntime_providers_cuda.so");
        (beside.exists() && Path::new("/dev/nvidiactl").exists()).then_some(beside)
    });
    let how = "run on a machine with an NVIDIA GPU, with TENON_ONNXRUNTIME in an `onnxruntime-gpu` package";
    if available("cuda", provider, how).is_none() {
        return;
    }
    run(async {
        let digits = repository().join("examples/digits/model/digits.onnx").display().to_string();
        let on_gpu = grant("digits", &digits, "target = \"gpu\"");
        let manifest = app(&[function("/digits", "digits", "digits", &on_gpu)]);
        let host = TestHost::of(manifest).config(only("onnxruntime")).start().await;
        let accuracy = accuracy(&host, "onnxruntime").await;
        assert!(accuracy >= 0.97, "{accuracy}");
        let functions = host.operator("/functions").await.expect(200).json();
        assert_eq!(functions[0]["models"][0]["target"], "gpu");
    });
}

#[test]
fn the_operator_s_order_decides_where_the_model_does_not() {
    for backend in backends() {
        run(async {
            let host = TestHost::of(app(&[raw("raw", &grants(&["add"]))]))
                .config(every)
                .config(|config| {
                    let mut others = ["tract", "onnxruntime", "openvino"].to_vec();
                    others.retain(|other| *other != backend);
                    others.insert(0, backend);
                    config.inference.backends = others.into_iter().map(str::to_owned).collect();
                })
                .start()
                .await;
            let query = "model=add&input=a:I64:1&input=b:I64:1";
            let answer = call(&host, "raw", query, &le![1_i64, 2_i64]).await.expect(200);
            assert_eq!(answer.header("x-tenon-backend"), backend);
        });
    }
}

/// Deploys another app on a host that serves, as an author's next deployment does.
pub(crate) async fn deploy(host: &TestHost, manifest: &str) -> Result<(), String> {
    let path = host.folder.path().join("next.toml");
    std::fs::write(&path, manifest).expect("files can be written");
    let variables = std::collections::BTreeMap::new();
    let options =
        Options { profile: None, variables: &variables, environment: &|_| None, values_required: true };
    let manifest = Manifest::load(&path, &options).map_err(|error| error.to_string())?;
    let files = manifest.files().map_err(|error| error.to_string())?;
    host.host.deployer.deploy(&manifest, &files, &|_| {}).await.map_err(|error| error.to_string())
}

async fn add_works(host: &TestHost, context: &str) {
    let query = "model=add&input=a:I64:1&input=b:I64:1";
    let answer = call(host, "good", query, &le![40_i64, 2_i64]).await;
    assert_eq!(
        answer.text(),
        format!("sum TensorType::I64 [1] {}\n", hex(&42_i64.to_le_bytes())),
        "{context}"
    );
}

#[test]
fn hostile_models_take_nothing_down() {
    // Each with a call that fits it, for backends that would serve it.
    let models = [
        ("garbage", "", true),
        ("truncated", "", true),
        ("empty", "", true),
        ("unknown_op", "", true),
        ("deep", "", true),
        ("bad_external", "input=x:FP32:4", true),
        ("huge_constant", "input=x:FP32:1", false),
        ("negative_dim", "input=x:FP32:5,4", false),
    ];
    for backend in backends() {
        run(async {
            let good = raw("good", &grants(&["add"]));
            let host = TestHost::of(app(std::slice::from_ref(&good)))
                .config(only(backend))
                // What an earlier build thought of these models does not count.
                .private_cache()
                .start()
                .await;
            for (name, input, must_be_refused) in models {
                let bad = raw("bad", &grants(&[name]));
                match deploy(&host, &app(&[good.clone(), bad])).await {
                    Err(reason) => {
                        assert!(reason.contains(&format!("model `{name}`")), "{reason}");
                        assert!(reason.contains(backend) && reason.len() < 2000, "{reason}");
                        eprintln!("{backend} {name}: {reason}");
                    }
                    Ok(()) => {
                        let answer = call(&host, "bad", &format!("model={name}&{input}"), &[]).await;
                        let text: String = answer.text().chars().take(200).collect();
                        eprintln!("{backend} {name}: served, {} {text}", answer.status);
                        assert!(!must_be_refused, "{backend} serves {name}");
                        assert!([200, 500].contains(&answer.status.as_u16()), "{}", answer.text());
                    }
                }
                add_works(&host, &format!("{backend} after {name}")).await;
            }
        });
    }
}

/// Where the verdicts of a host with a private cache lie.
fn verdicts(host: &TestHost) -> Vec<PathBuf> {
    let folder = host.host.deployer.intake.cache.verdicts();
    let mut paths: Vec<_> =
        std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

#[test]
fn a_model_that_uses_up_the_time_to_try_it_is_refused_for_good() {
    let endless: Vec<_> = backends().into_iter().filter(|backend| *backend != "tract").collect();
    for backend in endless {
        run(async {
            let host = TestHost::of(app(&[raw("none", "")]))
                .config(only(backend))
                .config(|config| config.models.vet.cpu_s = 1)
                .private_cache()
                .start()
                .await;
            let manifest = app(&[raw("bad", &grants(&["loop_forever"]))]);
            let refused = deploy(&host, &manifest).await.expect_err("it loops");
            assert!(refused.contains("more than 1 s of processor time"), "{backend}: {refused}");
            remembered(&host, &manifest, &refused).await;
        });
    }
}

#[test]
fn a_model_that_had_too_little_memory_is_refused_until_it_has_more() {
    run(async {
        let cache = tempfile::tempdir().expect("the system has a folder for temporary files");
        let with = async |memory_mib| {
            TestHost::of(app(&[raw("none", "")]))
                .config(only("tract"))
                .config(|config| config.cache.dir = Some(cache.path().to_owned()))
                .config(|config| config.models.vet.memory_mib = memory_mib)
                .start()
                .await
        };
        // The program itself takes more.
        let host = with(64).await;
        let manifest = app(&[raw("bad", &grants(&["add"]))]);
        let refused = deploy(&host, &manifest).await.expect_err("it has no memory");
        assert!(refused.contains("model `add`: backend `tract` refuses it"), "{refused}");
        remembered(&host, &manifest, &refused).await;
        deploy(&with(2048).await, &manifest).await.expect("it has enough");
    });
}

/// The verdict in the cache is what the next deployment goes by.
async fn remembered(host: &TestHost, manifest: &str, refused: &str) {
    assert_eq!(deploy(host, manifest).await.expect_err("it stays refused"), refused);
    let [verdict] = verdicts(host).try_into().expect("one verdict");
    let text = std::fs::read_to_string(&verdict).expect("a verdict is text");
    let mut told: serde_json::Value = serde_json::from_str(&text).expect("a verdict is JSON");
    told["refused"] = json!("as it was found");
    std::fs::write(&verdict, told.to_string()).expect("files can be written");
    let again = deploy(host, manifest).await.expect_err("it stays refused");
    assert!(again.contains("as it was found"), "{again}");
}

#[test]
fn a_model_that_was_not_tried_in_time_may_try_again() {
    run(async {
        let host = TestHost::of(app(&[raw("none", "")]))
            .config(only("tract"))
            .config(|config| config.models.vet.wall_ms = 1)
            .private_cache()
            .start()
            .await;
        let refused =
            deploy(&host, &app(&[raw("bad", &grants(&["add"]))])).await.expect_err("1 ms is too short");
        assert!(refused.contains("`add`") && refused.contains("within"), "{refused}");
        assert_eq!(verdicts(&host), Vec::<PathBuf>::new());
    });
}

#[test]
fn division_by_zero_takes_nothing_down() {
    for backend in backends() {
        run(async {
            let good = raw("good", &grants(&["add", "divide"]));
            let host = TestHost::of(app(&[good])).config(only(backend)).start().await;
            let query = "/good/?model=divide&input=a:I64:1&input=b:I64:1";
            let divide = |a: i64, b: i64| request(Method::POST, query, &[], le![a, b]);
            let answer = host.send(divide(42, 6)).await.expect(200);
            assert_eq!(
                answer.text(),
                format!("quotient TensorType::I64 [1] {}\n", hex(&7_i64.to_le_bytes()))
            );
            let answer = host.send(divide(42, 0)).await;
            eprintln!("{backend}: 42 / 0 is {} {}", answer.status, answer.text());
            add_works(&host, backend).await;
        });
    }
}
