//! What a hostile network may send: each input is dropped without a word, counted once under its reason,
//! and changes nothing; and honest messages are accepted right after.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic)]

mod common;

use adit_proto::cookie::CookieChecker;
use adit_proto::event::{AllowedIpChange, Command, Event, PeerUpdate};
use adit_proto::handshake::{AwaitingResponse, Identity};
use adit_proto::key::{PresharedKey, PublicKey, StaticSecret};
use adit_proto::keypair::REJECT_AFTER_MESSAGES;
use adit_proto::limit::{LimitConfig, Rate};
use adit_proto::reason::DropReason;
use adit_proto::suite::Suite;
use adit_proto::time::{Tai64n, UnixTime};
use adit_proto::timers::MAX_HANDSHAKE_ATTEMPTS;
use adit_proto::wire::{self, COOKIE_REPLY_LEN, INITIATION_LEN, Message, RESPONSE_LEN};
use common::*;
use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore, SeedableRng};

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
fn p03_a_bad_mac1_never_reaches_the_engine_and_costs_no_diffie_hellman() {
    for suite in Suite::ALL {
        let mut pair = Pair::new(suite);
        let initiation = pair.take_initiation();
        for bit in 0..(INITIATION_LEN - 16) * 8 {
            if (0..32).contains(&bit) {
                continue; // the type, not covered here
            }
            let mut changed = initiation.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(pair.assert_ignored(1, elsewhere(), &changed, DropReason::BadMac1), 0);
        }
        let mut for_another: [u8; INITIATION_LEN] = initiation.clone().try_into().unwrap();
        stamp_mac1(suite, &stranger().public, &mut for_another);
        assert_eq!(pair.assert_ignored(1, elsewhere(), &for_another, DropReason::BadMac1), 0);
        assert_accepted(&mut pair, &initiation);
    }
}

#[test]
fn p04_a_valid_mac1_over_garbage_is_dropped() {
    for suite in Suite::ALL {
        let mut pair = Pair::new(suite);
        let initiation = pair.take_initiation();
        let mut rng = ChaCha20Rng::seed_from_u64(4);
        for _ in 0..50 {
            let mut garbage = [0; INITIATION_LEN];
            rng.fill_bytes(&mut garbage[4..]);
            garbage[0] = suite.message_types().initiation;
            stamp_mac1(suite, &pair.public(1), &mut garbage);
            assert_eq!(pair.assert_ignored(1, elsewhere(), &garbage, DropReason::BadHandshake), 1);
        }
        assert_accepted(&mut pair, &initiation);
    }
}

#[test]
fn p05_an_initiation_of_a_stranger_is_dropped() {
    for suite in Suite::ALL {
        let mut pair = Pair::new(suite);
        let honest = pair.take_initiation();
        let (_, strange) = initiation(suite, &stranger(), &pair.public(1), 9, later(0));
        pair.assert_ignored(1, elsewhere(), &strange, DropReason::UnknownPeer);
        assert_accepted(&mut pair, &honest);
    }
}

#[test]
fn p06_the_public_key_of_a_peer_without_its_private_key_is_worth_nothing() {
    for suite in Suite::ALL {
        let mut pair = Pair::new(suite);
        let honest = pair.take_initiation();
        let impostor = Identity { secret: stranger().secret, public: pair.public(0) };
        let (_, forged) = initiation(suite, &impostor, &pair.public(1), 9, later(0));
        pair.assert_ignored(1, elsewhere(), &forged, DropReason::BadHandshake);
        assert_accepted(&mut pair, &honest);
    }
}

#[test]
fn p06_a_thief_of_the_responders_key_cannot_pose_as_the_initiator() {
    for suite in Suite::ALL {
        let mut pair = Pair::new(suite);
        pair.establish();
        // With the responder's private key the thief computes `ss`, so the initiation is convincing.
        pair.skip(secs(1));
        let (bob, alice) = (pair.hosts[1].identity.clone(), pair.public(0));
        let ss = bob.secret.diffie_hellman(&alice).unwrap();
        let impostor = Identity { secret: stranger().secret, public: alice };
        let ephemeral = StaticSecret::from_bytes([0x44; 32]);
        let (awaiting, mut forged) =
            AwaitingResponse::create_initiation(suite, &impostor, &bob.public, &ss, ephemeral, 9, later(0))
                .unwrap();
        stamp_mac1(suite, &bob.public, &mut forged);
        pair.receive(1, elsewhere(), &forged);
        let response = pair.wire.pop_back().unwrap();
        let Ok((_, Message::Response(response))) = Message::parse(&response.bytes) else { panic!() };
        let stolen = awaiting.consume_response(&impostor, &PresharedKey::default(), &response);
        assert!(stolen.is_err(), "the private key of the initiator is needed after all");
    }
}

