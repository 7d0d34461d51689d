use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteProtocol, RouteScope,
    RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use serde::{Deserialize, Serialize};

use crate::error::HostError;
use crate::guard::Outcome;
use crate::netlink::Netlink;
use crate::plan::{Family, Hop, MAIN_TABLE, Route};
use crate::{link, rule};

/// Marks the routes and rules that are ours, so that deleting can never hit another's (`ip route` shows `proto 173`).
pub(crate) const PROTOCOL: RouteProtocol = RouteProtocol::Other(173);

/// What WireGuard adds to an IPv6-carried packet, in bytes; the margin every MTU is computed with.
const OVERHEAD_BYTES: u32 = 80;
const MIN_MTU_BYTES: u32 = 1280;
const ETHERNET_MTU_BYTES: u32 = 1500;

/// The first number from `start` that is neither a table with routes nor the table or mark of a rule.
pub fn find_free_table(start: u32) -> Result<u32, HostError> {
    let mut netlink = Netlink::open()?;
    let mut taken: Vec<u32> = list(&mut netlink)?.into_iter().map(|it| it.table).collect();
    for found in rule::list(&mut netlink)? {
        taken.push(found.rule.table);
        taken.extend(found.rule.fwmark.map(|it| it.mark));
    }
    let free = |table: &u32| !matches!(table, 0 | 253..=255) && !taken.contains(table);
    Ok((start..=u32::MAX).find(free).unwrap_or(start))
}

/// The path MTU to `destination` as the kernel knows it, in bytes: of the route, else of its interface.
///
/// `fwmark` is the mark of the asking socket, 0 for none: with a full tunnel up, only a marked packet sees the uplink.
pub fn route_mtu(destination: IpAddr, fwmark: u32) -> Result<Option<u32>, HostError> {
    let mut netlink = Netlink::open()?;
    let Some(answer) = ask(&mut netlink, destination, fwmark)? else { return Ok(None) };
    let Some(found) = Found::read(&answer) else { return Ok(None) };
    Ok(found.mtu(&link::list(&mut netlink)?))
}

/// Which way packets to a destination leave this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Way {
    /// The address they come from.
    pub source: Option<IpAddr>,
    /// The index of the interface.
    pub link_index: u32,
    /// The router, when there is one.
    pub gateway: Option<IpAddr>,
}

/// The way to `destination` for sockets with this mark (0 for none); `None` when there is none.
pub fn way_to(destination: IpAddr, fwmark: u32) -> Result<Option<Way>, HostError> {
    let Some(answer) = ask(&mut Netlink::open()?, destination, fwmark)? else { return Ok(None) };
    let mut way = Way { source: None, link_index: 0, gateway: None };
    for attribute in answer.attributes {
        match attribute {
            RouteAttribute::PrefSource(RouteAddress::Inet(it)) => way.source = Some(it.into()),
            RouteAttribute::PrefSource(RouteAddress::Inet6(it)) => way.source = Some(it.into()),
            RouteAttribute::Gateway(RouteAddress::Inet(it)) => way.gateway = Some(it.into()),
            RouteAttribute::Gateway(RouteAddress::Inet6(it)) => way.gateway = Some(it.into()),
            RouteAttribute::Oif(index) => way.link_index = index,
            _ => {}
        }
    }
    Ok(Some(way))
}

fn ask(netlink: &mut Netlink, destination: IpAddr, fwmark: u32) -> Result<Option<RouteMessage>, HostError> {
    let mut ask = RouteMessage::default();
    ask.header.address_family = family(Family::of(destination));
    ask.header.destination_prefix_length = if destination.is_ipv4() { 32 } else { 128 };
    ask.attributes.push(RouteAttribute::Destination(destination.into()));
    if fwmark != 0 {
        ask.attributes.push(RouteAttribute::Mark(fwmark));
    }
    match netlink.get(RouteNetlinkMessage::GetRoute(ask)) {
        Ok(RouteNetlinkMessage::NewRoute(answer)) => Ok(Some(answer)),
        Ok(_) => Ok(None),
        Err(error) if is_unreachable(&error) => Ok(None),
        Err(error) => Err(HostError::kernel(format!("look up the route to {destination}"), error)),
    }
}

