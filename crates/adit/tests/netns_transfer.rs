//! What a tunnel carries: pings, TCP and UDP in one flow and many, in packets of every size.

mod common;

use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use adit_lab::{Host, Process, wait_for};
use adit_proto::suite::Suite;
use serde_json::Value;

use common::device::{Device, Program};
use common::peer::{Interface, Peer, place, secret};
use common::{Family, Pair, SOON, download, flood, inside, pair_with_mtu};

use Family::{V4, V6};

/// Two devices; only `left` knows at first where the other is.
struct Tunnel {
    left: Device,
    right: Device,
    a: Peer,
    b: Peer,
    pair: Pair,
}

/// What is chosen of a [`Tunnel`].
#[derive(Clone, Copy, Debug)]
struct Shape {
    suite: Suite,
    outside: Family,
    outside_mtu_bytes: u32,
    inside_mtu_bytes: u32,
}

const SHAPES: [Shape; 2] = [
    Shape { suite: Suite::Aes256Gcm, outside: V4, outside_mtu_bytes: 1500, inside_mtu_bytes: 1420 },
    Shape { suite: Suite::ChaCha20Poly1305, outside: V6, outside_mtu_bytes: 1500, inside_mtu_bytes: 1420 },
];

impl Tunnel {
    fn new(prefix: &str, shape: Shape) -> Self {
        let pair = pair_with_mtu(prefix, shape.outside_mtu_bytes);
        let (a_key, b_key) = (secret(), secret());
        let a = Peer::new(&a_key, 1).suite(shape.suite);
        let b = Peer::new(&b_key, 2).suite(shape.suite).at(place(shape.outside, 2));
        let device = |host, key, number, peer: &Peer| {
            let mut interface = Interface::new(key, number, [peer.clone()]);
            interface.mtu_bytes = shape.inside_mtu_bytes;
            Device::start(Program::Adit, host, &interface)
        };
        let left = device(&pair.a, &a_key, 1, &b);
        let right = device(&pair.b, &b_key, 2, &a);
        Self { left, right, a, b, pair }
    }

    /// Each host with the other's number.
    fn ends(&self) -> [(&Host, u8); 2] {
        [(&self.pair.a, 2), (&self.pair.b, 1)]
    }
}

#[test]
fn ten_pings_are_counted_to_the_byte() {
    for suite in Suite::ALL {
        let tunnel = Tunnel::new("count", Shape { suite, ..SHAPES[0] });
        flood(&tunnel.pair.a, inside(V4, 2), 10);
        // An initiation and ten requests of 84 bytes, padded to 96; a response and ten answers.
        let (sent, received) = (148 + 10 * 128, 92 + 10 * 128);
        let [left, right] = [tunnel.left.shown(&tunnel.b.public), tunnel.right.shown(&tunnel.a.public)];
        assert!([sent, sent + 32].contains(&left.tx_bytes), "perhaps with a keepalive: {left:?}");
        assert_eq!(left.rx_bytes, received);
        assert_eq!((right.rx_bytes, right.tx_bytes), (left.tx_bytes, received));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        for shown in [left, right] {
            assert!(now.abs_diff(shown.last_handshake_unix_secs) < 30, "{shown:?}");
        }
    }
}

#[test]
fn floods_of_pings_come_back_both_ways_in_both_families() {
    for shape in SHAPES {
        let tunnel = Tunnel::new("flood", shape);
        for (host, number) in tunnel.ends() {
            for family in [V4, V6] {
                flood(host, inside(family, number), 500);
            }
        }
    }
}

/// One flow and many inside in the family of the outside, and a few in the other.
fn runs(shape: Shape) -> [(Family, usize); 5] {
    let other = if shape.outside == V4 { V6 } else { V4 };
    [(shape.outside, 1), (shape.outside, 4), (shape.outside, 5), (shape.outside, 50), (other, 5)]
}

fn tcp_in_flows(prefix: &str, shape: Shape) {
    let tunnel = Tunnel::new(prefix, shape);
    let [a, b] = [&tunnel.pair.a, &tunnel.pair.b];
    for family in [V4, V6] {
        download(a, b, inside(family, 2), 10_000_019);
        download(b, a, inside(family, 1), 10_000_019);
    }
    let _server = iperf3_server(b);
    for (family, flows) in runs(shape) {
        iperf3(a, inside(family, 2), flows, &["-t", "1"]);
    }
    iperf3(a, inside(V4, 2), 4, &["-t", "1", "--reverse", "--zerocopy"]);
}

#[test]
fn tcp_arrives_whole_in_one_flow_and_in_many_over_ipv4() {
    tcp_in_flows("tcp4", SHAPES[0]);
}

#[test]
fn tcp_arrives_whole_in_one_flow_and_in_many_over_ipv6() {
    tcp_in_flows("tcp6", SHAPES[1]);
}

