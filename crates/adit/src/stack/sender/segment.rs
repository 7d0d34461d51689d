//! A TCP segment, as far as a sender looks at it. What comes in was authenticated, its contents were not.

pub(super) const FIN: u8 = 0x01;
pub(super) const SYN: u8 = 0x02;
pub(super) const RST: u8 = 0x04;
pub(super) const PSH: u8 = 0x08;
pub(super) const ACK: u8 = 0x10;

/// The largest headers without options: IPv6 and TCP.
const HEADERS: usize = 40 + 20;

/// Whether `a` comes before `b` (RFC 9293 section 3.4).
pub(super) fn before(a: u32, b: u32) -> bool {
    a != b && b.wrapping_sub(a) < 1 << 31
}

pub(super) struct Segment<'a> {
    /// The IP header.
    ip: &'a [u8],
    header: &'a [u8; 20],
    options: &'a [u8],
    pub(super) payload: &'a [u8],
}

impl<'a> Segment<'a> {
    /// `None` when it is none; IPv6 extension headers are not looked behind.
    pub(super) fn of(packet: &'a [u8]) -> Option<Self> {
        let length = |at: usize| Some(usize::from(u16::from_be_bytes(*packet.get(at..)?.first_chunk()?)));
        let (at, end) = match packet.first()? >> 4 {
            4 => (usize::from(packet.first()? & 0x0f) * 4, length(2)?),
            6 => (40, 40 + length(4)?),
            _ => return None,
        };
        let (ip, tcp) = packet.get(..end)?.split_at_checked(at)?;
        let header: &[u8; 20] = tcp.first_chunk()?;
        let (head, payload) = tcp.split_at_checked(usize::from(header[12] >> 4) * 4)?;
        Some(Self { ip, header, options: head.get(20..)?, payload })
    }

    pub(super) fn sequence(&self) -> u32 {
        u32::from_be_bytes([self.header[4], self.header[5], self.header[6], self.header[7]])
    }

    pub(super) fn acknowledged(&self) -> u32 {
        u32::from_be_bytes([self.header[8], self.header[9], self.header[10], self.header[11]])
    }

    pub(super) fn flags(&self) -> u8 {
        self.header[13]
    }

    /// As it was written: without the scale.
    pub(super) fn window(&self) -> u16 {
        u16::from_be_bytes([self.header[14], self.header[15]])
    }

    pub(super) fn window_scale(&self) -> Option<u8> {
        self.option(3)?.first().map(|scale| (*scale).min(14))
    }

    pub(super) fn allows_selective(&self) -> bool {
        self.option(4).is_some()
    }

    /// The blocks of a selective acknowledgement (RFC 2018), each from its first byte to the one after its last.
    pub(super) fn blocks(&self) -> impl Iterator<Item = (u32, u32)> + use<'a> {
        let (blocks, _) = self.option(5).unwrap_or_default().as_chunks::<8>();
        blocks.iter().map(|[a, b, c, d, e, f, g, h]| {
            (u32::from_be_bytes([*a, *b, *c, *d]), u32::from_be_bytes([*e, *f, *g, *h]))
        })
    }

    fn option(&self, wanted: u8) -> Option<&'a [u8]> {
        let mut options = self.options;
        loop {
            options = match options {
                [1, rest @ ..] => rest,
                [kind, len, ..] if *kind > 1 && *len >= 2 => {
                    let (option, rest) = options.split_at_checked(usize::from(*len))?;
                    if *kind == wanted {
                        return option.get(2..);
                    }
                    rest
                }
                _ => return None,
            };
        }
    }
}

/// The headers of our last segment: what is sent again says the same of what came in.
#[derive(Clone, Copy, Debug)]
pub(super) struct Template {
    bytes: [u8; HEADERS],
    ip_len: usize,
}

impl Template {
    pub(super) fn of(segment: &Segment<'_>) -> Option<Self> {
        let mut bytes = [0; HEADERS];
        bytes.get_mut(..segment.ip.len())?.copy_from_slice(segment.ip);
        bytes.get_mut(segment.ip.len()..segment.ip.len() + 20)?.copy_from_slice(segment.header);
        *bytes.get_mut(segment.ip.len() + 12)? = 5 << 4;
        Some(Self { bytes, ip_len: segment.ip.len() })
    }

    pub(super) fn acknowledged(&self) -> u32 {
        let at = self.ip_len + 8;
        self.bytes.get(at..).and_then(|it| it.first_chunk()).map_or(0, |it| u32::from_be_bytes(*it))
    }

