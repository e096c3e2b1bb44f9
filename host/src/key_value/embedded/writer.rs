//! The thread that writes: what waits is written in one transaction, and so shares the time that the disk takes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use redb::{Database, ReadableTable, TableDefinition, TransactionError, WriteTransaction};
use tokio::sync::{mpsc, oneshot};

use super::super::{ENTRY_BYTES, number};
use super::{Entries, Seen, Shared, StoreError};

/// How many bytes each store holds.
const USED: TableDefinition<'_, &str, u64> = TableDefinition::new("used");

/// Changes that may wait; further ones wait for a place among them.
const WAITING: usize = 256;

/// Changes of one transaction.
const TOGETHER: usize = 128;

/// How long another process may write before ours gives up.
const TURN: Duration = Duration::from_secs(10);

/// How often it is tried in that time.
const AGAIN: Duration = Duration::from_millis(2);

pub(super) enum Change {
    Set(Vec<(String, Vec<u8>)>),
    Delete(Vec<String>),
    Increment(String, i64),
    Swap { key: String, seen: Seen, value: Vec<u8> },
}

pub(super) enum Changed {
    Done,
    Sum(i64),
    /// What was to be swapped is no longer what was seen.
    Otherwise,
}

type Outcome = Result<Changed, StoreError>;

struct Job {
    table: Arc<str>,
    change: Change,
    /// The most bytes that the store may hold.
    limit: u64,
    done: oneshot::Sender<Outcome>,
}

/// The thread; it ends with this.
pub(super) struct Writer {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Writer {
    fn drop(&mut self) {
        // No job waits: whoever waits holds the store. The file is then closed, and need not be mended when it is
        // opened next.
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Writer {
    pub(super) fn start(shared: Arc<Shared>) -> std::io::Result<Writer> {
        let (jobs, mut waiting) = mpsc::channel(WAITING);
        let thread = std::thread::Builder::new().name("key-value".to_owned()).spawn(move || {
            while let Some(first) = waiting.blocking_recv() {
                let mut together = vec![first];
                while together.len() < TOGETHER {
                    let Ok(next) = waiting.try_recv() else { break };
                    together.push(next);
                }
                write(&shared, together);
            }
        })?;
        Ok(Writer { jobs: Some(jobs), thread: Some(thread) })
    }

    pub(super) async fn write(&self, table: Arc<str>, change: Change, limit: u64) -> Outcome {
        let (done, outcome) = oneshot::channel();
        let jobs = self.jobs.as_ref().ok_or(StoreError::Unavailable)?;
        let sent = jobs.send(Job { table, change, limit, done }).await;
        sent.map_err(|_| StoreError::Unavailable)?;
        outcome.await.unwrap_or(Err(StoreError::Unavailable))
    }
}

/// Writes what is still waited for, and tells each how it went once it is on the disk.
fn write(shared: &Shared, jobs: Vec<Job>) {
    let jobs: Vec<Job> = jobs.into_iter().filter(|job| !job.done.is_closed()).collect();
    if jobs.is_empty() {
        return;
    }
    let written = shared.guarded(|database| {
        let transaction = begin(database)?;
        let mut outcomes = Vec::with_capacity(jobs.len());
        for job in &jobs {
            outcomes.push(apply(&transaction, job)?);
        }
        if outcomes.iter().any(Result::is_ok) {
            transaction.commit()?
        } else {
            transaction.abort()?
        }
        Ok(outcomes)
    });
    match written {
        Ok(outcomes) => {
            for (job, outcome) in jobs.into_iter().zip(outcomes) {
                let _ = job.done.send(outcome);
            }
        }
        Err(error) => {
            for job in jobs {
                let _ = job.done.send(Err(error.clone()));
            }
        }
    }
}

/// Begins a transaction when it is our turn among the processes that have the file open.
fn begin(database: &Database) -> Result<WriteTransaction, redb::Error> {
    let started = Instant::now();
    loop {
        match database.try_begin_write() {
            Err(TransactionError::WouldBlock) if started.elapsed() < TURN => std::thread::sleep(AGAIN),
            Err(TransactionError::WouldBlock) => {
                let reason = format!("another process has been writing to it for {} s", TURN.as_secs());
                return Err(redb::Error::Io(std::io::Error::other(reason)));
            }
            begun => return Ok(begun?),
        }
    }
}

/// Makes one change, or refuses it and leaves the store as it was.
fn apply(transaction: &WriteTransaction, job: &Job) -> Result<Outcome, redb::Error> {
    let mut entries = transaction.open_table(Entries::new(&job.table))?;
    let mut sizes = transaction.open_table(USED)?;
    let used = sizes.get(&*job.table)?.map_or(0, |used| used.value());
    let (new, changed) = match outcome_of(&entries, &job.change)? {
        Ok(new) => new,
        Err(refused) => return Ok(Err(refused)),
    };
    let mut after = used;
    for (key, value) in &new {
        let before = entries.get(*key)?.map_or(0, |old| size(key, old.value()));
        after = after.saturating_sub(before) + value.as_deref().map_or(0, |value| size(key, value));
    }
    // Also where the bound is lower than it was, a store can be made smaller.
    if after > job.limit && after > used {
        return Ok(Err(StoreError::Full(job.limit >> 20)));
    }
    for (key, value) in &new {
        match value {
            Some(value) => drop(entries.insert(*key, &**value)?),
            None => drop(entries.remove(*key)?),
        }
    }
    sizes.insert(&*job.table, after)?;
    Ok(Ok(changed))
}

/// What keys are to be: their values, or gone. Each key is there once.
type New<'a> = BTreeMap<&'a str, Option<std::borrow::Cow<'a, [u8]>>>;

fn outcome_of<'a>(
    entries: &impl ReadableTable<&'static str, &'static [u8]>,
    change: &'a Change,
) -> Result<Result<(New<'a>, Changed), StoreError>, redb::Error> {
    let of = |key: &'a str, value: std::borrow::Cow<'a, [u8]>| New::from([(key, Some(value))]);
    Ok(match change {
        Change::Set(pairs) => {
            let new = pairs.iter().map(|(key, value)| (key.as_str(), Some(value.as_slice().into())));
            Ok((new.collect(), Changed::Done))
        }
        Change::Delete(keys) => Ok((keys.iter().map(|key| (key.as_str(), None)).collect(), Changed::Done)),
        Change::Increment(key, delta) => {
            match number(entries.get(key.as_str())?.map(|old| old.value().to_vec())) {
                None => Err(StoreError::NotANumber),
                Some(number) => match number.checked_add(*delta) {
                    None => Err(StoreError::Overflow),
                    Some(sum) => Ok((of(key, sum.to_le_bytes().to_vec().into()), Changed::Sum(sum))),
                },
            }
        }
        Change::Swap { key, seen, value } => {
            let found = entries.get(key.as_str())?;
            if found.as_ref().map(|found| found.value()) == seen.as_deref() {
                Ok((of(key, value.as_slice().into()), Changed::Done))
            } else {
                Ok((New::new(), Changed::Otherwise))
            }
        }
    })
}

fn size(key: &str, value: &[u8]) -> u64 {
    (ENTRY_BYTES + key.len() + value.len()) as u64
}
