use std::fmt;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use nftables::expr::{FibFlag, MetaKey};
use nftables::stmt::Statement;
use nftables::types::{NfChainType, NfHook};
use serde::{Deserialize, Serialize};

use super::clamp::clamp;
use super::reach::{Exposed, Reach};
use super::table::{
    Builder, DSTNAT, FILTER, RAW, SRCNAT, Stmt, any_of, fib, in_network, is, is_not, is_reply, is_translated,
    masquerade, meta, meta_is, meta_is_not, nets_of, number, payload, set, source_is_behind,
    source_is_elsewhere, source_is_ours, string,
};
use super::{Listener, Transport};
use crate::plan::Family;

/// Masquerades the inside networks, and lets through only what belongs to the tunnel.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct GatewayFirewall {
    pub link: String,
    /// Our own inside addresses, with the inside networks.
    pub addresses: Vec<IpNet>,
    /// The networks behind the tunnel.
    pub inside: Vec<IpNet>,
    pub mtu_bytes: u32,
    /// Our own ports, which no masqueraded connection may ever get.
    pub listeners: Vec<Listener>,
    /// Our own addresses and ports inside, TCP and UDP, which only the tunnel may reach.
    #[serde(default)]
    pub services: Vec<SocketAddr>,
    /// Inside addresses that may speak with the services over TCP, and with nothing else.
    #[serde(default)]
    pub invited: Vec<IpAddr>,
    pub masquerade: bool,
    pub client_to_client: bool,
    /// Destinations that clients may not reach through the gateway unless [`Reach::lan`] holds them.
    pub denied: Vec<IpNet>,
    /// The networks that this host is in itself, besides its addresses: denied in the same way.
    #[serde(default)]
    pub neighbours: Vec<IpNet>,
    #[serde(default)]
    pub reach: Reach,
}

/// What is behind and beside a gateway rather than the internet (RFC 6890): reached only when it is named.
pub(crate) const PRIVATE: [&str; 12] = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "::/127",
    "::ffff:0:0/96",
    "fc00::/7",
    "fe80::/10",
    "fec0::/10",
];

impl GatewayFirewall {
    pub(super) fn build(&self, table: &mut Builder) {
        self.guard_listeners(table);
        self.confine_the_invited(table);
        self.guard_sources(table);
        self.guard_private(table);
        self.translate_exposed(table);
        clamp(table, &self.link, self.mtu_bytes);
        self.forward(table);
        self.input(table);
        self.translate_sources(table);
    }

    fn comes_from_tunnel(&self) -> Stmt {
        meta_is(MetaKey::Iifname, &self.link)
    }

    fn goes_into_tunnel(&self) -> Stmt {
        meta_is(MetaKey::Oifname, &self.link)
    }

    fn guard_listeners(&self, table: &mut Builder) {
        let ports = |transport| {
            let of = self.listeners.iter().filter(move |it| it.transport == transport);
            of.map(|it| number(it.port.into())).collect::<Vec<_>>()
        };
        table.chain("raw_prerouting", NfChainType::Filter, NfHook::Prerouting, RAW);
        table.chain("raw_output", NfChainType::Filter, NfHook::Output, RAW);
        for transport in [Transport::Udp, Transport::Tcp] {
            let (protocol, ports) = (transport.name(), ports(transport));
            if ports.is_empty() {
                continue;
            }
            let to_us = is(fib(FibFlag::Daddr), string("local"));
            let to_port = is(payload(protocol, "dport"), set(ports.clone()));
            // A tunnel inside itself is a loop, or a client probing for the port shadow (CVE-2021-3773).
            let inside = [self.comes_from_tunnel(), to_us.clone(), to_port.clone(), Statement::Drop(None)];
            table.rule("raw_prerouting", inside);
            if transport == Transport::Udp {
                let outside = meta_is_not(MetaKey::Iifname, &self.link);
                table.rule("raw_prerouting", [outside, to_us, to_port, Statement::Notrack]);
                let from_port = is(payload(protocol, "sport"), set(ports));
                let outside = meta_is_not(MetaKey::Oifname, &self.link);
                table.rule("raw_output", [outside, source_is_ours(), from_port, Statement::Notrack]);
            }
        }
        for service in &self.services {
            // A neighbour may send to an inside address as well, and so may a program of this host.
            for protocol in ["tcp", "udp"] {
                let elsewhere = meta_is_not(MetaKey::Iifname, &self.link);
                let to_service = in_network("daddr", IpNet::from(service.ip()));
                let to_port = is(payload(protocol, "dport"), number(service.port().into()));
                table.rule("raw_prerouting", [elsewhere, to_service, to_port, Statement::Drop(None)]);
            }
        }
    }

