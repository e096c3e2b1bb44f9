//! `tenon backend`: what backends there are, and how to get the library of a native one.

mod install;
mod list;
pub(super) mod python;
mod record;
mod wheel;

use std::path::Path;

use super::progress::Progress;
use crate::backend::available::Backends;
use crate::config::Config;

pub use install::{InstallArgs, Library};
pub use list::{Format, ListArgs};

/// List the backends, or install the library of one
#[derive(clap::Args, Debug)]
pub struct BackendArgs {
    #[command(subcommand)]
    pub command: BackendCommand,
}

#[derive(clap::Subcommand, Debug)]
pub enum BackendCommand {
    /// Show each backend: whether it is available, its version, formats, devices and library
    List(ListArgs),
    /// Install the library of a backend by the name of its Python package, through your own pip
    Install(InstallArgs),
}

/// What the commands need of this machine.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    /// Where libraries are installed: a folder of the host's own.
    pub libraries: &'a Path,
    /// The Python to run: a path, or a name to look for such as `python3`.
    pub python: &'a Path,
    /// Looks for the backends as the host does; [`search_folders`](crate::backend::available::search_folders) are among the folders searched.
    pub find: &'a dyn Fn() -> Backends,
    pub progress: &'a Progress,
}

/// Does what `args` ask for.
///
/// # Errors
/// A library could not be installed; the text says what to do.
pub fn run(args: &BackendArgs, config: &Config, place: &Place<'_>) -> anyhow::Result<()> {
    match &args.command {
        BackendCommand::List(args) => list::run(args, config, place),
        BackendCommand::Install(args) => install::run(args, place),
    }
}
