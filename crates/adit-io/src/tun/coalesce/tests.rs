use std::collections::HashMap;

use proptest::prelude::*;

use super::super::sample::Sample;
use super::*;
use crate::memory::{MemoryHost, Refuse, tun};

/// Packets in the memory of a batch, with gaps as received datagrams have them.
#[derive(Default)]
struct Batch {
    memory: Vec<u8>,
    ranges: Vec<Range<usize>>,
}

impl Batch {
    fn of(packets: &[Vec<u8>]) -> Self {
        let mut batch = Self::default();
        for packet in packets {
            batch.memory.extend([0xaa; 16]);
            let start = batch.memory.len();
            batch.memory.extend(packet);
            batch.ranges.push(start..batch.memory.len());
        }
        batch
    }

    fn write(&self, coalescer: &mut Coalescer, tun: &mut Tun) -> WriteReport {
        for range in &self.ranges {
            coalescer.push(&self.memory, range.clone());
        }
        assert_eq!(coalescer.len(), self.ranges.len());
        let report = coalescer.flush(tun, &self.memory);
        assert!(coalescer.is_empty());
        report
    }
}

fn device(offload: Offload) -> (Coalescer, Tun, MemoryHost) {
    let (tun, host) = tun("test0", 1420, offload).unwrap();
    (Coalescer::new(offload), tun, host)
}

/// Everything written: each write as the packets it stands for.
fn writes(host: &MemoryHost) -> Vec<Vec<Vec<u8>>> {
    std::iter::from_fn(|| host.receive().expect("what we write is well formed")).collect()
}

/// How many packets each write stood for.
fn write_sizes(packets: &[Sample]) -> Vec<usize> {
    let bytes: Vec<_> = packets.iter().map(Sample::bytes).collect();
    raw_write_sizes(&bytes)
}

fn raw_write_sizes(packets: &[Vec<u8>]) -> Vec<usize> {
    let (mut coalescer, mut tun, host) = device(Offload::TcpUdp);
    Batch::of(packets).write(&mut coalescer, &mut tun);
    let writes = writes(&host);
    assert_eq!(comparable(writes.concat()), comparable(packets.to_vec()), "nothing lost or changed");
    writes.iter().map(Vec::len).collect()
}

/// With fragments forbidden, the identification means nothing (RFC 6864) and is numbered anew.
fn comparable(mut packets: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    for packet in &mut packets {
        if packet.len() >= 20
            && packet[0] == 0x45
            && packet[6..8] == [0x40, 0]
            && Checksum::new().add_bytes(&packet[..20]).is_valid()
        {
            packet[4..6].fill(0);
            packet[10..12].fill(0);
        }
    }
    packets
}

fn train(first: &Sample, lengths: &[usize]) -> Vec<Sample> {
    let mut packets = vec![first.clone()];
    for (number, &len) in lengths.iter().enumerate() {
        let next = packets[number].next(&vec![number as u8; len]);
        packets.push(next);
    }
    packets
}

#[test]
fn a_train_becomes_one_superpacket_whose_header_says_what_it_is() {
    for v6 in [false, true] {
        for first in [Sample::tcp(v6, &[9; 100]), Sample::udp(v6, &[9; 100])] {
            let packets = train(&first, &[100, 100, 40]);
            let (mut coalescer, mut tun, host) = device(Offload::TcpUdp);
            let bytes: Vec<_> = packets.iter().map(Sample::bytes).collect();
            let report = Batch::of(&bytes).write(&mut coalescer, &mut tun);
            assert_eq!((report.packets, report.superpackets, report.failed), (4, 1, 0));
            let (vnet, packet) = host.receive_raw().unwrap();
            assert!(host.receive_raw().is_none());
            assert_eq!(packet.len() as u64, report.bytes);

            assert_eq!(vnet.flags, VnetHeader::NEEDS_CSUM);
            assert_eq!(usize::from(vnet.hdr_len), first.headers_len());
            assert_eq!(usize::from(vnet.csum_start), first.ip_header_len());
            assert_eq!(usize::from(vnet.csum_start + vnet.csum_offset), first.checksum_at());
            assert_eq!(vnet.gso_size, 100);
            let whole: Vec<u8> = packets.iter().flat_map(|packet| packet.payload.clone()).collect();
            let expected = Sample { payload: whole, ..first.clone() };
            // Finished by the obvious sum, the superpacket is one large packet.
            let mut finished = packet.clone();
            let sum = Checksum::new().add_bytes(&packet[first.ip_header_len()..]).complement();
            finished[first.checksum_at()..][..2].copy_from_slice(&sum);
            assert_eq!(finished, expected.bytes());
        }
    }
}

