//! What comes over streams: whole superpackets, and packets beside the others.

use std::sync::Arc;

use super::{Arrived, Checksum, Forwarding, FromStream, Opened};
use crate::content::{ASIDE_HEADER_LEN, Content, SUPERPACKET_HEADER_LEN};
use crate::endpoint::Endpoint;
use crate::event::Notice;
use crate::packet::InsideHeader;
use crate::path::Path;
use crate::reason::DropReason;
use crate::time::Instant;
use crate::unfinished;
use crate::wire::{Message, TRANSPORT_HEADER_LEN};

impl Forwarding {
    /// Handles one message of a stream in place, which may hold a superpacket. Says who sent it, when it authenticates.
    pub fn arrive_on_stream(
        &self,
        now: Instant,
        from: &Endpoint,
        message: &mut [u8],
        notices: &mut Vec<Notice>,
    ) -> FromStream {
        let opened = match Message::parse(message) {
            Ok((suite, Message::Transport(header))) => {
                let opened = self.open_transport(now, from, suite, &header, message, notices);
                let has_seen =
                    || self.keypairs.get(header.receiver).is_some_and(|it| it.has_seen(header.counter));
                match opened {
                    // Not one that came too late: that is lost.
                    Err(DropReason::Replay) if has_seen() => Err(DropReason::StreamCopy),
                    opened => opened,
                }
            }
            Ok((suite, handshake)) => {
                if let Err(reason) = self.arrive_handshake(now, from, suite, &handshake, message, notices) {
                    self.drops.count(reason);
                }
                return FromStream::default();
            }
            Err(reason) => Err(reason),
        };
        let (path, opened) = match opened {
            Ok((keypair, opened)) => (Arc::clone(&keypair.path), opened),
            Err(reason) => {
                self.drops.count(reason);
                return FromStream::default();
            }
        };
        let is_aside = matches!(opened, Opened::Aside(_));
        let arrived = match opened {
            Opened::Nothing => None,
            Opened::Aside(packet) => {
                let admitted = self.admit_aside(now, &path, packet, notices);
                admitted.unwrap_or_else(|reason| {
                    self.drops.count(reason);
                    None
                })
            }
            Opened::Packet(opened, inside, checksum) => {
                if checksum == Checksum::Unfinished {
                    let len = inside.map_or(0, |inside| inside.total_len);
                    let _ = unfinished::finish(opened.get_mut(..len).unwrap_or_default());
                }
                let admitted = self.admit_from_stream(now, &path, opened, inside, notices);
                admitted.map_err(|reason| self.drops.count(reason)).ok()
            }
        };
        FromStream { owner: Some(path), is_aside, arrived }
    }

    /// Whether a message is reason enough to keep a connection that somebody has opened: a handshake message that shows
    /// that the sender knows us, or a transport message that opens. Changes nothing.
    pub fn would_accept(&self, now: Instant, message: &[u8]) -> bool {
        match Message::parse(message) {
            Ok((suite, Message::Initiation(_) | Message::Response(_))) => {
                self.mac1_keys.load().as_ref().is_some_and(|keys| keys.verify(suite, message))
            }
            Ok((suite, Message::Transport(header))) => {
                let keypair = self.keypairs.get(header.receiver).filter(|keypair| keypair.suite == suite);
                keypair.is_some_and(|keypair| keypair.would_open(now, header.counter, message))
            }
            _ => false,
        }
    }

    fn admit_from_stream(
        &self,
        now: Instant,
        path: &Arc<Path>,
        opened: &[u8],
        inside: Option<InsideHeader>,
        notices: &mut Vec<Notice>,
    ) -> Result<Arrived, DropReason> {
        if let Some(inside) = inside {
            let inside = self.admit_inside(now, path, inside, opened, notices)?;
            let end = TRANSPORT_HEADER_LEN.saturating_add(inside.total_len);
            return Ok(Arrived { packet: TRANSPORT_HEADER_LEN..end, segment_size: None });
        }
        let Some(Content::Superpacket { segment_size }) = Content::parse(opened) else {
            return Err(DropReason::MalformedInside);
        };
        let packet = opened.get(SUPERPACKET_HEADER_LEN..).unwrap_or_default();
        let inside = self.admit_inside(now, path, InsideHeader::parse(packet)?, packet, notices)?;
        let start = TRANSPORT_HEADER_LEN.saturating_add(SUPERPACKET_HEADER_LEN);
        let end = start.saturating_add(inside.total_len);
        Ok(Arrived { packet: start..end, segment_size: Some(segment_size) })
    }

    /// The packet that came aside, unless nothing did but word of the connection.
    fn admit_aside(
        &self,
        now: Instant,
        path: &Arc<Path>,
        opened: &[u8],
        notices: &mut Vec<Notice>,
    ) -> Result<Option<Arrived>, DropReason> {
        let packet = opened.get(ASIDE_HEADER_LEN..).unwrap_or_default();
        if packet.first().is_none_or(|first| *first == 0) {
            path.activity.packet_received(now);
            return Ok(None);
        }
        let inside = InsideHeader::parse(packet)?;
        if path.activity.data_received(now) {
            notices.push(Notice::OwingReply(Arc::clone(path)));
        }
        let inside = self.admit_inside(now, path, inside, packet, notices)?;
        let start = TRANSPORT_HEADER_LEN.saturating_add(ASIDE_HEADER_LEN);
        Ok(Some(Arrived { packet: start..start.saturating_add(inside.total_len), segment_size: None }))
    }
}
