//! `adit lockdown`: nothing leaves this host while no tunnel is up, from boot on.
//!
//! ```text
//!   boot ─► lockdown ─► up: the kill switch is there before lockdown goes ─► down: lockdown is there before it goes
//! ```
//!
//! Lockdown goes only when the kernel has been seen to have the kill switch of a tunnel, or when it is ordered off. That
//! it was ordered is on the disk until then, and so is that a tunnel is up whose settings ask for it.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use adit_host::{Firewall, Guard, HostError, LOCKDOWN_MARK, Lockdown, Plan};
use anyhow::{Context, bail};
use clap::ValueEnum;

use crate::config::{ClientSettings, Layers};
use crate::control;
use crate::daemon::PidFile;
use crate::home::Home;
use crate::{private_file, privilege};

/// What to do, whatever is configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Order {
    /// Close this host.
    On,
    /// Open this host.
    Off,
}

/// Closes or opens the host as ordered, now or before, else as `[client]` of `adit.toml` says. Where that cannot be read,
/// it closes.
///
/// # Errors
/// The configuration is wrong, or the host refuses.
pub fn run(home: &Home, order: Option<Order>, layers: &Layers) -> anyhow::Result<ExitCode> {
    privilege::require_root("lockdown")?;
    let settings = ClientSettings::load(home, layers, None);
    let before = Note::order(home).read();
    let wanted = match (order, &settings) {
        (Some(order), _) => order == Order::On,
        (None, Ok(settings)) => settings.lockdown || before.is_some(),
        (None, Err(_)) => true,
    };
    if !wanted {
        return open(home, order);
    }
    let allow_lan = match (order, &settings, before) {
        (None, Ok(settings), Some(allow_lan)) if !settings.lockdown => allow_lan,
        (_, Ok(settings), _) => settings.allow_lan,
        (_, Err(_), _) => false,
    };
    // On the disk first: a tunnel that goes down meanwhile has to know. If it cannot be, the host is closed all the same.
    let noted = match order {
        Some(_) => home.create().and_then(|()| Note::order(home).write(allow_lan)),
        None => Ok(()),
    };
    if let Some(tunnel) = closed_by_tunnel(home) {
        eprintln!(
            "the kill switch of {tunnel} keeps this host closed; lockdown follows when the tunnel goes down"
        );
    } else {
        install(home, allow_lan)?;
        let why = match (order, before) {
            (None, Some(_)) => " (as `adit lockdown on` was said)",
            _ => "",
        };
        eprintln!(
            "lockdown is on{why}: nothing leaves this host until a full tunnel is up, or `adit lockdown off{}`",
            home.flag()
        );
    }
    noted.context("the next boot and the next `adit down` will not know that lockdown was ordered")?;
    match (order, settings) {
        (None, Err(report)) => {
            bail!("the configuration cannot be read, so the host is closed. {}", report.render(false))
        }
        _ => Ok(ExitCode::SUCCESS),
    }
}

