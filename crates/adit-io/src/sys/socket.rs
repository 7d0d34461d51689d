//! Socket options, raw addresses and control messages (cmsg(3)).

use std::io;
use std::mem::size_of;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use super::check;

/// Sets an integer socket option.
pub(crate) fn set_option(fd: BorrowedFd<'_>, level: i32, name: i32, value: i32) -> io::Result<()> {
    // SAFETY: the pointer and length describe `value`, which outlives the call.
    check(unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of::<i32>() as libc::socklen_t,
        )
    })
    .map(drop)
}

/// Reads an integer socket option.
pub(crate) fn option(fd: BorrowedFd<'_>, level: i32, name: i32) -> io::Result<i32> {
    let mut value = 0i32;
    let mut len = size_of::<i32>() as libc::socklen_t;
    // SAFETY: the pointers describe `value` and `len`, which outlive the call.
    check(unsafe { libc::getsockopt(fd.as_raw_fd(), level, name, (&raw mut value).cast(), &mut len) })?;
    Ok(value)
}

/// How many bytes per second the other end of a TCP connection receives of late; 0 while it is not known.
pub(crate) fn delivery_rate(fd: BorrowedFd<'_>) -> io::Result<u64> {
    Ok(tcp_info(fd)?.tcpi_delivery_rate)
}

/// The shortest round trip of a TCP connection of late, once one was measured.
pub(crate) fn least_round_trip(fd: BorrowedFd<'_>) -> io::Result<Option<Duration>> {
    let micros = tcp_info(fd)?.tcpi_min_rtt;
    // All ones until then, and nothing from an older kernel.
    Ok((micros != 0 && micros != u32::MAX).then(|| Duration::from_micros(micros.into())))
}

/// The segments of a TCP connection since it began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Segments {
    /// With data, sent for the first time or again.
    pub(crate) sent: u32,
    /// Sent again, with data or without.
    pub(crate) again: u32,
    /// Sent again for nothing: the other end says that it had them (RFC 2883).
    pub(crate) came_twice: u32,
    /// Received with data.
    pub(crate) received: u32,
    /// Received before others that had been sent earlier.
    pub(crate) out_of_order: u32,
}

/// What a TCP connection has sent and received.
pub(crate) fn segments(fd: BorrowedFd<'_>) -> io::Result<Segments> {
    let info = tcp_info(fd)?;
    Ok(Segments {
        sent: info.tcpi_data_segs_out,
        again: info.tcpi_total_retrans,
        came_twice: info.tcpi_dsack_dups,
        received: info.tcpi_data_segs_in,
        out_of_order: info.tcpi_rcv_ooopack,
    })
}

/// What an older kernel does not write stays 0.
fn tcp_info(fd: BorrowedFd<'_>) -> io::Result<libc::tcp_info> {
    // SAFETY: the structure consists of integers, for which all zeros are a value.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut len = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the pointers describe `info` and `len`, which outlive the call; the kernel writes no more than `len`.
    check(unsafe {
        let into = (&raw mut info).cast();
        libc::getsockopt(fd.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, into, &mut len)
    })?;
    Ok(info)
}

/// An IPv4 or IPv6 socket address as the kernel reads and writes it.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) union RawAddress {
    family: libc::sa_family_t,
    v4: libc::sockaddr_in,
    v6: libc::sockaddr_in6,
}

impl RawAddress {
    /// Room for the kernel to write an address into.
    pub(crate) fn unset() -> Self {
        Self {
            v6: libc::sockaddr_in6 {
                sin6_family: libc::AF_UNSPEC as libc::sa_family_t,
                sin6_port: 0,
                sin6_flowinfo: 0,
                sin6_addr: libc::in6_addr { s6_addr: [0; 16] },
                sin6_scope_id: 0,
            },
        }
    }

