//! A gateway, its clients and a web server behind it: who sees which address, who reaches whom, what happens when one of
//! them is killed, and that nothing is left afterwards.

mod common;

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use adit_lab::{Capture, Content, Host, wait_for};

use common::internet::{
    GATEWAY, GATEWAY6, INSIDE, INSIDE6, Internet, WEB, WEB6, adit, adit_at, admit, client_addresses,
    finish_download, home, init, kill_tunnel, peer_status, start_gateway, start_gateway_at, status,
    stop_gateway, succeed,
};
use common::picture::{Picture, files_below};
use common::wire::ip_packets;
use common::{ADIT, SOON};

const SUITES: [&str; 2] = ["aes-256-gcm", "chacha20-poly1305"];

fn answers(host: &Host, address: &str) -> bool {
    host.attempt(["ping", "-n", "-q", "-c", "1", "-W", "1", address]).unwrap().ok()
}

fn resolv_conf(host: &Host) -> String {
    host.exec(["cat", "/etc/resolv.conf"]).unwrap().stdout
}

/// The inside addresses of a client, in the order in which they were admitted.
fn inside(number: usize) -> [String; 2] {
    [format!("10.86.0.{}", 2 + number), format!("fd86:ad17::{}", 2 + number)]
}

#[test]
fn clients_of_both_suites_come_with_the_gateways_address_and_leave_no_trace() {
    let net = Internet::new("gwtrace", 2);
    // Turning forwarding on and off flips this along.
    net.gateway.set_sysctl("net.ipv4.conf.all.accept_redirects", "0").unwrap();
    let own = |number| {
        let (v4, v6) = client_addresses(number);
        [v4, v6]
    };
    for (number, client) in net.clients.iter().enumerate() {
        assert_eq!(net.seen_from(client), own(number), "before, the web server sees the client");
    }
    init(&net.gateway);
    let gateway_before = Picture::of(&net.gateway);
    let gateway = start_gateway(&net.gateway);
    gateway_before.assert_changed(&net.gateway);
    let files: Vec<String> = (0..2)
        .map(|number| {
            let name = format!("tun-{number}");
            admit(&net.gateway, &name, &net.clients[number], &["--suite", SUITES[number], "--dns", INSIDE])
        })
        .collect();

    for (number, client) in net.clients.iter().enumerate() {
        let before = Picture::of(client);
        let resolver = resolv_conf(client);
        succeed(client, &["up", &files[number]]);
        before.assert_changed(client);
        assert_eq!(net.seen_from(client), [GATEWAY, GATEWAY6], "the web server sees the gateway");
        for address in [WEB, WEB6, "192.0.2.99"] {
            assert_eq!(client.route_to(address).unwrap()["dev"], format!("tun-{number}"), "{address}");
        }
        assert!(resolv_conf(client).contains(&format!("nameserver {INSIDE}")), "{}", resolv_conf(client));
        assert_eq!(status(client)["peers"][0]["suite"], SUITES[number]);
        assert_eq!(peer_status(&net.gateway, &format!("tun-{number}"))["suite"], SUITES[number]);

        succeed(client, &["down"]);
        before.assert_again(client);
        assert_eq!(resolv_conf(client), resolver);
        assert_eq!(net.seen_from(client), own(number));
        assert_eq!(files_below(&home(client).join("run")), [""; 0], "no socket and no pid file");
        let left = files_below(&home(client).join("state"));
        let stays = |name: &String| {
            [".log", ".endpoints.json", ".grant.json"].iter().any(|ending| name.ends_with(ending))
        };
        assert!(left.iter().all(stays), "{left:?}");
    }
    stop_gateway(gateway);
    gateway_before.assert_again(&net.gateway);
    assert_eq!(files_below(&home(&net.gateway).join("run")), [""; 0]);
    assert!(!files_below(&home(&net.gateway).join("state")).iter().any(|name| name.contains("journal")));
}

