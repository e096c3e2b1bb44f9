//! Live calls of a stable revision that a candidate gets as well: sampled, kept within bounds until the host has nothing
//! better to do, run where nothing comes of them but an answer, and compared.
//!
//! What a live call pays is a draw, handles to what it holds anyway, and an attempt to leave them in a queue. Whatever
//! stands in the way of the rest leaves the shadow out, never the call.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwapOption;
use http::HeaderValue;
use prometheus_client::metrics::counter::Counter;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;

use super::traffic::WHOLE;
use super::{Function, Functions, Release, Revision};
use crate::instance::typed::{Parameter, Reply, Request};
use crate::instance::{CallError, Program};
use crate::rollout::shadow::compare::Answer;
use crate::rollout::shadow::recorder::Recorder;
use crate::rollout::shadow::{LeftOut, Report, ShadowCounts, ShadowSettings};
use crate::telemetry::Telemetry;

mod gentle;
pub mod http_call;
mod run;

/// Calls of one app that may wait.
const QUEUED: usize = 128;

/// What calls of all apps together may hold while they wait and run, and what one of them may, in bytes.
const BYTES: usize = 32 << 20;
const MOST: usize = BYTES / 4;

/// Bytes are counted in pages, since a semaphore counts to 2^29 on 32-bit machines.
const PAGE: usize = 4096;

/// What a waiting call takes beside its data, in bytes.
const CALL: usize = 1024;

/// Results that are counted beside the reasons for which calls are left out.
const AGREED: usize = LeftOut::ALL.len();
const MISMATCHED: usize = AGREED + 1;
const FAILED: usize = AGREED + 2;
const RESULTS: usize = AGREED + 3;

fn results() -> [&'static str; RESULTS] {
    let names = LeftOut::ALL.into_iter().map(LeftOut::name).chain(["agreed", "mismatched", "failed"]);
    let mut results = [""; RESULTS];
    results.iter_mut().zip(names).for_each(|(result, name)| *result = name);
    results
}

/// Instances that calls of all candidates together have for themselves. Live calls keep theirs.
pub fn places() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| (cores.get() / 4).clamp(1, 8))
}

/// What the shadows of a host have together.
pub(super) struct Room {
    places: Semaphore,
    bytes: Arc<Semaphore>,
    /// Until when nothing new begins while live calls are answered.
    rest: Mutex<Option<Instant>>,
}

impl Default for Room {
    fn default() -> Room {
        let (places, bytes) = (Semaphore::new(places()), Arc::new(Semaphore::new(BYTES / PAGE)));
        Room { places, bytes, rest: Mutex::default() }
    }
}

/// Live calls of an app's stable revision given to a candidate as well. It ends when this is dropped: nothing is begun
/// any more, and what runs is broken off.
pub struct Shadow {
    functions: Vec<(Arc<Function>, Arc<Shadowed>)>,
    share: Arc<AtomicU16>,
    telemetry: Arc<Telemetry>,
    revision: u64,
    _workers: JoinSet<()>,
}

impl Shadow {
    /// Has the candidate get calls of every function that both releases have, as one of the same kind. Takes the place of
    /// a shadow of the same stable release. Must be called within a tokio runtime.
    pub fn start(
        functions: &Arc<Functions>,
        stable: &Release,
        candidate: &Release,
        settings: &ShadowSettings,
    ) -> Shadow {
        let share = Arc::new(AtomicU16::new(hundredths(settings.share)));
        let (queue, jobs) = mpsc::channel(QUEUED);
        let jobs = Arc::new(tokio::sync::Mutex::new(jobs));
        let mut workers = JoinSet::new();
        for _ in 0..places() {
            workers.spawn(run::work(Arc::clone(functions), Arc::clone(&jobs)));
        }
        let pairs = stable.functions.iter().filter_map(|stable| {
            let candidate = candidate.function(&stable.name)?;
            let alike = stable.revision.program.is_typed() == candidate.revision.program.is_typed();
            alike.then_some((stable, candidate))
        });
        let revision = candidate.revision;
        let shadowed = pairs.map(|(stable, candidate)| {
            let shadowed = Arc::new(Shadowed {
                recorder: Recorder::new(&stable.name, settings),
                share: Arc::clone(&share),
                replay: hundredths(settings.replay),
                calls: AtomicU64::new(0),
                // The candidate's own words are what a person looks for when it fails; the stable revision's are said
                // already.
                candidate: Side::of(&candidate.revision, true),
                stable: Side::of(&stable.revision, false),
                queue: queue.clone(),
                bytes: Arc::clone(&functions.shadows.bytes),
                counters: functions.telemetry.shadow(&stable.name, revision, results()),
            });
            stable.shadow.0.store(Some(Arc::clone(&shadowed)));
            (Arc::clone(stable), shadowed)
        });
        let shadowed = shadowed.collect();
        let telemetry = Arc::clone(&functions.telemetry);
        Shadow { functions: shadowed, share, telemetry, revision, _workers: workers }
    }

