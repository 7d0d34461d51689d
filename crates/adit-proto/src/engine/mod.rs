//! The control half: peers, handshakes, cookies and timers, on one thread.
//!
//! - handlers, named `handle_*`, take commands, notices and the passing of time
//! - [`Engine::poll_output`] gives what to do, in order, until `None`
//! - [`Engine::next_timeout`] says when to call [`Engine::handle_timeout`] again
//!
//! After any handler, poll until `None`: a new session starts to send only after the packets that
//! waited for it were polled.

mod access;
mod exchange;
mod probing;
mod receivers;
mod session;
#[cfg(test)]
mod tests;
mod way;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use self::receivers::Receivers;
use crate::allowed_ips::AllowedIps;
use crate::cookie::CookieChecker;
use crate::endpoint::Endpoint;
use crate::event::{
    AllowedIpChange, Command, Event, Notice, Output, PeerId, PeerStatus, PeerUpdate, Transmit,
};
use crate::forward::{Forwarding, RouteTable};
use crate::handshake::Identity;
use crate::key::{PublicKey, StaticSecret};
use crate::keypair::Keypair;
use crate::limit::{LimitConfig, Limiter};
use crate::packet::Ecn;
use crate::path::Path;
use crate::peer::Peer;
use crate::suite::Suite;
use crate::time::{Clock, Instant};
use crate::timers::{Timer, TimerQueue};

/// Fills a buffer with random bytes: the operating system's in the program, seeded in the simulator.
pub type Random = Box<dyn FnMut(&mut [u8]) + Send>;

/// What may be chosen of an engine.
#[derive(Clone, Debug, Default)]
pub struct EngineConfig {
    /// Suite of peers whose update names none.
    pub default_suite: Suite,
    /// Budgets for handshake messages under load.
    pub limiter: LimitConfig,
}

/// The protocol's state over all peers.
pub struct Engine {
    config: EngineConfig,
    identity: Option<Identity>,
    forwarding: Arc<Forwarding>,
    peers: Vec<Option<Peer>>,
    by_key: HashMap<PublicKey, PeerId>,
    free_slots: Vec<PeerId>,
    receivers: Receivers,
    allowed_ips: AllowedIps,
    table_changed: bool,
    /// Paths that lanes find until the table is published again.
    removed: Vec<Arc<Path>>,
    timers: TimerQueue,
    limiter: Limiter,
    cookies: Option<CookieChecker>,
    random: Random,
    outputs: VecDeque<Queued>,
}

enum Queued {
    Output(Output),
    /// Send what is staged, then let the keypair send for the lanes.
    Publish(PeerId, Arc<Keypair>, PublishRound),
}

/// How often a keypair was about to be published and found more packets staged.
type PublishRound = u8;

impl core::fmt::Debug for Engine {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Engine({} peers)", self.by_key.len())
    }
}

impl Engine {
    /// An engine without key and peers, and the forwarding half it publishes to.
    pub fn new(config: EngineConfig, random: Random) -> (Self, Arc<Forwarding>) {
        let receivers = Receivers::default();
        let forwarding = Arc::new(Forwarding::new(
            Arc::clone(receivers.sessions.table()),
            Arc::clone(receivers.handshakes.table()),
        ));
        let limiter = Limiter::new(config.limiter);
        let engine = Self {
            config,
            identity: None,
            forwarding: Arc::clone(&forwarding),
            peers: Vec::new(),
            by_key: HashMap::new(),
            free_slots: Vec::new(),
            receivers,
            allowed_ips: AllowedIps::default(),
            table_changed: false,
            removed: Vec::new(),
            timers: TimerQueue::default(),
            limiter,
            cookies: None,
            random,
            outputs: VecDeque::new(),
        };
        (engine, forwarding)
    }

