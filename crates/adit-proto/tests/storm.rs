//! Ten thousand peers ask one gateway for a session within a third of a second, on virtual time with real cryptography.
//!
//! The gateway is as in the program: lanes drop, open and answer by themselves; an engine takes handshake messages one
//! by one from two bounded queues, here at the pace of a slow machine. Peers retry as WireGuard does.

#![allow(clippy::unwrap_used, clippy::arithmetic_side_effects, clippy::indexing_slicing, clippy::panic)]

use core::net::{Ipv4Addr, SocketAddr};
use core::time::Duration;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use adit_proto::allowed_ips::Prefix;
use adit_proto::cookie::CookieJar;
use adit_proto::endpoint::Endpoint;
use adit_proto::engine::{Engine, EngineConfig};
use adit_proto::event::{AllowedIpChange, Command, HandshakeDatagram, Notice, Output, PeerId, PeerUpdate};
use adit_proto::forward::{Departure, Forwarding};
use adit_proto::handshake::{AwaitingResponse, Identity};
use adit_proto::key::StaticSecret;
use adit_proto::keypair::Keypair;
use adit_proto::packet::{Ecn, InsideHeader};
use adit_proto::path::Path;
use adit_proto::reason::DropReason;
use adit_proto::suite::Suite;
use adit_proto::time::{Clock, Instant, Tai64n, UnixTime};
use adit_proto::wire::Message;
use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};

const PEERS: usize = 10_000;
const SUITE: Suite = Suite::ChaCha20Poly1305;
const LATENCY: Duration = Duration::from_millis(10);
/// What a handshake takes the engine, and what a message does that gets a cookie or nothing: twice what a current core
/// needs.
const HANDSHAKE_TIME: Duration = Duration::from_micros(300);
const COOKIE_TIME: Duration = Duration::from_micros(20);
/// The bounds of the program's queues.
const PROVEN: usize = 4_096;
const UNPROVEN: usize = 4_096;
const STORM: Instant = Instant::from_millis(121_500);
/// One peer has had a session since a second, and it is due for another in the middle of the storm.
const ACTIVE_SINCE: Instant = Instant::from_millis(2_000);
const DATA_EVERY: Duration = Duration::from_millis(5);

enum Step {
    AtGateway(Endpoint, Vec<u8>),
    AtPeer(usize, Vec<u8>),
    AtActive(Vec<u8>),
    Retry(usize),
    Turn,
    Data,
}

struct Storm {
    now: Instant,
    steps: BTreeMap<(Instant, u64), Step>,
    scheduled: u64,
    gateway: Side,
    /// The peer that has a session and traffic all along.
    active: Side,
    proven: VecDeque<HandshakeDatagram>,
    unproven: VecDeque<HandshakeDatagram>,
    turn_is_due: bool,
    unproven_next: bool,
    peers: Vec<Peer>,
    by_address: BTreeMap<SocketAddr, usize>,
    rng: ChaCha8Rng,
    sent: [u32; 2],
    delivered: [u32; 2],
    finished: Vec<Duration>,
    lost_in_queues: u32,
    cookie_replies: u32,
}

struct Side {
    engine: Engine,
    forwarding: Arc<Forwarding>,
    identity: Identity,
    endpoint: Endpoint,
}

/// A client's half of a handshake, and nothing else of it.
struct Peer {
    identity: Identity,
    ss: [u8; 32],
    endpoint: Endpoint,
    cookies: CookieJar,
    awaiting: Option<AwaitingResponse>,
    done: bool,
}

fn clock(now: Instant) -> Clock {
    let secs = 1_700_000_000 + now.as_millis() / 1_000;
    Clock { now, wall: UnixTime { secs, nanos: (now.as_millis() % 1_000) as u32 * 1_000_000 } }
}

fn identity(n: usize) -> Identity {
    let mut bytes = [0x40; 32];
    bytes[8..16].copy_from_slice(&(n as u64).to_le_bytes());
    Identity::new(StaticSecret::from_bytes(bytes))
}

fn udp(address: Ipv4Addr, port: u16) -> Endpoint {
    Endpoint::udp(SocketAddr::new(address.into(), port))
}

