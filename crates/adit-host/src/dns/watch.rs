use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};

use super::RESOLV_CONF;
use crate::error::HostError;
use crate::monitor::{self, HostEvent};

/// Whoever writes the file anew often does so in several steps.
const SETTLE: Duration = Duration::from_millis(50);
/// Two programs that each want the file are not to write it in turns as fast as they can.
const SETTLE_MAX: Duration = Duration::from_secs(10);
/// After so long another change is no answer to the one before.
const QUIET: Duration = Duration::from_secs(20);

/// Watches `/etc/resolv.conf` from a thread of its own, until `tell` returns `false`. Our own changes are told as well.
pub fn watch(tell: impl Fn(HostEvent) -> bool + Send + 'static) -> Result<(), HostError> {
    let watched = Watched::open(Path::new(RESOLV_CONF));
    let watched = watched.map_err(|error| HostError::file("watch", Path::new(RESOLV_CONF), error))?;
    monitor::start("watch-resolver", move || watched.follow(&tell))
}

struct Watched {
    file: &'static Path,
    inotify: OwnedFd,
}

impl Watched {
    fn open(file: &'static Path) -> io::Result<Watched> {
        let watched = Watched { file, inotify: inotify::init(CreateFlags::CLOEXEC)? };
        // A program that still has the file open has not written all of it.
        let done = WatchFlags::CLOSE_WRITE | WatchFlags::MOVED_TO | WatchFlags::CREATE | WatchFlags::DELETE;
        inotify::add_watch(&watched.inotify, file.parent().unwrap_or(file), done)?;
        watched.watch_file();
        Ok(watched)
    }

    /// What is mounted on the file is in another directory. Watching the same twice is watching it once.
    fn watch_file(&self) {
        let _ = inotify::add_watch(&self.inotify, self.file, WatchFlags::CLOSE_WRITE);
    }

    fn follow(&self, tell: &impl Fn(HostEvent) -> bool) {
        let mut settle = SETTLE;
        let mut told: Option<Instant> = None;
        loop {
            let since = match self.wait() {
                Ok(since) => since,
                Err(error) => {
                    tracing::error!("{} is no longer watched: {error}", self.file.display());
                    return;
                }
            };
            settle = match told {
                Some(before) if before.elapsed() < QUIET => (settle * 2).min(SETTLE_MAX),
                _ => SETTLE,
            };
            thread::sleep(settle);
            self.watch_file();
            if !tell(HostEvent::Resolver { since }) {
                return;
            }
            told = Some(Instant::now());
        }
    }

    /// Waits until something happened to the file.
    fn wait(&self) -> io::Result<Instant> {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut events = inotify::Reader::new(&self.inotify, &mut buffer);
        let name = self.file.file_name();
        loop {
            let event = match events.next() {
                Ok(event) => event,
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            let told = event.file_name().map(|name| name.to_bytes());
            let is_in_directory =
                told.is_some_and(|told| name.is_some_and(|it| it.as_encoded_bytes() == told));
            let is_file = told.is_none() && event.events().contains(ReadFlags::CLOSE_WRITE);
            // A file that was only created is written next, and then told as written; a symlink is complete.
            let is_begun = event.events().contains(ReadFlags::CREATE) && !self.file.is_symlink();
            if is_file || is_in_directory && !is_begun {
                return Ok(Instant::now());
            }
        }
    }
}
