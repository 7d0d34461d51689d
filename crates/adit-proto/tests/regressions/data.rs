//! Data: replay, padding, sources, endpoints, sizes.

use std::collections::HashSet;

use adit_proto::event::{AllowedIpChange, Command, Event, PeerUpdate};
use adit_proto::reason::DropReason;
use adit_proto::replay::WINDOW;
use adit_proto::suite::Suite;
use adit_proto::wire::{INITIATION_LEN, RESPONSE_LEN};

use crate::common::*;

#[test]
fn r09_eight_thousand_messages_in_any_order_arrive_once_each() {
    for suite in Suite::ALL {
        let mut pair = Pair::new(suite);
        pair.establish();
        let messages: Vec<_> = (0..8_000_u16).map(|n| pair.seal(0, &packet(0, &n.to_be_bytes()))).collect();
        let source = pair.hosts[0].endpoint;
        for message in messages.iter().rev() {
            pair.receive(1, source, message);
        }
        for message in &messages {
            pair.receive(1, source, message);
        }
        let delivered: HashSet<_> = pair.hosts[1].delivered.iter().collect();
        assert_eq!((delivered.len(), pair.hosts[1].delivered.len()), (8_000, 8_000));
        assert_eq!(pair.dropped(1, DropReason::Replay), 8_000);
    }
}

#[test]
fn r09_a_message_older_than_the_window_is_a_replay() {
    let mut pair = Pair::new(Suite::ChaCha20Poly1305);
    pair.establish();
    let [too_old, old_enough] = [0, 1].map(|_| pair.seal(0, &packet(0, b"old")));
    let oldest = pair.keypair(0).used().0 - 1;
    pair.keypair(0).skip_ahead(oldest + WINDOW, 0);
    let newest = pair.seal(0, &packet(0, b"new"));
    let source = pair.hosts[0].endpoint;
    pair.receive(1, source, &newest);
    pair.assert_ignored(1, source, &too_old, DropReason::Replay);
    pair.receive(1, source, &old_enough);
    assert_eq!(pair.hosts[1].delivered, [packet(0, b"new"), packet(0, b"old")]);
}

#[test]
fn r10_messages_are_padded_to_16_bytes_but_never_above_the_mtu() {
    for suite in Suite::ALL {
        let mut pair = Pair::new(suite);
        pair.establish();
        for len in 20..=MTU_BYTES {
            pair.send_packet(0, &packet(0, &vec![0x55; len - 20]));
            let sealed = pair.seen.last().unwrap().bytes.len() - 32;
            assert_eq!(sealed, (len.div_ceil(16) * 16).min(MTU_BYTES), "a packet of {len} bytes");
            pair.drive();
            assert_eq!(pair.hosts[1].delivered.pop().unwrap().len(), len, "the padding is gone");
        }
    }
}

#[test]
fn r10_staged_packets_and_keepalives_are_padded_too() {
    let mut pair = Pair::new(Suite::ChaCha20Poly1305);
    pair.send(0, b"staged");
    pair.advance(secs(11));
    let sizes: Vec<_> = pair.seen.iter().map(|datagram| datagram.bytes.len()).collect();
    assert_eq!(sizes, [INITIATION_LEN, RESPONSE_LEN, 32 + 32, 32]);
}

#[test]
fn r12_the_endpoint_follows_every_kind_of_authenticated_message() {
    for suite in Suite::ALL {
        let mut pair = Pair::new(suite);
        pair.establish();
        let places = ["198.51.100.1:1000", "198.51.100.1:1001", "[2001:db8::1]:1000"].map(udp);
        for (place, plaintext) in places.iter().zip([packet(0, b"data"), vec![], vec![0xff; 16]]) {
            let message = pair.seal(0, &plaintext);
            pair.receive(1, *place, &message);
            assert_eq!(pair.believed_endpoint(1), *place);
            let peer = pair.public(0);
            assert_eq!(pair.hosts[1].events.last(), Some(&Event::Roamed { peer, endpoint: *place }));
            pair.send(1, b"answer");
            assert_eq!(pair.seen.last().unwrap().destination, *place);
        }
        pair.wire.clear();
        pair.skip(secs(6));
        let initiation = pair.take_initiation();
        let place = udp("198.51.100.9:9");
        pair.receive(1, place, &initiation);
        assert_eq!(pair.believed_endpoint(1), place, "an initiation");
        let response = pair.wire.pop_back().unwrap().bytes;
        pair.receive(0, place, &response);
        assert_eq!(pair.believed_endpoint(0), place, "a response");
    }
}

#[test]
fn r12_the_endpoint_follows_no_replay_and_no_forgery() {
    for suite in Suite::ALL {
        let mut pair = Pair::new(suite);
        pair.establish();
        let home = pair.hosts[0].endpoint;
        let honest = pair.seal(0, &packet(0, b"honest"));
        let mut forged = honest.clone();
        forged[30] ^= 1;
        pair.assert_ignored(1, elsewhere(), &forged, DropReason::BadTag);
        pair.receive(1, home, &honest);
        pair.assert_ignored(1, elsewhere(), &honest, DropReason::Replay);
        let initiation = pair.seen[0].bytes.clone();
        pair.skip(secs(1));
        pair.assert_ignored(1, elsewhere(), &initiation, DropReason::StaleTimestamp);
        assert_eq!(pair.believed_endpoint(1), home);
    }
}

