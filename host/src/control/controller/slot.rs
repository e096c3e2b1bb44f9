//! One app: what is kept of it, what of it is in memory, and how its calls are divided.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use http::HeaderName;

use super::restore::Repair;
use crate::artifact::blobs::Blobs;
use crate::artifact::manifest::Manifest;
use crate::control::ControlError;
use crate::deploy::Interface;
use crate::deploy::compatibility::Described;
use crate::function::shadow::Shadow;
use crate::function::traffic::{Candidate, HeaderRoute, Rules, Sticky};
use crate::function::{Division, Functions, Release, Traffic};
use crate::rollout::machine::Rollout;
use crate::rollout::plan::{self, Side};
use crate::rollout::shadow::{Report, ShadowCounts};
use crate::rollout::store::{AppRecord, Event};
use crate::telemetry::observations::Tally;

/// An app that is here, or once was.
pub(super) struct Slot {
    pub(super) name: String,
    /// What is being made ready, in words: one revision at a time.
    deploying: Mutex<Option<String>>,
    /// Whoever has it writes to the disk. It is taken before the state, and never by who has that.
    pub(super) saving: tokio::sync::Mutex<()>,
    pub(super) state: tokio::sync::Mutex<State>,
}

/// What is known of an app.
#[derive(Default)]
pub(super) struct State {
    /// What is so, and what the store has or is about to have.
    pub(super) record: AppRecord,
    /// What is in memory, by revision.
    pub(super) loaded: BTreeMap<u64, Loaded>,
    /// A revision that is ready and takes no traffic yet, and since when.
    pub(super) prepared: Option<(u64, Instant)>,
    /// The stable revision that it was compared with: what it may do more, and whose callers it may break.
    pub(super) compared_with: Option<u64>,
    /// What had been counted at the last look, of the stable revision's functions and the candidate's.
    pub(super) counted: BTreeMap<String, (Tally, Tally)>,
    /// How calls were divided then: what is counted begins anew with every division.
    pub(super) counted_in: Option<Arc<Division>>,
    pub(super) shadow_counted: BTreeMap<String, ShadowCounts>,
    /// What gives the candidate calls as well, while the rollout wants it.
    pub(super) shadow: Option<Shadow>,
    /// What was found of the last rollout's shadow.
    pub(super) shadowed: Vec<Report>,
    pub(super) looked: Option<Instant>,
    /// When to try again what failed.
    pub(super) retry: Option<Instant>,
    pub(super) warmed: Option<Instant>,
    /// When the record was kept last that the rollout's looks change.
    pub(super) kept: Option<Instant>,
    /// Counts the changes of the record, and which of them the store has; what happened that it has not, by change.
    pub(super) version: u64,
    pub(super) saved: u64,
    pub(super) unsaved: VecDeque<(u64, Event)>,
    /// When to try again what could not be kept.
    pub(super) save_again: Option<Instant>,
    /// When what is missing in memory is tried again.
    pub(super) repair: Option<Repair>,
    /// Counts the changes of the traffic.
    pub(super) turned: u64,
    /// Revisions whose blobs go as soon as the store has forgotten them.
    pub(super) left: Vec<u64>,
}

/// A revision in memory, and what it was made of.
#[derive(Clone)]
pub(super) struct Loaded {
    pub(super) release: Arc<Release>,
    pub(super) manifest: Arc<Manifest>,
    pub(super) interfaces: Arc<BTreeMap<String, Interface>>,
    /// Keeps its blobs in the cache.
    pub(super) _blobs: Blobs,
}

impl Loaded {
    pub(super) fn described(&self) -> Described<'_> {
        Described { manifest: &self.manifest, interfaces: &self.interfaces }
    }
}

/// The right to make a revision ready, given back when dropped.
pub(super) struct Deploying<'a>(&'a Slot);

impl Drop for Deploying<'_> {
    fn drop(&mut self) {
        *self.0.deploying.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl Slot {
    pub(super) fn new(name: &str, record: AppRecord) -> Slot {
        let state = State { record, ..State::default() };
        let (deploying, saving) = (Mutex::default(), tokio::sync::Mutex::default());
        Slot { name: name.to_owned(), deploying, saving, state: tokio::sync::Mutex::new(state) }
    }

    /// # Errors
    /// Where another deployment of the app is under way.
    pub(super) fn deploy(&self, what: &str) -> Result<Deploying<'_>, ControlError> {
        let mut deploying = self.deploying.lock().unwrap_or_else(PoisonError::into_inner);
        match deploying.as_deref() {
            Some(other) => Err(ControlError::busy(format_args!(
                "another deployment of `{}` is under way ({other}); try again when it is done",
                self.name
            ))),
            None => {
                *deploying = Some(what.to_owned());
                Ok(Deploying(self))
            }
        }
    }
}

