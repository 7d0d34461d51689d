//! The queues into the engine thread, and what happens when they are full.
//!
//! - requests of the program: 64, the caller waits
//! - notices of the lanes: 4,096, a lane drops and counts; what was asked for is asked for again
//! - handshake messages whose sender is proven to receive where it sends from: 4,096, and others: 4,096; a lane drops and
//!   counts, the sender tries again. A flood from invented addresses fills the queue of the others only

use adit_proto::event::{HandshakeDatagram, Notice};
use adit_proto::forward::Forwarding;
use crossbeam_channel::{Receiver, Sender, bounded};

use super::Queue;
use super::engine::Request;

/// The sending half: cheap to clone, never blocks a lane.
#[derive(Clone)]
pub(super) struct Mailbox {
    pub(super) requests: Sender<Request>,
    notices: Sender<Notice>,
    proven: Sender<HandshakeDatagram>,
    unproven: Sender<HandshakeDatagram>,
}

/// The engine thread's half.
pub(super) struct Inbox {
    pub(super) requests: Receiver<Request>,
    pub(super) notices: Receiver<Notice>,
    /// Handshake messages that go first.
    pub(super) proven: Receiver<HandshakeDatagram>,
    pub(super) unproven: Receiver<HandshakeDatagram>,
}

pub(super) fn mailbox() -> (Mailbox, Inbox) {
    let (requests, requests_in) = bounded(64);
    let (notices, notices_in) = bounded(4_096);
    let (proven, proven_in) = bounded(4_096);
    let (unproven, unproven_in) = bounded(4_096);
    (
        Mailbox { requests, notices, proven, unproven },
        Inbox { requests: requests_in, notices: notices_in, proven: proven_in, unproven: unproven_in },
    )
}

impl Inbox {
    /// How full they are.
    pub(super) fn queues(&self) -> Vec<Queue> {
        fn queue<T>(name: &'static str, of: &Receiver<T>) -> Queue {
            Queue { name, length: of.len(), capacity: of.capacity().unwrap_or_default() }
        }
        vec![
            queue("requests", &self.requests),
            queue("notices", &self.notices),
            queue("handshakes_proven", &self.proven),
            queue("handshakes_unproven", &self.unproven),
        ]
    }

    /// The next handshake message of either queue. In turn: what the budgets leave of an unproven one is mostly the
    /// making of a cookie, and behind thousands of proven ones, the senders without a cookie would get none.
    pub(super) fn handshakes(&self) -> [Option<HandshakeDatagram>; 2] {
        [&self.proven, &self.unproven].map(|queue| queue.try_recv().ok())
    }
}

impl Mailbox {
    /// Hands the notices of a batch over, or tells the forwarding half which got lost.
    pub(super) fn deliver(&self, notices: &mut Vec<Notice>, forwarding: &Forwarding) {
        for notice in notices.drain(..) {
            let lost = match notice {
                Notice::Handshake(datagram) => {
                    let queue = if datagram.proven { &self.proven } else { &self.unproven };
                    queue.try_send(datagram).map_err(|lost| Notice::Handshake(lost.into_inner()))
                }
                notice => self.notices.try_send(notice).map_err(|lost| lost.into_inner()),
            };
            if let Err(notice) = lost {
                forwarding.notice_lost(&notice);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use adit_proto::endpoint::Endpoint;
    use adit_proto::engine::{Engine, EngineConfig};
    use adit_proto::reason::DropReason;

    use super::*;

    fn handshake(port: u16, proven: bool) -> Notice {
        let from = Endpoint::udp(([192, 0, 2, 1], port).into());
        Notice::Handshake(HandshakeDatagram { from, bytes: [0; 148], len: 148, proven })
    }

    #[test]
    fn a_flood_of_unproven_handshakes_pushes_out_no_proven_one_and_holds_none_up() {
        let (_, forwarding) = Engine::new(EngineConfig::default(), Box::new(|bytes| bytes.fill(7)));
        let (mailbox, inbox) = mailbox();
        let mut flood: Vec<_> = (0..10_000).map(|port| handshake(port, false)).collect();
        mailbox.deliver(&mut flood, &forwarding);
        assert_eq!(
            forwarding.drops.count_of(DropReason::QueueFull),
            10_000 - 4_096,
            "the flood fills its own queue"
        );
        let mut proven: Vec<_> = (20_000..24_000).map(|port| handshake(port, true)).collect();
        mailbox.deliver(&mut proven, &forwarding);
        assert_eq!(forwarding.drops.count_of(DropReason::QueueFull), 10_000 - 4_096, "and no other");
        let ports =
            || inbox.handshakes().map(|datagram| datagram.map(|datagram| datagram.from.remote.port()));
        for n in 0..4_000 {
            assert_eq!(ports(), [Some(20_000 + n), Some(n)], "one of each, in order");
        }
        for n in 4_000..4_096 {
            assert_eq!(ports(), [None, Some(n)]);
        }
        assert_eq!(ports(), [None, None]);
    }
}
