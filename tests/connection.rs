//! Connections: callers that are slow, cut off, too long, too many, or speak no HTTP.

use bytes::Bytes;
use http::Method;
use tokio::io::AsyncWriteExt;

use crate::harness::{TestHost, app, eventually, request, rest, run, until};
use crate::request::{STATIC, misbehave, p2, p3};

#[test]
fn a_connection_is_kept_and_takes_requests_ahead() {
    run(async {
        let host = TestHost::of(app(&[STATIC.to_owned(), p2("")])).start().await;
        let mut stream = host.connect().await;
        for _ in 0..3 {
            stream.write_all(b"GET /static HTTP/1.1\r\nhost: t\r\n\r\n").await.unwrap();
            assert!(
                until(&mut stream, |text| text.ends_with("still\n")).await.starts_with("HTTP/1.1 200 OK\r\n")
            );
        }
        let ahead = "GET /p2/hello HTTP/1.1\r\nhost: t\r\n\r\n".repeat(5);
        let last = "GET /static HTTP/1.1\r\nhost: t\r\nconnection: close\r\n\r\n";
        let text = host.raw(format!("{ahead}{last}")).await;
        assert_eq!(
            (text.matches("HTTP/1.1 200 OK").count(), text.matches("hello\n").count()),
            (6, 5),
            "{text}"
        );
        assert!(text.ends_with("still\n"), "{text}");
        let old = host.raw("GET /p2/hello HTTP/1.0\r\n\r\n").await;
        assert!(old.starts_with("HTTP/1.0 200 OK\r\n") && old.contains("hello\n"), "{old}");
    });
}

#[test]
fn a_body_that_is_too_long_is_refused() {
    run(async {
        let limit = "tool.tenon.limits.request_body_mib = 1";
        let host = TestHost::of(app(&[misbehave(limit), p2(limit)])).start().await;
        // Announced: refused before any of it is sent.
        for path in ["/misbehave", "/p2/echo"] {
            let head = format!(
                "POST {path} HTTP/1.1\r\nhost: t\r\ncontent-length: 1048577\r\nexpect: 100-continue\r\n\
                 content-type: text/plain\r\n\r\n"
            );
            let text = host.raw(head).await;
            assert!(text.starts_with("HTTP/1.1 413 "), "{path}: {text}");
        }
        let body = Bytes::from(vec![b'x'; (1 << 20) + 1]);
        let detail = host.post("/misbehave", "text/plain", body).await.problem(413, "too-large");
        assert!(detail.contains("1048576"), "{detail}");
        // Chunked: refused when it is too long, though nobody said so.
        let chunk = format!("10000\r\n{}\r\n", "x".repeat(1 << 16));
        let head = "POST /misbehave HTTP/1.1\r\nhost: t\r\ncontent-type: text/plain\r\ntransfer-encoding: chunked\r\n\r\n";
        let text = host.raw(format!("{head}{}", chunk.repeat(17))).await;
        assert!(text.starts_with("HTTP/1.1 413 "), "{text}");
        let text = host
            .raw(format!("{}{}0\r\n\r\n", head.replace("/misbehave", "/p2/read-slowly"), chunk.repeat(17)))
            .await;
        assert!(text.contains("1048576 bytes, then ") && text.contains("size exceeds"), "{text}");
        host.post("/misbehave", "text/plain", "ok").await.expect(200);
    });
}

#[test]
fn who_sends_far_too_much_still_hears_why() {
    run(async {
        let limit = "tool.tenon.limits.request_body_mib = 1";
        let host = TestHost::of(app(&[misbehave(limit), p2(limit)])).start().await;
        let body = Bytes::from(vec![b'x'; 24 << 20]);
        for path in ["/misbehave", "/p2/echo"] {
            host.post(path, "text/plain", body.clone()).await.problem(413, "too-large");
        }
    });
}

