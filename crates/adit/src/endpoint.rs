//! Names of peers' endpoints: resolved before the routes change, resolved again when a peer is silent.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::time::{Duration, Instant};

use adit_proto::key::PublicKey;
use crossbeam_channel::{Receiver, Sender, bounded};

use crate::forwarder::{self, Upstream};

/// A host, by name or address, and a port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostPort {
    /// A DNS name or an address without brackets.
    pub host: String,
    /// The UDP port.
    pub port: u16,
}

impl HostPort {
    /// The address, when no name has to be resolved for it.
    pub fn address(&self) -> Option<SocketAddr> {
        self.host.parse().ok().map(|host: IpAddr| (host, self.port).into())
    }
}

impl std::fmt::Display for HostPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

/// Why a name has no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// The resolver says so.
    #[error("cannot resolve {name}: {reason}; check the name and this machine's DNS")]
    Failed {
        /// The name.
        name: String,
        /// What the resolver said.
        reason: String,
    },
    /// The resolver says nothing.
    #[error("cannot resolve {name}: no answer in {waited_secs} s; check this machine's DNS and network")]
    TimedOut {
        /// The name.
        name: String,
        /// How long we waited.
        waited_secs: u64,
    },
}

/// Every address of `name` in the order in which the system prefers them, never empty.
///
/// # Errors
/// [`ResolveError`], after `timeout` at the latest.
pub fn resolve(name: &HostPort, timeout: Duration) -> Result<Vec<SocketAddr>, ResolveError> {
    let host = name.host.clone();
    if let Some(address) = name.address() {
        return Ok(vec![address]);
    }
    let (sender, receiver) = bounded(1);
    let (asked, port) = (host.clone(), name.port);
    // The system's resolver cannot be cancelled: a thread that hangs in it is left behind.
    let spawned = std::thread::Builder::new().name("resolve".into()).spawn(move || {
        let _ = sender.send((asked.as_str(), port).to_socket_addrs().map(Vec::from_iter));
    });
    let failed = |reason: String| ResolveError::Failed { name: host.clone(), reason };
    spawned.map_err(|error| failed(error.to_string()))?;
    match receiver.recv_timeout(timeout) {
        Ok(Ok(addresses)) if addresses.is_empty() => Err(failed("it has no address".to_owned())),
        Ok(Ok(mut addresses)) => {
            addresses.dedup();
            Ok(addresses)
        }
        Ok(Err(error)) => Err(failed(error.to_string())),
        Err(_) => Err(ResolveError::TimedOut { name: host.clone(), waited_secs: timeout.as_secs() }),
    }
}

/// The same beside a tunnel: `servers` are asked first, for the system's resolver may lead through one that is silent.
///
/// # Errors
/// [`ResolveError`], after some seconds at the latest.
pub fn resolve_beside(name: &HostPort, servers: &Upstream) -> Result<Vec<SocketAddr>, ResolveError> {
    if let Some(address) = name.address() {
        return Ok(vec![address]);
    }
    match forwarder::look_up(&name.host, servers) {
        none if none.is_empty() => resolve(name, TIMEOUT),
        addresses => Ok(addresses.into_iter().map(|it| (it, name.port).into()).collect()),
    }
}

/// The first of `addresses` that this host has a route to, else the first.
pub fn preferred(addresses: &[SocketAddr]) -> Option<SocketAddr> {
    addresses.iter().find(|address| has_route(address)).or(addresses.first()).copied()
}

/// Connecting a UDP socket sends nothing; it fails where there is no route.
fn has_route(address: &SocketAddr) -> bool {
    let local: SocketAddr = match address {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    UdpSocket::bind(local).and_then(|socket| socket.connect(address)).is_ok()
}

/// The address to try after `current` stayed silent: the next that has a route, in a circle.
fn next_after(addresses: &[SocketAddr], current: SocketAddr) -> Option<SocketAddr> {
    match addresses.iter().position(|address| *address == current) {
        None => preferred(addresses),
        Some(at) => {
            let (before, after) = addresses.split_at(at);
            let circle: Vec<_> = after.iter().skip(1).chain(before).copied().collect();
            circle.iter().find(|address| has_route(address)).copied()
        }
    }
}

/// The peers that are configured by name.
#[derive(Debug)]
pub struct Endpoints {
    names: HashMap<PublicKey, Named>,
    beside: Upstream,
    answers: Receiver<Answer>,
    sender: Sender<Answer>,
}

#[derive(Debug)]
struct Named {
    name: HostPort,
    known: Vec<SocketAddr>,
    current: Option<SocketAddr>,
    not_before: Instant,
    wait: Duration,
    no_doubt_before: Instant,
    doubt_wait: Duration,
    asking: bool,
}

/// What the resolver said about a peer.
#[derive(Debug)]
pub struct Answer {
    peer: PublicKey,
    why: Why,
    found: Result<Vec<SocketAddr>, ResolveError>,
}

/// Why a name is asked for again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    /// Handshakes go unanswered: another address is tried, be it one that was known.
    Silent,
    /// Packets go unanswered for a moment: another address is tried only when the name has left this one.
    Doubt,
}

