//! Who talks to whom: adit with wireguard-go and with itself, in both roles, over IPv4 and IPv6, in both suites.

mod common;

use std::net::SocketAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use adit::keys;
use adit_lab::pcap::Frame;
use adit_lab::{Capture, Invocation, wait_for};
use adit_proto::key::PublicKey;
use adit_proto::reason::DropReason;
use adit_proto::suite::Suite;
use adit_proto::wire::{INITIATION_LEN, RESPONSE_LEN};

use common::device::{Device, Program};
use common::peer::{Interface, Peer, place, secret};
use common::tunnel::Tunnel;
use common::wire::datagrams;
use common::{Family, Pair, SOON, download, flood, inside, pair};

use Family::{V4, V6};
use Program::{Adit, WireguardGo};
use Suite::{Aes256Gcm, ChaCha20Poly1305};

#[derive(Clone, Copy, Debug)]
struct Case {
    initiator: Program,
    responder: Program,
    suite: Suite,
    outside: Family,
    preshared: bool,
}

/// Everything two peers do with each other; only `a` knows at first where the other is.
fn converse(prefix: &str, case: Case) {
    println!("{case:?}");
    let Pair { a, b, link: _link, lab: _lab } = pair(prefix);
    let (a_key, b_key) = (secret(), secret());
    let preshared = case.preshared.then(|| keys::generate_preshared().unwrap());
    let a_knows =
        Peer::new(&b_key, 2).at(place(case.outside, 2)).suite(case.suite).preshared(preshared.as_ref());
    let b_knows = Peer::new(&a_key, 1).suite(case.suite).preshared(preshared.as_ref());
    let a_interface = Interface::new(&a_key, 1, [a_knows.clone()]);
    let capture = Capture::start(&a, "eth0").unwrap();
    let left = Device::start(case.initiator, &a, &a_interface);
    let right = Device::start(case.responder, &b, &Interface::new(&b_key, 2, [b_knows.clone()]));

    for family in [V4, V6] {
        flood(&a, inside(family, 2), 20);
        flood(&b, inside(family, 1), 20);
    }
    download(&a, &b, inside(V4, 2), 1_000_003);
    download(&b, &a, inside(V6, 1), 1_000_003);
    let (to_b, to_a) = (left.shown(&a_knows.public), right.shown(&b_knows.public));
    assert_eq!(to_a.endpoint, place(case.outside, 1).to_string(), "{case:?}");
    for shown in [&to_a, &to_b] {
        assert!(shown.rx_bytes.min(shown.tx_bytes) > 1_000_003, "{case:?} {shown:?}");
        assert!(now_secs().abs_diff(shown.last_handshake_unix_secs) < 60, "{case:?} {shown:?}");
    }

    // A peer that lost its memory starts anew, and the other goes along.
    left.remove(&a_knows);
    left.configure(&a_interface);
    flood(&a, inside(V4, 2), 5);
    flood(&b, inside(V6, 1), 5);

    assert_roles(case, &capture.stop().unwrap());
}

fn now_secs() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// On the wire: two handshakes, both begun by `a`, and messages of the suite alone.
fn assert_roles(case: Case, frames: &[Frame]) {
    let types = case.suite.message_types();
    let seen = datagrams(frames);
    let handshakes: Vec<(SocketAddr, u8, usize)> = seen
        .iter()
        .map(|datagram| (datagram.source, datagram.payload[0], datagram.payload.len()))
        .filter(|(_, kind, _)| *kind != types.transport)
        .collect();
    let [from_a, from_b] = [1, 2].map(|number| place(case.outside, number));
    let handshake = [(from_a, types.initiation, INITIATION_LEN), (from_b, types.response, RESPONSE_LEN)];
    assert_eq!(handshakes, [handshake, handshake].concat(), "{case:?}");
}

fn both_roles_with_and_without_preshared_key(prefix: &str, outside: Family) {
    for (initiator, responder) in [(Adit, WireguardGo), (WireguardGo, Adit)] {
        for preshared in [false, true] {
            let case = Case { initiator, responder, suite: ChaCha20Poly1305, outside, preshared };
            converse(prefix, case);
        }
    }
}

#[test]
fn adit_and_wireguard_go_talk_over_ipv4_in_both_roles_with_and_without_preshared_key() {
    both_roles_with_and_without_preshared_key("wggo4", V4);
}

#[test]
fn adit_and_wireguard_go_talk_over_ipv6_in_both_roles_with_and_without_preshared_key() {
    both_roles_with_and_without_preshared_key("wggo6", V6);
}

fn both_suites_with_and_without_preshared_key(prefix: &str, outside: Family) {
    for suite in Suite::ALL {
        for preshared in [false, true] {
            converse(prefix, Case { initiator: Adit, responder: Adit, suite, outside, preshared });
        }
    }
}

