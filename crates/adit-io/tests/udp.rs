//! UDP carriers on the loopback interface of a namespace of their own.

mod common;

use std::collections::HashSet;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use adit_io::carrier::{Family, Port, ReceiveBatch, Received, SendReport, Transmit, UdpCarrier, UdpConfig};
use adit_io::poll::Poller;
use adit_proto::endpoint::{Carrier, Endpoint};
use adit_proto::packet::Ecn;
use common::{add_address, eventually, in_namespace, output, run};

const PLAIN: UdpConfig = UdpConfig { port: 0, fwmark: None, ipv4: true, ipv6: true, offload: false };
const OFFLOAD: UdpConfig = UdpConfig { offload: true, ..PLAIN };
const FAMILIES: [(Family, &str); 2] = [(Family::V4, "127.0.0.1"), (Family::V6, "::1")];

fn endpoint(ip: &str, carrier: &UdpCarrier) -> Endpoint {
    Endpoint::udp(SocketAddr::new(ip.parse().unwrap(), carrier.local_port()))
}

fn transmit<'a>(endpoint: &'a Endpoint, segment_size: usize, contents: &'a [u8]) -> Transmit<'a> {
    Transmit { endpoint, ecn: Ecn::NotEct, hop_limit: None, segment_size, contents }
}

fn sent(datagrams: u64, bytes: usize) -> SendReport {
    SendReport { sent: datagrams, bytes: bytes as u64, ..SendReport::default() }
}

/// Everything that waits in the socket of a family, datagram by datagram, with where it came from.
fn drain(carrier: &mut UdpCarrier, family: Family) -> Vec<(Received, Vec<u8>)> {
    let mut batch = ReceiveBatch::new(4);
    let mut datagrams = Vec::new();
    while carrier.receive(family, &mut batch).unwrap() > 0 {
        assert!(!batch.is_empty());
        for number in 0..batch.len() {
            let ranges: Vec<_> = batch.received()[number].datagrams().collect();
            let (received, contents) = batch.datagrams_mut(number);
            let contents: Vec<_> = contents.map(|datagram| datagram.to_vec()).collect();
            let by_range: Vec<_> = ranges.into_iter().map(|range| batch.memory()[range].to_vec()).collect();
            assert_eq!(contents, by_range);
            // A datagram without contents is one all the same.
            let contents = if received.is_empty() { vec![Vec::new()] } else { contents };
            datagrams.extend(contents.into_iter().map(|datagram| (received, datagram)));
        }
    }
    assert_eq!(batch.truncated(), 0);
    datagrams
}

/// Exactly `count` datagrams, which may take a moment to arrive.
fn receive(carrier: &mut UdpCarrier, family: Family, count: usize) -> Vec<(Received, Vec<u8>)> {
    let mut received = Vec::new();
    eventually("datagrams", || {
        received.extend(drain(carrier, family));
        (received.len() >= count).then_some(())
    });
    assert_eq!(received.len(), count);
    received
}

fn contents(datagrams: Vec<(Received, Vec<u8>)>) -> Vec<Vec<u8>> {
    datagrams.into_iter().map(|(_, contents)| contents).collect()
}

fn noise(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 + at / 251) as u8).collect()
}

#[test]
fn r39_runs_arrive_complete_and_in_order_with_and_without_offload() {
    in_namespace(|| {
        for (from, to) in [(OFFLOAD, OFFLOAD), (OFFLOAD, PLAIN), (PLAIN, OFFLOAD), (PLAIN, PLAIN)] {
            let (mut a, mut b) = (UdpCarrier::bind(&from).unwrap(), UdpCarrier::bind(&to).unwrap());
            assert_eq!(a.uses_gso(), from.offload);
            assert_eq!(b.uses_gro(), to.offload);
            for (family, ip) in FAMILIES {
                let to = endpoint(ip, &b);
                let bulk = noise(1300 * 40 + 77);
                let small = noise(9);
                let many = noise(50 * 200);
                let batch = [
                    transmit(&to, 1300, &bulk),
                    transmit(&to, 9, &small),
                    transmit(&to, 50, &many),
                    transmit(&to, 1, &[]),
                ];
                assert_eq!(a.send(&batch), sent(41 + 1 + 200 + 1, bulk.len() + 9 + many.len()));
                let expected: Vec<_> =
                    bulk.chunks(1300).chain([&small[..]]).chain(many.chunks(50)).chain([&[][..]]).collect();
                let received = receive(&mut b, family, 243);
                let slots: HashSet<_> = received.iter().map(|(received, _)| received.stride).collect();
                assert!(slots.contains(&1300), "{slots:?}");
                for (received, _) in &received {
                    assert_eq!(received.endpoint.carrier, Carrier::Udp);
                    assert_eq!(
                        received.endpoint.remote,
                        SocketAddr::new(ip.parse().unwrap(), a.local_port())
                    );
                    assert_eq!(received.endpoint.local, Some(ip.parse().unwrap()));
                    assert_eq!(received.endpoint.interface, 1, "the loopback interface");
                    assert_eq!(received.ecn, Ecn::NotEct);
                }
                let merged = received.iter().any(|(received, _)| received.len() > received.stride);
                assert_eq!(merged, b.uses_gro() && a.uses_gso(), "loopback delivers runs whole");
                assert_eq!(contents(received), expected);
            }
        }
    });
}

