//! `tenon up`: builds if asked, serves the app, and stops in order.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail};
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use super::app::{App, AppArgs, From, Sources};
use super::build;
use super::progress::{Progress, elapsed};
use super::watch::Watcher;
use crate::artifact::manifest::{Files, Manifest};
use crate::artifact::signature::policy::Policy;
use crate::config::{self, Config};
use crate::deploy::Step;
use crate::function::{Function, Route, Target};
use crate::host::{Host, Surroundings};

#[derive(Args)]
pub struct UpArgs {
    /// Model files to serve as they are, in place of an app: ONNX files, or the `.xml` of OpenVINO models.
    #[arg(value_name = "MODEL", conflicts_with_all = ["from", "build", "profile", "variables", "key_values"])]
    models: Vec<PathBuf>,
    #[command(flatten)]
    app: AppArgs,
    /// Runs each component's build command first.
    #[arg(long)]
    build: bool,
    /// Builds and serves anew whenever a file of the app changes; until then the former version is served.
    #[arg(long)]
    watch: bool,
    /// Where to serve, in place of `listen.http`.
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// Sets a key of the app's default key-value store before it is served; `KEY=@FILE` takes the value from a file.
    #[arg(long = "key-value", value_name = "KEY=VALUE")]
    key_values: Vec<String>,
}

/// Serves until a signal says to stop.
///
/// # Errors
/// Where the app or the host is not in order, or not all calls ended before the host did.
pub async fn run(args: UpArgs, mut config: Config, progress: &Progress) -> anyhow::Result<()> {
    let kept = config.clone();
    let sources = Sources::open(&kept, &args.app.registry, progress)?.naming(&args.app.reference());
    let mut app = load(&args, &sources, args.build || args.watch).await?;
    if args.watch && app.image.is_some() {
        bail!("`{}` is packed and does not change; leave `--watch` out", args.app.from);
    }
    for warning in app.manifest.warnings.iter().chain(&app.files.warnings) {
        progress.warn(warning);
    }
    if let Some(listen) = args.listen {
        config.listen.http = listen;
    }
    // What is packed has no folder of its own.
    let dir = if app.image.is_some() { std::env::current_dir()? } else { app.manifest.dir.clone() };
    let state = dir.join(config::STATE_FOLDER);
    let logs = config.log.dir.clone().unwrap_or_else(|| state.join("logs"));
    let place = Place { logs, state, key_values: &args.key_values };
    let (host, mut stop) = start(config, &app.manifest, &app.files, place, progress).await?;
    tokio::select! {
        stopped = stop.wait() => stopped?,
        never = watch(&args, &mut app, &host, &sources), if args.watch => never?,
    }
    end(host, stop, progress).await
}

/// Where a host keeps what is its app's, and what it has there from the start.
pub(super) struct Place<'a> {
    /// Where functions' own output goes.
    pub(super) logs: PathBuf,
    /// Where key-value stores are, unless the operator says.
    pub(super) state: PathBuf,
    /// Keys of the app's default store that are set first, as `KEY=VALUE` or `KEY=@FILE`.
    pub(super) key_values: &'a [String],
}

/// Starts a host that serves an app, and tells what it serves.
///
/// # Errors
/// Where the app or the host is not in order.
pub(super) async fn start(
    config: Config,
    app: &Manifest,
    files: &Files,
    place: Place<'_>,
    progress: &Progress,
) -> anyhow::Result<(Host, StopSignal)> {
    let Place { logs, state, key_values } = place;
    let program = std::env::current_exe().context("cannot find out which program this is")?;
    let place = format!("{}, what functions print and their panics", logs.display());
    let host = Host::start(config, Surroundings { program, logs, state }).await?;
    set_keys(key_values, app, &host).await?;
    let report = |step: Step| progress.say("Ready", format!("{} ({})", step.what, elapsed(step.took)));
    host.deployer.deploy(app, files, &report).await?;
    // Before anyone is told that this serves: who hears it may stop it at once.
    let stop = StopSignal::listen()?;
    progress.say("Logs", place);
    announce(&host, app, progress);
    Ok((host, stop))
}

/// Serves until a signal says to stop, and then finishes what runs.
///
/// # Errors
/// Where not all calls ended before the host did.
pub(super) async fn serve(host: Host, mut stop: StopSignal, progress: &Progress) -> anyhow::Result<()> {
    stop.wait().await?;
    end(host, stop, progress).await
}

