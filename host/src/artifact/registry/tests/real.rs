//! Debian's docker-registry, with skopeo as an independent reader.

use std::process::{Child, Command, Stdio};

use super::*;

/// A registry in a folder, on a port of its own; it ends with this.
struct Real {
    child: Child,
    address: String,
    folder: tempfile::TempDir,
}

impl Drop for Real {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Real {
    /// `None` where it is not installed and nobody demands it.
    async fn start() -> Option<Real> {
        let folder = tempfile::tempdir().unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let address = format!("127.0.0.1:{port}");
        let settings = serde_json::json!({
            "version": 0.1,
            "log": { "level": "error" },
            "storage": { "filesystem": { "rootdirectory": folder.path().join("data") } },
            "http": { "addr": address },
        });
        // JSON is YAML.
        std::fs::write(folder.path().join("config.yml"), settings.to_string()).unwrap();
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(folder.path().join("config.yml"));
        let child = match command.stdout(Stdio::null()).stderr(Stdio::null()).spawn() {
            Ok(child) => child,
            Err(error) => {
                assert!(!config::demands("registry"), "docker-registry cannot be run: {error}");
                eprintln!("skipped: docker-registry is not installed");
                return None;
            }
        };
        hostile::until(|| std::net::TcpStream::connect(&address).is_ok()).await;
        Some(Real { child, address, folder })
    }

