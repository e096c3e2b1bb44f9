//! Requests: what a caller sends, what the function gets, what the caller is told.

use bytes::Bytes;
use http::Method;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use crate::harness::{TestHost, app, function, repository, request, run, tensor, until};

pub(crate) fn misbehave(settings: &str) -> String {
    function("/misbehave", "misbehave", "typed_misbehave", settings)
}

pub(crate) fn p2(settings: &str) -> String {
    function("/p2/...", "p2", "http_p2", settings)
}

pub(crate) fn p3() -> String {
    function("/p3/...", "p3", "http_p3", "")
}

pub(crate) const STATIC: &str =
    "[[trigger.http]]\nroute = \"/static\"\n[trigger.http.static_response]\nbody = \"still\\n\"\n";

fn seven() -> Bytes {
    std::fs::read(repository().join("examples/digits/seven.png")).unwrap().into()
}

#[test]
fn a_picture_becomes_a_digit() {
    run(async {
        let host = TestHost::at(repository().join("spin.toml")).start().await;
        for content_type in ["image/png", "application/x-www-form-urlencoded", "IMAGE/PNG; q=1"] {
            let answer = host.post("/digits", content_type, seven()).await.expect(200);
            assert_eq!(answer.json()["digit"], 7);
            assert_eq!(answer.header("content-type"), "application/json");
            assert_eq!(answer.header("x-tenon-backend"), "tract");
        }
        let detail = host.post("/digits", "image/png", "no image").await;
        assert!(detail.status.is_client_error(), "{}", detail.text());
        assert_eq!(host.metric(r#"tenon_requests_total{function="examples/digits"}"#).await, 4.0);
        assert_eq!(host.metric(r#"tenon_cold_starts_total{function="examples/digits"}"#).await, 1.0);
    });
}

/// One input of each datatype of the Open Inference Protocol.
pub(crate) fn every_datatype() -> Vec<Value> {
    vec![
        tensor("bool", "BOOL", &[2], json!([true, false])),
        tensor("uint8", "UINT8", &[2], json!([0, 255])),
        tensor("uint16", "UINT16", &[1], json!([65535])),
        tensor("uint32", "UINT32", &[1], json!([4_294_967_295_u32])),
        tensor("uint64", "UINT64", &[1], json!([u64::MAX])),
        tensor("int8", "INT8", &[2], json!([-128, 127])),
        tensor("int16", "INT16", &[2], json!([-32768, 32767])),
        tensor("int32", "INT32", &[1], json!([i32::MIN])),
        tensor("int64", "INT64", &[2], json!([i64::MIN, i64::MAX])),
        tensor("fp16", "FP16", &[2], json!([0.5, -65504.0])),
        tensor("bf16", "BF16", &[1], json!([-2.5])),
        tensor("fp32", "FP32", &[3], json!([1.5, -0.25, 1.0e30])),
        tensor("fp64", "FP64", &[2], json!([1.0e-300, 0.1])),
        tensor("bytes", "BYTES", &[3], json!(["seven", "", "sieben ß"])),
    ]
}

#[test]
pub(crate) fn every_datatype_goes_in_and_comes_out() {
    run(async {
        let host = TestHost::of(app(&[function("/echo", "echo", "typed_echo", "")])).start().await;
        for copy in [false, true] {
            let body = json!({ "id": "42", "inputs": every_datatype(), "parameters": { "copy": copy } });
            let answer = host.post("/echo", "application/json", body.to_string()).await.expect(200);
            let reply = answer.json();
            assert_eq!(reply["id"], "42");
            assert_eq!(reply["model_name"], "app/echo");
            assert_eq!(reply["outputs"], Value::Array(every_datatype()), "copy: {copy}");
        }
        let asked = json!({ "inputs": every_datatype(), "outputs": [{ "name": "int8" }] });
        let reply = host.post("/echo", "application/json", asked.to_string()).await.expect(200).json();
        assert_eq!(reply["outputs"], json!([tensor("int8", "INT8", &[2], json!([-128, 127]))]));
    });
}

#[test]
fn long_tensors_go_in_and_come_out() {
    run(async {
        let host = TestHost::of(app(&[function("/echo", "echo", "typed_echo", "")])).start().await;
        let mut inputs = every_datatype();
        let numbers: Vec<f32> = (0..60_000_u16).map(|n| f32::from(n) / 7.0).collect();
        inputs[11] = json!({ "data": numbers, "name": "fp32", "shape": [numbers.len()], "datatype": "FP32" });
        let body = json!({ "inputs": inputs }).to_string();
        let reply = host.post("/echo", "application/json", body).await.expect(200).json();
        let back: Vec<f32> = serde_json::from_value(reply["outputs"][11]["data"].clone()).unwrap();
        assert!(back == numbers);
    });
}

#[test]
fn a_json_answer_that_is_too_long_does_not_pass() {
    run(async {
        let limit = "tool.tenon.limits.response_body_mib = 1";
        let host = TestHost::of(app(&[function("/echo", "echo", "typed_echo", limit)])).start().await;
        for count in [100, 100_000, 300_000] {
            let mut inputs = every_datatype();
            inputs[9] = tensor("fp16", "FP16", &[count], json!(vec![0.1; count]));
            let body = json!({ "inputs": inputs }).to_string();
            let answer = host.post("/echo", "application/json", body).await;
            if count < 1000 {
                answer.expect(200);
            } else {
                let detail = answer.problem(502, "guest-bad-reply");
                assert!(detail.contains("1048576"), "{detail}");
            }
        }
    });
}

#[test]
fn json_that_does_not_fit_is_refused_by_name() {
    run(async {
        let host = TestHost::of(app(&[function("/echo", "echo", "typed_echo", "")])).start().await;
        let with = |index: usize, input: Value| {
            let mut inputs = every_datatype();
            inputs[index] = input;
            json!({ "inputs": inputs }).to_string()
        };
        let rows = [
            ("{".to_owned(), "not JSON"),
            ("[]".to_owned(), "JSON object"),
            (String::new(), "not JSON"),
            (json!({ "inputs": [] }).to_string(), "`bool`"),
            (with(0, tensor("bool", "BOOL", &[2], json!([1, 0]))), "`bool`"),
            (with(1, tensor("uint8", "UINT8", &[2], json!([0, 256]))), "`uint8`"),
            (with(1, tensor("uint8", "UINT8", &[3], json!([0, 1]))), "`uint8`"),
            (with(1, tensor("uint8", "INT8", &[2], json!([0, 1]))), "`uint8`"),
            (with(1, tensor("uint8", "U8", &[2], json!([0, 1]))), "`U8`"),
            (with(5, tensor("int8", "INT8", &[1], json!([1.5]))), "`int8`"),
            (with(13, tensor("bytes", "BYTES", &[1], json!([7]))), "`bytes`"),
            (with(13, tensor("surplus", "BYTES", &[1], json!(["7"]))), "`surplus`"),
            (with(1, tensor("uint8", "UINT8", &[usize::MAX, 2], json!([0, 1]))), "`uint8`"),
            (with(1, json!({ "name": "uint8", "datatype": "UINT8", "shape": [-1], "data": [] })), "`uint8`"),
            (json!({ "inputs": every_datatype(), "outputs": [{ "name": "no" }] }).to_string(), "`no`"),
            (json!({ "inputs": every_datatype(), "parameters": { "copy": [] } }).to_string(), "`copy`"),
            (format!("{{\"inputs\":{}", "[".repeat(100_000)), "not JSON"),
        ];
        for (body, named) in rows {
            let answer = host.post("/echo", "application/json", body.clone()).await;
            let detail = answer.problem(400, "invalid-input");
            assert!(detail.contains(named), "{body:.200}: {detail}");
        }
    });
}

#[test]
fn tensors_need_no_content_type() {
    run(async {
        let host = TestHost::of(app(&[function("/echo", "echo", "typed_echo", "")])).start().await;
        let body = r#"{"inputs":[]}"#;
        let with_type = host.post("/echo", "application/json", body).await;
        for content_type in ["application/x-www-form-urlencoded", "application/octet-stream"] {
            let answer = host.post("/echo", content_type, body).await;
            assert_eq!(answer.text(), with_type.text(), "{content_type}");
        }
        host.post("/echo", "image/png", body).await.problem(400, "invalid-input");
    });
}

#[test]
fn a_raw_body_is_taken_by_its_media_type() {
    run(async {
        let host = TestHost::of(app(&[misbehave("")])).start().await;
        for content_type in ["text/plain", "text/csv; charset=utf-8", "application/x-www-form-urlencoded"] {
            let answer = host.post("/misbehave", content_type, "ok yes").await;
            assert!(answer.status == 200 || answer.text().contains("ok yes"), "{}", answer.text());
        }
        let answer = host.post("/misbehave", "text/plain", "ok:you").await.expect(200);
        assert_eq!(
            (answer.text().as_str(), answer.header("content-type")),
            ("ok you", "text/plain; charset=utf-8")
        );
        let detail = host.post("/misbehave", "image/png", "ok:you").await.problem(400, "invalid-input");
        assert!(detail.contains("`image/png`") && detail.contains("text/*"), "{detail}");
        let body = json!({ "inputs": [tensor("behaviour", "BYTES", &[1], json!(["ok:you"]))] });
        let reply = host.post("/misbehave", "application/json", body.to_string()).await.expect(200).json();
        assert_eq!(reply["outputs"], json!([tensor("answer", "BYTES", &[1], json!(["ok you"]))]));
        let untyped = host.send(request(Method::POST, "/misbehave", &[], "ok:you")).await.expect(200);
        assert_eq!(untyped.text(), "ok you");
        let empty = host.post("/misbehave", "text/plain", "").await;
        assert_eq!(empty.problem(500, "misbehave-failed"), "there is no behaviour ``");
    });
}

#[test]
fn what_is_not_there_is_not_found() {
    run(async {
        let private =
            "[[trigger.http]]\nid = \"hidden\"\nroute = { private = true }\ncomponent = \"misbehave\"\n";
        let only_private = misbehave("").replacen("route = \"/misbehave\"", "route = { private = true }", 1);
        let host = TestHost::of(app(&[only_private, private.to_owned(), STATIC.to_owned()])).start().await;
        for path in ["/", "/misbehave", "/hidden", "/app/misbehave", "/.well-known/x", "/static/x"] {
            let detail = host.get(path).await.problem(404, "function-not-found");
            assert!(detail.contains(&format!("`{path}`")), "{detail}");
        }
        host.get("/static").await.expect(200);
    });
}

#[test]
fn a_typed_function_takes_posts_alone() {
    run(async {
        let host = TestHost::of(app(&[misbehave("")])).start().await;
        for method in [Method::GET, Method::PUT, Method::DELETE, Method::OPTIONS, Method::PATCH] {
            let answer = host.send(request(method, "/misbehave", &[], "")).await;
            assert_eq!(answer.header("allow"), "POST");
            answer.problem(405, "method-not-allowed");
        }
        let head = host.send(request(Method::HEAD, "/misbehave", &[], "")).await.expect(405);
        assert!(head.body.is_empty());
    });
}

#[test]
fn a_function_raises_errors_of_its_own() {
    run(async {
        let host = TestHost::of(app(&[misbehave("")])).start().await;
        for (behaviour, status) in [
            ("own-error:415", 415),
            ("own-error:599", 599),
            ("own-error", 422),
            ("bad-status", 422),
            ("ok-status", 422),
        ] {
            let answer = host.post("/misbehave", "text/plain", behaviour).await;
            assert_eq!(answer.problem(status, "asked-for"), "an error on purpose", "{behaviour}");
        }
        let name = r#"tenon_request_errors_total{function="app/misbehave",error="function-error"}"#;
        assert_eq!(host.metric(name).await, 5.0);
        let retried = host.post("/misbehave", "text/plain", "own-error:503").await;
        assert_eq!(retried.status, 503);
    });
}

#[test]
fn a_functions_own_errors_are_bounded() {
    run(async {
        let host = TestHost::of(app(&[misbehave("")])).start().await;
        host.post("/misbehave", "text/plain", "bad-code").await.problem(422, "function-error");
        let huge = host.post("/misbehave", "text/plain", "huge-error:20").await.expect(422);
        assert!(huge.body.len() < 64 << 10, "an error of {} bytes", huge.body.len());
        assert!(!host.metrics().await.contains("Not a code"), "a metric's label is what a guest made up");
    });
}

#[test]
fn a_double_keeps_every_bit() {
    run(async {
        let host = TestHost::of(app(&[function("/echo", "echo", "typed_echo", "")])).start().await;
        for double in
            ["51.24817837550540", "3.0000000054977558e38", "0.1", "5e-324", "1.7976931348623157e308"]
        {
            let value: f64 = double.parse().unwrap();
            let inputs =
                json!({ "inputs": every_datatype() }).to_string().replace("0.1]", &format!("{double}]"));
            let text = host.post("/echo", "application/json", inputs).await.expect(200).text();
            let data = text.split(['[', ']']).find(|part| part.contains("e-300")).unwrap();
            let back: f64 = data.split(',').nth(1).unwrap().parse().unwrap();
            assert_eq!(back.to_bits(), value.to_bits(), "{double} became {back}");
        }
    });
}

#[test]
fn http_functions_get_requests_as_they_are() {
    run(async {
        let host = TestHost::of(app(&[p2(""), p3()])).start().await;
        for base in ["/p2", "/p3"] {
            assert_eq!(host.get(&format!("{base}/hello")).await.expect(200).text(), "hello\n");
            let body = Bytes::from(vec![b'x'; 300_000]);
            let echo = host.post(&format!("{base}/echo"), "text/plain", body.clone()).await.expect(200);
            assert_eq!(echo.body, body);
            let get =
                host.send(request(Method::GET, &format!("{base}/headers"), &[("x-mine", "me")], "")).await;
            assert!(get.text().contains("x-mine: me\n"), "{}", get.text());
            let head = host.send(request(Method::HEAD, &format!("{base}/hello"), &[], "")).await.expect(200);
            assert!(head.body.is_empty());
            host.send(request(Method::OPTIONS, &format!("{base}/hello"), &[], "")).await.expect(200);
        }
        assert_eq!(host.get("/p2/status?418").await.expect(418).text(), "as asked\n");
        assert_eq!(host.get("/p2/big?3").await.expect(200).body.len(), 3 << 20);
    });
}

#[test]
fn bodies_stream_both_ways_at_once() {
    run(async {
        let host = TestHost::of(app(&[p2("")])).start().await;
        let mut stream = host.connect().await;
        let head = "POST /p2/echo HTTP/1.1\r\nhost: t\r\ntransfer-encoding: chunked\r\n\r\n";
        stream.write_all(head.as_bytes()).await.unwrap();
        for word in ["first", "then", "last"] {
            stream.write_all(format!("{:x}\r\n{word}\r\n", word.len()).as_bytes()).await.unwrap();
            until(&mut stream, |text| text.ends_with(&format!("{word}\r\n"))).await;
        }
        stream.write_all(b"0\r\n\r\n").await.unwrap();
        assert_eq!(until(&mut stream, |text| text.ends_with("0\r\n\r\n")).await, "0\r\n\r\n");
    });
}

#[test]
fn spins_headers_are_true() {
    run(async {
        let route = function("/p2/:user-id/...", "p2", "http_p2", "");
        let host = TestHost::of(app(&[route, p3()])).start().await;
        let forged = [("spin-client-addr", "6.6.6.6"), ("Spin-Forged", "yes"), ("spin-path-info", "/x")];
        let answer = host.send(request(Method::GET, "/p2/anna/a/headers?q=1", &forged, "")).await.expect(200);
        let text = answer.text();
        for line in [
            "spin-full-url: http://tenon.test/p2/anna/a/headers?q=1\n",
            "spin-path-info: /a/headers\n",
            "spin-matched-route: /p2/:user-id/...\n",
            "spin-raw-component-route: /p2/:user-id/...\n",
            "spin-component-route: /p2/:user-id\n",
            "spin-base-path: /\n",
            "spin-path-match-user-id: anna\n",
            "spin-client-addr: 127.0.0.1:",
        ] {
            assert!(text.contains(line), "{line:?} is not in {text}");
        }
        assert!(!text.contains("6.6.6.6") && !text.contains("forged"), "{text}");
        let text = host.send(request(Method::GET, "/p3/headers", &forged, "")).await.expect(200).text();
        assert!(text.contains("spin-path-info: /headers\n") && !text.contains("6.6.6.6"), "{text}");
    });
}

#[test]
fn spins_own_paths_are_answered() {
    run(async {
        let host = TestHost::of(app(&[STATIC.to_owned()])).start().await;
        assert_eq!(host.get("/.well-known/spin/health").await.expect(200).text(), "OK");
        let info = host.get("/.well-known/spin/info").await.expect(200).json();
        assert_eq!(info, json!({ "name": "app", "version": "1.0.0" }));
    });
}

#[test]
fn the_most_exact_route_answers() {
    run(async {
        let routes = ["/...", "/a/...", "/a/b", "/a/:x/c", "/"];
        let parts: Vec<_> = routes
            .map(|route| {
                format!("[[trigger.http]]\nroute = \"{route}\"\n[trigger.http.static_response]\nbody = \"{route}\"\n")
            })
            .to_vec();
        let host = TestHost::of(app(&parts)).start().await;
        for (path, route) in [
            ("/", "/"),
            ("/x/y", "/..."),
            ("/a/z", "/a/..."),
            ("/a/b", "/a/b"),
            ("/a/b/c", "/a/:x/c"),
            ("/a", "/a/..."),
        ] {
            assert_eq!(host.get(path).await.expect(200).text(), route, "{path}");
        }
    });
}

#[test]
fn a_static_answer_needs_no_component() {
    run(async {
        let trigger = "[[trigger.http]]\nroute = \"/robots.txt\"\n[trigger.http.static_response]\n\
                       status_code = 203\nheaders = { content-type = \"text/plain\", x-kind = \"robots\" }\nbody = \"no\"\n";
        let host = TestHost::of(app(&[trigger.to_owned()])).start().await;
        let answer = host.get("/robots.txt").await.expect(203);
        assert_eq!((answer.text().as_str(), answer.header("x-kind")), ("no", "robots"));
        assert_eq!(answer.header("content-type"), "text/plain");
    });
}

#[test]
fn every_answer_names_its_request() {
    run(async {
        let host = TestHost::of(app(&[p2(""), misbehave("")])).start().await;
        let answer = host.send(request(Method::GET, "/p2/headers", &[("x-request-id", "mine-7")], "")).await;
        assert_eq!(answer.header("x-request-id"), "mine-7");
        assert!(answer.text().contains("x-request-id: mine-7\n"), "{}", answer.text());
        let long = "x".repeat(129);
        for id in ["two words", "", long.as_str()] {
            let answer = host.send(request(Method::GET, "/nowhere", &[("x-request-id", id)], "")).await;
            assert_eq!(answer.header("x-request-id").len(), 16, "{id}");
        }
        let (one, two) = (host.get("/nowhere").await, host.get("/nowhere").await);
        assert_ne!(one.header("x-request-id"), two.header("x-request-id"));
    });
}
