//! What a peer may use: until when and in which hours, how fast, how much.
//!
//! ```text
//! packet ─ gate ─┬─ open: no limits ─────────────────────────────────────────▶ on
//!                ├─ metered: quota ▸ bucket of the direction ────────────────▶ on, or dropped
//!                └─ shut: expired, or outside of the hours ──────────────────▶ dropped
//! ```
//!
//! - written by the engine, read by lanes: gate, rates, and where the quota ends
//! - written by lanes: the buckets, each one atomic number, and the counts of what was refused
//!
//! The quota has no counter of its own: it is spent when the peer's [`crate::path::Traffic`] has come to a number.

use core::num::NonZeroU64;
use core::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};
use core::time::Duration;

use crate::reason::DropReason;
use crate::schedule::Schedule;
use crate::time::{Instant, UnixTime};

/// The limits of a peer; the default has none.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Limits {
    /// The second since 1970 from which on the peer is refused.
    pub expires_secs: Option<u64>,
    /// The hours outside of which it is refused.
    pub schedule: Option<Schedule>,
    /// Bytes a second from the peer.
    pub inbound: Option<NonZeroU64>,
    /// Bytes a second to the peer.
    pub outbound: Option<NonZeroU64>,
    /// Bytes in messages from now on, both directions together.
    pub left_bytes: Option<u64>,
}

/// How a peer's allowance stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct AllowanceStatus {
    /// Why the peer may not connect now.
    pub shut: Option<DropReason>,
    /// What is left of the quota.
    pub left_bytes: Option<u64>,
    /// Inside packets and superpackets dropped, in the order of [`REFUSALS`].
    pub refused: [u64; REFUSALS.len()],
}

/// What a limit drops a packet for.
pub const REFUSALS: [DropReason; 4] =
    [DropReason::OverRate, DropReason::OverQuota, DropReason::AccessExpired, DropReason::OutsideSchedule];

/// A bucket holds a quarter of a second, so that TCP gets its rate; but not less than two superpackets.
const BURST: Duration = Duration::from_millis(250);
const MIN_BURST_BYTES: u64 = 128 * 1024;

/// Bytes a second that a peer over its quota may still exchange with the gateway itself, to ask why.
const COURTESY: NonZeroU64 = NonZeroU64::new(16 * 1024).unwrap();

/// A refused peer is told so at most ten times a second.
const TOLD: NonZeroU64 = NonZeroU64::new(10).unwrap();
const TOLD_BURST: u64 = 10;

/// Both ways a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// From the peer.
    Inbound,
    /// To the peer.
    Outbound,
}

/// The data half of a peer's limits.
#[derive(Debug)]
pub struct Allowance {
    gate: AtomicU8,
    inbound: Bucket,
    outbound: Bucket,
    courtesy: Bucket,
    told: Bucket,
    /// The peer's bytes in all at which the quota is spent; the largest number is never.
    spent_at: AtomicU64,
    refused: [AtomicU64; REFUSALS.len()],
}

const OPEN: u8 = 0;
const METERED: u8 = 1;
const EXPIRED: u8 = 2;
const OUTSIDE: u8 = 3;

impl Default for Allowance {
    fn default() -> Self {
        Self {
            gate: AtomicU8::new(OPEN),
            inbound: Bucket::default(),
            outbound: Bucket::default(),
            courtesy: Bucket::default(),
            told: Bucket::default(),
            spent_at: AtomicU64::new(u64::MAX),
            refused: Default::default(),
        }
    }
}

impl Limits {
    /// Why a peer with these limits may not connect at `wall`.
    pub fn shut_at(&self, wall: UnixTime) -> Option<DropReason> {
        if self.expires_secs.is_some_and(|expires| wall.secs >= expires) {
            return Some(DropReason::AccessExpired);
        }
        let outside = self.schedule.as_ref().is_some_and(|schedule| !schedule.is_open(wall));
        outside.then_some(DropReason::OutsideSchedule)
    }

    /// How long after `wall` the answer of [`Self::shut_at`] may be another; `None` if it always stays.
    pub fn until_change(&self, wall: UnixTime) -> Option<Duration> {
        let expires =
            self.expires_secs.and_then(|expires| expires.checked_sub(wall.secs)).filter(|&secs| secs > 0);
        let expires = expires
            .map(|secs| Duration::from_secs(secs).saturating_sub(Duration::from_nanos(wall.nanos.into())));
        let hours = self.schedule.as_ref().and_then(|schedule| schedule.until_change(wall));
        expires.into_iter().chain(hours).min()
    }

    fn are_metered(&self) -> bool {
        self.inbound.is_some() || self.outbound.is_some() || self.left_bytes.is_some()
    }
}

