//! Two peers and a network that does as the input says: it loses, repeats, reorders, changes and invents
//! datagrams, lets time pass and moves a peer to another address.
//!
//! Whatever it does: what is delivered was sent, by that peer, and is delivered once. And when the
//! network behaves again, packets pass again.

use core::net::SocketAddr;
use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use adit_proto::allowed_ips::Prefix;
use adit_proto::endpoint::Endpoint;
use adit_proto::engine::{Engine, EngineConfig};
use adit_proto::event::{AllowedIpChange, Command, Notice, Output, PeerUpdate};
use adit_proto::forward::{Departure, Forwarding};
use adit_proto::key::StaticSecret;
use adit_proto::packet::{Ecn, InsideHeader};
use adit_proto::suite::Suite;
use adit_proto::time::{Clock, Instant, UnixTime};

use crate::mutation::Rng;

const MAX_STEPS: usize = 256;
const MAX_UNDER_WAY: usize = 64;

/// The first byte chooses the suite; each step takes one byte, and what it needs more.
pub fn run(data: &[u8]) {
    play(data).recover();
}

fn play(data: &[u8]) -> World {
    let mut script = Script(data.iter());
    let suite = Suite::ALL[usize::from(script.byte().unwrap_or(0) & 1)];
    let mut world = World::new(suite);
    for _ in 0..MAX_STEPS {
        let Some(step) = script.byte() else { break };
        let host = usize::from(step >> 7);
        match step & 0x7f {
            0..16 => world.send(host),
            16..48 => world.deliver(script.number(), Fate::Arrives),
            48..64 => world.deliver(script.number(), Fate::ArrivesAndStays),
            64..80 => {
                let change = script.byte().unwrap_or(0).max(1);
                world.deliver(script.number(), Fate::ArrivesChanged(script.number(), change));
            }
            80..88 => world.deliver(script.number(), Fate::Lost),
            88..104 => {
                let invented = script.take(usize::from(step & 15) * 16);
                world.arrive(host, world.hosts[1 - host].endpoint, invented, false);
            }
            104..120 => world.pass(Duration::from_millis(u64::from(script.byte().unwrap_or(0)) * 250)),
            _ => world.roam(script.byte().unwrap_or(0)),
        }
    }
    world
}

struct Script<'a>(core::slice::Iter<'a, u8>);

impl Script<'_> {
    fn byte(&mut self) -> Option<u8> {
        self.0.next().copied()
    }

    fn number(&mut self) -> usize {
        usize::from(self.byte().unwrap_or(0))
    }

    fn take(&mut self, len: usize) -> Vec<u8> {
        self.0.by_ref().take(len).copied().collect()
    }
}

enum Fate {
    Arrives,
    ArrivesAndStays,
    ArrivesChanged(usize, u8),
    Lost,
}

struct World {
    hosts: [Host; 2],
    clock: Clock,
    under_way: VecDeque<Datagram>,
    sent: HashSet<Vec<u8>>,
    sent_count: u32,
    delivered: [usize; 2],
}

struct Host {
    engine: Engine,
    forwarding: Arc<Forwarding>,
    endpoint: Endpoint,
}

#[derive(Clone)]
struct Datagram {
    from: Endpoint,
    to: Endpoint,
    bytes: Vec<u8>,
    is_repeated: bool,
}

impl World {
    fn new(suite: Suite) -> Self {
        let clock =
            Clock { now: Instant::from_millis(1_000), wall: UnixTime { secs: 1_700_000_000, nanos: 0 } };
        let secrets = [StaticSecret::from_bytes([11; 32]), StaticSecret::from_bytes([22; 32])];
        let hosts = [0, 1].map(|n| {
            let mut rng = Rng::new(n as u64 + 1);
            let random = move |bytes: &mut [u8]| bytes.fill_with(|| (rng.next_u64() >> 32) as u8);
            let config = EngineConfig { default_suite: suite, ..EngineConfig::default() };
            let (mut engine, forwarding) = Engine::new(config, Box::new(random));
            forwarding.set_mtu(1420);
            let mut update = PeerUpdate::new(secrets[1 - n].public_key());
            update.endpoint = Some(endpoint_of(1 - n, 0));
            let inside = Prefix::host(inside_address(1 - n).into());
            update.allowed_ips = vec![AllowedIpChange::Add(inside)];
            engine.handle_command(clock, Command::SetPrivateKey(Some(secrets[n].clone())));
            engine.handle_command(clock, Command::SetPeer(update));
            Host { engine, forwarding, endpoint: endpoint_of(n, 0) }
        });
        let mut world = Self {
            hosts,
            clock,
            under_way: VecDeque::new(),
            sent: HashSet::new(),
            sent_count: 0,
            delivered: [0; 2],
        };
        world.poll(0);
        world.poll(1);
        world
    }

