#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic)]

use core::time::Duration;
use std::sync::Arc;

use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore, SeedableRng};

use super::*;
use crate::allowed_ips::Prefix;
use crate::forward::Departure;
use crate::packet::InsideHeader;
use crate::reason::DropReason;
use crate::time::UnixTime;

/// Two hosts, a wire between them and a clock that moves by hand.
struct Pair {
    hosts: [Host; 2],
    clock: Clock,
    /// Datagrams under way: (to, from endpoint, bytes).
    wire: VecDeque<(usize, Endpoint, Vec<u8>)>,
    /// Every datagram that was ever on the wire.
    seen: Vec<(usize, Vec<u8>)>,
    /// How many notices each engine got.
    noticed: [usize; 2],
}

struct Host {
    engine: Engine,
    forwarding: Arc<Forwarding>,
    endpoint: Endpoint,
    delivered: Vec<Vec<u8>>,
    events: Vec<Event>,
}

impl Pair {
    fn new(suite: Suite) -> Self {
        Self::with_limiter(suite, LimitConfig::default())
    }

    fn with_limiter(suite: Suite, limiter: LimitConfig) -> Self {
        let hosts = [1u8, 2].map(|n| {
            let mut rng = ChaCha20Rng::seed_from_u64(u64::from(n));
            let random: Random = Box::new(move |bytes: &mut [u8]| rng.fill_bytes(bytes));
            let config = EngineConfig { default_suite: suite, limiter };
            let (engine, forwarding) = Engine::new(config, random);
            forwarding.set_mtu(1420);
            let endpoint = Endpoint::udp(format!("192.0.2.{n}:51820").parse().unwrap());
            Host { engine, forwarding, endpoint, delivered: Vec::new(), events: Vec::new() }
        });
        let wall = UnixTime { secs: 1_700_000_000, nanos: 0 };
        let now = Instant::from_millis(1_000);
        let clock = Clock { now, wall };
        let mut pair = Self { hosts, clock, wire: VecDeque::new(), seen: Vec::new(), noticed: [0; 2] };
        let secrets = [StaticSecret::from_bytes([11; 32]), StaticSecret::from_bytes([22; 32])];
        for n in 0..2 {
            let peer = 1 - n;
            let mut update = PeerUpdate::new(secrets[peer].public_key());
            update.endpoint = Some(pair.hosts[peer].endpoint);
            update.allowed_ips =
                vec![AllowedIpChange::Add(format!("10.0.0.{}/32", peer + 1).parse::<Prefix>().unwrap())];
            let engine = &mut pair.hosts[n].engine;
            engine.handle_command(pair.clock, Command::SetPrivateKey(Some(secrets[n].clone())));
            engine.handle_command(pair.clock, Command::SetPeer(update));
            pair.poll(n);
        }
        pair
    }

    fn poll(&mut self, n: usize) {
        while let Some(output) = self.hosts[n].engine.poll_output(self.clock.now) {
            match output {
                Output::Transmit(transmit) => self.put_on_wire(n, transmit.contents),
                Output::Event(event) => self.hosts[n].events.push(event),
            }
        }
    }

    fn put_on_wire(&mut self, from: usize, datagram: Vec<u8>) {
        self.seen.push((from, datagram.clone()));
        self.wire.push_back((1 - from, self.hosts[from].endpoint, datagram));
    }

    fn notices(&mut self, n: usize, notices: Vec<Notice>) {
        self.noticed[n] += notices.len();
        for notice in notices {
            self.hosts[n].engine.handle_notice(self.clock, notice);
        }
        self.poll(n);
    }

    fn send(&mut self, n: usize, text: &[u8]) {
        let packet = packet(n, text);
        let header = InsideHeader::parse(&packet).unwrap();
        let forwarding = Arc::clone(&self.hosts[n].forwarding);
        let mut notices = Vec::new();
        match forwarding.depart(self.clock.now, &header) {
            Departure::Seal(keypair, _) => {
                let message = forwarding.seal(&keypair, &packet).unwrap();
                forwarding.sent(self.clock.now, &keypair, 1, message.len() as u64, &mut notices);
                self.put_on_wire(n, message);
            }
            Departure::Stage(path) => {
                assert!(forwarding.stage(self.clock.now, &path, &packet, &mut notices));
            }
            Departure::Drop(reason) => panic!("{reason:?}"),
        }
        self.notices(n, notices);
    }

