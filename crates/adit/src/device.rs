//! Before and after a tunnel device: leftovers of a killed process, names that are taken, errors for people.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use adit_host::Report;
use anyhow::{Context, anyhow, bail};

use crate::driver::{Driver, DriverConfig};

/// Undoes what a process that was killed left behind, by its journal.
///
/// # Errors
/// Something could not be put back; it stays in the journal.
pub fn clean_up_after(journal: &Path) -> anyhow::Result<Report> {
    let report = adit_host::undo_journal(journal);
    report.context("cannot put back what an earlier run changed").inspect(log)
}

/// Like [`clean_up_after`], but what keeps traffic in stays, for the tunnel that comes to take it over.
///
/// # Errors
/// Something could not be put back; it stays in the journal.
pub fn clean_up_behind_block(journal: &Path) -> anyhow::Result<Report> {
    let report = adit_host::undo_journal_but_blocks(journal);
    report.context("cannot put back what an earlier run changed").inspect(log)
}

fn log(report: &Report) {
    for line in &report.undone {
        tracing::info!("an earlier run was killed; undid {line}");
    }
    for line in &report.kept {
        tracing::info!("an earlier run was killed; this stays closed: {line}");
    }
    for line in report.left_alone.iter().chain(&report.warnings) {
        tracing::warn!("{line}");
    }
}

/// Refuses a name that an interface has already.
///
/// # Errors
/// It is taken, or the system does not say.
pub fn refuse_existing(interface: &str) -> anyhow::Result<()> {
    if adit_host::link_exists(interface)? {
        let other_name = "choose another name (`--interface NAME` for a gateway, NAME.conf for a tunnel)";
        match holder(interface) {
            Some((pid, program)) => bail!(
                "there is an interface {interface} already: process {pid} ({program}) runs it; {other_name}, \
                 or end that process"
            ),
            None => bail!(
                "there is an interface {interface} already and it is not ours; {other_name}; if nothing needs \
                 it, remove it with `ip link delete {interface}`"
            ),
        }
    }
    Ok(())
}

/// The process of this network namespace that has the TUN device open, and its program
/// (`/proc/PID/fdinfo`, `tun_chr_show_fdinfo`).
fn holder(interface: &str) -> Option<(u32, String)> {
    let here = fs::read_link("/proc/self/ns/net").ok()?;
    let line = format!("iff:\t{interface}");
    fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let process = entry.path();
        if fs::read_link(process.join("ns/net")).ok()? != here {
            return None;
        }
        let has = |file: &fs::DirEntry| {
            fs::read_to_string(file.path()).is_ok_and(|info| info.lines().any(|it| it.trim_end() == line))
        };
        fs::read_dir(process.join("fdinfo")).ok()?.flatten().find(has)?;
        let program = fs::read_to_string(process.join("comm")).unwrap_or_default();
        Some((pid, program.trim().to_owned()))
    })
}

/// Starts the driver, saying which port was the trouble when one was.
///
/// # Errors
/// The port is taken, or the system refuses.
pub fn start(config: DriverConfig) -> anyhow::Result<Driver> {
    let port = config.listen_port;
    Driver::start(config).map_err(|error| match error.kind() {
        ErrorKind::AddrInUse => anyhow!(port_taken(port)),
        _ => anyhow!("cannot start carrying packets: {error}"),
    })
}

/// What to tell about a port that another program has.
pub fn port_taken(port: u16) -> String {
    format!(
        "UDP port {port} is taken by another program (`ss -lunp sport = :{port}` shows which); \
         stop that one, or choose another port (`listen_port` below [gateway], `ListenPort` in a profile)"
    )
}
