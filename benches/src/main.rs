//! Measures Tenon against a plain HTTP server, `wasmtime serve`, other model servers and the bare backend: every table
//! in one run, interleaved, so that its rows may be compared.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::{Parser, Subcommand};

mod cold;
mod deploys;
mod inference;
mod load;
mod peers;
mod plain;
mod push;
mod rollouts;

use load::{Request, Seen};

#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    command: Bench,
}

#[derive(Subcommand)]
enum Bench {
    /// Requests per second and processor time per request of an HTTP function.
    Http {
        #[command(flatten)]
        with: With,
        /// A `wasmtime` 48 program to compare with.
        #[arg(long)]
        wasmtime: Option<PathBuf>,
    },
    /// Time that Tenon adds to an inference.
    Inference {
        #[command(flatten)]
        with: With,
        /// ONNX Runtime's library, to measure with it too.
        #[arg(long)]
        onnxruntime: Option<PathBuf>,
        /// A large model, made by `tests/models/make_mobilenet.py`.
        #[arg(long)]
        mobilenet: Option<PathBuf>,
    },
    /// From nothing in memory to the first answer, by stage.
    Cold {
        /// ONNX Runtime's library, to measure with it too.
        #[arg(long)]
        onnxruntime: Option<PathBuf>,
        /// OpenVINO's C library, to measure with it too.
        #[arg(long)]
        openvino: Option<PathBuf>,
        /// MiniLM, made by `examples/embed/model/make_model.py`.
        #[arg(long)]
        minilm: Option<PathBuf>,
    },
    /// Against other model servers, which `benches/peers/install` installs, and against the bare backend.
    Peers {
        #[command(flatten)]
        with: With,
        #[command(flatten)]
        setup: peers::Setup,
    },
    /// From `tenon push` to the first answer of another host, by what was changed, and the bytes that are moved.
    Push {
        #[command(flatten)]
        setup: push::Setup,
    },
    /// Deployments under load, a neighbour of a large model, and kills.
    Deploys {
        #[command(flatten)]
        setup: deploys::Setup,
    },
    /// Good and bad candidates by the thousand, simulated: how many the default canary rolls back, and how soon.
    Rollouts {
        #[command(flatten)]
        setup: rollouts::Setup,
    },
    /// Memory of an idle host, of an idle function and of a graph.
    Memory {
        #[command(flatten)]
        with: With,
    },
    /// The plain server, for the other commands.
    #[command(hide = true)]
    Plain { address: SocketAddr },
}

#[derive(clap::Args, Clone)]
pub struct With {
    /// The `tenon` program.
    #[arg(long, default_value = "target/release/tenon")]
    tenon: PathBuf,
    /// Seconds for each row.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// How often the rows are measured; the median is shown.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
}

fn main() -> anyhow::Result<()> {
    match Args::parse().command {
        Bench::Plain { address } => runtime(2)?.block_on(plain::run(address)),
        Bench::Http { with, wasmtime } => runtime(1)?.block_on(http(&with, wasmtime.as_deref())),
        Bench::Inference { with, onnxruntime, mobilenet } => {
            runtime(1)?.block_on(inference::run(&with, onnxruntime.as_deref(), mobilenet.as_deref()))
        }
        Bench::Peers { with, setup } => peers::run(&with, &setup, &runtime(1)?),
        Bench::Push { setup } => push::run(&setup, &runtime(1)?),
        Bench::Deploys { setup } => deploys::run(&setup, &runtime(1)?),
        Bench::Rollouts { setup } => rollouts::run(&setup),
        Bench::Memory { with } => runtime(1)?.block_on(memory(&with)),
        Bench::Cold { onnxruntime, openvino, minilm } => cold::run(onnxruntime, openvino, minilm),
    }
}

fn runtime(threads: usize) -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build()
}

/// The folder of the repository.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// Where the guests of the tests are built.
pub fn guest(name: &str) -> PathBuf {
    repository().join("target/guests/wasm32-wasip2/release").join(name)
}

/// A server that runs as a process of its own, and stops when dropped.
pub struct Server {
    child: Child,
    pub address: SocketAddr,
    _app: Option<tempfile::TempDir>,
}

