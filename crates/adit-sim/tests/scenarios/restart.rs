use core::time::Duration;

use adit_sim::eve::Kind;
use adit_sim::host::HostId;
use adit_sim::world::World;

use crate::traffic::*;

/// The survivor notices after 10 + 5 s without an answer and the jitter of its timer.
const BY_TIMERS: Duration = Duration::from_millis(15_400);

fn both_ways_for_a_while(world: &mut World, a: HostId, b: HostId) {
    for (from, to) in [(a, b), (b, a)] {
        assert!(arrives(world, from, to), "{}", world.trace.recent());
    }
}

#[test]
fn traffic_to_a_restarted_host_recovers_by_the_timers() {
    each(|seed, suite| {
        for initiator_restarts in [true, false] {
            for loaded in [true, false] {
                let (mut world, a, b) = connected(seed, suite);
                let (lost, survivor) = if initiator_restarts { (a, b) } else { (b, a) };
                if loaded {
                    steady(&mut world, &[(a, b), (b, a)], 100 * MS, 37 * SECOND);
                } else {
                    world.run_for(40 * SECOND);
                }
                world.restart(lost);
                let took = recovery(&mut world, survivor, lost, 60 * SECOND);
                assert!(took <= BY_TIMERS + 2 * RTT, "{took:?}");
                assert!(took > 9 * SECOND, "{took:?}: nobody told the survivor");
                both_ways_for_a_while(&mut world, a, b);
                world.audit();
            }
        }
    });
}

#[test]
fn traffic_recovers_at_once_when_the_restarted_side_sends_or_initiates() {
    each(|seed, suite| {
        for initiator_restarts in [true, false] {
            for initiates in [true, false] {
                let (mut world, a, b) = connected(seed, suite);
                let (lost, survivor) = if initiator_restarts { (a, b) } else { (b, a) };
                steady(&mut world, &[(survivor, lost)], 100 * MS, 20 * SECOND);
                world.restart(lost);
                if initiates {
                    world.initiate(lost, survivor);
                } else {
                    world.send(lost, survivor);
                }
                let took = recovery(&mut world, survivor, lost, 60 * SECOND);
                assert!(took <= 2 * RTT + 50 * MS, "{took:?}");
                both_ways_for_a_while(&mut world, a, b);
                world.audit();
            }
        }
    });
}

#[test]
fn a_restarted_host_that_initiates_does_not_fight_the_survivor_that_noticed() {
    each(|seed, suite| {
        for delay_ms in [0, 5, 10, 15, 20, 30, 333] {
            let (mut world, a, b) = connected(seed, suite);
            world.restart(b);
            world.send(a, b);
            world.run_for(15 * SECOND + u32::try_from(delay_ms).unwrap() * MS);
            world.initiate(b, a);
            steady(&mut world, &[(a, b), (b, a)], 50 * MS, 20 * SECOND);
            let settled = world.eve.total(Kind::Initiation);
            assert!(settled <= 1 + 2 + 1, "{settled}");
            let before = [(a, b), (b, a)].map(|(from, to)| world.probes.flow(from, to).missing());
            steady(&mut world, &[(a, b), (b, a)], 50 * MS, 90 * SECOND);
            world.run_for(SECOND);
            let after = [(a, b), (b, a)].map(|(from, to)| world.probes.flow(from, to).missing());
            assert_eq!(world.eve.total(Kind::Initiation), settled, "no fight");
            assert!(after[0] <= before[0] && after[1] <= before[1]);
        }
    });
}

#[test]
fn both_sides_restarted_at_once_settle_on_one_session() {
    each(|seed, suite| {
        let (mut world, a, b) = connected(seed, suite);
        world.restart(a);
        world.restart(b);
        world.initiate(a, b);
        world.initiate(b, a);
        steady(&mut world, &[(a, b), (b, a)], 20 * MS, 100 * SECOND);
        world.run_for(SECOND);
        assert_eq!(world.eve.total(Kind::Initiation), 1 + 2);
        assert_eq!(world.probes.flow(a, b).missing() + world.probes.flow(b, a).missing(), 0);
        assert_eq!(world.audit(), 0);
    });
}

#[test]
fn a_host_that_restarts_again_and_again_is_let_in_each_time() {
    each(|seed, suite| {
        let (mut world, a, b) = connected(seed, suite);
        for _ in 0..20 {
            world.restart(a);
            assert!(arrives(&mut world, a, b) && arrives(&mut world, b, a));
        }
    });
}
