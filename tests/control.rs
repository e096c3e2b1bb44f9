//! The control plane: revisions made ready, rolled out, gone back from, removed, and brought back by a host that starts
//! again.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use serde_json::json;
use tenon::artifact::manifest::{Manifest, Options};
use tenon::artifact::package;
use tenon::config::Config;
use tenon::control::controller::Controller;
use tenon::control::controller::restore::Restored;
use tenon::control::wire::{AppStatus, Command, Prepare, Prepared, Source, Start};
use tenon::control::{Control, ControlError};
use tenon::host::{Host, Surroundings};
use tenon::rollout::plan::{Plan, Strategy};
use tenon::telemetry::observations::Tally;
use tokio::sync::{mpsc, watch};

use crate::harness::{Answer, PROGRAM, app, eventually, exchange, function, request, run};
use crate::request::every_datatype;

/// A host with a control plane in this process.
struct Controlled {
    host: Host,
    control: Arc<Controller>,
    stop: watch::Sender<bool>,
    driving: tokio::task::JoinHandle<()>,
}

impl Controlled {
    /// Starts with the state in `folder`, and serves what was served.
    async fn start(folder: &Path) -> Controlled {
        let (controlled, restored) = Controlled::start_anyway(folder).await;
        assert!(restored.iter().all(|restored| restored.outcome.is_ok()), "{restored:?}");
        controlled
    }

    /// The same, whatever comes of what was served.
    async fn start_anyway(folder: &Path) -> (Controlled, Vec<Restored>) {
        let mut config = Config::default();
        config.listen.http = ([127, 0, 0, 1], 0).into();
        config.listen.admin = Some(config.listen.http);
        config.limits.concurrency = 32;
        config.limits.function_concurrency = 32;
        config.inference.threads = 2;
        config.cache.dir = Some(folder.join("cache"));
        let (logs, state) = (folder.join("logs"), folder.join("state"));
        let around = Surroundings { program: PROGRAM.into(), logs, state: state.clone() };
        let host = Host::start(config, around).await.unwrap();
        let control = Controller::open(&host.deployer, &state).await.unwrap();
        let restored = control.restore().await.unwrap();
        let (stop, stopping) = watch::channel(false);
        let driving = tokio::spawn(Arc::clone(&control).drive(stopping));
        (Controlled { host, control, stop, driving }, restored)
    }

    async fn stop(self) {
        self.stop.send_replace(true);
        self.driving.await.unwrap();
        drop(self.control);
        assert!(self.host.drain().await);
    }

    /// Packs an app into the host's cache, and has it made ready.
    async fn prepare(&self, text: &str) -> Result<Prepared, ControlError> {
        let source = self.packed(text);
        let prepare = Prepare {
            source,
            variables: BTreeMap::new(),
            allow_incompatible: false,
            allow_capabilities: false,
            skip_samples: false,
            message: None,
        };
        let (sender, mut progress) = mpsc::channel(1000);
        let prepared = self.control.prepare(prepare, sender).await;
        while progress.recv().await.is_some() {}
        prepared
    }

    fn packed(&self, text: &str) -> Source {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("spin.toml");
        std::fs::write(&path, text).unwrap();
        let variables = BTreeMap::new();
        let options =
            Options { profile: None, variables: &variables, environment: &|_| None, values_required: true };
        let manifest = Manifest::load(&path, &options).unwrap();
        let files = manifest.files().unwrap();
        let blobs = self.host.deployer.intake.cache.blobs();
        let packed = package::pack(&manifest, &files, &BTreeMap::new(), &blobs).unwrap();
        Source::Uploaded(packed.digest.to_string())
    }

    async fn start_rollout(&self, app: &str, revision: u64, strategy: Strategy) {
        let start = Start { revision, plan: Plan::of(strategy), message: None };
        self.control.start(app, start).await.unwrap();
    }

    /// Makes an app what all traffic goes to.
    async fn deploy(&self, text: &str) -> Prepared {
        let prepared = self.prepare(text).await.unwrap();
        self.start_rollout(&prepared.app, prepared.revision, Strategy::AllAtOnce).await;
        prepared
    }

    async fn get(&self, path: &str) -> Answer {
        exchange(self.host.http, request(Method::GET, path, &[], "")).await.unwrap()
    }

    async fn revision(&self, path: &str) -> String {
        self.get(path).await.expect(200).header("x-tenon-revision").to_owned()
    }

    async fn status(&self, app: &str) -> AppStatus {
        self.control.app(app).await.unwrap()
    }
}

