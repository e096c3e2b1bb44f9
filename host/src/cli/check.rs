//! `tenon check`: runs an app's golden samples, on any backend, and shows what its functions cost.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;

use super::app::{App, AppArgs, From, Sources};
use super::progress::Progress;
use crate::artifact::manifest::{Files, Manifest};
use crate::artifact::sample::Sample;
use crate::config::{BACKENDS, Config};
use crate::deploy::Deployer;
use crate::function::{Function, Release};
use crate::host::{self, Surroundings};
use crate::samples::files::{among, open, title};
use crate::samples::{self, Verdict};

mod cost;
mod table;

use cost::Cost;

#[derive(Args)]
pub struct CheckArgs {
    #[command(flatten)]
    app: AppArgs,
    /// Only this function: the id of its component.
    #[arg(short = 'c', long = "component-id", value_name = "ID")]
    components: Vec<String>,
    /// Runs each component's build command first.
    #[arg(long)]
    build: bool,
    /// Runs the models on this backend, whatever they ask for; may be repeated.
    #[arg(long = "backend", value_name = "NAME", value_parser = clap::builder::PossibleValuesParser::new(BACKENDS))]
    backends: Vec<String>,
    /// How often each sample is run to measure it.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    repeat: u32,
    /// Writes what the functions answer into the samples that have no `response` yet.
    #[arg(long)]
    record: bool,
    /// Prints JSON in place of tables.
    #[arg(long)]
    json: bool,
}

/// One sample on one backend.
struct Row {
    function: String,
    sample: String,
    /// What the function's models run on; empty for a function without models.
    backend: String,
    /// Why it could not be run, or what came of it.
    outcome: Result<Checked, String>,
}

/// A sample that was run.
struct Checked {
    name: String,
    verdict: Verdict,
    cost: Cost,
    recorded: bool,
}

impl Row {
    fn passed(&self) -> bool {
        match &self.outcome {
            Ok(checked) => matches!(checked.verdict, Verdict::Passed(_)) || checked.recorded,
            Err(_) => false,
        }
    }
}

/// What one function consists of, in bytes.
#[derive(serde::Serialize)]
struct Size {
    function: String,
    backend: String,
    /// The component as its author ships it.
    component: u64,
    /// Its native code.
    native_code: u64,
    /// The files of its models.
    weights: u64,
    /// Its graphs in memory, for as many callers as they are loaded for.
    graphs: u64,
}

/// Runs the samples and prints what came of them.
///
/// # Errors
/// Where the app cannot be deployed, or a sample does not pass.
pub async fn run(args: &CheckArgs, config: Config, progress: &Progress) -> anyhow::Result<()> {
    let sources = Sources::open(&config, &args.app.registry, progress)?.naming(&args.app.reference());
    let app = load(args, &sources).await?;
    let program = std::env::current_exe().context("cannot find out which program this is")?;
    let logs = tempfile::tempdir().context("cannot make a folder for the functions' output")?;
    // Nor is anything that a sample writes kept.
    let state = logs.path().join("state");
    let around =
        || Surroundings { program: program.clone(), logs: logs.path().to_owned(), state: state.clone() };
    let config = without_stores(&config);
    let choices: Vec<Option<&str>> = match args.backends.as_slice() {
        [] => vec![None],
        named => named.iter().map(|name| Some(name.as_str())).collect(),
    };
    let (mut rows, mut sizes) = (Vec::new(), Vec::new());
    for backend in choices {
        let manifest = on_backend(&app.manifest, backend);
        let step =
            progress.step("Deploying", backend.map_or("the app".to_owned(), |name| format!("on {name}")));
        let deployed = async {
            let bench = Bench::of(&manifest, &app.files, &config, around(), false).await?;
            anyhow::Ok((bench, Bench::of(&manifest, &app.files, &config, around(), true).await?))
        };
        let (bench, counting) = match (deployed.await, backend) {
            (Ok(deployed), _) => deployed,
            // What other backends answered is not lost over one that is not there.
            (Err(error), Some(backend)) => {
                drop(step);
                let (function, backend) = (manifest.name.clone(), backend.to_owned());
                let outcome = Err(format!("{error:#}"));
                rows.push(Row { function, sample: "-".to_owned(), backend, outcome });
                continue;
            }
            (Err(error), None) => return Err(error),
        };
        step.done();
        for function in &bench.release.functions {
            let Some(id) = wanted(args, &manifest, function) else { continue };
            sizes.push(size(function));
            let files = app.files.samples.get(id).cloned().unwrap_or_default();
            for (name, path) in among(&files) {
                let outcome = check(args, name, path, &files, function, &bench, &counting).await;
                let (function, backend) = (function.name.clone(), backends(function));
                let sample = outcome.as_ref().map_or_else(|_| title(name), |checked| checked.name.clone());
                rows.push(Row { function, sample, backend, outcome });
            }
        }
    }
    report(args, &rows, &sizes)
}

