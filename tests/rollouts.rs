//! Deployments without downtime: what callers see while a function is changed under load, which candidates are taken
//! back and which are not, and what a host comes back with that is killed.

mod fake;
mod faults;
mod moments;
#[allow(dead_code, reason = "the benchmarks use the rest")]
mod rig;
mod trials;

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::harness::{PROGRAM, guests, repository};
use rig::host::{Host, Life as _};
use rig::image::App;
use rig::{cycles, kills};

/// A story with a time of its own: those of rollouts take longer than others.
fn run<T>(longest: Duration, story: impl Future<Output = anyhow::Result<T>>) -> T {
    guests();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let told = runtime.block_on(async { tokio::time::timeout(longest, story).await });
    told.expect("the story hangs").unwrap_or_else(|error| panic!("{error:#}"))
}

fn candidate() -> PathBuf {
    guests().join("candidate.wasm")
}

/// A host that is about to start in this folder, with the cache of all tests.
fn host(folder: &Path, settings: &str) -> anyhow::Result<Host> {
    let few = "[limits]\nconcurrency = 64\nfunction_concurrency = 64\n[inference]\nthreads = 1\n";
    Host::new(
        Path::new(PROGRAM),
        folder,
        &repository().join("target/tests-cache"),
        &format!("{few}{settings}"),
    )
}

/// A number from the environment, for longer stories.
fn number(name: &str, unless: usize) -> usize {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(unless)
}

#[test]
fn callers_notice_nothing_of_deployments_canaries_promotions_rollbacks_and_removals() {
    let cycles = u32::try_from(number("TENON_ROLLOUT_CYCLES", 3)).unwrap();
    let report = run(Duration::from_secs(60 + 20 * u64::from(cycles)), async {
        let folder = tempfile::tempdir()?;
        let mut host = host(folder.path(), "")?;
        host.start().await?;
        let app = App::new("proof", &candidate());
        let image = app.pack(Path::new(PROGRAM), &host.config(), &folder.path().join("app"))?;
        let settings = cycles::Settings { cycles, callers: 16, calls: 150 };
        let told = cycles::run(&host.control(), host.address(), &app, &image, &settings).await;
        told.map_err(|error| error.context(host.said()))
    });
    report.flawless().unwrap_or_else(|error| panic!("{error:#}"));
    assert_eq!(report.rollbacks.len(), 2 * cycles as usize);
    let expected = u64::from(cycles) * 10 * 150;
    assert!(report.verdict.calls as u64 >= expected, "too few calls to say so: {:?}", report.verdict);
    eprintln!("{} calls in {:?}, deployments {:?}", report.verdict.calls, report.took, report.deployments);
    eprintln!("{:?}", report.rollbacks);
}

#[test]
fn a_host_that_is_killed_comes_back_with_what_it_acknowledged_or_with_what_was_under_way() {
    let kills = number("TENON_ROLLOUT_KILLS", 50);
    let report = run(Duration::from_secs(60 + 5 * kills as u64), async {
        let folder = tempfile::tempdir()?;
        let mut host = host(folder.path(), "")?.by_socket();
        let mut apps = Vec::new();
        for name in ["one", "two", "three"] {
            let app = App::new(name, &candidate());
            let image = app.pack(Path::new(PROGRAM), &host.config(), &folder.path().join(name))?;
            apps.push((app, image));
        }
        let seed = number("TENON_ROLLOUT_SEED", 1) as u64;
        let settings = kills::Settings { kills, seed };
        let told = kills::run(&mut host, &apps, &settings).await;
        told.map_err(|error| error.context(host.said()))
    });
    eprintln!("{report:?}");
    assert!(report.deployments >= kills && report.during_changes > 0, "the kills met too little: {report:?}");
}
