//! Lanes and the engine at the same time.

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use adit_proto::event::{AllowedIpChange, Command, Notice, PeerUpdate};
use adit_proto::forward::Departure;
use adit_proto::keypair::blocks_of;
use adit_proto::packet::{Ecn, InsideHeader};
use adit_proto::suite::Suite;

use crate::common::*;

#[test]
fn r38_a_message_raced_by_many_lanes_is_delivered_once() {
    for suite in Suite::ALL {
        let mut pair = Pair::new(suite);
        pair.establish();
        let messages: Vec<_> = (0..2_000_u16).map(|n| pair.seal(0, &packet(0, &n.to_be_bytes()))).collect();
        let (forwarding, now) = (Arc::clone(&pair.hosts[1].forwarding), pair.clock.now);
        let source = pair.hosts[0].endpoint;
        let lane = || {
            let mut notices = Vec::new();
            let arrive = |message: &Vec<u8>| {
                forwarding.arrive(now, &source, Ecn::NotEct, &mut message.clone(), &mut notices).is_some()
            };
            messages.iter().map(arrive).filter(|delivered| *delivered).count()
        };
        let delivered: usize = std::thread::scope(|scope| {
            let lanes: Vec<_> = (0..4).map(|_| scope.spawn(lane)).collect();
            lanes.into_iter().map(|lane| lane.join().unwrap()).sum()
        });
        assert_eq!(delivered, messages.len());
        let (rx_packets, _) = pair.keypair(1).path.traffic.packets();
        assert!(rx_packets >= 2_000, "every one was counted");
    }
}

#[test]
fn r38_counters_taken_by_many_lanes_are_on_the_wire_once() {
    let mut pair = Pair::new(Suite::Aes256Gcm);
    pair.establish();
    let (forwarding, now) = (&pair.hosts[0].forwarding, pair.clock.now);
    let counters = Mutex::new(Vec::new());
    let lane = || {
        let header = InsideHeader::parse(&packet(0, b"")).unwrap();
        for _ in 0..5_000 {
            let Departure::Seal(keypair, _) = forwarding.depart(now, &header) else { panic!() };
            let mut message = [0; 64];
            let counter = keypair.reserve(1, blocks_of(32)).unwrap();
            keypair.seal(counter, &mut message).unwrap();
            counters.lock().unwrap().push(u64::from_le_bytes(*message[8..].first_chunk().unwrap()));
        }
    };
    std::thread::scope(|scope| (0..4).for_each(|_| drop(scope.spawn(lane))));
    let counters = counters.into_inner().unwrap();
    assert_eq!(counters.len(), 20_000);
    assert_eq!(counters.iter().collect::<HashSet<_>>().len(), 20_000);
}

#[test]
fn r38_lanes_go_on_while_peers_are_removed_changed_and_listed() {
    let mut pair = Pair::new(Suite::ChaCha20Poly1305);
    pair.establish();
    let messages: Vec<_> = (0..256_u16).map(|n| pair.seal(0, &packet(0, &n.to_be_bytes()))).collect();
    let (forwarding, now) = (Arc::clone(&pair.hosts[1].forwarding), pair.clock.now);
    let (source, peer) = (pair.hosts[0].endpoint, pair.public(0));
    let notices = Mutex::new(Vec::<Notice>::new());
    let (rounds, stop) = (AtomicU32::new(0), AtomicBool::new(false));
    let lane = || {
        let outbound = packet(1, b"outbound");
        let header = InsideHeader::parse(&outbound).unwrap();
        while !stop.load(Ordering::Relaxed) {
            let mut seen = Vec::new();
            for message in &messages {
                forwarding.arrive(now, &source, Ecn::NotEct, &mut message.clone(), &mut seen);
                match forwarding.depart(now, &header) {
                    Departure::Stage(path) => drop(forwarding.stage(now, &path, &outbound, &mut seen)),
                    Departure::Seal(..) | Departure::Drop(_) => {}
                }
            }
            notices.lock().unwrap().extend(seen);
            rounds.fetch_add(1, Ordering::Relaxed);
        }
    };
    std::thread::scope(|scope| {
        let _stop = StopOnDrop(&stop);
        (0..2).for_each(|_| drop(scope.spawn(lane)));
        let mut round = 0_u16;
        while round < 2_000 || rounds.load(Ordering::Relaxed) < 10 {
            round = round.wrapping_add(1);
            let mut update = PeerUpdate::new(peer);
            update.endpoint = Some(source);
            update.replace_allowed_ips = round.is_multiple_of(3);
            update.allowed_ips = vec![AllowedIpChange::Add("10.0.0.1/32".parse().unwrap())];
            update.suite = Some(Suite::ALL[usize::from(round % 2)]);
            pair.command(1, Command::SetPeer(update));
            assert_eq!(pair.hosts[1].engine.peers(now).len(), 1);
            let seen = core::mem::take(&mut *notices.lock().unwrap());
            pair.notices(1, seen);
            if round.is_multiple_of(5) {
                pair.command(1, Command::RemovePeer(peer));
                assert!(pair.hosts[1].engine.peers(now).is_empty());
                assert_eq!(pair.hosts[1].engine.indices_in_use(), 0);
            }
        }
    });
    // Peace again: the peer comes back and is reached.
    pair.wire.clear();
    pair.skip(secs(200));
    let mut update = PeerUpdate::new(peer);
    update.suite = Some(Suite::ChaCha20Poly1305);
    update.endpoint = Some(source);
    update.allowed_ips = vec![AllowedIpChange::Add("10.0.0.1/32".parse().unwrap())];
    pair.command(1, Command::RemovePeer(peer));
    pair.command(1, Command::SetPeer(update));
    pair.assert_works();
}

/// Ends the lanes also when an assertion fails.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn an_answer_to_a_peer_that_restarted_is_sealed_with_its_new_session() {
    for suite in Suite::ALL {
        let mut pair = Pair::new(suite);
        pair.establish();
        let old = pair.keypair(1);
        pair.skip(secs(1));
        pair.restart(0);
        pair.send(0, b"question");
        for _ in ["initiation", "response"] {
            assert!(
                Arc::ptr_eq(&pair.keypair(1), &old),
                "not before the other side has confirmed the new one"
            );
            let datagram = pair.wire.pop_front().unwrap();
            pair.deliver(datagram);
        }

        // The question and the answer pass through a lane before the engine hears of either.
        let mut question = pair.wire.pop_front().unwrap();
        let mut notices = Vec::new();
        let forwarding = Arc::clone(&pair.hosts[1].forwarding);
        let arrived = forwarding.arrive(
            pair.clock.now,
            &question.source,
            Ecn::NotEct,
            &mut question.bytes,
            &mut notices,
        );
        assert!(arrived.is_some());
        let answer = pair.seal(1, &packet(1, b"answer"));
        let source = pair.hosts[1].endpoint;
        pair.receive(0, source, &answer);
        assert_eq!(pair.hosts[0].delivered, [packet(1, b"answer")]);

        pair.notices(1, notices);
        pair.assert_works();
    }
}
