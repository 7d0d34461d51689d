use adit_proto::event::{Command, PeerUpdate};
use adit_proto::key::{PresharedKey, StaticSecret};
use adit_proto::reason::DropReason;
use adit_proto::suite::Suite;
use adit_sim::eve::Kind;
use adit_sim::host::HostId;
use adit_sim::topology::{connect, gateway, pair, peer_of};
use adit_sim::world::World;

use crate::traffic::*;

fn set_psk(world: &mut World, host: HostId, peer: HostId, psk: [u8; 32]) {
    let mut update = PeerUpdate::new(world.host(peer).public_key());
    update.preshared_key = Some(PresharedKey::from_bytes(psk));
    world.command(host, Command::SetPeer(update));
}

#[test]
fn a_wrong_psk_on_one_side_never_gives_a_session() {
    each(|seed, suite| {
        for wrong in [[0; 32], [8; 32]] {
            let (mut world, a, b) = pair(seed, suite);
            set_psk(&mut world, a, b, [7; 32]);
            set_psk(&mut world, b, a, wrong);
            steady(&mut world, &[(a, b), (b, a)], SECOND, 300 * SECOND);
            assert_eq!(world.probes.totals().1, 0);
            assert_eq!((sessions(&world, a), sessions(&world, b)), (0, 0));
            assert!(world.host(a).drops_of(DropReason::BadHandshake) > 10);
            set_psk(&mut world, b, a, [7; 32]);
            recovery(&mut world, a, b, 11 * SECOND);
            assert!(arrives(&mut world, b, a));
            world.audit();
        }
    });
}

#[test]
fn a_psk_change_takes_effect_at_the_next_handshake() {
    each(|seed, suite| {
        let (mut world, a, b) = connected(seed, suite);
        steady(&mut world, &[(a, b), (b, a)], 100 * MS, 50 * SECOND);
        set_psk(&mut world, a, b, [7; 32]);
        set_psk(&mut world, b, a, [7; 32]);
        steady(&mut world, &[(a, b), (b, a)], 100 * MS, 400 * SECOND);
        world.run_for(SECOND);
        assert_eq!(world.probes.flow(a, b).missing() + world.probes.flow(b, a).missing(), 0);
        assert!(sessions(&world, a) > 3);

        set_psk(&mut world, b, a, [9; 32]);
        assert!(arrives(&mut world, a, b), "the session at hand goes on");
        steady(&mut world, &[(a, b), (b, a)], 100 * MS, 200 * SECOND);
        assert!(!arrives(&mut world, a, b), "and has no successor");
        assert_eq!(world.audit(), 0);
    });
}

#[test]
fn a_new_private_key_ends_every_session_at_once() {
    each(|seed, suite| {
        let (mut world, a, b) = connected(seed, suite);
        let old_key = world.host(a).public_key();
        world.send(b, a);
        world.command(a, Command::SetPrivateKey(Some(StaticSecret::from_bytes([9; 32]))));
        assert_eq!(world.host(a).engine.indices_in_use(), 0);
        steady(&mut world, &[(a, b), (b, a)], 100 * MS, 20 * SECOND);
        assert_eq!(
            (world.probes.flow(b, a).delivered, world.probes.flow(a, b).delivered),
            (1, 1),
            "as before"
        );
        assert!(world.host(b).drops_of(DropReason::UnknownPeer) > 0);
        assert!(world.host(a).drops_of(DropReason::BadMac1) > 0, "the other still means the old key");

        world.command(b, Command::RemovePeer(old_key));
        let update = peer_of(&world, a, Some(world.host(a).address));
        world.command(b, Command::SetPeer(update));
        recovery(&mut world, b, a, SECOND);
        assert!(arrives(&mut world, a, b));
        world.audit();
    });
}

