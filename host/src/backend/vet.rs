//! Tries a model that this machine has not seen in a child process under limits, and remembers the verdict.
//!
//! Whatever a hostile model does to its engine, it does to the child. The child also leaves behind what the
//! engine derives from the model, so that later loads are quick, and measures what the graph takes in memory
//! where nothing else disturbs the measurement.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::available::{Backends, Libraries};
use super::pool::STACK_BYTES;
use super::residency::trim_heap;
use super::{
    Backend, Cancel, Encoding, ExecutionTarget, Graph, LoadError, ModelFile, Port, Precision, Signature,
};
use crate::background::caught;
use crate::tensor::{Datatype, Tensor};

/// The argument that makes the `tenon` program a vetting child.
pub const CHILD_COMMAND: &str = "vet-model";

/// What a child may use.
#[derive(Clone, Debug)]
pub struct VetLimits {
    /// Address space in bytes. Not for models that run on a GPU: its driver reserves far more than it uses.
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
    /// What a second caller at the same time added to that, in bytes; 0 where that was not tried.
    pub lane_bytes: u64,
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
        let path =
            self.verdicts.join(format!("{}-{}.json", file.digest, self.verdict_key(backend.as_ref(), file)));
        let verdict = match read(&path) {
            Some(verdict) => verdict,
            None => {
                let Answer { verdict, lasting } = self.try_out(backend.name(), file).await?;
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
            "3",
            &file.digest,
            file.encoding.name(),
            backend.name(),
            &backend.version(),
            file.target.name(),
            if file.precision == Precision::Bf16 { "bf16" } else { "f32" },
            &file.concurrency.to_string(),
            &self.limits.memory_bytes.to_string(),
            &self.limits.cpu_s.to_string(),
            &STACK_BYTES.to_string(),
        ] {
            hash.update(part);
            hash.update([0]);
        }
        hex(&hash.finalize())
    }

    async fn try_out(&self, backend: &str, file: &ModelFile) -> Result<Answer, VetError> {
        let request = serde_json::to_vec(&Request::new(backend, file, self)).map_err(io::Error::from)?;
        let mut child = tokio::process::Command::new(&self.program)
            .arg(CHILD_COMMAND)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            // Ctrl-C is for the host, which then ends the child: it says nothing about the model.
            .process_group(0)
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
        let Ok(status) = ended.await else {
            let _ = child.kill().await;
            let wall_s = self.limits.wall.as_secs();
            // A busy machine may be quicker next time.
            return Ok(Answer::transient(format!("the model was not loaded and run within {wall_s} s")));
        };
        let status = status?;
        Ok(serde_json::from_slice(&answer).unwrap_or_else(|_| died(status, file.target, &self.limits)))
    }
}

impl Verdict {
    fn refused(reason: String) -> Verdict {
        let signature = String::new();
        Verdict { refused: Some(reason), cost_bytes: 0, lane_bytes: 0, load_ms: 0, run_ms: None, signature }
    }

    /// What the graph takes in memory when as many as `concurrency` run it at once, in bytes.
    pub fn total_bytes(&self, concurrency: usize) -> u64 {
        let further = u64::try_from(concurrency.saturating_sub(1)).unwrap_or(u64::MAX);
        self.cost_bytes.saturating_add(self.lane_bytes.saturating_mul(further))
    }
}

/// What the child answers.
#[derive(Debug, Serialize, Deserialize)]
struct Answer {
    verdict: Verdict,
    /// Whether it would be the same next time, so that it may be remembered.
    lasting: bool,
}

impl Answer {
    fn transient(reason: String) -> Answer {
        Answer { verdict: Verdict::refused(reason), lasting: false }
    }

    fn lasting(reason: String) -> Answer {
        Answer { verdict: Verdict::refused(reason), lasting: true }
    }
}