#[test]
fn what_differs_from_segmentation_is_not_merged() {
    type Change = fn(&mut Sample);
    let both: &[(&str, Change)] = &[
        ("source", |p| p.source ^= 1),
        ("source port", |p| p.source_port ^= 1),
        ("destination", |p| p.destination ^= 1),
        ("destination port", |p| p.destination_port ^= 1),
        ("DSCP", |p| p.tos ^= 0x20),
        ("ECN", |p| p.tos ^= 1),
        ("TTL", |p| p.ttl -= 1),
        ("larger", |p| p.payload.push(0)),
        ("empty", |p| p.payload.clear()),
    ];
    let tcp: &[(&str, Change)] = &[
        ("gap", |p| p.sequence += 1),
        ("repeated", |p| p.sequence -= 100),
        ("acknowledgement", |p| p.acknowledgement += 1),
        ("window", |p| p.window += 1),
        ("timestamp", |p| p.options[7] += 1),
        ("fewer options", |p| p.options.truncate(8)),
        ("SYN", |p| p.flags |= 0x02),
        ("FIN", |p| p.flags |= 0x01),
        ("RST", |p| p.flags |= 0x04),
        ("urgent pointer", |p| p.urgent = 1),
        ("URG", |p| p.flags |= 0x20),
        ("ECE", |p| p.flags |= 0x40),
        ("CWR", |p| p.flags |= 0x80),
        ("no ACK", |p| p.flags &= !0x10),
    ];
    for v6 in [false, true] {
        for first in [Sample::tcp(v6, &[9; 100]), Sample::udp(v6, &[9; 100])] {
            let changes = if first.udp { [both, &[]].concat() } else { [both, tcp].concat() };
            assert_eq!(write_sizes(&train(&first, &[100])), [2], "the control");
            for (what, change) in changes {
                let mut packets = train(&first, &[100]);
                change(&mut packets[1]);
                assert_eq!(write_sizes(&packets), [1, 1], "{what}, v6 {v6}, udp {}", first.udp);
            }
        }
    }
    let v4 = |dont_fragment| Sample { dont_fragment, ..Sample::tcp(false, &[9; 100]) };
    for (what, dont_fragment, skip, sizes) in [
        ("the identification counts up", false, 0, &[2][..]),
        ("the identification jumps", false, 1, &[1, 1]),
        ("the identification means nothing", true, 1, &[2]),
    ] {
        let mut packets = train(&v4(dont_fragment), &[100]);
        packets[1].id += skip;
        assert_eq!(write_sizes(&packets), sizes, "{what}");
    }
    let mut packets = train(&v4(false), &[100]);
    packets[1].dont_fragment = true;
    assert_eq!(write_sizes(&packets), [1, 1], "fragments allowed and not");
    let mut packets = train(&Sample::tcp(true, &[9; 100]), &[100]);
    packets[1].flow_label ^= 1;
    assert_eq!(write_sizes(&packets), [1, 1], "flow label");
    for v6 in [false, true] {
        let mut packets = train(&Sample::udp(v6, &[9; 100]), &[100]);
        packets[0] = Sample { options: vec![], ..Sample::tcp(v6, &[9; 100]) };
        assert_eq!(write_sizes(&packets), [1, 1], "protocol");
    }
}

