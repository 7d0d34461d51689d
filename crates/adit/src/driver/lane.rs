//! A lane: one thread that moves packets both ways to completion.
//!
//! ```text
//! TUN ─ read ─ depart ─ segment and seal into the outgoing batch ─ one send ─▶ port
//! TUN ◀─ one gathered write per run ─ coalesce ◀─ open in place ◀─ receive ─ port
//! ```
//!
//! Nothing is handed to another thread but notices. A batch ends when its source is drained or the batch
//! is full; nothing waits for a timer. After each batch the other sources get their turn.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use adit_io::carrier::{Family, Port, ReceiveBatch};
use adit_io::poll::Poller;
use adit_io::sys::{LinkEvent, LinkMonitor};
use adit_io::tun::{Coalescer, INSIDE_MAX, Offload, ReadError, Tun, finish_checksum};
use adit_proto::endpoint::Carrier;
use adit_proto::event::Notice;
use adit_proto::forward::{Checksum, Departure, Forwarding};
use adit_proto::icmp::{self, Unreachable};
use adit_proto::pmtu;
use adit_proto::reason::DropReason;
use crossbeam_channel::Sender;

use super::DriverEvent;
use super::clock;
use super::mailbox::Mailbox;
use super::order::{Flow, LaneHandle, Overflow, SOCKET_V4, SOCKET_V6, watch};
use super::outgoing::Outgoing;
use super::stream_batch::StreamBatch;
use super::stream_edge::{StreamEdge, StreamSink};
use super::streams::Streams;

const TUN: u64 = 0;
const WAKER: u64 = 1;
const LINK: u64 = 4;

/// Inside packets or superpackets read before the outgoing batch is sent.
const READS_PER_BATCH: usize = 64;
/// Slots of 64 KiB for received datagrams.
const RECEIVE_SLOTS: usize = 16;
/// What a lane reads from and writes to.
pub(super) struct Edges {
    pub(super) tun: Tun,
    pub(super) port: Port,
    pub(super) streams: Arc<Streams>,
    /// Tells one of the lanes when the MTU of the device changes.
    pub(super) link: Option<LinkMonitor>,
}

pub(super) struct Lane {
    tun: Tun,
    port: Port,
    link: Option<LinkMonitor>,
    forwarding: Arc<Forwarding>,
    mailbox: Mailbox,
    handle: LaneHandle,
    events: Sender<DriverEvent>,
    poller: Poller,
    notices: Vec<Notice>,
    inside: Box<[u8]>,
    outgoing: Outgoing,
    to_stream: StreamBatch,
    streams: StreamEdge,
    incoming: ReceiveBatch,
    coalescer: Coalescer,
    truncated: u64,
    overflow: Overflow,
    unreachable_budget: UnreachableBudget,
}

impl Lane {
    pub(super) fn new(
        edges: Edges,
        forwarding: Arc<Forwarding>,
        mailbox: Mailbox,
        handle: LaneHandle,
        events: Sender<DriverEvent>,
    ) -> io::Result<Self> {
        let Edges { tun, port, streams, link } = edges;
        let poller = Poller::new()?;
        poller.add(&tun, TUN)?;
        poller.add(handle.waker(), WAKER)?;
        if let Some(link) = &link {
            poller.add(link, LINK)?;
        }
        let coalescer = Coalescer::new(tun.offload());
        let lane = Self {
            tun,
            port,
            link,
            forwarding,
            mailbox,
            handle,
            streams: StreamEdge::new(Arc::clone(&streams), events.clone()),
            events,
            poller,
            notices: Vec::with_capacity(256),
            inside: vec![0; INSIDE_MAX].into(),
            outgoing: Outgoing::new(),
            to_stream: StreamBatch::new(streams),
            incoming: ReceiveBatch::new(RECEIVE_SLOTS),
            coalescer,
            truncated: 0,
            overflow: Overflow::default(),
            unreachable_budget: UnreachableBudget::default(),
        };
        watch(&lane.port, &lane.poller)?;
        Ok(lane)
    }

    /// Runs until told to stop or the device is gone.
    pub(super) fn run(mut self) {
        let event = match self.turn_until_end() {
            Ok(Some(event)) => event,
            Ok(None) => return,
            Err(error) => DriverEvent::Failed(format!("a lane stopped: {error}")),
        };
        let _ = self.events.send_timeout(event, Duration::from_secs(5));
    }

