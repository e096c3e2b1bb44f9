//! The command line: one subcommand a file.

#![expect(clippy::print_stdout, reason = "what a command answers goes to standard output")]

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::backend::available::Backends;
use crate::config::{self, Config};
use crate::host;
use crate::instance::engine::resets_by_pagemap;
use progress::Progress;

pub mod app;
pub mod backend;
pub mod build;
pub mod cache;
pub mod check;
pub mod conformance;
pub mod deploy;
pub mod diff;
pub mod doctor;
pub mod hosts;
pub mod key;
pub mod model;
pub mod new;
pub mod package;
pub mod progress;
pub mod push;
pub mod rollout;
pub mod serve;
pub mod sign;
pub mod spin_plugin;
pub mod status;
mod table;
pub mod transfer;
pub mod trigger;
pub mod tune;
pub mod up;
mod variables;
pub mod verify;
pub mod watch;

/// A serverless host for machine-learning model functions in WebAssembly.
#[derive(Parser)]
#[command(name = "tenon", version, about, disable_help_subcommand = true)]
struct Cli {
    /// The operator's settings; `host.example.toml` documents every key.
    #[arg(long, global = true, value_name = "HOST.TOML")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Makes a new function in a folder of its own.
    New(new::NewArgs),
    Build(build::BuildArgs),
    /// Serves the app of a spin.toml, or model files as they are.
    Up(up::UpArgs),
    /// Serves what is deployed to it, and what was before it last ended.
    Serve(serve::ServeArgs),
    Status(status::StatusArgs),
    Promote(rollout::PromoteArgs),
    Pause(rollout::PauseArgs),
    Resume(rollout::ResumeArgs),
    Rollback(rollout::RollbackArgs),
    History(rollout::HistoryArgs),
    Shadow(rollout::ShadowArgs),
    Remove(rollout::RemoveArgs),
    /// Runs golden samples on any backend, and shows what functions cost.
    Check(check::CheckArgs),
    /// Checks any server of the Open Inference Protocol, point by point.
    Conformance(conformance::ConformanceArgs),
    Deploy(deploy::DeployArgs),
    /// Packs an app as an OCI artifact.
    Package(package::PackageArgs),
    /// Packs an app and pushes it to a registry.
    Push(push::PushArgs),
    /// Pulls an app or a model from a registry into the cache.
    Pull(push::PullArgs),
    /// Pushes and pulls a model alone.
    Model(model::ModelArgs),
    /// Measures batch sizes, delays and threads for a model, and recommends settings.
    Tune(tune::TuneArgs),
    /// Shows inference backends, and obtains their libraries.
    Backend(backend::BackendArgs),
    Diff(diff::DiffArgs),
    Key(key::KeyArgs),
    Sign(sign::SignArgs),
    Verify(verify::VerifyArgs),
    Cache(cache::CacheArgs),
    /// Tells what is wrong with a setup, and the command that mends it.
    Doctor(doctor::DoctorArgs),
    SpinPlugin(spin_plugin::SpinPluginArgs),
    #[command(hide = true)]
    Login(deploy::LoginArgs),
    /// Serves an app that Spin hands over; Spin starts this by itself.
    #[command(name = trigger::NAME, hide = true)]
    Trigger(trigger::TriggerArgs),
    /// Tries a model out; the host starts this by itself.
    #[command(name = crate::backend::vet::CHILD_COMMAND, hide = true)]
    VetModel,
}

/// The Python whose `pip` obtains libraries.
const PYTHON: &str = "python3";

/// Runs the command that the arguments name, says what went wrong and what to do, and answers with the status that the
/// program ends with.
pub fn run() -> ExitCode {
    let cli = Cli::parse_from(trigger::arguments());
    // A host goes on whoever reads what it says.
    if !matches!(cli.command, Command::Up(_) | Command::Serve(_) | Command::Trigger(_)) {
        end_with_the_reader();
    }
    let trouble = if matches!(cli.command, Command::Diff(_)) { diff::TROUBLE } else { 1 };
    execute(cli).unwrap_or_else(|error| {
        eprintln!("error: {}", progress::harmless(&format_args!("{error:#}")));
        ExitCode::from(trouble)
    })
}

/// Ends without a word where who reads the output has enough of it, such as `head`.
fn end_with_the_reader() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let text = panic.payload().downcast_ref::<String>().map_or("", String::as_str);
        if text.starts_with("failed printing to stdout") && text.contains("Broken pipe") {
            std::process::exit(0);
        }
        usual(panic);
    }));
}

