//! The connections that carry messages: found by number by whoever sends, each received from by one lane.
//!
//! - locked for reading by every send to another connection than the last: the table
//! - locked, touched when a connection first authenticates: whose it is, and one claim at a time
//! - relaxed atomics, written by the receiving lane and read by [`Streams::sweep`]: the times
//! - relaxed atomics, written by claims and by whoever finds a connection gone, read with every packet: what is beside
//! - a relaxed atomic of all sending lanes: what was sent twice

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};

use adit_io::carrier::stream::{Connection, Dropped, Layer, Mark, STALL, frame};
use adit_proto::endpoint::{Carrier, Endpoint};
use adit_proto::forward::Forwarding;
use adit_proto::key::PublicKey;
use adit_proto::reason::DropReason;
use adit_proto::time::Instant;
use adit_proto::wire::TRANSPORT_MIN_LEN;

use super::clock;
use super::copies::Copies;
use super::order::{LaneHandle, Order};
use crate::stream::Place;

/// What a connection looks like from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamKind {
    /// Messages on TCP.
    Tcp,
    /// Messages on TLS.
    Tls,
    /// Messages in a WebSocket on TCP, behind a server that takes the TLS off.
    Ws,
    /// Messages in a WebSocket on TLS.
    Wss,
}

impl StreamKind {
    fn carrier(self, number: u64) -> Carrier {
        match self {
            Self::Tcp => Carrier::Tcp(number),
            Self::Tls => Carrier::Tls(number),
            Self::Ws => Carrier::Ws(number),
            Self::Wss => Carrier::Wss(number),
        }
    }
}

/// A connection whose layers are ready, to be carried on by a lane.
#[derive(Debug)]
pub struct NewStream {
    /// The socket, [prepared](adit_io::carrier::stream::prepare).
    pub socket: std::net::TcpStream,
    /// What is between the messages and TCP.
    pub layer: Layer,
    /// What it looks like from outside.
    pub kind: StreamKind,
    /// The other end.
    pub remote: SocketAddr,
    /// Bytes of messages that were received already.
    pub received: Vec<u8>,
    /// What a stranger's connection counts against until a message on it has authenticated.
    pub place: Option<Place>,
}

/// A connection with its number.
#[derive(Debug)]
pub struct Stream {
    pub(super) connection: Connection,
    pub(super) endpoint: Endpoint,
    pub(super) number: u64,
    opened_millis: u64,
    peer: Mutex<Option<PublicKey>>,
    /// Whether it is there beside another one of the peer's, for flows that send little.
    is_aside: AtomicBool,
    /// The numbers of the connections beside this one, the newest first; 0 is none.
    beside: [AtomicU64; BESIDE],
    /// Of what goes by both of those.
    pub(super) copies: Copies,
    /// When another connection of the same peer took over; 0 while it is the newest.
    superseded_millis: AtomicU64,
    /// Since when a message is incomplete; 0 when none is.
    partial_millis: AtomicU64,
    received: Mutex<Vec<u8>>,
    place: Mutex<Option<Place>>,
}

/// Tokens below are those of a lane's other descriptors.
const FIRST_NUMBER: u64 = 16;
/// A connection on which nothing has authenticated for so long is closed.
const PROVE_MILLIS: u64 = 10_000;
/// How long a connection lives on after the peer opened another.
const SUPERSEDED_MILLIS: u64 = 5_000;
/// Connections of one peer; the oldest goes when it opens another.
const OF_A_PEER: usize = 2;

/// Connections beside the one that carries a peer's session.
pub(super) const BESIDE: usize = 2;

/// The connections of a driver.
#[derive(Debug)]
pub struct Streams {
    table: RwLock<HashMap<u64, Arc<Stream>>>,
    claims: Mutex<()>,
    next: AtomicU64,
    lanes: OnceLock<Vec<LaneHandle>>,
}

impl Default for Streams {
    fn default() -> Self {
        Self {
            table: RwLock::default(),
            claims: Mutex::default(),
            next: AtomicU64::new(FIRST_NUMBER),
            lanes: OnceLock::new(),
        }
    }
}

impl Streams {
    pub(super) fn set_lanes(&self, lanes: &[LaneHandle]) {
        let _ = self.lanes.set(lanes.to_vec());
    }

    /// Hands a connection to a lane; where its other end is from now on. `None` when the driver has not started, or it
    /// had to go by now.
    pub fn adopt(&self, new: NewStream) -> Option<Endpoint> {
        self.adopt_as(new, false)
    }

    /// The same for one that is there beside another: no peer is moved by what comes from it.
    pub fn adopt_aside(&self, new: NewStream) -> Option<Endpoint> {
        self.adopt_as(new, true)
    }

