//! ICMP errors for inside packets that go nowhere (RFC 792, RFC 4443, RFC 1122 section 3.2.2).

use core::net::IpAddr;

use crate::packet::InsideHeader;
use crate::reason::DropReason;

const IPV4_HEADER_LEN: usize = 20;
const IPV6_HEADER_LEN: usize = 40;
const ICMP_HEADER_LEN: usize = 8;
/// RFC 1812 section 4.3.2.3: an ICMPv4 error should not exceed 576 bytes.
const MAX_ICMPV4_LEN: usize = 576;
/// RFC 4443 section 2.4 (c): an ICMPv6 error must fit the minimum MTU.
const MAX_ICMPV6_LEN: usize = 1280;
/// The longest error there is.
pub const MAX_LEN: usize = MAX_ICMPV6_LEN;

/// What an ICMP error says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreachable {
    /// No peer has the address: "host unreachable" or "address unreachable".
    Host,
    /// The policy refuses the packet: "communication administratively prohibited".
    Prohibited,
    /// The packet is larger than these bytes, which is what the way takes: "fragmentation needed" or "packet too big".
    TooBig(u16),
}

impl Unreachable {
    /// What the sender of `packet` is told when it is dropped for `reason`; `None` is nothing.
    ///
    /// TCP learns from the loss itself that it is too fast; this error would end a connection that is being made.
    pub fn of_drop(reason: DropReason, packet: &[u8]) -> Option<Self> {
        match reason {
            DropReason::NoRoute | DropReason::NoEndpoint => Some(Self::Host),
            DropReason::OverRate => (!is_tcp(packet)).then_some(Self::Prohibited),
            DropReason::OverQuota | DropReason::AccessExpired | DropReason::OutsideSchedule => {
                Some(Self::Prohibited)
            }
            _ => None,
        }
    }

    const fn v4_code(self) -> u8 {
        match self {
            Self::Host => 1,
            Self::Prohibited => 13,
            Self::TooBig(_) => 4,
        }
    }

    /// Type and code.
    const fn v6_kind(self) -> (u8, u8) {
        match self {
            Self::Host => (1, 3),
            Self::Prohibited => (1, 1),
            Self::TooBig(_) => (2, 0),
        }
    }

    /// The second word of the ICMP header: an MTU has its place at the end of it (RFC 1191 section 4, RFC 4443
    /// section 3.2).
    const fn word(self) -> [u8; 4] {
        match self {
            Self::TooBig(mtu_bytes) => (mtu_bytes as u32).to_be_bytes(),
            Self::Host | Self::Prohibited => [0; 4],
        }
    }
}

/// Builds the ICMP error that answers `packet` into `out` and returns its length.
///
/// The error comes from the address that could not be reached, as the tunnel has no address of its own.
/// `None` for packets that must not be answered: ICMP errors, later fragments, anything from or to a
/// group or an unspecified address; and when `out` is too short.
pub fn unreachable(what: Unreachable, packet: &[u8], out: &mut [u8]) -> Option<usize> {
    unreachable_from(None, what, packet, out)
}

