//! Limits: guests that take too much, answer wrongly or never, and what everyone else notices of it.

use std::net::TcpListener;
use std::path::Path;
use std::time::{Duration, Instant};

use http::Method;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::{TestHost, app, eventually, function, request, rest, run, until};

/// A typed function that does what its input says.
fn misbehave(settings: &str) -> String {
    function("/misbehave", "misbehave", "typed_misbehave", settings)
}

/// An HTTP function that does what its path says.
fn p2(settings: &str) -> String {
    function("/p2/...", "p2", "http_p2", settings)
}

/// A neighbour that is well.
fn good() -> String {
    function("/good", "good", "typed_misbehave", "")
}

async fn is_well(host: &TestHost) {
    assert_eq!(host.post("/good", "text/plain", "ok:well").await.expect(200).text(), "ok well");
}

async fn no_instance_is_left(host: &TestHost) {
    eventually("no instance is left", async || host.metric("tenon_instances").await == 0.0).await;
}

async fn instances(host: &TestHost, count: f64) {
    eventually("the instances run", async || host.metric("tenon_instances").await == count).await;
}

async fn told(host: &TestHost, behaviour: &str) -> String {
    host.post("/misbehave", "text/plain", behaviour.to_owned()).await.expect(200).text()
}

/// Sends a request and leaves its connection open.
async fn begin(host: &TestHost, head: &str) -> TcpStream {
    let mut stream = host.connect().await;
    stream.write_all(head.as_bytes()).await.unwrap();
    stream
}

/// A call that holds its instance until its connection is closed or its body ended.
async fn held(host: &TestHost) -> TcpStream {
    let head = "POST /p2/echo HTTP/1.1\r\nhost: t\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n";
    let mut stream = begin(host, head).await;
    until(&mut stream, |text| text.contains("hi")).await;
    stream
}

#[test]
fn what_does_not_end_ends_at_its_deadline() {
    run(async {
        let deadline = "tool.tenon.limits.deadline_ms = 300";
        let p3 = function("/p3/...", "p3", "http_p3", deadline);
        let host = TestHost::of(app(&[misbehave(deadline), p2(deadline), p3, good()])).start().await;
        for behaviour in ["loop", "sleep:60000", "spin-in-hostcall"] {
            let started = Instant::now();
            let answer = host.post("/misbehave", "text/plain", behaviour);
            let (answer, ()) = tokio::join!(answer, is_well(&host));
            assert!(answer.problem(504, "deadline-exceeded").contains("300 ms"));
            assert!(started.elapsed() >= Duration::from_millis(300));
        }
        for path in ["/p2/loop", "/p2/never", "/p3/loop"] {
            let (answer, ()) = tokio::join!(host.get(path), is_well(&host));
            answer.problem(504, "deadline-exceeded");
        }
        no_instance_is_left(&host).await;
    });
}

#[test]
fn sixteen_that_never_end_leave_room_for_others() {
    run(async {
        let host =
            TestHost::of(app(&[misbehave("tool.tenon.limits.deadline_ms = 2000"), good()])).start().await;
        let started = Instant::now();
        let address = host.host.http;
        let endless: Vec<_> = (0..16)
            .map(|_| {
                let headers = [("content-type", "text/plain")];
                tokio::spawn(crate::harness::exchange(
                    address,
                    request(Method::POST, "/misbehave", &headers, "loop"),
                ))
            })
            .collect();
        instances(&host, 16.0).await;
        for _ in 0..5 {
            is_well(&host).await;
        }
        assert!(endless.iter().any(|call| !call.is_finished()), "the neighbour had to wait for all of them");
        for call in endless {
            call.await.unwrap().unwrap().problem(504, "deadline-exceeded");
        }
        assert!(started.elapsed() < Duration::from_secs(15), "took {:?}", started.elapsed());
        no_instance_is_left(&host).await;
    });
}

#[test]
fn a_guest_that_traps_is_told_from_others() {
    run(async {
        let p3 = function("/p3/...", "p3", "http_p3", "");
        let host = TestHost::of(app(&[misbehave(""), p2(""), p3, good()])).start().await;
        for (behaviour, why) in
            [("recurse", "stack"), ("trap", "panicked"), ("panic", "panicked"), ("exit", "status")]
        {
            let answer = host.post("/misbehave", "text/plain", behaviour).await;
            let detail = answer.problem(502, "guest-trapped");
            assert!(detail.contains(why), "{behaviour}: {detail}");
            is_well(&host).await;
        }
        host.get("/p2/trap").await.problem(502, "guest-trapped");
        host.get("/p3/trap").await.problem(502, "guest-trapped");
        assert!(host.log("misbehave", "stderr").contains("asked to panic"));
        no_instance_is_left(&host).await;
    });
}