    fn adopt_as(&self, new: NewStream, is_aside: bool) -> Option<Endpoint> {
        let lanes = self.lanes.get()?;
        let number = self.next.fetch_add(1, Relaxed);
        let lane = lanes.get(usize::try_from(number).unwrap_or(0).checked_rem(lanes.len())?)?;
        let carrier = new.kind.carrier(number);
        let endpoint = Endpoint { carrier, ..Endpoint::udp(new.remote) };
        let stream = Arc::new(Stream {
            connection: Connection::new(new.socket, new.layer),
            endpoint,
            number,
            opened_millis: now_millis(),
            peer: Mutex::new(None),
            is_aside: AtomicBool::new(is_aside),
            beside: Default::default(),
            copies: Copies::default(),
            superseded_millis: AtomicU64::new(0),
            partial_millis: AtomicU64::new(0),
            received: Mutex::new(new.received),
            place: Mutex::new(None),
        });
        if let Some(place) = new.place {
            let this = Arc::downgrade(&stream);
            let may_stay = place.leave_by(move || {
                if let Some(this) = this.upgrade() {
                    this.connection.close();
                }
            });
            if !may_stay {
                return None;
            }
            *stream.place.lock().unwrap_or_else(PoisonError::into_inner) = Some(place);
        }
        self.table.write().unwrap_or_else(PoisonError::into_inner).insert(number, Arc::clone(&stream));
        lane.order(Order::Adopt(stream));
        Some(endpoint)
    }

    pub(super) fn get(&self, number: u64) -> Option<Arc<Stream>> {
        self.table.read().unwrap_or_else(PoisonError::into_inner).get(&number).cloned()
    }

