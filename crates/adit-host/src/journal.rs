//! The record of what was changed, written before it is changed.
//!
//! JSON lines in one file: `opened` once, then a `change` before each change is made and an `undone` after each is
//! undone. What has a `change` and no `undone` may have been made, and undoing it twice does no harm. The file is
//! locked while its writer or a program that its writer started lives, and removed when nothing is left to undo.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::ops::Range;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::process::geteuid;
use serde::{Deserialize, Serialize};

use crate::error::HostError;
use crate::guard::Made;
use crate::namespace::Place;

/// Longer than the first line can be.
const LINE_MAX: u64 = 4096;
const VERSION: u32 = 1;
/// How long a program whose starter was killed may take to end.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);
const LOCK_PAUSE: Duration = Duration::from_millis(10);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "line", rename_all = "snake_case")]
enum Line {
    Opened {
        version: u32,
        #[serde(flatten)]
        place: Place,
    },
    Change {
        seq: u64,
        #[serde(flatten)]
        made: Made,
    },
    Undone {
        seq: u64,
    },
}

/// What an earlier process left to undo.
#[derive(Debug, Default)]
pub(crate) struct Leftover {
    pub(crate) changes: Vec<(u64, Made)>,
    pub(crate) place: Place,
    pub(crate) warnings: Vec<String>,
}

/// An open, locked journal.
#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    file: File,
    /// Holds the lock, read-only, so that a program we start can hold it too.
    lock: File,
    next_seq: u64,
}

impl Journal {
    /// Opens or creates the journal and reads what is in it.
    pub(crate) fn open(path: &Path) -> Result<(Journal, Leftover), HostError> {
        let directory = directory_of(path);
        fs::create_dir_all(directory)
            .map_err(|error| HostError::file("create the directory", directory, error))?;
        let create =
            || OpenOptions::new().append(true).create(true).mode(0o600).custom_flags(FLAGS).open(path);
        loop {
            create().map_err(|error| refused_open("create", path, error))?;
            if let Some(journal) = Journal::open_existing(path)? {
                return Ok(journal);
            }
        }
    }

    /// Opens the journal if there is one.
    pub(crate) fn open_existing(path: &Path) -> Result<Option<(Journal, Leftover)>, HostError> {
        let problem = |error| refused_open("open", path, error);
        let Some(lock) = lock(path)? else { return Ok(None) };
        let open = OpenOptions::new().read(true).append(true).custom_flags(FLAGS).open(path);
        let mut file = open.map_err(problem)?;
        refuse_foreign(&file, path)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(problem)?;
        let (leftover, next_seq, whole_bytes) = parse(&bytes, path)?;
        let mut journal = Journal { path: path.to_owned(), file, lock, next_seq };
        if whole_bytes < bytes.len() {
            let cut = journal.file.set_len(whole_bytes as u64);
            cut.map_err(|error| HostError::file("write", path, error))?;
        } else if bytes.last().is_some_and(|last| *last != b'\n') {
            journal.append(b"\n", false)?;
        }
        Ok(Some((journal, leftover)))
    }

    /// In which run of this machine the journal was begun, as far as it says so; whoever has it is not disturbed.
    pub(crate) fn boot_of(path: &Path) -> Option<String> {
        let mut line = String::new();
        BufReader::new(File::open(path).ok()?.take(LINE_MAX)).read_line(&mut line).ok()?;
        match serde_json::from_str(&line).ok()? {
            Line::Opened { place, .. } => Some(place.boot),
            _ => None,
        }
    }

    /// Empties the journal and writes where and when its changes will be made.
    pub(crate) fn begin(&mut self) -> Result<(), HostError> {
        let opened = Line::Opened { version: VERSION, place: Place::here() };
        self.file.set_len(0).map_err(|error| HostError::file("write", &self.path, error))?;
        self.next_seq = 1;
        self.write(&opened, true)?;
        let directory = directory_of(&self.path);
        let sync = File::open(directory).and_then(|it| it.sync_all());
        sync.map_err(|error| HostError::file("write to the directory", directory, error))
    }

