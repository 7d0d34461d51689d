//! What a hostile network may send: each input is dropped without a word, counted once under its reason,
//! and changes nothing; and honest messages are accepted right after.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic)]

#[path = "../common/mod.rs"]
mod common;
mod cookies;
mod handshakes;
mod keys;
mod transport;

use adit_proto::event::Command;
use adit_proto::reason::DropReason;
use adit_proto::suite::Suite;
use adit_proto::time::{Tai64n, UnixTime};
use adit_proto::wire::{self, COOKIE_REPLY_LEN, INITIATION_LEN, RESPONSE_LEN};

use common::*;

/// A timestamp newer than any the hosts have sent.
fn later(n: u64) -> Tai64n {
    Tai64n::from_unix(UnixTime { secs: 1_700_000_100 + n, nanos: 0 })
}

fn other(suite: Suite) -> Suite {
    if suite == Suite::Aes256Gcm { Suite::ChaCha20Poly1305 } else { Suite::Aes256Gcm }
}

/// Gives host 1 an honest initiation and asserts that a session comes of it.
fn assert_accepted(pair: &mut Pair, initiation: &[u8]) {
    let source = pair.hosts[0].endpoint;
    pair.receive(1, source, initiation);
    pair.drive();
    pair.assert_works();
}

/// The response of host 1 to `initiation`, taken off the wire.
fn take_response(pair: &mut Pair, initiation: &[u8]) -> [u8; RESPONSE_LEN] {
    let source = pair.hosts[0].endpoint;
    pair.receive(1, source, initiation);
    pair.wire.pop_back().unwrap().bytes.try_into().unwrap()
}

#[test]
fn p01_every_type_byte_with_every_short_length_is_dropped() {
    for suite in Suite::ALL {
        let mut pair = Pair::new(suite);
        pair.establish();
        for first in 0..=255_u8 {
            for len in 0..=200 {
                let mut datagram = vec![0; len];
                datagram.first_mut().into_iter().for_each(|byte| *byte = first);
                let known = [1, 2, 3, 4, 0x21, 0x22, 0x23, 0x24].contains(&first);
                let reason = match (first & 0x0f, len) {
                    (_, 0..=3) => DropReason::MalformedDatagram,
                    _ if !known => DropReason::UnknownType,
                    (1, INITIATION_LEN) | (2, RESPONSE_LEN) => DropReason::BadMac1,
                    (3, COOKIE_REPLY_LEN) => DropReason::UnexpectedReply,
                    (4, 32..) => DropReason::UnknownIndex,
                    _ => DropReason::MalformedDatagram,
                };
                let notices = pair.assert_ignored(1, elsewhere(), &datagram, reason);
                assert_eq!(notices, 0, "the engine heard of it");
            }
        }
        pair.assert_works();
    }
}

#[test]
fn p02_reserved_bytes_that_are_not_zero_are_dropped() {
    for suite in Suite::ALL {
        let mut pair = Pair::new(suite);
        let initiation = pair.take_initiation();
        let response = take_response(&mut Pair::new(suite), &initiation);
        for reserved in 1..4 {
            for bit in 0..8 {
                for (to, honest) in [(1, &initiation[..]), (0, &response[..])] {
                    let mut changed = honest.to_vec();
                    changed[reserved] ^= 1 << bit;
                    assert_eq!(pair.assert_ignored(to, elsewhere(), &changed, DropReason::UnknownType), 0);
                }
            }
        }
        assert_accepted(&mut pair, &initiation);
        let mut message = pair.seal(0, &packet(0, b"reserved"));
        message[2] = 1;
        pair.assert_ignored(1, elsewhere(), &message, DropReason::UnknownType);
        message[2] = 0;
        pair.receive(1, pair.hosts[0].endpoint, &message);
        assert_eq!(pair.hosts[1].delivered.last().unwrap(), &packet(0, b"reserved"));
    }
}

