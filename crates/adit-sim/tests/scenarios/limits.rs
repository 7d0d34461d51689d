use core::num::NonZeroU64;
use core::time::Duration;

use adit_proto::allowance::Limits;
use adit_proto::event::{Command, Event, PeerUpdate};
use adit_proto::reason::DropReason;
use adit_proto::schedule::{Schedule, WEEK_MINUTES};
use adit_proto::suite::Suite;
use adit_sim::host::HostId;
use adit_sim::probe::{MIN_PROBE_LEN, inside_v4, inside_v6};
use adit_sim::topology::gateway;
use adit_sim::world::World;

use crate::traffic::*;

fn limit(world: &mut World, host: HostId, peer: HostId, limits: Limits) {
    let mut update = PeerUpdate::new(world.host(peer).public_key());
    update.limits = Some(Box::new(limits));
    world.command(host, Command::SetPeer(update));
}

fn wall_secs(world: &World, host: HostId) -> u64 {
    world.host(host).clock(world.now).wall.secs
}

/// A gateway with two connected clients.
fn two_clients(seed: u64, suite: Suite) -> (World, HostId, HostId, HostId) {
    let (mut world, gateway, clients) = gateway(seed, suite, 2);
    assert!(arrives(&mut world, clients[0], gateway) && arrives(&mut world, clients[1], gateway));
    (world, gateway, clients[0], clients[1])
}

fn changes(world: &World, host: HostId) -> Vec<Option<DropReason>> {
    let events = world.host(host).events.iter();
    let change = |event: &Event| match event {
        Event::AccessChanged { shut, .. } => Some(*shut),
        _ => None,
    };
    events.filter_map(|(_, event)| change(event)).collect()
}

#[test]
fn access_that_expires_erases_the_keys_at_that_second_and_gives_no_new_ones() {
    each(|seed, suite| {
        let (mut world, gateway, limited, free) = two_clients(seed, suite);
        let flows = [(limited, gateway), (gateway, limited), (free, gateway), (gateway, free)];
        let expires = wall_secs(&world, gateway) + 20;
        limit(&mut world, gateway, limited, Limits { expires_secs: Some(expires), ..Limits::default() });
        while wall_secs(&world, gateway) < expires - 1 {
            steady(&mut world, &flows, 50 * MS, 50 * MS);
        }
        assert!(arrives(&mut world, limited, gateway) || wall_secs(&world, gateway) >= expires);
        while wall_secs(&world, gateway) < expires {
            world.run_for(MS);
        }
        world.run_for(RTT);
        let before = world.probes.flow(limited, gateway).delivered;
        let sent_before = world.probes.flow(gateway, limited).delivered;
        assert!(before > 300, "{before}");
        assert_eq!(sessions_of(&world, gateway, limited), 0, "the keys are erased");
        steady(&mut world, &flows, 100 * MS, 200 * SECOND);
        assert_eq!(world.probes.flow(limited, gateway).delivered, before);
        assert_eq!(world.probes.flow(gateway, limited).delivered, sent_before);
        let host = world.host(gateway);
        assert!(host.drops_of(DropReason::AccessExpired) > 1_000, "handshakes and packets are refused");
        assert_eq!(changes(&world, gateway), [Some(DropReason::AccessExpired)]);
        world.run_for(SECOND);
        assert_eq!(world.probes.flow(free, gateway).missing(), 0, "the other peer notices nothing");

        let expires = wall_secs(&world, gateway) + 1_000;
        limit(&mut world, gateway, limited, Limits { expires_secs: Some(expires), ..Limits::default() });
        recovery(&mut world, limited, gateway, 20 * SECOND);
        assert!(arrives(&mut world, gateway, limited), "a longer term lets it in again");
        world.audit();
    });
}

fn sessions_of(world: &World, host: HostId, peer: HostId) -> usize {
    let key = world.host(peer).public_key();
    let peers = world.host(host).engine.peers(world.now);
    peers.iter().filter(|peer| peer.public_key == key && peer.has_session).count()
}

