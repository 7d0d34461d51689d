use adit_host::{Firewall, Fwmark, Plan};

/// The plan takes the number of its table for a mark; the user may have chosen another.
pub(super) fn mark_with(plan: &mut Plan, mark: u32) {
    for rule in plan.rules.iter_mut().filter(|rule| rule.fwmark.is_some()) {
        rule.fwmark = Some(Fwmark::from(mark));
    }
    for firewall in &mut plan.firewalls {
        if let Firewall::Client(firewall) = firewall {
            firewall.fwmark = mark;
        }
    }
}
