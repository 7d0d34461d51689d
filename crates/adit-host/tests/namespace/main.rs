//! Real changes to a real kernel, each test in network and mount namespaces of its own.

mod block;
mod dns;
mod faults;
mod host;
mod leftover;
mod names;
mod rulesets;
mod shared;

use std::fs;
use std::io::Read;
use std::num::NonZeroU32;
use std::process::Child;
use std::time::{Duration, Instant};

use adit_host::{
    Block, ClientHost, GatewayHost, Hop, Link, Listener, MAIN_TABLE, Plan, Route, RouteTable, Transport,
    apply, client_plan, gateway_plan,
};
use host::*;

fn client() -> Plan {
    client_with(None)
}

fn client_with(block: Option<Block>) -> Plan {
    client_plan(&ClientHost {
        link: "adit0".into(),
        addresses: vec!["10.9.0.2/32".parse().unwrap(), "fd00:9::2/128".parse().unwrap()],
        mtu_bytes: 1420,
        allowed_ips: ["0.0.0.0/0", "::/0", "10.20.0.0/16"].map(|it| it.parse().unwrap()).to_vec(),
        table: RouteTable::Auto,
        fwmark: NonZeroU32::new(51820).unwrap(),
        rule_priority: if block.is_some() { 32763 } else { 32764 },
        dns_servers: vec!["10.9.0.1".parse().unwrap()],
        dns_search: vec!["inside".into()],
        endpoints: vec!["198.51.100.7".parse().unwrap()],
        block,
        has_ipv6: true,
        answers_arp_for_all: true,
        own_table: false,
    })
}

fn gateway() -> Plan {
    gateway_plan(&GatewayHost {
        link: "adit0".into(),
        addresses: vec!["10.9.0.1/24".parse().unwrap(), "fd00:9::1/64".parse().unwrap()],
        mtu_bytes: 1420,
        routes: vec![],
        listeners: vec![
            Listener { transport: Transport::Udp, port: 51820 },
            Listener { transport: Transport::Tcp, port: 443 },
        ],
        services: vec!["10.9.0.1:9585".parse().unwrap(), "[fd00:9::1]:9585".parse().unwrap()],
        invited: vec![],
        masquerade: true,
        client_to_client: false,
        denied: vec!["169.254.0.0/16".parse().unwrap()],
        neighbours: vec![],
        reach: adit_host::Reach::default(),
        passages: Vec::new(),
        links_accepting_ra: adit_host::links_accepting_router_advertisements(),
    })
}

fn route_to(net: &str, hop: Hop) -> Route {
    Route { destination: net.parse().unwrap(), hop, table: MAIN_TABLE, metric: None }
}

fn dev(link: &str) -> Hop {
    Hop::Link(link.into())
}

#[test]
fn a_full_tunnel_comes_and_goes_without_a_trace() {
    in_namespace("a_full_tunnel_comes_and_goes_without_a_trace", || {
        let host = Host::new();
        let before = state();
        let guard = apply(&client(), &host.journal()).unwrap();

        assert!(ip("route get 198.51.100.7").contains("dev adit0"));
        assert!(ip("route get 198.51.100.7 mark 51820").contains("dev up0"));
        assert!(ip("-6 route get 2606:4700::1").contains("dev adit0"));
        assert!(ip("-6 route get 2606:4700::1 mark 51820").contains("dev up0"));
        assert!(ip("route get 192.0.2.9").contains("dev up0"), "the local network stays local");
        assert!(ip("addr show adit0").contains("mtu 1420"));
        assert_eq!(sysctl("net.ipv4.conf.all.src_valid_mark"), "1");
        assert!(
            fs::read_to_string("/etc/resolv.conf").unwrap().contains("nameserver 10.9.0.1\nsearch inside\n")
        );
        assert!(run("nft", &["list", "tables"]).contains("adit_adit0"));
        assert!(host.journal().exists());

        let report = guard.undo().unwrap();
        assert_same(&before);
        assert!(report.left_alone.is_empty() && report.warnings.is_empty(), "{report:?}");
        assert_eq!(report.undone.len(), 13, "{report:?}");
        assert!(!host.journal().exists());
    });
}

