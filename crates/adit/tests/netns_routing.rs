//! Tunnels and the routes around them: in each other, in a circle, behind a NAT, under policy rules, to nowhere.

mod common;

use std::thread;
use std::time::{Duration, Instant};

use adit_lab::{Capture, End, Host, NatTimeouts};

use common::node::{Node, key_pair};
use common::{Family, download, flood, inside, lab, pair};

use Family::{V4, V6};

fn answers(host: &Host, address: &str) -> bool {
    host.attempt(["ping", "-n", "-q", "-c", "1", "-W", "1", address]).unwrap().ok()
}

/// As fast as answers come, or a hundred a second. How many answers came.
fn flood_without_hope(host: &Host, address: &str, count: u32) -> u32 {
    let argv = ["ping", "-n", "-q", "-f", "-W", "1", "-c", &count.to_string(), address];
    let output = host.command(argv).deadline(Duration::from_secs(15)).attempt().unwrap();
    let part = output
        .stdout
        .split(", ")
        .find_map(|part| part.split(' ').next()?.parse().ok().filter(|_| part.contains("received")));
    part.unwrap_or_else(|| panic!("{}{}", output.stdout, output.stderr))
}

/// Two tunnels between two hosts: `x` at 10.9.0.0/24 on port 5001, `y` at 10.10.0.0/24 on port 5002.
struct Two {
    x: [Node; 2],
    y: [Node; 2],
}

fn two_tunnels(net: &common::Pair) -> Two {
    let tunnel = |inside: &str, port: u16| {
        let nodes = [(&net.a, 1), (&net.b, 2)]
            .map(|(host, number)| Node::start(host, port, &[format!("{inside}.{number}/24").as_str()]));
        let [a, b] = &nodes;
        a.knows(b, &format!("allowed-ips {inside}.2/32 endpoint 192.0.2.2:{port}"));
        b.knows(a, &format!("allowed-ips {inside}.1/32"));
        nodes
    };
    Two { x: tunnel("10.9.0", 5001), y: tunnel("10.10.0", 5002) }
}

#[test]
fn a_tunnel_goes_through_another_tunnel() {
    let net = pair("routenest");
    let Two { x, y } = two_tunnels(&net);
    flood(&net.a, inside(V4, 2), 5);
    assert!(answers(&net.a, "10.10.0.2"));
    // Through y, whose packets are 80 bytes larger.
    x[0].knows(&x[1], "endpoint 10.10.0.2:5001");
    for node in &x {
        node.device.set_mtu(1340);
    }
    let (_, before) = y[0].transfer(&y[1]);
    let capture = Capture::start(&net.a, "eth0").unwrap();
    flood(&net.a, inside(V4, 2), 100);
    flood(&net.b, inside(V4, 1), 100);
    let outside = capture.stop().unwrap();
    let sent_with = |hop_limit: u8| {
        let is_y = |packet: &[u8]| packet[9] == 17 && packet[20..22] == 5002u16.to_be_bytes();
        outside.iter().filter(|frame| is_y(&frame.bytes[14..]) && frame.bytes[22] == hop_limit).count()
    };
    assert!(
        sent_with(64 - 16) >= 200,
        "a tunnel's messages in a tunnel go less far, so that none goes round for ever"
    );
    assert_eq!(x[1].endpoint_of(&x[0]), "10.10.0.1:5001");
    download(&net.a, &net.b, inside(V4, 2), 3_000_000);
    download(&net.b, &net.a, inside(V4, 1), 3_000_000);
    let (_, after) = y[0].transfer(&y[1]);
    assert!(after - before > 3_000_000, "all of it went through the outer tunnel");

    // Packets that the outer tunnel has to cut in pieces arrive too.
    for node in &x {
        node.device.set_mtu(1420);
    }
    let argv = ["ping", "-n", "-q", "-c", "3", "-i", "0.2", "-W", "1", "-s", "1392", "10.9.0.2"];
    assert!(net.a.attempt(argv).unwrap().ok());
}

/// Bytes that a host has sent into tunnels and on the cable.
fn sent_bytes(nodes: &[(&Node, &Node)]) -> u64 {
    nodes.iter().map(|(node, peer)| node.transfer(peer).1).sum()
}

