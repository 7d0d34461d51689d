//! Our half of a TCP connection that sends. `smoltcp` makes the segments and keeps the states; what is under way, what was
//! lost and how fast anything leaves is seen to here, because `smoltcp` does not look at selective acknowledgements.
//!
//! ```text
//!   writer ── write ──▶ outbox ── feed, as pace allows ──▶ smoltcp ── emitted ──▶ board, sink
//!                         │                                (what it repeats goes no further)
//!                         └────────── send again what the board holds for lost ─────▶ sink
//!   acknowledgements ──▶ board, pace, outbox; then smoltcp
//! ```
//!
//! Bound: the outbox holds what a connection is promised; a writer waits.

mod board;
mod pace;
mod segment;

use std::collections::VecDeque;
use std::task::Waker;

use smoltcp::socket::tcp::Socket;

use self::board::Board;
use self::pace::Pace;
use self::segment::{ACK, FIN, PSH, RST, SYN, Segment, Template, before};
use super::device::Sink;

/// How long to wait for an acknowledgement before anything is known of the way (RFC 6298).
const FIRST_TIMEOUT_MICROS: u64 = 1_000_000;
const LEAST_TIMEOUT_MICROS: u64 = 200_000;
const MOST_TIMEOUT_MICROS: u64 = 60_000_000;
/// The other end may wait so long before it acknowledges a single segment (RFC 8985 section 7.2).
const DELAYED_MICROS: u64 = 200_000;
const LEAST_PROBE_MICROS: u64 = 10_000;
/// An empty outbox keeps so much.
const KEPT: usize = 4_096;
/// How far from what we expect a sequence number may be.
const ACCEPTED: u32 = 8 << 20;

#[derive(Debug)]
pub(super) struct Sender {
    /// What was written and is not acknowledged.
    outbox: VecDeque<u8>,
    capacity: usize,
    /// How much of it `smoltcp` has.
    fed: usize,
    /// The number of the first byte in the outbox, and that of the next to leave; `None` before the connection is made.
    numbers: Option<(u32, u32)>,
    end: End,
    template: Option<Template>,
    board: Board,
    pace: Pace,
    selective: bool,
    window_scale: u8,
    remote_window: usize,
    round_trip: RoundTrip,
    backoff: u32,
    alarm: Option<Alarm>,
    /// When something may turn out to be lost.
    look_again: Option<u64>,
    writer: Option<Waker>,
}

/// Whether more will be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    No,
    /// Not, but `smoltcp` does not know yet.
    Wanted,
    Told,
}

#[derive(Clone, Copy, Debug)]
struct Alarm {
    at: u64,
    /// The last piece is sent again, so that the other end says what it misses; otherwise everything is held for lost.
    probe: bool,
}

/// RFC 6298.
#[derive(Clone, Copy, Debug, Default)]
struct RoundTrip {
    smooth: u64,
    variation: u64,
}

impl RoundTrip {
    fn sample(&mut self, micros: u64) {
        if self.smooth == 0 {
            *self = Self { smooth: micros, variation: micros / 2 };
        } else {
            self.variation = (3 * self.variation + self.smooth.abs_diff(micros)) / 4;
            self.smooth = (7 * self.smooth + micros) / 8;
        }
    }

    fn timeout(&self) -> u64 {
        match self.smooth {
            0 => FIRST_TIMEOUT_MICROS,
            smooth => (smooth + 4 * self.variation).max(LEAST_TIMEOUT_MICROS),
        }
    }
}

impl Sender {
    pub(super) fn new(capacity: usize, segment_bytes: usize) -> Self {
        Self {
            outbox: VecDeque::new(),
            capacity,
            fed: 0,
            numbers: None,
            end: End::No,
            template: None,
            board: Board::default(),
            pace: Pace::new(segment_bytes),
            selective: false,
            window_scale: 0,
            remote_window: 0,
            round_trip: RoundTrip::default(),
            backoff: 0,
            alarm: None,
            look_again: None,
            writer: None,
        }
    }

    /// Whether the writer has said that nothing more comes.
    pub(super) fn has_ended(&self) -> bool {
        self.end != End::No
    }

    /// How much a write would take.
    pub(super) fn room(&self) -> usize {
        self.capacity.saturating_sub(self.outbox.len())
    }

