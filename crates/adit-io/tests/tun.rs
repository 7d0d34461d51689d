//! TUN devices of the running kernel, in namespaces of their own.

mod common;

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use adit_io::carrier::{Family, ReceiveBatch, Transmit, UdpCarrier, UdpConfig};
use adit_io::poll::Poller;
use adit_io::sys::{LinkEvent, LinkMonitor, NetNamespace};
use adit_io::tun::{Coalescer, INSIDE_MAX, Offload, ReadError, Tun, TunConfig, WriteReport};
use adit_proto::endpoint::Endpoint;
use adit_proto::packet::Ecn;
use common::{add_address, eventually, in_namespace, output, run, succeeds};

fn config(name: &str, queues: usize, offload: bool) -> TunConfig {
    TunConfig { name: Some(name.to_owned()), queues, offload }
}

/// A device whose name may just have been given up: a command that another test starts holds a copy of the closed
/// queue for a moment, between fork and exec.
fn create(name: &str, offload: bool) -> Tun {
    eventually("the device", || match Tun::create(&config(name, 1, offload)) {
        Err(error) if error.kind() == ErrorKind::ResourceBusy => None,
        result => Some(result.unwrap().remove(0)),
    })
}

#[test]
fn devices_have_the_name_mtu_and_queues_that_were_asked_for() {
    in_namespace(|| {
        let mut tun = create("adit0", true);
        assert_eq!(tun.name(), "adit0");
        assert!(tun.index() > 1);
        assert_eq!(tun.mtu().unwrap(), 1500);
        tun.set_mtu(1380).unwrap();
        assert_eq!(tun.mtu().unwrap(), 1380);
        assert!(output("ip link show adit0").contains("mtu 1380 "));
        let error = tun.set_mtu(1_000_000).unwrap_err();
        assert!(error.to_string().contains("1000000"), "{error}");
        assert_eq!(tun.offload(), Offload::TcpUdp, "this kernel is newer than 6.2");
        assert_eq!(create("plain", false).offload(), Offload::None);

        assert_eq!(create("wg%d", false).name(), "wg0");
        let _wg0 = create("wg0", false);
        assert_eq!(create("wg%d", false).name(), "wg1");
        let unnamed = Tun::create(&TunConfig { name: None, queues: 1, offload: false }).unwrap();
        assert_eq!(unnamed[0].name(), "tun0");

        let queues = Tun::create(&config("multi", 3, true)).unwrap();
        assert_eq!(queues.len(), 3);
        assert!(queues.iter().all(|queue| queue.name() == "multi" && queue.index() == queues[0].index()));
    });
}

#[test]
fn a_device_that_cannot_be_had_is_an_error_that_says_why() {
    in_namespace(|| {
        let _held = create("held", true);
        let _multi = Tun::create(&config("multi", 2, true)).unwrap();
        run("ip link add taken0 type veth peer name taken1");
        let long = "x".repeat(16);
        for (name, queues, kind) in [
            ("held", 1, ErrorKind::ResourceBusy),
            ("held", 2, ErrorKind::ResourceBusy),
            ("multi", 2, ErrorKind::ResourceBusy),
            ("taken0", 1, ErrorKind::InvalidInput),
            ("with space", 1, ErrorKind::InvalidInput),
            ("sl/ash", 1, ErrorKind::InvalidInput),
            (&long, 1, ErrorKind::InvalidInput),
        ] {
            let error = Tun::create(&config(name, queues, true)).unwrap_err();
            assert_eq!(error.kind(), kind, "{name}: {error}");
            assert!(error.to_string().contains(name), "{error}");
        }
        let null = std::fs::File::open("/dev/null").unwrap();
        let error = Tun::from_fd(null.into(), true).unwrap_err();
        assert!(error.to_string().contains("TUN queue"), "{error}");
    });
}

#[test]
fn a_persistent_device_is_used_and_its_offload_mask_cleared() {
    in_namespace(|| {
        run("ip tuntap add mode tun vnet_hdr name kept");
        let tun = create("kept", true);
        assert_eq!(tun.offload(), Offload::TcpUdp);
        assert!(output("ethtool -k kept").contains("tcp-segmentation-offload: on"), "the control");
        // The same device in the hands of somebody who cannot deal with superpackets.
        let fd = tun.as_fd().try_clone_to_owned().unwrap();
        drop(tun);
        let tun = Tun::from_fd(fd, false).unwrap();
        assert_eq!(tun.offload(), Offload::None);
        assert!(output("ethtool -k kept").contains("tcp-segmentation-offload: off"));
        drop(tun);
        run("ip link show kept");
    });
}

