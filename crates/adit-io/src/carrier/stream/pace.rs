//! How much the kernel may hold that it has not sent: little time, whatever the rate.

use std::net::TcpStream;
use std::os::fd::AsFd;

use super::distance::{Distance, settle};
use crate::sys::socket::{delivery_rate, set_option};

/// What the kernel may hold unsent until the rate is known; also the most for a connection that carries everything, or
/// to an end that is near.
pub(super) const NOT_SENT_BYTES: i32 = 64 * 1024;
/// A few packets: less would leave the kernel without work between an acknowledgement and us.
const NOT_SENT_BYTES_MIN: i32 = 6 * 1024;
/// Between looks at the rate.
const LOOK_NANOS: u64 = 50_000_000;
/// After so long the distance is known by more than the round trip of the first packet, which a busy moment can make long.
const SETTLE_NANOS: u64 = 500_000_000;

/// What may be unsent: what the rate of late brings in a time, but not more than so many bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Room {
    millis: u64,
    bytes_max: i32,
}

impl Room {
    /// For a connection that carries everything: what waits is late for all behind it. And to an end that is near, where
    /// nothing waits for long.
    const LITTLE: Self = Self { millis: 30, bytes_max: NOT_SENT_BYTES };
    /// For a connection to an end that is far, with another beside it for what sends little. A lost segment stops such a way for a
    /// round trip: what comes meanwhile waits here, where else it would be dropped.
    const MORE: Self = Self { millis: 100, bytes_max: 4 * 1024 * 1024 };

    /// What may be unsent at a rate in bytes per second; 0 is one that is not known.
    fn at(self, bytes_per_sec: u64) -> i32 {
        match bytes_per_sec.saturating_mul(self.millis) / 1_000 {
            _ if bytes_per_sec == 0 => NOT_SENT_BYTES,
            bytes => i32::try_from(bytes).unwrap_or(i32::MAX).clamp(NOT_SENT_BYTES_MIN, self.bytes_max),
        }
    }
}

/// What a connection asks of the kernel: by its distance once that is known, by the rate at which the other end receives, and
/// by what else goes by it.
#[derive(Debug)]
pub(super) struct Pace {
    limit: i32,
    distance: Option<Distance>,
    settles_nanos: Option<u64>,
    next_look_nanos: u64,
}

impl Default for Pace {
    fn default() -> Self {
        Self { limit: NOT_SENT_BYTES, distance: None, settles_nanos: None, next_look_nanos: 0 }
    }
}

impl Pace {
    /// Whether the other end is known to be far.
    pub(super) fn is_far(&self) -> bool {
        self.distance == Some(Distance::Far)
    }

    /// To be called with every send: whether something `waits` that the kernel did not take, and whether the connection
    /// `has_company`, another one for what sends little.
    pub(super) fn follow(&mut self, socket: &TcpStream, waits: bool, has_company: bool, now_nanos: u64) {
        if self.distance.is_none() {
            let settles = *self.settles_nanos.get_or_insert(now_nanos + SETTLE_NANOS);
            if waits || now_nanos >= settles {
                self.distance = Some(settle(socket));
            }
        }
        let room = if has_company && self.is_far() { Room::MORE } else { Room::LITTLE };
        // Without company it is lowered with the next send.
        let is_too_much = self.limit > room.bytes_max;
        let is_due = now_nanos >= self.next_look_nanos && (waits || self.limit > NOT_SENT_BYTES);
        if !is_too_much && !is_due {
            return;
        }
        self.next_look_nanos = now_nanos + LOOK_NANOS;
        let rate = delivery_rate(socket.as_fd()).unwrap_or(0);
        let mut limit = room.at(rate);
        if !waits {
            // The rate may be ours then, and not that of the way: that is no reason for more, nor for very little.
            limit = limit.max(NOT_SENT_BYTES).min(self.limit);
        }
        // Each change is a call; a small one is not worth it.
        if (is_too_much || (limit - self.limit).abs() > self.limit / 8)
            && set_option(socket.as_fd(), libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, limit).is_ok()
        {
            self.limit = limit;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use super::*;
    use crate::sys::socket::option;

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

    /// Both ends, after so much went over them that the kernel knows a rate, which over loopback is a high one.
    fn busy() -> [TcpStream; 2] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut far = listener.accept().unwrap().0;
        let mut into = vec![0; 64 * 1024];
        for _ in 0..64 {
            near.write_all(&into).unwrap();
            far.read_exact(&mut into).unwrap();
        }
        [near, far]
    }

    fn limit_of(socket: &TcpStream) -> i32 {
        option(socket.as_fd(), libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT).unwrap()
    }

    #[test]
    fn a_far_end_gets_room_for_its_rate_only_beside_another_connection_and_loses_it_at_once() {
        let [near, _far] = busy();
        let mut pace = Pace { distance: Some(Distance::Far), ..Pace::default() };
        pace.follow(&near, true, false, 0);
        assert!(pace.limit <= NOT_SENT_BYTES, "alone");
        pace.follow(&near, true, true, LOOK_NANOS - 1);
        assert!(pace.limit <= NOT_SENT_BYTES, "the next look is not due");
        pace.follow(&near, true, true, LOOK_NANOS);
        assert!(limit_of(&near) > NOT_SENT_BYTES);
        let more = limit_of(&near);
        pace.follow(&near, false, true, 2 * LOOK_NANOS);
        assert!(limit_of(&near) <= more && limit_of(&near) >= NOT_SENT_BYTES, "nothing waits");
        pace.follow(&near, false, false, 2 * LOOK_NANOS + 1);
        assert_eq!(limit_of(&near), NOT_SENT_BYTES, "alone again");

        let mut pace =
            Pace { distance: Some(Distance::Far), limit: NOT_SENT_BYTES + 4_000, ..Pace::default() };
        set_option(near.as_fd(), libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, pace.limit).unwrap();
        pace.follow(&near, false, false, 0);
        assert_eq!(limit_of(&near), NOT_SENT_BYTES, "however little it is too much");

        let mut pace = Pace { distance: Some(Distance::Near), ..Pace::default() };
        pace.follow(&near, true, true, 0);
        assert!(limit_of(&near) <= NOT_SENT_BYTES, "an end that is near");
    }

    #[test]
    fn the_distance_is_known_after_half_a_second_or_when_something_waits_and_stays_what_it_was() {
        let [near, far] = busy();
        let mut pace = Pace::default();
        for (at, known) in [(7, false), (6 + SETTLE_NANOS, false), (7 + SETTLE_NANOS, true)] {
            pace.follow(&near, false, true, at);
            assert_eq!(pace.distance.is_some(), known, "{at}");
        }
        let mut pace = Pace::default();
        pace.follow(&far, true, true, 7);
        assert!(pace.distance.is_some());
    }
}
