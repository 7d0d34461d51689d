//! The gateway's TCP port among web servers, proxies, browsers and scanners.

mod common;

use std::path::Path;
use std::time::{Duration, Instant};

use adit_lab::{Content, Host, Process, find_tool, wait_for};
use common::SOON;
use common::carried::{configure, peer, up, wait_for_carrier};
use common::internet::{
    GATEWAY, INSIDE, Internet, admit, finish_download, home, init, start_gateway, status, stop_gateway,
    succeed,
};

const FILE: Content = Content { seed: 0xad17, bytes: 4 << 20 };
/// The router as the first client sees it.
const ROUTER: &str = "10.100.0.1";

/// A certificate and its key in PEM, for `name`, in `directory`; where they are.
fn make_certificate(host: &Host, directory: &Path, name: &str) -> [String; 2] {
    std::fs::create_dir_all(directory).unwrap();
    let [certificate, key] =
        ["certificate.pem", "key.pem"].map(|it| directory.join(it).display().to_string());
    let subject = format!("/CN={name}");
    host.exec(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
            .into_iter()
            .chain(["-days", "2", "-subj", &subject, "-keyout", &key, "-out", &certificate]),
    )
    .unwrap();
    [certificate, key]
}

fn wait_for_port(host: &Host, port: u16) {
    wait_for(format!("somebody to listen on port {port}"), SOON, || {
        let listening = host.exec(["ss", "-Hltn"]).ok()?.stdout;
        listening.contains(&format!(":{port} ")).then_some(())
    })
    .unwrap();
}

fn start_nginx(host: &Host, port: u16, path_to: &str) -> Process {
    let directory = host.directory().join("nginx");
    let [certificate, key] = make_certificate(host, &directory, "vpn.example.org");
    let at = directory.display();
    let text = format!(
        "daemon off; master_process off; pid {at}/pid; error_log stderr;
events {{}}
http {{
  access_log off; client_body_temp_path {at}/body; proxy_temp_path {at}/proxy; fastcgi_temp_path {at}/fastcgi;
  uwsgi_temp_path {at}/uwsgi; scgi_temp_path {at}/scgi;
  map $http_upgrade $connection_upgrade {{ default upgrade; '' close; }}
  server {{
    listen {port} ssl; ssl_protocols TLSv1.2 TLSv1.3; ssl_certificate {certificate}; ssl_certificate_key {key};
    location / {{
      proxy_pass {path_to}; proxy_http_version 1.1; proxy_set_header Host $host; proxy_buffering off;
      proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $connection_upgrade;
      proxy_read_timeout 1h; proxy_send_timeout 1h;
    }}
  }}
}}
"
    );
    let file = host.write("nginx/nginx.conf", text).unwrap().display().to_string();
    let process = host.spawn(["nginx", "-e", "stderr", "-c", &file]).unwrap();
    wait_for_port(host, port);
    process
}

fn start_caddy(host: &Host, port: u16, path_to: &str) -> Process {
    let directory = host.directory().join("caddy");
    let [certificate, key] = make_certificate(host, &directory, "vpn.example.org");
    let text = format!(
        "{{\n  admin off\n  auto_https off\n}}\nhttps://:{port} {{\n  tls {certificate} {key}\n  reverse_proxy {path_to}\n}}\n"
    );
    let file = host.write("caddy/Caddyfile", text).unwrap().display().to_string();
    let home = directory.display().to_string();
    let caddy = host.command(["caddy", "run", "--adapter", "caddyfile", "--config", &file]);
    let process = caddy.env("HOME", home.clone()).env("XDG_DATA_HOME", home).spawn().unwrap();
    wait_for_port(host, port);
    process
}

/// A client reaches a gateway whose port is only known to a web server, which also serves others.
fn look_behind(name: &str, web_server: fn(&Host, u16, &str) -> Process, path_to: &str) {
    let internet = Internet::new(name, 1);
    let (client, host) = (&internet.clients[0], &internet.gateway);
    init(host);
    configure(host, "stream = [\"127.0.0.1:8443\"]");
    let gateway = start_gateway(host);
    let file = admit(host, "phone", client, &[]);
    let server = web_server(host, 443, path_to);
    internet.router.drop_udp().unwrap();
    let place = format!("{GATEWAY}:443");
    up(
        client,
        &file,
        &["--carrier", "wss", "--stream-endpoint", &place, "--tls-verify", "off", "--sni", "vpn.example.org"],
    );
    wait_for_carrier(client, &["wss"], SOON);
    assert_eq!(client.ping(INSIDE, 3).unwrap(), 3);
    finish_download(internet.start_download(client, FILE, 100_000), FILE);
    assert_eq!(peer(host)["carrier"], "ws", "the web server takes the TLS off");
    let visit = ["curl", "-sk", "--resolve", "vpn.example.org:443:127.0.0.1", "https://vpn.example.org/"];
    let page = host.exec(visit).unwrap().stdout;
    assert!(page.contains("It works!"), "{page}");
    succeed(client, &["down"]);
    drop(server);
    stop_gateway(gateway);
}

