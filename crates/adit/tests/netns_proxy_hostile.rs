//! What others try with `adit proxy`: each refusal with the same thing done right beside it.
//!
//! | what is tried | the test |
//! |---|---|
//! | X-01, X-02: a listener for everybody | `a_listener_beyond_loopback_…` |
//! | X-03, X-04: the far side's own machine, by address, by name, by a name that changes | `targets_on_the_far_sides_own_machine_…`, `a_name_that_changes_…` |
//! | X-05: a page in a browser that does not use the proxy | `a_web_page_…` |
//! | X-06: two requests in one, two hosts, line ends in names | `http_requests_are_written_anew_…`, `answers_with_two_lengths_…` |
//! | X-07: lengths that lie, associations of others | `socks_clients_that_lie_…`, `an_association_serves_…` |
//! | X-08: guessing the password, and keeping others out | `who_guesses_…`, `ten_thousand_strangers_…` |
//! | X-09: no tunnel | `when_the_tunnel_is_down_…`, `a_tunnel_that_ends_…` |
//! | X-10: a sandbox that forbids the program its own listeners | `every_listener_opens_without_privilege` |
//! | slow heads, half-open connections, floods | `who_says_nothing_…`, `ten_thousand_…`, `a_flood_…` |

mod common;

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use adit_lab::{Capture, wait_for};

use common::internet::{GATEWAY, INSIDE, WEB, WEB6, client_addresses};
use common::on;
use common::proxied::{HTTP, Recorder, SOCKS, World, echo_server, socks_address};

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

fn status_of(answer: &[u8]) -> String {
    String::from_utf8_lossy(answer).split(' ').nth(1).unwrap_or_default().to_owned()
}

#[test]
fn targets_on_the_far_sides_own_machine_are_refused_by_address_and_by_name() {
    let world = World::new("ssrf");
    let _proxy = world.proxy(&[]);
    assert_eq!(world.socks_reply(1, &socks_address(WEB, 80)), Some(0));
    assert_eq!(world.socks_reply(1, &socks_address("web.example", 80)), Some(0));
    // Of several addresses those that may be are used.
    assert_eq!(world.curl(&["--socks5-hostname", SOCKS, "http://mixed.example/"]), GATEWAY);
    let forbidden = [
        ("127.0.0.1", 80),
        ("::1", 80),
        ("169.254.169.254", 80),
        ("0.0.0.0", 80),
        ("::", 80),
        ("fe80::1", 80),
        ("224.0.0.1", 80),
        ("::ffff:127.0.0.1", 80),
        ("localhost", 80),
        ("loop.example", 80),
        ("meta.example", 80),
        ("10.86.0.2", 1080),
        ("127.0.0.1", 1080),
        (WEB, 25),
        ("web.example", 25),
        (WEB, 0),
        ("0x7f.1", 80),
        ("a\r\nb", 80),
        ("a\0b", 80),
        ("", 80),
    ];
    for (host, port) in forbidden {
        assert_eq!(world.socks_reply(1, &socks_address(host, port)), Some(2), "{host:?} {port}");
        let mut url = format!("{host}:{port}");
        if host.contains(':') {
            url = format!("[{host}]:{port}");
        }
        let answer = world.say(
            HTTP,
            format!("CONNECT {url} HTTP/1.1\r\nHost: {url}\r\nConnection: close\r\n\r\n").as_bytes(),
        );
        assert!(
            ["400", "403"].contains(&status_of(&answer).as_str()),
            "{host:?}: {}",
            String::from_utf8_lossy(&answer)
        );
    }
    // Its own address in other clothes, and the inside API, which a page in a browser would ask.
    for (host, port) in
        [("::ffff:10.86.0.2", 80), ("64:ff9b:1::7f00:1", 80), (INSIDE, 9585), ("::ffff:10.86.0.1", 9585)]
    {
        assert_eq!(world.socks_reply(1, &socks_address(host, port)), Some(2), "{host:?} {port}");
    }
    let page = format!(
        "GET http://{INSIDE}:9585/v1/download?seconds=1 HTTP/1.1\r\nHost: x\r\nReferer: http://evil.example/\r\n\r\n"
    );
    let answer = String::from_utf8_lossy(&world.say(HTTP, page.as_bytes())).into_owned();
    assert!(answer.starts_with("HTTP/1.1 403") && answer.contains("inside API"), "{answer}");
    let inside = world.socks_reply(1, &socks_address(INSIDE, 9));
    assert_eq!(inside, Some(5), "the gateway may be asked, and refuses by itself");
}