#[test]
fn a_gateway_comes_and_goes_without_a_trace() {
    in_namespace("a_gateway_comes_and_goes_without_a_trace", || {
        let host = Host::new();
        // Choices of the administrator that the kernel overwrites when forwarding is switched.
        set_sysctl("net.ipv4.conf.all.accept_redirects", "0");
        set_sysctl("net.ipv4.conf.up0.forwarding", "1");
        set_sysctl("net.ipv6.conf.up0.forwarding", "1");
        let before = state();
        let guard = apply(&gateway(), &host.journal()).unwrap();

        for key in ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding", "net.ipv4.conf.adit0.forwarding"] {
            assert_eq!(sysctl(key), "1", "{key}");
        }
        assert_eq!(sysctl("net.ipv6.conf.up0.accept_ra"), "2");
        assert!(
            ip("addr show adit0").contains("inet 10.9.0.1/24 scope global adit0"),
            "no broadcast address"
        );

        guard.undo().unwrap();
        assert_same(&before);
        assert_eq!(sysctl("net.ipv4.conf.up0.forwarding"), "1");
        assert_eq!(sysctl("net.ipv4.conf.all.accept_redirects"), "0");
    });
}

fn wait_until_applied(child: &mut Child) {
    let mut said = String::new();
    let mut stdout = child.stdout.take().unwrap();
    while !said.contains("applied") {
        let mut bytes = [0; 256];
        let count = stdout.read(&mut bytes).unwrap();
        assert!(count > 0, "the child ended early: {said}");
        said.push_str(&String::from_utf8_lossy(&bytes[..count]));
    }
}

const JOURNAL: &str = "ADIT_HOST_TEST_JOURNAL";

#[test]
fn what_others_changed_meanwhile_is_left_alone() {
    in_namespace("what_others_changed_meanwhile_is_left_alone", || {
        let host = Host::new();
        let plan = Plan { addresses: gateway().addresses, ..client() };
        let guard = apply(&plan, &host.journal()).unwrap();

        set_sysctl("net.ipv4.conf.all.src_valid_mark", "0");
        set_sysctl("net.ipv4.conf.all.src_valid_mark", "2");
        fs::write("/etc/resolv.conf", "nameserver 192.0.2.99\n").unwrap();
        ip("address add 10.9.0.77/24 dev adit0");
        ip("link set adit0 mtu 1300");
        ip("route add 10.30.0.0/16 dev up0");
        ip("route add 10.40.0.0/16 dev up0 table 51820");
        ip("rule add fwmark 7 table 51820 priority 32764");
        run("nft", &["add", "table", "inet", "theirs"]);

        let report = guard.undo().unwrap();
        assert_eq!(report.left_alone.len(), 3, "{report:?}");
        assert_eq!(sysctl("net.ipv4.conf.all.src_valid_mark"), "2");
        assert_eq!(fs::read_to_string("/etc/resolv.conf").unwrap(), "nameserver 192.0.2.99\n");
        let address = ip("address show adit0");
        assert!(address.contains("10.9.0.77/24") && !address.contains("10.9.0.1/24"), "{address}");
        assert!(address.contains("mtu 1300"), "{address}");
        assert!(ip("route show 10.30.0.0/16").contains("up0"));
        assert_eq!(ip("route show table 51820").trim(), "10.40.0.0/16 dev up0 scope link linkdown");
        assert_eq!(ip("rule").matches("32764").count(), 1, "{}", ip("rule"));
        assert_eq!(run("nft", &["list", "tables"]).trim(), "table inet theirs");
    });
}

#[test]
fn what_was_already_so_stays_so() {
    in_namespace("what_was_already_so_stays_so", || {
        let host = Host::new();
        set_sysctl("net.ipv4.conf.all.src_valid_mark", "1");
        ip("link set adit0 up mtu 1420");
        ip("address add 10.9.0.2/32 dev adit0");
        add_ipv6("fd00:9::9/128", "adit0");
        ip("route add 10.20.0.0/16 dev adit0");
        ip("route add default dev adit0 table 51820");
        ip("rule add table main suppress_prefixlength 0 priority 32764");
        ip("rule add not fwmark 51820 table 51820 priority 32765");
        let before = state();
        let report = apply(&client(), &host.journal()).unwrap().undo().unwrap();
        assert_same(&before);
        assert_eq!(report.undone.len(), 6, "{report:?}");
    });
}

#[test]
fn a_vanished_tunnel_takes_its_things_along() {
    in_namespace("a_vanished_tunnel_takes_its_things_along", || {
        let host = Host::new();
        let guard = apply(&client(), &host.journal()).unwrap();
        ip("link del adit0");
        ip("tuntap add dev adit0 mode tun");
        ip("link set adit0 up mtu 1420");
        ip("address add 10.9.0.2/32 dev adit0");
        let report = guard.undo().unwrap();
        assert!(report.left_alone.is_empty(), "{report:?}");
        assert!(ip("address show adit0").contains("10.9.0.2/32"), "the new link is not ours");
        assert!(ip("address show adit0").contains("mtu 1420"));
        assert!(!ip("rule").contains("51820"));
        assert_eq!(fs::read_to_string("/etc/resolv.conf").unwrap(), RESOLV_CONF);
    });
}

