//! Which addresses may be connected to: public ones, and those of the operator's own networks that the operator opens.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use thiserror::Error;

/// The operator's word on addresses. Authors cannot widen it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AddressPolicy {
    /// Whether this machine and private networks may be reached.
    pub allow_private: bool,
    /// Networks that may be reached, whatever they are.
    pub allow: Vec<IpNet>,
    /// Networks that may never be reached.
    pub deny: Vec<IpNet>,
}

/// Why an address is not connected to.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Refused {
    #[error("it is in `outbound.deny` of host.toml")]
    Denied,
    #[error(
        "it is {0}; to let functions reach such addresses, set `allow_private = true` under `[outbound]` in host.toml, \
         or name its network in `allow` there"
    )]
    Private(&'static str),
    #[error(
        "it is {0}; to let functions reach it all the same, name its network in `allow` under `[outbound]` in \
         host.toml"
    )]
    Special(&'static str),
}

impl AddressPolicy {
    /// Whether this address may be connected to. One that carries an IPv4 address in it is judged by both.
    ///
    /// # Errors
    /// Why it may not.
    pub fn check(&self, address: IpAddr) -> Result<(), Refused> {
        let carried = match address {
            IpAddr::V4(_) => None,
            IpAddr::V6(address) => carried(address),
        };
        let both = [Some(address), carried.map(IpAddr::V4)];
        let within = |nets: &[IpNet], address: IpAddr| nets.iter().any(|net| net.contains(&address));
        if both.into_iter().flatten().any(|address| within(&self.deny, address)) {
            return Err(Refused::Denied);
        }
        for address in both.into_iter().flatten() {
            // An IPv6 address that is another form of an IPv4 address has nothing to be judged by but that one.
            let judged_by_other = address.is_ipv6() && carried.is_some();
            if judged_by_other || within(&self.allow, address) {
                continue;
            }
            match class(address) {
                Class::Public => {}
                Class::Private(_) if self.allow_private => {}
                Class::Private(what) => return Err(Refused::Private(what)),
                Class::Special(what) => return Err(Refused::Special(what)),
            }
        }
        Ok(())
    }
}

