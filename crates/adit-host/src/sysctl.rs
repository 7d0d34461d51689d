use std::fmt;
use std::fs;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::HostError;
use crate::guard::Outcome;
use crate::holds::Holds;
use crate::plan::Sysctl;

/// The interfaces whose IPv6 router advertisements stop being heard once IPv6 forwarding is on (`accept_ra` = 1).
pub fn links_accepting_router_advertisements() -> Vec<String> {
    let mut links: Vec<String> = conf_directories("net/ipv6/conf")
        .filter(|name| !matches!(name.as_str(), "all" | "default" | "lo"))
        .filter(|name| hears_router_advertisements(name))
        .collect();
    links.sort();
    links
}

/// Where another gateway has set 2 already, it is ours to hold as well.
fn hears_router_advertisements(link: &str) -> bool {
    let key = format!("net/ipv6/conf/{link}/accept_ra");
    match read(&key).as_deref() {
        Ok("1") => true,
        Ok("2") => Holds::lock().is_ok_and(|holds| holds.made(&Sysctl::new(key, "2")).is_some()),
        _ => false,
    }
}

pub(crate) const ARP_IGNORE: &str = "net.ipv4.conf.all.arp_ignore";

/// Whether any interface answers ARP for every address of this host, or would without a tunnel of ours.
pub fn answers_arp_for_all() -> bool {
    match read(ARP_IGNORE).as_deref() {
        Ok("0") => true,
        Ok("1") => Holds::lock().is_ok_and(|holds| holds.made(&Sysctl::new(ARP_IGNORE, "1")).is_some()),
        _ => false,
    }
}

/// Whether the kernel has IPv6, even if it is switched off.
pub fn has_ipv6() -> bool {
    read("net/ipv6/conf/all/disable_ipv6").is_ok()
}

/// Whether this host passes packets of others on.
pub fn forwards() -> bool {
    ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"]
        .iter()
        .any(|key| read(key).is_ok_and(|value| value != "0"))
}

/// Whether this host speaks IPv6 at all: it is neither missing from the kernel nor switched off.
pub fn ipv6_enabled() -> bool {
    read("net/ipv6/conf/all/disable_ipv6").is_ok_and(|value| value == "0")
}

/// A setting we changed, what it was, and what the kernel changes along with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MadeSysctl {
    #[serde(flatten)]
    sysctl: Sysctl,
    old: String,
    /// The values before, of the settings the kernel overwrites when this one is written.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    beside: Vec<Sysctl>,
}

impl fmt::Display for MadeSysctl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (was {})", self.sysctl, self.old)
    }
}

impl MadeSysctl {
    pub(crate) fn sysctl(&self) -> &Sysctl {
        &self.sysctl
    }

    /// Whether this change is what `wanted` says, however its key is written.
    pub(crate) fn makes(&self, wanted: &Sysctl) -> bool {
        let path = |key| path_of(key).ok();
        self.sysctl.value == wanted.value && path(&self.sysctl.key) == path(&wanted.key)
    }

    /// Whether this change made what `wanted` says, and it is still so.
    pub(crate) fn stands_as(&self, wanted: &Sysctl) -> bool {
        self.sysctl == *wanted && read(&wanted.key).is_ok_and(|value| value == wanted.value)
    }
}

pub(crate) fn prepare(sysctl: &Sysctl) -> Result<Option<MadeSysctl>, HostError> {
    let holds = Holds::lock();
    let old = read(&sysctl.key)?;
    let holds = match holds {
        Ok(holds) => holds,
        Err(error) if error.is_refused_by_file_system() && old == sysctl.value => return Ok(None),
        Err(error) => return Err(error),
    };
    if let Some(shared) = holds.made(sysctl) {
        return Ok(Some(shared.clone()));
    }
    if old == sysctl.value {
        return Ok(None);
    }
    let beside = written_along(&sysctl.key)
        .into_iter()
        .filter_map(|key| read(&key).ok().map(|value| Sysctl { key, value }))
        .collect();
    Ok(Some(MadeSysctl { sysctl: sysctl.clone(), old, beside }))
}

pub(crate) fn make(made: &MadeSysctl, journal: &Path) -> Result<(), HostError> {
    let mut holds = Holds::lock()?;
    holds.hold(made, journal)?;
    let written = write(&made.sysctl.key, &made.sysctl.value);
    if written.is_err() {
        holds.release(made, journal)?;
    }
    written
}

pub(crate) fn undo(made: &MadeSysctl, journal: &Path) -> Result<Outcome, HostError> {
    let mut holds = Holds::lock()?;
    let others = holds.others(made, journal)?;
    // A kill between the two leaves the hold, which the journal's undoing releases.
    let outcome = match others.first() {
        Some(other) => Outcome::Shared(format!("{} stays: {} needs it too", made.sysctl, other.display())),
        None => put_back(made)?,
    };
    holds.release(made, journal)?;
    Ok(outcome)
}

