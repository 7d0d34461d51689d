//! What goes wrong with connections: each test shows that UDP goes on beside it, and that the gateway keeps its size.

mod common;

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use adit_lab::{Content, Host, Process, wait_for};
use common::carried::{peer, up, wait_for_carrier};
use common::internet::{
    GATEWAY, INSIDE, Internet, admit, finish_download, home, init, kill_tunnel, start_gateway, status,
    stop_gateway, succeed,
};
use common::proxied::resident_kib;
use common::{SOON, on};

const SMALL: Content = Content { seed: 0xad17, bytes: 64 << 10 };
/// What a gateway may grow by, whatever strangers do.
const GROWTH_KIB: u64 = 24 << 10;
/// The router as the first client sees it.
const ROUTER: &str = "10.100.0.1";

/// A gateway, a client on UDP, and a second host for whoever does harm.
struct World {
    internet: Internet,
    gateway: Process,
    before_kib: u64,
}

impl World {
    fn new(name: &str) -> Self {
        let internet = Internet::new(name, 2);
        init(&internet.gateway);
        let gateway = start_gateway(&internet.gateway);
        let file = admit(&internet.gateway, "witness", &internet.clients[0], &[]);
        up(&internet.clients[0], &file, &["--carrier", "udp"]);
        wait_for_carrier(&internet.clients[0], &["udp"], SOON);
        let pid = status(&internet.gateway)["pid"].as_u64().unwrap() as u32;
        // One connection, so that what is only made once is there.
        let world = Self { internet, gateway, before_kib: 0 };
        drop(world.connect());
        Self { before_kib: resident_kib(pid), ..world }
    }

    fn pid(&self) -> u32 {
        status(&self.internet.gateway)["pid"].as_u64().unwrap() as u32
    }

    fn bad(&self) -> &Host {
        &self.internet.clients[1]
    }

    fn connect(&self) -> TcpStream {
        on(self.bad(), || {
            let to: SocketAddr = format!("{GATEWAY}:51820").parse().unwrap();
            let stream = TcpStream::connect_timeout(&to, SOON).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(12))).unwrap();
            stream.set_write_timeout(Some(Duration::from_secs(2))).unwrap();
            stream
        })
    }

    /// UDP goes on, and the gateway is no larger than it may be.
    fn assert_well(&self) {
        assert!(self.internet.clients[0].ping(INSIDE, 4).unwrap() >= 3, "UDP goes on");
        let now = resident_kib(self.pid());
        assert!(now < self.before_kib + GROWTH_KIB, "{} KiB, and {now} KiB now", self.before_kib);
    }

    /// Nobody's connection is left.
    fn assert_empty(&self) {
        wait_for("the last connection to go", Duration::from_secs(20), || {
            let open = self.internet.gateway.exec(["ss", "-Htn", "state", "established"]).ok()?.stdout;
            (!open.contains(":51820")).then_some(())
        })
        .unwrap();
    }

    fn end(self) {
        self.assert_well();
        self.assert_empty();
        succeed(&self.internet.clients[0], &["down"]);
        stop_gateway(self.gateway);
    }
}

/// How long until the other side ends a connection, and what it said before.
fn farewell(stream: &mut TcpStream) -> (Duration, Vec<u8>) {
    let started = Instant::now();
    let mut said = Vec::new();
    let _ = stream.read_to_end(&mut said);
    (started.elapsed(), said)
}

/// D-11 and D-12: connections that say nothing. No more than 64 of one address wait, and none for long.
#[test]
fn silent_connections_by_the_thousand_cost_little_and_are_let_go() {
    let world = World::new("silent");
    let mut held = Vec::new();
    for _ in 0..1_000 {
        held.push(world.connect());
    }
    world.assert_well();
    let (took, said) = farewell(held.last_mut().unwrap());
    assert!(said.is_empty() && took < Duration::from_secs(10), "{took:?}");
    world.end();
}

