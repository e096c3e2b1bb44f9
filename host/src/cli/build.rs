//! `tenon build`: runs the build commands of an app's components, in the order of the manifest.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Instant;

use anyhow::{Context as _, bail};
use tokio::process::Command;

use super::progress::{Progress, elapsed};
use crate::artifact::manifest::{self, Build, Component, Manifest};

/// Runs the components' build commands.
#[derive(clap::Args, Debug)]
pub struct BuildArgs {
    /// The app manifest, or a folder: spin.toml in it or above it.
    #[arg(short = 'f', long = "from", value_name = "PATH", default_value = ".")]
    pub from: PathBuf,
    /// Only this component; may be repeated.
    #[arg(short = 'c', long = "component-id", value_name = "ID")]
    pub components: Vec<String>,
    /// The build profile whose commands apply.
    #[arg(long, value_name = "NAME")]
    pub profile: Option<String>,
}

/// What cargo sets for a program that it runs (`cargo run -- build`) or a user for the host's own build.
/// A cargo beneath would take it for its own: it would build into another folder than the one `source`
/// names, for another target, or anew because a variable differs.
const NOT_FOR_GUESTS: [&str; 29] = [
    "CARGO",
    "CARGO_BIN_EXE_tenon",
    "CARGO_BIN_NAME",
    "CARGO_BUILD_BUILD_DIR",
    "CARGO_BUILD_TARGET",
    "CARGO_BUILD_TARGET_DIR",
    "CARGO_CRATE_NAME",
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_MAKEFLAGS",
    "CARGO_MANIFEST_DIR",
    "CARGO_MANIFEST_PATH",
    "CARGO_PKG_AUTHORS",
    "CARGO_PKG_DESCRIPTION",
    "CARGO_PKG_HOMEPAGE",
    "CARGO_PKG_LICENSE",
    "CARGO_PKG_LICENSE_FILE",
    "CARGO_PKG_NAME",
    "CARGO_PKG_README",
    "CARGO_PKG_REPOSITORY",
    "CARGO_PKG_RUST_VERSION",
    "CARGO_PKG_VERSION",
    "CARGO_PKG_VERSION_MAJOR",
    "CARGO_PKG_VERSION_MINOR",
    "CARGO_PKG_VERSION_PATCH",
    "CARGO_PKG_VERSION_PRE",
    "CARGO_PRIMARY_PACKAGE",
    "CARGO_TARGET_DIR",
    "CARGO_TARGET_TMPDIR",
    "OUT_DIR",
];

/// Builds what `args` name.
///
/// # Errors
/// The manifest is wrong, or a command failed.
pub async fn run(args: &BuildArgs, progress: &Progress) -> anyhow::Result<()> {
    let manifest = load(&args.from, args.profile.as_deref())?;
    build(&manifest, &args.components, progress).await
}

/// The manifest at or above `from`, read as a build needs it: variables may lack their values.
pub(super) fn load(from: &Path, profile: Option<&str>) -> anyhow::Result<Manifest> {
    let path = manifest::find(from).with_context(|| match from.exists() {
        true => {
            format!("no `{}` in `{}` or above it; name one with `-f`", manifest::FILE_NAME, from.display())
        }
        false => format!("there is no `{}`; correct `-f`", from.display()),
    })?;
    let options = manifest::Options {
        profile,
        variables: &BTreeMap::new(),
        environment: &crate::config::variable,
        values_required: false,
    };
    Ok(Manifest::load(&path, &options)?)
}

/// Runs the build commands of the components in `only`, or of all if it is empty. Stops at the first failure.
///
/// # Errors
/// `only` names something else than a component, or a command failed.
pub async fn build(manifest: &Manifest, only: &[String], progress: &Progress) -> anyhow::Result<()> {
    check_names(manifest, only)?;
    let mut done = BTreeSet::new();
    for component in &manifest.components {
        let is_named = only.contains(&component.id);
        if !only.is_empty() && !is_named {
            continue;
        }
        match &component.build {
            // Components of one workspace often have one command that builds them all.
            Some(build) if done.insert((&build.workdir, &build.commands)) => {
                build_component(component, build, progress).await?;
            }
            None if is_named => progress.warn(format!("component `{}` has no build command", component.id)),
            Some(_) | None => {}
        }
    }
    Ok(())
}

