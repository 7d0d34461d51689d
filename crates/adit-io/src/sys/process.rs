//! What the program does to its own process.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::check;

/// Which side of [`daemonize`] this process is.
#[derive(Debug)]
pub enum Daemonized {
    /// The process the user called; the daemon said whether it `started`.
    Launcher {
        /// Whether the daemon called [`Ready::ready`].
        started: bool,
    },
    /// The daemon: a session of its own, stdin and stdout on `/dev/null`, stderr still the user's.
    Daemon(Ready),
}

/// How the daemon tells its launcher that it is up. Dropping it (or exiting) says that it failed.
#[derive(Debug)]
pub struct Ready {
    pipe: File,
}

impl Ready {
    /// Lets the launcher return success, and leaves the terminal: stderr becomes `/dev/null` unless `keep_stderr`.
    ///
    /// # Errors
    /// When `/dev/null` cannot be opened.
    pub fn ready(mut self, keep_stderr: bool) -> io::Result<()> {
        if !keep_stderr {
            redirect(&null()?, &[libc::STDERR_FILENO])?;
        }
        match self.pipe.write_all(&[1]) {
            // The launcher was killed: nobody is left to tell.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            result => result,
        }
    }
}

/// Turns this process into a daemon: two forks, a new session, `/` as directory.
///
/// The launcher waits for [`Ready`], so errors until then still reach the user's terminal.
///
/// # Errors
/// When the process already has more than one thread (only the calling one would survive the fork), or a call fails.
pub fn daemonize() -> io::Result<Daemonized> {
    let threads = std::fs::read_dir("/proc/self/task")?.count();
    if threads != 1 {
        return Err(io::Error::other(format!(
            "cannot become a daemon: the process already runs {threads} threads; daemonize first"
        )));
    }
    let (reader, writer) = pipe()?;
    // SAFETY: the process has one thread, so the child is a full copy with no lock held by a lost thread.
    let child = check(unsafe { libc::fork() })?;
    if child != 0 {
        drop(writer);
        let mut status = 0;
        // SAFETY: waits for our own child, which exits right after its fork.
        unsafe { libc::waitpid(child, &mut status, 0) };
        let mut answer = Vec::with_capacity(1);
        File::from(reader).read_to_end(&mut answer)?;
        return Ok(Daemonized::Launcher { started: answer == [1] });
    }
    drop(reader);
    // SAFETY: plain calls in a single-threaded child.
    check(unsafe { libc::setsid() })?;
    // SAFETY: as above.
    let daemon = unsafe { libc::fork() };
    if daemon != 0 {
        // SAFETY: ends the session leader without running destructors and exit handlers that belong to the launcher.
        unsafe { libc::_exit(i32::from(daemon < 0)) };
    }
    std::env::set_current_dir("/")?;
    redirect(&null()?, &[libc::STDIN_FILENO, libc::STDOUT_FILENO])?;
    Ok(Daemonized::Daemon(Ready { pipe: File::from(writer) }))
}

/// Keeps secrets out of core dumps and away from other processes of the same user (`PR_SET_DUMPABLE`, `RLIMIT_CORE`).
///
/// # Errors
/// When the kernel refuses either.
pub fn harden() -> io::Result<()> {
    // SAFETY: no pointers are passed to prctl, and a valid limit to setrlimit.
    unsafe {
        check(libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0))?;
        let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        check(libc::setrlimit(libc::RLIMIT_CORE, &none))?;
    }
    Ok(())
}

/// The effective user id; 0 is root.
pub fn effective_user() -> u32 {
    // SAFETY: geteuid takes nothing and cannot fail.
    unsafe { libc::geteuid() }
}

/// Lets a process stand still, or go on.
///
/// # Errors
/// It is gone, or it is not ours to stop.
pub fn freeze(pid: u32, still: bool) -> io::Result<()> {
    let signal = if still { libc::SIGSTOP } else { libc::SIGCONT };
    let pid = i32::try_from(pid).ok().filter(|&pid| pid > 0).ok_or(io::ErrorKind::InvalidInput)?;
    // SAFETY: kill(2) takes plain numbers; a positive one names a single process.
    super::check(unsafe { libc::kill(pid, signal) }).map(drop)
}

/// Kills every process of the group that `leader` began.
///
/// # Errors
/// There is none, or it is not ours to kill.
pub fn end_group(leader: u32) -> io::Result<()> {
    let leader = i32::try_from(leader).ok().filter(|&pid| pid > 1).ok_or(io::ErrorKind::InvalidInput)?;
    // SAFETY: kill(2) takes plain numbers; one below -1 names a single group.
    check(unsafe { libc::kill(-leader, libc::SIGKILL) }).map(drop)
}

/// Whether a process with this id exists (it may belong to another user).
pub fn process_exists(pid: u32) -> bool {
    let Ok(pid @ 1..) = i32::try_from(pid) else { return false };
    // SAFETY: signal 0 only checks.
    let result = check(unsafe { libc::kill(pid, 0) });
    result.map_or_else(|error| error.raw_os_error() == Some(libc::EPERM), |_| true)
}

fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [-1; 2];
    // SAFETY: room for two descriptors; on success both are ours alone.
    unsafe {
        check(libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC))?;
        Ok((OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])))
    }
}

pub(super) fn null() -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open("/dev/null")
}

pub(super) fn redirect(to: &File, fds: &[i32]) -> io::Result<()> {
    for &fd in fds {
        // SAFETY: replaces a standard stream by a descriptor that we own.
        check(unsafe { libc::dup2(to.as_raw_fd(), fd) })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_threads_cannot_become_a_daemon() {
        let error = daemonize().expect_err("the test harness runs threads");
        assert!(error.to_string().contains("threads"), "{error}");
    }

    #[test]
    fn only_running_processes_exist() {
        assert!(process_exists(std::process::id()));
        assert!(process_exists(1));
        assert!(!process_exists(0), "0 would ask about our own process group");
        assert!(!process_exists(u32::MAX));
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = child.id();
        child.wait().unwrap();
        assert!(!process_exists(pid));
    }
}
