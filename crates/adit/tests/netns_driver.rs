//! The driver alone: two of them in namespaces of their own, on real TUN devices and sockets.

use std::sync::{Mutex, PoisonError};
use std::thread;

use adit::driver::{Driver, DriverConfig};
use adit_io::sys::NetNamespace;
use adit_io::tun::{Tun, TunConfig};
use adit_lab::{End, Host, Lab};
use adit_proto::allowed_ips::Prefix;
use adit_proto::endpoint::Endpoint;
use adit_proto::event::{AllowedIpChange, Command, PeerUpdate};
use adit_proto::key::StaticSecret;
use adit_proto::suite::Suite;

/// One test counts what the process has open, so the other waits.
static ALONE: Mutex<()> = Mutex::new(());

/// A driver with one peer, on a device `adit0` that is up.
fn start(host: &Host, number: u8, suite: Suite, offload: bool, lanes: usize) -> Driver {
    let namespace = NetNamespace::open(format!("/run/netns/{}", host.namespace()).as_ref()).unwrap();
    let driver = thread::spawn(move || {
        namespace.enter().unwrap();
        let tun = Tun::create(&TunConfig { name: Some("adit0".into()), queues: lanes, offload }).unwrap();
        Driver::start(DriverConfig { tun, listen_port: 51_820, fwmark: 0, offload }).unwrap()
    });
    let driver = driver.join().unwrap();
    let secrets = [1u8, 2].map(|n| StaticSecret::from_bytes([n; 32]));
    let other = 3 - number;
    let mut peer = PeerUpdate::new(secrets[usize::from(other) - 1].public_key());
    peer.suite = Some(suite);
    peer.endpoint = Some(Endpoint::udp(format!("192.0.2.{other}:51820").parse().unwrap()));
    peer.allowed_ips = [format!("10.0.0.{other}/32"), format!("fd00::{other}/128")]
        .map(|prefix| AllowedIpChange::Add(prefix.parse::<Prefix>().unwrap()))
        .to_vec();
    driver.apply(vec![
        Command::SetPrivateKey(Some(secrets[usize::from(number) - 1].clone())),
        Command::SetPeer(peer),
    ]);
    host.add_address("adit0", &format!("10.0.0.{number}/24")).unwrap();
    host.add_address("adit0", &format!("fd00::{number}/64")).unwrap();
    host.ip(["link", "set", "adit0", "mtu", "1420", "up"]).unwrap();
    driver
}

fn pair(name: &str) -> (Lab, Host, Host) {
    let lab = Lab::new(name).unwrap();
    let (a, b) = (lab.host("a").unwrap(), lab.host("b").unwrap());
    let end = |host: &Host, number| End::new(host, "eth0").address(format!("192.0.2.{number}/24"));
    lab.connect(end(&a, 1), end(&b, 2)).unwrap();
    (lab, a, b)
}

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