    fn drive(&mut self) {
        while let Some((to, from, datagram)) = self.wire.pop_front() {
            self.receive(to, from, datagram);
        }
    }

    fn receive(&mut self, to: usize, from: Endpoint, mut datagram: Vec<u8>) {
        let mut notices = Vec::new();
        let forwarding = Arc::clone(&self.hosts[to].forwarding);
        let inside = forwarding.arrive(self.clock.now, &from, Ecn::NotEct, &mut datagram, &mut notices);
        if let Some(inside) = inside {
            self.hosts[to].delivered.push(datagram[inside].to_vec());
        }
        self.notices(to, notices);
    }

    fn advance(&mut self, by: Duration) {
        let until = self.clock.now.saturating_add(by);
        loop {
            let next = self.hosts.iter().filter_map(|host| host.engine.next_timeout()).min();
            let at = next.filter(|&at| at <= until).unwrap_or(until).max(self.clock.now);
            let step = at.since(self.clock.now);
            self.clock.now = at;
            self.clock.wall.secs += step.as_secs();
            for n in 0..2 {
                self.hosts[n].engine.handle_timeout(self.clock);
                self.poll(n);
            }
            self.drive();
            if at == until {
                return;
            }
        }
    }

    fn drops(&self, n: usize, reason: DropReason) -> u64 {
        self.hosts[n].forwarding.drops.count_of(reason)
    }
}

fn packet(from: usize, text: &[u8]) -> Vec<u8> {
    let len = (20 + text.len()) as u16;
    let [hi, lo] = len.to_be_bytes();
    let (s, d) = (from as u8 + 1, 2 - from as u8);
    let mut packet = vec![0x45, 0, hi, lo, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, s, 10, 0, 0, d];
    packet.extend(text);
    packet
}

#[test]
fn the_first_packet_waits_for_the_handshake_and_arrives() {
    for suite in Suite::ALL {
        let mut pair = Pair::new(suite);
        pair.send(0, b"hello");
        pair.drive();
        assert_eq!(pair.hosts[1].delivered, [packet(0, b"hello")]);
        let sizes: Vec<_> = pair.seen.iter().map(|(_, datagram)| datagram.len()).collect();
        assert_eq!(sizes, [148, 92, 64], "initiation, response, the packet padded to 32");
        pair.send(1, b"answer");
        pair.drive();
        assert_eq!(pair.hosts[0].delivered, [packet(1, b"answer")]);
        assert_eq!(pair.seen.len(), 4, "the answer needs no handshake of its own");
    }
}

#[test]
fn staged_packets_arrive_in_order_and_before_later_ones() {
    let mut pair = Pair::new(Suite::Aes256Gcm);
    for n in 0..100u8 {
        pair.send(0, &[n]);
    }
    pair.drive();
    for n in 100..200u8 {
        pair.send(0, &[n]);
    }
    pair.drive();
    let expected: Vec<_> = (0..200u8).map(|n| packet(0, &[n])).collect();
    assert_eq!(pair.hosts[1].delivered, expected);
}

#[test]
fn received_data_is_answered_by_a_keepalive_after_ten_seconds() {
    let mut pair = Pair::new(Suite::ChaCha20Poly1305);
    pair.send(0, b"hello");
    pair.drive();
    let before = pair.seen.len();
    pair.advance(Duration::from_millis(9_990));
    assert_eq!(pair.seen.len(), before);
    pair.advance(Duration::from_millis(20));
    assert_eq!(pair.seen[before..].iter().map(|(from, d)| (*from, d.len())).collect::<Vec<_>>(), [(1, 32)]);
    pair.advance(Duration::from_secs(30));
    assert_eq!(pair.seen.len(), before + 1, "a keepalive is not answered by a keepalive");
}

