//! Inference from guests: wasi:nn, our own interface, and what ends a call.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tenon::backend::vet::hex;
use tokio::io::AsyncWriteExt;

use crate::harness::{Answer, TestHost, app, eventually, exchange, function, run, tensor};
use crate::raw::{backends, call, call_request, grant, grants, is_here, le, model, only, raw, refusal};

/// A type of wasi:nn in a call and in an answer, the identity model of that type, and its data: its edges, as
/// far as the backend goes.
fn types(backend: &str) -> Vec<(&'static str, &'static str, &'static str, Vec<u8>)> {
    let narrow = backend == "openvino";
    let wide = if narrow { f64::from(f32::MAX) } else { f64::MAX };
    let low = if narrow { i64::from(i32::MIN) } else { i64::MIN };
    let mut types = vec![
        ("FP16", "Fp16", "identity_float16", le![0x3c00_u16, 0xc000_u16, 0x7bff_u16, 0x8000_u16, 0x7c00_u16]),
        (
            "FP32",
            "Fp32",
            "identity_float32",
            le![1.5_f32, -0.0_f32, f32::MAX, f32::MIN_POSITIVE, f32::INFINITY],
        ),
        ("FP64", "Fp64", "identity_float64", le![1.5_f64, -0.0_f64, wide, -wide, f64::INFINITY]),
        ("U8", "U8", "identity_uint8", vec![0, 1, 127, 128, 255]),
        ("I32", "I32", "identity_int32", le![0_i32, -1_i32, i32::MIN, i32::MAX, 7_i32]),
        ("I64", "I64", "identity_int64", le![0_i64, -1_i64, low, low + 1, 7_i64]),
    ];
    if backend != "tract" {
        types.push((
            "BF16",
            "Bf16",
            "identity_bfloat16",
            le![0x3f80_u16, 0xc000_u16, 0x7f7f_u16, 0x8000_u16, 0x7f80_u16],
        ));
    }
    types
}

#[test]
fn every_tensor_type_goes_in_and_comes_out() {
    for backend in backends() {
        run(async {
            let types = types(backend);
            let models: Vec<_> = types.iter().map(|(_, _, model, _)| *model).collect();
            let host = TestHost::of(app(&[raw("raw", &grants(&models))])).config(only(backend)).start().await;
            for (given, answered, model, data) in types {
                let answer = call(&host, "raw", &format!("model={model}&input=x:{given}:5"), &data).await;
                let expected = format!("y TensorType::{answered} [5] {}\n", hex(&data));
                assert_eq!(answer.expect(200).text(), expected, "{backend} {model}");
            }
        });
    }
}

#[test]
fn what_a_backend_has_no_type_for_is_refused_by_name() {
    let check = async |backend: &str, model: &str, datatype: &str| {
        let manifest = app(&[raw("raw", &grants(&[model]))]);
        let refused = TestHost::of(manifest).config(only(backend)).try_start().await.err().expect("refused");
        let names = [backend, model, datatype].iter().all(|name| refused.contains(name));
        assert!(names, "{refused}");
    };
    run(async {
        check("tract", "identity_bfloat16", "BF16").await;
        check("tract", "identity_string", "BYTES").await;
        if is_here("openvino") {
            check("openvino", "identity_string", "BYTES").await;
        }
    });
}

#[test]
fn openvino_refuses_integers_beyond_32_bits() {
    if !is_here("openvino") {
        return;
    }
    run(async {
        let manifest = app(&[raw("raw", &grants(&["identity_int64"]))]);
        let host = TestHost::of(manifest).config(only("openvino")).start().await;
        let answer = call(&host, "raw", "model=identity_int64&input=x:I64:1", &le![1_i64 << 40]).await;
        let reason = refusal(answer, "InvalidArgument");
        assert!(reason.contains("`x`") && reason.contains("32-bit"), "{reason}");
    });
}

