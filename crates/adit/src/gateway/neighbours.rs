//! The networks that a gateway is in itself, public ones too, as a home has them over IPv6: its clients reach what is
//! there only where `lan` names it.

use ipnet::IpNet;

use super::Gateway;
use crate::config::Config;

/// Those of now.
pub(super) fn around(config: &Config) -> Vec<IpNet> {
    adit_host::neighbour_networks(config.gateway.interface.as_str()).unwrap_or_else(|error| {
        tracing::warn!("clients may reach this host's own networks: {error}");
        Vec::new()
    })
}

impl Gateway {
    /// A provider gives other prefixes, a cable is plugged in.
    pub(super) fn follow_neighbours(&mut self) {
        let now = around(&self.config);
        if now == self.neighbours {
            return;
        }
        match self.plan_anew() {
            Ok(()) => self.neighbours = now,
            Err(error) => tracing::error!("clients are not kept from this host's new networks: {error:#}"),
        }
    }
}
