//! Who may use a listener, and who may not.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use adit_lab::wait_for;

use crate::common;
use crate::common::internet::{GATEWAY, client_addresses};
use crate::common::on;
use crate::common::proxied::{SOCKS, World};

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
