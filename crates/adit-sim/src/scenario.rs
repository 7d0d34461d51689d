//! Scenarios from bytes: a topology, then whatever may happen to it, then peace.
//!
//! ```text
//! seed (2 bytes) | topology (2 bytes) | transition (1 byte and its arguments), and so on
//! ```
//!
//! After the last transition everything is mended, and every tunnel must carry packets both ways again, in
//! time and without a fight over who initiates.

use core::time::Duration;

use adit_proto::allowed_ips::Prefix;
use adit_proto::cookie::CookieJar;
use adit_proto::endpoint::Endpoint;
use adit_proto::engine::EngineConfig;
use adit_proto::event::{AllowedIpChange, Command, PeerUpdate};
use adit_proto::key::{PresharedKey, StaticSecret};
use adit_proto::limit::{LimitConfig, Rate};
use adit_proto::suite::Suite;
use rand_core::RngCore;

use crate::eve::Kind;
use crate::host::HostId;
use crate::link::Conditions;
use crate::topology::{connect, peer_of};
use crate::world::{NatId, PORT, World};

/// How soon a mended tunnel works: an answer is missed after 15.4 s, its handshake may be refused or lost
/// once for what happened before, and the next comes after 5.4 s.
const RECOVERY: Duration = Duration::from_secs(30);

const MAX_TRANSITIONS: usize = 60;
const PAUSES_MS: [u64; 12] =
    [1, 10, 100, 1_000, 4_000, 6_000, 12_000, 16_000, 70_000, 125_000, 185_000, 560_000];

/// What a scenario came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The digest of everything that happened.
    pub digest: u64,
    /// Probes sent.
    pub sent: u64,
    /// Probes delivered.
    pub delivered: u64,
    /// Handshake initiations.
    pub initiations: u64,
}

/// Runs the scenario that `bytes` stand for. Any bytes are a scenario.
///
/// # Panics
/// When a rule of the protocol or of this world is broken.
pub fn run(bytes: &[u8]) -> Outcome {
    let mut script = Script(bytes);
    let mut scene = Scene::set(&mut script);
    for number in 0..MAX_TRANSITIONS {
        let Some(transition) = script.next() else { break };
        scene.act(transition, &mut script);
        if number % 8 == 0 {
            scene.world.audit();
        }
    }
    scene.mend();
    scene.must_work();
    scene.world.audit();
    let (sent, delivered) = scene.world.probes.totals();
    let initiations = scene.world.eve.total(Kind::Initiation);
    Outcome { digest: scene.world.trace.digest(), sent, delivered, initiations }
}

struct Script<'a>(&'a [u8]);

impl Script<'_> {
    fn next(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::from(self.next().unwrap_or(0)) % bound
    }

    fn flag(&mut self) -> bool {
        self.next().unwrap_or(0) & 1 == 1
    }
}

struct Scene {
    world: World,
    gateway: HostId,
    clients: Vec<HostId>,
    nats: Vec<NatId>,
    suites: Vec<Suite>,
}

impl Scene {
    fn set(script: &mut Script<'_>) -> Self {
        let seed = u64::from(script.next().unwrap_or(0)) << 8 | u64::from(script.next().unwrap_or(0));
        let (shape, traits) = (script.next().unwrap_or(0), script.next().unwrap_or(0));
        let suite = Suite::ALL[usize::from(shape & 1)];
        let rate = |per_sec| Rate { per_sec, burst: per_sec };
        let small = LimitConfig { unverified: rate(5), verified: rate(50), ..Default::default() };
        let limiter = if shape & 2 != 0 { small } else { LimitConfig::default() };
        let mut world = World::new(seed);
        let gateway = world.add_host(EngineConfig { default_suite: suite, limiter });
        let count = 1 + usize::from(shape >> 2 & 3);
        let clients: Vec<_> =
            (0..count).map(|_| world.add_host(EngineConfig { default_suite: suite, limiter })).collect();
        let nats = vec![world.add_nat(Duration::from_secs(30)), world.add_nat(Duration::from_secs(300))];
        let mut scene = Self { world, gateway, suites: vec![suite; count], clients, nats };
        for n in 0..count {
            if traits >> n & 1 == 1 {
                scene.world.put_behind(scene.clients[n], scene.nats[n % 2]);
            }
            scene.introduce(n, shape & 16 != 0);
            if traits >> (4 + n) & 1 == 1 {
                scene.update_at_client(n, |update| update.persistent_keepalive_secs = Some(25));
            }
        }
        scene
    }