fn execute(cli: Cli) -> anyhow::Result<ExitCode> {
    if let Command::VetModel = cli.command {
        crate::backend::vet::child()?;
        return Ok(ExitCode::SUCCESS);
    }
    let config = Config::load(cli.config.as_deref())?;
    let json = config.log.format == config::LogFormat::Json;
    // Loads and evictions are the host's news, not a measurement's.
    let usual =
        if matches!(cli.command, Command::Tune(_) | Command::Check(_)) { "warn" } else { "warn,tenon=info" };
    let filter = config::log_filter().unwrap_or_else(|| usual.to_owned());
    crate::telemetry::start_log(json, &filter);
    let progress = Progress::stderr(config::no_color());
    match cli.command {
        Command::New(args) => new::run(&args, &progress),
        Command::Build(args) => runtime()?.block_on(build::run(&args, &progress)),
        Command::Deploy(args) => return runtime()?.block_on(deploy::run(args, config, &progress)),
        Command::Diff(args) => return runtime()?.block_on(diff::run(&args, &config, &progress)),
        Command::Serve(args) => runtime()?.block_on(serve::run(args, config, &progress)),
        Command::Status(args) => return runtime()?.block_on(status::run(&args, &config, &progress)),
        Command::Promote(args) => return runtime()?.block_on(rollout::promote(args, &config, &progress)),
        Command::Pause(args) => return runtime()?.block_on(rollout::pause(args, &config, &progress)),
        Command::Resume(args) => return runtime()?.block_on(rollout::resume(args, &config, &progress)),
        Command::Rollback(args) => return runtime()?.block_on(rollout::rollback(args, &config, &progress)),
        Command::History(args) => return runtime()?.block_on(rollout::history(args, &config, &progress)),
        Command::Shadow(args) => return runtime()?.block_on(rollout::shadow(args, &config, &progress)),
        Command::Remove(args) => return runtime()?.block_on(rollout::remove(args, &config, &progress)),
        Command::Sign(args) => runtime()?.block_on(sign::run(&args, &config, &progress)),
        Command::Verify(args) => runtime()?.block_on(verify::run(&args, &config, &progress)),
        Command::Key(args) => key::run(&args, &progress),
        Command::Check(args) => runtime()?.block_on(check::run(&args, config, &progress)),
        Command::Conformance(args) => conformance::run(&args, &progress),
        Command::Tune(args) => runtime()?.block_on(tune::run(&args, config, &progress)),
        Command::Cache(args) => cache::run(&args, &config, &progress),
        Command::Login(_) => deploy::login(),
        Command::SpinPlugin(args) => spin_plugin::run(&args, &progress),
        Command::Trigger(args) => runtime()?.block_on(trigger::run(args, config, &progress)),
        Command::Package(args) => runtime()?.block_on(package::run(&args, config, &progress)),
        Command::Push(args) => runtime()?.block_on(push::push(&args, config, &progress)),
        Command::Pull(args) => runtime()?.block_on(push::pull(&args, config, &progress)),
        Command::Model(args) => runtime()?.block_on(model::run(&args, config, &progress)),
        Command::Up(args) => runtime()?.block_on(up::run(args, config, &progress)),
        Command::Backend(args) => {
            let libraries = trusted_libraries(&config)?;
            let find = || backends(&config, &libraries);
            let python = Path::new(PYTHON);
            let place = backend::Place { libraries: &libraries, python, find: &find, progress: &progress };
            backend::run(&args, &config, &place)
        }
        Command::Doctor(args) => {
            let backends = backends(&config, &trusted_libraries(&config)?);
            let python = Path::new(PYTHON);
            let setup =
                doctor::Setup { config: &config, backends: &backends, python, pagemap: &resets_by_pagemap };
            doctor::run(&args, &setup)
        }
        Command::VetModel => Ok(()),
    }?;
    Ok(ExitCode::SUCCESS)
}

/// Where libraries were installed. What lies there is loaded into this process, so nobody else may write it.
fn trusted_libraries(config: &Config) -> anyhow::Result<PathBuf> {
    let cache = config.cache_dir()?;
    crate::artifact::cache::trusted(&cache)?;
    Ok(cache.join("libraries"))
}

fn backends(config: &Config, libraries: &Path) -> Backends {
    Backends::find(&config.inference.backends, &host::libraries(config, libraries))
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        // Graphs are loaded on its blocking threads.
        .thread_stack_size(crate::backend::pool::STACK_BYTES)
        // A guest that computes is polled once a tick: sockets and timers must not wait for 61 such polls.
        .event_interval(4)
        .build()
}
