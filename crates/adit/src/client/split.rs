//! A split tunnel: what `include` and `exclude` say, made of routes, marks and a resolver that notes addresses.
//!
//! ```text
//!   exclude NETWORK  ─► mark of our own sockets ─► beside the tunnel
//!   exclude DOMAIN   ─► our resolver asks the outside servers, notes the addresses ─► the same mark
//!   include NETWORK  ─► the only routes into the tunnel
//!   include DOMAIN   ─► our resolver asks the servers inside, notes the addresses ─► a mark of their own ─► the tunnel
//! ```

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use adit_host::{
    Dns, Family, Firewall, Fwmark, Hop, HostError, Plan, Route, Rule, SplitFirewall, SplitSide, part_by_name,
};
use anyhow::Context;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::Reached;
use crate::config::wgquick::WgQuick;
use crate::config::{ClientSettings, Destination};
use crate::forwarder::{Forwarder, Found, Policy, Upstream};
use crate::upkeep::SplitFacts;

/// What takes the other way.
#[derive(Clone, Debug, Default)]
pub struct Split {
    /// Only this goes through the tunnel; empty is everything the profile allows.
    pub include: Vec<Destination>,
    /// This goes beside it.
    pub exclude: Vec<Destination>,
}

/// The numbers that a plan with a split needs.
#[derive(Clone, Copy, Debug)]
struct Marks {
    /// The mark of our own sockets.
    outside: u32,
    /// A free mark and table for what goes inside by name.
    inside: u32,
    /// A free priority for the rule that leads there.
    rule_priority: u32,
}

impl Marks {
    /// The numbers that go with a plan whose own sockets bear the mark `outside`: the rule comes just before the plan's.
    fn beside(plan: &Plan, outside: u32) -> Result<Self, HostError> {
        let before = plan.rules.iter().map(|rule| rule.priority).min().map(|first| first.saturating_sub(1));
        let rule_priority = match before {
            Some(priority) => priority,
            None => adit_host::find_free_priority(1)?,
        };
        let inside = adit_host::find_free_table(outside.saturating_add(1))?;
        Ok(Self { outside, inside, rule_priority })
    }
}

impl Split {
    /// What `settings` say.
    pub fn of(settings: &ClientSettings) -> Self {
        Self { include: settings.include.clone(), exclude: settings.exclude.clone() }
    }

    /// What `status` tells.
    pub fn facts(&self, resolver: Option<IpAddr>) -> Option<SplitFacts> {
        let texts = |list: &[Destination]| list.iter().map(ToString::to_string).collect();
        self.is_needed().then(|| SplitFacts {
            include: texts(&self.include),
            exclude: texts(&self.exclude),
            resolver,
        })
    }

    /// Adds to a client's plan what parts its traffic; `outside` is the mark of our own sockets. Returns where our own
    /// resolver has to answer, when names decide.
    pub fn add_to(
        &self,
        plan: &mut Plan,
        link: &str,
        file: &WgQuick,
        ipv6: bool,
        outside: u32,
    ) -> Result<Option<IpAddr>, HostError> {
        if !self.is_needed() {
            return Ok(None);
        }
        let own = file.interface.addresses.iter().map(IpNet::addr).filter(|it| ipv6 || it.is_ipv4());
        let marks = Marks::beside(plan, outside)?;
        self.extend(plan, link, &own.collect::<Vec<_>>(), marks);
        let resolver = self.resolver_address(file, ipv6);
        if let Some(at) = resolver {
            let none = Dns { link: link.to_owned(), servers: Vec::new(), search: Vec::new() };
            plan.dns.get_or_insert(none).servers = vec![at];
        }
        Ok(resolver)
    }

    /// Whether there is anything to do.
    pub fn is_needed(&self) -> bool {
        !self.include.is_empty() || !self.exclude.is_empty()
    }

    /// Whether only what is named goes through the tunnel.
    pub fn only_some(&self) -> bool {
        !self.include.is_empty()
    }

