//! Which address the world sees: `adit ip` against services in the lab's internet, and what the gateway says.

mod common;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use adit_lab::{Host, Process, wait_for};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use serde_json::Value;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

use common::internet::{
    GATEWAY, GATEWAY6, INSIDE, INSIDE6, Internet, WEB, WEB6, adit, admit, client_addresses, init,
    start_gateway, stop_gateway, succeed,
};
use common::service::{Service, ok};
use common::{ADIT, SOON};

/// What the internet sees of client `number`, whose own IPv4 address is a private one.
fn public(number: usize) -> String {
    format!("192.0.2.{}", 100 + number)
}

/// Clients behind a NAT, as clients are.
fn internet(prefix: &str, clients: usize) -> Internet {
    let net = Internet::new(prefix, clients);
    let rules: String = (0..clients)
        .map(|number| {
            let (own, _) = client_addresses(number);
            let net = own.rsplit_once('.').unwrap().0.to_owned();
            format!(
                "ip saddr {net}.0/25 snat to {}\nip saddr {net}.128/25 snat to 192.0.2.{}\n",
                public(number),
                200 + number
            )
        })
        .collect();
    net.router
        .nft(&format!(
            "table ip homes {{ chain leaving {{ type nat hook postrouting priority srcnat\n{rules}}}\n}}"
        ))
        .unwrap();
    net
}

fn text_service(host: &Host, at: &str) -> Service {
    Service::start(host, at, |from| ok(&format!("{from}\n")))
}

/// A service of each family on the web server.
fn both(net: &Internet) -> Vec<String> {
    [format!("{WEB}:8001"), format!("[{WEB6}]:8001")]
        .iter()
        .map(|at| text_service(&net.web, at).url)
        .collect()
}

fn asking(services: &[String], arguments: &[&str]) -> Vec<String> {
    let words = ["ip".to_owned()].into_iter().chain(arguments.iter().map(|it| (*it).to_owned()));
    words.chain(services.iter().flat_map(|url| ["--service".to_owned(), url.clone()])).collect()
}

fn ask(client: &Host, services: &[String], arguments: &[&str]) -> Value {
    let words = asking(services, &[arguments, &["--json"]].concat());
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let output = adit(client, &words);
    assert!(output.ok(), "{words:?}: {}{}", output.stdout, output.stderr);
    let page = output.json().unwrap();
    assert_eq!(page["schema"], 1);
    page
}

fn whoami(client: &Host, gateway: &str) -> Value {
    let url = format!("http://{gateway}:9585/v1/whoami");
    let report = client.agent(["http-get", &url]).exec().unwrap().json().unwrap();
    serde_json::from_str(report["text"].as_str().unwrap()).unwrap()
}

fn up(net: &Internet, number: usize, arguments: &[&str]) {
    let client = &net.clients[number];
    let file = admit(&net.gateway, &format!("tun-{number}"), client, arguments);
    succeed(client, &["up", &file]);
}

fn gateway(net: &Internet) -> Process {
    init(&net.gateway);
    start_gateway(&net.gateway)
}

#[test]
fn two_clients_learn_who_they_are_and_again_after_one_of_them_moved() {
    let net = internet("ipwho", 2);
    let _gateway = gateway(&net);
    for (number, suite) in ["aes-256-gcm", "chacha20-poly1305"].into_iter().enumerate() {
        up(&net, number, &["--suite", suite]);
    }
    let check = |number: usize, suite: &str, address: &str| {
        for at in [INSIDE.to_owned(), format!("[{INSIDE6}]")] {
            let told = whoami(&net.clients[number], &at);
            assert_eq!((&told["schema"], &told["carrier"]), (&1.into(), &"udp".into()), "{told}");
            assert_eq!(
                (told["name"].as_str(), told["suite"].as_str()),
                (Some(&*format!("tun-{number}")), Some(suite))
            );
            let inside = [format!("10.86.0.{}", 2 + number), format!("fd86:ad17::{}", 2 + number)];
            assert_eq!(told["inside"], serde_json::json!(inside));
            let outside = told["outside"].as_str().unwrap();
            assert_eq!(outside.rsplit_once(':').unwrap().0, address, "{told}");
        }
    };
    check(0, "aes-256-gcm", "192.0.2.100");
    check(1, "chacha20-poly1305", "192.0.2.101");

    let client = &net.clients[0];
    client.ip(["addr", "del", "10.100.0.2/24", "dev", "eth0"]).unwrap();
    client.add_address("eth0", "10.100.0.130/24").unwrap();
    client.add_route("default via 10.100.0.1 dev eth0").unwrap();
    check(0, "aes-256-gcm", "192.0.2.200");
    check(1, "chacha20-poly1305", "192.0.2.101");
}

