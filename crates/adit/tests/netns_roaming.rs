//! Peers that move: other addresses, other ports, the other IP version, other keys; and which address they answer from.

mod common;

use std::thread;
use std::time::Duration;

use adit_lab::{Content, Host, Process};
use serde_json::Value;

use common::node::{Node, key_pair};
use common::{Family, Pair, SOON, flood, inside, outside, pair};

use Family::{V4, V6};

/// Two nodes that know each other; only `a` is told where the other is.
struct Joined {
    a: Node,
    b: Node,
    pair: Pair,
}

const OF_A: &str = "allowed-ips 10.9.0.1/32,fd00:9::1/128";
const OF_B: &str = "allowed-ips 10.9.0.2/32,fd00:9::2/128";

fn joined(prefix: &str) -> Joined {
    let pair = pair(prefix);
    let a = Node::start(&pair.a, 5001, &["10.9.0.1/24", "fd00:9::1/64"]);
    let b = Node::start(&pair.b, 5002, &["10.9.0.2/24", "fd00:9::2/64"]);
    a.knows(&b, &format!("{OF_B} endpoint 192.0.2.2:5002"));
    b.knows(&a, OF_A);
    Joined { a, b, pair }
}

fn at(family: Family, number: u8, port: u16) -> String {
    std::net::SocketAddr::new(outside(family, number), port).to_string()
}

fn answers(host: &Host, address: &str) -> bool {
    host.attempt(["ping", "-n", "-q", "-c", "1", "-W", "1", address]).unwrap().ok()
}

/// A download by `client` from `server`, at 2 MB/s, that has begun.
struct Download {
    content: Content,
    client: Process,
    _server: Process,
}

impl Download {
    fn start(client: &Host, server: &Host, address: &str, bytes: u64) -> Self {
        let content = Content { seed: bytes, bytes };
        let mut http = server.agent(["http-server", "--listen", &format!("{address}:8080")]).spawn().unwrap();
        http.wait_for_text("listening", SOON).unwrap();
        let url = format!("http://{address}:8080/file?bytes={bytes}&seed={bytes}&kbps=2000");
        let argv = ["http-get", "--sha256", "--patience-seconds", "20", &url];
        let client = client.agent(argv).spawn().unwrap();
        http.wait_for_text("/file", SOON).unwrap();
        Self { content, client, _server: http }
    }

    fn goes_on(&mut self) -> bool {
        self.client.ended().is_none()
    }

    fn finish(mut self) {
        let report: Value =
            serde_json::from_str(&self.client.finish(Duration::from_secs(20)).unwrap()).unwrap();
        assert_eq!(report["sha256"], self.content.sha256(), "{report}");
        assert_eq!(report["resumed"], 0, "one connection was enough");
    }
}

#[test]
fn a_transfer_survives_changes_of_the_senders_address_over_ipv4_and_ipv6() {
    let Joined { a, b, pair: net } = joined("roamaddress");
    for (family, length) in [(V4, 24), (V6, 64)] {
        a.knows(&b, &format!("endpoint {}", at(family, 2, 5002)));
        assert!(answers(&net.a, "10.9.0.2"));
        assert_eq!(b.endpoint_of(&a), at(family, 1, 5001));
        let mut download = Download::start(&net.b, &net.a, "10.9.0.1", 5_000_000);
        for (from, to) in [(1, 11), (11, 12), (12, 1)] {
            let address = |number| format!("{}/{length}", outside(family, number));
            net.a.ip(["addr", "del", &address(from), "dev", "eth0"]).unwrap();
            net.a.add_address("eth0", &address(to)).unwrap();
            b.wait_for_endpoint(&a, &at(family, to, 5001));
            assert!(download.goes_on(), "the address changed while bytes were under way");
            thread::sleep(Duration::from_millis(150));
        }
        download.finish();
        for family in [V4, V6] {
            flood(&net.a, inside(family, 2), 20);
            flood(&net.b, inside(family, 1), 20);
        }
    }
}

#[test]
fn a_transfer_survives_changes_of_the_listen_port_at_either_end_over_ipv4_and_ipv6() {
    let Joined { a, b, pair: net } = joined("roamport");
    a.knows(&b, "persistent-keepalive 1");
    b.knows(&a, "persistent-keepalive 1");
    let (mut a_port, mut b_port) = (5001, 5002);
    for family in [V4, V6] {
        a.knows(&b, &format!("endpoint {}", at(family, 2, b_port)));
        assert!(answers(&net.a, "10.9.0.2"));
        let mut download = Download::start(&net.a, &net.b, "10.9.0.2", 5_000_000);
        for _ in 0..2 {
            a_port += 100;
            a.set(&format!("listen-port {a_port}"));
            b.wait_for_endpoint(&a, &at(family, 1, a_port));
            assert!(download.goes_on(), "the port of the receiver changed while bytes were under way");
            b_port += 100;
            b.set(&format!("listen-port {b_port}"));
            a.wait_for_endpoint(&b, &at(family, 2, b_port));
            assert!(download.goes_on(), "the port of the sender changed while bytes were under way");
        }
        download.finish();
        flood(&net.a, inside(family, 2), 20);
    }
}

