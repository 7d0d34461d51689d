//! Handshakes: what is under way must survive, what is over must be let go.

use std::sync::{Arc, Mutex};

use adit_proto::engine::{Engine, EngineConfig};
use adit_proto::event::{Command, Event, Output, PeerUpdate, Timestamps};
use adit_proto::handshake::Identity;
use adit_proto::key::{PresharedKey, StaticSecret};
use adit_proto::keypair::REKEY_AFTER_BLOCKS;
use adit_proto::reason::DropReason;
use adit_proto::suite::Suite;
use adit_proto::time::{Clock, Instant, Tai64n, UnixTime};
use adit_proto::wire::{INITIATION_LEN, RESPONSE_LEN};
use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore, SeedableRng};

use crate::common::*;

#[test]
fn r05_a_forged_response_does_not_destroy_the_pending_handshake() {
    for suite in Suite::ALL {
        let mut pair = Pair::new(suite);
        let initiation = pair.take_initiation();
        pair.receive(1, pair.hosts[0].endpoint, &initiation);
        let response: [u8; RESPONSE_LEN] = pair.wire.pop_back().unwrap().bytes.try_into().unwrap();
        let mut wrong_psk = Pair::new(suite);
        wrong_psk.set_psk(1, [9; 32]);
        wrong_psk.receive(1, pair.hosts[0].endpoint, &initiation);
        let wrong_psk = wrong_psk.wire.pop_back().unwrap().bytes;
        pair.assert_ignored(0, pair.hosts[1].endpoint, &wrong_psk, DropReason::BadHandshake);
        for byte in 12..60 {
            let mut forged = response;
            forged[byte] ^= 0x40;
            stamp_mac1(suite, &pair.public(0), &mut forged);
            pair.assert_ignored(0, pair.hosts[1].endpoint, &forged, DropReason::BadHandshake);
        }
        pair.receive(0, pair.hosts[1].endpoint, &response);
        pair.drive();
        assert_eq!(pair.initiations_since(0).len(), 1);
        pair.assert_works();
    }
}

#[test]
fn r05_a_forged_initiation_does_not_end_the_session() {
    for suite in Suite::ALL {
        let mut pair = Pair::new(suite);
        pair.establish();
        pair.skip(secs(1));
        let session = pair.keypair(1).local_index;
        let impostor = Identity { secret: stranger().secret, public: pair.public(0) };
        for n in 0..20 {
            let stamp = Tai64n::from_unix(UnixTime { secs: 1_800_000_000 + n, nanos: 0 });
            let (_, forged) = initiation(suite, &impostor, &pair.public(1), 5, stamp);
            pair.assert_ignored(1, elsewhere(), &forged, DropReason::BadHandshake);
        }
        assert_eq!(pair.keypair(1).local_index, session);
        pair.assert_works();
    }
}

#[test]
fn r06_handshakes_that_come_to_nothing_leave_no_index_behind() {
    let mut pair = Pair::new(Suite::ChaCha20Poly1305);
    pair.cut = true;
    for _ in 0..10 {
        pair.send(0, b"lost");
        assert_eq!(pair.hosts[0].engine.indices_in_use(), 1);
        pair.advance(secs(100));
        assert_eq!(pair.hosts[0].engine.indices_in_use(), 0, "given up");
    }
    assert_eq!(pair.initiations_since(0).len(), 180);
    pair.cut = false;
    pair.assert_works();
}

#[test]
fn r06_sessions_that_follow_one_another_hold_three_indices_at_most() {
    for suite in Suite::ALL {
        let mut pair = Pair::new(suite);
        pair.establish();
        for _ in 0..50 {
            pair.advance(secs(100));
            pair.initiate(0);
            pair.drive();
            pair.assert_works();
            assert!(pair.hosts.iter().all(|host| host.engine.indices_in_use() <= 3));
        }
        assert_eq!(pair.initiations_since(0).len(), 51);
        let peer = pair.public(1);
        pair.command(0, Command::RemovePeer(peer));
        assert_eq!(pair.hosts[0].engine.indices_in_use(), 0);
        pair.advance(secs(600));
        assert_eq!(pair.hosts[1].engine.indices_in_use(), 0, "erased after a long silence");
    }
}

