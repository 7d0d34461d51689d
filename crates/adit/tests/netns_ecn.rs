//! Congestion marks cross the tunnel (RFC 6040): what a router marks outside is seen inside.

mod common;

use adit_lab::{Capture, Host};
use adit_proto::packet::Ecn;
use adit_proto::reason::DropReason;
use adit_proto::suite::Suite;

use common::device::{Device, Program};
use common::peer::{Interface, PORT, Peer, place, secret};
use common::tunnel::Tunnel;
use common::wire::{IpPacket, datagrams, inside_packets};
use common::{Family, Pair, download, flood, inside, pair};

use Family::{V4, V6};

/// `a` knows where `b` is; what `b` receives is captured inside.
struct Path {
    pair: Pair,
    _left: Device,
    right: Tunnel,
}

fn path(prefix: &str, suite: Suite, outside: Family) -> Path {
    let pair = pair(prefix);
    let (a_key, b_key) = (secret(), secret());
    let b_knows = Peer::new(&a_key, 1).suite(suite);
    let right = Tunnel::up(&pair.b, &Interface::new(&b_key, 2, [b_knows]));
    let a_knows = Peer::new(&b_key, 2).suite(suite).at(place(outside, 2));
    let left = Device::start(Program::Adit, &pair.a, &Interface::new(&a_key, 1, [a_knows]));
    flood(&pair.a, inside(V4, 2), 3);
    Path { pair, _left: left, right }
}

/// Marks congestion on what arrives at the tunnel's port, if `only` (a condition, may be empty) holds.
fn mark_congestion(host: &Host, outside: Family, only: &str) {
    let family = if outside == V4 { "ip" } else { "ip6" };
    let rule = format!("udp dport {PORT} {only} {family} ecn set ce");
    host.nft(&format!(
        "add table inet congestion
        delete table inet congestion
        table inet congestion {{
            chain prerouting {{
                type filter hook prerouting priority -350; policy accept
                {rule}
            }}
        }}"
    ))
    .unwrap();
}

/// Pings once with an ECN field. True when the answer came.
fn ping(host: &Host, family: Family, ecn: Ecn) -> bool {
    let (tos, address) = ((ecn as u8).to_string(), inside(family, 2).to_string());
    host.attempt(["ping", "-n", "-c", "1", "-W", "1", "-Q", &tos, &address]).unwrap().ok()
}

fn echo_requests(packets: Vec<IpPacket>, family: Family) -> Vec<Ecn> {
    let (protocol, kind) = if family == V4 { (1, 8) } else { (58, 128) };
    let requests = packets.iter().filter(|it| it.protocol == protocol && it.payload.first() == Some(&kind));
    requests.map(|request| Ecn::from_tos(request.tos)).collect()
}

#[test]
fn congestion_marked_outside_is_seen_inside_or_drops_what_cannot_carry_the_mark() {
    for (suite, outside) in [(Suite::ChaCha20Poly1305, V4), (Suite::Aes256Gcm, V6)] {
        let Path { pair, _left, right } = path("ecn", suite, outside);
        for family in [V4, V6] {
            let seen = |marked: bool, ecn: Ecn| {
                let inner = Capture::start(&pair.b, Tunnel::INTERFACE).unwrap();
                let answered = ping(&pair.a, family, ecn);
                let requests = echo_requests(inside_packets(&inner.stop().unwrap()), family);
                assert_eq!(answered, !requests.is_empty(), "{outside:?} {family:?} {ecn:?} marked {marked}");
                requests
            };
            let dropped = || right.dropped(DropReason::EcnNotCapable);
            for ecn in [Ecn::NotEct, Ecn::Ect0, Ecn::Ect1] {
                assert_eq!(seen(false, ecn), [ecn], "the control without congestion");
            }
            mark_congestion(&pair.b, outside, "");
            assert_eq!(seen(true, Ecn::Ect0), [Ecn::Ce], "{outside:?} {family:?}");
            assert_eq!(seen(true, Ecn::Ect1), [Ecn::Ce], "{outside:?} {family:?}");
            let before = dropped();
            assert_eq!(seen(true, Ecn::NotEct), [], "{outside:?} {family:?}");
            assert_eq!(dropped() - before, 1);
            pair.b.nft("delete table inet congestion").unwrap();
        }
    }
}

#[test]
fn the_mark_inside_is_copied_to_the_outside_and_nothing_else_of_the_octet_is() {
    let Path { pair, _left, right: _right } = path("ecnout", Suite::ChaCha20Poly1305, V4);
    for family in [V4, V6] {
        for ecn in [Ecn::NotEct, Ecn::Ect0, Ecn::Ect1] {
            let outer = Capture::start(&pair.a, "eth0").unwrap();
            let tos = (0xb8 | ecn as u8).to_string();
            let address = inside(family, 2).to_string();
            pair.a.exec(["ping", "-n", "-c", "1", "-W", "2", "-Q", &tos, &address]).unwrap();
            let seen = datagrams(&outer.stop().unwrap());
            let outside: Vec<u8> =
                seen.iter().filter(|it| it.source == place(V4, 1)).map(|it| it.tos).collect();
            assert_eq!(outside, [ecn as u8], "{family:?}");
        }
    }
}

#[test]
fn tcp_goes_on_when_a_router_marks_everything_it_may() {
    for outside in [V4, V6] {
        let Path { pair, _left, right } = path("ecntcp", Suite::Aes256Gcm, outside);
        for host in [&pair.a, &pair.b] {
            host.set_sysctl("net.ipv4.tcp_ecn", "1").unwrap();
        }
        let family = if outside == V4 { "ip" } else { "ip6" };
        mark_congestion(&pair.b, outside, &format!("{family} ecn ect0"));
        let inner = Capture::start(&pair.b, Tunnel::INTERFACE).unwrap();
        download(&pair.b, &pair.a, inside(V4, 1), 1_000_003);
        download(&pair.b, &pair.a, inside(V6, 1), 1_000_003);
        let packets = inside_packets(&inner.stop().unwrap());
        let from_a = |family| {
            let tcp = packets.iter().filter(move |it| it.protocol == 6 && it.source == inside(family, 1));
            tcp.filter(|it| it.len > 1_000).map(|it| Ecn::from_tos(it.tos)).collect::<Vec<_>>()
        };
        for family in [V4, V6] {
            let marks = from_a(family);
            assert!(!marks.is_empty() && !marks.contains(&Ecn::Ect0), "each was marked: {marks:?}");
            assert!(marks.contains(&Ecn::Ce), "{outside:?} {family:?}");
        }
        assert_eq!(right.dropped(DropReason::EcnNotCapable), 0);
    }
}