impl State {
    /// The rollout that is under way.
    pub(super) fn rollout(&self) -> Option<&Rollout> {
        under_way(&self.record)
    }

    /// Has the candidate get as many calls as well as the rollout wants.
    pub(super) fn cast_shadow(&mut self, functions: &Arc<Functions>) {
        let Some(rollout) = under_way(&self.record) else {
            if let Some(shadow) = self.shadow.take() {
                self.shadowed = shadow.reports();
            }
            return;
        };
        let (share, candidate) = (rollout.traffic().shadow_share, rollout.candidate);
        if self.shadow.is_none() && share > 0 {
            let settings = rollout.plan.shadow.clone();
            let release =
                |revision: &u64| self.loaded.get(revision).map(|loaded| Arc::clone(&loaded.release));
            let stable = self.record.stable.as_ref().and_then(release);
            if let (Some(stable), Some(candidate)) = (stable, release(&candidate)) {
                self.shadow_counted.clear();
                self.shadow = Some(Shadow::start(functions, &stable, &candidate, &settings));
            }
        }
        if let Some(shadow) = &self.shadow {
            shadow.set_share(share);
        }
    }

    /// The revision that takes traffic where nothing says otherwise.
    pub(super) fn stable(&self) -> Option<&Loaded> {
        self.loaded.get(&self.record.stable?)
    }

    /// Refuses what cannot be while something else is under way.
    ///
    /// # Errors
    /// Says what is under way, and what to do.
    pub(super) fn check_free(&self, app: &str, ready_for: std::time::Duration) -> Result<(), ControlError> {
        if let Some(rollout) = self.rollout() {
            return Err(ControlError::busy(format_args!(
                "revision {} of `{app}` is being rolled out ({}); wait, or end that with `tenon promote {app} --full` \
                 or `tenon rollback {app}`",
                rollout.candidate, rollout.reason
            )));
        }
        match self.prepared {
            Some((revision, since)) if since.elapsed() < ready_for && self.is_compared() => {
                let age = since.elapsed();
                let left = ready_for.saturating_sub(age).as_secs() + 1;
                Err(ControlError::busy(format_args!(
                    "revision {revision} of `{app}` was made ready {} s ago and waits for its rollout to be started; deploy \
                     the same once more to start it, discard it with `tenon remove {app} --revision {revision}`, or wait \
                     {left} s, after which another deployment takes its place",
                    age.as_secs()
                )))
            }
            _ => Ok(()),
        }
    }

    /// Whether the revision that is ready was compared with the one that it would take the place of.
    pub(super) fn is_compared(&self) -> bool {
        self.compared_with == self.record.stable
    }

    /// How calls are to be divided by what a record says; `None` where there is no stable revision.
    pub(super) fn traffic(&self, record: &AppRecord) -> Option<Traffic> {
        let stable = &self.loaded.get(&record.stable?)?.release;
        let mut traffic = Traffic::all(Arc::clone(stable));
        let former = record.former.and_then(|former| self.loaded.get(&former));
        traffic.others.extend(former.map(|former| Arc::clone(&former.release)));
        if let Some(rollout) = under_way(record)
            && let Some(candidate) = self.loaded.get(&rollout.candidate)
        {
            let wanted = rollout.traffic();
            if wanted.candidate {
                let release = Arc::clone(&candidate.release);
                traffic.candidate = Some(Candidate { release, weight: wanted.weight });
                traffic.rules = Arc::new(rules(wanted.sticky.as_ref(), &wanted.header_routes));
            }
        }
        Some(traffic)
    }
}

pub(super) fn under_way(record: &AppRecord) -> Option<&Rollout> {
    record.rollout.as_ref().filter(|rollout| !rollout.is_over())
}

/// A plan's rules in the form that calls are divided by. What is no header's name matches nothing; plans are checked
/// for that when they are read.
fn rules(sticky: Option<&plan::Sticky>, header_routes: &[plan::HeaderRoute]) -> Rules {
    let name = |name: &str| HeaderName::try_from(name).ok();
    let sticky = sticky.and_then(|sticky| match sticky {
        plan::Sticky::Header(header) => name(header).map(Sticky::Header),
        plan::Sticky::Cookie(cookie) => Some(Sticky::Cookie(cookie.clone())),
        plan::Sticky::Client => Some(Sticky::Client),
    });
    let header_routes = header_routes.iter().filter_map(|route| {
        let to_candidate = route.revision == Side::Candidate;
        Some(HeaderRoute { header: name(&route.header)?, value: route.value.clone(), to_candidate })
    });
    Rules { sticky, header_routes: header_routes.collect() }
}