    fn turn_until_end(&mut self) -> io::Result<Option<DriverEvent>> {
        loop {
            let (mut tun, mut v4, mut v6, mut link, mut woken) = (false, false, false, false, false);
            let patience = self.streams.is_ready().then_some(Duration::ZERO);
            for ready in self.poller.wait(patience)? {
                match ready.token {
                    TUN => tun = true,
                    SOCKET_V4 => v4 = true,
                    SOCKET_V6 => v6 = true,
                    LINK => link = true,
                    WAKER => woken = true,
                    connection => self.streams.note(connection),
                }
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
                return Ok(None);
            }
            if link {
                self.follow_link();
            }
            // One batch of each that is ready, then the question is asked anew: neither direction waits for the other to run
            // dry, and what is in the path stays short.
            if v4 {
                self.receive(Family::V4)?;
            }
            if v6 {
                self.receive(Family::V6)?;
            }
            if tun {
                match self.send() {
                    Ok(()) => {}
                    Err(ReadError::System(error)) => return Err(error),
                    Err(_) => return Ok(Some(DriverEvent::DeviceGone)),
                }
            }
            if self.streams.is_ready() {
                self.receive_from_streams();
            }
        }
    }

    /// Inside to outside: one batch.
    fn send(&mut self) -> Result<(), ReadError> {
        let filled = self.fill_outgoing();
        self.flush_outgoing();
        filled
    }

