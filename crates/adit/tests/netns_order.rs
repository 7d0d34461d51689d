//! Datagrams on a path that loses none: all arrive, in order, also while keys change.
//!
//! The usual run is short and slow, for busy machines. With `ADIT_ORDER_SECS=60` each number of lanes is put to the test
//! for so long, at 90 % of the highest rate that was found to lose less than 0.1 %; that wants a release build and a quiet machine.

mod common;

use std::thread;
use std::time::Duration;

use adit_lab::{Host, Process, wait_for};
use adit_proto::event::Command;
use adit_proto::suite::Suite;
use serde_json::Value;

use common::SOON;
use common::drivers::{pair, secret, start};

const BYTES: &str = "512";
/// Long enough that a rate is no burst that queues swallow.
const TRIAL_MILLIS: u64 = 10_000;
const SLOW_PER_SEC: f64 = 4_000.0;

fn counter(host: &Host, port: usize) -> Process {
    let mut counter = host.agent(["udp-counter", "--listen", &format!("10.0.0.2:{port}")]).spawn().unwrap();
    counter.wait_for_text("listening on", SOON).unwrap();
    counter
}

/// Sends to every counter at once, as many packets a second to each; what was lost and overtaken.
fn send(from: &Host, ports: &[usize], per_sec: f64, millis: u64) -> Vec<Value> {
    let (per_sec, trial_ms) = (per_sec.to_string(), millis.to_string());
    thread::scope(|scope| {
        let send = |port: &usize| {
            let address = format!("10.0.0.2:{port}");
            let argv =
                ["udp-rate", &address, "--bytes", BYTES, "--per-sec", &per_sec, "--trial-ms", &trial_ms];
            let patience = Duration::from_millis(millis) + 2 * SOON;
            from.agent(argv).deadline(patience).exec().unwrap().json().unwrap()
        };
        let flows: Vec<_> = ports.iter().map(|port| scope.spawn(move || send(port))).collect();
        flows.into_iter().map(|flow| flow.join().unwrap()).collect()
    })
}

/// The highest rate that all flows together keep up for `TRIAL_MILLIS`, losing less than 0.1 %.
fn reached(from: &Host, to: &Host, flows: usize) -> f64 {
    let ports: Vec<usize> = (0..flows).map(|flow| 5_200 + 2 * flow).collect();
    let mut counters: Vec<Process> = ports.iter().map(|port| counter(to, *port)).collect();
    let (mut kept, mut too_fast) = (SLOW_PER_SEC, f64::INFINITY);
    let mut rate = 50_000.0;
    while too_fast / kept > 1.05 {
        let reports = send(from, &ports, rate / flows as f64, TRIAL_MILLIS);
        let all = |name: &str| reports.iter().map(|it| it[name].as_f64().unwrap()).sum::<f64>();
        // A sender that is itself too slow for the rate has found the limit as well.
        let asked = rate * TRIAL_MILLIS as f64 / 1e3;
        let is_kept = all("lost_packets") < 0.001 * all("sent") && all("sent") > 0.98 * asked;
        if is_kept {
            kept = rate
        } else {
            too_fast = rate
        }
        rate = if too_fast.is_finite() { (kept + too_fast) / 2.0 } else { kept * 1.6 };
    }
    counters.iter_mut().for_each(Process::end);
    kept
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
    let secs = long.unwrap_or(8);
    for lanes in [1, 2, 4] {
        let (_lab, a, b) = pair("order");
        let left = start(&a, 1, Suite::Aes256Gcm, true, lanes);
        let right = start(&b, 2, Suite::Aes256Gcm, true, lanes);
        for host in [&a, &b] {
            // The queue of the device is part of the path; it is to outlast the pauses that a shared machine makes.
            host.ip(["link", "set", "adit0", "txqueuelen", "200000"]).unwrap();
        }
        assert_eq!(a.ping("10.0.0.2", 3).unwrap(), 3);
        let handshake = || left.snapshot().peers[0].last_handshake;
        let first = handshake();
        assert!(first.is_some());
        let total = if long.is_some() { 0.9 * reached(&a, &b, lanes) } else { SLOW_PER_SEC };
        let ports: Vec<usize> = (0..lanes).map(|flow| 5_300 + 2 * flow).collect();
        let mut counters: Vec<Process> = ports.iter().map(|port| counter(&b, *port)).collect();
        let lost = || {
            let drops = (left.snapshot().drops, right.snapshot().drops);
            format!("{drops:?} {} | {}", lost_by_the_kernel(&a), lost_by_the_kernel(&b))
        };
        let lost_before = lost();
        let reports = thread::scope(|scope| {
            let sent = scope.spawn(|| send(&a, &ports, total / lanes as f64, secs * 1_000));
            thread::sleep(Duration::from_secs(secs) / 2);
            // Each side begins at most one handshake in five seconds, and may have begun one at the start.
            wait_for("other keys", Duration::from_secs(6), || {
                right.apply(vec![Command::Initiate(secret(1).public_key())]);
                (handshake() > first).then_some(())
            })
            .unwrap();
            assert!(!sent.is_finished(), "they changed in between");
            sent.join().unwrap()
        });
        println!("{lanes} lanes, {total:.0} packets/s for {secs} s: {reports:?}");
        println!("lost on the way, before: {lost_before}");
        println!("lost on the way, after:  {}", lost());
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
