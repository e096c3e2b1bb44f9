//! The `[control]` settings: where a host takes deployments and commands, and from whom.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use super::document::{Table, Value};
use super::{Config, Listen, environment, keys};

/// The most tokens of one host: each is looked at in every request.
const MAX_TOKENS: usize = 256;

/// The control API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Control {
    /// Where it is served over TCP; `None` turns that off.
    pub listen: Option<SocketAddr>,
    /// Whether it may be served without TLS to other machines.
    pub allow_plain: bool,
    /// Whether rollouts may keep what callers sent, for those to read who may look.
    pub allow_capture: bool,
    /// Where a host keeps what it serves and its history; [`Config::state_dir`] resolves it.
    pub state: Option<PathBuf>,
    /// [`Config::control_socket`] resolves it.
    pub socket: Socket,
    /// Who may ask for what, by name.
    pub tokens: BTreeMap<String, Token>,
}

/// The socket for users of this machine.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Socket {
    /// `tenon.sock` in the state folder.
    #[default]
    InState,
    At(PathBuf),
    Off,
}

/// What a caller shows, and what it may do with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    pub source: TokenSource,
    pub scopes: BTreeSet<Scope>,
}

/// Where it is known from what a token is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenSource {
    /// A file that has the token itself.
    File(PathBuf),
    /// The SHA-256 of the token.
    Sha256([u8; 32]),
}

/// What may be done with a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// To look.
    Read,
    /// To look and to change what is served.
    Deploy,
}

/// No folder can be found for the state of a host.
#[derive(Debug, thiserror::Error)]
#[error(
    "no place for the state of a host: neither `XDG_STATE_HOME` nor `HOME` is an absolute path; give one with \
     `--state`, or set `state` under `[control]` in host.toml"
)]
pub struct NoStateDir;

impl Default for Control {
    fn default() -> Self {
        Self {
            listen: Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 3002))),
            allow_plain: false,
            allow_capture: false,
            state: None,
            socket: Socket::InState,
            tokens: BTreeMap::new(),
        }
    }
}

impl Control {
    /// Whether tokens that are sent to `listen` are safe from those on the way.
    ///
    /// # Errors
    /// What is wrong and what to do.
    pub fn check_listen(&self, listen: SocketAddr, is_tls: bool) -> Result<(), String> {
        if listen.ip().is_loopback() || is_tls || self.allow_plain {
            return Ok(());
        }
        Err(format!(
            "the control API on {listen} can be reached from other machines, and everybody on the way could read its \
             tokens: set `certificate` and `key` under `[listen.tls]`, listen on a loopback address such as \
             `127.0.0.1:3002`, or, where something else encrypts, set `control.allow_plain`"
        ))
    }
}

impl Config {
    /// Where a host keeps what it serves and its history, unless it is told: `control.state`, else
    /// `$XDG_STATE_HOME/tenon`, else `$HOME/.local/state/tenon`.
    ///
    /// # Errors
    /// None of the three is set.
    pub fn state_dir(&self) -> Result<PathBuf, NoStateDir> {
        self.state_dir_given(environment("XDG_STATE_HOME"), environment("HOME"))
    }

    fn state_dir_given(&self, xdg: Option<String>, home: Option<String>) -> Result<PathBuf, NoStateDir> {
        // The XDG specification has a relative path ignored.
        let absolute = |path: Option<String>| path.map(PathBuf::from).filter(|p| p.is_absolute());
        let xdg = absolute(xdg).map(|dir| dir.join("tenon"));
        let home = absolute(home).map(|dir| dir.join(".local/state/tenon"));
        self.control.state.clone().or(xdg).or(home).ok_or(NoStateDir)
    }

    /// The local socket of a host whose state is in the folder `state`; `None` where it has none.
    pub fn control_socket(&self, state: &Path) -> Option<PathBuf> {
        match &self.control.socket {
            Socket::InState => Some(state.join("tenon.sock")),
            Socket::At(path) => Some(path.clone()),
            Socket::Off => None,
        }
    }
}

/// The token that this user shows to hosts, from `TENON_TOKEN`.
pub fn control_token() -> Option<super::Secret> {
    environment("TENON_TOKEN").map(|token| super::Secret(token.trim().to_owned()))
}

