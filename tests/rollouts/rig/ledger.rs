//! Which revisions a call might have reached, from what the control API acknowledged and nothing else.
//!
//! A command takes hold at one moment between the one at which it was sent and the one at which it was acknowledged, and
//! a call keeps what it finds at one moment between its first byte and the last one of its answer. So a call may have
//! been answered by each state that can have held at any moment of its own time, and by no other.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};

use super::load::{Caller, Seen, What};

/// All of the traffic, in hundredths of a percent.
pub(crate) const WHOLE: u16 = 10_000;

/// What takes an app's traffic.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct State {
    /// Absent where the app is not there.
    pub(crate) stable: Option<u64>,
    pub(crate) candidate: Option<Candidate>,
}

/// What takes a part of an app's traffic.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Candidate {
    pub(crate) revision: u64,
    /// Of its image, `sha256:...`.
    pub(crate) digest: String,
    /// Hundredths of a percent.
    pub(crate) weight: u16,
    /// Whether it answers testers.
    pub(crate) testers: bool,
}

impl fmt::Display for State {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.stable, &self.candidate) {
            (None, _) => out.write_str("nothing"),
            (Some(stable), None) => write!(out, "{stable}"),
            (Some(stable), Some(Candidate { revision, weight, .. })) => {
                write!(out, "{stable} with {revision} at {weight}")
            }
        }
    }
}

impl State {
    pub(crate) fn absent() -> State {
        State::default()
    }

    pub(crate) fn stable(revision: u64) -> State {
        State { stable: Some(revision), candidate: None }
    }

    /// With a candidate.
    pub(crate) fn with(&self, revision: u64, digest: &str, weight: u16, testers: bool) -> State {
        let candidate = Candidate { revision, digest: digest.to_owned(), weight, testers };
        State { candidate: Some(candidate), ..self.clone() }
    }

    /// With this weight of the candidate that it has.
    pub(crate) fn at(&self, weight: u16) -> State {
        let mut state = self.clone();
        if let Some(candidate) = &mut state.candidate {
            candidate.weight = weight;
        }
        state
    }

    /// Who may answer this caller; without anybody the app is not there.
    pub(crate) fn answers(&self, app: &str, caller: Caller) -> Vec<u64> {
        let Some(stable) = self.stable else { return Vec::new() };
        let Some(candidate) = &self.candidate else { return vec![stable] };
        let &Candidate { revision, weight, testers, .. } = candidate;
        match caller {
            Caller::Tester if testers => vec![revision],
            Caller::User(user) => {
                let chosen = bucket(app, &candidate.digest, &user.to_string()) < weight;
                vec![if chosen { revision } else { stable }]
            }
            _ if weight == 0 => vec![stable],
            _ if weight >= WHOLE => vec![revision],
            _ => vec![stable, revision],
        }
    }
}

/// Where a key stands among hundredths of a percent: the definition that the documentation gives, written once more.
pub(crate) fn bucket(app: &str, digest: &str, key: &str) -> u16 {
    let hash = Sha256::digest(format!("{app}\n{digest}\n{key}"));
    let first = hash.iter().take(8).fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
    (first % u64::from(WHOLE)) as u16
}

/// The states of one app, one after the other.
pub(crate) struct Ledger {
    app: String,
    /// What each revision calls itself.
    labels: BTreeMap<u64, u32>,
    entries: Vec<Entry>,
}

struct Entry {
    state: State,
    /// When its command was sent: it may hold from here on.
    begun: Instant,
    /// When its command was acknowledged: nothing before it holds from here on. Absent where nobody knows.
    acknowledged: Option<Instant>,
    /// A command that the host refused never took hold.
    refused: bool,
}

/// A command that was sent.
#[must_use]
#[derive(Clone, Copy)]
pub(crate) struct Sent(usize);

impl Ledger {
    /// An app that is in this state.
    pub(crate) fn new(app: &str, state: State) -> Ledger {
        let now = Instant::now();
        let first = Entry { state, begun: now, acknowledged: Some(now), refused: false };
        Ledger { app: app.to_owned(), labels: BTreeMap::new(), entries: vec![first] }
    }

    /// A revision was made ready that calls itself so. Its number must be new.
    pub(crate) fn prepared(&mut self, revision: u64, label: u32) -> Result<(), String> {
        match self.labels.insert(revision, label) {
            Some(before) if before != label => Err(format!("revision {revision} is {before} and {label}")),
            _ => Ok(()),
        }
    }

    /// A command that leads to this state is about to be sent.
    pub(crate) fn send(&mut self, state: State) -> Sent {
        self.send_at(state, Instant::now())
    }

    fn send_at(&mut self, state: State, begun: Instant) -> Sent {
        self.entries.push(Entry { state, begun, acknowledged: None, refused: false });
        Sent(self.entries.len() - 1)
    }

    /// The host has said that it is so.
    pub(crate) fn acknowledge(&mut self, sent: Sent) {
        self.acknowledge_at(sent, Instant::now());
    }