    /// Reads until the device is drained or the outgoing batch is full.
    fn fill_outgoing(&mut self) -> Result<(), ReadError> {
        let now = clock::now();
        for _ in 0..READS_PER_BATCH {
            if self.outgoing.is_full() {
                return Ok(());
            }
            match self.tun.read(&mut self.inside) {
                Ok(None) => return Ok(()),
                Ok(Some(inside)) => {
                    let mut departure = self.forwarding.depart(now, inside.header());
                    if let Departure::Stage(path) = &departure {
                        let mut segments = inside.segments(&self.inside);
                        let mut packet = self.outgoing.scratch(segments.stride());
                        let mut ready = false;
                        while let Some(len) = segments.next(packet) {
                            let staged = packet.get(..len).unwrap_or_default();
                            ready |= !self.forwarding.stage(now, path, staged, &mut self.notices);
                            packet = self.outgoing.scratch(segments.stride());
                        }
                        if !ready {
                            continue;
                        }
                        departure = self.forwarding.depart(now, inside.header());
                    }
                    match departure {
                        Departure::Seal(keypair, endpoint) if endpoint.carrier != Carrier::Udp => {
                            self.to_stream.seal(
                                now,
                                &self.forwarding,
                                &keypair,
                                &endpoint,
                                &inside,
                                &self.inside,
                                &mut self.notices,
                            );
                        }
                        Departure::Seal(keypair, endpoint) => {
                            let largest = inside.stride();
                            if let Some(limit) =
                                self.forwarding.too_large(&keypair, largest, &mut self.notices)
                            {
                                self.answer_too_large(now, limit, inside.len());
                                continue;
                            }
                            self.outgoing.seal(
                                now,
                                &self.forwarding,
                                &keypair,
                                &endpoint,
                                &inside,
                                &self.inside,
                                &mut self.notices,
                            );
                        }
                        Departure::Stage(_) => {}
                        Departure::Drop(reason) => self.answer_unreachable(now, reason, inside.len()),
                    }
                }
                Err(ReadError::Malformed) => self.forwarding.drops.count(DropReason::MalformedInside),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn flush_outgoing(&mut self) {
        self.outgoing.send(&mut self.port, &self.forwarding);
        self.to_stream.send(clock::now(), &self.forwarding);
        self.mailbox.deliver(&mut self.notices, &self.forwarding);
    }

    /// Tells the sender of a packet that goes nowhere, within a budget.
    fn answer_unreachable(&mut self, now: adit_proto::time::Instant, reason: DropReason, len: usize) {
        let packet = self.inside.get(..len).unwrap_or_default();
        if let Some(what) = Unreachable::of_drop(reason, packet) {
            self.answer(now, what, len);
        }
    }

    /// Tells the sender of a packet that the way to the peer is too narrow for it.
    fn answer_too_large(&mut self, now: adit_proto::time::Instant, limit: usize, len: usize) {
        let is_ipv6 = self.inside.first().is_some_and(|byte| byte >> 4 == 6);
        let limit = if is_ipv6 { limit.max(pmtu::SMALLEST) } else { limit };
        self.answer(now, Unreachable::TooBig(u16::try_from(limit).unwrap_or(u16::MAX)), len);
    }

    fn answer(&mut self, now: adit_proto::time::Instant, what: Unreachable, len: usize) {
        if !self.unreachable_budget.spend(now) {
            return;
        }
        let mut error = [0; icmp::MAX_LEN];
        let packet = self.inside.get(..len).unwrap_or_default();
        let Some(len) = icmp::unreachable(what, packet, &mut error) else { return };
        if self.tun.write(error.get(..len).unwrap_or_default()).is_err() {
            self.forwarding.drops.count(DropReason::TunFailed);
        }
    }

    /// Outside to inside: one batch.
    fn receive(&mut self, family: Family) -> io::Result<()> {
        if self.port.receive(family, &mut self.incoming)? == 0 {
            return Ok(());
        }
        self.overflow.count(family, &self.incoming, &self.forwarding);
        let now = clock::now();
        self.open_incoming(now);
        let report = self.coalescer.flush(&mut self.tun, self.incoming.memory());
        self.forwarding.drops.add(DropReason::TunFailed, report.failed);
        self.mailbox.deliver(&mut self.notices, &self.forwarding);
        Ok(())
    }

    fn open_incoming(&mut self, now: adit_proto::time::Instant) {
        let plain = self.tun.offload() == Offload::None;
        let mut batch = self.forwarding.batch(now);
        for slot in 0..self.incoming.len() {
            let Some(received) = self.incoming.received().get(slot).copied() else { return };
            for range in received.datagrams() {
                let start = range.start;
                let datagram = self.incoming.datagram_mut(range);
                let inbound = batch.arrive(&received.endpoint, received.ecn, datagram, &mut self.notices);
                let Some(inbound) = inbound else { continue };
                let packet = start + inbound.packet.start..start + inbound.packet.end;
                match inbound.checksum {
                    Checksum::Finished => self.coalescer.push(self.incoming.memory(), packet),
                    Checksum::Unfinished if plain => {
                        finish_checksum(self.incoming.datagram_mut(packet.clone()));
                        self.coalescer.push(self.incoming.memory(), packet);
                    }
                    Checksum::Unfinished => self.coalescer.push_unfinished(self.incoming.memory(), packet),
                }
            }
        }
        let truncated = self.incoming.truncated();
        self.forwarding.drops.add(DropReason::MalformedDatagram, truncated - self.truncated);
        self.truncated = truncated;
    }

    /// Outside to inside, from connections.
    fn receive_from_streams(&mut self) {
        let Self { tun, coalescer, forwarding, .. } = self;
        let mut sink = TunSink { tun, coalescer, forwarding };
        self.streams.serve(clock::now(), forwarding, &mut self.notices, &mut sink);
        self.mailbox.deliver(&mut self.notices, &self.forwarding);
    }

    fn follow_link(&mut self) {
        let Some(link) = &mut self.link else { return };
        loop {
            match link.try_next() {
                Ok(Some(LinkEvent::Changed { mtu_bytes, .. })) => self.forwarding.set_mtu(mtu_bytes as usize),
                Ok(Some(LinkEvent::Missed)) => {
                    if let Ok(mtu_bytes) = self.tun.mtu() {
                        self.forwarding.set_mtu(mtu_bytes);
                    }
                }
                Ok(Some(LinkEvent::Moved | LinkEvent::Deleted)) | Err(_) => {
                    self.link = None;
                    return;
                }
                Ok(None) => return,
            }
        }
    }
}

/// Writes what came from a connection to the device, in order.
struct TunSink<'l> {
    tun: &'l mut Tun,
    coalescer: &'l mut Coalescer,
    forwarding: &'l Forwarding,
}

impl StreamSink for TunSink<'_> {
    fn take(&mut self, memory: &mut [u8], packet: Range<usize>, segment_size: Option<u16>) {
        let Some(segment_size) = segment_size else {
            self.coalescer.push(memory, packet);
            return;
        };
        self.flush(memory);
        match self.tun.write_superpacket(&mut memory[packet], segment_size) {
            Ok(failed) => self.forwarding.drops.add(DropReason::TunFailed, failed),
            Err(_) => self.forwarding.drops.count(DropReason::MalformedInside),
        }
    }

    fn flush(&mut self, memory: &[u8]) {
        let report = self.coalescer.flush(self.tun, memory);
        self.forwarding.drops.add(DropReason::TunFailed, report.failed);
    }
}

/// At most 100 ICMP errors a second leave a lane.
#[derive(Default)]
struct UnreachableBudget {
    second: u64,
    spent: u32,
}

impl UnreachableBudget {
    const PER_SECOND: u32 = 100;

    fn spend(&mut self, now: adit_proto::time::Instant) -> bool {
        let second = now.as_millis() / 1_000;
        if second != self.second {
            *self = Self { second, spent: 0 };
        }
        self.spent += 1;
        self.spent <= Self::PER_SECOND
    }
}
