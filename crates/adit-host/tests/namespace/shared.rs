//! What several gateways and tunnels on one host need in common.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use adit_host::{Dns, HostError, Plan, apply, undo_journal};

use super::{JOURNAL, client, gateway, wait_until_applied};
use crate::host::*;

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
    in_namespace("shared::forwarding_stays_on_until_the_last_gateway_stops", || {
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
    in_namespace("shared::src_valid_mark_stays_on_until_the_last_full_tunnel_stops", || {
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

/// Not a test by itself: what `a_killed_gateway_holds_until_its_journal_is_undone_or_gone` kills.
#[test]
#[ignore = "run by another test"]
fn applies_a_gateway_and_waits() {
    let Some(journal) = env::var_os(JOURNAL).map(PathBuf::from) else { return };
    let _guard = apply(&gateway(), &journal).unwrap();
    println!("applied");
    thread::sleep(Duration::from_secs(60));
}

#[test]
fn a_killed_gateway_holds_until_its_journal_is_undone_or_gone() {
    in_namespace("shared::a_killed_gateway_holds_until_its_journal_is_undone_or_gone", || {
        let host = host_of_two();
        let before = state();
        let kill_first = || {
            let mut child =
                again("shared::applies_a_gateway_and_waits", &[(JOURNAL, &host.journal_of("first"))]);
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
    in_namespace("shared::a_second_tunnel_does_not_take_the_resolver_from_the_first", || {
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