#[test]
fn the_world_sees_the_gateway_through_the_tunnel_and_the_client_without_it() {
    let net = internet("ipmask", 1);
    let services = both(&net);
    let client = &net.clients[0];
    let own6 = client_addresses(0).1;

    let before = ask(client, &services, &[]);
    assert_eq!(before["tunnel"], "down");
    for (family, own) in [("ipv4", public(0)), ("ipv6", own6.clone())] {
        assert_eq!(before[family]["seen"]["address"], own, "{before}");
        assert_eq!(
            (&before[family]["outside"]["address"], &before[family]["masked"]),
            (&own.into(), &false.into())
        );
    }
    let _gateway = gateway(&net);
    up(&net, 0, &[]);

    let page = ask(client, &services, &[]);
    assert_eq!((&page["tunnel"], &page["interface"]), (&"up".into(), &"tun-0".into()));
    for (family, seen, own) in [("ipv4", GATEWAY, public(0)), ("ipv6", GATEWAY6, own6.clone())] {
        assert_eq!(page[family]["seen"]["address"], seen, "{page}");
        assert_eq!(page[family]["outside"]["address"], own, "{page}");
        assert_eq!(page[family]["masked"], true, "{page}");
    }
    assert_eq!(page["ipv4"]["outside"]["source"], format!("gateway {INSIDE}"), "no third party was needed");
    assert!(
        page["ipv6"]["outside"]["source"].as_str().unwrap().contains(WEB6),
        "the gateway knows one family"
    );

    let words = asking(&services, &[]);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let text = succeed(client, &words).stdout;
    assert!(text.contains("masked: yes") && text.contains(GATEWAY) && text.contains(&public(0)), "{text}");
    let words = asking(&services, &["--outside", "-4"]);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    assert_eq!(succeed(client, &words).stdout, format!("IPv4  {}\n", public(0)));
    let only6 = ask(client, &services, &["-6"]);
    assert!(only6["ipv4"].is_null() && only6["ipv6"]["masked"] == true, "{only6}");

    succeed(client, &["down"]);
    assert_eq!(ask(client, &services, &[])["ipv4"]["seen"]["address"], public(0));
}

#[test]
fn a_split_tunnel_masks_nothing_and_says_so() {
    let net = internet("ipsplit", 1);
    let services = both(&net);
    let _gateway = gateway(&net);
    up(&net, 0, &["--split"]);
    let page = ask(&net.clients[0], &services, &["-4"]);
    assert_eq!((&page["tunnel"], &page["ipv4"]["masked"]), (&"up".into(), &false.into()), "{page}");
    let words = asking(&services, &["-4"]);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let text = succeed(&net.clients[0], &words).stdout;
    assert!(text.contains("masked: no") && text.contains("goes around the tunnel"), "{text}");
}