/// As fast as it goes: most of it may be lost, but some of each flow has to come.
fn udp_in_flows(prefix: &str, shape: Shape) {
    let tunnel = Tunnel::new(prefix, shape);
    let _server = iperf3_server(&tunnel.pair.b);
    for (family, flows) in runs(shape) {
        iperf3(&tunnel.pair.a, inside(family, 2), flows, &["-t", "1", "-u", "-b", "0", "-l", "1200"]);
    }
}

#[test]
fn udp_arrives_in_one_flow_and_in_many_over_ipv4() {
    udp_in_flows("udp4", SHAPES[0]);
}

#[test]
fn udp_arrives_in_one_flow_and_in_many_over_ipv6() {
    udp_in_flows("udp6", SHAPES[1]);
}

#[test]
fn packets_of_34736_bytes_cross_where_the_outside_takes_them() {
    for shape in SHAPES {
        let inside_mtu_bytes = 34_816 - 1_500 + 1_420;
        let tunnel = Tunnel::new("jumbo", Shape { outside_mtu_bytes: 65_535, inside_mtu_bytes, ..shape });
        for (host, number) in tunnel.ends() {
            let other = if number == 1 { &tunnel.pair.a } else { &tunnel.pair.b };
            for (family, headers) in [(V4, 28), (V6, 48)] {
                let (address, bytes) = (inside(family, number).to_string(), (34_736 - headers).to_string());
                host.exec(["ping", "-n", "-q", "-f", "-c", "20", "-M", "do", "-s", &bytes, &address])
                    .unwrap();
                download(host, other, inside(family, number), 5_000_011);
            }
        }
        let _server = iperf3_server(&tunnel.pair.b);
        for family in [V4, V6] {
            iperf3(&tunnel.pair.a, inside(family, 2), 5, &["-t", "1"]);
            iperf3(&tunnel.pair.a, inside(family, 2), 5, &["-t", "1", "-u", "-b", "0", "-l", "34000"]);
        }
    }
}

/// The kernel's own WireGuard heeds the MTU of routes too, which a device in user space does not see.
#[test]
fn padding_makes_no_packet_larger_than_the_mtu_of_the_device() {
    for suite in Suite::ALL {
        let tunnel = Tunnel::new("padding", Shape { suite, inside_mtu_bytes: 1_300, ..SHAPES[0] });
        let (a, b) = (&tunnel.pair.a, &tunnel.pair.b);
        flood(a, inside(V4, 2), 3);
        // IPv4, UDP, a message of 1300 bytes. The other way everything passes.
        b.nft(
            "table inet narrow {
                chain input {
                    type filter hook prerouting priority -350; policy accept
                    meta l4proto udp meta length 1360 counter drop
                }
            }",
        )
        .unwrap();
        let passes = |inside_bytes: u32| {
            let bytes = (inside_bytes - 28).to_string();
            a.attempt(["ping", "-n", "-c", "1", "-W", "1", "-s", &bytes, "10.9.0.2"]).unwrap().ok()
        };
        assert!(passes(1_280));
        assert!(!passes(1_297), "the control: padded to the MTU of 1300 it is dropped");
        tunnel.left.set_mtu(1_299);
        wait_for("the new MTU to be noticed", SOON, || passes(1_297).then_some(())).unwrap();
        for inside_bytes in 1_281..=1_299 {
            assert!(passes(inside_bytes), "{suite} {inside_bytes}");
        }
    }
}

fn iperf3_server(host: &Host) -> Process {
    let server = host.spawn(["iperf3", "-s", "-J"]).unwrap();
    let listens = || host.exec(["ss", "-Hltn", "sport = :5201"]).unwrap().stdout.contains("LISTEN");
    wait_for("iperf3", SOON, || listens().then_some(())).unwrap();
    server
}

/// Sends to the server at `address` in `flows` flows, of which each has to get something across.
fn iperf3(client: &Host, address: IpAddr, flows: usize, options: &[&str]) {
    let (address, count) = (address.to_string(), flows.to_string());
    let argv = [&["iperf3", "-J", "--get-server-output", "-c", &address, "-P", &count], options].concat();
    let output = client.command(argv).deadline(Duration::from_secs(25)).attempt().unwrap();
    let report = output.json().unwrap();
    assert!(output.ok(), "{address} {options:?} {flows} flows: {}", report["error"]);
    let is_udp = options.contains(&"-u");
    // Only the server knows which datagrams it saw, up to the highest number.
    let end = if is_udp { &report["server_output_json"]["end"] } else { &report["end"] };
    let received = |stream: &Value| {
        let number = |value: &Value| value.as_f64().unwrap_or(0.0);
        if is_udp {
            number(&stream["udp"]["packets"]) - number(&stream["udp"]["lost_packets"])
        } else {
            number(&stream["receiver"]["bytes"])
        }
    };
    let received: Vec<f64> = end["streams"].as_array().into_iter().flatten().map(received).collect();
    assert_eq!(received.len(), flows, "{end}");
    assert!(received.iter().all(|it| *it > 0.0), "{address} {options:?} {flows} flows: {received:?}");
    assert!(end["sum_received"]["bytes"].as_f64().is_some_and(|sum| sum > 0.0), "{end}");
}
