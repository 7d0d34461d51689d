//! What leaves by the interfaces of this host, frame by frame (packet(7)).

use std::collections::HashMap;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use socket2::{Domain, Protocol, SockFilter, Socket, Type};

/// A frame that leaves, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Seen {
    /// Where it goes.
    pub to: IpAddr,
    /// Its protocol number.
    pub protocol: u8,
    /// The port it goes to, where it has one.
    pub port: Option<u16>,
}

/// Listens on interfaces until dropped.
pub struct Sniffer {
    seen: Arc<Mutex<HashMap<Seen, u64>>>,
    over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

const ALL_PROTOCOLS: u16 = 0x0003;
const POLL: Duration = Duration::from_millis(50);
/// No attack on ourselves: different frames beyond that are counted as the last one.
const KINDS_MAX: usize = 4_096;

impl Sniffer {
    /// Listens on the interfaces with these indices, which carry Ethernet frames.
    ///
    /// # Errors
    /// Without the right to see frames.
    pub fn start(interfaces: &[u32]) -> io::Result<Self> {
        let mut sniffer = Self { seen: Arc::default(), over: Arc::default(), threads: Vec::new() };
        for &index in interfaces {
            let protocol = Protocol::from(i32::from(ALL_PROTOCOLS.to_be()));
            let mut socket = Socket::new(Domain::PACKET, Type::RAW, Some(protocol))?;
            socket.attach_filter(&outgoing_of(index))?;
            socket.set_read_timeout(Some(POLL))?;
            let _ = socket.set_recv_buffer_size(8 << 20);
            let (seen, over) = (Arc::clone(&sniffer.seen), Arc::clone(&sniffer.over));
            let thread = std::thread::Builder::new().name("sniffer".to_owned()).spawn(move || {
                let mut frame = vec![0; 65_536];
                while !over.load(Relaxed) {
                    let Ok(len) = socket.read(&mut frame) else { continue };
                    if let Some(kind) = parse(frame.get(..len).unwrap_or_default()) {
                        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                        if seen.len() < KINDS_MAX || seen.contains_key(&kind) {
                            *seen.entry(kind).or_default() += 1;
                        }
                    }
                }
            })?;
            sniffer.threads.push(thread);
        }
        Ok(sniffer)
    }

    /// What was seen since the last call.
    pub fn take(&self) -> HashMap<Seen, u64> {
        std::mem::take(&mut *self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Sniffer {
    fn drop(&mut self) {
        self.over.store(true, Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Lets pass what leaves by one interface (Linux, Documentation/networking/filter.rst).
fn outgoing_of(index: u32) -> [SockFilter; 6] {
    const LOAD: u16 = 0x20;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    const ANCILLARY: i32 = -0x1000;
    const PACKET_TYPE: i32 = ANCILLARY + 4;
    const INTERFACE: i32 = ANCILLARY + 8;
    const OUTGOING: u32 = 4;
    [
        SockFilter::new(LOAD, 0, 0, PACKET_TYPE.cast_unsigned()),
        SockFilter::new(JUMP_IF_EQUAL, 0, 3, OUTGOING),
        SockFilter::new(LOAD, 0, 0, INTERFACE.cast_unsigned()),
        SockFilter::new(JUMP_IF_EQUAL, 0, 1, index),
        SockFilter::new(RETURN, 0, 0, 65_535),
        SockFilter::new(RETURN, 0, 0, 0),
    ]
}

/// Only IP: what a cable needs to work (ARP, spanning tree and the like) tells nothing about who speaks.
fn parse(frame: &[u8]) -> Option<Seen> {
    let packet = frame.get(14..)?;
    match frame.get(12..14)? {
        [0x08, 0x00] => {
            let header: &[u8; 20] = packet.first_chunk()?;
            let to = Ipv4Addr::new(header[16], header[17], header[18], header[19]);
            let payload = packet.get(usize::from(header[0] & 15) * 4..)?;
            Some(Seen { to: to.into(), protocol: header[9], port: port(header[9], payload) })
        }
        [0x86, 0xdd] => {
            let (header, payload) = packet.split_first_chunk::<40>()?;
            let to = Ipv6Addr::from(*header.get(24..40)?.first_chunk::<16>()?);
            let kind = if header[6] == ICMPV6 { payload.first().map(|it| u16::from(*it)) } else { None };
            Some(Seen { to: to.into(), protocol: header[6], port: port(header[6], payload).or(kind) })
        }
        _ => None,
    }
}

const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;

fn port(protocol: u8, payload: &[u8]) -> Option<u16> {
    let bytes = payload.get(2..4).filter(|_| matches!(protocol, TCP | UDP))?;
    Some(u16::from_be_bytes(*bytes.first_chunk()?))
}

impl Seen {
    /// Whether it is the tunnel itself.
    pub fn is_tunnel(&self, endpoints: &[SocketAddr]) -> bool {
        let is_at = |it: &SocketAddr| it.ip().to_canonical() == self.to && Some(it.port()) == self.port;
        matches!(self.protocol, UDP | TCP) && endpoints.iter().any(is_at)
    }

    /// Whether a host must send it to be on a network at all: neighbour and router discovery, group membership, DHCP.
    pub fn keeps_the_network(&self) -> bool {
        match (self.protocol, self.port) {
            (ICMPV6, Some(133..=137 | 143)) => true,
            (2, _) => self.to.is_multicast(),
            (UDP, Some(67 | 547)) => true,
            // A hop-by-hop header goes before group membership reports.
            (0, _) => self.to.is_multicast(),
            _ => false,
        }
    }
}

impl std::fmt::Display for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = match self.protocol {
            1 => "icmp",
            TCP => "tcp",
            UDP => "udp",
            ICMPV6 => "icmpv6",
            _ => "protocol",
        };
        match (self.port, self.protocol) {
            (Some(port), TCP | UDP) => write!(f, "{name} to {} port {port}", self.to),
            (_, 1 | ICMPV6) => write!(f, "{name} to {}", self.to),
            _ => write!(f, "{name} {} to {}", self.protocol, self.to),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn udp4(to: [u8; 4], port: u16) -> Vec<u8> {
        let mut frame = vec![0; 14 + 28];
        frame[12..15].copy_from_slice(&[8, 0, 0x45]);
        frame[14 + 9] = UDP;
        frame[14 + 16..14 + 20].copy_from_slice(&to);
        frame[36..38].copy_from_slice(&port.to_be_bytes());
        frame
    }

    #[test]
    fn a_frame_is_told_by_where_it_goes() {
        let seen = parse(&udp4([192, 0, 2, 1], 51820)).unwrap();
        assert_eq!(seen.to_string(), "udp to 192.0.2.1 port 51820");
        let endpoints = ["192.0.2.1:51820".parse().unwrap()];
        assert!(seen.is_tunnel(&endpoints) && !seen.keeps_the_network());
        assert!(
            !parse(&udp4([192, 0, 2, 1], 53)).unwrap().is_tunnel(&endpoints),
            "another port is no tunnel"
        );
        assert!(parse(&udp4([255; 4], 67)).unwrap().keeps_the_network());
        assert_eq!(parse(&udp4([1; 4], 1)[..30]), None);
        assert_eq!(parse(&[0; 60]), None, "no IP");
    }
}
