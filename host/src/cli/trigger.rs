//! `tenon trigger-tenon`: serves an app that Spin hands over, as the trigger of `[[trigger.tenon]]`.
//!
//! Spin starts its triggers with the arguments that it was given itself, and says in the environment where the app
//! lies. Each argument that Spin's own triggers know is honoured or refused by its name: none is passed over in silence.

#![expect(clippy::print_stdout, reason = "what a command answers goes to standard output")]

mod refused;
#[cfg(test)]
mod tests;

use std::ffi::{OsStr, OsString};
use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::{Args, Command};
use serde_json::json;

use super::app::{RegistryArgs, Sources};
use super::progress::Progress;
use super::up::Place;
use super::{up, variables};
use crate::artifact::locked::{self, LockedApp};
use crate::artifact::manifest::Manifest;
use crate::artifact::signature::policy::Policy;
use crate::artifact::unpack::{self, Local, Unpacked};
use crate::config::{self, Config, Handover, TlsFiles};
use crate::function::{Snapshot, Target};
use refused::Refused;

/// The plugin's name, by which Spin finds it, and the subcommand's.
pub const NAME: &str = "trigger-tenon";
/// The type of the triggers that are served.
const TYPE: &str = "tenon";
/// How many ports are tried where one is taken.
const PORTS: u16 = 1000;

/// Serves the app that Spin hands over.
#[derive(Args)]
pub struct TriggerArgs {
    /// Where to serve, in place of `listen.http` in host.toml
    #[arg(long, env = "SPIN_HTTP_LISTEN_ADDR", value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// Where this trigger serves, in an app whose HTTP triggers Spin serves itself
    #[arg(long, env = "TENON_LISTEN", value_name = "ADDRESS")]
    tenon_listen: Option<SocketAddr>,
    /// Takes the next port that is free where the one to serve at is taken
    #[arg(long)]
    find_free_port: bool,
    /// The host's certificate, in PEM
    #[arg(long, env = "SPIN_TLS_CERT", requires = "tls_key", value_name = "FILE")]
    tls_cert: Option<PathBuf>,
    /// The certificate's private key, in PEM
    #[arg(long, env = "SPIN_TLS_KEY", requires = "tls_cert", value_name = "FILE")]
    tls_key: Option<PathBuf>,
    /// Where the output of functions goes
    #[arg(short = 'L', long, env = "SPIN_LOG_DIR", value_name = "DIR")]
    log_dir: Option<OsString>,
    /// Empties the logs of functions first
    #[arg(long)]
    truncate_logs: bool,
    /// Prints nothing that functions print, as always here: it goes to files
    #[arg(short, long, aliases = ["sh", "shush"])]
    quiet: bool,
    /// Where key-value stores are, and the logs, in `logs`, unless `--log-dir` says; `.tenon` beside spin.toml otherwise
    #[arg(long, value_name = "DIR")]
    state_dir: Option<OsString>,
    /// Sets a key of the app's default key-value store before it is served
    #[arg(long = "key-value", value_name = "KEY=VALUE | KEY=@FILE")]
    key_values: Vec<String>,
    /// The value of an app variable
    #[arg(long = "variable", value_name = "NAME=VALUE | NAME=@FILE | @FILE.json | @FILE.toml")]
    variables: Vec<String>,
    /// The most memory of one instance in bytes, in place of `limits.memory_mib` in host.toml
    #[arg(long, env = "SPIN_MAX_INSTANCE_MEMORY", value_name = "BYTES", value_parser = clap::value_parser!(u64).range(1 << 20..))]
    max_instance_memory: Option<u64>,
    /// How long a call may take, such as `500ms` or `30s`, in place of `limits.deadline_ms` in host.toml
    #[arg(long, value_name = "TIME", value_parser = milliseconds)]
    request_timeout: Option<u64>,
    /// What is told once the app is served
    #[arg(long, value_enum, default_value = "plain")]
    format: Format,
    #[arg(long, hide = true)]
    help_args_only: bool,
    #[arg(long, hide = true)]
    launch_metadata_only: bool,
    #[arg(long, hide = true)]
    precompose_only: bool,
    #[arg(long, hide = true, value_name = "ID")]
    precompose_component_id: Option<String>,
    #[command(flatten)]
    refused: Refused,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// Lines for people, on standard error
    Plain,
    /// JSON with the base URL and the routes, on standard output
    Json,
}

/// The arguments of this process; those of Spin's plugin get the subcommand that they are for.
pub fn arguments() -> Vec<OsString> {
    named(std::env::args_os().collect())
}

fn named(mut arguments: Vec<OsString>) -> Vec<OsString> {
    let program = arguments.first().map(Path::new).and_then(Path::file_stem);
    // The host starts its own program to try models out.
    let is_child = arguments.get(1).is_some_and(|argument| argument == crate::backend::vet::CHILD_COMMAND);
    if program == Some(OsStr::new(NAME)) && !is_child {
        arguments.insert(1, NAME.into());
    }
    arguments
}

