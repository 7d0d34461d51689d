//! What people are told when something stands in the way: what happened, why, and what to do next; and that nothing is
//! left by halves.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use adit_lab::{Host, Output, Process, wait_for};

use common::internet::{Internet, adit, admit, home, init, start_gateway, status, stop_gateway, succeed};
use common::node::key_pair;
use common::picture::{Picture, files_below};
use common::{ADIT, SOON};

/// A host before something went wrong on it.
struct Untouched<'a> {
    host: &'a Host,
    picture: Picture,
    files: Vec<String>,
}

impl<'a> Untouched<'a> {
    fn now(host: &'a Host) -> Self {
        Self { host, picture: Picture::of(host), files: files(host) }
    }

    /// `output` is a failure that says all of `words` in one line, and the host is as it was.
    fn refused(&self, output: &Output, words: &[&str]) {
        assert_eq!(output.stderr.trim().lines().count(), 1, "{}: {}", output.command, output.stderr);
        self.refused_at_length(output, words);
    }

    /// As [`refused`](Self::refused), in several lines.
    fn refused_at_length(&self, output: &Output, words: &[&str]) {
        assert_eq!(output.code(), Some(1), "{}: {}", output.command, output.stderr);
        assert_eq!(output.stdout, "", "{}", output.command);
        for word in words {
            assert!(output.stderr.contains(word), "{word:?} is not in: {}", output.stderr);
        }
        assert!(!output.stderr.contains("panicked"), "{}", output.stderr);
        self.picture.assert_again(self.host);
        assert_eq!(files(self.host), self.files, "{}", output.command);
    }
}

/// What a service leaves in its home, but for its log.
fn files(host: &Host) -> Vec<String> {
    let all = files_below(&home(host));
    all.into_iter().filter(|name| !name.ends_with(".log") && !name.ends_with(".lock")).collect()
}

/// `adit ARGUMENTS` in a mount namespace of its own that `script` has changed before.
fn adit_after(host: &Host, script: &str, arguments: &str) -> Output {
    let home = home(host).display().to_string();
    let script = format!("{script} && exec '{ADIT}' --home '{home}' {arguments}");
    host.attempt(["unshare", "-m", "sh", "-c", &script]).unwrap()
}

fn adit_as_nobody(host: &Host, arguments: &[&str]) -> Output {
    let nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", ADIT];
    host.attempt([&nobody, arguments].concat()).unwrap()
}

fn take_port(host: &Host, port: u16) -> Process {
    let mut taken = host.agent(["udp-echo", "--listen", &format!("0.0.0.0:{port}")]).spawn().unwrap();
    taken.wait_for_text("listening", SOON).unwrap();
    taken
}

const HIDDEN_NFT: &str =
    "mount --bind /dev/null $(readlink -f $(command -v nft)) && mount --bind /dev/null /usr/sbin/nft";
const HIDDEN_TUN: &str = "mount -t tmpfs none /dev/net";

/// A network with a gateway that is configured and not running, and the file of a client.
fn ready(prefix: &str) -> (Internet, String) {
    let net = Internet::new(prefix, 1);
    init(&net.gateway);
    let file = admit(&net.gateway, "tun-0", &net.clients[0], &[]);
    fs::create_dir_all(home(&net.clients[0])).unwrap();
    (net, file)
}

/// The positive control: with nothing in the way, it works.
fn works(net: &Internet, file: &str) {
    let gateway = start_gateway(&net.gateway);
    let client = &net.clients[0];
    succeed(client, &["up", file]);
    assert_eq!(status(client)["peers"][0]["has_session"], true);
    succeed(client, &["down"]);
    stop_gateway(gateway);
}