#[test]
fn services_that_are_dead_or_hang_or_talk_nonsense_are_passed_over_in_every_format() {
    let net = internet("ipturn", 1);
    let client = &net.clients[0];
    let at = |port: u16| format!("{WEB}:{port}");
    let service = |port, reply| Service::start(&net.web, &at(port), reply);
    let bad = [
        service(7002, |_| None),
        service(7003, |_| Some("HTTP/1.1 503 Busy\r\nContent-Length: 11\r\n\r\n203.0.113.1".to_owned())),
        service(7004, |_| Some("HTTP/1.1 302 Found\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n".to_owned())),
        service(7005, |_| ok("<html>203.0.113.1</html>")),
        service(7006, |_| ok("10.9.8.7\n")),
        service(7007, |_| ok("2001:db8::7\n")),
        service(7008, |_| ok(&format!("{{\"ip\":\"203.0.113.1\",\"pad\":\"{}\"}}", "x".repeat(5000)))),
        service(7009, |_| Some("SSH-2.0-OpenSSH\r\n".to_owned())),
        service(7010, |_| Some("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n203.0.113.1".to_owned())),
        service(7011, |_| Some(format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n203.0.113.1", "x".repeat(100_000)))),
    ];
    let good = [
        service(7101, |from| ok(&from.to_string())),
        service(7102, |from| ok(&format!("{{\"ip\":\"{from}\"}}"))),
        service(7103, |from| ok(&format!("{{\n  \"origin\": \"{from}, 198.51.100.99\"\n}}\n"))),
        service(7104, |from| ok(&format!("{{\"ip\": \"{from}\", \"city\": \"X\", \"loc\": \"1,2\"}}"))),
    ];
    for service in &good {
        let page = ask(client, std::slice::from_ref(&service.url), &["-4"]);
        assert_eq!(page["ipv4"]["seen"]["address"], public(0), "{page}");
        assert_eq!(page["ipv4"]["failures"], serde_json::json!([]));
    }

    let dead = format!("http://{}/", at(7001));
    let mut services = vec![dead];
    services.extend(bad.iter().map(|service| service.url.clone()));
    services.push(good[0].url.clone());
    let hits = good[0].hits();
    let started = Instant::now();
    let page = ask(client, &services, &["-4"]);
    assert!(started.elapsed() < Duration::from_secs(12), "two of them hang: {:?}", started.elapsed());
    assert_eq!(page["ipv4"]["seen"]["address"], public(0), "{page}");
    assert_eq!(good[0].hits(), hits + 1);
    assert!(bad.iter().all(|service| service.hits() == 1), "each was asked once");
    let reason = |at: usize| page["ipv4"]["failures"][at]["reason"].as_str().unwrap().to_owned();
    let expected = [
        "refused",
        "no answer in 3 s",
        "status 503",
        "status 302",
        "no address",
        "nobody has",
        "over IPv4",
        "more than 4096 bytes",
        "no HTTP",
        "broke off",
        "no HTTP",
    ];
    for (at, words) in expected.into_iter().enumerate() {
        assert!(reason(at).contains(words), "{at}: {}", reason(at));
    }

    services.pop();
    let words = asking(&services[..1], &["-4"]);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let none = adit(client, &words);
    assert_eq!(none.code(), Some(1), "{none:?}");
    assert!(none.stderr.contains("nobody said") && none.stderr.contains("refused"), "{}", none.stderr);
}

#[test]
fn the_list_of_services_is_configured_by_file_variable_and_flag() {
    let net = internet("iplist", 1);
    let client = &net.clients[0];
    let [a, b, c] = [8001, 8002, 8003].map(|port| text_service(&net.web, &format!("{WEB}:{port}")));
    let home = common::internet::home(client);
    fs::create_dir_all(&home).unwrap();
    let file = home.join("adit.toml");
    fs::write(&file, format!("config_version = 1\n[ip]\nservices = [\"{}\"]\n", a.url)).unwrap();
    client.exec(["chmod", "600", &file.display().to_string()]).unwrap();
    let hits = || [a.hits(), b.hits(), c.hits()];
    ask(client, &[], &["-4"]);
    assert_eq!(hits(), [1, 0, 0]);
    client.set_env("ADIT_IP_SERVICES", &format!("{} {}", b.url, a.url));
    ask(client, &[], &["-4"]);
    assert_eq!(hits(), [1, 1, 0]);
    ask(client, std::slice::from_ref(&c.url), &["-4"]);
    assert_eq!(hits(), [1, 1, 1]);

    client.set_env("ADIT_IP_SERVICES", "gopher://x/");
    let output = adit(client, &["ip", "-4"]);
    assert_eq!(output.code(), Some(1));
    assert!(
        output.stderr.contains("ADIT_IP_SERVICES") && output.stderr.contains("https://"),
        "{}",
        output.stderr
    );
}

#[test]
fn a_service_over_tls_is_believed_only_with_a_certificate_that_this_host_trusts() {
    let net = internet("iptls", 1);
    let client = &net.clients[0];
    let issuer = || {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    };
    let (trusted, other) = (issuer(), issuer());
    let server = |names: &[&str]| {
        let key = KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let certificate = CertificateParams::new(names).unwrap().signed_by(&key, &trusted).unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
        let config = config.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
        Arc::new(config.with_single_cert(vec![certificate.der().clone()], key).unwrap())
    };
    let right =
        Service::start_tls(&net.web, &format!("{WEB}:8443"), server(&[WEB]), |from| ok(&from.to_string()));
    let misnamed = Service::start_tls(&net.web, &format!("{WEB}:8444"), server(&["a.example"]), |from| {
        ok(&from.to_string())
    });
    let file = |name: &str, pem: String| client.write(name, pem).unwrap().display().to_string();
    let (good, bad) = (file("good.pem", trusted.pem()), file("bad.pem", other.pem()));

    client.set_env("SSL_CERT_FILE", &good);
    let page = ask(client, &[misnamed.url.clone(), right.url.clone()], &["-4"]);
    assert_eq!(page["ipv4"]["seen"]["address"], public(0), "{page}");
    assert_eq!(page["ipv4"]["seen"]["source"], format!("{WEB}:8443"));
    assert!(page["ipv4"]["failures"][0]["reason"].as_str().unwrap().contains("TLS"), "{page}");

    client.set_env("SSL_CERT_FILE", &bad);
    let words = asking(std::slice::from_ref(&right.url), &["-4"]);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let refused = adit(client, &words);
    assert_eq!(refused.code(), Some(1));
    assert!(refused.stderr.contains("TLS failed"), "{}", refused.stderr);
}

#[test]
fn without_a_gateway_that_answers_the_services_are_asked_around_the_tunnel() {
    let net = internet("ipdown", 1);
    let services = both(&net);
    let process = gateway(&net);
    up(&net, 0, &[]);
    stop_gateway(process);
    let page = wait_for("an answer around the tunnel", SOON * 2, || {
        let page = ask(&net.clients[0], &services, &["-4"]);
        (page["tunnel"] == "up").then_some(page)
    })
    .unwrap();
    assert_eq!(page["ipv4"]["outside"]["address"], public(0), "{page}");
    assert!(page["ipv4"]["seen"].is_null() && page["ipv4"]["masked"].is_null(), "{page}");
    assert_eq!(page["ipv4"]["failures"][0]["service"], "gateway", "{page}");
}

#[test]
fn an_ordinary_user_is_told_what_the_world_sees_and_that_only_root_knows_more() {
    let net = internet("ipuser", 1);
    let services = both(&net);
    let _gateway = gateway(&net);
    up(&net, 0, &[]);
    let client = &net.clients[0];
    // Where a user may run it from.
    let directory = tempfile::Builder::new().permissions(Permissions::from_mode(0o755)).tempdir().unwrap();
    let program = directory.path().join("adit");
    fs::copy(ADIT, &program).unwrap();
    let as_user = |arguments: &[&str]| {
        let home = common::internet::home(client).display().to_string();
        let program = program.display().to_string();
        let words = asking(&services, arguments);
        let user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", &program, "--home", &home];
        client.attempt(user.into_iter().map(str::to_owned).chain(words)).unwrap()
    };
    let page = as_user(&["--json"]).json().unwrap();
    assert_eq!((&page["tunnel"], &page["interface"]), (&"unknown".into(), &Value::Null), "{page}");
    assert_eq!(page["ipv4"]["seen"]["address"], GATEWAY, "{page}");
    assert!(page["ipv4"]["outside"].is_null() && page["ipv4"]["masked"].is_null(), "{page}");
    let text = as_user(&["-4"]);
    assert!(text.ok() && text.stdout.contains("sudo adit ip"), "{text:?}");
    let outside = as_user(&["--outside"]);
    assert_eq!(outside.code(), Some(1));
    assert!(outside.stderr.contains("run `sudo adit ip --outside --home "), "{}", outside.stderr);
    assert_eq!(ask(client, &services, &["--outside", "-4"])["ipv4"]["outside"]["address"], public(0));
}
