//! Datagrams on a path that loses none: all arrive, in order, also while keys change.
//!
//! The usual run is short and slow, for busy machines. With `ADIT_ORDER_SECS=60` each number of lanes is put to the test
//! for so long, at 90 % of the highest rate that was found to lose less than 0.1 %; that wants a release build and a quiet machine.

mod common;

use std::thread;
use std::time::Duration;

use adit_lab::{Host, Process};
use adit_proto::event::Command;
use adit_proto::suite::Suite;
use serde_json::Value;

use common::SOON;
use common::drivers::{pair, secret, start};

const BYTES: &str = "512";
/// Long enough that a rate is no burst that queues swallow.
const TRIAL_MS: &str = "5000";
const SLOW_PER_SEC: f64 = 4_000.0;

fn counter(host: &Host, port: usize) -> Process {
    let mut counter = host.agent(["udp-counter", "--listen", &format!("10.0.0.2:{port}")]).spawn().unwrap();
    counter.wait_for_text("listening on", SOON).unwrap();
    counter
}

/// The highest rate of all flows together that is kept up for `TRIAL_MS`: that of the slowest, for each.
fn reached(from: &Host, to: &Host, flows: usize) -> f64 {
    let ports = (0..flows).map(|flow| 5_200 + 2 * flow);
    let mut counters: Vec<Process> = ports.clone().map(|port| counter(to, port)).collect();
    let slowest = thread::scope(|scope| {
        let search = move |port: usize| {
            let address = format!("10.0.0.2:{port}");
            let argv =
                ["udp-rate", &address, "--bytes", BYTES, "--trial-ms", TRIAL_MS, "--lost-percent", "0.1"];
            let found = from.agent(argv).deadline(Duration::from_secs(240)).exec().unwrap().json().unwrap();
            found["packets_per_sec"].as_f64().unwrap()
        };
        let searches: Vec<_> = ports.map(|port| scope.spawn(move || search(port))).collect();
        searches.into_iter().map(|search| search.join().unwrap()).fold(f64::INFINITY, f64::min)
    });
    counters.iter_mut().for_each(Process::end);
    slowest * flows as f64
}

/// What the kernel of a host says that it threw away, for whoever reads a run that failed.
fn lost_by_the_kernel(host: &Host) -> String {
    let mut said = String::new();
    for device in host.ip_json(["-s", "link", "show"]).unwrap().as_array().unwrap() {
        for way in ["rx", "tx"] {
            let dropped = &device["stats64"][way]["dropped"];
            if dropped.as_u64() != Some(0) {
                said.push_str(&format!("{} {way} {dropped} ", device["ifname"]));
            }
        }
    }
    let sockets = host.exec(["cat", "/proc/net/snmp"]).unwrap().stdout;
    // Of all hosts of this machine: what the processors could not queue.
    let backlog = host.exec(["cat", "/proc/net/softnet_stat"]).unwrap().stdout;
    let dropped = |line: &str| -> Option<u64> { u64::from_str_radix(line.split(' ').nth(1)?, 16).ok() };
    said.push_str(&format!("backlog {} ", backlog.lines().filter_map(dropped).sum::<u64>()));
    said + sockets.lines().rfind(|line| line.starts_with("Udp:")).unwrap_or_default()
}

#[test]
fn nothing_is_lost_or_overtaken_at_any_number_of_lanes_while_keys_change() {
    let long: Option<u64> = std::env::var("ADIT_ORDER_SECS").ok().map(|secs| secs.parse().unwrap());
    let secs = long.unwrap_or(3);
    for lanes in [1, 2, 4] {
        let (_lab, a, b) = pair("order");
        let left = start(&a, 1, Suite::Aes256Gcm, true, lanes);
        let right = start(&b, 2, Suite::Aes256Gcm, true, lanes);
        for host in [&a, &b] {
            // The queue of the device is part of the path; by default a pause of some milliseconds fills it.
            host.ip(["link", "set", "adit0", "txqueuelen", "20000"]).unwrap();
        }
        assert_eq!(a.ping("10.0.0.2", 3).unwrap(), 3);
        let handshake = || left.snapshot().peers[0].last_handshake;
        let first = handshake();
        assert!(first.is_some());
        let total = if long.is_some() { 0.9 * reached(&a, &b, lanes) } else { SLOW_PER_SEC };
        let ports: Vec<usize> = (0..lanes).map(|flow| 5_300 + 2 * flow).collect();
        let mut counters: Vec<Process> = ports.iter().map(|port| counter(&b, *port)).collect();
        let (per_sec, trial_ms) = ((total / lanes as f64).to_string(), (secs * 1_000).to_string());
        let reports: Vec<Value> = thread::scope(|scope| {
            let send = |port: &usize| {
                let address = format!("10.0.0.2:{port}");
                let argv =
                    ["udp-rate", &address, "--bytes", BYTES, "--per-sec", &per_sec, "--trial-ms", &trial_ms];
                a.agent(argv).deadline(Duration::from_secs(secs + 30)).exec().unwrap().json().unwrap()
            };
            let flows: Vec<_> = ports.iter().map(|port| scope.spawn(move || send(port))).collect();
            thread::sleep(Duration::from_secs(secs) / 2);
            // The right one, because the left one began the session, and begins at most one in five seconds.
            right.apply(vec![Command::Initiate(secret(1).public_key())]);
            flows.into_iter().map(|flow| flow.join().unwrap()).collect()
        });
        assert!(handshake() > first, "the keys changed in between");
        println!("{lanes} lanes, {total:.0} packets/s for {secs} s: {reports:?}");
        println!("drops: {:?} {:?}", left.snapshot().drops, right.snapshot().drops);
        println!("lost on the way: {} | {}", lost_by_the_kernel(&a), lost_by_the_kernel(&b));
        for report in &reports {
            assert!(report["sent"].as_u64().unwrap() > 100, "{report}");
            assert_eq!(
                (&report["lost_packets"], &report["reordered"]),
                (&0.into(), &0.into()),
                "{lanes} lanes: {report}"
            );
        }
        counters.iter_mut().for_each(Process::end);
        left.stop();
        right.stop();
    }
}
