//! Brings back what was served when the host ended.

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::drive::settle;
use super::prepare::{interfaces, owner, said, warm};
use super::slot::{Loaded, Slot, State, under_way};
use super::{Controller, now_ms};
use crate::control::ControlError;
use crate::control::source::{App, blocking};
use crate::rollout::store::{AppRecord, Event, RevisionRecord};

/// How long it is until what is to be served and is not there is tried again: first, and at last.
const FIRST: Duration = Duration::from_secs(5);
const LONGEST: Duration = Duration::from_secs(300);

/// When what is to be served and is not there is tried again.
pub(super) struct Repair {
    at: Instant,
    wait: Duration,
    under_way: bool,
}

/// What came of an app when the host started.
#[derive(Debug)]
pub struct Restored {
    pub app: String,
    /// The revision that is served; why none is.
    pub outcome: Result<u64, ControlError>,
}

impl Controller {
    /// Serves what was served, and goes on with rollouts where they stood. Everything is made ready before the first app
    /// takes calls.
    ///
    /// # Errors
    /// Where the state cannot be read. What keeps one app from being served is told, and the others are.
    pub async fn restore(&self) -> Result<Vec<Restored>, ControlError> {
        let records = self.stored(|store| store.apps()).await?;
        let wanted: BTreeSet<String> = records
            .iter()
            .flat_map(|(app, record)| needed(record).into_iter().map(|revision| owner(app, revision)))
            .collect();
        let (pins, blobs) = (Arc::clone(&self.pins), self.deployer.intake.cache.blobs().afresh());
        // Held until every app has what it needs: a cache over its bound would let go of it again.
        let holding = blobs.clone();
        let kept = blocking(move || {
            // Of deployments that the host did not live to note. What stays of them costs room only.
            if let Err(error) = pins.retain(&|owner| wanted.contains(owner)) {
                tracing::warn!(%error, "blobs of revisions that are gone are still kept");
            }
            pins.restore(&blobs)
        });
        match kept.await? {
            Ok(restored) => {
                for trouble in &restored.troubles {
                    tracing::warn!(
                        trouble,
                        "a blob of a deployed revision cannot be put back into the cache"
                    );
                }
                for (owner, lost) in &restored.lost {
                    tracing::warn!(
                        owner,
                        blobs = lost.len(),
                        "blobs of a deployed revision are damaged or gone"
                    );
                }
            }
            Err(error) => tracing::warn!(%error, "what is deployed cannot be put back into the cache"),
        }
        let mut told = Vec::new();
        let mut slots = Vec::new();
        for (app, record) in records {
            let slot = Arc::new(Slot::new(&app, record));
            let outcome = self.bring_back(&slot).await;
            slots.push(Arc::clone(&slot));
            if let Some(outcome) = outcome.transpose() {
                told.push(Restored { app, outcome });
            }
        }
        for slot in slots {
            let mut state = slot.state.lock().await;
            if !state.record.revisions.is_empty()
                && let Err(error) = self.publish(&slot, &state)
            {
                told.push(Restored { app: slot.name.clone(), outcome: Err(error) });
            }
            self.follow(&mut state);
            drop(state);
            let mut apps = self.apps.lock().unwrap_or_else(PoisonError::into_inner);
            apps.insert(slot.name.clone(), slot);
        }
        drop(holding);
        Ok(told)
    }

    /// Makes the revisions of an app ready that take calls, or may have to.
    async fn bring_back(&self, slot: &Slot) -> Result<Option<u64>, ControlError> {
        let mut state = slot.state.lock().await;
        let mut record = state.record.clone();
        let mut events = Vec::new();
        // What was made ready and not started is forgotten: who made it has lost the host.
        let needed = needed(&record);
        let started: BTreeSet<u64> = record
            .rollout
            .iter()
            .flat_map(|rollout| [Some(rollout.candidate), rollout.stable])
            .flatten()
            .collect();
        let newest = started.iter().max().copied().unwrap_or_default().max(record.stable.unwrap_or_default());
        let lost: Vec<u64> = record.revisions.keys().copied().filter(|revision| *revision > newest).collect();
        for revision in lost {
            record.revisions.remove(&revision);
            let text =
                format!("revision {revision} is forgotten: the host ended before its rollout was started");
            events.push(said("discarded", revision, &text, None));
        }
        let mut unserved = None;
        for revision in needed {
            let Some(described) = record.revisions.get(&revision).cloned() else { continue };
            let error = match self.load(revision, &described).await {
                Ok(loaded) => {
                    state.loaded.insert(revision, loaded);
                    continue;
                }
                Err(error) => error,
            };
            if record.stable == Some(revision) {
                unserved = Some(error);
                continue;
            }
            let why = format!("revision {revision} could not be made ready again: {error}");
            tracing::warn!(app = slot.name, revision, "{why}");
            if record.former == Some(revision) {
                record.former = None;
                events.push(said("window_over", revision, &why, None));
            }
            let rollout = record.rollout.as_mut().filter(|rollout| !rollout.is_over());
            // Without a stable revision there is nothing to go back to: both are tried again.
            if unserved.is_none()
                && let Some(rollout) = rollout.filter(|rollout| rollout.candidate == revision)
                && let Ok(changes) = rollout.rollback(&why, now_ms())
            {
                let changes = [changes, settle(rollout)].concat();
                events.extend(changes.into_iter().map(|change| Event::of(change, revision, now_ms())));
            }
        }
        let stable = record.stable;
        if !events.is_empty() {
            state.record = record;
            let version = state.changed(events);
            drop(state);
            self.save(slot, version).await?;
        }
        match (stable, unserved) {
            (_, Some(error)) => Err(ControlError::not_deployable(format_args!(
                "{error}; it is tried again now and then, and another deployment takes its place"
            ))),
            (stable, None) => Ok(stable),
        }
    }

