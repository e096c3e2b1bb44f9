//! `tenon deploy`: makes a revision ready on every host, and only then starts its rollout on all of them.
//!
//! The order is the promise. While a revision is made ready nothing changes for anybody's callers; where one host
//! cannot, nothing is started anywhere and what the others made ready is discarded. Where a rollout cannot be started,
//! those that were are undone.

#![expect(clippy::print_stdout, reason = "what a command answers goes to standard output")]

mod follow;
mod place;
mod remote;
mod spin;
#[cfg(test)]
mod tests;
mod upload;
mod view;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser as _};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::app::{self, AppArgs, From, Sources};
use super::hosts::HostArgs;
use super::package;
use super::progress::Progress;
use super::variables;
use crate::artifact::package::Packed;
use crate::artifact::reference::Reference;
use crate::config::Config;
use crate::control::wire::{Prepare, Source, Start};
use crate::rollout::plan::{Plan, Strategy};
use follow::Ended;
use place::{Deployment, Placed};
use remote::Remote;
use upload::Blob;
use view::View;

pub use spin::{LoginArgs, login};

/// Deploys an app without downtime: makes a new revision ready on one host or several, and only when all of them have it
/// starts to send traffic there.
///
/// Ends with 0 where the revision was promoted, or waits as its plan says; with 1 where it was not deployed or was rolled
/// back; with 3 where the numbers do not decide and a person has to. Ctrl-c only stops following a rollout.
#[derive(Args)]
pub struct DeployArgs {
    /// What to deploy: a spin.toml, a folder with one in it or above it, an OCI layout folder, or a reference into a
    /// registry, which the hosts pull themselves.
    #[arg(value_name = "APP", conflicts_with = "from")]
    named: Option<String>,
    #[command(flatten)]
    app: AppArgs,
    /// Runs each component's build command first.
    #[arg(long, env = "SPIN_ALWAYS_BUILD")]
    build: bool,
    #[command(flatten)]
    hosts: HostArgs,
    /// How traffic goes to the new revision: all at once, unless this or the plan says otherwise.
    #[arg(long, value_name = "STRATEGY", value_parser = strategies())]
    strategy: Option<Strategy>,
    /// A file with the plan of the rollout: steps, weights, what judges it (docs/rollouts.md).
    #[arg(long, value_name = "PLAN.TOML")]
    plan: Option<PathBuf>,
    /// Deploys even where callers of the live revision may break.
    #[arg(long)]
    allow_incompatible: bool,
    /// Deploys even where the app may do more than its live revision.
    #[arg(long)]
    allow_capabilities: bool,
    /// Does not run the golden samples.
    #[arg(long)]
    skip_samples: bool,
    /// Stands in the history, for people: who deployed, or why.
    #[arg(short = 'm', long, value_name = "TEXT")]
    message: Option<String>,
    /// Does not follow the rollout once it has started.
    #[arg(long)]
    detach: bool,
    #[command(flatten)]
    spin: spin::SpinArgs,
}

/// Ends a command that a person has to decide about.
const UNDECIDED: u8 = 3;
/// Ends a command that was interrupted while it followed a rollout.
const INTERRUPTED: u8 = 130;

fn strategies() -> impl clap::builder::TypedValueParser<Value = Strategy> {
    const ALL: [Strategy; 4] = [Strategy::AllAtOnce, Strategy::Canary, Strategy::Shadow, Strategy::Manual];
    let names = PossibleValuesParser::new(ALL.map(Strategy::name));
    names.map(|name| ALL.into_iter().find(|strategy| strategy.name() == name).unwrap_or(Strategy::Manual))
}