    fn send(&mut self, host: usize) {
        self.sent_count += 1;
        let packet = inside_packet(host, self.sent_count);
        self.sent.insert(packet.clone());
        let forwarding = Arc::clone(&self.hosts[host].forwarding);
        let header = InsideHeader::parse(&packet).unwrap();
        let mut notices = Vec::new();
        match forwarding.depart(self.clock.now, &header) {
            Departure::Seal(keypair, endpoint) => {
                let message = forwarding.seal(&keypair, &packet).unwrap();
                forwarding.sent(self.clock.now, &keypair, 1, message.len() as u64, &mut notices);
                self.transmit(host, endpoint, message);
            }
            Departure::Stage(path) => {
                let staged = forwarding.stage(self.clock.now, &path, &packet, &mut notices);
                assert!(staged, "a session came while nothing happened");
            }
            Departure::Drop(reason) => panic!("a packet to the peer was dropped: {reason:?}"),
        }
        self.notice(host, notices);
    }

    fn transmit(&mut self, host: usize, to: Endpoint, bytes: Vec<u8>) {
        let from = self.hosts[host].endpoint;
        self.under_way.push_back(Datagram { from, to, bytes, is_repeated: false });
        if self.under_way.len() > MAX_UNDER_WAY {
            self.under_way.pop_front();
        }
    }

    fn deliver(&mut self, which: usize, fate: Fate) {
        if self.under_way.is_empty() {
            return;
        }
        let which = which % self.under_way.len();
        let mut datagram = self.under_way[which].clone();
        match fate {
            Fate::ArrivesAndStays => {
                let arrives = self.host_at(datagram.to).is_some();
                self.under_way[which].is_repeated |= arrives;
            }
            Fate::ArrivesChanged(at, change) => {
                let at = at % datagram.bytes.len();
                datagram.bytes[at] ^= change;
                let to = self.host_at(datagram.to);
                return self.arrive_at(to, datagram.from, datagram.bytes, false);
            }
            Fate::Arrives | Fate::Lost => {
                self.under_way.remove(which);
            }
        }
        if !matches!(fate, Fate::Lost) {
            let to = self.host_at(datagram.to);
            self.arrive_at(to, datagram.from, datagram.bytes, !datagram.is_repeated);
        }
    }

    fn host_at(&self, endpoint: Endpoint) -> Option<usize> {
        self.hosts.iter().position(|host| host.endpoint.remote == endpoint.remote)
    }

    fn arrive_at(&mut self, host: Option<usize>, from: Endpoint, bytes: Vec<u8>, may_deliver: bool) {
        if let Some(host) = host {
            self.arrive(host, from, bytes, may_deliver);
        }
    }

    fn arrive(&mut self, host: usize, from: Endpoint, mut bytes: Vec<u8>, may_deliver: bool) {
        let mut notices = Vec::new();
        let forwarding = Arc::clone(&self.hosts[host].forwarding);
        if let Some(inside) = forwarding.arrive(self.clock.now, &from, Ecn::NotEct, &mut bytes, &mut notices)
        {
            assert!(may_deliver, "a changed, invented or repeated datagram was delivered");
            let packet = &bytes[inside];
            assert!(self.sent.remove(packet), "a packet was delivered that was not sent, or twice");
            let source = InsideHeader::parse(packet).unwrap().source;
            assert_eq!(source, inside_address(1 - host));
            self.delivered[host] += 1;
        }
        self.notice(host, notices);
    }

    fn notice(&mut self, host: usize, notices: Vec<Notice>) {
        for notice in notices {
            self.hosts[host].engine.handle_notice(self.clock, notice);
        }
        self.poll(host);
    }

