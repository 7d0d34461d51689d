//! Keys that are not those of a peer, and keys that are none.

use adit_proto::event::{AllowedIpChange, Command, Event, PeerUpdate};
use adit_proto::handshake::{AwaitingResponse, Identity};
use adit_proto::key::{PresharedKey, PublicKey, StaticSecret};
use adit_proto::reason::DropReason;
use adit_proto::suite::Suite;
use adit_proto::timers::MAX_HANDSHAKE_ATTEMPTS;
use adit_proto::wire::{INITIATION_LEN, Message};

use super::{assert_accepted, later, other, take_response};
use crate::common::*;

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
