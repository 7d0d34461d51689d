//! From nothing to connected: `init`, `gateway`, `invite`, `join`, and what becomes of invites that are wrong, used,
//! expired or revoked.

mod common;

use std::fs;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use adit::invite::InviteUrl;
use adit::tunnel::Tunnel;
use adit_lab::{End, Host, Output, wait_for};
use common::internet::{
    GATEWAY, INSIDE, Internet, WEB, adit, home, start_gateway, status, stop_gateway, succeed,
};
use common::{SOON, on};
use serde_json::Value;

/// Everything below a directory, by path, without what a run leaves on purpose: locks.
fn files_below(host: &Host) -> Vec<String> {
    let found = host.attempt(["find", &home(host).display().to_string(), "-type", "f"]).unwrap().stdout;
    let mut files: Vec<String> =
        found.lines().filter(|it| !it.ends_with("lock")).map(str::to_owned).collect();
    files.sort();
    files
}

fn init(net: &Internet) {
    succeed(&net.gateway, &["init"]);
}

fn invite(net: &Internet, arguments: &[&str]) -> String {
    let output = succeed(&net.gateway, &[&["invite"], arguments].concat());
    let url = output.stdout.trim().to_owned();
    assert!(url.starts_with(&format!("adit://{GATEWAY}:51820/#")), "{output:?}");
    assert_eq!(output.stdout.lines().count(), 1, "the URL alone");
    assert!(!output.stderr.contains(&url), "{}", output.stderr);
    url
}

fn invites(net: &Internet) -> Vec<Value> {
    let page = succeed(&net.gateway, &["invite", "list", "--json"]).json().unwrap();
    page["invites"].as_array().unwrap().clone()
}

fn peers(net: &Internet) -> Vec<String> {
    let page: Value = succeed(&net.gateway, &["peer", "list", "--json"]).json().unwrap();
    let peers = page["peers"].as_array().unwrap();
    peers.iter().map(|peer| peer["name"].as_str().unwrap().to_owned()).collect()
}

/// A `join` that has to fail, say why without the secret, and leave nothing behind.
fn refused(client: &Host, url: &str, reason: &str) -> Output {
    refused_with(1, client, url, reason)
}

/// As [`refused`], with that exit code: 2 for what cannot be an invite.
fn refused_with(code: i32, client: &Host, url: &str, reason: &str) -> Output {
    let before = files_below(client);
    let output = adit(client, &["join", url]);
    assert_eq!(output.status.code(), Some(code), "{output:?}");
    assert!(output.stderr.contains(reason), "{reason}: {}", output.stderr);
    let secret = url.split_once('#').map_or("", |(_, secret)| secret);
    assert!(secret.len() < 4 || !output.stderr.contains(secret), "{}", output.stderr);
    assert_eq!(files_below(client), before, "nothing is left behind");
    output
}

#[test]
fn two_commands_on_each_side_lead_from_nothing_to_a_page_through_the_tunnel() {
    let net = Internet::new("enrol", 1);
    let client = &net.clients[0];
    let direct = net.seen_from(client);
    init(&net);
    let gateway = start_gateway(&net.gateway);
    let url = invite(&net, &["laptop", "--tag", "office"]);
    let joined = succeed(client, &["join", &url]);
    assert_eq!(joined.stdout, "", "what is for people is on stderr");
    assert!(joined.stderr.contains("as laptop, with 10.86.0.2 and fd"), "{}", joined.stderr);
    assert!(joined.stderr.contains("is up"), "{}", joined.stderr);

    let through = net.seen_from(client);
    assert_ne!(through, direct);
    assert_eq!(through[0], GATEWAY, "masqueraded");
    let report = status(client);
    assert_eq!((&report["interface"], &report["peers"][0]["name"]), (&"adit0".into(), &"gateway".into()));
    let suite = report["peers"][0]["suite"].clone();
    let expected = adit::lease::suites_here()[0].name();
    assert_eq!(suite, expected, "both run on the same CPU");
    let report = status(&net.gateway);
    let seen = report["peers"].as_array().unwrap();
    assert_eq!((seen.len(), &seen[0]["name"], &seen[0]["suite"]), (1, &"laptop".into(), &suite), "{report}");
    assert_eq!(peers(&net), ["laptop"]);
    let shown = succeed(&net.gateway, &["peer", "show", "laptop"]).stdout;
    assert!(shown.contains("tags           office"), "{shown}");

    // The profile is a file like any other, and `up` finds it by name, or alone.
    succeed(client, &["down"]);
    assert_eq!(net.seen_from(client), direct);
    let profile = home(client).join("profiles/adit0.conf");
    let text = fs::read_to_string(&profile).unwrap();
    assert!(text.contains("DNS = 192.0.2.53\n"), "names are asked of whom the gateway asks: {text}");
    assert_eq!(fs::metadata(&profile).unwrap().permissions().mode() & 0o777, 0o600);
    for arguments in [&["up"][..], &["up", "adit0"]] {
        succeed(client, arguments);
        assert_eq!(net.seen_from(client), through, "{arguments:?}");
        succeed(client, &["down"]);
    }
    stop_gateway(gateway);
}

