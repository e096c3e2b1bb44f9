//! `tenon tune`: what threads and batching are worth for a model on this machine, measured.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;

use super::build;
use super::progress::Progress;
use crate::artifact::cache::Cache;
use crate::artifact::manifest::{self, Component, Manifest};
use crate::backend::batch::{Batching, check_batchable};
use crate::backend::residency::Model;
use crate::config::Config;
use crate::telemetry::Telemetry;
use crate::{host, tensor};

mod inputs;
mod load;
mod table;

use load::{Measured, Settings};

#[derive(Args)]
pub struct TuneArgs {
    /// The function whose model is measured: the id of its component, or a model file.
    #[arg(value_name = "FUNCTION")]
    function: String,
    /// The app manifest, or a folder: spin.toml in it or above it.
    #[arg(short = 'f', long = "from", value_name = "PATH", default_value = ".")]
    from: PathBuf,
    /// Which of the function's models, where it has several.
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// Calls at once.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=1024))]
    callers: u16,
    /// How long each point is measured, in milliseconds; runs of one size alone take half.
    #[arg(long, value_name = "MS", default_value_t = 500, value_parser = clap::value_parser!(u64).range(50..=60_000))]
    point_ms: u64,
    /// The 99th percentile that must not be passed, in milliseconds.
    #[arg(long, value_name = "MS")]
    p99_ms: Option<f64>,
    /// A request in the JSON of the Open Inference Protocol, in place of made-up inputs.
    #[arg(long, value_name = "FILE")]
    request: Option<PathBuf>,
    /// What stands for every dimension but the first that the model leaves open, where inputs are made up.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    dimension: u32,
}

/// Rows of a batch that are tried, as far as the backend gains from them.
const ROWS: [usize; 7] = [1, 2, 4, 8, 16, 32, 64];
/// Delays that are tried, in microseconds.
const DELAYS_US: [u64; 4] = [0, 200, 1000, 5000];
/// What must be gained by a batch, or by waiting for one, to be worth it.
const WORTH: f64 = 1.05;

/// Measures, and prints the curves and what they recommend.
///
/// # Errors
/// Where there is no such model, or it does not run.
pub async fn run(args: &TuneArgs, config: Config, progress: &Progress) -> anyhow::Result<()> {
    let app = app(args)?;
    let component = component(&app, &args.function)?;
    let (name, declared) = model(component, args.model.as_deref())?;
    let config = Arc::new(config);
    let program = std::env::current_exe().context("cannot find out which program this is")?;
    let cache = Cache::bounded(&config.cache_dir()?, config.cache.max_bytes())?;
    let intake = host::intake(&config, program, cache);
    let admitted = intake.admit(declared, &app.name).await?;
    progress.say("Measuring", format!("{name} on {}: {}", admitted.model.backend.name(), admitted.signature));
    let bench = Bench {
        args,
        config: &config,
        model: admitted.model,
        telemetry: Arc::new(Telemetry::new()),
        progress,
    };
    let report = bench.run().await?;
    print!("{}", table::report(&report, name, component, args));
    Ok(())
}

fn app(args: &TuneArgs) -> anyhow::Result<Manifest> {
    if args.function.ends_with(".onnx") || args.function.ends_with(".xml") {
        return Ok(Manifest::of_models(&[PathBuf::from(&args.function)])?);
    }
    build::load(&args.from, None)
}

fn component<'a>(app: &'a Manifest, function: &str) -> anyhow::Result<&'a Component> {
    if let [only] = app.components.as_slice()
        && Path::new(function).extension().is_some()
    {
        return Ok(only);
    }
    let is_it = |component: &&Component| component.id == function || app.function(component) == function;
    let ids: Vec<_> = app.components.iter().map(|component| component.id.as_str()).collect();
    app.components.iter().find(is_it).with_context(|| {
        format!("there is no function `{function}` in `{}`; there are {}", app.path.display(), ids.join(", "))
    })
}

fn model<'a>(
    component: &'a Component,
    wanted: Option<&str>,
) -> anyhow::Result<(&'a str, &'a manifest::Model)> {
    let names: Vec<_> = component.models.keys().map(String::as_str).collect();
    let found = match (wanted, names.as_slice()) {
        (Some(wanted), _) => component.models.get_key_value(wanted),
        (None, [_]) => component.models.iter().next(),
        (None, []) => bail!("function `{}` has no models", component.id),
        (None, _) => bail!("function `{}` has several models; choose one with `--model`", component.id),
    };
    let found = found.with_context(|| {
        format!("function `{}` has no such model; it has {}", component.id, names.join(", "))
    })?;
    Ok((found.0, found.1))
}

/// One session of measurements.
struct Bench<'a> {
    args: &'a TuneArgs,
    config: &'a Config,
    model: Model,
    telemetry: Arc<Telemetry>,
    progress: &'a Progress,
}

/// A number of rows, and how long a run of them takes.
struct Point {
    rows: usize,
    run: Duration,
}

