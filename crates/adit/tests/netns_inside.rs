//! The inside API from the wrong side, and from the right side in the wrong way; and `adit bench`, which is its best
//! customer.

mod common;

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use adit::inside::{PROBE_BYTES, probe, sequence_of_answer};
use adit_lab::{Host, Process, wait_for};
use serde_json::Value;

use common::internet::{
    GATEWAY, INSIDE, INSIDE6, Internet, adit, admit, home, init, start_gateway, stop_gateway, succeed,
};
use common::{SOON, on};

const PORT: u16 = 9585;
/// What a request for a transfer has to carry.
const MEANT: &str = "Adit-Transfer: 1\r\n";

struct World {
    gateway: Process,
    net: Internet,
}

/// A gateway and clients that are up.
fn world(prefix: &str, clients: usize) -> World {
    let net = Internet::new(prefix, clients);
    init(&net.gateway);
    let gateway = start_gateway(&net.gateway);
    for (number, client) in net.clients.iter().enumerate() {
        let file = admit(&net.gateway, &format!("tun-{number}"), client, &[]);
        succeed(client, &["up", &file]);
    }
    World { gateway, net }
}

fn at(address: &str) -> SocketAddr {
    SocketAddr::new(address.parse().unwrap(), PORT)
}

fn connect(host: &Host, to: SocketAddr) -> std::io::Result<TcpStream> {
    on(host, || {
        let stream = TcpStream::connect_timeout(&to, Duration::from_secs(2))?;
        stream.set_read_timeout(Some(Duration::from_secs(12)))?;
        stream.set_write_timeout(Some(Duration::from_secs(5)))?;
        Ok(stream)
    })
}

/// Sends `request` as it is and returns all that comes back until the end.
fn exchange(host: &Host, to: SocketAddr, request: &[u8]) -> String {
    let Ok(mut stream) = connect(host, to) else { return String::new() };
    let _ = stream.write_all(request);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

fn request(line: &str, headers: &str) -> Vec<u8> {
    format!("{line} HTTP/1.1\r\nHost: {INSIDE}:{PORT}\r\n{headers}\r\n").into_bytes()
}

fn status_of(answer: &str) -> u16 {
    answer.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap_or(0)
}

fn ask(host: &Host, line: &str, headers: &str) -> u16 {
    status_of(&exchange(host, at(INSIDE), &request(line, headers)))
}

fn is_served(host: &Host) -> bool {
    ask(host, "GET /v1/whoami", "") == 200
}

fn udp(host: &Host, to: SocketAddr) -> UdpSocket {
    on(host, || {
        let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).unwrap();
        socket.connect(to).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(700))).unwrap();
        socket
    })
}

/// The length and number of the answer to a datagram.
fn echoed(socket: &UdpSocket, datagram: &[u8]) -> Option<(usize, Option<u64>)> {
    let _ = socket.send(datagram);
    let mut buffer = [0; 2000];
    let len = socket.recv(&mut buffer).ok()?;
    Some((len, sequence_of_answer(&buffer[..len])))
}

