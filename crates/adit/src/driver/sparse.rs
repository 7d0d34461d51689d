//! Which flows send so little that they need not wait behind others.
//!
//! On a connection a lost segment holds up all that is behind it, and a bulk transfer keeps much behind it. Flows that
//! send little (echoes, names, keystrokes, voices, the first packets of anything) have a connection of their own. A
//! flow that sends more goes over to the first one, and comes back when it has sent nothing there for a second: by then
//! what it had there has arrived, or waits longer than anybody should. Where it goes over, the first packets there may
//! overtake the last ones here. Flows that share a place in the table share its fate.
//!
//! On a way that loses packets there are two such connections. What sends little goes by both of them, and so do the
//! acknowledgements of a transfer while they are few: a loss then delays only what both have lost, or hold up.

use std::hash::{BuildHasher, RandomState};

use adit_proto::time::Instant;

/// Places for flows.
const PLACES: usize = 1_024;
/// The bytes of a flow are counted anew after so long.
const WINDOW_MILLIS: u64 = 100;
/// More in a window is not little: 640 kbit/s.
const LITTLE_BYTES: u32 = 8 * 1024;
/// As are more packets: each that is lost holds up all others for a round trip. A voice has five in a window.
const LITTLE_PACKETS: u32 = 16;
/// Nor are so many of TCP: they are the acknowledgements of a transfer, to which time matters less.
const LITTLE_PACKETS_OF_TCP: u32 = 3;
/// How long a flow that has sent more has to be quiet before it is sparse again.
const QUIET_MILLIS: u64 = 1_000;
/// Acknowledgements of a transfer are few up to this many in a window.
const FEW_ACKNOWLEDGEMENTS: u32 = 50;
const TCP: u8 = 6;
const UDP: u8 = 17;
const FRAGMENT: u8 = 44;
/// Flags of TCP: the one that acknowledgements have, and those of congestion that they may have.
const ACK: u8 = 0x10;
const ECE_CWR: u8 = 0xc0;

/// What a packet is one of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sends {
    /// A flow that sends little.
    Little,
    /// An acknowledgement and nothing else, of a flow that has more of them than are little.
    Acknowledgement,
    /// A flow that sends much.
    Much,
}

/// What flows have sent lately. Of one lane.
#[derive(Debug)]
pub(super) struct SparseFlows {
    places: Vec<Place>,
    seed: RandomState,
}

#[derive(Clone, Copy, Debug, Default)]
struct Place {
    window: u64,
    bytes: u32,
    packets: u32,
    /// Those of the window before.
    packets_before: u32,
    /// When it last went with the bulk; 0 is never.
    bulk_millis: u64,
}

impl SparseFlows {
    pub(super) fn new() -> Self {
        Self { places: Vec::new(), seed: RandomState::new() }
    }

    /// Counts an inside packet or superpacket of `packets`, and tells what its flow sends.
    pub(super) fn take(&mut self, now: Instant, packet: &[u8], packets: usize) -> Sends {
        let Some(flow) = Flow::of(packet) else { return Sends::Much };
        if self.places.is_empty() {
            self.places = vec![Place::default(); PLACES];
        }
        let protocol = flow.protocol;
        let at = self.seed.hash_one(flow) as usize % PLACES;
        let Some(place) = self.places.get_mut(at) else { return Sends::Much };
        let (now, window) = (now.as_millis(), now.as_millis() / WINDOW_MILLIS);
        if place.window != window {
            place.packets_before = if place.window + 1 == window { place.packets } else { 0 };
            (place.window, place.bytes, place.packets) = (window, 0, 0);
        }
        place.bytes = place.bytes.saturating_add(packet.len() as u32);
        place.packets = place.packets.saturating_add(packets.max(1) as u32);
        let most = if protocol == TCP { LITTLE_PACKETS_OF_TCP } else { LITTLE_PACKETS };
        let is_much = place.bytes > LITTLE_BYTES || place.packets > most || packets > 1;
        let was_bulk = place.bulk_millis != 0 && now.saturating_sub(place.bulk_millis) < QUIET_MILLIS;
        if is_much || was_bulk {
            place.bulk_millis = now;
        }
        let are_few = place.packets.max(place.packets_before) <= FEW_ACKNOWLEDGEMENTS;
        match is_much || was_bulk {
            false => Sends::Little,
            true if are_few && is_acknowledgement(packet) => Sends::Acknowledgement,
            true => Sends::Much,
        }
    }
}

