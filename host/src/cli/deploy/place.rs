//! Makes a revision ready on all hosts, and then starts its rollout on all of them; or does neither.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{anyhow, bail};
use tokio::sync::watch;

use super::remote::{Hosts, Remote, each, is_unsure, said};
use super::upload::{Blob, upload};
use super::view::{HostView, View};
use crate::control::client::ClientError;
use crate::control::wire::{Command, Prepare, Prepared, Progress, RolloutStatus, Start};

/// Parts of steps that took less are not worth a line.
const TOLD: Duration = Duration::from_millis(10);

/// What is to be deployed, and how.
pub(super) struct Deployment {
    pub(super) prepare: Prepare,
    /// What hosts must have before they can make the revision ready.
    pub(super) blobs: Vec<Blob>,
    /// Its revision is that of each host.
    pub(super) start: Start,
}

/// A revision whose rollout has started on one host.
#[derive(Clone)]
pub(super) struct Placed {
    pub(super) host: Arc<dyn Remote>,
    pub(super) prepared: Prepared,
    /// `None` where the revision was live before.
    pub(super) rollout: Option<RolloutStatus>,
}

/// Why a host is not ready.
struct Unready {
    /// What it was at.
    step: String,
    error: ClientError,
}

/// Why a host has not said that the rollout is started.
struct Unstarted {
    /// Whether it was asked to, so that it may have been all the same.
    was_asked: bool,
    error: ClientError,
}

/// Looks whether all hosts can be spoken to.
///
/// # Errors
/// Names those that cannot.
pub(super) async fn greet(hosts: &Hosts, view: &View) -> anyhow::Result<()> {
    let answers = each(hosts.iter().cloned(), |_, host| async move { host.status().await }).await;
    let mut troubles = Vec::new();
    for (index, (host, answer)) in hosts.iter().zip(&answers).enumerate() {
        match answer {
            Ok(status) if status.version != env!("CARGO_PKG_VERSION") => view.of(index).warn(&format!(
                "it runs Tenon {}, and this is {}; deploy with its version if something is not understood",
                status.version,
                env!("CARGO_PKG_VERSION")
            )),
            Ok(_) => {}
            // A token may be for deploying alone.
            Err(ClientError::Refused { refusal, .. }) if refusal.status == 403 => {}
            Err(error) => troubles.push((host.name(), said(error))),
        }
    }
    match troubles.is_empty() {
        true => Ok(()),
        false => Err(anyhow!("nothing was deployed{}", list(&troubles, view))),
    }
}

/// Makes the revision ready everywhere, and starts its rollout everywhere.
///
/// # Errors
/// Where a host cannot make it ready: nothing is started then. Where a rollout cannot be started: those that were are
/// undone. Where a person interrupts while it is made ready.
pub(super) async fn place(
    hosts: &Hosts,
    deployment: Deployment,
    view: &View,
    stops: watch::Receiver<u32>,
) -> anyhow::Result<Vec<Placed>> {
    let deployment = Arc::new(deployment);
    let ready = all_ready(hosts, &deployment, view, stops).await?;
    let started = each(hosts.iter().cloned().zip(ready.iter().cloned()), |_, (host, prepared)| {
        let deployment = Arc::clone(&deployment);
        async move { start(host.as_ref(), &prepared, &deployment.start).await }
    });
    let started = started.await;
    let mut placed = Vec::new();
    let mut troubles = Vec::new();
    for ((host, prepared), outcome) in hosts.iter().zip(&ready).zip(&started) {
        match outcome {
            Ok(begun) => placed.push(Placed {
                host: Arc::clone(host),
                prepared: prepared.clone(),
                rollout: begun.clone().map(|(rollout, _)| rollout),
            }),
            Err(unstarted) => troubles.push((host.name(), said(&unstarted.error))),
        }
    }
    if !troubles.is_empty() {
        let undone = undo(hosts, &ready, &started, view).await;
        let what = match hosts.len() {
            1 => "the rollout could not be started",
            _ => "the rollout could not be started everywhere",
        };
        return Err(anyhow!("{what}{}{undone}", list(&troubles, view)));
    }
    for (index, placed) in placed.iter().enumerate() {
        let (view, prepared) = (view.of(index), &placed.prepared);
        match &placed.rollout {
            None => view.note(
                "Unchanged",
                &format!("revision {} of `{}` is the same and live already", prepared.revision, prepared.app),
            ),
            Some(rollout) if prepared.unchanged => view.note(
                "Under way",
                &format!(
                    "the rollout of revision {} of `{}`, which is the same, {}",
                    prepared.revision,
                    prepared.app,
                    rollout.plan.strategy.name()
                ),
            ),
            Some(rollout) => view.note(
                "Started",
                &format!(
                    "the rollout of revision {} of `{}`, {}",
                    prepared.revision,
                    prepared.app,
                    rollout.plan.strategy.name()
                ),
            ),
        }
    }
    Ok(placed)
}

