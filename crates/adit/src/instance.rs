//! A running gateway or client: who it is, and what wakes it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use adit_proto::endpoint::Carrier;
use adit_proto::event::{Command, Event, PeerStatus, PeerUpdate};
use adit_proto::key::PublicKey;
use adit_proto::reason::DropReason;
use crossbeam_channel::{Receiver, Sender, bounded, select};

mod pulse;

use self::pulse::Pulse;
use crate::config::PeerLimits;
use crate::control::{Answer, Asked, Verb};
use crate::daemon::Signal;
use crate::dial::Dial;
use crate::driver::{Driver, DriverEvent};
use crate::endpoint::{self, Endpoints};
use crate::events::{Event as Record, EventLog, Leaving};
use crate::grant::Grant;
use crate::keys;
use crate::limits::LimitsReport;
use crate::roaming::Roaming;
use crate::status::{PeerReport, QueueReport, Report, Role};
use crate::upkeep::{Noticed, Upkeep};

/// What an instance must act on; everything else it has dealt with itself.
#[derive(Debug)]
pub enum Wake {
    /// Asked to end.
    Stop,
    /// Asked to read the configuration again, and perhaps to answer what came of it.
    Reload(Option<Asked>),
    /// Asked for a way beside the tunnel; to be answered.
    Exclude(Asked),
    /// A peer was heard anew, or at another endpoint.
    Heard,
    /// Something changed on the host; give it to [`Upkeep::tend`].
    Host(Noticed),
    /// The time is over.
    Tick,
    /// It cannot go on, for this reason.
    Failed(String),
}

/// How many questions of its own threads may wait; one more is refused.
pub const INNER_MAX: usize = 4;

/// A running gateway or client.
#[derive(Debug)]
pub struct Instance {
    /// What it does.
    pub role: Role,
    /// Its device.
    pub interface: String,
    /// Its inside addresses as `status` prints them.
    pub addresses: Vec<String>,
    /// The largest inside packet.
    pub mtu_bytes: u32,
    /// The packets.
    pub driver: Driver,
    /// The peers that are configured by name.
    pub endpoints: Endpoints,
    /// What peers may use.
    pub limits: HashMap<PublicKey, PeerLimits>,
    /// What the gateway lets us use.
    pub grant: Option<Grant>,
    /// What chooses how a gateway is reached, where that is to be chosen.
    pub dial: Option<Dial>,
    /// The peers that we call, and whose way is followed therefore.
    pub followed: Vec<PublicKey>,
    /// Where the inside APIs of peers answer, as far as known.
    pub inside_apis: HashMap<PublicKey, Vec<SocketAddr>>,
    /// What keeps the host as it should be.
    pub upkeep: Upkeep,
    /// Peers that are none yet: the invited. Nothing is told about them.
    pub hidden: HashSet<PublicKey>,
    roaming: Roaming,
    heard: HashMap<PublicKey, u64>,
    /// Those we call in vain.
    unanswered: HashSet<PublicKey>,
    events_to: EventLog,
    pulse: Pulse,
    inner: (Sender<Asked>, Receiver<Asked>),
    names: HashMap<PublicKey, (usize, Option<String>)>,
    since: SystemTime,
    signals: Receiver<Signal>,
    questions: Receiver<Asked>,
    events: Receiver<DriverEvent>,
    answers: Receiver<endpoint::Answer>,
}

impl Instance {
    /// An instance that listens to signals, questions on its control socket, and its driver.
    pub fn new(
        role: Role,
        interface: String,
        driver: Driver,
        signals: Receiver<Signal>,
        questions: Receiver<Asked>,
    ) -> Self {
        let endpoints = Endpoints::default();
        Self {
            role,
            interface,
            addresses: Vec::new(),
            mtu_bytes: 0,
            limits: HashMap::new(),
            grant: None,
            followed: Vec::new(),
            roaming: Roaming::default(),
            inside_apis: HashMap::new(),
            upkeep: Upkeep::default(),
            hidden: HashSet::new(),
            heard: HashMap::new(),
            unanswered: HashSet::new(),
            events_to: EventLog::off(),
            pulse: Pulse::default(),
            inner: bounded(INNER_MAX),
            names: HashMap::new(),
            since: SystemTime::now(),
            signals,
            questions,
            events: driver.events(),
            answers: endpoints.answers(),
            endpoints,
            dial: None,
            driver,
        }
    }