/// The settings with every key-value store in a file of the check's own.
fn without_stores(config: &Config) -> Config {
    let mut config = config.clone();
    config.key_value.dir = None;
    for store in config.key_value.stores.values_mut() {
        *store = crate::config::KeyValueStore::default();
    }
    config
}

async fn load(args: &CheckArgs, sources: &Sources<'_>) -> anyhow::Result<App> {
    sources.admit_local(&args.app)?;
    if args.record && !matches!(args.app.source()?, From::Manifest(_)) {
        bail!("`{}` is packed and does not change; record its samples where its spin.toml is", args.app.from);
    }
    let mut app = sources.app(&args.app, args.build, true).await?;
    let manifest = &mut app.manifest;
    for id in &args.components {
        if !manifest.components.iter().any(|component| component.id == *id) {
            let ids: Vec<_> = manifest.components.iter().map(|component| component.id.as_str()).collect();
            bail!("there is no component `{id}`; there are {}", ids.join(", "));
        }
    }
    if !args.components.is_empty() {
        // What is not asked for need not be deployable here.
        manifest.components.retain(|component| args.components.contains(&component.id));
        manifest.triggers.retain(|trigger| match &trigger.target {
            crate::artifact::manifest::Target::Component(id) => args.components.contains(id),
            crate::artifact::manifest::Target::Static { .. } => true,
        });
    }
    Ok(app)
}

fn report(args: &CheckArgs, rows: &[Row], sizes: &[Size]) -> anyhow::Result<()> {
    match args.json {
        true => println!("{}", table::json(rows, sizes)),
        false => print!("{}", table::text(rows, sizes)),
    }
    if rows.is_empty() {
        bail!(
            "there are no samples; name them in spin.toml, `samples = [\"samples/*.json\"]` in \
             `[component.<id>.tool.tenon]` (docs/samples.md)"
        );
    }
    match rows.iter().filter(|row| !row.passed()).count() {
        0 => Ok(()),
        failed => bail!("{failed} of {} samples did not pass", rows.len()),
    }
}

/// The same app with every model on one backend.
fn on_backend(manifest: &Manifest, backend: Option<&str>) -> Manifest {
    let mut manifest = manifest.clone();
    if let Some(backend) = backend {
        let models = manifest.components.iter_mut().flat_map(|component| component.models.values_mut());
        for model in models {
            model.backend = Some(backend.to_owned());
        }
    }
    manifest
}

fn wanted<'m>(args: &CheckArgs, manifest: &'m Manifest, function: &Function) -> Option<&'m str> {
    let is_it = |id: &str| args.components.is_empty() || args.components.iter().any(|wanted| wanted == id);
    let component =
        manifest.components.iter().find(|component| manifest.function(component) == function.name)?;
    is_it(&component.id).then_some(component.id.as_str())
}

fn backends(function: &Function) -> String {
    let mut names: Vec<_> = function.revision.models.iter().map(|model| model.backend).collect();
    names.dedup();
    names.join(", ")
}

