//! Two hosts driven by hand: an engine and its forwarding half each, a wire between them, and a clock
//! that moves only when told. An attacker may read, hold back, change and inject what is on the wire.

#![allow(dead_code, reason = "every test binary uses its own part")]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic)]

use core::time::Duration;
use std::collections::VecDeque;
use std::sync::Arc;

use adit_proto::cookie::CookieJar;
use adit_proto::endpoint::Endpoint;
use adit_proto::engine::{Engine, EngineConfig, Random};
use adit_proto::event::{
    AllowedIpChange, Command, Event, Notice, Output, PeerStatus, PeerUpdate, Timestamps,
};
use adit_proto::forward::{Departure, Forwarding};
use adit_proto::handshake::{AwaitingResponse, Identity, OpenedInitiation};
use adit_proto::key::{PresharedKey, PublicKey, StaticSecret};
use adit_proto::keypair::{Keypair, blocks_of};
use adit_proto::limit::{LimitConfig, Rate};
use adit_proto::packet::{Ecn, InsideHeader};
use adit_proto::reason::DropReason;
use adit_proto::suite::Suite;
use adit_proto::time::{Clock, Instant, Tai64n, UnixTime};
use adit_proto::wire::{INITIATION_LEN, Message};
use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore, SeedableRng};

pub const MTU_BYTES: usize = 1420;

pub struct Pair {
    pub suite: Suite,
    pub hosts: [Host; 2],
    pub clock: Clock,
    /// Under way, oldest first.
    pub wire: VecDeque<Datagram>,
    /// Everything that was ever sent.
    pub seen: Vec<Datagram>,
    /// While set, what is sent gets lost.
    pub cut: bool,
}

pub struct Host {
    pub engine: Engine,
    pub forwarding: Arc<Forwarding>,
    pub identity: Identity,
    /// Where the host is; a datagram to anywhere else is lost.
    pub endpoint: Endpoint,
    pub delivered: Vec<Vec<u8>>,
    pub events: Vec<Event>,
}

#[derive(Clone, Debug)]
pub struct Datagram {
    pub at: Instant,
    pub from: usize,
    pub source: Endpoint,
    pub destination: Endpoint,
    pub bytes: Vec<u8>,
}

/// Everything about a host that ignored input must leave alone.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    indices_in_use: usize,
    next_timeout: Option<Instant>,
    peers: Vec<String>,
    events: usize,
    delivered: usize,
    sent: usize,
}

impl Pair {
    pub fn new(suite: Suite) -> Self {
        Self::with_limits(suite, LimitConfig::default())
    }

    /// Two hosts that are always under load: every handshake message needs a cookie.
    pub fn under_load(suite: Suite) -> Self {
        let unverified = Rate { per_sec: 0, burst: 0 };
        Self::with_limits(suite, LimitConfig { unverified, ..LimitConfig::default() })
    }

    pub fn with_limits(suite: Suite, limiter: LimitConfig) -> Self {
        let hosts = [0, 1].map(|n| Host::new(n, suite, limiter));
        let wall = UnixTime { secs: 1_700_000_000, nanos: 0 };
        let clock = Clock { now: Instant::from_millis(1_000_000), wall };
        let mut pair = Self { suite, hosts, clock, wire: VecDeque::new(), seen: Vec::new(), cut: false };
        for n in 0..2 {
            pair.configure(n);
        }
        pair
    }

    /// Gives host `n` its key and its one peer.
    fn configure(&mut self, n: usize) {
        let update = self.update_of_peer(n);
        let secret = self.hosts[n].identity.secret.clone();
        self.command(n, Command::SetPrivateKey(Some(secret)));
        self.command(n, Command::SetPeer(update));
    }

    fn update_of_peer(&self, n: usize) -> PeerUpdate {
        let peer = 1 - n;
        let mut update = PeerUpdate::new(self.public(peer));
        update.endpoint = Some(self.hosts[peer].endpoint);
        update.allowed_ips = vec![
            AllowedIpChange::Add(format!("10.0.0.{}/32", peer + 1).parse().unwrap()),
            AllowedIpChange::Add(format!("fd00::{}/128", peer + 1).parse().unwrap()),
        ];
        update
    }

    /// Host `n` forgets everything and starts again with the same configuration.
    pub fn restart(&mut self, n: usize) {
        let endpoint = self.hosts[n].endpoint;
        self.hosts[n] = Host::new(n + 2, self.suite, LimitConfig::default());
        self.hosts[n].endpoint = endpoint;
        self.hosts[n].identity = identity(n);
        self.configure(n);
    }

