//! What a rollout does next: a state that takes in the time, what was counted and what people say, and says which
//! traffic the candidate is to take.
//!
//! Every event is allowed in every phase: a tick that has nothing to do does nothing, and a command that makes no
//! sense now is answered by one that does.

mod words;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::analysis::{Analysis, Arms, Judgement, Measurement};
use super::plan::{AnalysisStep, HeaderRoute, OnFailure, Plan, Side, Step, Sticky, Strategy, WHOLE, stored};

/// Where a rollout stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// The candidate answers copies of live calls.
    Shadowing,
    /// It goes through its steps by itself.
    Progressing,
    /// It waits for a person, because a step, or a person, says so.
    Paused,
    /// It waits for a person, because the numbers do not decide, or are not to.
    Inconclusive,
    /// All traffic is to go to the candidate; over with the next tick.
    Promoting,
    /// Over: the candidate is the stable revision.
    Succeeded,
    /// No traffic is to go to the candidate; over with the next tick.
    Aborting,
    /// Over: the stable revision is what it was.
    RolledBack,
}

/// The rollout of one revision.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Rollout {
    /// Counted from 1 in each app.
    pub id: u64,
    pub app: String,
    /// Absent where the candidate is the app's first revision.
    pub stable: Option<u64>,
    pub candidate: u64,
    #[serde(with = "stored")]
    pub plan: Plan,
    pub phase: Phase,
    /// The step that it is at, or waits to begin; as many as there are once all are done.
    pub step: usize,
    pub step_started_ms: u64,
    /// Hundredths of a percent of the traffic that the candidate takes.
    pub weight: u16,
    /// Hundredths of a percent of the live calls that are copied to the candidate.
    pub shadow_share: u16,
    /// What the plan and its steps so far send to one revision.
    pub header_routes: Vec<HeaderRoute>,
    /// What it waits for, or why it ended, in words.
    pub reason: String,
    pub analysis: Analysis,
    /// The latest numbers of every metric of every function.
    pub measurements: Vec<Measurement>,
    pub started_ms: u64,
    pub changed_ms: u64,
    /// The functions that are judged.
    functions: Vec<String>,
    /// Those of them that the stable revision lacks.
    #[serde(default)]
    new_functions: Vec<String>,
    /// How long this step has waited by itself.
    waited_ms: u64,
    /// Whether a person stopped it amid a step, which then goes on where it was.
    stopped: bool,
    /// Whether the step that it is at has not begun, and does when a person says so.
    held: bool,
    /// When the candidate first took calls.
    exposed_ms: Option<u64>,
    ticked_ms: u64,
}

/// What the data plane is to do now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Whether any calls may go to the candidate at all.
    pub candidate: bool,
    /// Hundredths of a percent of the traffic that the candidate takes.
    pub weight: u16,
    /// Hundredths of a percent of the live calls that are copied to the candidate.
    pub shadow_share: u16,
    pub header_routes: Vec<HeaderRoute>,
    pub sticky: Option<Sticky>,
}

/// Something that happened to a rollout, for its history.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// A word such as `promoted`.
    pub event: &'static str,
    pub text: String,
    /// The numbers behind it.
    pub details: Value,
}

/// Why a command does nothing now, and what does.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NotNow(pub String);

/// Time between two ticks beyond this, or beyond twice the interval of looks, was not spent waiting: the host was
/// down, or its clock was set.
const LONGEST_GAP_MS: u64 = 60_000;

