//! `adit restore`: the host as it was before runs that were killed, or that a reboot cut off.

use std::process::ExitCode;

use adit_host::{HostError, Report};

use crate::control;
use crate::home::Home;
use crate::privilege;

/// Puts back what is left of every tunnel and gateway of `home` that no longer runs. A kill switch of this boot stays.
///
/// # Errors
/// This is not root, or the directory of the journals cannot be read.
pub fn run(home: &Home) -> anyhow::Result<ExitCode> {
    privilege::require_root("restore")?;
    let mut code = ExitCode::SUCCESS;
    let mut found = false;
    for interface in control::journals(home)? {
        match adit_host::undo_journal_but_blocks(&control::journal_path(home, &interface)) {
            Ok(report) => found |= tell(home, &interface, &report),
            Err(HostError::JournalBusy { .. }) => {}
            Err(error) => {
                eprintln!("adit: {interface}: {error}");
                code = ExitCode::FAILURE;
            }
        }
    }
    if !found && code == ExitCode::SUCCESS {
        eprintln!("nothing is left to put back");
    }
    Ok(code)
}

/// What any command of root does first: a machine that was switched off while a tunnel was up names the servers of that
/// tunnel still.
pub fn after_boot(home: &Home) {
    if privilege::user_id() != Some(0) {
        return;
    }
    for interface in control::journals(home).unwrap_or_default() {
        match adit_host::undo_journal_of_former_boot(&control::journal_path(home, &interface)) {
            Ok(Some(report)) => drop(tell(home, &interface, &report)),
            Ok(None) => {}
            // Whoever has to do with this journal says so.
            Err(error) => tracing::debug!("{error}"),
        }
    }
}

/// Whether there was anything.
fn tell(home: &Home, interface: &str, report: &Report) -> bool {
    let Report { undone, left_alone, shared, kept, warnings } = report;
    if !undone.is_empty() {
        eprintln!("{interface} was cut off; put back: {}", undone.join(", "));
    }
    for line in shared.iter().chain(left_alone).chain(warnings) {
        eprintln!("{interface}: {line}");
    }
    if !kept.is_empty() {
        eprintln!(
            "{interface}: its kill switch stays; `adit down {interface}{}` opens this host",
            home.flag()
        );
    }
    !(undone.is_empty() && left_alone.is_empty() && kept.is_empty())
}
