//! What comes out of a TUN device: complete packets, packets whose checksum is to be finished, and superpackets.

use adit_proto::packet::InsideHeader;
use adit_proto::unfinished::Place;

use super::checksum::Checksum;
use super::header::{
    CWR, FIN, PSH, TCP, UDP, Version, get_u16, get_u32, pseudo_header, put, put_u16, set_total_len,
    transport, transport_header_len,
};
use super::{ReadError, VnetHeader};

/// A packet or superpacket that was read, and what remains to do before it can travel.
///
/// It describes bytes at the start of the buffer that was read into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inside {
    header: InsideHeader,
    work: Work,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    Complete,
    Checksum { start: u16, field: u16 },
    Segments(Segments),
}

/// How a superpacket falls apart. Every offset was checked against the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Segments {
    version: Version,
    protocol: u8,
    transport_at: u16,
    headers_len: u16,
    payload_len: u16,
}

impl Inside {
    /// Checks what the kernel says about a packet against the packet. `hdr_len` is not looked at.
    ///
    /// # Errors
    /// [`ReadError::Malformed`] when the packet is no IP packet, or the header asks for what the packet is not.
    pub fn parse(vnet: &VnetHeader, packet: &[u8]) -> Result<Self, ReadError> {
        const BAD: ReadError = ReadError::Malformed;
        let header = InsideHeader::parse(packet).map_err(|_| BAD)?;
        let packet = packet.get(..header.total_len).ok_or(BAD)?;
        let unfinished = vnet.flags & VnetHeader::NEEDS_CSUM != 0;
        let work = if vnet.gso_type != VnetHeader::GSO_NONE {
            let segments = Segments::parse(vnet, packet).ok_or(BAD)?;
            if unfinished && vnet.csum_start != segments.transport_at {
                return Err(BAD);
            }
            Work::Segments(segments)
        } else if unfinished {
            let start = usize::from(vnet.csum_start);
            let field = start + usize::from(vnet.csum_offset);
            let ip_header_len = match Version::of(packet).ok_or(BAD)? {
                Version::V4 => usize::from(packet[0] & 0x0f) * 4,
                Version::V6 => 40,
            };
            if start < ip_header_len || field + 2 > packet.len() {
                return Err(BAD);
            }
            Work::Checksum { start: vnet.csum_start, field: u16::try_from(field).map_err(|_| BAD)? }
        } else {
            Work::Complete
        };
        Ok(Self { header, work })
    }

    /// What a superpacket is that somebody else has put together, and the header to write it to a device with. Nothing
    /// but the size of its segments is taken from there: lengths and the sum of the pseudo header are made anew.
    ///
    /// # Errors
    /// [`ReadError::Malformed`] when the packet is no TCP or UDP packet that can be cut into such segments.
    pub fn of_superpacket(packet: &mut [u8], segment_size: u16) -> Result<(Self, VnetHeader), ReadError> {
        const BAD: ReadError = ReadError::Malformed;
        let header = InsideHeader::parse(packet).map_err(|_| BAD)?;
        let packet = packet.get_mut(..header.total_len).ok_or(BAD)?;
        let version = Version::of(packet).ok_or(BAD)?;
        let (protocol, at) = transport(packet).ok_or(BAD)?;
        let (gso_type, csum_offset) = match (protocol, version) {
            (TCP, Version::V4) => (VnetHeader::GSO_TCPV4, 16),
            (TCP, Version::V6) => (VnetHeader::GSO_TCPV6, 16),
            (UDP, _) => (VnetHeader::GSO_UDP_L4, 6),
            _ => return Err(BAD),
        };
        let congestion = protocol == TCP && packet.get(at + 13).is_some_and(|flags| flags & CWR != 0);
        let vnet = VnetHeader {
            flags: VnetHeader::NEEDS_CSUM,
            gso_type: gso_type | if congestion { VnetHeader::GSO_ECN } else { 0 },
            hdr_len: 0,
            gso_size: segment_size,
            csum_start: u16::try_from(at).map_err(|_| BAD)?,
            csum_offset,
        };
        let inside = Self::parse(&vnet, packet)?;
        let Work::Segments(segments) = inside.work else { return Err(BAD) };
        let len = packet.len();
        set_total_len(version, packet, len);
        if protocol == UDP {
            put_u16(packet, at + 4, (len - at) as u16);
        }
        let pseudo = pseudo_header(version, packet, protocol, len - at).partial();
        put(packet, at + usize::from(csum_offset), pseudo);
        Ok((inside, VnetHeader { hdr_len: segments.headers_len, ..vnet }))
    }

    /// Payload bytes of every packet but the last, when it is a superpacket.
    pub const fn segment_size(&self) -> Option<u16> {
        match &self.work {
            Work::Segments(segments) => Some(segments.payload_len),
            Work::Complete | Work::Checksum { .. } => None,
        }
    }

