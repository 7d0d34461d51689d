//! What a connection asks of the kernel over a long way and over a short one.

mod common;

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::Duration;

use adit_io::carrier::stream::{Connection, Layer, Mark, begin_without_bbr, prepare};
use adit_io::poll::Poller;
use adit_io::tun::{Tun, TunConfig};
use common::{add_address, in_namespace, run};
use socket2::{Domain, SockAddr, SockRef, Socket, Type};

/// One way; both together are beyond the millisecond from which ways become long.
const DELAY: Duration = Duration::from_millis(2);

/// What is sent to 10.7.0.2 comes back later, as if it came from there.
fn mirror(mut tun: Tun) -> io::Result<std::convert::Infallible> {
    let mut poller = Poller::new()?;
    if let Some([queue, _]) = tun.descriptors() {
        poller.add(queue, 0)?;
    }
    let mut buffer = vec![0; 65_536];
    loop {
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
}

fn used(socket: &impl AsFd) -> String {
    let name = SockRef::from(socket).tcp_congestion().unwrap();
    String::from_utf8(name).unwrap().trim_end_matches('\0').to_owned()
}

/// A socket that would use `control`, and what it uses once it is begun. `None` where the kernel has no such thing.
fn begun(control: &str) -> Option<(Socket, String)> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_tcp_congestion(control.as_bytes()).ok()?;
    begin_without_bbr(&socket);
    let used = used(&socket);
    Some((socket, used))
}

fn address(ip: &str) -> SockAddr {
    format!("{ip}:4000").parse::<SocketAddr>().unwrap().into()
}

/// Both ends of a connection to `to`, which is taken at `at`, of sockets that would use `control`.
fn connect(to: &str, at: &str, control: &str) -> Option<[TcpStream; 2]> {
    let ((listener, _), (near, _)) = (begun(control)?, begun(control)?);
    listener.set_reuse_address(true).unwrap();
    listener.bind(&address(at)).unwrap();
    listener.listen(1).unwrap();
    near.connect_timeout(&address(to), Duration::from_secs(5)).unwrap();
    let (mut near, mut far) = (TcpStream::from(near), TcpListener::from(listener).accept().unwrap().0);
    // The shortest of several round trips is none that a busy machine made long.
    for _ in 0..20 {
        near.write_all(&[7]).unwrap();
        far.read_exact(&mut [0]).unwrap();
        far.write_all(&[7]).unwrap();
        near.read_exact(&mut [0]).unwrap();
    }
    prepare(&near).unwrap();
    prepare(&far).unwrap();
    Some([near, far])
}

/// What a connection uses after it has carried two messages, some time apart.
fn used_after_a_while(end: TcpStream) -> String {
    let connection = Connection::new(end.try_clone().unwrap(), Layer::default());
    let mark = Mark { end: 8, packets: 1, kept: false };
    for at in [0, 1_000_000_000] {
        connection.send(&[0; 8], &[mark], true, at);
    }
    used(&end)
}

#[test]
fn a_long_way_has_bbr_where_the_kernel_has_it_and_a_short_one_goes_without() {
    in_namespace(|| {
        let has_bbr = begun("bbr").is_some();
        if !has_bbr {
            eprintln!("this kernel has no BBR: only that nothing changes is tested");
        }
        let config = TunConfig { name: Some("far0".to_owned()), queues: 1, offload: false };
        let tun = Tun::create(&config).unwrap().pop().unwrap();
        run("ip link set far0 up");
        add_address("10.7.0.1/24", "far0");
        std::thread::spawn(move || mirror(tun).unwrap());

        for control in ["reno", "cubic", "bbr"] {
            let Some((_, start)) = begun(control) else { continue };
            if control == "bbr" {
                assert_ne!(start, "bbr");
            } else {
                assert_eq!(start, control);
            }
            for end in connect("10.7.0.2", "10.7.0.1", control).unwrap() {
                assert_eq!(used(&end), start, "inherited");
                assert_eq!(used_after_a_while(end), if has_bbr { "bbr" } else { control }, "{control}, long");
            }
            for end in connect("127.0.0.1", "127.0.0.1", control).unwrap() {
                assert_eq!(used_after_a_while(end), start, "{control}, short");
            }
        }
        // A route's own, locked, is kept.
        run("ip route change 10.7.0.0/24 dev far0 src 10.7.0.1 congctl lock reno");
        let [near, _far] = connect("10.7.0.2", "10.7.0.1", "reno").unwrap();
        assert_eq!(used_after_a_while(near), "reno");
        run("ip route change 10.7.0.0/24 dev far0 src 10.7.0.1");
        // Somebody's choice.
        let another = ["westwood", "vegas", "illinois", "dctcp"].into_iter().find(|it| begun(it).is_some());
        if let Some(another) = another {
            for end in connect("10.7.0.2", "10.7.0.1", another).unwrap() {
                assert_eq!(used_after_a_while(end), another);
            }
        }
    });
}