    /// Cryptokey routing binds a client to its own addresses; this holds for those that may send from everywhere too.
    fn guard_sources(&self, table: &mut Builder) {
        let drop = || Statement::Drop(None);
        table.rule("raw_prerouting", [self.comes_from_tunnel(), source_is_elsewhere(), drop()]);
        // Nobody beside the gateway may probe for its inside addresses (CVE-2019-14899).
        for family in Family::BOTH {
            if let Some(inside) = any_of("saddr", &nets_of(&self.inside, family)) {
                let spoofed = source_is_behind(&self.link);
                table.rule("raw_prerouting", [self.elsewhere(), inside, spoofed, drop()]);
            }
            let own: Vec<IpNet> = self.addresses.iter().map(|it| IpNet::from(it.addr())).collect();
            let Some(to_us) = any_of("daddr", &nets_of(&own, family)) else { continue };
            if let Some(from_lan) = any_of("saddr", &nets_of(&self.reach.lan, family)) {
                table.rule(
                    "raw_prerouting",
                    [self.elsewhere(), from_lan, to_us.clone(), Statement::Accept(None)],
                );
            }
            table.rule("raw_prerouting", [self.elsewhere(), to_us, drop()]);
        }
    }

    fn elsewhere(&self) -> Stmt {
        is_not(meta(MetaKey::Iifname), set(vec![string("lo"), string(&self.link)]))
    }

    fn guard_private(&self, table: &mut Builder) {
        let open: Vec<IpNet> = self.inside.iter().chain(&self.reach.lan).copied().collect();
        for family in Family::BOTH {
            let [denied, beside] =
                [&self.denied, &self.neighbours].map(|nets| any_of("daddr", &nets_of(nets, family)));
            if denied.is_none() && beside.is_none() {
                continue;
            }
            if let Some(open) = any_of("daddr", &nets_of(&open, family)) {
                table.rule("raw_prerouting", [self.comes_from_tunnel(), open, Statement::Accept(None)]);
            }
            if let Some(denied) = denied {
                table.rule("raw_prerouting", [self.comes_from_tunnel(), denied, Statement::Drop(None)]);
            }
            if let Some(beside) = beside {
                // Where the internet finds this host, its clients do.
                let not_us = is_not(fib(FibFlag::Daddr), string("local"));
                table.rule(
                    "raw_prerouting",
                    [self.comes_from_tunnel(), beside, not_us, Statement::Drop(None)],
                );
            }
        }
    }

    fn translate_exposed(&self, table: &mut Builder) {
        if self.reach.exposed.is_empty() {
            return;
        }
        table.chain("prerouting", NfChainType::NAT, NfHook::Prerouting, DSTNAT);
        for exposed in &self.reach.exposed {
            for (_, translation) in exposed.translations() {
                let not_within = meta_is_not(MetaKey::Iifname, "lo");
                let to_us = is(fib(FibFlag::Daddr), string("local"));
                table.rule("prerouting", [not_within, to_us, exposed.port_is(), translation]);
            }
        }
    }

    fn forward(&self, table: &mut Builder) {
        let accept = || Statement::Accept(None);
        let drop = || Statement::Drop(None);
        table.chain("forward", NfChainType::Filter, NfHook::Forward, FILTER);
        self.keep_others_from_the_invited(table);
        for nets in &self.reach.hairpins {
            for family in Family::BOTH {
                let nets = nets_of(nets, family);
                if let (Some(from), Some(to)) = (any_of("saddr", &nets), any_of("daddr", &nets)) {
                    table.rule(
                        "forward",
                        [self.comes_from_tunnel(), self.goes_into_tunnel(), from, to, drop()],
                    );
                }
            }
        }
        for exposed in &self.reach.exposed {
            for conditions in self.reaches_exposed(exposed) {
                table.rule("forward", [conditions, vec![accept()]].concat());
            }
        }
        if !self.client_to_client {
            table.rule("forward", [self.comes_from_tunnel(), self.goes_into_tunnel(), drop()]);
        }
        table.rule("forward", [self.comes_from_tunnel(), is_reply(), accept()]);
        table.rule("forward", [self.goes_into_tunnel(), is_reply(), accept()]);
        for (lan, sites) in self.lan_and_sites() {
            let [from_lan, to_site] = [any_of("saddr", &lan), any_of("daddr", &sites)];
            if let (Some(from), Some(to)) = (from_lan, to_site) {
                table.rule("forward", [self.elsewhere(), self.goes_into_tunnel(), from, to, accept()]);
            }
        }
        match &self.reach.allowed {
            None => table.rule("forward", [self.comes_from_tunnel(), accept()]),
            Some(allowed) => {
                for conditions in allowed.iter().flat_map(|it| it.matches()) {
                    table.rule(
                        "forward",
                        [vec![self.comes_from_tunnel()], conditions, vec![accept()]].concat(),
                    );
                }
                table.rule("forward", [self.comes_from_tunnel(), drop()]);
            }
        }
        table.rule("forward", [self.goes_into_tunnel(), drop()]);
    }