#[test]
fn adit_talks_to_itself_over_ipv4_in_both_suites_with_and_without_preshared_key() {
    both_suites_with_and_without_preshared_key("adit4", V4);
}

#[test]
fn adit_talks_to_itself_over_ipv6_in_both_suites_with_and_without_preshared_key() {
    both_suites_with_and_without_preshared_key("adit6", V6);
}

#[test]
fn peers_that_pin_different_suites_get_no_session_and_it_is_counted() {
    for (ours, theirs) in [(Aes256Gcm, ChaCha20Poly1305), (ChaCha20Poly1305, Aes256Gcm)] {
        let Pair { a, b, link: _link, lab: _lab } = pair("suites");
        let (a_key, b_key) = (secret(), secret());
        let a_knows = Peer::new(&b_key, 2).at(place(V4, 2)).suite(ours);
        let left = Device::start(Adit, &a, &Interface::new(&a_key, 1, [a_knows]));
        let b_knows = Peer::new(&a_key, 1).suite(theirs);
        let right = Tunnel::up(&b, &Interface::new(&b_key, 2, [b_knows]));

        assert_eq!(a.ping("10.9.0.2", 1).unwrap(), 0);
        right.wait_until_dropped(DropReason::SuiteMismatch, 1);
        let peer = right.peer(&a_key.public_key());
        assert_eq!(
            (&peer["has_session"], &peer["rx_bytes"], &peer["tx_bytes"]),
            (&false.into(), &0.into(), &0.into())
        );
        let shown = left.shown(&b_key.public_key());
        assert_eq!((shown.rx_bytes, shown.last_handshake_unix_secs), (0, 0), "{shown:?}");

        left.set_suite(&b_key.public_key(), theirs);
        assert_eq!(a.ping("10.9.0.2", 2).unwrap(), 2, "the control: both {theirs}");
    }
}

#[test]
fn wireguard_go_says_nothing_to_the_other_suite() {
    let Pair { a, b, link: _link, lab: _lab } = pair("wggosuite");
    let (a_key, b_key) = (secret(), secret());
    let a_knows = Peer::new(&b_key, 2).at(place(V4, 2)).suite(Aes256Gcm);
    let left = Device::start(Adit, &a, &Interface::new(&a_key, 1, [a_knows]));
    let right = Device::start(WireguardGo, &b, &Interface::new(&b_key, 2, [Peer::new(&a_key, 1)]));
    let capture = Capture::start(&b, "eth0").unwrap();
    assert_eq!(a.ping("10.9.0.2", 1).unwrap(), 0);
    let heard = left.shown(&b_key.public_key());
    assert_eq!((heard.rx_bytes, heard.tx_bytes), (0, 148), "one initiation and nothing else");
    assert_eq!(right.shown(&a_key.public_key()).rx_bytes, 0);
    let seen: Vec<u8> = datagrams(&capture.frames().unwrap()).iter().map(|it| it.payload[0]).collect();
    assert_eq!(seen, [Aes256Gcm.message_types().initiation], "it did arrive");

    left.set_suite(&b_key.public_key(), ChaCha20Poly1305);
    assert_eq!(a.ping("10.9.0.2", 2).unwrap(), 2, "the control: the suite of WireGuard");
}

#[test]
fn a_preshared_key_that_only_one_side_has_or_that_differs_makes_no_session() {
    let [first, second] = [(), ()].map(|()| keys::generate_preshared().unwrap());
    for (program, ours, theirs) in [
        (Adit, Some(&first), None),
        (Adit, None, Some(&first)),
        (Adit, Some(&first), Some(&second)),
        (WireguardGo, Some(&first), Some(&second)),
    ] {
        let Pair { a, b, link: _link, lab: _lab } = pair("psk");
        let (a_key, b_key) = (secret(), secret());
        let a_knows = Peer::new(&b_key, 2).at(place(V4, 2));
        let interface = |key| Interface::new(&a_key, 1, [a_knows.clone().preshared(key)]);
        let left = Device::start(Adit, &a, &interface(ours));
        let b_knows = Peer::new(&a_key, 1).preshared(theirs);
        let right = Device::start(program, &b, &Interface::new(&b_key, 2, [b_knows]));

        assert_eq!(a.ping("10.9.0.2", 1).unwrap(), 0, "{program:?}");
        let answered = right.shown(&a_key.public_key());
        assert_eq!((answered.rx_bytes, answered.tx_bytes), (148, 92), "b did answer: {answered:?}");
        for shown in [left.shown(&b_key.public_key()), answered] {
            assert_eq!(shown.last_handshake_unix_secs, 0, "{program:?} {shown:?}");
        }

        left.remove(&a_knows);
        left.configure(&interface(theirs));
        assert_eq!(a.ping("10.9.0.2", 2).unwrap(), 2, "the control: the same key on both sides");
    }
}

