//! A TUN device and a network in memory, to test lanes without privileges.

use std::collections::{HashMap, VecDeque};
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};

use adit_proto::endpoint::Endpoint;
use adit_proto::packet::Ecn;

use crate::carrier::{ReceiveBatch, SendReport, Transmit};
use crate::poll::Waker;
use crate::tun::{Inside, Offload, ReadError, Tun, VnetHeader};

/// Packets, or runs of datagrams, that wait in one queue; what comes later is dropped.
const QUEUE: usize = 1024;

/// A bounded queue whose descriptor is readable while it holds something.
#[derive(Debug)]
struct Queue<T> {
    items: Mutex<VecDeque<T>>,
    filled: Waker,
}

impl<T> Queue<T> {
    fn new() -> io::Result<Self> {
        Ok(Self { items: Mutex::new(VecDeque::new()), filled: Waker::new()? })
    }

    fn push(&self, item: T) -> bool {
        let mut items = self.items.lock().unwrap_or_else(PoisonError::into_inner);
        let room = items.len() < QUEUE;
        if room {
            items.push_back(item);
            self.filled.wake();
        }
        room
    }

    fn pop(&self) -> Option<T> {
        let mut items = self.items.lock().unwrap_or_else(PoisonError::into_inner);
        let item = items.pop_front();
        if items.is_empty() {
            self.filled.clear();
        }
        item
    }
}

type Packets = Queue<(VnetHeader, Vec<u8>)>;

/// The tunnel's side of a device in memory.
#[derive(Debug)]
pub struct MemoryTun {
    name: String,
    mtu_bytes: usize,
    offload: Offload,
    refuse: Arc<Mutex<Option<Refuse>>>,
    to_tunnel: Arc<Packets>,
    to_host: Arc<Packets>,
}

/// Which writes a device in memory refuses, as kernels have been seen to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refuse {
    /// Every superpacket, with this `errno`.
    Superpackets(i32),
    /// Every packet whose checksum is to be finished, also superpackets, with this `errno`.
    Unfinished(i32),
    /// Everything, with this `errno`.
    Everything(i32),
}

/// The host's side of a device in memory.
#[derive(Clone, Debug)]
pub struct MemoryHost {
    refuse: Arc<Mutex<Option<Refuse>>>,
    to_tunnel: Arc<Packets>,
    to_host: Arc<Packets>,
}

/// A device in memory: the queue for the lane, and the host that uses the device.
///
/// # Errors
/// When the process has no descriptors left.
pub fn tun(name: &str, mtu_bytes: usize, offload: Offload) -> io::Result<(Tun, MemoryHost)> {
    let (to_tunnel, to_host) = (Arc::new(Queue::new()?), Arc::new(Queue::new()?));
    let refuse = Arc::new(Mutex::new(None));
    let host = MemoryHost { refuse: refuse.clone(), to_tunnel: to_tunnel.clone(), to_host: to_host.clone() };
    Ok((
        Tun::Memory(MemoryTun { name: name.to_owned(), mtu_bytes, offload, refuse, to_tunnel, to_host }),
        host,
    ))
}

impl MemoryTun {
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn mtu(&self) -> usize {
        self.mtu_bytes
    }

    pub(crate) fn set_mtu(&mut self, mtu_bytes: usize) {
        self.mtu_bytes = mtu_bytes;
    }

    pub(crate) fn offload(&self) -> Offload {
        self.offload
    }

    pub(crate) fn read(&mut self, buf: &mut [u8]) -> Option<(VnetHeader, usize)> {
        let (vnet, packet) = self.to_tunnel.pop()?;
        let len = packet.len().min(buf.len());
        let (to, _) = buf.split_at_mut(len);
        to.copy_from_slice(packet.get(..len).unwrap_or_default());
        Some((vnet, len))
    }

    pub(crate) fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<()> {
        let (vnet, pieces) = slices.split_first().ok_or(io::ErrorKind::InvalidInput)?;
        let vnet = vnet.first_chunk().map_or(VnetHeader::NONE, VnetHeader::from_bytes);
        let errno = match *self.refuse.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(Refuse::Superpackets(errno)) if vnet.gso_type != VnetHeader::GSO_NONE => Some(errno),
            Some(Refuse::Unfinished(errno)) if vnet.flags & VnetHeader::NEEDS_CSUM != 0 => Some(errno),
            Some(Refuse::Everything(errno)) => Some(errno),
            _ => None,
        };
        if let Some(errno) = errno {
            return Err(io::Error::from_raw_os_error(errno));
        }
        let mut packet = Vec::with_capacity(pieces.iter().map(|piece| piece.len()).sum());
        pieces.iter().for_each(|piece| packet.extend_from_slice(piece));
        if self.to_host.push((vnet, packet)) {
            Ok(())
        } else {
            Err(io::Error::from_raw_os_error(libc::ENOBUFS))
        }
    }
}

