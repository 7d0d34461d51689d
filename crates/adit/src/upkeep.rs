//! Keeps the host as the plan says: what others take away is made again, and told.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime};

use adit_host::{Guard, HostEvent, MAIN_TABLE, RepairExtent};
use crossbeam_channel::{Receiver, TrySendError, bounded, never};
use serde::{Deserialize, Serialize};

use crate::instance::unix_secs;
use crate::status::words::span;

/// What an instance tells about the host it runs on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostFacts {
    /// Whether what does not go through the tunnel is kept in.
    pub kill_switch: bool,
    /// Whether the table that keeps it in is not there, although it is made again and again.
    #[serde(default)]
    pub kill_switch_missing: bool,
    /// Whether private networks are within reach beside the kill switch.
    pub allow_lan: bool,
    /// What stands in the tunnel's way here, each by its name.
    #[serde(default)]
    pub obstacles: Vec<String>,
    /// What is parted; null when everything allowed goes through the tunnel.
    #[serde(default)]
    pub split: Option<SplitFacts>,
    /// Whether changes that others make are noticed.
    pub watched: bool,
    /// How many changes of others were undone so far.
    pub repairs: u64,
    /// The last of them.
    pub last_repairs: VecDeque<Repair>,
}

impl HostFacts {
    /// For people: what each is called, and how it is.
    pub(crate) fn lines(&self, now_unix_secs: u64) -> Vec<(&'static str, String)> {
        let mut lines = Vec::new();
        match (self.kill_switch, self.allow_lan) {
            (true, _) if self.kill_switch_missing => lines.push((
                "kill switch",
                "its table is GONE: another program takes it away (`nft monitor` shows which)".to_owned(),
            )),
            (true, true) => lines.push(("kill switch", "on, private networks within reach".to_owned())),
            (true, false) => lines.push(("kill switch", "on".to_owned())),
            (false, _) => {}
        }
        lines.extend(self.obstacles.iter().map(|it| ("in the way", it.clone())));
        if let Some(split) = &self.split {
            lines.extend(split.lines());
        }
        if let Some(last) = self.last_repairs.back() {
            let ago = span(now_unix_secs.saturating_sub(last.at_unix_secs));
            let times = if self.repairs == 1 { "once".to_owned() } else { format!("{} times", self.repairs) };
            lines.push(("changed", format!("by others {times} and made again, {ago} ago:")));
            let made_again = last.made_again.split_whitespace().collect::<Vec<_>>().join(" ");
            lines.push(("", format!("{made_again} ({} ms after the change)", last.after_millis)));
        }
        lines
    }
}

/// What goes through a tunnel and what beside it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SplitFacts {
    /// Only these networks and domains go through it; none is all that the profile allows.
    pub include: Vec<String>,
    /// These networks and domains go beside it.
    pub exclude: Vec<String>,
    /// Where our own resolver notes the addresses of names, when names decide.
    pub resolver: Option<IpAddr>,
}

impl SplitFacts {
    fn lines(&self) -> Vec<(&'static str, String)> {
        let lists = [("only", &self.include), ("beside", &self.exclude)];
        let mut lines: Vec<_> = lists
            .into_iter()
            .filter(|(_, list)| !list.is_empty())
            .map(|(what, list)| (what, list.join(", ")))
            .collect();
        lines
            .extend(self.resolver.map(|at| ("names", format!("asked at {at}, which notes their addresses"))));
        lines
    }
}

/// A change by somebody else that was undone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repair {
    /// When, in seconds since 1970.
    pub at_unix_secs: u64,
    /// What was made again, as `adit plan` prints it.
    pub made_again: String,
    /// How long after the change was told.
    #[serde(default)]
    pub after_millis: u64,
}

/// A change on the host, and when the kernel told it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Noticed {
    /// What changed.
    pub event: HostEvent,
    /// When.
    pub at: Instant,
}

impl Noticed {
    fn now(event: HostEvent) -> Self {
        let at = match &event {
            HostEvent::Resolver { since } => *since,
            _ => Instant::now(),
        };
        Self { event, at }
    }
}

/// What changed beside what is ours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Others {
    /// Another program's firewall.
    pub firewall: bool,
    /// The networks that this host is in.
    pub networks: bool,
}

impl Others {
    fn of(event: &HostEvent) -> Self {
        Self {
            firewall: matches!(event, HostEvent::Firewall { table, .. } if !table.starts_with("adit")),
            networks: match event {
                HostEvent::Address { .. } => true,
                HostEvent::Route { table, gateway, .. } => *table == MAIN_TABLE && gateway.is_none(),
                _ => false,
            },
        }
    }

