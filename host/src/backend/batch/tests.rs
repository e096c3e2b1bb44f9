//! Who runs when, with whom, and what each caller is answered.

use std::sync::mpsc;

use bytes::Bytes;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinHandle;

use super::*;
use crate::backend::{Port, Signature};
use crate::tensor::Datatype;

mod many;

const LONG: Duration = Duration::from_secs(60);

/// What a [`Fake`] does with the numbers that it is given.
type Work = fn(&Tensor, &Cancel) -> Result<Tensor, InferError>;

/// A graph that tells the numbers that each run is given, waits until it may go on, and then does its work.
struct Fake {
    signature: Signature,
    work: Work,
    few_shapes: bool,
    began: UnboundedSender<Vec<i64>>,
    go_on: Mutex<mpsc::Receiver<()>>,
}

impl Graph for Fake {
    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn prefers_few_shapes(&self) -> bool {
        self.few_shapes
    }

    fn run(&self, inputs: Vec<Tensor>, cancel: &Cancel) -> Result<Vec<Tensor>, InferError> {
        self.began.send(numbers(&inputs[0])).unwrap();
        self.go_on.lock().unwrap().recv().unwrap();
        Ok(vec![(self.work)(&inputs[0], cancel)?])
    }
}

fn echo(input: &Tensor, _: &Cancel) -> Result<Tensor, InferError> {
    Ok(input.clone())
}

fn refuses_negatives(input: &Tensor, _: &Cancel) -> Result<Tensor, InferError> {
    match numbers(input).iter().find(|number| **number < 0) {
        Some(number) => Err(InferError::InvalidInput(format!("{number} is negative"))),
        None => Ok(input.clone()),
    }
}

fn sums(input: &Tensor, _: &Cancel) -> Result<Tensor, InferError> {
    Ok(tensor(&[1], &[numbers(input).iter().sum()]))
}

fn panics(_: &Tensor, _: &Cancel) -> Result<Tensor, InferError> {
    panic!("so be it")
}

fn waits_for_cancel(_: &Tensor, cancel: &Cancel) -> Result<Tensor, InferError> {
    while !cancel.is_raised() {
        std::thread::sleep(Duration::from_millis(1));
    }
    Err(InferError::Cancelled)
}

fn tensor(shape: &[usize], numbers: &[i64]) -> Tensor {
    let data: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    Tensor::new(Datatype::Int64, shape.to_vec(), Bytes::from(data)).unwrap()
}

fn tensor_of(number: f32) -> Tensor {
    Tensor::new(Datatype::Fp32, vec![1, 1], Bytes::copy_from_slice(&number.to_le_bytes())).unwrap()
}

fn numbers(tensor: &Tensor) -> Vec<i64> {
    tensor.data().as_chunks::<8>().0.iter().map(|bytes| i64::from_le_bytes(*bytes)).collect()
}

/// One input and one output, of which nothing is said but the names, so that nothing is tried out before.
fn signature() -> Signature {
    let port = |name: &str| Port { name: name.to_owned(), datatype: Datatype::Int64, shape: None };
    Signature { inputs: vec![port("x")], outputs: vec![port("y")] }
}

fn lane(owner: &str, batching: Option<(usize, Duration)>) -> Lane {
    let batching = batching.map(|(max_size, max_delay)| Batching { max_size, max_delay });
    Lane { owner: owner.into(), batching, queue_length: 1024 }
}

/// A scheduler, and the strings of its graph.
struct Stage {
    scheduler: Arc<Scheduler>,
    began: UnboundedReceiver<Vec<i64>>,
    go_on: mpsc::Sender<()>,
}

type Answer = JoinHandle<Result<Ran, RunError>>;

impl Stage {
    async fn new(concurrency: usize, work: Work) -> Stage {
        Stage::of(concurrency, work, false).await
    }

    async fn of(concurrency: usize, work: Work, few_shapes: bool) -> Stage {
        let ((began, has_begun), (go_on, going_on)) = (unbounded_channel(), mpsc::channel());
        let fake = Fake { signature: signature(), work, few_shapes, began, go_on: Mutex::new(going_on) };
        let scheduler = scheduler(Arc::new(fake), concurrency, 4).await;
        Stage { scheduler, began: has_begun, go_on }
    }