/// An app with one HTTP function, at a version.
fn hello(version: &str) -> String {
    app(&[function("/hello/...", "hello", "http_p2", "")]).replace("1.0.0", version)
}

#[test]
fn a_revision_is_made_ready_rolled_out_and_gone_back_from() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let host = Controlled::start(folder.path()).await;
        host.get("/hello/").await.expect(503);
        let first = host.prepare(&hello("1.0.0")).await.unwrap();
        assert_eq!((first.app.as_str(), first.revision, first.live), ("app", 1, false));
        // Ready is not served.
        host.get("/hello/").await.expect(503);
        host.start_rollout("app", 1, Strategy::AllAtOnce).await;
        assert_eq!(host.revision("/hello/").await, "1");
        // The same once more changes nothing.
        let again = host.prepare(&hello("1.0.0")).await.unwrap();
        assert_eq!((again.revision, again.unchanged, again.live), (1, true, true));
        let second = host.prepare(&hello("2.0.0")).await.unwrap();
        assert_eq!(second.revision, 2);
        // Another one has to wait until that one is started or given up.
        assert_eq!(host.prepare(&hello("3.0.0")).await.unwrap_err().name, "busy");
        let mut nosy = Plan::of(Strategy::Canary);
        nosy.shadow.capture = true;
        let start = Start { revision: 2, plan: nosy, message: None };
        assert_eq!(host.control.start("app", start).await.unwrap_err().name, "not-allowed");
        host.start_rollout("app", 2, Strategy::Manual).await;
        assert_eq!(host.prepare(&hello("3.0.0")).await.unwrap_err().name, "busy");
        assert_eq!(host.revision("/hello/").await, "1");
        host.control.promote("app", Command { full: true, ..Command::default() }).await.unwrap();
        assert_eq!(host.revision("/hello/").await, "2");
        assert_eq!(host.status("app").await.stable, Some(2));
        host.control.rollback("app", Command::default()).await.unwrap();
        assert_eq!(host.revision("/hello/").await, "1");
        let events: Vec<_> = host
            .control
            .history("app", None, 100)
            .await
            .unwrap()
            .into_iter()
            .map(|entry| entry.event)
            .collect();
        assert!(events.contains(&"rolled_back".to_owned()), "{events:?}");
        host.control.remove("app").await.unwrap();
        host.get("/hello/").await.expect(404);
        assert_eq!(host.control.app("app").await.unwrap_err().name, "app-not-found");
        host.stop().await;
    });
}

#[test]
fn a_host_that_starts_again_serves_what_it_served() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let host = Controlled::start(folder.path()).await;
        host.deploy(&hello("1.0.0")).await;
        host.deploy(&app(&[function("/echo", "echo", "typed_echo", "")]).replace("\"app\"", "\"other\""))
            .await;
        let second = host.prepare(&hello("2.0.0")).await.unwrap();
        host.start_rollout("app", second.revision, Strategy::Canary).await;
        // Made ready, and never started.
        host.prepare(&app(&[function("/x", "third", "typed_echo", "")]).replace("\"app\"", "\"third\""))
            .await
            .unwrap();
        host.stop().await;
        // Nobody has the cache meanwhile, but for what was about to look after its size.
        let cache = folder.path().join("cache");
        eventually("the cache is gone", async || std::fs::remove_dir_all(&cache).is_ok()).await;
        let host = Controlled::start(folder.path()).await;
        assert_eq!(host.status("other").await.stable, Some(1));
        let app = host.status("app").await;
        assert_eq!((app.stable, app.rollout.as_ref().map(|rollout| rollout.candidate)), (Some(1), Some(2)));
        assert_eq!(host.control.app("third").await.unwrap_err().name, "app-not-found");
        let mut seen = std::collections::BTreeSet::new();
        eventually("both revisions answer", async || {
            seen.insert(host.revision("/hello/").await);
            seen.len() == 2
        })
        .await;
        host.control.rollback("app", Command::default()).await.unwrap();
        for _ in 0..50 {
            assert_eq!(host.revision("/hello/").await, "1");
        }
        host.stop().await;
    });
}

/// Loses all blobs of what is deployed, in the cache and beside the state.
async fn lose_blobs(folder: &Path) {
    let cache = folder.join("cache");
    eventually("the cache is gone", async || std::fs::remove_dir_all(&cache).is_ok()).await;
    for entry in std::fs::read_dir(folder.join("state/pins/blobs")).unwrap() {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
    }
}

