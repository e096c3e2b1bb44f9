//! Makes a revision ready: fetched, verified, compared with the live one, compiled, loaded, and tried out with its golden
//! samples. What is live is touched by nothing of this.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{MutexGuard, mpsc};

use super::slot::{Deploying, Loaded, Slot, State};
use super::{Controller, now_ms};
use crate::artifact::oci::Digest;
use crate::control::ControlError;
use crate::control::source::{App, Image, blocking, long};
use crate::control::wire::{Prepare, Prepared, Progress, Source};
use crate::deploy::compatibility::{Described, capabilities_grown, interface_breaks};
use crate::deploy::{Interface, Step};
use crate::function::{Conflict, Release, Snapshot, Traffic};
use crate::rollout::store::{AppRecord, Event, RevisionRecord};
use crate::samples::{self, Verdict, files};

/// How long a revision that is ready waits for its rollout before another may take its place.
pub(super) const READY_FOR: Duration = Duration::from_secs(600);

/// The names of apps that are remembered: those that were removed are among them, so that no number of a revision is
/// given twice.
const MOST_APPS: usize = 10_000;

/// The revisions of an app that are remembered.
const REMEMBERED: usize = 20;

/// Tells the person who deploys how far it is. Who does not listen is not waited for.
struct Reporter(mpsc::Sender<Progress>);

impl Reporter {
    fn say(&self, progress: Progress) {
        let _ = self.0.try_send(progress);
    }

    async fn step<T>(
        &self,
        step: &str,
        work: impl Future<Output = Result<T, ControlError>>,
    ) -> Result<T, ControlError> {
        let (step, started) = (step.to_owned(), Instant::now());
        self.say(Progress::Begun { step: step.clone() });
        let done = work.await?;
        self.say(Progress::Done { step, took_ms: started.elapsed().as_secs_f64() * 1e3 });
        Ok(done)
    }
}

impl Controller {
    /// See [`crate::control::Control::prepare`].
    pub(super) async fn make_ready(
        &self,
        request: Prepare,
        progress: mpsc::Sender<Progress>,
    ) -> Result<Prepared, ControlError> {
        let reporter = Reporter(progress);
        let image = self.image(&request.source, &reporter).await?;
        let app = reporter.step("read", self.sources.app(&image, &request.variables)).await?;
        for warning in app.manifest.warnings.iter().chain(&app.files.warnings) {
            reporter.say(Progress::Warning { text: warning.clone() });
        }
        let (name, digest) = (app.manifest.name.clone(), image.digest);
        let slot = self.slot_for(&name)?;
        let (revision, unchanged, live) = self.make_ready_in(&slot, &request, &image, app, &reporter).await?;
        Ok(Prepared { app: name, revision, digest: digest.to_string(), unchanged, live })
    }

    async fn image(&self, source: &Source, reporter: &Reporter) -> Result<Image, ControlError> {
        match source {
            Source::Uploaded(digest) => reporter.step("find", self.sources.uploaded(digest)).await,
            Source::Reference(reference) => {
                let named = reporter.step("find", self.sources.find(reference)).await?;
                let key = reporter.step("verify signature", self.sources.verify(&named)).await?;
                if key.is_none() {
                    let text = format!("`{reference}` need not be signed, by this host's settings");
                    tracing::info!("{text}");
                }
                reporter.step("fetch", self.sources.fetch(named)).await
            }
        }
    }