#[test]
fn memory_without_end_is_refused() {
    run(async {
        let host = TestHost::of(app(&[misbehave("tool.tenon.limits.memory_mib = 32"), good()])).start().await;
        let detail = host.post("/misbehave", "text/plain", "hog").await.problem(502, "guest-over-memory");
        assert!(detail.contains("32 MiB"), "{detail}");
        is_well(&host).await;
        let text = told(&host, "ok").await;
        assert_eq!(text, "ok ", "the next call starts anew");
    });
}

#[test]
fn what_the_host_holds_counts_as_the_guests_memory() {
    run(async {
        let host = TestHost::of(app(&[misbehave("tool.tenon.limits.memory_mib = 32"), good()])).start().await;
        let text = told(&host, "many-host-bytes:4").await;
        let count = text.strip_prefix("refused after ").and_then(|text| text.split(':').next());
        let count: u32 = count.unwrap_or_else(|| panic!("{text}")).parse().unwrap();
        assert!((1..8).contains(&count), "{text}");
        is_well(&host).await;
    });
}

#[test]
fn handles_end_somewhere() {
    run(async {
        let setup = TestHost::of(app(&[misbehave(""), good()]));
        let host = setup.config(|config| config.limits.handles = 100).start().await;
        let answer = host.post("/misbehave", "text/plain", "handles").await;
        match answer.status.as_u16() {
            200 => assert!(answer.text().starts_with("refused after "), "{}", answer.text()),
            _ => drop(answer.problem(502, "guest-trapped")),
        }
        is_well(&host).await;
        no_instance_is_left(&host).await;
    });
}

#[test]
fn tensors_that_lie_are_not_made() {
    run(async {
        let host = TestHost::of(app(&[misbehave(""), good()])).start().await;
        for behaviour in [
            "lie-length",
            "lie-bytes",
            "lie-count",
            "lie-bool",
            "absurd-shape",
            "overflowing-shape",
            "deep-shape",
        ] {
            let text = told(&host, behaviour).await;
            assert!(text.starts_with("refused: "), "{behaviour}: {text}");
        }
        is_well(&host).await;
    });
}

#[test]
fn answers_that_break_their_promise_are_not_passed_on() {
    run(async {
        let host = TestHost::of(app(&[misbehave(""), p2(""), good()])).start().await;
        for (behaviour, why) in [
            ("wrong-shape", "[2]"),
            ("wrong-datatype", "FP32"),
            ("wrong-output-names", "`not-the-answer`"),
            ("missing-output", "`answer`"),
            ("output-twice", "twice"),
        ] {
            let detail =
                host.post("/misbehave", "text/plain", behaviour).await.problem(502, "guest-bad-reply");
            assert!(detail.contains(why), "{behaviour}: {detail}");
        }
        for path in ["/p2/no-answer", "/p2/error?hidden"] {
            host.get(path).await.problem(502, "guest-bad-reply");
        }
        is_well(&host).await;
    });
}

#[test]
fn handles_that_are_not_the_guests_are_a_trap() {
    run(async {
        let host = TestHost::of(app(&[misbehave(""), good()])).start().await;
        for behaviour in ["double-drop", "forged-handle"] {
            host.post("/misbehave", "text/plain", behaviour).await.problem(502, "guest-trapped");
            is_well(&host).await;
        }
    });
}

fn bytes_of_files(folder: &Path) -> u64 {
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len());
    files.sum()
}

#[test]
fn what_a_function_prints_is_kept_within_bounds() {
    run(async {
        let setup = TestHost::of(app(&[misbehave(""), p2(""), good()]));
        let host = setup.config(|config| config.log.function_log_mib = 1).start().await;
        assert_eq!(told(&host, "print:a line").await, "printed");
        assert_eq!(told(&host, "eprint:another").await, "printed");
        assert_eq!(
            (host.log("misbehave", "stdout"), host.log("misbehave", "stderr")),
            lines("a line", "another")
        );
        host.get("/p2/print?it").await.expect(200);
        assert_eq!((host.log("p2", "stdout"), host.log("p2", "stderr")), lines("out it", "err it"));
        for flood in ["stdout-flood:8", "stderr-flood:8"] {
            assert!(told(&host, flood).await.starts_with("wrote "));
        }
        let kept = bytes_of_files(&host.folder.path().join("logs"));
        assert!((256 << 10..3 << 20).contains(&kept), "{kept} bytes are kept");
    });
}

fn lines(out: &str, err: &str) -> (String, String) {
    (format!("{out}\n"), format!("{err}\n"))
}