#[test]
fn an_inherited_queue_is_taken_over() {
    in_namespace(|| {
        for offload in [false, true] {
            let original = create("inherited", offload);
            let mut tun = Tun::from_fd(original.as_fd().try_clone_to_owned().unwrap(), offload).unwrap();
            assert_eq!((tun.name(), tun.index()), (original.name(), original.index()));
            assert_eq!(tun.offload(), original.offload());
            assert!(matches!(tun.read(&mut [0; 2000]), Ok(None)), "it does not block");
        }
    });
}

#[test]
fn a_deleted_device_says_so() {
    in_namespace(|| {
        let mut tun = create("gone0", true);
        let mut monitor = LinkMonitor::new(tun.index()).unwrap();
        let mut poller = Poller::new().unwrap();
        poller.add(&tun, 5).unwrap();
        let mut buf = vec![0; INSIDE_MAX];
        assert!(matches!(tun.read(&mut buf), Ok(None)));
        assert_eq!(tun.write(&[0x45; 20]).unwrap_err().raw_os_error(), Some(libc::EIO), "down");
        run("ip link del gone0");
        let ready: Vec<_> = poller.wait(Some(Duration::from_secs(5))).unwrap().collect();
        assert!(ready.iter().any(|ready| ready.token == 5 && ready.failed), "{ready:?}");
        assert!(matches!(tun.read(&mut buf), Err(ReadError::Gone)));
        assert_eq!(tun.write(&[0x45; 20]).unwrap_err().raw_os_error(), Some(libc::EBADFD));
        assert!(tun.mtu().is_err());
        let last = std::iter::from_fn(|| monitor.wait(Some(Duration::from_millis(500))).unwrap()).last();
        assert_eq!(last, Some(LinkEvent::Deleted));
    });
}

#[test]
fn the_monitor_reports_renames_mtu_state_and_moves_of_its_interface_only() {
    in_namespace(|| {
        let tun = create("first", true);
        let other = create("other", true);
        let mut monitor = LinkMonitor::new(tun.index()).unwrap();
        run("ip link set other mtu 1300");
        assert_eq!(monitor.wait(Some(Duration::from_millis(50))).unwrap(), None);

        let mut last = |until: &dyn Fn(&LinkEvent) -> bool| {
            eventually("an event", || monitor.try_next().unwrap().filter(|event| until(event)))
        };
        let changed = |name: &str, mtu_bytes, up| LinkEvent::Changed { name: name.to_owned(), mtu_bytes, up };
        run("ip link set first name second");
        assert_eq!(last(&|_| true), changed("second", 1500, false));
        assert_eq!(tun.name(), "second");
        assert_eq!(tun.mtu().unwrap(), 1500, "by its new name");
        run("ip link set second mtu 1400");
        last(&|event| *event == changed("second", 1400, false));
        run("ip link set second up");
        last(&|event| *event == changed("second", 1400, true));
        drop(other);

        let (there, name) = std::sync::mpsc::channel();
        let done = Arc::new(AtomicBool::new(false));
        let stop = done.clone();
        let elsewhere = std::thread::spawn(move || {
            NetNamespace::unshare().unwrap();
            let thread = std::fs::read_link("/proc/thread-self").unwrap();
            there.send(format!("/proc/{}/ns/net", thread.display())).unwrap();
            while !stop.load(Relaxed) {
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        run(&format!("ip link set second netns {}", name.recv().unwrap()));
        last(&|event| *event == LinkEvent::Moved);
        assert_eq!(tun.name(), "second", "it lives on elsewhere");
        assert!(tun.mtu().unwrap_err().to_string().contains("MTU"));
        assert!(!succeeds("ip link show second"));
        done.store(true, Relaxed);
        elsewhere.join().unwrap();
    });
}

/// What went through a [`Pump`].
#[derive(Debug, Default)]
struct Passed {
    superpackets_read: u64,
    packets_read: u64,
    written: WriteReport,
}

/// Carries packets between two devices, as two lanes with nothing between them would.
struct Pump {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<Passed>,
}

impl Pump {
    fn start(a: Tun, b: Tun) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut poller = Poller::new().unwrap();
            poller.add(&a, 0).unwrap();
            poller.add(&b, 1).unwrap();
            let mut passed = Passed::default();
            let mut coalescers = [Coalescer::new(b.offload()), Coalescer::new(a.offload())];
            let mut tuns = [a, b];
            let mut arena = vec![0; 1 << 20];
            while !stopped.load(Relaxed) {
                let ready: Vec<_> = poller.wait(Some(Duration::from_millis(20))).unwrap().collect();
                for ready in ready {
                    let from = ready.token as usize;
                    pump(&mut tuns, from, &mut coalescers[from], &mut arena, &mut passed);
                }
            }
            passed
        });
        Self { stop, thread }
    }

    fn stop(self) -> Passed {
        self.stop.store(true, Relaxed);
        self.thread.join().unwrap()
    }
}

