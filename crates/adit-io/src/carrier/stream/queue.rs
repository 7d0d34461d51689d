//! What waits for a connection that takes nothing now: little, and nothing old.
//!
//! A tunnel over TCP must not store what TCP inside it will send again anyway: two timers that wait for each other make
//! the way ever slower. So the queue holds [`WAITING_BYTES`] of messages no older than [`WAITING_NANOS`]; beyond that the
//! oldest go, whole. Messages of the protocol itself are kept: they are few, and losing one costs seconds.

use std::collections::VecDeque;

/// Bytes that may wait beyond what the kernel has taken.
pub const WAITING_BYTES: usize = 64 * 1024;
/// How long a packet may wait.
pub const WAITING_NANOS: u64 = 100_000_000;
/// Messages of the protocol that may wait whatever else does; later ones go the way of all others.
const KEPT: usize = 16;

/// A message, with its length in front, at the end of those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Where it ends in the batch.
    pub end: usize,
    /// Packets that go if it goes.
    pub packets: u32,
    /// A handshake message or keepalive: not to be dropped.
    pub kept: bool,
}

/// Packets dropped, by the limit that was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Dropped {
    /// More waited than may wait.
    pub full: u64,
    /// They waited too long.
    pub late: u64,
    /// The connection is gone.
    pub gone: u64,
}

#[derive(Clone, Copy, Debug)]
struct Waiting {
    len: usize,
    packets: u32,
    kept: bool,
    since_nanos: u64,
}

#[derive(Debug, Default)]
pub(super) struct SendQueue {
    bytes: Vec<u8>,
    messages: VecDeque<Waiting>,
    kept: usize,
}

impl SendQueue {
    pub(super) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    #[cfg(test)]
    pub(super) fn len_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Adds a message; `committed` bytes wait before the queue and cannot be dropped. The packets that had to go for it.
    pub(super) fn push(&mut self, frame: &[u8], mark: &Mark, committed: usize, now_nanos: u64) -> u64 {
        let kept = mark.kept && self.kept < KEPT;
        self.kept += usize::from(kept);
        self.bytes.extend_from_slice(frame);
        let waiting = Waiting { len: frame.len(), packets: mark.packets, kept, since_nanos: now_nanos };
        self.messages.push_back(waiting);
        let mut excess = (committed + self.bytes.len()).saturating_sub(WAITING_BYTES);
        self.drop_where(|waiting| {
            let goes = excess > 0;
            if goes {
                excess = excess.saturating_sub(waiting.len);
            }
            goes
        })
    }

    /// Drops what has waited too long; how many packets that were.
    pub(super) fn expire(&mut self, now_nanos: u64) -> u64 {
        self.drop_where(|waiting| now_nanos.saturating_sub(waiting.since_nanos) > WAITING_NANOS)
    }

    /// The first messages: at least one, and no more than fit in `limit` bytes.
    pub(super) fn front(&self, limit: usize) -> &[u8] {
        let mut len = 0;
        for waiting in &self.messages {
            if len > 0 && len + waiting.len > limit {
                break;
            }
            len += waiting.len;
        }
        self.bytes.get(..len).unwrap_or_default()
    }

    /// Removes whole messages of together `len` bytes from the front, and as much of the next as remains of `len`:
    /// those bytes are on their way, and the rest of that message is returned.
    pub(super) fn take(&mut self, len: usize) -> Vec<u8> {
        let mut end = 0;
        while end < len {
            let Some(waiting) = self.messages.pop_front() else { break };
            self.kept -= usize::from(waiting.kept);
            end += waiting.len;
        }
        let rest = self.bytes.get(len..end).unwrap_or_default().to_vec();
        self.bytes.drain(..end.min(self.bytes.len()));
        rest
    }

    /// Drops everything; how many packets that were.
    pub(super) fn clear(&mut self) -> u64 {
        let packets = self.messages.iter().map(|waiting| u64::from(waiting.packets)).sum();
        *self = Self::default();
        packets
    }