#[test]
fn outputs_have_the_model_s_names_and_types() {
    for backend in backends() {
        run(async {
            let manifest = app(&[raw("raw", &grants(&["two_outputs"]))]);
            let host = TestHost::of(manifest).config(only(backend)).start().await;
            let data = le![1_f32, 2_f32, 4_f32, 3_f32, 9_f32, 8_f32, 7_f32, 6_f32];
            let answer = call(&host, "raw", "model=two_outputs&input=x:FP32:2,4", &data).await;
            let double = le![2_f32, 4_f32, 8_f32, 6_f32, 18_f32, 16_f32, 14_f32, 12_f32];
            let expected = format!(
                "double TensorType::Fp32 [2, 4] {}\nargmax TensorType::I64 [2] {}\n",
                hex(&double),
                hex(&le![2_i64, 0_i64])
            );
            assert_eq!(answer.expect(200).text(), expected, "{backend}");
        });
    }
}

#[test]
fn inputs_that_do_not_fit_never_reach_a_backend() {
    for backend in backends() {
        run(async {
            let manifest = app(&[raw("raw", &grants(&["two_outputs"]))]);
            let host = TestHost::of(manifest).config(only(backend)).start().await;
            let check = async |inputs: &str, expected: &str| {
                let answer = call(&host, "raw", &format!("model=two_outputs{inputs}"), &[]).await;
                let reason = refusal(answer, "InvalidArgument");
                assert!(reason.contains(expected), "{backend} {inputs}: {reason}");
            };
            check("&input=z:FP32:1,4", "no input `z`; its inputs are `x`").await;
            check("&input=:FP32:1,4", "no input ``").await;
            check("&input=x:I64:1,4", "takes FP32, but INT64").await;
            check("&input=x:FP32:1,5", "takes the shape [-1, 4], but [1, 5]").await;
            check("&input=x:FP32:4", "takes the shape [-1, 4], but [4]").await;
            check("&input=x:FP32:0,4", "has a zero").await;
            check("", "`x` is missing").await;
            check("&input=x:FP32:1,4&input=x:FP32:1,4", "`x` is given twice").await;
            check("&input=x:FP32:1,4&input=z:FP32:1", "no input `z`").await;
            check("&input=x:FP32:1,4:12", "input `x`").await;
            check("&input=x:FP32:1,4:17", "input `x`").await;
            check("&input=x:FP32:1,4:0", "input `x`").await;
            check("&input=x:FP32:4294967295,4294967295,4294967295:16", "input `x`").await;
            let labels = format!("function=\"app/raw\",model=\"two_outputs\",backend=\"{backend}\"");
            assert_eq!(host.metric(&format!("tenon_inferences_total{{{labels}}}")).await, 0.0);
            call(&host, "raw", "model=two_outputs&input=x:FP32:1,4", &[]).await.expect(200);
            assert_eq!(host.metric(&format!("tenon_inferences_total{{{labels}}}")).await, 1.0);
        });
    }
}

#[test]
fn a_model_is_a_capability() {
    run(async {
        let manifest = app(&[raw("one", &grants(&["add"])), raw("other", &grants(&["divide"]))]);
        let host = TestHost::of(manifest).start().await;
        let inputs = "input=a:I64:1&input=b:I64:1";
        call(&host, "one", &format!("model=add&{inputs}"), &le![1_i64, 2_i64]).await.expect(200);
        call(&host, "other", &format!("model=divide&{inputs}"), &le![6_i64, 2_i64]).await.expect(200);
        let granted_to_another = refusal(call(&host, "one", "model=divide", &[]).await, "NotFound");
        let nowhere = refusal(call(&host, "one", "model=nowhere", &[]).await, "NotFound");
        assert_eq!(granted_to_another.replace("divide", "nowhere"), nowhere);
        for name in ["", "add.onnx", "../add", "ADD"] {
            refusal(call(&host, "one", &format!("model={name}"), &[]).await, "NotFound");
        }
    });
}