    /// The address and the length of its kernel form in bytes.
    pub(crate) fn new(address: &SocketAddr) -> (Self, libc::socklen_t) {
        let mut raw = Self::unset();
        match address {
            SocketAddr::V4(v4) => {
                raw.v4 = libc::sockaddr_in {
                    sin_family: libc::AF_INET as libc::sa_family_t,
                    sin_port: v4.port().to_be(),
                    sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(v4.ip().octets()) },
                    sin_zero: [0; 8],
                };
                (raw, size_of::<libc::sockaddr_in>() as libc::socklen_t)
            }
            SocketAddr::V6(v6) => {
                raw.v6 = libc::sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as libc::sa_family_t,
                    sin6_port: v6.port().to_be(),
                    sin6_flowinfo: 0,
                    sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                    sin6_scope_id: v6.scope_id(),
                };
                (raw, size_of::<libc::sockaddr_in6>() as libc::socklen_t)
            }
        }
    }

    /// The address the kernel wrote; `None` for any other family.
    pub(crate) fn get(&self) -> Option<SocketAddr> {
        // SAFETY: every constructor initialises all 28 bytes, the kernel only overwrites them, and any bytes
        // are a valid value of each field. `family` is the first field of both structures.
        unsafe {
            match i32::from(self.family) {
                libc::AF_INET => {
                    let ip = Ipv4Addr::from(self.v4.sin_addr.s_addr.to_ne_bytes());
                    Some(SocketAddr::V4(SocketAddrV4::new(ip, u16::from_be(self.v4.sin_port))))
                }
                libc::AF_INET6 => {
                    let ip = Ipv6Addr::from(self.v6.sin6_addr.s6_addr);
                    let port = u16::from_be(self.v6.sin6_port);
                    Some(SocketAddr::V6(SocketAddrV6::new(ip, port, 0, self.v6.sin6_scope_id)))
                }
                _ => None,
            }
        }
    }

    pub(crate) const LEN: libc::socklen_t = size_of::<Self>() as libc::socklen_t;
}

const HEADER_LEN: usize = size_of::<libc::cmsghdr>();
const ALIGN: usize = size_of::<usize>();
const _: () = assert!(HEADER_LEN == size_of::<usize>() + 8 && HEADER_LEN.is_multiple_of(ALIGN));

/// A control message buffer, built for sending or filled by the kernel.
///
/// 128 bytes hold every message this crate sends or asks for: packet info (40), traffic class (24),
/// segment size (24) and drop counter (24).
#[derive(Clone, Copy)]
#[repr(C, align(8))]
pub(crate) struct Control {
    bytes: [u8; Self::CAPACITY],
    len: usize,
}

impl Control {
    pub(crate) const CAPACITY: usize = 128;

    pub(crate) const fn new() -> Self {
        Self { bytes: [0; Self::CAPACITY], len: 0 }
    }

    pub(crate) fn clear(&mut self) {
        self.len = 0;
    }

    /// Appends a message.
    ///
    /// # Panics
    /// When the buffer is full: the callers send a known set of messages.
    pub(crate) fn push(&mut self, level: i32, kind: i32, data: &[u8]) {
        let start = self.len;
        let end = start + HEADER_LEN + data.len().next_multiple_of(ALIGN);
        let message = &mut self.bytes[start..end];
        message.fill(0);
        message[..ALIGN].copy_from_slice(&(HEADER_LEN + data.len()).to_ne_bytes());
        message[ALIGN..ALIGN + 4].copy_from_slice(&level.to_ne_bytes());
        message[ALIGN + 4..HEADER_LEN].copy_from_slice(&kind.to_ne_bytes());
        message[HEADER_LEN..HEADER_LEN + data.len()].copy_from_slice(data);
        self.len = end;
    }

    /// The buffer and its used length, as a message header wants them.
    pub(crate) fn as_mut_ptr(&mut self) -> (*mut libc::c_void, usize) {
        if self.len == 0 { (std::ptr::null_mut(), 0) } else { (self.bytes.as_mut_ptr().cast(), self.len) }
    }

    /// The whole buffer, for the kernel to fill.
    pub(crate) fn space(&mut self) -> (*mut libc::c_void, usize) {
        (self.bytes.as_mut_ptr().cast(), Self::CAPACITY)
    }