#[test]
fn p07_pre_shared_keys_that_differ_give_no_session_and_the_initiator_gives_up() {
    for suite in Suite::ALL {
        for psks in [[Some(1), None], [None, Some(1)], [Some(1), Some(2)]] {
            let mut pair = Pair::new(suite);
            for (n, psk) in psks.into_iter().enumerate() {
                psk.into_iter().for_each(|psk| pair.set_psk(n, [psk; 32]));
            }
            pair.send(0, b"never arrives");
            pair.advance(secs(100));
            assert!(!pair.has_session(0) && !pair.has_session(1), "{psks:?}");
            assert!(pair.hosts[1].delivered.is_empty());
            assert_eq!(pair.dropped(0, DropReason::BadHandshake), u64::from(MAX_HANDSHAKE_ATTEMPTS));
            assert_eq!(pair.initiations_since(0).len(), MAX_HANDSHAKE_ATTEMPTS as usize);
            assert_eq!(pair.dropped(0, DropReason::HandshakeTimeout), 1);
            assert!(matches!(pair.hosts[0].events.last(), Some(Event::HandshakeGaveUp { .. })));
            for n in 0..2 {
                pair.set_psk(n, [7; 32]);
            }
            pair.assert_works();
        }
    }
}

#[test]
fn p07_a_pre_shared_key_of_zeros_is_none() {
    let mut pair = Pair::new(Suite::ChaCha20Poly1305);
    pair.set_psk(0, [0; 32]);
    pair.assert_works();
}

#[test]
fn p08_a_low_order_point_as_ephemeral_or_sealed_static_is_dropped() {
    for suite in Suite::ALL {
        let mut pair = Pair::new(suite);
        let honest = pair.take_initiation();
        let response = take_response(&mut Pair::new(suite), &honest);
        for point in low_order_points_in_every_encoding() {
            let mut ephemeral: [u8; INITIATION_LEN] = honest.clone().try_into().unwrap();
            ephemeral[8..40].copy_from_slice(&point.0);
            stamp_mac1(suite, &pair.public(1), &mut ephemeral);
            pair.assert_ignored(1, elsewhere(), &ephemeral, DropReason::BadHandshake);

            let claimed = Identity { secret: stranger().secret, public: point };
            let (_, sealed_static) = initiation(suite, &claimed, &pair.public(1), 9, later(0));
            pair.assert_ignored(1, elsewhere(), &sealed_static, DropReason::UnknownPeer);

            let mut ephemeral = response;
            ephemeral[12..44].copy_from_slice(&point.0);
            stamp_mac1(suite, &pair.public(0), &mut ephemeral);
            pair.assert_ignored(0, elsewhere(), &ephemeral, DropReason::BadHandshake);
        }
        assert_accepted(&mut pair, &honest);
    }
}

#[test]
fn p08_a_peer_whose_key_is_a_low_order_point_causes_no_packet_at_all() {
    for suite in Suite::ALL {
        let mut pair = Pair::new(suite);
        for (n, point) in (0..).zip(low_order_points_in_every_encoding()) {
            let mut update = PeerUpdate::new(point);
            update.endpoint = Some(elsewhere());
            update.persistent_keepalive_secs = Some(1);
            update.allowed_ips = vec![AllowedIpChange::Add(format!("10.1.0.{n}/32").parse().unwrap())];
            pair.command(0, Command::SetPeer(update));
            pair.command(0, Command::Initiate(point));
            pair.send_packet(0, &packet_between([10, 0, 0, 1], [10, 1, 0, n], b"to nobody"));
            // Its messages are silently refused too, though the key is known.
            let claimed = Identity { secret: stranger().secret, public: point };
            let (_, forged) = initiation(suite, &claimed, &pair.public(0), 9, later(0));
            pair.assert_ignored(0, elsewhere(), &forged, DropReason::BadHandshake);
        }
        pair.advance(secs(30));
        assert!(pair.seen.is_empty());
        assert_eq!(pair.hosts[0].engine.indices_in_use(), 0);
        pair.assert_works();
    }
}

