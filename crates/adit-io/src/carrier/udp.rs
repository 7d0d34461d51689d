//! UDP sockets: batches out (`sendmmsg`, UDP GSO) and in (`recvmmsg`, UDP GRO).

mod sending;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};

use adit_proto::endpoint::Carrier;
use adit_proto::packet::Ecn;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::receive::Details;
use super::{Family, ReceiveBatch, SendReport, Transmit};
use crate::sys::kernel_version;
use crate::sys::socket::{Control, option, set_option};
use sending::{Gso, Kernel, Outbox, Patience, Sending};

/// What the kernel's own WireGuard-like tunnels ask for; the default of 208 KiB overflows within a millisecond.
const BUFFER_BYTES: i32 = 7 << 20;
/// Which sockets to open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UdpConfig {
    /// The local port; 0 for a random one.
    pub port: u16,
    /// The firewall mark of outgoing packets.
    pub fwmark: Option<u32>,
    /// Whether to open an IPv4 socket.
    pub ipv4: bool,
    /// Whether to open an IPv6 socket, if the host has IPv6.
    pub ipv6: bool,
    /// Whether to use UDP GSO and GRO where the kernel has them.
    pub offload: bool,
}

impl Default for UdpConfig {
    fn default() -> Self {
        Self { port: 0, fwmark: None, ipv4: true, ipv6: true, offload: true }
    }
}

/// One UDP socket for each IP version, on the same port. They stay in the network namespace they were born in.
///
/// Path MTU discovery is left at the kernel's default, as WireGuard leaves it: datagrams that are larger than the
/// path are fragmented by this host, never lost, and nobody has to size the tunnel exactly.
#[derive(Debug)]
pub struct UdpCarrier {
    v4: Option<Socket>,
    v6: Option<Socket>,
    port: u16,
    offload: bool,
    gso: Gso,
    outbox: Outbox,
    stale: Vec<usize>,
}

impl UdpCarrier {
    /// Opens the sockets.
    ///
    /// # Errors
    /// `AddrInUse` when the port is taken, `PermissionDenied` for a mark without `CAP_NET_ADMIN` or a port below
    /// 1024 without `CAP_NET_BIND_SERVICE`; with text for people.
    pub fn bind(config: &UdpConfig) -> io::Result<Self> {
        Self::bind_port(config, Sharing::None)
    }

    /// Opens one carrier for each of `lanes` lanes, all on one port (`SO_REUSEPORT`): the kernel keeps every remote
    /// address on one of them.
    ///
    /// # Errors
    /// As [`bind`](Self::bind); the port is taken also when another program shares it in the same way.
    pub fn bind_lanes(config: &UdpConfig, lanes: usize) -> io::Result<Vec<Self>> {
        if lanes < 2 {
            return Ok(vec![Self::bind(config)?]);
        }
        let first = Self::bind_port(config, Sharing::First)?;
        let rest =
            UdpConfig { port: first.port, ipv4: first.v4.is_some(), ipv6: first.v6.is_some(), ..*config };
        let mut carriers = vec![first];
        for _ in 1..lanes {
            carriers.push(Self::bind_port(&rest, Sharing::Other)?);
        }
        Ok(carriers)
    }

    /// Another sender on the same sockets, with buffers of its own.
    ///
    /// # Errors
    /// When the process has no descriptors left.
    pub fn try_clone(&self) -> io::Result<Self> {
        let clone = |socket: &Option<Socket>| socket.as_ref().map(Socket::try_clone).transpose();
        Ok(Self {
            v4: clone(&self.v4)?,
            v6: clone(&self.v6)?,
            port: self.port,
            offload: self.offload,
            gso: self.gso.afresh(),
            outbox: Outbox::new(),
            stale: Vec::new(),
        })
    }

