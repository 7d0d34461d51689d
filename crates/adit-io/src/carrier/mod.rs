//! Carriers: the outside edge of the tunnel.

mod receive;
pub mod stream;
mod udp;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use adit_proto::endpoint::Endpoint;
use adit_proto::packet::Ecn;
use adit_proto::reason::DropReason;

pub use receive::{ReceiveBatch, Received};
pub use udp::{UdpCarrier, UdpConfig};

use crate::memory::MemoryPort;

/// An IP version outside; each has its own socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// Datagrams to send to one endpoint.
#[derive(Clone, Copy, Debug)]
pub struct Transmit<'a> {
    /// Where to.
    pub endpoint: &'a Endpoint,
    /// The ECN field of the outside packets.
    pub ecn: Ecn,
    /// The hop limit (TTL) of the outside packets, at least 1; `None` is the host's own.
    pub hop_limit: Option<u8>,
    /// The length in bytes of every datagram but the last, which may be shorter.
    pub segment_size: usize,
    /// The datagrams, one behind the other. Any number: the carrier splits what is too much for one call.
    pub contents: &'a [u8],
}

impl Transmit<'_> {
    /// How many datagrams it holds.
    pub fn datagrams(&self) -> usize {
        self.contents.len().div_ceil(self.segment_size.max(1)).max(1)
    }
}

/// What became of the datagrams of a [`Port::send`]. Every datagram is counted in `sent` or in exactly one other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct SendReport {
    /// Datagrams the host took.
    pub sent: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Datagrams larger than any datagram, or than the path takes.
    pub too_big: u64,
    /// Datagrams dropped because the host had no room for them, even after a short wait.
    pub no_buffer: u64,
    /// Datagrams without a route, or to a family without a socket.
    pub unreachable: u64,
    /// Datagrams that a firewall rule of this host refused.
    pub refused: u64,
    /// Datagrams dropped for any other reason.
    pub other: u64,
    /// Runs that the host did not take as one call and that went out one by one. Their datagrams are counted above.
    pub split: u64,
    /// Transmits whose sticky source was dropped: see [`Port::stale_sources`].
    pub stale_sources: u64,
}

impl SendReport {
    /// Datagrams that went nowhere.
    pub const fn dropped(&self) -> u64 {
        self.too_big + self.no_buffer + self.unreachable + self.refused + self.other
    }

    /// The reasons to count dropped datagrams under.
    pub fn drops(&self) -> [(DropReason, u64); 2] {
        [(DropReason::TooBig, self.too_big), (DropReason::SendFailed, self.dropped() - self.too_big)]
    }

    pub(crate) fn sent(&mut self, datagrams: u64, bytes: u64) {
        self.sent += datagrams;
        self.bytes += bytes;
    }
}

/// What a lane sends datagrams to and receives them from. Non-blocking; owned by one lane.
#[derive(Debug)]
pub enum Port {
    /// UDP sockets.
    Udp(UdpCarrier),
    /// A queue in memory, for tests.
    Memory(MemoryPort),
}

impl Port {
    /// Sends a batch. What fails for one datagram does not stop the others, and their order to an endpoint is kept.
    pub fn send(&mut self, batch: &[Transmit<'_>]) -> SendReport {
        match self {
            Self::Udp(carrier) => carrier.send(batch),
            Self::Memory(port) => port.send(batch),
        }
    }

    /// The indices of transmits of the last batch whose sticky source the host does not have any more: they went out
    /// without it. The owner clears the hint in the endpoint.
    pub fn stale_sources(&self) -> &[usize] {
        match self {
            Self::Udp(carrier) => carrier.stale_sources(),
            Self::Memory(_) => &[],
        }
    }

    /// Fills `batch` from the socket of one family, and returns how many slots. 0 when nothing is there.
    ///
    /// # Errors
    /// When the socket fails. What ICMP says about packets sent earlier is no failure.
    pub fn receive(&mut self, family: Family, batch: &mut ReceiveBatch) -> io::Result<usize> {
        match self {
            Self::Udp(carrier) => carrier.receive(family, batch),
            Self::Memory(port) => Ok(port.receive(batch)),
        }
    }

    /// The descriptors to poll, with the family to [`receive`](Self::receive) when one is ready.
    pub fn sockets(&self) -> impl Iterator<Item = (Family, BorrowedFd<'_>)> {
        let sockets = match self {
            Self::Udp(carrier) => carrier.sockets(),
            Self::Memory(port) => [Some((Family::V4, port.as_fd())), None],
        };
        sockets.into_iter().flatten()
    }

    /// The local UDP port.
    pub fn local_port(&self) -> u16 {
        match self {
            Self::Udp(carrier) => carrier.local_port(),
            Self::Memory(port) => port.address().port(),
        }
    }

    /// Sets the firewall mark of outgoing packets; 0 is none.
    ///
    /// # Errors
    /// `PermissionDenied` without `CAP_NET_ADMIN`.
    pub fn set_fwmark(&mut self, fwmark: u32) -> io::Result<()> {
        match self {
            Self::Udp(carrier) => carrier.set_fwmark(fwmark),
            Self::Memory(_) => Ok(()),
        }
    }
}
