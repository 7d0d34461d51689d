//! A second copy of a kill switch that `nft flush ruleset` leaves alone.
//!
//! The kernel lets nobody but its owner change or delete a table with the `owner` flag, and takes the table away with
//! its owner. So an idle `nft` owns the copy while we live, and the plain table, which outlives us, stands beside it.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::table::{Builder, json};
use super::{ClientFirewall, Firewall, KillSwitch, Shown};
use crate::program;

/// Loading takes `nft` milliseconds.
const PATIENCE: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(5);

/// The copies of the kill switches of one guard.
#[derive(Debug, Default)]
pub(crate) struct Twins(Vec<Twin>);

impl Twins {
    /// Whether the table is one of the copies.
    pub(crate) fn are_in(&self, table: &str) -> bool {
        self.0.iter().any(|it| it.held.table() == table)
    }

    /// Takes away the copies of what is not among `firewalls`, and makes the missing ones. Without a copy the plain
    /// table still blocks.
    pub(crate) fn follow<'a>(&mut self, firewalls: impl Iterator<Item = &'a Firewall>) {
        let wanted: Vec<Held> = firewalls.filter_map(Held::of).collect();
        self.0.retain_mut(|twin| wanted.contains(&twin.held) && twin.is_alive());
        for held in wanted {
            if self.0.iter().any(|it| it.held == held) {
                continue;
            }
            let table = held.table();
            match Twin::start(held) {
                Ok(twin) => self.0.push(twin),
                Err(why) => tracing::warn!(
                    "the table {table}, which keeps the host closed when another program flushes nftables, \
                     could not be made: {why}"
                ),
            }
        }
    }
}

/// What a copy is of.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Held {
    link: String,
    fwmark: u32,
    kill_switch: KillSwitch,
}

impl Held {
    fn of(firewall: &Firewall) -> Option<Held> {
        let Firewall::Client(ClientFirewall { link, fwmark, kill_switch, .. }) = firewall else {
            return None;
        };
        let kill_switch = kill_switch.clone()?;
        Some(Held { link: link.clone(), fwmark: *fwmark, kill_switch })
    }

    /// It begins otherwise than every other table of ours.
    fn table(&self) -> String {
        super::named("adit-held_", &self.link)
    }
}

/// The copy, and the process that owns it.
#[derive(Debug)]
struct Twin {
    held: Held,
    nft: Child,
}

impl Twin {
    fn start(held: Held) -> Result<Twin, String> {
        let nft = program::find("nft").ok_or("nft is missing")?;
        let table = held.table();
        let mut rules = Builder::in_table(table.clone());
        held.kill_switch.build(&mut rules, &held.link, held.fwmark);
        let rules = json(rules.batch);
        // nft reads as text what is no JSON; in JSON it does not know the flag.
        let lines = format!("add table inet {table} {{ flags owner; }}\n{rules}\n");
        let child = Command::new(nft)
            .args(["-j", "-i"])
            .env_clear()
            .env("LC_ALL", "C")
            // It would keep a history of what it was told there.
            .env("HOME", "/dev/null")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .map_err(|error| error.to_string())?;
        let mut twin = Twin { held, nft: child };
        let stdin = twin.nft.stdin.as_mut().ok_or("its nft has no input")?;
        stdin.write_all(lines.as_bytes()).map_err(|error| error.to_string())?;
        let end = Instant::now() + PATIENCE;
        loop {
            let shown = Shown::of_table(&table).map_err(|error| error.to_string())?;
            if shown.has_all_of(&rules) {
                return Ok(twin);
            }
            if !twin.is_alive() || Instant::now() > end {
                return Err("nft did not take it".to_owned());
            }
            thread::sleep(PAUSE);
        }
    }

    fn is_alive(&mut self) -> bool {
        matches!(self.nft.try_wait(), Ok(None))
    }
}

impl Drop for Twin {
    fn drop(&mut self) {
        let _ = self.nft.kill();
        let _ = self.nft.wait();
    }
}