    /// Where only some connections are allowed, those to the gateway itself are no exception, but for what serves all.
    fn input(&self, table: &mut Builder) {
        let Some(allowed) = &self.reach.allowed else { return };
        let accept = || Statement::Accept(None);
        table.chain("input", NfChainType::Filter, NfHook::Input, FILTER);
        table.rule("input", [self.comes_from_tunnel(), is_reply(), accept()]);
        let icmp = set(vec![string("icmp"), string("ipv6-icmp")]);
        table.rule("input", [self.comes_from_tunnel(), is(meta(MetaKey::L4proto), icmp), accept()]);
        for service in &self.services {
            for protocol in ["tcp", "udp"] {
                let to_service = in_network("daddr", IpNet::from(service.ip()));
                let to_port = is(payload(protocol, "dport"), number(service.port().into()));
                table.rule("input", [self.comes_from_tunnel(), to_service, to_port, accept()]);
            }
        }
        for conditions in allowed.iter().flat_map(|it| it.matches()) {
            table.rule("input", [vec![self.comes_from_tunnel()], conditions, vec![accept()]].concat());
        }
        table.rule("input", [self.comes_from_tunnel(), Statement::Drop(None)]);
    }

    fn translate_sources(&self, table: &mut Builder) {
        if !self.masquerade && self.reach.exposed.is_empty() {
            return;
        }
        table.chain("postrouting", NfChainType::NAT, NfHook::Postrouting, SRCNAT);
        // A client that sends only some networks into the tunnel would answer a stranger past it.
        for exposed in &self.reach.exposed {
            for conditions in self.reaches_exposed(exposed) {
                table.rule("postrouting", [conditions, vec![masquerade(None)]].concat());
            }
        }
        if !self.masquerade {
            return;
        }
        for (lan, sites) in self.lan_and_sites() {
            if let (Some(from), Some(to)) = (any_of("saddr", &sites), any_of("daddr", &lan)) {
                table.rule("postrouting", [from, to, Statement::Accept(None)]);
            }
        }
        let (low, high) = self.masquerade_ports();
        for net in &self.inside {
            let leaving = || {
                let here = vec![string("lo"), string(&self.link)];
                [is_not(meta(MetaKey::Oifname), set(here)), in_network("saddr", *net)]
            };
            let [out, from] = leaving();
            let with_ports = is(meta(MetaKey::L4proto), set(vec![string("tcp"), string("udp")]));
            table.rule("postrouting", [out, from, with_ports, masquerade(Some((low, high)))]);
            let [out, from] = leaving();
            table.rule("postrouting", [out, from, masquerade(None)]);
        }
    }

    fn reaches_exposed(&self, exposed: &Exposed) -> Vec<Vec<Stmt>> {
        let conditions = |to| {
            let to_client = in_network("daddr", IpNet::from(to));
            vec![self.goes_into_tunnel(), is_translated(), to_client, exposed.to_port_is()]
        };
        exposed.to.iter().copied().map(conditions).collect()
    }

    fn lan_and_sites(&self) -> [(Vec<IpNet>, Vec<IpNet>); 2] {
        Family::BOTH.map(|family| (nets_of(&self.reach.lan, family), nets_of(&self.reach.sites, family)))
    }

    /// The widest run of the ephemeral ports without one of our own: a masqueraded connection that got a listening
    /// port would steal other clients' packets (CVE-2021-3773).
    pub(super) fn masquerade_ports(&self) -> (u16, u16) {
        const FIRST: u16 = 32768;
        const LAST: u16 = 60999;
        let exposed = self.reach.exposed.iter().map(|it| it.port);
        let mut taken: Vec<u16> = self.listeners.iter().map(|it| it.port).chain(exposed).collect();
        taken.retain(|port| (FIRST..=LAST).contains(port));
        taken.sort_unstable();
        let starts = std::iter::once(FIRST).chain(taken.iter().map(|port| port + 1));
        let ends = taken.iter().map(|port| port - 1).chain(std::iter::once(LAST));
        let runs = starts.zip(ends).filter(|(start, end)| start <= end);
        runs.max_by_key(|(start, end)| end - start).unwrap_or((FIRST, LAST))
    }
}

impl fmt::Display for GatewayFirewall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.masquerade {
            let (low, high) = self.masquerade_ports();
            write!(f, "masquerade {} to ports {low}-{high}, ", list(&self.inside))?;
        }
        let between = if self.client_to_client { "may" } else { "may not" };
        write!(f, "new connections only from {}, clients {between} reach each other", self.link)?;
        if !self.services.is_empty() {
            write!(f, ", only {} reaches {}", self.link, list(&self.services))?;
        }
        if !self.invited.is_empty() {
            write!(f, ", {} nothing else", list(&self.invited))?;
        }
        if !self.denied.is_empty() {
            write!(f, ", nothing private")?;
            if !self.reach.lan.is_empty() {
                write!(f, " but {}", list(&self.reach.lan))?;
            }
        }
        if let Some(allowed) = &self.reach.allowed {
            write!(f, ", clients start only what {} rules allow", allowed.len())?;
        }
        for exposed in &self.reach.exposed {
            let Exposed { port, transport, to, to_port } = exposed;
            write!(f, ", {} port {port} leads to {} port {to_port}", transport.name(), list(to))?;
        }
        Ok(())
    }
}

fn list<T: ToString>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}