    pub fn public(&self, n: usize) -> PublicKey {
        self.hosts[n].identity.public
    }

    pub fn command(&mut self, n: usize, command: Command) {
        self.hosts[n].engine.handle_command(self.clock, command);
        self.poll(n);
    }

    /// Changes what host `n` knows about its peer.
    pub fn change_peer(&mut self, n: usize, change: impl FnOnce(&mut PeerUpdate)) {
        let mut update = PeerUpdate::new(self.public(1 - n));
        change(&mut update);
        self.command(n, Command::SetPeer(update));
    }

    pub fn set_psk(&mut self, n: usize, psk: [u8; 32]) {
        self.change_peer(n, |update| update.preshared_key = Some(PresharedKey::from_bytes(psk)));
    }

    pub fn initiate(&mut self, n: usize) {
        let peer = self.public(1 - n);
        self.command(n, Command::Initiate(peer));
    }

    /// Has host `n` send an inside packet with this payload to the other.
    pub fn send(&mut self, n: usize, text: &[u8]) {
        self.send_packet(n, &packet(n, text));
    }

    pub fn send_packet(&mut self, n: usize, packet: &[u8]) {
        let header = InsideHeader::parse(packet).unwrap();
        let forwarding = Arc::clone(&self.hosts[n].forwarding);
        let mut notices = Vec::new();
        match forwarding.depart(self.clock.now, &header) {
            Departure::Seal(keypair, destination) => {
                let mut padded = packet.to_vec();
                padded.resize(forwarding.padding().padded_len(packet.len()), 0);
                let message = seal_with(&keypair, &padded);
                forwarding.sent(self.clock.now, &keypair, 1, message.len() as u64, &mut notices);
                self.put_on_wire(n, destination, message);
            }
            Departure::Stage(path) => {
                assert!(forwarding.stage(self.clock.now, &path, packet, &mut notices));
            }
            Departure::Drop(_) => {}
        }
        self.notices(n, notices);
    }

    /// Seals any plaintext, just as it is, under the current session of host `n`, without sending it.
    pub fn seal(&self, n: usize, plaintext: &[u8]) -> Vec<u8> {
        seal_with(&self.keypair(n), plaintext)
    }

    /// The session that host `n` sends with.
    pub fn keypair(&self, n: usize) -> Arc<Keypair> {
        let header = InsideHeader::parse(&packet(n, b"")).unwrap();
        match self.hosts[n].forwarding.depart(self.clock.now, &header) {
            Departure::Seal(keypair, _) => keypair,
            other => panic!("no session: {other:?}"),
        }
    }

    pub fn has_session(&self, n: usize) -> bool {
        self.status(n).has_session
    }

    pub fn status(&self, n: usize) -> PeerStatus {
        self.hosts[n].engine.peers(self.clock.now).remove(0)
    }

    /// Hands the timestamps of an earlier run to host `n`.
    pub fn resume(&mut self, n: usize, timestamps: Timestamps) {
        self.change_peer(n, |peer| peer.timestamps = timestamps);
    }

    /// Where host `n` believes the other to be.
    pub fn believed_endpoint(&self, n: usize) -> Endpoint {
        self.status(n).endpoint.unwrap()
    }

    /// A session that both sides have sent with, and nothing left to do about it.
    pub fn establish(&mut self) {
        self.send(0, b"establish");
        self.drive();
        self.send(1, b"established");
        self.drive();
        assert!(self.has_session(0) && self.has_session(1));
        self.hosts.iter_mut().for_each(|host| host.delivered.clear());
    }

    /// Asserts that packets pass both ways right now, over the session there is or a new one.
    pub fn assert_works(&mut self) {
        for n in 0..2 {
            let before = self.hosts[1 - n].delivered.len();
            self.send(n, b"still works");
            self.drive();
            assert_eq!(self.hosts[1 - n].delivered[before..], [packet(n, b"still works")], "from host {n}");
        }
    }

    /// The initiation that host 0 sends now, taken off the wire.
    pub fn take_initiation(&mut self) -> Vec<u8> {
        self.initiate(0);
        let datagram = self.wire.pop_back().unwrap();
        assert_eq!(datagram.bytes.len(), INITIATION_LEN);
        datagram.bytes
    }

