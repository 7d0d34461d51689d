//! The clocks the protocol is driven with.

use std::time::{SystemTime, UNIX_EPOCH};

use adit_proto::time::{Clock, Instant, UnixTime};

/// The time since boot, suspended time included, so that keys age while the machine sleeps.
pub fn now() -> Instant {
    Instant(adit_io::sys::boottime_nanos())
}

/// Both clocks.
pub(super) fn clock() -> Clock {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Clock { now: now(), wall: UnixTime { secs: wall.as_secs(), nanos: wall.subsec_nanos() } }
}