/// The same error from an address of our own, where there is one of the right version.
pub fn unreachable_from(
    own: Option<IpAddr>,
    what: Unreachable,
    packet: &[u8],
    out: &mut [u8],
) -> Option<usize> {
    let header = InsideHeader::parse(packet).ok()?;
    let packet = packet.get(..header.total_len)?;
    if !is_answerable(header.source) || !is_answerable(header.destination) {
        return None;
    }
    match (header.source, header.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let ihl = usize::from(packet.first()? & 0x0f) << 2;
            let fragment_offset = u16::from_be_bytes([*packet.get(6)?, *packet.get(7)?]) & 0x1fff;
            let is_icmp_error = *packet.get(9)? == 1 && !matches!(packet.get(ihl), Some(0 | 8 | 13 | 14));
            // Whoever allows fragments is not told what is too big: somebody on the way may cut it up.
            let may_be_cut = matches!(what, Unreachable::TooBig(_)) && packet.get(6)? & 0x40 == 0;
            if fragment_offset != 0 || is_icmp_error || may_be_cut {
                return None;
            }
            let room = MAX_ICMPV4_LEN.saturating_sub(IPV4_HEADER_LEN).saturating_sub(ICMP_HEADER_LEN);
            let quote = packet.get(..packet.len().min(room))?;
            let total_len = quote.len().checked_add(IPV4_HEADER_LEN)?.checked_add(ICMP_HEADER_LEN)?;
            let out = out.get_mut(..total_len)?;
            let (ip, icmp) = out.split_first_chunk_mut::<IPV4_HEADER_LEN>()?;
            let [len_hi, len_lo] = u16::try_from(total_len).ok()?.to_be_bytes();
            let from = match own {
                Some(IpAddr::V4(own)) => own,
                _ => destination,
            };
            let [s0, s1, s2, s3] = from.octets();
            let [d0, d1, d2, d3] = source.octets();
            *ip = [0x45, 0xc0, len_hi, len_lo, 0, 0, 0, 0, 64, 1, 0, 0, s0, s1, s2, s3, d0, d1, d2, d3];
            let sum = checksum(0, ip);
            ip.get_mut(10..12)?.copy_from_slice(&sum.to_be_bytes());
            write_icmp(icmp, (3, what.v4_code()), what.word(), quote, 0)?;
            Some(total_len)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let is_icmp_error = *packet.get(6)? == 58 && packet.get(40).is_none_or(|kind| *kind < 128);
            if is_icmp_error {
                return None;
            }
            let room = MAX_ICMPV6_LEN.saturating_sub(IPV6_HEADER_LEN).saturating_sub(ICMP_HEADER_LEN);
            let quote = packet.get(..packet.len().min(room))?;
            let icmp_len = quote.len().checked_add(ICMP_HEADER_LEN)?;
            let total_len = icmp_len.checked_add(IPV6_HEADER_LEN)?;
            let out = out.get_mut(..total_len)?;
            let (ip, icmp) = out.split_first_chunk_mut::<IPV6_HEADER_LEN>()?;
            let icmp_len = u16::try_from(icmp_len).ok()?;
            let [len_hi, len_lo] = icmp_len.to_be_bytes();
            ip.get_mut(..8)?.copy_from_slice(&[0x60, 0, 0, 0, len_hi, len_lo, 58, 64]);
            let from = match own {
                Some(IpAddr::V6(own)) => own,
                _ => destination,
            };
            ip.get_mut(8..24)?.copy_from_slice(&from.octets());
            ip.get_mut(24..40)?.copy_from_slice(&source.octets());
            let pseudo = sum_words(u64::from(icmp_len).saturating_add(58), ip.get(8..)?);
            write_icmp(icmp, what.v6_kind(), what.word(), quote, pseudo)?;
            Some(total_len)
        }
        _ => None,
    }
}

fn is_answerable(address: IpAddr) -> bool {
    let is_broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
    !address.is_unspecified() && !address.is_multicast() && !is_broadcast
}

/// As far as the first header tells.
fn is_tcp(packet: &[u8]) -> bool {
    let protocol = match packet.first().map(|first| first >> 4) {
        Some(4) => packet.get(9),
        _ => packet.get(6),
    };
    protocol == Some(&6)
}

fn write_icmp(
    icmp: &mut [u8],
    (kind, code): (u8, u8),
    word: [u8; 4],
    quote: &[u8],
    pseudo: u64,
) -> Option<()> {
    let (header, body) = icmp.split_first_chunk_mut::<ICMP_HEADER_LEN>()?;
    let [w0, w1, w2, w3] = word;
    *header = [kind, code, 0, 0, w0, w1, w2, w3];
    body.copy_from_slice(quote);
    let sum = checksum(pseudo, icmp);
    icmp.get_mut(2..4)?.copy_from_slice(&sum.to_be_bytes());
    Some(())
}

/// The Internet checksum (RFC 1071) of `bytes` on top of `start`.
fn checksum(start: u64, bytes: &[u8]) -> u16 {
    let mut sum = sum_words(start, bytes);
    while sum > 0xffff {
        sum = (sum & 0xffff).saturating_add(sum >> 16);
    }
    !(sum as u16)
}