#[test]
fn a_body_up_to_the_limit_is_taken() {
    run(async {
        let host = TestHost::of(app(&[p2("tool.tenon.limits.request_body_mib = 1")])).start().await;
        let body = Bytes::from(vec![b'x'; 1 << 20]);
        assert_eq!(host.post("/p2/echo", "text/plain", body.clone()).await.expect(200).body, body);
    });
}

#[test]
fn a_slow_body_is_not_waited_for() {
    run(async {
        let setup = TestHost::of(app(&[misbehave(""), p2("")]));
        let host = setup.config(|config| config.limits.body_read_ms = 100).start().await;
        let part =
            "POST /misbehave HTTP/1.1\r\nhost: t\r\ncontent-type: text/plain\r\ncontent-length: 10\r\n\r\nok";
        let text = host.raw(part).await;
        assert!(text.starts_with("HTTP/1.1 408 ") && text.contains("slow-body"), "{text}");
        let text = host.raw(part.replace("/misbehave", "/p2/read-slowly")).await;
        assert!(text.contains("2 bytes, then ") && text.contains("timeout"), "{text}");
        eventually("no instance is left", async || host.metric("tenon_instances").await == 0.0).await;
    });
}

#[test]
fn a_body_that_is_cut_off_calls_nothing() {
    run(async {
        let host = TestHost::of(app(&[misbehave(""), p2("")])).start().await;
        for path in ["/misbehave", "/p2/read-slowly"] {
            let mut stream = host.connect().await;
            let head = format!(
                "POST {path} HTTP/1.1\r\nhost: t\r\ncontent-type: text/plain\r\ncontent-length: 99\r\n\r\nprint:x"
            );
            stream.write_all(head.as_bytes()).await.unwrap();
            stream.shutdown().await.unwrap();
            let text = rest(&mut stream).await;
            assert!(text.is_empty() || text.contains("cut off") || text.contains("7 bytes, then"), "{text}");
        }
        eventually("no instance is left", async || host.metric("tenon_instances").await == 0.0).await;
        assert_eq!(host.log("misbehave", "stdout"), "");
        host.post("/misbehave", "text/plain", "ok").await.expect(200);
    });
}

#[test]
fn an_answer_that_is_too_long_does_not_pass() {
    run(async {
        let limit = "tool.tenon.limits.response_body_mib = 1";
        let host = TestHost::of(app(&[misbehave(limit), p2(limit)])).start().await;
        let answer = host.post("/misbehave", "text/plain", "huge-answer:2").await;
        let detail = answer.problem(502, "guest-bad-reply");
        assert!(detail.contains("1048576"), "{detail}");
        assert_eq!(host.get("/p2/big?1").await.expect(200).body.len(), 1 << 20);
        for path in ["/p2/big?2", "/p2/endless"] {
            let broken = host.try_send(request(Method::GET, path, &[], "")).await;
            assert!(broken.is_err(), "{path} ended as if it were whole");
        }
        eventually("no instance is left", async || host.metric("tenon_instances").await == 0.0).await;
    });
}

#[test]
fn an_answer_that_is_not_as_long_as_it_says_is_none() {
    run(async {
        let host = TestHost::of(app(&[p2("")])).start().await;
        for length in ["5", "500"] {
            let both = format!(
                "GET /p2/lie?{length} HTTP/1.1\r\nhost: t\r\n\r\nGET /p2/hello HTTP/1.1\r\nhost: t\r\nconnection: close\r\n\r\n"
            );
            let text = host.raw(both).await;
            assert!(text.starts_with("HTTP/1.1 502 ") && text.contains("guest-bad-reply"), "{text}");
            assert!(text.ends_with("\r\n\r\nhello\n") && !text.contains(".."), "{text}");
        }
        assert_eq!(host.get("/p2/lie?200").await.expect(200).body.len(), 200);
    });
}

