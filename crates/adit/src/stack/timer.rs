//! When connections are looked after although nothing came.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use smoltcp::time::Instant;

use super::heading::Key;

/// A timer that is set anew for an earlier time leaves the later one behind, which then finds nothing to do.
#[derive(Debug, Default)]
pub(super) struct Timers(BinaryHeap<Reverse<(Instant, Key)>>);

impl Timers {
    pub(super) fn set(&mut self, at: Instant, key: Key) {
        self.0.push(Reverse((at, key)));
    }

    pub(super) fn next(&self) -> Option<Instant> {
        self.0.peek().map(|Reverse((at, _))| *at)
    }

    pub(super) fn pop_due(&mut self, now: Instant) -> Option<(Instant, Key)> {
        let Reverse((at, _)) = self.0.peek()?;
        (*at <= now).then(|| self.0.pop().map(|Reverse(timer)| timer)).flatten()
    }
}