impl Point {
    fn rows_per_s(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "there are few rows")]
        let rows = self.rows as f64;
        rows / self.run.as_secs_f64().max(1e-9)
    }
}

/// What was measured.
struct Report {
    /// Threads without batching.
    threads: Vec<Measured>,
    /// Runs by their rows, or why there is no batching.
    batches: Result<Vec<Point>, String>,
    /// Sizes and delays with the best number of threads.
    batching: Vec<Measured>,
    /// What serves best of it all.
    best: Settings,
}

impl Bench<'_> {
    async fn run(&self) -> anyhow::Result<Report> {
        let sample = self.sample().await?;
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let mut counts: Vec<_> = (0..).map(|power| 1_usize << power).take_while(|n| *n < cores).collect();
        counts.push(cores);
        let mut threads = Vec::new();
        for count in counts {
            threads.push(self.load(Settings { threads: count, batching: None }, &sample).await?);
        }
        let alone = self.best(&threads).context("nothing was measured")?;
        let batches = self.batches(&sample).await?;
        let mut batching = Vec::new();
        for size in batches.as_deref().map(sizes).unwrap_or_default() {
            for delay in DELAYS_US {
                let joined = Batching { max_size: size, max_delay: Duration::from_micros(delay) };
                let settings = Settings { threads: alone.settings.threads, batching: Some(joined) };
                batching.push(self.load(settings, &sample).await?);
            }
        }
        let best = match self.best(&batching) {
            Some(joined) if self.fits(joined) >= self.fits(alone) && gains(joined, alone) => joined.settings,
            _ => alone.settings,
        };
        Ok(Report { threads, batches, batching, best })
    }

    async fn sample(&self) -> anyhow::Result<Vec<(String, tensor::Tensor)>> {
        let residency = host::graphs(self.config, 1, &self.telemetry)?;
        let lease = residency.acquire(&self.model).await?;
        match &self.args.request {
            Some(path) => inputs::read(path, lease.signature()),
            None => inputs::made_up(lease.signature(), self.args.dimension as usize),
        }
    }

    async fn load(
        &self,
        settings: Settings,
        sample: &[(String, tensor::Tensor)],
    ) -> anyhow::Result<Measured> {
        let step = self.progress.step("Load", settings.to_string());
        let load = load::Load {
            callers: self.args.callers.into(),
            length: Duration::from_millis(self.args.point_ms),
            settings,
        };
        let residency = host::graphs(self.config, settings.threads, &self.telemetry)?;
        let measured = load.measure(&residency, &self.model, sample).await?;
        step.done();
        Ok(measured)
    }

    /// How long runs take by their rows. The inner error says why there is no batching.
    async fn batches(
        &self,
        sample: &[(String, tensor::Tensor)],
    ) -> anyhow::Result<Result<Vec<Point>, String>> {
        let residency = host::graphs(self.config, 1, &self.telemetry)?;
        let lease = residency.acquire(&self.model).await?;
        if let Err(reason) = check_batchable(lease.signature()) {
            return Ok(Err(reason));
        }
        if let Err(reason) = inputs::rows(sample, 1) {
            return Ok(Err(reason));
        }
        let mut points: Vec<Point> = Vec::new();
        for rows in ROWS {
            let step = self.progress.step("Batch", format!("{rows} rows"));
            let inputs = inputs::rows(sample, rows).map_err(anyhow::Error::msg)?;
            let run = load::alone(&lease, &inputs, Duration::from_millis(self.args.point_ms / 2)).await?;
            step.done();
            let point = Point { rows, run };
            let gained = points.last().is_none_or(|last| point.rows_per_s() > last.rows_per_s());
            points.push(point);
            if !gained {
                break;
            }
        }
        Ok(Ok(points))
    }

    /// The most calls a second among those that are quick enough; of nearly equal ones the first, which waits least.
    fn best<'m>(&self, measured: &'m [Measured]) -> Option<&'m Measured> {
        let quick: Vec<_> = measured.iter().filter(|one| self.fits(one)).collect();
        let among = if quick.is_empty() { measured.iter().collect() } else { quick };
        let most = among.iter().map(|one| one.per_s).fold(0.0, f64::max);
        among.into_iter().find(|one| one.per_s * WORTH >= most)
    }

    fn fits(&self, measured: &Measured) -> bool {
        self.args.p99_ms.is_none_or(|limit| measured.p99.as_secs_f64() * 1e3 <= limit)
    }
}

fn gains(joined: &Measured, alone: &Measured) -> bool {
    joined.per_s > alone.per_s * WORTH
}

/// Batch sizes that are worth a try: the one with the most rows a second, and its half.
fn sizes(points: &[Point]) -> Vec<usize> {
    let best = points.iter().max_by(|a, b| a.rows_per_s().total_cmp(&b.rows_per_s()));
    let best = best.map_or(1, |point| point.rows);
    [best / 2, best].into_iter().filter(|size| *size > 1).collect()
}