    /// What of `allowed` gets a route into the tunnel.
    pub fn routed(&self, allowed: &[IpNet]) -> Vec<IpNet> {
        if !self.only_some() {
            return allowed.to_vec();
        }
        let wanted = networks(&self.include);
        let both = |wanted: &IpNet, allowed: &IpNet| {
            if allowed.contains(wanted) {
                Some(*wanted)
            } else if wanted.contains(allowed) {
                Some(*allowed)
            } else {
                None
            }
        };
        let pairs = wanted.iter().flat_map(|wanted| allowed.iter().filter_map(move |it| both(wanted, it)));
        let mut routed: Vec<IpNet> = pairs.collect();
        routed.sort();
        routed.dedup();
        routed
    }

    /// Whether names decide, so that a resolver has to look at them.
    pub fn has_names(&self) -> bool {
        self.include.iter().chain(&self.exclude).any(|it| matches!(it, Destination::Domain(_)))
    }

    /// Adds to a client's plan what parts its traffic. `addresses` are those of the tunnel.
    fn extend(&self, plan: &mut Plan, link: &str, addresses: &[IpAddr], marks: Marks) {
        let inside_names = self.include.iter().any(|it| matches!(it, Destination::Domain(_)));
        if inside_names {
            for family in [Family::Ipv4, Family::Ipv6] {
                let everywhere = match family {
                    Family::Ipv4 => IpNet::V4(Ipv4Net::default()),
                    Family::Ipv6 => IpNet::V6(Ipv6Net::default()),
                };
                if !addresses.iter().any(|it| it.is_ipv4() == everywhere.addr().is_ipv4()) {
                    continue;
                }
                plan.routes.push(Route {
                    destination: everywhere,
                    hop: Hop::Link(link.to_owned()),
                    table: marks.inside,
                    metric: None,
                });
                let rule = Rule::new(family, marks.rule_priority, marks.inside);
                plan.rules.push(Rule { fwmark: Some(Fwmark::from(marks.inside)), ..rule });
            }
        }
        let mut keeps_dns = false;
        for firewall in &mut plan.firewalls {
            if let Firewall::Client(client) = firewall
                && let Some(kill_switch) = &mut client.kill_switch
            {
                kill_switch.parted = true;
                keeps_dns = true;
            }
        }
        plan.firewalls.push(Firewall::Split(SplitFirewall {
            link: link.to_owned(),
            addresses: addresses.to_vec(),
            outside_mark: marks.outside,
            inside_mark: inside_names.then_some(marks.inside),
            excluded: networks(&self.exclude),
            keeps_dns,
        }));
    }

    /// Where our own resolver answers, when names decide: the first inside address.
    fn resolver_address(&self, file: &WgQuick, ipv6: bool) -> Option<IpAddr> {
        let own = file.interface.addresses.iter().map(IpNet::addr);
        if self.has_names() {
            own.filter(|it| ipv6 || it.is_ipv4()).min_by_key(IpAddr::is_ipv6)
        } else {
            None
        }
    }

    /// The resolver that notes the addresses of names.
    ///
    /// # Errors
    /// Something else answers there.
    pub(super) fn start_resolver(
        &self,
        link: &str,
        at: IpAddr,
        file: &WgQuick,
        reached: &[Reached],
        servers_beside: &[SocketAddr],
        outside_mark: u32,
    ) -> anyhow::Result<Forwarder> {
        let table = adit_host::split_table(link);
        let inside = file.interface.dns.iter().map(|it| SocketAddr::new(*it, 53)).collect();
        let policy = Names {
            split: self.clone(),
            table,
            never_outside: never_outside(file, reached),
            inside: Upstream { servers: inside, fwmark: 0 },
            outside: Upstream { servers: servers_beside.to_vec(), fwmark: outside_mark },
        };
        Forwarder::start(&[SocketAddr::new(at, 53)], Arc::new(policy)).with_context(|| {
            format!("cannot answer DNS questions at {at}, which names in include or exclude need")
        })
    }
}

fn networks(destinations: &[Destination]) -> Vec<IpNet> {
    let network = |it: &Destination| match it {
        Destination::Network(network) => Some(*network),
        Destination::Domain(_) => None,
    };
    destinations.iter().filter_map(network).collect()
}

