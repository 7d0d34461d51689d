//! Being told when a network interface changes (rtnetlink(7)).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

use super::check;

/// What happened to the interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkEvent {
    /// It was created, renamed, brought up or down, or its MTU changed: its state now.
    Changed {
        /// The name.
        name: String,
        /// The MTU in bytes.
        mtu_bytes: u32,
        /// Whether it is administratively up.
        up: bool,
    },
    /// It moved to another network namespace and lives on there.
    Moved,
    /// It was deleted.
    Deleted,
    /// The kernel dropped events: ask for the state anew.
    Missed,
}

/// Reports changes of one interface of the namespace the monitor was made in.
///
/// Pending events are bounded by the socket's buffer; beyond it, one [`LinkEvent::Missed`] stands for what was lost.
#[derive(Debug)]
pub struct LinkMonitor {
    socket: OwnedFd,
    index: u32,
    buffer: Box<[u8]>,
    filled: usize,
    position: usize,
}

impl LinkMonitor {
    /// Watches the interface with this index.
    ///
    /// # Errors
    /// When the netlink socket cannot be made.
    pub fn new(index: u32) -> io::Result<Self> {
        // SAFETY: plain socket(2); the descriptor is ours alone.
        let socket = unsafe {
            OwnedFd::from_raw_fd(check(libc::socket(
                libc::AF_NETLINK,
                libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
                libc::NETLINK_ROUTE,
            ))?)
        };
        // SAFETY: all zeros is a valid sockaddr_nl, which has private padding.
        let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
        address.nl_family = libc::AF_NETLINK as libc::sa_family_t;
        address.nl_groups = libc::RTMGRP_LINK as u32;
        // SAFETY: the pointer and length describe `address`.
        check(unsafe {
            libc::bind(
                socket.as_raw_fd(),
                (&raw const address).cast(),
                size_of_val(&address) as libc::socklen_t,
            )
        })?;
        Ok(Self { socket, index, buffer: vec![0; 32 * 1024].into(), filled: 0, position: 0 })
    }

    /// The next event, without waiting.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn try_next(&mut self) -> io::Result<Option<LinkEvent>> {
        loop {
            while let Some((kind, body)) =
                next_message(self.buffer.get(..self.filled).unwrap_or_default(), &mut self.position)
            {
                if let Some(event) = link_event(kind, body, self.index) {
                    return Ok(Some(event));
                }
            }
            // SAFETY: the pointer and length describe `buffer`.
            let received = unsafe {
                libc::recv(
                    self.socket.as_raw_fd(),
                    self.buffer.as_mut_ptr().cast(),
                    self.buffer.len(),
                    libc::MSG_DONTWAIT,
                )
            };
            self.filled = usize::try_from(received).unwrap_or(0);
            self.position = 0;
            if received < 0 {
                let error = io::Error::last_os_error();
                return match error.raw_os_error() {
                    Some(libc::EAGAIN) => Ok(None),
                    Some(libc::EINTR) => continue,
                    Some(libc::ENOBUFS) => Ok(Some(LinkEvent::Missed)),
                    _ => Err(error),
                };
            }
        }
    }

    /// The next event, waiting at most `timeout` (`None`: for ever). `Ok(None)` when the time is over.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn wait(&mut self, timeout: Option<Duration>) -> io::Result<Option<LinkEvent>> {
        let deadline = timeout.map(|t| std::time::Instant::now() + t);
        loop {
            if let Some(event) = self.try_next()? {
                return Ok(Some(event));
            }
            let left_ms = match deadline.map(|d| d.saturating_duration_since(std::time::Instant::now())) {
                None => -1,
                Some(Duration::ZERO) => return Ok(None),
                Some(left) => i32::try_from(left.as_millis() + 1).unwrap_or(i32::MAX),
            };
            let mut poll = libc::pollfd { fd: self.socket.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: one valid pollfd; an interrupted wait goes round the loop.
            unsafe { libc::poll(&mut poll, 1, left_ms) };
        }
    }
}

impl AsFd for LinkMonitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for LinkMonitor {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.socket.as_raw_fd()
    }
}

/// The netlink message at `position`: its type and body. Lying lengths end the buffer.
fn next_message<'a>(buffer: &'a [u8], position: &mut usize) -> Option<(u16, &'a [u8])> {
    const HEADER_LEN: usize = 16;
    let rest = buffer.get(*position..)?;
    let len = u32::from_ne_bytes(*rest.first_chunk()?) as usize;
    let kind = u16::from_ne_bytes(*rest.get(4..)?.first_chunk()?);
    let body = rest.get(HEADER_LEN..len)?;
    *position += len.next_multiple_of(4);
    Some((kind, body))
}

fn link_event(kind: u16, body: &[u8], index: u32) -> Option<LinkEvent> {
    // struct ifinfomsg: family, pad, type (2), index (4), flags (4), change (4)
    const INFO_LEN: usize = 16;
    const IFLA_NEW_IFINDEX: u16 = 49;
    if u32::from_ne_bytes(*body.get(4..)?.first_chunk()?) != index {
        return None;
    }
    let up = u32::from_ne_bytes(*body.get(8..)?.first_chunk()?) & libc::IFF_UP as u32 != 0;
    let mut attributes = Attributes(body.get(INFO_LEN..)?);
    match kind {
        libc::RTM_DELLINK => {
            let moved = attributes.any(|(kind, _)| kind == IFLA_NEW_IFINDEX);
            Some(if moved { LinkEvent::Moved } else { LinkEvent::Deleted })
        }
        libc::RTM_NEWLINK => {
            let (mut name, mut mtu_bytes) = (String::new(), 0);
            for (kind, data) in attributes {
                match (kind, data.first_chunk()) {
                    (libc::IFLA_IFNAME, _) => {
                        let text = data.split(|&byte| byte == 0).next().unwrap_or_default();
                        name = String::from_utf8_lossy(text).into_owned();
                    }
                    (libc::IFLA_MTU, Some(bytes)) => mtu_bytes = u32::from_ne_bytes(*bytes),
                    _ => {}
                }
            }
            Some(LinkEvent::Changed { name, mtu_bytes, up })
        }
        _ => None,
    }
}

struct Attributes<'a>(&'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let len = usize::from(u16::from_ne_bytes(*self.0.first_chunk()?));
        let kind = u16::from_ne_bytes(*self.0.get(2..)?.first_chunk()?);
        let data = self.0.get(4..len)?;
        self.0 = self.0.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind & 0x3fff, data))
    }
}
