//! Deployments on hosts that only remember what they were told.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Mutex;
use std::time::Duration;

use clap::Parser;

use super::remote::{Answer, Hear};
use super::*;
use crate::artifact::oci::Digest;
use crate::control::client::{ClientError, Content, To};
use crate::control::wire::{
    AppStatus, Command, HostStatus, Prepared, Progress as Line, Refusal, RolloutStatus,
};
use crate::rollout::analysis::Measurement;

/// What was asked of all hosts, in this order.
type Log = Arc<Mutex<Vec<String>>>;

/// What a host answers when it is asked for its rollout.
type Asked = Result<Option<RolloutStatus>, fn() -> ClientError>;

/// A host, and how it answers.
struct Fake {
    name: &'static str,
    log: Log,
    version: Result<&'static str, u16>,
    blobs: Mutex<BTreeSet<Digest>>,
    lines: Vec<Line>,
    prepare: Result<Prepared, ClientError>,
    takes: Duration,
    start: Result<RolloutStatus, fn() -> ClientError>,
    discard: Result<(), fn() -> ClientError>,
    /// What it is at each time that it is asked; the last answer stays.
    rollouts: Mutex<VecDeque<Asked>>,
}

fn refused(status: u16, title: &str, detail: &str) -> ClientError {
    let refusal = Refusal { title: title.to_owned(), status, detail: detail.to_owned() };
    ClientError::Refused { to: to(), refusal }
}

fn to() -> To {
    "http://127.0.0.1:3002".parse().unwrap()
}

fn busy() -> ClientError {
    refused(409, "busy", "another rollout of `shop` is under way; wait")
}

fn broken() -> ClientError {
    ClientError::Broken { to: to(), what: "a rollout was started".to_owned(), reason: "it ended".to_owned() }
}

fn prepared(revision: u64) -> Prepared {
    Prepared {
        app: "shop".to_owned(),
        revision,
        digest: Digest::of(b"app").to_string(),
        unchanged: false,
        live: false,
    }
}

fn rollout(stable: Option<u64>, phase: &str, weight: u16, reason: &str) -> RolloutStatus {
    RolloutStatus {
        id: 1,
        stable,
        candidate: 8,
        phase: phase.to_owned(),
        step: 1,
        steps: 6,
        reason: reason.to_owned(),
        weight,
        started_ms: 0,
        changed_ms: 0,
        plan: Plan::of(Strategy::Canary),
        measurements: Vec::new(),
    }
}

impl Fake {
    fn new(name: &'static str, log: &Log) -> Fake {
        let line = |step: &str, took_ms| Line::Done { step: step.to_owned(), took_ms };
        Fake {
            name,
            log: Arc::clone(log),
            version: Ok(env!("CARGO_PKG_VERSION")),
            blobs: Mutex::default(),
            lines: vec![
                Line::Begun { step: "read".to_owned() },
                line("read", 3.0),
                Line::Begun { step: "compile".to_owned() },
                line("shop/digits: native code", 1190.0),
                line("compile", 1204.0),
            ],
            prepare: Ok(prepared(8)),
            takes: Duration::ZERO,
            start: Ok(rollout(Some(7), "progressing", 500, "the candidate has answered 0 of 500 calls")),
            discard: Ok(()),
            rollouts: Mutex::default(),
        }
    }

    fn log(&self, what: impl std::fmt::Display) {
        self.log.lock().unwrap().push(format!("{} {what}", self.name));
    }
}

impl Remote for Fake {
    fn name(&self) -> String {
        self.name.to_owned()
    }

