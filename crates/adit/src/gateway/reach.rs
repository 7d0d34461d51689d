//! The rules of a configuration in the words of the host: names become addresses.

use adit_host::{Allowed, Exposed, Ports, Reach, Transport};
use ipnet::IpNet;

use crate::config::reach::{self, AllowRule, Exposure, Place};
use crate::config::{Config, Peer, PeerName};

/// What clients reach. A rule about a peer that is gone or disabled allows nothing.
pub fn of(config: &Config) -> Reach {
    let wanted = &config.gateway.reach;
    let enabled = || config.peers.iter().filter(|peer| peer.enabled);
    let hairpin = |peer: &Peer| narrow(peer.allowed_ips());
    let with_networks = enabled().filter(|peer| peer.networks().any(|net| net.prefix_len() > 0));
    Reach {
        lan: wanted.lan.clone(),
        sites: narrow(enabled().flat_map(Peer::networks)),
        allowed: wanted.allow.as_ref().map(|rules| rules.iter().map(|rule| allowed(config, rule)).collect()),
        exposed: wanted.expose.iter().map(|it| exposed(config, it)).filter(|it| !it.to.is_empty()).collect(),
        hairpins: with_networks.map(hairpin).collect(),
    }
}

/// The peers that rules name and that are none (any more).
pub fn unknown_peers(config: &Config) -> Vec<&PeerName> {
    let wanted = &config.gateway.reach;
    let sides = wanted.allow.iter().flatten().flat_map(|rule| [&rule.from, &rule.to]);
    let in_rules = sides.filter_map(|place| match place {
        Place::Peer(name) => Some(name),
        _ => None,
    });
    let mut names: Vec<&PeerName> = in_rules.chain(wanted.expose.iter().map(|it| &it.to)).collect();
    names.retain(|name| !config.peers.iter().any(|peer| is_called(peer, name)));
    names.sort_unstable();
    names.dedup();
    names
}

/// By its name, or by one of its tags.
fn is_called(peer: &Peer, name: &PeerName) -> bool {
    peer.name == *name || peer.tags.iter().any(|tag| tag == name.as_str())
}

/// A default route towards a peer means no network of its own.
fn narrow(networks: impl Iterator<Item = IpNet>) -> Vec<IpNet> {
    networks.filter(|net| net.prefix_len() > 0).collect()
}

fn allowed(config: &Config, rule: &AllowRule) -> Allowed {
    Allowed {
        from: networks(config, &rule.from),
        to: networks(config, &rule.to),
        ports: rule
            .ports
            .as_ref()
            .map(|it| Ports { range: it.range.clone(), transport: it.transport.map(transport) }),
    }
}

fn networks(config: &Config, place: &Place) -> Option<Vec<IpNet>> {
    match place {
        Place::Any => None,
        Place::Gateway => {
            Some(config.gateway.addresses().iter().map(|net| IpNet::from(net.addr())).collect())
        }
        Place::Peer(name) => {
            let named = config.peers.iter().filter(|peer| peer.enabled && is_called(peer, name));
            Some(narrow(named.flat_map(Peer::allowed_ips)))
        }
        Place::Network(net) => Some(vec![*net]),
    }
}

fn exposed(config: &Config, exposure: &Exposure) -> Exposed {
    let peer = config.peers.iter().find(|peer| peer.enabled && peer.name == exposure.to);
    let addresses = || peer.iter().flat_map(|peer| &peer.addresses).copied();
    let first = |of_family: fn(&std::net::IpAddr) -> bool| addresses().find(of_family);
    Exposed {
        port: exposure.port,
        transport: transport(exposure.transport),
        to: first(std::net::IpAddr::is_ipv4).into_iter().chain(first(std::net::IpAddr::is_ipv6)).collect(),
        to_port: exposure.to_port,
    }
}

fn transport(transport: reach::Transport) -> Transport {
    match transport {
        reach::Transport::Tcp => Transport::Tcp,
        reach::Transport::Udp => Transport::Udp,
    }
}
