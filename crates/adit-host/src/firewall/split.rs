//! A split tunnel: what goes beside the tunnel although it would go through it, and the other way round.
//!
//! A packet that a program sends has its route, and so its source address, before it is marked here; it is routed anew
//! then, and leaves with the address of the way it takes. Connections keep their way by the mark of the connection,
//! also when a name's address is forgotten meanwhile.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use nftables::expr::{FibFlag, MetaKey};
use nftables::stmt::Statement;
use nftables::types::{NfChainType, NfHook};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::table::{
    Builder, MANGLE, SRCNAT, Stmt, any_of, assign, ct, fib, is, is_not, masquerade, meta, meta_is, nets_of,
    number, payload, set, string,
};
use super::{nft_missing, program};
use crate::error::HostError;
use crate::plan::Family;

/// Which traffic takes the other way.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SplitFirewall {
    /// The tunnel.
    pub link: String,
    /// Our own inside addresses.
    pub addresses: Vec<IpAddr>,
    /// The mark that makes a packet go beside the tunnel: the one of our own sockets.
    pub outside_mark: u32,
    /// The mark that makes a packet go through the tunnel, where it would not by itself.
    pub inside_mark: Option<u32>,
    /// Networks that are reached beside the tunnel.
    pub excluded: Vec<IpNet>,
    /// Whether names are never asked beside the tunnel but by our own resolver, as there is a kill switch.
    #[serde(default)]
    pub keeps_dns: bool,
}

/// What an address of a name is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// It is reached beside the tunnel.
    Outside,
    /// It is reached through the tunnel.
    Inside,
}

impl SplitFirewall {
    pub(super) fn build(&self, table: &mut Builder) {
        for side in [Side::Outside, Side::Inside] {
            table.address_set(set_name(side, Family::Ipv4), Family::Ipv4);
            table.address_set(set_name(side, Family::Ipv6), Family::Ipv6);
        }
        table.chain("output", NfChainType::Route, NfHook::Output, MANGLE);
        self.mark("output", table, &[]);
        // What other hosts, or containers, send through this one.
        table.chain("prerouting", NfChainType::Filter, NfHook::Prerouting, MANGLE);
        let elsewhere = is_not(meta(MetaKey::Iifname), set(vec![string("lo"), string(&self.link)]));
        let passes = is_not(fib(FibFlag::Daddr), string("local"));
        table.rule("prerouting", [self.is_answer(), self.follow(self.outside_mark)]);
        self.mark("prerouting", table, &[elsewhere, passes]);

        table.chain("keep", NfChainType::Filter, NfHook::Postrouting, MANGLE);
        for mark in self.marks() {
            let marked = is(meta(MetaKey::Mark), number(mark));
            table.rule("keep", [marked, assign(ct("mark"), number(mark))]);
        }
        table.chain("postrouting", NfChainType::NAT, NfHook::Postrouting, SRCNAT);
        let own: Vec<IpNet> = self.addresses.iter().map(|it| IpNet::from(*it)).collect();
        for family in Family::BOTH {
            let Some(from_us) = any_of("saddr", &nets_of(&own, family)) else { continue };
            let beside = is_not(meta(MetaKey::Oifname), set(vec![string("lo"), string(&self.link)]));
            let marked = is(meta(MetaKey::Mark), number(self.outside_mark));
            table.rule("postrouting", [beside, marked, from_us, masquerade(None)]);
        }
        if let Some(mark) = self.inside_mark {
            let through = meta_is(MetaKey::Oifname, &self.link);
            table.rule("postrouting", [through, is(meta(MetaKey::Mark), number(mark)), masquerade(None)]);
        }
    }

    fn marks(&self) -> impl Iterator<Item = u32> {
        std::iter::once(self.outside_mark).chain(self.inside_mark)
    }

    /// An answer that comes in beside the tunnel counts as ours for the check of its source.
    fn is_answer(&self) -> Stmt {
        is(ct("mark"), number(self.outside_mark))
    }

    fn follow(&self, mark: u32) -> Stmt {
        assign(meta(MetaKey::Mark), number(mark))
    }

