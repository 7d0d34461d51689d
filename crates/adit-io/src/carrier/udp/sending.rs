//! Batches on their way out of a UDP socket.
//!
//! ```text
//!   Transmit ──► pieces (≤ 64 datagrams, ≤ 65,507 bytes) ──► sendmmsg ──► sent
//!                                                              │ error, for the first piece
//!        retry as it is · without its source · datagram by datagram · count it as dropped, go on with the next
//! ```

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use adit_proto::endpoint::Carrier;
use adit_proto::packet::Ecn;

use crate::carrier::{Family, SendReport, Transmit};
use crate::sys::socket::{Control, RawAddress, empty_header, send_messages, wait_writable};

/// Messages in one `sendmmsg`.
const MESSAGES: usize = 64;
/// `UDP_MAX_SEGMENTS` before Linux 6.9; measured, twice as many are no faster.
const SEGMENTS_MAX: usize = 64;
/// 65,535 less an IPv4 and a UDP header.
const PIECE_MAX: usize = 65_507;
/// How long a batch may wait for room in the socket's buffer. Beyond, dropping tells the flows inside to slow down.
const PATIENCE: Duration = Duration::from_millis(10);
/// Batches without GSO after the host refused it; then it is tried again, because routes change.
const GSO_PAUSE: u32 = 4096;
/// Refusals in a row, none taken in between, that pause GSO. One peer behind a narrow path does not slow down the others.
const GSO_REFUSALS: u32 = 8;

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
pub(super) struct Outbox {
    pieces: Vec<Piece>,
    headers: Vec<libc::mmsghdr>,
    buffers: Vec<libc::iovec>,
    names: Vec<RawAddress>,
    controls: Vec<Control>,
}

// SAFETY: the raw pointers inside are dead between calls: `Sending::point` overwrites those that a call uses.
unsafe impl Send for Outbox {}