    /// Calls, and waits until the call runs or waits in the queue.
    async fn call(&self, lane: &Lane, numbers: &[i64]) -> Answer {
        self.call_with(lane, tensor(&[numbers.len()], numbers), Priority::default(), LONG).await
    }

    async fn call_with(&self, lane: &Lane, input: Tensor, priority: Priority, within: Duration) -> Answer {
        let (scheduler, lane) = (Arc::clone(&self.scheduler), lane.clone());
        let call = Call { deadline: Instant::now() + within, priority };
        let before = entered(&self.scheduler);
        let answer =
            tokio::spawn(async move { scheduler.infer(&lane, vec![input], call, Arc::new(())).await });
        while entered(&self.scheduler) == before && !answer.is_finished() {
            tokio::task::yield_now().await;
        }
        answer
    }

    /// The numbers of the next run, which goes on at once.
    async fn next(&mut self) -> Vec<i64> {
        let numbers = self.began().await;
        self.go_on.send(()).unwrap();
        numbers
    }

    async fn began(&mut self) -> Vec<i64> {
        let next = tokio::time::timeout(Duration::from_secs(10), self.began.recv());
        next.await.expect("something runs").unwrap()
    }

    /// Nothing runs that was not told, and nothing waits.
    async fn is_quiet(&mut self) {
        let mut others = Vec::new();
        self.is_quiet_but_for(&mut others).await;
        assert!(others.is_empty(), "{others:?}");
    }

    /// Nothing runs any more, and nothing waits; `others` is what ran that was not told yet.
    async fn is_quiet_but_for(&mut self, others: &mut Vec<i64>) {
        until(|| entered(&self.scheduler).0 == 0).await;
        assert_eq!(entered(&self.scheduler), (0, 0));
        while let Ok(run) = self.began.try_recv() {
            others.extend(run);
        }
    }
}

/// A scheduler that joins calls.
async fn scheduler(graph: Arc<dyn Graph>, concurrency: usize, threads: usize) -> Arc<Scheduler> {
    let about = About { digest: "0".repeat(12), backend: "fake", precision: Precision::F32 };
    let pool = Arc::new(Pool::start(threads, 16).unwrap());
    let scheduler = Scheduler::new(Paced::new(graph), concurrency, pool, Arc::default(), about);
    scheduler.lock().joins = Joins::Yes;
    scheduler
}

/// How many calls run, and how many wait.
fn entered(scheduler: &Scheduler) -> (usize, usize) {
    let state = scheduler.lock();
    (state.running, state.queue.len())
}

