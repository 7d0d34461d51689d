//! The tunnel where UDP does not work: a client, a gateway, and what a network does to them.

mod common;

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use adit_lab::pcap::Frame;
use adit_lab::{Capture, Content, Host, wait_for};
use common::carried::{peer, up, wait_for_carrier};
use common::internet::{
    GATEWAY, INSIDE, Internet, adit, admit, finish_download, home, init, kill_tunnel, start_gateway,
    stop_gateway, succeed,
};
use common::{SOON, on};
use socket2::{Domain, Protocol, Socket, Type};

const FILE: Content = Content { seed: 0xad17, bytes: 4 << 20 };

#[test]
fn a_tunnel_over_any_stream_carries_a_download_byte_for_byte() {
    let internet = Internet::new("stream", 1);
    let client = &internet.clients[0];
    init(&internet.gateway);
    let gateway = start_gateway(&internet.gateway);
    let file = admit(&internet.gateway, "phone", client, &[]);
    internet.router.drop_udp().unwrap();
    for kind in ["tcp", "tls", "wss"] {
        up(client, &file, &["--carrier", kind]);
        wait_for_carrier(client, &[kind], SOON);
        assert_eq!(client.ping(INSIDE, 3).unwrap(), 3);
        finish_download(internet.start_download(client, FILE, 100_000), FILE);
        assert_eq!(peer(&internet.gateway)["carrier"], kind);
        succeed(client, &["down"]);
    }
    stop_gateway(gateway);
}

/// When the first packet of a protocol left for the gateway's port.
fn first_to_gateway(frames: &[Frame], protocol: u8) -> Option<Duration> {
    let address = GATEWAY.parse::<std::net::Ipv4Addr>().unwrap().octets();
    let is_it = |frame: &&Frame| {
        let packet = frame.bytes.get(14..).unwrap_or_default();
        packet.len() > 24
            && (packet[0], packet[9]) == (0x45, protocol)
            && packet[16..20] == address
            && packet[22..24] == 51_820u16.to_be_bytes()
    };
    frames.iter().find(is_it).map(|frame| frame.time)
}

#[test]
fn a_client_finds_its_way_where_udp_is_dropped_and_comes_back_to_it() {
    let internet = Internet::new("auto", 1);
    let client = &internet.clients[0];
    init(&internet.gateway);
    let gateway = start_gateway(&internet.gateway);
    let file = admit(&internet.gateway, "phone", client, &[]);
    internet.router.drop_udp().unwrap();
    let capture = Capture::start(client, "eth0").unwrap();
    let started = Instant::now();
    up(client, &file, &[]);
    wait_for_carrier(client, &["tcp", "tls", "wss"], SOON);
    let took = started.elapsed();
    assert_eq!(client.ping(INSIDE, 2).unwrap(), 2);
    let frames = capture.stop().unwrap();
    let [udp, tcp] = [17, 6].map(|protocol| first_to_gateway(&frames, protocol).unwrap());
    let alone = tcp.saturating_sub(udp);
    println!("up after {} ms; UDP had {} ms for itself", took.as_millis(), alone.as_millis());
    assert!(took < Duration::from_secs(10), "{took:?}");
    // 1.5 s by the clock of the program; the packets may leave a moment later.
    assert!(alone > Duration::from_millis(1_250), "{alone:?}");
    finish_download(internet.start_download(client, FILE, 100_000), FILE);
    let handshakes = peer(client)["last_handshake_secs_ago"].as_u64().unwrap();

    // A download goes on while the carrier changes below it.
    let download = internet.start_download(client, FILE, 300);
    internet.router.drop_nothing().unwrap();
    wait_for_carrier(client, &["udp"], Duration::from_secs(60));
    finish_download(download, FILE);
    assert!(peer(client)["last_handshake_secs_ago"].as_u64().unwrap() >= handshakes, "the session goes on");
    assert_eq!(peer(&internet.gateway)["carrier"], "udp");
    succeed(client, &["down"]);
    stop_gateway(gateway);
}

#[test]
fn a_download_survives_that_udp_dies_below_it_and_comes_back() {
    let internet = Internet::new("midway", 1);
    let client = &internet.clients[0];
    init(&internet.gateway);
    let gateway = start_gateway(&internet.gateway);
    let file = admit(&internet.gateway, "phone", client, &[]);
    up(client, &file, &[]);
    wait_for_carrier(client, &["udp"], SOON);
    let download = internet.start_download(client, FILE, 200);
    std::thread::sleep(Duration::from_secs(2));
    let before = peer(client)["last_handshake_secs_ago"].as_u64().unwrap();
    internet.router.drop_udp().unwrap();
    let started = Instant::now();
    wait_for_carrier(client, &["tcp", "tls", "wss"], Duration::from_secs(20));
    let took = started.elapsed();
    println!("moved {} ms after UDP was dropped", took.as_millis());
    assert!(took < Duration::from_secs(10), "{took:?}");
    internet.router.drop_nothing().unwrap();
    let restored = Instant::now();
    wait_for_carrier(client, &["udp"], Duration::from_secs(60));
    println!("back {} ms after UDP was restored", restored.elapsed().as_millis());
    finish_download(download, FILE);
    assert_eq!(peer(&internet.gateway)["carrier"], "udp");
    assert!(peer(client)["last_handshake_secs_ago"].as_u64().unwrap() >= before, "the session goes on");
    succeed(client, &["down"]);
    stop_gateway(gateway);
}

