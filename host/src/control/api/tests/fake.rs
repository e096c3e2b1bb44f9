//! A control plane that remembers what it was asked, and answers by the names in it.

use std::collections::BTreeMap;
use std::sync::Mutex;

use serde_json::json;
use tokio::sync::{Semaphore, mpsc};

use crate::artifact::blobs::Blobs;
use crate::artifact::oci::Digest;
use crate::control::interface::Answer;
use crate::control::wire::*;
use crate::control::{Control, ControlError, Upload};

/// Apps and references that begin with these are answered otherwise than well.
pub(super) const PANICS: &str = "panics";
pub(super) const SLOW: &str = "slow";
pub(super) const MISSING: &str = "missing";

pub(super) struct Fake {
    /// What was asked for and done, in words.
    pub(super) done: Mutex<Vec<String>>,
    /// What is slow takes one of these, and waits until there is one.
    pub(super) gate: Semaphore,
    pub(super) blobs: Blobs,
}

impl Fake {
    pub(super) fn new(folder: &std::path::Path) -> Fake {
        Fake {
            done: Mutex::default(),
            gate: Semaphore::new(0),
            blobs: Blobs::open(&folder.join("cache"), 0).unwrap(),
        }
    }

    pub(super) fn done(&self) -> Vec<String> {
        std::mem::take(&mut *self.done.lock().unwrap())
    }

    fn note(&self, what: String) {
        self.done.lock().unwrap().push(what);
    }

    async fn behave(&self, app: &str) -> Result<(), ControlError> {
        if app.starts_with(SLOW) {
            self.gate.acquire().await.unwrap().forget();
        }
        assert!(!app.starts_with(PANICS), "as it was asked to");
        match app.starts_with(MISSING) {
            true => Err(ControlError::app_not_found(app)),
            false => Ok(()),
        }
    }

    async fn command(&self, verb: &str, app: &str, command: Command) -> Result<RolloutStatus, ControlError> {
        self.behave(app).await?;
        let Command { full, revision, message } = command;
        self.note(format!("{verb} {app} {full} {revision:?} {}", message.unwrap_or_default()));
        Ok(rollout())
    }
}

pub(super) fn rollout() -> RolloutStatus {
    RolloutStatus {
        id: 7,
        stable: Some(1),
        candidate: 2,
        phase: "progressing".to_owned(),
        step: 1,
        steps: 3,
        reason: "waits for 500 samples".to_owned(),
        weight: 500,
        started_ms: 1_700_000_000_000,
        changed_ms: 1_700_000_000_001,
        plan: serde_json::from_value(json!({"strategy": "canary"})).unwrap(),
        measurements: Vec::new(),
    }
}

pub(super) fn app(name: &str) -> AppStatus {
    AppStatus {
        app: name.to_owned(),
        stable: Some(1),
        revisions: vec![RevisionStatus {
            revision: 1,
            digest: Digest::of(b"an image").to_string(),
            reference: None,
            version: Some("1.0.0".to_owned()),
            weight: 9500,
            warm: true,
            created_ms: 1_700_000_000_000,
        }],
        rollout: Some(rollout()),
        routes: vec!["/digits".to_owned()],
        functions: vec![FunctionStatus {
            function: format!("{name}/digits"),
            model: "digits".to_owned(),
            kind: "typed".to_owned(),
            component: Digest::of(b"a component").to_string(),
            models: BTreeMap::from([("mnist".to_owned(), Digest::of(b"a model").to_string())]),
        }],
    }
}

pub(super) fn entry(id: u64, app: &str) -> HistoryEntry {
    HistoryEntry {
        id,
        time_ms: 1_700_000_000_000 + id,
        app: app.to_owned(),
        revision: Some(2),
        event: "promoted".to_owned(),
        text: "revision 2 takes all traffic".to_owned(),
        details: json!({"evidence": 0.5}),
    }
}