#[test]
fn every_ecn_codepoint_is_carried_in_both_families() {
    in_namespace(|| {
        let (mut a, mut b) = (UdpCarrier::bind(&OFFLOAD).unwrap(), UdpCarrier::bind(&OFFLOAD).unwrap());
        for (family, ip) in FAMILIES {
            let to = endpoint(ip, &b);
            let codepoints = [Ecn::NotEct, Ecn::Ect1, Ecn::Ect0, Ecn::Ce];
            let run = [1; 300];
            let batch = codepoints.map(|ecn| Transmit { ecn, ..transmit(&to, 100, &run) });
            assert_eq!(a.send(&batch), sent(12, 1200));
            let received: Vec<_> =
                receive(&mut b, family, 12).iter().map(|(received, _)| received.ecn).collect();
            let expected: Vec<_> = codepoints.iter().flat_map(|ecn| [*ecn; 3]).collect();
            assert_eq!(received, expected);
        }
    });
}

#[test]
fn the_largest_datagram_passes_and_a_larger_one_is_counted() {
    in_namespace(|| {
        for config in [OFFLOAD, PLAIN] {
            let (mut a, mut b) = (UdpCarrier::bind(&config).unwrap(), UdpCarrier::bind(&config).unwrap());
            for ((family, ip), largest) in FAMILIES.into_iter().zip([65_507, 65_527]) {
                let to = endpoint(ip, &b);
                let (fits, too_big, small) = (noise(largest), noise(largest + 1), noise(20));
                let batch = [
                    transmit(&to, largest, &fits),
                    transmit(&to, largest + 1, &too_big),
                    transmit(&to, 20, &small),
                ];
                let report = a.send(&batch);
                assert_eq!(report, SendReport { too_big: 1, ..sent(2, largest + 20) }, "{ip}");
                assert_eq!(contents(receive(&mut b, family, 2)), [fits, small]);

                let pair = noise(largest * 2);
                assert_eq!(
                    a.send(&[transmit(&to, largest, &pair)]),
                    sent(2, pair.len()),
                    "cut in two messages"
                );
                assert_eq!(contents(receive(&mut b, family, 2)).concat(), pair);
            }
        }
    });
}

#[test]
fn mapped_addresses_go_out_over_ipv4() {
    in_namespace(|| {
        let (mut a, mut b) = (UdpCarrier::bind(&OFFLOAD).unwrap(), UdpCarrier::bind(&OFFLOAD).unwrap());
        let mut to = endpoint("::ffff:127.0.0.1", &b);
        to.local = Some("::ffff:127.0.0.7".parse().unwrap());
        assert_eq!(a.send(&[transmit(&to, 4, b"ping")]), sent(1, 4));
        let (received, contents) = receive(&mut b, Family::V4, 1).remove(0);
        assert_eq!(contents, b"ping");
        assert_eq!(received.endpoint.remote.ip(), "127.0.0.7".parse::<IpAddr>().unwrap());
        assert!(drain(&mut b, Family::V6).is_empty());
    });
}

