//! Time as the protocol sees it: always an argument, never asked for.

use core::time::Duration;

/// A point on the monotonic clock, in nanoseconds since an arbitrary start. The clock counts suspend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Instant(pub u64);

impl Instant {
    /// The start of the clock.
    pub const ZERO: Self = Self(0);

    /// So many milliseconds after the start of the clock.
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis.saturating_mul(1_000_000))
    }

    /// Whole milliseconds since the start of the clock.
    pub const fn as_millis(self) -> u64 {
        self.0 / 1_000_000
    }

    /// This instant moved later by `duration`; the end of the clock (584 years) if that is too far.
    pub fn saturating_add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// This instant moved earlier by `duration`; the start of the clock if that is too far.
    pub fn saturating_sub(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// The time from `earlier` to this instant; zero if `earlier` is later.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// The wall clock: the time since 1970-01-01 00:00:00 UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct UnixTime {
    /// Whole seconds.
    pub secs: u64,
    /// Nanoseconds of the second that has begun, below 10^9.
    pub nanos: u32,
}

/// Both clocks, read at the same moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Clock {
    /// The monotonic clock.
    pub now: Instant,
    /// The wall clock.
    pub wall: UnixTime,
}

/// A TAI64N timestamp: big-endian seconds (8 bytes) and nanoseconds (4), so that bytes sort like time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tai64n([u8; 12]);

/// 2^62 is 1970 TAI; TAI was ten seconds ahead of UTC then, and every WireGuard counts on from there.
const UNIX_EPOCH: u64 = (1 << 62) + 10;

/// Nanoseconds between two timestamps we send. Finer ones would make the handshake an oracle for our clock.
const TICK_NANOS: u32 = 1 << 24;

const NANOS_PER_SEC: u32 = 1_000_000_000;

impl Tai64n {
    /// The earliest timestamp: every other is newer.
    pub const ZERO: Self = Self([0; 12]);

    /// The timestamp of a wall clock time, rounded down to 2^24 ns (about 17 ms).
    pub fn from_unix(wall: UnixTime) -> Self {
        let nanos = wall.nanos.min(NANOS_PER_SEC.saturating_sub(1));
        Self::from_parts(wall.secs.saturating_add(UNIX_EPOCH), nanos & !TICK_NANOS.wrapping_sub(1))
    }

    /// The timestamp with these bytes, as a peer sent them or we stored them.
    pub const fn from_bytes(bytes: [u8; 12]) -> Self {
        Self(bytes)
    }

    /// The bytes on the wire.
    pub const fn as_bytes(&self) -> &[u8; 12] {
        &self.0
    }

    /// This timestamp, or one tick after `previous` if the clock has not moved past that: a peer
    /// refuses an initiation that is not newer than our last.
    pub fn next_after(self, previous: Self) -> Self {
        let (secs, nanos) = previous.parts();
        let nanos = nanos.saturating_add(TICK_NANOS);
        let successor = if nanos < NANOS_PER_SEC {
            Self::from_parts(secs, nanos)
        } else {
            Self::from_parts(secs.saturating_add(1), 0)
        };
        self.max(successor)
    }

    fn from_parts(secs: u64, nanos: u32) -> Self {
        let [a, b, c, d, e, f, g, h] = secs.to_be_bytes();
        let [i, j, k, l] = nanos.to_be_bytes();
        Self([a, b, c, d, e, f, g, h, i, j, k, l])
    }

    fn parts(self) -> (u64, u32) {
        let [a, b, c, d, e, f, g, h, i, j, k, l] = self.0;
        (u64::from_be_bytes([a, b, c, d, e, f, g, h]), u32::from_be_bytes([i, j, k, l]))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::arithmetic_side_effects)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn unix(secs: u64, nanos: u32) -> Tai64n {
        Tai64n::from_unix(UnixTime { secs, nanos })
    }

    #[test]
    fn the_monotonic_clock_never_runs_backwards_or_over() {
        let (early, late) = (Instant::from_millis(1_500), Instant::from_millis(4_000));
        assert_eq!(late.since(early), Duration::from_millis(2_500));
        assert_eq!(early.since(late), Duration::ZERO);
        assert_eq!(early.saturating_add(Duration::from_millis(2_500)), late);
        assert_eq!(late.saturating_add(Duration::MAX), Instant(u64::MAX));
        assert_eq!(Instant(1_999_999).as_millis(), 1);
    }

    #[test]
    fn a_timestamp_is_tai64n_with_the_offset_of_1970() {
        assert_eq!(*unix(0, 0).as_bytes(), [0x40, 0, 0, 0, 0, 0, 0, 0x0a, 0, 0, 0, 0]);
        assert_eq!(*unix(1, 1 << 24).as_bytes(), [0x40, 0, 0, 0, 0, 0, 0, 0x0b, 1, 0, 0, 0]);
    }

    #[test]
    fn a_timestamp_does_not_tell_the_time_finer_than_17_ms() {
        assert_eq!(unix(9, 0), unix(9, (1 << 24) - 1));
        assert_ne!(unix(9, 0), unix(9, 1 << 24));
    }

    #[test]
    fn a_second_timestamp_in_the_same_tick_is_still_newer() {
        let first = unix(100, 0);
        let second = unix(100, 5).next_after(first);
        assert_eq!(second, unix(100, 1 << 24));
        assert_eq!(unix(101, 0).next_after(second), unix(101, 0));
        assert_eq!(unix(50, 0).next_after(unix(100, 999_999_999)), unix(101, 0));
    }

    proptest! {
        #[test]
        fn successors_are_newer_than_anything_but_the_end_of_time(
            now in (0..=u64::MAX, 0..=u32::MAX), previous in any::<[u8; 12]>(),
        ) {
            let previous = Tai64n::from_bytes(previous);
            let now = unix(now.0, now.1);
            let next = now.next_after(previous);
            prop_assert!(next >= now);
            prop_assert!(next > previous || previous.parts().0 == u64::MAX);
        }

        #[test]
        fn timestamps_sort_like_time(a in (0..1u64 << 40, 0..NANOS_PER_SEC), b in (0..1u64 << 40, 0..NANOS_PER_SEC)) {
            if a < b {
                prop_assert!(unix(a.0, a.1) <= unix(b.0, b.1));
            }
        }
    }
}
