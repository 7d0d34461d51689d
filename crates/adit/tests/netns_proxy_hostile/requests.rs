//! What clients and servers say that is not as it should be.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use adit_lab::wait_for;

use super::{OK, status_of};
use crate::common;
use crate::common::internet::WEB;
use crate::common::on;
use crate::common::proxied::{HTTP, Recorder, SOCKS, World, echo_server, socks_address};

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
