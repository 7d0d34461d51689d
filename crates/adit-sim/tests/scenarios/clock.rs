use adit_proto::event::Event;
use adit_proto::suite::Suite;
use adit_sim::eve::Kind;

use crate::traffic::*;

const HOUR_SECS: i64 = 3_600;
const YEAR_SECS: i64 = 365 * 24 * HOUR_SECS;

#[test]
fn a_wall_clock_that_jumps_locks_nobody_out() {
    each(|seed, suite| {
        for jump_secs in [-HOUR_SECS, YEAR_SECS, -YEAR_SECS] {
            for at_initiator in [true, false] {
                let (mut world, a, b) = connected(seed, suite);
                let jumper = if at_initiator { a } else { b };
                world.jump_wall(jumper, jump_secs);
                steady(&mut world, &[(a, b), (b, a)], 200 * MS, 400 * SECOND);
                world.jump_wall(jumper, -jump_secs);
                steady(&mut world, &[(a, b), (b, a)], 200 * MS, 300 * SECOND);
                world.run_for(SECOND);
                assert_eq!(world.probes.flow(a, b).missing() + world.probes.flow(b, a).missing(), 0);
                assert_eq!(world.eve.count(a, Kind::Initiation), 1 + 700 / 120);
            }
        }
    });
}

#[test]
fn a_restart_with_the_clock_an_hour_back_is_no_lock_out() {
    each(|seed, suite| {
        let (mut world, a, b) = connected(seed, suite);
        world.jump_wall(a, -HOUR_SECS);
        world.restart(a);
        assert!(arrives(&mut world, a, b), "{}", world.trace.recent());
    });
}

#[test]
fn a_short_sleep_goes_unnoticed() {
    each(|seed, suite| {
        for sleeper_sends in [true, false] {
            let (mut world, a, b) = connected(seed, suite);
            let (sleeper, other) = if sleeper_sends { (a, b) } else { (b, a) };
            world.suspend(sleeper);
            world.run_for(10 * SECOND);
            world.wake(sleeper);
            let initiations = world.eve.total(Kind::Initiation);
            let probe = world.send(sleeper, other);
            world.run_for(RTT / 2);
            assert!(world.probes.arrived(probe), "at once, in the same session");
            assert!(arrives(&mut world, other, sleeper));
            assert_eq!(world.eve.total(Kind::Initiation), initiations);
        }
    });
}

#[test]
fn after_200_s_of_sleep_the_old_session_is_not_used_and_the_first_packet_makes_a_new_one() {
    each(|seed, suite| {
        for sleeper_is_initiator in [true, false] {
            let (mut world, a, b) = connected(seed, suite);
            let (sleeper, other) = if sleeper_is_initiator { (a, b) } else { (b, a) };
            world.suspend(sleeper);
            world.run_for(200 * SECOND);
            world.wake(sleeper);
            let (data, keepalives) =
                (world.eve.count(sleeper, Kind::Data), world.eve.count(sleeper, Kind::Keepalive));
            let initiations = world.eve.count(sleeper, Kind::Initiation);
            let probe = world.send(sleeper, other);
            assert_eq!(world.eve.count(sleeper, Kind::Data), data, "nothing is sealed with the old key");
            assert_eq!(world.eve.count(sleeper, Kind::Initiation), initiations + 1);
            world.run_for(RTT + RTT / 2);
            assert!(world.probes.arrived(probe), "{}", world.trace.recent());
            assert_eq!(world.eve.count(sleeper, Kind::Keepalive), keepalives);
            assert!(arrives(&mut world, other, sleeper));
        }
    });
}

/// Sleeps for 700 s. Idle or not before it: a packet may still await its answer. Timers or a packet come first.
fn long_sleep(seed: u64, suite: Suite, sleeper_is_initiator: bool, idle: bool, timers_first: bool) {
    let (mut world, a, b) = connected(seed, suite);
    let (sleeper, other) = if sleeper_is_initiator { (a, b) } else { (b, a) };
    world.run_for(if idle { 12 * SECOND } else { MS });
    world.suspend(sleeper);
    world.run_for(700 * SECOND);
    world.wake(sleeper);
    if timers_first {
        world.run_for(MS);
        assert!(!idle || world.host(sleeper).engine.indices_in_use() == 0);
    }
    let probe = world.send(sleeper, other);
    world.run_for(RTT + RTT / 2);
    assert_eq!(world.events(sleeper, |event| matches!(event, Event::KeysErased { .. })).len(), 1);
    assert!(
        world.probes.arrived(probe),
        "{sleeper_is_initiator} {idle} {timers_first}\n{}",
        world.trace.recent()
    );
    assert!(arrives(&mut world, other, sleeper));
    assert_eq!(world.audit(), 0);
}

#[test]
fn after_700_s_of_sleep_the_keys_are_gone_and_the_first_packet_still_arrives_in_time() {
    each(|seed, suite| {
        for case in 0..8 {
            long_sleep(seed, suite, case & 1 == 0, case & 2 == 0, case & 4 == 0);
        }
    });
}

#[test]
fn packets_to_a_sleeper_reach_it_again_once_it_is_awake() {
    each(|seed, suite| {
        for sleep_secs in [10, 200, 700] {
            let (mut world, a, b) = connected(seed, suite);
            world.suspend(b);
            steady(&mut world, &[(a, b)], SECOND, sleep_secs * SECOND);
            world.wake(b);
            let took = recovery(&mut world, a, b, 30 * SECOND);
            assert!(took <= 5_400 * MS + 2 * RTT, "{sleep_secs} s: {took:?}");
            assert!(arrives(&mut world, b, a));
        }
    });
}