fn pump(tuns: &mut [Tun; 2], from: usize, coalescer: &mut Coalescer, arena: &mut [u8], passed: &mut Passed) {
    let mut buf = vec![0; INSIDE_MAX];
    let mut used = 0;
    while let Some(inside) = tuns[from].read(&mut buf).expect("the kernel tells the truth") {
        let mut segments = inside.segments(&buf);
        passed.superpackets_read += u64::from(inside.count() > 1);
        passed.packets_read += inside.count() as u64;
        while let Some(len) = segments.next(&mut arena[used..]) {
            coalescer.push(arena, used..used + len);
            used += len;
        }
        if used + 2 * INSIDE_MAX > arena.len() {
            break;
        }
    }
    let report = coalescer.flush(&mut tuns[1 - from], arena);
    passed.written.packets += report.packets;
    passed.written.superpackets += report.superpackets;
    passed.written.failed += report.failed;
    passed.written.degraded += report.degraded;
}

/// Runs a test with two devices, each alone in its namespace: `here` in that of the calling thread, `there` on a
/// thread in the other. Addresses are 10.5.0.1 and fd05::1 here, 10.5.0.2 and fd05::2 there.
fn between_devices<T: Send + 'static>(
    offload: [bool; 2],
    there: impl FnOnce() -> T + Send + 'static,
    here: impl FnOnce(T) + Send + 'static,
) -> Passed {
    let device = |name: &str, number: u8, offload| {
        let tun = create(name, offload);
        run(&format!("ip link set {name} up"));
        add_address(&format!("10.5.0.{number}/24"), name);
        add_address(&format!("fd05::{number}/64"), name);
        tun
    };
    in_namespace(move || {
        let a = device("left", 1, offload[0]);
        let (b, other) = in_namespace(move || (device("right", 2, offload[1]), there()));
        let pump = Pump::start(a, b);
        here(other);
        pump.stop()
    })
}

const THERE: [&str; 2] = ["10.5.0.2", "fd05::2"];

#[test]
fn tcp_crosses_two_devices_whole_with_and_without_offload() {
    const LEN: usize = 8 << 20;
    let byte_at = |at: usize| (at * 31 + at / 509) as u8;
    for offload in [[true, true], [true, false], [false, true], [false, false]] {
        let listen = || THERE.map(|ip| TcpListener::bind((ip, 0)).unwrap());
        let passed = between_devices(offload, listen, move |listeners| {
            for listener in listeners {
                let address = listener.local_addr().unwrap();
                let receiver = std::thread::spawn(move || {
                    let (mut stream, _) = listener.accept().unwrap();
                    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
                    let mut received = Vec::with_capacity(LEN);
                    stream.read_to_end(&mut received).unwrap();
                    stream.write_all(b"thanks").unwrap();
                    received
                });
                let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5)).unwrap();
                stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
                stream.set_write_timeout(Some(Duration::from_secs(5))).unwrap();
                let data: Vec<u8> = (0..LEN).map(byte_at).collect();
                stream.write_all(&data).unwrap();
                stream.shutdown(std::net::Shutdown::Write).unwrap();
                let mut answer = String::new();
                stream.read_to_string(&mut answer).unwrap();
                assert_eq!(answer, "thanks");
                assert!(receiver.join().unwrap() == data, "the bytes arrived, others than were sent");
            }
        });
        assert_eq!(passed.superpackets_read > 0, offload[0], "{passed:?}");
        assert_eq!(passed.written.superpackets > 0, offload[1], "{passed:?}");
        assert_eq!((passed.written.degraded, passed.written.failed), (0, 0), "{passed:?}");
    }
}