    async fn make_ready_in(
        &self,
        slot: &Slot,
        request: &Prepare,
        image: &Image,
        mut app: App,
        reporter: &Reporter,
    ) -> Result<(u64, bool, bool), ControlError> {
        let digest = image.digest.to_string();
        let _turn: Deploying<'_> = slot.deploy(&format!("of {digest}"))?;
        let (revision, compared_with) = {
            let mut state = slot.state.lock().await;
            if let Some(found) = same(&state, &digest, request) {
                return Ok(found);
            }
            state.check_free(&slot.name, READY_FOR)?;
            // One that was made ready and never rolled out makes room.
            if let Some((revision, _)) = state.prepared {
                self.discard_in(slot, state, revision, "another one is made ready").await?;
                state = slot.state.lock().await;
            }
            if let Some(live) = state.stable() {
                let new = Described { manifest: &app.manifest, interfaces: &app.interfaces };
                check_capabilities(&live.described(), &new, request)?;
            }
            // Taken and kept at once, so that no number is ever given twice.
            let revision = state.record.next_revision;
            state.record.next_revision += 1;
            let (version, compared_with) = (state.changed([]), state.record.stable);
            drop(state);
            self.save(slot, version).await?;
            (revision, compared_with)
        };
        let release = self.release(&app, revision, digest.clone(), reporter).await?;
        self.check_conflicts(&slot.name, &release)?;
        // By what the functions themselves say: an image may say anything of them.
        app.interfaces = interfaces(&app, &release);
        if let Some(live) = slot.state.lock().await.stable() {
            let new = Described { manifest: &app.manifest, interfaces: &app.interfaces };
            let compared = async { check_interface(&live.described(), &new, request) };
            reporter.step("compare", compared).await?;
        }
        reporter.step("load models", warm(&release)).await?;
        if request.skip_samples {
            reporter
                .say(Progress::Warning { text: "golden samples are not run (`skip_samples`)".to_owned() });
        } else if app.files.samples.values().all(BTreeMap::is_empty) {
            let text =
                "it has no golden samples, so its answers were not looked at (docs/samples.md)".to_owned();
            reporter.say(Progress::Warning { text });
        } else {
            reporter.step("golden samples", try_out(&release, &app, reporter)).await?;
        }
        self.pin(&slot.name, revision, app.digests.clone(), &app).await?;
        let described = RevisionRecord {
            digest,
            reference: image.reference.as_ref().map(ToString::to_string),
            uploaded: image.reference.is_none(),
            variables: request.variables.clone(),
            created_ms: now_ms(),
            version: app.manifest.version.clone(),
            message: request.message.clone(),
        };
        let event =
            said("prepared", revision, &format!("revision {revision} is ready"), request.message.as_deref());
        self.remember(slot, revision, described, event).await?;
        let mut state = slot.state.lock().await;
        let App { manifest, interfaces, blobs, .. } = app;
        let (manifest, interfaces) = (Arc::new(manifest), Arc::new(interfaces));
        state.loaded.insert(revision, Loaded { release, manifest, interfaces, _blobs: blobs });
        (state.prepared, state.compared_with) = (Some((revision, Instant::now())), compared_with);
        Ok((revision, false, false))
    }

    /// Keeps that an app has a revision which takes no traffic yet.
    async fn remember(
        &self,
        slot: &Slot,
        revision: u64,
        described: RevisionRecord,
        event: Event,
    ) -> Result<(), ControlError> {
        let mut state = slot.state.lock().await;
        state.record.removed = false;
        state.record.revisions.insert(revision, described);
        let forgotten = state.record.forget_old(REMEMBERED);
        state.left.extend(forgotten);
        let version = state.changed([event]);
        drop(state);
        let saved = self.save(slot, version).await;
        if saved.is_err() {
            let mut state = slot.state.lock().await;
            state.record.revisions.remove(&revision);
            state.unchanged(version);
            state.left.push(revision);
        }
        saved
    }

    /// Compiles, links and describes everything of an app.
    pub(super) async fn release_of(
        &self,
        app: &App,
        revision: u64,
        digest: String,
        report: &(dyn Fn(Step) + Sync),
    ) -> Result<Arc<Release>, ControlError> {
        let made = self.deployer.release(&app.manifest, &app.files, revision, digest, report).await;
        let release = Arc::new(made.map_err(|error| ControlError::not_deployable(error.to_string()))?);
        self.note(&release);
        Ok(release)
    }

    async fn release(
        &self,
        app: &App,
        revision: u64,
        digest: String,
        reporter: &Reporter,
    ) -> Result<Arc<Release>, ControlError> {
        let report = |step: Step| {
            reporter.say(Progress::Done { step: step.what, took_ms: step.took.as_secs_f64() * 1e3 });
        };
        reporter.step("compile", self.release_of(app, revision, digest, &report)).await
    }

    /// Whether the revision could be served beside the other apps.
    fn check_conflicts(&self, app: &str, release: &Arc<Release>) -> Result<(), ControlError> {
        let mut apps = self.functions.snapshot().apps().clone();
        apps.insert(app.to_owned(), Arc::new(Traffic::all(Arc::clone(release))));
        Snapshot::of(apps).map(drop).map_err(conflict)
    }

    /// See [`crate::control::Control::discard`].
    pub(super) async fn forget(&self, app: &str, revision: u64) -> Result<(), ControlError> {
        let slot = self.slot(app)?;
        {
            let state = slot.state.lock().await;
            if !state.record.revisions.contains_key(&revision) {
                return Err(ControlError::revision_not_found(app, revision));
            }
            let candidate = state.rollout().map(|rollout| rollout.candidate);
            if state.record.stable == Some(revision) || candidate == Some(revision) {
                return Err(ControlError::in_use(format_args!(
                    "revision {revision} of `{app}` takes traffic; `tenon rollback {app}` or `tenon remove {app}` ends that"
                )));
            }
            self.discard_in(&slot, state, revision, "discarded").await
        }
    }

