//! Life as a service: in the background or not, one instance at a time, told to stop by signals.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use adit_io::sys::{Daemonized, Ready};
use anyhow::Context;
use crossbeam_channel::{Receiver, bounded};

use crate::control;
use crate::home::Home;

/// Which process this is after [`start`].
#[derive(Debug)]
pub enum Start {
    /// The one that was called: the daemon is ready, or has said on stderr why it is not.
    Launched(ExitCode),
    /// The one that does the work, and tells when it is ready.
    Run(Readiness),
}

/// Continues in this process with `foreground`, else in a daemon. To be called before any thread is
/// started, and after every relative path was read: a daemon lives in `/`.
///
/// # Errors
/// The system refused.
pub fn start(foreground: bool) -> anyhow::Result<Start> {
    if foreground {
        return Ok(Start::Run(Readiness { launcher: None }));
    }
    match adit_io::sys::daemonize().context("cannot go into the background; try with --foreground")? {
        Daemonized::Launcher { started: true } => Ok(Start::Launched(ExitCode::SUCCESS)),
        Daemonized::Launcher { started: false } => Ok(Start::Launched(ExitCode::FAILURE)),
        Daemonized::Daemon(ready) => Ok(Start::Run(Readiness { launcher: Some(ready) })),
    }
}

/// Tells whoever started this process that it is up. Dropped instead, it tells that it failed; what is
/// written to stderr until then still reaches the user.
#[derive(Debug)]
pub struct Readiness {
    launcher: Option<Ready>,
}

impl Readiness {
    /// Whether somebody waits in a terminal until it is up.
    pub fn is_awaited(&self) -> bool {
        self.launcher.is_some()
    }

    /// Something the user should see although the service goes on.
    pub fn warn(&self, text: &str) {
        tracing::warn!("{text}");
        if self.launcher.is_some() {
            eprintln!("warning: {text}");
        }
    }

    /// Everything is in effect: the launcher may go, and so may a service manager's wait.
    ///
    /// # Errors
    /// The terminal could not be left.
    pub fn ready(self) -> anyhow::Result<()> {
        notify_service_manager("READY=1");
        match self.launcher {
            Some(launcher) => launcher.ready(false).context("cannot leave the terminal"),
            None => Ok(()),
        }
    }
}

/// Whether a signal has stopped a process, so that it does nothing until another lets it go on.
pub fn stands_still(pid: u32) -> bool {
    let state = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    state.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('T'))
}

/// One line of the sd_notify protocol, when a service manager listens.
pub fn notify_service_manager(state: &str) {
    let Some(address) = std::env::var_os("NOTIFY_SOCKET") else { return };
    if let Err(error) = UnixDatagram::unbound().and_then(|socket| send_notice(&socket, &address, state)) {
        tracing::debug!(%error, "the service manager could not be told {state}");
    }
}

/// Tells the service manager again and again that we are well, when it wants to know (`sd_watchdog_enabled(3)`).
#[derive(Debug)]
pub struct Watchdog {
    every: Option<Duration>,
    due: Instant,
}

impl Watchdog {
    /// As the service manager asked for in our environment.
    pub fn from_environment() -> Self {
        let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
        let is_for_us = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let limit = number("WATCHDOG_USEC").filter(|usec| *usec > 0 && is_for_us).map(Duration::from_micros);
        // A third of the limit, so that a pause of the machine is no reason to be killed.
        Self { every: limit.map(|limit| limit / 3), due: Instant::now() }
    }

    /// How long to wait at most before the next [`pat`](Self::pat).
    pub fn patience(&self, otherwise: Duration) -> Duration {
        self.every.map_or(otherwise, |every| every.min(otherwise))
    }

    /// Tells that we are well, if it is time and `is_well` says so. A check that hangs tells by its silence.
    pub fn pat(&mut self, is_well: impl FnOnce() -> bool) {
        let Some(every) = self.every.filter(|_| Instant::now() >= self.due) else { return };
        if is_well() {
            notify_service_manager("WATCHDOG=1");
            self.due = Instant::now() + every / 2;
        }
    }
}

fn send_notice(socket: &UnixDatagram, address: &std::ffi::OsStr, state: &str) -> io::Result<()> {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::ffi::OsStrExt;
    let address = match address.as_bytes() {
        [b'@', name @ ..] => std::os::unix::net::SocketAddr::from_abstract_name(name)?,
        path => std::os::unix::net::SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(path))?,
    };
    socket.send_to_addr(state.as_bytes(), &address).map(drop)
}

/// A signal that a service acts on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM or SIGINT: undo everything and end.
    Stop,
    /// SIGHUP: read the configuration again.
    Reload,
}

