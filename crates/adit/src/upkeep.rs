//! Keeps the host as the plan says: what others take away is made again, and told.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::SystemTime;

use adit_host::{Guard, HostEvent, RepairExtent};
use crossbeam_channel::{Receiver, TrySendError, bounded, never};
use serde::{Deserialize, Serialize};

use crate::instance::unix_secs;
use crate::status::words::span;

/// What an instance tells about the host it runs on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostFacts {
    /// Whether what does not go through the tunnel is kept in.
    pub kill_switch: bool,
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
            lines.push(("", last.made_again.split_whitespace().collect::<Vec<_>>().join(" ")));
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
}

const REPAIRS_KEPT: usize = 8;
/// More events than this at once are looked into as one.
const EVENTS_MAX: usize = 1024;

/// Watches the host, and repairs it.
#[derive(Debug)]
pub struct Upkeep {
    /// What `status` tells.
    pub facts: HostFacts,
    events: Receiver<HostEvent>,
    overflowed: Arc<AtomicBool>,
}

impl Default for Upkeep {
    fn default() -> Self {
        Self { facts: HostFacts::default(), events: never(), overflowed: Arc::default() }
    }
}

impl Upkeep {
    /// Begins to watch, in the calling thread's network namespace. Without watching the rest still works.
    pub fn watch(&mut self, guard: &mut Guard) {
        let (sender, events) = bounded(EVENTS_MAX);
        let overflowed = Arc::clone(&self.overflowed);
        let watching = adit_host::watch(move |event| match sender.try_send(event) {
            Ok(()) => true,
            Err(TrySendError::Full(_)) => {
                overflowed.store(true, Relaxed);
                true
            }
            Err(TrySendError::Disconnected(_)) => false,
        });
        match watching {
            Ok(()) => {
                self.events = events;
                self.facts.watched = true;
                // How our tables look now is what they are compared with later.
                self.repair(guard, RepairExtent::All);
            }
            Err(error) => tracing::warn!("changes that others make to the host go unnoticed: {error}"),
        }
    }

    /// Where events arrive; give each to [`Upkeep::tend`].
    pub fn events(&self) -> Receiver<HostEvent> {
        self.events.clone()
    }

    /// Nobody watches any more.
    pub fn stop(&mut self) {
        self.events = never();
        self.facts.watched = false;
    }

    /// Repairs what `event` may have broken, and what the events behind it may.
    pub fn tend(&mut self, guard: &mut Guard, event: &HostEvent) {
        let mut extent = guard.concern_of(event);
        for event in self.events.try_iter().take(EVENTS_MAX) {
            extent = RepairExtent::either(extent, guard.concern_of(&event));
        }
        if self.overflowed.swap(false, Relaxed) {
            extent = Some(RepairExtent::All);
        }
        if let Some(extent) = extent {
            self.repair(guard, extent);
        }
    }

    fn repair(&mut self, guard: &mut Guard, extent: RepairExtent) {
        let repaired = match guard.repair(extent) {
            Ok(repaired) => repaired,
            Err(error) => {
                tracing::error!("what others changed on this host could not be mended: {error}");
                return;
            }
        };
        let now = unix_secs(SystemTime::now());
        for made_again in repaired {
            tracing::warn!("another program changed the host's network; made again: {made_again}");
            self.facts.repairs += 1;
            self.facts.last_repairs.push_back(Repair { at_unix_secs: now, made_again });
        }
        while self.facts.last_repairs.len() > REPAIRS_KEPT {
            self.facts.last_repairs.pop_front();
        }
    }
}
