//! Graphs that are held, kept and let go of, with a backend that waits.

use std::path::PathBuf;
use std::sync::mpsc;

use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

use super::*;
use crate::backend::{Cancel, Graph, InferError, Priority, Status};

/// A backend whose only graph tells when a run begins, and waits until it may go on.
struct Waiting(Arc<WaitingGraph>);

struct WaitingGraph {
    signature: Signature,
    began: UnboundedSender<()>,
    go_on: Mutex<mpsc::Receiver<()>>,
}

impl Backend for Waiting {
    fn name(&self) -> &'static str {
        "waiting"
    }

    fn status(&self) -> Status {
        let available = Ok(());
        Status { available, version: String::new(), encodings: vec![], devices: vec![], library: None }
    }

    fn version(&self) -> String {
        String::new()
    }

    fn load(&self, _: &ModelFile) -> Result<Arc<dyn Graph>, LoadError> {
        Ok(Arc::clone(&self.0) as Arc<dyn Graph>)
    }
}

impl Graph for WaitingGraph {
    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn run(&self, inputs: Vec<Tensor>, _: &Cancel) -> Result<Vec<Tensor>, InferError> {
        self.began.send(()).unwrap();
        self.go_on.lock().unwrap().recv().unwrap();
        Ok(inputs)
    }
}

fn model(backend: Waiting) -> Model {
    let file = ModelFile {
        path: PathBuf::new(),
        weights: None,
        encoding: Encoding::Onnx,
        digest: "0".repeat(64),
        target: ExecutionTarget::Cpu,
        precision: Precision::F32,
        concurrency: 1,
        derived: PathBuf::new(),
    };
    Model {
        file,
        backend: Arc::new(backend),
        idle_timeout: Duration::from_secs(600),
        cost_bytes: 1,
        owner: "app".into(),
        batching: None,
        queue_length: 4,
        kept: Arc::new(()),
    }
}

#[tokio::test]
async fn a_graph_is_unloaded_when_nobody_uses_it() {
    let ((began, mut has_begun), (go_on, going_on)) = (unbounded_channel(), mpsc::channel());
    let going_on = Mutex::new(going_on);
    let graph = WaitingGraph { signature: Signature::default(), began, go_on: going_on };
    let model = model(Waiting(Arc::new(graph)));
    let bounds = Bounds { budget_bytes: 1, max_input_bytes: 1, load: Duration::from_secs(9) };
    let residency = Residency::start(Pool::start(1, 1).unwrap(), bounds, Arc::default());
    let (moment, long) = (Duration::from_millis(30), Duration::from_secs(9));
    // What is not there has left.
    assert!(residency.unload(&model, moment).await && !residency.is_resident(&model));
    let lease = residency.acquire(&model).await.unwrap();
    assert!(residency.is_resident(&model));
    assert!(!residency.unload(&model, moment).await, "it is held");
    // A run goes on after its caller has gone, and so does the graph.
    let call = Call { deadline: Instant::now() + long, priority: Priority::default() };
    let run = tokio::spawn(async move { lease.infer(Vec::new(), call).await.map(|ran| ran.rows) });
    has_begun.recv().await.unwrap();
    run.abort();
    assert!(run.await.is_err());
    assert!(!residency.unload(&model, moment).await && residency.is_resident(&model), "it runs");
    let unloading = tokio::spawn({
        let (residency, model) = (Arc::clone(&residency), model.clone());
        async move { residency.unload(&model, long).await }
    });
    tokio::time::sleep(moment).await;
    assert!(!unloading.is_finished());
    go_on.send(()).unwrap();
    assert!(unloading.await.unwrap() && residency.is_empty());
    // And is loaded again by who wants it.
    assert!(residency.acquire(&model).await.unwrap().cold());
}

#[tokio::test]
async fn what_is_kept_warm_takes_room_from_nobody() {
    let graph = Arc::new(WaitingGraph {
        signature: Signature::default(),
        began: unbounded_channel().0,
        go_on: Mutex::new(mpsc::channel().1),
    });
    let [live, former, other] = ["1", "2", "3"].map(|digit| {
        let mut model = model(Waiting(Arc::clone(&graph)));
        model.file.digest = digit.repeat(64);
        model
    });
    let bounds = Bounds { budget_bytes: 2, max_input_bytes: 1, load: Duration::from_secs(9) };
    let residency = Residency::start(Pool::start(1, 1).unwrap(), bounds, Arc::default());
    drop(residency.acquire(&live).await.unwrap());
    // There is room: it comes.
    residency.keep_warm(&former);
    while !residency.is_resident(&former) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // There is none.
    residency.keep_warm(&other);
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(residency.len() == 2 && !residency.is_resident(&other));
    // Who is called has it all the same, and of the two the one goes that nobody called.
    residency.keep_warm(&former);
    drop(residency.acquire(&other).await.unwrap());
    assert!(residency.is_resident(&live) && !residency.is_resident(&former));
}
