//! Whether the way of a connection loses packets: what TCP had to send again, and what came out of order.

use std::os::fd::AsFd;

use crate::sys::socket::{Segments, segments};

/// Between looks.
const LOOK_NANOS: u64 = 1_000_000_000;
/// Of what was counted before, this share is forgotten in a second.
const FORGOTTEN: f64 = 1.0 / 8.0;
/// From this share on the way loses.
const SHARE: f64 = 0.005;
/// Less is left of a single loss after six seconds.
const LEAST: f64 = 0.5;

/// What is known of both directions.
#[derive(Debug, Default)]
pub(super) struct Losses {
    /// Of what this end sends.
    pub(super) there: Share,
    /// Of what it receives. One loss puts several segments out of order, so that this is too much rather than too little.
    pub(super) back: Share,
    /// What the kernel had counted by the last look, and when that was.
    before: Option<(Segments, u64)>,
}

/// How many of many, of late.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Share {
    all: f64,
    lost: f64,
}

impl Losses {
    /// To be called with every send; what is known after a look, when one was due.
    pub(super) fn follow(&mut self, socket: impl AsFd, now_nanos: u64) -> Option<&Self> {
        if self.before.is_some_and(|(_, looked)| now_nanos < looked + LOOK_NANOS) {
            return None;
        }
        self.note(segments(socket.as_fd()).ok()?, now_nanos);
        Some(self)
    }

    fn note(&mut self, segments: Segments, now_nanos: u64) {
        // What was before the first look is not known to be of late.
        let Some((before, looked)) = self.before.replace((segments, now_nanos)) else { return };
        let secs = now_nanos.saturating_sub(looked) as f64 / 1e9;
        let kept = (1.0 - FORGOTTEN).powf(secs);
        let since = |now: u32, before: u32| f64::from(now.wrapping_sub(before));
        // What was sent again for nothing can be known as that a look later: it is taken back then.
        let lost = since(segments.again, before.again) - since(segments.came_twice, before.came_twice);
        self.there.note(kept, since(segments.sent, before.sent), lost);
        let out_of_order = since(segments.out_of_order, before.out_of_order);
        self.back.note(kept, since(segments.received, before.received), out_of_order);
    }
}

impl Share {
    fn note(&mut self, kept: f64, all: f64, lost: f64) {
        self.all = self.all * kept + all;
        self.lost = (self.lost * kept + lost).max(0.0);
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

    /// Looks a second from each other, after a first one.
    #[derive(Default)]
    struct Looks {
        losses: Losses,
        all: Segments,
        secs: u64,
    }

    impl Looks {
        fn look(&mut self) {
            self.losses.note(self.all, self.secs * LOOK_NANOS);
            self.secs += 1;
        }
    }

    /// Whether many are lost after looks at so many segments sent, sent again, and received twice.
    fn many_after(looks: &[(u32, u32, u32)]) -> bool {
        let mut them = Looks::default();
        them.look();
        for (sent, again, came_twice) in looks {
            them.all.sent += sent;
            them.all.again += again;
            them.all.came_twice += came_twice;
            them.look();
        }
        assert!(!them.losses.back.are_many(), "nothing was received");
        them.losses.there.are_many()
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
    fn losses_are_forgotten_with_time_and_not_with_looks() {
        let mut looks = Looks::default();
        looks.look();
        looks.all = Segments { sent: 10_000, again: 700, ..Segments::default() };
        looks.look();
        looks.secs += 55;
        looks.look();
        assert!(!looks.losses.there.are_many(), "{:?}", looks.losses);
    }

    #[test]
    fn a_way_back_loses_when_segments_come_out_of_order() {
        let mut looks = Looks::default();
        looks.look();
        looks.all = Segments { received: 1_000, out_of_order: 4, ..Segments::default() };
        looks.look();
        assert!(!looks.losses.back.are_many());
        looks.all = Segments { received: 1_100, out_of_order: 6, ..Segments::default() };
        looks.look();
        assert!(looks.losses.back.are_many() && !looks.losses.there.are_many());
    }

    #[test]
    fn counters_may_wrap_and_what_was_before_the_first_look_does_not_count() {
        let mut losses = Losses::default();
        losses.note(Segments { sent: u32::MAX, again: u32::MAX, ..Segments::default() }, 0);
        assert_eq!(losses.there.all, 0.0);
        losses.note(Segments { sent: 99, again: 0, ..Segments::default() }, LOOK_NANOS);
        assert_eq!((losses.there.all, losses.there.lost), (100.0, 1.0));
    }

    #[test]
    fn a_loopback_connection_loses_nothing_and_is_looked_at_once_a_second() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut far = listener.accept().unwrap().0;
        let (mut sender, mut receiver) = (Losses::default(), Losses::default());
        assert!(sender.follow(&near, 0).is_some() && receiver.follow(&far, 0).is_some());
        for _ in 0..10 {
            near.write_all(&[1; 100]).unwrap();
            far.read_exact(&mut [0; 100]).unwrap();
        }
        assert!(sender.follow(&near, LOOK_NANOS - 1).is_none(), "it is too early");
        assert!(sender.follow(&near, LOOK_NANOS).is_some() && receiver.follow(&far, LOOK_NANOS).is_some());
        assert!(
            sender.there.all >= 1.0 && receiver.back.all >= 1.0,
            "the kernel counts: {sender:?} {receiver:?}"
        );
        assert!(!sender.there.are_many() && !receiver.back.are_many());
    }
}
