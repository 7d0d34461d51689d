//! Tables of our own, loaded in one transaction each. Another table's drop is final in nftables, so nothing here can
//! open what Docker, ufw or firewalld close; it only closes, translates and marks.

mod beside;
pub(crate) mod block;
mod clamp;
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
mod twin;

use std::fmt::{self, Write as _};
use std::fs::File;

use nftables::batch::Batch;
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use self::beside::GroupFirewall;
pub use self::block::{KillSwitch, Lockdown};
pub use self::clamp::ClampFirewall;
pub use self::client::ClientFirewall;
pub use self::gateway::GatewayFirewall;
pub(crate) use self::gateway::PRIVATE;
pub use self::outage::OutageFirewall;
pub use self::passage::{Passage, foreign_forward_drops};
pub use self::reach::{Allowed, Exposed, Ports, Reach};
pub(crate) use self::shown::Shown;
pub use self::split::{Side, SplitFirewall, part_by_name};
use self::table::{Builder, json, table};
pub(crate) use self::twin::Twins;
use crate::error::HostError;
use crate::guard::Outcome;
use crate::program;

/// No interface can have this name, as the tables of interfaces begin otherwise.
const LOCKDOWN_TABLE: &str = "adit-lockdown";

/// The mark of packets that may leave during lockdown. It takes `CAP_NET_ADMIN` to set one, or `CAP_NET_RAW` (Linux 5.17).
pub const LOCKDOWN_MARK: u32 = 0x00ad_17ff;

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
    Group(GroupFirewall),
    Clamp(ClampFirewall),
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
            Firewall::Gateway(it) => link_table(&it.link),
            Firewall::Client(it) => link_table(&it.link),
            Firewall::Lockdown(_) => LOCKDOWN_TABLE.to_owned(),
            Firewall::Split(it) => split_table(&it.link),
            Firewall::Outage(_) => OUTAGE_TABLE.to_owned(),
            Firewall::Group(it) => named(BESIDE, &it.link),
            Firewall::Clamp(it) => named(MSS, &it.link),
        }
    }

    /// Whether it keeps traffic in, so that taking it away lets traffic out.
    pub fn blocks(&self) -> bool {
        match self {
            Firewall::Gateway(_) | Firewall::Split(_) | Firewall::Outage(_) => false,
            Firewall::Group(_) | Firewall::Clamp(_) => false,
            Firewall::Client(it) => it.kill_switch.is_some(),
            Firewall::Lockdown(_) => true,
        }
    }

    /// The transaction that puts the table in place of any former one of its name.
    pub(crate) fn transaction(&self) -> Transaction {
        match self {
            Firewall::Group(it) => Transaction::Text(it.script(&self.table())),
            _ => Transaction::Json(self.ruleset()),
        }
    }

    /// How many chains and rules it has.
    pub(crate) fn size(&self) -> (usize, usize) {
        if let Firewall::Group(it) = self {
            return it.size();
        }
        let ruleset = self.ruleset();
        let objects = || ruleset["nftables"].as_array().into_iter().flatten();
        let count = |kind: &str| objects().filter(|it| it.pointer(&format!("/add/{kind}")).is_some()).count();
        (count("chain"), count("rule"))
    }

    /// The transaction, as `nft -j -f` reads it; of a group's table, which JSON has no words for, only the frame.
    pub fn ruleset(&self) -> Value {
        let mut table = Builder::new(self.table());
        match self {
            Firewall::Gateway(it) => it.build(&mut table),
            Firewall::Client(it) => it.build(&mut table),
            Firewall::Lockdown(it) => it.build(&mut table),
            Firewall::Split(it) => it.build(&mut table),
            Firewall::Outage(it) => it.build(&mut table),
            Firewall::Group(_) => {}
            Firewall::Clamp(it) => it.build(&mut table),
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
            Firewall::Group(it) => it.fmt(f),
            Firewall::Clamp(it) => it.fmt(f),
        }
    }
}