    fn drop_where(&mut self, mut goes: impl FnMut(&Waiting) -> bool) -> u64 {
        let (mut at, mut packets) = (0, 0);
        let bytes = &mut self.bytes;
        self.messages.retain(|waiting| {
            if waiting.kept || !goes(waiting) {
                at += waiting.len;
                return true;
            }
            bytes.drain(at..at + waiting.len);
            packets += u64::from(waiting.packets);
            false
        });
        packets
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DATA: Mark = Mark { end: 0, packets: 1, kept: false };
    const KEEPALIVE: Mark = Mark { end: 0, packets: 0, kept: true };

    #[test]
    fn the_oldest_packets_go_when_too_much_waits_and_messages_of_the_protocol_stay() {
        let mut queue = SendQueue::default();
        assert_eq!(queue.push(&[0; 34], &KEEPALIVE, 0, 0), 0);
        for n in 1..=10 {
            assert_eq!(queue.push(&[n; 6_000], &DATA, 0, 0), 0, "{n}");
        }
        assert_eq!(queue.push(&[11; 6_000], &DATA, 0, 0), 1);
        assert_eq!(queue.front(34), [0; 34]);
        assert!(queue.take(34).is_empty());
        assert_eq!(queue.front(1), [2; 6_000], "the first packet is the one that went");
        assert_eq!(queue.push(&[12; 34], &KEEPALIVE, 60_000, 0), 10, "what the kernel has begun with counts");
        assert_eq!(queue.front(1), [12; 34]);
    }

    #[test]
    fn packets_go_when_they_are_old() {
        let mut queue = SendQueue::default();
        for (at, mark) in [(0, DATA), (1, KEEPALIVE), (50_000_000, DATA)] {
            queue.push(&[at as u8; 40], &mark, 0, at);
        }
        assert_eq!(queue.expire(WAITING_NANOS), 0);
        assert_eq!(queue.expire(WAITING_NANOS + 1), 1);
        assert_eq!(queue.front(1), [1; 40]);
        assert_eq!(queue.expire(WAITING_NANOS + 50_000_001), 1);
        assert_eq!(queue.front(1 << 20).len(), 40);
    }

    #[test]
    fn a_message_that_was_begun_is_finished_first() {
        let mut queue = SendQueue::default();
        for n in 1..=3 {
            queue.push(&[n; 100], &DATA, 0, 0);
        }
        assert_eq!(queue.front(250).len(), 200, "no message is begun for nothing");
        assert_eq!(queue.take(130), [2; 70]);
        assert_eq!(queue.front(1 << 20), [3; 100]);
    }

    #[test]
    fn keepalives_alone_do_not_grow_without_bound() {
        let mut queue = SendQueue::default();
        let dropped: u64 = (0..100_000).map(|_| queue.push(&[0; 34], &KEEPALIVE, 0, 0)).sum();
        assert_eq!(dropped, 0, "they are no packets");
        assert!(queue.len_bytes() <= WAITING_BYTES);
    }

    proptest! {
        #[test]
        fn never_more_waits_than_may_wait(
            steps in prop::collection::vec((0_u8..4, 34_usize..70_000, any::<bool>(), 0_u64..50_000_000), 1..60),
        ) {
            let mut queue = SendQueue::default();
            let mut now = 0;
            let (mut pushed, mut gone, mut sent) = (0, 0, 0);
            for (what, len, kept, passed) in steps {
                now += passed;
                match what {
                    0 => gone += queue.expire(now),
                    1 => {
                        let len = queue.front(len).len();
                        let before = queue.messages.len();
                        prop_assert!(queue.take(len).is_empty());
                        sent += (before - queue.messages.len()) as u64;
                    }
                    _ => {
                        pushed += 1;
                        gone += queue.push(&vec![7; len], &Mark { end: 0, packets: 1, kept }, 0, now);
                    }
                }
                prop_assert_eq!(queue.bytes.len(), queue.messages.iter().map(|it| it.len).sum::<usize>());
                prop_assert_eq!(pushed, gone + sent + queue.messages.len() as u64);
                let droppable: usize = queue.messages.iter().filter(|it| !it.kept).map(|it| it.len).sum();
                prop_assert!(droppable <= WAITING_BYTES);
                prop_assert!(queue.messages.iter().filter(|it| it.kept).count() <= KEPT);
            }
        }
    }
}