    /// Tries again what is to be served and could not be made ready when the host started, now and then: a registry may
    /// have been away, or a device busy.
    pub(super) fn repair(self: &Arc<Self>, slot: &Arc<Slot>, state: &mut State) {
        let missing = state.missing();
        if missing.is_empty() {
            state.repair = None;
            return;
        }
        let soon = Repair { at: Instant::now() + FIRST, wait: FIRST, under_way: false };
        let repair = state.repair.get_or_insert(soon);
        if repair.under_way || Instant::now() < repair.at {
            return;
        }
        repair.under_way = true;
        let (controller, slot) = (Arc::clone(self), Arc::clone(slot));
        tokio::spawn(async move {
            let (repairing, repaired) = (Arc::clone(&controller), Arc::clone(&slot));
            let done = tokio::spawn(async move {
                for revision in missing {
                    if let Err(error) = repairing.repair_one(&repaired, revision).await {
                        let app = &repaired.name;
                        tracing::warn!(app, revision, %error, "it is not served yet, and is tried again");
                    }
                }
            });
            if done.await.is_err() {
                tracing::error!(app = slot.name, "what is to be served failed inside; it is tried again");
            }
            if let Some(repair) = &mut slot.state.lock().await.repair {
                repair.wait = (repair.wait * 2).min(LONGEST);
                (repair.at, repair.under_way) = (Instant::now() + repair.wait, false);
            }
        });
    }

    async fn repair_one(&self, slot: &Slot, revision: u64) -> Result<(), ControlError> {
        let described = slot.state.lock().await.record.revisions.get(&revision).cloned();
        let Some(described) = described else { return Ok(()) };
        let loaded = self.load(revision, &described).await?;
        let mut state = slot.state.lock().await;
        if !state.missing().contains(&revision) {
            // Something else has taken its place meanwhile.
            self.retire_later(loaded.release);
            return Ok(());
        }
        state.loaded.insert(revision, loaded);
        if let Err(error) = self.publish(slot, &state) {
            state.loaded.remove(&revision);
            return Err(error);
        }
        self.follow(&mut state);
        let text = format!("revision {revision} is ready again");
        tracing::info!(app = slot.name, revision, "{text}");
        state.changed([said("restored", revision, &text, None)]);
        Ok(())
    }

    /// Makes a revision ready from what is on this machine, or, where that is gone, from where it came from.
    async fn load(&self, revision: u64, described: &RevisionRecord) -> Result<Loaded, ControlError> {
        let digest = described.digest.parse().map_err(ControlError::internal)?;
        let reference = match &described.reference {
            Some(reference) => Some(reference.parse().map_err(ControlError::internal)?),
            None => None,
        };
        let image = match self.sources.kept(digest, reference).await {
            Ok(image) => image,
            Err(error) => match &described.reference {
                Some(reference) => self.sources.again(reference, digest).await?,
                None => return Err(error),
            },
        };
        let app = self.sources.app(&image, &described.variables).await?;
        let release = self.release_of(&app, revision, described.digest.clone(), &|_| {}).await?;
        warm(&release).await?;
        let interfaces = interfaces(&app, &release);
        let App { manifest, blobs, .. } = app;
        let (manifest, interfaces) = (Arc::new(manifest), Arc::new(interfaces));
        Ok(Loaded { release, manifest, interfaces, _blobs: blobs })
    }
}

impl State {
    /// What calls may go to by what the record says, and is not in memory; the stable revision first.
    pub(super) fn missing(&self) -> Vec<u64> {
        let candidate = self.rollout().map(|rollout| rollout.candidate);
        let wanted = [self.record.stable, candidate].into_iter().flatten();
        let is_missing = |revision: &u64| {
            self.record.revisions.contains_key(revision) && !self.loaded.contains_key(revision)
        };
        wanted.filter(is_missing).collect()
    }
}

/// The revisions that must be in memory.
fn needed(record: &AppRecord) -> BTreeSet<u64> {
    let candidate = under_way(record).map(|rollout| rollout.candidate);
    [record.stable, record.former, candidate].into_iter().flatten().collect()
}
