//! Attacks on a gateway and its clients that other VPNs have suffered, each shown to work where the defence is off.

mod common;

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use adit_host::{Firewall, GatewayHost, Listener, Reach, Transport, gateway_plan, private_networks};
use adit_lab::{End, Host};

use common::internet::{GATEWAY, INSIDE, Internet, admit, init, start_gateway, stop_gateway, succeed};
use common::node::Node;
use common::on;

const LISTEN: u16 = 51820;

/// A gateway and its clients as devices alone: what defends them is up to the test.
struct World {
    gateway: Node,
    clients: Vec<Node>,
    net: Internet,
}

impl World {
    fn new(prefix: &str, clients: usize) -> Self {
        let net = Internet::new(prefix, clients);
        let gateway = Node::start(&net.gateway, LISTEN, &["10.86.0.1/24", "fd86:ad17::1/64"]);
        net.gateway.enable_forwarding().unwrap();
        let clients: Vec<Node> = (0..clients)
            .map(|number| {
                let [v4, v6] = inside(number);
                let (v4, v6) = (format!("{v4}/32"), format!("{v6}/128"));
                let client = Node::start(&net.clients[number], local_port(number), &[&v4, &v6]);
                gateway.knows(&client, &format!("allowed-ips {v4},{v6}"));
                client.knows(&gateway, &format!("allowed-ips 0.0.0.0/0,::/0 endpoint {GATEWAY}:{LISTEN}"));
                client.host.add_route(&format!("10.86.0.0/24 dev {}", client.name())).unwrap();
                client
            })
            .collect();
        Self { gateway, clients, net }
    }

    /// What a careless administrator does: masquerade, and nothing else.
    fn masquerade_only(&self) {
        let rules = "table ip careless { chain postrouting {
            type nat hook postrouting priority srcnat; policy accept;
            ip saddr 10.86.0.0/24 oifname eth0 masquerade
        }
        }";
        self.net.gateway.nft(&format!("flush ruleset\n{rules}")).unwrap();
    }

    /// The rules of `adit gateway`.
    fn defend(&self, reach: Reach) {
        let plan = gateway_plan(&GatewayHost {
            link: self.gateway.name().to_owned(),
            addresses: vec!["10.86.0.1/24".parse().unwrap(), "fd86:ad17::1/64".parse().unwrap()],
            mtu_bytes: 1420,
            routes: reach.sites.clone(),
            listeners: vec![Listener { transport: Transport::Udp, port: LISTEN }],
            services: Vec::new(),
            invited: Vec::new(),
            masquerade: true,
            client_to_client: true,
            denied: private_networks(),
            neighbours: vec![],
            reach,
            passages: Vec::new(),
            links_accepting_ra: Vec::new(),
        });
        self.net.gateway.nft("flush ruleset").unwrap();
        for rules in plan.firewalls.iter().map(Firewall::ruleset) {
            self.net.gateway.command(["nft", "-j", "-f", "-"]).input(rules.to_string()).exec().unwrap();
        }
    }
}

fn inside(number: usize) -> [String; 2] {
    [format!("10.86.0.{}", 2 + number), format!("fd86:ad17::{}", 2 + number)]
}

fn local_port(number: usize) -> u16 {
    40_000 + number as u16
}

fn answers(host: &Host, address: &str) -> bool {
    host.attempt(["ping", "-n", "-q", "-c", "1", "-W", "1", address]).unwrap().ok()
}

fn bound(host: &Host, at: &str) -> UdpSocket {
    let socket = on(host, || UdpSocket::bind(at).unwrap());
    socket.set_read_timeout(Some(Duration::from_millis(700))).unwrap();
    socket
}

/// The lengths of the datagrams that come within a moment.
fn received(socket: &UdpSocket) -> Vec<usize> {
    let mut buffer = [0; 2048];
    std::iter::from_fn(|| socket.recv(&mut buffer).ok()).collect()
}

