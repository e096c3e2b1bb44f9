//! `tenon serve`: a host that is deployed to while it serves. It starts with what it served before.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use clap::Args;

use super::progress::Progress;
use super::up::{StopSignal, base};
use crate::artifact::cache::make_private;
use crate::config::Config;
use crate::control::api::listen::Listening;
use crate::control::controller::restore::Restored;
use crate::host::Surroundings;
use crate::host::controlled::Controlled;

/// Serves what is deployed to it with `tenon deploy`, and what was before it last ended.
#[derive(Args, Debug)]
pub struct ServeArgs {
    /// Where the host keeps what it serves and its history, in place of `control.state`.
    #[arg(long, value_name = "FOLDER")]
    state: Option<PathBuf>,
    /// Where to serve, in place of `listen.http`.
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// Where to take deployments and commands, in place of `control.listen`; `off` leaves the local socket alone.
    #[arg(long, value_name = "ADDRESS", value_parser = control_address)]
    control: Option<ControlAddress>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ControlAddress(Option<SocketAddr>);

fn control_address(text: &str) -> Result<ControlAddress, String> {
    match text {
        "off" => Ok(ControlAddress(None)),
        text => text
            .parse()
            .map(|address| ControlAddress(Some(address)))
            .map_err(|_| "it must be an IP address and a port such as `127.0.0.1:3002`, or `off`".to_owned()),
    }
}

/// Serves until a signal says to stop.
///
/// # Errors
/// Where the host is not in order, another one has its state, or not all calls ended before it did.
pub async fn run(args: ServeArgs, mut config: Config, progress: &Progress) -> anyhow::Result<()> {
    let given = args.state.map(|state| std::path::absolute(&state).unwrap_or(state));
    if let Some(state) = given {
        config.control.state = Some(state);
    }
    if let Some(listen) = args.listen {
        config.listen.http = listen;
    }
    if let Some(ControlAddress(control)) = args.control {
        config.control.listen = control;
    }
    let state = config.state_dir()?;
    make_private(&state).with_context(|| {
        format!("cannot make the state folder `{}`; give another with `--state`", state.display())
    })?;
    let program = std::env::current_exe().context("cannot find out which program this is")?;
    let logs = config.log.dir.clone().unwrap_or_else(|| state.join("logs"));
    let shown = (state.display().to_string(), logs.display().to_string());
    let around = Surroundings { program, logs, state };
    let (controlled, restored) = Controlled::start(config, around).await?;
    // Before anyone is told that this serves: who hears it may stop it at once.
    let mut stop = StopSignal::listen()?;
    progress.say("State", shown.0);
    progress.say("Logs", format!("{}, what functions print and their panics", shown.1));
    announce(&controlled, &restored, progress);
    stop.wait().await?;
    progress.say("Stopping", "finishing what runs; once more stops at once");
    tokio::select! {
        ended = controlled.drain() => {
            if !ended {
                bail!("some calls had not ended when the time to drain was over (`limits.drain_ms`)");
            }
        }
        stopped = stop.wait() => { stopped?; bail!("stopped before everything had ended"); }
    }
    Ok(())
}

fn announce(controlled: &Controlled, restored: &[Restored], progress: &Progress) {
    let Controlled { host, control, .. } = controlled;
    for Restored { app, outcome } in restored {
        match outcome {
            Ok(revision) => progress.say("Restored", format!("{app}, revision {revision}")),
            Err(error) => progress.warn(format_args!("`{app}` is not served: {error}")),
        }
    }
    if let Some(admin) = host.admin {
        progress.say("Operator", format!("http://{admin}/metrics, /ready, /functions"));
    }
    if let Some(grpc) = host.grpc {
        progress.say("Listening", format!("{}://{grpc} as well", host.scheme));
    }
    for line in control_lines(control) {
        progress.say("Control", line);
    }
    progress.say("Serving", base(host));
    if restored.is_empty() {
        progress.say("Try", "tenon deploy spin.toml");
    }
}

fn control_lines(control: &Listening) -> Vec<String> {
    let address = control.address.map(|address| {
        let scheme = if control.is_tls { "https" } else { "http" };
        let tokens = match control.has_tokens {
            true => "",
            false => ", where nobody is let in until there are `[control.tokens]` in host.toml",
        };
        format!("{scheme}://{address}{tokens}")
    });
    let socket = control.socket.as_ref().map(|path| format!("unix:{}, for this user", path.display()));
    address.into_iter().chain(socket).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_control_address_may_be_off() {
        assert_eq!(control_address("off"), Ok(ControlAddress(None)));
        assert_eq!(
            control_address("[::1]:80"),
            Ok(ControlAddress(Some(SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, 80)))))
        );
        assert!(control_address("localhost:3002").unwrap_err().contains("127.0.0.1:3002"));
    }
}
