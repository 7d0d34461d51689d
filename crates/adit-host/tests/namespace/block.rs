//! The kill switch, the preview of a plan, and the repair of what others change.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use adit_host::{
    Block, Change, Firewall, Guard, Lockdown, Plan, RepairExtent, Repaired, Repairs, Step, apply,
    blocks_left, preview, undo_journal, undo_journal_but_blocks, watch,
};

use super::host::*;
use super::{client, client_with, dev, route_to};

#[test]
fn the_kernel_takes_every_shape_of_kill_switch_and_gives_it_back() {
    in_namespace("block::the_kernel_takes_every_shape_of_kill_switch_and_gives_it_back", || {
        let host = Host::new();
        for block in [None, Some(false), Some(true)] {
            let block = block.map(|allow_lan| Block { allow_lan });
            let before = state();
            let guard = apply(&client_with(block), &host.journal()).unwrap();
            let drops = run("nft", &["list", "ruleset"]).matches("policy drop").count();
            // Four chains, and their twins.
            assert_eq!(drops, if block.is_some() { 8 } else { 0 });
            guard.undo().unwrap();
            assert_same(&before);
        }
        for allow_lan in [false, true] {
            let lockdown = Firewall::Lockdown(Lockdown { fwmark: 7, allow_lan });
            let plan = Plan { firewalls: vec![lockdown], ..Plan::default() };
            apply(&plan, &host.journal()).unwrap().undo().unwrap();
        }
    });
}

#[test]
fn a_block_outlives_every_end_but_the_one_that_was_asked_for() {
    in_namespace("block::a_block_outlives_every_end_but_the_one_that_was_asked_for", || {
        let host = Host::new();
        let before = state();
        let plan = || client_with(Some(Block { allow_lan: false }));
        let blocks = || run("nft", &["list", "ruleset"]).contains("policy drop");
        let rules = || ip("route show table all").contains("unreachable default table 51820");

        apply(&plan(), &host.journal()).unwrap().leave();
        assert!(blocks_left(&host.journal()).unwrap());
        assert_eq!(undo_journal_but_blocks(&host.journal()).unwrap().kept.len(), 1);
        assert!(blocks() && !rules(), "everything else is as it was");

        // A start that fails leaves closed what it found closed.
        let mut wrong = plan();
        wrong.routes.push(route_to("10.99.0.0/24", dev("nowhere")));
        assert!(apply(&wrong, &host.journal()).is_err());
        assert!(blocks() && !rules());
        drop(apply(&plan(), &host.journal()).unwrap());
        assert!(blocks() && !rules());
        assert_eq!(apply(&plan(), &host.journal()).unwrap().undo_but_blocks().unwrap().kept.len(), 1);
        assert!(blocks() && blocks_left(&host.journal()).unwrap());

        undo_journal(&host.journal()).unwrap();
        assert_same(&before);
        assert!(!blocks_left(&host.journal()).unwrap());

        // What was open is open again after a start that fails.
        assert!(apply(&wrong, &host.journal()).is_err());
        assert_same(&before);
        drop(apply(&plan(), &host.journal()).unwrap());
        assert_same(&before);
    });
}

#[test]
fn a_block_that_others_took_away_is_there_again_before_the_rest_is_undone() {
    in_namespace("block::a_block_that_others_took_away_is_there_again_before_the_rest_is_undone", || {
        let host = Host::new();
        let before = state();
        let plan = || client_with(Some(Block { allow_lan: false }));
        let blocks = || adit_host::closes_host("adit0");
        apply(&plan(), &host.journal()).unwrap().leave();
        assert!(blocks());
        run("nft", &["flush", "ruleset"]);
        assert!(!blocks());
        assert_eq!(undo_journal_but_blocks(&host.journal()).unwrap().kept.len(), 1);
        assert!(blocks() && !run("nft", &["list", "ruleset"]).contains("oifname \"adit0\" accept"));
        // The tunnel that comes puts its own in that place.
        drop(apply(&plan(), &host.journal()).unwrap());
        assert!(run("nft", &["list", "ruleset"]).contains("oifname \"adit0\" accept"));
        undo_journal(&host.journal()).unwrap();
        assert_same(&before);
    });
}

