//! Which conversation a packet belongs to. The packet was authenticated, its contents were not: nothing is trusted.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV4: u8 = 1;
const ICMPV6: u8 = 58;

/// The two ends of a conversation, as we see them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) local: SocketAddr,
    pub(super) remote: SocketAddr,
}

/// What a packet is to the stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heading {
    /// A TCP segment; whether it asks for a new connection.
    Tcp { key: Key, opens: bool },
    /// A UDP datagram and where its payload lies.
    Udp { key: Key },
    /// The network says that a TCP segment of ours went nowhere.
    Unreachable { key: Key },
    /// Anything else.
    Other,
}

impl Heading {
    /// `None` when it is no IP packet. Fragments and packets with extension headers are [`Heading::Other`].
    pub(super) fn of(packet: &[u8]) -> Option<Self> {
        let Frame { protocol, source, destination, payload } = Frame::of(packet)?;
        Some(match protocol {
            TCP => match (ports(payload), payload.get(13)) {
                (Some((from, to)), Some(flags)) => {
                    let key = Key { local: (destination, to).into(), remote: (source, from).into() };
                    Self::Tcp { key, opens: flags & 0x17 == 0x02 }
                }
                _ => Self::Other,
            },
            UDP => match ports(payload) {
                Some((from, to)) => {
                    Self::Udp { key: Key { local: (destination, to).into(), remote: (source, from).into() } }
                }
                None => Self::Other,
            },
            ICMPV4 if payload.first() == Some(&3) => Self::quoted(payload),
            ICMPV6 if payload.first() == Some(&1) => Self::quoted(payload),
            _ => Self::Other,
        })
    }

    /// "Destination unreachable" quotes the packet it is about. "Fragmentation needed" (IPv4 code 4) says
    /// something else.
    fn quoted(icmp: &[u8]) -> Self {
        let quoted = icmp.get(8..).and_then(Frame::quoted);
        match (quoted, icmp) {
            (_, [3, 4, ..]) => Self::Other,
            (Some(Frame { protocol: TCP, source, destination, payload }), _) => match ports(payload) {
                Some((from, to)) => Self::Unreachable {
                    key: Key { local: (source, from).into(), remote: (destination, to).into() },
                },
                None => Self::Other,
            },
            _ => Self::Other,
        }
    }
}

/// An IP packet taken apart.
struct Frame<'a> {
    protocol: u8,
    source: IpAddr,
    destination: IpAddr,
    payload: &'a [u8],
}

impl<'a> Frame<'a> {
    fn of(packet: &'a [u8]) -> Option<Self> {
        Self::parse(packet, true)
    }

    /// The start of a packet: the rest was cut off.
    fn quoted(packet: &'a [u8]) -> Option<Self> {
        Self::parse(packet, false)
    }

    fn parse(packet: &'a [u8], whole: bool) -> Option<Self> {
        match packet.first()? >> 4 {
            4 => {
                let header: &[u8; 20] = packet.first_chunk()?;
                let header_len = usize::from(header[0] & 0x0f) * 4;
                let total_len = usize::from(u16::from_be_bytes([header[2], header[3]]));
                let end = if whole { total_len } else { packet.len() };
                let fragment = u16::from_be_bytes([header[6], header[7]]) & 0x3fff != 0;
                let payload = packet.get(header_len.max(20)..end)?;
                let [source, destination] = [12, 16].map(|at| {
                    let bytes: [u8; 4] = std::array::from_fn(|i| header[at + i]);
                    IpAddr::V4(Ipv4Addr::from(bytes))
                });
                // No protocol has the number 255: a fragment belongs to no conversation.
                let protocol = if fragment { 255 } else { header[9] };
                Some(Self { protocol, source, destination, payload })
            }
            6 => {
                let header: &[u8; 40] = packet.first_chunk()?;
                let payload_len = usize::from(u16::from_be_bytes([header[4], header[5]]));
                let end = if whole { 40 + payload_len } else { packet.len() };
                let payload = packet.get(40..end)?;
                let [source, destination] = [8, 24].map(|at| {
                    let bytes: [u8; 16] = std::array::from_fn(|i| header[at + i]);
                    IpAddr::V6(Ipv6Addr::from(bytes))
                });
                Some(Self { protocol: header[6], source, destination, payload })
            }
            _ => None,
        }
    }
}

fn ports(payload: &[u8]) -> Option<(u16, u16)> {
    let [a, b, c, d] = *payload.first_chunk()?;
    Some((u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tcp(flags: u8) -> Vec<u8> {
        let mut packet = vec![0; 40];
        packet[0] = 0x45;
        packet[3] = 40;
        packet[9] = TCP;
        packet[12..16].copy_from_slice(&[10, 0, 0, 2]);
        packet[16..20].copy_from_slice(&[10, 0, 0, 1]);
        packet[20..24].copy_from_slice(&[0, 80, 0x80, 1]);
        packet[33] = flags;
        packet
    }

    fn key() -> Key {
        Key { local: "10.0.0.1:32769".parse().unwrap(), remote: "10.0.0.2:80".parse().unwrap() }
    }

    #[test]
    fn a_segment_belongs_to_the_conversation_of_its_ends() {
        assert_eq!(Heading::of(&tcp(0x10)), Some(Heading::Tcp { key: key(), opens: false }));
        assert_eq!(Heading::of(&tcp(0x02)), Some(Heading::Tcp { key: key(), opens: true }));
        assert_eq!(Heading::of(&tcp(0x12)), Some(Heading::Tcp { key: key(), opens: false }), "SYN and ACK");
        let mut fragment = tcp(0x02);
        fragment[6] = 0x20;
        assert_eq!(Heading::of(&fragment), Some(Heading::Other));
    }

    #[test]
    fn unreachable_names_the_conversation_it_quotes() {
        let mut ours = tcp(0x02);
        let (source, destination) = ([10, 0, 0, 1], [10, 0, 0, 2]);
        ours[12..16].copy_from_slice(&source);
        ours[16..20].copy_from_slice(&destination);
        ours[20..24].copy_from_slice(&[0x80, 1, 0, 80]);
        let icmp = |kind: u8, code: u8| {
            let mut packet = vec![0; 28];
            packet[0] = 0x45;
            packet[9] = ICMPV4;
            packet[12..16].copy_from_slice(&[10, 0, 0, 9]);
            packet[16..20].copy_from_slice(&source);
            (packet[20], packet[21]) = (kind, code);
            // A router quotes the header and eight bytes.
            packet.extend(&ours[..28]);
            packet[3] = packet.len() as u8;
            packet
        };
        assert_eq!(Heading::of(&icmp(3, 1)), Some(Heading::Unreachable { key: key() }));
        assert_eq!(Heading::of(&icmp(3, 4)), Some(Heading::Other), "fragmentation needed");
        assert_eq!(Heading::of(&icmp(8, 0)), Some(Heading::Other), "a ping");
    }

    proptest! {
        #[test]
        fn no_bytes_whatever_make_it_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), six: bool) {
            if let Some(first) = bytes.first_mut() {
                *first = if six { 0x60 } else { 0x40 | *first & 0x0f };
            }
            let _ = Heading::of(&bytes);
        }
    }
}