#[test]
fn a_removed_peer_gets_nothing_through_from_that_moment_on() {
    each(|seed, suite| {
        let (mut world, gateway, clients) = gateway(seed, suite, 2);
        let flows: Vec<_> =
            clients.iter().flat_map(|&client| [(client, gateway), (gateway, client)]).collect();
        world.send(clients[0], gateway);
        world.send(clients[1], gateway);
        world.run_for(SECOND);
        steady(&mut world, &flows, 10 * MS, 5 * SECOND);
        let removed = world.host(clients[0]).public_key();
        world.command(gateway, Command::RemovePeer(removed));
        let before = world.probes.flow(clients[0], gateway).delivered;
        assert!(before > 400);
        steady(&mut world, &flows, 10 * MS, 40 * SECOND);
        assert_eq!(world.probes.flow(clients[0], gateway).delivered, before);
        let kept = world.probes.flow(clients[1], gateway);
        world.run_for(SECOND);
        assert!(kept.missing() <= 1, "the other peer notices nothing");
        let host = world.host(gateway);
        assert!(host.drops_of(DropReason::UnknownIndex) > 100 && host.drops_of(DropReason::UnknownPeer) > 0);
        assert!(host.drops_of(DropReason::NoRoute) > 100);

        connect(&mut world, gateway, clients[0]);
        recovery(&mut world, clients[0], gateway, 20 * SECOND);
        assert!(arrives(&mut world, gateway, clients[0]));
        world.audit();
    });
}

#[test]
fn a_peer_removed_while_packets_wait_for_it_drops_and_counts_them() {
    each(|seed, suite| {
        let (mut world, a, b) = pair(seed, suite);
        send_many(&mut world, a, b, 10);
        let key = world.host(b).public_key();
        world.command(a, Command::RemovePeer(key));
        assert_eq!(world.host(a).engine.indices_in_use(), 0);
        world.run_for(SECOND);
        assert_eq!(world.probes.flow(a, b).delivered, 0);
        assert_eq!(world.audit(), 0);
    });
}

#[test]
fn suites_that_do_not_match_are_dropped_counted_and_never_negotiated() {
    each(|seed, suite| {
        let other = Suite::ALL.into_iter().find(|other| *other != suite).unwrap();
        let (mut world, a, b) = pair(seed, suite);
        let mut update = PeerUpdate::new(world.host(a).public_key());
        update.suite = Some(other);
        world.command(b, Command::SetPeer(update));
        steady(&mut world, &[(a, b), (b, a)], SECOND, 200 * SECOND);
        assert_eq!(world.probes.totals().1, 0);
        for (host, pinned) in [(a, suite), (b, other)] {
            assert!(world.host(host).drops_of(DropReason::SuiteMismatch) > 10);
            let sent = world.eve.sightings.iter().filter(|sighting| sighting.from == host);
            assert!(sent.map(|sighting| sighting.suite).all(|suite| suite == Some(pinned)));
        }
        assert_eq!((world.eve.total(Kind::Response), world.eve.total(Kind::Data)), (0, 0));

        let mut update = PeerUpdate::new(world.host(a).public_key());
        update.suite = Some(suite);
        world.command(b, Command::SetPeer(update));
        recovery(&mut world, a, b, 11 * SECOND);
        world.audit();
    });
}

#[test]
fn a_suite_changed_on_both_sides_under_load_is_used_from_then_on() {
    each(|seed, suite| {
        let other = Suite::ALL.into_iter().find(|other| *other != suite).unwrap();
        let (mut world, a, b) = connected(seed, suite);
        steady(&mut world, &[(a, b), (b, a)], 20 * MS, 5 * SECOND);
        for (host, peer) in [(a, b), (b, a)] {
            let mut update = PeerUpdate::new(world.host(peer).public_key());
            update.suite = Some(other);
            world.command(host, Command::SetPeer(update));
        }
        let old = world.eve.of_suite(suite);
        steady(&mut world, &[(a, b), (b, a)], 20 * MS, 20 * SECOND);
        assert_eq!(world.eve.of_suite(suite), old);
        assert!(arrives(&mut world, a, b) && arrives(&mut world, b, a));
        assert_eq!(world.audit(), 0);
    });
}

#[test]
fn a_suite_change_keeps_the_persistent_keepalive_which_makes_the_new_session() {
    each(|seed, suite| {
        let other = Suite::ALL.into_iter().find(|other| *other != suite).unwrap();
        let (mut world, a, b) = connected(seed, suite);
        let mut update = PeerUpdate::new(world.host(b).public_key());
        update.persistent_keepalive_secs = Some(25);
        world.command(a, Command::SetPeer(update));
        world.run_for(10 * SECOND);
        for (host, peer) in [(a, b), (b, a)] {
            let mut update = PeerUpdate::new(world.host(peer).public_key());
            update.suite = Some(other);
            world.command(host, Command::SetPeer(update));
        }
        world.run_for(31 * SECOND);
        assert_eq!(sessions(&world, b), 2, "{}", world.trace.recent());
        let probe = world.send(b, a);
        world.run_for(RTT);
        assert!(world.probes.arrived(probe));
    });
}
