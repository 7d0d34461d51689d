//! Who may cost us a Diffie-Hellman: budgets for handshake messages whose mac1 is right.
//!
//! ```text
//!                 budget for unproven sources
//! message ──────┬── not spent ──▶ Admit
//!               └── spent within the last second: under load
//!                     ├─ source unproven ──▶ RequireCookie, from a budget of its own, or Drop
//!                     └─ source proven (mac2, or a connection)
//!                          └─ its own bucket, then the budget for proven sources ──▶ Admit or Drop
//! ```
//!
//! A message that turns out to come from a peer gives its source the token back: ten thousand peers may share one
//! address, and whoever holds no peer's key still spends. The budgets for all bound the work of peers as well.
//!
//! A source has a bucket only once it is proven to receive at its address, so spoofing buys neither
//! budget nor memory; and a flood of unproven messages does not touch the budget of proven ones.

use core::net::IpAddr;
use core::time::Duration;
use std::collections::BTreeMap;

use crate::endpoint::{Carrier, Endpoint};
use crate::reason::DropReason;
use crate::time::Instant;

/// What to do with a handshake message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Process it.
    Admit,
    /// Answer with a cookie reply only.
    RequireCookie,
    /// Drop it for this reason.
    Drop(DropReason),
}

/// A token bucket's measure: how many messages a second in the long run, and how many at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Messages each second; 0 admits nothing.
    pub per_sec: u32,
    /// Messages at once after a pause.
    pub burst: u32,
}

/// The budgets of a [`Limiter`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimitConfig {
    /// All messages of unproven sources together. Beyond this we are under load.
    pub unverified: Rate,
    /// All cookie replies together.
    pub cookie_replies: Rate,
    /// All messages of proven sources together, while under load.
    pub verified: Rate,
    /// The messages of one proven source, an IPv4 address or an IPv6 /64, while under load.
    pub per_source: Rate,
    /// How many proven sources are remembered; when the table is full, new ones are refused.
    pub max_sources: usize,
    /// How long we stay under load after the unverified budget was last found spent.
    pub hold: Duration,
}

impl Default for LimitConfig {
    fn default() -> Self {
        Self {
            unverified: Rate { per_sec: 1_000, burst: 1_000 },
            cookie_replies: Rate { per_sec: 10_000, burst: 10_000 },
            verified: Rate { per_sec: 3_000, burst: 3_000 },
            per_source: Rate { per_sec: 20, burst: 5 },
            max_sources: 65_536,
            hold: Duration::from_secs(1),
        }
    }
}

/// Decides which handshake messages are worth a Diffie-Hellman.
#[derive(Debug)]
pub struct Limiter {
    config: LimitConfig,
    unverified: Bucket,
    cookie_replies: Bucket,
    verified: Bucket,
    /// Ordered, so that there is no hash for an attacker to make collide.
    sources: BTreeMap<Source, Bucket>,
    loaded_until: Instant,
    next_sweep: Instant,
}

const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

impl Limiter {
    /// A limiter with full budgets.
    pub fn new(config: LimitConfig) -> Self {
        Self {
            config,
            unverified: Bucket::default(),
            cookie_replies: Bucket::default(),
            verified: Bucket::default(),
            sources: BTreeMap::new(),
            loaded_until: Instant::ZERO,
            next_sweep: Instant::ZERO,
        }
    }

    /// Decides about one handshake message from `from` whose mac1 is right. `has_valid_mac2` checks its
    /// mac2 and is called only when that matters. A connection proves its source as a cookie does.
    pub fn decide(
        &mut self,
        from: &Endpoint,
        now: Instant,
        has_valid_mac2: impl FnOnce() -> bool,
    ) -> Verdict {
        self.sweep(now);
        if !self.is_under_load(now) {
            if self.unverified.spend(self.config.unverified, now) {
                return Verdict::Admit;
            }
            self.hold_load(now);
        }
        if from.carrier != Carrier::Udp || has_valid_mac2() {
            return self.decide_proven(Source::of(from), now);
        }
        // The budget goes on measuring the demand, or a flood would get a burst admitted each time the
        // load seems to be over.
        if !self.unverified.spend(self.config.unverified, now) {
            self.hold_load(now);
        }
        if self.cookie_replies.spend(self.config.cookie_replies, now) {
            Verdict::RequireCookie
        } else {
            Verdict::Drop(DropReason::RateLimited)
        }
    }

