//! Follows rollouts until they are over or wait for a person: what changes is a line, and the numbers stand below on a
//! terminal, or are a line now and then elsewhere.

use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::place::{Placed, stopped};
use super::remote::{each, said};
use super::view::{HostView, View};
use crate::control::client::ClientError;
use crate::control::wire::{AppStatus, RolloutStatus};
use crate::rollout::analysis::Measurement;

/// How often hosts are asked.
pub(super) const EVERY: Duration = Duration::from_millis(500);
/// How often a file gets the numbers.
const LINE_EVERY: Duration = Duration::from_secs(15);
/// How long a host may give no answer before it is followed no more.
const PATIENCE: Duration = Duration::from_secs(60);
/// The most metrics that are told of a candidate that was rolled back.
const SHOWN: usize = 5;

/// How a rollout ended, as far as it was followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    Promoted,
    RolledBack,
    /// It waits for a person, because its plan or a person says so.
    Waiting,
    /// It waits for a person, because the numbers do not decide.
    Undecided,
    /// Nobody knows: the host cannot be asked, or another rollout took its place.
    Lost,
    /// Nobody may know: the token is for deploying alone.
    Unseen,
}

impl Ended {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Ended::Promoted => "promoted",
            Ended::RolledBack => "rolled-back",
            Ended::Waiting => "waiting",
            Ended::Undecided => "undecided",
            Ended::Lost => "lost",
            Ended::Unseen => "started",
        }
    }
}

/// Follows all of them; `None` where a signal says to stop that.
pub(super) async fn follow(
    placed: &[Placed],
    view: &View,
    mut stops: watch::Receiver<u32>,
    every: Duration,
) -> Option<Vec<Ended>> {
    // What was pressed before this was for what came before.
    stops.mark_unchanged();
    let is_live = view.is_live();
    let following = each(placed.iter().cloned(), |index, placed| {
        let mut follower =
            Follower { view: view.of(index), is_live, seen: None, told: Instant::now(), last: String::new() };
        async move { follower.follow(&placed, every).await }
    });
    tokio::select! {
        ended = following => Some(ended),
        () = stopped(&mut stops) => None,
    }
}

struct Follower {
    view: HostView,
    is_live: bool,
    /// Phase, step and weight that were told.
    seen: Option<(String, usize, u16)>,
    /// When the numbers were told last, and which.
    told: Instant,
    last: String,
}

impl Follower {
    async fn follow(&mut self, placed: &Placed, every: Duration) -> Ended {
        // The revision was live before.
        let Some(started) = &placed.rollout else { return Ended::Promoted };
        let mut rollout = started.clone();
        let mut answered = Instant::now();
        loop {
            if let Some(ended) = self.see(&rollout, &placed.prepared.app) {
                self.view.rest();
                return ended;
            }
            tokio::time::sleep(every).await;
            match placed.host.app(&placed.prepared.app).await {
                Ok(status) => match same(&status, &rollout) {
                    Some(now) => (rollout, answered) = (now, Instant::now()),
                    None => return self.lost("another rollout took its place, or the app was removed"),
                },
                Err(ClientError::Refused { refusal, .. }) if matches!(refusal.status, 401 | 403) => {
                    self.view.rest();
                    self.view.warn(&format!("it is not followed, because {}", refusal.detail));
                    return Ended::Unseen;
                }
                Err(error) if answered.elapsed() > PATIENCE || error.refusal().is_some() => {
                    return self.lost(&said(&error));
                }
                Err(error) => {
                    self.view.at("Following", format!("no answer: {}", said(&error)), true);
                }
            }
        }
    }

    fn lost(&self, why: &str) -> Ended {
        self.view.rest();
        self.view.warn(&format!(
            "it is not followed any more: {why}; `tenon status` and `tenon history` tell more"
        ));
        Ended::Lost
    }