/// Deploys, follows the rollout, and answers with the status that the program ends with. Prints a line for each host:
/// app and revision, digest, host, and what became of it.
///
/// # Errors
/// Where the app is not whole, a host cannot be reached or refuses it, or the rollout cannot be started.
pub async fn run(args: DeployArgs, config: Config, progress: &Progress) -> anyhow::Result<ExitCode> {
    args.spin.check()?;
    let from = args.named.as_deref().or(args.spin.named()).unwrap_or(&args.app.from);
    let named = AppArgs { from: from.to_owned(), ..args.app.clone() };
    // What is wrong with what was typed is told before anything takes its time.
    let plan = plan(&args)?;
    let values = variables::read(&named.variables)?;
    let what = named.source()?;
    if let (From::Registry(reference), true) = (&what, args.build || named.profile.is_some()) {
        bail!(
            "`{reference}` is packed: it was built, and its profile chosen, then; leave `--build` and `--profile` out"
        );
    }
    let hosts: Vec<Arc<dyn Remote>> = args
        .hosts
        .clients(&config, progress)?
        .into_iter()
        .map(|client| Arc::new(client) as Arc<dyn Remote>)
        .collect();
    let stops = stops()?;
    let view = View::new(progress, hosts.iter().map(|host| host.name()).collect());
    place::greet(&hosts, &view).await?;
    let sources = Sources::open(&config, &named.registry, progress)?.naming(&named.reference());
    let (source, blobs) = match &what {
        From::Registry(reference) => (Source::Reference(pinned(&sources, reference).await), Vec::new()),
        From::Manifest(_) | From::Layout(_) => {
            let packed = package::packed(&sources, &named, args.build, None).await?;
            progress.say("Packed", app::summary(&packed.digest, &packed.manifest));
            (Source::Uploaded(packed.digest.to_string()), blobs(&sources, &packed))
        }
    };
    let deployment = Deployment {
        prepare: Prepare {
            source,
            variables: values,
            allow_incompatible: args.allow_incompatible,
            allow_capabilities: args.allow_capabilities,
            skip_samples: args.skip_samples,
            message: args.message.clone(),
        },
        blobs,
        start: Start { revision: 0, plan, message: args.message.clone() },
    };
    let placed = place::place(&hosts, deployment, &view, stops.clone()).await?;
    if args.detach {
        detached(&placed, progress);
        report(&placed, &placed.iter().map(|_| "started").collect::<Vec<_>>());
        return Ok(ExitCode::SUCCESS);
    }
    let Some(ended) = follow::follow(&placed, &view, stops, follow::EVERY).await else {
        detached(&placed, progress);
        return Ok(ExitCode::from(INTERRUPTED));
    };
    report(&placed, &ended.iter().map(Ended::name).collect::<Vec<_>>());
    Ok(status(&ended))
}

fn plan(args: &DeployArgs) -> anyhow::Result<Plan> {
    Ok(match (&args.plan, args.strategy) {
        (Some(path), strategy) => Plan::load(path, strategy)?,
        (None, strategy) => Plan::of(strategy.unwrap_or(Strategy::AllAtOnce)),
    })
}

/// The reference with the digest that it leads to now, so that every host gets the same.
async fn pinned(sources: &Sources<'_>, reference: &Reference) -> String {
    if reference.digest().is_some() {
        return reference.to_string();
    }
    let found = match sources.registry().await {
        Ok(registry) => registry.manifest(reference).await.map_err(anyhow::Error::from),
        Err(error) => Err(error),
    };
    match found {
        Ok((digest, _)) => {
            sources.progress.say("Found", format!("{reference} is {digest}"));
            format!("{reference}@{digest}")
        }
        Err(error) => {
            // The hosts may have logins that this machine lacks.
            sources.progress.warn(format!("{error:#}; the hosts look themselves what `{reference}` is"));
            reference.to_string()
        }
    }
}

/// What an artifact consists of, its manifest last. `sources` keeps all of it in the cache.
fn blobs(sources: &Sources<'_>, packed: &Packed) -> Vec<Blob> {
    let store = sources.blobs();
    let parts = packed.manifest.blobs().into_iter().map(|blob| (blob.digest, blob.size));
    let manifest = (packed.digest, packed.manifest.bytes().len() as u64);
    parts.chain([manifest]).map(|(digest, size)| Blob { digest, size, path: store.path(&digest) }).collect()
}

/// Counts the signals that ask to stop.
fn stops() -> anyhow::Result<watch::Receiver<u32>> {
    let (count, stops) = watch::channel(0);
    // Spin's own program sends SIGTERM where a person pressed ctrl-c.
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen to signals")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen to signals")?;
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            count.send_modify(|count| *count += 1);
        }
    });
    Ok(stops)
}

/// What to do where nobody follows.
fn detached(placed: &[Placed], progress: &Progress) {
    let Some(first) = placed.first() else { return };
    let app = &first.prepared.app;
    progress.say(
        "Going on",
        format!(
            "without this command; `tenon status` shows how far it is, and `tenon promote {app}`, `tenon pause {app}` \
             and `tenon rollback {app}` take a hand in it"
        ),
    );
}

fn report(placed: &[Placed], ended: &[&str]) {
    for (placed, ended) in placed.iter().zip(ended) {
        let prepared = &placed.prepared;
        println!("{}@{} {} {} {ended}", prepared.app, prepared.revision, prepared.digest, placed.host.name());
    }
}

fn status(ended: &[Ended]) -> ExitCode {
    let is = |kind: fn(&Ended) -> bool| ended.iter().any(kind);
    if is(|ended| matches!(ended, Ended::RolledBack | Ended::Lost)) {
        return ExitCode::FAILURE;
    }
    if is(|ended| matches!(ended, Ended::Undecided)) { ExitCode::from(UNDECIDED) } else { ExitCode::SUCCESS }
}