    /// The IP header of the packet; every segment has its addresses and ECN field.
    pub const fn header(&self) -> &InsideHeader {
        &self.header
    }

    /// The length of the whole in the buffer, in bytes.
    pub const fn len(&self) -> usize {
        self.header.total_len
    }

    /// Never: a packet has a header.
    pub const fn is_empty(&self) -> bool {
        false
    }

    /// How many packets it is: 1 unless it is a superpacket.
    pub fn count(&self) -> usize {
        match &self.work {
            Work::Complete | Work::Checksum { .. } => 1,
            Work::Segments(segments) => {
                let payload = self.len().saturating_sub(usize::from(segments.headers_len));
                payload.div_ceil(usize::from(segments.payload_len)).max(1)
            }
        }
    }

    /// The length in bytes of every packet but the last, which may be shorter.
    pub fn stride(&self) -> usize {
        match &self.work {
            Work::Complete | Work::Checksum { .. } => self.len(),
            Work::Segments(segments) => {
                (usize::from(segments.headers_len) + usize::from(segments.payload_len)).min(self.len())
            }
        }
    }

    /// The length in bytes of the last packet.
    pub fn last_len(&self) -> usize {
        match &self.work {
            Work::Complete | Work::Checksum { .. } => self.len(),
            Work::Segments(segments) => {
                self.len() - self.count().saturating_sub(1) * usize::from(segments.payload_len)
            }
        }
    }

    /// Yields the packets one by one from the buffer that was read into.
    pub fn segments<'a>(&self, buf: &'a [u8]) -> Segmenter<'a> {
        Segmenter {
            packet: buf.get(..self.len()).unwrap_or_default(),
            work: self.work,
            leaves_checksums: false,
            sums: Sums::of(&self.work, buf),
            count: self.count(),
            stride: self.stride(),
            next: 0,
        }
    }

    /// The same, with the checksums as the kernel left them: the sum of the pseudo header. `None` when there is nothing to
    /// leave, or not at the [`Place`] where a receiver looks.
    pub fn unfinished_segments<'a>(&self, buf: &'a [u8]) -> Option<Segmenter<'a>> {
        let place = Place::of(buf.get(..self.len())?);
        let fits = match self.work {
            Work::Complete => false,
            Work::Checksum { start, field } => {
                place == Some(Place { start: start.into(), field: field.into() })
            }
            Work::Segments(segments) => {
                place.is_some_and(|place| place.start == usize::from(segments.transport_at))
            }
        };
        fits.then(|| Segmenter { leaves_checksums: true, ..self.segments(buf) })
    }
}

/// What the checksums of all segments have in common.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    /// Of the IPv4 header, without identification, length and the checksum itself.
    ip: Checksum,
    /// Of the pseudo header, without the length.
    pseudo: Checksum,
}

impl Sums {
    fn of(work: &Work, buf: &[u8]) -> Self {
        let Work::Segments(Segments { version, protocol, transport_at, .. }) = *work else {
            return Self::default();
        };
        let ip = match (version, buf.split_first_chunk::<12>()) {
            (Version::V4, Some((fixed, rest))) => {
                let mut fixed = *fixed;
                fixed[2..6].fill(0);
                fixed[10..12].fill(0);
                let rest = rest.get(..usize::from(transport_at) - fixed.len()).unwrap_or_default();
                Checksum::new().add_bytes(&fixed).add_bytes(rest)
            }
            _ => Checksum::new(),
        };
        Self { ip, pseudo: pseudo_header(version, buf, protocol, 0) }
    }
}

impl Segments {
    fn parse(vnet: &VnetHeader, packet: &[u8]) -> Option<Self> {
        let version = Version::of(packet)?;
        let (protocol, transport_at) = transport(packet)?;
        let headers_len = transport_at + transport_header_len(protocol, packet, transport_at)?;
        let matches = match vnet.gso_type & !VnetHeader::GSO_ECN {
            VnetHeader::GSO_TCPV4 => version == Version::V4 && protocol == TCP,
            VnetHeader::GSO_TCPV6 => version == Version::V6 && protocol == TCP,
            VnetHeader::GSO_UDP_L4 => protocol == UDP,
            _ => false,
        };
        // 65,535 is the kernel's GSO_BY_FRAGS: no size at all.
        let sized = vnet.gso_size != 0 && vnet.gso_size != u16::MAX;
        (matches && sized).then_some(Self {
            version,
            protocol,
            transport_at: u16::try_from(transport_at).ok()?,
            headers_len: u16::try_from(headers_len).ok()?,
            payload_len: vnet.gso_size,
        })
    }
}

