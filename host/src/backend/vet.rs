//! Tries a model that this machine has not seen in a child process under limits, and remembers the verdict.
//!
//! Whatever a hostile model does to its engine, it does to the child. The child also leaves behind what the
//! engine derives from the model, so that later loads are quick, and measures what the graph takes in memory
//! where nothing else disturbs the measurement.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::available::{Backends, Libraries};
use super::{Backend, Cancel, Encoding, ExecutionTarget, Graph, ModelFile, Port, Precision, Signature};
use crate::tensor::{Datatype, Tensor};

/// The argument that makes the `tenon` program a vetting child.
pub const CHILD_COMMAND: &str = "vet-model";

/// What a child may use.
#[derive(Clone, Debug)]
pub struct VetLimits {
    /// Address space in bytes.
    pub memory_bytes: u64,
    /// Processor time in seconds.
    pub cpu_s: u64,
    /// Time from start to verdict.
    pub wall: Duration,
}

/// Starts vetting children and keeps their verdicts.
#[derive(Clone, Debug)]
pub struct Vetting {
    /// The program to start: this one, except in tests.
    pub program: PathBuf,
    /// The folder of the verdicts.
    pub verdicts: PathBuf,
    pub limits: VetLimits,
    pub libraries: Libraries,
}

/// What was found out about a model.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Verdict {
    /// Why the model is refused; absent where it may be served.
    pub refused: Option<String>,
    /// What the loaded graph takes in memory, in bytes, after one run.
    pub cost_bytes: u64,
    /// The first load, in milliseconds.
    pub load_ms: u64,
    /// The first run on made-up inputs, in milliseconds; absent where no inputs could be made up or the model
    /// refused them.
    pub run_ms: Option<u64>,
    /// The graph's inputs and outputs, in words, for people.
    pub signature: String,
}

/// Why there is no verdict, or a bad one.
#[derive(Debug, Error)]
pub enum VetError {
    /// The model itself is at fault.
    #[error("{0}")]
    Refused(String),
    #[error("cannot start the program that tries models out (`{program}`): {source}")]
    Start { program: PathBuf, source: io::Error },
    #[error("cannot talk to the program that tries models out: {0}")]
    Io(#[from] io::Error),
}

impl Vetting {
    /// The verdict on a model: the remembered one, or that of a child started now.
    ///
    /// # Errors
    /// Where the model is refused, or no child could be started.
    pub async fn verdict(&self, backend: &Arc<dyn Backend>, file: &ModelFile) -> Result<Verdict, VetError> {
        let path = self.verdicts.join(format!("{}.json", self.verdict_key(backend.as_ref(), file)));
        let verdict = match read(&path) {
            Some(verdict) => verdict,
            None => {
                let (verdict, lasting) = self.try_out(backend.name(), file).await?;
                if lasting && let Err(error) = write(&path, &verdict) {
                    tracing::warn!(%error, "a verdict could not be kept; the model is tried out again next time");
                }
                verdict
            }
        };
        match verdict.refused {
            Some(reason) => Err(VetError::Refused(reason)),
            None => Ok(verdict),
        }
    }

    /// Verdicts hold for one model in one version of one engine, run in one way. Under other limits it is tried
    /// out again: one that had too little memory or time may have enough now.
    fn verdict_key(&self, backend: &dyn Backend, file: &ModelFile) -> String {
        let mut hash = Sha256::new();
        for part in [
            "2",
            &file.digest,
            backend.name(),
            &backend.version(),
            file.target.name(),
            if file.precision == Precision::Bf16 { "bf16" } else { "f32" },
            &file.concurrency.to_string(),
            &self.limits.memory_bytes.to_string(),
            &self.limits.cpu_s.to_string(),
        ] {
            hash.update(part);
            hash.update([0]);
        }
        hex(&hash.finalize())
    }