fn size(function: &Function) -> Size {
    let revision = &function.revision;
    let granted = &revision.program.granted().models;
    let length = |path: &Path| std::fs::metadata(path).map_or(0, |metadata| metadata.len());
    let weights =
        |model: &crate::backend::ModelFile| length(&model.path) + model.weights.as_deref().map_or(0, length);
    Size {
        function: function.name.clone(),
        backend: backends(function),
        component: revision.component_bytes,
        native_code: revision.program.native_bytes() as u64,
        weights: granted.values().map(|grant| weights(&grant.model.file)).sum(),
        graphs: granted.values().map(|grant| grant.model.cost_bytes).sum(),
    }
}

/// An app that is deployed, and served to nobody.
struct Bench {
    release: Release,
    /// What the release runs on.
    _deployer: Deployer,
}

impl Bench {
    async fn of(
        manifest: &Manifest,
        files: &Files,
        config: &Config,
        around: Surroundings,
        fuel: bool,
    ) -> anyhow::Result<Bench> {
        let deployer = host::workbench(config.clone(), around, fuel)?;
        let release = deployer.release(manifest, files, 1, String::new(), &|_| {}).await?;
        Ok(Bench { release, _deployer: deployer })
    }
}

async fn check(
    args: &CheckArgs,
    name: &str,
    path: &Path,
    files: &BTreeMap<String, PathBuf>,
    function: &Arc<Function>,
    bench: &Bench,
    counting: &Bench,
) -> Result<Checked, String> {
    let golden = open(name, path, files).map_err(|error| error.to_string())?;
    let routes = &bench.release.routes;
    // The first may load the model, and is not measured.
    let first = samples::run(&golden, function, &function.revision.program, routes)
        .await
        .map_err(|error| error.to_string())?;
    let recorded = args.record && first.verdict == Verdict::NothingExpected;
    if recorded {
        let response = first.response.map_err(|error| error.to_string())?;
        let sample = Sample { response: Some(response), ..golden.sample.clone() };
        let mut text = serde_json::to_string_pretty(&sample).map_err(|error| error.to_string())?;
        text.push('\n');
        std::fs::write(path, text).map_err(|error| format!("cannot write `{}`: {error}", path.display()))?;
    }
    let cost =
        cost::measure(args.repeat, || samples::run(&golden, function, &function.revision.program, routes))
            .await;
    let mut cost = cost.map_err(|error| error.to_string())?;
    if let Some(counted) = counting.release.function(&function.name) {
        // The first call of an instance's code may differ: caches of the guest's own do not outlive a call.
        cost.fuel = samples::run(&golden, counted, &counted.revision.program, &counting.release.routes)
            .await
            .ok()
            .and_then(|ran| ran.usage.fuel);
    }
    Ok(Checked { name: golden.name, verdict: first.verdict, cost, recorded })
}

/// How long a measurement may take, whatever was asked for.
const LONGEST: Duration = Duration::from_secs(60);

/// Whether a measurement that began then has taken long enough.
fn is_long(started: Instant) -> bool {
    started.elapsed() > LONGEST
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: CheckArgs,
    }

    #[tokio::test]
    async fn samples_of_a_packed_app_are_not_recorded() {
        let folder = tempfile::tempdir().unwrap();
        let layout = folder.path().join("packed");
        std::fs::create_dir(&layout).unwrap();
        std::fs::write(layout.join("oci-layout"), "{}").unwrap();
        let mut config = Config::default();
        config.cache.dir = Some(folder.path().join("cache"));
        let progress = Progress::stderr(true);
        let check = async |from: &str| {
            let args = Line::parse_from(["check", "--record", "-f", from]).args;
            let sources = Sources::open(&config, &args.app.registry, &progress).unwrap();
            let error = load(&args, &sources).await.err().expect("there is nothing to record");
            assert!(error.to_string().contains("is packed and does not change"), "{error:#}");
        };
        check(&layout.display().to_string()).await;
        check("registry.example/acme/digits:1").await;
    }
}
