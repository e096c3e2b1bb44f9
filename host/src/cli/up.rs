//! `tenon up`: builds if asked, serves the app, and stops in order.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use crate::artifact::manifest::{self, Manifest, Options};
use crate::config::{self, Config};
use crate::deploy::Step;
use crate::function::{Snapshot, Target};
use crate::host::{Host, Surroundings};

#[derive(Args)]
pub struct UpArgs {
    /// The app manifest, or its folder.
    #[arg(short = 'f', long = "from", default_value = ".")]
    from: PathBuf,
    /// Runs each component's build command first.
    #[arg(long)]
    build: bool,
    /// The build profile whose overrides apply.
    #[arg(long)]
    profile: Option<String>,
    /// Where to serve, in place of `listen.http`.
    #[arg(long)]
    listen: Option<SocketAddr>,
    /// The value of an app variable, as NAME=VALUE.
    #[arg(long = "variable", value_name = "NAME=VALUE")]
    variables: Vec<String>,
}

/// Serves until a signal says to stop.
///
/// # Errors
/// Where the app or the host is not in order, or not all calls ended before the host did.
pub async fn run(args: UpArgs, mut config: Config) -> anyhow::Result<()> {
    let app = load(&args)?;
    if let Some(listen) = args.listen {
        config.listen.http = listen;
    }
    let logs = config.log.dir.clone().unwrap_or_else(|| app.dir.join(".tenon/logs"));
    let program = std::env::current_exe().context("cannot find out which program this is")?;
    let host = Host::start(config, Surroundings { program, logs }).await?;
    host.deployer.deploy(&app, &report).await?;
    announce(&host);
    stop_signal().await?;
    eprintln!("  Stopping finishing what runs; once more stops at once");
    tokio::select! {
        ended = host.drain() => if !ended { bail!("some calls had not ended when the time to drain was over") },
        second = stop_signal() => { second?; bail!("stopped at once"); }
    }
    Ok(())
}

fn load(args: &UpArgs) -> anyhow::Result<Manifest> {
    let Some(path) = manifest::find(&args.from) else {
        bail!("there is no spin.toml at `{}` or above it; `tenon new` makes an app", args.from.display());
    };
    let variables = args
        .variables
        .iter()
        .map(|variable| {
            let (name, value) = variable.split_once('=').context("--variable takes NAME=VALUE")?;
            Ok((name.to_owned(), value.to_owned()))
        })
        .collect::<anyhow::Result<BTreeMap<_, _>>>()?;
    let options = Options {
        profile: args.profile.as_deref(),
        variables: &variables,
        environment: &config::variable,
        values_required: true,
    };
    Ok(Manifest::load(&path, &options)?)
}

fn report(step: Step) {
    eprintln!("     Ready {} ({:.1} ms)", step.what, step.took.as_secs_f64() * 1e3);
}

fn announce(host: &Host) {
    let snapshot = host.functions.snapshot();
    eprintln!("   Serving http://{}", host.http);
    if let Some(admin) = host.admin {
        eprintln!("  Operator http://{admin}/metrics");
    }
    for route in snapshot.routes.iter() {
        let what = match &route.target {
            Target::Function(function) => {
                format!("{} ({})", function.name, function.revision.program.kind_name())
            }
            Target::Static(answer) => format!("status {}", answer.status),
        };
        eprintln!("     Route {} -> {what}", route.pattern);
    }
    models(&snapshot);
}

fn models(snapshot: &Snapshot) {
    for function in &snapshot.functions {
        for model in &function.revision.models {
            eprintln!(
                "     Model {} of {} on {} ({}): {}",
                model.name, function.name, model.backend, model.target, model.signature
            );
        }
    }
}

async fn stop_signal() -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = terminate.recv() => {}
        interrupted = tokio::signal::ctrl_c() => interrupted?,
    }
    Ok(())
}
