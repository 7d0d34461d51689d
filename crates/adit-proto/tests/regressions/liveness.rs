//! Timers: sessions that end, renew, give up and come back at their exact time.

use adit_proto::event::Event;
use adit_proto::forward::Departure;
use adit_proto::packet::InsideHeader;
use adit_proto::reason::DropReason;
use adit_proto::suite::Suite;
use adit_proto::time::Instant;
use adit_proto::timers::{MAX_HANDSHAKE_ATTEMPTS, MAX_JITTER};
use adit_proto::wire::{INITIATION_LEN, RESPONSE_LEN};

use crate::common::*;

const KEEPALIVE_LEN: usize = 32;

fn keepalives_since(pair: &Pair, since: usize) -> Vec<(usize, Instant)> {
    let sent = pair.seen[since..].iter().filter(|datagram| datagram.bytes.len() == KEEPALIVE_LEN);
    sent.map(|datagram| (datagram.from, datagram.at)).collect()
}

#[test]
fn r07_a_session_ends_after_180_seconds_in_both_directions() {
    for suite in Suite::ALL {
        for n in 0..2 {
            let mut pair = Pair::new(suite);
            pair.establish();
            let [in_time, late] =
                ["in time", "too late"].map(|text| pair.seal(1 - n, &packet(1 - n, text.as_bytes())));
            let header = InsideHeader::parse(&packet(n, b"")).unwrap();
            pair.skip(millis(179_999));
            let departure = pair.hosts[n].forwarding.depart(pair.clock.now, &header);
            assert!(matches!(departure, Departure::Seal(..)));
            pair.receive(n, pair.hosts[1 - n].endpoint, &in_time);
            assert_eq!(pair.hosts[n].delivered, [packet(1 - n, b"in time")]);
            pair.skip(millis(1));
            let departure = pair.hosts[n].forwarding.depart(pair.clock.now, &header);
            assert!(matches!(departure, Departure::Stage(_)));
            pair.assert_ignored(n, pair.hosts[1 - n].endpoint, &late, DropReason::ExpiredKeypair);
        }
    }
}

#[test]
fn r07_keys_of_an_idle_session_are_erased_after_540_seconds() {
    for suite in Suite::ALL {
        let mut pair = Pair::new(suite);
        pair.establish();
        let weak = [0, 1].map(|n| std::sync::Arc::downgrade(&pair.keypair(n)));
        pair.advance(millis(539_999));
        assert!(weak.iter().all(|keypair| keypair.upgrade().is_some()));
        pair.advance(millis(1));
        for (n, keypair) in weak.iter().enumerate() {
            assert!(keypair.upgrade().is_none(), "host {n} still holds its keys");
            assert_eq!(pair.hosts[n].engine.indices_in_use(), 0);
            assert!(matches!(pair.hosts[n].events.last(), Some(Event::KeysErased { .. })));
        }
        pair.assert_works();
    }
}

#[test]
fn r07_an_initiator_that_only_receives_renews_the_session_in_time() {
    for suite in Suite::ALL {
        let mut pair = Pair::new(suite);
        pair.establish();
        let (since, start) = (pair.seen.len(), pair.clock.now);
        for n in 0..400_u16 {
            pair.send(1, &n.to_be_bytes());
            pair.drive();
            pair.advance(secs(1));
        }
        assert_eq!(pair.hosts[0].delivered.len(), 400, "nothing was lost");
        let initiations = pair.initiations_since(since);
        let ages: Vec<_> = initiations.iter().map(|at| at.since(start).as_secs()).collect();
        assert!((2..=3).contains(&ages.len()), "{ages:?}");
        let gaps = [0].iter().chain(&ages).zip(&ages).map(|(from, to)| to - from);
        assert!(gaps.into_iter().all(|gap| (120..180).contains(&gap)), "{ages:?}");
    }
}

#[test]
fn r08_a_renewal_nobody_answers_is_given_up() {
    for suite in Suite::ALL {
        let mut pair = Pair::new(suite);
        pair.establish();
        pair.advance(secs(120));
        pair.cut = true;
        let since = pair.seen.len();
        pair.send(0, b"renews");
        pair.advance(secs(120));
        // Three before the missing answer to the data itself begins a new attempt.
        let initiations = pair.initiations_since(since).len();
        assert!((18..=21).contains(&initiations), "{initiations}");
        assert!(matches!(pair.hosts[0].events.last(), Some(Event::HandshakeGaveUp { .. })));
        let since = pair.seen.len();
        pair.advance(secs(3_600));
        assert!(pair.seen[since..].iter().all(|datagram| datagram.from == 1), "silence without traffic");
        pair.cut = false;
        pair.assert_works();
    }
}

