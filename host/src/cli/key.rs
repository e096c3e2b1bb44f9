//! `tenon key`: makes the pair of keys that artifacts are signed and verified with.

#![expect(clippy::print_stdout, reason = "what a command answers goes to standard output")]

use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};

use super::progress::Progress;
use crate::artifact::signature::keys::{self, Key, KeyError};
use crate::config;

/// The longest password that is read from a terminal, in bytes.
const MAX_PASSWORD_BYTES: u64 = 4096;

/// Makes and shows keys for signatures.
#[derive(Args)]
pub struct KeyArgs {
    #[command(subcommand)]
    command: KeyCommand,
}

#[derive(Subcommand)]
enum KeyCommand {
    /// Makes a private key that signs and the public key that verifies, of ECDSA P-256.
    ///
    /// The private key is encrypted, in cosign's format, with the password in TENON_KEY_PASSWORD or COSIGN_PASSWORD,
    /// or one that is asked for on the terminal.
    Generate {
        /// Where to write them: `<OUTPUT>.key` and `<OUTPUT>.pub`.
        #[arg(short, long, value_name = "OUTPUT", default_value = "tenon")]
        output: PathBuf,
    },
    /// Shows the public key of a private one.
    Public {
        /// The file of the private key.
        key: PathBuf,
    },
}

/// Makes or shows a key.
///
/// # Errors
/// Where a file cannot be read or written, or is there already.
pub fn run(args: &KeyArgs, progress: &Progress) -> anyhow::Result<()> {
    match &args.command {
        KeyCommand::Generate { output } => {
            let password = new_password()?;
            let (private, public, key) = generate(output, password.as_deref())?;
            let kind = if password.is_some() {
                "encrypted"
            } else {
                "not encrypted: keep it where only you can read"
            };
            progress.say("Created", format!("{}, the private key, {kind}", private.display()));
            progress.say("Created", format!("{}, the public key, {}", public.display(), key.digest()));
            println!("Sign with `tenon push --sign {}`.", private.display());
            println!("Hosts trust the public key once it stands in host.toml:\n");
            println!("    [signatures.keys.{}]", name(output));
            println!("    file = \"{}\"", public.display());
            println!("    repositories = [\"registry.example/team/*\"]");
            Ok(())
        }
        KeyCommand::Public { key } => {
            print!("{}", read(key)?.public_file());
            Ok(())
        }
    }
}

/// A private key from its file; the password is the environment's, or is asked for.
///
/// # Errors
/// Where it cannot be read, or the password is missing or wrong.
pub fn read(path: &Path) -> anyhow::Result<Key> {
    let password = || match config::key_password() {
        Some(password) => Ok(password.into_bytes()),
        None => {
            let asked =
                Terminal::open().map(|terminal| terminal.ask(&format!("Password of {}: ", path.display())));
            asked.ok_or(KeyError::NoPassword)?.map_err(KeyError::Read)
        }
    };
    Key::read(path, password).with_context(|| format!("the private key `{}`", path.display()))
}

/// The password of a new key; `None` where there is none to be had, or a person leaves it empty.
fn new_password() -> anyhow::Result<Option<Vec<u8>>> {
    if let Some(password) = config::key_password() {
        return Ok(Some(password.into_bytes()));
    }
    let Some(terminal) = Terminal::open() else { return Ok(None) };
    let password = terminal.ask("Password of the new key (empty: not encrypted): ")?;
    if password.is_empty() {
        return Ok(None);
    }
    if terminal.ask("The same again: ")? != password {
        bail!("the two passwords differ; nothing was written");
    }
    Ok(Some(password))
}

/// Writes both files, or none.
fn generate(output: &Path, password: Option<&[u8]>) -> anyhow::Result<(PathBuf, PathBuf, Key)> {
    let with_ending = |ending: &str| {
        let mut path = output.as_os_str().to_owned();
        path.push(ending);
        PathBuf::from(path)
    };
    let (private, public) = (with_ending(".key"), with_ending(".pub"));
    let pkcs8 = keys::generate()?;
    let key = Key::from_pkcs8(&pkcs8)?;
    // Encrypting takes a while; the files are then made one right after the other.
    let text = keys::private_file(&pkcs8, password)?;
    write_new(&private, &text, 0o600)?;
    if let Err(error) = write_new(&public, &key.public_file(), 0o644) {
        let _ = std::fs::remove_file(&private);
        return Err(error);
    }
    Ok((private, public, key))
}

fn write_new(path: &Path, text: &str, mode: u32) -> anyhow::Result<()> {
    let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    let mut file = file.map_err(|error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => {
            anyhow::anyhow!("`{}` is there already; choose another name with `--output`", path.display())
        }
        _ => anyhow::anyhow!("`{}` cannot be written: {error}", path.display()),
    })?;
    let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_all());
    written.with_context(|| format!("`{}` cannot be written", path.display()))
}

/// A key's name in host.toml.
fn name(output: &Path) -> String {
    let name = output.file_name().unwrap_or_default().to_string_lossy();
    name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '-' }).collect()
}

/// The terminal that a person sits at, if there is one, whatever standard input and output are.
struct Terminal(File);

impl Terminal {
    fn open() -> Option<Terminal> {
        let file = File::options().read(true).write(true).open("/dev/tty").ok()?;
        rustix::termios::isatty(&file).then_some(Terminal(file))
    }

    /// Asks for a line that is not shown.
    fn ask(&self, prompt: &str) -> std::io::Result<Vec<u8>> {
        (&self.0).write_all(prompt.as_bytes())?;
        let before = tcgetattr(&self.0)?;
        let mut silent = before.clone();
        silent.local_modes.remove(LocalModes::ECHO);
        silent.local_modes.insert(LocalModes::ECHONL);
        tcsetattr(&self.0, OptionalActions::Flush, &silent)?;
        let _restored = Restored(&self.0, before);
        let mut line = Vec::new();
        BufReader::new((&self.0).take(MAX_PASSWORD_BYTES)).read_until(b'\n', &mut line)?;
        if line.pop() != Some(b'\n') {
            return Err(std::io::Error::other("the password did not end with a line"));
        }
        Ok(line)
    }
}

/// Gives a terminal back as it was.
struct Restored<'t>(&'t File, Termios);

impl Drop for Restored<'_> {
    fn drop(&mut self) {
        let _ = tcsetattr(self.0, OptionalActions::Flush, &self.1);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_pair_of_keys_is_written_once() {
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("team.v1");
        let (private, public, key) = generate(&output, None).unwrap();
        assert_eq!(private, folder.path().join("team.v1.key"));
        assert_eq!(private.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_to_string(&public).unwrap(), key.public_file());
        assert_eq!(read(&private).unwrap().digest(), key.digest());
        let error = generate(&output, None).unwrap_err().to_string();
        assert!(error.contains("there already"), "{error}");
        // A public key that is in the way leaves no private key behind.
        std::fs::remove_file(&private).unwrap();
        assert!(generate(&output, None).is_err() && !private.exists());
        assert_eq!(name(&output), "team-v1");
    }
}