/// What the end of a child without an answer means. Only what the model itself did to it is lasting: the system, a
/// person or a shortage may have ended it otherwise.
fn died(status: ExitStatus, target: ExecutionTarget, limits: &VetLimits) -> Answer {
    use rustix::process::Signal;
    use std::os::unix::process::ExitStatusExt;
    let lasting = [Signal::SEGV, Signal::ABORT, Signal::BUS, Signal::FPE, Signal::ILL, Signal::XCPU];
    let (how, lasting) = match status.signal() {
        Some(signal) if signal == Signal::XCPU.as_raw() => {
            let cpu_s = limits.cpu_s;
            return Answer::lasting(format!(
                "the model used more than {cpu_s} s of processor time when it was tried out"
            ));
        }
        Some(signal) => {
            (format!("died of signal {signal}"), lasting.iter().any(|lasting| lasting.as_raw() == signal))
        }
        None => (format!("ended with {status}"), false),
    };
    let limit = match target {
        ExecutionTarget::Gpu => String::new(),
        _ => format!(" under a limit of {} MiB", limits.memory_bytes >> 20),
    };
    let reason = format!("the process that tried the model out{limit} {how}");
    if lasting { Answer::lasting(reason) } else { Answer::transient(reason) }
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
    wall_ms: u64,
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
            wall_ms: u64::try_from(vetting.limits.wall.as_millis()).unwrap_or(u64::MAX),
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

/// The child: reads a request from standard input, answers on standard output.
///
/// # Errors
/// Where the request cannot be read; whatever is wrong with the model is in the answer.
pub fn child() -> io::Result<()> {
    let answer_to = stdout_apart()?;
    // Nobody reads it, and a trace would count as memory of the model.
    std::panic::set_hook(Box::new(|_| {}));
    let request: Request = serde_json::from_reader(io::stdin().lock())?;
    // Whoever started this ends it in time, unless it was killed itself.
    let orphaned = Duration::from_millis(request.wall_ms).saturating_add(Duration::from_secs(5));
    thread::Builder::new().spawn(move || {
        thread::sleep(orphaned);
        std::process::exit(1);
    })?;
    // The thread is made before the limits are set: where they are too low, it is the model that has too little.
    let vetting = thread::Builder::new().name("vet".to_owned()).stack_size(STACK_BYTES);
    let answer = vetting.spawn(move || answer(&request))?.join();
    let answer =
        answer.unwrap_or_else(|_| Answer::transient("the program that tries models out panicked".into()));
    serde_json::to_writer(answer_to, &answer)?;
    Ok(())
}

/// Standard output for the answer alone: what native code prints goes nowhere.
fn stdout_apart() -> io::Result<File> {
    let stdout = io::stdout().as_fd().try_clone_to_owned()?;
    let nowhere = File::options().write(true).open("/dev/null")?;
    #[expect(unsafe_code, reason = "nothing safe puts another file in the place of standard output")]
    // SAFETY: both numbers are open files, and no other thread runs yet that could close them.
    let put = unsafe { libc::dup2(nowhere.as_raw_fd(), libc::STDOUT_FILENO) };
    if put < 0 { Err(io::Error::last_os_error()) } else { Ok(File::from(stdout)) }
}

fn answer(request: &Request) -> Answer {
    let model = request.model();
    if let Err(error) = limit(request, model.target) {
        return Answer::transient(format!("the process that tries models out cannot be limited: {error}"));
    }
    let libraries = Libraries {
        onnxruntime: request.onnxruntime_library.clone(),
        openvino: request.openvino_library.clone(),
        search: request.search.clone(),
    };
    let backends = Backends::find(&[&request.backend], &libraries);
    match backends.iter().find(|backend| backend.name() == request.backend) {
        Some(backend) => match try_here(backend.as_ref(), &model) {
            Ok(verdict) => Answer { verdict, lasting: true },
            Err(refusal) => refusal,
        },
        None => Answer::transient(format!("there is no backend `{}`", request.backend)),
    }
}

/// Takes everything from this process that trying a model out does not need.
fn limit(request: &Request, target: ExecutionTarget) -> io::Result<()> {
    use rustix::process::{Resource, nice};
    // Where the machine runs out of memory, this goes before any host; a system that forbids it changes nothing of
    // the verdict, as with the priority below.
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
    if target != ExecutionTarget::Gpu {
        lower(Resource::As, request.memory_bytes, request.memory_bytes)?;
    }
    lower(Resource::Cpu, request.cpu_s, request.cpu_s.saturating_add(5))?;
    lower(Resource::Core, 0, 0)?;
    // Live requests come first.
    let _ = nice(10);
    Ok(())
}

/// Lowers a limit of this process. One that is lower already stays: only the system's administrator may raise it.
fn lower(resource: rustix::process::Resource, current: u64, maximum: u64) -> io::Result<()> {
    use rustix::process::{Rlimit, getrlimit, setrlimit};
    let maximum = maximum.min(getrlimit(resource).maximum.unwrap_or(u64::MAX));
    setrlimit(resource, Rlimit { current: Some(current.min(maximum)), maximum: Some(maximum) })?;
    Ok(())
}

/// Loads the model and runs it; the error is the answer that refuses it.
fn try_here(backend: &dyn Backend, file: &ModelFile) -> Result<Verdict, Answer> {
    let started = Instant::now();
    // The first load may derive files and keep what that took: what counts is the load that the host will do.
    let graph = load(backend, file, "")?;
    let load_ms = millis(started);
    let signature = graph.signature().clone();
    drop(graph);
    let inputs: Option<Vec<_>> = signature.inputs.iter().map(made_up).collect();
    trim_heap();
    let before = anonymous_bytes();
    let graph = load(backend, file, "loaded once, but not twice: ")?;
    let run_ms = inputs.as_deref().and_then(|inputs| run_once(graph.as_ref(), inputs));
    trim_heap();
    let cost_bytes = anonymous_bytes().saturating_sub(before);
    let lane_bytes = match (&inputs, run_ms) {
        (Some(inputs), Some(run_ms)) if file.concurrency > 1 => lane_bytes(graph.as_ref(), inputs, run_ms),
        _ => 0,
    };
    Ok(Verdict { refused: None, cost_bytes, lane_bytes, load_ms, run_ms, signature: in_words(&signature) })
}

fn load(backend: &dyn Backend, file: &ModelFile, when: &str) -> Result<Arc<dyn Graph>, Answer> {
    match caught(|| backend.load(file)) {
        Ok(Ok(graph)) => Ok(graph),
        Ok(Err(error @ (LoadError::Io(_) | LoadError::Unavailable { .. }))) => {
            Err(Answer::transient(format!("{when}{error}")))
        }
        Ok(Err(
            error @ (LoadError::Model { .. } | LoadError::Encoding { .. } | LoadError::Target { .. }),
        )) => Err(Answer::lasting(format!("{when}{error}"))),
        Err(panic) => Err(Answer::lasting(format!("{when}the backend panicked: {panic}"))),
    }
}

fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// One run on made-up inputs. A model that refuses them is not at fault: only the author knows good ones.
fn run_once(graph: &dyn Graph, inputs: &[Tensor]) -> Option<u64> {
    let started = Instant::now();
    let outputs = caught(|| graph.run(inputs.to_vec(), &Cancel::default()).ok());
    outputs.ok().flatten().map(|_| millis(started))
}

/// What a second caller at the same time adds to a graph that was run once, in bytes: some backends keep buffers or
/// even a compilation of the model for each. Short runs are repeated, so that two of them do meet; for those that
/// would take long it is not found out.
fn lane_bytes(graph: &dyn Graph, inputs: &[Tensor], run_ms: u64) -> u64 {
    let rounds = match run_ms {
        0..50 => 8,
        50..10_000 => 1,
        _ => return 0,
    };
    let before = anonymous_bytes();
    let start = Barrier::new(2);
    let caller = || {
        for _ in 0..rounds {
            start.wait();
            run_once(graph, inputs);
        }
    };
    thread::scope(|scope| {
        let second = thread::Builder::new().stack_size(STACK_BYTES);
        if second.spawn_scoped(scope, caller).is_ok() {
            caller();
        }
    });
    trim_heap();
    anonymous_bytes().saturating_sub(before)
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

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::sync::{Condvar, Mutex};

    use super::super::{InferError, Status};
    use super::*;

    #[test]
    fn only_what_the_model_did_is_lasting() {
        let limits = VetLimits { memory_bytes: 64 << 20, cpu_s: 7, wall: Duration::from_secs(1) };
        let check = |wait_status, target, reason: &str, lasting| {
            let answer = died(ExitStatus::from_raw(wait_status), target, &limits);
            assert_eq!((answer.verdict.refused.as_deref(), answer.lasting), (Some(reason), lasting));
        };
        let (cpu, gpu) = (ExecutionTarget::Cpu, ExecutionTarget::Gpu);
        let tried = "the process that tried the model out";
        for signal in [libc::SIGSEGV, libc::SIGABRT, libc::SIGBUS, libc::SIGFPE, libc::SIGILL] {
            check(signal, cpu, &format!("{tried} under a limit of 64 MiB died of signal {signal}"), true);
        }
        for signal in [libc::SIGKILL, libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
            check(signal, gpu, &format!("{tried} died of signal {signal}"), false);
        }
        let reason = "the model used more than 7 s of processor time when it was tried out";
        check(libc::SIGXCPU, cpu, reason, true);
        check(1 << 8, gpu, &format!("{tried} ended with exit status: 1"), false);
    }

    #[test]
    fn callers_are_charged_for_each() {
        let verdict = Verdict { cost_bytes: 100, lane_bytes: 7, ..Verdict::refused(String::new()) };
        assert_eq!([0, 1, 2, 9].map(|concurrency| verdict.total_bytes(concurrency)), [100, 100, 107, 156]);
        assert_eq!(verdict.total_bytes(usize::MAX), u64::MAX);
    }

    /// A backend that fails to load in one way, or else counts how many run at once.
    #[derive(Default)]
    struct Counting {
        fails: Option<fn() -> LoadError>,
        counted: Arc<Counted>,
    }

    #[derive(Default)]
    struct Counted {
        signature: Signature,
        /// How many run now, and how many did at most.
        running: Mutex<(usize, usize)>,
        entered: Condvar,
    }

    impl Backend for Counting {
        fn name(&self) -> &'static str {
            "counting"
        }

        fn status(&self) -> Status {
            let available = Ok(());
            Status { available, version: String::new(), encodings: vec![], devices: vec![], library: None }
        }

        fn version(&self) -> String {
            String::new()
        }

        fn load(&self, _: &ModelFile) -> Result<Arc<dyn Graph>, LoadError> {
            match self.fails {
                Some(error) => Err(error()),
                None => Ok(Arc::clone(&self.counted) as Arc<dyn Graph>),
            }
        }
    }

    impl Graph for Counted {
        fn signature(&self) -> &Signature {
            &self.signature
        }

        /// Waits a moment for another.
        fn run(&self, _: Vec<Tensor>, _: &Cancel) -> Result<Vec<Tensor>, InferError> {
            let mut running = self.running.lock().unwrap();
            running.0 += 1;
            running.1 = running.1.max(running.0);
            self.entered.notify_all();
            let moment = Duration::from_millis(200);
            let waited = self.entered.wait_timeout_while(running, moment, |running| running.1 < 2);
            waited.unwrap().0.0 -= 1;
            Ok(Vec::new())
        }
    }

    fn file(concurrency: usize) -> ModelFile {
        ModelFile {
            path: PathBuf::new(),
            weights: None,
            encoding: Encoding::Onnx,
            digest: "0".repeat(64),
            target: ExecutionTarget::Cpu,
            precision: Precision::F32,
            concurrency,
            derived: PathBuf::new(),
        }
    }

    #[test]
    fn a_second_caller_is_tried_where_there_may_be_one() {
        for (concurrency, expected) in [(1, 1), (4, 2)] {
            let backend = Counting::default();
            let verdict = try_here(&backend, &file(concurrency)).unwrap();
            assert!(verdict.refused.is_none() && verdict.run_ms.is_some(), "{verdict:?}");
            assert_eq!(backend.counted.running.lock().unwrap().1, expected);
        }
    }

    #[test]
    fn what_the_machine_lacks_is_not_held_against_the_model() {
        let check = |fails: fn() -> LoadError, lasting| {
            let backend = Counting { fails: Some(fails), ..Counting::default() };
            let refusal = try_here(&backend, &file(1)).unwrap_err();
            assert_eq!(refusal.lasting, lasting, "{refusal:?}");
            assert!(refusal.verdict.refused.is_some());
        };
        check(|| LoadError::Model { backend: "b", reason: String::new() }, true);
        check(|| LoadError::Encoding { backend: "b", encoding: "onnx" }, true);
        check(|| LoadError::Target { backend: "b", target: "gpu", reason: String::new() }, true);
        check(|| LoadError::Unavailable { backend: "b", reason: String::new() }, false);
        check(|| LoadError::Io(io::ErrorKind::OutOfMemory.into()), false);
        check(|| panic!("so be it"), true);
    }

    #[test]
    fn verdicts_tell_encodings_apart() {
        let vetting = Vetting {
            program: PathBuf::new(),
            verdicts: PathBuf::new(),
            limits: VetLimits { memory_bytes: 1, cpu_s: 1, wall: Duration::ZERO },
            libraries: Libraries::default(),
        };
        let key = |encoding| vetting.verdict_key(&Counting::default(), &ModelFile { encoding, ..file(1) });
        assert_ne!(key(Encoding::Onnx), key(Encoding::Openvino));
    }
}
