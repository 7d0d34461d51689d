use std::net::IpAddr;
use std::num::NonZeroU32;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::firewall::block::lan_networks;
use crate::firewall::{ClientFirewall, Firewall, KillSwitch};
use crate::plan::{Address, Dns, Family, Fwmark, Hop, Link, MAIN_TABLE, Plan, Route, Rule, Sysctl};
use crate::sysctl::ARP_IGNORE;

/// What a client's host should be like while its tunnel is up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientHost {
    pub link: String,
    pub addresses: Vec<IpNet>,
    pub mtu_bytes: u32,
    pub allowed_ips: Vec<IpNet>,
    pub table: RouteTable,
    /// The mark on our own packets, and with [`RouteTable::Auto`] also the number of the tunnel's routing table.
    pub fwmark: NonZeroU32,
    /// The first of [`RULE_PRIORITIES`] free ones ([`find_free_priority`](crate::find_free_priority)).
    pub rule_priority: u32,
    pub dns_servers: Vec<IpAddr>,
    pub dns_search: Vec<String>,
    /// Where the peers are, as far as known.
    pub endpoints: Vec<IpAddr>,
    /// Whether what does not go through the tunnel is kept in, and what of it is not.
    pub block: Option<Block>,
    /// Whether the kernel has IPv6, even if it is switched off.
    pub has_ipv6: bool,
    /// Whether any interface answers ARP for every address of this host
    /// ([`answers_arp_for_all`](crate::answers_arp_for_all)).
    pub answers_arp_for_all: bool,
    /// Whether the routes go to a table of their own in any case, so that a mark leads around them.
    pub own_table: bool,
}

/// How a kill switch is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// Private networks around stay within reach.
    pub allow_lan: bool,
}

/// How many rule priorities in a row a plan for a client may take.
pub const RULE_PRIORITIES: u32 = 3;

/// Whether the allowed IPs are the whole of a family.
pub fn is_everything(family: Family, allowed_ips: &[IpNet]) -> bool {
    let of_family = allowed_ips.iter().filter(|net| Family::of(net.addr()) == family).copied();
    IpNet::aggregate(&of_family.collect()).iter().any(|net| net.prefix_len() == 0)
}

/// Where the routes to the allowed IPs go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteTable {
    /// The main table; or a table of their own when they would capture our own packets.
    Auto,
    /// No routes.
    Off,
    /// This table, with no rules to ask it.
    Number(u32),
}

/// The plan for a client, with the semantics of `wg-quick`.
///
/// A route that would capture the packets to an endpoint (a default route, or any that covers one) goes to a table of
/// its own, which every packet without our mark asks, unless the main table has anything better than a default route.
///
/// With a [`Block`] no route of the main table is better (TunnelVision, CVE-2024-3661; TunnelCrack, CVE-2023-36672):
/// what the tunnel does not take is refused by a rule, and again by the firewall.
pub fn client_plan(host: &ClientHost) -> Plan {
    let link = &host.link;
    let mut plan = Plan {
        links: vec![Link { name: link.clone(), mtu_bytes: Some(host.mtu_bytes), up: true }],
        addresses: host.addresses.iter().map(|it| Address { link: link.clone(), address: *it }).collect(),
        ..Plan::default()
    };
    if !host.dns_servers.is_empty() {
        plan.dns = Some(Dns {
            link: link.clone(),
            servers: host.dns_servers.clone(),
            search: host.dns_search.clone(),
        });
    }
    let to = |table| {
        let hop = Hop::Link(link.clone());
        move |net: IpNet| Route { destination: net, hop: hop.clone(), table, metric: None }
    };
    let allowed = longest_first(&host.allowed_ips);
    match host.table {
        RouteTable::Off => {}
        RouteTable::Number(table) => plan.routes = allowed.into_iter().map(to(table)).collect(),
        RouteTable::Auto => {
            let table = host.fwmark.get();
            let captures_all = host.block.is_some() || host.own_table;
            let (captures, harmless): (Vec<_>, Vec<_>) =
                allowed.into_iter().partition(|net| captures_all || captures(*net, &host.endpoints));
            plan.routes.extend(harmless.into_iter().map(to(MAIN_TABLE)));
            plan.routes.extend(captures.iter().copied().map(to(table)));
            for family in Family::BOTH {
                if let Some(block) = host.block {
                    if family == Family::Ipv4 || host.has_ipv6 {
                        plan.rules.extend(closed_rules(family, host.rule_priority, table, block));
                        plan.routes.push(nothing_else(family, table));
                    }
                } else if captures.iter().any(|net| Family::of(net.addr()) == family) {
                    plan.rules.extend(rules(family, host.rule_priority, table));
                }
            }
            if captures.iter().any(|net| net.addr().is_ipv4()) {
                // With rp_filter on, replies to marked packets are accepted only if the mark counts for the check.
                plan.sysctls.push(Sysctl::new("net.ipv4.conf.all.src_valid_mark", "1"));
            }
            if host.block.is_some() && host.answers_arp_for_all {
                // Else a neighbour learns the inside address by asking for it (MLLVD-CR-24-03).
                plan.sysctls.push(Sysctl::new(ARP_IGNORE, "1"));
            }
            if !captures.is_empty() {
                let kill_switch = |block: Block| KillSwitch {
                    allow_lan: block.allow_lan,
                    listen_port: None,
                    inside: inside(host),
                    parted: false,
                };
                plan.firewalls.push(Firewall::Client(ClientFirewall {
                    link: link.clone(),
                    addresses: host.addresses.iter().map(|it| it.addr()).collect(),
                    fwmark: table,
                    kill_switch: host.block.map(kill_switch),
                }));
            }
        }
    }
    plan
}

