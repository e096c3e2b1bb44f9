//! The app that a command is about: a spin.toml, an OCI layout folder, or a reference into a registry.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::bail;
use clap::Args;

use crate::artifact::manifest::{self, Files, Manifest, Options};
use crate::config;

/// Names an app, and gives what its manifest leaves open.
#[derive(Args, Clone, Debug)]
pub struct AppArgs {
    /// The app manifest, or a folder: spin.toml in it or above it.
    #[arg(short = 'f', long = "from", value_name = "PATH", default_value = ".")]
    pub from: String,
    /// The build profile whose overrides apply.
    #[arg(long, value_name = "NAME")]
    pub profile: Option<String>,
    /// The value of an app variable.
    #[arg(long = "variable", value_name = "NAME=VALUE | NAME=@FILE | @FILE.json | @FILE.toml")]
    pub variables: Vec<String>,
}

/// An app and the files that it names.
pub struct App {
    pub manifest: Manifest,
    pub files: Files,
}

impl AppArgs {
    /// The manifest of a local app.
    ///
    /// # Errors
    /// Where there is none, or it is wrong.
    pub fn manifest(&self, values_required: bool) -> anyhow::Result<Manifest> {
        let from = PathBuf::from(&self.from);
        let Some(path) = manifest::find(&from) else {
            bail!("there is no spin.toml at `{}` or above it; `tenon new` makes an app", from.display());
        };
        let variables = self.variables()?;
        let profile = self.profile.as_deref();
        let environment = &config::variable;
        Ok(Manifest::load(&path, &Options { profile, variables: &variables, environment, values_required })?)
    }

    /// The values of variables that the arguments give.
    ///
    /// # Errors
    /// Where one is of no known form, or names a file that cannot be read.
    pub fn variables(&self) -> anyhow::Result<BTreeMap<String, String>> {
        super::variables::read(&self.variables)
    }
}
