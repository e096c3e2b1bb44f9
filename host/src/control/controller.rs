//! What is behind the control API: takes deployments and commands, drives rollouts, and brings back what was served
//! when a host starts again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use thiserror::Error;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::source::{Sources, blocking};
use super::wire::{
    AppStatus, Command, HistoryEntry, HostStatus, Prepare, Prepared, Progress, RolloutStatus, ShadowStatus,
    Start,
};
use super::{BoxFuture, Control, ControlError, Upload};
use crate::artifact::oci::Digest;
use crate::artifact::pins::{PinError, Pins};
use crate::deploy::Deployer;
use crate::function::{Function, Functions, Release, Route, Target};
use crate::rollout::store::{Store, StoreError};

mod drive;
mod keep;
mod prepare;
pub mod restore;
mod slot;
mod views;

use slot::Slot;

/// The control plane of one host.
pub struct Controller {
    deployer: Arc<Deployer>,
    functions: Arc<Functions>,
    store: Arc<Store>,
    pins: Arc<Pins>,
    sources: Sources,
    apps: Mutex<BTreeMap<String, Arc<Slot>>>,
    /// Every release that may still be in memory: who lets go of a graph looks here whether another has it.
    releases: Releases,
    /// What is done beside everything else, and waited for when the host ends.
    background: Mutex<JoinSet<()>>,
}

/// Why the control plane does not start.
#[derive(Debug, Error)]
pub enum ControllerError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Pins(#[from] PinError),
    #[error("a task of the host failed while its state was opened")]
    Task,
}

/// The folder of the pins in that of the host's state.
const PINS: &str = "pins";

impl Controller {
    /// Opens the state in `folder`. Nothing is served yet: see [`Controller::restore`].
    ///
    /// # Errors
    /// Where the state cannot be read, or another host has it.
    pub async fn open(deployer: &Arc<Deployer>, folder: &Path) -> Result<Arc<Controller>, ControllerError> {
        let folder: PathBuf = folder.to_owned();
        let opened = tokio::task::spawn_blocking(move || {
            let store = Store::open(&folder)?;
            let pins = Pins::open(&folder.join(PINS))?;
            Ok::<_, ControllerError>((store, pins))
        });
        let (store, pins) = opened.await.map_err(|_| ControllerError::Task)??;
        Ok(Arc::new(Controller {
            functions: Arc::clone(&deployer.functions),
            sources: Sources::new(&deployer.config, &deployer.intake.cache),
            deployer: Arc::clone(deployer),
            store: Arc::new(store),
            pins: Arc::new(pins),
            apps: Mutex::default(),
            releases: Releases::default(),
            background: Mutex::default(),
        }))
    }

    /// The slot of an app that is there.
    fn slot(&self, app: &str) -> Result<Arc<Slot>, ControlError> {
        let apps = self.apps.lock().unwrap_or_else(PoisonError::into_inner);
        apps.get(app).map(Arc::clone).ok_or_else(|| ControlError::app_not_found(app))
    }

    fn slots(&self) -> Vec<Arc<Slot>> {
        self.apps.lock().unwrap_or_else(PoisonError::into_inner).values().map(Arc::clone).collect()
    }

    /// Does something with the store where it holds up nobody.
    async fn stored<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Store) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, ControlError> {
        let store = Arc::clone(&self.store);
        blocking(move || work(&store)).await?.map_err(ControlError::internal)
    }

    /// Keeps an eye on a release for as long as it is in memory.
    fn note(&self, release: &Arc<Release>) {
        let mut releases = self.releases.lock().unwrap_or_else(PoisonError::into_inner);
        releases.retain(|release| release.strong_count() > 0);
        releases.push(Arc::downgrade(release));
    }

    /// Does something beside everything else.
    fn later(&self, work: impl Future<Output = ()> + Send + 'static) {
        let mut background = self.background.lock().unwrap_or_else(PoisonError::into_inner);
        while background.try_join_next().is_some() {}
        background.spawn(work);
    }

    /// Lets go of a release in the background: see [`retire`].
    fn retire_later(&self, release: Arc<Release>) {
        tokio::spawn(retire(release, Arc::clone(&self.releases)));
    }
}

/// Releases that may be in memory.
type Releases = Arc<Mutex<Vec<Weak<Release>>>>;