#[test]
fn push_and_a_short_packet_end_a_superpacket() {
    let first = Sample::tcp(false, &[9; 100]);
    let mut packets = train(&first, &[100, 100, 100, 100]);
    packets[1].flags |= 0x08;
    assert_eq!(write_sizes(&packets), [2, 3]);
    assert_eq!(write_sizes(&train(&first, &[100, 60, 60, 60])), [3, 2]);
}

#[test]
fn damage_is_not_hidden_by_a_new_checksum() {
    for v6 in [false, true] {
        for first in [Sample::tcp(v6, &[9; 100]), Sample::udp(v6, &[9; 100])] {
            for damaged in 0..3 {
                let mut packets: Vec<_> = train(&first, &[100, 100]).iter().map(Sample::bytes).collect();
                assert_eq!(raw_write_sizes(&packets), [3], "the control");
                let last = packets[damaged].len() - 1;
                packets[damaged][last] ^= 1;
                let sizes = raw_write_sizes(&packets);
                assert_eq!(sizes, [&[1, 2][..], &[1, 1, 1], &[2, 1]][damaged], "v6 {v6}, packet {damaged}");
            }
        }
    }
    let mut packets: Vec<_> =
        train(&Sample::tcp(false, &[9; 100]), &[100]).iter().map(Sample::bytes).collect();
    packets[1][11] ^= 1;
    assert_eq!(raw_write_sizes(&packets), [1, 1], "the sum of the IPv4 header");
}

#[test]
fn datagrams_without_checksum_stay_alone() {
    let mut packets: Vec<_> =
        train(&Sample::udp(false, &[9; 100]), &[100]).iter().map(Sample::bytes).collect();
    assert_eq!(raw_write_sizes(&packets), [2], "the control");
    for packet in &mut packets {
        packet[26..28].fill(0);
    }
    assert_eq!(raw_write_sizes(&packets), [1, 1]);

    // Whose sum is zero says so with all ones; zero in the field is none, and would add up as well.
    let mut packets = train(&Sample::udp(false, &[9; 100]), &[100]);
    let sum = u16::from_be_bytes(*packets[1].bytes()[26..].first_chunk().unwrap());
    packets[1].payload[..2].copy_from_slice(&sum.to_be_bytes());
    let mut packets: Vec<_> = packets.iter().map(Sample::bytes).collect();
    assert_eq!(packets[1][26..28], [0xff; 2]);
    assert_eq!(raw_write_sizes(&packets), [2], "the control");
    packets[1][26..28].fill(0);
    assert_eq!(raw_write_sizes(&packets), [1, 1], "behind one that has a checksum");
}

#[test]
fn a_superpacket_is_no_longer_than_an_ip_packet_nor_than_64_packets() {
    let sizes = write_sizes(&train(&Sample::tcp(false, &[9; 1400]), &[1400; 99]));
    assert_eq!(sizes, [46, 46, 8]);
    let sizes = write_sizes(&train(&Sample::udp(true, &[9; 50]), &[50; 99]));
    assert_eq!(sizes, [64, 36]);
}

#[test]
fn flows_keep_their_order_around_what_cannot_be_parsed() {
    let packets: Vec<_> =
        train(&Sample::tcp(false, &[9; 100]), &[100, 100, 100]).iter().map(Sample::bytes).collect();
    let mut fragment = packets[0].clone();
    fragment[6] = 0x20;
    let mut options = packets[0].clone();
    options[0] = 0x46;
    let mut icmp = packets[0].clone();
    icmp[9] = 1;
    let interrupted = |by: &Vec<u8>| {
        let mut packets = packets.clone();
        packets.insert(2, by.clone());
        let (mut coalescer, mut tun, host) = device(Offload::TcpUdp);
        Batch::of(&packets).write(&mut coalescer, &mut tun);
        writes(&host).iter().map(Vec::len).collect::<Vec<_>>()
    };
    assert_eq!(interrupted(&fragment), [2, 1, 2]);
    assert_eq!(interrupted(&options), [2, 1, 2]);
    assert_eq!(interrupted(&icmp), [4, 1], "another protocol has no part in the flow");
}