const OUTAGE_TABLE: &str = "adit_verify";
const SPLIT: &str = "adit_split_";
const BESIDE: &str = "adit_beside_";
const MSS: &str = "adit_mss_";

/// The table of the tunnel or gateway `link`. One whose link is called like the table of another, as `split_x` is, begins
/// otherwise.
fn link_table(link: &str) -> String {
    let name = named("adit_", link);
    let is_of_another = name == OUTAGE_TABLE || [SPLIT, BESIDE, MSS].iter().any(|it| name.starts_with(it));
    if is_of_another { named("adit-link_", link) } else { name }
}

/// No two links have the same name: what nftables takes in no name of a table stands there by its number, after the one
/// character that it takes and no link has.
fn named(prefix: &str, link: &str) -> String {
    let mut name = prefix.to_owned();
    for c in link.chars() {
        match c.is_ascii_alphanumeric() || "_-.".contains(c) {
            true => name.push(c),
            // Writing to a string cannot fail.
            false => drop(write!(name, "/{:x}/", u32::from(c))),
        }
    }
    name
}

/// The table that parts the traffic of the tunnel `link`.
pub fn split_table(link: &str) -> String {
    named(SPLIT, link)
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
    let doing = format!("load the nftables table {}", firewall.table());
    feed(&firewall.transaction(), &doing, lock)
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

/// Whether the kernel has our table of the tunnel `link` that lets nothing in or out that it does not know: the kill
/// switch.
pub fn closes_host(link: &str) -> bool {
    closes(&link_table(link))
}

/// Whether the kernel has the table of [`Lockdown`].
pub fn is_locked_down() -> bool {
    closes(LOCKDOWN_TABLE)
}

/// Whether a table is there that drops in every direction what it does not know. What cannot be seen is not there.
fn closes(table: &str) -> bool {
    let ruleset = list_ruleset().unwrap_or_default();
    let chains = || ruleset["nftables"].as_array().into_iter().flatten().filter_map(|it| it.get("chain"));
    let is_closed = |hook: &&str| {
        chains().any(|it| {
            it["family"] == "inet" && it["table"] == table && it["hook"] == **hook && it["policy"] == "drop"
        })
    };
    ["output", "input", "forward", "postrouting"].iter().all(is_closed)
}

/// Has a table that should close the host do so again where others took it away: as during lockdown, until its tunnel
/// comes and puts its own in this place.
pub(crate) fn close_again(made: &MadeFirewall, lock: &File) -> Result<(), HostError> {
    if closes(&made.table) {
        return Ok(());
    }
    tracing::warn!("another program took away what kept this host closed ({made}); it is closed again");
    let mut table = Builder::new(made.table.clone());
    Lockdown { fwmark: LOCKDOWN_MARK, allow_lan: false }.build(&mut table);
    run(&json(table.batch), &format!("load the nftables table {}", made.table), lock)
}

/// Whether tables can be loaded at all.
pub fn nft_is_installed() -> bool {
    program::find("nft").is_some()
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

/// What nft is given: all of it is done, or none.
#[derive(Clone, Debug)]
pub(crate) enum Transaction {
    Json(Value),
    Text(String),
}

fn run(transaction: &Value, doing: &str, lock: &File) -> Result<(), HostError> {
    feed(&Transaction::Json(transaction.clone()), doing, lock)
}

fn feed(transaction: &Transaction, doing: &str, lock: &File) -> Result<(), HostError> {
    let Some(nft) = program::find("nft") else { return Err(nft_missing(doing)) };
    let outcome = match transaction {
        Transaction::Json(json) => {
            program::run_locked(&nft, &["-j", "-f", "-"], &json.to_string(), doing, lock)
        }
        Transaction::Text(text) => program::run_locked(&nft, &["-f", "-"], text, doing, lock),
    };
    match outcome {
        Err(HostError::ProgramFailed { said, .. }) if said.contains("Operation not permitted") => {
            Err(HostError::PermissionDenied { doing: doing.to_owned() })
        }
        result => result,
    }
}
