//! Inside packets: the few header fields the tunnel itself reads, and ECN (RFC 3168, RFC 6040).

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::reason::DropReason;
use crate::wire;

/// The ECN field: the low two bits of the IPv4 TOS or IPv6 traffic class octet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[repr(u8)]
pub enum Ecn {
    /// Not ECN-capable transport.
    #[default]
    NotEct = 0b00,
    /// ECN-capable transport (1).
    Ect1 = 0b01,
    /// ECN-capable transport (0).
    Ect0 = 0b10,
    /// Congestion experienced.
    Ce = 0b11,
}

impl Ecn {
    /// The ECN codepoint in a TOS or traffic class octet.
    pub const fn from_tos(tos: u8) -> Self {
        match tos & 0b11 {
            0b00 => Self::NotEct,
            0b01 => Self::Ect1,
            0b10 => Self::Ect0,
            _ => Self::Ce,
        }
    }
}

/// What the tunnel reads of an inside IP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InsideHeader {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// The ECN field.
    pub ecn: Ecn,
    /// The length in bytes that the IP header states.
    pub total_len: usize,
    /// How far the packet may still go, when it is itself a message of a tunnel (or the first fragment of one).
    pub nested_hop_limit: Option<u8>,
}

/// What each tunnel around a tunnel's message takes off its hop limit: of the usual 64, four may be nested, the limit
/// of RFC 2473 section 6.6. Every host starts anew with its own hop limit, so without this a route that leads a tunnel
/// into itself would carry each packet round and round, larger every time, until it has to be fragmented and multiplies.
const HOPS_PER_NESTING: u8 = 16;

impl InsideHeader {
    /// Reads the header of an IPv4 or IPv6 packet.
    ///
    /// # Errors
    /// [`DropReason::MalformedInside`] when the version, the header length or the total length lies.
    pub fn parse(packet: &[u8]) -> Result<Self, DropReason> {
        const BAD: DropReason = DropReason::MalformedInside;
        match packet.first().ok_or(BAD)? >> 4 {
            4 => {
                let header: &[u8; 20] = packet.first_chunk().ok_or(BAD)?;
                let [version_ihl, tos, len_hi, len_lo, .., s0, s1, s2, s3, d0, d1, d2, d3] = *header;
                let header_len = usize::from(version_ihl & 0x0f) << 2;
                let total_len = usize::from(u16::from_be_bytes([len_hi, len_lo]));
                if header_len < 20 || total_len < header_len || total_len > packet.len() {
                    return Err(BAD);
                }
                Ok(Self {
                    source: IpAddr::V4(Ipv4Addr::new(s0, s1, s2, s3)),
                    destination: IpAddr::V4(Ipv4Addr::new(d0, d1, d2, d3)),
                    ecn: Ecn::from_tos(tos),
                    total_len,
                    nested_hop_limit: nested_in_ipv4(header, packet.get(header_len..total_len)),
                })
            }
            6 => {
                let (header, rest): (&[u8; 40], _) = packet.split_first_chunk().ok_or(BAD)?;
                let payload_len = usize::from(u16::from_be_bytes([header[4], header[5]]));
                if payload_len > rest.len() {
                    return Err(BAD);
                }
                let address = |bytes: Option<&[u8; 16]>| bytes.map(|b| Ipv6Addr::from(*b)).ok_or(BAD);
                Ok(Self {
                    source: IpAddr::V6(address(header.get(8..24).and_then(|b| b.first_chunk()))?),
                    destination: IpAddr::V6(address(header.get(24..40).and_then(|b| b.first_chunk()))?),
                    ecn: Ecn::from_tos((header[1] >> 4) | (header[0] << 4)),
                    total_len: payload_len.saturating_add(40),
                    nested_hop_limit: nested_in_ipv6(header, rest),
                })
            }
            _ => Err(BAD),
        }
    }

    /// The hop limit of the outside packet: `Some(None)` is up to the host, `None` that tunnels are nested too deep.
    pub fn outside_hop_limit(&self) -> Option<Option<u8>> {
        match self.nested_hop_limit {
            None => Some(None),
            Some(hops) if hops > HOPS_PER_NESTING => Some(hops.checked_sub(HOPS_PER_NESTING)),
            Some(_) => None,
        }
    }
}