/// Gives host 1 a second peer that owns `prefix`.
fn add_owner(pair: &mut Pair, prefix: &str) {
    let mut update = PeerUpdate::new(stranger().public);
    update.allowed_ips = vec![AllowedIpChange::Add(prefix.parse().unwrap())];
    pair.command(1, Command::SetPeer(update));
}

#[test]
fn r13_a_source_belongs_to_the_peer_with_the_longest_prefix() {
    for suite in Suite::ALL {
        let mut pair = Pair::new(suite);
        let wide = AllowedIpChange::Add("10.0.0.0/24".parse().unwrap());
        pair.change_peer(1, |update| update.allowed_ips = vec![wide]);
        pair.establish();
        add_owner(&mut pair, "10.0.0.77/32");
        let from = |host: u8| packet_between([10, 0, 0, host], [10, 0, 0, 2], b"who am I?");
        let source = pair.hosts[0].endpoint;
        let spoofed = pair.seal(0, &from(77));
        pair.receive(1, source, &spoofed);
        assert!(pair.hosts[1].delivered.is_empty());
        assert_eq!(pair.dropped(1, DropReason::SpoofedSource), 1);
        let outside = pair.seal(0, &packet_between([10, 0, 1, 1], [10, 0, 0, 2], b"not even mine"));
        pair.receive(1, source, &outside);
        assert_eq!(pair.dropped(1, DropReason::SpoofedSource), 2);
        for own in [76, 78] {
            let message = pair.seal(0, &from(own));
            pair.receive(1, source, &message);
            assert_eq!(pair.hosts[1].delivered.pop().unwrap(), from(own));
        }
        pair.command(1, Command::RemovePeer(stranger().public));
        let message = pair.seal(0, &from(77));
        pair.receive(1, source, &message);
        assert_eq!(pair.hosts[1].delivered, [from(77)], "with its owner gone, the wide prefix holds it");
    }
}

#[test]
fn r14_no_length_of_datagram_panics_whatever_its_type() {
    for suite in Suite::ALL {
        let mut pair = Pair::new(suite);
        pair.establish();
        let index = pair.keypair(1).local_index.to_le_bytes();
        let lengths = (0..300).chain(1_400..1_520).chain(65_500..=65_536);
        for len in lengths {
            for kind in [1, 2, 3, 4, 0x21, 0x22, 0x23, 0x24] {
                let mut datagram = vec![0xa5; len];
                let header = [kind, 0, 0, 0, index[0], index[1], index[2], index[3]];
                datagram.iter_mut().zip(header).for_each(|(to, from)| *to = from);
                let delivered = pair.hosts[1].delivered.len();
                assert_eq!(pair.receive(1, elsewhere(), &datagram).min(1), pair.notices_allowed(&datagram));
                assert_eq!(pair.hosts[1].delivered.len(), delivered);
            }
        }
        pair.assert_works();
    }
}

impl Pair {
    /// Only a cookie reply of the right size to a known index is for the engine to judge.
    fn notices_allowed(&self, datagram: &[u8]) -> usize {
        usize::from(datagram.len() == 64 && matches!(datagram[0], 0x03 | 0x23))
    }
}

#[test]
fn r20_ipv6_sources_and_the_last_port_are_answered_exactly() {
    for suite in Suite::ALL {
        for home in ["[2001:db8::1]:65535", "[fe80::1%3]:51820", "192.0.2.1:65535", "192.0.2.1:1"].map(udp) {
            let mut pair = Pair::new(suite);
            pair.hosts[0].endpoint = home;
            pair.send(0, b"hello");
            pair.drive();
            pair.send(1, b"answer");
            pair.drive();
            assert_eq!(pair.hosts[0].delivered, [packet(1, b"answer")]);
            assert!(pair.seen.iter().filter(|sent| sent.from == 1).all(|sent| sent.destination == home));
        }
    }
}

#[test]
fn r21_fragments_pass_as_they_are_and_are_never_put_together() {
    let mut pair = Pair::new(Suite::ChaCha20Poly1305);
    pair.establish();
    // Overlapping, out of order, of any protocol, and one that would end beyond 65535 bytes.
    let fragments = [(0x2000, 17), (0x2001, 17), (0x2000, 6), (0x0001, 17), (0x3fff, 1), (0x1fff, 99)];
    for (offset, protocol) in fragments {
        let mut fragment = packet(0, &[0xcd; 64]);
        fragment[6..8].copy_from_slice(&u16::to_be_bytes(offset));
        fragment[9] = protocol;
        pair.send_packet(0, &fragment);
        pair.drive();
        assert_eq!(pair.hosts[1].delivered.pop(), Some(fragment));
        assert!(pair.hosts[1].delivered.is_empty());
    }
}