    fn act(&mut self, transition: u8, script: &mut Script<'_>) {
        let n = script.below(self.clients.len());
        let (gateway, client) = (self.gateway, self.clients[n]);
        let either = if script.flag() { gateway } else { client };
        match transition % 24 {
            0 => self.burst(client, gateway, script.below(200)),
            1 => self.burst(gateway, client, script.below(200)),
            2 => {
                let other = self.clients[script.below(self.clients.len())];
                if other != client {
                    self.burst(client, other, script.below(20));
                }
            }
            3 => self.talk(Duration::from_millis(100), 1 + script.below(80)),
            4 => self.talk(Duration::from_secs(1), 1 + script.below(200)),
            5 => self.world.run_for(Duration::from_millis(PAUSES_MS[script.below(PAUSES_MS.len())])),
            6 => drop(self.world.roam(either)),
            7 => self.world.put_behind(client, self.nats[script.below(2)]),
            8 => self.nats.clone().into_iter().for_each(|nat| self.world.nat_mut(nat).rebind()),
            9 => self.world.restart(either),
            10 => self.world.suspend(either),
            11 => self.world.wake(either),
            12 => self.world.set_conditions(either, |conditions| conditions.blackhole = true),
            13 => self.world.set_conditions(either, |conditions| conditions.blackhole = false),
            14 => self.weather(either, script),
            15 => self.flood(either, script.below(60)),
            16 => {
                let key = self.world.host(client).public_key();
                self.world.command(gateway, Command::RemovePeer(key));
            }
            17 => self.introduce(n, script.flag()),
            18 => self.change_psk(n, script),
            19 => {
                let with = if either == gateway { client } else { gateway };
                self.world.initiate(either, with);
            }
            20 => {
                let jumps = [-1, 3_600, -3_600, 31_536_000, -31_536_000];
                self.world.jump_wall(either, jumps[script.below(jumps.len())]);
            }
            21 => self.replay(script.flag()),
            22 => self.world.host_mut(either).notice_loss_ppm = [0, 300_000, 900_000][script.below(3)],
            _ => self.change_identity(n, script),
        }
    }

    fn burst(&mut self, from: HostId, to: HostId, packets: usize) {
        for n in 0..packets {
            self.world.send_len(from, to, 56 + n % 7 * 100);
        }
        self.world.run_for(Duration::from_millis(1));
    }

    fn talk(&mut self, every: Duration, rounds: usize) {
        for _ in 0..rounds {
            for n in 0..self.clients.len() {
                self.world.send(self.clients[n], self.gateway);
                self.world.send(self.gateway, self.clients[n]);
            }
            self.world.run_for(every);
        }
    }

    fn weather(&mut self, host: HostId, script: &mut Script<'_>) {
        let percent = |script: &mut Script<'_>| script.below(40) as u32 * 10_000;
        let (loss_ppm, duplicate_ppm, corrupt_ppm) = (percent(script), percent(script), percent(script) / 4);
        let (reorder_ppm, jitter_ms) = (percent(script), script.below(250) as u64 * 4);
        let reorder_depth = script.below(60) as u64;
        let mtu_bytes = [65_507, 65_507, 65_507, 140, 91][script.below(5)];
        self.world.set_conditions(host, |conditions| {
            *conditions = Conditions {
                loss_ppm,
                duplicate_ppm,
                corrupt_ppm,
                reorder_ppm,
                reorder_depth,
                mtu_bytes,
                jitter: Duration::from_millis(jitter_ms),
                ..*conditions
            }
        });
    }

    /// Half of it initiations with the right mac1, half of it noise.
    fn flood(&mut self, target: HostId, messages: usize) {
        let (key, suite) = (self.world.host(target).public_key(), self.suites[0]);
        let to = self.world.host(target).address;
        let mut noise = self.world.fork_rng();
        for n in 0..messages {
            let mut bytes = [0; 148];
            noise.fill_bytes(&mut bytes);
            bytes[..4].copy_from_slice(&[suite.message_types().initiation, 0, 0, 0]);
            CookieJar::new(suite, &key).stamp(&mut bytes, self.world.now);
            if n % 2 == 1 {
                bytes[0] = noise.next_u32() as u8;
            }
            let from = self.world.fresh_address();
            self.world.inject(from, to, bytes[..148 - n % 3 * 28].to_vec());
        }
        self.world.eve.recording = true;
    }

    /// Replays what was recorded, from where it came or from elsewhere.
    fn replay(&mut self, elsewhere: bool) {
        self.world.eve.recording = !self.world.eve.recording;
        let recorded = core::mem::take(&mut self.world.eve.recorded);
        let attacker = self.world.fresh_address();
        for datagram in recorded.into_iter().rev().take(500) {
            let from = if elsewhere { attacker } else { datagram.from };
            self.world.inject(from, datagram.to, datagram.bytes);
        }
    }