/// The inside MTU for a tunnel to these endpoints, in bytes: the smallest path MTU less 80, and at least 1280.
///
/// Without endpoints it is that of the default routes.
pub fn auto_mtu(endpoints: &[IpAddr], fwmark: u32) -> Result<u32, HostError> {
    let mut smallest = if endpoints.is_empty() { default_mtu()? } else { None };
    for endpoint in endpoints {
        // Loopback carries 65536 bytes, which no other path to the same peer does.
        let Some(mtu) = route_mtu(*endpoint, fwmark)?.filter(|_| !endpoint.is_loopback()) else { continue };
        smallest = Some(smallest.map_or(mtu, |it| it.min(mtu)));
    }
    Ok(smallest.unwrap_or(ETHERNET_MTU_BYTES).saturating_sub(OVERHEAD_BYTES).max(MIN_MTU_BYTES))
}

/// The smallest MTU of the main table's default routes, in bytes.
fn default_mtu() -> Result<Option<u32>, HostError> {
    let mut netlink = Netlink::open()?;
    let links = link::list(&mut netlink)?;
    let mut routes = list(&mut netlink)?;
    routes.retain(|it| it.table == MAIN_TABLE && it.destination.prefix_len() == 0 && it.unicast);
    Ok(routes.iter().filter_map(|it| it.mtu(&links)).min())
}

/// A route we added.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MadeRoute {
    #[serde(flatten)]
    route: Route,
    index: Option<u32>,
}

impl fmt::Display for MadeRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.route)
    }
}

/// The routes there are, by table and destination.
#[derive(Debug, Default)]
pub(crate) struct Tables(HashMap<(u32, IpNet), Vec<Found>>);

impl Tables {
    pub(crate) fn list(netlink: &mut Netlink) -> Result<Tables, HostError> {
        let mut tables = Tables::default();
        for found in list(netlink)? {
            tables.0.entry((found.table, found.destination)).or_default().push(found);
        }
        Ok(tables)
    }
}

pub(crate) fn prepare(
    netlink: &mut Netlink,
    tables: &Tables,
    route: &Route,
) -> Result<Option<MadeRoute>, HostError> {
    let doing = format!("add the route {route}");
    let index = match route.hop.link() {
        Some(name) => Some(link::need(netlink, name, doing.clone())?.index),
        None => None,
    };
    let there = tables.0.get(&(route.table, route.destination.trunc())).map_or(&[][..], Vec::as_slice);
    let gateway = match route.hop {
        Hop::Gateway { via, .. } => Some(via),
        Hop::Link(_) | Hop::Nowhere => None,
    };
    let serves = |it: &Found| match route.hop {
        Hop::Nowhere => !it.unicast && Some(it.metric) == route.metric,
        _ => it.unicast && it.gateway == gateway && index.is_none_or(|index| it.oif == Some(index)),
    };
    if there.iter().any(serves) {
        return Ok(None);
    }
    // IPv6 would join the two into one multipath route, IPv4 would refuse: neither is what the plan says.
    let metric = route.metric.unwrap_or(default_metric(route.destination));
    match there.iter().find(|it| it.metric == metric) {
        Some(other) => Err(HostError::Conflict {
            doing,
            other: format!("another route to {}", other.destination),
            choose: "metric or table",
        }),
        None => Ok(Some(MadeRoute { route: route.clone(), index })),
    }
}

pub(crate) fn make(netlink: &mut Netlink, made: &MadeRoute) -> Result<(), HostError> {
    netlink
        .create(RouteNetlinkMessage::NewRoute(message(made)))
        .map_err(|error| HostError::kernel(format!("add the route {}", made.route), error))
}

/// Puts a route in the place of whatever other one has its destination, table and metric.
pub(crate) fn make_in_place(netlink: &mut Netlink, route: &Route) -> Result<(), HostError> {
    let doing = format!("put the route {route} back");
    let index = match route.hop.link() {
        Some(name) => Some(link::need(netlink, name, doing.clone())?.index),
        None => None,
    };
    netlink
        .replace(RouteNetlinkMessage::NewRoute(message(&MadeRoute { route: route.clone(), index })))
        .map_err(|error| HostError::kernel(doing, error))
}

pub(crate) fn undo(netlink: &mut Netlink, made: &MadeRoute) -> Result<Outcome, HostError> {
    match netlink.set(RouteNetlinkMessage::DelRoute(message(made))) {
        Ok(()) => Ok(Outcome::Undone),
        Err(error) if is_gone(&error) => Ok(Outcome::Gone),
        Err(error) => Err(HostError::kernel(format!("remove the route {}", made.route), error)),
    }
}

