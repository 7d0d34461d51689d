use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::JoinHandle;

use adit_io::tun::{Inside, VnetHeader};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

/// Two stacks and the way between them, on a thread of their own.
struct World {
    a: Network,
    b: Network,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// Takes superpackets apart as a lane does.
#[derive(Default)]
pub(super) struct Wire(pub(super) Vec<Vec<u8>>);

impl Sink for Wire {
    fn has_room(&self) -> bool {
        self.0.len() < 256
    }

    fn send(&mut self, packet: &[u8], segment: Option<u16>) {
        let gso_type = if packet[0] >> 4 == 4 { VnetHeader::GSO_TCPV4 } else { VnetHeader::GSO_TCPV6 };
        let vnet = match segment {
            Some(gso_size) => VnetHeader { gso_type, gso_size, ..VnetHeader::NONE },
            None => VnetHeader::NONE,
        };
        let inside = Inside::parse(&vnet, packet).unwrap();
        let mut segments = inside.segments(packet);
        let mut out = vec![0; segments.stride()];
        while let Some(len) = segments.next(&mut out) {
            assert!(len <= MTU, "{len}");
            self.0.push(out[..len].to_vec());
        }
    }
}

pub(super) const MTU: usize = 1_420;

pub(super) fn network(last: u8) -> (Stack, Network) {
    let nets = [format!("10.0.0.{last}/24"), format!("fd00::{last}/64")];
    stack(&nets.map(|net| net.parse().unwrap()), MTU).unwrap()
}

impl World {
    /// A way that loses every `lost`th packet, in no regular order.
    fn new(lost: Option<u64>) -> Self {
        let ((mut stack_a, a), (mut stack_b, b)) = (network(1), network(2));
        let ended = Arc::new(AtomicBool::new(false));
        let end = ended.clone();
        let thread = std::thread::spawn(move || {
            let started = std::time::Instant::now();
            let mut dice = 1_u64;
            let mut roll = || {
                dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                lost.is_some_and(|lost| (dice >> 33).is_multiple_of(lost))
            };
            let (mut from_a, mut from_b) = (Wire::default(), Wire::default());
            while !end.load(Relaxed) {
                let now = started.elapsed().as_micros() as u64;
                stack_a.serve(now, &mut from_a);
                stack_b.serve(now, &mut from_b);
                for packet in std::mem::take(&mut from_a.0) {
                    if !roll() {
                        stack_b.take_in(now, &packet, &mut from_b);
                    }
                }
                for packet in std::mem::take(&mut from_b.0) {
                    if !roll() {
                        stack_a.take_in(now, &packet, &mut from_a);
                    }
                }
                std::thread::sleep(Duration::from_micros(200));
            }
        });
        Self { a, b, ended, thread: Some(thread) }
    }

    fn end(&mut self) {
        self.ended.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.end();
    }
}

fn run<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(20), future).await.unwrap() })
}

fn at(address: &str) -> SocketAddr {
    address.parse().unwrap()
}

/// Sends so much one way and takes it in on the other side, where it has to be the same.
async fn carry(world: &World, to: SocketAddr, bytes: usize) {
    let listener = world.b.tcp_listen(to.port()).unwrap();
    let (client, server) = tokio::join!(world.a.tcp_connect(to), listener.accept());
    let (mut client, mut server) = (client.unwrap(), server.unwrap());
    assert_eq!(server.local_addr(), Some(to));
    assert_eq!(server.peer_addr(), client.local_addr());
    let content: Vec<u8> = (0..bytes).map(|number| ((number * 31) >> 3) as u8).collect();
    let sending = async {
        client.write_all(&content).await.unwrap();
        client.shutdown().await.unwrap();
    };
    let mut arrived = Vec::new();
    let (_, read) = tokio::join!(sending, server.read_to_end(&mut arrived));
    read.unwrap();
    assert!(arrived == content, "{} of {bytes} bytes", arrived.len());
    server.write_all(b"thanks").await.unwrap();
    drop(server);
    let mut thanks = String::new();
    client.read_to_string(&mut thanks).await.unwrap();
    assert_eq!(thanks, "thanks", "the other half stays open");
}

