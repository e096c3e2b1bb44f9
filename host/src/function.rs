//! The functions of this host, and the snapshot of them that a request keeps to its end.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use http::HeaderValue;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::telemetry::observations::Observations;
use crate::telemetry::{FunctionMetrics, Telemetry};

pub mod cache;
pub mod release;
pub mod revision;
pub mod route;
pub mod shadow;
pub mod snapshot;
pub mod statistics;
pub mod traffic;

use cache::ResponseCache;
pub use release::{App, Release};
pub use revision::Revision;
pub use route::{Matched, Route, Routes, Target};
pub use snapshot::{Conflict, Snapshot};
use statistics::Statistics;
pub use traffic::{Asker, Division, Traffic};

/// A named thing to call: `<app>/<component>`.
pub struct Function {
    pub name: String,
    /// Its name in the Open Inference Protocol, unique on the host.
    pub model: String,
    /// Its version there: the number of the app's revision.
    pub version: String,
    /// The same as a header's value.
    pub version_header: HeaderValue,
    pub revision: Arc<Revision>,
    pub metrics: FunctionMetrics,
    pub statistics: Statistics,
    /// What its calls are judged by while it is compared with another revision.
    pub observations: Observations,
    /// The candidate that gets its calls as well, if there is one.
    pub shadow: shadow::Slot,
    /// Answers that are kept, where the function asks for it.
    pub cache: Option<ResponseCache>,
    /// Whether an operator's client has unloaded it, so that it takes no calls until it is loaded again.
    pub unloaded: AtomicBool,
    /// Held by whoever loads or unloads it, one after the other.
    pub control: tokio::sync::Mutex<()>,
    permits: Arc<Semaphore>,
    waiting: AtomicUsize,
    telemetry: Arc<Telemetry>,
}

/// What a function is called, and what it asks of the host.
pub struct Settings {
    pub name: String,
    pub model: String,
    /// The number of the app's revision.
    pub revision: u64,
    /// Instances that run at once.
    pub concurrency: usize,
    /// Bytes of answers that are kept; 0 keeps none.
    pub response_cache_bytes: usize,
}

impl Function {
    pub fn new(settings: Settings, revision: Revision, telemetry: &Arc<Telemetry>) -> Function {
        let Settings { name, model, revision: number, concurrency, response_cache_bytes } = settings;
        Function {
            metrics: telemetry.function(&name, number),
            name,
            model,
            version: number.to_string(),
            version_header: HeaderValue::from(number),
            revision: Arc::new(revision),
            statistics: Statistics::default(),
            observations: Observations::new(),
            shadow: shadow::Slot::default(),
            cache: (response_cache_bytes > 0).then(|| ResponseCache::new(response_cache_bytes)),
            unloaded: AtomicBool::new(false),
            control: tokio::sync::Mutex::default(),
            permits: Arc::new(Semaphore::new(concurrency.max(1))),
            waiting: AtomicUsize::new(0),
            telemetry: Arc::clone(telemetry),
        }
    }

    /// Whether it takes calls.
    pub fn is_ready(&self) -> bool {
        !self.unloaded.load(Ordering::Acquire)
    }
}

impl Drop for Function {
    fn drop(&mut self) {
        // A revision's numbers go with it, or every deployment would leave some behind for good.
        let models = self.revision.models.iter().map(|model| (model.name.as_str(), model.backend));
        self.telemetry.forget(&self.metrics, models);
    }
}

/// The current snapshot, and how many instances may run.
pub struct Functions {
    current: ArcSwap<Snapshot>,
    /// Held by whoever makes the next snapshot.
    changing: Mutex<()>,
    published: AtomicBool,
    admission: Admission,
    /// What calls that candidates get as well may take of the host.
    shadows: shadow::Room,
    pub telemetry: Arc<Telemetry>,
}

impl Functions {
    pub fn new(admission: Admission, telemetry: Arc<Telemetry>) -> Arc<Functions> {
        Arc::new(Functions {
            current: ArcSwap::default(),
            changing: Mutex::default(),
            published: AtomicBool::new(false),
            admission,
            shadows: shadow::Room::default(),
            telemetry,
        })
    }

    /// What is served now. A request asks once, and keeps the answer to its end.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// Has an app's calls divided so from now on, or, with `None`, takes the app out of service. Requests that began
    /// before go on with what they began with.
    ///
    /// # Errors
    /// Where another app has one of its routes or names; nothing has changed then.
    pub fn publish(&self, app: &str, traffic: Option<Traffic>) -> Result<(), Conflict> {
        let _turn = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut apps = self.current.load().apps().clone();
        let former = apps.remove(app);
        let traffic = traffic.map(|mut traffic| {
            if let Some(former) = former.as_ref().filter(|former| traffic.divides_as(former)) {
                traffic.division = Arc::clone(&former.division);
            }
            Arc::new(traffic)
        });
        apps.extend(traffic.clone().map(|traffic| (app.to_owned(), traffic)));
        self.current.store(Arc::new(Snapshot::of(apps)?));
        self.published.store(true, Ordering::Release);
        let goes_on = |former: &Traffic| {
            traffic.as_ref().is_some_and(|traffic| Arc::ptr_eq(&traffic.division, &former.division))
        };
        if former.as_deref().is_some_and(goes_on) {
            return Ok(());
        }
        former.iter().for_each(|former| former.division.end());
        for traffic in traffic.iter().filter(|traffic| traffic.candidate.is_some()) {
            let functions = traffic.releases().flat_map(|release| &release.functions);
            functions.for_each(|function| function.observations.begin());
        }
        Ok(())
    }