fn rules(family: Family, priority: u32, table: u32) -> [Rule; 2] {
    let local_first = Rule { suppress_prefix_len: Some(0), ..Rule::new(family, priority, MAIN_TABLE) };
    let unmarked =
        Rule { fwmark: Some(Fwmark::from(table)), invert: true, ..Rule::new(family, priority + 1, table) };
    [local_first, unmarked]
}

/// Behind every other route of the table.
const LAST_METRIC: u32 = u32::MAX;

/// What the tunnel does not carry goes nowhere, instead of to the next rule.
fn nothing_else(family: Family, table: u32) -> Route {
    let destination = match family {
        Family::Ipv4 => IpNet::from(Ipv4Net::default()),
        Family::Ipv6 => IpNet::from(Ipv6Net::default()),
    };
    Route { destination, hop: Hop::Nowhere, table, metric: Some(LAST_METRIC) }
}

/// Only the LAN is looked for in the main table, and only if it may be reached at all.
fn closed_rules(family: Family, priority: u32, table: u32, block: Block) -> Vec<Rule> {
    let lan = lan_networks().filter(|net| block.allow_lan && Family::of(net.addr()) == family);
    let lan = lan.map(|net| Rule {
        suppress_prefix_len: Some(0),
        to: Some(net),
        ..Rule::new(family, priority, MAIN_TABLE)
    });
    let unmarked =
        Rule { fwmark: Some(Fwmark::from(table)), invert: true, ..Rule::new(family, priority + 1, table) };
    lan.chain([unmarked]).collect()
}

/// What is known to be behind the tunnel, beyond everything.
fn inside(host: &ClientHost) -> Vec<IpNet> {
    let narrow = host.addresses.iter().chain(&host.allowed_ips).filter(|net| net.prefix_len() > 1);
    let nets = narrow.map(IpNet::trunc).chain(host.dns_servers.iter().map(|it| IpNet::from(*it)));
    IpNet::aggregate(&nets.collect())
}

fn captures(net: IpNet, endpoints: &[IpAddr]) -> bool {
    net.prefix_len() == 0 || endpoints.iter().any(|endpoint| net.contains(endpoint))
}

