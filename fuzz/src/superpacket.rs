//! Superpackets: what a TUN device hands us falls apart into whole packets, and packets that are merged
//! fall apart into the same packets again.

use adit_io::memory;
use adit_io::tun::{Coalescer, Inside, Offload, VnetHeader, finish_checksum};
use adit_proto::packet::InsideHeader;
use adit_proto::unfinished::Place;

const TCP: u8 = 6;
const UDP: u8 = 17;

/// The first byte chooses the direction.
pub fn run(data: &[u8]) {
    match data.split_first() {
        Some((0, rest)) => segment(rest),
        Some((1, rest)) => coalesce(rest),
        _ => {}
    }
}

/// Ten bytes of vnet header, then the packet: both as the kernel might never send them.
fn segment(data: &[u8]) {
    let Some((header, packet)) = data.split_first_chunk() else { return };
    let vnet = VnetHeader::from_bytes(header);
    let Ok(inside) = Inside::parse(&vnet, packet) else { return };
    assert!(inside.len() <= packet.len());
    let mut segments = inside.segments(packet);
    assert_eq!((segments.count(), segments.stride()), (inside.count(), inside.stride()));
    let mut unfinished = inside.unfinished_segments(packet);
    let mut out = vec![0; inside.stride()];
    let mut left = out.clone();
    let mut lengths = Vec::new();
    let mut payload = Vec::new();
    let headers_len = headers_len(packet);
    while let Some(len) = segments.next(&mut out) {
        let segment = &out[..len];
        if let Some(unfinished) = &mut unfinished {
            assert_eq!(unfinished.next(&mut left), Some(len));
            assert!(finish_checksum(&mut left[..len]));
            if vnet.gso_type != VnetHeader::GSO_NONE {
                assert_eq!(&left[..len], segment, "finished by the receiver it is another packet");
            }
        }
        let parsed = InsideHeader::parse(segment).expect("a segment is a packet");
        let expected =
            InsideHeader { total_len: len, nested_hop_limit: parsed.nested_hop_limit, ..*inside.header() };
        assert_eq!(parsed, expected);
        if vnet.gso_type != VnetHeader::GSO_NONE {
            assert!(transport_sum_holds(segment), "the checksum of a segment is wrong");
            payload.extend_from_slice(&segment[headers_len.unwrap()..]);
        }
        lengths.push(len);
    }
    assert_eq!(lengths.len(), inside.count());
    let (last, others) = lengths.split_last().expect("there is one at least");
    assert!(others.iter().all(|len| *len == inside.stride()));
    assert_eq!(*last, inside.last_len());
    if vnet.gso_type != VnetHeader::GSO_NONE {
        assert_eq!(payload, packet[headers_len.unwrap()..inside.len()], "the payload changed");
    }
}

/// Three bytes for each packet: the flow, what is unusual about it (the high bit: its checksum is left to the receiver),
/// its payload length.
fn coalesce(data: &[u8]) {
    let mut flows: [Flow; 8] = core::array::from_fn(|number| Flow::new(number as u8));
    let mut pushed = Vec::new();
    let mut memory = Vec::new();
    let mut ranges = Vec::new();
    for spec in data.chunks_exact(3).take(200) {
        let mut packet = flows[usize::from(spec[0] % 8)].packet(spec[1] & 0x7f, usize::from(spec[2]) * 4);
        let start = memory.len() + 16;
        memory.resize(start, 0xaa);
        memory.extend_from_slice(&packet);
        let len = InsideHeader::parse(&packet).expect("we make valid packets").total_len;
        let unfinished = spec[1] & 0x80 != 0 && Place::of(&packet[..len]).is_some();
        if unfinished {
            finish_checksum(&mut packet[..len]);
            leave_checksum(&mut memory[start..start + len]);
        }
        ranges.push((start..memory.len(), unfinished));
        pushed.push(packet);
    }
    let (mut tun, host) = memory::tun("fuzz0", 1420, Offload::TcpUdp).expect("a device in memory");
    let mut coalescer = Coalescer::new(Offload::TcpUdp);
    for (range, unfinished) in ranges {
        if unfinished {
            coalescer.push_unfinished(&memory, range);
        } else {
            coalescer.push(&memory, range);
        }
    }
    let report = coalescer.flush(&mut tun, &memory);
    assert_eq!((report.packets, report.failed), (pushed.len() as u64, 0));
    let mut written = Vec::new();
    while let Some(packets) = host.receive().expect("what is written is well formed") {
        written.extend(packets);
    }
    for number in 0..8 {
        let of_flow = |packets: &[Vec<u8>]| -> Vec<Vec<u8>> {
            let ours = packets.iter().filter(|packet| flow_of(packet) == number);
            ours.map(|packet| without_meaningless_id(packet)).collect()
        };
        assert_eq!(of_flow(&written), of_flow(&pushed), "flow {number} was lost, changed or reordered");
    }
    assert_eq!(written.len(), pushed.len());
}