/// A client takes the gateway's own port as its source port, towards another client that has not come yet: where the
/// gateway's NAT keeps the port, what the other sends to the gateway is handed to the attacker.
#[test]
fn r31_port_shadow_cve_2021_3773_steals_no_packets_to_the_listener() {
    let world = World::new("portshadow", 3);
    let attacker = &world.clients[0];
    assert!(answers(&attacker.host, INSIDE));
    let attack_before = |victim: usize| {
        let at = format!("10.{}.0.2", 100 + victim);
        attacker.host.add_route(&format!("{at}/32 dev {}", attacker.name())).unwrap();
        let socket = bound(&attacker.host, &format!("10.86.0.2:{LISTEN}"));
        socket.send_to(b"shadow", (at.as_str(), local_port(victim))).unwrap();
        let comes_in = answers(&world.clients[victim].host, INSIDE);
        (comes_in, received(&socket))
    };
    world.masquerade_only();
    let (comes_in, stolen) = attack_before(1);
    assert!(!comes_in, "without defence the victim does not reach the gateway");
    assert!(stolen.contains(&148), "and its handshake is delivered to the attacker: {stolen:?}");

    world.defend(Reach::default());
    let (comes_in, stolen) = attack_before(2);
    assert!(comes_in, "the victim reaches the gateway");
    assert_eq!(stolen, [0; 0], "and the attacker gets nothing");
}

/// Who is beside a client on its network asks for the inside address; an answer tells which it is, and that there is a
/// connection (CVE-2019-14899). The IPv6 half was forgotten elsewhere (R35).
#[test]
fn r29_r35_cve_2019_14899_nobody_on_the_local_network_learns_the_inside_address() {
    let net = Internet::new("cve14899", 2);
    let [defended, bare] = &net.clients[..] else { panic!("two clients") };
    init(&net.gateway);
    let gateway = start_gateway(&net.gateway);
    let file = admit(&net.gateway, "tun-0", defended, &[]);
    succeed(defended, &["up", &file]);
    let _device = Node::start(bare, 40_000, &["10.86.0.9/32", "fd86:ad17::9/128"]);

    let probe = |route: &str, at: &str| {
        net.router.add_route(route).unwrap();
        let at: SocketAddr = at.parse().unwrap();
        on(&net.router, || TcpStream::connect_timeout(&at, Duration::from_secs(2)).unwrap_err().kind())
    };
    // A reset tells the attacker that the address is there.
    assert_eq!(probe("10.86.0.9/32 via 10.101.0.2", "10.86.0.9:4444"), ErrorKind::ConnectionRefused);
    assert_eq!(
        probe("fd86:ad17::9/128 via 2001:db8:11::2", "[fd86:ad17::9]:4444"),
        ErrorKind::ConnectionRefused
    );
    assert_eq!(probe("10.86.0.2/32 via 10.100.0.2", "10.86.0.2:4444"), ErrorKind::TimedOut);
    assert_eq!(probe("fd86:ad17::2/128 via 2001:db8:10::2", "[fd86:ad17::2]:4444"), ErrorKind::TimedOut);
    // The gateway's own inside addresses keep as silent.
    let router = &net.router;
    router.add_route(&format!("{INSIDE}/32 via {GATEWAY}")).unwrap();
    let at: SocketAddr = format!("{INSIDE}:4444").parse().unwrap();
    let kind = on(router, || TcpStream::connect_timeout(&at, Duration::from_secs(2)).unwrap_err().kind());
    assert_eq!(kind, ErrorKind::TimedOut);
    assert!(answers(defended, INSIDE));
    stop_gateway(gateway);
}