fn open(home: &Home, order: Option<Order>) -> anyhow::Result<ExitCode> {
    if order.is_some() {
        Note::remove_all(home)?;
    }
    lift(home)?;
    match closed_by_tunnel(home) {
        None => eprintln!("lockdown is off: without a tunnel this host is open"),
        Some(tunnel) => {
            let runs = PidFile::holder(&control::pid_path(home, &tunnel)).is_some();
            let is = if runs { "is up" } else { "was killed" };
            eprintln!(
                "lockdown is off; the tunnel {tunnel} {is}, and its kill switch keeps this host closed until \
                 `adit down {tunnel}{}`",
                home.flag()
            );
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What closes this host while no tunnel is up, in the words in which it was said; a tunnel without a kill switch would
/// carry nothing then, or let everything out.
pub fn reason(home: &Home, settings: &ClientSettings) -> Option<&'static str> {
    if settings.lockdown {
        return Some("lockdown = true");
    }
    (Note::order(home).read().is_some() || is_in_force(home)).then_some("adit lockdown on")
}

/// Takes lockdown away once the kernel has the kill switch of a tunnel; from now on a failure leaves that one.
///
/// # Errors
/// The kill switch is not there, or the host refuses.
pub fn give_way(
    home: &Home,
    interface: &str,
    settings: &ClientSettings,
    guard: &mut Guard,
) -> anyhow::Result<()> {
    let note = Note::tunnel(home, interface);
    match settings.lockdown {
        true => note.write(settings.allow_lan)?,
        false => note.remove()?,
    }
    if reason(home, settings).is_none() {
        return lift(home);
    }
    guard.stay_closed();
    if !adit_host::closes_host(interface) {
        bail!(
            "lockdown stays: the kill switch of {interface} was made and is not there any more. Another program seems to \
             flush the firewall (`nft monitor` shows it); bring the tunnel up again"
        );
    }
    lift(home)
}

/// Closes the host before a tunnel that was asked to end takes its kill switch away.
///
/// # Errors
/// The host refuses.
pub fn follow(home: &Home, settings: &ClientSettings) -> anyhow::Result<()> {
    match Note::order(home).read() {
        _ if settings.lockdown => install(home, settings.allow_lan),
        Some(allow_lan) => install(home, allow_lan),
        None => Ok(()),
    }
}

/// Forgets what a tunnel asked for that is down.
pub fn forget(home: &Home, interface: &str) {
    if let Err(error) = Note::tunnel(home, interface).remove() {
        tracing::warn!("{error:#}");
    }
}

/// Closes the host before what a killed tunnel left is taken away: if that was ordered, if the tunnel asked for it, if
/// `[client]` of `adit.toml` says so, and if nobody can read what that says while the tunnel keeps the host closed.
///
/// # Errors
/// The host refuses.
pub fn resume(home: &Home, interface: &str) -> anyhow::Result<()> {
    let noted = [Note::order(home), Note::tunnel(home, interface)].iter().find_map(Note::read);
    if let Some(allow_lan) = noted {
        return install(home, allow_lan);
    }
    match ClientSettings::load(home, &Layers::from_environment(), None) {
        Ok(settings) => follow(home, &settings),
        Err(report) => match adit_host::blocks_left(&control::journal_path(home, interface)) {
            Ok(false) => Ok(()),
            _ => {
                eprintln!(
                    "warning: the configuration cannot be read, so this host stays closed until `adit lockdown off{}`. {}",
                    home.flag(),
                    report.render(false)
                );
                install(home, false)
            }
        },
    }
}

/// Closes the host, and leaves it closed.
fn install(home: &Home, allow_lan: bool) -> anyhow::Result<()> {
    home.create()?;
    set_aside_unreadable(home)?;
    let lockdown = Firewall::Lockdown(Lockdown { fwmark: LOCKDOWN_MARK, allow_lan });
    let plan = Plan { firewalls: vec![lockdown], ..Plan::default() };
    adit_host::apply(&plan, &record(home))?.leave();
    Ok(())
}

/// Takes it away, where it is.
fn lift(home: &Home) -> anyhow::Result<()> {
    if set_aside_unreadable(home)? {
        // So that there is a record to undo.
        install(home, false)?;
    }
    adit_host::undo_journal(&record(home))?;
    Ok(())
}

/// There is one thing that the record can tell, so nothing is lost with one that cannot be read.
fn set_aside_unreadable(home: &Home) -> anyhow::Result<bool> {
    let record = record(home);
    match adit_host::blocks_left(&record) {
        Err(error @ (HostError::JournalUnreadable { .. } | HostError::JournalForeign { .. })) => {
            let aside = record.with_extension("unreadable");
            tracing::warn!("{error}; it is {} now", aside.display());
            fs::rename(&record, &aside).with_context(|| format!("cannot rename {}", record.display()))?;
            Ok(true)
        }
        _ => Ok(false),
    }
}

fn is_in_force(home: &Home) -> bool {
    adit_host::is_locked_down() || adit_host::blocks_left(&record(home)).unwrap_or(true)
}

/// No journal of an interface has this name, so that it outlives them all.
fn record(home: &Home) -> PathBuf {
    home.state_dir.join("lockdown.block")
}

/// What the kernel shows counts, not what was once done and written down.
fn closed_by_tunnel(home: &Home) -> Option<String> {
    control::journals(home).unwrap_or_default().into_iter().find(|it| adit_host::closes_host(it))
}

/// That lockdown is wanted, on the disk.
struct Note(PathBuf);

const ALLOW_LAN: &str = "allow_lan = true\n";
const OF_TUNNEL: &str = ".lockdown";

impl Note {
    /// Somebody said `adit lockdown on`.
    fn order(home: &Home) -> Self {
        Self(home.state_dir.join("lockdown.order"))
    }

    /// The tunnel is, or was when it was killed, up with `lockdown = true`.
    fn tunnel(home: &Home, interface: &str) -> Self {
        Self(home.state_dir.join(format!("{interface}{OF_TUNNEL}")))
    }

    /// Whether private networks stay within reach; `None` when there is no such note.
    fn read(&self) -> Option<bool> {
        match fs::read(&self.0) {
            Ok(text) => Some(text == ALLOW_LAN.as_bytes()),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(_) => Some(false),
        }
    }

    fn write(&self, allow_lan: bool) -> anyhow::Result<()> {
        let text = if allow_lan { ALLOW_LAN } else { "" };
        private_file::write(&self.0, text.as_bytes())
    }

    fn remove(&self) -> anyhow::Result<()> {
        match fs::remove_file(&self.0) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", self.0.display()))
            }
            _ => Ok(()),
        }
    }

    fn remove_all(home: &Home) -> anyhow::Result<()> {
        Self::order(home).remove()?;
        let is_of_tunnel = |path: &Path| path.to_string_lossy().ends_with(OF_TUNNEL);
        let entries = fs::read_dir(&home.state_dir).into_iter().flatten().flatten().map(|it| it.path());
        entries.filter(|path| is_of_tunnel(path)).try_for_each(|path| Self(path).remove())
    }
}