#[test]
fn behind_nginx_the_tunnel_and_the_web_share_port_443() {
    look_behind("nginx", start_nginx, "http://127.0.0.1:8443");
}

#[test]
fn behind_caddy_the_tunnel_and_the_web_share_port_443() {
    if find_tool("caddy").is_err() {
        return println!("not run: there is no Caddy on this machine");
    }
    look_behind("caddy", start_caddy, "127.0.0.1:8443");
}

#[test]
fn a_forward_proxy_that_asks_for_a_password_is_enough() {
    let internet = Internet::new("proxyvia", 1);
    let (client, host) = (&internet.clients[0], &internet.gateway);
    init(host);
    configure(host, "stream = [\"same\", \":443\"]");
    let gateway = start_gateway(host);
    let file = admit(host, "phone", client, &[]);
    let settings = format!(
        "Port 3128\nListen {ROUTER}\nTimeout 600\nMaxClients 20\nAllow 10.100.0.0/16\nConnectPort 443\n\
         BasicAuth me secret\nLogLevel Warning\n"
    );
    let config = internet.router.write("tinyproxy.conf", settings).unwrap().display().to_string();
    let proxy = internet.router.spawn(["tinyproxy", "-d", "-c", &config]).unwrap();
    wait_for_port(&internet.router, 3128);
    // Nothing of the client passes the router itself.
    let cage = "table inet cage {\n chain forward {\n  type filter hook forward priority 0;\n  ip saddr 10.100.0.2 drop\n }\n}\n";
    let cage = internet.router.write("cage.nft", cage).unwrap().display().to_string();
    internet.router.exec(["nft", "-f", &cage]).unwrap();
    let via = format!("http://me@{ROUTER}:3128");
    let place = format!("{GATEWAY}:443");
    let password = client.write("password", "secret\n").unwrap().display().to_string();
    let wrong = client.write("wrong", "guess\n").unwrap().display().to_string();
    let up_by = |kind: &str, password: &str| {
        let password = format!("file:{password}");
        let settings = ["--via", &via, "--stream-endpoint", &place, "--via-password", &password];
        up(client, &file, &[&settings[..], &["--carrier", kind]].concat());
    };
    for kind in ["tls", "wss"] {
        up_by(kind, &password);
        wait_for_carrier(client, &[kind], SOON);
        assert_eq!(client.ping(INSIDE, 3).unwrap(), 3);
        finish_download(internet.start_download(client, FILE, 100_000), FILE);
        succeed(client, &["down"]);
    }
    up_by("tls", &wrong);
    assert_eq!(client.ping(INSIDE, 2).unwrap(), 0, "the proxy refuses a wrong password");
    let log = std::fs::read_to_string(home(client).join("state/phone.log")).unwrap();
    assert!(log.contains("refuses the user or the password"), "{log}");
    assert!(!log.contains("guess"), "no password in the log");
    succeed(client, &["down"]);
    drop(proxy);
    stop_gateway(gateway);
}

