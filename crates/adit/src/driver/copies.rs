//! How much a peer may be sent twice, however many of its flows send little.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use adit_proto::time::Instant;

/// In a window; 2.6 Mbit/s.
const BYTES: u64 = 32 * 1024;
const WINDOW_MILLIS: u64 = 100;
/// Of the number below, these are the bytes; the window is above them.
const BYTES_BITS: u32 = 24;

/// The window that is now, and the bytes in it. Lanes that meet here may spend a little more.
#[derive(Debug, Default)]
pub(super) struct Copies(AtomicU64);

impl Copies {
    /// Whether so much more may be sent twice now.
    pub(super) fn spend(&self, now: Instant, bytes: usize) -> bool {
        let window = now.as_millis() / WINDOW_MILLIS;
        let before = self.0.load(Relaxed);
        let spent = if before >> BYTES_BITS == window { before & ((1 << BYTES_BITS) - 1) } else { 0 };
        let spent = spent.saturating_add(bytes as u64);
        if spent > BYTES {
            return false;
        }
        self.0.store(window << BYTES_BITS | spent, Relaxed);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_twice_is_bounded_in_each_tenth_of_a_second() {
        let copies = Copies::default();
        for start in [1_000, 1_100, 90_000_000_000] {
            let at = |millis: u64| Instant((start + millis) * 1_000_000);
            let spent = (0..100).filter(|it| copies.spend(at(*it), 1_000)).count();
            assert_eq!(spent, 32, "{start}");
            assert!(copies.spend(at(99), 768), "what is smaller may still fit");
            assert!(!copies.spend(at(99), 1));
        }
        assert!(!copies.spend(Instant(u64::MAX), usize::MAX));
    }
}