#[test]
fn a_wrong_used_expired_or_revoked_invite_is_told_so_on_both_sides_and_leaves_nothing() {
    let net = Internet::new("enrolbad", 2);
    let [client, late] = [&net.clients[0], &net.clients[1]];
    init(&net);
    let gateway = start_gateway(&net.gateway);

    let url = invite(&net, &["laptop"]);
    refused_with(2, late, "https://example.org/", "begins with adit://");
    refused_with(2, late, &url[..url.len() - 3], "damaged or incomplete");
    refused_with(2, late, url.split_once('#').unwrap().0, "the part behind # is missing");
    succeed(client, &["join", &url]);
    let said = refused(late, &url, "used already");
    assert!(
        said.stderr.contains("by `laptop`") && said.stderr.contains("`adit invite laptop`"),
        "{}",
        said.stderr
    );

    let revoked = invite(&net, &["phone"]);
    succeed(&net.gateway, &["invite", "revoke", "phone"]);
    refused(late, &revoked, "was revoked");
    let again = adit(&net.gateway, &["invite", "revoke", "phone"]);
    assert!(!again.ok() && again.stderr.contains("is not open: it was revoked"), "{}", again.stderr);

    let short = invite(&net, &["tablet", "--expires", "1s"]);
    wait_for("the invite to expire", SOON, || {
        (invites(&net).last().unwrap()["state"] == "expired").then_some(())
    })
    .unwrap();
    refused(late, &short, "expired");
    for reason in ["was used already", "was revoked", "expired"] {
        let line = format!("an invite was refused: this invite {reason}");
        assert!(gateway.stderr().contains(&line), "{line}: {}", gateway.stderr());
    }
    assert_eq!(peers(&net), ["laptop"]);

    // The same machine, with an invite that is good: nothing of the above stuck to it.
    let good = invite(&net, &["late", "--expires", "1h"]);
    succeed(late, &["join", &good]);
    assert_eq!(net.seen_from(late)[0], GATEWAY);
    assert_eq!(peers(&net), ["laptop", "late"]);

    // Secrets are in no file of the gateway that can be read without them, and in no log.
    for url in [&url, &revoked, &short, &good] {
        let secret = url.split_once('#').unwrap().1;
        assert!(!gateway.stderr().contains(secret));
        let found =
            net.gateway.attempt(["grep", "-rl", secret, &home(&net.gateway).display().to_string()]).unwrap();
        assert_eq!(found.stdout, "", "the gateway forgets the secret");
    }
    stop_gateway(gateway);
}

