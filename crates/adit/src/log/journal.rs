//! journald, in its own protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL): a datagram of `NAME=value` lines for each event.

use std::fmt::{self, Write as _};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use super::line::text_line;

pub(super) const SOCKET: &str = "/run/systemd/journal/socket";

/// The longest datagram; the kernel's default is larger.
const BYTES_MAX: usize = 64 << 10;

/// The journal of a system.
#[derive(Debug)]
pub(super) struct Journal {
    socket: UnixDatagram,
}

impl Journal {
    pub(super) fn of_system() -> io::Result<Self> {
        Self::at(SOCKET.as_ref())
    }

    fn at(path: &Path) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.connect(path)?;
        // A journal that does not keep up loses lines; the tunnel does not wait for it.
        socket.set_nonblocking(true)?;
        Ok(Self { socket })
    }

    /// The journal, when it is what standard error leads to (`$JOURNAL_STREAM`, systemd.exec(5)): levels and fields are
    /// kept that plain lines would lose.
    pub(super) fn behind_stderr() -> Option<Self> {
        let stream = std::env::var("JOURNAL_STREAM").ok()?;
        let stderr = File::from(io::stderr().as_fd().try_clone_to_owned().ok()?).metadata().ok()?;
        (stream == format!("{}:{}", stderr.dev(), stderr.ino())).then(Self::of_system)?.ok()
    }
}

impl<S: Subscriber> Layer<S> for Journal {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut entry = Entry { message: String::new(), fields: String::new() };
        event.record(&mut entry);
        let metadata = event.metadata();
        let mut text = format!("PRIORITY={}\nSYSLOG_IDENTIFIER=adit\n", priority(*metadata.level()));
        let _ = writeln!(text, "TARGET={}", metadata.target());
        text.push_str(&entry.fields);
        text.push_str("MESSAGE=");
        text.push_str(&printable(&entry.message));
        // Without fields a reader of the plain journal would miss who is meant.
        text.push_str(&entry.fields_in_words());
        let mut end = text.len().min(BYTES_MAX);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push('\n');
        // There is nobody to tell that the log cannot be written.
        let _ = self.socket.send(text.as_bytes());
    }
}

/// The words of syslog(3).
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    }
}

struct Entry {
    message: String,
    fields: String,
}

impl Entry {
    fn put(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.message = value.to_owned();
        } else {
            let name: String =
                field.name().chars().map(|it| if it.is_ascii_alphanumeric() { it } else { '_' }).collect();
            let _ = writeln!(self.fields, "ADIT_{}={}", name.to_ascii_uppercase(), printable(value));
        }
    }

    /// As the text format writes them.
    fn fields_in_words(&self) -> String {
        let words = self.fields.lines().filter_map(|line| line.strip_prefix("ADIT_")?.split_once('='));
        words.map(|(name, value)| format!(" {}={value}", name.to_ascii_lowercase())).collect()
    }
}

impl Visit for Entry {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, &format!("{value:?}"));
    }
}

fn printable(value: &str) -> String {
    // A final newline would stay one.
    let one_line = value.replace('\n', "\\n");
    String::from_utf8_lossy(&text_line(one_line.as_bytes())).into_owned()
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    #[test]
    fn an_event_is_one_datagram_that_a_value_cannot_break_out_of() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        assert!(Journal::at(&path).is_err());
        let journald = UnixDatagram::bind(&path).unwrap();
        let subscriber = tracing_subscriber::registry().with(Journal::at(&path).unwrap());
        tracing::subscriber::with_default(subscriber, || {
            tracing::warn!(peer = "evil\nPRIORITY=0\n", endpoint = %"192.0.2.1:5", "session \u{1b}[31mended");
            tracing::info!("plain");
        });
        let mut buffer = [0; 4096];
        let mut next = || {
            let count = journald.recv(&mut buffer).unwrap();
            String::from_utf8(buffer[..count].to_vec()).unwrap()
        };
        let entry = next();
        let lines: Vec<&str> = entry.lines().collect();
        assert_eq!(lines.iter().filter(|line| line.starts_with("PRIORITY=")).count(), 1, "{entry}");
        assert!(lines.contains(&"PRIORITY=4") && lines.contains(&"SYSLOG_IDENTIFIER=adit"), "{entry}");
        assert!(lines.contains(&"ADIT_PEER=evil\\nPRIORITY=0\\n"), "{entry}");
        assert!(lines.contains(&"ADIT_ENDPOINT=192.0.2.1:5"), "{entry}");
        let message = lines.iter().find(|line| line.starts_with("MESSAGE=")).unwrap();
        assert!(message.starts_with("MESSAGE=session \\u{1b}[31mended peer=evil\\n"), "{message}");
        let plain = next();
        assert!(plain.contains("PRIORITY=6\n") && plain.ends_with("MESSAGE=plain\n"), "{plain}");
    }

    #[test]
    fn a_journal_that_is_full_or_gone_holds_nobody_up() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let journald = UnixDatagram::bind(&path).unwrap();
        let subscriber = tracing_subscriber::registry().with(Journal::at(&path).unwrap());
        tracing::subscriber::with_default(subscriber, || {
            for _ in 0..10_000 {
                tracing::info!("more than its buffer holds");
            }
            drop(journald);
            tracing::info!("nobody is there");
        });
    }
}
