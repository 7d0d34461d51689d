//! The connections that a lane receives from.

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use adit_io::carrier::stream::frame::{self, Frame};
use adit_io::poll::Poller;
use adit_proto::event::Notice;
use adit_proto::forward::Forwarding;
use adit_proto::path::Path;
use adit_proto::time::Instant;
use crossbeam_channel::Sender;

use super::DriverEvent;
use super::streams::{Stream, Streams, count};

/// Bytes read at once.
const READ: usize = 256 * 1024;
/// The longest incomplete message, what is read, and what TLS may yield beyond it.
const MEMORY: usize = frame::LENGTH_LEN + frame::MESSAGE_MAX + READ + 32 * 1024;
/// Reads of one connection before others get their turn.
const READS_PER_TURN: usize = 4;

/// Where the packets of a connection go.
pub(super) trait StreamSink {
    /// Takes the packet or superpacket at `packet`.
    fn take(&mut self, memory: &mut [u8], packet: Range<usize>, segment_size: Option<u16>);
    /// Everything of `memory` must be away now.
    fn flush(&mut self, memory: &[u8]);
}

/// A lane's connections, and memory to receive into, which is there as soon as there is one.
pub(super) struct StreamEdge {
    streams: Arc<Streams>,
    events: Sender<DriverEvent>,
    mine: HashMap<u64, Mine>,
    ready: Vec<u64>,
    memory: Vec<u8>,
    scratch: Vec<u8>,
}

struct Mine {
    stream: Arc<Stream>,
    /// The beginning of a message.
    tail: Vec<u8>,
    owner: Option<Arc<Path>>,
}

impl StreamEdge {
    pub(super) fn new(streams: Arc<Streams>, events: Sender<DriverEvent>) -> Self {
        let (memory, scratch) = (Vec::new(), Vec::new());
        Self { streams, events, mine: HashMap::new(), ready: Vec::new(), memory, scratch }
    }

    /// Receives from a connection from now on.
    pub(super) fn adopt(&mut self, stream: Arc<Stream>, poller: &Poller) {
        if self.memory.is_empty() {
            self.memory = vec![0; MEMORY];
            self.scratch = vec![0; READ];
        }
        let number = stream.number;
        let tail = stream.take_received();
        if poller.add_edges(&stream.connection, number).is_err() {
            self.end(number);
            return;
        }
        self.mine.insert(number, Mine { stream, tail, owner: None });
        self.note(number);
    }

    /// Something happened to the descriptor with this token.
    pub(super) fn note(&mut self, number: u64) {
        if self.mine.contains_key(&number) && !self.ready.contains(&number) {
            self.ready.push(number);
        }
    }

    /// Whether a connection may have something to receive.
    pub(super) fn is_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Serves every connection that something happened to, for a turn each.
    pub(super) fn serve(
        &mut self,
        now: Instant,
        forwarding: &Forwarding,
        notices: &mut Vec<Notice>,
        sink: &mut impl StreamSink,
    ) {
        for number in std::mem::take(&mut self.ready) {
            match self.serve_one(number, now, forwarding, notices, sink) {
                Ok(true) => {}
                Ok(false) => self.ready.push(number),
                Err(_) => self.end(number),
            }
        }
    }

    /// Whether the connection is drained.
    fn serve_one(
        &mut self,
        number: u64,
        now: Instant,
        forwarding: &Forwarding,
        notices: &mut Vec<Notice>,
        sink: &mut impl StreamSink,
    ) -> io::Result<bool> {
        let Some(mine) = self.mine.get_mut(&number) else { return Ok(true) };
        count(&mine.stream.flush(now)?, forwarding);
        for _ in 0..READS_PER_TURN {
            let kept = mine.tail.len();
            self.memory[..kept].copy_from_slice(&mine.tail);
            let received = mine.stream.connection.receive(
                &mut self.scratch,
                &mut self.memory[kept..kept + MEMORY - frame::MESSAGE_MAX - frame::LENGTH_LEN],
            )?;
            let end = kept + received.len;
            let taken =
                mine.take_in(&mut self.memory[..end], now, forwarding, notices, sink, &self.streams)?;
            sink.flush(&self.memory);
            mine.tail.clear();
            mine.tail.extend_from_slice(&self.memory[taken..end]);
            mine.stream.note_partial(taken < end, taken > 0);
            if received.drained {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn end(&mut self, number: u64) {
        self.streams.forget(number);
        if let Some(mine) = self.mine.remove(&number) {
            mine.stream.connection.close();
        }
        let _ = self.events.try_send(DriverEvent::StreamEnded(number));
    }
}

impl Mine {
    /// Opens every whole message; where the incomplete one begins.
    fn take_in(
        &mut self,
        memory: &mut [u8],
        now: Instant,
        forwarding: &Forwarding,
        notices: &mut Vec<Notice>,
        sink: &mut impl StreamSink,
        streams: &Streams,
    ) -> io::Result<usize> {
        let mut at = 0;
        loop {
            match Frame::at_start_of(&memory[at..]) {
                Frame::Whole(range) => {
                    let (start, end) = (at + range.start, at + range.end);
                    let message = &mut memory[start..end];
                    let came = forwarding.arrive_on_stream(now, &self.stream.endpoint, message, notices);
                    if let Some(owner) = came.owner
                        && !self.owner.as_ref().is_some_and(|before| Arc::ptr_eq(before, &owner))
                    {
                        streams.claim(&self.stream, owner.public_key, came.is_aside);
                        self.owner = Some(owner);
                    }
                    if let Some(arrived) = came.arrived {
                        let packet = start + arrived.packet.start..start + arrived.packet.end;
                        sink.take(memory, packet, arrived.segment_size);
                    }
                    at = end;
                }
                Frame::Partial { .. } => return Ok(at),
                Frame::Wrong => return Err(io::ErrorKind::InvalidData.into()),
            }
        }
    }
}
