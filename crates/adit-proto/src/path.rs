//! A peer as the lanes see it: where it is, which keypair sends, what waits, what happened.
//!
//! - swapped by the engine, read by lanes: current and next keypair
//! - swapped by engine and lanes, the last one counts: the place where the peer is, and whether it was heard there. What answers a packet leaves before any notice of the
//!   packet's origin arrives, and sent to where the peer was, it would make the peer move back in turn
//! - locked: the staged packets, touched only while there is no usable keypair
//! - relaxed atomics, written by lanes: [`Activity`] and the byte counters; by the engine: whether the carrier is chosen

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwapOption;

use crate::allowance::Allowance;
use crate::endpoint::Endpoint;
use crate::event::PeerId;
use crate::key::PublicKey;
use crate::keypair::Keypair;
use crate::pmtu::PathMtu;
use crate::suite::Suite;
use crate::time::Instant;

/// How many packets may wait for a session with a peer; the oldest is dropped beyond that.
pub const MAX_STAGED_PACKETS: usize = 128;

/// The data half of a peer.
#[derive(Debug)]
pub struct Path {
    /// The peer's slot.
    pub id: PeerId,
    /// The peer's static key.
    pub public_key: PublicKey,
    /// The suite pinned for the peer.
    pub suite: Suite,
    /// What lanes did with this peer, for the timers.
    pub activity: Activity,
    /// Bytes of messages sent and received.
    pub traffic: Traffic,
    /// How large packets may be.
    pub mtu: PathMtu,
    /// What the peer may use.
    pub allowance: Allowance,
    place: ArcSwapOption<Place>,
    carrier_chosen: AtomicBool,
    current: ArcSwapOption<Keypair>,
    next: ArcSwapOption<Keypair>,
    staged: Mutex<VecDeque<Box<[u8]>>>,
    need_keypair_noticed: AtomicBool,
}

/// Where a peer is, or may be.
#[derive(Debug)]
struct Place {
    endpoint: Endpoint,
    is_heard: AtomicBool,
    /// Where the peer was heard before it is heard here.
    before: Option<Endpoint>,
}

/// Levels that lanes leave for the engine's timers. Times are in milliseconds, plus one; 0 is "never".
///
/// A level that rises is news for the engine only while no timer waits for it: a timer that fires reads the level and
/// goes on or ends. The flag of a timer is set by whoever sees the level rise, and cleared by the engine before it
/// reads the level; both in one order for all, so that no rise falls between the two.
#[derive(Debug, Default)]
pub struct Activity {
    awaiting_reply_since: AtomicU64,
    awaiting_timer_runs: AtomicBool,
    owing_reply_since: AtomicU64,
    owing_timer_runs: AtomicBool,
    owing_another: AtomicBool,
    last_sent: AtomicU64,
    last_received: AtomicU64,
}

/// Message bytes and packets in both directions.
#[derive(Debug, Default)]
pub struct Traffic {
    rx_bytes: AtomicU64,
    tx_bytes: AtomicU64,
    rx_packets: AtomicU64,
    tx_packets: AtomicU64,
}

/// What became of a packet handed to [`Path::stage`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Staged {
    /// It waits for a session.
    Waiting,
    /// It waits, and the oldest waiting packet was dropped for it.
    OldestDropped,
    /// A session came in the meantime: send it.
    SessionReady,
}

impl Path {
    /// A peer without endpoint or session.
    pub fn new(id: PeerId, public_key: PublicKey, suite: Suite) -> Self {
        Self {
            id,
            public_key,
            suite,
            activity: Activity::default(),
            traffic: Traffic::default(),
            mtu: PathMtu::default(),
            allowance: Allowance::default(),
            place: ArcSwapOption::empty(),
            carrier_chosen: AtomicBool::new(false),
            current: ArcSwapOption::empty(),
            next: ArcSwapOption::empty(),
            staged: Mutex::default(),
            need_keypair_noticed: AtomicBool::new(false),
        }
    }

    /// Where the peer is.
    pub fn endpoint(&self) -> Option<Endpoint> {
        self.place.load().as_ref().map(|place| place.endpoint)
    }

    /// Where the peer was last heard, by the carrier in use: where it is, unless it has not answered there yet.
    pub fn heard_at(&self) -> Option<Endpoint> {
        self.place.load().as_ref().and_then(|place| place.heard_at())
    }

    /// The keypair that sends, whether still usable or not.
    pub fn current(&self) -> Option<Arc<Keypair>> {
        self.current.load_full()
    }

    /// The session that will replace the current one, once its initiator has confirmed it.
    ///
    /// The engine hears of that later than the host: the answer to the confirming packet may depart
    /// before, and a peer that restarted cannot read what is sealed with the session before.
    pub(crate) fn confirmed_next(&self, now: Instant) -> Option<Arc<Keypair>> {
        let next = self.next.load();
        next.as_ref().filter(|next| next.is_confirmed() && next.is_usable(now)).cloned()
    }

