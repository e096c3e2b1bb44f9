//! The hosts that a command is about, and what they are shown.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::Args;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::progress::Progress;
use crate::config::{self, Config, Secret};
use crate::control::client::{Client, ClientError, To, Trust};

/// The most bytes of a file with a token.
const MAX_TOKEN_BYTES: u64 = 4096;

/// Names hosts.
#[derive(Args, Clone, Debug)]
pub struct HostArgs {
    /// The control address of a host: https://HOST:3002, http://127.0.0.1:3002 or unix:/PATH/tenon.sock. May be given
    /// several times. Otherwise it is the host of this user on this machine.
    #[arg(long, value_name = "URL")]
    pub to: Vec<To>,
    /// A file with the token that hosts are shown, in place of TENON_TOKEN. A local socket needs none.
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Certificates in PEM of an authority that vouches for hosts, beside the system's.
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// A certificate and its key in PEM, for hosts that ask their callers for one.
    #[arg(long, value_name = "FILE")]
    pub client_certificate: Option<PathBuf>,
}

impl HostArgs {
    /// A client for each host, in the order in which they were named.
    ///
    /// # Errors
    /// Where a host is named twice, a file cannot be read, or none is named and this user's cannot be found.
    pub fn clients(&self, config: &Config, progress: &Progress) -> anyhow::Result<Vec<Client>> {
        let token = match &self.token_file {
            Some(path) => Some(read_token(path)?),
            None => config::control_token(),
        };
        let own;
        let hosts = match self.to.as_slice() {
            [] => {
                let state = config.state_dir()?;
                let socket = config.control_socket(&state);
                let socket =
                    socket.context("the local socket is off (`control.socket`); name a host with --to")?;
                own = [To::Socket(socket)];
                &own
            }
            named => named,
        };
        let trust = Trust { ca: self.ca.clone(), certificate: self.client_certificate.clone() };
        let mut clients = Vec::new();
        for (index, to) in hosts.iter().enumerate() {
            if hosts[..index].contains(to) {
                bail!("`{to}` is named twice; leave one out");
            }
            if token.is_some() && to.is_overheard() {
                progress.warn(format_args!(
                    "the token is sent to {to} without TLS, where everybody on the way can read it"
                ));
            }
            // Whoever may use a socket needs no token, and another user's socket should not learn it.
            let token = token.as_ref().filter(|_| matches!(to, To::Url(_)));
            clients.push(Client::trusting(to, token, &trust)?);
        }
        Ok(clients)
    }
}

/// Asks all hosts for the same at once. What each answers comes under its address.
pub(super) fn ask_all<T, F>(
    clients: &[Client],
    ask: impl Fn(Client) -> F,
) -> Vec<(String, JoinHandle<Result<T, ClientError>>)>
where
    T: Send + 'static,
    F: Future<Output = Result<T, ClientError>> + Send + 'static,
{
    clients.iter().map(|client| (client.to().to_string(), tokio::spawn(ask(client.clone())))).collect()
}

/// The app in a name that may also be that of one of its functions: `app/function`.
pub(super) fn app_of(name: &str) -> &str {
    name.split_once('/').map_or(name, |(app, _)| app)
}

/// What went wrong with a host, for programs: as problem details, also where the host itself said nothing.
pub(super) fn in_json(error: &ClientError) -> Value {
    let title = match error {
        ClientError::Refused { refusal, .. } => return json!(refusal),
        ClientError::Unreachable { .. } => "unreachable",
        ClientError::Broken { .. } => "broken",
        ClientError::Strange { .. } => "strange",
        ClientError::File { .. } | ClientError::Token { .. } => "unreadable",
    };
    json!({ "title": title, "detail": error.to_string() })
}

fn read_token(path: &Path) -> anyhow::Result<Secret> {
    let mut text = String::new();
    let read =
        std::fs::File::open(path).and_then(|file| file.take(MAX_TOKEN_BYTES + 1).read_to_string(&mut text));
    read.with_context(|| format!("cannot read the token file `{}`", path.display()))?;
    let token = text.trim();
    if token.is_empty() || text.len() as u64 > MAX_TOKEN_BYTES {
        bail!("`{}` holds no token; it must have the token alone", path.display());
    }
    Ok(Secret(token.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(to: &[&str], token_file: Option<PathBuf>) -> HostArgs {
        let to = to.iter().map(|to| to.parse().unwrap()).collect();
        HostArgs { to, token_file, ca: None, client_certificate: None }
    }

    fn clients(args: &HostArgs, config: &Config) -> Result<Vec<String>, String> {
        let progress = Progress::to(Box::new(std::io::sink()), false, false);
        let clients = args.clients(config, &progress).map_err(|error| format!("{error:#}"))?;
        Ok(clients.iter().map(|client| client.to().to_string()).collect())
    }

    #[test]
    fn hosts_are_those_that_are_named_or_this_users() {
        let mut config = Config::default();
        config.control.state = Some("/state".into());
        assert_eq!(clients(&args(&[], None), &config).unwrap(), ["unix:/state/tenon.sock"]);
        let named = ["https://b:3002", "unix:/run/t.sock", "http://127.0.0.1:3002"];
        assert_eq!(clients(&args(&named, None), &config).unwrap(), named);
        let twice = clients(&args(&["http://a:1", "http://a:1/"], None), &config).unwrap_err();
        assert!(twice.contains("named twice"), "{twice}");
        config.control.socket = crate::config::Socket::Off;
        let off = clients(&args(&[], None), &config).unwrap_err();
        assert!(off.contains("name a host with --to"), "{off}");
    }

    #[test]
    fn a_token_file_holds_a_token_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let check = |text: &str, expected: Option<&str>| {
            std::fs::write(&path, text).unwrap();
            let read = read_token(&path).ok().map(|token| token.0);
            assert_eq!(read.as_deref(), expected, "{text}");
        };
        check("secret\n", Some("secret"));
        check("", None);
        check("\n \n", None);
        check(&"x".repeat(5000), None);
        std::fs::remove_file(&path).unwrap();
        assert!(read_token(&path).unwrap_err().to_string().contains("cannot read the token file"));
    }

    #[test]
    fn an_app_may_be_named_by_its_function() {
        assert_eq!([app_of("digits"), app_of("digits/other")], ["digits"; 2]);
    }
}