    /// Sends a batch. What fails for one datagram does not stop the others, and their order to an endpoint is kept.
    pub fn send(&mut self, batch: &[Transmit<'_>]) -> SendReport {
        let mut report = SendReport::default();
        self.stale.clear();
        self.gso.next_batch();
        let mut patience = Patience::new();
        for (family, socket) in [(Family::V4, &self.v4), (Family::V6, &self.v6)] {
            let sending = Sending {
                wire: Kernel,
                socket: socket.as_ref().map(|socket| socket.as_fd()),
                family,
                batch,
                gso: &mut self.gso,
                stale: &mut self.stale,
                report: &mut report,
                patience: &mut patience,
            };
            sending.run(&mut self.outbox);
        }
        for transmit in batch.iter().filter(|transmit| transmit.endpoint.carrier != Carrier::Udp) {
            report.other += transmit.datagrams() as u64;
        }
        report
    }

    /// The indices of transmits of the last batch that went out without their sticky source.
    pub fn stale_sources(&self) -> &[usize] {
        &self.stale
    }

    /// Fills `batch` from one socket without waiting, and returns how many slots.
    ///
    /// # Errors
    /// When the socket fails. What ICMP says about packets sent earlier is no failure.
    pub fn receive(&mut self, family: Family, batch: &mut ReceiveBatch) -> io::Result<usize> {
        const ATTEMPTS: usize = 16;
        let socket = match family {
            Family::V4 => self.v4.as_ref(),
            Family::V6 => self.v6.as_ref(),
        };
        batch.clear();
        let Some(socket) = socket else { return Ok(0) };
        for _ in 0..ATTEMPTS {
            match batch.fill_from(socket.as_fd(), read_details) {
                // Slots that hold nothing of use were counted; what is behind them is not to wait for the next packet.
                Ok(_) if batch.is_empty() => {}
                Ok(_) => return Ok(batch.len()),
                Err(error) => match error.raw_os_error() {
                    Some(libc::EAGAIN) => return Ok(0),
                    Some(
                        libc::EINTR
                        | libc::ECONNREFUSED
                        | libc::ECONNRESET
                        | libc::EHOSTUNREACH
                        | libc::EHOSTDOWN
                        | libc::ENETUNREACH
                        | libc::ENETDOWN
                        | libc::EMSGSIZE
                        | libc::EPROTO
                        | libc::ENOPROTOOPT
                        | libc::ENOMEM
                        | libc::ENOBUFS,
                    ) => {}
                    _ => return Err(error),
                },
            }
        }
        Ok(0)
    }

    /// The descriptors to poll.
    pub fn sockets(&self) -> [Option<(Family, BorrowedFd<'_>)>; 2] {
        [
            self.v4.as_ref().map(|socket| (Family::V4, socket.as_fd())),
            self.v6.as_ref().map(|socket| (Family::V6, socket.as_fd())),
        ]
    }

    /// The local port.
    pub fn local_port(&self) -> u16 {
        self.port
    }

    /// Whether runs of datagrams leave in one call now (UDP GSO).
    pub fn uses_gso(&self) -> bool {
        self.gso.is_on()
    }

    /// Whether the kernel merges received runs (UDP GRO).
    pub fn uses_gro(&self) -> bool {
        self.offload
            && [&self.v4, &self.v6].into_iter().flatten().any(|socket| {
                option(socket.as_fd(), libc::SOL_UDP, libc::UDP_GRO).is_ok_and(|value| value != 0)
            })
    }

    /// The send and receive buffers that the kernel granted, in bytes; its own bookkeeping takes a part of them.
    pub fn buffers_bytes(&self) -> (usize, usize) {
        let socket = self.v4.as_ref().or(self.v6.as_ref());
        socket.map_or((0, 0), |socket| {
            (socket.send_buffer_size().unwrap_or(0), socket.recv_buffer_size().unwrap_or(0))
        })
    }

    /// Sets the firewall mark of outgoing packets; 0 is none.
    ///
    /// # Errors
    /// `PermissionDenied` without `CAP_NET_ADMIN`.
    pub fn set_fwmark(&mut self, fwmark: u32) -> io::Result<()> {
        [&self.v4, &self.v6].into_iter().flatten().try_for_each(|socket| mark(socket, fwmark))
    }

    fn bind_port(config: &UdpConfig, sharing: Sharing) -> io::Result<Self> {
        const ATTEMPTS: usize = 16;
        let mut attempt = 1;
        let (v4, v6, port) = loop {
            match bind_both(config, sharing) {
                Ok(bound) => break bound,
                // The random port of the IPv4 socket can be taken for IPv6.
                Err(error)
                    if config.port == 0 && error.kind() == io::ErrorKind::AddrInUse && attempt < ATTEMPTS =>
                {
                    attempt += 1;
                }
                Err(error) => return Err(explain_bind(&error, config.port)),
            }
        };
        let sockets = || [&v4, &v6].into_iter().flatten();
        for (family, socket) in [(Family::V4, &v4), (Family::V6, &v6)] {
            let Some(socket) = socket else { continue };
            prepare(socket, family, config.offload)?;
            if let Some(fwmark) = config.fwmark {
                mark(socket, fwmark)?;
            }
        }
        let gso = config.offload
            && gso_is_sound(kernel_version())
            && sockets().all(|socket| option(socket.as_fd(), libc::SOL_UDP, libc::UDP_SEGMENT).is_ok());
        Ok(Self {
            port,
            offload: config.offload,
            gso: Gso::new(gso),
            outbox: Outbox::new(),
            stale: Vec::new(),
            v4,
            v6,
        })
    }
}

/// Whether other carriers of this program bind the same port.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sharing {
    None,
    First,
    Other,
}

fn bind_both(config: &UdpConfig, sharing: Sharing) -> io::Result<(Option<Socket>, Option<Socket>, u16)> {
    let mut port = config.port;
    let mut open = |domain: Domain, ip: IpAddr| {
        let socket = Socket::new(domain, Type::DGRAM.nonblocking().cloexec(), Some(Protocol::UDP))?;
        if domain == Domain::IPV6 {
            socket.set_only_v6(true)?;
        }
        if sharing == Sharing::Other {
            socket.set_reuse_port(true)?;
        }
        socket.bind(&SockAddr::from(SocketAddr::new(ip, port)))?;
        // Only now, so that the first bind fails when another program shares the port.
        if sharing == Sharing::First {
            socket.set_reuse_port(true)?;
        }
        port = socket.local_addr()?.as_socket().map_or(port, |address| address.port());
        Ok::<_, io::Error>(socket)
    };
    let v4 = config.ipv4.then(|| open(Domain::IPV4, Ipv4Addr::UNSPECIFIED.into())).transpose()?;
    let v6 = match config.ipv6.then(|| open(Domain::IPV6, Ipv6Addr::UNSPECIFIED.into())).transpose() {
        // IPv6 is not built in, or switched off.
        Err(error)
            if v4.is_some()
                && matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)) =>
        {
            None
        }
        result => result?,
    };
    if v4.is_none() && v6.is_none() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "neither IPv4 nor IPv6 is wanted"));
    }
    Ok((v4, v6, port))
}