#[test]
fn replies_leave_from_the_address_that_was_asked() {
    in_namespace(|| {
        for address in ["10.1.1.1/32", "10.1.1.2/32", "fd01::1/128", "fd01::2/128"] {
            add_address(address, "lo");
        }
        for config in [OFFLOAD, PLAIN] {
            let (mut a, mut b) = (UdpCarrier::bind(&config).unwrap(), UdpCarrier::bind(&config).unwrap());
            for (family, [first, second, gone]) in [
                (Family::V4, ["10.1.1.1", "10.1.1.2", "10.1.1.3"]),
                (Family::V6, ["fd01::1", "fd01::2", "fd01::3"]),
            ] {
                // B is asked on its second address, and answers to what it received.
                assert_eq!(a.send(&[transmit(&endpoint(second, &b), 3, b"ask")]).sent, 1);
                let asked = receive(&mut b, family, 1).remove(0).0.endpoint;
                assert_eq!(asked.local, Some(second.parse().unwrap()));
                assert_eq!(b.send(&[transmit(&asked, 3, b"answer")]), sent(2, 6));
                let answers = receive(&mut a, family, 2);
                assert_eq!(answers[0].0.endpoint.remote.ip(), second.parse::<IpAddr>().unwrap());

                // The control: without the hint the kernel chooses.
                let plain = endpoint(first, &a);
                b.send(&[transmit(&plain, 3, b"new")]);
                assert_ne!(
                    receive(&mut a, family, 1)[0].0.endpoint.remote.ip(),
                    second.parse::<IpAddr>().unwrap()
                );

                // An address that the host lost is dropped, reported, and nothing else of the batch suffers.
                let stale = Endpoint { local: Some(gone.parse().unwrap()), ..plain };
                let run = noise(500);
                let sticky = Endpoint { local: Some(second.parse().unwrap()), ..plain };
                let batch =
                    [transmit(&sticky, 3, b"one"), transmit(&stale, 100, &run), transmit(&sticky, 3, b"two")];
                let report = b.send(&batch);
                assert_eq!((report.sent, report.dropped(), report.stale_sources), (7, 0, 1), "{report:?}");
                assert_eq!(b.stale_sources(), [1]);
                let received = receive(&mut a, family, 7);
                let sources: Vec<_> =
                    received.iter().map(|(received, _)| received.endpoint.remote.ip()).collect();
                assert_eq!(sources[0], second.parse::<IpAddr>().unwrap());
                assert_eq!(sources[6], second.parse::<IpAddr>().unwrap());
                assert_ne!(sources[3], second.parse::<IpAddr>().unwrap());
                let expected: Vec<_> =
                    [&b"one"[..]].into_iter().chain(run.chunks(100)).chain([&b"two"[..]]).collect();
                assert_eq!(contents(received), expected);
                assert_eq!(b.send(&batch[..1]), sent(1, 3));
                assert!(b.stale_sources().is_empty(), "forgotten with the next batch");
                assert_eq!(b.uses_gso(), config.offload, "a lost address is not the fault of GSO");
                receive(&mut a, family, 1);
            }
        }
    });
}

#[test]
fn link_local_addresses_keep_their_interface() {
    in_namespace(|| {
        let thread = std::fs::read_link("/proc/thread-self").unwrap();
        let here = format!("/proc/{}/ns/net", thread.display());
        let mut b = in_namespace(move || {
            run(&format!("ip link add right type veth peer name left netns {here}"));
            run("ip link set right up");
            run("ip address add fe80::2/64 dev right nodad");
            UdpCarrier::bind(&OFFLOAD).unwrap()
        });
        run("ip link set left up");
        run("ip address add fe80::1/64 dev left nodad");
        let listing = output("ip -o link show left");
        let index = listing.split(':').next().unwrap();
        let mut a = UdpCarrier::bind(&OFFLOAD).unwrap();
        let remote = format!("[fe80::2%{index}]:{}", b.local_port()).parse().unwrap();
        let asked = eventually("a link that is up", || {
            a.send(&[transmit(&Endpoint::udp(remote), 2, b"hi")]);
            drain(&mut b, Family::V6).pop()
        });
        let SocketAddr::V6(sender) = asked.0.endpoint.remote else { panic!("IPv4") };
        assert_eq!(sender.scope_id(), asked.0.endpoint.interface);
        assert_ne!(sender.scope_id(), 0);
        drain(&mut b, Family::V6);
        let answer = b.send(&[transmit(&asked.0.endpoint, 2, b"yo")]);
        assert_eq!(answer, sent(1, 2), "also with the source that was asked");
        assert_eq!(receive(&mut a, Family::V6, 1)[0].0.endpoint.remote.ip(), remote.ip());
    });
}

