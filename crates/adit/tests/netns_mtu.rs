//! A way that grows narrow without saying so, in the middle of a transfer.

mod common;

use std::thread;
use std::time::{Duration, Instant};

use adit_lab::{Content, Host, Process};

use common::SOON;
use common::internet::{
    GATEWAY, INSIDE, Internet, adit, admit, init, peer_status, start_gateway, stop_gateway, succeed,
};

fn received_bytes(host: &Host, interface: &str) -> u64 {
    let path = format!("/sys/class/net/{interface}/statistics/rx_bytes");
    host.exec(["cat", &path]).unwrap().stdout.trim().parse().unwrap()
}

/// The longest time in which nothing came to `interface` while `span` passed.
fn longest_stall(host: &Host, interface: &str, span: Duration) -> Duration {
    let start = Instant::now();
    let (mut last, mut since, mut longest) = (received_bytes(host, interface), start, Duration::ZERO);
    while start.elapsed() < span {
        let now = received_bytes(host, interface);
        // Less than a full packet is an acknowledgement or a probe.
        if now > last + 4_000 {
            (last, since) = (now, Instant::now());
        }
        longest = longest.max(since.elapsed());
        thread::sleep(Duration::from_millis(20));
    }
    longest
}

/// The outside packet of 1,420 inside has 1,480 bytes over IPv4.
const NARROW: u32 = 1_350;

#[test]
fn a_download_goes_on_when_the_way_grows_narrow_without_a_word() {
    let net = Internet::new("mtuhole", 2);
    let [probing, stock] = &net.clients[..] else { panic!("two clients") };
    init(&net.gateway);
    let gateway = start_gateway(&net.gateway);
    let suites = [(probing, "aes-256-gcm", "tun-0"), (stock, "chacha20-poly1305", "tun-1")];
    for (client, suite, name) in suites {
        let file = admit(&net.gateway, name, client, &["--suite", suite]);
        succeed(client, &["up", &file]);
    }
    let span = Duration::from_secs(8);
    let stall = |client: &Host, interface: &str| {
        let content = Content { seed: 7, bytes: 14_000_000 };
        let download = net.start_download(client, content, 2_000);
        thread::sleep(Duration::from_millis(1_500));
        net.router.drop_udp_larger_than(NARROW).unwrap();
        let stall = longest_stall(client, interface, span);
        (stall, download, content)
    };
    let (without_probes, mut download, _) = stall(stock, "tun-1");
    download.end();
    net.router.drop_nothing().unwrap();
    // The server knows the way to the gateway by one size, whichever client is behind it.
    assert!(
        without_probes > Duration::from_secs(7),
        "without probes the way stays closed: {without_probes:?}"
    );
    let (with_probes, mut download, _) = stall(probing, "tun-0");
    println!("stalled for {} ms", with_probes.as_millis());
    assert!(with_probes < Duration::from_secs(6), "{with_probes:?}");
    download.end();

    let found = peer_status(&net.gateway, "tun-0")["path_mtu_bytes"].as_u64().unwrap();
    assert!((1_200..=u64::from(NARROW) - 60).contains(&found), "{found}");
    assert!(peer_status(&net.gateway, "tun-1")["path_mtu_bytes"].is_null(), "a stock peer is not probed");

    net.router.drop_nothing().unwrap();
    assert_eq!(probing.ping(INSIDE, 2).unwrap(), 2);
    assert_eq!(net.seen_from(probing)[0], GATEWAY);
    stop_gateway(gateway);
}

/// One transfer while the way grows narrow: how long it stalled, and that it came to its end.
fn transfer_through_a_narrowing(
    net: &Internet,
    mut transfer: Process,
    content: Content,
    receiver: (&Host, &str),
) -> Duration {
    thread::sleep(Duration::from_millis(1_500));
    net.router.drop_udp_larger_than(NARROW).unwrap();
    let narrowed = Instant::now();
    let stall = longest_stall(receiver.0, receiver.1, Duration::from_secs(8));
    let report: serde_json::Value =
        serde_json::from_str(&transfer.finish(Duration::from_secs(40)).unwrap()).unwrap();
    println!("{} ms stalled, {} ms to the end", stall.as_millis(), narrowed.elapsed().as_millis());
    assert_eq!(report["sha256"], content.sha256(), "{report}");
    assert_eq!(report["resumed"], 0, "one connection was enough: {report}");
    net.router.drop_nothing().unwrap();
    stall
}

