//! Candidates that are worse than what they are to replace, each in its own way, and candidates that are not.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::rig::api::{Control, Reply, phase};
use super::rig::host::Life as _;
use super::rig::image::{App, Image};
use super::rig::load::{Calls, Load, Pace, Seen, What};
use super::rig::question::questions;
use super::{PROGRAM, candidate, host, run};

/// A candidate beside a stable revision.
struct Trial {
    /// What both do.
    both: &'static str,
    /// What the candidate does beyond that.
    habit: &'static str,
    /// What the candidate may call beyond what the stable revision may; a person has allowed that.
    hosts: &'static str,
    pace: Pace,
    callers: usize,
    /// How long both wait in each call, as for a device; times are multiples of it.
    wait: Duration,
    plan: Value,
    /// How long it may take.
    longest: Duration,
}

/// What came of it.
struct Outcome {
    /// The app as the host tells it.
    told: Value,
    history: Vec<Value>,
    /// What callers saw of each revision: right answers and others.
    seen: BTreeMap<u64, (usize, usize)>,
    /// How long the right answers of each took: a half, and all but one of a hundred.
    latencies: BTreeMap<u64, (Duration, Duration)>,
    /// Calls that nobody answered, or nobody says who did.
    lost: Vec<String>,
}

/// Which of these has enough evidence first depends on the calls.
const FAILURES: [&str; 4] = ["success_rate", "error_rate", "trap_rate", "limit_kill_rate"];

/// So long that what the machine does beside is little of it.
const LONG: Duration = Duration::from_millis(20);

const STABLE: u64 = 1;
const CANDIDATE: u64 = 2;

impl Trial {
    /// The default canary, looked at twice a second.
    fn of(habit: &'static str) -> Trial {
        let plan = json!({ "strategy": "canary", "analysis": { "interval_s": 0.5 } });
        Trial {
            both: "",
            habit,
            hosts: "",
            pace: Pace::AtOnce,
            callers: 24,
            wait: Duration::from_millis(4),
            plan,
            longest: Duration::from_secs(90),
        }
    }

    /// Deploys both on a host of their own and calls, until the rollout is over or asks for a person.
    fn run(self) -> Outcome {
        run(Duration::from_secs(200), async move {
            let folder = tempfile::tempdir()?;
            let mut host = host(folder.path(), "")?;
            host.start().await?;
            let control = host.control();
            let wait = self.wait.as_micros().to_string();
            let app = App::new("trial", &candidate()).with("BEHAVIOUR", "").with("WAIT_US", &wait);
            let limits = "[component.trial.tool.tenon.limits]\nmemory_mib = 32\n";
            let pack = |hosts: &str, folder: &str| {
                let settings = format!("allowed_outbound_hosts = [{hosts}]\n{limits}");
                let app = app.clone().settings(&settings);
                app.pack(Path::new(PROGRAM), &host.config(), &host.state().join("..").join(folder))
            };
            let stable = pack("", "stable")?.relabelled(1, &[("BEHAVIOUR", self.both)])?;
            deploy(&control, &app, &stable, &json!({ "strategy": "all-at-once" })).await?;
            let calls = Calls {
                address: host.address(),
                paths: app.paths(),
                questions: questions(20_000, 7),
                callers: self.callers,
                users: 10_000,
                pace: self.pace,
            };
            let load = Load::start(&calls);
            load.more(20).await?;
            let behaviour = format!("{} {}", self.both, self.habit);
            let worse = pack(self.hosts, "worse")?.relabelled(2, &[("BEHAVIOUR", behaviour.trim())])?;
            deploy(&control, &app, &worse, &self.plan).await?;
            let told = ended(&control, &app.name, self.longest).await?;
            // What comes now comes of what was decided.
            load.more(if matches!(self.pace, Pace::AtOnce) { 200 } else { 1 }).await?;
            let history = control.get(&format!("/v1/apps/{}/history?limit=100", app.name)).await?;
            let seen = load.finish().await;
            let history = history.as_array().cloned().unwrap_or_default();
            Ok(Outcome::of(told, history, &seen))
        })
    }
}

/// Has an image made ready and its rollout started.
async fn deploy(control: &Control, app: &App, image: &Image, plan: &Value) -> anyhow::Result<()> {
    control.upload(image).await?;
    let prepared = control.prepare(&image.digest, &json!({ "allow_capabilities": true })).await?;
    let prepared = prepared.map_err(|problem| anyhow::anyhow!("not ready: {problem}"))?;
    control.start(&app.name, prepared.revision, plan).await?.done()?;
    Ok(())
}

