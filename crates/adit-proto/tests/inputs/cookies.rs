//! Cookies, and what is answered under load.

use adit_proto::cookie::CookieChecker;
use adit_proto::key::PublicKey;
use adit_proto::limit::{LimitConfig, Rate};
use adit_proto::reason::DropReason;
use adit_proto::suite::Suite;
use adit_proto::wire::{COOKIE_REPLY_LEN, INITIATION_LEN, RESPONSE_LEN};

use super::{later, other};
use crate::common::*;

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