    fn mark(&self, chain: &'static str, table: &mut Builder, conditions: &[Stmt]) {
        let unmarked = || is(meta(MetaKey::Mark), number(0));
        if self.keeps_dns {
            for protocol in ["udp", "tcp"] {
                let dns = is(payload(protocol, "dport"), set(vec![number(53), number(853)]));
                table.rule(chain, [conditions.to_vec(), vec![dns, Statement::Return(None)]].concat());
            }
        }
        let mut rule = |condition: Vec<Stmt>, mark: u32| {
            table.rule(chain, [conditions.to_vec(), condition, vec![self.follow(mark)]].concat());
        };
        if let Some(mark) = self.inside_mark {
            for (family, protocol) in [(Family::Ipv4, "ip"), (Family::Ipv6, "ip6")] {
                let named =
                    is(payload(protocol, "daddr"), string(&format!("@{}", set_name(Side::Inside, family))));
                rule(vec![unmarked(), named], mark);
            }
            rule(vec![unmarked(), is(ct("mark"), number(mark))], mark);
        }
        for (family, protocol) in [(Family::Ipv4, "ip"), (Family::Ipv6, "ip6")] {
            if let Some(excluded) = any_of("daddr", &nets_of(&self.excluded, family)) {
                rule(vec![excluded], self.outside_mark);
            }
            let named =
                is(payload(protocol, "daddr"), string(&format!("@{}", set_name(Side::Outside, family))));
            rule(vec![named], self.outside_mark);
        }
        if chain == "output" {
            rule(vec![self.is_answer()], self.outside_mark);
        }
    }
}

impl fmt::Display for SplitFirewall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list: Vec<String> = self.excluded.iter().map(ToString::to_string).collect();
        write!(f, "names")?;
        if !list.is_empty() {
            write!(f, " and {}", list.join(" "))?;
        }
        write!(f, " beside {} with mark {:#x}", self.link, self.outside_mark)?;
        if let Some(mark) = self.inside_mark {
            write!(f, ", names through it with mark {mark:#x}")?;
        }
        Ok(())
    }
}

const fn set_name(side: Side, family: Family) -> &'static str {
    match (side, family) {
        (Side::Outside, Family::Ipv4) => "outside4",
        (Side::Outside, Family::Ipv6) => "outside6",
        (Side::Inside, Family::Ipv4) => "inside4",
        (Side::Inside, Family::Ipv6) => "inside6",
    }
}

/// Lets packets to these addresses of a name take the other way for as long as its answer is good; known ones longer.
pub fn part_by_name(table: &str, side: Side, addresses: &[(IpAddr, Duration)]) -> Result<(), HostError> {
    let doing = "note the addresses of a name";
    let Some(nft) = program::find("nft") else { return Err(nft_missing(doing)) };
    let mut commands = Vec::new();
    for (address, good_for) in addresses {
        let name = set_name(side, Family::of(*address));
        let element = |with_time: bool| {
            let value = match with_time {
                true => json!({"elem": {"val": address.to_string(), "timeout": good_for.as_secs().max(1)}}),
                false => json!(address.to_string()),
            };
            json!({"element": {"family": "inet", "table": table, "name": name, "elem": [value]}})
        };
        // Adding what is there would not move its end; deleting what is not there would fail.
        commands.push(json!({"add": element(false)}));
        commands.push(json!({"delete": element(false)}));
        commands.push(json!({"add": element(true)}));
    }
    program::run(&nft, &["-j", "-f", "-"], &json!({"nftables": commands}).to_string(), doing)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::firewall::Firewall;

    #[test]
    fn a_packet_is_marked_by_address_name_and_connection() {
        let firewall = Firewall::Split(SplitFirewall {
            link: "adit0".into(),
            addresses: vec!["10.9.0.2".parse().unwrap()],
            outside_mark: 0xca6c,
            inside_mark: None,
            excluded: vec!["192.0.2.0/24".parse().unwrap()],
            keeps_dns: false,
        });
        assert_eq!(firewall.table(), "adit_split_adit0");
        let text = firewall.ruleset().to_string();
        for part in ["@outside4", "192.0.2.0", "masquerade"] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}
