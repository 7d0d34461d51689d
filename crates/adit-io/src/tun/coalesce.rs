//! Merges opened packets into superpackets on their way to a TUN device, and writes them.
//!
//! ```text
//!   push: a b c A d B e   (flows a and A, arrival order)
//!   runs: [a b c d] [A B] [e]      one run per flow is open; what does not fit closes it and starts another
//!   flush: one writev(2) per run: vnet header, patched headers of the first packet, payloads where they lie
//! ```
//!
//! Order within a flow is kept, because a flow has one open run and runs are written in the order they began.
//! A peer never chooses the vnet header: it is built from what the packets were checked to be.

use std::io::{self, IoSlice};
use std::ops::Range;

use super::checksum::Checksum;
use super::header::{
    ACK, PSH, TCP, UDP, UDP_HEADER_LEN, Version, get_u16, get_u32, pseudo_header, put, put_u16, set_total_len,
};
use super::{Offload, Tun, VnetHeader};

/// Packets of one superpacket: below the kernel's limit for UDP (64 before Linux 6.9).
const RUN_PACKETS: usize = 64;
/// A superpacket is an IP packet, with a 16-bit length.
const RUN_BYTES: usize = 65_535;
/// vnet header, packet headers, payloads.
const SLICES: usize = 2 + RUN_PACKETS;
/// The longest headers that merge: IPv6 and TCP with all options.
const HEADERS_MAX: usize = 40 + 60;
const FLOWS: usize = 1024;
const PROBES: usize = 4;

/// What a [`Coalescer::flush`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct WriteReport {
    /// Packets that reached the device.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Superpackets among the writes.
    pub superpackets: u64,
    /// Packets that the device refused (it is down, out of memory, …): count them as `DropReason::TunFailed`.
    pub failed: u64,
    /// Superpackets that the device refused although it took their packets one by one; merging for their protocol is off now.
    pub degraded: u64,
    /// Whether the device was deleted.
    pub gone: bool,
}

/// Collects the packets of a batch and writes them to a TUN queue, merged where the kernel could have merged them.
///
/// The packets stay where they are: `push` and [`flush`](Self::flush) take the memory of the batch and ranges in it,
/// which must not change in between. What is kept per packet is a few words, in buffers that grow to the size of a
/// batch (bounded by that of its memory) and stay.
#[derive(Debug)]
pub struct Coalescer {
    merge_tcp: bool,
    merge_udp: bool,
    packets: Vec<Packet>,
    runs: Vec<Run>,
    flows: Box<[Entry; FLOWS]>,
    generation: u32,
    /// The run that the last packet of any flow went to.
    latest: Option<u32>,
}

#[derive(Clone, Copy, Debug)]
struct Packet {
    start: u32,
    len: u32,
    /// The next packet of the run.
    next: Option<u32>,
    unfinished: bool,
}

#[derive(Debug)]
struct Run {
    first: u32,
    last: u32,
    packets: u32,
    open: Option<Open>,
}

/// What the next packet of a run must match.
#[derive(Clone, Copy, Debug)]
struct Open {
    flow: Flow,
    headers_len: u16,
    payload_len: u16,
    total_len: u32,
    next_sequence: u32,
    push: bool,
    /// Whether the checksum of the first packet was verified: not before there is a second.
    verified: bool,
    closed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Flow {
    version: Version,
    protocol: u8,
    ports: [u8; 4],
    addresses: [u8; 32],
}

/// The run of a flow; of no value unless `generation` is the current one.
#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    generation: u32,
    run: u32,
}

impl Coalescer {
    /// A coalescer for queues that take this much unfinished work.
    pub fn new(offload: Offload) -> Self {
        Self {
            merge_tcp: matches!(offload, Offload::Tcp | Offload::TcpUdp),
            merge_udp: offload == Offload::TcpUdp,
            packets: Vec::new(),
            runs: Vec::new(),
            flows: Box::new([Entry::default(); FLOWS]),
            generation: 1,
            latest: None,
        }
    }