impl Side {
    fn new(n: usize, endpoint: Endpoint) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(n as u64);
        let config = EngineConfig { default_suite: SUITE, ..EngineConfig::default() };
        let (mut engine, forwarding) = Engine::new(config, Box::new(move |bytes| rng.fill_bytes(bytes)));
        let identity = identity(n);
        let secret = Command::SetPrivateKey(Some(identity.secret.clone()));
        engine.handle_command(clock(Instant::ZERO), secret);
        Self { engine, forwarding, identity, endpoint }
    }

    fn add(&mut self, peer: &Identity, endpoint: Option<Endpoint>, inside: Ipv4Addr) {
        let mut update = PeerUpdate::new(peer.public);
        update.endpoint = endpoint;
        update.allowed_ips = vec![AllowedIpChange::Add(Prefix::host(inside.into()))];
        self.engine.handle_command(clock(Instant::ZERO), Command::SetPeer(update));
    }
}

fn inside(n: usize) -> Ipv4Addr {
    Ipv4Addr::from_bits(0x0a00_0000 + n as u32)
}

fn data(from: usize, to: usize) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 100, 0, 0, 0, 0, 64, 17, 0, 0];
    packet.extend(inside(from).octets());
    packet.extend(inside(to).octets());
    packet.resize(100, 0x5a);
    packet
}

/// The numbers of the gateway and of the active peer among the identities.
const GATEWAY: usize = PEERS + 1;
const ACTIVE: usize = PEERS + 2;

impl Storm {
    fn new(endpoint_of: fn(usize) -> Endpoint) -> Self {
        let mut gateway = Side::new(GATEWAY, udp(Ipv4Addr::new(192, 0, 2, 1), 51820));
        let mut active = Side::new(ACTIVE, udp(Ipv4Addr::new(192, 0, 2, 2), 51820));
        gateway.add(&active.identity, Some(active.endpoint), inside(ACTIVE));
        active.add(&gateway.identity, Some(gateway.endpoint), inside(GATEWAY));
        let peers: Vec<_> = (0..PEERS)
            .map(|n| {
                let identity = identity(n);
                gateway.add(&identity, None, inside(n));
                let ss = *identity.secret.diffie_hellman(&gateway.identity.public).unwrap();
                let cookies = CookieJar::new(SUITE, &gateway.identity.public);
                Peer { identity, ss, endpoint: endpoint_of(n), cookies, awaiting: None, done: false }
            })
            .collect();
        let by_address: BTreeMap<_, _> =
            peers.iter().enumerate().map(|(n, peer)| (peer.endpoint.remote, n)).collect();
        assert_eq!(by_address.len(), PEERS);
        let mut storm = Self {
            now: ACTIVE_SINCE,
            steps: BTreeMap::new(),
            scheduled: 0,
            gateway,
            active,
            proven: VecDeque::new(),
            unproven: VecDeque::new(),
            turn_is_due: false,
            unproven_next: false,
            peers,
            by_address,
            rng: ChaCha8Rng::seed_from_u64(1),
            sent: [0; 2],
            delivered: [0; 2],
            finished: Vec::new(),
            lost_in_queues: 0,
            cookie_replies: 0,
        };
        storm.poll();
        storm.schedule(ACTIVE_SINCE, Step::Data);
        for n in 0..PEERS {
            let at = STORM.saturating_add(storm.jitter());
            storm.schedule(at, Step::Retry(n));
        }
        storm
    }

    fn jitter(&mut self) -> Duration {
        Duration::from_micros(u64::from(self.rng.next_u32() % 333_000))
    }

    fn schedule(&mut self, at: Instant, step: Step) {
        self.scheduled += 1;
        self.steps.insert((at, self.scheduled), step);
    }

    fn later(&mut self, after: Duration, step: Step) {
        self.schedule(self.now.saturating_add(after), step);
    }

    fn run(&mut self, until: Instant) {
        loop {
            let timers = [&self.gateway, &self.active].map(|side| side.engine.next_timeout());
            let first = self.steps.first_key_value().map(|((at, _), _)| *at);
            let Some(next) = timers.into_iter().flatten().chain(first).min() else { return };
            if next > until {
                return;
            }
            self.now = self.now.max(next);
            match self.steps.first_entry().filter(|step| step.key().0 <= self.now) {
                Some(step) => {
                    let step = step.remove();
                    self.step(step);
                }
                None => {
                    self.gateway.engine.handle_timeout(clock(self.now));
                    self.active.engine.handle_timeout(clock(self.now));
                    self.poll();
                }
            }
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::AtGateway(from, mut bytes) => {
                let (opened, notices) = arrive(&self.gateway, self.now, from, &mut bytes);
                self.delivered[0] += u32::from(opened);
                notices.into_iter().for_each(|notice| self.notice_gateway(notice));
            }
            Step::AtActive(mut bytes) => {
                let (opened, notices) = arrive(&self.active, self.now, self.gateway.endpoint, &mut bytes);
                self.delivered[1] += u32::from(opened);
                for notice in notices {
                    self.active.engine.handle_notice(clock(self.now), notice);
                }
            }
            Step::AtPeer(n, bytes) => self.arrive_at_peer(n, &bytes),
            Step::Retry(n) => self.initiate(n),
            Step::Turn => self.turn(),
            Step::Data => {
                self.sent[0] += 1;
                self.send_data(ACTIVE, GATEWAY);
                // The gateway knows where the peer is, and has a session once the peer has begun.
                self.sent[1] += 1;
                self.send_data(GATEWAY, ACTIVE);
                self.later(DATA_EVERY, Step::Data);
            }
        }
        self.poll();
    }