#[test]
fn without_root_each_verb_that_needs_it_says_so_and_what_to_run() {
    let (net, file) = ready("errroot");
    let host = &net.gateway;
    // Readable for everybody, so that being nobody is all that is wrong.
    let open = std::env::temp_dir().join(format!("adit-errors-{}", std::process::id()));
    fs::create_dir_all(&open).unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
    let own = open.join("tun-0.conf");
    fs::copy(&file, &own).unwrap();
    std::os::unix::fs::chown(&own, Some(65_534), Some(65_534)).unwrap();
    let (open_text, own) = (open.display().to_string(), own.display().to_string());

    let untouched = Untouched::now(host);
    for words in [&["gateway"][..], &["down"], &["up", &own]] {
        let arguments = [&["--home", &open_text], words].concat();
        let output = adit_as_nobody(host, &arguments);
        let sudo = format!("run `sudo adit {}`", arguments.join(" "));
        untouched.refused(&output, &[words[0], "only root", &sudo]);
    }
    let device = format!("e{}", std::process::id());
    untouched.refused(&adit_as_nobody(host, &["wg", &device]), &["root"]);
    assert!(!Path::new(&format!("/var/run/wireguard/{device}.sock")).exists());
    fs::remove_dir_all(&open).unwrap();

    let allowed = adit_as_nobody(host, &["genkey"]);
    assert!(allowed.ok() && allowed.stdout.len() == 45, "what needs no root works without");
    works(&net, &file);
}

#[test]
fn without_nft_the_gateway_and_a_full_tunnel_say_what_to_install() {
    let (net, file) = ready("errnft");
    let gateway = Untouched::now(&net.gateway);
    gateway.refused(
        &adit_after(&net.gateway, HIDDEN_NFT, "gateway --log-file /dev/null"),
        &["nft", "apt install nftables"],
    );
    let client = Untouched::now(&net.clients[0]);
    let output = adit_after(&net.clients[0], HIDDEN_NFT, &format!("up {file}"));
    client.refused(&output, &["nft", "apt install nftables"]);
    works(&net, &file);
}

#[test]
fn without_a_tun_driver_the_gateway_a_tunnel_and_a_device_say_how_to_get_it() {
    let (net, file) = ready("errtun");
    let gateway = Untouched::now(&net.gateway);
    let output = adit_after(&net.gateway, HIDDEN_TUN, "gateway --log-file /dev/null");
    gateway.refused(&output, &["/dev/net/tun", "modprobe tun"]);
    let device = format!("f{}", std::process::id());
    for foreground in ["", "-f"] {
        let output = adit_after(&net.gateway, HIDDEN_TUN, &format!("wg {foreground} {device}"));
        gateway.refused(&output, &["/dev/net/tun", "modprobe tun"]);
    }
    let client = Untouched::now(&net.clients[0]);
    for foreground in ["", "--foreground --log-file /dev/null"] {
        let output = adit_after(&net.clients[0], HIDDEN_TUN, &format!("up {foreground} {file}"));
        client.refused(&output, &["/dev/net/tun", "modprobe tun"]);
    }
    works(&net, &file);
}

#[test]
fn a_busy_port_is_named_with_the_way_to_find_who_has_it() {
    let (net, file) = ready("errport");
    let taken = take_port(&net.gateway, 51_820);
    let words =
        ["UDP port 51820 is taken", "ss -lunp sport = :51820", "choose another port", "`listen_port`"];
    let gateway = Untouched::now(&net.gateway);
    gateway.refused(&adit(&net.gateway, &["--log-file", "/dev/null", "gateway"]), &words);
    drop(taken);

    let client = &net.clients[0];
    let text = fs::read_to_string(&file).unwrap().replace("[Interface]", "[Interface]\nListenPort = 51820");
    let with_port = client.write("tun-1.conf", text).unwrap().display().to_string();
    let taken = take_port(client, 51_820);
    Untouched::now(client).refused(&adit(client, &["up", &with_port]), &words);
    drop(taken);
    works(&net, &file);
    works(&net, &with_port);
}