    fn acknowledge_at(&mut self, sent: Sent, now: Instant) {
        self.entries[sent.0].acknowledged = Some(now);
    }

    /// The host has said that it did not do it.
    pub(crate) fn refuse(&mut self, sent: Sent) {
        self.entries[sent.0].refused = true;
    }

    /// The state after the last command that was acknowledged.
    pub(crate) fn state(&self) -> &State {
        let acknowledged = self.entries.iter().rev().find(|entry| entry.acknowledged.is_some());
        acknowledged.map_or(&self.entries[0].state, |entry| &entry.state)
    }

    /// Looks at every call.
    pub(crate) fn judge(&self, seen: &[Seen]) -> Verdict {
        let spans = self.spans();
        let mut verdict = Verdict { calls: seen.len(), ..Verdict::default() };
        for one in seen {
            match &one.what {
                What::Right { revision, .. } => *verdict.by_revision.entry(*revision).or_default() += 1,
                What::Absent => verdict.absent += 1,
                What::Wrong { .. } | What::Broken { .. } => {}
            }
            if let Err(why) = self.judge_one(&spans, one) {
                verdict.wrong += 1;
                if verdict.examples.len() < 10 {
                    verdict.examples.push(why);
                }
            }
        }
        verdict
    }

    /// When each state may have held: up to the first acknowledgement of a later one.
    fn spans(&self) -> Vec<(Instant, Option<Instant>, &State)> {
        let mut spans = Vec::new();
        let mut end = None;
        for entry in self.entries.iter().rev().filter(|entry| !entry.refused) {
            spans.push((entry.begun, end, &entry.state));
            end = [end, entry.acknowledged].into_iter().flatten().min();
        }
        spans.reverse();
        spans
    }

    fn judge_one(&self, spans: &[(Instant, Option<Instant>, &State)], seen: &Seen) -> Result<(), String> {
        // Both ends of the spans only grow.
        let first = spans.partition_point(|(_, end, _)| end.is_some_and(|end| end < seen.sent));
        let possible = spans[first..].iter().take_while(|(begun, ..)| *begun <= seen.ended);
        let mut allowed: Vec<u64> = Vec::new();
        let mut may_be_absent = false;
        for (_, _, state) in possible {
            let answers = state.answers(&self.app, seen.caller);
            may_be_absent |= answers.is_empty();
            allowed.extend(answers);
        }
        let caller = seen.caller;
        match &seen.what {
            What::Right { revision, label } => {
                if !allowed.contains(revision) {
                    let expected = if may_be_absent { "or nobody" } else { "" };
                    return Err(format!(
                        "{caller:?} was answered by revision {revision}, not by one of {allowed:?} {expected}"
                    ));
                }
                match self.labels.get(revision) {
                    Some(own) if own == label => Ok(()),
                    own => Err(format!("revision {revision} calls itself {label}, not {own:?}")),
                }
            }
            What::Absent if may_be_absent => Ok(()),
            What::Absent => Err(format!("{caller:?} found nothing, not one of {allowed:?}")),
            What::Wrong { revision, status, why } => {
                Err(format!("{caller:?} got status {status} from {revision:?}: {why}"))
            }
            What::Broken { why } => Err(format!("{caller:?} got no answer: {why}")),
        }
    }
}

/// What was found.
#[derive(Clone, Debug, Default)]
pub(crate) struct Verdict {
    pub(crate) calls: usize,
    /// Calls that failed, were answered wrongly, or by a revision that they should not have reached.
    pub(crate) wrong: usize,
    /// The first of them.
    pub(crate) examples: Vec<String>,
    pub(crate) by_revision: BTreeMap<u64, usize>,
    /// Calls that rightly found nothing.
    pub(crate) absent: usize,
}

impl Verdict {
    /// Takes in what was found of other calls.
    pub(crate) fn add(&mut self, other: Verdict) {
        self.calls += other.calls;
        self.wrong += other.wrong;
        self.absent += other.absent;
        self.examples.extend(other.examples);
        self.examples.truncate(10);
        for (revision, calls) in other.by_revision {
            *self.by_revision.entry(revision).or_default() += calls;
        }
    }
}

/// How long a revision went on after the command that took its traffic away: until the last call was begun that it
/// answered, and until the last of its answers had come.
pub(crate) fn lingering(
    seen: &[Seen],
    revision: u64,
    command: Instant,
    until: Instant,
) -> (Duration, Duration) {
    let mut last = (Duration::ZERO, Duration::ZERO);
    for one in seen.iter().filter(|one| one.sent < until) {
        let by = match one.what {
            What::Right { revision, .. } => Some(revision),
            What::Wrong { revision, .. } => revision,
            What::Absent | What::Broken { .. } => None,
        };
        if by == Some(revision) {
            last.0 = last.0.max(one.sent.saturating_duration_since(command));
            last.1 = last.1.max(one.ended.saturating_duration_since(command));
        }
    }
    last
}

#[cfg(test)]
mod tests;