    /// Wakes the writer when there is room again.
    pub(super) fn register_writer(&mut self, waker: &Waker) {
        self.writer = Some(waker.clone());
    }

    /// Takes what there is room for; how much.
    pub(super) fn write(&mut self, bytes: &[u8]) -> usize {
        let taken = bytes.get(..self.room()).unwrap_or(bytes);
        self.outbox.extend(taken);
        taken.len()
    }

    /// Nothing more will be written: `smoltcp` is told when it has everything.
    pub(super) fn end(&mut self, socket: &mut Socket<'static>) {
        if self.end == End::No {
            self.end = End::Wanted;
        }
        self.tell_end(socket);
    }

    fn tell_end(&mut self, socket: &mut Socket<'static>) -> bool {
        let tell = self.end == End::Wanted && self.fed == self.outbox.len();
        if tell {
            socket.close();
            self.end = End::Told;
        }
        tell
    }

    /// The connection is no more.
    pub(super) fn clear(&mut self) {
        *self = Self { capacity: self.capacity, end: self.end, ..Self::new(0, 1) };
    }

    /// An inbound segment of the connection, before `smoltcp` sees it. Whether something more was acknowledged.
    pub(super) fn acknowledged(&mut self, now: u64, packet: &[u8]) -> bool {
        let Some(segment) = Segment::of(packet) else { return false };
        let (flags, acknowledged) = (segment.flags(), segment.acknowledged());
        if flags & SYN != 0 {
            // Only while the connection is being made.
            if self.template.is_none() {
                self.selective = segment.allows_selective();
                self.window_scale = segment.window_scale().unwrap_or(0);
                self.remote_window = usize::from(segment.window());
            }
            return false;
        }
        let (Some((first, next)), Some(template)) = (self.numbers, &self.template) else { return false };
        let strange = segment.sequence().wrapping_sub(template.acknowledged()).wrapping_add(ACCEPTED);
        if flags & (ACK | RST) != ACK || strange > 2 * ACCEPTED {
            return false;
        }
        if before(acknowledged, first) || before(next, acknowledged) {
            return false;
        }
        let window = usize::from(segment.window()) << self.window_scale;
        let same_window = std::mem::replace(&mut self.remote_window, window) == window;
        let shortest = self.pace.shortest_micros();
        let advanced = acknowledged != first;
        let mut report = self.board.acknowledge(now, acknowledged, segment.blocks(), shortest);
        if advanced {
            let bytes = (acknowledged.wrapping_sub(first) as usize).min(self.outbox.len());
            self.outbox.drain(..bytes);
            if self.outbox.is_empty() && self.outbox.capacity() > KEPT {
                self.outbox = VecDeque::new();
            }
            self.fed = self.fed.saturating_sub(bytes);
            self.numbers = Some((acknowledged, next));
            if let Some(writer) = self.writer.take() {
                writer.wake();
            }
        }
        if let Some(micros) = report.round_trip_micros {
            self.round_trip.sample(micros);
        }
        if self.selective {
            self.look_for_losses(now, &mut report.lost_bytes);
        } else if advanced || (segment.payload.is_empty() && same_window && !self.board.is_empty()) {
            report.lost_bytes += self.board.find_front_lost(acknowledged, advanced);
        }
        if report.delivered_bytes > 0 || report.lost_bytes > 0 {
            self.pace.heard(now, &report, self.board.flying(), self.board.delivered());
        }
        if advanced || report.delivered_bytes > 0 {
            self.backoff = 0;
            self.alarm = None;
            self.set_alarm(now, true);
        }
        advanced
    }

    fn look_for_losses(&mut self, now: u64, lost_bytes: &mut usize) {
        let (found, look_again) = self.board.find_lost(now, self.pace.shortest_micros());
        *lost_bytes += found;
        self.look_again = look_again;
    }

    fn set_alarm(&mut self, now: u64, may_probe: bool) {
        if self.board.is_empty() {
            self.alarm = None;
            return;
        }
        let timeout = (self.round_trip.timeout() << self.backoff.min(16)).min(MOST_TIMEOUT_MICROS);
        let single = if self.board.flying() <= self.pace.burst().min(1_500) { DELAYED_MICROS } else { 0 };
        let probe = (2 * self.round_trip.smooth + single).max(LEAST_PROBE_MICROS);
        let probes = may_probe && self.selective && self.round_trip.smooth > 0 && probe < timeout;
        self.alarm = Some(Alarm { at: now + if probes { probe } else { timeout }, probe: probes });
    }