impl Rollout {
    /// Begins with the first step.
    ///
    /// `functions` are the names of the candidate's functions, which are judged. Without a stable revision all
    /// traffic goes to the candidate at once, whatever the plan says.
    pub fn start(
        id: u64,
        app: &str,
        stable: Option<u64>,
        candidate: u64,
        plan: Plan,
        functions: &[String],
        now_ms: u64,
    ) -> (Rollout, Vec<Change>) {
        let mut rollout = Rollout {
            id,
            app: app.to_owned(),
            stable,
            candidate,
            analysis: Analysis::new(&plan.analysis, functions),
            header_routes: plan.header_routes.clone(),
            plan,
            phase: Phase::Progressing,
            step: 0,
            step_started_ms: now_ms,
            weight: 0,
            shadow_share: 0,
            reason: String::new(),
            measurements: Vec::new(),
            started_ms: now_ms,
            changed_ms: now_ms,
            functions: functions.to_owned(),
            new_functions: Vec::new(),
            waited_ms: 0,
            stopped: false,
            held: false,
            exposed_ms: None,
            ticked_ms: now_ms,
        };
        let mut changes = vec![rollout.started()];
        if stable.is_none() || rollout.plan.strategy == Strategy::AllAtOnce {
            rollout.promoting(&mut changes);
        } else {
            rollout.enter(false, &mut changes);
        }
        rollout.mark(now_ms, &changes);
        (rollout, changes)
    }

    /// Says which of the candidate's functions the stable revision lacks. To be called before the first tick: the others
    /// are held against the stable revision's, and waited for until it answers some of their calls.
    pub fn lacked_by_stable(&mut self, functions: &[String]) {
        self.new_functions = functions.to_owned();
        self.analysis.lacked_by_stable(functions);
    }

    /// Goes on where it can: by the time, or by what was counted since the last look.
    ///
    /// To be called at least once a minute, and once [`Rollout::traffic`] was put into effect after a change. The
    /// state may change without a [`Change`]: what was looked at is evidence, to be kept with the rest.
    pub fn tick(&mut self, now_ms: u64, looked: Option<&BTreeMap<String, Arms>>) -> Vec<Change> {
        let mut changes = Vec::new();
        self.pass_time(now_ms);
        match self.phase {
            Phase::Succeeded | Phase::RolledBack => {}
            Phase::Promoting => self.succeeded(&mut changes),
            Phase::Aborting => self.rolled_back(&mut changes),
            Phase::Shadowing | Phase::Progressing | Phase::Paused | Phase::Inconclusive => {
                if let Some(arms) = looked {
                    self.look(arms, now_ms);
                }
                let judgement = self.judgement();
                self.judge(judgement, &mut changes);
                if self.goes_by_itself() {
                    self.wait(&mut changes);
                }
            }
        }
        self.mark(now_ms, &changes);
        changes
    }

    /// Goes on to the next step, or to all traffic at once, because a person says so.
    pub fn promote(&mut self, full: bool, now_ms: u64) -> Result<Vec<Change>, NotNow> {
        self.under_way("promoted")?;
        self.pass_time(now_ms);
        let mut changes = Vec::new();
        match self.phase {
            Phase::Promoting => return Err(NotNow(words::PROMOTING.to_owned())),
            Phase::Aborting => return Err(NotNow(words::ABORTING.to_owned())),
            _ if full => {
                changes.push(self.said(words::PROMOTED_FULLY));
                self.promoting(&mut changes);
            }
            _ => {
                changes.push(self.said(words::PROMOTED));
                self.set_aside(&mut changes);
                if !self.held {
                    self.step += 1;
                }
                self.enter(true, &mut changes);
            }
        }
        self.mark(now_ms, &changes);
        Ok(changes)
    }

    /// Stays at this step until a person says otherwise. The candidate keeps its traffic, and is judged on.
    pub fn pause(&mut self, now_ms: u64) -> Result<Vec<Change>, NotNow> {
        self.under_way("paused")?;
        self.pass_time(now_ms);
        match self.phase {
            Phase::Promoting => return Err(NotNow(words::PROMOTING.to_owned())),
            Phase::Aborting => return Err(NotNow(words::ABORTING.to_owned())),
            Phase::Paused | Phase::Inconclusive => return Err(NotNow(self.waits_already())),
            _ => {}
        }
        self.phase = Phase::Paused;
        self.stopped = true;
        self.reason = words::STOPPED.to_owned();
        let changes = vec![self.change("paused", self.reason.clone())];
        self.mark(now_ms, &changes);
        Ok(changes)
    }