const WAIT_MIN: Duration = Duration::from_secs(10);
const WAIT_MAX: Duration = Duration::from_secs(300);
const DOUBT_WAIT_MIN: Duration = Duration::from_secs(4);
const TIMEOUT: Duration = Duration::from_secs(10);

/// Each question is a thread; a peer that is turned away here is asked for again later.
const QUESTIONS_MAX: usize = 16;

impl Default for Endpoints {
    fn default() -> Self {
        let (sender, answers) = bounded(QUESTIONS_MAX);
        Self { names: HashMap::new(), beside: Upstream::default(), answers, sender }
    }
}

impl Endpoints {
    /// Watches `peer`, whose `name` resolved to `known` and which is tried at `current`.
    pub fn watch(
        &mut self,
        peer: PublicKey,
        name: HostPort,
        known: Vec<SocketAddr>,
        current: Option<SocketAddr>,
    ) {
        let now = Instant::now();
        let named = Named {
            name,
            known,
            current,
            not_before: now,
            wait: WAIT_MIN,
            no_doubt_before: now,
            doubt_wait: DOUBT_WAIT_MIN,
            asking: false,
        };
        self.names.insert(peer, named);
    }

    /// Asks these servers first, beside the tunnel: the system's resolver may lead through the tunnel that is silent.
    pub fn ask_beside(&mut self, upstream: Upstream) {
        self.beside = upstream;
    }

    /// Asks for the addresses of peers that have none yet.
    pub fn ask_for_missing(&mut self) {
        let missing: Vec<_> =
            self.names.iter().filter(|(_, named)| named.current.is_none()).map(|(peer, _)| *peer).collect();
        for peer in missing {
            self.silent(&peer);
        }
    }

    /// Forgets the peers that `keep` does not name.
    pub fn retain(&mut self, keep: impl Fn(&PublicKey, &HostPort) -> bool) {
        self.names.retain(|peer, named| keep(peer, &named.name));
    }

    /// Whether `peer` is watched.
    pub fn watches(&self, peer: &PublicKey) -> bool {
        self.names.contains_key(peer)
    }

    /// The peer answers at `endpoint`: the waits between questions start over.
    pub fn heard(&mut self, peer: &PublicKey, endpoint: SocketAddr) {
        if let Some(named) = self.names.get_mut(peer) {
            named.current = Some(endpoint);
            named.wait = WAIT_MIN;
            named.doubt_wait = DOUBT_WAIT_MIN;
        }
    }

    /// Whether there is any.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// The peer has not answered for a moment: asks whether its name has moved, ever more rarely.
    pub fn doubt(&mut self, peer: &PublicKey) {
        self.ask(peer, Why::Doubt);
    }

    /// The peer is silent: asks for its addresses again, unless that was done a moment ago.
    pub fn silent(&mut self, peer: &PublicKey) {
        self.ask(peer, Why::Silent);
    }

    fn ask(&mut self, peer: &PublicKey, why: Why) {
        let questions = self.names.values().filter(|named| named.asking).count();
        let Some(named) = self.names.get_mut(peer) else { return };
        let now = Instant::now();
        let (not_before, wait) = match why {
            Why::Silent => (&mut named.not_before, &mut named.wait),
            Why::Doubt => (&mut named.no_doubt_before, &mut named.doubt_wait),
        };
        if named.asking || now < *not_before || questions >= QUESTIONS_MAX {
            return;
        }
        named.asking = true;
        *not_before = now + *wait;
        *wait = (*wait * 2).min(WAIT_MAX);
        let (peer, name, sender) = (*peer, named.name.clone(), self.sender.clone());
        let beside = self.beside.clone();
        let spawned = std::thread::Builder::new().name("endpoint".into()).spawn(move || {
            let _ = sender.send(Answer { peer, why, found: resolve_beside(&name, &beside) });
        });
        if let Err(error) = spawned {
            tracing::warn!(%error, "no thread to resolve a name");
            named.asking = false;
        }
    }

    /// Where answers arrive; give each to [`Endpoints::answered`].
    pub fn answers(&self) -> Receiver<Answer> {
        self.answers.clone()
    }