fn put_back(made: &MadeSysctl) -> Result<Outcome, HostError> {
    let key = &made.sysctl.key;
    let Ok(now) = read(key) else { return Ok(Outcome::Gone) };
    if now == made.old {
        return Ok(Outcome::Gone);
    }
    if now != made.sysctl.value {
        return Ok(Outcome::LeftAlone(format!("{key} is now {now}, no longer our {}", made.sysctl.value)));
    }
    let untouched =
        written_along(key).into_iter().filter_map(|key| read(&key).ok().map(|value| (key, value)));
    let untouched: Vec<(String, String)> = untouched.collect();
    write(key, &made.old)?;
    for (key, now) in untouched {
        let before = made.beside.iter().find(|it| it.key == key).map(|it| it.value.as_str());
        let wanted = match before {
            _ if now != forced_value(&key, &made.sysctl.value) => now.as_str(),
            Some(before) => before,
            None => continue,
        };
        if read(&key).is_ok_and(|value| value != wanted) {
            write(&key, wanted)?;
        }
    }
    Ok(Outcome::Undone)
}

/// Writes a value and returns the one before.
pub(crate) fn exchange(key: &str, value: &str) -> Result<String, HostError> {
    let old = read(key)?;
    write(key, value)?;
    Ok(old)
}

pub(crate) fn write(key: &str, value: &str) -> Result<(), HostError> {
    let path = path_of(key)?;
    fs::write(&path, value).map_err(|error| HostError::file("set", &path, error))
}

pub(crate) fn read(key: &str) -> Result<String, HostError> {
    let path = path_of(key)?;
    let value = fs::read_to_string(&path).map_err(|error| HostError::file("read", &path, error))?;
    Ok(value.trim_end().to_owned())
}

/// What else the kernel writes: turning forwarding on or off does so for every interface, and the IPv4 switch
/// also flips whether redirects are accepted.
fn written_along(key: &str) -> Vec<String> {
    let (directory, also) = match key.replace('.', "/").as_str() {
        "net/ipv4/ip_forward" | "net/ipv4/conf/all/forwarding" => {
            ("net/ipv4/conf", Some(ACCEPT_REDIRECTS.to_owned()))
        }
        "net/ipv6/conf/all/forwarding" => ("net/ipv6/conf", None),
        _ => return Vec::new(),
    };
    let each = conf_directories(directory)
        .filter(|name| name != "all")
        .map(|name| format!("{directory}/{name}/forwarding"));
    let mut keys: Vec<String> = each.chain(also).collect();
    keys.sort();
    keys
}

const ACCEPT_REDIRECTS: &str = "net/ipv4/conf/all/accept_redirects";

/// The value a setting of [`written_along`] gets when the switch is written.
fn forced_value<'a>(key: &str, switch: &'a str) -> &'a str {
    match (key, switch) {
        (ACCEPT_REDIRECTS, "0") => "1",
        (ACCEPT_REDIRECTS, _) => "0",
        _ => switch,
    }
}

fn conf_directories(key: &str) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(Path::new("/proc/sys").join(key)).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned())
}

fn path_of(key: &str) -> Result<PathBuf, HostError> {
    let bad = || HostError::BadSysctlKey { key: key.to_owned() };
    let relative = PathBuf::from(match key.contains('/') {
        true => key.to_owned(),
        false => key.replace('.', "/"),
    });
    let plain = relative.components().all(|it| matches!(it, Component::Normal(_)));
    match plain && !relative.as_os_str().is_empty() {
        true => Ok(Path::new("/proc/sys").join(relative)),
        false => Err(bad()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_never_leads_out_of_proc_sys() {
        assert_eq!(path_of("net.ipv4.ip_forward").unwrap(), Path::new("/proc/sys/net/ipv4/ip_forward"));
        assert_eq!(
            path_of("net/ipv6/conf/eth0.7/accept_ra").unwrap(),
            Path::new("/proc/sys/net/ipv6/conf/eth0.7/accept_ra")
        );
        for key in ["", "/etc/passwd", "net/../../etc/passwd", "..", "net/ipv4/conf/../../x"] {
            assert!(matches!(path_of(key), Err(HostError::BadSysctlKey { .. })), "{key}");
        }
    }

    #[test]
    fn the_ipv4_switch_takes_redirects_along_inverted() {
        let along = written_along("net.ipv4.ip_forward");
        assert!(along.iter().any(|key| key == ACCEPT_REDIRECTS), "{along:?}");
        assert!(along.iter().any(|key| key == "net/ipv4/conf/default/forwarding"), "{along:?}");
        assert_eq!(forced_value(ACCEPT_REDIRECTS, "1"), "0");
        assert_eq!(forced_value("net/ipv4/conf/lo/forwarding", "1"), "1");
        assert!(written_along("net.ipv4.conf.all.src_valid_mark").is_empty());
    }
}
