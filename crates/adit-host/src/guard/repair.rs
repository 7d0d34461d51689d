use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use crate::error::HostError;
use crate::firewall::{self, Firewall, Shown, passage};
use crate::guard::{Guard, Made};
use crate::monitor::HostEvent;
use crate::netlink::Netlink;
use crate::plan::{Change, Route};
use crate::{address, dns, link, route, rule};

/// What a guard may be asked to look at again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extent {
    /// Links, addresses, routes and rules.
    routing: bool,
    /// Our nftables tables.
    firewall: bool,
    /// The file that names the servers of names.
    resolver: bool,
    /// The tables that were touched last, and whether something was taken away from them: those need no look.
    cut: BTreeMap<String, bool>,
}

impl Extent {
    /// Everything.
    pub fn all() -> Extent {
        Extent { routing: true, firewall: true, resolver: true, cut: BTreeMap::new() }
    }

    /// What has to be looked at for both, `later` being the younger.
    pub fn and(mut self, later: Extent) -> Extent {
        self.routing |= later.routing;
        self.firewall |= later.firewall;
        self.resolver |= later.resolver;
        self.cut.extend(later.cut);
        self
    }

    /// Whether there is nothing to look at.
    pub fn is_nothing(&self) -> bool {
        !(self.routing || self.firewall || self.resolver)
    }
}

/// Another program that takes our tables away again and again is answered so often at a time.
const LOADS_MAX: usize = 4;

/// What was made again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repaired {
    /// As the plan prints it.
    pub what: String,
    /// When it was there again.
    pub at: Instant,
}

/// What came of a repair.
#[derive(Debug, Default)]
pub struct Repairs {
    /// What was made again.
    pub made: Vec<Repaired>,
    /// Why the rest could not be, each by itself.
    pub failures: Vec<HostError>,
}

impl Repaired {
    fn now(change: &Change) -> Repaired {
        Repaired { what: change.to_string(), at: Instant::now() }
    }
}

impl Guard {
    /// What `event` may have broken of what this guard made.
    pub fn concern_of(&self, event: &HostEvent) -> Extent {
        let any = |concerns: &dyn Fn(&Change) -> bool| self.entries.iter().any(|it| concerns(&it.change));
        let routing = |concerns| Extent { routing: concerns, ..Extent::default() };
        match event {
            HostEvent::Link { name, .. } | HostEvent::LinkGone { name } => {
                routing(any(&|change| matches!(change, Change::Link(it) if it.name == *name)))
            }
            HostEvent::Address { address, .. } => {
                routing(any(&|change| matches!(change, Change::Address(it) if it.address == *address)))
            }
            HostEvent::Route { table, destination, .. } => {
                let is_same =
                    |route: &Route| route.table == *table && route.destination.trunc() == destination.trunc();
                routing(any(&|change| matches!(change, Change::Route(it) if is_same(it))))
            }
            HostEvent::Rule { .. } => routing(any(&|change| matches!(change, Change::Rule(_)))),
            HostEvent::Firewall { table, cut } => {
                let is_in = |change: &Change| match change {
                    Change::Firewall(it) => it.table() == *table,
                    Change::Passage(it) => it.table == *table,
                    _ => false,
                };
                let is_twin = self.twins.are_in(table);
                match is_twin || any(&is_in) {
                    true => Extent {
                        firewall: true,
                        cut: BTreeMap::from([(table.clone(), *cut)]),
                        ..Extent::default()
                    },
                    false => Extent::default(),
                }
            }
            HostEvent::Resolver { .. } => Extent { resolver: self.names_servers(), ..Extent::default() },
            HostEvent::Lost => Extent::all(),
        }
    }

    /// Whether this guard has changed who answers questions for names, so that [`HostEvent::Resolver`] matters.
    pub fn names_servers(&self) -> bool {
        self.entries.iter().any(|it| matches!(&it.made, Some((_, Made::Dns(made))) if made.is_file()))
    }

    /// Whether what keeps traffic in stood complete at the last look.
    pub fn is_closed(&self) -> bool {
        let mut blocks = self.entries.iter().filter_map(|it| match &it.change {
            Change::Firewall(firewall) if firewall.blocks() => Some(firewall.table()),
            _ => None,
        });
        blocks.all(|table| self.shown.contains_key(&table))
    }

    /// What to look at every few seconds, whatever is told: the firewall, which others may take away in ways that the
    /// kernel does not tell, and what could not be made again so far.
    pub fn concern_of_time(&self) -> Extent {
        let firewall = self.entries.iter().any(|it| matches!(it.change, Change::Firewall(_)));
        Extent { firewall, ..self.unrepaired.clone() }
    }

    /// Makes again what others took away or changed, and says what that was.
    ///
    /// Sysctls and settings of a link other than whether it is up are left to whoever changed them. What others wrote
    /// into resolv.conf returns when the tunnel stops, in the place of what was there when it came.
    pub fn repair(&mut self, extent: &Extent) -> Repairs {
        let mut repairs = Repairs::default();
        if extent.firewall {
            self.repair_firewalls(&extent.cut, &mut repairs);
        }
        if extent.routing {
            let outcome = self.repair_routing(&mut repairs);
            self.unrepaired.routing = outcome.is_err();
            repairs.failures.extend(outcome.err());
        }
        if extent.resolver {
            let outcome = self.repair_resolver(&mut repairs.made);
            self.unrepaired.resolver = outcome.is_err();
            repairs.failures.extend(outcome.err());
        }
        if extent.firewall {
            self.hold();
        }
        repairs
    }

