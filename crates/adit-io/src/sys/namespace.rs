//! Network namespaces: where sockets and devices are born.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use super::check;

/// A network namespace. Sockets made inside stay in it, also after the thread leaves.
#[derive(Debug)]
pub struct NetNamespace(File);

impl NetNamespace {
    /// The namespace of the calling thread.
    ///
    /// # Errors
    /// When `/proc` is not mounted.
    pub fn current() -> io::Result<Self> {
        File::open("/proc/thread-self/ns/net").map(Self)
    }

    /// What the kernel calls the namespace of the calling thread. Its number in `/proc` goes to the next namespace once
    /// it is gone; its cookie to none, until the machine starts again.
    ///
    /// # Errors
    /// Linux before 5.14, which tells none.
    pub fn cookie_here() -> io::Result<u64> {
        let socket = UnixDatagram::unbound()?;
        let mut cookie = 0u64;
        let mut len = size_of::<u64>() as libc::socklen_t;
        // SAFETY: the pointers describe `cookie` and `len`, which outlive the call; the kernel writes no more than `len`.
        check(unsafe {
            let into = (&raw mut cookie).cast();
            libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_NETNS_COOKIE, into, &mut len)
        })?;
        Ok(cookie)
    }

    /// A namespace by path, such as `/run/netns/NAME`.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn open(path: &Path) -> io::Result<Self> {
        File::open(path).map(Self)
    }

    /// Moves the calling thread into a new, empty namespace.
    ///
    /// # Errors
    /// `PermissionDenied` without `CAP_SYS_ADMIN`.
    pub fn unshare() -> io::Result<Self> {
        // SAFETY: takes no pointers; affects the calling thread only.
        check(unsafe { libc::unshare(libc::CLONE_NEWNET) })?;
        Self::current()
    }

    /// Moves the calling thread into this namespace.
    ///
    /// # Errors
    /// `PermissionDenied` without `CAP_SYS_ADMIN`.
    pub fn enter(&self) -> io::Result<()> {
        // SAFETY: a namespace descriptor we own; affects the calling thread only.
        check(unsafe { libc::setns(self.0.as_raw_fd(), libc::CLONE_NEWNET) }).map(drop)
    }
}
