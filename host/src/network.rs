//! Where a function may connect to: the hosts that its author names, and the addresses that the operator lets it reach.

use std::net::IpAddr;

use ipnet::IpNet;

mod address;
mod dial;
mod trust;

pub use address::{AddressPolicy, Refused};
pub use dial::{Bounds, DialError, Network, Resolve};
pub use trust::{Trust, TrustError};

/// One entry of `allowed_outbound_hosts`: `scheme://host[:port]`, as Spin reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllowedHost {
    original: String,
    /// `None` for any.
    scheme: Option<String>,
    host: HostPattern,
    ports: Ports,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum HostPattern {
    Any,
    /// The names below this domain, which stands here without a dot at its front.
    Below(String),
    Name(String),
    /// An address, or all those of a network.
    Net(IpNet),
    /// The app itself.
    Own,
}

/// From the first to the one before the last, or any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ports {
    Any,
    From(u16, u16),
    One(u16),
}

/// What all requests to the app itself are sent to: the names of the components stand before it.
pub const CHAINING: &str = "spin.internal";

/// The name of the app itself, for callers that cannot send a request without one.
const SELF: [&str; 2] = ["self", "self.alt"];

/// The longest name of a host, and the longest of its parts.
const LONGEST_NAME: usize = 253;
const LONGEST_LABEL: usize = 63;

impl AllowedHost {
    /// Reads an entry.
    ///
    /// # Errors
    /// What is wrong with it, and what to write.
    pub fn parse(entry: &str) -> Result<AllowedHost, String> {
        let text = entry.trim();
        let Some((scheme, rest)) = text.split_once("://") else {
            return Err(match text {
                "insecure:allow-all" => {
                    "`insecure:allow-all` is not taken any more; `*://*:*` allows everything".to_owned()
                }
                _ => format!(
                    "`{text}` is not of the form `scheme://host[:port]`, such as `https://example.com`; `*://*:*` \
                     allows everything"
                ),
            });
        };
        let in_entry = |what: String| format!("`{text}`: {what}");
        let scheme = parse_scheme(scheme).map_err(in_entry)?;
        let (host, ports) = split_port(rest).map_err(in_entry)?;
        let host = HostPattern::parse(host).map_err(in_entry)?;
        let ports = Ports::parse(ports, scheme.as_deref()).map_err(in_entry)?;
        Ok(AllowedHost { original: text.to_owned(), scheme, host, ports })
    }

    /// Whether it names the app itself, or one of its components.
    pub fn is_own(&self) -> bool {
        match &self.host {
            HostPattern::Own => true,
            HostPattern::Below(name) => name == CHAINING,
            HostPattern::Name(name) => is_chaining(name),
            HostPattern::Any | HostPattern::Net(_) => false,
        }
    }

    /// Whether it allows all that the other entry allows.
    pub fn covers(&self, other: &AllowedHost) -> bool {
        self.scheme.as_ref().is_none_or(|scheme| other.scheme.as_ref() == Some(scheme))
            && self.ports.cover(other.ports)
            && self.host.covers(&other.host)
    }

    fn allows(&self, scheme: &str, host: &Destination, port: u16) -> bool {
        self.scheme.as_deref().is_none_or(|allowed| allowed == scheme)
            && self.ports.contain(port)
            && self.host.matches(host)
    }
}

impl std::fmt::Display for AllowedHost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.original)
    }
}

fn parse_scheme(scheme: &str) -> Result<Option<String>, String> {
    match scheme {
        "*" => Ok(None),
        "" => Err("the scheme is missing; write one such as `https`, or `*` for any".to_owned()),
        scheme if scheme.bytes().all(|byte| byte.is_ascii_alphabetic()) => {
            Ok(Some(scheme.to_ascii_lowercase()))
        }
        scheme => {
            Err(format!("`{scheme}` is no scheme; write one of letters, such as `https`, or `*` for any"))
        }
    }
}

/// Host and port; the port is empty where there is none.
fn split_port(rest: &str) -> Result<(&str, &str), String> {
    // A slash at the end is all that there may be of a path; the one in a network stands before its length.
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let (host, port) = if rest.starts_with('[') {
        let end = rest.find(']').ok_or("the `]` after the IPv6 address is missing")?;
        // A network may be in brackets or have its length behind them.
        let end = rest[end..].find(':').map_or(rest.len(), |colon| end + colon);
        (&rest[..end], rest[end..].strip_prefix(':').unwrap_or_default())
    } else if rest.parse::<IpAddr>().is_ok() || rest.parse::<IpNet>().is_ok() {
        (rest, "")
    } else {
        rest.rsplit_once(':').unwrap_or((rest, ""))
    };
    match port.contains('/') {
        true => Err("it has a path; hosts are allowed as a whole, so leave the path out".to_owned()),
        false => Ok((host, port)),
    }
}