#[test]
fn r19_a_full_socket_buffer_loses_nothing_that_is_not_counted() {
    in_namespace(|| {
        // A queue of 80 Mbit/s keeps packets on the sending socket's account, as a slow device does.
        run("tc qdisc add dev lo root tbf rate 80mbit burst 8kb latency 500ms");
        let (mut a, mut b) = (UdpCarrier::bind(&OFFLOAD).unwrap(), UdpCarrier::bind(&OFFLOAD).unwrap());
        for (_, socket) in a.sockets().into_iter().flatten() {
            socket2::SockRef::from(&socket).set_send_buffer_size(4096).unwrap();
        }
        let mut received = Vec::new();
        let mut total = SendReport::default();
        let mut waited = 0;
        for (family, ip) in FAMILIES {
            let to = endpoint(ip, &b);
            for turn in 0..20u8 {
                let datagrams: Vec<_> = (0..24).map(|number| vec![turn * 8 + number; 900]).collect();
                let batch: Vec<_> = datagrams.iter().map(|datagram| transmit(&to, 900, datagram)).collect();
                let start = std::time::Instant::now();
                let report = a.send(&batch);
                waited += u32::from(start.elapsed() > Duration::from_micros(500));
                assert!(start.elapsed() < Duration::from_secs(1), "the wait is bounded");
                assert_eq!(report.sent + report.no_buffer, 24, "{report:?}");
                total.sent += report.sent;
                total.no_buffer += report.no_buffer;
            }
            let deadline = std::time::Instant::now() + Duration::from_secs(3);
            while received.len() < total.sent as usize && std::time::Instant::now() < deadline {
                received.extend(contents(drain(&mut b, family)));
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        assert!(waited > 5, "the buffer was never full: this test tests nothing ({waited})");
        assert!(total.sent >= 100, "{total:?}");
        assert_eq!(received.len() as u64, total.sent, "{total:?}");
    });
}

#[test]
fn what_fails_for_one_datagram_does_not_stop_the_others() {
    in_namespace(|| {
        run("nft add table inet t");
        run("nft add chain inet t out { type filter hook output priority 0 ; }");
        run("nft add rule inet t out udp dport 9 drop");
        for config in [OFFLOAD, PLAIN] {
            let (mut a, mut b) = (UdpCarrier::bind(&config).unwrap(), UdpCarrier::bind(&config).unwrap());
            for ((family, ip), nowhere) in FAMILIES.into_iter().zip(["8.8.8.8:53", "[2001:db8::1]:53"]) {
                let good = endpoint(ip, &b);
                let refused = Endpoint::udp(SocketAddr::new(ip.parse().unwrap(), 9));
                let closed = Endpoint::udp(SocketAddr::new(ip.parse().unwrap(), 1));
                let unreachable = Endpoint::udp(nowhere.parse().unwrap());
                let tcp = Endpoint { carrier: Carrier::Tcp(1), ..good };
                let run = noise(250);
                let batch = [
                    transmit(&good, 100, &run),
                    transmit(&unreachable, 100, &run),
                    transmit(&refused, 100, &run),
                    transmit(&closed, 100, &run),
                    transmit(&tcp, 100, &run),
                    transmit(&good, 100, &run),
                ];
                let report = a.send(&batch);
                let dropped = (report.unreachable, report.refused, report.other, report.dropped());
                assert_eq!((report.sent, dropped), (9, (3, 3, 3, 9)), "{report:?}");
                assert_eq!(contents(receive(&mut b, family, 6)).concat(), [&run[..], &run].concat());
                // ICMP said that a port is closed; the socket still receives, and sends.
                assert!(drain(&mut a, family).is_empty());
                assert_eq!(a.send(&batch[..1]), sent(3, 250));
                receive(&mut b, family, 3);
            }
        }
    });
}

#[test]
fn runs_too_large_for_the_path_go_out_one_by_one_and_gso_pauses() {
    in_namespace(|| {
        run("ip link set lo mtu 1400");
        let (mut a, mut b) = (UdpCarrier::bind(&OFFLOAD).unwrap(), UdpCarrier::bind(&OFFLOAD).unwrap());
        for (family, ip) in FAMILIES {
            let mut fresh = UdpCarrier::bind(&OFFLOAD).unwrap();
            let to = endpoint(ip, &b);
            let run = noise(1450 * 9 + 3);
            let fits = noise(1000 * 9);
            let report = fresh.send(&[transmit(&to, 1450, &run), transmit(&to, 1000, &fits)]);
            assert_eq!(report, SendReport { split: 1, ..sent(19, run.len() + fits.len()) });
            let expected: Vec<_> = run.chunks(1450).chain(fits.chunks(1000)).collect();
            assert_eq!(contents(receive(&mut b, family, 19)), expected);

            for turn in 0..20 {
                assert!(fresh.uses_gso(), "runs that pass keep GSO on ({turn})");
                let report = fresh.send(&[transmit(&to, 1450, &run), transmit(&to, 1000, &fits)]);
                assert_eq!((report.sent, report.split, report.dropped()), (19, 1, 0));
                receive(&mut b, family, 19);
            }
        }
        let to = endpoint("127.0.0.1", &b);
        let run = noise(1450 * 3);
        let mut split = 0;
        while a.uses_gso() {
            let report = a.send(&[transmit(&to, 1450, &run)]);
            assert_eq!((report.sent, report.dropped()), (3, 0));
            split += report.split;
            assert!(split < 100, "GSO never pauses");
        }
        receive(&mut b, Family::V4, split as usize * 3);
        assert_eq!(a.send(&[transmit(&to, 1450, &run)]), sent(3, run.len()), "without trying a run first");
        receive(&mut b, Family::V4, 3);

        let mut batches = 0;
        while !a.uses_gso() {
            a.send(&[]);
            batches += 1;
            assert!(batches < 100_000, "GSO is never tried again");
        }
    });
}

#[test]
fn a_busy_port_is_an_error_that_says_so() {
    in_namespace(|| {
        let first = UdpCarrier::bind(&OFFLOAD).unwrap();
        let taken = UdpConfig { port: first.local_port(), ..OFFLOAD };
        for ports in
            [UdpCarrier::bind(&taken).map(|carrier| vec![carrier]), UdpCarrier::bind_lanes(&taken, 2)]
        {
            let error = ports.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::AddrInUse);
            assert!(error.to_string().contains(&taken.port.to_string()), "{error}");
        }
        drop(first);
        // A command that another test starts holds a copy of the closed socket for a moment, between fork and exec.
        let lanes = eventually("the port", || UdpCarrier::bind_lanes(&taken, 2).ok());
        let error = UdpCarrier::bind_lanes(&taken, 2).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AddrInUse, "another program does not share our port");
        drop(lanes);
        eventually("the port", || UdpCarrier::bind(&taken).ok());

        // A port that is taken for one family only is taken, and a random one is chosen around it.
        let only_v6 = |port| UdpCarrier::bind(&UdpConfig { ipv4: false, port, ..OFFLOAD }).unwrap();
        let held = only_v6(0);
        let taken = UdpConfig { port: held.local_port(), ..OFFLOAD };
        assert_eq!(UdpCarrier::bind(&taken).unwrap_err().kind(), ErrorKind::AddrInUse);
        std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", "40000 40015").unwrap();
        let _held: Vec<_> = (40_000..40_008).map(only_v6).collect();
        for _ in 0..20 {
            let port = UdpCarrier::bind(&OFFLOAD).unwrap().local_port();
            assert!((40_008..40_016).contains(&port), "{port}");
        }
    });
}

