//! Whether a tunnel keeps in what does not go through it, and what the user has to know about that.

use std::fs;
use std::net::IpAddr;

use adit_host::{Block, Family, Firewall, Plan};
use anyhow::{anyhow, bail};
use ipnet::IpNet;

use crate::config::wgquick::{Table, WgQuick};
use crate::config::{ClientSettings, KillSwitch};
use crate::control;
use crate::daemon::PidFile;
use crate::home::Home;

/// The kill switch that `settings` ask for; `None` is none.
///
/// # Errors
/// It is asked for where the routes leave part of the traffic outside on purpose. `lockdown` is what closes the host
/// while no tunnel is up, if anything does.
pub(super) fn asked_for(
    file: &WgQuick,
    settings: &ClientSettings,
    lockdown: Option<&str>,
    home: &Home,
) -> anyhow::Result<Option<Block>> {
    let allowed: Vec<IpNet> = file.peers.iter().flat_map(|peer| &peer.allowed_ips).copied().collect();
    let is_full = file.interface.table == Table::Auto && adit_host::is_everything(Family::Ipv4, &allowed);
    let asked = match settings.kill_switch {
        KillSwitch::On => Some("kill_switch = on"),
        _ => lockdown,
    };
    let otherwise = match lockdown {
        Some("adit lockdown on") => format!("open this host with `adit lockdown off{}`", home.flag()),
        _ => "turn that setting off for this profile (# adit: kill_switch = off, # adit: lockdown = false)"
            .to_owned(),
    };
    // Whoever names what goes inside wants the rest outside.
    match asked.filter(|_| !settings.include.is_empty()) {
        Some(asked) => bail!(
            "{asked} keeps in all that does not go through the tunnel, and `include` sends only a part of it there. Take \
             `include` out, or {otherwise}"
        ),
        None if !settings.include.is_empty() => return Ok(None),
        None => {}
    }
    match (asked, is_full) {
        (Some(asked), false) => bail!(
            "{asked} is for a full tunnel, and this profile is none: its AllowedIPs leave part of the internet out, or it \
             has a Table of its own. Write AllowedIPs = 0.0.0.0/0, ::/0 below [Peer], or {otherwise}"
        ),
        (None, _) if settings.kill_switch == KillSwitch::Off => Ok(None),
        (_, is_full) => Ok(is_full.then_some(Block { allow_lan: settings.allow_lan })),
    }
}

/// Lets peers speak first at our UDP port, as they may where nothing is blocked.
pub(super) fn open_port(plan: &mut Plan, port: u16) {
    for firewall in &mut plan.firewalls {
        if let Firewall::Client(firewall) = firewall
            && let Some(kill_switch) = &mut firewall.kill_switch
        {
            kill_switch.listen_port = Some(port);
        }
    }
}

/// What the user should know before the host is closed.
pub(super) fn warnings(file: &WgQuick, settings: &ClientSettings, block: Block) -> Vec<String> {
    let mut warnings = Vec::new();
    if settings.kill_switch == KillSwitch::Off {
        warnings.push("the kill switch is on although kill_switch = off, as lockdown is on".to_owned());
    }
    if file.interface.dns.is_empty() {
        let local = nameservers().into_iter().find(|server| is_private(*server));
        warnings.extend(local.map(|server| {
            format!(
                "names will not resolve: this host asks {server}, which the kill switch keeps out of reach, and the profile \
                 names no other server. Write DNS = IP below [Interface] (on the gateway `adit peer add NAME --dns IP` \
                 does), or use --kill-switch off"
            )
        }));
    }
    let caller = std::env::var("SSH_CONNECTION").unwrap_or_default();
    let caller = caller.split(' ').next().and_then(|it| it.parse::<IpAddr>().ok());
    let stays = |it: &IpAddr| it.is_loopback() || (block.allow_lan && is_private(*it));
    if let Some(caller) = caller.filter(|it| !stays(it)) {
        warnings.push(format!(
            "the kill switch cuts off connections from outside, and so this session from {caller}; use --allow-lan if that \
             is in your LAN, or --kill-switch off"
        ));
    }
    warnings
}

/// The servers that names are asked of now; behind a stub of systemd-resolved its own.
fn nameservers() -> Vec<IpAddr> {
    let servers = |path: &str| -> Vec<IpAddr> {
        let text = fs::read_to_string(path).unwrap_or_default();
        let lines = text.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
        lines.filter_map(|rest| rest.trim().split('%').next()?.parse().ok()).collect()
    };
    let asked = servers("/etc/resolv.conf");
    match asked.iter().all(IpAddr::is_loopback) {
        true => servers("/run/systemd/resolve/resolv.conf"),
        false => asked,
    }
}

fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(it) => it.is_private() || it.is_link_local(),
        IpAddr::V6(it) => it.is_unicast_link_local() || it.is_unique_local(),
    }
}

/// Refuses to bring a tunnel up that the kill switch of a killed one would keep in.
///
/// # Errors
/// There is such a one.
pub(super) fn refuse_behind_another(home: &Home, interface: &str) -> anyhow::Result<()> {
    for other in control::journals(home)?.iter().filter(|other| *other != interface) {
        let runs = PidFile::holder(&control::pid_path(home, other)).is_some();
        if !runs && adit_host::blocks_left(&control::journal_path(home, other))? {
            bail!(
                "the tunnel {other} was killed, and its kill switch keeps everything in, this tunnel too. Bring {other} up \
                 again, or open this host with `adit down {other}{}`",
                home.flag()
            );
        }
    }
    Ok(())
}

/// Adds to an error that the host is still closed, when it is, or that it is not although it should be.
pub(super) fn say_if_closed(error: anyhow::Error, home: &Home, interface: &str) -> anyhow::Error {
    match adit_host::blocks_left(&control::journal_path(home, interface)) {
        Ok(true) if !adit_host::closes_host(interface) => anyhow!(
            "{error:#}. Another program took away the kill switch that the tunnel left when it was killed; `adit lockdown \
             on{}` closes this host again",
            home.flag()
        ),
        Ok(true) => anyhow!(
            "{error:#}. The kill switch stays: nothing leaves this host until `adit up{0}` succeeds or `adit down {interface}{0}` \
             opens it",
            home.flag()
        ),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::wgquick::Hooks;
    use crate::config::{Layers, Source};

    #[test]
    fn who_is_told_to_open_the_host_is_told_with_which_home() {
        let text = "[Interface]\nPrivateKey = eEBhN6cK2cF1bkjZlMVY4XlZ5LkVbPYMa1xgKPYo1Fk=\nAddress = 10.86.0.2/32\n\
                    [Peer]\nPublicKey = xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=\nAllowedIPs = 10.86.0.0/24\n";
        let file = WgQuick::parse(&Source::new("x.conf", text), Hooks::Refused).unwrap();
        let home = Home::new(Some(Path::new("/a"))).unwrap();
        let settings = ClientSettings::load(&home, &Layers::default(), Some(&file)).unwrap();
        let error =
            |lockdown: &str| asked_for(&file, &settings, Some(lockdown), &home).unwrap_err().to_string();
        assert!(error("adit lockdown on").contains("`adit lockdown off --home /a`"));
        assert!(!error("lockdown = true").contains("--home"), "what is to be changed is in the profile");
    }
}