#[test]
fn without_offload_every_packet_is_written_as_it_is() {
    let packets: Vec<_> =
        train(&Sample::tcp(false, &[9; 100]), &[100, 100]).iter().map(Sample::bytes).collect();
    for offload in [Offload::None, Offload::Checksum] {
        let (mut coalescer, mut tun, host) = device(offload);
        let report = Batch::of(&packets).write(&mut coalescer, &mut tun);
        assert_eq!((report.packets, report.superpackets), (3, 0));
        let written: Vec<_> = std::iter::from_fn(|| host.receive_raw()).collect();
        assert!(written.iter().all(|(vnet, _)| *vnet == VnetHeader::NONE));
        assert_eq!(written.into_iter().map(|(_, packet)| packet).collect::<Vec<_>>(), packets);
    }
    let (mut coalescer, mut tun, host) = device(Offload::Tcp);
    let datagrams: Vec<_> = train(&Sample::udp(false, &[9; 100]), &[100]).iter().map(Sample::bytes).collect();
    Batch::of(&[packets, datagrams].concat()).write(&mut coalescer, &mut tun);
    assert_eq!(writes(&host).iter().map(Vec::len).collect::<Vec<_>>(), [3, 1, 1], "TCP only");
}

#[test]
fn a_refused_superpacket_goes_out_packet_by_packet_and_merging_stops() {
    for errno in [libc::EINVAL, libc::EIO] {
        let (mut coalescer, mut tun, host) = device(Offload::TcpUdp);
        let packets: Vec<_> =
            train(&Sample::tcp(false, &[9; 100]), &[100, 100]).iter().map(Sample::bytes).collect();
        let datagrams: Vec<_> =
            train(&Sample::udp(false, &[9; 100]), &[100]).iter().map(Sample::bytes).collect();
        let batch = Batch::of(&packets);
        host.refuse(Some(Refuse::Superpackets(errno)));
        let report = batch.write(&mut coalescer, &mut tun);
        assert_eq!((report.packets, report.superpackets, report.failed, report.degraded), (3, 0, 0, 1));
        assert_eq!(writes(&host).concat(), packets);

        host.refuse(None);
        let report = batch.write(&mut coalescer, &mut tun);
        assert_eq!((report.packets, report.superpackets, report.degraded), (3, 0, 0));
        let report = Batch::of(&datagrams).write(&mut coalescer, &mut tun);
        assert_eq!((report.packets, report.superpackets), (2, 1), "the other protocol still merges");
    }
}

/// The packet as a sender leaves it whose kernel offloads checksums.
fn unfinished(sample: &Sample) -> Vec<u8> {
    let mut packet = sample.bytes();
    let version = Version::of(&packet).unwrap();
    let protocol = if sample.udp { UDP } else { TCP };
    let pseudo = pseudo_header(version, &packet, protocol, packet.len() - sample.ip_header_len()).partial();
    packet[sample.checksum_at()..][..2].copy_from_slice(&pseudo);
    packet
}

#[test]
fn packets_with_unfinished_checksums_merge_with_each_other_and_with_finished_ones() {
    for v6 in [false, true] {
        for first in [Sample::tcp(v6, &[9; 100]), Sample::udp(v6, &[9; 100])] {
            let packets = train(&first, &[100, 100, 40]);
            for pattern in 0..16u32 {
                let left = |number: usize| pattern >> number & 1 != 0;
                let bytes: Vec<_> = packets
                    .iter()
                    .enumerate()
                    .map(|(number, packet)| if left(number) { unfinished(packet) } else { packet.bytes() })
                    .collect();
                let batch = Batch::of(&bytes);
                let (mut coalescer, mut tun, host) = device(Offload::TcpUdp);
                for (number, range) in batch.ranges.iter().cloned().enumerate() {
                    if left(number) {
                        coalescer.push_unfinished(&batch.memory, range);
                    } else {
                        coalescer.push(&batch.memory, range);
                    }
                }
                let report = coalescer.flush(&mut tun, &batch.memory);
                assert_eq!((report.packets, report.superpackets), (4, 1), "{pattern:04b}");
                let expected = packets.iter().map(Sample::bytes).collect();
                assert_eq!(comparable(writes(&host).concat()), comparable(expected), "{pattern:04b}");
            }
            let (mut coalescer, mut tun, host) = device(Offload::TcpUdp);
            let damaged = [packets[0].bytes(), unfinished(&packets[1])];
            Batch::of(&damaged).write(&mut coalescer, &mut tun);
            let sizes: Vec<_> = writes(&host).iter().map(Vec::len).collect();
            assert_eq!(sizes, [1, 1], "without the word of the sender it is a damaged packet");
            for damaged in [0, 1] {
                let mut bytes = [unfinished(&packets[0]), unfinished(&packets[1])];
                let is_v4 = bytes[0][0] >> 4 == 4;
                if is_v4 {
                    bytes[damaged][10] ^= 0x40;
                }
                let batch = Batch::of(&bytes);
                for range in batch.ranges.iter().cloned() {
                    coalescer.push_unfinished(&batch.memory, range);
                }
                let report = coalescer.flush(&mut tun, &batch.memory);
                assert_eq!(
                    (report.packets, report.superpackets),
                    (2, u64::from(!is_v4)),
                    "a damaged header stays so"
                );
            }
        }
    }
}