    fn status(&self) -> Answer<'_, HostStatus> {
        Box::pin(async move {
            match self.version {
                Ok(version) => Ok(HostStatus { version: version.to_owned(), apps: Vec::new() }),
                Err(status) => Err(refused(status, "x", "make a token first")),
            }
        })
    }

    fn has_blob<'a>(&'a self, digest: &'a Digest) -> Answer<'a, bool> {
        Box::pin(async move { Ok(self.blobs.lock().unwrap().contains(digest)) })
    }

    fn put_blob<'a>(
        &'a self,
        digest: &'a Digest,
        content: &'a Content,
        sent: &'a (dyn Fn(u64) + Sync),
    ) -> Answer<'a, ()> {
        Box::pin(async move {
            let Content::File(path) = content else { panic!("{content:?}") };
            sent(1);
            self.log(format_args!("put {}", path.display()));
            self.blobs.lock().unwrap().insert(*digest);
            Ok(())
        })
    }

    fn prepare<'a>(&'a self, _: &'a Prepare, hear: Hear<'a>) -> Answer<'a, Prepared> {
        Box::pin(async move {
            self.log("prepare");
            self.lines.iter().for_each(&mut *hear);
            tokio::time::sleep(self.takes).await;
            self.log("prepared");
            match &self.prepare {
                Ok(prepared) => Ok(prepared.clone()),
                Err(ClientError::Refused { to, refusal }) => {
                    Err(ClientError::Refused { to: to.clone(), refusal: refusal.clone() })
                }
                Err(_) => Err(broken()),
            }
        })
    }

    fn discard<'a>(&'a self, app: &'a str, revision: u64) -> Answer<'a, ()> {
        self.log(format_args!("discard {app}@{revision}"));
        Box::pin(async move { self.discard.map_err(|error| error()) })
    }

    fn start<'a>(&'a self, app: &'a str, start: &'a Start) -> Answer<'a, RolloutStatus> {
        self.log(format_args!("start {app}@{}", start.revision));
        Box::pin(async move { self.start.clone().map_err(|error| error()) })
    }

    fn rollback<'a>(&'a self, app: &'a str, command: &'a Command) -> Answer<'a, RolloutStatus> {
        self.log(format_args!("rollback {app} to {:?}", command.revision));
        Box::pin(async move { self.start.clone().map_err(|error| error()) })
    }

    fn remove<'a>(&'a self, app: &'a str) -> Answer<'a, ()> {
        self.log(format_args!("remove {app}"));
        Box::pin(async move { Ok(()) })
    }

    fn app<'a>(&'a self, app: &'a str) -> Answer<'a, AppStatus> {
        Box::pin(async move {
            let mut rollouts = self.rollouts.lock().unwrap();
            let now = match rollouts.len() {
                0 => Ok(None),
                1 => rollouts[0].clone(),
                _ => rollouts.pop_front().unwrap(),
            };
            Ok(AppStatus {
                app: app.to_owned(),
                stable: Some(7),
                revisions: Vec::new(),
                rollout: now.map_err(|error| error())?,
                routes: Vec::new(),
                functions: Vec::new(),
            })
        })
    }
}

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Lines {
    /// What was shown, whatever time it took.
    fn text(&self) -> String {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        let mut timeless = String::new();
        for line in text.lines() {
            match line.rsplit_once(" (").filter(|(_, end)| end.ends_with("s)")) {
                Some((line, _)) => timeless.push_str(&format!("{line} (T)\n")),
                None => timeless.push_str(&format!("{line}\n")),
            }
        }
        timeless
    }
}

/// What came of a deployment: its answer, what was shown, and what was asked of the hosts.
struct Story {
    answer: Result<Vec<Placed>, String>,
    shown: String,
    log: Vec<String>,
}

