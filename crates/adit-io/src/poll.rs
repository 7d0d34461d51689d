//! Sleeping until a descriptor is ready: a small epoll(7).

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use crate::sys::check;

const EVENTS: usize = 16;

/// A descriptor that is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ready {
    /// The token it was added with.
    pub token: u64,
    /// Whether it is in error or hung up (a deleted TUN device, say); reading tells why.
    pub failed: bool,
}

/// Waits for any of several descriptors to become readable. Level-triggered: what is not drained is reported again.
#[derive(Debug)]
pub struct Poller {
    epoll: OwnedFd,
    events: [libc::epoll_event; EVENTS],
}

impl Poller {
    /// A poller that waits for nothing yet.
    ///
    /// # Errors
    /// When the process has no descriptors left.
    pub fn new() -> io::Result<Self> {
        // SAFETY: plain call; the descriptor is ours alone.
        let epoll = unsafe { OwnedFd::from_raw_fd(check(libc::epoll_create1(libc::EPOLL_CLOEXEC))?) };
        Ok(Self { epoll, events: [libc::epoll_event { events: 0, u64: 0 }; EVENTS] })
    }

    /// Reports `fd` by `token` whenever it can be read. Closing the descriptor removes it.
    ///
    /// # Errors
    /// When the descriptor is already here, or is of a kind that cannot be polled.
    pub fn add(&self, fd: impl AsFd, token: u64) -> io::Result<()> {
        let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: token };
        self.control(libc::EPOLL_CTL_ADD, fd.as_fd(), &mut event)
    }

    /// Reports `fd` by `token` when it becomes readable or writable, each time once: whoever hears of it goes on until
    /// the descriptor would block. Closing the descriptor removes it.
    ///
    /// # Errors
    /// When the descriptor is already here, or is of a kind that cannot be polled.
    pub fn add_edges(&self, fd: impl AsFd, token: u64) -> io::Result<()> {
        let interest = libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP | libc::EPOLLET;
        let mut event = libc::epoll_event { events: interest as u32, u64: token };
        self.control(libc::EPOLL_CTL_ADD, fd.as_fd(), &mut event)
    }

    /// Stops reporting `fd`.
    ///
    /// # Errors
    /// When the descriptor is not here.
    pub fn remove(&self, fd: impl AsFd) -> io::Result<()> {
        let mut event = libc::epoll_event { events: 0, u64: 0 };
        self.control(libc::EPOLL_CTL_DEL, fd.as_fd(), &mut event)
    }

    /// Waits until something is ready, at most `timeout` (`None`: for ever). Empty when the time is over or a signal came.
    ///
    /// A timeout is rounded up to whole milliseconds, so that a timer is due when the wait ends.
    ///
    /// # Errors
    /// When the wait fails for another reason than a signal.
    pub fn wait(&mut self, timeout: Option<Duration>) -> io::Result<impl Iterator<Item = Ready> + use<'_>> {
        let timeout_ms = match timeout {
            None => -1,
            Some(timeout) => i32::try_from(timeout.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX),
        };
        // SAFETY: the pointer and length describe `events`.
        let ready = check(unsafe {
            libc::epoll_wait(self.epoll.as_raw_fd(), self.events.as_mut_ptr(), EVENTS as i32, timeout_ms)
        });
        let ready = match ready {
            Ok(ready) => ready as usize,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => return Err(error),
        };
        Ok(self.events.iter().take(ready).map(|event| Ready {
            token: event.u64,
            failed: event.events & (libc::EPOLLERR | libc::EPOLLHUP) as u32 != 0,
        }))
    }

    fn control(&self, operation: i32, fd: BorrowedFd<'_>, event: &mut libc::epoll_event) -> io::Result<()> {
        // SAFETY: both descriptors are open and `event` is valid for the call.
        check(unsafe { libc::epoll_ctl(self.epoll.as_raw_fd(), operation, fd.as_raw_fd(), event) }).map(drop)
    }
}

/// Wakes a poller from another thread. Clones wake the same poller; wakes before the next [`Waker::clear`] merge.
#[derive(Clone, Debug)]
pub struct Waker(Arc<File>);

impl Waker {
    /// A waker; add it to a [`Poller`].
    ///
    /// # Errors
    /// When the process has no descriptors left.
    pub fn new() -> io::Result<Self> {
        // SAFETY: plain call; the descriptor is ours alone.
        let fd =
            unsafe { OwnedFd::from_raw_fd(check(libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK))?) };
        Ok(Self(Arc::new(File::from(fd))))
    }

    /// Makes the poller return. Never blocks.
    pub fn wake(&self) {
        // It only fails when the counter is full, and then the poller is awake already.
        let _ = (&*self.0).write(&1u64.to_ne_bytes());
    }

    /// Lets the poller sleep again; returns whether somebody woke it.
    pub fn clear(&self) -> bool {
        (&*self.0).read(&mut [0; 8]).is_ok()
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_waker_wakes_the_poller_from_another_thread() {
        let mut poller = Poller::new().unwrap();
        let waker = Waker::new().unwrap();
        poller.add(&waker, 7).unwrap();
        assert_eq!(poller.wait(Some(Duration::ZERO)).unwrap().count(), 0);

        let clone = waker.clone();
        let thread = std::thread::spawn(move || clone.wake());
        let ready: Vec<_> = poller.wait(Some(Duration::from_secs(5))).unwrap().collect();
        thread.join().unwrap();
        assert_eq!(ready, [Ready { token: 7, failed: false }]);

        assert!(waker.clear());
        assert!(!waker.clear());
        assert_eq!(poller.wait(Some(Duration::ZERO)).unwrap().count(), 0);

        waker.wake();
        poller.remove(&waker).unwrap();
        assert_eq!(poller.wait(Some(Duration::ZERO)).unwrap().count(), 0);
    }

    #[test]
    fn a_timeout_is_rounded_up() {
        let mut poller = Poller::new().unwrap();
        let start = std::time::Instant::now();
        assert_eq!(poller.wait(Some(Duration::from_micros(300))).unwrap().count(), 0);
        assert!(start.elapsed() >= Duration::from_micros(300));
    }
}
