//! How many candidates of each kind the default canary rolls back, and after how many of their calls: rollouts without a
//! host, whose calls are drawn, counted as the data plane counts them, and judged as it has them judged.

use tenon::rollout::analysis::{Analysis, AnalysisSettings, Arms, DEFAULT_STEPS, Judgement, ShadowCounts};
use tenon::telemetry::observations::{Distribution, Histogram, Tally, bucket, signed_bucket};

// The tests of the analysis simulate the same kinds, fewer times and with fewer looks.
#[path = "../../host/src/rollout/analysis/tests/kinds.rs"]
mod kinds;
#[path = "../../host/src/rollout/analysis/tests/simulation.rs"]
mod simulation;

use simulation::{End, Kind, Simulated};

#[derive(clap::Args)]
pub struct Setup {
    /// Rollouts of each kind.
    #[arg(long, default_value_t = 10_000)]
    rollouts: u64,
    /// Calls between two looks, where traffic is even.
    #[arg(long, default_value_t = 400)]
    between_looks: u64,
    /// Only kinds whose names contain this.
    #[arg(long, default_value = "")]
    kind: String,
}

/// Simulates every kind and prints a row for each.
///
/// # Errors
/// Where a good candidate is rolled back more often, or a bad one less, than is promised.
pub fn run(setup: &Setup) -> anyhow::Result<()> {
    println!(
        "| candidate | rolled back | waits for a person | promoted | too few calls | its calls: p50 | p99 |"
    );
    println!("|---|---|---|---|---|---|---|");
    let kinds = kinds::good_kinds().into_iter().chain(kinds::bad_kinds());
    let mut broken = Vec::new();
    for kind in kinds.filter(|kind| kind.name.contains(&setup.kind)) {
        let ends = simulate(&kind, setup);
        let share = |of: &dyn Fn(&End) -> bool| {
            100.0 * ends.iter().filter(|end| of(end)).count() as f64 / ends.len().max(1) as f64
        };
        let rolled_back = share(&|end| matches!(end, End::RolledBack { .. }));
        let mut calls: Vec<u64> = ends.iter().filter_map(calls_until_rolled_back).collect();
        calls.sort_unstable();
        let quantile = |quantile: usize| match calls.get(calls.len() * quantile / 100) {
            Some(calls) if kind.bad => calls.to_string(),
            _ => String::new(),
        };
        println!(
            "| {} | {rolled_back:.2} % | {:.2} % | {:.2} % | {:.2} % | {} | {} |",
            kind.name,
            share(&|end| *end == End::Paused),
            share(&|end| *end == End::Promoted),
            share(&|end| *end == End::Unfinished),
            quantile(50),
            quantile(99),
        );
        if kind.bad && rolled_back < 99.0 || !kind.bad && rolled_back > 1.0 {
            broken.push(kind.name);
        }
    }
    anyhow::ensure!(
        broken.is_empty(),
        "more than 1 % of these end as they should not: {}",
        broken.join(", ")
    );
    Ok(())
}

fn calls_until_rolled_back(end: &End) -> Option<u64> {
    match end {
        End::RolledBack { calls } => Some(*calls),
        _ => None,
    }
}

fn simulate(kind: &Kind, setup: &Setup) -> Vec<End> {
    let simulated = Simulated::new(kind);
    let settings = AnalysisSettings::default();
    let end = |number| simulated.rollout(&DEFAULT_STEPS, &settings, setup.between_looks, number, |_| {});
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        let end = &end;
        let mine = |thread: u64| (thread..setup.rollouts).step_by(threads);
        let running: Vec<_> = (0..threads as u64)
            .map(|thread| scope.spawn(move || mine(thread).map(end).collect::<Vec<_>>()))
            .collect();
        running.into_iter().flat_map(|ends| ends.join().expect("a simulation does not panic")).collect()
    })
}
