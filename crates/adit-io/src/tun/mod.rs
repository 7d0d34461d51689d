//! TUN devices: the inside edge of the tunnel.

pub mod checksum;
mod coalesce;
mod header;
mod linux;
mod offload;
#[cfg(test)]
mod sample;
mod vnet;

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use adit_proto::reason::DropReason;
use adit_proto::unfinished::Place;

pub use coalesce::{Coalescer, WriteReport};
pub use linux::LinuxTun;
pub use offload::{Inside, Segmenter, finish_checksum};
pub use vnet::VnetHeader;

use crate::memory::MemoryTun;

/// The longest packet that [`Tun::read`] yields, in bytes: an IPv6 header and 65,535 bytes. The size for its buffer.
pub const INSIDE_MAX: usize = 65_575;

/// What device to create.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunConfig {
    /// The name, at most 15 bytes; `%d` in it is replaced by the first free number. `None` is `tun%d`.
    pub name: Option<String>,
    /// How many queues: one for each lane.
    pub queues: usize,
    /// Whether to exchange superpackets and unfinished checksums with the kernel.
    pub offload: bool,
}

/// What the kernel lets pass unfinished, on both ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Offload {
    /// Every packet stands alone and complete.
    #[default]
    None,
    /// Checksums may be unfinished; no superpackets.
    Checksum,
    /// TCP superpackets too.
    Tcp,
    /// TCP and UDP superpackets (Linux 6.2 and later).
    TcpUdp,
}

/// Why a packet could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The packet, or what the kernel says about it, makes no sense. Skip it.
    #[error("the TUN device delivered a malformed packet")]
    Malformed,
    /// The device was deleted under us. Nothing more will come.
    #[error("the TUN device was deleted")]
    Gone,
    /// The system failed.
    #[error("cannot read from the TUN device: {0}")]
    System(#[from] io::Error),
}

impl ReadError {
    /// The reason to count the packet under.
    pub const fn drop_reason(&self) -> DropReason {
        match self {
            Self::Malformed => DropReason::MalformedInside,
            Self::Gone | Self::System(_) => DropReason::TunFailed,
        }
    }
}

/// One queue of a TUN device. Non-blocking; owned by one lane.
#[derive(Debug)]
pub enum Tun {
    /// A device of the Linux kernel.
    Linux(LinuxTun),
    /// A queue in memory, for tests without privileges.
    Memory(MemoryTun),
}

impl Tun {
    /// Creates a device (or, with one queue, attaches to a persistent one of that name) in the namespace of the calling thread,
    /// and returns its queues. The device is down, without addresses, and vanishes with its last queue.
    ///
    /// # Errors
    /// With text for people: no `/dev/net/tun`, no privilege, name taken, name invalid.
    pub fn create(config: &TunConfig) -> io::Result<Vec<Self>> {
        Ok(LinuxTun::create(config)?.into_iter().map(Self::Linux).collect())
    }

    /// Takes over one queue of a device that another process opened (`WG_TUN_FD`), as it was set up there.
    /// Without `offload`, or when it was opened without `IFF_VNET_HDR`, packets stand alone.
    ///
    /// # Errors
    /// When the descriptor is no TUN queue without packet information (`IFF_TUN | IFF_NO_PI`).
    pub fn from_fd(fd: OwnedFd, offload: bool) -> io::Result<Self> {
        LinuxTun::from_fd(fd, offload).map(Self::Linux)
    }

    /// What another process needs to use this queue, also from another namespace; for [`Tun::from_descriptors`].
    pub fn descriptors(&self) -> Option<[BorrowedFd<'_>; 2]> {
        match self {
            Self::Linux(tun) => Some(tun.descriptors()),
            Self::Memory(_) => None,
        }
    }

    /// Takes over a queue from a process that sent its [`Tun::descriptors`]. Its index is 0: here it has none.
    ///
    /// # Errors
    /// When they are no TUN queue without packet information and a socket.
    pub fn from_descriptors(descriptors: [OwnedFd; 2], offload: bool) -> io::Result<Self> {
        LinuxTun::from_descriptors(descriptors, offload).map(Self::Linux)
    }

    /// The name now (devices can be renamed).
    pub fn name(&self) -> String {
        match self {
            Self::Linux(tun) => tun.name(),
            Self::Memory(tun) => tun.name().to_owned(),
        }
    }

    /// The interface index it was created with, in the namespace it was created in.
    pub fn index(&self) -> u32 {
        match self {
            Self::Linux(tun) => tun.index(),
            Self::Memory(_) => 0,
        }
    }