    /// Changes the configuration.
    pub fn handle_command(&mut self, clock: Clock, command: Command) {
        match command {
            Command::SetPrivateKey(secret) => self.set_private_key(secret),
            Command::SetPeer(update) => self.set_peer(clock, update),
            Command::RemovePeer(public_key) => self.forget_peer(&public_key),
            Command::RemoveAllPeers => self.remove_all_peers(),
            Command::Reconnect(public_key) => {
                if let Some(&id) = self.by_key.get(&public_key) {
                    self.reconnect(clock, id);
                }
            }
            Command::Initiate(public_key) => {
                if let Some(&id) = self.by_key.get(&public_key) {
                    self.send_initiation(clock, id, Attempt::First);
                }
            }
            Command::Move(public_key, endpoint) => {
                if let Some(&id) = self.by_key.get(&public_key) {
                    self.move_peer(clock, id, endpoint);
                }
            }
            Command::Restart(public_key, endpoint) => {
                if let Some(&id) = self.by_key.get(&public_key) {
                    self.restart_peer(clock, id, endpoint);
                }
            }
            Command::Challenge(public_key, endpoint, chosen) => {
                if let Some(&id) = self.by_key.get(&public_key) {
                    self.send_challenge(clock.now, id, endpoint, chosen);
                }
            }
            Command::Accompany(public_key, endpoint, chosen) => {
                if let Some(&id) = self.by_key.get(&public_key) {
                    self.send_word_of_aside(clock.now, id, endpoint);
                    self.send_challenge(clock.now, id, endpoint, chosen);
                }
            }
        }
    }

    /// Acts on what a lane saw.
    pub fn handle_notice(&mut self, clock: Clock, notice: Notice) {
        match notice {
            Notice::NeedKeypair(path) => self.need_keypair(clock, &path),
            Notice::KeyConfirmed(keypair) => self.confirm_session(clock, &keypair),
            Notice::Roamed(path, endpoint) => self.tell_roamed(&path, endpoint),
            Notice::AwaitingReply(path) => self.expect_reply(clock.now, &path),
            Notice::OwingReply(path) => self.owe_reply(clock.now, &path),
            Notice::Rekey(keypair) => {
                if let Some(id) = self.id_of(&keypair.path) {
                    self.send_initiation(clock, id, Attempt::First);
                }
            }
            Notice::LargeSent(path) => self.watch_mtu(clock, &path),
            Notice::Probe(path, probe) => self.take_probe(clock.now, &path, probe),
            Notice::Refused(path, error) => self.tell_refused(clock, &path, &error),
            Notice::Handshake(datagram) => self.consume(clock, &datagram),
            Notice::Challenged(keypair, from, chosen) => self.answer_challenge(&keypair, from, chosen),
            Notice::WayAnswered(path, endpoint, chosen) => {
                if self.id_of(&path).is_some() {
                    self.tell(Event::WayAnswered { peer: path.public_key, endpoint, chosen });
                }
            }
        }
    }

    /// Fires the timers that are due.
    pub fn handle_timeout(&mut self, clock: Clock) {
        while let Some(id) = self.timers.due(clock.now) {
            match self.peer_mut(id).and_then(|peer| peer.timers.take_due(clock.now)) {
                Some(timer) => self.fire(clock, id, timer),
                None => self.requeue(id),
            }
            self.requeue(id);
        }
    }

    /// When [`Self::handle_timeout`] is due next.
    pub fn next_timeout(&self) -> Option<Instant> {
        self.timers.next()
    }

    /// The next thing to do. Transmits must go out before the next call.
    pub fn poll_output(&mut self, now: Instant) -> Option<Output> {
        self.publish_table();
        loop {
            match self.outputs.pop_front()? {
                Queued::Output(output) => return Some(output),
                Queued::Publish(id, keypair, round) => self.publish_keypair(now, id, &keypair, round),
            }
        }
    }

    /// Our identity.
    pub fn identity(&self) -> Option<&Identity> {
        self.identity.as_ref()
    }

    /// Every peer, in the order they were added.
    pub fn peers(&self, now: Instant) -> Vec<PeerStatus> {
        let status = |peer: &Peer| {
            let mut status = peer.status(now);
            status.allowed_ips = self.allowed_ips.prefixes_of(peer.path.id.0).collect();
            status
        };
        self.peers.iter().flatten().map(status).collect()
    }

    /// How many receiver indices are in use.
    pub fn indices_in_use(&self) -> usize {
        self.receivers.len()
    }

    fn set_private_key(&mut self, secret: Option<StaticSecret>) {
        let identity = secret.map(Identity::new);
        if identity.as_ref().map(|new| new.public) == self.identity.as_ref().map(|old| old.public) {
            return;
        }
        if let Some(new) = &identity {
            self.forget_peer(&new.public);
        }
        let ids: Vec<_> = self.peers.iter().flatten().map(|peer| peer.path.id).collect();
        for id in ids {
            self.end_sessions(id);
            if let Some(peer) = self.peer_mut(id) {
                peer.forget_static_static();
                peer.last_initiation_sent = None;
            }
        }
        self.cookies = identity.as_ref().map(|identity| CookieChecker::new(&identity.public));
        let mac1_keys = self.cookies.as_ref().map(|cookies| Arc::new(cookies.mac1_keys().clone()));
        self.forwarding.mac1_keys.store(mac1_keys);
        self.forwarding.cookie_secret.store(None);
        self.identity = identity;
    }

