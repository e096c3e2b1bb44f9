//! Commands at moments that are easily got wrong: while calls run, while another command runs, and when a host ends in
//! the middle of a rollout.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::rig::api::{Control, Reply, phase};
use super::rig::host::{Host, Life as _};
use super::rig::image::{App, Image};
use super::rig::load::{Caller, Calls, Connection, Load, Pace, Seen, What, ask};
use super::rig::question::questions;
use super::{PROGRAM, candidate, host, run};

/// A host with an app that is packed and not deployed.
struct Stage {
    /// Goes with this.
    folder: tempfile::TempDir,
    host: Host,
    control: Control,
    app: App,
    image: Image,
}

impl Stage {
    /// With a function that waits so long in each call.
    async fn with(wait: Duration) -> anyhow::Result<Stage> {
        let folder = tempfile::tempdir()?;
        let mut host = host(folder.path(), "")?;
        host.start().await?;
        let wait = wait.as_micros().to_string();
        let app = App::new("staged", &candidate()).with("WAIT_US", &wait);
        let image = app.pack(Path::new(PROGRAM), &host.config(), &folder.path().join("app"))?;
        Ok(Stage { control: host.control(), folder, host, app, image })
    }

    /// Deploys a revision that calls itself by this label to all traffic.
    async fn deploy(&self, label: u32) -> anyhow::Result<u64> {
        let prepared = self.control.ready(&self.image.relabelled(label, &[])?).await?;
        let plan = json!({ "strategy": "all-at-once" });
        self.control.start("staged", prepared.revision, &plan).await?.done()?;
        Ok(prepared.revision)
    }

    /// A call that has begun, on a connection of its own.
    fn call(&self) -> tokio::task::JoinHandle<Seen> {
        let (mut connection, path) = (Connection::new(self.host.address()), self.app.paths()[0].clone());
        tokio::spawn(async move { ask(&mut connection, &path, Caller::Anybody, &questions(1, 5)[0]).await })
    }

    fn calls(&self, callers: usize) -> Calls {
        Calls {
            address: self.host.address(),
            paths: self.app.paths(),
            questions: questions(2_000, 5),
            callers,
            users: 1_000,
            pace: Pace::AtOnce,
        }
    }
}

const SLOW: Duration = Duration::from_millis(1_500);

#[test]
fn what_runs_when_a_function_is_removed_is_finished() {
    run(Duration::from_secs(60), async {
        let stage = Stage::with(SLOW).await?;
        let revision = stage.deploy(1).await?;
        let running = stage.call();
        tokio::time::sleep(SLOW / 3).await;
        let removed = tokio::spawn({
            let control = stage.control.clone();
            async move { control.remove("staged").await }
        });
        // Nobody finds it any more, long before what runs has ended.
        let started = Instant::now();
        while stage.call().await?.what != What::Absent {
            assert!(started.elapsed() < SLOW * 4, "it is found though it was removed");
        }
        assert_eq!(running.await?.what, What::Right { revision, label: 1 });
        removed.await??.done()?;
        assert!(stage.control.app("staged").await?.is_none());
        Ok(())
    });
}

#[test]
fn what_runs_on_a_revision_that_is_taken_back_is_finished_by_it() {
    run(Duration::from_secs(60), async {
        let stage = Stage::with(SLOW).await?;
        let (good, bad) = (stage.deploy(1).await?, stage.deploy(2).await?);
        let running = stage.call();
        tokio::time::sleep(SLOW / 3).await;
        let sent = Instant::now();
        stage.control.command("staged", "rollback", json!({})).await?.done()?;
        assert!(sent.elapsed() < SLOW / 3, "going back waits for what runs");
        assert_eq!(stage.call().await?.what, What::Right { revision: good, label: 1 });
        assert_eq!(running.await?.what, What::Right { revision: bad, label: 2 });
        Ok(())
    });
}