/// What no answer for a name may lead out beside the tunnel, whoever gave it: what is private, as most of what is inside
/// is, the rest of what is known to be inside, and where the peers are (TunnelCrack ServerIP).
fn never_outside(file: &WgQuick, reached: &[Reached]) -> Vec<IpNet> {
    let allowed = || file.peers.iter().flat_map(|peer| &peer.allowed_ips).map(IpNet::trunc);
    // Else what is allowed is what exceptions are made from.
    let takes_everything = allowed().any(|net| net.prefix_len() == 0);
    let inside = allowed().filter(|net| net.prefix_len() > 1 && takes_everything);
    let own = file.interface.addresses.iter().map(IpNet::trunc);
    let servers = file.interface.dns.iter().copied();
    let endpoints = reached.iter().flat_map(|it| &it.known).map(SocketAddr::ip);
    let single = servers.chain(endpoints).map(IpNet::from);
    let nets: Vec<IpNet> =
        adit_host::private_networks().into_iter().chain(own).chain(inside).chain(single).collect();
    IpNet::aggregate(&nets)
}

/// Whom to ask about a name, and which way to its addresses.
struct Names {
    split: Split,
    table: String,
    never_outside: Vec<IpNet>,
    inside: Upstream,
    outside: Upstream,
}

impl Names {
    fn side(&self, name: &str) -> Option<SplitSide> {
        let holds = |list: &[Destination]| list.iter().any(|it| it.holds_name(name));
        if holds(&self.split.exclude) {
            return Some(SplitSide::Outside);
        }
        holds(&self.split.include).then_some(SplitSide::Inside)
    }
}

impl Names {
    /// What of an answer takes the other way, and for how long. Who answers may lie: what is inside stays there.
    fn noted(&self, name: &str, side: SplitSide, found: &[Found]) -> Vec<(IpAddr, Duration)> {
        let mut noted = Vec::new();
        for (address, ttl_secs) in found.iter().take(ADDRESSES_MAX) {
            if address.is_loopback() || address.is_unspecified() || address.is_multicast() {
                continue;
            }
            if side == SplitSide::Outside && self.never_outside.iter().any(|net| net.contains(address)) {
                tracing::warn!(
                    "{name} is said to be at {address}, which belongs to the tunnel and stays in it"
                );
                continue;
            }
            let good_for = Duration::from_secs(u64::from(*ttl_secs)).min(GOOD_FOR_MAX);
            noted.push((*address, good_for + GRACE));
        }
        noted
    }
}

impl Policy for Names {
    fn upstream(&self, name: &str) -> Upstream {
        let goes_inside = match self.side(name) {
            Some(SplitSide::Outside) => false,
            Some(SplitSide::Inside) => true,
            None => !self.split.only_some(),
        };
        // Whoever has no servers on one side has to be content with the other.
        let (first, other) =
            if goes_inside { (&self.inside, &self.outside) } else { (&self.outside, &self.inside) };
        if first.servers.is_empty() && !goes_inside { other.clone() } else { first.clone() }
    }

    fn learn(&self, name: &str, found: &[Found]) {
        let Some(side) = self.side(name) else { return };
        let addresses = self.noted(name, side, found);
        if addresses.is_empty() {
            return;
        }
        if let Err(error) = part_by_name(&self.table, side, &addresses) {
            tracing::warn!("the addresses of {name} take the usual way: {error}");
        }
    }
}