#[test]
fn r11_every_index_is_four_fresh_random_bytes() {
    let drawn: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
    let log = Arc::clone(&drawn);
    let mut rng = ChaCha20Rng::seed_from_u64(11);
    let random = Box::new(move |bytes: &mut [u8]| {
        rng.fill_bytes(bytes);
        log.lock().unwrap().push(bytes.to_vec());
    });
    let (mut engine, _forwarding) = Engine::new(EngineConfig::default(), random);
    let mut clock = Clock { now: Instant::ZERO, wall: UnixTime { secs: 1_700_000_000, nanos: 0 } };
    let peer = stranger().public;
    let secret = StaticSecret::from_bytes([1; 32]);
    engine.handle_command(clock, Command::SetPrivateKey(Some(secret)));
    let mut update = PeerUpdate::new(peer);
    update.endpoint = Some(elsewhere());
    engine.handle_command(clock, Command::SetPeer(update));
    let mut indices = Vec::new();
    for _ in 0..500 {
        drawn.lock().unwrap().clear();
        engine.handle_command(clock, Command::Initiate(peer));
        while let Some(output) = engine.poll_output(clock.now) {
            let Output::Transmit(transmit) = output else { continue };
            let index = transmit.contents[4..8].to_vec();
            assert!(drawn.lock().unwrap().contains(&index), "the index was not drawn for this handshake");
            indices.push(index);
        }
        clock.now = clock.now.saturating_add(secs(6));
        clock.wall.secs += 6;
    }
    indices.sort();
    indices.dedup();
    assert_eq!(indices.len(), 500);
}

#[test]
fn r18_a_changed_pre_shared_key_holds_from_the_next_handshake_in_either_role() {
    for suite in Suite::ALL {
        let mut pair = Pair::new(suite);
        pair.establish();
        for (round, initiator) in [(1, 0), (2, 1), (3, 0), (4, 1)] {
            pair.set_psk(0, [round; 32]);
            pair.assert_works();
            pair.advance(secs(20));
            pair.initiate(initiator);
            pair.drive();
            let old = pair.keypair(initiator);
            assert_eq!(pair.dropped(initiator, DropReason::BadHandshake), u64::from(round.div_ceil(2)));
            pair.assert_works();

            pair.set_psk(1, [round; 32]);
            pair.advance(secs(20));
            pair.initiate(initiator);
            pair.drive();
            assert_ne!(pair.keypair(initiator).local_index, old.local_index);
            pair.assert_works();
            pair.advance(secs(20));
        }
    }
}

#[test]
fn r18_a_pre_shared_key_set_while_a_handshake_is_pending_counts() {
    let mut pair = Pair::new(Suite::ChaCha20Poly1305);
    let initiation = pair.take_initiation();
    pair.set_psk(1, [8; 32]);
    pair.receive(1, pair.hosts[0].endpoint, &initiation);
    let response = pair.wire.pop_back().unwrap().bytes;
    pair.assert_ignored(0, pair.hosts[1].endpoint, &response, DropReason::BadHandshake);
    pair.set_psk(0, [8; 32]);
    pair.receive(0, pair.hosts[1].endpoint, &response);
    pair.drive();
    pair.assert_works();
    assert_eq!(pair.status(0).preshared_key, PresharedKey::from_bytes([8; 32]));
}

#[test]
fn r25_the_timestamp_of_an_initiation_does_not_tell_the_time() {
    for nanos in [0, 1, 16_777_215, 16_777_216, 123_456_789, 999_999_999] {
        let mut pair = Pair::new(Suite::ChaCha20Poly1305);
        pair.clock.wall.nanos = nanos;
        let initiation = pair.take_initiation();
        let (_, timestamp) = open_initiation(&pair.hosts[1].identity, &initiation);
        let sent = u32::from_be_bytes(*timestamp.as_bytes().last_chunk().unwrap());
        assert_eq!(sent % (1 << 24), 0, "{sent} ns");
        assert!(sent <= nanos && nanos - sent < 1 << 24);
    }
}

#[test]
fn r28_a_wall_clock_that_was_in_the_far_future_once_does_not_lock_us_out() {
    for suite in Suite::ALL {
        let mut pair = Pair::new(suite);
        pair.establish();
        pair.skip(secs(6));
        let today = pair.clock.wall;
        pair.clock.wall.secs += 500 * 365 * 86_400;
        pair.initiate(0);
        pair.drive();
        pair.assert_works();
        pair.clock.wall = today;
        for _ in 0..5 {
            pair.skip(secs(6));
            let before = pair.keypair(0).local_index;
            pair.initiate(0);
            pair.drive();
            assert_ne!(pair.keypair(0).local_index, before, "a new session was accepted");
            pair.assert_works();
        }
        assert_eq!(pair.dropped(1, DropReason::StaleTimestamp), 0);

        // A restart forgets that, unless the program hands the timestamp on.
        let timestamps = pair.status(0).timestamps;
        pair.restart(0);
        pair.initiate(0);
        pair.drive();
        assert_eq!(pair.dropped(1, DropReason::StaleTimestamp), 1);
        pair.restart(0);
        pair.resume(0, timestamps);
        pair.skip(secs(6));
        pair.assert_works();
    }
}