#[test]
fn clients_reach_the_gateway_and_each_other_and_nothing_but_the_tunnel_is_on_the_cable() {
    let net = Internet::new("gwreach", 2);
    init(&net.gateway);
    let _gateway = start_gateway(&net.gateway);
    for (number, client) in net.clients.iter().enumerate() {
        let file = admit(&net.gateway, &format!("tun-{number}"), client, &["--suite", SUITES[number]]);
        succeed(client, &["up", &file]);
    }
    let [a, b] = &net.clients[..] else { panic!("two clients") };
    let capture = Capture::start(a, "eth0").unwrap();
    for (from, to) in [
        (a, [INSIDE.to_owned(), INSIDE6.to_owned()]),
        (&net.gateway, inside(0)),
        (a, inside(1)),
        (b, inside(0)),
    ] {
        for address in to {
            assert_eq!(from.ping(&address, 3).unwrap(), 3, "{} to {address}", from.name());
        }
    }
    let content = Content { seed: 3, bytes: 2_000_000 };
    let mut server = b.agent(["http-server", "--listen", "[::]:8080"]).spawn().unwrap();
    server.wait_for_text("listening", SOON).unwrap();
    for address in
        inside(1).map(|address| if address.contains(':') { format!("[{address}]") } else { address })
    {
        let url = format!("http://{address}:8080/file?bytes={}&seed={}", content.bytes, content.seed);
        let report = a.agent(["http-get", "--sha256", &url]).exec().unwrap().json().unwrap();
        assert_eq!(report["sha256"], content.sha256(), "{url}");
    }

    // The endpoint itself: as an address it is inside, for the tunnel's own packets it is outside.
    assert_eq!(a.route_to(GATEWAY).unwrap()["dev"], "tun-0");
    let rules = a.ip(["rule"]).unwrap().stdout;
    let mark = rules.split_whitespace().skip_while(|word| *word != "fwmark").nth(1).unwrap();
    let marked = a.ip_json(["route", "get", GATEWAY, "mark", mark]).unwrap();
    assert_eq!(marked[0]["dev"], "eth0");
    let sent_before = status(a)["peers"][0]["tx_bytes"].as_u64().unwrap();
    assert_eq!(a.ping(GATEWAY, 3).unwrap(), 3);
    let sent = status(a)["peers"][0]["tx_bytes"].as_u64().unwrap() - sent_before;
    // `status` asks the gateway what it lets us use, which is a few packets; a ping that goes around is a hundred.
    assert!((3 * 128..3 * 128 + 4_000).contains(&sent), "three pings, once around: {sent} bytes");

    let strangers: Vec<_> = ip_packets(&capture.stop().unwrap())
        .into_iter()
        .filter(|packet| {
            let ends = [packet.source.to_string(), packet.destination.to_string()];
            let is_tunnel = packet.protocol == 17 && ends.contains(&GATEWAY.to_owned());
            // Neighbours and multicast groups of the cable itself.
            let is_of_the_cable = packet.protocol == 58 || ends[1].starts_with("ff02:");
            !is_tunnel && !is_of_the_cable
        })
        .collect();
    assert!(strangers.is_empty(), "{strangers:?}");
}

