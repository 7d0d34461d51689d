use core::time::Duration;

use adit_proto::forward::Departure;
use adit_proto::keypair::{REKEY_AFTER_BLOCKS, REKEY_AFTER_MESSAGES};
use adit_proto::packet::InsideHeader;
use adit_proto::suite::Suite;
use adit_sim::eve::Kind;
use adit_sim::host::HostId;
use adit_sim::probe::Probe;
use adit_sim::topology::pair;
use adit_sim::world::World;

use crate::traffic::*;

fn nothing_missing(world: &World, flows: &[(HostId, HostId)]) {
    for &(from, to) in flows {
        let flow = world.probes.flow(from, to);
        assert_eq!((flow.missing(), flow.reordered), (0, 0), "{from:?} to {to:?}\n{}", world.trace.recent());
    }
}

#[test]
fn no_packet_is_lost_or_reordered_by_rekeying_under_load() {
    each(|seed, suite| {
        let (mut world, a, b) = connected(seed, suite);
        let flows = [(a, b), (b, a)];
        steady(&mut world, &flows, 25 * MS, 1_200 * SECOND);
        world.run_for(SECOND);
        nothing_missing(&world, &flows);
        assert_eq!(world.eve.count(a, Kind::Initiation), 1 + 1_200 / 120, "one each 120 s, by one side");
        assert_eq!(world.eve.count(b, Kind::Initiation), 0);
        assert_eq!(world.audit(), 0);
    });
}

#[test]
fn one_sided_traffic_survives_rekeying_in_either_direction() {
    each(|seed, suite| {
        for downloads in [false, true] {
            let (mut world, a, b) = connected(seed, suite);
            let flow = if downloads { (b, a) } else { (a, b) };
            steady(&mut world, &[flow], 50 * MS, 1_000 * SECOND);
            world.run_for(SECOND);
            nothing_missing(&world, &[flow]);
            assert_eq!(world.eve.count(b, Kind::Initiation), 0, "only the initiator renews");
            let renewals = world.eve.count(a, Kind::Initiation) - 1;
            // A download is acknowledged by keepalives each 10 s, and the first after 120 s renews.
            let expected = if downloads { 1_000 / 130..=1_000 / 120 } else { 1_000 / 120..=1_000 / 120 };
            assert!(expected.contains(&renewals), "{renewals}");
            assert_eq!(world.audit(), 0);
        }
    });
}

#[test]
fn a_thousand_sessions_follow_each_other_without_a_gap() {
    for suite in Suite::ALL {
        let (mut world, a, b) = connected(9, suite);
        let flows = [(a, b), (b, a)];
        steady(&mut world, &flows, SECOND, Duration::from_secs(121 * 1_000));
        world.run_for(SECOND);
        nothing_missing(&world, &flows);
        assert!(sessions(&world, a) >= 1_000 && sessions(&world, b) >= 1_000);
        assert!(world.host(a).engine.indices_in_use() <= 3);
        assert_eq!(world.audit(), 0);
    }
}

/// Moves the counters of the key with which `from` sends to `to`.
fn skip_ahead(world: &World, from: HostId, to: HostId, counter: u64, blocks: u64) {
    let header = InsideHeader::parse(&Probe { from, to, number: 0 }.packet(100)).unwrap();
    match world.host(from).forwarding.depart(world.now, &header) {
        Departure::Seal(keypair, _) => keypair.skip_ahead(counter, blocks),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_responder_renews_a_key_at_its_block_limit() {
    for seed in 1..=3 {
        for (counter, blocks, renews) in [
            (0, REKEY_AFTER_BLOCKS - 100, false),
            (0, REKEY_AFTER_BLOCKS, true),
            (REKEY_AFTER_MESSAGES, 0, true),
        ] {
            let (mut world, a, b) = connected(seed, Suite::Aes256Gcm);
            skip_ahead(&world, b, a, counter, blocks);
            steady(&mut world, &[(b, a), (a, b)], 10 * MS, 100 * MS);
            world.run_for(SECOND);
            nothing_missing(&world, &[(b, a), (a, b)]);
            assert_eq!(world.eve.count(b, Kind::Initiation), u64::from(renews), "{counter} {blocks}");
            assert_eq!(sessions(&world, a), 1 + usize::from(renews));
            assert_eq!(world.audit(), 0);
        }
    }
}

#[test]
fn a_renewal_that_was_given_up_is_asked_for_again_while_the_key_lives() {
    for seed in 1..=3 {
        let (mut world, a, b) = connected(seed, Suite::Aes256Gcm);
        let start = world.now;
        skip_ahead(&world, b, a, 0, REKEY_AFTER_BLOCKS);
        world.host_mut(b).up.conditions.mtu_bytes = 147;
        steady(&mut world, &[(b, a)], 100 * MS, 100 * SECOND);
        assert!(world.eve.count(b, Kind::Initiation) > 18, "given up, and begun again");
        world.host_mut(b).up.conditions.mtu_bytes = 1_500;
        steady(&mut world, &[(b, a)], 100 * MS, 10 * SECOND);
        assert!(world.now.since(start) < 115 * SECOND && sessions(&world, a) == 2);
        world.run_for(SECOND);
        nothing_missing(&world, &[(b, a)]);
    }
}

#[test]
fn the_index_table_does_not_grow_under_back_to_back_initiations() {
    each(|seed, suite| {
        let (mut world, a, b) = pair(seed, suite);
        for _ in 0..300 {
            world.restart(a);
            world.initiate(a, b);
            world.run_for(25 * MS);
        }
        assert_eq!(world.eve.count(b, Kind::Response), 300);
        assert!(world.host(b).engine.indices_in_use() <= 3);
        assert!(arrives(&mut world, a, b));
    });
}

#[test]
fn a_handshake_that_is_lost_for_a_while_is_made_up_before_the_key_ends() {
    each(|seed, suite| {
        let (mut world, a, b) = connected(seed, suite);
        steady(&mut world, &[(a, b)], 100 * MS, 110 * SECOND);
        // Handshake messages are too long for the link; probes of the shortest length are not.
        world.host_mut(a).up.conditions.mtu_bytes = 147;
        steady(&mut world, &[(a, b)], 100 * MS, 40 * SECOND);
        world.host_mut(a).up.conditions.mtu_bytes = 1_500;
        steady(&mut world, &[(a, b)], 100 * MS, 100 * SECOND);
        world.run_for(SECOND);
        nothing_missing(&world, &[(a, b)]);
        assert!(world.eve.count(a, Kind::Initiation) > 5);
    });
}