    fn and(self, other: Self) -> Self {
        Self { firewall: self.firewall || other.firewall, networks: self.networks || other.networks }
    }
}

const REPAIRS_KEPT: usize = 8;
/// More events than this at once are looked into as one.
const EVENTS_MAX: usize = 1024;

/// Between looks at what nothing was told about.
const BETWEEN_LOOKS: Duration = Duration::from_secs(4);

/// Watches the host, and repairs it.
#[derive(Debug)]
pub struct Upkeep {
    /// What `status` tells.
    pub facts: HostFacts,
    events: Receiver<Noticed>,
    overflowed: Arc<AtomicBool>,
    looked: Instant,
}

impl Default for Upkeep {
    fn default() -> Self {
        Self {
            facts: HostFacts::default(),
            events: never(),
            overflowed: Arc::default(),
            looked: Instant::now(),
        }
    }
}

impl Upkeep {
    /// Begins to watch, in the calling thread's network namespace. Without watching the rest still works.
    pub fn watch(&mut self, guard: &mut Guard) {
        let (sender, events) = bounded(EVENTS_MAX);
        let overflowed = Arc::clone(&self.overflowed);
        let tell = move |event| match sender.try_send(Noticed::now(event)) {
            Ok(()) => true,
            Err(TrySendError::Full(_)) => {
                overflowed.store(true, Relaxed);
                true
            }
            Err(TrySendError::Disconnected(_)) => false,
        };
        if guard.names_servers()
            && let Err(error) = adit_host::watch_resolver(tell.clone())
        {
            tracing::warn!("when others name other servers of names, that goes unnoticed: {error}");
        }
        match adit_host::watch(tell) {
            Ok(()) => {
                self.events = events;
                self.facts.watched = true;
                // How our tables look now is what they are compared with later.
                self.repair(guard, &RepairExtent::all(), Instant::now());
            }
            Err(error) => tracing::warn!("changes that others make to the host go unnoticed: {error}"),
        }
    }

    /// Where events arrive; give each to [`Upkeep::tend`].
    pub fn events(&self) -> Receiver<Noticed> {
        self.events.clone()
    }

    /// Nobody watches any more.
    pub fn stop(&mut self) {
        self.events = never();
        self.facts.watched = false;
    }

    /// Repairs what `noticed` may have broken, and what the changes behind it may; returns what else changed.
    pub fn tend(&mut self, guard: &mut Guard, noticed: &Noticed) -> Others {
        let mut extent = guard.concern_of(&noticed.event);
        let mut others = Others::of(&noticed.event);
        let mut since = noticed.at;
        for later in self.events.try_iter().take(EVENTS_MAX) {
            if extent.is_nothing() {
                since = later.at;
            }
            extent = extent.and(guard.concern_of(&later.event));
            others = others.and(Others::of(&later.event));
        }
        if self.overflowed.swap(false, Relaxed) {
            extent = RepairExtent::all();
        }
        if extent == RepairExtent::all() {
            others = Others { firewall: true, networks: true };
        }
        if !extent.is_nothing() {
            self.repair(guard, &extent, since);
        }
        others
    }

    /// Looks at what others may have taken away without a word.
    pub fn look(&mut self, guard: &mut Guard) {
        if self.facts.watched && self.looked.elapsed() >= BETWEEN_LOOKS {
            self.looked = Instant::now();
            self.repair(guard, &guard.concern_of_time(), Instant::now());
        }
    }

    fn repair(&mut self, guard: &mut Guard, extent: &RepairExtent, since: Instant) {
        let repairs = guard.repair(extent);
        self.facts.kill_switch_missing = self.facts.kill_switch && !guard.is_closed();
        for error in &repairs.failures {
            tracing::error!("what others changed on this host could not be mended: {error}");
        }
        let now = unix_secs(SystemTime::now());
        for again in repairs.made {
            let made_again = again.what;
            let after_millis = millis(again.at.saturating_duration_since(since));
            tracing::warn!(
                "another program changed the host's network; made again after {after_millis} ms: {made_again}"
            );
            self.facts.repairs += 1;
            self.facts.last_repairs.push_back(Repair { at_unix_secs: now, made_again, after_millis });
        }
        while self.facts.last_repairs.len() > REPAIRS_KEPT {
            self.facts.last_repairs.pop_front();
        }
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}
