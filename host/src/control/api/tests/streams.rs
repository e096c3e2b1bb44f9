//! What is told while a revision is made ready.

use super::*;
use places::PREPARING;

/// Begins to ask, and answers with the open connection once the head of the answer has come.
async fn begin(host: &Host, reference: &str) -> TcpStream {
    let body = serde_json::to_string(&prepare(reference)).unwrap();
    let head = format!(
        "POST /v1/revisions HTTP/1.1\r\nhost: h\r\nauthorization: Bearer {DEPLOY}\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut stream = TcpStream::connect(host.address()).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut start = [0; 12];
    stream.read_exact(&mut start).await.unwrap();
    assert_eq!(&start, b"HTTP/1.1 200");
    stream
}

#[tokio::test]
async fn each_line_comes_when_it_is_said_and_empty_ones_between() {
    let host = host_with(|_| {}, Waits { heartbeat: Duration::from_millis(20), ..WAITS }).await;
    let mut stream = begin(&host, "slow").await;
    let mut text = String::new();
    while !text.contains("\"begun\"") || text.matches("\r\n\n\r\n").count() < 3 {
        let mut bytes = [0; 1024];
        let length = stream.read(&mut bytes).await.unwrap();
        text += std::str::from_utf8(&bytes[..length]).unwrap();
    }
    assert!(text.contains("content-type: application/x-ndjson"), "{text}");
    assert!(!text.contains("ready"), "{text}");
    host.fake.gate.add_permits(1);
    while !text.contains("\r\n0\r\n\r\n") {
        let mut bytes = [0; 1024];
        let length = stream.read(&mut bytes).await.unwrap();
        text += std::str::from_utf8(&bytes[..length]).unwrap();
    }
    let last = text.lines().rfind(|line| line.starts_with('{')).unwrap();
    let last: Progress = serde_json::from_str(last).unwrap();
    assert!(matches!(last, Progress::Ready { .. }), "{last:?}");
}

#[tokio::test]
async fn what_fails_is_the_last_line() {
    let host = host().await;
    for (reference, expected) in [("missing", "app-not-found"), ("panics", "internal")] {
        let error = host.client(DEPLOY).prepare(&prepare(reference), |_| {}).await.unwrap_err();
        assert_eq!(refused(&error), expected);
    }
}

#[tokio::test]
async fn a_revision_is_made_though_its_caller_leaves_or_reads_nothing() {
    let host = host().await;
    drop(begin(&host, "slow").await);
    tokio::time::sleep(Duration::from_millis(50)).await;
    host.fake.gate.add_permits(1);
    until(|| host.listening.calls_under_way() == 0).await;
    assert_eq!(host.fake.done(), ["prepare slow:1 by the token `deployer`"]);
    let behind = begin(&host, "chatty").await;
    until(|| host.listening.calls_under_way() == 0).await;
    assert_eq!(host.fake.done(), ["prepare chatty:1 by the token `deployer`"]);
    drop(behind);
}

#[tokio::test]
async fn only_so_many_are_made_at_once() {
    let host = host().await;
    let mut callers = Vec::new();
    for _ in 0..PREPARING {
        callers.push(begin(&host, "slow").await);
    }
    let error = host.client(DEPLOY).prepare(&prepare("ok"), |_| {}).await.unwrap_err();
    assert_eq!(refused(&error), "overloaded");
    tokio::time::sleep(Duration::from_millis(50)).await;
    host.fake.gate.add_permits(PREPARING as usize);
    until(|| host.listening.calls_under_way() == 0).await;
    host.client(DEPLOY).prepare(&prepare("ok"), |_| {}).await.unwrap();
}

#[tokio::test]
async fn a_client_says_when_a_stream_ends_too_early_or_is_none() {
    let check = async |answer: &'static str, expected: &str| {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to: To = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let serving = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 4096]).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
            stream.shutdown().await.unwrap();
        };
        let client = Client::new(&to, None).unwrap();
        let prepare = prepare("ok");
        let (error, ()) = tokio::join!(client.prepare(&prepare, |_| {}), serving);
        let error = error.unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert!(!error.contains('\u{1b}'), "{error}");
    };
    check(
        "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{\"event\":\"begun\",\"step\":\"x\"}\n",
        "ended too early",
    )
    .await;
    check("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n<html>\n", "otherwise than a Tenon host").await;
    check("HTTP/1.1 502 Bad\r\nconnection: close\r\n\r\n\u{1b}[2J<html>", "is it the control address?").await;
    check(
        "HTTP/1.1 307 X\r\nlocation: http://127.0.0.1:1/\r\nconnection: close\r\n\r\n",
        "is it the control",
    )
    .await;
    check("nonsense\r\n\r\n", "the connection broke").await;
}
