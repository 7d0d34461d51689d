//! The driver alone: two of them in namespaces of their own, on real TUN devices and sockets.

mod common;

use std::sync::{Mutex, PoisonError};
use std::thread;

use adit_proto::event::Command;
use adit_proto::suite::Suite;

use common::SOON;
use common::drivers::{pair, start};

/// One test counts what the process has open, so the other waits.
static ALONE: Mutex<()> = Mutex::new(());

#[test]
fn two_drivers_ping_each_other_in_both_suites_with_and_without_offload() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    for (suite, offload, lanes) in [
        (Suite::Aes256Gcm, true, 1),
        (Suite::ChaCha20Poly1305, true, 1),
        (Suite::Aes256Gcm, false, 1),
        (Suite::Aes256Gcm, true, 2),
    ] {
        let (_lab, a, b) = pair("driver");
        let left = start(&a, 1, suite, offload, lanes);
        let right = start(&b, 2, suite, offload, lanes);
        assert_eq!(a.ping("10.0.0.2", 3).unwrap(), 3, "{suite} {offload} {lanes}");
        assert_eq!(b.ping("fd00::1", 3).unwrap(), 3, "{suite} {offload} {lanes}");
        let server = b.spawn(["iperf3", "-s", "-1"]).unwrap();
        thread::sleep(std::time::Duration::from_millis(300));
        let report = a.exec(["iperf3", "-c", "10.0.0.2", "-t", "2", "-J"]).unwrap().json().unwrap();
        let received = report["end"]["sum_received"]["bytes"].as_f64().unwrap();
        println!("{suite} offload {offload} lanes {lanes}: {:.2} Gb/s", received * 4.0 / 1e9);
        assert!(received > 1e6);
        drop(server);
        println!("{:?}", left.snapshot().drops);
        println!("{:?}", right.snapshot().drops);
        left.stop();
        right.stop();
        assert!(!a.has_interface("adit0"));
    }
}

#[test]
fn a_peer_without_offloads_gets_whole_packets_from_one_with_them() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    for suite in [Suite::Aes256Gcm, Suite::ChaCha20Poly1305] {
        let (_lab, a, b) = pair("mixed");
        let (left, right) = (start(&a, 1, suite, true, 1), start(&b, 2, suite, false, 1));
        assert_eq!(a.ping("10.0.0.2", 3).unwrap(), 3);
        for (from, to, address) in
            [(&a, &b, "10.0.0.2"), (&b, &a, "10.0.0.1"), (&a, &b, "fd00::2"), (&b, &a, "fd00::1")]
        {
            let mut server = to.spawn(["iperf3", "-s", "-1", "--forceflush"]).unwrap();
            server.wait_for_text("Server listening", SOON).unwrap();
            let tcp = from.exec(["iperf3", "-c", address, "-n", "20M", "-J"]).unwrap().json().unwrap();
            let received = tcp["end"]["sum_received"]["bytes"].as_f64().unwrap();
            assert!(received > 5e6, "{suite} {address}: {received}");
            server.end();
            let mut server = to.spawn(["iperf3", "-s", "-1", "--forceflush"]).unwrap();
            server.wait_for_text("Server listening", SOON).unwrap();
            let argv = ["iperf3", "-u", "-c", address, "-b", "20M", "-l", "1300", "-t", "1", "-J"];
            let udp = from.exec(argv).unwrap().json().unwrap();
            let sum = &udp["end"]["sum"];
            let [packets, lost] = ["packets", "lost_packets"].map(|name| sum[name].as_u64().unwrap());
            assert!(packets > 500 && lost < packets / 10, "{suite} {address}: {lost} of {packets} lost");
            server.end();
        }
        left.stop();
        right.stop();
    }
}

#[test]
fn r23_drivers_end_under_load_and_leave_no_thread_descriptor_or_device() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let (_lab, a, b) = pair("races");
    let count = |what: &str| std::fs::read_dir(format!("/proc/self/{what}")).unwrap().count();
    let right = start(&b, 2, Suite::Aes256Gcm, true, 2);
    let mut before = None;
    for round in 0..12 {
        let left = start(&a, 1, Suite::Aes256Gcm, true, 1 + round % 2);
        let mut flood = a.spawn(["ping", "-f", "-q", "10.0.0.2"]).unwrap();
        assert_eq!(a.ping("fd00::2", 2).unwrap(), 2, "round {round}");
        left.apply(vec![Command::RemoveAllPeers]);
        left.stop();
        assert!(!a.has_interface("adit0"), "round {round}");
        flood.end();
        drop(flood);
        let now = (count("task"), count("fd"));
        assert_eq!(*before.get_or_insert(now), now, "threads and descriptors in round {round}");
    }
    right.stop();
}