impl HostPattern {
    fn parse(host: &str) -> Result<HostPattern, String> {
        if host == "*" {
            return Ok(HostPattern::Any);
        }
        if SELF.contains(&host) {
            return Ok(HostPattern::Own);
        }
        if host.starts_with('{') {
            return Err("lists in braces are not taken; write one entry for each host".to_owned());
        }
        let bare: String = host.chars().filter(|c| !matches!(c, '[' | ']')).collect();
        if let Ok(net) = bare.parse::<IpNet>() {
            return Ok(HostPattern::Net(net.trunc()));
        }
        if let Ok(address) = bare.parse::<IpAddr>() {
            return Ok(HostPattern::Net(IpNet::from(address)));
        }
        if host.contains('/') {
            return Err(
                "it has a path, or a network that is none; hosts are allowed as a whole, networks are written as \
                 `10.0.0.0/8`"
                    .to_owned(),
            );
        }
        match host.strip_prefix("*.") {
            Some(domain) => Ok(HostPattern::Below(host_name(domain)?)),
            None => Ok(HostPattern::Name(host_name(host)?)),
        }
    }

    fn matches(&self, host: &Destination) -> bool {
        match (self, host) {
            (HostPattern::Any, _) => true,
            (HostPattern::Below(domain), Destination::Name(name)) => {
                let subdomain = name.strip_suffix(domain.as_str()).and_then(|rest| rest.strip_suffix('.'));
                subdomain.is_some_and(|subdomain| !subdomain.is_empty())
            }
            (HostPattern::Name(allowed), Destination::Name(name)) => allowed == name,
            (HostPattern::Net(net), Destination::Address(address)) => net.contains(address),
            (HostPattern::Own, Destination::Own) => true,
            _ => false,
        }
    }

    fn covers(&self, other: &HostPattern) -> bool {
        match (self, other) {
            (HostPattern::Any, _) | (HostPattern::Own, HostPattern::Own) => true,
            (HostPattern::Below(domain), HostPattern::Below(inner)) if domain == inner => true,
            (HostPattern::Below(domain), HostPattern::Below(name) | HostPattern::Name(name)) => {
                name.strip_suffix(domain.as_str()).is_some_and(|rest| rest.ends_with('.'))
            }
            (HostPattern::Name(allowed), HostPattern::Name(name)) => allowed == name,
            (HostPattern::Net(net), HostPattern::Net(inner)) => net.contains(inner),
            _ => false,
        }
    }
}

impl Ports {
    fn parse(ports: &str, scheme: Option<&str>) -> Result<Ports, String> {
        if ports.is_empty() {
            let known = scheme.and_then(well_known_port).map(Ports::One);
            return known.ok_or_else(|| {
                "it needs a port, since its scheme has none of its own; write `:*` for any".to_owned()
            });
        }
        if ports == "*" {
            return Ok(Ports::Any);
        }
        let port = |text: &str| {
            let number = text.parse::<u16>();
            number.map_err(|_| {
                format!("`{text}` is no port; write a number to 65535, a range such as `8000..8010`, or `*`")
            })
        };
        match ports.split_once("..") {
            None => Ok(Ports::One(port(ports)?)),
            Some((first, end)) => match (port(first)?, port(end)?) {
                (first, end) if first < end => Ok(Ports::From(first, end)),
                _ => Err(format!("the range `{ports}` is empty: its end is not part of it")),
            },
        }
    }

    fn contain(self, port: u16) -> bool {
        match self {
            Ports::Any => true,
            Ports::From(first, end) => (first..end).contains(&port),
            Ports::One(allowed) => allowed == port,
        }
    }

    fn cover(self, other: Ports) -> bool {
        match (self, other) {
            (Ports::Any, _) => true,
            (_, Ports::Any) => false,
            (ports, Ports::One(port)) => ports.contain(port),
            // The end is not part of the range.
            (ports, Ports::From(first, end)) => match ports {
                Ports::From(..) => ports.contain(first) && ports.contain(end - 1),
                _ => end - first == 1 && ports.contain(first),
            },
        }
    }
}

/// The port of a scheme that says none, for the schemes of Spin's own interfaces.
pub fn well_known_port(scheme: &str) -> Option<u16> {
    match scheme {
        "http" => Some(80),
        "https" => Some(443),
        "postgres" => Some(5432),
        "mysql" => Some(3306),
        "redis" => Some(6379),
        "mqtt" => Some(1883),
        _ => None,
    }
}