    /// The MTU in bytes.
    ///
    /// # Errors
    /// When the device left the namespace it was created in, or was deleted.
    pub fn mtu(&self) -> io::Result<usize> {
        match self {
            Self::Linux(tun) => tun.mtu(),
            Self::Memory(tun) => Ok(tun.mtu()),
        }
    }

    /// Sets the MTU in bytes.
    ///
    /// # Errors
    /// When the kernel refuses the value, or the device left the namespace it was created in, or was deleted.
    pub fn set_mtu(&mut self, mtu_bytes: usize) -> io::Result<()> {
        match self {
            Self::Linux(tun) => tun.set_mtu(mtu_bytes),
            Self::Memory(tun) => {
                tun.set_mtu(mtu_bytes);
                Ok(())
            }
        }
    }

    /// What the queue takes and gives unfinished.
    pub fn offload(&self) -> Offload {
        match self {
            Self::Linux(tun) => tun.offload(),
            Self::Memory(tun) => tun.offload(),
        }
    }

    /// Reads one packet or superpacket into `buf`, which should hold [`INSIDE_MAX`] bytes. `None` when there is none now.
    ///
    /// What the kernel says about the packet is checked against the packet itself.
    ///
    /// # Errors
    /// [`ReadError::Malformed`] for this packet only; the others end the lane.
    pub fn read(&mut self, buf: &mut [u8]) -> Result<Option<Inside>, ReadError> {
        let read = match self {
            Self::Linux(tun) => tun.read(buf)?,
            Self::Memory(tun) => tun.read(buf),
        };
        read.map(|(vnet, len)| Inside::parse(&vnet, buf.get(..len).unwrap_or_default())).transpose()
    }

    /// Writes one complete packet.
    ///
    /// # Errors
    /// `EIO` when the device is down, `EBADFD` when it was deleted, `EINVAL` when the packet is not IP.
    pub fn write(&mut self, packet: &[u8]) -> io::Result<()> {
        self.write_vectored(&[IoSlice::new(&VnetHeader::NONE.to_bytes()), IoSlice::new(packet)])
    }

    /// Writes one packet whose checksum holds the sum of its pseudo header: for the kernel to finish where it does that.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn write_unfinished(&mut self, packet: &[u8]) -> io::Result<()> {
        if let Some(Place { start, field }) = Place::of(packet)
            && self.offload() != Offload::None
        {
            let vnet = VnetHeader {
                flags: VnetHeader::NEEDS_CSUM,
                csum_start: start as u16,
                csum_offset: (field - start) as u16,
                ..VnetHeader::NONE
            };
            match self.write_vectored(&[IoSlice::new(&vnet.to_bytes()), IoSlice::new(packet)]) {
                Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EIO)) => {}
                result => return result,
            }
        }
        let mut packet = packet.to_vec();
        finish_checksum(&mut packet);
        self.write(&packet)
    }

    /// Writes a superpacket that somebody else has put together: whole where the device takes it, else packet by packet.
    /// How many packets the device refused.
    ///
    /// # Errors
    /// [`ReadError::Malformed`] when it is none.
    pub fn write_superpacket(&mut self, packet: &mut [u8], segment_size: u16) -> Result<u64, ReadError> {
        let (inside, vnet) = Inside::of_superpacket(packet, segment_size)?;
        let packet = packet.get(..inside.len()).unwrap_or_default();
        let is_udp = vnet.gso_type == VnetHeader::GSO_UDP_L4;
        let whole = match self.offload() {
            Offload::TcpUdp => true,
            Offload::Tcp => !is_udp,
            Offload::Checksum | Offload::None => false,
        };
        if whole && self.write_vectored(&[IoSlice::new(&vnet.to_bytes()), IoSlice::new(packet)]).is_ok() {
            return Ok(0);
        }
        let mut segments = inside.segments(packet);
        let mut segment = vec![0; segments.stride()];
        let mut failed = 0;
        while let Some(len) = segments.next(&mut segment) {
            failed += u64::from(self.write(segment.get(..len).unwrap_or_default()).is_err());
        }
        Ok(failed)
    }

    /// Writes one packet or superpacket, in pieces; the first is its [`VnetHeader`], which a plain queue skips.
    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<()> {
        match self {
            Self::Linux(tun) => tun.write_vectored(slices),
            Self::Memory(tun) => tun.write_vectored(slices),
        }
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Linux(tun) => tun.as_fd(),
            Self::Memory(tun) => tun.as_fd(),
        }
    }
}

impl AsRawFd for Tun {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}