#[test]
fn crossing_initiations_give_one_usable_session() {
    let mut pair = Pair::new(Suite::Aes256Gcm);
    pair.send(0, b"from a");
    pair.send(1, b"from b");
    pair.drive();
    assert_eq!(pair.hosts[1].delivered, [packet(0, b"from a")]);
    assert_eq!(pair.hosts[0].delivered, [packet(1, b"from b")]);
    let before = pair.seen.len();
    pair.advance(Duration::from_secs(8));
    let handshakes = pair.seen[before..].iter().filter(|(_, datagram)| datagram.len() == 148).count();
    assert_eq!(handshakes, 0, "no fight goes on");
}

#[test]
fn a_handshake_gives_up_after_ninety_seconds_and_drops_what_waited() {
    let mut pair = Pair::new(Suite::Aes256Gcm);
    pair.send(0, b"hello");
    for _ in 0..200 {
        pair.wire.clear();
        let step = pair.hosts[0].engine.next_timeout().map(|at| at.since(pair.clock.now));
        let Some(step) = step.filter(|step| step.as_secs() < 100) else { break };
        pair.clock.now = pair.clock.now.saturating_add(step);
        pair.hosts[0].engine.handle_timeout(pair.clock);
        pair.poll(0);
    }
    assert_eq!(pair.seen.len(), 18);
    assert_eq!(pair.drops(0, DropReason::HandshakeTimeout), 1);
    assert!(matches!(pair.hosts[0].events.last(), Some(Event::HandshakeGaveUp { .. })));
    pair.wire.clear();
    pair.clock.now = pair.clock.now.saturating_add(Duration::from_secs(10));
    pair.send(0, b"again");
    pair.drive();
    assert_eq!(pair.hosts[1].delivered, [packet(0, b"again")]);
}

#[test]
fn removing_a_peer_cuts_its_session_at_once() {
    let mut pair = Pair::new(Suite::Aes256Gcm);
    pair.send(0, b"one");
    pair.drive();
    pair.send(0, b"two");
    let peer = pair.hosts[0].engine.identity().unwrap().public;
    pair.hosts[1].engine.handle_command(pair.clock, Command::RemovePeer(peer));
    pair.drive();
    assert_eq!(pair.hosts[1].delivered.len(), 1);
    assert_eq!(pair.drops(1, DropReason::UnknownIndex), 1);
    assert_eq!(pair.hosts[1].engine.indices_in_use(), 0);
}

#[test]
fn sessions_renew_under_steady_traffic_without_loss() {
    for suite in Suite::ALL {
        let mut pair = Pair::new(suite);
        for n in 0..3_000u16 {
            pair.send(0, &n.to_be_bytes());
            pair.send(1, &n.to_be_bytes());
            pair.drive();
            pair.advance(Duration::from_millis(100));
        }
        for from in 0..2 {
            let expected: Vec<_> = (0..3_000u16).map(|n| packet(from, &n.to_be_bytes())).collect();
            assert_eq!(pair.hosts[1 - from].delivered, expected);
        }
        let initiations = pair.seen.iter().filter(|(_, datagram)| datagram.len() == 148).count();
        assert_eq!(initiations, 4, "crossing ones at 0, then one at 120 and 240 seconds");
    }
}

#[test]
fn keepalives_alone_keep_a_session_at_every_moment() {
    let mut pair = Pair::new(Suite::Aes256Gcm);
    let mut update = PeerUpdate::new(pair.hosts[1].engine.identity().unwrap().public);
    update.persistent_keepalive_secs = Some(25);
    pair.hosts[0].engine.handle_command(pair.clock, Command::SetPeer(update));
    pair.poll(0);
    pair.drive();
    for second in 0..1_000 {
        pair.advance(Duration::from_secs(1));
        let peers = pair.hosts[0].engine.peers(pair.clock.now);
        assert!(peers[0].has_session, "no session at {second} s");
    }
}