/// D-12: a byte now and then, a ClientHello without end, one followed by goodbye.
#[test]
fn slow_and_endless_greetings_are_let_go_in_time() {
    let world = World::new("slowloris");
    let mut slow: Vec<_> = [&b"\x16"[..], b"G", b"\0", b"x"].map(|first| (first, world.connect())).into();
    let started = Instant::now();
    let mut at = 0;
    while started.elapsed() < Duration::from_secs(8) {
        for (first, stream) in &mut slow {
            let _ = stream.write_all(if at == 0 { first } else { b"\x03" });
        }
        at += 1;
        thread::sleep(Duration::from_millis(500));
    }
    for (first, stream) in &mut slow {
        stream.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        let mut byte = [0];
        let outcome = stream.read(&mut byte);
        let goes = |error: &std::io::Error| error.kind() == std::io::ErrorKind::WouldBlock;
        assert!(!outcome.as_ref().is_err_and(goes), "{first:?} is still open: {outcome:?}");
    }
    // A record of a ClientHello that says it is 16 MiB long.
    let mut huge = world.connect();
    let record = [&[0x16, 3, 1, 0x3f, 0xff, 1, 0xff, 0xff, 0xff][..], &vec![0; 0x3fff - 4]].concat();
    for _ in 0..256 {
        if huge.write_all(&record).is_err() {
            break;
        }
    }
    assert!(farewell(&mut huge).0 < Duration::from_secs(10));
    // A ClientHello cut off by an alert (the shape of CVE-2024-32650).
    let mut cut = world.connect();
    cut.write_all(&[0x16, 3, 1, 0, 5, 1, 0, 0, 1, 0]).unwrap();
    cut.write_all(&[0x15, 3, 3, 0, 2, 1, 0]).unwrap();
    assert!(farewell(&mut cut).0 < Duration::from_secs(10));
    world.end();
}

/// D-14 and T-01: lengths that no message has, half a message and goodbye, a reset in the midst of one.
#[test]
fn broken_frames_of_strangers_end_their_connection_alone() {
    let world = World::new("frames");
    let beginnings: [&[u8]; 5] = [&[0, 0], &[0, 1, 7], &[0, 31], &[0xff, 0xff, 1], &[0, 148, 1, 0, 0, 0]];
    for bytes in beginnings {
        for goodbye in [true, false] {
            let mut stream = world.connect();
            stream.write_all(bytes).unwrap();
            if goodbye {
                stream.shutdown(Shutdown::Write).unwrap();
                let (took, said) = farewell(&mut stream);
                assert!(said.is_empty() && took < Duration::from_secs(8), "{bytes:?}: {took:?} {said:?}");
            } else {
                // Unread bytes and no goodbye make the kernel send a reset.
                socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
            }
        }
    }
    world.end();
}

/// D-15: nothing but TLS 1.3, no tickets, no early data; key updates without end lead nowhere.
#[test]
fn tls_keeps_nothing_for_strangers() {
    let world = World::new("tlsflood");
    let place = format!("{GATEWAY}:51820");
    let ask = |more: &[&str], input: String| {
        let words = [&["openssl", "s_client", "-connect", &place], more].concat();
        world.bad().command(words).input(input).deadline(Duration::from_secs(30)).attempt().unwrap()
    };
    assert!(!ask(&["-tls1_2"], String::new()).ok());
    let shown = ask(&[], "GET / HTTP/1.1\r\n\r\n".to_owned()).stdout;
    assert!(shown.contains("TLSv1.3"), "{shown}");
    assert!(!shown.contains("New Session Ticket arrived"), "{shown}");
    assert!(!shown.contains("Early data was accepted"), "{shown}");
    ask(&[], "K\n".repeat(2_000));
    world.end();
}

/// D-16: without descriptors the gateway takes no connections, does not spin, and carries UDP; then it is as before.
#[test]
fn a_gateway_without_descriptors_carries_udp_and_recovers() {
    let world = World::new("starved");
    let pid = world.pid();
    let open = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let limit = |soft: usize| {
        let (pid, limit) = (pid.to_string(), format!("--nofile={soft}:"));
        world.internet.gateway.exec(["prlimit", "--pid", &pid, &limit]).unwrap();
    };
    limit(open + 4);
    let crowd: Vec<_> = (0..60).map(|_| world.connect()).collect();
    let ticks = || {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let fields: Vec<u64> =
            stat.rsplit_once(')').unwrap().1.split_whitespace().filter_map(|it| it.parse().ok()).collect();
        // The state, a letter, is left out: fields 14 and 15 of the page.
        fields[10] + fields[11]
    };
    let before = ticks();
    thread::sleep(Duration::from_secs(3));
    let used = ticks() - before;
    assert!(used < 30, "{used} hundredths of a second in three: it spins");
    assert!(world.internet.clients[0].ping(INSIDE, 4).unwrap() >= 3, "UDP goes on");
    drop(crowd);
    limit(1_024);
    let file = admit(&world.internet.gateway, "late", world.bad(), &[]);
    up(world.bad(), &file, &["--carrier", "tls"]);
    wait_for_carrier(world.bad(), &["tls"], Duration::from_secs(20));
    succeed(world.bad(), &["down"]);
    world.end();
}