    /// Whether no packet waits for [`flush`](Self::flush).
    pub fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }

    /// Packets that wait for [`flush`](Self::flush).
    pub fn len(&self) -> usize {
        self.packets.len()
    }

    /// Adds the IP packet at `range` of `memory`. Bytes behind the length that its header states are cut off.
    ///
    /// # Panics
    /// When `range` lies outside of `memory`, or `memory` is 4 GiB long.
    pub fn push(&mut self, memory: &[u8], range: Range<usize>) {
        self.add(memory, range, false);
    }

    /// Adds an IP packet whose TCP or UDP checksum holds the sum of its pseudo header, and whose contents are vouched for.
    ///
    /// # Panics
    /// As [`push`](Self::push).
    pub fn push_unfinished(&mut self, memory: &[u8], range: Range<usize>) {
        self.add(memory, range, true);
    }

    fn add(&mut self, memory: &[u8], range: Range<usize>, unfinished: bool) {
        let packet = trim(&memory[range.clone()]);
        let start = u32::try_from(range.start).expect("a batch is smaller than 4 GiB");
        let number = self.packets.len() as u32;
        self.packets.push(Packet { start, len: packet.len() as u32, next: None, unfinished });

        // Packets of a flow come in trains.
        if let Some(run) = self.latest
            && self.append(memory, run, number, packet, unfinished)
        {
            return;
        }
        let parsed =
            if self.merge_tcp || self.merge_udp { Parsed::of(packet, unfinished) } else { Parsed::Alien };
        match parsed {
            Parsed::Candidate(candidate) if self.merges(candidate.flow.protocol) => {
                let slot = self.slot(&candidate.flow);
                let entry = self.flows[slot];
                if entry.generation == self.generation
                    && self.latest != Some(entry.run)
                    && self.append(memory, entry.run, number, packet, unfinished)
                {
                    self.latest = Some(entry.run);
                    return;
                }
                let run = self.runs.len() as u32;
                self.flows[slot] = Entry { generation: self.generation, run };
                self.latest = Some(run);
                self.runs.push(Run { first: number, last: number, packets: 1, open: Some(candidate.open()) });
            }
            Parsed::Candidate(_) | Parsed::Alien => self.push_alone(number),
            Parsed::Unknown => {
                // It may belong to any flow: nothing that comes later may overtake it.
                self.close_all();
                self.push_alone(number);
            }
        }
    }

    /// Writes everything, and forgets it. `memory` is what was pushed from.
    pub fn flush(&mut self, tun: &mut Tun, memory: &[u8]) -> WriteReport {
        let mut report = WriteReport::default();
        for run in &self.runs {
            let mut refused = None;
            if let Some(open) = &run.open
                && run.packets > 1
            {
                match self.write_merged(tun, memory, run, open) {
                    Ok(()) => {
                        report.superpackets += 1;
                        report.packets += u64::from(run.packets);
                        report.bytes += u64::from(open.total_len);
                        continue;
                    }
                    Err(error) if error.raw_os_error() == Some(libc::EBADFD) => {
                        report.failed += u64::from(run.packets);
                        report.gone = true;
                        continue;
                    }
                    Err(error) => {
                        refused =
                            matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EIO)).then_some(open);
                    }
                }
            }
            let written = report.packets;
            for packet in self.packets_of(run) {
                let bytes = self.bytes(memory, packet);
                let written = if packet.unfinished { tun.write_unfinished(bytes) } else { tun.write(bytes) };
                match written {
                    Ok(()) => {
                        report.packets += 1;
                        report.bytes += bytes.len() as u64;
                    }
                    Err(error) => {
                        report.failed += 1;
                        report.gone |= error.raw_os_error() == Some(libc::EBADFD);
                    }
                }
            }
            // A device that is down refuses superpackets and packets alike; then merging is not at fault.
            if let Some(open) = refused
                && report.packets > written
            {
                report.degraded += 1;
                match open.flow.protocol {
                    TCP => self.merge_tcp = false,
                    _ => self.merge_udp = false,
                }
            }
        }
        self.packets.clear();
        self.runs.clear();
        self.close_all();
        report
    }

    fn merges(&self, protocol: u8) -> bool {
        if protocol == TCP { self.merge_tcp } else { self.merge_udp }
    }

    fn push_alone(&mut self, number: u32) {
        self.runs.push(Run { first: number, last: number, packets: 1, open: None });
    }

    fn close_all(&mut self) {
        self.latest = None;
        self.generation = self.generation.wrapping_add(1);
        if self.generation == 0 {
            self.flows.fill(Entry::default());
            self.generation = 1;
        }
    }

    /// The place of a flow in the table: its own, a free one, or that of a flow which so loses its open run.
    fn slot(&self, flow: &Flow) -> usize {
        let home = flow.hash() % FLOWS;
        let mut slots = (home..home + PROBES).map(|slot| slot % FLOWS);
        let is_free_or_its_own = |slot: &usize| {
            let entry = self.flows[*slot];
            let run = self.runs.get(entry.run as usize);
            entry.generation != self.generation
                || run.and_then(|run| run.open.as_ref()).is_some_and(|open| open.flow == *flow)
        };
        // Slots become free only all at once, so a flow is never behind the first free one.
        slots.find(is_free_or_its_own).unwrap_or(home)
    }

    /// Appends a packet to a run if it is of that flow, and the kernel, cutting the run apart again, would make exactly
    /// these packets. Otherwise the caller starts another run, and this one is never found again.
    fn append(&mut self, memory: &[u8], run: u32, number: u32, packet: &[u8], unfinished: bool) -> bool {
        let Some(run) = self.runs.get_mut(run as usize) else { return false };
        let Some(open) = &mut run.open else { return false };
        if open.closed || run.packets as usize >= RUN_PACKETS {
            return false;
        }
        let Some(first) = self.packets.get(run.first as usize) else { return false };
        let first = memory.get(first.start as usize..(first.start + first.len) as usize).unwrap_or_default();
        let Some(next) = open.next(first, run.packets, packet) else { return false };
        if !(open.verified || open.flow.checksum_is_valid(first)) {
            return false;
        }
        open.verified = true;
        let is_sound = if unfinished {
            open.flow.header_is_sound(packet)
        } else {
            next.is_summed && open.flow.checksum_is_valid(packet)
        };
        if !is_sound {
            return false;
        }
        open.total_len += u32::from(next.payload_len);
        open.next_sequence = open.next_sequence.wrapping_add(u32::from(next.payload_len));
        open.push |= next.push;
        open.closed = next.push || next.payload_len < open.payload_len;
        if let Some(last) = self.packets.get_mut(run.last as usize) {
            last.next = Some(number);
        }
        run.last = number;
        run.packets += 1;
        true
    }

    fn packets_of<'a>(&'a self, run: &Run) -> impl Iterator<Item = &'a Packet> {
        let packet = |number: u32| self.packets.get(number as usize);
        std::iter::successors(packet(run.first), move |last| last.next.and_then(packet))
    }

    fn bytes<'m>(&self, memory: &'m [u8], packet: &Packet) -> &'m [u8] {
        memory.get(packet.start as usize..(packet.start + packet.len) as usize).unwrap_or_default()
    }

    fn write_merged(&self, tun: &mut Tun, memory: &[u8], run: &Run, open: &Open) -> io::Result<()> {
        let headers_len = usize::from(open.headers_len);
        let mut packets =
            self.packets_of(run).map(|packet| self.bytes(memory, packet).split_at_checked(headers_len));
        let (first, payload) = packets.next().flatten().unwrap_or_default();
        let mut headers = [0; HEADERS_MAX];
        let headers = headers.get_mut(..headers_len).unwrap_or_default();
        headers.copy_from_slice(first);
        let vnet = open.patch(headers).to_bytes();

        let mut slices = [IoSlice::new(&[]); SLICES];
        let mut used = 0;
        let pieces =
            [&vnet[..], headers, payload].into_iter().chain(packets.map(|p| p.unwrap_or_default().1));
        for (slice, piece) in slices.iter_mut().zip(pieces) {
            *slice = IoSlice::new(piece);
            used += 1;
        }
        tun.write_vectored(slices.get(..used).unwrap_or_default())
    }
}