    /// Forgets a revision that takes no traffic.
    pub(super) async fn discard_in(
        &self,
        slot: &Slot,
        mut state: MutexGuard<'_, State>,
        revision: u64,
        why: &str,
    ) -> Result<(), ControlError> {
        state.record.revisions.remove(&revision);
        state.record.former = state.record.former.filter(|former| *former != revision);
        state.prepared = state.prepared.filter(|(prepared, _)| *prepared != revision);
        self.publish(slot, &state)?;
        if let Some(loaded) = state.loaded.remove(&revision) {
            self.retire_later(loaded.release);
        }
        state.left.push(revision);
        let text = format!("revision {revision} is forgotten: {why}");
        let version = state.changed([said("discarded", revision, &text, None)]);
        drop(state);
        self.save(slot, version).await.map_err(|error| {
            ControlError::internal(format_args!(
                "revision {revision} is out of memory, but that could not be kept; the host goes on trying: {error}"
            ))
        })?;
        self.let_go(slot, &mut *slot.state.lock().await);
        Ok(())
    }

    /// The slot of an app that may be new.
    fn slot_for(&self, app: &str) -> Result<Arc<Slot>, ControlError> {
        let mut apps = self.apps.lock().unwrap_or_else(PoisonError::into_inner);
        if apps.len() >= MOST_APPS && !apps.contains_key(app) {
            return Err(ControlError::overloaded(format_args!(
                "{MOST_APPS} apps have been deployed here under other names; a host with a state of its own has room"
            )));
        }
        let slot = apps.entry(app.to_owned());
        Ok(Arc::clone(slot.or_insert_with(|| Arc::new(Slot::new(app, AppRecord::default())))))
    }

    async fn pin(
        &self,
        app: &str,
        revision: u64,
        digests: Vec<Digest>,
        from: &App,
    ) -> Result<(), ControlError> {
        let (pins, blobs, owner) = (Arc::clone(&self.pins), from.blobs.clone(), owner(app, revision));
        let pinned = long(move || pins.pin(&owner, &digests, &blobs)).await?;
        pinned.map_err(|error| ControlError::internal(format_args!("its blobs cannot be kept: {error}")))
    }
}

/// Under which name a revision's blobs are pinned.
pub(super) fn owner(app: &str, revision: u64) -> String {
    format!("{app}@{revision}")
}

/// A revision that is the same as what is asked for, and takes traffic or is about to.
fn same(state: &State, digest: &str, request: &Prepare) -> Option<(u64, bool, bool)> {
    let is_same = |revision: &u64| {
        let record = state.record.revisions.get(revision);
        record.is_some_and(|record| record.digest == digest && record.variables == request.variables)
    };
    let candidate = state.rollout().map(|rollout| rollout.candidate);
    if let Some(revision) = candidate.filter(is_same) {
        return Some((revision, true, false));
    }
    let prepared = state.prepared.filter(|_| state.is_compared());
    if let Some(revision) = prepared.map(|(revision, _)| revision).filter(is_same) {
        return Some((revision, true, false));
    }
    // One that could not be made ready again is not live, and deploying it once more serves it.
    let live = state.record.stable.filter(is_same).filter(|live| state.loaded.contains_key(live));
    let live = live.filter(|_| candidate.is_none() && state.prepared.is_none());
    live.map(|revision| (revision, true, true))
}

/// # Errors
/// Where callers of the live revision may break, and nobody said that this is meant.
fn check_interface(live: &Described<'_>, new: &Described<'_>, request: &Prepare) -> Result<(), ControlError> {
    let breaks = interface_breaks(live, new);
    if breaks.is_empty() || request.allow_incompatible {
        return Ok(());
    }
    Err(ControlError::not_compatible(format_args!(
        "callers of the live revision may break; `--allow-incompatible` deploys it all the same:{}",
        listed(&breaks)
    )))
}

/// # Errors
/// Where the revision may do more than the live one, and nobody said that this is meant.
fn check_capabilities(
    live: &Described<'_>,
    new: &Described<'_>,
    request: &Prepare,
) -> Result<(), ControlError> {
    let grown = capabilities_grown(live, new);
    if grown.is_empty() || request.allow_capabilities {
        return Ok(());
    }
    Err(ControlError::capabilities_grown(format_args!(
        "it may do more than the live revision; `--allow-capabilities` deploys it all the same:{}",
        listed(&grown)
    )))
}

