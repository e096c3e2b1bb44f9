//! `tenon up`: builds if asked, serves the app, and stops in order.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use super::progress::{Progress, elapsed};
use super::watch::Watcher;
use super::{build, variables};
use crate::artifact::manifest::{self, Files, Manifest, Options};
use crate::artifact::signature::policy::Policy;
use crate::config::{self, Config};
use crate::deploy::Step;
use crate::function::{Function, Route, Target};
use crate::host::{Host, Surroundings};

#[derive(Args)]
pub struct UpArgs {
    /// Model files to serve as they are, in place of an app: ONNX files, or the `.xml` of OpenVINO models.
    #[arg(value_name = "MODEL", conflicts_with_all = ["from", "build", "profile", "variables"])]
    models: Vec<PathBuf>,
    /// The app manifest, or a folder: spin.toml in it or above it.
    #[arg(short = 'f', long = "from", value_name = "PATH", default_value = ".")]
    from: PathBuf,
    /// Runs each component's build command first.
    #[arg(long)]
    build: bool,
    /// Builds and serves anew whenever a file of the app changes; until then the former version is served.
    #[arg(long)]
    watch: bool,
    /// The build profile whose overrides apply.
    #[arg(long, value_name = "NAME")]
    profile: Option<String>,
    /// Where to serve, in place of `listen.http`.
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// The value of an app variable.
    #[arg(long = "variable", value_name = "NAME=VALUE | NAME=@FILE | @FILE.json | @FILE.toml")]
    variables: Vec<String>,
}

/// Serves until a signal says to stop.
///
/// # Errors
/// Where the app or the host is not in order, or not all calls ended before the host did.
pub async fn run(args: UpArgs, mut config: Config, progress: &Progress) -> anyhow::Result<()> {
    let app = load(&args)?;
    Policy::load(&config.signatures)?.admit_local(&app.path.display().to_string())?;
    for warning in &app.warnings {
        progress.warn(warning);
    }
    if args.build || args.watch {
        build::build(&app, &[], progress).await?;
    }
    if let Some(listen) = args.listen {
        config.listen.http = listen;
    }
    let logs = config.log.dir.clone().unwrap_or_else(|| app.dir.join(".tenon/logs"));
    let (host, mut stop) = start(config, &app, &app.files()?, logs, progress).await?;
    tokio::select! {
        stopped = stop.wait() => stopped?,
        never = watch(&args, &app, &host, progress), if args.watch => never?,
    }
    end(host, stop, progress).await
}

/// Starts a host that serves an app, and tells what it serves. Functions' own output goes to `logs`.
///
/// # Errors
/// Where the app or the host is not in order.
pub(super) async fn start(
    config: Config,
    app: &Manifest,
    files: &Files,
    logs: PathBuf,
    progress: &Progress,
) -> anyhow::Result<(Host, StopSignal)> {
    let program = std::env::current_exe().context("cannot find out which program this is")?;
    let place = format!("{}, what functions print and their panics", logs.display());
    let host = Host::start(config, Surroundings { program, logs }).await?;
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

fn load(args: &UpArgs) -> anyhow::Result<Manifest> {
    if !args.models.is_empty() {
        return Ok(Manifest::of_models(&args.models)?);
    }
    let Some(path) = manifest::find(&args.from) else {
        bail!("there is no spin.toml at `{}` or above it; `tenon new` makes an app", args.from.display());
    };
    let variables = variables::read(&args.variables)?;
    let options = Options {
        profile: args.profile.as_deref(),
        variables: &variables,
        environment: &config::variable,
        values_required: true,
    };
    Ok(Manifest::load(&path, &options)?)
}

/// Serves each new version of the app when it is in order, and says what is wrong when it is not.
async fn watch(args: &UpArgs, app: &Manifest, host: &Host, progress: &Progress) -> anyhow::Result<()> {
    let mut app = app.clone();
    loop {
        let mut watcher = Watcher::new(&app)?;
        for path in watcher.unwatched() {
            progress.warn(format!("`{path}` cannot be watched"));
        }
        loop {
            let change = watcher.changed().await;
            let rebuild: Vec<_> = change.rebuild.into_iter().collect();
            match renew(args, host, &rebuild, progress).await {
                // What is watched stands in the manifest.
                Ok(renewed) if change.manifest => {
                    app = renewed;
                    break;
                }
                Ok(_) => {}
                Err(error) => progress.warn(format!("still serving the former version: {error:#}")),
            }
        }
    }
}

async fn renew(
    args: &UpArgs,
    host: &Host,
    rebuild: &[String],
    progress: &Progress,
) -> anyhow::Result<Manifest> {
    let app = load(args)?;
    if !rebuild.is_empty() {
        let known = |id: &&String| app.components.iter().any(|component| component.id == **id);
        let rebuild: Vec<_> = rebuild.iter().filter(known).cloned().collect();
        build::build(&app, &rebuild, progress).await?;
    }
    host.deployer.deploy(&app, &app.files()?, &|_| {}).await?;
    progress.say("Serving", "the new version");
    Ok(app)
}

/// Where functions are served, as callers write it.
fn base(host: &Host) -> String {
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
    for route in snapshot.routes.iter() {
        let what = match &route.target {
            Target::Function(function) => {
                format!("{}, {}", function.name, function.revision.program.kind_name())
            }
            Target::Static(answer) => format!("status {}", answer.status),
        };
        progress.say("Route", format!("{}{} -> {what}", base(host), route.pattern));
    }
    for function in &snapshot.functions {
        for model in &function.revision.models {
            let where_to = format!("on {} ({})", model.backend, model.target);
            progress
                .say("Model", format!("{} of {} {where_to}: {}", model.name, function.name, model.signature));
        }
    }
    for (name, function) in &snapshot.models {
        progress.say("Infer", format!("{}/v2/models/{name}/infer -> {}", base(host), function.name));
    }
    if let Some(admin) = host.admin {
        progress.say("Operator", format!("http://{admin}/metrics, /ready, /functions"));
    }
    if let Some(grpc) = host.grpc {
        progress.say("Listening", format!("{}://{grpc} as well", host.scheme));
    }
    progress.say("Serving", base(host));
    let by_route = snapshot.routes.iter().find_map(|route| example(&call_to(host), &base(host), app, route));
    let call = by_route.or_else(|| {
        let by_name = |function: &Arc<Function>| {
            let body = crate::serve::json::example(function.revision.description.as_ref()?)?;
            let (curl, base) = (call_to(host), base(host));
            Some(format!("{curl} --json '{body}' {base}/v2/models/{}/infer", function.model))
        };
        snapshot.models.values().find_map(by_name)
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
    fn listen() -> std::io::Result<StopSignal> {
        let (terminate, interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        Ok(StopSignal { terminate, interrupt })
    }

    async fn wait(&mut self) -> anyhow::Result<()> {
        let signal = tokio::select! {
            signal = self.terminate.recv() => signal,
            signal = self.interrupt.recv() => signal,
        };
        signal.context("no more signals can be received")
    }
}
