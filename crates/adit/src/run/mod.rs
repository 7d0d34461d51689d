//! `adit run -- CMD`: one command whose only network is the tunnel, without root.
//!
//! ```text
//!   adit ──fork──► companion: the host's network
//!    │                │ reads the file, resolves names   ── UDP or TCP ──► gateway
//!    │ ◄── layout ────┤
//!    │ namespaces, TUN, addresses, routes, DNS
//!    ├── TUN ────────►│ engine and lanes
//!    │ ◄── ready ─────┤
//!   exec CMD          │ ends with CMD
//! ```
//!
//! adit becomes the command: its process id, terminal, signals and exit code are those of CMD, with nothing between
//! the two that had to pass them on. The keys are in the companion alone.

mod companion;
mod layout;
mod obstacle;
mod resolver;
mod room;

use std::ffi::OsString;
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use adit_io::sys::Companion;
use anyhow::{Context, bail};

use self::layout::Layout;
use self::room::Room;
use crate::config::Layers;
use crate::home::Home;
use crate::log::LogOptions;

/// What `adit run` was asked.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// A wg-quick file.
    pub file: PathBuf,
    /// The command and its arguments, never empty.
    pub command: Vec<OsString>,
    /// The log of the tunnel.
    pub log: LogOptions,
    /// Where the settings of clients are.
    pub home: Home,
    /// What flags and variables say about them.
    pub layers: Layers,
}

/// The codes of a shell, `env` and `timeout` for a command that could not be started.
const NOT_EXECUTABLE: u8 = 126;
const NOT_FOUND: u8 = 127;

/// Becomes the command once the tunnel is ready; returns only when that failed.
///
/// # Errors
/// The file is wrong, or the system does not let us make namespaces. The companion has said on stderr what stopped it.
pub fn run(options: &RunOptions) -> anyhow::Result<ExitCode> {
    let Some((program, arguments)) = options.command.split_first() else {
        bail!("there is no command to run")
    };
    let mut companion = match adit_io::sys::start_companion().context("cannot start the tunnel")? {
        Companion::Beside(beside) => return Ok(companion::serve(beside, options)),
        Companion::Caller(socket) => socket,
    };
    let Some(layout) = Layout::receive(&mut companion)? else { return Ok(ExitCode::FAILURE) };
    let mut room = Room::enter(&layout)?;
    room.hand_over(&companion).context("cannot hand the TUN device to the tunnel")?;
    if companion.read_exact(&mut [0]).is_err() {
        return Ok(ExitCode::FAILURE);
    }
    drop(companion);
    room.lock()?;
    let error = Command::new(program).args(arguments).exec();
    let shown = program.to_string_lossy();
    match error.kind() {
        io::ErrorKind::NotFound => {
            eprintln!("adit run: there is no command `{shown}`; check its name and PATH");
            Ok(ExitCode::from(NOT_FOUND))
        }
        _ => {
            eprintln!("adit run: cannot run `{shown}`: {error}");
            Ok(ExitCode::from(NOT_EXECUTABLE))
        }
    }
}

/// A warning on stderr, before the command owns it.
fn warn(text: &str) {
    eprintln!("adit run: warning: {text}");
}
