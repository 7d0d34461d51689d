//! Addresses and networks as people write them.

use std::net::IpAddr;
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::Gateway;
use super::diagnostic::Complaint;

pub(crate) fn parse_network(text: &str) -> Result<Ipv4Net, Complaint> {
    const FIX: &str = "write a private network like \"10.86.0.0/24\"";
    let network: Ipv4Net =
        text.parse().map_err(|_| Complaint::new(format!("`{text}` is not an IPv4 network"), FIX))?;
    check_host_bits(text, network, network.trunc())?;
    let address = network.network();
    if !(8..=30).contains(&network.prefix_len()) {
        return Err(Complaint::new(
            "the network is too large or has no room for peers",
            "use /8 to /30, for example /24",
        ));
    }
    if address.is_loopback() || address.is_multicast() || address.is_link_local() || address.octets()[0] == 0
    {
        return Err(Complaint::new(format!("`{text}` is reserved for something else"), FIX));
    }
    Ok(network)
}

pub(crate) fn parse_network6(text: &str) -> Result<Ipv6Net, Complaint> {
    const FIX: &str = "write a private network like \"fd12:3456:789a::/64\"";
    let network: Ipv6Net =
        text.parse().map_err(|_| Complaint::new(format!("`{text}` is not an IPv6 network"), FIX))?;
    check_host_bits(text, network, network.trunc())?;
    if !(32..=126).contains(&network.prefix_len()) {
        return Err(Complaint::new(
            "the network is too large or has no room for peers",
            "use /32 to /126, for example /64",
        ));
    }
    let address = network.network();
    let reserved =
        address.is_multicast() || address.is_unicast_link_local() || address.segments()[..4] == [0; 4];
    if reserved {
        return Err(Complaint::new(format!("`{text}` is reserved for something else"), FIX));
    }
    Ok(network)
}

pub(super) fn parse_lease(text: &str, gateway: Option<&Gateway>) -> Result<IpAddr, Complaint> {
    let address: IpAddr = text.parse().map_err(|_| {
        Complaint::new(
            format!("`{text}` is not an address"),
            "write one address without /length; networks behind the peer go into `allowed_ips`",
        )
    })?;
    let Some(gateway) = gateway else { return Ok(address) };
    let own = gateway.addresses();
    let Some(network) = own.iter().find(|network| network.contains(&address)) else {
        let networks: Vec<String> = own.iter().map(|network| network.trunc().to_string()).collect();
        return Err(Complaint::new(
            format!("{address} is outside the networks of the gateway"),
            format!("choose a free address in {}", networks.join(" or ")),
        ));
    };
    let taken = if network.addr() == address {
        "the gateway itself"
    } else if network.network() == address {
        "the network"
    } else if address.is_ipv4() && network.broadcast() == address {
        "broadcasts"
    } else {
        return Ok(address);
    };
    Err(Complaint::new(format!("{address} is the address of {taken}"), "choose another address"))
}

pub(super) fn parse_allowed_ip(text: &str) -> Result<IpNet, Complaint> {
    let network = parse_prefix(text)?;
    check_host_bits(text, network, network.trunc())?;
    Ok(network)
}

pub(super) fn parse_route(text: &str) -> Result<IpNet, Complaint> {
    match parse_allowed_ip(text)? {
        net if net.prefix_len() == 0 => Err(Complaint::new(
            "a default route is no site",
            "name the networks behind the peer; `allowed_ips` takes everything, without a route",
        )),
        net => Ok(net),
    }
}

/// A network, or an address as the network of itself.
pub(crate) fn parse_prefix(text: &str) -> Result<IpNet, Complaint> {
    let parsed = IpNet::from_str(text).ok().or_else(|| IpAddr::from_str(text).ok().map(IpNet::from));
    parsed.ok_or_else(|| {
        Complaint::new(
            format!("`{text}` is not a network"),
            "write an address and a length, for example 192.168.1.0/24 or 2001:db8::/32",
        )
    })
}

fn check_host_bits<T: PartialEq + std::fmt::Display>(
    text: &str,
    given: T,
    truncated: T,
) -> Result<(), Complaint> {
    if given == truncated {
        return Ok(());
    }
    let reason = format!("`{text}` is an address in a network, not the network");
    Err(Complaint::new(reason, format!("write \"{truncated}\"")))
}
