//! `adit exclude -- CMD`: one command whose packets go beside the tunnel, also past its kill switch.
//!
//! ```text
//!   the client makes a control group, and marks what its processes send ─► we join the group ─► we become the command
//! ```

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use anyhow::{Context, anyhow, bail};

use crate::control::{self, Answer, Verb};
use crate::home::Home;
use crate::privilege;
use crate::status;

/// What `adit exclude` was asked.
#[derive(Clone, Debug)]
pub struct ExcludeOptions {
    /// The tunnel; the only one when not given.
    pub interface: Option<String>,
    /// The command and its arguments.
    pub command: Vec<OsString>,
}

/// Becomes the command; its exit code is the command's.
///
/// # Errors
/// No tunnel is up, processes cannot be told apart here, or the command cannot be started.
pub fn run(home: &Home, options: &ExcludeOptions) -> anyhow::Result<ExitCode> {
    privilege::require_root("exclude")?;
    let Some((program, arguments)) = options.command.split_first() else { bail!("name a command") };
    let tunnel = status::client(home, options.interface.as_deref(), "exclude")?;
    let processes = match control::request(home, &tunnel.interface, Verb::Exclude)? {
        Answer::Beside(path) => path,
        other => bail!("{} was asked for a way beside it and said {other:?}", tunnel.interface),
    };
    std::fs::write(&processes, std::process::id().to_string())
        .with_context(|| format!("cannot join the processes of {}", processes.display()))?;
    let error = Command::new(program).args(arguments).exec();
    Err(anyhow!("cannot run {}: {error}", program.display()))
}