impl Outbox {
    pub(super) fn new() -> Self {
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

/// What takes messages from us.
pub(super) trait Wire {
    /// How many of the messages were taken, at least one.
    fn take(&mut self, socket: BorrowedFd<'_>, headers: &mut [libc::mmsghdr]) -> io::Result<usize>;
}

/// `sendmmsg` itself. In tests there is one that refuses.
pub(super) struct Kernel;

impl Wire for Kernel {
    fn take(&mut self, socket: BorrowedFd<'_>, headers: &mut [libc::mmsghdr]) -> io::Result<usize> {
        send_messages(socket, headers)
    }
}

/// One family's part of a batch on its way.
pub(super) struct Sending<'a, 'b, W> {
    pub(super) wire: W,
    pub(super) socket: Option<BorrowedFd<'a>>,
    pub(super) family: Family,
    pub(super) batch: &'a [Transmit<'b>],
    pub(super) gso: &'a mut Gso,
    pub(super) stale: &'a mut Vec<usize>,
    pub(super) report: &'a mut SendReport,
    pub(super) patience: &'a mut Patience,
}

/// What to do about a message that the kernel did not take.
enum Verdict {
    Retry,
    WithoutSource,
    OneByOne,
    Drop,
}

impl<W: Wire> Sending<'_, '_, W> {
    /// Sends everything, through the arrays of `outbox`.
    pub(super) fn run(mut self, outbox: &mut Outbox) {
        let mut cursor = Cursor { family: self.family, transmit: 0, offset: 0 };
        loop {
            outbox.pieces.clear();
            while outbox.pieces.len() < MESSAGES {
                let Some(piece) = cursor.next(self.batch, self.gso.is_on()) else { break };
                outbox.pieces.push(piece);
            }
            if outbox.pieces.is_empty() {
                return;
            }
            match self.socket {
                Some(socket) => self.send(socket, outbox),
                None => {
                    let datagrams = outbox.pieces.iter().map(|piece| piece.datagrams as u64);
                    self.report.unreachable += datagrams.sum::<u64>();
                }
            }
        }
    }

    fn send(&mut self, socket: BorrowedFd<'_>, outbox: &mut Outbox) {
        let count = outbox.pieces.len();
        for number in 0..count {
            self.point(outbox, number);
        }
        let mut next = 0;
        let mut attempts = 0;
        while next < count {
            let Some(headers) = outbox.headers.get_mut(next..count) else { return };
            let error = match self.wire.take(socket, headers) {
                Ok(taken) => {
                    for piece in outbox.pieces.iter().skip(next).take(taken) {
                        self.report.sent(piece.datagrams as u64, piece.len as u64);
                        if piece.datagrams > 1 {
                            self.gso.taken();
                        }
                    }
                    next += taken;
                    attempts = 0;
                    continue;
                }
                Err(error) => error,
            };
            attempts += 1;
            let piece = outbox.pieces[next];
            match self.judge(socket, &error, &piece, attempts) {
                Verdict::Retry => continue,
                Verdict::WithoutSource => {
                    self.forget_source(outbox, next);
                    continue;
                }
                Verdict::OneByOne => {
                    let (sent, stale) = (self.report.sent, self.stale.len());
                    self.send_one_by_one(socket, outbox, next);
                    self.report.split += 1;
                    // The run is not at fault when its datagrams fail alike, or when its source was.
                    if self.report.sent > sent && self.stale.len() == stale {
                        self.gso.refused(&error);
                    }
                }
                Verdict::Drop => self.drop(&error, &piece),
            }
            next += 1;
            attempts = 0;
        }
    }

    /// Sends the datagrams of piece `number` as messages of their own, in its place in the arrays.
    fn send_one_by_one(&mut self, socket: BorrowedFd<'_>, outbox: &mut Outbox, number: usize) {
        let run = outbox.pieces[number];
        let size = self.batch.get(run.transmit).map_or(1, |transmit| transmit.segment_size.max(1));
        for offset in (run.offset..run.offset + run.len).step_by(size) {
            let piece = Piece { offset, len: size.min(run.offset + run.len - offset), datagrams: 1, ..run };
            outbox.pieces[number] = piece;
            self.point(outbox, number);
            let mut attempts = 0;
            loop {
                let Some(header) = outbox.headers.get_mut(number..=number) else { return };
                let Err(error) = self.wire.take(socket, header) else {
                    self.report.sent(1, piece.len as u64);
                    break;
                };
                attempts += 1;
                match self.judge(socket, &error, &piece, attempts) {
                    Verdict::Retry => {}
                    Verdict::WithoutSource => self.forget_source(outbox, number),
                    Verdict::OneByOne | Verdict::Drop => {
                        self.drop(&error, &piece);
                        break;
                    }
                }
            }
        }
    }

    fn judge(
        &mut self,
        socket: BorrowedFd<'_>,
        error: &io::Error,
        piece: &Piece,
        attempts: usize,
    ) -> Verdict {
        const ERRORS_OF_OTHERS: usize = 4;
        let run = piece.datagrams > 1;
        match error.raw_os_error() {
            Some(libc::EINTR) => Verdict::Retry,
            Some(libc::EAGAIN) if self.patience.wait(|left_ms| wait_writable(socket, left_ms)) => {
                Verdict::Retry
            }
            // A full queue of the device: the socket is writable, so there is nothing to poll for.
            Some(libc::ENOBUFS | libc::ENOMEM)
                if self.patience.wait(|_| std::thread::sleep(Duration::from_micros(200))) =>
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

    /// Drops the source of the transmit of piece `number`, also from the pieces behind it.
    fn forget_source(&mut self, outbox: &mut Outbox, number: usize) {
        let transmit = outbox.pieces[number].transmit;
        self.stale.push(transmit);
        self.report.stale_sources += 1;
        for later in number..outbox.pieces.len() {
            if outbox.pieces[later].transmit == transmit {
                self.point(outbox, later);
            }
        }
    }

    /// Points message `number` at its piece.
    fn point(&self, outbox: &mut Outbox, number: usize) {
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
        if let Some(hop_limit) = transmit.hop_limit {
            let hops = i32::from(hop_limit).to_ne_bytes();
            match self.family {
                Family::V4 => control.push(libc::IPPROTO_IP, libc::IP_TTL, &hops),
                Family::V6 => control.push(libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT, &hops),
            }
        }
        // The interface stays out of it: it would pin the way out, and a route that moved to another interface would
        // leave the packets to an ARP that nobody answers. Link-local remotes name their interface themselves.
        match self.source(piece.transmit) {
            Some(IpAddr::V4(ip)) => {
                // struct in_pktinfo: interface index, source, unused.
                let mut info = [0; 12];
                info[4..8].copy_from_slice(&ip.octets());
                control.push(libc::IPPROTO_IP, libc::IP_PKTINFO, &info);
            }
            Some(IpAddr::V6(ip)) => {
                // struct in6_pktinfo: source, interface index.
                let mut info = [0; 20];
                info[..16].copy_from_slice(&ip.octets());
                control.push(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info);
            }
            None => {}
        }
    }
}

/// Whether runs are sent in one call.
#[derive(Debug)]
pub(super) struct Gso {
    supported: bool,
    refusals: u32,
    pause: u32,
}

impl Gso {
    pub(super) fn new(supported: bool) -> Self {
        Self { supported, refusals: 0, pause: 0 }
    }

    /// The same support, nothing refused yet.
    pub(super) fn afresh(&self) -> Self {
        Self::new(self.supported)
    }

    pub(super) fn is_on(&self) -> bool {
        self.supported && self.pause == 0
    }

    pub(super) fn next_batch(&mut self) {
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

/// How long a batch may still wait; the clock starts with the first wait.
#[derive(Debug)]
pub(super) struct Patience(Option<Instant>);

impl Patience {
    pub(super) fn new() -> Self {
        Self(None)
    }

    /// Calls `wait` with the milliseconds that are left, at least one; false, without a call, when none are.
    fn wait(&mut self, wait: impl FnOnce(i32)) -> bool {
        let now = Instant::now();
        let left = self.0.get_or_insert(now + PATIENCE).saturating_duration_since(now);
        if left.is_zero() {
            return false;
        }
        wait(i32::try_from(left.as_millis()).unwrap_or(i32::MAX).max(1));
        true
    }
}

#[cfg(test)]
mod tests;
