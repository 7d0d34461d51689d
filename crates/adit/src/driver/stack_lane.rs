//! A lane without a TUN device: its inside is the network stack of the program.
//!
//! ```text
//! Stack ─ serve ─ depart ─ segment and seal into the outgoing batch ─ one send ─▶ port
//! Stack ◀─ take in ◀─ open in place ◀─ receive ─ port
//! ```

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use adit_io::carrier::{Family, Port, ReceiveBatch};
use adit_io::poll::Poller;
use adit_io::tun::{Inside, VnetHeader, finish_checksum};
use adit_proto::endpoint::Carrier;
use adit_proto::event::Notice;
use adit_proto::forward::{Checksum, Departure, Forwarding, Inbound};
use adit_proto::icmp::{self, Unreachable};
use adit_proto::reason::DropReason;
use adit_proto::time::Instant;
use crossbeam_channel::Sender;

use super::DriverEvent;
use super::clock;
use super::mailbox::Mailbox;
use super::order::{Flow, LaneHandle, Overflow, SOCKET_V4, SOCKET_V6, watch};
use super::outgoing::Outgoing;
use super::stream_batch::StreamBatch;
use super::stream_edge::{StreamEdge, StreamSink};
use super::streams::Streams;
use crate::stack::{Sink, Sleep, Stack};

const WAKER: u64 = 1;
const STACK: u64 = 4;

/// Slots of 64 KiB for received datagrams.
const RECEIVE_SLOTS: usize = 16;
/// ICMP errors of our own that wait for the stack; later ones are dropped.
const ERRORS: usize = 64;

pub(super) struct StackLane {
    stack: Box<Stack>,
    port: Port,
    forwarding: Arc<Forwarding>,
    mailbox: Mailbox,
    handle: LaneHandle,
    events: Sender<DriverEvent>,
    poller: Poller,
    departures: Departures,
    streams: StreamEdge,
    incoming: ReceiveBatch,
    truncated: u64,
    overflow: Overflow,
}

/// What the stack has sent and the port has not.
struct Departures {
    now: Instant,
    forwarding: Arc<Forwarding>,
    outgoing: Outgoing,
    to_stream: StreamBatch,
    notices: Vec<Notice>,
    /// For packets that go nowhere.
    errors: Vec<Vec<u8>>,
}

impl StackLane {
    pub(super) fn new(
        stack: Box<Stack>,
        (port, streams): (Port, Arc<Streams>),
        forwarding: Arc<Forwarding>,
        mailbox: Mailbox,
        handle: LaneHandle,
        events: Sender<DriverEvent>,
    ) -> io::Result<Self> {
        let poller = Poller::new()?;
        poller.add(handle.waker(), WAKER)?;
        poller.add(stack.waker(), STACK)?;
        let lane = Self {
            stack,
            port,
            mailbox,
            handle,
            streams: StreamEdge::new(Arc::clone(&streams), events.clone()),
            events,
            poller,
            departures: Departures {
                now: clock::now(),
                forwarding: Arc::clone(&forwarding),
                outgoing: Outgoing::new(),
                to_stream: StreamBatch::new(streams),
                notices: Vec::with_capacity(256),
                errors: Vec::new(),
            },
            forwarding,
            incoming: ReceiveBatch::new(RECEIVE_SLOTS),
            truncated: 0,
            overflow: Overflow::default(),
        };
        watch(&lane.port, &lane.poller)?;
        Ok(lane)
    }

    /// Runs until told to stop.
    pub(super) fn run(mut self) {
        if let Err(error) = self.turn_until_end() {
            let event = DriverEvent::Failed(format!("a lane stopped: {error}"));
            let _ = self.events.send_timeout(event, Duration::from_secs(5));
        }
    }

    fn turn_until_end(&mut self) -> io::Result<()> {
        loop {
            let sleep = match self.stack.sleep_until() {
                None => None,
                Some(Sleep::NotAtAll) => Some(Duration::ZERO),
                Some(Sleep::Until { micros }) => {
                    Some(Duration::from_micros(micros.saturating_sub(micros_of(clock::now()))))
                }
            };
            let (mut v4, mut v6, mut woken, mut word) = (false, false, false, false);
            let sleep = if self.streams.is_ready() { Some(Duration::ZERO) } else { sleep };
            for ready in self.poller.wait(sleep)? {
                match ready.token {
                    SOCKET_V4 => v4 = true,
                    SOCKET_V6 => v6 = true,
                    STACK => word = true,
                    WAKER => woken = true,
                    connection => self.streams.note(connection),
                }
            }
            if word {
                self.stack.waker().clear();
            }
            if woken
                && matches!(
                    self.handle.carry_out(
                        &mut self.port,
                        &self.poller,
                        &mut self.overflow,
                        &mut self.streams
                    )?,
                    Flow::End
                )
            {
                return Ok(());
            }
            if v4 {
                self.receive(Family::V4)?;
            }
            if v6 {
                self.receive(Family::V6)?;
            }
            if self.streams.is_ready() {
                self.receive_from_streams();
            }
            self.serve();
        }
    }

    /// Inside to outside: one batch. What is left over is due at once, after the sockets had their turn.
    fn serve(&mut self) {
        self.departures.now = clock::now();
        self.stack.serve(micros_of(self.departures.now), &mut self.departures);
        self.flush();
        for packet in std::mem::take(&mut self.departures.errors) {
            self.stack.take_in(micros_of(self.departures.now), &packet, &mut self.departures);
        }
    }