#[test]
fn r08_data_without_an_answer_starts_a_handshake_after_15_seconds() {
    for suite in Suite::ALL {
        for n in 0..2 {
            let mut pair = Pair::new(suite);
            pair.establish();
            pair.advance(secs(30));
            pair.cut = true;
            let (since, start) = (pair.seen.len(), pair.clock.now);
            pair.send(n, b"anybody there?");
            pair.advance(secs(16));
            let waited = pair.initiations_since(since)[0].since(start);
            assert!(waited >= secs(15) && waited <= secs(15) + MAX_JITTER, "{waited:?}");
        }
    }
}

#[test]
fn r08_a_session_renews_after_120_seconds_when_its_initiator_sends() {
    for suite in Suite::ALL {
        let mut pair = Pair::new(suite);
        pair.establish();
        let created = pair.keypair(0).created;
        pair.advance(millis(119_999));
        let since = pair.seen.len();
        pair.assert_works();
        assert_eq!(pair.initiations_since(since), [], "not before");
        pair.skip(millis(1));
        pair.send(1, b"the responder sends");
        pair.drive();
        assert_eq!(pair.initiations_since(since), [], "not by the responder");
        pair.send(0, b"the initiator sends");
        pair.drive();
        assert_eq!(pair.initiations_since(since), [created.saturating_add(secs(120))]);
        pair.assert_works();
    }
}

#[test]
fn r08_a_changed_suite_does_not_stop_persistent_keepalives() {
    let mut pair = Pair::new(Suite::ChaCha20Poly1305);
    pair.change_peer(0, |update| update.persistent_keepalive_secs = Some(25));
    pair.drive();
    for n in 0..2 {
        pair.change_peer(n, |update| update.suite = Some(Suite::Aes256Gcm));
    }
    pair.advance(secs(26));
    assert!(pair.has_session(0) && pair.has_session(1));
}

#[test]
fn r08_traffic_survives_a_restart_of_either_side() {
    for suite in Suite::ALL {
        for restarted in 0..2 {
            let mut pair = Pair::new(suite);
            pair.establish();
            pair.advance(secs(30));
            pair.restart(restarted);
            let other = 1 - restarted;
            pair.send(other, b"into the void");
            pair.drive();
            assert_eq!(pair.dropped(restarted, DropReason::UnknownIndex), 1);
            pair.advance(secs(16));
            pair.assert_works();

            pair.advance(secs(30));
            pair.restart(restarted);
            pair.send(restarted, b"first");
            pair.drive();
            assert_eq!(pair.hosts[other].delivered.last().unwrap(), &packet(restarted, b"first"));
            pair.assert_works();
        }
    }
}

#[test]
fn r17_a_response_may_take_almost_as_long_as_the_retry() {
    for suite in Suite::ALL {
        let mut pair = Pair::new(suite);
        let initiation = pair.take_initiation();
        pair.skip(millis(2_400));
        pair.receive(1, pair.hosts[0].endpoint, &initiation);
        let response = pair.wire.pop_back().unwrap().bytes;
        assert_eq!(response.len(), RESPONSE_LEN);
        pair.skip(millis(2_500));
        pair.receive(0, pair.hosts[1].endpoint, &response);
        pair.drive();
        assert_eq!(pair.initiations_since(0).len(), 1);
        pair.assert_works();
    }
}

#[test]
fn r17_retries_come_every_five_seconds_and_a_bit_that_varies() {
    let mut pair = Pair::new(Suite::ChaCha20Poly1305);
    pair.cut = true;
    pair.send(0, b"hello");
    pair.advance(secs(100));
    let sent = pair.initiations_since(0);
    let mut gaps: Vec<_> = sent.windows(2).map(|pair| pair[1].since(pair[0])).collect();
    assert_eq!(gaps.len() + 1, MAX_HANDSHAKE_ATTEMPTS as usize);
    assert!(gaps.iter().all(|gap| *gap >= secs(5) && *gap <= secs(5) + MAX_JITTER), "{gaps:?}");
    gaps.sort();
    gaps.dedup();
    assert!(gaps.len() > 10, "jitter varies: {gaps:?}");
}