/// Stores the sum of the pseudo header in place of the checksum.
fn leave_checksum(packet: &mut [u8]) {
    let Place { start, field } = Place::of(packet).expect("TCP or UDP");
    let addresses = if packet[0] >> 4 == 6 { &packet[8..40] } else { &packet[12..20] };
    let protocol = if field - start == 16 { TCP } else { UDP };
    let sum = fold(sum_of(addresses) + u64::from(protocol) + (packet.len() - start) as u64);
    packet[field..field + 2].copy_from_slice(&sum.to_be_bytes());
}

struct Flow {
    number: u8,
    id: u16,
    sequence: u32,
}

impl Flow {
    fn new(number: u8) -> Self {
        Self { number, id: 0xfff0, sequence: u32::MAX - 2_000 }
    }

    fn is_v6(&self) -> bool {
        self.number & 1 != 0
    }

    fn protocol(&self) -> u8 {
        if self.number & 2 != 0 { UDP } else { TCP }
    }

    /// The next packet, with the flaw that `flaw` chooses; the flow goes on as if it had none.
    fn packet(&mut self, flaw: u8, payload_len: usize) -> Vec<u8> {
        let mut transport = self.transport(flaw, payload_len);
        let mut packet = self.ip_header(flaw, transport.len());
        packet.append(&mut transport);
        let at = if self.is_v6() { 40 } else { 20 };
        let field = at + if self.protocol() == TCP { 16 } else { 6 };
        let sum = !transport_sum(&packet);
        let sum = if sum == 0 { 0xffff } else { sum };
        packet[field..field + 2].copy_from_slice(&sum.to_be_bytes());
        match flaw {
            1 => packet[field] ^= 0x40,
            2 if !self.is_v6() => packet[10] ^= 0x40,
            3 if self.protocol() == UDP => packet[field..field + 2].fill(0),
            4 => packet.extend([0; 5]),
            _ => {}
        }
        packet
    }

    fn ip_header(&mut self, flaw: u8, payload_len: usize) -> Vec<u8> {
        let ttl = if flaw == 5 { 63 } else { 64 };
        let tos = if flaw == 6 { 3 } else { 0 };
        if self.is_v6() {
            let [len_hi, len_lo] = (payload_len as u16).to_be_bytes();
            let mut header = vec![0x60, tos << 4, 0, 9, len_hi, len_lo, self.protocol(), ttl];
            header.extend([0xfd; 15]);
            header.push(self.number);
            header.extend([0xfd; 16]);
            return header;
        }
        self.id = self.id.wrapping_add(1);
        let id = if flaw == 7 { 0x55aa } else { self.id };
        let fragment: u16 = match (flaw, self.number & 4) {
            (8, _) => 0x2001,
            (_, 0) => 0x4000,
            _ => 0,
        };
        let mut header = vec![0x45, tos];
        header.extend((20 + payload_len as u16).to_be_bytes());
        header.extend(id.to_be_bytes());
        header.extend(fragment.to_be_bytes());
        header.extend([ttl, self.protocol(), 0, 0, 10, 86, 0, self.number, 10, 86, 0, 200]);
        let sum = !fold(sum_of(&header));
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        header
    }

