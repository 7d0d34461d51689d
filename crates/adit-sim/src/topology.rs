//! Worlds to start from: two hosts, or one gateway and its clients.

use std::net::SocketAddr;

use adit_proto::allowed_ips::Prefix;
use adit_proto::endpoint::Endpoint;
use adit_proto::engine::EngineConfig;
use adit_proto::event::{AllowedIpChange, Command, PeerUpdate};
use adit_proto::suite::Suite;

use crate::host::HostId;
use crate::probe::{inside_v4, inside_v6};
use crate::world::World;

/// The configuration of an engine that pins `suite`.
pub fn engine(suite: Suite) -> EngineConfig {
    EngineConfig { default_suite: suite, ..Default::default() }
}

/// Two hosts that know each other's address.
pub fn pair(seed: u64, suite: Suite) -> (World, HostId, HostId) {
    let mut world = World::new(seed);
    let [a, b] = [0; 2].map(|_| world.add_host(engine(suite)));
    for (host, peer) in [(a, b), (b, a)] {
        let update = peer_of(&world, peer, Some(world.host(peer).address));
        world.command(host, Command::SetPeer(update));
    }
    (world, a, b)
}

/// A gateway, which knows no addresses, and its clients, which know the gateway's and route everything
/// inside through it.
pub fn gateway(seed: u64, suite: Suite, clients: usize) -> (World, HostId, Vec<HostId>) {
    let mut world = World::new(seed);
    let gateway = world.add_host(engine(suite));
    let clients: Vec<_> = (0..clients).map(|_| world.add_host(engine(suite))).collect();
    for &client in &clients {
        connect(&mut world, gateway, client);
    }
    (world, gateway, clients)
}

/// Makes a gateway and a client peers of each other.
pub fn connect(world: &mut World, gateway: HostId, client: HostId) {
    let of_client = peer_of(world, client, None);
    world.command(gateway, Command::SetPeer(of_client));
    let mut of_gateway = peer_of(world, gateway, Some(world.host(gateway).address));
    of_gateway.allowed_ips = ["10.0.0.0/8", "fd00::/16"]
        .map(|prefix| AllowedIpChange::Add(prefix.parse::<Prefix>().unwrap()))
        .to_vec();
    world.command(client, Command::SetPeer(of_gateway));
}

/// The update that adds `peer` with its inside addresses.
pub fn peer_of(world: &World, peer: HostId, address: Option<SocketAddr>) -> PeerUpdate {
    let mut update = PeerUpdate::new(world.host(peer).public_key());
    update.endpoint = address.map(Endpoint::udp);
    update.allowed_ips = [inside_v4(peer), inside_v6(peer)]
        .map(|address| AllowedIpChange::Add(Prefix::host(address)))
        .to_vec();
    update
}
