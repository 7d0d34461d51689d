//! A split tunnel: by network, by name and by command; the resolver of a gateway; and a client whose way changes.

mod common;

use std::net::{Ipv4Addr, UdpSocket};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use adit_lab::pcap::Frame;
use adit_lab::{Capture, End, Host, Invocation, wait_for};

use common::internet::{
    GATEWAY, GATEWAY6, INSIDE, Internet, WEB, WEB6, adit, admit, home, init, kill_tunnel, peer_status,
    start_gateway, stop_gateway, succeed,
};
use common::names::serve_names_by;
use common::picture::Picture;
use common::{ADIT, SOON, on};

/// A second address of the web server, which `www.split.test` has.
const OTHER: &str = "203.0.113.81";
const OWN: &str = "10.100.0.2";
const OWN6: &str = "2001:db8:10::2";

fn caller(client: &Host, at: &str) -> String {
    let report = client.agent(["http-get", &format!("http://{at}/")]).exec().unwrap().json().unwrap();
    report["text"].as_str().unwrap().trim().to_owned()
}

/// Answers every question for an IPv4 address with [`OTHER`] below `split.test`, else with [`WEB`].
fn serve_names(host: &Host, at: &str) {
    let known = |name: &str| if name.ends_with("split.test") { OTHER } else { WEB }.to_owned();
    serve_names_by(host, at, known);
}

fn resolve(host: &Host, name: &str) -> String {
    let output = host.attempt(["getent", "ahostsv4", name]).unwrap();
    output.stdout.split_whitespace().next().unwrap_or_default().to_owned()
}

#[test]
fn networks_are_excluded_from_the_tunnel_or_are_the_only_ones_in_it() {
    let net = Internet::new("splitnets", 1);
    let client = &net.clients[0];
    net.web.add_address("eth0", &format!("{OTHER}/24")).unwrap();
    init(&net.gateway);
    let gateway = start_gateway(&net.gateway);
    let file = admit(&net.gateway, "tun-0", client, &[]);
    let seen = || [WEB, OTHER].map(|at| caller(client, at));
    let web6 = || caller(client, &format!("[{WEB6}]"));

    succeed(client, &["up", &file]);
    assert_eq!(seen(), [GATEWAY, GATEWAY]);
    succeed(client, &["down"]);

    succeed(client, &["up", "--exclude", OTHER, &file]);
    assert_eq!(seen(), [GATEWAY, OWN]);
    assert_eq!(web6(), GATEWAY6);
    succeed(client, &["down"]);

    succeed(client, &["up", "--exclude", &format!("{WEB}/31, 2001:db8:3::/48"), &file]);
    assert_eq!(seen(), [OWN, OWN]);
    assert_eq!(web6(), OWN6);
    succeed(client, &["down"]);

    succeed(client, &["up", "--include", OTHER, &file]);
    assert_eq!(seen(), [OWN, GATEWAY]);
    succeed(client, &["down"]);
    let rules = client.exec(["nft", "list", "ruleset"]).unwrap().stdout;
    assert!(!rules.contains("adit"), "{rules}");

    // Also where the tunnel takes some networks only.
    let text = std::fs::read_to_string(&file).unwrap();
    let everything = text.lines().find(|line| line.starts_with("AllowedIPs")).unwrap();
    std::fs::write(&file, text.replace(everything, "AllowedIPs = 10.86.0.0/24, 203.0.113.0/25")).unwrap();
    succeed(client, &["up", &file]);
    assert_eq!(seen(), [GATEWAY, GATEWAY]);
    succeed(client, &["down"]);
    succeed(client, &["up", "--exclude", OTHER, &file]);
    assert_eq!(seen(), [GATEWAY, OWN]);
    let status = adit(client, &["status"]).stdout;
    assert!(status.contains("beside") && status.contains(OTHER), "{status}");
    let told = adit(client, &["status", "--json"]).json().unwrap();
    assert_eq!(told["host"]["split"]["exclude"], serde_json::json!([format!("{OTHER}/32")]));
    succeed(client, &["down"]);
    let plan = adit(client, &["plan", "up", "--exclude", OTHER, &file]).stdout;
    assert!(plan.contains("adit_split_tun-0") && plan.contains(OTHER), "{plan}");
    std::fs::write(&file, text).unwrap();

    let wrong = adit(client, &["up", "--exclude", "10.0.0.300", &file]);
    assert!(
        wrong.code() != Some(0) && wrong.stderr.contains("neither a network nor a domain"),
        "{}",
        wrong.stderr
    );
    stop_gateway(gateway);
}