#[test]
fn a_packet_alone_is_left_to_the_kernel_to_finish_and_finished_for_one_that_does_not() {
    for sample in [Sample::tcp(false, &[9; 100]), Sample::udp(true, &[9; 101])] {
        let batch = Batch::of(&[unfinished(&sample)]);
        let write = |offload, refuse| {
            let (mut coalescer, mut tun, host) = device(offload);
            host.refuse(refuse);
            coalescer.push_unfinished(&batch.memory, batch.ranges[0].clone());
            let report = coalescer.flush(&mut tun, &batch.memory);
            assert_eq!((report.packets, report.failed), (1, 0));
            host.receive_raw().unwrap()
        };
        let at = sample.ip_header_len() as u16;
        let wanted = VnetHeader {
            flags: VnetHeader::NEEDS_CSUM,
            csum_start: at,
            csum_offset: sample.checksum_at() as u16 - at,
            ..VnetHeader::NONE
        };
        for offload in [Offload::TcpUdp, Offload::Tcp, Offload::Checksum] {
            assert_eq!(write(offload, None), (wanted, unfinished(&sample)));
        }
        let finished = (VnetHeader::NONE, sample.bytes());
        assert_eq!(write(Offload::None, None), finished);
        assert_eq!(write(Offload::TcpUdp, Some(Refuse::Unfinished(libc::EINVAL))), finished);
    }
}

#[test]
fn a_device_that_is_down_does_not_stop_merging() {
    let (mut coalescer, mut tun, host) = device(Offload::TcpUdp);
    let packets: Vec<_> =
        train(&Sample::tcp(false, &[9; 100]), &[100, 100]).iter().map(Sample::bytes).collect();
    let batch = Batch::of(&packets);
    host.refuse(Some(Refuse::Everything(libc::EIO)));
    let report = batch.write(&mut coalescer, &mut tun);
    assert_eq!((report.packets, report.failed, report.degraded, report.gone), (0, 3, 0, false));
    host.refuse(Some(Refuse::Everything(libc::EBADFD)));
    let report = batch.write(&mut coalescer, &mut tun);
    assert_eq!((report.packets, report.failed, report.degraded, report.gone), (0, 3, 0, true));
    host.refuse(None);
    let report = batch.write(&mut coalescer, &mut tun);
    assert_eq!((report.packets, report.superpackets), (3, 1));
}