/// A packet for a network that is routed to a client but that the client does not have comes back from it, and would go
/// round until its hop limit ends it.
#[test]
fn r34_hairpin_what_a_client_sends_back_is_not_sent_to_it_again() {
    let world = World::new("hairpin", 1);
    let client = &world.clients[0];
    let sites = ["192.168.50.0/24", "192.168.60.0/24"];
    let leaf = world.net.lab.host("leaf").unwrap();
    let end = |host: &Host, interface: &str, last: u8| {
        End::new(host, interface).address(format!("192.168.50.{last}/24"))
    };
    world.net.lab.connect(end(&client.host, "lan0", 1), end(&leaf, "eth0", 2)).unwrap();
    leaf.add_route("default via 192.168.50.1").unwrap();
    client.host.enable_forwarding().unwrap();
    client.host.add_route(&format!("192.168.60.0/24 dev {}", client.name())).unwrap();
    world.gateway.knows(client, &format!("allowed-ips 10.86.0.2/32,fd86:ad17::2/128,{}", sites.join(",")));
    for site in sites {
        world.net.gateway.add_route(&format!("{site} dev {}", world.gateway.name())).unwrap();
    }
    assert!(answers(&client.host, INSIDE));
    let rounds = || {
        let received = || world.gateway.transfer(client).0;
        let before = received();
        assert!(!answers(&leaf, "192.168.60.9"), "nobody is there");
        // A ping is 84 bytes, 128 with header, padding and tag.
        (received() - before) / 128
    };
    world.masquerade_only();
    let undefended = rounds();
    assert!(undefended > 20, "without defence it goes round: {undefended}");
    let nets = |texts: &[&str]| texts.iter().map(|net| net.parse().unwrap()).collect::<Vec<_>>();
    world.defend(Reach {
        sites: nets(&sites),
        hairpins: vec![nets(&["10.86.0.2/32", sites[0], sites[1]])],
        ..Reach::default()
    });
    let defended = rounds();
    assert!(defended <= 2, "it comes once: {defended}");
}

/// A client that may send from everywhere, because it leads somewhere, still cannot pretend to be another or the gateway.
#[test]
fn g02_a_client_that_may_send_from_everywhere_cannot_pass_for_a_stranger() {
    let world = World::new("spoofing", 2);
    let [attacker, victim] = &world.clients[..] else { panic!("two clients") };
    world.gateway.knows(attacker, "allowed-ips 0.0.0.0/0,10.86.0.2/32");
    world.masquerade_only();
    assert!(answers(&attacker.host, INSIDE) && answers(&victim.host, INSIDE));
    let mailbox = bound(&victim.host, "10.86.0.3:7777");
    let arrives_from = |source: &str| {
        attacker.host.add_address("lo", &format!("{source}/32")).unwrap();
        bound(&attacker.host, &format!("{source}:0")).send_to(b"hello", "10.86.0.3:7777").unwrap();
        received(&mailbox) == [5]
    };
    assert!(arrives_from("203.0.113.99"), "without defence it passes for a stranger");
    world.defend(Reach::default());
    assert!(!arrives_from("203.0.113.98"));
    assert!(!arrives_from("10.86.0.1"), "nor for the gateway");
    assert!(arrives_from_own(attacker, &mailbox), "its own address is good");
}

fn arrives_from_own(attacker: &Node, mailbox: &UdpSocket) -> bool {
    bound(&attacker.host, "10.86.0.2:0").send_to(b"hello", "10.86.0.3:7777").unwrap();
    received(mailbox) == [5]
}

/// A neighbour of the gateway sends as if from inside.
#[test]
fn g09_a_neighbour_of_the_gateway_neither_passes_for_a_client_nor_enters_the_tunnel() {
    let world = World::new("neighbour", 1);
    let (client, router) = (&world.clients[0], &world.net.router);
    world.masquerade_only();
    assert!(answers(&client.host, INSIDE));
    router.add_route(&format!("10.86.0.0/24 via {GATEWAY}")).unwrap();
    let mailbox = bound(&client.host, "10.86.0.2:7777");
    let arrives = |source: &str| {
        bound(router, &format!("{source}:0")).send_to(b"hello", "10.86.0.2:7777").unwrap();
        received(&mailbox) == [5]
    };
    router.add_address("lo", "10.86.0.7/32").unwrap();
    assert!(arrives("198.51.100.1") && arrives("10.86.0.7"), "without defence both come in");
    world.defend(Reach::default());
    assert!(!arrives("198.51.100.1") && !arrives("10.86.0.7"));
}
