//! A log file: full ones are kept up to a number, and a file that was moved away is begun anew.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// When a log file is full, and what becomes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rotation {
    /// A file that would grow beyond this is renamed to `NAME.1`, that to `NAME.2`, and so on.
    pub bytes_max: u64,
    /// How many renamed files are kept.
    pub keep: u32,
}

impl Default for Rotation {
    fn default() -> Self {
        Self { bytes_max: 10 << 20, keep: 1 }
    }
}

/// Lets every log file be opened by its name again before the next line, as programs that rotate logs ask for by SIGHUP.
pub fn reopen() {
    ASKED.fetch_add(1, Relaxed);
}

static ASKED: AtomicU64 = AtomicU64::new(0);

/// How often a file is looked after, in case it was moved and nobody said so.
const LOOK: Duration = Duration::from_secs(1);

pub(super) struct LogFile {
    path: PathBuf,
    file: File,
    bytes: u64,
    rotation: Rotation,
    opened_for: u64,
    looked: Instant,
}

impl LogFile {
    pub(super) fn open(path: &Path, rotation: Rotation) -> io::Result<Self> {
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
        let bytes = file.metadata()?.len();
        let (opened_for, looked) = (ASKED.load(Relaxed), Instant::now());
        Ok(Self { path: path.to_owned(), file, bytes, rotation, opened_for, looked })
    }

    pub(super) fn append(&mut self, line: &[u8]) -> io::Result<()> {
        let length = line.len() as u64;
        if self.opened_for != ASKED.load(Relaxed) || self.was_moved() {
            self.open_again();
        }
        if self.bytes > 0 && self.bytes.saturating_add(length) > self.rotation.bytes_max {
            self.rotate()?;
        }
        self.file.write_all(line)?;
        self.bytes = self.bytes.saturating_add(length);
        Ok(())
    }

    fn was_moved(&mut self) -> bool {
        if self.looked.elapsed() < LOOK {
            return false;
        }
        self.looked = Instant::now();
        let identity = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
        let ours = self.file.metadata().map(identity).ok();
        fs::metadata(&self.path).map(identity).ok() != ours
    }

    /// Where that fails the old file goes on: a line there is worth more than none.
    fn open_again(&mut self) {
        match Self::open(&self.path, self.rotation) {
            Ok(new) => *self = new,
            Err(_) => self.opened_for = ASKED.load(Relaxed),
        }
    }

    fn rotate(&mut self) -> io::Result<()> {
        match self.rotation.keep {
            0 => fs::remove_file(&self.path)?,
            keep => {
                for number in (1..keep).rev() {
                    match fs::rename(self.older(number), self.older(number + 1)) {
                        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                        _ => {}
                    }
                }
                fs::rename(&self.path, self.older(1))?;
            }
        }
        *self = Self::open(&self.path, self.rotation)?;
        Ok(())
    }

    fn older(&self, number: u32) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".{number}"));
        name.into()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn small(keep: u32) -> Rotation {
        Rotation { bytes_max: 100, keep }
    }

    #[test]
    fn a_log_file_is_private_and_as_many_full_ones_are_kept_as_asked() {
        for keep in [0, 1, 3] {
            let home = tempfile::tempdir().unwrap();
            let path = home.path().join("adit.log");
            let mut log = LogFile::open(&path, small(keep)).unwrap();
            for number in 0..60 {
                log.append(format!("line number {number:08}\n").as_bytes()).unwrap();
            }
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
            assert_eq!(fs::read_dir(home.path()).unwrap().count(), 1 + keep as usize);
            let mut all = String::new();
            for number in (1..=keep).rev() {
                let text = fs::read_to_string(log.older(number)).unwrap();
                assert!(text.len() <= 100);
                all += &text;
            }
            all += &fs::read_to_string(&path).unwrap();
            let last: Vec<String> =
                (60 - all.lines().count()..60).map(|number| format!("line number {number:08}")).collect();
            assert_eq!(all.lines().collect::<Vec<_>>(), last, "nothing is lost between two files");
        }
    }

    #[test]
    fn a_file_is_gone_on_with_after_a_restart() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("adit.log");
        LogFile::open(&path, small(1)).unwrap().append(b"first\n").unwrap();
        LogFile::open(&path, small(1)).unwrap().append(b"second\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "first\nsecond\n");
    }

    #[test]
    fn a_file_that_was_moved_is_begun_anew_when_asked_and_by_itself() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("adit.log");
        let mut log = LogFile::open(&path, Rotation::default()).unwrap();
        log.append(b"one\n").unwrap();
        fs::rename(&path, home.path().join("moved")).unwrap();
        log.looked = Instant::now() + LOOK;
        log.append(b"two\n").unwrap();
        assert!(!path.exists(), "nobody has looked or asked yet");
        reopen();
        log.append(b"three\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "three\n");
        assert_eq!(fs::read_to_string(home.path().join("moved")).unwrap(), "one\ntwo\n");

        fs::remove_file(&path).unwrap();
        log.looked = Instant::now().checked_sub(LOOK).unwrap();
        log.append(b"four\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "four\n");
    }
}
