//! Who may start connections to what through the gateway, and which of its ports lead inside.
//!
//! ```text
//!   allow  = ["laptop -> *", "phone -> nas:443", "* -> 10.86.0.7:53/udp", "admin -> gateway:22"]
//!   lan    = ["192.168.1.0/24"]
//!   expose = ["443 -> nas:443", "5353/udp -> nas:53"]
//! ```

use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::str::FromStr;

use ipnet::IpNet;

use super::diagnostic::Complaint;
use super::name::PeerName;
use super::parse_prefix;

/// What clients reach through the gateway, beyond the switches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reach {
    /// Private networks beside the gateway that clients may reach.
    pub lan: Vec<IpNet>,
    /// The only connections that clients may start; `None` leaves that to the switches.
    pub allow: Option<Vec<AllowRule>>,
    /// Ports of the gateway that lead to clients.
    pub expose: Vec<Exposure>,
}

/// `FROM -> TO[:PORTS[/tcp|/udp]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllowRule {
    /// Who starts the connection.
    pub from: Place,
    /// Where it leads.
    pub to: Place,
    /// To which ports; `None` is every port and every protocol.
    pub ports: Option<Ports>,
}

/// One side of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// `*`: every client, or everywhere.
    Any,
    /// `gateway`: the gateway's own inside addresses.
    Gateway,
    /// A peer, with the networks behind it.
    Peer(PeerName),
    /// An address or a network.
    Network(IpNet),
}

/// Ports of TCP, of UDP or of both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ports {
    /// The first and the last.
    pub range: RangeInclusive<u16>,
    /// `None` is both.
    pub transport: Option<Transport>,
}

/// A protocol that has ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// Connections.
    Tcp,
    /// Datagrams.
    Udp,
}

/// `PORT[/udp] -> PEER[:PORT]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exposure {
    /// The port of the gateway, on every outside address.
    pub port: u16,
    /// Its protocol.
    pub transport: Transport,
    /// Who answers.
    pub to: PeerName,
    /// The port there.
    pub to_port: u16,
}

const RULE: &str = "write FROM -> TO or FROM -> TO:PORT, for example \"phone -> nas:443\", \"laptop -> *\" or \
                    \"* -> 10.86.0.7:53/udp\"";
const EXPOSURE: &str = "write PORT -> PEER:PORT, for example \"443 -> nas:443\" or \"5353/udp -> nas:53\"";

impl FromStr for AllowRule {
    type Err = Complaint;

    fn from_str(text: &str) -> Result<Self, Complaint> {
        let (from, to) = sides(text, RULE)?;
        let from = place(from)?;
        if from == Place::Gateway {
            let reason = "what the gateway starts itself is always allowed";
            return Err(Complaint::new(reason, "remove the rule"));
        }
        // The whole may be an IPv6 address or network, which has colons too.
        let (to, ports) = match (place(to), to.rsplit_once(':')) {
            (Ok(to), _) => (to, None),
            (Err(_), Some((place_text, ports_text))) => (place(place_text)?, Some(ports(ports_text)?)),
            (Err(complaint), None) => return Err(complaint),
        };
        Ok(Self { from, to, ports })
    }
}

impl FromStr for Exposure {
    type Err = Complaint;

    fn from_str(text: &str) -> Result<Self, Complaint> {
        let (port_text, to) = sides(text, EXPOSURE)?;
        let wrong = || Complaint::new(format!("`{text}` is no port that leads to a peer"), EXPOSURE);
        let Ports { range, transport } = ports(port_text)?;
        let transport = transport.unwrap_or(Transport::Tcp);
        let port = *range.start();
        if range.start() != range.end() {
            return Err(Complaint::new("one line exposes one port", EXPOSURE));
        }
        let (name, to_port) = match to.rsplit_once(':') {
            Some((name, to_port)) => (name, to_port.parse().ok().filter(|&it| it != 0).ok_or_else(wrong)?),
            None => (to, port),
        };
        Ok(Self { port, transport, to: name.parse()?, to_port })
    }
}

fn sides<'a>(text: &'a str, fix: &str) -> Result<(&'a str, &'a str), Complaint> {
    let (from, to) = text
        .split_once("->")
        .ok_or_else(|| Complaint::new(format!("`{text}` has no `->`"), fix.to_owned()))?;
    Ok((from.trim(), to.trim()))
}