/// What a function wants to connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// In lower case, without a dot at its end.
    Name(String),
    Address(IpAddr),
    /// The app itself.
    Own,
}

impl Destination {
    /// Reads the host of a URI; without one, the app itself is meant.
    ///
    /// # Errors
    /// Where it is neither a name nor an address.
    pub fn parse(host: &str) -> Result<Destination, String> {
        if host.is_empty() || SELF.contains(&host) {
            return Ok(Destination::Own);
        }
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        match bare.parse() {
            Ok(address) => Ok(Destination::Address(address)),
            Err(_) => host_name(host).map(Destination::Name),
        }
    }

    /// The component of the app that the name stands for, if it is such a name.
    pub fn chained(&self) -> Option<&str> {
        match self {
            Destination::Name(name) => name.strip_suffix(CHAINING)?.strip_suffix('.'),
            Destination::Address(_) | Destination::Own => None,
        }
    }
}

impl std::fmt::Display for Destination {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Destination::Name(name) => f.write_str(name),
            Destination::Address(IpAddr::V4(address)) => write!(f, "{address}"),
            Destination::Address(IpAddr::V6(address)) => write!(f, "[{address}]"),
            Destination::Own => f.write_str(SELF[0]),
        }
    }
}

fn is_chaining(name: &str) -> bool {
    name.strip_suffix(CHAINING).is_some_and(|rest| rest.ends_with('.'))
}

/// A name as it is compared: in lower case, without the dot at its end.
fn host_name(name: &str) -> Result<String, String> {
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.contains('*') {
        return Err("`*` stands for a whole host or at the front of one, as in `*.example.com`".to_owned());
    }
    if !name.is_ascii() {
        return Err(format!("`{name}` is not in ASCII; write it as DNS does (punycode, `xn--...`)"));
    }
    let letters =
        |label: &str| label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
    let is_label = |label: &str| !label.is_empty() && label.len() <= LONGEST_LABEL && letters(label);
    if name.len() > LONGEST_NAME || !name.split('.').all(is_label) {
        return Err(format!("`{name}` is not the name of a host"));
    }
    // Resolvers read such names as addresses: `127.1`, `0x7f.1`, `2130706433`.
    let last = name.rsplit('.').next().unwrap_or_default();
    let hex = last.strip_prefix("0x").or_else(|| last.strip_prefix("0X"));
    if last.bytes().all(|byte| byte.is_ascii_digit())
        || hex.is_some_and(|hex| hex.bytes().all(|byte| byte.is_ascii_hexdigit()))
    {
        return Err(format!("`{name}` is neither a name nor an address in its usual form"));
    }
    Ok(name.to_ascii_lowercase())
}

/// All that one component may connect to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AllowedHosts(Vec<AllowedHost>);

impl AllowedHosts {
    pub fn new(hosts: Vec<AllowedHost>) -> AllowedHosts {
        AllowedHosts(hosts)
    }

    /// Reads the entries of a component. One that a variable has left empty allows nothing, as Spin has it.
    ///
    /// # Errors
    /// What is wrong with the first one that is wrong.
    pub fn parse(entries: &[String]) -> Result<AllowedHosts, String> {
        let left_empty = |entry: &&String| !matches!(entry.trim(), "" | "http://" | "https://");
        entries
            .iter()
            .filter(left_empty)
            .map(|entry| AllowedHost::parse(entry))
            .collect::<Result<_, _>>()
            .map(AllowedHosts)
    }

    /// Whether the author has allowed it. `scheme` is in lower case.
    pub fn allows(&self, scheme: &str, host: &Destination, port: u16) -> bool {
        match host {
            // Whatever its own port may be.
            Destination::Own => self.0.iter().any(|allowed| {
                let scheme = allowed.scheme.as_deref().is_none_or(|known| matches!(known, "http" | "https"));
                scheme && matches!(allowed.host, HostPattern::Own | HostPattern::Any)
            }),
            host => self.0.iter().any(|allowed| allowed.allows(scheme, host, port)),
        }
    }

    /// The entry that an author would have to add.
    pub fn entry(scheme: &str, host: &Destination, port: u16) -> String {
        match well_known_port(scheme) {
            Some(known) if known == port => format!("{scheme}://{host}"),
            _ if *host == Destination::Own => format!("{scheme}://{host}"),
            _ => format!("{scheme}://{host}:{port}"),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = &AllowedHost> {
        self.0.iter()
    }
}

#[cfg(test)]
mod tests;
