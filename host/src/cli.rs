//! The command line: one subcommand a file.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::config::Config;

pub mod up;

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
    /// Serves the app of a spin.toml on this machine.
    Up(up::UpArgs),
    /// Tries a model out; the host starts this by itself.
    #[command(name = crate::backend::vet::CHILD_COMMAND, hide = true)]
    VetModel,
}

/// Runs the command that the arguments name.
///
/// # Errors
/// Says what went wrong and what to do.
pub fn run() -> anyhow::Result<()> {
    let cli = Cli::parse();
    if let Command::VetModel = cli.command {
        return Ok(crate::backend::vet::child()?);
    }
    let config = Config::load(cli.config.as_deref())?;
    let json = config.log.format == crate::config::LogFormat::Json;
    let filter = crate::config::log_filter().unwrap_or_else(|| "warn,tenon=info".to_owned());
    crate::telemetry::start_log(json, &filter);
    match cli.command {
        Command::Up(args) => runtime()?.block_on(up::run(args, config)),
        Command::VetModel => Ok(()),
    }
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        // A guest that computes is polled once a tick: sockets and timers must not wait for 61 such polls.
        .event_interval(4)
        .build()
}