    /// The child's verdict, and whether it will be the same next time.
    async fn try_out(&self, backend: &str, file: &ModelFile) -> Result<(Verdict, bool), VetError> {
        let request = serde_json::to_vec(&Request::new(backend, file, self)).map_err(io::Error::from)?;
        let mut child = tokio::process::Command::new(&self.program)
            .arg(CHILD_COMMAND)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .map_err(|source| VetError::Start { program: self.program.clone(), source })?;
        let mut stdin = child.stdin.take().expect("stdin is piped");
        let stdout = child.stdout.take().expect("stdout is piped");
        stdin.write_all(&request).await?;
        drop(stdin);
        let mut answer = Vec::new();
        let ended = tokio::time::timeout(self.limits.wall, async {
            stdout.take(1 << 20).read_to_end(&mut answer).await?;
            child.wait().await
        });
        let (reason, lasting) = match ended.await {
            Err(_) => {
                let _ = child.kill().await;
                // A busy machine may be quicker next time.
                (format!("the model was not loaded and run within {} s", self.limits.wall.as_secs()), false)
            }
            Ok(status) => {
                let status = status?;
                if let Ok(verdict) = serde_json::from_slice(&answer) {
                    return Ok((verdict, true));
                }
                (died(status, &self.limits), true)
            }
        };
        Ok((Verdict::refused(reason), lasting))
    }
}

impl Verdict {
    fn refused(reason: String) -> Verdict {
        Verdict { refused: Some(reason), cost_bytes: 0, load_ms: 0, run_ms: None, signature: String::new() }
    }
}

fn died(status: std::process::ExitStatus, limits: &VetLimits) -> String {
    use std::os::unix::process::ExitStatusExt;
    let how = match status.signal() {
        Some(signal) if signal == rustix::process::Signal::XCPU.as_raw() => {
            return format!(
                "the model used more than {} s of processor time when it was tried out",
                limits.cpu_s
            );
        }
        Some(signal) => format!("died of signal {signal}"),
        None => format!("ended with {status}"),
    };
    let memory_mib = limits.memory_bytes >> 20;
    format!("the process that tried the model out under a limit of {memory_mib} MiB {how}")
}

fn read(path: &Path) -> Option<Verdict> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

fn write(path: &Path, verdict: &Verdict) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    serde_json::to_writer(&mut file, verdict)?;
    file.persist(path)?;
    Ok(())
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[derive(Serialize, Deserialize)]
struct Request {
    backend: String,
    path: PathBuf,
    weights: Option<PathBuf>,
    openvino: bool,
    digest: String,
    target: String,
    bf16: bool,
    concurrency: usize,
    derived: PathBuf,
    onnxruntime_library: Option<PathBuf>,
    openvino_library: Option<PathBuf>,
    search: Vec<PathBuf>,
    memory_bytes: u64,
    cpu_s: u64,
}

impl Request {
    fn new(backend: &str, file: &ModelFile, vetting: &Vetting) -> Request {
        Request {
            backend: backend.to_owned(),
            path: file.path.clone(),
            weights: file.weights.clone(),
            openvino: file.encoding == Encoding::Openvino,
            digest: file.digest.clone(),
            target: file.target.name().to_owned(),
            bf16: file.precision == Precision::Bf16,
            concurrency: file.concurrency,
            derived: file.derived.clone(),
            onnxruntime_library: vetting.libraries.onnxruntime.clone(),
            openvino_library: vetting.libraries.openvino.clone(),
            search: vetting.libraries.search.clone(),
            memory_bytes: vetting.limits.memory_bytes,
            cpu_s: vetting.limits.cpu_s,
        }
    }