#[test]
fn a_restarted_responder_that_kept_its_timestamps_refuses_a_recorded_initiation() {
    for keeps in [false, true] {
        let mut pair = Pair::new(Suite::Aes256Gcm);
        pair.establish();
        let recorded =
            pair.seen.iter().find(|seen| seen.bytes.len() == INITIATION_LEN).unwrap().bytes.clone();
        let timestamps = pair.status(1).timestamps;
        pair.restart(1);
        if keeps {
            pair.resume(1, timestamps);
        }
        let before = pair.seen.len();
        pair.receive(1, elsewhere(), &recorded);
        assert_eq!(pair.dropped(1, DropReason::StaleTimestamp), u64::from(keeps));
        assert_eq!(pair.seen.len() > before, !keeps, "it is answered only by one who forgot");
        assert_eq!(pair.believed_endpoint(1) == elsewhere(), !keeps);
    }
}

#[test]
fn keepalives_each_second_do_not_keep_a_dead_handshake_from_giving_up() {
    let mut pair = Pair::new(Suite::ChaCha20Poly1305);
    pair.cut = true;
    pair.change_peer(0, |peer| peer.persistent_keepalive_secs = Some(1));
    pair.advance(secs(110));
    let gave_up = |event: &Event| matches!(event, Event::HandshakeGaveUp { .. });
    assert!(pair.hosts[0].events.iter().any(gave_up), "{:?}", pair.hosts[0].events);
    let silent = |event: &Event| matches!(event, Event::EndpointSilent { .. });
    assert!(pair.hosts[0].events.iter().any(silent));
}

#[test]
fn r28_the_end_of_time_makes_no_initiation_panic() {
    let mut pair = Pair::new(Suite::ChaCha20Poly1305);
    let sent = Some(Tai64n::from_bytes([0xff; 12]));
    pair.resume(0, Timestamps { sent, received: None });
    pair.clock.wall = UnixTime { secs: u64::MAX, nanos: u32::MAX };
    pair.initiate(0);
    assert_eq!(pair.seen.last().unwrap().bytes.len(), INITIATION_LEN);
}

#[test]
fn r40_a_responder_that_renews_a_session_does_not_fight_with_the_initiator() {
    for both_at_once in [false, true] {
        let mut pair = Pair::new(Suite::Aes256Gcm);
        pair.establish();
        pair.skip(secs(30));
        pair.keypair(1).skip_ahead(0, REKEY_AFTER_BLOCKS);
        if both_at_once {
            pair.keypair(0).skip_ahead(0, REKEY_AFTER_BLOCKS);
        }
        let since = pair.seen.len();
        // Both send before either hears the other, so the initiations cross.
        pair.send(1, b"from the responder");
        pair.send(0, b"from the initiator");
        pair.drive();
        let initiations = pair.initiations_since(since).len();
        assert_eq!(initiations, if both_at_once { 2 } else { 1 });
        for _ in 0..110 {
            pair.assert_works();
            pair.advance(secs(1));
        }
        assert_eq!(pair.initiations_since(since).len(), initiations, "no fight goes on");
        for _ in 0..600 {
            pair.assert_works();
            pair.advance(secs(1));
        }
        let renewals = pair.initiations_since(since).len() - initiations;
        assert!((5..=6).contains(&renewals), "{renewals} in 600 seconds: one side renews, each 120 seconds");
    }
}

#[test]
fn r40_both_sides_asking_all_the_time_get_one_handshake_each_five_seconds() {
    for suite in Suite::ALL {
        let mut pair = Pair::new(suite);
        pair.establish();
        pair.skip(secs(6));
        let since = pair.seen.len();
        for _ in 0..600 {
            pair.initiate(0);
            pair.initiate(1);
            pair.assert_works();
            pair.advance(millis(100));
        }
        let initiations = pair.initiations_since(since).len();
        assert!((22..=26).contains(&initiations), "{initiations} in 60 seconds from both together");
        assert!(pair.hosts.iter().all(|host| host.engine.indices_in_use() <= 4));
    }
}
