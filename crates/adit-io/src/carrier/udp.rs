//! UDP sockets: batches out (`sendmmsg`, UDP GSO) and in (`recvmmsg`, UDP GRO).
//!
//! ```text
//!   Transmit ──► pieces (≤ 64 datagrams, ≤ 65,507 bytes) ──► sendmmsg ──► sent
//!                                                              │ error, for the first piece
//!        retry as it is · without its source · datagram by datagram · count it as dropped, go on with the next
//! ```

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use adit_proto::endpoint::Carrier;
use adit_proto::packet::Ecn;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::receive::Details;
use super::{Family, ReceiveBatch, SendReport, Transmit};
use crate::sys::kernel_version;
use crate::sys::socket::{
    Control, RawAddress, empty_header, option, send_messages, set_option, wait_writable,
};

/// Messages in one `sendmmsg`.
const MESSAGES: usize = 64;
/// `UDP_MAX_SEGMENTS` before Linux 6.9; measured, twice as many are no faster.
const SEGMENTS_MAX: usize = 64;
/// 65,535 less an IPv4 and a UDP header.
const PIECE_MAX: usize = 65_507;
/// What the kernel's own WireGuard-like tunnels ask for; the default of 208 KiB overflows within a millisecond.
const BUFFER_BYTES: i32 = 7 << 20;
/// How long a batch may wait for room in the socket's buffer. Beyond, dropping tells the flows inside to slow down.
const PATIENCE: Duration = Duration::from_millis(10);
/// Batches without GSO after the host refused it; then it is tried again, because routes change.
const GSO_PAUSE: u32 = 4096;
/// Refusals in a row, none taken in between, that pause GSO. One peer behind a narrow path does not slow down the others.
const GSO_REFUSALS: u32 = 8;

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
            gso: Gso { supported: self.gso.supported, refusals: 0, pause: 0 },
            outbox: Outbox::new(),
            stale: Vec::new(),
        })
    }

    /// Sends a batch. What fails for one datagram does not stop the others, and their order to an endpoint is kept.
    pub fn send(&mut self, batch: &[Transmit<'_>]) -> SendReport {
        let mut report = SendReport::default();
        self.stale.clear();
        self.gso.next_batch();
        let mut patience = None;
        for family in [Family::V4, Family::V6] {
            let socket = match family {
                Family::V4 => self.v4.as_ref(),
                Family::V6 => self.v6.as_ref(),
            };
            let mut cursor = Cursor { family, transmit: 0, offset: 0 };
            loop {
                self.outbox.pieces.clear();
                while self.outbox.pieces.len() < MESSAGES {
                    let Some(piece) = cursor.next(batch, self.gso.is_on()) else { break };
                    self.outbox.pieces.push(piece);
                }
                if self.outbox.pieces.is_empty() {
                    break;
                }
                let Some(socket) = socket else {
                    report.unreachable +=
                        self.outbox.pieces.iter().map(|piece| piece.datagrams as u64).sum::<u64>();
                    continue;
                };
                let mut sending = Sending {
                    socket: socket.as_fd(),
                    family,
                    batch,
                    gso: &mut self.gso,
                    stale: &mut self.stale,
                    report: &mut report,
                    patience: &mut patience,
                };
                sending.send(&mut self.outbox);
            }
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
            gso: Gso { supported: gso, refusals: 0, pause: 0 },
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

/// Whether runs are sent in one call.
#[derive(Debug)]
struct Gso {
    supported: bool,
    refusals: u32,
    pause: u32,
}

impl Gso {
    fn is_on(&self) -> bool {
        self.supported && self.pause == 0
    }

    fn next_batch(&mut self) {
        self.pause = self.pause.saturating_sub(1);
    }

    fn taken(&mut self) {
        self.refusals = 0;
    }

    fn refused(&mut self, error: &io::Error) {
        // EIO says that the device on the way cannot do it at all.
        self.refusals += if error.raw_os_error() == Some(libc::EIO) { GSO_REFUSALS } else { 1 };
        if self.refusals >= GSO_REFUSALS {
            self.refusals = 0;
            self.pause = GSO_PAUSE;
        }
    }
}

/// A part of a transmit that goes out as one message.
#[derive(Clone, Copy, Debug)]
struct Piece {
    transmit: usize,
    offset: usize,
    len: usize,
    datagrams: usize,
}

/// Cuts the transmits of one family into pieces, in order.
struct Cursor {
    family: Family,
    transmit: usize,
    offset: usize,
}

impl Cursor {
    fn next(&mut self, batch: &[Transmit<'_>], gso: bool) -> Option<Piece> {
        loop {
            let transmit = batch.get(self.transmit)?;
            let total = transmit.contents.len();
            let skip = transmit.endpoint.carrier != Carrier::Udp || family_of(transmit) != self.family;
            if skip || (self.offset >= total && self.offset > 0) {
                self.transmit += 1;
                self.offset = 0;
                continue;
            }
            let size = transmit.segment_size.max(1);
            let most = if gso { (PIECE_MAX / size).clamp(1, SEGMENTS_MAX) } else { 1 };
            let len = (total - self.offset).min(size.saturating_mul(most));
            let piece = Piece {
                transmit: self.transmit,
                offset: self.offset,
                len,
                datagrams: len.div_ceil(size).max(1),
            };
            // A datagram without contents moves on too.
            self.offset += len.max(1);
            return Some(piece);
        }
    }
}

fn family_of(transmit: &Transmit<'_>) -> Family {
    match transmit.endpoint.remote.ip().to_canonical() {
        IpAddr::V4(_) => Family::V4,
        IpAddr::V6(_) => Family::V6,
    }
}

/// The arrays of one `sendmmsg`. The pointers are written anew before every call and never used after.
struct Outbox {
    pieces: Vec<Piece>,
    headers: Vec<libc::mmsghdr>,
    buffers: Vec<libc::iovec>,
    names: Vec<RawAddress>,
    controls: Vec<Control>,
}

// SAFETY: the raw pointers inside are dead between calls: `Sending::wire` overwrites those that a call uses.
unsafe impl Send for Outbox {}

impl Outbox {
    fn new() -> Self {
        let buffer = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        Self {
            pieces: Vec::with_capacity(MESSAGES),
            headers: vec![empty_header(); MESSAGES],
            buffers: vec![buffer; MESSAGES],
            names: vec![RawAddress::unset(); MESSAGES],
            controls: vec![Control::new(); MESSAGES],
        }
    }
}

impl std::fmt::Debug for Outbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(&self.pieces).finish()
    }
}

/// One family's part of a batch on its way.
struct Sending<'a, 'b> {
    socket: BorrowedFd<'a>,
    family: Family,
    batch: &'a [Transmit<'b>],
    gso: &'a mut Gso,
    stale: &'a mut Vec<usize>,
    report: &'a mut SendReport,
    patience: &'a mut Option<Instant>,
}

/// What to do about a message that the kernel did not take.
enum Verdict {
    Retry,
    WithoutSource,
    OneByOne,
    Drop,
}

impl Sending<'_, '_> {
    fn send(&mut self, outbox: &mut Outbox) {
        let count = outbox.pieces.len();
        for number in 0..count {
            self.wire(outbox, number);
        }
        let mut next = 0;
        let mut attempts = 0;
        while next < count {
            let Some(headers) = outbox.headers.get_mut(next..count) else { return };
            match send_messages(self.socket, headers) {
                Ok(taken) => {
                    for piece in outbox.pieces.iter().skip(next).take(taken) {
                        self.report.sent(piece.datagrams as u64, piece.len as u64);
                        if piece.datagrams > 1 {
                            self.gso.taken();
                        }
                    }
                    next += taken;
                    attempts = 0;
                }
                Err(error) => {
                    attempts += 1;
                    let piece = outbox.pieces[next];
                    match self.judge(&error, &piece, attempts) {
                        Verdict::Retry => {}
                        Verdict::WithoutSource => {
                            self.forget_source(piece.transmit);
                            for number in next..count {
                                if outbox.pieces[number].transmit == piece.transmit {
                                    self.wire(outbox, number);
                                }
                            }
                        }
                        Verdict::OneByOne => {
                            let before = self.report.sent;
                            self.send_one_by_one(outbox, next);
                            self.report.split += 1;
                            // Not at fault when the datagrams fail alike.
                            if self.report.sent > before {
                                self.gso.refused(&error);
                            }
                            next += 1;
                            attempts = 0;
                        }
                        Verdict::Drop => {
                            self.drop(&error, &piece);
                            next += 1;
                            attempts = 0;
                        }
                    }
                }
            }
        }
    }

    /// Sends the datagrams of piece `number` as messages of their own, in its place in the arrays.
    fn send_one_by_one(&mut self, outbox: &mut Outbox, number: usize) {
        let run = outbox.pieces[number];
        let size = self.batch.get(run.transmit).map_or(1, |transmit| transmit.segment_size.max(1));
        for offset in (run.offset..run.offset + run.len).step_by(size) {
            let piece = Piece { offset, len: size.min(run.offset + run.len - offset), datagrams: 1, ..run };
            outbox.pieces[number] = piece;
            self.wire(outbox, number);
            let mut attempts = 0;
            loop {
                let Some(header) = outbox.headers.get_mut(number..=number) else { return };
                let Err(error) = send_messages(self.socket, header) else {
                    self.report.sent(1, piece.len as u64);
                    break;
                };
                attempts += 1;
                match self.judge(&error, &piece, attempts) {
                    Verdict::Retry => {}
                    Verdict::WithoutSource => {
                        self.forget_source(piece.transmit);
                        self.wire(outbox, number);
                    }
                    Verdict::OneByOne | Verdict::Drop => {
                        self.drop(&error, &piece);
                        break;
                    }
                }
            }
        }
    }

    fn judge(&mut self, error: &io::Error, piece: &Piece, attempts: usize) -> Verdict {
        const ERRORS_OF_OTHERS: usize = 4;
        let run = piece.datagrams > 1;
        match error.raw_os_error() {
            Some(libc::EINTR) => Verdict::Retry,
            Some(libc::EAGAIN) if self.wait(wait_writable) => Verdict::Retry,
            // A full queue of the device: the socket is writable, so there is nothing to poll for.
            Some(libc::ENOBUFS | libc::ENOMEM)
                if self.wait(|_, _| std::thread::sleep(Duration::from_micros(200))) =>
            {
                Verdict::Retry
            }
            // Only a run fails for being a run; and only then is its source put to the test.
            Some(libc::EIO | libc::EINVAL | libc::EMSGSIZE) if run => Verdict::OneByOne,
            Some(libc::EINVAL | libc::ENETUNREACH | libc::EADDRNOTAVAIL | libc::EHOSTUNREACH)
                if self.source(piece.transmit).is_some() =>
            {
                Verdict::WithoutSource
            }
            // An error that ICMP reported about an earlier datagram; this one was not tried.
            Some(libc::ECONNREFUSED | libc::ECONNRESET) if attempts <= ERRORS_OF_OTHERS => Verdict::Retry,
            _ => Verdict::Drop,
        }
    }

    /// Waits a little for room; false when the batch has waited enough.
    fn wait(&mut self, wait: impl FnOnce(BorrowedFd<'_>, i32)) -> bool {
        let now = Instant::now();
        let deadline = *self.patience.get_or_insert(now + PATIENCE);
        let left = deadline.saturating_duration_since(now);
        if left.is_zero() {
            return false;
        }
        wait(self.socket, i32::try_from(left.as_millis()).unwrap_or(i32::MAX).max(1));
        true
    }

    fn drop(&mut self, error: &io::Error, piece: &Piece) {
        let report = &mut *self.report;
        let count = match error.raw_os_error() {
            Some(libc::EMSGSIZE) => &mut report.too_big,
            Some(libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM) => &mut report.no_buffer,
            Some(libc::EPERM | libc::EACCES) => &mut report.refused,
            Some(
                libc::ENETUNREACH
                | libc::EHOSTUNREACH
                | libc::ENETDOWN
                | libc::EHOSTDOWN
                | libc::EADDRNOTAVAIL,
            ) => &mut report.unreachable,
            _ => &mut report.other,
        };
        *count += piece.datagrams as u64;
    }

    /// The address to send from, if the endpoint has one of this family that was not found stale.
    fn source(&self, transmit: usize) -> Option<IpAddr> {
        let local = self.batch.get(transmit)?.endpoint.local?.to_canonical();
        let fits = match self.family {
            Family::V4 => local.is_ipv4(),
            Family::V6 => local.is_ipv6(),
        };
        (fits && !local.is_unspecified() && self.stale.last() != Some(&transmit)).then_some(local)
    }

    fn forget_source(&mut self, transmit: usize) {
        self.stale.push(transmit);
        self.report.stale_sources += 1;
    }

    /// Points message `number` at its piece.
    fn wire(&self, outbox: &mut Outbox, number: usize) {
        let Outbox { pieces, headers, buffers, names, controls } = outbox;
        let piece = pieces[number];
        let Some(transmit) = self.batch.get(piece.transmit) else { return };
        let bytes = transmit.contents.get(piece.offset..piece.offset + piece.len).unwrap_or_default();
        let remote = transmit.endpoint.remote;
        let remote = match remote.ip().to_canonical() {
            IpAddr::V4(ip) => SocketAddr::new(ip.into(), remote.port()),
            IpAddr::V6(_) => remote,
        };
        let (name, name_len) = RawAddress::new(&remote);
        names[number] = name;
        buffers[number] = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        let control = &mut controls[number];
        control.clear();
        self.write_control(control, transmit, &piece);
        let (control, control_len) = control.as_mut_ptr();
        let header = &mut headers[number].msg_hdr;
        header.msg_name = (&raw mut names[number]).cast();
        header.msg_namelen = name_len;
        header.msg_iov = &raw mut buffers[number];
        header.msg_iovlen = 1;
        header.msg_control = control;
        header.msg_controllen = control_len as _;
        header.msg_flags = 0;
    }

    fn write_control(&self, control: &mut Control, transmit: &Transmit<'_>, piece: &Piece) {
        if piece.datagrams > 1 {
            control.push(libc::SOL_UDP, libc::UDP_SEGMENT, &(transmit.segment_size as u16).to_ne_bytes());
        }
        if transmit.ecn != Ecn::NotEct {
            let tos = (transmit.ecn as i32).to_ne_bytes();
            match self.family {
                Family::V4 => control.push(libc::IPPROTO_IP, libc::IP_TOS, &tos),
                Family::V6 => control.push(libc::IPPROTO_IPV6, libc::IPV6_TCLASS, &tos),
            }
        }
        // The interface goes along only where the address means nothing without it. Otherwise it would pin the way
        // out, and a route that moved to another interface would leave the packets to an ARP that nobody answers.
        match self.source(piece.transmit) {
            Some(IpAddr::V4(ip)) => {
                // struct in_pktinfo: interface index, source, unused.
                let mut info = [0; 12];
                info[4..8].copy_from_slice(&ip.octets());
                control.push(libc::IPPROTO_IP, libc::IP_PKTINFO, &info);
            }
            Some(IpAddr::V6(ip)) => {
                // struct in6_pktinfo: source, interface index.
                let interface = if ip.is_unicast_link_local() { transmit.endpoint.interface } else { 0 };
                let mut info = [0; 20];
                info[..16].copy_from_slice(&ip.octets());
                info[16..].copy_from_slice(&interface.to_ne_bytes());
                control.push(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info);
            }
            None => {}
        }
    }
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