    fn model(&self) -> ModelFile {
        ModelFile {
            path: self.path.clone(),
            weights: self.weights.clone(),
            encoding: if self.openvino { Encoding::Openvino } else { Encoding::Onnx },
            digest: self.digest.clone(),
            target: match self.target.as_str() {
                "gpu" => ExecutionTarget::Gpu,
                "npu" => ExecutionTarget::Npu,
                _ => ExecutionTarget::Cpu,
            },
            precision: if self.bf16 { Precision::Bf16 } else { Precision::F32 },
            concurrency: self.concurrency,
            derived: self.derived.clone(),
        }
    }
}

/// The child: reads a request from standard input, answers a verdict on standard output.
///
/// # Errors
/// Where the request cannot be read; whatever is wrong with the model is in the verdict.
pub fn child() -> io::Result<()> {
    let request: Request = serde_json::from_reader(io::stdin().lock())?;
    limit(&request)?;
    let libraries = Libraries {
        onnxruntime: request.onnxruntime_library.clone(),
        openvino: request.openvino_library.clone(),
        search: request.search.clone(),
    };
    let backends = Backends::find(&[&request.backend], &libraries);
    let verdict = match backends.iter().find(|backend| backend.name() == request.backend) {
        Some(backend) => try_here(backend.as_ref(), &request.model()),
        None => Verdict::refused(format!("there is no backend `{}`", request.backend)),
    };
    serde_json::to_writer(io::stdout().lock(), &verdict)?;
    Ok(())
}

/// Takes everything from this process that trying a model out does not need.
fn limit(request: &Request) -> io::Result<()> {
    use rustix::process::{Resource, Rlimit, nice, setrlimit};
    let to = |value: u64| Rlimit { current: Some(value), maximum: Some(value) };
    setrlimit(Resource::As, to(request.memory_bytes))?;
    setrlimit(Resource::Cpu, Rlimit { current: Some(request.cpu_s), maximum: Some(request.cpu_s + 5) })?;
    setrlimit(Resource::Core, to(0))?;
    // Live requests come first; a system that forbids it changes nothing of the verdict.
    let _ = nice(10);
    Ok(())
}

fn try_here(backend: &dyn Backend, file: &ModelFile) -> Verdict {
    let started = Instant::now();
    // The first load may derive files and keep what that took: what counts is the load that the host will do.
    match super::pool::caught(|| backend.load(file)) {
        Err(panic) => return Verdict::refused(format!("the backend panicked: {panic}")),
        Ok(Err(error)) => return Verdict::refused(error.to_string()),
        Ok(Ok(graph)) => drop(graph),
    }
    let load_ms = millis(started);
    super::residency::trim_heap();
    let before = anonymous_bytes();
    let graph = match super::pool::caught(|| backend.load(file)) {
        Ok(Ok(graph)) => graph,
        Ok(Err(error)) => return Verdict::refused(format!("loaded once, but not twice: {error}")),
        Err(panic) => return Verdict::refused(format!("loaded once, then the backend panicked: {panic}")),
    };
    let signature = graph.signature().clone();
    let run_ms = run_once(graph.as_ref(), &signature);
    super::residency::trim_heap();
    let cost_bytes = anonymous_bytes().saturating_sub(before);
    Verdict { refused: None, cost_bytes, load_ms, run_ms, signature: in_words(&signature) }
}

fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// One run on made-up inputs. A model that refuses them is not at fault: only the author knows good ones.
fn run_once(graph: &dyn Graph, signature: &Signature) -> Option<u64> {
    let inputs: Option<Vec<_>> = signature.inputs.iter().map(made_up).collect();
    let started = Instant::now();
    let outputs = super::pool::caught(|| graph.run(inputs?, &Cancel::default()).ok());
    outputs.ok().flatten().map(|_| millis(started))
}

/// A tensor of zeros, one for each dimension that the caller chooses.
fn made_up(port: &Port) -> Option<Tensor> {
    const MAX_BYTES: usize = 256 << 20;
    let shape: Vec<usize> = port.shape.as_ref()?.iter().map(|dim| dim.unwrap_or(1)).collect();
    let elements = crate::tensor::elements(&shape).ok()?;
    let size = elements.checked_mul(port.datatype.size().unwrap_or(4))?;
    if size > MAX_BYTES {
        return None;
    }
    Tensor::new(port.datatype, shape, Bytes::from(vec![0; size])).ok()
}

fn in_words(signature: &Signature) -> String {
    let ports = |ports: &[Port]| {
        let ports: Vec<_> = ports.iter().map(port_text).collect();
        ports.join(", ")
    };
    format!("{} -> {}", ports(&signature.inputs), ports(&signature.outputs))
}

fn port_text(port: &Port) -> String {
    let shape = port.shape.as_deref().map_or_else(|| "[...]".to_owned(), super::validate::shape_text);
    let datatype: Datatype = port.datatype;
    format!("{} {datatype}{shape}", port.name)
}

/// The memory that only this process has, in bytes: what a load adds to it is the graph's own.
pub fn anonymous_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok()).map_or(0, |kib| kib * 1024)
}
