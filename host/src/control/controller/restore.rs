//! Brings back what was served when the host ended.

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError};

use super::Controller;
use super::prepare::{interfaces, owner, said, warm};
use super::slot::{Loaded, Slot, under_way};
use crate::control::ControlError;
use crate::control::source::{App, blocking};
use crate::rollout::store::{AppRecord, RevisionRecord};

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
            // Of deployments that the host did not live to note.
            pins.retain(&|owner| wanted.contains(owner))?;
            pins.restore(&blobs)
        });
        match kept.await? {
            Ok(restored) => {
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
            self.watch(&state);
            state.cast_shadow(&self.functions);
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
        let Some(stable) = record.stable else {
            if !events.is_empty() {
                self.keep(slot, &mut state, record, events).await?;
            }
            return Ok(None);
        };
        for revision in needed {
            let Some(described) = record.revisions.get(&revision).cloned() else { continue };
            match self.load(revision, &described).await {
                Ok(loaded) => drop(state.loaded.insert(revision, loaded)),
                Err(error) if revision == stable => return Err(error),
                Err(error) => {
                    let why = format!("revision {revision} could not be made ready again: {error}");
                    tracing::warn!(app = slot.name, revision, "{why}");
                    if record.former == Some(revision) {
                        record.former = None;
                    }
                    if let Some(rollout) = record.rollout.as_mut().filter(|rollout| !rollout.is_over())
                        && let Ok(changes) = rollout.rollback(&why, super::now_ms())
                    {
                        let changes = [changes, super::drive::settle(rollout)].concat();
                        let now = super::now_ms();
                        events.extend(
                            changes
                                .into_iter()
                                .map(|change| crate::rollout::store::Event::of(change, revision, now)),
                        );
                    }
                }
            }
        }
        if !events.is_empty() {
            self.keep(slot, &mut state, record, events).await?;
        }
        Ok(Some(stable))
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
        let app = self.sources.app_again(&image, &described.variables).await?;
        let release = self.release_of(&app, revision, described.digest.clone(), &|_| {}).await?;
        warm(&release).await?;
        let interfaces = interfaces(&app, &release);
        let App { manifest, blobs, .. } = app;
        let (manifest, interfaces) = (Arc::new(manifest), Arc::new(interfaces));
        Ok(Loaded { release, manifest, interfaces, _blobs: blobs })
    }
}

/// The revisions that must be in memory.
fn needed(record: &AppRecord) -> BTreeSet<u64> {
    let candidate = under_way(record).map(|rollout| rollout.candidate);
    [record.stable, record.former, candidate].into_iter().flatten().collect()
}