    fn poll(&mut self, host: usize) {
        while let Some(output) = self.hosts[host].engine.poll_output(self.clock.now) {
            if let Output::Transmit(transmit) = output {
                self.transmit(host, transmit.endpoint, transmit.contents);
            }
        }
    }

    /// Lets time pass, firing every timer at its moment.
    fn pass(&mut self, time: Duration) {
        let end = self.clock.now.saturating_add(time);
        loop {
            let due = self.hosts.iter().filter_map(|host| host.engine.next_timeout()).min();
            let next = due.filter(|due| *due < end).unwrap_or(end).max(self.clock.now);
            let elapsed = next.since(self.clock.now);
            let wall = Duration::new(self.clock.wall.secs, self.clock.wall.nanos) + elapsed;
            self.clock =
                Clock { now: next, wall: UnixTime { secs: wall.as_secs(), nanos: wall.subsec_nanos() } };
            for host in 0..2 {
                self.hosts[host].engine.handle_timeout(self.clock);
                self.poll(host);
            }
            if next >= end {
                return;
            }
        }
    }

    fn roam(&mut self, port: u8) {
        self.hosts[0].endpoint = endpoint_of(0, port);
    }

    /// A network without faults again: within 200 seconds packets must pass in both directions.
    fn recover(&mut self) {
        self.under_way.clear();
        let before = self.delivered;
        for _ in 0..200 {
            self.send(0);
            self.deliver_all();
            if self.delivered[1] > before[1] {
                self.send(1);
                self.deliver_all();
            }
            if self.delivered[0] > before[0] && self.delivered[1] > before[1] {
                return;
            }
            self.pass(Duration::from_secs(1));
        }
        panic!("the peers did not find back to each other: {:?}", self.delivered);
    }

    fn deliver_all(&mut self) {
        while !self.under_way.is_empty() {
            self.deliver(0, Fate::Arrives);
        }
    }
}

fn endpoint_of(host: usize, port: u8) -> Endpoint {
    Endpoint::udp(SocketAddr::from(([192, 0, 2, host as u8 + 1], 51_820 + u16::from(port))))
}

fn inside_address(host: usize) -> core::net::Ipv4Addr {
    core::net::Ipv4Addr::new(10, 86, 0, host as u8 + 1)
}

/// An IPv4 packet that no other has its like: the number is in its payload.
fn inside_packet(from: usize, number: u32) -> Vec<u8> {
    let len = 24 + number as usize % 40;
    let mut packet = vec![0; len];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&(len as u16).to_be_bytes());
    packet[8] = 64;
    packet[9] = 17;
    packet[12..16].copy_from_slice(&inside_address(from).octets());
    packet[16..20].copy_from_slice(&inside_address(1 - from).octets());
    packet[20..24].copy_from_slice(&number.to_be_bytes());
    packet
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEND: u8 = 0x00;
    const DELIVER: [u8; 2] = [0x10, 0];
    const REPEAT: [u8; 2] = [0x30, 0];

    fn established(suite: u8) -> Vec<u8> {
        [&[suite, SEND][..], &DELIVER, &DELIVER, &DELIVER].concat()
    }

    #[test]
    fn a_clean_script_makes_a_session_and_delivers() {
        for suite in [0, 1] {
            assert_eq!(play(&[suite, SEND]).delivered, [0, 0]);
            assert_eq!(play(&established(suite)).delivered, [0, 1]);
        }
    }

    #[test]
    fn repeated_data_arrives_once() {
        let script = [&established(0)[..], &[SEND], &REPEAT, &REPEAT, &REPEAT].concat();
        assert_eq!(play(&script).delivered, [0, 2]);
    }

    #[test]
    #[should_panic(expected = "twice")]
    fn a_packet_delivered_twice_is_noticed() {
        let mut world = play(&[&established(0)[..], &[SEND]].concat());
        world.sent.clear();
        world.deliver(0, Fate::Arrives);
    }

    #[test]
    #[should_panic(expected = "did not find back")]
    fn peers_that_lose_each_other_are_noticed() {
        let mut world = play(&established(0));
        let secret = StaticSecret::from_bytes([33; 32]);
        world.hosts[1].engine.handle_command(world.clock, Command::SetPrivateKey(Some(secret)));
        world.recover();
    }
}
