//! What a gateway lets through and what not: its rules, what is beside it, and the firewalls of others.

mod common;

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use adit_lab::{End, Host, Process, wait_for};
use serde_json::Value;

use common::internet::{
    GATEWAY, GATEWAY6, INSIDE, Internet, WEB, adit, admit, home, init, start_gateway, stop_gateway, succeed,
};
use common::{ADIT, SOON, on};

fn answers(host: &Host, address: &str) -> bool {
    host.attempt(["ping", "-n", "-q", "-c", "1", "-W", "1", address]).unwrap().ok()
}

/// Whether a connection from `host` is taken.
fn connects(host: &Host, at: &str) -> bool {
    let at: SocketAddr = at.parse().unwrap();
    on(host, || TcpStream::connect_timeout(&at, Duration::from_millis(1500)).is_ok())
}

/// Takes connections on these ports of every address until the test ends.
fn listen(host: &Host, ports: &[u16]) -> Vec<TcpListener> {
    on(host, || ports.iter().map(|&port| TcpListener::bind(("::", port)).unwrap()).collect())
}

/// Puts lines below `[gateway]` in the configuration.
fn configure(gateway: &Host, lines: &str) {
    let path = home(gateway).join("adit.toml");
    let text = fs::read_to_string(&path).unwrap();
    let start = text.find("[gateway]\n").unwrap() + "[gateway]\n".len();
    fs::write(&path, format!("{}{lines}\n{}", &text[..start], &text[start..])).unwrap();
}

fn reload(gateway: &Host, process: &Process) {
    let times = || process.stderr().matches("configuration read again").count();
    let before = times();
    gateway.exec(["kill", "-HUP", &process.id().to_string()]).unwrap();
    wait_for("the reload", SOON, || (times() > before).then_some(())).unwrap();
}