/// From now on signals arrive here instead of ending the process.
///
/// # Errors
/// The system refused the handlers.
pub fn signals() -> anyhow::Result<Receiver<Signal>> {
    use tokio::signal::unix::{SignalKind, signal};
    let (sender, receiver) = bounded(16);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let (mut terminate, mut interrupt, mut hangup) = {
        let _inside = runtime.enter();
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?, signal(SignalKind::hangup())?)
    };
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        runtime.block_on(async {
            loop {
                let signal = tokio::select! {
                    _ = terminate.recv() => Signal::Stop,
                    _ = interrupt.recv() => Signal::Stop,
                    _ = hangup.recv() => {
                        crate::log::reopen();
                        Signal::Reload
                    }
                };
                // A full queue means that sixteen signals wait already: one more says nothing new.
                let _ = sender.try_send(signal);
            }
        });
    })?;
    Ok(receiver)
}

/// As many descriptors as this process may have from now on. The usual limit, 1,024, is for programs that use `select`.
pub fn raise_descriptor_limit() -> u64 {
    adit_io::sys::raise_descriptor_limit().unwrap_or_else(|error| {
        tracing::warn!("the limit of open files stays as it is: {error}");
        USUAL_DESCRIPTORS
    })
}

const USUAL_DESCRIPTORS: u64 = 1_024;

/// Keeps keys out of core dumps and away from debuggers of the same user.
pub fn forbid_core_dumps() {
    if let Err(error) = adit_io::sys::harden() {
        tracing::warn!(%error, "core dumps could not be turned off");
    }
}

/// The process id of a running instance in a locked file: two of them refuse.
#[derive(Debug)]
pub struct PidFile {
    path: PathBuf,
    file: File,
}

/// Why there is no [`PidFile`].
#[derive(Debug, thiserror::Error)]
pub enum PidFileError {
    /// Another process holds it.
    #[error("already running (process {pid}); stop it first with `{end}`, or choose another --home")]
    Running {
        /// What the other process wrote; empty when it has not yet.
        pid: String,
        /// The command that ends it.
        end: String,
    },
    /// The system refused.
    #[error("cannot lock {}: {source}", path.display())]
    System {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl PidFile {
    /// Creates and locks the file of an instance. The lock ends with the process, however it ends.
    ///
    /// # Errors
    /// [`PidFileError`].
    pub fn lock_of(home: &Home, interface: &str) -> Result<Self, PidFileError> {
        let end = format!("adit down {interface}{}", home.flag());
        Self::lock(&control::pid_path(home, interface), &end)
    }

    fn lock(path: &Path, end: &str) -> Result<Self, PidFileError> {
        let system = |source| PidFileError::System { path: path.to_owned(), source };
        loop {
            let mut file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(path)
                .map_err(system)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    let mut pid = String::new();
                    let _ = file.read_to_string(&mut pid);
                    return Err(PidFileError::Running { pid: pid.trim().to_owned(), end: end.to_owned() });
                }
                Err(TryLockError::Error(error)) => return Err(system(error)),
            }
            // The file may have been removed between opening and locking; a lock on it protects nothing.
            let ours = file.metadata().map_err(system)?.ino();
            if fs::metadata(path).is_ok_and(|there| there.ino() == ours) {
                file.set_len(0).map_err(system)?;
                writeln!(file, "{}", std::process::id()).map_err(system)?;
                return Ok(Self { path: path.to_owned(), file });
            }
        }
    }

    /// The process that holds the lock of `path` now, if one does.
    pub fn holder(path: &Path) -> Option<u32> {
        let mut file = OpenOptions::new().read(true).write(true).open(path).ok()?;
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                file.read_to_string(&mut pid).ok()?;
                pid.trim().parse().ok()
            }
            _ => None,
        }
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
        let _ = self.file.unlock();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_instances_refuse_and_the_second_learns_who_runs() {
        let directory = tempfile::tempdir().unwrap();
        let home = Home::new(Some(directory.path())).unwrap();
        home.create().unwrap();
        let path = control::pid_path(&home, "x");
        let first = PidFile::lock_of(&home, "x").unwrap();
        let refused = PidFile::lock_of(&home, "x").unwrap_err();
        let words = [format!("(process {})", std::process::id()), format!("`adit down x{}`", home.flag())];
        for words in words {
            assert!(refused.to_string().contains(&words), "{words}: {refused}");
        }
        assert_eq!(PidFile::holder(&path), Some(std::process::id()));
        drop(first);
        assert!(!path.exists());
        assert_eq!(PidFile::holder(&path), None);
        PidFile::lock_of(&home, "x").unwrap();
    }

    #[test]
    fn a_pid_file_of_a_dead_process_is_no_obstacle() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("x.pid");
        fs::write(&path, "1\n").unwrap();
        assert_eq!(PidFile::holder(&path), None);
        let _lock = PidFile::lock(&path, "adit down x").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{}\n", std::process::id()));
    }

    #[test]
    fn a_service_manager_hears_the_notice() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        send_notice(&UnixDatagram::unbound().unwrap(), path.as_os_str(), "READY=1").unwrap();
        let mut buffer = [0; 32];
        let count = manager.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..count], b"READY=1");
    }
}