#[test]
fn what_cannot_be_reached_has_the_right_code() {
    let world = World::new("codes");
    let _proxy = world.proxy(&[]);
    let get = |url: &str| {
        status_of(
            &world
                .say(HTTP, format!("GET {url} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes()),
        )
    };
    assert_eq!(get("http://web.example/"), "200");
    assert_eq!(world.socks_reply(1, &socks_address(WEB, 81)), Some(5), "nobody listens");
    assert_eq!(get(&format!("http://{WEB}:81/")), "502");
    assert_eq!(world.socks_reply(1, &socks_address("nowhere.example", 80)), Some(4), "no such name");
    assert_eq!(get("http://nowhere.example/"), "502");
    assert_eq!(world.socks_reply(1, &socks_address("203.0.113.99", 80)), Some(4), "nobody has the address");
    assert_eq!(world.socks_reply(2, &socks_address(WEB, 80)), Some(7), "BIND");
    assert_eq!(world.socks_reply(9, &socks_address(WEB, 80)), Some(7));
    assert_eq!(world.socks_reply(1, &[9, 1, 2, 3, 4, 0, 80]), Some(8));
    let _nonsense = Recorder::start(&world.web, 82, b"SSH-2.0-nonsense\r\n\r\n");
    assert_eq!(get(&format!("http://{WEB}:82/")), "502");
}

#[test]
fn socks_clients_that_lie_are_turned_away() {
    let world = World::new("socksbad");
    let _proxy = world.proxy(&[]);
    assert_eq!(world.say(SOCKS, &[5, 1, 0]), [5, 0]);
    assert_eq!(world.say(SOCKS, &[4, 1, 0, 80, 1, 2, 3, 4, 0]), [] as [u8; 0], "SOCKS4");
    assert_eq!(world.say(SOCKS, b"GET / HTTP/1.1\r\n\r\n"), [] as [u8; 0], "HTTP");
    assert_eq!(world.say(SOCKS, &[5, 0]), [5, 0xff], "no method");
    assert_eq!(world.say(SOCKS, &[5, 2, 1, 2]), [5, 0xff], "only methods that are not offered");
    assert_eq!(world.say(SOCKS, &[5, 1, 0, 4, 1, 0, 1, 1, 2, 3, 4, 0, 80]), [5, 0], "another version later");
}

#[test]
fn http_requests_are_written_anew_and_ambiguous_ones_refused() {
    let world = World::new("smuggle");
    let _proxy = world.proxy(&[]);
    let recorder = Recorder::start(&world.web, 8000, OK);
    let url = format!("http://{WEB}:8000");
    let ask = |request: String| status_of(&world.say(HTTP, request.as_bytes()));
    let good = format!(
        "POST {url}/good HTTP/1.1\r\nHost: evil.example\r\nProxy-Authorization: Basic eDp5\r\nX-Kept: 1\r\n\
         Connection: x-dropped\r\nX-Dropped: 1\r\nContent-Length: 3\r\n\r\nabc"
    );
    assert_eq!(ask(good), "200");
    let odd = format!(
        "GET {url}/odd HTTP/1.1\r\nHost: x\r\nConnection: close, x-dropped, \u{e9}\r\nX-Dropped: 1\r\n\r\n"
    );
    assert_eq!(ask(odd), "200");
    let seen = recorder.received().to_lowercase();
    assert!(seen.starts_with("post /good http/1.1\r\n"), "{seen}");
    assert!(seen.contains(&format!("host: {WEB}:8000\r\n")) && seen.contains("x-kept: 1"), "{seen}");
    assert!(seen.contains("get /odd http/1.1\r\n"), "{seen}");
    for word in ["evil", "proxy-", "x-dropped", "connection"] {
        assert!(!seen.contains(word), "{word} in {seen}");
    }
    let refused = [
        format!("GET /path HTTP/1.1\r\nHost: {WEB}\r\nOrigin: http://evil.example\r\n\r\n"),
        format!("POST / HTTP/1.1\r\nHost: {HTTP}\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nhi"),
        format!("POST {url}/twice HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd"),
        format!("POST {url}/coded HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
        format!("GET {url}/folded HTTP/1.1\r\nHost: x\r\nX-A: b\r\n  folded\r\n\r\n"),
        format!("GET {url}/spaced HTTP/1.1\r\nHost : x\r\n\r\n"),
        format!("GET {url}/nohost HTTP/1.1\r\n\r\n"),
        format!("GET http://{WEB}:+8000/plus HTTP/1.1\r\nHost: x\r\n\r\n"),
        format!("POST {url}/chunk HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n"),
        format!("GET https://{WEB}/ HTTP/1.1\r\nHost: x\r\n\r\n"),
        format!("GET {url}/hosts HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n"),
        format!("TRACE {url}/trace HTTP/1.1\r\nHost: x\r\n\r\n"),
        format!("GET http://{WEB}:99999/port HTTP/1.1\r\nHost: x\r\n\r\n"),
        format!("GET http://user:secret@{WEB}:8000/user HTTP/1.1\r\nHost: x\r\n\r\n"),
        format!(
            "CONNECT {WEB}:8000 HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabcGET /body HTTP/1.1\r\n\r\n"
        ),
        format!("GET {url}/nul HTTP/1.1\r\nHost: x\r\nX-A: a\0b\r\n\r\n"),
        format!("GET {url}/long HTTP/1.1\r\nHost: x\r\nX-A: {}\r\n\r\n", "a".repeat(600_000)),
        "\u{16}\u{3}\u{1}".to_owned() + &"x".repeat(100) + "\r\n\r\n",
    ];
    for request in refused {
        let status = ask(request.clone());
        let start: String = request.chars().take(120).collect();
        assert!(status.starts_with('4') || status.is_empty(), "{status} for {start:?}");
    }
    // What hyper makes sense of leaves as one request with one length.
    let smuggled = format!(
        "POST {url}/te HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 60\r\n\r\n\
         0\r\n\r\nGET {url}/smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
    );
    let _ = ask(smuggled);
    let bare = format!("GET {url}/bare HTTP/1.1\nHost: x\nX-A: b\n\n");
    let _ = ask(bare);
    let seen = recorder.received().to_lowercase();
    assert!(!seen.replace("\r\n", "").contains('\n'), "a bare line feed went out: {seen}");
    for word in [
        "twice",
        "coded",
        "folded",
        "spaced",
        "nohost",
        "plus",
        "smuggled",
        "nul",
        "long",
        "hosts",
        "trace",
        "port",
        "user",
        "body",
        "content-length: 60",
    ] {
        assert!(!seen.contains(word), "{word} in {seen}");
    }
}

#[test]
fn answers_with_two_lengths_have_one_and_what_a_get_carries_arrives() {
    let world = World::new("lengths");
    let _proxy = world.proxy(&[]);
    let both =
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    let recorder = Recorder::start(&world.web, 8000, both);
    let url = format!("http://{WEB}:8000/");
    let page = world.curl(&["--proxy", &format!("http://{HTTP}"), "-i", &url]).to_lowercase();
    assert!(page.ends_with("\r\n\r\nhello") && !page.contains("content-length: 3"), "{page}");
    let twice = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 5\r\n\r\nhello";
    let _twice = Recorder::start(&world.web, 8001, twice);
    let answer = world.say(HTTP, format!("GET http://{WEB}:8001/ HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes());
    assert_eq!(status_of(&answer), "502", "{}", String::from_utf8_lossy(&answer));
    let _coded =
        Recorder::start(&world.web, 8002, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n\x1f\x8b");
    let answer = world.say(HTTP, format!("GET http://{WEB}:8002/ HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes());
    assert_eq!(status_of(&answer), "502", "{}", String::from_utf8_lossy(&answer));
    let get =
        format!("GET {url} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n");
    assert_eq!(status_of(&world.say(HTTP, get.as_bytes())), "200");
    let seen = recorder.received().to_lowercase();
    assert!(seen.ends_with("transfer-encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n"), "{seen}");
}

#[test]
fn a_web_page_that_does_not_use_the_proxy_cannot_use_it() {
    let world = World::new("driveby");
    let _proxy = world.proxy(&[]);
    // What `fetch` and forms on a page make a browser send to the port: a path, never a whole address.
    for method in ["GET", "POST", "OPTIONS", "HEAD"] {
        for (path, host) in [("/", HTTP), ("/http://web.example/", HTTP), ("//web.example/", "web.example")] {
            let body = if method == "POST" {
                "Content-Type: text/plain\r\nContent-Length: 2\r\n\r\nhi"
            } else {
                "\r\n"
            };
            let request = format!(
                "{method} {path} HTTP/1.1\r\nHost: {host}\r\nOrigin: http://evil.example\r\nConnection: close\r\n{body}"
            );
            let answer = String::from_utf8(world.say(HTTP, request.as_bytes())).unwrap();
            assert_eq!(status_of(answer.as_bytes()), "400", "{method} {path}: {answer}");
            assert!(!answer.to_lowercase().contains("access-control"), "{answer}");
        }
    }
    // The port of SOCKS answers nothing to HTTP at all.
    let request =
        format!("POST / HTTP/1.1\r\nHost: {SOCKS}\r\nContent-Length: 20\r\n\r\n\u{5}\u{1}\0\u{5}\u{1}\0");
    assert_eq!(world.say(SOCKS, request.as_bytes()), [] as [u8; 0]);
    let whole = format!("GET http://{WEB}/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    assert_eq!(status_of(&world.say(HTTP, whole.as_bytes())), "200");
}

#[test]
fn a_name_that_changes_its_address_after_it_was_looked_up_gains_nothing() {
    let world = World::new("rebind");
    let _proxy = world.proxy(&[]);
    let asked = || world.socks_reply(1, &socks_address("rebind.example", 80));
    assert_eq!(asked(), Some(0), "a public address at first");
    for _ in 0..5 {
        assert_eq!(asked(), Some(2), "loopback from then on");
    }
}

#[test]
fn who_guesses_is_refused_for_a_second_even_when_right() {
    let world = World::new("guess");
    world.nobody.write("password", "correct horse\n");
    let auth = format!("alice:file:{}", world.nobody.path("password"));
    let _proxy = world.proxy(&["--auth", &auth]);
    let password =
        |word: &str| [&[5, 1, 2, 1, 5][..], b"alice", &[word.len() as u8], word.as_bytes()].concat();
    let admitted = |word: &str| world.say_and_hear(SOCKS, &password(word), 4) == [5, 2, 1, 0];
    assert!(admitted("correct horse"));
    // The guesses and the right word come within one second: they are written before any answer is read.
    let answers = on(&world.client, || {
        let mut streams: Vec<TcpStream> = Vec::new();
        for word in ["a", "b", "c", "d", "e", "f", "correct horse"] {
            let mut stream = TcpStream::connect(SOCKS).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            stream.write_all(&password(word)).unwrap();
            streams.push(stream);
        }
        let mut answers = Vec::new();
        for mut stream in streams {
            let mut answer = [0; 4];
            stream.read_exact(&mut answer).unwrap();
            answers.push(answer);
        }
        answers
    });
    assert!(answers.iter().all(|answer| answer == &[5, 2, 1, 1]), "{answers:?}");
    wait_for("the second to pass", common::SOON, || admitted("correct horse").then_some(())).unwrap();
}

#[test]
fn every_listener_opens_without_privilege() {
    let world = World::new("doors");
    world.nobody.write("password", "correct horse\n");
    let auth = format!("alice:file:{}", world.nobody.path("password"));
    let (address, _) = client_addresses(0);
    let beyond = format!("{address}:1080");
    let (adit, profile) = (world.nobody.adit(), world.profile());
    let listeners: &[&[&str]] = &[
        &["--socks5", "127.0.0.1:1080"],
        &["--socks5", "[::1]:1080"],
        &["--http", "127.0.0.1:1080"],
        &["--socks5", &beyond, "--auth", &auth],
        &["-L", "1080:web.example:80"],
        &["-R", "1080:127.0.0.1:80"],
    ];
    for listener in listeners {
        let argv = [adit.as_str(), "proxy", &profile].into_iter().chain(listener.iter().copied());
        let mut proxy = world.nobody.command(argv).spawn().unwrap();
        proxy
            .wait_for_text("proxy ready", common::SOON)
            .unwrap_or_else(|error| panic!("{listener:?}: {error}"));
        let held = std::fs::read_to_string(format!("/proc/{}/status", proxy.id())).unwrap();
        assert!(held.contains("CapBnd:\t0000000000000000") && held.contains("NoNewPrivs:\t1"), "{held}");
        proxy.terminate();
        assert_eq!(proxy.wait(common::SOON).unwrap().code(), Some(0), "{listener:?}: {}", proxy.stderr());
    }
}

#[test]
fn a_tunnel_that_ends_while_it_carries_takes_its_connections_along() {
    let mut world = World::new("cut");
    let _proxy = world.proxy(&[]);
    echo_server(&world.web, 7);
    let mut stream = on(&world.client, || TcpStream::connect(SOCKS).unwrap());
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.write_all(&[&[5, 1, 0, 5, 1, 0], &socks_address(WEB, 7)[..], b"ping"].concat()).unwrap();
    let mut answer = [0; 16];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!((&answer[2..4], &answer[12..]), (&[5, 0][..], &b"ping"[..]));
    let capture = Capture::start(&world.client, "eth0").unwrap();
    world.stop_gateway();
    stream.write_all(b"secret that must not go around the tunnel").unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    assert!(stream.read(&mut [0; 64]).map_or(true, |read| read == 0), "nobody can answer");
    let gateway: IpAddr = GATEWAY.parse().unwrap();
    let packets = common::wire::ip_packets(&capture.stop().unwrap());
    let around = packets.iter().filter(|it| it.destination != gateway && it.source != gateway);
    assert_eq!(around.filter(|it| ![1, 58, 0].contains(&it.protocol)).count(), 0);
    assert!(packets.iter().any(|it| it.destination == gateway), "it was tried through the tunnel");
}

#[test]
fn connections_are_kept_chunks_pass_and_protocols_can_be_switched() {
    let world = World::new("http11");
    let _proxy = world.proxy(&[]);
    let chunked = Recorder::start(
        &world.web,
        8000,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\n",
    );
    let http = format!("http://{HTTP}");
    let url = format!("http://{WEB}:8000/");
    let page = world.curl(&["--proxy", &http, "-H", "Transfer-Encoding: chunked", "-d", "body", &url, &url]);
    assert_eq!(page, "abcdefabcdef");
    let seen = chunked.received();
    assert_eq!(seen.matches("POST / HTTP/1.1").count(), 2, "{seen}");
    assert!(seen.to_lowercase().contains("transfer-encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n"), "{seen}");

    let _switch = Recorder::start(
        &world.web,
        8001,
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\npong",
    );
    let request =
        format!("GET http://{WEB}:8001/ HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n");
    let answer = String::from_utf8(world.say(HTTP, request.as_bytes())).unwrap();
    assert!(answer.starts_with("HTTP/1.1 101") && answer.ends_with("pong"), "{answer}");
    let old = Recorder::start(&world.web, 8002, b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nold");
    let answer = world.say(HTTP, format!("GET http://{WEB}:8002?a=b HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes());
    assert!(answer.starts_with(b"HTTP/1.1 200") && answer.ends_with(b"old"), "our own version");
    assert!(old.received().starts_with("GET /?a=b HTTP/1.1\r\n"), "{}", old.received());

    let unasked = world.say(HTTP, format!("GET http://{WEB}:8001/ HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes());
    assert_eq!(status_of(&unasked), "502");
}

#[test]
fn a_listener_beyond_loopback_needs_a_password_and_others_need_to_know_it() {
    let world = World::new("open");
    let adit = world.nobody.adit();
    let (address, _) = client_addresses(0);
    let (socks, http) = (format!("{address}:1080"), format!("{address}:8118"));
    for listener in
        [["--socks5", &socks], ["--http", &http], ["--socks5", "0.0.0.0:1080"], ["-L", "0.0.0.0:1:a:2"]]
    {
        let argv = [&adit, "proxy", &world.profile(), listener[0], listener[1]];
        let refused = world.nobody.command(argv).attempt().unwrap();
        assert_eq!(refused.code(), Some(1), "{listener:?}");
        assert!(refused.stderr.contains("127.0.0.1"), "{}", refused.stderr);
    }
    world.nobody.write("password", "correct horse\n");
    let auth = format!("alice:file:{}", world.nobody.path("password"));
    let _proxy =
        world.nobody.proxy(&[&world.profile(), "--socks5", &socks, "--http", &http, "--auth", &auth]);
    let stranger = &world.internet.gateway;
    let curl = |user: &str, scheme: &str, to: &str| {
        let proxy = format!("{scheme}://{user}{to}");
        let argv = ["curl", "-gsS", "--max-time", "10", "-x", &proxy, "http://web.example/"];
        stranger.attempt(argv).unwrap()
    };
    for (scheme, to) in [("socks5h", &socks), ("http", &http)] {
        let known = curl("alice:correct%20horse@", scheme, to);
        assert_eq!(known.stdout.trim(), GATEWAY, "{}", known.stderr);
        for user in ["", "alice:wrong@", "bob:correct%20horse@"] {
            let refused = curl(user, scheme, to);
            assert!(
                !refused.ok() || refused.stdout.contains("asks for a user"),
                "{user} {scheme}: {refused:?}"
            );
            std::thread::sleep(Duration::from_millis(300));
        }
    }
    assert_eq!(world.say(&socks, &[5, 1, 0]), [5, 0xff]);
    let lying = [&[5, 1, 2, 1, 255][..], &[b'a'; 255], &[255], &[b'b'; 255]].concat();
    assert_eq!(world.say(&socks, &lying), [5, 2, 1, 1], "the longest user and password there are");
}

#[test]
fn ten_thousand_strangers_without_the_password_keep_nobody_out_who_has_it() {
    const COUNT: usize = 10_000;
    let world = World::new("strangers");
    let (address, _) = client_addresses(0);
    let (socks, http) = (format!("{address}:1080"), format!("{address}:8118"));
    world.nobody.write("password", "correct horse\n");
    let auth = format!("alice:file:{}", world.nobody.path("password"));
    let proxy = world.nobody.proxy(&[&world.profile(), "--socks5", &socks, "--http", &http, "--auth", &auth]);
    let descriptors = || std::fs::read_dir(format!("/proc/{}/fd", proxy.id())).unwrap().count();
    adit_io::sys::raise_descriptor_limit().unwrap();
    let held: Vec<TcpStream> = on(&world.internet.gateway, || {
        let to: [SocketAddr; 2] = [&socks, &http].map(|it| it.parse().unwrap());
        (0..COUNT).filter_map(|number| TcpStream::connect(to[number % 2]).ok()).collect()
    });
    assert!(held.len() > COUNT * 9 / 10, "{} connected", held.len());
    let right = |host: &adit_lab::Host| {
        for (scheme, to) in [("socks5h", &socks), ("http", &http)] {
            let proxy = format!("{scheme}://alice:correct%20horse@{to}");
            let argv = ["curl", "-gsS", "--max-time", "15", "-x", &proxy, "http://web.example/"];
            let known = host.attempt(argv).unwrap();
            assert_eq!(known.stdout.trim(), GATEWAY, "{scheme}: {}", known.stderr);
        }
    };
    // From elsewhere, and even from the same address.
    right(&world.client);
    right(&world.internet.gateway);
    assert!(descriptors() < 1_000, "{} descriptors", descriptors());
    drop(held);
}

#[test]
fn a_listener_of_both_versions_serves_ipv4_clients_as_such() {
    let world = World::new("dual");
    world.nobody.write("password", "correct horse\n");
    let auth = format!("alice:file:{}", world.nobody.path("password"));
    let _proxy = world.nobody.proxy(&[&world.profile(), "--socks5", "[::]:1080", "--auth", &auth]);
    let ask =
        [&[5, 1, 2, 1, 5][..], b"alice", &[13], b"correct horse", &[5, 3, 0, 1, 0, 0, 0, 0, 0, 0]].concat();
    let answer = world.say_and_hear(SOCKS, &ask, 14);
    assert_eq!(answer.get(..12), Some(&[5, 2, 1, 0, 5, 0, 0, 1, 127, 0, 0, 1][..]), "{answer:?}");
    let six = world.say_and_hear("[::1]:1080", &ask, 26);
    assert_eq!(six.get(4..8), Some(&[5, 0, 0, 4][..]), "{six:?}");
}

#[test]
fn a_forward_to_where_nothing_is_connected_to_is_refused_at_the_start() {
    let world = World::new("forwards");
    let (adit, profile) = (world.nobody.adit(), world.profile());
    for target in ["127.0.0.1:80", "[::1]:80", "localhost:80", "10.86.0.2:80", "169.254.169.254:80"] {
        let forward = format!("1093:{target}");
        let refused = world.nobody.command([&adit, "proxy", &profile, "-L", &forward]).attempt().unwrap();
        assert_eq!(refused.code(), Some(1), "{forward}: {}", refused.stderr);
        assert!(refused.stderr.contains("-L") && refused.stderr.contains("1093"), "{}", refused.stderr);
    }
    // The user may name even the inside API.
    let forward = format!("1093:{INSIDE}:9585");
    let proxy = world.nobody.proxy(&[&profile, "-L", &forward]);
    assert!(proxy.stderr().contains("-L 127.0.0.1:1093 leads to 10.86.0.1:9585"), "{}", proxy.stderr());
    let request = format!("GET /v1/whoami HTTP/1.1\r\nHost: {INSIDE}:9585\r\n\r\n");
    let answer = String::from_utf8_lossy(&world.say("127.0.0.1:1093", request.as_bytes())).into_owned();
    assert!(answer.contains("\"name\":\"laptop\""), "{answer}");
}

#[test]
fn when_the_tunnel_is_down_everything_is_refused_and_nothing_goes_around_it() {
    let mut world = World::new("down");
    let proxy = world.proxy(&[]);
    let connect = |world: &World| world.socks_reply(1, &socks_address(WEB, 80));
    assert_eq!(connect(&world), Some(0));
    drop(proxy);
    world.stop_gateway();
    let capture = Capture::start(&world.client, "eth0").unwrap();
    let _proxy = world.proxy(&[]);
    for host in [WEB, WEB6, "web.example"] {
        assert_eq!(world.socks_reply(1, &socks_address(host, 80)), Some(3), "{host}");
    }
    assert_eq!(world.socks_reply(3, &socks_address("0.0.0.0", 0)), Some(3), "nor for datagrams");
    let answer = world.say(HTTP, format!("GET http://{WEB}/ HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes());
    assert_eq!(status_of(&answer), "504");
    let packets = common::wire::ip_packets(&capture.stop().unwrap());
    let gateway: IpAddr = GATEWAY.parse().unwrap();
    let around: Vec<_> = packets
        .iter()
        .filter(|it| it.destination != gateway && it.source != gateway)
        .filter(|it| ![1, 58, 0].contains(&it.protocol))
        .collect();
    assert!(around.is_empty(), "{around:?}");
    assert!(packets.iter().any(|it| it.destination == gateway), "handshakes were tried");
}

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

#[test]
fn tunnels_by_http_count_as_connections_as_long_as_they_last() {
    let world = World::new("tunnels");
    let adit = world.nobody.adit();
    // A process that may open so little has few places.
    let limited = ["prlimit", "--nofile=120:120", &adit, "proxy", &world.profile(), "--http", HTTP];
    let mut proxy = world.nobody.command(limited).spawn().unwrap();
    proxy.wait_for_text("proxy ready", common::SOON).unwrap();
    echo_server(&world.web, 7);
    on(&world.client, || {
        let connect = format!("CONNECT {WEB}:7 HTTP/1.1\r\nHost: {WEB}:7\r\n\r\n");
        let open = || {
            let mut stream = TcpStream::connect(HTTP).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            stream.write_all(connect.as_bytes()).ok()?;
            let mut head = [0; 12];
            stream.read_exact(&mut head).ok()?;
            (head == *b"HTTP/1.1 200").then_some(stream)
        };
        let streams: Vec<_> = (0..60).map_while(|_| open()).collect();
        assert!((20..40).contains(&streams.len()), "{} tunnels with 28 places", streams.len());
        drop(streams);
        wait_for("room", common::SOON, open).unwrap();
    });
}

#[test]
fn an_association_serves_its_client_alone() {
    let world = World::new("associate");
    let _proxy = world.proxy(&[]);
    echo_server(&world.web, 7);
    let echo = on(&world.web, || UdpSocket::bind("[::]:9000").unwrap());
    std::thread::spawn(move || {
        let mut buffer = [0; 2_048];
        while let Ok((read, from)) = echo.recv_from(&mut buffer) {
            let _ = echo.send_to(&buffer[..read], from);
        }
    });
    on(&world.client, || {
        let mut control = TcpStream::connect(SOCKS).unwrap();
        control.write_all(&[5, 1, 0, 5, 3, 0, 1, 0, 0, 0, 0, 0, 0]).unwrap();
        let mut answer = [0; 12];
        control.read_exact(&mut answer).unwrap();
        let proxy = SocketAddr::from(([127, 0, 0, 1], u16::from_be_bytes([answer[10], answer[11]])));
        let [client, stranger] = [(); 2].map(|()| {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(700))).unwrap();
            socket
        });
        let message = |fragment: u8, host: &str, port: u16, text: &str| {
            [&[0, 0, fragment], &socks_address(host, port)[..], text.as_bytes()].concat()
        };
        let ask = |socket: &UdpSocket, message: &[u8]| {
            socket.send_to(message, proxy).unwrap();
            let mut buffer = [0; 2_048];
            socket.recv(&mut buffer).ok().map(|read| buffer[..read].to_vec())
        };
        let good = message(0, WEB, 9000, "hello");
        assert_eq!(ask(&client, &good), Some(good.clone()));
        assert_eq!(ask(&stranger, &good), None, "another port of this machine");
        assert_eq!(ask(&client, &message(1, WEB, 9000, "x")), None, "a fragment");
        assert_eq!(ask(&client, &message(0, "127.0.0.1", 9000, "x")), None, "loopback");
        assert_eq!(ask(&client, &message(0, "loop.example", 9000, "x")), None, "a name of loopback");
        assert_eq!(ask(&client, &[0, 0, 0, 3, 255, b'x']), None, "a length that lies");
        client.send_to(&message(0, "slow.example", 9000, "x"), proxy).unwrap();
        assert_eq!(ask(&client, &good), Some(good.clone()), "a name that is slow holds up nobody");
        let by_name = ask(&client, &message(0, "web.example", 9000, "name")).unwrap();
        assert!(by_name.ends_with(b"name"));
        drop(control);
        std::thread::sleep(Duration::from_millis(300));
        let _ = client.send_to(&good, proxy);
        let mut buffer = [0; 64];
        assert!(client.recv(&mut buffer).is_err(), "it ends with its connection");
    });
}