    fn change_psk(&mut self, n: usize, script: &mut Script<'_>) {
        let psk = || PresharedKey::from_bytes([7; 32]);
        match script.below(4) {
            0 => self.update_at_client(n, |update| update.preshared_key = Some(psk())),
            1 => self.update_at_gateway(n, |update| update.preshared_key = Some(psk())),
            2 => self.both(n, |update| update.preshared_key = Some(psk())),
            _ => self.both(n, |update| update.preshared_key = Some(PresharedKey::default())),
        }
    }

    /// Another suite, on one side or both, or another private key.
    fn change_identity(&mut self, n: usize, script: &mut Script<'_>) {
        let suite = Suite::ALL[script.below(2)];
        match script.below(4) {
            0 => self.update_at_client(n, |update| update.suite = Some(suite)),
            1 => self.update_at_gateway(n, |update| update.suite = Some(suite)),
            2 => {
                self.suites[n] = suite;
                self.both(n, |update| update.suite = Some(suite));
            }
            _ => {
                let old = self.world.host(self.clients[n]).public_key();
                let mut secret = [script.below(256) as u8; 32];
                secret[1] = n as u8;
                let secret = StaticSecret::from_bytes(secret);
                self.world.command(self.gateway, Command::RemovePeer(old));
                self.world.command(self.clients[n], Command::SetPrivateKey(Some(secret)));
                self.introduce(n, script.flag());
            }
        }
    }

    fn introduce(&mut self, n: usize, tell_address: bool) {
        let (gateway, client) = (self.gateway, self.clients[n]);
        connect(&mut self.world, gateway, client);
        if tell_address && self.world.host(client).nat.is_none() {
            let address = self.world.host(client).address;
            self.update_at_gateway(n, |update| update.endpoint = Some(Endpoint::udp(address)));
        }
    }

    fn both(&mut self, n: usize, change: impl Fn(&mut PeerUpdate)) {
        self.update_at_client(n, &change);
        self.update_at_gateway(n, &change);
    }

    fn update_at_client(&mut self, n: usize, change: impl Fn(&mut PeerUpdate)) {
        let mut update = PeerUpdate::new(self.world.host(self.gateway).public_key());
        change(&mut update);
        self.world.command(self.clients[n], Command::SetPeer(update));
    }

    fn update_at_gateway(&mut self, n: usize, change: impl Fn(&mut PeerUpdate)) {
        let mut update = peer_of(&self.world, self.clients[n], None);
        change(&mut update);
        self.world.command(self.gateway, Command::SetPeer(update));
    }

    /// Ends every fault and makes the two sides of each tunnel agree.
    fn mend(&mut self) {
        let ids: Vec<_> = self.world.hosts().iter().map(|host| host.id).collect();
        for id in ids {
            self.world.set_conditions(id, |conditions| *conditions = Conditions::default());
            self.world.host_mut(id).notice_loss_ppm = 0;
            if self.world.host(id).asleep {
                self.world.wake(id);
            }
        }
        // A late packet from an old address still moves an endpoint: let those come first.
        self.world.release_links();
        self.world.run_for(Duration::from_secs(2));
        for n in 0..self.clients.len() {
            self.introduce(n, true);
            let suite = self.suites[n];
            self.both(n, |update| {
                update.suite = Some(suite);
                update.preshared_key = Some(PresharedKey::default());
            });
            self.update_at_client(n, |update| {
                update.allowed_ips = vec![AllowedIpChange::Add("10.0.0.0/8".parse::<Prefix>().unwrap())];
            });
        }
        assert!(self.world.hosts().iter().all(|host| host.address.port() == PORT));
    }

    fn must_work(&mut self) {
        let rounds = RECOVERY.as_millis() as usize / 250;
        self.talk(Duration::from_millis(250), rounds);
        let clients = self.clients.clone();
        let flows: Vec<_> =
            clients.iter().flat_map(|&client| [(client, self.gateway), (self.gateway, client)]).collect();
        let initiations = self.world.eve.total(Kind::Initiation);
        let probes: Vec<_> = flows.iter().map(|&(from, to)| self.world.send(from, to)).collect();
        self.world.run_for(Duration::from_secs(1));
        for probe in probes {
            assert!(
                self.world.probes.arrived(probe),
                "{probe:?}: no recovery\n{}",
                self.world.trace.recent()
            );
        }
        self.talk(Duration::from_millis(250), 4 * 60);
        let fights = self.world.eve.total(Kind::Initiation) - initiations;
        assert!(
            fights <= clients.len() as u64,
            "{fights} initiations in a minute\n{}",
            self.world.trace.recent()
        );
    }
}
