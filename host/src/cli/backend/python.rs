//! Runs the user's own Python: its pip, and its reader of zip files.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};

/// Prints the entries of a zip file as JSON: name and size.
const LIST: &str = "import json, sys, zipfile
with zipfile.ZipFile(sys.argv[1]) as z:
    print(json.dumps([(e.filename, e.file_size) for e in z.infolist() if not e.is_dir()]))";

/// Writes entries of a zip file: after its path come pairs of an entry and a file that is not there yet.
const EXTRACT: &str = "import shutil, sys, zipfile
with zipfile.ZipFile(sys.argv[1]) as z:
    for entry, path in zip(sys.argv[2::2], sys.argv[3::2]):
        with z.open(entry) as source, open(path, 'xb') as target:
            shutil.copyfileobj(source, target, 1 << 20)";

/// Whether `python` is there and has pip; the error says what to install.
pub(in crate::cli) fn check_pip(python: &Path) -> Result<(), String> {
    let shown = python.display();
    let output = Command::new(python).args(["-m", "pip", "--version"]).stdin(Stdio::null()).output();
    match output {
        Ok(output) if output.status.success() => Ok(()),
        Ok(_) => Err(format!(
            "`{shown}` has no pip; install it (Debian, Ubuntu: `apt install python3-pip`; elsewhere: \
             `{shown} -m ensurepip`)"
        )),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(format!("there is no `{shown}`; install Python 3 with pip"))
        }
        Err(error) => Err(format!("`{shown}` cannot be run: {error}; install Python 3 with pip")),
    }
}

/// Runs pip with `args` in `folder`, where there must be nothing that Python could import. What pip says goes
/// to standard error.
pub(super) fn pip(python: &Path, folder: &Path, args: &[&str]) -> anyhow::Result<()> {
    let mut pip = Command::new(python);
    pip.args(["-m", "pip"]).args(args).current_dir(folder).stdin(Stdio::null()).stdout(io::stderr());
    let command = format!("{} -m pip {}", python.display(), args.join(" "));
    let status = pip.status().with_context(|| format!("`{command}` cannot be run"))?;
    if !status.success() {
        bail!(
            "`{command}` failed: {status}; its own messages are above: check the network and pip's settings \
             (`{} -m pip config list`)",
            python.display()
        );
    }
    Ok(())
}

/// The names and sizes of a zip file's entries.
pub(super) fn entries(python: &Path, zip: &Path) -> anyhow::Result<Vec<(String, u64)>> {
    let output = script(python, LIST, [zip.as_os_str()])?;
    serde_json::from_slice(&output).with_context(|| format!("`{}` cannot be listed", zip.display()))
}

/// Writes each entry to its new file.
pub(super) fn extract<'a>(
    python: &Path,
    zip: &'a Path,
    entries: impl Iterator<Item = (&'a str, &'a Path)>,
) -> anyhow::Result<()> {
    let pairs = entries.flat_map(|(entry, path)| [OsStr::new(entry), path.as_os_str()]);
    script(python, EXTRACT, std::iter::once(zip.as_os_str()).chain(pairs)).map(drop)
}

/// Runs a script that sees nothing of the user's environment or of the working folder.
fn script<'a>(
    python: &Path,
    script: &str,
    args: impl IntoIterator<Item = &'a OsStr>,
) -> anyhow::Result<Vec<u8>> {
    let output = Command::new(python).args(["-I", "-c", script]).args(args).stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("`{}` cannot be run", python.display()))?;
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        // A Python error ends in the line that says what is wrong.
        bail!(
            "the download cannot be unpacked: {}",
            errors.lines().last().unwrap_or("Python gave no reason")
        );
    }
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_python_is_explained() {
        assert!(check_pip(Path::new("/no/python3")).unwrap_err().contains("install Python 3 with pip"));
        assert!(check_pip(Path::new("false")).unwrap_err().contains("`false` has no pip; install it"));
        assert!(check_pip(Path::new("true")).is_ok());
        let error = pip(Path::new("false"), Path::new("/"), &["download", "x"]).unwrap_err().to_string();
        assert!(error.contains("`false -m pip download x` failed: exit status: 1"), "{error}");
    }
}