#[test]
fn another_plan_changes_only_what_differs() {
    in_namespace("another_plan_changes_only_what_differs", || {
        let host = Host::new();
        let before = state();
        let full = client();
        let split = Plan {
            routes: vec![route_to("10.20.0.0/16", dev("adit0")), route_to("10.50.0.0/16", dev("adit0"))],
            rules: vec![],
            links: vec![Link { mtu_bytes: Some(1380), ..full.links[0].clone() }],
            firewalls: gateway().firewalls,
            ..full.clone()
        };
        let mut guard = apply(&full, &host.journal()).unwrap();
        let report = guard.change_to(&split).unwrap();
        assert_eq!(report.undone.len(), 6, "{report:?}");
        assert!(ip("route").contains("10.50.0.0/16") && ip("route").contains("10.20.0.0/16"));
        assert!(ip("link show adit0").contains("mtu 1380"));
        assert!(!ip("rule").contains("51820"));
        assert!(run("nft", &["list", "ruleset"]).contains("masquerade"));
        guard.change_to(&full).unwrap();
        assert!(ip("route get 198.51.100.7").contains("dev adit0"));
        assert!(!run("nft", &["list", "ruleset"]).contains("masquerade"));
        guard.undo().unwrap();
        assert_same(&before);
    });
}

#[test]
fn the_host_answers_what_it_is_asked() {
    in_namespace("the_host_answers_what_it_is_asked", || {
        let host = Host::new();
        assert!(adit_host::link_exists("adit0").unwrap());
        assert!(!adit_host::link_exists("adit9").unwrap());
        let anywhere = "198.51.100.7".parse().unwrap();
        assert_eq!(adit_host::route_mtu(anywhere, 0).unwrap(), Some(1500));
        ip("link set up0 mtu 1480");
        assert_eq!(adit_host::route_mtu(anywhere, 0).unwrap(), Some(1480));
        assert_eq!(adit_host::auto_mtu(&[anywhere], 0).unwrap(), 1400);
        ip("route add 198.51.100.0/24 via 192.0.2.1 mtu 1400");
        assert_eq!(adit_host::route_mtu(anywhere, 0).unwrap(), Some(1400));
        assert_eq!(adit_host::auto_mtu(&["192.0.2.1".parse().unwrap(), anywhere], 0).unwrap(), 1320);
        ip("route del 198.51.100.0/24");

        assert_eq!(adit_host::auto_mtu(&[], 0).unwrap(), 1400);
        ip("route replace default via 192.0.2.1 dev up0 mtu 1410");
        assert_eq!(adit_host::auto_mtu(&[], 0).unwrap(), 1330);
        ip("route replace default via 192.0.2.1 dev up0");

        assert_eq!(adit_host::find_free_table(51820).unwrap(), 51820);
        assert_eq!(adit_host::find_free_priority(2).unwrap(), 32764);
        let guard = apply(&client(), &host.journal()).unwrap();
        assert_eq!(adit_host::find_free_table(51820).unwrap(), 51821);
        assert_eq!(adit_host::find_free_priority(2).unwrap(), 32762);
        assert_eq!(adit_host::route_mtu(anywhere, 0).unwrap(), Some(1420));
        assert_eq!(adit_host::route_mtu(anywhere, 51820).unwrap(), Some(1480));
        guard.undo().unwrap();

        ip("route del default");
        assert_eq!(adit_host::route_mtu(anywhere, 0).unwrap(), None);
        assert_eq!(adit_host::auto_mtu(&[anywhere], 0).unwrap(), 1420);
        ip("-6 route del default");
        assert_eq!(adit_host::auto_mtu(&[], 0).unwrap(), 1420);
    });
}

#[test]
fn thousands_of_routes_take_one_look_and_one_sync() {
    in_namespace("thousands_of_routes_take_one_look_and_one_sync", || {
        let host = Host::new();
        let before = state();
        let nets = (0..4000).map(|it| format!("10.{}.{}.0/24", it / 250, it % 250));
        let mut routes: Vec<Route> = nets.map(|net| route_to(&net, dev("adit0"))).collect();
        routes.push(routes[0].clone());
        let started = Instant::now();
        let guard = apply(&Plan { routes, ..client() }, &host.journal()).unwrap();
        assert_eq!(ip("route").matches("proto 173").count(), 4000);
        guard.undo().unwrap();
        assert_same(&before);
        assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    });
}