#[test]
fn a_routing_loop_of_two_devices_carries_less_than_seventy_kilobytes_in_a_second() {
    let net = pair("routeloop");
    let Two { x: [x, x_far], y: [y, y_far] } = two_tunnels(&net);
    assert!(answers(&net.a, "10.9.0.2") && answers(&net.a, "10.10.0.2"));
    x.knows(&x_far, "endpoint 10.10.0.2:5001");
    flood(&net.a, inside(V4, 2), 20);
    net.b.ip(["link", "del", x_far.name()]).unwrap();
    net.b.ip(["link", "del", y_far.name()]).unwrap();

    y.knows(&y_far, "endpoint 10.9.0.2:5002");
    let before = x.transfer(&x_far).1;
    assert_eq!(flood_without_hope(&net.a, "10.9.0.2", 100), 0);
    thread::sleep(Duration::from_secs(1));
    let sent = x.transfer(&x_far).1 - before;
    println!("the loop carried {sent} bytes");
    assert!(sent > 0, "the pings went in");
    assert!(sent < 70_000, "{sent} bytes went around");
    thread::sleep(Duration::from_secs(1));
    assert_eq!(x.transfer(&x_far).1 - before, sent, "nothing goes around for ever");
}

#[test]
fn a_large_packet_in_a_routing_loop_does_not_multiply() {
    let net = pair("routestorm");
    let Two { x: [x, x_far], y: [y, y_far] } = two_tunnels(&net);
    assert!(answers(&net.a, "10.9.0.2") && answers(&net.a, "10.10.0.2"));
    net.b.ip(["link", "del", x_far.name()]).unwrap();
    net.b.ip(["link", "del", y_far.name()]).unwrap();
    x.knows(&x_far, "endpoint 10.10.0.2:5001");
    y.knows(&y_far, "endpoint 10.9.0.2:5002");
    let nodes = [(&x, &x_far), (&y, &y_far)];
    let before = sent_bytes(&nodes);
    let argv = ["ping", "-n", "-q", "-c", "3", "-i", "0.2", "-W", "1", "-s", "1390", "10.9.0.2"];
    assert!(!net.a.attempt(argv).unwrap().ok());
    let sent = sent_bytes(&nodes) - before;
    println!("three large packets became {sent} bytes");
    assert!(sent < 70_000, "{sent} bytes went around");
    thread::sleep(Duration::from_secs(1));
    assert_eq!(sent_bytes(&nodes) - before, sent, "nothing goes around for ever");
}

#[test]
fn a_peer_behind_a_peer_is_reached_and_one_that_is_its_own_way_harms_nobody() {
    let net = pair("routeonion");
    let near = Node::start(&net.a, 5001, &["10.9.0.1/24", "10.20.0.1/24"]);
    let far = Node::start(&net.b, 5002, &["10.9.0.2/24"]);
    near.knows(&far, "allowed-ips 10.9.0.2/32 endpoint 192.0.2.2:5002");
    far.knows(&near, "allowed-ips 10.9.0.1/32");
    assert!(answers(&net.a, "10.9.0.2"));

    let behind = Node::start(&net.b, 5003, &["10.20.0.2/24"]);
    near.knows(&behind, "allowed-ips 10.20.0.2/32 endpoint 10.9.0.2:5003");
    behind.knows(&near, "allowed-ips 10.20.0.1/32");
    assert!(answers(&net.a, "10.20.0.2"), "one layer in the other, by the same device");
    assert_eq!(behind.endpoint_of(&near), "10.9.0.1:5001");

    net.b.ip(["link", "del", behind.name()]).unwrap();
    near.knows(&behind, "endpoint 10.20.0.2:5003");
    let before = near.transfer(&behind).1;
    assert_eq!(flood_without_hope(&net.a, "10.20.0.2", 100), 0);
    let sent = near.transfer(&behind).1 - before;
    println!("a peer that is its own way cost {sent} bytes");
    assert!(sent < 140_000, "{sent} bytes went around");
    flood(&net.a, inside(V4, 2), 20);
    near.forgets(&behind.public);
    flood(&net.a, inside(V4, 2), 20);
}

