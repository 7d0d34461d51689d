//! What a connection asks of the kernel over a long way and over a short one.

mod common;

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use adit_io::carrier::stream::{Connection, Layer, begin, prepare};
use adit_io::poll::Poller;
use adit_io::tun::{Tun, TunConfig};
use common::{add_address, in_namespace, output, run};
use socket2::{Domain, SockRef, Socket, Type};

/// One way; both together are far from the millisecond where ways become long.
const DELAY: Duration = Duration::from_millis(5);

/// What is sent to 10.7.0.2 comes back later, as if it came from there.
fn mirror(mut tun: Tun) -> io::Result<()> {
    let mut poller = Poller::new()?;
    if let Some([queue, _]) = tun.descriptors() {
        poller.add(queue, 0)?;
    }
    let mut buffer = vec![0; 65_536];
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(10) {
        poller.wait(Some(Duration::from_millis(100)))?.for_each(drop);
        while let Ok(Some(packet)) = tun.read(&mut buffer) {
            let len = packet.len();
            let packet = &mut buffer[..len];
            if len < 20 || packet[0] >> 4 != 4 {
                continue;
            }
            // The checksums are sums: they do not change with the order.
            let (from, to) = packet[12..20].split_at_mut(4);
            from.swap_with_slice(to);
            std::thread::sleep(DELAY);
            tun.write(packet)?;
        }
    }
    Ok(())
}

fn used(socket: &impl std::os::fd::AsFd) -> String {
    let name = SockRef::from(socket).tcp_congestion().unwrap();
    String::from_utf8(name).unwrap().trim_end_matches('\0').to_owned()
}

/// Both ends of a connection to `to`, which is taken at `at`, begun and prepared as carriers are.
fn connect(to: &str, at: &str) -> [TcpStream; 2] {
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    begin(&listener);
    listener.bind(&format!("{at}:4000").parse::<SocketAddr>().unwrap().into()).unwrap();
    listener.listen(1).unwrap();
    let near = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    begin(&near);
    near.connect(&format!("{to}:4000").parse::<SocketAddr>().unwrap().into()).unwrap();
    let far = TcpListener::from(listener).accept().unwrap().0;
    let near = TcpStream::from(near);
    prepare(&near).unwrap();
    prepare(&far).unwrap();
    [near, far]
}

#[test]
fn a_long_way_has_bbr_where_the_kernel_has_it_and_a_short_one_goes_without() {
    in_namespace(|| {
        let available = output("sysctl -n net.ipv4.tcp_available_congestion_control");
        let usual = output("sysctl -n net.ipv4.tcp_congestion_control").trim().to_owned();
        // Another one is somebody's choice.
        let expected = match usual.as_str() {
            "cubic" | "reno" | "bbr" if available.contains("bbr") => "bbr",
            other => other,
        };
        let config = TunConfig { name: Some("far0".to_owned()), queues: 1, offload: false };
        let tun = Tun::create(&config).unwrap().pop().unwrap();
        run("ip link set far0 up");
        add_address("10.7.0.1/24", "far0");
        std::thread::spawn(move || mirror(tun));

        for end in connect("10.7.0.2", "10.7.0.1") {
            let connection = Connection::new(end.try_clone().unwrap(), Layer::default());
            assert_eq!(used(&end), expected);
            drop(connection);
        }
        let not = if available.contains("cubic") { "bbr" } else { "" };
        for end in connect("127.0.0.1", "127.0.0.1") {
            let before = used(&end);
            let connection = Connection::new(end.try_clone().unwrap(), Layer::default());
            assert_eq!(used(&end), before);
            assert_ne!(before, not);
            drop(connection);
        }
    });
}