    /// Notes how many bytes the kernel filled.
    pub(crate) fn set_len(&mut self, len: usize) {
        self.len = len.min(Self::CAPACITY);
    }

    /// Every message as level, type and data. A message that lies about its length ends the iteration.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (i32, i32, &[u8])> {
        let mut rest = self.bytes.get(..self.len).unwrap_or_default();
        std::iter::from_fn(move || {
            let len = usize::from_ne_bytes(*rest.first_chunk()?);
            let level = i32::from_ne_bytes(*rest.get(ALIGN..)?.first_chunk()?);
            let kind = i32::from_ne_bytes(*rest.get(ALIGN + 4..)?.first_chunk()?);
            let data = rest.get(HEADER_LEN..len)?;
            rest = rest.get(len.next_multiple_of(ALIGN)..).unwrap_or_default();
            Some((level, kind, data))
        })
    }
}

/// Sends messages on a non-blocking socket: how many the kernel took, at least one.
pub(crate) fn send_messages(fd: BorrowedFd<'_>, headers: &mut [libc::mmsghdr]) -> io::Result<usize> {
    // SAFETY: the caller wired every header to addresses, buffers and control messages that outlive the call;
    // `headers` is writable and its length is passed. The kernel only reads through the pointers.
    let sent = check(unsafe {
        libc::sendmmsg(
            fd.as_raw_fd(),
            headers.as_mut_ptr(),
            headers.len() as libc::c_uint,
            libc::MSG_NOSIGNAL as _,
        )
    })?;
    Ok(sent as usize)
}

/// Receives messages without blocking: how many headers the kernel filled.
pub(crate) fn receive_messages(fd: BorrowedFd<'_>, headers: &mut [libc::mmsghdr]) -> io::Result<usize> {
    // SAFETY: the caller wired every header to distinct, writable memory of the stated lengths that outlives the call.
    let received = check(unsafe {
        libc::recvmmsg(
            fd.as_raw_fd(),
            headers.as_mut_ptr(),
            headers.len() as libc::c_uint,
            libc::MSG_DONTWAIT as _,
            std::ptr::null_mut(),
        )
    })?;
    Ok(received as usize)
}

/// A message header that points nowhere.
pub(crate) fn empty_header() -> libc::mmsghdr {
    // SAFETY: null pointers and zero lengths are a valid mmsghdr; some targets have private padding fields.
    unsafe { std::mem::zeroed() }
}

/// Waits until a socket can be written, at most `timeout_ms`.
pub(crate) fn wait_writable(fd: BorrowedFd<'_>, timeout_ms: i32) {
    let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
    // SAFETY: one valid pollfd. A failed or interrupted wait only means that the caller tries again early.
    unsafe { libc::poll(&mut poll, 1, timeout_ms) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_the_round_trip_through_the_kernel_form() {
        for text in ["1.2.3.4:5678", "[2001:db8::1]:51820", "[fe80::1%7]:1"] {
            let address: SocketAddr = text.parse().unwrap();
            assert_eq!(RawAddress::new(&address).0.get(), Some(address));
        }
        assert_eq!(RawAddress::unset().get(), None);
    }

    #[test]
    fn control_messages_survive_the_round_trip() {
        let mut control = Control::new();
        control.push(1, 2, &[9; 2]);
        control.push(3, 4, &[8; 20]);
        let read: Vec<_> = control.iter().collect();
        assert_eq!(read, [(1, 2, &[9u8; 2][..]), (3, 4, &[8u8; 20][..])]);
    }

    #[test]
    fn lying_control_lengths_end_the_iteration() {
        for len in [0usize, 1, 15, 1000, usize::MAX, usize::MAX - 6] {
            let mut control = Control::new();
            control.push(1, 2, &[9; 4]);
            control.bytes[..8].copy_from_slice(&len.to_ne_bytes());
            assert_eq!(control.iter().count(), 0, "length {len}");
        }
    }
}