async fn end(host: Host, mut stop: StopSignal, progress: &Progress) -> anyhow::Result<()> {
    progress.say("Stopping", "finishing what runs; once more stops at once");
    tokio::select! {
        ended = host.drain() => {
            if !ended {
                bail!("some calls had not ended when the time to drain was over (`limits.drain_ms`)");
            }
        }
        stopped = stop.wait() => { stopped?; bail!("stopped before everything had ended"); }
    }
    Ok(())
}

async fn load(args: &UpArgs, sources: &Sources<'_>, build: bool) -> anyhow::Result<App> {
    match args.models.as_slice() {
        [] => {
            sources.admit_local(&args.app)?;
            sources.app(&args.app, build, true).await
        }
        models => {
            Policy::load(&sources.config.signatures)?.admit_local("model files")?;
            sources.local(Manifest::of_models(models)?).await
        }
    }
}

/// Sets keys of the app's default store.
async fn set_keys(pairs: &[String], app: &Manifest, host: &Host) -> anyhow::Result<()> {
    if pairs.is_empty() {
        return Ok(());
    }
    let pairs = pairs.iter().map(|pair| {
        let (key, value) = pair.split_once('=').context("--key-value takes KEY=VALUE or KEY=@FILE")?;
        let value = match value.strip_prefix('@') {
            Some(file) => {
                std::fs::read(file).with_context(|| format!("cannot read `{file}` (--key-value)"))?
            }
            None => value.as_bytes().to_vec(),
        };
        Ok((key.to_owned(), value))
    });
    let pairs = pairs.collect::<anyhow::Result<Vec<_>>>()?;
    let store = host.deployer.key_value.store(&app.name, config::DEFAULT_STORE).await?;
    store.set_many(pairs).await.context("cannot set the keys of --key-value")
}

/// Serves each new version of the app when it is in order, and says what is wrong when it is not.
async fn watch(args: &UpArgs, app: &mut App, host: &Host, sources: &Sources<'_>) -> anyhow::Result<()> {
    loop {
        let mut watcher = Watcher::new(&app.manifest)?;
        for path in watcher.unwatched() {
            sources.progress.warn(format!("`{path}` cannot be watched"));
        }
        loop {
            let change = watcher.changed().await;
            let rebuild: Vec<_> = change.rebuild.into_iter().collect();
            match renew(args, host, &rebuild, sources).await {
                Ok(renewed) => {
                    *app = renewed;
                    // What is watched stands in the manifest.
                    if change.manifest {
                        break;
                    }
                }
                Err(error) => sources.progress.warn(format!("still serving the former version: {error:#}")),
            }
        }
    }
}

async fn renew(args: &UpArgs, host: &Host, rebuild: &[String], sources: &Sources<'_>) -> anyhow::Result<App> {
    let From::Manifest(path) = args.app.source()? else {
        bail!("`{}` is not the app that was served before", args.app.from);
    };
    let manifest = args.app.manifest(&path, true)?;
    if !rebuild.is_empty() {
        let known = |id: &&String| manifest.components.iter().any(|component| component.id == **id);
        let rebuild: Vec<_> = rebuild.iter().filter(known).cloned().collect();
        build::build(&manifest, &rebuild, sources.progress).await?;
    }
    let app = sources.local(manifest).await?;
    host.deployer.deploy(&app.manifest, &app.files, &|_| {}).await?;
    sources.progress.say("Serving", "the new version");
    Ok(app)
}

/// Where functions are served, as callers write it.
pub(super) fn base(host: &Host) -> String {
    format!("{}://{}", host.scheme, host.http)
}

/// The program that calls, and what it must trust.
fn call_to(host: &Host) -> String {
    match &host.deployer.config.listen.tls {
        Some(tls) => format!("curl --cacert {}", tls.certificate.display()),
        None => "curl".to_owned(),
    }
}

