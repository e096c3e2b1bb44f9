//! Rollouts: started, looked at and judged, and changed by what people say.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{MutexGuard, watch};
use tokio::task::{AbortHandle, JoinSet};

use super::prepare::said;
use super::slot::{Slot, State};
use super::{Controller, now_ms};
use crate::control::ControlError;
use crate::control::wire::{Command, RolloutStatus, Start};
use crate::function::shadow::Shadow;
use crate::function::{Division, Release};
use crate::rollout::analysis::Arms;
use crate::rollout::machine::{Change, NotNow, Phase, Rollout};
use crate::rollout::shadow::ShadowCounts;
use crate::rollout::store::{AppRecord, Event};
use crate::telemetry::observations::Tally;

/// How long a revision that is ready stays in memory without a rollout. Those who deploy to many hosts wait for the
/// slowest.
const FORGOTTEN: Duration = Duration::from_secs(3600);

/// How often it is looked whether a rollout goes on.
const TICK: Duration = Duration::from_millis(100);

/// How often the graphs are used that are to stay in memory though nobody calls them.
const WARM: Duration = Duration::from_secs(5);

/// How long what failed waits before it is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// How long what is being done with apps is waited for when the host ends.
const STOP: Duration = Duration::from_secs(10);

/// How often evidence is kept that no change follows from.
const KEEP: Duration = Duration::from_secs(5);

impl Controller {
    /// Drives all rollouts until `stop` says so; what is being done then is done, within bounds. Each app has a task of
    /// its own: what is slow or goes wrong with one keeps no other from going on.
    pub async fn drive(self: Arc<Self>, mut stop: watch::Receiver<bool>) {
        let mut ticks = JoinSet::new();
        let mut under_way: BTreeMap<String, AbortHandle> = BTreeMap::new();
        while tokio::time::timeout(TICK, stop.wait_for(|stop| *stop)).await.is_err() {
            while let Some(ended) = ticks.try_join_next() {
                let Err(error) = ended else { continue };
                let app = under_way.iter().find(|(_, tick)| tick.id() == error.id()).map(|(app, _)| app);
                tracing::error!(app, %error, "a rollout failed inside; it is tried again");
            }
            under_way.retain(|_, tick| !tick.is_finished());
            for slot in self.slots() {
                if !under_way.contains_key(&slot.name) {
                    let (controller, app) = (Arc::clone(&self), slot.name.clone());
                    let tick = ticks.spawn(async move { controller.tick_in(&slot).await });
                    under_way.insert(app, tick);
                }
            }
        }
        let ended = tokio::time::timeout(STOP, async {
            while ticks.join_next().await.is_some() {}
            let mut background =
                std::mem::take(&mut *self.background.lock().unwrap_or_else(PoisonError::into_inner));
            while background.join_next().await.is_some() {}
        });
        if ended.await.is_err() {
            tracing::warn!("what became of some apps may not be kept: the disk takes too long");
        }
    }

    async fn tick_in(self: &Arc<Self>, slot: &Arc<Slot>) {
        // Whoever has it is deciding right now.
        let Ok(mut state) = slot.state.try_lock() else { return };
        Self::keep_warm(&mut state);
        self.repair(slot, &mut state);
        self.let_go(slot, &mut state);
        self.save_later(slot, &mut state);
        if state.retry.is_some_and(|retry| Instant::now() < retry) {
            return;
        }
        // Taken back if all goes well, so that what does not is not tried ten times a second.
        state.retry = Some(Instant::now() + RETRY);
        match self.tick(slot, state).await {
            Ok(()) => slot.state.lock().await.retry = None,
            Err(error) => {
                tracing::warn!(app = slot.name, %error, "a rollout could not go on; it is tried again")
            }
        }
    }

    async fn tick(&self, slot: &Slot, state: MutexGuard<'_, State>) -> Result<(), ControlError> {
        if state.rollout().is_some() {
            return self.look(slot, state).await;
        }
        if let Some((revision, since)) = state.prepared
            && since.elapsed() >= FORGOTTEN
            && state.record.stable != Some(revision)
        {
            return self.discard_in(slot, state, revision, "nobody has started its rollout").await;
        }
        self.end_window(slot, state).await
    }