/// Waits until the rollout is over, or waits for a person.
async fn ended(control: &Control, app: &str, longest: Duration) -> anyhow::Result<Value> {
    let started = Instant::now();
    loop {
        let told = control.get(&format!("/v1/apps/{app}")).await?;
        if matches!(phase(&told), "succeeded" | "rolled_back" | "inconclusive" | "paused") {
            return Ok(told);
        }
        if started.elapsed() > longest {
            return Ok(told);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

impl Outcome {
    fn of(told: Value, history: Vec<Value>, seen: &[Seen]) -> Outcome {
        let (lost, latencies) = (Vec::new(), BTreeMap::new());
        let mut outcome = Outcome { told, history, seen: BTreeMap::new(), latencies, lost };
        let mut took: BTreeMap<u64, Vec<Duration>> = BTreeMap::new();
        for one in seen {
            match &one.what {
                What::Right { revision, .. } => {
                    outcome.seen.entry(*revision).or_default().0 += 1;
                    took.entry(*revision).or_default().push(one.ended - one.sent);
                }
                What::Wrong { revision: Some(revision), .. } => {
                    outcome.seen.entry(*revision).or_default().1 += 1;
                }
                other => outcome.lost.push(format!("{other:?}")),
            }
        }
        for (revision, mut took) in took {
            took.sort_unstable();
            outcome.latencies.insert(revision, (took[took.len() / 2], took[took.len() * 99 / 100]));
        }
        outcome
    }

    /// What a person wants to know where it went otherwise.
    fn show(&self) {
        let Outcome { told, seen, latencies, .. } = self;
        eprintln!("{seen:?} {latencies:?} {}", told["rollout"]["reason"]);
    }

    /// What both revisions must have done, whatever became of the rollout.
    #[track_caller]
    fn check_callers(&self) {
        assert!(self.lost.is_empty(), "lost: {:?}", self.lost.iter().take(5).collect::<Vec<_>>());
        let (right, wrong) = self.seen.get(&STABLE).copied().unwrap_or_default();
        assert!(right > 0 && wrong == 0, "the stable revision answered {right} rightly and {wrong} wrongly");
    }

    /// The candidate was taken back because of one of these metrics.
    #[track_caller]
    fn check_rolled_back(&self, metrics: &[&str]) {
        self.show();
        assert_eq!(phase(&self.told), "rolled_back", "{}", self.told["rollout"]);
        assert_eq!(self.told["stable"], STABLE);
        let rolled_back = self.history.iter().find(|entry| entry["event"] == "aborting");
        let rolled_back = rolled_back.unwrap_or_else(|| panic!("no such entry: {:#?}", self.history));
        let text = rolled_back["text"].as_str().unwrap_or_default();
        assert!(metrics.iter().any(|metric| text.contains(metric)), "not because of {metrics:?}: {text}");
        let numbers = rolled_back["details"]["measurements"].as_array().map(Vec::len);
        assert!(numbers.is_some_and(|numbers| numbers >= 5), "without its numbers: {rolled_back}");
        self.check_callers();
    }

    #[track_caller]
    fn check_promoted(&self) {
        self.show();
        assert_eq!(phase(&self.told), "succeeded", "{}", self.told["rollout"]);
        assert_eq!(self.told["stable"], CANDIDATE);
        self.check_callers();
    }
}

#[test]
fn a_candidate_that_answers_twice_as_slowly_is_taken_back() {
    Trial { wait: LONG, ..Trial::of("slower:2") }.run().check_rolled_back(&["latency_p50"]);
}

#[test]
fn a_candidate_with_a_slow_tail_is_taken_back() {
    // Few callers, so that what calls take is not what they wait for each other.
    let wait = Duration::from_millis(10);
    Trial { callers: 6, wait, ..Trial::of("slower:5:50") }.run().check_rolled_back(&["latency_p99"]);
}

#[test]
fn a_candidate_that_traps_in_one_of_200_calls_is_taken_back() {
    Trial::of("trap:200").run().check_rolled_back(&FAILURES);
}

#[test]
fn a_candidate_that_is_wrong_in_one_class_is_taken_back() {
    Trial::of("wrong:7").run().check_rolled_back(&["drift"]);
}

#[test]
fn a_candidate_that_answers_nan_is_taken_back() {
    Trial::of("nan:50").run().check_rolled_back(&["non_finite"]);
}

#[test]
fn a_candidate_whose_answers_drift_is_taken_back() {
    Trial::of("drift:8").run().check_rolled_back(&["drift"]);
}

#[test]
fn a_candidate_that_leaks_memory_up_to_its_limit_is_taken_back() {
    Trial::of("leak:50").run().check_rolled_back(&FAILURES);
}

#[test]
fn a_candidate_that_is_refused_what_it_needs_elsewhere_is_taken_back() {
    // Its author names the host and a person has allowed that, but the operator lets nobody go there.
    let hosts = "\"http://127.0.0.1:9\"";
    Trial { hosts, ..Trial::of("fetch:http://127.0.0.1:9/") }.run().check_rolled_back(&FAILURES);
}

#[test]
fn an_equal_candidate_is_promoted() {
    Trial::of("").run().check_promoted();
}

#[test]
fn a_faster_candidate_is_promoted() {
    Trial::of("slower:0.5").run().check_promoted();
}

#[test]
fn an_equal_candidate_in_noisy_traffic_is_promoted() {
    let pace = Pace::Bursts(Duration::from_millis(400), Duration::from_millis(200));
    let noisy = Trial { both: "uneven:6 raise:40", pace, ..Trial::of("") };
    let outcome = noisy.run();
    assert_eq!(phase(&outcome.told), "succeeded", "{}", outcome.told["rollout"]);
    assert!(outcome.lost.is_empty(), "{:?}", outcome.lost);
    let (right, raised) = outcome.seen[&STABLE];
    assert!(raised > 0 && right > raised * 20, "{:?}", outcome.seen);
}

#[test]
fn without_traffic_a_person_is_asked_and_nothing_is_taken_back() {
    let plan = json!({
        "strategy": "canary", "analysis": { "interval_s": 0.5 }, "progress_deadline_s": 5
    });
    let pace = Pace::After(Duration::from_millis(400));
    let outcome = Trial { pace, callers: 2, plan, ..Trial::of("") }.run();
    assert!(matches!(phase(&outcome.told), "inconclusive" | "paused"), "{}", outcome.told["rollout"]);
    assert_eq!(outcome.told["stable"], STABLE);
    outcome.check_callers();
}

/// A deployment onto a live revision that must be refused, with this error and each of these words in it; the live
/// revision goes on.
fn refused(change: impl FnOnce(App, &Path) -> App, request: Value, error: &str, words: &[&str]) {
    run(Duration::from_secs(100), async {
        let folder = tempfile::tempdir()?;
        let mut host = host(folder.path(), "")?;
        host.start().await?;
        let control = host.control();
        let app = App::new("trial", &candidate()).with("BEHAVIOUR", "");
        let live = app.pack(Path::new(PROGRAM), &host.config(), &folder.path().join("live"))?;
        deploy(&control, &app, &live.relabelled(1, &[])?, &json!({ "strategy": "all-at-once" })).await?;
        let calls = Calls {
            address: host.address(),
            paths: app.paths(),
            questions: questions(500, 7),
            callers: 4,
            users: 100,
            pace: Pace::AtOnce,
        };
        let load = Load::start(&calls);
        let new = folder.path().join("new");
        std::fs::create_dir_all(&new)?;
        let image = change(app.clone(), &new).pack(Path::new(PROGRAM), &host.config(), &new)?;
        control.upload(&image).await?;
        let problem = control.prepare(&image.digest, &request).await?.expect_err("it is not refused");
        assert_eq!(problem["title"], error, "{problem}");
        let detail = problem["detail"].as_str().unwrap_or_default();
        for word in words {
            assert!(detail.contains(word), "no `{word}` in {detail}");
        }
        let told = control.get("/v1/apps/trial").await?;
        assert_eq!((&told["stable"], told["revisions"].as_array().map(Vec::len)), (&json!(STABLE), Some(1)));
        // It is not there, so it cannot be started.
        let start = control.start("trial", CANDIDATE, &json!({ "strategy": "all-at-once" })).await?;
        assert!(matches!(start, Reply::Refused(404, _)), "{start:?}");
        load.more(100).await?;
        let outcome = Outcome::of(told, Vec::new(), &load.finish().await);
        outcome.check_callers();
        assert_eq!(outcome.seen.len(), 1, "{:?}", outcome.seen);
        Ok(())
    });
}

#[test]
fn a_candidate_that_needs_a_further_host_is_refused_unless_a_person_allows_it() {
    let needs = |app: App, _: &Path| app.settings("allowed_outbound_hosts = [\"http://127.0.0.1:9\"]");
    refused(needs, json!({}), "capabilities-grown", &["127.0.0.1:9", "--allow-capabilities"]);
}

#[test]
fn a_candidate_whose_golden_samples_are_wrong_is_refused() {
    let with_sample = |app: App, folder: &Path| {
        let question = &questions(1, 3)[0];
        let request: Value = serde_json::from_str(&question.body).unwrap();
        let label = json!({ "name": "label", "datatype": "INT64", "shape": [1], "data": [question.answer.label + 1] });
        let sample = json!({ "request": request, "response": { "outputs": [label] } });
        std::fs::write(folder.join("one.json"), sample.to_string()).unwrap();
        app.settings("[component.trial.tool.tenon]\nsamples = [\"one.json\"]")
    };
    refused(with_sample, json!({}), "failed-samples", &["one", "label"]);
}

#[test]
fn a_candidate_with_another_interface_is_refused() {
    let other = |app: App, _: &Path| App { wasm: super::guests().join("typed_echo.wasm"), ..app };
    refused(other, json!({}), "not-compatible", &["`x`", "--allow-incompatible"]);
}
