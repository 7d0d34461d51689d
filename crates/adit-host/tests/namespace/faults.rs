//! What fails midway is rolled back, and what fails alone keeps nothing else from being mended.

use std::env;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use adit_host::{Block, Hop, HostError, HostEvent, Link, Plan, RepairExtent, Sysctl, apply};

use super::{JOURNAL, client, client_with, dev, gateway, route_to};
use crate::host::*;

/// The tables `adit_adit0` and `adit_adit1`, in this order, and what else a client needs.
fn two_tables() -> Plan {
    let first = client_with(Some(Block { allow_lan: false }));
    let mut second = first.firewalls.clone();
    let adit_host::Firewall::Client(firewall) = &mut second[0] else { panic!("{first}") };
    firewall.link = "adit1".into();
    let firewalls = [first.firewalls.clone(), second].concat();
    Plan { firewalls, ..first }
}

/// A table that belongs to another program, so that loading ours of the same name fails.
fn owner_of(table: &str) -> Child {
    let mut nft = Command::new("nft");
    let mut owner = nft.arg("-i").env("HOME", "/dev/null").stdin(Stdio::piped()).spawn().unwrap();
    let line = format!("add table inet {table} {{ flags owner; }}\n");
    owner.stdin.as_mut().unwrap().write_all(line.as_bytes()).unwrap();
    let end = Instant::now() + Duration::from_secs(5);
    while !run("nft", &["list", "tables"]).contains(table) {
        assert!(Instant::now() < end, "no table");
        thread::sleep(Duration::from_millis(10));
    }
    owner
}

fn end(mut owner: Child) {
    owner.kill().unwrap();
    owner.wait().unwrap();
}

#[test]
fn nft_that_fails_midway_rolls_back_what_was_done() {
    in_namespace("faults::nft_that_fails_midway_rolls_back_what_was_done", || {
        let host = Host::new();
        let owner = owner_of("adit_adit1");
        let before = state();
        let error = apply(&two_tables(), &host.journal()).unwrap_err();
        assert!(!matches!(error, HostError::RollbackIncomplete { .. }), "{error}");
        assert!(error.to_string().contains("adit_adit1"), "{error}");
        assert_same(&before);
        assert!(!host.journal().exists());

        end(owner);
        let before = state();
        apply(&two_tables(), &host.journal()).unwrap().undo().unwrap();
        assert_same(&before);
    });
}

#[test]
fn nft_that_hangs_midway_is_ended_and_rolls_back_what_was_done() {
    in_namespace("faults::nft_that_hangs_midway_is_ended_and_rolls_back_what_was_done", || {
        let host = Host::new();
        let nft = run("sh", &["-c", "command -v nft"]);
        let (real, hanging) = (host.journal_of("real"), host.journal_of("hanging"));
        for path in [&real, &hanging] {
            fs::create_dir(path.parent().unwrap()).unwrap();
        }
        fs::copy(nft.trim(), &real).unwrap();
        // It loads the first table, hangs over the second, and works from then on.
        let script = format!(
            "#!/bin/sh\ncase \"$*\" in *-f*)\n echo >> /run/loads\n \
             [ $(wc -l < /run/loads) = 2 ] && exec sleep 600 ;;\nesac\nexec {} \"$@\"\n",
            real.display()
        );
        fs::write(&hanging, script).unwrap();
        fs::set_permissions(&hanging, fs::Permissions::from_mode(0o755)).unwrap();
        let before = state();
        run("mount", &["--bind", &hanging.display().to_string(), nft.trim()]);

        let started = Instant::now();
        let error = apply(&two_tables(), &host.journal()).unwrap_err();
        assert!(started.elapsed() < Duration::from_secs(60), "{:?}", started.elapsed());
        assert!(matches!(error, HostError::ProgramHung { .. }), "{error}");
        let told = error.to_string();
        assert!(told.contains("adit_adit1") && told.contains("did not end in 15 s"), "{told}");
        assert_same(&before);
        assert!(!host.journal().exists());

        // The control: with an nft that does not hang the same plan is made.
        apply(&two_tables(), &host.journal()).unwrap().undo().unwrap();
        assert_same(&before);
    });
}

#[test]
fn a_table_that_cannot_be_made_again_keeps_no_other_from_it() {
    in_namespace("faults::a_table_that_cannot_be_made_again_keeps_no_other_from_it", || {
        let host = Host::new();
        let before = state();
        let mut guard = apply(&two_tables(), &host.journal()).unwrap();
        assert!(guard.repair(&RepairExtent::all()).made.is_empty() && guard.is_closed());
        let cut = |table: &str| HostEvent::Firewall { table: table.to_owned(), cut: true };
        let told = guard.concern_of(&cut("adit_adit0")).and(guard.concern_of(&cut("adit_adit1")));
        for extent in [told, RepairExtent::all()] {
            run("nft", &["flush", "ruleset"]);
            let owner = owner_of("adit_adit0");
            let repairs = guard.repair(&extent);
            let [failure] = &repairs.failures[..] else { panic!("{repairs:?}") };
            assert!(failure.to_string().contains("adit_adit0"), "{failure}");
            let [made] = &repairs.made[..] else { panic!("{repairs:?}") };
            assert!(made.what.contains("adit_adit1"), "{repairs:?}");
            assert!(adit_host::closes_host("adit1") && !guard.is_closed());

            end(owner);
            let repairs = guard.repair(&guard.concern_of_time());
            assert!(repairs.failures.is_empty(), "{repairs:?}");
            assert!(repairs.made.iter().any(|it| it.what.contains("adit_adit0")), "{repairs:?}");
            assert!(adit_host::closes_host("adit0") && guard.is_closed());
        }
        guard.undo().unwrap();
        assert_same(&before);
    });
}

#[test]
fn a_failure_half_way_leaves_nothing() {
    in_namespace("faults::a_failure_half_way_leaves_nothing", || {
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
fn ipv6_switched_off_is_said_so() {
    in_namespace("faults::ipv6_switched_off_is_said_so", || {
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
    in_namespace("faults::without_rights_the_error_says_to_use_sudo", || {
        let host = Host::new();
        ip("link set adit0 up");
        add_ipv6("fd00:9::9/128", "adit0");
        let before = state();
        let told = |wrapper: &[&str]| {
            let mut command = Command::new(wrapper[0]);
            command.args(&wrapper[1..]).arg(env::current_exe().unwrap());
            command.args(["--exact", "faults::applies_and_tells", "--nocapture", "--include-ignored"]);
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