#[test]
fn lanes_share_a_port_and_keep_each_sender_on_one_lane() {
    in_namespace(|| {
        let mut lanes = UdpCarrier::bind_lanes(&OFFLOAD, 3).unwrap();
        let port = lanes[0].local_port();
        assert!(lanes.iter().all(|lane| lane.local_port() == port));
        let senders: Vec<_> = (0..60).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
        for _ in 0..3 {
            for sender in &senders {
                sender.send_to(b"hello", ("127.0.0.1", port)).unwrap();
            }
        }
        let mut received: Vec<Vec<SocketAddr>> = vec![Vec::new(); lanes.len()];
        eventually("all datagrams", || {
            for (received, lane) in received.iter_mut().zip(&mut lanes) {
                received.extend(drain(lane, Family::V4).iter().map(|(received, _)| received.endpoint.remote));
            }
            (received.iter().map(Vec::len).sum::<usize>() >= senders.len() * 3).then_some(())
        });
        let mut seen = HashSet::new();
        for received in received {
            assert!(!received.is_empty(), "every lane has a share");
            let remotes: HashSet<_> = received.iter().copied().collect();
            assert_eq!(received.len(), remotes.len() * 3);
            assert!(remotes.is_disjoint(&seen));
            seen.extend(remotes);
        }
        assert_eq!(seen.len(), senders.len());
    });
}

