//! What Tenon adds to an inference over calling the backend directly.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tenon::backend::available::{Backends, Libraries};
use tenon::backend::{Backend, Cancel, Encoding, ExecutionTarget, Graph, ModelFile, Precision};
use tenon::tensor::{Datatype, Tensor};

use crate::load::{Caller, Request};
use crate::peers::request::binary;
use crate::{Server, With, columns, guest, interleaved, manifest, plain_server, repository};

/// Tables for the digits model, and for a large one where it is given.
///
/// # Errors
/// Where a server or a backend fails.
pub async fn run(with: &With, onnxruntime: Option<&Path>, mobilenet: Option<&Path>) -> anyhow::Result<()> {
    println!("| server | callers | req/s | p50 us | p99 us | server CPU us/req | failed | p50, plain = 1 |");
    println!("|---|---|---|---|---|---|---|---|");
    let mut backends = vec!["tract"];
    if onnxruntime.is_some() {
        backends.push("onnxruntime");
    }
    let digits = repository().join("examples/digits/model/digits.onnx");
    for backend in &backends {
        let direct = direct(backend, onnxruntime, &digits, &[1, 1, 8, 8])?;
        println!(
            "| {backend} in a bare loop: digits | 1 | {:.0} | {:.1} | | | | |",
            1.0 / direct.as_secs_f64(),
            us(direct)
        );
        served(with, backend, onnxruntime, &digits).await?;
    }
    let Some(mobilenet) = mobilenet else { return Ok(()) };
    println!("\n| a large model | median us | added | added, without the transport |");
    println!("|---|---|---|---|");
    for backend in &backends {
        added(with, backend, onnxruntime, mobilenet).await?;
    }
    Ok(())
}

/// What a call over HTTP adds to a run of a large model: the bare loop, a plain server that reads the same body and runs
/// nothing, and the calls take turns of less than a second, so that whatever else the machine does meets all of them.
async fn added(with: &With, backend: &str, onnxruntime: Option<&Path>, model: &Path) -> anyhow::Result<()> {
    const SHAPE: [usize; 4] = [1, 3, 224, 224];
    /// Runs in a turn. The first ones find the processor's caches cold, and are not counted.
    const RUNS: usize = 25;
    const COLD: usize = 5;
    let derived = tempfile::tempdir()?;
    let bare = Bare {
        graph: load(backend, onnxruntime.map(Path::to_owned), model, derived.path(), 1)?,
        shape: SHAPE.to_vec(),
    };
    let raw = server(with, backend, onnxruntime, model, "bench_digits.wasm")?;
    let passing = server(with, backend, onnxruntime, model, "bench_image.wasm")?;
    let plain = plain_server()?;
    let image = vec![0; SHAPE.iter().product::<usize>() * 4];
    let body = Request::post("/", "application/octet-stream", &image);
    let calls = [
        ("a plain server that reads the image", &plain, body.clone()),
        ("the image as a body, made a tensor by the function", &raw, body),
        ("REST binary, the tensor passed on", &passing, binary("/v2/models/f/infer", &SHAPE, &image)),
    ];
    let mut callers = Vec::new();
    for (_, server, _) in &calls {
        callers.push(Caller::connect(server.address).await?);
    }
    let (mut direct, mut called) = (Vec::new(), vec![Vec::new(); calls.len()]);
    let end =
        Instant::now() + Duration::from_secs_f64(with.seconds * 4.0) * u32::try_from(with.rounds.max(1))?;
    while Instant::now() < end {
        for run in 0..RUNS {
            let took = bare.run()?;
            direct.extend((run >= COLD).then_some(took));
        }
        for ((caller, (_, _, request)), times) in callers.iter_mut().zip(&calls).zip(&mut called) {
            for run in 0..RUNS {
                let (took, status) = caller.call(request).await?;
                anyhow::ensure!(status == 200, "it was answered with {status}");
                times.extend((run >= COLD).then_some(took));
            }
        }
    }
    let median = |times: &mut Vec<Duration>| {
        times.sort_unstable();
        times[times.len() / 2].as_secs_f64()
    };
    let direct = median(&mut direct);
    let called: Vec<_> = called.iter_mut().map(median).collect();
    println!("| {backend} in a bare loop: mobilenet | {:.0} | | |", direct * 1e6);
    println!("| {} | {:.0} | | |", calls[0].0, called[0] * 1e6);
    for ((name, ..), took) in calls.iter().zip(&called).skip(1) {
        let percent = |took: f64| (took / direct - 1.0) * 100.0;
        let (all, own) = (percent(*took), percent(took - called[0]));
        println!("| tenon, {backend}: mobilenet, {name} | {:.0} | {all:.1} % | {own:.1} % |", took * 1e6);
    }
    Ok(())
}