    /// A table that something was taken away from is loaded at once: to look first would leave the host open longer.
    /// One that cannot be loaded keeps no other from it, but where `nft` hangs, it would for the next one as well.
    fn repair_firewalls(&mut self, cut: &BTreeMap<String, bool>, repairs: &mut Repairs) {
        let Some(journal) = &self.journal else { return };
        let Repairs { made, failures } = repairs;
        let is_cut = |firewall: &Firewall| cut.get(&firewall.table()) == Some(&true);
        let firewalls = || {
            self.entries.iter().filter_map(|entry| match &entry.change {
                Change::Firewall(firewall) => Some((&entry.change, firewall)),
                _ => None,
            })
        };
        let mut lost = BTreeSet::new();
        for (change, firewall) in firewalls().filter(|(_, firewall)| is_cut(firewall)) {
            match firewall::load(firewall, journal.lock()) {
                Ok(()) => made.push(Repaired::now(change)),
                Err(error) => {
                    self.shown.remove(&firewall.table());
                    lost.insert(firewall.table());
                    failures.push(error);
                }
            }
            if hangs(failures) {
                return;
            }
        }
        for (change, firewall) in firewalls().filter(|(_, firewall)| !lost.contains(&firewall.table())) {
            if hangs(failures) {
                return;
            }
            let mut shown = match Shown::now(firewall) {
                Ok(shown) => shown,
                Err(error) => {
                    failures.push(error);
                    continue;
                }
            };
            let before = self.shown.get(&firewall.table());
            if before == Some(&shown) {
                continue;
            }
            let mut is_new = before.is_none() && shown.is_complete(firewall) || is_cut(firewall);
            let mut outcome = Ok(());
            // Others may have flushed it again meanwhile: how it looks is trusted only when all of it is there.
            for _ in 0..LOADS_MAX {
                if is_new && shown.is_complete(firewall) {
                    break;
                }
                let loaded = firewall::load(firewall, journal.lock());
                made.extend(loaded.is_ok().then(|| Repaired::now(change)));
                match loaded.and_then(|()| Shown::now(firewall)) {
                    Ok(now) => shown = now,
                    Err(error) => {
                        outcome = Err(error);
                        break;
                    }
                }
                is_new = true;
            }
            match outcome.is_ok() && shown.is_complete(firewall) {
                true => drop(self.shown.insert(firewall.table(), shown)),
                false => drop(self.shown.remove(&firewall.table())),
            }
            failures.extend(outcome.err());
        }
        for entry in &self.entries {
            let Change::Passage(it) = &entry.change else { continue };
            if hangs(failures) {
                return;
            }
            let outcome = passage::prepare(it).and_then(|missing| match missing {
                Some(missing) => passage::make_where_needed(&missing, journal.lock()),
                None => Ok(false),
            });
            match outcome {
                Ok(true) => made.push(Repaired::now(&entry.change)),
                Ok(false) => {}
                Err(error) => failures.push(error),
            }
        }
    }

    /// Fails with the last failure.
    fn repair_routing(&self, repairs: &mut Repairs) -> Result<(), HostError> {
        let mut netlink = Netlink::open()?;
        let tables = route::Tables::list(&mut netlink)?;
        let mut last = Ok(());
        for entry in &self.entries {
            let Some((_, made)) = &entry.made else { continue };
            match repair_routing(&mut netlink, &tables, &entry.change, made) {
                Ok(true) => repairs.made.push(Repaired::now(&entry.change)),
                Ok(false) => {}
                // The others must not go without repair because of one.
                Err(error) => repairs.failures.extend(std::mem::replace(&mut last, Err(error)).err()),
            }
        }
        last
    }

    fn repair_resolver(&mut self, repaired: &mut Vec<Repaired>) -> Result<(), HostError> {
        let Some(journal) = &mut self.journal else { return Ok(()) };
        for entry in &mut self.entries {
            let (Change::Dns(dns), Some((seq, Made::Dns(made)))) = (&entry.change, &mut entry.made) else {
                continue;
            };
            let Some(again) = dns::again(made, dns)? else { continue };
            let new_seq = journal.record([&Made::Dns(again.clone())])?.start;
            let old_seq = std::mem::replace(seq, new_seq);
            *made = again;
            journal.forget(old_seq)?;
            dns::make(made)?;
            repaired.push(Repaired::now(&entry.change));
        }
        Ok(())
    }
}

fn hangs(failures: &[HostError]) -> bool {
    failures.iter().any(HostError::leaves_doubt)
}

fn repair_routing(
    netlink: &mut Netlink,
    tables: &route::Tables,
    change: &Change,
    made: &Made,
) -> Result<bool, HostError> {
    match (change, made) {
        (Change::Link(wanted), Made::Link(made)) => {
            let is_down = link::find(netlink, &wanted.name)?.is_some_and(|it| wanted.up && !it.up);
            if is_down {
                link::raise(netlink, made)?;
            }
            Ok(is_down)
        }
        (Change::Address(wanted), Made::Address(_)) => match address::prepare(netlink, wanted)? {
            Some(missing) => address::make(netlink, &missing).map(|()| true),
            None => Ok(false),
        },
        (Change::Route(wanted), Made::Route(_)) => match route::prepare(netlink, tables, wanted) {
            Ok(None) => Ok(false),
            Ok(Some(missing)) => route::make(netlink, &missing).map(|()| true),
            // Somebody put another in its place.
            Err(HostError::Conflict { .. }) => route::make_in_place(netlink, wanted).map(|()| true),
            Err(error) => Err(error),
        },
        (Change::Rule(wanted), Made::Rule(_)) => match rule::prepare(netlink, wanted)? {
            Some(missing) => rule::make(netlink, &missing).map(|()| true),
            None => Ok(false),
        },
        _ => Ok(false),
    }
}
