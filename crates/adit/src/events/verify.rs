//! Whether the lines are those that were written, all of them and in order.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use super::Event;
use super::chain::{LINE_MAX, hash_of, older, read};

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Lines that could be read.
    pub(super) events: u64,
    /// What is wrong, in words.
    pub(super) problems: Vec<String>,
    /// Bytes of a line at the end that was not finished.
    pub(super) unfinished_bytes: u64,
    /// The hash of the last line: who wrote it down elsewhere can tell later whether lines were taken from the end.
    pub(super) head: Option<String>,
    seq: u64,
}

/// More than this are not told one by one.
const PROBLEMS_MAX: usize = 100;

/// Reads both files, the older one first.
///
/// # Errors
/// A file cannot be read.
pub(super) fn verify(path: &Path) -> io::Result<Found> {
    let mut found = Found::default();
    for path in [older(path), path.to_owned()] {
        match File::open(&path) {
            Ok(file) => found.file(&path, file)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

impl Found {
    fn file(&mut self, path: &Path, file: File) -> io::Result<()> {
        let mut reader = BufReader::new(file);
        let mut number = 0;
        loop {
            let mut bytes = Vec::new();
            let count = reader.by_ref().take(LINE_MAX).read_until(b'\n', &mut bytes)?;
            if count == 0 {
                return Ok(());
            }
            number += 1;
            let place = format!("{}:{number}", path.display());
            let Some(line) = bytes.strip_suffix(b"\n") else {
                if (count as u64) < LINE_MAX {
                    self.unfinished_bytes = count as u64;
                    return Ok(());
                }
                self.problem(format!("{place}: this line is longer than any of ours"));
                reader.skip_until(b'\n')?;
                continue;
            };
            self.line(&place, line);
        }
    }

    fn line(&mut self, place: &str, line: &[u8]) {
        let Some(read) = str::from_utf8(line).ok().and_then(read) else {
            return self.problem(format!("{place}: this line cannot be read; it was damaged or changed"));
        };
        let is_first = self.events == 0;
        self.events += 1;
        let before = match &read.line.event {
            Event::Begun { follows, .. } => {
                // The very first line may follow one in a file that is gone.
                if !is_first && *follows != self.head {
                    self.problem(format!(
                        "{place}: the chain begins anew here: lines before it are missing or damaged"
                    ));
                }
                follows.clone()
            }
            _ if is_first => {
                self.problem(format!("{place}: the chain does not begin here: lines before it are missing"));
                None
            }
            _ => self.head.clone(),
        };
        let right = hash_of(before.as_deref(), &read.body);
        if right != read.hash {
            self.problem(format!(
                "{place}: event {} does not follow the line before: one of them was changed, or lines between them \
                 are missing",
                read.line.seq
            ));
        } else if !is_first && read.line.seq != self.seq + 1 && before.is_some() {
            self.problem(format!("{place}: event {} comes after event {}", read.line.seq, self.seq));
        }
        self.seq = read.line.seq;
        self.head = Some(read.hash);
    }

    fn problem(&mut self, problem: String) {
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(problem);
        }
    }
}
