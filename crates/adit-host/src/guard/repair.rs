use std::collections::BTreeMap;
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
    pub fn repair(&mut self, extent: &Extent) -> Result<Vec<Repaired>, HostError> {
        let mut repaired = Vec::new();
        let mut failures = Vec::new();
        if extent.firewall {
            failures.extend(self.repair_firewalls(&extent.cut, &mut repaired).err());
        }
        if extent.routing {
            let outcome = self.repair_routing(&mut repaired);
            self.unrepaired.routing = outcome.is_err();
            failures.extend(outcome.err());
        }
        if extent.resolver {
            let outcome = self.repair_resolver(&mut repaired);
            self.unrepaired.resolver = outcome.is_err();
            failures.extend(outcome.err());
        }
        if extent.firewall {
            self.hold();
        }
        match failures.pop() {
            Some(error) if repaired.is_empty() => Err(error),
            failure => {
                failures.extend(failure);
                failures.iter().for_each(|error| tracing::warn!("{error}"));
                Ok(repaired)
            }
        }
    }

    /// A table that something was taken away from is loaded at once: to look first would leave the host open longer.
    fn repair_firewalls(
        &mut self,
        cut: &BTreeMap<String, bool>,
        repaired: &mut Vec<Repaired>,
    ) -> Result<(), HostError> {
        let Some(journal) = &self.journal else { return Ok(()) };
        let is_cut = |firewall: &Firewall| cut.get(&firewall.table()) == Some(&true);
        let firewalls = || {
            self.entries.iter().filter_map(|entry| match &entry.change {
                Change::Firewall(firewall) => Some((&entry.change, firewall)),
                _ => None,
            })
        };
        for (change, firewall) in firewalls().filter(|(_, firewall)| is_cut(firewall)) {
            firewall::load(firewall, journal.lock())?;
            repaired.push(Repaired::now(change));
        }
        for (change, firewall) in firewalls() {
            let mut shown = Shown::now(firewall)?;
            let before = self.shown.get(&firewall.table());
            if before == Some(&shown) {
                continue;
            }
            let mut is_new = before.is_none() && shown.is_complete(firewall) || is_cut(firewall);
            // Others may have flushed it again meanwhile: how it looks is trusted only when all of it is there.
            for _ in 0..LOADS_MAX {
                if is_new && shown.is_complete(firewall) {
                    break;
                }
                firewall::load(firewall, journal.lock())?;
                repaired.push(Repaired::now(change));
                shown = Shown::now(firewall)?;
                is_new = true;
            }
            match shown.is_complete(firewall) {
                true => drop(self.shown.insert(firewall.table(), shown)),
                false => drop(self.shown.remove(&firewall.table())),
            }
        }
        for entry in &self.entries {
            if let Change::Passage(it) = &entry.change
                && let Some(missing) = passage::prepare(it)?
                && passage::make_where_needed(&missing, journal.lock())?
            {
                repaired.push(Repaired::now(&entry.change));
            }
        }
        Ok(())
    }

    fn repair_routing(&self, repaired: &mut Vec<Repaired>) -> Result<(), HostError> {
        let mut netlink = Netlink::open()?;
        let tables = route::Tables::list(&mut netlink)?;
        let mut failure = Ok(());
        for entry in &self.entries {
            let Some((_, made)) = &entry.made else { continue };
            match repair_routing(&mut netlink, &tables, &entry.change, made) {
                Ok(true) => repaired.push(Repaired::now(&entry.change)),
                Ok(false) => {}
                // The others must not go without repair because of one.
                Err(error) => failure = Err(error),
            }
        }
        failure
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