/// The error's name of a refusal.
fn refused(reply: Reply) -> String {
    match reply {
        Reply::Refused(409, problem) => problem["detail"].as_str().unwrap_or_default().to_owned(),
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn the_second_of_two_deployments_is_told_of_the_first_and_the_same_one_is_the_same() {
    run(Duration::from_secs(60), async {
        let stage = Stage::with(Duration::ZERO).await?;
        let control = &stage.control;
        let images = [1, 2, 3].map(|label| stage.image.relabelled(label, &[]).unwrap());
        for image in &images {
            control.upload(image).await?;
        }
        let (nothing, at_once) = (json!({}), json!({ "strategy": "all-at-once" }));
        let both = tokio::join!(
            control.prepare(&images[0].digest, &nothing),
            control.prepare(&images[1].digest, &nothing)
        );
        let (first, second) = (both.0?, both.1?);
        let (won, lost) = match (first, second) {
            (Ok(won), Err(lost)) => (won, lost),
            (Err(lost), Ok(won)) => (won, lost),
            both => panic!("not one of both: {both:?}"),
        };
        assert_eq!((&lost["title"], &lost["status"]), (&json!("busy"), &json!(409)), "{lost}");
        let again = control.prepare(&won.digest, &nothing).await?.expect("the same is there");
        assert_eq!((again.revision, again.unchanged, again.live), (won.revision, true, false));
        control.start("staged", won.revision, &at_once).await?.done()?;
        let again = control.prepare(&won.digest, &nothing).await?.expect("the same is there");
        assert_eq!((again.revision, again.unchanged, again.live), (won.revision, true, true));

        let canary = json!({ "strategy": "canary", "steps": [{ "set_weight": 5 }, { "pause": {} }] });
        let tried = control.prepare(&images[2].digest, &nothing).await?.expect("there is room");
        control.start("staged", tried.revision, &canary).await?.done()?;
        let other = stage.image.relabelled(4, &[])?;
        control.upload(&other).await?;
        let busy = control.prepare(&other.digest, &nothing).await?.expect_err("a rollout is under way");
        let detail = busy["detail"].as_str().unwrap_or_default();
        assert!(
            busy["title"] == "busy" && detail.contains(&format!("revision {}", tried.revision)),
            "{busy}"
        );
        // Whoever did not hear of the start may say it again.
        control.start("staged", tried.revision, &canary).await?.done()?;
        let other = control.start("staged", won.revision, &canary).await?;
        assert!(refused(other).contains(&tried.revision.to_string()));
        control.command("staged", "rollback", json!({})).await?.done()?;
        Ok(())
    });
}

#[test]
fn a_canary_goes_on_by_itself_where_it_stood_when_its_host_was_killed() {
    run(Duration::from_secs(150), async {
        let mut stage = Stage::with(Duration::from_millis(2)).await?;
        let stable = stage.deploy(1).await?;
        let load = Load::start(&stage.calls(24));
        let prepared = stage.control.ready(&stage.image.relabelled(2, &[])?).await?;
        let plan = json!({
            "strategy": "canary",
            "steps": [
                { "set_weight": 20 }, { "analysis": { "min_samples": 400 } },
                { "set_weight": 50 }, { "analysis": { "min_samples": 2_000 } },
            ],
            "analysis": { "interval_s": 0.2 },
        });
        stage.control.start("staged", prepared.revision, &plan).await?.done()?;
        let before = until(&stage.control, |told| told["rollout"]["weight"] == 5_000).await?;
        assert_eq!((phase(&before), &before["stable"]), ("progressing", &json!(stable)));
        // The step shows in the history once the disk has it; a host that is killed before takes it again.
        let steps = async || {
            let history = stage.control.get("/v1/apps/staged/history?limit=100").await?;
            let events = history.as_array().into_iter().flatten();
            anyhow::Ok(events.filter(|entry| entry["event"] == "weight").count())
        };
        while steps().await? < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        stage.host.kill().await?;
        let _ = load.finish().await;
        stage.host.start().await?;
        let after = stage.control.get("/v1/apps/staged").await?;
        let stands = |told: &Value| {
            let rollout = &told["rollout"];
            ["id", "candidate", "stable", "phase", "step", "weight"].map(|name| rollout[name].clone())
        };
        assert_eq!(stands(&after), stands(&before));
        let load = Load::start(&stage.calls(24));
        let ended = until(&stage.control, |told| phase(told) == "succeeded").await?;
        assert_eq!(ended["stable"], prepared.revision);
        let seen = load.finish().await;
        let wrong: Vec<_> =
            seen.iter().filter(|one| !matches!(one.what, What::Right { .. })).take(3).collect();
        assert!(wrong.is_empty(), "{wrong:?}");
        drop(stage.folder);
        Ok(())
    });
}

/// The app's status once it is so.
async fn until(control: &Control, is: impl Fn(&Value) -> bool) -> anyhow::Result<Value> {
    let started = Instant::now();
    loop {
        let told = control.get("/v1/apps/staged").await?;
        if is(&told) {
            return Ok(told);
        }
        anyhow::ensure!(started.elapsed() < Duration::from_secs(60), "it does not come to that: {told}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