    /// Writes down from now on who comes and goes.
    pub fn write_events_to(&mut self, log: EventLog) {
        self.events_to = log;
        let role = match self.role {
            Role::Gateway => "gateway",
            Role::Client => "client",
        };
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let interface = self.interface.clone();
        self.events_to.record(&Record::Started { interface, role: role.to_owned(), version });
    }

    /// Writes down that it ends.
    pub fn ends(&self) {
        self.events_to.record(&Record::Stopped { interface: self.interface.clone() });
    }

    /// Asks this instance from another thread of its process. At most [`INNER_MAX`] questions wait.
    pub fn asker(&self) -> Sender<Asked> {
        self.inner.0.clone()
    }

    /// The peers with their names, in the order in which `status` lists them.
    pub fn name_peers(&mut self, peers: impl IntoIterator<Item = (PublicKey, Option<String>)>) {
        let before = std::mem::take(&mut self.names);
        self.names = peers.into_iter().enumerate().map(|(at, (key, name))| (key, (at, name))).collect();
        let gone: Vec<_> =
            self.heard.keys().filter(|peer| !self.names.contains_key(*peer)).copied().collect();
        for peer in gone {
            let name = before.get(&peer).and_then(|(_, name)| name.clone());
            self.left(&peer, name.unwrap_or_else(|| keys::public_text(&peer)), Leaving::Removed);
        }
    }

    /// The name of a peer for people.
    pub fn name_of(&self, peer: &PublicKey) -> String {
        match self.names.get(peer) {
            Some((_, Some(name))) => name.clone(),
            _ => keys::public_text(peer),
        }
    }

    /// Deals with what happens until there is something to act on, or `limit` is over.
    pub fn wait(&mut self, limit: Duration) -> Wake {
        let deadline = Instant::now() + limit;
        let host_events = self.upkeep.events();
        loop {
            self.pulse.beat(&self.driver, &self.events_to);
            let ways = self.roaming.changes();
            let wake = select! {
                recv(ways) -> changed => {
                    if changed.is_err() {
                        self.roaming.stop_watching();
                    }
                    self.follow_ways();
                    None
                }
                recv(self.signals) -> signal => match signal {
                    Ok(Signal::Reload) => Some(Wake::Reload(None)),
                    Ok(Signal::Stop) | Err(_) => Some(Wake::Stop),
                },
                recv(self.questions) -> asked => match asked {
                    Ok(asked) => {
                        if let (Verb::Status, Some(grant), false) = (&asked.verb, &self.grant, self.heard.is_empty()) {
                            grant.refresh();
                        }
                        self.answer(asked)
                    }
                    Err(_) => Some(Wake::Failed("the control socket closed".to_owned())),
                },
                recv(self.inner.1) -> asked => asked.ok().and_then(|asked| self.answer(asked)),
                recv(self.events) -> event => match event {
                    Ok(event) => self.happened(event),
                    Err(_) => Some(Wake::Failed("the packet engine ended".to_owned())),
                },
                recv(host_events) -> event => match event {
                    Ok(event) => Some(Wake::Host(event)),
                    // Only with the watching threads, which have said why they ended.
                    Err(_) => {
                        self.upkeep.stop();
                        Some(Wake::Tick)
                    }
                },
                recv(self.answers) -> answer => {
                    self.resolved(answer.ok());
                    None
                }
                default(self.roaming.patience(deadline.saturating_duration_since(Instant::now()))) => {
                    let due = self.roaming.due();
                    self.speak(due);
                    (Instant::now() >= deadline).then_some(Wake::Tick)
                }
            };
            if let Some(wake) = wake {
                return wake;
            }
        }
    }

    /// Looks whether the ways to the peers that we call lead elsewhere now, and speaks to those at once.
    pub fn follow_ways(&mut self) {
        if self.followed.is_empty() {
            return;
        }
        if self.roaming.changes.is_none() {
            self.roaming.watch();
        }
        let device = self.driver.snapshot();
        let called = device.peers.iter().filter(|peer| self.followed.contains(&peer.public_key));
        let places: Vec<_> =
            called.filter_map(|peer| Some((peer.public_key, peer.endpoint?.remote.ip()))).collect();
        let moved = self.roaming.look(&places, device.fwmark);
        for peer in &moved {
            tracing::info!(peer = self.name_of(peer), "the way to the peer is another");
        }
        if let (Some(dial), false) = (&self.dial, moved.is_empty()) {
            dial.network_changed();
        }
        self.speak(moved);
    }

    fn speak(&self, peers: Vec<PublicKey>) {
        if !peers.is_empty() {
            self.driver.apply(peers.into_iter().map(Command::Reconnect).collect());
        }
    }

