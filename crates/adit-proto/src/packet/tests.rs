#![allow(clippy::unwrap_used, clippy::arithmetic_side_effects, clippy::indexing_slicing)]

use proptest::prelude::*;

use super::*;

const BAD: DropReason = DropReason::MalformedInside;

/// An IPv4 packet with a right header checksum.
fn v4(tos: u8, payload_len: usize) -> Vec<u8> {
    let total_len = (20 + payload_len) as u16;
    let [len_hi, len_lo] = total_len.to_be_bytes();
    let mut packet = vec![0x45, tos, len_hi, len_lo, 0x12, 0x34, 0x40, 0, 64, 17, 0, 0];
    packet.extend([10, 0, 0, 1, 192, 0, 2, 9]);
    let [sum_hi, sum_lo] = (!ones_sum(&packet)).to_be_bytes();
    (packet[10], packet[11]) = (sum_hi, sum_lo);
    packet.resize(20 + payload_len, 0xab);
    packet
}

fn v6(class: u8, payload_len: usize) -> Vec<u8> {
    let [len_hi, len_lo] = (payload_len as u16).to_be_bytes();
    let mut packet = vec![0x60 | class >> 4, class << 4 | 0x0e, 0xed, 0xdc, len_hi, len_lo, 17, 64];
    packet.extend("fd00::1".parse::<Ipv6Addr>().unwrap().octets());
    packet.extend("2001:db8::9".parse::<Ipv6Addr>().unwrap().octets());
    packet.resize(40 + payload_len, 0xab);
    packet
}

