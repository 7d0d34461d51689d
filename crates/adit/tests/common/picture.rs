use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use adit_lab::{Host, wait_for};

/// Everything about a host that a service may change, by the command that shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture(BTreeMap<String, Vec<String>>);

const SIGHTS: &[&[&str]] = &[
    &["ip", "-j", "-p", "addr"],
    &["ip", "-j", "-p", "route", "show", "table", "all"],
    &["ip", "-j", "-p", "-6", "route", "show", "table", "all"],
    &["ip", "-j", "-p", "rule"],
    &["ip", "-j", "-p", "-6", "rule"],
    &["nft", "-j", "list", "ruleset"],
    &["sysctl", "-a", "-r", "^net\\.ipv[46]\\.(conf\\.|ip_forward)"],
    &["cat", "/etc/resolv.conf"],
    &["ss", "-lnHutp"],
];

impl Picture {
    pub fn of(host: &Host) -> Self {
        let look = |argv: &&[&str]| {
            let seen = host.attempt(argv.iter().copied()).unwrap().stdout;
            (argv.join(" "), seen.lines().map(str::to_owned).collect())
        };
        Self(SIGHTS.iter().map(look).collect())
    }

    /// Panics unless the host looks like this again within two seconds: the kernel takes devices away in its own time.
    pub fn assert_again(&self, host: &Host) {
        let again = wait_for("", Duration::from_secs(2), || (Self::of(host) == *self).then_some(()));
        if again.is_err() {
            panic!("{} is not as it was:\n{}", host.name(), self.difference(&Self::of(host)));
        }
    }

    /// Panics if the host looks like this: the control of a later [`assert_again`](Self::assert_again).
    pub fn assert_changed(&self, host: &Host) {
        assert_ne!(Self::of(host), *self, "{} did not change", host.name());
    }

    /// The lines that are new in `after`, but for those that `may_be_new`.
    pub fn changed_lines(&self, after: &Self, may_be_new: impl Fn(&str) -> bool) -> Vec<String> {
        let new = after.0.iter().flat_map(|(command, lines)| {
            let before = &self.0[command];
            lines.iter().filter(move |line| !before.contains(line)).map(move |line| (command, line))
        });
        new.filter(|(_, line)| !may_be_new(line))
            .map(|(command, line)| format!("{command}: {line}"))
            .collect()
    }

    fn difference(&self, after: &Self) -> String {
        let mut text = String::new();
        for (command, lines) in &self.0 {
            let now = &after.0[command];
            let gone = lines.iter().filter(|line| !now.contains(line)).map(|line| format!("  - {line}\n"));
            let new = now.iter().filter(|line| !lines.contains(line)).map(|line| format!("  + {line}\n"));
            let changes: String = gone.chain(new).collect();
            if lines != now {
                text += &format!("{command}\n{changes}");
            }
        }
        text
    }
}

/// The files below a directory, as sorted relative paths.
pub fn files_below(directory: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut left = vec![directory.to_owned()];
    while let Some(next) = left.pop() {
        for entry in std::fs::read_dir(&next).into_iter().flatten().flatten() {
            match entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                true => left.push(entry.path()),
                false => {
                    found.push(entry.path().strip_prefix(directory).unwrap_or(&next).display().to_string());
                }
            }
        }
    }
    found.sort();
    found
}