/// Hosts `a`, `b` and so on, changed as the test has it.
async fn deploy(changes: &[&dyn Fn(&mut Fake)], blobs: Vec<Blob>, signals: u32) -> Story {
    let log = Log::default();
    let names = ["a", "b", "c"];
    let hosts: Vec<Arc<dyn Remote>> = changes
        .iter()
        .zip(names)
        .map(|(change, name)| {
            let mut host = Fake::new(name, &log);
            change(&mut host);
            Arc::new(host) as Arc<dyn Remote>
        })
        .collect();
    let lines = Lines::default();
    let progress = Progress::to(Box::new(lines.clone()), false, false);
    let view = View::new(&progress, hosts.iter().map(|host| host.name()).collect());
    let (count, stops) = watch::channel(0);
    tokio::spawn(async move {
        for _ in 0..signals {
            tokio::time::sleep(Duration::from_millis(20)).await;
            count.send_modify(|count| *count += 1);
        }
        count.closed().await;
    });
    let prepare = Prepare {
        source: Source::Uploaded(Digest::of(b"app").to_string()),
        variables: BTreeMap::new(),
        allow_incompatible: false,
        allow_capabilities: false,
        skip_samples: false,
        message: None,
    };
    let start = Start { revision: 0, plan: Plan::of(Strategy::Canary), message: None };
    let answer = place::place(&hosts, Deployment { prepare, blobs, start }, &view, stops).await;
    let log = log.lock().unwrap().clone();
    Story { answer: answer.map_err(|error| format!("{error:#}")), shown: lines.text(), log }
}

impl Story {
    #[track_caller]
    fn asked(&self, expected: &[&str]) {
        let asked: Vec<_> = self.log.iter().filter(|line| !line.contains("prepare")).collect();
        assert_eq!(asked, expected, "{:?}", self.answer.as_ref().err());
    }

    #[track_caller]
    fn failed(&self, expected: &str) {
        assert_eq!(self.answer.as_ref().err().map(String::as_str), Some(expected));
    }
}

#[tokio::test]
async fn nothing_starts_before_all_hosts_are_ready() {
    let slow = |host: &mut Fake| host.takes = Duration::from_millis(50);
    let story = deploy(&[&|_| {}, &slow, &|_| {}], Vec::new(), 0).await;
    assert_eq!(story.answer.as_ref().map(Vec::len), Ok(3));
    let first = story.log.iter().position(|line| line.contains("start")).unwrap();
    assert_eq!(story.log[..first].iter().filter(|line| line.ends_with("prepared")).count(), 3);
    assert_eq!(story.log[first..].len(), 3);
    let expected = [
        "        Read a  the app (T)",
        "             a  shop/digits: native code (T)",
        "    Compiled a  its components (T)",
        "       Ready a  revision 8 of `shop` (T)",
        "     Started a  the rollout of revision 8 of `shop`, canary",
    ];
    for line in expected {
        assert!(story.shown.lines().any(|shown| shown == line), "{line}\n{}", story.shown);
    }
}

#[tokio::test]
async fn a_single_host_is_not_named() {
    let story = deploy(&[&|_| {}], Vec::new(), 0).await;
    let expected = "        Read the app (T)\n             shop/digits: native code (T)\n    Compiled its components \
                    (T)\n       Ready revision 8 of `shop` (T)\n     Started the rollout of revision 8 of `shop`, canary\n";
    assert_eq!(story.shown, expected);
    let bad = |host: &mut Fake| {
        host.lines.push(Line::Begun { step: "golden samples".to_owned() });
        host.prepare = Err(refused(422, "failed-samples", "1 of 2 golden samples did not pass:\n- digits"));
    };
    let story = deploy(&[&bad], Vec::new(), 0).await;
    story.failed(
        "the revision could not be made ready, so nothing was started and what is live goes on:\n  at `golden \
         samples`: 1 of 2 golden samples did not pass:\n  - digits",
    );
    assert!(story.shown.ends_with("      Failed golden samples (T)\n"), "{}", story.shown);
}

#[tokio::test]
async fn where_one_host_cannot_nothing_is_started_anywhere() {
    let bad = |host: &mut Fake| {
        host.lines.push(Line::Begun { step: "golden samples".to_owned() });
        host.prepare = Err(refused(422, "failed-samples", "1 of 2 golden samples did not pass"));
    };
    let was_there = |host: &mut Fake| host.prepare = Ok(Prepared { unchanged: true, ..prepared(7) });
    let story = deploy(&[&|_| {}, &bad, &was_there], Vec::new(), 0).await;
    story.asked(&["a discard shop@8"]);
    story.failed(
        "1 of 3 hosts could not make the revision ready, so nothing was started and what is live goes on\n  b: at `golden \
         samples`: 1 of 2 golden samples did not pass\nwhat was made ready is discarded",
    );
    assert!(story.shown.contains("      Failed b  golden samples (T)\n"), "{}", story.shown);
    // What cannot be discarded is told.
    let stays = |host: &mut Fake| host.discard = Err(busy);
    let story = deploy(&[&stays, &bad], Vec::new(), 0).await;
    let error = story.answer.err().unwrap();
    assert!(error.ends_with("none of it takes traffic\n  a: revision 8 is still ready: another rollout of `shop` is under way; wait"), "{error}");
}

