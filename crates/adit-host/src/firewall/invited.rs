//! Who is invited and has not joined yet: an inside address that reaches the services of the gateway and nothing else.

use std::net::IpAddr;

use nftables::expr::MetaKey;
use nftables::stmt::Statement;

use super::GatewayFirewall;
use super::table::{Builder, Expr, Stmt, is, is_not, meta, meta_is, number, payload, set, string};

const CHAIN: &str = "raw_prerouting";

impl GatewayFirewall {
    /// Before routing, so that nothing of theirs is tracked, forwarded, or taken in by another program of this host.
    pub(super) fn confine_the_invited(&self, table: &mut Builder) {
        for ipv4 in [true, false] {
            let protocol = if ipv4 { "ip" } else { "ip6" };
            let invited: Vec<Expr> =
                self.invited.iter().filter(|it| it.is_ipv4() == ipv4).map(text).collect();
            if invited.is_empty() {
                continue;
            }
            let from_them = || {
                [meta_is(MetaKey::Iifname, &self.link), is(payload(protocol, "saddr"), set(invited.clone()))]
            };
            let mut close = |what: Stmt| {
                let [from, them] = from_them();
                table.rule(CHAIN, [from, them, what, Statement::Drop(None)]);
            };
            let services = || self.services.iter().filter(|it| it.is_ipv4() == ipv4);
            let places: Vec<Expr> = services().map(|it| text(&it.ip())).collect();
            let ports: Vec<Expr> = services().map(|it| number(it.port().into())).collect();
            close(is_not(meta(MetaKey::L4proto), string("tcp")));
            if places.is_empty() {
                close(is(meta(MetaKey::L4proto), string("tcp")));
            } else {
                close(is_not(payload(protocol, "daddr"), set(places)));
                close(is_not(payload("tcp", "dport"), set(ports)));
            }
        }
    }

    /// Nobody behind the tunnel speaks with them either.
    pub(super) fn keep_others_from_the_invited(&self, table: &mut Builder) {
        for ipv4 in [true, false] {
            let protocol = if ipv4 { "ip" } else { "ip6" };
            let invited: Vec<Expr> =
                self.invited.iter().filter(|it| it.is_ipv4() == ipv4).map(text).collect();
            if !invited.is_empty() {
                let to_them = is(payload(protocol, "daddr"), set(invited));
                let into_tunnel = meta_is(MetaKey::Oifname, &self.link);
                table.rule("forward", [into_tunnel, to_them, Statement::Drop(None)]);
            }
        }
    }
}

fn text(address: &IpAddr) -> Expr {
    string(&address.to_string())
}
