//! The way to a peer as this host sees it: when it is another, the peer hears from us at once.
//!
//! ```text
//!   address, route or link changes ─┐
//!   the machine slept ──────────────┼─► another way? ─► keepalive and handshake from there, and again shortly after
//!   every few seconds ──────────────┘
//! ```
//!
//! Without that a peer that only receives would stay where its NAT or its old network was, until its next packet.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use adit_host::Way;
use adit_proto::key::PublicKey;
use crossbeam_channel::{Receiver, TrySendError, bounded, never};

/// The first packet on a new way often gets lost: the link has just come up.
const AGAIN_AFTER: [Duration; 4] = [
    Duration::from_millis(100),
    Duration::from_millis(300),
    Duration::from_millis(800),
    Duration::from_millis(2_000),
];
/// The clocks of a machine that is awake differ by less.
const SLEPT: Duration = Duration::from_secs(2);
/// A gateway with thousands of peers answers them; only those that it calls itself are followed.
const FOLLOWED_MAX: usize = 64;

/// The ways to the peers that have an endpoint of their own.
#[derive(Debug)]
pub struct Roaming {
    ways: HashMap<PublicKey, Option<Way>>,
    /// One waits when something changed since the last look.
    pub(crate) changes: Option<Receiver<()>>,
    again: Vec<(Instant, PublicKey)>,
    awake: Awake,
    find: fn(IpAddr, u32) -> Option<Way>,
}

impl Default for Roaming {
    fn default() -> Self {
        let find = |address, fwmark| adit_host::way_to(address, fwmark).ok().flatten();
        Self { ways: HashMap::new(), changes: None, again: Vec::new(), awake: Awake::now(), find }
    }
}

impl Roaming {
    /// Begins to hear of changes, in the calling thread's network namespace. Without that, ways are looked at every few
    /// seconds.
    pub fn watch(&mut self) {
        let (sender, changes) = bounded(1);
        // A full queue is as good: the look that is due will see everything.
        let tell = move || !matches!(sender.try_send(()), Err(TrySendError::Disconnected(())));
        match adit_host::watch_ways(tell) {
            Ok(()) => self.changes = Some(changes),
            Err(error) => {
                tracing::warn!("a change of the way to peers is noticed late: {error}");
                self.changes = Some(never());
            }
        }
    }

    /// Where changes are told.
    pub fn changes(&self) -> Receiver<()> {
        self.changes.clone().unwrap_or_else(never)
    }

    /// Nobody tells any more.
    pub fn stop_watching(&mut self) {
        self.changes = Some(never());
    }

    /// Looks where the ways to `peers` lead now; returns those to whom to speak at once.
    pub fn look(&mut self, peers: &[(PublicKey, IpAddr)], fwmark: u32) -> Vec<PublicKey> {
        let has_slept = self.awake.has_slept();
        let mut moved = Vec::new();
        for (peer, address) in peers.iter().take(FOLLOWED_MAX) {
            let way = (self.find)(*address, fwmark);
            let before = self.ways.insert(*peer, way.clone());
            let is_another = before.is_some_and(|before| before != way);
            if way.is_some() && (is_another || has_slept) {
                moved.push(*peer);
            }
        }
        self.ways.retain(|peer, _| peers.iter().any(|(known, _)| known == peer));
        self.again.retain(|(_, peer)| peers.iter().any(|(known, _)| known == peer) && !moved.contains(peer));
        let now = Instant::now();
        for peer in &moved {
            self.again.extend(AGAIN_AFTER.map(|after| (now + after, *peer)));
        }
        moved
    }

    /// Whether the way to the peer was looked at before, or never will be for there are too many.
    pub fn knows(&self, peer: &PublicKey) -> bool {
        self.ways.len() >= FOLLOWED_MAX || self.ways.contains_key(peer)
    }

