use adit_proto::reason::DropReason;
use adit_proto::suite::Suite;
use adit_proto::wire::transport_header;
use adit_sim::eve::Kind;
use adit_sim::host::HostId;
use adit_sim::link::Datagram;
use adit_sim::world::World;

use crate::traffic::*;

/// A world in which two hosts talked through two rekeys while everything was recorded.
fn recorded(seed: u64, suite: Suite) -> (World, HostId, HostId, Vec<Datagram>) {
    let (mut world, a, b) = connected(seed, suite);
    world.eve.recording = true;
    world.initiate(a, b);
    steady(&mut world, &[(a, b), (b, a)], 100 * MS, 260 * SECOND);
    world.run_for(SECOND);
    world.eve.recording = false;
    let recorded = std::mem::take(&mut world.eve.recorded);
    assert!(recorded.len() > 5_000 && world.eve.total(Kind::Initiation) >= 3);
    (world, a, b, recorded)
}

#[test]
fn everything_ever_seen_replayed_is_delivered_never_answered_never_and_moves_nobody() {
    each(|seed, suite| {
        let (mut world, a, b, recorded) = recorded(seed, suite);
        let attacker = world.fresh_address();
        let places = [endpoint(&world, a), endpoint(&world, b)];
        let (delivered, sent) = (world.probes.totals().1, world.eve.all());
        for datagram in &recorded {
            world.inject(attacker, datagram.to, datagram.bytes.clone());
            world.inject(datagram.from, datagram.to, datagram.bytes.clone());
        }
        world.run_for(SECOND);
        assert_eq!(world.probes.totals().1, delivered);
        assert_eq!(world.eve.all(), sent, "no host said a word");
        assert_eq!([endpoint(&world, a), endpoint(&world, b)], places);
        let dropped = [a, b].map(|host| world.host(host).drops().iter().sum::<u64>());
        assert_eq!(dropped.iter().sum::<u64>(), 2 * recorded.len() as u64);
        assert!(arrives(&mut world, a, b) && arrives(&mut world, b, a));
        assert_eq!(world.audit(), 0);
    });
}

#[test]
fn a_packet_that_never_arrived_is_delivered_late_and_moves_its_sender() {
    each(|seed, suite| {
        let (mut world, a, b) = connected(seed, suite);
        world.host_mut(b).down.conditions.blackhole = true;
        world.eve.recording = true;
        let probe = world.send(a, b);
        world.run_for(SECOND);
        world.host_mut(b).down.conditions.blackhole = false;
        let elsewhere = world.fresh_address();
        let datagram = world.eve.recorded[0].clone();
        world.inject(elsewhere, datagram.to, datagram.bytes);
        world.run_for(SECOND);
        assert!(world.probes.arrived(probe), "the positive control of the replay test");
        assert_eq!(endpoint(&world, b), elsewhere);
        assert!(arrives(&mut world, a, b), "and the next true packet moves it back");
        assert_eq!(endpoint(&world, b), world.host(a).address);
    });
}

#[test]
fn forged_messages_move_nobody_and_end_nothing() {
    each(|seed, suite| {
        let (mut world, a, b, recorded) = recorded(seed, suite);
        let attacker = world.fresh_address();
        let place = endpoint(&world, b);
        let (sent, sessions_before) = (world.eve.all(), sessions(&world, b));
        let target = world.host(b).address;
        let newest = recorded.iter().rev().filter(|datagram| datagram.to == target);
        for (n, datagram) in newest.take(200).enumerate() {
            for bit in [0, 8, 33, 64, 100, 127, 130, datagram.bytes.len() * 8 - 1] {
                let mut bytes = datagram.bytes.clone();
                bytes[bit / 8] ^= 1 << (bit % 8);
                world.inject(attacker, datagram.to, bytes);
            }
            world.inject(attacker, datagram.to, datagram.bytes[..n % datagram.bytes.len()].to_vec());
        }
        world.run_for(SECOND);
        assert_eq!(endpoint(&world, b), place);
        assert_eq!((world.eve.all(), sessions(&world, b)), (sent, sessions_before));
        assert!(world.host(b).drops_of(DropReason::BadTag) > 0);
        assert!(arrives(&mut world, a, b) && arrives(&mut world, b, a));
    });
}

#[test]
fn forged_counters_do_not_poison_the_replay_window() {
    each(|seed, suite| {
        let (mut world, a, b) = connected(seed, suite);
        world.eve.recording = true;
        assert!(arrives(&mut world, a, b));
        let genuine = world.eve.recorded[0].clone();
        let receiver = u32::from_le_bytes(*genuine.bytes[4..].first_chunk().unwrap());
        for counter in [1 << 20, 1 << 63, u64::MAX - (1 << 13) - 1, u64::MAX] {
            let mut bytes = genuine.bytes.clone();
            bytes[..16].copy_from_slice(&transport_header(suite, receiver, counter));
            world.inject(genuine.from, genuine.to, bytes);
        }
        world.run_for(SECOND);
        assert_eq!(world.host(b).drops_of(DropReason::BadTag), 2 + 1);
        assert_eq!(world.host(b).drops_of(DropReason::ExpiredKeypair), 1);
        assert!(arrives(&mut world, a, b));
    });
}

#[test]
fn a_flood_of_bad_tags_does_not_close_a_session() {
    each(|seed, suite| {
        let (mut world, a, b) = connected(seed, suite);
        world.eve.recording = true;
        assert!(arrives(&mut world, a, b));
        let mut forged = world.eve.recorded[0].clone();
        *forged.bytes.last_mut().unwrap() ^= 1;
        let before = world.eve.total(Kind::Initiation);
        for _ in 0..20_000 {
            world.inject(forged.from, forged.to, forged.bytes.clone());
        }
        world.run_for(SECOND);
        assert_eq!(world.host(b).drops_of(DropReason::BadTag), 20_000);
        assert!(arrives(&mut world, a, b));
        assert_eq!(world.eve.total(Kind::Initiation), before, "the same session");
    });
}

#[test]
fn a_garbage_response_that_races_the_real_one_does_not_end_the_handshake() {
    each(|seed, suite| {
        let (mut world, a, b) = adit_sim::topology::pair(seed, suite);
        world.eve.recording = true;
        let probe = world.send(a, b);
        world.run_for(11 * MS);
        let mut garbage = world.eve.recorded[1].clone();
        assert_eq!(Kind::of(&garbage.bytes).0, Kind::Response);
        garbage.bytes[20] ^= 1;
        restamp_mac1(&mut garbage.bytes, &world.host(a).public_key(), suite, world.now);
        world.host_mut(a).down.conditions.latency = MS;
        world.inject(garbage.from, garbage.to, garbage.bytes);
        world.host_mut(a).down.conditions.latency = 5 * MS;
        world.run_for(SECOND);
        assert_eq!(world.host(a).drops_of(DropReason::BadHandshake), 1, "it came and was refused");
        assert!(world.probes.arrived(probe));
        assert_eq!(world.eve.total(Kind::Initiation), 1);
    });
}

/// What anyone can do who knows the receiver's public key.
fn restamp_mac1(
    message: &mut [u8],
    receiver: &adit_proto::key::PublicKey,
    suite: Suite,
    now: adit_proto::time::Instant,
) {
    let message: &mut [u8; 92] = message.try_into().unwrap();
    adit_proto::cookie::CookieJar::new(suite, receiver).stamp(message, now);
}