#[test]
fn names_are_excluded_from_the_tunnel_or_are_the_only_ones_in_it() {
    let net = Internet::new("splitnames", 1);
    let client = &net.clients[0];
    net.web.add_address("eth0", &format!("{OTHER}/24")).unwrap();
    serve_names(&net.web, &format!("{WEB}:53"));
    client.set_resolv_conf(&format!("nameserver {WEB}\n")).unwrap();
    init(&net.gateway);
    let gateway = start_gateway(&net.gateway);
    let file = admit(&net.gateway, "tun-0", client, &["--dns", WEB]);
    let seen = || [WEB, OTHER].map(|at| caller(client, at));

    succeed(client, &["up", "--exclude", "split.test", &file]);
    assert_eq!(seen(), [GATEWAY, GATEWAY], "nobody has asked for the name");
    assert_eq!(resolve(client, "www.split.test"), OTHER);
    assert_eq!(resolve(client, "www.example.test"), WEB);
    assert_eq!(seen(), [GATEWAY, OWN], "from the answer on");
    let elements =
        client.exec(["nft", "list", "set", "inet", "adit_split_tun-0", "outside4"]).unwrap().stdout;
    assert!(elements.contains(&format!("{OTHER} timeout")), "with the time of the answer: {elements}");
    succeed(client, &["down"]);

    succeed(client, &["up", "--include", "split.test", &file]);
    assert_eq!(resolve(client, "www.split.test"), OTHER);
    assert_eq!(resolve(client, "www.example.test"), WEB);
    assert_eq!(seen(), [OWN, GATEWAY]);
    succeed(client, &["down"]);
    assert_eq!(resolve(client, "www.split.test"), OTHER, "the host's own resolver is back");
    stop_gateway(gateway);
}

#[test]
fn a_gateway_answers_dns_questions_of_its_clients_and_of_nobody_else() {
    let net = Internet::new("splitdns", 1);
    let client = &net.clients[0];
    serve_names(&net.web, &format!("{WEB}:53"));
    init(&net.gateway);
    let config = home(&net.gateway).join("adit.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("[gateway]\n", &format!("[gateway]\ndns = [\"{WEB}\"]\n"))).unwrap();
    let gateway = start_gateway(&net.gateway);
    let file = admit(&net.gateway, "tun-0", client, &[]);
    assert!(std::fs::read_to_string(&file).unwrap().contains(&format!("DNS = {INSIDE}")));
    succeed(client, &["up", &file]);
    wait_for("an answer", SOON, || (resolve(client, "www.split.test") == OTHER).then_some(())).unwrap();
    let asks = |host: &Host, server: &str| {
        let socket = on(host, || UdpSocket::bind("0.0.0.0:0").unwrap());
        socket.set_read_timeout(Some(Duration::from_millis(1_500))).unwrap();
        let question = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01a\x04test\x00\x00\x01\x00\x01";
        socket.send_to(question, (server, 53)).unwrap();
        socket.recv(&mut [0; 512]).is_ok()
    };
    assert!(asks(client, INSIDE));
    assert!(!asks(&net.router, GATEWAY));
    net.router.add_route(&format!("{INSIDE}/32 via {GATEWAY}")).unwrap();
    assert!(!asks(&net.router, INSIDE), "it is no resolver for the internet");
    stop_gateway(gateway);
}

/// `adit` with the control groups of this machine, which `ip netns exec` hides.
fn with_groups(host: &Host, arguments: &[&str]) -> Invocation {
    let network = format!("--net=/run/netns/{}", host.namespace());
    let home = home(host).display().to_string();
    Invocation::new(["nsenter", &network, ADIT, "--home", &home].into_iter().chain(arguments.iter().copied()))
}