/// What a packet adds to a run.
struct Next {
    payload_len: u16,
    push: bool,
    /// Not so for a datagram that has no checksum; merged, it would get one.
    is_summed: bool,
}

impl Open {
    /// What `packet` adds, if its headers differ from those of the first of `number` packets only in what segmentation
    /// makes differ. Its checksums are not looked at.
    fn next(&self, first: &[u8], number: u32, packet: &[u8]) -> Option<Next> {
        let headers_len = usize::from(self.headers_len);
        let (first, headers) = (first.get(..headers_len)?, packet.get(..headers_len)?);
        let payload_len = u16::try_from(packet.len() - headers_len).ok()?;
        if payload_len == 0
            || payload_len > self.payload_len
            || self.total_len as usize + usize::from(payload_len) > RUN_BYTES
        {
            return None;
        }
        let same = |range: Range<usize>| first.get(range.clone()) == headers.get(range);
        let ip = match self.flow.version {
            // Version to TOS; flags; TTL and protocol; addresses. The identification counts up, unless fragments are
            // forbidden and it means nothing (RFC 6864).
            Version::V4 => {
                let sequential = || get_u16(headers, 4) == get_u16(first, 4).wrapping_add(number as u16);
                usize::from(get_u16(headers, 2)) == packet.len()
                    && same(0..2)
                    && same(6..10)
                    && same(12..20)
                    && (get_u16(headers, 6) & DONT_FRAGMENT != 0 || sequential())
            }
            // Version, class and flow label; next header and hop limit; addresses.
            Version::V6 => usize::from(get_u16(headers, 4)) + 40 == packet.len() && same(0..4) && same(6..40),
        };
        let at = self.flow.transport_at();
        if !ip || !same(at..at + 4) {
            return None;
        }
        if self.flow.protocol == UDP {
            let is_whole = usize::from(get_u16(headers, at + 4)) == packet.len() - at;
            return is_whole.then(|| Next {
                payload_len,
                push: false,
                is_summed: get_u16(headers, at + 6) != 0,
            });
        }
        let flags = *headers.get(at + 13)?;
        let follows = get_u32(headers, at + 4) == self.next_sequence
            && flags & !PSH == ACK
            // Acknowledgement and data offset; window; urgent pointer and options.
            && same(at + 8..at + 13)
            && same(at + 14..at + 16)
            && same(at + 18..headers_len);
        follows.then_some(Next { payload_len, push: flags & PSH != 0, is_summed: true })
    }

