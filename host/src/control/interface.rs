//! What the control API asks of what is behind it, and the errors that it may answer.

use std::fmt::Display;
use std::pin::Pin;

use thiserror::Error;
use tokio::sync::mpsc;

use super::upload::Upload;
use super::wire::{
    AppStatus, Command, HistoryEntry, HostStatus, Prepare, Prepared, Progress, Refusal, RolloutStatus,
    ShadowStatus, Start,
};
use crate::artifact::oci::Digest;

/// A future of a trait that is used as an object.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A future of an answer.
pub type Answer<'a, T> = BoxFuture<'a, Result<T, ControlError>>;

/// What takes deployments and commands.
///
/// The API runs each call as a task of its own: it goes on to its end though its caller leaves, and a panic in it is
/// answered as `internal`.
pub trait Control: Send + Sync + 'static {
    /// Makes a revision that takes no traffic yet. What happens meanwhile is told through `progress`, which is always
    /// emptied, so that sending to it never waits for the caller. The last line, `Ready` or `Failed`, is the API's to
    /// send: it is what this answers.
    fn prepare(&self, request: Prepare, progress: mpsc::Sender<Progress>) -> Answer<'_, Prepared>;

    /// Forgets a revision that takes no traffic.
    fn discard<'a>(&'a self, app: &'a str, revision: u64) -> Answer<'a, ()>;

    /// Starts the rollout of a prepared revision.
    fn start<'a>(&'a self, app: &'a str, start: Start) -> Answer<'a, RolloutStatus>;

    /// Goes on to the next step, or with `full` past all that are left.
    fn promote<'a>(&'a self, app: &'a str, command: Command) -> Answer<'a, RolloutStatus>;

    /// Keeps a rollout at the step where it is.
    fn pause<'a>(&'a self, app: &'a str, command: Command) -> Answer<'a, RolloutStatus>;

    /// Goes on after a pause.
    fn resume<'a>(&'a self, app: &'a str, command: Command) -> Answer<'a, RolloutStatus>;

    /// Sends all traffic to the stable revision at once; where no rollout is under way, to an earlier revision.
    fn rollback<'a>(&'a self, app: &'a str, command: Command) -> Answer<'a, RolloutStatus>;

    /// Takes an app out of service, and answers when nothing of it runs any more.
    fn remove<'a>(&'a self, app: &'a str) -> Answer<'a, ()>;

    /// What the host serves.
    fn status(&self) -> Answer<'_, HostStatus>;

    /// What is known of one app.
    fn app<'a>(&'a self, app: &'a str) -> Answer<'a, AppStatus>;

    /// What happened to an app, the latest first: at most `limit` entries whose ids are smaller than `before`.
    fn history<'a>(
        &'a self,
        app: &'a str,
        before: Option<u64>,
        limit: usize,
    ) -> Answer<'a, Vec<HistoryEntry>>;

    /// How far shadowed answers agree, of the rollout that is under way or of the last one.
    fn shadow<'a>(&'a self, app: &'a str) -> Answer<'a, ShadowStatus>;

    /// Whether a blob is there.
    fn has_blob<'a>(&'a self, digest: &'a Digest) -> Answer<'a, bool>;

    /// Takes a blob, whole and of that digest or not at all. [`Upload::store`] does this for a cache.
    fn put_blob<'a>(&'a self, digest: &'a Digest, upload: Upload) -> Answer<'a, ()>;
}

/// Why something is not done. Its name and status are part of the API, its text is for people.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{detail}")]
pub struct ControlError {
    /// Such as `not-compatible`.
    pub name: &'static str,
    /// Of HTTP.
    pub status: u16,
    /// What is wrong and what to do.
    pub detail: String,
}