    fn notice_gateway(&mut self, notice: Notice) {
        let Notice::Handshake(datagram) = notice else {
            return self.gateway.engine.handle_notice(clock(self.now), notice);
        };
        let (queue, bound) =
            if datagram.proven { (&mut self.proven, PROVEN) } else { (&mut self.unproven, UNPROVEN) };
        if queue.len() < bound {
            queue.push_back(datagram);
        } else {
            self.lost_in_queues += 1;
        }
        if !core::mem::replace(&mut self.turn_is_due, true) {
            self.later(Duration::ZERO, Step::Turn);
        }
    }

    /// The engine takes in one handshake message, of either queue in turn.
    fn turn(&mut self) {
        self.turn_is_due = false;
        self.unproven_next = !self.unproven_next;
        let Self { proven, unproven, .. } = self;
        let [first, second] = if self.unproven_next { [unproven, proven] } else { [proven, unproven] };
        let Some(datagram) = first.pop_front().or_else(|| second.pop_front()) else { return };
        let refused = self.refused();
        self.gateway.engine.handle_notice(clock(self.now), Notice::Handshake(datagram));
        let is_refused = self.refused() > refused;
        self.turn_is_due = true;
        self.later(if is_refused { COOKIE_TIME } else { HANDSHAKE_TIME }, Step::Turn);
    }

    /// Handshake messages that cost no Diffie-Hellman.
    fn refused(&self) -> u64 {
        let drops = &self.gateway.forwarding.drops;
        drops.count_of(DropReason::CookieRequired) + drops.count_of(DropReason::RateLimited)
    }

    fn poll(&mut self) {
        let now = self.now;
        while let Some(output) = self.gateway.engine.poll_output(now) {
            let Output::Transmit(transmit) = output else { continue };
            let remote = transmit.endpoint.remote;
            let step = match self.by_address.get(&remote) {
                Some(&n) => Step::AtPeer(n, transmit.contents),
                None => Step::AtActive(transmit.contents),
            };
            self.later(LATENCY, step);
        }
        while let Some(output) = self.active.engine.poll_output(now) {
            let Output::Transmit(transmit) = output else { continue };
            self.later(LATENCY, Step::AtGateway(self.active.endpoint, transmit.contents));
        }
    }

    fn send_data(&mut self, from: usize, to: usize) {
        let packet = data(from, to);
        let is_gateway = from == GATEWAY;
        let side = if is_gateway { &mut self.gateway } else { &mut self.active };
        let mut notices = Vec::new();
        let header = InsideHeader::parse(&packet).unwrap();
        let sealed = match side.forwarding.depart(self.now, &header) {
            Departure::Seal(keypair, _) => {
                let message = side.forwarding.seal(&keypair, &packet).unwrap();
                side.forwarding.sent(self.now, &keypair, 1, message.len() as u64, &mut notices);
                Some(message)
            }
            Departure::Stage(path) => {
                assert!(side.forwarding.stage(self.now, &path, &packet, &mut notices));
                None
            }
            Departure::Drop(reason) => panic!("{reason:?}"),
        };
        for notice in notices {
            side.engine.handle_notice(clock(self.now), notice);
        }
        let active = self.active.endpoint;
        if let Some(message) = sealed {
            let step = if is_gateway { Step::AtActive(message) } else { Step::AtGateway(active, message) };
            self.later(LATENCY, step);
        }
    }

