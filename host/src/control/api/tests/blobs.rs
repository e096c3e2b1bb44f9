//! Blobs on their way in.

use super::*;
use crate::control::client::Content;
use places::UPLOADS_OF_ONE;

fn sink() -> &'static (dyn Fn(u64) + Sync) {
    &|_| {}
}

#[tokio::test]
async fn a_blob_is_taken_whole_from_memory_and_from_a_file() {
    let host = host().await;
    let large: Vec<u8> = (0..5_000_000_u32).map(|n| (n % 251) as u8).collect();
    let file = host.folder.path().join("large");
    std::fs::write(&file, &large).unwrap();
    for client in [host.client(DEPLOY), host.local()] {
        for (bytes, content) in [
            (&b""[..], Content::Bytes(Bytes::new())),
            (b"small", Content::Bytes(Bytes::from_static(b"small"))),
            (&large, Content::File(file.clone())),
        ] {
            let digest = Digest::of(bytes);
            client.put_blob(&digest, &content, sink()).await.unwrap();
            assert!(client.has_blob(&digest).await.unwrap());
            assert_eq!(host.fake.blobs.read(&digest, 10 << 20).unwrap().unwrap(), bytes);
            // Once more is as well.
            client.put_blob(&digest, &content, sink()).await.unwrap();
        }
        assert!(!client.has_blob(&Digest::of(b"another")).await.unwrap());
    }
    let error = host.client(READ).has_blob(&Digest::of(b"small")).await.unwrap_err();
    assert_eq!(error.refusal().unwrap().status, 403);
    let missing = Content::File(host.folder.path().join("missing"));
    let error = host.client(DEPLOY).put_blob(&Digest::of(b"x"), &missing, sink()).await.unwrap_err();
    assert!(matches!(error, ClientError::File { .. }), "{error}");
}

#[tokio::test]
async fn what_is_not_as_it_says_is_not_taken() {
    let host = host_with(|_| {}, Waits { blob: Duration::from_millis(100), ..WAITS }).await;
    let digest = Digest::of(b"0123456789");
    let check = async |rest: &str, expected: (u16, &str)| {
        let (status, answer) = host.ask(&format!("PUT /v1/blobs/{digest}"), DEPLOY, rest).await;
        assert_eq!((status, named(&answer).as_str()), expected, "{rest}");
        assert!(!host.local().has_blob(&digest).await.unwrap());
    };
    check("content-length: 10\r\n\r\n012345678x", (422, "digest-mismatch")).await;
    check("content-length: 8388609\r\n\r\n", (413, "too-large")).await;
    check("content-length: 9\r\n\r\n012345678", (422, "digest-mismatch")).await;
    check("transfer-encoding: chunked\r\n\r\na\r\n0123456789\r\n0\r\n\r\n", (411, "length-required")).await;
    check("content-length: 10\r\n\r\n01234", (408, "slow-body")).await;
    let (status, _) = host.ask("PUT /v1/blobs/sha256:1234", DEPLOY, "content-length: 0\r\n").await;
    assert_eq!(status, 404);
    let content = Content::Bytes(Bytes::from_static(b"0123456789"));
    host.client(DEPLOY).put_blob(&digest, &content, sink()).await.unwrap();
    let rest = "content-length: 9\r\n\r\n012345678";
    assert_eq!(host.ask(&format!("PUT /v1/blobs/{digest}"), DEPLOY, rest).await.0, 422);
}

#[tokio::test]
async fn a_blob_that_broke_off_goes_on_and_a_damaged_start_is_no_ones_fault() {
    let host = host().await;
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 247) as u8).collect();
    let digest = Digest::of(&bytes);
    let partial = host.folder.path().join("cache/partial").join(digest.hex());
    let break_off = async |bytes: &[u8]| {
        let mut stream = TcpStream::connect(host.address()).await.unwrap();
        let head = format!(
            "PUT /v1/blobs/{digest} HTTP/1.1\r\nhost: h\r\nauthorization: Bearer {DEPLOY}\r\n\
             content-length: 3000000\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(&bytes[..2_500_000]).await.unwrap();
        until(|| partial.metadata().is_ok_and(|file| file.len() >= 2 << 20)).await;
        drop(stream);
        until(|| host.listening.calls_under_way() == 0).await;
        assert!(partial.metadata().unwrap().len() >= 2 << 20);
    };
    break_off(&bytes).await;
    let content = Content::Bytes(bytes.clone().into());
    host.client(DEPLOY).put_blob(&digest, &content, sink()).await.unwrap();
    std::fs::remove_file(host.fake.blobs.path(&digest)).unwrap();
    break_off(&vec![7; 3_000_000]).await;
    // The client sends it again by itself.
    host.client(DEPLOY).put_blob(&digest, &content, sink()).await.unwrap();
    assert_eq!(host.fake.blobs.read(&digest, 10 << 20).unwrap().unwrap(), bytes);
}

#[tokio::test]
async fn blobs_that_never_come_whole_keep_nobody_from_a_rollback() {
    let host = host().await;
    let begin = async |n: usize| {
        let digest = Digest::of(&n.to_le_bytes());
        let mut stream = TcpStream::connect(host.address()).await.unwrap();
        let head = format!(
            "PUT /v1/blobs/{digest} HTTP/1.1\r\nhost: h\r\nauthorization: Bearer {DEPLOY}\r\n\
             content-length: 1000\r\n\r\nx"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        stream
    };
    let mut sending = Vec::new();
    for n in 0..UPLOADS_OF_ONE {
        sending.push(begin(n).await);
    }
    until(|| host.listening.calls_under_way() == UPLOADS_OF_ONE).await;
    let mut one_more = begin(UPLOADS_OF_ONE).await;
    let mut answer = vec![0; 4096];
    let length = one_more.read(&mut answer).await.unwrap();
    let answer = String::from_utf8_lossy(&answer[..length]);
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("the share of one caller"), "{answer}");
    // Others can send theirs, and commands are not concerned at all.
    for client in [host.client(DEPLOY), host.local()] {
        client.rollback("digits", &Command::default()).await.unwrap();
    }
    let content = Content::Bytes(Bytes::from_static(b"small"));
    host.local().put_blob(&Digest::of(b"small"), &content, sink()).await.unwrap();
    drop(sending);
    until(|| host.listening.calls_under_way() == 0).await;
    host.client(DEPLOY).put_blob(&Digest::of(b"small"), &content, sink()).await.unwrap();
}
