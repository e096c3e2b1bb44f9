//! Debian's docker-registry for stories, the way to it, and skopeo as an independent reader of what it has.

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tenon::artifact::blobs::Blobs;
use tenon::artifact::oci::{Descriptor, Digest, IMAGE_CONFIG, ImageManifest};
use tenon::artifact::registry::{Options, Registry, Report};
use tenon::config;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// A registry in a folder of its own, on a port of its own; it ends with this.
pub(crate) struct Server {
    child: Child,
    pub(crate) address: String,
    pub(crate) folder: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Server {
    /// `None` where it is not installed and nobody demands it.
    pub(crate) async fn start() -> Option<Server> {
        let folder = tempfile::tempdir().unwrap();
        let started = serve(folder.path().to_owned(), "127.0.0.1:0".to_owned()).await;
        let Ok((child, address)) = started else {
            assert!(!config::demands("registry"), "docker-registry is not installed");
            eprintln!("skipped: docker-registry is not installed");
            return None;
        };
        Some(Server { child, address, folder })
    }

    /// Ends it at once, in the middle of whatever it does.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Starts it again after it was killed, on the same folder and port.
    pub(crate) async fn restart(&mut self) {
        let started = serve(self.folder.path().to_owned(), self.address.clone()).await;
        let (child, address) = started.unwrap();
        assert_eq!(address, self.address);
        self.child = child;
    }

    /// Pushes an artifact that is nothing but `content`, and answers its reference.
    pub(crate) async fn push(&self, name: &str, content: &[u8]) -> String {
        self.put(name, None, &[("application/octet-stream", "", content)]).await;
        format!("{}/{name}", self.address)
    }

    /// Pushes an artifact of these layers, each a media type, a title and its bytes, under a config of this type.
    pub(crate) async fn put(
        &self,
        name: &str,
        config: Option<&str>,
        layers: &[(&str, &str, &[u8])],
    ) -> ImageManifest {
        let cache = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(cache.path(), 0).unwrap();
        let blob = |media_type: &str, bytes: &[u8]| {
            Descriptor::new(media_type, blobs.put(bytes).unwrap(), bytes.len() as u64)
        };
        let layers = layers.iter().map(|(media_type, title, bytes)| match *title {
            "" => blob(media_type, bytes),
            title => blob(media_type, bytes).titled(title),
        });
        let manifest = ImageManifest::new(blob(config.unwrap_or(IMAGE_CONFIG), b"{}"), layers.collect());
        let reference = format!("{}/{name}", self.address).parse().unwrap();
        client().push(&reference, &manifest, &blobs, &Report::none()).await.unwrap();
        manifest
    }

    /// Puts a manifest whose blobs are there, whatever it says of them.
    pub(crate) async fn put_manifest(&self, name: &str, manifest: &ImageManifest) {
        let reference = format!("{}/{name}", self.address).parse().unwrap();
        let media_type = manifest.media_type.as_deref().unwrap();
        client().put_manifest(&reference, media_type, &manifest.bytes()).await.unwrap();
    }

    /// The manifest that a reference leads to.
    pub(crate) async fn manifest(&self, reference: &str) -> ImageManifest {
        let (_, bytes) = client().manifest(&reference.parse().unwrap()).await.unwrap();
        ImageManifest::parse(&bytes).unwrap()
    }

    /// The bytes of a blob.
    pub(crate) fn blob(&self, digest: &Digest) -> Vec<u8> {
        std::fs::read(self.file_of(digest)).unwrap()
    }

    /// Where the registry keeps a blob.
    pub(crate) fn file_of(&self, digest: &Digest) -> PathBuf {
        let (hex, data) = (digest.hex(), self.folder.path().join("data"));
        data.join("docker/registry/v2/blobs/sha256").join(&hex[..2]).join(hex).join("data")
    }
}

fn client() -> Registry {
    Registry::new(Options::new(&config::Registry::default(), true)).unwrap()
}

/// Starts a registry, and waits until it says where it listens.
async fn serve(folder: PathBuf, address: String) -> std::io::Result<(Child, String)> {
    let settings = serde_json::json!({
        "version": 0.1,
        "log": { "level": "info", "accesslog": { "disabled": true } },
        "storage": { "filesystem": { "rootdirectory": folder.join("data") } },
        "http": { "addr": address },
    });
    // JSON is YAML.
    std::fs::write(folder.join("config.yml"), settings.to_string()).unwrap();
    let mut command = Command::new("docker-registry");
    command.arg("serve").arg(folder.join("config.yml"));
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    let stderr = child.stderr.take().unwrap();
    let (sender, listens) = tokio::sync::oneshot::channel();
    // It is heard to the end: a full pipe would stop it.
    std::thread::spawn(move || {
        let mut sender = Some(sender);
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            let told =
                line.split_once("listening on ").and_then(|(_, rest)| rest.split(['"', ' ', ',']).next());
            if let Some((sender, told)) = told.and_then(|told| Some((sender.take()?, told.to_owned()))) {
                let _ = sender.send(told);
            }
        }
    });
    Ok((child, listens.await.expect("the registry listens")))
}

