//! Nonces and keys: what must never repeat, and what must never be used.

use adit_proto::handshake::{AwaitingResponse, Identity, OpenedInitiation, Refused};
use adit_proto::key::{PresharedKey, PublicKey, StaticSecret};
use adit_proto::keypair::{
    Keypair, REJECT_AFTER_BLOCKS, REJECT_AFTER_MESSAGES, REKEY_AFTER_BLOCKS, REKEY_AFTER_MESSAGES,
};
use adit_proto::packet::Ecn;
use adit_proto::reason::DropReason;
use adit_proto::replay::{ReplayWindow, WINDOW};
use adit_proto::suite::Suite;
use adit_proto::time::Tai64n;
use adit_proto::wire::{self, INITIATION_LEN, Message, TransportHeader};

use crate::common::*;

/// With a counter narrower than 64 bits in any of these, on any target, this would not compile.
const _: fn(&Keypair, u64, u64) -> Option<u64> = Keypair::reserve;
const _: fn(&Keypair, u64, &mut [u8]) -> Option<()> = Keypair::seal;
const _: fn(&ReplayWindow, u64) -> bool = ReplayWindow::would_accept;
const _: fn(&TransportHeader) -> u64 = |header| header.counter;
const _: () = assert!(REJECT_AFTER_MESSAGES > u32::MAX as u64 && WINDOW < u32::MAX as u64);

fn counter_of(message: &[u8]) -> u64 {
    u64::from_le_bytes(*message[8..].first_chunk().unwrap())
}

#[test]
fn r01_the_counter_does_not_wrap_at_32_bits() {
    for suite in Suite::ALL {
        let mut pair = Pair::new(suite);
        pair.establish();
        let plaintext = packet(0, b"the same text");
        let low: Vec<_> = (0..4).map(|_| pair.seal(0, &plaintext)).collect();
        let first = counter_of(&low[0]);
        pair.keypair(0).skip_ahead(first + (1 << 32), 0);
        let high: Vec<_> = (0..4).map(|_| pair.seal(0, &plaintext)).collect();
        for (low, high) in low.iter().zip(&high) {
            assert_eq!(counter_of(high), counter_of(low) + (1 << 32));
            assert_ne!(low[16..32], high[16..32], "the nonce holds all of the counter");
        }
        for message in &high {
            pair.receive(1, pair.hosts[0].endpoint, message);
        }
        assert_eq!(pair.hosts[1].delivered.len(), high.len());
        for message in low.iter().chain(&high) {
            pair.assert_ignored(1, pair.hosts[0].endpoint, message, DropReason::Replay);
        }
        pair.assert_works();
    }
}

#[test]
fn r02_no_message_is_sealed_or_opened_at_the_message_limit() {
    let mut pair = Pair::new(Suite::ChaCha20Poly1305);
    pair.establish();
    pair.keypair(0).skip_ahead(REJECT_AFTER_MESSAGES - 1, 0);
    let last = pair.seal(0, &packet(0, b"the last one"));
    assert_eq!(counter_of(&last), REJECT_AFTER_MESSAGES - 1);
    for wanted in [1, 2, u64::MAX] {
        assert_eq!(pair.keypair(0).reserve(wanted, wanted), None);
    }
    pair.receive(1, pair.hosts[0].endpoint, &last);
    assert_eq!(pair.hosts[1].delivered, [packet(0, b"the last one")]);

    let keypair = pair.keypair(0);
    let mut over = vec![0; 64];
    keypair.seal(REJECT_AFTER_MESSAGES, &mut over).unwrap();
    pair.assert_ignored(1, pair.hosts[0].endpoint, &over, DropReason::ExpiredKeypair);
}

#[test]
fn r02_the_engine_sends_no_keepalive_under_a_used_up_key() {
    let mut pair = Pair::new(Suite::ChaCha20Poly1305);
    pair.establish();
    let sent = pair.seen.len();
    pair.keypair(0).skip_ahead(REJECT_AFTER_MESSAGES, 0);
    pair.change_peer(0, |update| update.persistent_keepalive_secs = Some(25));
    assert_eq!(pair.seen.len(), sent);
    assert_eq!(pair.dropped(0, DropReason::KeyExhausted), 1);
}