#[test]
fn a_full_queue_refuses_at_once_and_the_queued_are_answered() {
    run(async {
        let setup = TestHost::of(app(&[p2("tool.tenon.limits.concurrency = 1"), good()]));
        let setup = setup.config(|config| {
            // One function may fill half of it.
            config.limits.queue_length = 4;
            config.limits.queue_wait_ms = 60_000;
        });
        let host = setup.start().await;
        let mut running = held(&host).await;
        let address = host.host.http;
        let queued: Vec<_> = (0..2)
            .map(|_| {
                tokio::spawn(crate::harness::exchange(address, request(Method::GET, "/p2/hello", &[], "")))
            })
            .collect();
        eventually("two wait", async || host.metric("tenon_queued_requests").await == 2.0).await;
        let refused = host.get("/p2/hello").await;
        assert_eq!(refused.header("retry-after"), "1");
        refused.problem(503, "overloaded");
        is_well(&host).await;
        assert!(queued.iter().all(|call| !call.is_finished()));
        running.write_all(b"0\r\n\r\n").await.unwrap();
        assert!(rest(&mut running).await.ends_with("0\r\n\r\n"));
        for call in queued {
            call.await.unwrap().unwrap().expect(200);
        }
        assert_eq!(
            host.metric(r#"tenon_request_errors_total{function="app/p2",error="overloaded"}"#).await,
            1.0
        );
    });
}

#[test]
fn nobody_waits_in_the_queue_without_end() {
    run(async {
        let setup = TestHost::of(app(&[p2(""), good()]));
        let setup = setup.config(|config| {
            config.limits.concurrency = 1;
            config.limits.queue_wait_ms = 50;
        });
        let host = setup.start().await;
        let running = held(&host).await;
        host.post("/good", "text/plain", "ok").await.problem(503, "overloaded");
        assert_eq!(host.metric("tenon_queued_requests").await, 0.0);
        drop(running);
        no_instance_is_left(&host).await;
        is_well(&host).await;
    });
}

#[test]
fn a_caller_that_leaves_frees_its_instance_and_its_place() {
    run(async {
        let deadline = "tool.tenon.limits = { deadline_ms = 110000, concurrency = 1 }";
        let setup = TestHost::of(app(&[misbehave(deadline), p2(deadline)]));
        let host = setup
            .config(|config| {
                config.limits.queue_wait_ms = 110_000;
                config.limits.deadline_ms = 110_000;
            })
            .start()
            .await;
        let sleep = "POST /misbehave HTTP/1.1\r\nhost: t\r\ncontent-type: text/plain\r\ncontent-length: 12\r\n\r\nsleep:100000";
        for head in
            ["GET /p2/never HTTP/1.1\r\nhost: t\r\n\r\n", "GET /p2/loop HTTP/1.1\r\nhost: t\r\n\r\n", sleep]
        {
            let running = begin(&host, head).await;
            instances(&host, 1.0).await;
            let waiting = begin(&host, head).await;
            eventually("one waits", async || host.metric("tenon_queued_requests").await == 1.0).await;
            drop(waiting);
            eventually("none waits", async || host.metric("tenon_queued_requests").await == 0.0).await;
            drop(running);
            no_instance_is_left(&host).await;
        }
        drop(held(&host).await);
        no_instance_is_left(&host).await;
    });
}

#[test]
fn a_slow_reader_holds_no_instance_beyond_the_deadline() {
    run(async {
        let limits = "tool.tenon.limits = { deadline_ms = 500, response_body_mib = 1024 }";
        let setup = TestHost::of(app(&[p2(limits), good()]));
        let host = setup.config(|config| config.limits.response_body_mib = 1024).start().await;
        let mut stream = begin(&host, "GET /p2/endless HTTP/1.1\r\nhost: t\r\n\r\n").await;
        let mut first = [0; 15];
        stream.read_exact(&mut first).await.unwrap();
        assert_eq!(&first, b"HTTP/1.1 200 OK");
        no_instance_is_left(&host).await;
        is_well(&host).await;
        drop(stream);
    });
}

#[test]
fn an_answer_that_breaks_off_has_no_clean_end() {
    run(async {
        let limits = "tool.tenon.limits = { deadline_ms = 500, response_body_mib = 1024 }";
        let setup = TestHost::of(app(&[p2(limits), good()]));
        let host = setup.config(|config| config.limits.response_body_mib = 1024).start().await;
        let text = host.raw("GET /p2/endless HTTP/1.1\r\nhost: t\r\n\r\n").await;
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text:.200}");
        assert!(!text.ends_with("0\r\n\r\n"), "it ended as if it were whole");
        let broken = host.try_send(request(Method::GET, "/p2/endless", &[], "")).await;
        assert!(broken.is_err(), "it ended as if it were whole");
        no_instance_is_left(&host).await;
        is_well(&host).await;
    });
}