/// What an address is for.
enum Class {
    Public,
    /// Of this machine or a network around it, where services are.
    Private(&'static str),
    /// What nobody connects to for good reasons, or what must be opened one by one.
    Special(&'static str),
}

fn class(address: IpAddr) -> Class {
    match address {
        IpAddr::V4(address) => class_v4(address),
        IpAddr::V6(address) => class_v6(address),
    }
}

fn class_v4(address: Ipv4Addr) -> Class {
    match address.octets() {
        [0, ..] => Class::Special("an address of no host (0.0.0.0/8)"),
        [127, ..] => Class::Private("this machine's own (127.0.0.0/8)"),
        [10, ..] => Class::Private("of a private network (10.0.0.0/8)"),
        [172, 16..=31, ..] => Class::Private("of a private network (172.16.0.0/12)"),
        [192, 168, ..] => Class::Private("of a private network (192.168.0.0/16)"),
        [100, 64..=127, ..] => Class::Private("of a provider's own network (100.64.0.0/10)"),
        // Where clouds hand out credentials to whoever asks from this machine.
        [169, 254, ..] => Class::Special("link-local, where clouds keep their metadata (169.254.0.0/16)"),
        [192, 0, 0, _] => Class::Special("reserved for protocols (192.0.0.0/24)"),
        [192, 88, 99, _] => Class::Special("of retired relays (192.88.99.0/24)"),
        [192, 0, 2, _] | [198, 51, 100, _] | [203, 0, 113, _] => Class::Special("for documentation"),
        [198, 18..=19, ..] => Class::Special("for benchmarks (198.18.0.0/15)"),
        [224..=239, ..] => Class::Special("a multicast address (224.0.0.0/4)"),
        [240..=255, ..] => Class::Special("reserved (240.0.0.0/4)"),
        _ => Class::Public,
    }
}

fn class_v6(address: Ipv6Addr) -> Class {
    match address.segments() {
        [0, 0, 0, 0, 0, 0, 0, 0] => Class::Special("an address of no host (::)"),
        [0, 0, 0, 0, 0, 0, 0, 1] => Class::Private("this machine's own (::1)"),
        // The metadata service of a cloud, in the midst of private addresses.
        [0xfd00, 0x0ec2, 0, 0, 0, 0, 0, 0x0254] => {
            Class::Special("where clouds keep their metadata (fd00:ec2::254)")
        }
        [0xfc00..=0xfdff, ..] => Class::Private("of a private network (fc00::/7)"),
        [0xfe80..=0xfebf, ..] => Class::Special("link-local (fe80::/10)"),
        [0xfec0..=0xfeff, ..] => Class::Private("site-local (fec0::/10)"),
        [0xff00..=0xffff, ..] => Class::Special("a multicast address (ff00::/8)"),
        [0x0064, 0xff9b, 1, ..] => Class::Special("of a translator's own network (64:ff9b:1::/48)"),
        [0x0100, 0, 0, 0, ..] => Class::Special("for what is thrown away (100::/64)"),
        [0x2001, 0x0000, ..] => Class::Special("of a Teredo tunnel (2001::/32)"),
        [0x2001, second, ..] if second < 0x0200 => Class::Special("reserved for protocols (2001::/23)"),
        [0x2001, 0x0db8, ..] | [0x3fff, 0..=0x0fff, ..] => Class::Special("for documentation"),
        [0x5f00, ..] => Class::Special("of segment routing (5f00::/16)"),
        [0x2000..=0x3fff, ..] => Class::Public,
        _ => Class::Special("not of the public part of IPv6 (2000::/3)"),
    }
}

/// The IPv4 address that the system or a translator on the way makes of an IPv6 address.
fn carried(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let v4 = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        Some(Ipv4Addr::new(a, b, c, d))
    };
    match address.segments() {
        // Mapped, translated (SIIT), and the well-known prefix of NAT64.
        [0, 0, 0, 0, 0, 0xffff, high, low]
        | [0, 0, 0, 0, 0xffff, 0, high, low]
        | [0x0064, 0xff9b, 0, 0, 0, 0, high, low] => v4(high, low),
        // 6to4.
        [0x2002, high, low, ..] => v4(high, low),
        // Compatible: but for `::` and `::1`, which are themselves.
        [0, 0, 0, 0, 0, 0, high, low] if high != 0 || low > 1 => v4(high, low),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[track_caller]
    fn check(policy: &AddressPolicy, allowed: &[&str], refused: &[&str]) {
        for address in allowed {
            assert_eq!(policy.check(address.parse().unwrap()), Ok(()), "{address}");
        }
        for address in refused {
            assert!(policy.check(address.parse().unwrap()).is_err(), "{address}");
        }
    }

    const PUBLIC: [&str; 8] = [
        "1.1.1.1",
        "100.63.255.255",
        "172.32.0.1",
        "198.20.0.1",
        "2606:4700::1111",
        "::ffff:1.1.1.1",
        "64:ff9b::1.1.1.1",
        "2002:101:101::1",
    ];

    const PRIVATE: [&str; 13] = [
        "127.0.0.1",
        "127.255.255.255",
        "10.0.0.1",
        "172.16.0.1",
        "172.31.255.255",
        "192.168.0.1",
        "100.64.0.1",
        "::1",
        "fd00::1",
        "::ffff:127.0.0.1",
        "::127.0.0.1",
        "64:ff9b::10.0.0.1",
        "2002:7f00:1::",
    ];

    const SPECIAL: [&str; 22] = [
        "0.0.0.0",
        "0.1.2.3",
        "169.254.169.254",
        "192.0.0.170",
        "192.0.2.1",
        "198.18.0.1",
        "224.0.0.1",
        "255.255.255.255",
        "::",
        "fe80::1",
        "ff02::1",
        "fd00:ec2::254",
        "::ffff:169.254.169.254",
        "::ffff:0:169.254.169.254",
        "::ffff:0.0.0.0",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::1.1.1.1",
        "2002:a9fe:a9fe::",
        "2001::1",
        "2001:db8::1",
        "100::1",
        "4000::1",
    ];

    #[test]
    fn only_public_addresses_are_reached_unless_the_operator_says() {
        let policy = AddressPolicy::default();
        check(&policy, &PUBLIC, &PRIVATE);
        check(&policy, &PUBLIC, &SPECIAL);
    }

    #[test]
    fn private_networks_are_opened_without_what_is_special() {
        let policy = AddressPolicy { allow_private: true, ..AddressPolicy::default() };
        check(&policy, &PUBLIC, &SPECIAL);
        check(&policy, &PRIVATE, &[]);
    }

    #[test]
    fn the_operator_opens_and_closes_networks() {
        let policy = AddressPolicy {
            allow: nets(&["10.1.0.0/16", "169.254.169.254/32", "fd12::/16"]),
            deny: nets(&["10.1.9.0/24", "1.1.1.0/24"]),
            ..AddressPolicy::default()
        };
        let allowed = ["10.1.2.3", "::ffff:10.1.2.3", "169.254.169.254", "fd12::5", "8.8.8.8"];
        let refused =
            ["10.2.0.1", "10.1.9.1", "::ffff:10.1.9.1", "1.1.1.1", "64:ff9b::1.1.1.1", "169.254.169.253"];
        check(&policy, &allowed, &refused);
    }

    #[test]
    fn a_refusal_says_what_would_open_the_address() {
        let told =
            |address: &str| AddressPolicy::default().check(address.parse().unwrap()).unwrap_err().to_string();
        assert!(told("127.0.0.1").contains("allow_private = true"));
        assert!(
            told("169.254.169.254").contains("metadata")
                && !told("169.254.169.254").contains("allow_private")
        );
    }
}
