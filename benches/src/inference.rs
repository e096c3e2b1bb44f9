//! What Tenon adds to an inference over calling the backend directly.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tenon::backend::available::{Backends, Libraries};
use tenon::backend::{Backend, Cancel, Encoding, ExecutionTarget, Graph, ModelFile, Precision};
use tenon::tensor::{Datatype, Tensor};

use crate::load::Request;
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
    println!("\n| a large model | median us | added |");
    println!("|---|---|---|");
    for backend in &backends {
        added(with, backend, onnxruntime, mobilenet).await?;
    }
    Ok(())
}

/// What a call over HTTP adds to a run of a large model: the bare loop and the calls in turn, round after round.
async fn added(with: &With, backend: &str, onnxruntime: Option<&Path>, model: &Path) -> anyhow::Result<()> {
    const SHAPE: [usize; 4] = [1, 3, 224, 224];
    let tenon = server(with, backend, onnxruntime, model)?;
    let image = vec![0; SHAPE.iter().product::<usize>() * 4];
    let request = Request::post("/", "application/octet-stream", &image);
    let once = With { rounds: 1, ..with.clone() };
    let (mut bare, mut called) = (Vec::new(), Vec::new());
    for _ in 0..with.rounds.max(1) {
        bare.push(direct(backend, onnxruntime, model, &SHAPE)?);
        let seen = interleaved(&once, &[("", &tenon, request.clone())], 1).await?;
        anyhow::ensure!(seen.iter().all(|seen| seen.failed == 0), "tenon did not answer as it should");
        called.extend(seen.iter().map(|seen| seen.p50));
    }
    bare.sort_unstable();
    called.sort_unstable();
    let (bare, called) = (bare[bare.len() / 2], called[called.len() / 2]);
    let share = (called.as_secs_f64() / bare.as_secs_f64() - 1.0) * 100.0;
    println!("| {backend} in a bare loop: mobilenet | {:.0} | |", us(bare));
    println!("| tenon, {backend}: mobilenet | {:.0} | {share:.1} % |", us(called));
    Ok(())
}

fn server(with: &With, backend: &str, onnxruntime: Option<&Path>, model: &Path) -> anyhow::Result<Server> {
    let grant = format!(
        "[component.f.tool.tenon.models.digits]\npath = {:?}\nbackend = \"{backend}\"\n",
        model.display().to_string()
    );
    let library = onnxruntime
        .map(|path| format!("[inference.onnxruntime]\nlibrary = {:?}\n", path.display().to_string()));
    let app = manifest(&guest("bench_digits.wasm"), &grant);
    Server::tenon(&with.tenon, &app, &library.unwrap_or_default())
}

fn us(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

async fn served(with: &With, backend: &str, onnxruntime: Option<&Path>, model: &Path) -> anyhow::Result<()> {
    let tenon = server(with, backend, onnxruntime, model)?;
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

/// The median time of one run of a graph, with nothing around it.
fn direct(name: &str, onnxruntime: Option<&Path>, model: &Path, shape: &[usize]) -> anyhow::Result<Duration> {
    let derived = tempfile::tempdir()?;
    let graph = load(name, onnxruntime.map(Path::to_owned), model, derived.path(), 1)?;
    let elements: usize = shape.iter().product();
    let input = || Tensor::new(Datatype::Fp32, shape.to_vec(), Bytes::from(vec![0; elements * 4]));
    let mut times = Vec::new();
    let end = Instant::now() + Duration::from_secs(3);
    while Instant::now() < end || times.len() < 10 {
        let input = vec![input()?];
        let started = Instant::now();
        graph.run(input, &Cancel::default())?;
        times.push(started.elapsed());
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