#[test]
fn an_app_that_did_not_come_back_is_deployed_to_or_tried_again() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let host = Controlled::start(folder.path()).await;
        host.deploy(&hello("1.0.0")).await;
        host.stop().await;
        lose_blobs(folder.path()).await;
        let (host, restored) = Controlled::start_anyway(folder.path()).await;
        let error = restored[0].outcome.as_ref().unwrap_err().to_string();
        assert!(error.contains("tried again") && error.contains("another deployment"), "{error}");
        host.get("/hello/").await.expect(404);
        // The same once more is another revision, and all that there is.
        let again = host.prepare(&hello("1.0.0")).await.unwrap();
        assert_eq!((again.revision, again.unchanged, again.live), (2, false, false));
        host.start_rollout("app", 2, Strategy::Canary).await;
        assert_eq!(host.revision("/hello/").await, "2");
        let second = host.prepare(&hello("2.0.0")).await.unwrap();
        host.start_rollout("app", second.revision, Strategy::Manual).await;
        host.stop().await;
        // Both are lost: nothing goes on and nothing is given up until they are there.
        lose_blobs(folder.path()).await;
        let (host, restored) = Controlled::start_anyway(folder.path()).await;
        assert!(restored[0].outcome.is_err());
        let full = Command { full: true, ..Command::default() };
        let refused = host.control.promote("app", full.clone()).await.unwrap_err();
        assert!(refused.name == "not-now" && refused.detail.contains("ready again"), "{refused}");
        host.packed(&hello("1.0.0"));
        host.packed(&hello("2.0.0"));
        eventually("it is served again", async || host.get("/hello/").await.status == 200).await;
        assert_eq!(host.revision("/hello/").await, "2");
        eventually("so is the candidate", async || host.control.promote("app", full.clone()).await.is_ok())
            .await;
        assert_eq!(host.revision("/hello/").await, "3");
        host.stop().await;
    });
}

#[test]
fn a_rollback_goes_back_whatever_else_is_ready_and_only_once() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let host = Controlled::start(folder.path()).await;
        for version in ["1.0.0", "2.0.0"] {
            host.deploy(&hello(version)).await;
        }
        let third = host.prepare(&hello("3.0.0")).await.unwrap();
        let to = |revision: Option<u64>| Command { revision, ..Command::default() };
        assert_eq!(host.control.rollback("app", to(Some(3))).await.unwrap_err().name, "not-now");
        let rollout = host.control.rollback("app", to(None)).await.unwrap();
        assert_eq!(host.revision("/hello/").await, "1");
        assert_eq!((rollout.candidate, rollout.phase.as_str()), (2, "rolled_back"));
        assert_eq!(rollout.reason, "back from revision 2 to revision 1");
        // What was ready was compared with the revision that was live then.
        let start = || Start { revision: 3, plan: Plan::of(Strategy::AllAtOnce), message: None };
        assert_eq!(host.control.start("app", start()).await.unwrap_err().name, "not-now");
        // Said once more it changes nothing, and the way forth is still there.
        for again in [None, Some(1)] {
            let rollout = host.control.rollback("app", to(again)).await.unwrap();
            assert_eq!(
                (host.revision("/hello/").await.as_str(), rollout.phase.as_str()),
                ("1", "rolled_back")
            );
        }
        let rollout = host.control.rollback("app", to(Some(2))).await.unwrap();
        assert_eq!(host.revision("/hello/").await, "2");
        assert_eq!(rollout.phase, "succeeded");
        // What was ready is ready.
        host.start_rollout("app", third.revision, Strategy::AllAtOnce).await;
        assert_eq!(host.revision("/hello/").await, "3");
        let stable = host.status("app").await.stable;
        host.stop().await;
        let host = Controlled::start(folder.path()).await;
        assert_eq!(
            (host.status("app").await.stable, host.revision("/hello/").await),
            (stable, "3".to_owned())
        );
        host.stop().await;
    });
}

#[test]
fn routes_of_two_apps_do_not_conflict() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let host = Controlled::start(folder.path()).await;
        host.deploy(&hello("1.0.0")).await;
        let other = hello("1.0.0").replace("\"app\"", "\"other\"");
        let refused = host.prepare(&other).await.unwrap_err();
        assert_eq!(refused.name, "route-conflict");
        assert!(refused.detail.contains("/hello/...") && refused.detail.contains("`app`"), "{refused}");
        assert_eq!(host.revision("/hello/").await, "1");
        host.stop().await;
    });
}