    /// Those to whom to speak once more.
    pub fn due(&mut self) -> Vec<PublicKey> {
        let now = Instant::now();
        let mut due: Vec<PublicKey> =
            self.again.iter().filter(|(at, _)| *at <= now).map(|(_, peer)| *peer).collect();
        due.dedup();
        self.again.retain(|(at, _)| *at > now);
        due
    }

    /// The peer has answered.
    pub fn heard(&mut self, peer: &PublicKey) {
        self.again.retain(|(_, waiting)| waiting != peer);
    }

    /// How long to wait at most.
    pub fn patience(&self, limit: Duration) -> Duration {
        let now = Instant::now();
        let next = self.again.iter().map(|(at, _)| at.saturating_duration_since(now)).min();
        next.map_or(limit, |next| next.min(limit))
    }
}

/// Notices that the machine slept: one clock went on (`CLOCK_BOOTTIME`), the other did not (`CLOCK_MONOTONIC`).
#[derive(Debug)]
struct Awake {
    boot: Duration,
    monotonic: Instant,
}

impl Awake {
    fn now() -> Self {
        Self { boot: boot_time(), monotonic: Instant::now() }
    }

    fn has_slept(&mut self) -> bool {
        let now = Self::now();
        let before = std::mem::replace(self, Self::now());
        slept(now.boot.saturating_sub(before.boot), now.monotonic.duration_since(before.monotonic))
    }
}

fn slept(by_boot_clock: Duration, by_monotonic_clock: Duration) -> bool {
    by_boot_clock > by_monotonic_clock + SLEPT
}

fn boot_time() -> Duration {
    Duration::from_nanos(adit_io::sys::boottime_nanos())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

    use super::*;

    static LINK: AtomicU32 = AtomicU32::new(1);

    fn find(_: IpAddr, _: u32) -> Option<Way> {
        match LINK.load(Relaxed) {
            0 => None,
            link_index => Some(Way { source: None, link_index, gateway: None }),
        }
    }

    #[test]
    fn a_peer_is_spoken_to_when_its_way_is_another_and_until_it_answers() {
        let peer = PublicKey([1; 32]);
        let peers = [(peer, IpAddr::from([192, 0, 2, 1]))];
        let mut roaming = Roaming { find, ..Roaming::default() };
        assert!(!roaming.knows(&peer));
        assert!(roaming.look(&peers, 0).is_empty(), "the first look");
        assert!(roaming.knows(&peer));
        assert!(roaming.look(&peers, 0).is_empty(), "nothing changed");
        LINK.store(0, Relaxed);
        assert!(roaming.look(&peers, 0).is_empty(), "without a way there is nothing to say");
        assert_eq!(roaming.patience(Duration::from_secs(5)), Duration::from_secs(5));
        LINK.store(2, Relaxed);
        assert_eq!(roaming.look(&peers, 0), [peer]);
        assert!(roaming.patience(Duration::from_secs(5)) <= Duration::from_millis(100));
        std::thread::sleep(Duration::from_millis(110));
        assert_eq!(roaming.due(), [peer]);
        assert!(roaming.due().is_empty());
        roaming.heard(&peer);
        assert_eq!(roaming.patience(Duration::from_secs(5)), Duration::from_secs(5));
        assert!(roaming.look(&[], 0).is_empty() && roaming.ways.is_empty());
        let many: Vec<_> = (0..=FOLLOWED_MAX as u8).map(|n| (PublicKey([n; 32]), peers[0].1)).collect();
        roaming.look(&many, 0);
        assert!(
            many.iter().all(|(it, _)| roaming.knows(it)),
            "the last one is never looked at, and so not again and again"
        );
    }

    #[test]
    fn a_night_is_noticed_and_a_busy_moment_is_not() {
        let secs = Duration::from_secs;
        assert!(slept(secs(3600), secs(5)));
        assert!(!slept(secs(6), secs(5)) && !slept(secs(5), secs(5)) && !slept(secs(0), secs(5)));
    }
}