impl Control for Fake {
    fn prepare(&self, request: Prepare, progress: mpsc::Sender<Progress>) -> Answer<'_, Prepared> {
        Box::pin(async move {
            let name = match &request.source {
                Source::Reference(reference) => reference.rsplit('/').next().unwrap_or_default().to_owned(),
                Source::Uploaded(_) => "uploaded".to_owned(),
            };
            let step = "fetch".to_owned();
            progress.send(Progress::Begun { step: step.clone() }).await.unwrap();
            self.behave(&name).await?;
            if name.starts_with("chatty") {
                // More than any caller is waited for, and more than fits into what lies between.
                let text = "x".repeat(1000);
                for _ in 0..100_000 {
                    progress.send(Progress::Warning { text: text.clone() }).await.unwrap();
                }
            }
            progress.send(Progress::Done { step, took_ms: 1.5 }).await.unwrap();
            self.note(format!("prepare {name} {}", request.message.unwrap_or_default()));
            let digest = Digest::of(b"an image").to_string();
            Ok(Prepared { app: "digits".to_owned(), revision: 2, digest, unchanged: false, live: false })
        })
    }

    fn discard<'a>(&'a self, app: &'a str, revision: u64) -> Answer<'a, ()> {
        Box::pin(async move {
            self.behave(app).await?;
            self.note(format!("discard {app} {revision}"));
            Ok(())
        })
    }

    fn start<'a>(&'a self, app: &'a str, start: Start) -> Answer<'a, RolloutStatus> {
        Box::pin(async move {
            self.behave(app).await?;
            self.note(format!("start {app} {} {}", start.revision, start.message.unwrap_or_default()));
            Ok(rollout())
        })
    }

    fn promote<'a>(&'a self, app: &'a str, command: Command) -> Answer<'a, RolloutStatus> {
        Box::pin(self.command("promote", app, command))
    }

    fn pause<'a>(&'a self, app: &'a str, command: Command) -> Answer<'a, RolloutStatus> {
        Box::pin(self.command("pause", app, command))
    }

    fn resume<'a>(&'a self, app: &'a str, command: Command) -> Answer<'a, RolloutStatus> {
        Box::pin(self.command("resume", app, command))
    }

    fn rollback<'a>(&'a self, app: &'a str, command: Command) -> Answer<'a, RolloutStatus> {
        Box::pin(self.command("rollback", app, command))
    }

    fn remove<'a>(&'a self, app: &'a str) -> Answer<'a, ()> {
        Box::pin(async move {
            self.behave(app).await?;
            self.note(format!("remove {app}"));
            Ok(())
        })
    }

    fn status(&self) -> Answer<'_, HostStatus> {
        Box::pin(async { Ok(HostStatus { version: "0.1.0".to_owned(), apps: vec![app("digits")] }) })
    }

    fn app<'a>(&'a self, name: &'a str) -> Answer<'a, AppStatus> {
        Box::pin(async move {
            self.behave(name).await?;
            Ok(app(name))
        })
    }

    fn history<'a>(
        &'a self,
        app: &'a str,
        before: Option<u64>,
        limit: usize,
    ) -> Answer<'a, Vec<HistoryEntry>> {
        Box::pin(async move {
            self.behave(app).await?;
            let all = (1..=2000).rev().filter(|id| before.is_none_or(|before| *id < before));
            Ok(all.take(limit).map(|id| entry(id, app)).collect())
        })
    }

    fn shadow<'a>(&'a self, app: &'a str) -> Answer<'a, ShadowStatus> {
        Box::pin(async move {
            self.behave(app).await?;
            Ok(ShadowStatus {
                app: app.to_owned(),
                stable: Some(1),
                candidate: Some(2),
                ..Default::default()
            })
        })
    }

    fn has_blob<'a>(&'a self, digest: &'a Digest) -> Answer<'a, bool> {
        Box::pin(async move { Ok(self.blobs.get(digest).unwrap().is_some()) })
    }

    fn put_blob<'a>(&'a self, digest: &'a Digest, upload: Upload) -> Answer<'a, ()> {
        Box::pin(async move { upload.store(&self.blobs, digest).await })
    }
}