#[tokio::test]
async fn a_connection_that_breaks_leaves_it_open_what_became_of_the_revision() {
    let story = deploy(&[&|host: &mut Fake| host.prepare = Err(broken()), &|_| {}], Vec::new(), 0).await;
    story.asked(&["b discard shop@8"]);
    let error = story.answer.err().unwrap();
    assert!(error.contains("it may still make the revision ready, but sends no traffic there"), "{error}");
}

#[tokio::test]
async fn hosts_that_got_different_artifacts_start_nothing() {
    let other = |host: &mut Fake| {
        host.prepare = Ok(Prepared { digest: Digest::of(b"other").to_string(), ..prepared(3) });
    };
    let story = deploy(&[&|_| {}, &other], Vec::new(), 0).await;
    story.asked(&["a discard shop@8", "b discard shop@3"]);
    let error = story.answer.err().unwrap();
    assert!(error.contains("give the reference with its digest\n  a: `shop` is sha256:"), "{error}");
}

#[tokio::test]
async fn where_a_rollout_cannot_be_started_the_others_are_undone() {
    let cannot = |host: &mut Fake| host.start = Err(busy);
    let first = |host: &mut Fake| host.start = Ok(rollout(None, "succeeded", 10_000, ""));
    let story = deploy(&[&|_| {}, &cannot, &first], Vec::new(), 0).await;
    let mut undone = story.log[story.log.len() - 3..].to_vec();
    undone.sort();
    assert_eq!(undone, ["a rollback shop to Some(7)", "b discard shop@8", "c remove shop"]);
    story.failed(
        "the rollout could not be started everywhere\n  b: another rollout of `shop` is under way; wait\nwhat had been \
         started was undone",
    );
    for line in [
        "a  revision 8 takes no traffic any more",
        "b  revision 8 is discarded",
        "c  `shop` is removed again",
    ] {
        assert!(story.shown.contains(&format!("      Undone {line}\n")), "{}", story.shown);
    }
}

#[tokio::test]
async fn a_rollout_that_may_have_started_is_looked_for() {
    let unsure = |found: Option<RolloutStatus>| {
        move |host: &mut Fake| {
            host.start = Err(broken);
            host.rollouts = Mutex::new([Ok(found.clone())].into());
        }
    };
    let begun = unsure(Some(rollout(Some(7), "progressing", 500, "")));
    deploy(&[&begun], Vec::new(), 0).await.asked(&["a start shop@8", "a rollback shop to Some(7)"]);
    deploy(&[&unsure(None)], Vec::new(), 0).await.asked(&["a start shop@8", "a discard shop@8"]);
    let mut other = rollout(Some(6), "succeeded", 10_000, "");
    other.candidate = 7;
    deploy(&[&unsure(Some(other))], Vec::new(), 0).await.asked(&["a start shop@8", "a discard shop@8"]);
}