/// Reads `[control]`.
pub(super) fn read(t: &mut Table<'_>, dir: &Path, listen: &Listen) -> Control {
    let mut control = Control { state: keys::path(t, "state", dir), ..Control::default() };
    if let Some(allow) = t.boolean("allow_plain") {
        control.allow_plain = allow;
    }
    if let Some(allow) = t.boolean("allow_capture") {
        control.allow_capture = allow;
    }
    if let Some(value) = t.value("listen") {
        control.listen = if keys::is_off(&value) { None } else { keys::address(&value) };
        let checked = control.listen.map(|address| control.check_listen(address, listen.tls.is_some()));
        if let Some(Err(message)) = checked {
            value.refuse(&message);
        }
        let others = [("http", Some(listen.http)), ("admin", listen.admin), ("grpc", listen.grpc)];
        for (name, other) in others {
            if control.listen.is_some_and(|address| address.port() != 0) && control.listen == other {
                value.refuse(&format!(
                    "`control.listen` and `listen.{name}` are one address; give each a port of its own"
                ));
            }
        }
    }
    if let Some(value) = t.value("socket") {
        control.socket = match value.string().as_deref() {
            None | Some("") => Socket::InState,
            Some("off") => Socket::Off,
            Some(path) => Socket::At(dir.join(path)),
        };
    }
    for (name, value) in t.entries("tokens") {
        // The name stands in logs and in the history.
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '@');
        if name.is_empty() || name.len() > 64 || !name.chars().all(allowed) {
            value.refuse(&format!(
                "a token cannot be named `{name}`; use up to 64 letters, digits, `-`, `_`, `.` and `@`"
            ));
        }
        if control.tokens.len() == MAX_TOKENS {
            value.refuse(&format!("`control.tokens` has more than {MAX_TOKENS} entries; remove some"));
            break;
        }
        control.tokens.extend(value.table(|t| token(t, dir)).flatten().map(|token| (name, token)));
    }
    control
}

/// One `[control.tokens.<name>]`.
fn token(t: &mut Table<'_>, dir: &Path) -> Option<Token> {
    let file = keys::path(t, "token_file", dir);
    let sha256 = t.value("sha256");
    let source = match (file, sha256) {
        (Some(file), None) => Some(TokenSource::File(file)),
        (None, Some(value)) => hash(&value).map(TokenSource::Sha256),
        _ => {
            let token = t.shown();
            t.refuse(&format!(
                "{token} takes one of `token_file = \"path\"` and `sha256 = \"64 hex digits\"`: the file has the token \
                 itself, such as `openssl rand -hex 32` prints; the other is what `sha256sum` prints of the token \
                 without a line end"
            ));
            None
        }
    };
    let mut scopes = BTreeSet::new();
    if let Some(value) = t.required("scopes", "scopes = [\"read\", \"deploy\"]") {
        for item in value.items() {
            scopes.extend(item.choice(&[("read", Scope::Read), ("deploy", Scope::Deploy)]));
        }
        if value.is_empty() {
            value.refuse(&format!("`{}` is empty; name `read`, `deploy` or both", value.path()));
        }
    }
    Some(Token { source: source?, scopes })
}

