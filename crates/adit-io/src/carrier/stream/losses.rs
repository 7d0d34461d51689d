//! Whether the way of a connection loses packets: what TCP had to send again, and what came out of order.

use std::os::fd::AsFd;

use crate::sys::socket::{Segments, segments};

/// Between looks.
const LOOK_NANOS: u64 = 1_000_000_000;
/// Of what was counted before, this share is forgotten with each look.
const FORGOTTEN: f64 = 1.0 / 8.0;
/// From this share on the way loses.
const SHARE: f64 = 0.005;
/// Less is left of a single loss after six looks.
const LEAST: f64 = 0.5;

/// What is known of both directions.
#[derive(Debug, Default)]
pub(super) struct Losses {
    /// Of what this end sends.
    pub(super) there: Share,
    /// Of what it receives. One loss puts several segments out of order, so that this is too much rather than too little.
    pub(super) back: Share,
    before: Segments,
    next_look_nanos: u64,
}

/// How many of many, of late.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Share {
    all: f64,
    lost: f64,
}

impl Losses {
    /// To be called with every send.
    pub(super) fn follow(&mut self, socket: impl AsFd, now_nanos: u64) -> &Self {
        if now_nanos >= self.next_look_nanos {
            self.next_look_nanos = now_nanos + LOOK_NANOS;
            if let Ok(segments) = segments(socket.as_fd()) {
                self.note(segments);
            }
        }
        self
    }

    fn note(&mut self, segments: Segments) {
        let before = std::mem::replace(&mut self.before, segments);
        let since = |now: u32, before: u32| f64::from(now.wrapping_sub(before));
        // What was sent again for nothing can be known as that a look later: it is taken back then.
        let lost = since(segments.again, before.again) - since(segments.came_twice, before.came_twice);
        self.there.note(since(segments.sent, before.sent), lost);
        let out_of_order = since(segments.out_of_order, before.out_of_order);
        self.back.note(since(segments.received, before.received), out_of_order);
    }
}

impl Share {
    fn note(&mut self, all: f64, lost: f64) {
        self.all = self.all * (1.0 - FORGOTTEN) + all;
        self.lost = (self.lost * (1.0 - FORGOTTEN) + lost).max(0.0);
    }

    /// Whether they are so many that it is worth to do something about it.
    pub(super) fn are_many(self) -> bool {
        self.lost >= LEAST && self.lost >= self.all * SHARE
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    /// Whether many are lost after looks at so many segments sent, sent again, and received twice.
    fn many_after(looks: &[(u32, u32, u32)]) -> bool {
        let mut losses = Losses::default();
        let mut all = Segments::default();
        for (sent, again, came_twice) in looks {
            all.sent += sent;
            all.again += again;
            all.came_twice += came_twice;
            losses.note(all);
        }
        assert!(!losses.back.are_many(), "nothing was received");
        losses.there.are_many()
    }

    #[test]
    fn a_way_loses_when_half_a_percent_was_sent_again_lately_and_not_for_nothing() {
        assert!(!many_after(&[]));
        assert!(!many_after(&[(1_000, 0, 0)]));
        assert!(!many_after(&[(1_000, 4, 0)]), "a few of many");
        assert!(many_after(&[(1_000, 5, 0)]));
        assert!(many_after(&[(3, 1, 0)]), "one of few");
        assert!(!many_after(&[(1_000, 50, 46)]), "the other end had them");
        assert!(!many_after(&[(100, 2, 0), (100, 0, 2)]), "and says so a look later");
        assert!(many_after(&[(50, 1, 0), (50, 0, 0), (50, 1, 0), (50, 0, 0)]));
        let quiet = |looks| [vec![(3, 1, 0)], vec![(0, 0, 0); looks]].concat();
        assert!(many_after(&quiet(5)));
        assert!(!many_after(&quiet(6)), "that was long ago");
    }

    #[test]
    fn a_way_back_loses_when_segments_come_out_of_order() {
        let mut losses = Losses::default();
        losses.note(Segments { received: 1_000, out_of_order: 4, ..Segments::default() });
        assert!(!losses.back.are_many());
        losses.note(Segments { received: 1_100, out_of_order: 6, ..Segments::default() });
        assert!(losses.back.are_many() && !losses.there.are_many());
    }

    #[test]
    fn counters_may_wrap() {
        let before = Segments { sent: u32::MAX, again: u32::MAX, ..Segments::default() };
        let mut losses = Losses { before, ..Losses::default() };
        losses.note(Segments { sent: 99, again: 0, ..Segments::default() });
        assert_eq!((losses.there.all, losses.there.lost), (100.0, 1.0));
    }

    #[test]
    fn a_loopback_connection_loses_nothing_and_is_looked_at_once_a_second() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut far = listener.accept().unwrap().0;
        let mut losses = Losses::default();
        losses.follow(&near, 0);
        for _ in 0..10 {
            near.write_all(&[1; 100]).unwrap();
            far.read_exact(&mut [0; 100]).unwrap();
        }
        losses.follow(&near, LOOK_NANOS - 1);
        assert_eq!(losses.there.all, 0.0, "it is too early");
        losses.follow(&near, LOOK_NANOS);
        assert!(losses.there.all >= 1.0, "the kernel counts segments: {losses:?}");
        assert!(!losses.there.are_many() && !losses.back.are_many());
        let mut losses = Losses::default();
        losses.follow(&far, 0);
        assert!(losses.back.all >= 1.0, "those that come, too: {losses:?}");
    }
}
