//! A network address translator: endpoint-independent mapping, address- and port-dependent filtering
//! (RFC 4787 sections 4.1 and 5), mappings that time out.

use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use adit_proto::time::Instant;

/// A translator with one public address.
#[derive(Debug)]
pub struct Nat {
    /// The public address.
    pub public: IpAddr,
    /// How long a mapping lives without anything sent through it.
    pub timeout: Duration,
    mappings: BTreeMap<SocketAddr, Mapping>,
    next_port: u16,
}

#[derive(Debug)]
struct Mapping {
    port: u16,
    last_used: Instant,
    contacted: BTreeSet<SocketAddr>,
}

impl Nat {
    /// A translator without mappings.
    pub fn new(public: IpAddr, timeout: Duration) -> Self {
        Self { public, timeout, mappings: BTreeMap::new(), next_port: 40_000 }
    }

    /// The public source of a datagram from `inside` to `remote`.
    pub fn outbound(&mut self, now: Instant, inside: SocketAddr, remote: SocketAddr) -> SocketAddr {
        self.expire(now);
        let next_port = &mut self.next_port;
        let mapping = self.mappings.entry(inside).or_insert_with(|| {
            *next_port = next_port.checked_add(1).unwrap_or(40_000);
            Mapping { port: *next_port, last_used: now, contacted: BTreeSet::new() }
        });
        mapping.last_used = now;
        mapping.contacted.insert(remote);
        SocketAddr::new(self.public, mapping.port)
    }

    /// The inside destination of a datagram from `remote` to our public `port`. Does not refresh the mapping.
    pub fn inbound(&mut self, now: Instant, port: u16, remote: SocketAddr) -> Option<SocketAddr> {
        self.expire(now);
        let (inside, _) = self
            .mappings
            .iter()
            .find(|(_, mapping)| mapping.port == port && mapping.contacted.contains(&remote))?;
        Some(*inside)
    }

    /// Forgets every mapping: the next datagram of each host leaves from another port.
    pub fn rebind(&mut self) {
        self.mappings.clear();
    }

    fn expire(&mut self, now: Instant) {
        self.mappings.retain(|_, mapping| now.since(mapping.last_used) < self.timeout);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_lets_in_who_was_contacted_until_it_times_out_or_is_forgotten() {
        let inside: SocketAddr = "192.168.1.2:51820".parse().unwrap();
        let remote: SocketAddr = "192.0.2.1:51820".parse().unwrap();
        let stranger: SocketAddr = "192.0.2.1:51821".parse().unwrap();
        let mut nat = Nat::new("203.0.113.1".parse().unwrap(), Duration::from_secs(30));
        let at = |secs: u64| Instant::from_millis(secs * 1_000);
        let public = nat.outbound(at(0), inside, remote);
        assert_eq!(nat.inbound(at(29), public.port(), remote), Some(inside));
        assert_eq!(nat.inbound(at(29), public.port(), stranger), None);
        assert_eq!(nat.outbound(at(29), inside, remote), public);
        assert_eq!(nat.inbound(at(58), public.port(), remote), Some(inside));
        assert_eq!(nat.inbound(at(59), public.port(), remote), None, "what comes in does not refresh");
        let again = nat.outbound(at(60), inside, remote);
        assert_ne!(again, public);
        nat.rebind();
        assert_ne!(nat.outbound(at(61), inside, remote), again);
    }
}