#[test]
fn rules_say_which_client_starts_connections_to_whom() {
    let net = Internet::new("reachrules", 3);
    let [laptop, phone, nas] = &net.clients[..] else { panic!("three clients") };
    init(&net.gateway);
    let gateway = start_gateway(&net.gateway);
    for (name, client) in [("laptop", laptop), ("phone", phone), ("nas", nas)] {
        let file = admit(&net.gateway, name, client, &[]);
        succeed(client, &["up", &file]);
    }
    let _nas = listen(nas, &[443, 80]);
    let _gateway = listen(&net.gateway, &[22]);
    let nas_at = |port: u16| format!("10.86.0.4:{port}");
    let picture = |from: &Host| {
        let at = [
            nas_at(443),
            nas_at(80),
            "[fd86:ad17::4]:443".to_owned(),
            format!("{INSIDE}:22"),
            format!("{WEB}:80"),
        ];
        at.map(|at| connects(from, &at))
    };
    assert_eq!(picture(laptop), [true; 5]);
    assert_eq!(picture(phone), [true; 5]);

    configure(&net.gateway, r#"allow = ["laptop -> *", "phone -> nas:443"]"#);
    reload(&net.gateway, &gateway);
    assert_eq!(picture(laptop), [true; 5]);
    assert_eq!(picture(phone), [true, false, true, false, false], "443 of the nas and nothing else");
    assert!(!connects(nas, &format!("{WEB}:80")), "no rule speaks of the nas");
    assert!(answers(phone, INSIDE), "the gateway itself may be pinged");

    let config = home(&net.gateway).join("adit.toml");
    let text = fs::read_to_string(&config).unwrap();
    let rules =
        r#"allow = ["laptop -> *", "phone -> gateway:22/tcp", "phone -> 203.0.113.0/24", "phone -> nobody"]"#;
    fs::write(&config, text.replace(r#"allow = ["laptop -> *", "phone -> nas:443"]"#, rules)).unwrap();
    reload(&net.gateway, &gateway);
    assert_eq!(picture(phone), [false, false, false, true, true]);
    assert!(gateway.stderr().contains("names nobody, but no peer has this name"), "{}", gateway.stderr());
    stop_gateway(gateway);
}

/// A host in another network of the gateway, which is number 1 there; it is number 9.
fn beside(net: &Internet, addresses: impl Fn(u8) -> [String; 2]) -> Host {
    let neighbour = net.lab.host("neighbour").unwrap();
    let at = |host: &Host, interface: &str, number| {
        let [ipv4, ipv6] = addresses(number);
        End::new(host, interface).address(ipv4).address(ipv6)
    };
    net.lab.connect(at(&net.gateway, "eth1", 1), at(&neighbour, "eth0", 9)).unwrap();
    neighbour
}

#[test]
fn what_is_beside_the_gateway_is_out_of_reach_until_it_is_named() {
    let net = Internet::new("reachlan", 1);
    let client = &net.clients[0];
    let neighbour = beside(&net, |number| [format!("192.168.7.{number}/24"), format!("fd77::{number}/64")]);
    let _neighbour = listen(&neighbour, &[80]);
    let _gateway = listen(&net.gateway, &[22]);
    init(&net.gateway);
    let gateway = start_gateway(&net.gateway);
    let file = admit(&net.gateway, "tun-0", client, &[]);
    succeed(client, &["up", &file]);
    let picture = || ["192.168.7.9:80", "[fd77::9]:80", "192.168.7.1:22"].map(|at| connects(client, at));
    assert_eq!(picture(), [false; 3], "the LAN, over IPv6 too, and the gateway's own address in it");
    assert!(connects(client, &format!("{WEB}:80")) && connects(client, &format!("{INSIDE}:22")));

    configure(&net.gateway, r#"lan = ["192.168.7.0/24", "fd77::/64"]"#);
    reload(&net.gateway, &gateway);
    assert_eq!(picture(), [true; 3]);

    // A neighbour neither comes in nor passes for a client.
    neighbour.add_route("10.86.0.0/24 via 192.168.7.1").unwrap();
    let _client = listen(client, &[80]);
    assert!(connects(&net.gateway, "10.86.0.2:80"));
    assert!(!connects(&neighbour, "10.86.0.2:80"));
    stop_gateway(gateway);
}

#[test]
fn an_exposed_port_leads_to_a_client_from_outside_and_from_inside() {
    let net = Internet::new("reachexpose", 2);
    let [nas, other] = &net.clients[..] else { panic!("two clients") };
    init(&net.gateway);
    let gateway = start_gateway(&net.gateway);
    // The nas sends only the inside network into the tunnel, so a stranger's address would not find its way back.
    for (name, client) in [("nas", nas), ("other", other)] {
        let file =
            admit(&net.gateway, name, client, &["--split", "10.86.0.0/24", "--split", "fd86:ad17::/64"]);
        succeed(client, &["up", &file]);
        assert!(answers(client, INSIDE));
    }
    let _nas = listen(nas, &[8443]);
    let outside = [format!("{GATEWAY}:443"), format!("[{GATEWAY6}]:443")];
    let from_outside = || outside.clone().map(|at| connects(&net.web, &at));
    assert_eq!(from_outside(), [false; 2]);

    configure(&net.gateway, r#"expose = ["443 -> nas:8443"]"#);
    reload(&net.gateway, &gateway);
    assert_eq!(from_outside(), [true; 2]);
    assert!(!connects(&net.web, &format!("{GATEWAY}:8443")), "only the port that is named");
    net.router.add_route("10.86.0.0/24 via 198.51.100.2").unwrap();
    assert!(!connects(&net.router, "10.86.0.2:8443"), "only by the gateway's own address");

    let text = fs::read_to_string(home(&net.gateway).join("adit.toml")).unwrap();
    fs::write(home(&net.gateway).join("adit.toml"), text.replace("expose =", "# expose =")).unwrap();
    reload(&net.gateway, &gateway);
    assert_eq!(from_outside(), [false; 2]);
    stop_gateway(gateway);
}

#[test]
fn two_sites_reach_each_other_with_their_own_addresses() {
    let net = Internet::new("reachsites", 1);
    let (a, b) = (&net.gateway, &net.clients[0]);
    let hosts = ["a", "b"].map(|name| net.lab.host(&format!("site-{name}")).unwrap());
    for (number, (gateway, host)) in [a, b].into_iter().zip(&hosts).enumerate() {
        let end = |host: &Host, interface: &str, last: u8| {
            End::new(host, interface).address(format!("192.168.{}.{last}/24", 10 + number))
        };
        net.lab.connect(end(gateway, "lan0", 1), end(host, "eth0", 9)).unwrap();
        host.add_route(&format!("default via 192.168.{}.1", 10 + number)).unwrap();
    }
    init(a);
    succeed(b, &["init", "--endpoint", "10.100.0.2:51820", "--network", "10.87.0.0/24"]);
    // Each is a peer of the other; of the two only one needs a fixed place.
    let public = |host: &Host| {
        let text = fs::read_to_string(home(host).join("adit.toml")).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("private_key = ")).unwrap();
        let key = match line.trim_matches('"').strip_prefix("file:") {
            Some(path) => fs::read_to_string(home(host).join(path)).unwrap(),
            None => line.trim_matches('"').to_owned(),
        };
        host.command([ADIT, "pubkey"]).input(key).exec().unwrap().stdout.trim().to_owned()
    };
    let join = |host: &Host, number: u8, peer: &str, lease: &str, endpoint: &str| {
        configure(host, &format!("lan = [\"192.168.{}.0/24\"]", 10 + number));
        let path = home(host).join("adit.toml");
        let far = 11 - number;
        let text = fs::read_to_string(&path).unwrap();
        let section = format!(
            "\n[[peer]]\nname = \"far\"\npublic_key = \"{peer}\"\naddresses = [\"{lease}\"]\n\
             routes = [\"192.168.{far}.0/24\"]\nsuite = \"aes-256-gcm\"\n{endpoint}"
        );
        fs::write(&path, text + &section).unwrap();
    };
    join(a, 0, &public(b), "10.86.0.9", "");
    join(b, 1, &public(a), "10.87.0.9", &format!("endpoint = \"{GATEWAY}:51820\"\n"));
    let gateways = [start_gateway(a), start_gateway(b)];

    let [left, right] = &hosts;
    let seen = |from: &Host, to: &Host, at: &str| {
        let address: SocketAddr = at.parse().unwrap();
        let listener = on(to, || TcpListener::bind(address).unwrap());
        let stream = on(from, || TcpStream::connect_timeout(&address, Duration::from_secs(5)).unwrap());
        let caller = listener.accept().unwrap().1.ip().to_string();
        drop(stream);
        caller
    };
    // B knows the way; from then on both do.
    assert_eq!(seen(right, left, "192.168.10.9:80"), "192.168.11.9");
    assert_eq!(seen(left, right, "192.168.11.9:80"), "192.168.10.9");
    gateways.into_iter().for_each(stop_gateway);
}

const DOCKER: &str = "table ip filter {
    chain DOCKER { }
    chain DOCKER-USER { counter return; }
    chain FORWARD {
        type filter hook forward priority filter; policy drop;
        counter jump DOCKER-USER
        oifname \"docker0\" ct state related,established counter accept
        oifname \"docker0\" counter jump DOCKER
        iifname \"docker0\" oifname != \"docker0\" counter accept
    }
}
table ip nat {
    chain POSTROUTING {
        type nat hook postrouting priority srcnat; policy accept;
        oifname != \"docker0\" ip saddr 172.17.0.0/16 counter masquerade
    }
}
table ip6 filter {
    chain FORWARD { type filter hook forward priority filter; policy drop; }
}";

const UFW: &str = "table ip filter {
    chain ufw-before-forward { ct state related,established counter accept; }
    chain ufw-user-forward { }
    chain INPUT {
        type filter hook input priority filter; policy drop;
        iifname \"lo\" accept
        ct state related,established accept
        udp dport 51820 accept
        icmp type echo-request accept
    }
    chain FORWARD {
        type filter hook forward priority filter; policy drop;
        counter jump ufw-before-forward
        counter jump ufw-user-forward
    }
}
table ip6 filter {
    chain FORWARD { type filter hook forward priority filter; policy drop; }
}";

const FIREWALLD: &str = "table inet firewalld {
    chain filter_FWD_public { reject with icmpx admin-prohibited; }
    chain filter_FORWARD_ZONES { goto filter_FWD_public; }
    chain filter_FORWARD {
        type filter hook forward priority filter + 10; policy accept;
        ct state { established, related } accept
        ct status dnat accept
        iifname \"lo\" accept
        jump filter_FORWARD_ZONES
        ct state invalid drop
        reject with icmpx admin-prohibited
    }
}";

/// Every object of the host's ruleset but our own table and rules, as text; counters vary.
fn rules_of_others(host: &Host) -> Vec<String> {
    let text = host.exec(["nft", "-j", "list", "ruleset"]).unwrap().stdout;
    let ruleset: Value = serde_json::from_str(&text).unwrap();
    let is_ours = |it: &Value| {
        let inner = it.as_object().unwrap().values().next().unwrap();
        let table = inner["table"].as_str().or(inner["name"].as_str()).unwrap_or_default();
        table.starts_with("adit_") || inner["comment"] == "adit adit0"
    };
    let objects = ruleset["nftables"].as_array().unwrap().iter().filter(|it| !is_ours(it));
    objects.map(|it| without_counters(it.clone()).to_string()).collect()
}

fn without_counters(mut value: Value) -> Value {
    if let Some(statements) = value.pointer_mut("/rule/expr").and_then(Value::as_array_mut) {
        statements.retain(|it| it.get("counter").is_none());
    }
    value
}

#[test]
fn beside_the_rules_of_docker_ufw_and_firewalld_the_gateway_forwards_and_leaves_them_as_they_are() {
    let net = Internet::new("reachbeside", 1);
    let client = &net.clients[0];
    init(&net.gateway);
    let file = admit(&net.gateway, "tun-0", client, &[]);
    for (name, rules) in [("docker", DOCKER), ("ufw", UFW), ("firewalld", FIREWALLD)] {
        net.gateway.nft(rules).unwrap();
        let before = rules_of_others(&net.gateway);

        // What they do to a gateway that does not let itself through.
        let argv = [ADIT, "--home", &home(&net.gateway).display().to_string(), "gateway"];
        let command = net.gateway.command(argv).env("ADIT_GATEWAY_PASS_FIREWALLS", "false");
        let mut gateway = command.spawn().unwrap();
        gateway.wait_for_text("gateway ready", SOON).unwrap();
        assert!(gateway.stderr().contains("drops what is forwarded"), "{name}: {}", gateway.stderr());
        succeed(client, &["up", &file]);
        assert!(answers(client, INSIDE), "{name}");
        assert!(!connects(client, &format!("{WEB}:80")), "{name}");
        assert_eq!(rules_of_others(&net.gateway), before, "{name}");
        stop_gateway(gateway);

        let gateway = start_gateway(&net.gateway);
        wait_for("the session", Duration::from_secs(20), || answers(client, INSIDE).then_some(())).unwrap();
        assert_eq!(net.seen_from(client), [GATEWAY, GATEWAY6], "{name}");
        assert_eq!(rules_of_others(&net.gateway), before, "{name}: nothing of theirs is touched");
        reload(&net.gateway, &gateway);
        assert_eq!(net.seen_from(client), [GATEWAY, GATEWAY6], "{name}");
        succeed(client, &["down"]);
        stop_gateway(gateway);
        let text = net.gateway.exec(["nft", "list", "ruleset"]).unwrap().stdout;
        assert!(!text.contains("adit"), "{name}: {text}");
        assert_eq!(rules_of_others(&net.gateway), before, "{name}");
        net.gateway.nft("flush ruleset").unwrap();
    }
}

#[test]
fn a_firewall_that_is_reloaded_or_comes_later_lets_the_gateway_through_at_once() {
    let net = Internet::new("reachreload", 1);
    let client = &net.clients[0];
    init(&net.gateway);
    net.gateway.nft(UFW).unwrap();
    let gateway = start_gateway(&net.gateway);
    let file = admit(&net.gateway, "tun-0", client, &[]);
    succeed(client, &["up", &file]);
    let passes = || net.seen_from(client) == [GATEWAY, GATEWAY6];
    assert!(passes());
    let rules = || {
        let text = net.gateway.exec(["nft", "list", "ruleset"]).unwrap().stdout;
        text.matches("comment \"adit adit0\"").count()
    };
    assert_eq!(rules(), 4, "two for each IP version");

    // As a reload does: everything goes, and comes anew in the next transaction.
    let tables = ["ip filter", "ip6 filter"];
    for round in 0..3 {
        tables.iter().for_each(|table| net.gateway.nft(&format!("delete table {table}")).unwrap());
        net.gateway.nft(UFW).unwrap();
        wait_for("the rules to be back", SOON, || (rules() == 4).then_some(())).unwrap();
        assert!(passes(), "round {round}");
    }
    // In one transaction, so that there is never a moment without.
    let at_once: String = tables.iter().map(|table| format!("flush chain {table} FORWARD\n")).collect();
    net.gateway.nft(&at_once).unwrap();
    wait_for("the rules to be back", SOON, || (rules() == 4).then_some(())).unwrap();

    let before = rules();
    net.gateway.nft(FIREWALLD).unwrap();
    wait_for("a passage for the new one", SOON, || (rules() > before).then_some(())).unwrap();
    assert!(passes());
    let status = adit(&net.gateway, &["status", "--json"]).json().unwrap();
    assert!(status["host"]["repairs"].as_u64().unwrap() >= 4, "{status}");
    succeed(client, &["down"]);
    stop_gateway(gateway);
    assert_eq!(rules(), 0);
}

#[test]
fn a_killed_gateway_leaves_no_rule_of_its_own_in_the_chains_of_others() {
    let net = Internet::new("reachkilled", 0);
    init(&net.gateway);
    net.gateway.nft(UFW).unwrap();
    let before = rules_of_others(&net.gateway);
    let ours = || {
        let text = net.gateway.exec(["nft", "list", "ruleset"]).unwrap().stdout;
        text.matches("comment \"adit adit0\"").count()
    };
    let mut gateway = start_gateway(&net.gateway);
    assert_eq!(ours(), 4, "two for each IP version");
    gateway.crash();
    assert_eq!(ours(), 4);
    let gateway = start_gateway(&net.gateway);
    assert_eq!(ours(), 4, "taken back and made anew");
    stop_gateway(gateway);
    assert_eq!(ours(), 0);
    assert_eq!(rules_of_others(&net.gateway), before);
}

#[test]
fn the_gateways_own_network_is_out_of_reach_over_public_ipv6_too() {
    let net = Internet::new("reachgua", 1);
    let client = &net.clients[0];
    let neighbour =
        beside(&net, |number| [format!("192.0.2.{number}/26"), format!("2001:db8:50::{number}/64")]);
    for network in ["10.86.0.0/24 via 192.0.2.1", "fd86:ad17::/64 via 2001:db8:50::1"] {
        neighbour.add_route(network).unwrap();
    }
    let _neighbour = listen(&neighbour, &[80]);
    let _gateway = listen(&net.gateway, &[22]);
    init(&net.gateway);
    let gateway = start_gateway(&net.gateway);
    let file = admit(&net.gateway, "tun-0", client, &[]);
    succeed(client, &["up", &file]);
    let picture = || ["192.0.2.9:80", "[2001:db8:50::9]:80"].map(|at| connects(client, at));
    assert_eq!(picture(), [false; 2]);
    // Where the internet finds the gateway itself, its clients do; and the internet is no neighbour.
    for at in [format!("{GATEWAY}:22"), "[2001:db8:50::1]:22".to_owned(), format!("{WEB}:80")] {
        assert!(connects(client, &at), "{at}");
    }

    // A network that comes later is closed as well.
    neighbour.add_address("eth0", "2001:db8:60::9/64").unwrap();
    net.gateway.add_address("eth1", "2001:db8:60::1/64").unwrap();
    wait_for("the new network to be closed", SOON, || {
        let rules = net.gateway.exec(["nft", "list", "table", "inet", "adit_adit0"]).unwrap().stdout;
        rules.contains("2001:db8:60::/64").then_some(())
    })
    .unwrap();
    assert!(!connects(client, "[2001:db8:60::9]:80"));

    configure(&net.gateway, r#"lan = ["192.0.2.0/26", "2001:db8:50::/64", "2001:db8:60::/64"]"#);
    reload(&net.gateway, &gateway);
    assert_eq!(picture(), [true; 2]);
    assert!(connects(client, "[2001:db8:60::9]:80"));
    stop_gateway(gateway);
}
