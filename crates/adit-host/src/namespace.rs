use std::fs;
use std::os::unix::fs::MetadataExt;

use adit_io::sys::NetNamespace;
use serde::{Deserialize, Serialize};

/// A network namespace of one run of this machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Place {
    pub(crate) boot: String,
    pub(crate) namespace: String,
    /// The number of a namespace that is gone is the next one's; its cookie is not. `None` where the kernel has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) cookie: Option<u64>,
}

impl Place {
    pub(crate) fn here() -> Place {
        Place { boot: boot(), namespace: current(), cookie: cookie() }
    }

    /// Whether the calling thread is there.
    pub(crate) fn is_here(&self) -> bool {
        self.boot == boot() && self.namespace == current() && may_be_here(self.cookie)
    }
}

/// What tells the namespace of the calling thread from others that had, or will have, its number.
pub(crate) fn cookie() -> Option<u64> {
    NetNamespace::cookie_here().ok()
}

/// Whether a namespace of our number and of `cookie` is that of the calling thread, as far as both are known.
pub(crate) fn may_be_here(cookie: Option<u64>) -> bool {
    cookie.zip(self::cookie()).is_none_or(|(theirs, ours)| theirs == ours)
}

/// The network namespace of the calling thread, as `net:[INODE]`.
pub(crate) fn current() -> String {
    fs::read_link("/proc/thread-self/ns/net")
        .map(|target| target.to_string_lossy().into_owned())
        .unwrap_or_else(|_| "unknown".to_owned())
}

/// Whether a process lives in the namespace, or `ip netns` keeps it by name.
pub(crate) fn is_alive(namespace: &str) -> bool {
    let inode = namespace.strip_prefix("net:[").and_then(|rest| rest.strip_suffix(']'));
    let Some(inode) = inode.and_then(|digits| digits.parse::<u64>().ok()) else { return false };
    let held_by_process = list("/proc").any(|entry| {
        fs::read_link(entry.path().join("ns/net")).is_ok_and(|target| target.to_string_lossy() == namespace)
    });
    held_by_process
        || list("/run/netns").any(|entry| fs::metadata(entry.path()).is_ok_and(|it| it.ino() == inode))
}

/// An identity that changes with every boot.
pub(crate) fn boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned()).unwrap_or_default()
}

fn list(directory: &str) -> impl Iterator<Item = fs::DirEntry> {
    fs::read_dir(directory).into_iter().flatten().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_namespace_we_live_in_is_alive_and_an_invented_one_is_not() {
        assert!(is_alive(&current()), "{}", current());
        assert!(!is_alive("net:[1]"));
        assert!(!is_alive("unknown"));
    }

    #[test]
    fn a_namespace_that_got_the_number_of_another_is_told_from_it() {
        let here = Place::here();
        assert!(here.is_here());
        let known = serde_json::to_string(&here).unwrap();
        assert_eq!(serde_json::from_str::<Place>(&known).unwrap(), here);
        // Written by an older adit, or under an older kernel.
        assert!(Place { cookie: None, ..here.clone() }.is_here());
        if let Some(ours) = here.cookie {
            assert!(!Place { cookie: Some(ours ^ 1), ..here.clone() }.is_here());
        }
        assert!(!Place { namespace: "net:[1]".to_owned(), ..here.clone() }.is_here());
        assert!(!Place { boot: "an-earlier-one".to_owned(), ..here }.is_here());
    }
}