#[test]
fn ten_thousand_packets_of_ping_and_pong_give_a_handful_of_notices() {
    let mut pair = Pair::new(Suite::Aes256Gcm);
    pair.send(0, b"hello");
    pair.drive();
    pair.noticed = [0; 2];
    for n in 0..5_000u16 {
        pair.send(0, &n.to_be_bytes());
        pair.drive();
        pair.send(1, &n.to_be_bytes());
        pair.drive();
        pair.advance(Duration::from_millis(10));
    }
    assert_eq!((pair.hosts[1].delivered.len(), pair.hosts[0].delivered.len()), (5_001, 5_000));
    assert!(pair.noticed.iter().all(|&noticed| (1..=12).contains(&noticed)), "{:?}", pair.noticed);
    let before = pair.seen.len();
    pair.send(0, b"lost");
    pair.wire.clear();
    pair.advance(Duration::from_millis(14_990));
    assert_eq!(pair.seen.len(), before + 1, "the timers know the last packet, not the first");
    pair.advance(Duration::from_millis(350));
    let sizes: Vec<_> = pair.seen[before + 1..].iter().map(|(_, bytes)| bytes.len()).collect();
    assert_eq!(sizes, [148, 92, 32], "then the one who waited first asks for a new session");
}

/// What a lane of host 1 says of a datagram from `from`: whether its sender is proven.
fn is_proven(pair: &Pair, from: Endpoint, datagram: &[u8]) -> bool {
    let mut notices = Vec::new();
    let forwarding = &pair.hosts[1].forwarding;
    forwarding.arrive(pair.clock.now, &from, Ecn::NotEct, &mut datagram.to_vec(), &mut notices);
    let [Notice::Handshake(datagram)] = notices.as_slice() else { panic!("{notices:?}") };
    datagram.proven
}

#[test]
fn a_lane_tells_handshake_messages_of_proven_senders_from_others() {
    for suite in Suite::ALL {
        let none = crate::limit::Rate { per_sec: 0, burst: 0 };
        let mut pair = Pair::with_limiter(suite, LimitConfig { unverified: none, ..LimitConfig::default() });
        pair.send(0, b"hello");
        let (_, from, first) = pair.wire[0].clone();
        assert!(!is_proven(&pair, from, &first), "nobody has given a cookie");
        let tcp = Endpoint { carrier: crate::endpoint::Carrier::Tcp(1), ..from };
        assert!(is_proven(&pair, tcp, &first), "a connection is proof");
        pair.drive();
        assert!(!is_proven(&pair, from, &first), "it has no mac2");
        let cookie_for = from;
        while pair.wire.is_empty() {
            let next = pair.hosts[0].engine.next_timeout().unwrap();
            pair.clock.now = next;
            pair.hosts[0].engine.handle_timeout(pair.clock);
            pair.poll(0);
        }
        let (_, from, second) = pair.wire[0].clone();
        assert_eq!((from, second.len()), (cookie_for, 148));
        assert!(is_proven(&pair, from, &second), "it has the cookie");
        let elsewhere = Endpoint::udp("203.0.113.9:51820".parse().unwrap());
        assert!(!is_proven(&pair, elsewhere, &second), "which was given to another");
        let mut forged = second.clone();
        *forged.last_mut().unwrap() ^= 1;
        assert!(!is_proven(&pair, from, &forged));
        pair.clock.now = pair.clock.now.saturating_add(Duration::from_secs(121));
        assert!(!is_proven(&pair, from, &second), "the cookie is too old");
    }
}

#[test]
fn a_response_counts_as_proven_because_it_names_an_index_only_its_sender_was_told() {
    let mut pair = Pair::new(Suite::Aes256Gcm);
    pair.send(1, b"hello");
    let (to, from, initiation) = pair.wire.pop_front().unwrap();
    pair.receive(to, from, initiation);
    let (to, from, response) = pair.wire.pop_front().unwrap();
    assert_eq!((to, response.len()), (1, 92));
    assert!(is_proven(&pair, from, &response));
}

