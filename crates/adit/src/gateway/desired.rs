//! What a configuration asks of the host and of the inside API.

use std::net::SocketAddr;
use std::sync::Arc;

use adit_host::{GatewayHost, Plan};
use ipnet::IpNet;

use super::invited::Invited;
use super::passages::passages;
use super::streams::listeners;
use super::{dns, neighbours, reach};
use crate::config::{Config, Mtu, Peer};
use crate::inside::{self, Facts};

pub(super) fn mtu_of(config: &Config) -> anyhow::Result<u32> {
    match config.gateway.mtu {
        Mtu::Bytes(bytes) => Ok(bytes.into()),
        Mtu::Auto => Ok(adit_host::auto_mtu(&[], config.gateway.fwmark)?.min(INTERNET_MTU_BYTES)),
    }
}

/// Clients are reached over the internet, whatever the link beside the gateway carries.
const INTERNET_MTU_BYTES: u32 = 1420;

pub(super) fn plan(config: &Config, invited: &Invited, port: u16, mtu_bytes: u32) -> Plan {
    let gateway = &config.gateway;
    let behind = config.peers.iter().filter(|peer| peer.enabled).flat_map(|peer| &peer.extra_allowed_ips);
    // A default route towards a peer would take the gateway itself off the internet.
    let routes = behind.filter(|net| net.prefix_len() > 0).copied().collect();
    adit_host::gateway_plan(&GatewayHost {
        link: gateway.interface.to_string(),
        addresses: carried(gateway.addresses()),
        mtu_bytes,
        routes: carried(routes),
        listeners: listeners(config, port),
        services: inside_api(config).into_iter().chain(dns::addresses(config)).collect(),
        invited: invited.addresses(),
        masquerade: gateway.masquerade,
        client_to_client: gateway.client_to_client,
        denied: adit_host::private_networks(),
        neighbours: neighbours::around(config),
        reach: reach::of(config),
        passages: passages(config),
        links_accepting_ra: adit_host::links_accepting_router_advertisements(),
    })
}

pub(super) fn callers_and_doors(config: &Config, invited: &Invited) -> inside::Wanted {
    let enabled = config.peers.iter().filter(|peer| peer.enabled);
    let facts = |peer: &Peer| Facts {
        name: peer.name.to_string(),
        inside: peer.addresses.clone(),
        limits: peer.limits.clone(),
    };
    inside::Wanted {
        interface: config.gateway.interface.to_string(),
        addresses: inside_api(config),
        peers: Arc::new(enabled.map(|peer| (peer.public_key, facts(peer))).collect()),
        invited: Arc::new(invited.keys()),
    }
}

fn inside_api(config: &Config) -> Vec<SocketAddr> {
    let ipv6 = adit_host::ipv6_enabled();
    config.gateway.inside_api().into_iter().filter(|at| ipv6 || at.is_ipv4()).collect()
}

/// Without those of IPv6 where the host has it off and would refuse them.
pub(super) fn carried(networks: Vec<IpNet>) -> Vec<IpNet> {
    let ipv6 = adit_host::ipv6_enabled();
    networks.into_iter().filter(|net| ipv6 || net.addr().is_ipv4()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Layers, Source};

    #[test]
    fn a_peer_that_is_allowed_every_address_gets_no_default_route() {
        let text = "config_version = 1\n[gateway]\nprivate_key = \"eEBhN6cK2cF1bkjZlMVY4XlZ5LkVbPYMa1xgKPYo1Fk=\"\n\
                    network = \"10.9.0.0/24\"\n[[peer]]\nname = \"exit\"\naddresses = [\"10.9.0.2\"]\n\
                    public_key = \"xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=\"\n\
                    suite = \"chacha20-poly1305\"\nallowed_ips = [\"0.0.0.0/0\", \"::/0\", \"192.168.50.0/24\"]\n";
        let source = Source::new("adit.toml", text);
        let config = Config::parse(&source, std::path::Path::new("."), &Layers::default()).unwrap();
        assert_eq!(config.peers[0].allowed_ips().count(), 4, "it may send from everywhere");
        let routes: Vec<_> = plan(&config, &Invited::default(), 51820, 1420)
            .routes
            .iter()
            .map(|route| route.destination.to_string())
            .collect();
        assert_eq!(routes, ["192.168.50.0/24"]);
    }
}