    /// Counts, judges, and does what follows.
    async fn look(&self, slot: &Slot, mut state: MutexGuard<'_, State>) -> Result<(), ControlError> {
        let Some(rollout) = state.rollout() else { return Ok(()) };
        if !state.missing().is_empty() {
            // Nothing is known of who answers no calls, and time alone must not let it go on.
            return Ok(());
        }
        let (id, interval) = (rollout.id, Duration::from_secs_f64(rollout.plan.analysis.interval_s));
        let since = state.looked.get_or_insert_with(Instant::now).elapsed();
        let mut arms = (since >= interval).then(|| self.count(slot, &state));
        let (mut record, mut changes) = ticked(&state, arms.as_ref());
        if changes.is_empty() && arms.is_none() {
            return Ok(());
        }
        if arms.is_none() {
            // What was counted until a change is looked at before it: it is not to be mixed with what comes after.
            arms = Some(self.count(slot, &state));
            (record, changes) = ticked(&state, arms.as_ref());
        }
        let Some(rollout) = &mut record.rollout else { return Ok(()) };
        changes.extend(settle(rollout));
        self.change(slot, state, record, changes).await?;
        // What could not be kept is looked at again, with what comes until then.
        let mut state = slot.state.lock().await;
        if let Some((_, counted)) = arms
            && state.record.rollout.as_ref().is_some_and(|rollout| rollout.id == id)
        {
            state.counted = counted.functions;
            state.counted_in = counted.division;
            state.shadow_counted = counted.shadow;
            state.looked = Some(Instant::now());
        }
        Ok(())
    }

    /// What was counted since the last look, or since calls have been divided as they are now; and all that has been
    /// counted since then.
    fn count(&self, slot: &Slot, state: &State) -> (BTreeMap<String, Arms>, Counted) {
        let snapshot = self.functions.snapshot();
        let division = snapshot.apps().get(&slot.name).map(|traffic| Arc::clone(&traffic.division));
        let is_the_same = match (&state.counted_in, &division) {
            (Some(before), Some(now)) => Arc::ptr_eq(before, now),
            _ => false,
        };
        let shadow = state.shadow.as_ref().map(Shadow::counts).unwrap_or_default();
        let (mut arms, mut functions) = (BTreeMap::new(), BTreeMap::new());
        let candidate = state.rollout().and_then(|rollout| state.loaded.get(&rollout.candidate));
        let stable = state.stable().map(|loaded| &loaded.release);
        for function in candidate.into_iter().flat_map(|candidate| &candidate.release.functions) {
            let name = &function.name;
            let own = function.observations.read();
            let other = stable.and_then(|release| release.function(name));
            let other = other.map(|function| function.observations.read()).unwrap_or_default();
            let before = state.counted.get(name).filter(|_| is_the_same).cloned();
            let (before, own_before) = before.unwrap_or_default();
            let shadow_before = state.shadow_counted.get(name).copied().unwrap_or_default();
            let since = Arms {
                stable: other.since(&before),
                candidate: own.since(&own_before),
                shadow: shadow.get(name).map(|counts| counts.since(&shadow_before)),
            };
            arms.insert(name.clone(), since);
            functions.insert(name.clone(), (other, own));
        }
        (arms, Counted { division, functions, shadow })
    }

    /// See [`crate::control::Control::start`].
    pub(super) async fn begin(&self, app: &str, start: Start) -> Result<RolloutStatus, ControlError> {
        let slot = self.slot(app)?;
        let mut state = slot.state.lock().await;
        let Start { revision, plan, message } = start;
        if !state.record.revisions.contains_key(&revision) {
            return Err(ControlError::revision_not_found(app, revision));
        }
        let under_way = state.rollout().map(|rollout| rollout.candidate);
        if under_way == Some(revision) || under_way.is_none() && state.record.stable == Some(revision) {
            // It was started before, and the caller may not have heard of it.
            return state.status().ok_or_else(|| ControlError::rollout_not_found(app));
        }
        if state.prepared.is_none_or(|(prepared, _)| prepared != revision) {
            state.check_free(app, super::prepare::READY_FOR)?;
            return Err(ControlError::not_now(format_args!(
                "revision {revision} of `{app}` is not ready to take traffic; deploy it anew"
            )));
        }
        if !state.is_compared() {
            return Err(ControlError::not_now(format_args!(
                "revision {revision} of `{app}` was compared with another revision than the one that is live now, since \
                 somebody went back meanwhile; deploy it anew"
            )));
        }
        plan.check().map_err(ControlError::invalid)?;
        if plan.shadow.capture && !self.deployer.config.control.allow_capture {
            return Err(ControlError::not_allowed(
                "the plan would keep what callers sent (`shadow.capture`), which this host does not allow: leave it out, \
                 or have its operator set `control.allow_capture` in host.toml and start it again",
            ));
        }
        let mut record = state.record.clone();
        let id = record.next_rollout;
        record.next_rollout += 1;
        // One that could not be made ready again answers nobody, so that there is nothing to compare with.
        let stable = record.stable.filter(|stable| state.loaded.contains_key(stable));
        let functions = state.loaded.get(&revision).map(|loaded| names(&loaded.release)).unwrap_or_default();
        let (mut rollout, mut changes) =
            Rollout::start(id, app, stable, revision, plan, &functions, now_ms());
        let live = state.stable().map(|loaded| &loaded.release);
        let is_new = |name: &&String| live.is_none_or(|release| release.function(name).is_none());
        let new: Vec<String> = functions.iter().filter(is_new).cloned().collect();
        rollout.lacked_by_stable(&new);
        if let (Some(message), Some(first)) = (message, changes.first_mut()) {
            first.text = format!("{}: {message}", first.text);
        }
        changes.extend(settle(&mut rollout));
        record.rollout = Some(rollout);
        state.counted.clear();
        state.counted_in = None;
        state.shadowed.clear();
        state.looked = None;
        self.change(&slot, state, record, changes).await?;
        let mut state = slot.state.lock().await;
        state.prepared = state.prepared.filter(|(prepared, _)| *prepared != revision);
        state.status().ok_or_else(|| ControlError::rollout_not_found(app))
    }

