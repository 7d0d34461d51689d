//! The time by which access ends: the clock of the system, but never before the latest time that a gateway saw.
//!
//! ```text
//!   gateway, every few seconds ─► clock.json: the latest time, and what the clock since boot said then
//!   any verb ─► now() = the later of the system's time and that time grown by what has passed since
//! ```
//!
//! A clock that is set back would open again what has expired. A clock that jumps ahead is believed at once, but
//! written down only when it has stood for ten minutes: one that was wrong at boot leaves nothing behind.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::home::Home;
use crate::private_file;

/// By how much the system's clock is behind the latest time seen. One writer: [`heed`] at the start, then [`WallClock`].
static BEHIND_SECS: AtomicU64 = AtomicU64::new(0);

/// More than this at once is a jump.
const JUMP_SECS: u64 = 60;
const STANDS_SECS: u64 = 600;
const SAVED_EVERY_SECS: u64 = 30;
const SCHEMA: u32 = 1;

/// A gateway's memory of the time.
#[derive(Debug)]
pub struct WallClock {
    path: PathBuf,
    watch: Watch,
    saved: Option<Seen>,
    has_warned: bool,
}

/// A time, and the time since boot when it was that.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Seen {
    schema: u32,
    unix_secs: u64,
    boot_id: String,
    boot_secs: u64,
}

/// What the clocks say together.
#[derive(Clone, Debug, Default)]
struct Watch {
    latest: Option<Seen>,
    /// Since when, by the time since boot, the clock is ahead of what was expected.
    ahead_since: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Reading {
    behind_secs: u64,
    /// The time that a jump ahead has not moved yet.
    settled_unix_secs: u64,
}

/// Seconds since 1970, by which access is decided.
pub fn now() -> u64 {
    system().as_secs().saturating_add(BEHIND_SECS.load(Relaxed))
}

/// The system's time, moved as [`now`] is.
pub fn now_exact() -> Duration {
    system().saturating_add(Duration::from_secs(BEHIND_SECS.load(Relaxed)))
}

/// Takes into account what a gateway of `home` has seen; for verbs that do one thing and end.
pub fn heed(home: &Home) {
    let watch = Watch { latest: load(&path_of(home)), ahead_since: None };
    BEHIND_SECS.store(watch.behind_secs(system().as_secs(), &boot_id(), boot_secs()), Relaxed);
}

impl WallClock {
    /// The memory of `home`.
    pub fn open(home: &Home) -> Self {
        let path = path_of(home);
        let latest = load(&path);
        Self {
            path,
            watch: Watch { latest: latest.clone(), ahead_since: None },
            saved: latest,
            has_warned: false,
        }
    }

    /// Looks at the clocks, and writes down how late it is; the time that months are counted by.
    pub fn look(&mut self) -> u64 {
        let settled_unix_secs = self.read();
        self.save();
        settled_unix_secs
    }

    /// As [`look`](Self::look), for a gateway that may not start and then has to leave nothing behind.
    pub fn read(&mut self) -> u64 {
        let reading = self.watch.look(system().as_secs(), &boot_id(), boot_secs());
        BEHIND_SECS.store(reading.behind_secs, Relaxed);
        if reading.behind_secs > JUMP_SECS && !self.has_warned {
            tracing::warn!(
                "the clock of this machine was set back by {} s; access ends by the latest time seen all the same. If \
                 the clock was wrong before and is right now, stop the gateway, remove {} and start it again",
                reading.behind_secs,
                self.path.display()
            );
        }
        self.has_warned = reading.behind_secs > JUMP_SECS;
        reading.settled_unix_secs
    }

    fn save(&mut self) {
        let secs = |seen: &Option<Seen>| seen.as_ref().map_or(0, |seen| seen.unix_secs);
        let Some(latest) = &self.watch.latest else { return };
        if secs(&self.watch.latest) < secs(&self.saved).saturating_add(SAVED_EVERY_SECS) {
            return;
        }
        let written = serde_json::to_vec(latest).map_err(anyhow::Error::from);
        match written.and_then(|bytes| private_file::write(&self.path, &bytes)) {
            Ok(()) => self.saved = Some(latest.clone()),
            Err(error) => tracing::debug!("the time could not be written down: {error:#}"),
        }
    }
}

impl Watch {
    /// How late it is at least.
    fn expected(&self, boot_id: &str, boot_secs: u64) -> Option<u64> {
        let seen = self.latest.as_ref()?;
        let passed = if seen.boot_id == boot_id { boot_secs.saturating_sub(seen.boot_secs) } else { 0 };
        Some(seen.unix_secs.saturating_add(passed))
    }

    /// By how much the system's clock is behind; one second is the rounding of the two clocks, which every reader has
    /// to leave out, or a verb sees an end that the gateway does not see yet.
    fn behind_secs(&self, system: u64, boot_id: &str, boot_secs: u64) -> u64 {
        let behind = self.expected(boot_id, boot_secs).unwrap_or(0).saturating_sub(system);
        if behind > 1 { behind } else { 0 }
    }

