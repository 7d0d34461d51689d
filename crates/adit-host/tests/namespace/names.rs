//! Links of unusual names.

use adit_host::{Block, Firewall, Plan, RepairExtent, SplitFirewall, apply, closes_host};

use super::client_with;
use crate::host::*;

#[test]
fn a_link_may_be_called_like_the_table_of_another_link_and_whatever_else_the_kernel_takes() {
    in_namespace(
        "names::a_link_may_be_called_like_the_table_of_another_link_and_whatever_else_the_kernel_takes",
        || {
            let host = Host::new();
            let before = state();
            let links = ["x", "split_x", "verify", "a=b+c", "a_b_c"];
            let of_client = client_with(Some(Block { allow_lan: false })).firewalls.remove(0);
            let mut firewalls: Vec<Firewall> = links.map(|_| of_client.clone()).to_vec();
            for (firewall, link) in firewalls.iter_mut().zip(links) {
                let Firewall::Client(firewall) = firewall else { panic!("{firewall}") };
                firewall.link = link.to_owned();
            }
            firewalls.push(Firewall::Split(SplitFirewall {
                link: "x".into(),
                addresses: vec![],
                outside_mark: 7,
                inside_mark: None,
                excluded: vec![],
                keeps_dns: false,
            }));
            let plan = Plan { firewalls, ..Plan::default() };
            let mut guard = apply(&plan, &host.journal()).unwrap();
            for link in links {
                assert!(closes_host(link), "{link}");
            }
            let repairs = guard.repair(&RepairExtent::all());
            assert!(repairs.made.is_empty() && repairs.failures.is_empty(), "{repairs:?}");
            // A table for each, and another that nobody flushes.
            let tables = run("nft", &["list", "tables"]);
            assert_eq!(tables.lines().count(), plan.firewalls.len() + links.len(), "{tables}");
            guard.undo().unwrap();
            assert_same(&before);
        },
    );
}
