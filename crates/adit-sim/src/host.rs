//! One host: an engine, its forwarding half, and the lane that a program would run between them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use adit_proto::allowance::REFUSALS;
use adit_proto::endpoint::Endpoint;
use adit_proto::engine::{Engine, EngineConfig, Random};
use adit_proto::event::{Command, Event, Notice, Output, PeerUpdate};
use adit_proto::forward::{Departure, Forwarding};
use adit_proto::key::{PublicKey, StaticSecret};
use adit_proto::keypair::Keypair;
use adit_proto::packet::{Ecn, InsideHeader};
use adit_proto::reason::DropReason;
use adit_proto::time::{Clock, Instant, UnixTime};
use adit_proto::wire::TRANSPORT_MIN_LEN;
use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};

use crate::eve::Kind;
use crate::link::{Link, Origin, below};
use crate::world::NatId;

/// A host of the world, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostId(pub u32);

/// Drops by reason, in the order of [`DropReason::ALL`].
pub type Drops = [u64; DropReason::ALL.len()];

const WALL_AT_START: u64 = 1_700_000_000;
const MAX_TIMEOUTS_AT_ONCE: u32 = 64;

/// What became of the inside packets of a host, over all its lives.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ledger {
    /// Packets the host wanted to send.
    pub offered: u64,
    /// Packets without route, endpoint or room under the key.
    pub refused: u64,
    /// Those of them that a limit refused.
    pub limited: u64,
    /// Errors that told the host of packets refused elsewhere.
    pub told: u64,
    /// Packets sealed at once.
    pub sealed: u64,
    /// Packets that had to wait for a session.
    pub staged: u64,
    /// Packets that waited and went out.
    pub unstaged: u64,
    /// Packets that waited when the host restarted.
    pub forgotten: u64,
    /// Packets wanted while the host slept.
    pub slept_through: u64,
}

/// What an arriving datagram turned out to be.
#[derive(Debug)]
pub enum Arrival {
    /// It carried this inside packet.
    Delivered(Vec<u8>),
    /// It was dropped for this reason.
    Dropped(DropReason),
    /// A handshake message, handed to the engine.
    Noticed,
    /// A keepalive.
    Keepalive,
}

/// A host.
#[derive(Debug)]
pub struct Host {
    /// Its number.
    pub id: HostId,
    /// The control half.
    pub engine: Engine,
    /// The data half.
    pub forwarding: Arc<Forwarding>,
    /// Its own address: behind a NAT, the private one.
    pub address: SocketAddr,
    /// The NAT it is behind.
    pub nat: Option<NatId>,
    /// Towards the network.
    pub up: Link,
    /// From the network.
    pub down: Link,
    /// Suspended: handles nothing while the clocks go on.
    pub asleep: bool,
    /// How far its wall clock is off, in seconds.
    pub wall_offset_secs: i64,
    /// How many of its notices the queue to the engine loses, in millionths.
    pub notice_loss_ppm: u32,
    /// What the engine told, over all its lives.
    pub events: Vec<(Instant, Event)>,
    /// Datagrams to send, filled by every handler.
    pub outbox: Vec<(SocketAddr, Vec<u8>, Origin)>,
    /// What became of inside packets.
    pub ledger: Ledger,
    config: EngineConfig,
    secret: StaticSecret,
    peers: BTreeMap<PublicKey, PeerUpdate>,
    seed: u64,
    lives: u64,
    rng: ChaCha8Rng,
    past_drops: Drops,
}