/// The rollout on one host, and whether it was under way before; nothing where the revision is live anyway.
type Started = Option<(RolloutStatus, bool)>;

/// Starts the rollout where the revision is not live anyway.
async fn start(host: &dyn Remote, prepared: &Prepared, start: &Start) -> Result<Started, Unstarted> {
    if prepared.live {
        return Ok(None);
    }
    if prepared.unchanged {
        // Somebody may have started it before, and it is not this command's to undo then.
        let is_same = |rollout: &RolloutStatus| {
            rollout.candidate == prepared.revision
                && !matches!(rollout.phase.as_str(), "succeeded" | "rolled_back")
        };
        let app = host.app(&prepared.app).await.map_err(|error| Unstarted { was_asked: false, error })?;
        if let Some(rollout) = app.rollout.filter(is_same) {
            return Ok(Some((rollout, true)));
        }
    }
    let start = Start { revision: prepared.revision, ..start.clone() };
    let started = host.start(&prepared.app, &start).await;
    Ok(Some((started.map_err(|error| Unstarted { was_asked: true, error })?, false)))
}

async fn all_ready(
    hosts: &Hosts,
    deployment: &Arc<Deployment>,
    view: &View,
    mut stops: watch::Receiver<u32>,
) -> anyhow::Result<Vec<Prepared>> {
    let mut preparing = std::pin::pin!(each(hosts.iter().cloned(), |index, host| {
        let (view, deployment) = (view.of(index), Arc::clone(deployment));
        async move { ready(host.as_ref(), &deployment, &view).await }
    }));
    let mut is_stopped = false;
    let results = loop {
        tokio::select! {
            results = &mut preparing => break results,
            () = stopped(&mut stops) => {
                if std::mem::replace(&mut is_stopped, true) {
                    bail!(
                        "left while hosts were making the revision ready: they go on, but send no traffic there; deploy \
                         the same once more to start its rollout, or another after ten minutes to take its place"
                    );
                }
                view.progress().warn(
                    "stopping: what hosts make ready is discarded as soon as they are done; once more leaves at once",
                );
            }
        }
    };
    let mut ready = Vec::new();
    let mut troubles = Vec::new();
    for (host, result) in hosts.iter().zip(&results) {
        match result {
            Ok(prepared) => ready.push((Arc::clone(host), prepared.clone())),
            Err(unready) => troubles.push((host.name(), unready.text())),
        }
    }
    let differ = || {
        let digests: BTreeSet<_> =
            ready.iter().map(|(_, prepared)| (&prepared.app, &prepared.digest)).collect();
        digests.len() > 1
    };
    let why = if !troubles.is_empty() {
        let counted = match hosts.len() {
            1 => "the revision could not be made ready".to_owned(),
            many => format!("{} of {many} hosts could not make the revision ready", troubles.len()),
        };
        format!("{counted}, so nothing was started and what is live goes on{}", list(&troubles, view))
    } else if differ() {
        let found: Vec<_> = ready
            .iter()
            .map(|(host, prepared)| (host.name(), format!("`{}` is {}", prepared.app, prepared.digest)))
            .collect();
        format!(
            "the hosts got different artifacts, so nothing was started; give the reference with its digest{}",
            list(&found, view)
        )
    } else if is_stopped {
        "stopped before anything was started".to_owned()
    } else {
        return Ok(ready.into_iter().map(|(_, prepared)| prepared).collect());
    };
    Err(anyhow!("{why}{}", discard(ready, view).await))
}