#[test]
fn the_invited_reach_the_inside_api_and_nothing_else() {
    let net = Internet::new("enrolout", 2);
    let [client, other] = [&net.clients[0], &net.clients[1]];
    init(&net);
    let gateway = start_gateway(&net.gateway);
    let url = invite(&net, &["other"]);
    succeed(other, &["join", &url]);
    let inside_other: IpAddr = "10.86.0.2".parse().unwrap();
    let mut server = other.agent(["http-server", "--listen", "[::]:8080"]).spawn().unwrap();
    server.wait_for_text("listening", SOON).unwrap();
    let mut on_gateway = net.gateway.agent(["http-server", "--listen", "[::]:8080"]).spawn().unwrap();
    on_gateway.wait_for_text("listening", SOON).unwrap();

    let url = InviteUrl::parse(&invite(&net, &["laptop"])).unwrap();
    let mut file = adit::join::file_of_the_invited(&url);
    file.peers[0].allowed_ips = vec!["0.0.0.0/0".parse().unwrap()];
    let invited = on(client, || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let tunnel = Tunnel::open(&file).unwrap();
            tunnel.wait_until_up().await.unwrap();
            let reaches = async |address: &str, port: u16| {
                let connect = tunnel.tcp_connect(address, port);
                matches!(tokio::time::timeout(Duration::from_secs(2), connect).await, Ok(Ok(_)))
            };
            let seen = [
                reaches(INSIDE, 9585).await,
                reaches(INSIDE, 8080).await,
                reaches(&inside_other.to_string(), 8080).await,
                reaches(WEB, 80).await,
                reaches(GATEWAY, 8080).await,
            ];
            let udp = tunnel.udp_bind(INSIDE.parse().unwrap()).unwrap();
            udp.send_to(&adit::inside::probe(1), SocketAddr::new(INSIDE.parse().unwrap(), 9585)).unwrap();
            let answer = tokio::time::timeout(Duration::from_secs(1), udp.recv_from()).await;
            (seen, answer.is_ok())
        })
    });
    assert_eq!(
        invited,
        ([true, false, false, false, false], false),
        "API, gateway, peer, internet, outside; UDP"
    );
    // What the API says to who is only invited.
    let questions = on(client, || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            use tokio::io::{AsyncReadExt, AsyncWriteExt};
            let tunnel = Tunnel::open(&file).unwrap();
            let mut answers = Vec::new();
            for (line, body) in [("GET /v1/whoami", ""), ("GET /v1/enrol", ""), ("POST /v1/enrol", "{}")] {
                let mut stream = tunnel.tcp_connect(INSIDE, 9585).await.unwrap();
                let request = format!(
                    "{line} HTTP/1.1\r\nHost: {INSIDE}:9585\r\nContent-Length: {}\r\n\r\n{body}",
                    body.len()
                );
                stream.write_all(request.as_bytes()).await.unwrap();
                let mut answer = String::new();
                let _ = stream.read_to_string(&mut answer).await;
                answers.push(answer.split(' ').nth(1).unwrap_or_default().to_owned());
            }
            answers
        })
    });
    assert_eq!(questions, ["403", "403", "400"]);

    // The control: as a peer, the same machine reaches all of it.
    succeed(client, &["join", &url.to_text()]);
    for (address, port) in [(INSIDE, 9585), (INSIDE, 8080), ("10.86.0.2", 8080), (WEB, 80)] {
        let at = SocketAddr::new(address.parse().unwrap(), port);
        let connected = on(client, || TcpStream::connect_timeout(&at, SOON));
        assert!(connected.is_ok(), "{at}: {connected:?}");
    }
    // Others cannot speak to who is only invited: its address is used by nobody else.
    let waiting = InviteUrl::parse(&invite(&net, &["waiting"])).unwrap();
    assert_eq!(client.ping(&waiting.address.to_string(), 1).unwrap_or(0), 0);
    stop_gateway(gateway);
}

#[test]
fn init_asks_nothing_and_chooses_what_clashes_with_nothing_of_the_host() {
    let lab = common::lab("initpick");
    let (host, router) = (lab.host("gateway").unwrap(), lab.host("router").unwrap());
    lab.connect(
        End::new(&host, "eth0").address("192.168.7.2/24"),
        End::new(&router, "eth0").address("192.168.7.1/24"),
    )
    .unwrap();
    host.add_route("default via 192.168.7.1").unwrap();
    let pick = || {
        let output = succeed(&host, &["init"]);
        let text = fs::read_to_string(home(&host).join("adit.toml")).unwrap();
        let value = |key: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(&format!("{key} = "))).unwrap();
            line.trim_matches('"').to_owned()
        };
        let picked = ["endpoint", "listen", "network", "interface"].map(value);
        fs::remove_dir_all(home(&host)).unwrap();
        (picked, output.stdout)
    };
    // The control: nothing is in the way.
    let (picked, said) = pick();
    assert_eq!(picked, ["192.168.7.2:51820", ":51820", "10.86.0.0/24", "adit0"]);
    assert!(said.contains("only its own network reaches it") && said.contains("eth0"), "{said}");

    // An address on an interface that is down, a route in another table, a resolver, a port, an interface.
    host.ip(["link", "add", "adit0", "type", "veth", "peer", "name", "unused"]).unwrap();
    host.add_address("adit0", "10.86.0.77/25").unwrap();
    host.add_route("10.87.0.0/16 via 192.168.7.1 table 77").unwrap();
    host.set_resolv_conf("nameserver 10.88.0.53\n").unwrap();
    let _taken = on(&host, || std::net::UdpSocket::bind("0.0.0.0:51820").unwrap());
    let (picked, said) = pick();
    assert_eq!(picked, ["192.168.7.2:51821", ":51821", "10.89.0.0/24", "adit1"], "{said}");
    assert!(said.contains("because this host reaches 10.86.0.0/25 already, by adit0"), "{said}");
    assert!(said.contains("another program has 51820"), "{said}");
}
