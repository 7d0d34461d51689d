//! The replay window (RFC 6479): a ring of bit words that slides without shifting.
//!
//! ```text
//!             oldest word in the ring                 newest counter
//!                    │                                       │
//!   too old ─────────┤ 128 words of 64 bits; the oldest word ├───── not seen yet
//!                    │ is only partly inside the window      │
//! ```

use crate::keypair::REJECT_AFTER_MESSAGES;

/// How far below the newest counter a message may be and still be accepted.
pub const WINDOW: u64 = (WORDS as u64 - 1) * u64::BITS as u64;

const WORDS: usize = 128;
const MASK: usize = WORDS - 1;

/// Which counters of a session were received.
#[derive(Clone, Debug)]
pub struct ReplayWindow {
    words: [u64; WORDS],
    /// One more than the newest committed counter; 0 before the first.
    next: u64,
    accepted: u64,
}

impl Default for ReplayWindow {
    fn default() -> Self {
        Self { words: [0; WORDS], next: 0, accepted: 0 }
    }
}

impl ReplayWindow {
    /// One more than the newest committed counter; 0 before the first.
    pub fn numbered(&self) -> u64 {
        self.next
    }

    /// How many counters were committed.
    pub fn accepted(&self) -> u64 {
        self.accepted
    }

    /// Whether [`Self::commit`] would accept `counter` now.
    pub fn would_accept(&self, counter: u64) -> bool {
        let (slot, bit) = position(counter);
        let seen = || self.words.get(slot).is_none_or(|word| word & bit != 0);
        self.is_in_range(counter) && (counter >= self.next || !seen())
    }

    /// Whether `counter` was committed, as far as the window knows.
    pub fn has_seen(&self, counter: u64) -> bool {
        let (slot, bit) = position(counter);
        let is_marked = self.words.get(slot).is_some_and(|word| word & bit != 0);
        self.is_in_range(counter) && counter < self.next && is_marked
    }

    /// Marks `counter` as received. Only for messages that authenticated: a forged counter must not
    /// move the window. False when it was received before, is older than the window or past the last.
    pub fn commit(&mut self, counter: u64) -> bool {
        if !self.is_in_range(counter) {
            return false;
        }
        if counter >= self.next {
            self.advance(counter);
        }
        let (slot, bit) = position(counter);
        let Some(word) = self.words.get_mut(slot) else { return false };
        let fresh = *word & bit == 0;
        *word |= bit;
        self.accepted = self.accepted.saturating_add(u64::from(fresh));
        fresh
    }

    fn is_in_range(&self, counter: u64) -> bool {
        counter < REJECT_AFTER_MESSAGES && counter.saturating_add(WINDOW) >= self.next.saturating_sub(1)
    }

    /// Clears the words between the newest counter and `counter`, which becomes the newest.
    fn advance(&mut self, counter: u64) {
        let newest = word_of(self.next.saturating_sub(1));
        let clear = word_of(counter).saturating_sub(newest).min(WORDS as u64);
        for step in 1..=clear {
            if let Some(word) = self.words.get_mut(slot_of(newest.wrapping_add(step))) {
                *word = 0;
            }
        }
        self.next = counter.saturating_add(1);
    }
}

fn position(counter: u64) -> (usize, u64) {
    (slot_of(word_of(counter)), 1 << (counter & 63))
}

fn word_of(counter: u64) -> u64 {
    counter >> 6
}

fn slot_of(word: u64) -> usize {
    (word as usize) & MASK
}

#[cfg(test)]
mod tests;