#[test]
fn more_flows_than_the_table_holds_lose_merging_but_no_packet_and_no_order() {
    let flow = |number: usize| {
        let first = Sample::tcp(false, &[number as u8; 30]);
        train(&Sample { source_port: number as u16, ..first }, &[30, 30])
    };
    let flows: Vec<_> = (0..300).map(flow).collect();
    let packets: Vec<_> = (0..3).flat_map(|turn| flows.iter().map(move |flow| flow[turn].bytes())).collect();
    let (mut coalescer, mut tun, host) = device(Offload::TcpUdp);
    let report = Batch::of(&packets).write(&mut coalescer, &mut tun);
    assert_eq!(report.packets, 900);
    assert!(report.superpackets > 250, "{report:?}");
    assert_eq!(by_flow(&writes(&host).concat()), by_flow(&packets));

    let flows: Vec<_> = (0..5000usize).map(flow).collect();
    let packets: Vec<_> = (0..3).flat_map(|turn| flows.iter().map(move |flow| flow[turn].bytes())).collect();
    let mut coalescer = Coalescer::new(Offload::TcpUdp);
    let batch = Batch::of(&packets);
    for range in &batch.ranges {
        coalescer.push(&batch.memory, range.clone());
    }
    let mut pushed: Vec<_> =
        coalescer.runs.iter().flat_map(|run| coalescer.packets_of(run)).map(|p| p.start).collect();
    assert!(coalescer.runs.len() < packets.len(), "some merge");
    let in_runs: Vec<_> = pushed.iter().map(|&start| packet_at(&batch, start)).collect();
    assert_eq!(by_flow(&in_runs), by_flow(&packets));
    pushed.sort_unstable();
    pushed.dedup();
    assert_eq!(pushed.len(), packets.len());
}

/// One that shares its place in the table with others must not get their payload.
#[test]
fn flows_that_share_a_place_in_the_table_are_never_merged() {
    for (v6, udp) in [(false, false), (false, true), (true, false), (true, true)] {
        // The second packet of each would follow the first of any.
        let flow = |number: usize| {
            let first = Sample { udp, source_port: number as u16, ..Sample::tcp(v6, &[7; 30]) };
            train(
                &Sample { destination: number as u8, destination_port: number as u16 / 3, ..first },
                &[30; 3],
            )
        };
        let flows: Vec<_> = (0..4000usize).map(flow).collect();
        let packets: Vec<_> = (0..2)
            .flat_map(|turn| {
                flows.iter().flat_map(move |flow| flow[2 * turn..][..2].iter().map(Sample::bytes))
            })
            .collect();
        let batch = Batch::of(&packets);
        let mut coalescer = Coalescer::new(Offload::TcpUdp);
        for range in &batch.ranges {
            coalescer.push(&batch.memory, range.clone());
        }
        let packets_of = |run: &Run| -> Vec<Vec<u8>> {
            coalescer.packets_of(run).map(|packet| packet_at(&batch, packet.start)).collect()
        };
        let runs: Vec<_> = coalescer.runs.iter().map(packets_of).collect();
        assert!(runs.iter().any(|run| run.len() == 4), "some merge over the turns");
        let is_one_flow = |run: &Vec<Vec<u8>>| run.iter().all(|packet| flow_of(packet) == flow_of(&run[0]));
        assert!(runs.iter().all(is_one_flow), "v6 {v6}, udp {udp}: flows are mixed");
        assert_eq!(by_flow(&runs.concat()), by_flow(&packets), "nothing lost, nothing overtaken");
    }
}

fn packet_at(batch: &Batch, start: u32) -> Vec<u8> {
    let at = batch.ranges.binary_search_by_key(&(start as usize), |range| range.start).unwrap();
    batch.memory[batch.ranges[at].clone()].to_vec()
}

/// The packets of every flow (or other kind of packet), in order.
fn by_flow(packets: &[Vec<u8>]) -> HashMap<Vec<u8>, Vec<Vec<u8>>> {
    let mut flows: HashMap<_, Vec<_>> = HashMap::new();
    for packet in comparable(packets.to_vec()) {
        flows.entry(flow_of(&packet)).or_default().push(packet);
    }
    flows
}

fn flow_of(packet: &[u8]) -> Vec<u8> {
    match packet.first().map(|byte| byte >> 4) {
        Some(4) => [&packet[9..10], &packet[12..24]].concat(),
        _ => [&packet[6..7], &packet[8..44]].concat(),
    }
}

/// What may happen between two packets of a flow.
#[derive(Clone, Debug)]
enum Step {
    Next(usize),
    Push(usize),
    Change(u8),
    BadSum(usize, usize),
    Fragment,
    Lie,
    Cut(usize),
}

