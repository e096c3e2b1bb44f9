//! A host that is killed at random moments of deployments, and must come back with what it acknowledged last or with
//! what was under way, and nothing else.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::api::{Control, Reply, rests};
use super::cycles::Told;
use super::host::Life;
use super::image::{App, Image};
use super::ledger::State;
use super::load::{Caller, Connection, STICKY, TESTER, What, ask};
use super::question::{Question, questions};
use super::reference::scramble;

/// What became of one app's commands: what holds, and what may hold instead because nobody heard how it went.
#[derive(Clone, Debug)]
pub(crate) struct Journal {
    pub(crate) app: String,
    settled: State,
    under_way: Option<State>,
    /// What the revisions call themselves that were acknowledged, and the digests of their images.
    known: BTreeMap<u64, (u32, String)>,
    /// The digest of one that is being made ready.
    preparing: Option<String>,
    /// The digests of those that may have become revisions, or not: nobody heard.
    unheard: BTreeSet<String>,
    history: History,
    /// The last commands and what the host said, for whoever looks for a fault.
    last: VecDeque<String>,
}

impl Journal {
    pub(crate) fn new(app: &str) -> Journal {
        let settled = State::absent();
        Journal {
            app: app.to_owned(),
            settled,
            under_way: None,
            known: BTreeMap::new(),
            preparing: None,
            unheard: BTreeSet::new(),
            history: History::default(),
            last: VecDeque::new(),
        }
    }

    fn begin(&mut self, what: &str, state: State) {
        self.note(format!("{what} leads to {state}"));
        self.under_way = Some(state);
    }

    fn note(&mut self, line: String) {
        self.last.push_back(line);
        if self.last.len() > 16 {
            self.last.pop_front();
        }
    }

    fn acknowledge(&mut self) {
        if let Some(state) = self.under_way.take() {
            self.settled = state;
        }
    }

    fn refuse(&mut self) {
        self.under_way = None;
    }

    /// Which of the states that the app may be in this is.
    ///
    /// # Errors
    /// Where it is none of them: something was lost, or something was done that nobody has commanded.
    pub(crate) fn possible(&self, told: &Told) -> Result<&State, String> {
        let states = [Some(&self.settled), self.under_way.as_ref()];
        let found = states.into_iter().flatten().find(|state| Told::of(state) == *told);
        found.ok_or_else(|| format!("`{}` has {told:?} and should not: {self}", self.app))
    }

    /// Whether these are the revisions that were acknowledged, all of them, and no further ones but one under way.
    ///
    /// # Errors
    /// What is missing, or too much.
    pub(crate) fn revisions(&self, told: &BTreeMap<u64, String>) -> Result<(), String> {
        for (revision, (_, digest)) in &self.known {
            // What takes no traffic may be forgotten, never be another one.
            if told.get(revision).is_some_and(|told| told != digest) {
                return Err(format!("`{}` has another revision {revision}: {told:?}, {self}", self.app));
            }
        }
        let mut unknown = told.iter().filter(|(revision, _)| !self.known.contains_key(revision));
        let may_be =
            |digest: &String| self.preparing.as_ref() == Some(digest) || self.unheard.contains(digest);
        if let Some(more) = unknown.find(|(_, digest)| !may_be(digest)) {
            return Err(format!("`{}` has revision {more:?}, which nobody has deployed: {self}", self.app));
        }
        Ok(())
    }

    /// What was found is what holds.
    fn settle(&mut self, state: State) {
        (self.settled, self.under_way) = (state, None);
        self.unheard.extend(self.preparing.take());
    }
}

impl fmt::Display for Journal {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Journal { settled, under_way, preparing, last, .. } = self;
        write!(out, "{settled} was acknowledged last, under way were {under_way:?} and {preparing:?}")?;
        last.iter().try_for_each(|line| write!(out, "\n  {line}"))
    }
}

/// How much is done.
pub(crate) struct Settings {
    /// How often the host is killed.
    pub(crate) kills: usize,
    /// What chance comes from.
    pub(crate) seed: u64,
}

/// What was done.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) kills: usize,
    pub(crate) deployments: usize,
    /// Kills with a command under way that changes the traffic, of one app or more.
    pub(crate) during_changes: usize,
    /// Of these, those after which it had taken hold.
    pub(crate) took_hold: usize,
    /// Kills while a revision was made ready.
    pub(crate) during_preparations: usize,
    pub(crate) restarts: Vec<Duration>,
}