/// With the highest bit clear and set: X25519 ignores it.
fn low_order_points_in_every_encoding() -> impl Iterator<Item = PublicKey> {
    let with_high_bit = |mut point: [u8; 32]| {
        point[31] |= 0x80;
        point
    };
    low_order_points().into_iter().flat_map(move |point| [point, with_high_bit(point)]).map(PublicKey)
}

#[test]
fn p08_the_seven_points_are_refused_by_the_diffie_hellman_itself() {
    let secret = StaticSecret::from_bytes([0x31; 32]);
    for point in low_order_points_in_every_encoding() {
        assert!(secret.diffie_hellman(&point).is_err(), "{point:?}");
    }
    let mut base = [0; 32];
    base[0] = 9;
    assert_eq!(*secret.diffie_hellman(&PublicKey(base)).unwrap(), secret.public_key().0);
}

#[test]
fn p09_an_initiation_counts_once_and_only_if_it_is_newer() {
    for suite in Suite::ALL {
        let mut pair = Pair::new(suite);
        let alice = pair.hosts[0].identity.clone();
        let create = |pair: &Pair, n| initiation(suite, &alice, &pair.public(1), 9, later(n)).1;
        let source = pair.hosts[0].endpoint;
        let [older, first, newer] = [4, 5, 6].map(|n| create(&pair, n));
        pair.receive(1, source, &first);
        assert_eq!(pair.wire.pop_back().unwrap().bytes.len(), RESPONSE_LEN);
        pair.skip(secs(1));
        for stale in [&first, &older, &create(&pair, 5)] {
            pair.assert_ignored(1, elsewhere(), stale, DropReason::StaleTimestamp);
        }
        assert_eq!(pair.believed_endpoint(1), source);
        pair.receive(1, elsewhere(), &newer);
        assert_eq!(pair.wire.pop_back().unwrap().destination, elsewhere());
        assert_eq!(pair.believed_endpoint(1), elsewhere(), "a new one does move the endpoint");
    }
}

#[test]
fn p09_a_peer_gets_fifty_initiations_a_second() {
    let mut pair = Pair::new(Suite::ChaCha20Poly1305);
    let alice = pair.hosts[0].identity.clone();
    let source = pair.hosts[0].endpoint;
    for n in 0..500 {
        let (_, message) = initiation(pair.suite, &alice, &pair.public(1), 9, later(n));
        if n % 10 == 0 {
            pair.receive(1, source, &message);
        } else {
            pair.assert_ignored(1, elsewhere(), &message, DropReason::InitiationFlood);
        }
        pair.skip(millis(2));
    }
    assert_eq!(pair.seen.len(), 50);
    assert_eq!(pair.hosts[1].engine.indices_in_use(), 1);
}

#[test]
fn p10_the_last_timestamp_of_all_locks_a_peer_out_until_it_is_configured_anew() {
    for suite in Suite::ALL {
        let mut pair = Pair::new(suite);
        let alice = pair.hosts[0].identity.clone();
        let source = pair.hosts[0].endpoint;
        let end_of_time = Tai64n::from_bytes([0xff; 12]);
        let (_, message) = initiation(suite, &alice, &pair.public(1), 9, end_of_time);
        pair.receive(1, source, &message);
        assert_eq!(pair.wire.pop_back().unwrap().bytes.len(), RESPONSE_LEN, "the protocol accepts it");
        pair.skip(secs(60));
        let honest = pair.take_initiation();
        pair.assert_ignored(1, source, &honest, DropReason::StaleTimestamp);
        let peer = pair.public(0);
        pair.command(1, Command::RemovePeer(peer));
        let mut update = PeerUpdate::new(peer);
        update.allowed_ips = vec![AllowedIpChange::Add("10.0.0.1/32".parse().unwrap())];
        pair.command(1, Command::SetPeer(update));
        assert_accepted(&mut pair, &honest);
    }
}

#[test]
fn p11_we_are_no_peer_of_ourselves() {
    for suite in Suite::ALL {
        let mut pair = Pair::new(suite);
        let bob = pair.hosts[1].identity.clone();
        pair.command(1, Command::SetPeer(PeerUpdate::new(bob.public)));
        assert_eq!(pair.hosts[1].engine.peers(pair.clock.now).len(), 1);
        let (_, to_self) = initiation(suite, &bob, &bob.public, 9, later(0));
        pair.assert_ignored(1, pair.hosts[1].endpoint, &to_self, DropReason::UnknownPeer);
        pair.assert_works();
    }
}

