//! `adit lockdown`: nothing leaves this host while no tunnel is up, from boot on.
//!
//! ```text
//!   boot ─► lockdown ─► up: the kill switch is there before lockdown goes ─► down: lockdown is there before it goes
//! ```

use std::path::PathBuf;
use std::process::ExitCode;

use adit_host::{Firewall, Guard, Lockdown, Plan};
use anyhow::bail;
use clap::ValueEnum;

use crate::config::{ClientSettings, Layers};
use crate::control::{self, Answer, Verb};
use crate::home::Home;
use crate::privilege;

/// The mark of packets that may leave during lockdown. Only root can set it.
const MARK: u32 = 0x00ad_17ff;

/// What to do, whatever is configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Order {
    /// Close this host.
    On,
    /// Open this host.
    Off,
}

/// Closes or opens the host as ordered, else as `[client]` of `adit.toml` says. Where that cannot be read, it closes.
///
/// # Errors
/// The configuration is wrong, or the host refuses.
pub fn run(home: &Home, order: Option<Order>, layers: &Layers) -> anyhow::Result<ExitCode> {
    privilege::require_root("lockdown")?;
    let settings = ClientSettings::load(home, layers, None);
    let wanted = match (order, &settings) {
        (Some(order), _) => order == Order::On,
        (None, Ok(settings)) => settings.lockdown,
        (None, Err(_)) => true,
    };
    let allow_lan = settings.as_ref().is_ok_and(|settings| settings.allow_lan);
    if !wanted {
        lift(home)?;
        eprintln!("lockdown is off: without a tunnel this host is open");
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(tunnel) = closed_by_tunnel(home)? {
        eprintln!(
            "the kill switch of {tunnel} keeps this host closed; lockdown follows when the tunnel goes down"
        );
    } else {
        install(home, allow_lan)?;
        eprintln!(
            "lockdown is on: nothing leaves this host until a full tunnel is up, or `adit lockdown off`"
        );
    }
    match (order, settings) {
        (None, Err(report)) => {
            bail!("the configuration cannot be read, so the host is closed. {}", report.render(false))
        }
        _ => Ok(ExitCode::SUCCESS),
    }
}

/// Takes lockdown away once the kill switch of a tunnel is there; from now on a failure leaves that one.
///
/// # Errors
/// The host refuses.
pub fn give_way(home: &Home, settings: &ClientSettings, guard: &mut Guard) -> anyhow::Result<()> {
    if settings.lockdown {
        guard.stay_closed();
    }
    lift(home)
}

/// Closes the host before a tunnel that was asked to end takes its kill switch away.
///
/// # Errors
/// The host refuses.
pub fn follow(home: &Home, settings: &ClientSettings, is_asked: bool) -> anyhow::Result<()> {
    if is_asked && settings.lockdown { install(home, settings.allow_lan) } else { Ok(()) }
}

/// Closes the host, if `[client]` of `adit.toml` says so, before what a killed tunnel left is taken away.
///
/// # Errors
/// The host refuses.
pub fn resume(home: &Home) -> anyhow::Result<()> {
    match ClientSettings::load(home, &Layers::from_environment(), None) {
        Ok(settings) => follow(home, &settings, true),
        Err(_) => Ok(()),
    }
}

/// Closes the host, and leaves it closed.
fn install(home: &Home, allow_lan: bool) -> anyhow::Result<()> {
    home.create()?;
    let lockdown = Firewall::Lockdown(Lockdown { fwmark: MARK, allow_lan });
    let plan = Plan { firewalls: vec![lockdown], ..Plan::default() };
    adit_host::apply(&plan, &record(home))?.leave();
    Ok(())
}

/// Takes it away, where it is.
fn lift(home: &Home) -> anyhow::Result<()> {
    adit_host::undo_journal(&record(home))?;
    Ok(())
}

/// No journal of an interface has this name, so that it outlives them all.
fn record(home: &Home) -> PathBuf {
    home.state_dir.join("lockdown.block")
}

fn closed_by_tunnel(home: &Home) -> anyhow::Result<Option<String>> {
    for interface in control::journals(home)? {
        let is_closed = match control::request(home, &interface, Verb::Status) {
            Ok(Answer::Status(report)) => report.host.is_some_and(|host| host.kill_switch),
            _ => adit_host::blocks_left(&control::journal_path(home, &interface))?,
        };
        if is_closed {
            return Ok(Some(interface));
        }
    }
    Ok(None)
}
