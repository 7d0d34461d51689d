//! `adit gateway`, `up`, `down` and `status` as people run them: what they change on a host, how they
//! end, and what is left when they are killed.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use adit_lab::{End, Host, Lab, Output, Process, wait_for};
use serde_json::Value;

const ADIT: &str = env!("CARGO_BIN_EXE_adit");
const SOON: Duration = Duration::from_secs(10);

/// A gateway at 198.51.100.1 and a client at 203.0.113.2 with a router between.
struct Net {
    lab: Lab,
    gateway: Host,
    client: Host,
}

fn net(name: &str) -> Net {
    let lab = Lab::new(name).unwrap();
    let (gateway, client, router) =
        (lab.host("gateway").unwrap(), lab.host("client").unwrap(), lab.host("router").unwrap());
    let end = |host: &Host, interface: &str, address: &str| End::new(host, interface).address(address);
    lab.connect(end(&gateway, "eth0", "198.51.100.1/24"), end(&router, "eth0", "198.51.100.254/24")).unwrap();
    lab.connect(end(&client, "eth0", "203.0.113.2/24"), end(&router, "eth1", "203.0.113.254/24")).unwrap();
    router.enable_forwarding().unwrap();
    gateway.add_route("default via 198.51.100.254").unwrap();
    client.add_route("default via 203.0.113.254").unwrap();
    Net { lab, gateway, client }
}

fn home(host: &Host) -> String {
    host.directory().join("home").display().to_string()
}

fn adit(host: &Host, arguments: &[&str]) -> Output {
    host.attempt([&[ADIT, "--home", &home(host)], arguments].concat()).unwrap()
}

fn succeed(host: &Host, arguments: &[&str]) -> Output {
    let output = adit(host, arguments);
    assert!(output.ok(), "{arguments:?}: {}", output.stderr);
    output
}

fn init(gateway: &Host) {
    succeed(gateway, &["init", "--endpoint", "198.51.100.1:51820", "--network6", "fd00:86::/64"]);
}

/// Adds a peer to the gateway and gives its file to `host`, as `NAME.conf`.
fn add_peer(gateway: &Host, name: &str, host: &Host, arguments: &[&str]) -> String {
    let file = succeed(gateway, &[&["peer", "add", name], arguments].concat()).stdout;
    private_file(host, name, &file)
}