impl AsFd for MemoryTun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.to_tunnel.filled.as_fd()
    }
}

impl MemoryHost {
    /// Sends a complete packet into the tunnel; false when the queue is full.
    pub fn send(&self, packet: &[u8]) -> bool {
        self.send_raw(VnetHeader::NONE, packet)
    }

    /// Sends a packet or superpacket into the tunnel, however wrong; false when the queue is full.
    pub fn send_raw(&self, vnet: VnetHeader, packet: &[u8]) -> bool {
        self.to_tunnel.push((vnet, packet.to_vec()))
    }

    /// What the tunnel wrote next, as it wrote it.
    pub fn receive_raw(&self) -> Option<(VnetHeader, Vec<u8>)> {
        self.to_host.pop()
    }

    /// The packets of what the tunnel wrote next; several when it was a superpacket.
    ///
    /// # Errors
    /// When the tunnel wrote something malformed.
    pub fn receive(&self) -> Result<Option<Vec<Vec<u8>>>, ReadError> {
        let Some((vnet, packet)) = self.receive_raw() else { return Ok(None) };
        let inside = Inside::parse(&vnet, &packet)?;
        let mut segments = inside.segments(&packet);
        let mut buf = vec![0; inside.stride()];
        let next = || segments.next(&mut buf).map(|len| buf.get(..len).unwrap_or_default().to_vec());
        Ok(Some(std::iter::from_fn(next).collect()))
    }

    /// Makes the device refuse writes from now on; `None` makes it whole again.
    pub fn refuse(&self, refuse: Option<Refuse>) {
        *self.refuse.lock().unwrap_or_else(PoisonError::into_inner) = refuse;
    }
}

impl AsFd for MemoryHost {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.to_host.filled.as_fd()
    }
}

struct Run {
    remote: SocketAddr,
    ecn: Ecn,
    stride: usize,
    contents: Vec<u8>,
}

impl std::fmt::Debug for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes from {}", self.contents.len(), self.remote)
    }
}

type Inbox = Arc<Queue<Run>>;

/// A network in memory. Datagrams reach the port with their destination address, or nobody, as in real life.
#[derive(Clone, Debug, Default)]
pub struct MemoryNetwork(Arc<Mutex<HashMap<SocketAddr, Inbox>>>);

impl MemoryNetwork {
    /// Joins the network at `address`; a port that was there before stops receiving.
    ///
    /// # Errors
    /// When the process has no descriptors left.
    pub fn port(&self, address: SocketAddr) -> io::Result<MemoryPort> {
        let inbox = Arc::new(Queue::new()?);
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(address, inbox.clone());
        Ok(MemoryPort { network: self.clone(), address, inbox })
    }

    fn inbox(&self, address: &SocketAddr) -> Option<Inbox> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(address).cloned()
    }
}

/// One host's port on a network in memory.
#[derive(Debug)]
pub struct MemoryPort {
    network: MemoryNetwork,
    address: SocketAddr,
    inbox: Inbox,
}

impl MemoryPort {
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn send(&mut self, batch: &[Transmit<'_>]) -> SendReport {
        let mut report = SendReport::default();
        for transmit in batch {
            let run = Run {
                remote: self.address,
                ecn: transmit.ecn,
                stride: transmit.segment_size.max(1),
                contents: transmit.contents.to_vec(),
            };
            let datagrams = transmit.datagrams() as u64;
            match self.network.inbox(&transmit.endpoint.remote).map(|inbox| inbox.push(run)) {
                Some(false) => report.no_buffer += datagrams,
                // Nobody there: the datagrams are sent and lost.
                Some(true) | None => report.sent(datagrams, transmit.contents.len() as u64),
            }
        }
        report
    }

    pub(crate) fn receive(&mut self, batch: &mut ReceiveBatch) -> usize {
        batch.clear();
        while !batch.is_full() {
            let Some(run) = self.inbox.pop() else { break };
            let endpoint = Endpoint { local: Some(self.address.ip()), ..Endpoint::udp(run.remote) };
            batch.fill(endpoint, run.ecn, run.stride, &run.contents);
        }
        batch.len()
    }
}

impl AsFd for MemoryPort {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inbox.filled.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::carrier::{Family, Port};
    use crate::poll::Poller;
    use crate::tun::INSIDE_MAX;