#[test]
fn visitors_find_a_plain_web_server_and_scanners_nothing() {
    let internet = Internet::new("visitor", 1);
    let (client, host) = (&internet.clients[0], &internet.gateway);
    init(host);
    let gateway = start_gateway(host);
    let https = format!("https://{GATEWAY}:51820");
    let curl = |arguments: &[&str]| {
        client.attempt([&["curl", "-s", "-m", "10", "-k"], arguments].concat()).unwrap().stdout
    };
    assert!(curl(&[&format!("{https}/")]).contains("It works!"));
    assert!(curl(&[&format!("http://{GATEWAY}:51820/")]).contains("It works!"));
    assert!(curl(&["-i", &format!("{https}/admin")]).starts_with("HTTP/1.1 404"));
    assert!(curl(&["-i", "-X", "POST", &format!("{https}/")]).starts_with("HTTP/1.1 405"));
    assert!(curl(&["--tls-max", "1.2", &format!("{https}/")]).is_empty(), "TLS 1.2 is not spoken");
    let place = format!("{GATEWAY}:51820");
    let shown = client
        .command(["openssl", "s_client", "-connect", &place, "-alpn", "http/1.1", "-ign_eof"])
        .input("GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        .attempt()
        .unwrap();
    for part in ["TLSv1.3", "ALPN protocol: http/1.1", "It works!"] {
        assert!(shown.stdout.contains(part), "{part}: {shown:?}");
    }
    // Nobody has to have the post-quantum key exchange that our clients agree on.
    for group in ["X25519", "P-256"] {
        let shown = client
            .command(["openssl", "s_client", "-connect", &place, "-groups", group, "-ign_eof"])
            .input("GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            .attempt()
            .unwrap();
        let key = if group == "X25519" { "X25519" } else { "prime256v1" };
        assert!(shown.stdout.contains("It works!"), "{group}: {shown:?}");
        assert!(shown.stdout.lines().any(|it| it.contains("Temp Key") && it.contains(key)), "{shown:?}");
    }
    // Whoever shows nothing is let go after the same time, whatever they send.
    for greeting in ["SSH-2.0-OpenSSH_9.6\r\n", "\0\u{1}\0\0", "\r\n\r\n", "EHLO x\r\n", "\u{16}\u{3}", "x"] {
        let started = Instant::now();
        let said = client
            .command(["timeout", "20", "socat", "-t", "15", "-", &format!("TCP:{place}")])
            .input(greeting)
            .deadline(Duration::from_secs(30))
            .attempt()
            .unwrap();
        let took = started.elapsed();
        assert!(said.stdout.is_empty(), "{greeting:?} was answered: {said:?}");
        assert!((4..16).contains(&took.as_secs()), "{greeting:?}: {took:?}");
    }
    assert_eq!(status(host)["peers"].as_array().map(Vec::len), Some(0));
    stop_gateway(gateway);
}

#[test]
fn visitors_see_the_directory_or_the_web_server_of_the_owner() {
    let internet = Internet::new("visited", 1);
    let (client, host) = (&internet.clients[0], &internet.gateway);
    init(host);
    let root = host.directory().join("www");
    std::fs::create_dir_all(&root).unwrap();
    std::fs::write(root.join("index.html"), "a page of the owner").unwrap();
    configure(host, &format!("stream_web = \"{}\"", root.display()));
    let gateway = start_gateway(host);
    let url = format!("https://{GATEWAY}:51820/");
    let visit = || client.exec(["curl", "-sk", "-m", "10", &url]).unwrap().stdout;
    assert_eq!(visit(), "a page of the owner");

    let path = home(host).join("adit.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    let upstream = text.replace(&root.display().to_string(), "http://203.0.113.80:80");
    std::fs::write(&path, upstream).unwrap();
    succeed(host, &["reload"]);
    wait_for("the other web server", SOON, || visit().contains(GATEWAY).then_some(())).unwrap();
    stop_gateway(gateway);
}

#[test]
fn a_certificate_renewed_on_disk_is_shown_without_a_restart_and_a_broken_one_is_not() {
    let internet = Internet::new("renewed", 1);
    let (client, host) = (&internet.clients[0], &internet.gateway);
    init(host);
    let directory = host.directory().join("acme");
    let [certificate, key] = make_certificate(host, &directory, "first.example.org");
    configure(host, &format!("stream_certificate = \"{certificate}\"\nstream_key = \"{key}\""));
    let gateway = start_gateway(host);
    let place = format!("{GATEWAY}:51820");
    let subject = || {
        let asked = internet.web.command(["openssl", "s_client", "-connect", &place]).input("");
        let shown = asked.attempt().unwrap().stdout;
        shown.lines().find(|line| line.starts_with("subject=")).unwrap_or_default().to_owned()
    };
    assert!(subject().contains("first.example.org"));
    let file = admit(host, "phone", client, &[]);
    internet.router.drop_udp().unwrap();
    up(client, &file, &["--carrier", "tls"]);
    wait_for_carrier(client, &["tls"], SOON);

    make_certificate(host, &directory, "second.example.org");
    wait_for("the renewed certificate", SOON, || subject().contains("second.example.org").then_some(()))
        .unwrap();
    assert_eq!(client.ping(INSIDE, 2).unwrap(), 2, "connections that are there stay");
    std::fs::write(&key, "nonsense").unwrap();
    std::thread::sleep(Duration::from_secs(4));
    assert!(subject().contains("second.example.org"), "what worked goes on");
    assert!(gateway.stderr().contains("the certificate stays as it was"), "{}", gateway.stderr());
    succeed(client, &["down"]);
    stop_gateway(gateway);
}