/// The control groups that adit made for `interface`.
fn groups_of(interface: &str) -> Vec<std::path::PathBuf> {
    let roots = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
    let entries = roots.iter().filter_map(|root| std::fs::read_dir(root).ok()).flatten().flatten();
    let is_ours = |name: &str| name.starts_with(&format!("adit-beside-{interface}-"));
    entries.map(|it| it.path()).filter(|path| is_ours(&path.file_name().unwrap().to_string_lossy())).collect()
}

#[test]
fn a_command_goes_beside_the_tunnel_past_its_kill_switch_and_the_others_do_not() {
    let net = Internet::new("splitcmd", 1);
    let client = &net.clients[0];
    init(&net.gateway);
    let gateway = start_gateway(&net.gateway);
    let file = admit(&net.gateway, "splitcmd0", client, &[]);
    let before = Picture::of(client);
    let url = format!("http://{WEB}/");
    let none = with_groups(client, &["exclude", "--", "true"]).attempt().unwrap();
    assert!(none.code() == Some(1) && none.stderr.contains("no tunnel is up"), "{}", none.stderr);
    with_groups(client, &["up", &file]).exec().unwrap();
    assert!(groups_of("splitcmd0").is_empty(), "nobody has asked for one");
    let status = with_groups(client, &["status", "--json"]).exec().unwrap().json().unwrap();
    assert_eq!(status["host"]["kill_switch"], true);
    assert_eq!(caller(client, WEB), GATEWAY);

    let seen_by = |url: &str| {
        let excluded = ["exclude", "--", ADIT, "lab", "http-get", url];
        let report = with_groups(client, &excluded).exec().unwrap().json().unwrap();
        report["text"].as_str().unwrap().trim().to_owned()
    };
    let url6 = format!("http://[{WEB6}]/");
    assert_eq!([seen_by(&url), seen_by(&url6)], [OWN, OWN6]);
    let failed = with_groups(client, &["exclude", "--", "sh", "-c", "exit 7"]).attempt().unwrap();
    assert_eq!(failed.code(), Some(7), "the exit code is the command's");
    let missing = with_groups(client, &["exclude", "splitcmd0", "--", "no-such-program"]).attempt().unwrap();
    assert!(missing.code() == Some(1) && missing.stderr.contains("no-such-program"), "{}", missing.stderr);
    assert_eq!([caller(client, WEB), caller(client, &format!("[{WEB6}]"))], [GATEWAY, GATEWAY6]);

    client.nft("delete table inet adit_beside_splitcmd0").unwrap();
    wait_for("the table to be made again", SOON, || (seen_by(&url) == OWN).then_some(())).unwrap();

    // One that lives longer than the tunnel goes on.
    let mut sleeper = with_groups(client, &["exclude", "--", "sleep", "60"]).spawn().unwrap();
    let groups = groups_of("splitcmd0");
    assert_eq!(groups.len(), 1);
    let members = || std::fs::read_to_string(groups[0].join("cgroup.procs")).unwrap();
    wait_for("the process to join", SOON, || (!members().is_empty()).then_some(())).unwrap();
    kill_tunnel(client, "splitcmd0");
    with_groups(client, &["down"]).exec().unwrap();
    assert!(groups_of("splitcmd0").is_empty());
    assert!(sleeper.ended().is_none());
    sleeper.end();
    before.assert_again(client);
    stop_gateway(gateway);
}

#[test]
fn where_processes_cannot_be_told_apart_that_is_said_and_nothing_is_changed() {
    let net = Internet::new("splitnocg", 1);
    let client = &net.clients[0];
    init(&net.gateway);
    let gateway = start_gateway(&net.gateway);
    let file = admit(&net.gateway, "splitnocg0", client, &[]);
    // `ip netns exec` hides the control groups of the machine.
    succeed(client, &["up", &file]);
    let up = Picture::of(client);
    let refused = adit(client, &["exclude", "--", "true"]);
    assert!(refused.code() == Some(1) && refused.stderr.contains("no cgroup v2"), "{}", refused.stderr);
    up.assert_again(client);
    assert_eq!(caller(client, WEB), GATEWAY);
    succeed(client, &["down"]);
    stop_gateway(gateway);
}