/// D-13: who takes nothing gets a small queue and ten seconds; others do not notice.
#[test]
fn a_peer_that_takes_nothing_does_not_make_the_gateway_grow() {
    let world = World::new("zerowindow");
    let file = admit(&world.internet.gateway, "stuck", world.bad(), &[]);
    up(world.bad(), &file, &["--carrier", "tcp"]);
    wait_for_carrier(world.bad(), &["tcp"], SOON);
    let inside = status(world.bad())["addresses"][0].as_str().unwrap().split('/').next().unwrap().to_owned();
    let stuck = status(world.bad())["pid"].as_u64().unwrap().to_string();
    world.bad().exec(["kill", "-STOP", &stuck]).unwrap();
    let flood = format!(
        "for n in $(seq 40); do head -c 1000000 /dev/zero; sleep 0.1; done | timeout 20 socat -b 1300 -u - UDP-SENDTO:{inside}:9"
    );
    let mut flood = world.internet.gateway.spawn(["sh", "-c", &flood]).unwrap();
    world.assert_well();
    let _ = flood.wait(Duration::from_secs(30));
    world.assert_well();
    world.assert_empty();
    world.bad().exec(["kill", "-CONT", &stuck]).unwrap();
    wait_for("the peer to come back", Duration::from_secs(30), || {
        (world.bad().ping(INSIDE, 1).ok()? == 1).then_some(())
    })
    .unwrap();
    succeed(world.bad(), &["down"]);
    world.end();
}

/// A relay of TCP on the router to the gateway.
fn relay(router: &Host, port: u16, options: &[&str]) -> Process {
    // One connection, after which it ends.
    let listen = format!("TCP-LISTEN:{port},reuseaddr,nodelay");
    let to = format!("TCP:{GATEWAY}:51820,nodelay");
    let process = router.spawn([&["socat"], options, &[&listen, &to]].concat()).unwrap();
    wait_for("the relay", SOON, || {
        router.exec(["ss", "-Hltn"]).ok()?.stdout.contains(&format!(":{port} ")).then_some(())
    })
    .unwrap();
    process
}

/// T-01 and T-02: single bytes arrive as the same messages; when the relay dies, the session goes on by another.
#[test]
fn a_connection_of_single_bytes_carries_all_and_the_session_outlives_it() {
    let internet = Internet::new("bytes", 1);
    let client = &internet.clients[0];
    init(&internet.gateway);
    let gateway = start_gateway(&internet.gateway);
    let file = admit(&internet.gateway, "phone", client, &[]);
    let place = format!("{ROUTER}:7000");
    let first = relay(&internet.router, 7_000, &["-b", "1"]);
    up(client, &file, &["--carrier", "tcp", "--stream-endpoint", &place]);
    wait_for_carrier(client, &["tcp"], SOON);
    finish_download(internet.start_download(client, SMALL, 100_000), SMALL);
    let handshake = peer(client)["last_handshake_secs_ago"].as_u64().unwrap();
    drop(first);
    let _second = relay(&internet.router, 7_000, &[]);
    wait_for("the tunnel by another connection", Duration::from_secs(20), || {
        (client.ping(INSIDE, 1).ok()? == 1).then_some(())
    })
    .unwrap();
    assert!(peer(client)["last_handshake_secs_ago"].as_u64().unwrap() >= handshake, "no handshake");
    succeed(client, &["down"]);
    stop_gateway(gateway);
}

/// T-02: the other end vanishes without a word; that is found out within 15 seconds, and the session goes on.
#[test]
fn a_half_open_connection_is_found_out_and_the_session_goes_on() {
    let internet = Internet::new("halfopen", 1);
    let client = &internet.clients[0];
    init(&internet.gateway);
    let gateway = start_gateway(&internet.gateway);
    let file = admit(&internet.gateway, "phone", client, &[]);
    internet.router.drop_udp().unwrap();
    up(client, &file, &["--carrier", "tls"]);
    wait_for_carrier(client, &["tls"], SOON);
    let handshake = peer(client)["last_handshake_secs_ago"].as_u64().unwrap();
    let port = peer(&internet.gateway)["endpoint"].as_str().unwrap().rsplit_once(':').unwrap().1.to_owned();
    // Only this connection is dead: whoever connects anew gets through.
    let rules = format!(
        "table inet dead {{\n chain forward {{\n  type filter hook forward priority 0;\n  tcp sport {port} drop\n  tcp dport {port} drop\n }}\n}}\n"
    );
    let rules = internet.router.write("dead.nft", rules).unwrap().display().to_string();
    internet.router.exec(["nft", "-f", &rules]).unwrap();
    let started = Instant::now();
    wait_for("the tunnel by another connection", Duration::from_secs(25), || {
        (client.ping(INSIDE, 1).ok()? == 1).then_some(())
    })
    .unwrap();
    let took = started.elapsed();
    println!("another connection after {} ms", took.as_millis());
    assert!(took < Duration::from_secs(16), "{took:?}");
    assert!(peer(client)["last_handshake_secs_ago"].as_u64().unwrap() >= handshake, "no handshake");
    succeed(client, &["down"]);
    stop_gateway(gateway);
}

