//! Who is told about name servers: systemd-resolved, NetworkManager, resolvconf, or `/etc/resolv.conf` itself, in this
//! order; each only where resolv.conf shows that programs really ask it.

mod file;
mod networkmanager;
mod resolvconf;
mod resolved;
mod watch;

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use self::file::OldFile;
pub use self::watch::watch as watch_resolver;
use crate::bus::{Bus, Value};
use crate::error::HostError;
use crate::guard::Outcome;
use crate::plan::Dns;
use crate::program;

const RESOLV_CONF: &str = "/etc/resolv.conf";

/// What was made of the resolver's settings, by whom, and what they were.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "backend", rename_all = "snake_case")]
pub(crate) enum MadeDns {
    Resolved { dns: Dns },
    NetworkManager { dns: Dns, old: Value },
    Resolvconf { dns: Dns, name: String },
    File { path: PathBuf, old: OldFile, ours: String },
}

impl fmt::Display for MadeDns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MadeDns::Resolved { dns } => write!(f, "{dns} (systemd-resolved)"),
            MadeDns::NetworkManager { dns, .. } => write!(f, "{dns} (NetworkManager)"),
            MadeDns::Resolvconf { dns, .. } => write!(f, "{dns} (resolvconf)"),
            MadeDns::File { path, .. } => write!(f, "{}", path.display()),
        }
    }
}

impl MadeDns {
    /// Who is told.
    pub(crate) fn by(&self) -> String {
        match self {
            MadeDns::Resolved { .. } => "systemd-resolved".to_owned(),
            MadeDns::NetworkManager { .. } => "NetworkManager".to_owned(),
            MadeDns::Resolvconf { .. } => "resolvconf".to_owned(),
            MadeDns::File { path, .. } => path.display().to_string(),
        }
    }

    /// Whether it is a file that anybody may write, and that is watched therefore.
    pub(crate) fn is_file(&self) -> bool {
        matches!(self, MadeDns::File { .. })
    }

    /// Whether it outlives a reboot.
    pub(crate) fn is_on_disk(&self) -> bool {
        matches!(self, MadeDns::File { .. } | MadeDns::NetworkManager { .. })
    }
}

pub(crate) fn prepare(dns: &Dns) -> Result<Option<MadeDns>, HostError> {
    if dns.servers.is_empty() {
        return Ok(None);
    }
    let dns = dns.clone();
    Ok(Some(match Backend::choose(&Facts::gather()) {
        Backend::Resolved => MadeDns::Resolved { dns },
        Backend::NetworkManager => MadeDns::NetworkManager { old: networkmanager::settings(&dns)?, dns },
        Backend::Resolvconf => MadeDns::Resolvconf { name: resolvconf::name(&dns.link), dns },
        Backend::File => file::look_at(Path::new(RESOLV_CONF), &dns)?,
    }))
}

pub(crate) fn make(made: &MadeDns) -> Result<(), HostError> {
    match made {
        MadeDns::Resolved { dns } => resolved::make(dns),
        MadeDns::NetworkManager { dns, .. } => networkmanager::make(dns),
        MadeDns::Resolvconf { dns, name } => resolvconf::make(name, &file::text(dns)),
        MadeDns::File { path, old, ours } => file::make(path, old, ours),
    }
}

/// What to make in the place of `made`, when somebody else has written there; what they wrote is what returns later.
pub(crate) fn again(made: &MadeDns, dns: &Dns) -> Result<Option<MadeDns>, HostError> {
    match made {
        MadeDns::File { path, old, ours } => file::again(path, old, ours, dns),
        _ => Ok(None),
    }
}