/// The ones' complement sum of RFC 1071, computed the slow way.
fn ones_sum(header: &[u8]) -> u16 {
    let sum: u64 = header.chunks(2).map(|pair| u64::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    ((folded & 0xffff) + (folded >> 16)) as u16
}

fn ecn_of(packet: &[u8]) -> Ecn {
    InsideHeader::parse(packet).unwrap().ecn
}

const ALL_ECN: [Ecn; 4] = [Ecn::NotEct, Ecn::Ect1, Ecn::Ect0, Ecn::Ce];

#[test]
fn an_ipv4_header_is_read() {
    let header = InsideHeader::parse(&v4(0b1011_1001, 8)).unwrap();
    assert_eq!(
        header,
        InsideHeader {
            source: "10.0.0.1".parse().unwrap(),
            destination: "192.0.2.9".parse().unwrap(),
            ecn: Ecn::Ect1,
            total_len: 28,
            nested_hop_limit: None,
        }
    );
}

#[test]
fn an_ipv6_header_is_read() {
    let header = InsideHeader::parse(&v6(0b1011_1010, 8)).unwrap();
    assert_eq!(
        header,
        InsideHeader {
            source: "fd00::1".parse().unwrap(),
            destination: "2001:db8::9".parse().unwrap(),
            ecn: Ecn::Ect0,
            total_len: 48,
            nested_hop_limit: None,
        }
    );
}

#[test]
fn padding_after_the_packet_is_not_part_of_it() {
    for (mut packet, total_len) in [(v4(0, 3), 23), (v6(0, 3), 43)] {
        packet.resize(packet.len().next_multiple_of(16), 0);
        assert!(packet.len() > total_len);
        assert_eq!(InsideHeader::parse(&packet).unwrap().total_len, total_len);
    }
}

#[test]
fn a_packet_cut_short_anywhere_is_malformed() {
    for packet in [v4(0, 5), v6(0, 5)] {
        assert!(InsideHeader::parse(&packet).is_ok());
        for len in 0..packet.len() {
            assert_eq!(InsideHeader::parse(&packet[..len]), Err(BAD), "{len} bytes");
        }
    }
}

#[test]
fn only_versions_4_and_6_are_packets() {
    for version in 0..16 {
        let mut packet = v4(0, 44);
        packet[0] = version << 4 | 5;
        // Read as IPv6, bytes 4 and 5 state the length: make that honest.
        let is_ip = version == 4 || version == 6;
        (packet[4], packet[5]) = (0, 24);
        assert_eq!(InsideHeader::parse(&packet).is_ok(), is_ip, "version {version}");
    }
}

#[test]
fn an_ipv4_header_that_lies_about_its_length_is_malformed() {
    for words in 0..16_u8 {
        let mut packet = v4(0, 40);
        packet[0] = 0x40 | words;
        assert_eq!(InsideHeader::parse(&packet).is_ok(), words >= 5, "{words} words");
    }
    for (total_len, is_ok) in [(0, false), (19, false), (20, true), (60, true), (61, false), (65_535, false)]
    {
        let mut packet = v4(0, 40);
        packet[2..4].copy_from_slice(&u16::to_be_bytes(total_len));
        assert_eq!(InsideHeader::parse(&packet).is_ok(), is_ok, "{total_len} bytes");
    }
    let mut options_past_the_end = v4(0, 3);
    options_past_the_end[0] = 0x46;
    assert_eq!(InsideHeader::parse(&options_past_the_end), Err(BAD));
}

#[test]
fn an_ipv6_header_that_lies_about_its_length_is_malformed() {
    for (payload_len, is_ok) in [(0, true), (40, true), (41, false), (65_535, false)] {
        let mut packet = v6(0, 40);
        packet[4..6].copy_from_slice(&u16::to_be_bytes(payload_len));
        assert_eq!(InsideHeader::parse(&packet).is_ok(), is_ok, "{payload_len} bytes");
    }
}

/// RFC 6040 figure 4, by arriving inner and outer header; `None` is a drop.
const DECAPSULATED: [(Ecn, [Option<Ecn>; 4]); 4] = {
    use Ecn::{Ce, Ect0, Ect1, NotEct};
    // Outer:   NotEct        Ect1          Ect0          Ce
    [
        (NotEct, [Some(NotEct), Some(NotEct), Some(NotEct), None]),
        (Ect1, [Some(Ect1), Some(Ect1), Some(Ect1), Some(Ce)]),
        (Ect0, [Some(Ect0), Some(Ect1), Some(Ect0), Some(Ce)]),
        (Ce, [Some(Ce), Some(Ce), Some(Ce), Some(Ce)]),
    ]
};

#[test]
fn ecn_leaves_the_tunnel_as_rfc_6040_says() {
    for (inside, row) in DECAPSULATED {
        for (outside, wanted) in ALL_ECN.into_iter().zip(row) {
            for make in [v4, v6] {
                let original = make(0b1011_1000 | inside as u8, 9);
                let mut packet = original.clone();
                let result = ecn_decapsulate(outside, &mut packet);
                match wanted {
                    None => {
                        assert_eq!(result, Err(DropReason::EcnNotCapable));
                        assert_eq!(packet, original);
                    }
                    Some(ecn) => {
                        assert_eq!(result, Ok(()), "{outside:?} outside, {inside:?} inside");
                        assert_eq!(packet, make(0b1011_1000 | ecn as u8, 9));
                    }
                }
            }
        }
    }
}

#[test]
fn the_ecn_field_is_the_low_two_bits() {
    for tos in 0..=255 {
        assert_eq!(Ecn::from_tos(tos) as u8, tos & 0b11);
        assert_eq!(ecn_of(&v4(tos, 0)), Ecn::from_tos(tos));
        assert_eq!(ecn_of(&v6(tos, 0)), Ecn::from_tos(tos));
    }
}

#[test]
fn marking_what_is_no_packet_changes_nothing() {
    for packet in [vec![], vec![0x45], vec![0x60], vec![0x45, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0], vec![0x05; 20]] {
        let mut marked = packet.clone();
        let _ = ecn_decapsulate(Ecn::Ce, &mut marked);
        assert_eq!(marked, packet);
    }
}

proptest! {
    #[test]
    fn the_ipv4_checksum_stays_right(
        header in prop::collection::vec(any::<u8>(), 20), outside in prop::sample::select(&ALL_ECN[..]),
    ) {
        let mut packet = header;
        packet[0] = 0x45;
        (packet[10], packet[11]) = (0, 0);
        let [sum_hi, sum_lo] = (!ones_sum(&packet)).to_be_bytes();
        (packet[10], packet[11]) = (sum_hi, sum_lo);
        prop_assert_eq!(ones_sum(&packet), 0xffff);
        let before = packet.clone();
        if ecn_decapsulate(outside, &mut packet).is_ok() {
            prop_assert_eq!(ones_sum(&packet), 0xffff);
        }
        prop_assert_eq!(before[1] >> 2, packet[1] >> 2);
        prop_assert_eq!((&before[2..10], &before[12..]), (&packet[2..10], &packet[12..]));
    }

    #[test]
    fn no_bytes_panic_and_a_stated_length_is_there(mut packet in prop::collection::vec(any::<u8>(), 0..120)) {
        if let Ok(header) = InsideHeader::parse(&packet) {
            prop_assert!(header.total_len <= packet.len());
            prop_assert_eq!(header.source.is_ipv4(), packet[0] >> 4 == 4);
            prop_assert_eq!(header.source.is_ipv4(), header.destination.is_ipv4());
        }
        for outside in ALL_ECN {
            let _ = ecn_decapsulate(outside, &mut packet);
        }
    }
}

/// A UDP datagram with this payload, in a packet of each version with this hop limit.
fn udp_packets(hop_limit: u8, payload: &[u8]) -> [Vec<u8>; 2] {
    let (mut four, mut six) = (v4(0, 8 + payload.len()), v6(0, 8 + payload.len()));
    (four[8], four[9]) = (hop_limit, 17);
    (six[6], six[7]) = (17, hop_limit);
    let udp_len = (8 + payload.len() as u16).to_be_bytes();
    four[24..26].copy_from_slice(&udp_len);
    six[44..46].copy_from_slice(&udp_len);
    four[28..].copy_from_slice(payload);
    six[48..].copy_from_slice(payload);
    [four, six]
}

/// A message's type and zeros, as long as that message is.
fn message(kind: u8) -> Vec<u8> {
    let len = match kind & 0x0f {
        1 => 148,
        2 => 92,
        3 => 64,
        _ => 32,
    };
    let mut message = vec![0; len];
    message[0] = kind;
    message
}

fn outside_hop_limit(packet: &[u8]) -> Option<Option<u8>> {
    InsideHeader::parse(packet).unwrap().outside_hop_limit()
}

#[test]
fn a_message_of_a_tunnel_may_be_nested_until_its_hops_are_used_up() {
    for kind in [1, 2, 3, 4, 0x21, 0x22, 0x23, 0x24] {
        for (hop_limit, outside) in [(64, 48), (48, 32), (32, 16), (17, 1), (255, 239)] {
            for packet in udp_packets(hop_limit, &message(kind)) {
                assert_eq!(outside_hop_limit(&packet), Some(Some(outside)), "{kind} {packet:?}");
            }
        }
        for hop_limit in [16, 1, 0] {
            for packet in udp_packets(hop_limit, &message(kind)) {
                assert_eq!(outside_hop_limit(&packet), None, "{kind} {packet:?}");
            }
        }
    }
}

#[test]
fn any_other_packet_leaves_the_hop_limit_to_the_host() {
    let mut reserved = message(4);
    reserved[3] = 1;
    let long_initiation = [message(1), vec![0]].concat();
    let others = [&message(5)[..], &message(0), &reserved, &long_initiation, &[4, 0, 0, 0], &[4, 0, 0], &[]];
    for payload in others {
        for packet in udp_packets(1, payload) {
            assert_eq!(outside_hop_limit(&packet), Some(None), "{payload:?}");
        }
    }
    let [mut four, mut six] = udp_packets(1, &message(4));
    (four[9], six[6]) = (6, 6);
    assert_eq!(outside_hop_limit(&four), Some(None), "not UDP");
    assert_eq!(outside_hop_limit(&six), Some(None), "not UDP");
}

#[test]
fn of_a_fragmented_message_the_first_fragment_counts() {
    for (offset, expected) in [(0u16, None), (1, Some(None))] {
        let [mut four, six] = udp_packets(16, &message(4));
        four[6..8].copy_from_slice(&(0x2000 | offset).to_be_bytes());
        assert_eq!(outside_hop_limit(&four), expected);
        let mut fragment = v6(0, 48);
        (fragment[6], fragment[7]) = (44, 16);
        fragment[40] = 17;
        fragment[42..44].copy_from_slice(&(offset << 3 | 1).to_be_bytes());
        fragment[48..].copy_from_slice(&six[40..]);
        assert_eq!(outside_hop_limit(&fragment), expected);
    }
}
