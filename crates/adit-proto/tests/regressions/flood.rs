//! Floods of handshake messages: who is still let in, and what an attacker gets for nothing.

use adit_proto::endpoint::Endpoint;
use adit_proto::limit::{LimitConfig, Limiter, Verdict};
use adit_proto::reason::DropReason;
use adit_proto::suite::Suite;
use adit_proto::time::{Instant, Tai64n, UnixTime};
use adit_proto::wire::COOKIE_REPLY_LEN;

use crate::common::*;

/// A source that nobody else has, one for each `n`.
fn spoofed(n: u32) -> Endpoint {
    Endpoint::udp((core::net::Ipv4Addr::from_bits(0x0b00_0000 | n), 1_000).into())
}

#[test]
fn r15_a_thousand_honest_handshakes_need_no_cookie() {
    let mut pair = Pair::new(Suite::ChaCha20Poly1305);
    for _ in 0..1_000 {
        pair.initiate(0);
        pair.drive();
        pair.assert_works();
        pair.skip(secs(6));
    }
    assert_eq!(pair.initiations_since(0).len(), 1_000);
    assert!(pair.seen.iter().all(|datagram| datagram.bytes[0] != 3));
}

#[test]
fn r15_an_honest_client_gets_in_during_a_flood() {
    for suite in Suite::ALL {
        let mut pair = Pair::new(suite);
        pair.send(0, b"let me in");
        pair.wire.clear(); // its first try is lost
        let start = pair.clock.now;
        let mut n = 0;
        // A hundred thousand a second from as many sources for fifteen seconds would take long to test;
        // three times the budget is as good.
        while pair.clock.now.since(start) < secs(15) {
            for _ in 0..30 {
                let stamp = Tai64n::from_unix(UnixTime { secs: 1_800_000_000, nanos: n });
                let mut message = [0; 148];
                message[0] = suite.message_types().initiation;
                message[4..8].copy_from_slice(&n.to_le_bytes());
                message[8..20].copy_from_slice(stamp.as_bytes());
                stamp_mac1(suite, &pair.public(1), &mut message);
                pair.receive(1, spoofed(n), &message);
                n += 1;
            }
            pair.seen.clear();
            pair.wire.retain(|datagram| datagram.from == 0 || datagram.destination == pair.hosts[0].endpoint);
            pair.advance(millis(10));
        }
        assert!(pair.dropped(1, DropReason::CookieRequired) > 10_000, "it was a flood");
        assert_eq!(pair.hosts[1].delivered, [packet(0, b"let me in")], "in after one retry with a cookie");
    }
}

#[test]
fn r15_a_cookie_is_worth_nothing_from_another_port() {
    for suite in Suite::ALL {
        let mut pair = Pair::under_load(suite);
        let first = pair.take_initiation();
        pair.receive(1, pair.hosts[0].endpoint, &first);
        let cookie = pair.wire.pop_back().unwrap();
        assert_eq!(cookie.bytes.len(), COOKIE_REPLY_LEN);
        pair.deliver(cookie);
        pair.skip(secs(6));
        let with_cookie = pair.take_initiation();
        let required = pair.dropped(1, DropReason::CookieRequired);
        for elsewhere in ["192.0.2.1:51821", "192.0.2.3:51820"].map(udp) {
            let sent = pair.seen.len();
            pair.receive(1, elsewhere, &with_cookie);
            assert_eq!(pair.seen[sent].bytes.len(), COOKIE_REPLY_LEN);
        }
        assert_eq!(pair.dropped(1, DropReason::CookieRequired), required + 2);
        assert_eq!(pair.hosts[1].engine.indices_in_use(), 0);
        pair.receive(1, pair.hosts[0].endpoint, &with_cookie);
        assert_eq!(pair.hosts[1].engine.indices_in_use(), 1, "from where it was given it is");
    }
}

#[test]
fn r16_spoofed_sources_buy_neither_budget_nor_memory() {
    let config = LimitConfig::default();
    let mut limiter = Limiter::new(config);
    let now = Instant::from_millis(1_000);
    let admitted =
        (0..200_000).filter(|&n| limiter.decide(&spoofed(n), now, || false) == Verdict::Admit).count();
    assert_eq!(admitted, config.unverified.burst as usize, "one budget for all of them");
    assert_eq!(limiter.source_count(), 0);
    assert_eq!(limiter.decide(&spoofed(1), now, || true), Verdict::Admit, "a proven source has its own");
    assert_eq!(limiter.source_count(), 1);
}

#[test]
fn r16_a_flood_leaves_nothing_in_the_engine() {
    for suite in Suite::ALL {
        let mut pair = Pair::new(suite);
        pair.establish();
        let (indices, timeout) = (pair.hosts[1].engine.indices_in_use(), pair.hosts[1].engine.next_timeout());
        let (received, sent) = (20_000_u32, pair.seen.len());
        for n in 0..received {
            let mut message = [0; 148];
            message[0] = suite.message_types().initiation;
            message[4..8].copy_from_slice(&n.to_le_bytes());
            stamp_mac1(suite, &pair.public(1), &mut message);
            pair.receive(1, spoofed(n), &message);
        }
        pair.wire.clear();
        let replies = &pair.seen[sent..];
        assert!(replies.len() > 1_000 && replies.len() <= received as usize);
        assert!(replies.iter().all(|reply| reply.bytes.len() == COOKIE_REPLY_LEN));
        assert_eq!(pair.hosts[1].engine.indices_in_use(), indices);
        assert_eq!(pair.hosts[1].engine.next_timeout(), timeout);
        pair.assert_works();
    }
}