    /// Goes on after a pause. Where the numbers did not decide, the step begins anew.
    pub fn resume(&mut self, now_ms: u64) -> Result<Vec<Change>, NotNow> {
        self.under_way("resumed")?;
        self.pass_time(now_ms);
        let mut changes = Vec::new();
        match self.phase {
            Phase::Paused if self.stopped => {
                self.stopped = false;
                self.phase = self.phase_of_step();
                self.reason = self.waits_for();
                changes.push(self.change("resumed", format!("goes on: {}", self.reason)));
            }
            Phase::Paused => return self.promote(false, now_ms),
            Phase::Inconclusive => {
                changes.push(self.change("resumed", words::ANEW.to_owned()));
                self.set_aside(&mut changes);
                if self.held {
                    self.hold(&mut changes);
                } else {
                    self.begin(&mut changes);
                }
            }
            Phase::Promoting => return Err(NotNow(words::PROMOTING.to_owned())),
            Phase::Aborting => return Err(NotNow(words::ABORTING.to_owned())),
            _ => return Err(NotNow(words::GOING.to_owned())),
        }
        self.mark(now_ms, &changes);
        Ok(changes)
    }

    /// Takes all traffic from the candidate. Possible until the rollout is over, and as often as anybody likes.
    pub fn rollback(&mut self, reason: &str, now_ms: u64) -> Result<Vec<Change>, NotNow> {
        self.under_way("rolled back")?;
        self.pass_time(now_ms);
        let mut changes = Vec::new();
        if self.phase != Phase::Aborting {
            self.aborting(reason, &mut changes);
        }
        self.mark(now_ms, &changes);
        Ok(changes)
    }

    /// Says what became of a rollout that is over when a person went back to the revision before it, or to it again.
    pub fn turned(&mut self, to: u64, reason: &str, now_ms: u64) {
        let (phase, weight) = match self.phase {
            Phase::Succeeded if self.candidate != to => (Phase::RolledBack, 0),
            Phase::RolledBack if self.candidate == to => (Phase::Succeeded, WHOLE),
            _ => return,
        };
        (self.phase, self.weight) = (phase, weight);
        self.reason = reason.to_owned();
        (self.changed_ms, self.ticked_ms) = (now_ms, now_ms);
    }

    /// What the data plane is to do now: nothing but the state decides it, so that a host that restarts goes on.
    pub fn traffic(&self) -> Wanted {
        let candidate = !matches!(self.phase, Phase::Aborting | Phase::RolledBack);
        Wanted {
            candidate,
            weight: self.weight,
            shadow_share: self.shadow_share,
            header_routes: self.header_routes.clone(),
            sticky: self.plan.sticky.clone(),
        }
    }

    /// Whether nothing will ever change again.
    pub fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Succeeded | Phase::RolledBack)
    }
}

/// Steps.
impl Rollout {
    /// Begins the step that it is at, and those after it, until one waits.
    ///
    /// `said`: a person let it go on, so that the first step that asks for one does not.
    fn enter(&mut self, mut said: bool, changes: &mut Vec<Change>) {
        // Every turn but the last goes one step on.
        loop {
            (self.stopped, self.held, self.shadow_share) = (false, false, 0);
            if self.asks_before() && !said {
                return self.hold(changes);
            }
            said &= !self.asks_before();
            match self.plan.steps.get(self.step).cloned() {
                None => return self.promoting(changes),
                Some(Step::SetWeight(weight)) => {
                    self.weight = weight.min(WHOLE);
                    changes.push(self.took_weight());
                }
                Some(Step::SetHeaderRoute(route)) => {
                    self.header_routes
                        .retain(|old| (&old.header, &old.value) != (&route.header, &route.value));
                    changes.push(self.routed(&route));
                    self.header_routes.push(route);
                }
                Some(Step::Pause(_) | Step::Analysis(_) | Step::Shadow(_)) => return self.begin(changes),
            }
            self.step += 1;
        }
    }