/// Programs connect a moment after they have asked.
const GRACE: Duration = Duration::from_secs(5);
/// Whoever uses a name for longer asks for it again.
const GOOD_FOR_MAX: Duration = Duration::from_secs(3_600);
const ADDRESSES_MAX: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse_destination;

    fn split(include: &[&str], exclude: &[&str]) -> Split {
        let all = |texts: &[&str]| texts.iter().map(|it| parse_destination(it).unwrap()).collect();
        Split { include: all(include), exclude: all(exclude) }
    }

    #[test]
    fn only_what_is_included_and_allowed_is_routed_into_the_tunnel() {
        let nets = |texts: &[&str]| texts.iter().map(|it| it.parse().unwrap()).collect::<Vec<IpNet>>();
        let everything = nets(&["0.0.0.0/0", "::/0"]);
        assert_eq!(split(&[], &["10.0.0.0/8"]).routed(&everything), everything);
        assert_eq!(split(&["10.0.0.0/8", "example.org"], &[]).routed(&everything), nets(&["10.0.0.0/8"]));
        assert_eq!(split(&["10.0.0.0/8"], &[]).routed(&nets(&["10.1.0.0/16"])), nets(&["10.1.0.0/16"]));
        assert!(split(&["10.0.0.0/8"], &[]).routed(&nets(&["192.168.0.0/16"])).is_empty());
    }

    #[test]
    fn a_name_is_asked_where_it_will_be_reached() {
        let server =
            |last: u8, fwmark: u32| Upstream { servers: vec![([192, 0, 2, last], 53).into()], fwmark };
        let names = |split: Split| Names {
            split,
            table: String::new(),
            never_outside: Vec::new(),
            inside: server(1, 0),
            outside: server(2, 7),
        };
        let excluding = names(split(&[], &["example.org"]));
        assert_eq!(excluding.upstream("www.example.org"), server(2, 7));
        assert_eq!(excluding.upstream("example.com"), server(1, 0));
        let including = names(split(&["example.org"], &["beside.example.org"]));
        assert_eq!(including.upstream("www.example.org"), server(1, 0));
        assert_eq!(including.upstream("beside.example.org"), server(2, 7), "the exception counts");
        assert_eq!(including.upstream("example.com"), server(2, 7));
        assert_eq!(including.side("example.com"), None);
    }

    #[test]
    fn what_belongs_inside_never_goes_beside_whatever_an_answer_says() {
        let none = Upstream { servers: Vec::new(), fwmark: 0 };
        let names = Names {
            split: split(&["corp.test"], &["bank.test"]),
            table: String::new(),
            never_outside: vec!["10.9.0.0/24".parse().unwrap(), "192.0.2.7/32".parse().unwrap()],
            inside: none.clone(),
            outside: none,
        };
        let at = |text: &str| text.parse::<IpAddr>().unwrap();
        let found =
            [(at("10.9.0.1"), 60), (at("192.0.2.7"), 60), (at("127.0.0.1"), 60), (at("192.0.2.8"), u32::MAX)];
        let longest = GOOD_FOR_MAX + GRACE;
        assert_eq!(names.noted("bank.test", SplitSide::Outside, &found), [(at("192.0.2.8"), longest)]);
        assert_eq!(names.noted("corp.test", SplitSide::Inside, &found).len(), 3, "that way nothing gets out");
        let many: Vec<Found> = (0..200).map(|last| (IpAddr::from([192, 0, 2, last]), 1)).collect();
        assert!(names.noted("bank.test", SplitSide::Outside, &many).len() <= ADDRESSES_MAX);
    }

    #[test]
    fn what_is_inside_is_what_the_profile_names_beside_everything() {
        let profile = |allowed: &str| {
            let text = format!(
                "[Interface]\nPrivateKey = eEBhN6cK2cF1bkjZlMVY4XlZ5LkVbPYMa1xgKPYo1Fk=\nAddress = 10.9.0.2/24\n\
                 DNS = 192.0.2.53\n[Peer]\nPublicKey = xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=\n\
                 AllowedIPs = {allowed}\n"
            );
            let hooks = crate::config::wgquick::Hooks::Refused;
            let file = WgQuick::parse(&crate::config::Source::new("x.conf", &text), hooks).unwrap();
            let known = vec!["198.51.100.2:4500".parse().unwrap()];
            let reached =
                Reached { peer: file.peers[0].public_key, current: known[0], known, by_proxy: false };
            let nets = never_outside(&file, &[reached]);
            ["10.9.0.1", "10.1.1.1", "fd00::1", "192.0.2.53", "198.51.100.2", "203.0.113.80", "198.51.100.3"]
                .map(|at| nets.iter().any(|net| net.contains(&at.parse::<IpAddr>().unwrap())))
        };
        let (all, inside) = ("0.0.0.0/0, ::/0", [true, true, true, true, true, false, false]);
        assert_eq!(profile(all), inside);
        // Halves and eighths are everything, too, and no place inside.
        assert_eq!(profile("0.0.0.0/1, 128.0.0.0/2"), inside);
        assert_eq!(profile("203.0.113.0/24"), inside, "an exception by name is possible there");
        assert_eq!(profile("0.0.0.0/0, 203.0.113.0/24"), [true, true, true, true, true, true, false]);
    }
}
