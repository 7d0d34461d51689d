//! Traffic and waiting that scenarios share.

use core::time::Duration;

use adit_proto::event::Event;
use adit_proto::suite::Suite;
use adit_sim::host::HostId;
use adit_sim::topology::pair;
use adit_sim::world::World;

pub(crate) const MS: Duration = Duration::from_millis(1);
pub(crate) const SECOND: Duration = Duration::from_secs(1);
/// The round trip of two hosts under default conditions.
pub(crate) const RTT: Duration = Duration::from_millis(20);

const SEEDS: u64 = 3;

/// Runs a scenario for both suites and several seeds.
pub(crate) fn each(scenario: impl Fn(u64, Suite)) {
    for suite in Suite::ALL {
        (1..=SEEDS).for_each(|seed| scenario(seed, suite));
    }
}

/// Two hosts with a session that `a` initiated; nothing is under way or owed.
pub(crate) fn connected(seed: u64, suite: Suite) -> (World, HostId, HostId) {
    let (mut world, a, b) = pair(seed, suite);
    assert!(arrives(&mut world, a, b), "the first packet arrives");
    assert!(arrives(&mut world, b, a), "its answer too");
    (world, a, b)
}

/// Whether a packet sent now arrives within a second.
pub(crate) fn arrives(world: &mut World, from: HostId, to: HostId) -> bool {
    let probe = world.send(from, to);
    world.run_for(SECOND);
    world.probes.arrived(probe)
}

/// Sends packets all at once.
pub(crate) fn send_many(world: &mut World, from: HostId, to: HostId, packets: u32) {
    for _ in 0..packets {
        world.send(from, to);
    }
}

/// Sends one packet in each flow, waits `every`, and so on for as long as `lasting`.
pub(crate) fn steady(world: &mut World, flows: &[(HostId, HostId)], every: Duration, lasting: Duration) {
    let end = world.now.saturating_add(lasting);
    while world.now < end {
        for &(from, to) in flows {
            world.send(from, to);
        }
        world.run_for(every);
    }
}

/// Sends a packet every 50 ms until one sent since arrives; returns how long that took.
pub(crate) fn recovery(world: &mut World, from: HostId, to: HostId, most: Duration) -> Duration {
    let start = world.now;
    let before = world.probes.flow(from, to).delivered;
    while world.probes.flow(from, to).delivered == before {
        assert!(world.now.since(start) < most, "no recovery\n{}", world.trace.recent());
        world.send(from, to);
        for _ in 0..50 {
            world.run_for(MS);
            if world.probes.flow(from, to).delivered != before {
                break;
            }
        }
    }
    world.now.since(start)
}

/// How many sessions a host came to use.
pub(crate) fn sessions(world: &World, host: HostId) -> usize {
    world.events(host, |event| matches!(event, Event::SessionEstablished { .. })).len()
}

/// Where a host believes its only peer is.
pub(crate) fn endpoint(world: &World, host: HostId) -> std::net::SocketAddr {
    world.host(host).engine.peers(world.now)[0].endpoint.unwrap().remote
}
