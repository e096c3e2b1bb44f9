//! The end of a host: what runs is finished, what is new is refused, and the exit code tells.

use rustix::process::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::{Program, TestHost, app, eventually, exchange, function, request, rest, run, until};
use crate::request::STATIC;

fn both() -> String {
    app(&[STATIC.to_owned(), function("/p2/...", "p2", "http_p2", "")])
}

/// A folder with the app.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("spin.toml"), both()).unwrap();
    folder
}

/// A call that runs until its body is ended by [`finish`].
async fn running(address: std::net::SocketAddr) -> TcpStream {
    let head = "POST /p2/echo HTTP/1.1\r\nhost: t\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n";
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    until(&mut stream, |text| text.contains("hi")).await;
    stream
}

/// What is left of the answer, up to the end of its connection.
async fn finish(stream: &mut TcpStream) -> String {
    stream.write_all(b"3\r\nend\r\n0\r\n\r\n").await.unwrap();
    rest(stream).await
}

async fn refuses(address: std::net::SocketAddr) {
    eventually("no connection is taken", async || TcpStream::connect(address).await.is_err()).await;
}

#[test]
fn a_drain_finishes_what_runs_and_takes_nothing_new() {
    run(async {
        let host = TestHost::of(both()).start().await;
        let address = host.host.http;
        let mut kept = TcpStream::connect(address).await.unwrap();
        eventually("it is accepted", async || host.metric("tenon_connections").await == 1.0).await;
        let mut call = running(address).await;
        let stopped = tokio::spawn(host.stop());
        refuses(address).await;
        assert_eq!(rest(&mut kept).await, "", "a connection without a request is closed");
        assert!(!stopped.is_finished());
        assert_eq!(finish(&mut call).await, "3\r\nend\r\n0\r\n\r\n");
        assert!(stopped.await.unwrap(), "all of it had ended");
    });
}

#[test]
fn a_drain_does_not_wait_without_end() {
    run(async {
        let host = TestHost::of(both()).config(|config| config.limits.drain_ms = 50).start().await;
        let call = running(host.host.http).await;
        assert!(!host.stop().await, "not all had ended");
        drop(call);
    });
}

#[test]
fn a_signal_stops_the_program_in_order() {
    run(async {
        for signal in [Signal::TERM, Signal::INT] {
            let folder = folder();
            let mut program = Program::start(folder.path(), "").await;
            let address = program.address;
            exchange(address, request(http::Method::GET, "/static", &[], "")).await.unwrap().expect(200);
            let mut call = running(address).await;
            program.signal(signal);
            program.says("Stopping").await;
            refuses(address).await;
            assert_eq!(finish(&mut call).await, "3\r\nend\r\n0\r\n\r\n");
            let (code, said) = program.ended().await;
            assert_eq!(code, Some(0), "{said}");
        }
    });
}

#[test]
fn a_second_signal_stops_at_once() {
    run(async {
        let folder = folder();
        let mut program = Program::start(folder.path(), "").await;
        let mut call = running(program.address).await;
        program.signal(Signal::TERM);
        program.says("Stopping").await;
        program.signal(Signal::TERM);
        let (code, said) = program.ended().await;
        assert_eq!(code, Some(1), "{said}");
        assert!(!rest(&mut call).await.ends_with("0\r\n\r\n"));
    });
}

#[test]
fn a_drain_that_takes_too_long_is_told() {
    run(async {
        let folder = folder();
        let program = Program::start(folder.path(), "[limits]\ndrain_ms = 50").await;
        let call = running(program.address).await;
        program.signal(Signal::TERM);
        let (code, said) = program.ended().await;
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("had not ended"), "{said}");
        drop(call);
    });
}

#[test]
fn the_access_log_has_a_line_for_each_request() {
    run(async {
        let folder = folder();
        let mut program = Program::start(folder.path(), "[log]\naccess = true").await;
        for (path, id) in
            [("/static", "one"), ("/p2/hello", "two"), ("/p2/trap", "three"), ("/nowhere", "four\"")]
        {
            let headers = [("x-request-id", id)];
            exchange(program.address, request(http::Method::GET, path, &headers, "")).await.unwrap();
        }
        program.signal(Signal::TERM);
        let mut log = String::new();
        program.process.stdout.take().unwrap().read_to_string(&mut log).await.unwrap();
        let lines: Vec<serde_json::Value> =
            log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let ids: Vec<_> = lines.iter().map(|line| line["request_id"].as_str().unwrap()).collect();
        assert_eq!(&ids[..3], ["one", "two", "three"], "{log}");
        assert_eq!((lines.len(), ids[3].len()), (4, 16), "{log}");
        assert_eq!((&lines[1]["function"], &lines[1]["status"]), (&"app/p2".into(), &200.into()));
        assert_eq!((&lines[2]["error"], &lines[2]["status"]), (&"guest-trapped".into(), &502.into()));
        assert_eq!(program.ended().await.0, Some(0));
    });
}