#[tokio::test]
async fn what_others_began_is_left_alone() {
    let live = |host: &mut Fake| host.prepare = Ok(Prepared { unchanged: true, live: true, ..prepared(7) });
    let story = deploy(&[&live], Vec::new(), 0).await;
    story.asked(&[]);
    assert!(
        story.shown.ends_with("   Unchanged revision 7 of `shop` is the same and live already\n"),
        "{}",
        story.shown
    );
    let under_way = |host: &mut Fake| {
        host.prepare = Ok(Prepared { unchanged: true, ..prepared(8) });
        host.rollouts = Mutex::new([Ok(Some(rollout(Some(7), "progressing", 500, "")))].into());
    };
    let story = deploy(&[&under_way], Vec::new(), 0).await;
    story.asked(&[]);
    assert!(story.shown.contains("   Under way the rollout of revision 8"), "{}", story.shown);
    let cannot = |host: &mut Fake| host.start = Err(busy);
    deploy(&[&under_way, &live, &cannot], Vec::new(), 0).await.asked(&["c start shop@8", "c discard shop@8"]);
    let waits = |host: &mut Fake| host.prepare = Ok(Prepared { unchanged: true, ..prepared(8) });
    deploy(&[&waits], Vec::new(), 0).await.asked(&["a start shop@8"]);
}

#[tokio::test]
async fn whoever_stops_while_hosts_get_ready_starts_nothing() {
    let slow = |host: &mut Fake| host.takes = Duration::from_millis(60);
    let story = deploy(&[&slow, &|_| {}], Vec::new(), 1).await;
    story.failed("stopped before anything was started\nwhat was made ready is discarded");
    assert_eq!(story.log.iter().filter(|line| line.contains("discard")).count(), 2);
    let never = |host: &mut Fake| host.takes = Duration::from_secs(3600);
    let story = deploy(&[&never], Vec::new(), 2).await;
    let error = story.answer.err().unwrap();
    assert!(error.starts_with("left while hosts were making the revision ready"), "{error}");
}

#[tokio::test]
async fn only_what_a_host_lacks_is_sent() {
    let blob = |name: &str| Blob { digest: Digest::of(name.as_bytes()), size: 1 << 20, path: name.into() };
    let blobs = || vec![blob("model"), blob("code"), blob("manifest")];
    let has = |host: &mut Fake| host.blobs.lock().unwrap().extend([Digest::of(b"model")]);
    let all = |host: &mut Fake| host.blobs.lock().unwrap().extend(blobs().iter().map(|blob| blob.digest));
    let story = deploy(&[&has, &all], blobs(), 0).await;
    let put: Vec<_> = story.log.iter().filter(|line| line.contains("put")).collect();
    assert_eq!(put, ["a put code", "a put manifest"]);
    let shown = |start: &str, end: &str| {
        story.shown.lines().any(|line| line.starts_with(start) && line.ends_with(end))
    };
    assert!(
        shown("    Uploaded a  2 blobs, 2.0 MiB at ", "/s, 1.0 MiB there already (T)"),
        "{}",
        story.shown
    );
    assert!(shown("    Uploaded b  nothing, 3.0 MiB there", " already (T)"), "{}", story.shown);
}

#[tokio::test]
async fn hosts_are_greeted_before_anything_is_built() {
    let check = async |versions: [Result<&'static str, u16>; 2], expected: Option<&str>, warned: bool| {
        let log = Log::default();
        let hosts: Vec<Arc<dyn Remote>> = ["a", "b"]
            .into_iter()
            .zip(versions)
            .map(|(name, version)| Arc::new(Fake { version, ..Fake::new(name, &log) }) as Arc<dyn Remote>)
            .collect();
        let lines = Lines::default();
        let progress = Progress::to(Box::new(lines.clone()), false, false);
        let view = View::new(&progress, vec!["a".to_owned(), "b".to_owned()]);
        let error = place::greet(&hosts, &view).await.err().map(|error| error.to_string());
        assert_eq!(error.as_deref(), expected);
        assert_eq!(lines.text().contains("Warning b  it runs Tenon 9.9.9"), warned);
    };
    let own = Ok(env!("CARGO_PKG_VERSION"));
    check([own, own], None, false).await;
    check([own, Ok("9.9.9")], None, true).await;
    check([Err(403), own], None, false).await;
    check([own, Err(401)], Some("nothing was deployed\n  b: make a token first"), false).await;
}