#[test]
fn an_answer_that_nobody_takes_is_given_up() {
    run(async {
        let setup = TestHost::of(app(&[p2("")]));
        let host = setup.config(|config| config.limits.body_read_ms = 100).start().await;
        let mut stream = host.connect().await;
        stream.write_all(b"GET /p2/big?15 HTTP/1.1\r\nhost: t\r\n\r\n").await.unwrap();
        eventually("the answer begins", async || host.metric("tenon_instances").await == 1.0).await;
        eventually("no connection is left", async || host.metric("tenon_connections").await == 0.0).await;
        eventually("no instance is left", async || host.metric("tenon_instances").await == 0.0).await;
        drop(stream);
    });
}

#[test]
fn a_host_that_is_none_is_refused() {
    run(async {
        let host = TestHost::of(app(&[p2(""), p3()])).start().await;
        for path in ["/p2/hello", "/p3/hello"] {
            for wrong in ["host: \u{fc}ml", "host: a b", "host: a/b", "host: a\r\nhost: b"] {
                let text =
                    host.raw(format!("GET {path} HTTP/1.1\r\n{wrong}\r\nconnection: close\r\n\r\n")).await;
                assert!(
                    text.starts_with("HTTP/1.1 400 ") && text.contains("invalid-input"),
                    "{wrong}: {text}"
                );
            }
            for right in ["host:", "host: [::1]:80", "host: xn--ml-eka.example:3000", "x-none: y"] {
                let head = format!("GET {path} HTTP/1.1\r\n{right}\r\nconnection: close\r\n\r\n");
                let text = host.raw(head).await;
                assert!(text.starts_with("HTTP/1.1 200 "), "{right}: {text}");
            }
        }
    });
}

#[test]
fn who_is_asked_for_a_body_takes_no_instance_yet() {
    run(async {
        let host = TestHost::of(app(&[p2("tool.tenon.limits.concurrency = 1")])).start().await;
        let mut waiting = host.connect().await;
        let head = "POST /p2/echo HTTP/1.1\r\nhost: t\r\ncontent-length: 2\r\nexpect: 100-continue\r\nconnection: close\r\n\r\n";
        waiting.write_all(head.as_bytes()).await.unwrap();
        until(&mut waiting, |text| text.ends_with("HTTP/1.1 100 Continue\r\n\r\n")).await;
        host.get("/p2/hello").await.expect(200);
        waiting.write_all(b"hi").await.unwrap();
        assert!(rest(&mut waiting).await.contains("hi"));
    });
}