#[test]
fn a_peer_that_comes_by_the_other_ip_version_is_followed() {
    let Joined { a, b, pair: net } = joined("roamfamily");
    assert!(answers(&net.a, "10.9.0.2"));
    assert_eq!(b.endpoint_of(&a), at(V4, 1, 5001));
    net.a.ip(["addr", "del", "192.0.2.1/24", "dev", "eth0"]).unwrap();
    assert!(!answers(&net.a, "10.9.0.2"), "there is no way over IPv4 any more");
    a.knows(&b, &format!("endpoint {}", at(V6, 2, 5002)));
    assert!(answers(&net.a, "10.9.0.2"));
    assert_eq!(b.endpoint_of(&a), at(V6, 1, 5001));
    assert!(answers(&net.b, "fd00:9::1"));
    net.a.add_address("eth0", "192.0.2.1/24").unwrap();
    net.a.ip(["addr", "del", "2001:db8::1/64", "dev", "eth0"]).unwrap();
    a.knows(&b, &format!("endpoint {}", at(V4, 2, 5002)));
    assert!(answers(&net.a, "fd00:9::2"));
    assert_eq!(b.endpoint_of(&a), at(V4, 1, 5001));
    assert!(answers(&net.b, "10.9.0.1"));
}

/// How many of five datagrams from `from` arrive at `to`.
fn delivered(from: &Host, to: &Host, address: &str) -> u64 {
    let place = format!("{address}:1111");
    let mut sink =
        to.agent(["udp-sink", "--listen", &place, "--count", "5", "--idle-ms", "1000"]).spawn().unwrap();
    sink.wait_for_text("listening", SOON).unwrap();
    from.agent(["udp-send", &place, "5"]).exec().unwrap();
    let output = sink.finish(SOON).unwrap();
    let report: Value = serde_json::from_str(output.lines().last().unwrap()).unwrap();
    report["received"].as_u64().unwrap()
}

#[test]
fn a_source_that_belongs_to_another_peer_by_a_longer_prefix_is_shut_out() {
    let Joined { a, b, pair: net } = joined("roamfilter");
    a.knows(&b, "allowed-ips 10.9.0.0/24");
    assert!(answers(&net.b, "10.9.0.1") || answers(&net.a, "10.9.0.2"));
    assert_eq!(delivered(&net.b, &net.a, "10.9.0.1"), 5);

    let (_, stranger) = key_pair();
    a.set(&format!("peer {stranger} allowed-ips 10.9.0.2/32"));
    b.set("listen-port 5902");
    assert_eq!(delivered(&net.b, &net.a, "10.9.0.1"), 0, "the sender's address is the stranger's now");
    assert_eq!(a.endpoint_of(&b), at(V4, 2, 5902), "it is authentic all the same, so it may move");

    a.forgets(&stranger);
    assert_eq!(delivered(&net.b, &net.a, "10.9.0.1"), 5);
}

#[test]
fn after_a_change_of_the_private_key_the_next_packet_finds_its_way_at_once() {
    let Joined { mut a, b, pair: net } = joined("roamkey");
    assert!(answers(&net.a, "10.9.0.2"));
    let before = a.public.clone();
    let (private, public) = key_pair();
    a.set_key(&private);
    assert!(!answers(&net.a, "10.9.0.2"), "the other end does not know the new key");
    a.public = public;
    let (private, public) = key_pair();
    a.set_key(&private);
    a.public = public;
    b.knows(&a, OF_A);
    b.forgets(&before);
    assert!(answers(&net.a, "10.9.0.2"), "a handshake of a moment ago does not hold up the new one");
    assert!(answers(&net.b, "fd00:9::1"));
}

#[test]
fn answers_leave_from_the_address_that_was_called_whichever_of_several_it_is() {
    let Joined { a, b, pair: net } = joined("roamsource");
    let own = ["192.0.2.1", "[2001:db8::1]", "192.0.2.21", "[2001:db8::15]", "192.0.2.1", "[2001:db8::15]"];
    net.a.add_address("eth0", "192.0.2.21/24").unwrap();
    net.a.add_address("eth0", "2001:db8::15/64").unwrap();
    for address in own {
        let endpoint = format!("{address}:5001");
        b.knows(&a, &format!("endpoint {endpoint}"));
        assert!(answers(&net.b, "10.9.0.1"), "{endpoint}");
        assert_eq!(b.endpoint_of(&a), endpoint, "the answer came from there");
        assert!(answers(&net.a, "10.9.0.2"));
        assert_eq!(b.endpoint_of(&a), endpoint, "and so does what follows");
    }

    net.a.ip(["link", "add", "inner0", "type", "bridge"]).unwrap();
    net.a.add_address("inner0", "10.50.0.1/24").unwrap();
    net.a.ip(["link", "set", "inner0", "up"]).unwrap();
    net.b.add_route("10.50.0.0/24 via 192.0.2.1").unwrap();
    b.knows(&a, "endpoint 10.50.0.1:5001");
    assert!(answers(&net.b, "10.9.0.1"), "an address of another interface");
    assert_eq!(b.endpoint_of(&a), "10.50.0.1:5001");
}

