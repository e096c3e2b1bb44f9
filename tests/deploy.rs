//! `tenon deploy`, from a `spin.toml` to answers of several hosts, with the program on both sides.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use http::Method;
use tenon::control::client::Client;
use tenon::control::wire::{Prepare, Source};

use crate::harness::{PROGRAM, Program, app, exchange, function, request, run, tenon};

/// An app and two hosts that take deployments at sockets of their own.
struct Place {
    folder: tempfile::TempDir,
    hosts: Vec<Program>,
}

/// How a command ended, and what it said to programs and to people.
struct Told {
    status: i32,
    out: String,
    err: String,
}

impl Place {
    async fn new(hosts: &[&str]) -> Place {
        let folder = tempfile::tempdir().unwrap();
        let mut started = Vec::new();
        for name in hosts {
            let folder = folder.path().join(name);
            std::fs::create_dir(&folder).unwrap();
            let settings = format!(
                "[listen]\nadmin = \"off\"\n[control]\nlisten = \"off\"\nstate = {:?}\n",
                folder.join("state")
            );
            let serve = ["serve", "--listen", "127.0.0.1:0"];
            started.push(Program::of(tenon(&folder, &settings, &serve)).await.0);
        }
        Place { folder, hosts: started }
    }

    /// Writes the app whose one function is at `route`.
    fn app(&self, route: &str, version: &str) -> PathBuf {
        let text = app(&[function(route, "p2", "http_p2", "")]).replace("1.0.0", version);
        let folder = self.folder.path().join("app");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("spin.toml"), text).unwrap();
        folder
    }

    fn socket(&self, host: &str) -> String {
        format!("unix:{}", self.folder.path().join(host).join("state/tenon.sock").display())
    }

    async fn tell(&self, program: &Path, arguments: &[&str], hosts: &[&str]) -> Told {
        let to: Vec<String> = hosts.iter().flat_map(|host| ["--to".to_owned(), self.socket(host)]).collect();
        let arguments: Vec<&str> = arguments.iter().copied().chain(to.iter().map(String::as_str)).collect();
        let command = tenon(self.folder.path(), "", &arguments);
        let mut spawned = tokio::process::Command::new(program);
        spawned
            .args(command.as_std().get_args())
            .current_dir(self.folder.path())
            .env("SPIN_VERSION", "4.0.0");
        let output = spawned.output().await.unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Told { status: output.status.code().unwrap(), out: text(output.stdout), err: text(output.stderr) }
    }

    async fn deploy(&self, arguments: &[&str], hosts: &[&str]) -> Told {
        let arguments = [&["deploy"], arguments].concat();
        self.tell(Path::new(PROGRAM), &arguments, hosts).await
    }

    /// The revision that answers at a path of each host; none where nothing does.
    async fn revisions(&self, path: &str) -> Vec<Option<String>> {
        let mut revisions = Vec::new();
        for host in &self.hosts {
            let answer = exchange(host.address, request(Method::GET, path, &[], "")).await.unwrap();
            let found = answer.headers.get("x-tenon-revision");
            revisions.push(found.map(|revision| revision.to_str().unwrap().to_owned()));
        }
        revisions
    }
}

impl Told {
    #[track_caller]
    fn with(self, status: i32, said: &[&str]) -> Told {
        assert_eq!(self.status, status, "{}{}", self.out, self.err);
        for said in said {
            assert!(self.err.contains(said), "{said}\n{}", self.err);
        }
        self
    }
}

fn both(revision: Option<&str>) -> Vec<Option<String>> {
    vec![revision.map(str::to_owned), revision.map(str::to_owned)]
}

#[test]
fn one_command_deploys_to_several_hosts_or_to_none() {
    run(async {
        let mut place = Place::new(&["a", "b"]).await;
        let hosts = ["a", "b"];
        let shop = place.app("/p2/...", "1.0.0");
        let shop = shop.to_str().unwrap();
        let told = place.deploy(&[shop], &hosts).await;
        let told = told.with(
            0,
            &[
                "Packaging app",
                "Uploaded ",
                "  revision 1 of `app` (",
                "`app`: revision 1 is stable, and takes all traffic",
            ],
        );
        let lines: Vec<_> = told.out.lines().collect();
        assert_eq!(lines.len(), 2, "{}", told.out);
        assert!(
            lines[0].starts_with("app@1 sha256:") && lines[0].ends_with("a/state/tenon.sock promoted"),
            "{}",
            told.out
        );
        assert_eq!(place.revisions("/p2/x").await, both(Some("1")));

        // The same once more is nothing new, and nothing is sent twice.
        let told = place.deploy(&[shop], &hosts).await;
        told.with(0, &["  nothing, ", "  revision 1 of `app` is the same and live already"]);

        // A revision that breaks callers starts nowhere.
        place.app("/other/...", "2.0.0");
        let told = place.deploy(&[shop], &hosts).await;
        told.with(
            1,
            &[
                "2 of 2 hosts could not make the revision ready, so nothing was started and what is live goes on",
                "the route `/p2/...` led to component `p2` and leads nowhere; keep its trigger",
                "--allow-incompatible",
            ],
        );
        assert_eq!(place.revisions("/p2/x").await, both(Some("1")));
        place.deploy(&[shop, "--allow-incompatible"], &hosts).await.with(0, &["Promoted "]);
        assert_eq!(place.revisions("/p2/x").await, both(None));

        // A host that cannot be reached keeps the other from beginning.
        place.hosts.remove(1);
        let before = place.revisions("/other/x").await;
        place.app("/other/...", "3.0.0");
        let told = place.deploy(&[shop], &hosts).await;
        let told = told.with(1, &["nothing was deployed", "is `tenon serve` running"]);
        assert!(!told.err.contains("Packaging"), "{}", told.err);
        assert_eq!(place.revisions("/other/x").await, before);
    });
}

