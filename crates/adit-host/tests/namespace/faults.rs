//! What fails midway is rolled back.

use std::io::Write;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use adit_host::{Block, HostError, Plan, apply};

use super::client_with;
use crate::host::*;

/// A table that belongs to another program, so that loading ours of the same name fails.
#[test]
fn nft_that_fails_midway_rolls_back_what_was_done() {
    in_namespace("faults::nft_that_fails_midway_rolls_back_what_was_done", || {
        let host = Host::new();
        let first = client_with(Some(Block { allow_lan: false }));
        let mut second = first.firewalls.clone();
        let adit_host::Firewall::Client(firewall) = &mut second[0] else { panic!("{first}") };
        firewall.link = "adit1".into();
        let firewalls = [first.firewalls.clone(), second].concat();
        let both = Plan { firewalls, ..first };

        let mut nft = Command::new("nft");
        let mut owner = nft.arg("-i").env("HOME", "/dev/null").stdin(Stdio::piped()).spawn().unwrap();
        owner.stdin.as_mut().unwrap().write_all(b"add table inet adit_adit1 { flags owner; }\n").unwrap();
        let end = Instant::now() + Duration::from_secs(5);
        while !run("nft", &["list", "tables"]).contains("adit_adit1") {
            assert!(Instant::now() < end, "no table");
            thread::sleep(Duration::from_millis(10));
        }
        let before = state();
        let error = apply(&both, &host.journal()).unwrap_err();
        assert!(!matches!(error, HostError::RollbackIncomplete { .. }), "{error}");
        assert!(error.to_string().contains("adit_adit1"), "{error}");
        assert_same(&before);
        assert!(!host.journal().exists());

        owner.kill().unwrap();
        owner.wait().unwrap();
        let before = state();
        apply(&both, &host.journal()).unwrap().undo().unwrap();
        assert_same(&before);
    });
}