fn announce(host: &Host, app: &Manifest, progress: &Progress) {
    let snapshot = host.functions.snapshot();
    for route in snapshot.routes() {
        let what = match &route.target {
            Target::Function(function) => {
                format!("{}, {}", function.name, function.revision.program.kind_name())
            }
            Target::Static(answer) => format!("status {}", answer.status),
        };
        progress.say("Route", format!("{}{} -> {what}", base(host), route.pattern));
    }
    for function in snapshot.functions() {
        for model in &function.revision.models {
            let where_to = format!("on {} ({})", model.backend, model.target);
            progress
                .say("Model", format!("{} of {} {where_to}: {}", model.name, function.name, model.signature));
        }
    }
    for function in snapshot.models() {
        progress
            .say("Infer", format!("{}/v2/models/{}/infer -> {}", base(host), function.model, function.name));
    }
    if let Some(admin) = host.admin {
        progress.say("Operator", format!("http://{admin}/metrics, /ready, /functions"));
    }
    if let Some(grpc) = host.grpc {
        progress.say("Listening", format!("{}://{grpc} as well", host.scheme));
    }
    progress.say("Serving", base(host));
    let by_route = snapshot.routes().find_map(|route| example(&call_to(host), &base(host), app, route));
    let call = by_route.or_else(|| {
        let by_name = |function: &Arc<Function>| {
            let body = crate::serve::json::example(function.revision.description.as_ref()?)?;
            let (curl, base) = (call_to(host), base(host));
            Some(format!("{curl} --json '{body}' {base}/v2/models/{}/infer", function.model))
        };
        snapshot.models().find_map(by_name)
    });
    if let Some(call) = call {
        progress.say("Try", call);
    }
}

/// A call that works: with a file of the app where the function takes files, else with zeros.
fn example(curl: &str, base: &str, app: &Manifest, route: &Route) -> Option<String> {
    let Target::Function(function) = &route.target else { return None };
    let path = route.pattern.strip_suffix("/...").unwrap_or(&route.pattern);
    if path.contains(':') {
        return None;
    }
    let url = format!("{base}{path}");
    let Some(description) = &function.revision.description else { return Some(format!("{curl} {url}")) };
    if description.accepts.is_empty() {
        let body = crate::serve::json::example(description)?;
        return Some(format!("{curl} --json '{body}' {url}"));
    }
    let file = sample(app, function, &description.accepts)?;
    let media_type = description.accepts.iter().find(|accepted| accepted.as_str() == "application/json");
    let header = media_type.map(|media_type| format!("-H 'content-type: {media_type}' ")).unwrap_or_default();
    Some(format!("{curl} {header}--data-binary @{} {url}", file.display()))
}

/// A file beside the function's model, or one folder up, that looks like what the function accepts.
fn sample(app: &Manifest, function: &Function, accepts: &[String]) -> Option<PathBuf> {
    let component = app.components.iter().find(|component| app.function(component) == function.name)?;
    let models = component.models.values().filter_map(|model| model.path.parent());
    let folders = models.flat_map(|folder| [Some(folder), folder.parent()]).flatten();
    let mut files: Vec<PathBuf> = folders
        .flat_map(|folder| std::fs::read_dir(folder).into_iter().flatten().flatten())
        .map(|entry| entry.path())
        .filter(|path| path.is_file() && accepts.iter().any(|accepted| looks_like(path, accepted)))
        .collect();
    files.sort();
    let file = files.into_iter().next()?;
    let here = std::env::current_dir().ok();
    Some(here.and_then(|here| file.strip_prefix(here).ok().map(Path::to_owned)).unwrap_or(file))
}

fn looks_like(path: &Path, media_type: &str) -> bool {
    let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
    match media_type {
        "image/png" => ending == "png",
        "image/jpeg" => matches!(ending, "jpg" | "jpeg"),
        "image/*" => matches!(ending, "png" | "jpg" | "jpeg"),
        // A model's own settings are JSON too: only a file that says so is a sample.
        "application/json" => path.file_name().is_some_and(|name| name == "sample.json"),
        "text/*" | "text/plain" => ending == "txt",
        _ => false,
    }
}

/// The signals that ask to stop: SIGTERM, and ctrl-c.
pub(super) struct StopSignal {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl StopSignal {
    pub(super) fn listen() -> std::io::Result<StopSignal> {
        let (terminate, interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        Ok(StopSignal { terminate, interrupt })
    }

    pub(super) async fn wait(&mut self) -> anyhow::Result<()> {
        let signal = tokio::select! {
            signal = self.terminate.recv() => signal,
            signal = self.interrupt.recv() => signal,
        };
        signal.context("no more signals can be received")
    }
}
