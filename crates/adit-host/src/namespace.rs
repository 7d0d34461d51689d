use std::fs;
use std::os::unix::fs::MetadataExt;

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
}