    pub(super) fn forget(&self, number: u64) {
        let gone = self.table.write().unwrap_or_else(PoisonError::into_inner).remove(&number);
        if gone.is_some_and(|it| it.is_aside.load(Relaxed)) {
            let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
            table.values().for_each(|it| it.part_from(number));
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.table.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Ends a connection.
    pub fn close(&self, number: u64) {
        if let Some(stream) = self.get(number) {
            stream.connection.close();
        }
    }

    /// Whether there is such a connection.
    pub fn is_open(&self, number: u64) -> bool {
        self.get(number).is_some_and(|stream| !stream.connection.is_closed())
    }

    /// Whether a connection loses packets there or back.
    pub fn loses_either_way(&self, number: u64) -> bool {
        self.get(number).is_some_and(|stream| stream.connection.loses() || stream.connection.hears_losses())
    }

    pub(super) fn set_fwmark(&self, fwmark: u32) {
        for stream in self.table.read().unwrap_or_else(PoisonError::into_inner).values() {
            let _ = stream.connection.set_fwmark(fwmark);
        }
    }

    /// Sends one message of the engine.
    pub(super) fn send_message(&self, number: u64, message: &[u8], forwarding: &Forwarding) {
        let (Some(stream), Some(length)) = (self.get(number), frame::length_of(message.len())) else {
            forwarding.drops.count(DropReason::StreamGone);
            return;
        };
        // Handshake messages, keepalives and probes; the rest are packets that had been staged.
        let is_transport = message.first().is_some_and(|kind| kind & 0x0f == 4);
        let kept = !is_transport || message.len() <= TRANSPORT_MIN_LEN + 16;
        let mark = Mark { end: message.len() + length.len(), packets: 1, kept };
        let sent = stream.send(&[&length, message].concat(), &[mark], clock::now());
        count(&sent, forwarding);
    }

    /// A message of `peer` has authenticated on a connection for the first time: it is the newest of the peer's, or the
    /// one beside the others.
    pub(super) fn claim(&self, claimed: &Stream, peer: PublicKey, is_aside: bool) {
        // First: whoever sees whose it is has to see this too.
        claimed.is_aside.fetch_or(is_aside, Relaxed);
        *claimed.peer.lock().unwrap_or_else(PoisonError::into_inner) = Some(peer);
        drop(claimed.place.lock().unwrap_or_else(PoisonError::into_inner).take());
        // What is beside what is written as a whole, after all claims so far.
        let _claims = self.claims.lock().unwrap_or_else(PoisonError::into_inner);
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        if !table.contains_key(&claimed.number) {
            // It has ended meanwhile, and must not stand beside anything.
            return;
        }
        let others = table
            .values()
            .filter(|it| it.number != claimed.number)
            .filter(|it| *it.peer.lock().unwrap_or_else(PoisonError::into_inner) == Some(peer));
        let (mut asides, mut others): (Vec<_>, Vec<_>) = others.partition(|it| it.is_aside.load(Relaxed));
        asides.sort_by_key(|it| std::cmp::Reverse(it.number));
        if claimed.is_aside.load(Relaxed) {
            let at = asides.partition_point(|it| it.number > claimed.number);
            let mut numbers: Vec<u64> = asides.iter().map(|it| it.number).collect();
            numbers.insert(at, claimed.number);
            let (kept, too_many) = numbers.split_at(numbers.len().min(BESIDE));
            too_many.iter().filter_map(|number| table.get(number)).for_each(|it| it.connection.close());
            others.iter().for_each(|it| it.stand_beside(kept));
            return;
        }
        // Those opened beside this one, which only speaks for the first time now; a peer that comes by another way has
        // left those beside the old way too.
        let (kept, left) = asides.split_at(asides.partition_point(|it| it.number > claimed.number));
        claimed.stand_beside(&kept.iter().map(|it| it.number).collect::<Vec<_>>());
        left.iter().for_each(|it| it.connection.close());
        others.sort_by_key(|it| std::cmp::Reverse(it.number));
        for (at, other) in others.into_iter().enumerate() {
            let _ = other.superseded_millis.compare_exchange(0, now_millis(), Relaxed, Relaxed);
            if at + 1 >= OF_A_PEER {
                other.connection.close();
            }
        }
    }

    /// `peer` is reached by this connection: we opened it, and the handshake went by it, which is no message of a session.
    pub fn settle(&self, peer: &PublicKey, main: Endpoint) {
        let main = main.carrier.connection().and_then(|number| self.get(number));
        if let Some(main) = main.filter(|it| it.peer() != Some(*peer)) {
            self.claim(&main, *peer, false);
        }
    }

    /// Flows to `peer` that send little go by that connection from now on, beside the first one.
    pub fn accompany(&self, peer: &PublicKey, aside: Endpoint) {
        let Some(aside) = aside.carrier.connection().and_then(|number| self.get(number)) else { return };
        self.claim(&aside, *peer, true);
    }

    /// Closes what has had its time. To be called about once a second while there are any.
    pub(super) fn sweep(&self) {
        let now = now_millis();
        let over = |since: u64, limit: u64| since != 0 && now.saturating_sub(since) >= limit;
        for stream in self.table.read().unwrap_or_else(PoisonError::into_inner).values() {
            let is_unproven = stream.peer.lock().unwrap_or_else(PoisonError::into_inner).is_none();
            let ends = is_unproven && over(stream.opened_millis, PROVE_MILLIS)
                || over(stream.superseded_millis.load(Relaxed), SUPERSEDED_MILLIS)
                || over(stream.partial_millis.load(Relaxed), STALL.as_millis() as u64);
            if ends {
                stream.connection.close();
            }
        }
    }
}

impl Stream {
    pub(super) fn take_received(&self) -> Vec<u8> {
        std::mem::take(&mut *self.received.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn peer(&self) -> Option<PublicKey> {
        *self.peer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The numbers of the connections beside this one, for flows that send little: the newest first.
    pub(super) fn beside(&self) -> [Option<u64>; BESIDE] {
        self.beside.each_ref().map(|it| Some(it.load(Relaxed)).filter(|number| *number != 0))
    }

    fn stand_beside(&self, numbers: &[u64]) {
        for (at, place) in self.beside.iter().enumerate() {
            place.store(numbers.get(at).copied().unwrap_or(0), Relaxed);
        }
    }

    /// That connection is gone; unless there is another in its place by now.
    pub(super) fn part_from(&self, gone: u64) {
        for place in self.beside.iter().filter(|it| it.load(Relaxed) == gone) {
            let _ = place.compare_exchange(gone, 0, Relaxed, Relaxed);
        }
    }

    fn has_company(&self) -> bool {
        self.beside().iter().any(Option::is_some)
    }

    /// Hands messages to the connection, as [`Connection::send`].
    pub(super) fn send(&self, batch: &[u8], marks: &[Mark], now: Instant) -> Dropped {
        self.connection.send(batch, marks, self.has_company(), now.0)
    }

    /// Sends what waits, as [`Connection::flush`].
    pub(super) fn flush(&self, now: Instant) -> io::Result<Dropped> {
        self.connection.flush(self.has_company(), now.0)
    }

    /// Notes whether a message is incomplete, and whether it is the same as before.
    pub(super) fn note_partial(&self, is_partial: bool, moved_on: bool) {
        let since = match is_partial {
            false => 0,
            true if !moved_on && self.partial_millis.load(Relaxed) != 0 => return,
            true => now_millis(),
        };
        self.partial_millis.store(since, Relaxed);
    }
}

pub(super) fn count(dropped: &Dropped, forwarding: &Forwarding) {
    let reasons = [
        (DropReason::StreamFull, dropped.full),
        (DropReason::StreamLate, dropped.late),
        (DropReason::StreamGone, dropped.gone),
    ];
    for (reason, packets) in reasons {
        if packets > 0 {
            forwarding.drops.add(reason, packets);
        }
    }
}

/// Never 0.
fn now_millis() -> u64 {
    clock::now().as_millis().max(1)
}