fn check_names(manifest: &Manifest, only: &[String]) -> anyhow::Result<()> {
    for id in only {
        if !manifest.components.iter().any(|component| component.id == *id) {
            let known: Vec<_> = manifest.components.iter().map(|c| format!("`{}`", c.id)).collect();
            bail!("there is no component `{id}`; there are {}", known.join(", "));
        }
    }
    Ok(())
}

async fn build_component(component: &Component, build: &Build, progress: &Progress) -> anyhow::Result<()> {
    let id = &component.id;
    let (start, workdir) = (Instant::now(), build.workdir.display());
    if !build.workdir.is_dir() {
        bail!("component `{id}`: there is no folder `{workdir}` to build in; correct `build.workdir`");
    }
    for command in &build.commands {
        progress.say("Building", format!("{id}: {command}"));
        let status = shell(command, &build.workdir).status().await;
        let status = status.with_context(|| format!("component `{id}`: the shell `sh` cannot be run"))?;
        if !status.success() {
            let hint = hint(command, &build.workdir, status, installed_targets);
            bail!("component `{id}`: `{command}` failed in `{workdir}`: {status}; {hint}");
        }
    }
    progress.say("Built", format!("{id} ({})", elapsed(start.elapsed())));
    Ok(())
}

/// The command as the author would run it in a terminal of their own.
fn shell(command: &str, workdir: &Path) -> Command {
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(command).current_dir(workdir).stdin(Stdio::null()).kill_on_drop(true);
    // Standard output is for our own answers.
    shell.stdout(std::io::stderr());
    for variable in NOT_FOR_GUESTS {
        shell.env_remove(variable);
    }
    shell
}

/// What to check after `command` failed.
fn hint(
    command: &str,
    workdir: &Path,
    status: ExitStatus,
    installed: impl Fn(&Path) -> Option<String>,
) -> String {
    if status.code() == Some(127) {
        return "a program that it names was not found: install it, or correct `build.command`".to_owned();
    }
    let missing = wasm_target(command).filter(|target| {
        let installed = installed(workdir);
        installed.is_some_and(|list| !list.lines().any(|line| line.trim() == *target))
    });
    match missing {
        Some(target) => {
            format!("the wasm target is not installed: run `rustup target add {target}` in that folder")
        }
        None => "its own messages are above".to_owned(),
    }
}

/// The wasm target that a build command names, such as `wasm32-wasip2`.
pub(super) fn wasm_target(command: &str) -> Option<&str> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    let words = command.split(|c: char| !is_part(c));
    words.into_iter().find(|word| {
        let (arch, rest) = word.split_once('-').unwrap_or_default();
        matches!(arch, "wasm32" | "wasm64" | "wasm32v1") && !rest.is_empty()
    })
}

