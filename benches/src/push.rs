//! From the start of `tenon push` on one machine to the first answer on another, and the bytes on the way between.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::load::{self, Request};
use crate::{Server, free_address, guest, repository};

pub mod onnx;
mod tap;

use tap::Tap;

/// How long a host may take to its first answer.
const LONGEST: Duration = Duration::from_secs(300);

#[derive(clap::Args)]
pub struct Setup {
    /// The `tenon` program.
    #[arg(long, default_value = "target/release/tenon")]
    tenon: PathBuf,
    /// Debian's `docker-registry`.
    #[arg(long, default_value = "docker-registry")]
    registry: PathBuf,
    /// How many MiB of weights the large model has.
    #[arg(long, default_value_t = 256)]
    mib: usize,
    /// A model of yours in ONNX, granted to the function as well: such as `tests/models/make_mobilenet.py` makes.
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// How often the rows are measured; the median is shown.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
}

/// What was changed since the push before.
#[derive(Clone, Copy)]
enum Change {
    Everything,
    Code,
    Weights,
    Nothing,
}

/// In the order in which they are measured: each is a change of what was pushed before.
const CHANGES: [Change; 4] = [Change::Everything, Change::Code, Change::Weights, Change::Nothing];

impl Change {
    fn name(self) -> &'static str {
        match self {
            Change::Everything => "everything is new",
            Change::Code => "the code",
            Change::Weights => "the weights",
            Change::Nothing => "nothing",
        }
    }
}

/// The app that is pushed: the digits function with a model of some size.
struct App {
    name: String,
    /// The model of the digits, in ONNX.
    digits: Vec<u8>,
    /// How many bytes of weights are added to it.
    added_bytes: usize,
    /// A second model, which changes in its place.
    second: Option<Vec<u8>>,
}

/// How long one push and the start of the other host took.
#[derive(Clone, Copy)]
struct Took {
    push: Duration,
    up: Duration,
}

/// What one push and the start of the other host moved, in bytes: what went to the registry and came from it.
#[derive(Clone, Copy, Default)]
struct Moved {
    pushed: u64,
    pulled: u64,
}

/// The table of all models and changes.
///
/// # Errors
/// Where the registry or a host does not start, or a push fails.
pub fn run(setup: &Setup, runtime: &Runtime) -> anyhow::Result<()> {
    let digits = std::fs::read(repository().join("examples/digits/model/digits.onnx"))?;
    let mut apps = vec![
        App { name: "digits".to_owned(), digits: digits.clone(), added_bytes: 0, second: None },
        App {
            name: format!("digits and {} MiB", setup.mib),
            digits: digits.clone(),
            added_bytes: setup.mib << 20,
            second: None,
        },
    ];
    if let Some(path) = &setup.model {
        let name = path.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned());
        let second = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        apps.push(App { name, digits, added_bytes: 0, second: Some(second) });
    }
    println!(
        "| model | changed | push ms | up to the first answer ms | together ms | to the registry | to the host |"
    );
    println!("|---|---|---|---|---|---|---|");
    for app in &apps {
        // Once through a tap that counts, and not timed: it would take part of the processor.
        let moved = story(setup, app, Some(runtime))?;
        let mut rounds = vec![Vec::new(); CHANGES.len()];
        for _ in 0..setup.rounds.max(1) {
            for (round, (took, _)) in rounds.iter_mut().zip(story(setup, app, None)?) {
                round.push(took);
            }
        }
        for ((change, round), (_, moved)) in CHANGES.iter().zip(rounds).zip(moved) {
            let took = median(round);
            println!(
                "| {} | {} | {:.0} | {:.0} | {:.0} | {} | {} |",
                app.name,
                change.name(),
                ms(took.push),
                ms(took.up),
                ms(took.push + took.up),
                size(moved.pushed),
                size(moved.pulled)
            );
        }
    }
    Ok(())
}

/// All changes in turn, with a new registry and two new machines; through a tap where there is a runtime for it.
fn story(setup: &Setup, app: &App, tapped: Option<&Runtime>) -> anyhow::Result<Vec<(Took, Moved)>> {
    let registry = registry(&setup.registry)?;
    let tap = tapped.map(|runtime| Tap::start(registry.address, runtime)).transpose()?;
    let address = tap.as_ref().map_or(registry.address, |tap| tap.address);
    let reference = format!("{address}/bench/digits:1");
    let (author, host) = (Machine::new(setup, address)?, Machine::new(setup, address)?);
    let moved = |before: (u64, u64)| {
        let (to, from) = tap.as_ref().map_or((0, 0), Tap::bytes);
        (to - before.0, from - before.1)
    };
    let (mut version, mut answers, mut digest) = (Version::default(), Vec::new(), String::new());
    for change in CHANGES {
        match change {
            Change::Everything | Change::Nothing => {}
            Change::Code => version.code += 1,
            Change::Weights => version.weights += 1,
        }
        app.write(version, author.folder.path())?;
        let before = moved((0, 0));
        let started = Instant::now();
        let pushed = author.push(&reference)?;
        let push = started.elapsed();
        let between = moved((0, 0));
        let up = host.first_answer(&reference)?;
        let took = Took { push, up };
        // What the registry answers a push with and what a pull asks for are some headers.
        let bytes = Moved { pushed: between.0 - before.0, pulled: moved(between).1 };
        ensure!(
            (pushed == digest) == matches!(change, Change::Nothing),
            "{}: {pushed} came after {digest}",
            change.name()
        );
        digest = pushed;
        answers.push((took, bytes));
    }
    Ok(answers)
}

