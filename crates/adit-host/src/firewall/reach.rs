use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnet::IpNet;
use nftables::stmt::Statement;
use serde::{Deserialize, Serialize};

use super::Transport;
use super::table::{Stmt, any_of, in_range, is, meta, nets_of, number, payload, set, string, translate_to};
use crate::plan::Family;

/// What the clients of a gateway reach, beyond the internet and each other.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct Reach {
    /// Private networks beside the gateway that clients may reach; all others are out of reach.
    pub lan: Vec<IpNet>,
    /// Networks behind clients, which hosts of `lan` may reach too. Between the two nobody is masqueraded.
    pub sites: Vec<IpNet>,
    /// The only connections that clients may start; `None` is every one.
    pub allowed: Option<Vec<Allowed>>,
    /// Ports of the gateway that lead to clients.
    pub exposed: Vec<Exposed>,
    /// For each client with networks behind it, all that is routed to it: nothing from there goes back to there.
    pub hairpins: Vec<Vec<IpNet>>,
}

/// Connections that clients may start.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Allowed {
    /// From where; `None` is everywhere.
    pub from: Option<Vec<IpNet>>,
    /// To where; `None` is everywhere.
    pub to: Option<Vec<IpNet>>,
    /// To which ports; `None` is every port and every protocol.
    pub ports: Option<Ports>,
}

/// Ports of TCP, of UDP or of both.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Ports {
    pub range: RangeInclusive<u16>,
    pub transport: Option<Transport>,
}

/// A port of the gateway, on every outside address, that leads to a client.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Exposed {
    pub port: u16,
    pub transport: Transport,
    /// At most one address of each family.
    pub to: Vec<IpAddr>,
    pub to_port: u16,
}

impl Allowed {
    /// The conditions of one rule per family and protocol that has any.
    pub(super) fn matches(&self) -> Vec<Vec<Stmt>> {
        let mut rules = Vec::new();
        for family in Family::BOTH {
            let (Some(from), Some(to)) =
                (side("saddr", self.from.as_deref(), family), side("daddr", self.to.as_deref(), family))
            else {
                continue;
            };
            let unbound = from.is_empty() && to.is_empty();
            if unbound && family == Family::Ipv6 {
                continue;
            }
            rules
                .push(from.into_iter().chain(to).chain(self.ports.iter().flat_map(Ports::matches)).collect());
        }
        rules
    }
}

/// No condition for everywhere, `None` for nowhere.
fn side(field: &'static str, nets: Option<&[IpNet]>, family: Family) -> Option<Vec<Stmt>> {
    let Some(nets) = nets else { return Some(Vec::new()) };
    any_of(field, &nets_of(nets, family)).map(|condition| vec![condition])
}

impl Ports {
    fn matches(&self) -> Vec<Stmt> {
        let range = in_range(*self.range.start(), *self.range.end());
        match self.transport {
            Some(transport) => vec![is(payload(transport.name(), "dport"), range)],
            None => {
                let both = set(vec![string("tcp"), string("udp")]);
                let carried = is(meta(nftables::expr::MetaKey::L4proto), both);
                vec![carried, is(payload("th", "dport"), range)]
            }
        }
    }
}

impl Exposed {
    pub(super) fn to_port_is(&self) -> Stmt {
        is(payload(self.transport.name(), "dport"), number(self.to_port.into()))
    }

    pub(super) fn port_is(&self) -> Stmt {
        is(payload(self.transport.name(), "dport"), number(self.port.into()))
    }

    pub(super) fn translations(&self) -> impl Iterator<Item = (IpAddr, Statement<'static>)> + '_ {
        self.to.iter().map(|to| (*to, translate_to(*to, self.to_port)))
    }
}