    /// The peer and the address to try now, when it is another than before.
    pub fn answered(&mut self, answer: Answer) -> Option<(PublicKey, SocketAddr)> {
        let named = self.names.get_mut(&answer.peer)?;
        named.asking = false;
        match answer.found {
            Ok(addresses) => named.known = addresses,
            // Without DNS (it may lead through the silent tunnel) the addresses known before are tried in turn.
            Err(error) => tracing::info!("{error}"),
        }
        if answer.why == Why::Doubt && named.current.is_some_and(|it| named.known.contains(&it)) {
            return None;
        }
        let next = match named.current {
            Some(current) => next_after(&named.known, current),
            None => preferred(&named.known),
        }?;
        if named.current == Some(next) {
            return None;
        }
        named.current = Some(next);
        Some((answer.peer, next))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: PublicKey = PublicKey([1; 32]);

    fn name(host: &str) -> HostPort {
        HostPort { host: host.to_owned(), port: 51820 }
    }

    fn loopback(last: u8) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, last], 51820))
    }

    fn watching(known: &[SocketAddr]) -> Endpoints {
        let mut endpoints = Endpoints::default();
        endpoints.watch(PEER, name("peer.test"), known.to_vec(), known.first().copied());
        endpoints
    }

    fn answer(found: &[SocketAddr]) -> Answer {
        Answer { peer: PEER, why: Why::Silent, found: Ok(found.to_vec()) }
    }

    #[test]
    fn an_address_needs_no_resolver() {
        assert_eq!(resolve(&name("192.0.2.1"), TIMEOUT), Ok(vec!["192.0.2.1:51820".parse().unwrap()]));
        assert_eq!(resolve(&name("2001:db8::1"), TIMEOUT), Ok(vec!["[2001:db8::1]:51820".parse().unwrap()]));
    }

    #[test]
    fn localhost_resolves_and_an_impossible_name_says_why_in_time() {
        let started = Instant::now();
        assert!(resolve(&name("localhost"), TIMEOUT).unwrap().iter().all(|at| at.ip().is_loopback()));
        let error = resolve(&name("no such name"), Duration::from_secs(3)).unwrap_err();
        assert!(error.to_string().contains("no such name"), "{error}");
        assert!(started.elapsed() < Duration::from_secs(8));
    }

    #[test]
    fn a_silent_peer_is_tried_at_its_next_address_in_a_circle() {
        let all = [loopback(1), loopback(2), loopback(3)];
        let mut endpoints = watching(&all);
        for expected in [2, 3, 1, 2] {
            assert_eq!(endpoints.answered(answer(&all)), Some((PEER, loopback(expected))));
        }
    }

    #[test]
    fn a_peer_that_moved_is_tried_at_its_new_address_and_one_that_did_not_is_left() {
        let mut endpoints = watching(&[loopback(1)]);
        assert_eq!(endpoints.answered(answer(&[loopback(1)])), None);
        assert_eq!(endpoints.answered(answer(&[loopback(9)])), Some((PEER, loopback(9))));
    }

    #[test]
    fn a_peer_in_doubt_is_left_where_its_name_still_points_and_followed_where_it_went() {
        let doubt = |found: &[SocketAddr]| Answer { why: Why::Doubt, ..answer(found) };
        let mut endpoints = watching(&[loopback(1), loopback(2)]);
        assert_eq!(endpoints.answered(doubt(&[loopback(2), loopback(1)])), None);
        assert_eq!(endpoints.answered(doubt(&[loopback(9)])), Some((PEER, loopback(9))));
        endpoints.doubt(&PEER);
        let waits = |endpoints: &Endpoints| (endpoints.names[&PEER].doubt_wait, endpoints.names[&PEER].wait);
        assert_eq!(waits(&endpoints), (DOUBT_WAIT_MIN * 2, WAIT_MIN), "silence is asked about all the same");
        endpoints.heard(&PEER, loopback(9));
        assert_eq!(waits(&endpoints), (DOUBT_WAIT_MIN, WAIT_MIN));
    }

    #[test]
    fn without_dns_the_addresses_known_before_are_tried() {
        let mut endpoints = watching(&[loopback(1), loopback(2)]);
        let error = ResolveError::TimedOut { name: "peer.test".to_owned(), waited_secs: 1 };
        let answer = Answer { peer: PEER, why: Why::Silent, found: Err(error) };
        assert_eq!(endpoints.answered(answer), Some((PEER, loopback(2))));
    }

    #[test]
    fn few_names_are_resolved_at_once() {
        let mut endpoints = Endpoints::default();
        for number in 0..40 {
            endpoints.watch(PublicKey([number; 32]), name("peer.test"), Vec::new(), None);
        }
        endpoints.ask_for_missing();
        endpoints.ask_for_missing();
        assert_eq!(endpoints.names.values().filter(|named| named.asking).count(), QUESTIONS_MAX);
    }

    #[test]
    fn questions_about_a_silent_peer_are_rare() {
        let mut endpoints = watching(&[loopback(1)]);
        endpoints.silent(&PEER);
        assert!(endpoints.names[&PEER].asking);
        let first = endpoints.names[&PEER].not_before;
        endpoints.silent(&PEER);
        assert_eq!(endpoints.names[&PEER].not_before, first);
        assert!(endpoints.names[&PEER].wait > WAIT_MIN);
        endpoints.heard(&PEER, loopback(1));
        assert_eq!(endpoints.names[&PEER].wait, WAIT_MIN);
    }
}