    fn set_peer(&mut self, clock: Clock, update: PeerUpdate) {
        if self.identity.as_ref().is_some_and(|identity| identity.public == update.public_key) {
            return;
        }
        let id = match self.by_key.get(&update.public_key) {
            Some(&id) => id,
            None if update.update_only => return,
            None => self.add_peer(update.public_key, update.suite.unwrap_or(self.config.default_suite)),
        };
        if let Some(suite) = update.suite {
            self.set_suite(clock, id, suite);
        }
        if let (Some(endpoint), Some(peer)) = (update.endpoint, self.peer_mut(id)) {
            peer.path.set_endpoint(Some(endpoint));
            peer.attempts = 0;
        }
        if let (Some(chosen), Some(peer)) = (update.carrier_chosen, self.peer_mut(id)) {
            peer.path.set_carrier_chosen(chosen);
        }
        if let Some(peer) = self.peer_mut(id) {
            peer.timestamps.sent = peer.timestamps.sent.max(update.timestamps.sent);
            peer.timestamps.received = peer.timestamps.received.max(update.timestamps.received);
        }
        if let (Some(psk), Some(peer)) = (update.preshared_key, self.peer_mut(id)) {
            peer.preshared_key = psk;
        }
        self.change_allowed_ips(id, update.replace_allowed_ips, &update.allowed_ips);
        if let Some(limits) = update.limits {
            self.set_limits(clock, id, *limits);
        }
        if let Some(secs) = update.persistent_keepalive_secs {
            self.set_persistent_keepalive(clock, id, secs);
        }
        let path = self.peer(id).map(|peer| Arc::clone(&peer.path));
        if let Some(path) = path.filter(|path| path.staged_len() > 0) {
            self.need_keypair(clock, &path);
        }
        self.requeue(id);
    }

    fn add_peer(&mut self, public_key: PublicKey, suite: Suite) -> PeerId {
        let id = self.free_slots.pop().unwrap_or(PeerId(self.peers.len() as u32));
        let peer = Some(Peer::new(Arc::new(Path::new(id, public_key, suite))));
        match self.peers.get_mut(id.0 as usize) {
            Some(free) => *free = peer,
            None => self.peers.push(peer),
        }
        self.by_key.insert(public_key, id);
        self.table_changed = true;
        id
    }

    /// Pins another suite: the peer starts over with a path of its own, at the same place.
    fn set_suite(&mut self, clock: Clock, id: PeerId, suite: Suite) {
        if self.peer(id).is_none_or(|peer| peer.path.suite == suite) {
            return;
        }
        self.end_sessions(id);
        self.table_changed = true;
        let Some(peer) = self.peer_mut(id) else { return };
        let path = Path::new(id, peer.path.public_key, suite);
        path.set_endpoint(peer.path.endpoint());
        path.set_carrier_chosen(peer.path.is_carrier_chosen());
        let mut fresh = Peer::new(Arc::new(path));
        fresh.preshared_key = peer.preshared_key.clone();
        fresh.persistent_keepalive_secs = peer.persistent_keepalive_secs;
        fresh.timestamps = peer.timestamps;
        fresh.limits = peer.limits.clone();
        fresh.limits.left_bytes = peer.path.allowance.left_bytes(peer.path.traffic.carried());
        fresh.shut = peer.shut;
        fresh.path.allowance.set(&fresh.limits, fresh.shut, 0);
        fresh.queued = peer.queued;
        let old = core::mem::replace(peer, fresh);
        self.removed.push(old.path);
        self.review_access(clock, id);
        self.arm_persistent_keepalive(clock.now, id);
    }

    fn change_allowed_ips(&mut self, id: PeerId, replace: bool, changes: &[AllowedIpChange]) {
        self.table_changed |= replace || !changes.is_empty();
        if replace {
            self.allowed_ips.remove_peer(id.0);
        }
        for change in changes {
            match *change {
                AllowedIpChange::Add(prefix) => {
                    self.allowed_ips.insert(prefix, id.0);
                }
                AllowedIpChange::Remove(prefix) => {
                    self.allowed_ips.remove(prefix, id.0);
                }
            }
        }
    }

