use std::fmt;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use nftables::expr::{FibFlag, MetaKey};
use nftables::stmt::Statement;
use nftables::types::{NfChainType, NfHook};
use serde::{Deserialize, Serialize};

use super::table::{
    Builder, FILTER, MANGLE, RAW, SRCNAT, clamp_mss, fib, in_network, is, is_not, is_reply, is_syn,
    masquerade, meta, meta_is, meta_is_not, number, payload, set, string,
};
use super::{Listener, Transport};

/// Masquerades the inside networks, and lets through only what belongs to the tunnel.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct GatewayFirewall {
    pub link: String,
    /// The networks behind the tunnel.
    pub inside: Vec<IpNet>,
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
    /// Destinations that clients may not reach through the gateway.
    pub denied: Vec<IpNet>,
}
impl GatewayFirewall {
    pub(super) fn build(&self, table: &mut Builder) {
        let from_tunnel = || meta_is(MetaKey::Iifname, &self.link);
        let into_tunnel = || meta_is(MetaKey::Oifname, &self.link);
        let ports = |transport| {
            let of = self.listeners.iter().filter(move |it| it.transport == transport);
            of.map(|it| number(it.port.into())).collect::<Vec<_>>()
        };

        table.chain("raw_prerouting", NfChainType::Filter, NfHook::Prerouting, RAW);
        table.chain("raw_output", NfChainType::Filter, NfHook::Output, RAW);
        for (transport, protocol) in [(Transport::Udp, "udp"), (Transport::Tcp, "tcp")] {
            let ports = ports(transport);
            if ports.is_empty() {
                continue;
            }
            let to_us = is(fib(FibFlag::Daddr), string("local"));
            let to_port = is(payload(protocol, "dport"), set(ports.clone()));
            // A tunnel inside itself is a loop, or a client probing for the port shadow (CVE-2021-3773).
            table.rule(
                "raw_prerouting",
                [from_tunnel(), to_us.clone(), to_port.clone(), Statement::Drop(None)],
            );
            if transport == Transport::Udp {
                let outside = meta_is_not(MetaKey::Iifname, &self.link);
                table.rule("raw_prerouting", [outside, to_us, to_port, Statement::Notrack]);
                let from_us = is(fib(FibFlag::Saddr), string("local"));
                let from_port = is(payload(protocol, "sport"), set(ports));
                let outside = meta_is_not(MetaKey::Oifname, &self.link);
                table.rule("raw_output", [outside, from_us, from_port, Statement::Notrack]);
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

        self.confine_the_invited(table);

        table.chain("forward_mangle", NfChainType::Filter, NfHook::Forward, MANGLE);
        for direction in [from_tunnel(), into_tunnel()] {
            table.rule("forward_mangle", [direction, is_syn(), clamp_mss()]);
        }

        table.chain("forward", NfChainType::Filter, NfHook::Forward, FILTER);
        self.keep_others_from_the_invited(table);
        let between_clients =
            if self.client_to_client { Statement::Accept(None) } else { Statement::Drop(None) };
        table.rule("forward", [from_tunnel(), into_tunnel(), between_clients]);
        for net in &self.denied {
            table.rule("forward", [from_tunnel(), in_network("daddr", *net), Statement::Drop(None)]);
        }
        table.rule("forward", [from_tunnel(), Statement::Accept(None)]);
        table.rule("forward", [into_tunnel(), is_reply(), Statement::Accept(None)]);
        table.rule("forward", [into_tunnel(), Statement::Drop(None)]);

        if self.masquerade {
            table.chain("postrouting", NfChainType::NAT, NfHook::Postrouting, SRCNAT);
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
    }

    /// The widest run of the ephemeral ports without one of our own: a masqueraded connection that got a listening
    /// port would steal other clients' packets (CVE-2021-3773).
    pub(super) fn masquerade_ports(&self) -> (u16, u16) {
        const FIRST: u16 = 32768;
        const LAST: u16 = 60999;
        let mut taken: Vec<u16> = self.listeners.iter().map(|it| it.port).collect();
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
            write!(f, ", nor {}", list(&self.denied))?;
        }
        Ok(())
    }
}

fn list<T: ToString>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}