#[test]
fn what_is_not_answered_is_counted_too() {
    run(async {
        let host = TestHost::of(app(&[p2("")])).start().await;
        let errors = async |function: &str, error: &str| {
            let labels = format!("function=\"{function}\",error=\"{error}\"");
            host.metric(&format!("tenon_request_errors_total{{{labels}}}")).await
        };
        let mut leaving = host.connect().await;
        leaving.write_all(b"GET /p2/never HTTP/1.1\r\nhost: t\r\n\r\n").await.unwrap();
        eventually("it runs", async || host.metric("tenon_instances").await == 1.0).await;
        drop(leaving);
        eventually("it is counted", async || errors("app/p2", "cancelled").await == 1.0).await;
        assert_eq!(host.metric(r#"tenon_requests_total{function="app/p2"}"#).await, 1.0);
        assert!(host.try_send(request(Method::GET, "/p2/endless", &[], "")).await.is_err());
        assert_eq!(errors("app/p2", "guest-bad-reply").await, 1.0);
        host.get("/nowhere").await.expect(404);
        assert_eq!(errors("", "function-not-found").await, 1.0);
    });
}

#[test]
fn a_head_that_does_not_come_is_not_waited_for() {
    run(async {
        let setup = TestHost::of(app(&[STATIC.to_owned()]));
        let host = setup.config(|config| config.limits.header_read_ms = 100).start().await;
        for part in ["", "GET", "GET /static HTTP/1.1\r\nhost: t\r\nx-slow:"] {
            let text = host.raw(part).await;
            assert!(text.is_empty() || text.starts_with("HTTP/1.1 408"), "{part:?}: {text}");
        }
        let idle = host.raw("GET /static HTTP/1.1\r\nhost: t\r\n\r\n").await;
        assert!(idle.ends_with("still\n"), "{idle}");
        eventually("no connection is left", async || host.metric("tenon_connections").await == 0.0).await;
    });
}

#[test]
fn what_is_not_http_is_refused() {
    run(async {
        let host = TestHost::of(app(&[STATIC.to_owned(), misbehave("")])).start().await;
        let long = format!("GET /static HTTP/1.1\r\nx-long: {}\r\n\r\n", "x".repeat(200_000));
        let many = format!("GET /static HTTP/1.1\r\n{}\r\n", "x-many: y\r\n".repeat(5000));
        let path = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(200_000));
        let rows = [
            "NONSENSE\r\n\r\n",
            "GET /static HTTP/9.9\r\n\r\n",
            "GET /st atic HTTP/1.1\r\n\r\n",
            "GET /static HTTP/1.1\r\nno colon\r\n\r\n",
            "GET /static HTTP/1.1\r\nx-nul: \0\r\n\r\n",
            "POST /misbehave HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
            "POST /misbehave HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nok",
            "POST /misbehave HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nnot a size\r\n",
            "POST /misbehave HTTP/1.1\r\ntransfer-encoding: chunked, x\r\n\r\n0\r\n\r\n",
            "\x16\x03\x01\x02\x00\x01\x00\x01\r\n\r\n",
            long.as_str(),
            many.as_str(),
            path.as_str(),
        ];
        for row in rows {
            let text = host.raw(row).await;
            assert!(text.is_empty() || text.starts_with("HTTP/1.1 4"), "{row:.60}: {text}");
        }
        host.get("/static").await.expect(200);
    });
}

#[test]
fn two_lengths_are_never_two_requests() {
    run(async {
        let host = TestHost::of(app(&[STATIC.to_owned(), misbehave("")])).start().await;
        let smuggled = "POST /misbehave HTTP/1.1\r\nhost: t\r\ncontent-type: text/plain\r\ncontent-length: 5\r\n\
                        transfer-encoding: chunked\r\n\r\n0\r\n\r\nGET /static HTTP/1.1\r\nhost: t\r\n\r\n";
        let text = host.raw(smuggled).await;
        assert!(!text.contains("still"), "{text}");
    });
}

#[test]
fn connections_beyond_the_limit_wait() {
    run(async {
        let setup = TestHost::of(app(&[STATIC.to_owned()]));
        let host = setup.config(|config| config.limits.connections = 2).start().await;
        let (first, second) = (host.connect().await, host.connect().await);
        eventually("both are accepted", async || host.metric("tenon_connections").await == 2.0).await;
        let mut third = host.connect().await;
        third.write_all(b"GET /static HTTP/1.1\r\nhost: t\r\nconnection: close\r\n\r\n").await.unwrap();
        assert_eq!(host.metric("tenon_connections").await, 2.0);
        drop(first);
        assert!(rest(&mut third).await.ends_with("still\n"));
        drop(second);
    });
}

#[test]
fn the_operator_sees_what_is_served() {
    run(async {
        let host = TestHost::of(app(&[misbehave(""), p2(""), p3()])).start().await;
        host.operator("/health").await.expect(200);
        host.operator("/ready").await.expect(200);
        host.operator("/nowhere").await.expect(404);
        let functions = host.operator("/functions").await.expect(200).json();
        let kinds: Vec<_> = functions.as_array().unwrap().iter().map(|function| &function["kind"]).collect();
        let expected = ["typed model function", "wasi:http/incoming-handler@0.2", "wasi:http/handler@0.3"];
        assert_eq!(kinds, expected);
        let metrics = host.metrics().await;
        assert!(metrics.contains("# HELP tenon_requests ") && metrics.ends_with("# EOF\n"), "{metrics}");
    });
}