impl Server {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Starts a program that listens on `address`, and waits until it does.
    ///
    /// # Errors
    /// Where it does not start within a minute.
    pub fn start(
        mut command: Command,
        address: SocketAddr,
        app: Option<tempfile::TempDir>,
    ) -> anyhow::Result<Server> {
        // Whoever develops may have asked for traces, which every error would take the time for.
        command.env_remove("RUST_BACKTRACE").env_remove("RUST_LIB_BACKTRACE");
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let child = child.with_context(|| format!("cannot start {command:?}"))?;
        let server = Server { child, address, _app: app };
        let end = Instant::now() + Duration::from_secs(60);
        while std::net::TcpStream::connect(address).is_err() {
            anyhow::ensure!(Instant::now() < end, "nothing listens on {address} ({command:?})");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(server)
    }

    /// Starts `tenon up` with an app, and waits until its functions are there.
    ///
    /// # Errors
    /// Where it does not serve within a minute.
    pub fn tenon(tenon: &Path, manifest: &str, config: &str) -> anyhow::Result<Server> {
        let app = tempfile::tempdir()?;
        std::fs::write(app.path().join("spin.toml"), manifest)?;
        let address = free_address()?;
        let config = format!("[listen]\nhttp = \"{address}\"\nadmin = \"off\"\n{config}");
        std::fs::write(app.path().join("host.toml"), config)?;
        let mut command = Command::new(tenon);
        command.args(["--config"]).arg(app.path().join("host.toml")).args(["up", "-f"]).arg(app.path());
        let server = Server::start(command, address, Some(app))?;
        let end = Instant::now() + Duration::from_secs(60);
        while !ready(address) {
            anyhow::ensure!(Instant::now() < end, "tenon does not serve the app");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(server)
    }
}

/// Whether the app is there: `/ready` is a static answer in every manifest of the benchmarks.
fn ready(address: SocketAddr) -> bool {
    use std::io::{Read, Write};
    let Ok(mut stream) = std::net::TcpStream::connect(address) else { return false };
    let _ = stream.write_all(b"GET /ready HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n");
    let mut text = String::new();
    stream.read_to_string(&mut text).is_ok() && text.starts_with("HTTP/1.1 200")
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn free_address() -> anyhow::Result<SocketAddr> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// The plain server of this program.
///
/// # Errors
/// Where it does not start.
pub fn plain_server() -> anyhow::Result<Server> {
    let address = free_address()?;
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("plain").arg(address.to_string());
    Server::start(command, address, None)
}

/// A manifest of one component on `/`, with further lines for the component.
pub fn manifest(wasm: &Path, more: &str) -> String {
    format!(
        "spin_manifest_version = 2\n[application]\nname = \"bench\"\n\
         [[trigger.http]]\nroute = \"/ready\"\n[trigger.http.static_response]\nbody = \"ready\"\n\
         [[trigger.http]]\nroute = \"/...\"\ncomponent = \"f\"\n[component.f]\nsource = {:?}\n{more}\n",
        wasm.display().to_string()
    )
}

async fn http(with: &With, wasmtime: Option<&Path>) -> anyhow::Result<()> {
    println!("p2\n");
    versions(with, wasmtime, "http_p2.wasm", &["-Scli"]).await?;
    // Its default is to use an instance of these again.
    println!("\np3\n");
    let anew = ["-Scli", "-Sp3", "-Wcomponent-model-async=y", "--max-instance-reuse-count=1"];
    versions(with, wasmtime, "bench_p3.wasm", &anew).await
}

/// What Tenon tells a function of its call, as Spin does. A component that reads its headers, as those with spin-sdk do,
/// takes some time for them.
const SPIN_HEADERS: &str = "x-request-id: 427d793139b84514\r\nspin-full-url: http://bench/hello\r\n\
    spin-path-info: /hello\r\nspin-matched-route: /...\r\nspin-base-path: /\r\nspin-raw-component-route: /...\r\n\
    spin-component-route: /\r\nspin-client-addr: 127.0.0.1:43760";

async fn versions(with: &With, wasmtime: Option<&Path>, wasm: &str, options: &[&str]) -> anyhow::Result<()> {
    const TUNED: [&str; 2] = [
        "-Wtimeout=30s",
        "-Opooling-memory-keep-resident=8388608,pooling-table-keep-resident=65536,pooling-pagemap-scan=auto",
    ];
    let wasm = guest(wasm);
    let mut rows = vec![
        ("plain server", plain_server()?),
        ("tenon", Server::tenon(&with.tenon, &manifest(&wasm, ""), "")?),
    ];
    if let Some(wasmtime) = wasmtime {
        rows.push(("wasmtime serve", serve(wasmtime, &wasm, options)?));
        rows.push(("wasmtime serve, tuned", serve(wasmtime, &wasm, &[options, &TUNED].concat())?));
    }
    println!(
        "| server | callers | req/s | p50 us | p99 us | server CPU us/req | failed | req/s, tenon = 1 |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for callers in [1, 16, 128] {
        let request = Request::get("/hello");
        let mut targets: Vec<_> =
            rows.iter().map(|(name, server)| (*name, server, request.clone())).collect();
        if let Some((_, server)) = rows.get(3) {
            let with_headers = Request::get_with("/hello", SPIN_HEADERS);
            targets.push(("wasmtime serve, tuned, called with as many headers", server, with_headers));
        }
        let seen = interleaved(with, &targets, callers).await?;
        let base = seen[1].per_second;
        for ((name, ..), seen) in targets.iter().zip(&seen) {
            println!("| {name} | {callers} | {} | {:.2} |", columns(seen), seen.per_second / base);
        }
    }
    Ok(())
}

fn serve(wasmtime: &Path, wasm: &Path, options: &[&str]) -> anyhow::Result<Server> {
    let address = free_address()?;
    let mut command = Command::new(wasmtime);
    command.arg("serve").args(options).args(["--addr", &address.to_string()]).arg(wasm);
    Server::start(command, address, None)
}

async fn memory(with: &With) -> anyhow::Result<()> {
    const FUNCTIONS: u64 = 100;
    println!("| host | resident KiB | of that private KiB |");
    println!("|---|---|---|");
    let show = |what: &str, (resident, private): (u64, u64)| println!("| {what} | {resident} | {private} |");
    let head = "spin_manifest_version = 2\n[application]\nname = \"bench\"\n\
                [[trigger.http]]\nroute = \"/ready\"\n[trigger.http.static_response]\nbody = \"ready\"\n";
    let empty = Server::tenon(&with.tenon, head, "")?;
    let (resident, private) = load::process_memory(empty.pid())?;
    show("idle, no function", (resident, private));
    drop(empty);
    let model = repository().join("examples/digits/model/digits.onnx");
    let wasm = guest("bench_digits.wasm");
    let functions: String = (0..FUNCTIONS)
        .map(|index| {
            format!(
                "[[trigger.http]]\nroute = \"/f{index}\"\ncomponent = \"f{index}\"\n[component.f{index}]\n\
                 source = {wasm:?}\n[component.f{index}.tool.tenon]\n\
                 models.digits = {{ path = {model:?}, backend = \"tract\" }}\n"
            )
        })
        .collect();
    let many = Server::tenon(&with.tenon, &format!("{head}{functions}"), "")?;
    let idle = load::process_memory(many.pid())?;
    show(&format!("{FUNCTIONS} functions, never called"), idle);
    show("a function", ((idle.0 - resident) / FUNCTIONS, idle.1.saturating_sub(private) / FUNCTIONS));
    let body: Vec<u8> = (0..64u8).flat_map(|i| (f32::from(i) / 64.0).to_le_bytes()).collect();
    let request = Request::post("/f0", "application/octet-stream", &body);
    load::run(many.address, &request, 1, Duration::from_millis(100), many.pid()).await?;
    let called = load::process_memory(many.pid())?;
    show("one of them called: the digits graph, and the slots that were used", called);
    Ok(())
}

/// Each target in turn, round after round: what the machine does beside goes to all of them.
pub async fn interleaved(
    with: &With,
    targets: &[(&str, &Server, Request)],
    callers: usize,
) -> anyhow::Result<Vec<Seen>> {
    let time = Duration::from_secs_f64(with.seconds);
    let mut rounds: Vec<Vec<Seen>> = vec![Vec::new(); targets.len()];
    for _ in 0..with.rounds.max(1) {
        for (index, (_, server, request)) in targets.iter().enumerate() {
            rounds[index].push(load::run(server.address, request, callers, time, server.pid()).await?);
        }
    }
    Ok(rounds.into_iter().map(median).collect())
}

fn median(mut rounds: Vec<Seen>) -> Seen {
    rounds.sort_by(|a, b| a.per_second.total_cmp(&b.per_second));
    rounds.swap_remove(rounds.len() / 2)
}

/// The columns of a row.
pub fn columns(seen: &Seen) -> String {
    let us = |time: Duration| format!("{:.0}", time.as_secs_f64() * 1e6);
    format!(
        "{:.0} | {} | {} | {:.1} | {}",
        seen.per_second,
        us(seen.p50),
        us(seen.p99),
        seen.cpu.as_secs_f64() * 1e6,
        seen.failed
    )
}