/// Forgets what was made ready for this deployment, and says where that could not be.
async fn discard(ready: Vec<(Arc<dyn Remote>, Prepared)>, view: &View) -> String {
    // What was there before is not this command's.
    let new: Vec<_> = ready.into_iter().filter(|(_, prepared)| !prepared.unchanged).collect();
    if new.is_empty() {
        return String::new();
    }
    let left = each(new, |_, (host, prepared)| async move {
        let discarded = host.discard(&prepared.app, prepared.revision).await;
        discarded.err().map(|error| {
            (host.name(), format!("revision {} is still ready: {}", prepared.revision, said(&error)))
        })
    });
    let left: Vec<_> = left.await.into_iter().flatten().collect();
    match left.is_empty() {
        true => "\nwhat was made ready is discarded".to_owned(),
        false => format!(
            "\nnot everything could be discarded, though none of it takes traffic{}",
            list(&left, view)
        ),
    }
}

/// Sends traffic back where a rollout was started, or may have been.
async fn undo(
    hosts: &Hosts,
    ready: &[Prepared],
    started: &[Result<Started, Unstarted>],
    view: &View,
) -> String {
    let all =
        hosts.iter().cloned().zip(ready.iter().cloned()).zip(started.iter().map(|outcome| match outcome {
            Ok(Some((rollout, false))) => Begun::Yes(Box::new(rollout.clone())),
            Ok(_) => Begun::Before,
            Err(unstarted) if unstarted.was_asked && is_unsure(&unstarted.error) => Begun::Perhaps,
            Err(_) => Begun::No,
        }));
    let undone = each(all, |index, ((host, prepared), begun)| {
        let view = view.of(index);
        async move {
            let undone = undo_one(host.as_ref(), &prepared, begun).await;
            match undone {
                Ok(None) => None,
                Ok(Some(text)) => {
                    view.note("Undone", &text);
                    None
                }
                Err(error) => Some((
                    host.name(),
                    format!(
                        "{}; `tenon status --to {}` tells how it is, `tenon rollback {}` goes back",
                        said(&error),
                        host.name(),
                        prepared.app
                    ),
                )),
            }
        }
    });
    let left: Vec<_> = undone.await.into_iter().flatten().collect();
    match left.is_empty() {
        true => "\nwhat had been started was undone".to_owned(),
        false => format!("\nnot everything could be undone{}", list(&left, view)),
    }
}

/// Whether a rollout began.
enum Begun {
    Yes(Box<RolloutStatus>),
    /// It was under way, or the revision was live, before this command.
    Before,
    Perhaps,
    No,
}

/// Undoes what this deployment did on one host, and says what that was.
async fn undo_one(
    host: &dyn Remote,
    prepared: &Prepared,
    begun: Begun,
) -> Result<Option<String>, ClientError> {
    let (app, revision) = (prepared.app.as_str(), prepared.revision);
    let rollout = match begun {
        Begun::Before => return Ok(None),
        Begun::Yes(rollout) => Some(*rollout),
        Begun::Perhaps => {
            let rollout = host.app(app).await?.rollout;
            rollout.filter(|rollout| rollout.candidate == revision)
        }
        Begun::No => None,
    };
    let Some(rollout) = rollout else {
        if prepared.unchanged {
            return Ok(None);
        }
        host.discard(app, revision).await?;
        return Ok(Some(format!("revision {revision} is discarded")));
    };
    if rollout.stable.is_none() {
        // There was nothing of the app before.
        host.remove(app).await?;
        return Ok(Some(format!("`{app}` is removed again")));
    }
    let message = Some("it could not be started on every host".to_owned());
    let command = Command { revision: rollout.stable, message, ..Command::default() };
    host.rollback(app, &command).await?;
    Ok(Some(format!("revision {revision} takes no traffic any more")))
}

