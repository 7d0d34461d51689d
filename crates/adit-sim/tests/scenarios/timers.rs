use core::time::Duration;

use adit_proto::event::{Command, Event, PeerUpdate};
use adit_proto::reason::DropReason;
use adit_proto::time::Instant;
use adit_sim::eve::Kind;
use adit_sim::host::HostId;
use adit_sim::topology::pair;
use adit_sim::world::World;

use crate::traffic::*;

const JITTER: Duration = Duration::from_millis(333);

/// When a host sent messages of a kind, counted from `start`.
fn times_since(world: &World, start: Instant, from: HostId, kind: Kind) -> Vec<Duration> {
    world.eve.times(from, kind).into_iter().filter(|&at| at >= start).map(|at| at.since(start)).collect()
}

fn set_keepalive(world: &mut World, host: HostId, peer: HostId, secs: u16) {
    let mut update = PeerUpdate::new(world.host(peer).public_key());
    update.persistent_keepalive_secs = Some(secs);
    world.command(host, Command::SetPeer(update));
}

#[test]
fn an_unanswered_initiation_is_repeated_each_5_s_plus_jitter_for_90_s_and_then_given_up() {
    let mut jitters = Vec::new();
    each(|seed, suite| {
        let (mut world, a, b) = pair(seed, suite);
        world.set_conditions(b, |conditions| conditions.blackhole = true);
        let start = world.now;
        send_many(&mut world, a, b, 5);
        world.run_for(700 * SECOND);
        let times = times_since(&world, start, a, Kind::Initiation);
        assert_eq!((times.len(), times[0]), (18, Duration::ZERO));
        for pair in times.windows(2) {
            let apart = pair[1] - pair[0];
            assert!((5 * SECOND..=5 * SECOND + JITTER).contains(&apart), "{apart:?}");
        }
        let gave_up = world.events(a, |event| matches!(event, Event::HandshakeGaveUp { .. }));
        assert_eq!(gave_up.len(), 1);
        let after = gave_up[0].since(start);
        assert!((90 * SECOND..=90 * SECOND + 18 * JITTER).contains(&after), "{after:?}");
        assert_eq!(world.host(a).drops_of(DropReason::HandshakeTimeout), 5);
        assert_eq!(world.eve.all(), 18, "and then it is quiet");
        assert_eq!(world.host(a).engine.indices_in_use(), 0);
        assert_eq!(world.audit(), 0);
    });
    let (mut world, a, b) = pair(77, adit_proto::suite::Suite::Aes256Gcm);
    world.set_conditions(b, |conditions| conditions.blackhole = true);
    for _ in 0..5 {
        let start = world.now;
        world.send(a, b);
        world.run_for(100 * SECOND);
        let times = times_since(&world, start, a, Kind::Initiation);
        jitters.extend(times.windows(2).map(|pair| (pair[1] - pair[0] - 5 * SECOND).as_millis()));
    }
    assert!(
        jitters.iter().min() < Some(&60) && jitters.iter().max() > Some(&270),
        "it is spread: {jitters:?}"
    );
}

#[test]
fn data_is_answered_by_one_keepalive_after_exactly_10_s_and_that_by_nothing() {
    each(|seed, suite| {
        let (mut world, a, b) = connected(seed, suite);
        world.run_for(30 * SECOND);
        let start = world.now;
        let before = world.eve.all();
        world.send(a, b);
        world.run_for(60 * SECOND);
        let times = times_since(&world, start, b, Kind::Keepalive);
        assert_eq!(times, [10 * SECOND + RTT / 2]);
        assert_eq!(world.eve.all(), before + 2, "a keepalive is not answered by a keepalive");
    });
}

#[test]
fn steady_one_way_traffic_is_answered_by_a_keepalive_each_10_s() {
    each(|seed, suite| {
        let (mut world, a, b) = connected(seed, suite);
        world.run_for(30 * SECOND);
        let start = world.now;
        steady(&mut world, &[(a, b)], 100 * MS, 60 * SECOND);
        let times = times_since(&world, start, b, Kind::Keepalive);
        assert_eq!(times.len(), 5, "{times:?}");
        for (n, at) in times.iter().enumerate() {
            let expected = 10 * SECOND * (n as u32 + 1);
            assert!((expected..=expected + 200 * MS).contains(at), "{times:?}");
        }
    });
}

#[test]
fn data_without_an_answer_starts_a_handshake_after_15_s_plus_jitter() {
    each(|seed, suite| {
        let (mut world, a, b) = connected(seed, suite);
        world.run_for(30 * SECOND);
        let start = world.now;
        world.set_conditions(b, |conditions| conditions.blackhole = true);
        world.send(a, b);
        world.run_for(16 * SECOND);
        let times = times_since(&world, start, a, Kind::Initiation);
        assert_eq!(times.len(), 1);
        assert!((15 * SECOND..=15 * SECOND + JITTER).contains(&times[0]), "{times:?}");
    });
}

#[test]
fn the_initiator_renews_with_its_first_packet_after_120_s_and_the_responder_never() {
    each(|seed, suite| {
        let (mut world, a, b) = pair(seed, suite);
        let start = world.now;
        world.send(a, b);
        world.run_for(SECOND);
        let created = start.saturating_add(RTT);
        world.run_until(created.saturating_add(120 * SECOND - MS));
        world.send(b, a);
        world.send(a, b);
        assert_eq!(world.eve.total(Kind::Initiation), 1);
        world.run_for(MS);
        world.send(b, a);
        assert_eq!(world.eve.total(Kind::Initiation), 1);
        world.send(a, b);
        assert_eq!(world.eve.count(a, Kind::Initiation), 2);
    });
}