#[test]
fn a_keepalive_holds_a_nat_open_that_forgets_after_two_seconds() {
    let lab = lab("routenat");
    let (home, router, server) =
        (lab.host("home").unwrap(), lab.host("router").unwrap(), lab.host("server").unwrap());
    let end = |host: &Host, interface: &str, address: &str| End::new(host, interface).address(address);
    lab.connect(end(&home, "eth0", "192.168.1.100/24"), end(&router, "inside", "192.168.1.1/24")).unwrap();
    lab.connect(end(&router, "outside", "10.0.0.1/24"), end(&server, "eth0", "10.0.0.100/24")).unwrap();
    let two_secs = Duration::from_secs(2);
    router.masquerade("outside", Some(NatTimeouts { udp: two_secs, udp_stream: two_secs })).unwrap();
    home.add_route("default via 192.168.1.1").unwrap();
    let a = Node::start(&home, 5001, &["10.9.0.1/24"]);
    let b = Node::start(&server, 5002, &["10.9.0.2/24"]);
    b.knows(&a, "allowed-ips 10.9.0.1/32");
    a.knows(&b, "allowed-ips 10.9.0.2/32 endpoint 10.0.0.100:5002 persistent-keepalive 1");
    assert!(answers(&home, "10.9.0.2") && answers(&server, "10.9.0.1"));
    assert!(b.endpoint_of(&a).starts_with("10.0.0.1:"), "the server sees the router");
    for _ in 0..2 {
        thread::sleep(Duration::from_secs(3));
        assert!(answers(&server, "10.9.0.1"), "the way in stays open");
    }

    a.knows(&b, "persistent-keepalive 0");
    assert!(answers(&home, "10.9.0.2"));
    thread::sleep(Duration::from_secs(4));
    assert!(!answers(&server, "10.9.0.1"), "without keepalives the router forgets");
    assert!(answers(&home, "10.9.0.2"), "until home speaks again");
    assert!(answers(&server, "10.9.0.1"));
}

#[test]
fn a_default_route_by_policy_rules_carries_floods_and_changes_of_the_mark() {
    let net = pair("routepolicy");
    let a = Node::start(&net.a, 5001, &["10.9.0.1/32", "fd00:9::1/128"]);
    let b = Node::start(&net.b, 5002, &["10.9.0.2/32", "fd00:9::2/128"]);
    a.knows(&b, "allowed-ips 0.0.0.0/0,::/0 endpoint 192.0.2.2:5002");
    b.knows(&a, "allowed-ips 10.9.0.1/32,fd00:9::1/128");
    net.b.add_address("lo", "203.0.113.7/32").unwrap();
    net.b.add_address("lo", "2001:db8:7::7/128").unwrap();
    net.b.add_route(&format!("10.9.0.1/32 dev {}", b.name())).unwrap();
    net.b.add_route(&format!("fd00:9::1/128 dev {}", b.name())).unwrap();
    assert!(!answers(&net.a, "203.0.113.7"), "there is no route yet");

    net.a.set_sysctl("net.ipv4.conf.all.src_valid_mark", "1").unwrap();
    a.set("fwmark 51820");
    for family in ["-4", "-6"] {
        let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
        net.a.ip(words(&format!("{family} route add default dev {} table 51820", a.name()))).unwrap();
        net.a.ip(words(&format!("{family} rule add not fwmark 51820 table 51820"))).unwrap();
        net.a.ip(words(&format!("{family} rule add table main suppress_prefixlength 0"))).unwrap();
    }
    for address in ["203.0.113.7", "2001:db8:7::7"] {
        assert_eq!(net.a.route_to(address).unwrap()["dev"], a.name());
        flood(&net.a, address.parse().unwrap(), 1_000);
    }
    assert_eq!(a.endpoint_of(&b), "192.0.2.2:5002");

    // The addresses of the cable are covered too, for want of anything better: the mark alone keeps the outside outside.
    net.a.ip(["-4", "rule", "del", "table", "main", "suppress_prefixlength", "0"]).unwrap();
    assert_eq!(net.a.route_to("192.0.2.2").unwrap()["dev"], a.name());
    net.b.nft("table inet t { chain i { type filter hook input priority 0; iifname eth0 icmp type echo-request drop; }; }").unwrap();
    flood(&net.a, "192.0.2.2".parse().unwrap(), 200);
    flood(&net.a, "203.0.113.7".parse().unwrap(), 200);

    // A mark set by the firewall reroutes what is sent, inside and outside.
    net.a.set_sysctl("net.ipv4.conf.all.rp_filter", "0").unwrap();
    net.a.nft("table inet m { chain o { type route hook output priority mangle; ip daddr 203.0.113.7 meta mark set 1; }; }").unwrap();
    net.a.ip(["rule", "add", "pref", "10", "fwmark", "1", "lookup", "7"]).unwrap();
    assert!(answers(&net.a, "203.0.113.7"), "the boring case");
    net.a.ip(["route", "add", "203.0.113.7/32", "dev", a.name(), "table", "7"]).unwrap();
    flood(&net.a, "203.0.113.7".parse().unwrap(), 200);
    net.a.ip(["route", "replace", "blackhole", "203.0.113.7/32", "table", "7"]).unwrap();
    assert!(!answers(&net.a, "203.0.113.7"), "and the table of the mark is what counts");
}

