//! Where a proxy may connect to: the name as it was asked for, and each address it turns out to have.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A host and a port that somebody asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) host: Host,
    pub(super) port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Host {
    Address(IpAddr),
    /// A DNS name, lower case, of nothing but letters, digits, dots, hyphens and underscores.
    Name(String),
}

/// Why a target is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    /// It is no host name.
    #[error("not a host name or address")]
    Malformed,
    /// This machine, as the other end would see it.
    #[error("loopback, link-local, multicast and unspecified addresses are not reached through a tunnel")]
    Local,
    /// Our own inside address.
    #[error("this address is the proxy's own")]
    Own,
    /// Mail servers are what open proxies are abused for.
    #[error("port 25 (mail between servers) is refused")]
    Mail,
    /// What a gateway does for its peers, whose browsers would do it for any page.
    #[error(
        "the gateway's inside API is not for what comes by the proxy; -L PORT:ADDRESS:PORT leads to it, and `adit ip` \
         and `adit bench` ask it"
    )]
    InsideApi,
    /// Port 0.
    #[error("port 0 does not exist")]
    NoPort,
}

impl Host {
    /// A name or an address, with or without brackets.
    pub(super) fn parse(text: &str) -> Result<Self, Refusal> {
        let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
        if let Ok(address) = bare.parse() {
            return Ok(Self::Address(address));
        }
        let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        let label = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
        };
        // Other spellings of addresses, such as 0x7f.1 or 2130706433, end with a number; names do not.
        let last = name.rsplit('.').next().unwrap_or_default();
        let number = last.bytes().all(|byte| byte.is_ascii_digit())
            || last.strip_prefix("0x").is_some_and(|rest| rest.bytes().all(|byte| byte.is_ascii_hexdigit()));
        if name.len() > 253 || number || !name.split('.').all(label) {
            return Err(Refusal::Malformed);
        }
        if last == "localhost" {
            return Err(Refusal::Local);
        }
        Ok(Self::Name(name))
    }
}

impl Target {
    pub(super) fn new(host: &str, port: u16) -> Result<Self, Refusal> {
        let target = Self { host: Host::parse(host)?, port };
        target.check_port()?;
        Ok(target)
    }

    pub(super) fn check_port(&self) -> Result<(), Refusal> {
        match self.port {
            0 => Err(Refusal::NoPort),
            25 => Err(Refusal::Mail),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Address(IpAddr::V6(address)) => write!(f, "[{address}]:{}", self.port),
            Host::Address(IpAddr::V4(address)) => write!(f, "{address}:{}", self.port),
            Host::Name(name) => write!(f, "{name}:{}", self.port),
        }
    }
}

/// Whether an address may be connected to. Private networks may: they are what a VPN is for.
pub(super) fn check(address: IpAddr, ours: &[IpAddr]) -> Result<(), Refusal> {
    let inner = match address {
        IpAddr::V6(address) => embedded(address).map(IpAddr::V4),
        IpAddr::V4(_) => None,
    };
    if ours.contains(&address) || inner.is_some_and(|inner| ours.contains(&inner)) {
        return Err(Refusal::Own);
    }
    let local = match address {
        IpAddr::V4(address) => is_local(address),
        IpAddr::V6(address) => {
            let hidden = matches!(address.segments(), [0x64, 0xff9b, 1, ..] | [0x2001, 0, ..]);
            let link_local = address.is_unicast_link_local() || address.segments()[0] & 0xffc0 == 0xfec0;
            let plain = address.is_loopback() || address.is_unspecified() || address.is_multicast();
            plain || link_local || hidden || embedded(address).is_some_and(is_local)
        }
    };
    if local { Err(Refusal::Local) } else { Ok(()) }
}

fn is_local(address: Ipv4Addr) -> bool {
    let [first, ..] = address.octets();
    first == 0
        || first >= 240
        || address.is_loopback()
        || address.is_link_local()
        || address.is_multicast()
        || address.is_broadcast()
}