#[test]
fn bytes_are_no_model_unless_the_operator_allows_it() {
    let add = std::fs::read(model("add")).expect("the model is here");
    run(async {
        let host = TestHost::of(app(&[raw("raw", "")])).start().await;
        let reason = refusal(call(&host, "raw", "load=onnx", &add).await, "Security");
        assert!(reason.contains("load-by-name"), "{reason}");
        refusal(call(&host, "raw", "load=onnx", b"garbage").await, "Security");
    });
}

#[test]
fn bytes_are_a_model_where_the_operator_allows_it() {
    let add = std::fs::read(model("add")).expect("the model is here");
    run(async {
        let host = TestHost::of(app(&[raw("raw", "")]))
            .config(|config| config.models.allow_guest_models = true)
            .start()
            .await;
        // The body is the model and the inputs' data at once: `a` begins where `b` does, at its first bytes.
        let answer =
            call(&host, "raw", "load=onnx&input=a:I64:1&input=b:I64:1", &add).await.expect(200).text();
        let number = |at| i64::from_le_bytes(add[at..at + 8].try_into().expect("eight bytes"));
        let sum = number(0).wrapping_add(number(8));
        assert_eq!(answer, format!("sum TensorType::I64 [1] {}\n", hex(&sum.to_le_bytes())));
        refusal(call(&host, "raw", "load=ggml", &add).await, "InvalidEncoding");
        refusal(call(&host, "raw", "load=openvino", &add).await, "InvalidArgument");
        let reason = refusal(call(&host, "raw", "load=onnx", b"garbage").await, "RuntimeError");
        assert!(reason.contains("tract"), "{reason}");
    });
}

/// One tensor of each datatype.
pub(crate) fn tensors() -> Vec<Value> {
    vec![
        tensor("bool", "BOOL", &[3], json!([true, false, true])),
        tensor("uint8", "UINT8", &[2], json!([0, 255])),
        tensor("uint16", "UINT16", &[2], json!([0, 65535])),
        tensor("uint32", "UINT32", &[2], json!([0, u32::MAX])),
        tensor("uint64", "UINT64", &[2], json!([0, u64::MAX])),
        tensor("int8", "INT8", &[2], json!([-128, 127])),
        tensor("int16", "INT16", &[2], json!([i16::MIN, i16::MAX])),
        tensor("int32", "INT32", &[2], json!([i32::MIN, i32::MAX])),
        tensor("int64", "INT64", &[2], json!([i64::MIN, i64::MAX])),
        tensor("fp16", "FP16", &[2], json!([-1.5, 65504.0])),
        tensor("bf16", "BF16", &[2], json!([-1.5, 256.0])),
        tensor("fp32", "FP32", &[2], json!([-1.5, 16_777_217.5_f32])),
        tensor("fp64", "FP64", &[2], json!([-1.5, 0.1])),
        tensor("bytes", "BYTES", &[3], json!(["", "é", "three"])),
    ]
}

/// Calls the guest typed-nn: the tensors of the names in `on` go the `way`.
async fn through(host: &TestHost, way: &str, on: &[&str]) -> Answer {
    let parameters: serde_json::Map<_, _> = on.iter().map(|name| ((*name).to_owned(), way.into())).collect();
    let body = json!({ "inputs": tensors(), "parameters": parameters });
    host.post("/typed", "application/json", body.to_string()).await
}

#[test]
fn our_own_interface_takes_every_datatype() {
    let models = [
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
        ("bf16", "bfloat16"),
        ("bytes", "string"),
    ];
    let missing = |backend| match backend {
        "tract" => ["bf16", "bytes"].as_slice(),
        // It computes 64 bits in 32, and refuses what it would change.
        "openvino" => &["uint32", "uint64", "int64", "fp64", "bytes"],
        _ => &[],
    };
    for backend in backends() {
        run(async {
            let can = models.iter().filter(|(name, _)| !missing(backend).contains(name));
            let names: Vec<_> = can.clone().map(|(name, _)| *name).collect();
            let granted: String =
                can.map(|(name, file)| grant(name, &model(&format!("identity_{file}")), "")).collect();
            let manifest = app(&[function("/typed", "typed", "typed_nn", &granted)]);
            let host = TestHost::of(manifest).config(only(backend)).start().await;
            let answer = through(&host, "infer", &names).await.expect(200);
            assert_eq!(answer.json()["outputs"], json!(tensors()), "{backend}");
            assert_eq!(answer.header("x-tenon-backend"), backend);
        });
    }
}

