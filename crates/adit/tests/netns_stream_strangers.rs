//! What strangers at the gateway's TCP port cost and see, and whom a client takes for its gateway.

mod common;

use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use adit::keys::parse_public;
use adit_lab::{Host, Output, wait_for};
use adit_proto::cookie::CookieJar;
use adit_proto::suite::Suite;
use adit_proto::time;
use adit_proto::wire;
use common::carried::{configure, peer, up, wait_for_carrier};
use common::internet::{
    GATEWAY, INSIDE, Internet, WEB, adit, admit, home, init, start_gateway, status, stop_gateway, succeed,
};
use common::names::serve_names_by;
use common::proxied::resident_kib;
use common::{ADIT, SOON, on};

/// The router as the first client sees it.
const ROUTER: &str = "10.100.0.1";

fn connect(host: &Host) -> TcpStream {
    on(host, || {
        let to: SocketAddr = format!("{GATEWAY}:51820").parse().unwrap();
        let stream = TcpStream::connect_timeout(&to, SOON).unwrap();
        stream.set_write_timeout(Some(Duration::from_secs(2))).unwrap();
        stream
    })
}

/// Connections that the gateway has.
fn connections(gateway: &Host) -> usize {
    let open = gateway.exec(["ss", "-Htn", "state", "established", "sport = :51820"]).unwrap().stdout;
    open.lines().count()
}

/// Whether the other side has ended it.
fn is_over(stream: &mut TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    let outcome = stream.read(&mut [0]);
    !outcome.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}

/// `adit ARGUMENTS` with a variable in its environment.
fn adit_with(host: &Host, variable: (&str, &str), arguments: &[&str]) -> Output {
    let home = home(host).display().to_string();
    let command = host.command([&[ADIT, "--home", &home], arguments].concat());
    command.env(variable.0, variable.1).attempt().unwrap()
}

fn key_in(profile: &str) -> adit_proto::key::PublicKey {
    let text = fs::read_to_string(profile).unwrap();
    parse_public(text.lines().find_map(|line| line.strip_prefix("PublicKey = ")).unwrap()).unwrap()
}

/// D-11: an initiation whose mac1 is right proves nothing. Those who repeat one are few, the oldest goes first, and a peer
/// that has proved itself is not among them.
#[test]
fn a_first_message_that_anybody_can_repeat_is_no_way_round_the_caps() {
    let internet = Internet::new("repeated", 2);
    let (host, bad, gateway) = (&internet.clients[0], &internet.clients[1], &internet.gateway);
    init(gateway);
    let running = start_gateway(gateway);
    let file = admit(gateway, "honest", host, &[]);
    up(host, &file, &["--carrier", "tcp"]);
    wait_for_carrier(host, &["tcp"], SOON);
    let suite = Suite::ChaCha20Poly1305;
    let mut message = wire::initiation(suite, 7, &[9; 32], &[1; 48], &[2; 28]);
    CookieJar::new(suite, &key_in(&file)).stamp(&mut message, time::Instant::ZERO);
    let frame = [&(message.len() as u16).to_be_bytes()[..], &message].concat();
    let mut held: Vec<_> = (0..200)
        .map(|_| {
            let mut stream = connect(bad);
            stream.write_all(&frame).unwrap();
            stream
        })
        .collect();
    // Sooner than the ten seconds after which those who prove nothing are let go anyway.
    wait_for("the crowd to shrink", Duration::from_secs(5), || (connections(gateway) <= 66).then_some(()))
        .unwrap();
    assert!(connections(gateway) >= 40, "who is within the cap may stay for now");
    assert!(is_over(&mut held[0]) && !is_over(&mut held[199]), "the oldest goes first");
    assert_eq!(host.ping(INSIDE, 3).unwrap(), 3);
    // The peer has two.
    wait_for("the rest to go", Duration::from_secs(30), || (connections(gateway) <= 2).then_some(()))
        .unwrap();
    assert_eq!(host.ping(INSIDE, 3).unwrap(), 3, "by the connection that there was from the beginning");
    succeed(host, &["down"]);
    stop_gateway(running);
}

