//! What the processes of a control group send goes beside the tunnel.
//!
//! nftables' JSON has no word for the depth of a group, so this table is loaded as text. The questions of these
//! processes to the tunnel's name servers go through the tunnel all the same: outside nobody answers them.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::group::Group;

/// Sends the packets of a group's processes another way.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct GroupFirewall {
    /// The tunnel.
    pub link: String,
    /// Our own inside addresses.
    pub addresses: Vec<IpAddr>,
    /// Whose packets.
    pub group: Group,
    /// The mark that makes a packet go beside the tunnel: the one of our own sockets.
    pub mark: u32,
    /// The name servers that are asked through the tunnel.
    pub name_servers: Vec<IpAddr>,
}

impl GroupFirewall {
    /// The chains and the rules of [`script`](Self::script).
    pub(super) fn size(&self) -> (usize, usize) {
        let families = |addresses: &[IpAddr]| {
            [true, false].into_iter().filter(|four| addresses.iter().any(|it| it.is_ipv4() == *four)).count()
        };
        (4, 3 + families(&self.name_servers) + families(&self.addresses))
    }

    /// The transaction, as `nft -f` reads it.
    pub(super) fn script(&self, table: &str) -> String {
        let mark = self.mark;
        let link = &self.link;
        let path = &self.group.path;
        let mut output: Vec<String> = by_family(&self.name_servers)
            .map(|(ip, servers)| {
                format!("meta l4proto {{ tcp, udp }} th dport 53 {ip} daddr {{ {servers} }} return")
            })
            .collect();
        // All groups are directly below the root.
        output.push(format!("socket cgroupv2 level 1 \"{path}\" meta mark set {mark}"));
        let ours = by_family(&self.addresses).map(|(ip, own)| {
            format!(
                "oifname != {{ \"lo\", \"{link}\" }} meta mark {mark} {ip} saddr {{ {own} }} masquerade fully-random"
            )
        });
        let chains = [
            ("output", "type route hook output priority mangle", output),
            (
                "prerouting",
                "type filter hook prerouting priority mangle",
                vec![format!("ct mark {mark} meta mark set {mark}")],
            ),
            (
                "keep",
                "type filter hook postrouting priority mangle",
                vec![format!("meta mark {mark} ct mark set {mark}")],
            ),
            ("postrouting", "type nat hook postrouting priority srcnat", ours.collect()),
        ];
        let mut script =
            format!("add table inet {table}\ndelete table inet {table}\ntable inet {table} {{\n");
        for (name, hook, rules) in chains {
            script.push_str(&format!("chain {name} {{\n{hook}; policy accept;\n"));
            rules.iter().for_each(|rule| script.push_str(&format!("{rule}\n")));
            script.push_str("}\n");
        }
        script.push_str("}\n");
        script
    }
}

/// The word for each IP version that there is an address of, and its addresses.
fn by_family(addresses: &[IpAddr]) -> impl Iterator<Item = (&'static str, String)> + '_ {
    [("ip", true), ("ip6", false)].into_iter().filter_map(|(word, is_four)| {
        let own: Vec<String> =
            addresses.iter().filter(|it| it.is_ipv4() == is_four).map(ToString::to_string).collect();
        (!own.is_empty()).then(|| (word, own.join(", ")))
    })
}

impl fmt::Display for GroupFirewall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "what {} sends goes beside {} with mark {:#x}", self.group, self.link, self.mark)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_are_asked_through_the_tunnel_and_everything_else_is_marked() {
        let firewall = GroupFirewall {
            link: "adit0".into(),
            addresses: vec!["10.9.0.2".parse().unwrap(), "fd00:9::2".parse().unwrap()],
            group: Group { path: "unified/some-group".into() },
            mark: 0xca6c,
            name_servers: vec!["10.9.0.1".parse().unwrap()],
        };
        let script = firewall.script("adit_beside_adit0");
        let at = |part: &str| script.find(part).unwrap_or_else(|| panic!("{part}: {script}"));
        assert!(at("ip daddr { 10.9.0.1 } return") < at("socket cgroupv2 level 1 \"unified/some-group\""));
        let rules = script.lines().filter(|line| line.contains("mark") || line.ends_with("return"));
        assert_eq!((script.matches("chain ").count(), rules.count()), firewall.size());
    }
}
