use proptest::prelude::*;

use super::super::sample::{Sample, samples, slow_checksum};
use super::*;

/// The header with which the kernel hands over a packet that it left to us to cut.
fn superpacket_header(sample: &Sample, size: u16) -> VnetHeader {
    VnetHeader {
        flags: VnetHeader::NEEDS_CSUM,
        gso_type: match (sample.udp, sample.v6) {
            (true, _) => VnetHeader::GSO_UDP_L4,
            (false, false) => VnetHeader::GSO_TCPV4,
            (false, true) => VnetHeader::GSO_TCPV6,
        },
        hdr_len: 0,
        gso_size: size,
        csum_start: sample.ip_header_len() as u16,
        csum_offset: if sample.udp { 6 } else { 16 },
    }
}

fn cut(vnet: &VnetHeader, packet: &[u8]) -> Vec<Vec<u8>> {
    let inside = Inside::parse(vnet, packet).expect("well formed");
    let mut segmenter = inside.segments(packet);
    let mut buf = vec![0; inside.stride()];
    let packets: Vec<_> =
        std::iter::from_fn(|| segmenter.next(&mut buf).map(|len| buf[..len].to_vec())).collect();
    assert_eq!(packets.len(), inside.count());
    assert_eq!(packets.last().map(Vec::len), Some(inside.last_len()));
    let (_, whole) = packets.split_last().expect("at least one");
    assert!(whole.iter().all(|packet| packet.len() == inside.stride()));
    packets
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn segments_are_those_of_the_obvious_version(sample in samples(0..6000), size in 1u16..3000, checksum: [u8; 2]) {
        let size = size.max(sample.payload.len() as u16 / 100 + 1);
        let mut packet = sample.bytes();
        let at = sample.checksum_at();
        packet[at..at + 2].copy_from_slice(&checksum);
        let expected: Vec<_> = sample.cut(size.into()).iter().map(Sample::bytes).collect();
        prop_assert_eq!(cut(&superpacket_header(&sample, size), &packet), expected);
    }

    #[test]
    fn what_is_left_unfinished_is_finished_to_the_same(sample in samples(1..6000), size in 1u16..3000) {
        let size = size.max(sample.payload.len() as u16 / 100 + 1);
        let (vnet, packet) = (superpacket_header(&sample, size), sample.bytes());
        let inside = Inside::parse(&vnet, &packet).unwrap();
        let mut segments = inside.unfinished_segments(&packet).expect("TCP or UDP");
        let mut buf = vec![0; inside.stride()];
        for expected in sample.cut(size.into()).iter().map(Sample::bytes) {
            let len = segments.next(&mut buf).expect("as many");
            let segment = &mut buf[..len];
            let (start, at) = (sample.ip_header_len(), sample.checksum_at());
            let addresses = if sample.v6 { 8..40 } else { 12..20 };
            let length = (len - start) as u16;
            let protocol = [0, if sample.udp { 17 } else { 6 }];
            let pseudo = [&segment[addresses], &protocol, &length.to_be_bytes()].concat();
            prop_assert_eq!(&segment[at..at + 2], &(!slow_checksum(&pseudo)).to_be_bytes());
            prop_assert!(finish_checksum(segment));
            prop_assert_eq!(&*segment, &expected[..]);
        }
        prop_assert_eq!(segments.next(&mut buf), None);
    }

    #[test]
    fn an_unfinished_checksum_is_finished(sample in samples(0..2000)) {
        let complete = sample.bytes();
        let mut packet = complete.clone();
        let (start, at) = (sample.ip_header_len(), sample.checksum_at());
        let addresses = if sample.v6 { 8..40 } else { 12..20 };
        let length = (packet.len() - start) as u16;
        let pseudo = [&packet[addresses], &[0, if sample.udp { 17 } else { 6 }], &length.to_be_bytes()].concat();
        packet[at..at + 2].copy_from_slice(&(!slow_checksum(&pseudo)).to_be_bytes());
        let vnet = VnetHeader { gso_type: VnetHeader::GSO_NONE, gso_size: 0, ..superpacket_header(&sample, 1) };
        prop_assert_eq!(cut(&vnet, &packet), [complete]);
    }

    #[test]
    fn a_complete_packet_is_left_alone(sample in samples(0..2000), padding in 0usize..20) {
        let mut packet = sample.bytes();
        let len = packet.len();
        packet.resize(len + padding, 0xee);
        prop_assert_eq!(cut(&VnetHeader::NONE, &packet), [&packet[..len]]);
    }

    #[test]
    fn nothing_panics_and_no_payload_is_made_up(
        sample in samples(0..3000),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        keep in any::<prop::sample::Index>(),
        whole: bool,
        flags: u8,
        gso_type in prop::sample::select(vec![0u8, 1, 3, 4, 5, 0x81, 0x84, 0x85, 77]),
        numbers: [u16; 4],
        honest: [bool; 4],
    ) {
        let mut packet = sample.bytes();
        for (at, value) in damage {
            let at = at.index(packet.len().min(80));
            packet[at] = value;
        }
        if !whole {
            packet.truncate(keep.index(packet.len() + 1));
        }
        let truth = superpacket_header(&sample, 700);
        let pick = |number: usize, truth| if honest[number] { truth } else { numbers[number] };
        let vnet = VnetHeader {
            flags,
            gso_type: if honest[0] { truth.gso_type } else { gso_type },
            hdr_len: numbers[0],
            gso_size: pick(1, truth.gso_size),
            csum_start: pick(2, truth.csum_start),
            csum_offset: pick(3, truth.csum_offset),
        };
        if Inside::parse(&vnet, &packet).is_ok() {
            let packets = cut(&vnet, &packet);
            let inside = Inside::parse(&vnet, &packet).unwrap();
            let headers = inside.stride() * inside.count();
            prop_assert!(packets.iter().map(Vec::len).sum::<usize>() <= headers);
            prop_assert!(packets.iter().all(|packet| InsideHeader::parse(packet).is_ok()));
        }
    }

    #[test]
    fn noise_never_panics(packet in prop::collection::vec(any::<u8>(), 0..200), header: [u8; VnetHeader::LEN]) {
        let vnet = VnetHeader::from_bytes(&header);
        prop_assert_eq!(vnet.to_bytes(), header);
        if Inside::parse(&vnet, &packet).is_ok() {
            cut(&vnet, &packet);
        }
    }
}