fn longest_first(nets: &[IpNet]) -> Vec<IpNet> {
    let mut nets: Vec<IpNet> = nets.iter().map(IpNet::trunc).collect();
    nets.sort_by_key(|net| (std::cmp::Reverse(net.prefix_len()), *net));
    nets.dedup();
    nets
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(allowed_ips: &[&str]) -> ClientHost {
        ClientHost {
            link: "adit0".into(),
            addresses: vec!["10.9.0.2/32".parse().unwrap(), "fd00:9::2/128".parse().unwrap()],
            mtu_bytes: 1420,
            allowed_ips: allowed_ips.iter().map(|it| it.parse().unwrap()).collect(),
            table: RouteTable::Auto,
            fwmark: NonZeroU32::new(51820).unwrap(),
            rule_priority: 32764,
            dns_servers: vec!["10.9.0.1".parse().unwrap()],
            dns_search: vec![],
            endpoints: vec!["192.0.2.7".parse().unwrap()],
            block: None,
            has_ipv6: true,
            answers_arp_for_all: true,
            own_table: false,
        }
    }

    #[test]
    fn a_kill_switch_leaves_no_route_but_the_tunnel() {
        let block = Some(Block { allow_lan: false });
        let plan = client_plan(&ClientHost { block, ..host(&["0.0.0.0/0", "192.0.2.0/24"]) });
        assert_eq!(
            plan.to_string(),
            "\
nft      table inet adit_adit0: 10.9.0.2 fd00:9::2 only through adit0, replies keep mark 0xca6c, \
nothing else gets in or out
sysctl   net.ipv4.conf.all.src_valid_mark = 1
sysctl   net.ipv4.conf.all.arp_ignore = 1
link     adit0 mtu 1420 up
address  10.9.0.2/32 dev adit0
address  fd00:9::2/128 dev adit0
route    192.0.2.0/24 dev adit0 table 51820
route    default dev adit0 table 51820
route    default unreachable table 51820 metric 4294967295
route    default (ipv6) unreachable table 51820 metric 4294967295
rule     not fwmark 0xca6c table 51820 priority 32765 (ipv4)
rule     not fwmark 0xca6c table 51820 priority 32765 (ipv6)
dns      adit0 servers 10.9.0.1
"
        );
    }

    #[test]
    fn a_kill_switch_that_allows_the_lan_looks_for_private_networks_only() {
        let block = Some(Block { allow_lan: true });
        let plan = client_plan(&ClientHost { block, has_ipv6: false, ..host(&["0.0.0.0/0"]) });
        let lan: Vec<_> = plan.rules.iter().filter_map(|rule| rule.to).map(|net| net.to_string()).collect();
        assert_eq!(lan, ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16"]);
        let Some(Firewall::Client(ClientFirewall { kill_switch: Some(kill_switch), .. })) =
            plan.firewalls.first()
        else {
            panic!("{plan}")
        };
        let inside: Vec<_> = kill_switch.inside.iter().map(ToString::to_string).collect();
        assert_eq!(inside, ["10.9.0.1/32", "10.9.0.2/32", "fd00:9::2/128"]);
    }

    #[test]
    fn everything_may_be_said_in_halves() {
        let nets = |texts: &[&str]| texts.iter().map(|it| it.parse().unwrap()).collect::<Vec<IpNet>>();
        for (allowed, v4, v6) in [
            (&["0.0.0.0/0"][..], true, false),
            (&["0.0.0.0/1", "128.0.0.0/1", "::/0"], true, true),
            (&["0.0.0.0/1", "128.0.0.0/2", "::/1"], false, false),
            (&[], false, false),
        ] {
            assert_eq!(is_everything(Family::Ipv4, &nets(allowed)), v4, "{allowed:?}");
            assert_eq!(is_everything(Family::Ipv6, &nets(allowed)), v6, "{allowed:?}");
        }
    }

    #[test]
    fn a_full_tunnel_is_what_wg_quick_makes_of_it() {
        let plan = client_plan(&host(&["0.0.0.0/0", "::/0"]));
        assert_eq!(
            plan.to_string(),
            "\
nft      table inet adit_adit0: 10.9.0.2 fd00:9::2 only through adit0, replies keep mark 0xca6c
sysctl   net.ipv4.conf.all.src_valid_mark = 1
link     adit0 mtu 1420 up
address  10.9.0.2/32 dev adit0
address  fd00:9::2/128 dev adit0
route    default dev adit0 table 51820
route    default (ipv6) dev adit0 table 51820
rule     table main suppress_prefixlength 0 priority 32764 (ipv4)
rule     not fwmark 0xca6c table 51820 priority 32765 (ipv4)
rule     table main suppress_prefixlength 0 priority 32764 (ipv6)
rule     not fwmark 0xca6c table 51820 priority 32765 (ipv6)
dns      adit0 servers 10.9.0.1
"
        );
    }

    #[test]
    fn a_split_tunnel_only_adds_routes() {
        let plan = client_plan(&ClientHost { dns_servers: vec![], ..host(&["10.0.0.0/8", "10.9.0.5/16"]) });
        assert_eq!(
            plan.to_string(),
            "\
link     adit0 mtu 1420 up
address  10.9.0.2/32 dev adit0
address  fd00:9::2/128 dev adit0
route    10.9.0.0/16 dev adit0
route    10.0.0.0/8 dev adit0
"
        );
    }

    #[test]
    fn a_route_that_covers_the_endpoint_never_goes_to_the_main_table() {
        let plan = client_plan(&host(&["0.0.0.0/1", "128.0.0.0/1", "10.0.0.0/8"]));
        let tables: Vec<(String, u32)> =
            plan.routes.iter().map(|it| (it.destination.to_string(), it.table)).collect();
        let expected = [("10.0.0.0/8", MAIN_TABLE), ("0.0.0.0/1", MAIN_TABLE), ("128.0.0.0/1", 51820)];
        assert_eq!(tables, expected.map(|(net, table)| (net.to_owned(), table)));
        assert_eq!(plan.rules.len(), 2, "ipv4 only");
    }

    #[test]
    fn the_table_can_be_chosen_or_left_out() {
        let off = client_plan(&ClientHost { table: RouteTable::Off, ..host(&["0.0.0.0/0"]) });
        assert!(off.routes.is_empty() && off.rules.is_empty() && off.firewalls.is_empty());
        let numbered = client_plan(&ClientHost { table: RouteTable::Number(7), ..host(&["0.0.0.0/0"]) });
        assert_eq!(numbered.routes.len(), 1);
        assert_eq!(numbered.routes[0].table, 7);
        assert!(numbered.rules.is_empty() && numbered.firewalls.is_empty());
    }

    #[test]
    fn a_plan_survives_being_written_and_read() {
        let plan = client_plan(&host(&["0.0.0.0/0", "::/0", "10.0.0.0/8"]));
        assert_eq!(serde_json::from_str::<Plan>(&serde_json::to_string(&plan).unwrap()).unwrap(), plan);
    }
}
