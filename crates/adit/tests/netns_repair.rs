//! What others change of a tunnel's host is made again at once, and told.

mod common;

use std::time::Duration;

use adit_lab::{Host, wait_for};
use serde_json::Value;

use common::SOON;
use common::internet::{Internet, admit, init, start_gateway, status, succeed};
use common::picture::Picture;

/// What a tunnel whose host is changed by others is allowed to take.
const ALLOWED_MILLIS: u64 = 100;
const TIMES: usize = 7;

#[test]
fn what_others_change_is_made_again_within_a_tenth_of_a_second() {
    let net = Internet::new("repair", 1);
    let client = &net.clients[0];
    init(&net.gateway);
    let file = admit(&net.gateway, "tun-0", client, &["--dns", "10.86.0.1"]);
    let _gateway = start_gateway(&net.gateway);
    let before = Picture::of(client);
    succeed(client, &["up", &file]);
    // What a firewall manager does when it is told to read its rules again.
    let reload = client
        .write("reload.nft", "flush ruleset\nadd table inet filter\nadd chain inet filter input\n")
        .unwrap();
    let reload = reload.display().to_string();
    let preference = preference_of_our_rule(client);
    let changes: [(&str, &str, Vec<&str>); 7] = [
        ("rule", "a rule deleted", vec!["ip", "rule", "del", "pref", &preference]),
        ("route", "a route deleted", vec!["ip", "route", "del", "default", "dev", "tun-0", "table", "51820"]),
        (
            "route",
            "a route replaced",
            vec!["ip", "route", "replace", "default", "dev", "eth0", "table", "51820"],
        ),
        ("link", "the link set down", vec!["ip", "link", "set", "tun-0", "down"]),
        ("nft", "nft flush ruleset", vec!["nft", "flush", "ruleset"]),
        ("nft", "a chain flushed", vec!["nft", "flush", "chain", "inet", "adit_tun-0", "output"]),
        ("nft", "a firewall reloaded", vec!["nft", "-f", &reload]),
    ];
    for (kind, name, argv) in &changes {
        let mut took: Vec<u64> = (0..TIMES).map(|_| repair_of(client, kind, argv)).collect();
        took.sort_unstable();
        let (median, last) = (took[TIMES / 2], took[TIMES - 1]);
        println!("{name}: made again after {median} ms (median of {TIMES}; {} to {last})", took[0]);
        // The best of several: a busy machine makes the others late.
        assert!(took[0] <= ALLOWED_MILLIS, "{name}: {took:?}");
    }
    let page = succeed(client, &["status"]).stdout;
    assert!(page.contains("ms after the change"), "{page}");
    client.exec(["nft", "delete", "table", "inet", "filter"]).unwrap();
    succeed(client, &["down"]);
    before.assert_again(client);
}

/// How long the program says it took to mend what this command changes, from when it was told.
fn repair_of(client: &Host, kind: &str, argv: &[&str]) -> u64 {
    let repairs = |status: &Value| status["host"]["repairs"].as_u64().unwrap();
    let before = repairs(&status(client));
    client.exec(argv.iter().copied()).unwrap();
    let mended = || {
        let status = status(client);
        let new = usize::try_from(repairs(&status) - before).unwrap();
        let last = status["host"]["last_repairs"].as_array().unwrap();
        last.iter().rev().take(new).find_map(|it| {
            let is_it = it["made_again"].as_str().unwrap().starts_with(kind);
            is_it.then(|| it["after_millis"].as_u64().unwrap())
        })
    };
    let took = wait_for(format!("{argv:?} to be mended"), SOON, mended).unwrap();
    // The kernel tells what went with it in events of their own, and those have to be over.
    let settled = || {
        let before = repairs(&status(client));
        std::thread::sleep(Duration::from_millis(150));
        (repairs(&status(client)) == before).then_some(())
    };
    wait_for("everything to be mended", SOON, settled).unwrap();
    took
}

fn preference_of_our_rule(client: &Host) -> String {
    let rules = client.ip(["rule"]).unwrap().stdout;
    let ours = rules.lines().find(|line| line.contains("51820")).expect("a rule of ours");
    ours.split(':').next().unwrap().to_owned()
}

/// Stops and starts a service that loads rules: two flushes within some milliseconds.
#[test]
fn a_kill_switch_survives_flush_upon_flush_and_the_end_of_the_process_that_holds_its_copy() {
    let net = Internet::new("reflush", 1);
    let client = &net.clients[0];
    init(&net.gateway);
    let file = admit(&net.gateway, "tun-0", client, &[]);
    let _gateway = start_gateway(&net.gateway);
    succeed(client, &["up", &file]);
    let shown = |table: &str| client.attempt(["nft", "-s", "list", "table", "inet", table]).unwrap().stdout;
    let (table, copy) = (shown("adit_tun-0"), shown("adit-held_tun-0"));
    assert!(!table.is_empty() && !copy.is_empty());
    for gap in ["0", "0.005", "0.01", "0.02", "0.03", "0.05"] {
        client.exec(["sh", "-c", &format!("nft flush ruleset; sleep {gap}; nft flush ruleset")]).unwrap();
        wait_for(format!("the table after {gap} s"), SOON, || (shown("adit_tun-0") == table).then_some(()))
            .unwrap();
        assert_eq!(status(client)["host"]["kill_switch_missing"], false);
    }
    let helpers = client.exec(["sh", "-c", "ip netns pids \"$(ip netns identify)\""]).unwrap().stdout;
    let is_helper = |pid: &&str| {
        std::fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|it| it.contains("nft\0-j\0-i"))
    };
    let helper = helpers.lines().find(is_helper).expect("a process that holds the copy").to_owned();
    client.exec(["kill", "-9", &helper]).unwrap();
    wait_for("the copy to be held again", SOON, || (shown("adit-held_tun-0") == copy).then_some(())).unwrap();
    succeed(client, &["down"]);
}

#[test]
fn servers_that_others_write_down_are_replaced_at_once_and_return_later() {
    let net = Internet::new("redns", 1);
    let client = &net.clients[0];
    init(&net.gateway);
    let file = admit(&net.gateway, "tun-0", client, &["--dns", "10.86.0.1"]);
    let _gateway = start_gateway(&net.gateway);
    let read = || client.exec(["cat", "/etc/resolv.conf"]).unwrap().stdout;
    let original = read();
    succeed(client, &["up", &file]);
    let ours = read();
    assert!(ours.contains("nameserver 10.86.0.1"), "{ours}");
    let mut write = "echo nameserver 192.0.2.98 > /etc/resolv.conf";
    for servers in ["192.0.2.98", "192.0.2.99"] {
        client.exec(["sh", "-c", write]).unwrap();
        let again = || {
            let last = status(client)["host"]["last_repairs"].as_array().unwrap().last().cloned();
            last.filter(|it| it["made_again"].as_str().unwrap().starts_with("dns") && read() == ours)
        };
        let repair = wait_for(format!("our servers in the place of {servers}"), SOON, again).unwrap();
        println!("{servers}: {repair}");
        write = "echo nameserver 192.0.2.99 > /etc/resolv.conf";
    }
    wait_for("the second to be told", SOON, || {
        (status(client)["host"]["repairs"].as_u64().unwrap() >= 2).then_some(())
    })
    .unwrap();
    succeed(client, &["down"]);
    assert_eq!(read(), "nameserver 192.0.2.99\n", "what others wrote meanwhile is theirs, not {original:?}");
}