#[test]
fn a_second_client_joins_while_the_first_downloads() {
    let net = Internet::new("gwsecond", 2);
    let [a, b] = &net.clients[..] else { panic!("two clients") };
    init(&net.gateway);
    let gateway = start_gateway(&net.gateway);
    let file = admit(&net.gateway, "tun-0", a, &[]);
    succeed(a, &["up", &file]);
    let content = Content { seed: 4, bytes: 8_000_000 };
    let mut download = net.start_download(a, content, 2_000);

    let file = admit(&net.gateway, "tun-1", b, &[]);
    succeed(b, &["up", &file]);
    assert_eq!(net.seen_from(b), [GATEWAY, GATEWAY6]);
    assert!(answers(b, &inside(0)[0]));
    let config = home(&net.gateway).join("adit.toml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, format!("{text}\n# a line more\n")).unwrap();
    net.gateway.exec(["kill", "-HUP", &gateway.id().to_string()]).unwrap();
    wait_for("the reload", SOON, || gateway.stderr().contains("configuration read again").then_some(()))
        .unwrap();
    assert!(answers(b, INSIDE));
    assert!(download.ended().is_none(), "all of this happened during the download");
    let report = finish_download(download, content);
    assert!(report["longest_pause_seconds"].as_f64().unwrap() < 3.0, "{report}");
    let sessions = |name: &str| {
        let log = gateway.stderr();
        log.lines().filter(|line| line.contains("session established") && line.contains(name)).count()
    };
    assert_eq!(
        (sessions("tun-0"), sessions("tun-1")),
        (1, 1),
        "nobody had to shake hands again: {}",
        gateway.stderr()
    );

    succeed(&net.gateway, &["peer", "rm", "tun-1"]);
    assert!(!answers(b, INSIDE), "who is removed is cut off");
    assert!(answers(a, INSIDE), "and only they");
    assert_eq!(sessions("tun-0"), 1);
}

#[test]
fn a_download_outlives_the_gateway_that_is_killed_and_started_again() {
    let net = Internet::new("gwcrash", 1);
    let client = &net.clients[0];
    init(&net.gateway);
    let before = Picture::of(&net.gateway);
    let mut gateway = start_gateway(&net.gateway);
    let file = admit(&net.gateway, "tun-0", client, &[]);
    succeed(client, &["up", &file]);
    let remembered = home(&net.gateway).join("state/endpoints.json");
    wait_for("the endpoint to be written down", SOON, || remembered.exists().then_some(())).unwrap();
    let content = Content { seed: 5, bytes: 6_000_000 };
    let mut download = net.start_download(client, content, 2_000);
    thread::sleep(Duration::from_millis(500));

    gateway.crash();
    thread::sleep(Duration::from_millis(300));
    assert!(!answers(client, INSIDE), "it is really gone");
    assert!(download.ended().is_none(), "but the download waits");
    let killed = Instant::now();
    let gateway = start_gateway(&net.gateway);
    wait_for("an answer through the tunnel", SOON, || answers(client, INSIDE).then_some(())).unwrap();
    let again = killed.elapsed();
    println!("the tunnel carries again {:.2} s after the start", again.as_secs_f64());
    // The timer that notices a dead session takes 15 s.
    assert!(again < Duration::from_secs(10), "the gateway greets those it knew: {again:?}");
    let report = finish_download(download, content);
    println!("the longest pause of the download was {} s", report["longest_pause_seconds"]);
    assert_eq!(net.seen_from(client), [GATEWAY, GATEWAY6]);

    succeed(client, &["down"]);
    stop_gateway(gateway);
    before.assert_again(&net.gateway);
}

#[test]
fn a_client_that_is_killed_comes_up_again_or_is_taken_down() {
    let net = Internet::new("gwclient", 1);
    let client = &net.clients[0];
    init(&net.gateway);
    let _gateway = start_gateway(&net.gateway);
    let file = admit(&net.gateway, "tun-0", client, &["--dns", INSIDE]);
    let before = Picture::of(client);
    let own = net.seen_from(client);

    succeed(client, &["up", &file]);
    kill_tunnel(client, "tun-0");
    before.assert_changed(client);
    succeed(client, &["up", &file]);
    assert_eq!(net.seen_from(client), [GATEWAY, GATEWAY6], "up puts the rest back and starts anew");
    assert_eq!(
        client.ip(["route", "show", "table", "all"]).unwrap().stdout.matches("unreachable default").count(),
        2
    );

    kill_tunnel(client, "tun-0");
    before.assert_changed(client);
    succeed(client, &["down"]);
    before.assert_again(client);
    assert_eq!(net.seen_from(client), own);

    succeed(client, &["up", &file]);
    assert_eq!(net.seen_from(client), [GATEWAY, GATEWAY6]);
    succeed(client, &["down"]);
    before.assert_again(client);
}

#[test]
fn several_instances_share_a_host_when_each_has_a_home() {
    let net = Internet::new("gwhomes", 1);
    let client = &net.clients[0];
    let before = [Picture::of(&net.gateway), Picture::of(client)];
    let homes = ["first", "second"].map(|name| net.gateway.directory().join(name));
    let client_homes = ["first", "second"].map(|name| client.directory().join(name));
    let must = |host: &Host, home: &Path, arguments: &[&str]| {
        let output = adit_at(host, home, arguments);
        assert!(output.ok(), "{arguments:?}: {}", output.stderr);
        output
    };
    let mut gateways = Vec::new();
    for (number, home) in homes.iter().enumerate() {
        let endpoint = format!("{GATEWAY}:{}", 51_820 + number);
        let (interface, network) = (format!("adit{number}"), format!("10.{}.0.0/24", 86 + number));
        let network6 = format!("fd86:{number}::/64");
        let words = [
            "init",
            "--endpoint",
            &endpoint,
            "--interface",
            &interface,
            "--network",
            &network,
            "--network6",
            &network6,
        ];
        must(&net.gateway, home, &words);
        gateways.push(start_gateway_at(&net.gateway, home));
        let file = must(&net.gateway, home, &["peer", "add", "laptop", "--split"]).stdout;
        let path = client.write(&format!("net{number}.conf"), file).unwrap().display().to_string();
        must(client, &client_homes[number], &["up", &path]);
    }
    let reached = || {
        [0, 1].map(|number| {
            answers(client, &format!("10.{}.0.1", 86 + number))
                && answers(client, &format!("fd86:{number}::1"))
        })
    };
    assert_eq!(reached(), [true, true]);
    for (number, home) in homes.iter().enumerate() {
        let shown = must(&net.gateway, home, &["status", "--json"]).json().unwrap();
        assert_eq!(shown["interface"], format!("adit{number}"));
        let shown = must(client, &client_homes[number], &["status", "--json"]).json().unwrap();
        assert_eq!(shown["interface"], format!("net{number}"));
    }
    let again = adit_at(&net.gateway, &homes[0], &["gateway"]);
    assert_eq!(again.code(), Some(1));
    assert!(again.stderr.contains("already running"), "{}", again.stderr);

    must(client, &client_homes[0], &["down"]);
    assert_eq!(reached(), [false, true], "the other stays");
    stop_gateway(gateways.remove(0));
    assert_eq!(reached(), [false, true]);
    must(client, &client_homes[1], &["down"]);
    stop_gateway(gateways.remove(0));
    before[0].assert_again(&net.gateway);
    before[1].assert_again(client);
}

#[test]
fn without_client_to_client_clients_reach_everything_but_each_other() {
    let net = Internet::new("gwapart", 2);
    let [a, b] = &net.clients[..] else { panic!("two clients") };
    init(&net.gateway);
    let start = |value: &str| {
        let home = home(&net.gateway).display().to_string();
        let argv = [ADIT, "--home", &home, "gateway", "--client-to-client", value];
        let mut process = net.gateway.spawn(argv).unwrap();
        process.wait_for_text("gateway ready", SOON).unwrap();
        process
    };
    let gateway = start("true");
    for (number, client) in net.clients.iter().enumerate() {
        let file = admit(&net.gateway, &format!("tun-{number}"), client, &[]);
        succeed(client, &["up", &file]);
    }
    let each_other = || {
        let to_b = inside(1).map(|address| answers(a, &address));
        let to_a = inside(0).map(|address| answers(b, &address));
        [to_b, to_a].concat()
    };
    assert_eq!(each_other(), [true; 4]);
    stop_gateway(gateway);

    let gateway = start("false");
    wait_for("the session of both", Duration::from_secs(20), || {
        (answers(a, INSIDE) && answers(b, INSIDE)).then_some(())
    })
    .unwrap();
    assert_eq!(each_other(), [false; 4]);
    for client in [a, b] {
        assert!(answers(client, INSIDE) && answers(client, INSIDE6));
        assert_eq!(net.seen_from(client), [GATEWAY, GATEWAY6]);
    }
    assert!(answers(&net.gateway, &inside(0)[0]) && answers(&net.gateway, &inside(1)[1]));
    stop_gateway(gateway);

    // The same by the file, while it runs.
    let gateway = start_gateway(&net.gateway);
    wait_for("the session of both", Duration::from_secs(20), || {
        (answers(a, INSIDE) && answers(b, INSIDE)).then_some(())
    })
    .unwrap();
    assert_eq!(each_other(), [true; 4]);
    let config = home(&net.gateway).join("adit.toml");
    let text = fs::read_to_string(&config).unwrap();
    assert!(text.contains("# client_to_client = true"));
    fs::write(&config, text.replace("# client_to_client = true", "client_to_client = false")).unwrap();
    net.gateway.exec(["kill", "-HUP", &gateway.id().to_string()]).unwrap();
    wait_for("the reload", SOON, || gateway.stderr().contains("configuration read again").then_some(()))
        .unwrap();
    assert_eq!(each_other(), [false; 4]);
    assert!(answers(a, INSIDE) && answers(b, INSIDE6));
    assert_eq!(adit(&net.gateway, &["status"]).code(), Some(0));
}
