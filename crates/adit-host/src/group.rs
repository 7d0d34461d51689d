//! Control groups (cgroup v2): what tells the packets of some processes from those of others.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::HostError;
use crate::guard::Outcome;
use crate::namespace;

/// Where nftables looks for control groups.
const ROOT: &str = "/sys/fs/cgroup";
/// Where cgroup v2 is while the older controllers have the root.
const BESIDE_V1: &str = "unified";
const PROCESSES: &str = "cgroup.procs";
const ATTEMPTS: u32 = 50;

/// A control group directly below the root of the hierarchy.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Group {
    /// Its directory, below `/sys/fs/cgroup`: how nftables calls it.
    pub path: String,
}

impl Group {
    /// The group of what goes beside the tunnel `link` of this network namespace.
    ///
    /// # Errors
    /// cgroup v2 is not there, or may not be written to.
    pub fn beside(link: &str) -> Result<Group, HostError> {
        let network: String = namespace::current().chars().filter(char::is_ascii_digit).collect();
        let name = format!("adit-beside-{link}-{network}");
        let is_here = |directory: &Path| directory.join("cgroup.controllers").is_file();
        if is_here(Path::new(ROOT)) {
            return Ok(Group { path: name });
        }
        if is_here(&Path::new(ROOT).join(BESIDE_V1)) {
            return Ok(Group { path: format!("{BESIDE_V1}/{name}") });
        }
        Err(HostError::NoGroups { root: ROOT })
    }

    /// What a process writes its number to, to be of the group.
    pub fn processes(&self) -> PathBuf {
        self.directory().join(PROCESSES)
    }

    fn directory(&self) -> PathBuf {
        Path::new(ROOT).join(&self.path)
    }
}

impl std::fmt::Display for Group {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of processes", self.directory().display())
    }
}

/// A group we made. One of the same name is ours from earlier.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MadeGroup {
    #[serde(flatten)]
    group: Group,
}

impl std::fmt::Display for MadeGroup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.group.fmt(f)
    }
}

pub(crate) fn exists(group: &Group) -> bool {
    group.directory().is_dir()
}

pub(crate) fn prepare(group: &Group) -> MadeGroup {
    MadeGroup { group: group.clone() }
}

pub(crate) fn make(made: &MadeGroup) -> Result<(), HostError> {
    let path = made.group.directory();
    match fs::create_dir(&path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(failed("make", &path, error)),
        _ => Ok(()),
    }
}

/// Its processes go on in the group above.
pub(crate) fn undo(made: &MadeGroup) -> Result<Outcome, HostError> {
    let path = made.group.directory();
    let above = path.parent().unwrap_or(Path::new(ROOT)).join(PROCESSES);
    for _ in 0..ATTEMPTS {
        for process in fs::read_to_string(path.join(PROCESSES)).unwrap_or_default().lines() {
            // One that has ended meanwhile cannot be moved, and need not.
            let _ = fs::write(&above, process);
        }
        match fs::remove_dir(&path) {
            Ok(()) => return Ok(Outcome::Undone),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Outcome::Gone),
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {}
            Err(error) => return Err(failed("remove", &path, error)),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(Outcome::LeftAlone(format!("{} has groups or processes of others in it", path.display())))
}

fn failed(doing: &'static str, path: &Path, source: io::Error) -> HostError {
    let next = match source.kind() {
        io::ErrorKind::ReadOnlyFilesystem => {
            ". Control groups may not be changed here: a container has them read-only unless it is told otherwise"
        }
        _ => "",
    };
    HostError::File { doing, path: path.to_owned(), source, next }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_named_after_its_tunnel_and_its_network_namespace() {
        // Where there is no cgroup v2 the error says so.
        match Group::beside("tun-0") {
            Ok(group) => {
                let name = group.path.rsplit('/').next().unwrap();
                let number = name.strip_prefix("adit-beside-tun-0-").unwrap();
                assert!(namespace::current().contains(number) && !number.is_empty(), "{name}");
                assert!(group.processes().ends_with(format!("{name}/cgroup.procs")));
            }
            Err(error) => assert!(error.to_string().contains("cgroup v2"), "{error}"),
        }
    }
}