    /// Keeps `packet` until there is a session, unless one is usable at `now`.
    /// An empty packet stands for a keepalive and is kept only when nothing else waits.
    pub fn stage(&self, now: Instant, packet: &[u8]) -> Staged {
        let mut staged = self.staged();
        if staged.is_empty() && self.current.load().as_ref().is_some_and(|keypair| keypair.is_usable(now)) {
            return Staged::SessionReady;
        }
        if packet.is_empty() && !staged.is_empty() {
            return Staged::Waiting;
        }
        let full = staged.len() >= MAX_STAGED_PACKETS;
        if full {
            staged.pop_front();
        }
        staged.push_back(packet.into());
        if full { Staged::OldestDropped } else { Staged::Waiting }
    }

    /// How many packets wait.
    pub fn staged_len(&self) -> usize {
        self.staged().len()
    }

    /// Whether a [`crate::event::Notice::NeedKeypair`] is due: true once until [`Self::keypair_needed_again`].
    pub fn notice_need_keypair(&self) -> bool {
        !self.need_keypair_noticed.load(Relaxed) && !self.need_keypair_noticed.swap(true, Relaxed)
    }

    /// The next staged packet is news again.
    pub fn keypair_needed_again(&self) {
        self.need_keypair_noticed.store(false, Relaxed);
    }

    /// The peer may be there; it has not answered by this way yet.
    pub(crate) fn set_endpoint(&self, endpoint: Option<Endpoint>) {
        let before = self.heard_at();
        let place = |endpoint| Place { endpoint, is_heard: AtomicBool::new(false), before };
        self.place.store(endpoint.map(|endpoint| Arc::new(place(endpoint))));
    }

    /// The peer is there: it has answered.
    pub(crate) fn set_heard(&self, endpoint: Endpoint) {
        let place = Place { endpoint, is_heard: AtomicBool::new(true), before: None };
        self.place.store(Some(Arc::new(place)));
    }

    /// Whether messages that come by another carrier leave the endpoint where it is.
    pub(crate) fn set_carrier_chosen(&self, chosen: bool) {
        self.carrier_chosen.store(chosen, Relaxed);
    }

    pub(crate) fn is_carrier_chosen(&self) -> bool {
        self.carrier_chosen.load(Relaxed)
    }

    /// An authenticated packet came from `endpoint`: that is where the peer is. True when the peer moved, false
    /// when at most our own side of the way is another.
    pub(crate) fn heard_from(&self, endpoint: &Endpoint) -> bool {
        let before = self.place.load();
        let Some(before) = before.as_deref() else {
            self.set_heard(*endpoint);
            return true;
        };
        if before.endpoint.carrier != endpoint.carrier && self.carrier_chosen.load(Relaxed) {
            return false;
        }
        if before.endpoint != *endpoint {
            self.set_heard(*endpoint);
        } else if !before.is_heard.load(Relaxed) {
            before.is_heard.store(true, Relaxed);
        }
        before.endpoint.remote != endpoint.remote || before.endpoint.carrier != endpoint.carrier
    }

    /// Lets the host choose the source address anew, unless the peer has moved since it was at `endpoint`.
    pub fn forget_source(&self, endpoint: &Endpoint) {
        let now = self.place.load();
        if let Some(place) = now.as_deref().filter(|place| place.endpoint == *endpoint) {
            let forgotten = Place {
                endpoint: Endpoint { local: None, interface: 0, ..*endpoint },
                is_heard: AtomicBool::new(place.is_heard.load(Relaxed)),
                before: place.before,
            };
            self.place.compare_and_swap(&*now, Some(Arc::new(forgotten)));
        }
    }

    /// Takes every waiting packet; when none waits, `keypair` starts to send in the same moment, so that
    /// no packet overtakes a staged one. With `at_once` it starts to send whatever waits.
    pub(crate) fn take_staged_or_publish(&self, keypair: &Arc<Keypair>, at_once: bool) -> Vec<Box<[u8]>> {
        let mut staged = self.staged();
        if staged.is_empty() || at_once {
            self.current.store(Some(Arc::clone(keypair)));
        }
        staged.drain(..).collect()
    }

    /// Drops every waiting packet and says how many there were.
    pub(crate) fn purge_staged(&self) -> usize {
        let mut staged = self.staged();
        let packets = staged.iter().filter(|packet| !packet.is_empty()).count();
        staged.clear();
        packets
    }

    pub(crate) fn set_next(&self, next: Option<Arc<Keypair>>) {
        self.next.store(next);
    }

    pub(crate) fn clear_keypairs(&self) {
        self.next.store(None);
        self.current.store(None);
    }

    fn staged(&self) -> MutexGuard<'_, VecDeque<Box<[u8]>>> {
        self.staged.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    fn heard_at(&self) -> Option<Endpoint> {
        if self.is_heard.load(Relaxed) { Some(self.endpoint) } else { self.before }
    }
}

impl Activity {
    /// Data (not a keepalive) was sent. True when a reply is awaited since now and no timer runs for that: the engine
    /// must start it.
    pub fn data_sent(&self, now: Instant) -> bool {
        self.packet_sent(now);
        self.awaiting_reply_since.load(Relaxed) == 0
            && self.awaiting_reply_since.swap(stamp(now), SeqCst) == 0
            && start(&self.awaiting_timer_runs)
    }