#[derive(Clone, Copy, Default)]
struct Version {
    code: u32,
    weights: u32,
}

impl App {
    /// Writes this version of the app.
    fn write(&self, version: Version, folder: &Path) -> anyhow::Result<()> {
        let mut wasm = std::fs::read(guest("digits.wasm")).context("examples/ is not built")?;
        wasm.extend(custom_section(&version.code.to_le_bytes()));
        std::fs::write(folder.join("digits.wasm"), wasm)?;
        let note = format!("version {}", version.weights);
        let mut models = "models.digits = { path = \"digits.onnx\" }\n".to_owned();
        let mut digits = self.digits.clone();
        match &self.second {
            Some(second) => {
                let second = [second.as_slice(), &onnx::note(&note)].concat();
                std::fs::write(folder.join("second.onnx"), second)?;
                models += "models.second = { path = \"second.onnx\" }\n";
            }
            None => {
                digits.extend(onnx::note(&note));
                if self.added_bytes > 0 {
                    digits.extend(onnx::initializer("added", self.added_bytes, version.weights));
                }
            }
        }
        std::fs::write(folder.join("digits.onnx"), digits)?;
        let manifest = format!(
            "spin_manifest_version = 2\n[application]\nname = \"bench\"\n\
             [[trigger.http]]\nroute = \"/digits\"\ncomponent = \"digits\"\n\
             [component.digits]\nsource = \"digits.wasm\"\n[component.digits.tool.tenon]\n{models}"
        );
        Ok(std::fs::write(folder.join("spin.toml"), manifest)?)
    }
}

/// A section that no engine heeds: other bytes, the same function.
fn custom_section(content: &[u8; 4]) -> Vec<u8> {
    const NAME: &[u8; 5] = b"bench";
    [&[0, 10, 5], NAME.as_slice(), content.as_slice()].concat()
}

/// A machine: a folder with an app, settings and a cache of its own.
struct Machine {
    folder: TempDir,
    tenon: PathBuf,
    address: SocketAddr,
}

impl Machine {
    fn new(setup: &Setup, registry: SocketAddr) -> anyhow::Result<Machine> {
        let (folder, address) = (tempfile::tempdir()?, free_address()?);
        let tenon = &setup.tenon;
        let tenon = tenon.canonicalize().with_context(|| format!("there is no {}", tenon.display()))?;
        let settings = format!(
            "[listen]\nhttp = \"{address}\"\nadmin = \"off\"\n[cache]\ndir = \"cache\"\n\
             [inference]\nbackends = [\"tract\"]\n[registry]\ninsecure = [\"{registry}\"]\n"
        );
        std::fs::write(folder.path().join("host.toml"), settings)?;
        Ok(Machine { folder, tenon, address })
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.tenon);
        command.args(["--config", "host.toml"]).args(arguments).current_dir(self.folder.path());
        command.stdin(Stdio::null());
        command
    }

    /// Pushes the app in the folder; the reference with its digest.
    fn push(&self, reference: &str) -> anyhow::Result<String> {
        let output = self.command(&["push", reference]).output()?;
        if !output.status.success() {
            bail!("tenon push failed:\n{}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }

    /// Starts a host on the reference and stops it when it has answered: how long that took.
    fn first_answer(&self, reference: &str) -> anyhow::Result<Duration> {
        let image = std::fs::read(repository().join("examples/digits/seven.png"))?;
        let request = Request::post("/digits", "image/png", &image);
        let log = self.folder.path().join("log");
        let started = Instant::now();
        let mut command = self.command(&["up", "-f", reference]);
        command.stdout(Stdio::null()).stderr(std::fs::File::create(&log)?);
        let mut host = Running(command.spawn()?);
        while !load::answered(self.address, &request) {
            if host.0.try_wait()?.is_some() || started.elapsed() > LONGEST {
                bail!("the host does not answer:\n{}", std::fs::read_to_string(&log)?);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(started.elapsed())
    }
}

/// A process that ends with this.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn registry(program: &Path) -> anyhow::Result<Server> {
    let (folder, address) = (tempfile::tempdir()?, free_address()?);
    let data = folder.path().join("data");
    let settings = format!(
        "version: 0.1\nlog: {{ level: error, accesslog: {{ disabled: true }} }}\n\
         storage: {{ filesystem: {{ rootdirectory: {data:?} }} }}\nhttp: {{ addr: \"{address}\" }}\n"
    );
    let config = folder.path().join("config.yml");
    std::fs::write(&config, settings)?;
    let mut command = Command::new(program);
    command.arg("serve").arg(config);
    Server::start(command, address, Some(folder))
}

fn median(mut rounds: Vec<Took>) -> Took {
    rounds.sort_unstable_by_key(|took| took.push + took.up);
    rounds[rounds.len() / 2]
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn size(bytes: u64) -> String {
    match bytes {
        bytes if bytes < 1 << 20 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        bytes => format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20)),
    }
}
