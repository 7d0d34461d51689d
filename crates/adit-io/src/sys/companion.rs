//! A process beside ours, which outlives our `exec` and sees our end.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use super::check;
use super::process::{null, redirect};

/// Which side of [`start_companion`] this process is.
#[derive(Debug)]
pub enum Companion {
    /// The process that was called. The socket leads to the other.
    Caller(UnixStream),
    /// The new process.
    Beside(Beside),
}

/// What the new process knows of the one that was called.
#[derive(Debug)]
pub struct Beside {
    /// Leads to it.
    pub caller: UnixStream,
    life: OwnedFd,
}

impl Beside {
    /// Waits until the caller ended, also as the program that it became by `exec`.
    ///
    /// # Errors
    /// The system failed.
    pub fn wait_for_its_end(&self) -> io::Result<()> {
        loop {
            let mut poll = libc::pollfd { fd: self.life.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: one valid pollfd.
            match check(unsafe { libc::poll(&mut poll, 1, -1) }) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Starts a process that is no child of ours: whatever we become by `exec` has no child it does not know.
///
/// The new process has a session of its own, so the signals of our terminal do not reach it. Its stdin and stdout are
/// `/dev/null`, its stderr is ours, and every other descriptor is closed there: nobody waits for the end of a pipe that
/// only it holds open.
///
/// # Errors
/// When this process has more than one thread, or the system refuses (`pidfd_open` needs Linux 5.3).
pub fn start_companion() -> io::Result<Companion> {
    let threads = std::fs::read_dir("/proc/self/task")?.count();
    if threads != 1 {
        return Err(io::Error::other(format!("cannot fork: the process already runs {threads} threads")));
    }
    let (caller, beside) = UnixStream::pair()?;
    // SAFETY: takes integers only; the descriptor is new and ours.
    let life = unsafe {
        let fd = libc::syscall(libc::SYS_pidfd_open, libc::getpid(), 0);
        OwnedFd::from_raw_fd(check(fd as libc::c_int)?)
    };
    // SAFETY: the process has one thread, so the child is a full copy with no lock held by a lost thread.
    let child = check(unsafe { libc::fork() })?;
    if child != 0 {
        let mut status = 0;
        // SAFETY: waits for our own child, which exits right after its fork.
        while unsafe { libc::waitpid(child, &mut status, 0) } < 0 {
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
        return match status {
            0 => Ok(Companion::Caller(caller)),
            _ => Err(io::Error::other("cannot fork a second time")),
        };
    }
    drop(caller);
    // SAFETY: plain calls in a single-threaded child.
    let grandchild = unsafe {
        libc::setsid();
        libc::fork()
    };
    if grandchild != 0 {
        // SAFETY: ends the child without running destructors and exit handlers that belong to the caller.
        unsafe { libc::_exit(i32::from(grandchild < 0)) };
    }
    redirect(&null()?, &[libc::STDIN_FILENO, libc::STDOUT_FILENO])?;
    close_others(&[beside.as_raw_fd(), life.as_raw_fd()])?;
    Ok(Companion::Beside(Beside { caller: beside, life }))
}

/// Closes every descriptor but the standard streams and `keep`.
fn close_others(keep: &[i32]) -> io::Result<()> {
    let open: Vec<i32> = std::fs::read_dir("/proc/self/fd")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|fd| *fd > libc::STDERR_FILENO && !keep.contains(fd))
        .collect();
    for fd in open {
        // SAFETY: nothing in this process, which begins here, uses a descriptor but those kept; the one of the
        // directory that was read is closed already and gives a harmless EBADF.
        unsafe { libc::close(fd) };
    }
    Ok(())
}