    /// Begins to wait in the step that it is at.
    fn begin(&mut self, changes: &mut Vec<Change>) {
        self.waited_ms = 0;
        self.step_started_ms = self.ticked_ms;
        (self.stopped, self.held) = (false, false);
        self.analysis.next_step();
        self.shadow_share = match self.plan.steps.get(self.step) {
            Some(Step::Shadow(shadow)) => shadow.share.min(WHOLE),
            _ => 0,
        };
        self.phase = self.phase_of_step();
        self.reason = self.waits_for();
        let event = if self.phase == Phase::Paused { "paused" } else { "waiting" };
        changes.push(self.change(event, self.reason.clone()));
    }

    /// Waits for a person before the step that it is at begins.
    fn hold(&mut self, changes: &mut Vec<Change>) {
        self.waited_ms = 0;
        self.step_started_ms = self.ticked_ms;
        self.phase = Phase::Paused;
        self.analysis.next_step();
        self.held = true;
        self.reason = self.waits_for();
        changes.push(self.change("paused", self.reason.clone()));
    }

    /// Whether the step that it is at begins only when a person says so.
    fn asks_before(&self) -> bool {
        let step = self.plan.steps.get(self.step);
        self.plan.strategy == Strategy::Manual
            && matches!(step, None | Some(Step::SetWeight(_) | Step::Shadow(_)))
    }

    fn phase_of_step(&self) -> Phase {
        match self.plan.steps.get(self.step) {
            Some(Step::Shadow(_)) => Phase::Shadowing,
            Some(Step::Pause(pause)) if pause.duration_s.is_none() => Phase::Paused,
            _ => Phase::Progressing,
        }
    }

    fn goes_by_itself(&self) -> bool {
        matches!(self.phase, Phase::Shadowing | Phase::Progressing)
    }

    /// Goes on where the step that it is at has waited for enough, and asks a person where it has for too long.
    fn wait(&mut self, changes: &mut Vec<Change>) {
        let timeout_s = match self.plan.steps.get(self.step) {
            Some(Step::Pause(pause)) => {
                if self.has_waited(pause.duration_s.unwrap_or(u64::MAX)) {
                    self.next(changes);
                }
                return;
            }
            Some(Step::Analysis(analysis)) => analysis.timeout_s,
            Some(Step::Shadow(shadow)) => shadow.timeout_s,
            // Nothing waits there.
            None | Some(Step::SetWeight(_) | Step::SetHeaderRoute(_)) => return self.enter(false, changes),
        };
        if self.judgement() == Judgement::Enough {
            changes.push(self.enough());
            return self.next(changes);
        }
        let timeout_s = timeout_s.unwrap_or(self.plan.progress_deadline_s);
        if self.has_waited(timeout_s) {
            self.inconclusive(&self.too_long(timeout_s), changes);
        } else {
            self.reason = self.waits_for();
        }
    }

    fn next(&mut self, changes: &mut Vec<Change>) {
        self.step += 1;
        self.enter(false, changes);
    }

    fn has_waited(&self, seconds: u64) -> bool {
        self.waited_ms >= seconds.saturating_mul(1000)
    }

    /// Notes the time, and counts it where the step waits by itself. Gaps are not counted whole.
    fn pass_time(&mut self, now_ms: u64) {
        let longest = LONGEST_GAP_MS.max(self.interval_ms().saturating_mul(2));
        let passed = now_ms.saturating_sub(self.ticked_ms).min(longest);
        self.ticked_ms = now_ms;
        if self.goes_by_itself() {
            self.waited_ms = self.waited_ms.saturating_add(passed);
        }
    }

    fn interval_ms(&self) -> u64 {
        milliseconds(self.plan.analysis.interval_s)
    }
}

/// Judgement.
impl Rollout {
    fn look(&mut self, arms: &BTreeMap<String, Arms>, now_ms: u64) {
        let Some(exposed_ms) = self.exposed_ms else { return };
        if now_ms.saturating_sub(exposed_ms) >= milliseconds(self.plan.analysis.initial_delay_s) {
            self.measurements = self.analysis.look(arms);
        }
    }

