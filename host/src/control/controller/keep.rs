//! Turns the traffic and keeps what is so: in this order, and without the app's state locked while the disk is waited
//! for, so that whoever goes back waits for no disk.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::MutexGuard;

use super::prepare::{conflict, owner};
use super::slot::{Slot, State};
use super::{Controller, retire};
use crate::control::ControlError;
use crate::control::source::blocking;
use crate::rollout::store::{AppRecord, Event};

/// How long it is until what could not be kept is tried again.
const AGAIN: Duration = Duration::from_secs(5);

/// The most entries for the history that wait for a disk; the oldest go first.
const MOST_UNSAVED: usize = 1000;

impl State {
    /// Notes that the record has changed, and what happened; answers what [`Controller::save`] is to keep.
    pub(super) fn changed(&mut self, events: impl IntoIterator<Item = Event>) -> u64 {
        self.version += 1;
        self.unsaved.extend(events.into_iter().map(|event| (self.version, event)));
        let beyond = self.unsaved.len().saturating_sub(MOST_UNSAVED);
        self.unsaved.drain(..beyond);
        self.version
    }

    /// Takes back what a change was to add to the history. That it is taken back is a change as well: nobody knows what
    /// of one that failed is on the disk.
    pub(super) fn unchanged(&mut self, version: u64) {
        self.unsaved.retain(|(of, _)| *of != version);
        self.changed([]);
    }

    /// Whether the disk says what the record says.
    fn is_saved(&self) -> bool {
        self.saved >= self.version
    }
}

impl Controller {
    /// Keeps an app's record as it is when the disk is free, with all that happened until then: whoever asks meanwhile
    /// finds it done, and nothing older is ever written over it.
    ///
    /// The state must not be locked by who asks.
    pub(super) async fn save(&self, slot: &Slot, version: u64) -> Result<(), ControlError> {
        let _turn = slot.saving.lock().await;
        let (record, events, newest) = {
            let state = slot.state.lock().await;
            if state.saved >= version {
                return Ok(());
            }
            let events: Vec<Event> = state.unsaved.iter().map(|(_, event)| event.clone()).collect();
            (state.record.clone(), events, state.version)
        };
        let name = slot.name.clone();
        self.stored(move |store| store.put(&name, &record, &events)).await?;
        let mut state = slot.state.lock().await;
        state.saved = newest;
        state.unsaved.retain(|(of, _)| *of > newest);
        Ok(())
    }

    /// Keeps what is not kept yet, in the background.
    pub(super) fn save_later(self: &Arc<Self>, slot: &Arc<Slot>, state: &mut State) {
        let waits = state.save_again.is_some_and(|again| Instant::now() < again);
        if state.is_saved() || waits || slot.saving.try_lock().is_err() {
            return;
        }
        state.save_again = Some(Instant::now() + AGAIN);
        let (controller, slot, version) = (Arc::clone(self), Arc::clone(slot), state.version);
        self.later(async move {
            if let Err(error) = controller.save(&slot, version).await {
                tracing::warn!(app = slot.name, %error, "what became of an app is not kept; it is tried again");
            }
        });
    }

    /// Turns the traffic as a record says, then keeps it. What cannot be kept is not done, but for going `back`: that
    /// stays, and is kept as soon as it can be.
    pub(super) async fn turn(
        &self,
        slot: &Slot,
        mut state: MutexGuard<'_, State>,
        record: AppRecord,
        events: Vec<Event>,
        back: bool,
    ) -> Result<(), ControlError> {
        self.functions.publish(&slot.name, state.traffic(&record)).map_err(conflict)?;
        let former = std::mem::replace(&mut state.record, record);
        state.turned += 1;
        let (turned, version) = (state.turned, state.changed(events));
        self.follow(&mut state);
        drop(state);
        let saved = self.save(slot, version).await;
        let mut state = slot.state.lock().await;
        match saved {
            Ok(()) => {
                self.let_go(slot, &mut state);
                Ok(())
            }
            // Who came after kept this too.
            Err(_) if state.saved >= version => Ok(()),
            Err(error) if back => Err(ControlError::internal(format_args!(
                "the traffic is back, but that could not be kept, so that the host would not know it if it were started \
                 again now; it goes on trying: {error}"
            ))),
            // Something else is so by now, and is kept or tried again by itself.
            Err(error) if state.turned != turned => Err(error),
            Err(error) => {
                let AppRecord { stable, former, rollout, .. } = former;
                (state.record.stable, state.record.former, state.record.rollout) = (stable, former, rollout);
                state.unchanged(version);
                self.publish(slot, &state)?;
                self.follow(&mut state);
                Err(error)
            }
        }
    }

