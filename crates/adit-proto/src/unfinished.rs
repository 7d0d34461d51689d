//! Inside packets whose checksum is left to the receiver (docs/protocol.md section 5.1).
//!
//! A kernel that offloads checksums hands over TCP and UDP packets whose checksum holds only the sum of the pseudo
//! header. To finish it, the sender would read every byte once more, and the receiver again to verify what the tag of the
//! message vouches for already. So between adit peers the first byte of the sealed packet may say that the checksum is
//! as the kernel left it.

/// Set in the first byte of a packet: the high half is 12 for IPv4, 14 for IPv6.
const MARK: u8 = 0x80;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// Where a checksum starts to sum, and where it is stored, in bytes from the start of the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The start of the TCP or UDP header.
    pub start: usize,
    /// The checksum field.
    pub field: usize,
}

impl Place {
    /// The place in a whole TCP or UDP packet. `None` for fragments, for extension headers and for everything else.
    pub fn of(packet: &[u8]) -> Option<Self> {
        let (protocol, start) = match packet.first()? >> 4 {
            4 => {
                let header: &[u8; 20] = packet.first_chunk()?;
                let fragment = u16::from_be_bytes([header[6], header[7]]) & 0x3fff;
                (fragment == 0).then_some((header[9], usize::from(header[0] & 0x0f) << 2))?
            }
            6 => (*packet.get(6)?, 40),
            _ => return None,
        };
        let (field, least) = match protocol {
            TCP => (start.saturating_add(16), 20),
            UDP => (start.saturating_add(6), 8),
            _ => return None,
        };
        (start >= 20 && packet.len() >= start.saturating_add(least)).then_some(Self { start, field })
    }
}

/// Says that the checksum of `packet` is left to the receiver.
pub fn mark(packet: &mut [u8]) {
    if let Some(first) = packet.first_mut() {
        *first |= MARK;
    }
}

/// Takes the mark away, if there is one.
pub(crate) fn take_mark(packet: &mut [u8]) -> bool {
    match packet.first_mut() {
        Some(first) if matches!(*first >> 4, 0xc | 0xe) => {
            *first &= !MARK;
            true
        }
        _ => false,
    }
}

/// Finishes the checksum of `packet`, whatever its field holds now. Plain, for tests and the seldom case.
pub(crate) fn finish(packet: &mut [u8]) -> Option<()> {
    let Place { start, field } = Place::of(packet)?;
    packet.get_mut(field..)?.first_chunk_mut::<2>()?.fill(0);
    let addresses = if start == 40 && packet.first()? >> 4 == 6 { 8..40 } else { 12..20 };
    let protocol = if field.checked_sub(start)? == 16 { TCP } else { UDP };
    let transport = packet.get(start..)?;
    let words = packet.get(addresses)?.chunks(2).chain(transport.chunks(2));
    let ends = u64::from(protocol).saturating_add(transport.len() as u64);
    let mut sum = words.fold(ends, |sum, word| {
        let high = u64::from(*word.first().unwrap_or(&0)) << 8;
        sum.saturating_add(high | u64::from(*word.get(1).unwrap_or(&0)))
    });
    while sum > 0xffff {
        sum = (sum & 0xffff).saturating_add(sum >> 16);
    }
    // Zero means "none" to UDP (RFC 768); its equal does not.
    let sum = match !(sum as u16) {
        0 => 0xffff,
        sum => sum,
    };
    *packet.get_mut(field..)?.first_chunk_mut::<2>()? = sum.to_be_bytes();
    Some(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]
mod tests {
    use super::*;

    fn udp4(payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 9];
        packet.extend([0, 7, 0, 9, 0, (8 + payload.len()) as u8, 0xab, 0xcd]);
        packet.extend(payload);
        packet[3] = packet.len() as u8;
        packet
    }

    #[test]
    fn the_place_is_that_of_whole_tcp_and_udp_packets() {
        let udp = udp4(b"abc");
        assert_eq!(Place::of(&udp), Some(Place { start: 20, field: 26 }));
        let mut tcp = udp4(&[0; 12]);
        tcp[9] = 6;
        assert_eq!(Place::of(&tcp), Some(Place { start: 20, field: 36 }));
        let mut options = udp4(b"abcdefgh");
        options[0] = 0x46;
        assert_eq!(Place::of(&options), Some(Place { start: 24, field: 30 }));
        let mut v6 = vec![0x60, 0, 0, 0, 0, 8, 17, 64];
        v6.extend([0; 40]);
        assert_eq!(Place::of(&v6), Some(Place { start: 40, field: 46 }));

        let mut fragment = udp.clone();
        fragment[6] = 0x20;
        let mut icmp = udp.clone();
        icmp[9] = 1;
        let mut no_header = udp.clone();
        no_header[0] = 0x43;
        let mut extended = v6;
        extended[6] = 0;
        for (what, packet) in [
            ("a fragment", &fragment[..]),
            ("ICMP", &icmp),
            ("a header shorter than itself", &no_header),
            ("extension headers", &extended),
            ("cut off", &udp[..27]),
            ("empty", &[]),
        ] {
            assert_eq!(Place::of(packet), None, "{what}");
        }
    }

    #[test]
    fn a_mark_is_taken_away_once_and_nothing_else_is_one() {
        let mut packet = udp4(b"x");
        let clean = packet.clone();
        mark(&mut packet);
        assert_eq!(packet[0], 0xc5);
        assert!(take_mark(&mut packet));
        assert_eq!(packet, clean);
        assert!(!take_mark(&mut packet));
        for first in [0x00, 0x60, 0x85, 0xd0, 0xf1, 0xff] {
            assert!(!take_mark(&mut [first]) && !take_mark(&mut []), "{first:#x}");
        }
    }

    #[test]
    fn a_finished_checksum_sums_up_whatever_was_in_its_field() {
        for payload in [&b""[..], b"odd", b"even"] {
            let mut packet = udp4(payload);
            finish(&mut packet).unwrap();
            let pseudo = [&packet[12..20], &[0, 17, 0, (8 + payload.len()) as u8], &packet[20..]].concat();
            let sum: u32 =
                pseudo.chunks(2).map(|w| u32::from(w[0]) << 8 | u32::from(*w.get(1).unwrap_or(&0))).sum();
            assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff);
        }
        assert_eq!(finish(&mut [0x45; 20]), None);
    }
}
