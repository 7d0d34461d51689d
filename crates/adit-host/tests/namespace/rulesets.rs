//! Our tables in the kernel, beside those of others.

use std::path::Path;

use adit_host::{Firewall, Plan, apply};

use super::{client, gateway};
use crate::host::*;

#[test]
fn a_chain_of_others_that_drops_what_we_forward_is_found() {
    in_namespace("rulesets::a_chain_of_others_that_drops_what_we_forward_is_found", || {
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

#[test]
fn the_kernel_takes_our_rulesets_and_reads_them_as_written_here() {
    in_namespace("rulesets::the_kernel_takes_our_rulesets_and_reads_them_as_written_here", || {
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
    in_namespace("rulesets::the_kernel_takes_every_shape_of_gateway_ruleset", || {
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