pub(crate) fn undo(made: &MadeDns) -> Result<Outcome, HostError> {
    match made {
        MadeDns::Resolved { dns } => resolved::undo(dns),
        MadeDns::NetworkManager { dns, old } => networkmanager::undo(dns, old),
        MadeDns::Resolvconf { name, .. } => resolvconf::undo(name),
        MadeDns::File { path, old, ours } => file::undo(path, old, ours),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Backend {
    Resolved,
    NetworkManager,
    Resolvconf,
    File,
}

/// What decides who must be told about name servers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Facts {
    /// Something is mounted over resolv.conf: `ip netns exec` and containers do so, and then it is ours alone.
    mounted_over: bool,
    /// Where resolv.conf leads when it is a symlink.
    target: Option<PathBuf>,
    content: String,
    /// Who answers on the system bus.
    resolved: bool,
    network_manager: bool,
    resolvconf: bool,
}

impl Facts {
    fn gather() -> Facts {
        let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap_or_default();
        let mut facts = Facts {
            mounted_over: mounts.lines().any(|line| line.split(' ').nth(4) == Some(RESOLV_CONF)),
            target: fs::read_link(RESOLV_CONF).ok().map(|target| Path::new("/etc").join(target)),
            content: fs::read(RESOLV_CONF)
                .map(|it| String::from_utf8_lossy(&it).into_owned())
                .unwrap_or_default(),
            resolvconf: program::find("resolvconf").is_some(),
            ..Facts::default()
        };
        // Nobody waits for a bus whose services are not asked.
        let needs_bus = !facts.mounted_over && (facts.asks_resolved() || facts.asks_network_manager());
        if needs_bus && let Ok(mut bus) = Bus::open() {
            facts.resolved = bus.has(resolved::SERVICE);
            facts.network_manager = bus.has(networkmanager::SERVICE);
        }
        facts
    }

    fn leads_to(&self, needle: &str) -> bool {
        self.target.as_ref().is_some_and(|target| target.to_string_lossy().contains(needle))
    }

    fn is_generated_by(&self, name: &str) -> bool {
        self.content.lines().any(|line| line.starts_with('#') && line.contains(name))
    }

    fn asks_resolved(&self) -> bool {
        let stub =
            || self.content.lines().any(|line| line.split_whitespace().eq(["nameserver", "127.0.0.53"]));
        self.leads_to("systemd/resolve") || self.leads_to("systemd/resolv.conf") || stub()
    }

    fn asks_network_manager(&self) -> bool {
        self.leads_to("NetworkManager/") || self.is_generated_by("NetworkManager")
    }

    fn asks_resolvconf(&self) -> bool {
        self.leads_to("resolvconf/") || self.is_generated_by("resolvconf")
    }
}

impl Backend {
    /// A manager is told only when resolv.conf shows that programs really ask it; a file that somebody wrote by hand
    /// wins over any manager that happens to be installed.
    fn choose(facts: &Facts) -> Backend {
        match () {
            () if facts.mounted_over => Backend::File,
            () if facts.resolved && facts.asks_resolved() => Backend::Resolved,
            () if facts.network_manager && facts.asks_network_manager() => Backend::NetworkManager,
            () if facts.resolvconf && facts.asks_resolvconf() => Backend::Resolvconf,
            () => Backend::File,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manager_is_told_only_when_resolv_conf_leads_to_it() {
        let all = Facts { resolved: true, network_manager: true, resolvconf: true, ..Facts::default() };
        let stub =
            Facts { target: Some("/etc/../run/systemd/resolve/stub-resolv.conf".into()), ..all.clone() };
        assert_eq!(Backend::choose(&stub), Backend::Resolved);
        let by_address = Facts { content: "nameserver 127.0.0.53\n".into(), ..all.clone() };
        assert_eq!(Backend::choose(&by_address), Backend::Resolved);
        let by_manager = Facts { content: "# Generated by NetworkManager\n".into(), ..all.clone() };
        assert_eq!(Backend::choose(&by_manager), Backend::NetworkManager);
        let openresolv =
            Facts { content: "# Generated by resolvconf\nnameserver 1.1.1.1".into(), ..all.clone() };
        assert_eq!(Backend::choose(&openresolv), Backend::Resolvconf);
        let debian = Facts { target: Some("/etc/resolvconf/run/resolv.conf".into()), ..all.clone() };
        assert_eq!(Backend::choose(&debian), Backend::Resolvconf);
        let by_hand = Facts { content: "nameserver 9.9.9.9\n".into(), ..all.clone() };
        assert_eq!(Backend::choose(&by_hand), Backend::File);
        assert_eq!(Backend::choose(&Facts { mounted_over: true, ..stub.clone() }), Backend::File);
        assert_eq!(Backend::choose(&Facts { resolved: false, ..stub }), Backend::File);
        assert_eq!(Backend::choose(&Facts { network_manager: false, ..by_manager }), Backend::File);
    }
}