/// The soft limit of open files of a process.
fn descriptor_limit(pid: u64) -> u64 {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    line.split_whitespace().nth(3).unwrap().parse().unwrap()
}

/// D-16: the usual soft limit is raised; where it cannot be, fewer strangers wait, and the gateway stays usable.
#[test]
fn descriptors_are_asked_for_and_strangers_get_no_more_than_a_share() {
    let internet = Internet::new("limited", 2);
    let (host, bad, gateway) = (&internet.clients[0], &internet.clients[1], &internet.gateway);
    init(gateway);
    let at = home(gateway).display().to_string();
    let start = |limit: &str| {
        let mut process = gateway.spawn(["prlimit", limit, ADIT, "--home", &at, "gateway"]).unwrap();
        process.wait_for_text("gateway ready", SOON).unwrap();
        process
    };
    let running = start("--nofile=256:5000");
    assert_eq!(descriptor_limit(status(gateway)["pid"].as_u64().unwrap()), 5_000);
    stop_gateway(running);

    let running = start("--nofile=200:200");
    let file = admit(gateway, "phone", host, &[]);
    let at_client = home(host).display().to_string();
    host.exec(["prlimit", "--nofile=256:5000", ADIT, "--home", &at_client, "up", &file, "--carrier", "tls"])
        .unwrap();
    wait_for_carrier(host, &["tls"], SOON);
    assert_eq!(descriptor_limit(status(host)["pid"].as_u64().unwrap()), 5_000);
    let held: Vec<_> = (0..150).map(|_| connect(bad)).collect();
    // A quarter of the descriptors, and a quarter of that for one address.
    wait_for("the crowd to shrink", Duration::from_secs(4), || (connections(gateway) <= 14).then_some(()))
        .unwrap();
    assert!(connections(gateway) > 5, "some may wait");
    assert_eq!(status(gateway)["peers"].as_array().map(Vec::len), Some(1), "the owner gets an answer");
    assert_eq!(host.ping(INSIDE, 3).unwrap(), 3);
    drop(held);
    succeed(host, &["down"]);
    stop_gateway(running);
}

/// D-13: visitors who ask for a large file and take nothing of it.
#[test]
fn visitors_who_do_not_take_their_file_cost_little() {
    let internet = Internet::new("untaken", 1);
    let (host, gateway) = (&internet.clients[0], &internet.gateway);
    init(gateway);
    let root = gateway.directory().join("www");
    fs::create_dir_all(&root).unwrap();
    let contents: Vec<u8> = (0..8 << 20).map(|at: u32| (at % 251) as u8).collect();
    fs::write(root.join("big.bin"), &contents).unwrap();
    configure(gateway, &format!("stream_web = \"{}\"", root.display()));
    let running = start_gateway(gateway);
    let pid = status(gateway)["pid"].as_u64().unwrap() as u32;
    let ask = |stream: &mut TcpStream| stream.write_all(b"GET /big.bin HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let whole = || {
        let mut stream = connect(host);
        stream.set_read_timeout(Some(SOON)).unwrap();
        ask(&mut stream);
        let mut got = Vec::new();
        stream.read_to_end(&mut got).unwrap();
        let start = got.len().checked_sub(contents.len()).unwrap();
        assert!(got.starts_with(b"HTTP/1.1 200 OK\r\n") && got[start..] == contents, "{} bytes", got.len());
    };
    whole();
    let before = resident_kib(pid);
    let held: Vec<_> = (0..40)
        .map(|_| {
            let mut stream = connect(host);
            ask(&mut stream);
            stream.set_read_timeout(Some(SOON)).unwrap();
            assert_eq!(stream.peek(&mut [0]).unwrap(), 1, "it is being served");
            stream
        })
        .collect();
    let now = resident_kib(pid);
    assert!(now < before + (24 << 10), "{before} KiB, and {now} KiB for {} visitors", held.len());
    whole();
    drop(held);
    stop_gateway(running);
}

