//! Real changes to a real kernel, each test in network and mount namespaces of its own.

mod block;
mod dns;
mod faults;
mod host;
mod names;

use std::env;
use std::fs;
use std::io::{Read, Write};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use adit_host::{
    Address, Block, ClientHost, Dns, Firewall, GatewayHost, Hop, HostError, Link, Listener, MAIN_TABLE, Plan,
    Route, RouteTable, Sysctl, Transport, apply, client_plan, gateway_plan, undo_journal,
};
use adit_io::sys::NetNamespace;
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

/// The gateway's plan for a second tunnel device.
fn second_gateway() -> Plan {
    let text = serde_json::to_string(&gateway()).unwrap();
    serde_json::from_str(
        &text.replace("adit0", "adit1").replace("10.9.0.", "10.8.0.").replace("fd00:9", "fd00:8"),
    )
    .unwrap()
}

fn host_of_two() -> Host {
    let host = Host::new();
    ip("tuntap add dev adit1 mode tun");
    ip("link set adit1 up");
    ip("link set adit1 down");
    ip("link set adit1 mtu 1500");
    set_sysctl("net.ipv6.conf.adit1.accept_ra", "0");
    host
}

fn assert_forwards() {
    for key in ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding", "net.ipv4.conf.up0.forwarding"] {
        assert_eq!(sysctl(key), "1", "{key}");
    }
    assert_eq!(sysctl("net.ipv6.conf.up0.accept_ra"), "2");
    let from_client = ip("route get 198.51.100.7 from 10.8.0.2 iif adit1");
    assert!(from_client.contains("dev up0"), "the kernel forwards: {from_client}");
}

fn assert_no_holds() {
    assert!(!Path::new("/run/adit/sysctls").exists());
}

#[test]
fn forwarding_stays_on_until_the_last_gateway_stops() {
    in_namespace("forwarding_stays_on_until_the_last_gateway_stops", || {
        let host = host_of_two();
        let before = state();
        for first_stops_first in [true, false] {
            let first = apply(&gateway(), &host.journal_of("first")).unwrap();
            let second = apply(&second_gateway(), &host.journal_of("second")).unwrap();
            assert_forwards();
            let (leaving, staying) = if first_stops_first { (first, second) } else { (second, first) };
            let report = leaving.undo().unwrap();
            assert_eq!(report.shared.len(), 3, "{report:?}");
            assert!(report.left_alone.is_empty(), "{report:?}");
            for key in ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"] {
                assert_eq!(sysctl(key), "1", "{key}");
            }
            let report = staying.undo().unwrap();
            assert!(report.shared.is_empty() && report.left_alone.is_empty(), "{report:?}");
            assert_same(&before);
            assert_no_holds();
        }
    });
}

#[test]
fn src_valid_mark_stays_on_until_the_last_full_tunnel_stops() {
    in_namespace("src_valid_mark_stays_on_until_the_last_full_tunnel_stops", || {
        let host = host_of_two();
        let before = state();
        let only_sysctls = Plan { sysctls: client().sysctls, ..Plan::default() };
        assert_eq!(only_sysctls.sysctls.len(), 1);
        let first = apply(&client(), &host.journal_of("first")).unwrap();
        let second = apply(&only_sysctls, &host.journal_of("second")).unwrap();
        first.undo().unwrap();
        assert_eq!(sysctl("net.ipv4.conf.all.src_valid_mark"), "1");
        let first = apply(&client(), &host.journal_of("first")).unwrap();
        second.undo().unwrap();
        assert_eq!(sysctl("net.ipv4.conf.all.src_valid_mark"), "1");
        first.undo().unwrap();
        assert_same(&before);
        assert_no_holds();
    });
}

