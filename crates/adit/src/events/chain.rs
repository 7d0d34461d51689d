//! Lines that follow each other: each ends with the hash over the hash before and itself.
//!
//! Several processes append to one file, under its lock. A line is one `write`, so a killed process leaves a whole line or
//! none; a machine that lost its power may leave a piece of one, which is cut off before the next line and told there.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::Event;
use super::clock::rfc3339;
use crate::home::Home;

/// A file that would grow beyond this becomes the older one of two.
const BYTES_MAX: u64 = 8 << 20;
/// Longer than any line: every text in one is short.
pub(super) const LINE_MAX: u64 = 16 << 10;
/// Who holds the lock longer than this is stopped; an event is not worth waiting for them.
const PATIENCE: Duration = Duration::from_millis(200);
const SCHEMA: u32 = 1;

/// What stands before the hash, and after it.
const HASH_BEGINS: &str = ",\"hash\":\"";
const HASH_ENDS: &str = "\"}";
const HASH_CHARS: usize = 64;

/// A line as it is written, but for its hash.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Line {
    pub(super) schema: u32,
    pub(super) seq: u64,
    pub(super) time: String,
    #[serde(flatten)]
    pub(super) event: Event,
}

/// A line that could be read, with the hash it claims.
#[derive(Debug)]
pub(super) struct Read1 {
    pub(super) line: Line,
    pub(super) hash: String,
    /// What the hash is over, beside the hash before.
    pub(super) body: String,
}

pub(super) fn path(home: &Home) -> PathBuf {
    home.state_dir.join("events.log")
}

pub(super) fn older(path: &Path) -> PathBuf {
    let mut name = path.to_owned().into_os_string();
    name.push(".1");
    name.into()
}

/// Appends `event`, as it happened `at`.
///
/// # Errors
/// The system refused, or another process keeps the lock.
pub(super) fn append(path: &Path, event: &Event, at: SystemTime) -> io::Result<()> {
    append_within(path, event, at, BYTES_MAX)
}

fn append_within(path: &Path, event: &Event, at: SystemTime, bytes_max: u64) -> io::Result<()> {
    let mut file = open_locked(path)?;
    let mut end = End::of(&mut file)?;
    let mut text = String::new();
    let time = rfc3339(at);
    if end.whole_bytes > bytes_max {
        fs::rename(path, older(path))?;
        let begun = Event::Begun { follows: end.last.as_ref().map(|last| last.hash.clone()), cut_bytes: 0 };
        file = open_locked(path)?;
        let seq = end.next_seq();
        end = End { whole_bytes: 0, cut_bytes: 0, last: end.last };
        end.put(&mut text, seq, &time, begun);
    } else if end.last.is_none() || end.cut_bytes > 0 {
        file.set_len(end.whole_bytes)?;
        let follows = end.last.as_ref().map(|last| last.hash.clone());
        let begun = Event::Begun { follows, cut_bytes: end.cut_bytes };
        let seq = end.next_seq();
        end.put(&mut text, seq, &time, begun);
    }
    let seq = end.next_seq();
    end.put(&mut text, seq, &time, event.clone());
    file.seek(SeekFrom::End(0))?;
    file.write_all(text.as_bytes())
}

/// The file under its lock, as long as the name still leads to it.
fn open_locked(path: &Path) -> io::Result<File> {
    let mut waited = Duration::ZERO;
    loop {
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
        match file.try_lock() {
            Ok(()) if fs::metadata(path)?.ino() == file.metadata()?.ino() => return Ok(file),
            Ok(()) => {}
            Err(TryLockError::WouldBlock) if waited < PATIENCE => {}
            Err(TryLockError::WouldBlock) => {
                return Err(io::Error::other("another process keeps it locked"));
            }
            Err(TryLockError::Error(error)) => return Err(error),
        }
        let pause = Duration::from_millis(2);
        std::thread::sleep(pause);
        waited += pause;
    }
}

