//! Signatures against Debian's docker-registry, with openssl and cosign as independent verifiers.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use tenon::config;

use crate::harness::{run, tenon};
use crate::registry::Server;

impl Server {
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
