//! The world: everything that is, and the order in which it happens.

use core::time::Duration;
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use adit_proto::engine::EngineConfig;
use adit_proto::event::{Command, Event};
use adit_proto::reason::DropReason;
use adit_proto::time::Instant;
use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};

use crate::eve::{Eve, Kind};
use crate::host::{Arrival, Host, HostId};
use crate::link::{Conditions, Datagram, Loss, Origin, Passage};
use crate::nat::Nat;
use crate::probe::{MIN_PROBE_LEN, Probe, Probes, inside_v4, inside_v6};
use crate::trace::{Step, Trace};

/// The port every host listens on.
pub const PORT: u16 = 51_820;

/// The reasons that end an inside packet before it is a datagram.
const ENDS_BEFORE_THE_LINK: [DropReason; 5] = [
    DropReason::NoRoute,
    DropReason::NoEndpoint,
    DropReason::KeyExhausted,
    DropReason::StagedOverflow,
    DropReason::HandshakeTimeout,
];

const START: Instant = Instant::from_millis(1_000_000);

/// A NAT of the world, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NatId(pub usize);

/// Everything that is.
#[derive(Debug)]
pub struct World {
    /// The monotonic clock of every host.
    pub now: Instant,
    /// Who listens in the core.
    pub eve: Eve,
    /// What went into tunnels and came out.
    pub probes: Probes,
    /// What happened.
    pub trace: Trace,
    hosts: Vec<Host>,
    nats: Vec<Nat>,
    places: HashMap<IpAddr, Place>,
    flying: BTreeMap<(Instant, u64), Flying>,
    launched: u64,
    addresses: u32,
    rng: ChaCha8Rng,
    census: Census,
    losses: BTreeMap<Loss, u64>,
}

#[derive(Clone, Copy, Debug)]
enum Place {
    Host(HostId),
    Nat(NatId),
}

/// A datagram between two points.
#[derive(Debug)]
enum Flying {
    ToCore(HostId, Datagram),
    ToHost(HostId, Datagram),
}

/// What became of datagrams that carry an inside packet, attackers' ones aside.
#[derive(Clone, Copy, Debug, Default)]
struct Census {
    sent: u64,
    copied: u64,
    lost: u64,
    delivered: u64,
    dropped: u64,
}

impl World {
    /// An empty world.
    pub fn new(seed: u64) -> Self {
        Self {
            now: START,
            eve: Eve::default(),
            probes: Probes::default(),
            trace: Trace::default(),
            hosts: Vec::new(),
            nats: Vec::new(),
            places: HashMap::new(),
            flying: BTreeMap::new(),
            launched: 0,
            addresses: 0,
            rng: ChaCha8Rng::seed_from_u64(seed),
            census: Census::default(),
            losses: BTreeMap::new(),
        }
    }

    /// Adds a host with a public address and no peers.
    pub fn add_host(&mut self, config: EngineConfig) -> HostId {
        let id = HostId(self.hosts.len() as u32);
        let address = self.fresh_address();
        let host = Host::new(id, self.rng.next_u64(), config, address, self.now);
        self.places.insert(address.ip(), Place::Host(id));
        self.hosts.push(host);
        id
    }

    /// Adds a NAT.
    pub fn add_nat(&mut self, timeout: Duration) -> NatId {
        let id = NatId(self.nats.len());
        let public = self.fresh_address().ip();
        self.places.insert(public, Place::Nat(id));
        self.nats.push(Nat::new(public, timeout));
        id
    }

    /// Moves a host behind a NAT.
    pub fn put_behind(&mut self, id: HostId, nat: NatId) {
        self.places.remove(&self.host(id).address.ip());
        let private = Ipv4Addr::from(0xc0a8_0000 + (nat.0 as u32 * 256) + id.0 + 2);
        let host = self.host_mut(id);
        host.nat = Some(nat);
        host.address = SocketAddr::new(private.into(), PORT);
        self.did(id, format!("goes behind {nat:?}"));
    }

    /// Gives a host another public address, not behind a NAT any more.
    pub fn roam(&mut self, id: HostId) -> SocketAddr {
        let address = self.fresh_address();
        self.places.remove(&self.host(id).address.ip());
        self.places.insert(address.ip(), Place::Host(id));
        let host = self.host_mut(id);
        host.nat = None;
        host.address = address;
        self.did(id, format!("roams to {address}"));
        address
    }

    /// A host.
    pub fn host(&self, id: HostId) -> &Host {
        &self.hosts[id.0 as usize]
    }

    /// A host, to change its conditions. Use the methods of the world for anything that sends.
    pub fn host_mut(&mut self, id: HostId) -> &mut Host {
        &mut self.hosts[id.0 as usize]
    }

