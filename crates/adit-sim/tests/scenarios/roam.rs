use adit_proto::event::{Command, Event, PeerUpdate};
use adit_proto::suite::Suite;
use adit_sim::host::HostId;
use adit_sim::link::Loss;
use adit_sim::topology::gateway;
use adit_sim::world::{NatId, World};

use crate::traffic::*;

fn behind_nat(seed: u64, suite: Suite, timeout: core::time::Duration) -> (World, HostId, HostId, NatId) {
    let (mut world, gateway, clients) = gateway(seed, suite, 1);
    let client = clients[0];
    let nat = world.add_nat(timeout);
    world.put_behind(client, nat);
    assert!(arrives(&mut world, client, gateway) && arrives(&mut world, gateway, client));
    (world, gateway, client, nat)
}

fn moves(world: &World, host: HostId) -> usize {
    world.events(host, |event| matches!(event, Event::Roamed { .. })).len()
}

#[test]
fn a_rebinding_nat_moves_the_endpoint_with_the_next_packet_and_costs_the_client_none() {
    each(|seed, suite| {
        let (mut world, gateway, client, nat) = behind_nat(seed, suite, 300 * SECOND);
        let first = moves(&world, gateway);
        for n in 1..=20 {
            steady(&mut world, &[(client, gateway)], 10 * MS, SECOND);
            world.run_for(SECOND);
            let before = endpoint(&world, gateway);
            world.nat_mut(nat).rebind();
            assert!(arrives(&mut world, client, gateway) && arrives(&mut world, gateway, client));
            assert_ne!(endpoint(&world, gateway), before);
            assert_eq!(moves(&world, gateway), first + n);
        }
        assert_eq!(world.probes.flow(client, gateway).missing(), 0);
        assert_eq!(sessions(&world, gateway), 1, "no handshake is needed");
    });
}

#[test]
fn a_persistent_keepalive_holds_a_nat_open_that_forgets_after_2_s() {
    each(|seed, suite| {
        for keepalive_secs in [1, 0] {
            let (mut world, gateway, client, _) = behind_nat(seed, suite, 2 * SECOND);
            let mut update = PeerUpdate::new(world.host(gateway).public_key());
            update.persistent_keepalive_secs = Some(keepalive_secs);
            world.command(client, Command::SetPeer(update));
            world.run_for(SECOND);
            for _ in 0..40 {
                world.run_for(2_700 * MS);
                world.send(gateway, client);
            }
            world.run_for(SECOND);
            let missing = world.probes.flow(gateway, client).missing();
            match keepalive_secs {
                0 => assert!(missing > 0 && world.lost(Loss::Nat) > 0, "the NAT does forget: {missing}"),
                _ => assert_eq!((missing, world.lost(Loss::Nat)), (0, 0)),
            }
        }
    });
}

#[test]
fn a_client_that_changes_networks_goes_on_in_the_same_session() {
    each(|seed, suite| {
        let (mut world, gateway, client, _) = behind_nat(seed, suite, 300 * SECOND);
        for _ in 0..8 {
            let address = world.roam(client);
            assert!(arrives(&mut world, client, gateway) && arrives(&mut world, gateway, client));
            assert_eq!(endpoint(&world, gateway), address);
        }
        assert_eq!(sessions(&world, gateway), 1);
        assert_eq!(world.probes.totals().0, world.probes.totals().1);
    });
}

#[test]
fn both_sides_that_know_each_other_may_move_in_turns() {
    each(|seed, suite| {
        let (mut world, a, b) = connected(seed, suite);
        for _ in 0..4 {
            world.roam(a);
            assert!(arrives(&mut world, a, b) && arrives(&mut world, b, a));
            world.roam(b);
            assert!(arrives(&mut world, b, a) && arrives(&mut world, a, b));
        }
    });
}

#[test]
fn under_load_only_what_was_under_way_is_lost_when_a_client_moves() {
    each(|seed, suite| {
        let (mut world, gateway, client, _) = behind_nat(seed, suite, 300 * SECOND);
        for _ in 0..5 {
            steady(&mut world, &[(client, gateway), (gateway, client)], 5 * MS, 3 * SECOND);
            world.roam(client);
        }
        steady(&mut world, &[(client, gateway), (gateway, client)], 5 * MS, 3 * SECOND);
        world.run_for(SECOND);
        let (up, down) = (world.probes.flow(client, gateway), world.probes.flow(gateway, client));
        assert_eq!(up.missing(), 0);
        let round_trip_of_packets = (RTT.as_millis() / 5 + 1) as u64;
        assert!(down.missing() <= 5 * round_trip_of_packets, "{}", down.missing());
        assert_eq!(world.audit(), 0);
    });
}
