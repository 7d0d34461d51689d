//! The messages that a lane has sealed for a connection and not yet sent.

use std::sync::Arc;

use adit_io::carrier::stream::{Mark, frame};
use adit_io::tun::Inside;
use adit_proto::content::{Content, SEGMENT_MIN, SUPERPACKET_HEADER_LEN};
use adit_proto::endpoint::Endpoint;
use adit_proto::event::Notice;
use adit_proto::forward::Forwarding;
use adit_proto::keypair::{Keypair, blocks_of};
use adit_proto::reason::DropReason;
use adit_proto::time::Instant;

use super::streams::{Stream, Streams, count};

/// Length, header and tag of a message.
const OVERHEAD: usize = frame::LENGTH_LEN + 32;
const HEADER: usize = 16;
/// The batch is sent when it holds this much.
const FULL: usize = 256 * 1024;

/// Sealed messages to one connection, back to back, each with its length in front.
pub(super) struct StreamBatch {
    streams: Arc<Streams>,
    to: Option<Arc<Stream>>,
    bytes: Vec<u8>,
    marks: Vec<Mark>,
}

impl StreamBatch {
    pub(super) fn new(streams: Arc<Streams>) -> Self {
        Self { streams, to: None, bytes: Vec::new(), marks: Vec::new() }
    }

    /// Seals a packet, or a superpacket as one message.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn seal(
        &mut self,
        now: Instant,
        forwarding: &Forwarding,
        keypair: &Arc<Keypair>,
        endpoint: &Endpoint,
        inside: &Inside,
        buffer: &[u8],
        notices: &mut Vec<Notice>,
    ) {
        let packets = inside.count();
        if !self.address(now, endpoint, forwarding) {
            forwarding.drops.add(DropReason::StreamGone, packets as u64);
            return;
        }
        let whole = inside.segment_size().filter(|size| *size >= SEGMENT_MIN).filter(|_| {
            packets > 1 && inside.len() + SUPERPACKET_HEADER_LEN + OVERHEAD <= frame::MESSAGE_MAX
        });
        let before = self.bytes.len();
        let messages = match whole {
            Some(segment_size) => self.seal_whole(keypair, segment_size, inside, buffer),
            None => self.seal_packets(forwarding, keypair, inside, buffer),
        };
        if messages == 0 {
            self.bytes.truncate(before);
            forwarding.drops.add(DropReason::KeyExhausted, packets as u64);
            if keypair.rekey_after_sending(now) {
                notices.push(Notice::Rekey(Arc::clone(keypair)));
            }
            return;
        }
        let sent = self.bytes.len() - before - messages * frame::LENGTH_LEN;
        forwarding.sent(now, keypair, messages as u64, sent as u64, notices);
        if self.bytes.len() >= FULL {
            self.send(now, forwarding);
        }
    }

    /// Hands everything to the connection.
    pub(super) fn send(&mut self, now: Instant, forwarding: &Forwarding) {
        if self.marks.is_empty() {
            return;
        }
        if let Some(stream) = &self.to {
            count(&stream.connection.send(&self.bytes, &self.marks, now.0), forwarding);
        }
        self.bytes.clear();
        self.marks.clear();
    }

    /// Makes the batch one for this endpoint. False when its connection is gone.
    fn address(&mut self, now: Instant, endpoint: &Endpoint, forwarding: &Forwarding) -> bool {
        let Some(number) = endpoint.carrier.connection() else { return false };
        if self.to.as_ref().is_some_and(|to| to.number == number && !to.connection.is_closed()) {
            return true;
        }
        self.send(now, forwarding);
        self.to = self.streams.get(number);
        self.to.is_some()
    }

    fn seal_whole(&mut self, keypair: &Keypair, segment_size: u16, inside: &Inside, buffer: &[u8]) -> usize {
        let content_len = SUPERPACKET_HEADER_LEN + inside.len();
        let Some(counter) = keypair.reserve(1, blocks_of(content_len)) else { return 0 };
        let packet = buffer.get(..inside.len()).unwrap_or_default();
        let start = self.begin(content_len);
        self.bytes.extend_from_slice(&Content::superpacket_header(segment_size));
        self.bytes.extend_from_slice(packet);
        usize::from(self.finish(start, keypair, counter, inside.count() as u32))
    }

    fn seal_packets(
        &mut self,
        forwarding: &Forwarding,
        keypair: &Keypair,
        inside: &Inside,
        buffer: &[u8],
    ) -> usize {
        let padding = forwarding.padding();
        let mut segments = inside.segments(buffer);
        let padded = padding.padded_len(segments.stride());
        let count = segments.count();
        let Some(first) = keypair.reserve(count as u64, count as u64 * blocks_of(padded)) else { return 0 };
        let mut messages = 0;
        for counter in (first..).take(count) {
            let start = self.begin(padded);
            let at = self.bytes.len();
            self.bytes.resize(at + segments.stride(), 0);
            let Some(len) = segments.next(&mut self.bytes[at..]) else {
                self.bytes.truncate(start);
                break;
            };
            self.bytes.truncate(at + len);
            self.bytes.resize(at + padding.padded_len(len), 0);
            messages += usize::from(self.finish(start, keypair, counter, 1));
        }
        messages
    }

    /// Makes room for the length and the header of a message with so much content; where it starts.
    fn begin(&mut self, content_len: usize) -> usize {
        let start = self.bytes.len();
        self.bytes.reserve(content_len + OVERHEAD);
        self.bytes.resize(start + frame::LENGTH_LEN + HEADER, 0);
        start
    }

    /// Seals the message that starts there, in place.
    fn finish(&mut self, start: usize, keypair: &Keypair, counter: u64, packets: u32) -> bool {
        self.bytes.resize(self.bytes.len() + OVERHEAD - frame::LENGTH_LEN - HEADER, 0);
        let (length, message) = self.bytes[start..].split_at_mut(frame::LENGTH_LEN);
        let sealed = frame::length_of(message.len()).and_then(|stated| {
            length.copy_from_slice(&stated);
            keypair.seal(counter, message)
        });
        match sealed {
            Some(()) => self.marks.push(Mark { end: self.bytes.len(), packets, kept: false }),
            None => self.bytes.truncate(start),
        }
        sealed.is_some()
    }
}
