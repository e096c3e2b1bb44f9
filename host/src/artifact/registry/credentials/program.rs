//! Programs that keep credentials: `docker-credential-NAME get`, in Docker's protocol, within a bound.

use std::io;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;

use super::{CredentialError, Found, Secret};

/// The longest answer that is read, in bytes.
const MAX_ANSWER_BYTES: u64 = 64 << 10;
/// What programs print where they keep nothing for a registry.
const NOTHING: &str = "credentials not found";
/// The user that stands for an identity token.
const TOKEN_USER: &str = "<token>";

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

/// Asks the program that the file at `path` names for the credentials of `server`.
///
/// # Errors
/// Where there is no such program, it fails, or does not answer within `bound`.
pub(super) async fn ask(
    path: &Path,
    name: &str,
    server: &str,
    bound: Duration,
) -> Result<Option<Found>, CredentialError> {
    let of_name = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if !name.chars().all(of_name) {
        let name = name.escape_default().take(60).collect();
        return Err(CredentialError::Name { path: path.to_owned(), name });
    }
    let program = format!("docker-credential-{name}");
    let failed = |reason: String| {
        let (program, path, server) = (program.clone(), path.to_owned(), server.to_owned());
        CredentialError::Program { program, path, server, reason }
    };
    let (success, output) = match tokio::time::timeout(bound, run(&program, server)).await {
        Err(_) => return Err(failed(format!("did not answer within {} s", bound.as_secs_f32()))),
        Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => {
            return Err(failed("is not in the PATH".to_owned()));
        }
        Ok(Err(error)) => return Err(failed(format!("cannot be run: {error}"))),
        Ok(Ok(answer)) => answer,
    };
    // What it printed may hold a secret, so no message repeats it.
    if !success {
        return match String::from_utf8_lossy(&output).contains(NOTHING) {
            true => Ok(None),
            false => Err(failed("failed".to_owned())),
        };
    }
    let answer: Answer = serde_json::from_slice(&output)
        .map_err(|_| failed("did not answer in JSON with `Username` and `Secret`".to_owned()))?;
    let secret = match answer.username.as_str() {
        TOKEN_USER => Secret::IdentityToken(answer.secret),
        _ => Secret::Password { user: answer.username, password: answer.secret },
    };
    Ok(Some(Found { secret, source: format!("`{program}`, which `{}` names", path.display()) }))
}

/// Runs a program, and answers whether it succeeded and what it printed. It is killed where this is dropped.
pub(super) async fn run(program: &str, server: &str) -> io::Result<(bool, Vec<u8>)> {
    let mut child = Command::new(program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that does not read its question may answer all the same.
        let _ = stdin.write_all(server.as_bytes()).await;
    }
    let mut output = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(MAX_ANSWER_BYTES).read_to_end(&mut output).await?;
    }
    Ok((child.wait().await?.success(), output))
}
