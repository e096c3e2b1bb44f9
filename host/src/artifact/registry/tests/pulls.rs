//! Pulls from registries that do not do as they should.

use super::hostile::{Asked, Shelf, part};
use super::*;

const LAYER: usize = 300_000;

fn reply_for(asked: &Asked, digest: Digest, reply: impl FnOnce() -> Reply) -> Option<Reply> {
    (asked.is_blob() && asked.path.contains(&digest.to_string())).then(reply)
}

#[tokio::test]
async fn an_artifact_is_pulled_once() {
    let (one, two) = (noise(LAYER, 1), noise(1000, 2));
    let manifest = manifest_of(&[&one, &two, &one]);
    let server = Server::honest().await;
    let digest = server.put(&manifest, &[&one, &two]);
    let bench = Bench::new();
    let pulled = bench.pull(&server).await.unwrap();
    assert_eq!((pulled.digest, &pulled.manifest), (digest, &manifest));
    let all = (LAYER + 1000 + 2) as u64;
    assert_eq!(pulled.moved, Moved { bytes: all, present: 0, layers: 3 });
    assert_eq!(bench.blobs().read(&Digest::of(&one), LAYER as u64).unwrap().unwrap(), one);
    assert_eq!(bench.blobs().read(&digest, 10_000).unwrap().unwrap(), manifest.bytes());
    let name = server.reference("latest").to_string();
    assert_eq!(bench.blobs().remembered(&name).unwrap(), Some(digest));
    let again = bench.pull(&server).await.unwrap();
    assert_eq!(again.moved, Moved { bytes: 0, present: all, layers: 0 });
    assert_eq!(bench.told().iter().filter(|what| **what == What::Present).count(), 3);
    assert_eq!(bench.told().iter().filter(|what| **what == What::Done).count(), 3);
}

#[tokio::test]
async fn a_broken_connection_is_gone_on_with() {
    let layer = noise(LAYER, 1);
    let digest = Digest::of(&layer);
    let bytes = layer.clone();
    let server = Server::start(move |asked, _| {
        reply_for(asked, digest, || match asked.times {
            0 => Reply::new(200, &*bytes).cut(100_000),
            1 => part(&bytes, asked.header("range")).cut(50_000),
            _ => part(&bytes, asked.header("range")),
        })
    })
    .await;
    server.put(&manifest_of(&[&layer]), &[&layer]);
    let bench = Bench::new();
    let pulled = bench.pull(&server).await.unwrap();
    assert_eq!(server.of_blobs(&digest, "range"), ["", "bytes=100000-", "bytes=150000-"]);
    assert_eq!(pulled.moved.bytes, LAYER as u64 + 2);
    let again: Vec<_> = bench.told().into_iter().filter(|what| matches!(what, What::Again { .. })).collect();
    assert_eq!(again.len(), 2, "{again:?}");
}

#[tokio::test]
async fn another_command_goes_on_where_one_was_given_up() {
    let layer = noise(LAYER, 1);
    let digest = Digest::of(&layer);
    let bytes = layer.clone();
    let broken = Server::start(move |asked, _| {
        reply_for(asked, digest, || match asked.times {
            0 => Reply::new(200, &*bytes).cut(100_000),
            _ => Reply::new(503, ""),
        })
    })
    .await;
    broken.put(&manifest_of(&[&layer]), &[&layer]);
    let mut bench = Bench::new();
    bench.options.settings.transfers = 1;
    let error = bench.pull(&broken).await.unwrap_err();
    assert_says(
        &error,
        &["answered the transfer of layer `l0.bin`", "with 503", "tried 4 times", "goes on from there"],
    );
    let whole = Server::honest().await;
    whole.put(&manifest_of(&[&layer]), &[&layer]);
    let pulled = bench.pull(&whole).await.unwrap();
    assert_eq!(whole.of_blobs(&digest, "range"), ["bytes=100000-"]);
    assert_eq!(pulled.moved, Moved { bytes: 200_000, present: 100_002, layers: 1 });
}

#[tokio::test]
async fn a_whole_answer_to_a_range_is_skipped_into() {
    let layer = noise(LAYER, 1);
    let digest = Digest::of(&layer);
    let bytes = layer.clone();
    let server = Server::start(move |asked, _| {
        reply_for(asked, digest, || match asked.times {
            0 => Reply::new(200, &*bytes).cut(100_000),
            _ => Reply::new(200, &*bytes),
        })
    })
    .await;
    server.put(&manifest_of(&[&layer]), &[&layer]);
    let pulled = Bench::new().pull(&server).await.unwrap();
    assert_eq!(server.of_blobs(&digest, "range"), ["", "bytes=100000-"]);
    assert_eq!(pulled.moved.bytes, 400_002);
}

