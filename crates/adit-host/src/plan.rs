use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::firewall::{Firewall, Passage};
use crate::group::Group;

/// The number of the main routing table.
pub const MAIN_TABLE: u32 = 254;

/// What should be true of the host. Its [`Display`](fmt::Display) is one line per change.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Plan {
    pub groups: Vec<Group>,
    pub firewalls: Vec<Firewall>,
    pub passages: Vec<Passage>,
    pub sysctls: Vec<Sysctl>,
    pub links: Vec<Link>,
    pub addresses: Vec<Address>,
    pub routes: Vec<Route>,
    pub rules: Vec<Rule>,
    pub dns: Option<Dns>,
}

impl Plan {
    /// Every change in the order it is made: filters before anything can flow, DNS last.
    pub fn changes(&self) -> impl Iterator<Item = Change> + '_ {
        let groups = self.groups.iter().cloned().map(Change::Group);
        let firewalls = self.firewalls.iter().cloned().map(Change::Firewall);
        let passages = self.passages.iter().cloned().map(Change::Passage);
        let sysctls = self.sysctls.iter().cloned().map(Change::Sysctl);
        let links = self.links.iter().cloned().map(Change::Link);
        let addresses = self.addresses.iter().cloned().map(Change::Address);
        let routes = self.routes.iter().cloned().map(Change::Route);
        let rules = self.rules.iter().cloned().map(Change::Rule);
        let dns = self.dns.iter().cloned().map(Change::Dns);
        groups
            .chain(firewalls)
            .chain(passages)
            .chain(sysctls)
            .chain(links)
            .chain(addresses)
            .chain(routes)
            .chain(rules)
            .chain(dns)
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for change in self.changes() {
            writeln!(f, "{change}")?;
        }
        Ok(())
    }
}

/// One thing a plan changes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(clippy::large_enum_variant, reason = "a plan has a dozen, and one or two are tables")]
pub enum Change {
    Group(Group),
    Firewall(Firewall),
    Passage(Passage),
    Sysctl(Sysctl),
    Link(Link),
    Address(Address),
    Route(Route),
    Rule(Rule),
    Dns(Dns),
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Change::Group(x) => write!(f, "group    {x}"),
            Change::Firewall(x) => write!(f, "nft      {x}"),
            Change::Passage(x) => write!(f, "nft      {x}"),
            Change::Sysctl(x) => write!(f, "sysctl   {x}"),
            Change::Link(x) => write!(f, "link     {x}"),
            Change::Address(x) => write!(f, "address  {x}"),
            Change::Route(x) => write!(f, "route    {x}"),
            Change::Rule(x) => write!(f, "rule     {x}"),
            Change::Dns(x) => write!(f, "dns      {x}"),
        }
    }
}

/// Settings of an existing network interface.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Link {
    pub name: String,
    pub mtu_bytes: Option<u32>,
    /// Bring the interface up; `false` leaves it as it is.
    pub up: bool,
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.name)?;
        if let Some(mtu) = self.mtu_bytes {
            write!(f, " mtu {mtu}")?;
        }
        if self.up {
            write!(f, " up")?;
        }
        Ok(())
    }
}

/// An address on an interface, with its on-link prefix.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Address {
    pub link: String,
    pub address: IpNet,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} dev {}", self.address, self.link)
    }
}

/// An entry of a routing table.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Route {
    pub destination: IpNet,
    pub hop: Hop,
    pub table: u32,
    pub metric: Option<u32>,
}

/// Where a route leads.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hop {
    Link(String),
    Gateway {
        via: IpAddr,
        link: Option<String>,
    },
    /// Nowhere: the host says at once that there is no way. Unlike a rule that says so, such a route does not stand
    /// in the way of who asks whether a router is on a link, as the kernel does before it takes a route through it.
    Nowhere,
}