/// Has one host make the revision ready, and shows each step.
async fn ready(host: &dyn Remote, deployment: &Deployment, view: &HostView) -> Result<Prepared, Unready> {
    let begun = Instant::now();
    if let Err(error) = upload(host, &deployment.blobs, view).await {
        view.rest();
        view.failed("the upload", begun.elapsed());
        return Err(Unready { step: "upload".to_owned(), error });
    }
    let begun = Instant::now();
    // What it is at, and since when.
    let at = Mutex::new((String::new(), begun));
    view.at("Preparing", "waiting for the host".to_owned(), true);
    let mut hear = |line: &Progress| {
        let mut at = at.lock().unwrap_or_else(PoisonError::into_inner);
        heard(line, &mut at, view);
    };
    let prepared = host.prepare(&deployment.prepare, &mut hear).await;
    view.rest();
    match prepared {
        Ok(prepared) => {
            if !prepared.live {
                let text = format!("revision {} of `{}`", prepared.revision, prepared.app);
                view.done("Ready", &text, begun.elapsed());
            }
            Ok(prepared)
        }
        Err(error) => {
            let (step, since) = at.into_inner().unwrap_or_else(PoisonError::into_inner);
            view.failed(if step.is_empty() { "making it ready" } else { &step }, since.elapsed());
            Err(Unready { step, error })
        }
    }
}

fn heard(line: &Progress, (step, since): &mut (String, Instant), view: &HostView) {
    match line {
        Progress::Begun { step: begun } => {
            (*step, *since) = (begun.clone(), Instant::now());
            view.at("Preparing", begun.clone(), true);
        }
        Progress::Done { step: done, took_ms } => {
            // A host says it; what is no time is none.
            let took = Duration::try_from_secs_f64(took_ms / 1e3).unwrap_or_default();
            match past(done) {
                Some((verb, what)) => view.done(verb, what, took),
                None if took < TOLD => {}
                // A part of a step, or one that is not known here.
                None => view.done("", done, took),
            }
            if done == step {
                step.clear();
            }
        }
        Progress::Warning { text } => view.warn(text),
        // The last line is what the call answers.
        Progress::Ready { .. } | Progress::Failed { .. } => {}
    }
}

/// A step of a host, as a person reads it when it is done.
fn past(step: &str) -> Option<(&'static str, &'static str)> {
    Some(match step {
        "find" => ("Found", "the artifact"),
        "verify signature" => ("Verified", "its signature"),
        "fetch" => ("Fetched", "what was missing"),
        "read" => ("Read", "the app"),
        "compare" => ("Compared", "with the live revision"),
        "compile" => ("Compiled", "its components"),
        "load models" => ("Loaded", "its models"),
        "golden samples" => ("Tried", "its golden samples"),
        _ => return None,
    })
}

impl Unready {
    fn text(&self) -> String {
        let said = said(&self.error);
        let unsure = match is_unsure(&self.error) {
            true => "; it may still make the revision ready, but sends no traffic there",
            false => "",
        };
        match self.step.is_empty() {
            true => format!("{said}{unsure}"),
            false => format!("at `{}`: {said}{unsure}", self.step),
        }
    }
}

/// What hosts said, each on lines of its own; a single host needs no name.
fn list(hosts: &[(String, String)], view: &View) -> String {
    let mut text = String::new();
    for (host, said) in hosts {
        let _ = match view.has_many() {
            true => write!(text, "\n  {host}: {}", said.replace('\n', "\n    ")),
            false => write!(text, ":\n  {}", said.replace('\n', "\n  ")),
        };
    }
    text
}

/// Waits for the next signal; for ever where there is nobody to send one.
pub(super) async fn stopped(stops: &mut watch::Receiver<u32>) {
    if stops.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}
