//! Pushes to registries, and to those that do not do as they should.

use super::hostile::Asked;
use super::*;

/// A store with an artifact of these layers.
async fn packed(bench: &Bench, layers: &[&[u8]]) -> ImageManifest {
    let blobs = bench.blobs();
    for bytes in layers.iter().chain(&[b"{}".as_slice()]) {
        blobs.put(bytes).unwrap();
    }
    manifest_of(layers)
}

async fn push(bench: &Bench, server: &Server, manifest: &ImageManifest) -> Result<Moved, RegistryError> {
    bench.registry().push(&server.reference("new"), manifest, &bench.blobs(), &bench.report()).await
}

fn of_uploads(server: &Server, method: &str) -> Vec<Asked> {
    let is_upload = |asked: &Asked| asked.method == method && asked.path.contains("/blobs/uploads/");
    server.asked().into_iter().filter(is_upload).collect()
}

#[tokio::test]
async fn only_what_a_registry_lacks_is_sent() {
    let (one, two) = (noise(700_000, 1), noise(1000, 2));
    let bench = Bench::new();
    let manifest = packed(&bench, &[&one, &two]).await;
    let server = Server::honest().await;
    let moved = push(&bench, &server, &manifest).await.unwrap();
    assert_eq!(moved, Moved { bytes: 701_002, present: 0, layers: 3 });
    assert_eq!(server.shelf.manifests.lock().unwrap()["new"], manifest.bytes());
    assert_eq!(server.shelf.blobs.lock().unwrap()[&Digest::of(&one)], one);
    // The manifest comes last.
    let last = server.asked().pop().unwrap();
    assert_eq!((last.method.as_str(), last.header("content-type")), ("PUT", MANIFEST));
    let again = push(&bench, &server, &manifest).await.unwrap();
    assert_eq!(again, Moved { bytes: 0, present: 701_002, layers: 0 });
    let three = noise(50, 3);
    let next = packed(&bench, &[&one, &two, &three]).await;
    let more = push(&bench, &server, &next).await.unwrap();
    assert_eq!(more, Moved { bytes: 50, present: 701_002, layers: 1 });
    let other = Bench::new();
    let pulled =
        other.registry().pull(&server.reference("new"), &other.blobs(), &Report::none()).await.unwrap();
    assert_eq!(pulled.manifest, next);
}

#[tokio::test]
async fn a_manifest_that_others_wrote_keeps_its_digest() {
    let bench = Bench::new();
    let manifest = packed(&bench, &[&noise(1000, 1)]).await;
    let mut other = serde_json::to_value(&manifest).unwrap();
    other["layers"][0]["urls"] = serde_json::json!(["https://elsewhere.example"]);
    let bytes = format!("{other:#}").into_bytes();
    let digest = bench.blobs().put(&bytes).unwrap();
    let server = Server::honest().await;
    let (registry, to) = (bench.registry(), server.reference("new"));
    registry.push_stored(&to, digest, &bench.blobs(), &Report::none()).await.unwrap();
    assert_eq!(server.shelf.manifests.lock().unwrap()["new"], bytes);
    let gone = registry.push_stored(&to, Digest::of(b"gone"), &bench.blobs(), &Report::none()).await;
    assert_says(gone.unwrap_err(), &["the manifest sha256:", "is not in the cache"]);
}

#[tokio::test]
async fn what_another_repository_has_is_mounted() {
    let layer = noise(1000, 1);
    let bench = Bench::new();
    let manifest = packed(&bench, &[&layer]).await;
    let server = Server::start(|asked, _| {
        let mounted = asked.path.contains("mount=") && asked.path.contains("from=acme%2Fmodel");
        mounted.then(|| Reply::new(201, ""))
    })
    .await;
    let sources: Vec<Reference> = ["acme/model:1", "acme/digits:1"]
        .iter()
        .map(|name| format!("{}/{name}", server.address).parse().unwrap())
        .chain(["other.io/acme/model".parse().unwrap()])
        .collect();
    let to = server.reference("new");
    let registry = bench.registry();
    let moved =
        registry.push_mounting(&to, &manifest, &bench.blobs(), &sources, &bench.report()).await.unwrap();
    assert_eq!(moved, Moved { bytes: 0, present: 1002, layers: 0 });
    assert_eq!(of_uploads(&server, "POST").len(), 2);
    assert!(bench.told().contains(&What::Mounted));
}

#[tokio::test]
async fn a_mount_that_fails_is_an_upload() {
    let layer = noise(1000, 1);
    let bench = Bench::new();
    let manifest = packed(&bench, &[&layer]).await;
    let server = Server::start(|asked, _| (asked.method == "DELETE").then(|| Reply::new(204, ""))).await;
    let source = [format!("{}/acme/model:1", server.address).parse().unwrap()];
    let (registry, to) = (bench.registry(), server.reference("new"));
    let moved =
        registry.push_mounting(&to, &manifest, &bench.blobs(), &source, &bench.report()).await.unwrap();
    assert_eq!(moved.bytes, 1002);
    // What it opened instead is closed again.
    assert_eq!(of_uploads(&server, "DELETE").len(), 2);
}