#[tokio::test]
async fn another_part_than_was_asked_for_is_not_taken() {
    for range in ["bytes 0-299999/300000", "bytes 99999-299999/300000", "bytes 100000-300000/300000", "x", ""]
    {
        let layer = noise(LAYER, 1);
        let digest = Digest::of(&layer);
        let bytes = layer.clone();
        let server = Server::start(move |asked, _| {
            reply_for(asked, digest, || match asked.times {
                0 => Reply::new(200, &*bytes).cut(100_000),
                1 => Reply::new(206, &bytes[100_000..]).header("content-range", range),
                _ => Reply::new(200, &*bytes),
            })
        })
        .await;
        server.put(&manifest_of(&[&layer]), &[&layer]);
        Bench::new().pull(&server).await.unwrap();
        assert_eq!(server.of_blobs(&digest, "range"), ["", "bytes=100000-", ""], "{range}");
    }
}

#[tokio::test]
async fn a_stall_is_a_broken_connection() {
    let layer = noise(LAYER, 1);
    let digest = Digest::of(&layer);
    let bytes = layer.clone();
    let server = Server::start(move |asked, _| {
        reply_for(asked, digest, || match asked.times {
            0 => Reply::new(200, &*bytes).stall(100_000),
            _ => part(&bytes, asked.header("range")),
        })
    })
    .await;
    server.put(&manifest_of(&[&layer]), &[&layer]);
    let bench = Bench::new();
    bench.pull(&server).await.unwrap();
    assert_eq!(server.of_blobs(&digest, "range"), ["", "bytes=100000-"]);
    let said = bench.told().into_iter().find_map(|what| match what {
        What::Again { reason, .. } => Some(reason),
        _ => None,
    });
    assert_says(said.unwrap(), &["next to nothing came for 0.3 s"]);
}

#[tokio::test]
async fn a_registry_that_trickles_is_not_waited_for_and_what_came_is_kept() {
    let layer = noise(LAYER, 1);
    let digest = Digest::of(&layer);
    let bytes = layer.clone();
    // Enough not to count as broken, and too little altogether.
    let pause = Duration::from_millis(200);
    let server = Server::start(move |asked, _| {
        reply_for(asked, digest, || match asked.times {
            0 => Reply::new(200, &*bytes).trickle(4096, pause),
            _ => part(&bytes, asked.header("range")),
        })
    })
    .await;
    server.put(&manifest_of(&[&layer]), &[&layer]);
    let mut bench = Bench::new();
    bench.options.grace = Duration::ZERO;
    bench.options.settings.stall_ms = 400;
    let error = bench.pull(&server).await.unwrap_err();
    assert!(error.is_unreachable());
    assert_says(error, &["with less than 32 KiB/s altogether", "`registry.stall_ms`", "goes on from there"]);
    // Another try at once would be as slow.
    assert_eq!(server.of_blobs(&digest, "range"), [""]);
    let [kept] = bench.partial()[..] else { panic!("one part") };
    assert!((4096..LAYER as u64).contains(&kept), "{kept}");
    bench.pull(&server).await.unwrap();
    assert_eq!(server.of_blobs(&digest, "range"), [String::new(), format!("bytes={kept}-")]);
}

#[tokio::test]
async fn a_manifest_is_bounded_with_all_its_attempts() {
    let server = Server::start(|asked, _| {
        asked.is_manifest().then(|| Reply::new(200, vec![b'{'; 100_000]).stall(5000))
    })
    .await;
    let mut bench = Bench::new();
    bench.options.settings.retries = 100;
    bench.options.whole = Duration::from_millis(1500);
    let error = bench.pull(&server).await.unwrap_err();
    assert!(error.is_unreachable());
    assert_says(error, &["within 1 s, all attempts together", "`registry.retries`"]);
    assert!(server.asked().len() > 1);
}

/// Pulls a layer of this content whose requests `answer` has answered, and looks at the error.
async fn check(answer: impl Fn(&Asked, &[u8]) -> Reply + Send + Sync + 'static, expected: &[&str]) -> Bench {
    let layer = noise(LAYER, 1);
    let digest = Digest::of(&layer);
    let bytes = layer.clone();
    let server = Server::start(move |asked, _| reply_for(asked, digest, || answer(asked, &bytes))).await;
    server.put(&manifest_of(&[&layer]), &[&layer]);
    let bench = Bench::new();
    let error = bench.pull(&server).await.unwrap_err();
    let host = format!("`{}`", server.address);
    assert_says(&error, &["layer `l0.bin` (sha256:", &host]);
    assert_says(&error, expected);
    assert!(bench.blobs().get(&digest).unwrap().is_none());
    let name = server.reference("latest").to_string();
    assert_eq!(bench.blobs().remembered(&name).unwrap(), None);
    assert!(bench.told().contains(&What::Failed));
    bench
}

