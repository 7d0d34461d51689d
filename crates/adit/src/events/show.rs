//! `adit events`: what is written down, for people and programs, and whether it is all there.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use serde_json::json;

use super::chain::{LINE_MAX, Line, older, path, read};
use super::verify::verify;
use super::{Event, Leaving};
use crate::config::diagnostic::escape;
use crate::home::Home;

/// What `adit events` is told.
#[derive(Clone, Debug, Args)]
pub struct EventsArgs {
    /// Print one JSON object per event
    #[arg(long)]
    json: bool,
    /// Go on with what happens from now on
    #[arg(short, long)]
    follow: bool,
    /// Only the last N events
    #[arg(short = 'n', long, value_name = "N")]
    last: Option<usize>,
    /// Check that no event was changed or taken out, and print nothing else
    #[arg(long, conflicts_with_all = ["follow", "last"])]
    verify: bool,
}

const PAUSE: Duration = Duration::from_millis(200);

/// Prints the events of `home`.
///
/// # Errors
/// The log cannot be read.
pub fn run(home: &Home, args: &EventsArgs) -> anyhow::Result<ExitCode> {
    let path = path(home);
    if args.verify {
        return check(&path, args.json);
    }
    let mut reader = Reader { path: path.clone(), json: args.json, open: None };
    let mut lines = Vec::new();
    for path in [older(&path), path.clone()] {
        if let Some(file) = opened(&path)? {
            lines.extend(reader.rest_of(file).with_context(|| format!("cannot read {}", path.display()))?);
        }
    }
    let skip = args.last.map_or(0, |last| lines.len().saturating_sub(last));
    if lines.is_empty() && !args.follow && !args.json {
        eprintln!(
            "no events yet in {}; `adit gateway{1}` and `adit up{1}` write them down unless `events = \"off\"` below [log]",
            path.display(),
            home.flag()
        );
    }
    for line in lines.iter().skip(skip) {
        crate::print_line(line)?;
    }
    if !args.follow {
        return Ok(ExitCode::SUCCESS);
    }
    loop {
        std::thread::sleep(PAUSE);
        for line in reader.news()? {
            crate::print_line(&line)?;
        }
    }
}

