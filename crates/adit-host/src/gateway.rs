use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use crate::firewall::{Firewall, GatewayFirewall, Listener, PRIVATE, Passage, Reach};
use crate::plan::{Address, Family, Hop, Link, MAIN_TABLE, Plan, Route, Sysctl};

/// What a gateway's host should be like while it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayHost {
    pub link: String,
    /// The gateway's inside addresses, with the prefix of the inside network.
    pub addresses: Vec<IpNet>,
    pub mtu_bytes: u32,
    /// Networks behind clients, beyond the inside network.
    pub routes: Vec<IpNet>,
    pub listeners: Vec<Listener>,
    /// Our own addresses and ports inside, TCP and UDP, which only the tunnel may reach.
    pub services: Vec<SocketAddr>,
    /// Inside addresses that may speak with the services over TCP, and with nothing else.
    pub invited: Vec<IpAddr>,
    pub masquerade: bool,
    pub client_to_client: bool,
    /// Destinations that clients may not reach through the gateway unless [`Reach::lan`] holds them.
    pub denied: Vec<IpNet>,
    /// [`neighbour_networks`](crate::neighbour_networks), which are denied in the same way.
    pub neighbours: Vec<IpNet>,
    pub reach: Reach,
    /// [`foreign_forward_drops`](crate::foreign_forward_drops) that the tunnel is to pass.
    pub passages: Vec<Passage>,
    /// [`links_accepting_router_advertisements`](crate::links_accepting_router_advertisements).
    pub links_accepting_ra: Vec<String>,
}

/// The plan for a gateway: it forwards between the tunnel and the rest, and masquerades what leaves.
pub fn gateway_plan(host: &GatewayHost) -> Plan {
    let link = &host.link;
    let inside = inside(host);
    let families: Vec<Family> = Family::BOTH
        .into_iter()
        .filter(|family| inside.iter().any(|net| Family::of(net.addr()) == *family))
        .collect();
    let mut sysctls = Vec::new();
    if families.contains(&Family::Ipv4) {
        sysctls.push(Sysctl::new("net.ipv4.ip_forward", "1"));
    }
    if families.contains(&Family::Ipv6) {
        // A forwarding host stops hearing router advertisements, and so loses its own default route, unless told 2.
        for uplink in host.links_accepting_ra.iter().filter(|it| *it != link) {
            sysctls.push(Sysctl::new(format!("net/ipv6/conf/{uplink}/accept_ra"), "2"));
        }
        sysctls.push(Sysctl::new("net.ipv6.conf.all.forwarding", "1"));
    }
    let route = |net: &IpNet| Route {
        destination: net.trunc(),
        hop: Hop::Link(link.clone()),
        table: MAIN_TABLE,
        metric: None,
    };
    Plan {
        groups: Vec::new(),
        firewalls: vec![Firewall::Gateway(GatewayFirewall {
            link: link.clone(),
            addresses: host.addresses.clone(),
            inside,
            mtu_bytes: host.mtu_bytes,
            listeners: host.listeners.clone(),
            services: host.services.clone(),
            invited: host.invited.clone(),
            masquerade: host.masquerade,
            client_to_client: host.client_to_client,
            denied: host.denied.clone(),
            neighbours: host.neighbours.clone(),
            reach: host.reach.clone(),
        })],
        passages: host.passages.clone(),
        sysctls,
        links: vec![Link { name: link.clone(), mtu_bytes: Some(host.mtu_bytes), up: true }],
        addresses: host.addresses.iter().map(|it| Address { link: link.clone(), address: *it }).collect(),
        routes: host.routes.iter().map(route).collect(),
        rules: Vec::new(),
        dns: None,
    }
}

/// Networks that are not the internet (RFC 6890): what is beside the gateway or beside nobody.
pub fn private_networks() -> Vec<IpNet> {
    PRIVATE.iter().filter_map(|net| net.parse().ok()).collect()
}

/// A default route towards a client is no inside network: masquerading it would catch the host's own traffic.
fn inside(host: &GatewayHost) -> Vec<IpNet> {
    let nets = host.addresses.iter().chain(&host.routes).map(IpNet::trunc).filter(|net| net.prefix_len() > 0);
    IpNet::aggregate(&nets.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::firewall::Transport;

    #[test]
    fn a_gateway_forwards_and_masquerades_both_families() {
        let plan = gateway_plan(&GatewayHost {
            link: "adit0".into(),
            addresses: vec!["10.9.0.1/24".parse().unwrap(), "fd00:9::1/64".parse().unwrap()],
            mtu_bytes: 1420,
            routes: vec!["192.168.50.0/24".parse().unwrap()],
            listeners: vec![Listener { transport: Transport::Udp, port: 51820 }],
            services: vec!["10.9.0.1:9585".parse().unwrap()],
            invited: vec!["10.9.0.254".parse().unwrap()],
            masquerade: true,
            client_to_client: false,
            denied: vec!["169.254.0.0/16".parse().unwrap()],
            neighbours: vec![],
            reach: Reach::default(),
            passages: vec![],
            links_accepting_ra: vec!["eth0".into(), "adit0".into()],
        });
        assert_eq!(
            plan.to_string(),
            "\
nft      table inet adit_adit0: masquerade 10.9.0.0/24 192.168.50.0/24 fd00:9::/64 to ports 32768-51819, \
new connections only from adit0, clients may not reach each other, only adit0 reaches 10.9.0.1:9585, \
10.9.0.254 nothing else, nothing private
sysctl   net.ipv4.ip_forward = 1
sysctl   net/ipv6/conf/eth0/accept_ra = 2
sysctl   net.ipv6.conf.all.forwarding = 1
link     adit0 mtu 1420 up
address  10.9.0.1/24 dev adit0
address  fd00:9::1/64 dev adit0
route    192.168.50.0/24 dev adit0
"
        );
    }

    #[test]
    fn a_gateway_without_ipv6_leaves_ipv6_alone() {
        let plan = gateway_plan(&GatewayHost {
            link: "adit0".into(),
            addresses: vec!["10.9.0.1/24".parse().unwrap()],
            mtu_bytes: 1420,
            routes: vec![],
            listeners: vec![],
            services: vec![],
            invited: vec![],
            masquerade: false,
            client_to_client: true,
            denied: vec![],
            neighbours: vec![],
            reach: Reach::default(),
            passages: vec![],
            links_accepting_ra: vec!["eth0".into()],
        });
        let keys: Vec<&str> = plan.sysctls.iter().map(|it| it.key.as_str()).collect();
        assert_eq!(keys, ["net.ipv4.ip_forward"]);
    }
}