#[test]
fn bytes_arrive_whole_and_in_order_in_both_versions() {
    let world = World::new(None);
    run(carry(&world, at("10.0.0.2:80"), 5_000_000));
    run(carry(&world, at("[fd00::2]:80"), 5_000_000));
}

#[test]
fn bytes_arrive_whole_although_one_packet_in_fifty_is_lost() {
    let world = World::new(Some(50));
    run(carry(&world, at("10.0.0.2:80"), 500_000));
}

#[test]
fn a_port_where_nobody_listens_refuses_and_one_where_somebody_does_accepts() {
    let world = World::new(None);
    let target = at("10.0.0.2:81");
    assert_eq!(run(world.a.tcp_connect(target)).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    let listener = world.b.tcp_listen(81).unwrap();
    assert_eq!(world.b.tcp_listen(81).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    assert!(run(world.a.tcp_connect(target)).is_ok());
    drop(listener);
    assert!(run(world.a.tcp_connect(target)).is_err());
    let v4_only = stack(&["10.0.0.3/24".parse().unwrap()], MTU).unwrap().1;
    let error = run(v4_only.tcp_connect(at("[fd00::2]:80"))).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AddrNotAvailable);
}

#[test]
fn a_connection_that_is_dropped_unread_is_reset_for_the_other_side() {
    let world = World::new(None);
    run(async {
        let listener = world.b.tcp_listen(80).unwrap();
        let (client, server) = tokio::join!(world.a.tcp_connect(at("10.0.0.2:80")), listener.accept());
        let (mut client, server) = (client.unwrap(), server.unwrap());
        client.write_all(b"never read").await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        drop(server);
        let error = client.read(&mut [0; 1]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    });
}

#[test]
fn datagrams_pass_by_port_and_too_large_ones_are_refused() {
    let world = World::new(None);
    run(async {
        for (ours, theirs) in [("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2")] {
            let a = world.a.udp_bind(theirs.parse().unwrap()).unwrap();
            let b = world.b.udp_bind(ours.parse().unwrap()).unwrap();
            let largest = vec![7; a.max_payload_bytes()];
            a.send_to(&largest, b.local_addr()).unwrap();
            assert_eq!(b.recv_from().await.unwrap(), (largest.clone(), a.local_addr()));
            assert!(a.send_to(&[&largest[..], &[7]].concat(), b.local_addr()).is_err());
        }
    });
}

#[test]
fn when_the_stack_ends_everybody_hears_of_it() {
    let mut world = World::new(None);
    let listener = world.b.tcp_listen(80).unwrap();
    let (client, _server) = run(async {
        let (client, server) = tokio::join!(world.a.tcp_connect(at("10.0.0.2:80")), listener.accept());
        (client.unwrap(), server.unwrap())
    });
    let socket = world.a.udp_bind("10.0.0.2".parse().unwrap()).unwrap();
    world.end();
    run(async {
        let mut client = client;
        let down = Some(io::ErrorKind::NetworkDown);
        assert_eq!(client.read(&mut [0; 1]).await.err().map(|it| it.kind()), down);
        assert_eq!(client.write(b"x").await.err().map(|it| it.kind()), down);
        assert_eq!(socket.recv_from().await.err().map(|it| it.kind()), down);
        assert_eq!(listener.accept().await.err().map(|it| it.kind()), down);
        assert_eq!(world.a.tcp_connect(at("10.0.0.2:80")).await.err().map(|it| it.kind()), down);
    });
}

#[test]
fn a_stack_needs_an_address() {
    assert!(stack(&[], MTU).is_err());
    assert!(stack(&["10.0.0.1/24".parse().unwrap()], MTU).is_ok());
}