    /// What is known of the candidate, by what the step that it is at asks for.
    fn judgement(&mut self) -> Judgement {
        let judgement = match self.plan.steps.get(self.step) {
            Some(Step::Analysis(analysis)) => {
                let samples = self.samples_of(analysis);
                self.analysis.judged_at(samples)
            }
            Some(Step::Shadow(shadow)) => self.analysis.judged_by_shadow(shadow.min_samples),
            _ => self.analysis.judged(),
        };
        // What is judged may have been known only now, and its numbers go with what follows from it.
        if judgement != Judgement::Going && !self.measurements.is_empty() {
            self.measurements = self.analysis.measurements();
        }
        judgement
    }

    fn samples_of(&self, step: &AnalysisStep) -> u64 {
        step.min_samples.unwrap_or(self.plan.analysis.min_samples)
    }

    /// Acts on numbers that speak against the candidate, or do not speak at all.
    fn judge(&mut self, judgement: Judgement, changes: &mut Vec<Change>) {
        match judgement {
            Judgement::Going | Judgement::Enough => {}
            Judgement::Failed { reason } if self.plan.on_failure == OnFailure::Rollback => {
                self.aborting(&reason, changes);
            }
            Judgement::Failed { reason } | Judgement::Inconclusive { reason } => {
                if self.phase != Phase::Inconclusive {
                    self.inconclusive(&reason, changes);
                }
            }
        }
    }

    /// Forgets the evidence that a person has overruled: a failure would stop the candidate again at once.
    fn set_aside(&mut self, changes: &mut Vec<Change>) {
        if let Judgement::Failed { .. } = self.judgement() {
            changes.push(self.decided("overruled", words::OVERRULED.to_owned()));
            self.analysis = Analysis::new(&self.plan.analysis, &self.functions);
            self.analysis.lacked_by_stable(&self.new_functions);
            self.measurements.clear();
        }
    }

    fn inconclusive(&mut self, reason: &str, changes: &mut Vec<Change>) {
        self.phase = Phase::Inconclusive;
        self.stopped = false;
        self.reason = words::asking(reason);
        changes.push(self.decided("inconclusive", self.reason.clone()));
    }
}

/// Ends.
impl Rollout {
    fn promoting(&mut self, changes: &mut Vec<Change>) {
        self.phase = Phase::Promoting;
        self.step = self.plan.steps.len();
        self.settle(WHOLE);
        self.reason = words::promoting(self.candidate);
        changes.push(self.decided("promoting", self.reason.clone()));
    }

    fn succeeded(&mut self, changes: &mut Vec<Change>) {
        self.phase = Phase::Succeeded;
        self.reason = words::promoted(self.candidate);
        changes.push(self.change("promoted", self.reason.clone()));
    }

    fn aborting(&mut self, reason: &str, changes: &mut Vec<Change>) {
        self.phase = Phase::Aborting;
        self.settle(0);
        self.reason = reason.to_owned();
        changes.push(self.decided("aborting", words::aborting(self.candidate, reason)));
    }

    /// Why it is rolled back stays the reason.
    fn rolled_back(&mut self, changes: &mut Vec<Change>) {
        self.phase = Phase::RolledBack;
        changes.push(self.change("rolled-back", words::rolled_back(self.stable, &self.reason)));
    }

    /// Sends all traffic to one side.
    fn settle(&mut self, weight: u16) {
        self.weight = weight;
        self.shadow_share = 0;
        self.header_routes.clear();
        (self.stopped, self.held) = (false, false);
    }

    fn under_way(&self, command: &str) -> Result<(), NotNow> {
        if self.is_over() { Err(NotNow(words::over(command, self.phase))) } else { Ok(()) }
    }

    /// Notes when it changed, and when the candidate first takes calls.
    fn mark(&mut self, now_ms: u64, changes: &[Change]) {
        if !changes.is_empty() {
            self.changed_ms = now_ms;
        }
        let routed = self.header_routes.iter().any(|route| route.revision == Side::Candidate);
        if self.exposed_ms.is_none() && (self.weight > 0 || self.shadow_share > 0 || routed) {
            self.exposed_ms = Some(now_ms);
        }
    }
}

fn milliseconds(seconds: f64) -> u64 {
    // A cast takes what is beyond its range, or no number, to its ends.
    (seconds * 1000.0) as u64
}

#[cfg(test)]
mod tests;
