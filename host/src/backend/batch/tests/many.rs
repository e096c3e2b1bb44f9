//! Thousands of calls at once, each of which knows its answer.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicI64};

use tokio::task::JoinSet;

use super::*;

const OWNERS: i64 = 4;
const CALLS: i64 = 6000;
const CALLERS: usize = 64;

/// Answers what it is given, after a while that depends on it. Notes when it is given rows of different
/// owners.
struct Mirror {
    signature: Signature,
    mixed: AtomicBool,
    rows: AtomicUsize,
    runs: AtomicUsize,
}

impl Mirror {
    fn new() -> Mirror {
        let port = |name: &str, datatype| Port { name: name.to_owned(), datatype, shape: None };
        let ports = vec![port("numbers", Datatype::Int64), port("names", Datatype::Bytes)];
        Mirror {
            signature: Signature { inputs: ports.clone(), outputs: ports },
            mixed: AtomicBool::new(false),
            rows: AtomicUsize::new(0),
            runs: AtomicUsize::new(0),
        }
    }
}

impl Graph for Mirror {
    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn run(&self, inputs: Vec<Tensor>, _: &Cancel) -> Result<Vec<Tensor>, InferError> {
        let numbers = numbers(&inputs[0]);
        let owners: HashSet<_> = numbers.iter().map(|number| number % OWNERS).collect();
        self.mixed.fetch_or(owners.len() > 1, Ordering::SeqCst);
        self.rows.fetch_add(inputs[0].shape()[0], Ordering::SeqCst);
        self.runs.fetch_add(1, Ordering::SeqCst);
        let pause = numbers.iter().sum::<i64>() % 7 * 50;
        std::thread::sleep(Duration::from_micros(pause.unsigned_abs()));
        // One in a hundred fails, and its whole batch with it.
        if numbers.iter().any(|number| fails(*number)) {
            return Err(InferError::Failed("as it was asked to".to_owned()));
        }
        Ok(inputs)
    }
}

fn fails(call: i64) -> bool {
    call / OWNERS % 100 == 99
}

/// Inputs that no other call has, in one of a few shapes.
fn inputs(call: i64) -> Vec<Tensor> {
    let seed = usize::try_from(call).unwrap();
    let (rows, width) = (1 + seed / 4 % 3, 1 + seed / 16 % 2);
    let names: Vec<_> = (0..rows).map(|row| format!("{}{call}.{row}", "n".repeat(seed % 5))).collect();
    vec![
        tensor(&[rows, width], &vec![call; rows * width]),
        Tensor::from_elements(vec![rows], &names).unwrap(),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_of_thousands_of_calls_gets_its_own_answer() {
    let graph = Arc::new(Mirror::new());
    let scheduler = scheduler(Arc::clone(&graph) as Arc<dyn Graph>, 3, 4).await;
    // The last owner's calls are never joined.
    let batching = |owner| (owner < 3).then_some((8, Duration::from_micros(300)));
    let lanes: Arc<[_]> = (0..OWNERS).map(|owner| lane(&format!("app{owner}"), batching(owner))).collect();
    let calls = Arc::new(AtomicI64::new(0));
    let mut callers = JoinSet::new();
    for _ in 0..CALLERS {
        let (scheduler, lanes, calls) = (Arc::clone(&scheduler), Arc::clone(&lanes), Arc::clone(&calls));
        callers.spawn(async move {
            let mut answered = 0;
            loop {
                let call = calls.fetch_add(1, Ordering::SeqCst);
                if call >= CALLS {
                    return answered;
                }
                answered += i64::from(makes(&scheduler, &lanes, call).await);
            }
        });
    }
    let mut answered = 0;
    while let Some(caller) = tokio::time::timeout(LONG, callers.join_next()).await.expect("nothing hangs") {
        answered += caller.unwrap();
    }
    until(|| entered(&scheduler) == (0, 0)).await;
    let (runs, rows) = (graph.runs.load(Ordering::SeqCst), graph.rows.load(Ordering::SeqCst));
    eprintln!("{answered} of {CALLS} calls were answered; {rows} rows in {runs} runs");
    assert!(!graph.mixed.load(Ordering::SeqCst), "rows of two owners met in a batch");
    assert!(answered > CALLS * 8 / 10 && runs < rows);
    assert!(matches!(scheduler.lock().joins, Joins::Yes));
}

/// Makes a call and checks what it is answered. Answers whether that were outputs.
async fn makes(scheduler: &Arc<Scheduler>, lanes: &[Lane], call: i64) -> bool {
    let lane = &lanes[usize::try_from(call % OWNERS).unwrap()];
    let given = inputs(call);
    // Some are in a hurry, and some go away.
    let (hurries, goes) = (call % 31 == 0, call % 37 == 0);
    let within = if hurries { Duration::from_millis(1) } else { LONG };
    let patience = if goes { Duration::from_micros(500) } else { LONG };
    let priority = Priority(u32::try_from(call / 8 % 4).unwrap());
    let settings = Call { deadline: Instant::now() + within, priority };
    let answer = scheduler.infer(lane, given.clone(), settings, Arc::new(()));
    match tokio::time::timeout(patience, answer).await {
        Ok(Ok(ran)) => {
            assert_eq!(ran.outputs, given, "call {call} has the answer of another");
            assert!(ran.rows <= 8 && (lane.batching.is_some() || ran.rows == 1), "call {call}: {ran:?}");
            return true;
        }
        Ok(Err(RunError::Infer(InferError::Cancelled))) => assert!(hurries, "call {call} was cancelled"),
        Ok(Err(RunError::Infer(InferError::Failed(_)))) => {
            assert!(fails(call), "call {call} failed with another");
        }
        Ok(Err(error)) => panic!("call {call}: {error}"),
        Err(_) => assert!(goes, "call {call} hangs"),
    }
    false
}