#[test]
fn r02_a_session_renews_long_before_either_limit() {
    for (suite, counter, blocks) in [
        (Suite::ChaCha20Poly1305, REKEY_AFTER_MESSAGES, 0),
        (Suite::Aes256Gcm, REKEY_AFTER_MESSAGES, 0),
        (Suite::Aes256Gcm, 0, REKEY_AFTER_BLOCKS),
    ] {
        let mut pair = Pair::new(suite);
        pair.establish();
        pair.skip(secs(30));
        let old = pair.keypair(0);
        old.skip_ahead(counter.saturating_sub(3), blocks.saturating_sub(10));
        pair.assert_works();
        assert_eq!(pair.keypair(0).local_index, old.local_index, "not yet");
        old.skip_ahead(counter, blocks);
        let since = pair.seen.len();
        pair.assert_works();
        assert_eq!(pair.initiations_since(since).len(), 1);
        assert_ne!(pair.keypair(0).local_index, old.local_index);
        assert!(pair.keypair(0).used().0 < 5, "a new key counts from the start");
    }
}

#[test]
fn r03_release_builds_check_overflow() {
    let manifest = include_str!("../../../../Cargo.toml");
    let release = manifest.split("[profile.release]").nth(1).unwrap().split("\n[").next().unwrap();
    assert!(release.lines().any(|line| line.trim() == "overflow-checks = true"), "{release}");
}

#[test]
fn r03_counters_at_the_end_of_their_type_refuse_and_stay() {
    for suite in Suite::ALL {
        let mut pair = Pair::new(suite);
        pair.establish();
        let keypair = pair.keypair(0);
        assert!(keypair.reserve(1, 1).is_some());
        keypair.skip_ahead(u64::MAX, 0);
        for wanted in [1, 2, u64::MAX] {
            assert_eq!(keypair.reserve(wanted, 1), None);
            assert_eq!(keypair.used().0, u64::MAX);
        }
    }
    let mut pair = Pair::new(Suite::Aes256Gcm);
    pair.establish();
    let keypair = pair.keypair(0);
    let counter = keypair.used().0;
    for blocks in [REJECT_AFTER_BLOCKS, u64::MAX] {
        keypair.skip_ahead(0, blocks);
        assert_eq!(keypair.reserve(1, u64::MAX), None);
        assert_eq!(keypair.used(), (counter, blocks), "a refused reservation costs nothing");
    }
}

#[test]
fn r04_no_handshake_step_accepts_a_diffie_hellman_of_zeros() {
    for suite in Suite::ALL {
        let [alice, bob] = [1, 2].map(|n| Identity::new(StaticSecret::from_bytes([n; 32])));
        let ephemeral = || StaticSecret::from_bytes([3; 32]);
        let stamp = Tai64n::from_bytes([4; 12]);
        let (awaiting, honest) = initiation(suite, &alice, &bob.public, 7, stamp);
        for point in low_order_points().map(PublicKey) {
            let created =
                AwaitingResponse::create_initiation(suite, &alice, &point, &[0; 32], ephemeral(), 7, stamp);
            assert_eq!(created.map(|_| ()), Err(Refused));

            let mut message = honest;
            message[8..40].copy_from_slice(&point.0);
            let Ok((_, Message::Initiation(parsed))) = Message::parse(&message) else { panic!() };
            assert_eq!(OpenedInitiation::open(suite, &bob, &parsed).map(|_| ()), Err(Refused));

            // A static key of low order makes `ss` zero, which anybody can compute.
            let claimed = Identity { secret: alice.secret.clone(), public: point };
            let (_, message) = AwaitingResponse::create_initiation(
                suite,
                &claimed,
                &bob.public,
                &[0; 32],
                ephemeral(),
                7,
                stamp,
            )
            .unwrap();
            let Ok((_, Message::Initiation(parsed))) = Message::parse(&message) else { panic!() };
            let opened = OpenedInitiation::open(suite, &bob, &parsed).unwrap();
            assert_eq!(opened.remote, point);
            let authentic = opened.authenticate(&[0; 32]).unwrap();
            let answered = authentic.respond(&PresharedKey::default(), ephemeral(), 8);
            assert_eq!(answered.map(|_| ()), Err(Refused));

            let response = wire::response(suite, 8, 7, &point.0, &[0; 16]);
            let Ok((_, Message::Response(parsed))) = Message::parse(&response) else { panic!() };
            let consumed = awaiting.consume_response(&alice, &PresharedKey::default(), &parsed);
            assert_eq!(consumed.map(|_| ()), Err(Refused));
        }
        let Ok((_, Message::Initiation(parsed))) = Message::parse(&honest) else { panic!() };
        let ss = bob.secret.diffie_hellman(&alice.public).unwrap();
        let authentic = OpenedInitiation::open(suite, &bob, &parsed).unwrap().authenticate(&ss).unwrap();
        let (_, response) = authentic.respond(&PresharedKey::default(), ephemeral(), 8).unwrap();
        let Ok((_, Message::Response(parsed))) = Message::parse(&response) else { panic!() };
        assert!(awaiting.consume_response(&alice, &PresharedKey::default(), &parsed).is_ok());
    }
}