    /// Every host.
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// A NAT.
    pub fn nat_mut(&mut self, id: NatId) -> &mut Nat {
        &mut self.nats[id.0]
    }

    /// Whether an address is the public one of a NAT.
    pub fn is_nat(&self, address: IpAddr) -> bool {
        matches!(self.places.get(&address), Some(Place::Nat(_)))
    }

    /// Changes both directions of a host's access.
    pub fn set_conditions(&mut self, id: HostId, change: impl Fn(&mut Conditions)) {
        let host = self.host_mut(id);
        change(&mut host.up.conditions);
        change(&mut host.down.conditions);
    }

    /// Sends a probe of the shortest length.
    pub fn send(&mut self, from: HostId, to: HostId) -> Probe {
        self.send_len(from, to, MIN_PROBE_LEN)
    }

    /// Sends a probe of `len` bytes. A host that sleeps sends nothing.
    pub fn send_len(&mut self, from: HostId, to: HostId, len: usize) -> Probe {
        let probe = self.probes.next(from, to);
        self.send_packet(from, &probe.packet(len));
        probe
    }

    fn send_packet(&mut self, from: HostId, packet: &[u8]) {
        let now = self.now;
        let host = self.host_mut(from);
        if host.asleep {
            host.ledger.offered += 1;
            host.ledger.slept_through += 1;
            return;
        }
        let refused = host.send_inside(now, packet);
        if let Some(reason) = refused {
            self.trace.add(now, Step::Dropped(from, reason));
        }
        self.launch(from);
    }

    /// Gives a host's engine a command.
    pub fn command(&mut self, id: HostId, command: Command) {
        self.did(id, format!("{command:?}"));
        let now = self.now;
        self.host_mut(id).command(now, command);
        self.launch(id);
    }

    /// Starts a handshake now.
    pub fn initiate(&mut self, id: HostId, with: HostId) {
        self.command(id, Command::Initiate(self.host(with).public_key()));
    }

    /// A host loses everything but its configuration.
    pub fn restart(&mut self, id: HostId) {
        self.did(id, "restarts".into());
        let now = self.now;
        self.host_mut(id).restart(now);
        self.launch(id);
    }

    /// A host stops handling anything; its clocks go on.
    pub fn suspend(&mut self, id: HostId) {
        self.did(id, "falls asleep".into());
        self.host_mut(id).asleep = true;
    }

    /// A suspended host goes on. Timers that came due meanwhile fire at the next step of the world, after
    /// anything that is sent before.
    pub fn wake(&mut self, id: HostId) {
        self.did(id, "wakes".into());
        self.host_mut(id).asleep = false;
    }

    /// Moves a host's wall clock.
    pub fn jump_wall(&mut self, id: HostId, secs: i64) {
        self.did(id, format!("its wall clock jumps {secs} s"));
        self.host_mut(id).wall_offset_secs += secs;
    }

    /// An attacker puts a datagram on the network, from any source it likes.
    pub fn inject(&mut self, from: SocketAddr, to: SocketAddr, bytes: Vec<u8>) {
        self.trace.add(self.now, Step::Injected(Kind::of(&bytes).0, bytes.len()));
        self.trace.add_bytes(&bytes);
        let datagram = Datagram { from, to, bytes, origin: Origin::Attacker };
        self.cross_core(datagram);
    }

    /// An address nobody has.
    pub fn fresh_address(&mut self) -> SocketAddr {
        self.addresses += 1;
        let n = self.addresses;
        let ip: IpAddr = match n % 4 {
            3 => Ipv6Addr::from((0x2001_0db8_u128 << 96) + u128::from(n)).into(),
            _ => Ipv4Addr::from(0x0b00_0000 + n).into(),
        };
        SocketAddr::new(ip, PORT)
    }

    /// A random number of the world.
    pub fn random(&mut self) -> u64 {
        self.rng.next_u64()
    }

    /// A source of random numbers of its own.
    pub fn fork_rng(&mut self) -> ChaCha8Rng {
        ChaCha8Rng::seed_from_u64(self.rng.next_u64())
    }

    /// Lets so much time pass.
    pub fn run_for(&mut self, duration: Duration) {
        self.run_until(self.now.saturating_add(duration));
    }

    /// Lets time pass until `until`.
    pub fn run_until(&mut self, until: Instant) {
        while let Some(next) = self.next_step().filter(|&next| next <= until) {
            self.now = self.now.max(next);
            match self.flying.first_entry().filter(|flying| flying.key().0 <= self.now) {
                Some(flying) => {
                    let flying = flying.remove();
                    self.land(flying);
                }
                None => self.fire_timers(),
            }
        }
        self.now = self.now.max(until);
    }

