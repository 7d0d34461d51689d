//! Where the transport header of an inside packet is, and what it says.

use super::checksum::Checksum;

pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
pub(super) const UDP_HEADER_LEN: usize = 8;

/// TCP flags (RFC 9293 section 3.1).
pub(super) const FIN: u8 = 0x01;
pub(super) const PSH: u8 = 0x08;
pub(super) const ACK: u8 = 0x10;
pub(super) const CWR: u8 = 0x80;

/// The IP version of a packet whose header was parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    V4,
    V6,
}

impl Version {
    pub(super) fn of(packet: &[u8]) -> Option<Self> {
        match packet.first()? >> 4 {
            4 => Some(Self::V4),
            6 => Some(Self::V6),
            _ => None,
        }
    }
}

/// The transport protocol of an unfragmented packet and the offset of its header; IPv6 hop-by-hop and destination
/// options are walked over. `None` for fragments and for what cannot be walked.
pub(super) fn transport(packet: &[u8]) -> Option<(u8, usize)> {
    match Version::of(packet)? {
        Version::V4 => {
            let fragment = u16::from_be_bytes(*packet.get(6..)?.first_chunk()?);
            if fragment & 0x3fff != 0 {
                return None;
            }
            Some((*packet.get(9)?, usize::from(packet[0] & 0x0f) * 4))
        }
        Version::V6 => {
            const HOP_BY_HOP: u8 = 0;
            const DESTINATION_OPTIONS: u8 = 60;
            let (mut next, mut at) = (*packet.get(6)?, 40usize);
            while next == HOP_BY_HOP || next == DESTINATION_OPTIONS {
                let [following, units] = *packet.get(at..)?.first_chunk()?;
                next = following;
                at += (usize::from(units) + 1) * 8;
            }
            Some((next, at))
        }
    }
}

/// The length of the transport header at `start` in bytes, if it is a TCP or UDP header that fits the packet.
pub(super) fn transport_header_len(protocol: u8, packet: &[u8], start: usize) -> Option<usize> {
    let header = packet.get(start..)?;
    let len = match protocol {
        TCP => usize::from(header.get(12)? >> 4) * 4,
        UDP => UDP_HEADER_LEN,
        _ => return None,
    };
    let minimum = if protocol == TCP { 20 } else { UDP_HEADER_LEN };
    (len >= minimum && len <= header.len()).then_some(len)
}

/// The sum of the pseudo header (RFC 9293 section 3.1, RFC 8200 section 8.1) of a packet of `version` whose transport
/// header and payload are `len` bytes.
pub(super) fn pseudo_header(version: Version, packet: &[u8], protocol: u8, len: usize) -> Checksum {
    let addresses = match version {
        Version::V4 => packet.get(12..20),
        Version::V6 => packet.get(8..40),
    };
    Checksum::new().add_bytes(addresses.unwrap_or_default()).add_u16(u16::from(protocol)).add_u16(len as u16)
}

/// Writes the lengths that depend on the size of the whole packet, and the IPv4 header checksum.
pub(super) fn set_total_len(version: Version, header: &mut [u8], total_len: usize) {
    match version {
        Version::V4 => {
            put_u16(header, 2, total_len as u16);
            put(header, 10, [0, 0]);
            let ip_header_len = usize::from(header.first().map_or(0, |byte| byte & 0x0f)) * 4;
            let field =
                Checksum::new().add_bytes(header.get(..ip_header_len).unwrap_or_default()).complement();
            put(header, 10, field);
        }
        Version::V6 => put_u16(header, 4, total_len.saturating_sub(40) as u16),
    }
}

/// Stores bytes at an offset that was checked when the packet was parsed.
pub(super) fn put<const N: usize>(bytes: &mut [u8], at: usize, value: [u8; N]) {
    if let Some(field) = bytes.get_mut(at..at + N) {
        field.copy_from_slice(&value);
    }
}

pub(super) fn put_u16(bytes: &mut [u8], at: usize, value: u16) {
    put(bytes, at, value.to_be_bytes());
}

/// Reads a big-endian field at an offset that was checked when the packet was parsed.
pub(super) fn get_u16(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |field| u16::from_be_bytes(*field))
}

pub(super) fn get_u32(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |field| u32::from_be_bytes(*field))
}
