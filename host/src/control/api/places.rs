//! Places for what is under way. What may take long has its own, so that a rollback always finds one.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::control::ControlError;

/// Revisions that are made ready at once; each compiles and loads.
pub(super) const PREPARING: u32 = 8;
/// Questions at once, among them whether a blob is here.
pub(super) const QUESTIONS: u32 = 256;
/// Commands at once.
pub(super) const COMMANDS: u32 = 256;
/// Questions and commands over the local socket, beside those above: whoever is on the machine can always act.
pub(super) const RESERVED: u32 = 32;
/// Blobs that come at once. Each may take hours.
pub(super) const UPLOADS: u32 = 64;
/// How many of them one token, or the local socket, may send.
pub(super) const UPLOADS_OF_ONE: usize = UPLOADS as usize / 4;

/// What a place is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Question,
    Command,
}

pub(super) struct Places {
    preparing: Arc<Semaphore>,
    questions: Arc<Semaphore>,
    commands: Arc<Semaphore>,
    reserved: Arc<Semaphore>,
    uploads: Arc<Semaphore>,
    senders: Shares<String>,
}

/// A blob's place, among all and among those of its caller.
pub(super) struct Uploading {
    _place: OwnedSemaphorePermit,
    _share: Share<String>,
}

/// How many places each has, of those that have any.
pub(super) struct Shares<K>(Arc<Mutex<HashMap<K, usize>>>);

/// A place of one of them, given back when dropped.
pub(super) struct Share<K: Eq + Hash> {
    of: K,
    shares: Arc<Mutex<HashMap<K, usize>>>,
}

impl<K> Default for Shares<K> {
    fn default() -> Self {
        Shares(Arc::default())
    }
}

impl<K: Eq + Hash + Clone> Shares<K> {
    /// One more place of `of`; `None` where it has the most that it may have.
    pub(super) fn take(&self, of: K, most: usize) -> Option<Share<K>> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(of.clone()).or_default();
        if *count == most {
            return None;
        }
        *count += 1;
        Some(Share { of, shares: Arc::clone(&self.0) })
    }
}

impl<K: Eq + Hash> Drop for Share<K> {
    fn drop(&mut self) {
        let mut counts = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.of) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.of);
            }
        }
    }
}

impl Places {
    pub(super) fn new() -> Places {
        let of = |count: u32| Arc::new(Semaphore::new(count as usize));
        Places {
            preparing: of(PREPARING),
            questions: of(QUESTIONS),
            commands: of(COMMANDS),
            reserved: of(RESERVED),
            uploads: of(UPLOADS),
            senders: Shares::default(),
        }
    }

    /// A place for a question or a command. What comes over the local socket finds one where nobody else does.
    ///
    /// # Errors
    /// Where too much is under way.
    pub(super) fn take(&self, kind: Kind, is_local: bool) -> Result<OwnedSemaphorePermit, ControlError> {
        let usual = match kind {
            Kind::Question => &self.questions,
            Kind::Command => &self.commands,
        };
        let place = Arc::clone(usual).try_acquire_owned();
        let place = match place {
            Err(_) if is_local => Arc::clone(&self.reserved).try_acquire_owned(),
            place => place,
        };
        place.map_err(|_| ControlError::overloaded("too much is under way; try again shortly"))
    }

    /// A place to make a revision ready.
    ///
    /// # Errors
    /// Where all are taken.
    pub(super) fn prepare(&self) -> Result<OwnedSemaphorePermit, ControlError> {
        Arc::clone(&self.preparing).try_acquire_owned().map_err(|_| {
            ControlError::overloaded(format_args!(
                "{PREPARING} revisions are being made ready at this moment; try again when one is done"
            ))
        })
    }

    /// A place for a blob that `sender` sends.
    ///
    /// # Errors
    /// Where all are taken, or this sender's share.
    pub(super) fn upload(&self, sender: &str) -> Result<Uploading, ControlError> {
        let place = Arc::clone(&self.uploads).try_acquire_owned().map_err(|_| {
            ControlError::overloaded(format_args!(
                "{UPLOADS} blobs are being sent to this host at this moment; try again when one is done"
            ))
        })?;
        let share = self.senders.take(sender.to_owned(), UPLOADS_OF_ONE).ok_or_else(|| {
            ControlError::overloaded(format_args!(
                "{UPLOADS_OF_ONE} blobs are being sent {sender} at this moment, which is the share of one caller; try \
                 again when one is done"
            ))
        })?;
        Ok(Uploading { _place: place, _share: share })
    }

    /// Every kind, and how many places it has.
    fn all(&self) -> [(&Semaphore, u32); 5] {
        [
            (&self.preparing, PREPARING),
            (&self.questions, QUESTIONS),
            (&self.commands, COMMANDS),
            (&self.reserved, RESERVED),
            (&self.uploads, UPLOADS),
        ]
    }

    /// Waits until nothing is under way.
    pub(super) async fn emptied(&self) {
        for (places, count) in self.all() {
            let _ = places.acquire_many(count).await;
        }
    }

    /// How many places are taken.
    #[cfg(test)]
    pub(super) fn taken(&self) -> usize {
        self.all().iter().map(|(places, count)| *count as usize - places.available_permits()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_kind_takes_the_places_of_another_and_the_socket_has_a_reserve() {
        let places = Places::new();
        let full =
            |kind, is_local| std::iter::from_fn(|| places.take(kind, is_local).ok()).collect::<Vec<_>>();
        let questions = full(Kind::Question, false);
        assert_eq!(questions.len(), QUESTIONS as usize);
        let commands = full(Kind::Command, false);
        assert_eq!(commands.len(), COMMANDS as usize);
        let reserved = full(Kind::Command, true);
        assert_eq!(reserved.len(), RESERVED as usize);
        assert!(places.take(Kind::Question, true).is_err());
        drop(questions);
        assert!(places.take(Kind::Question, false).is_ok() && places.take(Kind::Command, false).is_err());
    }

    #[test]
    fn one_sender_has_a_share_of_the_uploads() {
        let places = Places::new();
        let full = |sender: &str| std::iter::from_fn(|| places.upload(sender).ok()).collect::<Vec<_>>();
        let first = full("a");
        assert_eq!(first.len(), UPLOADS_OF_ONE);
        let others: Vec<_> = ["b", "c", "d", "e"].iter().flat_map(|sender| full(sender)).collect();
        assert_eq!(first.len() + others.len(), UPLOADS as usize);
        drop(others);
        assert!(places.upload("a").map(drop).unwrap_err().to_string().contains("share of one caller"));
        assert!(places.upload("b").is_ok());
        drop(first);
        assert_eq!(full("a").len(), UPLOADS_OF_ONE);
        assert_eq!(places.taken(), 0);
        assert!(places.senders.0.lock().unwrap().is_empty());
    }
}
