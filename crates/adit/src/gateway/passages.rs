//! What of other programs' firewalls would drop what a gateway passes on.

use adit_host::Passage;

use super::Gateway;
use crate::config::Config;

impl Gateway {
    /// Another firewall may have come, or have other chains than before.
    pub(super) fn follow_firewalls(&mut self) {
        if !self.config.gateway.pass_firewalls {
            return;
        }
        let now = passages(&self.config);
        if now.iter().all(|it| self.passages.contains(it)) {
            return;
        }
        match self.plan_anew() {
            Ok(()) => {
                tracing::info!(
                    "another firewall drops what is forwarded since now: clients are let through it"
                );
                self.passages = now;
            }
            Err(error) => tracing::error!("clients are not let through a firewall that has come: {error:#}"),
        }
    }
}

/// The chains of others that are let pass.
pub fn passages(config: &Config) -> Vec<Passage> {
    if config.gateway.pass_firewalls { foreign_drops(config) } else { Vec::new() }
}

fn foreign_drops(config: &Config) -> Vec<Passage> {
    let has_ipv6 = config.gateway.network6.is_some();
    let mut drops = adit_host::foreign_forward_drops(config.gateway.interface.as_str());
    drops.retain(|it| it.family != "ip6" || has_ipv6);
    drops
}

/// In nftables the drop of another table is final, so only there can it be opened.
pub fn warn_of_foreign_drops(config: &Config) {
    let link = &config.gateway.interface;
    for passage in foreign_drops(config) {
        let Passage { family, table, chain, .. } = &passage;
        let chain = format!("{family} {table} {chain}");
        if config.gateway.pass_firewalls {
            tracing::info!(
                "the firewall chain {chain} (not ours) drops what is forwarded: two rules at its head let {link} \
                 pass while the gateway runs (`pass_firewalls = false` leaves them out)"
            );
            continue;
        }
        tracing::warn!(
            "the firewall chain {chain} (not ours) drops what is forwarded, so clients may reach nothing beyond this \
             gateway. Let it through: nft insert rule {chain} iifname {link} accept; nft insert rule {chain} \
             oifname {link} ct state established,related accept. With ufw: ufw route allow in on {link}"
        );
    }
}
