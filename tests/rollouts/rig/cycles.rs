//! A function under load that is deployed, canaried, promoted, rolled back and removed, again and again.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use serde_json::{Value, json};

use super::api::{Control, Prepared, Reply, phase};
use super::image::{App, Image};
use super::ledger::{Ledger, State, Verdict, WHOLE, lingering};
use super::load::{Calls, Load, Pace, STICKY, Seen, TESTER};
use super::question::{Question, questions};

/// How much is done.
pub(crate) struct Settings {
    pub(crate) cycles: u32,
    pub(crate) callers: usize,
    /// Calls in each state, so that each is reached by calls.
    pub(crate) calls: u64,
}

/// What was seen of all cycles.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) verdict: Verdict,
    pub(crate) deployments: Vec<Duration>,
    pub(crate) rollbacks: Vec<Rollback>,
    pub(crate) took: Duration,
    /// Of the answered calls.
    pub(crate) latencies: Vec<Duration>,
}

/// How fast a revision was out of service, all from the moment at which the command was sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rollback {
    pub(crate) acknowledged: Duration,
    /// Until the last call was begun that it answered.
    pub(crate) last_begun: Duration,
    /// Until the last of its answers had come: what was running is in it.
    pub(crate) last_ended: Duration,
}

/// One rollback that is looked for in what was seen.
struct Command {
    revision: u64,
    sent: Instant,
    acknowledged: Instant,
}

struct Story<'a> {
    control: &'a Control,
    app: &'a App,
    image: &'a Image,
    settings: &'a Settings,
    questions: Arc<[Question]>,
    address: SocketAddr,
    label: u32,
    report: Report,
}

/// What happens in one cycle, while the callers call.
struct Cycle {
    ledger: Ledger,
    load: Load,
    rollbacks: Vec<Command>,
}

/// Runs the cycles, on a host that does not have the app.
///
/// # Errors
/// Where the host does not do what it is told; what callers saw stands in the report.
pub(crate) async fn run(
    control: &Control,
    address: SocketAddr,
    app: &App,
    image: &Image,
    settings: &Settings,
) -> anyhow::Result<Report> {
    let questions = questions(4096, 1);
    let mut story =
        Story { control, app, image, settings, questions, address, label: 0, report: Report::default() };
    let started = Instant::now();
    for cycle in 0..settings.cycles {
        story.cycle(cycle).await.with_context(|| format!("cycle {cycle}"))?;
    }
    story.report.took = started.elapsed();
    story.report.latencies.sort_unstable();
    Ok(story.report)
}

/// Two steps of a person, with users who stay and testers who see the candidate from the start.
fn canary() -> Value {
    json!({
        "strategy": "canary",
        "steps": [{ "set_weight": 5 }, { "pause": {} }, { "set_weight": 50 }, { "pause": {} }],
        "sticky": { "header": STICKY },
        "header_routes": [{ "header": TESTER.0, "value": TESTER.1, "revision": "candidate" }],
    })
}