    fn set_persistent_keepalive(&mut self, clock: Clock, id: PeerId, secs: u16) {
        let Some(peer) = self.peer_mut(id) else { return };
        let was_off = peer.persistent_keepalive_secs == 0;
        peer.persistent_keepalive_secs = secs;
        if secs == 0 {
            peer.timers.stop(Timer::PersistentKeepalive);
        } else if was_off {
            self.send_persistent_keepalive(clock, id);
        } else {
            self.arm_persistent_keepalive(clock.now, id);
        }
    }

    fn remove_all_peers(&mut self) {
        let keys: Vec<_> = self.peers.iter().flatten().map(|peer| peer.path.public_key).collect();
        self.allowed_ips = AllowedIps::default();
        keys.iter().for_each(|key| self.forget_peer(key));
    }

    /// The sessions end at once; the routes with the next poll, so that many changes publish one table.
    fn forget_peer(&mut self, public_key: &PublicKey) {
        let Some(id) = self.by_key.remove(public_key) else { return };
        self.end_sessions(id);
        self.allowed_ips.remove_peer(id.0);
        if let Some(peer) = self.peers.get_mut(id.0 as usize).and_then(Option::take) {
            self.timers.update(id, peer.queued, None);
            self.removed.push(peer.path);
            self.free_slots.push(id);
        }
        self.table_changed = true;
    }

    fn roam(&mut self, path: &Arc<Path>, endpoint: Endpoint) {
        if path.heard_from(&endpoint) {
            self.tell_roamed(path, endpoint);
        }
    }

    fn tell_roamed(&mut self, path: &Arc<Path>, endpoint: Endpoint) {
        if self.id_of(path).is_some() {
            self.tell(Event::Roamed { peer: path.public_key, endpoint });
        }
    }

    /// Lanes see the table as a whole or not at all.
    fn publish_table(&mut self) {
        if !core::mem::take(&mut self.table_changed) {
            return;
        }
        let paths = self.peers.iter().map(|peer| peer.as_ref().map(|peer| Arc::clone(&peer.path))).collect();
        self.forwarding.table.store(Arc::new(RouteTable { routes: self.allowed_ips.publish(), paths }));
        for path in core::mem::take(&mut self.removed) {
            self.drop_staged(&path);
        }
    }

    fn peer(&self, id: PeerId) -> Option<&Peer> {
        self.peers.get(id.0 as usize)?.as_ref()
    }

    fn peer_mut(&mut self, id: PeerId) -> Option<&mut Peer> {
        self.peers.get_mut(id.0 as usize)?.as_mut()
    }

    /// The peer behind a path, unless it was removed since.
    fn id_of(&self, path: &Arc<Path>) -> Option<PeerId> {
        self.peer(path.id).filter(|peer| Arc::ptr_eq(&peer.path, path)).map(|_| path.id)
    }

    /// Keeps the timer queue in step with the timers of a peer.
    fn requeue(&mut self, id: PeerId) {
        let Some(peer) = self.peers.get_mut(id.0 as usize).and_then(Option::as_mut) else { return };
        let next = peer.timers.next();
        self.timers.update(id, core::mem::replace(&mut peer.queued, next), next);
    }

    fn set_timer(&mut self, id: PeerId, timer: Timer, deadline: Instant) {
        if let Some(peer) = self.peer_mut(id) {
            peer.timers.set(timer, deadline);
        }
        self.requeue(id);
    }

    fn transmit(&mut self, endpoint: Endpoint, ecn: Ecn, hop_limit: Option<u8>, contents: Vec<u8>) {
        let transmit = Transmit { endpoint, ecn, hop_limit, contents };
        self.outputs.push_back(Queued::Output(Output::Transmit(transmit)));
    }

    fn tell(&mut self, event: Event) {
        self.outputs.push_back(Queued::Output(Output::Event(event)));
    }

    fn random_bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        (self.random)(&mut bytes);
        bytes
    }

    fn reserve_index(&mut self, id: PeerId) -> u32 {
        let Self { receivers, random, .. } = self;
        receivers.reserve(id, &mut || {
            let mut bytes = [0; 4];
            random(&mut bytes);
            u32::from_le_bytes(bytes)
        })
    }
}

/// Whether an initiation begins an attempt or continues it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Attempt {
    First,
    Retry,
    /// By a way that no initiation has gone yet: the last one's age does not matter.
    Elsewhere,
}
