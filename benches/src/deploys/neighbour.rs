//! A function with calls at an even rate, while beside it nothing happens, and while a large model is loaded.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::json;

use super::rig::api::Control;
use super::rig::host::Life as _;
use super::rig::image::{App, Image};
use super::rig::question::{Question, questions};
use super::{Setup, at, us};
use crate::push::onnx;
use crate::{guest, repository};

/// Connections that take turns.
const CALLERS: u32 = 8;

/// What is going on beside the neighbour.
const BESIDE: [&str; 3] = ["nothing", "a new large model is deployed", "the same is loaded again"];

pub(super) async fn run(setup: &Setup) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let settings = match &setup.onnxruntime {
        Some(library) => format!(
            "[inference]\nbackends = [\"onnxruntime\"]\n[inference.onnxruntime]\nlibrary = {:?}\n",
            library.display().to_string()
        ),
        None => "[inference]\nbackends = [\"tract\"]\n".to_owned(),
    };
    let mut host = setup.host(&folder, &settings)?;
    host.start().await?;
    let control = host.control();
    let neighbour = App::new("neighbour", &guest("candidate.wasm"));
    let image = neighbour.pack(&setup.tenon()?, &host.config(), &folder.path().join("neighbour"))?;
    let all_at_once = json!({ "strategy": "all-at-once" });
    let prepared = control.ready(&image).await?;
    control.start("neighbour", prepared.revision, &all_at_once).await?.done()?;
    let (mut latencies, mut times) = (BESIDE.map(|_| Vec::new()), BESIDE.map(|_| Vec::new()));
    for round in 0..setup.loads {
        let image = large(setup, round, &host.config(), &folder.path().join("large"))?;
        // What was just written is the bench's own, and must not be on its way to the disk while it is measured.
        ensure!(Command::new("sync").status()?.success(), "`sync` failed");
        tokio::time::sleep(Duration::from_secs(1)).await;
        for (beside, (latencies, times)) in latencies.iter_mut().zip(&mut times).enumerate() {
            let paced = Paced::start(host.address(), setup.rate);
            // Connections and caches are there before it counts.
            tokio::time::sleep(Duration::from_millis(300)).await;
            let started = Instant::now();
            match beside {
                0 => tokio::time::sleep(Duration::from_secs(3)).await,
                _ => deployed(&control, &image).await?,
            }
            times.push(started.elapsed());
            latencies.extend(paced.finish(started)?);
        }
    }
    println!("| beside | calls | p50 us | p99 us | p99.9 us | largest us | p99, nothing = 1 | took ms |");
    println!("|---|---|---|---|---|---|---|---|");
    latencies.iter_mut().for_each(|latencies| latencies.sort_unstable());
    let base = us(at(&latencies[0], 0.99));
    for ((name, latencies), times) in BESIDE.iter().zip(&latencies).zip(&mut times) {
        times.sort_unstable();
        let [half, most, more, all] = [0.5, 0.99, 0.999, 1.0].map(|share| us(at(latencies, share)));
        let took = us(at(times, 0.5)) / 1e3;
        let calls = latencies.len();
        println!(
            "| {name} | {calls} | {half:.0} | {most:.0} | {more:.0} | {all:.0} | {:.2} | {took:.0} |",
            most / base
        );
    }
    println!();
    Ok(())
}

/// An app whose model has so many weights, others in each round.
fn large(setup: &Setup, round: u32, config: &Path, folder: &Path) -> anyhow::Result<Image> {
    std::fs::create_dir_all(folder)?;
    let mut model = std::fs::read(repository().join("examples/digits/model/digits.onnx"))?;
    model.extend(onnx::initializer("added", setup.mib << 20, round));
    std::fs::write(folder.join("large.onnx"), model)?;
    let app = App::new("large", &guest("bench_digits.wasm"))
        .settings("[component.large.tool.tenon]\nmodels.digits = { path = \"large.onnx\" }");
    app.pack(&setup.tenon()?, config, folder)
}

/// Deploys the app from its upload to the first revision that takes calls, and removes it.
async fn deployed(control: &Control, image: &Image) -> anyhow::Result<()> {
    let prepared = control.ready(image).await?;
    control.start("large", prepared.revision, &json!({ "strategy": "all-at-once" })).await?.done()?;
    control.remove("large").await?.done()?;
    Ok(())
}

/// When a call began, and how long it took.
type Call = (Instant, Duration);

/// Callers at an even rate, on threads: tokio's timer counts in whole milliseconds.
struct Paced {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<anyhow::Result<Vec<Call>>>>,
}

impl Paced {
    fn start(address: SocketAddr, per_second: f64) -> Paced {
        let stop = Arc::new(AtomicBool::new(false));
        let gap = Duration::from_secs_f64(1.0 / per_second);
        let questions = questions(512, 9);
        let started = Instant::now();
        let threads = (0..CALLERS).map(|index| {
            let (stop, questions) = (Arc::clone(&stop), Arc::clone(&questions));
            let due = started + gap * index;
            std::thread::spawn(move || caller(address, &questions, due, gap * CALLERS, &stop))
        });
        let threads = threads.collect();
        Paced { stop, threads }
    }

    /// Latencies of the calls that were due from this moment on.
    fn finish(self, from: Instant) -> anyhow::Result<Vec<Duration>> {
        self.stop.store(true, Ordering::Relaxed);
        let mut latencies = Vec::new();
        for thread in self.threads {
            let seen = thread.join().map_err(|_| anyhow::anyhow!("a caller failed"))??;
            latencies.extend(seen.into_iter().filter(|(due, _)| *due >= from).map(|(_, took)| took));
        }
        Ok(latencies)
    }
}

/// A call that had to wait for its connection counts from when it was due.
fn caller(
    address: SocketAddr,
    questions: &[Question],
    mut due: Instant,
    gap: Duration,
    stop: &AtomicBool,
) -> anyhow::Result<Vec<(Instant, Duration)>> {
    let mut stream = TcpStream::connect(address).context("cannot connect to the neighbour")?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let (mut seen, mut buffer) = (Vec::new(), vec![0; 16 << 10]);
    for question in questions.iter().cycle() {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let early = due.saturating_duration_since(Instant::now());
        std::thread::sleep(early);
        let started = if early.is_zero() { due } else { Instant::now() };
        let body = &question.body;
        let length = body.len();
        let request =
            format!("POST /neighbour HTTP/1.1\r\nhost: bench\r\ncontent-length: {length}\r\n\r\n{body}");
        stream.write_all(request.as_bytes())?;
        answer(&mut stream, &mut buffer)?;
        seen.push((due, started.elapsed()));
        due += gap;
    }
    Ok(seen)
}

/// Reads one answer, which must be a good one.
fn answer(stream: &mut TcpStream, buffer: &mut [u8]) -> anyhow::Result<()> {
    let mut filled = 0;
    loop {
        let read = stream.read(&mut buffer[filled..])?;
        ensure!(read > 0, "the neighbour's connection was closed");
        filled += read;
        let Some(head) = buffer[..filled].windows(4).position(|four| four == b"\r\n\r\n") else { continue };
        let text = std::str::from_utf8(&buffer[..head])?.to_ascii_lowercase();
        ensure!(text.starts_with("http/1.1 200"), "the neighbour answers {text}");
        let length = text.lines().find_map(|line| line.strip_prefix("content-length:"));
        let length: usize = length.context("an answer without a length")?.trim().parse()?;
        if filled == head + 4 + length {
            return Ok(());
        }
    }
}