    /// Divides the calls as the record says.
    pub(super) fn publish(&self, slot: &Slot, state: &State) -> Result<(), ControlError> {
        self.functions.publish(&slot.name, state.traffic(&state.record)).map_err(conflict)
    }

    /// Has calls counted and copied as the record says.
    pub(super) fn follow(&self, state: &mut State) {
        self.watch(state);
        state.cast_shadow(&self.functions);
    }

    /// Has calls noted where they are judged.
    fn watch(&self, state: &State) {
        let rollout = state.rollout();
        for (revision, loaded) in &state.loaded {
            let judged = rollout.is_some_and(|rollout| {
                *revision == rollout.candidate || Some(*revision) == state.record.stable
            });
            for function in &loaded.release.functions {
                function.observations.watch(judged);
            }
        }
    }

    /// Lets go of revisions that nothing is to come of any more. Only once the disk says so too: a host that starts again
    /// must find what it is told to serve.
    pub(super) fn let_go(&self, slot: &Slot, state: &mut State) {
        if !state.is_saved() {
            return;
        }
        let candidate = state.rollout().map(|rollout| rollout.candidate);
        let prepared = state.prepared.map(|(prepared, _)| prepared);
        let needed = [state.record.stable, state.record.former, candidate, prepared];
        let is_gone = |revision: &u64| !needed.contains(&Some(*revision));
        let mut gone: Vec<u64> = state.loaded.keys().copied().filter(is_gone).collect();
        for revision in &gone {
            if let Some(loaded) = state.loaded.remove(revision) {
                self.retire_later(loaded.release);
            }
        }
        gone.extend(std::mem::take(&mut state.left).into_iter().filter(is_gone));
        for revision in gone {
            self.unpin_later(&slot.name, revision);
        }
    }

    /// Lets go of a revision's blobs, in the background: a disk may take its time. What cannot be let go of costs room
    /// only.
    pub(super) fn unpin_later(&self, app: &str, revision: u64) {
        let (pins, owner) = (Arc::clone(&self.pins), owner(app, revision));
        self.later(async move {
            let of = owner.clone();
            if let Ok(Err(error)) = blocking(move || pins.unpin(&owner)).await {
                tracing::warn!(of, %error, "blobs of a revision that is gone are still kept");
            }
        });
    }

    /// See [`crate::control::Control::remove`].
    pub(super) async fn take_out(&self, app: &str) -> Result<(), ControlError> {
        let slot = self.slot(app)?;
        let mut state = slot.state.lock().await;
        if state.record.revisions.is_empty() {
            return Err(ControlError::app_not_found(app));
        }
        let record = AppRecord {
            next_revision: state.record.next_revision,
            next_rollout: state.record.next_rollout,
            removed: true,
            ..AppRecord::default()
        };
        let text = format!("`{app}` is taken out of service");
        let details = serde_json::Value::Null;
        let (time_ms, revision) = (super::now_ms(), state.record.stable);
        let event = Event { time_ms, revision, event: "removed".to_owned(), text, details };
        let former = std::mem::replace(&mut state.record, record);
        let (loaded, prepared) = (std::mem::take(&mut state.loaded), state.prepared.take());
        self.publish(&slot, &state)?;
        // What was cast has the functions, and they are to leave memory.
        self.follow(&mut state);
        state.shadowed.clear();
        state.turned += 1;
        let (turned, version) = (state.turned, state.changed([event]));
        drop(state);
        let saved = self.save(&slot, version).await;
        let mut state = slot.state.lock().await;
        if let Err(error) = saved
            && state.saved < version
            && state.turned == turned
            && state.record.revisions.is_empty()
        {
            (state.record, state.loaded, state.prepared) = (former, loaded, prepared);
            state.unchanged(version);
            self.publish(&slot, &state)?;
            self.follow(&mut state);
            return Err(error);
        }
        drop(state);
        for revision in former.revisions.into_keys() {
            self.unpin_later(app, revision);
        }
        for loaded in loaded.into_values() {
            retire(loaded.release, Arc::clone(&self.releases)).await;
        }
        Ok(())
    }
}
