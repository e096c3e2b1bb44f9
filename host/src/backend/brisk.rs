//! Short inferences, which run on the thread of their caller: a change of thread and back takes longer than they do.
//!
//! What a guest asks for may take long all of a sudden. So this is for graphs that were quick of late, with inputs of the
//! same shapes, on at most half of the runtime's threads, and under a watch. A run that turns out long is stopped, and
//! begins anew elsewhere; its graph has to show for long that it is quick before it runs here again. Until it stops, the watch has the other threads look for
//! what there is to do, for it may be that all of them sleep and rely on the one that is busy. What that one had for
//! itself alone waits: tasks that it has just woken.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;

use super::pool::{Timed, run_timed};
use super::{Cancel, Graph, InferError, Signature};
use crate::tensor::Tensor;

/// The longest run that is short: a guest may keep a thread for longer before it is interrupted. A change of thread and
/// back takes some 50 microseconds, more where processors sleep.
const SHORT: Duration = Duration::from_micros(250);

/// So many short runs make a graph brisk, and one long one takes back as many.
const SHOWN: u32 = 16;

/// The most that a graph may have in hand beyond what it needs: on a busy machine a short run takes long now and then.
const MOST_SPARE: u32 = 3 * SHOWN;

/// With each run that took too long here a graph needs 64 times as many: a thousand, 65 thousand, 4 million. The machine
/// may have been at fault once, hardly again and again.
const OVERRUN_BITS: u32 = 6;
const MOST_OVERRUNS: u32 = 4;

/// The longest that a run may take here after all.
const LONGEST: Duration = Duration::from_millis(10);

/// How late a cancellation may be.
const TICK: Duration = Duration::from_millis(1);

/// Ticks without a run after which the watch sleeps: under load it must not be woken for every run.
const IDLE_TICKS: u32 = 20;

/// Ticks after which a run is long, and others are told to look after its thread's work.
const LONG_TICKS: u32 = 2;

/// A graph whose runs are timed.
pub struct Paced {
    graph: Arc<dyn Graph>,
    /// The form of the latest inputs in the upper half, in the lower how many short runs it has in hand.
    shown: AtomicU64,
    /// How many runs here took too long.
    overruns: AtomicU32,
}

impl Paced {
    pub fn new(graph: Arc<dyn Graph>) -> Paced {
        Paced { graph, shown: AtomicU64::new(0), overruns: AtomicU32::new(0) }
    }

    fn is_brisk(&self, inputs: &[Tensor]) -> bool {
        let (form, short) = parted(self.shown.load(Ordering::Relaxed));
        short >= self.needed() && form == form_of(inputs)
    }

    /// The short runs that it needs in hand.
    fn needed(&self) -> u32 {
        SHOWN << (OVERRUN_BITS * self.overruns.load(Ordering::Relaxed).min(MOST_OVERRUNS))
    }

    fn note(&self, form: u32, is_short: bool) {
        let most = self.needed() + MOST_SPARE;
        let _ = self.shown.try_update(Ordering::Relaxed, Ordering::Relaxed, |shown| {
            let (before, short) = parted(shown);
            let short = if before == form { short } else { 0 };
            let short = if is_short { (short + 1).min(most) } else { short.saturating_sub(SHOWN) };
            let now = u64::from(form) << 32 | u64::from(short);
            (now != shown).then_some(now)
        });
    }
}

fn parted(shown: u64) -> (u32, u32) {
    ((shown >> 32) as u32, shown as u32)
}

/// What tells inputs of other shapes apart, nearly always.
fn form_of(inputs: &[Tensor]) -> u32 {
    let numbers = inputs.iter().flat_map(|input| input.shape().iter().copied().chain([input.data().len()]));
    // FNV-1a, a number at a time.
    let hash = numbers.fold(0xcbf2_9ce4_8422_2325_u64, |hash, number| {
        (hash ^ number as u64).wrapping_mul(0x100_0000_01b3).rotate_left(23)
    });
    (hash >> 32) as u32 ^ hash as u32
}

impl Graph for Paced {
    fn signature(&self) -> &Signature {
        self.graph.signature()
    }

    fn prefers_few_shapes(&self) -> bool {
        self.graph.prefers_few_shapes()
    }

    fn runs_on_caller(&self) -> bool {
        self.graph.runs_on_caller()
    }

    fn run(&self, inputs: Vec<Tensor>, cancel: &Cancel) -> Result<Vec<Tensor>, InferError> {
        let form = form_of(&inputs);
        let started = Instant::now();
        let outputs = self.graph.run(inputs, cancel);
        self.note(form, outputs.is_ok() && started.elapsed() <= SHORT);
        outputs
    }
}

