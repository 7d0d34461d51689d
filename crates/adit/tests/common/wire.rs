use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use adit_lab::pcap::Frame;

/// An IP packet of a capture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IpPacket {
    pub source: IpAddr,
    pub destination: IpAddr,
    /// DSCP and ECN: the TOS or traffic class octet.
    pub tos: u8,
    pub protocol: u8,
    /// The length of the whole packet.
    pub len: usize,
    pub payload: Vec<u8>,
}

/// A whole UDP datagram of a capture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datagram {
    pub source: SocketAddr,
    pub destination: SocketAddr,
    pub tos: u8,
    pub payload: Vec<u8>,
}

const UDP: u8 = 17;

/// The IP packets of a capture on an Ethernet device.
pub fn ip_packets(frames: &[Frame]) -> Vec<IpPacket> {
    frames.iter().filter_map(|frame| ip_packet(frame.bytes.get(14..)?)).collect()
}

/// The IP packets of a capture on a TUN device.
pub fn inside_packets(frames: &[Frame]) -> Vec<IpPacket> {
    frames.iter().filter_map(|frame| ip_packet(&frame.bytes)).collect()
}

/// The UDP datagrams of a capture on an Ethernet device.
pub fn datagrams(frames: &[Frame]) -> Vec<Datagram> {
    let datagram = |packet: IpPacket| {
        let (header, payload) = packet.payload.split_first_chunk::<8>().filter(|_| packet.protocol == UDP)?;
        let port = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
        Some(Datagram {
            source: SocketAddr::new(packet.source, port(0)),
            destination: SocketAddr::new(packet.destination, port(2)),
            tos: packet.tos,
            payload: payload.to_vec(),
        })
    };
    ip_packets(frames).into_iter().filter_map(datagram).collect()
}

/// `None` for other protocols and for fragments.
fn ip_packet(bytes: &[u8]) -> Option<IpPacket> {
    let word = |at: usize| Some(usize::from(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?)));
    match bytes.first()? >> 4 {
        4 => {
            let header: &[u8; 20] = bytes.first_chunk()?;
            let [source, destination] = [12, 16]
                .map(|at| Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3]).into());
            let len = word(2)?;
            let is_fragment = word(6)? & 0x3fff != 0;
            let payload = bytes.get(usize::from(header[0] & 15) * 4..len).filter(|_| !is_fragment)?.to_vec();
            Some(IpPacket { source, destination, tos: header[1], protocol: header[9], len, payload })
        }
        6 => {
            let header: &[u8; 40] = bytes.first_chunk()?;
            let address = |at: usize| Some(Ipv6Addr::from(*header.get(at..)?.first_chunk::<16>()?).into());
            let len = 40 + word(4)?;
            Some(IpPacket {
                source: address(8)?,
                destination: address(24)?,
                tos: header[0] << 4 | header[1] >> 4,
                protocol: header[6],
                len,
                payload: bytes.get(40..len)?.to_vec(),
            })
        }
        _ => None,
    }
}