#[test]
fn an_interface_that_exists_is_left_alone() {
    let (net, file) = ready("errlink");
    let words =
        |name: &str| [format!("there is an interface {name} already"), format!("ip link delete {name}")];
    let hosts = [
        (&net.gateway, "adit0", vec!["--log-file", "/dev/null", "gateway"]),
        (&net.clients[0], "tun-0", vec!["up", &file]),
    ];
    for (host, name, arguments) in hosts {
        host.ip(["link", "add", name, "type", "bridge"]).unwrap();
        let words = words(name);
        Untouched::now(host).refused(&adit(host, &arguments), &[&words[0], &words[1]]);
        host.ip(["link", "del", name]).unwrap();
    }
    let device = format!("g{}", std::process::id());
    net.gateway.ip(["link", "add", &device, "type", "bridge"]).unwrap();
    Untouched::now(&net.gateway).refused(&adit(&net.gateway, &["wg", &device]), &[&device]);
    net.gateway.ip(["link", "del", &device]).unwrap();
    works(&net, &file);
}

/// What stands above the carets of a report, by their columns.
fn pointed_at(stderr: &str) -> Vec<String> {
    let lines: Vec<&str> = stderr.lines().collect();
    let pairs =
        lines.windows(2).filter(|pair| pair[1].trim_start().starts_with('|') && pair[1].contains('^'));
    pairs
        .map(|pair| {
            let (start, count) = (pair[1].find('^').unwrap(), pair[1].matches('^').count());
            pair[0].chars().skip(start).take(count).collect()
        })
        .collect()
}

#[test]
fn a_wrong_configuration_is_shown_with_line_column_and_caret() {
    let (net, file) = ready("errconf");
    let path = home(&net.gateway).join("adit.toml");
    let good = fs::read_to_string(&path).unwrap();
    let line_of = |text: &str, what: &str| text.lines().position(|line| line.contains(what)).unwrap() + 1;

    let wrong = good.replace("network = \"10.86.0.0/24\"", "netwrok = \"10.86.0.0/24\"");
    fs::write(&path, &wrong).unwrap();
    let output = adit(&net.gateway, &["gateway"]);
    let place = format!("adit.toml:{}:1", line_of(&wrong, "netwrok"));
    Untouched::now(&net.gateway).refused_at_length(&output, &[&place, "did you mean `network`?", "fix"]);
    assert_eq!(pointed_at(&output.stderr), ["netwrok"], "{}", output.stderr);

    let wrong = good.replace("listen = \":51820\"", "listen = \":99999\"");
    assert_ne!(wrong, good);
    fs::write(&path, &wrong).unwrap();
    let output = adit(&net.gateway, &["gateway"]);
    let place = format!("adit.toml:{}:10", line_of(&wrong, ":99999"));
    Untouched::now(&net.gateway).refused_at_length(&output, &[&place, "99999", "fix"]);
    assert_eq!(pointed_at(&output.stderr), ["\":99999\""], "{}", output.stderr);
    fs::write(&path, &good).unwrap();

    let client = &net.clients[0];
    let text = fs::read_to_string(&file).unwrap();
    let wrong = text.replace("AllowedIPs = 0.0.0.0/0", "AllowedIPs = 0.0.0.0/33");
    assert_ne!(wrong, text);
    let wrong_file = client.write("tun-1.conf", &wrong).unwrap().display().to_string();
    let output = adit(client, &["up", &wrong_file]);
    let place = format!("tun-1.conf:{}:14", line_of(&wrong, "/33"));
    Untouched::now(client).refused_at_length(&output, &[&place, "0.0.0.0/33", "fix"]);
    assert_eq!(pointed_at(&output.stderr), ["0.0.0.0/33"], "{}", output.stderr);

    let (private, _) = key_pair();
    let secret = text.lines().find(|line| line.starts_with("PrivateKey")).unwrap();
    let wrong = text.replace(secret, &format!("PrivateKey = {private}x"));
    let wrong_file = client.write("tun-1.conf", &wrong).unwrap().display().to_string();
    let output = adit(client, &["up", &wrong_file]);
    Untouched::now(client).refused_at_length(&output, &["tun-1.conf:", "fix"]);
    assert!(!output.stderr.contains(&private), "a key is not shown, however wrong: {}", output.stderr);
    works(&net, &file);
}