/// Packets cross the cables one by one, as on real ones; else the router would take a run of them for one large packet.
fn without_offloads(hosts: &[&Host]) {
    for host in hosts {
        let links = host.ip_json(["link"]).unwrap();
        let names = links.as_array().unwrap().iter().map(|it| it["ifname"].as_str().unwrap());
        for name in names.filter(|it| *it != "lo") {
            let off = ["gso", "off", "tso", "off", "gro", "off", "tx-udp-segmentation", "off"];
            host.exec(["ethtool", "-K", name].into_iter().chain(off)).unwrap();
        }
    }
}

/// What comes after the stall at 2 MB/s is over in 6 s.
#[test]
fn a_transfer_in_either_direction_resumes_on_a_narrow_way_and_comes_to_its_end() {
    let net = Internet::new("mtuboth", 1);
    let client = &net.clients[0];
    without_offloads(&[client, &net.router, &net.gateway, &net.web]);
    init(&net.gateway);
    let gateway = start_gateway(&net.gateway);
    let file = admit(&net.gateway, "tun-0", client, &["--suite", "aes-256-gcm"]);
    let is_right =
        |found: Option<u64>| found.is_some_and(|it| (1_200..=u64::from(NARROW) - 60).contains(&it));

    succeed(client, &["up", &file]);
    let content = Content { seed: 8, bytes: 14_000_000 };
    let download = net.start_download(client, content, 2_000);
    let stall = transfer_through_a_narrowing(&net, download, content, (client, "tun-0"));
    assert!(stall < Duration::from_secs(5), "{stall:?}");
    let found = peer_status(&net.gateway, "tun-0")["path_mtu_bytes"].as_u64();
    assert!(is_right(found), "{found:?}");
    succeed(client, &["down"]);

    succeed(client, &["up", &file]);
    let mut server = client.agent(["http-server", "--listen", "10.86.0.2:8080"]).spawn().unwrap();
    server.wait_for_text("listening", SOON).unwrap();
    let url = format!("http://10.86.0.2:8080/file?bytes={}&seed={}&kbps=2000", content.bytes, content.seed);
    let upload =
        net.gateway.agent(["http-get", "--sha256", "--patience-seconds", "25", &url]).spawn().unwrap();
    server.wait_for_text("/file", SOON).unwrap();
    let stall = transfer_through_a_narrowing(&net, upload, content, (&net.gateway, "adit0"));
    assert!(stall < Duration::from_secs(5), "{stall:?}");
    let status = adit(client, &["status", "--json"]).json().unwrap();
    let found = status["peers"][0]["path_mtu_bytes"].as_u64();
    assert!(is_right(found), "{found:?}");
    succeed(client, &["down"]);
    stop_gateway(gateway);
}

#[test]
fn a_packet_that_is_too_large_for_the_way_is_answered_with_what_fits() {
    let net = Internet::new("mtuicmp", 1);
    let client = &net.clients[0];
    init(&net.gateway);
    let gateway = start_gateway(&net.gateway);
    let file = admit(&net.gateway, "tun-0", client, &["--suite", "aes-256-gcm"]);
    succeed(client, &["up", &file]);
    let ping = |size: &str, count: &str| {
        let argv = ["ping", "-n", "-M", "do", "-s", size, "-c", count, "-i", "0.3", "-W", "1", INSIDE];
        client.command(argv).attempt().unwrap()
    };
    assert!(ping("1392", "1").ok(), "1,420 bytes fit");
    net.router.drop_udp_larger_than(NARROW).unwrap();
    let output = ping("1392", "15");
    let said = output.stdout + &output.stderr;
    assert!(said.contains("Frag needed") || said.contains("message too long"), "{said}");
    assert!(ping("1200", "1").ok(), "what fits passes");
    stop_gateway(gateway);
}