    /// Makes the headers of the first packet those of the superpacket, and says so to the device.
    fn patch(&self, headers: &mut [u8]) -> VnetHeader {
        let at = self.flow.transport_at();
        let total_len = self.total_len as usize;
        set_total_len(self.flow.version, headers, total_len);
        let csum_offset = if self.flow.protocol == TCP {
            if let Some(flags) = headers.get_mut(at + 13)
                && self.push
            {
                *flags |= PSH;
            }
            16
        } else {
            put_u16(headers, at + 4, (total_len - at) as u16);
            6
        };
        let pseudo = pseudo_header(self.flow.version, headers, self.flow.protocol, total_len - at);
        put(headers, at + csum_offset, pseudo.partial());
        VnetHeader {
            flags: VnetHeader::NEEDS_CSUM,
            gso_type: match (self.flow.protocol, self.flow.version) {
                (TCP, Version::V4) => VnetHeader::GSO_TCPV4,
                (TCP, Version::V6) => VnetHeader::GSO_TCPV6,
                _ => VnetHeader::GSO_UDP_L4,
            },
            hdr_len: self.headers_len,
            gso_size: self.payload_len,
            csum_start: at as u16,
            csum_offset: csum_offset as u16,
        }
    }
}

impl Flow {
    fn transport_at(&self) -> usize {
        match self.version {
            Version::V4 => 20,
            Version::V6 => 40,
        }
    }

    fn hash(&self) -> usize {
        let (words, _) = self.addresses.as_chunks::<8>();
        let mut hash = u64::from(u32::from_ne_bytes(self.ports)) << 8 | u64::from(self.protocol);
        for word in words {
            hash = (hash ^ u64::from_ne_bytes(*word)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
        }
        (hash >> 32) as usize
    }

    /// Whether the header has the checksum that IPv4 asks for.
    fn header_is_sound(&self, packet: &[u8]) -> bool {
        self.version == Version::V6
            || packet.first_chunk::<20>().is_some_and(|header| Checksum::new().add_bytes(header).is_valid())
    }

    /// Whether the packet arrived as it was sent: a superpacket gets a new checksum, which must not hide damage.
    fn checksum_is_valid(&self, packet: &[u8]) -> bool {
        let (header, transport) = packet.split_at_checked(self.transport_at()).unwrap_or_default();
        self.header_is_sound(packet)
            && pseudo_header(self.version, header, self.protocol, transport.len())
                .add_bytes(transport)
                .is_valid()
    }
}

enum Parsed {
    /// TCP or UDP without anything unusual.
    Candidate(Candidate),
    /// A whole packet that is neither TCP nor UDP.
    Alien,
    /// Anything else: perhaps a part of a TCP or UDP flow.
    Unknown,
}

struct Candidate {
    flow: Flow,
    headers_len: u16,
    payload_len: u16,
    sequence: u32,
    push: bool,
    /// It belongs to a flow, but never merges: it carries no data, or flags with a meaning of their own.
    alone: bool,
    /// Its checksum is not to be looked at.
    unfinished: bool,
}

impl Parsed {
    fn of(packet: &[u8], unfinished: bool) -> Self {
        Self::parse(packet, unfinished).unwrap_or(Self::Unknown)
    }