/// How a file ends.
struct End {
    /// Up to the end of the last whole line.
    whole_bytes: u64,
    /// What comes after it.
    cut_bytes: u64,
    /// The last whole line, when it can be read.
    last: Option<Last>,
}

struct Last {
    seq: u64,
    hash: String,
}

impl End {
    fn of(file: &mut File) -> io::Result<Self> {
        let length = file.metadata()?.len();
        let from = length.saturating_sub(2 * LINE_MAX);
        file.seek(SeekFrom::Start(from))?;
        let mut bytes = Vec::new();
        file.take(2 * LINE_MAX).read_to_end(&mut bytes)?;
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let lines = bytes.get(..whole).unwrap_or_default();
        let last = lines.strip_suffix(b"\n").and_then(|lines| {
            let begin = lines.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
            let read = read(str::from_utf8(lines.get(begin..)?).ok()?)?;
            Some(Last { seq: read.line.seq, hash: read.hash })
        });
        let cut_bytes = (bytes.len() - whole) as u64;
        Ok(Self { whole_bytes: length - cut_bytes, cut_bytes, last })
    }

    fn next_seq(&self) -> u64 {
        self.last.as_ref().map_or(1, |last| last.seq.saturating_add(1))
    }

    fn put(&mut self, text: &mut String, seq: u64, time: &str, event: Event) {
        let line = Line { schema: SCHEMA, seq, time: time.to_owned(), event };
        let body = serde_json::to_string(&line).unwrap_or_default();
        let before = match &line.event {
            Event::Begun { follows, .. } => follows.as_deref(),
            _ => self.last.as_ref().map(|last| last.hash.as_str()),
        };
        let hash = hash_of(before, &body);
        text.push_str(body.strip_suffix('}').unwrap_or_default());
        text.push_str(HASH_BEGINS);
        text.push_str(&hash);
        text.push_str(HASH_ENDS);
        text.push('\n');
        self.last = Some(Last { seq, hash });
    }
}

