//! How large an inside packet may be on the way to a peer (in the manner of RFC 8899).
//!
//! ```text
//!   a lane sends a large packet ─► Notice::LargeSent ─► the engine asks: does a message of this size arrive?
//!   probe ──────▶ peer ──────▶ acknowledgement          while large packets are sent: once a second
//!   no answer: smaller ones are asked too; three times none, but for smaller ones: the way is narrower
//! ```
//!
//! Probes are transport messages whose packet is neither IPv4 nor IPv6. Only the `aes-256-gcm` suite has them, which is
//! spoken between adit peers alone; a peer that knows no probes drops them, and then nothing is concluded.
//!
//! - atomic, written by the engine, read by lanes: the limit
//! - atomic, set by lanes, cleared by the engine: whether something large was sent

use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst};
use core::time::Duration;

use crate::suite::Suite;
use crate::time::Instant;

/// Packets up to this are never refused: IPv6 requires as much (RFC 8200 section 5).
pub const SMALLEST: usize = 1280;

/// A limit that is none.
const UNLIMITED: usize = usize::MAX;

/// What lanes know of the way to a peer.
#[derive(Debug)]
pub struct PathMtu {
    limit: AtomicUsize,
    large_sent: AtomicBool,
    timer_runs: AtomicBool,
}

impl Default for PathMtu {
    fn default() -> Self {
        Self {
            limit: AtomicUsize::new(UNLIMITED),
            large_sent: AtomicBool::new(false),
            timer_runs: AtomicBool::new(false),
        }
    }
}

impl PathMtu {
    /// The largest inside packet that arrives, when that is less than the device takes.
    pub fn limit(&self) -> Option<usize> {
        Some(self.limit.load(Relaxed)).filter(|&limit| limit != UNLIMITED)
    }

    /// Whether a packet of `len` bytes is too large for the way.
    pub fn is_too_large(&self, len: usize) -> bool {
        len > self.limit.load(Relaxed)
    }

    /// Something large was sent. True when that is news for the engine.
    pub fn large_sent(&self) -> bool {
        !self.large_sent.load(Relaxed)
            && !self.large_sent.swap(true, SeqCst)
            && !self.timer_runs.swap(true, SeqCst)
    }

    /// The engine was not told: the next large packet is news again.
    pub fn notice_lost(&self) {
        self.timer_runs.store(false, SeqCst);
        self.large_sent.store(false, SeqCst);
    }

    pub(crate) fn set_limit(&self, limit: Option<usize>) {
        self.limit.store(limit.unwrap_or(UNLIMITED), Relaxed);
    }

    /// Whether something large was sent since the last call; when not, the timer is over.
    pub(crate) fn take_large_sent(&self) -> bool {
        if self.large_sent.swap(false, SeqCst) {
            return true;
        }
        self.timer_runs.store(false, SeqCst);
        // A lane may have looked at the flag of the timer just before.
        self.large_sent.load(SeqCst) && !self.timer_runs.swap(true, SeqCst)
    }
}

/// A message of the two peers' searches: a question of this size, or its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// Did this arrive, as an inside packet of so many bytes?
    Ask(u16),
    /// A question of so many bytes arrived.
    Arrived(u16),
}

const ASK: u8 = 0x01;
const ARRIVED: u8 = 0x02;
/// An answer takes as much as the smallest message with contents.
const ARRIVED_LEN: usize = 16;

impl Probe {
    /// Reads an inside packet that is no IP packet.
    pub fn parse(suite: Suite, packet: &[u8]) -> Option<Self> {
        let [kind, 0, 0, 0, hi, lo, ..] = *packet else { return None };
        let len = u16::from_be_bytes([hi, lo]);
        match kind {
            _ if suite != Suite::Aes256Gcm => None,
            ASK if packet.len() >= usize::from(len) => Some(Self::Ask(len)),
            ARRIVED => Some(Self::Arrived(len)),
            _ => None,
        }
    }

    /// The inside packet.
    pub fn packet(self) -> Vec<u8> {
        let (kind, len, total) = match self {
            Self::Ask(len) => (ASK, len, usize::from(len).max(ARRIVED_LEN)),
            Self::Arrived(len) => (ARRIVED, len, ARRIVED_LEN),
        };
        let [hi, lo] = len.to_be_bytes();
        let mut packet = vec![kind, 0, 0, 0, hi, lo];
        packet.resize(total, 0);
        packet
    }
}