    /// See [`crate::control::Control::promote`].
    pub(super) async fn go_on(&self, app: &str, command: Command) -> Result<RolloutStatus, ControlError> {
        self.told(app, command.message.as_deref(), |rollout| rollout.promote(command.full, now_ms())).await
    }

    /// See [`crate::control::Control::pause`].
    pub(super) async fn halt(&self, app: &str, command: Command) -> Result<RolloutStatus, ControlError> {
        self.told(app, command.message.as_deref(), |rollout| rollout.pause(now_ms())).await
    }

    /// See [`crate::control::Control::resume`].
    pub(super) async fn take_up(&self, app: &str, command: Command) -> Result<RolloutStatus, ControlError> {
        self.told(app, command.message.as_deref(), |rollout| rollout.resume(now_ms())).await
    }

    /// See [`crate::control::Control::rollback`].
    pub(super) async fn go_back(&self, app: &str, command: Command) -> Result<RolloutStatus, ControlError> {
        let slot = self.slot(app)?;
        let state = slot.state.lock().await;
        let message = command.message.as_deref();
        if state.rollout().is_some() {
            let reason = message.unwrap_or("a person said so");
            drop(state);
            return self.told(app, None, |rollout| rollout.rollback(reason, now_ms())).await;
        }
        if command.revision.is_none() && state.record.former > state.record.stable && state.stable().is_some()
        {
            // Said once more, by somebody else or by a caller who heard no answer: that is no way to what was gone back
            // from.
            return state.status().ok_or_else(|| ControlError::rollout_not_found(app));
        }
        let Some(to) = command.revision.or(state.record.former) else {
            // There is nothing to go back to but what was before it was made ready.
            let Some((prepared, _)) = state.prepared else {
                return Err(ControlError::rollout_not_found(app));
            };
            self.discard_in(&slot, state, prepared, message.unwrap_or("a person said so")).await?;
            return slot.state.lock().await.status().ok_or_else(|| ControlError::rollout_not_found(app));
        };
        if !state.record.revisions.contains_key(&to) {
            return Err(ControlError::revision_not_found(app, to));
        }
        if state.prepared.is_some_and(|(prepared, _)| prepared == to) {
            return Err(ControlError::not_now(format_args!(
                "revision {to} of `{app}` has taken no traffic yet, so that nobody can go back to it; deploy it once more to \
                 start its rollout"
            )));
        }
        if !state.loaded.contains_key(&to) {
            return Err(ControlError::not_now(format_args!(
                "revision {to} of `{app}` is no longer in memory (`rollback_window_s` of its successor's plan is over); deploy \
                 it anew, by its reference or from its `spin.toml`"
            )));
        }
        if state.record.stable == Some(to) {
            // Said once more: what it came from stays the way back.
            return state.status().ok_or_else(|| ControlError::rollout_not_found(app));
        }
        let mut record = state.record.clone();
        let from = record.stable.replace(to);
        record.former = from;
        let text = match from {
            Some(from) => format!("back from revision {from} to revision {to}"),
            None => format!("back to revision {to}"),
        };
        if let Some(rollout) = &mut record.rollout {
            rollout.turned(to, &text, now_ms());
        }
        let text = match state.prepared {
            Some((prepared, _)) => {
                format!("{text}; revision {prepared} is ready, and still waits for its rollout")
            }
            None => text,
        };
        let event = said("rolled_back", to, &text, message);
        self.turn(&slot, state, record, vec![event], true).await?;
        slot.state.lock().await.status().ok_or_else(|| ControlError::rollout_not_found(app))
    }