impl Hop {
    pub(crate) fn link(&self) -> Option<&str> {
        match self {
            Hop::Link(link) => Some(link),
            Hop::Gateway { link, .. } => link.as_deref(),
            Hop::Nowhere => None,
        }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.destination, self.destination.prefix_len()) {
            (IpNet::V4(_), 0) => write!(f, "default")?,
            (IpNet::V6(_), 0) => write!(f, "default (ipv6)")?,
            (net, _) => write!(f, "{net}")?,
        }
        match &self.hop {
            Hop::Link(link) => write!(f, " dev {link}")?,
            Hop::Gateway { via, link: None } => write!(f, " via {via}")?,
            Hop::Gateway { via, link: Some(link) } => write!(f, " via {via} dev {link}")?,
            Hop::Nowhere => write!(f, " unreachable")?,
        }
        match self.table {
            MAIN_TABLE => {}
            table => write!(f, " table {table}")?,
        }
        match self.metric {
            Some(metric) => write!(f, " metric {metric}"),
            None => Ok(()),
        }
    }
}

/// An IP version, where no address says which.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    Ipv4,
    Ipv6,
}

impl Family {
    pub(crate) const BOTH: [Family; 2] = [Family::Ipv4, Family::Ipv6];

    pub(crate) fn of(address: IpAddr) -> Family {
        match address {
            IpAddr::V4(_) => Family::Ipv4,
            IpAddr::V6(_) => Family::Ipv6,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::Ipv4 => "ipv4",
            Family::Ipv6 => "ipv6",
        })
    }
}

/// A policy rule: which packets look in which table.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Rule {
    pub family: Family,
    /// Lower is asked earlier; never 0.
    pub priority: u32,
    pub table: u32,
    /// Refuse what matches instead of looking in `table`, which is 0 then.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unreachable: bool,
    #[serde(default)]
    pub fwmark: Option<Fwmark>,
    /// Match what the other conditions do not.
    #[serde(default)]
    pub invert: bool,
    /// Ignore answers whose prefix is this long or shorter.
    #[serde(default)]
    pub suppress_prefix_len: Option<u32>,
    #[serde(default)]
    pub from: Option<IpNet>,
    #[serde(default)]
    pub to: Option<IpNet>,
    #[serde(default)]
    pub iif: Option<String>,
}

impl Rule {
    /// A rule that sends every packet of `family` to `table`.
    pub fn new(family: Family, priority: u32, table: u32) -> Rule {
        Rule {
            family,
            priority,
            table,
            unreachable: false,
            fwmark: None,
            invert: false,
            suppress_prefix_len: None,
            from: None,
            to: None,
            iif: None,
        }
    }
}

/// A packet mark and the bits of it that count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Fwmark {
    pub mark: u32,
    pub mask: u32,
}

impl From<u32> for Fwmark {
    fn from(mark: u32) -> Fwmark {
        Fwmark { mark, mask: u32::MAX }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.invert {
            write!(f, "not ")?;
        }
        if let Some(net) = self.from {
            write!(f, "from {net} ")?;
        }
        if let Some(net) = self.to {
            write!(f, "to {net} ")?;
        }
        if let Some(iif) = &self.iif {
            write!(f, "iif {iif} ")?;
        }
        match self.fwmark {
            Some(Fwmark { mark, mask: u32::MAX }) => write!(f, "fwmark {mark:#x} ")?,
            Some(Fwmark { mark, mask }) => write!(f, "fwmark {mark:#x}/{mask:#x} ")?,
            None => {}
        }
        match self.table {
            _ if self.unreachable => write!(f, "unreachable")?,
            MAIN_TABLE => write!(f, "table main")?,
            table => write!(f, "table {table}")?,
        }
        if let Some(len) = self.suppress_prefix_len {
            write!(f, " suppress_prefixlength {len}")?;
        }
        write!(f, " priority {} ({})", self.priority, self.family)
    }
}

/// A kernel setting below `/proc/sys`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Sysctl {
    /// `net.ipv4.ip_forward`, or with slashes when an interface name has dots.
    pub key: String,
    pub value: String,
}

impl Sysctl {
    pub fn new(key: impl Into<String>, value: impl Into<String>) -> Sysctl {
        Sysctl { key: key.into(), value: value.into() }
    }
}

impl fmt::Display for Sysctl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = {}", self.key, self.value)
    }
}

/// Who answers name queries while the tunnel is up.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Dns {
    pub link: String,
    pub servers: Vec<IpAddr>,
    pub search: Vec<String>,
}

impl fmt::Display for Dns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} servers", self.link)?;
        for server in &self.servers {
            write!(f, " {server}")?;
        }
        if !self.search.is_empty() {
            write!(f, " search {}", self.search.join(" "))?;
        }
        Ok(())
    }
}
