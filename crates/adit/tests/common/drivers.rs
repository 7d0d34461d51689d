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

/// The key of the driver of that number.
pub fn secret(number: u8) -> StaticSecret {
    StaticSecret::from_bytes([number; 32])
}

/// A driver with one peer, on a device `adit0` that is up.
pub fn start(host: &Host, number: u8, suite: Suite, offload: bool, lanes: usize) -> Driver {
    let namespace = NetNamespace::open(format!("/run/netns/{}", host.namespace()).as_ref()).unwrap();
    let driver = thread::spawn(move || {
        namespace.enter().unwrap();
        let tun = Tun::create(&TunConfig { name: Some("adit0".into()), queues: lanes, offload }).unwrap();
        Driver::start(DriverConfig { tun, listen_port: 51_820, fwmark: 0, offload }).unwrap()
    });
    let driver = driver.join().unwrap();
    let secrets = [1u8, 2].map(secret);
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

/// Hosts `a` and `b` on one cable.
pub fn pair(name: &str) -> (Lab, Host, Host) {
    let lab = super::lab(name);
    let (a, b) = (lab.host("a").unwrap(), lab.host("b").unwrap());
    let end = |host: &Host, number| End::new(host, "eth0").address(format!("192.0.2.{number}/24"));
    lab.connect(end(&a, 1), end(&b, 2)).unwrap();
    (lab, a, b)
}