/// A handshake, three pings and a keepalive as tshark prints them: the given fields of each datagram.
fn dissected(prefix: &str, suite: Suite, fields: &[&str]) -> (Vec<Vec<String>>, [PublicKey; 2]) {
    let Pair { a, b, link, lab: _lab } = pair(prefix);
    link.set_offloads(false).unwrap();
    let (a_key, b_key) = (secret(), secret());
    let capture = Capture::start(&a, "eth0").unwrap();
    let a_knows = Peer::new(&b_key, 2).at(place(V4, 2)).suite(suite);
    let b_knows = Peer::new(&a_key, 1).suite(suite);
    let left = Device::start(Adit, &a, &Interface::new(&a_key, 1, [a_knows]));
    let right = Device::start(Adit, &b, &Interface::new(&b_key, 2, [b_knows]));
    flood(&a, inside(V4, 2), 3);
    // Turned on, it begins with a keepalive at once.
    let [public, peer] = [&a_key, &b_key].map(|key| key.public_key());
    let b_text = keys::public_text(&peer);
    a.exec(["wg", "set", &left.name, "peer", &b_text, "persistent-keepalive", "25"]).unwrap();
    wait_for("the keepalive", SOON, || {
        let seen = datagrams(&capture.frames().unwrap());
        seen.iter().any(|datagram| datagram.payload.len() == 32).then_some(())
    })
    .unwrap();
    drop((left, right));
    let file = capture.path().display().to_string();
    capture.stop().unwrap();

    // With the responder's key tshark checks mac1 and opens what the initiation says of its sender.
    let key = format!("uat:wg_keys:\"Private\",\"{}\"", *keys::secret_text(b_key.as_bytes()));
    let mut argv =
        vec!["tshark", "-r", &file, "-d", "udp.port==5001,wg", "-Y", "udp", "-o", &key, "-T", "fields"];
    argv.extend(fields.iter().flat_map(|field| ["-e", field]));
    let output = Invocation::new(argv).exec().unwrap().stdout;
    (output.lines().map(|line| line.split('\t').map(str::to_owned).collect()).collect(), [public, peer])
}

#[test]
fn tshark_reads_every_message_as_wireguard_and_opens_the_initiation() {
    let fields =
        ["ip.src", "wg.type", "wg.sender", "wg.receiver", "wg.counter", "udp.length", "wg.keepalive"];
    let claims = ["wg.receiver_pubkey", "wg.static", "wg.timestamp.tai64_label", "_ws.malformed"];
    let (rows, keys) = dissected("tshark", ChaCha20Poly1305, &[&fields[..], &claims].concat());
    let [a_text, b_text] = keys.map(|key| keys::public_text(&key));
    let rows: Vec<Vec<&str>> = rows.iter().map(|row| row.iter().map(String::as_str).collect()).collect();
    let [initiation, response, messages @ ..] = rows.as_slice() else { panic!("{rows:?}") };
    let (a, b) = ("192.0.2.1", "192.0.2.2");
    let (a_index, b_index) = (initiation[2], response[2]);
    assert!(a_index.starts_with("0x") && b_index.starts_with("0x"), "{rows:?}");

    assert_eq!(initiation[..9], [a, "1", a_index, "", "", "156", "", &b_text, &a_text]);
    let label: u64 = initiation[9].parse().unwrap();
    // TAI64 counts from 2^62; WireGuard takes TAI to be ten seconds ahead.
    assert!(label.abs_diff((1 << 62) + 10 + now_secs()) < 60, "{label}");
    assert_eq!(response[..7], [b, "2", b_index, a_index, "", "100", ""]);
    let of =
        |source| messages.iter().filter(|row| row[0] == source).map(|row| &row[1..7]).collect::<Vec<_>>();
    let counted = |index, number| ["4", "", index, number, "136", ""];
    let pings = |index| ["0", "1", "2"].map(|number| counted(index, number)).to_vec();
    let mut from_a = pings(b_index);
    from_a.push(["4", "", b_index, "3", "40", "1"]);
    assert_eq!(of(a), from_a);
    assert_eq!(of(b), pings(a_index));
    assert!(rows.iter().all(|row| row[10].is_empty()), "nothing is malformed: {rows:?}");
}

#[test]
fn tshark_takes_no_message_of_the_other_suite_for_wireguard() {
    let (rows, _) = dissected("tsharkaes", Aes256Gcm, &["ip.src", "wg.type", "udp.length"]);
    assert_eq!(rows.len(), 9, "two of the handshake, six pings, a keepalive: {rows:?}");
    assert!(rows.iter().all(|row| row[1].is_empty()), "{rows:?}");
}
