//! Initiations and responses that are forged, repeated, or cross.

use adit_proto::event::{AllowedIpChange, Command, PeerUpdate};
use adit_proto::reason::DropReason;
use adit_proto::suite::Suite;
use adit_proto::time::Tai64n;
use adit_proto::wire::{INITIATION_LEN, RESPONSE_LEN};
use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore, SeedableRng};

use super::{assert_accepted, later, take_response};
use crate::common::*;

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
