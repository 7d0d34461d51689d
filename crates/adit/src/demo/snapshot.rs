use std::collections::BTreeSet;
use std::time::Duration;

use adit_lab::{Host, Invocation, wait_for};
use serde_json::Value;

const SAME: &str = "no difference";

/// Everything adit may change of a computer's network, in a form that can be compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Snapshot(BTreeSet<String>);

impl Snapshot {
    /// Of one computer of the little internet.
    pub(super) fn of_host(host: &Host) -> anyhow::Result<Self> {
        Self::take(|argv| host.command(argv.iter().copied()))
    }

    /// Of this machine, outside the demonstration.
    pub(super) fn of_machine() -> anyhow::Result<Self> {
        Self::take(|argv| Invocation::new(argv.iter().copied()))
    }

    fn take(run: impl Fn(&[&str]) -> Invocation) -> anyhow::Result<Self> {
        let list = |argv: &[&str]| -> anyhow::Result<Vec<Value>> {
            let output = run(argv).exec()?.stdout;
            Ok(if output.trim().is_empty() { Vec::new() } else { serde_json::from_str(&output)? })
        };
        let mut seen = BTreeSet::new();
        for link in list(&["ip", "-json", "address"])? {
            let name = link["ifname"].as_str().unwrap_or("?");
            seen.insert(format!("link {name}"));
            for address in link["addr_info"].as_array().into_iter().flatten() {
                seen.insert(format!("address {}/{} on {name}", address["local"], address["prefixlen"]));
            }
        }
        for family in ["-4", "-6"] {
            for route in list(&["ip", family, "-json", "route", "show", "table", "all"])? {
                // Without what the kernel counts down, such as the lifetime of an advertised route.
                let parts =
                    ["type", "dst", "gateway", "dev", "table", "metric"].map(|key| match &route[key] {
                        Value::Null => String::new(),
                        value => format!(
                            " {key} {}",
                            value.as_str().map_or_else(|| value.to_string(), str::to_owned)
                        ),
                    });
                seen.insert(format!("route{}", parts.concat()));
            }
            let rules = run(&["ip", family, "rule"]).exec()?.stdout;
            seen.extend(rules.lines().map(|line| format!("rule {family} {}", line.replace('\t', " "))));
        }
        let tables = run(&["nft", "list", "tables"]).exec()?.stdout;
        seen.extend(tables.lines().map(|line| format!("nftables {line}")));
        for key in ["ipv4/ip_forward", "ipv6/conf/all/forwarding", "ipv4/conf/all/src_valid_mark"] {
            // A kernel without IPv6 has no such files, before and after.
            let value = run(&["cat", &format!("/proc/sys/net/{key}")]).attempt()?.stdout;
            seen.insert(format!("sysctl {key} = {}", value.trim()));
        }
        Ok(Self(seen))
    }

    /// How the network that `look` sees differs from this one: `no difference`, once there is none, else the one that is
    /// still there after two seconds (the kernel takes interfaces down in its own time).
    pub(super) fn compared(&self, look: impl Fn() -> anyhow::Result<Self>) -> anyhow::Result<String> {
        let same = || look().ok().filter(|after| after == self).map(|_| SAME.to_owned());
        match wait_for("no difference", Duration::from_secs(2), same) {
            Ok(same) => Ok(same),
            Err(_) => Ok(self.difference(&look()?)),
        }
    }

    fn difference(&self, after: &Self) -> String {
        let gone = self.0.difference(&after.0).map(|line| format!("gone: {line}"));
        let new = after.0.difference(&self.0).map(|line| format!("new: {line}"));
        let lines: Vec<_> = gone.chain(new).collect();
        if lines.is_empty() { SAME.to_owned() } else { lines.join("\n                  ") }
    }
}

/// What [`Snapshot::compared`] says when nothing differs.
pub(super) fn same() -> &'static str {
    SAME
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_that_changed_says_what_came_and_went() {
        let snapshot = |lines: &[&str]| Snapshot(lines.iter().map(|line| (*line).to_owned()).collect());
        let before = snapshot(&["link lo", "link eth0"]);
        assert_eq!(before.compared(|| Ok(snapshot(&["link eth0", "link lo"]))).unwrap(), same());
        let text = before.compared(|| Ok(snapshot(&["link lo", "link x"]))).unwrap();
        assert!(
            text.contains("gone: link eth0") && text.contains("new: link x") && !text.contains("lo"),
            "{text}"
        );
    }

    #[test]
    fn a_network_that_settles_in_time_counts_as_unchanged() {
        let calls = std::cell::Cell::new(0);
        let before = Snapshot(BTreeSet::new());
        let settling = || {
            calls.set(calls.get() + 1);
            let leftover = (calls.get() < 3).then(|| "link tun".to_owned());
            Ok(Snapshot(leftover.into_iter().collect()))
        };
        assert_eq!(before.compared(settling).unwrap(), same());
    }
}