#[test]
fn p21_the_largest_datagram_of_every_type_is_handled() {
    for suite in Suite::ALL {
        let mut pair = Pair::new(suite);
        pair.establish();
        let types = suite.message_types();
        let index = pair.keypair(1).local_index.to_le_bytes();
        for len in [1_500, 65_507, 65_535, 1 << 17] {
            for kind in [types.initiation, types.response, types.cookie] {
                let mut datagram = vec![0xff; len];
                datagram[..4].copy_from_slice(&[kind, 0, 0, 0]);
                assert_eq!(pair.assert_ignored(1, elsewhere(), &datagram, DropReason::MalformedDatagram), 0);
            }
            let mut datagram = vec![0; len];
            datagram[0] = types.transport;
            datagram[4..8].copy_from_slice(&index);
            pair.assert_ignored(1, elsewhere(), &datagram, DropReason::BadTag);
        }
        let largest = packet(0, &vec![0xab; 65_507 - 32 - 20]);
        let message = pair.seal(0, &largest);
        assert_eq!(message.len(), 65_507);
        pair.receive(1, pair.hosts[0].endpoint, &message);
        assert_eq!(pair.hosts[1].delivered, [largest]);
    }
}

#[test]
fn p22_strange_sources_get_at_most_one_answer_and_no_loop() {
    let strange = [
        "[fe80::1]:51820",
        "[::ffff:192.0.2.1]:51820",
        "192.0.2.1:0",
        "192.0.2.1:65535",
        "192.0.2.2:51820", // the responder itself
        "0.0.0.0:0",
        "255.255.255.255:51820",
        "[::]:0",
        "[ff02::1]:51820",
        "[::1]:51820",
    ];
    for suite in Suite::ALL {
        for source in strange.map(udp) {
            let mut pair = Pair::new(suite);
            let honest = pair.take_initiation();
            let sent = pair.seen.len();
            pair.receive(1, source, &honest);
            assert_eq!(pair.seen.len(), sent + 1);
            assert_eq!(pair.seen[sent].destination, source, "the answer goes where the question came from");
            pair.drive();
            assert_eq!(pair.seen.len(), sent + 1, "{source:?} made a loop");
            pair.advance(secs(6));
            pair.assert_works();
        }
    }
}

#[test]
fn without_a_private_key_every_handshake_message_is_dropped() {
    let mut pair = Pair::new(Suite::ChaCha20Poly1305);
    let honest = pair.take_initiation();
    pair.command(1, Command::SetPrivateKey(None));
    assert_eq!(pair.assert_ignored(1, pair.hosts[0].endpoint, &honest, DropReason::BadMac1), 0);
    let secret = pair.hosts[1].identity.secret.clone();
    pair.command(1, Command::SetPrivateKey(Some(secret)));
    assert_accepted(&mut pair, &honest);
}

#[test]
fn nothing_on_the_wire_shows_who_talks_to_whom() {
    for suite in Suite::ALL {
        let mut pair = Pair::under_load(suite);
        pair.set_psk(0, [0x70; 32]);
        pair.set_psk(1, [0x70; 32]);
        pair.send(0, b"plaintext that must not show");
        pair.advance(secs(20));
        assert_eq!(pair.hosts[1].delivered, [packet(0, b"plaintext that must not show")]);
        let secrets = pair.hosts.iter().map(|host| *host.identity.secret.as_bytes());
        let keys = pair.hosts.iter().map(|host| host.identity.public.0);
        let hidden: Vec<[u8; 32]> = secrets.chain(keys).chain([[0x70; 32]]).collect();
        let sizes: Vec<_> = pair.seen.iter().map(|datagram| datagram.bytes.len()).collect();
        assert!([148, 92, 64].iter().all(|size| sizes.contains(size)), "every kind was seen: {sizes:?}");
        for datagram in &pair.seen {
            let shows = |needle: &[u8]| datagram.bytes.windows(needle.len()).any(|window| window == needle);
            assert!(hidden.iter().all(|key| !shows(&key[..8])));
            assert!(!shows(b"plaintext"));
            assert!(shows(&datagram.bytes[8..16]), "the search works");
        }
    }
}

#[test]
fn a_stranger_cannot_answer_for_a_peer() {
    for suite in Suite::ALL {
        let mut pair = Pair::new(suite);
        let honest = pair.take_initiation();
        let mut fake = wire::response(suite, 5, index_at(&honest, 4), &stranger().public.0, &[0; 16]);
        stamp_mac1(suite, &pair.public(0), &mut fake);
        pair.assert_ignored(0, pair.hosts[1].endpoint, &fake, DropReason::BadHandshake);
        assert_accepted(&mut pair, &honest);
    }
}