    /// Shows where a rollout stands, and answers how it ended, if it did.
    fn see(&mut self, rollout: &RolloutStatus, app: &str) -> Option<Ended> {
        let now = (rollout.phase.clone(), rollout.step, rollout.weight);
        let is_new = self.seen.as_ref() != Some(&now);
        self.seen = Some(now);
        let reason = rollout.reason.as_str();
        let ended = match rollout.phase.as_str() {
            "succeeded" => {
                self.view.note("Promoted", &format!("`{app}`: {reason}"));
                return Some(Ended::Promoted);
            }
            "rolled_back" => {
                self.rolled_back(rollout, app);
                return Some(Ended::RolledBack);
            }
            "paused" => Some(("Waiting", Ended::Waiting)),
            "inconclusive" => Some(("Undecided", Ended::Undecided)),
            _ => None,
        };
        if let Some((verb, ended)) = ended {
            self.view.note(verb, &format!("{}{reason}", place(rollout)));
            if let (Ended::Undecided, Some(worst)) = (ended, worst(&rollout.measurements)) {
                self.view.note("", &worst);
            }
            return Some(ended);
        }
        let (verb, place) = (verb(&rollout.phase), place(rollout));
        let worst = worst(&rollout.measurements);
        let numbers = format!("{reason}{}", worst.as_deref().unwrap_or_default());
        let is_due = !self.is_live && self.told.elapsed() >= LINE_EVERY && self.last != numbers;
        if is_new || is_due {
            self.view.note(verb, &format!("{place}{reason}"));
            if let Some(worst) = worst.as_deref().filter(|_| is_due) {
                self.view.note("", worst);
            }
            (self.told, self.last) = (Instant::now(), numbers);
        }
        self.view.at_with(verb, format!("{place}{reason}"), worst, false);
        None
    }

    fn rolled_back(&self, rollout: &RolloutStatus, app: &str) {
        let to = match rollout.stable {
            Some(stable) => format!("all traffic goes to revision {stable}"),
            None => "no revision takes traffic".to_owned(),
        };
        self.view.note(
            "Rolled back",
            &format!("revision {} of `{app}`, and {to}: {}", rollout.candidate, rollout.reason),
        );
        let failed = rollout.measurements.iter().filter(|found| found.phase == "failed" && !found.dry_run);
        for found in failed.take(SHOWN) {
            self.view.note("", &described(found));
        }
        self.view.note("History", &format!("`tenon history {app}` has all numbers"));
    }
}

/// The rollout that was followed, if it is still what the host has.
fn same(status: &AppStatus, followed: &RolloutStatus) -> Option<RolloutStatus> {
    status.rollout.clone().filter(|now| now.id == followed.id && now.candidate == followed.candidate)
}

fn verb(phase: &str) -> &'static str {
    match phase {
        "shadowing" => "Shadowing",
        "promoting" => "Promoting",
        "aborting" => "Aborting",
        _ => "Trying",
    }
}

/// `step 2 of 6: `, to be followed by what it waits for.
fn place(rollout: &RolloutStatus) -> String {
    match rollout.steps {
        0 => String::new(),
        steps => format!("step {} of {steps}: ", (rollout.step + 1).min(steps)),
    }
}

/// What speaks most against the candidate: what is nearest to what it needs to fail.
fn worst(found: &[Measurement]) -> Option<String> {
    let nearness = |found: &Measurement| found.evidence / found.needed;
    let is_judged = |found: &&Measurement| !found.dry_run && found.candidate_samples > 0;
    let judged = found.iter().filter(is_judged).filter(|found| nearness(found).is_finite());
    judged.max_by(|one, other| nearness(one).total_cmp(&nearness(other))).map(described)
}

/// What is known of a metric in the host's words; where it has none, its numbers.
fn described(found: &Measurement) -> String {
    if !found.text.is_empty() {
        return format!("{}: {}", found.function, found.text);
    }
    let value = |value: Option<f64>| value.map_or_else(|| "?".to_owned(), short);
    format!(
        "{}: {} {} against {}; evidence {} of {}, after {} calls of the candidate and {} of the stable revision",
        found.function,
        found.metric,
        value(found.candidate),
        value(found.stable),
        short(found.evidence),
        short(found.needed),
        found.candidate_samples,
        found.stable_samples,
    )
}

/// A number with as many digits as a person reads.
fn short(number: f64) -> String {
    match number.abs() {
        0.0 => "0".to_owned(),
        size if !(1e-3..1e6).contains(&size) => format!("{number:.1e}"),
        size if size >= 100.0 => format!("{number:.0}"),
        size if size >= 10.0 => format!("{number:.1}"),
        _ => format!("{number:.3}"),
    }
}