fn message(made: &MadeRoute) -> RouteMessage {
    let route = &made.route;
    let destination = route.destination.trunc();
    let mut message = RouteMessage::default();
    message.header = RouteHeader {
        address_family: family(Family::of(destination.addr())),
        destination_prefix_length: destination.prefix_len(),
        table: u8::try_from(route.table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC),
        protocol: PROTOCOL,
        scope: match (&route.hop, destination) {
            (Hop::Link(_), IpNet::V4(_)) => RouteScope::Link,
            _ => RouteScope::Universe,
        },
        kind: match route.hop {
            Hop::Nowhere => RouteType::Unreachable,
            _ => RouteType::Unicast,
        },
        ..RouteHeader::default()
    };
    message.attributes.push(RouteAttribute::Table(route.table));
    if destination.prefix_len() > 0 {
        message.attributes.push(RouteAttribute::Destination(destination.addr().into()));
    }
    message.attributes.extend(made.index.map(RouteAttribute::Oif));
    if let Hop::Gateway { via, .. } = route.hop {
        message.attributes.push(RouteAttribute::Gateway(via.into()));
    }
    message.attributes.extend(route.metric.map(RouteAttribute::Priority));
    message
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) destination: IpNet,
    pub(crate) table: u32,
    pub(crate) metric: u32,
    pub(crate) oif: Option<u32>,
    pub(crate) gateway: Option<IpAddr>,
    pub(crate) unicast: bool,
    mtu_bytes: Option<u32>,
}

pub(crate) fn list(netlink: &mut Netlink) -> Result<Vec<Found>, HostError> {
    let items = netlink
        .dump(RouteNetlinkMessage::GetRoute(RouteMessage::default()))
        .map_err(|error| HostError::kernel("list the routes", error))?;
    let read = |item: &RouteNetlinkMessage| match item {
        RouteNetlinkMessage::NewRoute(route) => Found::read(route),
        _ => None,
    };
    Ok(items.iter().filter_map(read).collect())
}

impl Found {
    pub(crate) fn read(message: &RouteMessage) -> Option<Found> {
        let length = message.header.destination_prefix_length;
        let mut destination = match message.header.address_family {
            AddressFamily::Inet => IpNet::V4(Ipv4Net::new(Ipv4Addr::UNSPECIFIED, length).ok()?),
            AddressFamily::Inet6 => IpNet::V6(Ipv6Net::new(Ipv6Addr::UNSPECIFIED, length).ok()?),
            _ => return None,
        };
        let mut found = Found {
            destination,
            table: message.header.table.into(),
            metric: 0,
            oif: None,
            gateway: None,
            unicast: message.header.kind == RouteType::Unicast,
            mtu_bytes: None,
        };
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Destination(it) => {
                    destination = IpNet::new(ip(it)?, length).ok()?;
                }
                RouteAttribute::Table(it) => found.table = *it,
                RouteAttribute::Priority(it) => found.metric = *it,
                RouteAttribute::Oif(it) => found.oif = Some(*it),
                RouteAttribute::Gateway(it) => found.gateway = ip(it),
                RouteAttribute::Metrics(metrics) => {
                    found.mtu_bytes = metrics.iter().find_map(|metric| match metric {
                        RouteMetric::Mtu(mtu) => Some(*mtu),
                        _ => None,
                    });
                }
                _ => {}
            }
        }
        Some(Found { destination, ..found })
    }

    /// Its own MTU, else that of its interface.
    fn mtu(&self, links: &[link::Found]) -> Option<u32> {
        let of_link = || links.iter().find(|link| Some(link.index) == self.oif).map(|link| link.mtu_bytes);
        self.mtu_bytes.or_else(of_link)
    }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(it) => Some(IpAddr::V4(*it)),
        RouteAddress::Inet6(it) => Some(IpAddr::V6(*it)),
        _ => None,
    }
}

pub(crate) fn family(family: Family) -> AddressFamily {
    match family {
        Family::Ipv4 => AddressFamily::Inet,
        Family::Ipv6 => AddressFamily::Inet6,
    }
}

/// What the kernel takes when none is given (`IP6_RT_PRIO_USER`).
fn default_metric(destination: IpNet) -> u32 {
    match destination {
        IpNet::V4(_) => 0,
        IpNet::V6(_) => 1024,
    }
}

fn is_gone(error: &io::Error) -> bool {
    const ESRCH: i32 = 3;
    const ENODEV: i32 = 19;
    matches!(error.raw_os_error(), Some(ESRCH | ENODEV))
}

fn is_unreachable(error: &io::Error) -> bool {
    const ENETUNREACH: i32 = 101;
    const EHOSTUNREACH: i32 = 113;
    const EACCES: i32 = 13;
    const EINVAL: i32 = 22;
    matches!(error.raw_os_error(), Some(ENETUNREACH | EHOSTUNREACH | EACCES | EINVAL))
}
