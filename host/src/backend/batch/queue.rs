//! What waits for one graph, and what of it goes next.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::{Batching, Hold, Ran, Ticket, join};
use crate::backend::InferError;
use crate::tensor::Tensor;

/// A call that waits. It owns the way to its caller, so that wherever it goes, its answer goes to nobody
/// else.
pub(super) struct Entry {
    pub(super) inputs: Vec<Tensor>,
    /// The first dimension of every input, where they share one and the model asks for batching.
    pub(super) rows: Option<usize>,
    /// `None`: it runs alone.
    pub(super) batching: Option<Batching>,
    pub(super) arrived: Instant,
    pub(super) deadline: Instant,
    pub(super) ticket: Arc<Ticket>,
    pub(super) answer: oneshot::Sender<Result<Ran, InferError>>,
    /// Keeps the graph in memory.
    pub(super) _hold: Hold,
}

/// The order of an owner's calls: by level, then by arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    pub(super) level: u32,
    /// No two calls of a queue have the same.
    pub(super) number: u64,
}

/// What may be taken out of a queue.
pub(super) struct Policy {
    pub(super) now: Instant,
    /// Something goes now, whatever could still join it.
    pub(super) at_once: bool,
    /// Whether calls are joined at all.
    pub(super) joins: bool,
    /// Only batches whose rows are a power of two are made.
    pub(super) few_shapes: bool,
}

#[derive(Default)]
pub(super) struct Queue {
    /// In the order of their turns; each has calls that wait.
    owners: VecDeque<Owner>,
    numbers: u64,
}

struct Owner {
    name: Arc<str>,
    /// Each has calls.
    groups: Vec<Group>,
}

/// Calls that may be joined, or, without batching, those that run alone.
struct Group {
    batching: Option<Batching>,
    /// Of all calls together.
    rows: usize,
    /// By rank.
    calls: VecDeque<Entry>,
}

impl Queue {
    pub(super) fn is_empty(&self) -> bool {
        self.owners.is_empty()
    }

    /// How many calls of the owner wait.
    pub(super) fn waiting(&self, owner: &str) -> usize {
        self.owners.iter().find(|other| &*other.name == owner).map_or(0, Owner::waiting)
    }

    /// How many calls wait.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.owners.iter().map(Owner::waiting).sum()
    }

    /// The number of the next call.
    pub(super) fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    pub(super) fn push(&mut self, entry: Entry) {
        let name = &entry.ticket.owner;
        let index = self.owners.iter().position(|owner| owner.name == *name).unwrap_or_else(|| {
            self.owners.push_back(Owner { name: Arc::clone(name), groups: Vec::new() });
            self.owners.len() - 1
        });
        let groups = &mut self.owners[index].groups;
        match groups.iter_mut().find(|group| group.takes(&entry)) {
            Some(group) => group.push(entry),
            None => {
                let (batching, rows) = (entry.batching, entry.count());
                groups.push(Group { batching, rows, calls: VecDeque::from([entry]) });
            }
        }
    }

    /// Takes the ticket's call out of the queue, if it is there.
    pub(super) fn remove(&mut self, ticket: &Ticket) -> Option<Entry> {
        let index = self.owners.iter().position(|owner| owner.name == ticket.owner)?;
        let owner = &mut self.owners[index];
        let removed = owner.groups.iter_mut().find_map(|group| group.remove(ticket))?;
        owner.groups.retain(|group| !group.calls.is_empty());
        if owner.groups.is_empty() {
            self.owners.remove(index);
        }
        Some(removed)
    }

    /// The calls of the next run, in their order; at least one.
    pub(super) fn take(&mut self, policy: &Policy) -> Option<Vec<Entry>> {
        let mut owners = self.owners.iter_mut().enumerate();
        let (index, taken) = owners.find_map(|(index, owner)| Some((index, owner.take(policy)?)))?;
        // Whoever had a turn goes behind all others.
        let owner = self.owners.remove(index)?;
        if !owner.groups.is_empty() {
            self.owners.push_back(owner);
        }
        Some(taken)
    }

    /// When the first of the calls that wait for others has waited long enough.
    pub(super) fn due(&self) -> Option<Instant> {
        self.owners.iter().flat_map(|owner| &owner.groups).filter_map(Group::due).min()
    }
}

