//! The threads that run inferences: a bounded number, away from the async threads.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use thiserror::Error;
use tokio::sync::oneshot;

use super::brisk::Brisk;
use super::{Cancel, Graph, InferError};
use crate::background::caught;
use crate::tensor::Tensor;

/// The stack in bytes of every thread that loads or runs models. A model that nests deeply is tried out on exactly
/// as much as it is served on, or else it would pass and then end the host. Only what is touched takes memory.
pub const STACK_BYTES: usize = 4 << 20;

type Work = Box<dyn FnOnce() + Send>;

/// As many inferences wait for a thread as may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the queue of inferences is full (`inference.queue_length` in host.toml)")]
pub struct QueueFull;

/// A fixed number of threads with one bounded queue.
pub struct Pool {
    shared: Arc<Shared>,
    threads: usize,
    /// Where short inferences run in place of these threads.
    pub brisk: Brisk,
}

/// A run that has ended.
pub struct Timed {
    pub outputs: Result<Vec<Tensor>, InferError>,
    pub began: Instant,
    /// The time that the graph took.
    pub took: Duration,
}

struct Shared {
    queue: Mutex<Queue>,
    /// What each thread waits at.
    ready: Box<[Condvar]>,
    limit: usize,
}

#[derive(Default)]
struct Queue {
    work: VecDeque<Work>,
    /// Threads that wait for work, the last one that had some on top: the processor's caches and the memory that it has
    /// taken for itself are warm. Only they need a wake-up, which is a call into the kernel.
    idle: Vec<usize>,
    closed: bool,
}

impl Pool {
    /// Starts `threads` threads, whose queue holds at most `queue_length` inferences.
    ///
    /// # Errors
    /// Where the system refuses a thread.
    pub fn start(threads: usize, queue_length: usize) -> std::io::Result<Pool> {
        let threads = threads.max(1);
        let shared = Arc::new(Shared {
            queue: Mutex::new(Queue::default()),
            ready: (0..threads).map(|_| Condvar::new()).collect(),
            limit: queue_length,
        });
        let pool = Pool { shared, threads, brisk: Brisk::start()? };
        for index in 0..pool.threads {
            let shared = Arc::clone(&pool.shared);
            let builder = thread::Builder::new().name(format!("infer-{index}")).stack_size(STACK_BYTES);
            builder.spawn(move || shared.work(index))?;
        }
        Ok(pool)
    }

    /// Runs the graph on one of the threads. `permit` is kept until the run has really ended, which can be
    /// after its caller has gone; dropping the future raises `cancel`.
    ///
    /// # Errors
    /// Where the queue is full; within, what the graph answers.
    pub async fn run<P: Send + 'static>(
        &self,
        graph: Arc<dyn Graph>,
        inputs: Vec<Tensor>,
        cancel: Arc<Cancel>,
        permit: P,
    ) -> Result<Timed, QueueFull> {
        let (answer, answered) = oneshot::channel();
        let mut abandoned = RaiseOnDrop(Some(Arc::clone(&cancel)));
        let work = Box::new(move || {
            let run = run_timed(graph.as_ref(), inputs, &cancel);
            // The graph goes first: whoever waits for it to be free must not see it in use by an ended run.
            drop(graph);
            drop(permit);
            // A caller that has gone needs no answer.
            let _ = answer.send(run);
        });
        if !self.shared.push(work, self.shared.limit) {
            return Err(QueueFull);
        }
        let run = answered.await.unwrap_or_else(|_| Timed::cancelled());
        abandoned.0 = None;
        Ok(run)
    }

    /// Has one of the threads do `work`, however many wait: for what has waited elsewhere already, in a number that is
    /// bounded there.
    pub(super) fn push(&self, work: impl FnOnce() + Send + 'static) {
        self.shared.push(Box::new(work), usize::MAX);
    }

    /// How many inferences run at once.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Inferences that wait for a thread.
    pub fn queued(&self) -> usize {
        self.shared.lock().work.len()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.ready.iter().for_each(Condvar::notify_one);
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, work: Work, limit: usize) -> bool {
        let mut queue = self.lock();
        if queue.work.len() >= limit {
            return false;
        }
        queue.work.push_back(work);
        let woken = queue.idle.pop();
        drop(queue);
        if let Some(thread) = woken {
            self.ready[thread].notify_one();
        }
        true
    }

    fn work(&self, thread: usize) {
        loop {
            let mut queue = self.lock();
            let work = loop {
                if let Some(work) = queue.work.pop_front() {
                    break work;
                }
                if queue.closed {
                    return;
                }
                // Who is woken was taken off the list; another may have taken its work since.
                if !queue.idle.contains(&thread) {
                    queue.idle.push(thread);
                }
                queue = self.ready[thread].wait(queue).unwrap_or_else(PoisonError::into_inner);
            };
            queue.idle.retain(|idle| *idle != thread);
            drop(queue);
            work();
        }
    }
}