    /// Lets everything that links hold back go.
    pub fn release_links(&mut self) {
        for n in 0..self.hosts.len() {
            let host = &mut self.hosts[n];
            let up = host.up.release(&mut self.rng);
            let down = host.down.release(&mut self.rng);
            let id = host.id;
            up.into_iter().for_each(|(delay, datagram)| self.fly(delay, Flying::ToCore(id, datagram)));
            down.into_iter().for_each(|(delay, datagram)| self.fly(delay, Flying::ToHost(id, datagram)));
        }
    }

    /// The events of a host that match.
    pub fn events(&self, id: HostId, wanted: impl Fn(&Event) -> bool) -> Vec<Instant> {
        self.host(id).events.iter().filter(|(_, event)| wanted(event)).map(|(at, _)| *at).collect()
    }

    /// How many datagrams were lost for a reason.
    pub fn lost(&self, loss: Loss) -> u64 {
        self.losses.get(&loss).copied().unwrap_or(0)
    }

    /// How many datagrams that carried an inside packet were lost.
    pub fn data_lost(&self) -> u64 {
        self.census.lost
    }

    /// Adds up where every inside packet went. Returns how many of what hosts counted as dropped were
    /// not packets but staged keepalives.
    ///
    /// # Panics
    /// When a packet is unaccounted for.
    pub fn audit(&self) -> u64 {
        let (mut sent, mut staged_keepalives) = (0, 0);
        for host in &self.hosts {
            let ledger = &host.ledger;
            let ended = ledger.refused + ledger.sealed + ledger.staged + ledger.slept_through;
            assert_eq!(ledger.offered, ended, "{:?} {ledger:?}", host.id);
            let counted: u64 = ENDS_BEFORE_THE_LINK.iter().map(|&reason| host.drops_of(reason)).sum();
            let waited_in_vain = counted - (ledger.refused - ledger.limited);
            let left = ledger.unstaged + ledger.forgotten + host.staged_now(self.now) + waited_in_vain;
            assert!(
                left >= ledger.staged,
                "{:?}: packets that waited are unaccounted for: {left} {ledger:?}\n{}",
                host.id,
                self.trace.recent()
            );
            staged_keepalives += left - ledger.staged;
            sent += ledger.sealed + ledger.unstaged;
        }
        let Census { sent: seen, copied, lost, delivered, dropped } = self.census;
        assert_eq!(sent, seen, "a sealed packet never reached the link");
        let is_data = |datagram: &&Datagram| datagram.origin == Origin::Data;
        let in_air = self.flying.values().map(|(Flying::ToCore(_, d) | Flying::ToHost(_, d))| d);
        let held = self.hosts.iter().flat_map(|host| host.up.held().chain(host.down.held()));
        let under_way = in_air.chain(held).filter(is_data).count() as u64;
        assert_eq!(seen + copied, lost + delivered + dropped + under_way, "{:?}", self.census);
        staged_keepalives
    }

    fn next_step(&self) -> Option<Instant> {
        let flying = self.flying.first_key_value().map(|((at, _), _)| *at);
        let timers =
            self.hosts.iter().filter(|host| !host.asleep).filter_map(|host| host.engine.next_timeout());
        timers.chain(flying).min()
    }

    fn fire_timers(&mut self) {
        let now = self.now;
        for n in 0..self.hosts.len() {
            let host = &mut self.hosts[n];
            if !host.asleep && host.engine.next_timeout().is_some_and(|next| next <= now) {
                host.fire_timers(now);
                let id = host.id;
                self.launch(id);
            }
        }
    }

    /// Puts what a host wants to send on its link.
    fn launch(&mut self, id: HostId) {
        let now = self.now;
        let host = &mut self.hosts[id.0 as usize];
        for (to, bytes, origin) in core::mem::take(&mut host.outbox) {
            let datagram = Datagram { from: host.address, to, bytes, origin };
            let kind = self.eve.look(now, id, &datagram);
            self.trace.add(now, Step::Sent(id, kind, datagram.bytes.len()));
            self.trace.add_bytes(&datagram.bytes);
            self.census.sent += u64::from(origin == Origin::Data);
            let passage = host.up.pass(&mut self.rng, datagram);
            let launched = &mut self.launched;
            account(&mut self.census, &mut self.losses, &mut self.trace, now, &passage, kind, origin);
            for (delay, datagram) in passage.out {
                *launched += 1;
                self.flying.insert((now.saturating_add(delay), *launched), Flying::ToCore(id, datagram));
            }
        }
    }

    fn fly(&mut self, delay: Duration, flying: Flying) {
        self.launched += 1;
        self.flying.insert((self.now.saturating_add(delay), self.launched), flying);
    }