    fn answer(&mut self, asked: Asked) -> Option<Wake> {
        match asked.verb {
            Verb::Status => {
                asked.answer(Answer::Status(Box::new(self.report())));
                None
            }
            Verb::Reload => Some(Wake::Reload(Some(asked))),
            Verb::Exclude if self.role == Role::Client => Some(Wake::Exclude(asked)),
            Verb::Exclude => {
                asked.answer(Answer::Failed(
                    "a gateway has no tunnel that something could go beside".to_owned(),
                ));
                None
            }
            Verb::Down => {
                asked.answer(Answer::Stopping);
                Some(Wake::Stop)
            }
        }
    }

    fn happened(&mut self, event: DriverEvent) -> Option<Wake> {
        if let Some(dial) = &self.dial {
            dial.tell(&event);
        }
        match event {
            DriverEvent::StreamEnded(_) => None,
            DriverEvent::DeviceGone => {
                Some(Wake::Failed(format!("the device {} was removed", self.interface)))
            }
            DriverEvent::Failed(reason) => Some(Wake::Failed(reason)),
            DriverEvent::Protocol(event) => self.note(&event),
        }
    }

    fn note(&mut self, event: &Event) -> Option<Wake> {
        match event {
            Event::SessionEstablished { peer, endpoint, handshake_time } => {
                let by_udp = endpoint.carrier == Carrier::Udp;
                let (name, carrier, endpoint) = (self.name_of(peer), endpoint.carrier, endpoint.remote);
                self.unanswered.remove(peer);
                let is_new = !self.heard.contains_key(peer);
                if is_new {
                    self.heard.insert(*peer, unix_secs(SystemTime::now()));
                }
                if is_new && !self.hidden.contains(peer) {
                    self.events_to.record(&Record::Connected {
                        interface: self.interface.clone(),
                        peer: name.clone(),
                        public_key: keys::public_text(peer),
                        endpoint: endpoint.to_string(),
                        carrier: carrier.name().to_owned(),
                    });
                }
                match (handshake_time, is_new) {
                    (Some(took), true) => {
                        tracing::info!(peer = name, %endpoint, "session established in {} ms", took.as_millis());
                    }
                    (None, true) => tracing::info!(peer = name, %endpoint, "session established"),
                    (_, false) => tracing::debug!(peer = name, %endpoint, "session renewed"),
                }
                if by_udp {
                    self.endpoints.heard(peer, endpoint);
                }
                self.roaming.heard(peer);
                // A peer that is reached by a connection has an endpoint only now. Without a look now, the first change
                // would be taken for the first look.
                if self.followed.contains(peer) && !self.roaming.knows(peer) {
                    self.follow_ways();
                }
                return Some(Wake::Heard);
            }
            Event::Roamed { peer, endpoint } => {
                let (carrier, endpoint) = (endpoint.carrier, endpoint.remote);
                if self.heard.contains_key(peer) {
                    tracing::info!(peer = self.name_of(peer), %endpoint, carrier = carrier.name(), "peer moved");
                }
                if carrier == Carrier::Udp {
                    self.endpoints.heard(peer, endpoint);
                }
                return Some(Wake::Heard);
            }
            Event::WayAnswered { .. } => {}
            Event::EndpointSilent { peer, attempts } => {
                tracing::debug!(peer = self.name_of(peer), attempts, "no answer to handshakes so far");
                self.unanswered.insert(*peer);
                self.endpoints.silent(peer);
            }
            Event::HandshakeGaveUp { peer } => {
                let name = self.name_of(peer);
                tracing::info!(peer = name, "no answer to handshakes for 90 s; waiting for traffic");
                self.left(peer, name, Leaving::NoAnswer);
                self.unanswered.insert(*peer);
                self.endpoints.silent(peer);
            }
            Event::AccessChanged { peer, shut } => {
                let name = self.name_of(peer);
                match shut {
                    Some(DropReason::AccessExpired) => {
                        tracing::info!(peer = name, "access has expired; the peer is refused from now on");
                    }
                    Some(_) => tracing::info!(
                        peer = name,
                        "the hours of the peer are over; it is refused until the next"
                    ),
                    None => tracing::info!(peer = name, "the peer may connect again"),
                }
                if shut.is_some() {
                    self.left(peer, name, Leaving::NoAccess);
                }
            }
            Event::KeysErased { peer } => {
                let name = self.name_of(peer);
                tracing::info!(peer = name, "session ended: the peer is idle");
                self.left(peer, name, Leaving::Idle);
            }
        }
        None
    }