#[test]
fn a_killed_gateway_holds_until_its_journal_is_undone_or_gone() {
    in_namespace("a_killed_gateway_holds_until_its_journal_is_undone_or_gone", || {
        let host = host_of_two();
        let before = state();
        let kill_first = || {
            let mut child = again("applies_a_gateway_and_waits", &[(JOURNAL, &host.journal_of("first"))]);
            wait_until_applied(&mut child);
            let second = apply(&second_gateway(), &host.journal_of("second")).unwrap();
            child.kill().unwrap();
            child.wait().unwrap();
            second
        };

        let second = kill_first();
        let report = undo_journal(&host.journal_of("first")).unwrap();
        assert_eq!(report.shared.len(), 3, "{report:?}");
        assert_forwards();
        second.undo().unwrap();
        assert_same(&before);

        kill_first().undo().unwrap();
        assert_eq!(sysctl("net.ipv4.ip_forward"), "1", "the killed one may come back");
        undo_journal(&host.journal_of("first")).unwrap();
        assert_same(&before);
        assert_no_holds();

        let second = kill_first();
        assert_forwards();
        let first = apply(&gateway(), &host.journal_of("first")).unwrap();
        second.undo().unwrap();
        assert_eq!(
            sysctl("net.ipv6.conf.up0.accept_ra"),
            "2",
            "it hears router advertisements after a restart"
        );
        first.undo().unwrap();
        assert_same(&before);

        let second = kill_first();
        let kept = fs::read(host.journal_of("first")).unwrap();
        fs::remove_file(host.journal_of("first")).unwrap();
        second.undo().unwrap();
        assert_eq!(sysctl("net.ipv4.ip_forward"), "0", "what has no journal holds nothing");
        fs::write(host.journal_of("first"), kept).unwrap();
        undo_journal(&host.journal_of("first")).unwrap();
        assert_same(&before);
        assert_no_holds();
    });
}

#[test]
fn a_second_tunnel_does_not_take_the_resolver_from_the_first() {
    in_namespace("a_second_tunnel_does_not_take_the_resolver_from_the_first", || {
        let host = Host::new();
        let before = state();
        let dns = client().dns;
        let second =
            Plan { dns: dns.clone().map(|it| Dns { link: "adit1".into(), ..it }), ..Plan::default() };
        let first = apply(&Plan { dns, ..Plan::default() }, &host.journal_of("first")).unwrap();
        let with_first = state();
        let error = apply(&second, &host.journal_of("second")).unwrap_err();
        assert!(matches!(error, HostError::DnsTaken { .. }), "{error}");
        assert_same(&with_first);
        assert!(!host.journal_of("second").exists());
        first.undo().unwrap();
        assert_same(&before);
        apply(&second, &host.journal_of("second")).unwrap().undo().unwrap();
        assert_same(&before);
    });
}

#[test]
fn a_chain_of_others_that_drops_what_we_forward_is_found() {
    in_namespace("a_chain_of_others_that_drops_what_we_forward_is_found", || {
        let host = Host::new();
        let guard = apply(&gateway(), &host.journal()).unwrap();
        let nft = |line: &str| run("nft", &[line]);
        let named = |it: adit_host::Passage| format!("{} {} {}", it.family, it.table, it.chain);
        let found = || adit_host::foreign_forward_drops("adit0").into_iter().map(named).collect::<Vec<_>>();
        nft("add table ip filter");
        nft("add chain ip filter INPUT { type filter hook input priority 0; policy drop; }");
        nft("add chain ip filter FORWARD { type filter hook forward priority 0; policy accept; }");
        assert_eq!(found(), Vec::<String>::new());
        nft("add chain ip filter FORWARD { policy drop; }");
        nft("add table inet theirs");
        nft("add chain inet theirs pass { type filter hook forward priority 5; policy drop; }");
        assert_eq!(found(), ["ip filter FORWARD", "inet theirs pass"]);
        nft("insert rule ip filter FORWARD iifname \"adit1\" accept");
        nft("insert rule ip filter FORWARD iifname \"adit0\" drop");
        assert_eq!(found().len(), 2, "neither lets adit0 through");
        nft("insert rule ip filter FORWARD iifname \"adit0\" counter accept");
        assert_eq!(found(), ["inet theirs pass"]);
        guard.undo().unwrap();
    });
}

