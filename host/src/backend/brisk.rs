//! Short inferences, which run on the thread of their caller: a change of thread and back takes longer than they do.
//!
//! Nobody else waits for a thread that is busy so: tokio is told, and has another take its place. That is a change of
//! thread as well, if one that the caller need not wait for, so under load the pool is better. And what a guest asks
//! for may take long all of a sudden: this is for graphs that were quick of late, one run at a time, while no other
//! instance has a graph, under a watch that raises the cancellation at the deadline.

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tokio::runtime::{Handle, RuntimeFlavor};

use super::pool::{Timed, run_timed};
use super::{Cancel, Graph, InferError, Signature};
use crate::tensor::Tensor;

/// The longest run that is short: a change of thread and back takes about half of it.
const SHORT: Duration = Duration::from_micros(100);

/// So many short runs make a graph brisk, and one long one takes back as many.
const SHOWN: u32 = 16;

/// The most that a graph may have in hand: on a busy machine a short run takes long now and then.
const MOST_SHOWN: u32 = 4 * SHOWN;

/// How late a cancellation may be.
const TICK: Duration = Duration::from_millis(1);

/// Ticks without a run after which the watch sleeps: under load it must not be woken for every run.
const IDLE_TICKS: u32 = 200;

/// A graph whose runs are timed.
pub struct Paced {
    graph: Arc<dyn Graph>,
    short: AtomicU32,
}

impl Paced {
    pub fn new(graph: Arc<dyn Graph>) -> Paced {
        Paced { graph, short: AtomicU32::new(0) }
    }

    fn is_brisk(&self) -> bool {
        self.short.load(Ordering::Relaxed) >= SHOWN
    }
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
        let started = Instant::now();
        let outputs = self.graph.run(inputs, cancel);
        let is_short = outputs.is_ok() && started.elapsed() <= SHORT;
        let _ = self.short.try_update(Ordering::Relaxed, Ordering::Relaxed, |short| {
            let now = if is_short { (short + 1).min(MOST_SHOWN) } else { short.saturating_sub(SHOWN) };
            (now != short).then_some(now)
        });
        outputs
    }
}

/// The run on its caller's thread, and the thread that watches over its deadline.
pub struct Brisk {
    shared: Arc<Shared>,
    users: Arc<AtomicUsize>,
}

/// Whoever may ask for inferences.
pub struct User(Arc<AtomicUsize>);

impl Drop for User {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[derive(Default)]
struct Shared {
    watched: Mutex<Watched>,
    wake: Condvar,
}

#[derive(Default)]
struct Watched {
    run: Option<(Instant, Arc<Cancel>)>,
    asleep: bool,
    closed: bool,
}

impl Brisk {
    /// # Errors
    /// Where the system refuses a thread.
    pub fn start() -> std::io::Result<Brisk> {
        let shared = Arc::new(Shared::default());
        let watching = Arc::clone(&shared);
        thread::Builder::new().name("infer-watch".to_owned()).spawn(move || watching.watch())?;
        Ok(Brisk { shared, users: Arc::default() })
    }

    /// Counts one who may ask for inferences, for as long as this is held.
    pub fn user(&self) -> User {
        self.users.fetch_add(1, Ordering::Relaxed);
        User(Arc::clone(&self.users))
    }

    /// Runs the graph here and now if that is in order; gives the inputs back where it is not. The caller is a user.
    ///
    /// # Errors
    /// The inputs, where the graph is to run elsewhere.
    pub fn run(
        &self,
        graph: &Paced,
        inputs: Vec<Tensor>,
        cancel: &Arc<Cancel>,
        deadline: Instant,
    ) -> Result<Timed, Vec<Tensor>> {
        // Only a runtime of several threads can have another take the place of this one.
        let replaceable =
            || Handle::try_current().is_ok_and(|tokio| tokio.runtime_flavor() == RuntimeFlavor::MultiThread);
        let alone = self.users.load(Ordering::Relaxed) == 1;
        if !alone || !graph.is_brisk() || !graph.runs_on_caller() || !replaceable() {
            return Err(inputs);
        }
        let _watch = self.watch(cancel, deadline);
        Ok(tokio::task::block_in_place(|| run_timed(graph, inputs, cancel)))
    }

    fn watch(&self, cancel: &Arc<Cancel>, deadline: Instant) -> Watch<'_> {
        let mut watched = self.shared.lock();
        watched.run = Some((deadline, Arc::clone(cancel)));
        if watched.asleep {
            watched.asleep = false;
            self.shared.wake.notify_one();
        }
        Watch(&self.shared)
    }
}

impl Drop for Brisk {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.wake.notify_one();
    }
}

/// A run that is watched until this is dropped.
struct Watch<'a>(&'a Shared);

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        self.0.lock().run = None;
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
            if watched.run.is_none() && idle >= IDLE_TICKS {
                watched.asleep = true;
                watched = self.wake.wait(watched).unwrap_or_else(PoisonError::into_inner);
                idle = 0;
                continue;
            }
            idle = if watched.run.is_none() { idle + 1 } else { 0 };
            let due = watched.run.take_if(|(deadline, _)| *deadline <= Instant::now());
            drop(watched);
            // Without the lock: a run that ends must not wait for what stops it.
            if let Some((_, cancel)) = due {
                cancel.raise();
            }
            thread::sleep(TICK);
            watched = self.lock();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn what_was_quick_of_late_runs_here_and_is_stopped_in_time() {
        let (graph, brisk) = (moody(), Brisk::start().unwrap());
        let paced = Arc::new(Paced::new(graph.clone()));
        // On a worker of the runtime: `block_in_place` has others take over there.
        let on_a_worker = async move {
            let run = |paced: &Paced| {
                let deadline = Instant::now() + Duration::from_millis(50);
                brisk.run(paced, Vec::new(), &Arc::new(Cancel::at(deadline)), deadline)
            };
            let _user = brisk.user();
            assert!(run(&paced).is_err(), "it has yet to show that it is quick");
            while !paced.is_brisk() {
                paced.run(Vec::new(), &Cancel::default()).unwrap();
            }
            let other = brisk.user();
            assert!(run(&paced).is_err(), "there is another");
            drop(other);
            assert!(run(&paced).is_ok_and(|run| run.outputs.is_ok()));
            graph.stuck.store(true, Ordering::Relaxed);
            let others = tokio::spawn(tokio::time::sleep(Duration::from_millis(1)));
            let started = Instant::now();
            assert!(matches!(run(&paced), Ok(Timed { outputs: Err(InferError::Cancelled), .. })));
            assert!((50..150).contains(&started.elapsed().as_millis()), "{:?}", started.elapsed());
            assert!(others.is_finished(), "the only worker was replaced meanwhile");
            assert!(run(&paced).is_err(), "it was not quick");
        };
        tokio::spawn(on_a_worker).await.unwrap();
    }

    #[tokio::test]
    async fn a_runtime_of_one_thread_is_not_blocked() {
        let brisk = Brisk::start().unwrap();
        let paced = Paced::new(moody());
        for _ in 0..SHOWN {
            paced.run(Vec::new(), &Cancel::default()).unwrap();
        }
        assert!(paced.is_brisk());
        let _user = brisk.user();
        let deadline = Instant::now() + Duration::from_secs(1);
        assert!(brisk.run(&paced, Vec::new(), &Arc::new(Cancel::at(deadline)), deadline).is_err());
    }
}
