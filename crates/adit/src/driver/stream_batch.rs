//! The messages that a lane has sealed for a connection and not yet sent.

use std::sync::Arc;

use adit_io::carrier::stream::{Mark, frame};
use adit_io::tun::Inside;
use adit_proto::content::{ASIDE_HEADER, Content, SEGMENT_MIN, SUPERPACKET_HEADER_LEN};
use adit_proto::endpoint::Endpoint;
use adit_proto::event::Notice;
use adit_proto::forward::Forwarding;
use adit_proto::keypair::{Keypair, blocks_of};
use adit_proto::reason::DropReason;
use adit_proto::time::Instant;

use super::sparse::{Sends, SparseFlows};
use super::streams::{BESIDE, Stream, Streams, count};

/// Length, header and tag of a message.
const OVERHEAD: usize = frame::LENGTH_LEN + 32;
const HEADER: usize = 16;
/// The batch is sent when it holds this much.
const FULL: usize = 256 * 1024;

/// Sealed messages to one connection, and to those beside it.
pub(super) struct StreamBatch {
    streams: Arc<Streams>,
    main: Outbox,
    asides: [Outbox; BESIDE],
    sparse: SparseFlows,
}

/// The connections that a packet goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    /// The one that carries the session.
    Main,
    /// One beside it.
    Aside,
    /// Both beside it. Sealed once: the replay window of the other end takes what comes first.
    Asides,
}

/// Sealed messages to one connection, back to back, each with its length in front.
#[derive(Default)]
struct Outbox {
    to: Option<Arc<Stream>>,
    bytes: Vec<u8>,
    marks: Vec<Mark>,
}

impl StreamBatch {
    pub(super) fn new(streams: Arc<Streams>) -> Self {
        let (main, asides) = Default::default();
        Self { streams, main, asides, sparse: SparseFlows::new() }
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
        let number = endpoint.carrier.connection();
        if !number.is_some_and(|number| self.main.address(&self.streams, number, now, forwarding)) {
            forwarding.drops.add(DropReason::StreamGone, packets as u64);
            return;
        }
        let by = self.connections_for(now, forwarding, inside, buffer);
        let is_aside = by != By::Main;
        let [aside, _] = &mut self.asides;
        let outbox = if is_aside { aside } else { &mut self.main };
        let whole = inside.segment_size().filter(|size| *size >= SEGMENT_MIN).filter(|_| {
            packets > 1 && inside.len() + SUPERPACKET_HEADER_LEN + OVERHEAD <= frame::MESSAGE_MAX
        });
        let (before, marks_before) = (outbox.bytes.len(), outbox.marks.len());
        let messages = match whole {
            Some(segment_size) => outbox.seal_whole(keypair, segment_size, inside, buffer),
            None => outbox.seal_packets(forwarding, keypair, is_aside, inside, buffer),
        };
        if messages == 0 {
            outbox.bytes.truncate(before);
            forwarding.drops.add(DropReason::KeyExhausted, packets as u64);
            if keypair.rekey_after_sending(now) {
                notices.push(Notice::Rekey(Arc::clone(keypair)));
            }
            return;
        }
        let sent = outbox.bytes.len() - before - messages * frame::LENGTH_LEN;
        forwarding.sent(now, keypair, messages as u64, sent as u64, notices);
        if by == By::Asides {
            let [aside, other] = &mut self.asides;
            other.copy(aside, before, marks_before);
        }
        for outbox in self.asides.iter_mut().chain([&mut self.main]) {
            if outbox.bytes.len() >= FULL {
                outbox.send(now, forwarding);
            }
        }
    }

    /// Hands everything to the connections.
    pub(super) fn send(&mut self, now: Instant, forwarding: &Forwarding) {
        for outbox in self.asides.iter_mut().chain([&mut self.main]) {
            outbox.send(now, forwarding);
        }
    }

    /// The connections that a packet goes by. The outboxes of those beside the first are addressed to them then.
    fn connections_for(
        &mut self,
        now: Instant,
        forwarding: &Forwarding,
        inside: &Inside,
        buffer: &[u8],
    ) -> By {
        let Self { streams, main, asides, sparse } = self;
        let Some(main) = &main.to else { return By::Main };
        let numbers = main.beside();
        if numbers == [None; BESIDE] {
            return By::Main;
        }
        let packet = buffer.get(..inside.len()).unwrap_or_default();
        let sends = sparse.take(now, packet, inside.count());
        if sends == Sends::Much {
            return By::Main;
        }
        let [one, other] = asides;
        let mut numbers = numbers.into_iter().flatten();
        let mut lead = |outbox: &mut Outbox| {
            numbers.by_ref().any(|number| {
                let is_there = outbox.address(streams, number, now, forwarding);
                if !is_there {
                    main.part_from(number);
                }
                is_there
            })
        };
        if !lead(one) {
            return By::Main;
        }
        let loses = main.connection.loses() || one.loses();
        match sends {
            _ if loses && lead(other) && main.copies.spend(now, inside.len()) => By::Asides,
            Sends::Little => By::Aside,
            Sends::Acknowledgement | Sends::Much => By::Main,
        }
    }
}

impl Outbox {
    /// Hands everything to the connection.
    fn send(&mut self, now: Instant, forwarding: &Forwarding) {
        if self.marks.is_empty() {
            return;
        }
        if let Some(stream) = &self.to {
            count(&stream.send(&self.bytes, &self.marks, now), forwarding);
        }
        self.bytes.clear();
        self.marks.clear();
    }

    /// Makes the outbox one for this connection. False when that is gone.
    fn address(&mut self, streams: &Streams, number: u64, now: Instant, forwarding: &Forwarding) -> bool {
        if self.to.as_ref().is_some_and(|to| to.number == number && !to.connection.is_closed()) {
            return true;
        }
        self.send(now, forwarding);
        self.to = streams.get(number).filter(|it| !it.connection.is_closed());
        self.to.is_some()
    }

    /// Whether what it sends gets lost.
    fn loses(&self) -> bool {
        self.to.as_ref().is_some_and(|to| to.connection.loses())
    }

    /// Takes what another one holds from there on, too.
    fn copy(&mut self, other: &Self, bytes_from: usize, marks_from: usize) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(other.bytes.get(bytes_from..).unwrap_or_default());
        let marks = other.marks.get(marks_from..).unwrap_or_default();
        // When a copy has to go, no packet does.
        self.marks.extend(marks.iter().map(|it| Mark {
            end: it.end - bytes_from + start,
            packets: 0,
            kept: it.kept,
        }));
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
        is_aside: bool,
        inside: &Inside,
        buffer: &[u8],
    ) -> usize {
        let padding = forwarding.padding();
        let header = if is_aside { &ASIDE_HEADER[..] } else { &[] };
        let mut segments = inside.segments(buffer);
        let padded = padding.padded_len(header.len() + segments.stride());
        let count = segments.count();
        let Some(first) = keypair.reserve(count as u64, count as u64 * blocks_of(padded)) else { return 0 };
        let mut messages = 0;
        for counter in (first..).take(count) {
            let start = self.begin(padded);
            let content = self.bytes.len();
            self.bytes.extend_from_slice(header);
            let at = self.bytes.len();
            self.bytes.resize(at + segments.stride(), 0);
            let Some(len) = segments.next(&mut self.bytes[at..]) else {
                self.bytes.truncate(start);
                break;
            };
            self.bytes.truncate(at + len);
            self.bytes.resize(content + padding.padded_len(header.len() + len), 0);
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