/// Whatever comes within TLS and is no request gets the same answer after the same time, also where a message of ours
/// would have a length, an end, or a check.
#[test]
fn within_tls_all_that_is_no_request_is_answered_alike() {
    let internet = Internet::new("alike", 1);
    let (host, gateway) = (&internet.clients[0], &internet.gateway);
    init(gateway);
    let running = start_gateway(gateway);
    let place = format!("{GATEWAY}:51820");
    let say = |text: &[u8]| {
        let started = Instant::now();
        let said = host
            .command(["timeout", "25", "openssl", "s_client", "-quiet", "-connect", &place])
            .input(text)
            .deadline(Duration::from_secs(40))
            .attempt()
            .unwrap();
        (started.elapsed(), said.stdout)
    };
    assert!(say(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").1.contains("It works!"));
    let whole = [&[0, 148, 1, 0, 0, 0][..], &[7; 200]].concat();
    let greetings: [&[u8]; 6] =
        [b"\0\x10 a length of no message", &[0, 148, 1, 0], &whole, b"\x01\x02\r\n\r\n", b"x", b"GET / HT"];
    let answers: Vec<_> = thread::scope(|scope| {
        let asked: Vec<_> = greetings.iter().map(|text| scope.spawn(|| say(text))).collect();
        asked.into_iter().map(|it| it.join().unwrap()).collect()
    });
    for ((took, said), greeting) in answers.iter().zip(greetings) {
        assert!(said.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{greeting:?}: {said:?}");
        assert_eq!(*said, answers[0].1, "{greeting:?}");
        assert!((4..20).contains(&took.as_secs()), "{greeting:?}: {took:?}");
    }
    stop_gateway(running);
}

const EC: [&str; 5] = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];

/// An authority of our own; the file that hosts trust it by.
fn make_authority(host: &Host) -> String {
    let [certificate, key] =
        ["authority.pem", "authority.key"].map(|it| host.directory().join(it).display().to_string());
    let request = [&["openssl", "req", "-x509"][..], &EC].concat();
    let rest = ["-days", "2", "-subj", "/CN=authority", "-keyout", &key, "-out", &certificate];
    host.exec([&request[..], &rest].concat()).unwrap();
    certificate
}

/// A certificate for the gateway's address with a new key, signed by the authority of this host.
fn sign_certificate(host: &Host, directory: &Path) -> [String; 2] {
    fs::create_dir_all(directory).unwrap();
    let [certificate, key, request, names] =
        ["certificate.pem", "key.pem", "request", "names"].map(|it| directory.join(it).display().to_string());
    let [authority, its_key] =
        ["authority.pem", "authority.key"].map(|it| host.directory().join(it).display().to_string());
    fs::write(&names, format!("subjectAltName=IP:{GATEWAY}\n")).unwrap();
    let rest = ["-subj", "/CN=vpn", "-keyout", &key, "-out", &request];
    host.exec([&["openssl", "req"][..], &EC, &rest].concat()).unwrap();
    let sign = ["openssl", "x509", "-req", "-in", &request, "-CA", &authority, "-CAkey", &its_key];
    let rest = ["-CAcreateserial", "-days", "2", "-extfile", &names, "-out", &certificate];
    host.exec([&sign[..], &rest].concat()).unwrap();
    [certificate, key]
}

/// ACME clients make a new key whenever they renew.
#[test]
fn a_certificate_that_authorities_vouch_for_may_change_its_key_and_a_pinned_one_is_warned_of() {
    let internet = Internet::new("acme", 1);
    let (host, gateway) = (&internet.clients[0], &internet.gateway);
    init(gateway);
    let authority = make_authority(gateway);
    let directory = gateway.directory().join("acme");
    let [certificate, key] = sign_certificate(gateway, &directory);
    configure(gateway, &format!("stream_certificate = \"{certificate}\"\nstream_key = \"{key}\""));
    let running = start_gateway(gateway);
    let trust = ("SSL_CERT_FILE", authority.as_str());
    let vouched = adit_with(gateway, trust, &["peer", "add", "vouched"]).success().unwrap().stdout;
    assert!(vouched.contains("# adit: tls_verify = webpki\n") && !vouched.contains("tls_pin"), "{vouched}");
    let vouched = host.write("vouched.conf", vouched).unwrap().display().to_string();
    let pinned = adit_with(gateway, ("SSL_CERT_FILE", "/dev/null"), &["peer", "add", "pinned"]);
    let pinned = pinned.success().unwrap().stdout;
    assert!(pinned.contains("# adit: tls_pin = sha256:") && !pinned.contains("tls_verify"), "{pinned}");
    let pinned = host.write("pinned.conf", pinned).unwrap().display().to_string();
    let connects = |file: &str| {
        let up = adit_with(host, trust, &["up", file, "--carrier", "tls"]);
        assert!(up.ok(), "{}", up.stderr);
        let answered = host.ping(INSIDE, 2).unwrap() > 0;
        succeed(host, &["down"]);
        answered
    };
    assert!(connects(&vouched) && connects(&pinned));
    let check = || adit(gateway, &["check"]);
    assert!(check().ok() && !check().stderr.contains("warning"), "{:?}", check());

    let log = || running.stderr();
    assert!(!log().contains("the key of the certificate has changed"), "{}", log());
    sign_certificate(gateway, &directory);
    wait_for("the warning", SOON, || log().contains("the key of the certificate has changed").then_some(()))
        .unwrap();
    assert!(connects(&vouched), "whoever trusts the authority notices nothing");
    assert!(!connects(&pinned), "whoever has the pin does, as the warning says");
    assert!(
        check().ok() && check().stderr.contains("the key of the certificate has changed"),
        "{:?}",
        check()
    );
    stop_gateway(running);
}

#[test]
fn a_host_without_authorities_is_told_so_and_not_of_pins() {
    let internet = Internet::new("rootless", 1);
    let (host, gateway) = (&internet.clients[0], &internet.gateway);
    init(gateway);
    let running = start_gateway(gateway);
    let file = admit(gateway, "phone", host, &[]);
    let settings = ["up", &file, "--carrier", "tls", "--tls-verify", "webpki"];
    let up = adit_with(host, ("SSL_CERT_FILE", "/dev/null"), &settings);
    assert!(up.ok(), "{}", up.stderr);
    let log = || fs::read_to_string(home(host).join("state/phone.log")).unwrap();
    wait_for("the reason", SOON, || log().contains("no certificate authorities").then_some(())).unwrap();
    assert!(log().contains("apt install ca-certificates") && !log().contains("no tls_pin"), "{}", log());
    succeed(host, &["down"]);
    // With the pin of the profile there is nothing to be told.
    up_pinned(host, &file);
    stop_gateway(running);
}

fn up_pinned(host: &Host, file: &str) {
    let up = adit_with(host, ("SSL_CERT_FILE", "/dev/null"), &["up", file, "--carrier", "tls"]);
    assert!(up.ok(), "{}", up.stderr);
    wait_for_carrier(host, &["tls"], SOON);
    succeed(host, &["down"]);
}

/// A proxy on `router` that knows where "gateway.invalid" is, and notes what it was asked for.
fn start_knowing_proxy(router: &Host) -> Arc<Mutex<Vec<String>>> {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let notes = Arc::clone(&asked);
    on(router, || {
        let listener = TcpListener::bind("0.0.0.0:3128").unwrap();
        thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                let notes = Arc::clone(&notes);
                thread::spawn(move || carry(near, &notes));
            }
        });
    });
    asked
}