/// Waits until nothing of a release runs any more, for a bounded time, and then has its graphs leave memory that no
/// other release has.
async fn retire(release: Arc<Release>, releases: Releases) {
    const LOOK: Duration = Duration::from_millis(10);
    let longest = release.functions.iter().map(|function| function.revision.deadline_ms).max();
    let until = tokio::time::Instant::now() + Duration::from_millis(longest.unwrap_or_default() + 1000);
    // A request keeps the snapshot, and what runs on after its head the function.
    let idle = || {
        let alone = |function: &Arc<Function>| Arc::strong_count(function) <= held(&release, function);
        Arc::strong_count(&release) == 1 && release.functions.iter().all(alone)
    };
    while !idle() && tokio::time::Instant::now() < until {
        tokio::time::sleep(LOOK).await;
    }
    let others: Vec<Arc<Release>> = {
        let releases = releases.lock().unwrap_or_else(PoisonError::into_inner);
        releases.iter().filter_map(Weak::upgrade).filter(|other| !Arc::ptr_eq(other, &release)).collect()
    };
    for function in &release.functions {
        let programs = others.iter().flat_map(|other| &other.functions);
        let programs: Vec<_> = programs.map(|other| other.revision.program.as_ref()).collect();
        function.revision.program.unload_models_unless(&programs).await;
    }
}

/// How often a release itself holds a function.
fn held(release: &Release, function: &Arc<Function>) -> usize {
    let is_it = |route: &&Route| matches!(&route.target, Target::Function(it) if Arc::ptr_eq(it, function));
    let routes = release.routes.iter().filter(is_it).count();
    let models = release.models.values().filter(|model| Arc::ptr_eq(model, function)).count();
    1 + routes + models
}

/// The time, in milliseconds since 1970.
fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// What the API asks for goes to the fns of the same name.
impl Control for Arc<Controller> {
    fn prepare(
        &self,
        request: Prepare,
        progress: mpsc::Sender<Progress>,
    ) -> BoxFuture<'_, Result<Prepared, ControlError>> {
        Box::pin(async move { self.make_ready(request, progress).await })
    }

    fn discard<'a>(&'a self, app: &'a str, revision: u64) -> BoxFuture<'a, Result<(), ControlError>> {
        Box::pin(async move { self.forget(app, revision).await })
    }

    fn start<'a>(&'a self, app: &'a str, start: Start) -> BoxFuture<'a, Result<RolloutStatus, ControlError>> {
        Box::pin(async move { self.begin(app, start).await })
    }

    fn promote<'a>(
        &'a self,
        app: &'a str,
        command: Command,
    ) -> BoxFuture<'a, Result<RolloutStatus, ControlError>> {
        Box::pin(async move { self.go_on(app, command).await })
    }

    fn pause<'a>(
        &'a self,
        app: &'a str,
        command: Command,
    ) -> BoxFuture<'a, Result<RolloutStatus, ControlError>> {
        Box::pin(async move { self.halt(app, command).await })
    }

    fn resume<'a>(
        &'a self,
        app: &'a str,
        command: Command,
    ) -> BoxFuture<'a, Result<RolloutStatus, ControlError>> {
        Box::pin(async move { self.take_up(app, command).await })
    }

    fn rollback<'a>(
        &'a self,
        app: &'a str,
        command: Command,
    ) -> BoxFuture<'a, Result<RolloutStatus, ControlError>> {
        Box::pin(async move { self.go_back(app, command).await })
    }

    fn remove<'a>(&'a self, app: &'a str) -> BoxFuture<'a, Result<(), ControlError>> {
        Box::pin(async move { self.take_out(app).await })
    }

    fn status(&self) -> BoxFuture<'_, Result<HostStatus, ControlError>> {
        Box::pin(async move { self.host_status().await })
    }

    fn app<'a>(&'a self, app: &'a str) -> BoxFuture<'a, Result<AppStatus, ControlError>> {
        Box::pin(async move { self.app_status(app).await })
    }

    fn history<'a>(
        &'a self,
        app: &'a str,
        before: Option<u64>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<HistoryEntry>, ControlError>> {
        Box::pin(async move { self.past(app, before, limit).await })
    }

    fn shadow<'a>(&'a self, app: &'a str) -> BoxFuture<'a, Result<ShadowStatus, ControlError>> {
        Box::pin(async move { self.shadow_status(app).await })
    }

    fn has_blob<'a>(&'a self, digest: &'a Digest) -> BoxFuture<'a, Result<bool, ControlError>> {
        Box::pin(async move {
            let (blobs, digest) = (self.deployer.intake.cache.blobs(), *digest);
            let found = blocking(move || blobs.get(&digest)).await?;
            Ok(found.map_err(ControlError::internal)?.is_some())
        })
    }

    fn put_blob<'a>(&'a self, digest: &'a Digest, upload: Upload) -> BoxFuture<'a, Result<(), ControlError>> {
        Box::pin(async move { upload.store(&self.deployer.intake.cache.blobs(), digest).await })
    }
}

#[cfg(test)]
mod tests;