/// The hash of a line, in hexadecimal.
pub(super) fn hash_of(before: Option<&str>, body: &str) -> String {
    let digest = Sha256::new().chain_update(before.unwrap_or_default()).chain_update(body).finalize();
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A line without its end, taken apart. `None` when it is none of ours.
pub(super) fn read(text: &str) -> Option<Read1> {
    let rest = text.strip_suffix(HASH_ENDS)?;
    let at = rest.len().checked_sub(HASH_CHARS)?;
    let (rest, hash) = rest.split_at_checked(at)?;
    let body = format!("{}}}", rest.strip_suffix(HASH_BEGINS)?);
    let line: Line = serde_json::from_str(&body).ok()?;
    (line.schema == SCHEMA && hash.bytes().all(|byte| byte.is_ascii_hexdigit())).then(|| Read1 {
        line,
        hash: hash.to_owned(),
        body,
    })
}

#[cfg(test)]
mod tests {
    use super::super::verify::verify;
    use super::*;

    fn event(number: usize) -> Event {
        Event::Stopped { interface: format!("adit{number}") }
    }

    fn directory() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("events.log");
        (directory, path)
    }

    fn put(path: &Path, number: usize) {
        append(path, &event(number), SystemTime::now()).unwrap();
    }

    #[test]
    fn lines_follow_each_other_and_the_file_is_private() {
        let (_directory, path) = directory();
        (0..5).for_each(|number| put(&path, number));
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        let found = verify(&path).unwrap();
        assert_eq!((found.events, found.problems.len(), found.unfinished_bytes), (6, 0, 0));
        let last = fs::read_to_string(&path).unwrap().lines().last().unwrap().to_owned();
        assert!(last.contains("\"seq\":6") && last.contains("\"kind\":\"stopped\""), "{last}");
        assert_eq!(found.head.as_deref(), read(&last).map(|line| line.hash).as_deref());
    }

    #[test]
    fn a_line_that_was_not_finished_is_cut_off_told_and_no_obstacle() {
        let (_directory, path) = directory();
        (0..3).for_each(|number| put(&path, number));
        let whole = fs::read(&path).unwrap();
        put(&path, 3);
        let all = fs::read(&path).unwrap();
        for cut in [whole.len() + 1, all.len() - 40, all.len() - 1] {
            fs::write(&path, &all[..cut]).unwrap();
            let found = verify(&path).unwrap();
            assert!(found.problems.is_empty() && found.unfinished_bytes == (cut - whole.len()) as u64);
            put(&path, 4);
            let found = verify(&path).unwrap();
            assert!(found.problems.is_empty() && found.unfinished_bytes == 0, "{found:?}");
            let text = fs::read_to_string(&path).unwrap();
            assert!(text.starts_with(str::from_utf8(&whole).unwrap()), "what was whole stays");
            assert!(text.contains(&format!("\"cut_bytes\":{}", cut - whole.len())), "{text}");
        }
    }

    #[test]
    fn damage_begins_a_new_chain_and_is_found() {
        let (_directory, path) = directory();
        (0..3).for_each(|number| put(&path, number));
        let good = fs::read_to_string(&path).unwrap();
        fs::write(&path, format!("{good}{}\n", "\0".repeat(70))).unwrap();
        put(&path, 4);
        let found = verify(&path).unwrap();
        assert_eq!((found.events, found.problems.len()), (6, 2), "{found:?}");
    }

    #[test]
    fn every_change_of_a_byte_and_every_line_taken_out_is_found() {
        let (_directory, path) = directory();
        (0..4).for_each(|number| put(&path, number));
        let good = fs::read(&path).unwrap();
        assert!(verify(&path).unwrap().problems.is_empty());
        for at in (0..good.len()).step_by(7) {
            let mut bad = good.clone();
            bad[at] ^= 1;
            fs::write(&path, &bad).unwrap();
            let found = verify(&path).unwrap();
            assert!(!found.problems.is_empty() || found.unfinished_bytes > 0, "byte {at}");
        }
        let text = String::from_utf8(good).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        for gone in 0..lines.len() - 1 {
            let mut left = lines.clone();
            left.remove(gone);
            fs::write(&path, left.join("\n") + "\n").unwrap();
            assert!(!verify(&path).unwrap().problems.is_empty(), "line {gone}");
        }
        let mut swapped = lines.clone();
        swapped.swap(2, 3);
        fs::write(&path, swapped.join("\n") + "\n").unwrap();
        assert!(!verify(&path).unwrap().problems.is_empty());
    }

    #[test]
    fn a_full_file_becomes_the_older_one_and_the_chain_goes_on() {
        let (_directory, path) = directory();
        for number in 0..40 {
            append_within(&path, &event(number), SystemTime::now(), 2_000).unwrap();
        }
        assert!(older(&path).exists());
        let found = verify(&path).unwrap();
        assert!(found.problems.is_empty() && found.events >= 10, "{found:?}");
    }

    #[test]
    fn many_writers_make_one_chain() {
        let (_directory, path) = directory();
        std::thread::scope(|scope| {
            for writer in 0..4 {
                let path = &path;
                scope.spawn(move || {
                    for number in 0..50 {
                        while append(path, &event(writer * 50 + number), SystemTime::now()).is_err() {}
                    }
                });
            }
        });
        let found = verify(&path).unwrap();
        assert_eq!((found.events, found.problems.len()), (201, 0), "{found:?}");
    }

    #[test]
    fn a_writer_that_was_stopped_with_the_lock_holds_nobody_up() {
        let (_directory, path) = directory();
        put(&path, 1);
        let held = open_locked(&path).unwrap();
        assert!(append(&path, &event(2), SystemTime::now()).is_err());
        drop(held);
        put(&path, 3);
        assert!(verify(&path).unwrap().problems.is_empty());
    }
}
