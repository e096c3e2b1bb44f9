//! A host as a deployment sees it: what its control API offers.

use std::sync::Arc;

use tokio::task::JoinSet;

use crate::artifact::oci::Digest;
use crate::control::BoxFuture;
use crate::control::client::{Client, ClientError, Content};
use crate::control::wire::{
    AppStatus, Command, HostStatus, Prepare, Prepared, Progress, RolloutStatus, Start,
};

pub(super) type Answer<'a, T> = BoxFuture<'a, Result<T, ClientError>>;

/// Hears of each step of a preparation.
pub(super) type Hear<'a> = &'a mut (dyn FnMut(&Progress) + Send);

pub(super) trait Remote: Send + Sync {
    /// How people know it.
    fn name(&self) -> String;
    fn status(&self) -> Answer<'_, HostStatus>;
    fn has_blob<'a>(&'a self, digest: &'a Digest) -> Answer<'a, bool>;
    fn put_blob<'a>(
        &'a self,
        digest: &'a Digest,
        content: &'a Content,
        sent: &'a (dyn Fn(u64) + Sync),
    ) -> Answer<'a, ()>;
    fn prepare<'a>(&'a self, prepare: &'a Prepare, hear: Hear<'a>) -> Answer<'a, Prepared>;
    fn discard<'a>(&'a self, app: &'a str, revision: u64) -> Answer<'a, ()>;
    fn start<'a>(&'a self, app: &'a str, start: &'a Start) -> Answer<'a, RolloutStatus>;
    fn rollback<'a>(&'a self, app: &'a str, command: &'a Command) -> Answer<'a, RolloutStatus>;
    fn remove<'a>(&'a self, app: &'a str) -> Answer<'a, ()>;
    fn app<'a>(&'a self, app: &'a str) -> Answer<'a, AppStatus>;
}

impl Remote for Client {
    fn name(&self) -> String {
        self.to().to_string()
    }

    fn status(&self) -> Answer<'_, HostStatus> {
        Box::pin(Client::status(self))
    }

    fn has_blob<'a>(&'a self, digest: &'a Digest) -> Answer<'a, bool> {
        Box::pin(Client::has_blob(self, digest))
    }

    fn put_blob<'a>(
        &'a self,
        digest: &'a Digest,
        content: &'a Content,
        sent: &'a (dyn Fn(u64) + Sync),
    ) -> Answer<'a, ()> {
        Box::pin(Client::put_blob(self, digest, content, sent))
    }

    fn prepare<'a>(&'a self, prepare: &'a Prepare, hear: Hear<'a>) -> Answer<'a, Prepared> {
        Box::pin(Client::prepare(self, prepare, hear))
    }

    fn discard<'a>(&'a self, app: &'a str, revision: u64) -> Answer<'a, ()> {
        Box::pin(Client::discard(self, app, revision))
    }

    fn start<'a>(&'a self, app: &'a str, start: &'a Start) -> Answer<'a, RolloutStatus> {
        Box::pin(Client::start(self, app, start))
    }

    fn rollback<'a>(&'a self, app: &'a str, command: &'a Command) -> Answer<'a, RolloutStatus> {
        Box::pin(Client::rollback(self, app, command))
    }

    fn remove<'a>(&'a self, app: &'a str) -> Answer<'a, ()> {
        Box::pin(Client::remove(self, app))
    }

    fn app<'a>(&'a self, app: &'a str) -> Answer<'a, AppStatus> {
        Box::pin(Client::app(self, app))
    }
}

/// Does something with all hosts at once; the answers are in the order of the hosts. What is dropped stops.
pub(super) async fn each<H, T, W>(hosts: impl IntoIterator<Item = H>, work: impl Fn(usize, H) -> W) -> Vec<T>
where
    T: Send + 'static,
    W: Future<Output = T> + Send + 'static,
{
    let mut tasks = JoinSet::new();
    for (index, host) in hosts.into_iter().enumerate() {
        let work = work(index, host);
        tasks.spawn(async move { (index, work.await) });
    }
    let mut answers = Vec::new();
    while let Some(done) = tasks.join_next().await {
        match done {
            Ok(answer) => answers.push(answer),
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => {}
        }
    }
    answers.sort_by_key(|(index, _)| *index);
    answers.into_iter().map(|(_, answer)| answer).collect()
}

/// What a host said, without its name.
pub(super) fn said(error: &ClientError) -> String {
    error.refusal().map_or_else(|| error.to_string(), |refusal| refusal.detail.clone())
}

/// Whether it cannot be told what became of a request.
pub(super) fn is_unsure(error: &ClientError) -> bool {
    matches!(error, ClientError::Broken { .. })
}

pub(super) type Hosts = [Arc<dyn Remote>];