#[test]
fn p11_a_key_that_was_a_peers_becomes_ours_and_the_peer_is_gone() {
    let mut pair = Pair::new(Suite::ChaCha20Poly1305);
    let secret = pair.hosts[0].identity.secret.clone();
    pair.command(1, Command::SetPrivateKey(Some(secret)));
    assert!(pair.hosts[1].engine.peers(pair.clock.now).is_empty());
}

#[test]
fn p12_a_response_that_answers_nothing_is_dropped() {
    for suite in Suite::ALL {
        let mut pair = Pair::new(suite);
        let initiation = pair.take_initiation();
        let response = take_response(&mut pair, &initiation);
        let mut wrong_index = response;
        wrong_index[8] ^= 1;
        stamp_mac1(suite, &pair.public(0), &mut wrong_index);
        assert_eq!(pair.assert_ignored(0, elsewhere(), &wrong_index, DropReason::UnexpectedReply), 0);
        pair.receive(0, pair.hosts[1].endpoint, &response);
        pair.drive();
        assert_eq!(pair.assert_ignored(0, elsewhere(), &response, DropReason::UnexpectedReply), 0);
        assert_eq!(pair.assert_ignored(1, elsewhere(), &response, DropReason::BadMac1), 0);
        pair.assert_works();
    }
}

#[test]
fn p13_garbage_with_the_right_index_does_not_stop_the_real_response() {
    for suite in Suite::ALL {
        let mut pair = Pair::new(suite);
        let initiation = pair.take_initiation();
        let response = take_response(&mut pair, &initiation);
        let mut rng = ChaCha20Rng::seed_from_u64(13);
        for _ in 0..50 {
            let mut garbage = response;
            rng.fill_bytes(&mut garbage[12..60]);
            stamp_mac1(suite, &pair.public(0), &mut garbage);
            pair.assert_ignored(0, elsewhere(), &garbage, DropReason::BadHandshake);
        }
        pair.receive(0, pair.hosts[1].endpoint, &response);
        pair.drive();
        assert!(pair.has_session(0));
        pair.assert_works();
    }
}

#[test]
fn p14_initiations_back_to_back_hold_one_index() {
    for suite in Suite::ALL {
        let mut pair = Pair::new(suite);
        pair.cut = true;
        for _ in 0..100 {
            pair.initiate(0);
            assert_eq!(pair.hosts[0].engine.indices_in_use(), 1);
            pair.advance(millis(100));
        }
        assert_eq!(pair.initiations_since(0).len(), 2, "one each five seconds, however often asked");
        pair.cut = false;

        let alice = pair.hosts[0].identity.clone();
        for n in 0..100 {
            let (_, message) = initiation(suite, &alice, &pair.public(1), n, later(n.into()));
            pair.receive(1, pair.hosts[0].endpoint, &message);
            assert_eq!(pair.hosts[1].engine.indices_in_use(), 1);
            pair.skip(millis(100));
        }
        pair.wire.clear();
        pair.skip(secs(1_000));
        pair.assert_works();
    }
}

/// The cookie reply that the host with key `from` would give to `message` sent by `host`.
fn cookie_reply(pair: &Pair, from: &PublicKey, suite: Suite, receiver: u32, mac1: [u8; 16]) -> [u8; 64] {
    let mut random = |bytes: &mut [u8]| bytes.fill(0x99);
    let source = &pair.hosts[0].endpoint;
    CookieChecker::new(from).create_reply(suite, receiver, &mac1, source, pair.clock.now, &mut random)
}

fn mac1_of(initiation: &[u8]) -> [u8; 16] {
    initiation[116..132].try_into().unwrap()
}