    fn parse(packet: &[u8], unfinished: bool) -> Option<Self> {
        let version = Version::of(packet)?;
        let mut addresses = [0; 32];
        let (protocol, at) = match version {
            Version::V4 => {
                let header: &[u8; 20] = packet.first_chunk()?;
                let fragment = u16::from_be_bytes([header[6], header[7]]);
                let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
                if header[0] != 0x45 || fragment & !DONT_FRAGMENT != 0 || length != packet.len() {
                    return None;
                }
                // A merged packet gets a header of its own: what its receiver would have dropped is not to be mended so.
                // With a finished checksum this is looked at together with that, when something is to be merged.
                if unfinished && !Checksum::new().add_bytes(header).is_valid() {
                    return None;
                }
                addresses[..8].copy_from_slice(&header[12..20]);
                (header[9], 20)
            }
            Version::V6 => {
                let header: &[u8; 40] = packet.first_chunk()?;
                if usize::from(u16::from_be_bytes([header[4], header[5]])) + 40 != packet.len() {
                    return None;
                }
                addresses.copy_from_slice(&header[8..40]);
                (header[6], 40)
            }
        };
        let transport = packet.get(at..)?;
        let candidate = |header_len: usize, sequence, push, alone| {
            let ports = *transport.first_chunk()?;
            let flow = Flow { version, protocol, ports, addresses };
            let payload_len = u16::try_from(transport.len().checked_sub(header_len)?).ok()?;
            let headers_len = u16::try_from(at + header_len).ok()?;
            let alone = alone || payload_len == 0;
            Some(Self::Candidate(Candidate {
                flow,
                headers_len,
                payload_len,
                sequence,
                push,
                alone,
                unfinished,
            }))
        };
        match protocol {
            TCP => {
                let header: &[u8; 20] = transport.first_chunk()?;
                let header_len = usize::from(header[12] >> 4) * 4;
                if header_len < 20 {
                    return None;
                }
                let flags = header[13];
                let plain = flags & !PSH == ACK && header[12] & 0x0f == 0 && header[18..20] == [0, 0];
                candidate(header_len, get_u32(header, 4), flags & PSH != 0, !plain)
            }
            UDP => {
                let header: &[u8; UDP_HEADER_LEN] = transport.first_chunk()?;
                // A zero checksum means none; merged, the datagrams would get one.
                let summed = unfinished || header[6..8] != [0, 0];
                if usize::from(u16::from_be_bytes([header[4], header[5]])) != transport.len() {
                    return None;
                }
                candidate(UDP_HEADER_LEN, 0, false, !summed)
            }
            ICMPV6 => Some(Self::Alien),
            // Anything else in IPv6 may be an extension header in front of TCP or UDP.
            _ => (version == Version::V4).then_some(Self::Alien),
        }
    }
}

const DONT_FRAGMENT: u16 = 0x4000;
const ICMPV6: u8 = 58;

impl Candidate {
    fn open(&self) -> Open {
        Open {
            flow: self.flow,
            headers_len: self.headers_len,
            payload_len: self.payload_len,
            total_len: u32::from(self.headers_len) + u32::from(self.payload_len),
            next_sequence: self.sequence.wrapping_add(u32::from(self.payload_len)),
            push: self.push,
            verified: self.unfinished,
            closed: self.push || self.alone,
        }
    }
}

/// Cuts off what lies behind the length that the IP header states.
fn trim(packet: &[u8]) -> &[u8] {
    let stated = match Version::of(packet) {
        Some(Version::V4) => usize::from(get_u16(packet, 2)),
        Some(Version::V6) => usize::from(get_u16(packet, 4)) + 40,
        None => packet.len(),
    };
    packet.get(..stated).unwrap_or(packet)
}

#[cfg(test)]
mod tests;