fn server(
    with: &With,
    backend: &str,
    onnxruntime: Option<&Path>,
    model: &Path,
    wasm: &str,
) -> anyhow::Result<Server> {
    let grant = format!(
        "[component.f.tool.tenon.models.digits]\npath = {:?}\nbackend = \"{backend}\"\n",
        model.display().to_string()
    );
    let library = onnxruntime
        .map(|path| format!("[inference.onnxruntime]\nlibrary = {:?}\n", path.display().to_string()));
    let app = manifest(&guest(wasm), &grant);
    Server::tenon(&with.tenon, &app, &library.unwrap_or_default())
}

fn us(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

async fn served(with: &With, backend: &str, onnxruntime: Option<&Path>, model: &Path) -> anyhow::Result<()> {
    let tenon = server(with, backend, onnxruntime, model, "bench_digits.wasm")?;
    let plain = plain_server()?;
    let body: Vec<u8> = (0..64u8).flat_map(|i| (f32::from(i) / 64.0).to_le_bytes()).collect();
    let request = Request::post("/", "application/octet-stream", &body);
    let name = format!("tenon, {backend}: digits");
    for callers in [1, 16, 128] {
        let targets = [("plain server", &plain, request.clone()), (name.as_str(), &tenon, request.clone())];
        let seen = interleaved(with, &targets, callers).await?;
        let base = seen[0].p50.as_secs_f64();
        for ((name, ..), seen) in targets.iter().zip(&seen) {
            println!("| {name} | {callers} | {} | {:.2} |", columns(seen), seen.p50.as_secs_f64() / base);
        }
    }
    Ok(())
}

/// A graph with nothing around it.
struct Bare {
    graph: Arc<dyn Graph>,
    shape: Vec<usize>,
}

impl Bare {
    fn run(&self) -> anyhow::Result<Duration> {
        let elements: usize = self.shape.iter().product();
        let input = Tensor::new(Datatype::Fp32, self.shape.clone(), Bytes::from(vec![0; elements * 4]))?;
        let started = Instant::now();
        self.graph.run(vec![input], &Cancel::default())?;
        Ok(started.elapsed())
    }
}

/// The median time of one run of a graph.
fn direct(name: &str, onnxruntime: Option<&Path>, model: &Path, shape: &[usize]) -> anyhow::Result<Duration> {
    let derived = tempfile::tempdir()?;
    let graph = load(name, onnxruntime.map(Path::to_owned), model, derived.path(), 1)?;
    let bare = Bare { graph, shape: shape.to_vec() };
    let mut times = Vec::new();
    let end = Instant::now() + Duration::from_secs(3);
    while Instant::now() < end || times.len() < 10 {
        times.push(bare.run()?);
    }
    times.sort_unstable();
    Ok(times[times.len() / 2])
}

/// A graph, straight from its backend.
///
/// # Errors
/// Where the backend is not there or refuses the model.
pub fn load(
    name: &str,
    onnxruntime: Option<PathBuf>,
    model: &Path,
    derived: &Path,
    concurrency: usize,
) -> anyhow::Result<Arc<dyn Graph>> {
    let backends = Backends::find(&[name], &Libraries { onnxruntime, ..Libraries::default() });
    let backend: Arc<dyn Backend> = backends.choose(Some(name), Encoding::Onnx)?;
    let file = ModelFile {
        path: model.to_owned(),
        weights: None,
        encoding: Encoding::Onnx,
        digest: format!("{:064x}", model.as_os_str().len()),
        target: ExecutionTarget::Cpu,
        precision: Precision::F32,
        concurrency,
        derived: derived.to_owned(),
    };
    Ok(backend.load(&file)?)
}