#[test]
fn p15_a_cookie_reply_counts_once_and_only_for_our_last_mac1() {
    for suite in Suite::ALL {
        let mut pair = Pair::new(suite);
        let initiation = pair.take_initiation();
        let (index, mac1, bob) = (index_at(&initiation, 4), mac1_of(&initiation), pair.public(1));
        let honest = cookie_reply(&pair, &bob, suite, index, mac1);

        let mut other_mac1 = mac1;
        other_mac1[0] ^= 1;
        let wrong_text = cookie_reply(&pair, &bob, suite, index, other_mac1);
        pair.assert_ignored(0, elsewhere(), &wrong_text, DropReason::BadCookie);
        let wrong_key = cookie_reply(&pair, &stranger().public, suite, index, mac1);
        pair.assert_ignored(0, elsewhere(), &wrong_key, DropReason::BadCookie);
        let wrong_index = cookie_reply(&pair, &bob, suite, index ^ 1, mac1);
        assert_eq!(pair.assert_ignored(0, elsewhere(), &wrong_index, DropReason::UnexpectedReply), 0);
        let wrong_suite = cookie_reply(&pair, &bob, other(suite), index, mac1);
        pair.assert_ignored(0, elsewhere(), &wrong_suite, DropReason::SuiteMismatch);

        let before = pair.snapshot(0);
        pair.receive(0, elsewhere(), &honest);
        assert_eq!(pair.snapshot(0), before, "even a good one moves no endpoint and no timer");
        assert_eq!(pair.dropped(0, DropReason::UnexpectedReply), 1);
        pair.assert_ignored(0, elsewhere(), &honest, DropReason::UnexpectedReply);

        pair.cut = true;
        pair.advance(secs(6));
        let retry = &pair.seen.last().unwrap().bytes;
        assert_eq!(retry.len(), INITIATION_LEN);
        assert_ne!(retry[132..], [0; 16], "the cookie is in use");
    }
}

#[test]
fn p15_nobody_waits_for_a_cookie_before_the_first_message() {
    let mut pair = Pair::new(Suite::ChaCha20Poly1305);
    let reply = cookie_reply(&pair, &pair.public(1), pair.suite, 0, [0; 16]);
    assert_eq!(pair.assert_ignored(0, pair.hosts[1].endpoint, &reply, DropReason::UnexpectedReply), 0);
    pair.assert_works();
}

#[test]
fn p16_a_flood_of_cookie_replies_makes_no_initiation_and_the_first_good_one_is_kept() {
    for suite in Suite::ALL {
        let mut pair = Pair::new(suite);
        let initiation = pair.take_initiation();
        let (index, mac1) = (index_at(&initiation, 4), mac1_of(&initiation));
        let mut forged = cookie_reply(&pair, &pair.public(1), suite, index, mac1);
        let honest = forged;
        for n in 0..10_000_u32 {
            forged[8..12].copy_from_slice(&n.to_le_bytes());
            assert_eq!(pair.assert_ignored(0, elsewhere(), &forged, DropReason::BadCookie), 1);
        }
        pair.receive(0, elsewhere(), &honest);
        for _ in 0..1_000 {
            pair.assert_ignored(0, elsewhere(), &honest, DropReason::UnexpectedReply);
        }
        pair.advance(millis(4_999));
        assert_eq!(pair.initiations_since(0).len(), 1, "the retry waits for its time");
        pair.advance(millis(400));
        assert_eq!(pair.initiations_since(0).len(), 2);
        pair.assert_works();
    }
}

#[test]
fn p17_initiations_that_cross_every_time_still_give_one_session() {
    for suite in Suite::ALL {
        let mut pair = Pair::new(suite);
        // Three rounds in which both start at the same moment and neither hears the other.
        pair.cut = true;
        for _ in 0..3 {
            pair.initiate(0);
            pair.initiate(1);
            pair.skip(secs(6));
        }
        pair.cut = false;
        pair.initiate(0);
        pair.initiate(1);
        assert_eq!(pair.wire.len(), 2, "they cross");
        pair.drive();
        pair.establish();
        let message = pair.seal(0, &packet(0, b"which session?"));
        assert_eq!(index_at(&message, 4), pair.keypair(1).local_index, "both send on the same session");
        let message = pair.seal(1, &packet(1, b"which session?"));
        assert_eq!(index_at(&message, 4), pair.keypair(0).local_index);

        let since = pair.seen.len();
        for _ in 0..100 {
            pair.assert_works();
            pair.advance(secs(1));
        }
        assert_eq!(pair.initiations_since(since).len(), 0, "no fight goes on");
        assert!(pair.hosts.iter().all(|host| host.engine.indices_in_use() <= 3));
    }
}