/// The runs on their callers' threads, and the thread that watches over them.
pub struct Brisk(Arc<Shared>);

#[derive(Default)]
struct Shared {
    watched: Mutex<Watched>,
    wake: Condvar,
}

#[derive(Default)]
struct Watched {
    runs: Vec<Running>,
    next: u64,
    asleep: bool,
    closed: bool,
}

struct Running {
    number: u64,
    limit: Instant,
    /// What stops it; absent once it was told to.
    cancel: Option<Arc<Cancel>>,
    /// The runtime one of whose threads it keeps busy.
    runtime: Handle,
    ticks: u32,
}

impl Brisk {
    /// # Errors
    /// Where the system refuses a thread.
    pub fn start() -> std::io::Result<Brisk> {
        let shared = Arc::new(Shared::default());
        let watching = Arc::clone(&shared);
        thread::Builder::new().name("infer-watch".to_owned()).spawn(move || watching.watch())?;
        Ok(Brisk(shared))
    }

    /// Runs the graph here and now if that is in order; gives the inputs back where it is not, or turns out not to be.
    ///
    /// # Errors
    /// The inputs, where the graph is to run elsewhere.
    pub fn run(&self, graph: &Paced, inputs: Vec<Tensor>, deadline: Instant) -> Result<Timed, Vec<Tensor>> {
        if !graph.is_brisk(&inputs) || !graph.runs_on_caller() {
            return Err(inputs);
        }
        let limit = deadline.min(Instant::now() + LONGEST);
        let cancel = Arc::new(Cancel::at(limit));
        let Some(watch) = self.watch(&cancel, limit) else { return Err(inputs) };
        // They share their bytes.
        let again = inputs.clone();
        let run = run_timed(graph, inputs, &cancel);
        drop(watch);
        if Instant::now() >= limit {
            graph.overruns.fetch_add(1, Ordering::Relaxed);
            if run.outputs.is_err() && limit < deadline {
                return Err(again);
            }
        }
        Ok(run)
    }

    /// `None` where too few threads would be left for anything else.
    fn watch(&self, cancel: &Arc<Cancel>, limit: Instant) -> Option<Watch<'_>> {
        let runtime = Handle::try_current().ok()?;
        let most = runtime.metrics().num_workers() / 2;
        let mut watched = self.0.lock();
        if watched.runs.len() >= most {
            return None;
        }
        let number = watched.next;
        watched.next += 1;
        watched.runs.push(Running { number, limit, cancel: Some(Arc::clone(cancel)), runtime, ticks: 0 });
        if watched.asleep {
            watched.asleep = false;
            self.0.wake.notify_one();
        }
        Some(Watch { shared: &self.0, number })
    }
}

impl Drop for Brisk {
    fn drop(&mut self) {
        self.0.lock().closed = true;
        self.0.wake.notify_one();
    }
}

