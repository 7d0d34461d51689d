//! Hosts with ports: where a peer is reached, and where we listen.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use super::diagnostic::Complaint;
use super::value::number;
use crate::endpoint::HostPort;

impl FromStr for HostPort {
    type Err = Complaint;

    /// `host:port`, `192.0.2.1:port` or `[2001:db8::1]:port`; the port is never 0.
    fn from_str(text: &str) -> Result<Self, Complaint> {
        const FIX: &str = "write `host:port`, for example `vpn.example.org:51820` or `[2001:db8::1]:51820`";
        let complain = |reason: String| Complaint::new(reason, FIX);
        let (host, port) = text.rsplit_once(':').ok_or_else(|| complain(format!("`{text}` has no port")))?;
        let host = if let Some(inner) = host.strip_prefix('[') {
            let inner = inner
                .strip_suffix(']')
                .ok_or_else(|| complain(format!("`{text}` opens a bracket and does not close it")))?;
            let address: Ipv6Addr =
                inner.parse().map_err(|_| complain(format!("`{inner}` is not an IPv6 address")))?;
            address.to_string()
        } else if host.contains(':') {
            let reason = format!("`{text}` looks like an IPv6 address without brackets");
            return Err(Complaint::new(reason, "write `[address]:port`, for example `[2001:db8::1]:51820`"));
        } else if host.parse::<Ipv4Addr>().is_ok() || is_name(host) {
            host.to_owned()
        } else {
            return Err(complain(format!("`{host}` is neither an address nor a host name")));
        };
        match port_number(port) {
            Some(port) if port > 0 => Ok(Self { host, port }),
            _ => Err(complain(format!("`{port}` is not a port between 1 and 65535"))),
        }
    }
}

/// The port of `port`, `:port`, `0.0.0.0:port` or `[::]:port`; 0 lets the host choose.
///
/// # Errors
/// Not one of these, or an address of the host: packets are taken on every address.
pub fn parse_listen(text: &str) -> Result<u16, Complaint> {
    const FIX: &str = "write a port, for example `51820` or `:51820`";
    let (address, port) = text.rsplit_once(':').unwrap_or(("", text));
    if !address.is_empty() {
        let bare = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(address);
        let parsed: IpAddr =
            bare.parse().map_err(|_| Complaint::new(format!("`{address}` is not an IP address"), FIX))?;
        if !parsed.is_unspecified() {
            return Err(Complaint::new(
                format!("adit listens on every address of the host, not on `{address}` alone"),
                format!("write `:{port}` and let the firewall of the host decide who may reach it"),
            ));
        }
    }
    port_number(port)
        .ok_or_else(|| Complaint::new(format!("`{port}` is not a port between 0 and 65535"), FIX))
}

/// A port in decimal digits: no sign, no space.
pub(super) fn port_number(text: &str) -> Option<u16> {
    number(text)?.try_into().ok()
}

/// Whether `text` may be a DNS name (RFC 1123 section 2.1, and underscores).
pub(super) fn is_name(text: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    let bare = text.strip_suffix('.').unwrap_or(text);
    let last = bare.rsplit('.').next().unwrap_or_default();
    let looks_like_an_address = last.bytes().all(|byte| byte.is_ascii_digit());
    bare.len() <= 253 && !looks_like_an_address && bare.split('.').all(is_label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_names_or_addresses_with_a_port() {
        for good in ["192.0.2.1:1", "[2001:db8::1]:51820", "vpn.example.org:65535", "under_score.local.:53"] {
            assert_eq!(good.parse::<HostPort>().unwrap().to_string(), good);
        }
        for bad in [
            "",
            ":",
            "host",
            "host:",
            ":51820",
            "host:0",
            "host:65536",
            "host:+1",
            "host: 1",
            "2001:db8::1:51820",
            "[::1:51820",
            "[192.0.2.1]:1",
            "[fe80::1%eth0]:1",
            "-x:1",
            "a b:1",
            "1.2.3.256:1",
            "1.2.3:1",
            "a..b:1",
        ] {
            assert!(bad.parse::<HostPort>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn listening_is_on_every_address() {
        for same in ["51820", ":51820", "0.0.0.0:51820", "[::]:51820"] {
            assert_eq!(parse_listen(same), Ok(51820), "{same}");
        }
        for bad in ["", "x", "192.0.2.1:51820", "[::1]:51820", ":65536", "-1", "a:51820", ":"] {
            assert!(parse_listen(bad).is_err(), "{bad:?}");
        }
    }
}