async fn until(is_so: impl Fn() -> bool) {
    let patience = Instant::now() + Duration::from_secs(10);
    while !is_so() {
        assert!(Instant::now() < patience, "it does not happen");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn answered(answer: Answer) -> Ran {
    tokio::time::timeout(Duration::from_secs(10), answer).await.expect("in time").unwrap().unwrap()
}

async fn refused(answer: Answer) -> RunError {
    tokio::time::timeout(Duration::from_secs(10), answer).await.expect("in time").unwrap().unwrap_err()
}

#[tokio::test]
async fn a_lone_call_waits_for_nothing() {
    let mut stage = Stage::new(2, echo).await;
    let call = stage.call(&lane("a", Some((8, LONG))), &[1, 2]).await;
    assert_eq!(stage.next().await, [1, 2]);
    let ran = answered(call).await;
    assert_eq!(numbers(&ran.outputs[0]), [1, 2]);
    assert!(ran.leader && ran.rows == 2 && ran.queue < Duration::from_secs(5), "{ran:?}");
    stage.is_quiet().await;
}

#[tokio::test]
async fn what_waits_goes_together_when_a_run_ends() {
    let mut stage = Stage::new(1, echo).await;
    let batching = lane("a", Some((8, LONG)));
    let first = stage.call(&batching, &[0]).await;
    let mut calls = Vec::new();
    for numbers in [&[1, 2][..], &[3], &[4, 5, 6]] {
        calls.push(stage.call(&batching, numbers).await);
    }
    assert_eq!(stage.next().await, [0]);
    assert_eq!(stage.next().await, [1, 2, 3, 4, 5, 6]);
    assert_eq!(answered(first).await.rows, 1);
    let mut leaders = 0;
    for (call, expected) in calls.into_iter().zip([&[1, 2][..], &[3], &[4, 5, 6]]) {
        let ran = answered(call).await;
        assert_eq!((numbers(&ran.outputs[0]).as_slice(), ran.rows), (expected, 6));
        leaders += usize::from(ran.leader);
    }
    assert_eq!(leaders, 1);
    stage.is_quiet().await;
}

/// Another run under way does not keep a place empty that a run has left.
#[tokio::test]
async fn a_place_that_a_run_leaves_is_taken_at_once() {
    let mut stage = Stage::new(2, echo).await;
    let batching = lane("a", Some((8, LONG)));
    let alone = lane("a", None);
    let long = stage.call(&alone, &[100]).await;
    assert_eq!(stage.began().await, [100]);
    let short = stage.call(&alone, &[101]).await;
    let waiting = [stage.call(&batching, &[1]).await, stage.call(&batching, &[2]).await];
    assert_eq!(entered(&stage.scheduler), (2, 2));
    // One of the two goes on.
    stage.go_on.send(()).unwrap();
    assert_eq!(stage.began().await, [101]);
    assert_eq!(stage.began().await, [1, 2]);
    for _ in 0..2 {
        stage.go_on.send(()).unwrap();
    }
    for call in [long, short].into_iter().chain(waiting) {
        answered(call).await;
    }
}

#[tokio::test]
async fn a_full_batch_takes_a_free_place() {
    let mut stage = Stage::new(2, echo).await;
    let batching = lane("a", Some((4, LONG)));
    let first = stage.call(&batching, &[0]).await;
    assert_eq!(stage.began().await, [0]);
    let mut calls = vec![first];
    for numbers in [&[1][..], &[2, 3], &[4], &[5]] {
        calls.push(stage.call(&batching, numbers).await);
    }
    assert_eq!(stage.began().await, [1, 2, 3, 4]);
    for _ in 0..3 {
        stage.go_on.send(()).unwrap();
    }
    assert_eq!(stage.began().await, [5]);
    for call in calls {
        answered(call).await;
    }
    stage.is_quiet().await;
}

#[tokio::test]
async fn nobody_waits_longer_than_the_delay_for_others() {
    let mut stage = Stage::new(2, echo).await;
    let delay = Duration::from_millis(30);
    let batching = lane("a", Some((8, delay)));
    let first = stage.call(&batching, &[0]).await;
    assert_eq!(stage.began().await, [0]);
    let started = Instant::now();
    let calls = [stage.call(&batching, &[1]).await, stage.call(&batching, &[2]).await];
    assert_eq!(stage.began().await, [1, 2]);
    let waited = started.elapsed();
    assert!(waited >= delay && waited < delay * 10, "{waited:?}");
    for _ in 0..2 {
        stage.go_on.send(()).unwrap();
    }
    for call in [first].into_iter().chain(calls) {
        answered(call).await;
    }
    assert!(stage.scheduler.lock().alarm.is_none());
}

#[tokio::test]
async fn nobody_misses_its_deadline_because_of_the_delay() {
    let mut stage = Stage::new(2, echo).await;
    let batching = lane("a", Some((8, LONG)));
    let first = stage.call(&batching, &[0]).await;
    assert_eq!(stage.began().await, [0]);
    let second = Duration::from_secs(1);
    let hurried = stage.call_with(&batching, tensor(&[1], &[1]), Priority::default(), second).await;
    assert_eq!(entered(&stage.scheduler), (1, 1));
    assert_eq!(stage.began().await, [1]);
    for _ in 0..2 {
        stage.go_on.send(()).unwrap();
    }
    for call in [first, hurried] {
        answered(call).await;
    }
}

#[tokio::test]
async fn only_what_fits_is_joined() {
    let mut stage = Stage::new(1, echo).await;
    let batching = lane("a", Some((4, LONG)));
    let first = stage.call(&batching, &[0]).await;
    assert_eq!(stage.began().await, [0]);
    let usual = Priority::default();
    let calls = [
        (&batching, tensor(&[1, 2], &[10, 11])),
        (&batching, tensor(&[1], &[20])),
        (&batching, tensor(&[2, 2], &[12, 13, 14, 15])),
        // Another model's settings, none, another owner, too many rows, and none.
        (&lane("a", Some((5, LONG))), tensor(&[1], &[30])),
        (&lane("a", None), tensor(&[1], &[40])),
        (&batching, tensor(&[5], &[50, 51, 52, 53, 54])),
        (&batching, tensor(&[], &[60])),
        (&batching, tensor(&[3], &[21, 22, 23])),
        (&batching, tensor(&[1], &[24])),
    ];
    let mut answers = Vec::new();
    for (lane, input) in calls {
        answers.push((input.clone(), stage.call_with(lane, input, usual, LONG).await));
    }
    stage.go_on.send(()).unwrap();
    let mut runs = Vec::new();
    for _ in 0..7 {
        runs.push(stage.next().await);
    }
    let expected =
        [&[10, 11, 12, 13, 14, 15][..], &[20, 21, 22, 23], &[30], &[40], &[50, 51, 52, 53, 54], &[60], &[24]];
    assert_eq!(runs, expected);
    answered(first).await;
    for (input, answer) in answers {
        assert_eq!(answered(answer).await.outputs, [input]);
    }
    stage.is_quiet().await;
}

#[tokio::test]
async fn higher_priorities_go_first_and_then_who_came_first() {
    let mut stage = Stage::new(1, echo).await;
    let alone = lane("a", None);
    let mut calls = vec![stage.call(&alone, &[0]).await];
    for (priority, number) in [(0, 1), (3, 2), (1, 3), (2, 4), (9, 5), (1, 6), (3, 7)] {
        let input = tensor(&[1], &[number]);
        calls.push(stage.call_with(&alone, input, Priority(priority), LONG).await);
    }
    for expected in [0, 3, 6, 1, 4, 2, 7, 5] {
        assert_eq!(stage.next().await, [expected]);
    }
    for call in calls {
        answered(call).await;
    }
}

/// However high the priorities that one of them asks for.
#[tokio::test]
async fn owners_take_turns() {
    let mut stage = Stage::new(1, echo).await;
    let (greedy, modest) = (lane("greedy", Some((2, LONG))), lane("modest", None));
    let mut calls = vec![stage.call(&greedy, &[0]).await];
    for number in 1..=6 {
        calls.push(stage.call_with(&greedy, tensor(&[1], &[number]), Priority(1), LONG).await);
    }
    for number in [11, 12] {
        calls.push(stage.call_with(&modest, tensor(&[1], &[number]), Priority(9), LONG).await);
    }
    let mut runs = Vec::new();
    for _ in 0..6 {
        runs.push(stage.next().await);
    }
    assert_eq!(runs, [vec![0], vec![1, 2], vec![11], vec![3, 4], vec![12], vec![5, 6]]);
    for call in calls {
        answered(call).await;
    }
}

#[tokio::test]
async fn what_is_past_its_deadline_is_not_computed() {
    let mut stage = Stage::new(1, echo).await;
    for batching in [None, Some((8, LONG))] {
        let lane = lane("a", batching);
        let first = stage.call(&lane, &[0]).await;
        assert_eq!(stage.began().await, [0]);
        let moment = Duration::from_millis(20);
        let late = stage.call_with(&lane, tensor(&[1], &[1]), Priority::default(), moment).await;
        let patient = stage.call(&lane, &[2]).await;
        // Freed at its own deadline, while what it waits for goes on.
        assert!(matches!(refused(late).await, RunError::Infer(InferError::Cancelled)));
        assert_eq!(entered(&stage.scheduler), (1, 1));
        stage.go_on.send(()).unwrap();
        assert_eq!(stage.next().await, [2]);
        answered(first).await;
        answered(patient).await;
        stage.is_quiet().await;
    }
}

#[tokio::test]
async fn what_nobody_waits_for_is_not_computed() {
    let mut stage = Stage::new(1, echo).await;
    let batching = lane("a", Some((8, LONG)));
    let first = stage.call(&batching, &[0]).await;
    let (gone, stays) = (stage.call(&batching, &[1]).await, stage.call(&batching, &[2]).await);
    gone.abort();
    until(|| entered(&stage.scheduler) == (1, 1)).await;
    for expected in [0, 2] {
        assert_eq!(stage.next().await, [expected]);
    }
    answered(first).await;
    answered(stays).await;
    stage.is_quiet().await;
}

#[tokio::test]
async fn a_batch_is_stopped_when_the_last_of_its_callers_has_gone() {
    let mut stage = Stage::new(1, waits_for_cancel).await;
    let batching = lane("a", Some((8, LONG)));
    let first = stage.call(&batching, &[0]).await;
    let usual = Priority::default();
    let moment = Duration::from_millis(50);
    let gone = stage.call(&batching, &[1]).await;
    let late = stage.call_with(&batching, tensor(&[1], &[2]), usual, moment).await;
    let last = stage.call(&batching, &[3]).await;
    assert_eq!(stage.next().await, [0]);
    first.abort();
    assert_eq!(stage.next().await, [1, 2, 3]);
    gone.abort();
    assert!(matches!(refused(late).await, RunError::Infer(InferError::Cancelled)));
    assert_eq!(entered(&stage.scheduler).0, 1);
    last.abort();
    stage.is_quiet().await;
}

#[tokio::test]
async fn one_bad_call_spoils_no_other() {
    let mut stage = Stage::new(1, refuses_negatives).await;
    let batching = lane("a", Some((8, LONG)));
    let mut calls = vec![stage.call(&batching, &[0]).await];
    for number in [1, -2, 3] {
        calls.push(stage.call(&batching, &[number]).await);
    }
    // Who comes meanwhile waits behind those that came before.
    let mut runs = vec![stage.next().await];
    runs.push(stage.began().await);
    calls.push(stage.call(&batching, &[4]).await);
    stage.go_on.send(()).unwrap();
    for _ in 0..4 {
        runs.push(stage.next().await);
    }
    assert_eq!(runs, [vec![0], vec![1, -2, 3], vec![1], vec![-2], vec![3], vec![4]]);
    for (call, number) in calls.into_iter().zip([0, 1, -2, 3, 4]) {
        match call.await.unwrap() {
            Ok(ran) => assert_eq!((numbers(&ran.outputs[0]), ran.rows, ran.leader), (vec![number], 1, true)),
            Err(error) => assert_eq!((error.to_string().as_str(), number), ("-2 is negative", -2)),
        }
    }
    stage.is_quiet().await;
}

#[tokio::test]
async fn outputs_without_rows_end_the_joining() {
    let mut stage = Stage::new(1, sums).await;
    let batching = lane("a", Some((8, LONG)));
    for expected in [vec![vec![0], vec![1, 2], vec![1], vec![2]], vec![vec![0], vec![1], vec![2]]] {
        let mut calls = Vec::new();
        for number in 0..3 {
            calls.push(stage.call(&batching, &[number]).await);
        }
        for run in expected {
            assert_eq!(stage.next().await, run);
        }
        for (number, call) in calls.into_iter().enumerate() {
            let expected = i64::try_from(number).unwrap();
            assert_eq!(numbers(&answered(call).await.outputs[0]), [expected]);
        }
    }
    assert!(matches!(stage.scheduler.lock().joins, Joins::No));
}

#[tokio::test]
async fn a_panic_is_an_error_for_each_caller() {
    let mut stage = Stage::new(1, panics).await;
    let batching = lane("a", Some((8, LONG)));
    let mut calls = Vec::new();
    for number in 0..4 {
        calls.push(stage.call(&batching, &[number]).await);
    }
    for run in [vec![0], vec![1, 2, 3], vec![1], vec![2], vec![3]] {
        assert_eq!(stage.next().await, run);
    }
    for call in calls {
        let error = refused(call).await.to_string();
        assert!(error.contains("the backend panicked: so be it"), "{error}");
    }
    stage.is_quiet().await;
}

#[tokio::test]
async fn a_full_queue_refuses_and_leaves_room_for_others() {
    let mut stage = Stage::new(1, echo).await;
    let narrow = Lane { queue_length: 2, ..lane("a", None) };
    let mut calls = Vec::new();
    for number in 0..3 {
        calls.push(stage.call(&narrow, &[number]).await);
    }
    let error = refused(stage.call(&narrow, &[3]).await).await;
    assert!(matches!(&error, RunError::Queue(Overloaded::Model(2))));
    assert!(error.to_string().contains("2 inferences wait for the model already"), "{error}");
    calls.push(stage.call(&lane("b", None), &[4]).await);
    for expected in [0, 1, 4, 2] {
        assert_eq!(stage.next().await, [expected]);
    }
    for call in calls {
        answered(call).await;
    }
}

#[tokio::test]
async fn batches_for_an_engine_of_few_shapes_are_powers_of_two() {
    let mut stage = Stage::of(1, echo, true).await;
    let batching = lane("a", Some((12, LONG)));
    let mut calls = vec![stage.call(&batching, &[0]).await];
    for number in 1..=7 {
        calls.push(stage.call(&batching, &[number]).await);
    }
    // No sum from the first on is a power of two: what no batch can be made of goes as it came.
    calls.push(stage.call(&batching, &[8, 8, 8]).await);
    calls.push(stage.call(&batching, &[9, 9, 9]).await);
    for run in [&[0][..], &[1, 2, 3, 4], &[5, 6], &[7, 8, 8, 8], &[9, 9, 9]] {
        assert_eq!(stage.next().await, run);
    }
    for call in calls {
        answered(call).await;
    }
}

/// Four threads, a run of which the pool's queue would take sixteen more.
#[tokio::test]
async fn no_more_run_at_once_than_may() {
    for (concurrency, expected) in [(3, 3), (9, 4)] {
        let mut stage = Stage::new(concurrency, echo).await;
        let mut calls = Vec::new();
        for number in 0..10 {
            calls.push(stage.call(&lane("a", None), &[number]).await);
        }
        assert_eq!(entered(&stage.scheduler), (expected, 10 - expected));
        for _ in 0..10 {
            stage.next().await;
        }
        for call in calls {
            answered(call).await;
        }
    }
}

/// A graph of one FP32 [-1, 1] to another, which tells the rows of each run.
struct Told {
    signature: Signature,
    depends: bool,
    told: UnboundedSender<Vec<i64>>,
}

impl Graph for Told {
    fn signature(&self) -> &Signature {
        &self.signature
    }

    /// Leaves the rows as they are, or gives each the first one's value.
    fn run(&self, inputs: Vec<Tensor>, _: &Cancel) -> Result<Vec<Tensor>, InferError> {
        let input = &inputs[0];
        self.told.send(vec![i64::try_from(input.len()).unwrap()]).unwrap();
        std::thread::sleep(Duration::from_millis(20));
        if !self.depends {
            return Ok(inputs);
        }
        let data = input.data()[..4].repeat(input.len());
        Ok(vec![Tensor::new(input.datatype(), input.shape().to_vec(), data.into()).unwrap()])
    }
}

#[tokio::test]
async fn rows_are_tried_out_before_the_first_calls_are_joined() {
    for (depends, expected) in [(false, &[1, 1, 1, 2, 1, 1, 2][..]), (true, &[1, 1, 1, 2, 1, 1, 1, 1])] {
        let port = |name: &str| {
            let shape = Some(vec![None, Some(1)]);
            Port { name: name.to_owned(), datatype: Datatype::Fp32, shape }
        };
        let signature = Signature { inputs: vec![port("x")], outputs: vec![port("y")] };
        let (told, began) = unbounded_channel();
        let scheduler = scheduler(Arc::new(Told { signature, depends, told }), 1, 1).await;
        scheduler.lock().joins = Joins::Unknown;
        let mut stage = Stage { scheduler, began, go_on: mpsc::channel().0 };
        let batching = lane("a", Some((8, LONG)));
        let input = tensor_of(1.0);
        let mut runs = Vec::new();
        // The first three run alone: those that meet are what it is tried out for.
        for calls in [2, 3] {
            let mut answers = Vec::new();
            for _ in 0..calls {
                answers.push(stage.call_with(&batching, input.clone(), Priority::default(), LONG).await);
            }
            for answer in answers {
                assert_eq!(answered(answer).await.outputs, std::slice::from_ref(&input));
            }
            stage.is_quiet_but_for(&mut runs).await;
        }
        assert_eq!(runs, expected);
    }
}

#[tokio::test]
async fn a_call_whose_outputs_have_no_rows_is_a_warning() {
    let mut stage = Stage::new(1, sums).await;
    let call = stage.call(&lane("a", Some((8, LONG))), &[1, 2]).await;
    stage.next().await;
    assert_eq!(numbers(&answered(call).await.outputs[0]), [3]);
    assert!(matches!(stage.scheduler.lock().joins, Joins::No));
}
