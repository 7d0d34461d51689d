//! Where log lines go and how they look. One event is one line; what comes from elsewhere is escaped in it.
//!
//! ```text
//!   tracing ─► level (may change while it runs) ─► text or JSON ─► stderr | file, rotated
//!                                               └► fields ──────► journald
//! ```

mod file;
mod journal;
mod line;

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::{Mutex, OnceLock, PoisonError};

use tracing::Level;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, reload};

use self::file::LogFile;
use self::journal::Journal;
use self::line::{json_line, text_line};
use crate::events::EventLevel;

pub use self::file::{Rotation, reopen};

/// What to log, how and where.
#[derive(Clone, Debug)]
pub struct LogOptions {
    /// The least severe level that is kept; `None` keeps nothing.
    pub level: Option<Level>,
    /// The look of a line.
    pub format: LogFormat,
    /// Where lines go.
    pub to: LogTarget,
    /// When a file is full, and how many full ones are kept.
    pub rotation: Rotation,
    /// What is written into the event log, which is no log of lines.
    pub events: EventLevel,
}

/// Where log lines go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum LogTarget {
    /// Standard error; when that is the journal of a service, its fields too.
    #[default]
    Stderr,
    /// This file.
    File(PathBuf),
    /// The journal of the system.
    Journal,
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
        Self {
            level: Some(Level::INFO),
            format: LogFormat::Text,
            to: LogTarget::Stderr,
            rotation: Rotation::default(),
            events: EventLevel::default(),
        }
    }
}

impl LogOptions {
    /// The same with the file by its full name: a service leaves its working directory.
    pub fn rooted(mut self) -> Self {
        if let LogTarget::File(file) = &mut self.to {
            *file = std::path::absolute(&file).unwrap_or_else(|_| file.clone());
        }
        self
    }
}

static LEVEL: OnceLock<reload::Handle<LevelFilter, Registry>> = OnceLock::new();

/// Starts logging for the whole process; the first call wins.
///
/// # Errors
/// The log file cannot be opened, or there is no journal.
pub fn start(options: &LogOptions) -> anyhow::Result<()> {
    let (filter, handle) = reload::Layer::new(LevelFilter::from(options.level));
    let registry = tracing_subscriber::registry().with(filter);
    let started = match sink(options)? {
        To::Journal(journal) => registry.with(journal).try_init(),
        To::Lines(sink) => {
            let format = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(sink);
            match options.format {
                LogFormat::Text => registry.with(format.with_target(false).boxed()).try_init(),
                LogFormat::Json => registry.with(format.json().boxed()).try_init(),
            }
        }
    };
    if started.is_ok() {
        let _ = LEVEL.set(handle);
    }
    std::panic::set_hook(Box::new(|panic| tracing::error!("adit found a bug in itself and stops: {panic}")));
    Ok(())
}

/// Starts logging for a verb that does one thing and ends: warnings, or what was asked for, on standard error, where
/// its user reads on. A service that it becomes starts its own log instead.
pub fn start_for_a_moment(level: Option<Level>, is_loud: bool) {
    let level = if is_loud { level } else { level.map(|level| level.min(Level::WARN)) };
    let sink = Sink { is_json: false, place: Place::Stderr };
    let lines = tracing_subscriber::fmt::layer().with_ansi(false).with_target(false).without_time();
    let registry = tracing_subscriber::registry().with(LevelFilter::from(level));
    let _ = registry.with(lines.with_writer(sink)).try_init();
}

/// Keeps events from `level` on, from now on; nothing where no log was started.
pub fn set_level(level: Option<Level>) {
    if let Some(handle) = LEVEL.get() {
        let _ = handle.modify(|filter| *filter = LevelFilter::from(level));
    }
}

enum To {
    Lines(Sink),
    Journal(Journal),
}

fn sink(options: &LogOptions) -> anyhow::Result<To> {
    let is_json = options.format == LogFormat::Json;
    match &options.to {
        LogTarget::Stderr => Ok(match Journal::behind_stderr() {
            Some(journal) => To::Journal(journal),
            None => To::Lines(Sink { is_json, place: Place::Stderr }),
        }),
        LogTarget::File(path) => {
            let file = LogFile::open(path, options.rotation).map_err(|error| {
                anyhow::anyhow!(
                    "cannot write the log file {}: {error}; choose another with --log-file",
                    path.display()
                )
            })?;
            Ok(To::Lines(Sink { is_json, place: Place::File(Box::new(Mutex::new(file))) }))
        }
        LogTarget::Journal => match Journal::of_system() {
            Ok(journal) => Ok(To::Journal(journal)),
            Err(error) => anyhow::bail!(
                "the journal of this system cannot be reached at {}: {error}; choose another place with --log-file",
                journal::SOCKET
            ),
        },
    }
}

struct Sink {
    is_json: bool,
    place: Place,
}

enum Place {
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
        let printable = if self.0.is_json { json_line(line) } else { text_line(line) };
        match &self.0.place {
            Place::Stderr => io::stderr().lock().write_all(&printable)?,
            Place::File(file) => {
                file.lock().unwrap_or_else(PoisonError::into_inner).append(&printable)?;
            }
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