    pub fn poll(&mut self, n: usize) {
        while let Some(output) = self.hosts[n].engine.poll_output(self.clock.now) {
            match output {
                Output::Transmit(transmit) => self.put_on_wire(n, transmit.endpoint, transmit.contents),
                Output::Event(event) => self.hosts[n].events.push(event),
            }
        }
    }

    fn put_on_wire(&mut self, from: usize, destination: Endpoint, bytes: Vec<u8>) {
        let source = self.hosts[from].endpoint;
        let datagram = Datagram { at: self.clock.now, from, source, destination, bytes };
        self.seen.push(datagram.clone());
        if !self.cut {
            self.wire.push_back(datagram);
        }
    }

    pub fn notices(&mut self, n: usize, notices: Vec<Notice>) {
        for notice in notices {
            self.hosts[n].engine.handle_notice(self.clock, notice);
        }
        self.poll(n);
    }

    /// Delivers everything on the wire, and what that causes.
    pub fn drive(&mut self) {
        while let Some(datagram) = self.wire.pop_front() {
            self.deliver(datagram);
        }
    }

    pub fn deliver(&mut self, datagram: Datagram) {
        let found = self.hosts.iter().position(|host| host.endpoint.remote == datagram.destination.remote);
        if let Some(to) = found {
            self.receive(to, datagram.source, &datagram.bytes);
        }
    }

    /// Host `to` receives a datagram, whoever made it. Returns how many notices it caused.
    pub fn receive(&mut self, to: usize, source: Endpoint, bytes: &[u8]) -> usize {
        let mut datagram = bytes.to_vec();
        let mut notices = Vec::new();
        let forwarding = Arc::clone(&self.hosts[to].forwarding);
        let inside = forwarding.arrive(self.clock.now, &source, Ecn::NotEct, &mut datagram, &mut notices);
        if let Some(inside) = inside {
            self.hosts[to].delivered.push(datagram[inside].to_vec());
        }
        let count = notices.len();
        self.notices(to, notices);
        count
    }

    /// Host `to` drops a datagram from `source` for `reason`: counted once, nothing sent, nothing
    /// changed. Returns how many notices reached the engine.
    #[track_caller]
    pub fn assert_ignored(&mut self, to: usize, source: Endpoint, bytes: &[u8], reason: DropReason) -> usize {
        let before = self.snapshot(to);
        let mut drops = self.drops(to);
        let notices = self.receive(to, source, bytes);
        drops[reason as usize].1 += 1;
        assert_eq!(self.drops(to), drops, "counted under the wrong reason");
        assert_eq!(self.snapshot(to), before, "ignored input changed something");
        notices
    }

    pub fn snapshot(&self, n: usize) -> Snapshot {
        let host = &self.hosts[n];
        Snapshot {
            indices_in_use: host.engine.indices_in_use(),
            next_timeout: host.engine.next_timeout(),
            peers: host.engine.peers(self.clock.now).iter().map(|peer| format!("{peer:?}")).collect(),
            events: host.events.len(),
            delivered: host.delivered.len(),
            sent: self.seen.iter().filter(|datagram| datagram.from == n).count(),
        }
    }

    fn drops(&self, n: usize) -> Vec<(DropReason, u64)> {
        self.hosts[n].forwarding.drops.iter().collect()
    }

    pub fn dropped(&self, n: usize, reason: DropReason) -> u64 {
        self.hosts[n].forwarding.drops.count_of(reason)
    }