impl Owner {
    fn waiting(&self) -> usize {
        self.groups.iter().map(|group| group.calls.len()).sum()
    }

    fn take(&mut self, policy: &Policy) -> Option<Vec<Entry>> {
        let ready = self.groups.iter().enumerate().filter(|(_, group)| group.is_ready(policy));
        let (index, _) = ready.min_by_key(|(_, group)| group.calls.front().map(Entry::rank))?;
        let taken = self.groups[index].take(policy);
        if self.groups[index].calls.is_empty() {
            self.groups.swap_remove(index);
        }
        Some(taken)
    }
}

impl Group {
    /// Whether the call may be joined with those that are here.
    fn takes(&self, entry: &Entry) -> bool {
        self.batching == entry.batching
            && (entry.batching.is_none()
                || self.calls.front().is_some_and(|first| join::fit(&first.inputs, &entry.inputs)))
    }

    fn push(&mut self, entry: Entry) {
        self.rows += entry.count();
        let index = self.calls.partition_point(|other| other.rank() < entry.rank());
        self.calls.insert(index, entry);
    }

    fn remove(&mut self, ticket: &Ticket) -> Option<Entry> {
        let index = self.calls.binary_search_by_key(&ticket.rank, Entry::rank).ok()?;
        let entry = self.calls.remove(index)?;
        self.rows -= entry.count();
        Some(entry)
    }

    /// Whether there is nothing to wait for.
    fn is_ready(&self, policy: &Policy) -> bool {
        let Some(batching) = self.batching.filter(|_| policy.joins && !policy.at_once) else { return true };
        self.rows >= policy.most_rows(batching) || self.due().is_some_and(|due| due <= policy.now)
    }

    fn due(&self) -> Option<Instant> {
        let delay = self.batching?.max_delay;
        self.calls.iter().filter_map(|call| call.due(delay)).min()
    }

    /// Takes the first calls, as many as fit into one batch.
    fn take(&mut self, policy: &Policy) -> Vec<Entry> {
        let count = match self.batching.filter(|_| policy.joins) {
            Some(batching) => policy.fitting(batching, self.calls.iter().map(Entry::count)),
            None => 1,
        };
        let taken: Vec<_> = self.calls.drain(..count.min(self.calls.len())).collect();
        self.rows -= taken.iter().map(Entry::count).sum::<usize>();
        taken
    }
}

impl Policy {
    /// The rows that make waiting for more pointless.
    fn most_rows(&self, batching: Batching) -> usize {
        let most = batching.max_size.max(1);
        if self.few_shapes { 1 << most.ilog2() } else { most }
    }

    /// How many of the calls, from the first on, make the largest batch that is allowed. The first one always
    /// goes: its shape is one that a caller has asked for.
    fn fitting(&self, batching: Batching, rows: impl Iterator<Item = usize>) -> usize {
        let mut total = 0;
        let mut count = 1;
        for (index, rows) in rows.enumerate() {
            total += rows;
            if total > batching.max_size {
                break;
            }
            if !self.few_shapes || total.is_power_of_two() {
                count = index + 1;
            }
        }
        count
    }
}

impl Entry {
    /// The rows that it counts for.
    pub(super) fn count(&self) -> usize {
        self.rows.unwrap_or(1)
    }

    /// When it has waited long enough for others: after half of the time that it has, if that is sooner.
    fn due(&self, delay: Duration) -> Option<Instant> {
        let left = self.deadline.saturating_duration_since(self.arrived);
        self.arrived.checked_add(delay.min(left / 2))
    }

    fn rank(&self) -> Rank {
        self.ticket.rank
    }
}
