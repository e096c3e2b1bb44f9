//! Deployments under load: what callers notice of them, how fast a bad revision is out of service, what a neighbour
//! notices of a large model that is loaded, and what a host comes back with that is killed.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::guest;

mod neighbour;
#[allow(dead_code, reason = "the tests use the rest")]
#[path = "../../tests/rollouts/rig/mod.rs"]
mod rig;

use rig::host::{Host, Life as _};
use rig::image::App;
use rig::{cycles, kills};

#[derive(clap::Args)]
pub struct Setup {
    /// The `tenon` program.
    #[arg(long, default_value = "target/release/tenon")]
    tenon: PathBuf,
    /// How often the function is deployed, canaried, promoted, rolled back and removed; 0 leaves this out.
    #[arg(long, default_value_t = 100)]
    cycles: u32,
    /// Callers of that function, each on a connection of its own.
    #[arg(long, default_value_t = 16)]
    callers: usize,
    /// Calls in each state of each cycle.
    #[arg(long, default_value_t = 1000)]
    calls: u64,
    /// How often a large model is loaded beside a neighbour; 0 leaves this out.
    #[arg(long, default_value_t = 5)]
    loads: u32,
    /// How many MiB of weights the large model has.
    #[arg(long, default_value_t = 256)]
    mib: usize,
    /// Calls of the neighbour in a second.
    #[arg(long, default_value_t = 500.0)]
    rate: f64,
    /// ONNX Runtime's library, to load the large model with it and not with tract.
    #[arg(long)]
    onnxruntime: Option<PathBuf>,
    /// How often the host is killed in the midst of deployments; 0 leaves this out.
    #[arg(long, default_value_t = 200)]
    kills: usize,
    /// What the moments of the kills come from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// All of it, one after the other.
///
/// # Errors
/// Where a host does not do what it should, or a caller got anything else than it should.
pub fn run(setup: &Setup, runtime: &Runtime) -> anyhow::Result<()> {
    if setup.cycles > 0 {
        runtime.block_on(cycled(setup))?;
    }
    if setup.loads > 0 {
        runtime.block_on(neighbour::run(setup))?;
    }
    if setup.kills > 0 {
        runtime.block_on(killed(setup))?;
    }
    Ok(())
}

impl Setup {
    /// The program, wherever it is started from.
    fn tenon(&self) -> anyhow::Result<PathBuf> {
        self.tenon.canonicalize().with_context(|| format!("{}: build it first", self.tenon.display()))
    }

    /// A host in a folder and with a cache of its own.
    fn host(&self, folder: &TempDir, settings: &str) -> anyhow::Result<Host> {
        Host::new(&self.tenon()?, folder.path(), &folder.path().join("cache"), settings)
    }
}

async fn cycled(setup: &Setup) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let mut host = setup.host(&folder, "")?;
    host.start().await?;
    let app = App::new("proof", &guest("candidate.wasm"));
    let image = app.pack(&setup.tenon()?, &host.config(), &folder.path().join("app"))?;
    let settings = cycles::Settings { cycles: setup.cycles, callers: setup.callers, calls: setup.calls };
    let report = cycles::run(&host.control(), host.address(), &app, &image, &settings).await;
    let report = report.with_context(|| host.said())?;
    let found = &report.verdict;
    println!(
        "| cycles | calls | calls/s | failed or wrong | rightly found nothing | p50 us | p99 us | p99.9 us |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    println!(
        "| {} | {} | {:.0} | {} | {} | {:.0} | {:.0} | {:.0} |",
        setup.cycles,
        found.calls,
        found.calls as f64 / report.took.as_secs_f64(),
        found.wrong,
        found.absent,
        us(at(&report.latencies, 0.5)),
        us(at(&report.latencies, 0.99)),
        us(at(&report.latencies, 0.999)),
    );
    println!("\n| from the command on | p50 ms | p99 ms | largest ms |");
    println!("|---|---|---|---|");
    let row = |what: &str, mut times: Vec<Duration>| {
        times.sort_unstable();
        let [half, most, all] = [0.5, 0.99, 1.0].map(|share| us(at(&times, share)) / 1e3);
        println!("| {what} | {half:.2} | {most:.2} | {all:.2} |");
    };
    row("deployment: until it is ready", report.deployments.clone());
    let rollbacks = |of: fn(&cycles::Rollback) -> Duration| report.rollbacks.iter().map(of).collect();
    row("rollback: until it is acknowledged", rollbacks(|rollback| rollback.acknowledged));
    row(
        "rollback: last call begun that the bad revision answered",
        rollbacks(|rollback| rollback.last_begun),
    );
    row("rollback: last answer of the bad revision", rollbacks(|rollback| rollback.last_ended));
    println!();
    report.flawless()
}

async fn killed(setup: &Setup) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let mut host = setup.host(&folder, "")?.by_socket();
    let mut apps = Vec::new();
    for name in ["one", "two", "three"] {
        let app = App::new(name, &guest("candidate.wasm"));
        let image = app.pack(&setup.tenon()?, &host.config(), &folder.path().join(name))?;
        apps.push((app, image));
    }
    let settings = kills::Settings { kills: setup.kills, seed: setup.seed };
    let mut report = kills::run(&mut host, &apps, &settings).await.with_context(|| host.said())?;
    report.restarts.sort_unstable();
    println!(
        "| deployments | kills | while a revision was made ready | during a change | of these, it had taken hold | \
         restart p50 ms | largest ms |"
    );
    println!("|---|---|---|---|---|---|---|");
    println!(
        "| {} | {} | {} | {} | {} | {:.0} | {:.0} |",
        report.deployments,
        report.kills,
        report.during_preparations,
        report.during_changes,
        report.took_hold,
        us(at(&report.restarts, 0.5)) / 1e3,
        us(at(&report.restarts, 1.0)) / 1e3,
    );
    Ok(())
}

/// The time that this share of them is at most, of sorted ones.
fn at(sorted: &[Duration], share: f64) -> Duration {
    let index = (sorted.len().saturating_sub(1) as f64 * share) as usize;
    sorted.get(index).copied().unwrap_or_default()
}

fn us(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}
