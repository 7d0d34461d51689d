//! Probe packets: each names its sender, its receiver and its number, so that what comes out of the tunnel
//! can be held against what went in.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use adit_proto::time::Instant;

use crate::host::HostId;

/// One packet sent through the tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Probe {
    /// Who sent it.
    pub from: HostId,
    /// Who shall get it.
    pub to: HostId,
    /// Which of the packets between these two it is, from 0.
    pub number: u64,
}

/// The shortest probe that fits an IPv6 header and its own fields, in bytes.
pub const MIN_PROBE_LEN: usize = 40 + FIELDS_LEN;

const FIELDS_LEN: usize = 16;

/// The inside addresses of a host.
pub fn inside_v4(host: HostId) -> IpAddr {
    Ipv4Addr::from(0x0a00_0001 + host.0).into()
}

/// See [`inside_v4`].
pub fn inside_v6(host: HostId) -> IpAddr {
    Ipv6Addr::from((0xfd00_u128 << 112) + 1 + u128::from(host.0)).into()
}

impl Probe {
    /// The inside packet, `len` bytes long: IPv4 for even numbers, IPv6 for odd ones.
    pub fn packet(&self, len: usize) -> Vec<u8> {
        let len = len.max(MIN_PROBE_LEN);
        let mut packet = Vec::with_capacity(len);
        match (self.number.is_multiple_of(2), len as u16) {
            (true, total) => {
                let [hi, lo] = total.to_be_bytes();
                packet.extend([0x45, 0, hi, lo, 0, 0, 0, 0, 64, 17, 0, 0]);
                push_address(&mut packet, inside_v4(self.from));
                push_address(&mut packet, inside_v4(self.to));
            }
            (false, total) => {
                let [hi, lo] = (total - 40).to_be_bytes();
                packet.extend([0x60, 0, 0, 0, hi, lo, 17, 64]);
                push_address(&mut packet, inside_v6(self.from));
                push_address(&mut packet, inside_v6(self.to));
            }
        }
        packet.extend(self.from.0.to_be_bytes());
        packet.extend(self.to.0.to_be_bytes());
        packet.extend(self.number.to_be_bytes());
        packet.resize(len, self.number as u8);
        packet
    }

    /// The probe in a packet that came out of the tunnel; `None` unless it is whole and unchanged.
    pub fn parse(packet: &[u8]) -> Option<Self> {
        let header_len = if packet.first()? >> 4 == 4 { 20 } else { 40 };
        let fields = packet.get(header_len..)?;
        let word = |at: usize| Some(u32::from_be_bytes(*fields.get(at..)?.first_chunk()?));
        let number = u64::from_be_bytes(*fields.get(8..)?.first_chunk()?);
        let probe = Self { from: HostId(word(0)?), to: HostId(word(4)?), number };
        (probe.packet(packet.len()) == packet).then_some(probe)
    }
}

fn push_address(packet: &mut Vec<u8>, address: IpAddr) {
    match address {
        IpAddr::V4(v4) => packet.extend(v4.octets()),
        IpAddr::V6(v6) => packet.extend(v6.octets()),
    }
}

/// The probes from one host to another.
#[derive(Clone, Debug, Default)]
pub struct Flow {
    arrived: Vec<bool>,
    /// How many arrived.
    pub delivered: u64,
    /// How many arrived after one with a higher number.
    pub reordered: u64,
    /// When the last one arrived.
    pub last_delivered: Option<Instant>,
    newest: Option<u64>,
}

impl Flow {
    /// How many were sent.
    pub fn sent(&self) -> u64 {
        self.arrived.len() as u64
    }

    /// How many did not arrive, up to now.
    pub fn missing(&self) -> u64 {
        self.sent() - self.delivered
    }
}

/// What went into tunnels and what came out.
#[derive(Clone, Debug, Default)]
pub struct Probes {
    flows: BTreeMap<(HostId, HostId), Flow>,
}

impl Probes {
    /// Numbers the next probe between two hosts.
    pub fn next(&mut self, from: HostId, to: HostId) -> Probe {
        let flow = self.flows.entry((from, to)).or_default();
        flow.arrived.push(false);
        Probe { from, to, number: flow.sent() - 1 }
    }

    /// A probe came out of the tunnel.
    ///
    /// # Errors
    /// What is wrong with that: it was never sent, or came out before.
    pub fn deliver(&mut self, now: Instant, probe: Probe) -> Result<(), &'static str> {
        let flow = self.flows.get_mut(&(probe.from, probe.to)).ok_or("delivered but never sent")?;
        let arrived = flow.arrived.get_mut(probe.number as usize).ok_or("delivered but never sent")?;
        if core::mem::replace(arrived, true) {
            return Err("delivered twice");
        }
        flow.delivered += 1;
        flow.reordered += u64::from(flow.newest.is_some_and(|newest| newest > probe.number));
        flow.newest = flow.newest.max(Some(probe.number));
        flow.last_delivered = Some(now);
        Ok(())
    }

    /// Whether a probe came out of the tunnel.
    pub fn arrived(&self, probe: Probe) -> bool {
        let flow = self.flows.get(&(probe.from, probe.to));
        flow.and_then(|flow| flow.arrived.get(probe.number as usize)).copied().unwrap_or(false)
    }

    /// The probes between two hosts so far.
    pub fn flow(&self, from: HostId, to: HostId) -> Flow {
        self.flows.get(&(from, to)).cloned().unwrap_or_default()
    }

    /// Probes sent and delivered over all flows.
    pub fn totals(&self) -> (u64, u64) {
        self.flows
            .values()
            .fold((0, 0), |(sent, delivered), flow| (sent + flow.sent(), delivered + flow.delivered))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use adit_proto::packet::InsideHeader;

    #[test]
    fn a_probe_is_a_valid_packet_that_survives_unchanged_or_not_at_all() {
        for number in 0..4 {
            let probe = Probe { from: HostId(1), to: HostId(2), number };
            let mut packet = probe.packet(100);
            assert_eq!(InsideHeader::parse(&packet).unwrap().total_len, 100);
            assert_eq!(Probe::parse(&packet), Some(probe));
            packet[99] ^= 1;
            assert_eq!(Probe::parse(&packet), None);
        }
    }

    #[test]
    fn delivery_twice_or_unsent_is_an_error() {
        let mut probes = Probes::default();
        let probe = probes.next(HostId(0), HostId(1));
        assert!(probes.deliver(Instant::ZERO, probe).is_ok());
        assert_eq!(probes.deliver(Instant::ZERO, probe), Err("delivered twice"));
        assert!(probes.deliver(Instant::ZERO, Probe { number: 1, ..probe }).is_err());
        assert!(probes.deliver(Instant::ZERO, Probe { from: HostId(1), ..probe }).is_err());
    }
}