#[test]
fn tensors_become_those_of_wasi_nn_and_back() {
    let models = [("uint8", "uint8"), ("int32", "int32"), ("int64", "int64"), ("fp32", "float32")];
    run(async {
        let granted: String =
            models.iter().map(|(name, file)| grant(name, &model(&format!("identity_{file}")), "")).collect();
        let host = TestHost::of(app(&[function("/typed", "typed", "typed_nn", &granted)])).start().await;
        let both = ["uint8", "int32", "int64", "fp16", "bf16", "fp32", "fp64"];
        let answer = through(&host, "convert", &both).await.expect(200);
        assert_eq!(answer.json()["outputs"], json!(tensors()));
        let answer = through(&host, "compute", &models.map(|(name, _)| name)).await.expect(200);
        assert_eq!(answer.json()["outputs"], json!(tensors()));
        for ours in ["bool", "uint16", "uint32", "uint64", "int8", "int16", "bytes"] {
            let reason = through(&host, "convert", &[ours]).await.problem(500, "refused");
            assert_eq!(reason, format!("wasi:nn has no tensor type for {}", ours.to_uppercase()));
        }
    });
}

#[test]
fn our_own_interface_refuses_what_does_not_fit() {
    run(async {
        let manifest =
            app(&[function("/misbehave", "misbehave", "typed_misbehave", &grants(&["two_outputs"]))]);
        let host = TestHost::of(manifest).start().await;
        let check = async |behaviour: &str, expected: &str| {
            let told = host.post("/misbehave", "text/plain", behaviour.to_owned()).await.expect(200).text();
            assert!(told.contains(expected), "{behaviour}: {told}");
        };
        check("load:two_outputs", "loaded, served by tract").await;
        check("load:divide", "ErrorCode::NotFound").await;
        check("infer:two_outputs", "argmax Datatype::Int64 [1] 8 bytes").await;
        for mistake in ["wrong-name", "wrong-type", "wrong-rank", "wrong-shape", "zero-shape"] {
            check(&format!("infer:two_outputs:{mistake}"), "ErrorCode::InvalidInput").await;
        }
        for mistake in ["missing", "extra", "twice", "empty-name"] {
            check(&format!("infer:two_outputs:{mistake}"), "ErrorCode::InvalidInput").await;
        }
    });
}

/// A model that this backend runs for longer than anyone waits, the query of such a run, and its data.
fn endless(backend: &str) -> (&'static str, &'static str, Vec<u8>) {
    match backend {
        "onnxruntime" => ("loop_rounds", "model=loop_rounds&input=rounds:I64:1", le![i64::from(i32::MAX)]),
        // tract has no loops, and OpenVINO does not stop in one. A run of this takes a second or so.
        _ => ("slow", "model=slow&times=100&input=x:FP32:1", le![1_f32]),
    }
}

/// A host with one inference thread and the endless model, in a hurry and not.
async fn one_thread(backend: &str) -> TestHost {
    let granted = grants(&["add", endless(backend).0]);
    let hurried = format!("{granted}tool.tenon.limits.deadline_ms = 300\n");
    TestHost::of(app(&[raw("calm", &granted), raw("hurried", &hurried)]))
        .config(only(backend))
        .config(|config| config.inference.threads = 1)
        .start()
        .await
}

async fn add_works(host: &TestHost) {
    let query = "model=add&input=a:I64:1&input=b:I64:1";
    let answer = call(host, "calm", query, &le![40_i64, 2_i64]).await.expect(200).text();
    assert_eq!(answer, format!("sum TensorType::I64 [1] {}\n", hex(&42_i64.to_le_bytes())));
}