/// Not a test by itself: what `a_killed_gateway_holds_until_its_journal_is_undone_or_gone` kills.
#[test]
#[ignore = "run by another test"]
fn applies_a_gateway_and_waits() {
    let Some(journal) = env::var_os(JOURNAL).map(PathBuf::from) else { return };
    let _guard = apply(&gateway(), &journal).unwrap();
    println!("applied");
    thread::sleep(Duration::from_secs(60));
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

/// Not a test by itself: what `undo_journal_puts_back_what_a_killed_process_left` kills.
#[test]
#[ignore = "run by another test"]
fn applies_and_waits() {
    let Some(journal) = env::var_os(JOURNAL).map(PathBuf::from) else { return };
    let _guard = apply(&client(), &journal).unwrap();
    println!("applied");
    thread::sleep(Duration::from_secs(60));
}

#[test]
fn undo_journal_puts_back_what_a_killed_process_left() {
    in_namespace("undo_journal_puts_back_what_a_killed_process_left", || {
        let host = Host::new();
        let before = state();
        let mut child = again("applies_and_waits", &[(JOURNAL, &host.journal())]);
        wait_until_applied(&mut child);
        assert!(matches!(undo_journal(&host.journal()), Err(HostError::JournalBusy { .. })));
        child.kill().unwrap();
        child.wait().unwrap();

        assert!(!difference(&before, &state()).is_empty(), "the changes outlive the process");
        let report = undo_journal(&host.journal()).unwrap();
        assert_same(&before);
        assert_eq!(report.undone.len(), 13, "{report:?}");
        assert_eq!(undo_journal(&host.journal()).unwrap(), Default::default());
        assert_same(&before);
    });
}

#[test]
fn a_process_killed_at_any_moment_leaves_nothing_that_cannot_be_undone() {
    in_namespace("a_process_killed_at_any_moment_leaves_nothing_that_cannot_be_undone", || {
        let host = Host::new();
        let before = state();
        let mut half_made = 0;
        for (recorded, delay_ms) in (1..=14).flat_map(|lines| [(lines, 0), (lines, 2)]) {
            let mut child = again("applies_and_waits", &[(JOURNAL, &host.journal())]);
            let lines = || fs::read_to_string(host.journal()).unwrap_or_default().lines().count();
            while lines() < recorded {
                assert!(child.try_wait().unwrap().is_none(), "the child ended by itself");
                thread::yield_now();
            }
            thread::sleep(Duration::from_millis(delay_ms));
            child.kill().unwrap();
            child.wait().unwrap();
            let report = undo_journal(&host.journal()).unwrap();
            assert!(report.left_alone.is_empty(), "{report:?}");
            half_made += usize::from(!report.undone.is_empty() && report.undone.len() < 13);
            let difference = difference(&before, &state());
            assert!(difference.is_empty(), "killed at line {recorded}: {}", difference.join("\n"));
        }
        assert!(half_made > 0, "no kill came in the midst of the changes");
    });
}

#[test]
fn a_failure_half_way_leaves_nothing() {
    in_namespace("a_failure_half_way_leaves_nothing", || {
        let host = Host::new();
        let before = state();
        let unreachable = Hop::Gateway { via: "203.0.113.1".parse().unwrap(), link: None };
        let plans = [
            Plan {
                routes: vec![route_to("10.0.0.0/8", dev("adit0")), route_to("10.1.0.0/16", unreachable)],
                ..client()
            },
            Plan {
                routes: vec![route_to("10.0.0.0/8", dev("adit0")), route_to("10.1.0.0/16", dev("adit9"))],
                ..client()
            },
            Plan { sysctls: vec![Sysctl::new("net.ipv4.no_such_thing", "1")], ..client() },
            Plan {
                sysctls: vec![Sysctl::new("net.ipv4.ip_forward", "1"), Sysctl::new("../x", "1")],
                ..client()
            },
            Plan { links: vec![Link { name: "adit0".into(), mtu_bytes: Some(7), up: true }], ..client() },
            Plan { routes: vec![route_to("192.0.2.0/24", dev("adit0"))], ..client() },
        ];
        for plan in plans {
            let error = apply(&plan, &host.journal()).unwrap_err();
            assert!(!matches!(error, HostError::RollbackIncomplete { .. }), "{error}");
            println!("{error}");
            assert_same(&before);
            assert!(!host.journal().exists());
        }
        apply(&client(), &host.journal()).unwrap().undo().unwrap();
    });
}

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
fn undoing_twice_is_undoing_once() {
    in_namespace("undoing_twice_is_undoing_once", || {
        let host = Host::new();
        for plan in [client(), gateway()] {
            let before = state();
            apply(&plan, &host.journal()).unwrap().leave();
            let kept = fs::read(host.journal()).unwrap();
            assert!(!undo_journal(&host.journal()).unwrap().undone.is_empty());
            assert_same(&before);
            fs::write(host.journal(), kept).unwrap();
            let report = undo_journal(&host.journal()).unwrap();
            assert_same(&before);
            assert!(report.undone.is_empty() && report.left_alone.is_empty(), "{report:?}");
        }
    });
}

#[test]
fn a_dropped_guard_undoes_and_a_new_one_first_undoes_what_is_left() {
    in_namespace("a_dropped_guard_undoes_and_a_new_one_first_undoes_what_is_left", || {
        let host = Host::new();
        let before = state();
        drop(apply(&client(), &host.journal()).unwrap());
        assert_same(&before);
        apply(&client(), &host.journal()).unwrap().leave();
        apply(&gateway(), &host.journal()).unwrap().undo().unwrap();
        assert_same(&before);
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
fn a_resolv_conf_with_a_mount_on_it_is_written_in_place() {
    in_namespace("a_resolv_conf_with_a_mount_on_it_is_written_in_place", || {
        let host = Host::new();
        let theirs = host.journal().with_file_name("resolv.conf");
        fs::create_dir_all(theirs.parent().unwrap()).unwrap();
        fs::write(&theirs, "nameserver 192.0.2.54\n").unwrap();
        run("mount", &["--bind", theirs.to_str().unwrap(), "/etc/resolv.conf"]);
        let before = state();
        let guard = apply(&client(), &host.journal()).unwrap();
        assert!(fs::read_to_string(&theirs).unwrap().contains("nameserver 10.9.0.1"));
        guard.undo().unwrap();
        assert_same(&before);
        assert_eq!(fs::read_to_string(&theirs).unwrap(), "nameserver 192.0.2.54\n");
    });
}

#[test]
fn a_symlinked_resolv_conf_comes_back_as_a_symlink() {
    in_namespace("a_symlinked_resolv_conf_comes_back_as_a_symlink", || {
        let host = Host::new();
        fs::rename("/etc/resolv.conf", "/etc/other").unwrap();
        std::os::unix::fs::symlink("other", "/etc/resolv.conf").unwrap();
        let before = state();
        let guard = apply(&client(), &host.journal()).unwrap();
        assert_eq!(fs::read_to_string("/etc/other").unwrap(), RESOLV_CONF, "what it led to is untouched");
        assert!(fs::read_to_string("/etc/resolv.conf").unwrap().contains("nameserver 10.9.0.1"));
        guard.undo().unwrap();
        assert_same(&before);
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
fn the_kernel_takes_our_rulesets_and_reads_them_as_written_here() {
    in_namespace("the_kernel_takes_our_rulesets_and_reads_them_as_written_here", || {
        let host = Host::new();
        let rulesets = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/rulesets");
        for (plan, text) in [(client(), "client.nft"), (gateway(), "gateway.nft")] {
            let only = Plan { firewalls: plan.firewalls, ..Plan::default() };
            let guard = apply(&only, &host.journal()).unwrap();
            let ours = run("nft", &["-s", "list", "ruleset"]);
            guard.undo().unwrap();
            run("nft", &["-f", rulesets.join(text).to_str().unwrap()]);
            let expected = run("nft", &["-s", "list", "ruleset"]);
            run("nft", &["flush", "ruleset"]);
            assert_eq!(ours, expected);
        }
    });
}

#[test]
fn the_kernel_takes_every_shape_of_gateway_ruleset() {
    in_namespace("the_kernel_takes_every_shape_of_gateway_ruleset", || {
        let host = Host::new();
        let Some(Firewall::Gateway(full)) = gateway().firewalls.pop() else { unreachable!() };
        for shape in 0..16 {
            let bit = |bit: u32| shape & (1 << bit) != 0;
            let mut firewall = full.clone();
            firewall.link = "vpn-1.x".into();
            firewall.masquerade = bit(0);
            firewall.client_to_client = bit(1);
            firewall.inside.retain(|net| bit(2) || net.addr().is_ipv4());
            if bit(3) {
                firewall.listeners.clear();
                firewall.denied =
                    ["0.0.0.0/0", "::/0", "10.0.0.1/32", "fc00::/7"].map(|it| it.parse().unwrap()).to_vec();
            }
            let plan = Plan { firewalls: vec![Firewall::Gateway(firewall)], ..Plan::default() };
            let guard =
                apply(&plan, &host.journal()).unwrap_or_else(|error| panic!("shape {shape}: {error}"));
            guard.undo().unwrap();
        }
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
fn a_journal_of_another_living_namespace_is_not_undone_here() {
    in_namespace("a_journal_of_another_living_namespace_is_not_undone_here", || {
        let host = Host::new();
        let plan = Plan {
            addresses: vec![Address { link: "lo".into(), address: "10.9.0.2/32".parse().unwrap() }],
            dns: client().dns,
            ..Plan::default()
        };
        apply(&plan, &host.journal()).unwrap().leave();
        let text = fs::read_to_string(host.journal()).unwrap();
        let here = fs::read_link("/proc/self/ns/net").unwrap().display().to_string();
        let mut neighbour = Command::new("unshare").args(["--net", "sleep", "60"]).spawn().unwrap();
        let theirs = format!("/proc/{}/ns/net", neighbour.id());
        let theirs = || fs::read_link(&theirs).unwrap().display().to_string();
        while theirs() == here {
            thread::sleep(Duration::from_millis(1));
        }
        assert!(text.contains(&here));

        fs::write(host.journal(), text.replace(&here, &theirs())).unwrap();
        assert!(matches!(undo_journal(&host.journal()), Err(HostError::OtherNamespace { .. })));
        assert!(host.journal().exists());
        let theirs = theirs();
        neighbour.kill().unwrap();
        neighbour.wait().unwrap();

        fs::write(host.journal(), text.replace(&here, &theirs)).unwrap();
        undo_journal(&host.journal()).unwrap();
        assert!(ip("address show lo").contains("10.9.0.2"), "not the namespace it was made in");
        assert_eq!(
            fs::read_to_string("/etc/resolv.conf").unwrap(),
            RESOLV_CONF,
            "files are files everywhere"
        );
    });
}

#[test]
fn a_namespace_that_got_the_number_of_one_that_is_gone_is_left_alone() {
    in_namespace("a_namespace_that_got_the_number_of_one_that_is_gone_is_left_alone", || {
        let host = Host::new();
        let Ok(cookie) = NetNamespace::cookie_here() else {
            println!("not tried: this kernel tells no cookie");
            return;
        };
        let elsewhere = thread::spawn(|| {
            NetNamespace::unshare().unwrap();
            NetNamespace::cookie_here().unwrap()
        });
        let elsewhere = elsewhere.join().unwrap();
        assert_ne!(elsewhere, cookie);

        apply(&client(), &host.journal()).unwrap().leave();
        let text = fs::read_to_string(host.journal()).unwrap();
        let ours = format!("\"cookie\":{cookie}");
        assert!(text.contains(&ours), "{text}");
        fs::write(host.journal(), text.replace(&ours, &format!("\"cookie\":{elsewhere}"))).unwrap();
        assert!(!adit_host::blocks_left(&host.journal()).unwrap());
        let report = undo_journal(&host.journal()).unwrap();
        assert_eq!(report.undone, ["dns /etc/resolv.conf"], "files are files everywhere");
        assert_eq!(sysctl("net.ipv4.conf.all.src_valid_mark"), "1", "who lives there now has set it");
        assert!(ip("address show adit0").contains("10.9.0.2"));

        // An older adit wrote no cookie.
        fs::write(host.journal(), text.replace(&format!(",{ours}"), "")).unwrap();
        undo_journal(&host.journal()).unwrap();
        assert_eq!(sysctl("net.ipv4.conf.all.src_valid_mark"), "0");
        assert!(!ip("address show adit0").contains("10.9.0.2"));
    });
}

#[test]
fn after_a_reboot_only_files_are_put_back() {
    in_namespace("after_a_reboot_only_files_are_put_back", || {
        let host = Host::new();
        apply(&client(), &host.journal()).unwrap().leave();
        let text = fs::read_to_string(host.journal()).unwrap();
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
        assert!(text.contains(boot.trim()));
        fs::write(host.journal(), text.replace(boot.trim(), "an-earlier-one")).unwrap();
        let report = undo_journal(&host.journal()).unwrap();
        assert_eq!(report.undone, ["dns /etc/resolv.conf"]);
        assert_eq!(fs::read_to_string("/etc/resolv.conf").unwrap(), RESOLV_CONF);
        assert_eq!(sysctl("net.ipv4.conf.all.src_valid_mark"), "1", "what the new boot set is not ours");
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

#[test]
fn ipv6_switched_off_is_said_so() {
    in_namespace("ipv6_switched_off_is_said_so", || {
        let host = Host::new();
        assert!(adit_host::ipv6_enabled());
        set_sysctl("net.ipv6.conf.all.disable_ipv6", "1");
        assert!(!adit_host::ipv6_enabled());
        let before = state();
        let error = apply(&client(), &host.journal()).unwrap_err();
        assert!(matches!(error, HostError::Ipv6Off { .. }), "{error}");
        assert_same(&before);
    });
}

#[test]
fn resolvconf_is_told_where_it_manages_resolv_conf() {
    in_namespace("resolvconf_is_told_where_it_manages_resolv_conf", || {
        let host = Host::new();
        if !Path::new("/usr/sbin/resolvconf").exists() && !Path::new("/sbin/resolvconf").exists() {
            println!("not tried: resolvconf is not installed");
            return;
        }
        run("mount", &["-t", "tmpfs", "tmpfs", "/run"]);
        fs::create_dir("/run/resolvconf").unwrap();
        let mut tell = Command::new("resolvconf").args(["-a", "up0"]).stdin(Stdio::piped()).spawn().unwrap();
        tell.stdin.take().unwrap().write_all(b"nameserver 192.0.2.53\n").unwrap();
        assert!(tell.wait().unwrap().success());
        let before = state();
        assert!(before["resolv.conf"].contains("Generated by resolvconf"), "{}", before["resolv.conf"]);

        let plan = Plan { dns: client().dns, ..Plan::default() };
        let guard = apply(&plan, &host.journal()).unwrap();
        let with = fs::read_to_string("/etc/resolv.conf").unwrap();
        assert!(with.contains("nameserver 10.9.0.1") && !with.contains("192.0.2.53"), "{with}");
        assert_eq!(guard.undo().unwrap().undone, ["dns adit0 servers 10.9.0.1 search inside (resolvconf)"]);
        assert_same(&before);
    });
}

/// Not a test by itself: what `without_rights_the_error_says_to_use_sudo` runs.
#[test]
#[ignore = "run by another test"]
fn applies_and_tells() {
    let Some(journal) = env::var_os(JOURNAL).map(PathBuf::from) else { return };
    let only_route = Plan { routes: client().routes, ..Plan::default() };
    for plan in [client(), gateway(), only_route] {
        match apply(&plan, &journal) {
            Ok(guard) => {
                println!("applied");
                guard.undo().unwrap();
            }
            Err(error) => println!("{error}"),
        }
    }
}

#[test]
fn without_rights_the_error_says_to_use_sudo() {
    in_namespace("without_rights_the_error_says_to_use_sudo", || {
        let host = Host::new();
        ip("link set adit0 up");
        add_ipv6("fd00:9::9/128", "adit0");
        let before = state();
        let told = |wrapper: &[&str]| {
            let mut command = Command::new(wrapper[0]);
            command.args(&wrapper[1..]).arg(env::current_exe().unwrap());
            command.args(["--exact", "applies_and_tells", "--nocapture", "--include-ignored"]);
            let output = command.env(JOURNAL, host.journal()).output().unwrap();
            String::from_utf8(output.stdout).unwrap()
        };
        assert_eq!(told(&["env"]).matches("applied").count(), 3);
        let told = told(&["setpriv", "--bounding-set=-all", "--inh-caps=-all"]);
        assert_eq!(told.matches("permission denied").count(), 3, "{told}");
        assert_eq!(told.matches("sudo").count(), 3, "{told}");
        assert_same(&before);
        assert!(!host.journal().exists());
    });
}

#[test]
fn a_new_guard_takes_over_what_it_wants_of_what_is_left() {
    in_namespace("a_new_guard_takes_over_what_it_wants_of_what_is_left", || {
        let host = Host::new();
        let before = state();
        apply(&gateway(), &host.journal()).unwrap().leave();
        let journal = fs::read_to_string(host.journal()).unwrap();
        let guard = apply(&gateway(), &host.journal()).unwrap();
        let continued = fs::read_to_string(host.journal()).unwrap();
        assert!(continued.starts_with(&journal), "the record of what was there before is kept");
        let (_, added) = continued.split_at(journal.len());
        assert!(!added.contains("sysctl") && !added.contains("firewall"), "{added}");
        guard.undo().unwrap();
        assert_same(&before);
    });
}