    fn transport(&mut self, flaw: u8, payload_len: usize) -> Vec<u8> {
        let payload = (0..payload_len).map(|n| (n as u8) ^ (self.sequence as u8));
        let mut bytes = vec![0x10, self.number, 0, 53];
        if self.protocol() == UDP {
            bytes.extend((8 + payload_len as u16).to_be_bytes());
            bytes.extend([0, 0]);
        } else {
            let gap = u32::from(flaw == 9);
            bytes.extend((self.sequence.wrapping_add(gap)).to_be_bytes());
            bytes.extend([0, 0, 0, if flaw == 10 { 2 } else { 1 }]);
            let flags = match flaw {
                11 => 0x18,
                12 => 0x11,
                13 => 0x90,
                14 => 0x02,
                _ => 0x10,
            };
            bytes.extend([0x80, flags, 1, 0xf4, 0, 0, 0, 0]);
            bytes.extend([1, 1, 8, 10, 0, 0, 0, u8::from(flaw == 15), 0, 0, 0, 2]);
        }
        bytes.extend(payload);
        self.sequence = self.sequence.wrapping_add(payload_len as u32);
        bytes
    }
}

fn flow_of(packet: &[u8]) -> u8 {
    if packet[0] >> 4 == 6 { packet[23] } else { packet[15] }
}

/// With fragments forbidden, the identification means nothing (RFC 6864) and is numbered anew. Bytes
/// behind the end of the packet are not part of it.
fn without_meaningless_id(packet: &[u8]) -> Vec<u8> {
    let len = InsideHeader::parse(packet).expect("we make valid packets").total_len;
    let mut packet = packet[..len].to_vec();
    if packet[0] == 0x45 && packet[6..8] == [0x40, 0] && fold(sum_of(&packet[..20])) == 0xffff {
        packet[4..6].fill(0);
        packet[10..12].fill(0);
    }
    packet
}

/// The length of IP and transport headers of a TCP or UDP packet that may be a superpacket.
fn headers_len(packet: &[u8]) -> Option<usize> {
    let (protocol, at) = transport_of(packet)?;
    match protocol {
        TCP => Some(at + usize::from(packet.get(at + 12)? >> 4) * 4),
        UDP => Some(at + 8),
        _ => None,
    }
}

fn transport_of(packet: &[u8]) -> Option<(u8, usize)> {
    match packet.first()? >> 4 {
        4 => Some((*packet.get(9)?, usize::from(packet[0] & 0x0f) * 4)),
        6 => Some((*packet.get(6)?, 40)),
        _ => None,
    }
}

fn transport_sum_holds(packet: &[u8]) -> bool {
    transport_sum(packet) == 0xffff
}

/// The sum over pseudo header and transport (RFC 9293 section 3.1, RFC 768, RFC 8200 section 8.1).
fn transport_sum(packet: &[u8]) -> u16 {
    let (protocol, at) = transport_of(packet).expect("an IP packet");
    let addresses = if packet[0] >> 4 == 6 { &packet[8..40] } else { &packet[12..20] };
    let transport = &packet[at..];
    fold(sum_of(addresses) + u64::from(protocol) + transport.len() as u64 + sum_of(transport))
}

fn sum_of(bytes: &[u8]) -> u64 {
    let word = |two: &[u8]| u64::from(two[0]) << 8 | u64::from(two.get(1).copied().unwrap_or(0));
    bytes.chunks(2).map(word).sum()
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_packets_we_make_are_valid_and_merge() {
        for number in 0..8 {
            let mut flow = Flow::new(number);
            let packets = [flow.packet(0, 100), flow.packet(0, 100), flow.packet(0, 40)];
            assert!(packets.iter().all(|packet| transport_sum_holds(packet)));
            let memory = packets.concat();
            let (mut tun, host) = memory::tun("fuzz0", 1420, Offload::TcpUdp).unwrap();
            let mut coalescer = Coalescer::new(Offload::TcpUdp);
            let mut start = 0;
            for packet in &packets {
                coalescer.push(&memory, start..start + packet.len());
                start += packet.len();
            }
            let report = coalescer.flush(&mut tun, &memory);
            assert_eq!((report.packets, report.superpackets), (3, 1), "flow {number}");
            assert!(host.receive().unwrap().is_some_and(|packets| packets.len() == 3));
        }
    }

    #[test]
    fn a_flawed_checksum_is_noticed() {
        assert!(transport_sum_holds(&Flow::new(0).packet(0, 100)));
        assert!(!transport_sum_holds(&Flow::new(0).packet(1, 100)));
    }
}