#[test]
fn a_deadline_frees_the_caller_and_the_thread() {
    for backend in backends() {
        run(async {
            let host = one_thread(backend).await;
            add_works(&host).await;
            let (_, query, data) = endless(backend);
            for _ in 0..3 {
                let started = Instant::now();
                let answer = call(&host, "hurried", query, &data).await;
                let took = started.elapsed();
                answer.problem(504, "deadline-exceeded");
                assert!(took >= Duration::from_millis(300), "{backend}: {took:?}");
                assert!(took < Duration::from_millis(1300), "{backend}: {took:?}");
                eprintln!("{backend}: a deadline of 300 ms in an inference was kept after {took:?}");
            }
            // There is one thread: were it not free, this would not end.
            add_works(&host).await;
            eventually("the instances end", async || host.metric("tenon_instances").await == 0.0).await;
        });
    }
}

#[test]
fn a_deadline_frees_who_waits_for_a_thread() {
    if !is_here("onnxruntime") {
        return;
    }
    run(async {
        let host = one_thread("onnxruntime").await;
        add_works(&host).await;
        let (_, query, data) = endless("onnxruntime");
        let occupant = tokio::spawn(exchange(host.host.http, call_request("calm", query, &data)));
        eventually("the thread is taken", async || host.metric("tenon_graphs").await == 2.0).await;
        let started = Instant::now();
        let waiting = call(&host, "hurried", "model=add&input=a:I64:1&input=b:I64:1", &[]).await;
        waiting.problem(504, "deadline-exceeded");
        assert!(started.elapsed() < Duration::from_millis(1300), "{:?}", started.elapsed());
        occupant.abort();
        add_works(&host).await;
    });
}

#[test]
fn an_inference_that_cannot_be_stopped_holds_up_its_own_model_only() {
    if !is_here("openvino") {
        return;
    }
    run(async {
        let granted = grants(&["add", "loop_rounds"]);
        let hurried = format!("{granted}tool.tenon.limits.deadline_ms = 300\n");
        let host = TestHost::of(app(&[raw("calm", &granted), raw("hurried", &hurried)]))
            .config(only("openvino"))
            .config(|config| config.inference.threads = 1)
            .start()
            .await;
        let rounds = async |id: &str, rounds: i64| {
            call(&host, id, "model=loop_rounds&input=rounds:I64:1", &le![rounds]).await
        };
        rounds("calm", 2).await.expect(200);
        let started = Instant::now();
        rounds("hurried", 300_000).await.problem(504, "deadline-exceeded");
        eprintln!("openvino: the caller of a loop was freed after {:?}", started.elapsed());
        add_works(&host).await;
        let meanwhile = rounds("calm", 3).await;
        if meanwhile.status != 200 {
            let reason = refusal(meanwhile, "RuntimeError");
            assert!(reason.contains("an earlier run of the model cannot be stopped"), "{reason}");
        }
        eventually("the loop ends", async || rounds("calm", 3).await.status == 200).await;
        eprintln!("openvino: the loop ended after {:?}", started.elapsed());
    });
}

#[test]
fn an_inference_whose_caller_has_gone_is_cancelled() {
    for backend in backends() {
        run(async {
            let host = one_thread(backend).await;
            let (_, query, data) = endless(backend);
            let mut caller = host.connect().await;
            let head = format!(
                "POST /calm/?{query} HTTP/1.1\r\nhost: tenon.test\r\ncontent-length: {}\r\n\r\n",
                data.len()
            );
            caller.write_all(&[head.as_bytes(), &data].concat()).await.expect("the host reads");
            eventually("the graph is loaded", async || host.metric("tenon_graphs").await == 1.0).await;
            assert_eq!(host.metric("tenon_instances").await, 1.0);
            drop(caller);
            eventually("the instance ends", async || host.metric("tenon_instances").await == 0.0).await;
            add_works(&host).await;
        });
    }
}