/// What rustup lists for the toolchain of a folder; `None` where there is no rustup to ask.
pub(super) fn installed_targets(folder: &Path) -> Option<String> {
    let mut rustup = std::process::Command::new("rustup");
    rustup.args(["target", "list", "--installed"]).current_dir(folder).stdin(Stdio::null());
    let output = rustup.output().ok().filter(|output| output.status.success())?;
    String::from_utf8(output.stdout).ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;

    fn app(dir: &Path, components: &str) -> Manifest {
        let text = format!("spin_manifest_version = 2\n[application]\nname = \"a\"\n[trigger]\n{components}");
        std::fs::write(dir.join("spin.toml"), text).unwrap();
        load(dir, None).unwrap()
    }

    fn component(id: &str, build: &str) -> String {
        format!("[component.{id}]\nsource = \"{id}.wasm\"\n{build}\n")
    }

    async fn check(components: &str, only: &[&str], expected: Result<&str, &str>) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("sub")).unwrap();
        let manifest = app(dir.path(), components);
        let only: Vec<_> = only.iter().map(|id| (*id).to_owned()).collect();
        let outcome = build(&manifest, &only, &Progress::stderr(true)).await;
        let log = std::fs::read_to_string(dir.path().join("log")).unwrap_or_default();
        match (outcome, expected) {
            (Ok(()), Ok(expected)) => {
                assert_eq!(log.split_whitespace().collect::<Vec<_>>().join(" "), expected)
            }
            (Err(error), Err(expected)) => assert!(error.to_string().contains(expected), "{error}"),
            (outcome, _) => panic!("{outcome:?}, expected {expected:?}"),
        }
    }

    #[tokio::test]
    async fn commands_run_in_order() {
        let a = component("a", "build = { command = ['echo a1 >> log', 'echo a2 >> log'] }");
        let b = component("b", "build = { command = 'echo b >> ../log', workdir = 'sub' }");
        let c = component("c", "");
        let all = format!("{a}{b}{c}");
        check(&all, &[], Ok("a1 a2 b")).await;
        check(&all, &["b"], Ok("b")).await;
        check(&all, &["c"], Ok("")).await;
        check(&all, &["d"], Err("no component `d`; there are `a`, `b`, `c`")).await;
        let same = component("d", "build = { command = ['echo a1 >> log', 'echo a2 >> log'] }");
        check(&format!("{a}{same}"), &[], Ok("a1 a2")).await;
        let failing = component("a", "build = { command = ['exit 3', 'echo no >> log'] }");
        check(&format!("{failing}{b}"), &[], Err("component `a`: `exit 3` failed in ")).await;
        check(&failing, &[], Err("exit status: 3; its own messages")).await;
        let absent = component("a", "build = { command = 'no-such-program-here' }");
        check(&absent, &[], Err("was not found: install it")).await;
        let nowhere = component("a", "build = { command = 'true', workdir = 'gone' }");
        check(&nowhere, &[], Err("correct `build.workdir`")).await;
    }

    #[tokio::test]
    async fn cargo_beneath_starts_afresh() {
        // Tests run under cargo, which sets this for them.
        assert!(option_env!("CARGO_MANIFEST_DIR").is_some());
        let command = "echo ${CARGO_MANIFEST_DIR-none} ${CARGO_PKG_NAME-none} ${PATH:+path} > log";
        check(&component("a", &format!("build.command = '{command}'")), &[], Ok("none none path")).await;
    }

    #[test]
    fn a_missing_manifest_is_explained() {
        let dir = tempfile::tempdir().unwrap();
        let check = |from: &Path, expected: &str| {
            let error = load(from, None).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        check(dir.path(), "or above it; name one with `-f`");
        check(&dir.path().join("x"), "correct `-f`");
    }

    #[test]
    fn targets_are_read_from_commands() {
        let check = |command: &str, expected: Option<&str>| assert_eq!(wasm_target(command), expected);
        check("cargo build --target wasm32-wasip2 --release", Some("wasm32-wasip2"));
        check("cargo build --target='wasm32-unknown-unknown'", Some("wasm32-unknown-unknown"));
        check("cp target/wasm32-wasip1/x.wasm .", Some("wasm32-wasip1"));
        check("make", None);
        check("wasm-tools component new wasm32", None);
    }

    #[test]
    fn hints() {
        let check = |command: &str, code: i32, installed: Option<&str>, expected: &str| {
            let installed = installed.map(str::to_owned);
            let status = ExitStatus::from_raw(code << 8);
            let hint = hint(command, Path::new("."), status, |_| installed.clone());
            assert!(hint.contains(expected), "{hint}");
        };
        let build = "cargo build --target wasm32-wasip2";
        check(build, 101, Some("x86_64-unknown-linux-gnu\n"), "`rustup target add wasm32-wasip2`");
        check(build, 101, Some("wasm32-wasip2\n"), "its own messages");
        check(build, 101, None, "its own messages");
        check("cargo build", 101, Some(""), "its own messages");
        check(build, 127, None, "not found");
    }
}
