//! The DNS servers that this host asks.

use std::fs;
use std::net::IpAddr;

/// Where systemd-resolved writes the servers that it asks itself.
const BEHIND_RESOLVED: &str = "/run/systemd/resolve/resolv.conf";
/// More are never asked (`resolv.conf(5)`, `MAXNS`).
const MOST: usize = 3;

/// Those that others can ask through this host as well: not loopback, not a neighbour on one link.
pub fn reachable_by_others() -> Vec<IpAddr> {
    let of = |path: &str| {
        let mut servers = servers(&fs::read_to_string(path).unwrap_or_default());
        servers.retain(is_for_others);
        servers.truncate(MOST);
        servers
    };
    let own = of("/etc/resolv.conf");
    if own.is_empty() { of(BEHIND_RESOLVED) } else { own }
}

/// The servers that a text like `/etc/resolv.conf` names.
pub fn servers(text: &str) -> Vec<IpAddr> {
    let words = |line: &str| {
        let mut words = line.split_whitespace();
        words.next().filter(|key| *key == "nameserver")?;
        words.next()?.parse().ok()
    };
    text.lines().filter_map(words).collect()
}

fn is_for_others(server: &IpAddr) -> bool {
    match server {
        IpAddr::V4(it) => !(it.is_loopback() || it.is_link_local() || it.is_unspecified()),
        IpAddr::V6(it) => !(it.is_loopback() || it.is_unicast_link_local() || it.is_unspecified()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_read_and_those_of_this_host_alone_left_out() {
        let text = "# x\nsearch example.org\nnameserver 9.9.9.9\nnameserver\t127.0.0.53 # stub\n\
                    nameserver fe80::1\nnameserver fd00::53\nnameserver 169.254.169.253\nnameserver nine\n";
        let mut found = servers(text);
        assert_eq!(found.len(), 5);
        found.retain(is_for_others);
        assert_eq!(found, ["9.9.9.9", "fd00::53"].map(|it| it.parse::<IpAddr>().unwrap()));
    }
}