/// T-03.
#[test]
fn a_connection_follows_the_client_to_another_address_and_the_session_goes_on() {
    let internet = Internet::new("elsewhere", 1);
    let client = &internet.clients[0];
    init(&internet.gateway);
    let gateway = start_gateway(&internet.gateway);
    let file = admit(&internet.gateway, "phone", client, &[]);
    // Else the new address would go with the old one.
    client.set_sysctl("net.ipv4.conf.all.promote_secondaries", "1").unwrap();
    let home = common::internet::home(client).display().to_string();
    let up = [common::ADIT, "--home", &home, "up", &file, "--foreground", "--carrier", "tcp"];
    let mut tunnel = client.spawn(up).unwrap();
    tunnel.wait_for_text("is reached by a connection", SOON).unwrap();
    assert_eq!(client.ping(INSIDE, 2).unwrap(), 2);
    let download = internet.start_download(client, FILE, 300);
    let mut took = Vec::new();
    for (old, new) in [("10.100.0.2", "10.100.0.3"), ("10.100.0.3", "10.100.0.4")] {
        let lines =
            |text: &str| tunnel.stderr().matches(text).count() + tunnel.stdout().matches(text).count();
        let before = lines("is reached by a connection");
        let began = Instant::now();
        client.add_address("eth0", &format!("{new}/24")).unwrap();
        client.ip(["addr", "del", &format!("{old}/24"), "dev", "eth0"]).unwrap();
        client.attempt(["ip", "route", "replace", "default", "via", "10.100.0.1", "dev", "eth0"]).unwrap();
        wait_for("the program to notice", SOON, || (lines("another network") > took.len()).then_some(()))
            .unwrap_or_else(|error| panic!("{error}: {}", tunnel.stderr()));
        wait_for("another connection", SOON, || (lines("is reached by a connection") > before).then_some(()))
            .unwrap_or_else(|error| panic!("{error}: {}", tunnel.stderr()));
        took.push(began.elapsed());
        wait_for("the gateway to see it", SOON, || {
            peer(&internet.gateway)["endpoint"].as_str()?.starts_with(new).then_some(())
        })
        .unwrap();
    }
    println!("connected {took:?} after the change began");
    // The program takes some milliseconds; the rest is for a busy machine.
    assert!(took.iter().all(|it| *it < Duration::from_secs(5)), "{took:?}");
    finish_download(download, FILE);
    tunnel.terminate();
    stop_gateway(gateway);
}

/// A way to the gateway's port for connections that begin like TLS; others are taken and never answered.
fn swallow_all_but_tls(router: &Host, at: &str) {
    let (listener, ways) = on(router, || {
        // A socket belongs to the namespace in which it was made.
        let ways: Vec<Socket> =
            (0..32).map(|_| Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap()).collect();
        (TcpListener::bind(at).unwrap(), ways)
    });
    let gateway: SocketAddr = format!("{GATEWAY}:51820").parse().unwrap();
    std::thread::spawn(move || {
        for way in ways {
            let Ok((near, _)) = listener.accept() else { return };
            std::thread::spawn(move || {
                let mut first = [0];
                if !matches!(near.peek(&mut first), Ok(1)) || first != [0x16] {
                    std::thread::sleep(Duration::from_secs(60));
                    return;
                }
                way.connect(&gateway.into()).unwrap();
                let far = TcpStream::from(way);
                let (mut up, mut up_to) = (near.try_clone().unwrap(), far.try_clone().unwrap());
                std::thread::spawn(move || std::io::copy(&mut up, &mut up_to));
                let (mut down, mut down_to) = (far, near);
                let _ = std::io::copy(&mut down, &mut down_to);
            });
        }
    });
}

/// What lets TCP in and takes no notice of what is not TLS.
#[test]
fn a_network_that_swallows_all_but_tls_is_left_for_tls_within_ten_seconds() {
    let internet = Internet::new("swallow", 1);
    let client = &internet.clients[0];
    init(&internet.gateway);
    let gateway = start_gateway(&internet.gateway);
    let file = admit(&internet.gateway, "phone", client, &[]);
    let way = "10.100.0.1:4443";
    swallow_all_but_tls(&internet.router, way);
    up(client, &file, &["--stream-endpoint", way]);
    wait_for_carrier(client, &["udp"], SOON);
    let download = internet.start_download(client, FILE, 300);
    std::thread::sleep(Duration::from_secs(2));
    internet.router.drop_udp().unwrap();
    let started = Instant::now();
    wait_for_carrier(client, &["tls", "wss"], Duration::from_secs(20));
    let took = started.elapsed();
    println!("moved {} ms after UDP was dropped", took.as_millis());
    assert!(took < Duration::from_secs(10), "{took:?}");
    finish_download(download, FILE);
    succeed(client, &["down"]);
    stop_gateway(gateway);
}

