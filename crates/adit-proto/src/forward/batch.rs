//! Datagrams that a lane received together: what one of them was found to belong to, the next need not ask again.

use core::net::IpAddr;
use core::ops::Range;
use std::sync::Arc;

use super::{Forwarding, Inbound, Opened, is_whole, take_mark};
use crate::endpoint::Endpoint;
use crate::event::Notice;
use crate::keypair::Keypair;
use crate::packet::{Ecn, InsideHeader, ecn_decapsulate};
use crate::reason::DropReason;
use crate::time::Instant;
use crate::wire::{Message, TRANSPORT_HEADER_LEN, TRANSPORT_MIN_LEN};

/// Datagrams received together, at one moment.
///
/// The peer, its way to us and the owner of an inside source are looked up when they change, not for each message. So
/// what the engine publishes meanwhile (routes, limits, endpoints) holds from the next batch on at the latest;
/// a key that it retires is of no use at once. What a peer has sent is counted when the batch is dropped, so a quota
/// that is set meanwhile may be charged with what came before it.
#[derive(Debug)]
pub struct Batch<'f> {
    forwarding: &'f Forwarding,
    now: Instant,
    known: Option<Known>,
}

/// What the message before belonged to: an inside packet from `source`, of a peer without limits.
#[derive(Debug)]
struct Known {
    keypair: Arc<Keypair>,
    /// How messages of this session begin: type and receiver index.
    prefix: [u8; PREFIX_LEN],
    from: Endpoint,
    source: IpAddr,
    /// Not yet counted for the peer.
    messages: u64,
    bytes: u64,
}

const PREFIX_LEN: usize = 8;

impl Forwarding {
    /// For datagrams that are received together.
    pub fn batch(&self, now: Instant) -> Batch<'_> {
        Batch { forwarding: self, now, known: None }
    }
}

impl Batch<'_> {
    /// Handles one datagram in place. Returns where in `datagram` the inside packet lies, if there is one, for a device
    /// that takes packets whose checksum is to be finished.
    #[inline]
    pub fn arrive(
        &mut self,
        from: &Endpoint,
        ecn: Ecn,
        datagram: &mut [u8],
        notices: &mut Vec<Notice>,
    ) -> Option<Inbound> {
        let result = match &mut self.known {
            Some(known) if known.is_of(from, datagram) => {
                self.forwarding.arrive_known(self.now, known, ecn, datagram, notices)
            }
            _ => self.arrive_unknown(from, ecn, datagram, notices),
        };
        result.unwrap_or_else(|reason| {
            self.forwarding.drops.count(reason);
            None
        })
    }

    fn arrive_unknown(
        &mut self,
        from: &Endpoint,
        ecn: Ecn,
        datagram: &mut [u8],
        notices: &mut Vec<Notice>,
    ) -> Result<Option<Inbound>, DropReason> {
        let Self { forwarding, now, .. } = *self;
        self.known = None;
        let (suite, header) = match Message::parse(datagram)? {
            (suite, Message::Transport(header)) => (suite, header),
            (suite, message) => {
                return forwarding
                    .arrive_handshake(now, from, suite, &message, datagram, notices)
                    .map(|()| None);
            }
        };
        let (keypair, opened) = forwarding.open_transport(now, from, suite, &header, datagram, notices)?;
        let admitted = forwarding.admit_opened(now, &keypair, ecn, opened, notices)?;
        if let Some((source, _)) = &admitted
            && keypair.path.allowance.is_open()
            && let Some(&prefix) = datagram.first_chunk()
        {
            self.known = Some(Known { keypair, prefix, from: *from, source: *source, messages: 0, bytes: 0 });
        }
        Ok(admitted.map(|(_, inbound)| inbound))
    }
}

impl Known {
    #[inline]
    fn is_of(&self, from: &Endpoint, datagram: &[u8]) -> bool {
        datagram.len() >= TRANSPORT_MIN_LEN
            && datagram.first_chunk() == Some(&self.prefix)
            && self.from == *from
            && self.keypair.path.allowance.is_open()
    }
}

impl Drop for Known {
    fn drop(&mut self) {
        if self.messages > 0 {
            self.keypair.path.traffic.received(self.messages, self.bytes);
        }
    }
}

impl Forwarding {
    /// [`Batch::arrive`] for a message like the one before: same session, same way, and most often same source.
    #[inline]
    fn arrive_known(
        &self,
        now: Instant,
        known: &mut Known,
        ecn: Ecn,
        datagram: &mut [u8],
        notices: &mut Vec<Notice>,
    ) -> Result<Option<Inbound>, DropReason> {
        let counter = datagram.get(PREFIX_LEN..).and_then(<[u8]>::first_chunk);
        let counter = u64::from_le_bytes(*counter.ok_or(DropReason::MalformedDatagram)?);
        let message_len = datagram.len() as u64;
        let packet = known.keypair.open(now, counter, datagram)?;
        known.messages = known.messages.saturating_add(1);
        known.bytes = known.bytes.saturating_add(message_len);
        let checksum = take_mark(known.keypair.suite, packet);
        let Some(inside) = InsideHeader::parse(packet).ok().filter(|inside| inside.source == known.source)
        else {
            let opened = self.opened(now, &known.from, &known.keypair, packet, checksum, notices)?;
            let Some((source, inbound)) = self.admit_opened(now, &known.keypair, ecn, opened, notices)?
            else {
                return Ok(None);
            };
            known.source = source;
            return Ok(Some(inbound));
        };
        if !is_whole(checksum, &inside, packet) {
            return Err(DropReason::MalformedInside);
        }
        if known.keypair.path.activity.data_received(now) {
            notices.push(Notice::OwingReply(Arc::clone(&known.keypair.path)));
        }
        ecn_decapsulate(ecn, packet)?;
        Ok(Some(Inbound { packet: place_of(&inside), checksum }))
    }

    /// Where the inside packet of an opened datagram lies and whom it is from, if there is one and it may go in.
    fn admit_opened(
        &self,
        now: Instant,
        keypair: &Arc<Keypair>,
        ecn: Ecn,
        opened: Opened<'_>,
        notices: &mut Vec<Notice>,
    ) -> Result<Option<(IpAddr, Inbound)>, DropReason> {
        let (packet, inside, checksum) = match opened {
            Opened::Packet(packet, inside, checksum) => (packet, inside, checksum),
            Opened::Aside(_) => return Err(DropReason::MalformedInside),
            Opened::Nothing => return Ok(None),
        };
        let inside = inside.ok_or(DropReason::MalformedInside)?;
        let inside = self.admit_inside(now, &keypair.path, inside, packet, notices)?;
        ecn_decapsulate(ecn, packet)?;
        Ok(Some((inside.source, Inbound { packet: place_of(&inside), checksum })))
    }
}

#[inline]
fn place_of(inside: &InsideHeader) -> Range<usize> {
    TRANSPORT_HEADER_LEN..TRANSPORT_HEADER_LEN.saturating_add(inside.total_len)
}