fn place(text: &str) -> Result<Place, Complaint> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    match text {
        "*" => Ok(Place::Any),
        "gateway" => Ok(Place::Gateway),
        _ if bare.parse::<IpAddr>().is_ok() || bare.parse::<IpNet>().is_ok() => {
            Ok(Place::Network(parse_prefix(bare)?.trunc()))
        }
        _ => match text.parse() {
            Ok(name) => Ok(Place::Peer(name)),
            Err(_) => {
                Err(Complaint::new(format!("`{text}` is no peer, address, network, `gateway` or `*`"), RULE))
            }
        },
    }
}

fn ports(text: &str) -> Result<Ports, Complaint> {
    let wrong = || {
        let fix = "write a port or a range, 1 to 65535, with /tcp or /udp for one of the two: 443, 8000-8080, 53/udp";
        Complaint::new(format!("`{text}` names no ports"), fix)
    };
    let (numbers, transport) = match text.split_once('/') {
        Some((numbers, "tcp")) => (numbers, Some(Transport::Tcp)),
        Some((numbers, "udp")) => (numbers, Some(Transport::Udp)),
        Some(_) => return Err(wrong()),
        None => (text, None),
    };
    let number = |text: &str| text.trim().parse::<u16>().ok().filter(|&port| port != 0).ok_or_else(wrong);
    let (first, last) = match numbers.split_once('-') {
        Some((first, last)) => (number(first)?, number(last)?),
        None => (number(numbers)?, number(numbers)?),
    };
    if first > last { Err(wrong()) } else { Ok(Ports { range: first..=last, transport }) }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(text: &str) -> AllowRule {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    fn peer(name: &str) -> Place {
        Place::Peer(name.parse().unwrap())
    }

    #[test]
    fn a_rule_names_peers_networks_ports_and_everything() {
        assert_eq!(rule("laptop -> *"), AllowRule { from: peer("laptop"), to: Place::Any, ports: None });
        let ports = |range, transport| Some(Ports { range, transport });
        assert_eq!(
            rule("phone->nas:443"),
            AllowRule { from: peer("phone"), to: peer("nas"), ports: ports(443..=443, None) }
        );
        let net = |text: &str| Place::Network(text.parse().unwrap());
        assert_eq!(rule("* -> 10.0.0.0/8:53/udp").ports, ports(53..=53, Some(Transport::Udp)));
        assert_eq!(rule("* -> 10.0.0.0/8:53/udp").to, net("10.0.0.0/8"));
        assert_eq!(rule("* -> fd00::/8").to, net("fd00::/8"));
        assert_eq!(rule("* -> [fd00::7]:8000-8080/tcp").to, net("fd00::7/128"));
        assert_eq!(rule("10.86.0.7 -> gateway:22").to, Place::Gateway);
        assert_eq!(rule("* -> *:443").ports, ports(443..=443, None));
    }

    #[test]
    fn a_rule_that_cannot_be_meant_says_what_to_write() {
        for text in
            ["laptop", "laptop -> ", "-> nas", "a b -> *", "x -> nas:0", "x -> nas:9-1", "x -> n:1/sctp"]
        {
            let complaint = text.parse::<AllowRule>().unwrap_err();
            assert!(!complaint.fix.is_empty() && complaint.fix.contains("write"), "{text}: {complaint}");
        }
        assert!("gateway -> *".parse::<AllowRule>().is_err());
    }

    #[test]
    fn a_port_leads_to_a_port_of_a_peer() {
        let exposure = |text: &str| text.parse::<Exposure>().map_err(|error| error.to_string());
        let expected =
            |transport, port, to_port| Exposure { port, transport, to: "nas".parse().unwrap(), to_port };
        assert_eq!(exposure("443 -> nas:8443"), Ok(expected(Transport::Tcp, 443, 8443)));
        assert_eq!(exposure("443 -> nas"), Ok(expected(Transport::Tcp, 443, 443)));
        assert_eq!(exposure("5353/udp -> nas:53"), Ok(expected(Transport::Udp, 5353, 53)));
        for text in
            ["nas:443", "443 ->", "0 -> nas", "443 -> nas:0", "443 -> nas:x", "1-2 -> nas", "443 -> *"]
        {
            assert!(exposure(text).is_err(), "{text}");
        }
    }
}