/// A second way from the client to the internet.
fn second_way(net: &Internet) {
    let end = |host: &Host, interface: &str, last: u8| {
        End::new(host, interface).address(format!("10.200.0.{last}/24"))
    };
    net.lab.connect(end(&net.clients[0], "eth1", 2), end(&net.router, "second", 1)).unwrap();
}

#[test]
fn a_client_that_only_receives_is_found_on_its_new_way_at_once() {
    let net = Internet::new("splitroam", 1);
    let client = &net.clients[0];
    second_way(&net);
    init(&net.gateway);
    let gateway = start_gateway(&net.gateway);
    let file = admit(&net.gateway, "tun-0", client, &[]);
    client.add_route("default via 10.200.0.1 dev eth1 metric 500").unwrap();
    succeed(client, &["up", &file]);
    // Only the gateway sends, so only the client itself can say that it has moved.
    let source = ["udp-send", "10.86.0.2:7777", "100000", "--interval-us", "10000"];
    let _source = net.gateway.agent(source).spawn().unwrap();
    let _sink = on(client, || UdpSocket::bind("10.86.0.2:7777").unwrap());
    let capture = Capture::start(client, "tun-0").unwrap();
    thread::sleep(Duration::from_millis(500));
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let endpoint = || peer_status(&net.gateway, "tun-0")["endpoint"].as_str().unwrap_or_default().to_owned();
    let mut changes = Vec::new();
    for round in 0..6 {
        let before = now();
        let address = match round % 2 {
            0 => {
                client.ip(["link", "set", "eth0", "down"]).unwrap();
                "10.200.0.2"
            }
            _ => {
                client.ip(["link", "set", "eth0", "up"]).unwrap();
                client.add_route("default via 10.100.0.1 dev eth0").unwrap();
                OWN
            }
        };
        wait_for("the gateway to follow", Duration::from_secs(20), || {
            endpoint().starts_with(address).then_some(())
        })
        .unwrap();
        thread::sleep(Duration::from_millis(400));
        changes.push((before, now()));
    }
    let frames = capture.stop().unwrap();
    // What was lost in each change: the longest time in which nothing came by the tunnel, of packets 10 ms apart.
    let silence = |(from, to): &(Duration, Duration)| {
        let times: Vec<_> = frames.iter().map(|it| it.time).filter(|it| (*from..*to).contains(it)).collect();
        times.windows(2).map(|pair| (pair[1] - pair[0]).as_millis()).max().unwrap_or(u128::MAX)
    };
    let mut lost: Vec<u128> = changes.iter().step_by(2).map(silence).collect();
    let gained: Vec<u128> = changes.iter().skip(1).step_by(2).map(silence).collect();
    println!("silent for {lost:?} ms after the link went, {gained:?} ms after a better one came");
    lost.sort_unstable();
    // The tick that looks without an event comes every five seconds.
    assert!(lost[1] < 2_000, "{lost:?}");
    stop_gateway(gateway);
}

#[test]
fn a_gateway_that_moves_is_found_by_its_name_past_the_kill_switch() {
    let net = Internet::new("splitmove", 1);
    let client = &net.clients[0];
    const MOVED: &str = "198.51.100.3";
    let place = Arc::new(Mutex::new(GATEWAY));
    let told = Arc::clone(&place);
    serve_names_by(&net.web, &format!("{WEB}:53"), move |_| (*told.lock().unwrap()).to_owned());
    client.set_resolv_conf(&format!("nameserver {WEB}\n")).unwrap();
    init(&net.gateway);
    let gateway = start_gateway(&net.gateway);
    let file = admit(&net.gateway, "tun-0", client, &["--dns", INSIDE]);
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace(&format!("{GATEWAY}:"), "gateway.test:")).unwrap();
    succeed(client, &["up", "--carrier", "udp", &file]);
    assert_eq!(caller(client, WEB), GATEWAY);
    assert_eq!(resolve(client, "gateway.test"), "", "the host itself asks inside, where nobody answers");

    *place.lock().unwrap() = MOVED;
    net.gateway.add_address("eth0", &format!("{MOVED}/24")).unwrap();
    net.gateway.ip(["addr", "del", &format!("{GATEWAY}/24"), "dev", "eth0"]).unwrap();
    net.gateway.add_address("eth0", &format!("{MOVED}/24")).ok();
    net.gateway.add_route("default via 198.51.100.1").ok();
    let answers = || client.ping(INSIDE, 1).is_ok_and(|it| it == 1);
    assert!(!answers(), "it is gone from where it was");
    let since = Instant::now();
    wait_for("the gateway to be found", Duration::from_secs(90), || answers().then_some(())).unwrap();
    println!("found again after {} ms", since.elapsed().as_millis());
    let status = adit(client, &["status", "--json"]).json().unwrap();
    let endpoint = status["peers"][0]["endpoint"].as_str().unwrap();
    assert!(endpoint.starts_with(MOVED), "{status}");
    stop_gateway(gateway);
}