    fn flush(&mut self) {
        self.departures.outgoing.send(&mut self.port, &self.forwarding);
        self.departures.to_stream.send(self.departures.now, &self.forwarding);
        self.mailbox.deliver(&mut self.departures.notices, &self.forwarding);
    }

    /// Outside to inside, from connections.
    fn receive_from_streams(&mut self) {
        let now = clock::now();
        self.departures.now = now;
        let mut notices = std::mem::take(&mut self.departures.notices);
        let mut sink = StackSink { stack: &mut self.stack, departures: &mut self.departures };
        self.streams.serve(now, &self.forwarding, &mut notices, &mut sink);
        self.departures.notices.append(&mut notices);
    }

    /// Outside to inside: one batch.
    fn receive(&mut self, family: Family) -> io::Result<()> {
        if self.port.receive(family, &mut self.incoming)? == 0 {
            return Ok(());
        }
        self.overflow.count(family, &self.incoming, &self.forwarding);
        let now = clock::now();
        self.departures.now = now;
        let mut batch = self.forwarding.batch(now);
        for slot in 0..self.incoming.len() {
            let Some(received) = self.incoming.received().get(slot).copied() else { break };
            for range in received.datagrams() {
                let start = range.start;
                let inbound = batch.arrive(
                    &received.endpoint,
                    received.ecn,
                    self.incoming.datagram_mut(range),
                    &mut self.departures.notices,
                );
                let Some(Inbound { packet, checksum }) = inbound else { continue };
                let packet = self.incoming.datagram_mut(start + packet.start..start + packet.end);
                if checksum == Checksum::Unfinished {
                    finish_checksum(packet);
                }
                self.stack.take_in(micros_of(now), packet, &mut self.departures);
                if self.departures.outgoing.is_full() {
                    self.departures.outgoing.send(&mut self.port, &self.forwarding);
                }
            }
        }
        let truncated = self.incoming.truncated();
        self.forwarding.drops.add(DropReason::MalformedDatagram, truncated - self.truncated);
        self.truncated = truncated;
        Ok(())
    }
}

/// Gives what came from a connection to the stack, packet by packet.
struct StackSink<'l> {
    stack: &'l mut Stack,
    departures: &'l mut Departures,
}

impl StreamSink for StackSink<'_> {
    fn take(&mut self, memory: &mut [u8], packet: Range<usize>, segment_size: Option<u16>) {
        let micros = micros_of(self.departures.now);
        let packet = &mut memory[packet];
        let Some(segment_size) = segment_size else {
            self.stack.take_in(micros, packet, self.departures);
            return;
        };
        let Ok((inside, _)) = Inside::of_superpacket(packet, segment_size) else {
            self.departures.forwarding.drops.count(DropReason::MalformedInside);
            return;
        };
        let mut segments = inside.segments(packet);
        let mut segment = vec![0; segments.stride()];
        while let Some(len) = segments.next(&mut segment) {
            self.stack.take_in(micros, &segment[..len], self.departures);
        }
    }

    fn flush(&mut self, _: &[u8]) {}
}

impl Sink for Departures {
    fn has_room(&self) -> bool {
        !self.outgoing.is_full()
    }

    fn send(&mut self, packet: &[u8], segment: Option<u16>) {
        let vnet = match (segment, packet.first().map(|first| first >> 4)) {
            (None, _) => VnetHeader::NONE,
            (Some(gso_size), Some(4)) => {
                VnetHeader { gso_type: VnetHeader::GSO_TCPV4, gso_size, ..VnetHeader::NONE }
            }
            (Some(gso_size), _) => {
                VnetHeader { gso_type: VnetHeader::GSO_TCPV6, gso_size, ..VnetHeader::NONE }
            }
        };
        let Ok(inside) = Inside::parse(&vnet, packet) else {
            self.forwarding.drops.count(DropReason::MalformedInside);
            return;
        };
        let mut departure = self.forwarding.depart(self.now, inside.header());
        if let Departure::Stage(path) = &departure {
            let mut segments = inside.segments(packet);
            let room = self.outgoing.scratch(segments.stride());
            let mut ready = false;
            while let Some(len) = segments.next(room) {
                let staged = room.get(..len).unwrap_or_default();
                ready |= !self.forwarding.stage(self.now, path, staged, &mut self.notices);
            }
            if !ready {
                return;
            }
            departure = self.forwarding.depart(self.now, inside.header());
        }
        match departure {
            Departure::Seal(keypair, endpoint) if endpoint.carrier != Carrier::Udp => {
                self.to_stream.seal(
                    self.now,
                    &self.forwarding,
                    &keypair,
                    &endpoint,
                    &inside,
                    packet,
                    &mut self.notices,
                );
            }
            Departure::Seal(keypair, endpoint) => {
                self.outgoing.seal(
                    self.now,
                    &self.forwarding,
                    &keypair,
                    &endpoint,
                    &inside,
                    packet,
                    &mut self.notices,
                );
            }
            Departure::Stage(_) => {}
            Departure::Drop(reason) => {
                let what = Unreachable::of_drop(reason, packet).filter(|_| self.errors.len() < ERRORS);
                let mut error = [0; icmp::MAX_LEN];
                if let Some(len) = what.and_then(|what| icmp::unreachable(what, packet, &mut error)) {
                    self.errors.push(error.get(..len).unwrap_or_default().to_vec());
                }
            }
        }
    }
}

fn micros_of(now: Instant) -> u64 {
    now.0 / 1_000
}