    /// Any authenticated packet was sent.
    pub fn packet_sent(&self, now: Instant) {
        self.last_sent.store(stamp(now), Relaxed);
        clear(&self.owing_reply_since);
    }

    /// Data was received. True when a reply is owed since now and no timer runs for that: the engine must start it.
    pub fn data_received(&self, now: Instant) -> bool {
        self.packet_received(now);
        if self.owing_reply_since.load(Relaxed) == 0 {
            return self.owing_reply_since.swap(stamp(now), SeqCst) == 0 && start(&self.owing_timer_runs);
        }
        if !self.owing_another.load(Relaxed) {
            self.owing_another.store(true, Relaxed);
        }
        false
    }

    /// Any authenticated packet was received.
    pub fn packet_received(&self, now: Instant) {
        self.last_received.store(stamp(now), Relaxed);
        clear(&self.awaiting_reply_since);
    }

    /// The timer for an awaited reply has fired or was stopped. Returns since when data is unanswered: the timer must
    /// run on, after [`Self::awaiting_timer_runs_on`].
    pub(crate) fn awaiting_timer_ended(&self) -> Option<Instant> {
        self.awaiting_timer_runs.store(false, SeqCst);
        instant(self.awaiting_reply_since.load(SeqCst))
    }

    /// The engine has the timer for an awaited reply running.
    pub(crate) fn awaiting_timer_runs_on(&self) {
        self.awaiting_timer_runs.store(true, SeqCst);
    }

    /// The timer for an owed reply has fired or was stopped. Returns since when the peer's data is unanswered: the
    /// timer must run on, after [`Self::owing_timer_runs_on`].
    pub(crate) fn owing_timer_ended(&self) -> Option<Instant> {
        self.owing_timer_runs.store(false, SeqCst);
        instant(self.owing_reply_since.load(SeqCst))
    }

    /// The engine has the timer for an owed reply running.
    pub(crate) fn owing_timer_runs_on(&self) {
        self.owing_timer_runs.store(true, SeqCst);
    }

    /// Since when data is unanswered.
    pub fn awaiting_reply_since(&self) -> Option<Instant> {
        instant(self.awaiting_reply_since.load(Relaxed))
    }

    /// When the last packet went either way.
    pub fn last_traversal(&self) -> Option<Instant> {
        instant(self.last_sent.load(Relaxed).max(self.last_received.load(Relaxed)))
    }

    /// When the last authenticated packet came.
    pub fn last_received(&self) -> Option<Instant> {
        instant(self.last_received.load(Relaxed))
    }

    /// Forgets that a reply is awaited: the next data sent is news.
    pub(crate) fn stop_awaiting(&self) {
        clear(&self.awaiting_reply_since);
        self.awaiting_timer_runs.store(false, SeqCst);
    }

    /// A reply is still owed, since `now`.
    pub(crate) fn owe_since(&self, now: Instant) {
        self.owing_reply_since.store(stamp(now), Relaxed);
    }

    /// Forgets that a reply is owed: the next data received is news.
    pub(crate) fn stop_owing(&self) {
        clear(&self.owing_reply_since);
        self.owing_timer_runs.store(false, SeqCst);
    }

    /// Whether more data came while a reply was owed; true once.
    pub(crate) fn take_owing_another(&self) -> bool {
        self.owing_another.swap(false, Relaxed)
    }
}

impl Traffic {
    /// Counts `packets` sent messages of together `bytes`.
    pub fn sent(&self, packets: u64, bytes: u64) {
        self.tx_packets.fetch_add(packets, Relaxed);
        self.tx_bytes.fetch_add(bytes, Relaxed);
    }

    /// Counts `packets` received messages of together `bytes`.
    pub fn received(&self, packets: u64, bytes: u64) {
        self.rx_packets.fetch_add(packets, Relaxed);
        self.rx_bytes.fetch_add(bytes, Relaxed);
    }

    /// Bytes received and sent.
    pub fn bytes(&self) -> (u64, u64) {
        (self.rx_bytes.load(Relaxed), self.tx_bytes.load(Relaxed))
    }

    /// Bytes in all.
    pub fn carried(&self) -> u64 {
        let (received, sent) = self.bytes();
        received.saturating_add(sent)
    }

    /// Messages received and sent.
    pub fn packets(&self) -> (u64, u64) {
        (self.rx_packets.load(Relaxed), self.tx_packets.load(Relaxed))
    }
}

/// Sets the flag of a timer; true when it was not set.
fn start(timer_runs: &AtomicBool) -> bool {
    !timer_runs.load(SeqCst) && !timer_runs.swap(true, SeqCst)
}

fn stamp(now: Instant) -> u64 {
    now.as_millis().saturating_add(1)
}

fn instant(stamp: u64) -> Option<Instant> {
    stamp.checked_sub(1).map(Instant::from_millis)
}

/// A store only when needed keeps the cache line shared between lanes.
fn clear(level: &AtomicU64) {
    if level.load(Relaxed) != 0 {
        level.store(0, Relaxed);
    }
}