/// Kills the host again and again while it is deployed to. Each app has an image of its own, and is not there at first.
///
/// # Errors
/// Where the host comes back with anything else than it should.
pub(crate) async fn run(
    life: &mut impl Life,
    apps: &[(App, Image)],
    settings: &Settings,
) -> anyhow::Result<Report> {
    let questions = questions(256, settings.seed);
    let mut report = Report::default();
    let mut journals: Vec<_> = apps.iter().map(|(app, _)| Journal::new(&app.name)).collect();
    let mut chance = settings.seed;
    // How long a command takes with all that belongs to it: learnt from those that ended.
    let mut usual = Duration::from_millis(50);
    while report.kills < settings.kills {
        chance = scramble(chance);
        let started = Instant::now();
        life.start().await?;
        report.restarts.push(started.elapsed());
        let control = life.control();
        for (journal, (app, _)) in journals.iter_mut().zip(apps) {
            let had = journal.under_way.clone();
            let state = comes_back(&control, life, journal, app, &questions).await?;
            report.took_hold += usize::from(had.is_some() && had.as_ref() == Some(&state));
            journal.note(format!("killed and started again in {state}"));
            journal.settle(state);
            read_history(&control, journal).await?;
        }
        let mut actors = JoinSet::new();
        for (index, (journal, (app, image))) in journals.drain(..).zip(apps).enumerate() {
            let (control, app, image) = (control.clone(), app.clone(), image.clone());
            let chance = scramble(!chance ^ (index as u64 + 1) << 40);
            let actor = Actor { control, app, image, journal, chance, deployments: 0, took: Vec::new() };
            actors.spawn(async move { (index, actor.act().await) });
        }
        // In the midst of the first commands, or of those after them.
        let moment = usual.mul_f64(4.0 * (chance >> 11) as f64 / (1_u64 << 53) as f64);
        tokio::time::sleep(moment).await;
        // Whoever has ended by now was not disturbed, and has found a fault.
        let mut faults = Vec::new();
        while let Some(ended) = actors.try_join_next() {
            faults.push(ended?.1.1);
        }
        life.kill().await?;
        ensure!(faults.is_empty(), "without a kill: {faults:?}");
        report.kills += 1;
        let mut ended = Vec::new();
        while let Some(actor) = actors.join_next().await {
            ended.push(actor?);
        }
        ended.sort_by_key(|(index, _)| *index);
        let ended: Vec<_> = ended.into_iter().map(|(_, (actor, _))| actor).collect();
        let took: Vec<_> = ended.iter().flat_map(|actor| &actor.took).copied().collect();
        let mean = took.iter().sum::<Duration>().checked_div(took.len() as u32).unwrap_or(usual * 2);
        usual = ((usual * 3 + mean) / 4).clamp(Duration::from_millis(1), Duration::from_secs(2));
        report.deployments += ended.iter().map(|actor| actor.deployments).sum::<usize>();
        report.during_changes += usize::from(ended.iter().any(|actor| actor.journal.under_way.is_some()));
        report.during_preparations +=
            usize::from(ended.iter().any(|actor| actor.journal.preparing.is_some()));
        journals = ended.into_iter().map(|actor| actor.journal).collect();
    }
    Ok(report)
}