    /// Lets time pass: fires timers when they are due and delivers at once what is sent.
    pub fn advance(&mut self, by: Duration) {
        self.drive();
        let until = self.clock.now.saturating_add(by);
        loop {
            let next = self.hosts.iter().filter_map(|host| host.engine.next_timeout()).min();
            let at = next.filter(|&at| at <= until).unwrap_or(until).max(self.clock.now);
            self.skip(at.since(self.clock.now));
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

    /// Moves both clocks forward without firing any timer.
    pub fn skip(&mut self, by: Duration) {
        self.clock.now = self.clock.now.saturating_add(by);
        let nanos = u64::from(self.clock.wall.nanos) + u64::from(by.subsec_nanos());
        self.clock.wall.secs += by.as_secs() + nanos / 1_000_000_000;
        self.clock.wall.nanos = (nanos % 1_000_000_000) as u32;
    }

    /// When initiations were sent, since the datagram with number `since`.
    pub fn initiations_since(&self, since: usize) -> Vec<Instant> {
        let sent = self.seen[since..].iter().filter(|datagram| datagram.bytes.len() == INITIATION_LEN);
        sent.map(|datagram| datagram.at).collect()
    }
}

impl Host {
    fn new(n: usize, suite: Suite, limiter: LimitConfig) -> Self {
        let mut rng = ChaCha20Rng::seed_from_u64(n as u64);
        let random: Random = Box::new(move |bytes: &mut [u8]| rng.fill_bytes(bytes));
        let (engine, forwarding) = Engine::new(EngineConfig { default_suite: suite, limiter }, random);
        forwarding.set_mtu(MTU_BYTES);
        let endpoint = udp(&format!("192.0.2.{}:51820", n + 1));
        let identity = identity(n);
        Self { engine, forwarding, identity, endpoint, delivered: Vec::new(), events: Vec::new() }
    }
}

fn seal_with(keypair: &Keypair, plaintext: &[u8]) -> Vec<u8> {
    let counter = keypair.reserve(1, blocks_of(plaintext.len())).unwrap();
    let mut message = vec![0; plaintext.len() + 32];
    message[16..16 + plaintext.len()].copy_from_slice(plaintext);
    keypair.seal(counter, &mut message).unwrap();
    message
}

fn identity(n: usize) -> Identity {
    Identity::new(StaticSecret::from_bytes([n as u8 + 11; 32]))
}

/// Somebody who is no peer, with a key of their own and nothing else.
pub fn stranger() -> Identity {
    Identity::new(StaticSecret::from_bytes([0x5a; 32]))
}

/// Where the attacker sends from.
pub fn elsewhere() -> Endpoint {
    udp("203.0.113.66:666")
}

pub fn udp(remote: &str) -> Endpoint {
    Endpoint::udp(remote.parse().unwrap())
}

/// An IPv4 packet from the inside address of host `from` to that of the other.
pub fn packet(from: usize, text: &[u8]) -> Vec<u8> {
    let (source, destination) = (from as u8 + 1, 2 - from as u8);
    packet_between([10, 0, 0, source], [10, 0, 0, destination], text)
}

pub fn packet_between(source: [u8; 4], destination: [u8; 4], text: &[u8]) -> Vec<u8> {
    let [hi, lo] = u16::try_from(20 + text.len()).unwrap().to_be_bytes();
    let mut packet = vec![0x45, 0, hi, lo, 0, 0, 0, 0, 64, 17, 0, 0];
    packet.extend(source);
    packet.extend(destination);
    packet.extend(text);
    packet
}

/// An initiation as `identity` would create it for `remote`, with mac1.
pub fn initiation(
    suite: Suite,
    identity: &Identity,
    remote: &PublicKey,
    index: u32,
    timestamp: Tai64n,
) -> (AwaitingResponse, [u8; INITIATION_LEN]) {
    let ss = identity.secret.diffie_hellman(remote).unwrap();
    let ephemeral = StaticSecret::from_bytes([0x77; 32]);
    let (awaiting, mut message) =
        AwaitingResponse::create_initiation(suite, identity, remote, &ss, ephemeral, index, timestamp)
            .unwrap();
    stamp_mac1(suite, remote, &mut message);
    (awaiting, message)
}

/// Writes a right mac1, as anybody can who knows the receiver's public key.
pub fn stamp_mac1<const N: usize>(suite: Suite, receiver: &PublicKey, message: &mut [u8; N]) {
    CookieJar::new(suite, receiver).stamp(message, Instant::ZERO);
}

/// What `responder` finds in an initiation: who sent it, and its timestamp.
pub fn open_initiation(responder: &Identity, message: &[u8]) -> (PublicKey, Tai64n) {
    let Ok((suite, Message::Initiation(parsed))) = Message::parse(message) else { panic!("no initiation") };
    let opened = OpenedInitiation::open(suite, responder, &parsed).unwrap();
    let remote = opened.remote;
    let ss = responder.secret.diffie_hellman(&remote).unwrap();
    (remote, opened.authenticate(&ss).unwrap().timestamp)
}

pub fn index_at(message: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(*message[offset..].first_chunk().unwrap())
}

pub fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

pub fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Every 255-bit number that is a point of low order, on the curve or its twist. The last two are 0 and 1
/// once more, not reduced.
pub fn low_order_points() -> [[u8; 32]; 7] {
    [
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0100000000000000000000000000000000000000000000000000000000000000",
        "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
        "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    ]
    .map(|text| unhex(text).try_into().unwrap())
}

pub fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
