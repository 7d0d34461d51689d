//! `adit peer` and `adit invite`: who becomes a peer, and who does not.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::process::Stdio;

use serde_json::Value;

use super::{Gateway, adit, bad, fed, good, mode, ran, run};

fn value<'a>(conf: &'a str, key: &str) -> &'a str {
    let line = conf.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(" = "));
    line.unwrap_or_else(|| panic!("no {key} in {conf}"))
}

#[test]
fn a_failed_invite_leaves_none_behind() {
    let gateway = Gateway::new();
    let invites = || {
        let page: Value = serde_json::from_str(&gateway.good("invite list --json").stdout).unwrap();
        page["invites"].as_array().unwrap().len()
    };
    let text = gateway.text();
    let certificate = "stream_certificate = \"/no/such/file.pem\"\nstream_key = \"/no/such/key.pem\"";
    fs::write(gateway.file(), text.replacen("[gateway]\n", &format!("[gateway]\n{certificate}\n"), 1))
        .unwrap();
    gateway.bad("invite laptop", "/no/such/file.pem");
    assert_eq!(invites(), 0);
    gateway.bad("check", "/no/such/file.pem");
    fs::write(gateway.file(), text).unwrap();
    gateway.good("check");
    gateway.good("invite laptop");
    assert_eq!(invites(), 1);
}

#[test]
fn a_new_key_that_could_not_be_told_takes_no_others_place() {
    let gateway = Gateway::new();
    gateway.good("peer add laptop");
    let before = gateway.text();
    let words = ["peer", "export", "laptop", "--new-key", "--home", gateway.home()];
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let told = ran(adit(words).stdout(full).output().unwrap());
    assert!(told.code == 1 && told.stderr.contains("the peer keeps its key"), "{}", told.stderr);
    assert_eq!(gateway.text(), before);
    gateway.good("peer export laptop --new-key");
    assert_ne!(gateway.text(), before);
}

#[test]
fn peer_add_prints_the_clients_file_alone_and_it_checks() {
    let gateway = Gateway::new();
    let ran = gateway.good("peer add laptop --suite aes-256-gcm --dns 1.1.1.1,2606:4700::1111");
    let conf = &ran.stdout;
    assert!(conf.starts_with("[Interface]\n# adit: tls_pin = sha256:"), "{conf}");
    assert_eq!(value(conf, "Address"), "10.9.0.2/32, fd00:9::2/128");
    assert_eq!(value(conf, "DNS"), "1.1.1.1, 2606:4700::1111");
    assert_eq!(value(conf, "# adit: suite"), "aes-256-gcm");
    assert_eq!(value(conf, "AllowedIPs"), "0.0.0.0/0, ::/0");
    assert_eq!(value(conf, "Endpoint"), "vpn.example.org:443");
    assert!(
        ran.stderr.contains("only adit speaks") && ran.stderr.contains("--suite chacha20-poly1305"),
        "{}",
        ran.stderr
    );
    let peer = &gateway.peers()[0];
    let public = fed(&mut adit(["pubkey"]), value(conf, "PrivateKey")).stdout;
    assert_eq!(peer["public_key"], public.trim());
    assert!(gateway.text().contains(&format!("preshared_key = \"{}\"", value(conf, "PresharedKey"))));
    assert!(
        !gateway.text().contains(value(conf, "PrivateKey")),
        "the gateway has no use for the client's key"
    );
    let own = gateway
        .text()
        .lines()
        .find_map(|line| line.strip_prefix("private_key = ").map(str::to_owned))
        .unwrap();
    let own = fed(&mut adit(["pubkey"]), own.trim_matches('"')).stdout;
    assert_eq!(value(conf, "PublicKey"), own.trim());
    let file = gateway.directory.path().join("laptop.conf");
    fs::write(&file, conf).unwrap();
    bad(&format!("check {}", file.display()), 1, "chmod 600");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    assert!(good(&format!("check {}", file.display())).stdout.contains("ok (wg-quick file"));
}

#[test]
fn a_key_that_is_written_into_a_file_makes_the_file_private() {
    let gateway = Gateway::new();
    for arguments in [&["peer", "add", "a", "--home", gateway.home()][..], &["genkey"]] {
        let path = gateway.directory.path().join(format!("{}.out", arguments[0]));
        let file = fs::File::create(&path).unwrap();
        file.set_permissions(fs::Permissions::from_mode(0o644)).unwrap();
        // As a shell leaves it for `sudo adit peer add a > a.conf`.
        chown(&path, Some(12_345), None).unwrap();
        let status = adit(arguments.iter().copied()).stdout(file).stderr(Stdio::null()).status().unwrap();
        assert!(status.success());
        assert_eq!(mode(&path), 0o600);
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!(metadata.uid(), 12_345);
        assert!(metadata.len() > 40);
    }
}

#[test]
fn a_split_tunnel_takes_the_gateways_networks_and_those_that_are_named() {
    let gateway = Gateway::new();
    let conf =
        gateway.good("peer add a --split 192.168.1.5/24,172.16.0.0/12 --suite chacha20-poly1305").stdout;
    assert_eq!(value(&conf, "AllowedIPs"), "10.9.0.0/24, 172.16.0.0/12, 192.168.1.0/24, fd00:9::/64");
    assert!(!conf.contains("# adit: suite"), "{conf}");
    assert!(
        run("peer add b --split x").code == 2 && run("peer add b --split 10.0.0.0/8 --full-tunnel").code == 2
    );
}

#[test]
fn peers_added_at_once_never_share_an_address() {
    let gateway = Gateway::new();
    let children: Vec<_> = (0..16)
        .map(|number| {
            adit(["peer", "add", &format!("p{number}"), "--home", gateway.home()])
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let peers = gateway.peers();
    let addresses: HashSet<String> = peers.iter().map(|peer| peer["addresses"].to_string()).collect();
    assert_eq!((peers.len(), addresses.len()), (16, 16));
}

#[test]
fn peers_are_listed_shown_and_removed_and_the_file_keeps_its_comments() {
    let gateway = Gateway::new();
    let before = gateway.text();
    gateway.good("peer add laptop");
    gateway.good("peer add phone --suite chacha20-poly1305");
    gateway.bad("peer add phone", "there is a peer `phone` already");
    let list = gateway.good("peer list").stdout;
    let lines: Vec<&str> = list.lines().collect();
    assert!(lines.len() == 3 && lines[0].starts_with("NAME") && lines[2].starts_with("phone"), "{list}");
    let shown = gateway.good("peer show phone").stdout;
    assert!(shown.contains("preshared key  (hidden)") && shown.contains("10.9.0.3, fd00:9::3"), "{shown}");
    let json: Value = serde_json::from_str(&gateway.good("peer show phone --json").stdout).unwrap();
    assert_eq!((&json["name"], &json["has_preshared_key"]), (&"phone".into(), &true.into()));
    gateway.bad("peer show phon", "did you mean `phone`?");
    gateway.bad("peer rm nobody", "there is no peer `nobody`");
    gateway.good("peer rm phone");
    gateway.good("peer rm laptop");
    assert_eq!(gateway.text(), before);
    gateway.good("peer add tablet");
    assert_eq!(gateway.peers()[0]["addresses"][0], "10.9.0.4", "an address is not given again so soon");
}

#[test]
fn a_peer_that_could_not_be_told_is_not_kept() {
    let gateway = Gateway::new();
    let before = gateway.text();
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let ran = ran(adit(["peer", "add", "a", "--home", gateway.home()]).stdout(full).output().unwrap());
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("the peer was not added"), "{}", ran.stderr);
    assert_eq!(gateway.text(), before);
}
