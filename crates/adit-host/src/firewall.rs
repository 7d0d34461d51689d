//! Tables of our own, loaded in one transaction each. Another table's drop is final in nftables, so nothing here can
//! open what Docker, ufw or firewalld close; it only closes, translates and marks.

pub(crate) mod block;
mod client;
mod gateway;
mod invited;
mod outage;
pub(crate) mod passage;
mod reach;
mod shown;
mod split;
mod table;
#[cfg(test)]
mod tests;

use std::fmt;
use std::fs::File;

use nftables::batch::Batch;
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use self::block::{KillSwitch, Lockdown};
pub use self::client::ClientFirewall;
pub use self::gateway::GatewayFirewall;
pub(crate) use self::gateway::PRIVATE;
pub use self::outage::OutageFirewall;
pub use self::passage::{Passage, foreign_forward_drops};
pub use self::reach::{Allowed, Exposed, Ports, Reach};
pub(crate) use self::shown::Shown;
pub use self::split::{Side, SplitFirewall, part_by_name};
use self::table::{Builder, json, table};
use crate::error::HostError;
use crate::guard::Outcome;
use crate::program;

/// No interface can have this name, as the tables of interfaces begin otherwise.
const LOCKDOWN_TABLE: &str = "adit-lockdown";

/// A table of our own, by what it is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
// A plan has one or two of them.
#[allow(clippy::large_enum_variant)]
pub enum Firewall {
    Gateway(GatewayFirewall),
    Client(ClientFirewall),
    Lockdown(Lockdown),
    Split(SplitFirewall),
    Outage(OutageFirewall),
}

/// A port we listen on, outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Listener {
    pub transport: Transport,
    pub port: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Transport {
    Udp,
    Tcp,
}
impl Transport {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Transport::Udp => "udp",
            Transport::Tcp => "tcp",
        }
    }
}

impl Firewall {
    /// The name of the table in the `inet` family.
    pub fn table(&self) -> String {
        match self {
            Firewall::Gateway(it) => named("adit_", &it.link),
            Firewall::Client(it) => named("adit_", &it.link),
            Firewall::Lockdown(_) => LOCKDOWN_TABLE.to_owned(),
            Firewall::Split(it) => split_table(&it.link),
            Firewall::Outage(_) => "adit_verify".to_owned(),
        }
    }

    /// Whether it keeps traffic in, so that taking it away lets traffic out.
    pub fn blocks(&self) -> bool {
        match self {
            Firewall::Gateway(_) | Firewall::Split(_) | Firewall::Outage(_) => false,
            Firewall::Client(it) => it.kill_switch.is_some(),
            Firewall::Lockdown(_) => true,
        }
    }

    /// The transaction that puts the table in place of any former one of its name, as `nft -j -f` reads it.
    pub fn ruleset(&self) -> Value {
        let mut table = Builder::new(self.table());
        match self {
            Firewall::Gateway(it) => it.build(&mut table),
            Firewall::Client(it) => it.build(&mut table),
            Firewall::Lockdown(it) => it.build(&mut table),
            Firewall::Split(it) => it.build(&mut table),
            Firewall::Outage(it) => it.build(&mut table),
        }
        json(table.batch)
    }
}
impl fmt::Display for Firewall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "table inet {}: ", self.table())?;
        match self {
            Firewall::Gateway(it) => it.fmt(f),
            Firewall::Client(it) => it.fmt(f),
            Firewall::Lockdown(it) => it.fmt(f),
            Firewall::Split(it) => it.fmt(f),
            Firewall::Outage(it) => it.fmt(f),
        }
    }
}

fn named(prefix: &str, link: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "_-.".contains(c) { c } else { '_' };
    format!("{prefix}{}", link.chars().map(plain).collect::<String>())
}

/// The table that parts the traffic of the tunnel `link`.
pub fn split_table(link: &str) -> String {
    named("adit_split_", link)
}

/// A table we loaded.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct MadeFirewall {
    table: String,
    #[serde(default)]
    blocks: bool,
}

impl MadeFirewall {
    pub(crate) fn new(firewall: &Firewall) -> MadeFirewall {
        MadeFirewall { table: firewall.table(), blocks: firewall.blocks() }
    }

    pub(crate) fn blocks(&self) -> bool {
        self.blocks
    }

    /// Whether loading `firewall` puts it in the place of this table.
    pub(crate) fn is_replaced_by(&self, firewall: &Firewall) -> bool {
        self.table == firewall.table() && self.blocks == firewall.blocks()
    }
}

impl fmt::Display for MadeFirewall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "table inet {}", self.table)
    }
}

pub(crate) fn load(firewall: &Firewall, lock: &File) -> Result<(), HostError> {
    run(&firewall.ruleset(), &format!("load the nftables table {}", firewall.table()), lock)
}

pub(crate) fn undo(made: &MadeFirewall, lock: &File) -> Result<Outcome, HostError> {
    let mut batch = Batch::new();
    batch.delete(table(&made.table));
    match run(&json(batch), &format!("remove the nftables table {}", made.table), lock) {
        Ok(()) => Ok(Outcome::Undone),
        Err(HostError::ProgramFailed { said, .. }) if said.contains("No such file or directory") => {
            Ok(Outcome::Gone)
        }
        Err(error) => Err(error),
    }
}

/// Whether our table of the tunnel `link` lets nothing out that it does not know: the kill switch.
pub fn closes_host(link: &str) -> bool {
    let table = named("adit_", link);
    let ruleset = list_ruleset().unwrap_or_default();
    let mut chains = ruleset["nftables"].as_array().into_iter().flatten().filter_map(|it| it.get("chain"));
    chains.any(|it| it["table"] == table.as_str() && it["hook"] == "output" && it["policy"] == "drop")
}

fn list_ruleset() -> Option<Value> {
    let nft = program::find("nft")?;
    let told = program::ask(&nft, &["-j", "list", "ruleset"], "list the nftables rules").ok()?;
    serde_json::from_slice(&told).ok()
}

fn nft_missing(doing: &str) -> HostError {
    HostError::ProgramMissing {
        doing: doing.to_owned(),
        program: "nft",
        install: "apt install nftables (Debian, Ubuntu), dnf install nftables (Fedora), pacman -S nftables (Arch)",
    }
}

/// One transaction: all of it is done, or none.
fn run(transaction: &Value, doing: &str, lock: &File) -> Result<(), HostError> {
    let Some(nft) = program::find("nft") else { return Err(nft_missing(doing)) };
    match program::run_locked(&nft, &["-j", "-f", "-"], &transaction.to_string(), doing, lock) {
        Err(HostError::ProgramFailed { said, .. }) if said.contains("Operation not permitted") => {
            Err(HostError::PermissionDenied { doing: doing.to_owned() })
        }
        result => result,
    }
}
