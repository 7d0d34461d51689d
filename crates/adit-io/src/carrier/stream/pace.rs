//! How much the kernel may hold that it has not sent: little time, whatever the rate.

use std::net::TcpStream;
use std::os::fd::AsFd;

use crate::sys::socket::{delivery_rate, set_option};

/// The kernel takes no more while so much is not even sent, until the rate is known.
pub(super) const NOT_SENT_BYTES: i32 = 64 * 1024;
/// A few packets: less would leave the kernel without work between an acknowledgement and us.
const NOT_SENT_BYTES_MIN: i32 = 6 * 1024;
/// Between looks at the rate.
const LOOK_NANOS: u64 = 50_000_000;

/// What may be unsent at most: so much time of the rate, and never more than so many bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Room {
    millis: u64,
    bytes_max: i32,
}

impl Room {
    /// For a connection that carries everything: what waits there is late for every packet behind it. And for a short
    /// way, which takes whatever comes.
    pub(super) const LITTLE: Self = Self { millis: 30, bytes_max: NOT_SENT_BYTES };
    /// For a connection that only flows which send much go by. A lost segment stops a long way for a round trip; what comes
    /// meanwhile finds room, where else it would be dropped, and the flow slow down.
    pub(super) const MORE: Self = Self { millis: 100, bytes_max: 4 * 1024 * 1024 };

    /// What may be unsent at a rate in bytes per second; 0 is one that is not known.
    fn at(self, bytes_per_sec: u64) -> i32 {
        match bytes_per_sec.saturating_mul(self.millis) / 1_000 {
            _ if bytes_per_sec == 0 => NOT_SENT_BYTES,
            bytes => i32::try_from(bytes).unwrap_or(i32::MAX).clamp(NOT_SENT_BYTES_MIN, self.bytes_max),
        }
    }
}

/// Makes the limit of unsent bytes follow the rate at which the other end receives.
#[derive(Debug)]
pub(super) struct Pace {
    limit: i32,
    next_look_nanos: u64,
}

impl Default for Pace {
    fn default() -> Self {
        Self { limit: NOT_SENT_BYTES, next_look_nanos: 0 }
    }
}

impl Pace {
    /// To be called while something waits: only then the rate is that of the way, and not ours.
    pub(super) fn follow(&mut self, socket: &TcpStream, room: Room, now_nanos: u64) {
        if now_nanos < self.next_look_nanos {
            return;
        }
        self.next_look_nanos = now_nanos + LOOK_NANOS;
        let Ok(rate) = delivery_rate(socket.as_fd()) else { return };
        let limit = room.at(rate);
        // Each change is a call; a small one is not worth it.
        if (limit - self.limit).abs() > self.limit / 8
            && set_option(socket.as_fd(), libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, limit).is_ok()
        {
            self.limit = limit;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_in_the_kernel_is_little_time_at_any_rate() {
        for room in [Room::LITTLE, Room::MORE] {
            assert_eq!(room.at(0), NOT_SENT_BYTES, "nothing is known yet");
            assert_eq!(room.at(1_000), NOT_SENT_BYTES_MIN);
        }
        assert_eq!(Room::LITTLE.at(500_000), 15_000);
        assert_eq!(Room::LITTLE.at(u64::MAX), NOT_SENT_BYTES);
        assert_eq!(Room::MORE.at(500_000), 50_000);
        assert_eq!(Room::MORE.at(10_000_000), 1_000_000);
        assert_eq!(Room::MORE.at(u64::MAX), 4 * 1024 * 1024);
    }
}