const UDP: u8 = 17;
const IPV6_FRAGMENT: u8 = 44;

fn nested_in_ipv4(header: &[u8; 20], payload: Option<&[u8]>) -> Option<u8> {
    let [_, _, _, _, _, _, fragment_hi, fragment_lo, hop_limit, protocol, ..] = *header;
    let is_first = u16::from_be_bytes([fragment_hi, fragment_lo]) & 0x1fff == 0;
    (protocol == UDP && is_first && is_message(payload?)).then_some(hop_limit)
}

fn nested_in_ipv6(header: &[u8; 40], payload: &[u8]) -> Option<u8> {
    let [_, _, _, _, _, _, next_header, hop_limit, ..] = *header;
    let datagram = match next_header {
        UDP => payload,
        IPV6_FRAGMENT => {
            let (fragment, rest) = payload.split_first_chunk::<8>()?;
            let is_first = u16::from_be_bytes([fragment[2], fragment[3]]) & 0xfff8 == 0;
            (fragment[0] == UDP && is_first).then_some(rest)?
        }
        _ => return None,
    };
    is_message(datagram).then_some(hop_limit)
}

/// Whether a UDP datagram looks like a message of either suite: its type, three zero bytes, and a length to match.
fn is_message(datagram: &[u8]) -> bool {
    let [_, _, _, _, len_hi, len_lo, _, _, kind, 0, 0, 0, ..] = *datagram else { return false };
    let len = usize::from(u16::from_be_bytes([len_hi, len_lo])).saturating_sub(8);
    match kind {
        1 | 0x21 => len == wire::INITIATION_LEN,
        2 | 0x22 => len == wire::RESPONSE_LEN,
        3 | 0x23 => len == wire::COOKIE_REPLY_LEN,
        4 | 0x24 => len >= wire::TRANSPORT_MIN_LEN,
        _ => false,
    }
}

/// Combines the outside ECN field into the inside packet on leaving the tunnel (RFC 6040 section 4.2).
///
/// # Errors
/// [`DropReason::EcnNotCapable`] when congestion was marked on a packet that cannot carry the mark.
pub fn ecn_decapsulate(outside: Ecn, packet: &mut [u8]) -> Result<(), DropReason> {
    if outside != Ecn::Ce && outside != Ecn::Ect1 {
        return Ok(());
    }
    let inside = match packet {
        [v, tos, ..] if *v >> 4 == 4 => Ecn::from_tos(*tos),
        [v, class, ..] if *v >> 4 == 6 => Ecn::from_tos(*class >> 4),
        _ => return Ok(()),
    };
    match (outside, inside) {
        (Ecn::Ce, Ecn::NotEct) => Err(DropReason::EcnNotCapable),
        (Ecn::Ce, Ecn::Ect0 | Ecn::Ect1) => {
            set_ecn(packet, Ecn::Ce);
            Ok(())
        }
        (Ecn::Ect1, Ecn::Ect0) => {
            set_ecn(packet, Ecn::Ect1);
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Writes the ECN field of an IP packet; an IPv4 header checksum is updated incrementally (RFC 1624).
fn set_ecn(packet: &mut [u8], ecn: Ecn) {
    match packet {
        [v, tos, _, _, _, _, _, _, _, _, sum_hi, sum_lo, ..] if *v >> 4 == 4 => {
            let old = u16::from_be_bytes([*v, *tos]);
            *tos = (*tos & !0b11) | ecn as u8;
            let new = u16::from_be_bytes([*v, *tos]);
            let sum = u32::from(!u16::from_be_bytes([*sum_hi, *sum_lo]))
                .wrapping_add(u32::from(!old))
                .wrapping_add(u32::from(new));
            let folded = (sum & 0xffff).wrapping_add(sum >> 16);
            let folded = (folded & 0xffff).wrapping_add(folded >> 16);
            [*sum_hi, *sum_lo] = (!(folded as u16)).to_be_bytes();
        }
        [v, class, ..] if *v >> 4 == 6 => *class = (*class & !0b0011_0000) | ((ecn as u8) << 4),
        _ => {}
    }
}

#[cfg(test)]
mod tests;