    fn address(number: u8) -> SocketAddr {
        format!("192.0.2.{number}:51820").parse().unwrap()
    }

    #[test]
    fn datagrams_reach_the_port_with_their_address() {
        let network = MemoryNetwork::default();
        let [mut a, mut b, mut c] =
            [1, 2, 3].map(|number| Port::Memory(network.port(address(number)).unwrap()));
        let mut poller = Poller::new().unwrap();
        for (family, fd) in b.sockets() {
            poller.add(fd, family as u64).unwrap();
        }
        assert_eq!(poller.wait(Some(Duration::ZERO)).unwrap().count(), 0);
        let (to_b, to_nobody) = (Endpoint::udp(address(2)), Endpoint::udp(address(9)));
        let transmit = |endpoint, contents| Transmit {
            endpoint,
            ecn: Ecn::Ce,
            hop_limit: None,
            segment_size: 4,
            contents,
        };
        let report = a.send(&[transmit(&to_b, &b"onlytwo"[..]), transmit(&to_nobody, b"lost")]);
        assert_eq!((report.sent, report.bytes, report.dropped()), (3, 11, 0));

        assert_eq!(poller.wait(Some(Duration::from_secs(1))).unwrap().count(), 1);
        let mut batch = ReceiveBatch::new(4);
        assert_eq!(c.receive(Family::V4, &mut batch).unwrap(), 0);
        assert_eq!(b.receive(Family::V4, &mut batch).unwrap(), 1);
        let (received, datagrams) = batch.datagrams_mut(0);
        assert_eq!(datagrams.collect::<Vec<_>>(), [&b"only"[..], b"two"]);
        assert_eq!((received.endpoint.remote, received.ecn), (address(1), Ecn::Ce));
        assert_eq!(received.endpoint.local, Some(address(2).ip()));
        assert_eq!(b.local_port(), 51820);
        assert_eq!(poller.wait(Some(Duration::ZERO)).unwrap().count(), 0, "drained");
    }

    #[test]
    fn a_queue_that_is_full_counts_what_it_drops() {
        let network = MemoryNetwork::default();
        let mut a = Port::Memory(network.port(address(1)).unwrap());
        let _b = network.port(address(2)).unwrap();
        let to = Endpoint::udp(address(2));
        let (ecn, contents) = (Ecn::NotEct, b"xy");
        let transmit = Transmit { endpoint: &to, ecn, hop_limit: None, segment_size: 2, contents };
        let report = a.send(&vec![transmit; QUEUE + 5]);
        assert_eq!((report.sent, report.no_buffer), (QUEUE as u64, 5));

        let (_tun, host) = tun("m0", 1420, Offload::None).unwrap();
        let taken = (0..QUEUE + 5).filter(|_| host.send(&[0x45])).count();
        assert_eq!(taken, QUEUE);
    }

    #[test]
    fn a_device_passes_packets_both_ways() {
        let (mut tun, host) = tun("m0", 1420, Offload::None).unwrap();
        let mut poller = Poller::new().unwrap();
        poller.add(&tun, 1).unwrap();
        assert_eq!((tun.name(), tun.mtu().unwrap()), ("m0".to_owned(), 1420));
        let mut packet = [0; 20];
        packet[0] = 0x45;
        packet[3] = 20;
        assert!(host.send(&packet));
        assert_eq!(poller.wait(Some(Duration::from_secs(1))).unwrap().count(), 1);
        let mut buf = vec![0; INSIDE_MAX];
        assert_eq!(tun.read(&mut buf).unwrap().unwrap().len(), 20);
        assert!(tun.read(&mut buf).unwrap().is_none());
        assert!(host.send(b"not IP"));
        assert!(matches!(tun.read(&mut buf), Err(ReadError::Malformed)));

        tun.write(&packet).unwrap();
        assert_eq!(host.receive().unwrap().unwrap(), [packet]);
        assert!(host.receive().unwrap().is_none());
    }
}
