//! Spin's side, played: its environment and arguments, and the locked app as Spin writes it.

use std::path::{Path, PathBuf};

use serde_json::json;
use tokio::process::Command;

use crate::harness::{PROGRAM, Program, exchange, guest, request, run, tenon};
use http::Method;

/// An app that Spin has loaded, and the program under the name by which Spin starts it.
struct Spin {
    folder: tempfile::TempDir,
    plugin: PathBuf,
}

impl Spin {
    /// An app of one component with this trigger type beside `tenon`.
    fn new(other: Option<&str>) -> Spin {
        let folder = tempfile::tempdir().unwrap();
        let plugin = folder.path().join("trigger-tenon");
        std::os::unix::fs::symlink(PROGRAM, &plugin).unwrap();
        let spin = Spin { folder, plugin };
        let wasm = guest("http_p2");
        let manifest = format!(
            "spin_manifest_version = 2\n[application]\nname = \"spun\"\n[[trigger.tenon]]\nroute = \"/p2/...\"\n\
             component = \"p2\"\n[component.p2]\nsource = {wasm:?}\n\
             tool.tenon.limits.deadline_ms = 300\n"
        );
        std::fs::write(spin.path("spin.toml"), manifest).unwrap();
        let mut triggers = vec![json!({
            "id": "p2-tenon-trigger",
            "trigger_type": "tenon",
            "trigger_config": { "component": "p2", "route": "/p2/..." },
        })];
        triggers.extend(other.map(|kind| {
            json!({ "id": "other", "trigger_type": kind, "trigger_config": { "component": "p2", "route": "/" } })
        }));
        let app = json!({
            "spin_lock_version": 0,
            "metadata": { "name": "spun", "origin": url(&spin.path("spin.toml")), "triggers": { "tenon": {} } },
            "triggers": triggers,
            "components": [{
                "id": "p2",
                "source": { "content_type": "application/wasm", "source": url(Path::new(&wasm)) },
            }],
        });
        std::fs::write(spin.path("spin.lock"), format!("{app:#}")).unwrap();
        spin
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// What Spin starts: the plugin, with what it was given itself, and the app in the environment.
    fn up(&self, arguments: &[&str]) -> Command {
        let settings = "[listen]\nadmin = \"off\"\n";
        let mut command = tenon(self.folder.path(), settings, arguments);
        command.env("SPIN_LOCKED_URL", url(&self.path("spin.lock")));
        command.env("SPIN_WORKING_DIR", self.folder.path()).env("SPIN_LOCAL_APP_DIR", self.folder.path());
        let mut plugin = Command::new(&self.plugin);
        plugin.args(command.as_std().get_args()).current_dir(self.folder.path()).kill_on_drop(true);
        for (name, value) in command.as_std().get_envs() {
            match value {
                Some(value) => plugin.env(name, value),
                None => plugin.env_remove(name),
            };
        }
        plugin.stdin(std::process::Stdio::null());
        plugin.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        plugin
    }
}

fn url(path: &Path) -> String {
    format!("file://{}", path.display())
}

#[test]
fn an_app_that_spin_hands_over_is_served() {
    run(async {
        let spin = Spin::new(None);
        let listen = ["--listen", "127.0.0.1:0", "--quiet", "--state-dir", "state", "--format", "json"];
        let (program, said) = Program::of(spin.up(&listen)).await;
        assert!(said.contains("/p2/... -> spun/p2"), "{said}");
        let get = |path: &str| exchange(program.address, request(Method::GET, path, &[], ""));
        assert_eq!(get("/p2/hello").await.unwrap().expect(200).text(), "hello\n");
        // The limit stands in `tool.tenon`, which Spin drops.
        get("/p2/never").await.unwrap().expect(504);
        get("/p2/print?word").await.unwrap().expect(200);
        assert!(spin.path("state/logs/p2_stdout.txt").is_file());
        program.signal(rustix::process::Signal::TERM);
        let (status, said) = program.ended().await;
        assert_eq!(status, Some(0), "{said}");
    });
}

#[test]
fn what_spin_asks_before_it_starts_a_trigger_is_answered() {
    run(async {
        let spin = Spin::new(None);
        let ask = async |arguments: &[&str]| {
            let output = Command::new(&spin.plugin).args(arguments).output().await.unwrap();
            assert!(output.status.success(), "{arguments:?}: {output:?}");
            output
        };
        let help = ask(&["--help-args-only"]).await.stdout;
        let help = String::from_utf8(help).unwrap();
        assert!(help.contains("--listen <ADDRESS>") && !help.contains("--help-args-only"), "{help}");
        let metadata = ask(&["--launch-metadata-only"]).await.stderr;
        let metadata: serde_json::Value = serde_json::from_slice(&metadata).unwrap();
        assert!(metadata["all_flags"].as_array().unwrap().contains(&json!({ "long": "--variable" })));
        let precompose = ["--precompose-only", "--precompose-component-id", "p2"];
        let composed = spin.up(&precompose).output().await.unwrap();
        assert!(composed.status.success(), "{composed:?}");
        assert_eq!(composed.stdout, std::fs::read(guest("http_p2")).unwrap());
    });
}

#[test]
fn what_cannot_be_honoured_is_refused_by_name() {
    run(async {
        let check = async |mut command: Command, expected: &str| {
            let output = command.output().await.unwrap();
            let said = String::from_utf8(output.stderr).unwrap();
            assert!(!output.status.success() && said.contains(expected), "{said}");
        };
        let spin = Spin::new(None);
        check(
            spin.up(&["--runtime-config-file", "r.toml"]),
            "`--runtime-config-file` (or RUNTIME_CONFIG_FILE)",
        )
        .await;
        check(spin.up(&["--no-such-flag"]), "--no-such-flag").await;
        let mut alone = spin.up(&[]);
        alone.env_remove("SPIN_LOCKED_URL");
        check(alone, "SPIN_LOCKED_URL").await;
        check(Spin::new(Some("http")).up(&[]), "--tenon-listen").await;
        let away = Spin::new(None);
        let reference = format!("127.0.0.1:1/m@sha256:{}", "a".repeat(64));
        let mut manifest = std::fs::read_to_string(away.path("spin.toml")).unwrap();
        manifest += &format!("[component.p2.tool.tenon.models]\nm = {{ reference = \"{reference}\" }}\n");
        std::fs::write(away.path("spin.toml"), manifest).unwrap();
        check(away.up(&[]), &format!("model `{reference}`")).await;
        let settings = "[signatures]\nlocal_apps = false\n[listen]\nadmin = \"off\"";
        std::fs::write(spin.path("host.toml"), settings).unwrap();
        let mut strict = Command::new(&spin.plugin);
        strict
            .arg("--config")
            .arg(spin.path("host.toml"))
            .env("SPIN_LOCKED_URL", url(&spin.path("spin.lock")));
        strict.env("SPIN_WORKING_DIR", spin.folder.path());
        check(strict, "comes from no registry").await;
    });
}