/// One peer's search, by the engine.
#[derive(Debug, Default)]
pub(crate) struct Search {
    limit: Option<usize>,
    asked: bool,
    /// The last question was answered, and it is too early for the next.
    rests: bool,
    misses: u8,
    best: usize,
    raise_at: Option<Instant>,
}

/// What to ask now, and when to come back.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Round {
    pub(crate) sizes: Vec<u16>,
    pub(crate) next: Duration,
}

const MISSES_UNTIL_NARROW: u8 = 3;
const MISSES_UNTIL_DEAF: u8 = 8;
const CONFIRM_EVERY: Duration = Duration::from_millis(700);
const ANSWER_WAIT: Duration = Duration::from_millis(300);
const RAISE_AFTER: Duration = Duration::from_secs(30);
/// Multiples of 16, as padding makes all sizes but the device's own.
const STEP: usize = 16;
const LEAST: usize = 512;

impl Search {
    pub(crate) fn limit(&self) -> Option<usize> {
        self.limit
    }

    /// The time has come to ask; `top` is the MTU of the device, `rtt` what a handshake took. `None` when there is
    /// nothing to ask any more, until something large is sent again.
    pub(crate) fn tick(
        &mut self,
        now: Instant,
        top: usize,
        rtt: Option<Duration>,
        large_sent: impl FnOnce() -> bool,
    ) -> Option<Round> {
        let wait = rtt.map_or(ANSWER_WAIT, |rtt| ANSWER_WAIT.max(rtt.saturating_mul(2)));
        let current = self.limit.unwrap_or(top).min(top);
        if self.asked {
            self.misses = self.misses.saturating_add(1);
            if self.misses >= MISSES_UNTIL_NARROW && (1..current).contains(&self.best) {
                self.limit = Some(self.best);
                self.raise_at = Some(now.saturating_add(RAISE_AFTER));
                self.start_over();
                return Some(Round { sizes: Vec::new(), next: CONFIRM_EVERY });
            }
            if self.misses >= MISSES_UNTIL_DEAF {
                self.start_over();
                large_sent();
                return None;
            }
            return Some(Round { sizes: sizes(current), next: wait });
        }
        if core::mem::take(&mut self.rests) {
            return Some(Round { sizes: Vec::new(), next: CONFIRM_EVERY });
        }
        if !large_sent() {
            return None;
        }
        self.asked = true;
        let raise = self.raise_at.is_some_and(|at| at <= now);
        if raise {
            self.raise_at = Some(now.saturating_add(RAISE_AFTER));
        }
        let asked = if raise { sizes(top) } else { vec![size(current)] };
        Some(Round { sizes: asked, next: wait })
    }

    /// A message of this size arrived. True when that changes the limit.
    pub(crate) fn arrived(&mut self, len: u16, top: usize) -> bool {
        let len = usize::from(len).min(top);
        let current = self.limit.unwrap_or(top).min(top);
        self.best = self.best.max(len);
        if len >= current {
            self.start_over();
            self.rests = true;
        }
        if len <= current {
            return false;
        }
        self.limit = Some(len).filter(|&len| len < top);
        true
    }

    fn start_over(&mut self) {
        self.asked = false;
        self.misses = 0;
        self.best = 0;
    }
}

fn size(bytes: usize) -> u16 {
    u16::try_from(bytes).unwrap_or(u16::MAX)
}

/// `from` and what may be left of it.
fn sizes(from: usize) -> Vec<u16> {
    let aligned = from.saturating_sub(1) & !STEP.saturating_sub(1);
    let fine =
        (0..).map(|step| aligned.saturating_sub(STEP.saturating_mul(step))).take_while(|&it| it >= 1200);
    let coarse = [1152, 1024, 896, LEAST].into_iter();
    let below = fine.chain(coarse).filter(|&it| it < from).take(40);
    core::iter::once(from).chain(below).map(size).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]
mod tests {
    use super::*;

    const TOP: usize = 1420;

