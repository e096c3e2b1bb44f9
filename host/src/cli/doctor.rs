//! `tenon doctor`: tells what is wrong with a setup, and the command that mends it.

mod app;
mod machine;

use std::path::{Path, PathBuf};

use anyhow::bail;

use crate::artifact::manifest;
use crate::backend::available::Backends;
use crate::config::Config;

/// Tell what is wrong with a setup, and the commands that mend it
#[derive(clap::Args, Debug)]
pub struct DoctorArgs {
    /// The app manifest, or a folder: spin.toml in it or above it
    #[arg(short = 'f', long = "from", value_name = "PATH")]
    pub from: Option<PathBuf>,
    /// The build profile
    #[arg(long, value_name = "NAME")]
    pub profile: Option<String>,
}

/// What the checks need of this machine.
#[derive(Clone, Copy)]
pub struct Setup<'a> {
    pub config: &'a Config,
    pub backends: &'a Backends,
    /// The Python that installs libraries: a path, or a name such as `python3`.
    pub python: &'a Path,
    /// Why pooled memory is not reset by the page map, if it is not.
    pub pagemap: &'a dyn Fn() -> Result<(), &'static str>,
}

/// What one check found.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Finding {
    level: Level,
    /// What is, or what is wrong.
    text: String,
    /// What to do about it; empty where nothing is to be done.
    mend: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Good,
    /// It works, but not as well as it could.
    Note,
    Problem,
}

impl Finding {
    fn good(text: impl Into<String>) -> Self {
        Self { level: Level::Good, text: text.into(), mend: String::new() }
    }

    fn note(text: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { level: Level::Note, text: text.into(), mend: mend.into() }
    }

    fn problem(text: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { level: Level::Problem, text: text.into(), mend: mend.into() }
    }
}

/// Checks everything and prints what it found.
///
/// # Errors
/// Something is wrong: the number of problems, each of which has been printed.
pub fn run(args: &DoctorArgs, setup: &Setup<'_>) -> anyhow::Result<()> {
    let mut findings = app_findings(args, setup);
    findings.extend(machine::check(setup));
    let problems = findings.iter().filter(|finding| finding.level == Level::Problem).count();
    print!("{}", report(&findings));
    match problems {
        0 => Ok(()),
        1 => bail!("there is a problem"),
        _ => bail!("there are {problems} problems"),
    }
}

/// The app is looked at where there is one; without `-f` there need be none.
fn app_findings(args: &DoctorArgs, setup: &Setup<'_>) -> Vec<Finding> {
    let from = args.from.as_deref().unwrap_or(Path::new("."));
    if args.from.is_none() && manifest::find(from).is_none() {
        let text = format!("no `{}` here, so no app was checked", manifest::FILE_NAME);
        return vec![Finding::note(text, "name one: tenon doctor -f path/to/spin.toml")];
    }
    app::check(from, args.profile.as_deref(), setup)
}

/// A line for each finding, and one below it for what to do.
fn report(findings: &[Finding]) -> String {
    let lines = findings.iter().map(|Finding { level, text, mend }| {
        let word = match level {
            Level::Good => "ok",
            Level::Note => "note",
            Level::Problem => "PROBLEM",
        };
        let text = text.replace('\n', &format!("\n{:9}", ""));
        let mend = if mend.is_empty() { String::new() } else { format!("{:9}-> {mend}\n", "") };
        format!("{word:<9}{text}\n{mend}")
    });
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_says_what_to_do() {
        let findings =
            [Finding::good("all is well"), Finding::note("slow", ""), Finding::problem("a\nb", "do this")];
        let expected = "ok       all is well\nnote     slow\nPROBLEM  a\n         b\n         -> do this\n";
        assert_eq!(report(&findings), expected);
    }
}