#[tokio::test]
async fn layers_that_are_not_what_the_manifest_says_are_refused() {
    let bench = check(|_, bytes| Reply::new(200, noise(bytes.len(), 9)), &["has the digest sha256:"]).await;
    // What came beside it, the config's two bytes, may be left where it was.
    assert!(bench.partial().iter().all(|bytes| *bytes == 2), "{:?}", bench.partial());
    check(|_, bytes| Reply::new(200, &bytes[..1000]), &["has 1000 bytes at the registry", "300000 bytes in"])
        .await;
    check(|_, bytes| Reply::new(200, &bytes[..1000]).unannounced(), &["bytes at the registry", "tried 4"])
        .await;
    check(|_, bytes| Reply::new(200, [bytes, b"x"].concat()), &["has 300001 bytes at the registry"]).await;
    check(|_, bytes| Reply::new(200, bytes).endless(), &["has more at the registry"]).await;
    check(|_, _| Reply::new(404, ""), &["is not at the registry", "push it again"]).await;
    check(|_, _| Reply::new(500, "x"), &["with 500", "tried 4 times"]).await;
    check(|_, _| Reply::new(418, "x\u{1b}"), &["with 418: x?"]).await;
    let page = "<html>log in</html>";
    check(move |_, _| Reply::new(200, page), &["has 19 bytes at the registry"]).await;
    check(|_, bytes| part(bytes, "bytes=0-"), &["another part than it was asked for"]).await;
}

#[tokio::test]
async fn a_registry_that_always_breaks_is_given_up() {
    let bench = check(|_, bytes| Reply::new(200, bytes).cut(0), &["broke during", "tried 4 times"]).await;
    assert_eq!(bench.told().iter().filter(|what| matches!(what, What::Again { .. })).count(), 3);
}

#[tokio::test]
async fn a_part_that_was_wrong_before_is_replaced() {
    let layer = noise(LAYER, 1);
    let digest = Digest::of(&layer);
    let liar = Server::start(move |asked, _| {
        reply_for(asked, digest, || match asked.times {
            0 => Reply::new(200, noise(LAYER, 9)).cut(100_000),
            _ => Reply::new(503, ""),
        })
    })
    .await;
    liar.put(&manifest_of(&[&layer]), &[&layer]);
    let bench = Bench::new();
    bench.pull(&liar).await.unwrap_err();
    let honest = Server::honest().await;
    honest.put(&manifest_of(&[&layer]), &[&layer]);
    bench.pull(&honest).await.unwrap();
    assert_eq!(honest.of_blobs(&digest, "range"), ["bytes=100000-", ""]);
}

#[tokio::test]
async fn layers_are_fetched_several_at_once() {
    let layers: Vec<_> = (0..6).map(|seed| noise(1000, seed + 1)).collect();
    let parts: Vec<&[u8]> = layers.iter().map(Vec::as_slice).collect();
    let server = Server::start(|asked, _| asked.is_blob().then(|| Reply::new(200, [0; 100]).stall(10))).await;
    server.put(&manifest_of(&parts), &parts);
    let mut bench = Bench::new();
    bench.options.settings.transfers = 3;
    bench.options.settings.stall_ms = 60_000;
    let (registry, blobs, reference) = (bench.registry(), bench.blobs(), server.reference("latest"));
    let pull = tokio::spawn(async move { registry.pull(&reference, &blobs, &Report::none()).await });
    let asked = || server.asked().iter().filter(|asked| asked.is_blob()).count();
    // A lie about the length ends each at once; what is seen is that they began before one ended.
    hostile::until(|| asked() >= 3 || pull.is_finished()).await;
    pull.abort();
}

#[tokio::test]
async fn what_is_too_large_is_refused_before_anything_is_fetched() {
    let layer = noise(100, 1);
    let mut manifest = manifest_of(&[&layer]);
    manifest.layers[0].size = 5 << 20;
    let server = Server::honest().await;
    server.put(&manifest, &[&layer]);
    let mut bench = Bench::new();
    bench.options.settings.max_artifact_mib = 4;
    let error = bench.pull(&server).await.unwrap_err();
    assert_says(&error, &["6 MiB", "more than the 4", "registry.max_artifact_mib"]);
    assert!(server.asked().iter().all(|asked| !asked.is_blob()));
    manifest.layers[0].size = u64::MAX;
    manifest.layers.push(manifest.layers[0].clone());
    manifest.layers[1].digest = Digest::of(b"other");
    server.put(&manifest, &[&layer]);
    assert_says(bench.pull(&server).await.unwrap_err(), &["registry.max_artifact_mib"]);
}