fn listed(sentences: &[String]) -> String {
    sentences.iter().map(|one| format!("\n- {one}")).collect()
}

/// The interfaces of an app's functions, by what they say of themselves.
pub(super) fn interfaces(app: &App, release: &Release) -> BTreeMap<String, Interface> {
    let described = app.manifest.components.iter().filter_map(|component| {
        let function = release.function(&app.manifest.function(component))?;
        let packed = app.interfaces.get(&component.id);
        let interface = match &function.revision.description {
            Some(description) => Interface::of(packed.and_then(|packed| packed.wit.clone()), description),
            None => packed?.clone(),
        };
        Some((component.id.clone(), interface))
    });
    described.collect()
}

/// Loads the graphs of all models of a release.
pub(super) async fn warm(release: &Release) -> Result<(), ControlError> {
    for function in &release.functions {
        let loaded = function.revision.program.load_models().await;
        loaded.map_err(|error| ControlError::not_deployable(format_args!("`{}`: {error}", function.name)))?;
    }
    Ok(())
}

/// Runs the golden samples of a release's functions.
async fn try_out(release: &Arc<Release>, app: &App, reporter: &Reporter) -> Result<(), ControlError> {
    const SHOWN: usize = 20;
    const SAMPLES: Duration = Duration::from_secs(300);
    let started = Instant::now();
    let (mut shown, mut failed, mut passed) = (Vec::new(), 0_usize, 0_usize);
    for component in &app.manifest.components {
        let Some(named) = app.files.samples.get(&component.id).cloned() else { continue };
        let Some(function) = release.function(&app.manifest.function(component)) else { continue };
        // Every deployment on every host runs them: nothing of it must stay.
        let program = Arc::new(function.revision.program.rehearsed());
        let named = Arc::new(named);
        let every = Arc::clone(&named);
        let found = blocking(move || {
            let found = files::among(&every).into_iter();
            found.map(|(name, path)| (name.clone(), path.clone())).collect::<Vec<_>>()
        });
        for (name, path) in found.await? {
            if started.elapsed() > SAMPLES {
                return Err(ControlError::failed_samples(format_args!(
                    "its golden samples take longer than {} s; leave some out",
                    SAMPLES.as_secs()
                )));
            }
            let what = format!("`{}`, sample `{}`", function.name, files::title(&name));
            // One at a time: all of an app's could be more than there is memory.
            let (every, one) = (Arc::clone(&named), name.clone());
            let golden = blocking(move || files::open(&one, &path, &every));
            let ran = match golden.await? {
                Ok(golden) => samples::run(&golden, function, &program, &release.routes).await,
                Err(error) => Err(error),
            };
            let why = match ran.map(|ran| ran.verdict) {
                Ok(Verdict::Passed(_)) => {
                    passed += 1;
                    continue;
                }
                Ok(Verdict::NothingExpected) => {
                    let text = format!("{what} says nothing of the answer; `tenon check --record` adds it");
                    reporter.say(Progress::Warning { text });
                    continue;
                }
                Ok(Verdict::Failed(why)) => why,
                Err(error) => error.to_string(),
            };
            failed += 1;
            if shown.len() < SHOWN {
                shown.push(format!("\n- {what}: {why}"));
            }
        }
    }
    if failed == 0 {
        if passed == 0 {
            let text =
                "it has no golden samples, so its answers were not looked at (docs/samples.md)".to_owned();
            reporter.say(Progress::Warning { text });
        }
        return Ok(());
    }
    let more = failed.saturating_sub(SHOWN);
    let more = if more > 0 { format!("\n- and {more} more") } else { String::new() };
    Err(ControlError::failed_samples(format_args!(
        "{failed} of {} golden samples did not pass:{}{more}\n`tenon check` shows the same on the author's machine",
        failed + passed,
        shown.concat()
    )))
}

pub(super) fn conflict(conflict: Conflict) -> ControlError {
    match conflict {
        Conflict::Route { .. } | Conflict::Model { .. } => ControlError::route_conflict(conflict),
        Conflict::Unreadable(_) => ControlError::not_deployable(conflict),
    }
}

/// An entry of the history that a person's message may stand in.
pub(super) fn said(event: &str, revision: u64, text: &str, message: Option<&str>) -> Event {
    let text = match message {
        Some(message) => format!("{text}: {message}"),
        None => text.to_owned(),
    };
    let details = serde_json::Value::Null;
    Event { time_ms: now_ms(), revision: Some(revision), event: event.to_owned(), text, details }
}
