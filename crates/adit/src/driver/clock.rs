//! The clocks the protocol is driven with.

use adit_proto::time::{Clock, Instant, UnixTime};

/// The time since boot, suspended time included, so that keys age while the machine sleeps.
pub fn now() -> Instant {
    Instant(adit_io::sys::boottime_nanos())
}

/// Both clocks.
pub(super) fn clock() -> Clock {
    let wall = crate::wall_clock::now_exact();
    Clock { now: now(), wall: UnixTime { secs: wall.as_secs(), nanos: wall.subsec_nanos() } }
}
