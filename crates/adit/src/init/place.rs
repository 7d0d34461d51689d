//! Where a new gateway is: its address for clients, a port and an interface that are free.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, bail};

use crate::config::InterfaceName;
use crate::home::Home;
use crate::ip;

/// How long services on the internet may take to say how they see this host.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where clients reach this host, and why they should.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) host: IpAddr,
    pub(super) reason: String,
}

/// This host's own public address; behind a NAT, the one that services on the internet see; else its private one.
pub(super) fn find(home: &Home, port: u16) -> anyhow::Result<Place> {
    let own = own_address([192, 0, 2, 1].into())
        .or_else(|| own_address(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into()))
        .with_context(|| {
            format!(
                "this host has no route to the internet, so clients cannot reach it by any address known here; tell \
                 where they do: `adit init --endpoint HOST:PORT{}`",
                home.flag()
            )
        })?;
    if !is_private(own) {
        return Ok(Place { host: own, reason: "this host's own public address".to_owned() });
    }
    Ok(match ip::seen_by_services(home, PATIENCE) {
        Some((seen, service)) if seen != own => Place {
            host: seen,
            reason: format!("so {service} sees this host; it is {own} behind a NAT: forward UDP port {port} to it"),
        },
        _ => Place {
            host: own,
            reason: "this host's own address; it is private, so only its own network reaches it (--endpoint names \
                     another)"
                .to_owned(),
        },
    })
}

/// Connecting a UDP socket sends nothing; it only asks the routing table.
fn own_address(towards: IpAddr) -> Option<IpAddr> {
    let any: IpAddr =
        if towards.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0)).ok()?;
    socket.connect(SocketAddr::new(towards, 9)).ok()?;
    Some(socket.local_addr().ok()?.ip()).filter(|own| !own.is_unspecified() && !own.is_loopback())
}

fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let [first, second, ..] = v4.octets();
            let is_carrier_grade = first == 100 && (64..128).contains(&second);
            v4.is_private() || v4.is_link_local() || is_carrier_grade
        }
        IpAddr::V6(v6) => v6.is_unique_local() || v6.is_unicast_link_local(),
    }
}

/// `first`, or the next UDP port that no program of this host has.
pub(super) fn free_port(first: u16) -> (u16, String) {
    let is_free = |port: u16| {
        let at = |any: IpAddr| UdpSocket::bind(SocketAddr::new(any, port));
        let is_taken = |error: std::io::Error| error.kind() == std::io::ErrorKind::AddrInUse;
        let any = [IpAddr::from(Ipv4Addr::UNSPECIFIED), IpAddr::from(Ipv6Addr::UNSPECIFIED)];
        any.into_iter().all(|any| !at(any).is_err_and(is_taken))
    };
    match (first..first.saturating_add(100)).find(|port| is_free(*port)) {
        Some(port) if port == first => (port, "the port of WireGuard, and free here".to_owned()),
        Some(port) => (port, format!("the next that is free here; another program has {first}")),
        None => (first, "the port of WireGuard; it is taken here by another program".to_owned()),
    }
}

/// `adit0`, or the next name that no interface of this host has.
pub(super) fn free_interface() -> anyhow::Result<(InterfaceName, String)> {
    for number in 0..100 {
        let name = format!("adit{number}");
        if !adit_host::link_exists(&name)? {
            let reason = match number {
                0 => "the default".to_owned(),
                _ => "the next name that no interface here has".to_owned(),
            };
            return Ok((name.parse()?, reason));
        }
    }
    bail!("this host has interfaces adit0 to adit99; choose a name with --interface")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_is_taken_is_passed_over() {
        let taken = UdpSocket::bind("0.0.0.0:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let (free, reason) = free_port(port);
        assert!(free != port && reason.contains(&format!("another program has {port}")), "{free} {reason}");
        drop(taken);
        assert_eq!(free_port(port).0, port);
    }

    #[test]
    fn private_addresses_are_told_from_public_ones() {
        for private in
            ["10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1", "169.254.1.1", "fd00::1", "fe80::1"]
        {
            assert!(is_private(private.parse().unwrap()), "{private}");
        }
        for public in ["198.51.100.1", "9.9.9.9", "100.128.0.1", "2001:db8::1"] {
            assert!(!is_private(public.parse().unwrap()), "{public}");
        }
    }
}