    /// The message from `from` admitted last came from a peer and was fresh: it does not count against its source.
    pub fn was_from_peer(&mut self, from: &Endpoint) {
        if let Some(bucket) = self.sources.get_mut(&Source::of(from)) {
            bucket.give_back(self.config.per_source);
        }
    }

    /// Whether unproven sources have to show a cookie now.
    pub fn is_under_load(&self, now: Instant) -> bool {
        now < self.loaded_until
    }

    /// How many proven sources are remembered.
    pub fn source_count(&self) -> usize {
        self.sources.len()
    }

    fn hold_load(&mut self, now: Instant) {
        self.loaded_until = now.saturating_add(self.config.hold);
    }

    fn decide_proven(&mut self, source: Source, now: Instant) -> Verdict {
        const LIMITED: Verdict = Verdict::Drop(DropReason::RateLimited);
        // Asked first and spent last: a source over its own limit costs the others nothing, and
        // sources are not remembered faster than the budget admits them.
        if !self.verified.has_room(self.config.verified, now) {
            return LIMITED;
        }
        let is_full = self.sources.len() >= self.config.max_sources;
        if is_full && !self.sources.contains_key(&source) {
            return LIMITED;
        }
        let bucket = self.sources.entry(source).or_default();
        if bucket.spend(self.config.per_source, now) && self.verified.spend(self.config.verified, now) {
            Verdict::Admit
        } else {
            LIMITED
        }
    }

    /// Forgets the sources whose bucket is full again: a new one would be the same.
    fn sweep(&mut self, now: Instant) {
        if now >= self.next_sweep {
            self.sources.retain(|_, bucket| !bucket.is_full(now));
            self.next_sweep = now.saturating_add(SWEEP_INTERVAL);
        }
    }
}

/// A token bucket kept as one number: when it will be full again.
#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    full_at: Instant,
}

impl Bucket {
    /// Takes a token, if there is one.
    fn spend(&mut self, rate: Rate, now: Instant) -> bool {
        let after = self.after_spending(rate, now);
        self.full_at = after.unwrap_or(self.full_at);
        after.is_some()
    }

    /// Puts a token back that was spent.
    fn give_back(&mut self, rate: Rate) {
        if let Some(token) = Duration::from_secs(1).checked_div(rate.per_sec) {
            self.full_at = self.full_at.saturating_sub(token);
        }
    }

    fn has_room(&self, rate: Rate, now: Instant) -> bool {
        self.after_spending(rate, now).is_some()
    }

    fn is_full(&self, now: Instant) -> bool {
        self.full_at <= now
    }

    fn after_spending(&self, rate: Rate, now: Instant) -> Option<Instant> {
        let token = Duration::from_secs(1).checked_div(rate.per_sec)?;
        let full_at = self.full_at.max(now).saturating_add(token);
        (full_at.since(now) <= token.saturating_mul(rate.burst)).then_some(full_at)
    }
}

/// What shares a bucket: one host, or what one subscriber commonly gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Source {
    V4(u32),
    V6Network(u64),
}

impl Source {
    fn of(endpoint: &Endpoint) -> Self {
        match endpoint.remote.ip().to_canonical() {
            IpAddr::V4(address) => Self::V4(address.to_bits()),
            IpAddr::V6(address) => Self::V6Network((address.to_bits() >> 64) as u64),
        }
    }
}

#[cfg(test)]
mod tests;