    fn look(&mut self, system: u64, boot_id: &str, boot_secs: u64) -> Reading {
        let behind_secs = self.behind_secs(system, boot_id, boot_secs);
        let expected = self.expected(boot_id, boot_secs).unwrap_or(system);
        let is_ahead = system > expected.saturating_add(JUMP_SECS);
        if !is_ahead {
            self.ahead_since = None;
        }
        let since = is_ahead.then(|| *self.ahead_since.get_or_insert(boot_secs));
        let stands = since.is_none_or(|since| boot_secs.saturating_sub(since) >= STANDS_SECS);
        if stands {
            self.ahead_since = None;
            self.latest = Some(Seen {
                schema: SCHEMA,
                // A second less is the clocks' own rounding.
                unix_secs: system.max(expected.saturating_sub(1)),
                boot_id: boot_id.to_owned(),
                boot_secs,
            });
        }
        Reading { behind_secs, settled_unix_secs: if stands { system.max(expected) } else { expected } }
    }
}

fn path_of(home: &Home) -> PathBuf {
    home.state_dir.join("clock.json")
}

/// One that cannot be read is as good as none: the gateway writes it anew.
fn load(path: &std::path::Path) -> Option<Seen> {
    let bytes = std::fs::read(path).ok()?;
    serde_json::from_slice(&bytes).ok().filter(|seen: &Seen| seen.schema == SCHEMA)
}

fn system() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn boot_secs() -> u64 {
    Duration::from_nanos(adit_io::sys::boottime_nanos()).as_secs()
}

fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 86_400;

    fn seen(watch: &Watch) -> Option<u64> {
        watch.latest.as_ref().map(|seen| seen.unix_secs)
    }

    /// A clock that has stood at `unix` for long.
    fn settled(unix: u64) -> Watch {
        let mut watch = Watch::default();
        watch.look(unix - STANDS_SECS, "a", 0);
        watch.look(unix, "a", STANDS_SECS);
        assert_eq!(seen(&watch), Some(unix));
        watch
    }

    #[test]
    fn a_clock_that_is_set_back_takes_no_time_back_also_after_a_reboot() {
        let mut watch = settled(30 * DAY);
        let reading = watch.look(30 * DAY + 5, "a", STANDS_SECS + 5);
        assert_eq!((reading.behind_secs, reading.settled_unix_secs), (0, 30 * DAY + 5), "as it should be");
        let reading = watch.look(20 * DAY, "a", STANDS_SECS + 65);
        assert_eq!(20 * DAY + reading.behind_secs, 30 * DAY + 65, "time goes on");
        let before = seen(&watch).unwrap();
        let reading = watch.look(20 * DAY, "b", 3);
        assert_eq!(20 * DAY + reading.behind_secs, before, "another boot");
        let reading = watch.look(30 * DAY + 70, "b", 8);
        assert_eq!(reading.behind_secs, 0, "it was put right");
    }

    #[test]
    fn a_jump_ahead_that_is_put_right_leaves_nothing_behind_and_one_that_stands_counts() {
        let mut watch = settled(30 * DAY);
        let reading = watch.look(4000 * DAY, "b", 10);
        assert_eq!((reading.behind_secs, reading.settled_unix_secs), (0, 30 * DAY), "no month begins by it");
        watch.look(4000 * DAY + 60, "b", 70);
        let reading = watch.look(30 * DAY + 30, "b", 75);
        assert_eq!((reading.behind_secs, reading.settled_unix_secs), (0, 30 * DAY + 30));
        assert_eq!(seen(&watch), Some(30 * DAY + 30));

        watch.look(31 * DAY, "b", 100);
        assert_eq!(seen(&watch), Some(30 * DAY + 30));
        let reading = watch.look(31 * DAY + STANDS_SECS, "b", 100 + STANDS_SECS);
        assert_eq!(reading.settled_unix_secs, 31 * DAY + STANDS_SECS);
        assert_eq!(seen(&watch), Some(31 * DAY + STANDS_SECS));
    }

    #[test]
    fn a_verb_and_a_gateway_say_the_same_time_whatever_the_phase_of_the_two_clocks() {
        // Milliseconds: the gateway looked when both clocks were in this part of their second.
        for (system, boot) in [(999, 0), (0, 999), (500, 501), (501, 500), (0, 0)] {
            let seconds = |millis: u64| millis / 1_000;
            let mut gateway = Watch::default();
            gateway.look(seconds(30_000 + system), "a", seconds(10_000 + boot));
            let written = gateway.latest.clone();
            for passed in (0..3_000).step_by(50) {
                let verb = Watch { latest: written.clone(), ahead_since: None };
                let at = (seconds(30_000 + system + passed), seconds(10_000 + boot + passed));
                assert_eq!(verb.behind_secs(at.0, "a", at.1), 0, "{system} {boot} {passed}");
                assert_eq!(gateway.look(at.0, "a", at.1).behind_secs, 0, "{system} {boot} {passed}");
            }
            let late = Watch { latest: written, ahead_since: None };
            assert_eq!(late.behind_secs(20, "a", 10), 10, "what is really behind is");
        }
    }

    #[test]
    fn what_was_seen_survives_in_its_file_and_a_damaged_one_is_as_good_as_none() {
        let directory = tempfile::tempdir().unwrap();
        let home = Home::new(Some(directory.path())).unwrap();
        home.create().unwrap();
        let mut clock = WallClock::open(&home);
        clock.watch = settled(30 * DAY);
        clock.save();
        assert_eq!(load(&path_of(&home)).map(|seen| seen.unix_secs), Some(30 * DAY));
        std::fs::write(path_of(&home), "{").unwrap();
        assert_eq!(load(&path_of(&home)), None);
    }
}
