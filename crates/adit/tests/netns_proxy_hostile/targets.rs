//! Where nobody may be led through the proxy.

use super::status_of;
use crate::common::internet::{GATEWAY, INSIDE, WEB};
use crate::common::proxied::{HTTP, Recorder, SOCKS, World, socks_address};

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