#[test]
fn many_changes_are_published_as_one_table() {
    let mut pair = Pair::new(Suite::Aes256Gcm);
    let key = |n: u32| PublicKey(core::array::from_fn(|i| n.to_be_bytes()[i & 3]));
    let table = |pair: &Pair| Arc::as_ptr(&pair.hosts[0].forwarding.table.load());
    let before = table(&pair);
    for n in 1..=10_000u32 {
        let mut update = PeerUpdate::new(key(n));
        let address = core::net::Ipv4Addr::from_bits(0x0a80_0000 + n);
        update.allowed_ips = vec![AllowedIpChange::Add(Prefix::host(address.into()))];
        pair.hosts[0].engine.handle_command(pair.clock, Command::SetPeer(update));
    }
    for n in 1..=9_999 {
        pair.hosts[0].engine.handle_command(pair.clock, Command::RemovePeer(key(n)));
    }
    assert_eq!(table(&pair), before, "not one of twenty thousand changes by itself");
    pair.poll(0);
    assert_ne!(table(&pair), before);
    assert_eq!(pair.hosts[0].engine.peers(pair.clock.now).len(), 2);
    let header = InsideHeader::parse(&{
        let mut to_the_last = packet(0, b"");
        to_the_last[16..20].copy_from_slice(&(0x0a80_0000u32 + 10_000).to_be_bytes());
        to_the_last
    })
    .unwrap();
    pair.hosts[0].forwarding.depart(pair.clock.now, &header);
    assert_eq!((pair.drops(0, DropReason::NoEndpoint), pair.drops(0, DropReason::NoRoute)), (1, 0));
}

#[test]
fn a_packet_staged_for_a_peer_that_is_being_removed_is_counted() {
    let mut pair = Pair::new(Suite::Aes256Gcm);
    let peer = pair.hosts[1].engine.identity().unwrap().public;
    pair.hosts[0].engine.handle_command(pair.clock, Command::RemovePeer(peer));
    let header = InsideHeader::parse(&packet(0, b"late")).unwrap().to_owned();
    let Departure::Stage(path) = pair.hosts[0].forwarding.depart(pair.clock.now, &header) else { panic!() };
    path.stage(pair.clock.now, b"late");
    assert_eq!(pair.drops(0, DropReason::HandshakeTimeout), 0);
    pair.poll(0);
    assert_eq!(pair.drops(0, DropReason::HandshakeTimeout), 1);
    assert!(matches!(pair.hosts[0].forwarding.depart(pair.clock.now, &header), Departure::Drop(_)));
}

#[test]
fn a_way_that_is_only_tried_is_not_where_the_peer_was_heard() {
    let mut pair = Pair::new(Suite::Aes256Gcm);
    let udp = pair.hosts[1].endpoint;
    let tcp = Endpoint { carrier: crate::endpoint::Carrier::Tcp(7), ..udp };
    let peer = pair.hosts[1].engine.identity().unwrap().public;
    let mut update = PeerUpdate::new(peer);
    update.carrier_chosen = Some(true);
    let command = |pair: &mut Pair, command| {
        pair.hosts[0].engine.handle_command(pair.clock, command);
        pair.poll(0);
    };
    let seen = |pair: &Pair| {
        let status = &pair.hosts[0].engine.peers(pair.clock.now)[0];
        (status.endpoint, status.heard_at)
    };
    command(&mut pair, Command::SetPeer(update));
    assert_eq!(seen(&pair), (Some(udp), None), "it was never heard");
    command(&mut pair, Command::Restart(peer, tcp));
    pair.wire.clear();
    assert_eq!(seen(&pair), (Some(tcp), None));
    command(&mut pair, Command::Restart(peer, udp));
    pair.drive();
    assert_eq!(seen(&pair), (Some(udp), Some(udp)), "the positive control");

    command(&mut pair, Command::Restart(peer, tcp));
    assert_eq!(seen(&pair), (Some(tcp), Some(udp)), "nobody has answered by TCP");
    command(&mut pair, Command::Restart(peer, Endpoint { carrier: crate::endpoint::Carrier::Wss(8), ..udp }));
    assert_eq!(seen(&pair).1, Some(udp), "nor by the next way");
    pair.wire.clear();
    command(&mut pair, Command::Restart(peer, tcp));
    pair.hosts[1].endpoint = tcp;
    pair.clock.now = pair.clock.now.saturating_add(Duration::from_millis(100));
    pair.drive();
    assert_eq!(seen(&pair), (Some(tcp), Some(tcp)), "now it has");
    pair.hosts[0].forwarding.path_of_peer(&peer).unwrap().forget_source(&tcp);
    assert_eq!(seen(&pair).1, Some(tcp));
    command(&mut pair, Command::Move(peer, udp));
    assert_eq!(seen(&pair), (Some(udp), Some(udp)), "whoever says that it moved has an answer");
}