    /// Has the candidate get so many hundredths of a percent of the calls from now on; none with 0.
    pub fn set_share(&self, hundredths: u16) {
        self.share.store(hundredths.min(WHOLE), Ordering::Relaxed);
    }

    /// What was counted since the start, by the names of functions.
    pub fn counts(&self) -> BTreeMap<String, ShadowCounts> {
        let counts = self.functions.iter();
        counts.map(|(function, shadowed)| (function.name.clone(), shadowed.recorder.counts())).collect()
    }

    /// What was found since the start, of each function.
    pub fn reports(&self) -> Vec<Report> {
        self.functions.iter().map(|(_, shadowed)| shadowed.recorder.report()).collect()
    }
}

impl Drop for Shadow {
    fn drop(&mut self) {
        for (function, shadowed) in &self.functions {
            // Another may have taken its place.
            function.shadow.0.compare_and_swap(shadowed, None);
            self.telemetry.forget_shadow(&function.name, self.revision, &results());
        }
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 0 to 10,000")]
fn hundredths(percent: f64) -> u16 {
    (percent.clamp(0.0, 100.0) * 100.0).round() as u16
}

/// Where a function keeps the candidate that gets its calls as well.
#[derive(Default)]
pub struct Slot(ArcSwapOption<Shadowed>);

/// A function whose calls a candidate gets as well.
struct Shadowed {
    recorder: Recorder,
    share: Arc<AtomicU16>,
    replay: u16,
    /// Live calls since the start.
    calls: AtomicU64,
    candidate: Side,
    stable: Side,
    queue: mpsc::Sender<Job>,
    bytes: Arc<Semaphore>,
    counters: [Counter; RESULTS],
}

/// One of two revisions, as it is run for comparison.
struct Side {
    program: Arc<Program>,
    /// With its files, it must outlive what runs.
    revision: Arc<Revision>,
}

impl Side {
    fn of(revision: &Arc<Revision>, keeps_log: bool) -> Side {
        let log = revision.program.log();
        let program = revision.program.isolated(keeps_log.then_some(log));
        Side { program: Arc::new(program), revision: Arc::clone(revision) }
    }
}

/// Room for what is held, taken before it is. Given back when this is dropped.
struct Held {
    room: Arc<Semaphore>,
    pages: Option<OwnedSemaphorePermit>,
}

impl Held {
    fn new(room: &Arc<Semaphore>) -> Held {
        Held { room: Arc::clone(room), pages: None }
    }

    /// Has it be room for so many bytes in all. `None` where there is not so much; it then has what it had.
    fn hold(&mut self, bytes: usize) -> Option<()> {
        let held = self.pages.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let more = u32::try_from(bytes.div_ceil(PAGE).saturating_sub(held)).ok()?;
        if more > 0 {
            self.add(Arc::clone(&self.room).try_acquire_many_owned(more).ok()?);
        }
        Some(())
    }

    fn add(&mut self, pages: OwnedSemaphorePermit) {
        match &mut self.pages {
            Some(held) => held.merge(pages),
            None => self.pages = Some(pages),
        }
    }

    /// Takes over what another has.
    fn join(&mut self, other: &mut Held) {
        if let Some(pages) = other.pages.take() {
            self.add(pages);
        }
    }
}

/// A live call that was answered and waits to be given to the candidate.
struct Job {
    shadowed: Arc<Shadowed>,
    question: Question,
    /// What the caller got.
    expected: Answer,
    asked: Instant,
    time_ms: u64,
    request_id: Option<HeaderValue>,
    /// Whether the stable revision gets it again, and before the candidate.
    replay: Option<bool>,
    bytes: usize,
    _room: Held,
}

enum Question {
    Tensors(Request),
    Http(http_call::Question),
}

impl Question {
    /// Has it hold on to nothing but what it is charged for: inputs may be short parts of a long body.
    fn own(&mut self) {
        if let Question::Tensors(request) = self {
            request.inputs.iter_mut().for_each(|(_, tensor)| *tensor = tensor.copied());
        }
    }
}

impl Slot {
    /// Whether this call is to be given to the candidate as well: then with what was asked.
    pub fn ask(&self, request: &Request, is_streamed: bool) -> Option<Asked> {
        let (shadowed, lot) = self.drawn()?;
        let bytes = CALL
            + request.inputs.iter().map(|(name, tensor)| name.len() + tensor.data().len()).sum::<usize>();
        let bytes = request.parameters.iter().fold(bytes, |bytes, (name, value)| {
            let text = if let Parameter::Text(text) = value { text.len() } else { 0 };
            bytes + name.len() + text
        });
        if is_streamed {
            shadowed.leave_out(LeftOut::Streamed);
            return None;
        }
        if bytes > MOST {
            shadowed.leave_out(LeftOut::TooLarge);
            return None;
        }
        Some(Asked { shadowed, lot, request: request.clone(), bytes })
    }

    /// The shadow, if this call falls to it and has a place to wait in, and a number that looks like no other's.
    fn drawn(&self) -> Option<(Arc<Shadowed>, u64)> {
        let shadowed = self.0.load();
        let shadowed = shadowed.as_ref()?;
        let lot = mixed(shadowed.calls.fetch_add(1, Ordering::Relaxed));
        if lot % u64::from(WHOLE) >= u64::from(shadowed.share.load(Ordering::Relaxed)) {
            return None;
        }
        if shadowed.queue.capacity() == 0 {
            shadowed.leave_out(LeftOut::QueueFull);
            return None;
        }
        Some((Arc::clone(shadowed), lot))
    }
}

/// SplitMix64's finaliser: which calls are drawn has nothing to do with how often they come.
fn mixed(number: u64) -> u64 {
    let mut x = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// A live call of a typed function that is under way, and is then to be given to the candidate.
pub struct Asked {
    shadowed: Arc<Shadowed>,
    lot: u64,
    request: Request,
    bytes: usize,
}

impl Asked {
    /// What the caller is answered.
    pub fn answered(self, answer: Result<&Reply, &CallError>) -> Option<Pending> {
        let Asked { shadowed, lot, request, bytes } = self;
        let (expected, bytes) = match answer {
            // An answer can be a part of what a whole batch was answered, and holds on to it.
            Ok(reply) => {
                let rows = shadowed.stable.rows();
                (Answer::Tensors(reply.outputs.clone()), bytes + reply.tensor_bytes().saturating_mul(rows))
            }
            Err(CallError::Raised { code, status, .. }) => {
                (Answer::Raised { code: code.clone(), status: *status }, bytes + code.len())
            }
            Err(_) => {
                shadowed.leave_out(LeftOut::StableFailed);
                return None;
            }
        };
        let held = Held::new(&shadowed.bytes);
        shadowed.pending(Question::Tensors(request), expected, bytes, held, lot)
    }
}

impl Side {
    /// Calls that may be joined to one batch.
    fn rows(&self) -> usize {
        let batching = self.revision.models.iter().filter_map(|model| model.batching);
        batching.map(|batching| batching.max_size).max().unwrap_or(1)
    }
}

impl Shadowed {
    fn leave_out(&self, reason: LeftOut) {
        self.recorder.left_out(reason);
        self.counters[reason as usize].inc();
    }

    fn pending(
        self: Arc<Self>,
        question: Question,
        expected: Answer,
        bytes: usize,
        mut held: Held,
        lot: u64,
    ) -> Option<Pending> {
        let room =
            if bytes > MOST { Err(LeftOut::TooLarge) } else { held.hold(bytes).ok_or(LeftOut::QueueFull) };
        if let Err(reason) = room {
            self.leave_out(reason);
            return None;
        }
        // Other bits than those that have drawn the call.
        let again = (lot >> 32) % u64::from(WHOLE) < u64::from(self.replay);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let job = Job {
            shadowed: self,
            question,
            expected,
            asked: Instant::now(),
            time_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
            request_id: None,
            replay: again.then_some(lot >> 63 == 1),
            bytes,
            _room: held,
        };
        Some(Pending { job: Some(job), request_id: OnceLock::new() })
    }
}

/// A live call that the candidate gets once this is dropped, which is when the caller has its answer.
pub struct Pending {
    job: Option<Job>,
    request_id: OnceLock<HeaderValue>,
}

impl Pending {
    /// Under which id the live call is known.
    pub fn identify(&self, request_id: HeaderValue) {
        let _ = self.request_id.set(request_id);
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        let Some(mut job) = self.job.take() else { return };
        job.request_id = self.request_id.take();
        let shadowed = Arc::clone(&job.shadowed);
        match shadowed.queue.try_reserve() {
            Ok(place) => {
                // Only now, so that no caller waits for it.
                job.question.own();
                place.send(job);
            }
            Err(mpsc::error::TrySendError::Full(())) => shadowed.leave_out(LeftOut::QueueFull),
            Err(mpsc::error::TrySendError::Closed(())) => {}
        };
    }
}

impl Room {
    /// Whether a call may begin though live calls are answered.
    fn is_rested(&self) -> bool {
        self.rest.lock().unwrap_or_else(PoisonError::into_inner).is_none_or(|until| Instant::now() >= until)
    }

    /// Has nothing begin for a while after so much work, as long as live calls are answered.
    fn rest(&self, worked: Duration) {
        let until = Instant::now() + worked.saturating_mul(gentle::REST);
        *self.rest.lock().unwrap_or_else(PoisonError::into_inner) = Some(until);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::{Datatype, Tensor};

    #[test]
    fn draws_are_fair_and_do_not_depend_on_each_other() {
        for share in [0, 100, 2500, WHOLE] {
            let drawn = (0..100_000).filter(|n| mixed(*n) % u64::from(WHOLE) < u64::from(share)).count();
            assert!(drawn.abs_diff(usize::from(share) * 10) < 500, "{share}: {drawn}");
        }
        let quarter = (0..100_000).map(mixed).filter(|lot| lot % u64::from(WHOLE) < 2500);
        let half = quarter.filter(|lot| (lot >> 32) % u64::from(WHOLE) < 5000);
        let (first, second): (Vec<_>, Vec<_>) = half.partition(|lot| lot >> 63 == 1);
        assert!(first.len().abs_diff(6250) < 400 && second.len().abs_diff(6250) < 400, "{}", first.len());
    }

    #[test]
    fn room_is_taken_before_it_is_needed_and_given_back() {
        let room = Arc::new(Semaphore::new(4));
        let (mut one, mut other) = (Held::new(&room), Held::new(&room));
        assert!(one.hold(1).is_some() && one.hold(PAGE).is_some() && room.available_permits() == 3);
        assert!(other.hold(2 * PAGE).is_some() && room.available_permits() == 1);
        assert!(one.hold(3 * PAGE).is_none() && room.available_permits() == 1);
        one.join(&mut other);
        drop(other);
        assert!(one.hold(4 * PAGE).is_some() && room.available_permits() == 0);
        drop(one);
        assert_eq!(room.available_permits(), 4);
    }

    #[test]
    fn what_waits_holds_on_to_its_inputs_alone() {
        let body = bytes::Bytes::from(vec![7; 1 << 20]);
        let tensor = Tensor::new(Datatype::Uint8, vec![4], body.slice(8..12)).unwrap();
        let request = Request { inputs: vec![("x".to_owned(), tensor)], ..Request::default() };
        let mut question = Question::Tensors(request);
        assert!(!body.is_unique());
        question.own();
        assert!(body.is_unique());
    }

    #[test]
    fn percentages_become_parts() {
        for (percent, parts) in [(0.0, 0), (0.01, 1), (50.0, 5000), (100.0, WHOLE), (1e9, WHOLE), (-1.0, 0)] {
            assert_eq!(hundredths(percent), parts);
        }
        assert_eq!(hundredths(f64::NAN), 0);
        let names = results();
        assert_eq!(
            (names[LeftOut::NotRun as usize], names[AGREED], names[FAILED]),
            ("not-run", "agreed", "failed")
        );
    }
}