#[test]
fn udp_runs_cross_two_devices_whole() {
    let config = UdpConfig::default();
    for offload in [[true, true], [true, false], [false, true]] {
        let bind = move || UdpCarrier::bind(&config).unwrap();
        let passed = between_devices(offload, bind, move |mut there| {
            let mut here = UdpCarrier::bind(&config).unwrap();
            let mut batch = ReceiveBatch::new(8);
            for (family, ip) in [Family::V4, Family::V6].into_iter().zip(THERE) {
                let to = Endpoint::udp(SocketAddr::new(ip.parse().unwrap(), there.local_port()));
                let run: Vec<u8> = (0..1000 * 40 + 9).map(|at| (at / 3) as u8).collect();
                let (ecn, contents) = (Ecn::Ect0, &run[..]);
                let transmit = Transmit { endpoint: &to, ecn, hop_limit: None, segment_size: 1000, contents };
                assert_eq!(here.send(&[transmit]).sent, 41);
                let mut received = Vec::new();
                eventually("the run", || {
                    there.receive(family, &mut batch).unwrap();
                    for slot in batch.received() {
                        assert_eq!(slot.ecn, Ecn::Ect0);
                        received.extend(slot.datagrams().map(|range| batch.memory()[range].to_vec()));
                    }
                    (received.len() >= 41).then_some(())
                });
                assert_eq!(received, run.chunks(1000).collect::<Vec<_>>());
            }
        });
        assert_eq!(passed.superpackets_read > 0, offload[0], "{passed:?}");
        assert_eq!(passed.written.superpackets > 0, offload[1], "{passed:?}");
        assert_eq!((passed.written.degraded, passed.written.failed), (0, 0), "{passed:?}");
    }
}

#[test]
fn single_packets_are_read_complete_and_what_is_written_arrives() {
    for offload in [false, true] {
        in_namespace(move || {
            let mut tun = create("one0", offload);
            run("ip link set one0 up");
            add_address("10.7.0.1/24", "one0");
            let socket = UdpSocket::bind("10.7.0.1:5000").unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            socket.send_to(b"ping", "10.7.0.2:6000").unwrap();
            let mut buf = vec![0; INSIDE_MAX];
            let mut out = vec![0; 1500];
            let (inside, len) = eventually("the packet", || {
                let inside = tun.read(&mut buf).unwrap()?;
                let len = inside.segments(&buf).next(&mut out).unwrap();
                // IPv6 says hello on a new link; that is not what is waited for.
                (inside.header().destination == "10.7.0.2".parse::<IpAddr>().unwrap())
                    .then_some((inside, len))
            });
            assert_eq!((inside.count(), inside.len(), len), (1, 32, 32));
            assert_eq!(&out[28..32], b"ping");
            assert!(udp_checksum_is_valid(&out[..32]));
            if offload {
                assert!(
                    !udp_checksum_is_valid(&buf[..32]),
                    "left to us by the kernel: else the test shows nothing"
                );
            }

            // Swapping both addresses and both ports leaves the checksums as they are.
            let mut answer = out[..32].to_vec();
            answer[12..20].rotate_left(4);
            answer[20..24].rotate_left(2);
            answer[28..32].copy_from_slice(b"gnip");
            // "ping" and "gnip" differ in their sum; the right one is "ngpi" of the same words in another order.
            tun.write(&answer).unwrap();
            answer[28..32].copy_from_slice(b"ngpi");
            tun.write(&answer).unwrap();
            let mut received = [0; 16];
            let (len, from) = socket.recv_from(&mut received).unwrap();
            assert_eq!((&received[..len], from), (&b"ngpi"[..], "10.7.0.2:6000".parse().unwrap()));
        });
    }
}

/// RFC 768 by RFC 1071, for IPv4 without options.
fn udp_checksum_is_valid(packet: &[u8]) -> bool {
    let length = (packet.len() - 20) as u16;
    let pseudo = [&packet[12..20], &[0, 17], &length.to_be_bytes(), &packet[20..]].concat();
    let sum: u32 = pseudo
        .chunks(2)
        .map(|word| u32::from(u16::from_be_bytes([word[0], *word.get(1).unwrap_or(&0)])))
        .sum();
    (sum & 0xffff) + (sum >> 16) == 0xffff
}