/// Answers what Spin asks, or serves until a signal says to stop.
///
/// # Errors
/// Where Spin did not hand over an app, it is not in order, or an argument cannot be honoured.
pub async fn run(args: TriggerArgs, config: Config, progress: &Progress) -> anyhow::Result<()> {
    if args.help_args_only {
        let help = TriggerArgs::augment_args(Command::new(NAME)).disable_help_flag(true);
        help.help_template("{all-args}").print_long_help()?;
        return Ok(());
    }
    if args.launch_metadata_only {
        // Spin reads it there.
        eprintln!("{:#}", launch_metadata());
        return Ok(());
    }
    let Some(handover) = Handover::find() else {
        bail!(
            "SPIN_LOCKED_URL and SPIN_WORKING_DIR are not set: `{NAME}` is what `spin up` starts for an app with \
             `[[trigger.{TYPE}]]`; `tenon up` serves an app without Spin"
        );
    };
    if args.precompose_only {
        return precompose(&handover, args.precompose_component_id.as_deref());
    }
    args.refused.check()?;
    serve(args, config, &handover, progress).await
}

/// The flags that are honoured: in an app with triggers of several types, Spin passes each only to those that know it.
fn launch_metadata() -> serde_json::Value {
    let command = TriggerArgs::augment_args(Command::new(NAME));
    let honoured = command.get_arguments().filter(|argument| !argument.is_hide_set());
    let flags = honoured.map(|argument| {
        let mut flag = serde_json::Map::new();
        flag.extend(argument.get_short().map(|short| ("short".to_owned(), format!("-{short}").into())));
        flag.extend(argument.get_long().map(|long| ("long".to_owned(), format!("--{long}").into())));
        serde_json::Value::Object(flag)
    });
    json!({ "all_flags": flags.collect::<Vec<_>>() })
}

/// Writes a component as this trigger would run it. Components are composed when they are built.
fn precompose(handover: &Handover, id: Option<&str>) -> anyhow::Result<()> {
    let app = locked_app(&handover.locked_url)?;
    let id = id.context("--precompose-only takes --precompose-component-id as well")?;
    let component = app.components.iter().find(|component| component.id == id);
    let component = component.with_context(|| format!("the app has no component `{id}`"))?;
    if !component.dependencies.is_empty() || !component.trigger_dependencies.is_empty() {
        bail!(
            "component `{id}` depends on others, which Tenon does not put together; compose it when it is built"
        );
    }
    let source = component.source.content.source.as_deref();
    let path = file(source.with_context(|| format!("component `{id}` has no file"))?)?;
    let mut wasm = std::fs::File::open(&path).with_context(|| format!("cannot read `{}`", path.display()))?;
    let mut out = std::io::stdout().lock();
    std::io::copy(&mut wasm, &mut out).and_then(|_| out.flush()).context("the component cannot be written")
}

async fn serve(
    args: TriggerArgs,
    mut config: Config,
    handover: &Handover,
    progress: &Progress,
) -> anyhow::Result<()> {
    let name = match &handover.local_app_dir {
        Some(folder) => folder.join("spin.toml").display().to_string(),
        None => handover.locked_url.clone(),
    };
    Policy::load(&config.signatures)?.admit_local(&name)?;
    let types = locked_app(&handover.locked_url)?.triggers.into_iter().map(|trigger| trigger.trigger_type);
    settle(&mut config, &args, types.filter(|kind| kind != TYPE).collect())?;
    let mut app = app(&args, &config, handover, &name)?;
    let kept = config.clone();
    let sources = Sources::open(&kept, &RegistryArgs { plain_http: false }, progress)?;
    let _models = sources.models(&mut app.manifest).await?;
    for warning in app.manifest.warnings.iter().chain(&app.files.warnings) {
        progress.warn(warning);
    }
    let state = state(&args, handover);
    let logs = logs(&args, &config, &state)?;
    if args.truncate_logs {
        truncate(&logs, &app.manifest);
    }
    let place = Place { logs, state, key_values: &args.key_values };
    let (host, stop) = up::start(config, &app.manifest, &app.files, place, progress).await?;
    if args.format == Format::Json {
        let base = format!("{}://{}", host.scheme, host.http);
        println!("{:#}", routes(&base, &host.functions.snapshot()));
    }
    up::serve(host, stop, progress).await
}

/// Has the arguments override the operator's settings. `others` are the types of the app's triggers that Spin serves.
fn settle(config: &mut Config, args: &TriggerArgs, others: Vec<String>) -> anyhow::Result<()> {
    if others.iter().any(|kind| kind == "http") && args.tenon_listen.is_none() {
        bail!(
            "the app has HTTP triggers too, which Spin itself serves, at the same address; give this trigger one of its \
             own, such as `--tenon-listen 127.0.0.1:3100` (or TENON_LISTEN)"
        );
    }
    if let Some(listen) = args.tenon_listen.or(args.listen) {
        config.listen.http = listen;
    }
    if args.find_free_port {
        config.listen.http = free(config.listen.http)?;
    }
    if let (Some(certificate), Some(key)) = (&args.tls_cert, &args.tls_key) {
        let (certificate, key) = (certificate.clone(), key.clone());
        config.listen.tls = Some(TlsFiles { certificate, key, client_ca: None });
    }
    if let Some(bytes) = args.max_instance_memory {
        config.limits.memory_mib = bytes >> 20;
    }
    if let Some(deadline_ms) = args.request_timeout {
        config.limits.deadline_ms = deadline_ms;
    }
    Ok(())
}

