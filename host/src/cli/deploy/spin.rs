//! What Spin's users type after `spin deploy` and `spin login`: other ways to name the app, and arguments that other
//! clouds have and Tenon has not, each with what to do instead. None is passed over in silence.

use anyhow::bail;
use clap::Args;

#[derive(Args)]
pub(super) struct SpinArgs {
    #[arg(long, alias = "file", hide = true, value_name = "APP", conflicts_with_all = ["from", "named"])]
    from_file: Option<String>,
    #[arg(long, hide = true, value_name = "REFERENCE", conflicts_with_all = ["from", "named", "from_file"])]
    from_registry: Option<String>,
    #[arg(long, hide = true, value_name = "SECONDS")]
    readiness_timeout: Option<String>,
    #[arg(long, hide = true, value_name = "NAME")]
    environment_name: Option<String>,
    #[arg(long = "key-value", hide = true, value_name = "KEY=VALUE")]
    key_values: Vec<String>,
}

impl SpinArgs {
    /// The app, where it was named as Spin has it.
    pub(super) fn named(&self) -> Option<&str> {
        self.from_file.as_deref().or(self.from_registry.as_deref())
    }

    /// # Errors
    /// Where anything was given that Tenon has not.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        if self.readiness_timeout.is_some() {
            bail!(
                "`--readiness-timeout` says nothing here: a revision takes traffic only once it is ready; leave it out"
            );
        }
        if self.environment_name.is_some() {
            bail!("hosts have no environments; name each host with `--to` in place of `--environment-name`");
        }
        if !self.key_values.is_empty() {
            bail!(
                "a deployment changes no key-value stores, which its revisions share; leave `--key-value` out, and have \
                 the app write its keys, or `tenon up --key-value` on a machine of its author"
            );
        }
        Ok(())
    }
}

/// Tells that nobody logs in. `spin login` starts this.
#[derive(Args)]
pub struct LoginArgs {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    _rest: Vec<String>,
}

/// # Errors
/// Always: says what to do instead.
pub fn login() -> anyhow::Result<()> {
    bail!(
        "there is nothing to log in to: each host knows its own tokens (`[control.tokens]` in its host.toml); give yours \
         to `tenon deploy` in TENON_TOKEN or with `--token-file`. The host of this user on this machine needs none"
    )
}
