//! Cold starts by stage: what stands between a request and its answer when nothing is in memory.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tenon::backend::available::{Backends, Libraries};
use tenon::backend::{Backend, Cancel, Encoding, ExecutionTarget, ModelFile, Precision};
use tenon::instance::compile::compile;
use tenon::instance::engine::{EngineLimits, Engines};
use tenon::tensor::{Datatype, Tensor};

use crate::{guest, repository};

/// Medians of nine cold starts for each model and backend that is there.
///
/// # Errors
/// Where a backend refuses a model, or the guests are not built.
pub fn run(
    onnxruntime: Option<PathBuf>,
    openvino: Option<PathBuf>,
    minilm: Option<PathBuf>,
) -> anyhow::Result<()> {
    let libraries = Libraries { onnxruntime, openvino, search: Vec::new() };
    let backends = Backends::find(&["tract", "onnxruntime", "openvino"], &libraries);
    component()?;
    println!("| model | backend | first load ms | later loads ms | first run ms | second run ms |");
    println!("|---|---|---|---|---|---|");
    let digits = repository().join("examples/digits/model/digits.onnx");
    for backend in backends.iter().filter(|backend| backend.status().available.is_ok()) {
        graph("digits", backend, &digits, &digits_inputs()?)?;
        if let Some(minilm) = &minilm {
            graph("minilm 1x32", backend, minilm, &minilm_inputs()?)?;
        }
    }
    Ok(())
}

fn digits_inputs() -> anyhow::Result<Vec<Tensor>> {
    Ok(vec![Tensor::new(Datatype::Fp32, vec![1, 1, 8, 8], Bytes::from(vec![0; 256]))?])
}

fn minilm_inputs() -> anyhow::Result<Vec<Tensor>> {
    let ones: Vec<u8> = std::iter::repeat_n(1i64.to_le_bytes(), 32).flatten().collect();
    let zeros = Bytes::from(vec![0; 32 * 8]);
    let tensor = |data: Bytes| Tensor::new(Datatype::Int64, vec![1, 32], data);
    Ok(vec![tensor(ones.clone().into())?, tensor(ones.into())?, tensor(zeros)?])
}

fn component() -> anyhow::Result<()> {
    let limits = EngineLimits {
        instances: 8,
        memory_bytes: 256 << 20,
        table_elements: 20_000,
        keep_resident_bytes: 4 << 20,
        pagemap_scan: true,
        fuel: false,
    };
    let engines = Engines::new(limits).map_err(|error| anyhow::anyhow!("{error}"))?;
    let cache = tempfile::tempdir()?;
    println!("| component | compile ms | from the cache ms |");
    println!("|---|---|---|");
    for name in ["bench_digits.wasm", "digits.wasm", "embed.wasm", "http_p2.wasm"] {
        let wasm = std::fs::read(guest(name))?;
        let started = Instant::now();
        compile(&engines, &wasm, name, cache.path())?;
        let compiled = started.elapsed();
        let cached = median(9, || {
            let started = Instant::now();
            compile(&engines, &wasm, name, cache.path())?;
            Ok(started.elapsed())
        })?;
        println!("| {name} | {:.1} | {:.3} |", ms(compiled), ms(cached));
    }
    Ok(())
}

fn graph(name: &str, backend: &Arc<dyn Backend>, path: &Path, inputs: &[Tensor]) -> anyhow::Result<()> {
    let derived = tempfile::tempdir()?;
    let file = ModelFile {
        path: path.to_owned(),
        weights: None,
        encoding: Encoding::Onnx,
        digest: format!("{:064x}", name.len()),
        target: ExecutionTarget::Cpu,
        precision: Precision::F32,
        concurrency: 2,
        derived: derived.path().to_owned(),
    };
    let started = Instant::now();
    drop(backend.load(&file)?);
    let first = started.elapsed();
    let later = median(9, || {
        let started = Instant::now();
        let graph = backend.load(&file)?;
        let took = started.elapsed();
        drop(graph);
        Ok(took)
    })?;
    let run = |runs: usize| {
        median(9, || {
            let graph = backend.load(&file)?;
            let mut took = Duration::ZERO;
            for _ in 0..runs {
                let started = Instant::now();
                graph.run(inputs.to_vec(), &Cancel::default())?;
                took = started.elapsed();
            }
            Ok(took)
        })
    };
    let (cold, warm) = (run(1)?, run(2)?);
    println!(
        "| {name} | {} | {:.1} | {:.2} | {:.2} | {:.2} |",
        backend.name(),
        ms(first),
        ms(later),
        ms(cold),
        ms(warm)
    );
    Ok(())
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn median(times: usize, mut measure: impl FnMut() -> anyhow::Result<Duration>) -> anyhow::Result<Duration> {
    let mut seen = (0..times).map(|_| measure()).collect::<anyhow::Result<Vec<_>>>()?;
    seen.sort_unstable();
    Ok(seen[seen.len() / 2])
}