#[test]
fn a_clone_sends_from_the_same_port() {
    in_namespace(|| {
        let (a, mut b) = (UdpCarrier::bind(&OFFLOAD).unwrap(), UdpCarrier::bind(&OFFLOAD).unwrap());
        let mut clone = a.try_clone().unwrap();
        assert_eq!((clone.local_port(), clone.uses_gso()), (a.local_port(), true));
        for (family, ip) in FAMILIES {
            assert_eq!(clone.send(&[transmit(&endpoint(ip, &b), 2, b"hi")]), sent(1, 2));
            let remote = receive(&mut b, family, 1)[0].0.endpoint.remote;
            assert_eq!(remote.port(), a.local_port());
        }
    });
}

#[test]
fn the_firewall_mark_is_set_at_run_time_and_buffers_are_large() {
    in_namespace(|| {
        let mut carrier = UdpCarrier::bind(&UdpConfig { fwmark: Some(0xca6c), ..OFFLOAD }).unwrap();
        let marks = |carrier: &UdpCarrier| -> Vec<u32> {
            let sockets = carrier.sockets().into_iter().flatten();
            sockets.map(|(_, fd)| socket2::SockRef::from(&fd).mark().unwrap()).collect()
        };
        assert_eq!(marks(&carrier), [0xca6c, 0xca6c]);
        carrier.set_fwmark(0x8000_0001).unwrap();
        assert_eq!(marks(&carrier), [0x8000_0001, 0x8000_0001]);
        carrier.set_fwmark(0).unwrap();
        assert_eq!(marks(&carrier), [0, 0]);
        let (send, receive) = carrier.buffers_bytes();
        assert!(send >= 7 << 20 && receive >= 7 << 20, "{send} {receive}");
    });
}

#[test]
fn one_family_alone_works_and_the_other_is_unreachable() {
    in_namespace(|| {
        let mut b = UdpCarrier::bind(&OFFLOAD).unwrap();
        for (family, ip) in FAMILIES {
            let config = UdpConfig { ipv4: family == Family::V4, ipv6: family == Family::V6, ..OFFLOAD };
            let mut a = UdpCarrier::bind(&config).unwrap();
            let families: Vec<_> = a.sockets().into_iter().flatten().map(|(family, _)| family).collect();
            assert_eq!(families, [family]);
            let here = endpoint(ip, &b);
            let there = endpoint(if family == Family::V4 { "::1" } else { "127.0.0.1" }, &b);
            let report = a.send(&[transmit(&there, 1, b"xy"), transmit(&here, 1, b"z")]);
            assert_eq!(report, SendReport { unreachable: 2, ..sent(1, 1) });
            assert_eq!(contents(receive(&mut b, family, 1)), [b"z"]);
        }
        let neither = UdpConfig { ipv4: false, ipv6: false, ..OFFLOAD };
        assert_eq!(UdpCarrier::bind(&neither).unwrap_err().kind(), ErrorKind::InvalidInput);
    });
}

#[test]
fn the_poller_reports_a_socket_only_while_it_holds_datagrams() {
    in_namespace(|| {
        let mut a = Port::Udp(UdpCarrier::bind(&OFFLOAD).unwrap());
        let mut b = Port::Udp(UdpCarrier::bind(&OFFLOAD).unwrap());
        let mut poller = Poller::new().unwrap();
        for (family, fd) in b.sockets() {
            poller.add(fd, family as u64).unwrap();
        }
        let mut batch = ReceiveBatch::new(2);
        for (family, ip) in FAMILIES {
            let to = Endpoint::udp(SocketAddr::new(ip.parse().unwrap(), b.local_port()));
            assert_eq!(a.send(&[transmit(&to, 5, b"hello")]), sent(1, 5));
            let tokens: Vec<_> =
                poller.wait(Some(Duration::from_secs(5))).unwrap().map(|ready| ready.token).collect();
            assert_eq!(tokens, [family as u64]);
            assert_eq!(b.receive(family, &mut batch).unwrap(), 1);
            assert_eq!(b.receive(family, &mut batch).unwrap(), 0);
            assert_eq!(poller.wait(Some(Duration::ZERO)).unwrap().count(), 0);
        }
    });
}
