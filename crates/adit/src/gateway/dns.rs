//! The resolver that a gateway offers at its inside addresses.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::config::{Config, GatewayDns};
use crate::forwarder::{Forwarder, Found, Policy, Upstream, local_stub, servers_of_host};

/// The port of DNS.
pub const PORT: u16 = 53;

/// Where it answers; nowhere when it is off.
pub fn addresses(config: &Config) -> Vec<SocketAddr> {
    if config.gateway.dns == GatewayDns::Off {
        return Vec::new();
    }
    let ipv6 = adit_host::ipv6_enabled();
    let own = config.gateway.addresses();
    own.iter().map(|net| net.addr()).filter(|it| ipv6 || it.is_ipv4()).map(|it| (it, PORT).into()).collect()
}

/// Starts it. A gateway without is still a gateway, so what stands in the way is only told.
pub fn start(config: &Config) -> Option<Forwarder> {
    let addresses = addresses(config);
    if addresses.is_empty() {
        return None;
    }
    let policy = Servers { named: named(&config.gateway.dns), fwmark: config.gateway.fwmark };
    match Forwarder::start(&addresses, Arc::new(policy)) {
        Ok(forwarder) => Some(forwarder),
        Err(error) => {
            let places: Vec<String> = addresses.iter().map(ToString::to_string).collect();
            tracing::warn!(
                "the gateway answers no DNS questions: it cannot listen at {}: {error}. If another resolver listens on \
                 every address of this host, let it answer the clients there, or keep it to its own addresses; \
                 `dns = \"off\"` ends this warning",
                places.join(" and ")
            );
            None
        }
    }
}

fn named(dns: &GatewayDns) -> Vec<IpAddr> {
    match dns {
        GatewayDns::Servers(servers) => servers.clone(),
        GatewayDns::Off | GatewayDns::Gateway => Vec::new(),
    }
}

struct Servers {
    named: Vec<IpAddr>,
    fwmark: u32,
}

impl Policy for Servers {
    /// The host's servers are looked up each time: its networks may give it others.
    fn upstream(&self, _: &str) -> Upstream {
        let servers = match self.named.as_slice() {
            [] => match servers_of_host() {
                none if none.is_empty() => local_stub(),
                servers => servers,
            },
            named => named.iter().map(|it| SocketAddr::new(*it, PORT)).collect(),
        };
        Upstream { servers, fwmark: self.fwmark }
    }

    fn learn(&self, _: &str, _: &[Found]) {}
}