#[test]
fn a_trap_after_the_head_is_not_taken_for_an_answer() {
    run(async {
        let host = TestHost::of(app(&[p2("")])).start().await;
        for _ in 0..50 {
            // Where the head has not gone out yet, the caller is told; where it has, the connection breaks.
            match host.try_send(request(Method::GET, "/p2/trap-after-headers", &[], "")).await {
                Ok(answer) => drop(answer.problem(502, "guest-trapped")),
                Err(broken) => assert!(!broken.is_timeout(), "{broken}"),
            }
        }
        no_instance_is_left(&host).await;
    });
}

#[test]
fn a_function_sees_nothing_of_the_machine() {
    run(async {
        let host = TestHost::of(app(&[misbehave(""), p2(""), function("/p3/...", "p3", "http_p3", "")]))
            .start()
            .await;
        assert_eq!(told(&host, "env").await, "");
        assert_eq!(host.get("/p2/env").await.expect(200).text(), "");
        assert_eq!(host.get("/p3/env").await.expect(200).text(), "");
        assert_eq!(told(&host, "args").await, "");
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let connect = format!("connect:{}", listener.local_addr().unwrap());
        for behaviour in [
            "list:/",
            "list:.",
            "read:/etc/passwd",
            "read:spin.toml",
            "write:/tmp/tenon",
            "listen:127.0.0.1:0",
            &connect,
        ] {
            let text = told(&host, behaviour).await;
            assert!(text.starts_with("refused: "), "{behaviour}: {text}");
        }
        listener.set_nonblocking(true).unwrap();
        assert!(listener.accept().is_err(), "a connection came out of the sandbox");
    });
}

#[test]
fn files_are_there_to_be_read() {
    run(async {
        let files = "files = [\"labels.txt\", { source = \"more\", destination = \"/data\" }]";
        let setup = TestHost::of(app(&[misbehave(files)]));
        let host = setup
            .file("labels.txt", "seven")
            .file("more/deep/a.txt", "eleven bytes")
            .file("not.txt", "")
            .start()
            .await;
        assert_eq!(told(&host, "read:/labels.txt").await, "5 bytes");
        assert_eq!(told(&host, "read:labels.txt").await, "5 bytes");
        assert_eq!(told(&host, "read:/data/deep/a.txt").await, "12 bytes");
        assert_eq!(told(&host, "list:/data").await, "deep");
        for behaviour in [
            "write:/labels.txt",
            "write:/new.txt",
            "write:/data/deep/a.txt",
            "read:/not.txt",
            "read:/spin.toml",
            "read:/../labels.txt/../../etc/passwd",
            "read:/data/../../../../../../etc/passwd",
        ] {
            let text = told(&host, behaviour).await;
            assert!(text.starts_with("refused: "), "{behaviour}: {text}");
        }
        assert_eq!(std::fs::read_to_string(host.folder.path().join("labels.txt")).unwrap(), "seven");
    });
}

#[test]
fn a_function_gets_the_environment_that_it_was_given() {
    run(async {
        let environment = "environment = { MODE = \"fast\", LANG = \"de\" }";
        let host = TestHost::of(app(&[misbehave(environment), p2("")])).start().await;
        let mut env: Vec<_> = told(&host, "env").await.lines().map(str::to_owned).collect();
        env.sort();
        assert_eq!(env, ["LANG=de", "MODE=fast"]);
        assert_eq!(host.get("/p2/env").await.expect(200).text(), "", "the neighbour has none of it");
    });
}

#[test]
fn a_function_gets_its_variables_and_no_others() {
    run(async {
        let variables = "variables = { greeting = \"{{ word }}, {{ name }}!\" }\n\
                         [variables]\nword = { default = \"hello\" }\nname = { required = true, secret = true }\n";
        let p3 = function("/p3/...", "p3", "http_p3", variables);
        let refused = TestHost::of(app(std::slice::from_ref(&p3)))
            .try_start()
            .await
            .err()
            .expect("a variable has no value");
        assert!(refused.contains("`name`"), "{refused}");
        let host = TestHost::of(app(&[p3])).variable("name", "Anna").start().await;
        assert_eq!(host.get("/p3/variable?greeting").await.expect(200).text(), "hello, Anna!");
        for name in ["name", "Not-A-Name"] {
            let text = host.get(&format!("/p3/variable?{name}")).await.expect(200).text();
            assert!(text.starts_with("refused: ") && !text.contains("Anna"), "{text}");
        }
    });
}