/// Runs the graph, unless it is too late for that.
pub(super) fn run_timed(graph: &dyn Graph, inputs: Vec<Tensor>, cancel: &Cancel) -> Timed {
    if cancel.is_raised() {
        return Timed::cancelled();
    }
    let began = Instant::now();
    let outputs = caught(|| graph.run(inputs, cancel))
        .unwrap_or_else(|panic| Err(InferError::Failed(format!("the backend panicked: {panic}"))));
    Timed { outputs, began, took: began.elapsed() }
}

impl Timed {
    fn cancelled() -> Timed {
        Timed { outputs: Err(InferError::Cancelled), began: Instant::now(), took: Duration::ZERO }
    }
}

/// Raises a cancellation unless it was taken out before.
struct RaiseOnDrop(Option<Arc<Cancel>>);

impl Drop for RaiseOnDrop {
    fn drop(&mut self) {
        if let Some(cancel) = self.0.take() {
            cancel.raise();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::mpsc;

    use super::super::Signature;
    use super::*;

    /// Tells when a run began, and ends it when told so.
    struct Held {
        signature: Signature,
        began: Mutex<mpsc::Sender<()>>,
        end: Mutex<mpsc::Receiver<()>>,
    }

    impl Graph for Held {
        fn signature(&self) -> &Signature {
            &self.signature
        }

        fn run(&self, inputs: Vec<Tensor>, _: &Cancel) -> Result<Vec<Tensor>, InferError> {
            self.began.lock().unwrap().send(()).unwrap();
            self.end.lock().unwrap().recv().unwrap();
            Ok(inputs)
        }
    }

    #[tokio::test]
    async fn what_has_no_place_in_the_queue_is_told_so() {
        let ((began, has_begun), (end, ended)) = (mpsc::channel(), mpsc::channel());
        let (began, ended) = (Mutex::new(began), Mutex::new(ended));
        let graph: Arc<dyn Graph> = Arc::new(Held { signature: Signature::default(), began, end: ended });
        let pool = Pool::start(1, 1).unwrap();
        let run = || pool.run(Arc::clone(&graph), Vec::new(), Arc::default(), ());
        let (mut running, mut queued) = (pin!(run()), pin!(run()));
        assert!(
            std::future::poll_fn(|cx| std::task::Poll::Ready(running.as_mut().poll(cx))).await.is_pending()
        );
        has_begun.recv().unwrap();
        assert!(
            std::future::poll_fn(|cx| std::task::Poll::Ready(queued.as_mut().poll(cx))).await.is_pending()
        );
        assert_eq!(run().await.err(), Some(QueueFull));
        for _ in 0..2 {
            end.send(()).unwrap();
        }
        running.await.unwrap().outputs.unwrap();
        queued.await.unwrap().outputs.unwrap();
    }

    #[tokio::test]
    async fn its_threads_have_the_stack_that_models_are_tried_on() {
        /// Takes most of the stack.
        struct Deep(Signature);

        impl Graph for Deep {
            fn signature(&self) -> &Signature {
                &self.0
            }

            fn run(&self, inputs: Vec<Tensor>, _: &Cancel) -> Result<Vec<Tensor>, InferError> {
                let taken = [0_u8; STACK_BYTES / 8 * 7];
                std::hint::black_box(&taken);
                Ok(inputs)
            }
        }

        let pool = Pool::start(1, 1).unwrap();
        let graph = Arc::new(Deep(Signature::default()));
        pool.run(graph, Vec::new(), Arc::default(), ()).await.unwrap().outputs.unwrap();
    }
}