fn carry(mut near: TcpStream, notes: &Mutex<Vec<String>>) -> Option<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        near.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).ok()?;
    let target = head.split(' ').nth(1)?;
    notes.lock().unwrap().push(target.to_owned());
    if target != "gateway.invalid:51820" {
        return near.write_all(b"HTTP/1.1 403 Forbidden\r\n\r\n").ok();
    }
    let mut far = TcpStream::connect((GATEWAY, 51_820)).ok()?;
    near.write_all(b"HTTP/1.1 200 OK\r\n\r\n").ok()?;
    let (mut near_again, mut far_again) = (near.try_clone().ok()?, far.try_clone().ok()?);
    thread::spawn(move || io::copy(&mut near_again, &mut far_again));
    io::copy(&mut far, &mut near).ok().map(drop)
}

/// Where nothing but the proxy leads out, nobody but the proxy knows the names of outside.
#[test]
fn behind_a_proxy_only_the_proxy_has_to_know_the_name_of_the_gateway() {
    let internet = Internet::new("proxyname", 1);
    let (host, gateway) = (&internet.clients[0], &internet.gateway);
    init(gateway);
    let running = start_gateway(gateway);
    let file = admit(gateway, "phone", host, &[]);
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replace(&format!("{GATEWAY}:51820"), "gateway.invalid:51820")).unwrap();
    let alone = adit(host, &["up", &file]);
    assert!(!alone.ok() && alone.stderr.contains("cannot resolve gateway.invalid"), "{alone:?}");
    let asked = start_knowing_proxy(&internet.router);
    up(host, &file, &["--via", &format!("http://{ROUTER}:3128")]);
    wait_for_carrier(host, &["tls"], SOON);
    assert_eq!(host.ping(INSIDE, 3).unwrap(), 3);
    assert_eq!(asked.lock().unwrap()[0], "gateway.invalid:51820");
    succeed(host, &["down"]);
    stop_gateway(running);
}

