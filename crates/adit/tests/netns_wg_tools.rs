//! `adit wg` under the real `wg` and `wg-quick`, and against wireguard-go.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use adit_lab::{End, Host, Invocation, Lab, wait_for};

const ADIT: &str = env!("CARGO_BIN_EXE_adit");
const SOON: Duration = Duration::from_secs(10);

/// UAPI sockets share one directory on the machine: no two devices of these tests have the same name.
fn device_name() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("t{}n{}", std::process::id(), NEXT.fetch_add(1, Relaxed))
}

fn socket(device: &str) -> PathBuf {
    Path::new("/var/run/wireguard").join(format!("{device}.sock"))
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

/// Two hosts with a link: 192.0.2.1 and 192.0.2.2.
fn pair(name: &str) -> (Lab, Host, Host) {
    let lab = Lab::new(name).unwrap();
    let (a, b) = (lab.host("a").unwrap(), lab.host("b").unwrap());
    let end = |host: &Host, number| End::new(host, "eth0").address(format!("192.0.2.{number}/24"));
    lab.connect(end(&a, 1), end(&b, 2)).unwrap();
    (lab, a, b)
}

struct Key {
    private: String,
    public: String,
}

fn key() -> Key {
    let private = Invocation::new(["wg", "genkey"]).exec().unwrap().stdout.trim().to_owned();
    let public =
        Invocation::new(["wg", "pubkey"]).input(private.clone()).exec().unwrap().stdout.trim().to_owned();
    Key { private, public }
}

fn private_file(host: &Host, name: &str, text: &str) -> String {
    let path = host.write(name, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path.display().to_string()
}

/// A device in the background; `wg` can talk to it when this returns.
fn start(host: &Host) -> String {
    let device = device_name();
    let output = host.exec([ADIT, "wg", &device]).unwrap();
    assert_eq!((output.stdout.as_str(), output.stderr.as_str()), ("", ""), "success is silent");
    assert!(host.has_interface(&device));
    device
}

fn wg(host: &Host, arguments: &[&str]) -> String {
    host.exec([&["wg"], arguments].concat()).unwrap().stdout
}

fn ask(device: &str, request: &str) -> String {
    let mut stream = UnixStream::connect(socket(device)).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn gone(device: &str) {
    wait_for(format!("{device} to end"), SOON, || (!socket(device).exists()).then_some(())).unwrap();
}

fn conf(key: &Key, port: u16, extra: &str, peer: &str) -> String {
    format!("[Interface]\nPrivateKey = {}\nListenPort = {port}\n{extra}\n[Peer]\n{peer}\n", key.private)
}

#[test]
fn what_wg_set_says_wg_show_shows() {
    let lab = Lab::new("wgset").unwrap();
    let host = lab.host("a").unwrap();
    let device = start(&host);
    let (own, peer) = (key(), key());
    let preshared = wg(&host, &["genpsk"]);
    let own_file = private_file(&host, "own", &own.private);
    let preshared_file = private_file(&host, "psk", &preshared);
    wg(
        &host,
        &[
            "set",
            &device,
            "listen-port",
            "5001",
            "private-key",
            &own_file,
            "fwmark",
            "0x12",
            "peer",
            &peer.public,
            "preshared-key",
            &preshared_file,
            "endpoint",
            "[2001:db8::2]:5002",
            "allowed-ips",
            "10.9.0.2/32,fd00:9::/64",
        ],
    );
    assert_eq!(
        wg(&host, &["show", &device, "dump"]),
        format!(
            "{}\t{}\t5001\t0x12\n{}\t{}\t[2001:db8::2]:5002\t10.9.0.2/32,fd00:9::/64\t0\t0\t0\toff\n",
            own.private,
            own.public,
            peer.public,
            preshared.trim()
        )
    );
    let shown = wg(&host, &["show"]);
    assert!(shown.contains(&format!("interface: {device}")), "{shown}");

    wg(&host, &["set", &device, "peer", &own.public, "allowed-ips", "10.0.0.0/8"]);
    assert!(!wg(&host, &["show", &device, "peers"]).contains(&own.public), "we are not our own peer");
    wg(
        &host,
        &["set", &device, "peer", &peer.public, "persistent-keepalive", "off", "endpoint", "192.0.2.9:1"],
    );
    assert_eq!(wg(&host, &["show", &device, "persistent-keepalive"]), format!("{}\toff\n", peer.public));
    wg(&host, &["set", &device, "private-key", "/dev/null", "fwmark", "off", "peer", &peer.public, "remove"]);
    assert_eq!(wg(&host, &["show", &device, "dump"]), "(none)\t(none)\t5001\toff\n");
}

#[test]
fn thousands_of_allowed_ips_survive_showconf_and_setconf() {
    let lab = Lab::new("wgconf").unwrap();
    let host = lab.host("a").unwrap();
    let (first, second) = (start(&host), start(&host));
    let mut text = conf(&key(), 5003, "", "");
    text.truncate(text.find("[Peer]").unwrap());
    for peer in 0..4 {
        let prefixes: Vec<String> = (0..=255)
            .flat_map(|low| [format!("10.{peer}.7.{low}/32"), format!("fd00:{peer}::{low:x}:0:0/96")])
            .collect();
        let public = key().public;
        text.push_str(&format!("[Peer]\nPublicKey = {public}\nAllowedIPs = {}\n", prefixes.join(", ")));
    }
    let file = private_file(&host, "many.conf", &text);
    wg(&host, &["setconf", &first, &file]);
    let shown = wg(&host, &["showconf", &first]);
    let prefixes =
        shown.lines().filter(|line| line.starts_with("AllowedIPs")).flat_map(|line| line.split(", "));
    assert_eq!(prefixes.count(), 4 * 512, "every prefix is shown");

    let moved = shown.replace("ListenPort = 5003", "ListenPort = 5004");
    wg(&host, &["setconf", &second, &private_file(&host, "again.conf", &moved)]);
    let sorted = |text: &str| {
        let mut sections: Vec<String> = text.split("\n\n").map(str::to_owned).collect();
        sections.sort();
        sections
    };
    assert_eq!(sorted(&wg(&host, &["showconf", &second])), sorted(&moved));
}

#[test]
fn syncconf_ends_no_session_of_a_peer_that_stays() {
    let (_lab, a, b) = pair("wgsync");
    let (left, right) = (start(&a), start(&b));
    let (a_key, b_key) = (key(), key());
    let a_peer = format!("PublicKey = {}\nAllowedIPs = 10.9.0.2/32\nEndpoint = 192.0.2.2:5002", b_key.public);
    let b_peer = format!("PublicKey = {}\nAllowedIPs = 10.9.0.1/32", a_key.public);
    let a_conf = conf(&a_key, 5001, "", &a_peer);
    wg(&b, &["setconf", &right, &private_file(&b, "b", &conf(&b_key, 5002, "", &b_peer))]);
    wg(&a, &["setconf", &left, &private_file(&a, "a", &a_conf)]);
    for (host, device, address) in [(&a, &left, "10.9.0.1/24"), (&b, &right, "10.9.0.2/24")] {
        host.add_address(device, address).unwrap();
        host.ip(["link", "set", device, "up"]).unwrap();
    }
    assert_eq!(a.ping("10.9.0.2", 3).unwrap(), 3);
    let sent = |host: &Host, device: &str| -> u64 {
        let line = wg(host, &["show", device, "transfer"]);
        line.lines()
            .find(|line| line.starts_with(&b_key.public))
            .unwrap()
            .split('\t')
            .nth(2)
            .unwrap()
            .trim()
            .parse()
            .unwrap()
    };
    let before = sent(&a, &left);

    let third = key().public;
    let more = format!("{a_conf}[Peer]\nPublicKey = {third}\nAllowedIPs = 10.9.0.3/32\n");
    wg(&a, &["syncconf", &left, &private_file(&a, "a2", &more)]);
    assert!(wg(&a, &["show", &left, "peers"]).contains(&third));
    assert_eq!(a.ping("10.9.0.2", 3).unwrap(), 3);
    let grown = sent(&a, &left) - before;
    assert!(
        (3 * 128..3 * 128 + 148).contains(&grown),
        "three echo requests and no handshake, not {grown} bytes"
    );

    wg(&a, &["syncconf", &left, &private_file(&a, "a3", &a_conf)]);
    assert!(!wg(&a, &["show", &left, "peers"]).contains(&third));
    assert_eq!(a.ping("10.9.0.2", 1).unwrap(), 1);
}

#[test]
fn wg_quick_brings_a_full_tunnel_up_and_down_against_wireguard_go() {
    let (_lab, a, b) = pair("wgquick");
    let (left, right) = (device_name(), device_name());
    let (a_key, b_key) = (key(), key());
    b.spawn(["wireguard-go", &right]).unwrap().wait(SOON).unwrap();
    wait_for("wireguard-go", SOON, || socket(&right).exists().then_some(())).unwrap();
    let b_peer = format!("PublicKey = {}\nAllowedIPs = 10.9.0.1/32, fd00:9::1/128", a_key.public);
    wg(&b, &["setconf", &right, &private_file(&b, "b", &conf(&b_key, 5002, "", &b_peer))]);
    b.add_address(&right, "10.9.0.2/24").unwrap();
    b.add_address(&right, "fd00:9::2/64").unwrap();
    b.ip(["link", "set", &right, "up"]).unwrap();

    let addresses = "Address = 10.9.0.1/24, fd00:9::1/64";
    let a_peer =
        format!("PublicKey = {}\nAllowedIPs = 0.0.0.0/0, ::/0\nEndpoint = 192.0.2.2:5002", b_key.public);
    let file = private_file(&a, &format!("{left}.conf"), &conf(&a_key, 5001, addresses, &a_peer));
    let program = a.directory().join("adit-wg");
    symlink(ADIT, &program).unwrap();
    let before = [a.ip(["rule"]).unwrap().stdout, a.exec(["nft", "list", "ruleset"]).unwrap().stdout];
    let quick = |verb: &str| {
        a.command(["wg-quick", verb, &file])
            .env("WG_QUICK_USERSPACE_IMPLEMENTATION", program.display().to_string())
            .exec()
            .unwrap()
    };
    quick("up");
    assert_eq!(a.ping("10.9.0.2", 3).unwrap(), 3);
    assert_eq!(a.ping("fd00:9::2", 3).unwrap(), 3);
    assert_eq!(a.route_to("198.51.100.1").unwrap()["dev"], left.as_str());
    quick("down");
    gone(&left);
    assert!(!a.has_interface(&left));
    let after = [a.ip(["rule"]).unwrap().stdout, a.exec(["nft", "list", "ruleset"]).unwrap().stdout];
    assert_eq!(before, after);
    b.ip(["link", "del", &right]).unwrap();
    gone(&right);
}

#[test]
fn the_process_ends_with_its_device_its_socket_or_sigterm() {
    let lab = Lab::new("wgend").unwrap();
    let host = lab.host("a").unwrap();

    let device = start(&host);
    let link = &host.ip_json(["link", "show", &device]).unwrap()[0];
    assert_eq!(link["mtu"], 1420, "as wireguard-go starts");
    assert_eq!(lab.processes().len(), 1);
    host.ip(["link", "del", &device]).unwrap();
    gone(&device);

    let device = start(&host);
    fs::remove_file(socket(&device)).unwrap();
    wait_for("the device to go", SOON, || (!host.has_interface(&device)).then_some(())).unwrap();

    let device = device_name();
    let mut process = host.command([ADIT, "wg", "-f", &device]).spawn().unwrap();
    wait_for("the socket", SOON, || socket(&device).exists().then_some(())).unwrap();
    process.terminate();
    assert_eq!(process.wait(SOON).unwrap().code(), Some(0));
    assert!(!socket(&device).exists());
    assert!(!host.has_interface(&device));
    wait_for("every process to end", SOON, || lab.processes().is_empty().then_some(())).unwrap();
}

#[test]
fn the_device_may_move_to_another_namespace_while_its_port_stays() {
    let (lab, a, b) = pair("wgmove");
    let inner = lab.host("inner").unwrap();
    let (left, right) = (start(&a), start(&b));
    let (a_key, b_key) = (key(), key());
    let a_peer = format!("PublicKey = {}\nAllowedIPs = 10.9.0.2/32\nEndpoint = 192.0.2.2:5002", b_key.public);
    let b_peer = format!("PublicKey = {}\nAllowedIPs = 10.9.0.1/32", a_key.public);
    wg(&b, &["setconf", &right, &private_file(&b, "b", &conf(&b_key, 5002, "", &b_peer))]);
    wg(&a, &["setconf", &left, &private_file(&a, "a", &conf(&a_key, 5001, "", &a_peer))]);
    b.add_address(&right, "10.9.0.2/24").unwrap();
    b.ip(["link", "set", &right, "up"]).unwrap();

    a.ip(["link", "set", &left, "netns", inner.namespace()]).unwrap();
    assert!(!a.has_interface(&left));
    inner.add_address(&left, "10.9.0.1/24").unwrap();
    inner.ip(["link", "set", &left, "mtu", "1280", "up"]).unwrap();
    assert_eq!(inner.ping("10.9.0.2", 3).unwrap(), 3);
    let ports = |host: &Host| host.exec(["ss", "-lun"]).unwrap().stdout.contains(":5001 ");
    assert!(ports(&a) && !ports(&inner));
    assert!(wg(&a, &["show", &left, "endpoints"]).contains("192.0.2.2:5002"));

    inner.ip(["link", "del", &left]).unwrap();
    gone(&left);
}

#[test]
fn only_root_reaches_the_socket_and_a_new_directory_is_closed() {
    let lab = Lab::new("wgmode").unwrap();
    let host = lab.host("a").unwrap();
    let device = start(&host);
    assert_eq!(mode(&socket(&device)), 0o600);
    let script = format!(
        "mount -t tmpfs none /run && umask 0 && '{ADIT}' wg {0} && stat -L -c %a /var/run/wireguard \
         /var/run/wireguard/{0}.sock && ip link del {0}",
        device_name()
    );
    let modes = host.exec(["unshare", "-m", "sh", "-c", &script]).unwrap().stdout;
    assert_eq!(modes, "700\n600\n");
}

#[test]
fn a_failure_is_told_before_the_caller_goes_on() {
    let lab = Lab::new("wgfail").unwrap();
    let host = lab.host("a").unwrap();
    let device = start(&host);
    let again = host.attempt([ADIT, "wg", &device]).unwrap();
    assert_eq!(again.code(), Some(1));
    assert!(again.stderr.contains(&device) && again.stderr.lines().count() == 1, "{}", again.stderr);
    assert!(ask(&device, "get=1\n\n").ends_with("errno=0\n\n"), "the first one is unharmed");

    let other = device_name();
    let _taken = std::os::unix::net::UnixListener::bind(socket(&other)).unwrap();
    let refused = host.attempt([ADIT, "wg", &other]).unwrap();
    assert_eq!(refused.code(), Some(1));
    assert!(refused.stderr.contains("in use"), "{}", refused.stderr);
    assert!(!host.has_interface(&other), "nothing is left by halves");
    fs::remove_file(socket(&other)).unwrap();

    let stale = device_name();
    drop(std::os::unix::net::UnixListener::bind(socket(&stale)).unwrap());
    host.exec([ADIT, "wg", &stale]).unwrap();
    assert!(ask(&stale, "get=1\n\n").ends_with("errno=0\n\n"), "a dead socket is replaced");
}

#[test]
fn a_taken_port_leaves_the_old_one_in_use() {
    let lab = Lab::new("wgport").unwrap();
    let host = lab.host("a").unwrap();
    let (first, second) = (start(&host), start(&host));
    wg(&host, &["set", &first, "listen-port", "5001"]);
    wg(&host, &["set", &second, "listen-port", "5002"]);
    let refused = host.attempt(["wg", "set", &second, "listen-port", "5001"]).unwrap();
    assert!(!refused.ok());
    assert!(refused.stderr.contains("Address already in use"), "{}", refused.stderr);
    assert_eq!(wg(&host, &["show", &second, "listen-port"]), "5002\n");
    wg(&host, &["set", &first, "listen-port", "5003"]);
    wg(&host, &["set", &second, "listen-port", "5001"]);
    assert_eq!(wg(&host, &["show", &second, "listen-port"]), "5001\n");
}

#[test]
fn a_request_with_one_wrong_line_changes_nothing() {
    let lab = Lab::new("wgwrong").unwrap();
    let host = lab.host("a").unwrap();
    let device = start(&host);
    let peer = "58402e695ba1772b1cc9309755f043251ea77fdcf10fbe63989ceb7e19321376";
    let good = format!("public_key={peer}\nallowed_ip=10.0.0.0/8\n");
    assert_eq!(ask(&device, &format!("set=1\nlisten_port=5009\n{good}colour=blue\n\n")), "errno=-22\n\n");
    assert!(!wg(&host, &["show", &device]).contains("10.0.0.0/8"));
    assert_ne!(wg(&host, &["show", &device, "listen-port"]), "5009\n");
    assert_eq!(ask(&device, &format!("set=1\nlisten_port=5009\n{good}\n")), "errno=0\n\n");
    assert!(wg(&host, &["show", &device]).contains("10.0.0.0/8"));
    assert_eq!(wg(&host, &["show", &device, "listen-port"]), "5009\n");
    assert_eq!(ask(&device, "set=1\nlisten_port=1\n"), "errno=-71\n\n", "a cut request is not applied");
    assert_eq!(ask(&device, "hello\n\n"), "errno=-71\n\n");
    let two = ask(&device, "get=1\n\nget=1\n\n");
    assert_eq!(two.matches("errno=0\n\n").count(), 2, "a client may ask twice");
}

#[test]
fn a_peer_of_the_other_suite_is_shown_and_does_not_trouble_wg() {
    let lab = Lab::new("wgsuite").unwrap();
    let host = lab.host("a").unwrap();
    let device = start(&host);
    let peer = "58402e695ba1772b1cc9309755f043251ea77fdcf10fbe63989ceb7e19321376";
    assert_eq!(
        ask(&device, &format!("set=1\npublic_key={peer}\nsuite=aes-256-gcm\nallowed_ip=10.0.0.0/8\n\n")),
        "errno=0\n\n"
    );
    assert!(ask(&device, "get=1\n\n").contains("\nsuite=aes-256-gcm\n"));
    assert!(wg(&host, &["show", &device]).contains("allowed ips: 10.0.0.0/8"));
    assert_eq!(
        ask(&device, &format!("set=1\npublic_key={peer}\nsuite=chacha20-poly1305\n\n")),
        "errno=0\n\n"
    );
    assert!(!ask(&device, "get=1\n\n").contains("suite="));
}

#[test]
fn a_client_that_says_nothing_does_not_keep_wg_waiting() {
    let lab = Lab::new("wgslow").unwrap();
    let host = lab.host("a").unwrap();
    let device = start(&host);
    let silent: Vec<_> = (0..20).map(|_| UnixStream::connect(socket(&device)).unwrap()).collect();
    for mut stream in &silent {
        stream.write_all(b"set=1\npublic_key=").unwrap();
    }
    let shown = host.command(["wg", "show", &device]).deadline(Duration::from_secs(3)).exec().unwrap();
    assert!(shown.stdout.contains(&device));
}