    /// Records changes that are about to be made, and returns their numbers once all are on the disk.
    pub(crate) fn record<'a>(
        &mut self,
        made: impl IntoIterator<Item = &'a Made>,
    ) -> Result<Range<u64>, HostError> {
        let first = self.next_seq;
        let mut lines = String::new();
        for made in made {
            lines += &self.text(&Line::Change { seq: self.next_seq, made: made.clone() })?;
            self.next_seq += 1;
        }
        if !lines.is_empty() {
            self.append(lines.as_bytes(), true)?;
        }
        Ok(first..self.next_seq)
    }

    /// Records that a change is undone. Losing this line is harmless.
    pub(crate) fn forget(&mut self, seq: u64) -> Result<(), HostError> {
        self.write(&Line::Undone { seq }, false)
    }

    /// Removes the file: nothing is left to undo.
    pub(crate) fn finish(self) -> Result<(), HostError> {
        fs::remove_file(&self.path).map_err(|error| HostError::file("remove", &self.path, error))
    }

    /// What a program must be given when its effect may not outlive the lock.
    pub(crate) fn lock(&self) -> &File {
        &self.lock
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn write(&mut self, line: &Line, sync: bool) -> Result<(), HostError> {
        let text = self.text(line)?;
        self.append(text.as_bytes(), sync)
    }

    fn text(&self, line: &Line) -> Result<String, HostError> {
        let text = serde_json::to_string(line).map_err(io::Error::other);
        Ok(text.map_err(|error| HostError::file("write", &self.path, error))? + "\n")
    }

    fn append(&mut self, bytes: &[u8], sync: bool) -> Result<(), HostError> {
        let mut append = || -> io::Result<()> {
            self.file.write_all(bytes)?;
            if sync { self.file.sync_data() } else { Ok(()) }
        };
        append().map_err(|error| HostError::file("write", &self.path, error))
    }
}

/// What is left to undo, the next number, and how many bytes hold whole lines.
///
/// A line is on the disk before its change is made, so a last line that a crash cut short tells of no change. Any other
/// that cannot be read may: nobody can say what is to be undone then.
fn parse(bytes: &[u8], path: &Path) -> Result<(Leftover, u64, usize), HostError> {
    let mut leftover = Leftover::default();
    let mut changes = BTreeMap::new();
    let mut next_seq = 1;
    let mut whole_bytes = bytes.len();
    let mut version = VERSION;
    for (number, line) in bytes.split(|byte| *byte == b'\n').enumerate().filter(|(_, line)| !line.is_empty())
    {
        match serde_json::from_slice(line) {
            Ok(Line::Opened { version: of_file, place }) => {
                version = of_file;
                leftover.place = place;
            }
            Ok(Line::Change { seq, made }) => {
                next_seq = next_seq.max(seq.saturating_add(1));
                changes.insert(seq, made);
            }
            Ok(Line::Undone { seq }) => drop(changes.remove(&seq)),
            Err(_) if bytes.ends_with(line) => whole_bytes = bytes.len() - line.len(),
            Err(error) => {
                let newer = format!("it is of a newer adit, version {version}; ");
                return Err(HostError::JournalUnreadable {
                    path: path.to_owned(),
                    line: number + 1,
                    reason: if version > VERSION { newer + &error.to_string() } else { error.to_string() },
                });
            }
        }
    }
    leftover.changes = changes.into_iter().collect();
    Ok((leftover, next_seq, whole_bytes))
}

/// Neither led elsewhere by a link that somebody else made, nor made to wait by a pipe.
const FLAGS: i32 = (OFlags::NOFOLLOW.bits() | OFlags::NONBLOCK.bits()) as i32;