fn sum_words(start: u64, bytes: &[u8]) -> u64 {
    bytes.chunks(2).fold(start, |sum, word| {
        let word = match word {
            [hi, lo] => u16::from_be_bytes([*hi, *lo]),
            [hi] => u16::from_be_bytes([*hi, 0]),
            _ => 0,
        };
        sum.saturating_add(u64::from(word))
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]
mod tests {
    use super::*;

    fn udp4() -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 32, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 9];
        packet.extend([0; 12]);
        packet
    }

    fn udp6() -> Vec<u8> {
        let mut packet = vec![0x60, 0, 0, 0, 0, 8, 17, 64];
        packet.extend("fd00::1".parse::<core::net::Ipv6Addr>().unwrap().octets());
        packet.extend("fd00::9".parse::<core::net::Ipv6Addr>().unwrap().octets());
        packet.extend([0; 8]);
        packet
    }

    #[test]
    fn an_error_quotes_the_packet_and_sums_to_zero() {
        let mut out = [0; 1500];
        let packet = udp4();
        let len = unreachable(Unreachable::Host, &packet, &mut out).unwrap();
        assert_eq!(&out[28..len], &packet[..]);
        assert_eq!(&out[20..22], &[3, 1]);
        assert_eq!(checksum(0, &out[..20]), 0);
        assert_eq!(checksum(0, &out[20..len]), 0);
        assert_eq!(InsideHeader::parse(&out[..len]).unwrap().destination.to_string(), "10.0.0.1");

        let packet = udp6();
        let len = unreachable(Unreachable::Host, &packet, &mut out).unwrap();
        assert_eq!(&out[48..len], &packet[..]);
        assert_eq!(&out[40..42], &[1, 3]);
        let pseudo = sum_words(58 + (len as u64 - 40), &out[8..40]);
        assert_eq!(checksum(pseudo, &out[40..len]), 0);
    }

    #[test]
    fn errors_are_never_answered_with_errors_but_echo_requests_are() {
        let mut out = [0; 1500];
        let mut packet = udp4();
        packet[9] = 1;
        packet[20] = 3;
        assert_eq!(unreachable(Unreachable::Host, &packet, &mut out), None);
        packet[20] = 8;
        assert!(unreachable(Unreachable::Host, &packet, &mut out).is_some());
        packet[7] = 1;
        assert_eq!(unreachable(Unreachable::Host, &packet, &mut out), None);
    }

    #[test]
    fn groups_are_not_answered() {
        let mut out = [0; 1500];
        let mut packet = udp4();
        packet[16] = 224;
        assert_eq!(unreachable(Unreachable::Host, &packet, &mut out), None);
        packet[16] = 10;
        packet[12..16].copy_from_slice(&[0; 4]);
        assert_eq!(unreachable(Unreachable::Host, &packet, &mut out), None);
    }

    #[test]
    fn a_packet_that_is_too_big_is_answered_with_the_size_that_fits() {
        let mut out = [0; 1500];
        let mut packet = udp4();
        assert_eq!(unreachable(Unreachable::TooBig(1280), &packet, &mut out), None, "it may be fragmented");
        packet[6] = 0x40;
        let len = unreachable(Unreachable::TooBig(1280), &packet, &mut out).unwrap();
        assert_eq!(out[20..22], [3, 4]);
        assert_eq!(out[24..28], [0, 0, 5, 0]);
        assert_eq!(checksum(0, &out[20..len]), 0);
        let mut six = vec![0x60, 0, 0, 0, 0, 8, 17, 64];
        six.extend([0xfd; 32]);
        six.extend([0; 8]);
        unreachable(Unreachable::TooBig(1280), &six, &mut out).unwrap();
        assert_eq!(out[40..42], [2, 0]);
        assert_eq!(out[44..48], [0, 0, 5, 0]);
    }

    #[test]
    fn an_error_of_our_own_comes_from_our_address_of_its_version() {
        let mut out = [0; 1500];
        let own: IpAddr = "10.86.0.1".parse().unwrap();
        let len = unreachable_from(Some(own), Unreachable::Prohibited, &udp4(), &mut out).unwrap();
        assert_eq!(InsideHeader::parse(&out[..len]).unwrap().source, own);
        assert_eq!((&out[20..22], checksum(0, &out[..20])), (&[3, 13][..], 0));
        let packet = udp6();
        let len = unreachable_from(Some(own), Unreachable::Prohibited, &packet, &mut out).unwrap();
        let header = InsideHeader::parse(&out[..len]).unwrap();
        assert_eq!(header.source, InsideHeader::parse(&packet).unwrap().destination);
        assert_eq!(&out[40..42], &[1, 1]);
    }

    #[test]
    fn a_limit_tells_its_reason_but_not_to_tcp_that_is_too_fast() {
        let (mut tcp4, mut tcp6) = (udp4(), udp6());
        (tcp4[9], tcp6[6]) = (6, 6);
        for (udp, tcp) in [(udp4(), tcp4), (udp6(), tcp6)] {
            let told = |reason, packet: &[u8]| Unreachable::of_drop(reason, packet);
            assert_eq!(told(DropReason::OverRate, &udp), Some(Unreachable::Prohibited));
            assert_eq!(told(DropReason::OverRate, &tcp), None);
            for reason in [DropReason::OverQuota, DropReason::AccessExpired, DropReason::OutsideSchedule] {
                assert_eq!(told(reason, &tcp), Some(Unreachable::Prohibited));
            }
            assert_eq!(told(DropReason::NoRoute, &tcp), Some(Unreachable::Host));
            assert_eq!(told(DropReason::SpoofedSource, &udp), None);
        }
    }

    #[test]
    fn a_long_packet_is_quoted_within_the_limit() {
        let mut out = [0; 1500];
        let mut packet = udp4();
        packet.resize(1400, 0);
        packet[2..4].copy_from_slice(&1400u16.to_be_bytes());
        assert_eq!(unreachable(Unreachable::Prohibited, &packet, &mut out), Some(576));
    }
}
