//! How much the kernel may hold that it has not sent: little time, whatever the rate.

use std::net::TcpStream;
use std::os::fd::AsFd;

use crate::sys::socket::{delivery_rate, set_option};

/// The kernel takes no more while so much is not even sent. What waits there is late for every packet behind it.
pub(super) const NOT_SENT_BYTES_MAX: i32 = 64 * 1024;
/// A few packets: less would leave the kernel without work between an acknowledgement and us.
const NOT_SENT_BYTES_MIN: i32 = 6 * 1024;
/// What waits unsent is to be away after so long.
const UNSENT_MILLIS: u64 = 30;
/// Between looks at the rate.
const LOOK_NANOS: u64 = 50_000_000;

/// Makes the limit of unsent bytes follow the rate at which the other end receives.
#[derive(Debug)]
pub(super) struct Pace {
    limit: i32,
    next_look_nanos: u64,
}

impl Default for Pace {
    fn default() -> Self {
        Self { limit: NOT_SENT_BYTES_MAX, next_look_nanos: 0 }
    }
}

impl Pace {
    /// To be called while something waits: only then the rate is that of the way, and not ours.
    pub(super) fn follow(&mut self, socket: &TcpStream, now_nanos: u64) {
        if now_nanos < self.next_look_nanos {
            return;
        }
        self.next_look_nanos = now_nanos + LOOK_NANOS;
        let Ok(rate) = delivery_rate(socket.as_fd()) else { return };
        let limit = limit_at(rate);
        // Each change is a call; a small one is not worth it.
        if (limit - self.limit).abs() > self.limit / 8
            && set_option(socket.as_fd(), libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, limit).is_ok()
        {
            self.limit = limit;
        }
    }
}

/// What may be unsent at a rate in bytes per second; 0 is one that is not known.
fn limit_at(bytes_per_sec: u64) -> i32 {
    match bytes_per_sec.saturating_mul(UNSENT_MILLIS) / 1_000 {
        _ if bytes_per_sec == 0 => NOT_SENT_BYTES_MAX,
        bytes => i32::try_from(bytes).unwrap_or(i32::MAX).clamp(NOT_SENT_BYTES_MIN, NOT_SENT_BYTES_MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_in_the_kernel_is_little_time_at_any_rate() {
        assert_eq!(limit_at(0), NOT_SENT_BYTES_MAX, "nothing is known yet");
        assert_eq!(limit_at(1_000), NOT_SENT_BYTES_MIN);
        assert_eq!(limit_at(500_000), 15_000);
        assert_eq!(limit_at(u64::MAX), NOT_SENT_BYTES_MAX);
    }
}
