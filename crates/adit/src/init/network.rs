//! Networks for the inside of a new tunnel, which clash with nothing that this host reaches.

use adit_host::Surroundings;
use anyhow::{Context, bail};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::{keys, resolvers};

/// A network or host that is reached already, and what for or by which interface.
pub(super) type Taken = (IpNet, String);

/// What this host reaches, its DNS resolvers included: one behind the default route is shadowed as well.
pub(super) fn taken(around: &Surroundings) -> Vec<Taken> {
    let resolvers = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    around.networks.iter().cloned().chain(resolvers_of(&resolvers)).collect()
}

fn resolvers_of(text: &str) -> Vec<Taken> {
    let addresses = resolvers::servers(text).into_iter().filter(|it| !it.is_loopback());
    addresses.map(|address| (address.into(), "a DNS resolver".to_owned())).collect()
}

/// The first private /24 of a list that clashes with nothing, and why it is that one.
pub(super) fn free(taken: &[Taken]) -> anyhow::Result<(Ipv4Net, String)> {
    let slash24 = |a, b, c| Ipv4Net::new_assert([a, b, c, 0].into(), 24);
    let tens = (86..=126).map(|second| slash24(10, second, 0));
    let candidates = tens
        .chain((0..=255).map(|third| slash24(172, 30, third)))
        .chain((86..=250).map(|third| slash24(192, 168, third)))
        .chain((0..=255).map(|third| slash24(100, 126, third)));
    let mut passed = None;
    for network in candidates {
        let clash = taken.iter().find(|(known, _)| overlap(*known, network.into()));
        match (clash, passed) {
            (None, None) => {
                let names: Vec<&str> = seen_as(taken);
                return Ok((network, format!("clashes with nothing that this host reaches{}", by(&names))));
            }
            (None, Some((known, what))) => {
                return Ok((network, format!("because this host reaches {known} already, by {what}")));
            }
            (Some((known, what)), _) => passed = passed.or(Some((known, what))),
        }
    }
    let (known, what) = passed.context("there are candidates")?;
    bail!(
        "every private network tried clashes with what this host reaches ({known} by {what}, for example); choose one \
         with --network CIDR"
    )
}

fn seen_as(taken: &[Taken]) -> Vec<&str> {
    let mut names: Vec<&str> = taken.iter().map(|(_, by)| by.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    names
}

fn by(names: &[&str]) -> String {
    const SHOWN: usize = 4;
    match names {
        [] => String::new(),
        names if names.len() > SHOWN => format!(" by {} and others", names[..SHOWN].join(", ")),
        names => format!(" by {}", names.join(", ")),
    }
}

/// A random private /64 (RFC 4193 section 3.2).
pub(super) fn random6(taken: &[Taken]) -> anyhow::Result<Ipv6Net> {
    for _ in 0..16 {
        let random = keys::generate_preshared()?;
        let [a, b, c, d, e, f, g, ..] = *random.as_bytes();
        let bytes = [0xfd, a, b, c, d, e, f, g, 0, 0, 0, 0, 0, 0, 0, 0];
        let network = Ipv6Net::new_assert(bytes.into(), 64);
        if !taken.iter().any(|(known, _)| overlap(*known, network.into())) {
            return Ok(network);
        }
    }
    bail!("this host reaches all of fd00::/8 already; choose a network with --network6 CIDR")
}

fn overlap(one: IpNet, other: IpNet) -> bool {
    one.contains(&other) || other.contains(&one)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(networks: &[&str]) -> Vec<Taken> {
        networks.iter().map(|text| (text.parse().unwrap(), "eth7".to_owned())).collect()
    }

    #[test]
    fn a_network_that_this_host_reaches_is_passed_over() {
        let chosen = |networks: &[&str]| free(&list(networks)).unwrap();
        assert_eq!(chosen(&["192.168.0.0/16"]).0, "10.86.0.0/24".parse().unwrap());
        let (network, reason) = chosen(&["10.86.0.0/16", "10.87.0.128/25"]);
        assert_eq!(network, "10.88.0.0/24".parse().unwrap());
        assert!(reason.contains("10.86.0.0/16 already, by eth7"), "{reason}");
        assert_eq!(chosen(&["10.0.0.0/8"]).0, "172.30.0.0/24".parse().unwrap());
        assert_eq!(chosen(&["10.0.0.0/8", "172.16.0.0/12"]).0, "192.168.86.0/24".parse().unwrap());
        let all = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"];
        assert_eq!(chosen(&all).0, "100.126.0.0/24".parse().unwrap());
        let error = free(&list(&[&all[..], &["100.64.0.0/10"]].concat())).unwrap_err().to_string();
        assert!(error.contains("--network CIDR"), "{error}");
    }

    #[test]
    fn a_resolver_is_not_shadowed() {
        let resolvers =
            resolvers_of("# x\nnameserver 10.86.0.53\nnameserver 127.0.0.53\nnameserver fd00::1\n");
        assert_eq!(resolvers.len(), 2);
        let (network, reason) = free(&resolvers).unwrap();
        assert_eq!(network, "10.87.0.0/24".parse().unwrap());
        assert!(reason.contains("a DNS resolver"), "{reason}");
    }

    #[test]
    fn a_random_network_is_private_and_no_other() {
        let networks: Vec<Ipv6Net> = (0..8).map(|_| random6(&[]).unwrap()).collect();
        assert!(networks.iter().all(|it| it.network().segments()[0] >> 8 == 0xfd && it.prefix_len() == 64));
        assert!(networks.windows(2).all(|pair| pair[0] != pair[1]));
        assert!(random6(&list(&["fd00::/8"])).is_err());
    }
}