#[tokio::test]
async fn manifests_that_are_none_are_told_apart() {
    async fn check(
        answer: impl Fn(&Asked, &Shelf) -> Option<Reply> + Send + Sync + 'static,
        expected: &[&str],
    ) {
        let server = Server::start(move |asked, shelf| match asked.is_manifest() {
            true => answer(asked, shelf),
            false => None,
        })
        .await;
        server.shelf.manifests.lock().unwrap().insert("v1".to_owned(), Vec::new());
        assert_says(Bench::new().pull(&server).await.unwrap_err(), expected);
    }
    check(
        |_, _| None,
        &["there is no `127.0.0.1:", "acme/digits:latest`", "the tags of `acme/digits` are `v1`"],
    )
    .await;
    let page =
        |status| Reply::new(status, "<html>\u{1b}</html>").header("content-type", "text/html; charset=x");
    check(move |_, _| Some(page(200)), &["a web page", "the registry's name?"]).await;
    check(move |_, _| Some(page(404)), &["a web page, status 404", "the registry's name?"]).await;
    check(|_, _| Some(Reply::new(200, "hello")), &["what is no JSON"]).await;
    check(|_, _| Some(Reply::new(200, "{}")), &["cannot be read", "not an OCI image manifest"]).await;
    check(|_, _| Some(Reply::new(200, " ".repeat(5 << 20))), &["has more than 4194304 bytes"]).await;
    check(|_, _| Some(Reply::new(200, "x".repeat(1000)).endless()), &["has more than 4194304 bytes"]).await;
    let index = format!(
        r#"{{"schemaVersion": 2, "manifests": [{{"digest": "{}", "platform": {{"os": "linux", "architecture": "amd64"}}}}]}}"#,
        Digest::of(b"x")
    );
    let entry = format!("{} (linux/amd64)", Digest::of(b"x"));
    check(move |_, _| Some(Reply::new(200, &*index)), &["is an index of several artifacts", &entry]).await;
    let wrong = Digest::of(b"other");
    check(
        move |_, _| Some(Reply::new(200, "{}").header("docker-content-digest", wrong)),
        &["came with the digest", "changed it"],
    )
    .await;
    check(|_, _| Some(Reply::new(200, "{}").stall(0)), &["broke during the request for", "tried 4 times"])
        .await;
}

#[tokio::test]
async fn a_digest_in_the_reference_decides() {
    let layer = noise(100, 1);
    let manifest = manifest_of(&[&layer]);
    let server = Server::honest().await;
    let digest = server.put(&manifest, &[&layer]);
    let bench = Bench::new();
    let right = server.reference("gone").at(digest);
    assert_eq!(bench.registry().manifest(&right).await.unwrap().0, digest);
    let other = Digest::of(b"other");
    server.shelf.manifests.lock().unwrap().insert(other.to_string(), manifest.bytes());
    let error = bench.registry().manifest(&right.at(other)).await.unwrap_err();
    assert_says(&error, &["came with the digest", &other.to_string()]);
}

#[tokio::test]
async fn a_registry_that_asks_to_wait_is_waited_for_within_reason() {
    let busy = |wait: &'static str| {
        Server::start(move |asked, _| {
            (asked.is_manifest() && asked.times == 0).then(|| Reply::new(429, "").header("retry-after", wait))
        })
    };
    let layer = noise(100, 1);
    let server = busy("0").await;
    server.put(&manifest_of(&[&layer]), &[&layer]);
    Bench::new().pull(&server).await.unwrap();
    let server = busy("3600").await;
    assert_says(Bench::new().pull(&server).await.unwrap_err(), &["is busy and asks to wait 3600 s"]);
}

#[tokio::test]
async fn nobody_listening_is_told_at_once() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let reference: Reference = format!("{}/a:b", listener.local_addr().unwrap()).parse().unwrap();
    drop(listener);
    let error = Bench::new().registry().manifest(&reference).await.unwrap_err();
    assert_says(&error, &["cannot be reached", "refused"]);
}

#[tokio::test]
async fn existence_and_tags_are_asked_for() {
    let layer = noise(100, 1);
    let server = Server::honest().await;
    let digest = server.put(&manifest_of(&[&layer]), &[&layer]);
    let registry = Bench::new().registry();
    assert_eq!(registry.exists(&server.reference("latest")).await.unwrap(), Some(digest));
    assert_eq!(registry.exists(&server.reference("other")).await.unwrap(), None);
    assert_eq!(registry.tags(&server.reference("other")).await.unwrap(), ["latest"]);
    let mute = Server::start(|asked, shelf| {
        let bytes = shelf.manifests.lock().unwrap().get("latest").cloned();
        asked.path.ends_with("latest").then(|| Reply::new(200, bytes.unwrap()))
    })
    .await;
    mute.put(&manifest_of(&[&layer]), &[&layer]);
    assert_eq!(registry.exists(&mute.reference("latest")).await.unwrap(), Some(digest));
}