/// The largest segment that the first SYN in `frames` to `port` allows.
fn segment_size(frames: &[Frame], port: u16) -> Option<u16> {
    let is_syn = |tcp: &&[u8]| tcp.len() >= 24 && tcp[2..4] == port.to_be_bytes() && tcp[13] & 0x12 == 0x02;
    let tcp = frames.iter().filter(|it| it.bytes.first() == Some(&0x45)).filter_map(|it| it.bytes.get(20..));
    tcp.filter(is_syn).find_map(|tcp| (tcp[20..22] == [2, 4]).then(|| u16::from_be_bytes([tcp[22], tcp[23]])))
}

#[test]
fn a_client_that_passes_packets_on_keeps_their_connections_to_what_fits() {
    let net = Internet::new("splitmss", 1);
    let client = &net.clients[0];
    let machine = net.lab.host("machine").unwrap();
    let end = |host: &Host, interface: &str, last: u8| {
        End::new(host, interface).address(format!("192.168.77.{last}/24"))
    };
    net.lab.connect(end(&machine, "eth0", 2), end(client, "lan0", 1)).unwrap();
    machine.add_route("default via 192.168.77.1").unwrap();
    init(&net.gateway);
    let gateway = start_gateway(&net.gateway);
    let file = admit(&net.gateway, "tun-0", client, &[]);
    succeed(client, &["up", "--allow-lan", &file]);
    let has_table = || client.exec(["nft", "list", "tables"]).unwrap().stdout.contains("adit_mss_tun-0");
    assert!(!has_table(), "this host passes nothing on");

    // As a container runtime does it, while the tunnel is up.
    client.set_sysctl("net.ipv4.ip_forward", "1").unwrap();
    let machines = "table ip machines {\nchain out {\ntype nat hook postrouting priority srcnat;\noifname \"tun-0\" \
                    masquerade\n}\n}";
    client.nft(machines).unwrap();
    wait_for("the host to be seen to forward", Duration::from_secs(30), || has_table().then_some(()))
        .unwrap();
    let capture = Capture::start(&net.gateway, "adit0").unwrap();
    assert_eq!(caller(&machine, WEB), GATEWAY);
    let size = segment_size(&capture.stop().unwrap(), 80).unwrap();
    assert_eq!(size, 1_420 - 40, "the machine itself would take 1,460");
    succeed(client, &["down"]);
    assert!(!has_table());
    let plan = adit(client, &["plan", "up", &file]).stdout;
    assert!(plan.contains("adit_mss_tun-0"), "{plan}");
    stop_gateway(gateway);
}

/// The addresses of names that go beside the tunnel.
fn noted(client: &Host) -> String {
    client.exec(["nft", "list", "set", "inet", "adit_split_tun-0", "outside4"]).unwrap().stdout
}