#[tokio::test]
async fn a_registry_that_takes_no_blob_whole_gets_it_in_chunks() {
    const WHOLE: usize = 16 << 20;
    for (status, more) in [(405, 0), (413, 1000), (501, 1)] {
        let layer = noise(WHOLE + more, 1);
        let bench = Bench::new();
        let manifest = packed(&bench, &[&layer]).await;
        let server = Server::start(move |asked, _| {
            let is_whole =
                asked.method == "PUT" && asked.path.contains("/uploads/") && asked.body.len() > 100;
            is_whole.then(|| Reply::new(status, ""))
        })
        .await;
        push(&bench, &server, &manifest).await.unwrap();
        let mut ranges =
            of_uploads(&server, "PATCH").into_iter().map(|asked| asked.header("content-range").to_owned());
        assert_eq!(ranges.next().as_deref(), Some("0-16777215"), "{status}");
        assert_eq!(ranges.next(), (more > 0).then(|| format!("16777216-{}", WHOLE + more - 1)), "{status}");
        assert_eq!(server.shelf.blobs.lock().unwrap()[&Digest::of(&layer)].len(), WHOLE + more);
    }
}

#[tokio::test]
async fn a_broken_upload_is_gone_on_with_where_the_registry_says() {
    let layer = noise(20 << 20, 1);
    let digest = Digest::of(&layer);
    let bench = Bench::new();
    let manifest = packed(&bench, &[&layer]).await;
    let server = Server::start(|asked, shelf| {
        let is_whole = asked.method == "PUT" && asked.path.contains("/uploads/") && asked.body.len() > 100;
        is_whole.then(|| {
            // It kept three MiB, and its answer is lost.
            let last = asked.path.split('?').next().unwrap().rsplit('/').next().unwrap();
            let number: usize = last.parse().unwrap();
            shelf.uploads.lock().unwrap().insert(number, asked.body[..3 << 20].to_vec());
            Reply::lost()
        })
    })
    .await;
    let moved = push(&bench, &server, &manifest).await.unwrap();
    assert_eq!(server.shelf.blobs.lock().unwrap()[&digest], layer);
    let ranges: Vec<_> =
        of_uploads(&server, "PATCH").iter().map(|asked| asked.header("content-range").to_owned()).collect();
    assert_eq!(ranges, ["3145728-19922943", "19922944-20971519"]);
    assert!(moved.bytes > (37 << 20), "{moved:?}");
}

#[tokio::test]
async fn an_upload_that_nobody_takes_is_given_up() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let deaf = listener.local_addr().unwrap();
    let layer = noise(32 << 20, 1);
    let mut bench = Bench::new();
    bench.options.settings.retries = 1;
    let manifest = packed(&bench, &[&layer]).await;
    let server = Server::start(move |asked, _| {
        (asked.method == "POST").then(|| Reply::new(202, "").header("location", format!("http://{deaf}/x")))
    })
    .await;
    let error = push(&bench, &server, &manifest).await.unwrap_err();
    assert_says(&error, &["broke during the push of layer `", "tried 2 times"]);
}

#[tokio::test]
async fn registries_that_refuse_a_push_are_quoted() {
    async fn check(answer: impl Fn(&Asked) -> Option<Reply> + Send + Sync + 'static, expected: &[&str]) {
        let layer = noise(1000, 1);
        let bench = Bench::new();
        let manifest = packed(&bench, &[&layer]).await;
        let server = Server::start(move |asked, _| answer(asked)).await;
        assert_says(push(&bench, &server, &manifest).await.unwrap_err(), expected);
    }
    let invalid = r#"{"errors": [{"code": "X", "message": "no"}, {"code": "Y"}]}"#;
    let is_put = |asked: &Asked, of: &str| asked.method == "PUT" && asked.path.contains(of);
    check(
        move |a| is_put(a, "/manifests/").then(|| Reply::new(400, invalid)),
        &["the push of `127", "with 400: no; Y"],
    )
    .await;
    check(
        move |a| is_put(a, "/uploads/").then(|| Reply::new(400, invalid)),
        &["the push of layer `", "with 400: no; Y"],
    )
    .await;
    let other = Digest::of(b"other");
    check(
        move |a| is_put(a, "/manifests/").then(|| Reply::new(201, "").header("docker-content-digest", other)),
        &["came with the digest", "changed it"],
    )
    .await;
    check(
        move |a| is_put(a, "/uploads/").then(|| Reply::new(201, "").header("docker-content-digest", other)),
        &["it took it for sha256:"],
    )
    .await;
    check(|a| (a.method == "POST").then(|| Reply::new(202, "")), &["no address where the upload goes on"])
        .await;
    check(|a| (a.method == "POST").then(|| Reply::new(403, "")), &["lets nobody push to `acme/digits`"])
        .await;
    check(|a| (a.method == "HEAD").then(|| Reply::new(500, "")), &["with 500", "tried 4"]).await;
}

#[tokio::test]
async fn what_is_not_in_the_store_cannot_be_pushed() {
    let bench = Bench::new();
    let manifest = manifest_of(&[b"missing"]);
    let server = Server::honest().await;
    assert_says(
        push(&bench, &server, &manifest).await.unwrap_err(),
        &["is not in the cache", "package or pull"],
    );
    let mut lying = packed(&bench, &[b"abc"]).await;
    lying.layers[0].size = 5;
    assert_says(push(&bench, &server, &lying).await.unwrap_err(), &["it has 3 bytes, and 5 in the manifest"]);
    let wrong = server.reference("x").at(Digest::of(b"other"));
    let error = bench.registry().put_manifest(&wrong, MANIFEST, b"{}").await.unwrap_err();
    assert_says(&error, &["came with the digest"]);
}