    fn reference(&self, name: &str) -> Reference {
        format!("{}/{name}", self.address).parse().unwrap()
    }
}

/// What skopeo prints; `None` where it is not installed and nobody demands it.
fn skopeo(args: &[&str]) -> Option<Vec<u8>> {
    match Command::new("skopeo").args(args).output() {
        Ok(output) => {
            assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
            Some(output.stdout)
        }
        Err(error) => {
            assert!(!config::demands("registry"), "skopeo cannot be run: {error}");
            None
        }
    }
}

fn put(bench: &Bench, layers: &[&[u8]]) -> ImageManifest {
    let blobs = bench.blobs();
    for bytes in layers.iter().chain(&[b"{}".as_slice()]) {
        blobs.put(bytes).unwrap();
    }
    manifest_of(layers)
}

#[tokio::test]
async fn an_artifact_goes_to_a_registry_and_comes_back() {
    let Some(real) = Real::start().await else { return };
    let (one, two) = (noise(5 << 20, 1), noise(1000, 2));
    let bench = Bench::new();
    let manifest = put(&bench, &[&one, &two, b""]);
    let (registry, to) = (bench.registry(), real.reference("acme/digits:1.0"));
    let all = (5 << 20) + 1000 + 2;
    let moved = registry.push(&to, &manifest, &bench.blobs(), &Report::none()).await.unwrap();
    assert_eq!(moved, Moved { bytes: all, present: 0, layers: 4 });
    let again = registry.push(&to, &manifest, &bench.blobs(), &Report::none()).await.unwrap();
    assert_eq!(again, Moved { bytes: 0, present: all, layers: 0 });
    assert_eq!(registry.exists(&to).await.unwrap(), Some(Digest::of(&manifest.bytes())));
    assert_eq!(registry.tags(&to).await.unwrap(), ["1.0"]);

    let source = format!("docker://{to}");
    if let Some(raw) = skopeo(&["inspect", "--raw", "--tls-verify=false", &source]) {
        assert_eq!(raw, manifest.bytes());
        let layout = real.folder.path().join("layout");
        let target = format!("oci:{}:x", layout.display());
        skopeo(&["copy", "--src-tls-verify=false", &source, &target]);
        let copied = std::fs::read(layout.join("blobs/sha256").join(Digest::of(&one).hex())).unwrap();
        assert_eq!(copied, one);
    }

    let other = Bench::new();
    let pulled = other.registry().pull(&to, &other.blobs(), &Report::none()).await.unwrap();
    assert_eq!((pulled.moved.bytes, &pulled.manifest), (all, &manifest));
    let missing = other.registry().manifest(&real.reference("acme/digits:2.0")).await.unwrap_err();
    assert_says(&missing, &["there is no `127.0.0.1:", "the tags of `acme/digits` are `1.0`"]);
    let missing = other.registry().manifest(&real.reference("acme/none:1.0")).await.unwrap_err();
    assert_says(&missing, &["no repository `acme/none`"]);
}

#[tokio::test]
async fn a_registry_takes_from_its_other_repositories() {
    let Some(real) = Real::start().await else { return };
    let layer = noise(1 << 20, 1);
    let bench = Bench::new();
    let manifest = put(&bench, &[&layer]);
    let (registry, model) = (bench.registry(), real.reference("acme/model:1"));
    registry.push(&model, &manifest, &bench.blobs(), &Report::none()).await.unwrap();
    let app = real.reference("acme/app:1");
    let moved =
        registry.push_mounting(&app, &manifest, &bench.blobs(), &[model], &Report::none()).await.unwrap();
    assert_eq!(moved, Moved { bytes: 0, present: (1 << 20) + 2, layers: 0 });
    bench.registry().manifest(&app).await.unwrap();
}

/// Between the client and the registry: ends each connection after so many bytes to the registry, or from it, a few
/// times.
async fn cutter(to: String, after: u64, times: usize) -> String {
    use tokio::io::AsyncReadExt as _;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let left = Arc::new(std::sync::atomic::AtomicUsize::new(times));
    tokio::spawn(async move {
        while let Ok((mut from, _)) = listener.accept().await {
            let (to, left) = (to.clone(), Arc::clone(&left));
            tokio::spawn(async move {
                let mut up = tokio::net::TcpStream::connect(to).await?;
                let (mut from_read, mut from_write) = from.split();
                let (mut up_read, mut up_write) = up.split();
                let is_cut = left.load(std::sync::atomic::Ordering::SeqCst) > 0;
                let limit = if is_cut { after } else { u64::MAX };
                let (mut sent, mut came) = ((&mut from_read).take(limit), (&mut up_read).take(limit));
                let bytes = tokio::select! {
                    bytes = tokio::io::copy(&mut sent, &mut up_write) => bytes?,
                    bytes = tokio::io::copy(&mut came, &mut from_write) => bytes?,
                };
                if bytes == limit {
                    left.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
                }
                std::io::Result::Ok(())
            });
        }
    });
    address
}

#[tokio::test]
async fn what_broke_on_the_way_arrives_whole() {
    let Some(real) = Real::start().await else { return };
    let proxy = cutter(real.address.clone(), 6 << 20, 2).await;
    let layer = noise(20 << 20, 1);
    let mut bench = Bench::new();
    bench.options.settings.transfers = 1;
    bench.options.settings.stall_ms = 20_000;
    let manifest = put(&bench, &[&layer]);
    let through: Reference = format!("{proxy}/acme/digits:1").parse().unwrap();
    let moved = bench.registry().push(&through, &manifest, &bench.blobs(), &bench.report()).await.unwrap();
    let again = bench.told().iter().filter(|what| matches!(what, What::Again { .. })).count();
    assert!(again >= 1, "{:?}", bench.told());
    eprintln!("moved {} bytes in {again} more attempts", moved.bytes);
    let other = Bench::new();
    let proxy = cutter(real.address.clone(), 6 << 20, 2).await;
    let through: Reference = format!("{proxy}/acme/digits:1").parse().unwrap();
    let pulled = other.registry().pull(&through, &other.blobs(), &other.report()).await.unwrap();
    assert_eq!(pulled.manifest, manifest);
    let again = other.told().iter().filter(|what| matches!(what, What::Again { .. })).count();
    // What had come is not fetched again.
    assert_eq!((again, pulled.moved.bytes), (2, (20 << 20) + 2));
}
