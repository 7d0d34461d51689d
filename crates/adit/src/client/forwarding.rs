//! What a client does for others whose packets it passes on: their TCP keeps to what fits into the tunnel.

use adit_host::{ClampFirewall, Firewall, Plan};

use super::Client;

/// Adds it to the plan of a tunnel on a host that forwards.
pub(super) fn add_to(plan: &mut Plan, link: &str) {
    if !adit_host::forwards() || !adit_host::nft_is_installed() {
        return;
    }
    let mtu_bytes = plan.links.iter().find(|it| it.name == link).and_then(|it| it.mtu_bytes);
    if let Some(mtu_bytes) = mtu_bytes.filter(|_| !is_in(plan)) {
        plan.firewalls.push(Firewall::Clamp(ClampFirewall { link: link.to_owned(), mtu_bytes }));
    }
}

fn is_in(plan: &Plan) -> bool {
    plan.firewalls.iter().any(|it| matches!(it, Firewall::Clamp(_)))
}

impl Client {
    /// The host may have begun to forward, as one does where Docker is started.
    pub(super) fn tend_forwarding(&mut self) {
        if is_in(&self.plan) {
            return;
        }
        let mut plan = self.plan.clone();
        add_to(&mut plan, &self.instance.interface);
        if !is_in(&plan) {
            return;
        }
        match self.guard.change_to(&plan) {
            Ok(_) => self.plan = plan,
            Err(error) => tracing::warn!("connections that this host passes on may stall: {error}"),
        }
    }
}
