//! UDP: datagrams in and out, each on its own.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{IpAddress, IpProtocol, IpRepr, UdpPacket, UdpRepr};

use super::desk::Desk;
use super::heading::Key;
use super::port;

/// A datagram on its way out.
#[derive(Debug)]
pub(super) struct Datagram {
    pub(super) key: Key,
    pub(super) payload: Vec<u8>,
}

/// Datagrams that arrived and were not received yet; what comes when it is full is dropped, as a network does.
#[derive(Debug, Default)]
pub(super) struct Inbound(Mutex<Arrivals>);

#[derive(Debug, Default)]
struct Arrivals {
    waiting: VecDeque<(SocketAddr, Vec<u8>)>,
    bytes: usize,
    receiver: Option<Waker>,
    ended: bool,
}

/// What waits for one socket at most.
const ARRIVALS: usize = 512;
const ARRIVALS_BYTES: usize = 512 << 10;
const UDP_HEADER: usize = 8;

impl Inbound {
    pub(super) fn arrive(&self, from: SocketAddr, payload: &[u8]) {
        let mut arrivals = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if arrivals.waiting.len() < ARRIVALS && arrivals.bytes + payload.len() <= ARRIVALS_BYTES {
            arrivals.bytes += payload.len();
            arrivals.waiting.push_back((from, payload.to_vec()));
        }
        if let Some(receiver) = arrivals.receiver.take() {
            receiver.wake();
        }
    }

    pub(super) fn end(&self) {
        let mut arrivals = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        arrivals.ended = true;
        if let Some(receiver) = arrivals.receiver.take() {
            receiver.wake();
        }
    }
}

/// A UDP socket inside the tunnel.
#[derive(Debug)]
pub struct UdpSocket {
    desk: Arc<Desk>,
    local: SocketAddr,
    inbound: Arc<Inbound>,
}

impl UdpSocket {
    /// Binds to an inside address of ours, on a random port.
    pub(super) fn bind(desk: &Arc<Desk>, address: IpAddr) -> io::Result<Self> {
        if desk.has_ended() {
            return Err(io::Error::new(io::ErrorKind::NetworkDown, "the tunnel has ended"));
        }
        let mut bound = desk.bound();
        let port = port::choose(|port| !bound.datagrams.contains_key(&(address, port).into()))?;
        let local = SocketAddr::new(address, port);
        let inbound = Arc::new(Inbound::default());
        bound.datagrams.insert(local, Arc::clone(&inbound));
        drop(bound);
        Ok(Self { desk: Arc::clone(desk), local, inbound })
    }

    /// Our end.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// The largest payload in bytes that fits a packet of the tunnel.
    pub fn max_payload_bytes(&self) -> usize {
        let header = if self.local.is_ipv4() { 20 } else { 40 };
        self.desk.mtu_bytes.saturating_sub(header + UDP_HEADER)
    }