/// A canary at half of the calls, with users who stay and testers, which waits for a person twice.
fn halves() -> Plan {
    let plan = json!({
        "strategy": "canary",
        "steps": [{ "set_weight": 50 }, { "pause": {} }, { "set_weight": 60 }, { "pause": {} }],
        "sticky": { "header": "x-user" },
        "header_routes": [{ "header": "x-tester", "value": "yes", "revision": "candidate" }],
    });
    serde_json::from_value(plan).unwrap()
}

impl Controlled {
    /// Serves one app, and tries another version of it out.
    async fn try_out(&self, text: &str) {
        self.deploy(text).await;
        let second = self.prepare(&text.replace("1.0.0", "2.0.0")).await.unwrap();
        let start = Start { revision: second.revision, plan: halves(), message: None };
        self.control.start("app", start).await.unwrap();
    }

    /// What was counted of the calls of both revisions together.
    fn judged(&self) -> Tally {
        let mut judged = Tally::default();
        for release in self.host.deployer.functions.snapshot().releases() {
            release.functions.iter().for_each(|function| judged.add(&function.observations.read()));
        }
        judged
    }
}

#[test]
fn only_calls_that_the_weight_divides_are_judged() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let host = Controlled::start(folder.path()).await;
        let cached = "tool.tenon.limits.response_cache_mib = 1";
        let functions = [
            function("/echo", "echo", "typed_echo", ""),
            function("/cached", "cached", "typed_echo", cached),
        ];
        host.try_out(&app(&functions)).await;
        let call = async |path: &str, headers: &[(&str, &str)]| {
            let body = json!({ "inputs": every_datatype() }).to_string();
            let headers = [&[("content-type", "application/json")], headers].concat();
            let answer = exchange(host.host.http, request(Method::POST, path, &headers, body)).await.unwrap();
            answer.expect(200).header("x-tenon-revision").to_owned()
        };
        assert_eq!(call("/echo", &[("x-tester", "yes")]).await, "2");
        assert_eq!(call("/v2/models/echo/infer", &[("x-tester", "yes")]).await, "2");
        for version in ["1", "2"] {
            let path = format!("/v2/models/echo/versions/{version}/infer");
            assert_eq!(call(&path, &[]).await, version);
        }
        assert_eq!(host.judged().requests, 0);
        call("/v2/models/echo/infer", &[("x-user", "ada")]).await;
        call("/echo", &[("x-user", "ada")]).await;
        let judged = host.judged();
        assert_eq!((judged.success, judged.latency.total()), (2, 2));
        // Of calls whose answers may be kept, some are computed, and judged.
        for _ in 0..320 {
            call("/cached", &[("x-user", "ada")]).await;
        }
        let judged = host.judged();
        assert!((3..80).contains(&judged.requests), "{}", judged.requests);
        assert_eq!(judged.latency.total(), judged.requests);
        host.stop().await;
    });
}

#[test]
fn calls_are_judged_by_their_end_and_within_one_division() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let host = Controlled::start(folder.path()).await;
        host.try_out(&hello("1.0.0")).await;
        let judged = async |what: &str, holds: fn(&Tally) -> bool| {
            eventually(what, async || holds(&host.judged())).await;
        };
        host.get("/hello/").await.expect(200);
        judged("an answer", |tally| (tally.requests, tally.success, tally.latency.total()) == (1, 1, 1))
            .await;
        host.get("/hello/status?404").await.expect(404);
        judged("an answer of 404", |tally| (tally.requests, tally.raised) == (2, 1)).await;
        // Whether the head goes out before it traps is chance.
        let _ = exchange(host.host.http, request(Method::GET, "/hello/trap-after-headers", &[], "")).await;
        judged("an answer that breaks off", |tally| (tally.requests, tally.errors + tally.traps) == (3, 1))
            .await;
        let leaving = || tokio::time::timeout(Duration::from_millis(200), host.get("/hello/never"));
        assert!(leaving().await.is_err(), "it does not answer");
        judged("a caller who leaves", |tally| (tally.requests, tally.left) == (4, 1)).await;
        // Of the calls that are under way when the weight changes, the ones that are over soon alone would be counted.
        let (left, promoted) = tokio::join!(leaving(), async {
            eventually("a call is under way", async || {
                host.host.deployer.functions.telemetry.instances.get() > 0
            })
            .await;
            host.control.promote("app", Command::default()).await
        });
        assert!(left.is_err() && promoted.is_ok());
        host.get("/hello/").await.expect(200);
        judged("it begins anew", |tally| (tally.requests, tally.success) == (1, 1)).await;
        host.stop().await;
    });
}