/// What the host asks leads into the tunnel, which is silent until the proxy is found.
#[test]
fn a_proxy_that_moves_is_found_by_its_name_past_the_kill_switch() {
    let internet = Internet::new("proxymove", 1);
    let (host, gateway, router) = (&internet.clients[0], &internet.gateway, &internet.router);
    // Two of the addresses of the router.
    let [before, after] = ["203.0.113.1", "198.51.100.1"];
    let place = Arc::new(Mutex::new(before));
    let told = Arc::clone(&place);
    serve_names_by(&internet.web, &format!("{WEB}:53"), move |_| (*told.lock().unwrap()).to_owned());
    host.set_resolv_conf(&format!("nameserver {WEB}\n")).unwrap();
    init(gateway);
    let running = start_gateway(gateway);
    let file = admit(gateway, "phone", host, &["--dns", INSIDE]);
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replace(&format!("{GATEWAY}:51820"), "gateway.invalid:51820")).unwrap();
    start_knowing_proxy(router);
    up(host, &file, &["--via", "http://proxy.test:3128"]);
    wait_for_carrier(host, &["tls"], SOON);
    let answers = || host.ping(INSIDE, 1).is_ok_and(|it| it == 1);
    assert!(answers());
    assert!(peer(host)["endpoint"].as_str().unwrap().starts_with(before));

    let gone = format!(
        "table inet gone {{\n chain input {{\n  type filter hook input priority 0;\n  ip daddr {before} drop\n }}\n}}\n"
    );
    let gone = router.write("gone.nft", gone).unwrap().display().to_string();
    router.exec(["nft", "-f", &gone]).unwrap();
    assert!(!answers(), "it is gone from where it was");
    *place.lock().unwrap() = after;
    let since = Instant::now();
    wait_for("the proxy to be found", Duration::from_secs(90), || answers().then_some(())).unwrap();
    println!("found again after {} ms", since.elapsed().as_millis());
    assert!(peer(host)["endpoint"].as_str().unwrap().starts_with(after), "{}", status(host));
    succeed(host, &["down"]);
    stop_gateway(running);
}