    /// A packet of `smoltcp`'s for this connection: it leaves, unless it repeats what left before.
    pub(super) fn emitted(&mut self, now: u64, packet: &[u8], segment: Option<u16>, sink: &mut impl Sink) {
        let Some(view) = Segment::of(packet) else { return sink.send(packet, segment) };
        let flags = view.flags();
        if flags & SYN != 0 {
            let first = view.sequence().wrapping_add(1);
            self.numbers = Some((first, first));
        }
        let (Some((first, next)), 0) = (self.numbers, flags & (SYN | RST)) else {
            return sink.send(packet, segment);
        };
        let template = Template::of(&view);
        let news = match (&self.template, &template) {
            (Some(before), Some(now)) => !before.agrees_with(now),
            _ => true,
        };
        self.template = template;
        let (sequence, end) = (view.sequence(), u32::from(flags & FIN));
        let len = u32::try_from(view.payload.len()).unwrap_or(0) + end;
        let keep_alive = len == 1 && sequence.wrapping_add(1) == first;
        let window_probe = len == 1 && end == 0 && sequence == next && self.remote_window == 0;
        if len == 0 || keep_alive || window_probe {
            return sink.send(packet, segment);
        }
        let old = next.wrapping_sub(sequence);
        if sequence == next {
            self.left(now, next, len, end == 1, segment);
            return sink.send(packet, segment);
        }
        // What was sent before is sent again by us, when it is lost.
        let mut out = Vec::new();
        if before(sequence, next) && old < len {
            let fresh = view.payload.get(old as usize..).unwrap_or_default();
            out.resize(fresh.len() + 60, 0);
            let tail =
                self.template.and_then(|it| Some(it.write(&mut out, next, flags, [fresh, &[]])?.len()));
            if let Some(tail) = tail {
                self.left(now, next, len - old, end == 1, segment);
                sink.send(out.get(..tail).unwrap_or_default(), segment);
            }
        } else if news {
            out.resize(60, 0);
            let only = self.template.and_then(|it| Some(it.write(&mut out, next, ACK, [&[], &[]])?.len()));
            sink.send(out.get(..only.unwrap_or(0)).unwrap_or_default(), Some(1));
        }
    }

    /// Notes what leaves for the first time.
    fn left(&mut self, now: u64, sequence: u32, len: u32, ends: bool, segment: Option<u16>) {
        let step = u32::from(segment.unwrap_or(u16::MAX)).max(1);
        let data = len - u32::from(ends);
        let mut at = 0;
        while at < data || (ends && at <= data) {
            let part = step.min(data - at);
            let last = ends && at + part == data;
            self.board.sent(now, sequence.wrapping_add(at), part + u32::from(last), last);
            at += part + u32::from(last);
        }
        if let Some((_, next)) = &mut self.numbers {
            *next = sequence.wrapping_add(len);
        }
        self.pace.sent(now, len as usize);
        if self.alarm.is_none_or(|alarm| alarm.probe) {
            self.set_alarm(now, true);
        }
    }

    /// Sends again what is lost, and gives `smoltcp` what may leave now. Whether it did anything.
    pub(super) fn advance(
        &mut self,
        now: u64,
        socket: &mut Socket<'static>,
        buffer: &mut [u8],
        sink: &mut impl Sink,
    ) -> bool {
        let mut done = false;
        if self.look_again.is_some_and(|at| at <= now) {
            let mut lost = 0;
            self.look_for_losses(now, &mut lost);
            let report = board::Report { lost_bytes: lost, ..Default::default() };
            self.pace.heard(now, &report, self.board.flying(), self.board.delivered());
        }
        if let Some(alarm) = self.alarm.filter(|alarm| alarm.at <= now) {
            let piece = if alarm.probe {
                self.board.last_flying()
            } else {
                self.board.lose_all();
                self.look_again = None;
                self.pace.timed_out();
                self.backoff += 1;
                self.board.first_lost()
            };
            if let Some(piece) = piece {
                done |= self.send_again(now, piece, buffer, sink);
            }
            self.set_alarm(now, false);
        }
        while sink.has_room()
            && self.pace.release_at() <= now
            && let Some(piece) = self.board.first_lost()
            && self.pace.room(self.board.flying()) > 0
        {
            if !self.send_again(now, piece, buffer, sink) {
                break;
            }
            done = true;
        }
        self.feed(now, socket) || done
    }

