//! What the control API says, as JSON: the one form that hosts and their clients share.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::rollout::plan::Plan;

/// Asks for a new revision, which takes no traffic yet. Answered by a stream of [`Progress`], one JSON object a line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prepare {
    pub source: Source,
    /// Values of the app's variables.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub variables: BTreeMap<String, String>,
    /// Takes it even though callers of the live revision may break.
    #[serde(default)]
    pub allow_incompatible: bool,
    /// Takes it even though it may do more than the live revision.
    #[serde(default)]
    pub allow_capabilities: bool,
    /// Takes it without running its golden samples.
    #[serde(default)]
    pub skip_samples: bool,
    /// Stands in the history, for people: who deployed, or why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// Where a revision's app comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Source {
    /// A reference, which the host pulls and whose signature it verifies.
    Reference(String),
    /// The digest of an image manifest all of whose blobs were uploaded before.
    Uploaded(String),
}

/// One line of the answer to [`Prepare`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Progress {
    /// A step has begun.
    Begun { step: String },
    /// A step is done.
    Done { step: String, took_ms: f64 },
    /// Something that a person should know.
    Warning { text: String },
    /// The last line: the revision is ready to take traffic.
    Ready { prepared: Prepared },
    /// The last line: there is no new revision, and what was live is untouched.
    Failed { error: Refusal },
}

/// A revision that is ready to take traffic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prepared {
    pub app: String,
    pub revision: u64,
    /// Of the image manifest, `sha256:...`.
    pub digest: String,
    /// Whether that revision was there before, with the same digest and variables.
    pub unchanged: bool,
    /// Whether it is what all traffic goes to already.
    pub live: bool,
}

/// Starts the rollout of a prepared revision.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Start {
    pub revision: u64,
    pub plan: Plan,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// A command to a rollout that is under way.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Command {
    /// Of a promotion: at once to all traffic, past all steps that are left.
    #[serde(default)]
    pub full: bool,
    /// Of a rollback that no rollout is under way for: the revision to go back to; the former one unless said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// An error answer. Its form is that of problem details (RFC 9457).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// The error's name, such as `not-compatible`.
    pub title: String,
    pub status: u16,
    /// What is wrong and what to do.
    pub detail: String,
}

/// What a host serves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HostStatus {
    /// Tenon's version.
    pub version: String,
    pub apps: Vec<AppStatus>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AppStatus {
    pub app: String,
    /// The revision that takes traffic where nothing says otherwise; absent until the first is promoted.
    pub stable: Option<u64>,
    /// The newest first.
    pub revisions: Vec<RevisionStatus>,
    /// The rollout that is under way, or the last one.
    pub rollout: Option<RolloutStatus>,
    pub routes: Vec<String>,
    pub functions: Vec<FunctionStatus>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RevisionStatus {
    pub revision: u64,
    pub digest: String,
    /// The reference that it came from; absent where it was uploaded.
    pub reference: Option<String>,
    /// The app's own version.
    pub version: Option<String>,
    /// Hundredths of a percent of the traffic.
    pub weight: u16,
    /// Whether it is in memory, so that traffic can go to it at once.
    pub warm: bool,
    pub created_ms: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FunctionStatus {
    pub function: String,
    /// Its name in the Open Inference Protocol.
    pub model: String,
    pub kind: String,
    pub component: String,
    /// Digests of models by the names that they were granted under.
    pub models: BTreeMap<String, String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RolloutStatus {
    pub id: u64,
    pub stable: Option<u64>,
    pub candidate: u64,
    /// The name of a phase of a rollout.
    pub phase: String,
    /// The step that it is at, from 0, of so many.
    pub step: usize,
    pub steps: usize,
    /// What it waits for, or why it ended, in words.
    pub reason: String,
    /// Hundredths of a percent of traffic that the candidate takes.
    pub weight: u16,
    pub started_ms: u64,
    pub changed_ms: u64,
    pub plan: Plan,
    /// The latest numbers of every metric of every function.
    pub measurements: Vec<crate::rollout::analysis::Measurement>,
}

/// One entry of the history.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HistoryEntry {
    /// Counts up on the host.
    pub id: u64,
    pub time_ms: u64,
    pub app: String,
    pub revision: Option<u64>,
    /// A word such as `promoted`.
    pub event: String,
    /// In words.
    pub text: String,
    /// The numbers behind a decision.
    pub details: Value,
}

/// How far shadowed answers agree.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ShadowStatus {
    pub app: String,
    pub stable: Option<u64>,
    pub candidate: Option<u64>,
    pub functions: Vec<crate::rollout::shadow::Report>,
}