fn hash(value: &Value<'_>) -> Option<[u8; 32]> {
    let text = value.string()?;
    let mut bytes = [0; 32];
    let digits: Option<Vec<u8>> =
        text.chars().map(|c| c.to_digit(16).and_then(|digit| u8::try_from(digit).ok())).collect();
    let Some(digits) = digits.filter(|digits| digits.len() == 64) else {
        // What stands there may be a token that was put into the wrong place.
        value.refuse(&format!(
            "`{}` must be the 64 hex digits of a SHA-256, as `printf %s TOKEN | sha256sum` prints it",
            value.path()
        ));
        return None;
    };
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = pair[0] << 4 | pair[1];
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, crate::config::ConfigErrors> {
        Config::parse(text, Path::new("/etc/tenon/host.toml"))
    }

    #[test]
    fn keys_are_taken() {
        let check = |text: &str, change: &dyn Fn(&mut Control)| {
            let mut expected = Config::default();
            change(&mut expected.control);
            let mut found = parse(text).unwrap();
            found.listen = Listen::default();
            assert_eq!(found, expected, "{text}");
        };
        check("control.listen = \"off\"", &|c| c.listen = None);
        check("control.listen = \"[::1]:80\"", &|c| c.listen = Some("[::1]:80".parse().unwrap()));
        check("control.socket = \"off\"", &|c| c.socket = Socket::Off);
        check("control.socket = \"\"", &|c| c.socket = Socket::InState);
        check("control.socket = \"run/t.sock\"", &|c| {
            c.socket = Socket::At("/etc/tenon/run/t.sock".into());
        });
        check("control.state = \"/var/lib/tenon\"", &|c| c.state = Some("/var/lib/tenon".into()));
        check("[control]\nallow_capture = true", &|c| c.allow_capture = true);
        check("[control]\nallow_plain = true\nlisten = \"0.0.0.0:3002\"", &|c| {
            c.allow_plain = true;
            c.listen = Some("0.0.0.0:3002".parse().unwrap());
        });
        let tls = "listen.tls = { certificate = \"c\", key = \"k\" }\ncontrol.listen = \"203.0.113.1:3002\"";
        check(tls, &|c| c.listen = Some("203.0.113.1:3002".parse().unwrap()));
        let tokens = format!(
            "[control.tokens.ci]\ntoken_file = \"ci.token\"\nscopes = [\"deploy\"]\n[control.tokens.\"a@b\"]\n\
             sha256 = \"{}\"\nscopes = [\"read\", \"read\"]",
            "0aF1".repeat(16)
        );
        check(&tokens, &|c| {
            let file = TokenSource::File("/etc/tenon/ci.token".into());
            let hash = TokenSource::Sha256([0x0a, 0xf1].repeat(16).try_into().unwrap());
            let token = |source, scope| Token { source, scopes: BTreeSet::from([scope]) };
            c.tokens.insert("ci".to_owned(), token(file, Scope::Deploy));
            c.tokens.insert("a@b".to_owned(), token(hash, Scope::Read));
        });
    }

    #[test]
    fn mistakes_say_what_to_do() {
        let check = |text: &str, expected: &str| {
            let errors = parse(text).unwrap_err().to_string();
            assert!(errors.contains(expected), "{text}: {errors}");
        };
        check("control.listen = \"0.0.0.0:3002\"", "everybody on the way could read its tokens");
        check("control.listen = \"127.0.0.1:3001\"", "`listen.admin` are one address");
        check("control.listen = \"localhost\"", "must be an IP address and a port");
        check("[control.tokens.a]\nscopes = [\"read\"]", "takes one of `token_file");
        let both = format!("token_file = \"x\"\nsha256 = \"{}\"\nscopes = [\"read\"]", "00".repeat(32));
        check(&format!("[control.tokens.a]\n{both}"), "takes one of `token_file");
        check("[control.tokens.a]\ntoken_file = \"x\"", "lacks `scopes`");
        check("[control.tokens.a]\ntoken_file = \"x\"\nscopes = []", "name `read`, `deploy` or both");
        check("[control.tokens.a]\ntoken_file = \"x\"\nscopes = [\"write\"]", "it may be `read`, `deploy`");
        check("[control.tokens.\"a b\"]\ntoken_file = \"x\"\nscopes = [\"read\"]", "cannot be named `a b`");
        let secret = "[control.tokens.a]\nsha256 = \"hunter2hunter2\"\nscopes = [\"read\"]";
        check(secret, "must be the 64 hex digits");
        assert!(!parse(secret).unwrap_err().to_string().contains("hunter2"));
    }

    #[test]
    fn the_state_has_a_place() {
        let check = |state: &str, xdg: &str, home: &str, expected: Option<&str>| {
            let some = |value: &str| Some(value.to_owned()).filter(|value| !value.is_empty());
            let control = Control { state: some(state).map(PathBuf::from), ..Control::default() };
            let config = Config { control, ..Config::default() };
            let found = config.state_dir_given(some(xdg), some(home)).ok();
            assert_eq!(found, expected.map(PathBuf::from), "{state} {xdg} {home}");
        };
        check("/s", "/x", "/h", Some("/s"));
        check("", "/x", "/h", Some("/x/tenon"));
        check("", "x", "/h", Some("/h/.local/state/tenon"));
        check("", "", "h", None);
        let mut config = Config::default();
        let socket = |config: &Config| config.control_socket(Path::new("/s"));
        assert_eq!(socket(&config), Some("/s/tenon.sock".into()));
        config.control.socket = Socket::At("/run/t".into());
        assert_eq!(socket(&config), Some("/run/t".into()));
        config.control.socket = Socket::Off;
        assert_eq!(socket(&config), None);
    }
}
