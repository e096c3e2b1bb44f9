//! What is kept, what is taken back and what is tried again where the disk is slow or full.

use std::sync::atomic::Ordering;

use super::prepare::said;
use super::*;
use crate::config::Config;
use crate::host::{Surroundings, workbench};
use crate::rollout::store::{AppRecord, RevisionRecord};

struct Case {
    controller: Arc<Controller>,
    slot: Arc<Slot>,
    _folder: tempfile::TempDir,
}

impl Case {
    /// An app whose revision 2 is stable, as nobody keeps it yet.
    async fn new() -> Case {
        let folder = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.cache.dir = Some(folder.path().join("cache"));
        let (logs, state) = (folder.path().join("logs"), folder.path().join("state"));
        let around = Surroundings { program: PathBuf::new(), logs, state: state.clone() };
        let deployer = Arc::new(workbench(config, around, false).unwrap());
        let controller = Controller::open(&deployer, &state).await.unwrap();
        let revision = |created_ms: u64| RevisionRecord {
            digest: Digest::of(&created_ms.to_be_bytes()).to_string(),
            reference: None,
            uploaded: true,
            variables: BTreeMap::new(),
            created_ms,
            version: None,
            message: None,
        };
        let record = AppRecord {
            stable: Some(2),
            former: Some(1),
            revisions: [1, 2].map(|number| (number, revision(number))).into(),
            ..AppRecord::default()
        };
        let slot = Arc::new(Slot::new("app", record));
        controller.apps.lock().unwrap().insert("app".to_owned(), Arc::clone(&slot));
        Case { controller, slot, _folder: folder }
    }

    fn full(&self, is_full: bool) {
        self.controller.store.full.store(is_full, Ordering::Relaxed);
    }

    /// Makes the other revision the stable one.
    async fn turn(&self, back: bool) -> Result<(), ControlError> {
        let state = self.slot.state.lock().await;
        let mut record = state.record.clone();
        std::mem::swap(&mut record.stable, &mut record.former);
        let event = said("turned", record.stable.unwrap(), "to another revision", None);
        self.controller.turn(&self.slot, state, record, vec![event], back).await
    }

    fn kept(&self) -> (Option<u64>, usize) {
        let stable = self.controller.store.apps().unwrap().get("app").and_then(|record| record.stable);
        (stable, self.controller.store.history("app", None, 100).unwrap().len())
    }

    /// Waits until the background has kept everything.
    async fn until_kept(&self) {
        loop {
            let mut state = self.slot.state.lock().await;
            if state.saved == state.version {
                return;
            }
            state.save_again = None;
            self.controller.save_later(&self.slot, &mut state);
            drop(state);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

#[tokio::test]
async fn what_goes_back_stays_though_the_disk_is_full_and_is_kept_later() {
    let case = Case::new().await;
    case.full(true);
    case.slot.state.lock().await.left.push(2);
    let error = case.turn(true).await.unwrap_err().to_string();
    assert!(error.contains("the traffic is back, but that could not be kept"), "{error}");
    {
        let state = case.slot.state.lock().await;
        assert_eq!((state.record.stable, state.left.as_slice()), (Some(1), [2].as_slice()));
    }
    // Once more: both are in the history then.
    assert!(case.turn(true).await.is_err());
    case.full(false);
    case.until_kept().await;
    assert_eq!(case.kept(), (Some(2), 2));
}

#[tokio::test]
async fn what_goes_on_is_not_done_where_the_disk_is_full() {
    let case = Case::new().await;
    case.full(true);
    let error = case.turn(false).await.unwrap_err().to_string();
    assert!(!error.contains("is back"), "{error}");
    assert_eq!(case.slot.state.lock().await.record.stable, Some(2));
    case.full(false);
    case.until_kept().await;
    assert_eq!(case.kept(), (Some(2), 0));
    case.turn(false).await.unwrap();
    assert_eq!(case.kept(), (Some(1), 1));
}

#[tokio::test]
async fn nobody_who_goes_back_waits_for_the_disk_before_the_traffic_moves() {
    let case = Arc::new(Case::new().await);
    // Something is being written, and takes its time.
    let writing = case.slot.saving.lock().await;
    let turning = tokio::spawn({
        let case = Arc::clone(&case);
        async move { case.turn(true).await }
    });
    while case.slot.state.lock().await.record.stable != Some(1) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(!turning.is_finished());
    // Who comes meanwhile waits for nobody either, and all of it is written once.
    let later = tokio::spawn({
        let case = Arc::clone(&case);
        async move { case.turn(false).await }
    });
    while case.slot.state.lock().await.record.stable != Some(2) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(case.kept(), (None, 0));
    drop(writing);
    turning.await.unwrap().unwrap();
    assert_eq!(case.kept(), (Some(2), 2));
    later.await.unwrap().unwrap();
}

#[tokio::test]
async fn an_app_that_cannot_be_removed_stays() {
    let case = Case::new().await;
    case.full(true);
    assert!(case.controller.take_out("app").await.is_err());
    assert_eq!(case.slot.state.lock().await.record.revisions.len(), 2);
    case.full(false);
    case.controller.take_out("app").await.unwrap();
    assert_eq!(case.kept(), (None, 1));
    assert_eq!(case.controller.take_out("app").await.unwrap_err().name, "app-not-found");
}