fn prepare(socket: &Socket, family: Family, offload: bool) -> io::Result<()> {
    let fd = socket.as_fd();
    for (force, plain) in [(libc::SO_SNDBUFFORCE, libc::SO_SNDBUF), (libc::SO_RCVBUFFORCE, libc::SO_RCVBUF)] {
        if set_option(fd, libc::SOL_SOCKET, force, BUFFER_BYTES).is_err() {
            set_option(fd, libc::SOL_SOCKET, plain, BUFFER_BYTES)?;
        }
    }
    match family {
        Family::V4 => {
            set_option(fd, libc::IPPROTO_IP, libc::IP_PKTINFO, 1)?;
            set_option(fd, libc::IPPROTO_IP, libc::IP_RECVTOS, 1)?;
        }
        Family::V6 => {
            set_option(fd, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1)?;
            set_option(fd, libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS, 1)?;
        }
    }
    set_option(fd, libc::SOL_SOCKET, libc::SO_RXQ_OVFL, 1)?;
    if offload {
        // Missing before Linux 5.0: every datagram then has a slot of its own.
        let _ = set_option(fd, libc::SOL_UDP, libc::UDP_GRO, 1);
    }
    Ok(())
}

fn mark(socket: &Socket, fwmark: u32) -> io::Result<()> {
    set_option(socket.as_fd(), libc::SOL_SOCKET, libc::SO_MARK, fwmark.cast_signed()).map_err(|error| {
        io::Error::new(
            error.kind(),
            format!("cannot set the firewall mark {fwmark:#x}: {error}; run as root or with CAP_NET_ADMIN"),
        )
    })
}