#[test]
fn r24_a_buffer_too_small_for_a_message_is_refused() {
    let mut pair = Pair::new(Suite::Aes256Gcm);
    pair.establish();
    let keypair = pair.keypair(0);
    for len in 0..32 {
        assert_eq!(keypair.seal(keypair.used().0, &mut vec![0; len]), None, "{len} bytes");
    }
    assert_eq!(keypair.seal(keypair.used().0, &mut [0; 32]), Some(()));
    pair.assert_works();
}

#[test]
fn r24_the_mtu_may_change_while_packets_flow() {
    let mut pair = Pair::new(Suite::Aes256Gcm);
    pair.establish();
    for mtu_bytes in [0, 1, 576, 1_279, 9_000, usize::MAX, 1_280] {
        pair.hosts[0].forwarding.set_mtu(mtu_bytes);
        for len in [0, 1, 500, 1_260, 1_400, 8_000] {
            pair.send(0, &vec![0x11; len]);
            pair.drive();
            assert_eq!(pair.hosts[1].delivered.pop().unwrap(), packet(0, &vec![0x11; len]));
        }
    }
}

#[test]
fn r26_a_forged_message_uses_up_no_counter() {
    for suite in Suite::ALL {
        let mut pair = Pair::new(suite);
        pair.establish();
        let honest = pair.seal(0, &packet(0, b"honest"));
        let counters = [counter_of(&honest), counter_of(&honest) + 1, 1 << 32, REJECT_AFTER_MESSAGES - 1];
        for counter in counters {
            let mut forged = honest.clone();
            forged[8..16].copy_from_slice(&counter.to_le_bytes());
            forged[20] ^= 1;
            pair.assert_ignored(1, elsewhere(), &forged, DropReason::BadTag);
        }
        pair.receive(1, pair.hosts[0].endpoint, &honest);
        assert_eq!(pair.hosts[1].delivered, [packet(0, b"honest")]);
        pair.assert_works();
    }
}

#[test]
fn r26_a_forged_handshake_message_changes_no_transcript() {
    for suite in Suite::ALL {
        let mut pair = Pair::new(suite);
        let honest = pair.take_initiation();
        for at in [8, 40, 88] {
            let mut forged: [u8; INITIATION_LEN] = honest.clone().try_into().unwrap();
            forged[at] ^= 1;
            stamp_mac1(suite, &pair.public(1), &mut forged);
            pair.assert_ignored(1, elsewhere(), &forged, DropReason::BadHandshake);
        }
        pair.receive(1, pair.hosts[0].endpoint, &honest);
        pair.drive();
        pair.assert_works();
    }
}

#[test]
fn r27_a_message_that_does_not_authenticate_leaves_no_plaintext() {
    const TEXT: &[u8] = b"not for those who forge";
    for suite in Suite::ALL {
        let mut pair = Pair::new(suite);
        pair.establish();
        let honest = pair.seal(0, &packet(0, TEXT));
        let shows = |buffer: &[u8]| buffer.windows(8).any(|window| window == &TEXT[..8]);
        let forwarding = &pair.hosts[1].forwarding;
        let source = pair.hosts[0].endpoint;
        let mut notices = Vec::new();
        let mut forged = honest.clone();
        *forged.last_mut().unwrap() ^= 1;
        let inside = forwarding.arrive(pair.clock.now, &source, Ecn::NotEct, &mut forged, &mut notices);
        assert_eq!(inside, None);
        assert!(!shows(&forged), "only the tag was wrong, and the text was there to decrypt");
        let mut buffer = honest.clone();
        assert!(forwarding.arrive(pair.clock.now, &source, Ecn::NotEct, &mut buffer, &mut notices).is_some());
        assert!(shows(&buffer));
    }
}