    /// Sends a datagram. Like any network, the tunnel may lose it.
    ///
    /// # Errors
    /// It is larger than [`max_payload_bytes`](Self::max_payload_bytes), `to` is of the other IP version, or the
    /// tunnel has ended.
    pub fn send_to(&self, payload: &[u8], to: SocketAddr) -> io::Result<()> {
        if payload.len() > self.max_payload_bytes() {
            let text = format!(
                "a datagram of {} bytes is larger than the {} the tunnel carries",
                payload.len(),
                self.max_payload_bytes()
            );
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        if to.is_ipv4() != self.local.is_ipv4() || to.port() == 0 || to.ip().is_unspecified() {
            return Err(io::ErrorKind::AddrNotAvailable.into());
        }
        let key = Key { local: self.local, remote: to };
        match self.desk.send(Datagram { key, payload: payload.to_vec() }) {
            true => Ok(()),
            false => Err(io::Error::new(io::ErrorKind::NetworkDown, "the tunnel has ended")),
        }
    }

    /// The next datagram and who sent it.
    ///
    /// # Errors
    /// The tunnel has ended.
    pub async fn recv_from(&self) -> io::Result<(Vec<u8>, SocketAddr)> {
        std::future::poll_fn(|context| self.poll_recv_from(context)).await
    }

    fn poll_recv_from(&self, context: &Context<'_>) -> Poll<io::Result<(Vec<u8>, SocketAddr)>> {
        let mut arrivals = self.inbound.0.lock().unwrap_or_else(PoisonError::into_inner);
        match arrivals.waiting.pop_front() {
            Some((from, payload)) => {
                arrivals.bytes -= payload.len();
                Poll::Ready(Ok((payload, from)))
            }
            None if arrivals.ended => {
                Poll::Ready(Err(io::Error::new(io::ErrorKind::NetworkDown, "the tunnel has ended")))
            }
            None => {
                arrivals.receiver = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Drop for UdpSocket {
    fn drop(&mut self) {
        self.desk.bound().datagrams.remove(&self.local);
    }
}

impl Datagram {
    /// Writes the packet to the start of `out`. `None` when it does not fit or mixes IP versions.
    pub(super) fn write<'a>(&self, out: &'a mut [u8]) -> Option<&'a [u8]> {
        let Key { local, remote } = self.key;
        if local.is_ipv4() != remote.is_ipv4() {
            return None;
        }
        let (source, destination) = (IpAddress::from(local.ip()), IpAddress::from(remote.ip()));
        let ip = IpRepr::new(source, destination, IpProtocol::Udp, UDP_HEADER + self.payload.len(), 64);
        let packet = out.get_mut(..ip.buffer_len())?;
        let checksums = ChecksumCapabilities::default();
        ip.emit(&mut *packet, &checksums);
        UdpRepr { src_port: local.port(), dst_port: remote.port() }.emit(
            &mut UdpPacket::new_unchecked(packet.get_mut(ip.header_len()..)?),
            &source,
            &destination,
            self.payload.len(),
            |payload| payload.copy_from_slice(&self.payload),
            &checksums,
        );
        Some(packet)
    }
}

/// The payload of a UDP packet whose checksum is right.
pub(super) fn payload<'a>(key: &Key, packet: &'a [u8]) -> Option<&'a [u8]> {
    let start = match packet.first()? >> 4 {
        4 => usize::from(packet.first()? & 0x0f) * 4,
        _ => 40,
    };
    let end = match packet.first()? >> 4 {
        4 => usize::from(u16::from_be_bytes([*packet.get(2)?, *packet.get(3)?])),
        _ => 40 + usize::from(u16::from_be_bytes([*packet.get(4)?, *packet.get(5)?])),
    };
    let udp = UdpPacket::new_checked(packet.get(start..end)?).ok()?;
    let (source, destination) = (key.remote.ip().into(), key.local.ip().into());
    UdpRepr::parse(&udp, &source, &destination, &ChecksumCapabilities::default()).ok()?;
    // The length was checked against the packet.
    packet.get(start + UDP_HEADER..start + usize::from(udp.len()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_written_is_read_again_and_a_flipped_bit_is_noticed(
            payload_bytes in proptest::collection::vec(any::<u8>(), 0..1_300),
            six: bool,
            flip in 0usize..1_000_000,
        ) {
            let (a, b) = if six { ("[fd00::1]:1000", "[fd00::2]:53") } else { ("10.0.0.1:1000", "10.0.0.2:53") };
            let (a, b): (SocketAddr, SocketAddr) = (a.parse().unwrap(), b.parse().unwrap());
            let datagram = Datagram { key: Key { local: a, remote: b }, payload: payload_bytes.clone() };
            let mut out = [0; 1_400];
            let mut packet = datagram.write(&mut out).unwrap().to_vec();
            let seen = Key { local: b, remote: a };
            prop_assert_eq!(super::super::heading::Heading::of(&packet), Some(super::super::heading::Heading::Udp { key: seen }));
            prop_assert_eq!(payload(&seen, &packet), Some(&payload_bytes[..]));
            let at = if six { 40 } else { 20 } + 4;
            let at = at + flip % (packet.len() - at);
            packet[at] ^= 1;
            prop_assert!(payload(&seen, &packet).is_none_or(|read| read.len() != payload_bytes.len() || packet[at.saturating_sub(1)..=at] == [0, 0]) || packet[26..28] == [0, 0]);
        }
    }
}