#[test]
fn a_rollout_waits_for_a_person_where_its_plan_says_so() {
    run(async {
        let place = Place::new(&["a"]).await;
        let shop = place.app("/p2/...", "1.0.0");
        let shop = shop.to_str().unwrap();
        place.deploy(&["-f", shop], &["a"]).await.with(0, &[]);
        place.app("/p2/...", "1.1.0");
        let told = place.deploy(&[shop, "--strategy", "manual", "-m", "try it"], &["a"]).await;
        let told = told
            .with(0, &["Started the rollout of revision 2 of `app`, manual", "Waiting ", "tenon promote"]);
        assert!(told.out.ends_with("waiting\n"), "{}", told.out);
        assert_eq!(place.revisions("/p2/x").await, [Some("1".to_owned())]);
        place.tell(Path::new(PROGRAM), &["promote", "app", "--full"], &["a"]).await.with(0, &[]);
        assert_eq!(place.revisions("/p2/x").await, [Some("2".to_owned())]);
        // Somebody else's deployment is not disturbed.
        place.app("/p2/...", "1.2.0");
        place.deploy(&[shop, "--strategy", "manual"], &["a"]).await.with(0, &[]);
        place.app("/p2/...", "1.3.0");
        place
            .deploy(&[shop], &["a"])
            .await
            .with(1, &["revision 3 of `app` is being rolled out", "tenon rollback app"]);
        assert_eq!(place.revisions("/p2/x").await, [Some("2".to_owned())]);
    });
}

#[test]
fn what_a_lost_deployment_left_is_seen_and_discarded() {
    run(async {
        let place = Place::new(&["a"]).await;
        let shop = place.app("/p2/...", "1.0.0");
        let shop = shop.to_str().unwrap();
        let first = place.deploy(&[shop], &["a"]).await.with(0, &[]).out;
        let digest = first.split(' ').nth(1).unwrap().to_owned();
        place.app("/p2/...", "2.0.0");
        place.deploy(&[shop], &["a"]).await.with(0, &[]);
        // As if the command had ended between making it ready and starting it.
        let host = Client::new(&place.socket("a").parse().unwrap(), None).unwrap();
        let lost = Prepare {
            source: Source::Uploaded(digest),
            variables: BTreeMap::new(),
            allow_incompatible: false,
            allow_capabilities: false,
            skip_samples: false,
            message: None,
        };
        assert_eq!(host.prepare(&lost, |_| {}).await.unwrap().revision, 3);
        let tell = async |arguments: &[&str]| place.tell(Path::new(PROGRAM), arguments, &["a"]).await;
        let status = tell(&["status"]).await.with(0, &[]).out;
        let waiting = status.lines().find(|line| line.starts_with("app         3 ")).unwrap_or_default();
        assert!(waiting.contains("  0 %  yes "), "{status}");
        place.app("/p2/...", "3.0.0");
        let refused = place.deploy(&[shop], &["a"]).await;
        refused.with(1, &["revision 3 of `app` was made ready", "`tenon remove app --revision 3`"]);
        // What is mistyped is no command to the whole app.
        let refused = tell(&["rollback", "app/other"]).await;
        refused.with(1, &["there is no function `app/other`; the app has `app/p2`"]);
        tell(&["remove", "app", "--revision", "2"]).await.with(1, &["revision 2 of `app` takes traffic"]);
        let removed = tell(&["remove", "app", "--revision", "3"]).await.with(0, &[]);
        assert_eq!(removed.out, "revision 3 of app is removed\n");
        place.deploy(&[shop], &["a"]).await.with(0, &["Promoted `app`: revision 4 is stable"]);
        assert_eq!(place.revisions("/p2/x").await, [Some("4".to_owned())]);
    });
}

#[test]
fn spin_deploys_by_the_plugin() {
    run(async {
        let place = Place::new(&["a"]).await;
        let shop = place.app("/p2/...", "1.0.0");
        // The name by which Spin installs it.
        let plugin = place.folder.path().join("tenon");
        std::os::unix::fs::symlink(PROGRAM, &plugin).unwrap();
        let shop = shop.join("spin.toml");
        let told =
            place.tell(&plugin, &["deploy", "--from", shop.to_str().unwrap(), "--build"], &["a"]).await;
        told.with(0, &["Promoted `app`: revision 1 is stable"]);
        assert_eq!(place.revisions("/p2/x").await, [Some("1".to_owned())]);
        let told = place.tell(&plugin, &["deploy", "--environment-name", "prod"], &["a"]).await;
        told.with(1, &["name each host with `--to`"]);
        place.tell(&plugin, &["login"], &[]).await.with(1, &["there is nothing to log in to"]);
    });
}