/// What is read here is done to this host with our rights: only we may have written it.
fn refuse_foreign(file: &File, path: &Path) -> Result<(), HostError> {
    let metadata = file.metadata().map_err(|error| HostError::file("look at", path, error))?;
    let foreign = |why: String| Err(HostError::JournalForeign { path: path.to_owned(), why });
    let us = geteuid().as_raw();
    if !metadata.is_file() {
        return foreign("it is no file".to_owned());
    }
    if metadata.uid() != us && metadata.uid() != 0 {
        return foreign(format!("it belongs to user {}", metadata.uid()));
    }
    match metadata.mode() & 0o022 {
        0 => Ok(()),
        _ => foreign(format!("its mode {:o} lets others write to it", metadata.mode() & 0o7777)),
    }
}

fn refused_open(doing: &'static str, path: &Path, error: io::Error) -> HostError {
    match Errno::from_io_error(&error) {
        Some(Errno::LOOP) => {
            HostError::JournalForeign { path: path.to_owned(), why: "it is a symbolic link".to_owned() }
        }
        Some(Errno::NXIO) => {
            HostError::JournalForeign { path: path.to_owned(), why: "it is no file".to_owned() }
        }
        _ => HostError::file(doing, path, error),
    }
}

/// Locks the file; `None` when there is none.
fn lock(path: &Path) -> Result<Option<File>, HostError> {
    let problem = |error| HostError::file("lock", path, error);
    let patience = Instant::now() + LOCK_PATIENCE;
    loop {
        let file = match OpenOptions::new().read(true).custom_flags(FLAGS).open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file.map_err(|error| refused_open("lock", path, error))?,
        };
        refuse_foreign(&file, path)?;
        match file.try_lock() {
            Ok(()) => {
                // Between our open and our lock its former holder may have removed the file.
                let ours = file.metadata().map_err(problem)?.ino();
                if fs::metadata(path).is_ok_and(|there| there.ino() == ours) {
                    return Ok(Some(file));
                }
            }
            Err(TryLockError::WouldBlock) if Instant::now() < patience => thread::sleep(LOCK_PAUSE),
            Err(TryLockError::WouldBlock) => return Err(HostError::JournalBusy { path: path.to_owned() }),
            Err(TryLockError::Error(error)) => return Err(problem(error)),
        }
    }
}

fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|it| !it.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Family, Rule};
    use crate::rule::MadeRule;

    fn made(priority: u32) -> Made {
        let rule = Rule::new(Family::Ipv4, priority, 51820);
        Made::Rule(serde_json::from_value::<MadeRule>(serde_json::to_value(rule).unwrap()).unwrap())
    }

    #[test]
    fn what_was_recorded_and_not_undone_is_left_over() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state/journal");
        let (mut journal, leftover) = Journal::open(&path).unwrap();
        assert!(leftover.changes.is_empty());
        journal.begin().unwrap();
        assert_eq!(journal.record(&[made(1), made(2)]).unwrap(), 1..3);
        journal.forget(1).unwrap();
        drop(journal);

        let (journal, leftover) = Journal::open_existing(&path).unwrap().unwrap();
        assert_eq!(leftover.changes, [(2, made(2))]);
        assert_eq!(leftover.place, Place::here());
        assert!(leftover.warnings.is_empty(), "{:?}", leftover.warnings);
        journal.finish().unwrap();
        assert!(Journal::open_existing(&path).unwrap().is_none());
    }

    #[test]
    fn a_torn_last_line_told_of_nothing_made_and_is_cut_off() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("journal");
        let (mut journal, _) = Journal::open(&path).unwrap();
        journal.begin().unwrap();
        journal.record([&made(1)]).unwrap();
        journal.append(b"{\"line\":\"cha", true).unwrap();
        drop(journal);

        let (mut journal, leftover) = Journal::open_existing(&path).unwrap().unwrap();
        assert_eq!(leftover.changes, [(1, made(1))]);
        journal.record([&made(3)]).unwrap();
        drop(journal);
        let (_, leftover) = Journal::open_existing(&path).unwrap().unwrap();
        assert_eq!(leftover.changes.len(), 2, "a line after a torn one is readable");
    }

    #[test]
    fn a_line_that_cannot_be_read_stops_everything_and_the_error_says_how_to_recover() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("journal");
        let (mut journal, _) = Journal::open(&path).unwrap();
        journal.begin().unwrap();
        journal.append(b"{\"line\":\"change\",\"seq\":2,\"what\":\"from_the_future\"}\n", true).unwrap();
        journal.record([&made(1)]).unwrap();
        drop(journal);

        let before = fs::read(&path).unwrap();
        for _ in 0..2 {
            let error = Journal::open(&path).unwrap_err();
            assert!(matches!(error, HostError::JournalUnreadable { line: 2, .. }), "{error}");
            for part in ["journal", "line 2", "from_the_future", "nft delete table", "proto 173"] {
                assert!(error.to_string().contains(part), "{error}");
            }
        }
        assert_eq!(fs::read(&path).unwrap(), before, "nothing of it is lost");
    }

    #[test]
    fn a_journal_of_a_newer_version_is_read_as_far_as_it_is_understood() {
        let parsed = |version: u32, more: &str| {
            let opened = Line::Opened { version, place: Place::default() };
            let lines = [opened, Line::Change { seq: 1, made: made(1) }];
            let lines = lines.map(|line| serde_json::to_string(&line).unwrap());
            parse(format!("{}\n{more}", lines.join("\n")).as_bytes(), Path::new("journal"))
        };
        assert_eq!(parsed(VERSION + 1, "").unwrap().0.changes, [(1, made(1))]);
        let error = parsed(VERSION + 1, "{}\n").unwrap_err().to_string();
        assert!(error.contains("newer adit"), "{error}");
    }

    #[test]
    fn a_journal_cut_anywhere_still_tells_all_that_came_before() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("journal");
        let (mut journal, _) = Journal::open(&path).unwrap();
        journal.begin().unwrap();
        journal.record(&[made(1), made(2), made(3)]).unwrap();
        let bytes = fs::read(&path).unwrap();
        for cut in 0..=bytes.len() {
            let (leftover, _, whole_bytes) = parse(&bytes[..cut], &path).unwrap();
            let whole_lines = bytes[..cut].iter().filter(|byte| **byte == b'\n').count();
            let without_newline = usize::from(bytes.get(cut) == Some(&b'\n'));
            assert_eq!(
                leftover.changes.len(),
                (whole_lines + without_newline).saturating_sub(1),
                "cut at {cut}"
            );
            assert!(parse(&bytes[..whole_bytes], &path).unwrap().2 == whole_bytes, "cut at {cut}");
        }
    }

    #[test]
    fn a_journal_that_others_may_have_written_is_not_believed() {
        use std::os::unix::fs::{PermissionsExt, symlink};

        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("journal");
        let (mut journal, _) = Journal::open(&path).unwrap();
        journal.begin().unwrap();
        journal.record(&[made(1)]).unwrap();
        drop(journal);
        let refused = |path: &Path, part: &str| {
            for error in [Journal::open(path).unwrap_err(), Journal::open_existing(path).unwrap_err()] {
                assert!(matches!(error, HostError::JournalForeign { .. }), "{error}");
                assert!(error.to_string().contains(part), "{error}");
            }
        };
        let chmod = |mode: u32| fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        for mode in [0o620, 0o602] {
            chmod(mode);
            refused(&path, "lets others write");
        }
        chmod(0o644);
        assert_eq!(Journal::open(&path).unwrap().1.changes.len(), 1, "others may read it");

        let link = directory.path().join("link");
        symlink(&path, &link).unwrap();
        refused(&link, "symbolic link");
        let pipe = directory.path().join("pipe");
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        refused(&pipe, "no file");
        // Only root can give a file away.
        if std::os::unix::fs::chown(&path, Some(65534), None).is_ok() {
            refused(&path, "belongs to user 65534");
        }
    }

    #[test]
    fn a_journal_in_use_is_not_opened_twice() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("journal");
        let (journal, _) = Journal::open(&path).unwrap();
        assert!(matches!(Journal::open(&path), Err(HostError::JournalBusy { .. })));
        assert!(matches!(Journal::open_existing(&path), Err(HostError::JournalBusy { .. })));
        drop(journal);
        assert!(Journal::open(&path).is_ok());
    }
}