/// The address, or that with the next port that nobody listens at.
fn free(address: SocketAddr) -> anyhow::Result<SocketAddr> {
    let ports = address.port()..=address.port().saturating_add(PORTS);
    let mut addresses = ports.map(|port| SocketAddr::new(address.ip(), port));
    let found = addresses.find(|address| std::net::TcpListener::bind(address).is_ok());
    found.with_context(|| format!("no port from {} on is free", address.port()))
}

fn app(args: &TriggerArgs, config: &Config, handover: &Handover, name: &str) -> anyhow::Result<Unpacked> {
    let local = Local {
        locked_url: &handover.locked_url,
        local_app_dir: handover.local_app_dir.as_deref(),
        trigger_type: Some(TYPE),
    };
    let options = unpack::Options {
        name,
        variables: &variables::read(&args.variables)?,
        environment: &config::variable,
        values_required: true,
        max_unpacked_bytes: config.registry.max_artifact_mib << 20,
    };
    Ok(unpack::locked_app(&local, &options)?)
}

/// Where the app's own state is: as the command says, else beside the app's own files.
fn state(args: &TriggerArgs, handover: &Handover) -> PathBuf {
    let chosen = args.state_dir.as_ref().filter(|folder| !folder.is_empty()).map(PathBuf::from);
    let own = handover.local_app_dir.as_ref().unwrap_or(&handover.working_dir);
    chosen.unwrap_or_else(|| own.join(config::STATE_FOLDER))
}

/// Where the output of functions goes: as the command says, as the operator says, else with the state.
fn logs(args: &TriggerArgs, config: &Config, state: &Path) -> anyhow::Result<PathBuf> {
    if args.log_dir.as_ref().is_some_and(|folder| folder.is_empty()) {
        bail!(
            "`--log-dir` is empty, which is to write no logs: what functions print always goes to files here; name a folder"
        );
    }
    let chosen = args.log_dir.as_ref().map(PathBuf::from).or_else(|| config.log.dir.clone());
    Ok(chosen.unwrap_or_else(|| state.join("logs")))
}

fn truncate(logs: &Path, app: &Manifest) {
    for component in &app.components {
        for stream in ["stdout", "stderr"] {
            for ending in ["txt", "txt.1"] {
                // What is not there is empty enough.
                let _ = std::fs::remove_file(logs.join(format!("{}_{stream}.{ending}", component.id)));
            }
        }
    }
}

/// What Spin prints of an app that it serves.
fn routes(base: &str, snapshot: &Snapshot) -> serde_json::Value {
    let routes = snapshot.routes().filter_map(|route| {
        let Target::Function(function) = &route.target else { return None };
        let id = function.name.rsplit('/').next().unwrap_or_default();
        let path = route.pattern.strip_suffix("/...");
        Some(json!({ "id": id, "route": path.unwrap_or(&route.pattern), "wildcard": path.is_some() }))
    });
    json!({ "base_url": base, "routes": routes.collect::<Vec<_>>() })
}

fn locked_app(url: &str) -> anyhow::Result<LockedApp> {
    let path = file(url)?;
    let failed = || format!("cannot read the locked app `{}`", path.display());
    let mut bytes = Vec::new();
    let opened = std::fs::File::open(&path).with_context(failed)?;
    opened.take(locked::MAX_BYTES + 1).read_to_end(&mut bytes).with_context(failed)?;
    Ok(LockedApp::parse(&bytes)?)
}

fn file(url: &str) -> anyhow::Result<PathBuf> {
    let parsed = url::Url::parse(url).ok().filter(|url| url.scheme() == "file");
    let path = parsed.and_then(|url| url.to_file_path().ok());
    path.with_context(|| format!("`{url}` is not the URL of a file; Spin gives `file:///...`"))
}

/// A time as Spin takes it: seconds, or a number with `s`, `ms`, `us` or `ns`.
fn milliseconds(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is no time; write `30s` or `500ms`, from a millisecond to a day");
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let milliseconds = match unit {
        "" | "s" => number.checked_mul(1000),
        "ms" => Some(number),
        "us" | "μs" => Some(number.div_ceil(1000)),
        "ns" => Some(number.div_ceil(1_000_000)),
        _ if unit.starts_with("..") => {
            return Err(format!("`{text}` is a range of times; here every call has the same: give one"));
        }
        _ => None,
    };
    milliseconds.filter(|time| (1..=86_400_000).contains(time)).ok_or_else(wrong)
}
