use core::time::Duration;

use adit_proto::cookie::CookieJar;
use adit_proto::engine::EngineConfig;
use adit_proto::limit::{LimitConfig, Rate};
use adit_proto::reason::DropReason;
use adit_proto::suite::Suite;
use adit_sim::eve::Kind;
use adit_sim::host::HostId;
use adit_sim::topology::{connect, engine};
use adit_sim::world::World;

use crate::traffic::*;

const FLOOD_PER_SEC: u32 = 100;

/// A gateway with small budgets, and a client behind a NAT.
fn small_gateway(seed: u64, suite: Suite) -> (World, HostId, HostId, adit_sim::world::NatId) {
    let mut world = World::new(seed);
    let rate = |per_sec| Rate { per_sec, burst: per_sec };
    let limiter = LimitConfig { unverified: rate(10), verified: rate(50), ..Default::default() };
    let gateway = world.add_host(EngineConfig { default_suite: suite, limiter });
    let client = world.add_host(engine(suite));
    let nat = world.add_nat(60 * SECOND);
    world.put_behind(client, nat);
    connect(&mut world, gateway, client);
    (world, gateway, client, nat)
}

/// Lets initiations with a right mac1 and nothing else right come from addresses all over, for a while.
fn flood(world: &mut World, target: HostId, suite: Suite, lasting: Duration) {
    let until = world.now.saturating_add(lasting);
    let (key, address) = (world.host(target).public_key(), world.host(target).address);
    while world.now < until {
        let mut message = [0; 148];
        for chunk in message.chunks_mut(8) {
            let random = world.random().to_le_bytes();
            chunk.copy_from_slice(&random[..chunk.len()]);
        }
        message[..4].copy_from_slice(&[suite.message_types().initiation, 0, 0, 0]);
        CookieJar::new(suite, &key).stamp(&mut message, world.now);
        let from = world.fresh_address();
        world.inject(from, address, message.to_vec());
        world.run_for(SECOND / FLOOD_PER_SEC);
    }
}

#[test]
fn under_a_flood_from_everywhere_an_honest_client_connects_at_its_first_retry() {
    each(|seed, suite| {
        let (mut world, gateway, client, _) = small_gateway(seed, suite);
        flood(&mut world, gateway, suite, 3 * SECOND);
        let probe = world.send(client, gateway);
        flood(&mut world, gateway, suite, 5 * SECOND);
        assert!(!world.probes.arrived(probe));
        flood(&mut world, gateway, suite, 400 * MS);
        assert!(world.probes.arrived(probe), "{}", world.trace.recent());
        assert_eq!(world.eve.count(client, Kind::Initiation), 2);
        let (asked_for, replies) = (
            world.host(gateway).drops_of(DropReason::CookieRequired),
            world.eve.count(gateway, Kind::CookieReply),
        );
        assert!(asked_for == replies && replies > 500, "{asked_for} {replies}");
        assert!(
            world.host(gateway).drops_of(DropReason::BadHandshake) < 10 + 10,
            "the burst, and no second one"
        );
    });
}

#[test]
fn without_load_no_cookie_is_asked_for() {
    each(|seed, suite| {
        let (mut world, gateway, client, _) = small_gateway(seed, suite);
        assert!(arrives(&mut world, client, gateway));
        assert_eq!(world.eve.total(Kind::CookieReply), 0);
    });
}

#[test]
fn a_cookie_is_good_only_at_the_address_and_port_it_was_given_to() {
    each(|seed, suite| {
        for rebinds in [false, true] {
            let (mut world, gateway, client, nat) = small_gateway(seed, suite);
            flood(&mut world, gateway, suite, 3 * SECOND);
            let probe = world.send(client, gateway);
            flood(&mut world, gateway, suite, SECOND);
            if rebinds {
                world.nat_mut(nat).rebind();
            }
            flood(&mut world, gateway, suite, 5 * SECOND);
            assert_eq!(
                world.probes.arrived(probe),
                !rebinds,
                "the same host from another port needs another"
            );
            flood(&mut world, gateway, suite, 5 * SECOND);
            assert!(world.probes.arrived(probe));
        }
    });
}

#[test]
fn cookie_replies_move_no_endpoint_and_start_nothing() {
    each(|seed, suite| {
        let (mut world, gateway, client, _) = small_gateway(seed, suite);
        world.eve.recording = true;
        flood(&mut world, gateway, suite, 3 * SECOND);
        let probe = world.send(client, gateway);
        flood(&mut world, gateway, suite, SECOND);
        let client_at = world.host(client).address;
        let replies =
            world.eve.recorded.iter().filter(|datagram| Kind::of(&datagram.bytes).0 == Kind::CookieReply);
        let reply = replies.clone().next_back().unwrap().clone();
        let to_client: Vec<_> = replies.filter(|reply| world.is_nat(reply.to.ip())).cloned().collect();
        assert_eq!(to_client.len(), 1);
        let before = (endpoint(&world, client), world.eve.count(client, Kind::Initiation));
        // The client is moved out of its NAT's shadow, so that the attacker reaches it from anywhere.
        let attacker = world.fresh_address();
        let open = world.roam(client);
        assert_ne!(open, client_at);
        for cookie in [&to_client[0], &reply] {
            world.inject(attacker, open, cookie.bytes.clone());
        }
        world.run_for(SECOND);
        assert_eq!((endpoint(&world, client), world.eve.count(client, Kind::Initiation)), before);
        assert!(
            world.host(client).drops_of(DropReason::UnexpectedReply) >= 1,
            "one answers nothing of the client"
        );
        let drops = world.host(client).drops();
        assert_eq!(drops.iter().sum::<u64>(), 2, "{drops:?}");
        world.run_for(20 * SECOND);
        assert!(world.probes.arrived(probe));
    });
}

#[test]
fn answers_to_unproven_messages_are_smaller_than_the_messages() {
    each(|seed, suite| {
        let (mut world, gateway, _, _) = small_gateway(seed, suite);
        world.eve.recording = true;
        flood(&mut world, gateway, suite, 5 * SECOND);
        assert!(world.eve.total(Kind::CookieReply) > 100);
        assert!(world.eve.recorded.iter().all(|datagram| datagram.bytes.len() == 64));
        assert!(world.eve.recorded.len() <= 5 * FLOOD_PER_SEC as usize + 1);
    });
}