/// What following a host shows, and how it ends.
async fn followed(answers: Vec<Asked>) -> (Option<Vec<Ended>>, String) {
    let mut host = Fake::new("a", &Log::default());
    host.rollouts = Mutex::new(answers.into());
    let started = rollout(Some(7), "progressing", 500, "the candidate has answered 0 of 500 calls");
    let placed = [Placed { host: Arc::new(host), prepared: prepared(8), rollout: Some(started) }];
    let lines = Lines::default();
    let progress = Progress::to(Box::new(lines.clone()), false, false);
    let view = View::new(&progress, vec!["a".to_owned()]);
    let (_keep, stops) = watch::channel(0);
    let ended = follow::follow(&placed, &view, stops, Duration::from_millis(1)).await;
    drop(view);
    (ended, lines.text())
}

fn measured(metric: &str, phase: &str, evidence: f64) -> Measurement {
    Measurement {
        function: "shop/digits".to_owned(),
        metric: metric.to_owned(),
        phase: phase.to_owned(),
        stable: Some(0.999),
        candidate: Some(0.93),
        stable_samples: 2280,
        candidate_samples: 120,
        evidence,
        needed: 4000.0,
        dry_run: false,
        text: String::new(),
    }
}

#[tokio::test]
async fn a_rollout_is_followed_to_its_end() {
    let at = |phase: &str, weight, reason: &str| Ok(Some(rollout(Some(7), phase, weight, reason)));
    let (ended, shown) = followed(vec![
        at("progressing", 500, "the candidate has answered 200 of 500 calls"),
        Err(broken),
        at("progressing", 2000, "the candidate has answered 0 of 1000 calls"),
        at("succeeded", 10_000, "revision 8 is stable, and takes all traffic"),
    ])
    .await;
    assert_eq!(ended, Some(vec![Ended::Promoted]));
    let expected = "      Trying step 2 of 6: the candidate has answered 0 of 500 calls\n      \
                    Trying step 2 of 6: the candidate has answered 0 of 1000 calls\n    \
                    Promoted `shop`: revision 8 is stable, and takes all traffic\n";
    assert_eq!(shown, expected);
}

#[tokio::test]
async fn a_candidate_that_was_rolled_back_is_told_of_with_its_numbers() {
    let mut back = rollout(Some(7), "rolled_back", 0, "its success rate is lower");
    back.measurements = vec![
        measured("p99", "successful", 2.0),
        measured("success-rate", "failed", 5120.4),
        measured("x", "failed", 1.0),
    ];
    back.measurements[2].dry_run = true;
    let (ended, shown) = followed(vec![Ok(Some(back))]).await;
    assert_eq!(ended, Some(vec![Ended::RolledBack]));
    let expected = "      Trying step 2 of 6: the candidate has answered 0 of 500 calls\n Rolled back \
                    revision 8 of `shop`, and all traffic goes to revision 7: its success rate is lower\n             \
                    shop/digits: success-rate 0.930 against 0.999; evidence 5120 of 4000, after 120 calls of the \
                    candidate and 2280 of the stable revision\n     History `tenon history shop` has all numbers\n";
    assert_eq!(shown, expected);
}

#[tokio::test]
async fn whoever_must_decide_is_told() {
    let check = async |phase: &str, ended: Ended, verb: &str| {
        let mut waits = rollout(Some(7), phase, 500, "`tenon promote` goes on");
        waits.measurements = vec![measured("p99", "running", 0.5), measured("success-rate", "running", 31.0)];
        let (found, shown) = followed(vec![Ok(Some(waits))]).await;
        assert_eq!(found, Some(vec![ended]));
        assert!(shown.contains(&format!("{verb} step 2 of 6: `tenon promote` goes on\n")), "{shown}");
        assert_eq!(shown.contains("evidence 31.0 of 4000"), phase == "inconclusive", "{shown}");
    };
    check("paused", Ended::Waiting, "     Waiting").await;
    check("inconclusive", Ended::Undecided, "   Undecided").await;
    let (ended, shown) = followed(vec![Ok(None)]).await;
    assert_eq!(ended, Some(vec![Ended::Lost]));
    assert!(
        shown.contains("another rollout took its place, or the app was removed; `tenon status`"),
        "{shown}"
    );
    let forbidden = || refused(403, "forbidden", "the token lacks the scope `read`");
    assert_eq!(followed(vec![Err(forbidden)]).await.0, Some(vec![Ended::Unseen]));
    assert_eq!(followed(vec![Err(busy)]).await.0, Some(vec![Ended::Lost]));
}