/// Checks what the host tells of an app after its start, and what its callers see; answers what holds from here on.
async fn comes_back(
    control: &Control,
    life: &impl Life,
    journal: &Journal,
    app: &App,
    questions: &Arc<[Question]>,
) -> anyhow::Result<State> {
    let started = Instant::now();
    loop {
        let told = control.app(&app.name).await?;
        let shares = Told::by(told.as_ref());
        journal.possible(&shares).map_err(anyhow::Error::msg)?;
        let revisions = told.as_ref().map(digests).unwrap_or_default();
        journal.revisions(&revisions).map_err(anyhow::Error::msg)?;
        // What was under way when the host died goes on first.
        if told.as_ref().is_none_or(rests) {
            let state = journal.possible(&shares).map_err(anyhow::Error::msg)?.clone();
            serves(life, journal, &state, app, questions).await?;
            let again = Told::by(control.app(&app.name).await?.as_ref());
            ensure!(again == shares, "`{}` had {shares:?} and has {again:?} untouched", app.name);
            return Ok(state);
        }
        ensure!(started.elapsed() < Duration::from_secs(30), "the rollout does not go on: {told:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn digests(told: &Value) -> BTreeMap<u64, String> {
    let revisions = told["revisions"].as_array().into_iter().flatten();
    let each = revisions.map(|revision| (revision["revision"].as_u64(), revision["digest"].as_str()));
    each.filter_map(|(revision, digest)| Some((revision?, digest?.to_owned()))).collect()
}

/// Every caller must be answered as the state says.
async fn serves(
    life: &impl Life,
    journal: &Journal,
    state: &State,
    app: &App,
    questions: &Arc<[Question]>,
) -> anyhow::Result<()> {
    let mut connection = Connection::new(life.address());
    let paths = app.paths();
    let users = (0..24).map(Caller::User).chain([Caller::Tester, Caller::Anybody]);
    for (index, caller) in users.enumerate() {
        let question = &questions[index % questions.len()];
        let seen = ask(&mut connection, &paths[index % paths.len()], caller, question).await;
        let allowed = state.answers(&app.name, caller);
        let fits = match &seen.what {
            What::Absent => allowed.is_empty(),
            What::Right { revision, label } => {
                let known = journal.known.get(revision);
                allowed.contains(revision) && known.is_none_or(|(own, _)| own == label)
            }
            What::Wrong { .. } | What::Broken { .. } => false,
        };
        if !fits {
            bail!("`{}` answers {caller:?} with {:?} in {state:?}", app.name, seen.what);
        }
    }
    Ok(())
}

/// What an app's history has told so far. It only ever grows.
#[derive(Clone, Debug, Default)]
struct History(BTreeMap<u64, Value>);

impl History {
    /// Takes in the newest entries, and answers how many of them are new.
    ///
    /// # Errors
    /// Where one that was told before is gone, or another one now.
    fn add(&mut self, app: &str, told: &Value) -> Result<usize, String> {
        let entries = told.as_array().or_else(|| told["entries"].as_array()).ok_or("no history")?;
        let entries: BTreeMap<u64, &Value> =
            entries.iter().filter_map(|entry| Some((entry["id"].as_u64()?, entry))).collect();
        let oldest = entries.keys().next().copied().unwrap_or_default();
        for (id, entry) in self.0.iter().filter(|(id, _)| **id >= oldest) {
            if entries.get(id).is_none_or(|told| *told != entry) {
                return Err(format!("`{app}`'s history had {entry} and has {:?}", entries.get(id)));
            }
        }
        let before = self.0.len();
        self.0.extend(entries.into_iter().map(|(id, entry)| (id, entry.clone())));
        Ok(self.0.len() - before)
    }
}

/// Takes in the history of an app as the host tells it, and answers how many of its entries are new.
async fn read_history(control: &Control, journal: &mut Journal) -> anyhow::Result<usize> {
    let path = format!("/v1/apps/{}/history?limit=50", journal.app);
    let told = match control.ask(http::Method::GET, &path, None).await? {
        Reply::Done(told) => told,
        // It has none as long as nothing of it was heard.
        Reply::Refused(404, _) => json!([]),
        refused @ Reply::Refused(..) => refused.done()?,
    };
    journal.history.add(&journal.app, &told).map_err(anyhow::Error::msg)
}

/// Whoever deploys one app, until the host is gone.
struct Actor {
    control: Control,
    app: App,
    image: Image,
    journal: Journal,
    chance: u64,
    deployments: usize,
    /// How long each command took that ended.
    took: Vec<Duration>,
}

impl Actor {
    /// Answers what was acknowledged, and the error that ended it.
    async fn act(mut self) -> (Actor, String) {
        loop {
            let started = Instant::now();
            if let Err(error) = self.step().await {
                return (self, format!("{error:#}"));
            }
            self.took.push(started.elapsed());
        }
    }

    fn draw(&mut self, below: u64) -> u64 {
        self.chance = scramble(self.chance);
        (self.chance >> 16) % below
    }

    async fn step(&mut self) -> anyhow::Result<()> {
        let state = self.journal.settled.clone();
        let choice = self.draw(10);
        let Some(stable) = state.stable else { return self.deploy(&state, true).await };
        if state.candidate.is_some() {
            return self.go_on(&state, choice).await;
        }
        match choice {
            0..=4 => self.deploy(&state, true).await,
            5..=7 => self.deploy(&state, false).await,
            8 => {
                let told = self.control.app(&self.app.name).await?.context("the app is gone")?;
                let revisions = told["revisions"].as_array().into_iter().flatten();
                let mut warm = revisions.filter(|revision| revision["warm"] == true);
                let former = warm.find_map(|one| one["revision"].as_u64().filter(|one| *one != stable));
                let Some(former) = former else { return self.deploy(&state, false).await };
                self.command("rollback", json!({ "revision": former }), State::stable(former)).await
            }
            _ => {
                self.journal.begin("remove", State::absent());
                let reply = self.control.remove(&self.app.name).await?;
                self.ended(&reply).await
            }
        }
    }

    async fn deploy(&mut self, state: &State, at_once: bool) -> anyhow::Result<()> {
        // One of its own in every app and every life.
        let label = self.draw(1 << 31) as u32;
        let image = self.image.relabelled(label, &[])?;
        self.control.upload(&image).await?;
        self.deployments += 1;
        self.journal.preparing = Some(image.digest.clone());
        let prepared = match self.control.prepare(&image.digest, &json!({})).await? {
            Ok(prepared) => prepared,
            Err(problem) => bail!("a good revision is not made ready: {problem}"),
        };
        self.journal.preparing = None;
        let told = (label, image.digest.clone());
        if let Some(before) = self.journal.known.insert(prepared.revision, told) {
            bail!("revision {} was {before:?} before", prepared.revision);
        }
        ensure!(!prepared.unchanged, "{prepared:?} is nothing new");
        self.control.settled(&self.app.name).await?;
        let (plan, to) = match at_once {
            true => (json!({ "strategy": "all-at-once" }), State::stable(prepared.revision)),
            false => (manual(), state.with(prepared.revision, &prepared.digest, 0, true)),
        };
        self.journal.begin(&format!("start of {}", prepared.revision), to);
        let reply = self.control.start(&self.app.name, prepared.revision, &plan).await?;
        self.ended(&reply).await?;
        ensure!(matches!(reply, Reply::Done(_)), "a rollout does not start: {reply:?}");
        Ok(())
    }

    /// The next command of a rollout that waits for a person.
    async fn go_on(&mut self, state: &State, choice: u64) -> anyhow::Result<()> {
        let (Some(stable), Some(candidate)) = (state.stable, &state.candidate) else { return Ok(()) };
        let all = State::stable(candidate.revision);
        match choice {
            0..=3 if candidate.weight < 1_000 => self.command("promote", json!({}), state.at(1_000)).await,
            0..=3 if candidate.weight < 6_000 => self.command("promote", json!({}), state.at(6_000)).await,
            0..=3 => self.command("promote", json!({}), all).await,
            4..=5 => self.command("promote", json!({ "full": true }), all).await,
            6..=7 => self.command("rollback", json!({}), State::stable(stable)).await,
            // What waits already has nothing to pause, and goes nowhere by being told so.
            _ => self.command("pause", json!({}), state.clone()).await,
        }
    }

    async fn command(&mut self, verb: &str, command: Value, to: State) -> anyhow::Result<()> {
        self.journal.begin(&format!("{verb} {command}"), to);
        let reply = self.control.command(&self.app.name, verb, command).await;
        let reply = reply.with_context(|| verb.to_owned())?;
        self.ended(&reply).await
    }

    async fn ended(&mut self, reply: &Reply) -> anyhow::Result<()> {
        self.journal.note(format!("  {}", reply.brief()));
        match reply {
            Reply::Done(_) => {
                self.journal.acknowledge();
                let told = read_history(&self.control, &mut self.journal).await?;
                ensure!(told > 0, "what was done does not stand in the history: {}", self.journal);
                let told = Told::by(self.control.app(&self.app.name).await?.as_ref());
                self.journal.possible(&told).map_err(anyhow::Error::msg)?;
            }
            // Not now, or not any more: nothing has changed.
            Reply::Refused(400..=499, _) => self.journal.refuse(),
            Reply::Refused(status, problem) => bail!("{status}: {problem}"),
        }
        Ok(())
    }
}

fn manual() -> Value {
    json!({
        "strategy": "manual",
        "steps": [{ "set_weight": 10 }, { "set_weight": 60 }],
        "sticky": { "header": STICKY },
        "header_routes": [{ "header": TESTER.0, "value": TESTER.1, "revision": "candidate" }],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:abc";

    fn journal(settled: State, under_way: Option<State>) -> Journal {
        let known = (1..=3).map(|revision| (revision, (10 + revision as u32, DIGEST.to_owned())));
        Journal { settled, under_way, known: known.collect(), ..Journal::new("app") }
    }

    #[track_caller]
    fn check(journal: &Journal, weights: &[(u64, u16)], expected: Result<&State, ()>) {
        let candidate = match weights {
            [_, (candidate, _)] => Some(*candidate),
            _ => None,
        };
        let weights = weights.iter().copied().filter(|(_, weight)| *weight > 0).collect();
        let told = Told { weights, candidate };
        let found = journal.possible(&told);
        assert_eq!(found.map_err(|_| ()), expected, "{told:?} in {journal}");
    }

    #[test]
    fn what_was_acknowledged_last_or_is_under_way_may_hold_and_nothing_else() {
        let (one, two) = (State::stable(1), State::stable(2));
        let quiet = journal(two.clone(), None);
        check(&quiet, &[(2, 10_000)], Ok(&two));
        check(&quiet, &[(1, 10_000)], Err(()));
        check(&quiet, &[(3, 10_000)], Err(()));
        check(&quiet, &[], Err(()));
        let disturbed = journal(one.clone(), Some(two.clone()));
        check(&disturbed, &[(1, 10_000)], Ok(&one));
        check(&disturbed, &[(2, 10_000)], Ok(&two));
        check(&disturbed, &[(3, 10_000)], Err(()));
        check(&disturbed, &[(1, 5_000), (2, 5_000)], Err(()));
    }

    #[test]
    fn a_weight_that_nobody_has_set_is_a_fault() {
        let canary = State::stable(1).with(2, DIGEST, 1_000, true);
        let next = canary.at(6_000);
        let journal = journal(canary.clone(), Some(next.clone()));
        check(&journal, &[(1, 9_000), (2, 1_000)], Ok(&canary));
        check(&journal, &[(1, 4_000), (2, 6_000)], Ok(&next));
        check(&journal, &[(1, 10_000)], Err(()));
        check(&journal, &[(2, 10_000)], Err(()));
        check(&journal, &[(1, 9_000), (3, 1_000)], Err(()));
    }

    #[test]
    fn a_candidate_without_weight_is_not_the_same_as_none() {
        let (alone, tried) = (State::stable(1), State::stable(1).with(2, DIGEST, 0, true));
        let starting = journal(alone.clone(), Some(tried.clone()));
        check(&starting, &[(1, 10_000)], Ok(&alone));
        check(&starting, &[(1, 10_000), (2, 0)], Ok(&tried));
        check(&starting, &[(1, 10_000), (3, 0)], Err(()));
        check(&journal(tried, None), &[(1, 10_000)], Err(()));
    }

    #[test]
    fn a_removal_under_way_leaves_all_or_nothing() {
        let journal = journal(State::stable(1), Some(State::absent()));
        check(&journal, &[(1, 10_000)], Ok(&State::stable(1)));
        check(&journal, &[], Ok(&State::absent()));
        check(&journal, &[(2, 10_000)], Err(()));
    }

    #[test]
    fn a_revision_that_nobody_deployed_is_a_fault() {
        let mut journal = journal(State::stable(1), None);
        let told = |pairs: &[(u64, &str)]| -> BTreeMap<u64, String> {
            pairs.iter().map(|(revision, digest)| (*revision, (*digest).to_owned())).collect()
        };
        assert_eq!(journal.revisions(&told(&[(1, DIGEST), (2, DIGEST)])), Ok(()));
        assert!(journal.revisions(&told(&[(1, "sha256:other")])).is_err());
        assert!(journal.revisions(&told(&[(1, DIGEST), (4, "sha256:new")])).is_err());
        journal.preparing = Some("sha256:new".to_owned());
        assert_eq!(journal.revisions(&told(&[(1, DIGEST), (4, "sha256:new")])), Ok(()));
        assert!(journal.revisions(&told(&[(1, DIGEST), (4, "sha256:other")])).is_err());
        journal.settle(State::stable(1));
        assert_eq!(journal.revisions(&told(&[(1, DIGEST), (4, "sha256:new")])), Ok(()));
    }

    #[test]
    fn a_history_that_loses_or_changes_an_entry_is_a_fault() {
        let entries = |ids: &[(u64, &str)]| -> Value {
            ids.iter().map(|(id, event)| json!({ "id": id, "event": event })).collect()
        };
        let told = |second: Value| {
            let mut history = History::default();
            assert_eq!(history.add("app", &entries(&[(4, "promoted"), (2, "started")])), Ok(2));
            history.add("app", &second)
        };
        assert_eq!(told(entries(&[(7, "removed"), (4, "promoted"), (2, "started")])), Ok(1));
        // The oldest may be out of what is told.
        assert_eq!(told(entries(&[(9, "removed"), (4, "promoted")])), Ok(1));
        assert!(told(entries(&[(7, "removed"), (2, "started")])).is_err());
        assert!(told(entries(&[(4, "rolled-back"), (2, "started")])).is_err());
        assert!(told(json!([])).is_err());
        assert!(told(json!({})).is_err());
    }
}