    /// Whether anything was ever published.
    pub fn published(&self) -> bool {
        self.published.load(Ordering::Acquire)
    }

    /// How much the host has to do for live calls.
    fn strain(&self) -> Strain {
        self.admission.strain()
    }

    /// Waits, within bounds, until one more instance of the function may run.
    ///
    /// # Errors
    /// Where too many wait already, or it takes too long.
    pub async fn acquire(&self, function: &Function) -> Result<Permit, Overloaded> {
        self.admission.acquire(function, &self.telemetry).await
    }
}

/// How many instances may run, how many requests may wait for that, and for how long.
pub struct Admission {
    instances: Arc<Semaphore>,
    /// How many of them there are in all.
    places: usize,
    /// How many of them can compute at once.
    cores: usize,
    queued: AtomicUsize,
    queue_length: usize,
    wait: std::time::Duration,
}

/// How much the host has to do for live calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Strain {
    /// A processor is free for something else.
    Calm,
    Busy,
    /// Calls wait, or soon will.
    Full,
}

/// No instance was allowed in time.
#[derive(Clone, Copy, Debug)]
pub struct Overloaded;

/// The right to run one instance.
pub struct Permit {
    _function: OwnedSemaphorePermit,
    _host: OwnedSemaphorePermit,
    _counted: Counted,
}

/// Counts an instance for as long as its permit is held.
struct Counted(prometheus_client::metrics::gauge::Gauge);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Admission {
    pub fn new(instances: usize, queue_length: usize, wait: std::time::Duration) -> Admission {
        Admission {
            instances: Arc::new(Semaphore::new(instances)),
            places: instances,
            cores: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            queued: AtomicUsize::new(0),
            queue_length,
            wait,
        }
    }

    fn strain(&self) -> Strain {
        let spare = self.instances.available_permits();
        if self.queued.load(Ordering::Relaxed) > 0 || spare < (self.places / 8).max(1) {
            Strain::Full
        } else if self.places.saturating_sub(spare) >= self.cores {
            Strain::Busy
        } else {
            Strain::Calm
        }
    }

    async fn acquire(&self, function: &Function, telemetry: &Telemetry) -> Result<Permit, Overloaded> {
        let permits = match self.at_once(function) {
            Some(permits) => permits,
            None => self.in_turn(function, telemetry).await?,
        };
        telemetry.instances.inc();
        let counted = Counted(telemetry.instances.clone());
        Ok(Permit { _function: permits.0, _host: permits.1, _counted: counted })
    }

    /// The function's own permit first: what waits for its own function holds nothing of the host.
    fn at_once(&self, function: &Function) -> Option<(OwnedSemaphorePermit, OwnedSemaphorePermit)> {
        let own = Arc::clone(&function.permits).try_acquire_owned().ok()?;
        let host = Arc::clone(&self.instances).try_acquire_owned().ok()?;
        Some((own, host))
    }

    async fn in_turn(
        &self,
        function: &Function,
        telemetry: &Telemetry,
    ) -> Result<(OwnedSemaphorePermit, OwnedSemaphorePermit), Overloaded> {
        let _waiting = Waiting::enter(self, function, telemetry).ok_or(Overloaded)?;
        let turn = async {
            let own = Arc::clone(&function.permits).acquire_owned().await;
            let host = Arc::clone(&self.instances).acquire_owned().await;
            (own.expect("the semaphore is never closed"), host.expect("the semaphore is never closed"))
        };
        tokio::time::timeout(self.wait, turn).await.map_err(|_| Overloaded)
    }
}

/// A place in the queue, given back when dropped.
struct Waiting<'a> {
    admission: &'a Admission,
    function: &'a Function,
    telemetry: &'a Telemetry,
}

impl<'a> Waiting<'a> {
    fn enter(
        admission: &'a Admission,
        function: &'a Function,
        telemetry: &'a Telemetry,
    ) -> Option<Waiting<'a>> {
        telemetry.queued.inc();
        let all = admission.queued.fetch_add(1, Ordering::AcqRel);
        let own = function.waiting.fetch_add(1, Ordering::AcqRel);
        let place = Waiting { admission, function, telemetry };
        // One slow function must leave room for the others to wait.
        let share = admission.queue_length.div_ceil(2);
        (all < admission.queue_length && own < share).then_some(place)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.function.waiting.fetch_sub(1, Ordering::AcqRel);
        self.admission.queued.fetch_sub(1, Ordering::AcqRel);
        self.telemetry.queued.dec();
    }
}