#[test]
fn outside_of_its_hours_a_peer_is_refused_and_within_them_it_is_not() {
    each(|seed, suite| {
        let (mut world, gateway, limited, _) = two_clients(seed, suite);
        // Open for the ten minutes from now, every hour.
        let minute = (wall_secs(&world, gateway) + 3 * 86_400) / 60 % u64::from(WEEK_MINUTES);
        let hours = (0..168).map(|hour| ((minute as u16 + hour * 60) % WEEK_MINUTES, 10));
        let schedule = Some(Schedule::new(hours));
        limit(&mut world, gateway, limited, Limits { schedule, ..Limits::default() });
        for hour in 0..3 {
            recovery(&mut world, limited, gateway, 20 * SECOND);
            steady(&mut world, &[(limited, gateway), (gateway, limited)], SECOND, 500 * SECOND);
            assert!(arrives(&mut world, limited, gateway), "in the hours");
            world.run_for(120 * SECOND);
            assert_eq!(sessions_of(&world, gateway, limited), 0, "hour {hour}");
            let before = world.probes.flow(limited, gateway).delivered;
            steady(&mut world, &[(limited, gateway), (gateway, limited)], SECOND, 2_900 * SECOND);
            assert_eq!(world.probes.flow(limited, gateway).delivered, before, "outside of them");
            while !world.host(gateway).events.iter().rev().any(|(at, event)| {
                matches!(event, Event::AccessChanged { shut: None, .. })
                    && world.now.since(*at) < Duration::from_secs(60)
            }) {
                world.run_for(SECOND);
            }
        }
        let shut = Some(DropReason::OutsideSchedule);
        assert_eq!(changes(&world, gateway), [shut, None, shut, None, shut, None]);
        assert!(world.host(gateway).drops_of(DropReason::OutsideSchedule) > 100);
        world.audit();
    });
}

#[test]
fn a_wall_clock_that_is_set_past_the_end_of_access_counts_within_half_a_minute() {
    each(|seed, suite| {
        let (mut world, gateway, limited, _) = two_clients(seed, suite);
        let expires = wall_secs(&world, gateway) + 10_000;
        limit(&mut world, gateway, limited, Limits { expires_secs: Some(expires), ..Limits::default() });
        assert!(arrives(&mut world, limited, gateway));
        world.host_mut(gateway).wall_offset_secs = 20_000;
        world.run_for(31 * SECOND);
        assert_eq!(sessions_of(&world, gateway, limited), 0);
        assert!(!arrives(&mut world, limited, gateway));
    });
}

#[test]
fn each_direction_carries_its_rate_and_the_other_peer_all_it_sends() {
    each(|seed, suite| {
        let (mut world, gateway, limited, free) = two_clients(seed, suite);
        let start = [limited, free].map(|client| world.probes.flow(client, gateway).delivered);
        let back = [limited, free].map(|client| world.probes.flow(gateway, client).delivered);
        let rate = |bytes| NonZeroU64::new(bytes);
        let limits = Limits { inbound: rate(20_000), outbound: rate(40_000), ..Limits::default() };
        limit(&mut world, gateway, limited, limits);
        let flows = [(limited, gateway), (gateway, limited), (free, gateway), (gateway, free)];
        // Probes are of one size; 1,000 of them a second are more than either rate.
        steady(&mut world, &flows, MS, 30 * SECOND);
        world.run_for(SECOND);
        let len = MIN_PROBE_LEN as u64;
        for (flow, before, per_sec) in
            [((limited, gateway), start[0], 20_000), ((gateway, limited), back[0], 40_000)]
        {
            let bytes = (world.probes.flow(flow.0, flow.1).delivered - before) * len;
            let (least, most) = (30 * per_sec, 30 * per_sec + 128 * 1024 + per_sec);
            assert!((least..=most).contains(&bytes), "{bytes} of {least} to {most}");
        }
        for (flow, before) in [((free, gateway), start[1]), ((gateway, free), back[1])] {
            assert_eq!(world.probes.flow(flow.0, flow.1).delivered - before, 30_000, "no limit, no loss");
        }
        let told = world.host(limited).ledger.told;
        assert!((100..=10 + 31 * 10).contains(&told), "{told}: told, and not too often");
        assert_eq!(world.host(free).ledger.told, 0);
        assert!(world.host(gateway).drops_of(DropReason::OverRate) > 10_000);
        world.audit();
    });
}

