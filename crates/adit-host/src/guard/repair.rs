use crate::error::HostError;
use crate::firewall::{self, Shown, passage};
use crate::guard::{Guard, Made};
use crate::monitor::HostEvent;
use crate::netlink::Netlink;
use crate::plan::{Change, Route};
use crate::{address, link, route, rule};

/// What a guard may be asked to look at again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// Links, addresses, routes and rules.
    Routing,
    /// Our nftables tables.
    Firewall,
    All,
}

impl Extent {
    /// What has to be looked at for both.
    pub fn either(one: Option<Extent>, other: Option<Extent>) -> Option<Extent> {
        match (one, other) {
            (Some(one), Some(other)) if one != other => Some(Extent::All),
            (one, other) => one.or(other),
        }
    }
}

impl Guard {
    /// What `event` may have broken of what this guard made.
    pub fn concern_of(&self, event: &HostEvent) -> Option<Extent> {
        let any = |concerns: &dyn Fn(&Change) -> bool| self.entries.iter().any(|it| concerns(&it.change));
        let (extent, concerns) = match event {
            HostEvent::Link { name, .. } | HostEvent::LinkGone { name } => {
                (Extent::Routing, any(&|change| matches!(change, Change::Link(it) if it.name == *name)))
            }
            HostEvent::Address { address, .. } => (
                Extent::Routing,
                any(&|change| matches!(change, Change::Address(it) if it.address == *address)),
            ),
            HostEvent::Route { table, destination, .. } => {
                let is_same =
                    |route: &Route| route.table == *table && route.destination.trunc() == destination.trunc();
                (Extent::Routing, any(&|change| matches!(change, Change::Route(it) if is_same(it))))
            }
            HostEvent::Rule { .. } => (Extent::Routing, any(&|change| matches!(change, Change::Rule(_)))),
            HostEvent::Firewall { table } => {
                let is_in = |change: &Change| match change {
                    Change::Firewall(it) => it.table() == *table,
                    Change::Passage(it) => it.table == *table,
                    _ => false,
                };
                (Extent::Firewall, any(&is_in))
            }
            HostEvent::Lost => (Extent::All, true),
        };
        concerns.then_some(extent)
    }

    /// Makes again what others took away or changed, and says what that was, one line each.
    ///
    /// Sysctls and settings of a link other than whether it is up are left to whoever changed them.
    pub fn repair(&mut self, extent: Extent) -> Result<Vec<String>, HostError> {
        let mut repaired = Vec::new();
        let mut failure = None;
        if extent != Extent::Routing {
            self.hold();
            match self.repair_firewalls() {
                Ok(lines) => repaired.extend(lines),
                Err(error) => failure = Some(error),
            }
        }
        if extent != Extent::Firewall {
            let mut netlink = Netlink::open()?;
            let tables = route::Tables::list(&mut netlink)?;
            for entry in &self.entries {
                let Some((_, made)) = &entry.made else { continue };
                match repair_routing(&mut netlink, &tables, &entry.change, made) {
                    Ok(true) => repaired.push(entry.change.to_string()),
                    Ok(false) => {}
                    // The others must not go without repair because of one.
                    Err(error) => failure = Some(error),
                }
            }
        }
        match failure {
            Some(error) if repaired.is_empty() => Err(error),
            Some(error) => {
                tracing::warn!("{error}");
                Ok(repaired)
            }
            None => Ok(repaired),
        }
    }

    fn repair_firewalls(&mut self) -> Result<Vec<String>, HostError> {
        let Some(journal) = &self.journal else { return Ok(Vec::new()) };
        let mut repaired = Vec::new();
        for entry in &self.entries {
            let firewall = match &entry.change {
                Change::Firewall(firewall) => firewall,
                Change::Passage(it) => {
                    if let Some(missing) = passage::prepare(it)?
                        && passage::make_where_needed(&missing, journal.lock())?
                    {
                        repaired.push(entry.change.to_string());
                    }
                    continue;
                }
                _ => continue,
            };
            let shown = Shown::now(firewall)?;
            if self.shown.get(&firewall.table()) == Some(&shown) {
                continue;
            }
            let is_first_look = !self.shown.contains_key(&firewall.table());
            if !is_first_look || !shown.is_complete(firewall) {
                firewall::load(firewall, journal.lock())?;
                repaired.push(entry.change.to_string());
            }
            self.shown.insert(firewall.table(), Shown::now(firewall)?);
        }
        Ok(repaired)
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