    /// Whether both say the same of what came in.
    pub(super) fn agrees_with(&self, other: &Self) -> bool {
        let of = |it: &Self| {
            let at = it.ip_len;
            (it.acknowledged(), it.bytes.get(at + 14..at + 16).map(<[u8]>::to_vec))
        };
        of(self) == of(other)
    }

    /// Writes a segment to the start of `out`, but for its checksum: the packet. `None` without room for it.
    pub(super) fn write<'o>(
        &self,
        out: &'o mut [u8],
        sequence: u32,
        flags: u8,
        payload: [&[u8]; 2],
    ) -> Option<&'o [u8]> {
        let headers = self.ip_len + 20;
        let len = headers + payload[0].len() + payload[1].len();
        let packet = out.get_mut(..len)?;
        let (head, body) = packet.split_at_mut_checked(headers)?;
        head.copy_from_slice(self.bytes.get(..headers)?);
        let (first, second) = body.split_at_mut_checked(payload[0].len())?;
        first.copy_from_slice(payload[0]);
        second.copy_from_slice(payload[1]);
        let v4 = head.first()? >> 4 == 4;
        let (at, said) = if v4 { (2, len) } else { (4, len - 40) };
        head.get_mut(at..at + 2)?.copy_from_slice(&u16::try_from(said).ok()?.to_be_bytes());
        let tcp = head.get_mut(self.ip_len..)?;
        tcp.get_mut(4..8)?.copy_from_slice(&sequence.to_be_bytes());
        *tcp.get_mut(13)? = flags;
        tcp.get_mut(16..20)?.fill(0);
        Some(packet)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn acknowledgement(options: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; 40 + options.len()];
        packet[0] = 0x45;
        packet[3] = packet.len() as u8;
        packet[9] = 6;
        packet[28..32].copy_from_slice(&7_u32.to_be_bytes());
        packet[32] = ((20 + options.len()) as u8 / 4) << 4;
        packet[33] = ACK;
        packet[40..].copy_from_slice(options);
        packet
    }

    #[test]
    fn options_are_found_wherever_they_stand_and_nonsense_is_none() {
        let blocks =
            |options: &[u8]| Segment::of(&acknowledgement(options)).unwrap().blocks().collect::<Vec<_>>();
        let two = [1, 1, 5, 18, 0, 0, 0, 9, 0, 0, 0, 12, 0, 0, 0, 20, 0, 0, 0, 25];
        assert_eq!(blocks(&two), [(9, 12), (20, 25)]);
        assert_eq!(blocks(&[8, 10, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1]), []);
        assert_eq!(blocks(&[5, 200, 0, 0]), []);
        assert_eq!(blocks(&[5, 0, 0, 0]), []);
        assert_eq!(blocks(&[0, 5, 2, 0]), []);
        let open = acknowledgement(&[3, 3, 7, 1, 4, 2, 1, 1]);
        let open = Segment::of(&open).unwrap();
        assert_eq!((open.window_scale(), open.allows_selective(), open.acknowledged()), (Some(7), true, 7));
    }

    #[test]
    fn what_is_written_reads_as_it_was_meant() {
        let packet = acknowledgement(&[1, 1, 1, 1]);
        let template = Template::of(&Segment::of(&packet).unwrap()).unwrap();
        let mut out = [0; 100];
        let written = template.write(&mut out, 99, ACK | FIN, [b"hello ", b"world"]).unwrap();
        let read = Segment::of(written).unwrap();
        assert_eq!((read.sequence(), read.acknowledged(), read.flags()), (99, 7, ACK | FIN));
        assert_eq!((read.payload, read.options.len()), (&b"hello world"[..], 0));
        assert!(template.write(&mut [0; 50], 99, ACK, [b"hello ", b"world"]).is_none());
    }

    #[test]
    fn numbers_are_compared_around_the_end() {
        assert!(before(u32::MAX, 3) && !before(3, u32::MAX));
        assert!(!before(5, 5) && before(5, 6));
    }

    proptest! {
        #[test]
        fn no_packet_whatever_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..90), v6: bool) {
            let mut bytes = bytes;
            for first in [0x45, 0x4f, if v6 { 0x60 } else { 0 }] {
                if let Some(byte) = bytes.first_mut() {
                    *byte = first;
                }
                if let Some(segment) = Segment::of(&bytes) {
                    let _ = (segment.blocks().count(), segment.window_scale(), segment.allows_selective());
                    let _ = Template::of(&segment);
                }
            }
        }
    }
}