/// Constructors that take a text which says what is wrong and what to do.
macro_rules! named {
    ($($(#[$doc:meta])* $constructor:ident, $name:literal, $status:literal;)*) => {
        impl ControlError {
            $($(#[$doc])* pub fn $constructor(detail: impl Display) -> ControlError {
                ControlError { name: $name, status: $status, detail: detail.to_string() }
            })*

            /// Every name that an error of this API may have, with its status.
            pub const ALL: &[(&'static str, u16)] = &[$(($name, $status)),*];
        }
    };
}

named! {
    /// What was asked for cannot be read or makes no sense.
    invalid, "invalid", 400;
    /// A caller without a token, or with one that nobody made.
    unauthorized, "unauthorized", 401;
    /// A token whose scopes do not cover what was asked for.
    forbidden, "forbidden", 403;
    /// An artifact is not signed as the operator demands.
    not_signed, "not-signed", 403;
    /// The operator does not allow it.
    not_allowed, "not-allowed", 403;
    /// There is nothing at a path.
    path_not_found, "path-not-found", 404;
    no_such_app, "app-not-found", 404;
    no_such_revision, "revision-not-found", 404;
    no_such_rollout, "rollout-not-found", 404;
    no_such_blob, "blob-not-found", 404;
    /// The path is there, for other methods.
    wrong_method, "wrong-method", 405;
    /// The caller took too long to send what it asks for.
    slow_body, "slow-body", 408;
    /// Another deployment or rollout of that app is under way: the text says which.
    busy, "busy", 409;
    /// A command that the rollout cannot follow in the phase that it is in.
    not_now, "not-now", 409;
    /// A revision that takes traffic, and therefore stays.
    in_use, "in-use", 409;
    /// Callers of the live revision may break.
    not_compatible, "not-compatible", 409;
    /// The revision may do more than the live one.
    capabilities_grown, "capabilities-grown", 409;
    /// A route belongs to another app.
    route_conflict, "route-conflict", 409;
    /// Blobs of an uploaded image are not there (any more): upload them again.
    blobs_missing, "blobs-missing", 409;
    /// A body without a length, where one is needed.
    length_required, "length-required", 411;
    too_large, "too-large", 413;
    /// A body that is not JSON by its media type.
    wrong_media_type, "wrong-media-type", 415;
    /// Golden samples were not answered as they should be.
    failed_samples, "failed-samples", 422;
    /// A revision cannot be made of what was given.
    not_deployable, "not-deployable", 422;
    /// What was uploaded is not what its digest says.
    digest_mismatch, "digest-mismatch", 422;
    internal, "internal", 500;
    draining_with, "draining", 503;
    /// More is under way than the host takes on at once.
    overloaded, "overloaded", 503;
    /// Something stands in the way that is gone shortly.
    try_again, "try-again", 503;
    /// It takes longer than a caller is kept waiting, and goes on.
    unfinished, "unfinished", 504;
    /// The disk has no room.
    no_room, "no-room", 507;
}

impl ControlError {
    /// There is no app of that name.
    pub fn app_not_found(app: &str) -> ControlError {
        ControlError::no_such_app(format_args!(
            "there is no app `{app}` here; `tenon status` lists what there is, `tenon deploy` adds to it"
        ))
    }

    /// The app has no such revision.
    pub fn revision_not_found(app: &str, revision: u64) -> ControlError {
        ControlError::no_such_revision(format_args!(
            "`{app}` has no revision {revision} here; `tenon status` lists those that there are"
        ))
    }

    /// The app has no rollout that is under way.
    pub fn rollout_not_found(app: &str) -> ControlError {
        ControlError::no_such_rollout(format_args!(
            "no rollout of `{app}` is under way; `tenon history {app}` tells what became of the last one, \
             `tenon deploy` starts another"
        ))
    }

    /// The host shuts down.
    pub fn draining() -> ControlError {
        ControlError::draining_with("the host is shutting down; try again when it is back")
    }

    /// As problem details.
    pub fn refusal(&self) -> Refusal {
        Refusal { title: self.name.to_owned(), status: self.status, detail: self.detail.clone() }
    }
}

impl From<ControlError> for Refusal {
    fn from(error: ControlError) -> Refusal {
        Refusal { title: error.name.to_owned(), status: error.status, detail: error.detail }
    }
}