    fn land(&mut self, flying: Flying) {
        match flying {
            Flying::ToCore(from, mut datagram) => {
                if let Some(nat) = self.host(from).nat {
                    datagram.from = self.nats[nat.0].outbound(self.now, datagram.from, datagram.to);
                }
                self.cross_core(datagram);
            }
            Flying::ToHost(to, datagram) => self.arrive(to, datagram),
        }
    }

    /// From the core to the link of whoever has the address.
    fn cross_core(&mut self, mut datagram: Datagram) {
        let place = self.places.get(&datagram.to.ip()).copied();
        let (found, loss) = match place {
            Some(Place::Host(id)) => (Some(id).filter(|_| datagram.to.port() == PORT), Loss::Nobody),
            Some(Place::Nat(id)) => {
                let inside = self.nats[id.0].inbound(self.now, datagram.to.port(), datagram.from);
                let behind = |host: &&Host| host.nat == Some(id) && Some(host.address) == inside;
                (self.hosts.iter().find(behind).map(|host| host.id), Loss::Nat)
            }
            None => (None, Loss::Nobody),
        };
        let (kind, origin) = (Kind::of(&datagram.bytes).0, datagram.origin);
        let Some(id) = found else { return self.lose(&datagram, loss) };
        datagram.to = self.host(id).address;
        let passage = self.hosts[id.0 as usize].down.pass(&mut self.rng, datagram);
        account(&mut self.census, &mut self.losses, &mut self.trace, self.now, &passage, kind, origin);
        for (delay, datagram) in passage.out {
            self.fly(delay, Flying::ToHost(id, datagram));
        }
    }

    fn arrive(&mut self, id: HostId, datagram: Datagram) {
        let now = self.now;
        let host = &mut self.hosts[id.0 as usize];
        if host.asleep {
            return self.lose(&datagram, Loss::Asleep);
        }
        let is_data = datagram.origin == Origin::Data;
        let arrival = host.receive(now, datagram.from, datagram.bytes);
        self.census.delivered += u64::from(is_data && matches!(arrival, Arrival::Delivered(_)));
        self.census.dropped += u64::from(is_data && !matches!(arrival, Arrival::Delivered(_)));
        self.launch(id);
        match arrival {
            Arrival::Delivered(packet) => self.deliver(id, &packet),
            Arrival::Dropped(reason) => self.trace.add(now, Step::Dropped(id, reason)),
            Arrival::Noticed | Arrival::Keepalive => {}
        }
    }

    /// A packet came out of a tunnel: it is for this host, or the host routes it into another tunnel.
    fn deliver(&mut self, id: HostId, packet: &[u8]) {
        if is_icmp(packet) {
            self.hosts[id.0 as usize].ledger.told += 1;
            return;
        }
        let Some(probe) = Probe::parse(packet) else {
            panic!("{id:?}: a packet came out changed\n{}", self.trace.recent());
        };
        let expected = [inside_v4(probe.to), inside_v6(probe.to)];
        assert!(expected.contains(&destination_of(packet)), "a probe names its receiver's address");
        if probe.to != id {
            return self.send_packet(id, packet);
        }
        self.trace.add(self.now, Step::Delivered(probe));
        if let Err(wrong) = self.probes.deliver(self.now, probe) {
            panic!("{probe:?} was {wrong}\n{}", self.trace.recent());
        }
    }

    fn lose(&mut self, datagram: &Datagram, loss: Loss) {
        let passage = Passage { loss: Some(loss), ..Default::default() };
        let kind = Kind::of(&datagram.bytes).0;
        account(
            &mut self.census,
            &mut self.losses,
            &mut self.trace,
            self.now,
            &passage,
            kind,
            datagram.origin,
        );
    }

    fn did(&mut self, id: HostId, what: String) {
        self.trace.add(self.now, Step::Did(id, what));
    }
}

fn account(
    census: &mut Census,
    losses: &mut BTreeMap<Loss, u64>,
    trace: &mut Trace,
    now: Instant,
    passage: &Passage,
    kind: Kind,
    origin: Origin,
) {
    let is_data = origin == Origin::Data;
    if let Some(loss) = passage.loss {
        trace.add(now, Step::Lost(kind, loss));
        *losses.entry(loss).or_default() += 1;
        census.lost += u64::from(is_data);
    }
    census.copied += if is_data { passage.copies } else { 0 };
}

fn is_icmp(packet: &[u8]) -> bool {
    matches!((packet[0] >> 4, packet[9], packet[6]), (4, 1, _) | (6, _, 58))
}

fn destination_of(packet: &[u8]) -> IpAddr {
    adit_proto::packet::InsideHeader::parse(packet)
        .map_or(Ipv4Addr::UNSPECIFIED.into(), |header| header.destination)
}