/// What `/proc` says about the gateway.
fn measure(gateway: &Process, key: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{}/status", gateway.id())).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(key)).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

fn descriptors(gateway: &Process) -> usize {
    fs::read_dir(format!("/proc/{}/fd", gateway.id())).unwrap().count()
}

#[test]
fn only_peers_reach_the_inside_api() {
    let World { gateway: _gateway, net } = world("inreach", 1);
    let client = &net.clients[0];
    // A neighbour that knows the way in: the router sends the inside networks to the gateway.
    net.router.add_route(&format!("10.86.0.0/24 via {GATEWAY}")).unwrap();
    net.router.add_route("fd86:ad17::/64 via 2001:db8:2::2").unwrap();
    for address in [INSIDE, INSIDE6] {
        assert!(connect(client, at(address)).is_ok(), "the peer, {address}");
        assert_eq!(echoed(&udp(client, at(address)), &probe(5)), Some((PROBE_BYTES, Some(5))), "{address}");
        for stranger in [&net.gateway, &net.router, &net.web] {
            let name = stranger.name();
            assert!(connect(stranger, at(address)).is_err(), "{name} reached {address}");
            assert_eq!(echoed(&udp(stranger, at(address)), &probe(5)), None, "{name} to {address}");
        }
    }
    for stranger in [client, &net.web] {
        assert!(connect(stranger, at(GATEWAY)).is_err(), "the outside address has no inside API");
    }
    assert_eq!(net.web.ping(INSIDE, 2).unwrap(), 0, "inside addresses answer nobody outside");
    assert_eq!(client.ping(INSIDE, 2).unwrap(), 2, "and every peer");
}

#[test]
fn what_is_asked_wrongly_is_refused_and_the_right_question_is_answered() {
    let World { gateway: _gateway, net } = world("inwrong", 1);
    let client = &net.clients[0];
    assert!(is_served(client));
    assert_eq!(ask(client, "GET /", ""), 404);
    assert_eq!(ask(client, "GET /v1/whoami/", ""), 404);
    assert_eq!(ask(client, "POST /v1/whoami", "Content-Length: 0\r\n"), 405);
    assert_eq!(ask(client, "GET /v1/upload", MEANT), 405);
    assert_eq!(ask(client, "GET /v1/download", MEANT), 400);
    assert_eq!(ask(client, "GET /v1/download?seconds=31", MEANT), 400);
    // What a page makes a browser send for `<img src=…>` and for a form: no origin, and nothing of its own.
    let page = "Referer: http://evil.example/\r\n";
    assert_eq!(ask(client, "GET /v1/download?seconds=30", page), 403);
    assert_eq!(ask(client, "POST /v1/upload", "Referer: http://evil.example/\r\nContent-Length: 0\r\n"), 403);
    assert_eq!(ask(client, "OPTIONS /v1/download?seconds=30", "Origin: http://evil.example\r\n"), 403);
    assert_eq!(ask(client, "GET /v1/download?bytes=1", MEANT), 200);
    assert_eq!(ask(client, "GET /v1/whoami", "Origin: http://a.example\r\n"), 403);
    assert_eq!(ask(client, "GET /v1/whoami", "Host: a.example\r\n"), 403);
    assert_eq!(
        status_of(&exchange(client, at(INSIDE), b"GET /v1/whoami HTTP/1.1\r\nHost: a.example:9585\r\n\r\n")),
        403
    );
    assert_eq!(status_of(&exchange(client, at(INSIDE), b"GET /v1/whoami HTTP/1.1\r\n\r\n")), 403);
    let huge = format!("X: {}\r\n", "x".repeat(20_000));
    assert_eq!(ask(client, "GET /v1/whoami", &huge), 431);
    let many: String = (0..40).map(|number| format!("X-{number}: x\r\n")).collect();
    assert_eq!(ask(client, "GET /v1/whoami", &many), 431);
    assert!(ask(client, &format!("GET /{}", "x".repeat(70_000)), "") >= 400);
    for junk in
        [&b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc"[..], &[0; 4000], b"GET\r\n\r\n", b"\r\n\r\nx\r\n\r\n"]
    {
        assert_ne!(status_of(&exchange(client, at(INSIDE), junk)), 200);
    }
    // Content-Length and Transfer-Encoding together, and a request behind the first.
    let two = "GET /v1/whoami HTTP/1.1\r\nHost: 10.86.0.1:9585\r\n\r\n".repeat(2);
    assert_eq!(exchange(client, at(INSIDE), two.as_bytes()).matches("HTTP/1.1").count(), 1, "one answer");
    assert!(is_served(client));

    let socket = udp(client, at(INSIDE));
    let good = probe(9);
    let mut answer = good;
    answer[4] = b'A';
    let long = [&good[..], &[0; 64]].concat();
    for bad in [&good[..63], &long, &answer, &[0; 64], &[]] {
        assert_eq!(echoed(&socket, bad), None, "{} bytes", bad.len());
    }
    assert_eq!(echoed(&socket, &good), Some((PROBE_BYTES, Some(9))));
}

#[test]
fn a_thousand_connections_and_slow_headers_of_one_peer_leave_the_api_to_others() {
    let World { gateway, net } = world("incrowd", 2);
    let [greedy, other] = &net.clients[..] else { panic!("two clients") };
    assert!(is_served(greedy) && is_served(other));
    let (memory, threads, files) =
        (measure(&gateway, "VmRSS:"), measure(&gateway, "Threads:"), descriptors(&gateway));
    let started = Instant::now();
    let mut held: Vec<TcpStream> = on(greedy, || {
        (0..1_000)
            .filter_map(|_| {
                let mut stream = TcpStream::connect_timeout(&at(INSIDE), Duration::from_secs(2)).ok()?;
                // A little of a request, and then nothing.
                let _ = stream.write_all(b"GET /v1/whoami HTTP/1.1\r\nHost: 10.86");
                Some(stream)
            })
            .collect()
    });
    assert!(held.len() > 900, "the connections are made: {}", held.len());
    assert!(descriptors(&gateway) < files + 40, "{} descriptors, before {files}", descriptors(&gateway));
    assert_eq!(measure(&gateway, "Threads:"), threads);
    let grown = measure(&gateway, "VmRSS:").saturating_sub(memory);
    assert!(grown < 8 * 1024, "{grown} KiB more");
    assert!(is_served(other), "another peer is served meanwhile");
    if started.elapsed() < Duration::from_secs(4) {
        assert!(!is_served(greedy), "who took every place waits");
    }
    // Every one of them is ended by the gateway, whether it was turned away or was too slow.
    let over: usize = held
        .iter_mut()
        .map(|stream| {
            stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            let mut rest = Vec::new();
            match stream.read_to_end(&mut rest) {
                Ok(_) => 1,
                Err(error) => usize::from(error.kind() == std::io::ErrorKind::ConnectionReset),
            }
        })
        .sum();
    assert_eq!(over, held.len());
    assert!(started.elapsed() < Duration::from_secs(25), "{:?}", started.elapsed());
    wait_for("a place for the greedy peer", SOON, || is_served(greedy).then_some(())).unwrap();
    wait_for("the descriptors to be closed", SOON, || (descriptors(&gateway) <= files + 2).then_some(()))
        .unwrap();
}

#[test]
fn a_peer_has_one_transfer_at_a_time_and_gets_every_byte() {
    let World { gateway: _gateway, net } = world("intransfer", 2);
    let [a, b] = &net.clients[..] else { panic!("two clients") };
    let body = |answer: &str| answer.split_once("\r\n\r\n").unwrap().1.to_owned();
    let download = exchange(
        a,
        at(INSIDE),
        b"GET /v1/download?bytes=3000000 HTTP/1.0\r\nHost: 10.86.0.1:9585\r\nAdit-Transfer: 1\r\n\r\n",
    );
    assert_eq!((status_of(&download), body(&download).len()), (200, 3_000_000));

    let upload = |host: &Host, bytes: usize| {
        let mut message = request("POST /v1/upload", &format!("{MEANT}Content-Length: {bytes}\r\n"));
        message.resize(message.len() + bytes, b'x');
        exchange(host, at(INSIDE), &message)
    };
    let answer = upload(a, 2_000_000);
    let told: Value = serde_json::from_str(&body(&answer)).unwrap();
    assert_eq!((&told["bytes"], &told["schema"]), (&2_000_000.into(), &1.into()), "{answer}");
    assert!(told["seconds"].as_f64().unwrap() > 0.0);

    let mut slow = connect(a, at(INSIDE)).unwrap();
    slow.write_all(&request("POST /v1/upload", &format!("{MEANT}Content-Length: 10\r\n"))).unwrap();
    wait_for("the transfer to count", SOON, || {
        (ask(a, "GET /v1/download?bytes=1", MEANT) == 429).then_some(())
    })
    .unwrap();
    assert!(is_served(a), "questions are no transfers");
    assert_eq!(ask(b, "GET /v1/download?bytes=1", MEANT), 200, "another peer has its own");
    slow.write_all(b"0123456789").unwrap();
    let mut answer = String::new();
    slow.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("\"bytes\":10"), "{answer}");
    assert_eq!(ask(a, "GET /v1/download?bytes=1", MEANT), 200);

    let mut broken = connect(a, at(INSIDE)).unwrap();
    broken.write_all(&request("POST /v1/upload", &format!("{MEANT}Content-Length: 10\r\n"))).unwrap();
    drop(broken);
    wait_for("the place of who hung up", SOON, || {
        (ask(a, "GET /v1/download?bytes=1", MEANT) == 200).then_some(())
    })
    .unwrap();
}

#[test]
fn the_api_is_there_again_after_a_restart_and_moves_with_a_reload() {
    let World { gateway, net } = world("inreload", 1);
    let client = &net.clients[0];
    assert!(is_served(client));
    stop_gateway(gateway);
    let mut gateway = start_gateway(&net.gateway);
    wait_for("the API after a restart", SOON * 2, || is_served(client).then_some(())).unwrap();
    gateway.crash();
    let gateway = start_gateway(&net.gateway);
    wait_for("the API after a crash", SOON * 2, || is_served(client).then_some(())).unwrap();

    let file = home(&net.gateway).join("adit.toml");
    let configure = |line: &str| {
        let text = fs::read_to_string(&file).unwrap();
        let rest: String =
            text.lines().filter(|it| !it.contains("inside_api")).map(|it| format!("{it}\n")).collect();
        fs::write(&file, rest.replace("[gateway]\n", &format!("[gateway]\n{line}\n"))).unwrap();
        net.gateway.exec(["kill", "-HUP", &gateway.id().to_string()]).unwrap();
    };
    let other = SocketAddr::new(INSIDE.parse().unwrap(), 9600);
    configure("inside_api = 9600");
    wait_for("the other port", SOON, || connect(client, other).is_ok().then_some(())).unwrap();
    wait_for("the first port to close", SOON, || connect(client, at(INSIDE)).is_err().then_some(())).unwrap();
    configure("inside_api = \"off\"");
    wait_for("no API", SOON, || connect(client, other).is_err().then_some(())).unwrap();
    configure("");
    wait_for("the usual port", SOON, || is_served(client).then_some(())).unwrap();
    assert!(!gateway.stderr().contains("needs a restart"), "{}", gateway.stderr());

    succeed(&net.gateway, &["peer", "rm", "tun-0"]);
    wait_for("a removed peer to be nobody", SOON, || (!is_served(client)).then_some(())).unwrap();
}

#[test]
fn a_port_that_is_taken_costs_the_api_and_not_the_gateway() {
    let net = Internet::new("intaken", 1);
    init(&net.gateway);
    // Where another program has the port on every address, ours cannot be had until it goes.
    let taken = on(&net.gateway, || std::net::TcpListener::bind("0.0.0.0:9585").unwrap());
    let gateway = start_gateway(&net.gateway);
    let client = &net.clients[0];
    let file = admit(&net.gateway, "tun-0", client, &[]);
    succeed(client, &["up", &file]);
    assert!(!is_served(client));
    assert_eq!(client.ping(INSIDE, 2).unwrap(), 2);
    wait_for("a warning", SOON, || gateway.stderr().contains("inside API cannot have").then_some(()))
        .unwrap();
    drop(taken);
    wait_for("the API", SOON, || is_served(client).then_some(())).unwrap();
}

#[test]
fn the_bench_measures_both_ways_and_says_what_limits_them() {
    let World { gateway: _gateway, net } = world("inbench", 1);
    let client = &net.clients[0];
    let report = succeed(client, &["bench", "--seconds", "2", "--json"]).json().unwrap();
    assert_eq!((&report["schema"], &report["name"]), (&1.into(), &"tun-0".into()), "{report}");
    assert_eq!(report["gateway"], format!("{INSIDE}:{PORT}"));
    let in_use = &report["in_use"];
    assert_eq!(in_use["carrier"], "udp");
    assert!(
        in_use["lanes"].as_u64().unwrap() >= 1 && in_use["mtu_bytes"].as_u64().unwrap() >= 1280,
        "{report}"
    );
    assert!(["aes-256-gcm", "chacha20-poly1305"].contains(&in_use["suite"].as_str().unwrap()));
    for direction in ["download", "upload"] {
        let measured = &report[direction];
        let rate = measured["mbits_per_second"].as_f64().unwrap();
        let seconds = measured["seconds"].as_f64().unwrap();
        assert!((1.5..4.0).contains(&seconds), "{report}");
        assert!((measured["bytes"].as_f64().unwrap() * 8.0 / seconds / 1e6 - rate).abs() < rate / 100.0);
        assert!(["one_core", "cpu", "loss", "path"].contains(&measured["limit"]["kind"].as_str().unwrap()));
        assert!(measured["load"]["tunnel_cores"].as_f64().unwrap() > 0.0, "{report}");
    }
    for trips in [&report["idle"], &report["download"]["round_trips"], &report["upload"]["round_trips"]] {
        let time = |key: &str| trips[key].as_f64().unwrap_or_else(|| panic!("{key} in {trips}"));
        assert!(time("p50_ms") > 0.0 && time("p50_ms") <= time("p99_ms"), "{trips}");
        assert!(trips["sent"].as_u64().unwrap() > 50 && trips["answered"].as_u64() <= trips["sent"].as_u64());
    }
    assert!(report["idle"]["loss_percent"].as_f64().unwrap() < 5.0, "{report}");

    // The same work, done by the lab's own programs.
    let mut sink = net.gateway.agent(["tcp-sink", "--listen", &format!("{INSIDE}:5001")]).spawn().unwrap();
    sink.wait_for_text("listening", SOON).unwrap();
    let source = client.agent(["tcp-source", &format!("{INSIDE}:5001"), "--seconds", "2"]).exec().unwrap();
    let reference = source.json().unwrap()["mbits_per_second"].as_f64().unwrap();
    let upload = report["upload"]["mbits_per_second"].as_f64().unwrap();
    assert!(upload > reference / 5.0 && upload < reference * 5.0, "{upload} beside {reference}");

    let text = succeed(client, &["bench", "--seconds", "1"]);
    for words in ["THROUGHPUT", "What limits the download:", "What limits the upload:", "b/s"] {
        assert!(text.stdout.contains(words), "{}", text.stdout);
    }
    assert!(!text.stderr.contains('\r'), "progress is for terminals: {}", text.stderr);
    succeed(client, &["down"]);
    let none = adit(client, &["bench"]);
    assert_eq!(none.code(), Some(1));
    assert!(none.stderr.contains("no tunnel is up"), "{}", none.stderr);
}