fn check(path: &Path, json: bool) -> anyhow::Result<ExitCode> {
    let found = verify(path).with_context(|| format!("cannot read {}", path.display()))?;
    let is_whole = found.problems.is_empty();
    if json {
        let page = json!({
            "schema": 1, "ok": is_whole, "events": found.events, "head": found.head,
            "unfinished_bytes": found.unfinished_bytes, "problems": found.problems,
        });
        crate::print_line(&page.to_string())?;
    } else {
        for problem in &found.problems {
            crate::print_line(&format!("wrong  {}", escape(problem)))?;
        }
        if found.unfinished_bytes > 0 {
            crate::print_line(&format!(
                "note   the last line is not finished ({} bytes): its writer was killed; the lines before it are whole",
                found.unfinished_bytes
            ))?;
        }
        let head = found.head.as_deref().unwrap_or("none");
        let verdict =
            if is_whole { "every event is as it was written" } else { "the log was changed or damaged" };
        crate::print_line(&format!("{verdict}: {} events, the last has the hash {head}", found.events))?;
        if is_whole && found.events > 0 {
            crate::print_line(
                "Events taken from the end leave no trace here: compare that hash with one you wrote down elsewhere.",
            )?;
        }
    }
    Ok(if is_whole { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn opened(path: &Path) -> anyhow::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            anyhow::bail!("{} is for root only; run the same command with sudo", path.display())
        }
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// Reads on where it stopped, also when the file has become the older one meanwhile.
struct Reader {
    path: PathBuf,
    json: bool,
    open: Option<(File, u64)>,
}

impl Reader {
    fn news(&mut self) -> anyhow::Result<Vec<String>> {
        let mut news = Vec::new();
        if let Some((file, at)) = self.open.take() {
            let was = file.metadata()?.ino();
            news.extend(self.from(file, at)?);
            match opened(&self.path)? {
                Some(file) if file.metadata()?.ino() != was => news.extend(self.rest_of(file)?),
                _ => {}
            }
        } else if let Some(file) = opened(&self.path)? {
            news.extend(self.rest_of(file)?);
        }
        Ok(news)
    }

    fn rest_of(&mut self, file: File) -> anyhow::Result<Vec<String>> {
        self.from(file, 0)
    }

    /// The whole lines from `at` on, as they are shown.
    fn from(&mut self, mut file: File, at: u64) -> anyhow::Result<Vec<String>> {
        // Who cuts off an unfinished line never cuts a whole one.
        file.seek(SeekFrom::Start(at))?;
        let mut reader = BufReader::new(file);
        let (mut at, mut shown) = (at, Vec::new());
        loop {
            let mut bytes = Vec::new();
            let count = reader.by_ref().take(LINE_MAX).read_until(b'\n', &mut bytes)?;
            if count == 0 || (!bytes.ends_with(b"\n") && (count as u64) < LINE_MAX) {
                break;
            }
            at += count as u64;
            shown.extend(self.show(&bytes));
        }
        self.open = Some((reader.into_inner(), at));
        Ok(shown)
    }

    fn show(&self, line: &[u8]) -> Option<String> {
        let text = str::from_utf8(line).ok()?.trim_end();
        let event = read(text)?;
        if self.json { Some(text.to_owned()) } else { sentence(&event.line) }
    }
}

/// `2026-11-24 15:02:01  connected     laptop from 192.0.2.9:4444`; `None` for what only the chain needs.
fn sentence(line: &Line) -> Option<String> {
    let (kind, words) = match &line.event {
        Event::Begun { cut_bytes: 0, .. } => return None,
        Event::Begun { cut_bytes, .. } => {
            ("damaged", format!("{cut_bytes} bytes of an event that was not finished were cut off"))
        }
        Event::Started { interface, role, version } => {
            ("started", format!("{role} {interface}, adit {version}"))
        }
        Event::Stopped { interface } => ("stopped", interface.clone()),
        Event::Connected { peer, endpoint, carrier, .. } => {
            ("connected", format!("{peer} from {endpoint} over {carrier}"))
        }
        Event::Disconnected { peer, why, .. } => {
            let why = match why {
                Leaving::Idle => "neither side had anything to say",
                Leaving::NoAnswer => "it does not answer",
                Leaving::NoAccess => "its access has expired, or its hours are over",
                Leaving::Removed => "removed, disabled or given another key",
            };
            ("disconnected", format!("{peer}: {why}"))
        }
        Event::Enrolled { peer, addresses, by, .. } => {
            ("enrolled", format!("{peer} with {} by {by}", addresses.join(", ")))
        }
        Event::Removed { peer, .. } => ("removed", peer.clone()),
        Event::Refused { reason, count, who } => {
            let who = who.as_ref().map(|who| format!(" from {who}")).unwrap_or_default();
            ("refused", format!("{reason}{who}, {count} times"))
        }
    };
    let (date, time) = line.time.split_once('T').unwrap_or((&line.time, ""));
    let time = time.split('.').next().unwrap_or_default();
    Some(escape(&format!("{date} {time}  {kind:<12}  {words}")))
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::super::chain::append;
    use super::*;

    fn connected(peer: &str) -> Event {
        Event::Connected {
            interface: "adit0".into(),
            peer: peer.into(),
            public_key: "k".into(),
            endpoint: "192.0.2.9:4444".into(),
            carrier: "udp".into(),
        }
    }

    #[test]
    fn an_event_is_a_sentence_and_cannot_be_more_than_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("events.log");
        append(&path, &connected("laptop\n2026-01-01 forged \u{1b}[31m"), SystemTime::now()).unwrap();
        let mut reader = Reader { path: path.clone(), json: false, open: None };
        let lines = reader.news().unwrap();
        assert_eq!(lines.len(), 1, "{lines:?}");
        let line = &lines[0];
        assert!(!line.chars().any(char::is_control), "{line}");
        assert!(
            line.ends_with(" from 192.0.2.9:4444 over udp") && line.contains("  connected     laptop"),
            "{line}"
        );
    }

    #[test]
    fn a_follower_reads_on_over_the_change_of_files() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("events.log");
        let mut reader = Reader { path: path.clone(), json: true, open: None };
        assert!(reader.news().unwrap().is_empty());
        append(&path, &connected("one"), SystemTime::now()).unwrap();
        assert_eq!(reader.news().unwrap().len(), 2, "the beginning and the event");
        assert!(reader.news().unwrap().is_empty());
        append(&path, &connected("two"), SystemTime::now()).unwrap();
        std::fs::rename(&path, older(&path)).unwrap();
        append(&path, &connected("three"), SystemTime::now()).unwrap();
        let news = reader.news().unwrap();
        assert!(news[0].contains("two") && news[2].contains("three"), "{news:?}");
    }
}