fn explain_bind(error: &io::Error, port: u16) -> io::Error {
    let why = match error.kind() {
        io::ErrorKind::AddrInUse => {
            "another program uses it; choose another port, or find the program with `ss -lunp`".to_owned()
        }
        io::ErrorKind::PermissionDenied => {
            "not allowed; ports below 1024 need root or CAP_NET_BIND_SERVICE".to_owned()
        }
        _ => error.to_string(),
    };
    let port = if port == 0 { "a random port".to_owned() } else { format!("port {port}") };
    io::Error::new(error.kind(), format!("cannot listen on UDP {port}: {why}"))
}

/// Linux 7.0 to 7.1.4 mangle runs of equal datagrams on some network cards (kernel commits b10b446, 78effd8).
fn gso_is_sound(kernel: (u32, u32, u32)) -> bool {
    !((7, 0, 0)..=(7, 1, 4)).contains(&kernel)
}

fn read_details(control: &Control) -> Details {
    let mut details = Details::default();
    for (level, kind, data) in control.iter() {
        let number = || data.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes));
        match (level, kind) {
            (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                // struct in_pktinfo: interface index, local address to answer from, destination in the packet.
                let local: Option<&[u8; 4]> = data.get(4..).and_then(|rest| rest.first_chunk());
                details.local = local.map(|octets| Ipv4Addr::from(*octets).into());
                details.interface = number().map_or(0, i32::cast_unsigned);
            }
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                let local: Option<&[u8; 16]> = data.first_chunk();
                details.local = local.map(|octets| Ipv6Addr::from(*octets).into());
                let index: Option<&[u8; 4]> = data.get(16..).and_then(|rest| rest.first_chunk());
                details.interface = index.map_or(0, |bytes| u32::from_ne_bytes(*bytes));
            }
            (libc::IPPROTO_IP, libc::IP_TOS) => {
                details.ecn = data.first().map_or(Ecn::NotEct, |tos| Ecn::from_tos(*tos))
            }
            (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
                details.ecn = number().map_or(Ecn::NotEct, |class| Ecn::from_tos(class as u8));
            }
            (libc::SOL_UDP, libc::UDP_GRO) => {
                details.stride =
                    number().and_then(|stride| usize::try_from(stride).ok()).filter(|stride| *stride > 0);
            }
            (libc::SOL_SOCKET, libc::SO_RXQ_OVFL) => details.overflow = number().map(i32::cast_unsigned),
            _ => {}
        }
    }
    details
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_that_mangle_runs_get_none() {
        let broken = [(7, 0, 0), (7, 0, 9), (7, 1, 4)];
        let sound = [(5, 15, 0), (6, 18, 44), (7, 1, 5), (7, 2, 0), (8, 0, 0)];
        assert!(broken.into_iter().all(|kernel| !gso_is_sound(kernel)));
        assert!(sound.into_iter().all(gso_is_sound));
    }
}