/// Takes connections and never says anything.
fn swallow(router: &Host, at: &str) {
    let listener = on(router, || TcpListener::bind(at).unwrap());
    std::thread::spawn(move || listener.incoming().map_while(Result::ok).collect::<Vec<_>>());
}

/// Every carrier that `status` of `client` shows until `is_over`.
fn carriers_until(client: &Host, mut is_over: impl FnMut() -> bool) -> BTreeSet<Option<String>> {
    let mut seen = BTreeSet::new();
    let started = Instant::now();
    while !is_over() {
        assert!(started.elapsed() < Duration::from_secs(60), "{seen:?}");
        let status = adit(client, &["status", "--json"]).json().unwrap_or_default();
        if let Some(peer) = status["peers"].get(0) {
            seen.insert(peer["carrier"].as_str().map(str::to_owned));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    seen
}

#[test]
fn status_names_no_carrier_by_which_the_gateway_has_not_answered() {
    let internet = Internet::new("unanswered", 1);
    let client = &internet.clients[0];
    init(&internet.gateway);
    let gateway = start_gateway(&internet.gateway);
    let file = admit(&internet.gateway, "phone", client, &[]);
    let way = "10.100.0.1:4443";
    swallow(&internet.router, way);
    internet.router.drop_udp().unwrap();
    let home = home(client).display().to_string();
    let words = [common::ADIT, "--home", &home, "up", &file, "--foreground", "-v", "--stream-endpoint", way];
    let mut tunnel = client.spawn(words).unwrap();
    // A handshake was sent by TCP, and had its time to be answered.
    let tried = || [tunnel.stderr(), tunnel.stdout()].concat().matches("does not answer by it").count();
    let seen = carriers_until(client, || tried() > 0);
    assert_eq!(seen, BTreeSet::from([None]));
    let page = succeed(client, &["status"]).stdout;
    assert!(page.contains(&format!("{GATEWAY}:51820, no answer yet")), "{page}");

    internet.router.drop_nothing().unwrap();
    wait_for_carrier(client, &["udp"], Duration::from_secs(60));
    let page = succeed(client, &["status"]).stdout;
    assert!(page.contains(&format!("{GATEWAY}:51820 over udp")), "{page}");

    // What is tried then takes nothing away from what was heard.
    internet.router.drop_udp().unwrap();
    let before = tried();
    let seen = carriers_until(client, || {
        let _ = client.ping(INSIDE, 1);
        tried() > before
    });
    assert_eq!(seen, BTreeSet::from([Some("udp".to_owned())]));
    tunnel.terminate();
    tunnel.wait(SOON).unwrap();
    stop_gateway(gateway);
}

#[test]
fn the_name_of_a_carrier_stays_true_when_its_connection_has_ended() {
    let internet = Internet::new("ended", 1);
    let client = &internet.clients[0];
    init(&internet.gateway);
    let gateway = start_gateway(&internet.gateway);
    let file = admit(&internet.gateway, "phone", client, &[]);
    let connected = |host: &Host| {
        let open = host.exec(["ss", "-Htn", "state", "established"]).unwrap().stdout;
        open.contains(":51820")
    };
    let ended = |host: &Host| {
        wait_for("the connection to end", SOON, || (!connected(host)).then_some(())).unwrap();
        std::thread::sleep(Duration::from_secs(1));
        peer(host)["carrier"].clone()
    };
    up(client, &file, &["--carrier", "wss"]);
    wait_for_carrier(client, &["wss"], SOON);
    assert!(connected(client) && connected(&internet.gateway), "the positive control");
    assert_eq!(peer(&internet.gateway)["carrier"], "wss");
    kill_tunnel(client, "phone");
    assert_eq!(ended(&internet.gateway), "wss");

    succeed(client, &["down"]);
    up(client, &file, &["--carrier", "wss"]);
    wait_for_carrier(client, &["wss"], SOON);
    stop_gateway(gateway);
    assert_eq!(ended(client), "wss");
    succeed(client, &["down"]);
}

#[test]
fn udp_alone_is_what_whoever_asks_for_it_gets() {
    let internet = Internet::new("udponly", 1);
    let client = &internet.clients[0];
    init(&internet.gateway);
    let gateway = start_gateway(&internet.gateway);
    let file = admit(&internet.gateway, "phone", client, &[]);
    internet.router.drop_udp().unwrap();
    up(client, &file, &["--carrier", "udp"]);
    assert_eq!(client.ping(INSIDE, 2).unwrap(), 0);
    internet.router.drop_nothing().unwrap();
    wait_for("an answer over UDP", Duration::from_secs(30), || {
        (client.ping(INSIDE, 1).ok()? == 1).then_some(())
    })
    .unwrap();
    succeed(client, &["down"]);
    stop_gateway(gateway);
}