impl Story<'_> {
    async fn cycle(&mut self, number: u32) -> anyhow::Result<()> {
        let calls = Calls {
            address: self.address,
            paths: self.app.paths(),
            questions: Arc::clone(&self.questions),
            callers: self.settings.callers,
            users: 1000,
            pace: Pace::AtOnce,
        };
        let ledger = Ledger::new(&self.app.name, State::absent());
        let mut cycle = Cycle { ledger, load: Load::start(&calls), rollbacks: Vec::new() };
        let told = self.changes(&mut cycle, number).await;
        let Cycle { ledger, load, rollbacks } = cycle;
        let seen = load.finish().await;
        self.judge(&ledger, &seen, &rollbacks);
        // What went wrong for callers tells more than that a command failed after it.
        told.map_err(|error| error.context(format!("calls until then: {:?}", self.report.verdict.examples)))
    }

    async fn changes(&mut self, cycle: &mut Cycle, number: u32) -> anyhow::Result<()> {
        cycle.load.more(self.settings.calls).await?;
        let first = self.ready(cycle).await?;
        let all_at_once = json!({ "strategy": "all-at-once" });
        let a = State::stable(first.revision);
        self.start(cycle, &first, &all_at_once, &a).await?;

        // A canary that goes well.
        let second = self.ready(cycle).await?;
        let canaried = a.with(second.revision, &second.digest, 500, true);
        self.start(cycle, &second, &canary(), &canaried).await?;
        self.command(cycle, "promote", json!({}), &canaried.at(5_000)).await?;
        let b = State::stable(second.revision);
        // By its last step, or past it.
        self.command(cycle, "promote", json!({ "full": number.is_multiple_of(2) }), &b).await?;

        // One that a person takes back, from its first weight or from its second.
        let third = self.ready(cycle).await?;
        let canaried = b.with(third.revision, &third.digest, 500, true);
        self.start(cycle, &third, &canary(), &canaried).await?;
        if number.is_multiple_of(2) {
            self.command(cycle, "promote", json!({}), &canaried.at(5_000)).await?;
        }
        self.rollback(cycle, third.revision, json!({}), &b).await?;

        // And the one that went well turns out to be bad after all.
        self.rollback(cycle, second.revision, json!({ "revision": first.revision }), &a).await?;

        let removed = State::absent();
        let sent = cycle.ledger.send(removed);
        self.control.remove(&self.app.name).await?.done().context("remove")?;
        cycle.ledger.acknowledge(sent);
        cycle.load.more(self.settings.calls).await
    }

    async fn ready(&mut self, cycle: &mut Cycle) -> anyhow::Result<Prepared> {
        self.control.settled(&self.app.name).await?;
        self.label += 1;
        let image = self.image.relabelled(self.label, &[])?;
        let started = Instant::now();
        let prepared = self.control.ready(&image).await?;
        self.report.deployments.push(started.elapsed());
        cycle.ledger.prepared(prepared.revision, self.label).map_err(anyhow::Error::msg)?;
        ensure!(!prepared.unchanged && !prepared.live, "{prepared:?} is nothing new");
        Ok(prepared)
    }

    async fn start(
        &self,
        cycle: &mut Cycle,
        prepared: &Prepared,
        plan: &Value,
        to: &State,
    ) -> anyhow::Result<()> {
        let started = self.control.start(&self.app.name, prepared.revision, plan);
        self.change(cycle, to, started).await.with_context(|| format!("start of {}", prepared.revision))
    }

    async fn command(&self, cycle: &mut Cycle, verb: &str, command: Value, to: &State) -> anyhow::Result<()> {
        let context = format!("{verb} {command} to {to:?}");
        self.change(cycle, to, self.control.command(&self.app.name, verb, command)).await.context(context)
    }

    async fn rollback(
        &self,
        cycle: &mut Cycle,
        revision: u64,
        command: Value,
        to: &State,
    ) -> anyhow::Result<()> {
        self.control.settled(&self.app.name).await?;
        let sent = Instant::now();
        let entry = cycle.ledger.send(to.clone());
        self.control.command(&self.app.name, "rollback", command).await?.done().context("rollback")?;
        cycle.ledger.acknowledge(entry);
        cycle.rollbacks.push(Command { revision, sent, acknowledged: Instant::now() });
        self.observe(to).await?;
        cycle.load.more(self.settings.calls).await
    }

    /// Sends a command that leads to a state, and lets calls come in it.
    async fn change(
        &self,
        cycle: &mut Cycle,
        to: &State,
        command: impl Future<Output = anyhow::Result<Reply>>,
    ) -> anyhow::Result<()> {
        let sent = cycle.ledger.send(to.clone());
        command.await?.done()?;
        cycle.ledger.acknowledge(sent);
        self.observe(to).await?;
        cycle.load.more(self.settings.calls).await
    }

    /// The host must say of itself what callers see.
    async fn observe(&self, expected: &State) -> anyhow::Result<()> {
        let told = self.control.app(&self.app.name).await?;
        let found = Told::by(told.as_ref());
        ensure!(found == Told::of(expected), "{found:?} is told in {expected}: {told:?}");
        Ok(())
    }

    fn judge(&mut self, ledger: &Ledger, seen: &[Seen], rollbacks: &[Command]) {
        let report = &mut self.report;
        report.latencies.extend(seen.iter().map(|one| one.ended - one.sent));
        report.verdict.add(ledger.judge(seen));
        for Command { revision, sent, acknowledged } in rollbacks {
            // It may come back later: what counts is what came until well after this command.
            let (begun, ended) = lingering(seen, *revision, *sent, *acknowledged + Duration::from_secs(5));
            let acknowledged = *acknowledged - *sent;
            report.rollbacks.push(Rollback { acknowledged, last_begun: begun, last_ended: ended });
        }
    }
}

/// What a host tells of an app's traffic.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Told {
    /// Each revision's share of the traffic, without those that have none.
    pub(crate) weights: BTreeMap<u64, u16>,
    /// The revision that is being rolled out, whatever its share.
    pub(crate) candidate: Option<u64>,
}

impl Told {
    /// By the app's status, where there is one.
    pub(crate) fn by(status: Option<&Value>) -> Told {
        let Some(status) = status else { return Told::default() };
        let revisions = status["revisions"].as_array().into_iter().flatten();
        let weight = |revision: &Value| {
            let weight = revision["weight"].as_u64().and_then(|weight| weight.try_into().ok());
            Some((revision["revision"].as_u64()?, weight?))
        };
        let weights = revisions.filter_map(weight).filter(|(_, weight)| *weight > 0).collect();
        let over = matches!(phase(status), "" | "succeeded" | "rolled_back");
        let candidate = status["rollout"]["candidate"].as_u64().filter(|_| !over);
        Told { weights, candidate }
    }

    /// What a host in this state has to tell.
    pub(crate) fn of(state: &State) -> Told {
        let Some(stable) = state.stable else { return Told::default() };
        let Some(candidate) = &state.candidate else {
            return Told { weights: BTreeMap::from([(stable, WHOLE)]), candidate: None };
        };
        let both = [(stable, WHOLE - candidate.weight), (candidate.revision, candidate.weight)];
        let weights = both.into_iter().filter(|(_, weight)| *weight > 0).collect();
        Told { weights, candidate: Some(candidate.revision) }
    }
}

impl Report {
    /// That nothing was wrong.
    ///
    /// # Errors
    /// What was.
    pub(crate) fn flawless(&self) -> anyhow::Result<()> {
        let Verdict { calls, wrong, examples, .. } = &self.verdict;
        if *wrong > 0 {
            bail!("{wrong} of {calls} calls went wrong:\n{}", examples.join("\n"));
        }
        Ok(())
    }
}