fn steps() -> impl Strategy<Value = Vec<(usize, Step)>> {
    let step = prop_oneof![
        12 => prop::sample::select(vec![100, 100, 100, 100, 60, 140, 0, 1]).prop_map(Step::Next),
        1 => (1..200usize).prop_map(Step::Push),
        2 => any::<u8>().prop_map(Step::Change),
        1 => (1..200usize, any::<usize>()).prop_map(|(len, bit)| Step::BadSum(len, bit)),
        1 => Just(Step::Fragment),
        1 => Just(Step::Lie),
        1 => (44..60usize).prop_map(Step::Cut),
    ];
    prop::collection::vec((0..6usize, step), 0..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn cut_apart_again_every_flow_has_the_packets_that_were_pushed(
        steps in steps(),
        dont_fragment: bool,
        offload in prop::sample::select(vec![Offload::None, Offload::Tcp, Offload::TcpUdp]),
    ) {
        let mut flows: Vec<Sample> = (0..6u8)
            .map(|number| Sample {
                udp: number % 3 == 2,
                source: number,
                dont_fragment,
                ..Sample::tcp(number % 2 == 1, &[])
            })
            .collect();
        let mut packets = Vec::new();
        for (number, step) in steps {
            let flow = &mut flows[number];
            let len = match step {
                Step::Next(len) | Step::Push(len) | Step::BadSum(len, _) => len,
                _ => 100,
            };
            *flow = flow.next(&vec![number as u8; len]);
            flow.flags = if matches!(step, Step::Push(_)) { 0x18 } else { 0x10 };
            if let Step::Change(what) = step {
                match what % 9 {
                    0 => flow.window += 1,
                    1 => flow.acknowledgement += 1,
                    2 => flow.tos ^= 2,
                    3 => flow.ttl ^= 1,
                    4 => flow.sequence += 5,
                    5 => flow.id += 3,
                    6 => flow.flags = what | 0x10,
                    7 => flow.options.truncate(4),
                    _ => flow.dont_fragment ^= true,
                }
            }
            let mut packet = flow.bytes();
            match step {
                Step::BadSum(_, bit) => {
                    let at = flow.ip_header_len() + 4;
                    let bit = at * 8 + bit % ((packet.len() - at) * 8);
                    packet[bit / 8] ^= 1 << (bit % 8);
                }
                Step::Fragment if !flow.v6 => packet[7] = 9,
                Step::Lie if flow.udp => packet[flow.ip_header_len() + 5] ^= 0x3,
                Step::Lie => packet[flow.ip_header_len() + 12] = 0xf0,
                // What InsideHeader lets through: the IP length is true, the rest is missing.
                Step::Cut(len) => {
                    packet.truncate(len);
                    let stated = (len - if flow.v6 { 40 } else { 0 }) as u16;
                    let at = if flow.v6 { 4 } else { 2 };
                    packet[at..at + 2].copy_from_slice(&stated.to_be_bytes());
                }
                _ => {}
            }
            packets.push(packet);
        }
        let (mut coalescer, mut tun, host) = device(offload);
        let report = Batch::of(&packets).write(&mut coalescer, &mut tun);
        prop_assert_eq!(report.packets, packets.len() as u64);
        prop_assert_eq!((report.failed, report.degraded), (0, 0));
        prop_assert_eq!(by_flow(&writes(&host).concat()), by_flow(&packets));
    }

    #[test]
    fn noise_is_written_as_it_is(packets in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..120), 0..20)) {
        let (mut coalescer, mut tun, host) = device(Offload::TcpUdp);
        let report = Batch::of(&packets).write(&mut coalescer, &mut tun);
        prop_assert_eq!(report.superpackets, 0);
        let written: Vec<_> = std::iter::from_fn(|| host.receive_raw()).map(|(_, packet)| packet).collect();
        prop_assert_eq!(written.len(), packets.len());
        prop_assert!(written.iter().zip(&packets).all(|(written, packet)| packet.starts_with(written)));
    }
}