    fn initiate(&mut self, n: usize) {
        let gateway = self.gateway.identity.public;
        let mut ephemeral = [0; 32];
        self.rng.fill_bytes(&mut ephemeral);
        let peer = &mut self.peers[n];
        if peer.done {
            return;
        }
        let (awaiting, mut message) = AwaitingResponse::create_initiation(
            SUITE,
            &peer.identity,
            &gateway,
            &peer.ss,
            StaticSecret::from_bytes(ephemeral),
            n as u32,
            Tai64n::from_unix(clock(self.now).wall),
        )
        .unwrap();
        peer.cookies.stamp(&mut message, self.now);
        peer.awaiting = Some(awaiting);
        let from = peer.endpoint;
        self.later(LATENCY, Step::AtGateway(from, message.to_vec()));
        let retry = Duration::from_secs(5) + self.jitter();
        self.later(retry, Step::Retry(n));
    }

    fn arrive_at_peer(&mut self, n: usize, bytes: &[u8]) {
        let peer = &mut self.peers[n];
        match Message::parse(bytes).unwrap().1 {
            Message::CookieReply(reply) => {
                // An answer to the initiation before last is one too late.
                let _ = peer.cookies.consume_reply(&reply, self.now);
                self.cookie_replies += 1;
            }
            Message::Response(response) if !peer.done => {
                let Some(awaiting) = peer.awaiting.as_ref() else { return };
                let psk = adit_proto::key::PresharedKey::default();
                // Likewise a response; the peer has initiated anew since.
                let Ok(keys) = awaiting.consume_response(&peer.identity, &psk, &response) else { return };
                let path = Arc::new(Path::new(PeerId(0), self.gateway.identity.public, SUITE));
                let keypair = Keypair::new(&keys, path, self.now).unwrap();
                let mut confirmation = vec![0; 32];
                keypair.seal(keypair.reserve(1, 1).unwrap(), &mut confirmation).unwrap();
                peer.done = true;
                let from = peer.endpoint;
                self.finished.push(self.now.since(STORM));
                self.later(LATENCY, Step::AtGateway(from, confirmation));
            }
            _ => {}
        }
    }
}

/// What a lane does with a datagram: whether an inside packet came out, and what the engine is to know.
fn arrive(side: &Side, now: Instant, from: Endpoint, bytes: &mut [u8]) -> (bool, Vec<Notice>) {
    let mut notices = Vec::new();
    let inside = side.forwarding.arrive(now, &from, Ecn::NotEct, bytes, &mut notices);
    (inside.is_some(), notices)
}

fn storm_ends_in_time(endpoint_of: fn(usize) -> Endpoint) {
    let mut storm = Storm::new(endpoint_of);
    storm.run(STORM.saturating_add(Duration::from_secs(30)));
    let end = storm.finished.iter().max().copied().unwrap_or_default();
    println!(
        "{} of {PEERS} after {end:?}; {} cookie replies, {} lost in full queues",
        storm.finished.len(),
        storm.cookie_replies,
        storm.lost_in_queues,
    );
    assert_eq!(storm.finished.len(), PEERS, "the last came after {end:?}");
    let status = storm.gateway.engine.peers(storm.now);
    assert!(status.iter().all(|peer| peer.has_session), "every session is confirmed");
    assert!(storm.cookie_replies > 1_000, "it was a storm: {} cookie replies", storm.cookie_replies);
    assert!(storm.sent.iter().all(|&sent| sent > 29_000), "data flowed all along: {:?}", storm.sent);
    for side in 0..2 {
        let under_way = 2 * LATENCY.as_millis() as u32 / DATA_EVERY.as_millis() as u32;
        let lost = storm.sent[side] - storm.delivered[side];
        assert!(lost <= under_way, "{lost} of {:?} did not arrive", storm.sent);
    }
    let renewed = status.iter().find(|peer| peer.public_key == storm.active.identity.public).unwrap();
    assert!(renewed.last_handshake_at > Some(STORM), "its own renewal got through the storm");
    assert_eq!(storm.gateway.forwarding.drops.count_of(DropReason::NoRoute), 0);
}

#[test]
fn ten_thousand_peers_from_their_own_addresses_have_sessions_within_30_s_and_data_flows_meanwhile() {
    storm_ends_in_time(|n| udp(Ipv4Addr::from_bits(0x0b00_0000 + n as u32), 51820));
}

#[test]
fn ten_thousand_peers_behind_one_address_have_sessions_within_30_s_and_data_flows_meanwhile() {
    storm_ends_in_time(|n| udp(Ipv4Addr::new(203, 0, 113, 7), 10_000 + n as u16));
}