#[test]
fn a_source_address_that_is_deleted_and_added_again_stops_nothing() {
    let Joined { a, b, pair: net } = joined("roamgone");
    for (address, length, endpoint, other) in [
        ("192.0.2.21", 24, "192.0.2.21:5001", at(V4, 1, 5001)),
        ("2001:db8::15", 64, "[2001:db8::15]:5001", at(V6, 1, 5001)),
    ] {
        let prefix = format!("{address}/{length}");
        net.a.add_address("eth0", &prefix).unwrap();
        b.knows(&a, &format!("endpoint {endpoint}"));
        assert!(answers(&net.b, "10.9.0.1"));
        assert_eq!(b.endpoint_of(&a), endpoint);

        net.a.ip(["addr", "del", &prefix, "dev", "eth0"]).unwrap();
        assert!(!answers(&net.b, "10.9.0.1"), "nobody has the address that is called");
        assert!(answers(&net.a, "10.9.0.2"), "another source is found at once");
        assert_eq!(b.endpoint_of(&a), other);

        net.a.add_address("eth0", &prefix).unwrap();
        assert!(answers(&net.a, "10.9.0.2") && answers(&net.b, "10.9.0.1"));
        assert_eq!(b.endpoint_of(&a), other, "it does not fall back by itself");
        b.knows(&a, &format!("endpoint {endpoint}"));
        assert!(answers(&net.b, "10.9.0.1"));
        assert_eq!(b.endpoint_of(&a), endpoint, "called there, it answers from there");
    }
}

#[test]
fn a_route_that_moves_to_another_cable_takes_the_tunnel_along() {
    let Joined { a, b, pair: net } = joined("roamroute");
    let end =
        |host: &Host, number: u8| adit_lab::End::new(host, "eth1").address(format!("198.51.100.{number}/24"));
    net.lab.connect(end(&net.a, 1), end(&net.b, 2)).unwrap();
    for host in [&net.a, &net.b] {
        for interface in ["all", "eth0", "eth1"] {
            host.set_sysctl(&format!("net.ipv4.conf.{interface}.rp_filter"), "0").unwrap();
        }
    }
    let sent_by_eth1 = || -> u64 {
        let path = "/sys/class/net/eth1/statistics/tx_packets";
        net.a.exec(["cat", path]).unwrap().stdout.trim().parse().unwrap()
    };
    b.knows(&a, "endpoint 192.0.2.1:5001");
    assert!(answers(&net.b, "10.9.0.1"), "from now on the source is pinned");
    let before = sent_by_eth1();
    flood(&net.a, inside(V4, 2), 20);
    assert!(sent_by_eth1() < before + 20);

    net.a.add_route("192.0.2.2/32 via 198.51.100.2").unwrap();
    let before = sent_by_eth1();
    flood(&net.a, inside(V4, 2), 20);
    assert!(sent_by_eth1() >= before + 20, "a better route was taken");
    flood(&net.b, inside(V4, 1), 20);

    net.a.ip(["route", "del", "192.0.2.2/32"]).unwrap();
    flood(&net.a, inside(V4, 2), 20);
    assert!(a.endpoint_of(&b).starts_with("192.0.2.2:"));
}

#[test]
fn a_ping_may_choose_the_device_or_one_of_several_inside_addresses() {
    let Joined { a, b, pair: net } = joined("roambound");
    b.knows(&a, &format!("{OF_A},10.9.0.21/32,fd00:9::15/128"));
    net.a.add_address(a.name(), "10.9.0.21/24").unwrap();
    net.a.add_address(a.name(), "fd00:9::15/64").unwrap();
    let from = |source: &str, target: &str| {
        let argv = ["ping", "-n", "-q", "-c", "2", "-i", "0.2", "-W", "1", "-I", source, target];
        net.a.attempt(argv).unwrap().ok()
    };
    for source in ["10.9.0.1", "10.9.0.21", a.name()] {
        assert!(from(source, "10.9.0.2"), "{source}");
    }
    for source in ["fd00:9::1", "fd00:9::15", a.name()] {
        assert!(from(source, "fd00:9::2"), "{source}");
    }
    let before = a.transfer(&b);
    // The other host may well answer for its inside address on the cable; what counts is which way the ping went.
    from("eth0", "10.9.0.2");
    assert_eq!(a.transfer(&b), before, "bound to the cable, nothing enters the tunnel");
    net.a.add_address(a.name(), "10.9.0.31/24").unwrap();
    assert!(!from("10.9.0.31", "10.9.0.2"), "an address that is not ours over there");
}
