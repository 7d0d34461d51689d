//! What a host reaches without us: networks that ours must not clash with, and the way to the internet.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::address;
use crate::error::HostError;
use crate::link;
use crate::netlink::Netlink;
use crate::plan::MAIN_TABLE;
use crate::route;

const LOCAL_TABLE: u32 = 255;

/// What a host has around it, in its network namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// Every network that it has an address in or a route to, in whatever table, and by which interface. Default routes,
    /// loopback and link-local networks are left out.
    pub networks: Vec<(IpNet, String)>,
    /// The interfaces that default routes leave by, IPv4 first.
    pub uplinks: Vec<String>,
}

/// Looks around.
pub fn surroundings() -> Result<Surroundings, HostError> {
    let mut netlink = Netlink::open()?;
    let links = link::list(&mut netlink)?;
    let name = |index: Option<u32>| {
        let found = links.iter().find(|link| Some(link.index) == index);
        found.map_or_else(|| "a route".to_owned(), |link| link.name.clone())
    };
    let mut around = Surroundings::default();
    for found in address::list(&mut netlink)? {
        around.add(found.address.trunc(), name(Some(found.index)));
    }
    let mut defaults = Vec::new();
    for found in route::list(&mut netlink)? {
        if found.table == LOCAL_TABLE {
            continue;
        }
        if found.destination.prefix_len() > 1 {
            around.add(found.destination.trunc(), name(found.oif));
        } else if found.table == MAIN_TABLE && found.unicast {
            defaults.push((found.destination.addr().is_ipv6(), found.metric, name(found.oif)));
        }
    }
    defaults.sort();
    for (_, _, uplink) in defaults {
        if !around.uplinks.contains(&uplink) {
            around.uplinks.push(uplink);
        }
    }
    Ok(around)
}

/// The public networks that this host is in by its interfaces but `link`: behind the firewall of a home's router they
/// are its LAN. Those that are private anyway, and single addresses, are left out, and the IPv4 networks on the way to the
/// internet: neighbours there are on the internet themselves, where everybody reaches them.
pub fn neighbour_networks(link: &str) -> Result<Vec<IpNet>, HostError> {
    let mut netlink = Netlink::open()?;
    let links = link::list(&mut netlink)?;
    let ours = links.iter().find(|it| it.name == link).map(|it| it.index);
    let addresses = address::list(&mut netlink)?;
    let addresses = addresses.iter().map(|it| (it.address.trunc(), Some(it.index)));
    let routes = route::list(&mut netlink)?;
    let on_link = routes.iter().filter(|it| it.table == MAIN_TABLE && it.unicast && it.gateway.is_none());
    let found = addresses.chain(on_link.map(|it| (it.destination.trunc(), it.oif)));
    let private = crate::gateway::private_networks();
    let uplinks: Vec<Option<u32>> = routes
        .iter()
        .filter(|it| it.table == MAIN_TABLE && it.unicast && it.destination.prefix_len() == 0)
        .map(|it| it.oif)
        .collect();
    let is_internet =
        |net: &IpNet, by: Option<u32>| net.addr().is_ipv4() && (uplinks.is_empty() || uplinks.contains(&by));
    let is_neighbour = |net: &IpNet| {
        let is_multicast = net.addr().is_multicast();
        (2..net.max_prefix_len()).contains(&net.prefix_len())
            && !is_multicast
            && !private.iter().any(|known| known.contains(net))
    };
    let nets: Vec<IpNet> = found
        .filter(|(net, by)| (ours.is_none() || *by != ours) && is_neighbour(net) && !is_internet(net, *by))
        .map(|(net, _)| net)
        .collect();
    Ok(IpNet::aggregate(&nets))
}

impl Surroundings {
    fn add(&mut self, network: IpNet, by: String) {
        let is_nobodys = match network.addr() {
            IpAddr::V4(it) => it.is_loopback() || it.is_link_local() || it.is_multicast(),
            IpAddr::V6(it) => it.is_loopback() || it.is_unicast_link_local() || it.is_multicast(),
        };
        if !is_nobodys && self.networks.iter().all(|(known, _)| *known != network) {
            self.networks.push((network, by));
        }
    }
}