impl Host {
    /// A running host without peers.
    pub fn new(id: HostId, seed: u64, config: EngineConfig, address: SocketAddr, now: Instant) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut secret = [0; 32];
        rng.fill_bytes(&mut secret);
        let (engine, forwarding) = Engine::new(config.clone(), random(seed, 0));
        let mut host = Self {
            id,
            engine,
            forwarding,
            address,
            nat: None,
            up: Link::default(),
            down: Link::default(),
            asleep: false,
            wall_offset_secs: 0,
            notice_loss_ppm: 0,
            events: Vec::new(),
            outbox: Vec::new(),
            ledger: Ledger::default(),
            config,
            secret: StaticSecret::from_bytes(secret),
            peers: BTreeMap::new(),
            seed,
            lives: 0,
            rng,
            past_drops: [0; DropReason::ALL.len()],
        };
        host.start(now);
        host
    }

    /// Its public key.
    pub fn public_key(&self) -> PublicKey {
        self.secret.public_key()
    }

    /// Both clocks as this host reads them.
    pub fn clock(&self, now: Instant) -> Clock {
        let secs = (WALL_AT_START + now.0 / 1_000_000_000).saturating_add_signed(self.wall_offset_secs);
        Clock { now, wall: UnixTime { secs, nanos: (now.0 % 1_000_000_000) as u32 } }
    }

    /// Gives the engine a command. Peers and the private key stay through a restart.
    pub fn command(&mut self, now: Instant, command: Command) {
        match &command {
            Command::SetPrivateKey(Some(secret)) => self.secret = secret.clone(),
            Command::SetPeer(update) => {
                let known = self.peers.entry(update.public_key).or_insert_with(|| update.clone());
                known.endpoint = update.endpoint.or(known.endpoint);
                known.suite = update.suite.or(known.suite);
                known.persistent_keepalive_secs =
                    update.persistent_keepalive_secs.or(known.persistent_keepalive_secs);
                known.preshared_key = update.preshared_key.clone().or(known.preshared_key.take());
                if update.replace_allowed_ips {
                    known.allowed_ips.clear();
                }
                known.allowed_ips.extend(&update.allowed_ips);
                known.limits = update.limits.clone().or(known.limits.take());
            }
            Command::RemovePeer(key) => drop(self.peers.remove(key)),
            Command::RemoveAllPeers => self.peers.clear(),
            Command::SetPrivateKey(None)
            | Command::Initiate(_)
            | Command::Reconnect(_)
            | Command::Move(..)
            | Command::Restart(..)
            | Command::Challenge(..)
            | Command::Accompany(..) => {}
        }
        self.engine.handle_command(self.clock(now), command);
        self.poll(now);
    }

    /// Starts over with the same configuration. The newest timestamps the program keeps on disk.
    pub fn restart(&mut self, now: Instant) {
        self.past_drops = self.drops();
        self.ledger.forgotten += self.staged_now(now);
        for status in self.engine.peers(now) {
            if let Some(update) = self.peers.get_mut(&status.public_key) {
                update.timestamps = status.timestamps;
            }
        }
        self.lives += 1;
        (self.engine, self.forwarding) = Engine::new(self.config.clone(), random(self.seed, self.lives));
        self.start(now);
    }

    fn start(&mut self, now: Instant) {
        let clock = self.clock(now);
        self.engine.handle_command(clock, Command::SetPrivateKey(Some(self.secret.clone())));
        for update in self.peers.values() {
            self.engine.handle_command(clock, Command::SetPeer(update.clone()));
        }
        self.poll(now);
    }

    /// Fires the timers that are due.
    ///
    /// # Panics
    /// When timers do not come to rest.
    pub fn fire_timers(&mut self, now: Instant) {
        for _ in 0..MAX_TIMEOUTS_AT_ONCE {
            self.engine.handle_timeout(self.clock(now));
            self.poll(now);
            if self.engine.next_timeout().is_none_or(|next| next > now) {
                return;
            }
        }
        panic!("{:?}: a timer is due again at once, without end", self.id);
    }

    /// Sends an inside packet, or leaves it waiting for a session.
    ///
    /// # Panics
    /// When a keypair past its time is offered for sealing.
    pub fn send_inside(&mut self, now: Instant, packet: &[u8]) -> Option<DropReason> {
        self.ledger.offered += 1;
        let Ok(header) = InsideHeader::parse(packet) else { panic!("a probe is a valid packet") };
        let forwarding = Arc::clone(&self.forwarding);
        let mut notices = Vec::new();
        let refused = loop {
            match forwarding.depart(now, &header) {
                Departure::Seal(keypair, endpoint) => {
                    assert!(now.since(keypair.created).as_secs() < 180, "sealing with an expired keypair");
                    break self.seal(now, &keypair, endpoint, packet, &mut notices);
                }
                Departure::Stage(path) => {
                    if forwarding.stage(now, &path, packet, &mut notices) {
                        self.ledger.staged += 1;
                        break None;
                    }
                }
                Departure::Drop(reason) => break Some(reason),
            }
        };
        self.ledger.refused += u64::from(refused.is_some());
        self.ledger.limited += u64::from(refused.is_some_and(|reason| REFUSALS.contains(&reason)));
        self.hand_over(now, notices);
        refused
    }

    fn seal(
        &mut self,
        now: Instant,
        keypair: &Arc<Keypair>,
        endpoint: Endpoint,
        packet: &[u8],
        notices: &mut Vec<Notice>,
    ) -> Option<DropReason> {
        let message = match self.forwarding.seal(keypair, packet) {
            Ok(message) => message,
            Err(reason) => return Some(reason),
        };
        self.forwarding.sent(now, keypair, 1, message.len() as u64, notices);
        self.ledger.sealed += 1;
        self.outbox.push((endpoint.remote, message, Origin::Data));
        None
    }

    /// Takes in a datagram.
    ///
    /// # Panics
    /// When it ends in no way, or in two.
    pub fn receive(&mut self, now: Instant, from: SocketAddr, mut bytes: Vec<u8>) -> Arrival {
        let before = self.drops();
        let forwarding = Arc::clone(&self.forwarding);
        let mut notices = Vec::new();
        let inside = forwarding.arrive(now, &Endpoint::udp(from), Ecn::NotEct, &mut bytes, &mut notices);
        let reasons = difference(&before, &self.drops());
        let handed = notices.iter().filter(|notice| matches!(notice, Notice::Handshake(_))).count();
        let arrival = match (inside, reasons.as_slice(), handed) {
            (Some(inside), [], 0) => Arrival::Delivered(bytes[inside].to_vec()),
            (None, [(reason, 1)], 0) => Arrival::Dropped(*reason),
            (None, [], 1) => Arrival::Noticed,
            (None, [], 0) if bytes.len() == TRANSPORT_MIN_LEN => Arrival::Keepalive,
            outcome => panic!("{:?}: a datagram ended as {outcome:?}", self.id),
        };
        self.hand_over(now, notices);
        arrival
    }

    /// Packets that wait for a session now.
    pub fn staged_now(&self, now: Instant) -> u64 {
        self.engine.peers(now).iter().map(|peer| peer.staged as u64).sum()
    }

    /// Drops so far, over all lives.
    pub fn drops(&self) -> Drops {
        let mut drops = self.past_drops;
        for (total, (_, count)) in drops.iter_mut().zip(self.forwarding.drops.iter()) {
            *total += count;
        }
        drops
    }

    /// Drops for one reason so far, over all lives.
    pub fn drops_of(&self, reason: DropReason) -> u64 {
        self.drops()[reason as usize]
    }

    fn hand_over(&mut self, now: Instant, notices: Vec<Notice>) {
        for notice in notices {
            if self.notice_loss_ppm > 0 && below(&mut self.rng, 1_000_000) < u64::from(self.notice_loss_ppm) {
                self.forwarding.notice_lost(&notice);
                continue;
            }
            self.engine.handle_notice(self.clock(now), notice);
            self.poll(now);
        }
        self.poll(now);
    }

    fn poll(&mut self, now: Instant) {
        while let Some(output) = self.engine.poll_output(now) {
            match output {
                Output::Transmit(transmit) => {
                    let is_data = Kind::of(&transmit.contents).0 == Kind::Data;
                    self.ledger.unstaged += u64::from(is_data);
                    let origin = if is_data { Origin::Data } else { Origin::Control };
                    self.outbox.push((transmit.endpoint.remote, transmit.contents, origin));
                }
                Output::Event(event) => self.events.push((now, event)),
            }
        }
        // Two keypairs to receive, one to come, one handshake under way: more indices are a leak.
        let most = 4 * self.peers.len();
        assert!(self.engine.indices_in_use() <= most, "{:?} leaks receiver indices", self.id);
    }
}

fn random(seed: u64, life: u64) -> Random {
    let mut rng = ChaCha8Rng::seed_from_u64(seed ^ (life + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    Box::new(move |bytes| rng.fill_bytes(bytes))
}

fn difference(before: &Drops, after: &Drops) -> Vec<(DropReason, u64)> {
    let pairs = DropReason::ALL.iter().zip(before.iter().zip(after));
    pairs.filter(|(_, (before, after))| before != after).map(|(reason, (b, a))| (*reason, a - b)).collect()
}
