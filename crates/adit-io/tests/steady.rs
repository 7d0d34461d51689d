//! What must not grow: memory per packet, descriptors per device.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::net::SocketAddr;

use adit_io::carrier::{Family, Port, ReceiveBatch, Transmit, UdpCarrier, UdpConfig};
use adit_io::tun::{Coalescer, INSIDE_MAX, Tun, TunConfig};
use adit_proto::endpoint::Endpoint;
use adit_proto::packet::Ecn;
use common::{add_address, in_namespace, run};

const PACKETS: usize = 10;
/// The length of every inside packet, in bytes.
const LEN: usize = 1028;

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: hands every call on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations() -> u64 {
    ALLOCATIONS.with(Cell::get)
}

#[test]
fn packets_cost_no_allocation_and_devices_leave_no_descriptor() {
    in_namespace(|| {
        let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
        let config = TunConfig { name: Some("cycle0".to_owned()), queues: 2, offload: true };
        drop(Tun::create(&config).unwrap());
        let before = descriptors();
        for _ in 0..50 {
            let queues = Tun::create(&config).unwrap();
            assert!(descriptors() > before);
            drop(queues);
        }
        assert_eq!(descriptors(), before);

        let mut tun = Tun::create(&TunConfig { name: Some("lane0".to_owned()), ..config }).unwrap().remove(0);
        run("ip link set lane0 up");
        add_address("10.8.0.1/24", "lane0");
        let mut a = Port::Udp(UdpCarrier::bind(&UdpConfig::default()).unwrap());
        let mut b = Port::Udp(UdpCarrier::bind(&UdpConfig::default()).unwrap());
        let v4 = Endpoint::udp(SocketAddr::new("127.0.0.1".parse().unwrap(), b.local_port()));
        let v6 = Endpoint::udp(SocketAddr::new("::1".parse().unwrap(), b.local_port()));
        let socket = std::net::UdpSocket::bind("10.8.0.1:0").unwrap();

        let mut inside = vec![0; INSIDE_MAX];
        let mut wire = vec![0; INSIDE_MAX];
        let mut received = ReceiveBatch::new(16);
        let mut coalescer = Coalescer::new(tun.offload());
        let nobody = SocketAddr::new("10.8.0.2".parse().unwrap(), 9);
        let mut superpackets = 0;
        let mut turn = || {
            for _ in 0..PACKETS {
                socket.send_to(&[7; LEN - 28], nobody).unwrap();
            }
            let mut len = 0;
            while let Some(packet) = tun.read(&mut inside).unwrap() {
                // IPv6 says hello on a new link; that is no part of the run.
                if packet.len() == LEN {
                    len += packet.segments(&inside).next(&mut wire[len..]).unwrap();
                }
            }
            assert_eq!(len, PACKETS * LEN);
            let transmit = |endpoint, ecn| Transmit {
                endpoint,
                ecn,
                hop_limit: None,
                segment_size: LEN,
                contents: &wire[..len],
            };
            let report =
                a.send(&[transmit(&v4, Ecn::Ce), transmit(&v6, Ecn::NotEct), transmit(&v4, Ecn::NotEct)]);
            assert_eq!(report.sent, 3 * PACKETS as u64);
            let mut packets = 0;
            let start = std::time::Instant::now();
            while packets < 3 * PACKETS && start.elapsed().as_secs() < 5 {
                for family in [Family::V4, Family::V6] {
                    b.receive(family, &mut received).unwrap();
                    for slot in received.received() {
                        for range in slot.datagrams() {
                            coalescer.push(received.memory(), range);
                            packets += 1;
                        }
                    }
                    superpackets += coalescer.flush(&mut tun, received.memory()).superpackets;
                }
            }
            assert_eq!(packets, 3 * PACKETS);
        };
        for _ in 0..10 {
            turn();
        }
        let before = allocations();
        for _ in 0..200 {
            turn();
        }
        assert_eq!(allocations(), before, "allocations in 200 batches");
        assert!(superpackets > 200, "{superpackets}");
        std::hint::black_box(Box::new(before));
        assert_eq!(allocations(), before + 1, "the counter counts");
    });
}