#[test]
fn a_forged_answer_for_an_excluded_name_leads_nothing_out_that_belongs_inside() {
    let net = Internet::new("splitforged", 1);
    let client = &net.clients[0];
    let known = |name: &str| match name {
        "inside.bank.test" => INSIDE.to_owned(),
        "gateway.bank.test" => GATEWAY.to_owned(),
        _ => OTHER.to_owned(),
    };
    serve_names_by(&net.web, &format!("{WEB}:53"), known);
    client.set_resolv_conf(&format!("nameserver {WEB}\n")).unwrap();
    init(&net.gateway);
    let gateway = start_gateway(&net.gateway);
    let file = admit(&net.gateway, "tun-0", client, &["--dns", WEB]);
    succeed(client, &["up", "--exclude", "bank.test", &file]);
    assert_eq!(resolve(client, "www.bank.test"), OTHER);
    assert_eq!(resolve(client, "inside.bank.test"), INSIDE);
    assert_eq!(resolve(client, "gateway.bank.test"), GATEWAY);
    let noted = noted(client);
    assert!(noted.contains(OTHER), "an honest answer counts: {noted}");
    assert!(!noted.contains(INSIDE) && !noted.contains(GATEWAY), "{noted}");
    let capture = Capture::start(&net.router, "client-0").unwrap();
    assert_eq!(client.ping(INSIDE, 3).unwrap(), 3, "it is reached through the tunnel");
    let target: Ipv4Addr = INSIDE.parse().unwrap();
    let is_to_inside = |frame: &&Frame| frame.bytes.get(30..34) == Some(&target.octets()[..]);
    assert_eq!(capture.stop().unwrap().iter().filter(is_to_inside).count(), 0);
    succeed(client, &["down"]);
    stop_gateway(gateway);
}

#[test]
fn under_the_kill_switch_others_behind_the_client_are_parted_too_and_names_are_not_asked_outside() {
    let net = Internet::new("splitbehind", 1);
    let client = &net.clients[0];
    net.web.add_address("eth0", &format!("{OTHER}/24")).unwrap();
    serve_names(&net.web, &format!("{OTHER}:53"));
    let machine = net.lab.host("machine").unwrap();
    let end = |host: &Host, interface: &str, last: u8| {
        End::new(host, interface).address(format!("172.31.7.{last}/24"))
    };
    net.lab.connect(end(&machine, "eth0", 2), end(client, "docker0", 1)).unwrap();
    machine.add_route("default via 172.31.7.1").unwrap();
    client.set_sysctl("net.ipv4.ip_forward", "1").unwrap();
    let containers = "table ip containers {\nchain out {\ntype nat hook postrouting priority srcnat;\n\
                      ip saddr 172.31.7.0/24 masquerade\n}\n}";
    client.nft(containers).unwrap();
    init(&net.gateway);
    let gateway = start_gateway(&net.gateway);
    let file = admit(&net.gateway, "tun-0", client, &[]);
    let asks = |host: &Host| {
        let socket = on(host, || UdpSocket::bind("0.0.0.0:0").unwrap());
        socket.set_read_timeout(Some(Duration::from_millis(1_500))).unwrap();
        let question = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01a\x04test\x00\x00\x01\x00\x01";
        let sent = socket.send_to(question, (OTHER, 53)).is_ok();
        sent && socket.recv(&mut [0; 512]).is_ok()
    };
    let asked_outside = |host: &Host| {
        let capture = Capture::start(&net.router, "client-0").unwrap();
        asks(host);
        let frames = capture.stop().unwrap();
        let target: Ipv4Addr = OTHER.parse().unwrap();
        frames.iter().any(|it| it.bytes.get(30..34) == Some(&target.octets()[..]))
    };

    succeed(client, &["up", "--allow-lan", "--exclude", OTHER, &file]);
    for host in [client, &machine] {
        assert_eq!(caller(host, WEB), GATEWAY, "the others go through it");
        assert_eq!(caller(host, OTHER), OWN, "what is excluded goes beside it");
        assert!(!asked_outside(host), "names are asked inside, whatever is excluded");
    }
    succeed(client, &["down"]);
    // Where there is no kill switch, what is excluded is so for DNS too.
    succeed(client, &["up", "--kill-switch", "off", "--exclude", OTHER, &file]);
    assert!(asked_outside(client) && asked_outside(&machine));
    succeed(client, &["down"]);
    stop_gateway(gateway);
}