impl Allowance {
    /// Sets the limits of a peer whose messages came to `carried` bytes so far. A bucket stays as full as it is.
    pub(crate) fn set(&self, limits: &Limits, shut: Option<DropReason>, carried: u64) {
        let per_sec = |rate: Option<NonZeroU64>| rate.map_or(0, NonZeroU64::get);
        self.inbound.per_sec.store(per_sec(limits.inbound), Relaxed);
        self.outbound.per_sec.store(per_sec(limits.outbound), Relaxed);
        self.courtesy.per_sec.store(COURTESY.get(), Relaxed);
        self.told.per_sec.store(TOLD.get(), Relaxed);
        let spent_at = limits.left_bytes.map_or(u64::MAX, |left| carried.saturating_add(left));
        self.spent_at.store(spent_at, Relaxed);
        self.set_gate(limits, shut);
    }

    pub(crate) fn set_gate(&self, limits: &Limits, shut: Option<DropReason>) {
        let gate = match shut {
            Some(DropReason::AccessExpired) => EXPIRED,
            Some(_) => OUTSIDE,
            None if limits.are_metered() => METERED,
            None => OPEN,
        };
        self.gate.store(gate, Relaxed);
    }

    /// Whether the peer has no limits now: all that a packet of such a peer asks.
    #[inline]
    pub(crate) fn is_open(&self) -> bool {
        self.gate.load(Relaxed) == OPEN
    }

    /// Takes `len` bytes from the bucket of `direction`. `carried` is what the peer's messages came to so far;
    /// `with_us` says that the other end of the packet is the gateway itself.
    ///
    /// # Errors
    /// Why the packet goes no further; counted for the peer.
    pub(crate) fn admit(
        &self,
        now: Instant,
        direction: Direction,
        len: u64,
        carried: u64,
        with_us: bool,
    ) -> Result<(), DropReason> {
        let admitted = match self.gate.load(Relaxed) {
            OPEN => Ok(()),
            EXPIRED => Err(DropReason::AccessExpired),
            OUTSIDE => Err(DropReason::OutsideSchedule),
            _ if carried >= self.spent_at.load(Relaxed) => {
                let admitted = with_us && self.courtesy.spend(now, len, MIN_BURST_BYTES);
                if admitted { Ok(()) } else { Err(DropReason::OverQuota) }
            }
            _ => {
                let bucket = match direction {
                    Direction::Inbound => &self.inbound,
                    Direction::Outbound => &self.outbound,
                };
                if bucket.spend(now, len, MIN_BURST_BYTES) { Ok(()) } else { Err(DropReason::OverRate) }
            }
        };
        if let Err(reason) = admitted {
            let counters = REFUSALS.iter().zip(&self.refused);
            for (_, counter) in counters.filter(|(refusal, _)| **refusal == reason) {
                counter.fetch_add(1, Relaxed);
            }
        }
        admitted
    }

    /// Whether the peer may be told now that something of it was refused.
    pub(crate) fn may_tell(&self, now: Instant) -> bool {
        self.told.spend(now, 1, TOLD_BURST)
    }

    /// What is left of the quota of a peer whose messages came to `carried` bytes so far.
    pub(crate) fn left_bytes(&self, carried: u64) -> Option<u64> {
        let spent_at = self.spent_at.load(Relaxed);
        (spent_at != u64::MAX).then(|| spent_at.saturating_sub(carried))
    }

    /// How the allowance of a peer stands whose messages came to `carried` bytes so far.
    pub fn status(&self, carried: u64) -> AllowanceStatus {
        AllowanceStatus {
            shut: match self.gate.load(Relaxed) {
                EXPIRED => Some(DropReason::AccessExpired),
                OUTSIDE => Some(DropReason::OutsideSchedule),
                _ => None,
            },
            left_bytes: self.left_bytes(carried),
            refused: core::array::from_fn(|at| {
                self.refused.get(at).map_or(0, |counter| counter.load(Relaxed))
            }),
        }
    }
}

/// A token bucket kept as one number: the nanosecond at which it will be full again. Lanes take from it at the same
/// time without waiting for each other.
#[derive(Debug, Default)]
struct Bucket {
    /// Tokens a second; 0 is without limit.
    per_sec: AtomicU64,
    full_at: AtomicU64,
}

impl Bucket {
    /// Takes `tokens`, if they are there. The bucket holds `min_burst`, or what comes in [`BURST`] if that is more.
    fn spend(&self, now: Instant, tokens: u64, min_burst: u64) -> bool {
        let per_sec = self.per_sec.load(Relaxed);
        let (Some(cost), Some(least)) = (nanos(tokens, per_sec), nanos(min_burst, per_sec)) else {
            return true;
        };
        let most = least.max(BURST.as_nanos() as u64);
        let take = |full_at: u64| {
            let after = full_at.max(now.0).saturating_add(cost);
            (after.saturating_sub(now.0) <= most).then_some(after)
        };
        self.full_at.fetch_update(Relaxed, Relaxed, take).is_ok()
    }
}

/// How long `tokens` take to come; `None` without limit.
fn nanos(tokens: u64, per_sec: u64) -> Option<u64> {
    tokens.saturating_mul(1_000_000_000).checked_div(per_sec)
}

#[cfg(test)]
mod tests;