#[test]
fn p18_transport_messages_that_no_session_opens_are_dropped() {
    for suite in Suite::ALL {
        let mut pair = Pair::new(suite);
        pair.establish();
        let honest = pair.seal(0, &packet(0, b"honest"));
        for bit in 32..honest.len() * 8 {
            let mut changed = honest.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            let reason = if bit < 64 { DropReason::UnknownIndex } else { DropReason::BadTag };
            assert_eq!(pair.assert_ignored(1, elsewhere(), &changed, reason), 0);
        }
        for counter in [REJECT_AFTER_MESSAGES, u64::MAX] {
            let mut at_limit = honest.clone();
            at_limit[8..16].copy_from_slice(&counter.to_le_bytes());
            pair.assert_ignored(1, elsewhere(), &at_limit, DropReason::ExpiredKeypair);
        }
        for len in 0..honest.len() {
            let reason = if len < 32 { DropReason::MalformedDatagram } else { DropReason::BadTag };
            pair.assert_ignored(1, elsewhere(), &honest[..len], reason);
        }
        pair.receive(1, pair.hosts[0].endpoint, &honest);
        assert_eq!(pair.hosts[1].delivered, [packet(0, b"honest")]);
        pair.assert_ignored(1, elsewhere(), &honest, DropReason::Replay);
        assert_eq!(pair.believed_endpoint(1), pair.hosts[0].endpoint, "no forgery moved the endpoint");

        let late = pair.seal(0, &packet(0, b"late"));
        pair.skip(secs(180));
        pair.assert_ignored(1, elsewhere(), &late, DropReason::ExpiredKeypair);
    }
}

#[test]
fn p19_an_authentic_message_must_hold_an_honest_packet() {
    let v4 = packet(0, b"some payload");
    let mut v6 = vec![0x60, 0, 0, 0, 0, 8, 17, 64];
    v6.extend("fd00::1".parse::<core::net::Ipv6Addr>().unwrap().octets());
    v6.extend("fd00::2".parse::<core::net::Ipv6Addr>().unwrap().octets());
    v6.extend([0; 8]);
    let with = |packet: &[u8], at: usize, byte: u8| {
        let mut packet = packet.to_vec();
        packet[at] = byte;
        packet
    };
    let mut dishonest = vec![vec![0x45], vec![0x60], vec![0], vec![0; 16], vec![0x45; 19], vec![0x60; 39]];
    dishonest.extend([0, 1, 2, 3, 5, 7, 8, 15].map(|version: u8| with(&v4, 0, (version << 4) | 5)));
    dishonest.extend([0, 1, 4].map(|header_words: u8| with(&v4, 0, 0x40 | header_words)));
    dishonest.push(with(&v4, 3, v4.len() as u8 + 1));
    dishonest.push(with(&v4, 2, 0xff));
    dishonest.push(with(&v4, 3, 19));
    dishonest.push(with(&v6, 5, 9));
    dishonest.push(with(&v6, 4, 0xff));

    for suite in Suite::ALL {
        let mut pair = Pair::new(suite);
        pair.establish();
        let sent = pair.seen.len();
        for (n, plaintext) in (1..).zip(&dishonest) {
            let message = pair.seal(0, plaintext);
            pair.receive(1, pair.hosts[0].endpoint, &message);
            assert_eq!(pair.dropped(1, DropReason::MalformedInside), n, "{plaintext:02x?}");
        }
        let keepalive = pair.seal(0, b"");
        pair.receive(1, pair.hosts[0].endpoint, &keepalive);
        assert_eq!(pair.dropped(1, DropReason::MalformedInside), dishonest.len() as u64);
        assert!(pair.hosts[1].delivered.is_empty());
        assert_eq!(pair.seen.len(), sent, "nothing is answered");
        for honest in [&v4, &v6] {
            let message = pair.seal(0, honest);
            pair.receive(1, pair.hosts[0].endpoint, &message);
            assert_eq!(pair.hosts[1].delivered.last().unwrap(), honest);
        }
    }
}