#[test]
fn every_lie_is_refused_and_the_truth_is_not() {
    for v6 in [false, true] {
        for sample in [Sample::tcp(v6, &[1; 3000]), Sample::udp(v6, &[1; 3000])] {
            let packet = sample.bytes();
            let truth = superpacket_header(&sample, 1000);
            let parses = |vnet: VnetHeader, packet: &[u8]| Inside::parse(&vnet, packet).is_ok();
            assert!(parses(truth, &packet));
            assert_eq!(cut(&truth, &packet).len(), 3);
            assert!(parses(VnetHeader { hdr_len: u16::MAX, ..truth }, &packet), "hdr_len is not looked at");

            let plain = VnetHeader { gso_type: VnetHeader::GSO_NONE, ..truth };
            assert!(parses(plain, &packet));
            let lies = [
                ("size 0", VnetHeader { gso_size: 0, ..truth }),
                ("size by fragments", VnetHeader { gso_size: u16::MAX, ..truth }),
                ("fragmentation offload", VnetHeader { gso_type: 3, ..truth }),
                ("unknown type", VnetHeader { gso_type: 0x40, ..truth }),
                ("sum of the payload", VnetHeader { csum_start: truth.csum_start + 8, ..truth }),
                ("sum of the IP header", VnetHeader { csum_start: 0, ..plain }),
                ("sum behind the end", VnetHeader { csum_start: packet.len() as u16, ..plain }),
                ("field behind the end", VnetHeader { csum_offset: packet.len() as u16, ..plain }),
                ("overflow", VnetHeader { csum_start: u16::MAX, csum_offset: u16::MAX, ..plain }),
            ];
            for (what, vnet) in lies {
                assert!(!parses(vnet, &packet), "{what}, v6 {v6}, udp {}", sample.udp);
            }
            let other = if sample.udp { VnetHeader::GSO_TCPV4 } else { VnetHeader::GSO_UDP_L4 };
            assert!(!parses(VnetHeader { gso_type: other, ..truth }, &packet), "the other protocol");
            assert!(!parses(truth, &packet[..packet.len() - 1]), "shorter than its IP header says");
            assert!(!parses(truth, &[]), "empty");

            if !v6 {
                let mut fragment = packet.clone();
                fragment[6] |= 0x20;
                assert!(!parses(truth, &fragment), "a fragment");
            }
            if !sample.udp {
                for offset in [0x40, 0xf0] {
                    let mut short = Sample { payload: vec![1; 4], ..sample.clone() }.bytes();
                    short[sample.ip_header_len() + 12] = offset;
                    assert!(!parses(truth, &short), "TCP data offset {offset:#x}");
                }
            }
        }
    }
}

#[test]
fn ipv6_options_are_walked_over() {
    let sample = Sample::tcp(true, &[5; 250]);
    let with_options = |sample: &Sample| {
        let packet = sample.bytes();
        let mut long = packet[..40].to_vec();
        long[6] = 0;
        let length = (packet.len() - 40 + 8) as u16;
        long[4..6].copy_from_slice(&length.to_be_bytes());
        long.extend([6, 0, 1, 4, 0, 0, 0, 0]);
        long.extend(&packet[40..]);
        long
    };
    let vnet = VnetHeader { csum_start: 48, ..superpacket_header(&sample, 100) };
    let expected: Vec<_> = sample.cut(100).iter().map(with_options).collect();
    assert_eq!(cut(&vnet, &with_options(&sample)), expected);
}

#[test]
fn a_sum_of_zero_is_not_written_as_no_checksum() {
    for v6 in [false, true] {
        let zero = (0..=u16::MAX)
            .map(|word| Sample::udp(v6, &word.to_be_bytes()))
            .find(|sample| sample.bytes()[sample.checksum_at()..][..2] == [0xff, 0xff])
            .expect("one of all words brings the sum to zero");
        assert_eq!(cut(&superpacket_header(&zero, 2), &zero.bytes()), [zero.bytes()]);
    }
}

#[test]
fn only_a_checksum_at_the_place_where_a_receiver_looks_is_left_to_it() {
    let leaves = |vnet: &VnetHeader, packet: &[u8]| {
        Inside::parse(vnet, packet).unwrap().unfinished_segments(packet).is_some()
    };
    for sample in [Sample::tcp(false, &[1; 300]), Sample::udp(true, &[1; 300])] {
        let packet = sample.bytes();
        let superpacket = superpacket_header(&sample, 100);
        let plain = VnetHeader { gso_type: VnetHeader::GSO_NONE, gso_size: 0, ..superpacket };
        assert!(leaves(&superpacket, &packet) && leaves(&plain, &packet));
        assert!(!leaves(&VnetHeader::NONE, &packet), "it is complete");
        let elsewhere = VnetHeader { csum_offset: plain.csum_offset + 2, ..plain };
        assert!(!leaves(&elsewhere, &packet), "another field");
        let later = VnetHeader { csum_start: plain.csum_start + 4, ..plain };
        assert!(!leaves(&later, &packet), "another start");
    }
    assert!(!finish_checksum(&mut [0x45; 20]) && !finish_checksum(&mut []));
}