/// A run that is watched until this is dropped.
struct Watch<'a> {
    shared: &'a Shared,
    number: u64,
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        self.shared.lock().runs.retain(|run| run.number != self.number);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Watched> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn watch(&self) {
        let mut idle = 0;
        let mut watched = self.lock();
        while !watched.closed {
            if watched.runs.is_empty() && idle >= IDLE_TICKS {
                watched.asleep = true;
                watched = self.wake.wait(watched).unwrap_or_else(PoisonError::into_inner);
                idle = 0;
                continue;
            }
            idle = if watched.runs.is_empty() { idle + 1 } else { 0 };
            let (mut due, mut long) = (Vec::new(), Vec::new());
            let now = Instant::now();
            for run in &mut watched.runs {
                run.ticks = run.ticks.saturating_add(1);
                if run.ticks >= LONG_TICKS {
                    long.push(run.runtime.clone());
                }
                due.extend(run.cancel.take_if(|_| run.limit <= now));
            }
            drop(watched);
            // Without the lock: a run that ends must not wait for what stops it.
            for cancel in due {
                cancel.raise();
            }
            for runtime in long {
                // A thread that sleeps wakes up for it, and then waits for sockets and timers, which may have been what
                // the busy one did.
                runtime.spawn(async {});
            }
            thread::sleep(TICK);
            watched = self.lock();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Datatype;

    /// Is quick until it is told not to be, and then runs until it is cancelled.
    struct Moody {
        signature: Signature,
        stuck: std::sync::atomic::AtomicBool,
    }

    impl Graph for Moody {
        fn signature(&self) -> &Signature {
            &self.signature
        }

        fn runs_on_caller(&self) -> bool {
            true
        }

        fn run(&self, inputs: Vec<Tensor>, cancel: &Cancel) -> Result<Vec<Tensor>, InferError> {
            let (stop, stopped) = std::sync::mpsc::channel();
            // As engines that are stopped from outside do it: they do not look at the clock.
            let _hook = cancel.hook(move || {
                let _ = stop.send(());
            });
            if self.stuck.load(Ordering::Relaxed) {
                stopped.recv().unwrap();
                return Err(InferError::Cancelled);
            }
            Ok(inputs)
        }
    }

    fn moody() -> Arc<Moody> {
        Arc::new(Moody { signature: Signature::default(), stuck: false.into() })
    }

    fn input(elements: usize) -> Vec<Tensor> {
        let data = vec![0; elements].into();
        vec![Tensor::new(Datatype::Uint8, vec![elements], data).unwrap()]
    }

    fn shown(graph: &Arc<Moody>) -> Arc<Paced> {
        let paced = Arc::new(Paced::new(graph.clone()));
        while !paced.is_brisk(&input(8)) {
            paced.run(input(8), &Cancel::default()).unwrap();
        }
        paced
    }

    fn run(brisk: &Brisk, graph: &Paced, elements: usize, within: Duration) -> Result<Timed, Vec<Tensor>> {
        brisk.run(graph, input(elements), Instant::now() + within)
    }

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_was_quick_of_late_runs_here_and_else_goes_elsewhere() {
        let (graph, brisk) = (moody(), Brisk::start().unwrap());
        let on_a_worker = async move {
            let new = Paced::new(graph.clone());
            assert!(run(&brisk, &new, 8, LONG).is_err(), "it has yet to show that it is quick");
            let paced = shown(&graph);
            assert!(run(&brisk, &paced, 8, LONG).is_ok_and(|run| run.outputs.is_ok()));
            assert!(run(&brisk, &paced, 9, LONG).is_err(), "with other shapes it has yet to show it");
            graph.stuck.store(true, Ordering::Relaxed);
            let given_back = run(&brisk, &paced, 8, LONG).map(|_| ()).unwrap_err();
            assert_eq!(given_back, input(8), "it was stopped, and is to run elsewhere");
            graph.stuck.store(false, Ordering::Relaxed);
            let quick =
                |times| (0..times).for_each(|_| drop(paced.run(input(8), &Cancel::default()).unwrap()));
            quick(SHOWN + MOST_SPARE);
            assert!(run(&brisk, &paced, 8, LONG).is_err(), "it was long once");
            while !paced.is_brisk(&input(8)) {
                quick(SHOWN);
            }
            assert!(run(&brisk, &paced, 8, LONG).is_ok_and(|run| run.outputs.is_ok()));
        };
        tokio::spawn(on_a_worker).await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_deadline_that_comes_first_ends_it() {
        let (graph, brisk) = (moody(), Brisk::start().unwrap());
        let paced = shown(&graph);
        graph.stuck.store(true, Ordering::Relaxed);
        let on_a_worker = async move { run(&brisk, &paced, 8, LONGEST / 5) };
        let ended = tokio::spawn(on_a_worker).await.unwrap();
        assert!(matches!(ended, Ok(Timed { outputs: Err(InferError::Cancelled), .. })));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn others_go_on_while_a_run_is_long() {
        let (graph, brisk) = (moody(), Arc::new(Brisk::start().unwrap()));
        // Each waits for a timer that both threads leave to whoever sleeps last.
        let ticks = Arc::new(AtomicU64::new(0));
        for _ in 0..4 {
            let ticks = Arc::clone(&ticks);
            tokio::spawn(async move {
                loop {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    ticks.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let meanwhile = tokio::spawn(async move {
            let mut meanwhile = 0;
            for _ in 0..10 {
                graph.stuck.store(false, Ordering::Relaxed);
                let paced = shown(&graph);
                tokio::time::sleep(Duration::from_millis(20)).await;
                graph.stuck.store(true, Ordering::Relaxed);
                let before = ticks.load(Ordering::Relaxed);
                assert!(run(&brisk, &paced, 8, LONG).is_err());
                meanwhile += ticks.load(Ordering::Relaxed) - before;
            }
            meanwhile
        });
        let meanwhile = meanwhile.await.unwrap();
        assert!(meanwhile > 40, "{meanwhile} ticks of 4 tasks in 100 ms");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn the_only_thread_is_not_kept_busy() {
        let (graph, brisk) = (moody(), Brisk::start().unwrap());
        let on_a_worker = async move { assert!(run(&brisk, &shown(&graph), 8, LONG).is_err()) };
        tokio::spawn(on_a_worker).await.unwrap();
    }

    #[tokio::test]
    async fn nor_is_a_runtime_of_one_thread() {
        let (graph, brisk) = (moody(), Brisk::start().unwrap());
        assert!(run(&brisk, &shown(&graph), 8, LONG).is_err());
    }
}
