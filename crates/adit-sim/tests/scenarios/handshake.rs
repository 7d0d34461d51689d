use adit_proto::reason::DropReason;
use adit_sim::eve::Kind;
use adit_sim::topology::pair;

use crate::traffic::*;

#[test]
fn the_first_packet_arrives_after_one_and_a_half_round_trips() {
    each(|seed, suite| {
        let (mut world, a, b) = pair(seed, suite);
        let probe = world.send(a, b);
        world.run_for(RTT + RTT / 2 - MS);
        assert!(!world.probes.arrived(probe));
        world.run_for(MS);
        assert!(world.probes.arrived(probe));
        let kinds: Vec<_> =
            world.eve.sightings.iter().map(|sighting| (sighting.from, sighting.kind)).collect();
        assert_eq!(
            kinds,
            [(a, Kind::Initiation), (b, Kind::Response)],
            "the packet itself confirms the session"
        );
        assert_eq!(world.eve.count(a, Kind::Data), 1);
        assert_eq!(world.eve.of_suite(suite), world.eve.all(), "nothing of the other suite");
        assert_eq!((sessions(&world, a), sessions(&world, b)), (1, 1));
        assert_eq!(world.audit(), 0);
    });
}

#[test]
fn packets_that_wait_go_out_in_order_and_the_oldest_are_dropped_when_too_many_wait() {
    each(|seed, suite| {
        let (mut world, a, b) = pair(seed, suite);
        send_many(&mut world, a, b, 200);
        world.run_for(RTT + RTT / 2);
        send_many(&mut world, a, b, 50);
        world.run_for(SECOND);
        let flow = world.probes.flow(a, b);
        assert_eq!((flow.delivered, flow.reordered), (128 + 50, 0));
        assert_eq!(world.host(a).drops_of(DropReason::StagedOverflow), 72);
        assert_eq!(world.audit(), 0);
    });
}

#[test]
fn crossing_initiations_give_one_session_and_no_ping_pong() {
    each(|seed, suite| {
        let (mut world, a, b) = pair(seed, suite);
        steady(&mut world, &[(a, b), (b, a)], 100 * MS, 400 * SECOND);
        world.run_for(SECOND);
        for (from, to) in [(a, b), (b, a)] {
            let flow = world.probes.flow(from, to);
            assert_eq!((flow.missing(), flow.reordered), (0, 0));
        }
        assert!(
            world.eve.count(a, Kind::Initiation) > 0 && world.eve.count(b, Kind::Initiation) > 0,
            "they crossed"
        );
        assert_eq!(world.eve.total(Kind::Initiation), 2 + 3, "two that cross, then one each 120 s");
        assert_eq!(world.audit(), 0);
    });
}

/// A crossing ends the session before it at once on one side, as WireGuard's rotation does: what the other
/// side has under way then is lost, and nothing else.
#[test]
fn initiations_that_cross_every_time_cost_at_most_what_is_under_way() {
    each(|seed, suite| {
        let (mut world, a, b) = pair(seed, suite);
        for _ in 0..20 {
            world.initiate(a, b);
            world.initiate(b, a);
            steady(&mut world, &[(a, b), (b, a)], 5 * MS, 5 * SECOND + 400 * MS);
        }
        let crossed = world.eve.total(Kind::Initiation);
        assert!(crossed >= 40, "{crossed}");
        steady(&mut world, &[(a, b), (b, a)], 100 * MS, 100 * SECOND);
        assert_eq!(world.eve.total(Kind::Initiation), crossed, "then it is quiet");
        let flows = [world.probes.flow(a, b), world.probes.flow(b, a)];
        assert!(flows.iter().all(|flow| flow.reordered == 0));
        let mut missing = flows.map(|flow| flow.missing());
        missing.sort();
        assert!(missing[0] == 0 && missing[1] <= 20 * 2, "two packets are under way at a time: {missing:?}");
        assert_eq!(world.audit(), 0);
    });
}

#[test]
fn handshakes_that_cross_on_slow_and_uneven_links_settle_too() {
    each(|seed, suite| {
        let (mut world, a, b) = pair(seed, suite);
        world.host_mut(a).up.conditions.latency = 300 * MS;
        world.host_mut(b).up.conditions.latency = 20 * MS;
        world.set_conditions(b, |conditions| conditions.jitter = 80 * MS);
        for _ in 0..10 {
            world.initiate(a, b);
            world.run_for(100 * MS);
            world.initiate(b, a);
            steady(&mut world, &[(a, b), (b, a)], 200 * MS, 6 * SECOND);
        }
        let crossed = world.eve.total(Kind::Initiation);
        steady(&mut world, &[(a, b), (b, a)], 200 * MS, 100 * SECOND);
        assert_eq!(world.eve.total(Kind::Initiation), crossed, "no fight goes on");
        world.run_for(SECOND);
        let missing = world.probes.flow(a, b).missing() + world.probes.flow(b, a).missing();
        assert!(missing <= 10 * 3, "{missing}");
        assert_eq!(world.audit(), 0);
    });
}
