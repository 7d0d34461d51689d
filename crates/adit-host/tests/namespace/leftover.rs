//! What a process that was killed leaves, and who undoes it.

use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::Duration;

use adit_host::{Address, HostError, Plan, apply, undo_journal};
use adit_io::sys::NetNamespace;

use super::{JOURNAL, client, gateway, wait_until_applied};
use crate::host::*;

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
    in_namespace("leftover::undo_journal_puts_back_what_a_killed_process_left", || {
        let host = Host::new();
        let before = state();
        let mut child = again("leftover::applies_and_waits", &[(JOURNAL, &host.journal())]);
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
    in_namespace("leftover::a_process_killed_at_any_moment_leaves_nothing_that_cannot_be_undone", || {
        let host = Host::new();
        let before = state();
        let mut half_made = 0;
        for (recorded, delay_ms) in (1..=14).flat_map(|lines| [(lines, 0), (lines, 2)]) {
            let mut child = again("leftover::applies_and_waits", &[(JOURNAL, &host.journal())]);
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
fn undoing_twice_is_undoing_once() {
    in_namespace("leftover::undoing_twice_is_undoing_once", || {
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
    in_namespace("leftover::a_dropped_guard_undoes_and_a_new_one_first_undoes_what_is_left", || {
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
fn a_new_guard_takes_over_what_it_wants_of_what_is_left() {
    in_namespace("leftover::a_new_guard_takes_over_what_it_wants_of_what_is_left", || {
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

#[test]
fn a_journal_of_another_living_namespace_is_not_undone_here() {
    in_namespace("leftover::a_journal_of_another_living_namespace_is_not_undone_here", || {
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
    in_namespace("leftover::a_namespace_that_got_the_number_of_one_that_is_gone_is_left_alone", || {
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
    in_namespace("leftover::after_a_reboot_only_files_are_put_back", || {
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