/// The IPv4 address that a gateway on the way would make of an IPv6 address: mapped, compatible, translated
/// (RFC 6052) or 6to4 (RFC 3056).
fn embedded(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let last = |bytes: [u8; 16]| Ipv4Addr::new(bytes[12], bytes[13], bytes[14], bytes[15]);
    match address.segments() {
        [0, 0, 0, 0, 0, 0xffff | 0, ..] | [0, 0, 0, 0, 0xffff, 0, ..] | [0x64, 0xff9b, 0, 0, 0, 0, ..] => {
            Some(last(address.octets()))
        }
        [0x2002, high, low, ..] => {
            let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
            Some(Ipv4Addr::new(a, b, c, d))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_addresses_are_told_apart_and_the_rest_refused() {
        assert_eq!(Host::parse("Web.Example."), Ok(Host::Name("web.example".into())));
        assert_eq!(Host::parse("[2001:db8::1]"), Ok(Host::Address("2001:db8::1".parse().unwrap())));
        for text in ["3dprinter", "nas.3com", "0xbeer", "web.0day"] {
            assert_eq!(Host::parse(text), Ok(Host::Name(text.into())));
        }
        assert_eq!(Host::parse("192.0.2.1"), Ok(Host::Address("192.0.2.1".parse().unwrap())));
        let malformed = [
            "",
            ".",
            "a b",
            "a\r\nb",
            "a\0b",
            "a/b",
            "a@b",
            "é.example",
            "0x7f.1",
            "2130706433",
            "127.1",
            "0x7f000001",
            "1.0x",
            "0177.0.0.0x1",
        ];
        for text in malformed {
            assert_eq!(Host::parse(text), Err(Refusal::Malformed), "{text:?}");
        }
        assert_eq!(Host::parse(&"a".repeat(64)), Err(Refusal::Malformed));
        assert_eq!(Host::parse("LOCALHOST"), Err(Refusal::Local));
        assert_eq!(Host::parse("x.localhost."), Err(Refusal::Local));
    }

    #[test]
    fn what_is_local_to_the_other_end_is_refused_and_private_networks_are_not() {
        let ours: Vec<IpAddr> = vec!["10.86.0.2".parse().unwrap(), "fd86::2".parse().unwrap()];
        let verdict = |text: &str| check(text.parse().unwrap(), &ours);
        for good in [
            "10.86.0.1",
            "192.168.1.1",
            "172.16.0.1",
            "203.0.113.80",
            "fd86::1",
            "2001:db8::1",
            "64:ff9b::cb00:7150",
            "::ffff:10.86.0.3",
            "2001:1::1",
        ] {
            assert_eq!(verdict(good), Ok(()), "{good}");
        }
        let local = [
            "127.0.0.1",
            "127.255.0.1",
            "0.0.0.0",
            "0.1.2.3",
            "169.254.169.254",
            "224.0.0.1",
            "255.255.255.255",
            "240.0.0.1",
            "::",
            "::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "::127.0.0.1",
            "64:ff9b::7f00:1",
            "64:ff9b::a9fe:a9fe",
            "2002:7f00:1::",
            "::ffff:0:127.0.0.1",
            // Where the inner address is depends on who translates (RFC 8215), or is blurred (Teredo, RFC 4380).
            "64:ff9b:1::7f00:1",
            "64:ff9b:1:7f00:0:100::",
            "2001:0:4136:e378:8000:63bf:80ff:fffe",
        ];
        for bad in local {
            assert_eq!(verdict(bad), Err(Refusal::Local), "{bad}");
        }
        assert_eq!(verdict("10.86.0.2"), Err(Refusal::Own));
        assert_eq!(verdict("fd86::2"), Err(Refusal::Own));
        for ours in ["::ffff:10.86.0.2", "64:ff9b::a56:2", "2002:a56:2::1"] {
            assert_eq!(verdict(ours), Err(Refusal::Own), "{ours}");
        }
    }

    #[test]
    fn mail_and_no_port_are_refused() {
        assert!(Target::new("mail.example", 587).is_ok());
        assert_eq!(Target::new("mail.example", 25), Err(Refusal::Mail));
        assert_eq!(Target::new("mail.example", 0), Err(Refusal::NoPort));
    }
}