/// Writes out the packets that an [`Inside`] stands for, lazily: the headers of the superpacket are copied and patched
/// (as `tcp_gso_segment` and `__udp_gso_segment` of the kernel do), and the checksums finished.
#[derive(Clone, Debug)]
pub struct Segmenter<'a> {
    packet: &'a [u8],
    work: Work,
    leaves_checksums: bool,
    sums: Sums,
    count: usize,
    stride: usize,
    next: usize,
}

impl Segmenter<'_> {
    /// How many packets there are in all.
    pub const fn count(&self) -> usize {
        self.count
    }

    /// The length in bytes of every packet but the last, which may be shorter.
    pub const fn stride(&self) -> usize {
        self.stride
    }

    /// Writes the next packet to the start of `out` and returns its length. `None` after the last.
    ///
    /// # Panics
    /// When `out` is shorter than the [`stride`](Self::stride).
    pub fn next(&mut self, out: &mut [u8]) -> Option<usize> {
        if self.next >= self.count || self.packet.is_empty() {
            return None;
        }
        let number = self.next;
        self.next += 1;
        Some(match self.work {
            Work::Complete => copy(out, &[self.packet]),
            Work::Checksum { start, field } => {
                let len = copy(out, &[self.packet]);
                if self.leaves_checksums {
                    return Some(len);
                }
                finish(out.get_mut(usize::from(start)..len).unwrap_or_default(), usize::from(field - start));
                len
            }
            Work::Segments(segments) => {
                let len = segments.write(self.packet, number, self.count, &self.sums, out);
                if !self.leaves_checksums {
                    let at = usize::from(segments.transport_at);
                    finish(out.get_mut(at..len).unwrap_or_default(), segments.sum_at() - at);
                }
                len
            }
        })
    }
}

impl Segments {
    fn sum_at(&self) -> usize {
        usize::from(self.transport_at) + if self.protocol == TCP { 16 } else { 6 }
    }

    /// Writes a packet whose checksum is yet to be finished.
    fn write(&self, packet: &[u8], number: usize, count: usize, sums: &Sums, out: &mut [u8]) -> usize {
        let (headers, payload) = packet.split_at_checked(usize::from(self.headers_len)).unwrap_or_default();
        let size = usize::from(self.payload_len);
        let start = number * size;
        let payload = payload.get(start..payload.len().min(start + size)).unwrap_or_default();
        let len = copy(out, &[headers, payload]);
        let segment = out.get_mut(..len).unwrap_or_default();

        let at = usize::from(self.transport_at);
        match self.version {
            Version::V4 => {
                let id = get_u16(segment, 4).wrapping_add(number as u16);
                put_u16(segment, 2, len as u16);
                put_u16(segment, 4, id);
                put(segment, 10, sums.ip.add_u16(id).add_u16(len as u16).complement());
            }
            Version::V6 => put_u16(segment, 4, (len - 40) as u16),
        }
        if self.protocol == TCP {
            let sequence = get_u32(segment, at + 4).wrapping_add(start as u32);
            put(segment, at + 4, sequence.to_be_bytes());
            if let Some(flags) = segment.get_mut(at + 13) {
                if number != 0 {
                    *flags &= !CWR;
                }
                if number + 1 != count {
                    *flags &= !(FIN | PSH);
                }
            }
        } else {
            put_u16(segment, at + 4, (len - at) as u16);
        }
        put(segment, self.sum_at(), sums.pseudo.add_u16((len - at) as u16).partial());
        len
    }
}

/// Finishes a checksum whose field holds the sum of the pseudo header. A sum of zero is written as its equal 0xffff,
/// because zero means "none" to UDP (RFC 768).
fn finish(summed: &mut [u8], field: usize) {
    let sum = Checksum::new().add_bytes(summed).complement();
    put(summed, field, if sum == [0, 0] { [0xff, 0xff] } else { sum });
}

/// Finishes the TCP or UDP checksum of a whole packet, whatever its field holds now. False when there is none.
pub fn finish_checksum(packet: &mut [u8]) -> bool {
    let (Some(Place { start, field }), Some(version)) = (Place::of(packet), Version::of(packet)) else {
        return false;
    };
    let protocol = if field - start == 16 { TCP } else { UDP };
    let pseudo = pseudo_header(version, packet, protocol, packet.len() - start).partial();
    put(packet, field, pseudo);
    finish(packet.get_mut(start..).unwrap_or_default(), field - start);
    true
}

fn copy(out: &mut [u8], pieces: &[&[u8]]) -> usize {
    let mut len = 0;
    for piece in pieces {
        out[len..len + piece.len()].copy_from_slice(piece);
        len += piece.len();
    }
    len
}

#[cfg(test)]
mod tests;
