//! More clients than there is room for.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use adit_lab::wait_for;

use crate::common;
use crate::common::internet::{GATEWAY, WEB};
use crate::common::on;
use crate::common::proxied::{HTTP, SOCKS, World, echo_server, socks_address};

#[test]
fn who_says_nothing_is_hung_up_on() {
    let world = World::new("slow");
    let _proxy = world.proxy(&[]);
    on(&world.client, || {
        let slow = |to: &str, bytes: &[u8]| {
            let mut stream = TcpStream::connect(to).unwrap();
            stream.write_all(bytes).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(25))).unwrap();
            stream
        };
        let started = Instant::now();
        let mut streams = [
            slow(SOCKS, &[5]),
            slow(SOCKS, &[5, 1, 0, 5]),
            slow(HTTP, b"GET http://web.example/ HTTP/1.1\r\nX"),
        ];
        for stream in &mut streams {
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest).unwrap();
        }
        let took = started.elapsed();
        assert!(took > Duration::from_secs(5) && took < Duration::from_secs(20), "{took:?}");
    });
}

#[test]
fn a_flood_of_idle_clients_is_bounded_and_leaves_no_trace() {
    const COUNT: usize = 6_000;
    let world = World::new("flood");
    let _proxy = world.proxy(&[]);
    adit_io::sys::raise_descriptor_limit().unwrap();
    on(&world.client, || {
        let to: SocketAddr = SOCKS.parse().unwrap();
        let mut streams: Vec<_> = (0..COUNT).filter_map(|_| TcpStream::connect(to).ok()).collect();
        for stream in &mut streams {
            let _ = stream.write_all(&[5, 1, 0]);
        }
        std::thread::sleep(Duration::from_millis(500));
        let answered = |mut stream: &TcpStream| {
            stream.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
            stream.read_exact(&mut [0; 2]).is_ok()
        };
        let served = streams.iter().filter(|stream| answered(stream)).count();
        assert!((1_000..=4_096).contains(&served), "{served}");
    });
    wait_for("room", Duration::from_secs(12), || (world.say(SOCKS, &[5, 1, 0]) == [5, 0]).then_some(()))
        .unwrap();
    assert_eq!(world.curl(&["--socks5-hostname", SOCKS, "http://web.example/"]), GATEWAY);
}

#[test]
fn ten_thousand_half_open_connects_take_bounded_memory_and_the_service_goes_on() {
    const COUNT: usize = 10_000;
    let world = World::new("halfopen");
    let _proxy = world.proxy(&[]);
    echo_server(&world.web, 7);
    // A port that says nothing to who knocks.
    let silent = "add table inet silent\nadd chain inet silent input { type filter hook input priority 0; }\n\
                  add rule inet silent input tcp dport 9999 drop\n";
    world.web.command(["nft", "-f", "-"]).input(silent).exec().unwrap();
    adit_io::sys::raise_descriptor_limit().unwrap();
    let pid = common::proxied::pid_of_proxy(&world);
    assert_eq!(world.curl(&["--socks5-hostname", SOCKS, "http://web.example/"]), GATEWAY);
    on(&world.client, || {
        let request = [&[5, 1, 0, 5, 1, 0], &socks_address(WEB, 7)[..]].concat();
        let mut before = TcpStream::connect(SOCKS).unwrap();
        before.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        before.write_all(&request).unwrap();
        before.read_exact(&mut [0; 12]).unwrap();
        let mut echo = |text: &[u8]| {
            before.write_all(text).unwrap();
            let mut back = vec![0; text.len()];
            before.read_exact(&mut back).unwrap();
            assert_eq!(back, text);
        };
        echo(b"before");
        let socks = [&[5, 1, 0, 5, 1, 0], &socks_address(WEB, 9999)[..]].concat();
        let http = format!("CONNECT {WEB}:9999 HTTP/1.1\r\nHost: {WEB}:9999\r\n\r\n");
        let resident = || common::proxied::resident_kib(pid);
        let calm = resident();
        let streams: Vec<_> = (0..COUNT)
            .filter_map(|number| {
                let (to, request) =
                    if number % 2 == 0 { (SOCKS, &socks[..]) } else { (HTTP, http.as_bytes()) };
                let mut stream = TcpStream::connect(to).ok()?;
                let _ = stream.write_all(request);
                Some(stream)
            })
            .collect();
        assert!(streams.len() > COUNT * 9 / 10, "{} connected", streams.len());
        let mut highest = 0;
        for _ in 0..20 {
            std::thread::sleep(Duration::from_millis(100));
            highest = highest.max(resident());
            echo(b"during");
        }
        println!("{} KiB more for {} clients", highest - calm, streams.len());
        assert!(highest - calm < 128 << 10, "{} KiB", highest - calm);
        let turned_away = streams.iter().filter(|stream| {
            stream.set_nonblocking(true).unwrap();
            loop {
                match (&mut &**stream).read(&mut [0; 64]) {
                    Ok(0) => return true,
                    Ok(_) => {}
                    Err(error) => return error.kind() != std::io::ErrorKind::WouldBlock,
                }
            }
        });
        let turned_away = turned_away.count();
        assert!(turned_away >= COUNT / 2, "{turned_away} were turned away");
        assert!(turned_away < COUNT, "nobody was let in");
    });
    wait_for("room", Duration::from_secs(20), || {
        (world.socks_reply(1, &socks_address(WEB, 80)) == Some(0)).then_some(())
    })
    .unwrap();
    assert_eq!(world.curl(&["--proxy", &format!("http://{HTTP}"), "http://web.example/"]), GATEWAY);
}
