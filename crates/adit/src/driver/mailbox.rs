//! The queues into the engine thread, and what happens when they are full.
//!
//! - requests of the program: 64, the caller waits
//! - notices of the lanes: 4,096, a lane drops and counts; what was asked for is asked for again
//! - handshake messages: 1,024, a lane drops and counts; the sender tries again

use adit_proto::event::{HandshakeDatagram, Notice};
use adit_proto::forward::Forwarding;
use crossbeam_channel::{Receiver, Sender, bounded};

use super::engine::Request;

/// The sending half: cheap to clone, never blocks a lane.
#[derive(Clone)]
pub(super) struct Mailbox {
    pub(super) requests: Sender<Request>,
    notices: Sender<Notice>,
    handshakes: Sender<HandshakeDatagram>,
}

/// The engine thread's half.
pub(super) struct Inbox {
    pub(super) requests: Receiver<Request>,
    pub(super) notices: Receiver<Notice>,
    pub(super) handshakes: Receiver<HandshakeDatagram>,
}

pub(super) fn mailbox() -> (Mailbox, Inbox) {
    let (requests, requests_in) = bounded(64);
    let (notices, notices_in) = bounded(4_096);
    let (handshakes, handshakes_in) = bounded(1_024);
    (
        Mailbox { requests, notices, handshakes },
        Inbox { requests: requests_in, notices: notices_in, handshakes: handshakes_in },
    )
}

impl Mailbox {
    /// Hands the notices of a batch over, or tells the forwarding half which got lost.
    pub(super) fn deliver(&self, notices: &mut Vec<Notice>, forwarding: &Forwarding) {
        for notice in notices.drain(..) {
            let lost = match notice {
                Notice::Handshake(datagram) => {
                    self.handshakes.try_send(datagram).map_err(|lost| Notice::Handshake(lost.into_inner()))
                }
                notice => self.notices.try_send(notice).map_err(|lost| lost.into_inner()),
            };
            if let Err(notice) = lost {
                forwarding.notice_lost(&notice);
            }
        }
    }
}