#[test]
fn r17_steady_traffic_renews_once_each_two_minutes() {
    for suite in Suite::ALL {
        let mut pair = Pair::new(suite);
        pair.establish();
        let since = pair.seen.len();
        for _ in 0..1_210 {
            pair.assert_works();
            pair.advance(secs(1));
        }
        assert_eq!(pair.initiations_since(since).len(), 10);
        let keepalives = keepalives_since(&pair, since);
        assert_eq!(keepalives.len(), 10, "only to confirm each session: nobody owes an answer");
        assert!(keepalives.iter().all(|(from, _)| *from == 0));
    }
}

#[test]
fn r17_idle_peers_do_not_keep_each_other_awake() {
    for suite in Suite::ALL {
        let mut pair = Pair::new(suite);
        pair.establish();
        pair.advance(secs(30));
        let since = pair.seen.len();
        pair.send(0, b"one way");
        pair.advance(secs(600));
        let keepalives = keepalives_since(&pair, since);
        assert_eq!(keepalives.len(), 1, "{keepalives:?}");
        assert_eq!(keepalives[0].0, 1);
        assert_eq!(pair.seen.len(), since + 2, "and no handshake");
    }
}

#[test]
fn r17_a_keepalive_is_due_ten_seconds_after_data_came_whatever_was_sent_before() {
    let mut pair = Pair::new(Suite::ChaCha20Poly1305);
    pair.establish();
    pair.advance(secs(30));
    let (since, start) = (pair.seen.len(), pair.clock.now);
    pair.send(1, b"sent just before");
    pair.drive();
    pair.advance(secs(1));
    pair.send(0, b"came at 1");
    pair.drive();
    pair.advance(secs(5));
    pair.send(1, b"answered at 6");
    pair.drive();
    pair.advance(secs(2));
    pair.send(0, b"came at 8");
    pair.advance(secs(60));
    let due: Vec<_> = keepalives_since(&pair, since).iter().map(|(n, at)| (*n, at.since(start))).collect();
    assert_eq!(due, [(1, secs(18))]);
}

#[test]
fn r17_mac1_and_mac2_are_where_the_limiter_looks_in_both_messages() {
    for suite in Suite::ALL {
        let mut pair = Pair::under_load(suite);
        pair.send(0, b"patience");
        pair.advance(secs(20));
        assert_eq!(pair.hosts[1].delivered, [packet(0, b"patience")]);
        for n in 0..2 {
            assert!(pair.dropped(n, DropReason::CookieRequired) > 0, "host {n} was under load");
        }
        let with_mac2 = |len: usize| {
            let of_len = pair.seen.iter().filter(move |datagram| datagram.bytes.len() == len);
            of_len.filter(|datagram| datagram.bytes[datagram.bytes.len() - 16..] != [0; 16]).count()
        };
        assert!(with_mac2(INITIATION_LEN) > 0 && with_mac2(RESPONSE_LEN) > 0);
    }
}

#[test]
fn r22_a_clock_that_goes_back_neither_panics_nor_stops_traffic() {
    for suite in Suite::ALL {
        let mut pair = Pair::new(suite);
        pair.establish();
        for now in [999_999, 500_000, 1, 0] {
            pair.clock.now = Instant::from_millis(now);
            pair.clock.wall.secs -= 1_000;
            for n in 0..2 {
                pair.hosts[n].engine.handle_timeout(pair.clock);
                pair.poll(n);
            }
            pair.assert_works();
        }
        pair.clock.now = Instant::from_millis(1_000_000);
        pair.advance(secs(130));
        pair.assert_works();
    }
}

#[test]
fn r22_time_asleep_counts() {
    for suite in Suite::ALL {
        let mut pair = Pair::new(suite);
        pair.establish();
        let old = pair.keypair(0).local_index;
        pair.skip(secs(36_000));
        assert!(!pair.has_session(0) && !pair.has_session(1));
        pair.assert_works();
        assert_ne!(pair.keypair(0).local_index, old);
        pair.advance(secs(1));
        pair.assert_works();
    }
}

#[test]
fn r22_the_end_of_the_monotonic_clock_is_an_instant_like_any_other() {
    let mut pair = Pair::new(Suite::Aes256Gcm);
    pair.clock.now = Instant(u64::MAX - 1_000_000_000);
    pair.establish();
    pair.clock.now = Instant(u64::MAX);
    for n in 0..2 {
        pair.hosts[n].engine.next_timeout();
    }
    pair.assert_works();
}
