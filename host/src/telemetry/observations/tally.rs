//! What was counted of the calls of one function of one release.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::histogram::Histogram;

/// Counts of calls. What comes of counters that only grow is a difference of two of these.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Tally {
    /// All calls that were recorded: the sum of the six that follow.
    #[serde(skip_serializing_if = "is_zero")]
    pub requests: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub success: u64,
    /// The function's own errors, or an HTTP function's answers of 4xx.
    #[serde(skip_serializing_if = "is_zero")]
    pub raised: u64,
    /// Answers that could not be used, inferences that failed, an HTTP function's answers of 5xx.
    #[serde(skip_serializing_if = "is_zero")]
    pub errors: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub traps: u64,
    /// Calls that were ended at their deadline or their limit of memory.
    #[serde(skip_serializing_if = "is_zero")]
    pub limit_kills: u64,
    /// Calls whose callers left while they ran.
    #[serde(skip_serializing_if = "is_zero")]
    pub left: u64,
    /// How long successful calls took, in nanoseconds; buckets as [`super::bucket`] numbers them.
    #[serde(skip_serializing_if = "Histogram::is_empty")]
    pub latency: Histogram,
    /// What calls used of memory, in bytes, of those of which it is known.
    #[serde(skip_serializing_if = "Histogram::is_empty")]
    pub memory: Histogram,
    /// The most that any call has used since the counting began.
    #[serde(skip_serializing_if = "is_zero")]
    pub memory_peak_bytes: u64,
    /// How the answers were distributed, by the name of the output.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub outputs: BTreeMap<String, Distribution>,
}

/// How the answers of one output were distributed. Each answer counts once in each, so that calls stay the unit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Distribution {
    /// Answers without NaN and infinities among the elements that were looked at.
    #[serde(skip_serializing_if = "is_zero")]
    pub finite: u64,
    /// Answers with them.
    #[serde(skip_serializing_if = "is_zero")]
    pub non_finite: u64,
    /// The place of the largest along the last dimension, a whole number, a status, or from
    /// [`super::HASHED`] a hash of what is neither.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub classes: BTreeMap<u16, u64>,
    /// One element of each answer; buckets as [`super::signed_bucket`] numbers them.
    #[serde(skip_serializing_if = "Histogram::is_empty")]
    pub values: Histogram,
}

impl Tally {
    /// What came since `earlier`, which was read of the same counters. The peak of memory has no difference, and stays.
    #[must_use]
    pub fn since(&self, earlier: &Tally) -> Tally {
        let outputs = self.outputs.iter().map(|(name, now)| match earlier.outputs.get(name) {
            Some(before) => (name.clone(), now.since(before)),
            None => (name.clone(), now.clone()),
        });
        Tally {
            requests: self.requests.saturating_sub(earlier.requests),
            success: self.success.saturating_sub(earlier.success),
            raised: self.raised.saturating_sub(earlier.raised),
            errors: self.errors.saturating_sub(earlier.errors),
            traps: self.traps.saturating_sub(earlier.traps),
            limit_kills: self.limit_kills.saturating_sub(earlier.limit_kills),
            left: self.left.saturating_sub(earlier.left),
            latency: self.latency.since(&earlier.latency),
            memory: self.memory.since(&earlier.memory),
            memory_peak_bytes: self.memory_peak_bytes,
            outputs: outputs.collect(),
        }
    }

    /// Counts what `other` counted as well.
    pub fn add(&mut self, other: &Tally) {
        self.requests = self.requests.saturating_add(other.requests);
        self.success = self.success.saturating_add(other.success);
        self.raised = self.raised.saturating_add(other.raised);
        self.errors = self.errors.saturating_add(other.errors);
        self.traps = self.traps.saturating_add(other.traps);
        self.limit_kills = self.limit_kills.saturating_add(other.limit_kills);
        self.left = self.left.saturating_add(other.left);
        self.latency.add(&other.latency);
        self.memory.add(&other.memory);
        self.memory_peak_bytes = self.memory_peak_bytes.max(other.memory_peak_bytes);
        for (name, distribution) in &other.outputs {
            self.outputs.entry(name.clone()).or_default().add(distribution);
        }
    }
}

impl Distribution {
    fn since(&self, earlier: &Distribution) -> Distribution {
        let before = |class: u16| earlier.classes.get(&class).copied().unwrap_or(0);
        let classes = self.classes.iter().map(|(class, now)| (*class, now.saturating_sub(before(*class))));
        Distribution {
            finite: self.finite.saturating_sub(earlier.finite),
            non_finite: self.non_finite.saturating_sub(earlier.non_finite),
            classes: classes.filter(|(_, count)| *count > 0).collect(),
            values: self.values.since(&earlier.values),
        }
    }

    fn add(&mut self, other: &Distribution) {
        self.finite = self.finite.saturating_add(other.finite);
        self.non_finite = self.non_finite.saturating_add(other.non_finite);
        for (class, count) in &other.classes {
            let held = self.classes.entry(*class).or_default();
            *held = held.saturating_add(*count);
        }
        self.values.add(&other.values);
    }
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}
