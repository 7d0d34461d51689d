//! The work that offloads leave to a lane: superpackets cut into packets, and packets merged into superpackets.

use adit_io::memory;
use adit_io::tun::checksum::Checksum;
use adit_io::tun::{Coalescer, Inside, Offload, VnetHeader};
use divan::counter::{BytesCount, ItemsCount};
use divan::{Bencher, black_box};

const HEADERS: usize = 20 + 20;
const PACKETS: usize = 45;
const PAYLOADS: [usize; 2] = [64, 1_380];

fn main() {
    divan::main();
}

/// An IPv4 and TCP superpacket as the kernel hands it over: lengths of the whole, checksum of the pseudo header.
fn superpacket(payload: usize) -> (VnetHeader, Vec<u8>) {
    let len = HEADERS + PACKETS * payload;
    let mut packet = vec![0_u8; HEADERS];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&(len as u16).to_be_bytes());
    packet[6] = 0x40;
    packet[8..10].copy_from_slice(&[64, 6]);
    packet[12..20].copy_from_slice(&[10, 9, 0, 1, 10, 9, 0, 2]);
    let ip = Checksum::new().add_bytes(&packet[..20]).complement();
    packet[10..12].copy_from_slice(&ip);
    packet[20..24].copy_from_slice(&[0x1f, 0x90, 0xc0, 0x00]);
    packet[32] = 5 << 4;
    packet[33] = 0x10;
    packet[34..36].copy_from_slice(&500_u16.to_be_bytes());
    let pseudo = Checksum::new().add_bytes(&packet[12..20]).add_u16(6).add_u16((len - 20) as u16).partial();
    packet[36..38].copy_from_slice(&pseudo);
    packet.extend((0..PACKETS * payload).map(|at| at as u8));
    let vnet = VnetHeader {
        flags: VnetHeader::NEEDS_CSUM,
        gso_type: VnetHeader::GSO_TCPV4,
        hdr_len: HEADERS as u16,
        gso_size: payload as u16,
        csum_start: 20,
        csum_offset: 16,
    };
    (vnet, packet)
}

#[divan::bench(args = PAYLOADS)]
fn segment_tcp(bencher: Bencher<'_, '_>, payload: usize) {
    let (vnet, packet) = superpacket(payload);
    let inside = Inside::parse(&vnet, &packet).expect("a good superpacket");
    assert_eq!(inside.count(), PACKETS);
    let mut out = vec![0; inside.stride()];
    bencher.counter(BytesCount::new(packet.len())).counter(ItemsCount::new(PACKETS)).bench_local(|| {
        let mut segments = inside.segments(black_box(&packet));
        let mut bytes = 0;
        while let Some(len) = segments.next(black_box(&mut out)) {
            bytes += len;
        }
        bytes
    });
}

/// With the write into a device in memory, which copies once.
#[divan::bench(args = PAYLOADS)]
fn coalesce_tcp(bencher: Bencher<'_, '_>, payload: usize) {
    let (vnet, packet) = superpacket(payload);
    let inside = Inside::parse(&vnet, &packet).expect("a good superpacket");
    let mut segments = inside.segments(&packet);
    let (mut memory, mut ranges) = (Vec::new(), Vec::new());
    let mut out = vec![0; inside.stride()];
    while let Some(len) = segments.next(&mut out) {
        ranges.push(memory.len()..memory.len() + len);
        memory.extend_from_slice(&out[..len]);
    }
    let (mut tun, host) = memory::tun("bench", 1_420, Offload::TcpUdp).expect("descriptors enough");
    let mut coalescer = Coalescer::new(Offload::TcpUdp);
    bencher.counter(BytesCount::new(memory.len())).counter(ItemsCount::new(PACKETS)).bench_local(|| {
        for range in &ranges {
            coalescer.push(black_box(&memory), range.clone());
        }
        coalescer.flush(&mut tun, &memory);
        let merged = host.receive_raw().expect("one superpacket");
        assert_eq!(merged.1.len(), packet.len());
    });
}
