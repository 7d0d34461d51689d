//! Files of adit in the hands of stock WireGuard tools, and theirs in ours.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use adit_lab::{Host, Invocation};
use common::internet::{GATEWAY, Internet, WEB, WEB6, adit, home, start_gateway, stop_gateway, succeed};

fn private_file(host: &Host, name: &str, text: &str) -> String {
    let path = host.write(name, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path.display().to_string()
}

/// `wg-quick` with wireguard-go as its device.
fn wg_quick(host: &Host, verb: &str, file: &str) -> adit_lab::Output {
    host.command(["wg-quick", verb, file])
        .env("WG_QUICK_USERSPACE_IMPLEMENTATION", "wireguard-go")
        .env("LOG_LEVEL", "error")
        .attempt()
        .unwrap()
}

#[test]
fn a_file_that_adit_exports_runs_in_wg_quick_with_wireguard_go() {
    let net = Internet::new("stock", 1);
    let client = &net.clients[0];
    let direct = net.seen_from(client);
    succeed(&net.gateway, &["init"]);
    let gateway = start_gateway(&net.gateway);
    let added = succeed(&net.gateway, &["peer", "add", "phone", "--conf"]);
    assert!(!added.stdout.contains("suite"), "a stock app has one suite: {}", added.stdout);
    // The name is that of a device in a directory that all tests share.
    let name = format!("b{}.conf", std::process::id() % 100_000);
    let file = private_file(client, &name, &added.stdout);
    let up = wg_quick(client, "up", &file);
    assert!(up.ok(), "{}", up.stderr);
    let through = net.seen_from(client);
    assert!(through[0] == GATEWAY && through[1] != direct[1], "{through:?}");
    let down = wg_quick(client, "down", &file);
    assert!(down.ok(), "{}", down.stderr);
    assert_eq!(net.seen_from(client), direct);

    // Once more with a new key; the old file is worth nothing then.
    let exported = succeed(&net.gateway, &["peer", "export", "phone", "--new-key"]);
    let new = private_file(client, &name, &exported.stdout);
    assert!(wg_quick(client, "up", &new).ok());
    assert_eq!(net.seen_from(client)[0], GATEWAY);
    assert!(wg_quick(client, "down", &new).ok());
    let old = private_file(client, &name, &added.stdout);
    assert!(wg_quick(client, "up", &old).ok());
    assert_eq!(client.ping("10.86.0.1", 1).unwrap_or(0), 0, "the old key is not taken");
    assert!(wg_quick(client, "down", &old).ok());

    // Without a new key the file says all but the key, and no QR code is made of it.
    let template = succeed(&net.gateway, &["peer", "export", "phone"]).stdout;
    assert!(template.contains("# PrivateKey = ") && !template.contains("\nPrivateKey"), "{template}");
    let line = exported.stdout.lines().find(|line| line.starts_with("PrivateKey")).unwrap();
    let placeholder = template.lines().find(|line| line.starts_with("# PrivateKey")).unwrap();
    assert_eq!(template.replace(placeholder, line), exported.stdout);
    assert!(adit(&net.gateway, &["peer", "export", "phone", "--qr"]).stderr.contains("--new-key"));
    stop_gateway(gateway);
}

#[test]
fn a_file_made_for_wg_quick_runs_in_adit() {
    let net = Internet::new("stockin", 1);
    let client = &net.clients[0];
    let direct = net.seen_from(client);
    let key = || {
        let private = Invocation::new(["wg", "genkey"]).exec().unwrap().stdout.trim().to_owned();
        let public =
            Invocation::new(["wg", "pubkey"]).input(private.clone()).exec().unwrap().stdout.trim().to_owned();
        (private, public)
    };
    let ((server, server_public), (own, own_public)) = (key(), key());
    let preshared = Invocation::new(["wg", "genpsk"]).exec().unwrap().stdout.trim().to_owned();
    let text = format!(
        "[Interface]\nAddress = 10.77.0.1/24\nListenPort = 51820\nPrivateKey = {server}\n\
         PostUp = sysctl -q -w net.ipv4.ip_forward=1; iptables -t nat -A POSTROUTING -o eth0 -j MASQUERADE\n\n\
         [Peer]\nPublicKey = {own_public}\nPresharedKey = {preshared}\nAllowedIPs = 10.77.0.2/32\n"
    );
    let text = text.replace("iptables -t nat -A POSTROUTING -o eth0 -j MASQUERADE", "nft add table ip n; nft 'add chain ip n p { type nat hook postrouting priority 100; }'; nft add rule ip n p oifname eth0 masquerade");
    let name = format!("s{}.conf", std::process::id() % 100_000);
    let file = private_file(&net.gateway, &name, &text);
    let up = wg_quick(&net.gateway, "up", &file);
    assert!(up.ok(), "{}", up.stderr);
    let conf = format!(
        "[Interface]\nPrivateKey = {own}\nAddress = 10.77.0.2/24\n\n[Peer]\nPublicKey = {server_public}\n\
         PresharedKey = {preshared}\nAllowedIPs = 0.0.0.0/0\nEndpoint = {GATEWAY}:51820\nPersistentKeepalive = 25\n"
    );
    let conf = private_file(client, "home.conf", &conf);
    succeed(client, &["up", &conf]);
    let seen = client.agent(["http-get", &format!("http://{WEB}/")]).exec().unwrap().json().unwrap();
    assert_eq!(seen["text"].as_str().unwrap().trim(), GATEWAY);
    let other = client.agent(["http-get", &format!("http://[{WEB6}]/")]).attempt().unwrap();
    assert!(!other.ok(), "a file without IPv6 keeps IPv6 in: {}", other.stdout);
    succeed(client, &["down"]);
    assert_eq!(net.seen_from(client), direct);
    assert!(wg_quick(&net.gateway, "down", &file).ok());
}

/// What is in a QR code on a terminal: the blocks as pixels of a bitmap, read by another program.
fn decoded(shown: &str) -> String {
    let rows: Vec<Vec<char>> = shown
        .lines()
        .filter(|line| line.starts_with("\x1b[97;40m"))
        .map(|line| line.trim_start_matches("\x1b[97;40m").trim_end_matches("\x1b[0m").chars().collect())
        .collect();
    const SCALE: usize = 6;
    let width = rows[0].len();
    let mut bitmap = format!("P1\n{} {}\n", width * SCALE, rows.len() * 2 * SCALE);
    for row in &rows {
        for half in [['█', '▀'], ['█', '▄']] {
            let line: String =
                row.iter().map(|char| if half.contains(char) { "0 " } else { "1 " }.repeat(SCALE)).collect();
            for _ in 0..SCALE {
                bitmap.push_str(&line);
                bitmap.push('\n');
            }
        }
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("code.pbm");
    fs::write(&path, bitmap).unwrap();
    let read = Invocation::new(["zbarimg", "--quiet", "--raw", &path.display().to_string()]).exec().unwrap();
    read.stdout
}

#[test]
fn a_phone_reads_the_codes_of_a_peer_and_of_an_invite() {
    let net = Internet::new("stockqr", 0);
    succeed(&net.gateway, &["init"]);
    let added = succeed(&net.gateway, &["peer", "add", "phone", "--qr", "--dns", "9.9.9.9"]);
    let file = decoded(&added.stdout);
    assert!(file.starts_with("[Interface]\n") && file.contains("\nPrivateKey = "), "{file}");
    assert!(file.contains("DNS = 9.9.9.9"), "{file}");
    let shown = succeed(&net.gateway, &["peer", "export", "phone", "--dns", "9.9.9.9"]).stdout;
    let body = |text: &str| {
        text.lines()
            .filter(|line| !line.contains("PrivateKey"))
            .map(str::to_owned)
            .collect::<Vec<_>>()
            .join("\n")
    };
    assert_eq!(body(file.trim_end()), body(shown.trim_end()), "all but the key");
    let invited = succeed(&net.gateway, &["invite", "tablet", "--qr"]);
    assert_eq!(decoded(&invited.stderr).trim_end(), invited.stdout.trim_end());
    assert!(home(&net.gateway).join("state/invites.json").exists());
}