    fn send_again(&mut self, now: u64, at: usize, buffer: &mut [u8], sink: &mut impl Sink) -> bool {
        let (Some((first, _)), Some(template)) = (self.numbers, self.template) else { return false };
        let Some(piece) = self.board.piece(at) else { return false };
        let from = piece.sequence.wrapping_sub(first) as usize;
        let to = from + piece.len as usize - usize::from(piece.last);
        let payload = slices(&self.outbox, from, to);
        let flags = ACK | PSH | if piece.last { FIN } else { 0 };
        let Some(packet) = template.write(buffer, piece.sequence, flags, payload) else { return false };
        let bytes = u16::try_from(to - from).unwrap_or(u16::MAX - 1).max(1);
        sink.send(packet, Some(bytes));
        self.board.sent_again(now, at);
        self.pace.sent(now, piece.len as usize);
        true
    }

    fn feed(&mut self, now: u64, socket: &mut Socket<'static>) -> bool {
        let left = self.outbox.len() - self.fed;
        if left == 0 {
            if self.board.lost() == 0 && self.pace.room(self.board.flying()) > 0 {
                self.board.limit(0);
            }
            return self.tell_end(socket);
        }
        if self.fed > self.sent_bytes() {
            // The other end has no room.
            self.board.limit(0);
        }
        let portion = self.portion();
        if portion == 0 || self.pace.release_at() > now {
            return false;
        }
        if portion == left && self.pace.room(self.board.flying()) > left {
            // What is measured with it says how much there was to send, not what the way carries.
            self.board.limit(portion);
        }
        let mut fed = 0;
        for slice in slices(&self.outbox, self.fed, self.fed + portion) {
            fed += socket.send_slice(slice).unwrap_or(0);
        }
        self.fed += fed;
        self.tell_end(socket);
        fed > 0
    }

    /// How much `smoltcp` may have once it is time.
    fn portion(&self) -> usize {
        let left = self.outbox.len() - self.fed;
        let waiting = self.fed - self.sent_bytes();
        let room = self.pace.room(self.board.flying() + waiting);
        let portion = left.min(room).min(self.pace.burst());
        let crumb = portion < left && portion < self.pace.segment_bytes() && self.board.flying() > 0;
        if self.board.lost() > 0 || crumb { 0 } else { portion }
    }

    /// How much of the outbox has left at least once.
    fn sent_bytes(&self) -> usize {
        self.numbers.map_or(0, |(first, next)| (next.wrapping_sub(first) as usize).min(self.fed))
    }

    /// When there is something to do although nothing comes.
    pub(super) fn next_at(&self) -> Option<u64> {
        let again = self.board.lost() > 0 && self.pace.room(self.board.flying()) > 0;
        let may_leave = again || self.portion() > 0;
        let release = may_leave.then(|| self.pace.release_at());
        [self.alarm.map(|alarm| alarm.at), self.look_again, release].into_iter().flatten().min()
    }
}

/// A part of a ring.
fn slices(ring: &VecDeque<u8>, from: usize, to: usize) -> [&[u8]; 2] {
    let (head, tail) = ring.as_slices();
    let part = |slice: &[u8], at: usize| {
        let start = from.saturating_sub(at).min(slice.len());
        let end = to.saturating_sub(at).min(slice.len());
        start..end.max(start)
    };
    let (first, second) = (part(head, 0), part(tail, head.len()));
    [head.get(first).unwrap_or_default(), tail.get(second).unwrap_or_default()]
}

/// Where the packets of `smoltcp` for one connection go.
pub(super) struct Outlet<'a, S> {
    pub(super) sender: &'a mut Sender,
    pub(super) now: u64,
    pub(super) sink: &'a mut S,
}

impl<S: Sink> Sink for Outlet<'_, S> {
    fn has_room(&self) -> bool {
        self.sink.has_room()
    }

    fn send(&mut self, packet: &[u8], segment: Option<u16>) {
        self.sender.emitted(self.now, packet, segment, self.sink);
    }
}
