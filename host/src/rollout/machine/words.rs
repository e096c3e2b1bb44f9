//! What happens to a rollout, in words.

use serde_json::json;

use super::{Change, Phase, Rollout};
use crate::rollout::plan::{HeaderRoute, Side, Step, Strategy, percent};

pub(super) const PROMOTED: &str = "a person let it go on to the next step";
pub(super) const PROMOTED_FULLY: &str = "a person let it go on to all traffic, past the steps that are left";
pub(super) const STOPPED: &str = "a person stopped it; `tenon resume` goes on where it was, `tenon promote` goes on to \
                                  the next step, `tenon rollback` goes back";
pub(super) const ANEW: &str = "a person let it begin this step anew";
pub(super) const OVERRULED: &str =
    "the evidence so far is set aside, because a person let it go on; what comes now is judged by itself";
pub(super) const PROMOTING: &str =
    "all traffic is about to go to the candidate; `tenon rollback` goes back to the former revision";
pub(super) const ABORTING: &str = "it is being rolled back; deploy again to begin a new rollout";
pub(super) const GOING: &str =
    "it is not paused; `tenon promote` goes on to the next step, `tenon pause` stops it";

pub(super) fn over(command: &str, phase: Phase) -> String {
    let how = if phase == Phase::Succeeded { "has succeeded" } else { "was rolled back" };
    let then = match phase {
        Phase::Succeeded => "`tenon rollback` goes back to the former revision",
        _ => "deploy again to begin a new one",
    };
    format!("the rollout is over, so it cannot be {command}: it {how}; {then}")
}

/// A reason for a person to decide, and how they do.
pub(super) fn asking(reason: &str) -> String {
    let reason = reason.trim_end_matches('.');
    format!(
        "{reason}; a person must decide: `tenon promote` goes on, `tenon resume` tries this step again, `tenon \
         rollback` goes back"
    )
}

pub(super) fn promoting(candidate: u64) -> String {
    format!("all traffic goes to revision {candidate}")
}

pub(super) fn promoted(candidate: u64) -> String {
    format!("revision {candidate} is stable, and takes all traffic")
}

pub(super) fn aborting(candidate: u64, reason: &str) -> String {
    format!("no traffic goes to revision {candidate} any more: {reason}")
}

pub(super) fn rolled_back(stable: Option<u64>, reason: &str) -> String {
    match stable {
        Some(stable) => format!("all traffic goes to revision {stable} again: {reason}"),
        None => format!("no revision takes traffic: {reason}"),
    }
}

impl Rollout {
    /// Something that happened, with where the candidate stands.
    pub(super) fn change(&self, event: &'static str, text: String) -> Change {
        let details = json!({
            "rollout": self.id,
            "step": self.step,
            "weight": percent(self.weight),
            "shadow_share": percent(self.shadow_share),
        });
        Change { event, text, details }
    }

    /// Something that was decided, with the numbers behind it.
    pub(super) fn decided(&self, event: &'static str, text: String) -> Change {
        let mut change = self.change(event, text);
        if !self.measurements.is_empty() {
            change.details["measurements"] = json!(self.measurements);
        }
        change
    }

    pub(super) fn said(&self, text: &str) -> Change {
        self.decided("continued", text.to_owned())
    }

    pub(super) fn started(&self) -> Change {
        let strategy = self.plan.strategy.name();
        let text = match (self.stable, self.plan.strategy) {
            (None, _) => format!("revision {} is the first", self.candidate),
            (Some(stable), Strategy::AllAtOnce) => {
                format!("revision {} takes the place of revision {stable}, {strategy}", self.candidate)
            }
            (Some(stable), _) => format!(
                "revision {} is tried out beside revision {stable}: {strategy}, {} steps",
                self.candidate,
                self.plan.steps.len()
            ),
        };
        let mut change = self.change("started", text);
        change.details["plan"] = json!(self.plan);
        change
    }

    pub(super) fn took_weight(&self) -> Change {
        let text = format!("revision {} takes {} % of the traffic", self.candidate, percent(self.weight));
        self.change("weight", text)
    }

    pub(super) fn routed(&self, route: &HeaderRoute) -> Change {
        let revision = match route.revision {
            Side::Candidate => self.candidate,
            Side::Stable => self.stable.unwrap_or_default(),
        };
        let HeaderRoute { header, value, .. } = route;
        self.change("header-route", format!("requests with `{header}: {value}` go to revision {revision}"))
    }

    pub(super) fn enough(&self) -> Change {
        let samples = match self.plan.steps.get(self.step) {
            Some(Step::Shadow(_)) => format!("{} copied calls were compared", self.analysis.shadow_samples()),
            _ => format!("revision {} answered {} calls", self.candidate, self.analysis.candidate_samples()),
        };
        self.decided("passed", format!("{samples}, and nothing speaks against it"))
    }

    /// What it waits for at its step.
    pub(super) fn waits_for(&self) -> String {
        let weight = percent(self.weight);
        match self.plan.steps.get(self.step) {
            _ if self.held => self.asks(),
            Some(Step::Pause(pause)) => match pause.duration_s {
                Some(seconds) => format!("waits {seconds} s at {weight} % of the traffic"),
                None => format!(
                    "waits for a person at {weight} % of the traffic, as its plan says; `tenon promote` goes on, \
                     `tenon rollback` goes back"
                ),
            },
            Some(Step::Analysis(analysis)) => {
                let (answered, needed) = (self.analysis.candidate_samples(), self.samples_of(analysis));
                let lacks = self.analysis.lacks(needed).filter(|_| answered >= needed);
                let lacks = lacks.map_or_else(String::new, |lacks| format!("; {lacks}"));
                format!(
                    "the candidate has answered {answered} of {needed} calls at {weight} % of the traffic{lacks}"
                )
            }
            Some(Step::Shadow(shadow)) => format!(
                "{} of {} copied calls were compared, at copies of {} %",
                self.analysis.shadow_samples(),
                shadow.min_samples,
                percent(self.shadow_share),
            ),
            Some(Step::SetWeight(_) | Step::SetHeaderRoute(_)) | None => "goes on".to_owned(),
        }
    }

    /// What it asks a person before a step.
    fn asks(&self) -> String {
        let next = match self.plan.steps.get(self.step) {
            Some(Step::SetWeight(weight)) => {
                format!("gives the candidate {} % of the traffic", percent(*weight))
            }
            Some(Step::Shadow(shadow)) => {
                format!("gives the candidate copies of {} % of the calls", percent(shadow.share))
            }
            _ => "gives the candidate all traffic".to_owned(),
        };
        format!("waits for a person; `tenon promote` {next}, `tenon rollback` goes back")
    }

    pub(super) fn too_long(&self, timeout_s: u64) -> String {
        format!("after {timeout_s} s {}", self.waits_for())
    }

    /// Why it cannot be paused.
    pub(super) fn waits_already(&self) -> String {
        format!("it waits already: {}", self.reason)
    }
}