#[tokio::test]
async fn a_signal_stops_following_alone() {
    let mut host = Fake::new("a", &Log::default());
    host.rollouts = Mutex::new([Ok(Some(rollout(Some(7), "progressing", 500, "")))].into());
    let placed = [Placed {
        host: Arc::new(host),
        prepared: prepared(8),
        rollout: Some(rollout(Some(7), "progressing", 500, "")),
    }];
    let progress = Progress::to(Box::new(Lines::default()), false, false);
    let view = View::new(&progress, vec!["a".to_owned()]);
    let (count, stops) = watch::channel(0);
    let signal = async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        count.send_modify(|count| *count += 1);
        std::future::pending::<()>().await;
    };
    let ended = tokio::select! {
        ended = follow::follow(&placed, &view, stops, Duration::from_millis(1)) => ended,
        () = signal => None,
    };
    assert_eq!(ended, None);
}

#[test]
fn the_status_of_the_program_tells_how_it_ended() {
    let check = |ended: &[Ended], expected: u8| {
        assert_eq!(format!("{:?}", status(ended)), format!("{:?}", ExitCode::from(expected)));
    };
    check(&[Ended::Promoted, Ended::Waiting, Ended::Unseen], 0);
    check(&[Ended::Promoted, Ended::Undecided], 3);
    check(&[Ended::Undecided, Ended::RolledBack], 1);
    check(&[Ended::Lost], 1);
}

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    deploy: DeployArgs,
}

#[test]
fn arguments_are_those_of_spin_and_more() {
    let parse = |line: &str| Cli::try_parse_from(format!("deploy {line}").split_whitespace());
    let check = |line: &str| parse(line).unwrap_or_else(|error| panic!("{line}: {error}")).deploy;
    assert_eq!(check("").app.from, ".");
    assert_eq!(
        check("-f shop --build --variable a=b --to unix:/x.sock --to https://h:3002").hosts.to.len(),
        2
    );
    assert_eq!(check("ghcr.io/acme/shop:1 --strategy shadow").strategy, Some(Strategy::Shadow));
    assert!(parse("shop -f other").is_err());
    assert_eq!(check("--file shop/spin.toml").spin.named(), Some("shop/spin.toml"));
    assert_eq!(check("--from-registry ghcr.io/acme/shop:1").spin.named(), Some("ghcr.io/acme/shop:1"));
    assert!(parse("--from-file shop --from-registry a/b").is_err());
    assert!(parse("--strategy blue").is_err());
    let refuse = |line: &str, expected: &str| {
        let error = check(line).spin.check().unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    refuse("--readiness-timeout 30", "leave it out");
    refuse("--environment-name prod", "`--to`");
    refuse("--key-value a=b", "leave `--key-value` out");
    assert!(login().unwrap_err().to_string().contains("TENON_TOKEN"));
}

#[test]
fn a_plan_is_that_of_the_strategy_unless_a_file_says_more() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("plan.toml");
    std::fs::write(&file, "strategy = \"canary\"\nsteps = [{ set_weight = 10 }, { pause = {} }]\n").unwrap();
    let of =
        |line: &str| plan(&Cli::try_parse_from(format!("deploy {line}").split_whitespace()).unwrap().deploy);
    assert_eq!(of("").unwrap(), Plan::of(Strategy::AllAtOnce));
    assert_eq!(of("--strategy canary").unwrap(), Plan::of(Strategy::Canary));
    assert_eq!(of(&format!("--plan {}", file.display())).unwrap().steps.len(), 2);
    let error = of(&format!("--strategy manual --plan {}", file.display())).unwrap_err().to_string();
    assert!(error.contains("say it once"), "{error}");
}