    /// A way that lets through what is not above `width`; returns the limits after each of `ticks` with traffic.
    fn run(search: &mut Search, from_millis: u64, ticks: u64, width: usize) -> Vec<Option<usize>> {
        let mut now = from_millis;
        let mut limits = Vec::new();
        for _ in 0..ticks {
            let round = search.tick(Instant::from_millis(now), TOP, None, || true);
            let Some(round) = round else { break };
            for size in round.sizes.iter().filter(|&&size| usize::from(size) <= width) {
                search.arrived(*size, TOP);
            }
            now += round.next.as_millis() as u64;
            limits.push(search.limit());
        }
        limits
    }

    #[test]
    fn a_wide_way_is_asked_once_and_has_no_limit() {
        let mut search = Search::default();
        assert_eq!(run(&mut search, 0, 20, 1500), [None; 20]);
        let round = search.tick(Instant::from_millis(60_000), TOP, None, || true).unwrap();
        assert_eq!(round.sizes, [1420]);
    }

    #[test]
    fn a_way_that_grows_narrow_is_measured_within_two_seconds_and_one_that_widens_again_later() {
        for width in [1419, 1400, 1300, 1280, 1220, 1000, 600] {
            let mut search = Search::default();
            run(&mut search, 0, 3, 1500);
            let mut now = 10_000;
            while search.limit().is_none() {
                let round = search.tick(Instant::from_millis(now), TOP, None, || true).unwrap();
                round.sizes.iter().filter(|&&size| usize::from(size) <= width).for_each(|size| {
                    search.arrived(*size, TOP);
                });
                now += round.next.as_millis() as u64;
                assert!(now < 12_500, "{width}");
            }
            let limit = search.limit().unwrap();
            assert!(limit <= width && limit + 128 + 16 > width, "{width}: {limit}");
            assert_eq!(run(&mut search, 50_000, 10, 1500).pop().unwrap(), None, "it widens");
        }
    }

    #[test]
    fn a_peer_that_answers_no_probe_at_all_limits_nothing_and_is_left_in_peace() {
        let mut search = Search::default();
        let limits = run(&mut search, 0, 50, 0);
        assert!(limits.len() < 12 && limits.iter().all(Option::is_none), "{limits:?}");
    }

    #[test]
    fn two_lost_probes_are_no_narrow_way() {
        let mut search = Search::default();
        let at = |millis| Instant::from_millis(millis);
        assert_eq!(search.tick(at(0), TOP, None, || true).unwrap().sizes, [1420]);
        for millis in [300, 600] {
            let round = search.tick(at(millis), TOP, None, || true).unwrap();
            assert_eq!(round.sizes[0], 1420);
            search.arrived(1280, TOP);
        }
        assert!(!search.arrived(1420, TOP));
        assert_eq!(search.limit(), None);
        assert!(search.tick(at(900), TOP, None, || true).unwrap().sizes.is_empty(), "it rests");
        assert!(search.tick(at(1600), TOP, None, || false).is_none(), "and without traffic nothing is asked");
    }

    #[test]
    fn probes_survive_their_way_and_belong_to_one_suite() {
        for probe in [Probe::Ask(1420), Probe::Ask(512), Probe::Arrived(1280)] {
            let packet = probe.packet();
            assert_eq!(Probe::parse(Suite::Aes256Gcm, &packet), Some(probe));
            assert_eq!(Probe::parse(Suite::ChaCha20Poly1305, &packet), None);
            assert!(crate::packet::InsideHeader::parse(&packet).is_err(), "it is no IP packet");
        }
        assert_eq!(Probe::parse(Suite::Aes256Gcm, &Probe::Ask(1400).packet()[..1000]), None, "cut short");
        for rubbish in [&[][..], &[1, 0, 0], &[1, 0, 0, 1, 0, 0], &[3, 0, 0, 0, 0, 0]] {
            assert_eq!(Probe::parse(Suite::Aes256Gcm, rubbish), None);
        }
    }

    #[test]
    fn a_large_packet_is_news_once_until_the_timer_ends() {
        let mtu = PathMtu::default();
        assert!(mtu.large_sent() && !mtu.large_sent());
        assert!(mtu.take_large_sent(), "the timer goes on");
        assert!(!mtu.large_sent(), "it runs");
        assert!(mtu.take_large_sent() && !mtu.take_large_sent());
        assert!(mtu.large_sent());
        mtu.notice_lost();
        assert!(mtu.large_sent());
    }
}