    fn left(&mut self, peer: &PublicKey, name: String, why: Leaving) {
        if self.heard.remove(peer).is_some() && !self.hidden.contains(peer) {
            self.events_to.record(&Record::Disconnected {
                interface: self.interface.clone(),
                peer: name,
                public_key: keys::public_text(peer),
                why,
            });
        }
    }

    fn resolved(&mut self, answer: Option<endpoint::Answer>) {
        let Some((peer, address)) = answer.and_then(|answer| self.endpoints.answered(answer)) else { return };
        tracing::info!(peer = self.name_of(&peer), %address, "trying another endpoint");
        if self.dial.as_ref().is_some_and(|dial| dial.has_moved(&peer, address)) {
            return;
        }
        let mut update = PeerUpdate::new(peer);
        update.update_only = true;
        update.endpoint = Some(adit_proto::endpoint::Endpoint::udp(address));
        self.driver.apply(vec![Command::SetPeer(update), Command::Initiate(peer)]);
    }

    /// How it is now.
    pub fn report(&self) -> Report {
        let mut device = self.driver.snapshot();
        device.peers.retain(|peer| !self.hidden.contains(&peer.public_key));
        let place = |peer: &PeerStatus| {
            (self.names.get(&peer.public_key).map_or(usize::MAX, |(at, _)| *at), peer.public_key)
        };
        device.peers.sort_by_key(place);
        Report {
            role: self.role,
            interface: self.interface.clone(),
            pid: std::process::id(),
            since_unix_secs: unix_secs(self.since),
            public_key: device.private_key.as_ref().map(|secret| keys::public_text(&secret.public_key())),
            addresses: self.addresses.clone(),
            listen_port: device.listen_port,
            mtu_bytes: self.mtu_bytes,
            lanes: device.lanes,
            offload: device.offload,
            queues: device
                .queues
                .iter()
                .map(|queue| {
                    let report = QueueReport { length: queue.length, capacity: queue.capacity };
                    (queue.name.to_owned(), report)
                })
                .collect(),
            fwmark: device.fwmark,
            granted: self.grant.as_ref().and_then(Grant::known),
            host: Some(self.upkeep.facts.clone()),
            peers: device.peers.iter().map(|peer| self.peer_report(peer)).collect(),
            drops: device
                .drops
                .iter()
                .filter(|(_, count)| *count > 0)
                .map(|(reason, count)| (reason.label().to_owned(), *count))
                .collect::<BTreeMap<_, _>>(),
        }
    }

    fn peer_report(&self, peer: &PeerStatus) -> PeerReport {
        let now = crate::wall_clock::now();
        let place = peer.heard_at.or(peer.endpoint);
        PeerReport {
            public_key: keys::public_text(&peer.public_key),
            name: self.names.get(&peer.public_key).and_then(|(_, name)| name.clone()),
            endpoint: place.map(|endpoint| endpoint.remote.to_string()),
            carrier: peer.heard_at.map(|endpoint| endpoint.carrier.name().to_owned()),
            local: place.and_then(|endpoint| endpoint.local).map(|local| local.to_string()),
            connected_since_unix_secs: self.heard.get(&peer.public_key).copied(),
            suite: peer.suite.name().to_owned(),
            allowed_ips: peer.allowed_ips.iter().map(ToString::to_string).collect(),
            last_handshake_secs_ago: peer.last_handshake.map(|at| now.saturating_sub(at.secs)),
            handshake_rtt_micros: peer
                .handshake_rtt
                .map(|took| u64::try_from(took.as_micros()).unwrap_or(u64::MAX)),
            persistent_keepalive_secs: peer.persistent_keepalive_secs,
            inside_api: self.inside_apis.get(&peer.public_key).cloned().unwrap_or_default(),
            limits: self
                .limits
                .get(&peer.public_key)
                .and_then(|limits| LimitsReport::of(limits, &peer.allowance, now)),
            rx_bytes: peer.rx_bytes,
            tx_bytes: peer.tx_bytes,
            rx_packets: peer.rx_packets,
            tx_packets: peer.tx_packets,
            rate: self.pulse.rate_of(&peer.public_key),
            staged: peer.staged,
            has_session: peer.has_session,
            path_mtu_bytes: peer.path_mtu,
            is_unanswered: self.unanswered.contains(&peer.public_key),
        }
    }
}

/// Whole seconds since 1970.
pub fn unix_secs(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
