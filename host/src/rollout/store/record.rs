//! What the store keeps of an app, and of what became of it.
//!
//! Members that come later have a default, so that what was kept before can be read; where that is not enough, the
//! store's format goes up.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::rollout::machine::{Change, Rollout};

/// An app that the host serves.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AppRecord {
    /// The revision that takes traffic where nothing says otherwise; absent until the first is promoted.
    #[serde(default)]
    pub stable: Option<u64>,
    /// The one that was stable before, to go back to.
    #[serde(default)]
    pub former: Option<u64>,
    #[serde(default)]
    pub revisions: BTreeMap<u64, RevisionRecord>,
    /// The number of the next revision. No number is given twice, also where a revision is forgotten.
    pub next_revision: u64,
    /// The number of the next rollout.
    pub next_rollout: u64,
    /// The rollout that is under way, or the last one.
    #[serde(default)]
    pub rollout: Option<Rollout>,
    /// Whether it takes no traffic any more, and goes once its calls have ended.
    #[serde(default)]
    pub removed: bool,
}

impl Default for AppRecord {
    fn default() -> AppRecord {
        AppRecord {
            stable: None,
            former: None,
            revisions: BTreeMap::new(),
            next_revision: 1,
            next_rollout: 1,
            rollout: None,
            removed: false,
        }
    }
}

impl AppRecord {
    /// Forgets the oldest revisions beyond `keep`, and says which. Those that take traffic, or may again, stay: the
    /// stable one, the former one, and those of a rollout that is under way.
    pub fn forget_old(&mut self, keep: usize) -> Vec<u64> {
        let rollout = self.rollout.as_ref().filter(|rollout| !rollout.is_over());
        let needed = [self.stable, self.former, rollout.map(|rollout| rollout.candidate)];
        let beyond = self.revisions.len().saturating_sub(keep);
        let old = self.revisions.keys().copied().filter(|revision| !needed.contains(&Some(*revision)));
        let old: Vec<u64> = old.take(beyond).collect();
        for revision in &old {
            self.revisions.remove(revision);
        }
        old
    }
}

/// One immutable version of an app, and what it takes to make it ready again.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevisionRecord {
    /// Of the image manifest, `sha256:...`.
    pub digest: String,
    /// The reference that it came from; absent where it was uploaded.
    #[serde(default)]
    pub reference: Option<String>,
    /// Whether its blobs were uploaded, so that they are nowhere else.
    #[serde(default)]
    pub uploaded: bool,
    /// Values of the app's variables, which may be secrets.
    #[serde(default)]
    pub variables: BTreeMap<String, String>,
    pub created_ms: u64,
    /// The app's own version.
    #[serde(default)]
    pub version: Option<String>,
    /// What the person who deployed it said.
    #[serde(default)]
    pub message: Option<String>,
}

impl fmt::Debug for RevisionRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RevisionRecord")
            .field("digest", &self.digest)
            .field("reference", &self.reference)
            .field("uploaded", &self.uploaded)
            .field("variables", &self.variables.keys())
            .field("created_ms", &self.created_ms)
            .field("version", &self.version)
            .field("message", &self.message)
            .finish()
    }
}

/// Something that happened, to be added to the history.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    pub time_ms: u64,
    pub revision: Option<u64>,
    /// A word such as `promoted`.
    pub event: String,
    /// In words.
    pub text: String,
    /// The numbers behind a decision.
    pub details: Value,
}

impl Event {
    /// What happened to the rollout of a revision.
    pub fn of(change: Change, revision: u64, time_ms: u64) -> Event {
        let Change { event, text, details } = change;
        Event { time_ms, revision: Some(revision), event: event.to_owned(), text, details }
    }
}

/// One entry of the history.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HistoryEntry {
    /// Counts up on the host.
    pub id: u64,
    pub time_ms: u64,
    pub app: String,
    #[serde(default)]
    pub revision: Option<u64>,
    pub event: String,
    pub text: String,
    #[serde(default)]
    pub details: Value,
}

/// The longest text of an entry and the longest JSON of its details, in bytes.
const TEXT_BYTES: usize = 4 << 10;
const DETAILS_BYTES: usize = 64 << 10;

impl HistoryEntry {
    /// The entry of an event, cut to its bounds.
    pub(super) fn new(id: u64, app: &str, event: &Event) -> HistoryEntry {
        let details = match event.details.to_string().len() {
            0..=DETAILS_BYTES => event.details.clone(),
            bytes => serde_json::json!({ "left_out_bytes": bytes }),
        };
        HistoryEntry {
            id,
            time_ms: event.time_ms,
            app: app.to_owned(),
            revision: event.revision,
            event: cut(&event.event, 64).to_owned(),
            text: cut(&event.text, TEXT_BYTES).to_owned(),
            details,
        }
    }
}

/// At most so many bytes of a text, to the end of a character.
fn cut(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}