    /// Has a rollout follow a command.
    async fn told(
        &self,
        app: &str,
        message: Option<&str>,
        follow: impl FnOnce(&mut Rollout) -> Result<Vec<Change>, NotNow>,
    ) -> Result<RolloutStatus, ControlError> {
        let slot = self.slot(app)?;
        let state = slot.state.lock().await;
        let mut record = state.record.clone();
        let rollout = record.rollout.as_mut().filter(|rollout| !rollout.is_over());
        let rollout = rollout.ok_or_else(|| ControlError::rollout_not_found(app))?;
        let candidate = rollout.candidate;
        let mut changes = follow(rollout).map_err(ControlError::not_now)?;
        if rollout.traffic().candidate && !state.loaded.contains_key(&candidate) {
            return Err(ControlError::not_now(format_args!(
                "revision {candidate} of `{app}` could not be made ready again when the host started, which is tried again; \
                 wait for that, or end its rollout with `tenon rollback {app}`"
            )));
        }
        if let (Some(message), Some(first)) = (message, changes.first_mut()) {
            first.text = format!("{}: {message}", first.text);
        }
        changes.extend(settle(rollout));
        self.change(&slot, state, record, changes).await?;
        slot.state.lock().await.status().ok_or_else(|| ControlError::rollout_not_found(app))
    }

    /// Makes a changed rollout what is wanted, in the data plane and in the store.
    async fn change(
        &self,
        slot: &Slot,
        mut state: MutexGuard<'_, State>,
        mut record: AppRecord,
        changes: Vec<Change>,
    ) -> Result<(), ControlError> {
        let Some(rollout) = &record.rollout else { return Ok(()) };
        let (candidate, now) = (rollout.candidate, now_ms());
        for change in &changes {
            tracing::info!(app = slot.name, revision = candidate, event = change.event, "{}", change.text);
        }
        if rollout.phase == Phase::Succeeded {
            let former = record.stable.replace(candidate).filter(|former| *former != candidate);
            record.former = former.filter(|former| state.loaded.contains_key(former));
            if record.former.is_none() {
                state.left.extend(former);
            }
        }
        let back = rollout.is_over() && record.stable == state.record.stable;
        let events: Vec<_> = changes.into_iter().map(|change| Event::of(change, candidate, now)).collect();
        if !events.is_empty() {
            state.kept = Some(Instant::now());
            return self.turn(slot, state, record, events, back).await;
        }
        state.record = record;
        // Evidence alone is kept from time to time: what is lost of it with the host makes judging it slower, not wrong.
        if state.kept.is_none_or(|kept| kept.elapsed() >= KEEP) {
            state.kept = Some(Instant::now());
            state.changed([]);
        }
        Ok(())
    }

    /// Forgets the former revision once nobody is to go back to it any more.
    async fn end_window(&self, slot: &Slot, state: MutexGuard<'_, State>) -> Result<(), ControlError> {
        let Some(former) = state.record.former else { return Ok(()) };
        if state.rollout().is_some() {
            return Ok(());
        }
        let window = state.record.rollout.as_ref().map_or(0, |rollout| {
            rollout.changed_ms.saturating_add(rollout.plan.rollback_window_s.saturating_mul(1000))
        });
        if now_ms() < window {
            return Ok(());
        }
        let mut record = state.record.clone();
        record.former = None;
        let text = format!("revision {former} leaves memory: the time to go back to it is over");
        self.turn(slot, state, record, vec![said("window_over", former, &text, None)], false).await
    }

    /// Has the graphs stay in memory of what all traffic may have to go to at once.
    fn keep_warm(state: &mut State) {
        if state.warmed.is_some_and(|warmed| warmed.elapsed() < WARM) {
            return;
        }
        state.warmed = Some(Instant::now());
        // A candidate that few calls reach must not be judged by its cold starts.
        let candidate = state.rollout().map(|rollout| rollout.candidate);
        let wanted = [state.record.former, state.record.stable.filter(|_| candidate.is_some()), candidate];
        for loaded in wanted.into_iter().flatten().filter_map(|revision| state.loaded.get(&revision)) {
            for function in &loaded.release.functions {
                function.revision.program.keep_models_warm();
            }
        }
    }
}

/// What was counted until a look.
struct Counted {
    division: Option<Arc<Division>>,
    functions: BTreeMap<String, (Tally, Tally)>,
    shadow: BTreeMap<String, ShadowCounts>,
}

/// What becomes of a rollout by the time, and by what was counted.
fn ticked(state: &State, counted: Option<&(BTreeMap<String, Arms>, Counted)>) -> (AppRecord, Vec<Change>) {
    let mut record = state.record.clone();
    let changes = match &mut record.rollout {
        Some(rollout) => rollout.tick(now_ms(), counted.map(|(arms, _)| arms)),
        None => Vec::new(),
    };
    (record, changes)
}

/// What is decided is also done, without waiting for another tick.
pub(super) fn settle(rollout: &mut Rollout) -> Vec<Change> {
    let mut changes = Vec::new();
    while matches!(rollout.phase, Phase::Promoting | Phase::Aborting) {
        changes.extend(rollout.tick(now_ms(), None));
    }
    changes
}

fn names(release: &Release) -> Vec<String> {
    release.functions.iter().map(|function| function.name.clone()).collect()
}
