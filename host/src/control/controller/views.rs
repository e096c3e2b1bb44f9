//! What people are told of apps, revisions and rollouts.

use super::Controller;
use super::slot::{Slot, State, under_way};
use crate::control::ControlError;
use crate::control::wire::{
    AppStatus, FunctionStatus, HistoryEntry, HostStatus, RevisionStatus, RolloutStatus, ShadowStatus,
};
use crate::function::Function;
use crate::function::traffic::WHOLE;
use crate::rollout::machine::Rollout;

impl Controller {
    pub(super) async fn host_status(&self) -> Result<HostStatus, ControlError> {
        let mut apps = Vec::new();
        for slot in self.slots() {
            apps.extend(slot.status().await);
        }
        Ok(HostStatus { version: env!("CARGO_PKG_VERSION").to_owned(), apps })
    }

    pub(super) async fn app_status(&self, app: &str) -> Result<AppStatus, ControlError> {
        let slot = self.slot(app)?;
        slot.status().await.ok_or_else(|| ControlError::app_not_found(app))
    }

    pub(super) async fn past(
        &self,
        app: &str,
        before: Option<u64>,
        limit: usize,
    ) -> Result<Vec<HistoryEntry>, ControlError> {
        let name = app.to_owned();
        let entries = self.stored(move |store| store.history(&name, before, limit)).await?;
        if entries.is_empty() && before.is_none() {
            self.slot(app)?;
        }
        let entry = |entry: crate::rollout::store::HistoryEntry| HistoryEntry {
            id: entry.id,
            time_ms: entry.time_ms,
            app: entry.app,
            revision: entry.revision,
            event: entry.event,
            text: entry.text,
            details: entry.details,
        };
        Ok(entries.into_iter().map(entry).collect())
    }

    pub(super) async fn shadow_status(&self, app: &str) -> Result<ShadowStatus, ControlError> {
        let slot = self.slot(app)?;
        let state = slot.state.lock().await;
        let rollout = state.record.rollout.as_ref().ok_or_else(|| ControlError::rollout_not_found(app))?;
        let (stable, candidate) = (rollout.stable, Some(rollout.candidate));
        let functions = match &state.shadow {
            Some(shadow) => shadow.reports(),
            None => state.shadowed.clone(),
        };
        Ok(ShadowStatus { app: app.to_owned(), stable, candidate, functions })
    }
}

impl Slot {
    /// `None` where nothing of the app is here.
    async fn status(&self) -> Option<AppStatus> {
        let state = self.state.lock().await;
        if state.record.revisions.is_empty() {
            return None;
        }
        let live = state.stable().map(|loaded| &loaded.release);
        let functions = live.into_iter().flat_map(|release| &release.functions);
        let routes = live.into_iter().flat_map(|release| release.routes.iter());
        Some(AppStatus {
            app: self.name.clone(),
            stable: state.record.stable,
            revisions: state.revisions(),
            rollout: state.status(),
            routes: routes.map(|route| route.pattern.clone()).collect(),
            functions: functions.map(|function| described(function)).collect(),
        })
    }
}

impl State {
    fn revisions(&self) -> Vec<RevisionStatus> {
        let candidate = under_way(&self.record).map(|rollout| (rollout.candidate, rollout.traffic()));
        let tried =
            candidate.as_ref().map_or(0, |(_, wanted)| if wanted.candidate { wanted.weight } else { 0 });
        let weight = |revision: u64| match &candidate {
            Some((candidate, _)) if *candidate == revision => tried,
            _ if self.record.stable == Some(revision) => WHOLE - tried,
            _ => 0,
        };
        let newest_first = self.record.revisions.iter().rev();
        let revisions = newest_first.map(|(revision, record)| RevisionStatus {
            revision: *revision,
            digest: record.digest.clone(),
            reference: record.reference.clone(),
            version: record.version.clone(),
            weight: weight(*revision),
            warm: self.loaded.contains_key(revision),
            created_ms: record.created_ms,
        });
        revisions.collect()
    }

    /// The rollout that is under way, or the last one.
    pub(super) fn status(&self) -> Option<RolloutStatus> {
        self.record.rollout.as_ref().map(rollout)
    }
}

fn rollout(rollout: &Rollout) -> RolloutStatus {
    let phase = serde_json::to_value(rollout.phase).ok();
    RolloutStatus {
        id: rollout.id,
        stable: rollout.stable,
        candidate: rollout.candidate,
        phase: phase.and_then(|phase| phase.as_str().map(str::to_owned)).unwrap_or_default(),
        step: rollout.step,
        steps: rollout.plan.steps.len(),
        reason: rollout.reason.clone(),
        weight: rollout.traffic().weight,
        started_ms: rollout.started_ms,
        changed_ms: rollout.changed_ms,
        plan: rollout.plan.clone(),
        measurements: rollout.measurements.clone(),
    }
}

fn described(function: &Function) -> FunctionStatus {
    let models = function.revision.models.iter();
    FunctionStatus {
        function: function.name.clone(),
        model: function.model.clone(),
        kind: function.revision.program.kind_name().to_owned(),
        component: format!("sha256:{}", function.revision.digest),
        models: models.map(|model| (model.name.clone(), format!("sha256:{}", model.digest))).collect(),
    }
}