#[test]
fn a_spent_quota_stops_the_peer_until_there_is_a_new_one_but_leaves_it_a_word_with_the_gateway() {
    each(|seed, suite| {
        let (mut world, gateway, limited, free) = two_clients(seed, suite);
        limit(&mut world, gateway, limited, Limits { left_bytes: Some(100_000), ..Limits::default() });
        let carried = |world: &World| {
            let key = world.host(limited).public_key();
            let peers = world.host(gateway).engine.peers(world.now);
            let peer = peers.into_iter().find(|peer| peer.public_key == key).unwrap();
            (peer.rx_bytes + peer.tx_bytes, peer.allowance.left_bytes)
        };
        let before = carried(&world).0;
        steady(&mut world, &[(limited, free), (free, limited)], 10 * MS, 20 * SECOND);
        let delivered = world.probes.flow(limited, free).delivered;
        let (after, left) = carried(&world);
        assert_eq!(left, Some(0));
        assert!(after - before >= 100_000, "all of it was carried");
        steady(&mut world, &[(limited, free), (free, limited)], 100 * MS, 5 * SECOND);
        assert_eq!(world.probes.flow(limited, free).delivered, delivered, "and then nothing");
        assert!(world.host(gateway).drops_of(DropReason::OverQuota) > 100);
        assert!(world.host(limited).ledger.told > 10 && world.host(free).ledger.told == 0);

        assert!(
            !arrives(&mut world, limited, gateway),
            "the gateway has not said which addresses are its own"
        );
        world.host_mut(gateway).forwarding.set_own_addresses(vec![inside_v4(gateway), inside_v6(gateway)]);
        assert!(arrives(&mut world, limited, gateway) && arrives(&mut world, gateway, limited));
        assert!(!arrives(&mut world, limited, free));

        limit(&mut world, gateway, limited, Limits { left_bytes: Some(1 << 30), ..Limits::default() });
        assert!(arrives(&mut world, limited, free) && arrives(&mut world, free, limited));
        world.audit();
    });
}

#[test]
fn a_suite_change_keeps_the_limits_and_what_is_left() {
    each(|seed, suite| {
        let other = Suite::ALL.into_iter().find(|other| *other != suite).unwrap();
        let (mut world, gateway, limited, _) = two_clients(seed, suite);
        let limits = Limits { left_bytes: Some(1 << 20), inbound: NonZeroU64::new(1), ..Limits::default() };
        limit(&mut world, gateway, limited, limits);
        send_many(&mut world, limited, gateway, 100);
        world.run_for(SECOND);
        let left = |world: &World| {
            let key = world.host(limited).public_key();
            let peers = world.host(gateway).engine.peers(world.now);
            peers.into_iter().find(|peer| peer.public_key == key).unwrap().allowance.left_bytes.unwrap()
        };
        let before = left(&world);
        assert!(before < 1 << 20);
        for (host, peer) in [(gateway, limited), (limited, gateway)] {
            let mut update = PeerUpdate::new(world.host(peer).public_key());
            update.suite = Some(other);
            world.command(host, Command::SetPeer(update));
        }
        assert_eq!(left(&world), before);
        recovery(&mut world, limited, gateway, 20 * SECOND);
        assert!(left(&world) < before);
        world.audit();
    });
}