#[test]
fn a_block_that_is_put_in_place_by_another_plan_is_known_to_the_journal() {
    in_namespace("block::a_block_that_is_put_in_place_by_another_plan_is_known_to_the_journal", || {
        let host = Host::new();
        let before = state();
        let mut guard = apply(&client(), &host.journal()).unwrap();
        guard.change_to(&client_with(Some(Block { allow_lan: true }))).unwrap();
        guard.leave();
        assert!(blocks_left(&host.journal()).unwrap());
        assert_eq!(undo_journal_but_blocks(&host.journal()).unwrap().kept.len(), 1);
        undo_journal(&host.journal()).unwrap();
        assert_same(&before);
    });
}

#[test]
fn a_preview_tells_what_applying_does_and_does_nothing() {
    in_namespace("block::a_preview_tells_what_applying_does_and_does_nothing", || {
        let host = Host::new();
        let before = state();
        let plan = client_with(Some(Block { allow_lan: false }));
        let steps = |plan: &Plan| preview(plan).unwrap().iter().map(|it| it.step).collect::<Vec<_>>();
        let all = steps(&plan);
        assert_eq!(all.len(), plan.changes().count());
        assert!(all.iter().all(|step| matches!(step, Step::Add | Step::Replace)), "{all:?}");
        assert_same(&before);

        let guard = apply(&plan, &host.journal()).unwrap();
        let applied = state();
        for shown in preview(&plan).unwrap() {
            let again = matches!(shown.change, Change::Firewall(_) | Change::Dns(_));
            assert_eq!(shown.step == Step::Nothing, !again, "{shown}");
        }
        assert_same(&applied);
        guard.undo().unwrap();
        assert_same(&before);

        // A route of others in the way is told, and the link that is yet to come is no trouble.
        ip("route add default dev up0 table 51820");
        let with_conflict = preview(&plan).unwrap();
        assert!(with_conflict.iter().any(|it| it.step == Step::Refused && it.text.contains("51820")));
        ip("route flush table 51820");
        ip("link del adit0");
        assert!(steps(&plan).iter().all(|step| matches!(step, Step::Add | Step::Replace)));
    });
}

fn repaired_by(guard: &mut Guard, extent: &RepairExtent) -> Vec<Repaired> {
    let Repairs { made, failures } = guard.repair(extent);
    assert!(failures.is_empty(), "{failures:?}");
    made
}

#[test]
fn what_others_take_away_is_made_again() {
    in_namespace("block::what_others_take_away_is_made_again", || {
        let host = Host::new();
        let (sender, events) = mpsc::channel();
        watch(move |event| sender.send(event).is_ok()).unwrap();
        let mut guard = apply(&client_with(Some(Block { allow_lan: true })), &host.journal()).unwrap();
        assert_eq!(repaired_by(&mut guard, &RepairExtent::all()), []);
        let shown = || {
            let mut shown = state();
            // Handles, and the order of tables, are new for a table that was loaded again.
            let mut listed: Vec<String> =
                run("nft", &["-s", "list", "ruleset"]).split("\n}\n").map(str::to_owned).collect();
            listed.sort();
            shown.insert("nft".into(), listed.concat());
            shown
        };
        let before = shown();
        let changes = [
            "nft flush ruleset",
            "nft delete rule inet adit_adit0 output handle 14",
            "nft insert rule inet adit_adit0 output accept",
            "ip rule del pref 32764",
            "ip -6 rule del pref 32764",
            "ip route del default table 51820",
            "ip route replace default dev up0 table 51820",
            "ip address del 10.9.0.2/32 dev adit0",
            "ip link set adit0 down",
        ];
        for change in changes {
            while events.try_recv().is_ok() {}
            let words: Vec<&str> = change.split(' ').collect();
            run(words[0], &words[1..]);
            let mut repaired = Vec::new();
            let started = Instant::now();
            while repaired.is_empty() {
                let event =
                    events.recv_timeout(Duration::from_secs(5)).unwrap_or_else(|_| panic!("{change}"));
                let extent = guard.concern_of(&event);
                repaired = repaired_by(&mut guard, &extent);
            }
            println!("{change}: {} ms: {repaired:?}", started.elapsed().as_millis());
            // What the kernel takes along arrives in events of its own.
            let settled = Instant::now() + Duration::from_secs(5);
            while !difference(&before, &shown()).is_empty() && Instant::now() < settled {
                if let Ok(event) = events.recv_timeout(Duration::from_millis(50)) {
                    let extent = guard.concern_of(&event);
                    repaired_by(&mut guard, &extent);
                }
            }
            let left = difference(&before, &shown());
            assert!(left.is_empty(), "{change}\n{}", left.join("\n"));
        }
        assert_eq!(repaired_by(&mut guard, &RepairExtent::all()), []);
    });
}
