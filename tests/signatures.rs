//! Signatures against Debian's docker-registry, with openssl and cosign as independent verifiers.

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use tenon::artifact::blobs::Blobs;
use tenon::artifact::oci::{Descriptor, IMAGE_CONFIG, ImageManifest};
use tenon::artifact::registry::{Options, Registry, Report};
use tenon::config;

use crate::harness::{eventually, run, tenon};

/// A registry on a port of its own; it ends with this.
struct Server {
    child: Child,
    address: String,
    folder: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    /// `None` where it is not installed and nobody demands it.
    async fn start() -> Option<Server> {
        let folder = tempfile::tempdir().unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let address = format!("127.0.0.1:{port}");
        let settings = serde_json::json!({
            "version": 0.1,
            "log": { "level": "error" },
            "storage": { "filesystem": { "rootdirectory": folder.path().join("data") } },
            "http": { "addr": address },
        });
        std::fs::write(folder.path().join("config.yml"), settings.to_string()).unwrap();
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(folder.path().join("config.yml"));
        let Ok(child) = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn() else {
            assert!(!config::demands("registry"), "docker-registry is not installed");
            eprintln!("skipped: docker-registry is not installed");
            return None;
        };
        let server = Server { child, address, folder };
        let listens = async || tokio::net::TcpStream::connect(&server.address).await.is_ok();
        eventually("the registry listens", listens).await;
        Some(server)
    }

    /// Pushes an artifact that is nothing but `content`, and answers its reference.
    async fn push(&self, name: &str, content: &[u8]) -> String {
        let cache = self.folder.path().join("pushed");
        let _ = std::fs::create_dir(&cache);
        let blobs = Blobs::open(&cache, 0).unwrap();
        let registry = Registry::new(Options::new(&config::Registry::default(), true)).unwrap();
        let blob = |media_type: &str, bytes: &[u8]| {
            Descriptor::new(media_type, blobs.put(bytes).unwrap(), bytes.len() as u64)
        };
        let layer = blob("application/octet-stream", content);
        let manifest = ImageManifest::new(blob(IMAGE_CONFIG, b"{}"), vec![layer]);
        let reference = format!("{}/{name}", self.address);
        registry.push(&reference.parse().unwrap(), &manifest, &blobs, &Report::none()).await.unwrap();
        reference
    }

    /// What `tenon` answers under these settings.
    async fn tenon(&self, settings: &str, arguments: &[&str]) -> (bool, String) {
        let settings = format!("{settings}\n[registry]\ninsecure = [\"{}\"]\n", self.address);
        let mut command = tenon(self.folder.path(), &settings, arguments);
        let output = command.env("TENON_KEY_PASSWORD", "pass word").output().await.unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(said).unwrap())
    }

    /// The same, where it must succeed.
    async fn done(&self, arguments: &[&str]) -> String {
        let (done, said) = self.tenon("", arguments).await;
        assert!(done, "{arguments:?}: {said}");
        said
    }
}

/// What another program answers; `None` where it is not installed and nobody demands it.
fn other(program: &str, folder: &Path, arguments: &[&str]) -> Option<Output> {
    let mut command = Command::new(program);
    command.args(arguments).current_dir(folder).env("COSIGN_PASSWORD", "pass word").stdin(Stdio::null());
    let output = command.output();
    if output.is_err() {
        assert!(!config::demands(program), "{program} is not installed");
        eprintln!("skipped: {program} is not installed");
    }
    output.ok()
}

#[test]
fn what_is_signed_is_verified_by_the_hosts_policy_and_by_openssl() {
    run(async {
        let Some(server) = Server::start().await else { return };
        let app = server.push("team/app:v1", b"one").await;
        for name in ["team", "other"] {
            server.done(&["key", "generate", "-o", name]).await;
        }
        let policy = |key: &str, more: &str| {
            let repositories = format!("{}/team/*", server.address);
            format!(
                "[signatures]\n{more}\n[signatures.keys.{key}]\nfile = \"{key}.pub\"\nrepositories = [\"{repositories}\"]"
            )
        };
        let verify = async |settings: &str, app: &str| server.tenon(settings, &["verify", app]).await;
        let refused = async |settings: &str, app: &str, expected: &str| {
            let (done, said) = verify(settings, app).await;
            assert!(!done && said.contains(expected), "{said}");
        };
        refused(&policy("team", ""), &app, "has no signature").await;
        let sign = ["sign", &app, "--key", "team.key"];
        assert!(server.done(&sign).await.contains(" by sha256:"));
        assert!(server.done(&sign).await.contains(" as before, by sha256:"));
        let (done, said) = verify(&policy("team", "same_repository = true"), &app).await;
        assert!(done && said.contains("is signed by `team`"), "{said}");
        refused(&policy("other", ""), &app, "signature 1 is of another key").await;
        let unlisted = server.push("elsewhere/app:v1", b"one").await;
        assert!(verify(&policy("team", ""), &unlisted).await.1.contains("needs no signature"));
        refused(&policy("team", "required = \"all\""), &unlisted, "nobody is trusted to sign").await;
        // A second signer joins the first.
        server.done(&["sign", &app, "--key", "other.key"]).await;
        for name in ["team", "other"] {
            assert!(verify(&policy(name, ""), &app).await.0);
        }
        // Whoever moves the tag moves it to something that nobody signed.
        server.push("team/app:v1", b"two").await;
        refused(&policy("team", ""), &app, "has no signature").await;
        server.push("team/app:v1", b"one").await;
        server.done(&["verify", &app, "--key", "team.pub", "--save", "saved"]).await;
        let arguments =
            ["dgst", "-sha256", "-verify", "team.pub", "-signature", "saved/1.signature", "saved/1.payload"];
        if let Some(output) = other("openssl", server.folder.path(), &arguments) {
            assert!(output.status.success(), "{output:?}");
        }
    });
}

#[test]
fn cosign_and_tenon_verify_each_other() {
    run(async {
        let Some(server) = Server::start().await else { return };
        let (ours, theirs) = (server.push("app:ours", b"one").await, server.push("app:theirs", b"two").await);
        server.done(&["key", "generate", "-o", "team"]).await;
        server.done(&["sign", &ours, "--key", "team.key"]).await;
        let verify = ["verify", "--key", "team.pub", "--insecure-ignore-tlog=true", "--allow-http-registry"];
        let Some(output) = other("cosign", server.folder.path(), &[&verify[..], &[&ours]].concat()) else {
            return;
        };
        assert!(output.status.success(), "{output:?}");
        let output = other("cosign", server.folder.path(), &[&verify[..], &[&theirs]].concat()).unwrap();
        assert!(!output.status.success(), "{output:?}");
        let sign = [
            "sign",
            "--key=team.key",
            "--use-signing-config=false",
            "--tlog-upload=false",
            "--new-bundle-format=false",
            "--allow-http-registry",
            "--yes",
            &theirs,
        ];
        let output = other("cosign", server.folder.path(), &sign).unwrap();
        assert!(output.status.success(), "{output:?}");
        assert!(
            server.done(&["verify", &theirs, "--key", "team.pub"]).await.contains("is signed by `team.pub`")
        );
    });
}