/// ICMP errors of kind "unreachable" that a host has taken in, IPv4 and IPv6.
fn unreachables(host: &Host) -> [u64; 2] {
    let v4 = host.exec(["cat", "/proc/net/snmp"]).unwrap().stdout;
    let mut icmp = v4.lines().filter(|line| line.starts_with("Icmp:"));
    let (names, values) = (icmp.next().unwrap(), icmp.next().unwrap());
    let at = names.split(' ').position(|name| name == "InDestUnreachs").unwrap();
    let v6 = host.exec(["cat", "/proc/net/snmp6"]).unwrap().stdout;
    let v6 = v6.lines().find(|line| line.starts_with("Icmp6InDestUnreachs")).unwrap();
    [values.split(' ').nth(at).unwrap(), v6.split_whitespace().nth(1).unwrap()]
        .map(|text| text.parse().unwrap())
}

#[test]
fn an_address_without_a_peer_is_answered_with_unreachable_at_a_bounded_rate() {
    let net = pair("routenobody");
    let a = Node::start(&net.a, 5001, &["10.9.0.1/24", "fd00:9::1/64"]);
    let b = Node::start(&net.b, 5002, &["10.9.0.2/24", "fd00:9::2/64"]);
    a.knows(&b, "allowed-ips 10.9.0.2/32,fd00:9::2/128 endpoint 192.0.2.2:5002");
    b.knows(&a, "allowed-ips 10.9.0.1/32,fd00:9::1/128");
    let said = |address: &str| net.a.attempt(["ping", "-n", "-c", "1", "-W", "1", address]).unwrap();
    for (peer, nobody, error) in [
        ("10.9.0.2", "10.9.0.9", "Destination Host Unreachable"),
        ("fd00:9::2", "fd00:9::9", "Destination unreachable: Address unreachable"),
    ] {
        let answer = said(peer);
        assert!(answer.ok() && !answer.stdout.to_lowercase().contains("unreachable"), "{}", answer.stdout);
        let answer = said(nobody);
        assert!(!answer.ok() && answer.stdout.contains(error), "{}", answer.stdout);
    }

    // A peer without an endpoint is known but cannot be reached either.
    let (_, silent) = key_pair();
    a.set(&format!("peer {silent} allowed-ips 10.9.0.8/32"));
    let answer = said("10.9.0.8");
    assert!(answer.stdout.contains("Destination Host Unreachable"), "{}", answer.stdout);

    for (index, nobody) in ["10.9.0.9:9", "[fd00:9::9]:9"].into_iter().enumerate() {
        // The budget of the second before is spent.
        thread::sleep(Duration::from_secs(1));
        let before = unreachables(&net.a)[index];
        let started = Instant::now();
        net.a.agent(["udp-send", nobody, "20000"]).exec().unwrap();
        thread::sleep(Duration::from_millis(50));
        let secs = started.elapsed().as_secs() + 2;
        let errors = unreachables(&net.a)[index] - before;
        println!("20000 datagrams to {nobody} got {errors} errors within {secs} s");
        assert!(errors > 0);
        assert!(errors <= 100 * secs, "{errors} errors within {secs} s");
    }
    flood(&net.a, inside(V6, 2), 20);
}

#[test]
fn an_error_for_a_forwarded_packet_finds_its_way_back_through_the_nat() {
    let lab = lab("routeerror");
    let (user, router, server) =
        (lab.host("user").unwrap(), lab.host("router").unwrap(), lab.host("server").unwrap());
    let end = |host: &Host, interface: &str, address: &str| End::new(host, interface).address(address);
    lab.connect(end(&user, "eth0", "192.168.1.100/24"), end(&router, "users", "192.168.1.1/24")).unwrap();
    lab.connect(end(&router, "eth0", "10.0.0.1/24"), end(&server, "eth0", "10.0.0.2/24")).unwrap();
    let a = Node::start(&router, 5001, &["10.9.0.1/24"]);
    let b = Node::start(&server, 5002, &["10.9.0.2/24"]);
    a.knows(&b, "allowed-ips 10.9.0.2/32 endpoint 10.0.0.2:5002");
    b.knows(&a, "allowed-ips 10.9.0.1/32");
    router.enable_forwarding().unwrap();
    router.nft("table ip n { chain p { type nat hook postrouting priority srcnat; ip saddr 192.168.1.0/24 snat to 10.9.0.1; }; }").unwrap();
    user.add_route("10.9.0.0/24 via 192.168.1.1").unwrap();
    assert!(answers(&user, "10.9.0.2"), "with a peer there is an answer");
    a.forgets(&b.public);
    let output = user.attempt(["ping", "-n", "-c", "1", "-W", "1", "10.9.0.2"]).unwrap();
    assert!(!output.ok());
    assert!(output.stdout.contains("Destination Host Unreachable"), "{}", output.stdout);
}