#[test]
fn a_file_with_keys_that_others_may_read_is_refused() {
    let (net, file) = ready("errmode");
    let set_mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    let config = home(&net.gateway).join("adit.toml");
    for mode in [0o644, 0o640, 0o602] {
        set_mode(&config, mode);
        let fix = format!("chmod 600 {}", config.display());
        let output = adit(&net.gateway, &["gateway"]);
        Untouched::now(&net.gateway).refused_at_length(&output, &[&format!("mode {mode:04o}"), &fix]);
        set_mode(&config, 0o600);

        set_mode(Path::new(&file), mode);
        let output = adit(&net.clients[0], &["up", &file]);
        let fix = format!("chmod 600 {file}");
        Untouched::now(&net.clients[0]).refused_at_length(&output, &[&format!("mode {mode:04o}"), &fix]);
        set_mode(Path::new(&file), 0o600);
    }
    works(&net, &file);
}

#[test]
fn what_cannot_be_meant_is_a_usage_error_and_what_is_not_there_a_failure() {
    let (net, file) = ready("errusage");
    let client = &net.clients[0];
    let untouched = Untouched::now(client);
    for arguments in [
        &["upp"][..],
        &["up", &file, "--colour"],
        &["wg"],
        &["gateway", "--listen", ":99999"],
        &["peer", "add", "a b"],
        &["status", "--quiet", "--verbose"],
        &[],
    ] {
        let output = adit(client, arguments);
        assert_eq!(output.code(), Some(2), "{arguments:?}: {}", output.stderr);
        assert!(!output.stderr.is_empty() && output.stdout.is_empty(), "{arguments:?}");
        untouched.picture.assert_again(client);
    }
    untouched.refused(&adit(client, &["up"]), &["there is no profile", "adit up FILE.conf", "adit join URL"]);
    untouched.refused(&adit(client, &["down"]), &["nothing is up here", "adit up FILE.conf"]);
    untouched.refused(&adit(client, &["down", "tun-0"]), &["tun-0 is not up", "adit status"]);
    untouched
        .refused_at_length(&adit(client, &["up", "/nonexistent/tun-0.conf"]), &["/nonexistent/tun-0.conf"]);
    untouched.refused(
        &adit(client, &["up", "/etc/hostname"]),
        &["does not end with .conf", "for example adit0.conf"],
    );
    let unconfigured = adit(client, &["gateway"]);
    untouched.refused_at_length(&unconfigured, &["adit.toml", "adit init"]);
    works(&net, &file);
}

#[test]
fn a_gateway_that_cannot_take_its_port_again_says_so_and_keeps_the_old_one() {
    let (net, file) = ready("errreload");
    let gateway = start_gateway(&net.gateway);
    succeed(&net.clients[0], &["up", &file]);
    let untouched = Picture::of(&net.gateway);
    let config = home(&net.gateway).join("adit.toml");
    let text = fs::read_to_string(&config).unwrap();
    let _taken = take_port(&net.gateway, 51_999);
    fs::write(&config, text.replace("listen = \":51820\"", "listen = \":51999\"")).unwrap();
    net.gateway.exec(["kill", "-HUP", &gateway.id().to_string()]).unwrap();
    wait_for("the refusal", SOON, || gateway.stderr().contains("UDP port 51999 is taken").then_some(()))
        .unwrap();
    drop(_taken);
    untouched.assert_again(&net.gateway);
    assert_eq!(status(&net.gateway)["listen_port"], 51_820);
    assert_eq!(net.clients[0].ping("10.86.0.1", 2).unwrap(), 2);

    net.gateway.exec(["kill", "-HUP", &gateway.id().to_string()]).unwrap();
    wait_for("the new port", SOON, || (status(&net.gateway)["listen_port"] == 51_999).then_some(())).unwrap();
    untouched.assert_changed(&net.gateway);
    succeed(&net.clients[0], &["down"]);
    stop_gateway(gateway);
}