/// T-06: whoever breaks TLS open is seen by the pin; with `tls_verify` off the session passes, and it alone protects.
#[test]
fn a_foreign_certificate_is_refused_unless_tls_is_only_camouflage() {
    let internet = Internet::new("mitm", 1);
    let (client, router) = (&internet.clients[0], &internet.router);
    init(&internet.gateway);
    let gateway = start_gateway(&internet.gateway);
    let file = admit(&internet.gateway, "phone", client, &[]);
    let [certificate, key] =
        ["mitm.pem", "mitm.key"].map(|it| router.directory().join(it).display().to_string());
    let request =
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
    let rest = ["-days", "2", "-subj", "/CN=company", "-keyout", &key, "-out", &certificate];
    router.exec(request.iter().chain(&rest).copied()).unwrap();
    let listen = format!("OPENSSL-LISTEN:7443,fork,reuseaddr,cert={certificate},key={key},verify=0");
    let to = format!("OPENSSL:{GATEWAY}:51820,verify=0");
    let _mitm = router.spawn(["socat", &listen, &to]).unwrap();
    wait_for("the proxy", SOON, || {
        router.exec(["ss", "-Hltn"]).ok()?.stdout.contains(":7443 ").then_some(())
    })
    .unwrap();
    let place = format!("{ROUTER}:7443");
    up(client, &file, &["--carrier", "tls", "--stream-endpoint", &place]);
    assert_eq!(client.ping(INSIDE, 2).unwrap(), 0);
    let log = fs::read_to_string(home(client).join("state/phone.log")).unwrap();
    assert!(log.contains("no TLS with the gateway"), "{log}");
    assert_eq!(peer(client)["has_session"], false, "and nothing without TLS either");
    succeed(client, &["down"]);
    up(client, &file, &["--carrier", "tls", "--stream-endpoint", &place, "--tls-verify", "off"]);
    wait_for_carrier(client, &["tls"], SOON);
    assert_eq!(client.ping(INSIDE, 2).unwrap(), 2);
    succeed(client, &["down"]);
    stop_gateway(gateway);
}

/// T-08: of two connections of a peer the newest that has proved itself stays.
#[test]
fn the_newest_proven_connection_of_a_peer_stays_and_the_other_goes() {
    let internet = Internet::new("twice", 2);
    init(&internet.gateway);
    let gateway = start_gateway(&internet.gateway);
    let file = admit(&internet.gateway, "phone", &internet.clients[0], &[]);
    let twin =
        internet.clients[1].write("phone.conf", fs::read(&file).unwrap()).unwrap().display().to_string();
    let connections_of_the_old = || {
        let of_port = ["ss", "-Htn", "state", "established", "sport = :51820"];
        let open = internet.gateway.exec(of_port).unwrap().stdout;
        open.lines().filter(|line| line.contains("10.100.0.2")).count()
    };
    up(&internet.clients[0], &file, &["--carrier", "tcp"]);
    wait_for_carrier(&internet.clients[0], &["tcp"], SOON);
    // It says nothing more, so that it does not win again.
    let old = status(&internet.clients[0])["pid"].as_u64().unwrap().to_string();
    internet.clients[0].exec(["kill", "-STOP", &old]).unwrap();
    assert!(connections_of_the_old() > 0);
    up(&internet.clients[1], &twin, &["--carrier", "tcp"]);
    wait_for_carrier(&internet.clients[1], &["tcp"], SOON);
    wait_for("the older connection to go", SOON, || (connections_of_the_old() == 0).then_some(())).unwrap();
    assert_eq!(internet.clients[1].ping(INSIDE, 2).unwrap(), 2);
    let endpoint = peer(&internet.gateway)["endpoint"].as_str().unwrap().to_owned();
    assert!(endpoint.starts_with("10.101.0.2:"), "{endpoint}");
    kill_tunnel(&internet.clients[0], "phone");
    succeed(&internet.clients[0], &["down"]);
    succeed(&internet.clients[1], &["down"]);
    stop_gateway(gateway);
}