fn private_file(host: &Host, name: &str, text: &str) -> String {
    let path = host.write(&format!("{name}.conf"), text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path.display().to_string()
}

fn start_gateway(gateway: &Host) -> Process {
    let mut process = gateway.spawn([ADIT, "--home", &home(gateway), "gateway"]).unwrap();
    process.wait_for_text("gateway ready", SOON).unwrap();
    process
}

fn status(host: &Host) -> Value {
    succeed(host, &["status", "--json"]).json().unwrap()
}

/// Everything about a host that a service may change, as text.
fn picture(host: &Host) -> String {
    let mut picture = String::new();
    for command in [
        &["ip", "-o", "addr"][..],
        &["ip", "route", "show", "table", "all"],
        &["ip", "-6", "route", "show", "table", "all"],
        &["ip", "rule"],
        &["ip", "-6", "rule"],
        &["nft", "list", "ruleset"],
        &["cat", "/etc/resolv.conf"],
        &[
            "sysctl",
            "net.ipv4.ip_forward",
            "net.ipv6.conf.all.forwarding",
            "net.ipv4.conf.all.src_valid_mark",
        ],
    ] {
        picture.push_str(&host.attempt(command.iter().copied()).unwrap().stdout);
    }
    picture
}

fn pid_of(host: &Host, interface: &str) -> u32 {
    let path = Path::new(&home(host)).join("run").join(format!("{interface}.pid"));
    fs::read_to_string(path).unwrap().trim().parse().unwrap()
}

fn kill(host: &Host, pid: u32) {
    host.exec(["kill", "-9", &pid.to_string()]).unwrap();
    wait_for("the killed process", SOON, || (!Path::new(&format!("/proc/{pid}")).exists()).then_some(()))
        .unwrap();
}

#[test]
fn a_full_tunnel_comes_up_carries_both_families_and_leaves_no_trace() {
    for suite in ["aes-256-gcm", "chacha20-poly1305"] {
        let net = net("svcfull");
        let (before_gateway, before_client) = (picture(&net.gateway), picture(&net.client));
        init(&net.gateway);
        let file = add_peer(&net.gateway, "laptop", &net.client, &["--suite", suite]);
        let mut gateway = start_gateway(&net.gateway);
        succeed(&net.client, &["up", &file]);

        let report = status(&net.client);
        assert_eq!((&report["schema"], &report["role"]), (&1.into(), &"client".into()));
        let peer = &report["peers"][0];
        assert_eq!((&peer["suite"], &peer["endpoint"]), (&suite.into(), &"198.51.100.1:51820".into()));
        assert!(
            peer["last_handshake_secs_ago"].as_u64().unwrap() < 5,
            "the handshake is done when `up` returns"
        );
        let report = status(&net.gateway);
        assert_eq!((&report["role"], &report["peers"][0]["name"]), (&"gateway".into(), &"laptop".into()));
        assert_eq!(net.client.ping("10.86.0.1", 3).unwrap(), 3);
        assert_eq!(net.client.ping("fd00:86::1", 3).unwrap(), 3);
        assert_eq!(net.gateway.ping("10.86.0.2", 3).unwrap(), 3);
        assert_eq!(net.client.ping("198.51.100.254", 3).unwrap(), 3, "masqueraded");
        assert_eq!(net.client.route_to("192.0.2.99").unwrap()["dev"], "laptop");
        assert_ne!(picture(&net.client), before_client);

        assert_eq!(succeed(&net.client, &["down"]).stderr, "laptop is down\n");
        gateway.terminate();
        assert_eq!(gateway.wait(SOON).unwrap().code(), Some(0));
        assert_eq!(picture(&net.client), before_client);
        assert_eq!(picture(&net.gateway), before_gateway);
        wait_for("every process to end", SOON, || net.lab.processes().is_empty().then_some(())).unwrap();
    }
}

#[test]
fn a_killed_client_is_cleaned_up_after_by_down_and_by_the_next_up() {
    let net = net("svckill");
    init(&net.gateway);
    let file = add_peer(&net.gateway, "laptop", &net.client, &[]);
    let _gateway = start_gateway(&net.gateway);
    let before = picture(&net.client);

    succeed(&net.client, &["up", &file]);
    kill(&net.client, pid_of(&net.client, "laptop"));
    assert_ne!(picture(&net.client), before, "a killed process undoes nothing");
    let told = adit(&net.client, &["status"]);
    assert_eq!(told.code(), Some(1));
    assert!(told.stdout.contains("laptop was killed; `adit down laptop --home "), "{}", told.stdout);
    let told: Value = adit(&net.client, &["status", "--json"]).json().unwrap();
    assert_eq!(told["killed"], serde_json::json!(["laptop"]));
    assert!(succeed(&net.client, &["down"]).stderr.contains("had been killed"));
    assert_eq!(picture(&net.client), before);
    assert_eq!(adit(&net.client, &["down"]).code(), Some(1), "twice is an error");

    succeed(&net.client, &["up", &file]);
    kill(&net.client, pid_of(&net.client, "laptop"));
    succeed(&net.client, &["up", &file]);
    assert_eq!(net.client.ping("10.86.0.1", 2).unwrap(), 2);
    assert_eq!(
        net.client
            .ip(["route", "show", "table", "all"])
            .unwrap()
            .stdout
            .matches("unreachable default")
            .count(),
        2
    );
    succeed(&net.client, &["down", &file]);
    assert_eq!(picture(&net.client), before);
}

#[test]
fn a_killed_gateway_comes_back_to_its_clients_at_once() {
    let net = net("svcback");
    init(&net.gateway);
    let file = add_peer(&net.gateway, "laptop", &net.client, &[]);
    let before = picture(&net.gateway);
    let mut gateway = start_gateway(&net.gateway);
    succeed(&net.client, &["up", &file]);
    assert_eq!(net.client.ping("10.86.0.1", 1).unwrap(), 1);
    let remembered = Path::new(&home(&net.gateway)).join("state/endpoints.json");
    wait_for("the endpoint to be written down", SOON, || remembered.exists().then_some(())).unwrap();
    gateway.crash();

    let mut gateway = start_gateway(&net.gateway);
    let started = Instant::now();
    wait_for("a new session", SOON, || {
        status(&net.gateway)["peers"][0]["has_session"].as_bool().filter(|yes| *yes)
    })
    .unwrap();
    assert!(started.elapsed() < Duration::from_secs(3), "long before the client notices by itself");
    assert_eq!(net.client.ping("10.86.0.1", 2).unwrap(), 2);
    succeed(&net.client, &["down"]);
    gateway.terminate();
    gateway.wait(SOON).unwrap();
    assert_eq!(picture(&net.gateway), before);
}

#[test]
fn a_reload_changes_what_differs_and_cuts_no_other_session() {
    let net = net("svcload");
    init(&net.gateway);
    let file = add_peer(&net.gateway, "laptop", &net.client, &[]);
    let gateway = start_gateway(&net.gateway);
    succeed(&net.client, &["up", &file]);
    let handshakes = || gateway.stderr().matches("session established").count();
    assert_eq!(handshakes(), 1);

    add_peer(&net.gateway, "phone", &net.client, &[]);
    assert_eq!(status(&net.gateway)["peers"][1]["name"], "phone");
    assert_eq!(net.client.ping("10.86.0.1", 2).unwrap(), 2);
    assert_eq!(handshakes(), 1, "the session of the laptop is the one from before");

    let config = Path::new(&home(&net.gateway)).join("adit.toml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("[gateway]", "[gateway]\nnonsense = 1")).unwrap();
    net.gateway.exec(["kill", "-HUP", &gateway.id().to_string()]).unwrap();
    wait_for("the refusal", SOON, || gateway.stderr().contains("stays as it was").then_some(())).unwrap();
    assert_eq!(net.client.ping("10.86.0.1", 1).unwrap(), 1);
    fs::write(&config, text).unwrap();

    succeed(&net.gateway, &["peer", "rm", "laptop"]);
    assert_eq!(status(&net.gateway)["peers"][0]["name"], "phone");
    assert_eq!(net.client.ping("10.86.0.1", 1).unwrap(), 0, "a removed peer is cut off at once");
}

#[test]
fn a_gateway_that_still_lets_a_removed_peer_in_makes_the_removal_fail() {
    let net = net("svcrm");
    init(&net.gateway);
    let file = add_peer(&net.gateway, "laptop", &net.client, &[]);
    add_peer(&net.gateway, "phone", &net.client, &[]);
    let mut gateway =
        net.gateway.spawn([ADIT, "--home", &home(&net.gateway), "gateway", "--interface", "other0"]).unwrap();
    gateway.wait_for_text("gateway ready", SOON).unwrap();
    succeed(&net.client, &["up", &file]);
    assert_eq!(net.client.ping("10.86.0.1", 1).unwrap(), 1);
    let removed = succeed(&net.gateway, &["peer", "rm", "laptop"]);
    assert!(removed.stderr.contains("other0 has it: removed: laptop"), "{}", removed.stderr);
    assert_eq!(net.client.ping("10.86.0.1", 1).unwrap(), 0, "a removed peer is cut off");

    let socket = Path::new(&home(&net.gateway)).join("run/other0.sock");
    fs::rename(&socket, socket.with_extension("away")).unwrap();
    let failed = adit(&net.gateway, &["peer", "rm", "phone"]);
    assert_eq!(failed.code(), Some(1), "{}", failed.stderr);
    for word in ["other0 did not take it", "may still connect", "restart that gateway"] {
        assert!(failed.stderr.contains(word), "{word:?} is missing in: {}", failed.stderr);
    }
    let added = adit(&net.gateway, &["peer", "add", "tablet"]);
    assert!(added.ok() && added.stderr.contains("warning: the running gateway other0"), "{}", added.stderr);
    gateway.terminate();
    assert_eq!(gateway.wait(SOON).unwrap().code(), Some(0));
    succeed(&net.gateway, &["peer", "rm", "tablet"]);
}

#[test]
fn where_ipv6_is_off_the_tunnel_carries_ipv4_and_says_so() {
    let net = net("svcno6");
    for host in [&net.gateway, &net.client] {
        host.exec(["sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1"]).unwrap();
    }
    let own = net.client.directory().join("own").display().to_string();
    let own = net.client.attempt([ADIT, "--home", &own, "init", "--endpoint", "198.51.100.1:51820"]).unwrap();
    assert!(own.ok() && own.stdout.contains("left out: IPv6 is off on this host"), "{own:?}");
    init(&net.gateway);
    let (before_gateway, before_client) = (picture(&net.gateway), picture(&net.client));
    let file = add_peer(&net.gateway, "laptop", &net.client, &[]);
    let mut gateway = start_gateway(&net.gateway);
    assert!(gateway.stderr().contains("the gateway carries IPv4 only"), "{}", gateway.stderr());
    let up = succeed(&net.client, &["up", &file]);
    assert!(up.stderr.contains("the tunnel carries IPv4 only"), "{}", up.stderr);
    assert_eq!(net.client.ping("10.86.0.1", 2).unwrap(), 2);
    assert_eq!(net.client.ping("198.51.100.254", 2).unwrap(), 2, "masqueraded");
    succeed(&net.client, &["down"]);
    gateway.terminate();
    assert_eq!(gateway.wait(SOON).unwrap().code(), Some(0));
    assert_eq!((picture(&net.gateway), picture(&net.client)), (before_gateway, before_client));
}

#[test]
fn two_gateways_of_one_home_refuse_and_of_two_homes_do_not() {
    let net = net("svctwo");
    init(&net.gateway);
    let _gateway = start_gateway(&net.gateway);
    let second = adit(&net.gateway, &["gateway"]);
    assert_eq!(second.code(), Some(1));
    assert!(second.stderr.contains("already running"), "{}", second.stderr);
    assert_eq!(second.stderr.lines().count(), 1, "{}", second.stderr);
    assert!(net.gateway.has_interface("adit0"), "and nothing of the first is cleaned up");

    let other = net.gateway.directory().join("other").display().to_string();
    let run = |arguments: &[&str]| net.gateway.exec([&[ADIT, "--home", &other], arguments].concat()).unwrap();
    run(&[
        "init",
        "--endpoint",
        "198.51.100.1:51821",
        "--listen",
        ":51821",
        "--interface",
        "adit1",
        "--network",
        "10.87.0.0/24",
    ]);
    let mut beside = net.gateway.spawn([ADIT, "--home", &other, "gateway"]).unwrap();
    beside.wait_for_text("gateway ready", SOON).unwrap();
    assert_eq!(run(&["status", "--json"]).json().unwrap()["interface"], "adit1");
    assert_eq!(status(&net.gateway)["interface"], "adit0");
}

#[test]
fn what_stands_in_the_way_is_named_and_nothing_is_left_by_halves() {
    let net = net("svcfail");
    init(&net.gateway);
    let file = add_peer(&net.gateway, "laptop", &net.client, &[]);
    let with_port =
        fs::read_to_string(&file).unwrap().replace("[Interface]", "[Interface]\nListenPort = 5001");
    let with_port = private_file(&net.client, "porty", &with_port);
    let before = picture(&net.client);
    let refuse = |command: Output, words: &[&str]| {
        assert_eq!(command.code(), Some(1), "{}", command.stderr);
        for word in words {
            assert!(command.stderr.contains(word), "{word:?} is missing in: {}", command.stderr);
        }
        assert_eq!(picture(&net.client), before);
    };

    let mut taken = net.client.spawn([ADIT, "lab", "udp-echo", "--listen", "0.0.0.0:5001"]).unwrap();
    wait_for("the port to be taken", SOON, || {
        net.client.exec(["ss", "-lun"]).unwrap().stdout.contains(":5001 ").then_some(())
    })
    .unwrap();
    refuse(adit(&net.client, &["up", &with_port]), &["UDP port 5001 is taken", "another port"]);
    taken.end();

    let home = home(&net.client);
    let hidden = |path: &str, cover: &str| {
        let script = format!("{cover} {path} && '{ADIT}' --home {home} up {file}");
        net.client.attempt(["unshare", "-m", "sh", "-c", &script]).unwrap()
    };
    refuse(hidden("/dev/net", "mount -t tmpfs none"), &["/dev/net/tun", "modprobe tun"]);
    refuse(
        hidden("$(readlink -f $(command -v nft))", "mount --bind /dev/null"),
        &["nft", "apt install nftables"],
    );

    let text = fs::read_to_string(&file).unwrap();
    let unknown = text.replace("198.51.100.1:51820", "no-such-host.invalid:51820");
    refuse(
        adit(&net.client, &["up", &private_file(&net.client, "nodns", &unknown)]),
        &["no-such-host.invalid", "DNS"],
    );
    let hooked = text.replace("[Interface]", "[Interface]\nPostUp = touch /dev/null");
    refuse(
        adit(&net.client, &["up", &private_file(&net.client, "hooked", &hooked)]),
        &["PostUp", "--allow-hooks"],
    );

    net.client.ip(["link", "add", "laptop", "type", "veth", "peer", "name", "other"]).unwrap();
    let existing = adit(&net.client, &["up", &file]);
    assert_eq!(existing.code(), Some(1));
    assert!(existing.stderr.contains("there is an interface laptop already"), "{}", existing.stderr);
    assert!(net.client.has_interface("laptop"), "what is not ours stays");
    net.client.ip(["link", "del", "laptop"]).unwrap();

    let elsewhere = net.client.directory().join("elsewhere").display().to_string();
    let _running = start_gateway(&net.gateway);
    succeed(&net.client, &["up", &file]);
    let second = net.client.attempt([ADIT, "--home", &elsewhere, "up", &file]).unwrap();
    assert!(second.stderr.contains("(adit) runs it"), "{}", second.stderr);
    assert!(!second.stderr.contains("ip link delete"), "{}", second.stderr);
    succeed(&net.client, &["down"]);

    let mut nobody = vec!["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", ADIT];
    nobody.extend(["--home", "/nonexistent", "down"]);
    refuse(net.client.attempt(nobody).unwrap(), &["only root", "sudo adit"]);

    succeed(&net.client, &["up", &file]);
    assert_eq!(net.client.ping("10.86.0.1", 1).unwrap(), 1, "and without any of that it works");
    succeed(&net.client, &["down"]);
}

#[test]
fn a_deleted_device_ends_the_service_and_leaves_nothing_but_what_blocks() {
    let net = net("svcgone");
    init(&net.gateway);
    let file = add_peer(&net.gateway, "laptop", &net.client, &[]);
    let (before_gateway, before_client) = (picture(&net.gateway), picture(&net.client));
    let mut gateway = start_gateway(&net.gateway);
    succeed(&net.client, &["up", &file]);
    net.client.ip(["link", "del", "laptop"]).unwrap();
    let ended = || adit(&net.client, &["status"]).stdout.contains("laptop was killed").then_some(());
    wait_for("the client to end", SOON, ended).unwrap();
    assert_ne!(picture(&net.client), before_client, "the kill switch stays");
    succeed(&net.client, &["down"]);
    wait_for("the rest to be put back", SOON, || (picture(&net.client) == before_client).then_some(()))
        .unwrap();
    assert_eq!(adit(&net.client, &["status"]).code(), Some(1));
    net.gateway.ip(["link", "del", "adit0"]).unwrap();
    assert_eq!(gateway.wait(SOON).unwrap().code(), Some(1));
    assert!(gateway.stderr().contains("adit0 was removed"), "{}", gateway.stderr());
    assert_eq!(picture(&net.gateway), before_gateway);
}

#[test]
fn a_log_file_named_from_here_is_found_here() {
    let net = net("svclog");
    init(&net.gateway);
    let file = add_peer(&net.gateway, "laptop", &net.client, &[]);
    let _gateway = start_gateway(&net.gateway);
    let directory = net.client.directory().display().to_string();
    let script =
        format!("cd {directory} && '{ADIT}' --home {} --log-file x.log up {file}", home(&net.client));
    net.client.exec(["sh", "-c", &script]).unwrap();
    let log = net.client.directory().join("x.log");
    assert!(fs::read_to_string(&log).unwrap().contains("session established"));
    assert_eq!(fs::metadata(&log).unwrap().permissions().mode() & 0o777, 0o600);
    succeed(&net.client, &["down"]);
    assert!(fs::read_to_string(&log).unwrap().contains("tunnel down"));
}

#[test]
fn a_silent_gateway_is_a_warning_and_the_tunnel_recovers_when_it_comes() {
    let net = net("svclate");
    init(&net.gateway);
    let file = add_peer(&net.gateway, "laptop", &net.client, &[]);
    let up = succeed(&net.client, &["up", &file]);
    assert!(up.stderr.contains("no answer from 198.51.100.1:51820"), "{}", up.stderr);
    assert!(up.took > Duration::from_secs(4));
    assert!(status(&net.client)["peers"][0]["last_handshake_secs_ago"].is_null());
    let _gateway = start_gateway(&net.gateway);
    let connected = || status(&net.client)["peers"][0]["has_session"].as_bool().filter(|yes| *yes);
    wait_for("the session", Duration::from_secs(15), connected).unwrap();
    assert_eq!(net.client.ping("10.86.0.1", 2).unwrap(), 2);
}

#[test]
fn hooks_run_when_allowed_with_the_name_of_the_interface() {
    let net = net("svchook");
    init(&net.gateway);
    let file = add_peer(&net.gateway, "laptop", &net.client, &[]);
    let _gateway = start_gateway(&net.gateway);
    let log = net.client.directory().join("hooks").display().to_string();
    let hooks = ["PreUp", "PostUp", "PreDown", "PostDown"].map(|when| {
        format!("{when} = echo {when} %i $(ip -o link show dev %i 2>/dev/null | wc -l) >> {log}")
    });
    let text = fs::read_to_string(&file).unwrap();
    let text = text.replace("[Interface]", &format!("[Interface]\n{}", hooks.join("\n")));
    let file = private_file(&net.client, "hook0", &text);
    succeed(&net.client, &["up", "--allow-hooks", &file]);
    assert_eq!(fs::read_to_string(&log).unwrap(), "PreUp hook0 0\nPostUp hook0 1\n");
    succeed(&net.client, &["down"]);
    assert!(fs::read_to_string(&log).unwrap().ends_with("PreDown hook0 1\nPostDown hook0 0\n"));
}
