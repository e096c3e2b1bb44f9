//! Arguments of `spin deploy` that other clouds have and Tenon has not, and what to do instead: none is passed over in
//! silence.

use anyhow::bail;
use clap::Args;

#[derive(Args)]
pub(super) struct Refused {
    #[arg(long, hide = true, value_name = "SECONDS")]
    readiness_timeout: Option<String>,
    #[arg(long, hide = true, value_name = "NAME")]
    environment_name: Option<String>,
    #[arg(long = "key-value", hide = true, value_name = "KEY=VALUE")]
    key_values: Vec<String>,
}

impl Refused {
    /// # Errors
    /// Where any was given.
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