/// What skopeo prints; `None` where it is not installed and nobody demands it.
pub(crate) fn skopeo(arguments: &[&str]) -> Option<Vec<u8>> {
    match Command::new("skopeo").args(arguments).output() {
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{arguments:?}: {said}");
            Some(output.stdout)
        }
        Err(_) => {
            assert!(!config::demands("registry"), "skopeo is not installed");
            eprintln!("skipped: skopeo is not installed");
            None
        }
    }
}

/// A narrow place between clients and a registry: a connection over which so much came from the registry is held there
/// until more is let through.
pub(crate) struct Narrows {
    pub(crate) address: String,
    limit: watch::Sender<u64>,
    held: watch::Receiver<usize>,
    came: Arc<AtomicU64>,
}

impl Narrows {
    pub(crate) async fn before(server: &Server, limit: u64) -> Narrows {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (limit, limits) = watch::channel(limit);
        let (holds, held) = watch::channel(0);
        let (to, came) = (server.address.clone(), Arc::new(AtomicU64::new(0)));
        let counter = Arc::clone(&came);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (to, limits, holds) = (to.clone(), limits.clone(), holds.clone());
                tokio::spawn(pass(client, to, limits, holds, Arc::clone(&counter)));
            }
        });
        Narrows { address, limit, held, came }
    }

    /// Waits until a connection is held.
    pub(crate) async fn holds(&mut self) {
        self.held.wait_for(|held| *held > 0).await.unwrap();
    }

    /// Lets everything through from now on.
    pub(crate) fn open(&self) {
        self.limit.send_replace(u64::MAX);
    }

    /// The bytes that came from the registry since this was last asked.
    pub(crate) fn came(&self) -> u64 {
        self.came.swap(0, Ordering::SeqCst)
    }
}

async fn pass(
    mut client: TcpStream,
    to: String,
    mut limits: watch::Receiver<u64>,
    holds: watch::Sender<usize>,
    came: Arc<AtomicU64>,
) -> std::io::Result<()> {
    let mut server = TcpStream::connect(to).await?;
    let (mut from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = server.split();
    let down = async {
        let (mut passed, mut buffer) = (0, vec![0; 64 << 10]);
        loop {
            let length = from_server.read(&mut buffer).await?;
            if length == 0 {
                return std::io::Result::Ok(());
            }
            to_client.write_all(&buffer[..length]).await?;
            passed += length as u64;
            came.fetch_add(length as u64, Ordering::SeqCst);
            if passed >= *limits.borrow() {
                holds.send_modify(|held| *held += 1);
                let opened = limits.wait_for(|limit| passed < *limit).await;
                opened.map_err(std::io::Error::other)?;
            }
        }
    };
    tokio::select! {
        ended = down => ended,
        ended = tokio::io::copy(&mut from_client, &mut to_server) => ended.map(drop),
    }
}
