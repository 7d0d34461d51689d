//! What a profile asks of the host: addresses, routes, rules, names.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;

use adit_host::{Block, ClientHost, Plan, RouteTable};
use anyhow::Context;
use ipnet::IpNet;

use super::Reached;
use super::mark::mark_with;
use super::split::Split;
use crate::config::Mtu;
use crate::config::wgquick::{Table, WgQuick};

/// wg-quick's first choice.
const FIRST_TABLE: u32 = 51820;

/// The plan, and the mark that keeps our own packets out of the tunnel (0 when nothing would capture them).
pub(super) fn plan(
    interface: &str,
    file: &WgQuick,
    reached: &[Reached],
    ipv6: bool,
    block: Option<Block>,
    split: &Split,
) -> anyhow::Result<(Plan, u32)> {
    let section = &file.interface;
    let chosen = section.fwmark.and_then(NonZeroU32::new);
    // A mark may be any number, a table may not: 253 to 255 are those of the system.
    let first_table = chosen.map_or(FIRST_TABLE, NonZeroU32::get);
    let table = NonZeroU32::new(adit_host::find_free_table(first_table)?).context("table 0 is no table")?;
    let fwmark = chosen.unwrap_or(table);
    let carried = |net: &&IpNet| ipv6 || net.addr().is_ipv4();
    let endpoints: Vec<IpAddr> = reached.iter().flat_map(|it| &it.known).map(SocketAddr::ip).collect();
    let in_use: Vec<IpAddr> = reached.iter().map(|it| it.current.ip()).collect();
    let mtu_bytes = match section.mtu {
        Mtu::Bytes(bytes) => bytes.into(),
        Mtu::Auto => adit_host::auto_mtu(&in_use, fwmark.get())?,
    };
    let first_priority = adit_host::find_free_priority(adit_host::RULE_PRIORITIES + 1)?;
    let allowed: Vec<IpNet> =
        file.peers.iter().flat_map(|peer| &peer.allowed_ips).filter(carried).copied().collect();
    let mut plan = adit_host::client_plan(&ClientHost {
        link: interface.to_owned(),
        addresses: section.addresses.iter().filter(carried).copied().collect(),
        mtu_bytes,
        allowed_ips: split.routed(&allowed),
        table: match section.table {
            Table::Auto => RouteTable::Auto,
            Table::Off => RouteTable::Off,
            Table::Number(table) => RouteTable::Number(table),
        },
        fwmark: table,
        rule_priority: first_priority + 1,
        dns_servers: section.dns.clone(),
        dns_search: section.search_domains.clone(),
        endpoints,
        block,
        has_ipv6: adit_host::has_ipv6(),
        answers_arp_for_all: adit_host::answers_arp_for_all(),
        own_table: !split.exclude.is_empty(),
    });
    mark_with(&mut plan, fwmark.get());
    let needed = chosen.is_some() || !plan.rules.is_empty() || split.is_needed();
    Ok((plan, if needed { fwmark.get() } else { 0 }))
}

#[cfg(test)]
mod tests {
    use adit_host::Firewall;

    use super::*;
    use crate::config::Source;
    use crate::config::wgquick::Hooks;

    fn full_tunnel(settings: &str) -> WgQuick {
        let text = format!(
            "[Interface]\nPrivateKey = eEBhN6cK2cF1bkjZlMVY4XlZ5LkVbPYMa1xgKPYo1Fk=\n{settings}\n[Peer]\n\
             PublicKey = xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=\nAllowedIPs = 0.0.0.0/0, ::/0\n"
        );
        WgQuick::parse(&Source::new("x.conf", &text), Hooks::Refused).unwrap()
    }

    #[test]
    fn no_mark_makes_a_table_of_the_system_the_one_of_the_tunnel() {
        for mark in [253, 254, 255, 4242, 0] {
            let file = full_tunnel(&format!("Address = 10.9.0.2/32\nMTU = 1420\nFwMark = {mark}"));
            let (plan, used) = plan("x", &file, &[], true, None, &Split::default()).unwrap();
            assert!(mark == 0 || used == mark);
            assert!(plan.routes.iter().all(|route| !matches!(route.table, 0 | 253..=255)), "{plan}");
            let marks: Vec<_> = plan.rules.iter().filter_map(|rule| Some(rule.fwmark?.mark)).collect();
            assert_eq!(marks, [used, used], "one rule of each family");
            assert!(
                matches!(plan.firewalls.as_slice(), [Firewall::Client(it)] if it.fwmark == used),
                "{plan}"
            );
        }
    }

    #[test]
    fn without_ipv6_only_the_rest_of_the_plan_is_made() {
        let file = full_tunnel("Address = 10.9.0.2/32, fd00:9::2/128\nMTU = 1420");
        let [with, without] =
            [true, false].map(|ipv6| plan("x", &file, &[], ipv6, None, &Split::default()).unwrap().0);
        let sizes = |plan: &Plan| (plan.addresses.len(), plan.routes.len(), plan.rules.len());
        assert_eq!((sizes(&with), sizes(&without)), ((2, 2, 4), (1, 1, 2)));
        assert!(without.addresses.iter().all(|it| it.address.addr().is_ipv4()));
        assert!(without.routes.iter().all(|it| it.destination.addr().is_ipv4()));
        assert!(without.rules.iter().all(|it| it.family == adit_host::Family::Ipv4));
    }
}
