//! Where log lines go and how they look.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use tracing::Level;
use tracing_subscriber::fmt::MakeWriter;

/// What to log, how and where.
#[derive(Clone, Debug)]
pub struct LogOptions {
    /// The least severe level that is kept; `None` keeps nothing.
    pub level: Option<Level>,
    /// The look of a line.
    pub format: LogFormat,
    /// A file to append to; stderr without one.
    pub file: Option<PathBuf>,
}

/// The look of a log line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self { level: Some(Level::INFO), format: LogFormat::Text, file: None }
    }
}

impl LogOptions {
    /// The same with the file by its full name: a service leaves its working directory.
    pub fn rooted(mut self) -> Self {
        self.file = self.file.map(|file| std::path::absolute(&file).unwrap_or(file));
        self
    }
}

/// Starts logging for the whole process; the first call wins.
///
/// # Errors
/// The log file cannot be opened.
pub fn start(options: &LogOptions) -> anyhow::Result<()> {
    let Some(level) = options.level else { return Ok(()) };
    let sink = match &options.file {
        None => Sink::Stderr,
        Some(path) => Sink::File(Box::new(Mutex::new(LogFile::open(path, BYTES_MAX).map_err(|error| {
            anyhow::anyhow!(
                "cannot write the log file {}: {error}; choose another with --log-file",
                path.display()
            )
        })?))),
    };
    let builder = tracing_subscriber::fmt().with_max_level(level).with_ansi(false).with_writer(sink);
    let _ = match options.format {
        LogFormat::Text => builder.with_target(false).try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
    std::panic::set_hook(Box::new(|panic| tracing::error!("adit found a bug in itself and stops: {panic}")));
    Ok(())
}

/// A full log file is renamed to `NAME.1`, replacing the one before, so that two of this size are kept.
const BYTES_MAX: u64 = 10 << 20;

enum Sink {
    Stderr,
    File(Box<Mutex<LogFile>>),
}

struct Line<'a>(&'a Sink);

impl<'a> MakeWriter<'a> for Sink {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line(self)
    }
}

impl Write for Line<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let printable = printable(line);
        match self.0 {
            Sink::Stderr => io::stderr().lock().write_all(&printable)?,
            Sink::File(file) => {
                file.lock().unwrap_or_else(PoisonError::into_inner).append(&printable)?;
            }
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// One event is one line: names and reasons from elsewhere can forge no second line and send no
/// terminal commands.
fn printable(line: &[u8]) -> Vec<u8> {
    let (body, end) = match line {
        [body @ .., b'\n'] => (body, &b"\n"[..]),
        _ => (line, &b""[..]),
    };
    let mut out = Vec::with_capacity(line.len());
    for character in String::from_utf8_lossy(body).chars() {
        if character.is_control() {
            out.extend_from_slice(character.escape_default().to_string().as_bytes());
        } else {
            out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
        }
    }
    out.extend_from_slice(end);
    out
}

struct LogFile {
    path: PathBuf,
    file: File,
    bytes: u64,
    bytes_max: u64,
}

impl LogFile {
    fn open(path: &Path, bytes_max: u64) -> io::Result<Self> {
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
        let bytes = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), file, bytes, bytes_max })
    }

    fn append(&mut self, line: &[u8]) -> io::Result<()> {
        let length = line.len() as u64;
        if self.bytes > 0 && self.bytes.saturating_add(length) > self.bytes_max {
            let mut older = self.path.clone().into_os_string();
            older.push(".1");
            fs::rename(&self.path, older)?;
            *self = Self::open(&self.path, self.bytes_max)?;
        }
        self.file.write_all(line)?;
        self.bytes = self.bytes.saturating_add(length);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_name_cannot_forge_a_second_line_or_colour_the_terminal() {
        let line = "peer=\"a\nFAKE \u{1b}[31mred\u{9b}1m\" é\n";
        let shown = String::from_utf8(printable(line.as_bytes())).unwrap();
        assert_eq!(shown, "peer=\"a\\nFAKE \\u{1b}[31mred\\u{9b}1m\" é\n");
        assert_eq!(printable(b"plain text\n"), b"plain text\n");
    }

    #[test]
    fn a_log_file_is_private_and_two_of_its_size_are_kept() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("adit.log");
        let mut log = LogFile::open(&path, 100).unwrap();
        for number in 0..30 {
            log.append(format!("line number {number:08}\n").as_bytes()).unwrap();
        }
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let older = fs::read_to_string(home.path().join("adit.log.1")).unwrap();
        let newer = fs::read_to_string(&path).unwrap();
        assert!(older.len() <= 100 && newer.len() <= 100);
        assert!(newer.ends_with("line number 00000029\n"), "{newer}");
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 2);

        let mut again = LogFile::open(&path, 100).unwrap();
        again.append(b"appended\n").unwrap();
        assert!(fs::read_to_string(&path).unwrap().ends_with("appended\n"));
    }
}