#[test]
fn an_initiator_that_only_receives_renews_at_165_s() {
    each(|seed, suite| {
        let (mut world, a, b) = pair(seed, suite);
        let start = world.now;
        world.send(a, b);
        world.run_for(SECOND);
        let created = start.saturating_add(RTT);
        world.run_until(created.saturating_add(165 * SECOND - RTT / 2 - MS));
        world.send(b, a);
        world.run_for(RTT / 2);
        assert_eq!(world.eve.count(a, Kind::Initiation), 1);
        world.send(b, a);
        world.run_for(RTT / 2);
        assert_eq!(world.eve.count(a, Kind::Initiation), 2);
    });
}

#[test]
fn no_key_seals_or_opens_from_180_s_on() {
    each(|seed, suite| {
        let (mut world, a, b) = pair(seed, suite);
        let start = world.now;
        world.send(a, b);
        world.run_for(SECOND);
        // The responder derives its keys half a round trip before the initiator.
        let created = start.saturating_add(RTT / 2);
        world.run_until(created.saturating_add(180 * SECOND - MS));
        let (data, initiations) = (world.eve.count(b, Kind::Data), world.eve.count(b, Kind::Initiation));
        world.host_mut(b).up.conditions.latency = 100 * MS;
        let last = world.send(b, a);
        assert_eq!(world.eve.count(b, Kind::Data), data + 1);
        world.run_for(MS);
        let waiting = world.send(b, a);
        assert_eq!(world.eve.count(b, Kind::Data), data + 1);
        assert_eq!(world.eve.count(b, Kind::Initiation), initiations + 1);
        world.run_for(SECOND);
        assert!(!world.probes.arrived(last), "it arrives when the initiator's key has ended too");
        assert_eq!(world.host(a).drops_of(DropReason::ExpiredKeypair), 1);
        assert!(world.probes.arrived(waiting));
    });
}

#[test]
fn keys_of_an_idle_peer_are_erased_after_exactly_540_s() {
    each(|seed, suite| {
        let (mut world, a, b) = pair(seed, suite);
        let start = world.now;
        world.send(a, b);
        world.run_for(530 * SECOND);
        assert!([a, b].iter().all(|&host| world.host(host).engine.indices_in_use() > 0));
        world.run_for(20 * SECOND);
        for (host, derived) in [(a, RTT), (b, RTT / 2)] {
            let erased = world.events(host, |event| matches!(event, Event::KeysErased { .. }));
            assert_eq!(erased, [start.saturating_add(derived + 540 * SECOND)]);
            assert_eq!(world.host(host).engine.indices_in_use(), 0);
            assert_eq!(
                world.host(host).engine.next_timeout(),
                None,
                "an idle host has nothing to wake up for"
            );
        }
    });
}

#[test]
fn a_handshake_that_runs_when_old_keys_are_erased_goes_on() {
    each(|seed, suite| {
        for before in [RTT - MS, RTT / 2, MS] {
            let (mut world, a, b) = pair(seed, suite);
            let start = world.now;
            world.send(a, b);
            world.run_until(start.saturating_add(RTT + 540 * SECOND - before));
            let probe = world.send(a, b);
            world.run_for(SECOND);
            assert_eq!(world.events(a, |event| matches!(event, Event::KeysErased { .. })).len(), 1);
            assert!(world.probes.arrived(probe), "{before:?}\n{}", world.trace.recent());
            assert_eq!(world.audit(), 0);
        }
    });
}

#[test]
fn persistent_keepalives_come_after_exactly_their_interval_of_silence() {
    each(|seed, suite| {
        let (mut world, a, b) = connected(seed, suite);
        world.run_for(5 * SECOND);
        let start = world.now;
        set_keepalive(&mut world, a, b, 25);
        world.run_for(80 * SECOND);
        let expected: Vec<_> = (0..4).map(|n| n * 25 * SECOND).collect();
        assert_eq!(times_since(&world, start, a, Kind::Keepalive), expected);
        world.send(b, a);
        let start = world.now;
        world.run_for(30 * SECOND);
        let times = times_since(&world, start, a, Kind::Keepalive);
        assert_eq!(times[0], 10 * SECOND + RTT / 2, "the answer to data");
        assert_eq!(times.len(), 1, "which is a keepalive as good as any: {times:?}");
        set_keepalive(&mut world, a, b, 0);
        let before = world.eve.count(a, Kind::Keepalive);
        world.run_for(60 * SECOND);
        assert_eq!(world.eve.count(a, Kind::Keepalive), before);
    });
}

#[test]
fn a_persistent_keepalive_keeps_an_idle_session_renewed_forever() {
    each(|seed, suite| {
        let (mut world, a, b) = connected(seed, suite);
        set_keepalive(&mut world, a, b, 25);
        for _ in 0..40 {
            world.run_for(30 * SECOND);
            let probe = world.send(b, a);
            world.run_for(5 * RTT);
            assert!(world.probes.arrived(probe), "{}", world.trace.recent());
        }
    });
}