#[test]
fn p20_the_suite_of_a_peer_is_the_pinned_one() {
    for suite in Suite::ALL {
        let mut pair = Pair::new(suite);
        let alice = pair.hosts[0].identity.clone();
        let (_, wrong) = initiation(other(suite), &alice, &pair.public(1), 9, later(0));
        pair.assert_ignored(1, pair.hosts[0].endpoint, &wrong, DropReason::SuiteMismatch);

        let honest = pair.take_initiation();
        let response = take_response(&mut pair, &honest);
        let mut wrong = response;
        wrong[0] = other(suite).message_types().response;
        assert_eq!(pair.assert_ignored(0, elsewhere(), &wrong, DropReason::BadMac1), 0, "another label");
        stamp_mac1(other(suite), &pair.public(0), &mut wrong);
        pair.assert_ignored(0, elsewhere(), &wrong, DropReason::SuiteMismatch);
        pair.receive(0, pair.hosts[1].endpoint, &response);
        pair.drive();

        let honest = pair.seal(0, &packet(0, b"pinned"));
        let mut wrong = honest.clone();
        wrong[0] = other(suite).message_types().transport;
        assert_eq!(pair.assert_ignored(1, elsewhere(), &wrong, DropReason::SuiteMismatch), 0);
        pair.receive(1, pair.hosts[0].endpoint, &honest);
        assert_eq!(pair.hosts[1].delivered.last().unwrap(), &packet(0, b"pinned"));
    }
}

#[test]
fn p20_two_peers_pinned_to_different_suites_stay_apart() {
    let mut pair = Pair::new(Suite::ChaCha20Poly1305);
    pair.change_peer(0, |update| update.suite = Some(Suite::Aes256Gcm));
    pair.send(0, b"never arrives");
    pair.advance(secs(100));
    assert!(!pair.has_session(0) && !pair.has_session(1));
    assert_eq!(pair.dropped(1, DropReason::SuiteMismatch), u64::from(MAX_HANDSHAKE_ATTEMPTS));
    assert!(pair.seen.iter().all(|datagram| datagram.bytes[0] == 0x21), "neither tries the other suite");
    pair.change_peer(1, |update| update.suite = Some(Suite::Aes256Gcm));
    pair.assert_works();
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
fn under_load_a_valid_mac1_gets_a_cookie_reply_smaller_than_itself_and_nothing_else() {
    for suite in Suite::ALL {
        let mut pair = Pair::under_load(suite);
        let honest = pair.take_initiation();
        let mut bad_mac1 = honest.clone();
        bad_mac1[116] ^= 1;
        assert_eq!(pair.assert_ignored(1, elsewhere(), &bad_mac1, DropReason::BadMac1), 0);
        let (_, of_a_stranger) = initiation(suite, &stranger(), &pair.public(1), 9, later(0));
        for message in [&honest[..], &of_a_stranger[..]] {
            let sent = pair.seen.len();
            pair.receive(1, elsewhere(), message);
            let replies = &pair.seen[sent..];
            assert_eq!(replies.len(), 1);
            assert_eq!(replies[0].bytes.len(), COOKIE_REPLY_LEN);
            assert!(replies[0].bytes.len() < message.len());
            assert_eq!(replies[0].destination, elsewhere());
            assert_eq!(index_at(&replies[0].bytes, 4), index_at(message, 4));
        }
        assert_eq!(pair.dropped(1, DropReason::CookieRequired), 2);
        assert_eq!(pair.hosts[1].engine.indices_in_use(), 0);
        assert_eq!(pair.hosts[1].engine.next_timeout(), None);
        pair.wire.clear();
        pair.advance(secs(20));
        pair.assert_works();
    }
}

#[test]
fn without_a_budget_for_cookie_replies_there_is_silence() {
    let none = Rate { per_sec: 0, burst: 0 };
    let limits = LimitConfig { unverified: none, cookie_replies: none, ..LimitConfig::default() };
    let mut pair = Pair::with_limits(Suite::ChaCha20Poly1305, limits);
    let honest = pair.take_initiation();
    pair.assert_ignored(1, elsewhere(), &honest, DropReason::RateLimited);
}

#[test]
fn a_response_under_load_is_answered_by_a_cookie_and_the_handshake_still_comes_about() {
    for suite in Suite::ALL {
        let unverified = Rate { per_sec: 0, burst: 0 };
        let mut pair = Pair::new(suite);
        let limited = Pair::with_limits(suite, LimitConfig { unverified, ..LimitConfig::default() });
        let [initiator, _] = limited.hosts;
        pair.hosts[0] = initiator;
        pair.send(0, b"hello");
        pair.drive();
        let sizes: Vec<_> = pair.seen.iter().map(|datagram| datagram.bytes.len()).collect();
        assert_eq!(sizes, [INITIATION_LEN, RESPONSE_LEN, COOKIE_REPLY_LEN]);
        pair.advance(secs(6));
        assert_eq!(pair.hosts[1].delivered, [packet(0, b"hello")]);
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