/// Whether a packet is one of TCP that only acknowledges: no data that others of its flow must not overtake.
fn is_acknowledgement(packet: &[u8]) -> bool {
    let number =
        |at: usize| packet.get(at..at + 2).map_or(0, |it| usize::from(u16::from_be_bytes([it[0], it[1]])));
    let byte = |at: usize| packet.get(at).copied().unwrap_or(0);
    let (protocol, header_len, end) = match byte(0) >> 4 {
        4 => (byte(9), usize::from(byte(0) & 0x0f) * 4, number(2)),
        _ => (byte(6), 40, 40 + number(4)),
    };
    let data = header_len + usize::from(byte(header_len + 12) >> 4) * 4;
    protocol == TCP && data == end && byte(header_len + 13) & !ECE_CWR == ACK
}

/// Addresses, protocol and, where there are any, ports.
#[derive(Hash)]
struct Flow<'p> {
    addresses: &'p [u8],
    protocol: u8,
    ports: &'p [u8],
}

impl<'p> Flow<'p> {
    /// `None` for fragments: only the first has ports, and all belong together.
    fn of(packet: &'p [u8]) -> Option<Self> {
        let (addresses, protocol, header_len) = match packet.first()? >> 4 {
            4 => {
                let fragment = u16::from_be_bytes([*packet.get(6)?, *packet.get(7)?]);
                if fragment & 0x3fff != 0 {
                    return None;
                }
                (packet.get(12..20)?, *packet.get(9)?, usize::from(*packet.first()? & 0x0f) * 4)
            }
            6 => (packet.get(8..40)?, *packet.get(6)?, 40),
            _ => return None,
        };
        let ports = match protocol {
            TCP | UDP => packet.get(header_len..header_len + 4)?,
            FRAGMENT => return None,
            _ => &[],
        };
        Some(Self { addresses, protocol, ports })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn udp(port: u16, len: usize) -> Vec<u8> {
        let mut packet = vec![0; len];
        packet[0] = 0x45;
        packet[9] = 17;
        packet[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        packet[20..22].copy_from_slice(&port.to_be_bytes());
        packet
    }

    fn at(millis: u64) -> Instant {
        Instant(millis * 1_000_000)
    }

    fn is_little(flows: &mut SparseFlows, millis: u64, packet: &[u8]) -> bool {
        flows.take(at(millis), packet, 1) == Sends::Little
    }

    #[test]
    fn a_flow_that_sends_little_stays_sparse_and_one_that_sends_much_comes_back_after_a_quiet_second() {
        let mut flows = SparseFlows::new();
        for millis in (1_000..5_000).step_by(20) {
            assert!(is_little(&mut flows, millis, &udp(1, 200)), "ten packets in a window");
        }
        let bulk: Vec<bool> = (0..10).map(|_| is_little(&mut flows, 5_000, &udp(1, 1_400))).collect();
        assert_eq!(bulk.iter().take_while(|it| **it).count(), 5, "the first 8 KiB");
        assert!(bulk[5..].iter().all(|it| !it));
        let acks: Vec<bool> = (0..20).map(|_| is_little(&mut flows, 5_000, &udp(7, 52))).collect();
        assert_eq!(acks.iter().take_while(|it| **it).count(), 16);
        let mut ack = udp(8, 52);
        ack[9] = TCP;
        let acks: Vec<bool> = (0..20).map(|_| is_little(&mut flows, 5_000, &ack)).collect();
        assert_eq!(acks.iter().take_while(|it| **it).count(), 3);
        assert!(!is_little(&mut flows, 5_900, &udp(1, 200)));
        assert!(!is_little(&mut flows, 6_800, &udp(1, 200)), "it was not quiet");
        assert!(is_little(&mut flows, 7_800, &udp(1, 200)));
    }

    #[test]
    fn flows_are_told_apart_and_superpackets_and_fragments_are_never_sparse() {
        let mut flows = SparseFlows::new();
        assert_eq!(flows.take(at(1_000), &udp(1, 3_000), 3), Sends::Much);
        let others = (2..102).filter(|port| is_little(&mut flows, 1_000, &udp(*port, 60))).count();
        assert!(others > 90, "but those in the same place: {others}");
        let mut fragment = udp(500, 60);
        assert!(is_little(&mut flows, 3_000, &fragment));
        fragment[6] = 0x20;
        assert!(!is_little(&mut flows, 3_000, &fragment));
        for cut in 0..24 {
            assert!(!is_little(&mut flows, 3_000, &fragment[..cut]), "{cut}");
        }
        let mut six = vec![0; 80];
        (six[0], six[6]) = (0x60, 58);
        assert!(is_little(&mut flows, 3_000, &six));
        six[6] = 44;
        assert!(!is_little(&mut flows, 3_000, &six), "fragments");
    }

    /// A packet of TCP with so much data, over IPv4 or IPv6.
    fn tcp(version: u8, flags: u8, data: usize) -> Vec<u8> {
        let header_len = if version == 4 { 20 } else { 40 };
        let mut packet = vec![0; header_len + 32 + data];
        let len = packet.len() as u16;
        if version == 4 {
            (packet[0], packet[9]) = (0x45, TCP);
            packet[2..4].copy_from_slice(&len.to_be_bytes());
        } else {
            (packet[0], packet[6]) = (0x60, TCP);
            packet[4..6].copy_from_slice(&(len - 40).to_be_bytes());
        }
        (packet[header_len + 12], packet[header_len + 13]) = (8 << 4, flags);
        packet
    }

    #[test]
    fn acknowledgements_of_a_transfer_are_told_from_its_data_while_they_are_few() {
        for version in [4, 6] {
            let mut flows = SparseFlows::new();
            let ack = tcp(version, ACK, 0);
            let count = |flows: &mut SparseFlows, millis, packets: usize, wanted| {
                (0..packets).filter(|_| flows.take(at(millis), &ack, 1) == wanted).count()
            };
            assert_eq!(count(&mut flows, 1_000, 3, Sends::Little), 3);
            assert_eq!(count(&mut flows, 1_000, 47, Sends::Acknowledgement), 47);
            assert_eq!(count(&mut flows, 1_000, 4, Sends::Much), 4, "more than a few");
            assert_eq!(count(&mut flows, 1_100, 4, Sends::Much), 4, "they were many just now");
            assert_eq!(count(&mut flows, 1_200, 4, Sends::Acknowledgement), 4);
            assert_eq!(count(&mut flows, 1_400, 4, Sends::Acknowledgement), 4, "a window without any");
            for (flags, data, wanted) in [
                (ACK | ECE_CWR, 0, Sends::Acknowledgement),
                (ACK, 1, Sends::Much),
                (ACK | 8, 0, Sends::Much),
                (ACK | 1, 0, Sends::Much),
                (ACK | 2, 0, Sends::Much),
                (4, 0, Sends::Much),
                (0, 0, Sends::Much),
            ] {
                assert_eq!(flows.take(at(1_500), &tcp(version, flags, data), 1), wanted, "{flags:x} {data}");
            }
            assert_eq!(flows.take(at(1_600), &tcp(version, ACK, 60_000), 50), Sends::Much);
            assert_eq!(count(&mut flows, 1_600, 4, Sends::Much), 4, "beside a superpacket of many");
        }
        let mut flows = SparseFlows::new();
        for _ in 0..20 {
            flows.take(at(1_600), &udp(9, 52), 1);
        }
        assert_eq!(flows.take(at(1_900), &udp(9, 52), 1), Sends::Much, "UDP acknowledges nothing");
        let cut = tcp(4, ACK, 0);
        (0..cut.len()).for_each(|len| assert!(!is_acknowledgement(&cut[..len]) || len >= 34));
    }
}
