//! The protocol's clocks: its constants, one peer's timers, and the queue over all peers.
//!
//! Source: WireGuard paper section 6, with the jitter of the kernel implementation.

use core::time::Duration;
use std::collections::BTreeSet;

use crate::event::PeerId;
use crate::time::Instant;

/// The initiator starts a new session this long after the last one.
pub const REKEY_AFTER_TIME: Duration = Duration::from_secs(120);
/// No key seals or opens after this.
pub const REJECT_AFTER_TIME: Duration = Duration::from_secs(180);
/// A handshake is retried for this long.
pub const REKEY_ATTEMPT_TIME: Duration = Duration::from_secs(90);
/// An unanswered initiation is repeated after this, plus jitter; never sooner.
pub const REKEY_TIMEOUT: Duration = Duration::from_secs(5);
/// Received data is answered within this, by a keepalive if need be.
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// An initiator that only receives renews the session at this age, in time before it ends.
pub const REKEY_BEFORE_REJECT: Duration = Duration::from_secs(180 - 10 - 5);
/// Keys of a peer without new sessions are erased after this.
pub const ERASE_AFTER_TIME: Duration = Duration::from_secs(3 * 180);
/// Data without an answer for this long starts a new handshake.
pub const NEW_HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10 + 5);
/// The most that chance adds to a retry.
pub const MAX_JITTER: Duration = Duration::from_millis(333);
/// Initiations in one attempt before giving up.
pub const MAX_HANDSHAKE_ATTEMPTS: u32 = 90 / 5;
/// Initiations of one peer closer together than this are refused: 50 a second.
pub const INITIATION_INTERVAL: Duration = Duration::from_millis(20);

/// One of a peer's timers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timer {
    /// The initiation was not answered.
    RetransmitHandshake,
    /// Received data was not answered.
    SendKeepalive,
    /// Sent data was not answered.
    NewHandshake,
    /// No new session for a long time.
    EraseKeys,
    /// The path through a NAT must be kept open.
    PersistentKeepalive,
    /// Whether large packets still arrive is to be asked.
    ProbeMtu,
    /// The hours or the term of the peer's access may begin or end.
    Access,
}

impl Timer {
    /// Every timer, in the order they are handled when due together.
    pub const ALL: [Self; 7] = [
        Self::RetransmitHandshake,
        Self::SendKeepalive,
        Self::NewHandshake,
        Self::EraseKeys,
        Self::PersistentKeepalive,
        Self::ProbeMtu,
        Self::Access,
    ];
}

/// The deadlines of one peer.
#[derive(Clone, Debug, Default)]
pub struct Timers([Option<Instant>; Timer::ALL.len()]);

impl Timers {
    /// Starts or moves `timer`.
    pub fn set(&mut self, timer: Timer, deadline: Instant) {
        if let Some(slot) = self.0.get_mut(timer as usize) {
            *slot = Some(deadline);
        }
    }

    /// Stops `timer`.
    pub fn stop(&mut self, timer: Timer) {
        if let Some(slot) = self.0.get_mut(timer as usize) {
            *slot = None;
        }
    }

    /// Whether `timer` runs.
    pub fn is_set(&self, timer: Timer) -> bool {
        self.deadline(timer).is_some()
    }

    /// When `timer` fires.
    pub fn deadline(&self, timer: Timer) -> Option<Instant> {
        self.0.get(timer as usize).copied().flatten()
    }

    /// Stops and returns a timer that is due.
    pub fn take_due(&mut self, now: Instant) -> Option<Timer> {
        let due = |timer: &Timer| {
            self.0.get(*timer as usize).copied().flatten().is_some_and(|deadline| deadline <= now)
        };
        let timer = Timer::ALL.into_iter().find(due)?;
        self.stop(timer);
        Some(timer)
    }

    /// The earliest deadline.
    pub fn next(&self) -> Option<Instant> {
        self.0.iter().flatten().min().copied()
    }
}

/// The earliest deadline of every peer, in order.
#[derive(Clone, Debug, Default)]
pub struct TimerQueue(BTreeSet<(Instant, PeerId)>);

impl TimerQueue {
    /// Replaces the deadline of a peer.
    pub fn update(&mut self, peer: PeerId, old: Option<Instant>, new: Option<Instant>) {
        if old == new {
            return;
        }
        if let Some(deadline) = old {
            self.0.remove(&(deadline, peer));
        }
        if let Some(deadline) = new {
            self.0.insert((deadline, peer));
        }
    }

    /// The earliest deadline of all.
    pub fn next(&self) -> Option<Instant> {
        self.0.first().map(|&(deadline, _)| deadline)
    }

    /// A peer whose deadline has come. The peer stays queued until [`Self::update`].
    pub fn due(&self, now: Instant) -> Option<PeerId> {
        self.0.first().filter(|(deadline, _)| *deadline <= now).map(|&(_, peer)| peer)
    }
}
